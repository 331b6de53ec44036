/*-------------------------------------------------------------------------
 *
 * ddl.c
 *	  Statements that are carried out for the database's owner: those that the
 *	  master passes on (py_log_sql), and definitions (schema.c).
 *
 * They have the rights of the owner of the slave's database and nothing more,
 * cannot touch what belongs to pyreplica, whoever the owner is, nor end the
 * transaction, and what they set is reset.
 *
 * A statement of the master comes at its place among the changes, in the window's
 * transaction.  Names in it are looked for in the schemas where the master looked,
 * all of which there have to be: else it could be about something else here.
 * Constants in it are read as the master read them.  Afterwards nothing that was
 * known of tables is certain any more; tables that it has renamed are still the
 * ones that they were.
 *
 * A new value of an enum cannot be used in the transaction that adds it, and the
 * window may bring rows with it.  So such a statement is carried out ahead, in a
 * transaction of its own, and the window begun once more; then the value is there.
 * It does no harm if the window is never applied.
 *
 * Where log triggers fire for what is applied, the statement is logged here again,
 * for slaves of this one, with its origin.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/render.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "master/log.h"
#include "master/sql.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_type.h"
#include "parser/parser.h"
#include "parser/scansup.h"
#include "pgstat.h"
#include "pyreplica.h"
#include "slave/copy.h"
#include "slave/ddl.h"
#include "slave/local.h"
#include "slave/tables.h"
#include "slave/target.h"
#include "slave/verify.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

/* longest piece of a statement in messages */
#define DESCRIBED_LEN_MAX	300

/* a statement that has to be carried out before the window, and the enum it is about */
static char *ahead[PYR_SQL_NVALUES];
static Oid	ahead_type;

/* those of this window, as char *, with which that has failed */
static List *refused = NIL;

/* ---- what they may not do ---- */

static bool is_guarding = false;
static object_access_hook_type prev_object_access = NULL;
static ExecutorCheckPerms_hook_type prev_check_perms = NULL;

static void
refuse(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("the master may not change what belongs to pyreplica on the slave")));
}

/*
 * Whether the object belongs to our extension, or is the extension.
 */
static bool
is_ours(Oid classid, Oid objectid)
{
	Oid			extension = get_extension_oid(PYR_EXTENSION, true);

	return OidIsValid(extension) &&
		((classid == ExtensionRelationId && objectid == extension) ||
		 getExtensionOfObject(classid, objectid) == extension);
}

static void
object_access(ObjectAccessType access, Oid classid, Oid objectid, int subid,
			  void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classid, objectid, subid, arg);
	if (is_guarding &&
		(access == OAT_DROP || access == OAT_POST_ALTER ||
		 (access == OAT_POST_CREATE && subid != 0) ||	/* a column */
		 PYR_ACCESS_IS_TRUNCATE(access)) &&
		is_ours(classid, objectid))
		refuse();
}

static bool
check_permissions(PYR_PERMISSIONS_PARAMS)
{
	ListCell   *cell;

	foreach(cell, permissions)
	{
		PyrPermission *permission = lfirst_node(PyrPermission, cell);

		if (is_guarding && OidIsValid(permission->relid) &&
			(permission->requiredPerms & (ACL_INSERT | ACL_UPDATE | ACL_DELETE)) != 0 &&
			is_ours(RelationRelationId, permission->relid))
			refuse();
	}
	return prev_check_perms == NULL || prev_check_perms(PYR_PERMISSIONS_ARGS);
}

static void
guard(void)
{
	static bool is_hooked = false;

	is_guarding = true;
	if (is_hooked)
		return;
	is_hooked = true;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
	prev_check_perms = ExecutorCheckPerms_hook;
	ExecutorCheckPerms_hook = check_permissions;
}

/* ---- carrying out ---- */

/*
 * Whose rights they have.
 */
static Oid
database_owner(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID,
										ObjectIdGetDatum(MyDatabaseId));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for database %u", MyDatabaseId);
	owner = ((Form_pg_database) GETSTRUCT(tuple))->datdba;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Takes on the owner's rights, with settings for statements of any kind: what is set
 * for applying changes is not for reading whole tables.
 */
static PyrIdentity
become_owner(void)
{
	PyrIdentity before = pyr_local_become(database_owner());

	pyr_config_set_here("enable_seqscan", "on");
	pyr_config_set_here("plan_cache_mode", "auto");
	return before;
}

static void
execute_guarded(const char *sql)
{
	PG_TRY();
	{
		guard();
		pyr_spi_execute(sql);
	}
	PG_FINALLY();
	{
		is_guarding = false;
	}
	PG_END_TRY();
}

