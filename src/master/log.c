/*-------------------------------------------------------------------------
 *
 * log.c
 *	  The running transaction's changes, and their way into replica_log.
 *
 * While the transaction runs, its changes gather in txbuffer.c and the shapes
 * they use (see format.h) in here.  Rolling a savepoint back cuts both.  Just
 * before the transaction commits or is prepared, all of it is written as one
 * or more entries of replica_log, and whoever sleeps on the other side is
 * woken.  By then no user-defined code should run any more, so entries are
 * formed and inserted as tuples.
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
 * Waking.  NOTIFY serializes all committing transactions of the server, so it
 * is used only when somebody waits for it.  A slave that is about to sleep
 * holds the advisory lock (PYR_LOCK_CLASS, PYR_LOCK_SLEEP) in share mode.  We
 * try it in row-exclusive mode, which conflicts with share mode but not with
 * itself; SQL has no name for it.  If we get it, nobody sleeps; as we keep it
 * until our commit is visible, nobody can fall asleep before having a chance
 * to see our entry.  If we do not, we notify.  A transaction that is being
 * prepared does neither: its locks would outlive it, and it cannot notify.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "commands/sequence.h"
#include "common/compat.h"
#include "common/format.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "lib/stringinfo.h"
#include "master/capture.h"
#include "master/log.h"
#include "master/relinfo.h"
#include "master/txbuffer.h"
#include "miscadmin.h"
#include "pyreplica.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(py_log_flush);

/*
 * How much of the stream goes into one entry: as much as lets the entry fill
 * a page.  32 are the fixed columns and the value's length word.
 */
#define ENTRY_BYTES		((int) (MaxHeapTupleSize - \
								MAXALIGN(SizeofHeapTupleHeader + 1) - 32))

/* a snapshot that takes more than this makes no mark */
#define MARK_BYTES_MAX	2048

/* entries are inserted this many at a time */
#define BATCH			64

/* the columns of replica_log, in order */
enum
{
	COL_COMMITNO,
	COL_XID,
	COL_AT,
	COL_PART,
	COL_USERNAME,
	COL_SNAPSHOT,
	COL_CHANGES,
	NCOLS
};

/* one shape that the running transaction uses; key is what tells it apart */
typedef struct ShapeKey
{
	uint32		generation;		/* of the table's info */
	uint32		verb;
	uint64		set_hash;		/* of the set columns */
} ShapeKey;

typedef struct Shape
{
	ShapeKey	key;
	uint32		number;
	Bitmapset  *set;
} Shape;

/* where things stood when a subtransaction first changed something */
typedef struct Savepoint
{
	int			level;
	uint64		size;
	uint32		nshapes;
	int			shapes_len;
	struct Savepoint *outer;
} Savepoint;

/*
 * The running transaction, in TopTransactionContext; NULL until it changes
 * something.
 */
typedef struct LogState
{
	Oid			function;		/* the trigger function: where we live */
	uint32		nshapes;
	StringInfoData shapes;		/* as they go into the stream */
	HTAB	   *shape_table;
	Shape	   *last_shape;
	Savepoint  *savepoint;		/* innermost */
} LogState;

static LogState *state = NULL;

/* the stream on its way into tuples */
typedef struct Writer
{
	Relation	table;
	ResultRelInfo *indexes;
	EState	   *estate;
	BulkInsertState bulk;
	TupleTableSlot *slots[BATCH];
	int			nslots;			/* filled, to be inserted */
	int			nmade;			/* slots that exist */
	char	   *piece;			/* what goes into the next entry */
	int			len;
	int			room;
	int32		part;
	Datum		values[NCOLS];
	bool		isnull[NCOLS];
} Writer;

/*
 * Called before each change is appended: begins the transaction's state, or
 * that of a savepoint.  function is the trigger's; its schema is where the
 * log is.
 */
void
pyr_log_begin_change(Oid function)
{
	int			level = GetCurrentTransactionNestLevel();

	if (state == NULL)
	{
		MemoryContext oldcontext;

		oldcontext = MemoryContextSwitchTo(TopTransactionContext);
		state = palloc0(sizeof(LogState));
		state->function = function;
		initStringInfo(&state->shapes);
		pyr_txbuffer_begin();
		MemoryContextSwitchTo(oldcontext);
	}

	/* the outermost level is cut back by forgetting everything */
	if (level > 1 &&
		(state->savepoint == NULL || state->savepoint->level < level))
	{
		Savepoint  *savepoint;

		savepoint = MemoryContextAlloc(TopTransactionContext,
									   sizeof(Savepoint));
		savepoint->level = level;
		savepoint->size = pyr_txbuffer_size();
		savepoint->nshapes = state->nshapes;
		savepoint->shapes_len = state->shapes.len;
		savepoint->outer = state->savepoint;
		state->savepoint = savepoint;
	}
}

