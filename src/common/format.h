/*-------------------------------------------------------------------------
 *
 * format.h
 *	  How the changes of one transaction are written down.
 *
 * The trigger on the master and the worker on the slave share nothing but
 * this.  The changes of one transaction are one stream of bytes, cut at
 * arbitrary places into the "changes" column of its replica_log entries
 * (part 0, 1, 2 ...).  Tables, columns and values travel by name; nothing in
 * here is an OID of a user's object.
 *
 *	stream	:= header shape* change*
 *	header	:= version:byte flags:byte(0) nshapes:varint body:varint
 *	shape	:= length:varint verb:byte flags:byte [origin:string]
 *			   schema:string table:string
 *			   nkey:varint nset:varint [nold:varint] [filter:varint]
 *			   column{nkey + nset + nold}
 *	column	:= name:string type:varint
 *	change	:= shape:varint value{nkey + nset + nold}
 *	value	:= 0 (NULL) | length+1:varint bytes
 *	string	:= length:varint bytes
 *	varint	:= 7 bits a byte, least significant first, high bit: more follows
 *
 * "body" is the number of bytes that the changes take, so that a reader knows
 * where the transaction ends and notices an entry that is missing.
 *
 * A shape is what changes of the same form share: what is done to which
 * columns of which table.  It is exactly what a prepared statement needs to
 * know.  Its first nkey columns identify the row, the others are set:
 *
 *	'I'  insert: key and set columns together are the new row
 *	'U'  update: the key as it was; the columns that changed, as they are now
 *		 (if some of the key did, all of them that do not belong to the key)
 *	'D'  delete: the key
 *	'T'  truncate: no columns
 *	'S'  a statement that was passed on (py_log_sql): about no table, its names
 *		 are empty; the set columns are PYR_SQL_COLUMNS, the statement and the
 *		 settings that tell what it means
 *
 * The flag PYR_SHAPE_SHARED_KEY tells that rows can share a key for a while:
 * the master's table has no unique index on it that is checked at once.
 * Changes of such a table mean what they say only in their order.
 *
 * The flag PYR_SHAPE_OLD tells that changes say what the row was before; only
 * then there is nold.  An update has the old values of the columns that it
 * sets, the same columns in the same order; a delete those of all columns but
 * the key.  Nobody needs them to apply the change, but they tell whether the
 * row that it meets is the one that the master had.
 *
 * The flag PYR_SHAPE_FILTERED tells that only some of the table's rows or columns
 * are logged; "filter", not 0, is a number made of which ones.  When it
 * changes, the slave's rows are not those any more that changes from then on
 * are about.
 *
 * The flag PYR_SHAPE_ORIGIN tells that changes of this shape were not made here
 * first: they were replicated to here, and "origin" is the node (see node.c)
 * where they were.  So a slave's one transaction can have changes of many origins,
 * each of them knows its own, and those that were made here cost nothing.
 *
 * The flag PYR_SHAPE_WHOLE tells that the table has no key: the key columns are all
 * that is logged of a row, and several rows can be equal.  A change is about one of
 * them, whichever.
 *
 * The flag PYR_SHAPE_PARTITIONED, of a truncate, tells that the table has all of its
 * rows in partitions.
 *
 * A column's type tells how its values are written: the OID of a built-in
 * type means the bytes that values.c documents for it (binary, the same for
 * every server version); 0 means the type's text output.  All text is in the
 * encoding of the master's database.
 *
 * What a slave fetches, a window, comes in blocks, the values that
 * py_log_fetch returns.  The first is the head, all others hold entries:
 *
 *	head	:= version:int4 flags:int4 wal:int8 snapshot
 *	block	:= entry*
 *	entry	:= commitno:int8 xid:int8 at:int8 part:int4 length:int4 bytes
 *
 * Integers are in network byte order, as their types' send functions write
 * them; so SQL can make blocks as well.  "snapshot" is where the window ends,
 * as text, and "wal" is how far the master's write-ahead log was safe then.
 * "at" is a timestamptz, of the commit itself where the master keeps it
 * (track_commit_timestamp), and "bytes" are what the entry has in "changes".
 * Entries come in the order of (commitno, xid, part), and one is never divided
 * between blocks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_FORMAT_H
#define PYR_FORMAT_H

#define PYR_FORMAT_VERSION		4

#define PYR_SHAPE_SHARED_KEY	0x01
#define PYR_SHAPE_OLD			0x02
#define PYR_SHAPE_FILTERED		0x04
#define PYR_SHAPE_ORIGIN		0x10
#define PYR_SHAPE_WHOLE			0x20
#define PYR_SHAPE_PARTITIONED	0x40

/* of a window */
#define PYR_WINDOW_VERSION		1
#define PYR_WINDOW_COMPLETE		0x01	/* ends at the present, not a mark */
#define PYR_WINDOW_PREPARED		0x02	/* the master has prepared transactions;
										 * told if there is nothing else */
#define PYR_WINDOW_LEFT_OUT		0x04	/* it had entries that the slave does
										 * not want */
#define PYR_HEAD_BYTES			16	/* before the snapshot */
#define PYR_ENTRY_HEAD_BYTES	32	/* before an entry's bytes */

typedef enum PyrVerb
{
	PYR_INSERT = 'I',
	PYR_UPDATE = 'U',
	PYR_DELETE = 'D',
	PYR_TRUNCATE = 'T',
	PYR_SQL = 'S'
} PyrVerb;

/*
 * What makes up a statement that is passed on, all of it text, none of it NULL:
 * its words, the schemas where names are looked for (those that there are, as a
 * list for search_path), and the settings that constants in it are read by.
 */
#define PYR_SQL_NVALUES	6
#define PYR_SQL_COLUMNS { \
	"statement", "search_path", \
	"DateStyle", "IntervalStyle", "TimeZone", "standard_conforming_strings" \
}

/* the widest a varint can be */
#define PYR_VARINT_MAX			10

/*
 * Writes v at p and returns the place behind it; needs PYR_VARINT_MAX bytes.
 */
static inline char *
pyr_put_varint(char *p, uint64 v)
{
	while (v >= 0x80)
	{
		*p++ = (char) (v | 0x80);
		v >>= 7;
	}
	*p++ = (char) v;
	return p;
}

#endif							/* PYR_FORMAT_H */
