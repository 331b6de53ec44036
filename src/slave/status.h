/*-------------------------------------------------------------------------
 *
 * status.h
 *	  What each replica shows of itself, in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_STATUS_H
#define PYR_STATUS_H

#include "datatype/timestamp.h"

typedef enum PyrState
{
	PYR_STATE_STOPPED,			/* no worker: between two tries */
	PYR_STATE_DISABLED,
	PYR_STATE_NO_DATABASE,		/* the slave's database does not exist */
	PYR_STATE_STARTING,
	PYR_STATE_CONNECTING,
	PYR_STATE_AWAY,				/* the master cannot be reached */
	PYR_STATE_FETCHING,
	PYR_STATE_APPLYING,
	PYR_STATE_COPYING,			/* and applying what comes meanwhile */
	PYR_STATE_WAITING,			/* everything is here */
	PYR_STATE_ERROR				/* ended with an error, will be tried again */
} PyrState;

extern void pyr_status_init(void);

/* places, for the launcher */
extern int	pyr_status_places(void);
extern char *pyr_status_key(int place);
extern int	pyr_status_reserve(const char *key);
extern void pyr_status_release(int place);

/* the replica that the process is concerned with; what follows is about it */
extern void pyr_status_use(int place);
extern void pyr_status_attach(int place);
extern bool pyr_status_is_attached(void);
extern void pyr_status_state(PyrState state);
extern void pyr_status_replica(const char *replica, const char *database,
							   const char *master);
extern void pyr_status_in_step(TimestampTz at);
extern void pyr_status_window(const char *position, int64 transactions,
							  int64 rows, int64 conflicts, bool fell_back);
extern void pyr_status_error(PyrState state, const char *message);
extern PyrState pyr_status_get_state(void);
extern int64 pyr_status_windows(void);

/* pyreplica_verify */
typedef struct PyrVerifyRequest
{
	int64		run;
	char		schema[NAMEDATALEN];	/* empty, with the next: all tables */
	char		table[NAMEDATALEN];
	bool		repairs;
} PyrVerifyRequest;

extern uint64 pyr_status_verify_requested(PyrVerifyRequest *request);
extern void pyr_status_verify_served(uint64 number, const char *error);

/* pyreplica_sync_sequences */
extern uint64 pyr_status_sync_requested(void);
extern void pyr_status_sync_served(uint64 number, const char *error);

/* requests that are rows of pyreplica_table */
extern uint64 pyr_status_tables_requested(void);

/* pyreplica_wait */
extern uint64 pyr_status_wait_requested(void);
extern bool pyr_status_wait_pending(void);
extern void pyr_status_wait_served(uint64 request);

#endif							/* PYR_STATUS_H */
