/*-------------------------------------------------------------------------
 *
 * position.c
 *	  Where a replica stands: kept in pyreplica_position, in the slave's own
 *	  database, and written only in the transaction that applied the changes.
 *
 * It goes with every window, however small, so it is written as a tuple; SQL
 * would take longer than applying a row does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "common/compat.h"
#include "executor/spi.h"
#include "slave/local.h"
#include "slave/position.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/* the columns of pyreplica_position, in order */
enum
{
	COL_REPLICA,
	COL_SYSTEM_IDENTIFIER,
	COL_POSITION,
	COL_WAL,
	COL_CONFIRMED,
	COL_CHANGED_AT,
	COL_BEGAN_AT,
	NCOLS
};

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
	bool		isnull;

	memset(position, 0, sizeof(PyrPosition));

	if (SPI_execute_with_args(psprintf("SELECT system_identifier, \"position\"::text, wal::text, confirmed::text, began_at"
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
		position->began_at = DatumGetTimestampTz(SPI_getbinval(row, desc, 5,
															   &isnull));
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

static Datum
snapshot_datum(const char *snapshot)
{
	return DirectFunctionCall1(pg_snapshot_in, CStringGetDatum(snapshot));
}

/*
 * Changes those columns of the replica's row.  If there is none, makes one, or
 * not if only some of the columns are given.
 */
static void
write_row(Datum *values, bool *isnull, bool *replace)
{
	Relation	table;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	old;

	table = table_open(pyr_local_relation("pyreplica_position"),
					   RowExclusiveLock);
	ScanKeyEntryInitialize(&key, 0, COL_REPLICA + 1, BTEqualStrategyNumber,
						   InvalidOid,
						   TupleDescAttr(RelationGetDescr(table),
										 COL_REPLICA)->attcollation,
						   F_TEXTEQ, values[COL_REPLICA]);
	scan = systable_beginscan(table,
							  pyr_local_relation("pyreplica_position_pkey"),
							  true, NULL, 1, &key);
	old = systable_getnext(scan);
	if (old != NULL)
		CatalogTupleUpdate(table, &old->t_self,
						   heap_modify_tuple(old, RelationGetDescr(table),
											 values, isnull, replace));
	else if (replace[COL_REPLICA])
		CatalogTupleInsert(table, heap_form_tuple(RelationGetDescr(table),
												  values, isnull));
	systable_endscan(scan);
	table_close(table, NoLock);
}

/*
 * Keeps in mind, across restarts, what the master has confirmed: one that
 * remembers less was restored from a backup.  In a transaction of its own.
 */
void
pyr_position_store_confirmed(const char *replica, PyrPosition *position)
{
	Datum		values[NCOLS] = {0};
	bool		isnull[NCOLS] = {false};
	bool		replace[NCOLS] = {false};

	pyr_local_begin_transaction();
	values[COL_REPLICA] = CStringGetTextDatum(replica);
	values[COL_CONFIRMED] = snapshot_datum(position->confirmed);
	replace[COL_CONFIRMED] = true;
	write_row(values, isnull, replace);
	pyr_local_commit_transaction();
}

/*
 * Writes the position, within the transaction that applied what leads to it.
 */
void
pyr_position_store(const char *replica, PyrPosition *position)
{
	Datum		values[NCOLS];
	bool		isnull[NCOLS] = {false};
	bool		replace[NCOLS];

	memset(replace, true, sizeof(replace));
	replace[COL_BEGAN_AT] = false;	/* only in a new row */
	values[COL_REPLICA] = CStringGetTextDatum(replica);
	values[COL_SYSTEM_IDENTIFIER] = CStringGetTextDatum(position->system_identifier);
	values[COL_POSITION] = snapshot_datum(position->snapshot);
	values[COL_WAL] = LSNGetDatum(position->wal);
	isnull[COL_CONFIRMED] = position->confirmed == NULL;
	if (position->confirmed != NULL)
		values[COL_CONFIRMED] = snapshot_datum(position->confirmed);
	values[COL_CHANGED_AT] = values[COL_BEGAN_AT] =
		TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	write_row(values, isnull, replace);

	set_string(&position->stored, position->snapshot);
	position->stored_wal = position->wal;
}

/*
 * A slave that was restored from a dump of the master starts where the dump
 * ended, if the dump tells (see replica_dump in the SQL script).  Within a
 * transaction.
 */
void
pyr_position_load_dump(const char *replica, PyrPosition *position)
{
	const char *schema = pyr_local_schema();
	char	   *here;
	char	   *wal;
	char	   *snapshot;

	/* one letter for each place; a master's own table has more */
	if (SPI_execute(psprintf("SELECT pg_catalog.string_agg(letter, '' ORDER BY place)"
							 "  FROM %s.replica_dump"
							 " HAVING pg_catalog.count(*) = pg_catalog.max(place)",
							 schema), true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read replica_dump");
	if (SPI_processed == 0)
		return;
	here = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (strcmp(here, "!") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the dump that this database was restored from does not tell where it ended"),
				 errdetail("It was taken from a standby server, or with too many transactions in progress."),
				 errhint("Restore a dump of the master itself.")));
	wal = strchr(here, ' ');
	snapshot = wal ? strchr(wal + 1, ' ') : NULL;
	if (snapshot == NULL)
		elog(ERROR, "replica_dump cannot be read: %s", here);
	*wal++ = *snapshot++ = '\0';

	set_string(&position->system_identifier, here);
	pyr_position_advance(position, snapshot, strtou64(wal, NULL, 10));
	pyr_position_store(replica, position);
	if (SPI_execute(psprintf("DELETE FROM %s.replica_dump", schema),
					false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not empty replica_dump");
	ereport(LOG,
			(errmsg("pyreplica %s: starting where the dump ended, at %s",
					replica, snapshot),
			 errhidestmt(true)));
}
