/*-------------------------------------------------------------------------
 *
 * fetch.c
 *	  Asks for the entries between two snapshots of the master: a window.
 *
 * One statement, and so one snapshot of the master, answers with the snapshot
 * itself and with every entry that it sees and our position does not.  Those
 * are the entries at or past our position's xmax, and those of transactions
 * that were in progress in it; an index on the transaction id finds both, so
 * the cost depends on the window alone.
 *
 * When there is much to fetch, the window ends earlier, at one of the marks:
 * snapshots that writers left in the log (master/log.c).  How many marks we
 * advance at once follows from how large the last windows were.
 *
 * The entries are taken in as a whole, beyond pyreplica.window_memory into a
 * temporary file, before the first is applied: the master's statement ends
 * as soon as the network allows, however long applying takes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "common/config.h"
#include "executor/tuptable.h"
#include "port/pg_bswap.h"
#include "slave/fetch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#define FETCH_STATEMENT	"pyreplica_fetch"

#define MARKS_FIRST		16
#define MARKS_MAX		65536

/* columns of the fetch statement and of the tuplestore */
enum
{
	COL_COMMITNO,
	COL_XID,
	COL_AT,
	COL_PART,
	COL_CHANGES,
	NCOLS
};

struct PyrWindow
{
	MemoryContext context;
	TupleDesc	desc;
	TupleTableSlot *slot;
	Tuplestorestate *entries;	/* NULL if there are none */
	char	   *snapshot;		/* the master's, at the window's end */
	XLogRecPtr	wal;
	bool		is_complete;	/* the end is the present, not a mark */
	bool		has_prepared;	/* the master has prepared transactions */
	int64		transactions;
	int64		bytes;
	int			marks;			/* how many to advance next time */
};

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
	window->marks = MARKS_FIRST;
	window->desc = CreateTemplateTupleDesc(NCOLS);
	TupleDescInitEntry(window->desc, COL_COMMITNO + 1, "commitno", INT8OID, -1, 0);
	TupleDescInitEntry(window->desc, COL_XID + 1, "xid", INT8OID, -1, 0);
	TupleDescInitEntry(window->desc, COL_AT + 1, "at", INT8OID, -1, 0);
	TupleDescInitEntry(window->desc, COL_PART + 1, "part", INT4OID, -1, 0);
	TupleDescInitEntry(window->desc, COL_CHANGES + 1, "changes", BYTEAOID, -1, 0);
	window->slot = MakeSingleTupleTableSlot(window->desc, &TTSOpsMinimalTuple);
	MemoryContextSwitchTo(oldcontext);
	return window;
}

/*
 * Prepares the statement in a new session.
 *
 * $1 is our position, $2 how many marks to pass over.  The first row tells
 * about the window: its end as text in "changes", the flushed WAL position in
 * commitno, in part whether it is complete, and in xid whether there are
 * prepared transactions.
 */
void
pyr_window_prepare(PyrOrigin *origin)
{
	char	   *sql = psprintf(
		"WITH mark AS MATERIALIZED ("
		"  SELECT l.snapshot FROM %1$s.replica_log l"
		"   WHERE l.snapshot IS NOT NULL"
		"     AND l.xid OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmax($1)"
		"     AND pg_catalog.pg_snapshot_xmax(l.snapshot) OPERATOR(pg_catalog.>) pg_catalog.pg_snapshot_xmax($1)"
		"   ORDER BY l.xid OFFSET $2 LIMIT 1),"
		" win AS MATERIALIZED ("
		"  SELECT COALESCE((SELECT m.snapshot FROM mark m), pg_catalog.pg_current_snapshot()) AS upto,"
		"         NOT EXISTS (SELECT FROM mark) AS complete)"
		" SELECT (%1$s.py_log_flush() OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn)::pg_catalog.int8 AS commitno,"
		"        (CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_prepared_xacts p"
		"                            WHERE p.database = pg_catalog.current_database())"
		"         THEN '1' ELSE '0' END)::pg_catalog.xid8 AS xid, pg_catalog.now() AS at,"
		"        CASE WHEN w.complete THEN -1 ELSE -2 END AS part,"
		"        pg_catalog.convert_to(w.upto::pg_catalog.text, 'SQL_ASCII') AS changes, 0 AS kind"
		"   FROM win w"
		" UNION ALL"
		" SELECT l.commitno, l.xid, l.at, l.part, l.changes, 1"
		"   FROM %1$s.replica_log l"
		"  WHERE l.xid OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmax($1)"
		"    AND l.xid OPERATOR(pg_catalog.<) pg_catalog.pg_snapshot_xmax((SELECT w.upto FROM win w))"
		"    AND pg_catalog.pg_visible_in_snapshot(l.xid, (SELECT w.upto FROM win w))"
		" UNION ALL"
		" SELECT l.commitno, l.xid, l.at, l.part, l.changes, 1"
		"   FROM %1$s.replica_log l"
		"  WHERE l.xid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip($1)))"
		"    AND pg_catalog.pg_visible_in_snapshot(l.xid, (SELECT w.upto FROM win w))"
		" ORDER BY kind, commitno, xid, part",
		origin->schema);

	if (!pyr_remote()->prepare(origin->remote, FETCH_STATEMENT, sql))
		return;					/* the first fetch will tell */
	pfree(sql);
}

