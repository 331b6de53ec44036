/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  The log as a slave asks for it: a window, in the order to be applied.
 *
 * py_log_fetch first finds the entries of the window, by the indexes on xid,
 * and notes what each is to be sorted by.  Then it packs them in order into
 * blocks (see common/format.h), one of which it hands out at each call.  Some
 * megabytes of entries are kept from the first to the second step, which spares
 * another visit to the tables; beyond that, only where they are.  So a window
 * takes little memory however large it is, and the slave begins to receive it
 * soon.
 *
 * Everything is read with one snapshot, and that is also what the window ends
 * at, unless a mark comes first.  Between calls nothing is kept but memory and
 * the locks on the tables, which last to the end of the transaction: no inner
 * table can be emptied in between.
 *
 * A slave that expects more very soon lets a look linger here for some
 * milliseconds.  The server counts the transactions that end, and that count is
 * looked at often: it costs next to nothing, nobody has to notify anybody, and
 * the slave gets what is committed without another round trip.
 *
 * What the slave does not want is left out here, so that it does not cross the
 * wire: transactions of a user, and those that only bring what was first made
 * elsewhere (see node.c).  Every part of a transaction tells both, so no part has
 * to be looked at twice.
 *
 * The log's tables are read here, not by SQL, so the caller needs no rights on
 * them; the right to execute the function is the right to read the log.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/commit_ts.h"
#include "access/genam.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "common/compat.h"
#include "common/format.h"
#include "common/wal.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "master/place.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(py_log_fetch);

/*
 * A block is closed when it has this much.  Large enough that what a row costs
 * on its way does not count, small enough that both sides keep each other busy.
 */
#define BLOCK_BYTES		(64 * 1024)

/* so much of a window is kept in memory, as it is to be sent */
#define KEEP_BYTES		(4 * 1024 * 1024)

/* sorting by insertion is given up after this many moves an entry */
#define MOVES_MAX		16

/* how often a look that lingers asks for ended transactions, and how long */
#define LINGER_PAUSE_US		100
#define LINGER_MAX_MS		100

/*
 * It goes on if there was only what the slave does not want, but not if it would
 * look at more than that again and again.
 */
#define LINGER_LEFT_OUT_MAX	1000

/* a pg_snapshot, taken apart; its own structure is private to the server */
typedef struct Bounds
{
	uint64		xmin;
	uint64		xmax;
	int			nxip;
	uint64	   *xip;			/* sorted */
} Bounds;

/* where an entry is, and what it is sorted by */
typedef struct Located
{
	int64		commitno;
	uint64		xid;
	int32		part;
	union
	{
		uint32		offset;		/* in what is kept */
		ItemPointerData tid;
	}			where;
	int8		table;			/* inner table, from 0; KEPT: none */
} Located;

#define KEPT			(-1)

/* what a slave does not want */
typedef struct Unwanted
{
	text	   *user;			/* transactions of this session user */
	text	   *node;			/* what was first made on this node */
	bool		foreign;		/* what was not made here first */
} Unwanted;

/* a scan of one inner table by one of its indexes */
typedef struct LogScan
{
	Relation	table;
	Relation	index;
	IndexScanDesc scan;			/* NULL: the table is empty */
	TupleTableSlot *slot;
	ScanKeyData keys[2];
} LogScan;

/* a window on its way out */
typedef struct Reader
{
	MemoryContext context;		/* of what is found */
	PyrPlace	place;
	Unwanted	unwanted;
	bool		has_prepared;	/* the database had prepared transactions */
	Bounds		from;			/* the slave's position */
	Bounds		upto;			/* where the window ends */
	char	   *upto_text;
	bool		is_complete;	/* that is the present, not a mark */
	XLogRecPtr	wal;
	int64		nleft_out;		/* entries of the window that are unwanted */
	Located    *entries;
	int64		nentries;
	int64		maxentries;
	int64		next;			/* entry to be sent */
	StringInfoData kept;		/* entries, as in blocks */
	bool		is_head_sent;
} Reader;

