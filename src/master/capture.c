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
 * with the outer statement's.  So when a trigger of the application changes a
 * row whose own trigger call is still to come, we see the later change first.
 * Both tell what happened to one row, and applying them the wrong way round
 * would lose the row or resurrect an old value.  It is recognized: the later
 * change replaces a row version that this transaction created, by a command of
 * which no trigger was called yet, or whose triggers are just being called.
 * We remember that version, and when the call that tells of its creation
 * comes, that change is moved before the one that needs it (txbuffer.c).  Log
 * triggers are named to fire first, so in the common case (a trigger changes
 * the very row it was called for) nothing has to be moved.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/compat.h"
#include "common/format.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "master/capture.h"
#include "master/log.h"
#include "master/relinfo.h"
#include "master/txbuffer.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/datum.h"
#include "utils/float.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

PG_FUNCTION_INFO_V1(py_log_replica);

/* trigger nesting that we keep an eye on; deeper ones count as the deepest */
#define MAX_DEPTH	16

/* a row version whose creation has not been captured yet */
typedef struct VersionKey
{
	Oid			relid;
	ItemPointerData tid;
	uint16		unused;			/* keys are compared as bytes */
} VersionKey;

typedef struct Version
{
	VersionKey	key;
	CommandId	creator;		/* the command that made it */
	uint64		noted_at;		/* where the changes ended then */
	uint64		replaced_at;	/* where the change that replaced it is, or
								 * NOT_YET */
	VersionKey	stands_for;		/* the version itself, or an earlier one that
								 * it equals */
} Version;

#define NOT_YET	PG_UINT64_MAX

/* so many commands' bits are kept in one piece of memory */
#define COMMANDS_PER_PAGE	32768

typedef struct CommandPage
{
	uint32		number;			/* hash key */
	uint8		bits[COMMANDS_PER_PAGE / 8];
} CommandPage;

/*
 * The order of the running transaction's changes.
 */
static struct
{
	CommandId	firing[MAX_DEPTH];	/* command whose triggers are being called,
									 * by depth; the first is for depth 1 */
	VersionKey	current[MAX_DEPTH]; /* version whose creation was captured
									 * last, likewise */
	Oid			relid[MAX_DEPTH];	/* table captured last, likewise */
	uint64		nested[MAX_DEPTH];	/* first change that such a trigger made
									 * to that table, plus 1; 0: none */
	uint64		seen;			/* commands of which a trigger was called, a
								 * bit each for the first 64 */
	HTAB	   *seen_later;		/* CommandPage, for the others */
	HTAB	   *pending;		/* Version; NULL if there never was one */
	bool		has_firing_creators;	/* some pending version's creator had
										 * been seen */
}			order;

/*
 * Output functions whose result depends on settings see these values, so that
 * every slave can read what they write.
 */
