/*-------------------------------------------------------------------------
 *
 * foreign.c
 *	  What other servers may have already of the master's changes.
 *
 * postgres_fdw commits on the other servers just before we commit here.  If we
 * get no further than that, some or all of them have the rows of a window that
 * comes again, as our position has not moved.  Whatever the reason was, this
 * process has ended, so it is only in the windows after a start that changes may
 * have been made already; and only until we have once been in step, as what the
 * one before us had fetched was committed by then.
 *
 * Until that is so, a change that finds its work done is no conflict.  In strict
 * order an insert replaces the row that has its key.  So does an update of a key,
 * which has all columns; if no row has the old key any more, it is an insert.
 * Other updates, and deletes, of rows that are missing are passed over without a
 * word.  An update that takes a row from one server to another is a delete there and
 * an insert here: if both servers have the row, one of the two goes, as all columns in
 * which they differ are in updates that come; if none has it, the table is copied
 * once more.  So whatever brings a row to a key brings all of it, and applied once more
 * from its beginning a window, or a longer one, ends at the same rows.
 *
 * In sets the same is true of the net effect, as long as no key was changed: rows
 * could be there under a key that they have only in between.  The very first
 * window is the one that was being committed, most likely: rows that it inserts
 * are deleted before anything else.  If a later one is it, its inserts fail, and it
 * is applied in strict order.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "slave/foreign.h"

static bool is_in_step = false; /* we have been, since we began */
static bool is_first = true;	/* no window has been applied yet */

/*
 * Whether changes of that table may have been made already.
 */
bool
pyr_foreign_may_be_made(PyrTarget *target)
{
	return target->is_foreign && !is_in_step;
}

bool
pyr_foreign_is_first(void)
{
	return is_first;
}

/*
 * A window with changes has been committed.
 */
void
pyr_foreign_window_applied(void)
{
	is_first = false;
}

/*
 * What was on the master a moment ago is here.
 */
void
pyr_foreign_in_step(void)
{
	is_in_step = true;
}
