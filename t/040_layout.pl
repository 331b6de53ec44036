# The slave's tables have other names, other columns and other types than the
# master's.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $master = new_master('master');
$master->safe_psql('postgres', <<'SQL');
CREATE TABLE student (id serial PRIMARY KEY, a text);
INSERT INTO student (a) SELECT 'student ' || i FROM generate_series(1, 3000) i;
CREATE SCHEMA shop;
CREATE TABLE shop.item (id int PRIMARY KEY, a text);
CREATE TABLE shop.sale (id int PRIMARY KEY, item int REFERENCES shop.item);
CREATE TABLE shop.left_alone (id int PRIMARY KEY, a text);
INSERT INTO shop.item SELECT i, 'item ' || i FROM generate_series(1, 100) i;
INSERT INTO shop.left_alone VALUES (1, 'one');
CREATE TABLE event (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (1000);
CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (1000) TO (2000);
INSERT INTO event SELECT i, 'event ' || i FROM generate_series(1, 1999) i;
SQL
$master->safe_psql('postgres',
	qq(SELECT py_log_create_tg('$_->[0]', '$_->[1]')))
  for ([ 'public', 'student' ], [ 'shop', 'item' ], [ 'shop', 'sale' ], [ 'shop', 'left_alone' ],
	[ 'public', 'event_1' ], [ 'public', 'event_2' ]);

my $slave = new_slave($master, 'slave', copy => 1);
wait_worker($slave);

sub wait_ready
{
	my ($where) = @_;
	$slave->poll_query_until('postgres',
		"SELECT count(*) > 0 AND bool_and(state = 'ready') FROM pyreplica_tables WHERE $where")
	  or BAIL_OUT("tables are not ready:\n"
		  . $slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
	return;
}

# Whether a table has the rows of another one on the master.
sub is_like
{
	my ($there, $here, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($slave);
	return is(content($slave, $here), content($master, $there), $name);
}

# What an SQL statement fails with on the slave.
sub error_of
{
	my ($sql) = @_;
	my ($stdout, $stderr);
	$slave->psql('postgres', $sql, stdout => \$stdout, stderr => \$stderr);
	return $stderr;
}

# ---- Other names ----

# A table and a schema are said to have other names; what is missing says which
# is which.
$slave->safe_psql('postgres', <<'SQL');
SELECT pyreplica_map_table('student', 'school.pupil');
SELECT pyreplica_map_schema('shop', 'our shop');
SELECT pyreplica_map_table('shop.left_alone', 'shop.left_alone');
SELECT pyreplica_map_table('event_1', 'event');
SELECT pyreplica_map_table('event_2', 'event');
SELECT pyreplica_map_table('shop.item', 'nowhere.nothing', 'another replica');
SQL
ok( $slave->poll_query_until('postgres',
		q(SELECT last_error ~ 'table "school.pupil" does not exist.*"public.student" is "school.pupil" here'
		  FROM pyreplica_tables WHERE tablename = 'student')),
	'a table that does not exist under its other name is an error that tells both')
  or diag($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
$slave->safe_psql('postgres', <<'SQL');
CREATE SCHEMA school;
CREATE TABLE school.pupil (id serial PRIMARY KEY, a text);
CREATE SCHEMA "our shop";
CREATE TABLE "our shop".item (id int PRIMARY KEY, a text);
CREATE TABLE "our shop".sale (id int PRIMARY KEY, item int REFERENCES "our shop".item);
CREATE SCHEMA shop;
CREATE TABLE shop.left_alone (id int PRIMARY KEY, a text);
CREATE TABLE event (id int PRIMARY KEY, a text);
SQL
wait_ready('true');
is_like('student',         'school.pupil',      'a table is copied to its other name');
is_like('shop.item',       '"our shop".item',   'and one whose schema has another name');
is_like('shop.left_alone', 'shop.left_alone',   'but not one that has a mapping of its own');
is_like('event',           'event',             'partitions of the master come into one table');
is( $slave->safe_psql('postgres',
		q(SELECT string_agg(format('%s.%s: %s', schemaname, tablename, slave_table), E'\n' ORDER BY schemaname, tablename) FROM pyreplica_tables)),
	<<'TABLES' =~ s/\n$//r, 'pyreplica_tables tells both names');
public.event_1: public.event
public.event_2: public.event
public.student: school.pupil
shop.item: "our shop".item
shop.left_alone: 
shop.sale: "our shop".sale
TABLES

# Changes, one by one and in sets; with TRUNCATE of tables that refer to one another.
$master->safe_psql('postgres', $_) for split(/\n/, <<'SQL');
UPDATE student SET a = 'first' WHERE id = 1; DELETE FROM student WHERE id = 2; INSERT INTO student (a) VALUES ('new')
UPDATE student SET a = a || '!' WHERE id % 3 = 0; DELETE FROM student WHERE id % 7 = 0; INSERT INTO student (a) SELECT 'many' FROM generate_series(1, 500)
INSERT INTO shop.sale SELECT i, i FROM generate_series(1, 100) i; UPDATE shop.left_alone SET a = 'uno'
UPDATE event SET id = id + 1000 WHERE id % 10 = 0 AND id < 1000 AND id NOT IN (SELECT id - 1000 FROM event)
DELETE FROM event WHERE id % 10 = 5; UPDATE event SET id = 2000 - id WHERE id IN (1005, 1995); UPDATE event SET a = 'changed' WHERE id % 10 = 3
SQL
is_like('student',   'school.pupil',    'its changes come there, too');
is_like('shop.sale', '"our shop".sale', 'and those of the schema');
is_like('event',     'event',           'and rows that move between partitions');
$master->safe_psql('postgres', 'TRUNCATE shop.item, shop.sale; INSERT INTO shop.item VALUES (1, $$again$$)');
is_like('shop.item', '"our shop".item', 'TRUNCATE is of the other names');

# The sequence that the column has here follows the one that it has there.
my $ahead = q(SELECT last_value FROM school.pupil_id_seq);
ok( poll_until(
		sub {
			$master->safe_psql('postgres', q(INSERT INTO student (a) VALUES ('one more')));
			$slave->safe_psql('postgres', $ahead) >
			  $master->safe_psql('postgres', 'SELECT last_value FROM student_id_seq');
		}),
	'the sequence of a table with another name follows');
wait_caught_up($slave);
is( $slave->safe_psql('postgres', q(SELECT sequence || ': ' || coalesce(problem, 'fine') FROM pyreplica_sync_sequences() ORDER BY 1)),
	'school.pupil_id_seq: fine',
	'and is set to exact values');
is( $slave->safe_psql('postgres', $ahead),
	$master->safe_psql('postgres', 'SELECT last_value FROM student_id_seq'),
	'which are the master\'s');

# Verification, repair and resync go by the names here.
$slave->safe_psql('postgres', <<'SQL');
UPDATE school.pupil SET a = 'spoiled' WHERE id = 100;
DELETE FROM school.pupil WHERE id = 101;
INSERT INTO school.pupil VALUES (99999, 'extra');
SQL
is( $slave->safe_psql('postgres', q(SELECT * FROM pyreplica_verify('school.pupil'))),
	"school.pupil|{100}|differs\nschool.pupil|{101}|missing\nschool.pupil|{99999}|extra",
	'a verification finds what is wrong');
$slave->safe_psql('postgres', q(SELECT * FROM pyreplica_verify('school.pupil', repair => true)));
is_like('student', 'school.pupil', 'and repairs it');
$slave->safe_psql('postgres', q(DELETE FROM school.pupil WHERE id % 4 = 1; SELECT pyreplica_resync('school.pupil')));
wait_ready(q(tablename = 'student'));
is_like('student', 'school.pupil', 'and it can be resynced');
like(error_of(q(SELECT pyreplica_resync('shop.left_alone'::regclass, 'another replica'))),
	qr/is not replicated/, 'not under a name that is not one of the replica');

# Conflicts: who wins goes by the name here, and so does what is kept of them.
$slave->safe_psql('postgres', q(SELECT pyreplica_set_conflict_resolution('school.pupil', 'apply_remote');
	INSERT INTO school.pupil VALUES (77777, 'mine')));
$master->safe_psql('postgres', q(INSERT INTO student VALUES (77777, 'theirs')));
is_like('student', 'school.pupil', 'a conflict is settled as was said of the name here');
is( $slave->safe_psql('postgres', q(SELECT schemaname, tablename, kind, key FROM pyreplica_conflicts)),
	'school|pupil|insert_exists|{77777}', 'and kept with it');

# A change that fails tells both names.
$slave->safe_psql('postgres', q(ALTER TABLE school.pupil ADD CHECK (a <> 'bad')));
$master->safe_psql('postgres', q(UPDATE student SET a = 'bad' WHERE id = 10));
ok( wait_status($slave, q{last_error ~ 'table "public.student" \(here "school.pupil"\) \(id=.10.\)'}),
	'an error of a change tells both names');
my ($commitno, $xid) = split(/\|/,
	$slave->safe_psql('postgres', 'SELECT commitno, xid FROM pyreplica_failure'));
$slave->safe_psql('postgres', "SELECT * FROM pyreplica_skip('postgres', $commitno, '$xid', really => true)");
$slave->reload;
wait_caught_up($slave);
is($slave->safe_psql('postgres', q(SELECT tablename, outcome FROM pyreplica_conflicts WHERE kind = 'skipped')),
	'pupil|skipped', 'and can be passed over');
$slave->safe_psql('postgres', q(SELECT * FROM pyreplica_verify('school.pupil', repair => true)))
  if $slave->safe_psql('postgres', 'ALTER TABLE school.pupil DROP CONSTRAINT pupil_a_check') eq '';
is_like('student', 'school.pupil', 'the row is repaired');

# Another mapping is in force from the next window on, without a restart.  With the
# table's name changed in the same transaction, nothing is noticed.
my $pid      = status_value($slave, 'pid');
my $position = log_position($slave);
$slave->safe_psql('postgres', <<'SQL');
BEGIN;
ALTER TABLE school.pupil RENAME TO learner;
SELECT pyreplica_map_table('student', 'school.learner');
COMMIT;
SQL
$master->safe_psql('postgres', q(UPDATE student SET a = a || '?' WHERE id < 500));
is_like('student', 'school.learner', 'table and mapping are renamed together');
is(status_value($slave, 'pid'), $pid, 'and the worker went on');
unlike(log_since($slave, $position), qr/ERROR|conflict/, 'without an error');

# What was at the old place stays there.
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE school.novice (LIKE school.learner INCLUDING ALL);
SELECT pyreplica_map_table('student', 'school.novice');
SQL
my $before = content($slave, 'school.learner');
$master->safe_psql('postgres', q(UPDATE student SET a = 'gone?' WHERE id = 4; INSERT INTO student VALUES (88888, 'there')));
wait_caught_up($slave);
is($slave->safe_psql('postgres', 'SELECT * FROM school.novice'), '88888|there', 'changes go to the new place');
is(content($slave, 'school.learner'), $before, 'and rows at the old one stay as they are');
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('school.novice')));
wait_ready(q(tablename = 'student'));
is_like('student', 'school.novice', 'the new place gets the rows by a resync');

# Without a mapping it is the master's name again.
$slave->safe_psql('postgres', <<'SQL');
ALTER TABLE school.novice SET SCHEMA public;
ALTER TABLE novice RENAME TO student;
SELECT pyreplica_map_table('public.student', NULL);
SQL
$master->safe_psql('postgres', q(UPDATE student SET a = 'back' WHERE id = 4));
is_like('student', 'student', 'a mapping can be taken away');
like(error_of(q(SELECT pyreplica_map_table('student', NULL))), qr/nothing is laid down about "public.student" of the master$/m, 'once');
like(error_of(q(SELECT pyreplica_map_table('a.b.c', 'd'))), qr/improper table name/, 'names are checked');
like(error_of(q(SELECT pyreplica_map_schema(NULL, 'd'))), qr/must be named/, 'and must be there');

# Rows of several tables: only together, from nothing.
$slave->safe_psql('postgres', q(DELETE FROM event WHERE id = 7));
is($slave->safe_psql('postgres', q(SELECT * FROM pyreplica_verify('event'))), 'public.event|{7}|missing',
	'rows of the others are not extra');
like(error_of(q(SELECT * FROM pyreplica_verify('event', repair => true))),
	qr/cannot be repaired, as its rows come from several tables/, 'but it cannot be repaired');
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('event')));
ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 2 FROM pyreplica_tables WHERE last_error ~ 'cannot be made equal to one table of the master.*event_1.*Empty it')),
	'nor be made equal to one of them');
