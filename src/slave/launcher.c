/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Starts each replica's worker when the settings ask for one and its
 *	  database exists, and starts it again when it ended.
 *
 * A worker that ended because of a change of settings is started again at
 * once; one that failed, after a pause that doubles each time up to
 * pyreplica.retry_interval_max.  The pause begins anew when the worker got
 * something done, and when the settings are reloaded.  What a replica needs and
 * does not have (its database, a background worker) is looked for again and
 * again; the others go on meanwhile.
 *
 * A replica that is not in the settings any more is forgotten when its worker,
 * which sees that for itself, has ended.
 *
 * The launcher itself leaves with a non-zero code only: the server would
 * never start it again otherwise.  If it comes back and finds workers, it lets
 * them run.
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
#include "common/replicas.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "pyreplica.h"
#include "slave/launcher.h"
#include "slave/origin.h"
#include "slave/status.h"
#include "slave/worker.h"
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
#define POLL_MS			1000

#define NO_PLACE		(-1)

typedef struct Replica
{
	char		key[NAMEDATALEN];	/* its name in the settings */
	char		name[NAMEDATALEN];	/* empty: not known yet */
	bool		is_listed;		/* in the settings */
	int			place;			/* in status.c, or NO_PLACE */
	BackgroundWorkerHandle *worker;
	bool		is_adopted;		/* its worker, of another launcher, runs */
	TimestampTz start_after;	/* not before */
	int			retry_ms;
	int64		windows_at_start;
	char	   *last_complaint; /* said in the log, so as to say it once */
} Replica;

static List *replicas = NIL;
static List *unlisted = NIL;	/* names said in the log */

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
complain(Replica *replica, PyrState state, const char *message,
		 const char *hint)
{
	if (replica->last_complaint != NULL &&
		strcmp(replica->last_complaint, message) == 0)
		return;
	if (replica->last_complaint != NULL)
		pfree(replica->last_complaint);
	replica->last_complaint = MemoryContextStrdup(TopMemoryContext, message);
	if (replica->place != NO_PLACE)
	{
		if (state == PYR_STATE_ERROR)
			pyr_status_error(state, message);
		else
			pyr_status_state(state);
	}
	ereport(LOG,
			(errmsg("pyreplica%s%s: %s", replica->key[0] != '\0' ? " " : "",
					replica->key, message),
			 errhint("%s", hint)));
}

static void
forget_complaint(Replica *replica)
{
	if (replica->last_complaint != NULL)
		pfree(replica->last_complaint);
	replica->last_complaint = NULL;
}

/*
 * The slave's database, by the settings.  If they do not say, NULL, and why.
 */
static char *
configured_database(Replica *replica, char **problem, char **way_out)
{
	char	   *error;
	char	   *name;
	char	   *conninfo_setting = pyr_config_name(replica->key,
												   "master_conninfo");

	if (master_conninfo[0] == '\0')
	{
		*problem = psprintf("%s is not set", conninfo_setting);
		*way_out = psprintf("Set it, or take \"%s\" off pyreplica.replicas, and reload.",
							replica->key);
		return NULL;
	}
	if (replica_database[0] != '\0')
		return pstrdup(replica_database);

	name = pyr_remote()->conninfo_value(master_conninfo, "dbname", &error);
	if (name != NULL && name[0] != '\0')
		return name;
	*problem = error != NULL
		? psprintf("invalid connection string in %s: %s", conninfo_setting, error)
		: psprintf("%s names no database", conninfo_setting);
	*way_out = psprintf("Write dbname=... into %s, or set %s, and reload.",
						conninfo_setting,
						pyr_config_name(replica->key, "database"));
	return NULL;
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
	MemoryContext context = CurrentMemoryContext;

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
	MemoryContextSwitchTo(context); /* it leaves another one current */
	return exists;
}

/*
 * Returns for how long that was all, in ms, -1: until something happens.
 */
