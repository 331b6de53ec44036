/*-------------------------------------------------------------------------
 *
 * target.h
 *	  Where changes go on the slave.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_TARGET_H
#define PYR_TARGET_H

#include "common/decode.h"
#include "common/values.h"
#include "slave/merge.h"
#include "slave/policy.h"

/* how changes of a table may be applied */
typedef enum PyrRoute
{
	PYR_ROUTE_SETS,				/* their net effect, in sets */
	PYR_ROUTE_ORDERED,			/* one by one, apart from other tables' */
	PYR_ROUTE_AT_ONCE			/* one by one, at their place among all */
} PyrRoute;

typedef struct PyrTargetColumn
{
	char	   *name;
	Oid			type;
	int32		typmod;
	Oid			collation;
	bool		is_dropped;
	bool		is_generated;
	bool		is_fixed;		/* cannot be updated */

	/* once the master has sent values of it */
	bool		is_known;
	Oid			source;			/* type that they travel in; 0: text */
	PyrWire		wire;
	Oid			param_type;		/* of the datum made of one */
	FmgrInfo	function;		/* receive or input function */
	Oid			ioparam;
} PyrTargetColumn;

/*
 * A table of the slave, as the master's changes see it that have a certain
 * key and send their columns as certain types.
 */
typedef struct PyrTarget
{
	MemoryContext context;
	bool		valid;			/* cleared by invalidation */
	uint64		serial;			/* unlike that of any other, ever */
	Oid			relid;
	Oid			owner;
	char		relkind;
	char	   *schema;
	char	   *table;
	PyrRoute	route;
	bool		is_forwarded;	/* its changes are logged here again */
	bool		fires_as_origin;	/* a view, whose triggers do the work */
	bool		is_whole;		/* no key: rows are told by all of their columns */
	bool		is_key_deferrable;	/* unique at the end of a transaction only */
	bool		is_local;		/* rows are here, with their authors */
	bool		is_foreign;		/* rows are on other servers, or some are */
	Bitmapset  *routing;		/* then: columns that tell on which */
	bool		can_arbitrate;	/* INSERT takes ON CONFLICT */
	bool		tells_old;		/* changes say what rows were before */
	bool		is_old_known;	/* the line before is of a change */
	PyrPolicy	policy;
	bool		watches_origin; /* rows that others wrote are conflicts */
	int			later_column;	/* that tells which row is later; -1: none */
	int			ncolumns;
	PyrTargetColumn *columns;
	PyrMergeTable *merge;
	List	   *bindings;		/* PyrBinding */
	List	   *statements;		/* PyrStatement, see statement.c */
	void	   *delete;			/* the one that deletes */
	void	   *force_delete;	/* whatever the row is */
	void	   *unite;			/* that deletes all but one row of a key */
	List	   *queries;		/* about rows, see look.c */

	/* if sets failed lately, it does without them for a while */
	uint64		window;			/* the last one that had changes of it */
	bool		is_distrusted;	/* in that window */
	int			distrusted_windows; /* still to come */
	int			penalty;		/* as many will come when sets fail again */
} PyrTarget;

/* what a shape has to do with its target */
typedef struct PyrBinding
{
	PyrShape   *shape;
	PyrTarget  *target;
	PyrMergeShape merge;
	bool		is_empty;		/* nothing is left to be done here */
} PyrBinding;

extern PyrBinding *pyr_target_bind(PyrShape *shape);
extern Datum pyr_target_datum(PyrTargetColumn *column, const PyrValue *value,
							  int encoding);
extern bool pyr_target_can_have_key(PyrTarget *target, const PyrValue *key,
									int encoding);
extern bool pyr_target_is_protected(Oid namespace, Oid relid);
extern bool pyr_target_is_foreign(Oid relid);
extern bool pyr_target_has_rival(PyrTarget *target);
extern bool pyr_target_keeps_order(PyrTarget *target, uint64 window);
extern void pyr_target_distrust(PyrTarget *target);
extern void pyr_target_invalidate_all(void);
extern void pyr_target_sweep(void);
extern void pyr_target_forget_all(void);

#endif							/* PYR_TARGET_H */