/*
 * Takes a snapshot apart, by its text, which is xmin:xmax:xip,xip...
 */
static char *
read_bounds(Datum snapshot, Bounds *bounds)
{
	char	   *text = DatumGetCString(DirectFunctionCall1(pg_snapshot_out, snapshot));
	char	   *p = text;
	int			room = 0;

	bounds->xmin = strtou64(p, &p, 10);
	bounds->xmax = strtou64(p + 1, &p, 10);
	bounds->nxip = 0;
	bounds->xip = NULL;
	p++;
	while (*p != '\0')
	{
		if (bounds->nxip == room)
		{
			room = Max(16, room * 2);
			bounds->xip = bounds->xip == NULL
				? palloc(room * sizeof(uint64))
				: repalloc(bounds->xip, room * sizeof(uint64));
		}
		bounds->xip[bounds->nxip++] = strtou64(p, &p, 10);
		if (*p == ',')
			p++;
	}
	return text;
}

static bool
is_seen(uint64 xid, const Bounds *bounds)
{
	int			low = 0;
	int			high = bounds->nxip;

	if (xid < bounds->xmin)
		return true;
	if (xid >= bounds->xmax)
		return false;
	while (low < high)
	{
		int			middle = (low + high) / 2;

		if (bounds->xip[middle] == xid)
			return false;
		if (bounds->xip[middle] < xid)
			low = middle + 1;
		else
			high = middle;
	}
	return true;
}

/*
 * Goes to the entries with from <= xid < upto.
 */
static void
set_range(LogScan *scan, uint64 from, uint64 upto)
{
	ScanKeyInit(&scan->keys[0], 1, BTGreaterEqualStrategyNumber, F_XID8GE,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(from)));
	ScanKeyInit(&scan->keys[1], 1, BTLessStrategyNumber, F_XID8LT,
				FullTransactionIdGetDatum(FullTransactionIdFromU64(upto)));
	if (scan->scan != NULL)
		index_rescan(scan->scan, scan->keys, 2, NULL, 0);
}

/*
 * Begins a scan, which finds nothing without set_range.  Mostly, two of the
 * inner tables are empty, so that is worth a question.
 */
static void
begin_scan(LogScan *scan, Oid tableoid, Oid indexoid)
{
	scan->table = table_open(tableoid, AccessShareLock);
	scan->scan = NULL;
	if (RelationGetNumberOfBlocks(scan->table) == 0)
		return;
	scan->index = index_open(indexoid, AccessShareLock);
	scan->slot = table_slot_create(scan->table, NULL);
	scan->scan = pyr_index_beginscan(scan->table, scan->index,
									 GetActiveSnapshot(), 2);
}

static bool
next_entry(LogScan *scan)
{
	return scan->scan != NULL &&
		index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot);
}

static Datum
get_column(TupleTableSlot *slot, int column)
{
	bool		isnull;

	/* not for username, origin and snapshot, which alone may be NULL */
	return slot_getattr(slot, column + 1, &isnull);
}

static uint64
get_xid(TupleTableSlot *slot)
{
	return U64FromFullTransactionId(DatumGetFullTransactionId(get_column(slot, PYR_COL_XID)));
}

static void
end_scan(LogScan *scan)
{
	if (scan->scan != NULL)
	{
		index_endscan(scan->scan);
		ExecDropSingleTupleTableSlot(scan->slot);
		index_close(scan->index, NoLock);
	}
	table_close(scan->table, NoLock);
}

/*
 * Whether the mark that the scan is at lies past the position; else it is of
 * no use.
 */
static bool
is_mark_ahead(Reader *reader, TupleTableSlot *slot)
{
	Datum		xmax = DirectFunctionCall1(pg_snapshot_xmax,
										   get_column(slot, PYR_COL_SNAPSHOT));

	return U64FromFullTransactionId(DatumGetFullTransactionId(xmax)) >
		reader->from.xmax;
}

