/*-------------------------------------------------------------------------
 *
 * sql.c
 *	  Statements that are passed on to slaves: py_log_sql.
 *
 * Definitions travel as statements, rows as rows.  The text given is divided into
 * its statements, and each is run here with the caller's own rights.  One that
 * defines something (as the server's own log_statement = 'ddl' has it), or that can
 * call functions which do (SELECT, CALL, DO), is logged before it is run, with the
 * settings that tell what it means, and slaves run it at this place among the
 * transaction's changes.  One that only changes rows (INSERT, UPDATE, DELETE, MERGE,
 * COPY, TRUNCATE) is run here alone: what it does, and what comes of it by triggers
 * and foreign keys, is logged as of any client.  So is one that is about this session
 * or server (SET, LOCK, NOTIFY), or that calls a function of pyreplica: py_log_create_tg
 * makes a log trigger here, and not on the slaves.
 *
 * Rows that a statement changes which is passed on, a DO for example, are changed on
 * slaves by the statement itself, so they must not be logged as well.  But on slaves
 * triggers do not fire.  So what triggers change, and with them foreign keys, is
 * logged.  One knows them apart by how deep the log trigger is called; and what
 * foreign keys change, which have the statement call the triggers, by the commands
 * that they did it with.
 *
 * On slaves, what is logged comes after all that the statement does by itself.  So a
 * table must not be changed by it once triggers or foreign keys have changed it: that is
 * refused, as the two may be about the same row.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "commands/trigger.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/format.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "master/log.h"
#include "master/sql.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "parser/scansup.h"
#include "pyreplica.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(py_log_sql);
PG_FUNCTION_INFO_V1(py_log_passed_on);
PG_FUNCTION_INFO_V1(py_log_there);
PG_FUNCTION_INFO_V1(py_log_only_here);

/* how deep triggers were when a statement that is passed on began; -1: none runs */
#define NOT_RUNNING		(-1)
static int	begun_at = NOT_RUNNING;

/* the command that would have been next then */
static CommandId begun_with = InvalidCommandId;

/* it is one that can call functions, and defines nothing by itself */
static bool is_call = false;

/* the commands of this transaction that foreign keys have used since */
static Bitmapset *key_commands = NULL;
static ExecutorStart_hook_type prev_executor_start = NULL;
static object_access_hook_type prev_object_access = NULL;

/* tables whose changes, made by triggers or foreign keys, have been logged since */
static List *logged_tables = NIL;

static int
trigger_depth(void)
{
	return DatumGetInt32(pg_trigger_depth(NULL));
}

/*
 * Notes the commands of foreign keys: nobody else leaves calling triggers to the
 * statement that is running.
 */
static void
executor_start(QueryDesc *query, int eflags)
{
	MemoryContext oldcontext;

	if (prev_executor_start)
		prev_executor_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
	if (begun_at == NOT_RUNNING || (eflags & EXEC_FLAG_SKIP_TRIGGERS) == 0 ||
		query->operation == CMD_SELECT)
		return;
	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	key_commands = bms_add_member(key_commands, query->estate->es_output_cid);
	MemoryContextSwitchTo(oldcontext);
}

static void check_not_logged(Oid relid);

/*
 * What a statement defines must not be about what is logged after it, either.
 */
static void
object_access(ObjectAccessType access, Oid classid, Oid objectid, int subid,
			  void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classid, objectid, subid, arg);
	if (begun_at != NOT_RUNNING && classid == RelationRelationId &&
		(access == OAT_DROP || access == OAT_POST_ALTER ||
		 (access == OAT_POST_CREATE && subid != 0)))	/* a column */
		check_not_logged(objectid);
}

static void
watch(void)
{
	static bool is_hooked = false;

	if (is_hooked)
		return;
	is_hooked = true;
	prev_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
}

/*
 * A statement is about to run that is passed on.  Returns what pyr_sql_leave needs
 * when it has ended, in whatever way.
 */
int
pyr_sql_enter(void)
{
	int			before = begun_at;

	watch();
	begun_at = trigger_depth();
	begun_with = GetCurrentCommandId(false);
	return before;
}

