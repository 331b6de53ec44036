/*-------------------------------------------------------------------------
 *
 * render.c
 *	  A change as the SQL it stands for, for people to read: in the view
 *	  replica_log_sql, in "Executing:" lines and in error messages.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/compat.h"
#include "common/encoding.h"
#include "common/render.h"
#include "common/textform.h"
#include "common/values.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(py_log_changes);

static void
render_value(StringInfo out, PyrShapeColumn *column, PyrValue *value,
			 int encoding)
{
	PyrWire		wire;
	FmgrInfo	receive;
	Oid			ioparam = InvalidOid;
	Oid			function;
	bool		is_varlena;
	Datum		datum;
	char	   *text;

	if (value->len < 0)
	{
		appendStringInfoString(out, "NULL");
		return;
	}

	wire = OidIsValid(column->type) ? pyr_wire_of_type(column->type)
		: PYR_WIRE_TEXT;
	if (column->type == CHAROID && value->len == 1 && IS_HIGHBIT_SET(value->data[0]))
	{
		/* half a character is no text */
		appendStringInfo(out, "CAST(%d AS \"char\")", (signed char) value->data[0]);
		return;
	}
	if (wire == PYR_WIRE_TEXT || wire == PYR_WIRE_STRING)
		text = pyr_encoding_show(value->data, value->len, encoding, NULL);
	else
	{
		if (wire == PYR_WIRE_SEND)
		{
			getTypeBinaryInputInfo(column->type, &function, &ioparam);
			fmgr_info(function, &receive);
		}
		datum = pyr_wire_decode(wire, value->data, value->len,
								&receive, ioparam, encoding);
		getTypeOutputInfo(column->type, &function, &is_varlena);
		text = OidOutputFunctionCall(function, datum);
		text = pyr_encoding_show(text, strlen(text), GetDatabaseEncoding(), NULL);
	}
	appendStringInfoString(out, quote_literal_cstr(text));
}

/*
 * Appends the columns as a condition in which null equals null.
 */
static void
render_same(StringInfo out, PyrChange *change, int from, int to, int encoding)
{
	for (int i = from; i < to; i++)
	{
		PyrShapeColumn *column = &change->shape->columns[i];

		/* not all types know of equality */
		appendStringInfo(out, "%s%s%s IS NOT DISTINCT FROM ", i > from ? " AND " : "",
						 quote_identifier(column->name),
						 column->type == JSONOID || column->type == XMLOID ||
						 column->type == POINTOID ? "::text" : "");
		render_value(out, column, &change->values[i], encoding);
	}
}

static void
render_columns(StringInfo out, PyrChange *change, int from, int to,
			   const char *separator, int encoding)
{
	for (int i = from; i < to; i++)
	{
		PyrShapeColumn *column = &change->shape->columns[i];
		bool		is_null_key = i < change->shape->nkey &&
			change->values[i].len < 0;

		if (i > from)
			appendStringInfoString(out, separator);
		appendStringInfoString(out, quote_identifier(column->name));
		appendStringInfoString(out, is_null_key ? " IS " : "=");
		render_value(out, column, &change->values[i], encoding);
	}
}

/*
 * Appends the key as "id1='1' AND id2='2'".
 */
void
pyr_render_key(StringInfo out, PyrChange *change, int encoding)
{
	int			nestlevel = pyr_text_pin(PYR_TEXT_MONEY | PYR_TEXT_SQL);

	render_columns(out, change, 0, change->shape->nkey, " AND ", encoding);
	pyr_text_unpin(nestlevel);
}

/*
 * Appends what the row was before, as far as that was logged.
 */
static void
render_old(StringInfo out, PyrChange *change, int encoding)
{
	int			first = change->shape->nkey + change->shape->nset;

	if (change->shape->nold == 0)
		return;
	appendStringInfoString(out, " AND ");
	render_same(out, change, first, first + change->shape->nold, encoding);
}

/*
 * Appends the condition for the row that is changed: without a key, one of those
 * that are like that.
 */
static void
render_row(StringInfo out, PyrChange *change, const char *table, int encoding)
{
	if (!change->shape->is_whole)
	{
		pyr_render_key(out, change, encoding);
		render_old(out, change, encoding);
		return;
	}
	appendStringInfo(out, "ctid = (SELECT ctid FROM %s WHERE ", table);
	render_same(out, change, 0, change->shape->nkey, encoding);
	appendStringInfoString(out, " LIMIT 1)");
}

static void
render_insert(StringInfo out, PyrChange *change, int encoding)
{
	int			n = change->shape->nkey + change->shape->nset;

	appendStringInfoString(out, " (");
	for (int i = 0; i < n; i++)
		appendStringInfo(out, "%s%s", i > 0 ? ", " : "",
						 quote_identifier(change->shape->columns[i].name));
	appendStringInfoString(out, ") VALUES (");
	for (int i = 0; i < n; i++)
	{
		if (i > 0)
			appendStringInfoString(out, ", ");
		render_value(out, &change->shape->columns[i], &change->values[i],
					 encoding);
	}
	appendStringInfoChar(out, ')');
}

