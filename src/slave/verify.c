/*-------------------------------------------------------------------------
 *
 * verify.c
 *	  Compares the rows of master and slave, range by range.
 *
 * A range of keys is looked at on the master in the transaction whose snapshot a
 * window ends at, and here after the window's changes, before they are
 * committed.  So both sides are seen at one and the same instant, without any
 * lock, while the master is busy.
 *
 * At first only the number of rows and the sum of their hashes is compared.  If
 * they differ, the range is looked at again, then with all keys, to find the rows;
 * and if they are to be repaired, a third time, to make ours equal to the
 * master's.
 *
 * A row is hashed as the text of its columns, made under the same settings on
 * both sides, so its columns may be laid out in another order.
 *
 * Users ask for it with pyreplica_verify (status.c); besides, all tables are
 * verified every pyreplica.verify_interval.  Then there are pauses, so that it
 * takes a small share of the time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/arrays.h"
#include "common/config.h"
#include "common/encoding.h"
#include "executor/spi.h"
#include "slave/collision.h"
#include "slave/copy.h"
#include "slave/layout.h"
#include "slave/local.h"
#include "slave/status.h"
#include "slave/tables.h"
#include "slave/verify.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* a range should take so long to be looked at here */
#define RANGE_MS		50
#define RANGE_ROWS_FIRST 2000
#define RANGE_ROWS_MIN	100
#define RANGE_ROWS_MAX	200000

/* without anybody waiting for it, so much of the time is spent on it */
#define BACKGROUND_SHARE 0.04

/* a table of the master that is locked is looked at again after this */
#define LOCKED_RETRY_MS	500

/* more differences of a table than these are only counted */
#define DIFFERENCES_MAX	10000

typedef enum Phase
{
	PHASE_DESCRIBE,				/* what the table looks like */
	PHASE_DIGEST,				/* a range, as number and sum */
	PHASE_KEYS,					/* its rows, each with its hash */
	PHASE_REPAIR				/* its rows as they are */
} Phase;

/* a run over some tables */
typedef struct Run
{
	MemoryContext context;
	uint64		request;		/* of a user; 0: in the background */
	int64		number;			/* in pyreplica_difference */
	bool		repairs;
	List	   *tables;			/* PyrTable, those to come; the first is looked at */

	/* of the table that is looked at */
	PyrLayout  *layout;			/* NULL: not known yet */
	Phase		phase;
	int64		range_rows;
	char	  **after;			/* the range comes after this key; NULL: first */
	char	  **upto;			/* and ends here; NULL: with the table */
	int64		differences;
	int			nranges;		/* so many had differences */
} Run;

static Run *run = NULL;
static TimestampTz next_range_at = 0;	/* not before */
static TimestampTz asked_at;

/* a request that is done, but whose transaction may not have committed yet */
static uint64 done_request = 0;
static char done_error[1024];
static int	master_encoding;

static void
end_run(const char *error)
{
	if (run == NULL)
		return;
	if (run->request != 0)
	{
		done_request = run->request;
		pyr_encoding_copy(done_error, error ? error : "", sizeof(done_error));
	}
	if (run->layout != NULL)
		pyr_layout_free(run->layout);
	MemoryContextDelete(run->context);
	run = NULL;
	next_range_at = 0;
}

static void
next_table(void)
{
	if (run->layout != NULL)
		pyr_layout_free(run->layout);
	run->layout = NULL;
	run->tables = list_delete_first(run->tables);
	run->phase = PHASE_DESCRIBE;
	run->after = run->upto = NULL;
	run->differences = 0;
	if (run->tables == NIL)
		end_run(NULL);
}

/*
 * The table is not what it was.
 */
static void
begin_table_again(void)
{
	pyr_layout_free(run->layout);
	run->layout = NULL;
	run->phase = PHASE_DESCRIBE;
	run->after = run->upto = NULL;
}

