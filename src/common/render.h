/*-------------------------------------------------------------------------
 *
 * render.h
 *	  A change as the SQL it stands for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_RENDER_H
#define PYR_RENDER_H

#include "common/decode.h"
#include "lib/stringinfo.h"

extern void pyr_render_change(StringInfo out, PyrChange *change, int encoding);
extern char *pyr_sql_value(PyrChange *change, int i, int encoding);
extern char *pyr_sql_words(PyrChange *change, int encoding);
extern void pyr_render_key(StringInfo out, PyrChange *change, int encoding);

#endif							/* PYR_RENDER_H */
