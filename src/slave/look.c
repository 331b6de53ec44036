/*-------------------------------------------------------------------------
 *
 * look.c
 *	  The slave's rows that a change meets: the one with its key, and those
 *	  that have a unique value which it is to bring.  Both are locked, so that
 *	  what is decided about them stays true.
 *
 * A unique index is asked in SQL, with the expressions and the condition that
 * it is defined by: the change makes a row, the index makes values of it, and
 * rows of the table that have the same values are those that are in the way.
 * (Trying the change and seeing what the server complains about would tell of
 * one index alone, and take a subtransaction for each change.)
 *
 * All queries run as the owner of the table, as the changes do.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_index.h"
#include "executor/spi.h"
#include "slave/local.h"
#include "slave/look.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* what a query is about */
typedef enum Subject
{
	ABOUT_ROW,					/* the row with the change's key */
	ABOUT_COLLISIONS,			/* rows with a unique value of the change's */
	ABOUT_CHANGE				/* the change itself, as JSON */
} Subject;

/* the queries about changes of one form */
typedef struct Queries
{
	Subject		subject;
	PyrVerb		verb;
	PyrForm    *form;
	PyrForm    *old_form;
	List	   *statements;		/* PyrStatement */
	List	   *indexes;		/* of each: the name of the unique index */
} Queries;

/* the columns of those about rows */
enum
{
	COL_CTID = 1,
	COL_RELID,
	COL_XMIN,
	COL_ROW,
	COL_FLAG,					/* is_expected, has_same_key */
	COL_EARLIER,
	COL_LATER
};

/* the first parameter that is set */
static int
first_set(const PyrRowChange *change)
{
	return change->verb == PYR_INSERT ? 0 : change->target->merge->nkey;
}

/*
 * The number of the parameter that sets the column; -1: none does.
 */
static int
parameter_of(const PyrRowChange *change, int column)
{
	int			slot = change->form ? change->form->slots[column] : -1;

	return slot < 0 ? -1 : first_set(change) + slot;
}

/*
 * What is selected of a row t.
 */
static char *
row_columns(const PyrRowChange *change, const char *flag)
{
	PyrTarget  *target = change->target;
	int			later = target->later_column >= 0
		? parameter_of(change, target->later_column) : -1;

	return psprintf("t.ctid, t.tableoid, t.xmin, pg_catalog.to_jsonb(t.*), %s, %s",
					flag,
					later >= 0 ? pyr_statement_order(target, later)
					: "NULL::pg_catalog.bool, NULL::pg_catalog.bool");
}

static void
add_query(Queries *queries, const PyrRowChange *change, const char *index,
		  const char *text)
{
	MemoryContext oldcontext;
	PyrStatement *statement = pyr_statement_query(change->target, change->verb,
												  change->form,
												  change->old_form, text);

	oldcontext = MemoryContextSwitchTo(change->target->context);
	queries->statements = lappend(queries->statements, statement);
	queries->indexes = lappend(queries->indexes, index ? pstrdup(index) : NULL);
	MemoryContextSwitchTo(oldcontext);
}

static void
add_row_query(Queries *queries, const PyrRowChange *change)
{
	PyrTarget  *target = change->target;
	const char *same = change->old_form == NULL ? "true" :
		pyr_statement_same(target, change->old_form,
						   first_set(change) +
						   (change->form ? change->form->ncolumns : 0));

	add_query(queries, change, NULL,
			  psprintf("SELECT %s FROM %s AS t WHERE %s FOR UPDATE",
					   row_columns(change, same), pyr_statement_table(target),
					   pyr_statement_key(target, NULL)));
}

/*
 * The row that the change makes, as a relation: what it sets, and of an update
 * the rest of the row that it meets.
 */
static char *
made_row(const PyrRowChange *change)
{
	PyrTarget  *target = change->target;
	StringInfoData sql;
	const char *separator = "SELECT ";

	initStringInfo(&sql);
	for (int i = 0; i < target->ncolumns; i++)
	{
		PyrTargetColumn *column = &target->columns[i];
		int			parameter = parameter_of(change, i);
		const char *name = quote_identifier(column->name);

		if (column->is_dropped)
			continue;
		appendStringInfo(&sql, "%s%s AS %s", separator,
						 parameter >= 0 ? pyr_statement_value(target, i, parameter) :
						 change->verb == PYR_UPDATE ? psprintf("t.%s", name) :
						 psprintf("CAST(NULL AS %s)", format_type_be_qualified(getBaseType(column->type))),
						 name);
		separator = ", ";
	}
	if (change->verb == PYR_UPDATE)
		appendStringInfo(&sql, " FROM %s AS t WHERE %s",
						 pyr_statement_table(target), pyr_statement_key(target, NULL));
	return sql.data;
}

