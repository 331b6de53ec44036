/*-------------------------------------------------------------------------
 *
 * merge.c
 *	  The net effect of changes, row by row.
 *
 * Changes come in, in the master's order; what goes out says for each row
 * that they touched what is to be done to it once: an insert, an update of
 * certain columns, a delete.  Rows that can be part of one statement come in
 * groups.  Pure: no catalog access, no SPI.
 *
 * A row is followed by its key.  "origin" is the key that it has on the slave
 * now, "key" the one that it will have after the changes merged so far; they
 * differ after an update of the key.  Keys are compared byte by byte, as the
 * master wrote them down.  That is exact: the old key of a change comes from
 * the very row version that an earlier change wrote.
 *
 *			no row so far	INSERT		UPDATE		DELETE		REPLACE
 *	insert	INSERT			-			-			REPLACE		-
 *	update	UPDATE			INSERT		UPDATE		-			REPLACE
 *	delete	DELETE			NONE		DELETE		-			DELETE
 *
 * (columns: the row's effect before, lines: the change, "-": cannot follow).
 * If changes tell what the row was before, the net effect does so, too: of each
 * column, what the first change of it says.  That is what the row should be on
 * the slave.
 *
 * All this relies on a key belonging to one row at a time.  If changes do not
 * follow one another like that, the caller is told so and has to apply them
 * one by one.  A table of which it is known before (keeps_order) is not
 * merged: its rows are its changes.
 *
 * A table without a key is a bag: rows are told by all that is logged of them, and
 * several can be equal.  Changes are then about one of the equal rows, and as these
 * cannot be told apart, one that is in our hands already is as good as another: the same
 * table holds, but for REPLACE, as a row that is inserted again is just one more.
 * What comes out is how many of each are to go, to become something else, and to come.
 *
 * As long as all changes of a table are inserts, or all are deletes, no two of
 * them can be about one row, and no hash table is needed.
 *
 * What was inserted and deleted again leaves nothing; but on the slave there may
 * be a row with its key, which the insert would have met.  So such keys are
 * looked for, as deletes that should find nothing.  (What a row had only in
 * between, other keys or unique values, meets nobody.)
 *
 * The groups of a table are to be carried out in the order given: deletes,
 * updates, updates of keys, looks for nothing, inserts.  So a unique value that one row gives up
 * and another one takes is free when it is taken, but for two cases, which fail
 * and are then applied one by one: a value that moves on among rows that were
 * changed several times, and one taken by an update from a row that is
 * inserted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/compat.h"
#include "common/hashfn.h"
#include "port/pg_bswap.h"
#include "slave/merge.h"
#include "utils/memutils.h"

struct PyrMerge
{
	MemoryContext context;		/* of all there is of the piece */
	List	   *tables;			/* PyrMergeTable, those touched */
	uint64		order;			/* number of changes so far */
};

typedef struct FormUnion
{
	PyrForm    *other;
	PyrForm    *result;
} FormUnion;

/* what tells rows of a table apart */
typedef struct RowKey
{
	uint32		hash;
	const PyrValue *values;
} RowKey;

typedef struct RowEntry
{
	RowKey		key;
	PyrMergeRow *row;
	char		status;
} RowEntry;

static bool
same_key(const PyrValue *a, const PyrValue *b, int nkey)
{
	for (int i = 0; i < nkey; i++)
	{
		if (a[i].len != b[i].len ||
			(a[i].len > 0 && memcmp(a[i].data, b[i].data, a[i].len) != 0))
			return false;
	}
	return true;
}

/* private_data is the number of key columns */
#define SH_PREFIX merge
#define SH_ELEMENT_TYPE RowEntry
#define SH_KEY_TYPE RowKey
#define SH_KEY key
#define SH_HASH_KEY(tb, key) (key).hash
#define SH_EQUAL(tb, a, b) \
	((a).hash == (b).hash && \
	 same_key((a).values, (b).values, (int) (intptr_t) (tb)->private_data))
#define SH_STORE_HASH
#define SH_GET_HASH(tb, entry) (entry)->key.hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/*
 * A table with so many columns, some of which are its key.  whole are those
 * that make up a row; linked those whose values rows can take from one
 * another, because they are unique.
 */
