/*-------------------------------------------------------------------------
 *
 * copy.h
 *	  Brings the rows that a table has on the master, chunk by chunk.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_COPY_H
#define PYR_COPY_H

#include "common/decode.h"
#include "slave/fetch.h"
#include "slave/layout.h"
#include "slave/tables.h"

/* what becomes of a change */
typedef enum PyrAdmission
{
	PYR_ADMIT,					/* it is to be applied */
	PYR_PASS_OVER,				/* a chunk will bring it */
	PYR_AS_INSERT,				/* the row comes from where nothing is yet */
	PYR_AS_DELETE				/* the row goes there */
} PyrAdmission;

/* what is in a range that rows are copied to */
typedef enum PyrCopyMode
{
	PYR_COPY_NEW,				/* nothing */
	PYR_COPY_RESYNC,			/* old rows, and beyond it, too */
	PYR_COPY_BESIDE,			/* the same, and rows of other tables */
	PYR_COPY_REPAIR				/* some rows that are wrong */
} PyrCopyMode;
/* hands out the next block of what COPY sent; false: there is no more */
typedef bool (*PyrCopyNext) (void *arg, const char **data, size_t *len);

extern bool pyr_copy_is_due(void);
extern void pyr_copy_forget_layouts(void);
extern PyrSupplement *pyr_copy_ask(const char *schema);
extern void pyr_copy_write(PyrLayout *layout, PyrCopyNext next, void *arg,
						   void (*between) (void));
extern void pyr_copy_range(PyrLayout *layout, PyrSupplement *supplement,
						   PyrCopyMode mode, char **after, char **upto,
						   void (*between) (void));
extern void pyr_copy_append_sql(StringInfo sql, PyrLayout *layout,
								char **after, char **upto, int64 limit);
extern char *pyr_copy_progress(void);
extern char *pyr_copy_describe(PyrTable *table);

extern void pyr_copy_lost_row(PyrTable *table);
extern PyrAdmission pyr_copy_admit(PyrTable *table, PyrChange *change,
								   int encoding, PyrChange *other);

#endif							/* PYR_COPY_H */
