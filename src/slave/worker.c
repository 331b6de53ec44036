/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  One replica's worker: its loop, its waiting, its retry delay.
 *
 * The loop, each turn: serve interrupts, reload, be connected, look at the
 * master's log and apply what there is, and if there was nothing, rest.
 *
 * When there is more than one window to fetch, the next one comes while one is
 * applied, so that master and slave both work.  It begins where that one ends;
 * the position moves only with what is applied.
 *
 * Resting comes in two depths.  At first the worker lets its looks linger on
 * the master for some milliseconds, without any writer knowing; a busy master
 * so notifies nobody.  If there is still nothing, it announces that it sleeps,
 * looks once more, and waits for a notification; see master/log.c for why none
 * can be missed.
 *
 * A master that is away is ordinary: the worker stays and tries again, later
 * each time up to pyreplica.retry_interval_max, and says so once.  Anything
 * else that goes wrong is an error, which ends the worker; the launcher
 * starts another one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/replicas.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "pyreplica.h"
#include "slave/apply.h"
#include "slave/author.h"
#include "slave/copy.h"
#include "slave/copyworker.h"
#include "slave/fetch.h"
#include "slave/foreign.h"
#include "slave/history.h"
#include "slave/local.h"
#include "slave/origin.h"
#include "slave/policy.h"
#include "slave/position.h"
#include "slave/schema.h"
#include "slave/sequences.h"
#include "slave/skip.h"
#include "slave/status.h"
#include "slave/tables.h"
#include "slave/target.h"
#include "slave/verify.h"
#include "slave/worker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define RETRY_FIRST_MS		500

/* the master hears of our position this often while there is work */
#define CONFIRM_INTERVAL_MS	1000

/*
 * Looks that linger on the master before the worker goes to sleep: this many of
 * them, each so much longer than the one before.
 */
#define LINGERS				3
#define LINGER_MS			10

/*
 * Under load the worker lets some transactions gather, because a look costs
 * both sides about as much as several transactions do.  Where the master has
 * several slaves, each of them counts.
 */
#define GATHER_RATE			1000	/* transactions per second, times slaves */
#define GATHER_MS			5		/* at that rate, in proportion above */
#define GATHER_MS_MAX		20

/* a prepared transaction's commit wakes nobody */
#define PREPARED_POLL_MS	1000

/* clocks may differ so much */
#define CLOCK_DIFFERENCE_US	100000

/* the name of the replica that this process is the worker of, and in the settings */
static char *replica;
static char *key;
static PyrPosition position;
static PyrOrigin *origin = NULL;
static PyrWindow *window;		/* the one looked at last */
static PyrWindow *next_window;	/* the one being fetched, if any */
static MemoryContext loop_context;

/* what was in force when we began or connected */
static char *database_in_use;

static int	empty_looks = 0;	/* since something was found */
static int	found_looks = 0;	/* in a row */
static bool is_confirm_due = false;
static TimestampTz confirmed_at = 0;
static XLogRecPtr applied_up_to = InvalidXLogRecPtr;	/* local WAL */
static uint64 asked_request;		/* what the fetch under way serves */
static TimestampTz asked_at;	/* and when it was sent */
static uint64 tables_requested = UINT64_MAX;	/* as often it was looked at */
static bool is_in_step = false; /* the last window reached to the present */
static TimestampTz looked_at = 0;
static double recent_transactions = 0;
static double recent_seconds = 0;
static double rate = 0;			/* transactions per second, of late */

static TimestampTz away_since = 0;
static int	retry_ms = RETRY_FIRST_MS;
static char *away_reason = NULL;

static void
log_line(int level, const char *line)
{
	ereport(level,
			(errmsg("pyreplica %s: %s", replica, line),
			 errhidestmt(true), errhidecontext(true)));
}

static void
show(PyrState state, BackendState activity, const char *what)
{
	pyr_status_state(state);
	pgstat_report_activity(activity, what);
}

/*
 * Takes new settings in.  Those that this process cannot change end it; the
 * launcher then does what they ask for.
 */
