/*-------------------------------------------------------------------------
 *
 * schema.c
 *	  Creates what is missing on the slave from the master's definitions
 *	  (pyreplica.copy_schema).
 *
 * When a table is to be copied that does not exist here, pg_dump (the one that
 * lies beside our server's program) is run on the master while the worker goes
 * on.  What it writes is carried out in one transaction, in its order, as far as
 * it is missing here: schemas, types, functions, sequences, tables, views, and
 * for the tables made now their keys and what else must be unique.
 *
 * The rest of what belongs to these tables, such as indexes, foreign keys and
 * triggers, comes faster, or can only come, when their rows are here.  It is kept
 * in pyreplica_definition, as part of the same transaction, and carried out bit
 * by bit, each in the transaction that deletes it there, once all tables that it
 * is about are ready.  What fails is tried again later, and holds up nothing.
 *
 * What the slave has is never changed: an object that exists is passed over, and
 * so is what belongs to a table that has not been made here.  Nor is pyreplica's
 * own part of the master copied, or the slave would become a master itself.
 *
 * Statements are judged by their parse trees, so what they are about is certain,
 * whatever the names are.
 *
 * Everything is created by and for the owner of the slave's database, whose rights
 * are all that the master's definitions can use.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "common/config.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_func.h"
#include "parser/parse_type.h"
#include "pgstat.h"
#include "pyreplica.h"
#include "slave/child.h"
#include "slave/ddl.h"
#include "slave/dump.h"
#include "slave/layout.h"
#include "slave/local.h"
#include "slave/schema.h"
#include "slave/status.h"
#include "slave/tables.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#define RETRY_FIRST_MS	1000

/* a definition is joined from so many pieces of the dump at most */
#define PIECES_MAX		100

/*
 * Users of the slave are not kept waiting behind us for long, nor do we wait for
 * them.
 */
#define LOCK_TIMEOUT	"1s"

/* what is done with a definition */
typedef enum Verdict
{
	PASS_OVER,					/* it is not wanted here, or here already */
	MAKE,						/* a thing of its own; may turn out to exist */
	ADD,						/* part of what has been made; has to succeed */
	LATER,						/* once rows are here */
	LAST						/* then, but after all others */
} Verdict;

/* what is kept for later */
typedef struct Kept
{
	char	   *what;
	char	   *sql;
	RangeVar   *about;
} Kept;

/* a dump being carried out */
typedef struct Making
{
	MemoryContext context;
	HTAB	   *made;			/* PyrTableName: relations and domains */
	List	   *last;			/* Kept, to come after all others */
	int64		number;			/* of the last one kept */
	int			nmade;
	int			nkept;
} Making;

/* what the child was asked for */
static List *asked = NIL;		/* PyrTable */

/* what is to be done later */
static struct
{
	int64		left;
	bool		is_under_way;	/* going through all of it */
	int64		number;			/* come so far */
	int			nfailed;
	uint64		nfinished;		/* tables' when it was begun */
	TimestampTz began_at;		/* with the first one */
	TimestampTz retry_at;		/* 0: when tables have become ready */
	int			retry_ms;
}			later;

/* ---- errors ---- */

/*
 * Does it in a transaction of its own.  Returns what was wrong, in the current
 * memory context, or NULL.
 */
static ErrorData *
attempt(void (*what) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		pyr_local_begin_transaction();
		what(arg);
		pyr_local_commit_transaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return error;
}

/*
 * The same within a transaction.
 */
