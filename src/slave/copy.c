/*-------------------------------------------------------------------------
 *
 * copy.c
 *	  Brings the rows that a table has on the master, chunk by chunk.
 *
 * A chunk is a range of keys, in the order of the key.  It is read on the
 * master in the same transaction as a window, so it shows the table as it is at
 * the window's end; it is applied after the window's changes and committed
 * together with them, the position, and the key of its last row: the bookmark.
 * So whatever happens, at each commit the rows up to the bookmark equal the
 * master's, and there are none (or, when a table is copied over what is there,
 * old ones) beyond.
 *
 * Changes of rows beyond the bookmark are passed over: their chunk will bring
 * what they made of the rows.  An update that takes a row across the bookmark
 * becomes an insert or a delete.  (For that, updates of keys have all columns.)
 *
 * The slave has to compare keys with the bookmark as the master sorts them.
 * Where it cannot be sure to, because a key column's type or collation sorts
 * in its own way, the table is copied as a single chunk.
 *
 * Reading is the master's COPY, writing the slave's: rows are handed from one to
 * the other as they are, in binary if all columns have the same type here that
 * is written alike in all versions, else as text.
 *
 * The next chunk is fetched while one is applied.  How many rows it has follows
 * from how long the ones before took: changes of other tables must not wait
 * long.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/values.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_relation.h"
#include "slave/copy.h"
#include "slave/local.h"
#include "slave/target.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

/* a chunk should take so long to be applied */
#define CHUNK_MS		100
#define CHUNK_ROWS_FIRST 2000
#define CHUNK_ROWS_MIN	100
#define CHUNK_ROWS_MAX	1000000

/* what COPY begins with in binary: a signature, flags, and an empty extension */
static const char binary_header[] = "PGCOPY\n\377\r\n\0" "\0\0\0\0" "\0\0\0\0";
#define BINARY_HEADER_BYTES	19
#define BINARY_TRAILER_BYTES 2

/* the table being copied, as both sides have it */
typedef struct Copy
{
	MemoryContext context;
	PyrTable   *table;
	char	   *described;		/* what the master said of it */
	Oid			relid;			/* here */
	Oid			owner;
	int			nkey;
	char	  **key;
	char	  **key_types;
	AttrNumber *key_attnums;	/* here */
	List	   *columns;		/* names, of what is copied */
	bool		is_sorted;		/* the key can be compared as on the master */
	bool		is_binary;
	int64		chunk_rows;

	/* the chunk that has come, and is being applied or will be */
	char	  **last;			/* its last row's key; NULL: it has no row */
	bool		is_last;		/* it is the table's last one */
} Copy;

typedef enum AskKind
{
	ASK_LIST,					/* which tables there are */
	ASK_DESCRIPTION,			/* what the next one looks like */
	ASK_ROWS					/* a chunk of it; and again how it looks */
} AskKind;

/* what a supplement was asked for */
typedef struct Ask
{
	AskKind		kind;
	PyrTable   *table;
	int			nafter;
	char	  **after;			/* rows past this key; NULL: from the first */
	int64		limit;
} Ask;

static Copy *copy = NULL;

static void
end_copy(void)
{
	if (copy != NULL)
		MemoryContextDelete(copy->context);
	copy = NULL;
}

/*
 * Whether the master is to be asked for something.
 */
bool
pyr_copy_is_due(void)
{
	return pyr_tables_list_is_due() ||
		pyr_tables_next() != NULL;
}

static const char *
qualified(PyrTable *table)
{
	return quote_qualified_identifier(NameStr(table->name.schema),
									  NameStr(table->name.table));
}

static char *
describe_sql(const char *schema, PyrTable *table)
{
	return psprintf("SELECT key, key_types, key_orders, columns, types::text[] FROM %s.py_log_describe(%s, %s);",
					schema,
					quote_literal_cstr(NameStr(table->name.schema)),
					quote_literal_cstr(NameStr(table->name.table)));
}

