/*-------------------------------------------------------------------------
 *
 * statement.c
 *	  The statements that change a target's rows: for one change by parameters,
 *	  for many rows over a tuplestore that the statement knows as a relation.
 *
 * There is a statement for each verb, form (set of columns) and manner of a
 * target, with up to two saved plans, made when first needed.  They run as the owner
 * of the table, so that what is attached to the table (triggers, index
 * expressions ...) gets no more rights than its owner has.
 *
 * Rows of a table without a key are found by the image of all of their columns, and
 * one of those that are equal by its place (ctid).  For many changes, the table is
 * read once and joined with them, of equal rows the first with the first and so on;
 * images are compared as text then, which can be hashed.  Such statements are planned
 * each time, by what the table has come to be.
 *
 * Where rows that others have written are to be noticed, updates and deletes are
 * guarded: a row that is not what it should be is not touched, and so shows in
 * the number of rows.  What it should be is told by the change, by the column
 * that tells which row is later, or by who wrote the row last.
 *
 * Of a foreign table rows cannot be joined with ours without all of them being
 * fetched.  Inserts need no join, and postgres_fdw sends as many of them at once as
 * the server's batch_size says.  Updates and deletes of many rows have all of their
 * values as parameters, some hundred rows at a time, in a condition and expressions
 * that it sends as they are: one statement, planned and run over there.  A row whose
 * update may take it to another partition, of which one is foreign, is deleted and
 * inserted: nobody would move it.
 *
 * The plan has to find each row in the table by its key.  The planner would
 * choose otherwise when it believes the table to be small, or the rows to be
 * many; but the table may grow, and a plan that reads all of it for each
 * batch, or for each row, is a disaster.  So while our statements are being
 * planned, a hook leaves of each relation only the paths that use a unique
 * index of which all columns are given, or else those that use what is given
 * at all.  (Measured at 10,000 rows into a table of a million: looking up by
 * key is twice as fast as the planner's own choice.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/compat.h"
#include "common/config.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "optimizer/paths.h"
#include "parser/parse_coerce.h"
#include "parser/parsetree.h"
#include "slave/local.h"
#include "slave/statement.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

/* the relation of rows is called so in the statements */
#define ROWS			"pyreplica_rows"

/*
 * So many rows are handed to a statement at once.  Between a thousand and some
 * ten thousand it makes no difference to speed; the rows should stay in the
 * processor's cache.
 */
#define BATCH_ROWS		4096
#define BATCH_BYTES		(1024 * 1024)

/*
 * What the planner believes of the relation of rows.  The paths are given
 * anyway; with this number it does not come to think that a cache of rows
 * found before would pay.
 */
#define ROWS_PLANNED	100

/*
 * So many rows of a foreign table are changed by one statement, and with so many
 * parameters.
 */
#define SEVERAL_ROWS	128
#define SEVERAL_PARAMS	8192

/* when a target has got so many statements, their plans are freed */
#define PLANS_MAX		256

/*
 * Where a form has its statements.  In updates, old values are always those of
 * the columns that are set, if there are any.
 */
enum
{
	PLACE_INSERT,
	PLACE_TRY_INSERT,
	PLACE_UPDATE,
	PLACE_UPDATE_OLD,
	PLACE_FORCE_UPDATE,
	PLACE_DELETE_OLD,			/* the form is that of the old values */
	PLACE_VACATE
};

struct PyrStatement
{
	PyrTarget  *target;
	PyrVerb		verb;
	PyrForm    *form;			/* NULL in deletes */
	PyrForm    *old_form;		/* NULL: no such parameters */
	PyrManner	manner;
	const char *text;			/* of a query; NULL: made when needed */
	int			nkey;			/* parameters that are the old key ... */
	int			nset;			/* ... and with those that are set */
	int			nparams;		/* ... and with what the row was */
	PyrTargetColumn **columns;	/* of the parameters */
	Oid		   *types;
	Datum	   *values;
	bool	   *isnull;
	char	   *nulls;
	SPIPlanPtr	one;
	SPIPlanPtr	many;
	SPIPlanPtr	several;
	EphemeralNamedRelationData rows;
};

static void
check_result(int rc)
{
	if (rc < 0)
		elog(ERROR, "could not execute the plan: %s",
			 SPI_result_code_string(rc));
}

/* the table of the statement being run, whose plan is made when it is needed */
static Oid	planned_relid = InvalidOid;
static set_rel_pathlist_hook_type prev_set_rel_pathlist = NULL;

/*
 * Whether what is planned is a change of that table, or part of it.  If it is
 * a view, it is not the result relation any more, but still among the others.
 */
static bool
is_ours(PlannerInfo *root)
{
	ListCell   *cell;

	while (root->parent_root != NULL)
		root = root->parent_root;
	if (root->parse->commandType == CMD_SELECT)
		return false;
	foreach(cell, root->parse->rtable)
	{
		if (((RangeTblEntry *) lfirst(cell))->relid == planned_relid)
			return true;
	}
	return false;
}

/*
 * How well the path does without the planner's estimates: it can find one row
 * at most; it finds rows by an index; it does not.
 */
static int
rank_of(Path *path)
{
	IndexPath  *index_path = (IndexPath *) path;

	if (!IsA(path, IndexPath) || index_path->indexclauses == NIL)
		return path->param_info != NULL ? 1 : 0;
	if (index_path->indexinfo->unique &&
		list_length(index_path->indexclauses) >=
		index_path->indexinfo->nkeycolumns)
		return 2;
	return 1;
}

