/*-------------------------------------------------------------------------
 *
 * decode.c
 *	  A transaction's bytes back into changes.
 *
 * The bytes come in pieces that end anywhere.  A change that lies within one
 * piece is handed out in place; one that does not is put together first.
 * Shapes are kept across transactions, so that the same form of change is the
 * same PyrShape each time and its user can hang a prepared plan on it.
 *
 * No I/O, no catalog access: anything that is wrong with the bytes is an
 * error with SQLSTATE "data corrupted".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "common/decode.h"
#include "common/encoding.h"
#include "common/hashfn.h"
#include "common/node.h"
#include "mb/pg_wchar.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

/* a larger buffer is not kept for the next transaction */
#define OWN_BYTES_KEPT	(1024 * 1024)

struct PyrDecoder
{
	MemoryContext context;
	int			encoding;		/* of the master's database */
	HTAB	   *known;			/* KnownShape, by bytes */
	List	   *origins;		/* nodes, as char * */

	/* the running transaction */
	PyrSource	source;
	void	   *source_arg;
	PyrShape  **shapes;
	uint64		nshapes;
	uint64		maxshapes;
	uint64		body_left;		/* bytes of changes still to come */

	/* bytes at hand: a piece of the source, or our own buffer */
	const char *data;
	size_t		len;
	char	   *own;
	size_t		own_allocated;

	PyrValue   *values;
	int			maxvalues;
};

typedef struct ShapeBytes
{
	const char *bytes;
	int			len;
} ShapeBytes;

typedef struct KnownShape
{
	ShapeBytes	key;
	PyrShape   *shape;
} KnownShape;

/* reads within the bytes at hand; "short" tells that they do not suffice */
typedef struct Cursor
{
	const char *p;
	const char *end;
	size_t		wanted;			/* if > 0: so many bytes in all are needed */
	const char *start;
} Cursor;

static pg_noinline void
corrupt(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("could not read changes in replica_log: %s", detail),
			 errhint("The master may run a newer version of pyreplica; otherwise the entry is damaged.")));
}

static uint32
hash_shape_bytes(const void *key, Size keysize pg_attribute_unused())
{
	const ShapeBytes *bytes = key;

	return hash_bytes((const unsigned char *) bytes->bytes, bytes->len);
}

static int
match_shape_bytes(const void *a, const void *b,
				  Size keysize pg_attribute_unused())
{
	const ShapeBytes *left = a;
	const ShapeBytes *right = b;

	return left->len != right->len ||
		memcmp(left->bytes, right->bytes, left->len) != 0;
}

PyrDecoder *
pyr_decoder_create(MemoryContext parent, int encoding)
{
	MemoryContext context;
	PyrDecoder *decoder;
	HASHCTL		ctl = {0};

	context = AllocSetContextCreate(parent, "pyreplica decoder",
									ALLOCSET_DEFAULT_SIZES);
	decoder = MemoryContextAllocZero(context, sizeof(PyrDecoder));
	decoder->context = context;
	decoder->encoding = encoding;

	ctl.keysize = sizeof(ShapeBytes);
	ctl.entrysize = sizeof(KnownShape);
	ctl.hash = hash_shape_bytes;
	ctl.match = match_shape_bytes;
	ctl.hcxt = context;
	decoder->known = hash_create("pyreplica known shapes", 64, &ctl,
								 HASH_ELEM | HASH_FUNCTION | HASH_COMPARE |
								 HASH_CONTEXT);
	return decoder;
}

/*
 * How many shapes it remembers.
 */
long
pyr_decoder_shapes(PyrDecoder *decoder)
{
	return hash_get_num_entries(decoder->known);
}

void
pyr_decoder_free(PyrDecoder *decoder)
{
	MemoryContextDelete(decoder->context);
}

/*
 * Adds the source's next piece to the bytes at hand, which therefore move to
 * our own buffer.  wanted is how many there should be in the end.
 */
