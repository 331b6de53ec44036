/*-------------------------------------------------------------------------
 *
 * capture.c
 *	  The row trigger: what of a change has to be logged.
 *
 * In comes a row as it was and as it is, out go the key and the columns that
 * changed, encoded as format.h tells, at the end of the transaction's buffer.
 * Nothing is written to a table here; that is log.c's part, before commit.
 *
 * The order of changes.  The server calls row triggers after the statement,
 * and finishes nested statements, their triggers included, before it goes on
 * with the outer statement's.  So when a trigger of the application (or a
 * function that the statement calls) changes a row whose own trigger call is
 * still to come, we see the later change first.  Both tell what happened to
 * one row, and applying them the wrong way round would lose the row or
 * resurrect an old value.  So whenever a row version is replaced that a
 * command of the running client message created, whose triggers may thus
 * still be being called, we remember that version and the place of the
 * change.  When the call comes that tells of the version's creation, that
 * change is moved before the one that needs it (txbuffer.c).  A version is
 * known by its table, its place there and the command that made it, which
 * no other version of this transaction ever shares.
 *
 * Also without a row in common, a nested change can build on one that we see
 * later: it takes a key that the outer statement has set free.  All that a
 * statement did was done before the first of its AFTER triggers is called; so
 * a change that sets a unique value free is moved before the first change of
 * the same table that takes one and was captured, deeper down, since those
 * triggers began to be called.
 *
 * Nothing is moved across a statement that is passed on (sql.c): before and after
 * it tables may not be the same.  If a change belongs before it, that is an error.
 *
 * A change that is not logged, because the row is none of those that the table's
 * filter admits, has an order all the same: the row may have been one of them
 * before.  Its place is where the next change is logged, before that one; its
 * rank tells it from others of the same place.
 *
 * TRUNCATE of a partition that is logged as part of its topmost table must not
 * empty that one on the slave: the partition's rows are logged as deleted, one by one,
 * before they are gone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/compat.h"
#include "common/format.h"
#include "common/textform.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "master/capture.h"
#include "master/filter.h"
#include "master/log.h"
#include "master/relinfo.h"
#include "master/sql.h"
#include "master/txbuffer.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

PG_FUNCTION_INFO_V1(py_log_replica);
PG_FUNCTION_INFO_V1(py_log_rows);
PG_FUNCTION_INFO_V1(py_log_is_ours);

/* trigger nesting that we keep an eye on; deeper ones count as the deepest */
#define MAX_DEPTH	32

/*
 * Where a change belongs: before what is logged at a place, and among the
 * changes that do, behind those of a lesser rank.
 */
typedef struct Place
{
	uint64		at;
	uint64		rank;
} Place;

/* the place of a change that is logged has no rank: it has it for itself */
#define NO_RANK		PG_UINT64_MAX

/* the first change of a table that took a unique value */
typedef struct Taken
{
	Oid			relid;
	uint64		place;
} Taken;

/* a command whose triggers are being called, and what was taken meanwhile */
typedef struct Firing
{
	bool		is_known;
	CommandId	cid;
	int			ntaken;
	int			maxtaken;
	Taken	   *taken;
} Firing;

/* a table that a command truncates with all of its partitions */
typedef struct Emptied
{
	Oid			relid;
	uint64		statement;		/* its number, see running_truncate */
	CommandId	cid;
	SubTransactionId subid;
} Emptied;

/*
 * The TRUNCATE that is running; 0: there is none, or it had begun when this library was
 * loaded, or it is nobody's statement.
 */
static uint64 running_truncate = 0;

/* a row version whose creation may not have been captured yet */
typedef struct VersionKey
{
	Oid			relid;
	ItemPointerData tid;
	uint16		unused;			/* keys are compared as bytes */
	CommandId	created_by;
} VersionKey;

typedef struct Version
{
	VersionKey	key;
	Place		replaced_at;	/* the change that replaced it is there or
								 * behind */
	uint64		noted;			/* number of this note */
} Version;

