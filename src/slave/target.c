/*-------------------------------------------------------------------------
 *
 * target.c
 *	  Where changes go on the slave: the table, its columns, and how its
 *	  changes may be applied.
 *
 * Tables and columns are found by name; a table's may be another one here, see
 * mapping.c, and several tables of the master's may be one here.  A value that travelled in binary is
 * a parameter of the master's type: if the column here has another one, the
 * server casts it, where it has an assignment cast.  A value that travelled
 * as text goes through the input function of the column here; so does one that is
 * text, if there is no such cast.
 *
 * A table without a key on the master is found by all columns that are logged of it,
 * and of equal rows one is taken by its place; so it must be a table that has its
 * rows here.
 *
 * Usually a table has one target.  It has another one when the master's key
 * or a column's type there was changed, or what is logged of old rows, for the
 * changes made since.  A target
 * is good until the table changes here; those that are not any more are freed
 * between windows.
 *
 * The route.  What counts in the end is a table's content, so the net effect
 * of its changes will do, unless somebody can see more than that:
 *
 * - triggers and rules that fire in a replica, and views, see each change, and
 *   can look at other tables: changes are applied one by one, each at its place
 *   among those of all tables.  (Our own log trigger does not count; a
 *   cascade passes the net effect on.)
 * - under an exclusion constraint, or with a key that is not unique at any
 *   time on both sides, or computed here, changes of the table have to come one
 *   by one, in order, but apart from those of others.
 * - foreign tables of postgres_fdw take sets, by statements that are sent as they
 *   are (see statement.c), if the key has types that are built in.  How others work
 *   is not known, so there changes come one by one as well.  That the key tells rows
 *   apart is not known of any of them, but taken for granted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/transam.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/encoding.h"
#include "common/keys.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "parser/parse_coerce.h"
#include "pyreplica.h"
#include "rewrite/prs2lock.h"
#include "slave/author.h"
#include "slave/local.h"
#include "slave/mapping.h"
#include "slave/statement.h"
#include "slave/target.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/*
 * So many sets of columns are remembered of a table, with their plans; if
 * there are more, it is begun anew.
 */
#define FORMS_MAX		256

/* most windows that a table whose sets failed is applied in order */
#define PENALTY_MAX		64

/* the targets of a table, or of one that it is a partition of */
typedef struct TableEntry
{
	Oid			relid;			/* hash key */
	List	   *targets;
} TableEntry;

static HTAB *tables = NULL;
static List *all_targets = NIL;
static bool has_invalid = false;
static uint64 last_serial = 0;

static void
invalidate(List *targets)
{
	ListCell   *cell;

	foreach(cell, targets)
	{
		PyrTarget  *target = lfirst(cell);

		target->valid = false;
		has_invalid = true;
	}
}

static void
relcache_callback(Datum arg pg_attribute_unused(), Oid relid)
{
	TableEntry *entry;

	if (relid == InvalidOid)
		invalidate(all_targets);
	else if ((entry = hash_search(tables, &relid, HASH_FIND, NULL)) != NULL)
		invalidate(entry->targets);
}

/*
 * A schema may have been renamed, of which tables are not told.
 */
static void
namespace_callback(Datum arg pg_attribute_unused(),
				   int cacheid pg_attribute_unused(),
				   uint32 hash pg_attribute_unused())
{
	invalidate(all_targets);
}

static void
create_tables(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(TableEntry);
	tables = hash_create("pyreplica targets", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, namespace_callback, (Datum) 0);
}

static List *
targets_of(Oid relid)
{
	TableEntry *entry = hash_search(tables, &relid, HASH_FIND, NULL);

	return entry != NULL ? entry->targets : NIL;
}

static void
register_target(PyrTarget *target, Oid relid)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	bool		found;
	TableEntry *entry = hash_search(tables, &relid, HASH_ENTER, &found);

	entry->targets = list_append_unique_ptr(found ? entry->targets : NIL, target);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Whether the table is what the slave itself is made of.
 */
