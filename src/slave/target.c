/*-------------------------------------------------------------------------
 *
 * target.c
 *	  Where changes of one shape go on the slave, and the plan for them.
 *
 * Tables and columns are found by name.  A value that travelled in binary is
 * a parameter of the master's type: if the column here has another one, the
 * server casts it, where it has an assignment cast.  A value that travelled
 * as text goes through the input function of the column here.
 *
 * A target is built when the shape is first seen and again after the table
 * changed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_operator.h"
#include "common/compat.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "parser/parse_coerce.h"
#include "slave/target.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* every target there is, in TopMemoryContext */
static List *targets = NIL;
static bool is_callback_registered = false;

static void
relcache_callback(Datum arg pg_attribute_unused(), Oid relid)
{
	ListCell   *cell;

	foreach(cell, targets)
	{
		PyrTarget  *target = lfirst(cell);

		if (relid == InvalidOid || target->relid == relid)
			target->valid = false;
	}
}

static Oid
find_table(PyrShape *shape)
{
	Oid			namespace = get_namespace_oid(shape->schema, true);
	Oid			relid = InvalidOid;

	if (OidIsValid(namespace))
		relid = get_relname_relid(shape->table, namespace);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the master's table \"%s.%s\" does not exist on the slave",
						shape->schema, shape->table),
				 errhint("Create it here, with the rows that the master's had before its log trigger was created, or drop its trigger on the master with py_log_drop_tg.")));
	return relid;
}

static Form_pg_attribute
find_column(PyrShape *shape, Oid relid, const char *name, HeapTuple *tuple)
{
	*tuple = SearchSysCacheAttName(relid, name);
	if (!HeapTupleIsValid(*tuple) ||
		((Form_pg_attribute) GETSTRUCT(*tuple))->attnum <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of the master's table \"%s.%s\" does not exist on the slave",
						name, shape->schema, shape->table),
				 errhint("Add the column to the slave's table \"%s.%s\".",
						 shape->schema, shape->table)));
	return (Form_pg_attribute) GETSTRUCT(*tuple);
}

/*
 * Decides how the value becomes a parameter; returns the parameter's type.
 */
static Oid
fill_param(PyrParam *param, PyrShape *shape, PyrShapeColumn *column,
		   Form_pg_attribute att)
{
	Oid			function;
	Oid			source = column->type;
	Oid			destination = att->atttypid;

	param->typmod = -1;
	if (!OidIsValid(source))
	{
		param->wire = PYR_WIRE_TEXT;
		param->typmod = att->atttypmod;
		getTypeInputInfo(destination, &function, &param->ioparam);
		fmgr_info_cxt(function, &param->function, CurrentMemoryContext);
		return destination;
	}

	param->wire = pyr_wire_of_type(source);
	if (param->wire == PYR_WIRE_TEXT)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("column \"%s\" of the master's table \"%s.%s\" has type %u, which cannot be read here",
						column->name, shape->schema, shape->table, source),
				 errhint("The master may run a newer version of pyreplica.")));
	if (param->wire == PYR_WIRE_SEND)
	{
		getTypeBinaryInputInfo(source, &function, &param->ioparam);
		fmgr_info_cxt(function, &param->function, CurrentMemoryContext);
	}
	if (getBaseType(destination) != source &&
		!can_coerce_type(1, &source, &destination, COERCION_ASSIGNMENT))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s.%s\" has type %s on the master and type %s on the slave",
						column->name, shape->schema, shape->table,
						format_type_be(source), format_type_be(destination)),
				 errdetail("There is no assignment cast from the one to the other."),
				 errhint("Change the column's type on one side, or create such a cast.")));
	return source;
}

/*
 * Appends "column = parameter", with the operator that the column's index
 * uses, whatever schema it lives in.
 */