/*
 * Appends the key columns as a list; with types, of constants.
 */
static void
append_key(StringInfo sql, Copy *of, char **constants)
{
	appendStringInfoChar(sql, '(');
	for (int i = 0; i < of->nkey; i++)
	{
		if (i > 0)
			appendStringInfoString(sql, ", ");
		if (constants != NULL)
			appendStringInfo(sql, "%s::%s", quote_literal_cstr(constants[i]),
							 of->key_types[i]);
		else
			appendStringInfoString(sql, quote_identifier(of->key[i]));
	}
	appendStringInfoChar(sql, ')');
}

/*
 * COPY of the rows after that key.
 */
static void
append_copy_sql(StringInfo sql, Copy *of, Ask *ask)
{
	ListCell   *cell;
	const char *comma = "";

	appendStringInfoString(sql, "COPY (SELECT ");
	foreach(cell, of->columns)
	{
		appendStringInfo(sql, "%s%s", comma, quote_identifier(lfirst(cell)));
		comma = ", ";
	}
	appendStringInfo(sql, " FROM ONLY %s", qualified(of->table));
	if (ask->after != NULL)
	{
		appendStringInfoString(sql, " WHERE ");
		append_key(sql, of, NULL);
		appendStringInfoString(sql, " > ");
		append_key(sql, of, ask->after);
	}
	if (of->is_sorted)
	{
		appendStringInfoString(sql, " ORDER BY ");
		for (int i = 0; i < of->nkey; i++)
			appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
							 quote_identifier(of->key[i]));
		appendStringInfo(sql, " LIMIT " INT64_FORMAT, ask->limit);
	}
	appendStringInfo(sql, ") TO STDOUT (FORMAT %s)",
					 of->is_binary ? "binary" : "text");
}

/*
 * What is to be asked for with the next window; NULL: nothing.
 */
PyrSupplement *
pyr_copy_ask(const char *schema)
{
	PyrTable   *next;
	Ask		   *ask;
	PyrSupplement *supplement;
	MemoryContext oldcontext;
	StringInfoData sql;
	char	  **after;

	/* a chunk on its way to be applied may be the last of its table */
	next = copy != NULL && copy->is_last ? NULL : pyr_tables_next();
	if (next == NULL && !pyr_tables_list_is_due())
		return NULL;

	supplement = pyr_supplement_create();
	oldcontext = MemoryContextSwitchTo(supplement->context);
	supplement->what = ask = palloc0(sizeof(Ask));
	initStringInfo(&sql);
	if (pyr_tables_list_is_due())
	{
		ask->kind = ASK_LIST;
		appendStringInfoString(&sql, pyr_tables_list_sql(schema));
	}
	else
	{
		ask->table = next;
		ask->kind = copy != NULL && copy->table == next &&
			next->state == PYR_TABLE_COPYING ? ASK_ROWS : ASK_DESCRIPTION;
		appendStringInfoString(&sql, describe_sql(schema, next));
	}
	if (ask->kind == ASK_ROWS)
	{
		after = copy->last != NULL ? copy->last : next->bookmark;
		ask->limit = copy->chunk_rows;
		if (after != NULL)
		{
			ask->nafter = copy->nkey;
			ask->after = palloc(copy->nkey * sizeof(char *));
			for (int i = 0; i < copy->nkey; i++)
				ask->after[i] = pstrdup(after[i]);
		}
		append_copy_sql(&sql, copy, ask);
	}
	supplement->sql = sql.data;
	MemoryContextSwitchTo(oldcontext);
	return supplement;
}

/*
 * An array in text form to strings; NULL elements are NULL pointers.
 */