static ErrorData *
attempt_part(void (*what) (void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		what(arg);
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
	return error;
}

/*
 * The server tells in many ways that there is something of this name already.
 */
static bool
is_duplicate(ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_DUPLICATE_OBJECT ||
		error->sqlerrcode == ERRCODE_DUPLICATE_FUNCTION ||
		error->sqlerrcode == ERRCODE_DUPLICATE_SCHEMA ||
		error->sqlerrcode == ERRCODE_DUPLICATE_TABLE;
}

/* ---- what statements are about ---- */

/*
 * Things of pyreplica, also of a master that has them without the library.
 */
static bool
is_ours(const char *name)
{
	return strcmp(name, "replica_log") == 0 ||
		strcmp(name, "replica_slave") == 0 ||
		strcmp(name, "replica_dump") == 0 ||
		strncmp(name, "replica_log_", strlen("replica_log_")) == 0 ||
		strncmp(name, "py_log_", strlen("py_log_")) == 0 ||
		strncmp(name, "pyreplica_", strlen("pyreplica_")) == 0;
}

static const char *
last_name(List *names)
{
	return strVal(llast(names));
}

/*
 * The relations that the statement changes, the first of which it belongs to;
 * NIL: it does not change any.
 */
static List *
changed_relations(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_IndexStmt:
			return list_make1(((IndexStmt *) stmt)->relation);
		case T_RuleStmt:
			return list_make1(((RuleStmt *) stmt)->relation);
		case T_CreatePolicyStmt:
			return list_make1(((CreatePolicyStmt *) stmt)->table);
		case T_CreateStatsStmt:
			return ((CreateStatsStmt *) stmt)->relations;
		case T_AlterSeqStmt:
			return list_make1(((AlterSeqStmt *) stmt)->sequence);
		case T_CreateTrigStmt:
			{
				CreateTrigStmt *trigger = (CreateTrigStmt *) stmt;
				List	   *relations = list_make1(trigger->relation);

				return trigger->constrrel
					? lappend(relations, trigger->constrrel) : relations;
			}
		case T_AlterTableStmt:
			{
				AlterTableStmt *alter = (AlterTableStmt *) stmt;
				AlterTableCmd *cmd = linitial(alter->cmds);
				List	   *relations = list_make1(alter->relation);

				if (cmd->subtype == AT_AttachPartition)
					return lappend(relations, ((PartitionCmd *) cmd->def)->name);
				if (cmd->subtype == AT_AddConstraint &&
					((Constraint *) cmd->def)->pktable != NULL)
					return lappend(relations, ((Constraint *) cmd->def)->pktable);
				return relations;
			}
		default:
			return NIL;
	}
}

static bool
exists(RangeVar *relation)
{
	return OidIsValid(RangeVarGetRelid(relation, NoLock, true));
}

static PyrTableName
key_of(RangeVar *relation)
{
	return pyr_table_name(relation->schemaname ? relation->schemaname : "",
						  relation->relname);
}

static bool
is_made(Making *making, RangeVar *relation)
{
	PyrTableName name = key_of(relation);

	return hash_search(making->made, &name, HASH_FIND, NULL) != NULL;
}

static void
note_made(Making *making, RangeVar *relation)
{
	PyrTableName name = key_of(relation);

	(void) hash_search(making->made, &name, HASH_ENTER, NULL);
}

static void
note_index(Making *making, RangeVar *table, const char *name)
{
	if (name != NULL)
		note_made(making, makeRangeVar(table->schemaname,
									   unconstify(char *, name), -1));
}

/* ---- judgement ---- */

static Verdict
judge_new_relation(Making *making, RangeVar *relation)
{
	if (relation->schemaname == NULL ||
		(is_ours(relation->relname) &&
		 !pyr_tables_is_followed(relation->schemaname, relation->relname)))
		return PASS_OVER;
	if (exists(relation) ||
		pyr_mapping_of(relation->schemaname, relation->relname).is_mapped)
		return PASS_OVER;
	note_made(making, relation);
	return MAKE;
}

/*
 * The server finds out by itself that something exists, but looks at rights
 * first; what somebody with more of them has created here is to be passed over.
 */
static Verdict
judge_type(List *names)
{
	return OidIsValid(LookupTypeNameOid(NULL, makeTypeNameFromNameList(names), true))
		? PASS_OVER : MAKE;
}

static Verdict
judge_function(CreateFunctionStmt *stmt)
{
	Oid			types[FUNC_MAX_ARGS];
	int			ntypes = 0;
	ListCell   *cell;

	if (is_ours(last_name(stmt->funcname)))
		return PASS_OVER;
	foreach(cell, stmt->parameters)
	{
		FunctionParameter *parameter = lfirst_node(FunctionParameter, cell);

		if (parameter->mode == FUNC_PARAM_OUT || parameter->mode == FUNC_PARAM_TABLE)
			continue;
		if (ntypes == FUNC_MAX_ARGS)
			return MAKE;
		types[ntypes] = LookupTypeNameOid(NULL, parameter->argType, true);
		if (!OidIsValid(types[ntypes++]))
			return MAKE;
	}
	return OidIsValid(LookupFuncName(stmt->funcname, ntypes, types, true))
		? PASS_OVER : MAKE;
}

