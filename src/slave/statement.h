/*-------------------------------------------------------------------------
 *
 * statement.h
 *	  The statements that change a target's rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_STATEMENT_H
#define PYR_STATEMENT_H

#include "slave/merge.h"
#include "slave/target.h"

typedef struct PyrStatement PyrStatement;

/* what a statement does if the row is not the one that the master had */
typedef enum PyrManner
{
	PYR_EXPECT,					/* update, delete: nothing; insert: an error */
	PYR_TRY,					/* nothing */
	PYR_FORCE					/* update, delete: what it says */
} PyrManner;

/* a change of one row, and what the row was before, if that is told */
typedef struct PyrRowChange
{
	PyrTarget  *target;
	PyrVerb		verb;
	PyrForm    *form;			/* NULL in deletes */
	PyrForm    *old_form;		/* NULL: it is not told */
	const PyrValue *key;		/* as it was; not in inserts */
	const PyrValue *values;		/* in the form's order, or where "from" says */
	const int  *from;			/* or NULL */
	const PyrValue *old;		/* in the same manner */
	const int  *old_from;
} PyrRowChange;

extern PyrStatement *pyr_statement_get(PyrTarget *target, PyrVerb verb,
									   PyrForm *form, PyrForm *old_form,
									   PyrManner manner);
extern PyrStatement *pyr_statement_vacate(PyrTarget *target, PyrForm *form);
extern PyrStatement *pyr_statement_unite(PyrTarget *target);
extern PyrStatement *pyr_statement_query(PyrTarget *target, PyrVerb verb,
										 PyrForm *form, PyrForm *old_form,
										 const char *text);
extern uint64 pyr_statement_change(PyrStatement *statement,
								   const PyrRowChange *change, int encoding);
extern bool pyr_statement_rows(PyrStatement *statement, PyrMergeRow **rows,
							   int nrows, int touches, int encoding,
							   void (*between) (void));
extern char *pyr_statement_table(PyrTarget *target);
extern char *pyr_statement_key(PyrTarget *target, const int *numbers);
extern char *pyr_statement_value(PyrTarget *target, int column, int number);
extern char *pyr_statement_same(PyrTarget *target, PyrForm *old_form,
								int number);
extern char *pyr_statement_order(PyrTarget *target, int number);
extern void pyr_statement_text(Oid owner, const char *text);
extern uint64 pyr_statement_by_key(Oid relid, const char *text, int nparams,
								   Oid *types, Datum *values,
								   const char *nulls);
extern const char *pyr_statement_operator(Oid oid);
extern void pyr_statement_free(PyrStatement *statement);

#endif							/* PYR_STATEMENT_H */
