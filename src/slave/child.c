/*-------------------------------------------------------------------------
 *
 * child.c
 *	  A program that runs beside the worker, one at a time, while the worker
 *	  goes on with its work.
 *
 * What it writes goes to temporary files of the server, so however much that
 * is, nobody waits for it to be read.  When the program ends, the worker's latch
 * is set.  The program does not outlive the worker: signals that the postmaster
 * sends to the worker's process group reach it, too, and a worker that exits
 * for another reason kills it.  (One that is killed itself cannot, but then
 * nobody reads what the program writes.)
 *
 * It is started by posix_spawn, without a shell and without any code of ours
 * running between fork and exec, and gets its environment as an argument, so
 * that secrets need not enter our own environment, nor a command line that
 * everybody can see.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "common/compat.h"
#include "miscadmin.h"
#include "slave/child.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"

/* of what the program complains about, so much is kept */
#define COMPLAINT_MAX		2000

static struct
{
	bool		exists;
	pid_t		pid;			/* 0: it has ended */
	int			status;			/* then, as wait() tells it */
	File		output;
	File		complaints;
}			child;

static void
wake(SIGNAL_ARGS)
{
	int			save_errno = errno;

	(void) postgres_signal_arg;
	SetLatch(MyLatch);
	errno = save_errno;
}

static void
end_at_exit(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	pyr_child_end();
}

/*
 * The child gets no input, and files for what it writes.
 */
static void
redirect(posix_spawn_file_actions_t *actions)
{
	posix_spawn_file_actions_init(actions);
	posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null",
									 O_RDONLY, 0);
	posix_spawn_file_actions_addopen(actions, STDOUT_FILENO,
									 FilePathName(child.output), O_WRONLY, 0);
	posix_spawn_file_actions_addopen(actions, STDERR_FILENO,
									 FilePathName(child.complaints), O_WRONLY, 0);
}

/*
 * Signals have their ordinary meaning for it; the server ignores some.
 */
static void
reset_signals(posix_spawnattr_t *attributes)
{
	sigset_t	none;
	sigset_t	defaults;

	sigemptyset(&none);
	sigemptyset(&defaults);
	sigaddset(&defaults, SIGPIPE);
	sigaddset(&defaults, SIGHUP);
	sigaddset(&defaults, SIGINT);
	sigaddset(&defaults, SIGTERM);
	posix_spawnattr_init(attributes);
	posix_spawnattr_setsigmask(attributes, &none);
	posix_spawnattr_setsigdefault(attributes, &defaults);
	posix_spawnattr_setflags(attributes,
							 POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
}

/*
 * Starts the program; there must be none.
 */
void
pyr_child_start(const char *path, const char *const *argv, char **environment)
{
	static bool is_prepared = false;
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	int			error;

	Assert(!child.exists);
	if (!is_prepared)
	{
		before_shmem_exit(end_at_exit, (Datum) 0);
		pqsignal(SIGCHLD, wake);
		is_prepared = true;
	}
	child.output = child.complaints = -1;
	child.pid = 0;
	child.exists = true;
	child.output = OpenTemporaryFile(true);
	child.complaints = OpenTemporaryFile(true);

	redirect(&actions);
	reset_signals(&attributes);
	error = posix_spawn(&child.pid, path, &actions, &attributes,
						(char *const *) argv, environment);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	if (error == 0)
		return;
	child.pid = 0;
	pyr_child_end();
	errno = error;
	ereport(ERROR,
			(errcode_for_file_access(),
			 errmsg("could not run \"%s\": %m", path)));
}

/*
 * Whether there is one, running or ended.
 */
bool
pyr_child_exists(void)
{
	return child.exists;
}

bool
pyr_child_is_running(void)
{
	int			status = -1;	/* should somebody else have waited for it */

	if (child.pid == 0)
		return false;
	if (waitpid(child.pid, &status, WNOHANG) == 0)
		return true;
	child.pid = 0;
	child.status = status;
	return false;
}

static char *
read_complaints(void)
{
	char	   *text = palloc(COMPLAINT_MAX + 1);
	int			n = FileRead(child.complaints, text, COMPLAINT_MAX, 0,
							 PG_WAIT_EXTENSION);

	text[Max(n, 0)] = '\0';
	while (n > 0 && text[n - 1] == '\n')
		text[--n] = '\0';
	return text;
}

/*
 * What is wrong with how it ended; NULL: nothing.  palloc'd.
 */
char *
pyr_child_failure(void)
{
	char	   *complaints;

	if (child.status == 0)
		return NULL;
	complaints = read_complaints();
	return complaints[0] != '\0' ? complaints
		: wait_result_to_str(child.status);
}

/*
 * What it has written.
 */
File
pyr_child_output(void)
{
	return child.output;
}

/*
 * There is none any more.
 */
void
pyr_child_end(void)
{
	if (!child.exists)
		return;
	if (child.pid != 0)
	{
		/* it has nothing to lose, so it goes at once */
		kill(child.pid, SIGKILL);
		while (waitpid(child.pid, &child.status, 0) < 0 && errno == EINTR)
			;
		child.pid = 0;
	}
	if (child.output >= 0)
		FileClose(child.output);
	if (child.complaints >= 0)
		FileClose(child.complaints);
	child.exists = false;
}