/*
 * The order of the running transaction's changes.
 */
static struct
{
	bool		has_begun;
	TimestampTz message;		/* the client message being worked on */
	CommandId	first;			/* commands before this one belong to earlier
								 * messages; they are done, triggers and all */
	CommandId	next;			/* follows the latest command captured */
	VersionKey	created;		/* creation captured last */
	uint64		notes;			/* so many were made */
	HTAB	   *pending;		/* Version; NULL if there never was one */
	Firing		firing[MAX_DEPTH];	/* by trigger depth, the first is for 1 */
	int			depth;			/* of the change being captured, from 0 */
	List	   *emptied;		/* Emptied */
	uint64		barrier;		/* nothing goes before this place any more */
}			order;

/*
 * Whether two values of a column are the same, bit by bit.  Values that are
 * stored out of line in the same place are, without reading them.
 */
static bool
is_same(PyrColumn *column, Datum a, Datum b)
{
	if (column->typbyval || column->typlen != -1)
		return datum_image_eq(a, b, column->typbyval, column->typlen);

	if (VARSIZE_ANY(DatumGetPointer(a)) == VARSIZE_ANY(DatumGetPointer(b)) &&
		memcmp(DatumGetPointer(a), DatumGetPointer(b),
			   VARSIZE_ANY(DatumGetPointer(a))) == 0)
		return true;
	return datum_image_eq(a, b, false, -1);
}

/*
 * The columns of which the new row differs from the old one.
 */
static Bitmapset *
changed_columns(PyrRelInfo *info, TupleTableSlot *old, TupleTableSlot *new)
{
	Bitmapset  *changed = NULL;

	slot_getallattrs(old);
	slot_getallattrs(new);

	for (int i = 0; i < info->natts; i++)
	{
		PyrColumn  *column = &info->columns[i];

		if (!column->captured)
			continue;
		if (old->tts_isnull[i] != new->tts_isnull[i] ||
			(!old->tts_isnull[i] &&
			 !is_same(column, old->tts_values[i], new->tts_values[i])))
			changed = bms_add_member(changed, i);
	}
	return changed;
}

static void
append_varint(uint64 v)
{
	char		bytes[PYR_VARINT_MAX];

	pyr_txbuffer_append(bytes, pyr_put_varint(bytes, v) - bytes);
}

static void
append_bytes(const char *data, size_t len)
{
	append_varint((uint64) len + 1);
	pyr_txbuffer_append(data, len);
}

/* a short value and its length go in one piece */
static void
append_short(const void *data, int len)
{
	char		bytes[1 + 16];

	Assert(len <= 16);
	bytes[0] = (char) (len + 1);
	memcpy(bytes + 1, data, len);
	pyr_txbuffer_append(bytes, len + 1);
}

static void
append_varlena(Datum value)
{
	struct varlena *plain = PG_DETOAST_DATUM_PACKED(value);

	append_bytes(VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain));

	/* it may be huge, and a row may have many */
	if (plain != (struct varlena *) DatumGetPointer(value))
		pfree(plain);
}