static long
start_worker(Replica *replica, const char *database)
{
	BackgroundWorker bgw;
	PyrWorkerStart start;
	MemoryContext oldcontext;
	bool		is_started;

	memset(&bgw, 0, sizeof(bgw));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw.bgw_restart_time = BGW_NEVER_RESTART;
	bgw.bgw_notify_pid = MyProcPid;
	bgw.bgw_main_arg = Int32GetDatum(replica->place);
	strlcpy(bgw.bgw_library_name, PYR_EXTENSION, sizeof(bgw.bgw_library_name));
	strlcpy(bgw.bgw_function_name, "pyr_worker_main", BGW_MAXLEN);
	snprintf(bgw.bgw_name, BGW_MAXLEN, "pyreplica worker %s", replica->name);
	strlcpy(bgw.bgw_type, "pyreplica worker", BGW_MAXLEN);
	strlcpy(start.key, replica->key, sizeof(start.key));
	strlcpy(start.database, database, sizeof(start.database));
	memcpy(bgw.bgw_extra, &start, sizeof(start));

	replica->windows_at_start = pyr_status_windows();
	/* the handle is to stay */
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	is_started = RegisterDynamicBackgroundWorker(&bgw, &replica->worker);
	MemoryContextSwitchTo(oldcontext);
	if (!is_started)
	{
		replica->worker = NULL;
		complain(replica, PYR_STATE_ERROR,
				 psprintf("could not start a worker for replica \"%s\": no background worker slot is free",
						  replica->name),
				 psprintf("Increase max_worker_processes, which is %d, and restart the server; each replica needs one, and the launcher one more. The replica starts by itself when one is free.",
						  max_worker_processes));
		return RETRY_FIRST_MS;
	}
	forget_complaint(replica);
	return -1;
}

/*
 * Looks after a worker that was started: whether it runs.  If it ended,
 * decides when the next one may start.
 */
static bool
is_worker_running(Replica *replica)
{
	pid_t		pid;

	if (replica->place == NO_PLACE)
		return false;
	if (replica->worker == NULL)
	{
		/* nobody tells us when that ends */
		replica->is_adopted = pyr_status_is_attached();
		return replica->is_adopted;
	}
	if (GetBackgroundWorkerPid(replica->worker, &pid) != BGWH_STOPPED)
		return true;

	pfree(replica->worker);
	replica->worker = NULL;
	if (pyr_status_windows() > replica->windows_at_start)
		replica->retry_ms = RETRY_FIRST_MS;
	if (pyr_status_get_state() == PYR_STATE_ERROR)
	{
		replica->start_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														   replica->retry_ms);
		replica->retry_ms = Min(replica->retry_ms * 2, retry_interval_max_ms);
	}
	else
		replica->start_after = 0;
	return false;
}

/*
 * Whether another replica goes by that name already.
 */
static bool
is_name_taken(Replica *replica)
{
	ListCell   *cell;
	bool		is_before = true;

	foreach(cell, replicas)
	{
		Replica    *other = lfirst(cell);

		if (other == replica)
			is_before = false;
		else if (strcmp(other->name, replica->name) == 0 &&
				 (is_before || other->worker != NULL || other->is_adopted))
			return true;
	}
	return false;
}

/*
 * Makes the replica known under its name.  Returns its database, or NULL if it
 * cannot be started.
 */
static char *
introduce(Replica *replica)
{
	char	   *problem = NULL;
	char	   *way_out = NULL;
	char	   *database = configured_database(replica, &problem, &way_out);

	strlcpy(replica->name, replica->key, sizeof(replica->name));
	if (database == NULL)
	{
		/* its name may not be known, but it should be seen */
		pyr_status_replica(replica->name[0] != '\0' ? replica->name : "?",
						   "", "");
		complain(replica, PYR_STATE_ERROR, problem, way_out);
		return NULL;
	}

	if (replica->name[0] == '\0')
		strlcpy(replica->name, database, sizeof(replica->name));
	pyr_status_replica(replica->name, database,
					   pyr_remote()->conninfo_display(master_conninfo));
	if (is_name_taken(replica))
	{
		complain(replica, PYR_STATE_ERROR,
				 psprintf("there is another replica that is called \"%s\"",
						  replica->name),
				 "The replica without a name is called by its database. Give the other one another name in pyreplica.replicas.");
		return NULL;
	}
	return database;
}

/*
 * Does what is to be done now; returns for how long that was all, in ms, or
 * -1.
 */
static long
manage_worker(Replica *replica)
{
	char	   *database;
	long		left_ms;

	if (is_worker_running(replica))
		return replica->is_adopted ? POLL_MS : -1;
	if (replica->place == NO_PLACE)
	{
		complain(replica, PYR_STATE_ERROR,
				 psprintf("there is no room for replica \"%s\": there are more than %d",
						  replica->key, pyr_status_places()),
				 "Increase max_worker_processes, and restart the server.");
		return POLL_MS;
	}
	if ((database = introduce(replica)) == NULL)
		return -1;
	if (!replica_enabled)
	{
		pyr_status_state(PYR_STATE_DISABLED);
		return -1;
	}

	left_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
											  replica->start_after);
	if (left_ms > 0)
		return left_ms;

	if (!database_exists(database))
	{
		complain(replica, PYR_STATE_NO_DATABASE,
				 psprintf("waiting for database \"%s\" to be created", database),
				 psprintf("Create it, or name another one in %s.",
						  pyr_config_name(replica->key, "database")));
		return POLL_MS;
	}
	return start_worker(replica, database);
}

