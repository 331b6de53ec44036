/*-------------------------------------------------------------------------
 *
 * copyworker.c
 *	  Processes that write chunks of tables beside the replica's worker, so that
 *	  several tables are copied at a time.
 *
 * The worker reads the chunks of several tables together, in one transaction of
 * the master.  Once it has applied the window's changes it hands each chunk but
 * one to a copy worker, through a queue in shared memory, and writes that one
 * itself.
 *
 * A copy worker writes the rows and the table's new bookmark in a transaction of
 * its own, which must not be committed unless the worker's is, with the changes
 * and the position that the rows belong to.  So before it commits, it waits for
 * the end of the worker's transaction and looks what became of it; and the worker
 * applies nothing else before the copy worker has ended its own.  If the server
 * dies between the two commits, the rows are missing and the bookmark is the one
 * before: that chunk is copied again.
 *
 * The wait is one for a transaction's lock, so if the two ever wait for one
 * another (say because of triggers of their tables), the server notices.  What
 * the copy worker writes can wait for the worker's changes of the same table,
 * that is all: the worker does not touch the table any more in this transaction.
 *
 * While a copy worker lives it holds a lock, which it has before it can be given
 * anything to do.  A new worker takes this lock first of all: then what the one
 * before it had begun has ended one way or the other.
 *
 * A copy worker that cannot be started, or ends, costs time, nothing else: the
 * worker copies by itself what nobody takes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/hashfn.h"
#include "common/node.h"
#include "common/replicas.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "pyreplica.h"
#include "slave/author.h"
#include "slave/copy.h"
#include "slave/copyworker.h"
#include "slave/local.h"
#include "slave/worker.h"
#include "storage/dsm.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/shm_mq.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* rows on their way: some tens of milliseconds of them */
#define JOBS_BYTES		(1024 * 1024)
#define ANSWERS_BYTES	(16 * 1024)

/* after something went wrong, the worker copies alone for so long */
#define REST_MS			10000

/* the kind of the lock; SQL's advisory locks are 1 and 2 */
#define LOCK_KIND		3

/* begins the shared memory of worker and copy worker; the queues follow */
typedef struct Shared
{
	char		replica[NAMEDATALEN];
	PyrWorkerStart start;		/* the worker's own */
	char		node[PYR_NODE_BYTES];	/* the master */
	int			number;			/* of the copy worker */
} Shared;

#define JOBS_OFFSET		MAXALIGN(sizeof(Shared))
#define ANSWERS_OFFSET	(JOBS_OFFSET + JOBS_BYTES)
#define SHARED_BYTES	(ANSWERS_OFFSET + ANSWERS_BYTES)

/* a copy worker, as the worker knows it */
struct PyrCopyWorker
{
	BackgroundWorkerHandle *handle;
	dsm_segment *segment;
	shm_mq_handle *jobs;		/* a job's head, its blocks of rows, and an empty
								 * message */
	shm_mq_handle *answers;
	bool		is_busy;
	bool		is_gone;
	PyrSupplement *rows;		/* still to be sent; NULL: all are */
	const char *data;			/* the block being sent; NULL: the end is */
	size_t		len;
};

static PyrCopyWorker *workers[PYR_COPY_WORKERS_MAX];
static TimestampTz start_after = 0;
static const char *last_complaint = NULL;

static void
set_tag(LOCKTAG *tag, const char *replica)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, PYR_LOCK_COPY,
						 string_hash(replica, NAMEDATALEN), LOCK_KIND);
}

/* ---- the worker's side ---- */

/*
 * Waits until no copy worker of the replica is left that was started by a worker
 * before us.
 */
void
pyr_copyworkers_wait_gone(const char *replica)
{
	LOCKTAG		tag;

	pyr_local_begin_transaction();
	set_tag(&tag, replica);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	pyr_local_commit_transaction();
}

static void
forget_complaint(void)
{
	if (last_complaint != NULL)
		pfree(unconstify(char *, last_complaint));
	last_complaint = NULL;
}

/*
 * For some time the worker copies alone; says why, once.
 */
void
pyr_copyworkers_rest(const char *why)
{
	start_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), REST_MS);
	if (last_complaint != NULL && strcmp(last_complaint, why) == 0)
		return;
	forget_complaint();
	last_complaint = MemoryContextStrdup(TopMemoryContext, why);
	ereport(LOG,
			(errmsg("pyreplica %s: tables are copied one at a time for now: %s",
					pyr_local_replica(), why),
			 errhidestmt(true), errhidecontext(true)));
}

