/*-------------------------------------------------------------------------
 *
 * ddl.h
 *	  Statements that are carried out for the database's owner: those that the
 *	  master passes on, and definitions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_DDL_H
#define PYR_DDL_H

#include "common/decode.h"

extern void pyr_ddl_execute(const char *sql, const char *lock_timeout);
extern bool pyr_ddl_apply(PyrChange *change, int encoding);
extern void pyr_ddl_begin_window(void);
extern bool pyr_ddl_is_waiting(void);
extern void pyr_ddl_run_ahead(void);
extern char *pyr_ddl_describe(PyrChange *change, int encoding);

#endif							/* PYR_DDL_H */
