/*-------------------------------------------------------------------------
 *
 * sets.c
 *	  Merged changes into the slave's tables: each group of rows as one
 *	  statement over a tuplestore, small ones row by row with the saved plan
 *	  for one.
 *
 * Every row must be touched exactly once, but for rows of other servers that may
 * have them already (foreign.c).  If that is not so, or if a
 * statement fails, the caller rolls back and applies the changes in order.  (A
 * table's changes that were not merged are the caller's to make, one by one.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "slave/foreign.h"
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

/*
 * How many rows of the table each row of the group has to touch; -1: it does not
 * matter.
 */
static int
touches_of(PyrSets *sets, PyrMergeGroup *group)
{
	if (group->verb == PYR_DELETE && pyr_foreign_may_be_made(sets->target))
		return -1;
	return group->is_absent ? 0 : 1;
}

static bool
run_few(PyrSets *sets, PyrMergeGroup *group, PyrStatement *statement,
		MemoryContext context)
{
	int			touches = touches_of(sets, group);

	for (int i = 0; i < group->nrows; i++)
	{
		PyrMergeRow *row = group->rows[i];
		PyrRowChange change = {
			.key = row->origin, .values = row->values, .old = row->old
		};

		uint64		touched;

		MemoryContextReset(context);
		touched = pyr_statement_change(statement, &change, sets->encoding);
		if (touches >= 0 && touched != (uint64) touches)
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
	/* without a key, each change by itself would look through the table */
	if (group->nrows < (sets->target->is_whole && group->verb != PYR_INSERT
						? 2 : SET_ROWS_MIN))
		return run_few(sets, group, statement, context);
	return pyr_statement_rows(statement, group->rows, group->nrows,
							  touches_of(sets, group),
							  sets->encoding, sets->between);
}

/*
 * Takes rows away that are to be inserted, which may be there already.
 */
static void
unmake(PyrSets *sets, PyrMergeGroup *group)
{
	PyrMergeRow *deleted = palloc(group->nrows * sizeof(PyrMergeRow));
	PyrMergeRow **rows = palloc(group->nrows * sizeof(PyrMergeRow *));

	for (int i = 0; i < group->nrows; i++)
	{
		deleted[i] = *group->rows[i];
		deleted[i].origin = deleted[i].key;
		rows[i] = &deleted[i];
	}
	(void) pyr_statement_rows(pyr_statement_get(sets->target, PYR_DELETE, NULL,
												NULL, PYR_FORCE),
							  rows, group->nrows, -1, sets->encoding,
							  sets->between);
	pfree(rows);
	pfree(deleted);
}

static void
unmake_groups(PyrSets *sets, List *groups)
{
	ListCell   *cell;

	foreach(cell, groups)
	{
		PyrMergeGroup *group = lfirst(cell);

		if (group->verb == PYR_INSERT)
			unmake(sets, group);
	}
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
		if (!table->keeps_order && pyr_foreign_is_first() &&
			pyr_foreign_may_be_made(sets->target))
			unmake_groups(sets, groups);
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
