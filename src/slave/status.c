/*-------------------------------------------------------------------------
 *
 * status.c
 *	  What a replica shows of itself, in shared memory; the functions behind
 *	  pyreplica_status and pyreplica_wait.
 *
 * The worker (or, while there is none, the launcher) writes; everybody who
 * may reads.  Nothing in here decides anything but pyreplica_wait, which asks
 * the worker for one more look at the master and waits for its answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/compat.h"
#include "common/config.h"
#include "commands/dbcommands.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "pyreplica.h"
#include "slave/status.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(pyreplica_status);
PG_FUNCTION_INFO_V1(pyreplica_wait);
PG_FUNCTION_INFO_V1(pyreplica_wake);
PG_FUNCTION_INFO_V1(pyreplica_verify_run);

#define MASTER_LEN		256
#define POSITION_LEN	256
#define ERROR_LEN		1024

typedef struct ReplicaStatus
{
	LWLock	   *lock;
	char		replica[NAMEDATALEN];	/* empty: no replica */
	char		database[NAMEDATALEN];
	char		master[MASTER_LEN]; /* without secrets */
	pid_t		pid;			/* of the worker, 0: none */
	PGPROC	   *proc;
	PyrState	state;
	char		position[POSITION_LEN];
	TimestampTz in_step_at;		/* when everything of then was here */
	TimestampTz last_window_at;
	int64		windows;
	int64		transactions;
	int64		rows;
	int64		fallbacks;
	int64		conflicts;
	int64		errors;
	char		last_error[ERROR_LEN];
	TimestampTz last_error_at;

	uint64		tables_requested;	/* how often something was asked for */

	/* verifications asked for, of which there is one at a time, and done */
	uint64		verify_requested;
	uint64		verify_served;
	PyrVerifyRequest verify;
	char		verify_error[ERROR_LEN];	/* empty: it went well */

	/* looks at the master asked for, and done */
	uint64		wait_requested;
	uint64		wait_served;
	ConditionVariable served;
} ReplicaStatus;

static ReplicaStatus *status = NULL;

#if PYR_HAVE_SHMEM_REQUEST_HOOK
static shmem_request_hook_type prev_shmem_request_hook = NULL;
#endif
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static void
request_shmem(void)
{
#if PYR_HAVE_SHMEM_REQUEST_HOOK
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
#endif
	RequestAddinShmemSpace(MAXALIGN(sizeof(ReplicaStatus)));
	RequestNamedLWLockTranche(PYR_EXTENSION, 1);
}

static void
startup_shmem(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	status = ShmemInitStruct("pyreplica status", sizeof(ReplicaStatus), &found);
	if (!found)
	{
		memset(status, 0, sizeof(ReplicaStatus));
		status->lock = &(GetNamedLWLockTranche(PYR_EXTENSION))->lock;
		ConditionVariableInit(&status->served);
	}
	LWLockRelease(AddinShmemInitLock);
}

/*
 * Called in the postmaster, from shared_preload_libraries.
 */
void
pyr_status_init(void)
{
#if PYR_HAVE_SHMEM_REQUEST_HOOK
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
#else
	request_shmem();
#endif
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}

static void
detach(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	status->pid = 0;
	status->proc = NULL;
	if (status->state != PYR_STATE_ERROR)
		status->state = PYR_STATE_STOPPED;
	LWLockRelease(status->lock);
}

/*
 * The calling process is the replica's worker from now on.
 */
void
pyr_status_attach(void)
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	status->pid = MyProcPid;
	status->proc = MyProc;
	status->state = PYR_STATE_STARTING;
	status->in_step_at = 0;
	LWLockRelease(status->lock);

	before_shmem_exit(detach, (Datum) 0);
}

void
pyr_status_state(PyrState state)
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	status->state = state;
	LWLockRelease(status->lock);
}

/*
 * Tells which replica it is.  The counters are those of this replica since
 * the server started.
 */
