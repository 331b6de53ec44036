/*-------------------------------------------------------------------------
 *
 * values.c
 *	  Which types travel in binary, and how their values are read back.
 *
 * A type qualifies if its OID and its binary form are the same in every
 * server version that can be a master or a slave, and if the form depends
 * neither on settings nor on OIDs of other objects.  Send functions that
 * convert to the client's encoding do not qualify: capture runs in the
 * application's session.  All other types travel as text.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/values.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

/* types without a name in older pg_type.h */
#define UUID_TYPE_OID	2950
#define BOOL_ARRAY_OID	1000
#define BYTEA_ARRAY_OID	1001
#define CHAR_ARRAY_OID	1002
#define MONEY_ARRAY_OID	791
#define NUMERIC_ARRAY_OID 1231
#define DATE_ARRAY_OID	1182
#define TIME_ARRAY_OID	1183
#define TIMETZ_ARRAY_OID 1270
#define TIMESTAMP_ARRAY_OID 1115
#define TIMESTAMPTZ_ARRAY_OID 1185
#define INTERVAL_ARRAY_OID 1187
#define UUID_ARRAY_OID	2951

PyrWire
pyr_wire_of_type(Oid type)
{
	switch (type)
	{
		case BOOLOID:
		case CHAROID:
			return PYR_WIRE_BYTE;

		case INT2OID:
			return PYR_WIRE_INT16;

		case INT4OID:
		case DATEOID:
			return PYR_WIRE_INT32;

		case INT8OID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case TIMEOID:
			return PYR_WIRE_INT64;

		case FLOAT4OID:
			return PYR_WIRE_FLOAT4;
		case FLOAT8OID:
			return PYR_WIRE_FLOAT8;

		case UUID_TYPE_OID:
			return PYR_WIRE_UUID;

		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case JSONOID:

			/*
			 * XML as it is stored, with the encoding that it says it has (which
			 * nobody goes by): the output function would take that away.
			 */
		case XMLOID:
			return PYR_WIRE_STRING;

		case BYTEAOID:
			return PYR_WIRE_BYTES;

		case NUMERICOID:
		case INTERVALOID:
		case TIMETZOID:
		case CASHOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
		case MACADDR8OID:
		case BITOID:
		case VARBITOID:
		case POINTOID:
		case LSEGOID:
		case PATHOID:
		case BOXOID:
		case POLYGONOID:
		case LINEOID:
		case CIRCLEOID:
		case INT2ARRAYOID:
		case INT4ARRAYOID:
		case INT8ARRAYOID:
		case FLOAT4ARRAYOID:
		case FLOAT8ARRAYOID:
		case BOOL_ARRAY_OID:
		case BYTEA_ARRAY_OID:
		case CHAR_ARRAY_OID:
		case MONEY_ARRAY_OID:
		case NUMERIC_ARRAY_OID:
		case DATE_ARRAY_OID:
		case TIME_ARRAY_OID:
		case TIMETZ_ARRAY_OID:
		case TIMESTAMP_ARRAY_OID:
		case TIMESTAMPTZ_ARRAY_OID:
		case INTERVAL_ARRAY_OID:
		case UUID_ARRAY_OID:
			return PYR_WIRE_SEND;

		default:
			return PYR_WIRE_TEXT;
	}
}

/*
 * Whether COPY in binary takes values of that type from one server to another as
 * they are.  It converts text by itself.  XML it would take for being in the
 * encoding that it says it has.
 */
bool
pyr_wire_is_copied(Oid type)
{
	return type != XMLOID && pyr_wire_of_type(type) != PYR_WIRE_TEXT;
}

static void
check_length(int len, int wanted)
{
	if (len != wanted)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("value in replica_log has %d bytes instead of %d",
						len, wanted)));
}

/*
 * A value that came as text, in the database's encoding, and terminated.  The
 * conversion looks at all of it, also behind a zero byte that has no business in
 * there.
 */
char *
pyr_wire_text(const char *data, int len, int encoding)
{
	char	   *copy = palloc((Size) len + 1);

	memcpy(copy, data, len);
	copy[len] = '\0';
	return pg_any_to_server(copy, len, encoding);
}

/*
 * The datum that len bytes at data stand for, in the current memory context.
 * They may be unaligned.  receive and ioparam are needed for PYR_WIRE_SEND
 * alone; encoding is the master's.  Not for PYR_WIRE_TEXT, whose meaning
 * depends on the column it goes to.
 */
Datum
pyr_wire_decode(PyrWire wire, const char *data, int len,
				FmgrInfo *receive, Oid ioparam, int encoding)
{
	uint16		u16;
	uint32		u32;
	uint64		u64;

	switch (wire)
	{
		case PYR_WIRE_BYTE:
			check_length(len, 1);
			return CharGetDatum(data[0]);

		case PYR_WIRE_INT16:
			check_length(len, 2);
			memcpy(&u16, data, 2);
			return Int16GetDatum((int16) pg_ntoh16(u16));

		case PYR_WIRE_INT32:
			check_length(len, 4);
			memcpy(&u32, data, 4);
			return Int32GetDatum((int32) pg_ntoh32(u32));

		case PYR_WIRE_INT64:
			check_length(len, 8);
			memcpy(&u64, data, 8);
			return Int64GetDatum((int64) pg_ntoh64(u64));

		case PYR_WIRE_FLOAT4:
			{
				float4		f;

				check_length(len, 4);
				memcpy(&u32, data, 4);
				u32 = pg_ntoh32(u32);
				memcpy(&f, &u32, 4);
				return Float4GetDatum(f);
			}

		case PYR_WIRE_FLOAT8:
			{
				float8		f;

				check_length(len, 8);
				memcpy(&u64, data, 8);
				u64 = pg_ntoh64(u64);
				memcpy(&f, &u64, 8);
				return Float8GetDatum(f);
			}

		case PYR_WIRE_UUID:
			{
				char	   *uuid;

				check_length(len, UUID_LEN);
				uuid = palloc(UUID_LEN);
				memcpy(uuid, data, UUID_LEN);
				return PointerGetDatum(uuid);
			}

		case PYR_WIRE_STRING:
			{
				/* this also verifies that the bytes are valid text */
				char	   *text = pg_any_to_server(data, len, encoding);
				int			textlen = text == data ? len : (int) strlen(text);

				return PointerGetDatum(cstring_to_text_with_len(text, textlen));
			}

		case PYR_WIRE_BYTES:
			return PointerGetDatum(cstring_to_text_with_len(data, len));

		case PYR_WIRE_SEND:
			{
				StringInfoData buf;

				initStringInfo(&buf);
				appendBinaryStringInfo(&buf, data, len);
				return ReceiveFunctionCall(receive, &buf, ioparam, -1);
			}

		case PYR_WIRE_TEXT:
			break;
	}

	elog(ERROR, "unexpected wire form: %d", (int) wire);
	return (Datum) 0;
}
