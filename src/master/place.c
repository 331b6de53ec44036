/*-------------------------------------------------------------------------
 *
 * place.c
 *	  Where the log is: the tables and indexes that the extension created in
 *	  its schema, looked up once and again when something about them changed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "master/place.h"
#include "master/sequence.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

static PyrPlace place;
static bool is_looking = false; /* and nothing has changed meanwhile */

static void
relcache_callback(Datum arg pg_attribute_unused(), Oid relid)
{
	bool		ours = relid == InvalidOid || relid == place.current;

	for (int i = 0; i < PYR_INNER_TABLES; i++)
		ours = ours || relid == place.tables[i] ||
			relid == place.xid_indexes[i] || relid == place.mark_indexes[i];
	if (ours || is_looking)
		place.valid = is_looking = false;
}

/*
 * The inner table that entries go to now, from 0.  Its number is the value of
 * a sequence, which py_log_rotate alters, so that every session hears of it.
 * Hearing late does no harm: an entry is found whichever table it is in, and a
 * table is emptied only when everything in it has been passed by every slave.
 */
static int
current_inner_table(void)
{
	Relation	sequence = relation_open(place.current, AccessShareLock);
	int64		number;
	bool		is_called;

	pyr_sequence_read(sequence, &number, &is_called);
	relation_close(sequence, AccessShareLock);
	return (int) Max(0, Min(number - 1, PYR_INNER_TABLES - 1));
}

/*
 * Finds the log in the schema; NULL: it is not there (any more).
 */
const PyrPlace *
pyr_place_find(Oid schema)
{
	static bool is_callback_registered = false;
	bool		is_complete;

	if (place.valid && place.schema == schema)
		return &place;

	if (!is_callback_registered)
		CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
	is_callback_registered = true;

	/* any invalidation may concern what we find */
	is_looking = true;
	place.valid = false;
	place.schema = schema;
	place.current = get_relname_relid("replica_log_current", schema);
	is_complete = OidIsValid(place.current);
	for (int i = 0; i < PYR_INNER_TABLES; i++)
	{
		place.tables[i] =
			get_relname_relid(psprintf("replica_log_%d", i + 1), schema);
		place.xid_indexes[i] =
			get_relname_relid(psprintf("replica_log_%d_xid", i + 1), schema);
		place.mark_indexes[i] =
			get_relname_relid(psprintf("replica_log_%d_mark", i + 1), schema);
		if (!OidIsValid(place.tables[i]) ||
			!OidIsValid(place.xid_indexes[i]) ||
			!OidIsValid(place.mark_indexes[i]))
			is_complete = false;
	}
	if (!is_complete)
		return NULL;
	place.number = current_inner_table();

	/*
	 * If we were told of a change meanwhile, what we found is good enough for
	 * now, but not for later.
	 */
	place.valid = is_looking;
	is_looking = false;
	return &place;
}