static int
pin_settings(PyrRelInfo *info)
{
	int			nestlevel;

	if (!info->has_text)
		return -1;

	nestlevel = NewGUCNestLevel();
	if (info->has_names)
		(void) set_config_option("search_path", "pg_catalog",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	if (DateStyle != USE_ISO_DATES)
		(void) set_config_option("datestyle", "ISO",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	if (IntervalStyle != INTSTYLE_POSTGRES)
		(void) set_config_option("intervalstyle", "postgres",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	if (extra_float_digits < 1)
		(void) set_config_option("extra_float_digits", "1",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	if (bytea_output != BYTEA_OUTPUT_HEX)
		(void) set_config_option("bytea_output", "hex",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

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
 * Appends one change: the key out of one row, the set columns out of another.
 */
static void
append_change(PyrRelInfo *info, PyrVerb verb, Bitmapset *set,
			  TupleTableSlot *key_row, TupleTableSlot *set_row)
{
	int			nestlevel;
	int			i;

	append_varint(pyr_log_shape(info, verb, set));

	nestlevel = pin_settings(info);
	slot_getallattrs(key_row);
	for (i = 0; i < info->nkey; i++)
	{
		int			att = info->key[i] - 1;

		append_value(&info->columns[att],
					 key_row->tts_values[att], key_row->tts_isnull[att]);
	}

	i = -1;
	while ((i = bms_next_member(set, i)) >= 0)
		append_value(&info->columns[i],
					 set_row->tts_values[i], set_row->tts_isnull[i]);

	if (nestlevel >= 0)
		AtEOXact_GUC(true, nestlevel);
}

static uint8 *
command_bits(CommandId cid, bool create)
{
	uint32		number = cid / COMMANDS_PER_PAGE;
	CommandPage *page;
	bool		found;

	if (order.seen_later == NULL)
	{
		HASHCTL		ctl = {0};

		if (!create)
			return NULL;
		ctl.keysize = sizeof(uint32);
		ctl.entrysize = sizeof(CommandPage);
		ctl.hcxt = TopTransactionContext;
		order.seen_later = hash_create("pyreplica commands", 16, &ctl,
									   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	page = hash_search(order.seen_later, &number,
					   create ? HASH_ENTER : HASH_FIND, &found);
	if (page == NULL)
		return NULL;
	if (!found)
		memset(page->bits, 0, sizeof(page->bits));
	return &page->bits[cid % COMMANDS_PER_PAGE / 8];
}

/* at which place of order's arrays */
static int
level_of(int depth)
{
	return Min(depth, MAX_DEPTH) - 1;
}

static bool
is_seen(CommandId cid)
{
	uint8	   *bits;

	if (cid < 64)
		return (order.seen & (UINT64CONST(1) << cid)) != 0;
	bits = command_bits(cid, false);
	return bits != NULL && (*bits & (1 << cid % 8)) != 0;
}

/*
 * Whether that command of our transaction has done something that we have not
 * been told of yet: none of its triggers was called, or they are just being
 * called.
 */
static bool
is_unfinished(CommandId cid, int depth)
{
	for (int i = 0; i < level_of(depth); i++)
	{
		if (order.firing[i] == cid)
			return true;
	}
	return !is_seen(cid);
}

/*
 * Forgets pending versions: those of a table, or (relid invalid) those made by
 * commands that are finished.
 */
static void
forget_versions(Oid relid)
{
	HASH_SEQ_STATUS status;
	Version    *version;

	if (order.pending == NULL)
		return;
	hash_seq_init(&status, order.pending);
	while ((version = hash_seq_search(&status)) != NULL)
	{
		if (OidIsValid(relid) ? version->key.relid == relid
			: is_seen(version->creator))
			hash_search(order.pending, &version->key, HASH_REMOVE, NULL);
	}
}

/*
 * A trigger of that command is being called.
 */
static void
note_command(CommandId cid, int depth)
{
	int			level = level_of(depth);

	if (order.firing[level] == cid)
		return;
	if (level == 0 && order.has_firing_creators)
	{
		/* a new statement: the one before is done, and what it nested */
		order.has_firing_creators = false;
		forget_versions(InvalidOid);
	}
	order.firing[level] = cid;
	order.nested[level] = 0;
	if (cid < 64)
		order.seen |= UINT64CONST(1) << cid;
	else
		*command_bits(cid, true) |= 1 << cid % 8;
}

static VersionKey
version_key(HeapTuple tuple)
{
	VersionKey	key;

	memset(&key, 0, sizeof(key));
	key.relid = tuple->t_tableOid;
	key.tid = tuple->t_self;
	return key;
}

static Version *
enter_version(VersionKey key, CommandId creator)
{
	Version    *version;
	bool		found;

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
	if (!found)
	{
		version->creator = creator;
		version->noted_at = pyr_txbuffer_size();
		version->replaced_at = NOT_YET;
		version->stands_for = key;
	}
	if (is_seen(creator))
		order.has_firing_creators = true;
	return version;
}

/*
 * The version, if its creation is still to be captured, or another one of
 * which that is true and that it equals; and the command that made it.
 */
static bool
find_pending(HeapTuple tuple, int depth, VersionKey *key, CommandId *creator)
{
	Version    *version = NULL;
	int			level = level_of(depth);

	if (!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)))
		return false;

	*key = version_key(tuple);
	*creator = HeapTupleHeaderGetCmin(tuple->t_data);

	/* the row that the trigger around us was called for */
	if (level > 0 &&
		memcmp(key, &order.current[level - 1], sizeof(VersionKey)) == 0)
		return false;

	if (order.pending != NULL)
		version = hash_search(order.pending, key, HASH_FIND, NULL);
	if (version != NULL)
	{
		*key = version->stands_for;
		*creator = version->creator;
		return true;
	}
	return is_unfinished(*creator, depth);
}

/*
 * A row version was replaced: remember the place if the version's own
 * creation is still to be captured.
 */
static void
note_replaced(HeapTuple old, uint64 place, int depth)
{
	VersionKey	key;
	CommandId	creator;

	if (find_pending(old, depth, &key, &creator))
		enter_version(key, creator)->replaced_at = place;
}

/*
 * A new version equals the old one, so it is not logged: what replaces it
 * replaces the old one.
 */
static void
note_touched(HeapTuple old, HeapTuple new, int depth)
{
	VersionKey	key;
	CommandId	creator;

	if (find_pending(old, depth, &key, &creator))
		enter_version(version_key(new), creator)->stands_for = key;
}

/*
 * A change to a table, from start to the buffer's end, of a command whose
 * triggers are being called.  The command had done all of its work before the
 * first of them was; so the change comes before those that its triggers made
 * to the same table, which may for instance have taken a key that it set free.
 * Returns before which change it has to come, or NOT_YET.
 */
static uint64
note_change(Oid relid, CommandId cid, uint64 start, int depth)
{
	int			level = level_of(depth);
	uint64		before = NOT_YET;

	note_command(cid, depth);
	if (order.nested[level] != 0 && order.relid[level] == relid)
		before = order.nested[level] - 1;
	order.relid[level] = relid;

	for (int i = 0; i < level; i++)
	{
		if (order.nested[i] == 0 && order.relid[i] == relid)
			order.nested[i] = start + 1;
	}
	return before;
}

/*
 * A row version's creation has been captured: if the version has been replaced
 * already, that comes later.  Returns before which change it has to come, or
 * NOT_YET.
 */
static uint64
note_created(HeapTuple new, int depth)
{
	VersionKey	key = version_key(new);
	Version    *version;
	uint64		before;

	order.current[level_of(depth)] = key;
	if (order.pending == NULL || hash_get_num_entries(order.pending) == 0)
		return NOT_YET;

	version = hash_search(order.pending, &key, HASH_FIND, NULL);
	if (version == NULL)
		return NOT_YET;

	before = version->replaced_at;
	hash_search(order.pending, &key, HASH_REMOVE, NULL);
	return before;
}

/*
 * The one of two changes to come before that includes coming before the other.
 * In doubt, that is the one that was moved to the other itself.
 */
static uint64
earlier(uint64 version, uint64 nested)
{
	if (version == NOT_YET || nested == NOT_YET)
		return Min(version, nested);
	return pyr_txbuffer_place(version) <= pyr_txbuffer_place(nested)
		? version : nested;
}

static void
capture_row(TriggerData *trigdata, PyrRelInfo *info)
{
	TriggerEvent event = trigdata->tg_event;
	uint64		start = pyr_txbuffer_size();
	int			depth = DatumGetInt32(pg_trigger_depth(NULL));
	HeapTuple	old = NULL;
	HeapTuple	new = NULL;
	CommandId	cid;
	uint64		before = NOT_YET;

	if (TRIGGER_FIRED_BY_INSERT(event))
	{
		new = trigdata->tg_trigtuple;
		append_change(info, PYR_INSERT, info->but_key,
					  trigdata->tg_trigslot, trigdata->tg_trigslot);
	}
	else if (TRIGGER_FIRED_BY_UPDATE(event))
	{
		Bitmapset  *changed = changed_columns(info, trigdata->tg_trigslot,
											  trigdata->tg_newslot);

		old = trigdata->tg_trigtuple;
		new = trigdata->tg_newtuple;
		if (bms_is_empty(changed))
		{
			note_touched(old, new, depth);
			note_command(HeapTupleHeaderGetCmin(new->t_data), depth);
			return;
		}
		append_change(info, PYR_UPDATE, changed,
					  trigdata->tg_trigslot, trigdata->tg_newslot);
	}
	else
	{
		old = trigdata->tg_trigtuple;
		append_change(info, PYR_DELETE, NULL, trigdata->tg_trigslot, NULL);
	}

	if (new != NULL)
		before = note_created(new, depth);
	if (old != NULL)
		note_replaced(old, start, depth);
	cid = new != NULL ? HeapTupleHeaderGetCmin(new->t_data)
		: HeapTupleHeaderGetCmax(old->t_data);
	before = earlier(before, note_change(info->relid, cid, start, depth));
	if (before != NOT_YET)
		pyr_txbuffer_move(start, pyr_txbuffer_size(), before);
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

	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ==
		TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" must be fired AFTER, and FOR EACH ROW (TRUNCATE: FOR EACH STATEMENT)",
						trigdata->tg_trigger->tgname),
				 errhint("Use py_log_create_tg to create the log triggers.")));
}

/*
 * py_log_replica('tablename', 'keycolumn' ...) is the log trigger's function.
 * The first argument is there because PyReplica had it; the table logged is
 * the one that the trigger is on, under the name it has at that time.  If the
 * other arguments do not name columns, the primary key is used.
 */
Datum
py_log_replica(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	PyrRelInfo *info;

	check_trigger(fcinfo);

	info = pyr_relinfo_get(trigdata->tg_relation, trigdata->tg_trigger);
	pyr_log_begin_change(trigdata->tg_trigger->tgfoid);

	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
	{
		append_varint(pyr_log_shape(info, PYR_TRUNCATE, NULL));
		/* versions will be at the same places again */
		forget_versions(info->relid);
	}
	else
		capture_row(trigdata, info);

	return PointerGetDatum(NULL);
}

/*
 * Forgets what refers to changes past size, when a savepoint is rolled back.
 */
void
pyr_capture_cut(uint64 size)
{
	HASH_SEQ_STATUS status;
	Version    *version;

	for (int i = 0; i < MAX_DEPTH; i++)
	{
		if (order.nested[i] > size)
			order.nested[i] = 0;
	}
	if (order.pending == NULL)
		return;
	hash_seq_init(&status, order.pending);
	while ((version = hash_seq_search(&status)) != NULL)
	{
		if (version->noted_at > size ||
			(version->replaced_at != NOT_YET && version->replaced_at >= size))
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
