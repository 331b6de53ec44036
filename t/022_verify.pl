# Whether both sides are really equal: rows are compared while the master is busy,
# without a false alarm; what somebody spoiled is found, named and mended.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

# The slave's tables have their columns in another order, or are partitioned.
my $master = new_master('master');
$master->safe_psql('postgres', <<'SQL');
CREATE TABLE num (id int PRIMARY KEY, n int, at timestamptz DEFAULT now(), b bytea, f float8, d numeric);
CREATE TABLE txt (k text COLLATE "C", l date, v jsonb, PRIMARY KEY (l, k));
CREATE TYPE rating AS ENUM ('low', 'high');
CREATE TABLE rated (r rating PRIMARY KEY, n int);
CREATE TABLE empty (id int PRIMARY KEY);
INSERT INTO num SELECT i, i % 10, now(), decode(md5(i::text), 'hex'), i / 7.0, i / 7.0 FROM generate_series(1, 30000) i;
INSERT INTO txt SELECT md5(i::text), date '2026-01-01' + i % 100, jsonb_build_object('i', i) FROM generate_series(1, 10000) i;
INSERT INTO rated VALUES ('low', 1), ('high', 2);
ALTER DATABASE postgres SET timezone = 'Asia/Tokyo';
ALTER DATABASE postgres SET datestyle = 'German';
SQL
log_table($master, qw(num txt rated empty));
my $slave = new_slave($master, 'slave', copy => 1);
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE num (d numeric, f float8, b bytea, id int, n int, at timestamptz, own text DEFAULT 'slave', PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE num_1 PARTITION OF num FOR VALUES FROM (MINVALUE) TO (10000);
CREATE TABLE num_2 PARTITION OF num DEFAULT;
CREATE TABLE txt (v jsonb, k text COLLATE "C", l date, PRIMARY KEY (l, k));
CREATE TYPE rating AS ENUM ('high', 'low');
CREATE TABLE rated (r rating PRIMARY KEY, n int);
CREATE TABLE empty (id int PRIMARY KEY);
SQL
$slave->poll_query_until('postgres', q(SELECT count(*) = 4 FROM pyreplica_tables WHERE state = 'ready'))
  or BAIL_OUT("not copied:\n" . $slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));

sub verify
{
	my ($arguments) = @_;
	return $slave->safe_psql('postgres',
		qq(SELECT "table", array_to_string(key, ','), problem FROM pyreplica_verify($arguments)));
}

is(verify(''), '', 'after the copy both sides are equal');
is( $slave->safe_psql('postgres',
		q(SELECT count(*) FROM pyreplica_tables WHERE verified_at IS NOT NULL AND differences = 0)),
	'4', 'which pyreplica_tables says of each table');

# While the master is busy, and the rows that are compared change all the time.
my $script = PostgreSQL::Test::Utils::tempdir() . '/busy.sql';
append_to_file($script, <<'SQL');
\set id random(1, 30000)
UPDATE num SET n = n + 1, at = now() WHERE id = :id;
DELETE FROM num WHERE id = :id + 1;
INSERT INTO num (id, n) VALUES (:id + 1, 0) ON CONFLICT DO NOTHING;
UPDATE txt SET l = l + 1 WHERE k = md5(:id::text);
SQL
my $load = start_looping($master, 'pgbench', '-n', '-c', 2, '-T', 600, '-f', $script);
my $seen = '';
$seen .= verify('') for 1 .. 10;
is($seen, '', 'nor is there any difference while the master is busy');

# Somebody writes on the slave.
$slave->safe_psql('postgres', <<'SQL');
INSERT INTO num (id, n) VALUES (40000, 0);
UPDATE txt SET v = '{"spoiled": true}' WHERE ctid = (SELECT max(ctid) FROM txt);
DELETE FROM rated WHERE r = 'high';
SQL
stop_looping($load);
wait_caught_up($slave);
my ($day, $key) = split(/\|/, $slave->safe_psql('postgres', q(SELECT l, k FROM txt WHERE v ? 'spoiled')));
is(verify(q('num')), 'public.num|40000|extra', 'a row that is not on the master is found');
is(verify(q('txt')), "public.txt|$day,$key|differs", 'and one that differs');
is(verify(''), <<"SQL" =~ s/\n$//r, 'all of them');
public.num|40000|extra
public.rated|high|missing
public.txt|$day,$key|differs
SQL
is($slave->safe_psql('postgres', q(SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pyreplica_tables WHERE differences = 1)),
	'num rated txt', 'and kept in mind');
like(slurp_file($slave->logfile), qr/LOG:  pyreplica postgres: 1 rows of table "public\.num" differ from the master's/, 'and logged');
verify('repair => true');
is(verify(''), '', 'they are mended');
is_same_rows($master, $slave, $_, "$_ is equal") for
  '(SELECT id, n, extract(epoch FROM at), b, f, d FROM num)',
  '(SELECT k, l - date $$2000-01-01$$, v FROM txt)', 'rated';

# In the background.
$slave->safe_psql('postgres', q(UPDATE num SET n = -1 WHERE id IN (5, 20000)));
set_conf($slave, 'pyreplica.verify_interval = 1s');
ok($slave->poll_query_until('postgres', q(SELECT differences = 2 FROM pyreplica_tables WHERE tablename = 'num')),
	'differences are found without anybody asking');
set_conf($slave, 'pyreplica.verify_interval = 0');
verify(q('num', repair => true));

# Each table has its time, which a restart does not forget.
set_conf($slave, 'pyreplica.verify_interval = 1h');
$slave->safe_psql('postgres', q(UPDATE pyreplica_table SET verified_at = now() - interval '2h', finished_at = verified_at - interval '3h', differences = NULL WHERE tablename = 'txt';
	UPDATE pyreplica_table SET differences = NULL WHERE tablename <> 'txt'));
$slave->restart;
ok($slave->poll_query_until('postgres', q(SELECT differences = 0 FROM pyreplica_tables WHERE tablename = 'txt')),
	'after a restart, a table that is due is verified');
is($slave->safe_psql('postgres', q(SELECT count(differences) FROM pyreplica_tables)), '1', 'and no other');
set_conf($slave, 'pyreplica.verify_interval = 0');
wait_worker($slave);

# What cannot be verified.
sub refused
{
	my ($arguments) = @_;
	return ($slave->psql('postgres', "SELECT * FROM pyreplica_verify($arguments)"))[2];
}
$slave->safe_psql('postgres', 'CREATE TABLE other (id int)');
like(refused(q('other')), qr/could not verify: the table is not replicated, or not ready/, 'a table that is not replicated is refused');
like(refused(q(replica => 'nobody')), qr/replica "nobody" does not exist/, 'and so is a replica that does not exist');
on_both($master, $slave, 'CREATE TABLE filled (id int PRIMARY KEY); INSERT INTO filled VALUES (1)');
log_table($master, 'filled');
ok($slave->poll_query_until('postgres', q(SELECT state = 'error' FROM pyreplica_tables WHERE tablename = 'filled')), 'a table is in error');
like(refused(''), qr/WARNING:  not verified: public\.filled \(error\)/, 'which a verification of all says that it passes over');
is(refused(q('txt')), '', 'but not one that is about another');
$master->safe_psql('postgres', 'ALTER TABLE num ADD more int');
like(refused(q('num')), qr/could not verify: column "more" of the master's table "public\.num" does not exist on the slave/, 'a table that has other columns');
is(verify(q('txt')), '', 'the others can still be verified');

done_testing();
