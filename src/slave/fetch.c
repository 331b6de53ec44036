/*-------------------------------------------------------------------------
 *
 * fetch.c
 *	  Asks for the entries between two snapshots of the master: a window.
 *
 * One statement, and so one snapshot of the master, answers with the snapshot
 * itself and with every entry that it sees and our position does not; see
 * master/reader.c.  When there is much to fetch, the window ends earlier, at
 * one of the marks: snapshots that writers left in the log (master/log.c).
 * How many marks we advance at once follows from how large the last windows
 * were.
 *
 * The entries are taken in as a whole, beyond pyreplica.window_memory into a
 * temporary file, before the first is applied: the master's statement ends
 * as soon as the network allows, however long applying takes.
 *
 * Something else can be asked for along with a window, supplements, which then
 * describe the master at the very instant that the window ends at: all is
 * read in one transaction with one snapshot.  Such a window ends in the present
 * whatever its size.
 *
 * A window can be fetched while another one is applied: the fetch is started,
 * pumped now and then, and finished when it is needed.  What it does in
 * between must not depend on the transaction it happens to run in, which may
 * be rolled back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/format.h"
#include "common/node.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "slave/fetch.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#define FETCH_STATEMENT	"pyreplica_fetch"

/* the widest rows that somebody expects of a supplement */
#define SUPPLEMENT_COLUMNS	8

/* a table of the master that is locked is tried again later */
#define LOCK_TIMEOUT_MS	200

#define BLOCK_BYTES		65536	/* of what is copied */

#define MARKS_FIRST		16
#define MARKS_MAX		65536
#define GROWTH_MAX		8.0

/* no need to look for more of a window sooner than this */
#define PUMP_INTERVAL_US	500

struct PyrWindow
{
	MemoryContext context;
	TupleDesc	desc;
	TupleTableSlot *slot;		/* the block being read */
	Tuplestorestate *blocks;	/* NULL if there are no entries */
	bytea	   *buffer;			/* for a block on its way there */
	Size		buffer_size;
	char	   *snapshot;		/* the master's, at the window's end */
	XLogRecPtr	wal;
	bool		is_complete;	/* the end is the present, not a mark */
	bool		has_prepared;	/* the master has prepared transactions */
	bool		has_left_out;	/* it left out what is not wanted here */
	int64		transactions;
	int64		bytes;

	/* what is left of the block being read */
	const char *data;
	const char *end;

	PyrSupplement *supplement;	/* what was asked for with it, or NULL */

	/* while it is fetched */
	PyrRemote  *remote;			/* NULL: it is not */
	PyrSupplement *coming;		/* that rows are for now */
	const char *wrong;			/* what was wrong with a block, or NULL */
	bool		is_pumping;
	TimestampTz pumped_at;
};

/* the window being fetched, if any */
static PyrWindow *under_way = NULL;

/* how many marks to advance next time */
static int	marks_to_pass = MARKS_FIRST;

/*
 * Makes an empty window, which is used again and again.  Needs a transaction.
 */
PyrWindow *
pyr_window_create(void)
{
	MemoryContext context;
	MemoryContext oldcontext;
	PyrWindow  *window;

	context = AllocSetContextCreate(TopMemoryContext, "pyreplica window",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);
	window = palloc0(sizeof(PyrWindow));
	window->context = context;
	window->desc = CreateTemplateTupleDesc(1);
	TupleDescInitEntry(window->desc, 1, "block", BYTEAOID, -1, 0);
	window->slot = MakeSingleTupleTableSlot(window->desc, &TTSOpsMinimalTuple);
	MemoryContextSwitchTo(oldcontext);
	return window;
}

/*
 * The user whose transactions are to be left out.  That is for the master to do.
 */
static const char *
unwanted_user(PyrOrigin *origin)
{
	if (skip_user[0] != '\0' && !origin->can_leave_out)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the master cannot leave out the transactions of user \"%s\"",
						skip_user),
				 errhint("Update pyreplica on the master, or set pyreplica.skip_user to nothing.")));
	return skip_user;
}