static void
append_key_condition(StringInfo sql, PyrShape *shape, Form_pg_attribute att,
					 Oid param_type, int number)
{
	TypeCacheEntry *type = lookup_type_cache(att->atttypid, TYPECACHE_EQ_OPR);
	HeapTuple	tuple;
	Form_pg_operator operator;

	if (!OidIsValid(type->eq_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("key column \"%s\" of table \"%s.%s\" has type %s on the slave, which has no equality operator",
						NameStr(att->attname), shape->schema, shape->table,
						format_type_be(att->atttypid))));

	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(type->eq_opr));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", type->eq_opr);
	operator = (Form_pg_operator) GETSTRUCT(tuple);
	appendStringInfo(sql, "%s OPERATOR(%s.%s) ",
					 quote_identifier(NameStr(att->attname)),
					 quote_identifier(get_namespace_name(operator->oprnamespace)),
					 NameStr(operator->oprname));
	ReleaseSysCache(tuple);

	if (param_type == att->atttypid)
		appendStringInfo(sql, "$%d", number);
	else
		appendStringInfo(sql, "CAST($%d AS %s)", number,
						 format_type_extended(att->atttypid, att->atttypmod,
											  FORMAT_TYPE_TYPEMOD_GIVEN |
											  FORMAT_TYPE_FORCE_QUALIFY));
}

/*
 * Whether the key is unique only at the end of a transaction: the table has a
 * deferrable unique index on it, and none that is not.
 */
static bool
is_key_deferrable(Oid relid, Bitmapset *key)
{
	Relation	rel = table_open(relid, AccessShareLock);
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *cell;
	bool		is_deferrable = false;
	bool		is_immediate = false;

	foreach(cell, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID,
											ObjectIdGetDatum(lfirst_oid(cell)));
		Form_pg_index index;
		Bitmapset  *columns = NULL;

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", lfirst_oid(cell));
		index = (Form_pg_index) GETSTRUCT(tuple);
		for (int i = 0; i < index->indnkeyatts; i++)
			columns = bms_add_member(columns, index->indkey.values[i] > 0
									 ? index->indkey.values[i] : 0);
		if (index->indisunique && index->indisvalid &&
			bms_is_subset(columns, key) &&
			heap_attisnull(tuple, Anum_pg_index_indpred, NULL))
		{
			if (index->indimmediate)
				is_immediate = true;
			else
				is_deferrable = true;
		}
		ReleaseSysCache(tuple);
	}
	table_close(rel, NoLock);
	return is_deferrable && !is_immediate &&
		get_rel_relkind(relid) == RELKIND_RELATION;
}

/*
 * The condition for a row whose key is deferrable.  In the middle of a
 * transaction that gives keys anew, two rows can have the one that we look
 * for: the row that had it all the time, and another one that was just given
 * it.  The change is about the former.  It has the older version: one of
 * another transaction, or of an earlier command of ours.
 */
static char *
oldest_version_condition(const char *table, const char *where)
{
	return psprintf("ctid OPERATOR(pg_catalog.=) (SELECT ctid FROM %s WHERE %s"
					" ORDER BY CASE WHEN xmin OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id()::pg_catalog.xid"
					" THEN cmin::pg_catalog.text::pg_catalog.int8 ELSE -1 END LIMIT 1)",
					table, where);
}

/*
 * The statement that does what the shape says.  Fills the target's params and
 * the types of the plan's parameters; returns NULL if nothing is left to do.
 */
static char *
build_statement(PyrTarget *target, PyrShape *shape, Oid *types)
{
	StringInfoData set;			/* or column list */
	StringInfoData where;		/* or parameter list */
	char	   *table = quote_qualified_identifier(shape->schema, shape->table);
	char	   *condition;
	Bitmapset  *key = NULL;

	initStringInfo(&set);
	initStringInfo(&where);

	for (int i = 0; i < shape->nkey + shape->nset; i++)
	{
		PyrShapeColumn *column = &shape->columns[i];
		bool		is_condition = shape->verb != PYR_INSERT && i < shape->nkey;
		HeapTuple	tuple;
		Form_pg_attribute att;
		PyrParam   *param = &target->params[i];
		Oid			type;
		int			number;

		att = find_column(shape, target->relid, column->name, &tuple);
		if (att->attgenerated != '\0' && !is_condition)
		{
			/* the slave computes it */
			param->number = -1;
			ReleaseSysCache(tuple);
			continue;
		}

		type = fill_param(param, shape, column, att);
		param->number = target->nparams;
		types[target->nparams++] = type;
		number = target->nparams;
		if (is_condition)
		{
			if (where.len > 0)
				appendStringInfoString(&where, " AND ");
			append_key_condition(&where, shape, att, type, number);
			key = bms_add_member(key, att->attnum);
		}
		else if (shape->verb == PYR_INSERT)
		{
			appendStringInfo(&set, "%s%s", set.len > 0 ? ", " : "",
							 quote_identifier(column->name));
			appendStringInfo(&where, "%s$%d", where.len > 0 ? ", " : "", number);
		}
		else
			appendStringInfo(&set, "%s%s = $%d", set.len > 0 ? ", " : "",
							 quote_identifier(column->name), number);
		ReleaseSysCache(tuple);
	}

	condition = where.data;
	if (!bms_is_empty(key) && is_key_deferrable(target->relid, key))
		condition = oldest_version_condition(table, where.data);

	switch (shape->verb)
	{
		case PYR_INSERT:
			return psprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)",
							table, set.data, where.data);
		case PYR_UPDATE:
			if (set.len == 0)
				return NULL;
			return psprintf("UPDATE %s SET %s WHERE %s",
							table, set.data, condition);
		case PYR_DELETE:
			return psprintf("DELETE FROM %s WHERE %s", table, condition);
		case PYR_TRUNCATE:
			return NULL;		/* apply.c truncates several tables at once */
	}
	elog(ERROR, "unexpected operation in a shape");
	return NULL;
}

