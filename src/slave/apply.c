/*-------------------------------------------------------------------------
 *
 * apply.c
 *	  A window into the slave's tables, and the position with it, in one local
 *	  transaction; also what came with it to copy a table.
 *
 * There are two ways.  In sets: the changes of the window are merged to their
 * net effect (merge.c), which then takes a statement for many rows (sets.c);
 * piece by piece if it would take more memory than pyreplica.window_memory.
 * In strict order: each change by itself, in the master's commit order.  Both
 * lead to the same rows.
 *
 * Sets come first, within a subtransaction.  If anything goes wrong, or
 * rows are not where they should be, it is rolled back and the window applied
 * in strict order, where it turns out which change is to blame.  Rows that are
 * not what the change expects are conflicts, see conflict.c.  Everything else
 * that goes wrong is an error, which rolls the whole window back; see skip.c for
 * the way on.
 *
 * Changes that were first made here, or that are not wanted because of where
 * they were, are passed over.  Where changes are logged here again, to be
 * forwarded, each keeps its origin: only changes of one origin are merged.
 *
 * Tables where more than the net effect matters are applied one by one also
 * within sets, see target.c.  So are statements that the master passes on (ddl.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "common/config.h"
#include "common/decode.h"
#include "common/node.h"
#include "common/render.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "slave/apply.h"
#include "slave/author.h"
#include "slave/collision.h"
#include "slave/conflict.h"
#include "slave/copy.h"
#include "slave/ddl.h"
#include "slave/foreign.h"
#include "slave/local.h"
#include "slave/mapping.h"
#include "slave/mend.h"
#include "slave/merge.h"
#include "slave/sets.h"
#include "slave/skip.h"
#include "slave/statement.h"
#include "slave/target.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define REPORT_INTERVAL_MS	200
/* when the decoder remembers so many shapes, it begins anew */
#define SHAPES_MAX			20000

/*
 * A window of fewer bytes is applied in order at once: it has some ten changes
 * at most, and sets would not be faster.  But once a change has failed, the
 * window may come with another one that makes good for it.
 */
#define SMALL_WINDOW_BYTES	1024

/* a transaction whose changes are being merged */
typedef struct MergedTransaction
{
	uint64		order;			/* of its first change */
	PyrTransaction transaction;
} MergedTransaction;

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
	PyrTransaction transaction;
	int32		part;
	PyrChange  *change;
	int64		number;			/* of the change in the transaction */
	int64		number_at_work; /* of the one whose error it would be; 0: none */
	bool		runs_statement; /* that one is a statement passed on */
	bool		is_describing;
	TimestampTz last_at;		/* the latest time that a transaction has */

	/* the node where the last change was first made; NULL: the master */
	const char *origin;
	bool		is_unwanted;	/* changes from there are passed over */
	const char *applied_origin; /* of what is not: the one they are logged with */

	/* changes being merged; NULL: they are applied in strict order */
	PyrMerge   *merge;
	bool		is_forwarding;	/* some of them will be logged here again */
	PyrSets		sets;
	MergedTransaction *merged;
	int			nmerged;
	int			maxmerged;
	PyrConflicts conflicts;

	/* tables to be truncated by one statement, as the master may have done */
	int			ntruncated;
	List	   *truncated;		/* Truncated, in the transaction's memory */
	Oid			truncate_owner; /* of all of them */
	StringInfoData truncate;	/* the statement */
} ApplyState;

/* a table that is to be truncated */
typedef struct Truncated
{
	PyrTable   *table;
	int64		number;			/* of the change */
} Truncated;

/*
 * Shapes are remembered from window to window, with their plans; by the
 * encoding of the master they came from.
 */
static PyrDecoder *decoder = NULL;
static int	decoder_encoding = -1;

static uint64 window_number = 0;

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

/*
 * Shapes are not remembered without limit.  Called between windows.
 */
static void
limit_shapes(void)
{
	if (decoder == NULL || pyr_decoder_shapes(decoder) < SHAPES_MAX)
		return;
	pyr_target_forget_all();
	pyr_decoder_free(decoder);
	decoder = NULL;
}