static void
fetch_more(PyrDecoder *decoder, size_t wanted)
{
	const char *piece;
	size_t		piece_len;

	/* what we have must survive the call of the source */
	if (decoder->len > 0 && decoder->data != decoder->own)
	{
		if (decoder->own_allocated < decoder->len)
		{
			if (decoder->own)
				pfree(decoder->own);
			decoder->own_allocated = Max(decoder->len * 2, 32 * 1024);
			decoder->own = MemoryContextAllocHuge(decoder->context,
												  decoder->own_allocated);
		}
		memmove(decoder->own, decoder->data, decoder->len);
		decoder->data = decoder->own;
	}

	do
	{
		if (!decoder->source(decoder->source_arg, &piece, &piece_len))
			corrupt("the transaction ends too early");

		if (decoder->len == 0)
		{
			decoder->data = piece;
			decoder->len = piece_len;
			continue;
		}

		if (decoder->len + piece_len > decoder->own_allocated)
		{
			decoder->own_allocated = Max((decoder->len + piece_len) * 2,
										 Min(wanted, MaxAllocSize));
			decoder->own = repalloc_huge(decoder->own, decoder->own_allocated);
			decoder->data = decoder->own;
		}
		memcpy(decoder->own + decoder->len, piece, piece_len);
		decoder->len += piece_len;
	} while (decoder->len > 0 && decoder->data == decoder->own &&
			 decoder->len < wanted);
}

static inline Cursor
begin_read(PyrDecoder *decoder)
{
	return (Cursor) {
		decoder->data, decoder->data + decoder->len, 0, decoder->data
	};
}

static inline void
end_read(PyrDecoder *decoder, Cursor *cursor)
{
	decoder->data = cursor->p;
	decoder->len = cursor->end - cursor->p;
}

static bool
read_varint(Cursor *cursor, uint64 *v)
{
	int			shift = 0;

	*v = 0;
	for (;;)
	{
		uint8		byte;

		if (cursor->p >= cursor->end)
		{
			cursor->wanted = cursor->end - cursor->start + 1;
			return false;
		}
		byte = (uint8) *cursor->p++;
		*v |= (uint64) (byte & 0x7f) << shift;
		if (byte < 0x80)
			return true;
		shift += 7;
		if (shift > 63)
			corrupt("a number is too long");
	}
}

static bool
read_bytes(Cursor *cursor, uint64 len, const char **bytes)
{
	if (len > MaxAllocSize)
		corrupt("a value is too long");
	if (len > (uint64) (cursor->end - cursor->p))
	{
		cursor->wanted = (cursor->p - cursor->start) + len;
		return false;
	}
	*bytes = cursor->p;
	cursor->p += len;
	return true;
}

/*
 * A name, in our encoding and the decoder's memory; within a complete shape.
 * One that does not exist here is no error yet: who reads the change may not want
 * it.
 */
static char *
read_name(PyrDecoder *decoder, Cursor *cursor, const char **strange)
{
	uint64		len;
	const char *bytes;
	char	   *converted;
	char	   *name;
	bool		is_exact;

	if (!read_varint(cursor, &len) || !read_bytes(cursor, len, &bytes))
		corrupt("a name is cut off");

	converted = pyr_encoding_show(bytes, len, decoder->encoding, &is_exact);
	name = MemoryContextStrdup(decoder->context, converted);
	pfree(converted);
	if (!is_exact)
		*strange = name;
	return name;
}

/*
 * The name of a node; always the same pointer for the same name.
 */
static const char *
read_origin(PyrDecoder *decoder, Cursor *cursor)
{
	const char *strange = NULL;
	char	   *origin = read_name(decoder, cursor, &strange);
	MemoryContext oldcontext;
	ListCell   *cell;

	/* it may go into the log here, which counts on that */
	if (origin[0] == '\0' || strlen(origin) >= PYR_NODE_BYTES || strange != NULL)
		corrupt("impossible name of a node");
	foreach(cell, decoder->origins)
	{
		if (strcmp(lfirst(cell), origin) == 0)
		{
			pfree(origin);
			return lfirst(cell);
		}
	}
	oldcontext = MemoryContextSwitchTo(decoder->context);
	decoder->origins = lappend(decoder->origins, origin);
	MemoryContextSwitchTo(oldcontext);
	return origin;
}

/*
 * Whether a shape that says so is that of statements.
 */
static bool
is_statement(PyrShape *shape)
{
	static const char *const names[] = PYR_SQL_COLUMNS;

	if (shape->nset != PYR_SQL_NVALUES)
		return false;
	for (int i = 0; i < PYR_SQL_NVALUES; i++)
	{
		if (strcmp(shape->columns[i].name, names[i]) != 0 ||
			shape->columns[i].type != InvalidOid)
			return false;
	}
	return true;
}

