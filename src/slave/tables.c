/*-------------------------------------------------------------------------
 *
 * tables.c
 *	  The tables that the replica follows: those that have a log trigger on the
 *	  master.  How far each of them is is kept in pyreplica_table, and written
 *	  in the transaction that brings it there.
 *
 * The list is read on the master together with a window, at whose end it
 * is true: tables on it that we did not know are to be copied (or are here, if
 * pyreplica.copy_data is off), and those that are not on it any more have been
 * followed up to this very point.
 *
 * A change of a table that we have not heard of was made after its trigger was
 * created.  If tables are copied, the copy will bring it.
 *
 * A table with another log trigger than before may have been changed while it
 * had none; it is copied anew, over what is there.  So is a table with another
 * name: changes since it got that name were made to a table that we did not know.
 * (If it was given that name by a statement that was passed on, we know it.)
 * So is one of which other rows or columns are logged than before; changes tell
 * that themselves, too, as they can come before the list that does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/config.h"
#include "executor/spi.h"
#include "slave/local.h"
#include "slave/policy.h"
#include "slave/tables.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* the list is read anew so often while there is work */
#define LIST_INTERVAL_MS	10000

#define RETRY_FIRST_MS		1000

static const char *replica_name;
static HTAB *tables = NULL;
static MemoryContext context;	/* of all that hangs on them */
static uint64 nbookmarks = 0;	/* so many have been set */
static int	nunfinished = 0;		/* those to be copied, or being copied */
static int	nmissing = 0;		/* those that do not exist here, of these */
static uint64 nfinished = 0;	/* so many times one stopped to be unfinished */
static bool is_list_wanted = true;
static bool any_begun_anew = false; /* while this window was applied */
static List *swaps = NIL;		/* Swap, while it was applied */
static TimestampTz listed_at = 0;

/* two names, of which at least one belongs to a table that has got the other */
typedef struct Swap
{
	PyrTableName a;
	PyrTableName b;
} Swap;

/* a table that is here, and the name that it is followed by */
typedef struct Named
{
	Oid			relid;
	PyrTableName name;
} Named;

struct PyrTableNames
{
	int			n;
	Named	   *named;
};

static const char *const state_words[] = {
	[PYR_TABLE_WAITING] = "waiting",
	[PYR_TABLE_COPYING] = "copying",
	[PYR_TABLE_READY] = "ready",
};

/*
 * A hash key.
 */
PyrTableName
pyr_table_name(const char *schema, const char *tablename)
{
	PyrTableName name;

	memset(&name, 0, sizeof(name));
	namestrcpy(&name.schema, schema);
	namestrcpy(&name.table, tablename);
	return name;
}

static PyrTable *
get_table(const char *schema, const char *tablename)
{
	PyrTableName name = pyr_table_name(schema, tablename);
	PyrTable   *table;
	bool		found;

	table = hash_search(tables, &name, HASH_ENTER, &found);
	if (!found)
	{
		memset(table, 0, sizeof(PyrTable));
		table->name = name;
	}
	return table;
}

static bool
is_unfinished(PyrTable *table)
{
	return table->state == PYR_TABLE_WAITING ||
		table->state == PYR_TABLE_COPYING;
}

void
pyr_table_set_state(PyrTable *table, PyrTableState state)
{
	bool		was_unfinished = is_unfinished(table);

	table->state = state;
	nunfinished += is_unfinished(table) - was_unfinished;
	nfinished += was_unfinished && !is_unfinished(table);
	if (state != PYR_TABLE_WAITING)
		pyr_table_set_missing(table, false);
}

/*
 * A table that does not exist here is not copied until it does.
 */
void
pyr_table_set_missing(PyrTable *table, bool is_missing)
{
	nmissing += is_missing - table->is_missing;
	table->is_missing = is_missing;
}

bool
pyr_tables_any_missing(void)
{
	return nmissing > 0;
}

static void
replace_string(char **place, const char *value)
{
	if (*place != NULL)
		pfree(*place);
	*place = value ? MemoryContextStrdup(context, value) : NULL;
}

/*
 * The master's table's name, for statements there.
 */
const char *
pyr_table_qualified(PyrTable *table)
{
	return quote_qualified_identifier(NameStr(table->name.schema),
									  NameStr(table->name.table));
}

PyrPlace
pyr_table_place(PyrTable *table)
{
	return pyr_mapping_of(NameStr(table->name.schema),
						  NameStr(table->name.table));
}

/*
 * The slave's table's name, for statements here.
 */
