/* pyreplica.sql: installed as pyreplica--<version>.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pyreplica" to load this file. \quit

-- The same objects are made on the master and on the slave; a server can be
-- both.  All functions name their objects with schema, and those that run
-- with their owner's rights have a fixed search_path.

---------------------------------------------------------------------------
-- Master: the log
---------------------------------------------------------------------------

-- Entries are in the inner tables, replica_log_1 to 3, one of which is being
-- filled.  All columns are PLAIN: entries are cut to fit a page, and nothing
-- is ever compressed or stored out of line while a transaction commits.
CREATE TABLE replica_log (
	commitno	bigint NOT NULL,
	xid			xid8 NOT NULL,
	at			timestamptz NOT NULL,
	part		integer NOT NULL,
	username	text,
	origin		text,
	snapshot	pg_snapshot,
	changes		bytea NOT NULL
);
ALTER TABLE replica_log
	ALTER username SET STORAGE PLAIN,
	ALTER origin SET STORAGE PLAIN,
	ALTER snapshot SET STORAGE PLAIN,
	ALTER changes SET STORAGE PLAIN;

COMMENT ON TABLE replica_log IS
'pyreplica: the changes of each committed transaction; read it as SQL in replica_log_sql';
COMMENT ON COLUMN replica_log.commitno IS
'commit number: an order (together with xid) in which applying is valid; the write-ahead log position just before commit';
COMMENT ON COLUMN replica_log.xid IS 'the transaction';
COMMENT ON COLUMN replica_log.at IS 'when it was about to commit';
COMMENT ON COLUMN replica_log.part IS '0, 1, 2 ... for a transaction too large for one entry';
COMMENT ON COLUMN replica_log.username IS 'session user';
COMMENT ON COLUMN replica_log.origin IS 'the node where its changes were first made, as py_log_node() calls it; NULL: here; *: on several, see replica_log_sql';
COMMENT ON COLUMN replica_log.snapshot IS 'in some entries: the snapshot of that moment, where a slave that is behind can cut its way';
COMMENT ON COLUMN replica_log.changes IS 'the changes, as src/common/format.h of the source describes';

CREATE TABLE replica_log_1 () INHERITS (replica_log) WITH (autovacuum_enabled = off);
CREATE TABLE replica_log_2 () INHERITS (replica_log) WITH (autovacuum_enabled = off);
CREATE TABLE replica_log_3 () INHERITS (replica_log) WITH (autovacuum_enabled = off);

CREATE INDEX replica_log_1_xid ON replica_log_1 (xid);
CREATE INDEX replica_log_2_xid ON replica_log_2 (xid);
CREATE INDEX replica_log_3_xid ON replica_log_3 (xid);
CREATE INDEX replica_log_1_mark ON replica_log_1 (xid) WHERE snapshot IS NOT NULL;
CREATE INDEX replica_log_2_mark ON replica_log_2 (xid) WHERE snapshot IS NOT NULL;
CREATE INDEX replica_log_3_mark ON replica_log_3 (xid) WHERE snapshot IS NOT NULL;

-- Number of the inner table that is being filled.  A sequence because writers
-- read it outside of any snapshot; only py_log_rotate sets it.
CREATE SEQUENCE replica_log_current MAXVALUE 3 CYCLE;
SELECT pg_catalog.setval('@extschema@.replica_log_current', 1);

-- What has been let go: everything that "horizon" sees may be missing from
-- the log.  A slave can go on only from a position at or past it.
CREATE TABLE replica_log_state (
	horizon		pg_snapshot NOT NULL,
	cleaned_at	timestamptz
);
INSERT INTO replica_log_state VALUES ('1:1:');

-- One row per slave that the log is kept for.
CREATE TABLE replica_slave (
	name		text PRIMARY KEY,
	"position"	pg_snapshot NOT NULL,
	confirmed_at timestamptz,
	attached_at	timestamptz,
	let_go_at	timestamptz,
	begins_anew	boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);
COMMENT ON COLUMN replica_slave.let_go_at IS 'since when the log is not kept for it (pyreplica.max_backlog)';
COMMENT ON COLUMN replica_slave.begins_anew IS 'it is back, and was told to make its tables equal from "position" on, but has not confirmed that it does';

-- The process that serves a slave; NULL: it is not connected.
CREATE FUNCTION py_log_slave_pid(slave text)
RETURNS integer
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT k.pid FROM pg_locks k
	 WHERE k.locktype = 'advisory' AND k.granted AND k.objsubid = 2
	   AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
	   AND k.classid = 1887007347::oid
	   AND k.objid::bigint = (hashtext(slave)::bigint & 4294967295)
	 LIMIT 1
$$;

CREATE FUNCTION py_log_changes(changes bytea,
	OUT number bigint, OUT schemaname text, OUT tablename text,
	OUT operation text, OUT statement text, OUT origin text)
RETURNS SETOF record
AS 'MODULE_PATHNAME' LANGUAGE C STRICT STABLE;
COMMENT ON FUNCTION py_log_changes(bytea) IS
'the changes of one transaction (all parts of its replica_log.changes put together)';

CREATE FUNCTION py_log_node() RETURNS text
AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION py_log_node() IS
'what this database is called as origin of changes';

CREATE VIEW replica_log_sql AS
SELECT l.commitno, l.xid, l.username, l.at,
	   c.number, c.schemaname, c.tablename, c.operation, c.statement,
	   c.origin
  FROM (SELECT commitno, xid,
			   pg_catalog.min(username) AS username,
			   pg_catalog.min(at) AS at,
			   pg_catalog.string_agg(changes, ''::bytea ORDER BY part) AS changes
		  FROM @extschema@.replica_log
		 GROUP BY commitno, xid) l,
	   LATERAL @extschema@.py_log_changes(l.changes) c
 ORDER BY l.commitno, l.xid, c.number;
COMMENT ON VIEW replica_log_sql IS
'pyreplica: each change in the log as the SQL it stands for, in the order it is applied';

---------------------------------------------------------------------------
-- Master: triggers
---------------------------------------------------------------------------

CREATE FUNCTION py_log_replica() RETURNS trigger
AS 'MODULE_PATHNAME' LANGUAGE C;
COMMENT ON FUNCTION py_log_replica() IS
'log trigger: py_log_replica(''tablename'', ''keycolumn'' ..., '''', ''option'', ''value'' ...); the empty argument and what follows can be left out; options: log_old (on: what rows were before is logged, too), row_filter (a condition for the rows that are logged), columns (an array of the columns that are, the key among them), whole_row (on: all columns together are the key, and rows can be equal), via_root (on: changes of partitions are logged as those of the topmost table that has the trigger), ignore_truncate (on: TRUNCATE is not logged)';

-- A log trigger's arguments.
CREATE FUNCTION py_log_arguments(trigger oid)
RETURNS text[]
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT array_agg(convert_from(decode(u.a, 'hex'), getdatabaseencoding()) ORDER BY u.n)
	  FROM pg_trigger t,
		   unnest(string_to_array(regexp_replace(encode(t.tgargs, 'hex'), '(..)', E'\\1 ', 'g'), '00 ')) WITH ORDINALITY AS u(a, n)
	 WHERE t.oid = trigger AND u.n <= t.tgnargs
$$;

-- The columns that they name as key, NULL if none; and the options.  "filter" is a
-- number made of which rows and columns are logged, as relinfo.c makes it, 0: all.
-- What makes no sense is no error here: one table must not keep others from slaves.
CREATE FUNCTION py_log_options(trigger oid,
	OUT key text[], OUT row_filter text, OUT columns text, OUT log_old boolean,
	OUT filter integer,
	OUT whole_row boolean, OUT via_root boolean, OUT ignore_truncate boolean)
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT nullif(t.a[2 : t.n - 1], '{}'), o.row_filter, o.columns,
		   'log_old' = ANY (o.are_on),
		   CASE WHEN o.row_filter IS NULL AND o.columns IS NULL THEN 0
				ELSE coalesce(nullif(hashtext(concat(o.row_filter, E'\n', o.columns) COLLATE "C"), 0), 1) END,
		   'whole_row' = ANY (o.are_on), 'via_root' = ANY (o.are_on), 'ignore_truncate' = ANY (o.are_on)
	  FROM (SELECT a, coalesce(array_position(a, '', 2), cardinality(a) + 1) AS n
			  FROM @extschema@.py_log_arguments(trigger) AS a) t,
	  LATERAL (SELECT max(t.a[i + 1]) FILTER (WHERE t.a[i] = 'row_filter') AS row_filter,
					  max(t.a[i + 1]) FILTER (WHERE t.a[i] = 'columns') AS columns,
					  coalesce(array_agg(t.a[i]) FILTER (WHERE lower(t.a[i + 1]) IN ('on', 'true', 'yes', '1', 't', 'y')), '{}') AS are_on
				 FROM generate_series(t.n + 1, cardinality(t.a) - 1, 2) AS i) o
$$;

-- A row filter as it is kept: as the server itself writes it down.  An error if it
-- uses anything but the row and what is built into the server.
CREATE FUNCTION py_log_filter(tab regclass, row_filter text)
RETURNS text
AS 'MODULE_PATHNAME' LANGUAGE C STRICT STABLE;

CREATE FUNCTION py_log_primary_key(tab regclass)
RETURNS text[]
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT array_agg(a.attname::text ORDER BY k.n)
	  FROM pg_index i,
		   unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n),
		   pg_attribute a
	 WHERE i.indrelid = tab AND i.indisprimary
	   AND k.n <= i.indnkeyatts
	   AND a.attrelid = tab AND a.attnum = k.attnum
$$;

-- The columns that make up a row, for a table whose rows have no other key; what is
-- computed from others says nothing new.
CREATE FUNCTION py_log_row_columns(tab regclass, columns text[])
RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT array_agg(a.attname::text ORDER BY a.attnum)
	  FROM pg_attribute a
	 WHERE a.attrelid = tab AND a.attnum > 0 AND NOT a.attisdropped
	   AND a.attgenerated = '' AND (columns IS NULL OR a.attname = ANY (columns))
$$;

-- Why these columns do not tell the table's rows apart at any moment; all NULL
-- if they do.
CREATE FUNCTION py_log_key_problem(tab regclass, key text[],
	OUT problem text, OUT detail text, OUT hint text)
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	bad		text;
BEGIN
	SELECT k INTO bad FROM unnest(key) AS k
	 WHERE NOT EXISTS (SELECT FROM pg_attribute a
						WHERE a.attrelid = tab AND a.attname = k
						  AND a.attnum > 0 AND NOT a.attisdropped)
	 LIMIT 1;
	IF FOUND THEN
		problem := format('column "%s" of table %s does not exist', bad, tab);
		detail := format('The key is to be (%s).', array_to_string(key, ', '));
		hint := 'Give the names of columns of the table, each once.';
		RETURN;
	END IF;
	SELECT k INTO bad FROM unnest(key) AS k GROUP BY k HAVING count(*) > 1 LIMIT 1;
	IF FOUND THEN
		problem := format('column "%s" is twice in the key of table %s', bad, tab);
		detail := format('The key is to be (%s).', array_to_string(key, ', '));
		hint := 'Give the names of columns of the table, each once.';
		RETURN;
	END IF;
	SELECT a.attname INTO bad FROM pg_attribute a
	 WHERE a.attrelid = tab AND a.attname = ANY (key) AND NOT a.attnotnull
	 LIMIT 1;
	IF FOUND THEN
		problem := format('column "%s" of table %s may be null, so it cannot be part of a key', bad, tab);
		detail := 'Rows with a null in their key cannot be told apart.';
		hint := format('ALTER TABLE %s ALTER %I SET NOT NULL', tab, bad);
		RETURN;
	END IF;

	-- indexes that look at nothing but these columns: the best one
	SELECT CASE WHEN NOT i.indisunique THEN format('Index %s is not unique.', i.indexrelid::regclass)
				WHEN NOT i.indisvalid THEN format('Index %s is not valid.', i.indexrelid::regclass)
				WHEN NOT i.indimmediate THEN format('Index %s is deferrable.', i.indexrelid::regclass)
				WHEN i.indpred IS NOT NULL THEN format('Index %s is about some rows only.', i.indexrelid::regclass)
				ELSE '' END
	  INTO bad
	  FROM pg_index i
	 WHERE i.indrelid = tab
	   AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS x(attnum, n)
						WHERE x.n <= i.indnkeyatts
						  AND NOT EXISTS (SELECT FROM pg_attribute a
										   WHERE a.attrelid = tab AND a.attnum = x.attnum
											 AND a.attname = ANY (key)))
	 ORDER BY i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL DESC,
			  i.indisunique DESC, 1 LIMIT 1;
	IF bad IS DISTINCT FROM '' THEN
		problem := format('no unique index makes (%s) a key of table %s', array_to_string(key, ', '), tab);
		detail := coalesce(bad, 'There is no index on these columns alone.');
		hint := format('CREATE UNIQUE INDEX ON %s (%s)', tab,
					   (SELECT string_agg(quote_ident(k), ', ' ORDER BY n) FROM unnest(key) WITH ORDINALITY AS u(k, n)));
	END IF;
END
$$;

-- A list of columns to be logged as it is kept: in the order of the table.
CREATE FUNCTION py_log_columns(tab regclass, columns text[], key text[])
RETURNS text[]
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	known	text[];
	bad		text;
BEGIN
	SELECT array_agg(a.attname::text ORDER BY a.attnum) INTO known
	  FROM pg_attribute a
	 WHERE a.attrelid = tab AND a.attnum > 0 AND NOT a.attisdropped
	   AND a.attgenerated <> 'v';
	SELECT c INTO bad FROM unnest(columns) AS c WHERE c <> ALL (known) OR c IS NULL LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION 'column "%" of table % does not exist', bad, tab
			USING ERRCODE = 'undefined_column',
			DETAIL = format('The columns to be logged are (%s).', array_to_string(columns, ', ', 'NULL')),
			HINT = 'Give others with columns => ''{...}''; ''{}'' means all columns.';
	END IF;
	SELECT k INTO bad FROM unnest(key) AS k WHERE k <> ALL (columns) LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION 'column "%" of the key of table % is not among those to be logged', bad, tab
			USING ERRCODE = 'invalid_column_reference',
			DETAIL = format('The key is (%s), the columns to be logged are (%s).', array_to_string(key, ', '), array_to_string(columns, ', ')),
			HINT = 'The key tells a slave which row is meant.';
	END IF;
	RETURN (SELECT array_agg(k ORDER BY n) FROM unnest(known) WITH ORDINALITY AS u(k, n) WHERE k = ANY (columns));
END
$$;

-- The log trigger's table, or, of the clone that a partition has, the topmost
-- one's; and that one's trigger.
CREATE FUNCTION py_log_topmost(trigger oid, OUT tab regclass, OUT top oid)
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
	WITH RECURSIVE r AS (
		SELECT t.oid, t.tgrelid, t.tgparentid FROM pg_trigger t WHERE t.oid = trigger
		UNION ALL
		SELECT t.oid, t.tgrelid, t.tgparentid FROM r JOIN pg_trigger t ON t.oid = r.tgparentid)
	SELECT r.tgrelid, r.oid FROM r WHERE r.tgparentid = 0
$$;

-- Creates the triggers that notice a TRUNCATE of the table, and of its partitions: the
-- server clones row triggers only.  If a partition's changes are logged as the
-- topmost table's (via_root), its trigger fires before, when its rows are still there to
-- be logged as deleted.
CREATE FUNCTION py_log_truncate_tg(tab regclass, args text[], via_root boolean, enabled "char")
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	literals text := (SELECT string_agg(quote_literal(x), ', ' ORDER BY n) FROM unnest(args) WITH ORDINALITY AS u(x, n));
	part	record;
BEGIN
	FOR part IN
		SELECT p.relid, p.level > 0 AS is_part
		  FROM pg_partition_tree(tab) p JOIN pg_class c ON c.oid = p.relid
		 WHERE c.relkind IN ('r', 'p')
		UNION ALL
		SELECT c.oid, false FROM pg_class c
		 WHERE c.oid = tab AND c.relkind = 'r' AND NOT c.relispartition
	LOOP
		EXECUTE format('DROP TRIGGER IF EXISTS "!py_log_truncate_tg" ON %s', part.relid);
		EXECUTE format('DROP TRIGGER IF EXISTS "!py_log_part_tg" ON %s', part.relid);
		EXECUTE format('CREATE TRIGGER %I %s TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.py_log_replica(%s)',
					   CASE WHEN via_root AND part.is_part THEN '!py_log_part_tg' ELSE '!py_log_truncate_tg' END,
					   CASE WHEN via_root THEN 'BEFORE' ELSE 'AFTER' END, part.relid, literals);
		IF enabled <> 'O' THEN
			EXECUTE format('ALTER TABLE ONLY %s ENABLE %s TRIGGER %I', part.relid,
						   CASE enabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END,
						   CASE WHEN via_root AND part.is_part THEN '!py_log_part_tg' ELSE '!py_log_truncate_tg' END);
		END IF;
	END LOOP;
END
$$;

-- Row triggers fire in the order of their names.  Ours has to be the first, so
-- that what other triggers do to the row is logged after the row's own change.
--
-- Options that are not given (NULL) stay as they are, so that creating the
-- triggers of all tables once more changes nothing.  If the same rows and columns
-- are logged as before, under the same name, the trigger is replaced and keeps its
-- OID, by which slaves know it: they go on.
CREATE FUNCTION py_log_create_tg(schemaname text, tablename text,
	row_filter text DEFAULT NULL, columns text[] DEFAULT NULL,
	key text[] DEFAULT NULL, log_old boolean DEFAULT NULL,
	via_root boolean DEFAULT NULL, ignore_truncate boolean DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
#variable_conflict use_variable
DECLARE
	tab		regclass;
	kind	"char";
	persistence "char";
	top		text;
	was		record;
	wrong	record;
	whole_row boolean := false;
	options	text[];
	args	text[];
	literals text;
	existed	boolean;
	keeps_oid boolean;
	part	regclass;
	owner	name;
BEGIN
	SELECT c.oid, c.relkind, c.relpersistence INTO tab, kind, persistence
	  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	 WHERE n.nspname = schemaname AND c.relname = tablename;
	IF tab IS NULL THEN
		RAISE EXCEPTION 'table "%.%" does not exist', schemaname, tablename
			USING ERRCODE = 'undefined_table';
	END IF;
	IF EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
				WHERE d.classid = 'pg_class'::regclass AND d.objid = tab
				  AND d.refclassid = 'pg_extension'::regclass
				  AND d.deptype = 'e' AND e.extname = 'pyreplica') THEN
		RETURN format(' table %s belongs to pyreplica (passed over)', tablename);
	END IF;
	IF kind NOT IN ('r', 'p') THEN
		RETURN format(' %s %s has no rows of its own (couldn''t be replicated)!',
					  CASE kind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
					  WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence'
					  WHEN 'c' THEN 'type' ELSE 'index' END, tablename);
	END IF;
	IF persistence = 't' THEN
		RETURN format(' table %s is temporary (couldn''t be replicated)!', tablename);
	ELSIF persistence = 'u' THEN
		RETURN format(' table %s is unlogged, a crash empties it (couldn''t be replicated; ALTER TABLE %s SET LOGGED)!', tablename, tab);
	END IF;
	SELECT p.tab::text INTO top
	  FROM pg_trigger t, @extschema@.py_log_topmost(t.tgparentid) p
	 WHERE t.tgrelid = tab AND t.tgname = '!py_log_replica_tg' AND t.tgparentid <> 0
	   AND t.tgfoid = '@extschema@.py_log_replica'::regproc;
	IF FOUND THEN
		RETURN format(' table %s has the log trigger of %s, of which it is a partition (passed over)', tablename, top);
	END IF;

	-- as it is, but for what is asked for
	SELECT t.oid, t.tgenabled, o.key, o.row_filter, o.columns, o.log_old,
		   o.whole_row, o.via_root, o.ignore_truncate,
		   @extschema@.py_log_arguments(t.oid) AS args INTO was
	  FROM pg_trigger t, @extschema@.py_log_options(t.oid) o
	 WHERE t.tgrelid = tab AND t.tgname = '!py_log_replica_tg'
	   AND t.tgfoid = '@extschema@.py_log_replica'::regproc;
	log_old := coalesce(log_old, was.log_old, false);
	via_root := coalesce(via_root, was.via_root, false) AND kind = 'p';
	SELECT c.oid, c.relkind INTO part, kind
	  FROM pg_partition_tree(tab) p JOIN pg_class c ON c.oid = p.relid
	 WHERE p.level > 0 AND (c.relpersistence = 'u' OR c.relkind = 'f' AND via_root) LIMIT 1;
	IF part IS NOT NULL THEN
		RETURN format(' partition %s of table %s is %s!', part, tablename,
					  CASE kind WHEN 'f' THEN 'a foreign table (couldn''t be replicated)'
					  ELSE format('unlogged, a crash empties it (couldn''t be replicated; ALTER TABLE %s SET LOGGED)', part) END);
	END IF;
	ignore_truncate := coalesce(ignore_truncate, was.ignore_truncate, false);
	IF key = '{*}' AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = tab AND a.attname = '*' AND NOT a.attisdropped) THEN
		whole_row := true;
	ELSIF cardinality(key) > 0 THEN
		SELECT * INTO wrong FROM @extschema@.py_log_key_problem(tab, key);
		IF wrong.problem IS NOT NULL THEN
			RAISE EXCEPTION '%', wrong.problem
				USING ERRCODE = 'invalid_table_definition',
				DETAIL = wrong.detail, HINT = wrong.hint;
		END IF;
	ELSIF key IS NULL AND was.whole_row THEN
		whole_row := true;
	ELSIF key IS NULL AND (SELECT p.problem IS NULL FROM @extschema@.py_log_key_problem(tab, was.key) p) THEN
		key := was.key;
	END IF;
	IF whole_row THEN
		key := '{}';
	ELSE
		key := coalesce(nullif(key, '{}'), @extschema@.py_log_primary_key(tab));
	END IF;
	IF key IS NULL OR (whole_row AND @extschema@.py_log_row_columns(tab, NULL) IS NULL) THEN
		RETURN format(' table %s has no pk constraint (couldn''t be replicated)!', tablename);
	END IF;

	row_filter := @extschema@.py_log_filter(tab, nullif(coalesce(row_filter, was.row_filter), ''));
	columns := @extschema@.py_log_columns(tab, nullif(coalesce(columns, was.columns::text[]), '{}'), key);

	options := CASE WHEN log_old THEN '{log_old,on}' ELSE '{}' END::text[]
		|| CASE WHEN row_filter IS NOT NULL THEN ARRAY['row_filter', row_filter] END
		|| CASE WHEN columns IS NOT NULL THEN ARRAY['columns', columns::text] END
		|| CASE WHEN whole_row THEN '{whole_row,on}'::text[] END
		|| CASE WHEN via_root THEN '{via_root,on}'::text[] END
		|| CASE WHEN ignore_truncate THEN '{ignore_truncate,on}'::text[] END;
	args := tablename || key || CASE WHEN options <> '{}' THEN ARRAY[''] || options END;

	-- the table and all of its partitions have triggers like that
	existed := was.args = args AND was.tgenabled <> 'D' AND NOT EXISTS (
		SELECT FROM (SELECT tab::oid AS relid UNION SELECT p.relid FROM pg_partition_tree(tab) p) p
		  JOIN pg_class c ON c.oid = p.relid AND c.relkind IN ('r', 'p')
		 WHERE NOT EXISTS (SELECT FROM pg_trigger t
							WHERE t.tgrelid = p.relid AND t.tgfoid = '@extschema@.py_log_replica'::regproc
							  AND t.tgname = CASE WHEN via_root AND p.relid <> tab THEN '!py_log_part_tg' ELSE '!py_log_truncate_tg' END
							  AND @extschema@.py_log_arguments(t.oid) = args
							  AND t.tgenabled <> 'D'));
	IF existed IS NOT TRUE THEN
		literals := (SELECT string_agg(quote_literal(x), ', ' ORDER BY n) FROM unnest(args) WITH ORDINALITY AS u(x, n));
		keeps_oid := was.tgenabled <> 'D' AND was.key IS NOT DISTINCT FROM nullif(key, '{}') AND was.whole_row = whole_row
			AND was.via_root = via_root AND was.row_filter IS NOT DISTINCT FROM row_filter
			AND was.columns IS NOT DISTINCT FROM columns::text AND current_setting('server_version_num')::int >= 140000;
		IF keeps_oid IS NOT TRUE THEN
			EXECUTE format('DROP TRIGGER IF EXISTS "!py_log_replica_tg" ON %I.%I',
						   schemaname, tablename);
			-- partitions may have been logged by themselves
			FOR part IN SELECT p.relid FROM pg_partition_tree(tab) p WHERE p.level > 0 LOOP
				EXECUTE format('DROP TRIGGER IF EXISTS "!py_log_replica_tg" ON %s', part);
			END LOOP;
		END IF;
		EXECUTE format('CREATE %s TRIGGER "!py_log_replica_tg" AFTER INSERT OR UPDATE OR DELETE ON %I.%I FOR EACH ROW EXECUTE FUNCTION @extschema@.py_log_replica(%s)',
					   CASE WHEN keeps_oid THEN 'OR REPLACE' ELSE '' END,
					   schemaname, tablename, literals);
		PERFORM @extschema@.py_log_truncate_tg(tab, args, via_root, CASE WHEN was.tgenabled IN ('A', 'R') THEN was.tgenabled ELSE 'O' END);
		IF was.tgenabled IN ('A', 'R') THEN
			EXECUTE format('ALTER TABLE %I.%I ENABLE %s TRIGGER "!py_log_replica_tg"',
						   schemaname, tablename, CASE was.tgenabled WHEN 'A' THEN 'ALWAYS' ELSE 'REPLICA' END);
		END IF;
		PERFORM pg_notify('replicas', 'tables');
	END IF;

	-- the server wants that of whoever creates a partition and with it the trigger
	FOR owner IN
		SELECT DISTINCT r.rolname FROM pg_partition_tree(tab) p
		  JOIN pg_class c ON c.oid = p.relid AND c.relkind = 'p'
		  JOIN pg_roles r ON r.oid = c.relowner
		 WHERE NOT has_function_privilege(r.oid, '@extschema@.py_log_replica()', 'EXECUTE')
	LOOP
		EXECUTE format('GRANT EXECUTE ON FUNCTION @extschema@.py_log_replica() TO %I', owner);
	END LOOP;

	RETURN format('created trigger on %s (%s)', tablename,
				  CASE WHEN whole_row THEN '*' ELSE array_to_string(key, ',') END);
END
$$;
COMMENT ON FUNCTION py_log_create_tg(text, text, text, text[], text[], boolean, boolean, boolean) IS
'creates the log triggers of a table with a primary key, or with the unique columns key ({*}: none, rows are told by all of their columns); says what it did. Only rows that meet row_filter and only columns are logged; log_old: what rows were before is, too; via_root: partitions are logged as parts of this table; ignore_truncate: TRUNCATE is not logged';

-- Logs all rows of the table as inserts into that trigger's table, or as deletes.
CREATE FUNCTION py_log_rows(tab regclass, trigger oid, are_deleted boolean)
RETURNS bigint
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;

-- Nothing is ever in it.  Who attaches a partition whose rows are logged locks it in row
-- exclusive mode, who reads a table with its partitions for a slave in share mode.
CREATE TABLE replica_partition_lock ();
COMMENT ON TABLE replica_partition_lock IS
'pyreplica: keeps partitions from being attached to a table while a slave reads it';

-- Whether the running transaction, or a part of it, has that number.
CREATE FUNCTION py_log_is_ours(id xid)
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT;

-- What py_log_sql is running, if anything: true: a definition; false: what can call
-- functions that define something; NULL: nothing.  (Whoever drops a table may ask.)
CREATE FUNCTION py_log_passed_on()
RETURNS boolean
AS 'MODULE_PATHNAME' LANGUAGE C STABLE;

-- For our own use within a statement that is passed on: one more for slaves alone, and
-- one for here alone.
CREATE FUNCTION py_log_there(statement text)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
CREATE FUNCTION py_log_only_here(statement text)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;

-- Partitions come and go: the server clones row triggers to those that are created or
-- attached, and takes them away when they are detached.  The triggers for TRUNCATE are
-- ours to care for.  If changes are logged as those of the topmost table, rows that come
-- or go with their partition are, too.
--
-- That is so only for what this transaction has attached or detached.  What came or went
-- unnoticed (event triggers do not fire in a replica) may have been logged since, row by
-- row, and must not be once more.
--
-- A definition that is passed on attaches or detaches on slaves as well: there, what is
-- detached takes its rows along; what is attached may have some already or not, and
-- gets ours in their place.
CREATE FUNCTION py_log_partitions()
RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
	command	record;
	part	record;
	is_passed boolean := @extschema@.py_log_passed_on();
	role	text := current_setting('session_replication_role');
BEGIN
	FOR command IN
		SELECT DISTINCT p.tab, p.top, o.via_root, m.tgargs, m.tgenabled,
			   CASE WHEN o.via_root THEN '!py_log_part_tg' ELSE '!py_log_truncate_tg' END AS tgname
		  FROM pg_event_trigger_ddl_commands() d
		  JOIN pg_trigger t ON t.tgrelid = d.objid AND t.tgname = '!py_log_replica_tg'
		   AND t.tgfoid = '@extschema@.py_log_replica'::regproc
		 CROSS JOIN LATERAL @extschema@.py_log_topmost(t.oid) p
		  JOIN pg_class c ON c.oid = p.tab AND c.relkind = 'p'
		  JOIN pg_trigger m ON m.tgrelid = p.tab AND m.tgname = '!py_log_truncate_tg'
		 CROSS JOIN LATERAL @extschema@.py_log_options(p.top) o
		 WHERE d.classid = 'pg_class'::regclass
	LOOP
		-- those that have come
		FOR part IN
			SELECT p.relid, c.relkind,
				   EXISTS (SELECT FROM pg_partition_ancestors(p.relid) a JOIN pg_inherits i ON i.inhrelid = a.relid
							WHERE @extschema@.py_log_is_ours(i.xmin)) AS is_new
			  FROM pg_partition_tree(command.tab) p
			  JOIN pg_class c ON c.oid = p.relid AND c.relkind IN ('r', 'p')
			 WHERE p.level > 0
			   AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = p.relid
								  AND t.tgname = command.tgname AND t.tgargs = command.tgargs
								  AND t.tgfoid = '@extschema@.py_log_replica'::regproc)
		LOOP
			IF command.via_root AND part.relkind = 'r' AND NOT part.is_new THEN
				RAISE WARNING 'slaves have not been told of the rows that partition % had when it came to table %', part.relid, command.tab
					USING HINT = 'Call pyreplica_resync for the partitioned table on the slave.';
			ELSIF command.via_root AND part.relkind = 'r' AND is_passed IS NOT FALSE THEN
				LOCK TABLE @extschema@.replica_partition_lock IN ROW EXCLUSIVE MODE;
				IF is_passed THEN
					PERFORM @extschema@.py_log_there(format('DELETE FROM ONLY %s', part.relid));
				END IF;
				PERFORM @extschema@.py_log_rows(part.relid, command.top, false);
			END IF;
			PERFORM @extschema@.py_log_only_here(format('DROP TRIGGER IF EXISTS %I ON %s', x, part.relid))
			   FROM unnest('{!py_log_part_tg,!py_log_truncate_tg}'::text[]) AS x;
			PERFORM @extschema@.py_log_only_here(format('CREATE TRIGGER %I %s TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.py_log_replica(%s)',
						   command.tgname,
						   CASE WHEN command.via_root THEN 'BEFORE' ELSE 'AFTER' END, part.relid,
						   (SELECT string_agg(quote_literal(x), ', ' ORDER BY n)
							  FROM unnest(@extschema@.py_log_arguments(command.top)) WITH ORDINALITY AS u(x, n))));
			PERFORM pg_notify('replicas', 'tables');
		END LOOP;

		-- those that do not fire when that of the table does, which the server sees to
		-- for row triggers only; what is done to each is not to call us once more
		PERFORM set_config('session_replication_role', 'replica', true);
		FOR part IN
			SELECT p.relid FROM pg_partition_tree(command.tab) p JOIN pg_trigger t ON t.tgrelid = p.relid
			 WHERE p.level > 0 AND t.tgname = command.tgname AND t.tgargs = command.tgargs
			   AND t.tgfoid = '@extschema@.py_log_replica'::regproc
			   AND t.tgenabled <> command.tgenabled
		LOOP
			PERFORM @extschema@.py_log_only_here(format('ALTER TABLE ONLY %s %s TRIGGER %I', part.relid,
						   CASE command.tgenabled WHEN 'O' THEN 'ENABLE' WHEN 'D' THEN 'DISABLE'
						   WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, command.tgname));
		END LOOP;
		PERFORM set_config('session_replication_role', role, true);

		-- those that cannot be replicated
		FOR part IN
			SELECT p.relid, c.relkind FROM pg_partition_tree(command.tab) p
			  JOIN pg_class c ON c.oid = p.relid
			  JOIN pg_inherits i ON i.inhrelid = p.relid AND @extschema@.py_log_is_ours(i.xmin)
			 WHERE c.relpersistence = 'u' OR c.relkind = 'f' AND command.via_root
		LOOP
			RAISE WARNING 'partition % of table %, which is replicated, is %', part.relid, command.tab,
				CASE part.relkind WHEN 'f' THEN 'a foreign table, of whose rows slaves have not been told'
				ELSE 'unlogged: slaves will not notice when a crash empties it' END
				USING HINT = CASE part.relkind WHEN 'f' THEN 'Call pyreplica_resync for the partitioned table on the slave.'
				ELSE format('ALTER TABLE %s SET LOGGED', part.relid) END;
		END LOOP;

		-- those that have gone
		FOR part IN
			SELECT t.tgrelid::regclass AS relid, t.tgname, c.relkind,
				   @extschema@.py_log_is_ours(top.xmin) AS is_new
			  FROM pg_trigger t
			  JOIN pg_class c ON c.oid = t.tgrelid
			  JOIN pg_class top ON top.oid = coalesce(pg_partition_root(c.oid), c.oid)
			 WHERE t.tgname IN ('!py_log_part_tg', '!py_log_truncate_tg')
			   AND t.tgfoid = '@extschema@.py_log_replica'::regproc
			   AND t.tgargs = command.tgargs
			   AND NOT EXISTS (SELECT FROM pg_trigger r WHERE r.tgrelid = t.tgrelid
								  AND r.tgfoid = t.tgfoid AND r.tgtype & 1 = 1)
		LOOP
			IF command.via_root AND part.relkind = 'r' AND NOT part.is_new THEN
				RAISE WARNING 'slaves have not been told of the rows that went with partition % from table %', part.relid, command.tab
					USING HINT = 'Call pyreplica_resync for the partitioned table on the slave.';
			ELSIF command.via_root AND part.relkind = 'r' AND is_passed IS NULL THEN
				PERFORM @extschema@.py_log_rows(part.relid, command.top, true);
			END IF;
			PERFORM @extschema@.py_log_only_here(format('DROP TRIGGER %I ON %s', part.tgname, part.relid));
			PERFORM pg_notify('replicas', 'tables');
		END LOOP;
	END LOOP;
END
$$;

-- The rows of a partition that is dropped are gone before anybody could log that.
-- (Slaves that drop it, too, have none left either; nor does anybody who drops the
-- partitioned table along.)
CREATE FUNCTION py_log_partitions_dropped()
RETURNS event_trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	part	text;
BEGIN
	IF @extschema@.py_log_passed_on() IS NOT NULL THEN
		RETURN;
	END IF;
	FOR part IN
		SELECT t.object_identity
		  FROM pg_event_trigger_dropped_objects() t
		  JOIN pg_event_trigger_dropped_objects() d
			ON d.object_type = 'trigger' AND d.address_names[1:2] = t.address_names[1:2]
		   AND d.address_names[3] = '!py_log_part_tg'
		 WHERE t.object_type = 'table'
		   AND (t.original OR NOT EXISTS (SELECT FROM pg_event_trigger_dropped_objects() o
										   WHERE o.object_type = 'trigger' AND o.address_names[3] = '!py_log_truncate_tg')
				AND tg_tag <> 'DROP TABLE')
	LOOP
		RAISE WARNING 'slaves are not told of the rows that were dropped with partition %', part
			USING HINT = 'To have them deleted there, DETACH or TRUNCATE a partition before it is dropped; or now, call pyreplica_resync for the partitioned table on the slave.';
	END LOOP;
END
$$;

CREATE EVENT TRIGGER py_log_partitions ON ddl_command_end
WHEN TAG IN ('CREATE TABLE', 'CREATE FOREIGN TABLE', 'ALTER TABLE', 'CREATE SCHEMA')
EXECUTE FUNCTION @extschema@.py_log_partitions();
CREATE EVENT TRIGGER py_log_partitions_dropped ON sql_drop
WHEN TAG IN ('DROP TABLE', 'DROP SCHEMA', 'DROP OWNED')
EXECUTE FUNCTION @extschema@.py_log_partitions_dropped();

-- The schema of a bare table name: the first on the caller's search_path that
-- has it; else the only one that has it at all.
CREATE FUNCTION py_log_table_schema(tablename text)
RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
	found	text[];
BEGIN
	SELECT pg_catalog.array_agg(n.nspname::pg_catalog.text
								ORDER BY pg_catalog.array_position(pg_catalog.current_schemas(true), n.nspname) NULLS LAST)
	  INTO found
	  FROM pg_catalog.pg_class c
	  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
	 WHERE c.relname OPERATOR(pg_catalog.=) tablename
	   AND c.relkind IN ('r', 'p', 'f', 'v', 'm');
	IF found IS NULL THEN
		RAISE EXCEPTION 'table "%" does not exist', tablename
			USING ERRCODE = 'undefined_table';
	END IF;
	IF pg_catalog.array_length(found, 1) OPERATOR(pg_catalog.>) 1
	   AND pg_catalog.array_position(pg_catalog.current_schemas(true), found[1]::pg_catalog.name) IS NULL THEN
		RAISE EXCEPTION 'table name "%" is ambiguous: it is in schemas %', tablename,
			pg_catalog.array_to_string(found, ', ')
			USING ERRCODE = 'ambiguous_alias',
			HINT = 'Give the schema as well, as first argument.';
	END IF;
	RETURN found[1];
END
$$;

-- No other text follows tablename: two are schema and table.
CREATE FUNCTION py_log_create_tg(tablename text,
	columns text[] DEFAULT NULL, key text[] DEFAULT NULL,
	log_old boolean DEFAULT NULL, row_filter text DEFAULT NULL,
	via_root boolean DEFAULT NULL, ignore_truncate boolean DEFAULT NULL)
RETURNS text
LANGUAGE sql
AS $$ SELECT @extschema@.py_log_create_tg(@extschema@.py_log_table_schema(tablename), tablename, row_filter, columns, key, log_old, via_root, ignore_truncate) $$;
COMMENT ON FUNCTION py_log_create_tg(text, text[], text[], boolean, text, boolean, boolean) IS
'creates the log triggers of a table with a primary key, or with the unique columns key ({*}: none, rows are told by all of their columns); says what it did. Only rows that meet row_filter and only columns are logged; log_old: what rows were before is, too; via_root: partitions are logged as parts of this table; ignore_truncate: TRUNCATE is not logged';

CREATE FUNCTION py_log_drop_tg(schemaname text, tablename text)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
	part	record;
BEGIN
	EXECUTE format('DROP TRIGGER IF EXISTS "!py_log_replica_tg" ON %I.%I',
				   schemaname, tablename);
	EXECUTE format('DROP TRIGGER IF EXISTS "!py_log_truncate_tg" ON %I.%I',
				   schemaname, tablename);
	-- of partitions, what is left: they had clones of the row trigger
	FOR part IN
		SELECT p.relid, t.tgname
		  FROM pg_partition_tree(format('%I.%I', schemaname, tablename)::regclass) p
		  JOIN pg_trigger t ON t.tgrelid = p.relid
		 WHERE t.tgname IN ('!py_log_part_tg', '!py_log_truncate_tg')
		   AND NOT EXISTS (SELECT FROM pg_trigger r WHERE r.tgrelid = p.relid
							  AND r.tgname = '!py_log_replica_tg')
	LOOP
		EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', part.tgname, part.relid);
	END LOOP;
	PERFORM pg_notify('replicas', 'tables');
	RETURN format('dropped trigger on %s', tablename);
END
$$;
COMMENT ON FUNCTION py_log_drop_tg(text, text) IS
'drops the log triggers of a table';

CREATE FUNCTION py_log_drop_tg(tablename text)
RETURNS text
LANGUAGE sql
AS $$ SELECT @extschema@.py_log_drop_tg(@extschema@.py_log_table_schema(tablename), tablename) $$;
COMMENT ON FUNCTION py_log_drop_tg(text) IS
'drops the log triggers of a table';

-- Not STRICT: nothing at all is no statement.
CREATE FUNCTION py_log_sql(statement text)
RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION py_log_sql(text) IS
'runs a statement (DDL), or several, here and on the slaves, at its place among the changes; on slaves with the rights of the owner of their database';

---------------------------------------------------------------------------
-- Master: tables, for a slave that copies them
---------------------------------------------------------------------------

-- Whether a unique index sees to it that no two rows are the same in these columns.
CREATE FUNCTION py_log_is_unique(tab oid, key text[])
RETURNS boolean
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	RETURN EXISTS (
		SELECT FROM pg_index i
		 WHERE i.indrelid = tab AND i.indisunique AND i.indisvalid
		   AND i.indpred IS NULL AND i.indexprs IS NULL
		   AND NOT EXISTS (
				SELECT FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS x(attnum, n),
					   pg_attribute a
				 WHERE x.n <= i.indnkeyatts
				   AND a.attrelid = tab AND a.attnum = x.attnum
				   AND NOT (a.attnotnull AND a.attname = ANY (key))));
END
$$;

-- The columns that a log trigger takes as key, as py_log_replica() does: those
-- that its arguments name, as long as they are unique; else the primary key; or if
-- there is none, those that are named once more.
CREATE FUNCTION py_log_key(trigger oid)
RETURNS text[]
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	RETURN (
	SELECT CASE WHEN o.whole_row THEN @extschema@.py_log_row_columns(t.tgrelid::regclass, o.columns::text[])
				WHEN k.is_there AND @extschema@.py_log_is_unique(t.tgrelid, o.key) THEN o.key
				ELSE coalesce(@extschema@.py_log_primary_key(t.tgrelid::regclass), CASE WHEN k.is_there THEN o.key END) END
	  FROM pg_trigger t, @extschema@.py_log_options(t.oid) o,
	  LATERAL (SELECT o.key <@ (SELECT array_agg(c.attname::text) FROM pg_attribute c
								 WHERE c.attrelid = t.tgrelid AND c.attnum > 0 AND NOT c.attisdropped) AS is_there) k
	 WHERE t.oid = trigger);
END
$$;

-- A table without rows of its own, whose partitions are logged by themselves, is not
-- among them; nor are partitions that are logged as part of it.
CREATE VIEW py_log_tables AS
SELECT n.nspname AS schemaname, c.relname AS tablename,
	   t.oid AS trigger,
	   CASE WHEN c.relkind = 'p'
			THEN (SELECT coalesce(pg_catalog.sum(greatest(l.reltuples, 0)), 0)::bigint
					FROM pg_catalog.pg_partition_tree(c.oid) p
					JOIN pg_catalog.pg_class l ON l.oid = p.relid
				   WHERE p.isleaf)
			ELSE greatest(c.reltuples, 0)::bigint END AS expected,
	   coalesce(o.filter, 0) AS filter
  FROM pg_catalog.pg_trigger t
  JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN LATERAL @extschema@.py_log_options(t.oid) o ON position(E'\\x0000'::bytea IN t.tgargs) > 0
 WHERE t.tgfoid = '@extschema@.py_log_replica'::pg_catalog.regproc
   AND t.tgtype & 1 = 1 AND t.tgenabled <> 'D'
   AND CASE WHEN o.via_root THEN t.tgparentid = 0 ELSE c.relkind <> 'p' END;
COMMENT ON VIEW py_log_tables IS
'pyreplica: the tables that have a log trigger; "expected" is the number of rows that statistics tell; "filter" is not 0 if only some rows or columns are logged';

-- What two servers agree on that sort values of that type and collation alike:
-- they do if this is the same text on both.  NULL: nobody can tell.
CREATE FUNCTION py_log_order(value_type oid, value_collation oid)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	RETURN (
	WITH t AS (
		SELECT CASE WHEN b.typtype = 'd' THEN b.typbasetype ELSE b.oid END::regtype AS base
		  FROM pg_type b WHERE b.oid = value_type),
	c AS (
		SELECT CASE WHEN k.collprovider = 'd' THEN coalesce(to_jsonb(d) ->> 'datlocprovider', 'c')
					ELSE k.collprovider::text END AS provider,
			   CASE WHEN k.collprovider = 'd'
					THEN coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', d.datcollate)
					ELSE coalesce(to_jsonb(k) ->> 'colllocale', to_jsonb(k) ->> 'colliculocale', k.collcollate) END AS locale,
			   CASE WHEN k.collprovider = 'd' THEN to_jsonb(d) ->> 'daticurules'
					ELSE to_jsonb(k) ->> 'collicurules' END AS rules,
			   k.collisdeterministic AS deterministic
		  FROM pg_collation k, pg_database d
		 WHERE k.oid = value_collation AND d.datname = current_database()),
	v AS (
		SELECT c.*, CASE WHEN c.provider = 'c' AND c.locale IN ('C', 'POSIX') THEN 'bytes'
			ELSE (SELECT pg_collation_actual_version(k.oid) FROM pg_collation k
				   WHERE k.collprovider::text = c.provider
					 AND coalesce(to_jsonb(k) ->> 'colllocale', to_jsonb(k) ->> 'colliculocale', k.collcollate) = c.locale
				   LIMIT 1) END AS version
		  FROM c WHERE c.deterministic)
	SELECT CASE
		WHEN base IN ('int2', 'int4', 'int8') THEN 'int'
		WHEN base IN ('bool', '"char"', 'oid', 'float4', 'float8', 'numeric', 'money',
			'date', 'time', 'timetz', 'timestamp', 'timestamptz', 'interval',
			'uuid', 'bytea', 'bit', 'varbit', 'inet', 'cidr', 'macaddr', 'macaddr8',
			'pg_lsn', 'xid8', 'tid') THEN base::text
		WHEN base IN ('text', 'varchar', 'bpchar', 'name') THEN
			(SELECT CASE WHEN base = 'bpchar'::regtype THEN 'padded ' ELSE '' END ||
					'text ' || CASE WHEN version = 'bytes' THEN 'C'
							   ELSE provider || ' ' || locale || ' ' || version || coalesce(' ' || rules, '') END ||
					' ' || getdatabaseencoding() FROM v)
		END
	  FROM t);
END
$$;

-- What a slave must know of a table to copy it; no row: it has no log trigger.
-- It is asked for with each chunk, so this and what it calls are in PL/pgSQL, which
-- keeps plans.
-- A key can be divided into ranges only if no two rows have the same one.
-- must_be: no row is an error.
CREATE FUNCTION py_log_describe(schemaname text, tablename text, must_be boolean,
	OUT key text[], OUT key_types text[], OUT key_orders text[],
	OUT columns text[], OUT types oid[], OUT row_filter text,
	OUT is_whole boolean, OUT is_partitioned boolean)
RETURNS SETOF record
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	SELECT k.key,
		   (SELECT array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY u.n)
			  FROM unnest(k.key) WITH ORDINALITY AS u(name, n)
			  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = u.name AND NOT a.attisdropped),
		   (SELECT array_agg(CASE WHEN k.is_unique THEN @extschema@.py_log_order(a.atttypid, a.attcollation) END ORDER BY u.n)
			  FROM unnest(k.key) WITH ORDINALITY AS u(name, n)
			  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = u.name AND NOT a.attisdropped),
		   (SELECT array_agg(a.attname::text ORDER BY a.attnum)
			  FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			   AND a.attgenerated <> 'v' AND a.attname = ANY (coalesce(o.columns::text[], ARRAY[a.attname::text]))),
		   (SELECT array_agg(a.atttypid ORDER BY a.attnum)
			  FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			   AND a.attgenerated <> 'v' AND a.attname = ANY (coalesce(o.columns::text[], ARRAY[a.attname::text]))),
		   @extschema@.py_log_filter(c.oid::regclass, o.row_filter),
		   o.whole_row, c.relkind = 'p'
	  FROM @extschema@.py_log_tables l
	  CROSS JOIN LATERAL @extschema@.py_log_options(l.trigger) o
	  JOIN pg_namespace n ON n.nspname = l.schemaname
	  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = l.tablename,
	  LATERAL (SELECT n.key, NOT o.whole_row AND @extschema@.py_log_is_unique(c.oid, n.key) AS is_unique
				 FROM (SELECT @extschema@.py_log_key(l.trigger) AS key) n) k
	 WHERE l.schemaname = py_log_describe.schemaname
	   AND l.tablename = py_log_describe.tablename
	 LIMIT 1;
	IF must_be AND NOT FOUND THEN
		RAISE EXCEPTION 'table "%.%" has no log trigger any more', schemaname, tablename
			USING ERRCODE = 'undefined_object';
	END IF;
END
$$;

-- Which value cannot be sent to a slave that has that encoding: what the server
-- says of it names neither row nor column.  The query returns the key and the
-- columns' values, both as arrays of texts.  What is returned can be sent; all
-- NULL: there is no such value.
CREATE FUNCTION py_log_untranslatable(query text, columns text[], encoding text,
	OUT columnname text, OUT key text, OUT problem text)
RETURNS record
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
	row_key	text[];
	row_values text[];
BEGIN
	FOR row_key, row_values IN EXECUTE query LOOP
		BEGIN
			PERFORM convert_to(array_to_string(row_values, ''), encoding::name);
			CONTINUE;
		EXCEPTION WHEN untranslatable_character OR character_not_in_repertoire THEN
			NULL;
		END;
		FOR i IN 1 .. cardinality(row_values) LOOP
			BEGIN
				PERFORM convert_to(row_values[i], encoding::name);
			EXCEPTION WHEN untranslatable_character OR character_not_in_repertoire THEN
				columnname := columns[i];
				key := row_key::text;
				problem := SQLERRM;
			END;
			EXIT WHEN columnname IS NOT NULL;
		END LOOP;
		EXIT;
	END LOOP;
	BEGIN
		PERFORM convert_to(key, encoding::name);
	EXCEPTION WHEN untranslatable_character OR character_not_in_repertoire THEN
		key := regexp_replace(key, '[^ -~]', '?', 'g');
	END;
END
$$;

---------------------------------------------------------------------------
-- Master: sequences
---------------------------------------------------------------------------

-- The sequences that the logged tables use: those that belong to a column (serial,
-- identity), and those that a default asks for a value.
CREATE VIEW py_log_sequence_use AS
SELECT s.oid AS sequence, t.tgrelid AS tab, u.attnum
  FROM pg_catalog.pg_trigger t,
  LATERAL (SELECT d.objid AS seq, d.refobjsubid::int2 AS attnum
			 FROM pg_catalog.pg_depend d
			WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
			  AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
			  AND d.refobjid = t.tgrelid AND d.refobjsubid > 0
			  AND d.deptype IN ('a', 'i')
			UNION
		   SELECT d.refobjid, a.adnum
			 FROM pg_catalog.pg_attrdef a
			 JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = a.oid
			WHERE a.adrelid = t.tgrelid
			  AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass) u
  JOIN pg_catalog.pg_class s ON s.oid = u.seq AND s.relkind = 'S'
 WHERE t.tgfoid = '@extschema@.py_log_replica'::pg_catalog.regproc
   AND t.tgtype & 1 = 1 AND t.tgenabled <> 'D';

CREATE FUNCTION py_log_sequence_value(sequence oid, OUT last_value bigint, OUT is_called boolean)
RETURNS record
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;

-- Where they are, for a slave.  One that somebody has locked, or that is being
-- dropped, has no value.  They are read by OID: another object that has got a
-- sequence's name by now is none of our business, least of all with our rights.
-- (The table and column tell which sequence it is for a slave where tables have
-- other names.)
CREATE FUNCTION py_log_sequences(OUT schemaname text, OUT sequencename text,
	OUT last_value bigint, OUT is_called boolean,
	OUT increment bigint, OUT start bigint,
	OUT table_schema text, OUT table_name text, OUT column_name text)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT n.nspname, c.relname, v.last_value, v.is_called, s.seqincrement, s.seqstart,
		   tn.nspname, t.relname, a.attname
	  FROM (SELECT DISTINCT ON (u.sequence) u.sequence, u.tab, u.attnum
			  FROM @extschema@.py_log_sequence_use u
			 ORDER BY u.sequence, u.tab, u.attnum) u
	  JOIN pg_class c ON c.oid = u.sequence
	  JOIN pg_namespace n ON n.oid = c.relnamespace
	  JOIN pg_sequence s ON s.seqrelid = c.oid
	  JOIN pg_class t ON t.oid = u.tab
	  JOIN pg_namespace tn ON tn.oid = t.relnamespace
	  JOIN pg_attribute a ON a.attrelid = u.tab AND a.attnum = u.attnum
	 CROSS JOIN LATERAL @extschema@.py_log_sequence_value(c.oid) v
$$;

-- For several masters of the same tables: each makes values that no other does.
-- What is in the tables already is behind the next value, with a gap for what
-- is on its way from other masters.
CREATE FUNCTION py_log_interleave_sequences(node integer, nodes integer, nodes_before integer DEFAULT 1,
	OUT sequence text, OUT increment bigint, OUT next_value bigint, OUT note text)
RETURNS SETOF record
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	gap		CONSTANT bigint := 1000;
	seq		record;
	use		record;
	used	bigint;
	here	record;
	first	bigint;
BEGIN
	IF nodes < 1 OR node NOT BETWEEN 1 AND nodes OR nodes_before < 1 THEN
		RAISE EXCEPTION 'node % of % nodes does not exist', node, nodes
			USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Number the masters from 1, and give each its number and how many there are.';
	END IF;
	FOR seq IN
		SELECT c.oid, n.nspname, c.relname, s.seqincrement, s.seqstart, s.seqmin, s.seqmax, s.seqcycle
		  FROM pg_class c
		  JOIN pg_namespace n ON n.oid = c.relnamespace
		  JOIN pg_sequence s ON s.seqrelid = c.oid
		 WHERE c.oid IN (SELECT u.sequence FROM @extschema@.py_log_sequence_use u)
		 ORDER BY 2, 3
	LOOP
		sequence := format('%I.%I', seq.nspname, seq.relname);
		increment := seq.seqincrement;
		next_value := NULL;
		note := NULL;
		-- the least value that this node may make
		first := seq.seqmin + ((node - seq.seqmin) % nodes + nodes) % nodes;
		IF seq.seqincrement < 0 OR seq.seqcycle
		   OR seq.seqincrement NOT IN (1, nodes_before, nodes) THEN
			note := format('left alone: it %s', CASE WHEN seq.seqcycle THEN 'cycles'
				WHEN seq.seqincrement < 0 THEN 'descends'
				ELSE format('makes steps of %s; if that is because there were %1$s nodes, give nodes_before => %1$s', seq.seqincrement) END);
			RETURN NEXT;
			CONTINUE;
		END IF;

		-- nobody takes a value meanwhile
		EXECUTE format('ALTER SEQUENCE %s INCREMENT BY %s', sequence, nodes);
		SELECT * INTO here FROM @extschema@.py_log_sequence_value(seq.oid);
		increment := nodes;
		IF seq.seqincrement = nodes AND seq.seqstart = first
		   AND (here.last_value - first) % nodes = 0 THEN
			next_value := here.last_value + CASE WHEN here.is_called THEN nodes ELSE 0 END;
			note := 'as before';
			RETURN NEXT;
			CONTINUE;
		END IF;
		used := CASE WHEN here.is_called THEN here.last_value ELSE here.last_value - 1 END;
		FOR use IN
			SELECT u.tab, a.attname
			  FROM @extschema@.py_log_sequence_use u
			  JOIN pg_attribute a ON a.attrelid = u.tab AND a.attnum = u.attnum
			 WHERE u.sequence = seq.oid AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
		LOOP
			-- and not of something else that has got the table's name meanwhile
			EXECUTE format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', use.tab::regclass);
			IF to_regclass(use.tab::regclass::text) IS DISTINCT FROM use.tab::regclass
			   OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = use.tab AND c.relkind IN ('r', 'p')) THEN
				RAISE EXCEPTION 'table % has been replaced meanwhile', use.tab::regclass
					USING ERRCODE = 'object_in_use', HINT = 'Try again.';
			END IF;
			EXECUTE format('SELECT greatest(max(%I), $1) FROM %s%s', use.attname,
						   CASE WHEN (SELECT c.relkind FROM pg_class c WHERE c.oid = use.tab) <> 'p' THEN 'ONLY ' ELSE '' END,
						   use.tab::regclass)
			   INTO used USING used;
		END LOOP;
		next_value := first;
		IF used >= seq.seqmin THEN
			next_value := first + (greatest(used - first, 0) / nodes + 1 + gap) * nodes;
		END IF;
		IF next_value > seq.seqmax THEN
			EXECUTE format('ALTER SEQUENCE %s INCREMENT BY %s', sequence, seq.seqincrement);
			increment := seq.seqincrement;
			next_value := NULL;
			note := 'left alone: it has not enough values left';
		ELSE
			EXECUTE format('ALTER SEQUENCE %s START WITH %s RESTART WITH %s', sequence, first, next_value);
		END IF;
		RETURN NEXT;
	END LOOP;
END
$$;
COMMENT ON FUNCTION py_log_interleave_sequences(integer, integer, integer) IS
'for several masters of the same tables: has this one''s sequences make every so many-th value, so that no other master makes the same; to be called on each, after py_log_create_tg';

---------------------------------------------------------------------------
-- Master: slaves, and letting go of what all of them have
---------------------------------------------------------------------------

-- Whether "later" sees everything that "earlier" sees.  Snapshots of one
-- master always contain one another in one direction or the other.
CREATE FUNCTION py_log_covers(later pg_snapshot, earlier pg_snapshot)
RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT pg_snapshot_xmax(later) >= pg_snapshot_xmax(earlier)
	   AND NOT EXISTS (SELECT FROM pg_snapshot_xip(later) AS x
						WHERE x < pg_snapshot_xmax(earlier)
						  AND pg_visible_in_snapshot(x, earlier))
$$;

-- How a dump tells a slave where it ends.  pg_dump takes from this table the
-- rows that its condition finds, in the snapshot of the dump: those that spell
-- what py_log_here says then, a row for each place.  py_log_add_slave makes the
-- rows to choose from.
CREATE TABLE replica_dump (
	place		integer NOT NULL,
	letter		text NOT NULL,
	PRIMARY KEY (place, letter)
);
COMMENT ON TABLE replica_dump IS
'pyreplica: makes dumps of this database tell where they end, see py_log_add_slave';

CREATE FUNCTION py_log_flush()
RETURNS pg_lsn
AS 'MODULE_PATHNAME' LANGUAGE C STRICT VOLATILE;
COMMENT ON FUNCTION py_log_flush() IS
'makes the write-ahead log safe as far as it is written, and says how far that is';

-- System identifier, write-ahead log position and snapshot of the transaction;
-- "!" if they cannot be told: a standby does not know which transactions are
-- in progress, and very many of them do not fit.  What the dump shows must not
-- be taken back by a crash, so the log is flushed up to there.
CREATE FUNCTION py_log_here()
RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE WHEN pg_is_in_recovery() OR length(h) > 4000 THEN '!' ELSE h END
	  FROM (SELECT (SELECT system_identifier FROM pg_control_system()) || ' ' ||
				   (CASE WHEN pg_is_in_recovery() THEN 0 ELSE @extschema@.py_log_flush() - '0/0' END) || ' ' ||
				   pg_current_snapshot()) AS s (h)
$$;

SELECT pg_catalog.pg_extension_config_dump('@extschema@.replica_dump',
	'WHERE (place, letter) IN (SELECT n, pg_catalog.substr(h, n, 1) FROM @extschema@.py_log_here() h, pg_catalog.generate_series(1, pg_catalog.length(h)) n)');

CREATE FUNCTION py_log_add_slave(name text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	-- a restored dump has left some of them
	IF (SELECT count(*) FROM @extschema@.replica_dump) <> 4000 * 14 THEN
		DELETE FROM @extschema@.replica_dump;
		INSERT INTO @extschema@.replica_dump
		SELECT n, l FROM generate_series(1, 4000) n, regexp_split_to_table('0123456789 :,!', '') l
		ON CONFLICT DO NOTHING;
	END IF;
	INSERT INTO @extschema@.replica_slave (name, "position")
	VALUES (py_log_add_slave.name, pg_current_snapshot());
EXCEPTION WHEN unique_violation THEN
	RAISE EXCEPTION 'slave "%" exists already', py_log_add_slave.name
		USING ERRCODE = 'duplicate_object';
END
$$;
COMMENT ON FUNCTION py_log_add_slave(text) IS
'keeps the log for a slave from now on; it starts here, or where a dump ends that is taken later';

CREATE FUNCTION py_log_drop_slave(name text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	DELETE FROM @extschema@.replica_slave s
	 WHERE s.name = py_log_drop_slave.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'slave "%" does not exist', py_log_drop_slave.name
			USING ERRCODE = 'undefined_object';
	END IF;
END
$$;
COMMENT ON FUNCTION py_log_drop_slave(text) IS
'forgets a slave that will not come back; the log is no longer kept for it';

-- Whoever may execute this reads the log with it, and needs no right on the
-- log's tables.
CREATE FUNCTION py_log_fetch("position" pg_snapshot, marks integer, linger_ms integer,
	skip_user text DEFAULT '', skip_node text DEFAULT '', only_local boolean DEFAULT false)
RETURNS SETOF bytea
AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION py_log_fetch(pg_snapshot, integer, integer, text, text, boolean) IS
'what the log has past a position, up to that many marks, as src/common/format.h of the source describes; if there is nothing, waits so many milliseconds for something; leaves out the transactions of a user, and changes by the node where they were first made; slaves call it';

-- Called by a slave when it has connected.
--
-- slave_position is where the slave's rows stand, NULL if it never replicated.
-- slave_confirmed is the last position that the slave knows to have confirmed
-- here: if this server remembers less, it has gone back in time.  wal is the
-- write-ahead log position that belongs to slave_position.  A slave that copies
-- its tables needs nothing from before its first time.
--
-- A slave that was let go has to make its tables equal from the new position on
-- (begins_anew).  It is told so until it comes with that position.
CREATE FUNCTION py_log_attach(
	slave text,
	slave_system text, slave_position pg_snapshot, slave_confirmed pg_snapshot,
	slave_wal pg_lsn, slave_copies boolean,
	OUT system_identifier text, OUT "position" pg_snapshot, OUT begins_anew boolean)
RETURNS record
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	known	@extschema@.replica_slave;
	horizon	pg_snapshot;
	here	pg_snapshot := pg_current_snapshot();
BEGIN
	IF pg_is_in_recovery() THEN
		RAISE EXCEPTION 'cannot replicate from a standby server'
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'Let pyreplica.master_conninfo point to the primary server; target_session_attrs=read-write finds it among several hosts.';
	END IF;

	SELECT s.system_identifier::text INTO system_identifier
	  FROM pg_control_system() s;
	IF slave_system <> system_identifier THEN
		RAISE EXCEPTION 'this is another master than the one slave "%" replicated from', slave
			USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = format('The slave''s position belongs to the server with system identifier %s, this one has %s.', slave_system, system_identifier),
			HINT = 'If pyreplica.master_conninfo points to the right server, the slave has to be restored from a dump of it, with its row in pyreplica_position deleted.';
	END IF;

	-- rotation must not come between what we look at below and what we do
	LOCK TABLE @extschema@.replica_slave IN ROW EXCLUSIVE MODE;

	IF NOT pg_try_advisory_lock(1887007347, hashtext(slave)) THEN
		RAISE EXCEPTION 'slave "%" is connected already', slave
			USING ERRCODE = 'object_in_use',
			DETAIL = 'Another connection replicates under this name.',
			HINT = 'Each replica of a master needs a name of its own. After a broken connection, the old one ends within half a minute.';
	END IF;

	SELECT * INTO known FROM @extschema@.replica_slave s WHERE s.name = slave FOR UPDATE;
	SELECT st.horizon INTO STRICT horizon FROM @extschema@.replica_log_state st;

	IF slave_position IS NULL AND known.confirmed_at IS NOT NULL THEN
		RAISE EXCEPTION 'slave "%" has replicated before, but comes without a position', slave
			USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = 'Either this is another slave of the same name, or its table pyreplica_position was lost.',
			HINT = format('If it was made anew: SELECT py_log_drop_slave(%1$L), py_log_add_slave(%1$L) on the master, then restore it from a dump.', slave);
	END IF;

	begins_anew := slave_position IS NOT NULL AND
		(known.let_go_at IS NOT NULL OR
		 known.begins_anew AND NOT @extschema@.py_log_covers(slave_position, known."position"));
	IF slave_position IS NULL THEN
		-- the first time: from where it was added, or the log's beginning
		"position" := CASE WHEN slave_copies THEN here
			ELSE coalesce(known."position", '1:1:') END;
	ELSE
		"position" := slave_position;
		IF pg_snapshot_xmax(slave_position) > pg_snapshot_xmax(here)
		   OR slave_wal > pg_current_wal_insert_lsn()
		   OR NOT coalesce(@extschema@.py_log_covers(known."position", slave_confirmed), true)
		THEN
			RAISE EXCEPTION 'the master is behind slave "%"', slave
				USING ERRCODE = 'object_not_in_prerequisite_state',
				DETAIL = format('The slave stands at transaction %s (WAL %s), the master at %s (WAL %s), and remembers the slave at %s. It must have been restored from a backup.',
					pg_snapshot_xmax(slave_position), slave_wal,
					pg_snapshot_xmax(here), pg_current_wal_insert_lsn(),
					coalesce(pg_snapshot_xmax(known."position")::text, 'no position')),
				HINT = 'Rows that the master has lost are still on the slave. Restore the slave from a dump of the master, with its row in pyreplica_position deleted.';
		END IF;
		IF known IS NULL THEN
			RAISE EXCEPTION 'slave "%" is not known to the master any more', slave
				USING ERRCODE = 'undefined_object',
				DETAIL = 'It was dropped with py_log_drop_slave, or the master was restored from a backup.',
				HINT = format('If it was dropped by mistake, SELECT py_log_add_slave(%L) on the master lets it continue as long as the log still has everything it needs.', slave);
		END IF;
		IF begins_anew THEN
			"position" := here;
		END IF;
	END IF;

	IF NOT @extschema@.py_log_covers("position", horizon) THEN
		RAISE EXCEPTION 'the log does not reach back to where slave "%" stands', slave
			USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = CASE WHEN slave_position IS NULL
				THEN 'The slave is new, and the beginning of the log has been cleaned up already.'
				ELSE 'What the slave needs next has been cleaned up already. The slave may have been restored from a backup.' END,
			HINT = format('Register it with SELECT py_log_add_slave(%L) on the master, restore the slave''s tables from a dump taken then, and delete its row in pyreplica_position, if any.', slave);
	END IF;

	INSERT INTO @extschema@.replica_slave AS s (name, "position", attached_at, begins_anew)
	VALUES (slave, py_log_attach."position", now(), coalesce(py_log_attach.begins_anew, false))
	ON CONFLICT (name) DO UPDATE
	SET "position" = excluded."position", attached_at = excluded.attached_at,
		let_go_at = NULL, begins_anew = excluded.begins_anew;
END
$$;

-- A size from a setting.  The library has to be loaded (py_log_node sees to that)
-- for the setting to be known with its unit, and to be nobody else's to change.
CREATE FUNCTION py_log_bytes(setting text, otherwise bigint)
RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM @extschema@.py_log_node();
	RETURN coalesce(pg_size_bytes(nullif(current_setting(setting, true), '')), otherwise);
END
$$;

-- What the log takes on disk.
CREATE FUNCTION py_log_size()
RETURNS bigint
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT pg_total_relation_size('@extschema@.replica_log_1'::regclass) +
		   pg_total_relation_size('@extschema@.replica_log_2'::regclass) +
		   pg_total_relation_size('@extschema@.replica_log_3'::regclass)
$$;

-- Turns the log to its next inner table when the current one is large.  With
-- pyreplica.max_backlog, that is early enough that what cannot be emptied yet,
-- because it is current, is the smaller part of it.
CREATE FUNCTION py_log_turn()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	now_at	int;
	next	int;
	large	bigint := @extschema@.py_log_bytes('pyreplica.log_rotate_size'::text, 67108864::bigint);
	backlog	bigint := @extschema@.py_log_bytes('pyreplica.max_backlog'::text, 0::bigint);
BEGIN
	IF backlog > 0 THEN
		large := least(large, backlog / 4);
	END IF;
	SELECT last_value INTO now_at FROM @extschema@.replica_log_current;
	next := now_at % 3 + 1;
	IF pg_relation_size(format('@extschema@.replica_log_%s', now_at)::regclass) > large
	   AND pg_relation_size(format('@extschema@.replica_log_%s', next)::regclass) = 0
	THEN
		-- not setval: this tells all sessions that something changed
		EXECUTE format('ALTER SEQUENCE @extschema@.replica_log_current RESTART WITH %s', next);
	END IF;
END
$$;

-- Empties the inner tables that every slave has passed.  Never waits for a lock.
-- Without any slave the log is kept from its beginning, for the first one; but
-- not if it is too large.
CREATE FUNCTION py_log_empty(too_large boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	now_at	int;
	inner_table regclass;
	slowest	pg_snapshot;
	passed	boolean;
BEGIN
	SELECT last_value INTO now_at FROM @extschema@.replica_log_current;
	FOR i IN 1 .. 3 LOOP
		inner_table := format('@extschema@.replica_log_%s', i)::regclass;
		CONTINUE WHEN i = now_at OR pg_relation_size(inner_table) = 0;

		BEGIN
			EXECUTE format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE NOWAIT', inner_table);
			-- no position may move back behind what we look at
			LOCK TABLE @extschema@.replica_slave IN SHARE MODE NOWAIT;

			-- an entry that some slave has not passed?
			EXECUTE format(
				'SELECT NOT EXISTS (SELECT FROM @extschema@.replica_slave s
					WHERE s.let_go_at IS NULL
					  AND EXISTS (SELECT FROM ONLY %1$s l
						WHERE l.xid >= pg_snapshot_xmin(s."position")
						  AND NOT pg_visible_in_snapshot(l.xid, s."position")))
				   AND ($1 OR EXISTS (SELECT FROM @extschema@.replica_slave))', inner_table)
			   INTO passed USING too_large;
			CONTINUE WHEN NOT passed;

			-- the slave that all others are ahead of; if there is none, nobody
			-- needs what is here now
			SELECT s."position" INTO slowest FROM @extschema@.replica_slave s
			 WHERE s.let_go_at IS NULL
			   AND NOT EXISTS (SELECT FROM @extschema@.replica_slave o
				WHERE o.let_go_at IS NULL
				  AND NOT @extschema@.py_log_covers(o."position", s."position"))
			 LIMIT 1;
			slowest := coalesce(slowest, pg_current_snapshot());
			UPDATE @extschema@.replica_log_state
			   SET horizon = slowest, cleaned_at = clock_timestamp()
			 WHERE NOT @extschema@.py_log_covers(horizon, slowest);
			EXECUTE format('TRUNCATE ONLY %s', inner_table);
		EXCEPTION WHEN lock_not_available THEN
			NULL;
		END;
	END LOOP;
END
$$;

-- Of the slaves that are away and that something in the log is kept for, lets the
-- one go that is farthest behind.  False: there is none.
CREATE FUNCTION py_log_let_go()
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	slave	text;
BEGIN
	SELECT s.name INTO slave
	  FROM @extschema@.replica_slave s
	 WHERE s.let_go_at IS NULL AND @extschema@.py_log_slave_pid(s.name) IS NULL
	   AND EXISTS (SELECT FROM @extschema@.replica_log l
					WHERE l.xid >= pg_snapshot_xmin(s."position")
					  AND NOT pg_visible_in_snapshot(l.xid, s."position"))
	 ORDER BY pg_snapshot_xmin(s."position"), pg_snapshot_xmax(s."position")
	 LIMIT 1 FOR UPDATE SKIP LOCKED;
	IF NOT FOUND THEN
		RETURN false;
	END IF;
	UPDATE @extschema@.replica_slave s SET let_go_at = clock_timestamp() WHERE s.name = slave;
	RAISE LOG 'pyreplica: the log is not kept any more for slave "%", which is away', slave
		USING DETAIL = format('The log takes %s; pyreplica.max_backlog is %s.',
							  pg_size_pretty(@extschema@.py_log_size()), current_setting('pyreplica.max_backlog', true)),
		HINT = 'When the slave is back, it makes its tables equal to the master''s by itself.';
	RETURN true;
END
$$;

-- Keeps the log small.  Slaves call it now and then; writers have it called when
-- the log is large and may have a limit, see src/master/cleaner.c.
CREATE FUNCTION py_log_rotate()
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	backlog	bigint;
	too_large boolean;
BEGIN
	-- each statement must see what is there once it has its lock
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RETURN;
	END IF;
	-- one at a time
	BEGIN
		LOCK TABLE @extschema@.replica_log_state IN EXCLUSIVE MODE NOWAIT;
	EXCEPTION WHEN lock_not_available THEN
		RETURN;
	END;
	backlog := @extschema@.py_log_bytes('pyreplica.max_backlog'::text, 0::bigint);
	LOOP
		PERFORM @extschema@.py_log_turn();
		too_large := backlog > 0 AND @extschema@.py_log_size() > backlog;
		PERFORM @extschema@.py_log_empty(too_large);
		EXIT WHEN NOT too_large OR @extschema@.py_log_size() <= backlog;
		EXIT WHEN NOT @extschema@.py_log_let_go();
	END LOOP;
END
$$;
COMMENT ON FUNCTION py_log_rotate() IS
'empties the inner log tables that every slave has passed; slaves call it now and then';

-- Called by a slave: everything that "position" sees is safe there.
-- How many slaves are connected is returned: each takes its part of the load that
-- the looks of all of them are.
CREATE FUNCTION py_log_confirm(slave text, "position" pg_snapshot)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	UPDATE @extschema@.replica_slave s
	   SET "position" = py_log_confirm."position", confirmed_at = clock_timestamp(),
		   begins_anew = false
	 WHERE s.name = slave;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'slave "%" is not known to the master any more', slave
			USING ERRCODE = 'undefined_object',
			DETAIL = 'It was dropped with py_log_drop_slave.';
	END IF;
	RETURN (SELECT count(*) FROM pg_locks k
			 WHERE k.locktype = 'advisory' AND k.granted AND k.objsubid = 2
			   AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
			   AND k.classid = 1887007347::oid);
END
$$;

-- Confirmations come about once a second while there is work.
CREATE FUNCTION py_log_wait(slave text DEFAULT NULL, timeout interval DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	here	pg_snapshot := pg_current_snapshot();
	until	timestamptz := clock_timestamp() + timeout;
	pause	double precision := 0.005;
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION 'py_log_wait cannot be used in a transaction of isolation level %', current_setting('transaction_isolation')
			USING ERRCODE = 'feature_not_supported',
			DETAIL = 'It would not see what slaves confirm meanwhile.';
	END IF;
	IF slave IS NOT NULL AND NOT EXISTS (SELECT FROM @extschema@.replica_slave s WHERE s.name = slave) THEN
		RAISE EXCEPTION 'slave "%" does not exist', slave
			USING ERRCODE = 'undefined_object';
	END IF;
	LOOP
		-- is there an entry of before the call that a slave has not confirmed?
		IF NOT EXISTS (
			SELECT FROM @extschema@.replica_slave s
			 WHERE (slave IS NULL OR s.name = slave)
			   AND (s.let_go_at IS NOT NULL OR s.begins_anew OR
					EXISTS (SELECT FROM @extschema@.replica_log l
							 WHERE l.xid >= pg_snapshot_xmin(s."position")
							   AND NOT pg_visible_in_snapshot(l.xid, s."position")
							   AND pg_visible_in_snapshot(l.xid, here)))) THEN
			RETURN true;
		END IF;
		IF clock_timestamp() >= until THEN
			RETURN false;
		END IF;
		PERFORM pg_sleep(pause);
		pause := least(pause * 1.5, 0.1);
	END LOOP;
END
$$;
COMMENT ON FUNCTION py_log_wait(text, interval) IS
'waits until a slave (all, if none is named) has confirmed everything that was committed before the call; false: it took too long';

CREATE VIEW pyreplica_slaves AS
SELECT s.name,
	   l.pid IS NOT NULL AS connected,
	   l.pid,
	   s.confirmed_at,
	   s.let_go_at,
	   b.entries AS entries_behind,
	   b.bytes AS bytes_behind,
	   CASE WHEN b.oldest IS NULL THEN interval '0'
			ELSE pg_catalog.clock_timestamp() - b.oldest END AS time_behind,
	   s."position",
	   s.attached_at
  FROM @extschema@.replica_slave s
 CROSS JOIN LATERAL @extschema@.py_log_slave_pid(s.name) AS l(pid)
 CROSS JOIN LATERAL (
		SELECT pg_catalog.count(*) FILTER (WHERE e.part = 0) AS entries,
			   coalesce(pg_catalog.sum(pg_catalog.length(e.changes)), 0) AS bytes,
			   pg_catalog.min(e.at) AS oldest
		  FROM @extschema@.replica_log e
		 WHERE e.xid >= pg_catalog.pg_snapshot_xmin(s."position")
		   AND NOT pg_catalog.pg_visible_in_snapshot(e.xid, s."position")) b;
COMMENT ON VIEW pyreplica_slaves IS
'pyreplica: a row per slave of this master, and how far behind it is';

-- What the role of pyreplica.master_conninfo needs, and nothing more.
CREATE FUNCTION py_log_grant(role name)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	EXECUTE format('GRANT USAGE ON SCHEMA @extschema@ TO %I', role);
	EXECUTE format('GRANT EXECUTE ON FUNCTION @extschema@.py_log_attach(text, text, pg_snapshot, pg_snapshot, pg_lsn, boolean) TO %I', role);
	EXECUTE format('GRANT EXECUTE ON FUNCTION @extschema@.py_log_confirm(text, pg_snapshot) TO %I', role);
	EXECUTE format('GRANT EXECUTE ON FUNCTION @extschema@.py_log_fetch(pg_snapshot, integer, integer, text, text, boolean) TO %I', role);
	EXECUTE format('GRANT EXECUTE ON FUNCTION @extschema@.py_log_rotate() TO %I', role);
	EXECUTE format('GRANT SELECT ON @extschema@.py_log_tables TO %I', role);
	-- what it takes to lock it
	EXECUTE format('GRANT UPDATE ON @extschema@.replica_partition_lock TO %I', role);
	EXECUTE format('GRANT EXECUTE ON FUNCTION @extschema@.py_log_sequences() TO %I', role);
	EXECUTE format('GRANT EXECUTE ON FUNCTION @extschema@.py_log_arguments(oid), @extschema@.py_log_options(oid), @extschema@.py_log_primary_key(regclass), @extschema@.py_log_row_columns(regclass, text[]), @extschema@.py_log_filter(regclass, text) TO %I', role);
	EXECUTE format('GRANT EXECUTE ON FUNCTION @extschema@.py_log_key(oid), @extschema@.py_log_is_unique(oid, text[]), @extschema@.py_log_order(oid, oid), @extschema@.py_log_describe(text, text, boolean), @extschema@.py_log_untranslatable(text, text[], text) TO %I', role);
END
$$;
COMMENT ON FUNCTION py_log_grant(name) IS
'grants a role what a slave needs to replicate from this database';

---------------------------------------------------------------------------
-- Slave
---------------------------------------------------------------------------

-- Where each replica stands.  Written in the transaction that applies the
-- changes, and nowhere else.
CREATE TABLE pyreplica_position (
	replica		text PRIMARY KEY,
	system_identifier text NOT NULL,
	"position"	pg_snapshot NOT NULL,
	wal			pg_lsn NOT NULL,
	confirmed	pg_snapshot,
	changed_at	timestamptz NOT NULL,
	began_at	timestamptz NOT NULL
) WITH (fillfactor = 50);
SELECT pg_catalog.pg_extension_config_dump('@extschema@.pyreplica_position', '');
COMMENT ON TABLE pyreplica_position IS
'pyreplica: where each replica of this database stands';
COMMENT ON COLUMN pyreplica_position.system_identifier IS 'of the master';
COMMENT ON COLUMN pyreplica_position."position" IS 'the master''s snapshot that the rows here equal';
COMMENT ON COLUMN pyreplica_position.wal IS 'write-ahead log position of the master at that time';
COMMENT ON COLUMN pyreplica_position.confirmed IS 'the last position that the master is known to remember';
COMMENT ON COLUMN pyreplica_position.began_at IS 'what was written here before is no conflict';

-- The tables that each replica follows.  Written by its worker alone, in the
-- transactions that change what it tells.
CREATE TABLE pyreplica_table (
	replica		text,
	schemaname	text,
	tablename	text,
	trigger		oid,
	filter		integer NOT NULL DEFAULT 0,
	state		text NOT NULL CHECK (state IN ('waiting', 'copying', 'ready')),
	bookmark	text[],
	key			text,
	is_resync	boolean NOT NULL DEFAULT false,
	rows_copied	bigint NOT NULL DEFAULT 0,
	rows_expected bigint NOT NULL DEFAULT 0,
	started_at	timestamptz,
	finished_at	timestamptz,
	last_error	text,
	last_error_at timestamptz,
	wants_resync boolean NOT NULL DEFAULT false,
	verified_at	timestamptz,
	differences bigint,
	PRIMARY KEY (replica, schemaname, tablename)
);
SELECT pg_catalog.pg_extension_config_dump('@extschema@.pyreplica_table', '');
COMMENT ON TABLE pyreplica_table IS
'pyreplica: the tables that each replica follows; to be read in pyreplica_tables';
COMMENT ON COLUMN pyreplica_table.trigger IS 'the log trigger on the master; another one means that changes may have been missed';
COMMENT ON COLUMN pyreplica_table.filter IS 'which of its rows and columns are logged, as a number; 0: all';
COMMENT ON COLUMN pyreplica_table.wants_resync IS 'asked for with pyreplica_resync; the worker takes it from here';
COMMENT ON COLUMN pyreplica_table.key IS 'the columns of the bookmark, their types, and how they sort';
COMMENT ON COLUMN pyreplica_table.bookmark IS 'key of the last row copied; rows past it are not here yet';

-- Definitions of the master that are carried out after the rows of the tables
-- they are about have been copied.  Each goes when that is done.
CREATE TABLE pyreplica_definition (
	replica		text,
	number		bigint,
	schemaname	text NOT NULL,
	tablename	text NOT NULL,
	what		text NOT NULL,
	definition	text NOT NULL,
	last_error	text,
	last_error_at timestamptz,
	PRIMARY KEY (replica, number)
);
SELECT pg_catalog.pg_extension_config_dump('@extschema@.pyreplica_definition', '');
COMMENT ON TABLE pyreplica_definition IS
'pyreplica: indexes, foreign keys and triggers that are still to be created (pyreplica.copy_schema); delete those that are not wanted';

-- What verifications have found.
CREATE TABLE pyreplica_difference (
	run			bigint NOT NULL,
	replica		text NOT NULL,
	schemaname	text NOT NULL,
	tablename	text NOT NULL,
	key			text[] NOT NULL,
	problem		text NOT NULL,
	repaired	boolean NOT NULL DEFAULT false,
	range		integer NOT NULL,
	found_at	timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE INDEX pyreplica_difference_run ON pyreplica_difference (run);
COMMENT ON COLUMN pyreplica_difference.range IS 'those of one number were found, and are repaired, together';
COMMENT ON TABLE pyreplica_difference IS
'pyreplica: rows that a verification found to be missing here, to be extra, or to differ from the master''s';

-- Tables of the master that have another name here.  Of several rows that are about
-- a table, one that names it counts before one that names its schema, then one
-- for its replica before one for all.
CREATE TABLE pyreplica_mapping (
	replica		text,
	schemaname	text NOT NULL,
	tablename	text,
	local_schema text NOT NULL,
	local_table	text,
	CHECK ((tablename IS NULL) = (local_table IS NULL))
);
CREATE UNIQUE INDEX pyreplica_mapping_key ON pyreplica_mapping
	(coalesce(replica, ''), schemaname, coalesce(tablename, ''));
SELECT pg_catalog.pg_extension_config_dump('@extschema@.pyreplica_mapping', '');
COMMENT ON TABLE pyreplica_mapping IS
'pyreplica: the master''s tables that have another name here; to be changed with pyreplica_map_table and pyreplica_map_schema';
COMMENT ON COLUMN pyreplica_mapping.replica IS 'null: all that have no row of their own';
COMMENT ON COLUMN pyreplica_mapping.schemaname IS 'the master''s, as tablename is';
COMMENT ON COLUMN pyreplica_mapping.tablename IS 'null: all tables of the schema that have no row of their own';

CREATE FUNCTION pyreplica_mapping_changed() RETURNS trigger
AS 'MODULE_PATHNAME', 'pyreplica_mapping_changed' LANGUAGE C;
CREATE TRIGGER pyreplica_mapping_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON pyreplica_mapping
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.pyreplica_mapping_changed();
ALTER TABLE pyreplica_mapping ENABLE ALWAYS TRIGGER pyreplica_mapping_changed;

-- What pyreplica_sync_sequences did last.
CREATE TABLE pyreplica_sequence (
	replica		text,
	schemaname	text,
	sequencename text,
	value		bigint,
	problem		text,
	synced_at	timestamptz NOT NULL DEFAULT pg_catalog.now(),
	PRIMARY KEY (replica, schemaname, sequencename)
);
COMMENT ON TABLE pyreplica_sequence IS
'pyreplica: the values that sequences were given by pyreplica_sync_sequences, and why some were left alone';

-- Who wins conflicts in a table; where there is no row, the setting of the
-- replica tells.
CREATE TABLE pyreplica_conflict_resolution (
	schemaname	text,
	tablename	text,
	resolution	text NOT NULL CHECK (resolution IN ('error', 'apply_remote', 'keep_local', 'last_update_wins')),
	column_name	text CHECK (column_name IS NULL OR resolution = 'last_update_wins'),
	PRIMARY KEY (schemaname, tablename)
);
SELECT pg_catalog.pg_extension_config_dump('@extschema@.pyreplica_conflict_resolution', '');
COMMENT ON TABLE pyreplica_conflict_resolution IS
'pyreplica: who wins conflicts in a table; to be changed with pyreplica_set_conflict_resolution';

-- What conflicts there were, each written in the transaction that settled it.
CREATE TABLE pyreplica_conflicts (
	at			timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	replica		text NOT NULL,
	schemaname	text NOT NULL,
	tablename	text NOT NULL,
	key			text[],
	kind		text NOT NULL,
	local_row	jsonb,
	local_origin text,
	local_at	timestamptz,
	remote_row	jsonb,
	statement	text,
	outcome		text NOT NULL,
	commitno	bigint NOT NULL,
	xid			xid8 NOT NULL,
	master_at	timestamptz NOT NULL
);
CREATE INDEX pyreplica_conflicts_at ON pyreplica_conflicts (at);
COMMENT ON TABLE pyreplica_conflicts IS
'pyreplica: changes of the master that met rows which they did not expect, and what was done';
COMMENT ON COLUMN pyreplica_conflicts.kind IS 'as PostgreSQL 18 names them, and skipped';
COMMENT ON COLUMN pyreplica_conflicts.local_row IS 'as it was here; an array if there were several';
COMMENT ON COLUMN pyreplica_conflicts.local_origin IS 'who wrote it last: "local" or another replica; null: not known';
COMMENT ON COLUMN pyreplica_conflicts.remote_row IS 'the key, and the columns that the master set';
COMMENT ON COLUMN pyreplica_conflicts.statement IS 'of what was skipped: the change as SQL';
COMMENT ON COLUMN pyreplica_conflicts.outcome IS 'applied remote, kept local, passed over (there was no row), skipped';
COMMENT ON COLUMN pyreplica_conflicts.commitno IS 'of the master''s transaction, as xid and master_at are';

CREATE TABLE pyreplica_conflict_counts (
	replica		text,
	schemaname	text,
	tablename	text,
	kind		text,
	count		bigint NOT NULL,
	last_at		timestamptz NOT NULL,
	PRIMARY KEY (replica, schemaname, tablename, kind)
) WITH (fillfactor = 50);
COMMENT ON TABLE pyreplica_conflict_counts IS
'pyreplica: how many conflicts of each kind a table has had, ever';

-- The transaction that cannot be applied, while that is so.
CREATE TABLE pyreplica_failure (
	replica		text PRIMARY KEY,
	commitno	bigint NOT NULL,
	xid			xid8 NOT NULL,
	number		bigint NOT NULL,
	changes		bigint NOT NULL DEFAULT 0,
	message		text NOT NULL,
	detail		text,
	hint		text,
	master_at	timestamptz NOT NULL,
	first_at	timestamptz NOT NULL DEFAULT pg_catalog.now(),
	last_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	times		bigint NOT NULL DEFAULT 1
);
COMMENT ON TABLE pyreplica_failure IS
'pyreplica: the master''s transaction that a replica cannot apply, if there is one';
COMMENT ON COLUMN pyreplica_failure.number IS 'which of its changes fails; see pyreplica_failure_change';
COMMENT ON COLUMN pyreplica_failure.changes IS 'how many it has';

CREATE TABLE pyreplica_failure_change (
	replica		text,
	number		bigint,
	schemaname	text NOT NULL,
	tablename	text NOT NULL,
	statement	text NOT NULL,
	PRIMARY KEY (replica, number)
);
COMMENT ON TABLE pyreplica_failure_change IS
'pyreplica: the changes of that transaction as SQL (the first thousand, and the one that fails)';

-- What somebody wants to have passed over; the worker deletes it with that.
CREATE TABLE pyreplica_skip_request (
	replica		text PRIMARY KEY,
	commitno	bigint NOT NULL,
	xid			xid8 NOT NULL,
	number		bigint,
	requested_by text NOT NULL DEFAULT session_user,
	requested_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);

-- Where each table is here; as mapping.c finds it.
CREATE VIEW pyreplica_place AS
SELECT t.replica, t.schemaname, t.tablename,
	   coalesce(m.local_schema, t.schemaname) AS local_schema,
	   coalesce(m.local_table, t.tablename) AS local_table
  FROM @extschema@.pyreplica_table t
  LEFT JOIN LATERAL (SELECT p.local_schema, p.local_table
					   FROM @extschema@.pyreplica_mapping p
					  WHERE (p.replica IS NULL OR p.replica = t.replica)
						AND p.schemaname = t.schemaname
						AND (p.tablename IS NULL OR p.tablename = t.tablename)
					  ORDER BY p.tablename IS NULL, p.replica IS NULL
					  LIMIT 1) m ON true;

CREATE VIEW pyreplica_tables AS
SELECT t.replica, t.schemaname, t.tablename,
	   CASE WHEN t.last_error IS NOT NULL THEN 'error' ELSE t.state END AS state,
	   t.rows_copied,
	   CASE WHEN t.state = 'ready' THEN t.rows_copied
			ELSE greatest(t.rows_expected, t.rows_copied) END AS rows_expected,
	   CASE WHEN p.seconds > 0 THEN (t.rows_copied / p.seconds)::bigint END AS rows_per_second,
	   CASE WHEN t.state = 'ready' THEN t.finished_at
			WHEN t.rows_copied > 0 THEN t.started_at + pg_catalog.make_interval(secs =>
				p.seconds * greatest(t.rows_expected, t.rows_copied) / t.rows_copied) END AS expected_end,
	   t.started_at, t.finished_at,
	   coalesce(t.last_error, d.last_error) AS last_error,
	   CASE WHEN t.last_error IS NOT NULL THEN t.last_error_at ELSE d.last_error_at END AS last_error_at,
	   t.verified_at, t.differences, d.definitions_left,
	   CASE WHEN l.local_schema <> t.schemaname OR l.local_table <> t.tablename
			THEN pg_catalog.format('%I.%I', l.local_schema, l.local_table) END AS slave_table
  FROM @extschema@.pyreplica_table t JOIN @extschema@.pyreplica_place l USING (replica, schemaname, tablename),
	   LATERAL (SELECT pg_catalog.count(*) AS definitions_left,
					   (pg_catalog.array_agg(p.last_error ORDER BY p.last_error_at DESC NULLS LAST))[1] AS last_error,
					   pg_catalog.max(p.last_error_at) AS last_error_at
				  FROM @extschema@.pyreplica_definition p
				 WHERE p.replica = t.replica AND p.schemaname = t.schemaname
				   AND p.tablename = t.tablename) d,
	   LATERAL (SELECT extract(epoch FROM coalesce(t.finished_at, pg_catalog.clock_timestamp()) - t.started_at)::double precision AS seconds) p;
COMMENT ON VIEW pyreplica_tables IS
'pyreplica: a row per table that is replicated, and how far its copy is';

CREATE FUNCTION pyreplica_status(
	OUT replica text, OUT pid integer, OUT state text, OUT master text,
	OUT database text, OUT "position" text,
	OUT in_step_at timestamptz, OUT lag interval,
	OUT last_window_at timestamptz,
	OUT transactions bigint, OUT rows bigint,
	OUT windows bigint, OUT fallbacks bigint, OUT conflicts bigint,
	OUT errors bigint, OUT last_error text, OUT last_error_at timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pyreplica_status' LANGUAGE C STRICT VOLATILE;

CREATE VIEW pyreplica_status AS
SELECT * FROM @extschema@.pyreplica_status();
COMMENT ON VIEW pyreplica_status IS
'pyreplica: a row per replica that this server maintains';

CREATE FUNCTION pyreplica_wake() RETURNS void
AS 'MODULE_PATHNAME', 'pyreplica_wake' LANGUAGE C VOLATILE STRICT;

-- The replicas of this database that follow a table, by its name here, of those
-- that there are (rows of pyreplica_table may be left of others).
CREATE FUNCTION pyreplica_followers(schemaname text, tablename text)
RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(array_agg(DISTINCT t.replica ORDER BY t.replica), '{}')
	  FROM @extschema@.pyreplica_place t
	 WHERE t.local_schema = $1 AND t.local_table = $2
	   AND t.replica IN (SELECT s.replica FROM @extschema@.pyreplica_status() s
						  WHERE s.database = current_database())
$$;

-- A name as users write it, in its two parts.
CREATE FUNCTION pyreplica_name_parts(name text)
RETURNS text[]
LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	parts	text[] := parse_ident(name);
BEGIN
	IF cardinality(parts) > 2 THEN
		RAISE EXCEPTION 'improper table name: %', name
			USING ERRCODE = 'syntax_error',
			HINT = 'It is schema.table, or just the table if that is in the schema public.';
	END IF;
	RETURN CASE cardinality(parts) WHEN 1 THEN ARRAY['public'] || parts ELSE parts END;
END
$$;

-- Lays a mapping down, or takes it away.
CREATE FUNCTION pyreplica_map(schemaname text, tablename text, local_schema text, local_table text, replica text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	IF pyreplica_map.local_schema IS NULL THEN
		DELETE FROM @extschema@.pyreplica_mapping m
		 WHERE m.schemaname = pyreplica_map.schemaname
		   AND m.tablename IS NOT DISTINCT FROM pyreplica_map.tablename
		   AND m.replica IS NOT DISTINCT FROM pyreplica_map.replica;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'nothing is laid down about "%" of the master%',
				concat_ws('.', pyreplica_map.schemaname, pyreplica_map.tablename),
				coalesce(' for replica "' || pyreplica_map.replica || '"', '')
				USING ERRCODE = 'undefined_object',
				HINT = 'See pyreplica_mapping.';
		END IF;
	ELSE
		INSERT INTO @extschema@.pyreplica_mapping (replica, schemaname, tablename, local_schema, local_table)
		VALUES (pyreplica_map.replica, pyreplica_map.schemaname, pyreplica_map.tablename,
				pyreplica_map.local_schema, pyreplica_map.local_table)
		ON CONFLICT (coalesce(replica, ''), schemaname, coalesce(tablename, '')) DO UPDATE
		   SET local_schema = excluded.local_schema, local_table = excluded.local_table;
	END IF;
	PERFORM @extschema@.pyreplica_wake();
END
$$;

CREATE FUNCTION pyreplica_map_table(master_table text, slave_table text, replica text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	there	text[] := @extschema@.pyreplica_name_parts(master_table);
	here	text[] := @extschema@.pyreplica_name_parts(slave_table);
BEGIN
	IF there IS NULL THEN
		RAISE EXCEPTION 'the master''s table must be named'
			USING ERRCODE = 'null_value_not_allowed';
	END IF;
	PERFORM @extschema@.pyreplica_map(there[1], there[2], here[1], here[2], replica);
END
$$;
COMMENT ON FUNCTION pyreplica_map_table(text, text, text) IS
'the master''s table (or sequence) has another name here, for one replica or all; null: the same name again';

CREATE FUNCTION pyreplica_map_schema(master_schema text, slave_schema text, replica text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF master_schema IS NULL THEN
		RAISE EXCEPTION 'the master''s schema must be named'
			USING ERRCODE = 'null_value_not_allowed';
	END IF;
	PERFORM @extschema@.pyreplica_map(master_schema, NULL, slave_schema, NULL, replica);
END
$$;
COMMENT ON FUNCTION pyreplica_map_schema(text, text, text) IS
'the master''s tables of that schema are in another one here, for one replica or all; null: in the same again';

-- Making rows equal to one master's takes away those of another.
CREATE FUNCTION pyreplica_refuse_shared(schemaname text, tablename text, followers text[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF cardinality(followers) > 1 THEN
		RAISE EXCEPTION 'table "%.%" is replicated by several replicas: %', schemaname, tablename,
			array_to_string(followers, ', ')
			USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = 'The table would be made equal to one master, without the rows of the others.',
			HINT = 'If that is what you want, name the replica.';
	END IF;
END
$$;

CREATE FUNCTION pyreplica_resync(tablename regclass, replica text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	nspname	text;
	relname	text;
	followers text[];
BEGIN
	SELECT n.nspname, c.relname INTO nspname, relname
	  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	 WHERE c.oid = pyreplica_resync.tablename;
	followers := @extschema@.pyreplica_followers(nspname, relname);
	IF pyreplica_resync.replica IS NULL THEN
		PERFORM @extschema@.pyreplica_refuse_shared(nspname, relname, followers);
	ELSE
		followers := ARRAY[pyreplica_resync.replica];
	END IF;
	UPDATE @extschema@.pyreplica_table t SET wants_resync = true
	  FROM @extschema@.pyreplica_place p
	 WHERE p.local_schema = nspname AND p.local_table = relname
	   AND p.replica = ANY (followers)
	   AND t.replica = p.replica AND t.schemaname = p.schemaname AND t.tablename = p.tablename;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'table "%.%" is not replicated', nspname, relname
			USING ERRCODE = 'undefined_object',
			HINT = 'The view pyreplica_tables shows those that are; a table is when it has a log trigger on the master (py_log_create_tg).';
	END IF;
	PERFORM @extschema@.pyreplica_wake();
END
$$;
COMMENT ON FUNCTION pyreplica_resync(regclass, text) IS
'copies a table anew, over what is here: its rows are made equal to the master''s, range by range';

CREATE FUNCTION pyreplica_own(xid) RETURNS boolean
AS 'MODULE_PATHNAME', 'pyreplica_own' LANGUAGE C STABLE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION pyreplica_own(xid) IS
'for the worker''s statements: whether it takes that transaction for its own';

CREATE FUNCTION pyreplica_set_conflict_resolution(tablename regclass, resolution text, column_name text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	nspname	text;
	relname	text;
BEGIN
	SELECT n.nspname, c.relname INTO nspname, relname
	  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	 WHERE c.oid = pyreplica_set_conflict_resolution.tablename;
	IF resolution NOT IN ('error', 'apply_remote', 'keep_local', 'last_update_wins') THEN
		RAISE EXCEPTION 'invalid conflict resolution "%"', resolution
			USING ERRCODE = 'invalid_parameter_value',
			HINT = 'It is one of error, apply_remote, keep_local and last_update_wins; null: as pyreplica.conflict_resolution says.';
	END IF;
	IF pyreplica_set_conflict_resolution.column_name IS NOT NULL THEN
		IF resolution IS DISTINCT FROM 'last_update_wins' THEN
			RAISE EXCEPTION 'a column can only tell who wins with last_update_wins'
				USING ERRCODE = 'invalid_parameter_value';
		END IF;
		IF NOT EXISTS (SELECT FROM pg_attribute a
						WHERE a.attrelid = pyreplica_set_conflict_resolution.tablename
						  AND a.attname = pyreplica_set_conflict_resolution.column_name
						  AND a.attnum > 0 AND NOT a.attisdropped) THEN
			RAISE EXCEPTION 'column "%" of table "%.%" does not exist',
				pyreplica_set_conflict_resolution.column_name, nspname, relname
				USING ERRCODE = 'undefined_column';
		END IF;
	END IF;
	IF resolution IS NULL THEN
		DELETE FROM @extschema@.pyreplica_conflict_resolution r
		 WHERE r.schemaname = nspname AND r.tablename = relname;
	ELSE
		INSERT INTO @extschema@.pyreplica_conflict_resolution
		VALUES (nspname, relname, pyreplica_set_conflict_resolution.resolution, pyreplica_set_conflict_resolution.column_name)
		ON CONFLICT (schemaname, tablename) DO UPDATE
		   SET resolution = excluded.resolution, column_name = excluded.column_name;
	END IF;
	PERFORM @extschema@.pyreplica_wake();
END
$$;
COMMENT ON FUNCTION pyreplica_set_conflict_resolution(regclass, text, text) IS
'says who wins conflicts in a table: error, apply_remote, keep_local, last_update_wins (by a column, if one is named; else by commit timestamps); null: as pyreplica.conflict_resolution says';

CREATE FUNCTION pyreplica_skip(replica text, commitno bigint, xid xid8 DEFAULT NULL,
	number bigint DEFAULT NULL, really boolean DEFAULT false,
	OUT change bigint, OUT "table" text, OUT statement text, OUT what text)
RETURNS SETOF record
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
	failure	record;
BEGIN
	SELECT * INTO failure FROM @extschema@.pyreplica_failure f
	 WHERE f.replica = pyreplica_skip.replica;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'replica "%" has no transaction that fails', pyreplica_skip.replica
			USING ERRCODE = 'object_not_in_prerequisite_state',
			HINT = 'pyreplica_failure shows the replicas that have one.';
	END IF;
	IF failure.commitno <> pyreplica_skip.commitno
	   OR failure.xid <> coalesce(pyreplica_skip.xid, failure.xid) THEN
		RAISE EXCEPTION 'that is not the transaction that fails'
			USING ERRCODE = 'object_not_in_prerequisite_state',
			DETAIL = format('The one that replica "%s" cannot apply has commit number %s and transaction id %s.', failure.replica, failure.commitno, failure.xid);
	END IF;
	IF NOT pyreplica_skip.number BETWEEN 1 AND failure.changes THEN
		RAISE EXCEPTION 'the transaction has no change %', pyreplica_skip.number
			USING ERRCODE = 'invalid_parameter_value',
			DETAIL = format('It has %s changes; number %s fails.', failure.changes, failure.number);
	END IF;
	IF really THEN
		INSERT INTO @extschema@.pyreplica_skip_request (replica, commitno, xid, number)
		VALUES (failure.replica, failure.commitno, failure.xid, pyreplica_skip.number)
		ON CONFLICT (replica) DO UPDATE
		   SET commitno = excluded.commitno, xid = excluded.xid, number = excluded.number,
			   requested_by = excluded.requested_by, requested_at = excluded.requested_at;
	END IF;
	RETURN QUERY
	SELECT c.number, CASE WHEN c.tablename <> '' THEN format('%I.%I', c.schemaname, c.tablename) END, c.statement,
		   CASE WHEN pyreplica_skip.number <> c.number THEN 'stays'
				WHEN really THEN 'will be passed over'
				ELSE 'would be passed over' END
		   || CASE WHEN c.number = failure.number THEN ': ' || failure.message ELSE '' END
	  FROM @extschema@.pyreplica_failure_change c
	 WHERE c.replica = failure.replica
	 ORDER BY c.number;
END
$$;
COMMENT ON FUNCTION pyreplica_skip(text, bigint, xid8, bigint, boolean) IS
'shows the changes of the master''s transaction that cannot be applied; really: has it, or one change of it, passed over at the next try';

CREATE FUNCTION pyreplica_verify_run(replica text, schemaname text, tablename text, repair boolean)
RETURNS bigint
AS 'MODULE_PATHNAME', 'pyreplica_verify_run' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION pyreplica_verify(tablename regclass DEFAULT NULL, replica text DEFAULT NULL, repair boolean DEFAULT false,
	OUT "table" text, OUT key text[], OUT problem text)
RETURNS SETOF record
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	nspname	text := '';
	relname	text := '';
	replicas text[];
	shared	record;
	number	bigint;
	begun	timestamptz := clock_timestamp();
	left_out text;
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION 'pyreplica_verify cannot be used in a transaction of isolation level %', current_setting('transaction_isolation')
			USING ERRCODE = 'feature_not_supported',
			DETAIL = 'It would not see what the worker finds meanwhile.';
	END IF;
	SELECT array_agg(s.replica) INTO replicas FROM @extschema@.pyreplica_status() s
	 WHERE s.database = current_database()
	   AND (pyreplica_verify.replica IS NULL OR s.replica = pyreplica_verify.replica);
	IF replicas IS NULL AND replica IS NOT NULL THEN
		RAISE EXCEPTION 'replica "%" does not exist in this database', replica
			USING ERRCODE = 'undefined_object',
			HINT = 'See the view pyreplica_status.';
	ELSIF replicas IS NULL THEN
		RAISE EXCEPTION 'this database has no replica'
			USING ERRCODE = 'undefined_object',
			HINT = 'See the view pyreplica_status.';
	END IF;
	IF tablename IS NOT NULL THEN
		SELECT n.nspname, c.relname INTO nspname, relname
		  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 WHERE c.oid = pyreplica_verify.tablename;
	END IF;
	IF repair AND replica IS NULL THEN
		FOR shared IN
			SELECT DISTINCT t.local_schema AS schemaname, t.local_table AS tablename
			  FROM @extschema@.pyreplica_place t
			 WHERE pyreplica_verify.tablename IS NULL OR (t.local_schema = nspname AND t.local_table = relname)
		LOOP
			PERFORM @extschema@.pyreplica_refuse_shared(shared.schemaname, shared.tablename,
				@extschema@.pyreplica_followers(shared.schemaname, shared.tablename));
		END LOOP;
	END IF;
	IF tablename IS NOT NULL AND replica IS NULL THEN
		replicas := @extschema@.pyreplica_followers(nspname, relname);
		IF replicas = '{}' THEN
			RAISE EXCEPTION 'could not verify: the table is not replicated, or not ready'
				USING ERRCODE = 'object_not_in_prerequisite_state';
		END IF;
	END IF;

	FOREACH replica IN ARRAY replicas LOOP
		number := @extschema@.pyreplica_verify_run(replica, nspname, relname, repair);
		RETURN QUERY
		SELECT format('%I.%I', d.schemaname, d.tablename), d.key, d.problem
		  FROM @extschema@.pyreplica_difference d
		 WHERE d.run = number AND d.replica = pyreplica_verify.replica
		 ORDER BY 1, 2;
	END LOOP;

	-- tables that are not ready are passed over
	IF tablename IS NULL THEN
		SELECT string_agg(format('%I.%I (%s)', t.schemaname, t.tablename, t.state), ', ' ORDER BY t.schemaname, t.tablename)
		  INTO left_out
		  FROM @extschema@.pyreplica_table p
		  JOIN @extschema@.pyreplica_tables t USING (replica, schemaname, tablename)
		 WHERE p.replica = ANY (replicas)
		   AND (p.verified_at < begun OR p.verified_at IS NULL);
		IF left_out IS NOT NULL THEN
			RAISE WARNING 'not verified: %', left_out
				USING HINT = 'Tables can be verified when they are ready, see pyreplica_tables.';
		END IF;
	END IF;
END
$$;
COMMENT ON FUNCTION pyreplica_verify(regclass, text, boolean) IS
'compares a table (all, if none is named) with the master (of each replica that it comes from, if none is named), each range of rows at one instant, without locks; returns the rows that differ, and takes the master''s if told to repair';

CREATE FUNCTION pyreplica_sync_run(replica text)
RETURNS void
AS 'MODULE_PATHNAME', 'pyreplica_sync_run' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION pyreplica_sync_sequences(replica text DEFAULT NULL,
	OUT sequence text, OUT value bigint, OUT problem text)
RETURNS SETOF record
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	replicas text[];
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE EXCEPTION 'pyreplica_sync_sequences cannot be used in a transaction of isolation level %', current_setting('transaction_isolation')
			USING ERRCODE = 'feature_not_supported',
			DETAIL = 'It would not see what the worker does meanwhile.';
	END IF;
	SELECT array_agg(s.replica ORDER BY s.replica) INTO replicas FROM @extschema@.pyreplica_status() s
	 WHERE s.database = current_database()
	   AND (pyreplica_sync_sequences.replica IS NULL OR s.replica = pyreplica_sync_sequences.replica);
	IF replicas IS NULL AND replica IS NOT NULL THEN
		RAISE EXCEPTION 'replica "%" does not exist in this database', replica
			USING ERRCODE = 'undefined_object',
			HINT = 'See the view pyreplica_status.';
	ELSIF replicas IS NULL THEN
		RAISE EXCEPTION 'this database has no replica'
			USING ERRCODE = 'undefined_object',
			HINT = 'See the view pyreplica_status.';
	END IF;
	FOREACH replica IN ARRAY replicas LOOP
		PERFORM @extschema@.pyreplica_sync_run(replica);
		RETURN QUERY
		SELECT format('%I.%I', q.schemaname, q.sequencename), q.value, q.problem
		  FROM @extschema@.pyreplica_sequence q
		 WHERE q.replica = pyreplica_sync_sequences.replica
		 ORDER BY 1;
	END LOOP;
END
$$;
COMMENT ON FUNCTION pyreplica_sync_sequences(text) IS
'gives the sequences of replicated tables the exact values that they have on the master, for a switch-over; returns what each has now, or why it was left alone';

CREATE FUNCTION pyreplica_wait(replica text DEFAULT NULL, timeout interval DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'pyreplica_wait' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION pyreplica_wait(text, interval) IS
'waits until everything that was committed on the master before the call is here, in all tables but those whose copy failed, for one replica or all of this database; false: it took too long';

---------------------------------------------------------------------------
-- Rights: nothing for everybody; see py_log_grant and pg_monitor
---------------------------------------------------------------------------

REVOKE ALL ON replica_log, replica_log_1, replica_log_2, replica_log_3,
	replica_log_sql, replica_log_state, replica_slave, pyreplica_slaves,
	pyreplica_position, pyreplica_status, py_log_tables, pyreplica_table,
	pyreplica_tables, pyreplica_definition, pyreplica_difference, replica_dump,
	py_log_sequence_use, pyreplica_sequence, replica_partition_lock,
	pyreplica_conflict_resolution, pyreplica_conflicts,
	pyreplica_conflict_counts, pyreplica_failure, pyreplica_failure_change,
	pyreplica_skip_request, pyreplica_mapping, pyreplica_place FROM PUBLIC;
REVOKE ALL ON SEQUENCE replica_log_current FROM PUBLIC;
REVOKE ALL ON FUNCTION
	py_log_changes(bytea), py_log_replica(), py_log_node(),
	py_log_fetch(pg_snapshot, integer, integer, text, text, boolean),
	py_log_create_tg(text, text, text, text[], text[], boolean, boolean, boolean),
	py_log_create_tg(text, text[], text[], boolean, text, boolean, boolean),
	py_log_truncate_tg(regclass, text[], boolean, "char"), py_log_topmost(oid),
	py_log_rows(regclass, oid, boolean), py_log_partitions(), py_log_partitions_dropped(),
	py_log_is_ours(xid), py_log_there(text), py_log_only_here(text),
	py_log_row_columns(regclass, text[]),
	py_log_filter(regclass, text), py_log_columns(regclass, text[], text[]),
	py_log_arguments(oid), py_log_options(oid), py_log_primary_key(regclass), py_log_key_problem(regclass, text[]),
	py_log_drop_tg(text, text), py_log_drop_tg(text), py_log_sql(text),
	py_log_add_slave(text), py_log_drop_slave(text),
	py_log_attach(text, text, pg_snapshot, pg_snapshot, pg_lsn, boolean),
	py_log_rotate(), py_log_turn(), py_log_empty(boolean), py_log_let_go(),
	py_log_size(), py_log_bytes(text, bigint), py_log_slave_pid(text),
	py_log_confirm(text, pg_snapshot), py_log_grant(name),
	py_log_key(oid), py_log_is_unique(oid, text[]), py_log_order(oid, oid), py_log_describe(text, text, boolean),
	py_log_untranslatable(text, text[], text),
	py_log_covers(pg_snapshot, pg_snapshot), py_log_table_schema(text),
	py_log_wait(text, interval), py_log_sequences(), py_log_sequence_value(oid), py_log_interleave_sequences(integer, integer, integer),
	pyreplica_sync_run(text), pyreplica_sync_sequences(text),
	pyreplica_status(), pyreplica_wake(), pyreplica_resync(regclass, text),
	pyreplica_followers(text, text), pyreplica_refuse_shared(text, text, text[]),
	pyreplica_set_conflict_resolution(regclass, text, text),
	pyreplica_mapping_changed(), pyreplica_name_parts(text),
	pyreplica_map(text, text, text, text, text),
	pyreplica_map_table(text, text, text), pyreplica_map_schema(text, text, text),
	pyreplica_skip(text, bigint, xid8, bigint, boolean),
	pyreplica_verify_run(text, text, text, boolean), pyreplica_verify(regclass, text, boolean)
FROM PUBLIC;
GRANT SELECT ON pyreplica_slaves, pyreplica_status, pyreplica_tables,
	pyreplica_conflict_resolution, pyreplica_conflict_counts, pyreplica_mapping TO pg_monitor;
GRANT EXECUTE ON FUNCTION pyreplica_status(), py_log_slave_pid(text) TO pg_monitor;