/*
 * Carries out SQL that has its names qualified, in the current transaction; gives up
 * a lock that it does not get for so long.
 */
void
pyr_ddl_execute(const char *sql, const char *lock_timeout)
{
	PyrIdentity before = become_owner();

	pyr_config_set_here("standard_conforming_strings", "on");
	pyr_config_set_here("lock_timeout", lock_timeout);
	execute_guarded(sql);
	pyr_local_become_again(before);
}

/* ---- statements of the master ---- */

/*
 * Looks for names where the master did.  What is temporary comes last.
 */
static void
set_path(char *path)
{
	List	   *names = NIL;
	List	   *found;
	ListCell   *cell;

	if (!SplitIdentifierString(pstrdup(path), ',', &names))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a statement in replica_log has an impossible search_path")));
	pyr_config_set_here("search_path", path[0] != '\0' ? psprintf("%s, pg_temp", path) : "pg_temp");
	found = fetch_search_path(false);
	foreach(cell, names)
	{
		Oid			namespace = get_namespace_oid(lfirst(cell), true);

		if (!OidIsValid(namespace) || !list_member_oid(found, namespace))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_SCHEMA),
					 errmsg("schema \"%s\", where the master looked for names, %s",
							(char *) lfirst(cell),
							OidIsValid(namespace) ? "may not be used by the owner of the slave's database"
							: "does not exist on the slave"),
					 errdetail("The search_path was: %s", path),
					 errhint("Create it, or grant USAGE on it; an empty one will do. (Or call py_log_sql with a search_path that does not have it.)")));
	}
}

/*
 * The same for all that tells what the statement means.
 */
static void
set_meaning(char *const *values)
{
	static const char *const names[] = PYR_SQL_COLUMNS;

	set_path(values[1]);
	for (int i = 2; i < PYR_SQL_NVALUES; i++)
		pyr_config_set_here(names[i], values[i]);
}

/*
 * The statement, if it adds a value to an enum; or NULL.
 */
static AlterEnumStmt *
addition_to_enum(const char *words)
{
	List	   *parsed = pg_parse_query(words);
	AlterEnumStmt *stmt;

	if (list_length(parsed) != 1 ||
		!IsA(linitial_node(RawStmt, parsed)->stmt, AlterEnumStmt))
		return NULL;
	stmt = (AlterEnumStmt *) linitial_node(RawStmt, parsed)->stmt;
	return stmt->oldVal == NULL ? stmt : NULL;
}

/*
 * The enum that the statement adds a value to, if it has to be carried out ahead: the
 * value is not there yet.  is_there: it is.  An enum that the same transaction has made
 * takes values at once.
 */
static Oid
has_to_be_ahead(const char *words, bool *is_there)
{
	AlterEnumStmt *stmt = addition_to_enum(words);
	Oid			type;
	HeapTuple	tuple;
	bool		is_new;

	*is_there = false;
	if (stmt == NULL)
		return InvalidOid;
	type = LookupTypeNameOid(NULL, makeTypeNameFromNameList(stmt->typeName), true);
	tuple = OidIsValid(type) ? SearchSysCache1(TYPEOID, ObjectIdGetDatum(type)) : NULL;
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	is_new = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)) &&
		(tuple->t_data->t_infomask & HEAP_UPDATED) == 0;
	ReleaseSysCache(tuple);
	if (is_new)
		return InvalidOid;
	*is_there = SearchSysCacheExists2(ENUMTYPOIDNAME, ObjectIdGetDatum(type),
									  CStringGetDatum(stmt->newVal));
	return *is_there ? InvalidOid : type;
}

/*
 * What the statement says, of the enum by the name that it has now: the window may have
 * given it another one before.
 */
static char *
words_for_ahead(const char *words, Oid type)
{
	AlterEnumStmt *stmt = addition_to_enum(words);

	return psprintf("ALTER TYPE %s ADD VALUE %s%s%s", format_type_be_qualified(type),
					quote_literal_cstr(stmt->newVal),
					stmt->newValNeighbor == NULL ? "" :
					stmt->newValIsAfter ? " AFTER " : " BEFORE ",
					stmt->newValNeighbor == NULL ? "" :
					quote_literal_cstr(stmt->newValNeighbor));
}

static bool
is_refused(const char *words)
{
	ListCell   *cell;

	foreach(cell, refused)
	{
		if (strcmp(lfirst(cell), words) == 0)
			return true;
	}
	return false;
}

static void
note_refused(const char *words)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(TopMemoryContext);

	refused = lappend(refused, pstrdup(words));
	MemoryContextSwitchTo(oldcontext);
}

/*
 * A window begins that has not been tried yet.
 */