/*
 * A value of a statement that was passed on, PYR_SQL_COLUMNS tells which.
 */
char *
pyr_sql_value(PyrChange *change, int i, int encoding)
{
	if (change->values[i].len < 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a statement in replica_log lacks its %s",
						change->shape->columns[i].name)));
	return pyr_wire_text(change->values[i].data, change->values[i].len, encoding);
}

/*
 * The statement itself.
 */
char *
pyr_sql_words(PyrChange *change, int encoding)
{
	return pyr_sql_value(change, 0, encoding);
}

/*
 * Appends the statement that the change stands for.  It is the same for everybody
 * who reads it.
 */
void
pyr_render_change(StringInfo out, PyrChange *change, int encoding)
{
	PyrShape   *shape = change->shape;
	int			nestlevel = pyr_text_pin(PYR_TEXT_MONEY | PYR_TEXT_SQL);
	char	   *table = quote_qualified_identifier(shape->schema, shape->table);

	switch (shape->verb)
	{
		case PYR_INSERT:
			appendStringInfo(out, "INSERT INTO %s", table);
			render_insert(out, change, encoding);
			break;

		case PYR_UPDATE:
			appendStringInfo(out, "UPDATE %s SET ", table);
			render_columns(out, change, shape->nkey,
						   shape->nkey + shape->nset, ", ", encoding);
			appendStringInfoString(out, " WHERE ");
			render_row(out, change, table, encoding);
			break;

		case PYR_DELETE:
			appendStringInfo(out, "DELETE FROM %s WHERE ", table);
			render_row(out, change, table, encoding);
			break;

		case PYR_TRUNCATE:
			appendStringInfo(out, "TRUNCATE %s%s",
							 shape->is_partitioned ? "" : "ONLY ", table);
			break;

		case PYR_SQL:
			appendStringInfoString(out, pyr_sql_words(change, encoding));
			break;
	}
	pyr_text_unpin(nestlevel);
}

static const char *
verb_name(PyrVerb verb)
{
	switch (verb)
	{
		case PYR_INSERT:
			return "INSERT";
		case PYR_UPDATE:
			return "UPDATE";
		case PYR_DELETE:
			return "DELETE";
		case PYR_TRUNCATE:
			return "TRUNCATE";
		case PYR_SQL:
			return "SQL";
	}
	return "?";
}

/* a PyrSource that knows one piece */
static bool
single_piece(void *arg, const char **data, size_t *len)
{
	bytea	  **piece = arg;

	if (*piece == NULL)
		return false;
	*data = VARDATA_ANY(*piece);
	*len = VARSIZE_ANY_EXHDR(*piece);
	*piece = NULL;
	return true;
}

/*
 * py_log_changes(bytea) returns setof record: the changes of a whole
 * transaction, all parts of its "changes" put together.  See replica_log_sql.
 */
Datum
py_log_changes(PG_FUNCTION_ARGS)
{
	bytea	   *piece = PG_GETARG_BYTEA_PP(0);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	PyrDecoder *decoder;
	PyrChange	change;
	MemoryContext context;
	int64		number = 0;

	pyr_init_materialized_srf(fcinfo);

	context = AllocSetContextCreate(CurrentMemoryContext, "pyreplica change",
									ALLOCSET_DEFAULT_SIZES);
	decoder = pyr_decoder_create(CurrentMemoryContext, GetDatabaseEncoding());
	pyr_decoder_begin(decoder, single_piece, &piece);
	while (pyr_decoder_next(decoder, &change))
	{
		MemoryContext oldcontext = MemoryContextSwitchTo(context);
		StringInfoData statement;
		Datum		values[6];
		bool		isnull[6] = {false};

		initStringInfo(&statement);
		pyr_render_change(&statement, &change, GetDatabaseEncoding());
		values[0] = Int64GetDatum(++number);
		isnull[1] = isnull[2] = change.shape->verb == PYR_SQL;
		if (!isnull[1])
		{
			values[1] = CStringGetTextDatum(change.shape->schema);
			values[2] = CStringGetTextDatum(change.shape->table);
		}
		values[3] = CStringGetTextDatum(verb_name(change.shape->verb));
		values[4] = CStringGetTextDatum(statement.data);
		isnull[5] = change.shape->origin == NULL;
		if (!isnull[5])
			values[5] = CStringGetTextDatum(change.shape->origin);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc,
							 values, isnull);
		MemoryContextSwitchTo(oldcontext);
		MemoryContextReset(context);
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextDelete(context);

	return (Datum) 0;
}
