/*-------------------------------------------------------------------------
 *
 * mend.c
 *	  Makes the rows of a range equal to the master's, touching only those that
 *	  are not.
 *
 * The master's rows come in through the server's COPY into a tuplestore, which
 * is then compared with what is here in one pass over both.  What comes of that,
 * usually little, goes into another tuplestore: rows that are here only, there
 * only, or differ.  Statements over it delete, update and insert.  Rows differ
 * if a column that both sides have does, byte by byte and as text: the one is
 * finer than what types call equal, the other is what pyreplica_verify looks at.
 * Columns that only the slave has stay as they are.
 *
 * An update does not do for everything: not if the key changes in its looks, nor
 * for columns that are GENERATED ALWAYS AS IDENTITY, nor if unique values changed
 * hands among the rows, since each row is checked at once.  Such rows are deleted
 * and inserted again, with what only the slave has of them.
 *
 * Rows are told apart by their key if that is unique here, or if there is nothing
 * else to go by (views, foreign tables); else by all of their columns, of equal
 * ones by their number.  Then there are no updates.
 *
 * In a resync, values that the master's rows have by now may still be held by
 * rows beyond the range.  These are stale and will come again; they are deleted.
 * The same goes for changes that are applied to the table meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/compat.h"
#include "common/keys.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "slave/collision.h"
#include "slave/local.h"
#include "slave/mend.h"
#include "slave/statement.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

/* what the statements call the master's rows, and what is wrong with ours */
#define MASTERS_ROWS	"pyreplica_masters"
#define WRONG_ROWS		"pyreplica_wrong"

/* so many rows of what is wrong are taken at once from the query */
#define FETCH_ROWS		1000

/*
 * What is wrong with a row: its column "what".  All columns of the two relations
 * have names by number, so as not to be taken for one another: c1 ... those that
 * both sides have, o1 ... those that only the slave has.
 */
#define ROW_EXTRA		'e'
#define ROW_MISSING		'm'
#define ROW_DIFFERS		'd'
#define ROW_REPLACED	'r'		/* it differs in what cannot be updated */

typedef struct Mend
{
	PyrLayout  *layout;
	Relation	rel;
	const char *relation;		/* in statements */
	char	  **after;
	char	  **upto;
	PyrCopyMode mode;
	bool		by_key;			/* rows are told apart by it */

	int			ncolumns;		/* that both sides have */
	AttrNumber *columns;
	bool	   *is_key;			/* of each of them */
	bool	   *is_fixed;		/* it cannot be updated */
	int			nown;			/* columns that only the slave has */
	AttrNumber *own;

	uint64		nextra;
	uint64		nmissing;
	uint64		ndiffering;
	uint64		nreplaced;
} Mend;

static Form_pg_attribute
attribute(Mend *mend, AttrNumber attnum)
{
	return TupleDescAttr(RelationGetDescr(mend->rel), attnum - 1);
}

static const char *
column_name(Mend *mend, AttrNumber attnum)
{
	return quote_identifier(NameStr(attribute(mend, attnum)->attname));
}

/*
 * "prefix1, prefix2 ...": columns of the two relations.
 */
static char *
numbered(const char *prefix, int n)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 1; i <= n; i++)
		appendStringInfo(&sql, "%s%s%d", i > 1 ? ", " : "", prefix, i);
	return sql.data;
}

/*
 * The table's columns by their names; if there is a prefix, called by their
 * numbers after it.
 */
static char *
named(Mend *mend, const AttrNumber *columns, int n, const char *prefix)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < n; i++)
	{
		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "",
						 column_name(mend, columns[i]));
		if (prefix != NULL)
			appendStringInfo(&sql, " AS %s%d", prefix, i + 1);
	}
	return sql.data;
}

/*
 * Columns of a relation as one text that tells rows apart: by their numbers after
 * that prefix; if there is none (NULL), by their names in the table.
 */
static char *
whole_text(Mend *mend, const char *prefix)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "ROW(");
	for (int i = 0; i < mend->ncolumns; i++)
	{
		/* XML loses something on its way through its output function */
		bool		is_xml = getBaseType(attribute(mend, mend->columns[i])->atttypid) == XMLOID;

		appendStringInfo(&sql, "%s%s%s", i > 0 ? ", " : "",
						 prefix ? psprintf("%s%d", prefix, i + 1)
						 : column_name(mend, mend->columns[i]),
						 is_xml ? "::text" : "");
	}
	appendStringInfoString(&sql, ")::text COLLATE \"C\"");
	return sql.data;
}

