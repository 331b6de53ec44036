/*-------------------------------------------------------------------------
 *
 * sequences.h
 *	  Sequences follow the master's.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_SEQUENCES_H
#define PYR_SEQUENCES_H

#include "slave/fetch.h"

extern void pyr_sequences_note_work(void);
extern bool pyr_sequences_is_due(void);
extern long pyr_sequences_due_ms(void);
extern PyrSupplement *pyr_sequences_ask(const char *schema);
extern void pyr_sequences_settle(void);

#endif							/* PYR_SEQUENCES_H */
