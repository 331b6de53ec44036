/*-------------------------------------------------------------------------
 *
 * txbuffer.c
 *	  The bytes of the running transaction's changes.
 *
 * Bytes are appended by capture.c, cut back when a savepoint is rolled back,
 * and read once, in order, before commit.  Up to pyreplica.capture_memory
 * they stay in memory; past it everything goes to a temporary file.
 *
 * A range of bytes can be told to come earlier than where it was written
 * ("move"): the server fires triggers of nested statements before it is done
 * with the outer statement's, so a change can be captured before the one it
 * builds on.  Moves are only remembered; emit follows them.
 *
 * Everything lives in TopTransactionContext and the file belongs to the top
 * transaction's resource owner.  An abort only has to forget all that: closing
 * the file, or moving its position, would write what is still to be written, and
 * that may be what failed (disk full).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/tablespace.h"
#include "common/compat.h"
#include "common/config.h"
#include "master/txbuffer.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#define INITIAL_BYTES	1024
#define COPY_BYTES		(64 * 1024)

typedef struct Move
{
	uint64		start;			/* these bytes ... */
	uint64		end;
	uint64		before;			/* ... come before the one here, */
	uint64		rank;			/* and behind those of a lesser rank */
} Move;

typedef struct TxBuffer
{
	uint64		size;			/* bytes that count */
	char	   *memory;			/* all of them, unless there is a file */
	size_t		allocated;
	BufFile    *file;
	bool		is_elsewhere;	/* the file's position is not at size */
	bool		is_broken;		/* the file, by an error in writing */
	Move	   *moves;			/* in the order of their start */
	int			nmoves;
	int			maxmoves;
} TxBuffer;

static TxBuffer *buffer = NULL;

void
pyr_txbuffer_begin(void)
{
	if (buffer != NULL)
		return;
	buffer = MemoryContextAllocZero(TopTransactionContext, sizeof(TxBuffer));
}

uint64
pyr_txbuffer_size(void)
{
	return buffer ? buffer->size : 0;
}

/*
 * After an error nobody knows what of the file's own buffer was written, and
 * the error may have been caught by a savepoint.
 */
static void
check_file(void)
{
	if (buffer->is_broken)
		ereport(ERROR,
				(errcode(ERRCODE_IO_ERROR),
				 errmsg("changes that this transaction made before cannot be logged"),
				 errdetail("An error occurred while they were written to a temporary file."),
				 errhint("Roll the transaction back.")));
}

static void
write_file(const void *data, size_t len)
{
	check_file();
	buffer->is_broken = true;
	BufFileWriteConst(buffer->file, data, len);
	buffer->is_broken = false;
}

