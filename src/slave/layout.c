/*-------------------------------------------------------------------------
 *
 * layout.c
 *	  What master and slave have to know of a table to exchange its rows: the
 *	  key and the columns, by what the master says and what is here.
 *
 * The slave has to compare keys as the master sorts them, to tell what belongs
 * to a range of them.  Both describe in words how a key column is sorted
 * (py_log_order in the SQL script); if the words differ, or there are none, keys
 * cannot be compared and the table has just one range.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/arrays.h"
#include "common/values.h"
#include "executor/spi.h"
#include "parser/parse_coerce.h"
#include "slave/layout.h"
#include "slave/local.h"
#include "slave/target.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/* columns of what the master says of a table */
#define NDESCRIBED		8

/*
 * Asks the master for a description of the table: one row, or none if it has no
 * log trigger.  If rows of it are asked for in the next breath, that is an error:
 * what has the table's name by now may be anything.
 */
char *
pyr_layout_sql(const char *schema, PyrTable *table, bool is_followed)
{
	return psprintf("SELECT key, key_types, key_orders, columns, types::text[], row_filter, is_whole, is_partitioned"
					" FROM %s.py_log_describe(%s::pg_catalog.text, %s::pg_catalog.text, %s);",
					schema,
					quote_literal_cstr(NameStr(table->name.schema)),
					quote_literal_cstr(NameStr(table->name.table)),
					is_followed ? "true" : "false");
}

/*
 * The slave's table in a statement.  The master's log trigger is about its own
 * rows, not those of tables that inherit from it; but parts of a table are its
 * own.
 */
const char *
pyr_layout_relation(PyrLayout *layout)
{
	return psprintf("%s%s", layout->relkind == RELKIND_RELATION ? "ONLY " : "",
					layout->here);
}

/*
 * The master's table in a statement: its rows are its own, or in its partitions.
 */
const char *
pyr_layout_masters_relation(PyrLayout *layout)
{
	return psprintf("%s%s", layout->is_partitioned ? "" : "ONLY ",
					pyr_table_qualified(layout->table));
}

/*
 * Whose rights are to be taken on to look at the slave's table.
 */
