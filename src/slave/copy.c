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
#include "slave/mend.h"
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

/* what COPY begins with in binary: a signature, flags, and an empty extension */
static const char binary_header[] = "PGCOPY\n\377\r\n\0" "\0\0\0\0" "\0\0\0\0";
#define BINARY_HEADER_BYTES	19
#define BINARY_TRAILER_BYTES 2

/* the table being copied */
typedef struct Copy
{
	PyrTable   *table;
	PyrLayout  *layout;
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
		pyr_layout_free(copy->layout);
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

/*
 * COPY of the master's rows in the range, so many at most.
 */
void
pyr_copy_append_sql(StringInfo sql, PyrLayout *layout, char **after,
					char **upto, int64 limit)
{
	ListCell   *cell;
	const char *comma = "";

	appendStringInfoString(sql, "COPY (SELECT ");
	foreach(cell, layout->columns)
	{
		appendStringInfo(sql, "%s%s", comma, quote_identifier(lfirst(cell)));
		comma = ", ";
	}
	appendStringInfo(sql, " FROM ONLY %s", pyr_table_qualified(layout->table));
	pyr_layout_append_range(sql, layout, false, after, upto);
	if (layout->is_sorted)
	{
		appendStringInfoString(sql, " ORDER BY ");
		for (int i = 0; i < layout->nkey; i++)
			appendStringInfo(sql, "%s%s", i > 0 ? ", " : "",
							 quote_identifier(layout->key[i]));
		appendStringInfo(sql, " LIMIT " INT64_FORMAT, limit);
	}
	appendStringInfo(sql, ") TO STDOUT (FORMAT %s)",
					 layout->is_binary ? "binary" : "text");
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
	PyrTable   *table = layout->table;

	if (is_empty(pyr_layout_relation(layout), pyr_layout_owner(layout)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s.%s\" is not empty on the slave",
					NameStr(table->name.schema), NameStr(table->name.table)),
			 errhint("Empty it here, or run SELECT pyreplica_resync(%s) to have its rows made equal to the master's. (A slave that was restored from a dump of the master has to start with pyreplica.copy_data = off.)",
					 quote_literal_cstr(pyr_table_qualified(table)))));
}

/*
 * Begins to copy the table, or goes on after a restart.
 */
