/*-------------------------------------------------------------------------
 *
 * textform.h
 *	  What the text of values depends on, and how it is pinned.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_TEXTFORM_H
#define PYR_TEXTFORM_H

#include "nodes/pg_list.h"

/* what the text of a type depends on; all of them depend on the rest */
#define PYR_TEXT_NAMES	0x01	/* search_path, quote_all_identifiers */
#define PYR_TEXT_MONEY	0x02	/* lc_monetary */
#define PYR_TEXT_SQL	0x04	/* it is not a value, but SQL with values in it */
#define PYR_TEXT_ALL	0x07

typedef struct PyrTextSetting
{
	const char *name;
	const char *value;
} PyrTextSetting;

/* of a session of ours, which has names qualified; ends with a NULL */
extern const PyrTextSetting pyr_text_settings[];

extern int	pyr_text_depends(Oid type, List **rowtypes);
extern int	pyr_text_pin(int depends);
extern void pyr_text_unpin(int nestlevel);

#endif							/* PYR_TEXTFORM_H */