/*
 * Those of c1 ... that cannot be updated.
 */
static char *
fixed(Mend *mend, const char *prefix)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < mend->ncolumns; i++)
	{
		if (mend->is_fixed[i])
			appendStringInfo(&sql, "%s%s%d", sql.len > 0 ? ", " : "",
							 prefix, i + 1);
	}
	return sql.data;
}

static const char *
equality_of(Mend *mend, AttrNumber attnum)
{
	Form_pg_attribute att = attribute(mend, attnum);
	TypeCacheEntry *type = lookup_type_cache(att->atttypid, TYPECACHE_EQ_OPR);

	if (!OidIsValid(type->eq_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("key column \"%s\" of table %s has type %s on the slave, which has no equality operator",
						NameStr(att->attname),
						mend->layout->here,
						format_type_be(att->atttypid))));
	return pyr_statement_operator(type->eq_opr);
}

/*
 * Whether two rows have the same key, as SQL.  The one's columns are numbered
 * after that prefix; the other's, too, or else (NULL) it is the table's.
 */
static char *
same_key(Mend *mend, const char *prefix, const char *other)
{
	StringInfoData sql;

	initStringInfo(&sql);
	for (int i = 0; i < mend->ncolumns; i++)
	{
		const char *equals;

		if (!mend->is_key[i])
			continue;
		equals = equality_of(mend, mend->columns[i]);
		if (sql.len > 0)
			appendStringInfoString(&sql, " AND ");
		if (other != NULL)
			appendStringInfo(&sql, "%s%d %s ", other, i + 1, equals);
		else
			appendStringInfo(&sql, "t.%s %s ",
							 column_name(mend, mend->columns[i]), equals);
		appendStringInfo(&sql, "%s%d", prefix, i + 1);
	}
	return sql.data;
}

/*
 * Sorts the table's columns: those that both sides have, and those that are only
 * here and not computed.
 */
static void
look_at_columns(Mend *mend)
{
	TupleDesc	desc = RelationGetDescr(mend->rel);
	PyrLayout  *layout = mend->layout;
	int			nkey = 0;

	mend->columns = palloc(desc->natts * sizeof(AttrNumber));
	mend->own = palloc(desc->natts * sizeof(AttrNumber));
	mend->is_key = palloc0(desc->natts * sizeof(bool));
	mend->is_fixed = palloc0(desc->natts * sizeof(bool));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		bool		is_shared = false;
		ListCell   *cell;

		if (att->attisdropped || att->attgenerated != '\0')
			continue;
		foreach(cell, layout->columns)
			is_shared = is_shared || strcmp(lfirst(cell), NameStr(att->attname)) == 0;
		if (!is_shared)
		{
			mend->own[mend->nown++] = att->attnum;
			continue;
		}
		for (int k = 0; k < layout->nkey; k++)
		{
			if (layout->key_attnums[k] == att->attnum)
				mend->is_key[mend->ncolumns] = true;
		}
		nkey += mend->is_key[mend->ncolumns];
		mend->is_fixed[mend->ncolumns] = mend->is_key[mend->ncolumns] ||
			att->attidentity == ATTRIBUTE_IDENTITY_ALWAYS;
		mend->columns[mend->ncolumns++] = att->attnum;
	}

	/* rows of what has no place of its own can only be found by a key */
	mend->by_key = nkey == layout->nkey && nkey > 0 && !layout->is_whole &&
		(layout->is_foreign ||
		 (layout->relkind != RELKIND_RELATION &&
		  layout->relkind != RELKIND_PARTITIONED_TABLE) ||
		 pyr_key_is_unique(mend->rel, layout->key_attnums, nkey, false));
}

/* ---- rows as relations ---- */

/*
 * Lets SPI know of a relation.  It may still know of one of this name, from before
 * an error; it has no copy of the description, which is static for that reason.
 */
