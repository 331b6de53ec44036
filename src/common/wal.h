/*-------------------------------------------------------------------------
 *
 * wal.h
 *	  The server's write-ahead log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_WAL_H
#define PYR_WAL_H

#include "access/xlogdefs.h"

extern XLogRecPtr pyr_wal_flush(void);

#endif							/* PYR_WAL_H */