/*
 * The tables here may not be what they were.
 */
void
pyr_verify_forget_layout(void)
{
	if (run != NULL && run->layout != NULL)
		begin_table_again();
}

static Run *
make_run(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "pyreplica verify",
												  ALLOCSET_SMALL_SIZES);
	Run		   *made = MemoryContextAllocZero(context, sizeof(Run));

	made->context = context;
	made->phase = PHASE_DESCRIBE;
	made->number = GetCurrentTimestamp();
	return made;
}

static int64
interval_ms(void)
{
	return verify_interval_s * INT64CONST(1000);
}

/*
 * Begins what a user asks for.
 */
static void
begin_request(uint64 number, const PyrVerifyRequest *request)
{
	MemoryContext oldcontext;

	run = make_run();
	run->request = number;
	run->number = request->run;
	run->repairs = request->repairs;
	oldcontext = MemoryContextSwitchTo(run->context);
	run->tables = pyr_tables_ready(request->schema, request->table);
	MemoryContextSwitchTo(oldcontext);
	if (run->tables == NIL)
		end_run(request->table[0] != '\0'
				? "the table is not replicated, or not ready" : NULL);
}

/*
 * Begins what is due.  When each table was verified is stored, so a restart does
 * not begin it all over again.
 */
static void
begin_background(void)
{
	List	   *due = pyr_tables_to_verify(interval_ms());
	MemoryContext oldcontext;

	if (due == NIL)
		return;
	run = make_run();
	oldcontext = MemoryContextSwitchTo(run->context);
	run->tables = list_copy(due);
	MemoryContextSwitchTo(oldcontext);
	list_free(due);
}

static void
begin_run(void)
{
	PyrVerifyRequest request;
	uint64		number = pyr_status_verify_requested(&request);

	if (number != 0)
		begin_request(number, &request);
	else if (verify_interval_s != 0)
		begin_background();
}

/*
 * Tells who waits for what has been done; called between transactions.
 */
void
pyr_verify_settle(void)
{
	if (done_request == 0)
		return;
	pyr_status_verify_served(done_request,
							 done_error[0] != '\0' ? done_error : NULL);
	done_request = 0;
}

/*
 * Whether there is a range to look at now.
 */
bool
pyr_verify_is_due(void)
{
	PyrVerifyRequest request;

	pyr_verify_settle();

	/* who waits comes first, and what is switched off ends at once */
	if (run != NULL && run->request == 0 &&
		(verify_interval_s == 0 || pyr_status_verify_requested(&request) != 0))
		end_run(NULL);
	if (run == NULL)
		begin_run();
	return run != NULL && next_range_at <= GetCurrentTimestamp();
}

/*
 * In how many ms there is something to do; -1: nobody can tell.
 */
long
pyr_verify_due_ms(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (run != NULL)
		return TimestampDifferenceMilliseconds(now, next_range_at);
	if (verify_interval_s == 0)
		return -1;
	return pyr_tables_verify_due_ms(interval_ms());
}

/*
 * A row's hash, as SQL, the same on both sides.
 */
static void
append_hash(StringInfo sql)
{
	ListCell   *cell;
	const char *comma = "";
	bool		is_converted = pyr_encoding_is_converted(master_encoding);

	appendStringInfoString(sql, is_converted
						   ? "hashtextextended(encode(convert_to(ROW(" : "hashtextextended((ROW(");
	foreach(cell, run->layout->values)
	{
		appendStringInfo(sql, "%s%s", comma, (char *) lfirst(cell));
		comma = ", ";
	}
	appendStringInfoString(sql, is_converted
						   ? ")::text, 'UTF8'), 'hex') COLLATE \"C\", 0)" : ")::text) COLLATE \"C\", 0)");
}

/*
 * The key as an array of texts.
 */
