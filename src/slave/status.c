/*-------------------------------------------------------------------------
 *
 * status.c
 *	  What each replica shows of itself, in shared memory; the functions behind
 *	  pyreplica_status and pyreplica_wait.
 *
 * A replica has a place of its own, with a lock of its own.  The launcher gives
 * places out and takes them back; it, or the worker while there is one, writes;
 * everybody who may reads.  Nothing in here decides anything but
 * pyreplica_wait, which asks workers for one more look at the master and waits
 * for the answers.
 *
 * There are as many places as the server may have background workers, since
 * more could not run.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/compat.h"
#include "common/encoding.h"
#include "commands/dbcommands.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
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
PG_FUNCTION_INFO_V1(pyreplica_sync_run);

#define MASTER_LEN		256
#define POSITION_LEN	256
#define ERROR_LEN		1024

typedef struct ReplicaStatus
{
	LWLock	   *lock;
	bool		is_used;
	char		key[NAMEDATALEN];	/* its name in the settings */
	char		replica[NAMEDATALEN];
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
	int			encoding;		/* of the database that last_error is from */
	char		last_error[ERROR_LEN];
	TimestampTz last_error_at;

	uint64		tables_requested;	/* how often something was asked for */

	/* verifications asked for, of which there is one at a time, and done */
	uint64		verify_requested;
	uint64		verify_served;
	PyrVerifyRequest verify;
	char		verify_error[ERROR_LEN];	/* empty: it went well */

	/* exact values of sequences asked for, and done */
	uint64		sync_requested;
	uint64		sync_served;
	char		sync_error[ERROR_LEN];	/* of the last; empty: it went well */

	/* looks at the master asked for, and done */
	uint64		wait_requested;
	uint64		wait_served;
	ConditionVariable served;

	/* up to these, they were asked of a replica that was here before */
	uint64		verify_void;
	uint64		sync_void;
	uint64		wait_void;
} ReplicaStatus;

/* all places, which are places_count; NULL: pyreplica is not loaded */
static ReplicaStatus *places = NULL;

/* that of the replica that this process is concerned with */
static ReplicaStatus *status = NULL;

#if PYR_HAVE_SHMEM_REQUEST_HOOK
static shmem_request_hook_type prev_shmem_request_hook = NULL;
#endif
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

/*
 * It cannot change while the server runs.
 */
static int
places_count(void)
{
	return Max(max_worker_processes, 1);
}

static void
request_shmem(void)
{
#if PYR_HAVE_SHMEM_REQUEST_HOOK
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
#endif
	RequestAddinShmemSpace(mul_size(places_count(), sizeof(ReplicaStatus)));
	RequestNamedLWLockTranche(PYR_EXTENSION, places_count());
}

