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
 * is written alike in all versions, else as text.  Where there are old rows,
 * they are not written over, but made equal (mend.c).
 *
 * The next chunk is fetched while one is applied.  How many rows it has follows
 * from how long the ones before took: changes of other tables must not wait
 * long.
 *
 * Several tables are copied at a time if there are copy workers: then their chunks
 * are read together, and all but one are written by copy workers at the same
 * time (copyworker.c).  This is for tables that are empty at first; those that
 * are copied over what is there the worker copies itself, as it does with the
 * first chunk of each table, which is small.  What a table looks like is asked
 * for before one is finished, so that nobody has to wait.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/arrays.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/values.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_relation.h"
#include "slave/copy.h"
#include "slave/copyworker.h"
#include "slave/local.h"
#include "slave/mend.h"
#include "slave/skip.h"
#include "slave/target.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

/* a chunk should take so long to be applied */
#define CHUNK_MS		100
#define CHUNK_ROWS_FIRST 2000
#define CHUNK_ROWS_MIN	100
#define CHUNK_ROWS_MAX	1000000

/*
 * So many tables are looked after at a time; it is known what they look like when
 * their turn comes.
 */
#define TABLES_IN_HAND	20

/* what COPY begins with in binary: a signature, flags, and an empty extension */
static const char binary_header[] = "PGCOPY\n\377\r\n\0" "\0\0\0\0" "\0\0\0\0";
#define BINARY_HEADER_BYTES	19
#define BINARY_TRAILER_BYTES 2

typedef enum AskKind
{
	ASK_LIST,					/* which tables there are */
	ASK_DESCRIPTION,			/* what the next one looks like */
	ASK_ROWS,					/* a chunk of it; and again how it looks */
	ASK_CULPRIT					/* which value of a chunk cannot come here */
} AskKind;

/* what a supplement was asked for */
typedef struct Ask
{
	AskKind		kind;
	PyrTable   *table;
	int			nafter;
	char	  **after;			/* rows past this key; NULL: from the first */
	int64		limit;
	bool		is_for_other;	/* a copy worker should write it */

	/* of a chunk that has come */
	char	  **last;			/* its last row's key; NULL: it has no row, or
								 * nobody has looked */
	bool		is_last;		/* it is the table's last one */
	PyrCopyWorker *worker;		/* who writes it; NULL: we do */
} Ask;

/* a table being copied, or about to be */
typedef struct Copy
{
	PyrTable   *table;
	PyrLayout  *layout;			/* NULL: the master is to tell */
	int64		chunk_rows;
	Ask		   *coming;			/* what has come for it, and is being applied or
								 * will be */
	bool		is_seeking;		/* the chunk has a value that cannot come here */
} Copy;

/* those being copied come first */
static List *copies = NIL;

/* tables to be asked for one at a time, to see which of them the master refuses */
static List *suspects = NIL;

static Copy *
find_copy(PyrTable *table)
{
	ListCell   *cell;

	foreach(cell, copies)
	{
		Copy	   *copy = lfirst(cell);

		if (copy->table == table)
			return copy;
	}
	return NULL;
}

static Copy *
add_copy(PyrTable *table)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	Copy	   *copy = palloc0(sizeof(Copy));

	copy->table = table;
	copy->chunk_rows = CHUNK_ROWS_FIRST;
	copies = lappend(copies, copy);
	MemoryContextSwitchTo(oldcontext);
	return copy;
}

static void
end_copy(PyrTable *table)
{
	Copy	   *copy = find_copy(table);

	if (copy == NULL)
		return;
	copies = list_delete_ptr(copies, copy);
	if (copy->layout != NULL)
		pyr_layout_free(copy->layout);
	pfree(copy);
}

/*
 * The tables here may not be what they were: what has come of them is of no use, and
 * the master is to tell once more what they look like.
 */
void
pyr_copy_forget_layouts(void)
{
	while (copies != NIL)
		end_copy(((Copy *) linitial(copies))->table);
}

/*
 * Whether the master is to be asked for something.
 */
bool
pyr_copy_is_due(void)
{
	return pyr_tables_list_is_due() ||
		pyr_tables_next(NIL) != NULL;
}

/*
 * Appends which rows: those of the range, so many at most, in order.
 */
static void
append_rows(StringInfo sql, PyrLayout *layout, char **after, char **upto,
			int64 limit)
{
	appendStringInfo(sql, " FROM %s AS t", pyr_layout_masters_relation(layout));
	pyr_layout_append_range(sql, layout, false, after, upto);
	if (!layout->is_sorted)
		return;
	appendStringInfoString(sql, " ORDER BY ");
	for (int i = 0; i < layout->nkey; i++)
		appendStringInfo(sql, "%st.%s", i > 0 ? ", " : "",
						 quote_identifier(layout->key[i]));
	appendStringInfo(sql, " LIMIT " INT64_FORMAT, limit);
}

/*
 * COPY of the master's rows in the range, so many at most.
 */
void
pyr_copy_append_sql(StringInfo sql, PyrLayout *layout, char **after,
					char **upto, int64 limit)
{
	appendStringInfoString(sql, "COPY (SELECT ");
	pyr_layout_append_columns(sql, layout, false);
	append_rows(sql, layout, after, upto, limit);
	appendStringInfo(sql, ") TO STDOUT (FORMAT %s)",
					 layout->is_binary ? "binary" : "text");
}

/*
 * A question for the value among them that cannot come here.
 */