static void
forget(int i)
{
	PyrCopyWorker *worker = workers[i];

	workers[i] = NULL;
	dsm_detach(worker->segment);	/* and with it the queues */
	pfree(worker->handle);
	pfree(worker);
}

/*
 * Lets go of all copy workers, which then end.
 */
void
pyr_copyworkers_end(void)
{
	for (int i = 0; i < PYR_COPY_WORKERS_MAX; i++)
	{
		if (workers[i] != NULL)
			forget(i);
	}
}

/*
 * Memory to share; NULL: there is none now.
 */
static dsm_segment *
create_segment(void)
{
	MemoryContext context = CurrentMemoryContext;
	dsm_segment *volatile segment = NULL;

	PG_TRY();
	{
		segment = dsm_create(SHARED_BYTES, DSM_CREATE_NULL_IF_MAXSEGMENTS);
		if (segment == NULL)
			pyr_copyworkers_rest("too many shared memory segments are in use");
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		pyr_copyworkers_rest(error->message);
	}
	PG_END_TRY();
	return segment;
}

static void
start(int i, const char *replica)
{
	BackgroundWorker bgw;
	MemoryContext oldcontext;
	PyrCopyWorker *worker;
	dsm_segment *segment;
	Shared	   *shared;
	shm_mq	   *jobs;
	shm_mq	   *answers;

	segment = create_segment();
	if (segment == NULL)
		return;
	dsm_pin_mapping(segment);
	shared = dsm_segment_address(segment);
	strlcpy(shared->replica, replica, NAMEDATALEN);
	strlcpy(shared->node, pyr_node_origin() ? pyr_node_origin() : "",
			PYR_NODE_BYTES);
	shared->number = i + 1;
	memcpy(&shared->start, MyBgworkerEntry->bgw_extra, sizeof(shared->start));

	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	worker = palloc0(sizeof(PyrCopyWorker));
	worker->segment = segment;
	jobs = shm_mq_create((char *) shared + JOBS_OFFSET, JOBS_BYTES);
	shm_mq_set_sender(jobs, MyProc);
	worker->jobs = shm_mq_attach(jobs, segment, NULL);
	answers = shm_mq_create((char *) shared + ANSWERS_OFFSET, ANSWERS_BYTES);
	shm_mq_set_receiver(answers, MyProc);
	worker->answers = shm_mq_attach(answers, segment, NULL);

	memset(&bgw, 0, sizeof(bgw));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw.bgw_restart_time = BGW_NEVER_RESTART;
	bgw.bgw_notify_pid = MyProcPid;
	bgw.bgw_main_arg = UInt32GetDatum(dsm_segment_handle(segment));
	strlcpy(bgw.bgw_library_name, PYR_EXTENSION, sizeof(bgw.bgw_library_name));
	strlcpy(bgw.bgw_function_name, "pyr_copyworker_main", BGW_MAXLEN);
	snprintf(bgw.bgw_name, BGW_MAXLEN, "pyreplica copy worker %s", replica);
	strlcpy(bgw.bgw_type, "pyreplica copy worker", BGW_MAXLEN);
	if (RegisterDynamicBackgroundWorker(&bgw, &worker->handle))
		workers[i] = worker;
	else
	{
		dsm_detach(segment);
		pfree(worker);
		pyr_copyworkers_rest("no background worker slot is free (max_worker_processes)");
	}
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Whether it can be given something to do: it has attached to both queues.
 */
static bool
is_ready(PyrCopyWorker *worker)
{
	return shm_mq_get_receiver(shm_mq_get_queue(worker->jobs)) != NULL;
}

static bool
is_stopped(PyrCopyWorker *worker)
{
	pid_t		pid;

	return worker->is_gone ||
		GetBackgroundWorkerPid(worker->handle, &pid) == BGWH_STOPPED;
}

/*
 * Starts the copy workers that are missing, without waiting for them, and tells
 * how many can be given something to do.
 */
int
pyr_copyworkers_ready(const char *replica)
{
	int			nready = 0;

	for (int i = 0; i < PYR_COPY_WORKERS_MAX; i++)
	{
		if (workers[i] != NULL && is_stopped(workers[i]))
		{
			forget(i);
			pyr_copyworkers_rest("a copy worker has ended");
		}
		if (workers[i] != NULL && i >= copy_workers)
			forget(i);
		if (workers[i] == NULL && i < copy_workers &&
			start_after <= GetCurrentTimestamp())
			start(i, replica);
		if (workers[i] != NULL && is_ready(workers[i]) &&
			start_after <= GetCurrentTimestamp())
			nready++;
	}
	return nready;
}

/*
 * Strings travel with their end; a null one as nothing.
 */
static void
put_string(StringInfo message, const char *string)
{
	pq_sendbyte(message, string != NULL);
	if (string != NULL)
		appendBinaryStringInfo(message, string, strlen(string) + 1);
}

static char *
get_string(StringInfo message)
{
	if (!pq_getmsgbyte(message))
		return NULL;
	return pstrdup(pq_getmsgrawstring(message));
}

/*
 * What a copy worker has to know: of the current transaction, of the layout, and
 * of the table as it will be once the rows are there.
 */
static void
put_job(StringInfo message, PyrLayout *layout, PyrTable *table)
{
	ListCell   *cell;

	pq_sendint32(message, GetTopTransactionId());
	put_string(message, layout->here);
	pq_sendint32(message, layout->relid);
	pq_sendbyte(message, layout->relkind);
	pq_sendbyte(message, layout->is_binary);
	pq_sendint32(message, list_length(layout->columns));
	foreach(cell, layout->columns)
		put_string(message, lfirst(cell));

	put_string(message, table->key);
	put_string(message, NameStr(table->name.schema));
	put_string(message, NameStr(table->name.table));
	pq_sendint32(message, table->trigger);
	pq_sendint32(message, table->filter);
	pq_sendint32(message, table->state);
	pq_sendint64(message, table->rows_copied);
	pq_sendint64(message, table->rows_expected);
	pq_sendint64(message, table->started_at);
	pq_sendint32(message, table->nbookmark);
	for (int i = 0; i < table->nbookmark; i++)
		put_string(message, table->bookmark[i]);
}

/*
 * Hands the rows to a copy worker; NULL: none can take them.  The table is as it
 * will be once they are there.  In the worker's transaction, after its changes;
 * pyr_copyworkers_feed is to be called often until they are finished.
 */
PyrCopyWorker *
pyr_copyworker_begin(PyrLayout *layout, PyrTable *table, PyrSupplement *rows)
{
	for (int i = 0; i < PYR_COPY_WORKERS_MAX; i++)
	{
		PyrCopyWorker *worker = workers[i];
		StringInfoData message;

		if (worker == NULL || worker->is_busy || worker->is_gone ||
			!is_ready(worker))
			continue;
		initStringInfo(&message);
		put_job(&message, layout, table);
		if (pyr_mq_send(worker->jobs, message.len, message.data,
						false) != SHM_MQ_SUCCESS)
		{
			worker->is_gone = true;
			continue;
		}
		worker->is_busy = true;
		worker->rows = rows;
		worker->len = 0;
		worker->data = "";
		pfree(message.data);
		return worker;
	}
	return NULL;
}

/*
 * Sends what the queue has room for.
 */
static void
feed(PyrCopyWorker *worker)
{
	while (worker->rows != NULL)
	{
		shm_mq_result result;

		if (worker->data != NULL && worker->len == 0 &&
			!pyr_supplement_next(worker->rows, &worker->data, &worker->len))
			worker->data = NULL;
		result = pyr_mq_send(worker->jobs, worker->len, worker->data, true);
		if (result == SHM_MQ_WOULD_BLOCK)
			return;
		if (result == SHM_MQ_DETACHED)
			worker->is_gone = true;
		if (result == SHM_MQ_DETACHED || worker->data == NULL)
			worker->rows = NULL;
		worker->len = 0;
	}
}

/*
 * Goes on sending, without waiting.
 */
void
pyr_copyworkers_feed(void)
{
	for (int i = 0; i < PYR_COPY_WORKERS_MAX; i++)
	{
		if (workers[i] != NULL && workers[i]->rows != NULL)
			feed(workers[i]);
	}
}

static PyrCopyOutcome
read_answer(void *data, Size len)
{
	PyrCopyOutcome outcome = {.is_known = true};
	StringInfoData message;
	int			sqlerrcode;

	initStringInfo(&message);
	appendBinaryStringInfo(&message, data, len);
	outcome.ms = pq_getmsgint(&message, 4);
	sqlerrcode = pq_getmsgint(&message, 4);
	if (sqlerrcode == 0)
		return outcome;
	outcome.error = palloc0(sizeof(ErrorData));
	outcome.error->elevel = ERROR;
	outcome.error->sqlerrcode = sqlerrcode;
	outcome.error->message = get_string(&message);
	outcome.error->detail = get_string(&message);
	outcome.error->hint = get_string(&message);
	return outcome;
}

/*
 * Waits until the copy worker's transaction has ended.  Ours has been committed.
 */
PyrCopyOutcome
pyr_copyworker_finish(PyrCopyWorker *worker)
{
	PyrCopyOutcome unknown = {0};
	shm_mq_result result;
	Size		len;
	void	   *data;

	for (;;)
	{
		pyr_copyworkers_feed();
		result = shm_mq_receive(worker->answers, &len, &data, true);
		if (result != SHM_MQ_WOULD_BLOCK)
			break;
		pyr_window_fetch_wait();
	}
	worker->is_busy = false;
	worker->rows = NULL;
	if (result == SHM_MQ_SUCCESS)
	{
		forget_complaint();
		return read_answer(data, len);
	}
	worker->is_gone = true;
	return unknown;
}

/* ---- the copy worker ---- */

/* what it was given to do */
typedef struct Job
{
	TransactionId xid;			/* that has to be committed first */
	PyrLayout	layout;			/* as far as it is needed to write */
	PyrTable	table;
} Job;

static shm_mq_handle *jobs;
static shm_mq_handle *answers;
static bool has_all_rows;

/*
 * The next message; stays until the one after.  False: the worker is gone.
 */
static bool
receive(const char **data, size_t *len)
{
	Size		nbytes;
	void	   *message;

	if (shm_mq_receive(jobs, &nbytes, &message, false) != SHM_MQ_SUCCESS)
		return false;
	*data = message;
	*len = nbytes;
	return true;
}

/*
 * A PyrCopyNext.
 */
static bool
next_rows(void *arg pg_attribute_unused(), const char **data, size_t *len)
{
	if (has_all_rows)
		return false;
	if (!receive(data, len))
	{
		has_all_rows = true;
		ereport(ERROR,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("the worker that rows are copied for has ended")));
	}
	has_all_rows = *len == 0;
	return !has_all_rows;
}

