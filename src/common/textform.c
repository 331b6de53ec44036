/*-------------------------------------------------------------------------
 *
 * textform.c
 *	  How values look as text, which is always the same.
 *
 * What a type's output function writes, and its input function understands, can
 * depend on settings, of which each session has its own: those of the
 * application that changes a row, of the database, of the role.  Text that goes
 * from one server to the other, is compared, or is to be read by anybody, is
 * made and read under the settings here, on both sides.
 *
 * Capture pins them for each change, in the application's session; so it only
 * sets what differs, and only what the types at hand depend on.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_type.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/textform.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/float.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/pg_locale.h"
#include "utils/typcache.h"

/*
 * In a session of ours.  TimeZone decides, too, what becomes of a timestamp
 * whose column is a timestamptz on the slave; xmloption, whether a piece of XML
 * that is no document is taken.
 */
const PyrTextSetting pyr_text_settings[] = {
	{"search_path", ""},
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"extra_float_digits", "1"},
	{"bytea_output", "hex"},
	{"lc_monetary", "C"},
	{"quote_all_identifiers", "off"},
	{"standard_conforming_strings", "on"},
	{"xmloption", "content"},
	{NULL, NULL}
};

/*
 * What the text of values of that type depends on, at any depth.  The row types
 * that it is made of are added to the list; what they are made of can change.
 */
int
pyr_text_depends(Oid type, List **rowtypes)
{
	TupleDesc	desc;
	Oid			part;
	int			depends = 0;

	check_stack_depth();
	type = getBaseType(type);
	switch (type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
			return PYR_TEXT_NAMES;
		case CASHOID:
			return PYR_TEXT_MONEY;
	}

	part = get_element_type(type);
	if (!OidIsValid(part))
		part = get_range_subtype(type);
	if (!OidIsValid(part))
		part = pyr_multirange_range(type);
	if (OidIsValid(part))
		return pyr_text_depends(part, rowtypes);

	if (get_typtype(type) != TYPTYPE_COMPOSITE)
		return 0;
	desc = lookup_rowtype_tupdesc_copy(type, -1);
	*rowtypes = list_append_unique_oid(*rowtypes, get_typ_typrelid(type));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped)
			depends |= pyr_text_depends(att->atttypid, rowtypes);
	}
	FreeTupleDesc(desc);
	return depends;
}

/*
 * From here on, text is as it should be, as far as it depends on those; until
 * pyr_text_unpin, or the end of the transaction.
 */
int
pyr_text_pin(int depends)
{
	int			nestlevel = NewGUCNestLevel();

	if (depends & PYR_TEXT_NAMES)
	{
		/* what is built in has no schema, whatever temporary tables there are */
		pyr_config_set_here("search_path", "pg_catalog, pg_temp");
	}
	if ((depends & (PYR_TEXT_NAMES | PYR_TEXT_SQL)) && quote_all_identifiers)
		pyr_config_set_here("quote_all_identifiers", "off");
	if ((depends & PYR_TEXT_MONEY) && strcmp(locale_monetary, "C") != 0)
		pyr_config_set_here("lc_monetary", "C");
	if ((depends & PYR_TEXT_SQL) && !standard_conforming_strings)
		pyr_config_set_here("standard_conforming_strings", "on");
	if (strcmp(pg_get_timezone_name(session_timezone), "UTC") != 0)
		pyr_config_set_here("timezone", "UTC");
	if (DateStyle != USE_ISO_DATES ||
		((depends & PYR_TEXT_SQL) && DateOrder != DATEORDER_YMD))
		pyr_config_set_here("datestyle", "ISO, YMD");
	if (IntervalStyle != INTSTYLE_POSTGRES)
		pyr_config_set_here("intervalstyle", "postgres");
	if (extra_float_digits < 1)
		pyr_config_set_here("extra_float_digits", "1");
	if (bytea_output != BYTEA_OUTPUT_HEX)
		pyr_config_set_here("bytea_output", "hex");
	return nestlevel;
}

void
pyr_text_unpin(int nestlevel)
{
	AtEOXact_GUC(true, nestlevel);
}
