/*-------------------------------------------------------------------------
 *
 * node.h
 *	  Which node this is, and whose changes it is making.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_NODE_H
#define PYR_NODE_H

/* longer than any node's name */
#define PYR_NODE_BYTES	64

extern const char *pyr_node_here(void);
extern void pyr_node_follow(const char *master);
extern void pyr_node_apply(const char *origin);
extern const char *pyr_node_origin(void);

#endif							/* PYR_NODE_H */