void
pyr_sql_leave(int before)
{
	begun_at = before;
	bms_free(key_commands);
	key_commands = NULL;
	list_free(logged_tables);
	logged_tables = NIL;
}

/*
 * Whether such a statement is running.
 */
bool
pyr_sql_is_running(void)
{
	return begun_at != NOT_RUNNING;
}

/*
 * Whether what that command of this transaction did was there when the statement
 * began.
 */
bool
pyr_sql_is_older(CommandId cid)
{
	return cid < begun_with;
}

/*
 * Whether a foreign key has made the change that a trigger was called for.
 */
static bool
is_by_foreign_key(TriggerData *trigdata)
{
	CommandId	cid;

	if (key_commands == NULL)
		return false;
	if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		cid = HeapTupleHeaderGetCmin(trigdata->tg_newtuple->t_data);
	else if (TRIGGER_FIRED_BY_DELETE(trigdata->tg_event))
		cid = HeapTupleHeaderGetCmax(trigdata->tg_trigtuple->t_data);
	else
		return false;
	return bms_is_member(cid, key_commands);
}

static void
note_logged(Relation rel)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(TopTransactionContext);

	logged_tables = list_append_unique_oid(logged_tables, RelationGetRelid(rel));
	MemoryContextSwitchTo(oldcontext);
}

/*
 * The statement changes the table by itself.  (A slave that forwards the statement
 * is to do what its master has done.)
 */
static void
check_not_logged(Oid relid)
{
	if (list_member_oid(logged_tables, relid) &&
		SessionReplicationRole != SESSION_REPLICATION_ROLE_REPLICA)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a statement that is passed on to slaves cannot change table \"%s\" after a trigger or foreign key did",
						get_rel_name(relid)),
				 errdetail("Slaves would do it in the other order: triggers and foreign keys do not fire there, so what they changed is sent as rows, after the statement."),
				 errhint("Make several statements of it for py_log_sql: what INSERT, UPDATE and DELETE change is sent as rows, in order.")));
}

/*
 * Whether the change that a log trigger has been called for is one that slaves make
 * by running the statement: it comes from the statement itself, or functions that it
 * calls, not from a trigger.
 */
bool
pyr_sql_makes_change(TriggerData *trigdata)
{
	if (begun_at == NOT_RUNNING)
		return false;
	if (trigger_depth() != begun_at + 1 || is_by_foreign_key(trigdata))
	{
		note_logged(trigdata->tg_relation);
		return false;
	}
	check_not_logged(RelationGetRelid(trigdata->tg_relation));
	return true;
}

/*
 * A trigger is being created by such a statement.  Who wants the slaves to log, too,
 * creates log triggers there.
 */
void
pyr_sql_check_trigger(CreateTrigStmt *stmt)
{
	if (strcmp(strVal(llast(stmt->funcname)), "py_log_replica") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("log triggers cannot be created by a statement that is passed on to slaves"),
				 errhint("SELECT py_log_create_tg(...) as a statement of its own makes them here only.")));
}

/* ---- what a statement is ---- */

typedef struct Calls
{
	bool		changes_rows;
	bool		calls_us;
} Calls;

static bool
look_for_calls(Node *node, void *arg)
{
	Calls	   *calls = arg;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_InsertStmt:
		case T_UpdateStmt:
		case T_DeleteStmt:
			calls->changes_rows = true;
			return false;
		case T_FuncCall:
			if (strncmp(strVal(llast(((FuncCall *) node)->funcname)),
						"py_log_", strlen("py_log_")) == 0)
				calls->calls_us = true;
			break;
		default:
			break;
	}
	return raw_expression_tree_walker(node, look_for_calls, arg);
}

/*
 * Whether the relation to be made is of this session only.
 */
static bool
is_temporary(RangeVar *relation)
{
	return relation != NULL &&
		(relation->relpersistence == RELPERSISTENCE_TEMP ||
		 (relation->schemaname != NULL &&
		  strncmp(relation->schemaname, "pg_temp", strlen("pg_temp")) == 0));
}