static char **
split_array(const char *array_text, int *n)
{
	Oid			input;
	Oid			ioparam;
	Datum		array;
	Datum	   *elements;
	bool	   *isnull;
	char	  **strings;

	*n = 0;
	if (array_text == NULL)
		return NULL;
	getTypeInputInfo(TEXTARRAYOID, &input, &ioparam);
	array = OidInputFunctionCall(input, unconstify(char *, array_text), ioparam, -1);
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, &isnull, n);
	strings = palloc((*n + 1) * sizeof(char *));
	for (int i = 0; i < *n; i++)
		strings[i] = isnull[i] ? NULL : TextDatumGetCString(elements[i]);
	return strings;
}

static Oid
find_relation(PyrTable *table)
{
	Oid			namespace = get_namespace_oid(NameStr(table->name.schema), true);
	Oid			relid = InvalidOid;

	if (OidIsValid(namespace))
		relid = get_relname_relid(NameStr(table->name.table), namespace);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist on the slave",
						NameStr(table->name.schema), NameStr(table->name.table)),
				 errhint("Create it here as the master has it (pg_dump --schema-only); it will then be copied.")));
	return relid;
}

/*
 * A table to be copied to for the first time has to be empty: what is in it may
 * be of value, or be the master's rows already.
 */
static void
check_empty(PyrTable *table)
{
	if (SPI_execute(psprintf("SELECT FROM %s LIMIT 1", qualified(table)),
					false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look into the table");
	if (SPI_processed > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" is not empty on the slave",
						NameStr(table->name.schema), NameStr(table->name.table)),
				 errhint("Empty it here, or run SELECT pyreplica_resync(%s) to have its rows made equal to the master's. (A slave that was restored from a dump of the master has to start with pyreplica.copy_data = off.)",
						 quote_literal_cstr(qualified(table)))));
}

/*
 * Whether key column i sorts here as it does on the master.
 */
static bool
sorts_alike(Form_pg_attribute att, const char *order)
{
	Oid			types[2] = {OIDOID, OIDOID};
	Datum		values[2] = {
		ObjectIdGetDatum(att->atttypid), ObjectIdGetDatum(att->attcollation)
	};
	MemoryContext context = CurrentMemoryContext;
	char	   *here;

	if (order == NULL)
		return false;
	if (SPI_execute_with_args(psprintf("SELECT %s.py_log_order($1, $2)",
									   pyr_local_schema()),
							  2, types, values, NULL, true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not look up how values are sorted");
	here = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	return here != NULL && strcmp(here, order) == 0;
}

static Form_pg_attribute
find_attribute(PyrTable *table, TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of the master's table \"%s.%s\" does not exist on the slave",
					name, NameStr(table->name.schema), NameStr(table->name.table)),
			 errhint("Add the column to the slave's table.")));
	return NULL;
}

/*
 * Compares what the master says of the table with what is here.
 */