bool
pyr_target_is_protected(Oid namespace, Oid relid)
{
	Oid			extension = getExtensionOfObject(RelationRelationId, relid);

	return IsCatalogNamespace(namespace) || IsToastNamespace(namespace) ||
		namespace == get_namespace_oid("information_schema", true) ||
		(OidIsValid(extension) &&
		 extension == get_extension_oid(PYR_EXTENSION, true));
}

/*
 * The relation of that name; InvalidOid: there is none.
 */
static Oid
relation_at(PyrPlace place)
{
	Oid			namespace = get_namespace_oid(place.schema, true);

	return OidIsValid(namespace)
		? get_relname_relid(place.table, namespace) : InvalidOid;
}

/*
 * An errdetail, if the table has another name here.
 */
static int
detail_of_mapping(PyrShape *shape)
{
	const char *words = pyr_mapping_words(shape->schema, shape->table);

	return words ? errdetail("%s", words) : 0;
}

/*
 * The slave's table for changes of that shape.
 */
static Oid
find_table(PyrShape *shape, PyrPlace *place)
{
	Oid			relid;

	*place = pyr_mapping_of(shape->schema, shape->table);
	relid = relation_at(*place);

	/* the table may have got another name just now, and with it another mapping */
	if (!OidIsValid(relid) && pyr_mapping_refresh())
	{
		invalidate(all_targets);
		*place = pyr_mapping_of(shape->schema, shape->table);
		relid = relation_at(*place);
	}
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the master's table \"%s.%s\" does not exist on the slave",
						shape->schema, shape->table),
				 detail_of_mapping(shape),
				 errhint("Create it here, with the rows that the master's had before its log trigger was created, or drop its trigger on the master with py_log_drop_tg.")));
	if (pyr_target_is_protected(get_rel_namespace(relid), relid))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the master may not change \"%s.%s\" on the slave",
						place->schema, place->table),
				 errdetail("It belongs to the slave's own server, or to pyreplica.")));
	return relid;
}

/*
 * The number, from 0, of the column in the table; -1: there is none.
 */
static int
column_number(PyrTarget *target, const char *name)
{
	for (int i = 0; i < target->ncolumns; i++)
	{
		if (!target->columns[i].is_dropped &&
			strcmp(target->columns[i].name, name) == 0)
			return i;
	}
	return -1;
}

static int
find_column(PyrTarget *target, PyrShape *shape, const char *name)
{
	int			number = column_number(target, name);

	if (number < 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of the master's table \"%s.%s\" does not exist on the slave",
						name, shape->schema, shape->table),
				 detail_of_mapping(shape),
				 errhint("Add the column to the slave's table \"%s.%s\".",
						 target->schema, target->table)));
	return number;
}

static bool
can_assign(Oid source, Oid destination)
{
	return getBaseType(destination) == source ||
		can_coerce_type(1, &source, &destination, COERCION_ASSIGNMENT);
}

/*
 * Whether a value that is text becomes one of another type by being read as one.
 */
static bool
is_read_from_text(Oid source, Oid destination)
{
	return pyr_wire_of_type(source) == PYR_WIRE_STRING &&
		TypeCategory(source) == TYPCATEGORY_STRING &&
		!can_assign(source, destination);
}

/*
 * Decides how values that travel as that type become datums.
 */
static void
learn_column(PyrTarget *target, PyrShape *shape, PyrTargetColumn *column,
			 Oid source)
{
	Oid			function;
	Oid			destination = column->type;

	if (!OidIsValid(source) || is_read_from_text(source, destination))
	{
		column->wire = PYR_WIRE_TEXT;
		column->param_type = destination;
		getTypeInputInfo(destination, &function, &column->ioparam);
		fmgr_info_cxt(function, &column->function, target->context);
	}
	else
	{
		column->wire = pyr_wire_of_type(source);
		column->param_type = source;
		if (column->wire == PYR_WIRE_TEXT)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("column \"%s\" of the master's table \"%s.%s\" has type %u, which cannot be read here",
							column->name, shape->schema, shape->table, source),
					 errhint("The master may run a newer version of pyreplica.")));
		if (!can_assign(source, destination))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" of table \"%s.%s\" has type %s on the master and type %s on the slave",
							column->name, shape->schema, shape->table,
							format_type_be(source), format_type_be(destination)),
					 errdetail("There is no assignment cast from the one to the other."),
					 errhint("Change the column's type on one side, or create such a cast.")));
		if (column->wire == PYR_WIRE_SEND)
		{
			getTypeBinaryInputInfo(source, &function, &column->ioparam);
			fmgr_info_cxt(function, &column->function, target->context);
		}
	}
	column->source = source;
	column->is_known = true;
}

