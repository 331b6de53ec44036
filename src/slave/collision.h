/*-------------------------------------------------------------------------
 *
 * collision.h
 *	  Rows that are in the way of others.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_COLLISION_H
#define PYR_COLLISION_H

#include "nodes/bitmapset.h"
#include "utils/rel.h"

/* rows that are to come into a table */
typedef struct PyrNewcomers
{
	const char *query;			/* for them, their columns called as the table's */
	Bitmapset  *known;			/* attribute numbers of those columns */
	Bitmapset  *key;			/* of those that tell rows apart */
	int			nparams;		/* of the query */
	Oid		   *types;
	Datum	   *values;
	const char *nulls;
} PyrNewcomers;

extern bool pyr_is_collision(int sqlerrcode);
extern uint64 pyr_collision_clear(Relation rel, const PyrNewcomers *newcomers,
								  const char *where);

#endif							/* PYR_COLLISION_H */