static Replica *
find_replica(const char *key)
{
	ListCell   *cell;

	foreach(cell, replicas)
	{
		Replica    *replica = lfirst(cell);

		if (strcmp(replica->key, key) == 0)
			return replica;
	}
	return NULL;
}

static Replica *
add_replica(const char *key, int place)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	Replica    *replica = palloc0(sizeof(Replica));

	strlcpy(replica->key, key, sizeof(replica->key));
	replica->place = place;
	replica->retry_ms = RETRY_FIRST_MS;
	replicas = lappend(replicas, replica);
	MemoryContextSwitchTo(oldcontext);
	return replica;
}

/*
 * What a launcher before us has left.
 */
static void
take_over(void)
{
	for (int i = 0; i < pyr_status_places(); i++)
	{
		char	   *key = pyr_status_key(i);

		if (key != NULL)
			(void) add_replica(key, i);
	}
}

/*
 * Takes the settings in: which replicas there are.
 */
static void
list_replicas(void)
{
	ListCell   *cell;

	foreach(cell, replicas)
	{
		Replica    *replica = lfirst(cell);

		replica->is_listed = false;
		replica->start_after = 0;
		replica->retry_ms = RETRY_FIRST_MS;
		forget_complaint(replica);
	}
	foreach(cell, pyr_replicas_listed())
	{
		Replica    *replica = find_replica(lfirst(cell));

		if (replica == NULL)
			replica = add_replica(lfirst(cell), NO_PLACE);
		replica->is_listed = true;
	}
}

/*
 * Settings that somebody may believe to be in force.
 */
static void
tell_unlisted(void)
{
	List	   *names = pyr_replicas_unlisted();
	ListCell   *cell;
	MemoryContext oldcontext;

	foreach(cell, names)
	{
		char	   *name = lfirst(cell);

		if (!list_member_ptr(unlisted, name))
			ereport(LOG,
					(errmsg("pyreplica: there are settings of a replica \"%s\", but it is not in pyreplica.replicas",
							name),
					 errhint("Put it there, or remove the settings pyreplica_%s.*.",
							 name)));
	}
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	list_free(unlisted);
	unlisted = list_copy(names);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Does what is to be done now for that replica; returns like manage_worker.
 */
static long
manage(Replica *replica)
{
	if (!replica->is_listed)
	{
		if (replica->place != NO_PLACE)
			pyr_status_use(replica->place);
		if (is_worker_running(replica))
			return replica->is_adopted ? POLL_MS : -1;
		if (replica->place != NO_PLACE)
			pyr_status_release(replica->place);
		forget_complaint(replica);
		replicas = list_delete_ptr(replicas, replica);
		pfree(replica);
		return -1;
	}

	(void) pyr_replicas_use(replica->key);
	if (replica->place == NO_PLACE)
		replica->place = pyr_status_reserve(replica->key);
	if (replica->place != NO_PLACE)
		pyr_status_use(replica->place);
	return manage_worker(replica);
}

static long
manage_all(void)
{
	long		timeout_ms = -1;
	List	   *todo = list_copy(replicas);
	ListCell   *cell;

	foreach(cell, todo)
	{
		long		left_ms = manage(lfirst(cell));

		if (left_ms >= 0 && (timeout_ms < 0 || left_ms < timeout_ms))
			timeout_ms = left_ms;
	}
	return timeout_ms;
}

void
pyr_launcher_main(Datum arg pg_attribute_unused())
{
	MemoryContext context;
	bool		is_news = true;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	context = AllocSetContextCreate(TopMemoryContext, "pyreplica launcher",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	take_over();
	for (;;)
	{
		long		timeout_ms;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			is_news = true;
		}

		MemoryContextSwitchTo(context);
		if (is_news)
		{
			list_replicas();
			tell_unlisted();
			is_news = false;
		}
		timeout_ms = manage_all();
		MemoryContextReset(context);

		pgstat_report_activity(STATE_IDLE, NULL);
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
						 (timeout_ms >= 0 ? WL_TIMEOUT : 0),
						 timeout_ms, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