static void
append_value(PyrColumn *column, Datum value, bool isnull)
{
	if (isnull)
	{
		append_varint(0);
		return;
	}

	switch (column->wire)
	{
		case PYR_WIRE_BYTE:
			{
				char		byte = DatumGetChar(value);

				append_short(&byte, 1);
				break;
			}
		case PYR_WIRE_INT16:
			{
				uint16		u16 = pg_hton16((uint16) DatumGetInt16(value));

				append_short(&u16, 2);
				break;
			}
		case PYR_WIRE_INT32:
			{
				uint32		u32 = pg_hton32((uint32) DatumGetInt32(value));

				append_short(&u32, 4);
				break;
			}
		case PYR_WIRE_INT64:
			{
				uint64		u64 = pg_hton64((uint64) DatumGetInt64(value));

				append_short(&u64, 8);
				break;
			}
		case PYR_WIRE_FLOAT4:
			{
				float4		f = DatumGetFloat4(value);
				uint32		u32;

				memcpy(&u32, &f, 4);
				u32 = pg_hton32(u32);
				append_short(&u32, 4);
				break;
			}
		case PYR_WIRE_FLOAT8:
			{
				float8		f = DatumGetFloat8(value);
				uint64		u64;

				memcpy(&u64, &f, 8);
				u64 = pg_hton64(u64);
				append_short(&u64, 8);
				break;
			}
		case PYR_WIRE_UUID:
			append_short(DatumGetPointer(value), UUID_LEN);
			break;

		case PYR_WIRE_STRING:
		case PYR_WIRE_BYTES:
			append_varlena(value);
			break;

		case PYR_WIRE_SEND:
			{
				bytea	   *sent = SendFunctionCall(&column->output, value);

				append_bytes(VARDATA(sent), VARSIZE(sent) - VARHDRSZ);
				pfree(sent);
				break;
			}
		case PYR_WIRE_TEXT:
			{
				char	   *text = OutputFunctionCall(&column->output, value);

				append_bytes(text, strlen(text));
				pfree(text);
				break;
			}
	}
}

/*
 * Appends the row's values of these columns.
 */
static void
append_values(PyrRelInfo *info, Bitmapset *set, TupleTableSlot *row)
{
	int			i = -1;

	while ((i = bms_next_member(set, i)) >= 0)
		append_value(&info->columns[i], row->tts_values[i], row->tts_isnull[i]);
}

/*
 * Appends one change: the key out of one row, the set columns out of another;
 * and out of the first, what they were before, if that is to be logged.
 */
static void
append_change(PyrRelInfo *info, PyrVerb verb, Bitmapset *set,
			  TupleTableSlot *key_row, TupleTableSlot *set_row)
{
	int			nestlevel;

	append_varint(pyr_log_shape(info, verb, set));

	nestlevel = info->has_text ? pyr_text_pin(info->text_depends) : -1;
	slot_getallattrs(key_row);
	for (int i = 0; i < info->nkey; i++)
	{
		int			att = info->key[i] - 1;

		append_value(&info->columns[att],
					 key_row->tts_values[att], key_row->tts_isnull[att]);
	}
	append_values(info, set, set_row);
	append_values(info, pyr_relinfo_old(info, verb, set), key_row);

	if (nestlevel >= 0)
		pyr_text_unpin(nestlevel);
}

static VersionKey
version_key(HeapTuple tuple)
{
	VersionKey	key;

	memset(&key, 0, sizeof(key));
	key.relid = tuple->t_tableOid;
	key.tid = tuple->t_self;
	key.created_by = HeapTupleHeaderGetCmin(tuple->t_data);
	return key;
}

/*
 * A change is being captured: notices where a client message begins.  The
 * statements of earlier ones are done.
 */
static void
note_message(void)
{
	TimestampTz message = GetCurrentStatementStartTimestamp();

	if (order.has_begun && order.message == message)
		return;
	order.has_begun = true;
	order.message = message;
	order.first = order.next;

	/* nothing of theirs is still to come */
	if (order.pending != NULL)
		hash_destroy(order.pending);
	order.pending = NULL;
}

static void
note_command(CommandId cid)
{
	order.next = Max(order.next, cid + 1);
}

/*
 * A row version was replaced: remember the place if the version's own
 * creation may still have to be captured.
 */