static void
append_key_array(StringInfo sql)
{
	appendStringInfoString(sql, "ARRAY[");
	for (int i = 0; i < run->layout->nkey; i++)
		appendStringInfo(sql, "%s%s::text", i > 0 ? ", " : "",
						 quote_identifier(run->layout->key[i]));
	appendStringInfoString(sql, "]::text");
}

static void
append_order(StringInfo sql, const char *relation, const char *direction)
{
	appendStringInfoString(sql, " ORDER BY ");
	for (int i = 0; i < run->layout->nkey; i++)
		appendStringInfo(sql, "%s%s.%s%s", i > 0 ? ", " : "", relation,
						 quote_identifier(run->layout->key[i]), direction);
}

/*
 * Number and sum of the master's rows after a key, and the key of the last one.
 */
static void
append_digest_of_master(StringInfo sql)
{
	appendStringInfoString(sql, "WITH q AS MATERIALIZED (SELECT ");
	pyr_layout_append_columns(sql, run->layout, true);
	appendStringInfo(sql, " FROM %s AS t",
					 pyr_layout_masters_relation(run->layout));
	pyr_layout_append_range(sql, run->layout, false, run->after, NULL);
	if (run->layout->is_sorted)
	{
		append_order(sql, "t", "");
		appendStringInfo(sql, " LIMIT " INT64_FORMAT, run->range_rows);
	}
	appendStringInfoString(sql, ") SELECT (SELECT count(*) FROM q), (SELECT coalesce(sum(");
	append_hash(sql);
	appendStringInfoString(sql, "), 0) FROM q)");
	if (run->layout->is_sorted)
	{
		appendStringInfoString(sql, ", (SELECT ");
		append_key_array(sql);
		appendStringInfoString(sql, " FROM q");
		append_order(sql, "q", " DESC");
		appendStringInfoString(sql, " LIMIT 1)");
	}
	else
		appendStringInfoString(sql, ", NULL");
}

static void
append_digest_of_slave(StringInfo sql)
{
	appendStringInfoString(sql, "SELECT count(*), coalesce(sum(");
	append_hash(sql);
	appendStringInfo(sql, "), 0) FROM %s", pyr_layout_relation(run->layout));
	pyr_layout_append_range(sql, run->layout, true, run->after, run->upto);
}

static void
append_keys(StringInfo sql, bool is_here)
{
	appendStringInfoString(sql, "SELECT ");
	append_key_array(sql);
	appendStringInfoString(sql, " AS k, ");
	append_hash(sql);
	if (is_here)
		appendStringInfo(sql, " AS h FROM %s", pyr_layout_relation(run->layout));
	else
	{
		appendStringInfoString(sql, " AS h FROM (SELECT ");
		pyr_layout_append_columns(sql, run->layout, true);
		appendStringInfo(sql, " FROM %s AS t",
						 pyr_layout_masters_relation(run->layout));
	}
	pyr_layout_append_range(sql, run->layout, is_here, run->after, run->upto);
	if (!is_here)
		appendStringInfoString(sql, ") AS q");
}

/*
 * Goes on behind the range.
 */
static void
advance(void)
{
	run->phase = PHASE_DIGEST;
	run->after = run->upto;
	run->upto = NULL;
	if (run->after != NULL)
		return;
	pyr_table_verified(run->layout->table, run->differences);
	next_table();
}

/*
 * Runs a query over the slave's rows, with the rights of the table's owner, whose
 * code may run.  Text depends on settings, which are here as in the master's
 * session.
 */
static void
query_here(const char *sql, int nargs, Oid *types, Datum *values)
{
	MemoryContext context = CurrentMemoryContext;
	PyrIdentity before = pyr_local_become(pyr_layout_owner(run->layout));

	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look at the slave's rows");
	pyr_local_become_again(before);
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
}

