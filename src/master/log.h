/*-------------------------------------------------------------------------
 *
 * log.h
 *	  The running transaction's changes, and their way into replica_log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_LOG_H
#define PYR_LOG_H

#include "common/format.h"
#include "master/relinfo.h"

extern void pyr_log_init(void);
extern void pyr_log_begin_change(Oid schema);
extern Bitmapset *pyr_log_columns(PyrRelInfo *info, Bitmapset *changed);
extern void pyr_log_statement(Oid function, const char *const *values);
extern uint32 pyr_log_shape(PyrRelInfo *info, PyrVerb verb, Bitmapset *set);

#endif							/* PYR_LOG_H */
