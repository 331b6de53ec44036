/*-------------------------------------------------------------------------
 *
 * writer.c
 *	  A transaction's stream of bytes into entries of replica_log.
 *
 * This runs just before commit, when no user-defined code should run any
 * more; so entries are formed and inserted as tuples, not by SQL.
 *
 * The commit number.  A transaction that builds on another one's rows can only
 * do so when that one has committed; so whatever number only grows and is
 * taken here, gives an order in which applying is valid.  The write-ahead
 * log's insert position is such a number: the other's commit record lies
 * before the position that we read.  It costs no sequence (whose nextval
 * would also change what the application sees in lastval()).  Two
 * transactions can read the same position, but then neither saw the other;
 * their transaction ids tell them apart.
 *
 * Marks.  About every 64th entry also keeps the snapshot of its moment.  A
 * slave that is behind advances from mark to mark, so that each piece of its
 * way is of moderate size and ends in a state that the master really had.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/index.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "master/cleaner.h"
#include "master/place.h"
#include "master/writer.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

/*
 * How much of the stream goes into one entry: as much as lets the entry fill
 * a page.  32 are the fixed columns and the value's length word.
 */
#define ENTRY_BYTES		((int) (MaxHeapTupleSize - \
								MAXALIGN(SizeofHeapTupleHeader + 1) - 32))

/* which entries are marked: one in 64, and every large one */
#define MARK_MASK		63
#define MARK_ALWAYS_BYTES (256 * 1024)

/* a snapshot that takes more than this makes no mark */
#define MARK_BYTES_MAX	2048

/* more than this is inserted with a ring of buffers of its own */
#define BULK_BYTES		(16 * BLCKSZ)

struct PyrWriter
{
	const PyrPlace *place;
	Relation	table;
	BlockNumber nblocks;		/* that it had; told with max_backlog only */
	int			number;			/* of the inner table, from 0 */
	BulkInsertState bulk;
	IndexInfo  *info;
	char	   *piece;			/* what goes into the next entry */
	int			len;
	int			room;			/* in the entry being filled */
	int			usual_room;		/* in one without a snapshot */
	int32		part;
	Datum		values[PYR_NCOLS];
	bool		isnull[PYR_NCOLS];
};

static void
insert_index_entry(PyrWriter *writer, Relation index, HeapTuple tuple)
{
	pyr_index_insert(index, &writer->values[PYR_COL_XID], &writer->isnull[PYR_COL_XID],
					 &tuple->t_self, writer->table, writer->info);
}

/*
 * An index that is not the extension's own, or not yet: one that is being built
 * by REINDEX CONCURRENTLY, which relies on every writer to fill it.
 */
static void
insert_other_index_entry(PyrWriter *writer, Relation index, HeapTuple tuple)
{
	IndexInfo  *info = BuildIndexInfo(index);
	EState	   *estate;
	TupleTableSlot *slot;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	if (!info->ii_ReadyForInserts)
		return;
	estate = CreateExecutorState();
	slot = MakeSingleTupleTableSlot(RelationGetDescr(writer->table),
									&TTSOpsHeapTuple);
	ExecStoreHeapTuple(tuple, slot, false);
	GetPerTupleExprContext(estate)->ecxt_scantuple = slot;
	if (info->ii_Predicate == NIL ||
		ExecQual(ExecPrepareQual(info->ii_Predicate, estate),
				 GetPerTupleExprContext(estate)))
	{
		FormIndexDatum(info, slot, estate, values, isnull);
		pyr_index_insert(index, values, isnull, &tuple->t_self, writer->table,
						 info);
	}
	ExecDropSingleTupleTableSlot(slot);
	FreeExecutorState(estate);
}

/*
 * The log's indexes are the two that the extension created: every entry is in
 * the one on xid, those with a snapshot are in the other as well.
 */
static void
insert_index_entries(PyrWriter *writer, HeapTuple tuple)
{
	List	   *indexes = RelationGetIndexList(writer->table);
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), RowExclusiveLock);

		if (lfirst_oid(cell) == writer->place->xid_indexes[writer->number])
			insert_index_entry(writer, index, tuple);
		else if (lfirst_oid(cell) != writer->place->mark_indexes[writer->number])
			insert_other_index_entry(writer, index, tuple);
		else if (!writer->isnull[PYR_COL_SNAPSHOT])
			insert_index_entry(writer, index, tuple);
		index_close(index, RowExclusiveLock);
	}
	list_free(indexes);
}

/*
 * Makes an entry of the piece gathered so far.
 */
static void
finish_entry(PyrWriter *writer)
{
	HeapTuple	tuple;

	SET_VARSIZE(writer->piece, VARHDRSZ + writer->len);
	writer->values[PYR_COL_PART] = Int32GetDatum(writer->part);
	writer->values[PYR_COL_CHANGES] = PointerGetDatum(writer->piece);

	tuple = heap_form_tuple(RelationGetDescr(writer->table),
							writer->values, writer->isnull);
	heap_insert(writer->table, tuple, GetCurrentCommandId(true), 0,
				writer->bulk);
	insert_index_entries(writer, tuple);
	heap_freetuple(tuple);

	/* a mark is where the transaction ends, not each part of it */
	writer->isnull[PYR_COL_SNAPSHOT] = true;
	writer->part++;
	writer->len = 0;
	writer->room = writer->usual_room;
}

/*
 * Takes the next bytes of the stream; a PyrSink.
 */
void
pyr_writer_bytes(void *arg, const char *data, size_t len)
{
	PyrWriter  *writer = arg;

	while (len > 0)
	{
		size_t		fits;

		if (writer->len == writer->room)
		{
			CHECK_FOR_INTERRUPTS();
			finish_entry(writer);
		}
		fits = Min(len, (size_t) (writer->room - writer->len));
		memcpy(writer->piece + VARHDRSZ + writer->len, data, fits);
		writer->len += fits;
		data += fits;
		len -= fits;
	}
}