static bool
fires_in_replica(char enabled)
{
	return enabled == TRIGGER_FIRES_ALWAYS || enabled == TRIGGER_FIRES_ON_REPLICA;
}

/*
 * Whether it is pyreplica's own log trigger.
 */
static bool
is_log_trigger(Trigger *trigger)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID,
										ObjectIdGetDatum(trigger->tgfoid));
	bool		is_ours;

	if (!HeapTupleIsValid(tuple))
		return false;
	is_ours = strcmp(NameStr(((Form_pg_proc) GETSTRUCT(tuple))->proname),
					 "py_log_replica") == 0;
	ReleaseSysCache(tuple);
	return is_ours;
}

static bool
is_watched(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;
	RuleLock   *rules = rel->rd_rules;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		if (fires_in_replica(triggers->triggers[i].tgenabled) &&
			!is_log_trigger(&triggers->triggers[i]))
			return true;
	}
	for (int i = 0; rules != NULL && i < rules->numLocks; i++)
	{
		if (fires_in_replica(rules->rules[i]->enabled))
			return true;
	}
	return false;
}

/*
 * Whether what is done to it in a replica is logged here again.
 */
static bool
is_forwarded(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		if (fires_in_replica(triggers->triggers[i].tgenabled) &&
			is_log_trigger(&triggers->triggers[i]))
			return true;
	}
	return false;
}

/*
 * Whether it is a view with INSTEAD OF triggers that are not made to fire in a
 * replica.  Nobody can make them (ALTER TABLE does not take views for that), and
 * without them the change would be lost, so it is made as if it came from here.
 */
static bool
fires_as_origin(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;

	return rel->rd_rel->relkind == RELKIND_VIEW && triggers != NULL &&
		(triggers->trig_insert_instead_row ||
		 triggers->trig_update_instead_row ||
		 triggers->trig_delete_instead_row) &&
		!is_watched(rel);
}

/*
 * Whether the foreign table is one of postgres_fdw.
 */
static bool
is_of_postgres_fdw(Relation rel)
{
	ForeignServer *server = GetForeignServer(GetForeignTable(RelationGetRelid(rel))->serverid);
	ForeignDataWrapper *wrapper = GetForeignDataWrapper(server->fdwid);
	Oid			extension;

	if (!OidIsValid(wrapper->fdwhandler))
		return false;
	extension = getExtensionOfObject(ProcedureRelationId, wrapper->fdwhandler);
	return OidIsValid(extension) &&
		extension == get_extension_oid("postgres_fdw", true);
}

/*
 * Whether the table, or a part of it, is a foreign one.
 */
bool
pyr_target_is_foreign(Oid relid)
{
	ListCell   *cell;

	foreach(cell, find_all_inheritors(relid, AccessShareLock, NULL))
	{
		if (get_rel_relkind(lfirst_oid(cell)) == RELKIND_FOREIGN_TABLE)
			return true;
	}
	return false;
}

/*
 * The columns that tell where in the partitioned table a row goes.
 */
static Bitmapset *
routing_columns(PyrTarget *target, Relation rel)
{
	PartitionKey key = RelationGetPartitionKey(rel);
	Bitmapset  *columns = NULL;

	for (int i = 0; i < get_partition_natts(key); i++)
	{
		AttrNumber	attnum = get_partition_col_attnum(key, i);

		/* if it is an expression, all may */
		if (attnum == InvalidAttrNumber)
			return bms_add_range(NULL, 0, target->ncolumns);
		columns = bms_add_member(columns,
								 column_number(target, NameStr(TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attname)));
	}
	return columns;
}

