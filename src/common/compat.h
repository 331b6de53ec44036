/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  The one file that asks which server version it is compiled for.
 *
 * The code is written for the newest server; what is here teaches it the
 * older ones, back to 13.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_COMPAT_H
#define PYR_COMPAT_H

#if PG_VERSION_NUM < 130000
#error "pyreplica needs PostgreSQL 13 or newer on the server it is compiled for"
#endif

#include "access/genam.h"
#include "access/htup.h"
#include "storage/buffile.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/memutils.h"

/* 14 added indexUnchanged */
#if PG_VERSION_NUM >= 140000
#define pyr_index_insert(index, values, isnull, tid, heap, info) \
	index_insert(index, values, isnull, tid, heap, UNIQUE_CHECK_NO, false, info)
#else
#define pyr_index_insert(index, values, isnull, tid, heap, info) \
	index_insert(index, values, isnull, tid, heap, UNIQUE_CHECK_NO, info)
#endif

/* 18 added a place for statistics; ours have none, and order by nothing */
#if PG_VERSION_NUM >= 180000
#define pyr_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define pyr_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* 15 settled on strtou64 */
#if PG_VERSION_NUM < 150000
#define strtou64(str, endptr, base) pg_strtouint64(str, endptr, base)
#endif

/*
 * A set-returning function that fills a tuplestore: InitMaterializedSRF since
 * 15, by hand before.
 */
#if PG_VERSION_NUM >= 150000
#include "funcapi.h"
#define pyr_init_materialized_srf(fcinfo) InitMaterializedSRF(fcinfo, 0)
#else
#include "funcapi.h"
#include "miscadmin.h"
static inline void
pyr_init_materialized_srf(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext oldcontext;
	TupleDesc	desc;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		(rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));

	oldcontext = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = tuplestore_begin_heap(true, false, work_mem);
	rsinfo->setDesc = desc;
	MemoryContextSwitchTo(oldcontext);
}
#endif

/* shmem_request_hook, and the rule to ask for memory only in it, came in 15 */
#define PYR_HAVE_SHMEM_REQUEST_HOOK (PG_VERSION_NUM >= 150000)

/* the utility hook's parameters: 14 added readOnlyTree */
#if PG_VERSION_NUM >= 140000
#define PYR_UTILITY_PARAMS \
	PlannedStmt *pstmt, const char *queryString, bool readOnlyTree, \
	ProcessUtilityContext context, ParamListInfo params, \
	QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc
#define PYR_UTILITY_ARGS \
	pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc
#else
#define PYR_UTILITY_PARAMS \
	PlannedStmt *pstmt, const char *queryString, \
	ProcessUtilityContext context, ParamListInfo params, \
	QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc
#define PYR_UTILITY_ARGS \
	pstmt, queryString, context, params, queryEnv, dest, qc
#endif

/* memory for values of settings: plain malloc until 16 gave it a context */
#if PG_VERSION_NUM >= 160000
#define pyr_guc_malloc(size) guc_malloc(LOG, size)
#define pyr_guc_free(p) guc_free(p)
#else
#define pyr_guc_malloc(size) malloc(size)
#define pyr_guc_free(p) free(p)
#endif

/* MarkGUCPrefixReserved came in 15; before, what is misspelt stays */
#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix) EmitWarningsOnPlaceholders(prefix)
#endif

/* 16 split BufFileRead: the exact one raises an error on a short read */
#if PG_VERSION_NUM < 160000
static inline void
BufFileReadExact(BufFile *file, void *ptr, size_t size)
{
	size_t		nread = BufFileRead(file, ptr, size);

	if (nread != size)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read from temporary file: read only %zu of %zu bytes",
						nread, size)));
}

#define BufFileWriteConst(file, ptr, size) \
	BufFileWrite(file, unconstify(void *, (const void *) (ptr)), size)
#else
#define BufFileWriteConst(file, ptr, size) BufFileWrite(file, ptr, size)
#endif

/*
 * How many transactions with an id have ended.  Counted since 14; 17 renamed
 * the variable.
 */
#define PYR_COUNTS_COMPLETED (PG_VERSION_NUM >= 140000)
#include "access/transam.h"
static inline uint64
pyr_completed_transactions(void)
{
#if PG_VERSION_NUM >= 170000
	return *(volatile uint64 *) &TransamVariables->xactCompletionCount;
#elif PG_VERSION_NUM >= 140000
	return *(volatile uint64 *) &ShmemVariableCache->xactCompletionCount;
#else
	return 0;
#endif
}

/* 14 moved wait events to a header of their own, and named LSN's halves */
#if PG_VERSION_NUM >= 140000
#include "utils/wait_event.h"
#else
#include "pgstat.h"
#define LSN_FORMAT_ARGS(lsn) \
	(AssertVariableIsOfTypeMacro((lsn), XLogRecPtr), (uint32) ((lsn) >> 32)), \
	((uint32) (lsn))
#endif

/* 14 divided CopyState, and gave COPY FROM its WHERE earlier */
#include "commands/copy.h"
#if PG_VERSION_NUM >= 140000
#define pyr_begin_copy_from(pstate, rel, source, columns, options) \
	BeginCopyFrom(pstate, rel, NULL, NULL, false, source, columns, options)
#else
typedef CopyState CopyFromState;
#define pyr_begin_copy_from(pstate, rel, source, columns, options) \
	BeginCopyFrom(pstate, rel, NULL, false, source, columns, options)
