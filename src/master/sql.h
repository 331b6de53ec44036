/*-------------------------------------------------------------------------
 *
 * sql.h
 *	  Statements that are passed on to slaves.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_SQL_H
#define PYR_SQL_H

#include "commands/trigger.h"
#include "nodes/parsenodes.h"

extern int	pyr_sql_enter(void);
extern void pyr_sql_leave(int before);
extern bool pyr_sql_makes_change(TriggerData *trigdata);
extern bool pyr_sql_is_running(void);
extern bool pyr_sql_is_older(CommandId cid);
extern void pyr_sql_check_trigger(CreateTrigStmt *stmt);

#endif							/* PYR_SQL_H */