void
pyr_status_replica(const char *replica, const char *database,
				   const char *master)
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	if (strcmp(status->replica, replica) != 0)
	{
		strlcpy(status->replica, replica, sizeof(status->replica));
		status->position[0] = '\0';
		status->in_step_at = status->last_window_at = 0;
		status->windows = status->transactions = status->rows = 0;
		status->fallbacks = status->conflicts = status->errors = 0;
		status->last_error[0] = '\0';
		status->last_error_at = 0;
	}
	strlcpy(status->database, database, sizeof(status->database));
	strlcpy(status->master, master, sizeof(status->master));
	LWLockRelease(status->lock);
}

/*
 * There is no replica any more.
 */
void
pyr_status_forget(void)
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	status->replica[0] = '\0';
	LWLockRelease(status->lock);
}

/*
 * Everything that the master had at that time is here.
 */
void
pyr_status_in_step(TimestampTz at)
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	status->in_step_at = at;
	LWLockRelease(status->lock);
}

void
pyr_status_window(const char *position, int64 transactions, int64 rows,
				  int64 conflicts, bool fell_back)
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	strlcpy(status->position, position, sizeof(status->position));
	if (transactions > 0)
	{
		status->last_window_at = GetCurrentTimestamp();
		status->windows++;
	}
	status->transactions += transactions;
	status->rows += rows;
	status->conflicts += conflicts;
	status->fallbacks += fell_back;
	LWLockRelease(status->lock);
}

/*
 * Something went wrong: state is what comes of it.
 */
void
pyr_status_error(PyrState state, const char *message)
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	status->state = state;
	status->errors++;
	strlcpy(status->last_error, message, sizeof(status->last_error));
	status->last_error_at = GetCurrentTimestamp();
	LWLockRelease(status->lock);
}

PyrState
pyr_status_get_state(void)
{
	PyrState	state;

	LWLockAcquire(status->lock, LW_SHARED);
	state = status->state;
	LWLockRelease(status->lock);
	return state;
}

/*
 * How many windows have been applied; what grows is alive.
 */
int64
pyr_status_windows(void)
{
	int64		windows;

	LWLockAcquire(status->lock, LW_SHARED);
	windows = status->windows;
	LWLockRelease(status->lock);
	return windows;
}

/*
 * The verification that is asked for; 0: none is.
 */
uint64
pyr_status_verify_requested(PyrVerifyRequest *request)
{
	uint64		number = 0;

	LWLockAcquire(status->lock, LW_SHARED);
	if (status->verify_requested > status->verify_served)
	{
		number = status->verify_requested;
		*request = status->verify;
	}
	LWLockRelease(status->lock);
	return number;
}

/*
 * It is done; error says why it could not be, or is NULL.
 */
void
pyr_status_verify_served(uint64 number, const char *error)
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	if (number > status->verify_served)
	{
		status->verify_served = number;
		strlcpy(status->verify_error, error ? error : "",
				sizeof(status->verify_error));
	}
	LWLockRelease(status->lock);
	ConditionVariableBroadcast(&status->served);
}

/*
 * How often somebody has asked for something in pyreplica_table.
 */
uint64
pyr_status_tables_requested(void)
{
	uint64		requested;

	LWLockAcquire(status->lock, LW_SHARED);
	requested = status->tables_requested;
	LWLockRelease(status->lock);
	return requested;
}

/*
 * The last look asked for.  A look that begins after this call serves it.
 */
uint64
pyr_status_wait_requested(void)
{
	uint64		request;

	LWLockAcquire(status->lock, LW_SHARED);
	request = status->wait_requested;
	LWLockRelease(status->lock);
	return request;
}

/*
 * Whether somebody waits for a look.  To be asked before sleeping: the latch
 * that came with the request may have been reset since.
 */
bool
pyr_status_wait_pending(void)
{
	bool		pending;

	LWLockAcquire(status->lock, LW_SHARED);
	pending = status->wait_requested > status->wait_served;
	LWLockRelease(status->lock);
	return pending;
}

void
pyr_status_wait_served(uint64 request)
{
	bool		is_news;

	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	is_news = request > status->wait_served;
	if (is_news)
		status->wait_served = request;
	LWLockRelease(status->lock);
	if (is_news)
		ConditionVariableBroadcast(&status->served);
}