/*
 * The route for what one relation, a table or partition, says.
 */
static PyrRoute
route_of_relation(Relation rel)
{
	switch (rel->rd_rel->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			if (is_watched(rel))
				return PYR_ROUTE_AT_ONCE;
			return pyr_has_exclusion(rel) ? PYR_ROUTE_ORDERED : PYR_ROUTE_SETS;

		case RELKIND_FOREIGN_TABLE:
			if (is_watched(rel))
				return PYR_ROUTE_AT_ONCE;
			return is_of_postgres_fdw(rel) ? PYR_ROUTE_SETS : PYR_ROUTE_ORDERED;

		default:
			return PYR_ROUTE_AT_ONCE;
	}
}

/*
 * Whether the relation's rows have an xmin that tells who wrote them.
 */
static bool
has_authors(Relation rel)
{
	return rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ||
		(rel->rd_rel->relkind == RELKIND_RELATION &&
		 rel->rd_rel->relam == HEAP_TABLE_AM_OID);
}

/*
 * Whether INSERT ... ON CONFLICT DO NOTHING can be said of the relation, and if
 * it does nothing that means that a unique value is there: not if there are
 * rules, indexes that are looked at later, exclusion constraints, or triggers.
 */
static bool
can_arbitrate(Relation rel)
{
	return rel->rd_rules == NULL && !pyr_has_deferrable(rel) &&
		route_of_relation(rel) == PYR_ROUTE_SETS;
}

/*
 * Finds the route, whether changes are forwarded, and the columns whose values
 * must be unique, from the table and everything that inherits from it.
 */
static Bitmapset *
look_at_members(PyrTarget *target)
{
	List	   *members = find_all_inheritors(target->relid, AccessShareLock, NULL);
	Bitmapset  *linked = NULL;
	ListCell   *cell;

	target->route = PYR_ROUTE_SETS;
	target->is_local = target->relkind == RELKIND_RELATION ||
		target->relkind == RELKIND_PARTITIONED_TABLE;
	target->can_arbitrate = target->is_local;
	foreach(cell, members)
	{
		Relation	rel = relation_open(lfirst_oid(cell), NoLock);

		register_target(target, lfirst_oid(cell));
		target->route = Max(target->route, route_of_relation(rel));
		if (!has_authors(rel))
			target->is_local = false;
		if (!can_arbitrate(rel))
			target->can_arbitrate = false;
		if (rel->rd_rel->relkind == RELKIND_FOREIGN_TABLE)
			target->is_foreign = true;
		if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
			target->routing = bms_join(target->routing,
									   routing_columns(target, rel));
		target->is_forwarded = target->is_forwarded || is_forwarded(rel);
		if (lfirst_oid(cell) == target->relid)
			linked = pyr_unique_columns(rel);
		relation_close(rel, NoLock);
	}
	return linked;
}

static void
fill_columns(PyrTarget *target, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	target->ncolumns = desc->natts;
	target->columns = palloc0((desc->natts + 1) * sizeof(PyrTargetColumn));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		PyrTargetColumn *column = &target->columns[i];

		column->name = pstrdup(NameStr(att->attname));
		column->type = att->atttypid;
		column->typmod = att->atttypmod;
		column->collation = att->attcollation;
		column->is_dropped = att->attisdropped;
		column->is_generated = att->attgenerated != '\0';
		column->is_fixed = att->attidentity == ATTRIBUTE_IDENTITY_ALWAYS;
	}
}

/*
 * The columns that make up a row, where nothing computes them.  If one cannot
 * be updated, a number that no column has is among them: no update will do to
 * replace a row.
 */
