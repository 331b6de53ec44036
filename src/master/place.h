/*-------------------------------------------------------------------------
 *
 * place.h
 *	  Where the log is: its inner tables and their indexes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_PLACE_H
#define PYR_PLACE_H

#define PYR_INNER_TABLES	3

/* the columns of replica_log, in order */
enum
{
	PYR_COL_COMMITNO,
	PYR_COL_XID,
	PYR_COL_AT,
	PYR_COL_PART,
	PYR_COL_USERNAME,
	PYR_COL_ORIGIN,
	PYR_COL_SNAPSHOT,
	PYR_COL_CHANGES,
	PYR_NCOLS
};

/* in the column origin: changes were first made on several nodes */
#define PYR_ORIGIN_MIXED	"*"

typedef struct PyrPlace
{
	bool		valid;
	Oid			schema;
	Oid			current;		/* the sequence that tells the inner table */
	int			number;			/* which it tells, from 0 */
	Oid			tables[PYR_INNER_TABLES];
	Oid			xid_indexes[PYR_INNER_TABLES];
	Oid			mark_indexes[PYR_INNER_TABLES];
} PyrPlace;

extern const PyrPlace *pyr_place_find(Oid schema);

#endif							/* PYR_PLACE_H */