$slave->safe_psql('postgres', 'TRUNCATE event');
$slave->reload;
wait_ready(q(tablename ~ 'event'));
is_like('event', 'event', 'when it is empty, both are copied anew');
$master->safe_psql('postgres', 'UPDATE event SET a = $$end$$ WHERE id % 2 = 0');
is_like('event', 'event', 'and go on');

# TRUNCATE of one of them would take the others' rows away; of all of them it does not.
$position = log_position($slave);
$master->safe_psql('postgres', 'TRUNCATE event_1');
ok(wait_status($slave, q(last_error ~ 'table public.event cannot be truncated for the master.s table public.event_1 alone')),
	'TRUNCATE of one of them is an error');
is($slave->safe_psql('postgres', 'SELECT count(*) > 500, min(id) < 1000 FROM event'), 't|t', 'and no row is lost');
$slave->safe_psql('postgres', 'DELETE FROM event WHERE id < 1000');
($commitno, $xid) = split(/\|/, $slave->safe_psql('postgres', 'SELECT commitno, xid FROM pyreplica_failure'));
$slave->safe_psql('postgres', "SELECT * FROM pyreplica_skip('postgres', $commitno, '$xid', really => true)");
$slave->reload;
is_like('event', 'event', 'its rows can be deleted by hand, and the change passed over');
$master->safe_psql('postgres', q(TRUNCATE event; INSERT INTO event SELECT i, 'anew' FROM generate_series(900, 1100) i));
is_like('event', 'event', 'TRUNCATE of all of them is one');