static void
append_varint(StringInfo out, uint64 v)
{
	char		bytes[PYR_VARINT_MAX];

	appendBinaryStringInfo(out, bytes, pyr_put_varint(bytes, v) - bytes);
}

static void
append_name(StringInfo out, const char *name)
{
	size_t		len = strlen(name);

	append_varint(out, len);
	appendBinaryStringInfo(out, name, len);
}

static void
append_column(StringInfo out, PyrColumn *column)
{
	append_name(out, column->name);
	append_varint(out, column->type);
}

/*
 * Writes a shape down, as format.h has it.
 */
static void
write_shape(PyrRelInfo *info, PyrVerb verb, Bitmapset *set)
{
	StringInfoData shape;
	int			nkey = verb == PYR_TRUNCATE ? 0 : info->nkey;
	int			att = -1;

	initStringInfo(&shape);
	appendStringInfoChar(&shape, (char) verb);
	append_name(&shape, info->schema);
	append_name(&shape, info->table);
	append_varint(&shape, nkey);
	append_varint(&shape, bms_num_members(set));
	for (int i = 0; i < nkey; i++)
		append_column(&shape, &info->columns[info->key[i] - 1]);
	while ((att = bms_next_member(set, att)) >= 0)
		append_column(&shape, &info->columns[att]);

	append_varint(&state->shapes, shape.len);
	appendBinaryStringInfo(&state->shapes, shape.data, shape.len);
	pfree(shape.data);
}

static uint64
hash_set(Bitmapset *set)
{
	if (set == NULL)
		return 0;
	return DatumGetUInt64(hash_any_extended((unsigned char *) set->words,
											set->nwords * sizeof(bitmapword),
											0));
}

