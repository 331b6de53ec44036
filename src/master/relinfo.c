/*-------------------------------------------------------------------------
 *
 * relinfo.c
 *	  What capture needs to know of a table, per log trigger.
 *
 * Built when a session first changes the table, thrown away when the server
 * says that the table changed.  Invalidation may arrive at any moment, also
 * in the middle of capturing a row, so it only sets a flag; what a running
 * capture may still look at is freed at the end of the transaction.
 *
 * A partition has a clone of its parent's trigger.  With the option via_root its
 * changes are logged under the name of the topmost table that has the trigger, so
 * to a slave it is one table, however it is divided here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_index.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "common/arrays.h"
#include "common/compat.h"
#include "common/hashfn.h"
#include "common/keys.h"
#include "common/textform.h"
#include "master/relinfo.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

/* what a trigger's options say */
typedef struct Options
{
	bool		log_old;
	bool		whole_row;
	bool		via_root;
	bool		ignore_truncate;
	const char *row_filter;		/* NULL: all rows */
	const char *columns;		/* an array of names; NULL: all columns */
} Options;

typedef struct CacheEntry
{
	Oid			trigger;		/* hash key */
	PyrRelInfo *info;
} CacheEntry;

static HTAB *cache = NULL;
static PyrRelInfo *latest = NULL;	/* found last, if it is still in the cache */
static List *outdated = NIL;	/* contexts to delete, in TopMemoryContext */
static uint32 last_generation = 0;

static void
relcache_callback(Datum arg pg_attribute_unused(), Oid relid)
{
	HASH_SEQ_STATUS status;
	CacheEntry *entry;

	hash_seq_init(&status, cache);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->info != NULL &&
			(relid == InvalidOid || entry->info->relid == relid ||
			 entry->info->logged_as == relid ||
			 list_member_oid(entry->info->rowtypes, relid)))
			entry->info->valid = false;
	}
}

/*
 * A schema may have been renamed, of which tables are not told.
 */
static void
namespace_callback(Datum arg, int cacheid pg_attribute_unused(),
				   uint32 hash pg_attribute_unused())
{
	relcache_callback(arg, InvalidOid);
}

static void
create_cache(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(CacheEntry);
	cache = hash_create("pyreplica tables", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, namespace_callback, (Datum) 0);
}

/*
 * Where the trigger's arguments for the key end.  What follows is an empty one,
 * which cannot name a column, and then options, each a name and a value.
 */
static int
key_end(Trigger *trigger)
{
	int			i = 1;

	while (i < trigger->tgnargs && trigger->tgargs[i][0] != '\0')
		i++;
	return i;
}

/*
 * The key columns named by the trigger's arguments (the first argument is the
 * table's name, as in PyReplica), or an empty list if they do not name
 * columns, say because one was renamed since.
 */
static List *
key_from_trigger(Relation rel, Trigger *trigger)
{
	List	   *key = NIL;
	int			end = key_end(trigger);

	for (int i = 1; i < end; i++)
	{
		AttrNumber	attnum = get_attnum(RelationGetRelid(rel),
										trigger->tgargs[i]);

		if (attnum <= 0 || list_member_int(key, attnum))
			return NIL;
		key = lappend_int(key, attnum);
	}
	return key;
}

/*
 * The options that follow the key in the trigger's arguments:
 *
 *	log_old		on: old values are logged, too
 *	row_filter	a condition for the rows that are logged
 *	columns		an array of the columns that are logged, the key among them
 *	whole_row	on: all columns together are the key
 *	via_root	on: logged as the topmost partitioned table that has the trigger
 *	ignore_truncate	on: TRUNCATE is not logged
 */
static Options
options_from_trigger(PyrRelInfo *info, Trigger *trigger)
{
	Options		options = {0};

	for (int i = key_end(trigger) + 1; i < trigger->tgnargs; i += 2)
	{
		const char *name = trigger->tgargs[i];
		const char *value = i + 1 < trigger->tgnargs ? trigger->tgargs[i + 1] : "";
		bool		is_known = true;

		if (strcmp(name, "log_old") == 0)
			is_known = parse_bool(value, &options.log_old);
		else if (strcmp(name, "row_filter") == 0)
			options.row_filter = value;
		else if (strcmp(name, "columns") == 0)
			options.columns = value;
		else if (strcmp(name, "whole_row") == 0)
			is_known = parse_bool(value, &options.whole_row);
		else if (strcmp(name, "via_root") == 0)
			is_known = parse_bool(value, &options.via_root);
		else if (strcmp(name, "ignore_truncate") == 0)
			is_known = parse_bool(value, &options.ignore_truncate);
		else
			is_known = false;
		if (!is_known)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("cannot log changes of table \"%s.%s\": trigger \"%s\" has an option \"%s\" of value \"%s\"",
							info->schema, info->table, trigger->tgname, name, value),
					 errhint("Use py_log_create_tg to create the log triggers.")));
	}
	return options;
}