/*
 * The condition that the row t has the change's key.
 */
static const char *
same_key(const PyrRowChange *change)
{
	PyrMergeTable *table = change->target->merge;
	int			numbers[INDEX_MAX_KEYS];

	/* without a key, no row has the change's */
	if (change->target->is_whole)
		return "false";
	if (change->verb != PYR_INSERT)
		return pyr_statement_key(change->target, NULL);
	for (int i = 0; i < table->nkey; i++)
	{
		numbers[i] = parameter_of(change, table->key[i]);

		/* one that is generated here is not among the parameters */
		if (numbers[i] < 0)
			return "false";
	}
	return pyr_statement_key(change->target, numbers);
}

static char *
text_of(Datum datum)
{
	return TextDatumGetCString(datum);
}

/*
 * The index's condition; NULL if it has none.
 */
static char *
predicate_of(HeapTuple tuple, Form_pg_index index)
{
	bool		isnull;
	Datum		predicate = SysCacheGetAttr(INDEXRELID, tuple,
											Anum_pg_index_indpred, &isnull);

	if (isnull)
		return NULL;
	return text_of(DirectFunctionCall2(pg_get_expr, predicate,
									   ObjectIdGetDatum(index->indrelid)));
}

/*
 * The operator by which the index takes values for equal.
 */
static const char *
equality_of(Relation rel, int i)
{
	Oid			operator = get_opfamily_member(rel->rd_opfamily[i],
											   rel->rd_opcintype[i],
											   rel->rd_opcintype[i],
											   BTEqualStrategyNumber);

	if (!OidIsValid(operator))
		elog(ERROR, "index \"%s\" has no equality operator",
			 RelationGetRelationName(rel));
	return pyr_statement_operator(operator);
}

/*
 * The query for rows that have in that index what the change brings.  Names in
 * the index's expressions have no prefix: they are t's, or those of the made
 * row, each at its place.
 */
static char *
collision_query(const PyrRowChange *change, Relation rel, HeapTuple tuple)
{
	Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);
	char	   *predicate = predicate_of(tuple, index);
	StringInfoData made;
	StringInfoData where;

	initStringInfo(&made);
	initStringInfo(&where);
	for (int i = 0; i < index->indnkeyatts; i++)
	{
		char	   *value = text_of(DirectFunctionCall3(pg_get_indexdef_ext,
														ObjectIdGetDatum(index->indexrelid),
														Int32GetDatum(i + 1),
														BoolGetDatum(false)));
		char	   *name = psprintf("\"pyreplica %d\"", i);
		Oid			collation = rel->rd_indcollation[i];
		char	   *is_equal = psprintf("%s %s r.%s%s%s", value,
										equality_of(rel, i), name,
										OidIsValid(collation) ? " COLLATE " : "",
										OidIsValid(collation) ? generate_collation_name(collation) : "");

		appendStringInfo(&made, "%s%s AS %s", i > 0 ? ", " : "", value, name);
		if (i > 0)
			appendStringInfoString(&where, " AND ");
		if (pyr_index_nulls_equal(index))
			appendStringInfo(&where, "(%s OR %s IS NULL AND r.%s IS NULL)",
							 is_equal, value, name);
		else
			appendStringInfoString(&where, is_equal);
	}
	if (predicate != NULL)
		appendStringInfo(&where, " AND (%s)", predicate);
	if (change->verb == PYR_UPDATE)
		appendStringInfo(&where, " AND NOT (%s)", same_key(change));

	return psprintf("SELECT %s FROM %s AS t, (SELECT %s FROM (%s) AS r%s%s) AS r"
					" WHERE %s FOR UPDATE OF t",
					row_columns(change, same_key(change)),
					pyr_statement_table(change->target), made.data,
					made_row(change),
					predicate ? " WHERE " : "", predicate ? predicate : "",
					where.data);
}

