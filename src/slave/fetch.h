/*-------------------------------------------------------------------------
 *
 * fetch.h
 *	  A window: the entries between two snapshots of the master.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_FETCH_H
#define PYR_FETCH_H

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "slave/origin.h"
#include "executor/tuptable.h"
#include "utils/tuplestore.h"

/* one entry of replica_log; what it points at stays until the next is read */
typedef struct PyrEntry
{
	int64		commitno;
	uint64		xid;
	TimestampTz at;
	int32		part;
	const char *data;
	size_t		len;
} PyrEntry;

typedef struct PyrWindow PyrWindow;

/*
 * What is read on the master together with a window, in the transaction whose
 * snapshot the window ends at.
 */
typedef struct PyrSupplement
{
	/* one more that is read with it; what the first is told goes for all */
	struct PyrSupplement *next;

	MemoryContext context;		/* it lies in, with what came */
	const char *locked;			/* the table that sql reads, with ONLY if it is, or NULL */
	bool		is_partitioned; /* that table, whose partitions are to stay */
	const char *sql;			/* statements that return rows, or COPY some */
	void	   *what;			/* for those below */

	/*
	 * Called once it has come, before its window is applied: whether the next
	 * supplement can be asked for already.  NULL: it cannot.
	 */
	bool		(*look_ahead) (struct PyrSupplement *supplement);

	/* Called in the window's transaction, after its changes. */
	void		(*apply) (struct PyrSupplement *supplement,
						  void (*between) (void));

	/* Called once that has been committed.  NULL: it need not know. */
	void		(*settle) (struct PyrSupplement *supplement);

	/* Called if the master reports an error; may throw it. */
	void		(*refused) (struct PyrSupplement *supplement,
							ErrorData *error);

	/* what came */
	List	   *rows;			/* char **: values as text; NULL: null, or there is
								 * no such column */
	Tuplestorestate *copied;	/* blocks of what COPY sent; NULL: nothing */
	TupleTableSlot *slot;		/* the block being read */
	StringInfoData block;		/* the one being filled */
	int64		nmessages;		/* that COPY sent: rows, and an end */
	StringInfoData last[2];		/* the last one, and the one before */
} PyrSupplement;

extern PyrWindow *pyr_window_create(void);
extern void pyr_window_prepare(PyrOrigin *origin);
extern void pyr_window_fetch_start(PyrWindow *window, PyrOrigin *origin,
								   const char *from, int linger_ms,
								   PyrSupplement *supplement);
extern void pyr_window_fetch_pump(void);
extern void pyr_window_fetch_wait(void);
extern bool pyr_window_fetch_is_under_way(void);
extern bool pyr_window_fetch_finish(PyrWindow *window);
extern bool pyr_window_is_empty(PyrWindow *window);
extern bool pyr_window_is_complete(PyrWindow *window);
extern bool pyr_window_has_prepared(PyrWindow *window);
extern const char *pyr_window_snapshot(PyrWindow *window);
extern XLogRecPtr pyr_window_wal(PyrWindow *window);
extern int64 pyr_window_transactions(PyrWindow *window);
extern int64 pyr_window_bytes(PyrWindow *window);
extern bool pyr_window_next(PyrWindow *window, PyrEntry *entry);
extern void pyr_window_rewind(PyrWindow *window);
extern PyrSupplement *pyr_window_supplement(PyrWindow *window);
extern PyrSupplement *pyr_supplement_create(void);
extern bool pyr_supplement_next(PyrSupplement *supplement,
								const char **data, size_t *len);
extern void pyr_supplement_free(PyrSupplement *supplement);
extern void pyr_window_clear(PyrWindow *window);

#endif							/* PYR_FETCH_H */