static bool
next_mark(Reader *reader, LogScan *scan)
{
	while (next_entry(scan))
	{
		CHECK_FOR_INTERRUPTS();
		if (is_mark_ahead(reader, scan->slot))
			return true;
	}
	return false;
}

/*
 * The marks-th mark past the position, in the order of xid, which the scans
 * of the inner tables are merged to; false: there are not so many.
 */
static bool
find_mark(Reader *reader, int marks, Datum *snapshot)
{
	LogScan		scans[PYR_INNER_TABLES];
	bool		has_mark[PYR_INNER_TABLES];
	int			lowest = -1;

	for (int i = 0; i < PYR_INNER_TABLES; i++)
	{
		begin_scan(&scans[i], reader->place.tables[i],
				   reader->place.mark_indexes[i]);
		set_range(&scans[i], reader->from.xmax, PG_UINT64_MAX);
		has_mark[i] = next_mark(reader, &scans[i]);
	}
	for (int n = 0; n < marks; n++)
	{
		if (lowest >= 0)
			has_mark[lowest] = next_mark(reader, &scans[lowest]);
		lowest = -1;
		for (int i = 0; i < PYR_INNER_TABLES; i++)
		{
			if (has_mark[i] &&
				(lowest < 0 ||
				 get_xid(scans[i].slot) < get_xid(scans[lowest].slot)))
				lowest = i;
		}
		if (lowest < 0)
			break;
	}
	if (lowest >= 0)
		*snapshot = PointerGetDatum(PG_DETOAST_DATUM_COPY(get_column(scans[lowest].slot,
																	 PYR_COL_SNAPSHOT)));
	for (int i = 0; i < PYR_INNER_TABLES; i++)
		end_scan(&scans[i]);
	return lowest >= 0;
}

/*
 * When the transaction committed.  If the server keeps that, it is the time that
 * the rows have here, too: whoever has to tell which of two updates is the last
 * must come to the same answer on both sides.  An entry only has the time just
 * before.
 */
static TimestampTz
commit_time(uint64 xid, TimestampTz before)
{
	TimestampTz at;
	RepOriginId origin;

	if (!track_commit_timestamp ||
		!TransactionIdGetCommitTsData((TransactionId) xid, &at, &origin))
		return before;
	return at;
}

/*
 * Writes an entry as it is in a block.
 */
static void
append_entry(StringInfo block, const Located *entry, TupleTableSlot *slot)
{
	bytea	   *changes = DatumGetByteaPP(get_column(slot, PYR_COL_CHANGES));
	int			len = VARSIZE_ANY_EXHDR(changes);

	enlargeStringInfo(block, PYR_ENTRY_HEAD_BYTES + len);
	pq_writeint64(block, entry->commitno);
	pq_writeint64(block, entry->xid);
	pq_writeint64(block, commit_time(entry->xid,
									 DatumGetTimestampTz(get_column(slot, PYR_COL_AT))));
	pq_writeint32(block, entry->part);
	pq_writeint32(block, len);
	memcpy(block->data + block->len, VARDATA_ANY(changes), len);
	block->len += len;
}

/*
 * Whether a text column is just that.
 */
static bool
is_text(TupleTableSlot *slot, int column, const text *wanted)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column + 1, &isnull);
	text	   *found;

	if (isnull)
		return false;
	found = DatumGetTextPP(value);
	return VARSIZE_ANY_EXHDR(found) == VARSIZE_ANY_EXHDR(wanted) &&
		memcmp(VARDATA_ANY(found), VARDATA_ANY(wanted),
			   VARSIZE_ANY_EXHDR(wanted)) == 0;
}

static bool
is_unwanted(const Unwanted *unwanted, TupleTableSlot *slot)
{
	if (unwanted->foreign && !slot_attisnull(slot, PYR_COL_ORIGIN + 1))
		return true;

	/* one of several origins is for the slave to leave out */
	return is_text(slot, PYR_COL_ORIGIN, unwanted->node) ||
		(VARSIZE_ANY_EXHDR(unwanted->user) > 0 &&
		 is_text(slot, PYR_COL_USERNAME, unwanted->user));
}