PyrMergeTable *
pyr_merge_table_create(MemoryContext context, int ncolumns, int nkey,
					   const int *key, Bitmapset *whole, Bitmapset *linked)
{
	PyrMergeTable *table = MemoryContextAllocZero(context,
												  sizeof(PyrMergeTable));

	table->context = context;
	table->ncolumns = ncolumns;
	table->nkey = nkey;
	table->key = MemoryContextAlloc(context, (nkey + 1) * sizeof(int));
	memcpy(table->key, key, nkey * sizeof(int));
	table->whole = whole;
	table->linked = linked;
	return table;
}

/*
 * The form of that set of columns; there is one of each.
 */
PyrForm *
pyr_merge_form(PyrMergeTable *table, Bitmapset *set)
{
	MemoryContext oldcontext;
	PyrForm    *form;
	ListCell   *cell;
	int			column = -1;

	foreach(cell, table->forms)
	{
		form = lfirst(cell);
		if (bms_equal(form->set, set))
			return form;
	}

	oldcontext = MemoryContextSwitchTo(table->context);
	form = palloc0(sizeof(PyrForm));
	form->set = bms_copy(set);
	form->columns = palloc((bms_num_members(set) + 1) * sizeof(int));
	form->slots = palloc(table->ncolumns * sizeof(int));
	for (int i = 0; i < table->ncolumns; i++)
		form->slots[i] = -1;
	while ((column = bms_next_member(set, column)) >= 0)
	{
		form->slots[column] = form->ncolumns;
		form->columns[form->ncolumns++] = column;
	}
	for (int i = 0; i < table->nkey; i++)
		form->sets_key = form->sets_key || form->slots[table->key[i]] >= 0;
	form->is_whole = bms_is_subset(table->whole, set);
	form->is_linked = bms_overlap(table->linked, set);
	table->forms = lappend(table->forms, form);
	MemoryContextSwitchTo(oldcontext);
	return form;
}

/*
 * The form of the columns of both.
 */
static PyrForm *
unite_forms(PyrMergeTable *table, PyrForm *form, PyrForm *other)
{
	MemoryContext oldcontext;
	FormUnion  *united;
	Bitmapset  *set;
	ListCell   *cell;

	if (form == other)
		return form;
	foreach(cell, form->unions)
	{
		united = lfirst(cell);
		if (united->other == other)
			return united->result;
	}

	set = bms_union(form->set, other->set);
	oldcontext = MemoryContextSwitchTo(table->context);
	united = palloc(sizeof(FormUnion));
	united->other = other;
	united->result = pyr_merge_form(table, set);
	form->unions = lappend(form->unions, united);
	MemoryContextSwitchTo(oldcontext);
	bms_free(set);
	return united->result;
}

PyrMerge *
pyr_merge_create(MemoryContext parent)
{
	MemoryContext context = pyr_generation_context(parent,
												   "pyreplica changes");
	PyrMerge   *merge = MemoryContextAllocZero(parent, sizeof(PyrMerge));

	merge->context = context;
	return merge;
}

/*
 * Memory that the changes merged so far take.
 */
size_t
pyr_merge_bytes(PyrMerge *merge)
{
	return MemoryContextMemAllocated(merge->context, false);
}

/*
 * The order of the last change.
 */
uint64
pyr_merge_order(PyrMerge *merge)
{
	return merge->order;
}

/*
 * The tables that have been touched, in order of the first change.
 */
List *
pyr_merge_tables(PyrMerge *merge)
{
	return merge->tables;
}

/*
 * Forgets all changes.
 */
void
pyr_merge_clear(PyrMerge *merge)
{
	ListCell   *cell;

	foreach(cell, merge->tables)
	{
		PyrMergeTable *table = lfirst(cell);

		table->is_pending = false;
		table->rows = NULL;
		table->hash = NULL;
		table->nrows = table->maxrows = 0;
	}
	merge->tables = NIL;
	MemoryContextReset(merge->context);
}

static uint32
hash_key(const PyrValue *key, int nkey)
{
	uint32		hash = 0;

	for (int i = 0; i < nkey; i++)
		hash = hash_combine(hash, key[i].len < 0 ? 0 :
							hash_bytes((const unsigned char *) key[i].data,
									   key[i].len));
	return hash;
}

/*
 * In a bag, the one that was entered last.
 */
static PyrMergeRow *
find_row(PyrMergeTable *table, const PyrValue *key, uint32 hash)
{
	RowKey		wanted = {hash, key};
	RowEntry   *entry = merge_lookup(table->hash, wanted);

	return entry != NULL ? entry->row : NULL;
}

