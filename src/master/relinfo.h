/*-------------------------------------------------------------------------
 *
 * relinfo.h
 *	  What capture needs to know of a table, per log trigger.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_RELINFO_H
#define PYR_RELINFO_H

#include "commands/trigger.h"
#include "common/format.h"
#include "common/values.h"
#include "master/filter.h"
#include "nodes/bitmapset.h"
#include "utils/rel.h"

typedef struct PyrColumn
{
	bool		captured;		/* not dropped, not virtual, not left out */
	bool		is_key;
	PyrWire		wire;
	Oid			type;			/* what the log says: 0 for text */
	int16		typlen;
	bool		typbyval;
	char		typalign;
	FmgrInfo	output;			/* output or send function */
	char	   *name;
} PyrColumn;

typedef struct PyrRelInfo
{
	Oid			trigger;		/* hash key */
	Oid			relid;
	Oid			logged_as;		/* the table that changes are logged as those
								 * of; InvalidOid: it cannot be told */
	bool		valid;			/* cleared by invalidation */
	uint32		generation;		/* unlike that of any other, ever */
	MemoryContext context;
	char	   *schema;
	char	   *table;
	int			natts;
	PyrColumn  *columns;		/* natts of them */
	int			nkey;
	AttrNumber *key;			/* in the order the trigger names them */
	Bitmapset  *key_set;		/* the same, from 0 */
	Bitmapset  *but_key;		/* captured columns that are not key, from 0 */
	Bitmapset  *unique;			/* columns that unique values depend on */
	bool		has_shared_key; /* rows can share a key for a while */
	bool		is_whole;		/* the key is all there is; rows can be equal */
	bool		is_partitioned; /* has no rows of its own */
	bool		via_root;		/* logged as the topmost partitioned table */
	bool		ignores_truncate;
	bool		logs_old;		/* what rows were before, too */
	PyrFilter  *filter;			/* which rows are logged; NULL: all */
	uint32		filter_number;	/* made of which rows and columns; 0: all */
	bool		has_text;		/* some column travels as text ... */
	int			text_depends;	/* ... and on what that depends */
	List	   *rowtypes;		/* tables' OIDs of composite types within */
} PyrRelInfo;

extern PyrRelInfo *pyr_relinfo_get(Relation rel, Trigger *trigger);
extern PyrRelInfo *pyr_relinfo_create(Relation rel, Trigger *trigger,
									  Oid logged_as);
extern void pyr_relinfo_free(PyrRelInfo *info);
extern Oid	pyr_relinfo_topmost(Oid trigger);
extern Bitmapset *pyr_relinfo_old(PyrRelInfo *info, PyrVerb verb,
								  Bitmapset *set);
extern void pyr_relinfo_end_transaction(void);

#endif							/* PYR_RELINFO_H */
