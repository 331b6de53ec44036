/*-------------------------------------------------------------------------
 *
 * pyreplica_libpq.c
 *	  The connection to the master: the only file that knows libpq.
 *
 * A module of its own, see slave/remote.h for the interface.
 *
 * The server's own wrappers (libpq-be-fe-helpers.h) are not used because they
 * cannot be told to give up on a reload or after some time, and older minor
 * releases lack them; the rules they follow are followed here: a descriptor
 * is reserved while a connection is open, and no call of libpq blocks.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/compat.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "libpq-fe.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "slave/remote.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

PG_MODULE_MAGIC;

/* what can be taken in without serving interrupts, in libpq's portions */
#define PUMP_READS_MAX		256

/* when the connection string does not say connect_timeout */
#define CONNECT_TIMEOUT_MS	10000

extern char **environ;

struct PyrRemote
{
	PGconn	   *conn;
	PyrRemoteGiveUp give_up;
	bool		gave_up;

	/* the statement under way, if there is one */
	bool		is_under_way;
	bool		is_lost;		/* with the connection */
	PGresult   *failure;		/* what the server reported, to be thrown */
	PyrRemoteRow row;
	PyrRemoteCopied copied;
	bool		is_copying;		/* COPY's rows come next */
	void	   *arg;

	PyrRemoteValue *values;		/* of the current row */
	int			maxvalues;
};

extern PGDLLEXPORT const PyrRemoteFunctions *pyr_remote_functions(void);

/*
 * Waits for the latch, the socket or the time; serves interrupts.  Returns
 * WaitLatchOrSocket's result.  The socket is asked for anew each time, as a
 * connection may change it while being made.
 */
static int
wait_for(PyrRemote *remote, int events, long timeout_ms)
{
	int			rc;

	events |= WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	if (timeout_ms >= 0)
		events |= WL_TIMEOUT;
	rc = WaitLatchOrSocket(MyLatch, events, PQsocket(remote->conn),
						   timeout_ms, PG_WAIT_EXTENSION);
	if (rc & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return rc;
}

static void
free_remote(PyrRemote *remote)
{
	PQclear(remote->failure);
	if (remote->conn != NULL)
	{
		PQfinish(remote->conn);
		ReleaseExternalFD();
	}
	if (remote->values != NULL)
		pfree(remote->values);
	pfree(remote);
}

/*
 * libpq's message about a connection string, without the parts of the string
 * that it quotes: they may be (of) a password.
 */
static char *
without_quoted(const char *message)
{
	StringInfoData out;
	const char *p = message;

	initStringInfo(&out);
	while (*p != '\0' && *p != '\n')
	{
		const char *end = *p == '"' ? strchr(p + 1, '"') : NULL;

		if (end == NULL && *p == '"')
			break;				/* whatever it is, it goes on to the end */
		if (end == NULL)
		{
			appendStringInfoChar(&out, *p++);
			continue;
		}

		/* a single character, such as "=", is libpq's own */
		if (end > p + 2)
			appendStringInfoString(&out, "\"...\"");
		else
			appendBinaryStringInfo(&out, p, end + 1 - p);
		p = end + 1;
	}
	return out.data;
}

static PQconninfoOption *
parse_conninfo(const char *conninfo, char **error)
{
	char	   *message = NULL;
	PQconninfoOption *options = PQconninfoParse(conninfo, &message);

	if (options == NULL && error != NULL)
		*error = without_quoted(message ? message : "out of memory");
	if (message != NULL)
		PQfreemem(message);
	return options;
}

static char *
remote_conninfo_value(const char *conninfo, const char *keyword, char **error)
{
	PQconninfoOption *options;
	char	   *value = NULL;

	*error = NULL;
	options = parse_conninfo(conninfo, error);
	if (options == NULL)
		return NULL;
	for (PQconninfoOption *option = options; option->keyword; option++)
	{
		if (strcmp(option->keyword, keyword) == 0 && option->val != NULL)
			value = pstrdup(option->val);
	}
	PQconninfoFree(options);
	return value;
}

static char *
remote_conninfo_display(const char *conninfo)
{
	static const char *const shown[] = {
		"service", "host", "hostaddr", "port", "dbname", "user", "sslmode",
	};
	PQconninfoOption *options = parse_conninfo(conninfo, NULL);
	StringInfoData out;

	initStringInfo(&out);
	if (options == NULL)
		return out.data;
	for (size_t i = 0; i < lengthof(shown); i++)
	{
		for (PQconninfoOption *option = options; option->keyword; option++)
		{
			if (strcmp(option->keyword, shown[i]) == 0 &&
				option->val != NULL && option->val[0] != '\0')
				appendStringInfo(&out, "%s%s=%s", out.len > 0 ? " " : "",
								 option->keyword, option->val);
		}
	}
	PQconninfoFree(options);
	return out.data;
}

static long
connect_timeout_ms(PGconn *conn)
{
	PQconninfoOption *options = PQconninfo(conn);
	long		timeout_ms = CONNECT_TIMEOUT_MS;

	if (options == NULL)
		return timeout_ms;
	for (PQconninfoOption *option = options; option->keyword; option++)
	{
		if (strcmp(option->keyword, "connect_timeout") == 0 &&
			option->val != NULL && atoi(option->val) > 0)
			timeout_ms = Max(2, atoi(option->val)) * 1000L;
	}
	PQconninfoFree(options);
	return timeout_ms;
}

/*
 * Drives the connection being made to its end.  True: connected.
 */
static bool
finish_connecting(PyrRemote *remote, char **error)
{
	TimestampTz deadline;
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										   connect_timeout_ms(remote->conn));
	while (status != PGRES_POLLING_OK)
	{
		long		left_ms;
		int			event;
		int			rc;

		if (status == PGRES_POLLING_FAILED ||
			PQstatus(remote->conn) == CONNECTION_BAD)
		{
			*error = pchomp(PQerrorMessage(remote->conn));
			return false;
		}

		left_ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
												  deadline);
		if (left_ms <= 0)
		{
			*error = pstrdup("timeout expired");
			return false;
		}

		event = status == PGRES_POLLING_READING ? WL_SOCKET_READABLE
			: WL_SOCKET_WRITEABLE;
		rc = wait_for(remote, event, left_ms);
		if ((rc & WL_LATCH_SET) && remote->give_up())
		{
			*error = NULL;
			return false;
		}
		if (rc & event)
			status = PQconnectPoll(remote->conn);
	}
	return true;
}