static void
compare_digests(char **master)
{
	StringInfoData sql;
	MemoryContext context = CurrentMemoryContext;
	int64		count;
	bool		is_last;
	TimestampTz begin = GetCurrentTimestamp();
	bool		is_same;
	double		factor;
	int			n;

	if (master[0] == NULL || master[1] == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not read what the master says of its rows")));
	count = strtoll(master[0], NULL, 10);
	is_last = !run->layout->is_sorted || count < run->range_rows;
	MemoryContextSwitchTo(run->layout->context);
	run->upto = is_last ? NULL : pyr_array_split(master[2], &n);
	MemoryContextSwitchTo(context);

	initStringInfo(&sql);
	append_digest_of_slave(&sql);
	query_here(sql.data, 0, NULL, NULL);
	is_same = strcmp(master[0], SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1)) == 0 &&
		strcmp(master[1], SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2)) == 0;

	factor = (double) RANGE_MS / Max(TimestampDifferenceMilliseconds(begin, GetCurrentTimestamp()), 1);
	factor = Max(Min(factor, 4.0), 0.25);
	if (!is_last)
		run->range_rows = Max(Min((int64) (count * factor), RANGE_ROWS_MAX),
							  RANGE_ROWS_MIN);
	if (is_same)
		advance();
	else
		run->phase = PHASE_KEYS;
}

