/*-------------------------------------------------------------------------
 *
 * skip.c
 *	  A transaction that cannot be applied: what is kept of it, and how it is
 *	  passed over.
 *
 * When a change fails, the transaction that it belongs to is written down in
 * pyreplica_failure, with its changes as SQL, after all has been rolled back;
 * and it is tried again, as the cause may go away.  Who does not want to wait
 * for that looks at it with pyreplica_skip(), which can also leave a request in
 * pyreplica_skip_request.  The next try passes over what the request names, keeps
 * that in pyreplica_conflicts, and deletes the request, all in the transaction
 * that moves the position past it; so it counts once.
 *
 * A worker reads the request when it starts: a failure ends the worker, and only
 * what has failed can be asked for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/compat.h"
#include "common/render.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "slave/conflict.h"
#include "slave/ddl.h"
#include "slave/local.h"
#include "slave/mapping.h"
#include "slave/skip.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* of a transaction passed over, so many changes are kept one by one */
#define RECORDED_MAX		PYR_FAILURE_CHANGES_MAX

/* longest statement that is kept */
#define STATEMENT_LEN_MAX	(64 * 1024)
#define STATEMENT_BYTES_MAX	(1024 * 1024)

/* what is to be passed over */
typedef struct Request
{
	bool		is_pending;
	PyrTransaction transaction;
	int64		number;			/* of the change; 0: all of them */
	int64		skipped;		/* in the window being applied */
} Request;

static Request request;
static bool has_failure = false;	/* there is a row in pyreplica_failure */

/*
 * Runs a statement of ours, whose $1 is the replica, and $2 ... the texts given.
 */
static uint64
run(const char *sql, int ntexts, const char *const *texts)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[10];
	Datum		values[10];
	char		nulls[10];

	Assert(ntexts < (int) lengthof(types));
	types[0] = TEXTOID;
	values[0] = CStringGetTextDatum(pyr_local_replica());
	nulls[0] = ' ';
	for (int i = 0; i < ntexts; i++)
	{
		types[i + 1] = TEXTOID;
		nulls[i + 1] = texts[i] ? ' ' : 'n';
		values[i + 1] = texts[i] ? CStringGetTextDatum(texts[i]) : (Datum) 0;
	}
	if (SPI_execute_with_args(sql, ntexts + 1, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not execute \"%s\"", sql);
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	return SPI_processed;
}

static char *
number_text(int64 number)
{
	return psprintf(INT64_FORMAT, number);
}

static char *
xid_text(uint64 xid)
{
	return psprintf(UINT64_FORMAT, xid);
}

/*
 * Reads what is asked for, when the worker starts.  Needs SPI.
 */
void
pyr_skip_load(void)
{
	const char *schema = pyr_local_schema();

	memset(&request, 0, sizeof(request));
	has_failure = run(psprintf("SELECT FROM %s.pyreplica_failure WHERE replica = $1",
							   schema), 0, NULL) > 0;
	if (run(psprintf("SELECT commitno, xid, coalesce(number, 0)"
					 "  FROM %s.pyreplica_skip_request WHERE replica = $1",
					 schema), 0, NULL) > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		request.is_pending = true;
		request.transaction.commitno = strtoll(SPI_getvalue(row, desc, 1), NULL, 10);
		request.transaction.xid = strtou64(SPI_getvalue(row, desc, 2), NULL, 10);
		request.number = strtoll(SPI_getvalue(row, desc, 3), NULL, 10);
	}
}

/*
 * Whether something may be to be passed over: then changes have to come in
 * order.
 */
bool
pyr_skip_is_pending(void)
{
	return request.is_pending;
}

/*
 * Whether a change has failed that has not been applied or passed over since.
 */
bool
pyr_skip_has_failure(void)
{
	return has_failure;
}

/*
 * Whether that change is to be passed over.
 */
bool
pyr_skip_wants(const PyrTransaction *transaction, int64 number)
{
	if (!request.is_pending ||
		transaction->commitno != request.transaction.commitno ||
		transaction->xid != request.transaction.xid ||
		(request.number != 0 && request.number != number))
		return false;
	request.skipped++;
	return true;
}