static void
append_culprit_sql(StringInfo sql, const char *schema, PyrLayout *layout,
				   char **after, int64 limit)
{
	StringInfoData query;
	const char *separator = "";
	ListCell   *cell;

	initStringInfo(&query);
	appendStringInfoString(&query, "SELECT ARRAY[");
	for (int i = 0; i < layout->nkey; i++)
		appendStringInfo(&query, "%s%s::pg_catalog.text", i > 0 ? ", " : "",
						 quote_identifier(layout->key[i]));
	appendStringInfoString(&query, "], ARRAY[");
	foreach(cell, layout->values)
	{
		appendStringInfo(&query, "%s%s::pg_catalog.text", separator, (char *) lfirst(cell));
		separator = ", ";
	}
	appendStringInfoChar(&query, ']');
	append_rows(&query, layout, after, NULL, limit);

	appendStringInfo(sql, "SELECT columnname, key, problem FROM %s.py_log_untranslatable(%s, ARRAY[",
					 schema, quote_literal_cstr(query.data));
	separator = "";
	foreach(cell, layout->columns)
	{
		appendStringInfo(sql, "%s%s", separator, quote_literal_cstr(lfirst(cell)));
		separator = ", ";
	}
	appendStringInfo(sql, "], %s)", quote_literal_cstr(GetDatabaseEncodingName()));
}

/*
 * Whether the slave's table has no row.
 */
static bool
is_empty(const char *relation, Oid owner)
{
	MemoryContext context = CurrentMemoryContext;
	PyrIdentity before = pyr_local_become(owner);

	if (SPI_execute(psprintf("SELECT FROM %s LIMIT 1", relation),
					false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look into the table");
	pyr_local_become_again(before);
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	return SPI_processed == 0;
}

/*
 * A table to be copied to for the first time has to be empty: what is in it may
 * be of value, or be the master's rows already.
 */
static void
check_empty(PyrLayout *layout)
{
	PyrPlace	place = pyr_table_place(layout->table);

	if (is_empty(pyr_layout_relation(layout), pyr_layout_owner(layout)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s.%s\" is not empty on the slave",
					place.schema, place.table),
			 errhint("Empty it here, or run SELECT pyreplica_resync(%s) to have its rows made equal to the master's. (A slave that was restored from a dump of the master has to start with pyreplica.copy_data = off.)",
					 quote_literal_cstr(layout->here))));
}

/*
 * Other tables of the master are the same one here.  Which of its rows come from
 * which of them nobody can tell, so they can only be copied together, from
 * nothing.
 */
static void
begin_together(PyrLayout *layout, List *sharers)
{
	StringInfoData names;
	ListCell   *cell;

	initStringInfo(&names);
	foreach(cell, sharers)
		appendStringInfo(&names, ", %s", pyr_table_qualified(lfirst(cell)));
	if (!is_empty(pyr_layout_relation(layout), pyr_layout_owner(layout)))
	{
		/* none of them writes any more, so it stays empty once it is */
		foreach(cell, sharers)
		{
			PyrTable   *sharer = lfirst(cell);

			if (sharer->state != PYR_TABLE_WAITING)
				pyr_table_begin_anew(sharer);
		}
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s cannot be made equal to one table of the master",
						layout->here),
				 errdetail("Its rows come from several: %s%s.",
						   pyr_table_qualified(layout->table), names.data),
				 errhint("Empty it here; then all of these are copied anew.")));
	}
	pyr_table_begin_together(layout->table);
}

/*
 * Whether rows of one of them may be here already.
 */
static bool
any_has_begun(List *tables)
{
	ListCell   *cell;

	foreach(cell, tables)
	{
		if (((PyrTable *) lfirst(cell))->state != PYR_TABLE_WAITING)
			return true;
	}
	return false;
}

/*
 * The master has told what the table looks like.
 */
static void
take_description(Copy *copy, char **row)
{
	PyrTable   *table = copy->table;

	if (copy->layout != NULL)
		pyr_layout_free(copy->layout);
	copy->layout = NULL;
	copy->layout = pyr_layout_create(table, row);

	/* a bookmark says nothing about another key, or another table here */
	if (table->bookmark != NULL &&
		(table->key == NULL ||
		 strcmp(table->key, copy->layout->key_described) != 0))
		pyr_table_begin_anew(table);
}

/*
 * The first rows have come.
 */
static void
begin_table(PyrTable *table, PyrLayout *layout)
{
	List	   *sharers = pyr_table_sharers(table);

	if (table->is_resync && sharers != NIL)
		begin_together(layout, sharers);
	else if (!table->is_resync && !any_has_begun(sharers))
		check_empty(layout);
	pyr_table_set_state(table, PYR_TABLE_COPYING);
	pyr_table_set_key(table, layout->key_described);
	table->started_at = GetCurrentTimestamp();
	ereport(LOG,
			(errmsg("pyreplica %s: copying table \"%s.%s\"%s", pyr_local_replica(),
					NameStr(table->name.schema), NameStr(table->name.table),
					layout->is_sorted ? "" : " in one piece"),
			 layout->is_sorted ? 0
			 : layout->is_whole ? errdetail("It has no key.")
			 : errdetail("The order of its key may differ between master and slave, so it cannot be copied in chunks."),
			 errhidestmt(true), errhidecontext(true)));
}

/* what CopyFrom reads; its callback has no argument */
static struct
{
	PyrCopyNext next;			/* NULL: there is no more */
	void	   *arg;
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
		if (source.next == NULL)
			break;
		source.between();
		CHECK_FOR_INTERRUPTS();
		if (!source.next(source.arg, &source.data, &source.left))
			source.next = NULL;
	}
	return nread;
}

