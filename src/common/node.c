/*-------------------------------------------------------------------------
 *
 * node.c
 *	  Which node this is, and whose changes it is making.
 *
 * A node is a database that is replicated from, or to, or both.  It is called
 * by its server's system identifier and its own OID.  That takes no naming and
 * nothing that is stored: a database that was made by dump and restore, or
 * after a template, has another name; a standby that takes over has the name of
 * the server it stands in for.
 *
 * The changes that a worker makes were first made elsewhere, their origin: on
 * the node that it follows, or on one that this node forwards changes of.  If
 * they are logged here again, it is with this name, by which everybody knows
 * what is his own, or what has come to him already.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/node.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(py_log_node);

/* the node that this process follows; NULL: none */
static char *followed = NULL;

/* where the changes that it is making were first made; NULL: here */
static const char *current_origin = NULL;

/*
 * This node.
 */
const char *
pyr_node_here(void)
{
	static char here[PYR_NODE_BYTES];

	if (here[0] == '\0')
		snprintf(here, sizeof(here), UINT64_FORMAT "/%u",
				 GetSystemIdentifier(), MyDatabaseId);
	return here;
}

/*
 * From now on, what this process does to tables are changes of that master.
 */
void
pyr_node_follow(const char *master)
{
	if (strlen(master) >= PYR_NODE_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the master has an impossible name")));
	if (followed != NULL)
		pfree(followed);
	current_origin = followed = MemoryContextStrdup(TopMemoryContext, master);
}

/*
 * The changes from here on were first made there; NULL: on the master itself.
 * The name must stay where it is.
 */
void
pyr_node_apply(const char *origin)
{
	current_origin = origin != NULL ? origin : followed;
}

/*
 * Where the changes that this process is making were first made; NULL: here.
 */
const char *
pyr_node_origin(void)
{
	return current_origin;
}

/*
 * py_log_node() returns text: this node's name, as the log of others has it.
 */
Datum
py_log_node(PG_FUNCTION_ARGS pg_attribute_unused())
{
	PG_RETURN_TEXT_P(cstring_to_text(pyr_node_here()));
}
