/*-------------------------------------------------------------------------
 *
 * config.h
 *	  Every setting of pyreplica; defined and documented in config.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_CONFIG_H
#define PYR_CONFIG_H

typedef enum PyrApplyMode
{
	PYR_APPLY_AUTO,				/* sets; strict order where needed */
	PYR_APPLY_STRICT			/* one change at a time, in order */
} PyrApplyMode;

/* master */
extern int	capture_memory_kb;
extern int	log_rotate_size_kb;
extern int	max_backlog_kb;

/* slave */
extern const char *master_conninfo;
extern char *replica_database;
extern bool replica_enabled;
extern bool copy_data;
extern bool copy_schema;
extern int	verify_interval_s;
extern int	keepalive_ms;
extern int	window_memory_kb;
extern int	apply_mode;
extern int	retry_interval_max_ms;
extern bool log_statements;

extern void pyr_config_define(void);

#endif							/* PYR_CONFIG_H */