static size_t
bytes_of(PyrChange *change)
{
	PyrShape   *shape = change->shape;
	size_t		bytes = 0;

	for (int i = 0; i < shape->nkey + shape->nset + shape->nold; i++)
		bytes += Max(change->values[i].len, 0);
	return bytes;
}

/*
 * The change as SQL, not too long.  Much of it would take many times as much
 * memory only to be cut off.
 */
static char *
statement_of(PyrChange *change, int encoding)
{
	StringInfoData statement;
	size_t		bytes = bytes_of(change);

	if (bytes > STATEMENT_BYTES_MAX && change->shape->verb == PYR_SQL)
		return pyr_ddl_describe(change, encoding);
	if (bytes > STATEMENT_BYTES_MAX)
		return psprintf("%s %s%s: %zu bytes",
						change->shape->verb == PYR_INSERT ? "INSERT INTO"
						: change->shape->verb == PYR_UPDATE ? "UPDATE" : "DELETE FROM",
						quote_qualified_identifier(change->shape->schema,
												   change->shape->table),
						pyr_describe_key(change, encoding), bytes);
	initStringInfo(&statement);
	pyr_render_change(&statement, change, encoding);
	if (statement.len > STATEMENT_LEN_MAX)
	{
		statement.len = pg_mbcliplen(statement.data, statement.len,
									 STATEMENT_LEN_MAX);
		statement.data[statement.len] = '\0';
		appendStringInfoString(&statement, "...");
	}
	return statement.data;
}

/*
 * Keeps what has been passed over: as SQL, for the slave may have no such table.
 */
void
pyr_skip_record(PyrHistory *history, PyrChange *change, int encoding,
				const PyrTransaction *transaction)
{
	PyrPlace	here = pyr_mapping_of(change->shape->schema, change->shape->table);
	PyrIncident incident = {
		.kind = "skipped",
		.schema = here.schema,
		.table = here.table,
		.outcome = "skipped",
		.told = "It was passed over, as asked for with pyreplica_skip.",
		.transaction = transaction
	};

	if (request.skipped > RECORDED_MAX)
		return;
	incident.label = pyr_describe_key(change, encoding);
	incident.statement = statement_of(change, encoding);
	pyr_history_add(history, &incident);
}

/*
 * The failure is past, if the window ends behind it.
 */
static void
forget_failure(const char *snapshot)
{
	const char *schema = pyr_local_schema();
	const char *texts[] = {snapshot};

	if (run(psprintf("DELETE FROM %s.pyreplica_failure WHERE replica = $1"
					 " AND pg_catalog.pg_visible_in_snapshot(xid, $2::pg_catalog.pg_snapshot)",
					 schema), 1, texts) == 0)
		return;
	(void) run(psprintf("DELETE FROM %s.pyreplica_failure_change WHERE replica = $1",
						schema), 0, NULL);
	has_failure = false;
}

/*
 * What was asked for is done; or it never will be, if the window ends behind it.
 */
static void
forget_request(const char *snapshot)
{
	const char *texts[] = {request.skipped > 0 ? NULL : snapshot};

	if (run(psprintf("DELETE FROM %s.pyreplica_skip_request WHERE replica = $1"
					 " AND coalesce(pg_catalog.pg_visible_in_snapshot(xid, $2::pg_catalog.pg_snapshot), true)",
					 pyr_local_schema()), 1, texts) == 0)
		return;
	if (request.skipped > 0)
		ereport(LOG,
				(errmsg("pyreplica %s: passed over " INT64_FORMAT " changes of the master's transaction " UINT64_FORMAT ", commit number " INT64_FORMAT,
						pyr_local_replica(), request.skipped,
						request.transaction.xid, request.transaction.commitno),
				 errhidecontext(true)));
	else
		ereport(LOG,
				(errmsg("pyreplica %s: nothing was passed over: the master's transaction " UINT64_FORMAT ", commit number " INT64_FORMAT ", has been applied, or has no such change",
						pyr_local_replica(), request.transaction.xid,
						request.transaction.commitno),
				 errhidecontext(true)));
	request.is_pending = false;
}

/*
 * At the end of a window, within its transaction.
 */
