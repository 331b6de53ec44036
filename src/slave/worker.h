/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  One replica's worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_WORKER_H
#define PYR_WORKER_H

extern PGDLLEXPORT void pyr_worker_main(Datum arg);

#endif							/* PYR_WORKER_H */