/*
 * A sequence belongs to a column.
 */
static Verdict
judge_owned_by(Making *making, AlterSeqStmt *stmt)
{
	ListCell   *cell;

	foreach(cell, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);
		List	   *names = (List *) option->arg;

		if (strcmp(option->defname, "owned_by") == 0 && list_length(names) > 1 &&
			!is_made(making, makeRangeVarFromNameList(list_truncate(list_copy(names),
													 list_length(names) - 1))))
			return PASS_OVER;
	}
	return ADD;
}

/*
 * A partition is attached at once where both have been made.  Where the slave
 * has the partitioned table already, this waits until the partition has its rows
 * and its indexes; those of the partitioned table then find them.
 */
static Verdict
judge_attach(Making *making, RangeVar *parent, PartitionCmd *cmd)
{
	bool		is_index = cmd->bound == NULL;

	if (!is_made(making, cmd->name))
		return PASS_OVER;
	if (is_made(making, parent))
		return exists(parent) && exists(cmd->name) ? ADD : LATER;
	if (is_index || !exists(parent) ||
		get_rel_relkind(RangeVarGetRelid(parent, NoLock, true)) != RELKIND_PARTITIONED_TABLE)
		return PASS_OVER;
	return LAST;
}

static Verdict
judge_alter_table(Making *making, AlterTableStmt *stmt)
{
	AlterTableCmd *cmd = linitial(stmt->cmds);

	if (cmd->subtype == AT_AttachPartition)
		return judge_attach(making, stmt->relation, (PartitionCmd *) cmd->def);
	if (!is_made(making, stmt->relation))
		return PASS_OVER;
	switch (cmd->subtype)
	{
		case AT_AddConstraint:
			{
				Constraint *constraint = (Constraint *) cmd->def;

				if (constraint->contype != CONSTR_PRIMARY &&
					constraint->contype != CONSTR_UNIQUE)
					return LATER;
				note_index(making, stmt->relation, constraint->conname);
				return ADD;
			}
		case AT_EnableRowSecurity:
		case AT_ForceRowSecurity:
			return LATER;
		default:
			return ADD;
	}
}

/*
 * What is to be done with a definition that begins with this statement.
 *
 * Event triggers are about commands that users of this server give, and user
 * mappings about its users; neither is anything that tables need.
 */
static Verdict
judge(Making *making, Node *stmt)
{
	List	   *changed = changed_relations(stmt);

	if (changed != NIL && !IsA(stmt, AlterTableStmt) &&
		!is_made(making, linitial(changed)))
		return PASS_OVER;
	switch (nodeTag(stmt))
	{
		case T_CreateStmt:
			return judge_new_relation(making, ((CreateStmt *) stmt)->relation);
		case T_CreateForeignTableStmt:
			return judge_new_relation(making, ((CreateForeignTableStmt *) stmt)->base.relation);
		case T_CreateTableAsStmt:
			return judge_new_relation(making, ((CreateTableAsStmt *) stmt)->into->rel);
		case T_CreateSeqStmt:
			return judge_new_relation(making, ((CreateSeqStmt *) stmt)->sequence);
		case T_CompositeTypeStmt:
			return judge_new_relation(making, ((CompositeTypeStmt *) stmt)->typevar);
		case T_ViewStmt:
			/* two that need each other: the first was a stand-in */
			if (((ViewStmt *) stmt)->replace &&
				is_made(making, ((ViewStmt *) stmt)->view))
				return ADD;
			return judge_new_relation(making, ((ViewStmt *) stmt)->view);
		case T_CreateDomainStmt:
			if (judge_type(((CreateDomainStmt *) stmt)->domainname) == PASS_OVER)
				return PASS_OVER;
			note_made(making, makeRangeVarFromNameList(((CreateDomainStmt *) stmt)->domainname));
			return MAKE;
		case T_CreateEnumStmt:
			return judge_type(((CreateEnumStmt *) stmt)->typeName);
		case T_CreateRangeStmt:
			return judge_type(((CreateRangeStmt *) stmt)->typeName);
		case T_AlterDomainStmt:
			return is_made(making, makeRangeVarFromNameList(((AlterDomainStmt *) stmt)->typeName))
				? LATER : PASS_OVER;
		case T_CreateFunctionStmt:
			return judge_function((CreateFunctionStmt *) stmt);
		case T_CreateExtensionStmt:
			return strcmp(((CreateExtensionStmt *) stmt)->extname, PYR_EXTENSION) == 0
				? PASS_OVER : MAKE;
		case T_CreateEventTrigStmt:
		case T_CreateUserMappingStmt:
			return PASS_OVER;
		case T_AlterSeqStmt:
			return judge_owned_by(making, (AlterSeqStmt *) stmt);
		case T_AlterTableStmt:
			return judge_alter_table(making, (AlterTableStmt *) stmt);
		case T_IndexStmt:
			note_index(making, ((IndexStmt *) stmt)->relation,
					   ((IndexStmt *) stmt)->idxname);
			return ((IndexStmt *) stmt)->unique ? ADD : LATER;
		case T_CreateTrigStmt:
			return strcmp(last_name(((CreateTrigStmt *) stmt)->funcname), "py_log_replica") == 0
				? PASS_OVER : LATER;
		case T_RuleStmt:
		case T_CreatePolicyStmt:
		case T_CreateStatsStmt:
			return LATER;
		default:
			return MAKE;
	}
}

