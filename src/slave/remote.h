/*-------------------------------------------------------------------------
 *
 * remote.h
 *	  What the connection module offers: libpq behind a table of functions.
 *
 * The module (src/remote/pyreplica_libpq.c) is loaded by the worker when it
 * first connects, so that nothing else ever maps libpq.  Its functions wait
 * on the process latch as well as on the socket, and serve interrupts.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_REMOTE_H
#define PYR_REMOTE_H

typedef struct PyrRemote PyrRemote;

/* one value of a row in binary form; len < 0: NULL */
typedef struct PyrRemoteValue
{
	const char *data;			/* zero-terminated as well */
	int			len;
} PyrRemoteValue;

typedef void (*PyrRemoteRow) (void *arg, int ncols,
							  const PyrRemoteValue *values);

/* takes a row that COPY sends, as it is sent */
typedef void (*PyrRemoteCopied) (void *arg, const char *data, int len);

/*
 * Asked whenever the latch was set: true gives up what is being waited for.
 * It may also throw.
 */
typedef bool (*PyrRemoteGiveUp) (void);

/* what ended a wait; a set of these */
#define PYR_REMOTE_NOTIFIED	0x01
#define PYR_REMOTE_LATCH	0x02
#define PYR_REMOTE_TIMEOUT	0x04
#define PYR_REMOTE_AWAY		0x08
#define PYR_REMOTE_TABLES	0x10	/* with NOTIFIED: tables were added or taken
									 * away */

typedef struct PyrRemoteFunctions
{
	/*
	 * The value of a keyword in a connection string, or NULL; palloc'd.  If
	 * the string cannot be parsed, *error says why (palloc'd).
	 */
	char	   *(*conninfo_value) (const char *conninfo, const char *keyword,
								   char **error);

	/* the connection string without what is secret, palloc'd */
	char	   *(*conninfo_display) (const char *conninfo);

	/*
	 * Connects, under that application_name.  NULL if that fails; *error says
	 * why (palloc'd), or is NULL if give_up said so.
	 */
	PyrRemote  *(*connect) (const char *conninfo, const char *application_name,
							PyrRemoteGiveUp give_up, char **error);

	/* a parameter that the server reported, such as server_encoding */
	const char *(*parameter) (PyrRemote *remote, const char *name);

	/* Prepares a statement.  Returns like query. */
	bool		(*prepare) (PyrRemote *remote, const char *name,
							const char *sql);

	/*
	 * Runs a statement; name is that of a prepared one or NULL.  Calls row for
	 * each row as it arrives, with values in binary form.  False: the
	 * connection is gone (see error).  An error that the server reports for
	 * the statement is thrown with all it said.
	 */
	bool		(*query) (PyrRemote *remote, const char *name, const char *sql,
						  int nparams, const char *const *params,
						  PyrRemoteRow row, void *arg);

	/*
	 * The same in three steps, so that other things can be done while the
	 * answer comes: start only sends the statement; pump takes in what has
	 * come of the answer, without waiting, serving interrupts or throwing what
	 * the server reports; finish waits for the rest, and returns or throws like
	 * query.  In between, nothing else can be asked.
	 *
	 * wait_answer waits until something has come that pump could take in, or for
	 * the latch; false, without waiting: nothing will come.
	 */
	void		(*start) (PyrRemote *remote, const char *name, const char *sql,
						  int nparams, const char *const *params,
						  PyrRemoteRow row, void *arg);
	void		(*pump) (PyrRemote *remote);
	bool		(*wait_answer) (PyrRemote *remote);
	bool		(*finish) (PyrRemote *remote);

	/*
	 * Like start, for several statements that are carried out in one
	 * transaction.  Rows of all of them go to row; their values have the form
	 * that the statement gives them (binary if they come from a binary cursor).
	 * Rows of COPY TO STDOUT go to copied.
	 */
	void		(*start_script) (PyrRemote *remote, const char *sql,
								 PyrRemoteRow row, PyrRemoteCopied copied,
								 void *arg);

	/*
	 * An environment (as environ) in which a program that uses libpq connects
	 * as this connection did, under that application_name and with our
	 * database's encoding; palloc'd.
	 */
	char	  **(*environment) (PyrRemote *remote, const char *application_name);

	/*
	 * Waits, at most timeout_ms, for a notification or the latch.
	 */
	int			(*wait) (PyrRemote *remote, long timeout_ms);

	/* why the connection is gone; palloc'd */
	char	   *(*error) (PyrRemote *remote);

	void		(*disconnect) (PyrRemote *remote);
} PyrRemoteFunctions;

/* the one function that the module exports */
#define PYR_REMOTE_MODULE	"pyreplica_libpq"
#define PYR_REMOTE_FUNCTION	"pyr_remote_functions"
typedef const PyrRemoteFunctions *(*PyrRemoteFunctionsGetter) (void);

#endif							/* PYR_REMOTE_H */
