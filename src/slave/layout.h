/*-------------------------------------------------------------------------
 *
 * layout.h
 *	  What master and slave have to know of a table to exchange its rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_LAYOUT_H
#define PYR_LAYOUT_H

#include "access/attnum.h"
#include "lib/stringinfo.h"
#include "slave/tables.h"

typedef struct PyrLayout
{
	MemoryContext context;
	PyrTable   *table;
	char	   *described;		/* what the master said of it */
	const char *here;			/* its name here, for statements */
	Oid			relid;
	char		relkind;
	int			nkey;
	char	  **key;
	char	  **key_types;		/* on the master */
	char	  **key_types_here;
	AttrNumber *key_attnums;	/* here */
	List	   *columns;		/* names, of those that have values on both sides
								 * and are not computed here */
	List	   *values;			/* of each of them: what is to be selected, on
								 * either side, so that its text is exact */
	List	   *casts;			/* of these, what the master has to make of them to
								 * get what is here, as SQL; NULL: nothing */
	List	   *copy_casts;		/* the same, for them to be copied */
	char	   *key_described;	/* the key's columns, their types on the master, and
								 * how they sort there; and which table it is here */
	char	   *row_filter;		/* which rows the master logs, as SQL; NULL: all */
	bool		is_whole;		/* the key is all there is; rows can be equal */
	bool		is_partitioned; /* on the master, it has no rows of its own */
	bool		is_sorted;		/* keys compare here as on the master */
	bool		is_foreign;		/* rows are on other servers, or some are */
	bool		takes_copy;		/* COPY can write there */
	bool		is_binary;		/* all columns have a type here that is written
								 * as on the master */
} PyrLayout;

extern Oid	pyr_layout_find(PyrTable *table);
extern char *pyr_layout_sql(const char *schema, PyrTable *table,
							bool is_followed);
extern PyrLayout *pyr_layout_create(PyrTable *table, char **row);
extern bool pyr_layout_is_same(PyrLayout *layout, char **row);
extern const char *pyr_layout_relation(PyrLayout *layout);
extern const char *pyr_layout_masters_relation(PyrLayout *layout);
extern Oid	pyr_layout_owner(PyrLayout *layout);
extern void pyr_layout_append_columns(StringInfo sql, PyrLayout *layout,
									  bool is_compared);
extern void pyr_layout_append_range(StringInfo sql, PyrLayout *of,
									bool is_here, char **after, char **upto);
extern void pyr_layout_append_found(StringInfo sql, PyrLayout *layout,
									char **after, char **upto);
extern void pyr_layout_free(PyrLayout *layout);

#endif							/* PYR_LAYOUT_H */