Oid
pyr_layout_owner(PyrLayout *layout)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(layout->relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table %s was dropped on the slave", layout->here)));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Whether values are char(n) on the master, and strings of another type here: then
 * the blanks at their end go with the assignment.
 */
static bool
loses_blanks(Form_pg_attribute att, Oid type)
{
	Oid			here = getBaseType(att->atttypid);

	return type == BPCHAROID && here != BPCHAROID &&
		TypeCategory(here) == TYPCATEGORY_STRING &&
		can_coerce_type(1, &type, &here, COERCION_ASSIGNMENT);
}

/*
 * The column as SQL that the master has to evaluate, to get what the slave makes of
 * its values when they are changed; NULL: that is what they are, or the master has no
 * such type.  Values of types of users travel as text.
 */
static char *
cast_for(Form_pg_attribute att, Oid type)
{
	int32		typmod = att->atttypmod;
	Oid			here = getBaseTypeAndTypmod(att->atttypid, &typmod);
	const char *column = quote_identifier(NameStr(att->attname));

	if (loses_blanks(att, type) && here >= FirstGenbkiObjectId)
		return psprintf("CAST(%s AS pg_catalog.text)", column);
	if (here >= FirstGenbkiObjectId || (here == type && typmod < 0))
		return NULL;
	if (type >= FirstGenbkiObjectId)
		column = psprintf("CAST(%s AS pg_catalog.text)", column);
	return psprintf("CAST(%s AS %s)", column,
					format_type_extended(here, typmod,
										 FORMAT_TYPE_TYPEMOD_GIVEN |
										 FORMAT_TYPE_FORCE_QUALIFY));
}

/*
 * The same for values that are copied.  Those are cast that are when they are changed;
 * but strings would be cut off by that.
 */
static char *
cast_in_copy(Form_pg_attribute att, Oid type, char *cast)
{
	if (loses_blanks(att, type))
		return psprintf("CAST(%s AS pg_catalog.text)",
						quote_identifier(NameStr(att->attname)));
	if (getBaseType(att->atttypid) == type ||
		pyr_wire_of_type(type) == PYR_WIRE_TEXT ||
		TypeCategory(type) == TYPCATEGORY_STRING)
		return NULL;
	return cast;
}

/*
 * Appends the master's columns as they are here: to be copied, or as text to be
 * compared.
 */
void
pyr_layout_append_columns(StringInfo sql, PyrLayout *layout, bool is_compared)
{
	ListCell   *name;
	ListCell   *value;
	ListCell   *cast;
	const char *comma = "";

	forthree(name, layout->columns, value, layout->values,
			 cast, is_compared ? layout->casts : layout->copy_casts)
	{
		const char *column = quote_identifier(lfirst(name));

		if (lfirst(cast) != NULL)
			appendStringInfo(sql, "%s%s AS %s", comma, (char *) lfirst(cast),
							 column);
		else
			appendStringInfo(sql, "%s%s", comma, (char *) lfirst(value));
		comma = ", ";
	}
}

/*
 * Appends the key as a row of its columns; if they are not indexed, in a way that
 * no index is used for, of the relation known as t.
 */
static void
append_key(StringInfo sql, PyrLayout *of, bool is_indexed)
{
	appendStringInfoChar(sql, '(');
	for (int i = 0; i < of->nkey; i++)
	{
		const char *name = quote_identifier(of->key[i]);

		appendStringInfoString(sql, i > 0 ? ", " : "");
		if (is_indexed)
			appendStringInfoString(sql, name);
		else
			appendStringInfo(sql, "coalesce(t.%s, t.%s)", name, name);
	}
	appendStringInfoChar(sql, ')');
}

/*
 * Appends these constants, which have the types of the key here or on the master.
 */
static void
append_constants(StringInfo sql, PyrLayout *of, bool is_here, char **constants)
{
	appendStringInfoChar(sql, '(');
	for (int i = 0; i < of->nkey; i++)
		appendStringInfo(sql, "%s%s::%s", i > 0 ? ", " : "",
						 quote_literal_cstr(constants[i]),
						 is_here ? of->key_types_here[i] : of->key_types[i]);
	appendStringInfoChar(sql, ')');
}

/*
 * Appends that the key is greater than the constants, or less if "is_less", or
 * equal if "or_equal".  Another server is not sent rows of columns to be compared,
 * so there it is said column by column.
 */
static void
append_comparison(StringInfo sql, PyrLayout *of, bool is_here, bool is_indexed,
				  bool is_less, bool or_equal, char **constants)
{
	const char *strictly = is_less ? "<" : ">";

	if (!is_here || !of->is_foreign)
	{
		append_key(sql, of, is_indexed);
		appendStringInfo(sql, " %s%s ", strictly, or_equal ? "=" : "");
		append_constants(sql, of, is_here, constants);
		return;
	}
	for (int i = 0; i < of->nkey; i++)
	{
		char	   *column = psprintf("%s%s", is_indexed ? "" : "t.",
									  quote_identifier(of->key[i]));
		char	   *constant = psprintf("%s::%s", quote_literal_cstr(constants[i]),
										of->key_types_here[i]);

		if (i == of->nkey - 1)
			appendStringInfo(sql, "%s %s%s %s", column, strictly,
							 or_equal ? "=" : "", constant);
		else
			appendStringInfo(sql, "(%s %s %s OR %s = %s AND ", column, strictly,
							 constant, column, constant);
	}
	for (int i = 0; i < of->nkey - 1; i++)
		appendStringInfoChar(sql, ')');
}

/*
 * Appends conditions for keys in the range; NULL: it has no such end.  Of the
 * master's rows only those count that are logged; here there should not be
 * others.
 */
static void
append_range(StringInfo sql, const char *word, PyrLayout *layout, bool is_here,
			 bool is_indexed, char **after, char **upto)
{
	if (!is_here && layout->row_filter != NULL)
	{
		appendStringInfo(sql, "%s(%s)", word, layout->row_filter);
		word = " AND ";
	}
	if (after != NULL)
	{
		appendStringInfoString(sql, word);
		append_comparison(sql, layout, is_here, is_indexed, false, false, after);
		word = " AND ";
	}
	if (upto != NULL)
	{
		appendStringInfoString(sql, word);
		append_comparison(sql, layout, is_here, is_indexed, true, true, upto);
	}
}

/*
 * The range as all that is asked for.
 */
void
pyr_layout_append_range(StringInfo sql, PyrLayout *layout, bool is_here,
						char **after, char **upto)
{
	append_range(sql, " WHERE ", layout, is_here, true, after, upto);
}

/*
 * The range as one more condition for rows here, of the relation known as t, that
 * are found in some other way.
 */
void
pyr_layout_append_found(StringInfo sql, PyrLayout *layout, char **after,
						char **upto)
{
	append_range(sql, " AND ", layout, true, false, after, upto);
}

/*
 * The slave's table, or InvalidOid.
 */
Oid
pyr_layout_find(PyrTable *table)
{
	PyrPlace	place = pyr_table_place(table);
	Oid			namespace = get_namespace_oid(place.schema, true);

	return OidIsValid(namespace)
		? get_relname_relid(place.table, namespace) : InvalidOid;
}

/*
 * An errdetail, if the table has another name here.
 */
static int
detail_of_mapping(PyrTable *table)
{
	const char *words = pyr_mapping_words(NameStr(table->name.schema),
										  NameStr(table->name.table));

	return words ? errdetail("%s", words) : 0;
}

static Oid
find_relation(PyrTable *table)
{
	Oid			relid = pyr_layout_find(table);
	PyrPlace	place = pyr_table_place(table);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist on the slave",
						place.schema, place.table),
				 detail_of_mapping(table),
				 place.is_mapped
				 ? errhint("Create it here; pyreplica.copy_schema makes no tables that have another name than on the master. It will then be copied.")
				 : errhint("Create it here as the master has it (pg_dump --schema-only), or let pyreplica.copy_schema do that; it will then be copied.")));
	if (pyr_target_is_protected(get_rel_namespace(relid), relid))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the master may not change \"%s.%s\" on the slave",
						place.schema, place.table),
				 errdetail("It belongs to the slave's own server, or to pyreplica.")));
	return relid;
}