/* changes are merged in here, in all windows */
static PyrMerge *
get_merge(void)
{
	static PyrMerge *merge = NULL;

	if (merge == NULL)
		merge = pyr_merge_create(TopMemoryContext);
	pyr_merge_clear(merge);
	return merge;
}

/* memory for a piece being merged; the other half is for windows */
static size_t
merge_limit(void)
{
	return (size_t) Max(window_memory_kb / 2, 64) * 1024;
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
		state->entry.commitno != state->transaction.commitno ||
		state->entry.xid != state->transaction.xid)
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
		case PYR_SQL:
			break;
	}
	return "?";
}

static void
error_context(void *arg)
{
	ApplyState *state = arg;
	PyrShape   *shape;
	PyrPlace	here;
	char	   *key = "";

	if (state->sets.target != NULL)
	{
		errcontext("pyreplica %s: applying %s table \"%s.%s\" (%d rows)",
				   state->replica, verb_words(state->sets.verb),
				   state->sets.target->schema, state->sets.target->table,
				   state->sets.nrows);
		return;
	}
	if (state->change == NULL)
	{
		errcontext("pyreplica %s: reading the master's transaction " UINT64_FORMAT ", commit number " INT64_FORMAT,
				   state->replica, state->transaction.xid, state->transaction.commitno);
		return;
	}

	/* if the key's bytes are what is wrong, do without it */
	if (!state->is_describing)
	{
		state->is_describing = true;
		key = state->change->shape->verb == PYR_SQL
			? pyr_ddl_describe(state->change, state->encoding)
			: pyr_describe_key(state->change, state->encoding);
		state->is_describing = false;
	}
	if (state->change->shape->verb == PYR_SQL)
	{
		errcontext("pyreplica %s: running the statement \"%s\" of the master's transaction " UINT64_FORMAT ", commit number " INT64_FORMAT,
				   state->replica, key, state->transaction.xid,
				   state->transaction.commitno);
		return;
	}
	shape = state->change->shape;
	here = pyr_mapping_of(shape->schema, shape->table);
	errcontext("pyreplica %s: applying %s table \"%s.%s\"%s%s of the master's transaction " UINT64_FORMAT ", commit number " INT64_FORMAT,
			   state->replica, verb_words(shape->verb),
			   shape->schema, shape->table,
			   here.is_mapped ? psprintf(" (here \"%s.%s\")", here.schema, here.table) : "",
			   key, state->transaction.xid, state->transaction.commitno);
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

static bool
is_truncated(ApplyState *state, PyrTable *table)
{
	ListCell   *cell;

	foreach(cell, state->truncated)
	{
		if (((Truncated *) lfirst(cell))->table == table)
			return true;
	}
	return false;
}

/*
 * Where several tables of the master are the same one here, it can only be emptied for
 * all of them.
 */
static void
check_sharers(ApplyState *state, Truncated *truncated)
{
	PyrTable   *table = truncated->table;
	ListCell   *cell;

	foreach(cell, pyr_table_sharers(table))
	{
		PyrTable   *sharer = lfirst(cell);

		/* of one that is yet to be copied, no rows are here */
		if (sharer->state == PYR_TABLE_WAITING || is_truncated(state, sharer))
			continue;
		state->number_at_work = truncated->number;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s cannot be truncated for the master's table %s alone",
						pyr_table_here(table), pyr_table_qualified(table)),
				 errdetail("It has the rows of the master's table %s, too.",
						   pyr_table_qualified(sharer)),
				 errhint("Delete here what came from the one, and pass over the change with pyreplica_skip(). With py_log_create_tg(..., ignore_truncate => true) on the master it does not come again.")));
	}
}

/*
 * Truncates the tables gathered so far, together, as they may refer to one
 * another.
 */
static void
flush_truncates(ApplyState *state)
{
	int64		number_at_work = state->number_at_work;
	ListCell   *cell;

	if (state->ntruncated == 0)
		return;
	foreach(cell, state->truncated)
		check_sharers(state, lfirst(cell));
	state->number_at_work = ((Truncated *) linitial(state->truncated))->number;
	pyr_statement_text(state->truncate_owner, state->truncate.data);
	state->number_at_work = number_at_work;
	state->ntruncated = 0;
	pfree(state->truncate.data);
}

