/*-------------------------------------------------------------------------
 *
 * origin.c
 *	  The master, as its slave talks to it: opening the connection, presenting
 *	  the position, announcing sleep, confirming.  (Reading the log is
 *	  fetch.c's part.)
 *
 * Functions that return false tell that the connection is gone; what the
 * master refuses is thrown as an error.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/compat.h"
#include "common/config.h"
#include "common/node.h"
#include "common/textform.h"
#include "common/wal.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "pyreplica.h"
#include "slave/origin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/*
 * What every statement of ours relies on, whatever is set for the master, its
 * database or the role.  The log has no statistics and is only ever read by
 * its indexes.  A slave whose machine died must not keep its place for long,
 * so the master is told to look after the connection, too.
 */
static const char *const session_settings =
	"  ('default_transaction_isolation', 'read committed'),"
	"  ('default_transaction_read_only', 'off'),"
	"  ('synchronous_commit', 'local'),"
	"  ('statement_timeout', '0'),"
	"  ('lock_timeout', '0'),"
	"  ('idle_session_timeout', '0'),"
	"  ('idle_in_transaction_session_timeout', '0'),"
	"  ('transaction_timeout', '0'),"
	"  ('plan_cache_mode', 'force_generic_plan'),"
	"  ('enable_seqscan', 'off'),"
	"  ('enable_indexscan', 'on'),"
	"  ('jit', 'off'),"
	"  ('row_security', 'off'),"
	"  ('max_parallel_workers_per_gather', '0'),"
	"  ('work_mem', '64MB'),"
	"  ('tcp_keepalives_idle', '10'),"
	"  ('tcp_keepalives_interval', '5'),"
	"  ('tcp_keepalives_count', '3'),"
	"  ('tcp_user_timeout', '25s'),"
	"  ('client_connection_check_interval', '5s')";

/*
 * All of them, and those that text depends on, as far as the master has them.
 */
static char *
settings_sql(void)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT pg_catalog.set_config(s.name, v.value, false)"
					 "  FROM pg_catalog.pg_settings s JOIN (VALUES %s",
					 session_settings);
	for (const PyrTextSetting *setting = pyr_text_settings; setting->name; setting++)
		appendStringInfo(&sql, ", ('%s', '%s')", setting->name, setting->value);
	appendStringInfoString(&sql, ") AS v(name, value) ON s.name = v.name");
	return sql.data;
}

/*
 * The connection module's functions; loads it the first time.
 */
const PyrRemoteFunctions *
pyr_remote(void)
{
	static const PyrRemoteFunctions *functions = NULL;

	if (functions == NULL)
	{
		PyrRemoteFunctionsGetter getter;

		getter = (PyrRemoteFunctionsGetter)
			load_external_function(PYR_REMOTE_MODULE, PYR_REMOTE_FUNCTION,
								   true, NULL);
		functions = getter();
	}
	return functions;
}

/* a PyrRemoteRow: keeps the row's values as strings in a char ** */
static void
keep_strings(void *arg, int ncols, const PyrRemoteValue *values)
{
	char	  **strings = arg;

	for (int i = 0; i < ncols; i++)
		strings[i] = values[i].len < 0 ? NULL : pnstrdup(values[i].data,
														 values[i].len);
}

/* a PyrRemoteRow: keeps the row's booleans in a bool * */
static void
keep_bools(void *arg, int ncols, const PyrRemoteValue *values)
{
	bool	   *bools = arg;

	for (int i = 0; i < ncols; i++)
		bools[i] = values[i].len == 1 && values[i].data[0] != 0;
}

static bool
query(PyrOrigin *origin, const char *sql, int nparams,
	  const char *const *params, PyrRemoteRow row, void *arg)
{
	return pyr_remote()->query(origin->remote, NULL, sql, nparams, params,
							   row, arg);
}