static bool
makes_temporary(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_CreateStmt:
			return is_temporary(((CreateStmt *) stmt)->relation);
		case T_CreateTableAsStmt:
			return is_temporary(((CreateTableAsStmt *) stmt)->into->rel);
		case T_SelectStmt:
			return ((SelectStmt *) stmt)->intoClause != NULL &&
				is_temporary(((SelectStmt *) stmt)->intoClause->rel);
		case T_ViewStmt:
			return is_temporary(((ViewStmt *) stmt)->view);
		case T_CreateSeqStmt:
			return is_temporary(((CreateSeqStmt *) stmt)->sequence);
		default:
			return false;
	}
}

/*
 * Whether the statement is about pyreplica's own extension.
 */
static bool
is_about_us(Node *stmt)
{
	ListCell   *cell;

	switch (nodeTag(stmt))
	{
		case T_CreateExtensionStmt:
			return strcmp(((CreateExtensionStmt *) stmt)->extname, PYR_EXTENSION) == 0;
		case T_AlterExtensionStmt:
			return strcmp(((AlterExtensionStmt *) stmt)->extname, PYR_EXTENSION) == 0;
		case T_AlterExtensionContentsStmt:
			return strcmp(((AlterExtensionContentsStmt *) stmt)->extname, PYR_EXTENSION) == 0;
		case T_DropStmt:
			if (((DropStmt *) stmt)->removeType != OBJECT_EXTENSION)
				return false;
			foreach(cell, ((DropStmt *) stmt)->objects)
			{
				if (strcmp(strVal(lfirst(cell)), PYR_EXTENSION) == 0)
					return true;
			}
			return false;
		default:
			return false;
	}
}

/*
 * Whether slaves are to run the statement.
 */
static bool
is_passed_on(Node *stmt)
{
	Calls		calls = {0};

	switch (nodeTag(stmt))
	{
		case T_TransactionStmt:
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
					 errmsg("py_log_sql cannot begin or end transactions"),
					 errhint("Everything in one call, and in one transaction, is done on the slaves as a whole or not at all.")));
			return false;
		case T_SelectStmt:
			if (((SelectStmt *) stmt)->intoClause != NULL)
				break;
			(void) look_for_calls(stmt, &calls);
			return !calls.changes_rows && !calls.calls_us;
		case T_DoStmt:
		case T_CallStmt:
			return true;
		default:
			break;
	}
	if (GetCommandLogLevel(stmt) != LOGSTMT_DDL)
		return false;
	if (makes_temporary(stmt))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("what is temporary cannot be passed on to slaves"),
				 errhint("It can be made before, without py_log_sql.")));
	if (is_about_us(stmt))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("extension \"%s\" cannot be changed by py_log_sql", PYR_EXTENSION)));
	return true;
}

/* ---- what it means ---- */

/*
 * The schemas where names are looked for, as they are now: what stands for the user
 * on the path is not the same on a slave.  What is temporary is not there.
 */
static char *
schemas_on_path(void)
{
	StringInfoData path;
	ListCell   *cell;

	initStringInfo(&path);
	foreach(cell, fetch_search_path(false))
	{
		char	   *name = get_namespace_name(lfirst_oid(cell));

		if (name == NULL || isAnyTempNamespace(lfirst_oid(cell)))
			continue;
		appendStringInfo(&path, "%s%s", path.len > 0 ? ", " : "",
						 quote_identifier(name));
	}
	return path.data;
}

static void
pass_on(Oid function, const char *words)
{
	static const char *const names[] = PYR_SQL_COLUMNS;
	const char *values[PYR_SQL_NVALUES];

	values[0] = words;
	values[1] = schemas_on_path();
	for (int i = 2; i < PYR_SQL_NVALUES; i++)
		values[i] = pstrdup(GetConfigOption(names[i], false, false));
	pyr_log_statement(function, values);
}

/* ---- running it ---- */

/*
 * One of the statements by itself, without the blanks around it.
 */
