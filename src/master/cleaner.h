/*-------------------------------------------------------------------------
 *
 * cleaner.h
 *	  Keeps the log small while no slave does.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_CLEANER_H
#define PYR_CLEANER_H

#include "storage/block.h"
#include "utils/relcache.h"

extern void pyr_cleaner_notice(Relation inner_table, BlockNumber before);
extern PGDLLEXPORT void pyr_cleaner_main(Datum arg);

#endif							/* PYR_CLEANER_H */