static void
startup_shmem(void)
{
	Size		size = mul_size(places_count(), sizeof(ReplicaStatus));
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	places = ShmemInitStruct("pyreplica status", size, &found);
	if (!found)
	{
		memset(places, 0, size);
		for (int i = 0; i < places_count(); i++)
		{
			places[i].lock = &GetNamedLWLockTranche(PYR_EXTENSION)[i].lock;
			ConditionVariableInit(&places[i].served);
		}
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

/*
 * The name of the replica in that place, palloc'd; NULL: none has it.
 */
char *
pyr_status_key(int place)
{
	char		key[NAMEDATALEN];
	bool		is_used;

	LWLockAcquire(places[place].lock, LW_SHARED);
	is_used = places[place].is_used;
	strlcpy(key, places[place].key, sizeof(key));
	LWLockRelease(places[place].lock);
	return is_used ? pstrdup(key) : NULL;
}

/*
 * How many places there are.
 */
int
pyr_status_places(void)
{
	return places_count();
}

/*
 * Gives a replica a place; -1: there is none left.  Only the launcher does.
 */
int
pyr_status_reserve(const char *key)
{
	for (int i = 0; i < places_count(); i++)
	{
		ReplicaStatus *place = &places[i];
		bool		is_free;

		LWLockAcquire(place->lock, LW_EXCLUSIVE);
		is_free = !place->is_used;
		if (is_free)
		{
			place->is_used = true;
			strlcpy(place->key, key, sizeof(place->key));
			place->replica[0] = place->database[0] = place->master[0] = '\0';
			place->state = PYR_STATE_STOPPED;
		}
		LWLockRelease(place->lock);
		if (is_free)
			return i;
	}
	return -1;
}

/*
 * There is no such replica any more.  Who waits for it gets to know.
 */
void
pyr_status_release(int i)
{
	ReplicaStatus *place = &places[i];

	LWLockAcquire(place->lock, LW_EXCLUSIVE);
	place->is_used = false;
	place->replica[0] = '\0';
	place->verify_void = place->verify_served = place->verify_requested;
	place->sync_void = place->sync_served = place->sync_requested;
	place->wait_void = place->wait_served = place->wait_requested;
	LWLockRelease(place->lock);
	ConditionVariableBroadcast(&place->served);
}

/*
 * The calling process is concerned with the replica in that place.
 */
void
pyr_status_use(int place)
{
	status = &places[place];
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
 * The calling process is the worker of the replica in that place from now on.
 */
void
pyr_status_attach(int place)
{
	pid_t		other;

	pyr_status_use(place);
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	other = status->pid;
	if (other == 0)
	{
		status->pid = MyProcPid;
		status->proc = MyProc;
		status->state = PYR_STATE_STARTING;
		status->in_step_at = 0;
	}
	LWLockRelease(status->lock);
	if (other != 0)
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("replica \"%s\" has a worker already, with PID %d",
						status->replica, (int) other)));

	before_shmem_exit(detach, (Datum) 0);
}

/*
 * Whether a worker is attached.
 */
bool
pyr_status_is_attached(void)
{
	bool		is_attached;

	LWLockAcquire(status->lock, LW_SHARED);
	is_attached = status->pid != 0;
	LWLockRelease(status->lock);
	return is_attached;
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
	pyr_encoding_copy(status->last_error, message, sizeof(status->last_error));
	status->encoding = GetDatabaseEncoding();
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
		pyr_encoding_copy(status->verify_error, error ? error : "",
				sizeof(status->verify_error));
	}
	LWLockRelease(status->lock);
	ConditionVariableBroadcast(&status->served);
}

/*
 * The last request for exact values of sequences that is not served; 0: none.
 */
uint64
pyr_status_sync_requested(void)
{
	uint64		number = 0;

	LWLockAcquire(status->lock, LW_SHARED);
	if (status->sync_requested > status->sync_served)
		number = status->sync_requested;
	LWLockRelease(status->lock);
	return number;
}

/*
 * It is; error says why it could not be, or is NULL.
 */
void
pyr_status_sync_served(uint64 number, const char *error)
{
	LWLockAcquire(status->lock, LW_EXCLUSIVE);
	status->sync_served = Max(status->sync_served, number);
	pyr_encoding_copy(status->sync_error, error ? error : "", sizeof(status->sync_error));
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
			return "stopped";
		case PYR_STATE_DISABLED:
			return "disabled";
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
	if (places == NULL)
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

static void
show_place(ReplicaStatus *place, ReturnSetInfo *rsinfo)
{
	ReplicaStatus copy;
	Datum		values[17];
	bool		isnull[17] = {false};
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(place->lock, LW_SHARED);
	copy = *place;
	LWLockRelease(place->lock);
	if (!copy.is_used || copy.replica[0] == '\0')
		return;

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
	set_text(&values[15], &isnull[15],
			 pyr_encoding_show(copy.last_error, strlen(copy.last_error),
							   copy.encoding, NULL));
	set_timestamp(&values[16], &isnull[16], copy.last_error_at);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

/*
 * pyreplica_status() returns setof record.  A server that is no slave has no
 * rows to show.
 */
Datum
pyreplica_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	pyr_init_materialized_srf(fcinfo);
	if (places == NULL)
		return (Datum) 0;
	for (int i = 0; i < places_count(); i++)
		show_place(&places[i], rsinfo);
	return (Datum) 0;
}

/*
 * The places of the replicas that a user means: the one of that name, or all of
 * this database.  Raises an error if there is none.
 */
static List *
find_places(const char *replica)
{
	const char *database = get_database_name(MyDatabaseId);
	List	   *found = NIL;
	bool		has_any = false;

	check_preloaded();
	for (int i = 0; i < places_count(); i++)
	{
		ReplicaStatus *place = &places[i];
		bool		is_shown;
		bool		is_meant;

		LWLockAcquire(place->lock, LW_SHARED);
		is_shown = place->is_used && place->replica[0] != '\0';
		is_meant = is_shown &&
			(replica != NULL ? strcmp(place->replica, replica) == 0
			 : strcmp(place->database, database) == 0);
		LWLockRelease(place->lock);
		has_any |= is_shown;
		if (is_meant)
			found = lappend(found, place);
	}
	if (found == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 replica != NULL
				 ? errmsg("replica \"%s\" does not exist", replica)
				 : has_any ? errmsg("this database has no replica")
				 : errmsg("this server has no replica"),
				 errhint("See the view pyreplica_status, and the settings pyreplica.master_conninfo and pyreplica.replicas.")));
	return found;
}

