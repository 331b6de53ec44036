# Large transactions and large values: they take files, not memory, on both
# sides; and what has been replicated does not stay in the log.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my ($master, $slave) = new_pair(
	master_conf => <<'CONF',
pyreplica.log_rotate_size = 100GB
log_temp_files = 0
max_wal_size = 4GB
CONF
	slave_conf => <<'CONF');
pyreplica.window_memory = 1MB
max_wal_size = 4GB
CONF

sub worker_pid
{
	return status_value($slave, 'pid') || 0;
}

# Runs SQL in a session of its own on the master; by how many MB that grew
# the session, and the worker on the slave until all has arrived there.
sub growth
{
	my ($sql) = @_;
	my $session = $master->background_psql('postgres');
	my $backend = $session->query_safe('SELECT pg_backend_pid()');
	my $worker  = worker_pid();
	my @before  = (memory_of($backend), memory_of($worker));
	my @most    = @before;
	my $measure = sub {
		my @now = (memory_of($backend), memory_of($worker));
		foreach my $i (0, 1)
		{
			$most[$i] = $now[$i] if $now[$i] > $most[$i];
		}
	};

	$session->query_until(qr/begun/, "\\echo begun\n$sql\n");
	poll_until(
		sub {
			$measure->();
			return $master->safe_psql('postgres',
				"SELECT state = 'idle' AND query ~ '^COMMIT' FROM pg_stat_activity WHERE pid = $backend"
			) eq 't';
		});
	my $waited = '';
	my $target = IPC::Run::start(
		[
			'psql', '-XAtq', '-h', $slave->host, '-p', $slave->port,
			'-c', q(SELECT pyreplica_wait(timeout => '170 s')), 'postgres'
		],
		'>',
		\$waited);
	poll_until(
		sub {
			$measure->();
			$target->pump_nb;
			return $waited =~ /\S/;
		});
	$target->finish;
	like($waited, qr/^t$/m, 'the slave has caught up');
	is(worker_pid(), $worker, 'by the same worker');
	$session->quit;
	my @grown = map { int($most[$_] - $before[$_]) } (0, 1);
	note("the master's session grew by $grown[0] MB, the slave's worker by $grown[1] MB");
	return @grown;
}

# --- A million rows ---

on_both($master, $slave, <<'SQL');
CREATE TABLE many (id int PRIMARY KEY, n int, a text);
SQL
$master->safe_psql('postgres',
	'CREATE TABLE unlogged_many (LIKE many INCLUDING ALL)');
log_table($master, 'many');

sub million
{
	my ($table) = @_;
	return <<"SQL";
SET pyreplica.capture_memory = '1MB';
BEGIN;
INSERT INTO $table SELECT i, i % 7, 'row' FROM (SELECT generate_series(1, 1000000) AS i) s;
UPDATE $table SET n = n + 1;
COMMIT;
SQL
}

my ($without) = growth(million('unlogged_many'));
is($master->safe_psql('postgres', 'SELECT count(*) FROM unlogged_many'),
	'1000000', 'what it takes without log trigger was measured');
my $here = log_position($master);
my ($with, $worker) = growth(million('many'));
cmp_ok($with, '<', $without + 200,
	'a million rows take little memory in the session that changes them');
cmp_ok($worker, '<', 100, 'and in the worker that applies them');
my ($written) = log_since($master, $here) =~ /temporary file: .* size (\d+)/;
cmp_ok($written // 0, '>', 10_000_000,
	'they were in a temporary file before commit');
my $sums = q(SELECT count(*), sum(id::bigint * n), min(a), max(a) FROM many);
is( $slave->safe_psql('postgres', $sums),
	$master->safe_psql('postgres', $sums),
	'all of them have come');

# One transaction is applied as one, however large.
is($slave->safe_psql('postgres', 'SELECT count(DISTINCT xmin::text) FROM many'),
	'1', 'in one transaction');

# --- Savepoints, when the changes have gone to a file ---

on_both($master, $slave,
	'CREATE TABLE partly (id int PRIMARY KEY, n int DEFAULT 0, a text)');
