/*-------------------------------------------------------------------------
 *
 * arrays.h
 *	  Arrays of texts as strings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_ARRAYS_H
#define PYR_ARRAYS_H

extern char **pyr_array_split(const char *array_text, int *n);
extern char *pyr_array_join(char *const *strings, int n);

#endif							/* PYR_ARRAYS_H */