/*
 * Asks the worker for a look at the master; the request's number.
 */
static uint64
request_look(ReplicaStatus *place)
{
	uint64		request = 0;

	LWLockAcquire(place->lock, LW_EXCLUSIVE);
	if (place->is_used)
		request = ++place->wait_requested;
	if (place->proc != NULL)
		SetLatch(&place->proc->procLatch);
	LWLockRelease(place->lock);
	return request;
}

static bool
is_served(ReplicaStatus *place, uint64 request)
{
	bool		served;
	bool		is_gone;

	LWLockAcquire(place->lock, LW_SHARED);
	served = place->wait_served >= request;
	is_gone = request <= place->wait_void;
	LWLockRelease(place->lock);
	if (is_gone)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the replica does not exist any more")));
	return served;
}

/*
 * Waits until the request is served; false: it took too long.
 */
static bool
wait_for_look(ReplicaStatus *place, uint64 request, TimestampTz until)
{
	bool		served;

	ConditionVariablePrepareToSleep(&place->served);
	while (!(served = is_served(place, request)))
	{
		long		left_ms = -1;

		if (!TIMESTAMP_IS_NOEND(until))
		{
			left_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
			if (left_ms <= 0)
				break;
		}
		if (left_ms < 0)
			ConditionVariableSleep(&place->served, PG_WAIT_EXTENSION);
		else
			(void) ConditionVariableTimedSleep(&place->served, left_ms,
											   PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
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
	List	   *waited_for = find_places(replica);
	uint64	   *requests = palloc(list_length(waited_for) * sizeof(uint64));
	bool		served = true;

	if (!PG_ARGISNULL(1))
		until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														TimestampTzGetDatum(GetCurrentTimestamp()),
														PG_GETARG_DATUM(1)));

	for (int i = 0; i < list_length(waited_for); i++)
		requests[i] = request_look(list_nth(waited_for, i));
	for (int i = 0; i < list_length(waited_for) && served; i++)
		served = wait_for_look(list_nth(waited_for, i), requests[i], until);

	PG_RETURN_BOOL(served);
}

/* whether the current transaction asks the database's workers for something */
static bool wakes_at_commit = false;
static char wakes_database[NAMEDATALEN];

static void
wake_database(const char *database)
{
	for (int i = 0; i < places_count(); i++)
	{
		ReplicaStatus *place = &places[i];

		LWLockAcquire(place->lock, LW_EXCLUSIVE);
		if (place->is_used && strcmp(place->database, database) == 0)
		{
			place->tables_requested++;
			if (place->proc != NULL)
				SetLatch(&place->proc->procLatch);
		}
		LWLockRelease(place->lock);
	}
}

static void
wake_callback(XactEvent event, void *arg pg_attribute_unused())
{
	if (wakes_at_commit && event == XACT_EVENT_COMMIT)
		wake_database(wakes_database);
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		wakes_at_commit = false;
}

/*
 * pyreplica_wake() returns void: once the transaction has committed, the
 * workers of this database look at what is asked for in pyreplica_table.
 */
Datum
pyreplica_wake(PG_FUNCTION_ARGS)
{
	static bool is_registered = false;

	check_preloaded();
	if (!is_registered)
		RegisterXactCallback(wake_callback, NULL);
	is_registered = true;
	strlcpy(wakes_database, get_database_name(MyDatabaseId), NAMEDATALEN);
	wakes_at_commit = true;
	PG_RETURN_VOID();
}

/*
 * Leaves the request with the worker.  False: there is another one before it.
 */