log_table($master, 'partly');
$here = log_position($master);
$master->safe_psql('postgres', <<'SQL');
SET pyreplica.capture_memory = '64kB';
BEGIN;
INSERT INTO partly SELECT i, 0, 'in memory' FROM generate_series(1, 100) i;
SAVEPOINT before_file;
INSERT INTO partly SELECT i, 0, repeat('gone', 20) FROM generate_series(101, 5000) i;
DELETE FROM partly WHERE id < 50;
ROLLBACK TO before_file;
INSERT INTO partly SELECT i, 0, repeat('stays', 20) FROM generate_series(101, 5000) i;
SAVEPOINT in_file;
UPDATE partly SET n = -1;
SAVEPOINT inner_one;
DELETE FROM partly WHERE id % 3 = 0;
RELEASE inner_one;
INSERT INTO partly SELECT i, -1, repeat('gone', 20) FROM generate_series(5001, 9000) i;
ROLLBACK TO in_file;
UPDATE partly SET n = 1 WHERE id % 10 = 0;
SAVEPOINT again;
DELETE FROM partly WHERE id % 11 = 0;
ROLLBACK TO again;
INSERT INTO partly SELECT i, 2, 'last' FROM generate_series(5001, 6000) i;
COMMIT;
SQL
wait_caught_up($slave);
like(log_since($master, $here), qr/temporary file:/,
	'a small capture_memory takes a file');
is_same_rows($master, $slave, 'partly',
	'rolling back to a savepoint leaves exactly the rest in the file');
is(status_value($slave, 'conflicts'), '0', 'without conflict');

$master->safe_psql('postgres', <<'SQL');
SET pyreplica.capture_memory = '64kB';
BEGIN;
SAVEPOINT first;
UPDATE partly SET a = repeat('never', 30);
ROLLBACK TO first;
COMMIT;
BEGIN;
UPDATE partly SET a = repeat('never', 30);
ROLLBACK;
SQL
wait_caught_up($slave);
is_same_rows($master, $slave, 'partly', 'and rolling back all leaves nothing');

# The file cannot be written: an error, whatever is done about it afterwards,
# and the session goes on.
my $full = <<'SQL';
SET pyreplica.capture_memory = '64kB';
SET temp_file_limit = '1MB';
BEGIN;
UPDATE partly SET n = 100 WHERE id = 1;
SAVEPOINT s;
UPDATE partly SET a = repeat(md5(id::text), 30);
SQL
my $said = run_loosely($master, <<"SQL");
$full
ROLLBACK;
$full
ROLLBACK TO s;
SET temp_file_limit = -1;
UPDATE partly SET n = 200 WHERE id = 2;
COMMIT;
UPDATE partly SET n = 300 WHERE id = 3;
SELECT 'still here';
SQL
like($said, qr/still here/, 'a session whose changes found no space goes on');
is(count_log($master, $here, qr/terminated by signal|while in ABORT/),
	0, 'nothing crashes');
is( $master->safe_psql('postgres',
		'SELECT string_agg(n::text, $$ $$ ORDER BY id) FROM partly WHERE id < 4'),
	'0 0 300', 'what could not be logged was not committed');
wait_caught_up($slave);
is_same_rows($master, $slave, 'partly', 'and the slave has what was');

# --- Large values ---

on_both($master, $slave, <<'SQL');
CREATE TABLE large (id int PRIMARY KEY, n int, a bytea, b bytea);
ALTER TABLE large ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
SQL
log_table($master, 'large');
$master->safe_psql('postgres', <<'SQL');
CREATE FUNCTION large_value(seed text) RETURNS bytea LANGUAGE sql AS $$
	SELECT string_agg(decode(repeat(md5(seed || i), 32768), 'hex'), '' ORDER BY i)
	  FROM generate_series(1, 200) i
$$;
SQL

my $digest =
  q(SELECT id, n, length(a), md5(a), length(b), md5(b) FROM large ORDER BY id);
sub same_large
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($slave);
	return is(
		$slave->safe_psql('postgres', $digest),
		$master->safe_psql('postgres', $digest), $name);
}

# What a transaction on the master adds to the log: bytes and entries.
sub logged
{
	my ($sql) = @_;
	my ($xid) = $master->safe_psql('postgres',
		"BEGIN; $sql; SELECT pg_current_xact_id(); COMMIT") =~ /(\d+)$/;
	return split(
		/\|/,
		$master->safe_psql('postgres',
			"SELECT sum(length(changes)), count(*) FROM replica_log WHERE xid = '$xid'"
		));
}

my ($bytes, $parts) =
  logged(q(INSERT INTO large SELECT 1, 0, large_value('one'), NULL));
cmp_ok($bytes, '>', 100 * 1024 * 1024, 'a value of 100 MB is logged');
cmp_ok($bytes, '<', 101 * 1024 * 1024, 'once');
same_large('and arrives');
logged(q(INSERT INTO large SELECT 2, 0, large_value('two'), large_value('three')));
same_large('a row of two such values arrives');

