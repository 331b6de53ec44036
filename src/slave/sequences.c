/*-------------------------------------------------------------------------
 *
 * sequences.c
 *	  Sequences follow the master's, so that the slave can take its place.
 *
 * What nextval does on the master is in no log.  So now and then, while there is
 * work and once after it, the values of all sequences that the replicated
 * tables take defaults from are read along with a window.  They are of no use here
 * until the master is gone, perhaps without warning.  So ours are set ahead of
 * the master's by pyreplica.sequence_margin, more than it can come to use until we
 * look again; and only when half of that is used up, and never back.
 *
 * pyreplica_sync_sequences asks for the exact values, for a switch-over that is
 * planned.
 *
 * Two masters of one table must not set one another's sequences: each makes
 * values that the other does not (py_log_interleave_sequences).  That is seen from
 * the definitions: sequences with another INCREMENT, or with a START that
 * is not on the same steps, are left alone.  Nor is one set ahead whose table is logged
 * here, too: two of them that follow one another would run away.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/config.h"
#include "executor/spi.h"
#include "slave/local.h"
#include "slave/mapping.h"
#include "slave/sequences.h"
#include "slave/status.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* while there is work, the master's values are read so often */
#define LOOK_INTERVAL_MS	5000

/* and so often if it has no sequence, or did not tell */
#define IDLE_INTERVAL_MS	60000

/* columns of py_log_sequences; the first ones go to the statements as they are */
#define NCOLUMNS			9
#define NVALUES				6

static bool is_wanted = true;	/* there was work since the last look */
static TimestampTz looked_at = 0;
static int	interval_ms = LOOK_INTERVAL_MS;
static char *last_complaint = NULL;

/* a request for exact values that is done, but may not have committed yet */
static uint64 done_request = 0;
static char *done_error = NULL;

/*
 * Something was applied, or may have been missed.
 */
void
pyr_sequences_note_work(void)
{
	is_wanted = true;
}

/*
 * In how many ms there is something to do; -1: nobody can tell.
 */
long
pyr_sequences_due_ms(void)
{
	if (pyr_status_sync_requested() != 0)
		return 0;
	if (!is_wanted || sequence_margin == 0)
		return -1;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
										   TimestampTzPlusMilliseconds(looked_at, interval_ms));
}

bool
pyr_sequences_is_due(void)
{
	return pyr_sequences_due_ms() == 0;
}

/*
 * Tells who waits for exact values that they are here; called between
 * transactions.
 */
void
pyr_sequences_settle(void)
{
	if (done_request == 0)
		return;
	pyr_status_sync_served(done_request, done_error);
	done_request = 0;
	if (done_error != NULL)
		pfree(done_error);
	done_error = NULL;
}

static void
note_done(uint64 request, const char *error)
{
	if (request == 0)
		return;
	done_request = request;
	done_error = error ? MemoryContextStrdup(TopMemoryContext, error) : NULL;
}

/*
 * Says what is wrong, unless that has been said already.
 */
static void
complain(const char *what, const char *detail)
{
	if (last_complaint != NULL && strcmp(last_complaint, detail) == 0)
		return;
	if (last_complaint != NULL)
		pfree(last_complaint);
	last_complaint = MemoryContextStrdup(TopMemoryContext, detail);
	ereport(LOG,
			(errmsg("pyreplica %s: %s", pyr_local_replica(), what),
			 errdetail_internal("%s", detail),
			 errhidestmt(true), errhidecontext(true)));
}

/*
 * The column of what came as an array of texts.
 */
static Datum
column_array(List *rows, int column)
{
	int			n = list_length(rows);
	int			lower = 1;
	Datum	   *texts = palloc((n + 1) * sizeof(Datum));
	bool	   *isnull = palloc((n + 1) * sizeof(bool));
	ListCell   *cell;

	foreach(cell, rows)
	{
		char	  **row = lfirst(cell);
		int			i = foreach_current_index(cell);

		isnull[i] = row[column] == NULL;
		texts[i] = isnull[i] ? (Datum) 0 : CStringGetTextDatum(row[column]);
	}
	return PointerGetDatum(construct_md_array(texts, isnull, 1, &n, &lower,
											  TEXTOID, -1, false, TYPALIGN_INT));
}

/*
 * Parts of where things are here: the sequences by their names, and if their tables
 * have other names here, these.
 */
