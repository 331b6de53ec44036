/*-------------------------------------------------------------------------
 *
 * writer.h
 *	  A transaction's stream of bytes into entries of replica_log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_WRITER_H
#define PYR_WRITER_H

#include "access/xlogdefs.h"

typedef struct PyrWriter PyrWriter;

extern PyrWriter *pyr_writer_begin(Oid schema, uint64 size,
									const char *origin);
extern void pyr_writer_bytes(void *arg, const char *data, size_t len);
extern void pyr_writer_end(PyrWriter *writer);

#endif							/* PYR_WRITER_H */