static void
fill_copy(Copy *of, char **row)
{
	Relation	rel = table_open(of->relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	int			ncolumns;
	int			n;
	char	  **orders;
	char	  **columns;
	char	  **types;

	of->owner = rel->rd_rel->relowner;
	of->key = split_array(row[0], &of->nkey);
	of->key_types = split_array(row[1], &n);
	orders = split_array(row[2], &n);
	columns = split_array(row[3], &ncolumns);
	types = split_array(row[4], &n);

	of->is_sorted = of->nkey > 0;
	of->key_attnums = palloc((of->nkey + 1) * sizeof(AttrNumber));
	for (int i = 0; i < of->nkey; i++)
	{
		Form_pg_attribute att = find_attribute(of->table, desc, of->key[i]);

		of->key_attnums[i] = att->attnum;
		of->is_sorted = of->is_sorted && sorts_alike(att, orders[i]);
	}

	of->is_binary = true;
	for (int i = 0; i < ncolumns; i++)
	{
		Form_pg_attribute att = find_attribute(of->table, desc, columns[i]);
		Oid			type = (Oid) strtoul(types[i], NULL, 10);

		if (att->attgenerated != '\0')
			continue;
		of->columns = lappend(of->columns, columns[i]);
		if (att->atttypid != type || pyr_wire_of_type(type) == PYR_WIRE_TEXT)
			of->is_binary = false;
	}
	table_close(rel, NoLock);
}

static char *
join_row(char **row)
{
	StringInfoData joined;

	initStringInfo(&joined);
	for (int i = 0; i < 5; i++)
		appendStringInfo(&joined, "%s\n", row[i] ? row[i] : "");
	return joined.data;
}

/*
 * Begins to copy the table, or goes on after a restart.
 */
static void
begin_copy(PyrTable *table, char **row)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "pyreplica copy",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);

	end_copy();
	copy = palloc0(sizeof(Copy));
	copy->context = context;
	copy->table = table;
	copy->described = join_row(row);
	copy->relid = find_relation(table);
	copy->chunk_rows = CHUNK_ROWS_FIRST;
	fill_copy(copy, row);
	MemoryContextSwitchTo(oldcontext);

	if (table->state != PYR_TABLE_WAITING)
		return;
	if (!table->is_resync)
		check_empty(table);
	pyr_table_set_state(table, PYR_TABLE_COPYING);
	table->started_at = GetCurrentTimestamp();
	ereport(LOG,
			(errmsg("pyreplica %s: copying table \"%s.%s\"%s", pyr_local_replica(),
					NameStr(table->name.schema), NameStr(table->name.table),
					copy->is_sorted ? "" : " in one piece"),
			 copy->is_sorted ? 0
			 : errdetail("The order of its key may differ between master and slave, so it cannot be copied in chunks."),
			 errhidestmt(true), errhidecontext(true)));
}

/* what CopyFrom reads; its callback has no argument */
static struct
{
	PyrSupplement *supplement;
	const char *data;
	size_t		left;
	void		(*between) (void);
}			source;

/* a copy_data_source_cb */
static int
read_source(void *out, int minread pg_attribute_unused(), int maxread)
{
	int			nread = 0;

	while (nread < maxread)
	{
		size_t		n = Min((size_t) (maxread - nread), source.left);

		if (n > 0)
		{
			memcpy((char *) out + nread, source.data, n);
			source.data += n;
			source.left -= n;
			nread += n;
			continue;
		}
		if (source.supplement == NULL)
			break;
		source.between();
		CHECK_FOR_INTERRUPTS();
		if (!pyr_supplement_next(source.supplement, &source.data, &source.left))
			source.supplement = NULL;
	}
	return nread;
}

static CopyFromState
begin_copy_from(Relation rel)
{
	ParseState *pstate = make_parsestate(NULL);
	List	   *options;
	List	   *names = NIL;
	ListCell   *cell;

	foreach(cell, copy->columns)
		names = lappend(names, makeString(lfirst(cell)));
	options = list_make1(makeDefElem("format",
									 (Node *) makeString(copy->is_binary ? "binary" : "text"),
									 -1));
	(void) addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock, NULL,
										 false, false);
	return pyr_begin_copy_from(pstate, rel, read_source, names, options);
}

/*
 * Number of rows in what COPY sent: each came as a message, and in binary there
 * is one for the end.
 */
static int64
chunk_nrows(PyrSupplement *supplement)
{
	return supplement->nmessages -
		(copy->is_binary && supplement->nmessages > 0 ? 1 : 0);
}

/*
 * The key of the chunk's last row, as text; in the current memory context.  The
 * server's COPY reads it, out of a stream that has nothing but this row.
 */