const char *
pyr_table_here(PyrTable *table)
{
	PyrPlace	place = pyr_table_place(table);

	return quote_qualified_identifier(place.schema, place.table);
}

static bool
is_at(PyrTable *table, const char *schema, const char *tablename)
{
	PyrPlace	place = pyr_table_place(table);

	return strcmp(place.table, tablename) == 0 &&
		strcmp(place.schema, schema) == 0;
}

/*
 * The other tables of the master that are the same one here.
 */
List *
pyr_table_sharers(PyrTable *table)
{
	HASH_SEQ_STATUS status;
	PyrPlace	place = pyr_table_place(table);
	PyrTable   *other;
	List	   *sharers = NIL;

	/* without a mapping of its own it may be another one's place */
	hash_seq_init(&status, tables);
	while ((other = hash_seq_search(&status)) != NULL)
	{
		if (other != table && other->state != PYR_TABLE_UNKNOWN &&
			is_at(other, place.schema, place.table))
			sharers = lappend(sharers, other);
	}
	return sharers;
}

/*
 * Whether rows up to the bookmark are the master's, but beyond it there may be old
 * ones that their chunk will make equal or take away.
 */
bool
pyr_table_has_stale_rows(PyrTable *table)
{
	return table->is_resync && table->state == PYR_TABLE_COPYING &&
		table->bookmark != NULL;
}

/*
 * Keeps a copy of the key as bookmark; n = 0: there is none.
 */
void
pyr_table_set_bookmark(PyrTable *table, char **bookmark, int n)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(context);

	for (int i = 0; i < table->nbookmark; i++)
		pfree(table->bookmark[i]);
	if (table->bookmark != NULL)
		pfree(table->bookmark);
	table->bookmark = NULL;
	if (n > 0)
		table->bookmark = palloc(n * sizeof(char *));
	for (int i = 0; i < n; i++)
		table->bookmark[i] = pstrdup(bookmark[i]);
	table->nbookmark = n;
	table->nth_bookmark = ++nbookmarks;
	MemoryContextSwitchTo(oldcontext);
}

static PyrTableState
state_of_word(const char *word)
{
	for (int state = PYR_TABLE_WAITING; state <= PYR_TABLE_READY; state++)
	{
		if (strcmp(state_words[state], word) == 0)
			return state;
	}
	elog(ERROR, "unknown state \"%s\" in pyreplica_table", word);
	return PYR_TABLE_UNKNOWN;
}

static void
load_row(HeapTuple row, TupleDesc desc)
{
	PyrTable   *table = get_table(SPI_getvalue(row, desc, 1),
								  SPI_getvalue(row, desc, 2));
	bool		isnull;
	Datum		value;

	table->trigger = DatumGetObjectId(SPI_getbinval(row, desc, 3, &isnull));
	pyr_table_set_state(table, state_of_word(SPI_getvalue(row, desc, 4)));
	value = SPI_getbinval(row, desc, 5, &isnull);
	if (!isnull)
	{
		Datum	   *keys;
		char	  **bookmark;
		int			n;

		deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false,
						  TYPALIGN_INT, &keys, NULL, &n);
		bookmark = palloc(n * sizeof(char *));
		for (int i = 0; i < n; i++)
			bookmark[i] = TextDatumGetCString(keys[i]);
		pyr_table_set_bookmark(table, bookmark, n);
	}
	else
		pyr_table_set_bookmark(table, NULL, 0);
	table->is_resync = DatumGetBool(SPI_getbinval(row, desc, 6, &isnull));
	table->rows_copied = DatumGetInt64(SPI_getbinval(row, desc, 7, &isnull));
	table->rows_expected = DatumGetInt64(SPI_getbinval(row, desc, 8, &isnull));
	value = SPI_getbinval(row, desc, 9, &isnull);
	table->started_at = isnull ? 0 : DatumGetTimestampTz(value);
	value = SPI_getbinval(row, desc, 10, &isnull);
	table->finished_at = isnull ? 0 : DatumGetTimestampTz(value);

	/* what was wrong is tried again at once */
	replace_string(&table->error, SPI_getvalue(row, desc, 11));
	value = SPI_getbinval(row, desc, 12, &isnull);
	table->error_at = isnull ? 0 : DatumGetTimestampTz(value);
	value = SPI_getbinval(row, desc, 13, &isnull);
	table->verified_at = isnull ? 0 : DatumGetTimestampTz(value);
	table->filter = DatumGetInt32(SPI_getbinval(row, desc, 14, &isnull));
	replace_string(&table->key, SPI_getvalue(row, desc, 15));
}

/*
 * Reads what is known of all tables, or of that one.
 */
