/*-------------------------------------------------------------------------
 *
 * pyreplica.c
 *	  The front door: what happens when the library is loaded.
 *
 * On a master it is loaded by the first log trigger that a session calls; on
 * a slave by the postmaster, from shared_preload_libraries.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/config.h"
#include "common/replicas.h"
#include "fmgr.h"
#include "master/log.h"
#include "miscadmin.h"
#include "slave/launcher.h"
#include "slave/status.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	pyr_replicas_define();
	pyr_config_define();
	pyr_log_init();

	if (!process_shared_preload_libraries_in_progress)
		return;

	pyr_replicas_watch();
	pyr_status_init();
	pyr_launcher_register();
}
