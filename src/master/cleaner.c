/*-------------------------------------------------------------------------
 *
 * cleaner.c
 *	  Keeps the log small while no slave does.
 *
 * Slaves empty the log, with py_log_rotate.  If all are away, and the log must
 * not grow beyond pyreplica.max_backlog, somebody else has to.  A session that
 * commits is not the one: it would need locks until its transaction ends, and
 * must not fail because of this.  But it sees how large the log is, and can
 * start a process that does what a slave would do, and ends.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/config.h"
#include "executor/spi.h"
#include "master/cleaner.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "pyreplica.h"
#include "storage/bufmgr.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* it is asked for each time that the log has grown by this part */
#define ASK_FRACTION	32

static void
start_cleaner(Oid schema)
{
	BackgroundWorker cleaner;

	memset(&cleaner, 0, sizeof(cleaner));
	cleaner.bgw_flags = BGWORKER_SHMEM_ACCESS |
		BGWORKER_BACKEND_DATABASE_CONNECTION;
	cleaner.bgw_start_time = BgWorkerStart_RecoveryFinished;
	cleaner.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(cleaner.bgw_library_name, PYR_EXTENSION, sizeof(cleaner.bgw_library_name));
	strlcpy(cleaner.bgw_function_name, "pyr_cleaner_main", BGW_MAXLEN);
	strlcpy(cleaner.bgw_name, "pyreplica cleaner", BGW_MAXLEN);
	strlcpy(cleaner.bgw_type, "pyreplica cleaner", BGW_MAXLEN);
	cleaner.bgw_main_arg = ObjectIdGetDatum(schema);
	memcpy(cleaner.bgw_extra, &MyDatabaseId, sizeof(Oid));

	/* if no slot is free, the next one asks again */
	(void) RegisterDynamicBackgroundWorker(&cleaner, NULL);
}

/*
 * Called when a transaction's entries were written into the inner table, which had
 * so many blocks before.
 */
void
pyr_cleaner_notice(Relation inner_table, BlockNumber before)
{
	BlockNumber limit = Max(max_backlog_kb / (BLCKSZ / 1024), ASK_FRACTION);
	BlockNumber step = limit / ASK_FRACTION;
	BlockNumber nblocks;

	if (max_backlog_kb == 0)
		return;
	nblocks = RelationGetNumberOfBlocks(inner_table);

	/* py_log_turn turns at a quarter, so until then nothing can be emptied */
	if (nblocks >= limit / 4 && nblocks / step != before / step)
		start_cleaner(RelationGetNamespace(inner_table));
}

/*
 * Entry point of the process; the argument is the log's schema.
 */
void
pyr_cleaner_main(Datum arg)
{
	Oid			database;
	char	   *schema;

	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	memcpy(&database, MyBgworkerEntry->bgw_extra, sizeof(Oid));
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);

	/* py_log_rotate needs it, whatever is set for the database */
	SetConfigOption("default_transaction_isolation", "read committed",
					PGC_SUSET, PGC_S_OVERRIDE);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, "emptying replica_log");
	schema = get_namespace_name(DatumGetObjectId(arg));
	if (schema != NULL &&
		SPI_execute(psprintf("SELECT %s.py_log_rotate()",
							 quote_identifier(schema)), false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not empty replica_log");
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	proc_exit(0);
}