static bool
find_extension(PyrOrigin *origin)
{
	char	   *answer[3] = {NULL, NULL, NULL};

	if (!query(origin,
			   "SELECT pg_catalog.quote_ident(n.nspname),"
			   "       (SELECT d.oid FROM pg_catalog.pg_database d"
			   "         WHERE d.datname = pg_catalog.current_database())::pg_catalog.text,"
			   "       (SELECT pg_catalog.max(p.pronargs) FROM pg_catalog.pg_proc p"
			   "         WHERE p.pronamespace = n.oid AND p.proname = 'py_log_fetch')::pg_catalog.text"
			   "  FROM pg_catalog.pg_extension e"
			   "  JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
			   " WHERE e.extname = 'pyreplica'",
			   0, NULL, keep_strings, answer))
		return false;
	if (answer[0] == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pyreplica is not installed in the master's database"),
				 errhint("Run CREATE EXTENSION pyreplica there, and create log triggers with py_log_create_tg.")));
	origin->schema = MemoryContextStrdup(origin->context, answer[0]);
	origin->database = MemoryContextStrdup(origin->context,
										   answer[1] ? answer[1] : "");
	origin->can_leave_out = answer[2] != NULL &&
		atoi(answer[2]) == PYR_FETCH_ARGS;
	return true;
}

/*
 * From now on we make changes of that node.
 */
static void
follow(const char *system_identifier, const char *database)
{
	char	   *node = psprintf("%s/%s", system_identifier, database);

	if (strcmp(node, pyr_node_here()) == 0)
		ereport(WARNING,
				(errmsg("master and slave are of one origin, \"%s\"", node),
				 errdetail("That is so if the one server is a physical copy of the other."),
				 errhint("Where changes are forwarded, they could be taken for each other. Let one of them be made from a dump.")));
	pyr_node_follow(node);
	pfree(node);
}

/*
 * Presents our position to the master, which refuses one that it cannot
 * continue from, and tells where a new replica begins, or one that was away for
 * too long.
 */
static bool
attach(PyrOrigin *origin, const char *replica, PyrPosition *position)
{
	char		wal[32];
	char	   *answer[3] = {NULL, NULL, NULL};
	const char *params[6];

	/* what the master is told of must be safe here */
	(void) pyr_wal_flush();
	pyr_position_rewind(position);
	snprintf(wal, sizeof(wal), "%X/%X", LSN_FORMAT_ARGS(position->stored_wal));
	params[0] = replica;
	params[1] = position->stored ? position->system_identifier : NULL;
	params[2] = position->stored;
	params[3] = position->confirmed;
	params[4] = wal;
	params[5] = copy_data ? "true" : "false";
	if (!query(origin,
			   psprintf("SELECT a.system_identifier, a.\"position\"::text, a.begins_anew::text"
						"  FROM %s.py_log_attach($1::pg_catalog.text, $2::pg_catalog.text,"
						" $3::pg_catalog.pg_snapshot, $4::pg_catalog.pg_snapshot,"
						" $5::pg_catalog.pg_lsn, $6::pg_catalog.bool) a",
						origin->schema),
			   6, params, keep_strings, answer))
		return false;

	origin->begins_anew = answer[2] != NULL && strcmp(answer[2], "true") == 0;
	if (origin->begins_anew)
		pyr_position_advance(position, answer[1], 0);
	if (position->stored == NULL)
	{
		pyr_position_advance(position, answer[1], 0);
		position->system_identifier = MemoryContextStrdup(TopMemoryContext,
														  answer[0]);
	}
	follow(answer[0], origin->database);
	return true;
}

static bool
begin_session(PyrOrigin *origin, const char *replica, PyrPosition *position)
{
	const char *encoding;

	if (!query(origin, settings_sql(), 0, NULL, NULL, NULL) ||
		!find_extension(origin) ||
		!attach(origin, replica, position) ||
		!query(origin, "LISTEN " PYR_CHANNEL, 0, NULL, NULL, NULL))
		return false;

	encoding = pyr_remote()->parameter(origin->remote, "server_encoding");
	origin->encoding = encoding ? pg_char_to_encoding(encoding) : -1;
	if (origin->encoding < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the master's encoding \"%s\" is not known here",
						encoding ? encoding : "")));
	return true;
}

/*
 * Opens the connection.  NULL if the master cannot be reached; *error says
 * why, or is NULL if give_up said so.
 */