static void
reload(void)
{
	char	   *error;
	char	   *dbname;

	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	retry_ms = RETRY_FIRST_MS;
	pyr_tables_retry();
	pyr_schema_retry();
	pyr_target_invalidate_all();

	if (!pyr_replicas_use(key) || !replica_enabled ||
		master_conninfo[0] == '\0')
		proc_exit(0);

	dbname = replica_database[0] != '\0' ? pstrdup(replica_database)
		: pyr_remote()->conninfo_value(master_conninfo, "dbname", &error);
	if (dbname == NULL || strcmp(dbname, database_in_use) != 0)
		proc_exit(0);
	pyr_status_replica(replica, database_in_use,
					   pyr_remote()->conninfo_display(master_conninfo));
}

/* the connection string that a connection is being made with */
static const char *conninfo_in_use = NULL;

/*
 * A PyrRemoteGiveUp: whether a connection (being made) has become useless.
 */
static bool
should_give_up(void)
{
	if (ConfigReloadPending)
		reload();
	return conninfo_in_use == NULL ||
		strcmp(conninfo_in_use, master_conninfo) != 0;
}

static void
wait_for_latch(long timeout_ms)
{
	(void) WaitLatch(MyLatch,
					 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 timeout_ms, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
}

/*
 * The master cannot be reached: says so if that is news.
 */
static void
note_away(const char *reason)
{
	pyr_status_error(PYR_STATE_AWAY, reason);
	if (away_since == 0)
		away_since = GetCurrentTimestamp();
	if (away_reason != NULL && strcmp(away_reason, reason) == 0)
		return;
	if (away_reason != NULL)
		pfree(away_reason);
	away_reason = MemoryContextStrdup(TopMemoryContext, reason);
	log_line(LOG, psprintf("the master is away: %s", reason));
}

static void
note_back(void)
{
	if (away_since != 0)
		log_line(LOG, psprintf("the master is back after %ld s",
							   TimestampDifferenceMilliseconds(away_since, GetCurrentTimestamp()) / 1000));
	away_since = 0;
	if (away_reason != NULL)
		pfree(away_reason);
	away_reason = NULL;
}

static void
close_origin(void)
{
	if (origin == NULL)
		return;
	pyr_schema_give_up();
	pyr_window_clear(next_window);
	pyr_origin_close(origin);
	origin = NULL;
}

/*
 * The connection was lost while in use.
 */
static void
lose_origin(void)
{
	char	   *reason = pyr_remote()->error(origin->remote);

	bool		is_useless = away_since != 0;

	close_origin();
	if (conninfo_in_use == NULL ||
		strcmp(conninfo_in_use, master_conninfo) != 0)
		return;
	note_away(reason);

	/* it could be made, but did not last for one look */
	if (is_useless)
	{
		wait_for_latch(retry_ms);
		retry_ms = Min(retry_ms * 2, retry_interval_max_ms);
	}
}

/*
 * In a new connection, before the first window.
 */
static bool
look_at_triggers(void)
{
	List	   *rows;

	if (!pyr_origin_rows(origin, pyr_tables_triggers_sql(origin->schema), &rows))
		return false;
	pyr_tables_take_triggers(rows);
	return true;
}

/*
 * Likewise, if something has failed: what it was about may be gone on the master as
 * well by now, see copy.c.
 */
static bool
look_at_failure(void)
{
	char	   *schema;
	char	   *table;
	bool		has_failed;
	List	   *rows;

	pyr_local_begin_transaction();
	has_failed = pyr_failure_table(&schema, &table);
	if (has_failed)
	{
		schema = MemoryContextStrdup(loop_context, schema);
		table = MemoryContextStrdup(loop_context, table);
	}
	pyr_local_commit_transaction();
	if (!has_failed)
		return true;
	if (!pyr_origin_rows(origin, pyr_tables_columns_sql(schema, table), &rows))
		return false;
	pyr_tables_take_columns(schema, table, rows);
	return true;
}

/*
 * What was changed while we were away is not in the log any more.  Everything
 * is made equal from the new position on, as the tables are now.
 */
static void
begin_anew(void)
{
	log_line(LOG, "the master did not keep the log for so long (pyreplica.max_backlog there); making all tables equal");
	pyr_local_begin_transaction();
	pyr_tables_begin_anew();
	pyr_position_store(replica, &position);
	pyr_local_commit_transaction();
	applied_up_to = XactLastCommitEnd;
	is_confirm_due = true;
}

/*
 * Where the last update wins, clocks that differ take the wrong one.
 */
static bool
look_at_clock(void)
{
	int64		ahead_us;
	int64		doubt_us;

	if (!pyr_policy_uses_time())
		return true;
	if (!pyr_origin_clock(origin, &ahead_us, &doubt_us))
		return false;
	if (Abs(ahead_us) - doubt_us > CLOCK_DIFFERENCE_US)
		ereport(LOG,
				(errmsg("pyreplica %s: the clocks of master and slave differ: the master's is %.3f s %s",
						replica, Abs(ahead_us) / 1000000.0,
						ahead_us > 0 ? "ahead" : "behind"),
				 errhint("Bring them into step, as conflicts are to be won by the last update."),
				 errhidestmt(true), errhidecontext(true)));
	return true;
}

/*
 * Connects, or waits until it is time to try again.
 */
static void
connect_origin(void)
{
	static bool has_said_opening = false;
	char	   *error;

	if (!has_said_opening)
		log_line(LOG, "Opening origin (master) connection");
	has_said_opening = true;

	show(PYR_STATE_CONNECTING, STATE_RUNNING, "connecting to the master");
	if (conninfo_in_use != NULL)
		pfree(unconstify(char *, conninfo_in_use));
	conninfo_in_use = MemoryContextStrdup(TopMemoryContext, master_conninfo);
	origin = pyr_origin_open(conninfo_in_use, replica, &position,
							 should_give_up, &error);
	if (origin != NULL && origin->begins_anew)
		begin_anew();
	if (origin != NULL &&
		(!look_at_triggers() || !look_at_failure() || !look_at_clock()))
	{
		lose_origin();
		return;
	}
	if (origin != NULL)
	{
		log_line(LOG, psprintf("Encoding for this connections are %s %s",
							   pg_encoding_to_char(origin->encoding),
							   GetDatabaseEncodingName()));
		pyr_window_prepare(origin);
		pyr_sequences_note_work();
		empty_looks = found_looks = 0;
		is_in_step = false;
		return;
	}
	if (error == NULL)
		return;					/* new settings: at once */

	note_away(error);
	show(PYR_STATE_AWAY, STATE_IDLE, "the master is away");
	wait_for_latch(retry_ms);
	retry_ms = Min(retry_ms * 2, retry_interval_max_ms);
}

/*
 * Keeps an eye on how fast transactions come: over the last twenty looks or so.
 * (The mean of single looks' rates would be far too high: some of them come
 * right after one another and find something.)
 */
static void
update_rate(TimestampTz now, int64 transactions)
{
	double		seconds = (now - looked_at) / 1000000.0;

	if (looked_at == 0 || seconds > 1)
		recent_transactions = recent_seconds = 0;
	else
	{
		recent_transactions = recent_transactions * 0.95 + transactions;
		recent_seconds = recent_seconds * 0.95 + seconds;
	}
	rate = recent_transactions / Max(recent_seconds, 0.01);
	looked_at = now;
}

/*
 * How long until the next confirmation is due, in ms; 0: now.
 */
static long
confirm_due_ms(void)
{
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   TimestampTzPlusMilliseconds(confirmed_at,
																	   CONFIRM_INTERVAL_MS));
}