# A table gets another place in the middle of being copied: what is at the old one is not
# here.  So it is if the table here is made anew; but one that is renamed goes on.
$master->safe_psql('postgres', <<'SQL');
CREATE TABLE long (id int PRIMARY KEY, a text);
INSERT INTO long SELECT i, 'row ' || i FROM generate_series(1, 200000) i;
CREATE TABLE late_comer (id int PRIMARY KEY, a text);
INSERT INTO late_comer SELECT i, 'late' FROM generate_series(1000001, 1000100) i;
SELECT py_log_create_tg('late_comer');
SQL
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE long (id int PRIMARY KEY, a text);
CREATE TABLE longer (id int PRIMARY KEY, a text);
CREATE TABLE late_comer (id int PRIMARY KEY, a text);
SQL
wait_ready(q(tablename = 'late_comer'));

# When so many rows of it are copied, something happens.
sub in_the_middle
{
	my ($rows, $sql) = @_;
	my $halted = q(SELECT state FROM pyreplica_tables WHERE tablename = 'long');
	my $session = $slave->background_psql('postgres');
	$session->set_query_timer_restart();
	poll_until(sub {
			$slave->safe_psql('postgres', "SELECT rows_copied > $rows AND state = 'copying' FROM pyreplica_tables WHERE tablename = 'long'") eq 't';
		}) or BAIL_OUT('the table is not copied');
	$session->query_safe("BEGIN; LOCK TABLE pyreplica_position IN EXCLUSIVE MODE; $sql");
	my $state = $slave->safe_psql('postgres', $halted);
	$session->query_safe('COMMIT');
	$session->quit;
	return is($state, 'copying', 'in the middle of a copy');
}