static void
place_arrays(List *rows, Datum *schemas, Datum *names, Datum *table_schemas,
			 Datum *table_names)
{
	List	   *places = NIL;
	ListCell   *cell;

	foreach(cell, rows)
	{
		char	  **row = lfirst(cell);
		char	  **place = palloc0(4 * sizeof(char *));

		if (row[0] != NULL && row[1] != NULL)
		{
			PyrPlace	here = pyr_mapping_of(row[0], row[1]);

			place[0] = unconstify(char *, here.schema);
			place[1] = unconstify(char *, here.table);
		}
		if (row[6] != NULL && row[7] != NULL)
		{
			PyrPlace	here = pyr_mapping_of(row[6], row[7]);

			place[2] = here.is_mapped ? unconstify(char *, here.schema) : NULL;
			place[3] = here.is_mapped ? unconstify(char *, here.table) : NULL;
		}
		places = lappend(places, place);
	}
	*schemas = column_array(places, 0);
	*names = column_array(places, 1);
	*table_schemas = column_array(places, 2);
	*table_names = column_array(places, 3);
}

/*
 * Runs a statement over "l", the master's sequences beside ours: where ours is, and
 * why it is left alone, if it is.  $7 is the margin, $8 the replica's name.  A
 * column of a table that has another name here has the sequence that it uses here.
 */
static void
run_statement(List *rows, int margin, int expected, const char *statement)
{
	MemoryContext context = CurrentMemoryContext;
	const char *schema = pyr_local_schema();
	Oid			types[NVALUES + 7];
	Datum		values[NVALUES + 7];

	for (int i = 0; i < NVALUES + 7; i++)
		types[i] = TEXTARRAYOID;
	for (int i = 0; i < NVALUES; i++)
		values[i] = column_array(rows, i);
	types[NVALUES] = INT4OID;
	values[NVALUES] = Int32GetDatum(margin);
	types[NVALUES + 1] = TEXTOID;
	values[NVALUES + 1] = CStringGetTextDatum(pyr_local_replica());
	place_arrays(rows, &values[NVALUES + 2], &values[NVALUES + 3],
				 &values[NVALUES + 4], &values[NVALUES + 5]);
	values[NVALUES + 6] = column_array(rows, NCOLUMNS - 1);

	if (SPI_execute_with_args(psprintf("WITH m AS ("
									   " SELECT u.value::bigint, u.is_called::boolean, u.increment::bigint, u.start::bigint,"
									   "  u.local_schema, u.local_name, u.table_schema, u.table_name, u.column_name"
									   "  FROM unnest($1, $2, $3, $4, $5, $6, $9, $10, $11, $12, $13)"
									   "   AS u (schemaname, sequencename, value, is_called, increment, start, local_schema, local_name, table_schema, table_name, column_name)),"
									   " l AS MATERIALIZED ("
									   " SELECT m.*, coalesce(cn.nspname, m.local_schema) AS schemaname,"
									   "  coalesce(c.relname, m.local_name) AS sequencename,"
									   "  c.oid AS sequence, s.seqmin, s.seqmax,"
									   "  coalesce(pg_sequence_last_value(c.oid), s.seqstart - s.seqincrement)::numeric AS here,"
									   "  CASE WHEN s.seqcycle OR EXISTS (SELECT FROM %1$s.py_log_sequence_use o WHERE o.sequence = c.oid)"
									   "   THEN 0 ELSE $7 END * m.increment::numeric AS margin,"
									   "  CASE WHEN m.value IS NULL THEN 'cannot be read on the master now'"
									   "   WHEN s.seqrelid IS NULL THEN 'does not exist on the slave'"
									   "   WHEN EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid"
									   "     WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid"
									   "     AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pyreplica')"
									   "   THEN 'belongs to pyreplica'"
									   "   WHEN s.seqincrement <> m.increment OR (s.seqstart::numeric - m.start) %% m.increment <> 0"
									   "   THEN 'makes other values than on the master'"
									   "   WHEN m.value NOT BETWEEN s.seqmin AND s.seqmax"
									   "   THEN 'has other bounds than on the master' END AS problem"
									   "  FROM m LEFT JOIN pg_namespace n ON n.nspname = m.local_schema"
									   "  LEFT JOIN pg_class b ON b.relnamespace = n.oid AND b.relname = m.local_name AND b.relkind = 'S'"
									   "  LEFT JOIN LATERAL ("
									   "   SELECT u.sequence FROM pg_namespace tn"
									   "    JOIN pg_class t ON t.relnamespace = tn.oid AND t.relname = m.table_name"
									   "    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = m.column_name AND NOT a.attisdropped"
									   "    JOIN LATERAL ("
									   "     SELECT d.objid AS sequence FROM pg_depend d"
									   "      WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass"
									   "      AND d.refobjid = t.oid AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i')"
									   "     UNION"
									   "     SELECT d.refobjid FROM pg_attrdef f JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid"
									   "      WHERE f.adrelid = t.oid AND f.adnum = a.attnum AND d.refclassid = 'pg_class'::regclass) u ON true"
									   "    JOIN pg_sequence q ON q.seqrelid = u.sequence"
									   "    WHERE tn.nspname = m.table_schema LIMIT 1) u ON true"
									   "  LEFT JOIN pg_class c ON c.oid = coalesce(u.sequence, b.oid)"
									   "  LEFT JOIN pg_namespace cn ON cn.oid = c.relnamespace"
									   "  LEFT JOIN pg_sequence s ON s.seqrelid = c.oid) %2$s",
									   schema, statement),
							  NVALUES + 7, types, values, NULL, false, 0) != expected)
		elog(ERROR, "could not set sequences");
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
}