static void
gather_truncate(ApplyState *state, PyrTarget *target, PyrTable *table)
{
	MemoryContext oldcontext;
	Truncated  *truncated;

	if (state->truncate_owner != target->owner)
		flush_truncates(state);
	state->truncate_owner = target->owner;

	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	truncated = palloc(sizeof(Truncated));
	truncated->table = table;
	truncated->number = state->number;
	if (state->ntruncated++ == 0)
	{
		state->truncated = NIL;
		initStringInfo(&state->truncate);
		appendStringInfoString(&state->truncate, "TRUNCATE ");
	}
	else
		appendStringInfoString(&state->truncate, ", ");
	state->truncated = lappend(state->truncated, truncated);
	if (target->relkind == RELKIND_RELATION)
		appendStringInfoString(&state->truncate, "ONLY ");
	appendStringInfoString(&state->truncate,
						   quote_qualified_identifier(target->schema, target->table));
	MemoryContextSwitchTo(oldcontext);
}

/* a PyrAttempt's argument */
typedef struct ByItself
{
	const PyrRowChange *change;
	int			encoding;
	uint64		touched;
} ByItself;

/* a PyrAttempt */
static bool
attempt_change(void *arg)
{
	ByItself   *by_itself = arg;
	const PyrRowChange *change = by_itself->change;
	PyrStatement *statement = pyr_statement_get(change->target, change->verb,
												change->form, change->old_form,
												change->verb == PYR_INSERT
												? PYR_EXPECT : PYR_FORCE);

	by_itself->touched = pyr_statement_change(statement, change,
											  by_itself->encoding);
	return true;
}

/*
 * Makes the change of a table that is being made equal.  If an old row is in its
 * way, of which the master's content has not come yet, that row gives way: it is
 * no conflict.  False: the table is not such a one, or the row to be changed is not
 * there.
 */
static bool
is_made_among_stale_rows(ApplyState *state, PyrBinding *binding,
						 const PyrRowChange *change)
{
	ByItself	by_itself = {change, state->encoding, 0};
	PyrTable   *table = pyr_tables_of_shape(state->change->shape);
	ErrorData  *error;

	/* what stale rows of other servers are unique in is not known */
	if (!pyr_table_has_stale_rows(table) || binding->target->is_foreign)
		return false;
	if (!pyr_local_try(attempt_change, &by_itself, &error))
	{
		if (!pyr_is_collision(error->sqlerrcode) ||
			!pyr_mend_make_room(table, binding, state->change, state->encoding))
			ReThrowError(error);
		(void) attempt_change(&by_itself);
	}
	return change->verb == PYR_INSERT || by_itself.touched == 1;
}

/*
 * Makes the change, and if it shows that a row is lost, has its table copied.
 */
static void
make_or_copy(ApplyState *state, const PyrRowChange *change,
			 const PyrTransaction *transaction)
{
	PyrBinding *any;

	if (pyr_conflict_change(&state->conflicts, change, transaction))
		return;
	any = linitial(change->target->bindings);
	pyr_copy_lost_row(pyr_tables_of_shape(any->shape));
}

/*
 * Applies the change by itself.
 */
static void
apply_in_order(ApplyState *state, PyrBinding *binding)
{
	PyrRowChange change = {
		.target = binding->target,
		.verb = state->change->shape->verb,
		.form = binding->merge.form,
		.old_form = binding->merge.old_form,
		.key = state->change->values,
		.values = state->change->values,
		.from = binding->merge.from,
		.old = state->change->values,
		.old_from = binding->merge.old_from
	};

	flush_truncates(state);
	if (binding->is_empty || is_made_among_stale_rows(state, binding, &change))
		return;
	make_or_copy(state, &change, &state->transaction);
}

/*
 * The transaction that a change, which was merged, belongs to.
 */
static const PyrTransaction *
transaction_of(ApplyState *state, uint64 order)
{
	int			low = 0;
	int			high = state->nmerged - 1;

	while (low < high)
	{
		int			middle = (low + high + 1) / 2;

		if (state->merged[middle].order <= order)
			low = middle;
		else
			high = middle - 1;
	}
	return &state->merged[low].transaction;
}

