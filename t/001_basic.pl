# What PyReplica promised first: rows changed on the master change on the
# slave, one or many at a time, whatever bytes they hold.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PyreplicaTest;
use Test::More;

my ($master, $slave) = new_pair();

on_both($master, $slave, <<'SQL');
CREATE TABLE tt (id1 int, id2 int, a text, PRIMARY KEY (id1, id2));
CREATE TABLE student (id serial PRIMARY KEY, name text);
CREATE TABLE t (a int);
CREATE TABLE bytes (id int PRIMARY KEY, b bytea);
SQL

# The How-To's own statement, as printed.
my $howto = q{SELECT py_log_create_tg(relname::text) FROM pg_class WHERE relname !~ '^(pg_|sql_)' AND relkind = 'r' AND relname != 'replica_log' ;};
my $answer = $master->safe_psql('postgres', $howto);
like($answer, qr/^created trigger on tt \(id1,id2\)$/m, 'a composite key');
like($answer, qr/^created trigger on student \(id\)$/m, 'a single key');
like($answer,
	qr/^ table t has no pk constraint \(couldn't be replicated\)!$/m,
	'a table without a key is left alone');
unlike($answer, qr/created trigger on (?:replica_|pyreplica_)/,
	'our own tables are left alone');

my $triggers = $master->safe_psql('postgres',
	q(SELECT oid, tgname FROM pg_trigger ORDER BY 1));
is( join("\n", sort split(/\n/, $master->safe_psql('postgres', $howto))),
	join("\n", sort split(/\n/, $answer)),
	'running it again says the same');
is( $master->safe_psql(
		'postgres', q(SELECT oid, tgname FROM pg_trigger ORDER BY 1)),
	$triggers,
	'and changes nothing');

# One row, one statement each.
$master->safe_psql('postgres', q(INSERT INTO tt VALUES (1, 2, 'x'), (2, 3, 'y')));
$master->safe_psql('postgres', q(UPDATE tt SET a = '123' WHERE id1 = 1));
$master->safe_psql('postgres', q(DELETE FROM tt WHERE id1 = 2));
wait_caught_up($slave);
is(content($slave, 'tt'), '(1,2,123)', 'insert, update and delete arrived');

# Many rows, several tables, one transaction.
$master->safe_psql('postgres', <<'SQL');
BEGIN;
INSERT INTO student (name) SELECT 'student ' || i FROM generate_series(1, 1000) i;
UPDATE student SET name = upper(name) WHERE id % 3 = 0;
DELETE FROM student WHERE id % 7 = 0;
INSERT INTO tt SELECT i, -i, repeat('x', i) FROM generate_series(10, 300) i;
COMMIT;
SQL
wait_caught_up($slave);
is_same($master, $slave, $_) for ('student', 'tt');

# Every byte there is.
$master->safe_psql('postgres',
	q(INSERT INTO bytes SELECT i, decode(lpad(to_hex(i), 2, '0'), 'hex') FROM generate_series(0, 255) i)
);
wait_caught_up($slave);
is_same($master, $slave, 'bytes', 'bytes 0 to 255');

# A table without trigger stays where it is.
$master->safe_psql('postgres', 'INSERT INTO t VALUES (1)');
$master->safe_psql('postgres', q(SELECT py_log_drop_tg('student')));
$master->safe_psql('postgres', q(INSERT INTO student (name) VALUES ('late')));
wait_caught_up($slave);
is(content($slave, 't'), '', 'a table that is not logged is not replicated');
is($slave->safe_psql('postgres', q(SELECT count(*) FROM student WHERE name = 'late')),
	'0', 'nor one whose trigger was dropped');

done_testing();