sub is_long
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_ready(q(tablename = 'long'));
	wait_caught_up($slave);
	my $sum = 'SELECT count(*), sum(hashtext(l::text)) FROM %s l WHERE id < 1000000';
	return is($slave->safe_psql('postgres', sprintf($sum, $table)),
		$master->safe_psql('postgres', sprintf($sum, 'long')), $name);
}
$master->safe_psql('postgres', q(SELECT py_log_create_tg('long')));
in_the_middle(0, q(SELECT pyreplica_map_table('long', 'longer')));
is_long('longer', 'all rows come to the new place');
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('longer')));
in_the_middle(0, q(DROP TABLE longer; CREATE TABLE longer (id int PRIMARY KEY, a text)));
is_long('longer', 'or to a table that is made anew');
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('longer')));
$position = log_position($slave);
in_the_middle(0, q(ALTER TABLE longer RENAME TO longest; SELECT pyreplica_map_table('long', 'longest')));
is_long('longest', 'or to one that got another name');
is(count_log($slave, $position, qr/copying table "public.long"/), 1, 'which goes on');

# Another one comes to be the same table while it is resynced.
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('longest')));
in_the_middle(0, q(INSERT INTO longest SELECT * FROM late_comer; SELECT pyreplica_map_table('late_comer', 'longest')));
ok( $slave->poll_query_until('postgres',
		q(SELECT bool_or(last_error ~ 'cannot be made equal to one table of the master') FROM pyreplica_tables WHERE tablename IN ('long', 'late_comer'))),
	'a table that another one comes to while it is resynced is not made equal to the one')
  or diag($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
is($slave->safe_psql('postgres', 'SELECT count(*) FROM longest WHERE id > 1000000'), '100', 'the other\'s rows are here');
$slave->safe_psql('postgres', 'TRUNCATE longest');
$slave->reload;
wait_ready(q(tablename = 'late_comer'));
is_long('longest', 'when it is empty, both are copied');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM longest WHERE id > 1000000'), '100', 'the other one, too');

# ---- Other columns and other types ----

$master->safe_psql('postgres', <<'SQL');
CREATE TABLE form (id int PRIMARY KEY, n numeric, small smallint, at timestamptz, doc text, code varchar(20), secret text);
INSERT INTO form SELECT i, i * 1.5, i % 100, '2024-06-01 23:30+00'::timestamptz + i * interval '1 hour', '{"i": ' || i || '}', 'code ' || i, 'hush'
  FROM generate_series(1, 3000) i;
SQL
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE form (code text, doc jsonb, extra int DEFAULT 7, small bigint, id bigint PRIMARY KEY, at date,
	twice bigint GENERATED ALWAYS AS (small * 2) STORED, n int);
SET timezone = 'Asia/Tokyo';
SQL
$master->safe_psql('postgres',
	q(SELECT py_log_create_tg('form', columns => '{id,n,small,at,doc,code}')));

# The slave's form, as it has to be: what an assignment makes of the values.
my $as_here = <<'SQL';
SET timezone = 'UTC';
SELECT id, n::int AS n, small, at::date AS at, doc::jsonb AS doc, code FROM form ORDER BY id
SQL
my $here = 'SELECT id, n, small, at, doc, code FROM form ORDER BY id';

sub is_form
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($slave);
	is($slave->safe_psql('postgres', $here), $master->safe_psql('postgres', $as_here), $name);
	return;
}
my $spoiled = q(SELECT key, problem FROM pyreplica_verify('form') ORDER BY key);