static CopyFromState
begin_copy_from(Relation rel, PyrLayout *layout)
{
	ParseState *pstate = make_parsestate(NULL);
	List	   *options;
	List	   *names = NIL;
	ListCell   *cell;

	foreach(cell, layout->columns)
		names = lappend(names, makeString(lfirst(cell)));
	options = list_make1(makeDefElem("format",
									 (Node *) makeString(layout->is_binary ? "binary" : "text"),
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
chunk_nrows(PyrSupplement *supplement, PyrLayout *layout)
{
	return supplement->nmessages -
		(layout->is_binary && supplement->nmessages > 0 ? 1 : 0);
}

/*
 * The key of the chunk's last row, as text.  The server's COPY reads it, out of a
 * stream that has nothing but this row.
 */
static char **
read_last_key(PyrSupplement *supplement, PyrLayout *layout)
{
	StringInfoData stream;
	StringInfo	row = &supplement->last[layout->is_binary ? 1 : 0];
	Relation	rel = table_open(layout->relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	ExprContext *econtext = CreateStandaloneExprContext();
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *isnull = palloc(desc->natts * sizeof(bool));
	char	  **key = palloc(layout->nkey * sizeof(char *));
	CopyFromState state;

	initStringInfo(&stream);
	if (layout->is_binary && chunk_nrows(supplement, layout) > 1)
		appendBinaryStringInfo(&stream, binary_header, BINARY_HEADER_BYTES);
	appendBinaryStringInfo(&stream, row->data, row->len);
	if (layout->is_binary)
		appendBinaryStringInfo(&stream, "\377\377", BINARY_TRAILER_BYTES);
	source.next = NULL;
	source.data = stream.data;
	source.left = stream.len;

	state = begin_copy_from(rel, layout);
	if (!NextCopyFrom(state, econtext, values, isnull))
		elog(ERROR, "the last row of a chunk cannot be read");
	for (int i = 0; i < layout->nkey; i++)
	{
		AttrNumber	attnum = layout->key_attnums[i];
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
 * The same, in the supplement's memory.  Reading values can run code of the
 * table's owner.
 */
static char **
last_key(PyrSupplement *supplement, PyrLayout *layout)
{
	PyrIdentity before = pyr_local_become(pyr_layout_owner(layout));
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pyreplica last key",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	char	  **read = read_last_key(supplement, layout);
	char	  **key;

	MemoryContextSwitchTo(supplement->context);
	key = palloc(layout->nkey * sizeof(char *));
	for (int i = 0; i < layout->nkey; i++)
		key[i] = pstrdup(read[i]);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
	pyr_local_become_again(before);
	return key;
}

/*
 * Whether the chunk is the one that follows what is here, of a table that has
 * not changed meanwhile.
 */
static bool
is_next_chunk(PyrSupplement *supplement, Copy *copy)
{
	Ask		   *ask = supplement->what;
	PyrTable   *table = ask->table;

	if (ask->kind != ASK_ROWS || copy == NULL || copy->layout == NULL ||
		supplement->rows == NIL || ask->nafter != table->nbookmark)
		return false;
	for (int i = 0; i < ask->nafter; i++)
	{
		if (strcmp(ask->after[i], table->bookmark[i]) != 0)
			return false;
	}
	return pyr_layout_is_same(copy->layout, linitial(supplement->rows));
}

/*
 * Finds out where the chunk ends.
 */
static void
find_end(PyrSupplement *supplement, PyrLayout *layout)
{
	Ask		   *ask = supplement->what;

	ask->is_last = !layout->is_sorted ||
		chunk_nrows(supplement, layout) < ask->limit;
	if (!ask->is_last && ask->last == NULL)
		ask->last = last_key(supplement, layout);
}

/*
 * The same, so that more can be asked for before the chunk is applied.  In a
 * transaction of its own.
 */
static void
find_end_early(PyrSupplement *supplement, PyrLayout *layout)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		pyr_local_begin_transaction();
		find_end(supplement, layout);
		pyr_local_commit_transaction();
	}
	PG_CATCH();
	{
		/* it will be met again when the chunk is applied, and told then */
		AbortCurrentTransaction();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

/*
 * Whether the next rows of the table can be asked for: not as long as it is not
 * known what came last, or if that was the end.
 */
static bool
can_go_on(Copy *copy)
{
	if (copy->coming != NULL)
		return copy->coming->last != NULL;
	return copy->layout != NULL;
}

/*
 * What has come is about to be applied: whether there is something to be asked
 * for meanwhile.
 */
static bool
look_ahead(PyrSupplement *first)
{
	ListCell   *cell;

	for (PyrSupplement *supplement = first; supplement != NULL;
		 supplement = supplement->next)
	{
		Ask		   *ask = supplement->what;
		Copy	   *copy = ask->table ? find_copy(ask->table) : NULL;

		if (copy == NULL)
			continue;
		copy->coming = ask;
		if (is_next_chunk(supplement, copy))
			find_end_early(supplement, copy->layout);
	}
	foreach(cell, copies)
	{
		if (can_go_on(lfirst(cell)))
			return true;
	}
	return false;
}

/*
 * Writes rows into the table, or makes those of the range equal to them.
 */
static void
write_rows(PyrLayout *layout, PyrCopyNext next, void *arg, PyrCopyMode mode,
		   char **after, char **upto, void (*between) (void))
{
	PyrIdentity before = pyr_local_become(pyr_layout_owner(layout));
	int			role = SessionReplicationRole;
	Relation	rel;
	CopyFromState state;

	/* a view's triggers do not fire in a replica, see statement.c */
	if (layout->relkind == RELKIND_VIEW)
		SessionReplicationRole = SESSION_REPLICATION_ROLE_LOCAL;
	PG_TRY();
	{
		rel = table_open(layout->relid, RowExclusiveLock);
		source.next = next;
		source.arg = arg;
		source.data = NULL;
		source.left = 0;
		source.between = between;
		state = begin_copy_from(rel, layout);
		if (mode == PYR_COPY_NEW)
			(void) CopyFrom(state);
		else
			pyr_mend_range(layout, rel, state, mode, after, upto, between);
		EndCopyFrom(state);
		table_close(rel, NoLock);
	}
	PG_FINALLY();
	{
		SessionReplicationRole = role;
	}
	PG_END_TRY();
	CommandCounterIncrement();
	pyr_local_become_again(before);
}

/*
 * Writes rows into the table.
 */
void
pyr_copy_write(PyrLayout *layout, PyrCopyNext next, void *arg,
			   void (*between) (void))
{
	write_rows(layout, next, arg, PYR_COPY_NEW, NULL, NULL, between);
}

/* a PyrCopyNext */
static bool
next_of_supplement(void *arg, const char **data, size_t *len)
{
	return pyr_supplement_next(arg, data, len);
}

/*
 * Writes the rows that came into the table, or makes those of the range equal to
 * them.
 */
void
pyr_copy_range(PyrLayout *layout, PyrSupplement *supplement, PyrCopyMode mode,
			   char **after, char **upto, void (*between) (void))
{
	write_rows(layout, next_of_supplement, supplement, mode, after, upto,
			   between);
}

/*
 * The next chunks should take as long as they may.
 */
static void
adapt_chunk(Copy *copy, int64 nrows, long ms)
{
	double		factor = (double) CHUNK_MS / Max(ms, 1);

	factor = Max(Min(factor, 16.0), 0.25);
	copy->chunk_rows = Max(Min((int64) (nrows * factor), CHUNK_ROWS_MAX),
						   CHUNK_ROWS_MIN);
}

/*
 * The chunk is here: moves the table on, or finishes it.
 */
static void
advance(PyrTable *table, Ask *ask, int64 nrows)
{
	table->rows_copied += nrows;
	pyr_table_clear_error(table);
	if (!ask->is_last)
	{
		pyr_table_set_bookmark(table, ask->last, find_copy(table)->layout->nkey);
		return;
	}
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

/*
 * What is where the chunk goes.
 */
static PyrCopyMode
mode_of(PyrTable *table)
{
	if (!table->is_resync)
		return PYR_COPY_NEW;
	return pyr_table_sharers(table) != NIL ? PYR_COPY_BESIDE : PYR_COPY_RESYNC;
}

static void
apply_chunk(PyrSupplement *supplement, Copy *copy, void (*between) (void))
{
	Ask		   *ask = supplement->what;
	PyrTable   *table = copy->table;
	TimestampTz begin = GetCurrentTimestamp();
	int64		nrows = chunk_nrows(supplement, copy->layout);
	bool		is_over = copy->layout->is_foreign || !copy->layout->takes_copy;

	if (table->state == PYR_TABLE_WAITING)
		begin_table(table, copy->layout);
	else if (!is_over && mode_of(table) == PYR_COPY_BESIDE)
	{
		/* another one has come to be here meanwhile */
		pyr_table_begin_anew(table);
		return;
	}

	/*
	 * What is written to other servers may stay there although we are taken
	 * back.  So it is written over what is there; and that copying has begun is
	 * known before.  (COPY does not write to a view that has no triggers for it;
	 * but rows can be made equal there.)
	 */
	if (is_over && !table->is_resync)
	{
		table->is_resync = true;
		pyr_table_store(table);
		return;
	}
	find_end(supplement, copy->layout);
	pyr_copy_range(copy->layout, supplement, mode_of(table), ask->after,
				   ask->is_last ? NULL : ask->last, between);
	advance(table, ask, nrows);
	pyr_table_store(table);
	adapt_chunk(copy, nrows,
				TimestampDifferenceMilliseconds(begin, GetCurrentTimestamp()));
}

/*
 * Has a copy worker write the chunk.  False: that cannot be done, or is not worth
 * it.
 */
static bool
hand_over(PyrSupplement *supplement)
{
	Ask		   *ask = supplement->what;
	Copy	   *copy = ask->table ? find_copy(ask->table) : NULL;
	PyrTable	after;

	if (!ask->is_for_other || !is_next_chunk(supplement, copy) ||
		ask->table->state != PYR_TABLE_COPYING || ask->table->is_resync ||
		(ask->last == NULL && !ask->is_last))
		return false;
	after = *ask->table;
	after.rows_copied += chunk_nrows(supplement, copy->layout);
	after.state = ask->is_last ? PYR_TABLE_READY : PYR_TABLE_COPYING;
	after.bookmark = ask->last;
	after.nbookmark = ask->is_last ? 0 : copy->layout->nkey;
	ask->worker = pyr_copyworker_begin(copy->layout, &after, supplement);
	return ask->worker != NULL;
}

/*
 * A chunk cannot be copied, for an error that names neither row nor column: whether
 * the master is to be asked for them, before the table fails.
 */
static bool
seek_culprit(PyrTable *table, ErrorData *error)
{
	Copy	   *copy = table ? find_copy(table) : NULL;

	if ((error->sqlerrcode != ERRCODE_UNTRANSLATABLE_CHARACTER &&
		 error->sqlerrcode != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE) ||
		copy == NULL || copy->layout == NULL || copy->is_seeking)
		return false;
	copy->is_seeking = true;
	return true;
}

/*
 * The master has told.
 */
static void
take_culprit(Copy *copy, List *rows)
{
	char	  **culprit = list_length(rows) > 1 ? lsecond(rows) : NULL;

	copy->is_seeking = false;
	if (culprit == NULL || culprit[0] == NULL)
		return;					/* it is not there any more */
	ereport(ERROR,
			(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
			 errmsg("column \"%s\" of the row %s has a character that does not exist in the encoding of the slave, %s",
					culprit[0], culprit[1] ? culprit[1] : "", GetDatabaseEncodingName()),
			 culprit[2] ? errdetail("The master says: %s", culprit[2]) : 0,
			 errhint("Change the row on the master, or leave it out with py_log_create_tg (row_filter, columns).")));
}

/*
 * Whether what has the table's name here is still what had it.
 */
static bool
is_still_here(Copy *copy)
{
	return pyr_layout_find(copy->table) == copy->layout->relid;
}

/*
 * Does what the supplement is for.
 */
static void
apply_supplement(PyrSupplement *supplement, void (*between) (void))
{
	Ask		   *ask = supplement->what;
	Copy	   *copy;

	if (ask->kind == ASK_LIST)
	{
		pyr_tables_take_list(supplement->rows);
		return;
	}
	copy = find_copy(ask->table);
	if (copy == NULL ||
		(ask->table->state != PYR_TABLE_WAITING &&
		 ask->table->state != PYR_TABLE_COPYING))
		return;
	else if (ask->table->retry_at > GetCurrentTimestamp())
		return;					/* it was asked for before it failed */
	else if (supplement->rows == NIL)
		pyr_tables_want_list(); /* it has no log trigger any more */
	else if (ask->kind == ASK_CULPRIT)
		take_culprit(copy, supplement->rows);
	else if (is_next_chunk(supplement, copy) && is_still_here(copy))
		apply_chunk(supplement, copy, between);
	else if (copy->layout == NULL || !is_still_here(copy) ||
			 !pyr_layout_is_same(copy->layout, linitial(supplement->rows)))
	{
		if (copy_schema && ask->table->state == PYR_TABLE_WAITING &&
			!OidIsValid(pyr_layout_find(ask->table)) &&
			!pyr_table_place(ask->table).is_mapped)
		{
			/* it comes to be copied again once it has been made */
			pyr_table_set_missing(ask->table, true);
			return;
		}
		take_description(copy, linitial(supplement->rows));
	}
}

/* a PyrAttempt's argument */
typedef struct Supplied
{
	PyrSupplement *supplement;
	void		(*between) (void);
} Supplied;

static bool
attempt_supplement(void *arg)
{
	Supplied   *supplied = arg;

	apply_supplement(supplied->supplement, supplied->between);
	return true;
}

/*
 * The same.  If that fails because of the table, the table alone suffers.
 */
static void
apply_or_fail(PyrSupplement *supplement, void (*between) (void))
{
	Ask		   *ask = supplement->what;
	Supplied	supplied = {supplement, between};
	PyrTable	before = {0};
	ErrorData  *error;

	if (ask->table != NULL)
		before = *ask->table;
	if (!pyr_local_try(attempt_supplement, &supplied, &error))
	{
		bool		is_seeking;

		/* what is known of the table cannot be taken back, or there is none */
		if (ask->table == NULL || ask->table->bookmark != before.bookmark)
			ReThrowError(error);
		is_seeking = ask->kind == ASK_ROWS && seek_culprit(ask->table, error);
		if (!is_seeking)
			end_copy(ask->table);
		pyr_tables_store_begun_anew();
		pyr_table_set_state(ask->table, before.state);
		ask->table->rows_copied = before.rows_copied;
		ask->table->started_at = before.started_at;
		if (error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED)
			pyr_copyworkers_rest(error->message);
		else if (!is_seeking)
			pyr_table_fail(ask->table, error);
	}
	else if (ask->table != NULL && ask->table->state == PYR_TABLE_READY)
		end_copy(ask->table);
}

static void (*pump) (void);

/* between blocks of what we write ourselves */
static void
pump_and_feed(void)
{
	pump();
	pyr_copyworkers_feed();
}

/*
 * Takes in what came with a window whose changes have just been applied, in the
 * same transaction.  What copy workers are to write comes before what we write.
 */
static void
apply(PyrSupplement *first, void (*between) (void))
{
	pump = between;
	for (PyrSupplement *supplement = first; supplement != NULL;
		 supplement = supplement->next)
	{
		if (!hand_over(supplement))
			apply_or_fail(supplement, pump_and_feed);
	}
}

/*
 * A copy worker has written the chunk, or not.
 */
static void
settle_chunk(PyrSupplement *supplement)
{
	Ask		   *ask = supplement->what;
	PyrTable   *table = ask->table;
	Copy	   *copy = find_copy(table);
	int64		nrows = chunk_nrows(supplement, copy->layout);
	PyrCopyOutcome outcome = pyr_copyworker_finish(ask->worker);

	if (!outcome.is_known)
	{
		pyr_copyworkers_rest("a copy worker has ended");
		pyr_table_load(table);
	}
	else if (outcome.error == NULL)
	{
		advance(table, ask, nrows);
		adapt_chunk(copy, nrows, outcome.ms);
	}
	else if (pyr_is_of_the_system(outcome.error->sqlerrcode) ||
			 outcome.error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED)
		pyr_copyworkers_rest(outcome.error->message);
	else if (!seek_culprit(table, outcome.error))
	{
		end_copy(table);
		pyr_local_begin_transaction();
		pyr_table_fail(table, outcome.error);
		pyr_local_commit_transaction();
	}
	if (table->state == PYR_TABLE_READY)
		end_copy(table);
}

/*
 * The transaction of "apply" has been committed: so will be those of the copy
 * workers.  Waits for them; nothing else can be applied before.
 */
static void
settle(PyrSupplement *first)
{
	ListCell   *cell;

	for (PyrSupplement *supplement = first; supplement != NULL;
		 supplement = supplement->next)
	{
		if (((Ask *) supplement->what)->worker != NULL)
			settle_chunk(supplement);
	}
	foreach(cell, copies)
		((Copy *) lfirst(cell))->coming = NULL;
}

/*
 * The master refused what was asked for.  If that was about several tables, each
 * is tried by itself to see which of them is meant.
 */
static void
refused(PyrSupplement *first, ErrorData *error)
{
	Ask		   *ask = first->what;
	MemoryContext oldcontext;

	if (ask->table == NULL &&
		error->sqlerrcode == ERRCODE_UNTRANSLATABLE_CHARACTER)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("a table of the master has a name with characters that do not exist in the encoding of the slave, %s",
						GetDatabaseEncodingName()),
				 errdetail_internal("%s", error->message),
				 errhint("Rename it on the master, or drop its log trigger there with py_log_drop_tg.")));
	if (ask->table == NULL || pyr_is_of_the_system(error->sqlerrcode))
		ReThrowError(error);
	if (first->next == NULL && ask->kind == ASK_ROWS &&
		seek_culprit(ask->table, error))
		return;
	if (first->next == NULL && ask->kind == ASK_ROWS &&
		(error->sqlerrcode == ERRCODE_UNDEFINED_COLUMN ||
		 error->sqlerrcode == ERRCODE_UNDEFINED_TABLE ||
		 error->sqlerrcode == ERRCODE_UNDEFINED_SCHEMA))
	{
		/* it had that column, or name, when it was described */
		end_copy(ask->table);
		return;
	}
	if (first->next == NULL &&
		error->sqlerrcode == ERRCODE_UNDEFINED_OBJECT)
	{
		/* it has no log trigger any more */
		end_copy(ask->table);
		pyr_tables_want_list();
		return;
	}
	if (first->next == NULL)
	{
		end_copy(ask->table);
		pyr_local_begin_transaction();
		pyr_table_fail(ask->table, error);
		pyr_local_commit_transaction();
		return;
	}
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	for (PyrSupplement *supplement = first; supplement != NULL;
		 supplement = supplement->next)
		suspects = list_append_unique_ptr(suspects,
										  ((Ask *) supplement->what)->table);
	MemoryContextSwitchTo(oldcontext);
}

static PyrSupplement *
ask_for_list(const char *schema)
{
	PyrSupplement *supplement = pyr_supplement_create();
	MemoryContext oldcontext = MemoryContextSwitchTo(supplement->context);
	Ask		   *ask = palloc0(sizeof(Ask));

	ask->kind = ASK_LIST;
	supplement->what = ask;
	supplement->sql = pyr_tables_list_sql(schema);
	MemoryContextSwitchTo(oldcontext);
	return supplement;
}

/*
 * Asks what the table looks like, and for its next rows if we know that.
 */
static PyrSupplement *
ask_for_table(const char *schema, Copy *copy)
{
	PyrSupplement *supplement = pyr_supplement_create();
	MemoryContext oldcontext = MemoryContextSwitchTo(supplement->context);
	Ask		   *ask = palloc0(sizeof(Ask));
	char	  **after = copy->coming ? copy->coming->last : copy->table->bookmark;
	StringInfoData sql;

	Assert(after == NULL || copy->coming != NULL || copy->layout == NULL ||
		   copy->layout->nkey == copy->table->nbookmark);
	ask->kind = copy->layout == NULL ? ASK_DESCRIPTION :
		copy->is_seeking ? ASK_CULPRIT : ASK_ROWS;
	ask->table = copy->table;
	supplement->what = ask;
	supplement->locked = copy->layout != NULL
		? pyr_layout_masters_relation(copy->layout)
		: psprintf("ONLY %s", pyr_table_qualified(copy->table));
	supplement->is_partitioned = copy->layout != NULL &&
		copy->layout->is_partitioned;
	initStringInfo(&sql);
	appendStringInfoString(&sql, pyr_layout_sql(schema, copy->table, ask->kind == ASK_ROWS));
	if (ask->kind == ASK_CULPRIT)
		append_culprit_sql(&sql, schema, copy->layout, after, copy->chunk_rows);
	if (ask->kind == ASK_ROWS)
	{
		ask->limit = copy->chunk_rows;
		if (after != NULL)
		{
			ask->nafter = copy->layout->nkey;
			ask->after = palloc(copy->layout->nkey * sizeof(char *));
			for (int i = 0; i < copy->layout->nkey; i++)
				ask->after[i] = pstrdup(after[i]);
		}
		pyr_copy_append_sql(&sql, copy->layout, ask->after, NULL, ask->limit);
	}
	supplement->sql = sql.data;
	MemoryContextSwitchTo(oldcontext);
	return supplement;
}

/*
 * Takes tables in hand that are to be copied, and lets go of those that are not,
 * now.
 */
static void
refresh_copies(void)
{
	List	   *old = list_copy(copies);
	List	   *tables = NIL;
	PyrTable   *next;
	ListCell   *cell;

	foreach(cell, old)
	{
		Copy	   *copy = lfirst(cell);
		PyrTable   *table = copy->table;

		if (copy->coming == NULL &&
			((table->state != PYR_TABLE_WAITING &&
			  table->state != PYR_TABLE_COPYING) ||
			 table->retry_at > GetCurrentTimestamp()))
			end_copy(table);
		else
			tables = lappend(tables, table);
	}
	while (list_length(copies) < TABLES_IN_HAND &&
		   (next = pyr_tables_next(tables)) != NULL)
	{
		add_copy(next);
		tables = lappend(tables, next);
	}
	list_free(tables);
	list_free(old);
}

/*
 * Whether the table is surely not worth a chunk of its own.
 */
static bool
is_small(Copy *copy)
{
	return copy->table->state == PYR_TABLE_WAITING && copy->layout->is_sorted &&
		copy->table->rows_expected <= CHUNK_ROWS_FIRST;
}

/*
 * How many tables can be copied at a time now.  Copy workers are not for tables of
 * some rows.
 */
static int
count_hands(void)
{
	bool		is_any_large = false;
	ListCell   *cell;

	if (copies == NIL)
		pyr_copyworkers_end();
	if (list_length(copies) < 2)
		return 1;
	foreach(cell, copies)
	{
		PyrTable   *table = ((Copy *) lfirst(cell))->table;

		is_any_large = is_any_large || table->bookmark != NULL ||
			table->rows_expected > CHUNK_ROWS_FIRST;
	}
	return is_any_large ? 1 + pyr_copyworkers_ready(pyr_local_replica()) : 1;
}

/*
 * The last chunk among those for others is for us.
 */
static void
keep_last(PyrSupplement *first)
{
	Ask		   *last = NULL;

	for (; first != NULL; first = first->next)
	{
		if (((Ask *) first->what)->table->state == PYR_TABLE_COPYING)
			last = first->what;
	}
	if (last != NULL)
		last->is_for_other = false;
}

/*
 * What is to be asked for: descriptions, a chunk for each hand, and small tables.
 * The chunk that we will write ourselves is one of a table that is copied over
 * what is there, or else the last.
 */
static PyrSupplement *
ask_for_tables(const char *schema)
{
	PyrSupplement *first = NULL;
	PyrSupplement **end = &first;
	PyrSupplement *own = NULL;
	int			hands = count_hands();
	ListCell   *cell;

	foreach(cell, copies)
	{
		Copy	   *copy = lfirst(cell);
		PyrSupplement *supplement;

		if (can_go_on(copy) && !is_small(copy))
		{
			if (hands == 0 || (copy->table->is_resync && own != NULL))
				continue;
			hands--;
		}
		else if (copy->coming != NULL)
			continue;
		supplement = ask_for_table(schema, copy);
		if (copy->table->is_resync && own == NULL)
		{
			own = supplement;
			continue;
		}
		((Ask *) supplement->what)->is_for_other = true;
		*end = supplement;
		end = &supplement->next;
	}
	*end = own;
	if (own == NULL)
		keep_last(first);
	return first;
}

/*
 * What is to be asked for of the next suspect; NULL: there is none.
 */
static PyrSupplement *
ask_for_suspect(const char *schema)
{
	while (suspects != NIL)
	{
		Copy	   *copy = find_copy(linitial(suspects));

		suspects = list_delete_first(suspects);
		if (copy != NULL && (copy->coming == NULL || can_go_on(copy)))
			return ask_for_table(schema, copy);
	}
	return NULL;
}

/*
 * What is to be asked for with the next window; NULL: nothing.
 */
PyrSupplement *
pyr_copy_ask(const char *schema)
{
	PyrSupplement *first;

	if (pyr_tables_list_is_due())
		first = ask_for_list(schema);
	else
	{
		refresh_copies();
		first = ask_for_suspect(schema);
		if (first == NULL)
			first = ask_for_tables(schema);
	}
	if (first == NULL)
		return NULL;
	first->look_ahead = look_ahead;
	first->apply = apply;
	first->settle = settle;
	first->refused = refused;
	return first;
}

/*
 * How far the table is, for people.
 */
char *
pyr_copy_describe(PyrTable *table)
{
	return psprintf("copying %s: " INT64_FORMAT " of about " INT64_FORMAT " rows",
					pyr_table_qualified(table), table->rows_copied,
					Max(table->rows_expected, table->rows_copied));
}

/*
 * What is being copied, for people; NULL: nothing.
 */
char *
pyr_copy_progress(void)
{
	ListCell   *cell;

	foreach(cell, copies)
	{
		Copy	   *copy = lfirst(cell);

		if (copy->coming != NULL && !copy->coming->is_for_other)
			return pyr_copy_describe(copy->table);
	}
	return copies == NIL ? NULL
		: pyr_copy_describe(((Copy *) linitial(copies))->table);
}

/* ---- changes while the table is copied ---- */

/* a table's bookmark, as values that keys can be compared with */
typedef struct Bookmark
{
	MemoryContext context;
	PyrTarget  *target;			/* whose parameter types they have */
	uint64		serial;			/* of it; 0: not made yet */
	uint64		nth;			/* of the table's bookmarks */
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

	if (bookmark != NULL && bookmark->serial == target->serial &&
		bookmark->nth == table->nth_bookmark)
		return bookmark;
	if (bookmark == NULL)
	{
		bookmark = MemoryContextAllocZero(TopMemoryContext, sizeof(Bookmark));
		bookmark->context = AllocSetContextCreate(TopMemoryContext,
												  "pyreplica bookmark",
												  ALLOCSET_SMALL_SIZES);
		table->user = bookmark;
	}
	bookmark->serial = 0;
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
	bookmark->serial = target->serial;
	bookmark->nth = table->nth_bookmark;
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
	derived->delete.nset = derived->delete.nold = 0;
	derived->delete.user = NULL;
	derived->insert = *update;
	derived->insert.verb = PYR_INSERT;
	derived->insert.user = NULL;
	derived->insert.nold = 0;
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
 * The values in another order; their bytes, too, as those of a change lie in one
 * piece, in its order.
 */
static PyrValue *
rearrange(const PyrValue *values, const int *from, int n)
{
	PyrValue   *rearranged = palloc(n * sizeof(PyrValue));
	Size		len = 0;
	char	   *p;

	for (int i = 0; i < n; i++)
		len += Max(values[from[i]].len, 0);
	p = MemoryContextAllocHuge(CurrentMemoryContext, len + 1);
	for (int i = 0; i < n; i++)
	{
		rearranged[i] = (PyrValue) {p, values[from[i]].len};
		if (rearranged[i].len <= 0)
			continue;
		memcpy(p, values[from[i]].data, rearranged[i].len);
		p += rearranged[i].len;
	}
	return rearranged;
}

/*
 * Whether a TRUNCATE is carried out here: it does no harm if what is here is the
 * master's, and other tables may be truncated along with this one that refer to
 * it.
 */
static bool
may_truncate(PyrTable *table)
{
	HeapTuple	tuple;
	Oid			owner;

	if (table->state == PYR_TABLE_COPYING || table->is_resync)
		return true;
	if (table->state != PYR_TABLE_WAITING)
		return false;
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(pyr_layout_find(table)));
	if (!HeapTupleIsValid(tuple))
		return false;
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return is_empty(pyr_table_here(table), owner);
}

/*
 * Whether the bookmark is about the columns that changes of the shape tell rows by.
 */
static bool
is_bookmark_of(PyrTable *table, PyrShape *shape)
{
	size_t		len;

	if (shape->key_names == NULL)
	{
		char	  **names = palloc((shape->nkey + 1) * sizeof(char *));

		for (int i = 0; i < shape->nkey; i++)
			names[i] = shape->columns[i].name;
		/* where shapes live */
		shape->key_names = MemoryContextStrdup(GetMemoryChunkContext(shape->columns),
											   pyr_array_join(names, shape->nkey));
	}
	len = strlen(shape->key_names);
	return table->nbookmark == shape->nkey && table->key != NULL &&
		strncmp(table->key, shape->key_names, len) == 0 && table->key[len] == ' ';
}

/*
 * Whether the change is about a column, or a table, that neither side has any more.
 * (It is looked for on the master when something has failed here.)
 */
static bool
is_about_nothing(PyrTable *table, PyrShape *shape)
{
	Oid			relid = pyr_layout_find(table);

	if (table->ncolumns_there == 0)
		return !OidIsValid(relid);
	if (!OidIsValid(relid))
		return false;
	for (int i = 0; i < shape->nkey + shape->nset + shape->nold; i++)
	{
		const char *name = shape->columns[i].name;
		bool		is_there = false;

		for (int j = 0; j < table->ncolumns_there && !is_there; j++)
			is_there = strcmp(name, table->columns_there[j]) == 0;
		if (!is_there && get_attnum(relid, name) == InvalidAttrNumber)
			return true;
	}
	return false;
}

/*
 * If so, it cannot be made, nor need it be: the table is copied once more, as it is
 * now.  (A column that has only got another name on both sides could not be told from
 * one that is gone.)
 */
static void
begin_anew_if_about_nothing(PyrTable *table, PyrShape *shape)
{
	if (!is_about_nothing(table, shape))
		return;
	ereport(LOG,
			(errmsg("pyreplica %s: table \"%s.%s\" begins anew, as a change is about what neither side has any more",
					pyr_local_replica(), NameStr(table->name.schema),
					NameStr(table->name.table)),
			 errhidestmt(true), errhidecontext(true)));
	pyr_table_begin_anew(table);
}

/*
 * A row of the table has been lost between two servers that have parts of it.  Only
 * the master knows it: the table is copied once more.  Needs SPI.
 */
void
pyr_copy_lost_row(PyrTable *table)
{
	ereport(LOG,
			(errmsg("pyreplica %s: table \"%s.%s\" begins anew, as a row was lost between two servers",
					pyr_local_replica(), NameStr(table->name.schema),
					NameStr(table->name.table)),
			 errdetail("One of them had committed that the row is gone; the other one had not yet committed that it comes."),
			 errhidestmt(true), errhidecontext(true)));
	pyr_table_begin_anew(table);
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
	PyrIdentity before;
	bool		was_here;
	bool		is_now;

	if (table->state != PYR_TABLE_WAITING &&
		!pyr_table_has_filter(table, shape->filter))
		pyr_table_begin_anew(table);
	if (table->is_described && pyr_failure_is_kept() && copy_data &&
		(table->state == PYR_TABLE_READY || table->state == PYR_TABLE_COPYING))
		begin_anew_if_about_nothing(table, shape);
	if (table->state == PYR_TABLE_READY)
		return PYR_ADMIT;
	if (shape->verb == PYR_TRUNCATE)
		return may_truncate(table) ? PYR_ADMIT : PYR_PASS_OVER;
	if (table->state != PYR_TABLE_COPYING || table->bookmark == NULL)
		return PYR_PASS_OVER;

	if (!is_bookmark_of(table, shape))
	{
		/* the master has another key by now */
		pyr_table_begin_anew(table);
		return PYR_PASS_OVER;
	}
	binding = pyr_target_bind(shape);
	before = pyr_local_become(binding->target->owner);
	bookmark = get_bookmark(table, binding->target);
	was_here = is_now = is_here(bookmark, change->values, NULL, encoding);
	if (shape->verb == PYR_UPDATE && binding->merge.new_key != NULL)
		is_now = is_here(bookmark, change->values, binding->merge.new_key,
						 encoding);
	pyr_local_become_again(before);
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
	other->values = rearrange(change->values, derived->from,
							  derived->insert.nkey + derived->insert.nset);
	return PYR_AS_INSERT;
}
