/*-------------------------------------------------------------------------
 *
 * filter.c
 *	  Which rows of a table are logged: those that meet a condition.
 *
 * The condition is SQL over the row's columns.  It is evaluated by whoever
 * writes the table, with his rights, in the middle of his statement, and by
 * the slave that copies the table.  Both must come to the same result, at any
 * time.  So it may use nothing but what depends on the row alone and is built
 * into the server: no function, operator, type or collation of users', nothing
 * whose result is not the same for ever, no sub-query.  (Publications of the
 * server have the same rule for their row filters.)
 *
 * The condition is kept as the server itself would write it down, with names
 * and constants that mean the same under all settings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/sysattr.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "common/compat.h"
#include "common/textform.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "master/filter.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_clause.h"
#include "parser/parse_collate.h"
#include "parser/parse_relation.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/ruleutils.h"

PG_FUNCTION_INFO_V1(py_log_filter);

struct PyrFilter
{
	ExprState  *condition;
	ExprContext *context;
};

/*
 * The text as a condition, which is all that it may be.
 */
static Node *
read_condition(const char *text)
{
	List	   *statements = pg_parse_query(psprintf("SELECT WHERE %s", text));

	if (list_length(statements) == 1 &&
		IsA(linitial_node(RawStmt, statements)->stmt, SelectStmt))
	{
		SelectStmt *select = (SelectStmt *) linitial_node(RawStmt, statements)->stmt;
		SelectStmt *plain = makeNode(SelectStmt);

		/* nothing but WHERE */
		plain->whereClause = select->whereClause;
		plain->limitOption = select->limitOption;
		if (plain->whereClause != NULL && equal(plain, select))
			return plain->whereClause;
	}
	ereport(ERROR,
			(errcode(ERRCODE_SYNTAX_ERROR),
			 errmsg("it is not a condition")));
	return NULL;
}

static bool
is_mutable_or_foreign(Oid function, void *context pg_attribute_unused())
{
	return function >= FirstNormalObjectId ||
		func_volatile(function) != PROVOLATILE_IMMUTABLE;
}

/*
 * Why the node must not be in a condition, apart from what functions and types
 * it uses; NULL: it may.
 */
static const char *
refuse_node(Node *node, TupleDesc desc pg_attribute_unused())
{
	ListCell   *cell;

	switch (nodeTag(node))
	{
		case T_Var:
			if (((Var *) node)->varattno < 0)
				return "System columns cannot be used.";
			if (((Var *) node)->varattno > 0 &&
				pyr_att_is_virtual(TupleDescAttr(desc, ((Var *) node)->varattno - 1)))
				return "Virtual columns cannot be used.";
			return NULL;

		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
			return ((OpExpr *) node)->opno >= FirstNormalObjectId
				? "Operators that users have made cannot be used." : NULL;

		case T_ScalarArrayOpExpr:
			return ((ScalarArrayOpExpr *) node)->opno >= FirstNormalObjectId
				? "Operators that users have made cannot be used." : NULL;

		case T_RowCompareExpr:
			foreach(cell, ((RowCompareExpr *) node)->opnos)
			{
				if (lfirst_oid(cell) >= FirstNormalObjectId)
					return "Operators that users have made cannot be used.";
			}
			return NULL;

		case T_Const:
		case T_FuncExpr:
		case T_BoolExpr:
		case T_RelabelType:
		case T_CollateExpr:
		case T_CaseExpr:
		case T_CaseTestExpr:
		case T_ArrayExpr:
		case T_RowExpr:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_NullTest:
		case T_BooleanTest:
		case T_List:
			return NULL;

		default:
			return "Only columns, constants, and built-in operators and functions that always give the same result can be used.";
	}
}

