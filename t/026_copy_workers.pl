# Several tables are copied at a time, by copy workers beside the replica's worker.
# Whatever happens to one of them, nothing is lost, nothing comes twice, and the
# tables of the others go on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

# Rows past the first chunk, which the worker copies by itself, take their time; in
# a copy worker more.
my $slowly = <<'SQL';
CREATE FUNCTION copies_beside() RETURNS bool LANGUAGE sql
RETURN (SELECT backend_type = 'pyreplica copy worker' FROM pg_stat_activity WHERE pid = pg_backend_pid());
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_catalog.pg_sleep(CASE WHEN public.copies_beside() THEN 0.002 ELSE 0.001 END);
	RETURN NEW;
END
$$;
SQL

my $master = new_master('master');
my $slave  = new_slave($master, 'slave', copy => 1);
wait_worker($slave);
$slave->safe_psql('postgres', $slowly);
my $ntables = 0;

# A table of 3000 rows, which is two chunks.
sub make_table
{
	my ($name) = @_;
	on_both($master, $slave, "CREATE TABLE $name (id int PRIMARY KEY, u int UNIQUE, a text)");
	$master->safe_psql('postgres',
		"INSERT INTO $name SELECT i, -i, 'row ' || i FROM generate_series(1, 3000) i; ANALYZE $name");
	$slave->safe_psql('postgres', <<SQL);
CREATE TRIGGER take_time BEFORE INSERT ON $name FOR EACH ROW WHEN (NEW.id BETWEEN 2001 AND 3000) EXECUTE FUNCTION take_time();
ALTER TABLE $name ENABLE ALWAYS TRIGGER take_time;
SQL
	$ntables++;
	return;
}

# Creates several log triggers at the same instant.
sub log_together
{
	my (@tables) = @_;
	$master->safe_psql('postgres',
		'BEGIN; ' . join('', map { "SELECT py_log_create_tg('$_'); " } @tables) . 'COMMIT');
	return;
}

sub wait_ready
{
	my ($node, $n) = @_;
	my $database = $node->name eq 'crowded' ? 'crowded' : 'postgres';
	$node->poll_query_until($database,
		"SELECT count(*) = $n FROM pyreplica_tables WHERE state = 'ready'")
	  or BAIL_OUT("tables are not ready:\n"
		  . $node->safe_psql($database, 'SELECT * FROM pyreplica_tables'));
	return;
}

# The process that is copying beside the worker; waits for one.
my $who = q(SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'pyreplica copy worker' AND query LIKE 'copying %' AND state = 'active');

sub copier
{
	my $pid = '';
	poll_until(sub { $pid = $slave->safe_psql('postgres', $who) })
	  or BAIL_OUT("nobody copies beside the worker:\n" . status($slave));
	return $pid;
}

# Two tables at a time, while their rows change on both sides of where they are.
make_table($_) for qw(a b c);
log_together(qw(a b c));
copier();
$master->safe_psql('postgres', <<"SQL") for qw(a b c);
UPDATE $_ SET id = id + 10000 WHERE id % 100 = 1;
UPDATE $_ SET u = -u, a = a || ' changed' WHERE id % 50 = 2;
DELETE FROM $_ WHERE id % 70 = 3;
INSERT INTO $_ SELECT i, -i, 'new' FROM generate_series(5001, 5100) i ON CONFLICT DO NOTHING;
UPDATE $_ SET id = -id WHERE id % 90 = 4;
SQL
like(
	$slave->safe_psql('postgres', q(SELECT string_agg(backend_type || ': ' || regexp_replace(query, ':.*', ''), ', ' ORDER BY backend_type)
		FROM pg_stat_activity WHERE query LIKE 'copying %' AND backend_type LIKE 'pyreplica%')),
	qr/pyreplica copy worker: copying public\.[abc], pyreplica worker: copying public\.[abc]/,
	'two tables are copied at the same time');
wait_ready($slave, $ntables);
wait_caught_up($slave);
is_same_rows($master, $slave, $_, "$_ is equal") for qw(a b c);
is(status_value($slave, 'conflicts'), '0', 'without conflicts');
ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pyreplica copy worker')),
	'then the copy worker goes');