static void
note_replaced(HeapTuple old, Place place)
{
	VersionKey	key;
	Version    *version;
	bool		found;

	if (!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(old->t_data)))
		return;
	key = version_key(old);
	if (key.created_by < order.first)
		return;

	/* the common case: a trigger changes the row that it was called for */
	if (memcmp(&key, &order.created, sizeof(key)) == 0)
		return;

	if (order.pending == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(VersionKey);
		ctl.entrysize = sizeof(Version);
		ctl.hcxt = TopTransactionContext;
		order.pending = hash_create("pyreplica pending row versions", 64, &ctl,
									HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	version = hash_search(order.pending, &key, HASH_ENTER, &found);
	version->replaced_at = place;
	version->noted = order.notes++;
}

/*
 * A row version's creation has been captured, at place: true if the version
 * has been replaced already, with *before where.
 */
static bool
note_created(HeapTuple new, Place *before)
{
	Version    *version;

	order.created = version_key(new);
	if (order.pending == NULL || hash_get_num_entries(order.pending) == 0)
		return false;

	version = hash_search(order.pending, &order.created, HASH_FIND, NULL);
	if (version == NULL)
		return false;
	*before = version->replaced_at;
	hash_search(order.pending, &order.created, HASH_REMOVE, NULL);
	return true;
}

/*
 * A row of that command is being captured.
 */
static void
note_firing(CommandId cid)
{
	Firing	   *firing;

	order.depth = Min(DatumGetInt32(pg_trigger_depth(NULL)), MAX_DEPTH) - 1;
	firing = &order.firing[order.depth];
	if (firing->is_known && firing->cid == cid)
		return;
	firing->is_known = true;
	firing->cid = cid;
	firing->ntaken = 0;
}

/*
 * The change at place took a unique value of the table, after everything that
 * the outer commands did.
 */
static void
note_taken(Oid relid, uint64 place)
{
	for (int depth = 0; depth < order.depth; depth++)
	{
		Firing	   *firing = &order.firing[depth];
		int			i = 0;

		if (!firing->is_known)
			continue;
		while (i < firing->ntaken && firing->taken[i].relid != relid)
			i++;
		if (i < firing->ntaken)
			continue;
		if (firing->taken == NULL)
		{
			firing->maxtaken = 8;
			firing->taken = MemoryContextAlloc(TopTransactionContext,
											   firing->maxtaken * sizeof(Taken));
		}
		else if (firing->ntaken == firing->maxtaken)
		{
			firing->maxtaken *= 2;
			firing->taken = repalloc(firing->taken,
									 firing->maxtaken * sizeof(Taken));
		}
		firing->taken[firing->ntaken++] = (Taken) {
			relid, place
		};
	}
}

/*
 * Where a change of the table belongs that sets a unique value free, by this
 * command: before the first one that may have taken it, if that is earlier.
 */
static Place
before_taken(Oid relid, Place before)
{
	Firing	   *firing = &order.firing[order.depth];

	for (int i = 0; i < firing->ntaken; i++)
	{
		if (firing->taken[i].relid == relid && firing->taken[i].place < before.at)
			return (Place) {
				firing->taken[i].place, NO_RANK
			};
	}
	return before;
}

/*
 * The change from start to the buffer's end is complete; it belongs before
 * the given place, if that is earlier.
 */
static void
put_before(PyrRelInfo *info, uint64 start, Place before)
{
	if (before.at < order.barrier)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("py_log_sql was called in the middle of a statement that changes table \"%s.%s\"",
						info->schema, info->table),
				 errdetail("Slaves would do it in the other order: a row of the table was changed before the call, and its log trigger is called after it."),
				 errhint("Call py_log_sql outside of triggers, and of functions that are called for rows.")));
	if (before.at < start)
		pyr_txbuffer_move(start, pyr_txbuffer_size(), before.at, before.rank);
}

/*
 * The place of a change that is about to be logged, or of one that is not.
 */
static Place
next_place(bool is_logged)
{
	return (Place) {
		pyr_txbuffer_size(), is_logged ? NO_RANK : order.notes
	};
}

/*
 * Whether the row is one of those that are logged.
 */
static bool
is_logged(PyrRelInfo *info, TupleTableSlot *row)
{
	return info->filter == NULL || pyr_filter_admits(info->filter, row);
}

/*
 * Logs that the row is there now.  before is where its creation belongs.
 */
static void
log_insert(PyrRelInfo *info, TupleTableSlot *row, Place before)
{
	uint64		start = pyr_txbuffer_size();

	append_change(info, PYR_INSERT, info->but_key, row, row);
	put_before(info, start, before);
	note_taken(info->logged_as, start);
}