static Bitmapset *
whole_row(PyrTarget *target)
{
	Bitmapset  *whole = NULL;

	for (int i = 0; i < target->ncolumns; i++)
	{
		if (target->columns[i].is_fixed)
			whole = bms_add_member(whole, target->ncolumns);
		if (!target->columns[i].is_dropped && !target->columns[i].is_generated)
			whole = bms_add_member(whole, i);
	}
	return whole;
}

/*
 * Whether conditions on the key can be sent to another server.
 */
static bool
is_key_built_in(PyrTarget *target, const AttrNumber *key, int nkey)
{
	for (int i = 0; i < nkey; i++)
	{
		if (target->columns[key[i] - 1].type >= FirstGenbkiObjectId)
			return false;
	}
	return true;
}

/*
 * Whether the key tells rows apart at any time, and says where a row goes: a
 * unique index looks at it at once, no table inherits from this one and has
 * rows with the same keys, and no part of it is computed here.
 */
static bool
is_key_followed(PyrTarget *target, Relation rel, const AttrNumber *key, int nkey)
{
	for (int i = 0; i < nkey; i++)
	{
		if (target->columns[key[i] - 1].is_generated)
			return false;
	}
	if (target->relkind == RELKIND_RELATION && rel->rd_rel->relhassubclass)
		return false;
	if (target->is_foreign)
		return is_key_built_in(target, key, nkey);
	return nkey == 0 || pyr_key_is_unique(rel, key, nkey, true);
}

/*
 * Who wins a conflict.  Where a column tells, rows are compared one by one.
 */
static void
fill_policy(PyrTarget *target)
{
	target->policy = pyr_policy_of(target->schema, target->table);
	target->watches_origin = target->is_local && pyr_author_can_tell() &&
		pyr_policy_watches_origin(target->policy);
	if (target->watches_origin &&
		!pyr_may_use_schema(pyr_local_schema_oid(), target->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("rows of table \"%s.%s\" cannot be asked for who wrote them",
						target->schema, target->table),
				 errdetail("Its owner may not use pyreplica's schema."),
				 errhint("GRANT USAGE ON SCHEMA %s TO %s", pyr_local_schema(),
						 quote_identifier(GetUserNameFromId(target->owner, false)))));
	target->later_column = -1;
	if (target->policy.column == NULL)
		return;
	target->later_column = column_number(target, target->policy.column);
	if (target->later_column < 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s.%s\", which is to tell the last update, does not exist on the slave",
						target->policy.column, target->schema, target->table),
				 errhint("Add the column, or call pyreplica_set_conflict_resolution() again.")));
	if (target->is_local)
		target->route = Max(target->route, PYR_ROUTE_ORDERED);
}

/*
 * Learns all there is to know of the table, in the target's memory.
 */
static void
fill_target(PyrTarget *target, PyrShape *shape, PyrPlace place)
{
	Relation	rel = relation_open(target->relid, AccessShareLock);
	int		   *key = palloc((shape->nkey + 1) * sizeof(int));
	AttrNumber *attnums = palloc((shape->nkey + 1) * sizeof(AttrNumber));
	Bitmapset  *linked;

	target->owner = rel->rd_rel->relowner;
	target->relkind = rel->rd_rel->relkind;
	target->schema = pstrdup(place.schema);
	target->table = pstrdup(place.table);
	fill_columns(target, rel);
	target->fires_as_origin = fires_as_origin(rel);
	linked = look_at_members(target);

	target->is_whole = shape->is_whole;
	if (shape->is_whole && !target->is_local && shape->nkey > 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s.%s\" has no key on the master, and is not an ordinary table on the slave",
						shape->schema, shape->table),
				 errdetail("Of rows that are equal one is found by its place, which only ordinary tables and partitions have."),
				 errhint("Give the master's table a primary key, or name unique columns: py_log_create_tg(..., key => '{...}').")));
	if (shape->nkey > INDEX_MAX_KEYS && !shape->is_whole)
		ereport(ERROR,
				(errcode(ERRCODE_TOO_MANY_COLUMNS),
				 errmsg("table \"%s.%s\" has a key of more than %d columns on the master",
						shape->schema, shape->table, INDEX_MAX_KEYS)));
	for (int i = 0; i < shape->nkey; i++)
	{
		key[i] = find_column(target, shape, shape->columns[i].name);
		attnums[i] = key[i] + 1;
	}
	target->is_key_deferrable = shape->nkey > 0 &&
		target->relkind == RELKIND_RELATION &&
		!pyr_key_is_unique(rel, attnums, shape->nkey, true) &&
		pyr_key_is_unique(rel, attnums, shape->nkey, false);
	if (!shape->is_whole &&
		!is_key_followed(target, rel, attnums, shape->nkey))
		target->route = Max(target->route, PYR_ROUTE_ORDERED);
	fill_policy(target);
	target->merge = pyr_merge_table_create(target->context, target->ncolumns,
										   shape->nkey, key,
										   whole_row(target), linked);
	target->merge->is_whole = shape->is_whole;
	target->merge->user = target;
	relation_close(rel, NoLock);
}