/*
 * Makes the row the one that is found by its key; false: there is one, and there
 * must not be two.
 */
static bool
enter_row(PyrMergeTable *table, PyrMergeRow *row)
{
	RowKey		key = {row->hash, row->key};
	bool		found;
	RowEntry   *entry = merge_insert(table->hash, key, &found);

	row->equal = found && table->is_whole ? entry->row : NULL;
	entry->row = row;
	return !found || table->is_whole;
}

static void
remove_row(PyrMergeTable *table, PyrMergeRow *row)
{
	RowKey		key = {row->hash, row->key};

	if (row->equal != NULL)
	{
		RowEntry   *entry = merge_lookup(table->hash, key);

		Assert(entry != NULL && entry->row == row);
		entry->row = row->equal;
		row->equal = NULL;
		return;
	}
	(void) merge_delete(table->hash, key);
}

/*
 * From now on rows are looked up.  False: two of them have one key.
 */
static bool
begin_hash(PyrMerge *merge, PyrMergeTable *table)
{
	table->only = PYR_EFFECT_NONE;
	table->hash = merge_create(merge->context, Max(table->nrows * 2, 8),
									(void *) (intptr_t) table->nkey);
	for (int i = 0; i < table->nrows; i++)
	{
		PyrMergeRow *row = table->rows[i];

		row->hash = hash_key(row->key, table->nkey);
		if (table->is_whole && row->effect == PYR_EFFECT_DELETE)
			continue;
		if (!enter_row(table, row))
			return false;
	}
	return true;
}

static void
append_row(PyrMerge *merge, PyrMergeTable *table, PyrMergeRow *row)
{
	if (table->nrows == table->maxrows)
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(merge->context);

		table->maxrows = Max(table->maxrows * 2, 8);
		if (table->rows == NULL)
			table->rows = palloc(table->maxrows * sizeof(PyrMergeRow *));
		else
			table->rows = repalloc_huge(table->rows,
										table->maxrows * sizeof(PyrMergeRow *));
		MemoryContextSwitchTo(oldcontext);
	}
	table->rows[table->nrows++] = row;
}

/*
 * The bytes of n values lie in one piece, in order; finds it.
 */
static void
find_bytes(const PyrValue *values, int n, const char **begin, size_t *len)
{
	const char *end = NULL;

	*begin = NULL;
	for (int i = 0; i < n; i++)
	{
		if (values[i].len < 0)
			continue;
		if (*begin == NULL)
			*begin = values[i].data;
		end = values[i].data + values[i].len;
	}
	*len = end - *begin;
}

static inline PyrValue
moved_value(PyrValue value, const char *from, const char *to)
{
	if (value.len >= 0)
		value.data = to + (value.data - from);
	return value;
}

/*
 * A row made of one change: its old key, the values that it sets, and what the
 * row was before.
 */
static PyrMergeRow *
make_row(PyrMerge *merge, PyrMergeShape *shape, const PyrValue *values,
		 int nvalues)
{
	int			nkey = shape->table->nkey;
	int			nset = shape->form ? shape->form->ncolumns : 0;
	int			nold = shape->old_form ? shape->old_form->ncolumns : 0;
	const char *bytes;
	size_t		len;
	char	   *copy;
	PyrMergeRow *row;

	find_bytes(values, nvalues, &bytes, &len);
	row = MemoryContextAllocHuge(merge->context,
								 sizeof(PyrMergeRow) +
								 (nkey + nset + nold) * sizeof(PyrValue) + len);
	row->key = (PyrValue *) (row + 1);
	row->values = row->key + nkey;
	row->old = row->values + nset;
	row->form = shape->form;
	row->old_form = shape->old_form;
	row->order = merge->order;
	row->equal = NULL;
	copy = (char *) (row->old + nold);
	if (len > 0)
		memcpy(copy, bytes, len);

	for (int i = 0; i < nkey; i++)
		row->key[i] = moved_value(values[i], bytes, copy);
	for (int i = 0; i < nset; i++)
		row->values[i] = moved_value(values[shape->from[i]], bytes, copy);
	for (int i = 0; i < nold; i++)
		row->old[i] = moved_value(values[shape->old_from[i]], bytes, copy);

	row->origin = shape->verb == PYR_INSERT ? NULL : row->key;
	row->effect = shape->verb == PYR_INSERT ? PYR_EFFECT_INSERT :
		shape->verb == PYR_UPDATE ? PYR_EFFECT_UPDATE : PYR_EFFECT_DELETE;
	return row;
}