/* ---- carrying out ---- */

static void
keep(Making *making, Kept *kept)
{
	Oid			types[6] = {TEXTOID, INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	RangeVar   *about = kept->about;
	Datum		values[6] = {
		CStringGetTextDatum(pyr_local_replica()),
		Int64GetDatum(++making->number),
		CStringGetTextDatum(about && about->schemaname ? about->schemaname : ""),
		CStringGetTextDatum(about ? about->relname : ""),
		CStringGetTextDatum(kept->what),
		CStringGetTextDatum(kept->sql)
	};

	if (SPI_execute_with_args(psprintf("INSERT INTO %s.pyreplica_definition"
									   " (replica, number, schemaname, tablename, what, definition)"
									   " VALUES ($1, $2, $3, $4, $5, $6)",
									   pyr_local_schema()),
							  6, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write pyreplica_definition");
	making->nkept++;
}

static Kept *
make_kept(PyrDefinition *definition, List *parsed)
{
	List	   *changed = changed_relations(linitial_node(RawStmt, parsed)->stmt);
	Kept	   *kept = palloc0(sizeof(Kept));

	kept->what = pstrdup(definition->what);
	kept->sql = pyr_definition_text(definition->sql.data, parsed);
	kept->about = changed != NIL ? copyObject(linitial(changed)) : NULL;
	return kept;
}

/* a PyrDefinition in a Making, for attempt_part */
typedef struct Part
{
	Making	   *making;
	PyrDefinition *definition;
	Verdict		verdict;
} Part;

static void
carry_out(void *arg)
{
	Part	   *part = arg;
	Making	   *making = part->making;
	PyrDefinition *definition = part->definition;
	List	   *parsed;
	MemoryContext oldcontext;

	part->verdict = PASS_OVER;
	parsed = pyr_definition_parse(definition->sql.data);
	if (parsed == NIL)
		return;
	part->verdict = judge(making, linitial_node(RawStmt, parsed)->stmt);
	switch (part->verdict)
	{
		case PASS_OVER:
			break;
		case MAKE:
		case ADD:
			pyr_ddl_execute(pyr_definition_text(definition->sql.data, parsed),
							LOCK_TIMEOUT);
			making->nmade += part->verdict == MAKE;
			break;
		case LATER:
			keep(making, make_kept(definition, parsed));
			break;
		case LAST:
			oldcontext = MemoryContextSwitchTo(making->context);
			making->last = lappend(making->last, make_kept(definition, parsed));
			MemoryContextSwitchTo(oldcontext);
			break;
	}
}

/*
 * Carries out a definition of the dump, as long as it may turn out to be.
 */
static void
take_definition(Making *making, PyrDump *dump, PyrDefinition *definition)
{
	Part		part = {making, definition, PASS_OVER};
	ErrorData  *first = NULL;

	for (int pieces = 1; pieces <= PIECES_MAX; pieces++)
	{
		ErrorData  *error = attempt_part(carry_out, &part);

		if (error == NULL)
			return;

		/* of some kinds of objects a catalog's index tells */
		if (part.verdict == MAKE &&
			(is_duplicate(error) || error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION))
			return;
		if (first == NULL)
			first = error;
		if (error->sqlerrcode != ERRCODE_SYNTAX_ERROR ||
			!pyr_dump_join_next(dump, definition))
			break;
	}
	first->message = psprintf("could not create %s from the master's definition: %s",
							  definition->what, first->message);
	ReThrowError(first);
}

static Making *
begin_making(void)
{
	MemoryContext context = CurrentMemoryContext;
	Making	   *making = palloc0(sizeof(Making));
	HASHCTL		ctl = {0};
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(pyr_local_replica())};
	bool		isnull;

	making->context = context;
	ctl.keysize = ctl.entrysize = sizeof(PyrTableName);
	ctl.hcxt = context;
	making->made = hash_create("pyreplica made", 256, &ctl,
							   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	if (SPI_execute_with_args(psprintf("SELECT coalesce(pg_catalog.max(number), 0)"
									   "  FROM %s.pyreplica_definition WHERE replica = $1",
									   pyr_local_schema()),
							  1, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read pyreplica_definition");
	making->number = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
												 SPI_tuptable->tupdesc, 1,
												 &isnull));
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	return making;
}

/*
 * Tables that were asked for exist now, or do not exist on the master.  Others,
 * found to be missing since, may have come along.
 */
static void
settle_asked(void)
{
	ListCell   *cell;

	foreach(cell, pyr_tables_waiting())
	{
		PyrTable   *table = lfirst(cell);
		ErrorData	error = {0};

		if (!table->is_missing)
			continue;
		if (OidIsValid(pyr_layout_find(table)) || pyr_table_place(table).is_mapped)
		{
			pyr_table_clear_error(table);
			pyr_table_set_missing(table, false);
		}
		else if (list_member_ptr(asked, table))
		{
			pyr_table_set_missing(table, false);
			error.sqlerrcode = ERRCODE_UNDEFINED_TABLE;
			error.message = "the master's definitions do not have this table";
			pyr_table_fail(table, &error);
		}
	}
}

/*
 * Carries out the dump that the child has written.
 */
static void
take_dump(void *arg)
{
	Making	   *making = begin_making();
	PyrDump    *dump = pyr_dump_open(pyr_child_output());
	MemoryContext context = AllocSetContextCreate(making->context,
												  "pyreplica definition",
												  ALLOCSET_DEFAULT_SIZES);
	PyrDefinition definition;
	ListCell   *cell;

	MemoryContextSwitchTo(context);
	while (pyr_dump_next(dump, &definition))
	{
		CHECK_FOR_INTERRUPTS();
		take_definition(making, dump, &definition);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(making->context);
	foreach(cell, making->last)
		keep(making, lfirst(cell));
	settle_asked();
	*(Making *) arg = *making;
}

/* ---- running pg_dump ---- */

/*
 * The pg_dump of our server's version, which lies beside the server's program.
 */
static const char *
find_pg_dump(void)
{
	char	   *path = palloc(MAXPGPATH);

	strlcpy(path, my_exec_path, MAXPGPATH);
	get_parent_directory(path);
	join_path_components(path, path, "pg_dump");
	if (access(path, X_OK) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not run \"%s\": %m", path),
				 errhint("pyreplica.copy_schema needs PostgreSQL's client programs in the directory of its server. Install them, or create the tables by hand.")));
	return path;
}

/*
 * Locks that it does not get at once it does not wait for, as it holds others
 * meanwhile.  Rights and roles are the slave's own, and so are tablespaces.
 */
static void
start_pg_dump(PyrOrigin *origin)
{
	const char *path = find_pg_dump();
	const char *argv[] = {
		path, "--schema-only", "--no-password", "--lock-wait-timeout=2000",
		"--no-owner", "--no-privileges", "--no-tablespaces", "--no-comments",
		"--no-security-labels", "--no-publications", "--no-subscriptions", NULL
	};

	pyr_child_start(path, argv,
					pyr_remote()->environment(origin->remote,
											  psprintf("pyreplica %s: pg_dump",
													   pyr_local_replica())));
}

/*
 * Asks for all tables that are missing, so that they come together.
 */
static void
ask(void *arg)
{
	MemoryContext oldcontext;
	ListCell   *cell;

	list_free(asked);
	asked = NIL;
	oldcontext = MemoryContextSwitchTo(TopMemoryContext);
	foreach(cell, pyr_tables_waiting())
	{
		PyrTable   *table = lfirst(cell);

		pyr_table_set_missing(table, !OidIsValid(pyr_layout_find(table)) &&
							  !pyr_table_place(table).is_mapped);
		if (table->is_missing)
			asked = lappend(asked, table);
	}
	MemoryContextSwitchTo(oldcontext);
	if (asked != NIL)
		start_pg_dump(arg);
}

/*
 * What is missing could not be created: the tables concerned say why.
 */
static void
fail_missing(void *arg)
{
	ListCell   *cell;

	foreach(cell, pyr_tables_waiting())
	{
		PyrTable   *table = lfirst(cell);

		if (!table->is_missing)
			continue;
		pyr_table_set_missing(table, false);
		if (arg != NULL)
			pyr_table_fail(table, arg);
	}
}

/*
 * The same, in a transaction of its own.
 */
static void
give_up_missing(ErrorData *error)
{
	pyr_child_end();
	pyr_local_begin_transaction();
	fail_missing(error);
	pyr_local_commit_transaction();
}

static char *
skip(char *text, const char *start)
{
	size_t		len = strlen(start);

	return strncmp(text, start, len) == 0 ? text + len : text;
}

/*
 * What pg_dump complained about, in one line that our database can store.
 */
static char *
in_one_line(char *complaint)
{
	StringInfoData line;

	if (!pg_verifymbstr(complaint, strlen(complaint), true))
	{
		for (char *p = complaint; *p != '\0'; p++)
			*p = IS_HIGHBIT_SET(*p) ? '?' : *p;
	}
	initStringInfo(&line);
	for (char *p = complaint; *p != '\0'; p++)
	{
		if (p == complaint || p[-1] == '\n')
			p = skip(skip(skip(p, "pg_dump: "), "error: "), "detail: ");
		if (*p == '\n')
			appendStringInfoString(&line, "; ");
		else if (*p != '\0')
			appendStringInfoChar(&line, *p);
	}
	return line.data;
}

/*
 * The child has ended.
 */
static void
finish_pg_dump(void)
{
	char	   *failure = pyr_child_failure();
	ErrorData  *error = NULL;
	Making		making;

	pyr_status_state(PYR_STATE_COPYING);
	pgstat_report_activity(STATE_RUNNING,
						   "creating what is missing from the master's definitions");
	if (failure != NULL)
	{
		error = palloc0(sizeof(ErrorData));
		error->sqlerrcode = ERRCODE_EXTERNAL_ROUTINE_EXCEPTION;
		error->message = "pg_dump could not read the master's definitions";
		error->detail = in_one_line(failure);
	}
	else
		error = attempt(take_dump, &making);
	if (error != NULL)
	{
		give_up_missing(error);
		return;
	}
	pyr_child_end();
	later.left += making.nkept;
	later.is_under_way = false;
	later.nfinished = UINT64_MAX;
	later.began_at = 0;
	ereport(LOG,
			(errmsg("pyreplica %s: created %d objects from the master's definitions; %d are left until tables have been copied",
					pyr_local_replica(), making.nmade, making.nkept),
			 errhidestmt(true), errhidecontext(true)));
}

/* ---- what is done later ---- */

/*
 * Within the transaction that reads the position: what is still to be done.
 */
void
pyr_schema_load(void)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(pyr_local_replica())};
	bool		isnull;

	if (SPI_execute_with_args(psprintf("SELECT pg_catalog.count(*) FROM %s.pyreplica_definition WHERE replica = $1",
									   pyr_local_schema()),
							  1, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read pyreplica_definition");
	later.left = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
											 SPI_tuptable->tupdesc, 1,
											 &isnull));
	later.nfinished = UINT64_MAX;
}