static char *
words_of(const char *script, RawStmt *raw)
{
	const char *begin = script + Max(raw->stmt_location, 0);
	const char *end = raw->stmt_len > 0 ? begin + raw->stmt_len
		: begin + strlen(begin);

	while (begin < end && scanner_isspace(*begin))
		begin++;
	while (end > begin && scanner_isspace(end[-1]))
		end--;
	return pnstrdup(begin, end - begin);
}

/*
 * What is temporary must not be taken for what has the same name elsewhere: slaves would
 * do it to the latter.  So it comes last here, too, while the statement runs.  Returns the
 * level of settings that was begun for that, or -1.
 */
static int
put_temporary_last(void)
{
	ListCell   *cell;
	char	   *path;
	int			level;

	foreach(cell, fetch_search_path(true))
	{
		if (!isTempNamespace(lfirst_oid(cell)))
			continue;
		path = schemas_on_path();
		level = NewGUCNestLevel();
		pyr_config_set_here("search_path",
							path[0] != '\0' ? psprintf("%s, pg_temp", path) : "pg_temp");
		return level;
	}
	return -1;
}

static void
run_one(Oid function, const char *words, Node *stmt)
{
	int			before;
	volatile int settings;

	if (!is_passed_on(stmt))
	{
		pyr_spi_execute(words);
		return;
	}
	pass_on(function, words);
	settings = put_temporary_last();
	before = pyr_sql_enter();
	is_call = GetCommandLogLevel(stmt) != LOGSTMT_DDL;
	PG_TRY();
	{
		pyr_spi_execute(words);
	}
	PG_FINALLY();
	{
		pyr_sql_leave(before);
	}
	PG_END_TRY();

	/* what it has set by itself is kept; an error takes all back */
	if (settings >= 0)
		AtEOXact_GUC(true, settings);
}

/*
 * py_log_sql(statement text): runs a statement, or several, here and on the slaves,
 * at its place among the changes of this transaction, and of transactions.
 */
Datum
py_log_sql(PG_FUNCTION_ARGS)
{
	char	   *script;
	List	   *statements;
	ListCell   *cell;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the statement must not be null")));
	if (pyr_sql_is_running())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("py_log_sql cannot be called within a statement that is passed on to slaves itself"),
				 errdetail("Slaves run all of that statement, with what it calls.")));
	script = text_to_cstring(PG_GETARG_TEXT_PP(0));
	statements = pg_parse_query(script);
	if (statements == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("there is no statement to be run")));

	/* what is refused is so before anything is done */
	foreach(cell, statements)
		(void) is_passed_on(lfirst_node(RawStmt, cell)->stmt);

	SPI_connect();
	foreach(cell, statements)
	{
		RawStmt    *raw = lfirst_node(RawStmt, cell);

		CHECK_FOR_INTERRUPTS();
		run_one(fcinfo->flinfo->fn_oid, words_of(script, raw), raw->stmt);
	}
	SPI_finish();
	PG_RETURN_VOID();
}

/* ---- for what we do ourselves because of such a statement ---- */

/*
 * py_log_passed_on(): whether the statement that is running and is passed on defines
 * something by itself; NULL: there is none.
 */
Datum
py_log_passed_on(PG_FUNCTION_ARGS)
{
	if (!pyr_sql_is_running())
		PG_RETURN_NULL();
	PG_RETURN_BOOL(!is_call);
}

/*
 * py_log_there(statement text): has slaves run a statement that is not run here.
 */
Datum
py_log_there(PG_FUNCTION_ARGS)
{
	pass_on(fcinfo->flinfo->fn_oid, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

/*
 * py_log_only_here(statement text): runs a statement that slaves do not run, though
 * they may run the one that is running.
 */
Datum
py_log_only_here(PG_FUNCTION_ARGS)
{
	char	   *words = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			before = begun_at;

	begun_at = NOT_RUNNING;
	PG_TRY();
	{
		SPI_connect();
		pyr_spi_execute(words);
		SPI_finish();
	}
	PG_FINALLY();
	{
		begun_at = before;
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}
