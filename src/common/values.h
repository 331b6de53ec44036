/*-------------------------------------------------------------------------
 *
 * values.h
 *	  Which types travel in binary, and how.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_VALUES_H
#define PYR_VALUES_H

#include "fmgr.h"

typedef enum PyrWire
{
	PYR_WIRE_TEXT,				/* output function; type 0 in the log */
	PYR_WIRE_BYTE,				/* one byte */
	PYR_WIRE_INT16,				/* two bytes, network order */
	PYR_WIRE_INT32,				/* four bytes, network order */
	PYR_WIRE_INT64,				/* eight bytes, network order */
	PYR_WIRE_FLOAT4,			/* as INT32, the bits of it */
	PYR_WIRE_FLOAT8,			/* as INT64, the bits of it */
	PYR_WIRE_UUID,				/* sixteen bytes */
	PYR_WIRE_STRING,			/* varlena contents, text in the database's
								 * encoding */
	PYR_WIRE_BYTES,				/* varlena contents, any bytes */
	PYR_WIRE_SEND				/* the type's send function */
} PyrWire;

extern PyrWire pyr_wire_of_type(Oid type);
extern bool pyr_wire_is_copied(Oid type);
extern char *pyr_wire_text(const char *data, int len, int encoding);
extern Datum pyr_wire_decode(PyrWire wire, const char *data, int len,
							 FmgrInfo *receive, Oid ioparam, int encoding);

#endif							/* PYR_VALUES_H */
