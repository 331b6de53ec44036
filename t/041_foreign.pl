# The slave's tables are on other servers, or spread over several of them: what is
# sent there, that rows are counted, and what becomes of it when the slave's server
# dies between the commits over there and its own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $master = new_master('master');
my $remote = PostgreSQL::Test::Cluster->new('remote');
$remote->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$remote->append_conf('postgresql.conf', "log_statement = all\nlog_min_duration_statement = -1\n");
$remote->start;

# One server for tables as they are, two for the parts of one.
my @shards = qw(whole north south);
$remote->safe_psql('postgres', "CREATE DATABASE $_") for @shards;

$master->safe_psql('postgres', <<'SQL');
CREATE TABLE one (id int PRIMARY KEY, n numeric(10, 2), a text, d date, l int[]);
CREATE TABLE two (tenant int, line text, n bigint, u int, PRIMARY KEY (tenant, line));
CREATE TABLE spread (id int PRIMARY KEY, region text, a text);
CREATE TABLE plain (id int PRIMARY KEY, a text);
INSERT INTO one SELECT i, i / 3.0, 'row ' || i, '2024-01-01'::date + i % 100, ARRAY[i, 1] FROM generate_series(1, 5000) i;
INSERT INTO two SELECT i % 50, 'line ' || i, i, i FROM generate_series(1, 5000) i;
INSERT INTO spread SELECT i, CASE i % 2 WHEN 0 THEN 'north' ELSE 'south' END, 'row ' || i FROM generate_series(1, 5000) i;
SQL

my $slave = new_slave($master, 'slave', copy => 1);
wait_worker($slave);
$slave->safe_psql('postgres', 'CREATE EXTENSION postgres_fdw; CREATE TABLE plain (id int PRIMARY KEY, a text)');
foreach my $shard (@shards)
{
	my $options = sprintf(q(host '%s', port '%s', dbname '%s'), $remote->host, $remote->port, $shard);
	$slave->safe_psql('postgres', <<"SQL");
CREATE SERVER $shard FOREIGN DATA WRAPPER postgres_fdw OPTIONS ($options, batch_size '500', fetch_size '5000');
CREATE USER MAPPING FOR CURRENT_USER SERVER $shard;
SQL
}
$remote->safe_psql('whole', <<'SQL');
CREATE TABLE one (id int PRIMARY KEY, n numeric(10, 2), a text, d date, l int[]);
CREATE TABLE two (tenant int, line text, n bigint, u int UNIQUE, PRIMARY KEY (tenant, line));
SQL
$remote->safe_psql($_, "CREATE TABLE spread (id int, region text CHECK (region = '$_'), a text, PRIMARY KEY (id))")
  for qw(north south);
$slave->safe_psql('postgres', <<'SQL');
CREATE FOREIGN TABLE one (id int, n numeric(10, 2), a text, d date, l int[]) SERVER whole;
CREATE FOREIGN TABLE two (tenant int, line text, n bigint, u int) SERVER whole;
CREATE TABLE spread (id int, region text, a text) PARTITION BY LIST (region);
CREATE FOREIGN TABLE spread_north PARTITION OF spread FOR VALUES IN ('north') SERVER north OPTIONS (table_name 'spread');
CREATE FOREIGN TABLE spread_south PARTITION OF spread FOR VALUES IN ('south') SERVER south OPTIONS (table_name 'spread');
SQL
my @tables = qw(one two spread);

sub wait_ready
{
	$slave->poll_query_until('postgres',
		q(SELECT count(*) = 4 AND bool_and(state = 'ready') FROM pyreplica_tables))
	  or BAIL_OUT("tables are not ready:\n"
		  . $slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
	wait_caught_up($slave);
	return;
}

sub are_same
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($slave);
	is_same_rows($master, $slave, $_, "$name: $_") for @tables;
	return;
}

# What the other server was asked to do, each kind of statement, and how often.
sub sent
{
	my ($do, $pattern) = @_;
	my $position = log_position($remote);
	$do->();
	wait_caught_up($slave);
	return count_log($remote, $position, $pattern);
}

log_table($master, @tables, 'plain');
wait_ready();
are_same('copied');
is($remote->safe_psql($_, 'SELECT count(*) FROM spread'), '2500', "half of the rows are in the $_")
  for qw(north south);

