/*-------------------------------------------------------------------------
 *
 * schema.h
 *	  Creates what is missing on the slave from the master's definitions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_SCHEMA_H
#define PYR_SCHEMA_H

#include "slave/origin.h"

extern void pyr_schema_load(void);
extern void pyr_schema_work(PyrOrigin *origin);
extern bool pyr_schema_is_due(void);
extern long pyr_schema_due_ms(void);
extern void pyr_schema_retry(void);
extern void pyr_schema_give_up(void);

#endif							/* PYR_SCHEMA_H */
