/*-------------------------------------------------------------------------
 *
 * foreign.h
 *	  What other servers may have already of the master's changes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_FOREIGN_H
#define PYR_FOREIGN_H

#include "slave/target.h"

extern bool pyr_foreign_may_be_made(PyrTarget *target);
extern bool pyr_foreign_is_first(void);
extern void pyr_foreign_window_applied(void);
extern void pyr_foreign_in_step(void);

#endif							/* PYR_FOREIGN_H */
