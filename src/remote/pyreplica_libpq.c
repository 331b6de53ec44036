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
#include "utils/wait_event.h"

PG_MODULE_MAGIC;

/* when the connection string does not say connect_timeout */
#define CONNECT_TIMEOUT_MS	10000

struct PyrRemote
{
	PGconn	   *conn;
	PyrRemoteGiveUp give_up;
	bool		gave_up;
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
 * Sends what is still to be sent.
 */
static bool
flush_output(PyrRemote *remote)
{
	int			rc;

	while ((rc = PQflush(remote->conn)) > 0)
	{
		rc = wait_for(remote, WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE, -1);
		if ((rc & WL_LATCH_SET) && remote->give_up())
		{
			remote->gave_up = true;
			return false;
		}
		if ((rc & WL_SOCKET_READABLE) && !PQconsumeInput(remote->conn))
			return false;
	}
	return rc == 0;
}

/*
 * The next result, waiting for it.  NULL with *lost: the connection is gone.
 */
static PGresult *
next_result(PyrRemote *remote, bool *lost)
{
	*lost = false;
	while (PQisBusy(remote->conn))
	{
		int			rc = wait_for(remote, WL_SOCKET_READABLE, -1);

		if ((rc & WL_LATCH_SET) && remote->give_up())
		{
			remote->gave_up = true;
			*lost = true;
			return NULL;
		}
		if ((rc & WL_SOCKET_READABLE) && !PQconsumeInput(remote->conn))
		{
			*lost = true;
			return NULL;
		}
	}
	return PQgetResult(remote->conn);
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
throw_result(PGresult *result)
{
	const char *sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);
	const char *hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);

	/* the result is freed by our caller's PG_FINALLY, so copy */
	message = pstrdup(message ? message : "unknown error");
	detail = detail ? pstrdup(detail) : NULL;
	hint = hint ? pstrdup(hint) : NULL;
	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2],
								   sqlstate[3], sqlstate[4])),
			 errmsg("master: %s", message),
			 detail ? errdetail_internal("%s", detail) : 0,
			 hint ? errhint("%s", hint) : 0));
}

static void
hand_out_rows(PyrRemote *remote, PGresult *result, PyrRemoteRow row, void *arg)
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
		row(arg, ncols, remote->values);
	}
}

/*
 * Collects all results of what was sent.
 */
static bool
collect_results(PyrRemote *remote, PyrRemoteRow row, void *arg)
{
	PGresult   *volatile result = NULL;
	volatile bool alive = true;

	if (!flush_output(remote))
		return false;

	PG_TRY();
	{
		for (;;)
		{
			bool		lost;

			result = next_result(remote, &lost);
			if (result == NULL)
			{
				alive = !lost && PQstatus(remote->conn) == CONNECTION_OK;
				break;
			}
			switch (PQresultStatus(result))
			{
				case PGRES_SINGLE_TUPLE:
				case PGRES_TUPLES_OK:
					if (row != NULL)
						hand_out_rows(remote, result, row, arg);
					break;
				case PGRES_COMMAND_OK:
					break;
				default:
					if (is_connection_error(remote, result))
						alive = false;
					else
						throw_result(result);
			}
			PQclear(result);
			result = NULL;
			if (!alive)
				break;
		}
	}
	PG_FINALLY();
	{
		PQclear(result);
	}
	PG_END_TRY();

	return alive;
}

static bool
remote_prepare(PyrRemote *remote, const char *name, const char *sql)
{
	if (!PQsendPrepare(remote->conn, name, sql, 0, NULL))
		return false;
	return collect_results(remote, NULL, NULL);
}

static bool
remote_query(PyrRemote *remote, const char *name, const char *sql,
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
	if (!sent)
		return false;
	PQsetSingleRowMode(remote->conn);
	return collect_results(remote, row, arg);
}

/*
 * Takes in and forgets all notifications; whether there were any.
 */
static bool
drain_notifications(PyrRemote *remote)
{
	PGnotify   *notify;
	bool		any = false;

	while ((notify = PQnotifies(remote->conn)) != NULL)
	{
		any = true;
		PQfreemem(notify);
	}
	return any;
}

static int
remote_wait(PyrRemote *remote, long timeout_ms)
{
	int			result = 0;
	int			rc;

	/* one may have come with an earlier answer */
	if (drain_notifications(remote))
		return PYR_REMOTE_NOTIFIED;

	rc = wait_for(remote, WL_SOCKET_READABLE, timeout_ms);
	if (rc & WL_SOCKET_READABLE)
	{
		if (!PQconsumeInput(remote->conn) ||
			PQstatus(remote->conn) != CONNECTION_OK)
			result |= PYR_REMOTE_AWAY;
		else if (drain_notifications(remote))
			result |= PYR_REMOTE_NOTIFIED;
	}
	if (rc & WL_LATCH_SET)
		result |= PYR_REMOTE_LATCH;
	if (rc & WL_TIMEOUT)
		result |= PYR_REMOTE_TIMEOUT;
	return result;
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
	.wait = remote_wait,
	.error = remote_error,
	.disconnect = free_remote,
};

const PyrRemoteFunctions *
pyr_remote_functions(void)
{
	return &functions;
}