wait_ready(q(tablename = 'form'));
is_form('a table of another layout is copied');
is($slave->safe_psql('postgres', 'SELECT DISTINCT extra, twice = small * 2 FROM form'), '7|t',
	'what is only here has its default, or is computed');
is($slave->safe_psql('postgres', $spoiled), '', 'a verification compares what an assignment makes of values');
$slave->safe_psql('postgres', 'UPDATE form SET extra = id');
$position = log_position($slave);
$master->safe_psql('postgres', $_) for split(/\n/, <<'SQL');
UPDATE form SET n = 2.5, at = '2024-12-31 23:59:59.9+00', doc = '[1]', code = NULL WHERE id = 1
UPDATE form SET n = n + 0.5, small = 7, at = at + interval '1 day', doc = '{"a": ' || id || '}' WHERE id % 2 = 0; DELETE FROM form WHERE id % 5 = 0
INSERT INTO form SELECT i, 0.5, 1, '2020-01-01 00:00+00', 'null', 'new', NULL FROM generate_series(4001, 4500) i
UPDATE form SET id = id + 10000, code = 'moved' WHERE id % 7 = 0; UPDATE form SET secret = 'more'
SQL
is_form('changes are made as an assignment does');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM form WHERE extra <> 7 AND extra <> id AND extra <> id - 10000'), '0',
	'and leave what is only here alone');
is($slave->safe_psql('postgres', 'SELECT DISTINCT extra FROM form WHERE id BETWEEN 4001 AND 4500 AND code = $$new$$'), '7',
	'a new row has the default');
unlike(log_since($slave, $position), qr/strict order|ERROR/, 'and all of that in sets');
$slave->safe_psql('postgres', q(UPDATE form SET n = n + 1 WHERE id = 1; DELETE FROM form WHERE id = 2));
is($slave->safe_psql('postgres', $spoiled), "{1}|differs\n{2}|missing", 'a verification finds what differs, and no more');
$slave->safe_psql('postgres', q(SELECT * FROM pyreplica_verify('form', repair => true)));
is_form('and repairs it');
$slave->safe_psql('postgres', q(UPDATE form SET at = 'epoch' WHERE id % 9 = 0; DELETE FROM form WHERE id % 11 = 0; SELECT pyreplica_resync('form')));
wait_ready(q(tablename = 'form'));
is_form('so does a resync');
is($slave->safe_psql('postgres', 'SELECT extra FROM form WHERE id = 18'), '18', 'which leaves what is only here, too');

# A value that an assignment does not take is an error; the other tables go on.
$master->safe_psql('postgres', q(UPDATE form SET doc = 'not json' WHERE id = 1));
ok(wait_status($slave, q(last_error ~ 'invalid input syntax for type json' AND last_error ~ 'table "public.form"')),
	'a value that cannot be assigned is an error that names the table');
$slave->safe_psql('postgres', 'ALTER TABLE form ALTER COLUMN doc TYPE text');
$slave->reload;
wait_caught_up($slave);
is($slave->safe_psql('postgres', 'SELECT doc FROM form WHERE id = 1'), 'not json', 'when the column takes it, it goes on');