/*
 * Keeps a copy of a value, in the place of an older one if it fits.
 */
static void
store_value(PyrMerge *merge, PyrValue *place, const PyrValue *value)
{
	if (value->len >= 0)
	{
		if (place->len < value->len)
			place->data = MemoryContextAllocHuge(merge->context,
												 Max(value->len, 1));
		memcpy(unconstify(char *, place->data), value->data, value->len);
	}
	place->len = value->len;
}

/*
 * The values of one form, which have to last, in a larger one.
 */
static PyrValue *
widen_values(PyrMerge *merge, const PyrValue *values, PyrForm *form,
			 PyrForm *larger)
{
	PyrValue   *widened = MemoryContextAlloc(merge->context,
											 larger->ncolumns * sizeof(PyrValue));

	for (int i = 0; i < larger->ncolumns; i++)
		widened[i] = (PyrValue) {NULL, -1};
	for (int i = 0; i < form->ncolumns; i++)
		widened[larger->slots[form->columns[i]]] = values[i];
	return widened;
}

/*
 * Makes room in the row for the values of that form.
 */
static void
widen_row(PyrMerge *merge, PyrMergeTable *table, PyrMergeRow *row,
		  PyrForm *form)
{
	PyrForm    *united = unite_forms(table, row->form, form);

	if (united == row->form)
		return;
	row->values = widen_values(merge, row->values, row->form, united);
	row->form = united;
}

/*
 * Keeps what the change tells of the row before it, where no earlier change of
 * the row has told that.
 */
static void
keep_old(PyrMerge *merge, PyrMergeRow *row, PyrMergeShape *shape,
		 const PyrValue *values)
{
	PyrForm    *known = row->old_form;
	PyrForm    *united;

	if (known == NULL || shape->old_form == NULL)
		return;
	united = unite_forms(shape->table, known, shape->old_form);
	if (united == known)
		return;
	row->old = widen_values(merge, row->old, known, united);
	row->old_form = united;
	for (int i = 0; i < shape->old_form->ncolumns; i++)
	{
		int			column = shape->old_form->columns[i];

		if (known->slots[column] < 0)
			store_value(merge, &row->old[united->slots[column]],
						&values[shape->old_from[i]]);
	}
}

/*
 * The row gets another key.
 */
static void
set_key(PyrMerge *merge, PyrMergeTable *table, PyrMergeRow *row,
		PyrMergeShape *shape, const PyrValue *values)
{
	row->key = MemoryContextAlloc(merge->context,
								  table->nkey * sizeof(PyrValue));
	for (int i = 0; i < table->nkey; i++)
	{
		row->key[i] = (PyrValue) {NULL, -1};
		store_value(merge, &row->key[i], &values[shape->new_key[i]]);
	}
	row->hash = hash_key(row->key, table->nkey);
}

/*
 * Nobody may have the key that a row is about to get.  A deleted row that had
 * it is not looked up any more: it is deleted before keys are set.
 */
static bool
vacate_key(PyrMergeTable *table, PyrMergeShape *shape, const PyrValue *values)
{
	PyrValue	key[INDEX_MAX_KEYS];
	PyrMergeRow *holder;

	for (int i = 0; i < table->nkey; i++)
		key[i] = values[shape->new_key[i]];
	holder = find_row(table, key, hash_key(key, table->nkey));
	if (holder == NULL)
		return true;
	if (holder->effect != PYR_EFFECT_DELETE)
		return false;
	remove_row(table, holder);
	return true;
}

static bool
add_insert(PyrMerge *merge, PyrMergeShape *shape, const PyrValue *values,
		   int nvalues, PyrMergeRow *row, uint32 hash)
{
	PyrMergeTable *table = shape->table;
	PyrMergeRow *inserted;

	if (row != NULL && row->effect != PYR_EFFECT_DELETE)
		return false;

	inserted = make_row(merge, shape, values, nvalues);
	inserted->hash = hash;
	if (row == NULL)
	{
		append_row(merge, table, inserted);
		return enter_row(table, inserted);
	}
	row->effect = PYR_EFFECT_REPLACE;
	row->form = inserted->form;
	row->values = inserted->values;
	row->order = merge->order;
	return true;
}

