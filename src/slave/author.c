/*-------------------------------------------------------------------------
 *
 * author.c
 *	  Who wrote a row of the slave: this replica, another one, or somebody
 *	  here.
 *
 * What the worker writes carries a replication origin of the server's, called
 * pyreplica_<replica>, as a logical subscription's work carries one.  With
 * track_commit_timestamp the server remembers the origin and time of each
 * transaction for as long as it has not frozen its rows; so the xmin of a row
 * tells who wrote it last.
 *
 * Whatever was here before the replica began (restored from a dump, say) is
 * what both sides began with, and counts as written by the replica.  So does
 * what nobody can tell of any more.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/commit_ts.h"
#include "access/transam.h"
#include "access/xact.h"
#include "common/config.h"
#include "fmgr.h"
#include "slave/author.h"
#include "slave/policy.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(pyreplica_own);

#define ORIGIN_PREFIX	"pyreplica_"
#define COPY_SUFFIX		" copy "

/* transactions looked up lately */
#define CACHE_SIZE		64

static RepOriginId our_origin = InvalidRepOriginId;
static TimestampTz began = 0;
static struct
{
	TransactionId xid;
	bool		is_ours;
}			cache[CACHE_SIZE];

/*
 * Makes the origin this session's.
 */
static void
set_up_origin(const char *name)
{
	RepOriginId origin = replorigin_by_name(name, true);

	if (origin == InvalidRepOriginId)
		origin = replorigin_create(name);
	pyr_origin_session_setup(origin);
	our_origin = replorigin_session_origin = origin;
}

/*
 * The same, unless the server has no place for it.
 */
static char *
try_origin(const char *name)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	if (PYR_MAX_ORIGINS == 0)
		return PYR_MAX_ORIGINS_NAME " is zero";
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		set_up_origin(name);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error != NULL ? error->message : NULL;
}

/*
 * What this session writes from now on carries the replica's name.  began_at
 * is when the replica began; 0: now.  Within a transaction.
 */
void
pyr_author_begin(const char *replica, TimestampTz began_at)
{
	char	   *problem = try_origin(psprintf(ORIGIN_PREFIX "%s", replica));

	began = began_at != 0 ? began_at : GetCurrentTimestamp();

	/* what we wrote now would be taken for somebody else's later */
	if (problem != NULL && track_commit_timestamp &&
		pyr_policy_watches_origins())
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("what this replica writes cannot be told from what others write: %s",
						problem),
				 errhint("Increase " PYR_MAX_ORIGINS_NAME ", or let pyreplica.conflict_resolution be error or apply_remote, in all tables.")));
	if (problem != NULL)
		ereport(LOG,
				(errmsg("pyreplica %s: what it writes cannot be told from what others write: %s",
						replica, problem),
				 errhint("Increase " PYR_MAX_ORIGINS_NAME " if conflicts with local writes are to be recognized by origin."),
				 errhidestmt(true)));
}

/*
 * The same for the replica's nth copy worker: an origin can be one session's
 * only, so it has one of its own, which the worker knows by its name.  False: it
 * would matter, but there is no place for it.
 */
bool
pyr_author_begin_copy(const char *replica, int number)
{
	char	   *problem = try_origin(psprintf(ORIGIN_PREFIX "%s" COPY_SUFFIX "%d",
											  replica, number));

	if (problem == NULL || !track_commit_timestamp)
		return true;
	ereport(LOG,
			(errmsg("pyreplica %s: a copy worker cannot work: %s",
					replica, problem),
			 errdetail("What it writes could not be told from what others write."),
			 errhint("Increase " PYR_MAX_ORIGINS_NAME ", or set pyreplica.copy_workers to 0."),
			 errhidestmt(true)));
	return false;
}

/*
 * Whether it is the origin of one of our copy workers.
 */
static bool
is_copy_origin(RepOriginId origin)
{
	static RepOriginId known[PYR_COPY_WORKERS_MAX];
	static int	nknown = 0;
	char	   *name;
	char	   *ours;
	size_t		len;

	for (int i = 0; i < nknown; i++)
	{
		if (known[i] == origin)
			return true;
	}
	if (!replorigin_by_oid(our_origin, true, &ours) ||
		!replorigin_by_oid(origin, true, &name))
		return false;
	len = strlen(ours);
	if (strncmp(name, ours, len) != 0 ||
		strncmp(name + len, COPY_SUFFIX, strlen(COPY_SUFFIX)) != 0)
		return false;
	if (nknown < PYR_COPY_WORKERS_MAX)
		known[nknown++] = origin;
	return true;
}

/*
 * Whether authors are known at all.
 */
bool
pyr_author_can_tell(void)
{
	return track_commit_timestamp && our_origin != InvalidRepOriginId;
}

/*
 * What the current transaction writes gets that time: the one at which the
 * master's last transaction in it committed there.  0: when it commits.
 */
void
pyr_author_stamp(TimestampTz at)
{
	replorigin_session_origin_timestamp = at;
}

PyrAuthor
pyr_author_of(TransactionId xid)
{
	PyrAuthor	author = {.is_ours = true};

	if (!pyr_author_can_tell() || TransactionIdIsCurrentTransactionId(xid) ||
		!TransactionIdGetCommitTsData(xid, &author.at, &author.origin))
		return author;
	author.is_timed = true;
	if (author.origin == InvalidRepOriginId)
		author.is_ours = author.at < began;
	else
		author.is_ours = author.origin == our_origin ||
			is_copy_origin(author.origin);
	return author;
}

/*
 * A name for people; NULL if there is nothing to tell.
 */
char *
pyr_author_name(const PyrAuthor *author)
{
	char	   *name;

	if (!author->is_timed)
		return NULL;
	if (author->origin == InvalidRepOriginId)
		return "local";
	if (!replorigin_by_oid(author->origin, true, &name))
		return psprintf("origin %d", author->origin);
	if (strncmp(name, ORIGIN_PREFIX, strlen(ORIGIN_PREFIX)) == 0)
		name += strlen(ORIGIN_PREFIX);
	return name;
}

/*
 * pyreplica_own(xid) returns boolean: whether the worker that asks takes the
 * transaction for its own.  Its statements do, of the rows that they change.
 */
Datum
pyreplica_own(PG_FUNCTION_ARGS)
{
	TransactionId xid = PG_GETARG_TRANSACTIONID(0);
	int			slot = xid % CACHE_SIZE;

	if (our_origin == InvalidRepOriginId)
		PG_RETURN_BOOL(true);
	if (cache[slot].xid != xid)
	{
		/* what is said of a transaction in progress may change */
		bool		is_ours = pyr_author_of(xid).is_ours;

		if (TransactionIdIsCurrentTransactionId(xid))
			PG_RETURN_BOOL(true);
		cache[slot].xid = xid;
		cache[slot].is_ours = is_ours;
	}
	PG_RETURN_BOOL(cache[slot].is_ours);
}