static void
create_shape_table(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(ShapeKey);
	ctl.entrysize = sizeof(Shape);
	ctl.hcxt = TopTransactionContext;
	state->shape_table = hash_create("pyreplica shapes", 16, &ctl,
									 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/*
 * The number, in this transaction, of what the verb does to the table's key
 * and to the set columns.
 */
uint32
pyr_log_shape(PyrRelInfo *info, PyrVerb verb, Bitmapset *set)
{
	ShapeKey	key;
	Shape	   *shape = state->last_shape;
	bool		found;

	if (shape != NULL && shape->key.generation == info->generation &&
		shape->key.verb == verb && bms_equal(shape->set, set))
		return shape->number;

	if (state->shape_table == NULL)
		create_shape_table();

	memset(&key, 0, sizeof(key));
	key.generation = info->generation;
	key.verb = verb;
	key.set_hash = hash_set(set);

	shape = hash_search(state->shape_table, &key, HASH_FIND, NULL);
	if (shape != NULL && bms_equal(shape->set, set))
	{
		state->last_shape = shape;
		return shape->number;
	}

	/* new, or two sets of columns with one hash: then it is written again */
	write_shape(info, verb, set);
	shape = hash_search(state->shape_table, &key, HASH_ENTER, &found);
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(TopTransactionContext);

		shape->set = bms_copy(set);
		MemoryContextSwitchTo(oldcontext);
	}
	shape->number = state->nshapes++;
	state->last_shape = shape;
	return shape->number;
}

/*
 * Forgets what came after the savepoint.
 */
static void
cut_back(Savepoint *savepoint)
{
	HASH_SEQ_STATUS status;
	Shape	   *shape;

	pyr_txbuffer_cut(savepoint->size);
	pyr_capture_cut(savepoint->size);

	if (state->nshapes == savepoint->nshapes)
		return;
	state->nshapes = savepoint->nshapes;
	state->shapes.len = savepoint->shapes_len;
	state->last_shape = NULL;
	hash_seq_init(&status, state->shape_table);
	while ((shape = hash_seq_search(&status)) != NULL)
	{
		if (shape->number >= savepoint->nshapes)
			hash_search(state->shape_table, &shape->key, HASH_REMOVE, NULL);
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid,
				 SubTransactionId parentSubid, void *arg)
{
	int			level;
	Savepoint  *savepoint;

	if (state == NULL || state->savepoint == NULL)
		return;
	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;

	level = GetCurrentTransactionNestLevel();
	savepoint = state->savepoint;
	if (savepoint->level < level)
		return;
	Assert(savepoint->level == level);

	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		cut_back(savepoint);
		state->savepoint = savepoint->outer;
		pfree(savepoint);
	}
	else if (level == 2 ||
			 (savepoint->outer && savepoint->outer->level == level - 1))
	{
		/* now part of the parent, which knows an earlier place (or all) */
		state->savepoint = savepoint->outer;
		pfree(savepoint);
	}
	else
		savepoint->level = level - 1;
}

/*
 * The inner table that entries go to now.  Its number is the value of a
 * sequence, which py_log_rotate sets.  Reading it late does no harm: an entry
 * is found whichever table it is in, and a table is emptied only when
 * everything in it has been passed by every slave.
 */
static Oid
current_inner_table(Oid schema)
{
	Oid			seqoid = get_relname_relid("replica_log_current", schema);
	Relation	seqrel;
	Buffer		buffer;
	Page		page;
	Form_pg_sequence_data data;
	HeapTupleData tuple;
	ItemId		item;
	int64		number;
	char		name[NAMEDATALEN];

	/* the extension was dropped in this very transaction */
	if (!OidIsValid(seqoid))
		return InvalidOid;

	seqrel = relation_open(seqoid, AccessShareLock);
	buffer = ReadBuffer(seqrel, 0);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
	data = (Form_pg_sequence_data) GETSTRUCT(&tuple);
	number = data->last_value;
	UnlockReleaseBuffer(buffer);
	relation_close(seqrel, AccessShareLock);

	snprintf(name, sizeof(name), "replica_log_%d", (int) number);
	return get_relname_relid(name, schema);
}

static void
insert_batch(Writer *writer)
{
	MemoryContext oldcontext;

	if (writer->nslots == 0)
		return;

	if (writer->nslots == 1)
		table_tuple_insert(writer->table, writer->slots[0],
						   GetCurrentCommandId(true), 0, writer->bulk);
	else
		table_multi_insert(writer->table, writer->slots, writer->nslots,
						   GetCurrentCommandId(true), 0, writer->bulk);

	oldcontext = MemoryContextSwitchTo(GetPerTupleMemoryContext(writer->estate));
	for (int i = 0; i < writer->nslots; i++)
	{
		pyr_insert_index_tuples(writer->indexes, writer->slots[i],
								writer->estate);
		ExecClearTuple(writer->slots[i]);
		ResetPerTupleExprContext(writer->estate);
	}
	MemoryContextSwitchTo(oldcontext);
	writer->nslots = 0;
}

/*
 * Makes an entry of the piece gathered so far.
 */
static void
finish_entry(Writer *writer)
{
	TupleTableSlot *slot;

	if (writer->nslots == writer->nmade)
		writer->slots[writer->nmade++] = table_slot_create(writer->table, NULL);
	slot = writer->slots[writer->nslots++];

	SET_VARSIZE(writer->piece, VARHDRSZ + writer->len);
	writer->values[COL_PART] = Int32GetDatum(writer->part);
	writer->values[COL_CHANGES] = PointerGetDatum(writer->piece);
	ExecClearTuple(slot);
	memcpy(slot->tts_values, writer->values, sizeof(writer->values));
	memcpy(slot->tts_isnull, writer->isnull, sizeof(writer->isnull));
	ExecStoreVirtualTuple(slot);
	ExecMaterializeSlot(slot);

	if (writer->nslots == BATCH)
		insert_batch(writer);

	/* only the first part tells what is true of all */
	writer->isnull[COL_USERNAME] = true;
	writer->isnull[COL_SNAPSHOT] = true;
	writer->part++;
	writer->len = 0;
	writer->room = ENTRY_BYTES;
}

/* a PyrSink */
static void
write_bytes(void *arg, const char *data, size_t len)
{
	Writer	   *writer = arg;

	while (len > 0)
	{
		size_t		fits;

		if (writer->len == writer->room)
			finish_entry(writer);
		fits = Min(len, (size_t) (writer->room - writer->len));
		memcpy(writer->piece + VARHDRSZ + writer->len, data, fits);
		writer->len += fits;
		data += fits;
		len -= fits;
	}
}

/*
 * Gives the first entry the snapshot of this moment, if it is one of those
 * that should have it.  Which ones do is left to a hash of the transaction
 * id: it needs no state and suits sessions of any length.
 */
static void
maybe_mark(Writer *writer, FullTransactionId fxid)
{
	Datum		snapshot;
	uint32		xid = XidFromFullTransactionId(fxid);

	if ((murmurhash32(xid) & 63) != 0 &&
		pyr_txbuffer_size() < 1024 * 1024)
		return;

	PushActiveSnapshot(GetLatestSnapshot());
	snapshot = pg_current_snapshot(NULL);
	PopActiveSnapshot();
	if (VARSIZE_ANY(DatumGetPointer(snapshot)) > MARK_BYTES_MAX)
		return;

	writer->values[COL_SNAPSHOT] = snapshot;
	writer->isnull[COL_SNAPSHOT] = false;
	writer->room -= INTALIGN(VARSIZE_ANY(DatumGetPointer(snapshot))) + MAXIMUM_ALIGNOF;
}

static void
begin_writing(Writer *writer, Oid inner)
{
	FullTransactionId fxid = GetTopFullTransactionId();
	char	   *username;

	memset(writer, 0, sizeof(Writer));
	writer->table = table_open(inner, RowExclusiveLock);
	writer->estate = CreateExecutorState();
	writer->indexes = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->indexes, writer->table, 0, NULL, 0);
	ExecOpenIndices(writer->indexes, false);
	if (pyr_txbuffer_size() > 16 * BLCKSZ)
		writer->bulk = GetBulkInsertState();

	writer->piece = palloc(VARHDRSZ + ENTRY_BYTES);
	writer->room = ENTRY_BYTES;

	username = GetUserNameFromId(GetSessionUserId(), true);
	writer->values[COL_COMMITNO] = Int64GetDatum((int64) GetXLogInsertRecPtr());
	writer->values[COL_XID] = FullTransactionIdGetDatum(fxid);
	writer->values[COL_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	writer->isnull[COL_USERNAME] = username == NULL;
	writer->isnull[COL_SNAPSHOT] = true;
	if (username != NULL)
	{
		writer->values[COL_USERNAME] = CStringGetTextDatum(username);
		writer->room -= INTALIGN(VARHDRSZ + strlen(username)) + sizeof(int32);
	}
	maybe_mark(writer, fxid);
}

static void
end_writing(Writer *writer)
{
	finish_entry(writer);
	insert_batch(writer);

	for (int i = 0; i < writer->nmade; i++)
		ExecDropSingleTupleTableSlot(writer->slots[i]);
	if (writer->bulk != NULL)
		FreeBulkInsertState(writer->bulk);
	ExecCloseIndices(writer->indexes);
	FreeExecutorState(writer->estate);

	/* the lock stays until the end: rotation must not come between */
	table_close(writer->table, NoLock);
}

static void
write_header(Writer *writer)
{
	StringInfoData header;

	initStringInfo(&header);
	appendStringInfoChar(&header, PYR_FORMAT_VERSION);
	appendStringInfoChar(&header, 0);
	append_varint(&header, state->nshapes);
	append_varint(&header, pyr_txbuffer_size());
	write_bytes(writer, header.data, header.len);
	pfree(header.data);
}

static void
wake_sleepers(void)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, PYR_LOCK_CLASS, PYR_LOCK_SLEEP, 2);
	if (pyr_lock_try(&tag, RowExclusiveLock) == LOCKACQUIRE_NOT_AVAIL)
		Async_Notify(PYR_CHANNEL, NULL);
}