# What an assignment makes of values without another type: rounded numbers and times,
# blanks that come or go.  Rows are found by that, as key, as what they were before, and
# as all there is, and belong to ranges by it.
$master->safe_psql('postgres', <<'SQL');
CREATE TABLE blanks (k char(5) PRIMARY KEY, c char(3), a text);
CREATE TABLE rounded (k numeric PRIMARY KEY, a text);
CREATE TABLE moment (k timestamptz PRIMARY KEY, a text);
CREATE TABLE watched (id int PRIMARY KEY, n numeric, c char(3), at timestamptz);
CREATE TABLE bag (n numeric, c char(3), at timestamptz);
CREATE DOMAIN price AS numeric(10, 3);
CREATE TYPE mood AS ENUM ('happy', 'sad');
CREATE TABLE domains (id int PRIMARY KEY, p price, m mood, a text);
INSERT INTO domains SELECT i, i + 0.126, 'sad', 'a' FROM generate_series(1, 10) i;
INSERT INTO blanks SELECT i, i % 10, 'a' FROM generate_series(1, 3000) i;
INSERT INTO rounded SELECT i + 0.26, 'a' FROM generate_series(1, 5000) i;
INSERT INTO moment SELECT '2024-06-01 12:00+00'::timestamptz + i * interval '10.7 s', 'a' FROM generate_series(1, 5000) i;
INSERT INTO watched SELECT i, i + 0.126, 'a', '2024-06-01 12:00:00.7+00' FROM generate_series(1, 10) i;
INSERT INTO bag SELECT n, c, at FROM watched;
SQL
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE blanks (k text PRIMARY KEY, c varchar(2), a text);
CREATE TABLE rounded (k numeric(10, 1) PRIMARY KEY, a text);
CREATE TABLE moment (k timestamptz(0) PRIMARY KEY, a text);
CREATE TABLE watched (id int PRIMARY KEY, n numeric(10, 2), c char(9), at timestamptz(0));
CREATE TABLE bag (n numeric(10, 2), c char(9), at timestamptz(0));
CREATE TABLE domains (id int PRIMARY KEY, p numeric(10, 1), m varchar(10), a text);
SQL
my %assigned = (
	blanks  => 'k::text, c::varchar(2), a',
	rounded => 'k::numeric(10, 1), a',
	moment  => 'k::timestamptz(0), a',
	watched => 'id, n::numeric(10, 2), c::char(9), at::timestamptz(0)',
	bag     => 'n::numeric(10, 2), c::char(9), at::timestamptz(0)',
	domains => 'id, p::numeric(10, 1), m::varchar(10), a');