/*
 * A shape seen for the first time.
 */
static PyrShape *
parse_shape(PyrDecoder *decoder, const char *bytes, int len)
{
	Cursor		cursor = {bytes, bytes + len, 0, bytes};
	PyrShape   *shape = MemoryContextAllocZero(decoder->context,
											   sizeof(PyrShape));
	const char *fixed;			/* verb and flags */
	uint64		nkey = 0;
	uint64		nset = 0;
	uint64		nold = 0;
	uint64		filter = 0;
	uint64		ncolumns;

	if (!read_bytes(&cursor, 2, &fixed))
		corrupt("an empty shape");
	shape->verb = (PyrVerb) fixed[0];
	if (strchr("IUDTS", fixed[0]) == NULL || fixed[0] == '\0')
		corrupt("unknown operation");
	if ((fixed[1] & ~(PYR_SHAPE_SHARED_KEY | PYR_SHAPE_OLD |
					  PYR_SHAPE_FILTERED | PYR_SHAPE_ORIGIN |
					  PYR_SHAPE_WHOLE | PYR_SHAPE_PARTITIONED)) != 0)
		corrupt("unknown flags");
	shape->has_shared_key = (fixed[1] & PYR_SHAPE_SHARED_KEY) != 0;
	shape->is_whole = (fixed[1] & PYR_SHAPE_WHOLE) != 0;
	shape->is_partitioned = (fixed[1] & PYR_SHAPE_PARTITIONED) != 0;
	if ((fixed[1] & PYR_SHAPE_ORIGIN) != 0)
		shape->origin = read_origin(decoder, &cursor);
	shape->schema = read_name(decoder, &cursor, &shape->strange);
	shape->table = read_name(decoder, &cursor, &shape->strange);
	if (!read_varint(&cursor, &nkey) || !read_varint(&cursor, &nset) ||
		((fixed[1] & PYR_SHAPE_OLD) != 0 && !read_varint(&cursor, &nold)) ||
		nkey > MaxTupleAttributeNumber || nset > MaxTupleAttributeNumber ||
		nold > MaxTupleAttributeNumber)
		corrupt("impossible number of columns");
	if ((nkey == 0) != (shape->verb == PYR_TRUNCATE || shape->verb == PYR_SQL) ||
		(nset > 0 && shape->verb != PYR_INSERT && shape->verb != PYR_UPDATE &&
		 shape->verb != PYR_SQL) ||
		(nold > 0 && shape->verb != PYR_DELETE &&
		 (shape->verb != PYR_UPDATE || nold != nset)))
		corrupt("columns that the operation cannot have");
	if ((fixed[1] & PYR_SHAPE_FILTERED) != 0 &&
		(!read_varint(&cursor, &filter) || filter == 0 || filter > PG_UINT32_MAX))
		corrupt("a filter has no number");
	shape->filter = (uint32) filter;
	shape->nkey = nkey;
	shape->nset = nset;
	shape->nold = nold;
	ncolumns = nkey + nset + nold;
	shape->columns = MemoryContextAllocZero(decoder->context,
											(ncolumns + 1) * sizeof(PyrShapeColumn));
	for (uint64 i = 0; i < ncolumns; i++)
	{
		uint64		type;

		shape->columns[i].name = read_name(decoder, &cursor, &shape->strange);
		if (!read_varint(&cursor, &type) || type > PG_UINT32_MAX)
			corrupt("a column has no type");
		shape->columns[i].type = (Oid) type;
	}
	if (cursor.p != cursor.end)
		corrupt("a shape is longer than its columns");
	if (shape->verb == PYR_SQL && !is_statement(shape))
		corrupt("a statement is not what it must be");

	shape->bytes = memcpy(MemoryContextAlloc(decoder->context, len),
						  bytes, len);
	shape->len = len;
	return shape;
}

static PyrShape *
find_shape(PyrDecoder *decoder, const char *bytes, int len)
{
	ShapeBytes	key = {bytes, len};
	KnownShape *known;
	PyrShape   *shape;
	bool		found;

	known = hash_search(decoder->known, &key, HASH_FIND, NULL);
	if (known != NULL)
		return known->shape;

	shape = parse_shape(decoder, bytes, len);
	key.bytes = shape->bytes;
	known = hash_search(decoder->known, &key, HASH_ENTER, &found);
	known->shape = shape;
	return shape;
}

