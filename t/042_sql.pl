# Tables change, while clients write: by statements that the master passes on
# (py_log_sql), at their place among the changes, and carried out on the slave with
# no more rights than the owner of its database has.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $conf = "autovacuum = off\n";
my $master = new_master('master', conf => $conf);
my $slave = new_slave($master, 'slave', copy => 1, database => 'there', conf => $conf);
wait_worker($slave);
$slave->safe_psql('postgres', 'CREATE ROLE keeper; ALTER DATABASE there OWNER TO keeper');

sub here  { my ($sql) = @_; return $master->safe_psql('postgres', $sql); }
sub there { my ($sql) = @_; return $slave->safe_psql('there', $sql); }

# What the master says against a statement.
sub refusal { my ($sql) = @_; return ($master->psql('postgres', $sql))[2]; }

sub pass_on
{
	my (@statements) = @_;
	here('SELECT py_log_sql($passed$' . join(";\n", @statements) . '$passed$)');
	return;
}

sub wait_ready
{
	my (@tables) = @_;
	my $list = join(', ', map { "'$_'" } @tables);
	return poll_until(
		sub {
			there("SELECT count(*) FROM pyreplica_tables WHERE tablename IN ($list) AND state = 'ready'") eq @tables;
		}) || diag(there('SELECT * FROM pyreplica_tables'));
}

# Until the replica has failed once more than it had, for that reason.
sub wait_failure
{
	my ($errors, $reason) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_status($slave, "state = 'error' AND errors > $errors");
	return like(status_value($slave, 'last_error'), $reason, 'the replica stops there, and says why');
}

# Has the transaction that fails passed over.
sub pass_over
{
	there('SELECT s.* FROM pyreplica_failure f, pyreplica_skip(f.replica, f.commitno, f.xid, really => true) s');
	wait_caught_up($slave);
	return;
}

# How often tables have been copied since a place in the log, but for what is there to
# hold windows back.
sub copies { my ($from) = @_; return count_log($slave, $from, 'copying table "public\.(?!pulse")'); }