static const char *
state_name(PyrState state)
{
	switch (state)
	{
		case PYR_STATE_STOPPED:
			return replica_enabled ? "stopped" : "disabled";
		case PYR_STATE_NO_DATABASE:
			return "no database";
		case PYR_STATE_STARTING:
			return "starting";
		case PYR_STATE_CONNECTING:
			return "connecting";
		case PYR_STATE_AWAY:
			return "master away";
		case PYR_STATE_FETCHING:
			return "fetching";
		case PYR_STATE_APPLYING:
			return "applying";
		case PYR_STATE_COPYING:
			return "copying";
		case PYR_STATE_WAITING:
			return "waiting";
		case PYR_STATE_ERROR:
			return "error";
	}
	return "?";
}

static void
check_preloaded(void)
{
	if (status == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pyreplica is not loaded on this server"),
				 errhint("On a slave, add pyreplica to shared_preload_libraries and restart the server.")));
}

static void
set_timestamp(Datum *value, bool *isnull, TimestampTz t)
{
	*isnull = t == 0;
	*value = TimestampTzGetDatum(t);
}

static void
set_text(Datum *value, bool *isnull, const char *text)
{
	*isnull = text[0] == '\0';
	if (!*isnull)
		*value = CStringGetTextDatum(text);
}

/*
 * pyreplica_status() returns setof record.  A server that is no slave has no
 * rows to show.
 */
Datum
pyreplica_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	ReplicaStatus copy;
	Datum		values[17];
	bool		isnull[17] = {false};
	TimestampTz now = GetCurrentTimestamp();

	pyr_init_materialized_srf(fcinfo);
	if (status == NULL)
		return (Datum) 0;

	LWLockAcquire(status->lock, LW_SHARED);
	copy = *status;
	LWLockRelease(status->lock);
	if (copy.replica[0] == '\0')
		return (Datum) 0;

	set_text(&values[0], &isnull[0], copy.replica);
	isnull[1] = copy.pid == 0;
	values[1] = Int32GetDatum(copy.pid);
	set_text(&values[2], &isnull[2], state_name(copy.state));
	set_text(&values[3], &isnull[3], copy.master);
	set_text(&values[4], &isnull[4], copy.database);
	set_text(&values[5], &isnull[5], copy.position);
	if (copy.state == PYR_STATE_WAITING)
		copy.in_step_at = now;	/* it would have been woken */
	set_timestamp(&values[6], &isnull[6], copy.in_step_at);
	isnull[7] = copy.in_step_at == 0;
	values[7] = DirectFunctionCall2(timestamp_mi,
									TimestampTzGetDatum(now),
									TimestampTzGetDatum(copy.in_step_at));
	set_timestamp(&values[8], &isnull[8], copy.last_window_at);
	values[9] = Int64GetDatum(copy.transactions);
	values[10] = Int64GetDatum(copy.rows);
	values[11] = Int64GetDatum(copy.windows);
	values[12] = Int64GetDatum(copy.fallbacks);
	values[13] = Int64GetDatum(copy.conflicts);
	values[14] = Int64GetDatum(copy.errors);
	set_text(&values[15], &isnull[15], copy.last_error);
	set_timestamp(&values[16], &isnull[16], copy.last_error_at);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);

	return (Datum) 0;
}

/*
 * Asks the worker for a look at the master; the request's number.
 */
static uint64
request_look(const char *replica)
{
	uint64		request;
	PGPROC	   *proc;
	bool		is_known;

	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	is_known = status->replica[0] != '\0' &&
		(replica == NULL || strcmp(replica, status->replica) == 0);
	request = ++status->wait_requested;
	proc = status->proc;
	if (is_known && proc != NULL)
		SetLatch(&proc->procLatch);
	LWLockRelease(status->lock);

	if (!is_known)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 replica != NULL
				 ? errmsg("replica \"%s\" does not exist", replica)
				 : errmsg("this server has no replica"),
				 errhint("See the view pyreplica_status, and the setting pyreplica.master_conninfo.")));
	return request;
}

static bool
is_served(uint64 request)
{
	bool		served;

	LWLockAcquire(status->lock, LW_SHARED);
	served = status->wait_served >= request;
	LWLockRelease(status->lock);
	return served;
}

