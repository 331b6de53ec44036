/*-------------------------------------------------------------------------
 *
 * txbuffer.h
 *	  The bytes of the running transaction's changes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_TXBUFFER_H
#define PYR_TXBUFFER_H

typedef void (*PyrSink) (void *arg, const char *data, size_t len);

extern void pyr_txbuffer_begin(void);
extern uint64 pyr_txbuffer_size(void);
extern void pyr_txbuffer_append(const void *data, size_t len);
extern void pyr_txbuffer_cut(uint64 size);
extern void pyr_txbuffer_move(uint64 start, uint64 end, uint64 before,
							  uint64 rank);
extern void pyr_txbuffer_emit(PyrSink sink, void *arg);
extern void pyr_txbuffer_end(bool is_abort);

#endif							/* PYR_TXBUFFER_H */
