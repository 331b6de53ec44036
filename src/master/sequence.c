/*-------------------------------------------------------------------------
 *
 * sequence.c
 *	  Where a sequence is, read without SQL: by its OID, so that it is that very
 *	  sequence whatever bears its name by now.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/pg_class.h"
#include "commands/sequence.h"
#include "fmgr.h"
#include "funcapi.h"
#include "master/sequence.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/rel.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(py_log_sequence_value);

void
pyr_sequence_read(Relation sequence, int64 *last_value, bool *is_called)
{
	Buffer		buffer = ReadBuffer(sequence, 0);
	Page		page;
	HeapTupleData tuple;
	Form_pg_sequence_data data;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	tuple.t_data = (HeapTupleHeader)
		PageGetItem(page, PageGetItemId(page, FirstOffsetNumber));
	data = (Form_pg_sequence_data) GETSTRUCT(&tuple);
	*last_value = data->last_value;
	*is_called = data->is_called;
	UnlockReleaseBuffer(buffer);
}

/*
 * Opens the sequence; NULL: somebody has locked it, or there is no such one.
 */
static Relation
try_open(Oid oid)
{
	HeapTuple	tuple;
	bool		is_sequence;

	if (!ConditionalLockRelationOid(oid, AccessShareLock))
		return NULL;
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(oid));
	is_sequence = HeapTupleIsValid(tuple) &&
		((Form_pg_class) GETSTRUCT(tuple))->relkind == RELKIND_SEQUENCE &&
		((Form_pg_class) GETSTRUCT(tuple))->relpersistence != RELPERSISTENCE_TEMP;
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	if (is_sequence)
		return relation_open(oid, NoLock);
	UnlockRelationOid(oid, AccessShareLock);
	return NULL;
}

/*
 * py_log_sequence_value(sequence oid, OUT last_value bigint, OUT is_called
 * boolean): both null if they cannot be read now.
 */
Datum
py_log_sequence_value(PG_FUNCTION_ARGS)
{
	Relation	sequence = try_open(PG_GETARG_OID(0));
	TupleDesc	desc;
	Datum		values[2] = {0};
	bool		isnull[2] = {true, true};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (sequence != NULL)
	{
		int64		last_value;
		bool		is_called;

		pyr_sequence_read(sequence, &last_value, &is_called);
		relation_close(sequence, AccessShareLock);
		values[0] = Int64GetDatum(last_value);
		values[1] = BoolGetDatum(is_called);
		isnull[0] = isnull[1] = false;
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, isnull)));
}