/*
 * Whether key column i sorts here as it does on the master.
 */
static bool
sorts_alike(Form_pg_attribute att, const char *order)
{
	Oid			types[2] = {OIDOID, OIDOID};
	Datum		values[2] = {
		ObjectIdGetDatum(att->atttypid), ObjectIdGetDatum(att->attcollation)
	};
	MemoryContext context = CurrentMemoryContext;
	char	   *here;

	if (order == NULL)
		return false;
	if (SPI_execute_with_args(psprintf("SELECT %s.py_log_order($1, $2)",
									   pyr_local_schema()),
							  2, types, values, NULL, true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not look up how values are sorted");
	here = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	MemoryContextSwitchTo(context); /* SPI leaves its own current */
	return here != NULL && strcmp(here, order) == 0;
}

/*
 * Whether keys may be rounded here, unlike on the master: then it cannot be told what
 * is before and what behind one of the master's.  (Strings that are too long are
 * errors.)
 */
static bool
is_rounded(Form_pg_attribute att, const char *masters_type)
{
	int32		typmod = att->atttypmod;
	Oid			type = getBaseTypeAndTypmod(att->atttypid, &typmod);
	TYPCATEGORY category = TypeCategory(type);

	return typmod >= 0 && category != TYPCATEGORY_STRING &&
		category != TYPCATEGORY_BITSTRING &&
		strcmp(format_type_with_typemod(type, typmod), masters_type) != 0;
}

static Form_pg_attribute
find_attribute(PyrTable *table, TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of the master's table \"%s.%s\" does not exist on the slave",
					name, NameStr(table->name.schema), NameStr(table->name.table)),
			 detail_of_mapping(table),
			 errhint("Add the column to the slave's table.")));
	return NULL;
}

/*
 * An array of the description; n is how many elements it must have, -1: any
 * number.
 */
static char **
split_all(const char *array_text, int *result_n, int n, bool may_be_null)
{
	int			found;
	char	  **strings = pyr_array_split(array_text, &found);
	bool		is_good = n < 0 || found == n;

	for (int i = 0; i < found; i++)
		is_good = is_good && (may_be_null || strings[i] != NULL);
	if (!is_good)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not read what the master says of a table")));
	if (result_n != NULL)
		*result_n = found;
	return strings;
}

/*
 * The column as SQL that has the same text on both sides if the value is the same,
 * and only then.  XML loses something on its way through its output function.
 */
static char *
exact_value(const char *name, Oid masters_type, Form_pg_attribute att)
{
	if (masters_type == XMLOID || getBaseType(att->atttypid) == XMLOID)
		return psprintf("%s::pg_catalog.text", quote_identifier(name));
	return pstrdup(quote_identifier(name));
}