/* libpq's notices (and the master's) have no place in our server's stderr */
static void
ignore_notice(void *arg pg_attribute_unused(),
			  const PGresult *result pg_attribute_unused())
{
}

static PyrRemote *
remote_connect(const char *conninfo, const char *application_name,
			   PyrRemoteGiveUp give_up, char **error)
{
	/* later ones win: the user's string over our defaults, not over the name */
	const char *keywords[] = {
		"keepalives_idle", "keepalives_interval", "keepalives_count",
		"tcp_user_timeout",
		"dbname", "application_name", "client_encoding", NULL
	};
	const char *values[] = {
		"10", "5", "3",
		"25000",
		conninfo, application_name, GetDatabaseEncodingName(), NULL
	};
	PQconninfoOption *options;
	PyrRemote  *remote;
	bool		connected = false;

	/* a string that cannot be parsed is told of without quoting it */
	options = parse_conninfo(conninfo, error);
	if (options == NULL)
		return NULL;
	PQconninfoFree(options);

	remote = MemoryContextAllocZero(TopMemoryContext, sizeof(PyrRemote));
	remote->give_up = give_up;

	if (!AcquireExternalFD())
	{
		*error = pstrdup("there are too many open files on the local server");
		pfree(remote);
		return NULL;
	}

	remote->conn = PQconnectStartParams(keywords, values, true);
	if (remote->conn == NULL)
	{
		ReleaseExternalFD();
		pfree(remote);
		*error = pstrdup("out of memory");
		return NULL;
	}

	PG_TRY();
	{
		connected = finish_connecting(remote, error);
	}
	PG_CATCH();
	{
		free_remote(remote);
		PG_RE_THROW();
	}
	PG_END_TRY();

	if (!connected)
	{
		free_remote(remote);
		return NULL;
	}
	PQsetnonblocking(remote->conn, 1);
	PQsetNoticeReceiver(remote->conn, ignore_notice, NULL);
	return remote;
}

