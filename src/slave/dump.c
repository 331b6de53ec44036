/*-------------------------------------------------------------------------
 *
 * dump.c
 *	  What pg_dump writes, definition by definition: its plain text is cut where
 *	  a comment announces the next one.
 *
 * A function's body, or any other string, may contain what looks like such a
 * comment.  Text that was cut there does not parse, as a quote is open; the
 * reader of the dump then has the next piece joined to it.  So whatever the
 * strings in a dump are, no part of one is ever taken for a statement.
 *
 * A definition is in memory as a whole; the dump is not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/compat.h"
#include "mb/pg_wchar.h"
#include "slave/dump.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"

#define NAME_LINE	"-- Name: "
#define END_LINE	"-- PostgreSQL database dump complete"

struct PyrDump
{
	MemoryContext context;
	File		file;
	off_t		at;				/* what is read next */
	char		buffer[8192];
	int			nbuffer;
	int			nread;			/* of the buffer */
	StringInfoData line;
	char	   *next;			/* the line that announces the next definition;
								 * NULL: there is none */
};

/*
 * Reads a line, with its end; false: there is none.
 */
static bool
read_line(PyrDump *dump)
{
	resetStringInfo(&dump->line);
	for (;;)
	{
		char	   *begin = dump->buffer + dump->nread;
		int			left = dump->nbuffer - dump->nread;
		char	   *end = left > 0 ? memchr(begin, '\n', left) : NULL;
		int			n = end != NULL ? end + 1 - begin : left;

		appendBinaryStringInfo(&dump->line, begin, n);
		dump->nread += n;
		if (end != NULL)
			return true;
		n = FileRead(dump->file, dump->buffer, sizeof(dump->buffer), dump->at,
					 PG_WAIT_EXTENSION);
		if (n < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read what pg_dump wrote: %m")));
		if (n == 0)
			return dump->line.len > 0;
		dump->at += n;
		dump->nbuffer = n;
		dump->nread = 0;
	}
}

static bool
starts_with(const char *string, const char *start)
{
	return strncmp(string, start, strlen(start)) == 0;
}

/*
 * Adds lines up to where the next definition begins.  After the last one there
 * is only what is for psql.
 */
static void
read_piece(PyrDump *dump, StringInfo text)
{
	if (dump->next != NULL)
		pfree(dump->next);
	dump->next = NULL;
	while (read_line(dump))
	{
		bool		may_end = strcmp(dump->line.data, "--\n") == 0;

		appendBinaryStringInfo(text, dump->line.data, dump->line.len);
		if (!may_end || !read_line(dump))
			continue;
		if (starts_with(dump->line.data, NAME_LINE) ||
			starts_with(dump->line.data, END_LINE))
		{
			dump->next = MemoryContextStrdup(dump->context, dump->line.data);
			return;
		}
		appendBinaryStringInfo(text, dump->line.data, dump->line.len);
	}
}

/*
 * Begins to read the dump.  What comes before the first definition are settings
 * for a session; ours has its own.
 */
PyrDump *
pyr_dump_open(File file)
{
	PyrDump    *dump = palloc0(sizeof(PyrDump));
	StringInfoData text;

	dump->context = CurrentMemoryContext;
	dump->file = file;
	initStringInfo(&dump->line);
	initStringInfo(&text);
	read_piece(dump, &text);
	pfree(text.data);
	return dump;
}

/*
 * "-- Name: t; Type: TABLE; Schema: s; Owner: -" as "TABLE s.t".  Names may
 * contain anything, the rest does not, so it is looked for from the end.
 */
static char *
describe(const char *line)
{
	char	   *name = pstrdup(line + strlen(NAME_LINE));
	char	   *parts[3] = {NULL, NULL, NULL};
	static const char *const words[] = {"; Type: ", "; Schema: ", "; Owner: "};

	for (int i = 2; i >= 0; i--)
	{
		char	   *found = NULL;

		for (char *p = name; (p = strstr(p, words[i])) != NULL; p++)
			found = p;
		if (found == NULL)
			return pchomp(name);
		*found = '\0';
		parts[i] = found + strlen(words[i]);
	}
	return strcmp(parts[1], "-") == 0
		? psprintf("%s %s", parts[0], name)
		: psprintf("%s %s.%s", parts[0], parts[1], name);
}

/*
 * Reads a definition; false: there is none any more.
 */
bool
pyr_dump_next(PyrDump *dump, PyrDefinition *definition)
{
	if (dump->next == NULL || starts_with(dump->next, END_LINE))
		return false;
	definition->what = describe(dump->next);
	initStringInfo(&definition->sql);
	read_piece(dump, &definition->sql);
	return true;
}

/*
 * The definition was not as long as it seemed: adds what comes next.  False:
 * there is nothing.
 */
bool
pyr_dump_join_next(PyrDump *dump, PyrDefinition *definition)
{
	if (dump->next == NULL)
		return false;
	appendStringInfoString(&definition->sql, dump->next);
	read_piece(dump, &definition->sql);
	return true;
}

/*
 * The definition's statements, as a list of RawStmt.  Settings that pg_dump
 * makes between definitions are left out: they are about tablespaces and access
 * methods, where the slave has its own ways.
 */
List *
pyr_definition_parse(const char *sql)
{
	List	   *parsed = NIL;
	ListCell   *cell;

	/* nobody has looked at the bytes of a master that has no encoding */
	(void) pg_verifymbstr(sql, strlen(sql), false);
	foreach(cell, pg_parse_query(sql))
	{
		RawStmt    *raw = lfirst_node(RawStmt, cell);

		if (!IsA(raw->stmt, VariableSetStmt) && !IsA(raw->stmt, SelectStmt))
			parsed = lappend(parsed, raw);
	}
	return parsed;
}

/*
 * These statements' text.
 */
char *
pyr_definition_text(const char *sql, List *parsed)
{
	StringInfoData text;
	ListCell   *cell;

	initStringInfo(&text);
	foreach(cell, parsed)
	{
		RawStmt    *raw = lfirst_node(RawStmt, cell);
		const char *begin = sql + Max(raw->stmt_location, 0);
		int			len = raw->stmt_len > 0 ? raw->stmt_len : (int) strlen(begin);

		int			skip = strspn(begin, "- \n\t");

		/* the rest of the announcement, in versions that count it in */
		skip = Min(skip, len);
		appendBinaryStringInfo(&text, begin + skip, len - skip);
		appendStringInfoString(&text, ";\n");
	}
	return text.data;
}