my @assigned = sort keys %assigned;
my %option = (watched => ', log_old => true', bag => q(, key => '{*}'));
$master->safe_psql('postgres', sprintf(q(SELECT py_log_create_tg('%s'%s)), $_, $option{$_} // ''))
  for @assigned;

sub are_assigned
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_ready(sprintf('tablename IN (%s)', join(', ', map { "'$_'" } @assigned)));
	wait_caught_up($slave);
	foreach my $table (@assigned)
	{
		is(content($slave, $table), content($master, "(SELECT $assigned{$table} FROM $table)"), "$name: $table");
		is($slave->safe_psql('postgres', "SELECT * FROM pyreplica_verify('$table')"), '', "and nothing differs: $table");
	}
	return;
}

ok($slave->poll_query_until('postgres', q(SELECT count(*) = 6 FROM pyreplica_tables WHERE tablename IN ('blanks', 'rounded', 'moment', 'watched', 'bag', 'domains'))), 'six more tables');
are_assigned('copied as assigned');
my $conflicts = status_value($slave, 'conflicts');
$master->safe_psql('postgres', $_) for split(/\n/, <<'SQL');
UPDATE blanks SET a = 'b' WHERE k = '1'; UPDATE blanks SET k = 'n' || k, c = 'x' WHERE k::int < 100; DELETE FROM blanks WHERE k LIKE '%7'
UPDATE rounded SET a = 'b' WHERE k < 100; UPDATE rounded SET a = 'c' WHERE k = 200.26; DELETE FROM rounded WHERE k BETWEEN 300 AND 400
UPDATE moment SET a = 'b' WHERE k < '2024-06-01 13:00+00'; DELETE FROM moment WHERE k > '2024-06-01 14:00+00'
UPDATE watched SET n = n + 0.001, c = 'b', at = at + interval '0.3 s' WHERE id = 3; UPDATE watched SET n = n + 1; DELETE FROM watched WHERE id = 4
UPDATE domains SET p = p + 0.05, m = 'happy' WHERE id % 2 = 0
UPDATE bag SET c = 'b' WHERE n = 1.126; UPDATE bag SET at = at + interval '1 day'; DELETE FROM bag WHERE n > 5
SQL
are_assigned('changed as assigned');
is(status_value($slave, 'conflicts'), $conflicts, 'without a conflict');
$slave->safe_psql('postgres', "UPDATE $_ SET a = 'spoiled'; SELECT pyreplica_resync('$_')") for qw(blanks rounded moment);
are_assigned('resynced as assigned');

# ---- Views, partitions, rules ----

$master->safe_psql('postgres', <<'SQL');
CREATE TABLE account (id int PRIMARY KEY, owner text, balance int);
CREATE TABLE seen (id int PRIMARY KEY, a text);
CREATE TABLE parted (id int PRIMARY KEY, region text, a text);
CREATE TABLE moving (id int PRIMARY KEY, region text, a text);
CREATE TABLE ruled (id int PRIMARY KEY, a text);
INSERT INTO account SELECT i, 'owner ' || i % 10, i FROM generate_series(1, 500) i;
INSERT INTO seen SELECT i, 'row ' || i FROM generate_series(1, 500) i;
INSERT INTO parted SELECT i, CASE i % 2 WHEN 0 THEN 'north' ELSE 'south' END, 'row ' || i FROM generate_series(1, 500) i;
INSERT INTO moving SELECT * FROM parted;
INSERT INTO ruled VALUES (1, 'one');
SQL
$slave->safe_psql('postgres', <<'SQL');
-- a view of which triggers make rows of two tables
CREATE TABLE owner (owner text PRIMARY KEY);
CREATE TABLE balance (id int PRIMARY KEY, owner text REFERENCES owner, balance int);
CREATE VIEW account AS SELECT id, owner, balance FROM balance;
CREATE FUNCTION to_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF TG_OP <> 'DELETE' THEN
		INSERT INTO public.owner VALUES (NEW.owner) ON CONFLICT DO NOTHING;
	END IF;
	IF TG_OP = 'INSERT' THEN
		INSERT INTO public.balance VALUES (NEW.id, NEW.owner, NEW.balance);
		RETURN NEW;
	ELSIF TG_OP = 'UPDATE' THEN
		UPDATE public.balance SET id = NEW.id, owner = NEW.owner, balance = NEW.balance WHERE id = OLD.id;
		RETURN NEW;
	END IF;
	DELETE FROM public.balance WHERE id = OLD.id;
	RETURN OLD;
END $$;
CREATE TRIGGER to_account INSTEAD OF INSERT OR UPDATE OR DELETE ON account FOR EACH ROW EXECUTE FUNCTION to_account();
-- one that PostgreSQL updates by itself, with other names
CREATE TABLE seen_base (number int PRIMARY KEY, words text, own int DEFAULT 3);
CREATE VIEW seen AS SELECT number AS id, words AS a FROM seen_base;
-- partitions, by the key and by what may change
CREATE TABLE parted (id int PRIMARY KEY, region text, a text) PARTITION BY HASH (id);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE moving (id int, region text, a text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE moving_north PARTITION OF moving FOR VALUES IN ('north');
CREATE TABLE moving_rest PARTITION OF moving DEFAULT;
-- rules, of which one is always in force
CREATE TABLE ruled (id int PRIMARY KEY, a text);
CREATE TABLE told (what text);
CREATE RULE always AS ON UPDATE TO ruled DO ALSO INSERT INTO told VALUES (NEW.a);
CREATE RULE never AS ON INSERT TO ruled DO INSTEAD NOTHING;
ALTER TABLE ruled ENABLE ALWAYS RULE always;
SQL
my @targets = qw(account seen parted moving ruled);
my $all     = sprintf('tablename IN (%s)', join(', ', map { "'$_'" } @targets));
log_table($master, @targets);
ok( $slave->poll_query_until('postgres',
		"SELECT count(*) = 5 AND bool_and(state = 'ready') FROM pyreplica_tables WHERE $all"),
	'views and partitioned tables are copied')
  or diag($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
is_like($_, $_, "copied: $_") for @targets;
is($slave->safe_psql('postgres', 'SELECT count(*) FROM owner'), '10', 'by the view\'s trigger');
$master->safe_psql('postgres', $_) for split(/\n/, <<'SQL');
UPDATE account SET balance = -1, owner = 'another' WHERE id = 3; DELETE FROM account WHERE id = 4; INSERT INTO account VALUES (1000, 'a new one', 1)
UPDATE account SET balance = balance + 1 WHERE id % 2 = 0; UPDATE account SET id = id + 10000 WHERE id % 50 = 0
UPDATE seen SET a = a || '!' WHERE id % 2 = 0; DELETE FROM seen WHERE id % 3 = 0; INSERT INTO seen SELECT i, 'new' FROM generate_series(501, 600) i; UPDATE seen SET id = -id WHERE id % 10 = 1
UPDATE parted SET a = a || '!', region = 'east' WHERE id % 2 = 0; DELETE FROM parted WHERE id % 3 = 0; UPDATE parted SET id = id + 1000 WHERE id % 10 = 1
UPDATE moving SET region = 'south' WHERE id % 4 = 0; UPDATE moving SET region = 'north', a = 'moved' WHERE id % 5 = 0; DELETE FROM moving WHERE id % 3 = 0; INSERT INTO moving SELECT i, 'north', 'new' FROM generate_series(501, 600) i
INSERT INTO ruled VALUES (2, 'two'), (3, 'three'); UPDATE ruled SET a = 'changed' WHERE id < 3; DELETE FROM ruled WHERE id = 3
SQL
is_like($_, $_, "changed: $_") for @targets;
is($slave->safe_psql('postgres', q(SELECT count(*) > 0 FROM moving_north WHERE a = 'moved')), 't', 'rows have moved to another partition');
is($slave->safe_psql('postgres', 'SELECT string_agg(what, $$ $$) FROM told'), 'changed changed', 'a rule that is always in force is');
$slave->safe_psql('postgres', q(DELETE FROM seen_base WHERE number = 2; UPDATE moving SET a = 'spoiled' WHERE id = 5; DELETE FROM parted WHERE id = 2; DELETE FROM balance WHERE id = 2));
foreach my $wrong ([ 'seen', 2, 'missing' ], [ 'moving', 5, 'differs' ], [ 'parted', 2, 'missing' ], [ 'account', 2, 'missing' ])
{
	my ($table, $key, $problem) = @$wrong;
	is($slave->safe_psql('postgres', "SELECT key, problem FROM pyreplica_verify('$table')"),
		"{$key}|$problem", "verified: $table");
}
$slave->safe_psql('postgres', "SELECT pyreplica_resync('$_')") for @targets;
ok( $slave->poll_query_until('postgres',
		"SELECT count(*) = 5 AND bool_and(state = 'ready') FROM pyreplica_tables WHERE $all"),
	'all of them can be resynced')
  or diag($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
is_like($_, $_, "resynced: $_") for @targets;

# ---- Copy workers, and tables that pyreplica makes ----

$master->safe_psql('postgres', 'CREATE SCHEMA crowd');
$slave->safe_psql('postgres', <<'SQL');
CREATE SCHEMA masses;
CREATE FUNCTION masses.tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.by := (SELECT backend_type FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid());
	RETURN NEW;
END $$;
SELECT pyreplica_map_schema('crowd', 'masses');
SQL
foreach my $table (map { "t$_" } 1 .. 4)
{
	$master->safe_psql('postgres', <<"SQL");
CREATE TABLE crowd.$table (id int PRIMARY KEY, a text);
INSERT INTO crowd.$table SELECT i, 'row ' || i FROM generate_series(1, 8000) i;
ANALYZE crowd.$table;
SQL
	$slave->safe_psql('postgres', <<"SQL");
CREATE TABLE masses.$table (id int PRIMARY KEY, a text, by text);
CREATE TRIGGER tell BEFORE INSERT ON masses.$table FOR EACH ROW EXECUTE FUNCTION masses.tell();
ALTER TABLE masses.$table ENABLE ALWAYS TRIGGER tell;
SQL
}
$master->safe_psql('postgres', 'BEGIN; ' . join('', map { "SELECT py_log_create_tg('crowd', 't$_'); " } 1 .. 4) . 'COMMIT');
ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 4 AND bool_and(state = 'ready') FROM pyreplica_tables WHERE schemaname = 'crowd')),
	'many tables with other names are copied')
  or diag($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
is( $slave->safe_psql('postgres', 'SELECT id, a FROM masses.t' . $_ . ' ORDER BY id'),
	$master->safe_psql('postgres', 'SELECT id, a FROM crowd.t' . $_ . ' ORDER BY id'),
	"as they are: $_") for 1 .. 4;
is( $slave->safe_psql('postgres',
		'SELECT string_agg(DISTINCT by, $$, $$) FROM (' . join(' UNION ALL ', map { "SELECT by FROM masses.t$_" } 1 .. 4) . ') t'),
	'pyreplica copy worker, pyreplica worker', 'by copy workers as well');

# What has another name is not created; the others are.
set_conf($slave, 'pyreplica.copy_schema = on');
$master->safe_psql('postgres', 'CREATE TABLE crowd.late (id int PRIMARY KEY); CREATE TABLE made (id int PRIMARY KEY)');
$master->safe_psql('postgres', q(SELECT py_log_create_tg('crowd', 'late'), py_log_create_tg('made')));
ok($slave->poll_query_until('postgres', q(SELECT state = 'ready' FROM pyreplica_tables WHERE tablename = 'made')),
	'a table with its own name is created by copy_schema');
ok( $slave->poll_query_until('postgres',
		q(SELECT last_error ~ '"masses.late" does not exist.*makes no tables that have another name' FROM pyreplica_tables WHERE tablename = 'late')),
	'one with another name is not, which is said')
  or diag($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
is($slave->safe_psql('postgres', q(SELECT to_regclass('crowd.late'), to_regclass('masses.late'))), '|', 'under neither name');

done_testing();