/*
 * Whether a change of that form can bring a value into that index.
 */
static bool
concerns(const PyrRowChange *change, Relation rel)
{
	Form_pg_index index = rel->rd_index;

	if (!index->indisunique || !index->indimmediate || !index->indisvalid)
		return false;
	if (change->verb == PYR_INSERT)
		return true;
	for (int i = 0; i < index->indnkeyatts; i++)
	{
		int			column = index->indkey.values[i] - 1;

		if (column < 0 || change->form->slots[column] >= 0)
			return true;
	}
	/* a condition may become true by any column */
	return !heap_attisnull(rel->rd_indextuple, Anum_pg_index_indpred, NULL);
}

static void
add_collision_queries(Queries *queries, const PyrRowChange *change)
{
	Relation	table = table_open(change->target->relid, AccessShareLock);
	List	   *indexes = RelationGetIndexList(table);
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	rel = index_open(lfirst_oid(cell), AccessShareLock);

		if (concerns(change, rel))
			add_query(queries, change, RelationGetRelationName(rel),
					  collision_query(change, rel, rel->rd_indextuple));
		index_close(rel, NoLock);
	}
	list_free(indexes);
	table_close(table, NoLock);
}

/*
 * The change as JSON: the key, what is set, and what else the master's row was;
 * and the key as an array.
 */
static void
add_change_query(Queries *queries, const PyrRowChange *change)
{
	PyrTarget  *target = change->target;
	PyrForm    *old = change->old_form;
	int			first_old = first_set(change) +
		(change->form ? change->form->ncolumns : 0);
	StringInfoData row;
	StringInfoData key;

	initStringInfo(&row);
	initStringInfo(&key);
	for (int i = 0; i < target->ncolumns; i++)
	{
		int			parameter = parameter_of(change, i);

		for (int k = 0; parameter < 0 && change->verb != PYR_INSERT &&
			 k < target->merge->nkey; k++)
		{
			if (target->merge->key[k] == i)
				parameter = k;
		}
		if (parameter < 0 && old != NULL && old->slots[i] >= 0)
			parameter = first_old + old->slots[i];
		if (parameter >= 0)
			appendStringInfo(&row, "%s%s AS %s", row.len > 0 ? ", " : "",
							 pyr_statement_value(target, i, parameter),
							 quote_identifier(target->columns[i].name));
	}
	for (int k = 0; k < target->merge->nkey; k++)
	{
		int			column = target->merge->key[k];
		int			parameter = change->verb == PYR_INSERT
			? parameter_of(change, column) : k;

		appendStringInfo(&key, "%sCAST(%s AS pg_catalog.text)", k > 0 ? ", " : "",
						 parameter < 0 ? "NULL" :
						 pyr_statement_value(target, column, parameter));
	}
	add_query(queries, change, NULL,
			  psprintf("SELECT pg_catalog.to_jsonb(r.*), CAST(ARRAY[%s] AS pg_catalog.text[])"
					   " FROM (SELECT %s) AS r", key.data, row.data));
}

/*
 * The queries about changes like that one; made when first needed.
 */
static Queries *
queries_about(Subject subject, const PyrRowChange *change)
{
	Queries    *queries;
	ListCell   *cell;
	MemoryContext oldcontext;

	foreach(cell, change->target->queries)
	{
		queries = lfirst(cell);
		if (queries->subject == subject && queries->verb == change->verb &&
			queries->form == change->form &&
			queries->old_form == change->old_form)
			return queries;
	}

	oldcontext = MemoryContextSwitchTo(change->target->context);
	queries = palloc0(sizeof(Queries));
	queries->subject = subject;
	queries->verb = change->verb;
	queries->form = change->form;
	queries->old_form = change->old_form;
	MemoryContextSwitchTo(oldcontext);
	switch (subject)
	{
		case ABOUT_ROW:
			add_row_query(queries, change);
			break;
		case ABOUT_COLLISIONS:
			add_collision_queries(queries, change);
			break;
		case ABOUT_CHANGE:
			add_change_query(queries, change);
			break;
	}
	oldcontext = MemoryContextSwitchTo(change->target->context);
	change->target->queries = lappend(change->target->queries, queries);
	MemoryContextSwitchTo(oldcontext);
	return queries;
}

