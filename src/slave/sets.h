/*-------------------------------------------------------------------------
 *
 * sets.h
 *	  Merged changes into the slave's tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_SETS_H
#define PYR_SETS_H

#include "slave/merge.h"
#include "slave/target.h"

/* makes a change of a table that keeps order */
typedef void (*PyrMakeChange) (void *arg, PyrTarget *target, PyrVerb verb,
							   PyrMergeRow *row);

/* what is being done, for messages */
typedef struct PyrSets
{
	int			encoding;		/* of the values */
	PyrMakeChange make;
	void		(*between) (void);	/* called now and then */
	void	   *arg;
	PyrTarget  *target;			/* being changed; NULL: none */
	PyrVerb		verb;
	int			nrows;
} PyrSets;

extern bool pyr_sets_run(PyrSets *sets, PyrMerge *merge);

#endif							/* PYR_SETS_H */