# Rows that the slave's tables do not take, in chunks of the copy worker.
make_table($_) for qw(d e f);
$slave->safe_psql('postgres', "ALTER TABLE $_ ADD CHECK (a <> 'row 2900')") for qw(d e f);
log_together(qw(d e f));
copier();
ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 3 FROM pyreplica_tables WHERE state = 'error' AND last_error ~ 'violates check constraint')),
	'tables that fail are in error');
is(status_value($slave, 'errors'), '0', 'the replica is not');
is( $slave->safe_psql('postgres',
		q(SELECT string_agg(tablename || ' ' || rows_copied, ', ' ORDER BY tablename) FROM pyreplica_tables WHERE state = 'error')),
	'd 2000, e 2000, f 2000',
	'and as far as they were before');
$slave->safe_psql('postgres', "ALTER TABLE $_ DROP CONSTRAINT ${_}_a_check") for qw(d e f);
wait_ready($slave, $ntables);
is_same_rows($master, $slave, $_, "$_ is copied once it can be") for qw(d e f);

# What happens on the master after somebody was killed.
sub go_on
{
	my (@tables) = @_;
	$master->safe_psql('postgres',
		"UPDATE $_ SET a = 'later' WHERE id % 3 = 0; UPDATE $_ SET id = id + 10000 WHERE id % 500 = 0")
	  for @tables;
	return;
}

# The worker goes while the other one copies, before or after its own transaction
# has ended; the next one begins where that leaves the tables.
my $script = PostgreSQL::Test::Utils::tempdir() . '/change.sql';
append_to_file($script, <<'SQL');
\set k random(3001, 100000)
INSERT INTO :table VALUES (:k, -:k, 'new') ON CONFLICT DO NOTHING;
DELETE FROM :table WHERE id = :k - 7;
SQL

sub kill_worker
{
	my ($when, @tables) = @_;
	my $before = log_position($slave);
	make_table($_) for @tables;
	my @loads = map { start_looping($master, 'pgbench', '-n', '-R', 100, '-T', 60, '-D', "table=$_", '-f', $script) } @tables;
	log_together(@tables);
	copier();
	my $killed = $slave->safe_psql('postgres', <<"SQL");
DO \$\$
BEGIN
	FOR i IN 1 .. 20000 LOOP
		PERFORM pg_stat_clear_snapshot();
		PERFORM set_config('test.killed', pg_terminate_backend(pid)::text, false) FROM pg_stat_activity
		  WHERE backend_type = 'pyreplica worker' AND $when AND EXISTS ($who);
		EXIT WHEN FOUND;
		PERFORM pg_sleep(0.003);
	END LOOP;
END
\$\$;
SELECT current_setting('test.killed', true);
SQL
	is($killed, 'true', "the worker was killed with $when");
	stop_looping($_) for @loads;
	wait_ready($slave, $ntables);
	wait_caught_up($slave);
	is_same_rows($master, $slave, $_, "$_ is equal afterwards") for @tables;
	is(status_value($slave, 'conflicts'), '0', 'without conflicts');
	is(count_log($slave, $before, qr/could not copy|duplicate key/), 0, 'or errors');
	return;
}

kill_worker('backend_xid IS NOT NULL', qw(g h i));
kill_worker('backend_xid IS NULL', qw(p q r));

# The copy worker goes: the worker goes on alone.
make_table($_) for qw(j k l);
my $before = log_position($slave);
log_together(qw(j k l));
my $copier = copier();
my $worker = status_value($slave, 'pid');
$slave->safe_psql('postgres', "SELECT pg_terminate_backend($copier)");
go_on(qw(j k l));
wait_ready($slave, $ntables);
wait_caught_up($slave);
is_same_rows($master, $slave, $_, "$_ is equal after the copy worker went") for qw(j k l);
is(status_value($slave, 'pid'), $worker, 'the worker did not mind');
is(count_log($slave, $before, qr/tables are copied one at a time for now/), 1, 'but said so, once');

# Both wait for one another, as they write the same rows in opposite order: the
# server notices, and the worker goes on alone.
$slave->restart;
wait_worker($slave);
make_table($_) for qw(m n o);
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE tally (name text PRIMARY KEY, n int NOT NULL DEFAULT 0);
INSERT INTO tally VALUES ('one'), ('two');
CREATE FUNCTION count_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	beside bool := public.copies_beside();
BEGIN
	UPDATE public.tally SET n = n + 1
	 WHERE name = CASE WHEN beside = (NEW.id < 2500) THEN 'one' ELSE 'two' END;
	RETURN NEW;
