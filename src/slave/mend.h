/*-------------------------------------------------------------------------
 *
 * mend.h
 *	  Makes rows that are here equal to the master's.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_MEND_H
#define PYR_MEND_H

#include "common/compat.h"
#include "slave/copy.h"
#include "slave/layout.h"
#include "slave/target.h"
#include "utils/rel.h"

extern void pyr_mend_range(PyrLayout *layout, Relation rel,
						   CopyFromState master, PyrCopyMode mode,
						   char **after, char **upto, void (*between) (void));
extern bool pyr_mend_make_room(PyrTable *table, PyrBinding *binding,
							   PyrChange *change, int encoding);

#endif							/* PYR_MEND_H */