/*
 * Compares what the master says of the table with what is here.
 */
static void
fill_layout(PyrLayout *of, char **row)
{
	Relation	rel = relation_open(of->relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	int			ncolumns;
	char	  **orders;
	char	  **columns;
	char	  **types;

	of->relkind = rel->rd_rel->relkind;
	of->is_foreign = pyr_target_is_foreign(of->relid);
	of->takes_copy = of->relkind != RELKIND_VIEW ||
		(rel->trigdesc != NULL && rel->trigdesc->trig_insert_instead_row);
	of->key = split_all(row[0], &of->nkey, -1, false);
	of->key_types = split_all(row[1], NULL, of->nkey, false);
	orders = split_all(row[2], NULL, of->nkey, true);
	columns = split_all(row[3], &ncolumns, -1, false);
	types = split_all(row[4], NULL, ncolumns, false);
	of->key_described = psprintf("%s %s %s %u", row[0] ? row[0] : "",
								 row[1] ? row[1] : "", row[2] ? row[2] : "",
								 of->relid);
	of->row_filter = row[5] != NULL ? pstrdup(row[5]) : NULL;

	of->is_whole = row[6] != NULL && strcmp(row[6], "t") == 0;
	of->is_partitioned = row[7] != NULL && strcmp(row[7], "t") == 0;

	of->is_sorted = of->nkey > 0 && !of->is_whole;
	of->key_attnums = palloc((of->nkey + 1) * sizeof(AttrNumber));
	of->key_types_here = palloc((of->nkey + 1) * sizeof(char *));
	for (int i = 0; i < of->nkey; i++)
	{
		Form_pg_attribute att = find_attribute(of->table, desc, of->key[i]);

		of->key_attnums[i] = att->attnum;
		/* without a modifier that is said to be given, char would be char(1) */
		of->key_types_here[i] = format_type_extended(att->atttypid, -1,
													 FORMAT_TYPE_TYPEMOD_GIVEN |
													 FORMAT_TYPE_FORCE_QUALIFY);
		of->is_sorted = of->is_sorted && sorts_alike(att, orders[i]) &&
			!is_rounded(att, of->key_types[i]);
	}

	of->is_binary = true;
	for (int i = 0; i < ncolumns; i++)
	{
		Form_pg_attribute att = find_attribute(of->table, desc, columns[i]);
		Oid			type = (Oid) strtoul(types[i], NULL, 10);

		if (att->attgenerated != '\0')
			continue;
		of->columns = lappend(of->columns, columns[i]);
		of->values = lappend(of->values, exact_value(columns[i], type, att));
		of->casts = lappend(of->casts, cast_for(att, type));
		of->copy_casts = lappend(of->copy_casts,
								 cast_in_copy(att, type, llast(of->casts)));
		if (att->atttypid != type || !pyr_wire_is_copied(type))
			of->is_binary = false;
	}
	relation_close(rel, NoLock);
}

static char *
join_row(char **row)
{
	StringInfoData joined;

	initStringInfo(&joined);
	for (int i = 0; i < NDESCRIBED; i++)
		appendStringInfo(&joined, "%s\n", row[i] ? row[i] : "");
	return joined.data;
}

/*
 * The table's layout, by the master's description.  Needs SPI.
 */
PyrLayout *
pyr_layout_create(PyrTable *table, char **row)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "pyreplica layout",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcontext = MemoryContextSwitchTo(context);
	PyrLayout  *layout = palloc0(sizeof(PyrLayout));

	PG_TRY();
	{
		layout->context = context;
		layout->table = table;
		layout->described = join_row(row);
		layout->here = pstrdup(pyr_table_here(table));
		layout->relid = find_relation(table);
		fill_layout(layout, row);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(oldcontext);
		MemoryContextDelete(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);
	return layout;
}

void
pyr_layout_free(PyrLayout *layout)
{
	MemoryContextDelete(layout->context);
}

/*
 * Whether the master still describes the table like that, and it is still the same
 * one here.
 */
bool
pyr_layout_is_same(PyrLayout *layout, char **row)
{
	return strcmp(join_row(row), layout->described) == 0 &&
		strcmp(pyr_table_here(layout->table), layout->here) == 0;
}