static void
begin_copy(PyrTable *table, char **row)
{
	PyrLayout  *layout;

	end_copy();
	layout = pyr_layout_create(table, row);
	copy = MemoryContextAllocZero(layout->context, sizeof(Copy));
	copy->table = table;
	copy->layout = layout;
	copy->chunk_rows = CHUNK_ROWS_FIRST;

	if (table->state != PYR_TABLE_WAITING)
		return;
	if (!table->is_resync)
		check_empty(layout);
	pyr_table_set_state(table, PYR_TABLE_COPYING);
	table->started_at = GetCurrentTimestamp();
	ereport(LOG,
			(errmsg("pyreplica %s: copying table \"%s.%s\"%s", pyr_local_replica(),
					NameStr(table->name.schema), NameStr(table->name.table),
					layout->is_sorted ? "" : " in one piece"),
			 layout->is_sorted ? 0
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
chunk_nrows(PyrSupplement *supplement)
{
	return supplement->nmessages -
		(copy->layout->is_binary && supplement->nmessages > 0 ? 1 : 0);
}

/*
 * The key of the chunk's last row, as text.  The server's COPY reads it, out of a
 * stream that has nothing but this row.
 */
static char **
read_last_key(PyrSupplement *supplement)
{
	StringInfoData stream;
	StringInfo	row = &supplement->last[copy->layout->is_binary ? 1 : 0];
	Relation	rel = table_open(copy->layout->relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	ExprContext *econtext = CreateStandaloneExprContext();
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *isnull = palloc(desc->natts * sizeof(bool));
	char	  **key = palloc(copy->layout->nkey * sizeof(char *));
	CopyFromState state;

	initStringInfo(&stream);
	if (copy->layout->is_binary && chunk_nrows(supplement) > 1)
		appendBinaryStringInfo(&stream, binary_header, BINARY_HEADER_BYTES);
	appendBinaryStringInfo(&stream, row->data, row->len);
	if (copy->layout->is_binary)
		appendBinaryStringInfo(&stream, "\377\377", BINARY_TRAILER_BYTES);
	source.supplement = NULL;
	source.data = stream.data;
	source.left = stream.len;

	state = begin_copy_from(rel, copy->layout);
	if (!NextCopyFrom(state, econtext, values, isnull))
		elog(ERROR, "the last row of a chunk cannot be read");
	for (int i = 0; i < copy->layout->nkey; i++)
	{
		AttrNumber	attnum = copy->layout->key_attnums[i];
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
 * The same, in the layout's memory.  Reading values can run code of the table's
 * owner.
 */
static char **
last_key(PyrSupplement *supplement)
{
	PyrIdentity before = pyr_local_become(pyr_layout_owner(copy->layout));
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pyreplica last key",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	char	  **read = read_last_key(supplement);
	char	  **key;

	MemoryContextSwitchTo(copy->layout->context);
	key = palloc(copy->layout->nkey * sizeof(char *));
	for (int i = 0; i < copy->layout->nkey; i++)
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
	return pyr_layout_is_same(copy->layout, linitial(supplement->rows));
}

/*
 * A chunk has come: finds out where it ends, so that the next one can be asked
 * for while it is applied.  False: that cannot be done.  In a transaction of
 * its own.
 */
static bool
look_ahead(PyrSupplement *supplement)
{
	Ask		   *ask = supplement->what;
	MemoryContext context = CurrentMemoryContext;
	volatile bool is_good = true;

	if (copy == NULL || !is_next_chunk(supplement))
		return false;
	copy->last = NULL;
	copy->is_last = !copy->layout->is_sorted ||
		chunk_nrows(supplement) < ask->limit;
	if (copy->is_last)
		return true;

	PG_TRY();
	{
		pyr_local_begin_transaction();
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
 * Writes the rows that came into the table, or makes those of the range equal to
 * them.
 */
void
pyr_copy_range(PyrLayout *layout, PyrSupplement *supplement, PyrCopyMode mode,
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
		source.supplement = supplement;
		source.data = NULL;
		source.left = 0;
		source.between = between;
		state = begin_copy_from(rel, layout);
		if (mode == PYR_COPY_NEW)
			(void) CopyFrom(state);
		else
			pyr_mend_range(layout, rel, state, after, upto,
						   mode == PYR_COPY_RESYNC, between);
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
apply_chunk(PyrSupplement *supplement, void (*between) (void))
{
	Ask		   *ask = supplement->what;
	PyrTable   *table = copy->table;
	TimestampTz begin = GetCurrentTimestamp();
	int64		nrows = chunk_nrows(supplement);

	if (!copy->is_last && copy->last == NULL)
		copy->last = last_key(supplement);
	pyr_copy_range(copy->layout, supplement,
				   table->is_resync ? PYR_COPY_RESYNC : PYR_COPY_NEW, ask->after,
				   copy->is_last ? NULL : copy->last, between);
	table->rows_copied += nrows;
	pyr_table_clear_error(table);
	if (copy->is_last)
		finish_table(table);
	else
		pyr_table_set_bookmark(table, copy->last, copy->layout->nkey);
	pyr_table_store(table);
	adapt_chunk(nrows, begin);
	if (table->state == PYR_TABLE_READY)
		end_copy();
}

/*
 * Does what the supplement is for.
 */
static void
apply_supplement(PyrSupplement *supplement, void (*between) (void))
{
	Ask		   *ask = supplement->what;

	if (ask->kind == ASK_LIST)
		pyr_tables_take_list(supplement->rows);
	else if (ask->table->state != PYR_TABLE_WAITING &&
			 ask->table->state != PYR_TABLE_COPYING)
		return;
	else if (ask->table->retry_at > GetCurrentTimestamp())
		return;					/* it was asked for before it failed */
	else if (supplement->rows == NIL)
		pyr_tables_want_list();	/* it has no log trigger any more */
	else if (is_next_chunk(supplement))
		apply_chunk(supplement, between);
	else if (ask->kind == ASK_DESCRIPTION ||
			 copy == NULL || copy->table != ask->table ||
			 !pyr_layout_is_same(copy->layout, linitial(supplement->rows)))
	{
		if (copy_schema && ask->table->state == PYR_TABLE_WAITING &&
			!OidIsValid(pyr_layout_find(ask->table)))
		{
			/* it comes to be copied again once it has been made */
			pyr_table_set_missing(ask->table, true);
			return;
		}
		begin_copy(ask->table, linitial(supplement->rows));
		pyr_table_store(ask->table);
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
 * Takes in what came with a window whose changes have just been applied, in the
 * same transaction.  If that fails because of the table, the table alone
 * suffers.
 */
static void
apply(PyrSupplement *supplement, void (*between) (void))
{
	Ask		   *ask = supplement->what;
	Supplied	supplied = {supplement, between};
	PyrTable	before = {0};
	ErrorData  *error;

	if (ask->table != NULL)
		before = *ask->table;
	if (!pyr_local_try(attempt_supplement, &supplied, &error))
	{
		/* what is known of the table cannot be taken back, or there is none */
		if (ask->table == NULL || ask->table->bookmark != before.bookmark)
			ReThrowError(error);
		end_copy();
		pyr_table_set_state(ask->table, before.state);
		ask->table->rows_copied = before.rows_copied;
		ask->table->started_at = before.started_at;
		pyr_table_fail(ask->table, error);
	}
	if (copy != NULL)
		copy->last = NULL;
}

/*
 * The master refused what was asked for.
 */
static void
refused(PyrSupplement *supplement, ErrorData *error)
{
	Ask		   *ask = supplement->what;

	if (ask->table == NULL || pyr_is_of_the_system(error->sqlerrcode))
		ReThrowError(error);
	end_copy();
	pyr_local_begin_transaction();
	pyr_table_fail(ask->table, error);
	pyr_local_commit_transaction();
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
	supplement->look_ahead = look_ahead;
	supplement->apply = apply;
	supplement->refused = refused;
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
		supplement->locked = pyr_table_qualified(next);
		appendStringInfoString(&sql, pyr_layout_sql(schema, next));
	}
	if (ask->kind == ASK_ROWS)
	{
		after = copy->last != NULL ? copy->last : next->bookmark;
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
 * What is being copied, for people; NULL: nothing.
 */
char *
pyr_copy_progress(void)
{
	if (copy == NULL)
		return NULL;
	return psprintf("copying %s: " INT64_FORMAT " of about " INT64_FORMAT " rows",
					pyr_table_qualified(copy->table), copy->table->rows_copied,
					Max(copy->table->rows_expected, copy->table->rows_copied));
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
	return is_empty(pyr_table_qualified(table), owner);
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
	if (table->state == PYR_TABLE_READY)
		return PYR_ADMIT;
	if (shape->verb == PYR_TRUNCATE)
		return may_truncate(table) ? PYR_ADMIT : PYR_PASS_OVER;
	if (table->state != PYR_TABLE_COPYING || table->bookmark == NULL)
		return PYR_PASS_OVER;

	binding = pyr_target_bind(shape);
	if (binding->target->merge->nkey != table->nbookmark)
	{
		/* the master has another key by now */
		pyr_table_begin_anew(table);
		return PYR_PASS_OVER;
	}
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
