/*-------------------------------------------------------------------------
 *
 * config.c
 *	  Every setting: variable, default, bounds, unit, description.
 *
 * All of them take effect on reload.  They are defined in the order of the
 * README's table and of postgresql.conf.sample.
 *
 * The slave's settings come in sets: pyreplica.<setting> for the replica
 * without a name, and as default of all; pyreplica_<name>.<setting> for a
 * replica with a name.  The variables below are those of the replica that the
 * process is concerned with, see pyr_config_use(); sessions are concerned with
 * none.  Which sets there are is the business of replicas.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>

#include "common/compat.h"
#include "common/config.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/*
 * Slave: how to reach the master, a libpq connection string (keyword/value or
 * URI form).  Empty: no replica.  Only superusers can read it.
 */
const char *master_conninfo = "";

/*
 * Slave: the database that changes are applied to.  Empty: named like the
 * master's database in master_conninfo.
 */
char	   *replica_database = "";

/* Slave: off pauses the replica; the master keeps the log for it. */
bool		replica_enabled = true;

/*
 * Slave: leave out the transactions that this user made on the master; the
 * session's user, whatever functions and SET ROLE make of it.  Empty: none.
 */
char	   *skip_user = NULL;

/*
 * Slave: which changes of the master are taken (PyrOriginFilter).  "any": all but
 * those that were first made here; "none": only those that were made on the
 * master itself, not what it forwards from others.
 */
int			origin_filter = PYR_ORIGIN_ANY;

/*
 * Slave: copy the rows that tables have when they begin to be followed.  off:
 * they are here, because the slave was restored from a dump of the master.
 */
bool		copy_data = true;

/*
 * Slave: create tables that are to be copied and do not exist here, with all
 * that the master's definitions have and is missing here.  What they are is up
 * to the master, so it is off unless wanted.
 */
bool		copy_schema = false;

/*
 * Slave: how many processes beside the worker copy tables, each one at a time;
 * they are background workers that live as long as they have something to do.
 * 0: the worker copies alone.
 */
int			copy_workers = 1;

/*
 * Slave: compare all tables with the master this often, in the background; 0:
 * never.
 */
int			verify_interval_s = 0;

/*
 * Slave: sequences are kept ahead of the master's by so many values, or half as
 * many at least; 0: they are left alone.
 */
int			sequence_margin = 1000;

/* Slave: longest sleep without a look at the master. */
int			keepalive_ms = 60 * 1000;

/*
 * Slave: memory for the changes that are applied in one go: half of it for
 * merging them, a quarter for the window and one for the next one.  Windows
 * are cut (between master transactions) so that they fit; one that does not
 * waits in a temporary file and is merged piece by piece.
 */
int			window_memory_kb = 64 * 1024;

/*
 * Slave: how a window is applied (PyrApplyMode).  "auto" applies the net effect
 * of each row, in sets, and falls back to strict order where that cannot be
 * done; "strict" applies every change by itself, in the master's order.
 */
int			apply_mode = PYR_APPLY_AUTO;

/*
 * Slave: what becomes of a change that meets a row which it does not expect
 * (PyrResolution).  A table can have another one, see slave/policy.c.
 */
int			conflict_resolution = PYR_RESOLVE_ERROR;

/*
 * Slave: a row whose last writer was not the replica is such a row, even if the
 * log does not tell what it should look like.  keep_local and last_update_wins
 * imply it.  Needs track_commit_timestamp.
 */
bool		detect_origin = false;

/* Slave: how long pyreplica_conflicts is kept; 0: for ever. */
int			conflict_retention_s = 30 * 24 * 3600;

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

/*
 * Master: the most that the log may take on disk because of slaves that are
 * away; past it, it is not kept any more for the one farthest behind.  0: no
 * limit.  Slaves that are connected always find what they need.
 */
int			max_backlog_kb = 0;

/* In a replica's set of settings: as in pyreplica.<setting>. */
#define INHERIT		(-1)