static void
load_rows(PyrTable *table)
{
	Oid			types[3] = {TEXTOID, TEXTOID, TEXTOID};
	Datum		values[3] = {CStringGetTextDatum(replica_name)};
	char		nulls[4] = " nn";

	if (table != NULL)
	{
		values[1] = CStringGetTextDatum(NameStr(table->name.schema));
		values[2] = CStringGetTextDatum(NameStr(table->name.table));
		nulls[1] = nulls[2] = ' ';
	}
	if (SPI_execute_with_args(psprintf("SELECT schemaname, tablename, trigger, state, bookmark, is_resync,"
									   "	   rows_copied, rows_expected, started_at, finished_at,"
									   "	   last_error, last_error_at, verified_at, filter, key"
									   "  FROM %s.pyreplica_table WHERE replica = $1"
									   "   AND ($2 IS NULL OR schemaname = $2 AND tablename = $3)",
									   pyr_local_schema()),
							  3, types, values, nulls, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read pyreplica_table");
	for (uint64 i = 0; i < SPI_processed; i++)
		load_row(SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
}

/*
 * Reads what is known of the tables.  Called once, within a transaction.
 */
void
pyr_tables_load(const char *replica)
{
	HASHCTL		ctl = {0};

	replica_name = replica;
	context = AllocSetContextCreate(TopMemoryContext, "pyreplica tables",
									ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = sizeof(PyrTableName);
	ctl.entrysize = sizeof(PyrTable);
	ctl.hcxt = context;
	tables = hash_create("pyreplica tables", 64, &ctl,
						 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	load_rows(NULL);
}

/*
 * The table as it is written down, in a transaction of its own; somebody else may
 * have done so.
 */
void
pyr_table_load(PyrTable *table)
{
	pyr_local_begin_transaction();
	load_rows(table);
	pyr_local_commit_transaction();
}

/*
 * Begins to follow the table, from nothing or over what is here.
 */
static void
begin_table(PyrTable *table, Oid trigger, int32 filter, bool is_resync)
{
	table->trigger = trigger;
	table->filter = filter;
	pyr_table_set_state(table, copy_data ? PYR_TABLE_WAITING : PYR_TABLE_READY);
	table->is_resync = is_resync;
	table->rows_copied = 0;
	table->started_at = table->finished_at = 0;
	table->retry_at = 0;
	table->retry_ms = 0;
	replace_string(&table->error, NULL);
	pyr_table_set_bookmark(table, NULL, 0);
}

/*
 * The bookmark, once there is one, will be about this key.
 */
void
pyr_table_set_key(PyrTable *table, const char *key)
{
	replace_string(&table->key, key);
}

/*
 * Copies the table once more, over what is here.  Needs SPI.
 */
void
pyr_table_begin_anew(PyrTable *table)
{
	table->is_begun_anew = any_begun_anew = true;
	begin_table(table, table->trigger, table->filter, true);
	pyr_table_set_state(table, PYR_TABLE_WAITING);
	pyr_table_store(table);
}

/*
 * All tables are copied once more.  Needs SPI.
 */
void
pyr_tables_begin_anew(void)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;

	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		if (table->state != PYR_TABLE_UNKNOWN)
			pyr_table_begin_anew(table);
	}
}

/*
 * The table is to be copied over what is here, and so is every other one that is
 * the same here; but nothing is here any more.  So all of them are copied as if for
 * the first time.  Needs SPI.
 */
void
pyr_table_begin_together(PyrTable *table)
{
	List	   *together = lappend(pyr_table_sharers(table), table);
	ListCell   *cell;

	foreach(cell, together)
	{
		PyrTable   *one = lfirst(cell);

		pyr_table_begin_anew(one);
		one->is_resync = false;
		pyr_table_store(one);
	}
}

/*
 * Whether changes of that filter are about the rows that are here, or will be.  If
 * not, the table has to begin anew, and has the filter from now on.
 */
bool
pyr_table_has_filter(PyrTable *table, uint32 filter)
{
	if (table->filter == (int32) filter || !copy_data)
		return true;
	table->filter = (int32) filter;
	return false;
}

/*
 * What is known of the two tables changes hands; it does not know its name.
 */
static void
swap_contents(Swap *swap)
{
	PyrTable   *a = get_table(NameStr(swap->a.schema), NameStr(swap->a.table));
	PyrTable   *b = get_table(NameStr(swap->b.schema), NameStr(swap->b.table));
	PyrTable	content = *a;

	*a = *b;
	*b = content;
	a->name = swap->a;
	b->name = swap->b;
}

static void
forget_swaps(void)
{
	list_free_deep(swaps);
	swaps = NIL;
}

/*
 * A window is about to be applied.
 */
void
pyr_tables_begin_window(void)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;

	forget_swaps();
	if (!any_begun_anew)
		return;
	any_begun_anew = false;
	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
		table->is_begun_anew = false;
}

/*
 * Something was rolled back, and with it what was written of tables that the window
 * made begin anew.  They do so all the same.  Needs SPI.
 */
void
pyr_tables_store_begun_anew(void)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;

	if (!any_begun_anew)
		return;
	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		if (table->is_begun_anew)
			pyr_table_store(table);
	}
}