static bool
is_confirm_time(void)
{
	return is_confirm_due && confirm_due_ms() <= 0;
}

/*
 * Asks the master for the window that begins there.
 */
static void
ask_for_window(const char *from, int linger_ms)
{
	PyrSupplement *supplement = NULL;

	/* one with a supplement reaches to the present, however far that is */
	if (is_in_step)
	{
		supplement = pyr_copy_ask(origin->schema);
		if (supplement == NULL && pyr_verify_is_due())
			supplement = pyr_verify_ask(origin->schema, origin->encoding);
		if (supplement == NULL && pyr_sequences_is_due())
			supplement = pyr_sequences_ask(origin->schema);
	}
	asked_request = pyr_status_wait_requested();
	asked_at = GetCurrentTimestamp();
	pyr_window_fetch_start(next_window, origin, from, linger_ms, supplement);
}

/*
 * How long a look may take if there is nothing: not long for somebody who waits
 * for it, and not at all if we would be notified anyway.
 */
static int
linger_ms(void)
{
	if (origin->is_announced || pyr_status_wait_pending())
		return 0;
	return LINGER_MS * Min(empty_looks + 1, LINGERS);
}

/*
 * Waits for the window.  If the master refuses what was asked for with it, the
 * window is fetched without.
 */
static bool
finish_fetch(PyrWindow *fetched)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool alive = false;
	ErrorData  *volatile error = NULL;

	if (pyr_window_supplement(fetched) == NULL)
		return pyr_window_fetch_finish(fetched);

	PG_TRY();
	{
		alive = pyr_window_fetch_finish(fetched);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	if (error == NULL)
		return alive;
	pyr_window_supplement(fetched)->refused(pyr_window_supplement(fetched),
											error);
	pyr_window_clear(fetched);
	pyr_window_fetch_start(fetched, origin, position.snapshot, 0, NULL);
	return pyr_window_fetch_finish(fetched);
}