/*
 * Notes the entries that the scan finds and the window has.
 */
static void
locate_entries(Reader *reader, LogScan *scan, int table)
{
	while (next_entry(scan))
	{
		uint64		xid = get_xid(scan->slot);
		Located    *entry;

		CHECK_FOR_INTERRUPTS();
		if (!is_seen(xid, &reader->upto))
			continue;
		if (is_unwanted(&reader->unwanted, scan->slot))
		{
			reader->nleft_out++;
			continue;
		}
		if (reader->nentries == reader->maxentries)
		{
			reader->maxentries *= 2;
			reader->entries = repalloc_huge(reader->entries,
											reader->maxentries * sizeof(Located));
		}
		entry = &reader->entries[reader->nentries++];
		entry->commitno = DatumGetInt64(get_column(scan->slot, PYR_COL_COMMITNO));
		entry->xid = xid;
		entry->part = DatumGetInt32(get_column(scan->slot, PYR_COL_PART));
		if (reader->kept.len < KEEP_BYTES)
		{
			entry->where.offset = reader->kept.len;
			entry->table = KEPT;
			append_entry(&reader->kept, entry, scan->slot);
		}
		else
		{
			entry->where.tid = scan->slot->tts_tid;
			entry->table = table;
		}
	}
}

static int
compare_entries(const void *a, const void *b)
{
	const Located *x = a;
	const Located *y = b;

	if (x->commitno != y->commitno)
		return x->commitno < y->commitno ? -1 : 1;
	if (x->xid != y->xid)
		return x->xid < y->xid ? -1 : 1;
	if (x->part != y->part)
		return x->part < y->part ? -1 : 1;
	return 0;
}

/*
 * Brings the entries into the order to be applied.  They were found nearly in
 * it, as commit numbers and transaction ids grow together; so insertion sort
 * is the fastest, until it turns out that they were not.
 */
static void
sort_entries(Reader *reader)
{
	Located    *entries = reader->entries;
	int64		moves_left = reader->nentries * MOVES_MAX;

	for (int64 i = 1; i < reader->nentries; i++)
	{
		Located		entry = entries[i];
		int64		j = i;

		while (j > 0 && compare_entries(&entries[j - 1], &entry) > 0)
		{
			entries[j] = entries[j - 1];
			j--;
		}
		entries[j] = entry;
		moves_left -= i - j;
		if (moves_left < 0)
		{
			qsort(entries, reader->nentries, sizeof(Located), compare_entries);
			break;
		}
	}
}

/*
 * Finds the window's entries: those of transactions that were in progress at
 * the position, and those of all that began since.  The inner tables are gone
 * through from the one filled first.
 */
static void
find_entries(Reader *reader)
{
	reader->nentries = 0;
	reader->nleft_out = 0;
	reader->maxentries = 64;
	reader->entries = palloc(reader->maxentries * sizeof(Located));
	initStringInfo(&reader->kept);

	for (int n = 1; n <= PYR_INNER_TABLES; n++)
	{
		int			table = (reader->place.number + n) % PYR_INNER_TABLES;
		LogScan		scan;

		begin_scan(&scan, reader->place.tables[table],
				   reader->place.xid_indexes[table]);
		for (int i = 0; i < reader->from.nxip; i++)
		{
			uint64		xid = reader->from.xip[i];

			if (!is_seen(xid, &reader->upto))
				continue;
			set_range(&scan, xid, xid + 1);
			locate_entries(reader, &scan, table);
		}
		if (reader->from.xmax < reader->upto.xmax)
		{
			set_range(&scan, reader->from.xmax, reader->upto.xmax);
			locate_entries(reader, &scan, table);
		}
		end_scan(&scan);
	}
	sort_entries(reader);
}

/*
 * Finds the window as it is now.
 */