/*
 * A part of the window was rolled back, and with it the names that tables had got,
 * and what was written of those that it made begin anew.  Needs SPI.
 */
void
pyr_tables_roll_back(void)
{
	if (swaps != NIL)
	{
		for (int i = list_length(swaps) - 1; i >= 0; i--)
			swap_contents(list_nth(swaps, i));
		forget_swaps();
		pyr_policy_load();
	}
	pyr_tables_store_begun_anew();
}

/*
 * Which of the tables here are followed, by what names.  Statements are about names
 * as the master has them, so not those that are called otherwise here.  In the current
 * memory context.
 */
PyrTableNames *
pyr_tables_note_names(void)
{
	PyrTableNames *names = palloc(sizeof(PyrTableNames));
	HASH_SEQ_STATUS status;
	PyrTable   *table;

	names->n = 0;
	names->named = palloc((hash_get_num_entries(tables) + 1) * sizeof(Named));
	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		PyrPlace	place = pyr_table_place(table);
		Oid			namespace = get_namespace_oid(place.schema, true);
		Oid			relid = OidIsValid(namespace) && !place.is_mapped
			? get_relname_relid(place.table, namespace) : InvalidOid;

		if (table->state != PYR_TABLE_UNKNOWN && OidIsValid(relid))
			names->named[names->n++] = (Named) {relid, table->name};
	}
	return names;
}

static bool
is_same_name(const PyrTableName *a, const PyrTableName *b)
{
	return memcmp(a, b, sizeof(PyrTableName)) == 0;
}

/*
 * The name that a table has here now.  False: it is gone.
 */
static bool
name_of(Oid relid, PyrTableName *name)
{
	char	   *relname = get_rel_name(relid);
	char	   *schema = relname ? get_namespace_name(get_rel_namespace(relid)) : NULL;

	if (schema == NULL)
		return false;
	*name = pyr_table_name(schema, relname);
	return true;
}

/*
 * The same for what is written down by the names: exchanges them.
 */
static void
store_swap(Swap *swap)
{
	static const char *const written[][2] = {
		{"pyreplica_table", "t.replica = $1 AND"},
		{"pyreplica_conflict_resolution", ""},
	};
	Oid			types[5] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[5] = {
		CStringGetTextDatum(replica_name),
		CStringGetTextDatum(NameStr(swap->a.schema)),
		CStringGetTextDatum(NameStr(swap->a.table)),
		CStringGetTextDatum(NameStr(swap->b.schema)),
		CStringGetTextDatum(NameStr(swap->b.table))
	};

	/* an empty name is in the way of nobody */
	for (size_t i = 0; i < lengthof(written); i++)
	{
		static const char *const steps[] = {
			"SET schemaname = '', tablename = '' WHERE %s t.schemaname = $2 AND t.tablename = $3",
			"SET schemaname = $2, tablename = $3 WHERE %s t.schemaname = $4 AND t.tablename = $5",
			"SET schemaname = $4, tablename = $5 WHERE %s t.schemaname = '' AND t.tablename = ''",
		};

		for (size_t step = 0; step < lengthof(steps); step++)
		{
			StringInfoData sql;

			initStringInfo(&sql);
			appendStringInfo(&sql, "UPDATE %s.%s AS t ", pyr_local_schema(), written[i][0]);
			appendStringInfo(&sql, steps[step], written[i][1]);
			if (SPI_execute_with_args(sql.data, 5, types, values, NULL, false, 0) != SPI_OK_UPDATE)
				elog(ERROR, "could not write %s", written[i][0]);
		}
	}
}

/*
 * A statement that the master passed on has been carried out since the names were
 * noted.  Tables that it has given other names are the same to us: they have the log
 * trigger that they had.  Needs SPI.
 */