/*
 * Logs that the row is not there any more; before, as above.
 */
static void
log_delete(PyrRelInfo *info, TupleTableSlot *row, Place before)
{
	uint64		start = pyr_txbuffer_size();

	append_change(info, PYR_DELETE, NULL, row, NULL);
	put_before(info, start, before_taken(info->logged_as, before));
}

/*
 * Logs what has changed in the row; before, as above.
 */
static void
log_update(PyrRelInfo *info, Bitmapset *changed, TupleTableSlot *old,
		   TupleTableSlot *new, Place before)
{
	uint64		start = pyr_txbuffer_size();

	/*
	 * With another key it is another row to a slave that does not have all of
	 * the table yet: it must be able to insert it.
	 */
	if (bms_overlap(changed, info->key_set))
		changed = bms_union(changed, info->but_key);
	changed = pyr_log_columns(info, changed);
	append_change(info, PYR_UPDATE, changed, old, new);
	if (bms_overlap(changed, info->unique))
	{
		before = before_taken(info->logged_as, before);
		note_taken(info->logged_as, start);
	}
	put_before(info, start, before);
}

static void
capture_insert(TriggerData *trigdata, PyrRelInfo *info)
{
	HeapTuple	row = trigdata->tg_trigtuple;
	Place		before = next_place(true);

	note_firing(HeapTupleHeaderGetCmin(row->t_data));
	(void) note_created(row, &before);
	if (is_logged(info, trigdata->tg_trigslot))
		log_insert(info, trigdata->tg_trigslot, before);
	note_command(HeapTupleHeaderGetCmin(row->t_data));
}

static void
capture_update(TriggerData *trigdata, PyrRelInfo *info)
{
	HeapTuple	new = trigdata->tg_newtuple;
	TupleTableSlot *old_row = trigdata->tg_trigslot;
	TupleTableSlot *new_row = trigdata->tg_newslot;
	bool		was_logged = is_logged(info, old_row);
	bool		is_now = is_logged(info, new_row);
	Bitmapset  *changed = NULL;
	Place		place;
	Place		before;

	note_firing(HeapTupleHeaderGetCmin(new->t_data));
	if (was_logged && is_now)
		changed = changed_columns(info, old_row, new_row);
	before = place = next_place(was_logged != is_now || !bms_is_empty(changed));
	(void) note_created(new, &before);
	if (was_logged == is_now && bms_is_empty(changed))
	{
		/*
		 * One version is as good as the other: what replaced the new one, or
		 * will do so, also comes after the old one's creation.
		 */
		note_replaced(trigdata->tg_trigtuple, before);
		return;
	}

	/* to slaves, a row that comes to meet the filter is new */
	if (!was_logged)
		log_insert(info, new_row, before);
	else if (!is_now)
		log_delete(info, old_row, before);
	else
		log_update(info, changed, old_row, new_row, before);
	note_replaced(trigdata->tg_trigtuple, place);
	note_command(HeapTupleHeaderGetCmin(new->t_data));
}

static void
capture_delete(TriggerData *trigdata, PyrRelInfo *info)
{
	HeapTuple	row = trigdata->tg_trigtuple;
	bool		was_logged = is_logged(info, trigdata->tg_trigslot);
	Place		place = next_place(was_logged);

	note_firing(HeapTupleHeaderGetCmax(row->t_data));
	if (was_logged)
		log_delete(info, trigdata->tg_trigslot, place);
	note_replaced(row, place);
	note_command(HeapTupleHeaderGetCmax(row->t_data));
}

static void
capture_row(TriggerData *trigdata, PyrRelInfo *info)
{
	note_message();
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		capture_insert(trigdata, info);
	else if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		capture_update(trigdata, info);
	else
		capture_delete(trigdata, info);
}

/*
 * Logs all of the table's rows, as they are now, as inserted or deleted.  Nobody else
 * may be changing the table.  What other triggers did is all in the log already.
 */