static PyrTarget *
create_target(Oid relid, PyrShape *shape, PyrPlace place)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "pyreplica target",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	PyrTarget  *target = MemoryContextAllocZero(context, sizeof(PyrTarget));

	target->context = context;
	target->serial = ++last_serial;
	target->relid = relid;
	all_targets = lappend(all_targets, target);

	/* invalidation during what follows must not be missed */
	target->valid = true;
	register_target(target, relid);
	MemoryContextSwitchTo(context);
	fill_target(target, shape, place);
	MemoryContextSwitchTo(oldcontext);
	return target;
}

/*
 * Whether changes of that shape could tell what the row was before.
 */
static bool
tells_of_row(PyrShape *shape)
{
	return shape->verb == PYR_UPDATE || shape->verb == PYR_DELETE;
}

/*
 * Whether the target does for changes of that shape.
 */
static bool
suits(PyrTarget *target, PyrShape *shape)
{
	if (!target->valid || target->merge == NULL ||
		target->merge->nkey != shape->nkey ||
		target->is_whole != shape->is_whole)
		return false;
	if (tells_of_row(shape) && target->is_old_known &&
		target->tells_old != (shape->nold > 0))
		return false;
	for (int i = 0; i < shape->nkey + shape->nset + shape->nold; i++)
	{
		int			number = column_number(target, shape->columns[i].name);

		if (i < shape->nkey && number != target->merge->key[i])
			return false;
		if (number >= 0 && target->columns[number].is_known &&
			target->columns[number].source != shape->columns[i].type)
			return false;
	}
	return true;
}

static PyrTarget *
find_target(PyrShape *shape)
{
	PyrPlace	place;
	Oid			relid = find_table(shape, &place);
	ListCell   *cell;

	foreach(cell, targets_of(relid))
	{
		PyrTarget  *target = lfirst(cell);

		if (target->relid == relid && suits(target, shape))
			return target;
	}
	return create_target(relid, shape, place);
}

/*
 * Whether changes of this table are pending that another target has taken in.
 */
bool
pyr_target_has_rival(PyrTarget *target)
{
	ListCell   *cell;

	foreach(cell, targets_of(target->relid))
	{
		PyrTarget  *other = lfirst(cell);

		if (other != target && other->merge != NULL && other->merge->is_pending)
			return true;
	}
	return false;
}

/*
 * Where the key is in an update that sets some of it: in a set column, or
 * as it was.
 */
static void
fill_new_key(PyrBinding *binding, int *number_of)
{
	PyrTarget  *target = binding->target;
	PyrShape   *shape = binding->shape;

	binding->merge.new_key = palloc((shape->nkey + 1) * sizeof(int));
	for (int i = 0; i < shape->nkey; i++)
	{
		binding->merge.new_key[i] = i;
		for (int j = shape->nkey; j < shape->nkey + shape->nset; j++)
		{
			if (number_of[j] == target->merge->key[i])
				binding->merge.new_key[i] = j;
		}
	}
}