/*
 * pyreplica_wait(replica text, timeout interval) returns boolean.
 */
Datum
pyreplica_wait(PG_FUNCTION_ARGS)
{
	char	   *replica = PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	TimestampTz until = DT_NOEND;
	uint64		request;
	bool		served;

	check_preloaded();
	if (!PG_ARGISNULL(1))
		until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														TimestampTzGetDatum(GetCurrentTimestamp()),
														PG_GETARG_DATUM(1)));

	request = request_look(replica);

	ConditionVariablePrepareToSleep(&status->served);
	while (!(served = is_served(request)))
	{
		long		left_ms = -1;

		if (!TIMESTAMP_IS_NOEND(until))
		{
			left_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
			if (left_ms <= 0)
				break;
		}
		if (left_ms < 0)
			ConditionVariableSleep(&status->served, PG_WAIT_EXTENSION);
		else
			(void) ConditionVariableTimedSleep(&status->served, left_ms,
											   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();

	PG_RETURN_BOOL(served);
}

/* whether the current transaction asks the worker for something */
static bool wakes_at_commit = false;

static void
wake_callback(XactEvent event, void *arg pg_attribute_unused())
{
	if (wakes_at_commit && event == XACT_EVENT_COMMIT)
	{
		LWLockAcquire(status->lock, LW_EXCLUSIVE);
		status->tables_requested++;
		if (status->proc != NULL)
			SetLatch(&status->proc->procLatch);
		LWLockRelease(status->lock);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		wakes_at_commit = false;
}

/*
 * pyreplica_wake() returns void: once the transaction has committed, the worker
 * looks at what is asked for in pyreplica_table.
 */
Datum
pyreplica_wake(PG_FUNCTION_ARGS)
{
	static bool is_registered = false;

	check_preloaded();
	if (!is_registered)
		RegisterXactCallback(wake_callback, NULL);
	is_registered = true;
	wakes_at_commit = true;
	PG_RETURN_VOID();
}

/*
 * Leaves the request with the worker; 0: there is another one before it.
 */
static uint64
request_verify(const PyrVerifyRequest *request)
{
	uint64		number = 0;

	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	if (status->verify_requested == status->verify_served)
	{
		number = ++status->verify_requested;
		status->verify = *request;
		if (status->proc != NULL)
			SetLatch(&status->proc->procLatch);
	}
	LWLockRelease(status->lock);
	return number;
}

static bool
is_verified(uint64 number, char *error)
{
	bool		is_done;

	LWLockAcquire(status->lock, LW_SHARED);
	is_done = status->verify_served >= number;
	if (is_done)
		strlcpy(error, status->verify_error, ERROR_LEN);
	LWLockRelease(status->lock);
	return is_done;
}

/*
 * pyreplica_verify_run(schemaname text, tablename text, repair boolean) returns
 * bigint: has the worker verify the table (all of them, if it has no name), waits
 * for it, and returns the number of the run.
 */
Datum
pyreplica_verify_run(PG_FUNCTION_ARGS)
{
	PyrVerifyRequest request = {0};
	uint64		number;
	char		error[ERROR_LEN];

	check_preloaded();
	if (status->replica[0] == '\0' ||
		strcmp(status->database, get_database_name(MyDatabaseId)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("this database has no replica"),
				 errhint("See the view pyreplica_status.")));
	request.run = GetCurrentTimestamp();
	text_to_cstring_buffer(PG_GETARG_TEXT_PP(0), request.schema, NAMEDATALEN);
	text_to_cstring_buffer(PG_GETARG_TEXT_PP(1), request.table, NAMEDATALEN);
	request.repairs = PG_GETARG_BOOL(2);

	ConditionVariablePrepareToSleep(&status->served);
	while ((number = request_verify(&request)) == 0)
		ConditionVariableSleep(&status->served, PG_WAIT_EXTENSION);
	while (!is_verified(number, error))
		ConditionVariableSleep(&status->served, PG_WAIT_EXTENSION);
	ConditionVariableCancelSleep();
	if (error[0] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not verify: %s", error)));
	PG_RETURN_INT64(request.run);
}
