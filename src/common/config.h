/*-------------------------------------------------------------------------
 *
 * config.h
 *	  Every setting of pyreplica; defined and documented in config.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_CONFIG_H
#define PYR_CONFIG_H

#include "utils/guc.h"

typedef enum PyrApplyMode
{
	PYR_APPLY_AUTO,				/* sets; strict order where needed */
	PYR_APPLY_STRICT			/* one change at a time, in order */
} PyrApplyMode;

/* most that pyreplica.copy_workers can be */
#define PYR_COPY_WORKERS_MAX	16

/* who wins when a change meets a row that it does not expect */
typedef enum PyrResolution
{
	PYR_RESOLVE_ERROR,			/* nobody: it stops the replica */
	PYR_RESOLVE_REMOTE,			/* the master */
	PYR_RESOLVE_LOCAL,			/* the slave */
	PYR_RESOLVE_LAST			/* the later of the two */
} PyrResolution;

extern const struct config_enum_entry *const pyr_resolution_options;

typedef enum PyrOriginFilter
{
	PYR_ORIGIN_ANY,				/* all but those first made here */
	PYR_ORIGIN_NONE				/* those of the master itself */
} PyrOriginFilter;

/* master */
extern int	capture_memory_kb;
extern int	log_rotate_size_kb;
extern int	max_backlog_kb;

/* slave: of the replica that the process is concerned with */
extern const char *master_conninfo;
extern char *replica_database;
extern bool replica_enabled;
extern char *skip_user;
extern int	origin_filter;
extern bool copy_data;
extern bool copy_schema;
extern int	copy_workers;
extern int	verify_interval_s;
extern int	sequence_margin;
extern int	keepalive_ms;
extern int	window_memory_kb;
extern int	apply_mode;
extern int	conflict_resolution;
extern bool detect_origin;
extern int	conflict_retention_s;
extern int	retry_interval_max_ms;
extern bool log_statements;

/* a replica's settings */
typedef struct PyrConfig PyrConfig;

extern void pyr_config_define(void);
extern PyrConfig *pyr_config_create(const char *replica);
extern bool pyr_config_has_master(const PyrConfig *config);
extern void pyr_config_use(const PyrConfig *config);
extern void pyr_config_set_here(const char *name, const char *value);
extern char *pyr_config_name(const char *replica, const char *setting);

#endif							/* PYR_CONFIG_H */