/* Options begin with the one that pyreplica.<setting> itself does not have. */
static const struct config_enum_entry bool_options[] = {
	{"inherit", INHERIT, false},
	{"on", true, false},
	{"off", false, false},
	{"true", true, true},
	{"false", false, true},
	{"yes", true, true},
	{"no", false, true},
	{"1", true, true},
	{"0", false, true},
	{NULL, 0, false}
};

static const struct config_enum_entry origin_options[] = {
	{"inherit", INHERIT, false},
	{"any", PYR_ORIGIN_ANY, false},
	{"none", PYR_ORIGIN_NONE, false},
	{NULL, 0, false}
};

static const struct config_enum_entry apply_mode_options[] = {
	{"inherit", INHERIT, false},
	{"auto", PYR_APPLY_AUTO, false},
	{"strict", PYR_APPLY_STRICT, false},
	{NULL, 0, false}
};

static const struct config_enum_entry resolution_options[] = {
	{"inherit", INHERIT, false},
	{"error", PYR_RESOLVE_ERROR, false},
	{"apply_remote", PYR_RESOLVE_REMOTE, false},
	{"keep_local", PYR_RESOLVE_LOCAL, false},
	{"last_update_wins", PYR_RESOLVE_LAST, false},
	{NULL, 0, false}
};

/* the same without inherit */
const struct config_enum_entry *const pyr_resolution_options = resolution_options + 1;

typedef enum SettingType
{
	SETTING_BOOL,
	SETTING_INT,
	SETTING_ENUM,
	SETTING_STRING,
	SETTING_CONNINFO			/* hidden, see below */
} SettingType;

typedef struct Setting
{
	const char *name;
	SettingType type;
	void	   *effective;		/* the variable above */
	bool		is_inherited;	/* by sets that do not say */
	int			boot_value;
	int			min;
	int			max;
	GucIntCheckHook check_inherited;
	const struct config_enum_entry *options;
	int			flags;
	const char *brief;
	const char *details;
} Setting;

typedef union Value
{
	bool		boolean;
	int			number;			/* with INHERIT, of bools as well */
	char	   *string;
} Value;

/*
 * A number that may be INHERIT needs its minimum checked here; a hook does not
 * learn for which setting it is called, so there is one for each minimum.
 */
static bool
is_inherited_or_at_least(int value, int minimum)
{
	if (value == INHERIT || value >= minimum)
		return true;
	GUC_check_errdetail("The minimum is %d (in the unit of the setting); %d takes the value of pyreplica's setting of that name.",
						minimum, INHERIT);
	return false;
}

#define AT_LEAST(minimum) \
static bool \
at_least_##minimum(int *newval, void **extra pg_attribute_unused(), \
				   GucSource source pg_attribute_unused()) \
{ \
	return is_inherited_or_at_least(*newval, minimum); \
}

AT_LEAST(0)
AT_LEAST(64)
AT_LEAST(500)
AT_LEAST(1000)

#define BOOL_SETTING(name, variable, value, brief, details) \
	{name, SETTING_BOOL, &variable, true, value, 0, 0, NULL, bool_options, \
	0, brief, details}
#define INT_SETTING(name, variable, value, min, max, unit, brief, details) \
	{name, SETTING_INT, &variable, true, value, min, max, at_least_##min, \
	NULL, unit, brief, details}
#define ENUM_SETTING(name, variable, value, options, brief, details) \
	{name, SETTING_ENUM, &variable, true, value, 0, 0, NULL, options, \
	0, brief, details}
#define STRING_SETTING(name, variable, is_inherited, brief, details) \
	{name, SETTING_STRING, &variable, is_inherited, 0, 0, 0, NULL, NULL, \
	0, brief, details}
#define CONNINFO_SETTING(name, variable, brief, details) \
	{name, SETTING_CONNINFO, &variable, false, 0, 0, 0, NULL, NULL, \
	GUC_SUPERUSER_ONLY, brief, details}

/*
 * The settings that each replica has.  What is not inherited says which replica
 * it is.
 */