void
pyr_ddl_begin_window(void)
{
	list_free_deep(refused);
	refused = NIL;
}

static void
keep_for_ahead(char *const *values, Oid type)
{
	ahead_type = type;
	for (int i = 0; i < PYR_SQL_NVALUES; i++)
		ahead[i] = MemoryContextStrdup(TopMemoryContext, values[i]);
}

static void
forget_ahead(void)
{
	for (int i = 0; i < PYR_SQL_NVALUES; i++)
	{
		if (ahead[i] != NULL)
			pfree(ahead[i]);
		ahead[i] = NULL;
	}
}

/*
 * A function that lies where the log is, if what is applied here is logged again;
 * else InvalidOid.
 */
static Oid
forwarding_function(void)
{
	MemoryContext context = CurrentMemoryContext;
	bool		isnull;
	Oid			function = InvalidOid;

	if (SPI_execute(psprintf("SELECT tgfoid FROM pg_catalog.pg_trigger"
							 " WHERE tgfoid = '%s.py_log_replica'::pg_catalog.regproc"
							 "   AND tgenabled IN ('A', 'R') LIMIT 1",
							 pyr_local_schema()),
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look for log triggers");
	if (SPI_processed > 0)
		function = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0],
												  SPI_tuptable->tupdesc, 1,
												  &isnull));
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	return function;
}

/*
 * Runs the statement as the master did.  False: it has to be carried out ahead.
 */
static bool
run_statement(char *const *values)
{
	PyrIdentity before = become_owner();
	int			was_entered;
	bool		is_there;
	Oid			type;

	set_meaning(values);
	type = has_to_be_ahead(values[0], &is_there);
	if (OidIsValid(type) && !is_refused(values[0]))
	{
		keep_for_ahead(values, type);
		pyr_local_become_again(before);
		return false;
	}

	/* what it does to rows, slaves of this one do by running it */
	was_entered = pyr_sql_enter();
	PG_TRY();
	{
		if (!is_there)
			execute_guarded(values[0]);
	}
	PG_FINALLY();
	{
		pyr_sql_leave(was_entered);
	}
	PG_END_TRY();
	pyr_local_become_again(before);
	return true;
}

/*
 * The statement in one line, not too long.
 */
char *
pyr_ddl_describe(PyrChange *change, int encoding)
{
	StringInfoData line;
	bool		is_blank = false;

	initStringInfo(&line);
	for (char *p = pyr_sql_words(change, encoding); *p != '\0'; p++)
	{
		if (scanner_isspace(*p))
			is_blank = true;
		else
		{
			if (is_blank)
				appendStringInfoChar(&line, ' ');
			is_blank = false;
			appendStringInfoChar(&line, *p);
		}
	}
	if (line.len > DESCRIBED_LEN_MAX)
	{
		line.len = pg_mbcliplen(line.data, line.len, DESCRIBED_LEN_MAX);
		line.data[line.len] = '\0';
		appendStringInfoString(&line, "...");
	}
	return line.data;
}

/*
 * Carries out a statement that the master passes on, at this place.  Everything that
 * came before has been applied.  False: the transaction has to be rolled back, and
 * pyr_ddl_run_ahead called, before the window is tried again.
 */
bool
pyr_ddl_apply(PyrChange *change, int encoding)
{
	char	   *values[PYR_SQL_NVALUES];
	Oid			function = forwarding_function();
	PyrTableNames *names;

	for (int i = 0; i < PYR_SQL_NVALUES; i++)
		values[i] = pyr_sql_value(change, i, encoding);
	pgstat_report_activity(STATE_RUNNING,
						   psprintf("applying: %s", pyr_ddl_describe(change, encoding)));
	if (OidIsValid(function))
		pyr_log_statement(function, (const char *const *) values);
	names = pyr_tables_note_names();
	if (!run_statement(values))
		return false;
	pyr_target_invalidate_all();
	pyr_tables_follow_names(names);
	pyr_copy_forget_layouts();
	pyr_verify_forget_layout();
	return true;
}

/*
 * Whether a statement waits to be carried out ahead.
 */
bool
pyr_ddl_is_waiting(void)
{
	return ahead[0] != NULL;
}

/*
 * Carries it out, in a transaction of its own.  If that cannot be done, it will be
 * tried at its place, where the error is told.
 */
void
pyr_ddl_run_ahead(void)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		PyrIdentity before;

		pyr_local_begin_transaction();
		before = become_owner();
		set_meaning(ahead);
		execute_guarded(words_for_ahead(ahead[0], ahead_type));
		pyr_local_become_again(before);
		pyr_local_commit_transaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		AbortCurrentTransaction();
		note_refused(ahead[0]);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	forget_ahead();
}