# In sets: how many statements arrive there.
my $change = qr/execute \S+: (?:UPDATE|DELETE|INSERT)/;
cmp_ok(sent(sub { $master->safe_psql('postgres', q(UPDATE one SET n = n + 1, a = a || '!', l = l || 7 WHERE id % 2 = 0)) }, $change),
	'<', 100, 'updates of 2500 rows are few statements');
cmp_ok(sent(sub { $master->safe_psql('postgres', q(UPDATE two SET n = n + 1 WHERE u % 2 = 0)) }, $change),
	'<', 100, 'with a key of several columns, too');
cmp_ok(sent(sub { $master->safe_psql('postgres', q(DELETE FROM one WHERE id % 5 = 0; DELETE FROM two WHERE u % 5 = 0)) }, $change),
	'<', 100, 'and deletes');
cmp_ok(sent(sub { $master->safe_psql('postgres', q(INSERT INTO one SELECT i, i, NULL, NULL, '{}' FROM generate_series(10001, 12000) i)) }, $change),
	'<', 100, 'and inserts, by the server\'s batch_size');
are_same('changed');
cmp_ok(sent(sub { $master->safe_psql('postgres', <<'SQL') }, $change), '<', 100, 'and over two servers');
UPDATE spread SET a = a || '?' WHERE id % 3 = 0; DELETE FROM spread WHERE id % 7 = 0;
INSERT INTO spread SELECT i, 'north', 'new' FROM generate_series(5001, 6000) i
SQL
are_same('spread');
is(status_value($slave, 'fallbacks'), '0', 'nothing was applied in strict order');

# Rows move between the servers; keys change.
$master->safe_psql('postgres', $_) for split(/\n/, <<'SQL');
UPDATE spread SET region = CASE region WHEN 'north' THEN 'south' ELSE 'north' END, a = 'moved' WHERE id % 11 = 0
UPDATE spread SET region = 'south' WHERE id = 5500
UPDATE one SET id = id + 100000 WHERE id % 13 = 0; UPDATE two SET line = line || ' more' WHERE u % 13 = 1
BEGIN; UPDATE one SET id = -1 WHERE id = 1; UPDATE one SET id = 1 WHERE id = 2; UPDATE one SET id = 2 WHERE id = -1; COMMIT
UPDATE one SET n = -n; UPDATE two SET u = -u
TRUNCATE plain; INSERT INTO plain VALUES (1, 'one')
SQL
are_same('moved');

# Somebody has taken rows away over there: found in sets, told in strict order.
my $conflicts = status_value($slave, 'conflicts');
$remote->safe_psql('whole', 'DELETE FROM one WHERE id IN (1, 3, 4)');
$master->safe_psql('postgres', 'UPDATE one SET a = NULL WHERE id < 2000');
wait_caught_up($slave);
is(status_value($slave, 'conflicts') - $conflicts, 3, 'rows that are missing are conflicts');
is($slave->safe_psql('postgres', q(SELECT string_agg(kind || ' ' || key::text, ', ' ORDER BY key) FROM pyreplica_conflicts)),
	'update_missing {1}, update_missing {3}, update_missing {4}', 'by name');
is($slave->safe_psql('postgres', q(SELECT key, problem FROM pyreplica_verify('one'))),
	"{1}|missing\n{3}|missing\n{4}|missing", 'a verification reads over there');
$slave->safe_psql('postgres', q(SELECT * FROM pyreplica_verify('one', repair => true)));
are_same('repaired');
$remote->safe_psql('whole', q(UPDATE two SET n = 0 WHERE u % 3 = 0; DELETE FROM two WHERE u % 3 = 1; INSERT INTO two VALUES (1, 'extra', 1, 1000000)));
$remote->safe_psql('north', q(DELETE FROM spread WHERE id < 100; INSERT INTO spread VALUES (0, 'north', 'extra')));
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('two'); SELECT pyreplica_resync('spread')));
wait_ready();
are_same('resynced');

# TRUNCATE over there (from 14 on).
$master->safe_psql('postgres', 'TRUNCATE spread; INSERT INTO spread SELECT i, $$north$$, $$again$$ FROM generate_series(1, 100) i');
are_same('truncated');

# ---- The slave's server dies when others have committed, and it has not ----