static const Setting settings[] = {
	CONNINFO_SETTING("master_conninfo", master_conninfo,
					 "Connection string of the master to replicate from.",
					 "Empty: no replica."),

	STRING_SETTING("database", replica_database, false,
				   "Database of the slave that changes are applied to.",
				   "Empty: the one named in master_conninfo."),

	BOOL_SETTING("enabled", replica_enabled, true,
				 "Replicates; off pauses.",
				 NULL),

	STRING_SETTING("skip_user", skip_user, true,
				   "Leaves out transactions made by this user on the master.",
				   "Empty: none."),

	ENUM_SETTING("origin", origin_filter,
				 PYR_ORIGIN_ANY, origin_options,
				 "Takes all changes of the master but those first made here, or only those of the master itself.",
				 "Matters where a master forwards changes."),

	BOOL_SETTING("copy_data", copy_data, true,
				 "Copies the rows that tables have when they begin to be followed.",
				 "off: the slave was restored from a dump of the master."),

	BOOL_SETTING("copy_schema", copy_schema, false,
				 "Creates what is missing on the slave from the master's definitions.",
				 "They are carried out with the rights of the database's owner."),

	INT_SETTING("copy_workers", copy_workers,
				1, 0, PYR_COPY_WORKERS_MAX, 0,
				"Processes beside the worker that copy tables.",
				"0: the worker copies alone, one table after the other."),

	INT_SETTING("verify_interval", verify_interval_s,
				0, 0, INT_MAX / 1000, GUC_UNIT_S,
				"Compares all tables with the master this often; 0: never.",
				"It takes a few percent of the time, with pauses."),

	INT_SETTING("sequence_margin", sequence_margin,
				1000, 0, INT_MAX, 0,
				"Keeps sequences ahead of the master's by so many values; 0: leaves them alone.",
				"It should be more than twice what the master uses in ten seconds."),

	INT_SETTING("keepalive", keepalive_ms,
				60 * 1000, 1000, INT_MAX, GUC_UNIT_MS,
				"Longest sleep without a look at the master.",
				NULL),

	INT_SETTING("window_memory", window_memory_kb,
				64 * 1024, 64, MAX_KILOBYTES, GUC_UNIT_KB,
				"Memory for the changes that are applied in one go.",
				"More of them wait in a temporary file."),

	ENUM_SETTING("apply_mode", apply_mode,
				 PYR_APPLY_AUTO, apply_mode_options,
				 "Applies changes in sets where possible, or one by one in strict order.",
				 NULL),

	ENUM_SETTING("conflict_resolution", conflict_resolution,
				 PYR_RESOLVE_ERROR, resolution_options,
				 "Who wins when a change meets a row that it does not expect.",
				 "A table can have another one, see pyreplica_set_conflict_resolution()."),

	BOOL_SETTING("detect_origin", detect_origin, false,
				 "Takes changes of rows that somebody else wrote last for conflicts.",
				 "Needs track_commit_timestamp."),

	INT_SETTING("conflict_retention", conflict_retention_s,
				30 * 24 * 3600, 0, INT_MAX, GUC_UNIT_S,
				"How long pyreplica_conflicts is kept; 0: for ever.",
				NULL),

	INT_SETTING("retry_interval_max", retry_interval_max_ms,
				30 * 1000, 500, INT_MAX, GUC_UNIT_MS,
				"Longest pause before something that failed is tried again.",
				"The pause begins at half a second and doubles each time."),

	BOOL_SETTING("log_statements", log_statements, false,
				 "Logs each change as the SQL it stands for.",
				 NULL),
};

#define MASTER_CONNINFO		0	/* its place there */

struct PyrConfig
{
	Value		values[lengthof(settings)];
};

/* pyreplica.<setting> */
static PyrConfig defaults;

/*
 * A connection string may hold a password, and the server writes new values of
 * settings to its log on reload.  So as far as the server knows, the value is
 * always empty: the real one comes after the zero byte that ends it.  SHOW and
 * pg_settings show that of pyreplica.master_conninfo to superusers without what
 * is secret.
 */