PyrOrigin *
pyr_origin_open(const char *conninfo, const char *replica,
				PyrPosition *position, PyrRemoteGiveUp give_up, char **error)
{
	MemoryContext context;
	MemoryContext oldcontext;
	PyrOrigin  *origin;
	bool		alive = false;

	*error = NULL;
	context = AllocSetContextCreate(TopMemoryContext, "pyreplica master",
									ALLOCSET_SMALL_SIZES);
	origin = MemoryContextAllocZero(context, sizeof(PyrOrigin));
	origin->context = context;
	origin->conninfo = MemoryContextStrdup(context, conninfo);
	origin->remote = pyr_remote()->connect(conninfo,
										   psprintf("pyreplica %s", replica),
										   give_up, error);
	if (origin->remote == NULL)
	{
		MemoryContextDelete(context);
		return NULL;
	}

	oldcontext = MemoryContextSwitchTo(AllocSetContextCreate(context,
															 "pyreplica session",
															 ALLOCSET_SMALL_SIZES));
	alive = begin_session(origin, replica, position);
	MemoryContextDelete(MemoryContextSwitchTo(oldcontext));
	if (!alive)
	{
		*error = pyr_remote()->error(origin->remote);
		pyr_origin_close(origin);
		return NULL;
	}
	return origin;
}

/* a PyrRemoteRow: adds the row, as char **, to a list */
static void
add_row(void *arg, int ncols, const PyrRemoteValue *values)
{
	List	  **rows = arg;
	char	  **row = palloc(ncols * sizeof(char *));

	keep_strings(row, ncols, values);
	*rows = lappend(*rows, row);
}

/*
 * The rows of a query that returns texts.
 */
bool
pyr_origin_rows(PyrOrigin *origin, const char *sql, List **rows)
{
	*rows = NIL;
	return query(origin, sql, 0, NULL, add_row, rows);
}

/*
 * How far the master's clock is ahead of ours, give or take half of the time that
 * it took to ask.
 */
bool
pyr_origin_clock(PyrOrigin *origin, int64 *ahead_us, int64 *doubt_us)
{
	TimestampTz asked_at = GetCurrentTimestamp();
	TimestampTz answered_at;
	TimestampTz there;
	char	   *seconds = NULL;

	if (!query(origin,
			   "SELECT pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())::pg_catalog.text",
			   0, NULL, keep_strings, &seconds))
		return false;
	answered_at = GetCurrentTimestamp();
	there = (TimestampTz) ((strtod(seconds, NULL) -
							(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * (double) SECS_PER_DAY) *
						   USECS_PER_SEC);
	*doubt_us = (answered_at - asked_at) / 2;
	*ahead_us = there - asked_at - *doubt_us;
	return true;
}

void
pyr_origin_close(PyrOrigin *origin)
{
	pyr_remote()->disconnect(origin->remote);
	MemoryContextDelete(origin->context);
}

/*
 * Lets the master's writers know that we may sleep.  *may_sleep: they do, and
 * none is on its way that does not; so after one more look at the log it is
 * safe to wait.
 */
bool
pyr_origin_announce(PyrOrigin *origin, bool *may_sleep)
{
	bool		answer = false;

	if (!query(origin,
			   psprintf("SELECT pg_catalog.pg_try_advisory_lock_shared(%d, %d)",
						PYR_LOCK_CLASS, PYR_LOCK_SLEEP),
			   0, NULL, keep_bools, &answer))
		return false;
	*may_sleep = origin->is_announced = answer;
	return true;
}

/*
 * Takes the announcement back: nobody needs to notify us.
 */
bool
pyr_origin_awake(PyrOrigin *origin)
{
	if (!origin->is_announced)
		return true;
	origin->is_announced = false;
	return query(origin,
				 psprintf("SELECT pg_catalog.pg_advisory_unlock_shared(%d, %d)",
						  PYR_LOCK_CLASS, PYR_LOCK_SLEEP),
				 0, NULL, NULL, NULL);
}

/*
 * Tells the master that everything the stored position sees is safe here.  Not
 * one that is only in memory: after a restart we would come back with less
 * than we confirmed.
 */
bool
pyr_origin_confirm(PyrOrigin *origin, const char *replica,
				   PyrPosition *position)
{
	const char *params[2] = {replica, position->stored};
	char	   *answer = NULL;

	if (!query(origin,
			   psprintf("SELECT %s.py_log_confirm($1::pg_catalog.text, $2::pg_catalog.pg_snapshot)::pg_catalog.text", origin->schema),
			   2, params, keep_strings, &answer))
		return false;
	origin->slaves = answer != NULL ? pg_strtoint32(answer) : 1;
	pyr_position_confirmed(position);
	return true;
}

/*
 * Lets the master clean up its log.
 */
bool
pyr_origin_rotate(PyrOrigin *origin)
{
	return query(origin, psprintf("SELECT %s.py_log_rotate()", origin->schema),
				 0, NULL, NULL, NULL);
}