/* a PyrMakeChange */
static void
make_change(void *arg, PyrTarget *target, PyrVerb verb, PyrMergeRow *row)
{
	ApplyState *state = arg;
	PyrRowChange change = {
		.target = target,
		.verb = verb,
		.form = row->form,
		.old_form = row->old_form,
		.key = row->origin,
		.values = row->values,
		.old = row->old
	};

	make_or_copy(state, &change, transaction_of(state, row->order));
}

/*
 * Keeps in mind which transaction the changes that come belong to.
 */
static void
note_transaction(ApplyState *state)
{
	if (state->nmerged == state->maxmerged)
	{
		size_t		bytes;

		state->maxmerged = Max(state->maxmerged * 2, 256);
		bytes = state->maxmerged * sizeof(MergedTransaction);
		state->merged = state->merged == NULL
			? MemoryContextAllocHuge(TopTransactionContext, bytes)
			: repalloc_huge(state->merged, bytes);
	}
	state->merged[state->nmerged++] = (MergedTransaction) {
		pyr_merge_order(state->merge) + 1, state->transaction
	};
}

/*
 * Carries out what has been merged so far.  False: it cannot be.
 */
static bool
apply_merged(ApplyState *state)
{
	if (pyr_merge_tables(state->merge) == NIL)
		return true;
	flush_truncates(state);
	if (!pyr_sets_run(&state->sets, state->merge))
		return false;
	pyr_merge_clear(state->merge);
	state->is_forwarding = false;

	/* the current one may go on */
	state->merged[0] = state->merged[state->nmerged - 1];
	state->nmerged = 1;
	return true;
}

/*
 * Whether the change is so large that it should not be copied to be merged.
 */
static bool
is_huge(PyrChange *change)
{
	int			nvalues = change->shape->nkey + change->shape->nset +
		change->shape->nold;
	size_t		bytes = 0;

	for (int i = 0; i < nvalues; i++)
		bytes += Max(change->values[i].len, 0);
	return bytes > merge_limit() / 4;
}

/*
 * Takes the change into the sets.  False: they have come to an end.
 */
static bool
merge_change(ApplyState *state, PyrBinding *binding)
{
	PyrTarget  *target = binding->target;
	bool		keeps_order;

	if (target->route == PYR_ROUTE_AT_ONCE || is_huge(state->change))
	{
		if (!apply_merged(state))
			return false;
		apply_in_order(state, binding);
		return true;
	}
	if (binding->is_empty)
		return true;

	/* rows may be there under keys that they had in between */
	if (pyr_foreign_may_be_made(target) && binding->merge.new_key != NULL)
		return false;

	keeps_order = pyr_target_keeps_order(target, window_number) ||
		(state->change->shape->has_shared_key && !target->is_whole);
	if (!target->merge->is_pending
		? pyr_target_has_rival(target)
		: keeps_order && !target->merge->keeps_order)
	{
		if (!apply_merged(state))
			return false;
	}
	if (!pyr_merge_add(state->merge, &binding->merge, state->change->values,
					   keeps_order))
	{
		state->sets.target = target;
		return false;
	}
	state->is_forwarding = state->is_forwarding || target->is_forwarded;
	return pyr_merge_bytes(state->merge) < merge_limit() ||
		apply_merged(state);
}

/*
 * Whether somebody has asked for the change to be left out; then it is.
 */
static bool
pass_over(ApplyState *state)
{
	if (!pyr_skip_wants(&state->transaction, state->number))
		return false;
	pyr_skip_record(&state->conflicts.history, state->change, state->encoding,
					&state->transaction);
	return true;
}

/*
 * A name that cannot be here is nobody's.
 */
static void
check_names(PyrShape *shape)
{
	if (shape->strange == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
			 errmsg("the name \"%s\" in the master's table \"%s.%s\" has characters that do not exist in the encoding of the slave, %s",
					shape->strange, shape->schema, shape->table,
					GetDatabaseEncodingName()),
			 errhint("For changes to come, rename it on the master, or drop the log trigger of the table there with py_log_drop_tg.")));
}