/*
 * Makes the next window the one to look at, waiting for it.  False: the
 * connection is gone.
 */
static bool
take_window(void)
{
	PyrWindow  *fetched = next_window;

	if (!pyr_window_fetch_is_under_way())
	{
		show(PYR_STATE_FETCHING, STATE_RUNNING, "fetching");
		ask_for_window(position.snapshot, linger_ms());
	}
	if (!finish_fetch(fetched))
		return false;
	note_back();
	retry_ms = RETRY_FIRST_MS;
	next_window = window;
	window = fetched;
	return true;
}

/*
 * Applies the window.  Meanwhile the next one is on its way, if this one does
 * not reach to the present; but not when we have to talk to the master about
 * something else.
 */
static PyrApplied
apply_window(void)
{
	PyrApplied	applied;
	char	   *what;
	PyrSupplement *supplement = pyr_window_supplement(window);
	bool		is_ahead = !pyr_window_is_complete(window);

	if (supplement != NULL)
		is_ahead = supplement->look_ahead != NULL &&
			supplement->look_ahead(supplement);
	if (is_ahead && !is_confirm_time())
		ask_for_window(pyr_window_snapshot(window), 0);

	pyr_status_state(supplement ? PYR_STATE_COPYING : PYR_STATE_APPLYING);
	what = pyr_copy_progress();
	pgstat_report_activity(STATE_RUNNING, what != NULL ? what :
						   psprintf("applying: " INT64_FORMAT " transactions",
									pyr_window_transactions(window)));
	applied = pyr_apply_window(replica, window, origin->encoding, &position);
	applied_up_to = XactLastCommitEnd;
	if (!pyr_window_is_empty(window))
	{
		is_confirm_due = true;
		pyr_sequences_note_work();
	}
	return applied;
}

/*
 * Looks at the master's log and applies what there is to apply.  False: the
 * connection is gone.
 */
static bool
look(void)
{
	uint64		request;
	TimestampTz at;
	PyrApplied	applied = {0};

	if (!take_window())
		return false;
	request = asked_request;
	at = asked_at;

	update_rate(at, pyr_window_transactions(window));
	is_in_step = pyr_window_is_complete(window);
	if (pyr_window_is_empty(window) && pyr_window_supplement(window) == NULL)
	{
		pyr_position_advance(&position, pyr_window_snapshot(window),
							 pyr_window_wal(window));
		if (pyr_window_is_complete(window))
			empty_looks++;
		found_looks = 0;
	}
	else
	{
		applied = apply_window();
		empty_looks = 0;
		found_looks++;
		pyr_tables_refresh_list();
	}
	pyr_status_window(position.snapshot, applied.transactions, applied.rows,
					  applied.conflicts, applied.fell_back);
	if (pyr_window_is_complete(window))
	{
		pyr_status_in_step(at);
		pyr_foreign_in_step();

		/* who waits for what was committed there waits for copies as well */
		if (!pyr_copy_is_due() && !pyr_tables_any_missing())
			pyr_status_wait_served(request);
	}
	pyr_window_clear(window);
	return true;
}

/*
 * Tells the master how far we are, once that is safe on our disk.
 */