static bool
request_verify(ReplicaStatus *place, const PyrVerifyRequest *request,
			   uint64 *number)
{
	bool		is_accepted = true;

	LWLockAcquire(place->lock, LW_EXCLUSIVE);
	if (!place->is_used)
		*number = 0;
	else if (place->verify_requested == place->verify_served)
	{
		*number = ++place->verify_requested;
		place->verify = *request;
		if (place->proc != NULL)
			SetLatch(&place->proc->procLatch);
	}
	else
		is_accepted = false;
	LWLockRelease(place->lock);
	return is_accepted;
}

static bool
is_verified(ReplicaStatus *place, uint64 number, char *error)
{
	bool		is_done;

	LWLockAcquire(place->lock, LW_SHARED);
	is_done = place->verify_served >= number;
	strlcpy(error, number <= place->verify_void
			? "the replica does not exist any more" : place->verify_error,
			ERROR_LEN);
	LWLockRelease(place->lock);
	return is_done;
}

/*
 * pyreplica_verify_run(replica text, schemaname text, tablename text,
 * repair boolean) returns bigint: has the worker verify the table (all of them,
 * if it has no name), waits for it, and returns the number of the run.
 */
Datum
pyreplica_verify_run(PG_FUNCTION_ARGS)
{
	char	   *replica = text_to_cstring(PG_GETARG_TEXT_PP(0));
	ReplicaStatus *place = linitial(find_places(replica));
	PyrVerifyRequest request = {0};
	uint64		number;
	char		error[ERROR_LEN];

	request.run = GetCurrentTimestamp();
	text_to_cstring_buffer(PG_GETARG_TEXT_PP(1), request.schema, NAMEDATALEN);
	text_to_cstring_buffer(PG_GETARG_TEXT_PP(2), request.table, NAMEDATALEN);
	request.repairs = PG_GETARG_BOOL(3);

	ConditionVariablePrepareToSleep(&place->served);
	while (!request_verify(place, &request, &number))
		ConditionVariableSleep(&place->served, PG_WAIT_EXTENSION);
	while (!is_verified(place, number, error))
		ConditionVariableSleep(&place->served, PG_WAIT_EXTENSION);
	ConditionVariableCancelSleep();
	if (error[0] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not verify: %s", error)));
	PG_RETURN_INT64(request.run);
}

/*
 * Whether the request is served; an error if it cannot be.
 */
static bool
is_synced(ReplicaStatus *place, uint64 number)
{
	char		error[ERROR_LEN];
	PyrState	state;
	bool		is_done;

	LWLockAcquire(place->lock, LW_SHARED);
	is_done = place->sync_served >= number;
	strlcpy(error, number <= place->sync_void
			? "the replica does not exist any more" : place->sync_error,
			sizeof(error));
	state = place->state;
	LWLockRelease(place->lock);
	if (is_done && error[0] != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not set sequences: %s", error)));
	if (!is_done && (state == PYR_STATE_AWAY || state == PYR_STATE_ERROR ||
					 state == PYR_STATE_STOPPED || state == PYR_STATE_DISABLED ||
					 state == PYR_STATE_NO_DATABASE))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_DOES_NOT_EXIST),
				 errmsg("could not set sequences: the state of the replica is \"%s\"",
						state_name(state)),
				 errdetail("The master cannot be asked. Sequences are ahead of it by up to pyreplica.sequence_margin values.")));
	return is_done;
}

static uint64
request_sync(ReplicaStatus *place)
{
	uint64		number = 0;

	LWLockAcquire(place->lock, LW_EXCLUSIVE);
	if (place->is_used)
		number = ++place->sync_requested;
	if (place->proc != NULL)
		SetLatch(&place->proc->procLatch);
	LWLockRelease(place->lock);
	return number;
}

/*
 * pyreplica_sync_run(replica text) returns void: has the worker give sequences the
 * master's exact values, and waits for it.
 */
Datum
pyreplica_sync_run(PG_FUNCTION_ARGS)
{
	char	   *replica = text_to_cstring(PG_GETARG_TEXT_PP(0));
	ReplicaStatus *place = linitial(find_places(replica));
	uint64		number = request_sync(place);

	ConditionVariablePrepareToSleep(&place->served);
	while (!is_synced(place, number))
		(void) ConditionVariableTimedSleep(&place->served, 1000,
										   PG_WAIT_EXTENSION);
	ConditionVariableCancelSleep();
	PG_RETURN_VOID();
}