/*
 * Carries out a statement that the master has passed on, behind everything that came
 * before it.  False: not in sets, or not yet.
 */
static bool
apply_statement(ApplyState *state)
{
	bool		is_done;

	if (state->merge != NULL && !apply_merged(state))
		return false;
	flush_truncates(state);
	state->applied.rows++;
	if (log_statements)
		log_statement(state);
	state->runs_statement = true;
	is_done = pyr_ddl_apply(state->change, state->encoding);
	state->runs_statement = false;
	return is_done;
}

/*
 * Applies the change, or sees to it that it is applied.  False: not in sets.
 */
static bool
apply_change(ApplyState *state)
{
	PyrChange	other;
	PyrShape   *shape;
	PyrBinding *binding;

	if (state->change->shape->verb == PYR_SQL)
		return apply_statement(state);
	check_names(state->change->shape);
	switch (pyr_copy_admit(pyr_tables_of_shape(state->change->shape),
						   state->change, state->encoding, &other))
	{
		case PYR_ADMIT:
			break;
		case PYR_PASS_OVER:
			return true;
		case PYR_AS_INSERT:
		case PYR_AS_DELETE:
			state->change = &other;
			break;
	}
	shape = state->change->shape;
	binding = pyr_target_bind(shape);

	state->applied.rows++;
	if (log_statements)
		log_statement(state);
	if (shape->verb == PYR_TRUNCATE)
	{
		if (state->merge != NULL && !apply_merged(state))
			return false;
		gather_truncate(state, binding->target, pyr_tables_of_shape(shape));
		return true;
	}
	if (state->merge != NULL)
		return merge_change(state, binding);
	apply_in_order(state, binding);
	return true;
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

/*
 * The changes that come now were first made on the master.
 */
static void
begin_origins(ApplyState *state)
{
	state->origin = state->applied_origin = NULL;
	state->is_unwanted = state->is_forwarding = false;
	pyr_node_apply(NULL);
}

/*
 * The changes that come now were first made there.  False: what came before
 * cannot be applied in sets.
 */
static bool
enter_origin(ApplyState *state, const char *origin)
{
	state->origin = origin;
	state->is_unwanted = origin != NULL &&
		(origin_filter == PYR_ORIGIN_NONE ||
		 strcmp(origin, pyr_node_here()) == 0);
	if (state->is_unwanted || origin == state->applied_origin)
		return true;

	flush_truncates(state);
	if (state->is_forwarding && !apply_merged(state))
		return false;
	state->applied_origin = origin;
	pyr_node_apply(origin);
	return true;
}

/*
 * Applies the change, if it is wanted.  False: not in sets.
 */
static bool
take_change(ApplyState *state)
{
	const char *origin = state->change->shape->origin;

	if (origin != state->origin && !enter_origin(state, origin))
		return false;
	return state->is_unwanted || apply_change(state);
}

static bool
apply_transaction(ApplyState *state)
{
	PyrChange	change;
	bool		is_done = true;
	MemoryContext oldcontext = MemoryContextSwitchTo(state->change_context);
	int			since_report = 0;

	state->transaction = (PyrTransaction) {
		state->entry.commitno, state->entry.xid, state->entry.at
	};
	state->last_at = Max(state->last_at, state->entry.at);
	state->part = 0;
	state->change = NULL;
	state->number = 0;
	state->is_taken = false;
	if (state->merge != NULL)
		note_transaction(state);

	pyr_decoder_begin(get_decoder(state->encoding), next_part, state);
	while (is_done && pyr_decoder_next(decoder, &change))
	{
		CHECK_FOR_INTERRUPTS();
		state->change = &change;
		state->number_at_work = ++state->number;
		is_done = pass_over(state) || take_change(state);
		state->change = NULL;
		state->number_at_work = 0;
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

	/* pieces end with transactions, unless one is too large by itself */
	if (is_done && state->merge != NULL &&
		pyr_merge_bytes(state->merge) > merge_limit() / 8 * 7)
		is_done = apply_merged(state);
	MemoryContextSwitchTo(oldcontext);
	MemoryContextReset(state->change_context);
	return is_done;
}

/*
 * Applies all transactions of the window.  False: not in sets.
 */
static bool
apply_transactions(ApplyState *state)
{
	advance(state);
	while (state->has_entry)
	{
		if (!apply_transaction(state))
			return false;
	}
	return state->merge == NULL || apply_merged(state);
}

/*
 * The sets came to an end; "why" is the error, if there was one.
 */
static void
forget_sets(ApplyState *state, ErrorData *why)
{
	PyrTarget  *target = state->sets.target;

	ereport(DEBUG1,
			(errmsg("pyreplica %s: applying %s in strict order",
					state->replica,
					target ? psprintf("table \"%s.%s\"", target->schema, target->table) : "the window"),
			 errdetail_internal("%s", why ? why->message : "Rows are not where they should be."),
			 errhidecontext(true)));
	if (target != NULL)
		pyr_target_distrust(target);
	state->sets.target = NULL;
	pyr_merge_clear(state->merge);
	state->merge = NULL;
	state->change = NULL;
	state->ntruncated = 0;
	state->number_at_work = 0;
	state->runs_statement = false;
	state->nmerged = 0;
	pyr_tables_roll_back();
	pyr_history_begin(&state->conflicts.history, state->replica);
	begin_origins(state);
	state->applied = (PyrApplied) {.fell_back = true};
	MemoryContextReset(state->change_context);
	pyr_window_rewind(state->window);
}

/* a PyrAttempt */
static bool
attempt_transactions(void *arg)
{
	return apply_transactions(arg);
}

/*
 * Applies the window in sets.  False: that cannot be done, and nothing of it
 * has been.
 */
static bool
apply_in_sets(ApplyState *state)
{
	ErrorData  *error;

	state->merge = get_merge();
	if (pyr_local_try(attempt_transactions, state, &error))
		return true;
	forget_sets(state, error);
	return false;
}

/*
 * Writes down the transaction that has failed, for whoever is to decide what to
 * do about it.
 */
static void
keep_failure(ApplyState *state, int64 failed, ErrorData *error)
{
	PyrTransaction transaction = state->transaction;
	PyrChange	change;
	int64		number = 0;
	MemoryContext oldcontext;

	pyr_local_begin_transaction();
	state->change_context = AllocSetContextCreate(TopTransactionContext,
												  "pyreplica change",
												  ALLOCSET_DEFAULT_SIZES);
	if (pyr_failure_keep(&transaction, failed, error))
	{
		pyr_window_rewind(state->window);
		do
			advance(state);
		while (state->has_entry &&
			   (state->entry.commitno != transaction.commitno ||
				state->entry.xid != transaction.xid));
		state->part = 0;
		oldcontext = MemoryContextSwitchTo(state->change_context);
		pyr_decoder_begin(get_decoder(state->encoding), next_part, state);
		while (pyr_decoder_next(decoder, &change))
		{
			CHECK_FOR_INTERRUPTS();
			if (++number <= PYR_FAILURE_CHANGES_MAX || number == failed)
				pyr_failure_keep_change(number, &change, state->encoding);
			MemoryContextReset(state->change_context);
		}
		MemoryContextSwitchTo(oldcontext);
		pyr_failure_keep_count(number);
	}
	pyr_local_commit_transaction();
}

/*
 * Whether an error came from what others did at the same time.
 */
static bool
is_of_the_moment(int sqlerrcode)
{
	return ERRCODE_TO_CATEGORY(sqlerrcode) ==
		ERRCODE_TO_CATEGORY(ERRCODE_TRANSACTION_ROLLBACK);
}

/*
 * Applying has failed: rolls back, and if a change is to blame, keeps it in
 * mind.  The error goes on from here.
 */
static void
fail(ApplyState *state, MemoryContext context)
{
	int64		number = state->number_at_work;
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (state->merge != NULL || number == 0 ||
		pyr_is_of_the_system(error->sqlerrcode) ||
		is_of_the_moment(error->sqlerrcode))
		PG_RE_THROW();
	if (state->runs_statement && error->hint == NULL)
		error->hint = "Remove the cause on the slave: the statement is tried again. Or do here by hand what it is to do, and pass over it.";
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(context);

	PG_TRY();
	{
		keep_failure(state, number, error);
	}
	PG_CATCH();
	{
		/* the error itself is more important */
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	ReThrowError(error);
}

/*
 * Makes the window's changes, in the current transaction.  False: not yet, see ddl.c.
 */
static bool
apply_changes(ApplyState *state)
{
	if (pyr_mapping_refresh())
		pyr_target_invalidate_all();
	pyr_local_constraints_immediate();
	begin_origins(state);
	if (apply_mode == PYR_APPLY_STRICT || log_statements ||
		pyr_skip_is_pending() ||
		(pyr_window_bytes(state->window) < SMALL_WINDOW_BYTES &&
		 !pyr_skip_has_failure()))
		return apply_transactions(state);
	if (apply_in_sets(state))
		return true;
	return !pyr_ddl_is_waiting() && apply_transactions(state);
}

/*
 * Begins a transaction, and in it makes the window's changes.  False: the transaction
 * is to be rolled back, and something carried out ahead.
 */
static bool
begin_window(ApplyState *state)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback callback;
	volatile bool is_done = false;

	pyr_history_begin(&state->conflicts.history, state->replica);
	pyr_local_begin_transaction();
	pyr_tables_roll_back();		/* if this is not the first time */
	state->change_context = AllocSetContextCreate(TopTransactionContext,
												  "pyreplica change",
												  ALLOCSET_DEFAULT_SIZES);
	callback.callback = error_context;
	callback.arg = state;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	PG_TRY();
	{
		is_done = apply_changes(state);
	}
	PG_CATCH();
	{
		error_context_stack = callback.previous;
		fail(state, context);
	}
	PG_END_TRY();
	error_context_stack = callback.previous;
	return is_done;
}

/*
 * Carries out what has to be ahead of the window, and begins that once more.  In the
 * context, which is none of the transaction's.
 */
static void
begin_again(ApplyState *state, MemoryContext context)
{
	AbortCurrentTransaction();
	MemoryContextSwitchTo(context);
	state->applied = (PyrApplied) {0};
	state->merge = NULL;
	state->merged = NULL;
	state->nmerged = state->maxmerged = 0;
	state->ntruncated = 0;
	state->change = NULL;
	state->number_at_work = 0;
	pyr_window_rewind(state->window);
	pyr_node_apply(NULL);
	pyr_ddl_run_ahead();
}

/*
 * Applies the window and moves the position to its end, all of it or nothing.
 */
PyrApplied
pyr_apply_window(const char *replica, PyrWindow *window, int encoding,
				 PyrPosition *position)
{
	ApplyState	state = {0};
	PyrSupplement *supplement = pyr_window_supplement(window);
	MemoryContext context = CurrentMemoryContext;

	state.replica = replica;
	state.encoding = encoding;
	state.window = window;
	state.reported_at = GetCurrentTimestamp();
	state.sets.encoding = encoding;
	state.sets.make = make_change;
	state.sets.between = pyr_window_fetch_pump;
	state.sets.arg = &state;
	state.conflicts.master = position->system_identifier;
	state.conflicts.encoding = encoding;
	window_number++;
	pyr_tables_begin_window();
	pyr_ddl_begin_window();

	pyr_target_sweep();
	limit_shapes();
	while (!begin_window(&state))
		begin_again(&state, context);

	pyr_node_apply(NULL);
	pyr_history_finish(&state.conflicts.history);
	pyr_skip_finish(pyr_window_snapshot(window));
	state.applied.conflicts = state.conflicts.history.count;
	if (supplement != NULL)
		supplement->apply(supplement, pyr_window_fetch_pump);

	pyr_position_advance(position, pyr_window_snapshot(window),
						 pyr_window_wal(window));

	/*
	 * A position that is stored must be one that the master will remember, even
	 * if it is restored from a backup.  If there was no change, the one stored
	 * before is as good.
	 */
	if (!pyr_window_is_empty(window) || position->stored == NULL)
		pyr_position_store(replica, position);
	pyr_author_stamp(state.last_at);
	pyr_local_commit_transaction();
	if (!pyr_window_is_empty(window))
		pyr_foreign_window_applied();
	if (supplement != NULL && supplement->settle != NULL)
		supplement->settle(supplement);

	return state.applied;
}