static void
register_rows(EphemeralNamedRelation rows, char *name, TupleDesc desc,
			  Tuplestorestate *store)
{
	/* SPI's list of relations lives as long as the connection to it */
	MemoryContext oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	int			rc;

	(void) SPI_unregister_relation(name);
	rows->md.name = name;
	rows->md.reliddesc = InvalidOid;
	rows->md.tupdesc = desc;
	rows->md.enrtype = ENR_NAMED_TUPLESTORE;
	rows->md.enrtuples = tuplestore_tuple_count(store);
	rows->reldata = store;
	if ((rc = SPI_register_relation(rows)) < 0)
		elog(ERROR, "could not register rows: %s", SPI_result_code_string(rc));
	MemoryContextSwitchTo(oldcontext);
}

/*
 * The columns of the master's rows are of the types that they have here.
 */
static TupleDesc
describe_masters_rows(Mend *mend)
{
	TupleDesc	desc = CreateTemplateTupleDesc(mend->ncolumns);

	for (int i = 0; i < mend->ncolumns; i++)
	{
		TupleDescCopyEntry(desc, i + 1, RelationGetDescr(mend->rel),
						   mend->columns[i]);
		namestrcpy(&TupleDescAttr(desc, i)->attname, psprintf("c%d", i + 1));
	}
	return desc;
}

/*
 * Takes in the master's rows.
 */
static Tuplestorestate *
read_masters_rows(Mend *mend, CopyFromState master, TupleDesc desc)
{
	int			natts = RelationGetNumberOfAttributes(mend->rel);
	Datum	   *row = palloc(natts * sizeof(Datum));
	bool	   *row_isnull = palloc(natts * sizeof(bool));
	Datum	   *values = palloc(natts * sizeof(Datum));
	bool	   *isnull = palloc(natts * sizeof(bool));
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	ExprContext *econtext = CreateStandaloneExprContext();
	MemoryContext oldcontext;

	pyr_copy_without_defaults(master);
	oldcontext = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
	while (NextCopyFrom(master, econtext, row, row_isnull))
	{
		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < mend->ncolumns; i++)
		{
			values[i] = row[mend->columns[i] - 1];
			isnull[i] = row_isnull[mend->columns[i] - 1];
		}
		tuplestore_putvalues(store, desc, values, isnull);
		ResetExprContext(econtext);
	}
	MemoryContextSwitchTo(oldcontext);
	FreeExprContext(econtext, true);
	return store;
}

/*
 * Compares by key.  The join is one that cannot go wrong: both sides are read
 * once.
 */
static void
append_comparison_by_key(StringInfo sql, Mend *mend)
{
	char	   *ours = numbered("t.c", mend->ncolumns);
	char	   *masters = numbered("r.c", mend->ncolumns);

	appendStringInfo(sql, "SELECT CASE WHEN t.here IS NULL THEN '%c' WHEN r.here IS NULL THEN '%c'"
					 " WHEN record_image_ne(ROW(%s), ROW(%s)) THEN '%c' ELSE '%c' END AS what",
					 ROW_MISSING, ROW_EXTRA, fixed(mend, "t.c"), fixed(mend, "r.c"),
					 ROW_REPLACED, ROW_DIFFERS);
	for (int i = 1; i <= mend->ncolumns; i++)
		appendStringInfo(sql, mend->is_key[i - 1]
						 ? ", coalesce(r.c%d, t.c%d) AS c%d" : ", r.c%d", i, i, i);
	if (mend->nown > 0)
		appendStringInfo(sql, ", %s", numbered("t.o", mend->nown));
	appendStringInfo(sql, " FROM (SELECT *, true AS here FROM " MASTERS_ROWS ") AS r FULL JOIN (SELECT true AS here, %s",
					 named(mend, mend->columns, mend->ncolumns, "c"));
	if (mend->nown > 0)
		appendStringInfo(sql, ", %s", named(mend, mend->own, mend->nown, "o"));
	appendStringInfo(sql, " FROM %s", mend->relation);
	pyr_layout_append_range(sql, mend->layout, true, mend->after, mend->upto);
	appendStringInfo(sql, ") AS t ON %s WHERE t.here IS NULL OR r.here IS NULL"
					 " OR (record_image_ne(ROW(%s), ROW(%s)) AND %s <> %s)",
					 same_key(mend, "r.c", "t.c"), ours, masters,
					 whole_text(mend, "t.c"), whole_text(mend, "r.c"));
}