static const char *
wants_only_local(void)
{
	return origin_filter == PYR_ORIGIN_NONE ? "true" : "false";
}

/*
 * Prepares the statement in a new session.  $1 is our position, $2 how many
 * marks to advance, $3 how long to wait if there is nothing; then comes what is
 * to be left out: a user's transactions, what comes from here, and whether
 * anything else that the master did not make first.
 */
void
pyr_window_prepare(PyrOrigin *origin)
{
	char	   *sql = psprintf("SELECT %s.py_log_fetch($1::pg_catalog.pg_snapshot,"
							   " $2::pg_catalog.int4, $3::pg_catalog.int4%s)",
							   origin->schema,
							   origin->can_leave_out
							   ? ", $4::pg_catalog.text, $5::pg_catalog.text, $6::pg_catalog.bool" : "");

	/* if the connection is gone, the first fetch will tell */
	(void) pyr_remote()->prepare(origin->remote, FETCH_STATEMENT, sql);
	pfree(sql);
}

/*
 * Memory for one window.  Two may be there at a time, and half of what there is
 * belongs to the changes being merged.
 */
static int
memory_kb(void)
{
	return Max(window_memory_kb / 4, 64);
}

static int64
read_int64(const char *p)
{
	uint64		u64;

	memcpy(&u64, p, sizeof(u64));
	return (int64) pg_ntoh64(u64);
}

static int32
read_int32(const char *p)
{
	uint32		u32;

	memcpy(&u32, p, sizeof(u32));
	return (int32) pg_ntoh32(u32);
}

/*
 * Reads the entry at p, and returns the place behind it; NULL if it does not
 * end before "end".
 */
static inline const char *
read_entry(const char *p, const char *end, PyrEntry *entry)
{
	int32		len;

	if (end - p < PYR_ENTRY_HEAD_BYTES)
		return NULL;
	entry->commitno = read_int64(p);
	entry->xid = (uint64) read_int64(p + 8);
	entry->at = read_int64(p + 16);
	entry->part = read_int32(p + 24);
	len = read_int32(p + 28);
	p += PYR_ENTRY_HEAD_BYTES;
	if (len < 0 || len > end - p)
		return NULL;
	entry->data = p;
	entry->len = len;
	return p + len;
}

/*
 * Counts the block's transactions; -1 if it is not made of entries.
 */
static int64
count_transactions(const char *p, const char *end)
{
	int64		transactions = 0;
	PyrEntry	entry;

	while (p < end)
	{
		p = read_entry(p, end, &entry);
		if (p == NULL)
			return -1;
		if (entry.part == 0)
			transactions++;
	}
	return transactions;
}

static void
take_head(PyrWindow *window, const char *data, int len)
{
	int32		flags;

	if (len <= PYR_HEAD_BYTES)
		window->wrong = "the head is too short";
	else if (read_int32(data) != PYR_WINDOW_VERSION)
		window->wrong = "its version is not known here";
	if (window->wrong != NULL)
		return;

	flags = read_int32(data + 4);
	window->is_complete = (flags & PYR_WINDOW_COMPLETE) != 0;
	window->has_prepared = (flags & PYR_WINDOW_PREPARED) != 0;
	window->has_left_out = (flags & PYR_WINDOW_LEFT_OUT) != 0;
	window->wal = (XLogRecPtr) read_int64(data + 8);
	window->snapshot = MemoryContextAlloc(window->context,
										  len - PYR_HEAD_BYTES + 1);
	memcpy(window->snapshot, data + PYR_HEAD_BYTES, len - PYR_HEAD_BYTES);
	window->snapshot[len - PYR_HEAD_BYTES] = '\0';
}

/*
 * The block as a value; stays until the next one.
 */
static Datum
block_datum(PyrWindow *window, const char *data, int len)
{
	Size		size = VARHDRSZ + len;

	if (window->buffer_size < size)
	{
		if (window->buffer != NULL)
			pfree(window->buffer);
		window->buffer = NULL;
		window->buffer_size = 0;
		window->buffer = MemoryContextAlloc(window->context, size);
		window->buffer_size = size;
	}
	SET_VARSIZE(window->buffer, size);
	memcpy(VARDATA(window->buffer), data, len);
	return PointerGetDatum(window->buffer);
}

