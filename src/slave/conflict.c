/*-------------------------------------------------------------------------
 *
 * conflict.c
 *	  Changes that meet rows which they do not expect: what kind of conflict
 *	  that is, who wins it, and what is done.
 *
 * The kinds are those of PostgreSQL 18's logical replication:
 *
 *	insert_exists		a row has the key, or another unique value, that an
 *						insert brings
 *	update_exists		the same of an update
 *	multiple_unique_conflicts	the same in more than one unique index
 *	update_missing		the row to be updated is not there
 *	delete_missing		the row to be deleted is not there
 *	update_origin_differs	the row to be updated is not what it was on the
 *						master; or, where old values are not logged, somebody
 *						else wrote it last
 *	delete_origin_differs	the same of a delete
 *
 * An ordinary change costs no more than its statement, which does nothing if
 * the row is not what it should be; only then there is a look at the rows.
 * They are locked meanwhile.
 *
 * A change to a row that is missing is passed over, whatever the policy: what is
 * not there cannot be changed.  A delete wins under last_update_wins: the row
 * that it deleted on the master could not be brought back there by an update
 * made here, so the two would differ for ever.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "common/config.h"
#include "common/render.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "slave/conflict.h"
#include "slave/foreign.h"
#include "slave/local.h"
#include "slave/look.h"
#include "utils/builtins.h"

#define KEY_LEN_MAX			300

/* so much of a row is shown in an error */
#define ROW_LEN_MAX			2000

/*
 * The key in parentheses, not too long for a log line.
 */
char *
pyr_describe_key(PyrChange *change, int encoding)
{
	StringInfoData key;

	initStringInfo(&key);
	if (change->shape->nkey == 0)
		return key.data;
	appendStringInfoString(&key, " (");
	pyr_render_key(&key, change, encoding);
	if (key.len > KEY_LEN_MAX)
	{
		key.len = pg_mbcliplen(key.data, key.len, KEY_LEN_MAX);
		key.data[key.len] = '\0';
		appendStringInfoString(&key, "...");
	}
	appendStringInfoChar(&key, ')');
	return key.data;
}

/*
 * The same of a row's change.
 */
static char *
label_of(const PyrRowChange *change, int encoding)
{
	PyrTarget  *target = change->target;
	int			nkey = target->merge->nkey;
	PyrShapeColumn *columns = palloc(nkey * sizeof(PyrShapeColumn));
	PyrValue   *values = palloc(nkey * sizeof(PyrValue));
	PyrShape	shape = {
		.verb = change->verb, .schema = target->schema, .table = target->table,
		.nkey = nkey, .columns = columns
	};
	PyrChange	whole = {&shape, values};

	for (int i = 0; i < nkey; i++)
	{
		PyrTargetColumn *column = &target->columns[target->merge->key[i]];
		int			slot;

		columns[i] = (PyrShapeColumn) {column->name, column->source};
		if (change->verb != PYR_INSERT)
		{
			values[i] = change->key[i];
			continue;
		}
		slot = change->form->slots[target->merge->key[i]];
		values[i] = slot < 0 ? (PyrValue) {NULL, -1} :
			change->values[change->from ? change->from[slot] : slot];
	}
	return pyr_describe_key(&whole, encoding);
}

static const char *
verb_word(PyrVerb verb)
{
	return verb == PYR_INSERT ? "insert" :
		verb == PYR_UPDATE ? "update" : "delete";
}

/*
 * The rows as JSON: one as it is, several as an array.
 */
static char *
rows_of(List *found)
{
	StringInfoData rows;
	ListCell   *cell;

	if (found == NIL)
		return NULL;
	if (list_length(found) == 1)
		return ((PyrFound *) linitial(found))->row;
	initStringInfo(&rows);
	foreach(cell, found)
		appendStringInfo(&rows, "%s%s", rows.len > 0 ? ", " : "[",
						 ((PyrFound *) lfirst(cell))->row);
	appendStringInfoChar(&rows, ']');
	return rows.data;
}

/*
 * The one that was written last.
 */
