/*-------------------------------------------------------------------------
 *
 * history.c
 *	  What is kept, counted and told of conflicts: rows of pyreplica_conflicts,
 *	  written in the transaction that settles them; how many there were of each
 *	  kind and table; log lines, not too many of a window; and a notification
 *	  for whoever wants to be alarmed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "common/config.h"
#include "executor/spi.h"
#include "slave/history.h"
#include "slave/local.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* so many conflicts of a window are told one by one in the log */
#define TOLD_MAX			1000

/* what is too old is deleted this often, and so much of it at a time */
#define PRUNE_INTERVAL_MS	(10 * 60 * 1000)
#define PRUNE_ROWS			"10000"

/* channel of the slave's own database */
#define CHANNEL				"pyreplica_conflicts"

typedef struct Tally
{
	char	   *kind;
	char	   *schema;
	char	   *table;
	int64		count;
} Tally;

/*
 * Lives until the current transaction ends.
 */
void
pyr_history_begin(PyrHistory *history, const char *replica)
{
	memset(history, 0, sizeof(PyrHistory));
	history->replica = replica;
}

static void
count(PyrHistory *history, const PyrIncident *incident)
{
	Tally	   *tally;
	ListCell   *cell;

	foreach(cell, history->tallies)
	{
		tally = lfirst(cell);
		if (strcmp(tally->kind, incident->kind) == 0 &&
			strcmp(tally->table, incident->table) == 0 &&
			strcmp(tally->schema, incident->schema) == 0)
		{
			tally->count++;
			return;
		}
	}
	tally = palloc(sizeof(Tally));
	tally->kind = pstrdup(incident->kind);
	tally->schema = pstrdup(incident->schema);
	tally->table = pstrdup(incident->table);
	tally->count = 1;
	history->tallies = lappend(history->tallies, tally);
}

static void
tell(PyrHistory *history, const PyrIncident *incident)
{
	if (history->count > TOLD_MAX)
		return;
	history->lines = lappend(history->lines,
							 incident->table[0] == '\0'
							 ? psprintf("%s statement", incident->kind)
							 : psprintf("%s on table \"%s.%s\"%s",
										incident->kind, incident->schema,
										incident->table,
										incident->label ? incident->label : ""));
	history->details = lappend(history->details, pstrdup(incident->told));
}

static void
set_text(Datum *value, char *null, const char *text)
{
	*null = text == NULL ? 'n' : ' ';
	if (text != NULL)
		*value = CStringGetTextDatum(text);
}

/*
 * Runs one of our own statements, whose plan is kept.
 */
static void
run(SPIPlanPtr *plan, const char *sql, int nargs, Oid *types, Datum *values,
	const char *nulls)
{
	MemoryContext context = CurrentMemoryContext;

	if (*plan == NULL)
	{
		*plan = SPI_prepare(sql, nargs, types);
		if (*plan == NULL)
			elog(ERROR, "could not prepare \"%s\": %s", sql,
				 SPI_result_code_string(SPI_result));
		SPI_keepplan(*plan);
	}
	if (SPI_execute_plan(*plan, values, nulls, false, 0) < 0)
		elog(ERROR, "could not execute \"%s\"", sql);
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
}

static void
write_row(PyrHistory *history, const PyrIncident *incident)
{
	static SPIPlanPtr plan = NULL;
	const PyrTransaction *transaction = incident->transaction;
	Oid			types[14] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
		TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	TIMESTAMPTZOID, INT8OID, TEXTOID, TIMESTAMPTZOID};
	const char *texts[10] = {history->replica, incident->kind,
		incident->schema, incident->table, incident->key, incident->local_row,
	incident->local_origin, incident->remote_row, incident->statement, incident->outcome};
	Datum		values[14] = {0};
	char		nulls[15];

	memset(nulls, ' ', sizeof(nulls));
	for (int i = 0; i < 10; i++)
		set_text(&values[i], &nulls[i], texts[i]);
	nulls[10] = incident->local_at == 0 ? 'n' : ' ';
	values[10] = TimestampTzGetDatum(incident->local_at);
	values[11] = Int64GetDatum(transaction->commitno);
	set_text(&values[12], &nulls[12], psprintf(UINT64_FORMAT, transaction->xid));
	values[13] = TimestampTzGetDatum(transaction->at);
	run(&plan,
		psprintf("INSERT INTO %s.pyreplica_conflicts (replica, kind, schemaname, tablename,"
				 " key, local_row, local_origin, remote_row, statement, outcome,"
				 " local_at, commitno, xid, master_at)"
				 " VALUES ($1, $2, $3, $4, $5::pg_catalog.text[], $6::pg_catalog.jsonb, $7,"
				 " $8::pg_catalog.jsonb, $9, $10, $11, $12, $13::pg_catalog.xid8, $14)",
				 pyr_local_schema()),
		14, types, values, nulls);
}

