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

extern PyrStatement *pyr_statement_get(PyrTarget *target, PyrVerb verb,
									   PyrForm *form);
extern uint64 pyr_statement_change(PyrStatement *statement,
								   const PyrValue *key, const PyrValue *values,
								   const int *from, int encoding);
extern uint64 pyr_statement_rows(PyrStatement *statement, PyrMergeRow **rows,
								 int nrows, int encoding,
								 void (*between) (void));
extern void pyr_statement_text(Oid owner, const char *text);
extern uint64 pyr_statement_by_key(Oid relid, const char *text, int nparams,
								   Oid *types, Datum *values,
								   const char *nulls);
extern const char *pyr_statement_operator(Oid oid);
extern void pyr_statement_free(PyrStatement *statement);

#endif							/* PYR_STATEMENT_H */
