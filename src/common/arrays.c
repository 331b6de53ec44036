/*-------------------------------------------------------------------------
 *
 * arrays.c
 *	  Arrays of texts as strings: names of columns, keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/arrays.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

/*
 * An array in text form to strings; NULL elements are NULL pointers.
 */
char **
pyr_array_split(const char *array_text, int *n)
{
	Oid			input;
	Oid			ioparam;
	Datum		array;
	Datum	   *elements;
	bool	   *isnull;
	char	  **strings;

	*n = 0;
	if (array_text == NULL)
		return NULL;
	getTypeInputInfo(TEXTARRAYOID, &input, &ioparam);
	array = OidInputFunctionCall(input, unconstify(char *, array_text), ioparam, -1);
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, &isnull, n);
	strings = palloc((*n + 1) * sizeof(char *));
	for (int i = 0; i < *n; i++)
		strings[i] = isnull[i] ? NULL : TextDatumGetCString(elements[i]);
	return strings;
}

/*
 * Strings as an array in text form.
 */
char *
pyr_array_join(char *const *strings, int n)
{
	Datum	   *elements = palloc((n + 1) * sizeof(Datum));
	Oid			output;
	bool		is_varlena;

	for (int i = 0; i < n; i++)
		elements[i] = CStringGetTextDatum(strings[i]);
	getTypeOutputInfo(TEXTARRAYOID, &output, &is_varlena);
	return OidOutputFunctionCall(output,
								 PointerGetDatum(construct_array(elements, n, TEXTOID, -1,
																 false, TYPALIGN_INT)));
}