static bool
is_true(HeapTuple tuple, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(tuple, SPI_tuptable->tupdesc, column, &isnull);

	return !isnull && DatumGetBool(value);
}

static char *
found_text(HeapTuple tuple, int column)
{
	char	   *text = SPI_getvalue(tuple, SPI_tuptable->tupdesc, column);

	return text ? pstrdup(text) : NULL;
}

/*
 * A row that was found, in the current memory context.
 */
static PyrFound *
take_row(HeapTuple tuple)
{
	PyrFound   *found = palloc0(sizeof(PyrFound));
	bool		isnull;

	found->ctid = found_text(tuple, COL_CTID);
	found->relid = DatumGetObjectId(SPI_getbinval(tuple, SPI_tuptable->tupdesc,
												  COL_RELID, &isnull));
	found->author = pyr_author_of(DatumGetTransactionId(SPI_getbinval(tuple, SPI_tuptable->tupdesc,
																	  COL_XMIN, &isnull)));
	found->row = found_text(tuple, COL_ROW);
	(void) SPI_getbinval(tuple, SPI_tuptable->tupdesc, COL_EARLIER, &isnull);
	found->is_comparable = !isnull;
	found->is_earlier = is_true(tuple, COL_EARLIER);
	found->is_later = is_true(tuple, COL_LATER);
	return found;
}

/*
 * The row that an update or delete is about, locked; NULL: there is none.
 */
PyrFound *
pyr_look_at_row(const PyrRowChange *change, int encoding)
{
	Queries    *queries = queries_about(ABOUT_ROW, change);
	PyrFound   *found;

	if (pyr_statement_change(linitial(queries->statements), change, encoding) == 0)
	{
		SPI_freetuptable(SPI_tuptable);
		return NULL;
	}
	found = take_row(SPI_tuptable->vals[0]);
	found->has_same_key = true;
	if (change->old_form != NULL)
		found->is_expected = is_true(SPI_tuptable->vals[0], COL_FLAG);
	else if (found->is_comparable)
		found->is_expected = found->is_earlier;
	else
		found->is_expected = found->author.is_ours ||
			!change->target->watches_origin;
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/*
 * Whether the change can bring a value that must be unique.
 */
bool
pyr_look_can_collide(const PyrRowChange *change)
{
	return change->target->is_local && change->verb != PYR_DELETE &&
		queries_about(ABOUT_COLLISIONS, change)->statements != NIL;
}

static PyrFound *
known_row(List *rows, PyrFound *found)
{
	ListCell   *cell;

	foreach(cell, rows)
	{
		PyrFound   *known = lfirst(cell);

		if (known->relid == found->relid &&
			strcmp(known->ctid, found->ctid) == 0)
			return known;
	}
	return NULL;
}

/*
 * The rows that are in the change's way, each once, locked; and in how many
 * unique indexes.
 */
List *
pyr_look_for_collisions(const PyrRowChange *change, int encoding, int *nindexes)
{
	Queries    *queries = queries_about(ABOUT_COLLISIONS, change);
	List	   *rows = NIL;
	ListCell   *cell;
	ListCell   *name;

	*nindexes = 0;
	forboth(cell, queries->statements, name, queries->indexes)
	{
		uint64		n = pyr_statement_change(lfirst(cell), change, encoding);

		*nindexes += n > 0;
		for (uint64 i = 0; i < n; i++)
		{
			PyrFound   *found = take_row(SPI_tuptable->vals[i]);

			if (known_row(rows, found) != NULL)
				continue;
			found->has_same_key = is_true(SPI_tuptable->vals[i], COL_FLAG);
			found->index = lfirst(name);
			rows = lappend(rows, found);
		}
		SPI_freetuptable(SPI_tuptable);
	}
	return rows;
}

/*
 * The change's row as JSON, as far as it is known, and its key as an array.
 */
void
pyr_look_describe(const PyrRowChange *change, int encoding,
				  char **row, char **key)
{
	Queries    *queries = queries_about(ABOUT_CHANGE, change);

	if (pyr_statement_change(linitial(queries->statements), change, encoding) != 1)
		elog(ERROR, "could not describe a change");
	*row = found_text(SPI_tuptable->vals[0], 1);
	*key = found_text(SPI_tuptable->vals[0], 2);
	SPI_freetuptable(SPI_tuptable);
}