static uint64
log_rows(PyrRelInfo *info, Relation rel, PyrVerb verb)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pyreplica rows",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	Bitmapset  *set = verb == PYR_INSERT ? info->but_key : NULL;
	uint64		nrows = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(slot);
		if (is_logged(info, slot))
		{
			append_change(info, verb, set, slot, slot);
			nrows++;
		}
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	UnregisterSnapshot(snapshot);
	return nrows;
}

/*
 * Keeps in mind that the running command truncates all of the table.
 */
static void
note_emptied(Oid relid)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	Emptied    *emptied = palloc(sizeof(Emptied));

	emptied->relid = relid;
	emptied->statement = running_truncate;
	emptied->cid = GetCurrentCommandId(false);
	emptied->subid = GetCurrentSubTransactionId();
	order.emptied = lappend(order.emptied, emptied);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Whether it does.  (If we do not know which statement it is, and one of the table's
 * triggers has changed something meanwhile, we cannot tell, and rows are logged as
 * deleted that are truncated as well.)
 */
static bool
is_emptied(Oid relid)
{
	ListCell   *cell;

	foreach(cell, order.emptied)
	{
		Emptied    *emptied = lfirst(cell);

		if (emptied->relid != relid || emptied->statement != running_truncate)
			continue;
		if (running_truncate != 0 ||
			(emptied->cid == GetCurrentCommandId(false) &&
			 emptied->subid == GetCurrentSubTransactionId()))
			return true;
	}
	return false;
}

static void
capture_truncate(TriggerData *trigdata, PyrRelInfo *info)
{
	/* what is not known to be part of a table any more has been seen to go */
	if (info->ignores_truncate || !OidIsValid(info->logged_as))
		return;
	if (info->via_root == TRIGGER_FIRED_AFTER(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must be fired %s TRUNCATE",
						trigdata->tg_trigger->tgname,
						info->via_root ? "BEFORE" : "AFTER"),
				 errhint("Use py_log_create_tg to create the log triggers.")));

	if (info->logged_as == info->relid)
	{
		/* otherwise its partitions tell */
		if (!info->is_partitioned || info->via_root)
			append_varint(pyr_log_shape(info, PYR_TRUNCATE, NULL));
		if (info->via_root)
			note_emptied(info->relid);
	}
	else if (!info->is_partitioned && !is_emptied(info->logged_as))
		(void) log_rows(info, trigdata->tg_relation, PYR_DELETE);
}

/*
 * A statement that is passed on has changed the row by itself.  If the row version
 * that it replaced was there before, and is still to be captured, that will come too
 * late.
 */
static void
note_passed_on(TriggerData *trigdata)
{
	HeapTuple	old = trigdata->tg_trigtuple;

	if (!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		TRIGGER_FIRED_BY_INSERT(trigdata->tg_event) || order.barrier == 0 ||
		!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(old->t_data)) ||
		!pyr_sql_is_older(HeapTupleHeaderGetCmin(old->t_data)))
		return;
	note_message();
	note_replaced(old, (Place) {
		order.barrier - 1, NO_RANK
	});
}

static void
check_trigger(FunctionCallInfo fcinfo)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"py_log_replica")));

	if ((TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) &&
		 !TRIGGER_FIRED_AFTER(trigdata->tg_event)) ||
		TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ==
		TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must be fired AFTER, and FOR EACH ROW (TRUNCATE: FOR EACH STATEMENT)",
						trigdata->tg_trigger->tgname),
				 errhint("Use py_log_create_tg to create the log triggers.")));
}

/*
 * py_log_replica('tablename', 'keycolumn' ..., '', 'option', 'value' ...) is
 * the log trigger's function.  The first argument is there because PyReplica
 * had it; the table logged is the one that the trigger is on, under the name it
 * has at that time.  If the other arguments, up to an empty one, do not name
 * columns, the primary key is used.  For the options see relinfo.c.
 */
