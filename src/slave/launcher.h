/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  Who starts and restarts the replicas' workers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_LAUNCHER_H
#define PYR_LAUNCHER_H

extern void pyr_launcher_register(void);
extern PGDLLEXPORT void pyr_launcher_main(Datum arg);

#endif							/* PYR_LAUNCHER_H */
