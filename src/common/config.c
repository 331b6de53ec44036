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

#include <ctype.h>
#include <limits.h>

#include "common/compat.h"
#include "common/config.h"
#include "utils/guc.h"

/*
 * Slave: how to reach the master, a libpq connection string (keyword/value or
 * URI form).  Empty: no replica.  Only superusers can read it.
 */
const char *master_conninfo = "";

/*
 * Slave: the database that changes are applied to.  Empty: named like the
 * master's database in master_conninfo.
 */
char	   *replica_database = NULL;

/* Slave: off pauses the replica; the master keeps the log for it. */
bool		replica_enabled = true;

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
 * Slave: compare all tables with the master this often, in the background; 0:
 * never.
 */
int			verify_interval_s = 0;

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

static const struct config_enum_entry apply_mode_options[] = {
	{"auto", PYR_APPLY_AUTO, false},
	{"strict", PYR_APPLY_STRICT, false},
	{NULL, 0, false}
};

/*
 * pyreplica.master_conninfo may hold a password, and the server writes new
 * values of settings to its log on reload.  So as far as the server knows, the
 * value is always empty; the real one travels as the check hook's "extra".
 * SHOW and pg_settings show it to superusers without what is secret.
 */
static char *hidden_conninfo = NULL;

static bool
check_master_conninfo(char **newval, void **extra,
					  GucSource source pg_attribute_unused())
{
	char	   *real = pyr_guc_strdup(*newval);
	char	   *empty = pyr_guc_strdup("");

	if (real == NULL || empty == NULL)
		return false;
	pyr_guc_free(*newval);
	*newval = empty;
	*extra = real;
	return true;
}

static void
assign_master_conninfo(const char *newval pg_attribute_unused(), void *extra)
{
	master_conninfo = extra;
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
show_master_conninfo(void)
{
	static char shown[1024];
	size_t		len = 0;
	const char *p = master_conninfo;

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

void
pyr_config_define(void)
{
	DefineCustomStringVariable("pyreplica.master_conninfo",
							   "Connection string of the master to replicate from.",
							   "Empty: this server is no slave.",
							   &hidden_conninfo,
							   "",
							   PGC_SIGHUP,
							   GUC_SUPERUSER_ONLY,
							   check_master_conninfo,
							   assign_master_conninfo,
							   show_master_conninfo);

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

	DefineCustomBoolVariable("pyreplica.copy_data",
							 "Copies the rows that tables have when they begin to be followed.",
							 "off: the slave was restored from a dump of the master.",
							 &copy_data,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable("pyreplica.copy_schema",
							 "Creates what is missing on the slave from the master's definitions.",
							 "They are carried out with the rights of the database's owner.",
							 &copy_schema,
							 false,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("pyreplica.verify_interval",
							"Compares all tables with the master this often; 0: never.",
							"It takes a few percent of the time, with pauses.",
							&verify_interval_s,
							0, 0, INT_MAX / 1000,
							PGC_SIGHUP,
							GUC_UNIT_S,
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
							64 * 1024, 64, MAX_KILOBYTES,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	DefineCustomEnumVariable("pyreplica.apply_mode",
							 "Applies changes in sets where possible, or one by one in strict order.",
							 NULL,
							 &apply_mode,
							 PYR_APPLY_AUTO, apply_mode_options,
							 PGC_SIGHUP,
							 0,
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