void
pyr_skip_finish(const char *snapshot)
{
	if (has_failure)
		forget_failure(snapshot);
	if (request.is_pending)
		forget_request(snapshot);
}

/*
 * How to pass over it, behind whatever else there is to be done.
 */
static void
add_hint(ErrorData *error, const PyrTransaction *transaction)
{
	char	   *call = psprintf("SELECT * FROM %s.pyreplica_skip(%s, " INT64_FORMAT ", '" UINT64_FORMAT "')",
								pyr_local_schema(),
								quote_literal_cstr(pyr_local_replica()),
								transaction->commitno, transaction->xid);

	error->hint = psprintf("%s%sTo be rid of the master's transaction: %s shows what would be passed over; with really => true it will be.",
						   error->hint ? error->hint : "",
						   error->hint ? " " : "", call);
}

/*
 * Keeps that a change has failed, and completes the error.  Returns whether the
 * transaction's changes are to be kept now; they are already if it is tried
 * again.  After the rollback, in a transaction of its own.
 */
bool
pyr_failure_keep(const PyrTransaction *transaction, int64 number,
				 ErrorData *error)
{
	const char *schema = pyr_local_schema();
	const char *texts[] = {
		number_text(transaction->commitno), xid_text(transaction->xid),
		number_text(number), error->message, error->detail, NULL,
		timestamptz_to_str(transaction->at)
	};

	add_hint(error, transaction);
	texts[5] = error->hint;
	has_failure = true;
	if (run(psprintf("UPDATE %s.pyreplica_failure"
					 "   SET last_at = pg_catalog.now(), times = times + 1,"
					 "       message = $5, detail = $6, hint = $7"
					 " WHERE replica = $1 AND commitno = $2::pg_catalog.int8"
					 "   AND xid = $3::pg_catalog.xid8 AND number = $4::pg_catalog.int8",
					 schema), 6, texts) > 0)
		return false;
	(void) run(psprintf("DELETE FROM %s.pyreplica_failure WHERE replica = $1",
						schema), 0, NULL);
	(void) run(psprintf("DELETE FROM %s.pyreplica_failure_change WHERE replica = $1",
						schema), 0, NULL);
	(void) run(psprintf("INSERT INTO %s.pyreplica_failure (replica, commitno, xid, number,"
						" message, detail, hint, master_at)"
						" VALUES ($1, $2::pg_catalog.int8, $3::pg_catalog.xid8,"
						" $4::pg_catalog.int8, $5, $6, $7, $8::pg_catalog.timestamptz)",
						schema), 7, texts);
	return true;
}

/*
 * Keeps one of its changes.
 */
void
pyr_failure_keep_change(int64 number, PyrChange *change, int encoding)
{
	const char *texts[] = {
		number_text(number), change->shape->schema, change->shape->table,
		statement_of(change, encoding)
	};

	(void) run(psprintf("INSERT INTO %s.pyreplica_failure_change"
						" (replica, number, schemaname, tablename, statement)"
						" VALUES ($1, $2::pg_catalog.int8, $3, $4, $5)",
						pyr_local_schema()), 4, texts);
}

/*
 * Keeps how many there are.
 */
void
pyr_failure_keep_count(int64 count)
{
	const char *texts[] = {number_text(count)};

	(void) run(psprintf("UPDATE %s.pyreplica_failure SET changes = $2::pg_catalog.int8"
						" WHERE replica = $1", pyr_local_schema()), 1, texts);
}

/*
 * Whether there is a failure that has not been overcome yet.
 */
bool
pyr_failure_is_kept(void)
{
	return has_failure;
}

/*
 * The table whose change has failed; false: there is none.  Needs SPI.
 */
bool
pyr_failure_table(char **schema, char **table)
{
	const char *ours = pyr_local_schema();

	if (!has_failure ||
		run(psprintf("SELECT c.schemaname, c.tablename"
					 "  FROM %s.pyreplica_failure f"
					 "  JOIN %s.pyreplica_failure_change c USING (replica, number)"
					 " WHERE f.replica = $1 AND c.tablename <> ''",
					 ours, ours), 0, NULL) == 0)
		return false;
	*schema = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	*table = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
	return true;
}