static void
take_block(PyrWindow *window, const char *data, int len)
{
	int64		transactions = count_transactions(data, data + len);
	bool		isnull = false;
	Datum		block;

	if (transactions < 0)
	{
		window->wrong = "an entry is cut off";
		return;
	}
	block = block_datum(window, data, len);

	/* interXact; that it can be read more than once goes without saying */
	if (window->blocks == NULL)
		window->blocks = tuplestore_begin_heap(false, true, memory_kb());
	tuplestore_putvalues(window->blocks, window->desc, &block, &isnull);
	window->transactions += transactions;
	window->bytes += len;
}

/*
 * Makes a supplement to be asked for; what and sql are still to be set.
 */
PyrSupplement *
pyr_supplement_create(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "pyreplica supplement",
												  ALLOCSET_SMALL_SIZES);
	PyrSupplement *supplement = MemoryContextAllocZero(context,
													   sizeof(PyrSupplement));

	supplement->context = context;
	return supplement;
}

/*
 * Forgets it, and those that were read with it.
 */
void
pyr_supplement_free(PyrSupplement *supplement)
{
	while (supplement != NULL)
	{
		PyrSupplement *next = supplement->next;

		if (supplement->slot != NULL)
			ExecDropSingleTupleTableSlot(supplement->slot);
		if (supplement->copied != NULL)
			tuplestore_end(supplement->copied);
		MemoryContextDelete(supplement->context);
		supplement = next;
	}
}

/*
 * Keeps a row; NULLs are NULL pointers.
 */
static void
keep_row(PyrSupplement *supplement, int ncols, const PyrRemoteValue *values)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(supplement->context);
	char	  **row = palloc0(Max(ncols, SUPPLEMENT_COLUMNS) * sizeof(char *));

	for (int i = 0; i < ncols; i++)
		row[i] = values[i].len < 0 ? NULL : pnstrdup(values[i].data,
													 values[i].len);
	supplement->rows = lappend(supplement->rows, row);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Puts the block that is being filled away.
 */
static void
put_copied_block(PyrWindow *window, PyrSupplement *supplement)
{
	Datum		block;
	bool		isnull = false;

	SET_VARSIZE(supplement->block.data, supplement->block.len);
	block = PointerGetDatum(supplement->block.data);
	if (supplement->copied == NULL)
		supplement->copied = tuplestore_begin_heap(false, true,
												   memory_kb() / (1 + copy_workers));
	tuplestore_putvalues(supplement->copied, window->desc, &block, &isnull);
	supplement->block.len = VARHDRSZ;
}

/*
 * A PyrRemoteCopied, with the same duties as take_row.
 */
static void
take_copied(void *arg, const char *data, int len)
{
	PyrWindow  *window = arg;
	PyrSupplement *supplement = window->coming;
	MemoryContext oldcontext = MemoryContextSwitchTo(supplement->context);
	ResourceOwner oldowner = CurrentResourceOwner;
	StringInfoData before_last = supplement->last[1];

	CurrentResourceOwner = NULL;
	if (supplement->block.data == NULL)
	{
		initStringInfo(&before_last);
		initStringInfo(&supplement->last[0]);
		initStringInfo(&supplement->block);
		enlargeStringInfo(&supplement->block, BLOCK_BYTES);
		supplement->block.len = VARHDRSZ;
		supplement->slot = MakeSingleTupleTableSlot(window->desc,
													&TTSOpsMinimalTuple);
	}
	if (supplement->block.len > VARHDRSZ &&
		supplement->block.len + len > BLOCK_BYTES)
		put_copied_block(window, supplement);
	appendBinaryStringInfo(&supplement->block, data, len);

	supplement->last[1] = supplement->last[0];
	supplement->last[0] = before_last;
	resetStringInfo(&supplement->last[0]);
	appendBinaryStringInfo(&supplement->last[0], data, len);
	supplement->nmessages++;
	CurrentResourceOwner = oldowner;
	MemoryContextSwitchTo(oldcontext);
}