static char **
last_key(PyrSupplement *supplement)
{
	StringInfoData stream;
	StringInfo	row = &supplement->last[copy->is_binary ? 1 : 0];
	Relation	rel = table_open(copy->relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	ExprContext *econtext = CreateStandaloneExprContext();
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *isnull = palloc(desc->natts * sizeof(bool));
	char	  **key = palloc(copy->nkey * sizeof(char *));
	CopyFromState state;

	initStringInfo(&stream);
	if (copy->is_binary && chunk_nrows(supplement) > 1)
		appendBinaryStringInfo(&stream, binary_header, BINARY_HEADER_BYTES);
	appendBinaryStringInfo(&stream, row->data, row->len);
	if (copy->is_binary)
		appendBinaryStringInfo(&stream, "\377\377", BINARY_TRAILER_BYTES);
	source.supplement = NULL;
	source.data = stream.data;
	source.left = stream.len;

	state = begin_copy_from(rel);
	if (!NextCopyFrom(state, econtext, values, isnull))
		elog(ERROR, "the last row of a chunk cannot be read");
	for (int i = 0; i < copy->nkey; i++)
	{
		AttrNumber	attnum = copy->key_attnums[i];
		Oid			output;
		bool		is_varlena;

		if (isnull[attnum - 1])
			elog(ERROR, "the key of a row is null");
		getTypeOutputInfo(TupleDescAttr(desc, attnum - 1)->atttypid, &output,
						  &is_varlena);
		key[i] = OidOutputFunctionCall(output, values[attnum - 1]);
	}
	EndCopyFrom(state);
	FreeExprContext(econtext, true);
	table_close(rel, NoLock);
	return key;
}

/*
 * Whether the chunk is the one that follows what is here, of a table that has
 * not changed meanwhile.
 */
static bool
is_next_chunk(PyrSupplement *supplement)
{
	Ask		   *ask = supplement->what;
	PyrTable   *table = ask->table;

	if (ask->kind != ASK_ROWS || copy == NULL || copy->table != table ||
		table->state != PYR_TABLE_COPYING || supplement->rows == NIL ||
		ask->nafter != table->nbookmark)
		return false;
	for (int i = 0; i < ask->nafter; i++)
	{
		if (strcmp(ask->after[i], table->bookmark[i]) != 0)
			return false;
	}
	return strcmp(join_row(linitial(supplement->rows)), copy->described) == 0;
}

/*
 * A chunk has come: finds out where it ends, so that the next one can be asked
 * for while it is applied.  False: that cannot be done.  In a transaction of
 * its own.
 */
bool
pyr_copy_look_ahead(PyrSupplement *supplement)
{
	Ask		   *ask = supplement->what;
	MemoryContext context = CurrentMemoryContext;
	volatile bool is_good = true;

	if (copy == NULL || !is_next_chunk(supplement))
		return false;
	copy->last = NULL;
	copy->is_last = !copy->is_sorted ||
		chunk_nrows(supplement) < ask->limit;
	if (copy->is_last)
		return true;

	PG_TRY();
	{
		pyr_local_begin_transaction();
		MemoryContextSwitchTo(copy->context);
		copy->last = last_key(supplement);
		pyr_local_commit_transaction();
	}
	PG_CATCH();
	{
		/* it will be met again when the chunk is applied, and told then */
		AbortCurrentTransaction();
		FlushErrorState();
		copy->last = NULL;
		is_good = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return is_good;
}

/*
 * Takes away what is here of the chunk's range.
 */
static void
delete_range(Ask *ask)
{
	StringInfoData sql;
	const char *word = "WHERE";

	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM %s ", qualified(copy->table));
	if (ask->after != NULL)
	{
		appendStringInfo(&sql, "%s ", word);
		append_key(&sql, copy, NULL);
		appendStringInfoString(&sql, " > ");
		append_key(&sql, copy, ask->after);
		word = " AND";
	}
	if (!copy->is_last)
	{
		appendStringInfo(&sql, "%s ", word);
		append_key(&sql, copy, NULL);
		appendStringInfoString(&sql, " <= ");
		append_key(&sql, copy, copy->last);
	}
	if (SPI_execute(sql.data, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not delete the rows of a chunk");
}

/*
 * Writes the chunk's rows into the table.
 */
static void
write_rows(PyrSupplement *supplement)
{
	PyrIdentity before = pyr_local_become(copy->owner);
	Relation	rel;
	CopyFromState state;

	if (copy->table->is_resync)
		delete_range(supplement->what);
	rel = table_open(copy->relid, RowExclusiveLock);
	source.supplement = supplement;
	source.data = NULL;
	source.left = 0;
	state = begin_copy_from(rel);
	(void) CopyFrom(state);
	EndCopyFrom(state);
	table_close(rel, NoLock);
	CommandCounterIncrement();
	pyr_local_become_again(before);
}

/*
 * The next chunks should take as long as they may.
 */
static void
adapt_chunk(int64 nrows, TimestampTz begin)
{
	long		ms = TimestampDifferenceMilliseconds(begin, GetCurrentTimestamp());
	double		factor = (double) CHUNK_MS / Max(ms, 1);

	factor = Max(Min(factor, 4.0), 0.25);
	copy->chunk_rows = Max(Min((int64) (nrows * factor), CHUNK_ROWS_MAX),
						   CHUNK_ROWS_MIN);
}

static void
finish_table(PyrTable *table)
{
	pyr_table_set_state(table, PYR_TABLE_READY);
	table->is_resync = false;
	table->finished_at = GetCurrentTimestamp();
	pyr_table_set_bookmark(table, NULL, 0);
	ereport(LOG,
			(errmsg("pyreplica %s: copied table \"%s.%s\": " INT64_FORMAT " rows in %.1f s",
					pyr_local_replica(),
					NameStr(table->name.schema), NameStr(table->name.table),
					table->rows_copied,
					(table->finished_at - table->started_at) / 1000000.0),
			 errhidestmt(true), errhidecontext(true)));
}

static void
apply_chunk(PyrSupplement *supplement)
{
	PyrTable   *table = copy->table;
	TimestampTz begin = GetCurrentTimestamp();
	int64		nrows = chunk_nrows(supplement);

	if (!copy->is_last && copy->last == NULL)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(copy->context);

		copy->last = last_key(supplement);
		MemoryContextSwitchTo(oldcontext);
	}
	write_rows(supplement);
	table->rows_copied += nrows;
	pyr_table_clear_error(table);
	if (copy->is_last)
		finish_table(table);
	else
		pyr_table_set_bookmark(table, copy->last, copy->nkey);
	pyr_table_store(table);
	adapt_chunk(nrows, begin);
	if (table->state == PYR_TABLE_READY)
		end_copy();
}

/*
 * Does what the supplement is for.
 */
static void
apply_supplement(PyrSupplement *supplement)
{
	Ask		   *ask = supplement->what;

	if (ask->kind == ASK_LIST)
		pyr_tables_take_list(supplement->rows);
	else if (ask->table->state != PYR_TABLE_WAITING &&
			 ask->table->state != PYR_TABLE_COPYING)
		return;
	else if (supplement->rows == NIL)
		pyr_tables_want_list();	/* it has no log trigger any more */
	else if (is_next_chunk(supplement))
		apply_chunk(supplement);
	else if (ask->kind == ASK_DESCRIPTION ||
			 copy == NULL || copy->table != ask->table ||
			 strcmp(join_row(linitial(supplement->rows)), copy->described) != 0)
	{
		begin_copy(ask->table, linitial(supplement->rows));
		pyr_table_clear_error(ask->table);
		pyr_table_store(ask->table);
	}
}

/*
 * Whether the error is no fault of the table.
 */
static bool
is_of_the_system(int sqlerrcode)
{
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);

	return category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR);
}

/*
 * Takes in what came with a window whose changes have just been applied, in the
 * same transaction.  If that fails because of the table, the table alone
 * suffers.
 */
void
pyr_copy_apply(PyrSupplement *supplement, void (*between) (void))
{
	Ask		   *ask = supplement->what;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	PyrTable	before = {0};
	ErrorData  *volatile error = NULL;

	source.between = between;
	if (ask->table != NULL)
		before = *ask->table;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		apply_supplement(supplement);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (ask->table == NULL || is_of_the_system(error->sqlerrcode) ||
			ask->table->bookmark != before.bookmark)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (copy != NULL)
		copy->last = NULL;

	if (error != NULL)
	{
		end_copy();
		pyr_table_set_state(ask->table, before.state);
		ask->table->rows_copied = before.rows_copied;
		ask->table->started_at = before.started_at;
		pyr_table_fail(ask->table, error);
	}
}

/*
 * The master refused what was asked for.
 */
void
pyr_copy_refused(PyrSupplement *supplement, ErrorData *error)
{
	Ask		   *ask = supplement->what;

	if (ask->table == NULL || is_of_the_system(error->sqlerrcode))
		ReThrowError(error);
	end_copy();
	pyr_local_begin_transaction();
	pyr_table_fail(ask->table, error);
	pyr_local_commit_transaction();
}

/*
 * What is being copied, for people; NULL: nothing.
 */
char *
pyr_copy_progress(void)
{
	if (copy == NULL)
		return NULL;
	return psprintf("copying %s: " INT64_FORMAT " of about " INT64_FORMAT " rows",
					qualified(copy->table), copy->table->rows_copied,
					Max(copy->table->rows_expected, copy->table->rows_copied));
}

/* ---- changes while the table is copied ---- */

/* a table's bookmark, as values that keys can be compared with */
typedef struct Bookmark
{
	MemoryContext context;
	PyrTarget  *target;			/* whose parameter types they have */
	int64		rows_copied;	/* when it was where it is */
	Datum	   *values;
	FmgrInfo   *compare;
	Oid		   *collations;
} Bookmark;

/* what an update's shape is when it crosses the bookmark; hangs on the shape */
typedef struct Derived
{
	PyrShape	insert;
	int		   *from;			/* where in the update its values are */
	PyrShape	delete;
} Derived;

static Bookmark *
get_bookmark(PyrTable *table, PyrTarget *target)
{
	Bookmark   *bookmark = table->user;
	MemoryContext oldcontext;
	int			nkey = target->merge->nkey;

	if (bookmark != NULL && bookmark->target == target &&
		bookmark->rows_copied == table->rows_copied)
		return bookmark;
	if (bookmark == NULL)
	{
		bookmark = MemoryContextAllocZero(TopMemoryContext, sizeof(Bookmark));
		bookmark->context = AllocSetContextCreate(TopMemoryContext,
												  "pyreplica bookmark",
												  ALLOCSET_SMALL_SIZES);
		table->user = bookmark;
	}
	if (nkey != table->nbookmark)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the key of table \"%s.%s\" has changed while it was copied",
						target->schema, target->table),
				 errhint("Run SELECT pyreplica_resync(%s).",
						 quote_literal_cstr(qualified(table)))));

	bookmark->target = NULL;
	MemoryContextReset(bookmark->context);
	oldcontext = MemoryContextSwitchTo(bookmark->context);
	bookmark->values = palloc(nkey * sizeof(Datum));
	bookmark->compare = palloc(nkey * sizeof(FmgrInfo));
	bookmark->collations = palloc(nkey * sizeof(Oid));
	for (int i = 0; i < nkey; i++)
	{
		PyrTargetColumn *column = &target->columns[target->merge->key[i]];
		TypeCacheEntry *type = lookup_type_cache(column->param_type,
												 TYPECACHE_CMP_PROC);
		Oid			input;
		Oid			ioparam;

		getTypeInputInfo(column->param_type, &input, &ioparam);
		bookmark->values[i] = OidInputFunctionCall(input, table->bookmark[i],
												   ioparam, -1);
		fmgr_info_cxt(type->cmp_proc, &bookmark->compare[i], bookmark->context);
		bookmark->collations[i] = column->collation;
	}
	MemoryContextSwitchTo(oldcontext);
	bookmark->target = target;
	bookmark->rows_copied = table->rows_copied;
	return bookmark;
}