/*
 * Compares whole rows, of equal ones the first with the first and so on.
 */
static void
append_comparison_of_rows(StringInfo sql, Mend *mend)
{
	const char *number = "row_number() OVER (PARTITION BY %s) AS n";
	char	   *ours = whole_text(mend, NULL);
	char	   *masters = whole_text(mend, "c");

	appendStringInfo(sql, "SELECT CASE WHEN t.n IS NULL THEN '%c' ELSE '%c' END AS what, %s, t.place, t.part"
					 " FROM (SELECT *, %s AS w, ",
					 ROW_MISSING, ROW_EXTRA, numbered("r.c", mend->ncolumns), masters);
	appendStringInfo(sql, number, masters);
	appendStringInfo(sql, " FROM " MASTERS_ROWS ") AS r FULL JOIN"
					 " (SELECT ctid AS place, tableoid AS part, %s AS w, ", ours);
	appendStringInfo(sql, number, ours);
	appendStringInfo(sql, " FROM %s", mend->relation);
	pyr_layout_append_range(sql, mend->layout, true, mend->after, mend->upto);
	appendStringInfoString(sql, ") AS t ON t.w = r.w AND t.n = r.n WHERE t.n IS NULL OR r.n IS NULL");
}

static void
count_wrong(Mend *mend, char what)
{
	switch (what)
	{
		case ROW_EXTRA:
			mend->nextra++;
			break;
		case ROW_MISSING:
			mend->nmissing++;
			break;
		case ROW_DIFFERS:
			mend->ndiffering++;
			break;
		case ROW_REPLACED:
			mend->nreplaced++;
			break;
	}
}

/*
 * Finds what is wrong here.
 */
static Tuplestorestate *
find_wrong_rows(Mend *mend, TupleDesc *desc)
{
	MemoryContext context = CurrentMemoryContext;
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	StringInfoData sql;
	SPIPlanPtr	plan;
	Portal		portal;
	MemoryContext fetch_context;

	initStringInfo(&sql);
	if (mend->by_key)
		append_comparison_by_key(&sql, mend);
	else
		append_comparison_of_rows(&sql, mend);
	plan = SPI_prepare(sql.data, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql.data,
			 SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, false);
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	*desc = CreateTupleDescCopy(portal->tupDesc);
	fetch_context = AllocSetContextCreate(context, "pyreplica wrong rows",
										  ALLOCSET_DEFAULT_SIZES);
	do
	{
		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		MemoryContextSwitchTo(fetch_context);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			HeapTuple	tuple = SPI_tuptable->vals[i];

			tuplestore_puttuple(store, tuple);
			count_wrong(mend, SPI_getvalue(tuple, SPI_tuptable->tupdesc, 1)[0]);
		}
		SPI_freetuptable(SPI_tuptable);
		MemoryContextReset(fetch_context);
	} while (SPI_processed > 0);
	MemoryContextSwitchTo(context);
	MemoryContextDelete(fetch_context);
	SPI_cursor_close(portal);
	SPI_freeplan(plan);
	MemoryContextSwitchTo(context);
	return store;
}

/* ---- what is done about it ---- */

/*
 * The condition that the row t is in the range, where all rows would have to be
 * fetched without it; else nothing.
 */
static const char *
within_range(Mend *mend)
{
	StringInfoData sql;

	initStringInfo(&sql);
	if (mend->layout->is_foreign)
		pyr_layout_append_found(&sql, mend->layout, mend->after, mend->upto);
	return sql.data;
}

static uint64
change(Mend *mend, const char *sql)
{
	return pyr_statement_by_key(RelationGetRelid(mend->rel), sql, 0, NULL,
								NULL, NULL);
}

static void
delete_rows(Mend *mend)
{
	bool		keeps_extra = mend->mode == PYR_COPY_BESIDE;

	if ((keeps_extra ? 0 : mend->nextra) + mend->nreplaced == 0)
		return;
	(void) change(mend, psprintf("DELETE FROM %s AS t USING " WRONG_ROWS " AS x WHERE x.what IN ('%c', '%c') AND %s%s",
								 mend->relation,
								 keeps_extra ? ROW_REPLACED : ROW_EXTRA, ROW_REPLACED,
								 mend->by_key ? same_key(mend, "x.c", NULL)
								 : "t.ctid = x.place AND t.tableoid = x.part",
								 within_range(mend)));
}