static bool
add_update(PyrMerge *merge, PyrMergeShape *shape, const PyrValue *values,
		   int nvalues, PyrMergeRow *row, uint32 hash)
{
	PyrMergeTable *table = shape->table;
	PyrForm    *form = shape->form;
	bool		moves = shape->new_key != NULL;

	if (row != NULL && row->effect == PYR_EFFECT_DELETE)
		return false;
	if (row != NULL && moves)
		remove_row(table, row);
	if (moves && !vacate_key(table, shape, values))
		return false;

	if (row == NULL)
	{
		row = make_row(merge, shape, values, nvalues);
		row->hash = hash;
		append_row(merge, table, row);
		if (!moves)
			return enter_row(table, row);
	}
	else
	{
		if (row->effect == PYR_EFFECT_UPDATE)
			keep_old(merge, row, shape, values);
		widen_row(merge, table, row, form);
		for (int i = 0; i < form->ncolumns; i++)
			store_value(merge, &row->values[row->form->slots[form->columns[i]]],
						&values[shape->from[i]]);
		row->order = merge->order;
		if (!moves)
			return true;
	}
	set_key(merge, table, row, shape, values);
	return enter_row(table, row);
}

static bool
add_delete(PyrMerge *merge, PyrMergeShape *shape, const PyrValue *values,
		   int nvalues, PyrMergeRow *row, uint32 hash)
{
	PyrMergeTable *table = shape->table;

	if (row == NULL)
	{
		row = make_row(merge, shape, values, nvalues);
		row->hash = hash;
		append_row(merge, table, row);
		return enter_row(table, row);
	}

	switch (row->effect)
	{
		case PYR_EFFECT_INSERT:
			remove_row(table, row);
			row->effect = PYR_EFFECT_NONE;
			return true;

		case PYR_EFFECT_UPDATE:
			keep_old(merge, row, shape, values);
			/* FALLTHROUGH */
		case PYR_EFFECT_REPLACE:
			/* an insert that follows may take its place, if it is the same */
			if (!same_key(row->key, row->origin, table->nkey))
				remove_row(table, row);
			row->effect = PYR_EFFECT_DELETE;
			row->form = NULL;
			row->order = merge->order;
			return true;

		default:
			return false;
	}
}

/*
 * A change of a table without a key.  Rows that are gone, or that we have never had in
 * our hands, are not looked up.
 */
static bool
add_to_bag(PyrMerge *merge, PyrMergeShape *shape, const PyrValue *values,
		   int nvalues, PyrMergeRow *row, uint32 hash)
{
	PyrMergeTable *table = shape->table;
	bool		is_new = row == NULL || shape->verb == PYR_INSERT;

	if (is_new)
	{
		row = make_row(merge, shape, values, nvalues);
		row->hash = hash;
		append_row(merge, table, row);
	}
	else
		remove_row(table, row);
	if (shape->verb == PYR_DELETE)
	{
		row->effect = row->effect == PYR_EFFECT_INSERT
			? PYR_EFFECT_NONE : PYR_EFFECT_DELETE;
		row->form = NULL;
		row->order = merge->order;
		return true;
	}
	if (shape->verb == PYR_UPDATE)
	{
		if (!is_new)
		{
			widen_row(merge, table, row, shape->form);
			for (int i = 0; i < shape->form->ncolumns; i++)
				store_value(merge, &row->values[row->form->slots[shape->form->columns[i]]],
							&values[shape->from[i]]);
			row->order = merge->order;
		}
		if (shape->new_key != NULL)
			set_key(merge, table, row, shape, values);
	}
	return enter_row(table, row);
}

static void
begin_table(PyrMerge *merge, PyrMergeTable *table, bool keeps_order)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(merge->context);

	table->is_pending = true;
	table->keeps_order = keeps_order;
	table->only = PYR_EFFECT_NONE;
	merge->tables = lappend(merge->tables, table);
	MemoryContextSwitchTo(oldcontext);
}

/*
 * Takes in the next change.  values are those of its shape, in the shape's
 * order; they are copied.  keeps_order (which counts for the first change of a
 * table since clear): the table's changes are kept as they are.
 *
 * False: the change cannot follow those before; what has been merged is of
 * no use then.
 */