static bool
check_conninfo(char **newval, void **extra pg_attribute_unused(),
			   GucSource source pg_attribute_unused())
{
	size_t		size = strlen(*newval) + 1;
	char	   *hiding = pyr_guc_malloc(size + 1);

	if (hiding == NULL)
		return false;
	hiding[0] = '\0';
	memcpy(hiding + 1, *newval, size);
	pyr_guc_free(*newval);
	*newval = hiding;
	return true;
}

static const char *
reveal(const char *hiding)
{
	return hiding + 1;
}

static bool
is_secret(const char *keyword, size_t len)
{
	static const char *const secrets[] = {
		"password", "sslpassword", "oauth_client_secret", "scram_client_key",
	};

	for (size_t i = 0; i < lengthof(secrets); i++)
	{
		if (strlen(secrets[i]) == len &&
			pg_strncasecmp(keyword, secrets[i], len) == 0)
			return true;
	}
	return false;
}

/*
 * The end of a value in a keyword/value string, as libpq reads it.
 */
static const char *
skip_value(const char *p)
{
	bool		quoted = *p == '\'';

	if (quoted)
		p++;
	while (*p != '\0' && (quoted ? *p != '\'' : !isspace((unsigned char) *p)))
	{
		if (*p == '\\' && p[1] != '\0')
			p++;
		p++;
	}
	return quoted && *p == '\'' ? p + 1 : p;
}

/*
 * What is not plainly a keyword/value string is not shown at all: in a URI
 * that is not quite right, anything could be the password.
 */
static const char *
show_conninfo(void)
{
	static char shown[1024];
	size_t		len = 0;
	const char *p = reveal(defaults.values[MASTER_CONNINFO].string);

	shown[0] = '\0';
	if (strstr(p, "://") != NULL)
		return "********";
	while (*p != '\0')
	{
		const char *keyword;
		const char *value;
		size_t		keyword_len;

		while (isspace((unsigned char) *p))
			p++;
		keyword = p;
		while (*p != '\0' && *p != '=' && !isspace((unsigned char) *p))
			p++;
		keyword_len = p - keyword;
		while (isspace((unsigned char) *p))
			p++;
		if (keyword_len == 0 || *p != '=')
			break;
		p++;
		while (isspace((unsigned char) *p))
			p++;
		value = p;
		p = skip_value(value);
		len += snprintf(shown + len, sizeof(shown) - len, "%s%.*s=%.*s",
						len > 0 ? " " : "", (int) keyword_len, keyword,
						is_secret(keyword, keyword_len) ? 8 : (int) (p - value),
						is_secret(keyword, keyword_len) ? "********" : value);
		if (len >= sizeof(shown))
			break;
	}
	return shown;
}

/*
 * Those of other replicas cannot be told apart here; pyreplica_status shows
 * them.
 */
static const char *
show_no_conninfo(void)
{
	return "********";
}

/*
 * The name of a replica's setting ("": the replica without a name); palloc'd.
 */
char *
pyr_config_name(const char *replica, const char *setting)
{
	return psprintf("pyreplica%s%s.%s", replica[0] != '\0' ? "_" : "", replica,
					setting);
}

static void
define_default(const Setting *setting, const char *name, Value *value)
{
	switch (setting->type)
	{
		case SETTING_BOOL:
			DefineCustomBoolVariable(name, setting->brief, setting->details,
									 &value->boolean, setting->boot_value,
									 PGC_SIGHUP, setting->flags,
									 NULL, NULL, NULL);
			break;
		case SETTING_INT:
			DefineCustomIntVariable(name, setting->brief, setting->details,
									&value->number, setting->boot_value,
									setting->min, setting->max,
									PGC_SIGHUP, setting->flags,
									NULL, NULL, NULL);
			break;
		case SETTING_ENUM:
			DefineCustomEnumVariable(name, setting->brief, setting->details,
									 &value->number, setting->boot_value,
									 setting->options + 1,
									 PGC_SIGHUP, setting->flags,
									 NULL, NULL, NULL);
			break;
		case SETTING_STRING:
			DefineCustomStringVariable(name, setting->brief, setting->details,
									   &value->string, "",
									   PGC_SIGHUP, setting->flags,
									   NULL, NULL, NULL);
			break;
		case SETTING_CONNINFO:
			DefineCustomStringVariable(name, setting->brief, setting->details,
									   &value->string, "",
									   PGC_SIGHUP, setting->flags,
									   check_conninfo, NULL, show_conninfo);
			break;
	}
}

