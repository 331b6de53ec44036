/*-------------------------------------------------------------------------
 *
 * mapping.h
 *	  Tables of the master that have another name on the slave.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_MAPPING_H
#define PYR_MAPPING_H

/* where a relation of the master is here */
typedef struct PyrPlace
{
	const char *schema;
	const char *table;
	bool		is_mapped;		/* it is not the master's name */
} PyrPlace;

extern bool pyr_mapping_refresh(void);
extern PyrPlace pyr_mapping_of(const char *schema, const char *table);
extern const char *pyr_mapping_words(const char *schema, const char *table);

#endif							/* PYR_MAPPING_H */