static bool
confirm(void)
{
	if (!XLogRecPtrIsInvalid(applied_up_to))
		XLogFlush(applied_up_to);
	confirmed_at = GetCurrentTimestamp();
	is_confirm_due = false;
	if (!pyr_origin_confirm(origin, replica, &position))
		return false;
	pyr_position_store_confirmed(replica, &position);
	return pyr_origin_rotate(origin);
}

/*
 * Waits for a notification, the latch or the time; what ended it.
 */
static int
wait_for_origin(long timeout_ms)
{
	int			events = pyr_remote()->wait(origin->remote, timeout_ms);

	if (events & PYR_REMOTE_TABLES)
		pyr_tables_want_list();
	return events;
}

/*
 * Announced, looked, and nothing there: sleeps.
 */
static bool
sleep_announced(void)
{
	bool		has_prepared = pyr_window_has_prepared(window);
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													keepalive_ms);

	/* statistics of tables not yet reported would else wait as long as we do */
	pgstat_report_stat(true);
	log_line(DEBUG1, "Waiting for 'NOTIFY'");
	for (;;)
	{
		long		left_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		long		copy_due_ms = pyr_tables_due_ms();
		long		verify_due_ms = pyr_verify_due_ms();
		long		schema_due_ms = pyr_schema_due_ms();
		long		sequences_due_ms = pyr_sequences_due_ms();
		int			events;

		if (pyr_tables_any_missing())
			show(PYR_STATE_COPYING, STATE_IDLE, "waiting for pg_dump");
		else
			show(PYR_STATE_WAITING, STATE_IDLE, "waiting for NOTIFY");
		if (is_confirm_time())
		{
			if (!confirm())
				return false;
			continue;
		}
		if (left_ms <= 0)
		{
			log_line(DEBUG1, "Timeout ('keepalive')!");
			pyr_tables_want_list();
			return true;
		}
		if (pyr_status_wait_pending() && !pyr_tables_any_missing())
			return true;
		if (pyr_copy_is_due() || pyr_verify_is_due() || pyr_schema_is_due() ||
			sequences_due_ms == 0)
			return true;
		if (is_confirm_due)
			left_ms = Min(left_ms, Max(confirm_due_ms(), 1));
		if (copy_due_ms >= 0)
			left_ms = Min(left_ms, Max(copy_due_ms, 1));
		if (verify_due_ms >= 0)
			left_ms = Min(left_ms, Max(verify_due_ms, 1));
		if (schema_due_ms >= 0)
			left_ms = Min(left_ms, Max(schema_due_ms, 1));
		if (sequences_due_ms >= 0)
			left_ms = Min(left_ms, sequences_due_ms);
		if (has_prepared)
			left_ms = Min(left_ms, PREPARED_POLL_MS);

		events = wait_for_origin(left_ms);
		if (events & PYR_REMOTE_AWAY)
			return false;
		if (events & (PYR_REMOTE_NOTIFIED | PYR_REMOTE_LATCH))
			return true;
		if (has_prepared && !is_confirm_due)
			return true;
	}
}

/*
 * There was nothing at the last look: rest, ever deeper.  False: the
 * connection is gone.
 */
static bool
rest(void)
{
	bool		may_sleep;

	if (origin->is_announced)
		return sleep_announced();

	if (empty_looks < LINGERS)
		return true;

	/*
	 * One more look comes first in any case.  If we may not sleep, because
	 * somebody is just committing who would not notify us, it lingers.
	 */
	return pyr_origin_announce(origin, &may_sleep);
}

/*
 * There was something at the last look: confirm now and then, and let more
 * gather if it comes fast.
 */
static bool
pace(bool is_behind)
{
	double		looks;

	if (is_confirm_time() && !pyr_window_fetch_is_under_way() && !confirm())
		return false;
	if (is_behind)
		return true;

	/* it goes on: nobody needs to notify us for a while */
	if (found_looks >= 2 && !pyr_origin_awake(origin))
		return false;
	looks = rate * Max(origin->slaves, 1);
	if (looks > GATHER_RATE)
		return (wait_for_origin(Min((long) (looks / GATHER_RATE * GATHER_MS),
									GATHER_MS_MAX)) & PYR_REMOTE_AWAY) == 0;
	return true;
}