/*
 * Sets ours to the master's values, and writes down what came of it, for
 * pyreplica_sync_sequences.
 */
static void
set_exactly(List *rows)
{
	run_statement(rows, 0, SPI_OK_DELETE,
				  psprintf("DELETE FROM %s.pyreplica_sequence WHERE replica = $8",
						   pyr_local_schema()));
	run_statement(rows, 0, SPI_OK_INSERT,
				  psprintf("INSERT INTO %s.pyreplica_sequence (replica, schemaname, sequencename, value, problem)"
						   " SELECT $8, schemaname, sequencename,"
						   "  CASE WHEN problem IS NULL THEN setval(sequence::regclass, value, is_called) END, problem"
						   " FROM l",
						   pyr_local_schema()));
}

/*
 * Sets ours ahead of the master's where too little of the margin is left.
 */
static void
set_ahead(List *rows)
{
	StringInfoData problems;

	run_statement(rows, sequence_margin, SPI_OK_SELECT,
				  "SELECT schemaname, sequencename, problem,"
				  "  CASE WHEN problem IS NULL AND is_called"
				  "   AND (value + margin / 2 - here) * sign(increment) > 0"
				  "  THEN setval(sequence::regclass, greatest(least(value + margin, seqmax), seqmin)::bigint) END"
				  " FROM l ORDER BY 1, 2");
	initStringInfo(&problems);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		char	   *problem = SPI_getvalue(tuple, desc, 3);

		if (problem != NULL)
			appendStringInfo(&problems, "%s%s %s.", problems.len > 0 ? " " : "",
							 quote_qualified_identifier(SPI_getvalue(tuple, desc, 1),
														SPI_getvalue(tuple, desc, 2)),
							 problem);
	}
	if (problems.len > 0)
		complain("some sequences do not follow the master's", problems.data);
}

/* what is done in a subtransaction */
typedef struct Job
{
	List	   *rows;
	bool		is_exact;
} Job;

/* a PyrAttempt */
static bool
set_sequences(void *arg)
{
	Job		   *job = arg;

	if (job->is_exact)
		set_exactly(job->rows);
	else
		set_ahead(job->rows);
	return true;
}

/*
 * Takes in the master's values.  If that fails, nothing else suffers.
 */
static void
apply(PyrSupplement *supplement, void (*between) (void) pg_attribute_unused())
{
	uint64		request = *(uint64 *) supplement->what;
	Job			job = {supplement->rows, request != 0};
	ErrorData  *error = NULL;

	interval_ms = supplement->rows != NIL ? LOOK_INTERVAL_MS : IDLE_INTERVAL_MS;
	if (!pyr_local_try(set_sequences, &job, &error))
		complain("could not set sequences", error->message);
	note_done(request, error ? error->message : NULL);
}

/*
 * The master did not tell.
 */
static void
refused(PyrSupplement *supplement, ErrorData *error)
{
	if (pyr_is_of_the_system(error->sqlerrcode))
		ReThrowError(error);
	interval_ms = IDLE_INTERVAL_MS;
	complain("could not read the master's sequences", error->message);
	note_done(*(uint64 *) supplement->what, error->message);
	pyr_sequences_settle();
}

/*
 * What is to be asked for with the next window.
 */
PyrSupplement *
pyr_sequences_ask(const char *schema)
{
	PyrSupplement *supplement = pyr_supplement_create();
	MemoryContext oldcontext = MemoryContextSwitchTo(supplement->context);
	uint64	   *request = palloc(sizeof(uint64));

	is_wanted = false;
	looked_at = GetCurrentTimestamp();
	*request = pyr_status_sync_requested();
	supplement->what = request;
	supplement->apply = apply;
	supplement->refused = refused;
	supplement->sql = psprintf("SELECT schemaname, sequencename, last_value, is_called, increment, start,"
							   " table_schema, table_name, column_name FROM %s.py_log_sequences();",
							   schema);
	MemoryContextSwitchTo(oldcontext);
	return supplement;
}