Datum
py_log_replica(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	PyrRelInfo *info;

	check_trigger(fcinfo);
	if (pyr_sql_makes_change(trigdata))
	{
		note_passed_on(trigdata);
		return PointerGetDatum(NULL);
	}

	info = pyr_relinfo_get(trigdata->tg_relation, trigdata->tg_trigger);
	pyr_log_begin_change(trigdata->tg_trigger->tgfoid);

	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		capture_truncate(trigdata, info);
	else
		capture_row(trigdata, info);

	return PointerGetDatum(NULL);
}

static Trigger *
find_trigger(Relation rel, Oid oid)
{
	TriggerDesc *triggers = rel->trigdesc;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		if (triggers->triggers[i].tgoid == oid)
			return &triggers->triggers[i];
	}
	elog(ERROR, "table \"%s\" has no trigger %u", RelationGetRelationName(rel), oid);
	return NULL;
}

/*
 * py_log_rows(tab regclass, trigger oid, are_deleted boolean) logs all rows of a
 * table, which is being attached to the table of that trigger as a partition, or has
 * been detached from it.  Returns how many there were.
 */
Datum
py_log_rows(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	Oid			trigger_oid = PG_GETARG_OID(1);
	PyrVerb		verb = PG_GETARG_BOOL(2) ? PYR_DELETE : PYR_INSERT;
	Relation	rel = table_open(relid, ShareRowExclusiveLock);
	Oid			root = pyr_relinfo_topmost(trigger_oid);
	Relation	root_rel = table_open(root, AccessShareLock);
	Trigger    *trigger = find_trigger(root_rel, trigger_oid);
	PyrRelInfo *info = pyr_relinfo_create(rel, trigger, root);
	uint64		nrows;

	pyr_log_begin_change(trigger->tgfoid);
	nrows = log_rows(info, rel, verb);
	pyr_relinfo_free(info);
	table_close(root_rel, NoLock);
	table_close(rel, NoLock);
	PG_RETURN_INT64(nrows);
}

/*
 * py_log_is_ours(id xid): whether that is the running transaction, or a part of it.
 */
Datum
py_log_is_ours(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(TransactionIdIsCurrentTransactionId(PG_GETARG_TRANSACTIONID(0)));
}

/*
 * A TRUNCATE begins.  Returns what pyr_capture_end_truncate needs when it has ended, in
 * whatever way.
 */
uint64
pyr_capture_begin_truncate(void)
{
	static uint64 last_truncate = 0;
	uint64		before = running_truncate;

	running_truncate = ++last_truncate;
	return before;
}

void
pyr_capture_end_truncate(uint64 before)
{
	running_truncate = before;
}

/*
 * What is captured from now on stays behind what has been.
 */
void
pyr_capture_barrier(void)
{
	order.barrier = pyr_txbuffer_size();
}

/*
 * What pyr_capture_cut takes us back to.
 */
PyrCapturePlace
pyr_capture_place(void)
{
	return (PyrCapturePlace) {
		order.notes, order.barrier
	};
}

/*
 * Forgets what was noted since then, and what refers to changes past size,
 * when a savepoint is rolled back.
 */
void
pyr_capture_cut(PyrCapturePlace place, uint64 size)
{
	HASH_SEQ_STATUS status;
	Version    *version;

	order.barrier = place.barrier;
	for (int depth = 0; depth < MAX_DEPTH; depth++)
	{
		Firing	   *firing = &order.firing[depth];

		for (int i = firing->ntaken - 1; i >= 0; i--)
		{
			if (firing->taken[i].place >= size)
				firing->taken[i] = firing->taken[--firing->ntaken];
		}
	}

	if (order.pending == NULL)
		return;
	hash_seq_init(&status, order.pending);
	while ((version = hash_seq_search(&status)) != NULL)
	{
		if (version->noted >= place.notes)
			hash_search(order.pending, &version->key, HASH_REMOVE, NULL);
	}
}

/*
 * Forgets the order of changes, at the end of each transaction.
 */
void
pyr_capture_end_transaction(void)
{
	memset(&order, 0, sizeof(order));
}
