/*-------------------------------------------------------------------------
 *
 * config.c
 *	  Every setting: variable, default, bounds, unit, description.
 *
 * All of them take effect on reload.  They are defined in the order of the
 * README's table and of postgresql.conf.sample.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "common/compat.h"
#include "common/config.h"
#include "utils/guc.h"

/*
 * Slave: how to reach the master, a libpq connection string (keyword/value or
 * URI form).  Empty: no replica.  Only superusers can read it.
 */
char	   *master_conninfo = NULL;

/*
 * Slave: the database that changes are applied to.  Empty: named like the
 * master's database in master_conninfo.
 */
char	   *replica_database = NULL;

/* Slave: off pauses the replica; the master keeps the log for it. */
bool		replica_enabled = true;

/* Slave: longest sleep without a look at the master. */
int			keepalive_ms = 60 * 1000;

/*
 * Slave: how much of a window is kept in memory; what is larger waits in a
 * temporary file.  Large windows are cut (between master transactions) at
 * about this size.
 */
int			window_memory_kb = 16 * 1024;

/* Slave: ceiling of the growing pause before a failed thing is tried again. */
int			retry_interval_max_ms = 30 * 1000;

/* Slave: write an "Executing: ..." line to the server log for each change. */
bool		log_statements = false;

/*
 * Master: memory for the changes of one running transaction; what is more
 * goes to a temporary file until commit.
 */
int			capture_memory_kb = 16 * 1024;

/*
 * Master: size at which the log turns to its next inner table, so that the
 * ones before can be emptied as a whole.
 */
int			log_rotate_size_kb = 64 * 1024;

void
pyr_config_define(void)
{
	DefineCustomStringVariable("pyreplica.master_conninfo",
							   "Connection string of the master to replicate from.",
							   "Empty: this server is no slave.",
							   &master_conninfo,
							   "",
							   PGC_SIGHUP,
							   GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);

	DefineCustomStringVariable("pyreplica.database",
							   "Database of the slave that changes are applied to.",
							   "Empty: the one named in pyreplica.master_conninfo.",
							   &replica_database,
							   "",
							   PGC_SIGHUP,
							   0,
							   NULL, NULL, NULL);

	DefineCustomBoolVariable("pyreplica.enabled",
							 "Replicates; off pauses.",
							 NULL,
							 &replica_enabled,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("pyreplica.keepalive",
							"Longest sleep without a look at the master.",
							NULL,
							&keepalive_ms,
							60 * 1000, 1000, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("pyreplica.window_memory",
							"Memory for the changes that are applied in one go.",
							"More of them wait in a temporary file.",
							&window_memory_kb,
							16 * 1024, 64, MAX_KILOBYTES,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	DefineCustomIntVariable("pyreplica.retry_interval_max",
							"Longest pause before something that failed is tried again.",
							"The pause begins at half a second and doubles each time.",
							&retry_interval_max_ms,
							30 * 1000, 500, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomBoolVariable("pyreplica.log_statements",
							 "Logs each change as the SQL it stands for.",
							 NULL,
							 &log_statements,
							 false,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("pyreplica.capture_memory",
							"Memory for the captured changes of one running transaction.",
							"More of them wait in a temporary file until commit.",
							&capture_memory_kb,
							16 * 1024, 64, MAX_KILOBYTES,
							PGC_USERSET,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	/* Read by the SQL functions that empty the log, see py_log_confirm. */
	DefineCustomIntVariable("pyreplica.log_rotate_size",
							"Size at which the log turns to its next inner table.",
							NULL,
							&log_rotate_size_kb,
							64 * 1024, 64, MAX_KILOBYTES,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("pyreplica");
}