/*
 * The next block of what was copied; stays until the next one.  False: there is
 * no more.
 */
bool
pyr_supplement_next(PyrSupplement *supplement, const char **data, size_t *len)
{
	MemoryContext oldcontext;
	bytea	   *block;
	bool		found;

	if (supplement->copied == NULL)
		return false;
	oldcontext = MemoryContextSwitchTo(supplement->context);
	found = tuplestore_gettupleslot(supplement->copied, true, false,
									supplement->slot);
	MemoryContextSwitchTo(oldcontext);
	if (!found)
		return false;
	slot_getallattrs(supplement->slot);
	block = DatumGetByteaPP(supplement->slot->tts_values[0]);
	*data = VARDATA_ANY(block);
	*len = VARSIZE_ANY_EXHDR(block);
	return true;
}

/*
 * A PyrRemoteRow.  It may be called within any transaction, to which nothing
 * of ours must belong; and what is wrong with a block is told at the end.
 */
static void
take_row(void *arg, int ncols, const PyrRemoteValue *values)
{
	PyrWindow  *window = arg;
	MemoryContext oldcontext;
	ResourceOwner oldowner = CurrentResourceOwner;

	if (window->wrong != NULL)
		return;					/* the rest is of no use */

	oldcontext = MemoryContextSwitchTo(window->context);
	CurrentResourceOwner = NULL;
	if (ncols == 0 && window->coming != NULL && window->coming->next != NULL)
		window->coming = window->coming->next;
	else if (ncols != 1 && window->coming != NULL)
		keep_row(window->coming, ncols, values);
	else if (ncols != 1 || values[0].len < 0)
		window->wrong = "it is no block";
	else if (window->snapshot == NULL)
		take_head(window, values[0].data, values[0].len);
	else
		take_block(window, values[0].data, values[0].len);
	CurrentResourceOwner = oldowner;
	MemoryContextSwitchTo(oldcontext);
}

/*
 * The next window should nearly fill its memory, if it is like this one.  A
 * larger one costs a temporary file; with smaller ones less is merged, and what
 * is near to each other is visited more often.
 */
static void
adapt_marks(PyrWindow *window)
{
	int64		wanted = (int64) memory_kb() * 1024 * 3 / 4;
	double		factor = (double) wanted / Max(window->bytes, 1);

	/* one that ends in the present says nothing about how much there could be */
	if (window->is_complete && factor > 1)
		return;
	factor = Max(Min(factor, GROWTH_MAX), 1.0 / GROWTH_MAX);
	marks_to_pass = (int) Max(Min(marks_to_pass * factor, MARKS_MAX), 1);
}

/*
 * Locks the tables that are read along with a window.
 *
 * That is done before the snapshot is taken: an ALTER TABLE that writes a table
 * anew makes it look empty to older snapshots.  And nobody else's lock on it may
 * keep the window from us.
 *
 * Which partitions a table has is not told by the snapshot, but by what has been
 * committed when the table is read.  A lock on the table itself keeps partitions from
 * being detached, but not from being attached; for that, py_log_partitions takes one
 * that conflicts with ours.
 */
static void
append_locks(StringInfo sql, PyrSupplement *supplement, const char *schema)
{
	bool		is_any_partitioned = false;

	appendStringInfo(sql, "SET LOCAL lock_timeout = %d;", LOCK_TIMEOUT_MS);
	for (; supplement != NULL; supplement = supplement->next)
	{
		if (supplement->locked != NULL)
			appendStringInfo(sql, "LOCK TABLE %s IN ACCESS SHARE MODE;",
							 supplement->locked);
		is_any_partitioned = is_any_partitioned || supplement->is_partitioned;
	}
	if (is_any_partitioned)
		appendStringInfo(sql, "LOCK TABLE %s.replica_partition_lock IN SHARE MODE;",
						 schema);
	appendStringInfoString(sql, "SET LOCAL lock_timeout = 0;");
}

