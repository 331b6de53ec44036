# A table that is not quite the master's is made equal row by row: what is right
# is not touched, and what only the slave has stays.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $rows = 20000;
my $master = new_master('master');
$master->safe_psql('postgres', <<"SQL");
CREATE TABLE person (id int PRIMARY KEY, name text UNIQUE, n numeric, f float8);
INSERT INTO person SELECT i, 'name ' || i, i / 10.0, i FROM generate_series(1, $rows) i;
SQL
log_table($master, 'person');
my $slave = new_slave($master, 'slave', copy => 1);
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE person (own text DEFAULT 'new', f float8, id int PRIMARY KEY, name text UNIQUE, n numeric);
CREATE TABLE child (person int REFERENCES person ON DELETE CASCADE);
CREATE TABLE audit (what text, id int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.audit VALUES (tg_op, CASE WHEN tg_op = 'DELETE' THEN OLD.id ELSE NEW.id END);
	RETURN NULL;
END
$$;
SQL

sub wait_ready
{
	my ($tables) = @_;
	$slave->poll_query_until('postgres',
		"SELECT count(*) = $tables FROM pyreplica_tables WHERE state = 'ready'")
	  or BAIL_OUT("tables are not ready:\n"
		  . $slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
	return;
}

# Since it is asked for and taken up by two processes, a table is still ready
# at first.
sub resync
{
	my ($table) = @_;
	my $before = $slave->safe_psql('postgres',
		"SELECT finished_at FROM pyreplica_tables WHERE tablename = '$table'");
	$slave->safe_psql('postgres', "SELECT pyreplica_resync('$table')");
	my $state;
	poll_until(sub {
		$state = $slave->safe_psql('postgres',
			"SELECT CASE WHEN finished_at <> '$before' OR state = 'error' THEN state END, last_error FROM pyreplica_tables WHERE tablename = '$table'");
		return $state =~ /^\w/;
	});
	return 1 if $state =~ /^ready/;
	diag($state);
	return 0;
}

sub verify
{
	my ($arguments) = @_;
	return $slave->safe_psql('postgres',
		qq(SELECT "table", array_to_string(key, ','), problem FROM pyreplica_verify($arguments)));
}

# What somebody does on the slave, unseen by its own triggers.
sub spoil
{
	my ($sql) = @_;
	$slave->safe_psql('postgres', "SET session_replication_role = replica; $sql");
	return;
}

wait_ready(1);
$slave->safe_psql('postgres', <<'SQL');
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON person FOR EACH ROW EXECUTE FUNCTION note();
UPDATE person SET own = 'mine';
INSERT INTO child SELECT id FROM person;
SQL
my $same = '(SELECT id, name, n, f FROM person)';

# Of all the ways to be wrong.
spoil(<<'SQL');
UPDATE person SET n = -1 WHERE id IN (100, 9000);
UPDATE person SET n = 20.00 WHERE id = 200;
UPDATE person SET n = NULL WHERE id = 201;
UPDATE person SET f = '-0', n = 0 WHERE id = 300;
DELETE FROM person WHERE id IN (400, 15000);
INSERT INTO person VALUES ('mine', 0, -1, 'extra', 1), ('mine', 0, 99999, 'extra, too', 1);
SQL
$master->safe_psql('postgres', 'UPDATE person SET f = 0, n = 0 WHERE id = 300');
wait_caught_up($slave);
spoil(q(UPDATE person SET f = '-0' WHERE id = 300));
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE before AS SELECT id, xmin::text AS x FROM person;
TRUNCATE audit;
ALTER TABLE person ENABLE ALWAYS TRIGGER note;
SQL
ok(resync('person'), 'a resync')
  or BAIL_OUT('a table cannot be resynced');
is_same_rows($master, $slave, $same, 'makes a table equal');
is( $slave->safe_psql('postgres', 'SELECT what, id FROM audit ORDER BY 1, 2'),
	<<'ROWS' =~ s/\n$//r, 'and a trigger sees the rows that were wrong, and no others');
DELETE|-1
DELETE|99999
INSERT|400
INSERT|15000
UPDATE|100
UPDATE|200
UPDATE|201
UPDATE|300
UPDATE|9000
ROWS
is( $slave->safe_psql('postgres',
		'SELECT count(*) FROM person JOIN before USING (id) WHERE person.xmin::text <> before.x'),
	'5', 'all others are the very versions that they were');
is($slave->safe_psql('postgres', q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM person WHERE own <> 'mine')),
	'400 15000', 'a column that only the slave has stays, but where rows are new');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM child'), $rows, 'rows that refer to the table stay');
is(verify(q('person')), '', 'there is nothing left for a verification');

# Unique values that have changed hands, between neighbours and far apart.
spoil(<<'SQL');
UPDATE person SET own = 'mine';
UPDATE person SET name = 'name ' || CASE id % 2 WHEN 0 THEN id - 1 ELSE id + 1 END || '.' WHERE id BETWEEN 1001 AND 1010;
UPDATE person SET name = rtrim(name, '.') WHERE id BETWEEN 1001 AND 1010;
UPDATE person SET name = '' WHERE id = 50;
UPDATE person SET name = 'name 50' WHERE id = 19000;
UPDATE person SET name = 'name 19000' WHERE id = 50;
DELETE FROM person WHERE id = 60;
INSERT INTO person VALUES ('mine', 0, 99999, 'name 60', 1);
SQL
$slave->safe_psql('postgres', 'TRUNCATE audit');
ok(resync('person'), 'unique values that have changed hands');
is_same_rows($master, $slave, $same, 'get back to their rows');
is($slave->safe_psql('postgres', q(SELECT count(DISTINCT id) FROM audit)), 14, 'without any other being touched');
is($slave->safe_psql('postgres', q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM person WHERE own <> 'mine')),
	'60 19000', 'or losing what only the slave has, but where a row had to be deleted to come again');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM child'), $rows, 'nor are rows that refer to the table lost');

# Changes come in while a table is half resynced: they collide with old rows that
# the resync has not reached.
$slave->safe_psql('postgres', <<'SQL');
CREATE FUNCTION stop_here() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock(24);
	RETURN NULL;
END
$$;
CREATE TRIGGER stop_here AFTER UPDATE ON person FOR EACH ROW WHEN (NEW.id = 10) EXECUTE FUNCTION stop_here();
ALTER TABLE person ENABLE ALWAYS TRIGGER stop_here;
SQL
foreach my $is_large (0, 1)
{
	$master->safe_psql('postgres', "DELETE FROM person WHERE id < 0; DELETE FROM person WHERE name ~ 'held'; INSERT INTO person SELECT i, 'name ' || i, 0, 0 FROM generate_series(1, $rows) i ON CONFLICT DO NOTHING");
	wait_caught_up($slave);
	spoil(<<'SQL');
UPDATE person SET n = -1 WHERE id = 10;
UPDATE person SET name = 'held ' || id WHERE id IN (19990, 19991);
SQL
	my $stop = $slave->background_psql('postgres');
	$stop->query_safe('SELECT pg_advisory_lock(24)');
	$slave->safe_psql('postgres', q(SELECT pyreplica_resync('person')));
	ok( $slave->poll_query_until('postgres',
			q(SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 24 AND NOT granted)),
		'a resync is held at its beginning');
	my $sql = <<'SQL';
UPDATE person SET name = 'held 19990' WHERE id = 50;
INSERT INTO person VALUES (-1, 'held 19991', 1, 1);
UPDATE person SET id = -2 WHERE id = 19992;
SQL
	$sql = "BEGIN; UPDATE person SET n = n + 1 WHERE id % 100 = 0; $sql COMMIT;" if $is_large;
	$master->safe_psql('postgres', $sql);
	$stop->quit;
	wait_ready(1);
	wait_caught_up($slave);
	is_same_rows($master, $slave, $same, 'changes find old rows in their way, and it ends well');
	is(status_value($slave, 'errors'), '0', 'without stopping the replica');
}
$slave->safe_psql('postgres', 'DROP TRIGGER stop_here ON person');

# Repair does the same to what a verification finds.
$master->safe_psql('postgres', "DELETE FROM person WHERE id < 0");
wait_caught_up($slave);
spoil(<<'SQL');
UPDATE person SET own = 'mine';
UPDATE person SET name = '' WHERE id = 70;
UPDATE person SET name = 'name 70' WHERE id = 71;
UPDATE person SET name = 'name 71' WHERE id = 70;
UPDATE person SET n = -1 WHERE id = 18000;
SQL
$slave->safe_psql('postgres', 'TRUNCATE audit');
is(verify(q('person', repair => true)), <<'ROWS' =~ s/\n$//r, 'rows that differ are found');
public.person|18000|differs
public.person|70|differs
public.person|71|differs
ROWS
is(verify(q('person')), '', 'and mended');
is($slave->safe_psql('postgres', q(SELECT string_agg(DISTINCT id::text, ' ') FROM audit)), '18000 70 71', 'they alone');
is($slave->safe_psql('postgres', q(SELECT count(*) FROM person WHERE own <> 'mine')), '0', 'with what only the slave has of them');
spoil(<<'SQL');
UPDATE person SET name = '' WHERE id = 80;
UPDATE person SET name = 'name 80' WHERE id = 19500;
SQL
like(($slave->psql('postgres', q(SELECT * FROM pyreplica_verify('person', repair => true))))[2],
	qr/could not verify: duplicate key value violates unique constraint "person_name_key".*SELECT pyreplica_resync\('public.person'\)/s,
	'a value that a row far away holds is a matter of resync');
ok(resync('person'), 'which does it');
is(verify(q('person')), '', 'indeed');

# Tables of all kinds, each of which is wrong in some way.
$master->safe_psql('postgres', <<'SQL');
CREATE TYPE rating AS ENUM ('low', 'high');
CREATE TABLE rated (r rating PRIMARY KEY, n int);
INSERT INTO rated VALUES ('low', 1), ('high', 2);
CREATE TABLE textual (id int PRIMARY KEY, r rating, a int, t text);
INSERT INTO textual SELECT i, 'low', i, E'tab\t\\N ' || i FROM generate_series(1, 3000) i;
CREATE TABLE looks (k numeric PRIMARY KEY, a text);
INSERT INTO looks SELECT i + 0.5, 'a' FROM generate_series(1, 100) i;
CREATE TABLE fixed (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int);
INSERT INTO fixed (n) SELECT generate_series(1, 100);
CREATE TABLE parted (id int PRIMARY KEY, n int);
INSERT INTO parted SELECT i, i FROM generate_series(1, 3000) i;
CREATE TABLE alike (k int, a text);
INSERT INTO alike SELECT i % 3, 'a' FROM generate_series(1, 300) i;
CREATE TRIGGER "!py_log_replica_tg" AFTER INSERT OR UPDATE OR DELETE ON alike FOR EACH ROW EXECUTE FUNCTION py_log_replica('alike', 'k');
CREATE TABLE seen (id int PRIMARY KEY, a text);
INSERT INTO seen SELECT i, 'a' FROM generate_series(1, 3000) i;
CREATE TABLE odd (id int PRIMARY KEY, a text, b int, c int4range, d int);
INSERT INTO odd SELECT i, 'a' || i, i, int4range(i * 2, i * 2 + 2), nullif(i, 1) FROM generate_series(1, 5000) i;
SQL
log_table($master, qw(rated textual looks fixed parted seen odd));
$slave->safe_psql('postgres', <<'SQL');
CREATE TYPE rating AS ENUM ('high', 'low');
CREATE TABLE rated (r rating PRIMARY KEY, n int);
CREATE TABLE textual (t text, id bigint PRIMARY KEY, r rating, a numeric);
CREATE TABLE looks (k numeric PRIMARY KEY, a text, own int DEFAULT 1);
CREATE TABLE fixed (own int DEFAULT 1, n int, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
CREATE TABLE parted (n int, id int PRIMARY KEY, own int GENERATED ALWAYS AS IDENTITY) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (1000);
CREATE TABLE parted_2 PARTITION OF parted DEFAULT;
CREATE TABLE alike (k int, a text);
CREATE TABLE behind (id int PRIMARY KEY, a text, own int DEFAULT 1);
CREATE VIEW seen AS SELECT a, id FROM behind;
CREATE FUNCTION put() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.audit SELECT 'view ' || tg_op, coalesce(NEW.id, OLD.id);
	IF tg_op <> 'INSERT' THEN
		DELETE FROM public.behind WHERE id = OLD.id;
	END IF;
	IF tg_op <> 'DELETE' THEN
		INSERT INTO public.behind VALUES (NEW.id, NEW.a);
		RETURN NEW;
	END IF;
	RETURN OLD;
END
$$;
CREATE TRIGGER put INSTEAD OF INSERT OR UPDATE OR DELETE ON seen FOR EACH ROW EXECUTE FUNCTION put();
CREATE TABLE odd (id int PRIMARY KEY, a text, b int, c int4range, d int, EXCLUDE USING gist (c WITH &&));
CREATE UNIQUE INDEX odd_a ON odd (upper(a));
CREATE UNIQUE INDEX odd_b ON odd (b) WHERE a IS NOT NULL;
SQL
$slave->safe_psql('postgres', 'CREATE UNIQUE INDEX odd_d ON odd (d) NULLS NOT DISTINCT')
  if $slave->pg_version >= 15;
wait_ready(9);
$slave->safe_psql('postgres', 'TRUNCATE audit');
spoil(<<'SQL');
UPDATE rated SET r = 'low', n = 3 WHERE r = 'low';
DELETE FROM rated WHERE r = 'high';
UPDATE textual SET t = 'spoiled' WHERE id IN (5, 2900);
DELETE FROM textual WHERE id = 6;
UPDATE looks SET k = k + 0.00, own = 2 WHERE k < 3;
UPDATE fixed SET n = 0, own = 2 WHERE id < 5;
DELETE FROM fixed WHERE id = 7;
UPDATE parted SET n = 0 WHERE id IN (10, 2000);
DELETE FROM parted WHERE id = 11;
INSERT INTO parted (id, n) VALUES (9999, 0);
DELETE FROM alike WHERE ctid IN (SELECT ctid FROM alike WHERE k = 0 LIMIT 7);
INSERT INTO alike VALUES (1, 'a'), (1, 'b'), (NULL, NULL);
UPDATE behind SET a = 'spoiled', own = 2 WHERE id = 10;
DELETE FROM behind WHERE id = 11;
INSERT INTO behind VALUES (9999, 'extra');
DELETE FROM odd WHERE id IN (10, 11, 12, 4000, 1);
UPDATE odd SET a = 'A4000', b = 10, c = '[20, 23]', d = NULL WHERE id = 4500;
UPDATE odd SET a = 'a11' WHERE id = 4501;
UPDATE odd SET a = 'a4501' WHERE id = 4502;
INSERT INTO odd VALUES (10, 'a4502', 12, '[8000, 8001]', 0);
SQL
foreach my $table (qw(rated textual looks fixed parted alike seen odd))
{
	ok(resync($table), "$table is resynced");
}
is(verify($_), '', "$_ is equal") for "'rated'", "'textual'", "'looks'", "'fixed'", "'parted'", "'seen'", "'odd'";
is_same_rows($master, $slave, $_, "$_ is really equal")
  for qw(rated alike odd), '(SELECT k, a FROM looks)', '(SELECT id, n FROM fixed)', '(SELECT id, r, a, t FROM textual)',
  '(SELECT id, n FROM parted)', '(SELECT id, a FROM seen)';
is($slave->safe_psql('postgres', 'SELECT count(*) FROM looks WHERE own = 2'), '2', 'a key that is written otherwise is replaced, with what else there is');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM fixed WHERE own = 2'), '4', 'identities stay');
is($slave->safe_psql('postgres', q(SELECT string_agg(what || ' ' || id, ', ' ORDER BY id DESC) FROM audit WHERE what ~ 'view')),
	'view DELETE 9999, view INSERT 11, view UPDATE 10', 'the triggers of a view see what was wrong');
is(status_value($slave, 'errors'), '0', 'and nothing went wrong');

# A key that is cut to one character if one is careless.
on_both($master, $slave, 'CREATE TABLE padded (id char(10) PRIMARY KEY, a text)');
$master->safe_psql('postgres', q(INSERT INTO padded SELECT 'k' || i, 'a' FROM generate_series(1000, 7000) i));
log_table($master, 'padded');
$slave->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pyreplica_tables WHERE tablename = 'padded' AND state = 'ready'))
  or BAIL_OUT('the table was not copied');
is($slave->safe_psql('postgres', q(SELECT count(*) FROM pyreplica_verify('padded'))), '0', 'char(n): nothing is wrong');
$slave->safe_psql('postgres', q(SET session_replication_role = replica; UPDATE padded SET a = 'b' WHERE id = 'k3333'; SELECT pyreplica_resync('padded')));
ok(poll_until(sub { $slave->safe_psql('postgres', q(SELECT count(*) FROM padded WHERE a = 'b')) eq '0' }), 'char(n): a resync mends it');
$slave->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pyreplica_tables WHERE tablename = 'padded' AND state = 'ready'));
is_same_rows($master, $slave, 'padded', 'char(n): and takes nothing away');

# Rows of a table that inherits are not the parent's, though they have its keys.
on_both($master, $slave, 'CREATE TABLE mother (id int PRIMARY KEY, a text); CREATE TABLE daughter (PRIMARY KEY (id)) INHERITS (mother)');
log_table($master, 'mother', 'daughter');
$slave->poll_query_until('postgres', q(SELECT count(*) = 2 FROM pyreplica_tables WHERE tablename IN ('mother', 'daughter') AND state = 'ready'))
  or BAIL_OUT('the tables were not copied');
$master->safe_psql('postgres', q(INSERT INTO mother SELECT i, 'm' FROM generate_series(1, 20) i; INSERT INTO daughter SELECT i, 'd' FROM generate_series(1, 20) i));
$master->safe_psql('postgres', q(UPDATE ONLY mother SET a = 'changed' WHERE id < 10; DELETE FROM ONLY mother WHERE id > 15));
$master->safe_psql('postgres', q(UPDATE ONLY mother SET a = 'again' WHERE id = 3));
wait_caught_up($slave);
is_same_rows($master, $slave, $_, "$_: rows with one key in two tables") for 'ONLY mother', 'daughter';
is(status_value($slave, 'errors'), '0', 'without an error');

done_testing();
