/*-------------------------------------------------------------------------
 *
 * origin.h
 *	  The master, as its slave talks to it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_ORIGIN_H
#define PYR_ORIGIN_H

#include "access/xlogdefs.h"
#include "nodes/pg_list.h"
#include "slave/position.h"
#include "slave/remote.h"

typedef struct PyrOrigin
{
	PyrRemote  *remote;
	MemoryContext context;
	char	   *conninfo;		/* as it was when we connected */
	char	   *schema;			/* of the extension there, quoted */
	char	   *database;		/* OID of the one there */
	int			encoding;		/* of the database there */
	bool		can_leave_out;	/* what we do not want is left out there */
	bool		is_announced;	/* writers there know that we may sleep */
	int			slaves;			/* connected there when we last confirmed */
	bool		begins_anew;	/* the log was let go for us; all tables are to be
								 * made equal from the position on */
} PyrOrigin;

/* arguments of a py_log_fetch that can leave out */
#define PYR_FETCH_ARGS	6

extern const PyrRemoteFunctions *pyr_remote(void);

extern PyrOrigin *pyr_origin_open(const char *conninfo, const char *replica,
								  PyrPosition *position,
								  PyrRemoteGiveUp give_up, char **error);
extern void pyr_origin_close(PyrOrigin *origin);
extern bool pyr_origin_rows(PyrOrigin *origin, const char *sql, List **rows);

extern bool pyr_origin_clock(PyrOrigin *origin, int64 *ahead_us,
							 int64 *doubt_us);
extern bool pyr_origin_announce(PyrOrigin *origin, bool *may_sleep);
extern bool pyr_origin_awake(PyrOrigin *origin);
extern bool pyr_origin_confirm(PyrOrigin *origin, const char *replica,
							   PyrPosition *position);
extern bool pyr_origin_rotate(PyrOrigin *origin);

#endif							/* PYR_ORIGIN_H */