/*
 * Whether rows of the relation, its parts, or its index's table are still to come.
 */
static bool
is_unfinished(RangeVar *relation)
{
	Oid			relid = RangeVarGetRelid(relation, NoLock, true);
	char		relkind = OidIsValid(relid) ? get_rel_relkind(relid) : '\0';
	ListCell   *cell;

	if (relkind == RELKIND_INDEX || relkind == RELKIND_PARTITIONED_INDEX)
		relid = IndexGetRelation(relid, true);
	if (!OidIsValid(relid))
		return false;
	foreach(cell, find_all_inheritors(relid, NoLock, NULL))
	{
		char	   *schema = get_namespace_name(get_rel_namespace(lfirst_oid(cell)));
		char	   *name = get_rel_name(lfirst_oid(cell));

		if (schema != NULL && name != NULL &&
			pyr_tables_is_unfinished(schema, name))
			return true;
	}
	return false;
}

static bool
has_to_wait(List *parsed)
{
	ListCell   *cell;

	foreach(cell, parsed)
	{
		ListCell   *relation;

		foreach(relation, changed_relations(lfirst_node(RawStmt, cell)->stmt))
		{
			if (is_unfinished(lfirst(relation)))
				return true;
		}
	}
	return false;
}

static void
run_sql_part(void *arg)
{
	pyr_ddl_execute(arg, LOCK_TIMEOUT);
}