static Oid
table_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

static void
build(PyrTarget *target, PyrShape *shape)
{
	int			ncolumns = shape->nkey + shape->nset;
	Oid		   *types = palloc((ncolumns + 1) * sizeof(Oid));
	MemoryContext oldcontext;
	char	   *statement;

	/* invalidation during what follows must not be missed */
	target->relid = find_table(shape);
	target->valid = true;
	target->owner = table_owner(target->relid);

	oldcontext = MemoryContextSwitchTo(target->context);
	target->params = palloc0((ncolumns + 1) * sizeof(PyrParam));
	target->values = palloc0((ncolumns + 1) * sizeof(Datum));
	target->nulls = palloc0(ncolumns + 1);
	MemoryContextSwitchTo(target->context);
	statement = build_statement(target, shape, types);
	MemoryContextSwitchTo(oldcontext);

	if (statement == NULL)
		return;
	target->plan = SPI_prepare(statement, target->nparams, types);
	if (target->plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", statement,
			 SPI_result_code_string(SPI_result));
	SPI_keepplan(target->plan);
}

static void
free_target(PyrTarget *target)
{
	if (target->plan != NULL)
		SPI_freeplan(target->plan);
	targets = list_delete_ptr(targets, target);
	MemoryContextDelete(target->context);
}

/*
 * The shape's target.  Needs SPI.
 */
PyrTarget *
pyr_target_get(PyrShape *shape)
{
	PyrTarget  *target = shape->target;
	MemoryContext context;
	MemoryContext oldcontext;

	if (target != NULL && target->valid)
		return target;

	if (!is_callback_registered)
	{
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
		is_callback_registered = true;
	}
	if (target != NULL)
		free_target(target);
	shape->target = NULL;

	context = AllocSetContextCreate(TopMemoryContext, "pyreplica target",
									ALLOCSET_SMALL_SIZES);
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	target = MemoryContextAllocZero(context, sizeof(PyrTarget));
	target->context = context;
	targets = lappend(targets, target);
	MemoryContextSwitchTo(oldcontext);
	shape->target = target;

	build(target, shape);
	return target;
}

/*
 * Fills the plan's parameters with the change's values, in the current memory
 * context.
 */
void
pyr_target_set_values(PyrTarget *target, PyrChange *change, int encoding)
{
	int			ncolumns = change->shape->nkey + change->shape->nset;

	for (int i = 0; i < ncolumns; i++)
	{
		PyrParam   *param = &target->params[i];
		PyrValue   *value = &change->values[i];

		if (param->number < 0)
			continue;
		if (value->len < 0)
		{
			target->nulls[param->number] = 'n';
			continue;
		}
		target->nulls[param->number] = ' ';
		if (param->wire == PYR_WIRE_TEXT)
		{
			char	   *text = pnstrdup(value->data, value->len);

			text = pg_any_to_server(text, value->len, encoding);
			target->values[param->number] =
				InputFunctionCall(&param->function, text, param->ioparam,
								  param->typmod);
		}
		else
			target->values[param->number] =
				pyr_wire_decode(param->wire, value->data, value->len,
								&param->function, param->ioparam, encoding);
	}
}