static void
skip_rows(void)
{
	const char *data;
	size_t		len;

	while (!has_all_rows && receive(&data, &len))
		has_all_rows = len == 0;
}

static Job *
read_job(const char *data, size_t len)
{
	StringInfoData message;
	Job		   *job = palloc0(sizeof(Job));
	PyrLayout  *layout = &job->layout;
	PyrTable   *table = &job->table;
	int			ncolumns;

	initStringInfo(&message);
	appendBinaryStringInfo(&message, data, len);
	job->xid = pq_getmsgint(&message, 4);
	layout->table = table;
	layout->here = get_string(&message);
	layout->relid = pq_getmsgint(&message, 4);
	layout->relkind = pq_getmsgbyte(&message);
	layout->is_binary = pq_getmsgbyte(&message);
	ncolumns = pq_getmsgint(&message, 4);
	for (int i = 0; i < ncolumns; i++)
		layout->columns = lappend(layout->columns, get_string(&message));

	table->key = get_string(&message);
	namestrcpy(&table->name.schema, get_string(&message));
	namestrcpy(&table->name.table, get_string(&message));
	table->trigger = pq_getmsgint(&message, 4);
	table->filter = pq_getmsgint(&message, 4);
	table->state = pq_getmsgint(&message, 4);
	table->rows_copied = pq_getmsgint64(&message);
	table->rows_expected = pq_getmsgint64(&message);
	table->started_at = pq_getmsgint64(&message);
	table->nbookmark = pq_getmsgint(&message, 4);
	if (table->nbookmark > 0)
		table->bookmark = palloc(table->nbookmark * sizeof(char *));
	for (int i = 0; i < table->nbookmark; i++)
		table->bookmark[i] = get_string(&message);
	return job;
}

