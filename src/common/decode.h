/*-------------------------------------------------------------------------
 *
 * decode.h
 *	  A transaction's bytes back into changes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_DECODE_H
#define PYR_DECODE_H

#include "common/format.h"

typedef struct PyrShapeColumn
{
	char	   *name;
	Oid			type;			/* 0: the value is text */
} PyrShapeColumn;

/* what changes of one form share; lives as long as its decoder */
typedef struct PyrShape
{
	const char *bytes;			/* as written; tells shapes apart */
	int			len;
	PyrVerb		verb;
	bool		has_shared_key; /* rows can share a key for a while */
	bool		is_whole;		/* the key is the whole row; rows can be equal */
	bool		is_partitioned; /* on the master, it has no rows of its own */
	uint32		filter;			/* which rows and columns are logged; 0: all */
	const char *origin;			/* node where its changes were first made; NULL:
								 * on the master itself.  Of one decoder, equal
								 * ones are the same pointer. */
	char	   *schema;
	char	   *table;
	int			nkey;
	int			nset;
	int			nold;			/* 0: old values are not known */
	PyrShapeColumn *columns;	/* nkey + nset + nold of them */
	const char *strange;		/* one of the names above that has characters
								 * which do not exist here, and are question marks;
								 * NULL: all names are as they are there */

	/* for the users of the shape; NULL at first */
	void	   *user;			/* where its changes go */
	void	   *followed;		/* what is known of its table */
	void	   *derived;		/* what else a change of it can be */
	char	   *key_names;		/* the key's columns, as an array */
} PyrShape;

/* bytes of a value; len < 0: NULL */
typedef struct PyrValue
{
	const char *data;
	int			len;
} PyrValue;

typedef struct PyrChange
{
	PyrShape   *shape;
	PyrValue   *values;			/* nkey + nset + nold of them */
} PyrChange;

/*
 * Gives the next piece of the transaction's bytes; false: there is none.  The
 * piece must stay where it is until the next call.
 */
typedef bool (*PyrSource) (void *arg, const char **data, size_t *len);

typedef struct PyrDecoder PyrDecoder;

extern PyrDecoder *pyr_decoder_create(MemoryContext parent, int encoding);
extern void pyr_decoder_begin(PyrDecoder *decoder, PyrSource source, void *arg);
extern bool pyr_decoder_next(PyrDecoder *decoder, PyrChange *change);
extern long pyr_decoder_shapes(PyrDecoder *decoder);
extern void pyr_decoder_free(PyrDecoder *decoder);

#endif							/* PYR_DECODE_H */