/*
 * Deletes rows that hold values which others are to get: those of the range, and
 * in a resync those beyond it.  Returns how many of the former there were, which
 * have to be inserted again.
 */
static uint64
make_room(Mend *mend)
{
	PyrNewcomers newcomers = {0};
	uint64		cleared = 0;
	StringInfoData query;
	StringInfoData where;

	initStringInfo(&query);
	for (int i = 0; i < mend->ncolumns; i++)
	{
		appendStringInfo(&query, "%sc%d AS %s", i > 0 ? ", " : "SELECT ", i + 1,
						 column_name(mend, mend->columns[i]));
		if (mend->is_key[i])
			appendStringInfo(&query, ", c%d AS pyreplica_c%d", i + 1, i + 1);
		newcomers.known = bms_add_member(newcomers.known, mend->columns[i]);
		if (mend->by_key && mend->is_key[i])
			newcomers.key = bms_add_member(newcomers.key, mend->columns[i]);
	}
	appendStringInfo(&query, " FROM " WRONG_ROWS " WHERE what <> '%c'", ROW_EXTRA);
	newcomers.query = query.data;

	if (mend->ndiffering > 0)
	{
		initStringInfo(&where);
		pyr_layout_append_found(&where, mend->layout, mend->after, mend->upto);

		/* a row is not in its own way */
		appendStringInfo(&where, " AND NOT (%s)", same_key(mend, "n.pyreplica_c", NULL));
		cleared = pyr_collision_clear(mend->rel, &newcomers, where.data);
	}
	if (mend->mode == PYR_COPY_RESYNC && mend->upto != NULL)
	{
		initStringInfo(&where);
		pyr_layout_append_found(&where, mend->layout, mend->upto, NULL);
		(void) pyr_collision_clear(mend->rel, &newcomers, where.data);
	}
	return cleared;
}

static void
update_rows(Mend *mend)
{
	StringInfoData set;

	if (mend->ndiffering == 0)
		return;
	initStringInfo(&set);
	for (int i = 0; i < mend->ncolumns; i++)
	{
		if (!mend->is_fixed[i])
			appendStringInfo(&set, "%s%s = x.c%d", set.len > 0 ? ", " : "",
							 column_name(mend, mend->columns[i]), i + 1);
	}
	(void) change(mend, psprintf("UPDATE %s AS t SET %s FROM " WRONG_ROWS " AS x WHERE x.what = '%c' AND %s%s",
								 mend->relation, set.data, ROW_DIFFERS,
								 same_key(mend, "x.c", NULL), within_range(mend)));
}

/*
 * Inserts rows that were deleted to be replaced, with what only the slave has of
 * them.  "cleared" were in the way of others.
 */
static void
insert_again(Mend *mend, uint64 cleared)
{
	const char *comma = mend->nown > 0 ? ", " : "";
	uint64		inserted;

	if (cleared + mend->nreplaced == 0)
		return;
	inserted = change(mend, psprintf("INSERT INTO %s (%s%s%s) OVERRIDING SYSTEM VALUE SELECT %s%s%s FROM " WRONG_ROWS " AS x"
									 " WHERE x.what IN ('%c', '%c') AND NOT EXISTS (SELECT FROM %s AS t WHERE %s%s)",
									 mend->layout->here,
									 named(mend, mend->columns, mend->ncolumns, NULL),
									 comma, named(mend, mend->own, mend->nown, NULL),
									 numbered("x.c", mend->ncolumns),
									 comma, numbered("x.o", mend->nown),
									 ROW_REPLACED, ROW_DIFFERS, mend->relation,
									 same_key(mend, "x.c", NULL),
									 within_range(mend)));

	/* what was in the way were rows that are wrong; if not, nothing can be right */
	if (cleared > 0 && inserted < cleared + mend->nreplaced)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("the master's rows of table %s do not comply with a unique or exclusion constraint of the slave's",
						mend->layout->here),
				 errhint("Drop the constraint on the slave, or create it on the master.")));
}