/*
 * The snapshot of this moment as anybody else would take it: a server's
 * snapshot does not list the own transaction among those in progress, and if
 * a later one has ended, it would seem to be seen already.  (Marks then would
 * not contain one another in one direction or the other.)
 */
static Datum
snapshot_without_us(FullTransactionId fxid)
{
	uint64		xid = U64FromFullTransactionId(fxid);
	Datum		snapshot;
	StringInfoData text;
	char	   *p;
	char	   *list;
	bool		is_listed = false;

	PushActiveSnapshot(GetLatestSnapshot());
	snapshot = pg_current_snapshot(NULL);
	PopActiveSnapshot();
	if (!DatumGetBool(DirectFunctionCall2(pg_visible_in_snapshot,
										  FullTransactionIdGetDatum(fxid),
										  snapshot)))
		return snapshot;

	/* xmin:xmax:xip,xip..., the list sorted; xmin is not beyond our own */
	p = DatumGetCString(DirectFunctionCall1(pg_snapshot_out, snapshot));
	list = strchr(strchr(p, ':') + 1, ':') + 1;
	initStringInfo(&text);
	appendBinaryStringInfo(&text, p, list - p);
	while (*list != '\0')
	{
		char	   *end;

		if (!is_listed && strtou64(list, &end, 10) > xid)
		{
			appendStringInfo(&text, UINT64_FORMAT ",", xid);
			is_listed = true;
		}
		end = strchr(list, ',');
		end = end != NULL ? end + 1 : list + strlen(list);
		appendBinaryStringInfo(&text, list, end - list);
		list = end;
	}
	if (!is_listed)
		appendStringInfo(&text, "%s" UINT64_FORMAT,
						 text.data[text.len - 1] == ':' ? "" : ",", xid);
	return DirectFunctionCall1(pg_snapshot_in, CStringGetDatum(text.data));
}

/*
 * Gives the first entry the snapshot of this moment, if it is one of those
 * that should have it.  Which ones do is left to a hash of the transaction
 * id: it needs no state and suits sessions of any length.  Large transactions
 * always do.
 */
static void
maybe_mark(PyrWriter *writer, FullTransactionId fxid, uint64 size)
{
	Datum		snapshot;

	if ((murmurhash32(XidFromFullTransactionId(fxid)) & MARK_MASK) != 0 &&
		size < MARK_ALWAYS_BYTES)
		return;

	snapshot = snapshot_without_us(fxid);
	if (VARSIZE_ANY(DatumGetPointer(snapshot)) > MARK_BYTES_MAX)
		return;

	writer->values[PYR_COL_SNAPSHOT] = snapshot;
	writer->isnull[PYR_COL_SNAPSHOT] = false;
	writer->room -= INTALIGN(VARSIZE_ANY(DatumGetPointer(snapshot))) +
		MAXIMUM_ALIGNOF;
}

/*
 * Sets a text column of all parts, by which a slave may leave them out; NULL:
 * there is nothing to tell.
 */
static void
set_text(PyrWriter *writer, int column, const char *text)
{
	writer->isnull[column] = text == NULL;
	if (text == NULL)
		return;
	writer->values[column] = CStringGetTextDatum(text);
	writer->usual_room -= INTALIGN(VARHDRSZ + strlen(text)) + sizeof(int32);
}

/*
 * Begins to write the running transaction's entries, in the log that is in
 * the schema; size is how many bytes there will be, about.  "origin" is the node
 * where all of its changes were first made, PYR_ORIGIN_MIXED or, if it was here,
 * NULL.  The answer is NULL if there is no log, as after DROP EXTENSION in this
 * very transaction.
 *
 * The commit number is taken here.
 */
PyrWriter *
pyr_writer_begin(Oid schema, uint64 size, const char *origin)
{
	const PyrPlace *place = pyr_place_find(schema);
	PyrWriter  *writer;
	FullTransactionId fxid;

	if (place == NULL)
		return NULL;

	fxid = GetTopFullTransactionId();
	writer = palloc0(sizeof(PyrWriter));
	writer->place = place;
	writer->number = place->number;
	writer->table = table_open(place->tables[writer->number], RowExclusiveLock);
	if (max_backlog_kb > 0)
		writer->nblocks = RelationGetNumberOfBlocks(writer->table);
	writer->info = makeNode(IndexInfo);
	if (size > BULK_BYTES)
		writer->bulk = GetBulkInsertState();
	writer->piece = palloc(VARHDRSZ + ENTRY_BYTES);
	writer->usual_room = ENTRY_BYTES;

	writer->values[PYR_COL_COMMITNO] = Int64GetDatum((int64) GetXLogInsertRecPtr());
	writer->values[PYR_COL_XID] = FullTransactionIdGetDatum(fxid);
	writer->values[PYR_COL_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	set_text(writer, PYR_COL_USERNAME,
			 GetUserNameFromId(GetSessionUserId(), true));
	set_text(writer, PYR_COL_ORIGIN, origin);
	writer->room = writer->usual_room;
	writer->isnull[PYR_COL_SNAPSHOT] = true;
	maybe_mark(writer, fxid, size);
	return writer;
}

/*
 * Writes the last entry.
 */
void
pyr_writer_end(PyrWriter *writer)
{
	finish_entry(writer);
	if (writer->bulk != NULL)
		FreeBulkInsertState(writer->bulk);
	pyr_cleaner_notice(writer->table, writer->nblocks);

	/* the lock stays until the end: the table must not be emptied before */
	table_close(writer->table, NoLock);
}
