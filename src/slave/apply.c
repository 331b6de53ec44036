/*-------------------------------------------------------------------------
 *
 * apply.c
 *	  A window into the slave's tables, and the position with it, in one local
 *	  transaction.
 *
 * The changes are applied one by one in the master's commit order, each with
 * its shape's saved plan.  A row that is to be updated or deleted and is not
 * there is a conflict: it is counted, logged and passed over.  Everything
 * else that goes wrong is an error, which rolls the whole window back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/config.h"
#include "common/decode.h"
#include "common/render.h"
#include "catalog/pg_class.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "commands/trigger.h"
#include "pgstat.h"
#include "slave/apply.h"
#include "slave/local.h"
#include "slave/target.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define REPORT_INTERVAL_MS	200
#define KEY_LEN_MAX			300

/* a window being applied */
typedef struct ApplyState
{
	const char *replica;
	int			encoding;
	PyrWindow  *window;
	PyrApplied	applied;
	TimestampTz reported_at;
	MemoryContext change_context;

	/* the entry being read, and whether its bytes were handed out */
	PyrEntry	entry;
	bool		has_entry;
	bool		is_taken;

	/* the transaction and change being applied */
	int64		commitno;
	uint64		xid;
	int32		part;
	PyrChange  *change;
	bool		is_describing;

	/* tables to be truncated by one statement, as the master may have done */
	int			ntruncated;
	Oid			truncate_owner; /* of all of them */
	StringInfoData truncate;	/* the statement */
} ApplyState;

/*
 * Shapes are remembered from window to window, with their plans; by the
 * encoding of the master they came from.
 */
static PyrDecoder *decoder = NULL;
static int	decoder_encoding = -1;

static PyrDecoder *
get_decoder(int encoding)
{
	if (decoder != NULL && decoder_encoding != encoding)
		elog(ERROR, "the master's encoding has changed");
	if (decoder == NULL)
		decoder = pyr_decoder_create(TopMemoryContext, encoding);
	decoder_encoding = encoding;
	return decoder;
}

static void
advance(ApplyState *state)
{
	state->has_entry = pyr_window_next(state->window, &state->entry);
	state->is_taken = false;
}

/* a PyrSource: the parts of the current transaction */
static bool
next_part(void *arg, const char **data, size_t *len)
{
	ApplyState *state = arg;

	if (state->is_taken)
		advance(state);
	if (!state->has_entry ||
		state->entry.commitno != state->commitno ||
		state->entry.xid != state->xid)
		return false;
	if (state->entry.part != state->part)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("part %d of a transaction in replica_log is missing",
						state->part)));
	state->part++;
	state->is_taken = true;
	*data = state->entry.data;
	*len = state->entry.len;
	return true;
}

static const char *
verb_words(PyrVerb verb)
{
	switch (verb)
	{
		case PYR_INSERT:
			return "INSERT into";
		case PYR_UPDATE:
			return "UPDATE of";
		case PYR_DELETE:
			return "DELETE from";
		case PYR_TRUNCATE:
			return "TRUNCATE of";
	}
	return "?";
}

/*
 * The change's key in parentheses, not too long for a log line.
 */
static char *
describe_key(ApplyState *state)
{
	StringInfoData key;

	initStringInfo(&key);
	if (state->change->shape->nkey == 0)
		return key.data;
	appendStringInfoString(&key, " (");
	pyr_render_key(&key, state->change, state->encoding);
	if (key.len > KEY_LEN_MAX)
	{
		key.len = pg_mbcliplen(key.data, key.len, KEY_LEN_MAX);
		key.data[key.len] = '\0';
		appendStringInfoString(&key, "...");
	}
	appendStringInfoChar(&key, ')');
	return key.data;
}

static void
error_context(void *arg)
{
	ApplyState *state = arg;
	char	   *key = "";

	if (state->change == NULL)
	{
		errcontext("pyreplica %s: reading the master's transaction " UINT64_FORMAT ", commit number " INT64_FORMAT,
				   state->replica, state->xid, state->commitno);
		return;
	}

	/* if the key's bytes are what is wrong, do without it */
	if (!state->is_describing)
	{
		state->is_describing = true;
		key = describe_key(state);
		state->is_describing = false;
	}
	errcontext("pyreplica %s: applying %s table \"%s.%s\"%s of the master's transaction " UINT64_FORMAT ", commit number " INT64_FORMAT,
			   state->replica, verb_words(state->change->shape->verb),
			   state->change->shape->schema, state->change->shape->table,
			   key, state->xid, state->commitno);
}

/*
 * A row that is to be changed is not there.
 */
static void
report_missing(ApplyState *state)
{
	PyrShape   *shape = state->change->shape;

	state->applied.conflicts++;
	ereport(LOG,
			(errmsg("pyreplica %s: conflict %s on table \"%s.%s\"%s",
					state->replica,
					shape->verb == PYR_UPDATE ? "update_missing" : "delete_missing",
					shape->schema, shape->table, describe_key(state)),
			 errdetail("The row is not on the slave; the master's %s is passed over.",
					   shape->verb == PYR_UPDATE ? "update" : "delete"),
			 errhidecontext(true)));
}

static void
log_statement(ApplyState *state)
{
	StringInfoData statement;

	initStringInfo(&statement);
	pyr_render_change(&statement, state->change, state->encoding);
	ereport(LOG,
			(errmsg("pyreplica %s: Executing: %s",
					state->replica, statement.data),
			 errhidestmt(true), errhidecontext(true)));
}

/*
 * Runs the statement, or else the target's plan, as the owner of the table, so that what is attached to the
 * table (triggers, index expressions ...) gets no more rights than its owner
 * has.
 */
