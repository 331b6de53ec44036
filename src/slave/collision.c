/*-------------------------------------------------------------------------
 *
 * collision.c
 *	  Rows that are in the way of others: those that hold what a unique index
 *	  or an exclusion constraint lets only one row hold.
 *
 * While a table is being made equal to the master's, a row that is still as it
 * was can hold a value that another row has by now.  Whoever writes the latter
 * has the former deleted first, if it is one of which the true content will
 * come.  Which rows these are, the index tells: those that agree with the new
 * row in what is indexed.
 *
 * Not looked at are indexes of which a column is not known (it is computed here,
 * or only here), and those that are checked at the end of a transaction, which
 * they are not in a replica.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/sysattr.h"
#include "catalog/pg_class.h"
#include "common/compat.h"
#include "lib/stringinfo.h"
#include "optimizer/optimizer.h"
#include "slave/collision.h"
#include "slave/statement.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/ruleutils.h"

/* what the table and the rows to come are called in the statement */
#define TABLE_ALIAS			"t"
#define NEWCOMERS_ALIAS		"n"

/*
 * Whether an error says that a row is in the way of another.
 */
bool
pyr_is_collision(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_UNIQUE_VIOLATION ||
		sqlerrcode == ERRCODE_EXCLUSION_VIOLATION;
}

/*
 * Whether two rows with different keys can have all of these columns alike, which
 * are known of the rows to come.
 */
static bool
is_of_interest(Relation index, const PyrNewcomers *newcomers)
{
	Form_pg_index form = index->rd_index;
	Bitmapset  *used = NULL;
	Bitmapset  *plain = NULL;
	int			number = -1;

	if ((!form->indisunique && !form->indisexclusion) || !form->indimmediate)
		return false;
	for (int i = 0; i < form->indnkeyatts; i++)
	{
		if (form->indkey.values[i] != 0)
			plain = bms_add_member(plain, form->indkey.values[i]);
	}
	if (!bms_is_subset(plain, newcomers->known) ||
		(!form->indisexclusion && newcomers->key != NULL &&
		 bms_is_subset(newcomers->key, plain)))
		return false;

	pull_varattnos((Node *) RelationGetIndexExpressions(index), 1, &used);
	pull_varattnos((Node *) RelationGetIndexPredicate(index), 1, &used);
	while ((number = bms_next_member(used, number)) >= 0)
	{
		AttrNumber	attnum = number + FirstLowInvalidHeapAttributeNumber;

		if (attnum <= 0 || !bms_is_member(attnum, newcomers->known))
			return false;
	}
	return true;
}

/*
 * The operators by which rows agree in the index's columns; NULL: it has others
 * than we know of.
 */
static Oid *
operators_of(Relation index)
{
	int			n = index->rd_index->indnkeyatts;
	Oid		   *operators;
	Oid		   *procs;
	uint16	   *strategies;

	if (index->rd_index->indisexclusion)
	{
		RelationGetExclusionInfo(index, &operators, &procs, &strategies);
		return operators;
	}
	operators = palloc(n * sizeof(Oid));
	for (int i = 0; i < n; i++)
	{
		operators[i] = get_opfamily_member(index->rd_opfamily[i],
										   index->rd_opcintype[i],
										   index->rd_opcintype[i],
										   BTEqualStrategyNumber);
		if (!OidIsValid(operators[i]))
			return NULL;
	}
	return operators;
}

/*
 * What the index looks at in each of its columns, as SQL.
 */
static char **
indexed_values(Relation rel, Relation index, const char *alias)
{
	Form_pg_index form = index->rd_index;
	List	   *context = deparse_context_for(alias, RelationGetRelid(rel));
	List	   *expressions = RelationGetIndexExpressions(index);
	ListCell   *expression = list_head(expressions);
	char	  **values = palloc(form->indnkeyatts * sizeof(char *));

	for (int i = 0; i < form->indnkeyatts; i++)
	{
		AttrNumber	attnum = form->indkey.values[i];

		if (attnum != 0)
		{
			values[i] = psprintf("%s.%s", alias,
								 quote_identifier(get_attname(RelationGetRelid(rel), attnum, false)));
			continue;
		}
		values[i] = psprintf("(%s)", deparse_expression(lfirst(expression),
														context, true, false));
		expression = lnext(expressions, expression);
	}
	return values;
}

static void
append_predicate(StringInfo sql, Relation rel, Relation index,
				 const char *alias)
{
	List	   *context = deparse_context_for(alias, RelationGetRelid(rel));
	ListCell   *cell;

	foreach(cell, RelationGetIndexPredicate(index))
		appendStringInfo(sql, " AND (%s)",
						 deparse_expression(lfirst(cell), context, true, false));
}

/*
 * When the index would take the two rows for one, as SQL; NULL: never, or nobody
 * can tell.
 */
static char *
collision_condition(Relation rel, Relation index,
					const PyrNewcomers *newcomers)
{
	StringInfoData sql;
	Oid		   *operators;
	char	  **here;
	char	  **there;

	if (!is_of_interest(index, newcomers) ||
		(operators = operators_of(index)) == NULL)
		return NULL;
	here = indexed_values(rel, index, TABLE_ALIAS);
	there = indexed_values(rel, index, NEWCOMERS_ALIAS);

	initStringInfo(&sql);
	for (int i = 0; i < index->rd_index->indnkeyatts; i++)
	{
		Oid			collation = index->rd_indcollation[i];
		char	   *condition;

		condition = psprintf("%s %s %s%s%s", here[i],
							 pyr_statement_operator(operators[i]), there[i],
							 OidIsValid(collation) ? " COLLATE " : "",
							 OidIsValid(collation) ? generate_collation_name(collation) : "");
		if (pyr_index_nulls_equal(index->rd_index))
			condition = psprintf("(%s OR (%s IS NULL AND %s IS NULL))",
								 condition, here[i], there[i]);
		appendStringInfo(&sql, "%s%s", i > 0 ? " AND " : "", condition);
	}
	append_predicate(&sql, rel, index, TABLE_ALIAS);
	append_predicate(&sql, rel, index, NEWCOMERS_ALIAS);
	return sql.data;
}

/*
 * Deletes the table's rows that are in the way of those to come, as far as they
 * meet a condition (" AND ..."), where the table is called t, and the rows to come
 * n.  They are found by the index they collide in, so the condition should not
 * lead to another one.  Returns how many these were.
 */
uint64
pyr_collision_clear(Relation rel, const PyrNewcomers *newcomers,
					const char *where)
{
	List	   *indexes = RelationGetIndexList(rel);
	char	   *relation = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
													  RelationGetRelationName(rel));
	uint64		cleared = 0;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);
		char	   *condition = collision_condition(rel, index, newcomers);

		index_close(index, AccessShareLock);
		if (condition == NULL)
			continue;
		cleared += pyr_statement_by_key(RelationGetRelid(rel),
										psprintf("DELETE FROM %s%s AS " TABLE_ALIAS
												 " USING (%s) AS " NEWCOMERS_ALIAS
												 " WHERE %s%s",
												 rel->rd_rel->relkind == RELKIND_RELATION ? "ONLY " : "",
												 relation, newcomers->query,
												 condition, where),
										newcomers->nparams, newcomers->types,
										newcomers->values, newcomers->nulls);
	}
	list_free(indexes);
	return cleared;
}