static PyrAuthor
last_author(List *found)
{
	PyrAuthor	last = {0};
	ListCell   *cell;

	foreach(cell, found)
	{
		PyrAuthor	author = ((PyrFound *) lfirst(cell))->author;

		if (author.is_timed && (!last.is_timed || author.at > last.at))
			last = author;
	}
	return last;
}

/*
 * Keeps what has been settled.
 */
static void
record(PyrConflicts *conflicts, const char *kind, const PyrRowChange *change,
	   const PyrTransaction *transaction, List *found, const char *outcome,
	   const char *told)
{
	PyrAuthor	author = last_author(found);
	char	   *row;
	char	   *key;
	PyrIncident incident = {
		.kind = kind,
		.schema = change->target->schema,
		.table = change->target->table,
		.label = label_of(change, conflicts->encoding),
		.local_row = rows_of(found),
		.local_origin = pyr_author_name(&author),
		.local_at = author.is_timed ? author.at : 0,
		.outcome = outcome,
		.told = told,
		.transaction = transaction
	};

	pyr_look_describe(change, conflicts->encoding, &row, &key);
	incident.remote_row = row;
	incident.key = key;
	pyr_history_add(&conflicts->history, &incident);
}

static void
record_missing(PyrConflicts *conflicts, const PyrRowChange *change,
			   const PyrTransaction *transaction)
{
	record(conflicts,
		   change->verb == PYR_UPDATE ? "update_missing" : "delete_missing",
		   change, transaction, NIL, "passed over",
		   psprintf("The row is not on the slave; the master's %s is passed over.",
					verb_word(change->verb)));
}

static char *
clipped(char *text)
{
	int			len = strlen(text);

	if (len <= ROW_LEN_MAX)
		return text;
	return psprintf("%.*s...", pg_mbcliplen(text, len, ROW_LEN_MAX), text);
}

/*
 * Nobody is to win: stops the replica.  The rows are for the log alone.
 */
static void
raise_conflict(PyrConflicts *conflicts, const char *kind,
			   const PyrRowChange *change, List *found)
{
	PyrTarget  *target = change->target;
	PyrFound   *first = linitial(found);
	PyrAuthor	author = last_author(found);
	char	   *row;
	char	   *key;
	char	   *why;

	pyr_look_describe(change, conflicts->encoding, &row, &key);
	if (first->index != NULL)
		why = psprintf("It is in unique index \"%s\" already.", first->index);
	else if (change->old_form != NULL)
		why = pstrdup("The slave's row is not what it was on the master before.");
	else
		why = psprintf("The slave's row was written last by %s.",
					   author.is_timed && author.origin != InvalidRepOriginId
					   ? psprintf("replica \"%s\"", pyr_author_name(&author))
					   : "somebody here");
	ereport(ERROR,
			(errcode(first->index ? ERRCODE_UNIQUE_VIOLATION
					 : ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
			 errmsg("conflict %s on table \"%s.%s\"%s",
					kind, target->schema, target->table,
					label_of(change, conflicts->encoding)),
			 errdetail("%s", why),
			 errdetail_log("%s The slave has %s%s; the master's %s has %s.", why,
						   clipped(rows_of(found)),
						   author.is_timed
						   ? psprintf(", of %s", timestamptz_to_str(author.at)) : "",
						   verb_word(change->verb), clipped(row)),
			 errhint("Change the slave's row so that it fits, or say who wins, with pyreplica.conflict_resolution or pyreplica_set_conflict_resolution('%s', ...).",
					 quote_qualified_identifier(target->schema, target->table))));
}

/*
 * The system identifier of the server where a row was written.
 */
static const char *
server_of(const PyrAuthor *author)
{
	MemoryContext context = CurrentMemoryContext;
	const char *server = psprintf(UINT64_FORMAT, GetSystemIdentifier());

	if (!author->is_timed || author->origin == InvalidRepOriginId)
		return server;
	if (SPI_execute(psprintf("SELECT system_identifier FROM %s.pyreplica_position WHERE replica = %s",
							 pyr_local_schema(),
							 quote_literal_cstr(pyr_author_name(author))),
					false, 1) == SPI_OK_SELECT && SPI_processed == 1)
		server = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	MemoryContextSwitchTo(context);
	return server;
}

/*
 * Two updates of one instant: any order will do that all servers agree on.
 */
static bool
wins_tie(PyrConflicts *conflicts, PyrFound *found)
{
	return strcmp(conflicts->master, server_of(&found->author)) > 0;
}

static bool
is_later(PyrConflicts *conflicts, const PyrRowChange *change, PyrFound *found,
		 const PyrTransaction *transaction)
{
	if (found->is_comparable)
		return found->is_earlier ||
			(!found->is_later && wins_tie(conflicts, found));

	/* an update that leaves the column alone tells no time */
	if (change->target->later_column >= 0)
		return false;
	if (!pyr_author_can_tell())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot tell which update of table \"%s.%s\"%s is the last",
						change->target->schema, change->target->table,
						label_of(change, conflicts->encoding)),
				 errdetail("The server does not keep the times and origins of transactions."),
				 errhint("Set track_commit_timestamp = on (needs a restart), or name a column that tells with pyreplica_set_conflict_resolution('%s', 'last_update_wins', 'column').",
						 quote_qualified_identifier(change->target->schema,
													change->target->table))));

	/* written before times were kept, or very long ago */
	if (!found->author.is_timed)
		return true;
	return transaction->at > found->author.at ||
		(transaction->at == found->author.at && wins_tie(conflicts, found));
}

