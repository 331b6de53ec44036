/*-------------------------------------------------------------------------
 *
 * position.c
 *	  Where a replica stands: kept in pyreplica_position, in the slave's own
 *	  database, and written only in the transaction that applied the changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "slave/local.h"
#include "slave/position.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

static SPIPlanPtr store_plan = NULL;

static void
set_string(char **place, const char *value)
{
	char	   *old = *place;

	*place = value ? MemoryContextStrdup(TopMemoryContext, value) : NULL;
	if (old != NULL)
		pfree(old);
}

/*
 * Reads the replica's position.  Needs SPI.
 */
void
pyr_position_load(const char *replica, PyrPosition *position)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {CStringGetTextDatum(replica)};
	TupleDesc	desc;
	HeapTuple	row;
	char	   *wal;
	uint32		hi;
	uint32		lo;

	memset(position, 0, sizeof(PyrPosition));

	if (SPI_execute_with_args(psprintf("SELECT system_identifier, \"position\"::text, wal::text, confirmed::text"
									   "  FROM %s.pyreplica_position WHERE replica = $1",
									   pyr_local_schema()),
							  1, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read pyreplica_position");
	if (SPI_processed > 0)
	{
		row = SPI_tuptable->vals[0];
		desc = SPI_tuptable->tupdesc;
		set_string(&position->system_identifier, SPI_getvalue(row, desc, 1));
		set_string(&position->snapshot, SPI_getvalue(row, desc, 2));
		set_string(&position->stored, position->snapshot);
		wal = SPI_getvalue(row, desc, 3);
		if (sscanf(wal, "%X/%X", &hi, &lo) == 2)
			position->wal = position->stored_wal = ((uint64) hi << 32) | lo;
		set_string(&position->confirmed, SPI_getvalue(row, desc, 4));
	}
}

/*
 * Moves the position in memory, where the next window begins.  It is stored
 * with the changes that lead to it; if there were none, the one stored before
 * is as good.
 */
void
pyr_position_advance(PyrPosition *position, const char *snapshot,
					 XLogRecPtr wal)
{
	set_string(&position->snapshot, snapshot);
	position->wal = wal;
}

/*
 * Goes back to the stored position, when a connection is made anew: that is
 * what the master checks.  One that was only in memory may be ahead of a
 * master that was restored from a backup.
 */
void
pyr_position_rewind(PyrPosition *position)
{
	if (position->stored != NULL)
		pyr_position_advance(position, position->stored,
							 position->stored_wal);
}

/*
 * The master has committed that it knows of the stored position.
 */
void
pyr_position_confirmed(PyrPosition *position)
{
	set_string(&position->confirmed, position->stored);
}

/*
 * Keeps in mind, across restarts, what the master has confirmed: one that
 * remembers less was restored from a backup.  In a transaction of its own.
 */
void
pyr_position_store_confirmed(const char *replica, PyrPosition *position)
{
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2];

	pyr_local_begin_transaction();
	values[0] = CStringGetTextDatum(replica);
	values[1] = CStringGetTextDatum(position->confirmed);
	if (SPI_execute_with_args(psprintf("UPDATE %s.pyreplica_position"
									   "   SET confirmed = $2::pg_catalog.pg_snapshot"
									   " WHERE replica OPERATOR(pg_catalog.=) $1",
									   pyr_local_schema()),
							  2, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write pyreplica_position");
	pyr_local_commit_transaction();
}

/*
 * Writes the position, within the transaction that applied what leads to it.
 * Needs SPI.
 */
void
pyr_position_store(const char *replica, PyrPosition *position)
{
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};
	char		wal[32];

	if (store_plan == NULL)
	{
		Oid			types[5] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};

		store_plan = SPI_prepare(psprintf("INSERT INTO %s.pyreplica_position AS p"
										  " (replica, system_identifier, \"position\", wal, confirmed, changed_at)"
										  " VALUES ($1, $2, $3::pg_catalog.pg_snapshot, $4::pg_catalog.pg_lsn,"
										  "         $5::pg_catalog.pg_snapshot, pg_catalog.now())"
										  " ON CONFLICT (replica) DO UPDATE"
										  " SET system_identifier = excluded.system_identifier,"
										  "     \"position\" = excluded.\"position\", wal = excluded.wal,"
										  "     confirmed = excluded.confirmed, changed_at = excluded.changed_at",
										  pyr_local_schema()),
								 5, types);
		if (store_plan == NULL)
			elog(ERROR, "could not prepare to write pyreplica_position: %s",
				 SPI_result_code_string(SPI_result));
		SPI_keepplan(store_plan);
	}

	snprintf(wal, sizeof(wal), "%X/%X", LSN_FORMAT_ARGS(position->wal));
	values[0] = CStringGetTextDatum(replica);
	values[1] = CStringGetTextDatum(position->system_identifier);
	values[2] = CStringGetTextDatum(position->snapshot);
	values[3] = CStringGetTextDatum(wal);
	if (position->confirmed != NULL)
		values[4] = CStringGetTextDatum(position->confirmed);
	else
		nulls[4] = 'n';
	if (SPI_execute_plan(store_plan, values, nulls, false, 0) != SPI_OK_INSERT ||
		SPI_processed != 1)
		elog(ERROR, "could not write pyreplica_position");
	set_string(&position->stored, position->snapshot);
	position->stored_wal = position->wal;
}
