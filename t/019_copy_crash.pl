# Tables are copied while their rows change, move along the key and go, and while
# everybody is killed now and then.  What was copied is not copied again, and in
# the end both sides are equal.
#
# PYREPLICA_TEST_SEED repeats a run's choices, PYREPLICA_TEST_ROUNDS makes it
# longer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;
use Time::HiRes qw(usleep);

my $seed   = $ENV{PYREPLICA_TEST_SEED}   // int(rand(1_000_000));
my $rounds = $ENV{PYREPLICA_TEST_ROUNDS} // 2;
srand($seed);
note("PYREPLICA_TEST_SEED=$seed");

my @tables = qw(num txt pair rated);
my $schema = <<'SQL';
CREATE TYPE rating AS ENUM ('zero', 'one', 'two', 'three');
CREATE TABLE num (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, a text);
CREATE TABLE txt (k text COLLATE "C" PRIMARY KEY, n int NOT NULL DEFAULT 0, a jsonb);
CREATE TABLE pair (a int, b bigint, n int NOT NULL DEFAULT 0, big text, PRIMARY KEY (b, a));
CREATE TABLE rated (r rating, id int, n int NOT NULL DEFAULT 0, PRIMARY KEY (r, id));
SQL

my $master = new_master('master', conf => <<'CONF');
restart_after_crash = on
log_statement = none
pyreplica.log_rotate_size = 1MB
CONF
$master->safe_psql('postgres', $schema . <<'SQL');
CREATE FUNCTION random_key(OUT k int) LANGUAGE sql AS 'SELECT (random() * 60000)::int';
INSERT INTO num SELECT i, 0, repeat('n', i % 50) FROM generate_series(1, 60000) i;
INSERT INTO txt SELECT md5(i::text), 0, jsonb_build_object('i', i) FROM generate_series(1, 30000) i;
INSERT INTO pair SELECT i % 300, i, 0, CASE WHEN i % 1000 = 0 THEN repeat(md5(i::text), 200) END FROM generate_series(1, 30000) i;
INSERT INTO rated SELECT enum_first(NULL::rating), i, 0 FROM generate_series(1, 3000) i;
-- one of the things that can happen to a row
CREATE FUNCTION happen() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	key int := random_key();
	other int := random_key();
BEGIN
	CASE (random() * 12)::int
	WHEN 0 THEN INSERT INTO num VALUES (key, 1, 'new');
	WHEN 1 THEN DELETE FROM num WHERE id = key;
	WHEN 2 THEN UPDATE num SET id = other WHERE id = key;
	WHEN 3 THEN INSERT INTO txt VALUES (md5(key::text), 1, '{"new": true}');
	WHEN 4 THEN DELETE FROM txt WHERE k = md5(other::text);
	WHEN 5 THEN UPDATE txt SET k = md5(other::text) WHERE k = md5(key::text);
	WHEN 6 THEN UPDATE txt SET n = n + 1 WHERE txt.k > md5(key::text) AND txt.k < md5(key::text) || 'z';
	WHEN 7 THEN INSERT INTO pair VALUES (key % 300, key, 1);
	WHEN 8 THEN UPDATE pair SET b = other, n = n + 1 WHERE b BETWEEN key AND key + 5;
	WHEN 9 THEN DELETE FROM pair WHERE b = key;
	WHEN 10 THEN UPDATE rated SET r = 'two', n = n + 1 WHERE id = key % 3000;
	WHEN 11 THEN UPDATE pair SET n = n + 1 WHERE b = key;
	ELSE UPDATE num SET n = n + 1 WHERE id BETWEEN key AND key + 5;
	END CASE;
EXCEPTION WHEN unique_violation THEN NULL;
END
$$;
SQL
log_table($master, @tables);

my $script = PostgreSQL::Test::Utils::tempdir() . '/happen.sql';
append_to_file($script, "SELECT happen() FROM generate_series(1, 3);\n");

# one of the processes that copy beside the worker
my $copier = q(SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'pyreplica copy worker' ORDER BY random() LIMIT 1);

my $slave;
foreach my $round (1 .. $rounds)
{
	$slave = new_slave(
		$master, "slave$round",
		copy => 1,
		conf => "restart_after_crash = on\nlog_statement = none\npyreplica.database = 'postgres'\npyreplica.copy_workers = 2\n");
	$slave->safe_psql('postgres', $schema);
	my $load = start_looping($master, 'pgbench', '-n', '-c', 3, '-T', 60,
		'-f', $script);

	my %kill = (
		worker => sub { status_value($slave, 'pid') },
		copier => sub { $slave->safe_psql('postgres', $copier) },
		reader => sub { master_pid($master) });
	foreach my $who (sort { rand() <=> 0.5 } qw(worker copier reader worker copier reader))
	{
		usleep(int(rand(400_000)));
		my $pid = eval { $kill{$who}->() } or next;
		note("killing the $who");
		kill('KILL', $pid);
		my $node = $who eq 'reader' ? $master : $slave;
		$node->poll_query_until('postgres', 'SELECT true');
	}
	$slave->poll_query_until('postgres',
		q(SELECT count(*) = 4 FROM pyreplica_tables WHERE state = 'ready'))
	  or BAIL_OUT("not all tables are copied:\n"
		  . $slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
	stop_looping($load);
	wait_caught_up($slave);
	is_same_rows($master, $slave, $_, "round $round: $_ is equal") for @tables;
	is(status_value($slave, 'conflicts'), '0', "round $round: without conflicts");
	$slave->stop;
	$master->safe_psql('postgres', q(SELECT py_log_drop_slave('postgres')));
}

done_testing();