static int64
int64_of(const PyrRemoteValue *value)
{
	uint64		u64;

	if (value->len != 8)
		elog(ERROR, "unexpected answer from the master");
	memcpy(&u64, value->data, 8);
	return (int64) pg_ntoh64(u64);
}

static int32
int32_of(const PyrRemoteValue *value)
{
	uint32		u32;

	if (value->len != 4)
		elog(ERROR, "unexpected answer from the master");
	memcpy(&u32, value->data, 4);
	return (int32) pg_ntoh32(u32);
}

static void
take_head(PyrWindow *window, const PyrRemoteValue *values)
{
	window->wal = (XLogRecPtr) int64_of(&values[COL_COMMITNO]);
	window->is_complete = int32_of(&values[COL_PART]) == -1;
	window->has_prepared = int64_of(&values[COL_XID]) != 0;
	window->snapshot = MemoryContextStrdup(window->context,
										   pnstrdup(values[COL_CHANGES].data,
													values[COL_CHANGES].len));
}

static void
begin_entries(PyrWindow *window)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(window->context);

	/* it outlives transactions, hence interXact */
	window->entries = tuplestore_begin_heap(false, true, window_memory_kb);
	MemoryContextSwitchTo(oldcontext);
}

/* a PyrRemoteRow */
static void
take_row(void *arg, int ncols pg_attribute_unused(), const PyrRemoteValue *values)
{
	PyrWindow  *window = arg;
	Datum		datums[NCOLS];
	bool		isnull[NCOLS] = {false};
	bytea	   *changes;
	int32		part;

	if (window->snapshot == NULL)
	{
		take_head(window, values);
		return;
	}

	if (window->entries == NULL)
		begin_entries(window);

	part = int32_of(&values[COL_PART]);
	if (part == 0)
		window->transactions++;
	window->bytes += values[COL_CHANGES].len;

	changes = (bytea *) cstring_to_text_with_len(values[COL_CHANGES].data,
												 values[COL_CHANGES].len);
	datums[COL_COMMITNO] = Int64GetDatum(int64_of(&values[COL_COMMITNO]));
	datums[COL_XID] = Int64GetDatum(int64_of(&values[COL_XID]));
	datums[COL_AT] = Int64GetDatum(int64_of(&values[COL_AT]));
	datums[COL_PART] = Int32GetDatum(part);
	datums[COL_CHANGES] = PointerGetDatum(changes);
	tuplestore_putvalues(window->entries, window->desc, datums, isnull);
	pfree(changes);
}

/*
 * Windows that do not fit into memory are too large, those that leave much of
 * it free are too small.
 */
static void
adapt_marks(PyrWindow *window)
{
	int64		limit = (int64) window_memory_kb * 1024;

	if (window->bytes > limit)
		window->marks = Max(window->marks / 2, 1);
	else if (!window->is_complete && window->bytes < limit / 4)
		window->marks = Min(window->marks * 2, MARKS_MAX);
}

/*
 * Fetches the window that begins at the position.  False: the connection is
 * gone, and with it what there was of the window.
 */
bool
pyr_window_fetch(PyrWindow *window, PyrOrigin *origin, PyrPosition *from)
{
	char		marks[16];
	const char *params[2] = {from->snapshot, marks};

	pyr_window_clear(window);
	snprintf(marks, sizeof(marks), "%d", window->marks - 1);
	if (!pyr_remote()->query(origin->remote, FETCH_STATEMENT, NULL,
							 2, params, take_row, window))
	{
		pyr_window_clear(window);
		return false;
	}
	if (window->snapshot == NULL)
		elog(ERROR, "unexpected answer from the master");
	adapt_marks(window);
	return true;
}

bool
pyr_window_is_empty(PyrWindow *window)
{
	return window->entries == NULL;
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

/*
 * The next entry, in the order to be applied; false: there are no more.
 */
bool
pyr_window_next(PyrWindow *window, PyrEntry *entry)
{
	bytea	   *changes;

	if (!tuplestore_gettupleslot(window->entries, true, false, window->slot))
		return false;
	slot_getallattrs(window->slot);
	entry->commitno = DatumGetInt64(window->slot->tts_values[COL_COMMITNO]);
	entry->xid = (uint64) DatumGetInt64(window->slot->tts_values[COL_XID]);
	entry->at = DatumGetInt64(window->slot->tts_values[COL_AT]);
	entry->part = DatumGetInt32(window->slot->tts_values[COL_PART]);
	changes = (bytea *) DatumGetPointer(window->slot->tts_values[COL_CHANGES]);
	entry->data = VARDATA_ANY(changes);
	entry->len = VARSIZE_ANY_EXHDR(changes);
	return true;
}

/*
 * Forgets the window's entries.
 */
void
pyr_window_clear(PyrWindow *window)
{
	ExecClearTuple(window->slot);
	if (window->entries != NULL)
		tuplestore_end(window->entries);
	window->entries = NULL;
	if (window->snapshot != NULL)
		pfree(window->snapshot);
	window->snapshot = NULL;
	window->transactions = 0;
	window->bytes = 0;
}
