/*-------------------------------------------------------------------------
 *
 * log.c
 *	  The running transaction's changes, and their way into replica_log.
 *
 * While the transaction runs, its changes gather in txbuffer.c and the shapes
 * they use (see format.h) in here.  Rolling a savepoint back cuts both.  Just
 * before the transaction commits or is prepared, all of it is written as one
 * or more entries of replica_log, and whoever sleeps on the other side is
 * woken.
 *
 * What a slave's worker applies is logged here again where the log triggers fire
 * in a replica, each change with the node where it was first made (node.c).
 *
 * Waking.  NOTIFY serializes all committing transactions of the server, so it
 * is used only when somebody waits for it.  A slave that is about to sleep
 * holds the advisory lock (PYR_LOCK_CLASS, PYR_LOCK_SLEEP) in share mode.  We
 * try it in row-exclusive mode, which conflicts with share mode but not with
 * itself; SQL has no name for it.  If we get it, nobody sleeps; as we keep it
 * until our commit is visible, nobody can fall asleep before having a chance
 * to see our entry.  If we do not, we notify.  A transaction that is being
 * prepared does neither: its locks would outlive it, and it cannot notify.
 * The session of COMMIT PREPARED does it instead, if it has this library loaded,
 * that is, if it changed a logged table itself before; otherwise the slave's
 * poll finds the entries if it saw the prepared transaction, else its
 * keep-alive.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "common/compat.h"
#include "common/format.h"
#include "common/hashfn.h"
#include "common/node.h"
#include "lib/stringinfo.h"
#include "master/capture.h"
#include "master/log.h"
#include "master/place.h"
#include "master/relinfo.h"
#include "master/sql.h"
#include "master/txbuffer.h"
#include "master/writer.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pyreplica.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

/* one shape that the running transaction uses; key is what tells it apart */
typedef struct ShapeKey
{
	uint32		generation;		/* of the table's info */
	uint32		verb;
	uint64		set_hash;		/* of the set columns */
	uint64		origin;			/* which of the transaction's; 0: here */
} ShapeKey;

typedef struct Shape
{
	ShapeKey	key;
	uint32		number;
	Bitmapset  *set;
} Shape;

/* so many are looked through one by one before a hash table pays */
#define FEW_SHAPES	8

/* when a transaction has so many, new sets of columns become whole rows */
#define SHAPES_MAX	1000

/* where things stood when a subtransaction first changed something */
typedef struct Savepoint
{
	int			level;
	uint64		size;
	PyrCapturePlace capture_place;
	uint32		nshapes;
	int			shapes_len;
	int			norigins;
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
	Shape		few[FEW_SHAPES];	/* the first ones */
	HTAB	   *shape_table;	/* the others */
	Shape	   *last_shape;
	List	   *origins;		/* nodes, as char *; mostly none */
	Savepoint  *savepoint;		/* innermost */
} LogState;

static LogState *state = NULL;

/* the running transaction is that of a COMMIT PREPARED */
static bool is_commit_prepared = false;
static ProcessUtility_hook_type prev_process_utility = NULL;

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
		savepoint->capture_place = pyr_capture_place();
		savepoint->nshapes = state->nshapes;
		savepoint->shapes_len = state->shapes.len;
		savepoint->norigins = list_length(state->origins);
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

static void
append_columns(StringInfo out, PyrRelInfo *info, Bitmapset *set)
{
	int			att = -1;

	while ((att = bms_next_member(set, att)) >= 0)
		append_column(out, &info->columns[att]);
}

/*
 * Adds a shape to the transaction's; frees it.
 */
static void
append_shape(StringInfo shape)
{
	append_varint(&state->shapes, shape->len);
	appendBinaryStringInfo(&state->shapes, shape->data, shape->len);
	pfree(shape->data);
}

/*
 * Writes a shape down, as format.h has it.
 */