bool
pyr_merge_add(PyrMerge *merge, PyrMergeShape *shape, const PyrValue *values,
			  bool keeps_order)
{
	PyrMergeTable *table = shape->table;
	int			nvalues = shape->nvalues;
	PyrEffect	alone = shape->verb == PYR_INSERT ? PYR_EFFECT_INSERT :
		shape->verb == PYR_DELETE ? PYR_EFFECT_DELETE : PYR_EFFECT_NONE;
	PyrMergeRow *row;
	uint32		hash;

	merge->order++;
	if (!table->is_pending)
	{
		begin_table(merge, table, keeps_order);
		table->only = alone;
	}
	if (table->keeps_order ||
		(table->only != PYR_EFFECT_NONE && table->only == alone))
	{
		append_row(merge, table, make_row(merge, shape, values, nvalues));
		return true;
	}
	if (table->hash == NULL && !begin_hash(merge, table))
		return false;

	hash = hash_key(values, table->nkey);
	row = find_row(table, values, hash);
	if (table->is_whole)
		return add_to_bag(merge, shape, values, nvalues, row, hash);
	switch (shape->verb)
	{
		case PYR_INSERT:
			return add_insert(merge, shape, values, nvalues, row, hash);
		case PYR_UPDATE:
			return add_update(merge, shape, values, nvalues, row, hash);
		case PYR_DELETE:
			return add_delete(merge, shape, values, nvalues, row, hash);
		case PYR_TRUNCATE:
		case PYR_SQL:
			break;
	}
	elog(ERROR, "unexpected operation to be merged");
	return false;
}

/* a row with what it is sorted by */
typedef struct SortRow
{
	uint64		prefix;			/* first bytes of the first key column */
	int			nkey;
	PyrMergeRow *row;
} SortRow;

static uint64
key_prefix(const PyrValue *key)
{
	uint64		prefix = 0;

	if (key->len > 0)
		memcpy(&prefix, key->data, Min(key->len, (int) sizeof(prefix)));
	return pg_ntoh64(prefix);
}

static int
compare_values(const PyrValue *a, const PyrValue *b)
{
	int			result;

	if (a->len < 0 || b->len < 0)
		return a->len < 0 ? (b->len < 0 ? 0 : 1) : -1;
	result = memcmp(a->data, b->data, Min(a->len, b->len));
	return result != 0 ? result : a->len - b->len;
}

/*
 * By the bytes of the keys that rows have on the slave.  The order of bytes is
 * not always the index's, but it brings together what is together there,
 * which is all that we want.
 */
static int
compare_keys(const void *a, const void *b)
{
	const SortRow *left = a;
	const SortRow *right = b;

	if (left->prefix != right->prefix)
		return left->prefix < right->prefix ? -1 : 1;
	for (int i = 0; i < left->nkey; i++)
	{
		int			result = compare_values(&left->row->origin[i],
											&right->row->origin[i]);

		if (result != 0)
			return result;
	}
	return 0;
}

static void
sort_by_key(PyrMergeRow **rows, int nrows, int nkey)
{
	SortRow    *sorted = palloc_extended(nrows * sizeof(SortRow),
										 MCXT_ALLOC_HUGE);

	for (int i = 0; i < nrows; i++)
		sorted[i] = (SortRow) {key_prefix(&rows[i]->origin[0]), nkey, rows[i]};
	qsort(sorted, nrows, sizeof(SortRow), compare_keys);
	for (int i = 0; i < nrows; i++)
		rows[i] = sorted[i].row;
	pfree(sorted);
}

static int
compare_orders(const void *a, const void *b)
{
	const PyrMergeRow *left = *(PyrMergeRow *const *) a;
	const PyrMergeRow *right = *(PyrMergeRow *const *) b;

	return left->order < right->order ? -1 : left->order > right->order;
}

static PyrMergeGroup *
make_group(PyrVerb verb, PyrMergeRow **rows, int nrows)
{
	PyrMergeGroup *group = palloc0(sizeof(PyrMergeGroup));

	group->verb = verb;
	group->form = verb == PYR_DELETE ? NULL : rows[0]->form;
	group->old_form = verb == PYR_INSERT ? NULL : rows[0]->old_form;
	group->rows = rows;
	group->nrows = nrows;
	return group;
}