#endif

/*
 * Columns that are not copied should not get their defaults, which may be those
 * of a sequence.  (13 keeps it to itself how not to.)
 */
#if PG_VERSION_NUM >= 140000
#include "commands/copyfrom_internal.h"
#define pyr_copy_without_defaults(state) ((state)->num_defaults = 0)
#else
#define pyr_copy_without_defaults(state) ((void) (state))
#endif

/* 15 gave it block sizes that grow */
#if PG_VERSION_NUM >= 150000
#define pyr_generation_context(parent, name) \
	GenerationContextCreate(parent, name, ALLOCSET_DEFAULT_SIZES)
#else
#define pyr_generation_context(parent, name) \
	GenerationContextCreate(parent, name, ALLOCSET_DEFAULT_MAXSIZE / 32)
#endif

/* 15 added force_flush */
#include "storage/shm_mq.h"
#if PG_VERSION_NUM >= 150000
#define pyr_mq_send(queue, len, data, nowait) \
	shm_mq_send(queue, len, data, nowait, true)
#else
#define pyr_mq_send(queue, len, data, nowait) \
	shm_mq_send(queue, len, data, nowait)
#endif

/* 18 added logLockFailure */
#if PG_VERSION_NUM >= 180000
#define pyr_lock_try(tag, mode) \
	LockAcquireExtended(tag, mode, false, true, false, NULL, false)
#else
#define pyr_lock_try(tag, mode) \
	LockAcquireExtended(tag, mode, false, true, false, NULL)
#endif

/* 16 lets a session share another one's origin; ours does not */
#include "replication/origin.h"
#if PG_VERSION_NUM >= 160000
#define pyr_origin_session_setup(id) replorigin_session_setup(id, 0)
#else
#define pyr_origin_session_setup(id) replorigin_session_setup(id)
#endif

/* 18 gave active origins a limit of their own */
#if PG_VERSION_NUM >= 180000
#define PYR_MAX_ORIGINS max_active_replication_origins
#define PYR_MAX_ORIGINS_NAME "max_active_replication_origins"
#else
#include "replication/slot.h"
#define PYR_MAX_ORIGINS max_replication_slots
#define PYR_MAX_ORIGINS_NAME "max_replication_slots"
#endif

/* 15 brought unique indexes in which null is equal to null */
#if PG_VERSION_NUM >= 150000
#define pyr_index_nulls_equal(form) ((form)->indnullsnotdistinct)
#else
#define pyr_index_nulls_equal(form) (false)
#endif

/*
 * Runs SQL whose rows nobody wants; needs SPI.  13 keeps them until they are freed.
 * What is current before is so after.
 */
#include "executor/spi.h"
#include "tcop/dest.h"
static inline void
pyr_spi_execute(const char *sql)
{
	MemoryContext context = CurrentMemoryContext;
	int			rc;

#if PG_VERSION_NUM >= 140000
	SPIExecuteOptions options = {.dest = None_Receiver};

	rc = SPI_execute_extended(sql, &options);
#else
	rc = SPI_execute(sql, false, 0);
	SPI_freetuptable(SPI_tuptable);
#endif
	MemoryContextSwitchTo(context);
	if (rc < 0)
		elog(ERROR, "could not run \"%s\": %s", sql, SPI_result_code_string(rc));
}

/* 14 made TRUNCATE a kind of access of its own */
#if PG_VERSION_NUM >= 140000
#define PYR_ACCESS_IS_TRUNCATE(access) ((access) == OAT_TRUNCATE)
#else
#define PYR_ACCESS_IS_TRUNCATE(access) (false)
#endif

/* 16 keeps apart what a query may do to the tables that it names */
#include "nodes/parsenodes.h"
#if PG_VERSION_NUM >= 160000
#define PYR_PERMISSIONS_PARAMS \
	List *rangeTable, List *permissions, bool raises
#define PYR_PERMISSIONS_ARGS rangeTable, permissions, raises
typedef RTEPermissionInfo PyrPermission;
#else
#define PYR_PERMISSIONS_PARAMS List *permissions, bool raises
#define PYR_PERMISSIONS_ARGS permissions, raises
typedef RangeTblEntry PyrPermission;
#endif

/* 16 put the checks of rights under one name */
#include "utils/acl.h"
#if PG_VERSION_NUM >= 160000
#include "catalog/pg_namespace.h"
#define pyr_may_use_schema(schema, role) \
	(object_aclcheck(NamespaceRelationId, schema, role, ACL_USAGE) == ACLCHECK_OK)
#else
#define pyr_may_use_schema(schema, role) \
	(pg_namespace_aclcheck(schema, role, ACL_USAGE) == ACLCHECK_OK)
#endif

/* 18 brought generated columns that are not stored */
#ifdef ATTRIBUTE_GENERATED_VIRTUAL
#define pyr_att_is_virtual(att) \
	((att)->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
#else
#define pyr_att_is_virtual(att) (false)
#endif

/* 14 brought multiranges */
#if PG_VERSION_NUM >= 140000
#include "utils/lsyscache.h"
#define pyr_multirange_range(type) get_multirange_range(type)
#else
#define pyr_multirange_range(type) InvalidOid
#endif

/* 14 can stop a conversion at what cannot be converted, and say where */
#define PYR_CAN_CONVERT_PARTLY (PG_VERSION_NUM >= 140000)

#endif							/* PYR_COMPAT_H */