/*
 * Asks for the window up to the present, with its supplements.  Several
 * statements sent as one are one transaction without further ado.  The cursor
 * is there because only so a statement without parameters returns binary
 * values.  A row without columns comes between the supplements.
 */
static void
start_with_supplement(PyrWindow *window, PyrOrigin *origin, const char *from)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;");
	append_locks(&sql, window->supplement, origin->schema);
	appendStringInfo(&sql,
					 "DECLARE pyreplica_window BINARY CURSOR FOR"
					 " SELECT %s.py_log_fetch(%s::pg_catalog.pg_snapshot, %d, 0%s);"
					 "FETCH ALL FROM pyreplica_window;",
					 origin->schema, quote_literal_cstr(from), PG_INT32_MAX,
					 !origin->can_leave_out ? "" :
					 psprintf(", %s::pg_catalog.text, %s::pg_catalog.text, %s",
							  quote_literal_cstr(unwanted_user(origin)),
							  quote_literal_cstr(pyr_node_here()),
							  wants_only_local()));
	for (PyrSupplement *supplement = window->supplement; supplement != NULL;
		 supplement = supplement->next)
		appendStringInfo(&sql, "%s%s", supplement->sql,
						 supplement->next != NULL ? ";SELECT;" : "");
	window->coming = window->supplement;
	pyr_remote()->start_script(origin->remote, sql.data, take_row, take_copied,
							   window);
	pfree(sql.data);
}

/*
 * Begins to fetch the window that begins at the snapshot.  If there is nothing,
 * the master may take some milliseconds to see if something comes.  Until it is
 * finished, nothing else can be asked of the master.
 *
 * The supplement, if there is one, belongs to the window from now on.
 */
void
pyr_window_fetch_start(PyrWindow *window, PyrOrigin *origin,
					   const char *from, int linger_ms,
					   PyrSupplement *supplement)
{
	char		marks[16];
	char		linger[16];
	const char *params[PYR_FETCH_ARGS] = {
		from, marks, linger,
		unwanted_user(origin), pyr_node_here(), wants_only_local()
	};

	Assert(under_way == NULL);
	pyr_window_clear(window);
	window->remote = origin->remote;
	window->supplement = supplement;
	under_way = window;
	if (supplement != NULL)
	{
		start_with_supplement(window, origin, from);
		return;
	}
	snprintf(marks, sizeof(marks), "%d", marks_to_pass);
	snprintf(linger, sizeof(linger), "%d", linger_ms);
	pyr_remote()->start(origin->remote, FETCH_STATEMENT, NULL,
						origin->can_leave_out ? PYR_FETCH_ARGS : 3, params,
						take_row, window);
}

/*
 * Takes in what has come of the window that is being fetched, if any.  To be
 * called often by whoever is busy with something else; it costs next to nothing.
 * It throws nothing but what is wrong here (out of memory, disk
 * full), after which the window cannot be finished.
 */
void
pyr_window_fetch_pump(void)
{
	PyrWindow  *window = under_way;
	TimestampTz now;

	if (window == NULL || window->is_pumping)
		return;
	now = GetCurrentTimestamp();
	if (now - window->pumped_at < PUMP_INTERVAL_US)
		return;
	window->pumped_at = now;
	window->is_pumping = true;
	pyr_remote()->pump(window->remote);
	window->is_pumping = false;
}

/*
 * Waits for the latch; takes in what comes meanwhile of the window that is being
 * fetched, if any.
 */
void
pyr_window_fetch_wait(void)
{
	if (under_way != NULL && !under_way->is_pumping &&
		pyr_remote()->wait_answer(under_way->remote))
	{
		under_way->pumped_at = 0;
		pyr_window_fetch_pump();
	}
	else
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	CHECK_FOR_INTERRUPTS();
}

/*
 * Whether a window is being fetched.
 */
bool
pyr_window_fetch_is_under_way(void)
{
	return under_way != NULL;
}