static void
delete_definition(int64 number)
{
	Oid			types[2] = {TEXTOID, INT8OID};
	Datum		values[2] = {
		CStringGetTextDatum(pyr_local_replica()), Int64GetDatum(number)
	};

	if (SPI_execute_with_args(psprintf("DELETE FROM %s.pyreplica_definition"
									   " WHERE replica = $1 AND number = $2",
									   pyr_local_schema()),
							  2, types, values, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not write pyreplica_definition");
	later.left--;
}

/*
 * It could not be carried out: says so if that is news.
 */
static void
fail_definition(int64 number, const char *what, const char *last_error,
				ErrorData *error)
{
	char	   *message = error->detail != NULL
		? psprintf("could not create %s: %s (%s)", what, error->message, error->detail)
		: psprintf("could not create %s: %s", what, error->message);
	Oid			types[4] = {TEXTOID, INT8OID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[4] = {
		CStringGetTextDatum(pyr_local_replica()), Int64GetDatum(number),
		CStringGetTextDatum(message), TimestampTzGetDatum(GetCurrentTimestamp())
	};

	later.nfailed++;
	if (last_error == NULL || strcmp(last_error, message) != 0)
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("pyreplica %s: %s", pyr_local_replica(), message),
				 errhint("It is tried again. To do without it, delete its row in pyreplica_definition."),
				 errhidestmt(true), errhidecontext(true)));
	if (SPI_execute_with_args(psprintf("UPDATE %s.pyreplica_definition"
									   " SET last_error = $3, last_error_at = $4"
									   " WHERE replica = $1 AND number = $2",
									   pyr_local_schema()),
							  4, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write pyreplica_definition");
}

/* a PyrAttempt's argument */
typedef struct Parsing
{
	const char *definition;
	List	   *parsed;
} Parsing;

/* a PyrAttempt */
static bool
attempt_parsing(void *arg)
{
	Parsing    *parsing = arg;

	parsing->parsed = pyr_definition_parse(parsing->definition);
	return true;
}

/*
 * Carries out a definition that was left, in the current transaction, if it can be
 * by now.
 */
static void
run_definition(int64 number, char *what, char *definition, char *last_error)
{
	Parsing		parsing = {definition, NIL};
	List	   *parsed;
	List	   *changed;
	ErrorData  *error = NULL;

	/* it may have come here with a dump, from another version */
	if (!pyr_local_try(attempt_parsing, &parsing, &error))
	{
		fail_definition(number, what, last_error, error);
		return;
	}
	parsed = parsing.parsed;
	changed = parsed == NIL ? NIL
		: changed_relations(linitial_node(RawStmt, parsed)->stmt);
	if (has_to_wait(parsed))
		return;
	if (changed == NIL || exists(linitial(changed)))
	{
		pyr_status_state(PYR_STATE_COPYING);
		pgstat_report_activity(STATE_RUNNING, psprintf("creating %s", what));
		error = attempt_part(run_sql_part, definition);
	}
	/* else what it belongs to was dropped here meanwhile */
	if (error == NULL || is_duplicate(error))
		delete_definition(number);
	else
		fail_definition(number, what, last_error, error);
}

static void
end_pass(void)
{
	later.is_under_way = false;
	if (later.nfailed > 0)
		later.retry_ms = later.retry_ms == 0 ? RETRY_FIRST_MS
			: Min(later.retry_ms * 2, retry_interval_max_ms);
	else
		later.retry_ms = 0;
	later.retry_at = later.nfailed == 0 ? 0
		: TimestampTzPlusMilliseconds(GetCurrentTimestamp(), later.retry_ms);
	pyr_schema_load();
	later.nfinished = pyr_tables_nfinished();
	if (later.left == 0)
		ereport(LOG,
				(errmsg("pyreplica %s: created all that was left of the master's definitions in %.1f s",
						pyr_local_replica(),
						(GetCurrentTimestamp() - later.began_at) / 1000000.0),
				 errhidestmt(true), errhidecontext(true)));
}

/*
 * Looks at the next definition that was left.
 */
static void
go_on(void)
{
	Oid			types[2] = {TEXTOID, INT8OID};
	Datum		values[2];
	HeapTuple	row;
	TupleDesc	desc;
	bool		isnull;

	if (!later.is_under_way)
	{
		later.is_under_way = true;
		later.number = 0;
		later.nfailed = 0;
		if (later.began_at == 0)
			later.began_at = GetCurrentTimestamp();
	}
	pyr_local_begin_transaction();
	values[0] = CStringGetTextDatum(pyr_local_replica());
	values[1] = Int64GetDatum(later.number);
	if (SPI_execute_with_args(psprintf("SELECT number, what, definition, last_error"
									   "  FROM %s.pyreplica_definition"
									   " WHERE replica = $1 AND number > $2"
									   " ORDER BY number LIMIT 1",
									   pyr_local_schema()),
							  2, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read pyreplica_definition");
	if (SPI_processed == 0)
		end_pass();
	else
	{
		row = SPI_tuptable->vals[0];
		desc = SPI_tuptable->tupdesc;
		later.number = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
		run_definition(later.number, SPI_getvalue(row, desc, 2),
					   SPI_getvalue(row, desc, 3), SPI_getvalue(row, desc, 4));
	}
	pyr_local_commit_transaction();
}

/*
 * Not while tables are being copied: that would be to look at all definitions
 * after each of them.
 */
static bool
is_later_due(void)
{
	if ((later.left == 0 && !later.is_under_way) ||
		pyr_tables_any_missing() || pyr_tables_next(NIL) != NULL)
		return false;
	return later.is_under_way ||
		later.nfinished != pyr_tables_nfinished() ||
		(later.retry_at != 0 && later.retry_at <= GetCurrentTimestamp());
}

/* ---- what the worker calls ---- */

/*
 * Does what there is to do now.  Between transactions, with nothing under way on
 * the connection to the master.
 */
void
pyr_schema_work(PyrOrigin *origin)
{
	ErrorData  *error;

	if (!copy_schema && pyr_tables_any_missing())
	{
		/* they have to be made by somebody else */
		pyr_schema_give_up();
		fail_missing(NULL);
	}
	else if (pyr_child_exists())
	{
		if (!pyr_child_is_running())
			finish_pg_dump();
	}
	else if (pyr_tables_any_missing())
	{
		error = attempt(ask, origin);
		if (error != NULL)
			give_up_missing(error);
	}
	else if (is_later_due())
		go_on();
}

/*
 * Whether there is something to do.
 */
bool
pyr_schema_is_due(void)
{
	if (pyr_child_exists())
		return !pyr_child_is_running() || !copy_schema;
	return pyr_tables_any_missing() || is_later_due();
}

/*
 * In how many ms something is to be tried again; -1: nothing is.
 */
long
pyr_schema_due_ms(void)
{
	if (later.left == 0 || later.retry_at == 0 || pyr_tables_any_missing())
		return -1;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   later.retry_at);
}

/*
 * What failed is to be tried again now, say because of new settings.
 */
void
pyr_schema_retry(void)
{
	if (later.retry_at != 0)
		later.retry_at = GetCurrentTimestamp();
	later.retry_ms = 0;
}

/*
 * The master is gone, or is to be another one.
 */
void
pyr_schema_give_up(void)
{
	pyr_child_end();
}
