/*-------------------------------------------------------------------------
 *
 * history.h
 *	  What is kept, counted and told of conflicts.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_HISTORY_H
#define PYR_HISTORY_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

/* a transaction of the master */
typedef struct PyrTransaction
{
	int64		commitno;
	uint64		xid;
	TimestampTz at;
} PyrTransaction;

/* a row of pyreplica_conflicts; what is not known is NULL */
typedef struct PyrIncident
{
	const char *kind;
	const char *schema;
	const char *table;
	const char *label;			/* the key, for log lines */
	const char *key;			/* text[] */
	const char *local_row;		/* jsonb */
	const char *local_origin;
	TimestampTz local_at;		/* 0: not known */
	const char *remote_row;		/* jsonb */
	const char *statement;
	const char *outcome;
	const char *told;			/* a sentence for the log */
	const PyrTransaction *transaction;
} PyrIncident;

/* of one window */
typedef struct PyrHistory
{
	const char *replica;
	int64		count;			/* conflicts */
	List	   *lines;			/* messages, for when all has gone well */
	List	   *details;
	List	   *tallies;		/* how many of each kind and table */
} PyrHistory;

extern void pyr_history_begin(PyrHistory *history, const char *replica);
extern void pyr_history_add(PyrHistory *history, const PyrIncident *incident);
extern void pyr_history_finish(PyrHistory *history);
extern void pyr_history_prune(void);

#endif							/* PYR_HISTORY_H */