/*
 * Waits for the rest of the window.  False: the connection is gone, and with
 * it what there was of the window.
 */
bool
pyr_window_fetch_finish(PyrWindow *window)
{
	bool		alive;

	Assert(under_way == window);
	if (window->is_pumping)
		elog(ERROR, "could not take in what the master sent");
	alive = pyr_remote()->finish(window->remote);
	window->remote = NULL;
	under_way = NULL;
	if (!alive)
	{
		pyr_window_clear(window);
		return false;
	}
	if (window->snapshot == NULL && window->wrong == NULL)
		window->wrong = "it is empty";
	if (window->wrong != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not read what the master sent: %s",
						window->wrong)));
	for (PyrSupplement *supplement = window->supplement; supplement != NULL;
		 supplement = supplement->next)
	{
		if (supplement->block.len > VARHDRSZ)
			put_copied_block(window, supplement);
	}
	adapt_marks(window);
	return true;
}

/*
 * Whether nothing was logged in between.  If something was that is not wanted
 * here, nothing is to be applied, but the position has to be stored: the master
 * keeps its log until we have passed it.
 */
bool
pyr_window_is_empty(PyrWindow *window)
{
	return window->blocks == NULL && !window->has_left_out;
}

bool
pyr_window_is_complete(PyrWindow *window)
{
	return window->is_complete;
}

bool
pyr_window_has_prepared(PyrWindow *window)
{
	return window->has_prepared;
}

const char *
pyr_window_snapshot(PyrWindow *window)
{
	return window->snapshot;
}

XLogRecPtr
pyr_window_wal(PyrWindow *window)
{
	return window->wal;
}

int64
pyr_window_transactions(PyrWindow *window)
{
	return window->transactions;
}

int64
pyr_window_bytes(PyrWindow *window)
{
	return window->bytes;
}

static bool
next_block(PyrWindow *window)
{
	MemoryContext oldcontext;
	bytea	   *block;
	bool		found;

	if (window->blocks == NULL)
		return false;

	/* a block from the file belongs to the window, not to our caller */
	oldcontext = MemoryContextSwitchTo(window->context);
	found = tuplestore_gettupleslot(window->blocks, true, false, window->slot);
	MemoryContextSwitchTo(oldcontext);
	if (!found)
		return false;
	slot_getallattrs(window->slot);
	block = DatumGetByteaPP(window->slot->tts_values[0]);
	window->data = VARDATA_ANY(block);
	window->end = window->data + VARSIZE_ANY_EXHDR(block);
	return true;
}

/*
 * The next entry, in the order to be applied; false: there are no more.
 */
bool
pyr_window_next(PyrWindow *window, PyrEntry *entry)
{
	while (window->data == window->end)
	{
		if (!next_block(window))
			return false;
	}

	/* it was checked when it came */
	window->data = read_entry(window->data, window->end, entry);
	return true;
}

/*
 * Starts reading again from the first entry.
 */
void
pyr_window_rewind(PyrWindow *window)
{
	ExecClearTuple(window->slot);
	window->data = window->end = NULL;
	if (window->blocks != NULL)
		tuplestore_rescan(window->blocks);
}

/*
 * What was asked for with the window, or NULL.
 */
PyrSupplement *
pyr_window_supplement(PyrWindow *window)
{
	return window->supplement;
}

/*
 * Forgets the window's entries, and that it was being fetched.
 */
void
pyr_window_clear(PyrWindow *window)
{
	ExecClearTuple(window->slot);
	window->data = window->end = NULL;
	if (window->blocks != NULL)
		tuplestore_end(window->blocks);
	window->blocks = NULL;
	if (window->snapshot != NULL)
		pfree(window->snapshot);
	window->snapshot = NULL;
	window->has_left_out = false;
	window->transactions = 0;
	window->bytes = 0;
	if (window->supplement != NULL)
		pyr_supplement_free(window->supplement);
	window->supplement = window->coming = NULL;
	window->wrong = NULL;
	window->remote = NULL;
	window->is_pumping = false;
	if (under_way == window)
		under_way = NULL;
}