/*
 * Whether the master's change is made, against those rows.
 */
static bool
remote_wins(PyrConflicts *conflicts, const char *kind,
			const PyrRowChange *change, List *found,
			const PyrTransaction *transaction)
{
	ListCell   *cell;

	switch (change->target->policy.resolution)
	{
		case PYR_RESOLVE_ERROR:
			raise_conflict(conflicts, kind, change, found);
			break;
		case PYR_RESOLVE_REMOTE:
			break;
		case PYR_RESOLVE_LOCAL:
			return false;
		case PYR_RESOLVE_LAST:
			if (change->verb == PYR_DELETE)
				break;
			foreach(cell, found)
			{
				if (!is_later(conflicts, change, lfirst(cell), transaction))
					return false;
			}
			break;
	}
	return true;
}

/*
 * Settles a conflict: whether the change is to be made now.
 */
static bool
settle(PyrConflicts *conflicts, const char *kind, const PyrRowChange *change,
	   List *found, const PyrTransaction *transaction)
{
	if (!remote_wins(conflicts, kind, change, found, transaction))
	{
		record(conflicts, kind, change, transaction, found, "kept local",
			   psprintf("The slave's row stays; the master's %s is left out.",
						verb_word(change->verb)));
		return false;
	}
	record(conflicts, kind, change, transaction, found, "applied remote",
		   psprintf("The master's %s is made.", verb_word(change->verb)));
	return true;
}

static uint64
carry_out(PyrConflicts *conflicts, const PyrRowChange *change, PyrManner manner)
{
	PyrTarget  *target = change->target;
	PyrStatement *statement = pyr_statement_get(target, change->verb,
												change->form, change->old_form,
												manner);
	uint64		touched = pyr_statement_change(statement, change,
											   conflicts->encoding);

	if (touched > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("table \"%s.%s\" has " UINT64_FORMAT " rows with one key on the slave",
						target->schema, target->table, touched),
				 errhint("Give the slave's table the master's primary key.")));
	return touched;
}

/*
 * Deletes a row that is in the way.
 */
static void
clear_away(PyrTarget *target, PyrFound *found)
{
	pyr_statement_text(target->owner,
					   psprintf("DELETE FROM %s WHERE ctid OPERATOR(pg_catalog.=) '%s'::pg_catalog.tid"
								" AND tableoid OPERATOR(pg_catalog.=) %u::pg_catalog.oid",
								pyr_statement_table(target), found->ctid,
								found->relid));
}