/*
 * Where the form's columns are among a shape's from "begin" to "end", whose
 * numbers are given.
 */
static int *
places_in(PyrForm *form, const int *number_of, int begin, int end)
{
	int		   *places = palloc((form->ncolumns + 1) * sizeof(int));

	for (int i = begin; i < end; i++)
	{
		if (form->slots[number_of[i]] >= 0)
			places[form->slots[number_of[i]]] = i;
	}
	return places;
}

/*
 * Finds the form of what the shape sets, and what goes where.
 */
static void
fill_binding(PyrBinding *binding)
{
	PyrTarget  *target = binding->target;
	PyrShape   *shape = binding->shape;
	PyrMergeShape *merge = &binding->merge;
	int			nvalues = shape->nkey + shape->nset + shape->nold;
	int		   *number_of = palloc((nvalues + 1) * sizeof(int));
	int			first_set = shape->verb == PYR_INSERT ? 0 : shape->nkey;
	int			first_old = shape->nkey + shape->nset;
	Bitmapset  *set = NULL;
	Bitmapset  *old = NULL;

	if (tells_of_row(shape) && !target->is_old_known)
	{
		target->is_old_known = true;
		target->tells_old = shape->nold > 0;
	}

	merge->table = target->merge;
	merge->verb = shape->verb;
	merge->nvalues = nvalues;
	for (int i = 0; i < nvalues; i++)
	{
		PyrTargetColumn *column;

		number_of[i] = find_column(target, shape, shape->columns[i].name);
		column = &target->columns[number_of[i]];
		if (!column->is_known)
			learn_column(target, shape, column, shape->columns[i].type);

		/* what is generated here, the slave computes */
		if (column->is_generated)
			continue;
		if (i >= first_old)
			old = bms_add_member(old, number_of[i]);
		else if (i >= first_set)
			set = bms_add_member(set, number_of[i]);
	}
	if (old != NULL)
	{
		merge->old_form = pyr_merge_form(target->merge, old);
		merge->old_from = places_in(merge->old_form, number_of, first_old, nvalues);
	}
	if (shape->verb == PYR_TRUNCATE || shape->verb == PYR_DELETE)
		return;

	binding->is_empty = shape->verb == PYR_UPDATE && bms_is_empty(set);
	merge->form = pyr_merge_form(target->merge, set);
	merge->from = places_in(merge->form, number_of, first_set, first_old);
	if (shape->verb == PYR_UPDATE && merge->form->sets_key)
		fill_new_key(binding, number_of);
}

/*
 * The shape's binding to its target.  Needs SPI.
 */
PyrBinding *
pyr_target_bind(PyrShape *shape)
{
	PyrBinding *binding = shape->user;
	PyrTarget  *target;
	MemoryContext oldcontext;

	if (binding != NULL && binding->target->valid)
		return binding;

	if (tables == NULL)
		create_tables();
	if (binding != NULL)
		binding->target->bindings = list_delete_ptr(binding->target->bindings,
													binding);
	shape->user = NULL;

	target = find_target(shape);
	oldcontext = MemoryContextSwitchTo(target->context);
	binding = palloc0(sizeof(PyrBinding));
	binding->shape = shape;
	binding->target = target;
	fill_binding(binding);
	target->bindings = lappend(target->bindings, binding);
	shape->user = binding;
	MemoryContextSwitchTo(oldcontext);
	return binding;
}

/* a value being read */
typedef struct Reading
{
	PyrTargetColumn *column;
	int			encoding;
} Reading;

/*
 * Which column it is, of an error in reading a value.  A character that does not
 * exist here says nothing but its bytes, so the detail is ours to give.
 */
static void
reading_context(void *arg)
{
	Reading    *reading = arg;
	int			code = geterrcode();

	errcontext("column \"%s\"", reading->column->name);
	if (code != ERRCODE_UNTRANSLATABLE_CHARACTER &&
		code != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE)
		return;
	errdetail("It is in column \"%s\" of the change; the encodings are %s on the master and %s on the slave.",
			  reading->column->name, pg_encoding_to_char(reading->encoding),
			  GetDatabaseEncodingName());
	if (apply_mode != PYR_APPLY_STRICT && !log_statements)
		errhint("Change or delete the row on the master: then only what became of it has to come here.");
}