void
pyr_tables_follow_names(PyrTableNames *names)
{
	MemoryContext caller = CurrentMemoryContext;
	bool		any = false;

	for (int i = 0; i < names->n; i++)
	{
		Named	   *named = &names->named[i];
		PyrTableName now;
		MemoryContext oldcontext;
		Swap	   *swap;

		if (!name_of(named->relid, &now) || is_same_name(&now, &named->name))
			continue;
		oldcontext = MemoryContextSwitchTo(context);
		swap = palloc(sizeof(Swap));
		*swap = (Swap) {named->name, now};
		swaps = lappend(swaps, swap);
		MemoryContextSwitchTo(oldcontext);
		swap_contents(swap);
		store_swap(swap);
		any = true;

		/* what had the other name has this one for now */
		for (int j = i + 1; j < names->n; j++)
		{
			if (is_same_name(&names->named[j].name, &now))
				names->named[j].name = swap->a;
		}
	}
	if (any)
		pyr_policy_load();
	MemoryContextSwitchTo(caller);	/* SPI leaves its own current */
}

/*
 * Asks the master for the tables' triggers.
 */
const char *
pyr_tables_triggers_sql(const char *schema)
{
	return psprintf("SELECT schemaname::text, tablename::text, trigger::text, filter::text FROM %s.py_log_tables",
					schema);
}

/*
 * Asks the master for the columns that a table has there now.
 */
const char *
pyr_tables_columns_sql(const char *schema, const char *tablename)
{
	return psprintf("SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a"
					"  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid"
					"  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
					" WHERE n.nspname = %s AND c.relname = %s"
					"   AND a.attnum > 0 AND NOT a.attisdropped",
					quote_literal_cstr(schema), quote_literal_cstr(tablename));
}

/*
 * Takes them in.
 */
void
pyr_tables_take_columns(const char *schema, const char *tablename, List *rows)
{
	PyrTable   *table = get_table(schema, tablename);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	ListCell   *cell;

	table->is_described = true;
	table->columns_there = palloc((list_length(rows) + 1) * sizeof(char *));
	table->ncolumns_there = 0;
	foreach(cell, rows)
		table->columns_there[table->ncolumns_there++] = pstrdup(((char **) lfirst(cell))[0]);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * A new connection: tables that have another trigger by now may have been changed
 * while they had none, so changes since then cannot be applied to what is here.
 * (The rest of the list is of use only with a window.)  In a transaction of its
 * own.
 */
void
pyr_tables_take_triggers(List *rows)
{
	ListCell   *cell;

	is_list_wanted = true;
	if (!copy_data)
		return;
	pyr_local_begin_transaction();
	foreach(cell, rows)
	{
		char	  **row = lfirst(cell);
		Oid			trigger = row[2] ? (Oid) strtoul(row[2], NULL, 10) : InvalidOid;
		int32		filter;
		PyrTable   *table;

		if (row[0] == NULL || row[1] == NULL || row[3] == NULL ||
			!OidIsValid(trigger))
			continue;
		filter = (int32) strtol(row[3], NULL, 10);
		table = get_table(row[0], row[1]);
		if (table->state == PYR_TABLE_UNKNOWN ||
			!OidIsValid(table->trigger) ||
			(table->trigger == trigger && table->filter == filter))
			continue;
		begin_table(table, trigger, filter,
					table->is_resync || table->state != PYR_TABLE_WAITING);
		pyr_table_store(table);
	}
	pyr_local_commit_transaction();
}

/*
 * What is known of tables means nothing without a position.  Within a
 * transaction, before they are loaded.
 */
void
pyr_tables_forget_all(const char *replica)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(replica)};

	if (SPI_execute_with_args(psprintf("DELETE FROM %s.pyreplica_table WHERE replica = $1",
									   pyr_local_schema()),
							  1, types, values, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not write pyreplica_table");
}

/*
 * Takes in what users ask for: tables to be copied anew.  In a transaction of its
 * own.
 */
void
pyr_tables_take_requests(void)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	SPITupleTable *found;
	uint64		nfound;

	pyr_local_begin_transaction();
	values[0] = CStringGetTextDatum(replica_name);
	if (SPI_execute_with_args(psprintf("UPDATE %s.pyreplica_table SET wants_resync = false"
									   " WHERE replica = $1 AND wants_resync"
									   " RETURNING schemaname, tablename",
									   pyr_local_schema()),
							  1, types, values, NULL, false, 0) != SPI_OK_UPDATE_RETURNING)
		elog(ERROR, "could not read pyreplica_table");
	found = SPI_tuptable;
	nfound = SPI_processed;
	for (uint64 i = 0; i < nfound; i++)
	{
		PyrTable   *table = get_table(SPI_getvalue(found->vals[i], found->tupdesc, 1),
									  SPI_getvalue(found->vals[i], found->tupdesc, 2));

		if (table->state == PYR_TABLE_UNKNOWN)
			continue;
		pyr_table_begin_anew(table);
	}
	pyr_local_commit_transaction();
}