/*
 * Whether an update can set all of the form's columns.
 */
static bool
can_update(PyrTarget *target, PyrForm *form)
{
	for (int i = 0; i < form->ncolumns; i++)
	{
		if (target->columns[form->columns[i]].is_fixed)
			return false;
	}
	return true;
}

/*
 * The key of the row that an insert brings.
 */
static void
key_of_insert(const PyrRowChange *change, PyrValue *key)
{
	PyrMergeTable *table = change->target->merge;

	for (int i = 0; i < table->nkey; i++)
	{
		int			slot = change->form->slots[table->key[i]];

		key[i] = change->values[change->from ? change->from[slot] : slot];
	}
}

/*
 * An insert as an update of the row that has its key.
 */
static void
update_instead(PyrConflicts *conflicts, const PyrRowChange *change)
{
	PyrValue	key[INDEX_MAX_KEYS];
	PyrRowChange update = *change;

	key_of_insert(change, key);
	update.verb = PYR_UPDATE;
	update.key = key;
	(void) carry_out(conflicts, &update, PYR_FORCE);
}

/*
 * Makes the change against the rows that are in its way: the one with its key
 * becomes what the master has, those that only have another unique value of
 * it go.
 */
static void
make_way(PyrConflicts *conflicts, const PyrRowChange *change, List *found)
{
	PyrTarget  *target = change->target;
	bool		becomes = false;
	ListCell   *cell;

	foreach(cell, found)
	{
		PyrFound   *row = lfirst(cell);

		if (change->verb == PYR_INSERT && row->has_same_key &&
			can_update(target, change->form))
			becomes = true;
		else
			clear_away(target, row);
	}
	if (becomes)
		update_instead(conflicts, change);
	else
		(void) carry_out(conflicts, change,
						 change->verb == PYR_INSERT ? PYR_EXPECT : PYR_FORCE);
}

/*
 * Makes the change unless one of its unique values is here already; then that
 * is settled.
 */
static void
make_if_unique(PyrConflicts *conflicts, const PyrRowChange *change,
			   const PyrTransaction *transaction)
{
	int			nindexes;
	List	   *found = pyr_look_for_collisions(change, conflicts->encoding,
												&nindexes);

	if (found == NIL ||
		settle(conflicts,
			   nindexes > 1 ? "multiple_unique_conflicts" :
			   change->verb == PYR_INSERT ? "insert_exists" : "update_exists",
			   change, found, transaction))
		make_way(conflicts, change, found);
}

/*
 * Looks at the row that an update or delete is about, and makes the change if
 * that is right.  was_tried: the statement touched no row.
 */
static void
make_with_look(PyrConflicts *conflicts, const PyrRowChange *change,
			   const PyrTransaction *transaction, bool was_tried)
{
	PyrFound   *found = pyr_look_at_row(change, conflicts->encoding);

	if (found == NULL)
	{
		record_missing(conflicts, change, transaction);
		return;
	}

	/* a trigger has seen it, and would not have it */
	if (was_tried && found->is_expected &&
		change->target->route == PYR_ROUTE_AT_ONCE)
		return;
	if (!found->is_expected &&
		!settle(conflicts,
				change->verb == PYR_UPDATE ? "update_origin_differs" : "delete_origin_differs",
				change, list_make1(found), transaction))
		return;
	if (change->verb == PYR_UPDATE && change->form->is_linked &&
		pyr_look_can_collide(change))
		make_if_unique(conflicts, change, transaction);
	else
		(void) carry_out(conflicts, change, PYR_FORCE);
}

static void
make_insert(PyrConflicts *conflicts, const PyrRowChange *change,
			const PyrTransaction *transaction)
{
	if (change->target->can_arbitrate)
	{
		if (carry_out(conflicts, change, PYR_TRY) == 0)
			make_if_unique(conflicts, change, transaction);
	}
	else if (pyr_look_can_collide(change))
		make_if_unique(conflicts, change, transaction);
	else
		(void) carry_out(conflicts, change, PYR_EXPECT);
}

