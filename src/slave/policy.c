/*-------------------------------------------------------------------------
 *
 * policy.c
 *	  Who wins a conflict: pyreplica.conflict_resolution, or what
 *	  pyreplica_set_conflict_resolution() has laid down for a table.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "slave/local.h"
#include "slave/policy.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/* of a table */
typedef struct TablePolicy
{
	char	   *schema;
	char	   *table;
	PyrPolicy	policy;
} TablePolicy;

static MemoryContext context = NULL;
static List *policies = NIL;

static PyrResolution
resolution_named(const char *name)
{
	for (int i = 0; pyr_resolution_options[i].name != NULL; i++)
	{
		if (strcmp(pyr_resolution_options[i].name, name) == 0)
			return pyr_resolution_options[i].val;
	}
	elog(ERROR, "unknown conflict resolution \"%s\"", name);
	return PYR_RESOLVE_ERROR;
}

/*
 * Reads what tables have of their own.  Needs SPI.
 */
void
pyr_policy_load(void)
{
	MemoryContext oldcontext = CurrentMemoryContext;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "pyreplica policies",
										ALLOCSET_SMALL_SIZES);
	MemoryContextReset(context);
	policies = NIL;
	if (SPI_execute(psprintf("SELECT schemaname, tablename, resolution, column_name"
							 "  FROM %s.pyreplica_conflict_resolution",
							 pyr_local_schema()), false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read pyreplica_conflict_resolution");

	MemoryContextSwitchTo(context);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		TablePolicy *policy = palloc(sizeof(TablePolicy));
		char	   *column = SPI_getvalue(row, desc, 4);

		policy->schema = MemoryContextStrdup(context, SPI_getvalue(row, desc, 1));
		policy->table = MemoryContextStrdup(context, SPI_getvalue(row, desc, 2));
		policy->policy.resolution = resolution_named(SPI_getvalue(row, desc, 3));
		policy->policy.column = column ? MemoryContextStrdup(context, column) : NULL;
		policies = lappend(policies, policy);
	}
	MemoryContextSwitchTo(oldcontext);
}

PyrPolicy
pyr_policy_of(const char *schema, const char *table)
{
	ListCell   *cell;

	foreach(cell, policies)
	{
		TablePolicy *policy = lfirst(cell);

		if (strcmp(policy->table, table) == 0 &&
			strcmp(policy->schema, schema) == 0)
			return policy->policy;
	}
	return (PyrPolicy) {.resolution = conflict_resolution};
}

/*
 * Whether a row that somebody else wrote is to be noticed.  Where the slave can
 * win it has to be; else only if asked for: rows get written here for many
 * reasons.
 */
bool
pyr_policy_watches_origin(PyrPolicy policy)
{
	return detect_origin || policy.resolution == PYR_RESOLVE_LOCAL ||
		policy.resolution == PYR_RESOLVE_LAST;
}

/*
 * Whether that is so somewhere.
 */
bool
pyr_policy_watches_origins(void)
{
	ListCell   *cell;

	foreach(cell, policies)
	{
		if (pyr_policy_watches_origin(((TablePolicy *) lfirst(cell))->policy))
			return true;
	}
	return pyr_policy_watches_origin((PyrPolicy) {.resolution = conflict_resolution});
}

/*
 * Whether clocks decide somewhere.
 */
bool
pyr_policy_uses_time(void)
{
	ListCell   *cell;

	foreach(cell, policies)
	{
		if (((TablePolicy *) lfirst(cell))->policy.resolution == PYR_RESOLVE_LAST)
			return true;
	}
	return conflict_resolution == PYR_RESOLVE_LAST;
}
