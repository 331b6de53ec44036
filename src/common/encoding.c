/*-------------------------------------------------------------------------
 *
 * encoding.c
 *	  Text of another encoding, for people to read.
 *
 * Values are converted by the server's own functions, for which a character that
 * this database's encoding does not have is an error.  But what tells of such an
 * error must not fail in the same way: messages, keys in them, the statement that
 * a change stands for, what another database's worker has said.  There, such a
 * character becomes a question mark.
 *
 * SQL_ASCII is no encoding: where one side has it, bytes are what they are.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "common/compat.h"
#include "common/encoding.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

/*
 * Whether text of that encoding is converted when it comes here.
 */
bool
pyr_encoding_is_converted(int encoding)
{
	int			here = GetDatabaseEncoding();

	return encoding != here && encoding != PG_SQL_ASCII && here != PG_SQL_ASCII;
}

/*
 * Whether it reads the same in every encoding.
 */
static bool
is_ascii(const char *text, int len)
{
	for (int i = 0; i < len; i++)
	{
		if (IS_HIGHBIT_SET(text[i]) || text[i] == '\0')
			return false;
	}
	return true;
}

/*
 * Appends the text, which nobody can convert: of bytes that are not ASCII nothing
 * is known.
 */
static void
append_ascii(StringInfo out, const char *text, int len)
{
	for (int i = 0; i < len; i++)
		appendStringInfoChar(out, IS_HIGHBIT_SET(text[i]) || text[i] == '\0'
							 ? '?' : text[i]);
}

#if PYR_CAN_CONVERT_PARTLY

/*
 * Appends as much as can be converted from the beginning of the text, and returns
 * how many bytes of it that is.
 */
static int
append_converted(StringInfo out, const char *text, int len, int encoding,
				 Oid function)
{
	Size		size = (Size) len * MAX_CONVERSION_GROWTH + 1;
	char	   *converted;
	int			done;

	if (!OidIsValid(function))
	{
		done = pg_encoding_verifymbstr(encoding, text, len);
		appendBinaryStringInfo(out, text, done);
		return done;
	}
	converted = MemoryContextAllocHuge(CurrentMemoryContext, size);
	done = pg_do_encoding_conversion_buf(function, encoding, GetDatabaseEncoding(),
										 unconstify(unsigned char *, (const unsigned char *) text),
										 len, (unsigned char *) converted,
										 (int) Min(size, PG_INT32_MAX), true);
	appendStringInfoString(out, converted);
	pfree(converted);
	return done;
}

static bool
append_shown(StringInfo out, const char *text, int len, int encoding)
{
	bool		is_exact = true;
	Oid			function = InvalidOid;

	if (!pyr_encoding_is_converted(encoding))
		encoding = GetDatabaseEncoding();
	else
	{
		function = FindDefaultConversionProc(encoding, GetDatabaseEncoding());
		if (!OidIsValid(function))
		{
			append_ascii(out, text, len);
			return false;
		}
	}
	while (len > 0)
	{
		int			done = append_converted(out, text, len, encoding, function);
		int			bad;

		text += done;
		len -= done;
		if (len == 0)
			break;
		is_exact = false;
		appendStringInfoChar(out, '?');
		bad = pg_encoding_verifymbchar(encoding, text, len);
		bad = Max(bad, 1);
		text += bad;
		len -= bad;
	}
	return is_exact;
}

#else

/*
 * Without a way to ask what can be converted: all of it or nothing.
 */
static bool
append_shown(StringInfo out, const char *text, int len, int encoding)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool is_exact = true;

	PG_TRY();
	{
		appendStringInfoString(out, pg_any_to_server(pnstrdup(text, len), len, encoding));
	}
	PG_CATCH();
	{
		int			code = geterrcode();

		if (code != ERRCODE_UNTRANSLATABLE_CHARACTER &&
			code != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE &&
			code != ERRCODE_UNDEFINED_FUNCTION)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		is_exact = false;
	}
	PG_END_TRY();
	if (!is_exact)
		append_ascii(out, text, len);
	return is_exact;
}

#endif

/*
 * The text in this database's encoding, whatever is in it; palloc'd.  If
 * is_exact is not NULL, it tells whether nothing was lost.
 */
char *
pyr_encoding_show(const char *text, int len, int encoding, bool *is_exact)
{
	StringInfoData out;
	bool		shown = true;

	initStringInfo(&out);
	if (is_ascii(text, len))
		appendBinaryStringInfo(&out, text, len);
	else if (!IsTransactionState() && pyr_encoding_is_converted(encoding))
	{
		/* conversions are in the catalogs */
		append_ascii(&out, text, len);
		shown = false;
	}
	else
		shown = append_shown(&out, text, len, encoding);
	if (is_exact != NULL)
		*is_exact = shown;
	return out.data;
}

/*
 * Copies a string of this database's encoding to where it may not fit, without
 * cutting a character in two.
 */
void
pyr_encoding_copy(char *to, const char *from, int size)
{
	int			len = pg_mbcliplen(from, strlen(from), size - 1);

	memcpy(to, from, len);
	to[len] = '\0';
}