/*
 * Who wins conflicts may have changed.
 */
static void
reload_policies(void)
{
	pyr_local_begin_transaction();
	pyr_policy_load();
	pyr_local_commit_transaction();
	pyr_target_invalidate_all();
}

/*
 * One turn of the loop while connected; false: the connection is gone.
 */
static bool
work(void)
{
	bool		is_behind;

	if (tables_requested != pyr_status_tables_requested())
	{
		tables_requested = pyr_status_tables_requested();
		pyr_tables_take_requests();
		reload_policies();
	}
	if (!look())
		return false;
	pyr_history_prune();
	pyr_verify_settle();
	pyr_sequences_settle();
	if (!pyr_window_fetch_is_under_way())
		pyr_schema_work(origin);
	is_behind = !is_in_step || pyr_copy_is_due() || pyr_verify_is_due() ||
		pyr_schema_is_due() || pyr_sequences_is_due() ||
		pyr_window_fetch_is_under_way();
	if (found_looks > 0 || is_behind)
		return pace(is_behind);
	return rest();
}

static void
run(void)
{
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
			reload();
		if (origin != NULL && should_give_up())
			close_origin();

		MemoryContextSwitchTo(loop_context);
		if (origin == NULL)
			connect_origin();
		else if (!work())
			lose_origin();
		MemoryContextSwitchTo(loop_context);
		MemoryContextReset(loop_context);
	}
}

static void
begin(void)
{
	log_line(LOG, "Opening replica (slave) connection");
	pyr_local_begin_session(replica);
	pyr_local_ensure_extension();
	pyr_copyworkers_wait_gone(replica);

	pyr_local_begin_transaction();
	pyr_position_load(replica, &position);
	if (position.stored == NULL)
	{
		pyr_tables_forget_all(replica);
		if (!copy_data)
			pyr_position_load_dump(replica, &position);
	}
	pyr_tables_load(replica);
	pyr_schema_load();
	pyr_policy_load();
	pyr_author_begin(replica, position.began_at);
	pyr_skip_load();
	window = pyr_window_create();
	next_window = pyr_window_create();
	pyr_local_commit_transaction();

	loop_context = AllocSetContextCreate(TopMemoryContext, "pyreplica loop",
										 ALLOCSET_DEFAULT_SIZES);
}

/*
 * The last line of an error's context: the outermost, ours.
 */
static const char *
last_line(const char *context)
{
	const char *newline = strrchr(context, '\n');

	return newline != NULL ? newline + 1 : context;
}

/*
 * The error that ends this worker, on its way to the log and to the view.
 */
static void
report_failure(void)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	error_context_stack = NULL;
	EmitErrorReport();
	MemoryContextSwitchTo(TopMemoryContext);
	error = CopyErrorData();
	FlushErrorState();
	AbortCurrentTransaction();
	pyr_status_error(PYR_STATE_ERROR,
					 psprintf("%s%s%s%s%s%s", error->message,
							  error->detail ? " (" : "",
							  error->detail ? error->detail : "",
							  error->detail ? ")" : "",
							  error->context ? "; " : "",
							  error->context ? last_line(error->context) : ""));
	RESUME_INTERRUPTS();
}

/*
 * Entry point of the worker; see PyrWorkerStart.
 */
void
pyr_worker_main(Datum arg)
{
	PyrWorkerStart start;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	database_in_use = MemoryContextStrdup(TopMemoryContext, start.database);
	key = MemoryContextStrdup(TopMemoryContext, start.key);
	replica = key[0] != '\0' ? key : database_in_use;
	pyr_status_attach(DatumGetInt32(arg));
	if (!pyr_replicas_use(key))
		proc_exit(0);

	/* if that fails, nothing of ours runs any more, and the next one shall wait */
	pyr_status_state(PYR_STATE_ERROR);
	BackgroundWorkerInitializeConnection(database_in_use, NULL, 0);
	pyr_status_state(PYR_STATE_STARTING);

	PG_TRY();
	{
		begin();
		run();
	}
	PG_CATCH();
	{
		report_failure();
		proc_exit(1);
	}
	PG_END_TRY();
}
