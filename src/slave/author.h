/*-------------------------------------------------------------------------
 *
 * author.h
 *	  Who wrote a row of the slave.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_AUTHOR_H
#define PYR_AUTHOR_H

#include "common/compat.h"
#include "datatype/timestamp.h"

/* the transaction that wrote a row version */
typedef struct PyrAuthor
{
	bool		is_ours;		/* this replica; or nobody can tell */
	bool		is_timed;		/* the next two are known */
	TimestampTz at;				/* when it committed, there if it came from a
								 * master */
	RepOriginId origin;			/* 0: somebody here */
} PyrAuthor;

extern void pyr_author_begin(const char *replica, TimestampTz began_at);
extern bool pyr_author_begin_copy(const char *replica, int number);
extern bool pyr_author_can_tell(void);
extern void pyr_author_stamp(TimestampTz at);
extern PyrAuthor pyr_author_of(TransactionId xid);
extern char *pyr_author_name(const PyrAuthor *author);

#endif							/* PYR_AUTHOR_H */