static void
nothing_between(void)
{
}

/*
 * Writes the rows that come, in a transaction that is committed if and when the
 * worker's is.  Returns how many ms it took.
 */
static long
do_job(Job *job)
{
	TimestampTz begin = GetCurrentTimestamp();
	long		ms;

	pgstat_report_activity(STATE_RUNNING, pyr_copy_describe(&job->table));
	pyr_local_begin_transaction();
	pyr_local_constraints_immediate();
	pyr_copy_write(&job->layout, next_rows, NULL, nothing_between);
	skip_rows();
	if (job->table.state == PYR_TABLE_READY)
		job->table.finished_at = GetCurrentTimestamp();
	pyr_table_store(&job->table);
	ms = TimestampDifferenceMilliseconds(begin, GetCurrentTimestamp());

	XactLockTableWait(job->xid, NULL, NULL, XLTW_None);
	if (!TransactionIdDidCommit(job->xid))
		ereport(ERROR,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("the changes that the rows belong to were not committed")));
	pyr_local_commit_transaction();
	return ms;
}

static void
answer(long ms, ErrorData *error)
{
	StringInfoData message;

	initStringInfo(&message);
	pq_sendint32(&message, ms);
	pq_sendint32(&message, error ? error->sqlerrcode : 0);
	if (error != NULL)
	{
		put_string(&message, error->message);
		put_string(&message, error->detail);
		put_string(&message, error->hint);
	}
	(void) pyr_mq_send(answers, message.len, message.data, false);
}