/*
 * Writes the transaction's entries.
 */
static void
write_entries(bool preparing)
{
	MemoryContext context;
	MemoryContext oldcontext;
	Writer		writer;
	Oid			inner;

	if (pyr_txbuffer_size() == 0)
		return;

	inner = current_inner_table(get_func_namespace(state->function));
	if (!OidIsValid(inner))
		return;

	context = AllocSetContextCreate(TopTransactionContext, "pyreplica log",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);

	/* before the commit number is taken, see the head comment */
	if (!preparing)
		wake_sleepers();

	begin_writing(&writer, inner);
	write_header(&writer);
	write_bytes(&writer, state->shapes.data, state->shapes.len);
	pyr_txbuffer_emit(write_bytes, &writer);
	end_writing(&writer);

	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
}

static void
forget_transaction(void)
{
	state = NULL;
	pyr_txbuffer_end();
	pyr_capture_end_transaction();
	pyr_relinfo_end_transaction();
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (state == NULL)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			write_entries(event == XACT_EVENT_PRE_PREPARE);
			forget_transaction();
			break;

		case XACT_EVENT_ABORT:
			forget_transaction();
			break;

		default:
			break;
	}
}

/*
 * py_log_flush() returns pg_lsn: makes everything safe that has been written
 * to the write-ahead log so far, and says how far that is.
 *
 * A slave calls it with each look at the log.  What it sees must not be taken
 * back by a crash of this server: commits that are visible before they are
 * flushed (synchronous_commit = off), and also the mere numbers of
 * transactions that have ended, which a crash could give out a second time,
 * to transactions that the slave would then believe to have seen.
 */
Datum
py_log_flush(PG_FUNCTION_ARGS)
{
	XLogRecPtr	here;

	if (RecoveryInProgress())
		PG_RETURN_NULL();

	/*
	 * At the end of a page the insert position is already behind the next
	 * page's header, which nobody has written yet.
	 */
	here = GetXLogInsertRecPtr();
	if (here % XLOG_BLCKSZ == SizeOfXLogShortPHD ||
		XLogSegmentOffset(here, wal_segment_size) == SizeOfXLogLongPHD)
		here -= here % XLOG_BLCKSZ;

	XLogFlush(here);
	PG_RETURN_LSN(here);
}

/*
 * Called once per process, when the library is loaded.
 */
void
pyr_log_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
