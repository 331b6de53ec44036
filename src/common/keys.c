/*-------------------------------------------------------------------------
 *
 * keys.c
 *	  What a table's unique indexes and exclusion constraints say of its
 *	  columns.
 *
 * The master asks this of the tables that it logs, the slave of those that
 * it applies to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "catalog/pg_index.h"
#include "common/keys.h"
#include "utils/syscache.h"

/* what is asked of each index; true ends the walk */
typedef bool (*IndexVisitor) (HeapTuple tuple, Form_pg_index index, void *arg);

/*
 * Shows the table's indexes to the visitor; whether it ended the walk.
 */
static bool
visit_indexes(Relation rel, IndexVisitor visit, void *arg)
{
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *cell;
	bool		is_ended = false;

	foreach(cell, indexes)
	{
		HeapTuple	tuple;

		tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", lfirst_oid(cell));
		is_ended = visit(tuple, (Form_pg_index) GETSTRUCT(tuple), arg);
		ReleaseSysCache(tuple);
		if (is_ended)
			break;
	}
	list_free(indexes);
	return is_ended;
}

/* neither partial nor on expressions */
static bool
is_plain(HeapTuple tuple)
{
	return heap_attisnull(tuple, Anum_pg_index_indpred, NULL) &&
		heap_attisnull(tuple, Anum_pg_index_indexprs, NULL);
}

typedef struct UniqueColumns
{
	int			natts;
	Bitmapset  *columns;
} UniqueColumns;

static bool
gather_unique_columns(HeapTuple tuple, Form_pg_index index, void *arg)
{
	UniqueColumns *unique = arg;

	if (!index->indisunique && !index->indisexclusion)
		return false;
	if (!is_plain(tuple))
		unique->columns = bms_add_range(unique->columns, 0, unique->natts - 1);
	else
	{
		for (int i = 0; i < index->indnkeyatts; i++)
			unique->columns = bms_add_member(unique->columns,
											 index->indkey.values[i] - 1);
	}
	return false;
}

/*
 * The columns (from 0) that unique and exclusion constraints and indexes look
 * at; all of them where that is left to an expression.
 */
Bitmapset *
pyr_unique_columns(Relation rel)
{
	UniqueColumns unique = {RelationGetNumberOfAttributes(rel), NULL};

	(void) visit_indexes(rel, gather_unique_columns, &unique);
	return unique.columns;
}

typedef struct UniqueKey
{
	TupleDesc	desc;
	Bitmapset  *key;			/* attribute numbers */
	bool		immediately;
} UniqueKey;

static bool
makes_key_unique(HeapTuple tuple, Form_pg_index index, void *arg)
{
	UniqueKey  *wanted = arg;

	if (!index->indisunique || !index->indisvalid || !is_plain(tuple) ||
		(wanted->immediately && !index->indimmediate))
		return false;
	for (int i = 0; i < index->indnkeyatts; i++)
	{
		AttrNumber	attnum = index->indkey.values[i];

		/* nulls are not equal to one another for the index, but are for us */
		if (!bms_is_member(attnum, wanted->key) ||
			!TupleDescAttr(wanted->desc, attnum - 1)->attnotnull)
			return false;
	}
	return true;
}

/*
 * Whether a unique index sees to it that no two rows have the same key; if
 * immediately, at any time, not only at the end of a transaction.
 */
bool
pyr_key_is_unique(Relation rel, const AttrNumber *key, int nkey,
				  bool immediately)
{
	UniqueKey	wanted = {RelationGetDescr(rel), NULL, immediately};
	bool		is_unique;

	for (int i = 0; i < nkey; i++)
		wanted.key = bms_add_member(wanted.key, key[i]);
	is_unique = visit_indexes(rel, makes_key_unique, &wanted);
	bms_free(wanted.key);
	return is_unique;
}

static bool
is_exclusion(HeapTuple tuple pg_attribute_unused(), Form_pg_index index,
			 void *arg pg_attribute_unused())
{
	return index->indisexclusion;
}

/*
 * Whether the table has an exclusion constraint.
 */
bool
pyr_has_exclusion(Relation rel)
{
	return visit_indexes(rel, is_exclusion, NULL);
}

static bool
is_deferrable(HeapTuple tuple pg_attribute_unused(), Form_pg_index index,
			  void *arg pg_attribute_unused())
{
	return (index->indisunique || index->indisexclusion) &&
		!index->indimmediate;
}

/*
 * Whether one of the table's constraints is looked at later than at once.
 */
bool
pyr_has_deferrable(Relation rel)
{
	return visit_indexes(rel, is_deferrable, NULL);
}
