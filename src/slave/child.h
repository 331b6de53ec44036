/*-------------------------------------------------------------------------
 *
 * child.h
 *	  A program that runs beside the worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_CHILD_H
#define PYR_CHILD_H

#include "storage/fd.h"

extern void pyr_child_start(const char *path, const char *const *argv,
							char **environment);
extern bool pyr_child_exists(void);
extern bool pyr_child_is_running(void);
extern char *pyr_child_failure(void);
extern File pyr_child_output(void);
extern void pyr_child_end(void);

#endif							/* PYR_CHILD_H */
