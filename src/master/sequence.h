/*-------------------------------------------------------------------------
 *
 * sequence.h
 *	  Where a sequence is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_SEQUENCE_H
#define PYR_SEQUENCE_H

#include "utils/relcache.h"

extern void pyr_sequence_read(Relation sequence, int64 *last_value,
							  bool *is_called);

#endif							/* PYR_SEQUENCE_H */