static bool
check_node(Node *node, void *context)
{
	TupleDesc	desc = context;
	const char *detail;

	if (node == NULL)
		return false;
	detail = refuse_node(node, desc);
	if (detail == NULL && check_functions_in_node(node, is_mutable_or_foreign, NULL))
		detail = "Functions that users have made, or whose result is not always the same, cannot be used.";
	if (detail == NULL && !IsA(node, List))
	{
		if (exprType(node) >= FirstNormalObjectId)
			detail = "Types that users have made cannot be used.";
		else if (exprCollation(node) >= FirstNormalObjectId ||
				 exprInputCollation(node) >= FirstNormalObjectId)
			detail = "Collations that users have made cannot be used.";
	}
	if (detail != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("it uses what a row filter must not"),
				 errdetail_internal("%s", detail)));
	return expression_tree_walker(node, check_node, context);
}

/*
 * The condition as an expression over a row of the table; anything wrong with it
 * is an error.
 */
static Node *
parse_condition(Relation rel, const char *text)
{
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *item;
	Node	   *condition;

	item = addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL,
										 false, false);
	addNSItemToQuery(pstate, item, false, true, true);
	condition = transformWhereClause(pstate, read_condition(text),
									 EXPR_KIND_TRIGGER_WHEN, "row filter");
	assign_expr_collations(pstate, condition);
	(void) check_node(condition, RelationGetDescr(rel));
	free_parsestate(pstate);
	return condition;
}

/*
 * What was found to be wrong with the condition, said in a way that tells the
 * writer of a table that the table has one, and what to do.
 */
static void
complain(Relation rel, const char *text, ErrorData *error)
{
	char	   *schema = get_namespace_name(RelationGetNamespace(rel));

	ereport(ERROR,
			(errcode(error->sqlerrcode),
			 errmsg("row filter of table \"%s.%s\" cannot be used: %s",
					schema, RelationGetRelationName(rel), error->message),
			 errdetail_internal("%s%sThe filter is: %s",
								error->detail ? error->detail : "",
								error->detail ? " " : "", text),
			 errhint("SELECT py_log_create_tg(%s, %s, row_filter => '...') sets another one; '' means all rows.",
					 quote_literal_cstr(schema),
					 quote_literal_cstr(RelationGetRelationName(rel)))));
}

/*
 * The condition ready to be evaluated; its names and constants are read and
 * written alike, whatever the session has set, and errors name the table.  If written_down is not NULL, it becomes the condition as the server
 * writes it.
 */
static Expr *
understand(Relation rel, const char *text, char **written_down)
{
	MemoryContext context = CurrentMemoryContext;
	int			nestlevel = pyr_text_pin(PYR_TEXT_ALL);
	Expr	   *volatile planned = NULL;

	PG_TRY();
	{
		Node	   *condition = parse_condition(rel, text);

		if (written_down != NULL)
			*written_down = deparse_expression(condition,
											   deparse_context_for(RelationGetRelationName(rel),
																   RelationGetRelid(rel)),
											   false, false);
		planned = expression_planner((Expr *) condition);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		complain(rel, text, error);
	}
	PG_END_TRY();
	pyr_text_unpin(nestlevel);
	return planned;
}

/*
 * A filter for the table's rows, in the current memory context.
 */
PyrFilter *
pyr_filter_create(Relation rel, const char *condition)
{
	PyrFilter  *filter = palloc(sizeof(PyrFilter));

	filter->condition = ExecInitExpr(understand(rel, condition, NULL), NULL);
	filter->context = CreateStandaloneExprContext();
	return filter;
}

/*
 * Whether the row is one of those that are logged.  A condition that is neither
 * true nor false is not met.
 */
bool
pyr_filter_admits(PyrFilter *filter, TupleTableSlot *row)
{
	Datum		result;
	bool		isnull;

	filter->context->ecxt_scantuple = row;
	result = ExecEvalExprSwitchContext(filter->condition, filter->context,
									   &isnull);
	ResetExprContext(filter->context);
	return !isnull && DatumGetBool(result);
}

/*
 * py_log_filter(regclass, text) returns text: the condition as it is kept; an
 * error if it is none that can be used.
 */
Datum
py_log_filter(PG_FUNCTION_ARGS)
{
	Relation	rel = relation_open(PG_GETARG_OID(0), AccessShareLock);
	char	   *condition = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *written_down;

	(void) understand(rel, condition, &written_down);
	relation_close(rel, AccessShareLock);
	PG_RETURN_TEXT_P(cstring_to_text(written_down));
}