/*
 * What is known of the table that changes of this shape are about.
 */
PyrTable *
pyr_tables_of_shape(PyrShape *shape)
{
	PyrTable   *table = shape->followed;

	if (table == NULL)
		shape->followed = table = get_table(shape->schema, shape->table);
	if (table->state == PYR_TABLE_UNKNOWN)
	{
		is_list_wanted = true;
		if (!copy_data)
			pyr_table_set_state(table, PYR_TABLE_READY);
	}
	return table;
}

/*
 * Asks the master for its list.
 */
const char *
pyr_tables_list_sql(const char *schema)
{
	return psprintf("SELECT schemaname, tablename, trigger, expected, filter FROM %s.py_log_tables",
					schema);
}

static void
forget_table(PyrTable *table)
{
	Oid			types[3] = {TEXTOID, TEXTOID, TEXTOID};
	Datum		values[3] = {
		CStringGetTextDatum(replica_name),
		CStringGetTextDatum(NameStr(table->name.schema)),
		CStringGetTextDatum(NameStr(table->name.table))
	};

	pyr_table_set_state(table, PYR_TABLE_UNKNOWN);
	if (SPI_execute_with_args(psprintf("DELETE FROM %s.pyreplica_table"
									   " WHERE replica = $1 AND schemaname = $2 AND tablename = $3",
									   pyr_local_schema()),
							  3, types, values, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not write pyreplica_table");
}

/*
 * Whether a table had this log trigger under another name.
 */
static bool
is_trigger_known(Oid trigger)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;
	bool		is_known = false;

	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		if (table->state != PYR_TABLE_UNKNOWN && table->trigger == trigger)
			is_known = true;
	}
	return is_known;
}

/*
 * Takes in the master's list, which is true where the window ends that the
 * current transaction applies.
 */
void
pyr_tables_take_list(List *rows)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;
	ListCell   *cell;

	is_list_wanted = false;
	listed_at = GetCurrentTimestamp();

	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
		table->is_listed = false;

	foreach(cell, rows)
	{
		char	  **row = lfirst(cell);
		Oid			trigger;
		int32		filter;

		if (row[0] == NULL || row[1] == NULL || row[2] == NULL ||
			row[3] == NULL || row[4] == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("could not read the master's list of tables")));
		trigger = (Oid) strtoul(row[2], NULL, 10);
		filter = (int32) strtol(row[4], NULL, 10);
		table = get_table(row[0], row[1]);
		table->is_listed = true;
		if (table->state != PYR_TABLE_UNKNOWN && table->trigger == trigger &&
			table->filter == filter)
			continue;
		table->rows_expected = strtoll(row[3], NULL, 10);
		if (table->state == PYR_TABLE_UNKNOWN)
			begin_table(table, trigger, filter, is_trigger_known(trigger));
		else if (!OidIsValid(table->trigger))
			begin_table(table, trigger, filter, false);
		else
			begin_table(table, trigger, filter,
						table->is_resync || table->state != PYR_TABLE_WAITING);
		pyr_table_store(table);
	}

	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		if (!table->is_listed && table->state != PYR_TABLE_UNKNOWN)
			forget_table(table);
	}
}

/*
 * The list should be read again.
 */
void
pyr_tables_want_list(void)
{
	is_list_wanted = true;
}

/*
 * So it should if that was some time ago.
 */
void
pyr_tables_refresh_list(void)
{
	if (TimestampDifferenceExceeds(listed_at, GetCurrentTimestamp(),
								   LIST_INTERVAL_MS))
		is_list_wanted = true;
}

bool
pyr_tables_list_is_due(void)
{
	return is_list_wanted;
}

/*
 * The table to go on copying with, or to begin with, beside those; NULL: there is
 * none now.
 */
PyrTable *
pyr_tables_next(List *except)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;
	PyrTable   *next = NULL;
	TimestampTz now = GetCurrentTimestamp();

	if (nunfinished == 0)
		return NULL;
	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		if (!is_unfinished(table) || table->is_missing)
			continue;
		if (table->retry_at > now || list_member_ptr(except, table))
			continue;

		/* what was begun first, then small ones */
		if (next == NULL || table->state > next->state ||
			(table->state == next->state &&
			 table->rows_expected < next->rows_expected))
			next = table;
	}
	return next;
}