static void
insert_missing(Mend *mend)
{
	if (mend->nmissing == 0)
		return;
	(void) change(mend, psprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM " WRONG_ROWS " AS x WHERE x.what = '%c'",
								 mend->layout->here,
								 named(mend, mend->columns, mend->ncolumns, NULL),
								 numbered("x.c", mend->ncolumns), ROW_MISSING));
}

/*
 * Without an index that says so, rows of one key have to be looked for.
 */
static void
check_key(Mend *mend)
{
	MemoryContext context = CurrentMemoryContext;
	StringInfoData key;

	if (!mend->by_key || mend->layout->is_sorted ||
		pyr_key_is_unique(mend->rel, mend->layout->key_attnums,
						  mend->layout->nkey, false))
		return;
	initStringInfo(&key);
	for (int i = 0; i < mend->ncolumns; i++)
	{
		if (mend->is_key[i])
			appendStringInfo(&key, "%sc%d", key.len > 0 ? ", " : "", i + 1);
	}
	if (SPI_execute(psprintf("SELECT FROM " MASTERS_ROWS " GROUP BY %s HAVING count(*) > 1 LIMIT 1",
							 key.data), false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look at the master's rows");
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("rows of %s cannot be told apart by their key",
						mend->layout->here),
				 errhint("Empty it on the slave, drop the master's log trigger and create it again.")));
}

/*
 * Makes the range of the slave's relation equal to what the master's COPY brings.
 * As the relation's owner.  In a resync, rows beyond the range may be deleted; and
 * what is only here is not, if it may be of other tables.
 */
void
pyr_mend_range(PyrLayout *layout, Relation rel, CopyFromState master,
			   PyrCopyMode mode, char **after, char **upto,
			   void (*between) (void))
{
	static EphemeralNamedRelationData masters_rows;
	static EphemeralNamedRelationData wrong_rows;
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pyreplica mend",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	Mend		mend = {
		.layout = layout, .rel = rel, .relation = pyr_layout_relation(layout),
		.after = after, .upto = upto, .mode = mode
	};
	TupleDesc	desc;
	Tuplestorestate *masters;
	Tuplestorestate *wrong;

	look_at_columns(&mend);
	desc = describe_masters_rows(&mend);
	masters = read_masters_rows(&mend, master, desc);
	register_rows(&masters_rows, MASTERS_ROWS, desc, masters);
	check_key(&mend);
	wrong = find_wrong_rows(&mend, &desc);
	(void) SPI_unregister_relation(MASTERS_ROWS);
	tuplestore_end(masters);
	between();

	if (tuplestore_tuple_count(wrong) > 0)
	{
		uint64		cleared;

		register_rows(&wrong_rows, WRONG_ROWS, desc, wrong);
		delete_rows(&mend);
		cleared = make_room(&mend);
		between();
		update_rows(&mend);
		between();
		insert_again(&mend, cleared);
		insert_missing(&mend);
		(void) SPI_unregister_relation(WRONG_ROWS);
	}
	tuplestore_end(wrong);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
}

/* ---- changes while the table is resynced ---- */

/* a change's values, as parameters of a query */
typedef struct Parameters
{
	PyrTarget  *target;
	int			encoding;
	int			n;
	Oid		   *types;
	Datum	   *values;
	char	   *nulls;
} Parameters;

/*
 * Makes the value, which goes to that column, a parameter; returns how it is
 * written.
 */
static char *
add_parameter(Parameters *parameters, int column, const PyrValue *value)
{
	PyrTargetColumn *of = &parameters->target->columns[column];
	int			i = parameters->n++;

	parameters->types[i] = of->param_type;
	parameters->nulls[i] = value->len < 0 ? 'n' : ' ';
	if (value->len >= 0)
		parameters->values[i] = pyr_target_datum(of, value, parameters->encoding);
	return psprintf("CAST($%d AS %s)", i + 1,
					format_type_extended(of->type, of->typmod,
										 FORMAT_TYPE_TYPEMOD_GIVEN |
										 FORMAT_TYPE_FORCE_QUALIFY));
}

/*
 * The row as the change leaves it, as a query: what is set, and the rest, if it is
 * an update, from the row that is here.
 */