static void
find_window(Reader *reader, int marks)
{
	Datum		upto;

	/* in a transaction that has one snapshot, what it sees is the present */
	PushActiveSnapshot(IsolationUsesXactSnapshot() ? GetTransactionSnapshot()
					   : GetLatestSnapshot());

	/* after the snapshot was taken, so all that it sees is safe */
	reader->wal = pyr_wal_flush();

	reader->is_complete = !find_mark(reader, Max(marks, 1), &upto);
	if (reader->is_complete)
		upto = pg_current_snapshot(NULL);
	reader->upto_text = read_bounds(upto, &reader->upto);
	find_entries(reader);
	PopActiveSnapshot();
}

/*
 * Waits until a transaction has ended that is not counted in there; false: none
 * has until the deadline.
 */
static bool
wait_for_completion(uint64 completed, TimestampTz deadline)
{
	while (GetCurrentTimestamp() < deadline)
	{
		CHECK_FOR_INTERRUPTS();
		if (pyr_completed_transactions() != completed)
			return true;
		pg_usleep(LINGER_PAUSE_US);
	}
	return false;
}

/*
 * Whether this database has prepared transactions; a slave that has seen all
 * else wants to know.  Asked before the snapshot is taken: one that is committed
 * in between is then seen, or told of.
 */
static bool
has_prepared_transactions(void)
{
	bool		found;

	if (max_prepared_xacts == 0)
		return false;
	SPI_connect();
	if (SPI_execute("SELECT FROM pg_catalog.pg_prepared_xacts p"
					" WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database()",
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for prepared transactions");
	found = SPI_processed > 0;
	SPI_finish();
	return found;
}

/*
 * Everything but the sending.  If there is nothing, waits so long for something
 * to come.
 */
static Reader *
begin_reading(Oid schema, Datum position, int marks, int linger_ms,
			  const Unwanted *unwanted)
{
	Reader	   *reader = palloc0(sizeof(Reader));
	const PyrPlace *place;
	TimestampTz deadline;

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot replicate from a standby server")));
	place = pyr_place_find(schema);
	if (place == NULL)
		elog(ERROR, "the tables of the log are missing");
	reader->place = *place;
	reader->unwanted = *unwanted;
	pfree(read_bounds(position, &reader->from));
	reader->context = AllocSetContextCreate(CurrentMemoryContext,
											"pyreplica reader",
											ALLOCSET_DEFAULT_SIZES);

	/* a transaction with one snapshot would look at the same thing again */
	if (!PYR_COUNTS_COMPLETED || IsolationUsesXactSnapshot())
		linger_ms = 0;
	linger_ms = Max(Min(linger_ms, LINGER_MAX_MS), 0);
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), linger_ms);
	for (;;)
	{
		/* before the snapshot, so that nothing is missed in between */
		uint64		completed = pyr_completed_transactions();
		MemoryContext oldcontext = MemoryContextSwitchTo(reader->context);

		reader->has_prepared = has_prepared_transactions();
		find_window(reader, marks);
		MemoryContextSwitchTo(oldcontext);
		if (reader->nentries > 0 || !reader->is_complete || linger_ms == 0 ||
			reader->nleft_out > LINGER_LEFT_OUT_MAX ||
			!wait_for_completion(completed, deadline))
			break;
		MemoryContextReset(reader->context);
	}
	return reader;
}

static Datum
make_head(Reader *reader)
{
	StringInfoData block;
	uint32		flags = 0;

	if (reader->is_complete)
		flags |= PYR_WINDOW_COMPLETE;
	if (reader->is_complete && reader->nentries == 0 && reader->has_prepared)
		flags |= PYR_WINDOW_PREPARED;
	if (reader->nleft_out > 0)
		flags |= PYR_WINDOW_LEFT_OUT;

	pq_begintypsend(&block);
	pq_sendint32(&block, PYR_WINDOW_VERSION);
	pq_sendint32(&block, flags);
	pq_sendint64(&block, reader->wal);
	pq_sendbytes(&block, reader->upto_text, strlen(reader->upto_text));
	return PointerGetDatum(pq_endtypsend(&block));
}