/*
 * A number that is another one if other rows or columns are logged; py_log_options
 * makes the same.
 */
static uint32
number_of_filter(const Options *options)
{
	char	   *text;
	uint32		number;

	if (options->row_filter == NULL && options->columns == NULL)
		return 0;
	text = psprintf("%s\n%s",
					options->row_filter ? options->row_filter : "",
					options->columns ? options->columns : "");
	number = hash_bytes((unsigned char *) text, strlen(text));
	pfree(text);
	return number != 0 ? number : 1;
}

/*
 * Leaves out the columns that are not in the list.
 */
static void
keep_columns(PyrRelInfo *info, Relation rel, const char *list)
{
	int			n;
	char	  **names = pyr_array_split(list, &n);
	Bitmapset  *kept = NULL;

	for (int i = 0; i < n; i++)
	{
		AttrNumber	attnum = names[i] == NULL ? InvalidAttrNumber
			: get_attnum(RelationGetRelid(rel), names[i]);

		if (attnum <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("cannot log changes of table \"%s.%s\": column \"%s\", which is to be logged, does not exist",
							info->schema, info->table, names[i] ? names[i] : ""),
					 errdetail("The columns to be logged are: %s", list),
					 errhint("SELECT py_log_create_tg('%s', '%s', columns => '{...}') sets others; '{}' means all columns.",
							 info->schema, info->table)));
		kept = bms_add_member(kept, attnum - 1);
	}
	for (int i = 0; i < info->natts; i++)
	{
		if (bms_is_member(i, kept))
			continue;
		if (info->columns[i].is_key)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("cannot log changes of table \"%s.%s\": column \"%s\" of its key is not among those to be logged",
							info->schema, info->table, info->columns[i].name),
					 errdetail("The columns to be logged are: %s", list),
					 errhint("SELECT py_log_create_tg('%s', '%s', columns => '{...}') sets others; '{}' means all columns.",
							 info->schema, info->table)));
		info->columns[i].captured = false;
	}
}

/*
 * The columns of the primary key, deferrable ones too (which the relcache's
 * own primary-key index leaves out before 18); empty if there is none.
 */
static List *
key_from_primary_key(Relation rel)
{
	List	   *key = NIL;
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *cell;

	foreach(cell, indexes)
	{
		HeapTuple	tuple;
		Form_pg_index index;

		tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", lfirst_oid(cell));
		index = (Form_pg_index) GETSTRUCT(tuple);
		if (index->indisprimary)
		{
			for (int i = 0; i < index->indnkeyatts; i++)
				key = lappend_int(key, index->indkey.values[i]);
		}
		ReleaseSysCache(tuple);
	}
	list_free(indexes);
	return key;
}

/*
 * The key, as py_log_key has it for slaves: the columns that the trigger names as
 * long as they tell rows apart, else the primary key, which may be made of others by
 * now.  If there is none, rows may share what the trigger names; empty: it names
 * none that there are.
 */
static List *
key_of(Relation rel, Trigger *trigger)
{
	List	   *named = key_from_trigger(rel, trigger);
	List	   *primary;
	AttrNumber *attnums = palloc((list_length(named) + 1) * sizeof(AttrNumber));
	ListCell   *cell;

	foreach(cell, named)
		attnums[foreach_current_index(cell)] = lfirst_int(cell);
	if (named != NIL &&
		pyr_key_is_unique(rel, attnums, list_length(named), false))
		return named;
	primary = key_from_primary_key(rel);
	return primary != NIL ? primary : named;
}

static void
fill_column(PyrColumn *column, Form_pg_attribute att)
{
	Oid			function;
	bool		is_varlena;
	Oid			basetype;

	column->captured = !att->attisdropped && !pyr_att_is_virtual(att);
	if (!column->captured)
		return;

	basetype = getBaseType(att->atttypid);
	column->name = pstrdup(NameStr(att->attname));
	column->typlen = att->attlen;
	column->typbyval = att->attbyval;
	column->typalign = att->attalign;
	column->wire = pyr_wire_of_type(basetype);
	column->type = column->wire == PYR_WIRE_TEXT ? InvalidOid : basetype;
	if (column->wire == PYR_WIRE_TEXT)
	{
		getTypeOutputInfo(att->atttypid, &function, &is_varlena);
		fmgr_info_cxt(function, &column->output, CurrentMemoryContext);
	}
	else if (column->wire == PYR_WIRE_SEND)
	{
		getTypeBinaryOutputInfo(basetype, &function, &is_varlena);
		fmgr_info_cxt(function, &column->output, CurrentMemoryContext);
	}
}

/*
 * All columns, as far as they are logged and not computed.
 */
