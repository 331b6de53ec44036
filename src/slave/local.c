/*-------------------------------------------------------------------------
 *
 * local.c
 *	  The slave's own database, as the worker finds or makes it: the session's
 *	  settings, and the extension.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "commands/tablespace.h"
#include "commands/trigger.h"
#include "common/textform.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "pyreplica.h"
#include "slave/author.h"
#include "slave/local.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"

static const char *replica_name = NULL;
static char *schema = NULL;
static Oid	schema_oid = InvalidOid;
static MemoryContext outer_context; /* what was current before a transaction */

/*
 * Settings that applying relies on, whatever the server, the database or the
 * role says.  Ordinary triggers do not fire, names are always qualified, and
 * text that comes from the master is read as it was written (textform.c).
 *
 * A commit here need not wait for the disk: rows and position go together, and
 * the master is only told of what is safe.
 */
void
pyr_local_begin_session(const char *replica)
{
	static const char *const settings[][2] = {
		{"session_replication_role", "replica"},
		{"synchronous_commit", "off"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"check_function_bodies", "off"},
		{"row_security", "off"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"transaction_timeout", "0"},
		{"plan_cache_mode", "force_generic_plan"},
		{"enable_seqscan", "off"},
		{"jit", "off"},
	};

	for (size_t i = 0; i < lengthof(settings); i++)
	{
		/* some are not there in all versions */
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1],
							PGC_SUSET, PGC_S_OVERRIDE);
	}
	for (const PyrTextSetting *setting = pyr_text_settings; setting->name; setting++)
		SetConfigOption(setting->name, setting->value, PGC_SUSET, PGC_S_OVERRIDE);

	/* what is copied comes in the encoding of the database */
	SetConfigOption("client_encoding", GetDatabaseEncodingName(),
					PGC_USERSET, PGC_S_OVERRIDE);
	replica_name = replica;
	SetConfigOption("application_name", psprintf("pyreplica %s", replica),
					PGC_USERSET, PGC_S_SESSION);
}

/*
 * Begins a transaction in which SPI can be used.
 */
void
pyr_local_begin_transaction(void)
{
	outer_context = CurrentMemoryContext;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());

	/* what is fetched meanwhile may need a file, but must not look them up */
	PrepareTempTablespaces();

	/* unless somebody says otherwise, it is of the time when it commits */
	pyr_author_stamp(0);
}

void
pyr_local_commit_transaction(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(outer_context);
	pgstat_report_stat(false);
}

/*
 * Constraint triggers that fire in a replica do so at once.  (Deferred, they
 * would fire with our rights, which the server does not allow.  Deferrable keys
 * are not looked at in a replica, which is just as well: the master may have
 * swapped them within a transaction.)
 */
void
pyr_local_constraints_immediate(void)
{
	ConstraintsSetStmt *stmt = makeNode(ConstraintsSetStmt);

	stmt->constraints = NIL;
	stmt->deferred = false;
	AfterTriggerSetState(stmt);
}

static void
find_schema(void)
{
	bool		isnull;

	if (SPI_execute("SELECT pg_catalog.quote_ident(n.nspname), n.oid"
					"  FROM pg_catalog.pg_extension e"
					"  JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
					" WHERE e.extname = '" PYR_EXTENSION "'",
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for the extension");
	if (SPI_processed == 0)
		return;
	schema = MemoryContextStrdup(TopMemoryContext,
								 SPI_getvalue(SPI_tuptable->vals[0],
											  SPI_tuptable->tupdesc, 1));
	schema_oid = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
												SPI_tuptable->tupdesc, 2,
												&isnull));
}