/*
 * Whether the path looks up what it has from another table: then it can be of use
 * only beside others that do not.  (Ours have it from the rows to be applied.)
 */
static bool
depends_on_table(PlannerInfo *root, Path *path)
{
	int			rti = -1;

	while ((rti = bms_next_member(PATH_REQ_OUTER(path), rti)) >= 0)
	{
		if (planner_rt_fetch(rti, root)->rtekind == RTE_RELATION)
			return true;
	}
	return false;
}

/*
 * Leaves only the paths of the best rank, and those that are not ours to judge.
 */
static void
prefer_index(PlannerInfo *root, RelOptInfo *rel, Index rti, RangeTblEntry *rte)
{
	List	   *best = NIL;
	int			best_rank = 0;
	ListCell   *cell;

	if (prev_set_rel_pathlist)
		prev_set_rel_pathlist(root, rel, rti, rte);
	if (!OidIsValid(planned_relid) || rte->rtekind != RTE_RELATION ||
		!is_ours(root))
		return;

	foreach(cell, rel->pathlist)
	{
		if (!depends_on_table(root, lfirst(cell)))
			best_rank = Max(best_rank, rank_of(lfirst(cell)));
	}
	if (best_rank == 0)
		return;
	foreach(cell, rel->pathlist)
	{
		if (depends_on_table(root, lfirst(cell)) ||
			rank_of(lfirst(cell)) == best_rank)
			best = lappend(best, lfirst(cell));
	}
	rel->pathlist = best;
	rel->partial_pathlist = NIL;
}

/*
 * What is planned from here on are changes of that table, whose rows are to be
 * found by their keys.  Returns what to set planned_relid to afterwards.
 */
static Oid
plan_changes_of(Oid relid)
{
	static bool is_hooked = false;
	Oid			before = planned_relid;

	if (!is_hooked)
	{
		prev_set_rel_pathlist = set_rel_pathlist_hook;
		set_rel_pathlist_hook = prefer_index;
		is_hooked = true;
	}
	planned_relid = relid;
	return before;
}

/*
 * Runs the plan, after planning it in our way if there is need to.  A trigger
 * that changes the same table has its statements planned like that, too.
 */
