/*-------------------------------------------------------------------------
 *
 * verify.h
 *	  Compares the rows of master and slave, range by range.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_VERIFY_H
#define PYR_VERIFY_H

#include "slave/fetch.h"

extern void pyr_verify_settle(void);
extern bool pyr_verify_is_due(void);
extern void pyr_verify_forget_layout(void);
extern long pyr_verify_due_ms(void);
extern PyrSupplement *pyr_verify_ask(const char *schema, int encoding);

#endif							/* PYR_VERIFY_H */