/*
 * Reads version, flags, number of shapes and length of the body.
 */
static void
read_header(PyrDecoder *decoder)
{
	const char *fixed;

	for (;;)
	{
		Cursor		cursor = begin_read(decoder);

		if (read_bytes(&cursor, 2, &fixed) &&
			read_varint(&cursor, &decoder->nshapes) &&
			read_varint(&cursor, &decoder->body_left))
		{
			if (fixed[0] != PYR_FORMAT_VERSION || fixed[1] != 0)
				corrupt("unknown format");
			end_read(decoder, &cursor);
			return;
		}
		fetch_more(decoder, cursor.wanted);
	}
}

static PyrShape *
read_shape(PyrDecoder *decoder)
{
	for (;;)
	{
		Cursor		cursor = begin_read(decoder);
		uint64		len;
		const char *bytes;

		if (read_varint(&cursor, &len) && read_bytes(&cursor, len, &bytes))
		{
			PyrShape   *shape = find_shape(decoder, bytes, len);

			end_read(decoder, &cursor);
			return shape;
		}
		fetch_more(decoder, cursor.wanted);
	}
}

/*
 * Begins a transaction: reads its header and shapes.
 */
void
pyr_decoder_begin(PyrDecoder *decoder, PyrSource source, void *arg)
{
	decoder->source = source;
	decoder->source_arg = arg;
	decoder->data = NULL;
	decoder->len = 0;
	if (decoder->own_allocated > OWN_BYTES_KEPT)
	{
		/* a huge value of an earlier transaction */
		pfree(decoder->own);
		decoder->own = NULL;
		decoder->own_allocated = 0;
	}

	read_header(decoder);
	if (decoder->nshapes > MaxAllocSize / sizeof(PyrShape *))
		corrupt("impossible number of shapes");
	if (decoder->nshapes > decoder->maxshapes)
	{
		if (decoder->shapes)
			pfree(decoder->shapes);
		decoder->maxshapes = decoder->nshapes * 2;
		decoder->shapes = MemoryContextAllocHuge(decoder->context,
												 decoder->maxshapes * sizeof(PyrShape *));
	}
	for (uint64 i = 0; i < decoder->nshapes; i++)
		decoder->shapes[i] = read_shape(decoder);
}

static bool
parse_change(PyrDecoder *decoder, Cursor *cursor, PyrChange *change)
{
	uint64		number;
	int			nvalues;

	if (!read_varint(cursor, &number))
		return false;
	if (number >= decoder->nshapes)
		corrupt("a change has an unknown shape");
	change->shape = decoder->shapes[number];
	nvalues = change->shape->nkey + change->shape->nset + change->shape->nold;

	if (nvalues > decoder->maxvalues)
	{
		if (decoder->values)
			pfree(decoder->values);
		decoder->maxvalues = nvalues;
		decoder->values = MemoryContextAlloc(decoder->context,
											 nvalues * sizeof(PyrValue));
	}
	change->values = decoder->values;

	for (int i = 0; i < nvalues; i++)
	{
		uint64		len;

		if (!read_varint(cursor, &len))
			return false;
		if (len == 0)
		{
			change->values[i].data = NULL;
			change->values[i].len = -1;
			continue;
		}
		if (!read_bytes(cursor, len - 1, &change->values[i].data))
			return false;
		change->values[i].len = (int) (len - 1);
	}
	return true;
}

/*
 * The next change; false: the transaction has no more.  What the change
 * points at stays until the next call.
 */
bool
pyr_decoder_next(PyrDecoder *decoder, PyrChange *change)
{
	if (decoder->body_left == 0)
	{
		const char *piece;
		size_t		len;

		if (decoder->len > 0 ||
			decoder->source(decoder->source_arg, &piece, &len))
			corrupt("the transaction is longer than it says");
		return false;
	}

	for (;;)
	{
		Cursor		cursor = begin_read(decoder);

		if (parse_change(decoder, &cursor, change))
		{
			size_t		used = cursor.p - cursor.start;

			if (used > decoder->body_left)
				corrupt("a change is longer than its transaction");
			decoder->body_left -= used;
			end_read(decoder, &cursor);
			return true;
		}
		fetch_more(decoder, cursor.wanted);
	}
}