($bytes, $parts) = logged(q(UPDATE large SET n = n + 1));
cmp_ok($bytes, '<', 200, 'changing another column logs a few bytes');
is($parts, '1', 'in one entry');
same_large('and leaves the large ones as they are');
($bytes) = logged(q(UPDATE large SET b = substr(a, 1, 1000) WHERE id = 2));
cmp_ok($bytes, '<', 1300, 'of two large columns only the changed one is logged');
same_large('and is changed');
$master->safe_psql('postgres', 'DELETE FROM large');
same_large('they are deleted');

# --- The log's inner tables ---

on_both($master, $slave,
	'CREATE TABLE traffic (id bigserial PRIMARY KEY, a text)');
log_table($master, 'traffic');

# Any session that has the library may set what belongs to it.
$master->safe_psql(
	'postgres', q(
LOAD 'pyreplica';
ALTER SYSTEM SET pyreplica.log_rotate_size = '1MB';
SELECT pg_reload_conf();
));

my $script = PostgreSQL::Test::Utils::tempdir() . '/traffic.sql';
append_to_file($script,
	q(INSERT INTO traffic (a) SELECT repeat(md5(i::text), 12) FROM generate_series(1, 60) i;)
);

# Rather more than 20 kB each, so many times in a second.
sub start_traffic
{
	my (@options) = @_;
	my $output = '';
	return IPC::Run::start(
		[
			'pgbench', '-n', '-f', $script, '-h', $master->host, '-p',
			$master->port, @options, 'postgres'
		],
		'>&',
		\$output);
}

sub inner_sizes
{
	return split(
		/\|/,
		$master->safe_psql('postgres',
			q(SELECT pg_relation_size('replica_log_1'), pg_relation_size('replica_log_2'), pg_relation_size('replica_log_3'))
		));
}

my $traffic = start_traffic('-c', 2, '-R', 100, '-T', 8);
my (%filled, %emptied);
ok( poll_until(
		sub {
			my @sizes = inner_sizes();
			foreach my $i (0 .. 2)
			{
				$filled{$i}++ if $sizes[$i] > 0;
				$emptied{$i}++ if $filled{$i} && $sizes[$i] == 0;
			}
			return keys %emptied == 3;
		},
		30),
	'each inner table is filled and emptied while traffic goes on')
  or diag('sizes: ' . join(' ', inner_sizes()));
$traffic->finish;
is($traffic->result(0), 0, 'which nothing stops');
wait_caught_up($slave);
is_same_rows($master, $slave, 'traffic', 'and loses nothing by it');

# A slave that is registered but does not come: the log is kept for it.

$master->safe_psql('postgres', q(SELECT py_log_add_slave('absent')));
my $kept = q(SELECT count(*) FROM replica_log l, replica_slave s WHERE s.name = 'absent' AND l.part = 0 AND NOT pg_visible_in_snapshot(l.xid, s.position));
my $confirmed = q(SELECT confirmed_at FROM replica_slave WHERE name = 'postgres');
my $confirmations = 0;
my $last = $master->safe_psql('postgres', $confirmed);
$traffic = start_traffic('-c', 2, '-R', 80, '-t', 200);
poll_until(
	sub {
		my $now = $master->safe_psql('postgres', $confirmed);
		$confirmations++ if $now ne $last;
		$last = $now;
		return $confirmations >= 4;
	},
	30);
cmp_ok($confirmations, '>=', 4, 'one slave goes on confirming');
$traffic->finish;
wait_caught_up($slave);
is($master->safe_psql('postgres', $kept),
	'400', 'the log keeps everything for a slave that is absent');
is(scalar(grep { $_ > 0 } inner_sizes()), 3, 'in all of the inner tables')
  or diag('sizes: ' . join(' ', inner_sizes()));

$master->safe_psql('postgres', q(SELECT py_log_drop_slave('absent')));
ok( poll_until(
		sub {
			$master->safe_psql('postgres',
				q(INSERT INTO traffic (a) VALUES ('go on')));
			return 2 == grep { $_ == 0 } inner_sizes();
		},
		30),
	'when it is dropped, the log is let go')
  or diag('sizes: ' . join(' ', inner_sizes()));
wait_caught_up($slave);
is_same_rows($master, $slave, 'traffic', 'and again nothing is lost');
is(status_value($slave, 'conflicts'), '0', 'there was no conflict');

done_testing();