static const char *
remote_parameter(PyrRemote *remote, const char *name)
{
	return PQparameterStatus(remote->conn, name);
}

/*
 * Whether the error is about the connection (or the server going down), not
 * about the statement.
 */
static bool
is_connection_error(PyrRemote *remote, PGresult *result)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (PQstatus(remote->conn) == CONNECTION_BAD || sqlstate == NULL)
		return true;
	return strncmp(sqlstate, "57P", 3) == 0 || strncmp(sqlstate, "08", 2) == 0;
}

/*
 * Throws the error that the master reported, with all it said.
 */
static void
throw_failure(PyrRemote *remote)
{
	PGresult   *result = remote->failure;
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);
	const char *hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);
	int			code = MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2],
									 sqlstate[3], sqlstate[4]);

	/* the result goes first, so copy */
	message = pstrdup(message ? message : "unknown error");
	detail = detail ? pstrdup(detail) : NULL;
	hint = hint ? pstrdup(hint) : NULL;
	PQclear(result);
	remote->failure = NULL;
	ereport(ERROR,
			(errcode(code),
			 errmsg("master: %s", message),
			 detail ? errdetail_internal("%s", detail) : 0,
			 hint ? errhint("%s", hint) : 0));
}

static void
hand_out_rows(PyrRemote *remote, PGresult *result)
{
	int			ncols = PQnfields(result);

	if (ncols > remote->maxvalues)
	{
		if (remote->values != NULL)
			pfree(remote->values);
		remote->values = MemoryContextAlloc(TopMemoryContext,
											ncols * sizeof(PyrRemoteValue));
		remote->maxvalues = ncols;
	}
	for (int r = 0; r < PQntuples(result); r++)
	{
		for (int c = 0; c < ncols; c++)
		{
			bool		isnull = PQgetisnull(result, r, c);

			remote->values[c].data = isnull ? NULL : PQgetvalue(result, r, c);
			remote->values[c].len = isnull ? -1 : PQgetlength(result, r, c);
		}
		remote->row(remote->arg, ncols, remote->values);
	}
}

/*
 * Takes a result: its rows, or what is wrong.
 */
static void
take_result(PyrRemote *remote, PGresult *result)
{
	switch (PQresultStatus(result))
	{
		case PGRES_SINGLE_TUPLE:
		case PGRES_TUPLES_OK:
			if (remote->row == NULL)
				break;
			PG_TRY();
			{
				hand_out_rows(remote, result);
			}
			PG_CATCH();
			{
				PQclear(result);
				PG_RE_THROW();
			}
			PG_END_TRY();
			break;
		case PGRES_COMMAND_OK:
			break;
		case PGRES_COPY_OUT:
			remote->is_copying = true;
			break;
		default:
			if (is_connection_error(remote, result))
				remote->is_lost = true;
			else if (remote->failure == NULL)
			{
				remote->failure = result;
				return;
			}
	}
	PQclear(result);
}

/*
 * Takes the next row of COPY; false: it has not come yet.
 */
static bool
take_copied(PyrRemote *remote)
{
	char	   *data;
	int			len = PQgetCopyData(remote->conn, &data, 1);

	if (len == 0)
		return false;
	if (len < 0)
	{
		/* how it ended is told by the result that follows */
		remote->is_copying = false;
		return true;
	}
	PG_TRY();
	{
		if (remote->copied != NULL)
			remote->copied(remote->arg, data, len);
	}
	PG_FINALLY();
	{
		PQfreemem(data);
	}
	PG_END_TRY();
	return true;
}

/*
 * Takes the results that have come as a whole; whether there were any.
 */
static bool
take_results(PyrRemote *remote)
{
	bool		any = false;

	while (remote->is_under_way && !remote->is_lost)
	{
		PGresult   *result;

		if (remote->is_copying)
		{
			if (!take_copied(remote))
				break;
			any = true;
			continue;
		}
		if (PQisBusy(remote->conn))
			break;
		result = PQgetResult(remote->conn);
		any = true;
		if (result != NULL)
			take_result(remote, result);
		else
		{
			remote->is_under_way = false;
			if (PQstatus(remote->conn) != CONNECTION_OK)
				remote->is_lost = true;
		}
	}
	return any;
}