static PyrNewcomers
newcomer(PyrBinding *binding, PyrChange *change, int encoding)
{
	PyrTarget  *target = binding->target;
	PyrForm    *form = binding->merge.form;
	bool		is_update = change->shape->verb == PYR_UPDATE;
	int			max = target->merge->nkey + form->ncolumns + 1;
	Parameters	parameters = {
		.target = target, .encoding = encoding,
		.types = palloc0(max * sizeof(Oid)),
		.values = palloc0(max * sizeof(Datum)),
		.nulls = palloc0(max)
	};
	PyrNewcomers newcomers = {0};
	StringInfoData query;

	initStringInfo(&query);
	for (int i = 0; i < target->ncolumns; i++)
	{
		PyrTargetColumn *column = &target->columns[i];
		int			slot = form->slots[i];
		const char *name = quote_identifier(column->name);

		if (column->is_dropped || column->is_generated ||
			(slot < 0 && !is_update))
			continue;
		appendStringInfo(&query, "%s%s AS %s", query.len > 0 ? ", " : "SELECT ",
						 slot < 0 ? psprintf("o.%s", name)
						 : add_parameter(&parameters, i,
										 &change->values[binding->merge.from[slot]]),
						 name);
		newcomers.known = bms_add_member(newcomers.known, i + 1);
	}
	for (int i = 0; i < target->merge->nkey; i++)
	{
		int			key = target->merge->key[i];
		PyrTargetColumn *column = &target->columns[key];

		newcomers.key = bms_add_member(newcomers.key, key + 1);
		if (!is_update)
			continue;
		if (i == 0)
			appendStringInfo(&query, " FROM %s%s AS o",
							 target->relkind == RELKIND_RELATION ? "ONLY " : "",
							 quote_qualified_identifier(target->schema, target->table));
		appendStringInfo(&query, "%so.%s %s %s", i == 0 ? " WHERE " : " AND ",
						 quote_identifier(column->name),
						 pyr_statement_operator(lookup_type_cache(column->type, TYPECACHE_EQ_OPR)->eq_opr),
						 add_parameter(&parameters, key, &change->values[i]));
	}
	newcomers.query = query.data;
	newcomers.nparams = parameters.n;
	newcomers.types = parameters.types;
	newcomers.values = parameters.values;
	newcomers.nulls = parameters.nulls;
	return newcomers;
}

/*
 * Appends the condition that a row is beyond the table's bookmark.
 */
static void
append_beyond_bookmark(StringInfo sql, PyrTable *table, PyrTarget *target)
{
	int			nkey = target->merge->nkey;
	PyrLayout	layout = {
		.nkey = nkey,
		.key = palloc(nkey * sizeof(char *)),
		.key_types_here = palloc(nkey * sizeof(char *))
	};

	for (int i = 0; i < nkey; i++)
	{
		PyrTargetColumn *column = &target->columns[target->merge->key[i]];

		layout.key[i] = column->name;
		layout.key_types_here[i] = format_type_extended(column->type, -1,
														FORMAT_TYPE_TYPEMOD_GIVEN |
														FORMAT_TYPE_FORCE_QUALIFY);
	}
	pyr_layout_append_found(sql, &layout, table->bookmark, NULL);
}

/*
 * A change of a row up to the bookmark collides with another row: if that is a
 * stale one beyond the bookmark, of a table being resynced, deletes it.  True:
 * something was deleted.
 */
bool
pyr_mend_make_room(PyrTable *table, PyrBinding *binding, PyrChange *change,
				   int encoding)
{
	PyrTarget  *target = binding->target;
	PyrNewcomers newcomers;
	PyrIdentity before;
	StringInfoData where;
	Relation	rel;
	uint64		cleared;

	if (!pyr_table_has_stale_rows(table) ||
		target->merge->nkey != table->nbookmark ||
		(change->shape->verb != PYR_INSERT && change->shape->verb != PYR_UPDATE))
		return false;
	before = pyr_local_become(target->owner);
	rel = table_open(target->relid, RowExclusiveLock);
	newcomers = newcomer(binding, change, encoding);
	initStringInfo(&where);
	append_beyond_bookmark(&where, table, target);
	cleared = pyr_collision_clear(rel, &newcomers, where.data);
	table_close(rel, NoLock);
	pyr_local_become_again(before);
	return cleared > 0;
}
