/*-------------------------------------------------------------------------
 *
 * tables.h
 *	  The tables that the replica follows, and how far each of them is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYR_TABLES_H
#define PYR_TABLES_H

#include "common/decode.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "slave/mapping.h"
#include "utils/elog.h"

typedef enum PyrTableState
{
	PYR_TABLE_UNKNOWN,			/* not followed, or not heard of yet */
	PYR_TABLE_WAITING,			/* to be copied */
	PYR_TABLE_COPYING,			/* rows up to the bookmark are here */
	PYR_TABLE_READY				/* all rows are here */
} PyrTableState;

typedef struct PyrTableName
{
	NameData	schema;
	NameData	table;
} PyrTableName;

/* lives as long as the process */
typedef struct PyrTable
{
	PyrTableName name;			/* hash key */
	PyrTableState state;
	bool		is_resync;		/* there are rows here that may be wrong */
	bool		is_listed;		/* in the list being taken in */
	bool		is_begun_anew;	/* while this window was applied */
	bool		is_missing;		/* here; schema.c is to make it */
	Oid			trigger;		/* the log trigger on the master */
	int32		filter;			/* which rows and columns it logs; 0: all */
	char	  **bookmark;		/* key of the last row copied; NULL: none is */
	int			nbookmark;
	char	   *key;			/* what the key was when the copy began */
	uint64		nth_bookmark;	/* unlike that of any other, ever */
	int64		rows_copied;
	int64		rows_expected;
	TimestampTz started_at;		/* 0: not yet */
	TimestampTz finished_at;
	TimestampTz verified_at;	/* or that was tried */

	/* why it cannot be copied, and when to try again */
	char	   *error;
	TimestampTz error_at;
	TimestampTz retry_at;
	int			retry_ms;

	/* the columns that it has there, if that was asked */
	bool		is_described;
	char	  **columns_there;
	int			ncolumns_there; /* 0: there is no such table */

	void	   *user;			/* copy.c's */
} PyrTable;

/* the tables' OIDs here, and so their names, at some time */
typedef struct PyrTableNames PyrTableNames;

extern PyrTableName pyr_table_name(const char *schema, const char *tablename);
extern void pyr_tables_load(const char *replica);
extern void pyr_tables_take_requests(void);
extern void pyr_tables_forget_all(const char *replica);
extern const char *pyr_tables_triggers_sql(const char *schema);
extern void pyr_tables_take_triggers(List *rows);
extern const char *pyr_tables_columns_sql(const char *schema, const char *table);
extern void pyr_tables_take_columns(const char *schema, const char *table,
									List *rows);
extern void pyr_table_begin_anew(PyrTable *table);
extern void pyr_tables_begin_anew(void);
extern void pyr_tables_begin_window(void);
extern void pyr_tables_store_begun_anew(void);
extern void pyr_tables_roll_back(void);
extern PyrTableNames *pyr_tables_note_names(void);
extern void pyr_tables_follow_names(PyrTableNames *names);
extern void pyr_table_set_key(PyrTable *table, const char *key);
extern bool pyr_table_has_filter(PyrTable *table, uint32 filter);
extern PyrTable *pyr_tables_of_shape(PyrShape *shape);
extern const char *pyr_tables_list_sql(const char *schema);
extern void pyr_tables_take_list(List *rows);
extern void pyr_tables_want_list(void);
extern void pyr_tables_refresh_list(void);
extern bool pyr_tables_list_is_due(void);
extern PyrTable *pyr_tables_next(List *except);
extern void pyr_table_set_missing(PyrTable *table, bool is_missing);
extern bool pyr_tables_any_missing(void);
extern List *pyr_tables_waiting(void);
extern bool pyr_tables_is_followed(const char *schema, const char *tablename);
extern bool pyr_tables_is_unfinished(const char *schema, const char *tablename);
extern uint64 pyr_tables_nfinished(void);
extern List *pyr_tables_ready(const char *schema, const char *tablename);
extern List *pyr_tables_to_verify(int64 interval_ms);
extern long pyr_tables_verify_due_ms(int64 interval_ms);
extern long pyr_tables_due_ms(void);
extern void pyr_tables_retry(void);
extern bool pyr_table_has_stale_rows(PyrTable *table);
extern const char *pyr_table_qualified(PyrTable *table);
extern PyrPlace pyr_table_place(PyrTable *table);
extern const char *pyr_table_here(PyrTable *table);
extern List *pyr_table_sharers(PyrTable *table);
extern void pyr_table_begin_together(PyrTable *table);
extern void pyr_table_set_state(PyrTable *table, PyrTableState state);
extern void pyr_table_set_bookmark(PyrTable *table, char **bookmark, int n);
extern void pyr_table_clear_error(PyrTable *table);
extern void pyr_table_store(PyrTable *table);
extern void pyr_table_load(PyrTable *table);
extern void pyr_table_verified(PyrTable *table, int64 differences);
extern void pyr_table_fail(PyrTable *table, ErrorData *error);

#endif							/* PYR_TABLES_H */
