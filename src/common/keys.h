/*-------------------------------------------------------------------------
 *
 * keys.h
 *	  What a table's unique indexes and exclusion constraints say of its
 *	  columns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_KEYS_H
#define PYR_KEYS_H

#include "nodes/bitmapset.h"
#include "utils/rel.h"

extern Bitmapset *pyr_unique_columns(Relation rel);
extern bool pyr_key_is_unique(Relation rel, const AttrNumber *key, int nkey,
							  bool immediately);
extern bool pyr_has_exclusion(Relation rel);
extern bool pyr_has_deferrable(Relation rel);

#endif							/* PYR_KEYS_H */
