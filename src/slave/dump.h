/*-------------------------------------------------------------------------
 *
 * dump.h
 *	  What pg_dump writes, definition by definition.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_DUMP_H
#define PYR_DUMP_H

#include "lib/stringinfo.h"
#include "nodes/parsenodes.h"
#include "nodes/pg_list.h"
#include "storage/fd.h"

typedef struct PyrDump PyrDump;

/* one entry of the dump */
typedef struct PyrDefinition
{
	char	   *what;			/* for people, as "INDEX public.t_a_idx" */
	StringInfoData sql;
} PyrDefinition;

extern PyrDump *pyr_dump_open(File file);
extern bool pyr_dump_next(PyrDump *dump, PyrDefinition *definition);
extern bool pyr_dump_join_next(PyrDump *dump, PyrDefinition *definition);

/* what is in a definition */
extern List *pyr_definition_parse(const char *sql);
extern char *pyr_definition_text(const char *sql, List *parsed);

#endif							/* PYR_DUMP_H */
