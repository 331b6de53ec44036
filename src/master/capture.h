/*-------------------------------------------------------------------------
 *
 * capture.h
 *	  The row trigger.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_CAPTURE_H
#define PYR_CAPTURE_H

/* where capturing stands */
typedef struct PyrCapturePlace
{
	uint64		notes;
	uint64		barrier;
} PyrCapturePlace;

extern uint64 pyr_capture_begin_truncate(void);
extern void pyr_capture_end_truncate(uint64 before);
extern PyrCapturePlace pyr_capture_place(void);
extern void pyr_capture_cut(PyrCapturePlace place, uint64 size);
extern void pyr_capture_barrier(void);
extern void pyr_capture_end_transaction(void);

#endif							/* PYR_CAPTURE_H */