static void
append_kept(StringInfo block, Reader *reader, const Located *entry)
{
	const char *data = reader->kept.data + entry->where.offset;
	uint32		len;

	memcpy(&len, data + PYR_ENTRY_HEAD_BYTES - sizeof(len), sizeof(len));
	len = PYR_ENTRY_HEAD_BYTES + pg_ntoh32(len);
	enlargeStringInfo(block, len);
	memcpy(block->data + block->len, data, len);
	block->len += len;
}

/* an inner table, opened to fetch entries from; all zero if it is not */
typedef struct OpenTable
{
	Relation	table;
	TupleTableSlot *slot;
} OpenTable;

static void
append_fetched(StringInfo block, Reader *reader, const Located *entry,
			   OpenTable *open)
{
	ItemPointerData tid = entry->where.tid;

	if (open->table == NULL)
	{
		open->table = table_open(reader->place.tables[entry->table],
								 AccessShareLock);
		open->slot = table_slot_create(open->table, NULL);
	}

	/* it was visible when it was found, and entries stay what they are */
	if (!table_tuple_fetch_row_version(open->table, &tid, SnapshotAny,
									   open->slot))
		elog(ERROR, "an entry of replica_log is gone");
	append_entry(block, entry, open->slot);
}

/*
 * The next block.
 */
static Datum
make_block(Reader *reader)
{
	OpenTable	open[PYR_INNER_TABLES] = {{NULL, NULL}};
	StringInfoData block;

	pq_begintypsend(&block);
	if (reader->nentries - reader->next >= BLOCK_BYTES / BLCKSZ)
		enlargeStringInfo(&block, BLOCK_BYTES + BLCKSZ);

	while (reader->next < reader->nentries && block.len < BLOCK_BYTES)
	{
		Located    *entry = &reader->entries[reader->next++];

		if (entry->table == KEPT)
			append_kept(&block, reader, entry);
		else
			append_fetched(&block, reader, entry, &open[entry->table]);
	}

	for (int i = 0; i < PYR_INNER_TABLES; i++)
	{
		if (open[i].table == NULL)
			continue;
		ExecDropSingleTupleTableSlot(open[i].slot);
		table_close(open[i].table, NoLock);
	}
	return PointerGetDatum(pq_endtypsend(&block));
}

/*
 * py_log_fetch("position" pg_snapshot, marks integer, linger_ms integer,
 * skip_user text, skip_node text, only_local boolean) returns setof bytea: the
 * entries that are visible now and not at the position, but only up to the
 * marks-th mark if there are so many.  If there are none, waits up to linger_ms
 * milliseconds (100 at most) for some.  Those of transactions of that user, or of
 * changes that were all first made on that node, are left out, as are, with
 * only_local, those that were not made here first.
 */
Datum
py_log_fetch(PG_FUNCTION_ARGS)
{
	FuncCallContext *funcctx;
	Reader	   *reader;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext oldcontext;
		Unwanted	unwanted;

		funcctx = SRF_FIRSTCALL_INIT();
		oldcontext = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);
		unwanted.user = PG_GETARG_TEXT_P_COPY(3);
		unwanted.node = PG_GETARG_TEXT_P_COPY(4);
		unwanted.foreign = PG_GETARG_BOOL(5);
		funcctx->user_fctx =
			begin_reading(get_func_namespace(fcinfo->flinfo->fn_oid),
						  PG_GETARG_DATUM(0), PG_GETARG_INT32(1),
						  PG_GETARG_INT32(2), &unwanted);
		MemoryContextSwitchTo(oldcontext);
	}

	funcctx = SRF_PERCALL_SETUP();
	reader = funcctx->user_fctx;
	if (!reader->is_head_sent)
	{
		reader->is_head_sent = true;
		SRF_RETURN_NEXT(funcctx, make_head(reader));
	}
	if (reader->next < reader->nentries)
		SRF_RETURN_NEXT(funcctx, make_block(reader));
	SRF_RETURN_DONE(funcctx);
}