static void
create_extension(void)
{
	int			rc;

	rc = SPI_execute("SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'public'",
					 true, 1);
	if (rc == SPI_OK_SELECT && SPI_processed > 0)
		rc = SPI_execute("CREATE EXTENSION " PYR_EXTENSION " SCHEMA public",
						 false, 0);
	else
	{
		(void) SPI_execute("CREATE SCHEMA IF NOT EXISTS pyreplica", false, 0);
		/* statements that run as a table's owner use a function in it */
		(void) SPI_execute("GRANT USAGE ON SCHEMA pyreplica TO PUBLIC", false, 0);
		rc = SPI_execute("CREATE EXTENSION " PYR_EXTENSION " SCHEMA pyreplica",
						 false, 0);
	}
	if (rc < 0)
		elog(ERROR, "could not create the extension: %s",
			 SPI_result_code_string(rc));
}

static void
look_again(void)
{
	CommandCounterIncrement();
	PopActiveSnapshot();
	PushActiveSnapshot(GetTransactionSnapshot());
	find_schema();
}

/*
 * Creates the extension in the slave's database, unless it is there (say
 * because the database was restored from a dump of the master).  Another
 * replica's worker may be about to do that, too.
 */
void
pyr_local_ensure_extension(void)
{
	pyr_local_begin_transaction();
	find_schema();
	if (schema == NULL)
	{
		LockRelationOid(ExtensionRelationId, ShareRowExclusiveLock);
		look_again();
	}
	if (schema == NULL)
	{
		create_extension();
		look_again();
	}
	pyr_local_commit_transaction();
}

/*
 * The name of the replica that this process is the worker of.
 */
const char *
pyr_local_replica(void)
{
	return replica_name;
}

/*
 * The schema that the extension is in here, quoted.
 */
const char *
pyr_local_schema(void)
{
	return schema;
}

Oid
pyr_local_schema_oid(void)
{
	return schema_oid;
}

/*
 * The OID of one of the extension's tables or indexes here.
 */
Oid
pyr_local_relation(const char *name)
{
	Oid			oid = get_relname_relid(name, schema_oid);

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s\" of the extension is missing", name)));
	return oid;
}

/*
 * Takes on the rights of that user, the owner of a table, whose code may run
 * from here on: in triggers, domains, index expressions.  It cannot use this to
 * get at our rights, and settings that it changes are reset.  The owner sees all rows
 * of his tables, also where row security is forced on him.  An abort of the transaction
 * takes all that back as well.
 */
PyrIdentity
pyr_local_become(Oid user)
{
	PyrIdentity before;

	GetUserIdAndSecContext(&before.user, &before.security);
	before.settings = NewGUCNestLevel();
	if (user != before.user)
		SetUserIdAndSecContext(user,
							   before.security | SECURITY_RESTRICTED_OPERATION |
							   SECURITY_NOFORCE_RLS);
	return before;
}

void
pyr_local_become_again(PyrIdentity before)
{
	AtEOXact_GUC(false, before.settings);
	SetUserIdAndSecContext(before.user, before.security);
}

/*
 * Whether an error has nothing to do with what was done, so that to do it in
 * another way, or to leave it out, is no way out: resources, shutdown, I/O.  (A file
 * that is not there is mostly the library of a function: that belongs to what is done.)
 */
bool
pyr_is_of_the_system(int sqlerrcode)
{
	int			category = ERRCODE_TO_CATEGORY(sqlerrcode);

	return category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) ||
		category == ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION) ||
		(category == ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR) &&
		 sqlerrcode != ERRCODE_UNDEFINED_FILE);
}

/*
 * Makes the attempt in a subtransaction.  If it fails, all of it is taken back
 * and the error returned, in the current memory context; so it is, without an
 * error, if the attempt itself says that it came to nothing.  Errors of the
 * system are thrown.
 */
bool
pyr_local_try(PyrAttempt attempt, void *arg, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile caught = NULL;
	volatile bool is_done = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		is_done = attempt(arg);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		caught = CopyErrorData();
		if (pyr_is_of_the_system(caught->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();

	if (is_done)
		ReleaseCurrentSubTransaction();
	else
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	*error = caught;
	return is_done;
}
