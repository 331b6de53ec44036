/*-------------------------------------------------------------------------
 *
 * wal.c
 *	  The server's write-ahead log.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "common/wal.h"
#include "fmgr.h"
#include "utils/pg_lsn.h"

PG_FUNCTION_INFO_V1(py_log_flush);

/*
 * Makes everything safe that has been written to the write-ahead log so far,
 * and says how far that is.
 *
 * On the master this goes with each look at the log.  What a slave sees must
 * not be taken back by a crash: commits that are visible before they are
 * flushed (synchronous_commit = off), and also the mere numbers of
 * transactions that have ended, which a crash could give out a second time, to
 * transactions that the slave would then believe to have seen.  On the slave,
 * what the master is told of must be safe.
 */
XLogRecPtr
pyr_wal_flush(void)
{
	XLogRecPtr	here;

	/*
	 * At the end of a page the insert position is already behind the next
	 * page's header, which nobody has written yet.
	 */
	here = GetXLogInsertRecPtr();
	if (here % XLOG_BLCKSZ == SizeOfXLogShortPHD ||
		XLogSegmentOffset(here, wal_segment_size) == SizeOfXLogLongPHD)
		here -= here % XLOG_BLCKSZ;

	XLogFlush(here);
	return here;
}

/*
 * py_log_flush() -> pg_lsn
 *
 * The same for SQL.
 */
Datum
py_log_flush(PG_FUNCTION_ARGS)
{
	PG_RETURN_LSN(pyr_wal_flush());
}