/* the steps in which a table's rows are carried out */
typedef enum Step
{
	STEP_DELETE,
	STEP_UPDATE,
	STEP_UPDATE_IN_ORDER,
	STEP_ABSENT,
	STEP_INSERT
} Step;

/* a row can have part in one of them, in none, or in two */
#define NSTEPS					(STEP_INSERT + 1)
#define STEP_NONE				NSTEPS
#define STEP_DELETE_AND_INSERT	(NSTEPS + 1)

static int
step_of(PyrMergeTable *table, PyrMergeRow *row)
{
	if (table->is_whole)
		return row->effect == PYR_EFFECT_NONE ? STEP_NONE :
			row->effect == PYR_EFFECT_INSERT ? STEP_INSERT :
			row->effect == PYR_EFFECT_UPDATE ? STEP_UPDATE : STEP_DELETE;
	switch (row->effect)
	{
		case PYR_EFFECT_NONE:
			/* if another row has got its key, that one will find out */
			if (find_row(table, row->key, row->hash) != NULL)
				return STEP_NONE;
			row->origin = row->key;
			return STEP_ABSENT;
		case PYR_EFFECT_INSERT:
			return STEP_INSERT;
		case PYR_EFFECT_DELETE:
			return STEP_DELETE;
		case PYR_EFFECT_REPLACE:
			/* what the row was goes with a delete of it */
			if (!row->form->is_whole || row->old_form != NULL)
				return STEP_DELETE_AND_INSERT;
			break;
		case PYR_EFFECT_UPDATE:
			break;
	}
	return row->form->sets_key || row->form->is_linked
		? STEP_UPDATE_IN_ORDER : STEP_UPDATE;
}

static inline bool
is_in_step(PyrMergeRow *row, Step step)
{
	return row->step == (int) step ||
		(row->step == STEP_DELETE_AND_INSERT &&
		 (step == STEP_DELETE || step == STEP_INSERT));
}

/*
 * The form that counts for a statement of that verb.  (In updates, what the row
 * was before goes with what is set.)
 */
static inline PyrForm *
form_in(PyrMergeRow *row, PyrVerb verb)
{
	return verb == PYR_DELETE ? row->old_form : row->form;
}

/*
 * Whether two rows can be part of one statement of that verb.
 */
static inline bool
are_alike(PyrMergeRow *a, PyrMergeRow *b, PyrVerb verb)
{
	return form_in(a, verb) == form_in(b, verb) &&
		(verb == PYR_INSERT || a->old_form == b->old_form);
}

/*
 * Makes groups of rows that follow one another and have the same form.
 */
static List *
group_runs(List *groups, PyrVerb verb, PyrMergeRow **rows, int nrows)
{
	int			begin = 0;

	for (int i = 1; i <= nrows; i++)
	{
		if (i < nrows && are_alike(rows[i], rows[begin], verb))
			continue;
		groups = lappend(groups, make_group(verb, rows + begin, i - begin));
		begin = i;
	}
	return groups;
}

/*
 * Brings rows of one form together; those of each form stay in order.
 */
static void
gather_forms(PyrMergeTable *table, PyrVerb verb, PyrMergeRow **rows, int nrows)
{
	PyrMergeRow **gathered;
	int			n = 0;
	int			i = 1;
	ListCell   *cell;

	while (i < nrows && form_in(rows[i], verb) == form_in(rows[0], verb))
		i++;
	if (i >= nrows)
		return;
	gathered = palloc_extended(nrows * sizeof(PyrMergeRow *), MCXT_ALLOC_HUGE);
	foreach(cell, table->forms)
	{
		for (i = 0; i < nrows; i++)
		{
			if (form_in(rows[i], verb) == lfirst(cell))
				gathered[n++] = rows[i];
		}
	}
	for (i = 0; i < nrows; i++)
	{
		if (form_in(rows[i], verb) == NULL)
			gathered[n++] = rows[i];
	}
	memcpy(rows, gathered, nrows * sizeof(PyrMergeRow *));
	pfree(gathered);
}