static void
execute_plan(PyrStatement *statement, SPIPlanPtr plan, Datum *values,
			 const char *nulls)
{
	Oid			before = plan_changes_of(statement->target->relid);
	MemoryContext context = CurrentMemoryContext;
	volatile int rc = 0;

	PG_TRY();
	{
		rc = SPI_execute_plan(plan, values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		planned_relid = before;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	check_result(rc);
}

/*
 * Runs a change of the table that is given as text, planned in the same way.
 * Returns the number of rows touched.
 */
uint64
pyr_statement_by_key(Oid relid, const char *text, int nparams, Oid *types,
					 Datum *values, const char *nulls)
{
	Oid			before = plan_changes_of(relid);
	MemoryContext context = CurrentMemoryContext;
	volatile int rc = 0;

	PG_TRY();
	{
		rc = SPI_execute_with_args(text, nparams, types, values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		planned_relid = before;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	check_result(rc);
	return SPI_processed;
}

/* how a parameter is written: $1 for one change, r.p1 for many rows */
static const char *
parameter(int number, bool for_many)
{
	return psprintf(for_many ? "r.p%d" : "$%d", number + 1);
}

static const char *
cast_to(const char *value, PyrTargetColumn *column, Oid type, int32 typmod)
{
	/* reading text goes by the column's length already */
	if (column->param_type == type &&
		(typmod < 0 || column->wire == PYR_WIRE_TEXT))
		return value;
	return psprintf("CAST(%s AS %s)", value,
					format_type_extended(type, typmod,
										 FORMAT_TYPE_TYPEMOD_GIVEN |
										 FORMAT_TYPE_FORCE_QUALIFY));
}

/*
 * The value as the column has it, once it is assigned: rounded, or filled with blanks.
 */
static const char *
cast_to_column(const char *value, PyrTargetColumn *column)
{
	return cast_to(value, column, column->type, column->typmod);
}

/*
 * The same, but what is too long stays so: no row has it as its key, and if it is
 * assigned that is an error.  (To be cast says that it may be cut off.)
 */
static const char *
cast_uncut(const char *value, PyrTargetColumn *column)
{
	TYPCATEGORY category = TypeCategory(column->type);

	if (column->param_type != column->type &&
		(category == TYPCATEGORY_STRING || category == TYPCATEGORY_BITSTRING))
		return cast_to(value, column, getBaseType(column->type), -1);
	if (category == TYPCATEGORY_STRING || category == TYPCATEGORY_BITSTRING)
		return value;
	return cast_to_column(value, column);
}

/*
 * An operator, with its schema: whatever that is, it is the one that the
 * column's index uses.
 */
const char *
pyr_statement_operator(Oid operator)
{
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form;
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", operator);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	name = psprintf("OPERATOR(%s.%s)",
					quote_identifier(get_namespace_name(form->oprnamespace)),
					NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return name;
}

/*
 * Appends "column = value".
 */
static void
append_condition(StringInfo sql, PyrTarget *target, PyrTargetColumn *column,
				 const char *what)
{
	TypeCacheEntry *type = lookup_type_cache(column->type, TYPECACHE_EQ_OPR);

	if (!OidIsValid(type->eq_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("key column \"%s\" of table \"%s.%s\" has type %s on the slave, which has no equality operator",
						column->name, target->schema, target->table,
						format_type_be(column->type))));
	appendStringInfo(sql, "%st.%s %s %s",
					 sql->len > 0 ? " AND " : "",
					 quote_identifier(column->name),
					 pyr_statement_operator(type->eq_opr), what);
}

static void
append_key_condition(StringInfo sql, PyrTarget *target,
					 PyrTargetColumn *column, const char *value)
{
	append_condition(sql, target, column, cast_uncut(value, column));
}

/*
 * "one is earlier than other", by the type of the column that they belong to.
 */
static char *
later_condition(PyrTarget *target, PyrTargetColumn *column, const char *one,
				const char *other)
{
	TypeCacheEntry *type = lookup_type_cache(column->type, TYPECACHE_LT_OPR);

	if (!OidIsValid(type->lt_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("column \"%s\" of table \"%s.%s\" cannot tell the last update: type %s has no order",
						column->name, target->schema, target->table,
						format_type_be(column->type))));
	return psprintf("%s %s %s", one, pyr_statement_operator(type->lt_opr), other);
}

/*
 * Whether the column's values can have more than one image: of those of composite
 * types, which know of attributes that were dropped or added; and XML, which
 * may have lost the encoding that it says it has in a dump.
 */
static bool
has_many_images(PyrTargetColumn *column)
{
	return column->wire == PYR_WIRE_TEXT || column->source == XMLOID;
}

/*
 * "the two rows are the same".  Their images are compared, so it does not matter
 * whether the columns' types know of equality, and null is equal to null.  Where that
 * is too strict, their text counts as well.
 */
static char *
same_rows(const char *row, const char *other, bool by_text)
{
	/* of two ROWs as such, SQL would compare each column */
	char	   *by_image = psprintf("CAST(%s AS pg_catalog.record) OPERATOR(pg_catalog.*=) %s",
									row, other);

	if (!by_text)
		return by_image;
	return psprintf("(%s OR CAST(%s AS pg_catalog.text) COLLATE pg_catalog.\"C\""
					" OPERATOR(pg_catalog.=) CAST(%s AS pg_catalog.text))",
					by_image, row, other);
}

/*
 * "the row has those old values", which are the parameters from that number on.
 */
static char *
same_condition(PyrTarget *target, PyrForm *old_form, int number, bool for_many)
{
	StringInfoData here;
	StringInfoData there;
	bool		by_text = false;

	initStringInfo(&here);
	initStringInfo(&there);
	for (int i = 0; i < old_form->ncolumns; i++)
	{
		PyrTargetColumn *column = &target->columns[old_form->columns[i]];

		appendStringInfo(&here, "%st.%s", i > 0 ? ", " : "",
						 quote_identifier(column->name));
		appendStringInfo(&there, "%s%s", i > 0 ? ", " : "",
						 cast_to_column(parameter(number + i, for_many), column));
		by_text = by_text || has_many_images(column);
	}
	return same_rows(psprintf("ROW(%s)", here.data),
					 psprintf("ROW(%s)", there.data), by_text);
}

/*
 * The columns of a table without a key by which its rows are found, with a prefix, or
 * as parameters.  What is computed here follows from the others.
 */
static char *
image_of(PyrStatement *statement, const char *prefix, bool for_many)
{
	PyrTarget  *target = statement->target;
	StringInfoData image;

	initStringInfo(&image);
	for (int i = 0; i < target->merge->nkey; i++)
	{
		PyrTargetColumn *column = &target->columns[target->merge->key[i]];

		if (column->is_generated)
			continue;
		appendStringInfo(&image, "%s%s", image.len > 0 ? ", " : "",
						 prefix != NULL
						 ? psprintf("%s%s", prefix, quote_identifier(column->name))
						 : cast_to_column(parameter(i, for_many), column));
	}
	return psprintf("ROW(%s)", image.data);
}

/*
 * "t is one of the rows that are like that".
 */
static char *
one_like_that(PyrStatement *statement, const char *table)
{
	PyrTarget  *target = statement->target;
	bool		by_text = false;

	for (int i = 0; i < target->merge->nkey; i++)
		by_text = by_text ||
			has_many_images(&target->columns[target->merge->key[i]]);
	return psprintf("(t.ctid, t.tableoid) = (SELECT e.ctid, e.tableoid FROM %s AS e WHERE %s LIMIT 1)",
					table, same_rows(image_of(statement, "e.", false),
									 image_of(statement, NULL, false), by_text));
}

/*
 * The same for many: a relation of the changes with the places of the rows that
 * they are about, each row once.
 */
static char *
many_like_that(PyrStatement *statement, const char *table)
{
	const char *number = "pg_catalog.row_number() OVER (PARTITION BY w) AS n";

	return psprintf("(WITH r AS MATERIALIZED (SELECT *, %s FROM"
					"  (SELECT r.*, CAST(%s AS pg_catalog.text) COLLATE pg_catalog.\"C\" AS w FROM " ROWS " AS r) AS r),"
					" e AS MATERIALIZED (SELECT *, %s FROM"
					"  (SELECT e.ctid AS place, e.tableoid AS part, CAST(%s AS pg_catalog.text) COLLATE pg_catalog.\"C\" AS w FROM %s AS e) AS e"
					"  WHERE w OPERATOR(pg_catalog.=) ANY (SELECT w FROM r))"
					" SELECT r.*, e.place, e.part FROM r JOIN e ON e.w OPERATOR(pg_catalog.=) r.w AND e.n OPERATOR(pg_catalog.=) r.n) AS r",
					number, image_of(statement, NULL, true),
					number, image_of(statement, "e.", false), table);
}

/*
 * The condition for a row whose key is deferrable.  In the middle of a
 * transaction that gives keys anew, two rows can have the one that we look
 * for: the row that had it all the time, and another one that was just given
 * it.  The change is about the former.  It has the older version: one of
 * another transaction, or of an earlier command of ours.  (The transaction id
 * of a version can be that of the subtransaction that we apply in.)
 */
static char *
oldest_version_condition(const char *table, const char *where)
{
	return psprintf("t.ctid OPERATOR(pg_catalog.=) (SELECT t.ctid FROM %s AS t WHERE %s"
					" ORDER BY CASE WHEN pg_catalog.age(t.xmin) OPERATOR(pg_catalog.<="
					") pg_catalog.age(pg_catalog.pg_current_xact_id()::pg_catalog.xid)"
					" THEN t.cmin::pg_catalog.text::pg_catalog.int8 ELSE -1 END LIMIT 1)",
					table, where);
}

/*
 * What else must be true of a row that is to be changed.
 */
static char *
guard(PyrStatement *statement, bool for_many)
{
	PyrTarget  *target = statement->target;
	int			later = target->later_column;
	char	   *column;
	const char *value;

	if (statement->manner == PYR_FORCE || !target->is_local || target->is_whole)
		return "";
	if (statement->old_form != NULL)
		return psprintf(" AND %s", same_condition(target, statement->old_form,
												  statement->nset, for_many));
	if (statement->verb == PYR_UPDATE && later >= 0 &&
		statement->form->slots[later] >= 0)
	{
		column = psprintf("t.%s", quote_identifier(target->columns[later].name));
		value = cast_to_column(parameter(statement->nkey + statement->form->slots[later],
										 for_many),
							   &target->columns[later]);
		return psprintf(" AND (%s IS NULL OR %s)", column,
						later_condition(target, &target->columns[later],
										column, value));
	}
	if (target->watches_origin)
		return psprintf(" AND %s.pyreplica_own(t.xmin)", pyr_local_schema());
	return "";
}

/*
 * Whether it is an update that may take rows of a foreign table elsewhere.
 */
static bool
moves_rows(PyrStatement *statement)
{
	return statement->verb == PYR_UPDATE && statement->target->is_foreign &&
		bms_overlap(statement->form->set, statement->target->routing);
}

/*
 * The text of an update of one row as a delete and an insert.
 */
static char *
move_text(PyrStatement *statement, const char *table, const char *condition)
{
	PyrTarget  *target = statement->target;
	StringInfoData columns;
	StringInfoData values;

	initStringInfo(&columns);
	initStringInfo(&values);
	for (int i = 0; i < target->ncolumns; i++)
	{
		PyrTargetColumn *column = &target->columns[i];
		const char *comma = columns.len > 0 ? ", " : "";
		const char *name = quote_identifier(column->name);
		int			slot = statement->form->slots[i];

		if (column->is_dropped || column->is_generated)
			continue;
		appendStringInfo(&columns, "%s%s", comma, name);
		appendStringInfo(&values, "%s%s", comma,
						 slot < 0 ? psprintf("d.%s", name)
						 : parameter(statement->nkey + slot, false));
	}
	return psprintf("WITH d AS (DELETE FROM %s AS t WHERE %s RETURNING t.*)"
					" INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM d",
					table, condition, table, columns.data, values.data);
}

/*
 * The condition that t has the key of one of several rows, whose parameters come
 * row by row; which: of that one alone, or -1.
 */
static char *
several_condition(PyrStatement *statement, int nrows, int which)
{
	StringInfoData where;

	initStringInfo(&where);
	for (int row = Max(which, 0); row < (which < 0 ? nrows : which + 1); row++)
	{
		StringInfoData key;

		initStringInfo(&key);
		for (int i = 0; i < statement->nkey; i++)
			append_key_condition(&key, statement->target, statement->columns[i],
								 parameter(row * statement->nparams + i, false));
		appendStringInfo(&where, "%s(%s)", where.len > 0 ? " OR " : "", key.data);
	}
	return where.data;
}

/*
 * The same for a key of one column, in a way that every index understands.
 */
static char *
several_condition_by_array(PyrStatement *statement, int nrows)
{
	PyrTargetColumn *column = statement->columns[0];
	StringInfoData array;
	StringInfoData where;

	initStringInfo(&array);
	initStringInfo(&where);
	for (int row = 0; row < nrows; row++)
		appendStringInfo(&array, "%s%s", row > 0 ? ", " : "ANY (ARRAY[",
						 cast_uncut(parameter(row * statement->nparams, false),
									column));
	appendStringInfoString(&array, "])");
	append_condition(&where, statement->target, column, array.data);
	return where.data;
}

/*
 * The text for so many rows of a foreign table.
 */
static char *
several_text(PyrStatement *statement, int nrows)
{
	PyrTarget  *target = statement->target;
	char	   *condition = statement->nkey == 1
		? several_condition_by_array(statement, nrows)
		: several_condition(statement, nrows, -1);
	char	   *table = pyr_statement_table(target);
	StringInfoData set;

	if (statement->verb == PYR_DELETE)
		return psprintf("DELETE FROM %s AS t WHERE %s", table, condition);
	initStringInfo(&set);
	for (int i = statement->nkey; i < statement->nset; i++)
	{
		PyrTargetColumn *column = statement->columns[i];

		appendStringInfo(&set, "%s%s = CASE", i > statement->nkey ? ", " : "",
						 quote_identifier(column->name));
		for (int row = 0; row < nrows; row++)
			appendStringInfo(&set, " WHEN %s THEN %s",
							 several_condition(statement, nrows, row),
							 cast_uncut(parameter(row * statement->nparams + i,
												  false), column));
		appendStringInfoString(&set, " END");
	}
	return psprintf("UPDATE %s AS t SET %s WHERE %s", table, set.data, condition);
}

/*
 * The statement's text.
 */
static char *
statement_text(PyrStatement *statement, bool for_many)
{
	PyrTarget  *target = statement->target;
	char	   *table = statement->verb == PYR_INSERT
		? quote_qualified_identifier(target->schema, target->table)
		: pyr_statement_table(target);
	const char *rows = for_many ? ROWS " AS r" : "";
	StringInfoData where;
	StringInfoData set;			/* or column list */
	StringInfoData values;
	char	   *condition;

	initStringInfo(&where);
	initStringInfo(&set);
	initStringInfo(&values);
	for (int i = 0; i < statement->nset; i++)
	{
		PyrTargetColumn *column = statement->columns[i];
		const char *value = parameter(i, for_many);
		const char *comma = i > statement->nkey ? ", " : "";

		if (i < statement->nkey && target->is_whole)
			continue;
		else if (i < statement->nkey)
			append_key_condition(&where, target, column, value);
		else if (statement->verb == PYR_INSERT)
		{
			appendStringInfo(&set, "%s%s", comma, quote_identifier(column->name));
			appendStringInfo(&values, "%s%s", comma, value);
		}
		else
			appendStringInfo(&set, "%s%s = %s", comma,
							 quote_identifier(column->name), value);
	}
	condition = where.data;
	if (target->is_whole && statement->verb != PYR_INSERT && for_many)
	{
		rows = many_like_that(statement, table);
		condition = "t.ctid OPERATOR(pg_catalog.=) r.place AND t.tableoid OPERATOR(pg_catalog.=) r.part";
	}
	else if (target->is_whole && statement->verb != PYR_INSERT)
		condition = one_like_that(statement, table);
	else if (target->is_key_deferrable)
		condition = oldest_version_condition(table, where.data);
	if (statement->verb != PYR_INSERT)
		condition = psprintf("%s%s", condition, guard(statement, for_many));

	switch (statement->verb)
	{
		case PYR_INSERT:
			return psprintf(for_many
							? "INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s%s"
							: "INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE VALUES (%s)%s%s",
							table, set.data, values.data, rows,
							statement->manner == PYR_TRY && target->can_arbitrate
							? " ON CONFLICT DO NOTHING" : "");
		case PYR_UPDATE:
			if (moves_rows(statement))
				return move_text(statement, table, condition);
			return psprintf("UPDATE %s AS t SET %s%s%s WHERE %s", table, set.data,
							for_many ? " FROM " : "", rows, condition);
		case PYR_DELETE:
			return psprintf("DELETE FROM %s AS t%s%s WHERE %s", table,
							for_many ? " USING " : "", rows, condition);
		case PYR_TRUNCATE:
		case PYR_SQL:
			break;
	}
	elog(ERROR, "unexpected operation in a statement");
	return NULL;
}

/*
 * Makes a plan to keep.
 */
static SPIPlanPtr
prepare_text(PyrStatement *statement, const char *text, int nparams, Oid *types)
{
	int			options;
	SPIPlanPtr	plan;

	/*
	 * One plan is as good as another, once the index is chosen; but of a
	 * partitioned table one that knows the row's key leaves out partitions.
	 */
	options = statement->target->relkind == RELKIND_PARTITIONED_TABLE ? 0 :
		CURSOR_OPT_GENERIC_PLAN;
	plan = SPI_prepare_cursor(text, nparams, types, options);
	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", text,
			 SPI_result_code_string(SPI_result));
	SPI_keepplan(plan);
	return plan;
}

/*
 * The plan for one change, or for many rows that are a relation.
 */
static SPIPlanPtr
prepare(PyrStatement *statement, bool for_many)
{
	PyrIdentity before = pyr_local_become(statement->target->owner);
	const char *text = statement->text ? statement->text :
		statement_text(statement, for_many);
	SPIPlanPtr	plan = prepare_text(statement, text,
									for_many ? 0 : statement->nparams,
									for_many ? NULL : statement->types);

	pyr_local_become_again(before);
	return plan;
}

static void
add_parameter(PyrStatement *statement, int column)
{
	PyrTargetColumn *found = &statement->target->columns[column];

	statement->columns[statement->nparams] = found;
	statement->types[statement->nparams] = found->param_type;
	statement->nparams++;
}

/*
 * How the relation of rows looks.
 */
static void
describe_rows(PyrStatement *statement)
{
	TupleDesc	desc = CreateTemplateTupleDesc(statement->nparams);

	for (int i = 0; i < statement->nparams; i++)
	{
		TupleDescInitEntry(desc, i + 1, psprintf("p%d", i + 1),
						   statement->types[i], -1, 0);
		TupleDescInitEntryCollation(desc, i + 1,
									get_typcollation(statement->types[i]));
	}
	statement->rows.md.name = ROWS;
	statement->rows.md.reliddesc = InvalidOid;
	statement->rows.md.tupdesc = desc;
	statement->rows.md.enrtype = ENR_NAMED_TUPLESTORE;
	statement->rows.md.enrtuples = ROWS_PLANNED;
}

/*
 * Parameters are the old key (unless it is an insert), what is set, and what the
 * row was.
 */
static PyrStatement *
create_statement(PyrTarget *target, PyrVerb verb, PyrForm *form,
				 PyrForm *old_form, PyrManner manner, const char *text)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(target->context);
	PyrStatement *statement = palloc0(sizeof(PyrStatement));
	int			maxparams = target->merge->nkey +
		(form ? form->ncolumns : 0) + (old_form ? old_form->ncolumns : 0) + 1;

	statement->target = target;
	statement->verb = verb;
	statement->form = form;
	statement->old_form = old_form;
	statement->manner = manner;
	statement->text = text ? pstrdup(text) : NULL;
	statement->columns = palloc0(maxparams * sizeof(PyrTargetColumn *));
	statement->types = palloc0(maxparams * sizeof(Oid));
	statement->values = palloc0(maxparams * sizeof(Datum));
	statement->isnull = palloc0(maxparams * sizeof(bool));
	statement->nulls = palloc0(maxparams);
	if (verb != PYR_INSERT)
	{
		for (int i = 0; i < target->merge->nkey; i++)
			add_parameter(statement, target->merge->key[i]);
		statement->nkey = statement->nparams;
	}
	for (int i = 0; form != NULL && i < form->ncolumns; i++)
		add_parameter(statement, form->columns[i]);
	statement->nset = statement->nparams;
	for (int i = 0; old_form != NULL && i < old_form->ncolumns; i++)
		add_parameter(statement, old_form->columns[i]);
	describe_rows(statement);
	target->statements = lappend(target->statements, statement);
	MemoryContextSwitchTo(oldcontext);
	return statement;
}

/*
 * Plans are much larger than statements; they are made again when needed.
 */
static void
free_plans(PyrTarget *target)
{
	ListCell   *cell;

	foreach(cell, target->statements)
	{
		PyrStatement *statement = lfirst(cell);

		pyr_statement_free(statement);
		statement->one = statement->many = statement->several = NULL;
	}
}

static PyrStatement *
make_statement(PyrTarget *target, PyrVerb verb, PyrForm *form,
			   PyrForm *old_form, PyrManner manner, const char *text)
{
	if (list_length(target->statements) % PLANS_MAX == PLANS_MAX - 1)
		free_plans(target);
	return create_statement(target, verb, form, old_form, manner, text);
}

/*
 * The statement that does that to rows of that form.  It knows what they were
 * before if it should care.
 */
PyrStatement *
pyr_statement_get(PyrTarget *target, PyrVerb verb, PyrForm *form,
				  PyrForm *old_form, PyrManner manner)
{
	void	  **place;

	if (verb == PYR_INSERT || manner == PYR_FORCE || !target->is_local ||
		target->is_whole)
		old_form = NULL;
	if (verb == PYR_INSERT)
		place = &form->statements[manner == PYR_TRY ? PLACE_TRY_INSERT : PLACE_INSERT];
	else if (verb == PYR_UPDATE)
		place = &form->statements[manner == PYR_FORCE ? PLACE_FORCE_UPDATE :
								  old_form ? PLACE_UPDATE_OLD : PLACE_UPDATE];
	else if (old_form != NULL)
		place = &old_form->statements[PLACE_DELETE_OLD];
	else
		place = manner == PYR_FORCE ? &target->force_delete : &target->delete;

	if (*place == NULL)
		*place = make_statement(target, verb, form, old_form, manner, NULL);
	return *place;
}

/*
 * The statement that makes room for rows whose key is changed by updates of that
 * form, if they are there: it deletes those that have the new keys.
 */
PyrStatement *
pyr_statement_vacate(PyrTarget *target, PyrForm *form)
{
	void	  **place = &form->statements[PLACE_VACATE];
	PyrMergeTable *table = target->merge;
	char	   *relation = pyr_statement_table(target);
	int			numbers[INDEX_MAX_KEYS];
	char	   *old_key;

	if (*place != NULL)
		return *place;
	for (int i = 0; i < table->nkey; i++)
	{
		int			slot = form->slots[table->key[i]];

		numbers[i] = slot < 0 ? i : table->nkey + slot;
	}
	old_key = pyr_statement_key(target, NULL);
	*place = make_statement(target, PYR_UPDATE, form, NULL, PYR_FORCE,
							psprintf("DELETE FROM %s AS t WHERE %s AND NOT (%s)"
									 " AND EXISTS (SELECT FROM %s AS t WHERE %s)",
									 relation, pyr_statement_key(target, numbers),
									 old_key, relation, old_key));
	return *place;
}

/*
 * The statement that leaves one row of a key, of those that are in several partitions.
 */
PyrStatement *
pyr_statement_unite(PyrTarget *target)
{
	char	   *relation = pyr_statement_table(target);
	char	   *key = pyr_statement_key(target, NULL);

	if (target->unite == NULL)
		target->unite = make_statement(target, PYR_DELETE, NULL, NULL, PYR_FORCE,
									   psprintf("DELETE FROM %s AS t WHERE %s AND t.tableoid OPERATOR(pg_catalog.<>)"
												" (SELECT pg_catalog.min(t.tableoid) FROM %s AS t WHERE %s)",
												relation, key, relation, key));
	return target->unite;
}

/*
 * A query about the row of such a change, with the change's parameters.
 */
PyrStatement *
pyr_statement_query(PyrTarget *target, PyrVerb verb, PyrForm *form,
					PyrForm *old_form, const char *text)
{
	return make_statement(target, verb, form, old_form, PYR_EXPECT, text);
}

void
pyr_statement_free(PyrStatement *statement)
{
	if (statement->one != NULL)
		SPI_freeplan(statement->one);
	if (statement->many != NULL)
		SPI_freeplan(statement->many);
	if (statement->several != NULL)
		SPI_freeplan(statement->several);
}

/*
 * A value as parameter number i of the statement, in the current memory
 * context.
 */
static inline void
set_parameter(PyrStatement *statement, int i, const PyrValue *value,
			  int encoding)
{
	PyrTargetColumn *column = statement->columns[i];

	statement->isnull[i] = value->len < 0;
	if (value->len < 0)
		return;
	statement->values[i] = pyr_target_datum(column, value, encoding);
}

/*
 * Runs the plan for one row.
 */
static void
run_one(PyrStatement *statement)
{
	int			role = SessionReplicationRole;

	/*
	 * The variable, not the setting, whose change would make all saved plans
	 * invalid.  Whether a trigger fires is only asked when it is time to.
	 */
	if (statement->target->fires_as_origin)
		SessionReplicationRole = SESSION_REPLICATION_ROLE_LOCAL;
	PG_TRY();
	{
		execute_plan(statement, statement->one, statement->values,
					 statement->nulls);
	}
	PG_FINALLY();
	{
		SessionReplicationRole = role;
	}
	PG_END_TRY();
}

static inline const PyrValue *
value_of(const PyrValue *values, const int *from, int i)
{
	return &values[from ? from[i] : i];
}

/*
 * Carries out one change.  Returns the number of rows touched, or that a query
 * has found.
 */
uint64
pyr_statement_change(PyrStatement *statement, const PyrRowChange *change,
					 int encoding)
{
	PyrIdentity before;

	if (statement->one == NULL)
		statement->one = prepare(statement, false);

	/* making a value of a domain runs its checks, which are the owner's, too */
	before = pyr_local_become(statement->target->owner);
	for (int i = 0; i < statement->nparams; i++)
	{
		const PyrValue *value =
			i < statement->nkey ? &change->key[i] :
			i < statement->nset ? value_of(change->values, change->from,
										   i - statement->nkey) :
			value_of(change->old, change->old_from, i - statement->nset);

		set_parameter(statement, i, value, encoding);
		statement->nulls[i] = statement->isnull[i] ? 'n' : ' ';
	}

	run_one(statement);
	pyr_local_become_again(before);
	return SPI_processed;
}

/*
 * Makes the statement's relation of rows known to SPI; it is the only one of
 * that name.  After an error the one before may still be there.
 */
static void
register_rows(PyrStatement *statement)
{
	/* SPI's list of relations lives as long as the connection to it */
	MemoryContext oldcontext = MemoryContextSwitchTo(TopTransactionContext);

	(void) SPI_unregister_relation(ROWS);
	check_result(SPI_register_relation(&statement->rows));
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Fills the relation with rows until the batch is full; returns how many.
 */
static int
fill_batch(PyrStatement *statement, Tuplestorestate *store,
		   PyrMergeRow **rows, int nrows, int encoding)
{
	int			n;
	size_t		bytes = 0;

	for (n = 0; n < nrows && n < BATCH_ROWS && bytes < BATCH_BYTES; n++)
	{
		for (int i = 0; i < statement->nparams; i++)
		{
			const PyrValue *value =
				i < statement->nkey ? &rows[n]->origin[i] :
				i < statement->nset ? &rows[n]->values[i - statement->nkey] :
				&rows[n]->old[i - statement->nset];

			set_parameter(statement, i, value, encoding);
			bytes += Max(value->len, 0);
		}
		tuplestore_putvalues(store, statement->rows.md.tupdesc,
							 statement->values, statement->isnull);
	}
	return n;
}

/*
 * Whether the statement over many rows reads all of the table.
 */
static bool
looks_through(PyrStatement *statement)
{
	return statement->target->is_whole && statement->verb != PYR_INSERT;
}

/*
 * How many rows of a foreign table the statement changes at once; 1: it does not.
 */
static int
several_rows(PyrStatement *statement)
{
	return moves_rows(statement) ? 1
		: Max(Min(SEVERAL_ROWS, SEVERAL_PARAMS / statement->nparams), 1);
}

/*
 * Changes so many rows of a foreign table, less than it takes at once perhaps:
 * then the last one fills up.  Returns the number of rows touched.
 */
static uint64
change_several(PyrStatement *statement, PyrMergeRow **rows, int nrows,
			   int at_once, int encoding)
{
	int			nparams = statement->nparams;
	Oid		   *types = palloc(at_once * nparams * sizeof(Oid));
	Datum	   *values = palloc(at_once * nparams * sizeof(Datum));
	char	   *nulls = palloc(at_once * nparams);

	for (int row = 0; row < at_once; row++)
	{
		PyrMergeRow *of = rows[Min(row, nrows - 1)];

		for (int i = 0; i < nparams; i++)
		{
			set_parameter(statement, i,
						  i < statement->nkey ? &of->origin[i]
						  : &of->values[i - statement->nkey], encoding);
			types[row * nparams + i] = statement->types[i];
			values[row * nparams + i] = statement->values[i];
			nulls[row * nparams + i] = statement->isnull[i] ? 'n' : ' ';
		}
	}
	if (statement->several == NULL)
		statement->several = prepare_text(statement,
										  several_text(statement, at_once),
										  at_once * nparams, types);
	execute_plan(statement, statement->several, values, nulls);
	return SPI_processed;
}

/*
 * The same as pyr_statement_rows for changes of a foreign table's rows.
 */
static bool
change_foreign_rows(PyrStatement *statement, PyrMergeRow **rows, int nrows,
					int touches, int encoding, void (*between) (void))
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pyreplica rows",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	int			at_once = several_rows(statement);
	bool		is_right = true;

	for (int done = 0; done < nrows && is_right; done += at_once)
	{
		int			n = Min(nrows - done, at_once);
		uint64		touched;

		CHECK_FOR_INTERRUPTS();
		if (at_once == 1)
		{
			PyrRowChange change = {
				.key = rows[done]->origin, .values = rows[done]->values
			};

			touched = pyr_statement_change(statement, &change, encoding);
		}
		else
		{
			PyrIdentity before = pyr_local_become(statement->target->owner);

			touched = change_several(statement, rows + done, n, at_once, encoding);
			pyr_local_become_again(before);
		}
		is_right = touches < 0 || touched == (uint64) n * touches;
		MemoryContextReset(context);
		between();
	}
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
	return is_right;
}

/*
 * The same as pyr_statement_rows, with the rows as a relation.
 */
static bool
change_as_relation(PyrStatement *statement, PyrMergeRow **rows, int nrows,
				   int touches, int encoding, void (*between) (void))
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pyreplica rows",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext values_context = AllocSetContextCreate(context,
														 "pyreplica values",
														 ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	Tuplestorestate *store = tuplestore_begin_heap(false, false,
												   4 * BATCH_BYTES / 1024);
	PyrIdentity before;
	char	   *text = NULL;
	bool		is_right = true;
	int			done = 0;

	statement->rows.reldata = store;
	register_rows(statement);
	if (looks_through(statement))
		text = statement_text(statement, true);
	else if (statement->many == NULL)
		statement->many = prepare(statement, true);
	before = pyr_local_become(statement->target->owner);

	/* as indexes are preferred at all costs, the right join would not be seen */
	if (text != NULL)
		pyr_config_set_here("enable_seqscan", "on");
	while (done < nrows && is_right)
	{
		int			n;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(values_context);
		n = fill_batch(statement, store, rows + done, nrows - done, encoding);
		MemoryContextReset(values_context);
		if (text == NULL)
			execute_plan(statement, statement->many, NULL, NULL);
		else
		{
			statement->rows.md.enrtuples = n;
			(void) pyr_statement_by_key(statement->target->relid, text, 0, NULL, NULL, NULL);
		}
		is_right = SPI_processed == (uint64) n * touches;
		done += n;
		tuplestore_clear(store);
		between();
	}
	pyr_local_become_again(before);
	(void) SPI_unregister_relation(ROWS);
	tuplestore_end(store);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
	return is_right;
}

/*
 * Runs the statement over all of the rows, which have its form.  Each of them
 * should touch so many rows of the table (-1: that does not matter); false: that is
 * not so, and it stopped when that showed.  "between" is called after each batch.
 */
bool
pyr_statement_rows(PyrStatement *statement, PyrMergeRow **rows, int nrows,
				   int touches, int encoding, void (*between) (void))
{
	if (statement->target->is_foreign && statement->verb != PYR_INSERT)
		return change_foreign_rows(statement, rows, nrows, touches, encoding,
								   between);
	return change_as_relation(statement, rows, nrows, touches, encoding, between);
}

/*
 * The table, as it is written where its rows are looked for.  The master's log
 * trigger is about its own rows, not those of tables that inherit from it.
 */
char *
pyr_statement_table(PyrTarget *target)
{
	return psprintf("%s%s", target->relkind == RELKIND_RELATION ? "ONLY " : "",
					quote_qualified_identifier(target->schema, target->table));
}

/*
 * For a query: the condition that t is the row with the key that is in the
 * parameters of those numbers; NULL: the first ones.
 */
char *
pyr_statement_key(PyrTarget *target, const int *numbers)
{
	StringInfoData where;

	initStringInfo(&where);
	for (int i = 0; i < target->merge->nkey; i++)
		append_key_condition(&where, target,
							 &target->columns[target->merge->key[i]],
							 parameter(numbers ? numbers[i] : i, false));
	return where.data;
}

/*
 * For a query: the parameter of that number as a value of the column.
 */
char *
pyr_statement_value(PyrTarget *target, int column, int number)
{
	return pstrdup(cast_to_column(parameter(number, false),
								  &target->columns[column]));
}

/*
 * For a query: the condition that t has those old values, which are in the
 * parameters from that number on.
 */
char *
pyr_statement_same(PyrTarget *target, PyrForm *old_form, int number)
{
	return same_condition(target, old_form, number, false);
}

/*
 * For a query: the conditions that t is earlier than the parameter of that
 * number, and that it is later, by the column that tells.
 */
char *
pyr_statement_order(PyrTarget *target, int number)
{
	PyrTargetColumn *column = &target->columns[target->later_column];
	char	   *here = psprintf("t.%s", quote_identifier(column->name));
	const char *there = cast_to_column(parameter(number, false), column);

	return psprintf("%s IS NULL OR %s, %s", here,
					later_condition(target, column, here, there),
					later_condition(target, column, there, here));
}

/*
 * Runs that text as that user.
 */
void
pyr_statement_text(Oid owner, const char *text)
{
	PyrIdentity before = pyr_local_become(owner);
	MemoryContext context = CurrentMemoryContext;
	int			rc = SPI_execute(text, false, 0);

	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	check_result(rc);
	pyr_local_become_again(before);
}