/*
 * After a statement was handed to libpq, or not.
 */
static void
begin_statement(PyrRemote *remote, bool is_sent, PyrRemoteRow row, void *arg)
{
	remote->is_under_way = true;
	remote->is_lost = !is_sent || PQflush(remote->conn) < 0;
	remote->row = row;
	remote->copied = NULL;
	remote->is_copying = false;
	remote->arg = arg;
}

static void
remote_start(PyrRemote *remote, const char *name, const char *sql,
			 int nparams, const char *const *params,
			 PyrRemoteRow row, void *arg)
{
	int			sent;

	if (name != NULL)
		sent = PQsendQueryPrepared(remote->conn, name, nparams, params,
								   NULL, NULL, 1);
	else
		sent = PQsendQueryParams(remote->conn, sql, nparams, NULL, params,
								 NULL, NULL, 1);
	if (sent)
		PQsetSingleRowMode(remote->conn);
	begin_statement(remote, sent, row, arg);
}

static void
remote_start_script(PyrRemote *remote, const char *sql, PyrRemoteRow row,
					PyrRemoteCopied copied, void *arg)
{
	int			sent = PQsendQuery(remote->conn, sql);

	if (sent)
		PQsetSingleRowMode(remote->conn);
	begin_statement(remote, sent, row, arg);
	remote->copied = copied;
}

static void
remote_pump(PyrRemote *remote)
{
	for (int i = 0; i < PUMP_READS_MAX; i++)
	{
		if (!remote->is_under_way || remote->is_lost)
			return;
		if (PQflush(remote->conn) < 0 || !PQconsumeInput(remote->conn))
			remote->is_lost = true;
		if (!take_results(remote))
			return;
	}
}

static bool
remote_wait_answer(PyrRemote *remote)
{
	int			unsent;

	if (!remote->is_under_way || remote->is_lost)
		return false;
	unsent = PQflush(remote->conn);
	if (unsent < 0)
		return false;
	(void) wait_for(remote,
					WL_SOCKET_READABLE | (unsent > 0 ? WL_SOCKET_WRITEABLE : 0),
					-1);
	return true;
}

/*
 * Waits until there is more to take in, or what is still to be sent can be.
 */
static void
wait_for_more(PyrRemote *remote)
{
	int			events = WL_SOCKET_READABLE;
	int			unsent = PQflush(remote->conn);
	int			rc;

	if (unsent > 0)
		events |= WL_SOCKET_WRITEABLE;
	rc = wait_for(remote, events, -1);
	if ((rc & WL_LATCH_SET) && remote->give_up())
		remote->gave_up = remote->is_lost = true;
	else if (unsent < 0 ||
			 ((rc & WL_SOCKET_READABLE) && !PQconsumeInput(remote->conn)))
		remote->is_lost = true;
}

static bool
remote_finish(PyrRemote *remote)
{
	for (;;)
	{
		take_results(remote);
		if (!remote->is_under_way || remote->is_lost)
			break;
		wait_for_more(remote);
	}
	remote->is_under_way = false;
	if (remote->failure != NULL && !remote->is_lost)
		throw_failure(remote);
	return !remote->is_lost;
}

static bool
remote_prepare(PyrRemote *remote, const char *name, const char *sql)
{
	begin_statement(remote,
					PQsendPrepare(remote->conn, name, sql, 0, NULL),
					NULL, NULL);
	return remote_finish(remote);
}

static bool
remote_query(PyrRemote *remote, const char *name, const char *sql,
			 int nparams, const char *const *params,
			 PyrRemoteRow row, void *arg)
{
	remote_start(remote, name, sql, nparams, params, row, arg);
	return remote_finish(remote);
}

/*
 * Takes in all notifications; returns what they tell.
 */
static int
drain_notifications(PyrRemote *remote)
{
	PGnotify   *notify;
	int			result = 0;

	while ((notify = PQnotifies(remote->conn)) != NULL)
	{
		result |= PYR_REMOTE_NOTIFIED;
		if (strcmp(notify->extra, "tables") == 0)
			result |= PYR_REMOTE_TABLES;
		PQfreemem(notify);
	}
	return result;
}

