/*-------------------------------------------------------------------------
 *
 * look.h
 *	  The slave's rows that a change meets.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_LOOK_H
#define PYR_LOOK_H

#include "slave/author.h"
#include "slave/statement.h"

/* a row of the slave, locked */
typedef struct PyrFound
{
	Oid			relid;			/* the partition that it is in */
	char	   *ctid;
	char	   *row;			/* as JSON */
	PyrAuthor	author;
	bool		is_expected;	/* it is what the change says it was; or there
								 * is nothing to say otherwise */
	bool		has_same_key;	/* as the change */
	bool		is_comparable;	/* the column that tells is set by the change */
	bool		is_earlier;		/* and what is here is earlier ... */
	bool		is_later;		/* ... or later */
	const char *index;			/* of the first unique value that collides */
} PyrFound;

extern PyrFound *pyr_look_at_row(const PyrRowChange *change, int encoding);
extern List *pyr_look_for_collisions(const PyrRowChange *change, int encoding,
									 int *nindexes);
extern bool pyr_look_can_collide(const PyrRowChange *change);
extern void pyr_look_describe(const PyrRowChange *change, int encoding,
							  char **row, char **key);

#endif							/* PYR_LOOK_H */