/*
 * Whether the key is that of a row up to the bookmark.  "where" tells which of
 * the values are the key; NULL: the first ones.
 */
static bool
is_here(Bookmark *bookmark, const PyrValue *values, const int *where,
		int encoding)
{
	PyrTarget  *target = bookmark->target;

	for (int i = 0; i < target->merge->nkey; i++)
	{
		const PyrValue *value = &values[where ? where[i] : i];
		PyrTargetColumn *column = &target->columns[target->merge->key[i]];
		int			result;

		if (value->len < 0)
			return false;
		result = DatumGetInt32(FunctionCall2Coll(&bookmark->compare[i],
												 bookmark->collations[i],
												 pyr_target_datum(column, value, encoding),
												 bookmark->values[i]));
		if (result != 0)
			return result < 0;
	}
	return true;
}

/*
 * The update's shape as that of an insert, and of a delete.
 */
static Derived *
derive(PyrBinding *binding)
{
	PyrShape   *update = binding->shape;
	int			nkey = update->nkey;
	Derived    *derived = update->derived;
	MemoryContext oldcontext;

	if (derived != NULL)
		return derived;

	/* where shapes live */
	oldcontext = MemoryContextSwitchTo(GetMemoryChunkContext(update->columns));
	derived = palloc0(sizeof(Derived));
	derived->delete = *update;
	derived->delete.verb = PYR_DELETE;
	derived->delete.nset = 0;
	derived->delete.user = NULL;
	derived->insert = *update;
	derived->insert.verb = PYR_INSERT;
	derived->insert.user = NULL;
	derived->insert.columns = palloc((nkey + update->nset) * sizeof(PyrShapeColumn));
	derived->from = palloc((nkey + update->nset) * sizeof(int));
	for (int i = 0; i < nkey; i++)
	{
		derived->insert.columns[i] = update->columns[i];
		derived->from[i] = binding->merge.new_key[i];
	}
	derived->insert.nset = 0;
	for (int i = nkey; i < nkey + update->nset; i++)
	{
		bool		is_key = false;

		for (int k = 0; k < nkey; k++)
			is_key = is_key || binding->merge.new_key[k] == i;
		if (is_key)
			continue;
		derived->insert.columns[nkey + derived->insert.nset] = update->columns[i];
		derived->from[nkey + derived->insert.nset++] = i;
	}
	update->derived = derived;
	MemoryContextSwitchTo(oldcontext);
	return derived;
}

