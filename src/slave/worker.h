/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  One replica's worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_WORKER_H
#define PYR_WORKER_H

#include "postmaster/bgworker.h"

/* what the launcher tells it, in bgw_extra; its place comes as argument */
typedef struct PyrWorkerStart
{
	char		key[NAMEDATALEN];	/* the replica's name in the settings */
	char		database[NAMEDATALEN];
} PyrWorkerStart;

StaticAssertDecl(sizeof(PyrWorkerStart) <= BGW_EXTRALEN,
				 "PyrWorkerStart does not fit into bgw_extra");

extern PGDLLEXPORT void pyr_worker_main(Datum arg);

#endif							/* PYR_WORKER_H */
