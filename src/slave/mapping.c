/*-------------------------------------------------------------------------
 *
 * mapping.c
 *	  Tables of the master that have another name on the slave, as laid down by
 *	  pyreplica_map_table() and pyreplica_map_schema().
 *
 * What is laid down is read once, in the transaction of the first window, and
 * again in that of the first one after it has changed.  So within a window a
 * table has one place only, and a mapping that is changed in one transaction with
 * the table's own name is never seen without it.  A trigger on pyreplica_mapping
 * tells of changes by invalidating the relation in all sessions, which is seen
 * when a transaction begins, and comes with the commit; that is what catalogs do
 * that have no cache of their own.
 *
 * Of several rows that are about a table, one that names the table counts before
 * one that names its schema, then one for this replica before one for all.  (The
 * view pyreplica_place says the same in SQL.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "slave/local.h"
#include "slave/mapping.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(pyreplica_mapping_changed);

typedef struct Mapping
{
	char	   *schema;
	char	   *table;			/* NULL: every one of the schema */
	char	   *local_schema;
	char	   *local_table;	/* NULL: the same as on the master */
} Mapping;

static MemoryContext context = NULL;
static List *mappings = NIL;	/* those that count first come first */
static Oid	relid = InvalidOid; /* of pyreplica_mapping */
static bool is_current = false;

static void
relcache_callback(Datum arg pg_attribute_unused(), Oid changed)
{
	if (changed == InvalidOid || changed == relid)
		is_current = false;
}

static char *
take(HeapTuple row, TupleDesc desc, int column)
{
	char	   *value = SPI_getvalue(row, desc, column);

	return value ? MemoryContextStrdup(context, value) : NULL;
}

static void
load(void)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(pyr_local_replica())};
	MemoryContext oldcontext = CurrentMemoryContext;

	if (SPI_execute_with_args(psprintf("SELECT schemaname, tablename, local_schema, local_table"
									   "  FROM %s.pyreplica_mapping"
									   " WHERE replica IS NULL OR replica = $1"
									   " ORDER BY tablename IS NULL, replica IS NULL",
									   pyr_local_schema()),
							  1, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read pyreplica_mapping");
	MemoryContextReset(context);
	mappings = NIL;
	MemoryContextSwitchTo(context);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Mapping    *mapping = palloc(sizeof(Mapping));

		mapping->schema = take(row, desc, 1);
		mapping->table = take(row, desc, 2);
		mapping->local_schema = take(row, desc, 3);
		mapping->local_table = take(row, desc, 4);
		mappings = lappend(mappings, mapping);
	}
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Reads what is laid down, if that may have changed; whether it has been read.
 * Needs SPI.
 */
bool
pyr_mapping_refresh(void)
{
	if (is_current)
		return false;
	if (context == NULL)
	{
		context = AllocSetContextCreate(TopMemoryContext, "pyreplica mapping",
										ALLOCSET_SMALL_SIZES);
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	}
	relid = pyr_local_relation("pyreplica_mapping");

	/* what changes from here on is not to be missed */
	is_current = true;
	load();
	return true;
}

/*
 * Where a table or sequence of the master is here.
 */
PyrPlace
pyr_mapping_of(const char *schema, const char *table)
{
	ListCell   *cell;

	foreach(cell, mappings)
	{
		Mapping    *mapping = lfirst(cell);

		if (strcmp(mapping->schema, schema) == 0 &&
			(mapping->table == NULL || strcmp(mapping->table, table) == 0))
		{
			PyrPlace	place = {
				.schema = mapping->local_schema,
				.table = mapping->local_table ? mapping->local_table : table
			};

			place.is_mapped = strcmp(place.schema, schema) != 0 ||
				strcmp(place.table, table) != 0;
			return place;
		}
	}
	return (PyrPlace) {.schema = schema, .table = table};
}

/*
 * Which is which, as a sentence; NULL: they have the same name.
 */
const char *
pyr_mapping_words(const char *schema, const char *table)
{
	PyrPlace	here = pyr_mapping_of(schema, table);

	if (!here.is_mapped)
		return NULL;
	return psprintf("The master's table \"%s.%s\" is \"%s.%s\" here, as pyreplica_mapping says.",
					schema, table, here.schema, here.table);
}

/*
 * pyreplica_mapping_changed() returns trigger: tells all workers of this database
 * when the transaction has committed.
 */
Datum
pyreplica_mapping_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("pyreplica_mapping_changed() must be called as a trigger")));
	CacheInvalidateRelcache(trigger->tg_relation);
	return PointerGetDatum(NULL);
}
