/*-------------------------------------------------------------------------
 *
 * copyworker.h
 *	  Processes that write chunks of tables beside the replica's worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_COPYWORKER_H
#define PYR_COPYWORKER_H

#include "slave/fetch.h"
#include "slave/layout.h"
#include "slave/tables.h"

typedef struct PyrCopyWorker PyrCopyWorker;

/* what became of a chunk */
typedef struct PyrCopyOutcome
{
	bool		is_known;		/* false: the process has ended */
	ErrorData  *error;			/* why it was not written; NULL: it was */
	long		ms;				/* that writing it took */
} PyrCopyOutcome;

extern int	pyr_copyworkers_ready(const char *replica);
extern PyrCopyWorker *pyr_copyworker_begin(PyrLayout *layout,
										   PyrTable *table,
										   PyrSupplement *rows);
extern void pyr_copyworkers_feed(void);
extern PyrCopyOutcome pyr_copyworker_finish(PyrCopyWorker *worker);
extern void pyr_copyworkers_rest(const char *why);
extern void pyr_copyworkers_end(void);
extern void pyr_copyworkers_wait_gone(const char *replica);

extern PGDLLEXPORT void pyr_copyworker_main(Datum arg);

#endif							/* PYR_COPYWORKER_H */
