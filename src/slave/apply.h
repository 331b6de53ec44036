/*-------------------------------------------------------------------------
 *
 * apply.h
 *	  A window into the slave's tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_APPLY_H
#define PYR_APPLY_H

#include "slave/fetch.h"
#include "slave/position.h"

typedef struct PyrApplied
{
	int64		transactions;
	int64		rows;
	int64		conflicts;
	bool		fell_back;		/* could not be done in sets */
} PyrApplied;

extern PyrApplied pyr_apply_window(const char *replica, PyrWindow *window,
								   int encoding, PyrPosition *position);

#endif							/* PYR_APPLY_H */
