/*-------------------------------------------------------------------------
 *
 * policy.h
 *	  Who wins a conflict: what the settings and the tables' owners say.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_POLICY_H
#define PYR_POLICY_H

#include "common/config.h"

typedef struct PyrPolicy
{
	PyrResolution resolution;
	const char *column;			/* that tells which row is later; NULL: commit
								 * timestamps do */
} PyrPolicy;

extern void pyr_policy_load(void);
extern PyrPolicy pyr_policy_of(const char *schema, const char *table);
extern bool pyr_policy_watches_origin(PyrPolicy policy);
extern bool pyr_policy_watches_origins(void);
extern bool pyr_policy_uses_time(void);

#endif							/* PYR_POLICY_H */