static Datum
text_array(Datum *texts, int n)
{
	return PointerGetDatum(construct_array(texts, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * Writes down what differs: the keys, as texts, and what is wrong.
 */
static void
store_differences(Datum keys, Datum problems)
{
	PyrPlace	here = pyr_table_place(run->layout->table);
	Oid			types[7] = {
		INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT8OID
	};
	Datum		values[7] = {
		Int64GetDatum(run->number),
		CStringGetTextDatum(pyr_local_replica()),
		CStringGetTextDatum(here.schema),
		CStringGetTextDatum(here.table),
		keys, problems,
		Int64GetDatum(Max(DIFFERENCES_MAX - run->differences, 0))
	};

	if (SPI_execute_with_args(psprintf("INSERT INTO %s.pyreplica_difference (run, replica, schemaname, tablename, key, problem, range)"
									   " SELECT $1, $2, $3, $4, k::text[], p, %d FROM unnest($5, $6) AS d (k, p) LIMIT $7",
									   pyr_local_schema(), run->nranges),
							  7, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write pyreplica_difference");
}

/*
 * What was found in the range has been mended.
 */
static void
store_repaired(void)
{
	Oid			types[2] = {INT8OID, INT4OID};
	Datum		values[2] = {
		Int64GetDatum(run->number), Int32GetDatum(run->nranges)
	};

	if (SPI_execute_with_args(psprintf("UPDATE %s.pyreplica_difference SET repaired = true WHERE run = $1 AND range = $2",
									   pyr_local_schema()),
							  2, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write pyreplica_difference");
}

static void
report_differences(uint64 found)
{
	PyrTable   *table = run->layout->table;

	ereport(LOG,
			(errmsg("pyreplica %s: " UINT64_FORMAT " rows of table \"%s.%s\" differ from the master's",
					pyr_local_replica(), found,
					NameStr(table->name.schema), NameStr(table->name.table)),
			 errdetail("See pyreplica_difference, run " INT64_FORMAT ".",
					   run->number),
			 run->repairs ? 0 : errhint("SELECT pyreplica_verify(%s, repair => true) takes the master's.",
										quote_literal_cstr(pyr_table_here(table))),
			 errhidestmt(true), errhidecontext(true)));
}

/*
 * Rows that come from other tables are not to be taken for wrong.
 */
static void
check_alone(void)
{
	if (pyr_table_sharers(run->layout->table) != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s cannot be repaired, as its rows come from several tables of the master",
						run->layout->here),
				 errhint("SELECT pyreplica_resync(%s), then empty it here: all of them are copied anew.",
						 quote_literal_cstr(run->layout->here))));
}

/*
 * Finds the rows that differ; "rows" are keys and hashes of the master's.
 */
static void
compare_keys(List *rows)
{
	int			n = 0;
	Datum	   *keys = palloc((list_length(rows) + 1) * sizeof(Datum));
	Datum	   *hashes = palloc((list_length(rows) + 1) * sizeof(Datum));
	Oid			types[2] = {TEXTARRAYOID, TEXTARRAYOID};
	Datum		values[2];
	StringInfoData sql;
	ListCell   *cell;
	List	   *sharers = pyr_table_sharers(run->layout->table);
	uint64		found;

	/* without a key, of equal rows the first is compared with the first and so on */
	const char *number = run->layout->is_whole
		? ", row_number() OVER (PARTITION BY k COLLATE \"C\", h) AS n" : "";

	foreach(cell, rows)
	{
		char	  **row = lfirst(cell);

		if (row[0] == NULL || row[1] == NULL)
			continue;
		keys[n] = CStringGetTextDatum(row[0]);
		hashes[n++] = CStringGetTextDatum(row[1]);
	}
	values[0] = text_array(keys, n);
	values[1] = text_array(hashes, n);

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT coalesce(m.k, s.k),"
					 " CASE WHEN s.k IS NULL THEN 'missing' WHEN m.k IS NULL THEN 'extra' ELSE 'differs' END"
					 " FROM (SELECT k, h%s FROM unnest($1, $2) AS m (k, h)) m FULL JOIN (SELECT k, h%s FROM (",
					 number, number);
	append_keys(&sql, true);
	appendStringInfo(&sql, ") s) s ON m.k = s.k%s WHERE m.h::bigint IS DISTINCT FROM s.h",
					 run->layout->is_whole ? " AND m.h::bigint = s.h AND m.n = s.n" : "");

	/* rows that are only here may come from the others */
	if (sharers != NIL)
		appendStringInfoString(&sql, " AND m.k IS NOT NULL");
	query_here(sql.data, 2, types, values);

	found = SPI_processed;
	keys = palloc((found + 1) * sizeof(Datum));
	hashes = palloc((found + 1) * sizeof(Datum));
	for (uint64 i = 0; i < found; i++)
	{
		keys[i] = CStringGetTextDatum(SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1));
		hashes[i] = CStringGetTextDatum(SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2));
	}
	run->nranges++;
	if (found > 0)
	{
		report_differences(found);
		store_differences(text_array(keys, found), text_array(hashes, found));
	}
	run->differences += found;
	if (found > 0 && run->repairs)
		check_alone();
	if (found > 0 && run->repairs)
		run->phase = PHASE_REPAIR;
	else
		advance();
}

static void
apply_phase(PyrSupplement *supplement, void (*between) (void))
{
	PyrTable   *table = linitial(run->tables);
	List	   *rows = supplement->rows;

	/* the first row is the description, which must not have changed */
	if (rows == NIL || table->state != PYR_TABLE_READY)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the table is not replicated, or not ready, any more")));
	if (run->layout != NULL && !pyr_layout_is_same(run->layout, linitial(rows)))
		begin_table_again();

	switch (run->phase)
	{
		case PHASE_DESCRIBE:
			run->layout = pyr_layout_create(table, linitial(rows));
			run->range_rows = RANGE_ROWS_FIRST;
			run->phase = PHASE_DIGEST;
			break;
		case PHASE_DIGEST:
			if (list_length(rows) != 2)
				ereport(ERROR,
						(errcode(ERRCODE_DATA_CORRUPTED),
						 errmsg("could not read what the master says of its rows")));
			compare_digests(lsecond(rows));
			break;
		case PHASE_KEYS:
			compare_keys(list_delete_first(list_copy(rows)));
			break;
		case PHASE_REPAIR:
			check_alone();		/* meanwhile, another mapping may have come */
			pyr_copy_range(run->layout, supplement, PYR_COPY_REPAIR, run->after,
						   run->upto, between);
			store_repaired();
			advance();
			break;
	}
}

/*
 * What is wrong, and how to get on if there is a way.
 */
static const char *
reason_of(PyrTable *table, ErrorData *error)
{
	if (run->phase != PHASE_REPAIR || !pyr_is_collision(error->sqlerrcode))
		return error->message;
	return psprintf("%s (%s) HINT: Another row that is wrong holds what is to come here. SELECT pyreplica_resync(%s) makes the table equal as a whole.",
					error->message, error->detail ? error->detail : "",
					quote_literal_cstr(pyr_table_here(table)));
}

/*
 * The run cannot go on.
 */
static void
fail(ErrorData *error)
{
	PyrTable   *table = linitial(run->tables);
	const char *reason = reason_of(table, error);

	ereport(LOG,
			(errmsg("pyreplica %s: could not verify table \"%s.%s\": %s",
					pyr_local_replica(), NameStr(table->name.schema),
					NameStr(table->name.table), reason),
			 errhidestmt(true), errhidecontext(true)));
	if (run->request != 0)
		end_run(reason);
	else
	{
		table->verified_at = GetCurrentTimestamp(); /* not again at once */
		next_table();
	}
}

/* a PyrAttempt's argument */
typedef struct Supplied
{
	PyrSupplement *supplement;
	void		(*between) (void);
} Supplied;

static bool
attempt_phase(void *arg)
{
	Supplied   *supplied = arg;

	apply_phase(supplied->supplement, supplied->between);
	return true;
}

static void
apply(PyrSupplement *supplement, void (*between) (void))
{
	Supplied	supplied = {supplement, between};
	ErrorData  *error;
	bool		is_background;
	long		ms;

	if (run == NULL || supplement->what != run)
		return;
	is_background = run->request == 0;
	if (!pyr_local_try(attempt_phase, &supplied, &error) && run != NULL)
		fail(error);

	ms = TimestampDifferenceMilliseconds(asked_at, GetCurrentTimestamp());
	if (is_background && run != NULL)
		next_range_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													(int64) (Max(ms, 1) / BACKGROUND_SHARE));
}

static void
refused(PyrSupplement *supplement, ErrorData *error)
{
	if (run == NULL || supplement->what != run ||
		pyr_is_of_the_system(error->sqlerrcode))
		ReThrowError(error);
	if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
		next_range_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													LOCKED_RETRY_MS);
	else
		fail(error);
}