static List *
key_from_row(PyrRelInfo *info, Relation rel)
{
	List	   *key = NIL;

	for (int i = 0; i < info->natts; i++)
	{
		if (info->columns[i].captured &&
			TupleDescAttr(RelationGetDescr(rel), i)->attgenerated == '\0')
			key = lappend_int(key, i + 1);
	}
	return key;
}

/*
 * The key of a table that is logged as another one: that one's, in its order.  All
 * that is logged under one name has to have one key, whatever a partition has by itself.
 */
static List *
key_from_topmost(PyrRelInfo *info, Trigger *trigger, bool whole_row)
{
	Relation	root = relation_open(info->logged_as, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(root);
	List	   *roots = NIL;
	List	   *key = NIL;
	ListCell   *cell;

	if (!whole_row)
		roots = key_of(root, trigger);
	for (int i = 0; whole_row && i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped &&
			TupleDescAttr(desc, i)->attgenerated == '\0')
			roots = lappend_int(roots, i + 1);
	}
	foreach(cell, roots)
	{
		AttrNumber	attnum = get_attnum(info->relid,
										NameStr(TupleDescAttr(desc, lfirst_int(cell) - 1)->attname));

		if (attnum > 0 && info->columns[attnum - 1].captured)
			key = lappend_int(key, attnum);
	}
	relation_close(root, AccessShareLock);
	return key;
}

/*
 * The table that has the trigger which that one is a clone of, or a clone of a
 * clone.
 */
Oid
pyr_relinfo_topmost(Oid trigger)
{
	Relation	catalog = table_open(TriggerRelationId, AccessShareLock);
	Oid			relid = InvalidOid;

	while (OidIsValid(trigger))
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(trigger));
		scan = systable_beginscan(catalog, TriggerOidIndexId, true, NULL, 1, &key);
		tuple = systable_getnext(scan);
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "could not find trigger %u", trigger);
		relid = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
		trigger = ((Form_pg_trigger) GETSTRUCT(tuple))->tgparentid;
		systable_endscan(scan);
	}
	table_close(catalog, AccessShareLock);
	return relid;
}

/*
 * The same for a trigger of either kind: only row triggers are clones of others.
 */
static Oid
find_root(Relation rel, Trigger *trigger)
{
	TriggerDesc *triggers = rel->trigdesc;

	if (TRIGGER_FOR_ROW(trigger->tgtype))
		return pyr_relinfo_topmost(trigger->tgoid);
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		if (triggers->triggers[i].tgfoid == trigger->tgfoid &&
			TRIGGER_FOR_ROW(triggers->triggers[i].tgtype))
			return pyr_relinfo_topmost(triggers->triggers[i].tgoid);
	}
	return InvalidOid;
}

/*
 * Whether changes are logged as those of another table, the partitioned one.
 */
static bool
is_logged_elsewhere(PyrRelInfo *info)
{
	return info->logged_as != info->relid && OidIsValid(info->logged_as);
}

/*
 * Whether rows can share a key for a while: those of the table, or of all that is
 * logged under one name.
 */
static bool
can_share_key(PyrRelInfo *info, Relation rel)
{
	Relation	root;
	AttrNumber *key;
	bool		is_unique;

	if (info->is_whole || !pyr_key_is_unique(rel, info->key, info->nkey, true))
		return true;
	if (!is_logged_elsewhere(info))
		return false;
	root = relation_open(info->logged_as, AccessShareLock);
	key = palloc(info->nkey * sizeof(AttrNumber));
	for (int i = 0; i < info->nkey; i++)
		key[i] = get_attnum(info->logged_as, info->columns[info->key[i] - 1].name);
	is_unique = pyr_key_is_unique(root, key, info->nkey, true);
	relation_close(root, AccessShareLock);
	return !is_unique;
}

/*
 * Looks the table up in the catalogs.  Runs in the new entry's context.
 */