static void
write_shape(PyrRelInfo *info, PyrVerb verb, Bitmapset *set)
{
	StringInfoData shape;
	int			nkey = verb == PYR_TRUNCATE ? 0 : info->nkey;
	Bitmapset  *old = pyr_relinfo_old(info, verb, set);
	const char *origin = pyr_node_origin();

	initStringInfo(&shape);
	appendStringInfoChar(&shape, (char) verb);
	appendStringInfoChar(&shape,
						 (info->has_shared_key ? PYR_SHAPE_SHARED_KEY : 0) |
						 (old != NULL ? PYR_SHAPE_OLD : 0) |
						 (info->filter_number != 0 ? PYR_SHAPE_FILTERED : 0) |
						 (origin != NULL ? PYR_SHAPE_ORIGIN : 0) |
						 (info->is_whole ? PYR_SHAPE_WHOLE : 0) |
						 (info->is_partitioned ? PYR_SHAPE_PARTITIONED : 0));
	if (origin != NULL)
		append_name(&shape, origin);
	append_name(&shape, info->schema);
	append_name(&shape, info->table);
	append_varint(&shape, nkey);
	append_varint(&shape, bms_num_members(set));
	if (old != NULL)
		append_varint(&shape, bms_num_members(old));
	if (info->filter_number != 0)
		append_varint(&shape, info->filter_number);
	for (int i = 0; i < nkey; i++)
		append_column(&shape, &info->columns[info->key[i] - 1]);
	append_columns(&shape, info, set);
	append_columns(&shape, info, old);
	append_shape(&shape);
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

static bool
is_shape(Shape *shape, ShapeKey *key, Bitmapset *set)
{
	return shape->key.generation == key->generation &&
		shape->key.verb == key->verb &&
		shape->key.origin == key->origin &&
		bms_equal(shape->set, set);
}

static Shape *
find_shape(ShapeKey *key, Bitmapset *set)
{
	Shape	   *shape;

	for (uint32 i = 0; i < Min(state->nshapes, FEW_SHAPES); i++)
	{
		if (is_shape(&state->few[i], key, set))
			return &state->few[i];
	}
	if (state->nshapes <= FEW_SHAPES)
		return NULL;
	key->set_hash = hash_set(set);
	shape = hash_search(state->shape_table, key, HASH_FIND, NULL);

	/* two sets of columns with one hash: the other is written again */
	return shape != NULL && is_shape(shape, key, set) ? shape : NULL;
}

static Shape *
add_shape(ShapeKey *key, Bitmapset *set)
{
	MemoryContext oldcontext;
	Shape	   *shape;

	if (state->nshapes < FEW_SHAPES)
		shape = &state->few[state->nshapes];
	else
	{
		if (state->shape_table == NULL)
			create_shape_table();
		key->set_hash = hash_set(set);
		shape = hash_search(state->shape_table, key, HASH_ENTER, NULL);
	}
	shape->key = *key;
	shape->number = state->nshapes++;
	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	shape->set = bms_copy(set);
	MemoryContextSwitchTo(oldcontext);
	return shape;
}

/*
 * The number, in this transaction, of where the running change was first made;
 * 0: here.
 */
static uint64
origin_number(void)
{
	const char *origin = pyr_node_origin();
	MemoryContext oldcontext;

	if (origin == NULL)
		return 0;
	for (int i = 0; i < list_length(state->origins); i++)
	{
		if (strcmp(list_nth(state->origins, i), origin) == 0)
			return i + 1;
	}
	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	state->origins = lappend(state->origins, pstrdup(origin));
	MemoryContextSwitchTo(oldcontext);
	return list_length(state->origins);
}

/*
 * What a shape is known by, apart from its columns; info is NULL if it is about no
 * table.
 */
static ShapeKey
shape_key(PyrRelInfo *info, PyrVerb verb)
{
	ShapeKey	key;

	memset(&key, 0, sizeof(key));
	key.generation = info != NULL ? info->generation : 0;
	key.verb = verb;
	key.origin = origin_number();
	return key;
}

/*
 * The number, in this transaction, of what the verb does to the table's key
 * and to the set columns.
 */
uint32
pyr_log_shape(PyrRelInfo *info, PyrVerb verb, Bitmapset *set)
{
	ShapeKey	key = shape_key(info, verb);
	Shape	   *shape = state->last_shape;

	if (shape != NULL && is_shape(shape, &key, set))
		return shape->number;

	shape = find_shape(&key, set);
	if (shape == NULL)
	{
		write_shape(info, verb, set);
		shape = add_shape(&key, set);
	}
	state->last_shape = shape;
	return shape->number;
}

/*
 * The columns that an update of those is to be logged with: if there are very
 * many different sets of them, whole rows, because each costs the slave a
 * statement of its own.
 */
Bitmapset *
pyr_log_columns(PyrRelInfo *info, Bitmapset *changed)
{
	ShapeKey	key;

	if (state->nshapes < SHAPES_MAX)
		return changed;
	key = shape_key(info, PYR_UPDATE);
	if (find_shape(&key, changed) != NULL)
		return changed;
	changed = bms_union(changed, info->but_key);
	return info->is_whole ? bms_add_members(changed, info->key_set) : changed;
}

/*
 * Writes the shape of statements down.
 */
static void
write_statement_shape(void)
{
	static const char *const names[] = PYR_SQL_COLUMNS;
	StringInfoData shape;
	const char *origin = pyr_node_origin();

	initStringInfo(&shape);
	appendStringInfoChar(&shape, (char) PYR_SQL);
	appendStringInfoChar(&shape, origin != NULL ? PYR_SHAPE_ORIGIN : 0);
	if (origin != NULL)
		append_name(&shape, origin);
	append_name(&shape, "");
	append_name(&shape, "");
	append_varint(&shape, 0);
	append_varint(&shape, PYR_SQL_NVALUES);
	for (int i = 0; i < PYR_SQL_NVALUES; i++)
	{
		append_name(&shape, names[i]);
		append_varint(&shape, InvalidOid);
	}
	append_shape(&shape);
}

/*
 * Logs a statement that slaves are to run; the values are those that format.h
 * names.  function is one that lies where the log is.
 */
void
pyr_log_statement(Oid function, const char *const *values)
{
	StringInfoData change;
	ShapeKey	key;
	Shape	   *shape;

	pyr_log_begin_change(function);
	key = shape_key(NULL, PYR_SQL);
	shape = find_shape(&key, NULL);
	if (shape == NULL)
	{
		write_statement_shape();
		shape = add_shape(&key, NULL);
	}

	initStringInfo(&change);
	append_varint(&change, shape->number);
	for (int i = 0; i < PYR_SQL_NVALUES; i++)
	{
		append_varint(&change, strlen(values[i]) + 1);
		appendStringInfoString(&change, values[i]);
	}
	pyr_txbuffer_append(change.data, change.len);
	pfree(change.data);
	pyr_capture_barrier();
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
	pyr_capture_cut(savepoint->capture_place, savepoint->size);

	if (state->nshapes == savepoint->nshapes)
		return;
	state->nshapes = savepoint->nshapes;
	state->shapes.len = savepoint->shapes_len;
	state->origins = list_truncate(state->origins, savepoint->norigins);
	state->last_shape = NULL;
	if (state->shape_table == NULL)
		return;
	hash_seq_init(&status, state->shape_table);
	while ((shape = hash_seq_search(&status)) != NULL)
	{
		if (shape->number >= savepoint->nshapes)
			hash_search(state->shape_table, &shape->key, HASH_REMOVE, NULL);
	}
}

static void
subxact_callback(SubXactEvent event,
				 SubTransactionId mySubid pg_attribute_unused(),
				 SubTransactionId parentSubid pg_attribute_unused(),
				 void *arg pg_attribute_unused())
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

static void
write_header(PyrWriter *writer)
{
	StringInfoData header;

	initStringInfo(&header);
	appendStringInfoChar(&header, PYR_FORMAT_VERSION);
	appendStringInfoChar(&header, 0);
	append_varint(&header, state->nshapes);
	append_varint(&header, pyr_txbuffer_size());
	pyr_writer_bytes(writer, header.data, header.len);
	pfree(header.data);
}

/*
 * Where the transaction's changes were first made, for writer.c.  Those of a
 * worker all came from elsewhere, those of anybody else were made here.
 */
static const char *
origin_of_all(void)
{
	switch (list_length(state->origins))
	{
		case 0:
			return NULL;
		case 1:
			return linitial(state->origins);
		default:
			return PYR_ORIGIN_MIXED;
	}
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
	PyrWriter  *writer;

	if (pyr_txbuffer_size() == 0)
		return;

	context = AllocSetContextCreate(TopTransactionContext, "pyreplica log",
									ALLOCSET_DEFAULT_SIZES);
	oldcontext = MemoryContextSwitchTo(context);

	if (!preparing)
		wake_sleepers();

	writer = pyr_writer_begin(get_func_namespace(state->function),
							  pyr_txbuffer_size(), origin_of_all());
	if (writer != NULL)
	{
		write_header(writer);
		pyr_writer_bytes(writer, state->shapes.data, state->shapes.len);
		pyr_txbuffer_emit(pyr_writer_bytes, writer);
		pyr_writer_end(writer);
	}

	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
}

static void
forget_transaction(bool is_abort)
{
	state = NULL;
	pyr_capture_end_transaction();
	pyr_relinfo_end_transaction();
	pyr_txbuffer_end(is_abort);
}

static void
next_process_utility(PYR_UTILITY_PARAMS)
{
	if (prev_process_utility)
		prev_process_utility(PYR_UTILITY_ARGS);
	else
		standard_ProcessUtility(PYR_UTILITY_ARGS);
}

/*
 * Watches for COMMIT PREPARED: the entries that it makes visible have not woken
 * anybody yet; for log triggers that would be made on slaves as well; and for TRUNCATE,
 * whose triggers have to be known to be of one statement.
 */
static void
process_utility(PYR_UTILITY_PARAMS)
{
	uint64		before;

	if (IsA(pstmt->utilityStmt, TransactionStmt) &&
		((TransactionStmt *) pstmt->utilityStmt)->kind == TRANS_STMT_COMMIT_PREPARED)
		is_commit_prepared = true;
	if (IsA(pstmt->utilityStmt, CreateTrigStmt) && pyr_sql_is_running())
		pyr_sql_check_trigger((CreateTrigStmt *) pstmt->utilityStmt);

	if (!IsA(pstmt->utilityStmt, TruncateStmt))
	{
		next_process_utility(PYR_UTILITY_ARGS);
		return;
	}
	before = pyr_capture_begin_truncate();
	PG_TRY();
	{
		next_process_utility(PYR_UTILITY_ARGS);
	}
	PG_FINALLY();
	{
		pyr_capture_end_truncate(before);
	}
	PG_END_TRY();
}

static void
xact_callback(XactEvent event, void *arg pg_attribute_unused())
{
	if (is_commit_prepared)
	{
		if (event == XACT_EVENT_PRE_COMMIT)
			wake_sleepers();
		is_commit_prepared = false;
	}
	if (state == NULL)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			write_entries(event == XACT_EVENT_PRE_PREPARE);
			forget_transaction(false);
			break;

		case XACT_EVENT_ABORT:
			forget_transaction(true);
			break;

		default:
			break;
	}
}

/*
 * Called once per process, when the library is loaded.
 */
void
pyr_log_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
