/*-------------------------------------------------------------------------
 *
 * sets.c
 *	  Merged changes into the slave's tables: each group of rows as one
 *	  statement over a tuplestore, small ones row by row with the saved plan
 *	  for one.
 *
 * Every row must be touched exactly once.  If that is not so, or if a
 * statement fails, the caller rolls back and applies the changes in order.  (A
 * table's changes that were not merged are the caller's to make, one by one.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "slave/sets.h"
#include "slave/statement.h"
#include "utils/memutils.h"

/*
 * From so many rows on, one statement for all is not dearer than one for each.
 * Measured over 300 tables, in the worker's CPU time for a row (us), as a set
 * and one by one: with 2 rows a table 25 and 22 for updates, 17 and 13 for
 * deletes; with 4 rows 13 and 13, 7.5 and 8.3; inserts 14 and 14, 8.8 and 10.
 */
#define SET_ROWS_MIN	4

/*
 * Carries out changes that were not merged.
 */
static void
run_changes(PyrSets *sets, PyrMergeGroup *group, MemoryContext context)
{
	for (int i = 0; i < group->nrows; i++)
	{
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(context);
		sets->make(sets->arg, sets->target, group->verb, group->rows[i]);
	}
}

static bool
run_few(PyrSets *sets, PyrMergeGroup *group, PyrStatement *statement,
		MemoryContext context)
{
	for (int i = 0; i < group->nrows; i++)
	{
		PyrMergeRow *row = group->rows[i];
		PyrRowChange change = {
			.key = row->origin, .values = row->values, .old = row->old
		};

		MemoryContextReset(context);
		if (pyr_statement_change(statement, &change, sets->encoding) !=
			(group->is_absent ? 0 : 1))
			return false;
	}
	return true;
}

/*
 * Of rows that should not be here, those that cannot be need no look.
 */
static void
leave_out_impossible(PyrSets *sets, PyrMergeGroup *group)
{
	int			n = 0;

	for (int i = 0; i < group->nrows; i++)
	{
		if (pyr_target_can_have_key(sets->target, group->rows[i]->origin,
									sets->encoding))
			group->rows[n++] = group->rows[i];
	}
	group->nrows = n;
}

static bool
run_group(PyrSets *sets, PyrMergeGroup *group, bool keeps_order,
		  MemoryContext context)
{
	PyrStatement *statement;

	/* nothing is set that is not generated here */
	if (group->verb == PYR_UPDATE && group->form->ncolumns == 0)
		return true;

	sets->verb = group->verb;
	sets->nrows = group->nrows;
	if (keeps_order)
	{
		run_changes(sets, group, context);
		return true;
	}
	if (group->is_absent)
		leave_out_impossible(sets, group);
	if (group->nrows == 0)
		return true;
	statement = pyr_statement_get(sets->target, group->verb, group->form,
								  group->old_form,
								  group->is_absent ? PYR_FORCE : PYR_EXPECT);
	if (group->nrows < SET_ROWS_MIN)
		return run_few(sets, group, statement, context);
	return pyr_statement_rows(statement, group->rows, group->nrows,
							  group->is_absent ? 0 : 1,
							  sets->encoding, sets->between);
}

static bool
run_tables(PyrSets *sets, PyrMerge *merge, MemoryContext context)
{
	ListCell   *table_cell;
	ListCell   *cell;
	List	   *groups;

	foreach(table_cell, pyr_merge_tables(merge))
	{
		PyrMergeTable *table = lfirst(table_cell);

		sets->target = table->user;
		if (!pyr_merge_groups(merge, table, &groups))
			return false;
		foreach(cell, groups)
		{
			if (!run_group(sets, lfirst(cell), table->keeps_order, context))
				return false;
			sets->between();
		}
	}
	sets->target = NULL;
	return true;
}

/*
 * Carries out all that has been merged.  False: some rows were not there, or
 * there more than once; sets->target tells where.
 */
bool
pyr_sets_run(PyrSets *sets, PyrMerge *merge)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "pyreplica sets",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	bool		is_done = run_tables(sets, merge, context);

	MemoryContextSwitchTo(oldcontext);
	MemoryContextDelete(context);
	return is_done;
}