static int
remote_wait(PyrRemote *remote, long timeout_ms)
{
	int			result = 0;
	int			rc;

	/* one may have come with an earlier answer */
	result = drain_notifications(remote);
	if (result != 0)
		return result;

	rc = wait_for(remote, WL_SOCKET_READABLE, timeout_ms);
	if (rc & WL_SOCKET_READABLE)
	{
		if (!PQconsumeInput(remote->conn) ||
			PQstatus(remote->conn) != CONNECTION_OK)
			result |= PYR_REMOTE_AWAY;
		else
			result |= drain_notifications(remote);
	}
	if (rc & WL_LATCH_SET)
		result |= PYR_REMOTE_LATCH;
	if (rc & WL_TIMEOUT)
		result |= PYR_REMOTE_TIMEOUT;
	return result;
}

/*
 * Whether it sets that variable.
 */
static bool
is_setting_of(const char *setting, const char *variable)
{
	size_t		len = strlen(variable);

	return strncmp(setting, variable, len) == 0 && setting[len] == '=';
}

/*
 * The connection has resolved everything: services, defaults, our environment.
 * So all variables that libpq looks at are set to what it came to, or not at
 * all; a service would be resolved again, and differently.  Options that have no
 * variable are left out: keepalives, which a program that runs for some seconds
 * does not need, and sslpassword, so a client key with a passphrase is of no use
 * to such a program.
 */
static char **
remote_environment(PyrRemote *remote, const char *application_name)
{
	PQconninfoOption *options = PQconninfo(remote->conn);
	int			n = 0;
	int			noptions = 0;
	char	  **environment;

	if (options == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	while (options[noptions].keyword != NULL)
		noptions++;
	while (environ[n] != NULL)
		n++;
	environment = palloc((n + noptions + 1) * sizeof(char *));
	n = 0;
	for (char **setting = environ; *setting != NULL; setting++)
	{
		bool		is_libpqs = false;

		for (int i = 0; i < noptions; i++)
			is_libpqs = is_libpqs || (options[i].envvar != NULL &&
									  is_setting_of(*setting, options[i].envvar));
		if (!is_libpqs)
			environment[n++] = *setting;
	}
	for (int i = 0; i < noptions; i++)
	{
		const char *value = options[i].val;

		if (strcmp(options[i].keyword, "application_name") == 0)
			value = application_name;
		else if (strcmp(options[i].keyword, "client_encoding") == 0)
			value = GetDatabaseEncodingName();
		else if (strcmp(options[i].keyword, "service") == 0)
			value = NULL;

		/* of several hosts, the one that we are connected to */
		else if (strcmp(options[i].keyword, "host") == 0)
			value = PQhost(remote->conn);
		else if (strcmp(options[i].keyword, "hostaddr") == 0)
			value = value != NULL && value[0] != '\0' ? PQhostaddr(remote->conn) : NULL;
		else if (strcmp(options[i].keyword, "port") == 0)
			value = PQport(remote->conn);
		else if (strcmp(options[i].keyword, "options") == 0)
			value = psprintf("%s%s-c standard_conforming_strings=on",
							 value ? value : "", value ? " " : "");
		if (options[i].envvar != NULL && value != NULL && value[0] != '\0')
			environment[n++] = psprintf("%s=%s", options[i].envvar, value);
	}
	environment[n] = NULL;
	PQconninfoFree(options);
	return environment;
}

static char *
remote_error(PyrRemote *remote)
{
	char	   *message;

	if (remote->gave_up)
		return pstrdup("given up for a change of settings");
	message = pchomp(PQerrorMessage(remote->conn));
	if (message[0] == '\0')
		message = pstrdup("the connection was closed");
	return message;
}

static const PyrRemoteFunctions functions = {
	.conninfo_value = remote_conninfo_value,
	.conninfo_display = remote_conninfo_display,
	.connect = remote_connect,
	.parameter = remote_parameter,
	.prepare = remote_prepare,
	.query = remote_query,
	.start = remote_start,
	.start_script = remote_start_script,
	.pump = remote_pump,
	.wait_answer = remote_wait_answer,
	.finish = remote_finish,
	.environment = remote_environment,
	.wait = remote_wait,
	.error = remote_error,
	.disconnect = free_remote,
};

const PyrRemoteFunctions *
pyr_remote_functions(void)
{
	return &functions;
}
