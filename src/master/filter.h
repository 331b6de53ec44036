/*-------------------------------------------------------------------------
 *
 * filter.h
 *	  Which rows of a table are logged.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_FILTER_H
#define PYR_FILTER_H

#include "executor/tuptable.h"
#include "utils/rel.h"

typedef struct PyrFilter PyrFilter;

extern PyrFilter *pyr_filter_create(Relation rel, const char *condition);
extern bool pyr_filter_admits(PyrFilter *filter, TupleTableSlot *row);

#endif							/* PYR_FILTER_H */