static void
fill_info(PyrRelInfo *info, Relation rel, Trigger *trigger, Oid logged_as)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Options		options;
	List	   *key;
	ListCell   *cell;

	info->schema = get_namespace_name(RelationGetNamespace(rel));
	info->table = pstrdup(RelationGetRelationName(rel));
	info->natts = desc->natts;
	info->columns = palloc0(desc->natts * sizeof(PyrColumn));
	options = options_from_trigger(info, trigger);
	info->is_whole = options.whole_row;
	info->is_partitioned = rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE;
	info->via_root = options.via_root;
	info->ignores_truncate = options.ignore_truncate;
	info->logged_as = OidIsValid(logged_as) ? logged_as :
		options.via_root ? find_root(rel, trigger) : info->relid;
	if (is_logged_elsewhere(info))
	{
		info->schema = get_namespace_name(get_rel_namespace(info->logged_as));
		info->table = get_rel_name(info->logged_as);
		if (info->schema == NULL || info->table == NULL)
			elog(ERROR, "cache lookup failed for relation %u", info->logged_as);
	}
	info->logs_old = options.log_old && !options.whole_row;
	info->filter_number = number_of_filter(&options);
	if (options.row_filter != NULL)
		info->filter = pyr_filter_create(rel, options.row_filter);

	for (int i = 0; i < desc->natts; i++)
		fill_column(&info->columns[i], TupleDescAttr(desc, i));
	if (options.whole_row && options.columns != NULL)
		keep_columns(info, rel, options.columns);
	if (is_logged_elsewhere(info))
		key = key_from_topmost(info, trigger, options.whole_row);
	else if (options.whole_row)
		key = key_from_row(info, rel);
	else
		key = key_of(rel, trigger);
	if (key == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("cannot log changes of table \"%s.%s\": trigger \"%s\" names no usable key",
						info->schema, info->table, trigger->tgname),
				 errdetail("The table has no primary key, and the trigger's arguments are not columns of it."),
				 errhint("Call py_log_create_tg('%s', '%s') once the table has a primary key, or py_log_drop_tg to stop logging it.",
						 info->schema, info->table)));

	info->unique = pyr_unique_columns(rel);
	info->nkey = list_length(key);
	info->key = palloc(info->nkey * sizeof(AttrNumber));
	foreach(cell, key)
	{
		AttrNumber	attnum = lfirst_int(cell);

		info->key[foreach_current_index(cell)] = attnum;
		info->columns[attnum - 1].is_key = true;
		info->key_set = bms_add_member(info->key_set, attnum - 1);
	}
	if (options.columns != NULL && !options.whole_row)
		keep_columns(info, rel, options.columns);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		PyrColumn  *column = &info->columns[i];

		if (!column->captured || column->wire != PYR_WIRE_TEXT)
			continue;
		info->has_text = true;
		info->text_depends |= pyr_text_depends(att->atttypid, &info->rowtypes);
	}

	info->has_shared_key = can_share_key(info, rel);
	for (int i = 0; i < desc->natts; i++)
	{
		if (info->columns[i].captured && !info->columns[i].is_key)
			info->but_key = bms_add_member(info->but_key, i);
	}
}

/*
 * What is to be known of the table if it had that trigger and was logged as that
 * table; InvalidOid: as the trigger says.  In the current memory context.
 */
PyrRelInfo *
pyr_relinfo_create(Relation rel, Trigger *trigger, Oid logged_as)
{
	MemoryContext context;
	MemoryContext oldcontext;
	PyrRelInfo *info;

	context = AllocSetContextCreate(CurrentMemoryContext,
									"pyreplica table",
									ALLOCSET_SMALL_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	info = palloc0(sizeof(PyrRelInfo));
	info->trigger = trigger->tgoid;
	info->relid = RelationGetRelid(rel);
	info->context = context;
	info->generation = ++last_generation;
	info->valid = true;
	fill_info(info, rel, trigger, logged_as);
	MemoryContextSwitchTo(oldcontext);
	return info;
}

void
pyr_relinfo_free(PyrRelInfo *info)
{
	MemoryContextDelete(info->context);
}

/*
 * What is known of the table that the trigger is on.  Stays good until the
 * end of the transaction, whatever happens meanwhile.
 */
PyrRelInfo *
pyr_relinfo_get(Relation rel, Trigger *trigger)
{
	CacheEntry *entry;
	bool		found;

	if (latest != NULL && latest->valid && latest->trigger == trigger->tgoid)
		return latest;

	if (cache == NULL)
		create_cache();
	latest = NULL;

	entry = hash_search(cache, &trigger->tgoid, HASH_ENTER, &found);
	if (!found)
		entry->info = NULL;
	if (entry->info != NULL && entry->info->valid)
		return latest = entry->info;

	if (entry->info != NULL)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);

		outdated = lappend(outdated, entry->info->context);
		MemoryContextSwitchTo(oldcontext);
		entry->info = NULL;
	}
	entry->info = pyr_relinfo_create(rel, trigger, InvalidOid);

	/* it is complete: keep it */
	MemoryContextSetParent(entry->info->context, CacheMemoryContext);
	return latest = entry->info;
}

/*
 * The columns whose old values are logged with a change that sets those.
 */
Bitmapset *
pyr_relinfo_old(PyrRelInfo *info, PyrVerb verb, Bitmapset *set)
{
	if (!info->logs_old)
		return NULL;
	return verb == PYR_UPDATE ? set : verb == PYR_DELETE ? info->but_key : NULL;
}

/*
 * Frees what nobody looks at any more.
 */
void
pyr_relinfo_end_transaction(void)
{
	ListCell   *cell;

	if (outdated == NIL)
		return;
	foreach(cell, outdated)
		MemoryContextDelete((MemoryContext) lfirst(cell));
	list_free(outdated);
	outdated = NIL;
}
