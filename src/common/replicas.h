/*-------------------------------------------------------------------------
 *
 * replicas.h
 *	  Which replicas there are, by the settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_REPLICAS_H
#define PYR_REPLICAS_H

#include "nodes/pg_list.h"

extern void pyr_replicas_define(void);
extern void pyr_replicas_watch(void);
extern List *pyr_replicas_listed(void);
extern List *pyr_replicas_unlisted(void);
extern bool pyr_replicas_use(const char *name);

#endif							/* PYR_REPLICAS_H */
