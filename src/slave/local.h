/*-------------------------------------------------------------------------
 *
 * local.h
 *	  The slave's own database, as the worker finds or makes it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_LOCAL_H
#define PYR_LOCAL_H

#include "utils/elog.h"

/* whose rights are in force */
typedef struct PyrIdentity
{
	Oid			user;
	int			security;
	int			settings;		/* nest level */
} PyrIdentity;

/* something that may fail; false: it came to nothing */
typedef bool (*PyrAttempt) (void *arg);

extern void pyr_local_begin_session(const char *replica);
extern void pyr_local_begin_transaction(void);
extern void pyr_local_commit_transaction(void);
extern void pyr_local_constraints_immediate(void);
extern void pyr_local_ensure_extension(void);
extern const char *pyr_local_replica(void);
extern const char *pyr_local_schema(void);
extern Oid	pyr_local_schema_oid(void);
extern Oid	pyr_local_relation(const char *name);
extern bool pyr_is_of_the_system(int sqlerrcode);
extern bool pyr_local_try(PyrAttempt attempt, void *arg, ErrorData **error);
extern PyrIdentity pyr_local_become(Oid user);
extern void pyr_local_become_again(PyrIdentity before);

#endif							/* PYR_LOCAL_H */
