/*-------------------------------------------------------------------------
 *
 * target.h
 *	  Where changes of one shape go on the slave, and the plan for them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_TARGET_H
#define PYR_TARGET_H

#include "common/decode.h"
#include "common/values.h"
#include "executor/spi.h"

/* how one value of a change becomes a parameter of the plan */
typedef struct PyrParam
{
	int			number;			/* of the parameter; -1: it is left out */
	PyrWire		wire;
	FmgrInfo	function;		/* receive or input function */
	Oid			ioparam;
	int32		typmod;
} PyrParam;

typedef struct PyrTarget
{
	bool		valid;			/* cleared by invalidation */
	MemoryContext context;
	Oid			relid;
	Oid			owner;
	SPIPlanPtr	plan;			/* NULL: there is nothing to do */
	int			nparams;
	PyrParam   *params;			/* one per value of a change */
	Datum	   *values;			/* of the plan's parameters */
	char	   *nulls;
} PyrTarget;

extern PyrTarget *pyr_target_get(PyrShape *shape);
extern void pyr_target_set_values(PyrTarget *target, PyrChange *change,
								  int encoding);

#endif							/* PYR_TARGET_H */
