/*-------------------------------------------------------------------------
 *
 * skip.h
 *	  A transaction that cannot be applied: what is kept of it, and how it is
 *	  passed over.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_SKIP_H
#define PYR_SKIP_H

#include "common/decode.h"
#include "slave/history.h"
#include "utils/elog.h"

/* so many changes of a transaction that fails are kept for people to see */
#define PYR_FAILURE_CHANGES_MAX	1000

extern void pyr_skip_load(void);
extern bool pyr_skip_is_pending(void);
extern bool pyr_skip_has_failure(void);
extern bool pyr_skip_wants(const PyrTransaction *transaction, int64 number);
extern void pyr_skip_record(PyrHistory *history, PyrChange *change,
							int encoding, const PyrTransaction *transaction);
extern void pyr_skip_finish(const char *snapshot);

extern bool pyr_failure_keep(const PyrTransaction *transaction, int64 number,
							 ErrorData *error);
extern void pyr_failure_keep_change(int64 number, PyrChange *change,
									int encoding);
extern void pyr_failure_keep_count(int64 count);
extern bool pyr_failure_is_kept(void);
extern bool pyr_failure_table(char **schema, char **table);

#endif							/* PYR_SKIP_H */