/*
 * The same for a replica with a name, where it may be left to the default.
 */
static void
define_inheriting(const Setting *setting, const char *name, Value *value)
{
	switch (setting->type)
	{
		case SETTING_BOOL:
		case SETTING_ENUM:
			DefineCustomEnumVariable(name, setting->brief, setting->details,
									 &value->number, INHERIT, setting->options,
									 PGC_SIGHUP, setting->flags,
									 NULL, NULL, NULL);
			break;
		case SETTING_INT:
			DefineCustomIntVariable(name, setting->brief, setting->details,
									&value->number, INHERIT,
									INHERIT, setting->max,
									PGC_SIGHUP, setting->flags,
									setting->check_inherited, NULL, NULL);
			break;
		case SETTING_STRING:
			DefineCustomStringVariable(name, setting->brief, setting->details,
									   &value->string, "",
									   PGC_SIGHUP, setting->flags,
									   NULL, NULL, NULL);
			break;
		case SETTING_CONNINFO:
			DefineCustomStringVariable(name, setting->brief, setting->details,
									   &value->string, "",
									   PGC_SIGHUP, setting->flags,
									   check_conninfo, NULL, show_no_conninfo);
			break;
	}
}

/*
 * Defines the settings pyreplica_<name>.*, for good: there is no way to take
 * them back.
 */
PyrConfig *
pyr_config_create(const char *replica)
{
	PyrConfig  *config = MemoryContextAllocZero(TopMemoryContext,
												sizeof(PyrConfig));

	for (size_t i = 0; i < lengthof(settings); i++)
	{
		char	   *name = pyr_config_name(replica, settings[i].name);

		define_inheriting(&settings[i], name, &config->values[i]);
		pfree(name);
	}
	return config;
}

/*
 * Whether it names a master, so that there is such a replica.
 */
bool
pyr_config_has_master(const PyrConfig *config)
{
	if (config == NULL)
		config = &defaults;
	return reveal(config->values[MASTER_CONNINFO].string)[0] != '\0';
}

/*
 * From now on, until settings change, the variables above are those of this
 * replica; NULL: of the one without a name.
 */
void
pyr_config_use(const PyrConfig *config)
{
	for (size_t i = 0; i < lengthof(settings); i++)
	{
		const Setting *setting = &settings[i];
		const Value *inherited = &defaults.values[i];
		const Value *value = config != NULL ? &config->values[i] : inherited;

		switch (setting->type)
		{
			case SETTING_BOOL:
				*(bool *) setting->effective =
					value == inherited || value->number == INHERIT
					? inherited->boolean : value->number;
				break;
			case SETTING_INT:
			case SETTING_ENUM:
				*(int *) setting->effective =
					value->number == INHERIT
					? inherited->number : value->number;
				break;
			case SETTING_STRING:
				*(char **) setting->effective =
					setting->is_inherited && value->string[0] == '\0'
					? inherited->string : value->string;
				break;
			case SETTING_CONNINFO:
				*(const char **) setting->effective = reveal(value->string);
				break;
		}
	}
}

void
pyr_config_define(void)
{
	for (size_t i = 0; i < lengthof(settings); i++)
	{
		char	   *name = pyr_config_name("", settings[i].name);

		define_default(&settings[i], name, &defaults.values[i]);
		pfree(name);
	}

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

	DefineCustomIntVariable("pyreplica.max_backlog",
							"Most that the log takes because of slaves that are away; 0: no limit.",
							"Past it the log is let go for them; they make their tables equal when they are back.",
							&max_backlog_kb,
							0, 0, MAX_KILOBYTES,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("pyreplica");
}

/*
 * Gives any setting of the server a value until the level of settings ends that was
 * begun last (NewGUCNestLevel), or the transaction.
 */
void
pyr_config_set_here(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}
