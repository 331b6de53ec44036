/*-------------------------------------------------------------------------
 *
 * merge.h
 *	  The net effect of changes, row by row.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_MERGE_H
#define PYR_MERGE_H

#include "common/decode.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"

/* so many statements can belong to a form */
#define PYR_FORM_STATEMENTS		7

/*
 * A set of columns that are set together.  Two rows of one form can be part of
 * one statement.
 */
typedef struct PyrForm
{
	int			ncolumns;
	int		   *columns;		/* ascending numbers, from 0 */
	int		   *slots;			/* of each of the table's columns: its place in
								 * here, or -1 */
	Bitmapset  *set;
	bool		sets_key;		/* some of them belong to the key */
	bool		is_whole;		/* together they are the whole row */
	bool		is_linked;		/* rows can take values from one another */
	List	   *unions;			/* FormUnion: results of adding others */

	/* for the user: the statements */
	void	   *statements[PYR_FORM_STATEMENTS];
} PyrForm;

/* what is to be done to a row in the end */
typedef enum PyrEffect
{
	PYR_EFFECT_NONE,
	PYR_EFFECT_INSERT,
	PYR_EFFECT_UPDATE,
	PYR_EFFECT_DELETE,
	PYR_EFFECT_REPLACE			/* delete, then insert another with that key */
} PyrEffect;

typedef struct PyrMergeRow
{
	PyrEffect	effect;
	int			step;			/* in which it is carried out */
	uint32		hash;			/* of the key */
	uint64		order;			/* of the last change */
	PyrForm    *form;			/* of the values; NULL if there are none */
	PyrValue   *values;
	PyrForm    *old_form;		/* of the next; NULL if there are none */
	PyrValue   *old;			/* what the row should be on the slave */
	PyrValue   *key;			/* as it is now */
	PyrValue   *origin;			/* as it is on the slave; NULL: not there */
	struct PyrMergeRow *equal;	/* without a key: another row that is now like
								 * this one */
} PyrMergeRow;

struct merge_hash;

/* a table whose changes are merged; kept from one piece to the next */
typedef struct PyrMergeTable
{
	MemoryContext context;
	int			ncolumns;
	int			nkey;
	int		   *key;			/* column numbers */
	Bitmapset  *whole;			/* columns that make up a row */
	Bitmapset  *linked;			/* columns whose values must be unique */
	List	   *forms;
	bool		is_whole;		/* the key is all there is; rows can be equal */
	void	   *user;			/* for the user */

	/* of the piece being merged */
	bool		is_pending;		/* there are rows */
	bool		keeps_order;	/* rows are changes, as they came */
	PyrMergeRow **rows;
	int			nrows;
	int			maxrows;
	PyrEffect	only;			/* all rows have this effect, and need not be
								 * looked up; NONE: hash tells */
	struct merge_hash *hash;
} PyrMergeTable;

/* how the changes of one shape go into a table */
typedef struct PyrMergeShape
{
	PyrMergeTable *table;
	PyrVerb		verb;			/* not a truncate */
	int			nvalues;		/* of a change */
	PyrForm    *form;			/* of what is set; NULL in a delete */
	int		   *from;			/* where in the change each column of it is */
	PyrForm    *old_form;		/* of what the row was; NULL if that is not told */
	int		   *old_from;		/* where in the change that is */
	int		   *new_key;		/* where the key is after the change; NULL: as
								 * before */
} PyrMergeShape;

/* rows that can be part of one statement */
typedef struct PyrMergeGroup
{
	PyrVerb		verb;
	bool		is_absent;		/* deletes that should find nothing */
	PyrForm    *form;			/* NULL in deletes */
	PyrForm    *old_form;		/* NULL if nothing is told of what rows were */
	PyrMergeRow **rows;
	int			nrows;
} PyrMergeGroup;

typedef struct PyrMerge PyrMerge;

extern PyrMergeTable *pyr_merge_table_create(MemoryContext context,
											 int ncolumns, int nkey,
											 const int *key,
											 Bitmapset *whole,
											 Bitmapset *linked);
extern PyrForm *pyr_merge_form(PyrMergeTable *table, Bitmapset *set);

extern PyrMerge *pyr_merge_create(MemoryContext parent);
extern bool pyr_merge_add(PyrMerge *merge, PyrMergeShape *shape,
						  const PyrValue *values, bool keeps_order);
extern size_t pyr_merge_bytes(PyrMerge *merge);
extern uint64 pyr_merge_order(PyrMerge *merge);
extern List *pyr_merge_tables(PyrMerge *merge);
extern bool pyr_merge_groups(PyrMerge *merge, PyrMergeTable *table,
							 List **groups);
extern void pyr_merge_clear(PyrMerge *merge);

#endif							/* PYR_MERGE_H */
