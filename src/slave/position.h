/*-------------------------------------------------------------------------
 *
 * position.h
 *	  Where a replica stands.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_POSITION_H
#define PYR_POSITION_H

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"

typedef struct PyrPosition
{
	char	   *system_identifier;	/* of the master; NULL: not known yet */
	char	   *snapshot;		/* text of a pg_snapshot; NULL: none yet */
	XLogRecPtr	wal;			/* the master's, when it was so */
	char	   *stored;			/* the snapshot in pyreplica_position, if any */
	XLogRecPtr	stored_wal;		/* and what belongs to it */
	char	   *confirmed;		/* what the master surely remembers, or NULL */
	TimestampTz began_at;		/* when the first one was stored; 0: not yet */
} PyrPosition;

extern void pyr_position_load(const char *replica, PyrPosition *position);
extern void pyr_position_load_dump(const char *replica, PyrPosition *position);
extern void pyr_position_store(const char *replica, PyrPosition *position);
extern void pyr_position_advance(PyrPosition *position, const char *snapshot,
								 XLogRecPtr wal);
extern void pyr_position_rewind(PyrPosition *position);
extern void pyr_position_confirmed(PyrPosition *position);
extern void pyr_position_store_confirmed(const char *replica,
										 PyrPosition *position);

#endif							/* PYR_POSITION_H */