/*
 * A job, and what became of it.
 */
static void
serve(const char *data, size_t len)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	volatile long ms = 0;
	Job		   *job = read_job(data, len);

	has_all_rows = false;
	PG_TRY();
	{
		ms = do_job(job);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	skip_rows();
	answer(ms, error);
	pgstat_report_activity(STATE_IDLE, "waiting for rows to copy");
}

/*
 * Takes the lock that tells of us, until we end.
 */
static void
hold_lock(const char *replica)
{
	LOCKTAG		tag;

	pyr_local_begin_transaction();
	set_tag(&tag, replica);
	(void) LockAcquire(&tag, ShareLock, true, false);
	pyr_local_commit_transaction();
}

static void
attach_queues(dsm_segment *segment)
{
	char	   *shared = dsm_segment_address(segment);
	shm_mq	   *jobs_queue = (shm_mq *) (shared + JOBS_OFFSET);
	shm_mq	   *answers_queue = (shm_mq *) (shared + ANSWERS_OFFSET);

	/* the worker looks at the last one of these */
	shm_mq_set_sender(answers_queue, MyProc);
	answers = shm_mq_attach(answers_queue, segment, NULL);
	shm_mq_set_receiver(jobs_queue, MyProc);
	jobs = shm_mq_attach(jobs_queue, segment, NULL);
}

/*
 * Entry point of a copy worker; the argument tells the shared memory.
 */
void
pyr_copyworker_main(Datum arg)
{
	dsm_segment *segment;
	Shared	   *shared;
	MemoryContext context;
	const char *data;
	size_t		len;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	segment = dsm_attach(DatumGetUInt32(arg));
	if (segment == NULL)
		proc_exit(0);			/* the worker is gone already */
	shared = dsm_segment_address(segment);
	if (!pyr_replicas_use(shared->start.key))
		proc_exit(0);
	BackgroundWorkerInitializeConnection(shared->start.database, NULL, 0);
	pyr_local_begin_session(shared->replica);
	pyr_local_ensure_extension();
	hold_lock(shared->replica);
	pyr_local_begin_transaction();
	pyr_tables_load(shared->replica);
	if (!pyr_author_begin_copy(shared->replica, shared->number))
		proc_exit(0);
	pyr_local_commit_transaction();
	if (shared->node[0] != '\0')
		pyr_node_follow(shared->node);
	attach_queues(segment);
	pgstat_report_activity(STATE_IDLE, "waiting for rows to copy");

	context = AllocSetContextCreate(TopMemoryContext, "pyreplica copy job",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	while (receive(&data, &len))
	{
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			if (!pyr_replicas_use(shared->start.key))
				break;
		}
		serve(data, len);
		MemoryContextReset(context);
	}
	proc_exit(0);
}
