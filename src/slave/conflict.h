/*-------------------------------------------------------------------------
 *
 * conflict.h
 *	  Changes that meet rows which they do not expect.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_CONFLICT_H
#define PYR_CONFLICT_H

#include "slave/history.h"
#include "slave/statement.h"

/* of one window */
typedef struct PyrConflicts
{
	const char *master;			/* its system identifier */
	int			encoding;		/* of the changes */
	PyrHistory	history;
} PyrConflicts;

extern bool pyr_conflict_change(PyrConflicts *conflicts,
								const PyrRowChange *change,
								const PyrTransaction *transaction);
extern char *pyr_describe_key(PyrChange *change, int encoding);

#endif							/* PYR_CONFLICT_H */