# A window's changes, and the COMMITs over there held back by a trigger that fires
# with them.  What $decide does with who waits there, and what follows.
sub die_between
{
	my ($name, $databases, $changes, $kill) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %session;
	foreach my $database (@$databases)
	{
		$remote->safe_psql($database, <<'SQL');
CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END$$;
SQL
		$remote->safe_psql($database,
			"CREATE CONSTRAINT TRIGGER hold AFTER INSERT OR UPDATE OR DELETE ON $_ DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()"
		) for $database eq 'whole' ? qw(one two) : 'spread';
		$session{$database} = $remote->background_psql($database);
		$session{$database}->query_safe('SELECT pg_advisory_lock(4711)');
	}
	$master->safe_psql('postgres', "BEGIN;\n$changes->[0];\nCOMMIT");
	my $waiting = q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted);
	poll_until(sub { $remote->safe_psql('postgres', $waiting) > 0 })
	  or BAIL_OUT("nobody waits over there:\n" . status($slave));
	my ($postmaster) = split(/\n/, slurp_file($slave->data_dir . '/postmaster.pid'));
	my @pids = ($postmaster, status_value($slave, 'pid'));
	$slave->kill9;
	poll_until(sub { !grep { kill(0, $_) } @pids })
	  or BAIL_OUT('the killed server is still there');
	$remote->safe_psql('postgres',
		"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = '$_')")
	  for @$kill;
	foreach my $database (@$databases)
	{
		$session{$database}->query_safe('SELECT pg_advisory_unlock(4711)');
		$session{$database}->quit;
	}
	poll_until(sub {
		$remote->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'postgres_fdw|pyreplica')) == 0 })
	  or BAIL_OUT('sessions of the slave are left over there');
	$master->safe_psql('postgres', $changes->[1]);
	$slave->start;
	poll_until(sub { (status_value($slave, 'state') // '') eq 'waiting' })
	  or BAIL_OUT("the worker does not wait:\n" . status($slave));
	are_same($name);
	foreach my $database (@$databases)
	{
		$remote->safe_psql($database, "DROP TRIGGER hold ON $_") for $database eq 'whole' ? qw(one two) : 'spread';
	}
	return;
}

my $kept = $slave->safe_psql('postgres', 'SELECT count(*) FROM pyreplica_conflicts');
my $many = <<'SQL';
INSERT INTO one SELECT i, 1, 'in flight', NULL, NULL FROM generate_series(20001, 20500) i;
UPDATE one SET a = 'in flight' WHERE id % 3 = 0;
DELETE FROM one WHERE id % 17 = 0;
SQL
die_between('a window that was committed over there', ['whole'], [ $many, 'SELECT' ], []);
die_between('and one that was changed since',
	['whole'],
	[ $many =~ s/20(?=\d\d\d)/30/gr, q(UPDATE one SET a = 'later' WHERE id > 30100; DELETE FROM one WHERE id > 30400) ],
	[]);
die_between('with keys that changed', ['whole'],
	[ <<'SQL', q(UPDATE one SET id = id + 1000000 WHERE id BETWEEN 30001 AND 30010; UPDATE one SET id = 40004 WHERE id = 40003; INSERT INTO one VALUES (40001, 7)) ], []);
DELETE FROM one WHERE id = 30005;
UPDATE one SET id = 30005 WHERE id = 30006;
INSERT INTO one VALUES (40001, 1, 'a'), (40002, 1, 'b');
UPDATE one SET id = 40003 WHERE id = 40001;
UPDATE one SET a = 'c', id = 40001 WHERE id = 40002;
DELETE FROM one WHERE id = 40001;
UPDATE two SET line = 'key ' || line WHERE u % 100 = 1;
SQL
die_between('with other unique values that changed hands', ['whole'],
	[ q(INSERT INTO two VALUES (1000, 'x', 1, 777777); INSERT INTO two SELECT 2000, i::text, i, 500000 + i FROM generate_series(1, 100) i),
	  q(BEGIN; UPDATE two SET u = 777778 WHERE tenant = 1000; INSERT INTO two VALUES (1001, 'y', 1, 777777); COMMIT) ], []);

# Which server is the first to commit is up to postgres_fdw: so the one and then the
# other gets no further, and rows are on both servers or on none.
foreach my $not ('north', 'south')
{
	my $from = $not eq 'north' ? 70 : 85;
	my $to = $from + 10;
	$master->safe_psql('postgres', "UPDATE spread SET region = CASE id % 2 WHEN 0 THEN 'north' ELSE 'south' END WHERE id BETWEEN $from AND $to");
	wait_caught_up($slave);
	die_between("committed on one server and not on the other, $not", [qw(north south)],
		[ <<"SQL", 'SELECT' ], [$not]);
INSERT INTO spread SELECT i, CASE i % 2 WHEN 0 THEN 'north' ELSE 'south' END, 'in flight' FROM generate_series(1001, 1200) i;
UPDATE spread SET a = 'in flight, not $not' WHERE id < 50;
DELETE FROM spread WHERE id BETWEEN $from - 20 AND $from - 15;
UPDATE spread SET a = 'before' WHERE id BETWEEN $from AND $to;
UPDATE spread SET region = CASE region WHEN 'north' THEN 'south' ELSE 'north' END WHERE id BETWEEN $from AND $to;
UPDATE spread SET a = 'after' WHERE id BETWEEN $from AND $to - 5;
SQL
	$master->safe_psql('postgres', 'DELETE FROM spread WHERE id BETWEEN 1001 AND 1200');
}
ok($slave->log_contains('table "public.spread" begins anew, as a row was lost between two servers'),
	'a row that was on none of them made its table be copied');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM pyreplica_conflicts'), $kept,
	'and none of this is a conflict');

# Now it is one again.
$master->safe_psql('postgres', 'DELETE FROM one WHERE id < 20');
wait_caught_up($slave);
$remote->safe_psql('whole', q(INSERT INTO one VALUES (5, 0, 'in the way')));
$master->safe_psql('postgres', q(INSERT INTO one VALUES (5, 1, 'new')));
ok(wait_status($slave, q(last_error ~ 'duplicate key value')), 'a row that is in the way over there is an error');
$remote->safe_psql('whole', q(DELETE FROM one WHERE id = 5));
$slave->reload;
are_same('and goes on');

# A value that is too long here is an error in updates as well, of however many rows.
$master->safe_psql('postgres', <<'SQL');
CREATE TABLE short (id int PRIMARY KEY, a text);
INSERT INTO short SELECT i, 'a' FROM generate_series(1, 100) i;
CREATE TABLE part_1 (id int PRIMARY KEY, a text);
CREATE TABLE part_2 (id int PRIMARY KEY, a text);
INSERT INTO part_1 SELECT i, 'one' FROM generate_series(1, 9000, 2) i;
INSERT INTO part_2 SELECT i, 'two' FROM generate_series(2, 9000, 2) i;
SQL
$remote->safe_psql('whole', 'CREATE TABLE short (id int PRIMARY KEY, a text); CREATE TABLE parts (id int PRIMARY KEY, a text)');
$slave->safe_psql('postgres', <<'SQL');
CREATE FOREIGN TABLE short (id int, a varchar(5)) SERVER whole;
CREATE FOREIGN TABLE parts (id int, a text) SERVER whole;
SELECT pyreplica_map_table('part_1', 'parts'), pyreplica_map_table('part_2', 'parts');
SQL
log_table($master, 'short', 'part_1', 'part_2');
ok($slave->poll_query_until('postgres',
		q(SELECT count(*) = 7 AND bool_and(state = 'ready') FROM pyreplica_tables)), 'three more tables')
  or diag($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
$master->safe_psql('postgres', q(UPDATE short SET a = 'too long' WHERE id < 20));
wait_status($slave, q(last_error ~ 'value too long' OR in_step_at > now()), 5);
is($remote->safe_psql('whole', q(SELECT count(*) FROM short WHERE a = 'too l')), '0', 'nothing is cut off');
$slave->safe_psql('postgres', 'ALTER FOREIGN TABLE short ALTER COLUMN a TYPE text');
$slave->reload;
wait_caught_up($slave);
is_same_rows($master, $slave, 'short', 'a value is as long as it is');

# Several tables may come into one over there, each beside what the others have brought.
my $both = '(SELECT * FROM part_1 UNION ALL SELECT * FROM part_2)';
is(content($slave, 'parts'), content($master, $both), 'several tables are copied into one over there');
$master->safe_psql('postgres', 'UPDATE part_1 SET a = a || id WHERE id % 3 = 0; DELETE FROM part_2 WHERE id % 5 = 0; INSERT INTO part_2 VALUES (-2, $$new$$)');
wait_caught_up($slave);
is(content($slave, 'parts'), content($master, $both), 'and go on there');

done_testing();