static void
execute_as_owner(Oid owner, const char *statement, PyrTarget *target)
{
	Oid			userid;
	int			security;
	int			rc;

	GetUserIdAndSecContext(&userid, &security);
	if (owner != userid)
		SetUserIdAndSecContext(owner,
							   security | SECURITY_RESTRICTED_OPERATION);
	if (statement != NULL)
		rc = SPI_execute(statement, false, 0);
	else
		rc = SPI_execute_plan(target->plan, target->values, target->nulls,
							  false, 0);
	SetUserIdAndSecContext(userid, security);
	if (rc < 0)
		elog(ERROR, "could not execute the plan: %s",
			 SPI_result_code_string(rc));
}

/*
 * Truncates the tables gathered so far, together, as they may refer to one
 * another.
 */
static void
flush_truncates(ApplyState *state)
{
	if (state->ntruncated == 0)
		return;
	execute_as_owner(state->truncate_owner, state->truncate.data, NULL);
	state->ntruncated = 0;
	pfree(state->truncate.data);
}

static void
gather_truncate(ApplyState *state, PyrTarget *target)
{
	MemoryContext oldcontext;
	PyrShape   *shape = state->change->shape;

	if (state->truncate_owner != target->owner)
		flush_truncates(state);
	state->truncate_owner = target->owner;

	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	if (state->ntruncated++ == 0)
	{
		initStringInfo(&state->truncate);
		appendStringInfoString(&state->truncate, "TRUNCATE ");
	}
	else
		appendStringInfoString(&state->truncate, ", ");
	if (get_rel_relkind(target->relid) == RELKIND_RELATION)
		appendStringInfoString(&state->truncate, "ONLY ");
	appendStringInfoString(&state->truncate,
						   quote_qualified_identifier(shape->schema, shape->table));
	MemoryContextSwitchTo(oldcontext);
}

static void
apply_change(ApplyState *state)
{
	PyrShape   *shape = state->change->shape;
	PyrTarget  *target;

	if (log_statements)
		log_statement(state);

	if (shape->verb != PYR_TRUNCATE)
		flush_truncates(state);
	target = pyr_target_get(shape);
	if (shape->verb == PYR_TRUNCATE)
	{
		gather_truncate(state, target);
		state->applied.rows++;
		return;
	}
	if (target->plan == NULL)
		return;
	pyr_target_set_values(target, state->change, state->encoding);
	execute_as_owner(target->owner, NULL, target);

	if (shape->verb == PYR_UPDATE || shape->verb == PYR_DELETE)
	{
		if (SPI_processed == 0)
			report_missing(state);
		else if (SPI_processed > 1)
			ereport(ERROR,
					(errcode(ERRCODE_CARDINALITY_VIOLATION),
					 errmsg("table \"%s.%s\" has " UINT64_FORMAT " rows with one key on the slave",
							shape->schema, shape->table, SPI_processed),
					 errhint("Give the slave's table the master's primary key.")));
	}
	state->applied.rows++;
}

static void
report_progress(ApplyState *state)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(state->reported_at, now,
									REPORT_INTERVAL_MS))
		return;
	state->reported_at = now;
	pgstat_report_activity(STATE_RUNNING,
						   psprintf("applying: transaction " INT64_FORMAT " of " INT64_FORMAT ", " INT64_FORMAT " rows",
									state->applied.transactions + 1,
									pyr_window_transactions(state->window),
									state->applied.rows));
}

static void
apply_transaction(ApplyState *state)
{
	PyrChange	change;
	MemoryContext oldcontext = MemoryContextSwitchTo(state->change_context);
	int			since_report = 0;

	state->commitno = state->entry.commitno;
	state->xid = state->entry.xid;
	state->part = 0;
	state->change = NULL;
	state->is_taken = false;

	pyr_decoder_begin(get_decoder(state->encoding), next_part, state);
	while (pyr_decoder_next(decoder, &change))
	{
		CHECK_FOR_INTERRUPTS();
		state->change = &change;
		apply_change(state);
		state->change = NULL;
		MemoryContextReset(state->change_context);
		if (++since_report == 256)
		{
			pyr_window_fetch_pump();
			report_progress(state);
			since_report = 0;
		}
	}
	flush_truncates(state);
	state->applied.transactions++;
	pyr_window_fetch_pump();
	report_progress(state);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextReset(state->change_context);
}

/*
 * Constraints that can be deferred are: the master may have swapped keys
 * within a statement or a transaction.
 */
static void
defer_constraints(void)
{
	ConstraintsSetStmt *stmt = makeNode(ConstraintsSetStmt);

	stmt->constraints = NIL;
	stmt->deferred = true;
	AfterTriggerSetState(stmt);
}

/*
 * Applies the window and moves the position to its end, all of it or nothing.
 */
PyrApplied
pyr_apply_window(const char *replica, PyrWindow *window, int encoding,
				 PyrPosition *position)
{
	ApplyState	state = {0};
	ErrorContextCallback callback;

	state.replica = replica;
	state.encoding = encoding;
	state.window = window;
	state.reported_at = GetCurrentTimestamp();

	pyr_local_begin_transaction();
	state.change_context = AllocSetContextCreate(TopTransactionContext,
												 "pyreplica change",
												 ALLOCSET_DEFAULT_SIZES);
	callback.callback = error_context;
	callback.arg = &state;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	defer_constraints();
	advance(&state);
	while (state.has_entry)
		apply_transaction(&state);

	error_context_stack = callback.previous;

	pyr_position_advance(position, pyr_window_snapshot(window),
						 pyr_window_wal(window));
	pyr_position_store(replica, position);
	pyr_local_commit_transaction();

	return state.applied;
}