/*
 * A value, not NULL, as a datum of the column's parameter type, in the current
 * memory context.
 */
Datum
pyr_target_datum(PyrTargetColumn *column, const PyrValue *value, int encoding)
{
	Reading		reading = {column, encoding};
	ErrorContextCallback callback;
	Datum		datum;

	callback.callback = reading_context;
	callback.arg = &reading;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (column->wire != PYR_WIRE_TEXT)
		datum = pyr_wire_decode(column->wire, value->data, value->len,
								&column->function, column->ioparam, encoding);
	else
		datum = InputFunctionCall(&column->function,
								  pyr_wire_text(value->data, value->len, encoding),
								  column->ioparam, column->typmod);
	error_context_stack = callback.previous;
	return datum;
}

/*
 * Whether a row here can have that key: not if it has characters that do not exist
 * here.
 */
bool
pyr_target_can_have_key(PyrTarget *target, const PyrValue *key, int encoding)
{
	for (int i = 0; i < target->merge->nkey; i++)
	{
		PyrWire		wire = target->columns[target->merge->key[i]].wire;
		bool		is_exact = true;

		if (key[i].len > 0 && (wire == PYR_WIRE_TEXT || wire == PYR_WIRE_STRING))
			pfree(pyr_encoding_show(key[i].data, key[i].len, encoding, &is_exact));
		if (!is_exact)
			return false;
	}
	return true;
}

/*
 * Whether the table's changes of that window (a number that grows) have to be
 * applied in order, one by one.
 */
bool
pyr_target_keeps_order(PyrTarget *target, uint64 window)
{
	if (target->window != window)
	{
		target->window = window;
		if (list_length(target->merge->forms) > FORMS_MAX)
			invalidate(list_make1(target));
		target->is_distrusted = target->distrusted_windows > 0;
		if (target->is_distrusted)
			target->distrusted_windows--;
		else
			target->penalty /= 2;
	}
	return target->is_distrusted || target->route != PYR_ROUTE_SETS;
}

/*
 * A set of this table's changes failed: for a while they come in order.  If
 * that happens often, ever longer.
 */
void
pyr_target_distrust(PyrTarget *target)
{
	target->penalty = Min(target->penalty * 4 + 1, PENALTY_MAX);
	target->distrusted_windows = target->penalty;
}

static void
free_target(PyrTarget *target)
{
	HASH_SEQ_STATUS status;
	TableEntry *entry;
	ListCell   *cell;

	foreach(cell, target->bindings)
		((PyrBinding *) lfirst(cell))->shape->user = NULL;
	foreach(cell, target->statements)
		pyr_statement_free(lfirst(cell));
	hash_seq_init(&status, tables);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		entry->targets = list_delete_ptr(entry->targets, target);
		if (entry->targets == NIL)
			hash_search(tables, &entry->relid, HASH_REMOVE, NULL);
	}
	all_targets = list_delete_ptr(all_targets, target);
	MemoryContextDelete(target->context);
}

/*
 * Frees targets that are not valid any more.  Called when nothing is pending.
 */
void
pyr_target_sweep(void)
{
	List	   *old;
	ListCell   *cell;

	if (!has_invalid)
		return;
	has_invalid = false;
	old = list_copy(all_targets);
	foreach(cell, old)
	{
		PyrTarget  *target = lfirst(cell);

		if (!target->valid)
			free_target(target);
	}
	list_free(old);
}

/*
 * Settings or policies may have changed that targets depend on.
 */
void
pyr_target_invalidate_all(void)
{
	invalidate(all_targets);
}

/*
 * Frees all targets, for shapes that are about to be freed.
 */
void
pyr_target_forget_all(void)
{
	invalidate(all_targets);
	pyr_target_sweep();
}
