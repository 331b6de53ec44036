/*-------------------------------------------------------------------------
 *
 * encoding.h
 *	  Text of another encoding, for people to read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_ENCODING_H
#define PYR_ENCODING_H

extern bool pyr_encoding_is_converted(int encoding);
extern char *pyr_encoding_show(const char *text, int len, int encoding,
							   bool *is_exact);
extern void pyr_encoding_copy(char *to, const char *from, int size);

#endif							/* PYR_ENCODING_H */