/*
 * What is known of a table of that name; NULL: nothing.
 */
static PyrTable *
find_table(const char *schema, const char *tablename)
{
	PyrTableName name = pyr_table_name(schema, tablename);

	return hash_search(tables, &name, HASH_FIND, NULL);
}

bool
pyr_tables_is_followed(const char *schema, const char *tablename)
{
	PyrTable   *table = find_table(schema, tablename);

	return table != NULL && table->state != PYR_TABLE_UNKNOWN;
}

/*
 * Whether rows of the slave's table of that name are still to come.
 */
bool
pyr_tables_is_unfinished(const char *schema, const char *tablename)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;
	bool		is_one = false;

	if (nunfinished == 0)
		return false;
	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		if (is_unfinished(table) && is_at(table, schema, tablename))
			is_one = true;
	}
	return is_one;
}

/*
 * Grows whenever an unfinished table has become something else.
 */
uint64
pyr_tables_nfinished(void)
{
	return nfinished;
}

/*
 * The tables of which nothing has been copied yet.
 */
List *
pyr_tables_waiting(void)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;
	List	   *waiting = NIL;

	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		if (table->state == PYR_TABLE_WAITING)
			waiting = lappend(waiting, table);
	}
	return waiting;
}

/*
 * The tables that are ready, or those of them that have that name here.
 */
List *
pyr_tables_ready(const char *schema, const char *tablename)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;
	List	   *ready = NIL;

	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		if (table->state != PYR_TABLE_READY)
			continue;
		if (tablename[0] == '\0' || is_at(table, schema, tablename))
			ready = lappend(ready, table);
	}
	return ready;
}

/*
 * When the table is to be verified, if each is that often.  One that has just been
 * copied has time.
 */
static TimestampTz
verify_due_at(PyrTable *table, int64 interval_ms)
{
	return TimestampTzPlusMilliseconds(Max(table->verified_at, table->finished_at),
									   interval_ms);
}

/*
 * The tables that are ready, and to be verified now.
 */
List *
pyr_tables_to_verify(int64 interval_ms)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;
	List	   *due = NIL;
	TimestampTz now = GetCurrentTimestamp();

	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		if (table->state == PYR_TABLE_READY &&
			verify_due_at(table, interval_ms) <= now)
			due = lappend(due, table);
	}
	return due;
}

/*
 * In how many ms there will be one; -1: nobody can tell.
 */
long
pyr_tables_verify_due_ms(int64 interval_ms)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;
	TimestampTz now = GetCurrentTimestamp();
	long		due_ms = -1;

	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		long		left_ms;

		if (table->state != PYR_TABLE_READY)
			continue;
		left_ms = TimestampDifferenceMilliseconds(now, verify_due_at(table, interval_ms));
		if (due_ms < 0 || left_ms < due_ms)
			due_ms = left_ms;
	}
	return due_ms;
}

/*
 * In how many ms a table is to be tried again; -1: none is.
 */
long
pyr_tables_due_ms(void)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;
	TimestampTz now = GetCurrentTimestamp();
	long		due_ms = -1;

	if (nunfinished == 0)
		return due_ms;
	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
	{
		long		left_ms = TimestampDifferenceMilliseconds(now, table->retry_at);

		if (!is_unfinished(table) || table->is_missing)
			continue;
		if (due_ms < 0 || left_ms < due_ms)
			due_ms = left_ms;
	}
	return due_ms;
}

/*
 * What failed is to be tried again now, say because of new settings.
 */
void
pyr_tables_retry(void)
{
	HASH_SEQ_STATUS status;
	PyrTable   *table;

	if (nunfinished == 0)
		return;
	hash_seq_init(&status, tables);
	while ((table = hash_seq_search(&status)) != NULL)
		table->retry_at = table->retry_ms = 0;
}

static Datum
bookmark_datum(PyrTable *table)
{
	Datum	   *keys = palloc(table->nbookmark * sizeof(Datum));

	for (int i = 0; i < table->nbookmark; i++)
		keys[i] = CStringGetTextDatum(table->bookmark[i]);
	return PointerGetDatum(construct_array(keys, table->nbookmark, TEXTOID, -1,
										   false, TYPALIGN_INT));
}

/*
 * Writes what is known of the table, within the current transaction.
 */