# A table's columns, with types and defaults.
sub columns_of
{
	my ($node, $table) = @_;
	return $node->safe_psql($node == $slave ? 'there' : 'postgres',
		"SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)), ', ' ORDER BY a.attname)
		   FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		  WHERE a.attrelid = '$table'::regclass AND a.attnum > 0 AND NOT a.attisdropped");
}

sub is_like
{
	my ($name, @tables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($slave);
	is(columns_of($slave, $_), columns_of($master, $_), "$name: columns of $_") for @tables;
	is_same($master, $slave, $_, "$name: rows of $_") for @tables;
	return;
}

# --- What is no statement, and who may not call it ---

like(refusal('SELECT py_log_sql(NULL)'), qr/the statement must not be null/, 'NULL is no statement');
like(refusal(q(SELECT py_log_sql(' -- nothing'))), qr/there is no statement to be run/, 'nothing is none');
like(refusal(q(SELECT py_log_sql('CREATE TABEL t ()'))), qr/syntax error at or near "TABEL"/, 'what is misspelt');
like(refusal(q(SELECT py_log_sql('CREATE TABLE half (id int); COMMIT'))), qr/cannot begin or end transactions/, 'no end of the transaction');
like(refusal(q(SELECT py_log_sql('DO $$BEGIN COMMIT; END$$'))), qr/invalid transaction termination/, 'nor by a block');
like(refusal(q(SELECT py_log_sql('VACUUM'))), qr/VACUUM cannot be executed from a function/, 'VACUUM is refused by the server');
like(refusal(q(SELECT py_log_sql('CREATE INDEX CONCURRENTLY ON pg_class (oid)'))), qr/CREATE INDEX CONCURRENTLY cannot be executed from a function/, 'so is CREATE INDEX CONCURRENTLY');
like(refusal(q(SELECT py_log_sql('CREATE TEMP TABLE mine (id int)'))), qr/what is temporary cannot be passed on/, 'nothing temporary');
like(refusal(q(SELECT py_log_sql('DROP EXTENSION pyreplica'))), qr/extension "pyreplica" cannot be changed/, 'nothing of pyreplica');
like(refusal(q(SELECT py_log_sql('SELECT lower(''x''); CREATE TABLE a (id int); CREATE TABLE a (id int)'))), qr/relation "a" already exists/, 'an error in the third of three statements');
like(refusal(q(SELECT py_log_sql('DO $$BEGIN PERFORM py_log_sql(''CREATE TABLE a ()''); END$$'))), qr/cannot be called within a statement that is passed on/, 'not within one another');
here('CREATE ROLE someone; GRANT CREATE ON SCHEMA public TO someone');
like(refusal(q(SET ROLE someone; SELECT py_log_sql('CREATE TABLE a ()'))), qr/permission denied for function py_log_sql/, 'it has to be granted');
here('GRANT EXECUTE ON FUNCTION py_log_sql TO someone');
like(refusal(q(SET ROLE someone; SELECT py_log_sql('DROP TABLE pg_class'))), qr/must be owner of table pg_class/, 'and gives no rights here');
is(here('SELECT count(*) FROM replica_log'), 0, 'nothing of that is logged');

# --- A table is made, filled, and followed; then changed in many ways ---

here(<<'SQL');
SELECT py_log_sql($$
	CREATE TYPE mood AS ENUM ('good');
	CREATE TABLE item (id int PRIMARY KEY, a text, m mood);
	SELECT py_log_create_tg('item');
	INSERT INTO item SELECT i, 'item ' || i, 'good' FROM generate_series(1, 100) i;
	CREATE VIEW few AS SELECT * FROM item WHERE id < 10;
	COMMENT ON TABLE item IS 'all; of -- them';
$$);
SQL
wait_caught_up($slave);
wait_ready('item');
is_like('made by one call', 'item', 'few');
is(there(q(SELECT count(*) FROM pg_trigger WHERE tgname ~ '^!')), 0, 'the log trigger is made on the master only');
is(there(q(SELECT obj_description('item'::regclass))), 'all; of -- them', 'a comment');
is( here(q(SELECT string_agg(operation || ' ' || coalesce(tablename, '-'), ',' ORDER BY number) FROM (SELECT DISTINCT ON (operation, tablename) * FROM replica_log_sql ORDER BY operation, tablename, number) s)),
	'SQL -,INSERT item', 'the log shows statements and rows');
is(here(q(SELECT statement FROM replica_log_sql WHERE operation = 'SQL' ORDER BY number LIMIT 1)), q(CREATE TYPE mood AS ENUM ('good')), 'as they are');

my $from = log_position($slave);
here(<<'SQL');
BEGIN;
INSERT INTO item VALUES (101, 'before', 'good');
SELECT py_log_sql('ALTER TABLE item ADD c numeric DEFAULT 1.50');
INSERT INTO item VALUES (102, 'after', 'good', 2);
SAVEPOINT s;
SELECT py_log_sql('ALTER TABLE item ADD gone int; UPDATE item SET gone = id');
INSERT INTO item VALUES (103, 'never', 'good', 3, 4);
ROLLBACK TO s;
UPDATE item SET c = id WHERE id > 98;
COMMIT;
SQL
is_like('at its place, but for what was rolled back', 'item');

# Each change is followed by rows that need it, and all of it comes as one window.
my @changes = (
	'DROP VIEW few',
	'ALTER TABLE item ADD d timestamptz NOT NULL DEFAULT now(); UPDATE item SET d = clock_timestamp()',
	q(ALTER TABLE item ADD e int[] DEFAULT '{}'),
	'ALTER TABLE item DROP a',
	q(ALTER TABLE item ALTER c TYPE text USING 'c ' || c),
	'ALTER TABLE item RENAME c TO c2',
	'CREATE UNIQUE INDEX item_c2 ON item (c2, id)',
	'ALTER TABLE item ALTER id TYPE bigint',
	q(ALTER TYPE mood ADD VALUE 'bad'; ALTER TYPE mood ADD VALUE IF NOT EXISTS 'bad'),
	q(ALTER TYPE mood ADD VALUE 'so so' BEFORE 'bad'),
	'ALTER TABLE item RENAME TO thing',
	'CREATE SCHEMA store; ALTER TABLE thing SET SCHEMA store',
	'ALTER SCHEMA store RENAME TO shelf',
	'ALTER TABLE shelf.thing RENAME TO item; ALTER TABLE shelf.item SET SCHEMA public',
	'GRANT SELECT ON item TO PUBLIC; ALTER TABLE item ADD CHECK (id > -1), ADD g int GENERATED ALWAYS AS (id * 2) STORED',
	'DROP INDEX item_c2');
my $round = 0;
foreach my $held (0, 1)
{
	here('CREATE TABLE other (id int PRIMARY KEY, n int)') if !$held;
	there('CREATE TABLE other (id int PRIMARY KEY, n int); ALTER TABLE other OWNER TO keeper') if !$held;
	log_table($master, 'other') if !$held;
	wait_ready('other');
	$from = log_position($slave);
	my $hold = $held ? hold_back($master, $slave) : undef;
	foreach my $change (@changes)
	{
		$round++;
		pass_on($change);
		my $table = here(q(SELECT tgrelid::regclass FROM pg_trigger WHERE tgname = '!py_log_replica_tg' AND tgrelid::regclass::text ~ 'item|thing'));
		my $enum = $change =~ /ADD VALUE .*'(bad|so so)'/ ? "'$1'" : 'm';
		here(<<"SQL");
INSERT INTO $table (id) SELECT $round * 1000 + i FROM generate_series(1, 50) i;
UPDATE $table SET m = $enum WHERE id % 3 = 0;
DELETE FROM $table WHERE id % 7 = $round % 7 AND id > 1000;
INSERT INTO other VALUES ($round, $round); UPDATE other SET n = n + 1;
SQL
	}
	let_go($hold) if $held;
	is_like($held ? 'many changes in one window' : 'many changes one by one', 'item', 'other');
	is(copies($from), 0, 'nothing has been copied anew');
	is(status_value($slave, 'conflicts'), 0, 'without a conflict');
	next if $held;

	# the same once more from the beginning
	pass_on(<<'SQL');
DROP TABLE item; DROP SCHEMA shelf; DROP TYPE mood;
CREATE TYPE mood AS ENUM ('good');
CREATE TABLE item (id int PRIMARY KEY, a text, m mood, c numeric DEFAULT 1.50);
SELECT py_log_create_tg('item');
CREATE VIEW few AS SELECT 1;
SQL
	wait_caught_up($slave);
	wait_ready('item');
	here(q(INSERT INTO item SELECT i, 'item ' || i, 'good' FROM generate_series(1, 100) i));
	wait_caught_up($slave);
}

# A new value of an enum is there before the window that uses it.  If the server dies
# in between, the window comes again and the value does not.
my $gate = hold_back($master, $slave);
pass_on(q(ALTER TYPE mood ADD VALUE 'sudden'));
here(q(INSERT INTO item (id, m) SELECT i, 'sudden' FROM generate_series(900001, 900050) i));
my $lock = $slave->background_psql('there');
$lock->query_safe('BEGIN; LOCK TABLE item');
let_go($gate);
my $labels = q(SELECT count(*) FROM pg_enum WHERE enumlabel = 'sudden');
ok(poll_until(sub { there($labels) eq '1' }), 'a value is added ahead of its window');
$slave->kill9;
poll_until(sub { !kill(0, (split(/\n/, slurp_file($slave->data_dir . '/postmaster.pid')))[0]) });
eval { $lock->quit };
$slave->start;
wait_worker($slave);
is_like('after a crash the window comes', 'item');
is(there($labels), '1', 'and has its value once');

# It is added to the type, whatever the window calls that by then.
$gate = hold_back($master, $slave);
pass_on('ALTER TYPE mood RENAME TO mood2', q(ALTER TYPE mood2 ADD VALUE 'renamed' BEFORE 'sudden'));
here(q(INSERT INTO item (id, m) VALUES (900101, 'renamed')));
let_go($gate);
is_like('a type that has got another name', 'item');

# One that cannot be there before is an error, which can be mended.
$gate = hold_back($master, $slave);
my $failed = status_value($slave, 'errors');
pass_on(q(ALTER TYPE mood2 RENAME VALUE 'sudden' TO 'slow'), q(ALTER TYPE mood2 ADD VALUE 'too late' AFTER 'slow'));
here(q(INSERT INTO item (id, m) VALUES (900102, 'too late')));
let_go($gate);
wait_failure($failed, qr/unsafe use of new value "too late"/);
there(q(ALTER TYPE mood2 ADD VALUE 'too late' AFTER 'sudden'));
is_like('one that is added by hand', 'item');
pass_on('ALTER TYPE mood2 RENAME TO mood');

# --- Two tables change their names; and what is known by a name changes with it ---

there(q(SELECT pyreplica_set_conflict_resolution('other', 'keep_local')));
pass_on('CREATE TABLE other_new (LIKE other INCLUDING ALL)', q(SELECT py_log_create_tg('other_new')), 'INSERT INTO other_new SELECT id, -n FROM other');
wait_caught_up($slave);
wait_ready('other', 'other_new');
$from = log_position($slave);
foreach my $held (0, 1)
{
	my $hold = $held ? hold_back($master, $slave) : undef;
	here('UPDATE other SET n = n + 1; UPDATE other_new SET n = n - 1');
	pass_on('ALTER TABLE other RENAME TO other_old', 'ALTER TABLE other_new RENAME TO other', 'ALTER TABLE other_old RENAME TO other_new');
	here('UPDATE other SET n = n + 10 WHERE id > 2; UPDATE other_new SET n = n - 10 WHERE id > 2');
	let_go($hold) if $held;
	is_like('tables that change their names', 'other', 'other_new');
	is(copies($from), 0, 'are not copied anew');
	is(there('SELECT tablename FROM pyreplica_conflict_resolution'), $held ? 'other' : 'other_new', 'who wins conflicts goes with the table');
}
is(there(q(SELECT count(*) FROM pyreplica_verify())), 0, 'and all are verified');

# --- What a statement means ---

here('CREATE SCHEMA one; CREATE SCHEMA two');
there('CREATE SCHEMA one; CREATE SCHEMA two; GRANT ALL ON SCHEMA one, two TO keeper');
here(<<'SQL');
SET search_path = two, one, pg_temp;
SET DateStyle = 'German'; SET TimeZone = 'Asia/Kolkata'; SET standard_conforming_strings = off;
SELECT public.py_log_sql($$
	CREATE TABLE placed (id int PRIMARY KEY, at timestamptz DEFAULT '3.2.2001 4:05', w text DEFAULT 'back\\slash');
	SET search_path = one;
	CREATE TABLE placed (id int PRIMARY KEY, i interval DEFAULT '1-2');
	SELECT public.py_log_create_tg('one', 'placed'), public.py_log_create_tg('two', 'placed');
$$);
INSERT INTO two.placed VALUES (1); INSERT INTO one.placed VALUES (1);
SQL
wait_caught_up($slave);
poll_until(sub { there(q(SELECT count(*) FROM pyreplica_tables WHERE tablename = 'placed' AND state = 'ready')) eq '2' });
is_like('names and constants mean what they meant there', 'one.placed', 'two.placed');
is(there(q(SELECT at AT TIME ZONE 'UTC', w FROM two.placed)), '2001-02-02 22:35:00|back\slash', 'and that is this');

here(<<'SQL');
CREATE TABLE shadowed (id int PRIMARY KEY);
CREATE TEMP TABLE shadowed (id int);
SELECT py_log_sql($$
	CREATE TABLE not_shadowed (id int PRIMARY KEY);
	SELECT set_config('search_path', 'one', false);
	CREATE TABLE not_shadowed (id int PRIMARY KEY);
	DROP TABLE public.not_shadowed
$$);
SET search_path = public;
CREATE TEMP TABLE not_shadowed (id int);
SELECT py_log_sql('CREATE TABLE not_shadowed (id int); DROP TABLE not_shadowed; CREATE TABLE shadowed2 (id int); DROP TABLE IF EXISTS shadowed');
SELECT FROM pg_temp.shadowed, pg_temp.not_shadowed;
SQL
wait_caught_up($slave);
is(there(q(SELECT to_regclass('public.not_shadowed'), to_regclass('one.not_shadowed'))), '|one.not_shadowed', 'what is temporary here is not taken for what is there');
is(here(q(SELECT to_regclass('public.shadowed'), to_regclass('one.not_shadowed'))), '|one.not_shadowed', 'and a path that a statement sets is kept');

# --- Rows that a statement changes by itself, and by triggers ---

pass_on(<<'SQL');
CREATE TABLE parent (id int PRIMARY KEY, n int);
CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent ON DELETE CASCADE);
CREATE TABLE trail (id serial PRIMARY KEY, what text);
CREATE FUNCTION leave_trail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.trail (what) VALUES (TG_OP || ' ' || coalesce(NEW.id, OLD.id)); RETURN NULL; END$$;
CREATE TRIGGER leave_trail AFTER INSERT OR UPDATE OR DELETE ON parent FOR EACH ROW EXECUTE FUNCTION leave_trail();
SELECT py_log_create_tg(t) FROM unnest('{parent,child,trail}'::text[]) t;
INSERT INTO parent SELECT i, 0 FROM generate_series(1, 20) i;
INSERT INTO child SELECT i, i FROM generate_series(1, 20) i;
SQL
wait_caught_up($slave);
wait_ready('parent', 'child', 'trail');
my $mark = capture_mark($master);
pass_on(<<'SQL');
DO $$
BEGIN
	CREATE TABLE made_by_block (id int);
	UPDATE parent SET n = n + 1 WHERE id < 4;
	DELETE FROM parent WHERE id = 2;
	INSERT INTO made_by_block VALUES (1);
END
$$
SQL
is_like('a block', 'parent', 'child', 'trail', 'made_by_block');
my $captured = captured_since($master, $mark);
unlike($captured, qr/public\.(parent|made_by_block)/, 'what the block did itself is not logged');
like($captured, qr/INSERT INTO public\.trail.*UPDATE 3.*DELETE 2'.*DELETE FROM public\.child WHERE id='2'/s, 'but what came of it');
like(refusal(q(SELECT py_log_sql('DO $$BEGIN PERFORM py_log_create_tg(''made_by_block''); ALTER TABLE made_by_block ADD PRIMARY KEY (id); PERFORM py_log_create_tg(''made_by_block''); END$$'))),
	qr/log triggers cannot be created by a statement that is passed on.*py_log_create_tg.*statement of its own/s, 'log triggers are made by statements of their own');

# What came of it is sent as rows, which come after the block: so it must not be changed
# once more.
foreach my $again (
	'INSERT INTO parent VALUES (4); INSERT INTO child VALUES (4, 4)',
	'UPDATE child SET p = 5 WHERE id = 6',
	q(DELETE FROM trail),
	'ALTER TABLE trail ALTER what TYPE varchar USING lower(what)',
	'ALTER TABLE child ADD late int DEFAULT 1',
	'DROP TABLE trail; CREATE TABLE trail (id int)')
{
	like(refusal("SELECT py_log_sql('DO \$\$BEGIN DELETE FROM parent WHERE id = 4; $again; END\$\$')"),
		qr/cannot change table "(child|trail)" after a trigger or foreign key did.*sent as rows, after the statement.*Make several statements of it/s, "refused: $again");
}
# Nor is the order of changes broken by a call in between.
here(<<'SQL');
CREATE FUNCTION in_between() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.id = 7 AND NEW.n = 50 THEN
		UPDATE parent SET n = 51 WHERE id = 8;
		PERFORM py_log_sql('CREATE TABLE in_between ()');
	ELSIF NEW.id = 7 AND NEW.n = 60 THEN
		PERFORM py_log_sql('DO $d$BEGIN UPDATE parent SET n = 61 WHERE id = 8; END$d$');
	ELSIF NEW.id = 7 AND NEW.n = 70 THEN
		UPDATE parent SET n = 71 WHERE id = 8;
		BEGIN
			PERFORM py_log_sql('CREATE TABLE in_between ()');
			RAISE EXCEPTION 'not after all';
		EXCEPTION WHEN raise_exception THEN
			NULL;
		END;
	END IF;
	RETURN NULL;
END
$$;
CREATE TRIGGER in_between AFTER UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION in_between();
SQL
like(refusal("UPDATE parent SET n = $_ WHERE id IN (7, 8)"),
	qr/py_log_sql was called in the middle of a statement that changes table "public.parent"/, "in the middle of things: $_") for 50, 60;
here('UPDATE parent SET n = 70 WHERE id IN (7, 8)');
is_like('a call that was rolled back is no matter', 'parent');
is(here('SELECT n FROM parent WHERE id = 8'), 71, 'and this was one');
here('DROP TRIGGER in_between ON parent');

pass_on('DO $$BEGIN UPDATE child SET p = 5 WHERE id = 6; DELETE FROM parent WHERE id = 4; END$$; INSERT INTO parent VALUES (4); INSERT INTO child VALUES (4, 4)');
is_like('the other way round, and several statements', 'parent', 'child', 'trail');
pass_on('UPDATE parent SET n = 5', 'DELETE FROM parent WHERE id = 3', 'TRUNCATE trail', q(SELECT leave FROM (SELECT setval('trail_id_seq', 1000)) s(leave)), 'INSERT INTO parent VALUES (21, 1)');
is_like('plain changes of rows', 'parent', 'child', 'trail');

# --- A prepared transaction ---

here(<<'SQL');
BEGIN;
SELECT py_log_sql('CREATE TABLE prepared (id int PRIMARY KEY); ALTER TABLE parent ADD prep int');
UPDATE parent SET prep = id;
PREPARE TRANSACTION 'ddl';
SQL
pass_on('CREATE TABLE meanwhile (id int)');
wait_caught_up($slave);
is(there(q(SELECT to_regclass('prepared'), to_regclass('meanwhile'))), '|meanwhile', 'prepared only');
here(q(COMMIT PREPARED 'ddl'));
poll_until(sub { there(q(SELECT to_regclass('prepared'))) ne '' });
is_like('committed later', 'parent');

# --- Rights ---

is(there(q(SELECT DISTINCT tableowner FROM pg_tables WHERE tablename IN ('item', 'parent', 'child', 'trail'))), 'keeper', 'what is made belongs to the owner of the database');
here('CREATE TABLE secret (id int PRIMARY KEY)');
there('CREATE TABLE secret (id int PRIMARY KEY)');
log_table($master, 'secret');
wait_ready('secret');
my $errors = status_value($slave, 'errors');
my $place = log_position($slave);
here(<<'SQL');
BEGIN;
INSERT INTO parent VALUES (30, 1);
SELECT py_log_sql('CREATE TABLE nothing_half_done (id int);
	ALTER  TABLE secret
		ADD a int');
INSERT INTO secret VALUES (1, 1);
COMMIT;
SQL
my ($commitno, $xid) = split(/\|/, here(q(SELECT commitno, xid FROM replica_log_sql WHERE statement ~ 'secret' AND operation = 'SQL')));
wait_failure($errors, qr/must be owner of table secret.*running the statement "ALTER TABLE secret ADD a int" of the master's transaction $xid, commit number $commitno/);
ok(wait_log($slave, $place, qr/HINT: .*the statement is tried again.*pyreplica_skip\('there', $commitno, '$xid'\)/), 'the log has the way out');
is(there(q(SELECT to_regclass('nothing_half_done'), (SELECT count(*) FROM parent WHERE id = 30))), '|0', 'nothing of the transaction is done');
like(there("SELECT * FROM pyreplica_skip('there', $commitno)"), qr/^3\|\|CREATE TABLE nothing_half_done \(id int\)\|would be passed over$/m, 'statements can be passed over like rows');
there('ALTER TABLE secret OWNER TO keeper');
is_like('once the cause is gone', 'secret', 'parent');

$errors = status_value($slave, 'errors');
pass_on('ALTER TABLE secret ADD b int');
pass_on('ALTER TABLE secret ADD b2 int');
wait_caught_up($slave);
there('ALTER TABLE secret ADD c int DEFAULT 7');
pass_on('ALTER TABLE secret ADD c int DEFAULT 7; INSERT INTO secret VALUES (2)');
wait_failure($errors, qr/column "c" of relation "secret" already exists/);
there('SELECT s.* FROM pyreplica_failure f, pyreplica_skip(f.replica, f.commitno, f.xid, f.number, true) s');
wait_caught_up($slave);
is_same($master, $slave, 'secret', 'one statement is passed over, the rows are not');
is(there(q(SELECT kind, schemaname, tablename, statement FROM pyreplica_conflicts)), 'skipped|||ALTER TABLE secret ADD c int DEFAULT 7', 'and kept');

foreach my $case (
	[ 'SET ROLE postgres; ', 'DO $$BEGIN SET ROLE postgres; END$$', qr/cannot set parameter "role" within security-restricted operation|permission denied to set role/ ],
	[ '', q(DO $$BEGIN IF current_setting('session_replication_role') = 'replica' THEN RAISE 'no such library' USING ERRCODE = 'undefined_file'; END IF; END$$), qr/no such library/ ],
	[ '', 'DO $$BEGIN DELETE FROM pyreplica_position; END$$', qr/permission denied for table pyreplica_position/ ],
	[ 'CREATE SCHEMA mine; SET search_path = mine, public; ', 'CREATE TABLE lost (id int)', qr/schema "mine", where the master looked for names, does not exist on the slave/ ])
{
	my ($before, $statement, $reason) = @$case;
	$errors = status_value($slave, 'errors');
	here("${before}SELECT public.py_log_sql(\$p\$$statement\$p\$)");
	wait_failure($errors, $reason);
	pass_over();
}

# Nor can it touch what is pyreplica's if the owner is a superuser.
$slave->safe_psql('postgres', 'ALTER DATABASE there OWNER TO postgres');
foreach my $statement (
	'DO $$BEGIN DELETE FROM pyreplica_position; END$$',
	'DO $$BEGIN TRUNCATE pyreplica_table; END$$',
	'ALTER TABLE pyreplica_position ADD stolen int')
{
	$errors = status_value($slave, 'errors');
	pass_on($statement);
	wait_failure($errors, qr/the master may not change what belongs to pyreplica on the slave/);
	pass_over();
}
here('ALTER TABLE pyreplica_position DROP stolen');
is(there('SELECT count(*) FROM pyreplica_position'), 1, 'it is all there');

# Settings are as they were, and the session's user.
there('CREATE TABLE settings AS SELECT name, setting FROM pg_settings WHERE false');
pass_on(q(DO $$BEGIN PERFORM set_config('work_mem', '1MB', false), set_config('session_replication_role', 'origin', false); SET TimeZone = 'Asia/Tokyo'; END$$));
pass_on(q(CREATE TABLE seen AS SELECT current_user::text AS u, name, setting FROM pg_settings WHERE name IN ('work_mem', 'session_replication_role')));
wait_caught_up($slave);
is(there(q(SELECT DISTINCT u, setting FROM seen WHERE name = 'session_replication_role')), 'postgres|replica', 'what a statement sets is reset');
isnt(there(q(SELECT setting FROM seen WHERE name = 'work_mem')), '1024', '... all of it');

# --- While tables are copied, by several processes, and clients write ---

here(<<'SQL');
CREATE TABLE big (id int PRIMARY KEY, a text, n int);
INSERT INTO big SELECT i, repeat('x', 200), 0 FROM generate_series(1, 40000) i;
CREATE TABLE big2 (id int PRIMARY KEY, a text, n int);
INSERT INTO big2 SELECT * FROM big;
CREATE TABLE far (id int PRIMARY KEY, a text, n int);
INSERT INTO far SELECT i, NULL, 0 FROM generate_series(1, 400000) i;
SQL
there("CREATE TABLE $_ (id int PRIMARY KEY, a text, n int); ALTER TABLE $_ OWNER TO keeper") for 'big', 'big2', 'far';
$from = log_position($slave);
my $script = PostgreSQL::Test::Utils::tempdir() . '/write.sql';
append_to_file($script, <<'SQL');
\set i random(1, 50000)
INSERT INTO big (id, a) VALUES (:i, 'new') ON CONFLICT (id) DO UPDATE SET n = coalesce(big.n, 0) + 1;
DELETE FROM big WHERE id = (:i * 7) % 50000;
UPDATE big2 SET n = n + 1 WHERE id = :i;
SQL
my $out = '';
my $writers = IPC::Run::start([ 'pgbench', '-n', '-c', 2, '-T', 4, '-f', $script, '-h', $master->host, '-p', $master->port, 'postgres' ], '>', \$out, '2>&1');
log_table($master, 'far', 'big', 'big2');
poll_until(sub { there(q(SELECT count(*) FROM pyreplica_tables WHERE tablename = 'far' AND rows_copied > 0)) > 0 });
foreach my $change (
	'ALTER TABLE far SET SCHEMA one; ALTER TABLE one.far RENAME TO farther',
	'ALTER TABLE big ADD b int DEFAULT 5',
	'ALTER TABLE big2 RENAME TO big3; ALTER TABLE big3 DROP a; ALTER TABLE big3 RENAME TO big2',
	'ALTER TABLE big ADD c text; ALTER TABLE big RENAME b TO b2',
	q(ALTER TABLE big DROP c; CREATE INDEX ON big (n)))
{
	pass_on($change);
}
$writers->finish or diag($out);
wait_caught_up($slave, 120);
wait_ready('big', 'big2', 'farther');
is_like('changed while it was copied', 'big', 'big2', 'one.farther');
is(count_log($slave, $from, 'copying table "[a-z.]*far'), 1, 'with another name it goes on where it was');
unlike(log_since($slave, $from), qr/could not copy/, 'which did not fail');

# --- Partitions ---

pass_on(<<'SQL');
CREATE TABLE whole (id int, part int, a text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
CREATE TABLE part1 PARTITION OF whole FOR VALUES IN (1);
CREATE TABLE part2 (LIKE whole INCLUDING ALL);
SELECT py_log_create_tg(t) FROM unnest('{part1,part2}'::text[]) t;
INSERT INTO whole SELECT i, 1, 'x' FROM generate_series(1, 50) i;
INSERT INTO part2 SELECT i, 2, 'x' FROM generate_series(1, 50) i;
ALTER TABLE whole ATTACH PARTITION part2 FOR VALUES IN (2);
SQL
wait_caught_up($slave);
wait_ready('part1', 'part2');
pass_on('ALTER TABLE whole ADD b int DEFAULT 3', 'UPDATE whole SET part = 3 - part WHERE id % 5 = 0 AND part = 1 AND id > 100', 'UPDATE whole SET b = id', 'ALTER TABLE whole DETACH PARTITION part1', 'INSERT INTO part1 VALUES (1000, 7)');
is_like('partitions', 'whole', 'part1', 'part2');

# The same as wholes, with a key and without.
foreach my $kind (', PRIMARY KEY (id, part)', '')
{
	my $whole = $kind ? 'rooted' : 'bagged';
	my $conflicts = status_value($slave, 'conflicts');
	pass_on("CREATE TABLE $whole (id int, part int, a text$kind) PARTITION BY LIST (part); CREATE TABLE ${whole}_1 PARTITION OF $whole FOR VALUES IN (1)");
	$master->safe_psql('postgres', "SELECT py_log_create_tg('$whole', via_root => true" . ($kind ? ')' : q[, key => '{*}')]));
	pass_on("CREATE TABLE ${whole}_2 PARTITION OF $whole FOR VALUES IN (2)", "INSERT INTO $whole SELECT i, 1 + i % 2, 'x' FROM generate_series(1, 20) i");
	is_like("$whole with a partition that was passed on", $whole);
	pass_on("ALTER TABLE $whole DETACH PARTITION ${whole}_1", "INSERT INTO ${whole}_1 VALUES (77, 1)");
	is_like("$whole without one", $whole);
	pass_on("ALTER TABLE $whole ATTACH PARTITION ${whole}_1 FOR VALUES IN (1)", "INSERT INTO $whole VALUES (78, 1)");
	is_like("$whole with it again", $whole);
	pass_on("CREATE TABLE ${whole}_3 (LIKE $whole INCLUDING ALL)", "INSERT INTO ${whole}_3 VALUES (1, 3)", "ALTER TABLE $whole ATTACH PARTITION ${whole}_3 FOR VALUES IN (3)", "TRUNCATE ${whole}_2");
	is_like("$whole with one that had rows here only", $whole);
	pass_on("DROP TABLE ${whole}_3");
	is_like("$whole without it", $whole);
	is(status_value($slave, 'conflicts'), $conflicts, 'and without a conflict');
}

# --- Slaves of the slave ---

my $node_a = new_node('a');
my $node_b = new_node('b');
my $node_c = new_node('c');
$_->safe_psql('postgres', 'CREATE TABLE passed (id int PRIMARY KEY, a text); SELECT py_log_create_tg($$passed$$)') for $node_a, $node_b, $node_c;
forward_table($_, 'passed') for $node_b, $node_c;
follow($node_b, $node_a);
follow($node_c, $node_b);
follow($node_a, $node_c);
$node_a->safe_psql('postgres', <<'SQL');
BEGIN;
INSERT INTO passed VALUES (1, 'one');
SELECT py_log_sql('ALTER TABLE passed ADD b int DEFAULT 2');
UPDATE passed SET b = 3;
COMMIT;
SELECT py_log_sql('DO $$BEGIN INSERT INTO passed VALUES (2, ''two'', 2); END$$; CREATE TABLE counted (id serial); ');
SQL
ok( poll_until(sub { content($node_c, 'passed') eq content($node_a, 'passed') }),
	'a statement is passed on in a cascade');
is(content($node_c, 'passed'), "(1,one,3)\n(2,two,2)", 'with all that belongs to it');
is($node_c->safe_psql('postgres', q(SELECT string_agg(DISTINCT (origin = (SELECT o FROM (SELECT DISTINCT origin FROM replica_log_sql) s(o)))::text || count, ' ') FROM (SELECT origin, count(*)::text FROM replica_log_sql GROUP BY origin) x)),
	'true5', 'by its origin, once');
wait_caught_up($_) for $node_b, $node_c, $node_a;
is($_->safe_psql('postgres', q(SELECT count(*) FROM pg_class WHERE relname = 'counted')), 1, 'each has run it once: ' . $_->name) for $node_a, $node_b, $node_c;
is(status_value($node_a, 'errors'), 0, 'and nothing comes back');

done_testing();