/*
 * What becomes of a change; if it is to be another one, that is "other".  Needs
 * SPI.
 */
PyrAdmission
pyr_copy_admit(PyrTable *table, PyrChange *change, int encoding,
			   PyrChange *other)
{
	PyrShape   *shape = change->shape;
	PyrBinding *binding;
	Bookmark   *bookmark;
	Derived    *derived;
	bool		was_here;
	bool		is_now;

	if (table->state == PYR_TABLE_READY)
		return PYR_ADMIT;
	if (table->state != PYR_TABLE_COPYING || table->bookmark == NULL)
		return PYR_PASS_OVER;
	if (shape->verb == PYR_TRUNCATE)
		return PYR_ADMIT;

	binding = pyr_target_bind(shape);
	bookmark = get_bookmark(table, binding->target);
	was_here = is_now = is_here(bookmark, change->values, NULL, encoding);
	if (shape->verb == PYR_UPDATE && binding->merge.new_key != NULL)
		is_now = is_here(bookmark, change->values, binding->merge.new_key,
						 encoding);
	if (was_here == is_now)
		return was_here ? PYR_ADMIT : PYR_PASS_OVER;

	derived = derive(binding);
	if (was_here)
	{
		other->shape = &derived->delete;
		other->values = change->values;
		return PYR_AS_DELETE;
	}
	other->shape = &derived->insert;
	other->values = palloc((derived->insert.nkey + derived->insert.nset) * sizeof(PyrValue));
	for (int i = 0; i < derived->insert.nkey + derived->insert.nset; i++)
		other->values[i] = change->values[derived->from[i]];
	return PYR_AS_INSERT;
}