/*
 * Keeps a conflict that has been settled.
 */
void
pyr_history_add(PyrHistory *history, const PyrIncident *incident)
{
	MemoryContext oldcontext;

	write_row(history, incident);
	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	history->count++;
	count(history, incident);
	tell(history, incident);
	MemoryContextSwitchTo(oldcontext);
}

static void
write_count(PyrHistory *history, Tally *tally)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[5] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[5] = {CStringGetTextDatum(history->replica),
		CStringGetTextDatum(tally->schema), CStringGetTextDatum(tally->table),
	CStringGetTextDatum(tally->kind), Int64GetDatum(tally->count)};

	run(&plan,
		psprintf("INSERT INTO %s.pyreplica_conflict_counts AS c"
				 " (replica, schemaname, tablename, kind, count, last_at)"
				 " VALUES ($1, $2, $3, $4, $5, pg_catalog.now())"
				 " ON CONFLICT (replica, schemaname, tablename, kind) DO UPDATE"
				 " SET count = c.count OPERATOR(pg_catalog.+) excluded.count,"
				 " last_at = excluded.last_at",
				 pyr_local_schema()),
		5, types, values, NULL);
}

static void
notify(PyrHistory *history, Tally *tally)
{
	StringInfoData payload;

	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"replica\": ");
	escape_json(&payload, history->replica);
	appendStringInfoString(&payload, ", \"kind\": ");
	escape_json(&payload, tally->kind);
	appendStringInfoString(&payload, ", \"table\": ");
	escape_json(&payload, tally->table[0] == '\0' ? ""
				: quote_qualified_identifier(tally->schema, tally->table));
	appendStringInfo(&payload, ", \"count\": " INT64_FORMAT "}", tally->count);
	Async_Notify(CHANNEL, payload.data);
}

static void
write_lines(PyrHistory *history)
{
	ListCell   *line;
	ListCell   *detail;

	forboth(line, history->lines, detail, history->details)
		ereport(LOG,
				(errmsg("pyreplica %s: conflict %s", history->replica,
						(char *) lfirst(line)),
				 errdetail("%s", (char *) lfirst(detail)),
				 errhidecontext(true)));
	if (history->count > TOLD_MAX)
		ereport(LOG,
				(errmsg("pyreplica %s: and " INT64_FORMAT " more conflicts in the same window",
						history->replica, history->count - TOLD_MAX),
				 errhidecontext(true)));
}

/*
 * All has gone well: what is rolled back would be tried again, and told then.
 */
void
pyr_history_finish(PyrHistory *history)
{
	ListCell   *cell;

	write_lines(history);
	foreach(cell, history->tallies)
	{
		write_count(history, lfirst(cell));
		notify(history, lfirst(cell));
	}
}

/*
 * Deletes what is older than it should get, now and then.
 */
void
pyr_history_prune(void)
{
	static TimestampTz due_at = 0;
	TimestampTz now = GetCurrentTimestamp();
	uint64		deleted;

	if (conflict_retention_s == 0 || now < due_at)
		return;
	due_at = TimestampTzPlusMilliseconds(now, PRUNE_INTERVAL_MS);

	pyr_local_begin_transaction();
	if (SPI_execute(psprintf("DELETE FROM %s.pyreplica_conflicts WHERE ctid = ANY (ARRAY("
							 "SELECT ctid FROM %s.pyreplica_conflicts"
							 " WHERE replica = %s AND at < pg_catalog.now() - pg_catalog.make_interval(secs => %d)"
							 " ORDER BY at LIMIT " PRUNE_ROWS " FOR UPDATE SKIP LOCKED))",
							 pyr_local_schema(), pyr_local_schema(),
							 quote_literal_cstr(pyr_local_replica()),
							 conflict_retention_s), false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not delete from pyreplica_conflicts");
	deleted = SPI_processed;
	pyr_local_commit_transaction();
	if (deleted > 0)
		due_at = now;			/* there may be more */
}