/*
 * What is to be asked for with the next window, from a master with that
 * encoding.
 */
PyrSupplement *
pyr_verify_ask(const char *schema, int encoding)
{
	PyrSupplement *supplement;
	MemoryContext oldcontext;
	StringInfoData sql;

	master_encoding = encoding;
	asked_at = GetCurrentTimestamp();
	supplement = pyr_supplement_create();
	oldcontext = MemoryContextSwitchTo(supplement->context);
	supplement->what = run;
	supplement->apply = apply;
	supplement->refused = refused;
	initStringInfo(&sql);
	supplement->locked = run->layout != NULL
		? pyr_layout_masters_relation(run->layout)
		: psprintf("ONLY %s", pyr_table_qualified(linitial(run->tables)));
	supplement->is_partitioned = run->layout != NULL &&
		run->layout->is_partitioned;
	appendStringInfoString(&sql, pyr_layout_sql(schema, linitial(run->tables),
												run->phase != PHASE_DESCRIBE));
	switch (run->phase)
	{
		case PHASE_DESCRIBE:
			break;
		case PHASE_DIGEST:
			append_digest_of_master(&sql);
			break;
		case PHASE_KEYS:
			append_keys(&sql, false);
			break;
		case PHASE_REPAIR:
			pyr_copy_append_sql(&sql, run->layout, run->after, run->upto,
								PG_INT64_MAX);
			break;
	}
	supplement->sql = sql.data;
	MemoryContextSwitchTo(oldcontext);
	return supplement;
}