/* writes what is in the file's buffer */
static void
seek(uint64 place)
{
	check_file();
	buffer->is_broken = true;
	if (BufFileSeek(buffer->file, 0, (off_t) place, SEEK_SET) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not seek in temporary file of captured changes")));
	buffer->is_broken = false;
}

/*
 * Moves all bytes from memory to a temporary file.
 */
static void
spill(void)
{
	ResourceOwner oldowner = CurrentResourceOwner;
	MemoryContext oldcontext;

	PrepareTempTablespaces();

	oldcontext = MemoryContextSwitchTo(TopTransactionContext);
	CurrentResourceOwner = TopTransactionResourceOwner;
	PG_TRY();
	{
		buffer->file = BufFileCreateTemp(false);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = oldowner;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(oldcontext);

	write_file(buffer->memory, buffer->size);
	pfree(buffer->memory);
	buffer->memory = NULL;
	buffer->allocated = 0;
}

static void
grow(size_t needed)
{
	size_t		wanted = Max(buffer->allocated, INITIAL_BYTES);

	while (wanted < needed)
		wanted *= 2;

	if (buffer->memory == NULL)
		buffer->memory = MemoryContextAllocHuge(TopTransactionContext, wanted);
	else
		buffer->memory = repalloc_huge(buffer->memory, wanted);
	buffer->allocated = wanted;
}

void
pyr_txbuffer_append(const void *data, size_t len)
{
	if (buffer->file == NULL)
	{
		if (likely(buffer->size + len <= buffer->allocated))
		{
			memcpy(buffer->memory + buffer->size, data, len);
			buffer->size += len;
			return;
		}
		if (buffer->size + len <= (uint64) capture_memory_kb * 1024)
		{
			grow(buffer->size + len);
			memcpy(buffer->memory + buffer->size, data, len);
			buffer->size += len;
			return;
		}
		if (buffer->memory == NULL)
			grow(0);
		spill();
	}

	if (buffer->is_elsewhere)
		seek(buffer->size);
	buffer->is_elsewhere = false;
	write_file(data, len);
	buffer->size += len;
}

/*
 * Forgets what was appended past size.
 */
void
pyr_txbuffer_cut(uint64 size)
{
	if (buffer == NULL || size >= buffer->size)
		return;

	buffer->size = size;
	buffer->is_elsewhere = true;
	while (buffer->nmoves > 0 &&
		   buffer->moves[buffer->nmoves - 1].start >= size)
		buffer->nmoves--;
}

/*
 * Remembers that the bytes start..end (the ones appended last) belong before
 * those at "before"; if several do, in the order of their rank.
 */
void
pyr_txbuffer_move(uint64 start, uint64 end, uint64 before, uint64 rank)
{
	Assert(before < start && start < end && end == buffer->size);

	if (buffer->nmoves == buffer->maxmoves)
	{
		int			wanted = Max(16, buffer->maxmoves * 2);

		if (buffer->moves == NULL)
			buffer->moves = MemoryContextAllocHuge(TopTransactionContext,
												   wanted * sizeof(Move));
		else
			buffer->moves = repalloc_huge(buffer->moves,
										  wanted * sizeof(Move));
		buffer->maxmoves = wanted;
	}
	buffer->moves[buffer->nmoves++] = (Move) {
		start, end, before, rank
	};
}

/*
 * Hands the bytes start..end to the sink as they lie.
 */
static void
emit_plain(uint64 start, uint64 end, PyrSink sink, void *arg)
{
	char	   *copy;

	if (start >= end)
		return;
	if (buffer->file == NULL)
	{
		sink(arg, buffer->memory + start, end - start);
		return;
	}

	copy = palloc(Min(end - start, COPY_BYTES));
	buffer->is_elsewhere = true;
	seek(start);
	while (start < end)
	{
		size_t		len = Min(end - start, COPY_BYTES);

		BufFileReadExact(buffer->file, copy, len);
		sink(arg, copy, len);
		start += len;
	}
	pfree(copy);
}

static int
compare_before(const void *a, const void *b)
{
	const Move *left = *(Move *const *) a;
	const Move *right = *(Move *const *) b;

	if (left->before != right->before)
		return left->before < right->before ? -1 : 1;
	if (left->rank != right->rank)
		return left->rank < right->rank ? -1 : 1;
	/* same place: the one captured first comes first */
	return left->start < right->start ? -1 : left->start > right->start;
}

/* first of n moves (sorted by "before") that goes at or behind place */
static int
first_before(Move **moves, int n, uint64 place)
{
	int			low = 0;

	while (low < n)
	{
		int			mid = low + (n - low) / 2;

		if (moves[mid]->before < place)
			low = mid + 1;
		else
			n = mid;
	}
	return low;
}

/* first move (they are sorted by start) that starts at or behind place */
static int
first_start(uint64 place)
{
	int			low = 0;
	int			n = buffer->nmoves;

	while (low < n)
	{
		int			mid = low + (n - low) / 2;

		if (buffer->moves[mid].start < place)
			low = mid + 1;
		else
			n = mid;
	}
	return low;
}

/*
 * Hands start..end to the sink, with what was moved into that range and
 * without what was moved out of it.  sorted are the moves by their target.
 * "own" is the move that is being followed, if any: its bytes stay.
 */
static void
emit_range(uint64 start, uint64 end, const Move *own, Move **sorted,
		   PyrSink sink, void *arg)
{
	int			next_in = first_before(sorted, buffer->nmoves, start);
	int			next_out = first_start(start);

	check_stack_depth();

	while (start < end)
	{
		uint64		stop = end;

		/* the bytes here have gone elsewhere */
		while (next_out < buffer->nmoves &&
			   buffer->moves[next_out].start < start)
			next_out++;
		if (next_out < buffer->nmoves &&
			buffer->moves[next_out].start == start &&
			&buffer->moves[next_out] != own)
		{
			start = buffer->moves[next_out++].end;
			/* what belongs before a moved change was emitted with it */
			while (next_in < buffer->nmoves && sorted[next_in]->before < start)
				next_in++;
			continue;
		}
		/* something comes before the byte we are at */
		while (next_in < buffer->nmoves && sorted[next_in]->before == start)
		{
			const Move *move = sorted[next_in++];

			emit_range(move->start, move->end, move, sorted, sink, arg);
		}

		if (next_out < buffer->nmoves && &buffer->moves[next_out] == own)
			next_out++;

		if (next_in < buffer->nmoves)
			stop = Min(stop, sorted[next_in]->before);
		if (next_out < buffer->nmoves)
			stop = Min(stop, buffer->moves[next_out].start);
		emit_plain(start, stop, sink, arg);
		start = stop;
	}
}

/*
 * Hands all bytes to the sink, in the order they are to be applied.
 */
void
pyr_txbuffer_emit(PyrSink sink, void *arg)
{
	Move	  **sorted;

	if (buffer->nmoves == 0)
	{
		emit_plain(0, buffer->size, sink, arg);
		return;
	}

	sorted = MemoryContextAllocHuge(CurrentMemoryContext,
									buffer->nmoves * sizeof(Move *));
	for (int i = 0; i < buffer->nmoves; i++)
		sorted[i] = &buffer->moves[i];
	qsort(sorted, buffer->nmoves, sizeof(Move *), compare_before);
	emit_range(0, buffer->size, NULL, sorted, sink, arg);
	pfree(sorted);
}

/*
 * Forgets everything; called at the end of each transaction.  Memory and file
 * go with the transaction, but after a commit the file has to be closed.
 */
void
pyr_txbuffer_end(bool is_abort)
{
	TxBuffer   *ended = buffer;

	buffer = NULL;
	if (ended != NULL && ended->file != NULL && !is_abort)
		BufFileClose(ended->file);
}