END
$$;
SQL
$slave->safe_psql('postgres', <<"SQL") for qw(m n o);
CREATE TRIGGER z BEFORE INSERT ON $_ FOR EACH ROW WHEN (NEW.id > 2000 AND NEW.id % 100 = 0) EXECUTE FUNCTION count_row();
ALTER TABLE $_ ENABLE ALWAYS TRIGGER z;
SQL
$before = log_position($slave);
log_together(qw(m n o));
wait_ready($slave, $ntables);
wait_caught_up($slave);
like(log_since($slave, $before), qr/one at a time for now: deadlock detected/, 'two that wait for one another are noticed');
is_same_rows($master, $slave, $_, "$_ is equal all the same") for qw(m n o);
is($slave->safe_psql('postgres', 'SELECT sum(n) FROM tally'), '30', 'nothing came twice');
is(status_value($slave, 'errors'), '0', 'and nothing was wrong');
$slave->stop;

# There is no room for a copy worker.
my $crowded = new_slave(
	$master, 'crowded',
	copy     => 1,
	database => 'crowded',
	conf     => <<'CONF');
max_worker_processes = 2
max_logical_replication_workers = 0
pyreplica.copy_workers = 4
CONF
$crowded->safe_psql('crowded',
	join('', map { "CREATE TABLE $_ (id int PRIMARY KEY, u int UNIQUE, a text);" } 'a' .. 'r'));
wait_ready($crowded, $ntables);
is( $crowded->safe_psql('crowded', "SELECT count(*), sum(id) FROM $_"),
	$master->safe_psql('postgres', "SELECT count(*), sum(id) FROM $_"),
	"$_ is copied without copy workers") for 'a' .. 'r';
is(count_log($crowded, 0, qr/one at a time for now: no background worker slot is free/), 1, 'which is said once');
$crowded->stop;

# What a copy worker writes is the replica's and comes from the master, as what the
# worker itself writes: it is no local row in a conflict, and no new change to those
# who follow the slave.
{
	my $careful = new_slave($master, 'careful', copy => 1, database => 'careful',
		conf => "track_commit_timestamp = on\npyreplica.conflict_resolution = keep_local\n");
	my @tables = map { "whose_$_" } 1 .. 3;
	$careful->poll_query_until('careful', q(SELECT count(*) = 1 FROM pg_extension WHERE extname = 'pyreplica'))
	  or BAIL_OUT('the worker did not create its extension');
	foreach my $table (@tables)
	{
		my $sql = "CREATE TABLE $table (id int PRIMARY KEY, a text)";
		$master->safe_psql('postgres', "$sql; INSERT INTO $table SELECT i, 'a' FROM generate_series(1, 20000) i; ANALYZE $table");
		$careful->safe_psql('careful', "$sql; ALTER TABLE $table SET (fillfactor = 50);
			SELECT py_log_create_tg('$table'); ALTER TABLE $table ENABLE ALWAYS TRIGGER \"!py_log_replica_tg\"");
	}
	log_together(@tables);
	$careful->poll_query_until('careful',
		q(SELECT count(*) = 3 FROM pyreplica_tables WHERE tablename ~ '^whose_' AND state = 'ready'))
	  or BAIL_OUT('tables are not ready');
	cmp_ok($careful->safe_psql('careful', q(SELECT count(*) FROM pg_replication_origin WHERE roname ~ ' copy ')), '>', 0,
		'a copy worker has an origin of its own');
	$master->safe_psql('postgres', "UPDATE $_ SET a = 'b' WHERE id % 7 = 0") for @tables;
	wait_caught_up($careful);
	is($careful->safe_psql('careful', "SELECT count(*) FROM $_ WHERE a = 'b'"), '2857', "$_: its rows are not local ones") for @tables;
	is($careful->safe_psql('careful', 'SELECT count(*) FROM pyreplica_conflicts'), '0', 'there was no conflict');
	is($careful->safe_psql('careful', q(SELECT count(*) FROM replica_log_sql WHERE origin IS NULL)), '0', 'and what is logged again has its origin');
}

done_testing();