static List *
group_step(List *groups, PyrMergeTable *table, Step step, int nrows)
{
	PyrVerb		verb = step == STEP_DELETE || step == STEP_ABSENT ? PYR_DELETE :
		step == STEP_INSERT ? PYR_INSERT : PYR_UPDATE;
	ListCell   *cell;
	int			first = list_length(groups);
	PyrMergeRow **rows;
	int			n = 0;

	if (nrows == 0)
		return groups;
	rows = palloc_extended(nrows * sizeof(PyrMergeRow *), MCXT_ALLOC_HUGE);
	for (int i = 0; i < table->nrows; i++)
	{
		if (is_in_step(table->rows[i], step))
			rows[n++] = table->rows[i];
	}

	switch (step)
	{
		case STEP_UPDATE_IN_ORDER:
			qsort(rows, nrows, sizeof(PyrMergeRow *), compare_orders);
			break;
		case STEP_DELETE:
		case STEP_ABSENT:
		case STEP_UPDATE:
			sort_by_key(rows, nrows, table->nkey);
			gather_forms(table, verb, rows, nrows);
			break;
		case STEP_INSERT:
			gather_forms(table, verb, rows, nrows);
			break;
	}
	groups = group_runs(groups, verb, rows, nrows);
	for_each_from(cell, groups, first)
		((PyrMergeGroup *) lfirst(cell))->is_absent = step == STEP_ABSENT;
	return groups;
}

static PyrVerb
verb_of(PyrMergeRow *row)
{
	return row->effect == PYR_EFFECT_INSERT ? PYR_INSERT :
		row->effect == PYR_EFFECT_UPDATE ? PYR_UPDATE : PYR_DELETE;
}

/*
 * The changes as they came, in groups of those that are alike.
 */
static List *
group_changes(PyrMergeTable *table)
{
	List	   *groups = NIL;
	int			begin = 0;

	for (int i = 1; i <= table->nrows; i++)
	{
		if (i < table->nrows &&
			table->rows[i]->effect == table->rows[begin]->effect &&
			table->rows[i]->form == table->rows[begin]->form &&
			table->rows[i]->old_form == table->rows[begin]->old_form)
			continue;
		groups = lappend(groups,
						 make_group(verb_of(table->rows[begin]),
									table->rows + begin, i - begin));
		begin = i;
	}
	return groups;
}

/*
 * Whether a row gets a key that another one still has which is updated later.
 * That cannot work out; if the other one is not there, the key would take the
 * later update to the wrong row.
 */
static bool
is_entangled(PyrMerge *merge, PyrMergeTable *table, PyrMergeRow **rows,
			 int nrows)
{
	struct merge_hash *origins = NULL;

	for (int i = nrows - 1; i >= 0; i--)
	{
		RowKey		key = {rows[i]->hash, rows[i]->key};
		RowKey		origin;
		bool		found;

		if (same_key(rows[i]->key, rows[i]->origin, table->nkey))
			continue;
		if (origins == NULL)
			origins = merge_create(merge->context, 16,
								   (void *) (intptr_t) table->nkey);
		if (merge_lookup(origins, key) != NULL)
			return true;
		origin.hash = hash_key(rows[i]->origin, table->nkey);
		origin.values = rows[i]->origin;
		(void) merge_insert(origins, origin, &found);
	}
	return false;
}

/*
 * What is to be done to the table: PyrMergeGroup, to be carried out in this
 * order.  Valid until clear.  False: it cannot be done like that.
 */
bool
pyr_merge_groups(PyrMerge *merge, PyrMergeTable *table, List **result)
{
	MemoryContext oldcontext = MemoryContextSwitchTo(merge->context);
	List	   *groups = NIL;
	bool		is_possible = true;

	if (table->keeps_order)
		groups = group_changes(table);
	else
	{
		int			nrows[STEP_DELETE_AND_INSERT + 1] = {0};

		for (int i = 0; i < table->nrows; i++)
		{
			table->rows[i]->step = step_of(table, table->rows[i]);
			nrows[table->rows[i]->step]++;
		}
		nrows[STEP_DELETE] += nrows[STEP_DELETE_AND_INSERT];
		nrows[STEP_INSERT] += nrows[STEP_DELETE_AND_INSERT];
		for (int step = 0; step < NSTEPS; step++)
		{
			int			first = list_length(groups);

			groups = group_step(groups, table, step, nrows[step]);
			if (step == STEP_UPDATE_IN_ORDER && nrows[step] > 0)
				is_possible = !is_entangled(merge, table,
											((PyrMergeGroup *) list_nth(groups, first))->rows,
											nrows[step]);
		}
	}
	MemoryContextSwitchTo(oldcontext);
	*result = groups;
	return is_possible;
}