void
pyr_table_store(PyrTable *table)
{
	Oid			types[15] = {
		TEXTOID, TEXTOID, TEXTOID, OIDOID, TEXTOID, TEXTARRAYOID, BOOLOID,
		INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TIMESTAMPTZOID,
		INT4OID, TEXTOID
	};
	Datum		values[15];
	char		nulls[16] = "               ";

	values[0] = CStringGetTextDatum(replica_name);
	values[1] = CStringGetTextDatum(NameStr(table->name.schema));
	values[2] = CStringGetTextDatum(NameStr(table->name.table));
	values[3] = ObjectIdGetDatum(table->trigger);
	values[4] = CStringGetTextDatum(state_words[table->state]);
	if (table->nbookmark > 0)
		values[5] = bookmark_datum(table);
	else
		nulls[5] = 'n';
	values[6] = BoolGetDatum(table->is_resync);
	values[7] = Int64GetDatum(table->rows_copied);
	values[8] = Int64GetDatum(table->rows_expected);
	values[9] = TimestampTzGetDatum(table->started_at);
	nulls[9] = table->started_at ? ' ' : 'n';
	values[10] = TimestampTzGetDatum(table->finished_at);
	nulls[10] = table->finished_at ? ' ' : 'n';
	if (table->error != NULL)
		values[11] = CStringGetTextDatum(table->error);
	values[12] = TimestampTzGetDatum(table->error_at);
	nulls[11] = nulls[12] = table->error != NULL ? ' ' : 'n';
	values[13] = Int32GetDatum(table->filter);
	if (table->key != NULL)
		values[14] = CStringGetTextDatum(table->key);
	else
		nulls[14] = 'n';

	if (SPI_execute_with_args(psprintf("INSERT INTO %s.pyreplica_table AS t (replica, schemaname, tablename,"
									   "  trigger, state, bookmark, is_resync, rows_copied, rows_expected,"
									   "  started_at, finished_at, last_error, last_error_at, filter, key)"
									   " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
									   " ON CONFLICT (replica, schemaname, tablename) DO UPDATE SET"
									   "  trigger = excluded.trigger, state = excluded.state,"
									   "  bookmark = excluded.bookmark, is_resync = excluded.is_resync,"
									   "  rows_copied = excluded.rows_copied,"
									   "  rows_expected = excluded.rows_expected,"
									   "  started_at = excluded.started_at,"
									   "  finished_at = excluded.finished_at,"
									   "  last_error = excluded.last_error,"
									   "  last_error_at = excluded.last_error_at,"
									   "  filter = excluded.filter, key = excluded.key",
									   pyr_local_schema()),
							  15, types, values, nulls, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write pyreplica_table");
}

/*
 * What was wrong with the table is so no more.
 */
void
pyr_table_clear_error(PyrTable *table)
{
	replace_string(&table->error, NULL);
	table->retry_at = table->retry_ms = 0;
}

/*
 * All of the table has been compared, and so many rows were different.
 */
void
pyr_table_verified(PyrTable *table, int64 differences)
{
	Oid			types[4] = {TEXTOID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[4] = {
		CStringGetTextDatum(replica_name),
		CStringGetTextDatum(NameStr(table->name.schema)),
		CStringGetTextDatum(NameStr(table->name.table)),
		Int64GetDatum(differences)
	};

	table->verified_at = GetCurrentTimestamp();
	if (SPI_execute_with_args(psprintf("UPDATE %s.pyreplica_table"
									   " SET verified_at = pg_catalog.now(), differences = $4"
									   " WHERE replica = $1 AND schemaname = $2 AND tablename = $3",
									   pyr_local_schema()),
							  4, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write pyreplica_table");
}

/*
 * The table cannot be copied, for now: says so, and writes it down in the current
 * transaction.  The others are not concerned.
 */
void
pyr_table_fail(PyrTable *table, ErrorData *error)
{
	char	   *what = error->detail != NULL
		? psprintf("%s (%s)", error->message, error->detail)
		: pstrdup(error->message);

	if (error->hint != NULL)
		what = psprintf("%s HINT: %s", what, error->hint);
	table->error_at = GetCurrentTimestamp();
	table->retry_ms = table->retry_ms == 0 ? RETRY_FIRST_MS
		: Min(table->retry_ms * 2, retry_interval_max_ms);
	table->retry_at = TimestampTzPlusMilliseconds(table->error_at,
												  table->retry_ms);
	if (table->error == NULL || strcmp(table->error, what) != 0)
	{
		replace_string(&table->error, what);
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("pyreplica %s: could not copy table \"%s.%s\": %s",
						replica_name, NameStr(table->name.schema),
						NameStr(table->name.table), error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0,
				 error->hint ? errhint("%s", error->hint) : 0,
				 errhidestmt(true), errhidecontext(true)));
	}
	pyr_table_store(table);
}
