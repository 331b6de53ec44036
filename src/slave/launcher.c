/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Starts the replica's worker when the settings ask for one and its
 *	  database exists, and starts it again when it ended.
 *
 * A worker that ended because of a change of settings is started again at
 * once; one that failed, after a pause that doubles each time up to
 * pyreplica.retry_interval_max.  The pause begins anew when the worker got
 * something done, and when the settings are reloaded.
 *
 * The launcher itself leaves with a non-zero code only: the server would
 * never start it again otherwise.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "common/compat.h"
#include "common/config.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "pyreplica.h"
#include "slave/launcher.h"
#include "slave/origin.h"
#include "slave/status.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define RETRY_FIRST_MS		500
#define DATABASE_POLL_MS	1000

/* the one worker */
static BackgroundWorkerHandle *worker = NULL;
static TimestampTz start_after = 0; /* not before */
static int	retry_ms = RETRY_FIRST_MS;
static int64 windows_at_start = 0;

/* what has been said in the log, so as to say it once */
static char *last_complaint = NULL;

/*
 * Called in the postmaster, from shared_preload_libraries.
 */
void
pyr_launcher_register(void)
{
	BackgroundWorker launcher;

	memset(&launcher, 0, sizeof(launcher));
	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	/* not on a standby; it starts at once when that is promoted */
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = 5;
	strlcpy(launcher.bgw_library_name, PYR_EXTENSION, sizeof(launcher.bgw_library_name));
	strlcpy(launcher.bgw_function_name, "pyr_launcher_main", BGW_MAXLEN);
	strlcpy(launcher.bgw_name, "pyreplica launcher", BGW_MAXLEN);
	strlcpy(launcher.bgw_type, "pyreplica launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&launcher);
}

/*
 * Says what keeps a replica from running, once.
 */
static void
complain(PyrState state, const char *message, const char *hint)
{
	if (last_complaint != NULL && strcmp(last_complaint, message) == 0)
		return;
	if (last_complaint != NULL)
		pfree(last_complaint);
	last_complaint = MemoryContextStrdup(TopMemoryContext, message);
	if (state == PYR_STATE_ERROR)
		pyr_status_error(state, message);
	else
		pyr_status_state(state);
	ereport(LOG,
			(errmsg("pyreplica: %s", message),
			 errhint("%s", hint)));
}

static void
forget_complaint(void)
{
	if (last_complaint != NULL)
		pfree(last_complaint);
	last_complaint = NULL;
}

/*
 * The slave's database, by the settings; NULL if they do not say.
 */
static char *
configured_database(void)
{
	char	   *error;
	char	   *name;

	if (replica_database[0] != '\0')
		return pstrdup(replica_database);

	name = pyr_remote()->conninfo_value(master_conninfo, "dbname", &error);
	if (name == NULL || name[0] == '\0')
	{
		/* its name is not known, but it should be seen in pyreplica_status */
		pyr_status_replica("?", "", "");
		complain(PYR_STATE_ERROR,
				 error != NULL
				 ? psprintf("invalid connection string in pyreplica.master_conninfo: %s", error)
				 : "pyreplica.master_conninfo names no database",
				 "Write dbname=... into pyreplica.master_conninfo, or set pyreplica.database, and reload.");
		return NULL;
	}
	return name;
}

/*
 * The launcher is connected to no database, so that it can read shared
 * catalogs alone, and those without an index.
 */
static bool
database_exists(const char *name)
{
	bool		exists = false;
	Relation	databases;
	TableScanDesc scan;
	HeapTuple	tuple;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	databases = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(databases, 0, NULL);
	while (!exists &&
		   HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		exists = strcmp(NameStr(database->datname), name) == 0;
	}
	table_endscan(scan);
	table_close(databases, AccessShareLock);
	CommitTransactionCommand();
	return exists;
}

/*
 * Returns for how long that was all, in ms, -1: until something happens.
 */
static long
start_worker(const char *database)
{
	BackgroundWorker bgw;
	MemoryContext oldcontext;
	bool		is_started;

	memset(&bgw, 0, sizeof(bgw));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw.bgw_restart_time = BGW_NEVER_RESTART;
	bgw.bgw_notify_pid = MyProcPid;
	strlcpy(bgw.bgw_library_name, PYR_EXTENSION, sizeof(bgw.bgw_library_name));
	strlcpy(bgw.bgw_function_name, "pyr_worker_main", BGW_MAXLEN);
	snprintf(bgw.bgw_name, BGW_MAXLEN, "pyreplica worker %s", database);
	strlcpy(bgw.bgw_type, "pyreplica worker", BGW_MAXLEN);
	strlcpy(bgw.bgw_extra, database, BGW_EXTRALEN);

	windows_at_start = pyr_status_windows();
	/* the handle is to stay */
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	is_started = RegisterDynamicBackgroundWorker(&bgw, &worker);
	MemoryContextSwitchTo(oldcontext);
	if (!is_started)
	{
		worker = NULL;
		complain(PYR_STATE_ERROR,
				 "could not start a worker: no background worker slot is free",
				 "Increase max_worker_processes.");
		return RETRY_FIRST_MS;
	}
	forget_complaint();
	return -1;
}

/*
 * Looks after a worker that was started: whether it runs.  If it ended,
 * decides when the next one may start.
 */
static bool
is_worker_running(void)
{
	pid_t		pid;

	if (worker == NULL)
		return false;
	if (GetBackgroundWorkerPid(worker, &pid) != BGWH_STOPPED)
		return true;

	pfree(worker);
	worker = NULL;
	if (pyr_status_windows() > windows_at_start)
		retry_ms = RETRY_FIRST_MS;
	if (pyr_status_get_state() == PYR_STATE_ERROR)
	{
		start_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  retry_ms);
		retry_ms = Min(retry_ms * 2, retry_interval_max_ms);
	}
	else
		start_after = 0;
	return false;
}

/*
 * Does what is to be done now; returns for how long that was all, in ms, or
 * -1.
 */
static long
manage_worker(void)
{
	char	   *database;
	char	   *display;
	long		left_ms;

	if (is_worker_running())
		return -1;
	if (master_conninfo[0] == '\0')
	{
		pyr_status_forget();
		return -1;
	}
	if ((database = configured_database()) == NULL)
		return -1;

	display = pyr_remote()->conninfo_display(master_conninfo);
	pyr_status_replica(database, database, display);
	if (!replica_enabled)
	{
		pyr_status_state(PYR_STATE_STOPPED);
		return -1;
	}

	left_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
											  start_after);
	if (left_ms > 0)
		return left_ms;

	if (!database_exists(database))
	{
		complain(PYR_STATE_NO_DATABASE,
				 psprintf("waiting for database \"%s\" to be created", database),
				 "Create it, or name another one in pyreplica.database.");
		return DATABASE_POLL_MS;
	}
	return start_worker(database);
}

void
pyr_launcher_main(Datum arg pg_attribute_unused())
{
	MemoryContext context;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	context = AllocSetContextCreate(TopMemoryContext, "pyreplica launcher",
									ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		long		timeout_ms;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			start_after = 0;
			retry_ms = RETRY_FIRST_MS;
			forget_complaint();
		}

		MemoryContextSwitchTo(context);
		timeout_ms = manage_worker();
		MemoryContextReset(context);

		pgstat_report_activity(STATE_IDLE, NULL);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
						 (timeout_ms >= 0 ? WL_TIMEOUT : 0),
						 timeout_ms, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