/*
 * A row that was on its way from one server to another may be on both.
 */
static void
unite(PyrConflicts *conflicts, const PyrRowChange *change)
{
	PyrRowChange delete = {
		.target = change->target, .verb = PYR_DELETE, .key = change->key
	};

	if (change->target->routing != NULL)
		(void) pyr_statement_change(pyr_statement_unite(change->target), &delete,
									conflicts->encoding);
}

/*
 * Inserts a row of another server, in place of the one that has its key.
 */
static void
insert_once_more(PyrConflicts *conflicts, const PyrRowChange *insert)
{
	PyrValue	key[INDEX_MAX_KEYS];
	PyrRowChange delete = {
		.target = insert->target, .verb = PYR_DELETE, .key = key
	};

	if (insert->target->merge->nkey > 0)
	{
		key_of_insert(insert, key);
		unite(conflicts, &delete);
		(void) carry_out(conflicts, &delete, PYR_FORCE);
	}
	(void) carry_out(conflicts, insert, PYR_EXPECT);
}

/*
 * An update of a key as an insert of the row: it has all columns, but for those of
 * the key that stay.
 */
static void
insert_instead(PyrConflicts *conflicts, const PyrRowChange *update)
{
	PyrMergeTable *table = update->target->merge;
	Bitmapset  *columns = bms_copy(update->form->set);
	PyrRowChange insert = {.target = update->target, .verb = PYR_INSERT};
	PyrValue   *values;

	for (int i = 0; i < table->nkey; i++)
		columns = bms_add_member(columns, table->key[i]);
	insert.form = pyr_merge_form(table, columns);
	insert.values = values = palloc(insert.form->ncolumns * sizeof(PyrValue));
	for (int i = 0; i < table->nkey; i++)
		values[insert.form->slots[table->key[i]]] = update->key[i];
	for (int slot = 0; slot < update->form->ncolumns; slot++)
		values[insert.form->slots[update->form->columns[slot]]] =
			update->values[update->from ? update->from[slot] : slot];
	insert_once_more(conflicts, &insert);
}

/*
 * Makes a change that another server may have already; see foreign.c.  False: the row
 * that it was to take from one server to another is on none.
 */
static bool
make_once_more(PyrConflicts *conflicts, const PyrRowChange *change)
{
	PyrTarget  *target = change->target;

	if (change->verb == PYR_INSERT)
	{
		insert_once_more(conflicts, change);
		return true;
	}
	unite(conflicts, change);
	if (change->verb == PYR_UPDATE && change->form->sets_key)
	{
		(void) pyr_statement_change(pyr_statement_vacate(target, change->form),
									change, conflicts->encoding);
		if (carry_out(conflicts, change, PYR_FORCE) == 0)
			insert_instead(conflicts, change);
		return true;
	}
	return carry_out(conflicts, change, PYR_FORCE) > 0 ||
		change->verb == PYR_DELETE ||
		!bms_overlap(change->form->set, target->routing);
}

/*
 * Makes a change of one row, or settles what comes of it.  False: the row has been
 * lost between two servers, so the table is to be copied.
 */
bool
pyr_conflict_change(PyrConflicts *conflicts, const PyrRowChange *change,
					const PyrTransaction *transaction)
{
	PyrTarget  *target = change->target;

	if (pyr_foreign_may_be_made(target))
	{
		if (make_once_more(conflicts, change))
			return true;
		if (copy_data)
			return false;
		record_missing(conflicts, change, transaction);
	}
	else if (change->verb == PYR_INSERT)
		make_insert(conflicts, change, transaction);
	else if (!target->is_local || target->is_whole)
	{
		if (carry_out(conflicts, change, PYR_FORCE) == 0)
			record_missing(conflicts, change, transaction);
	}
	else if (change->verb == PYR_UPDATE && change->form->is_linked &&
			 !target->is_key_deferrable)
		make_with_look(conflicts, change, transaction, false);
	else if (carry_out(conflicts, change, PYR_TRY) == 0)
		make_with_look(conflicts, change, transaction, true);
	return true;
}
