# A slave that was away for long: it fetches ahead while it applies.  Whatever
# happens meanwhile, what it has is exactly what its position says; what the
# master sends is either understood or refused; and only who was granted it
# can read the log.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;
use Time::HiRes qw(usleep);

# The worker connects as a role that has what py_log_grant gives, without the
# right to read the log by SQL.  Windows are small, so that there are many.
my $master = new_master('master');
$master->safe_psql('postgres', <<'SQL');
CREATE ROLE replicator LOGIN;
CREATE ROLE ordinary LOGIN;
SELECT py_log_grant('replicator');
REVOKE SELECT ON replica_log, replica_log_sql FROM replicator;
SQL
my $slave = new_slave(
	$master, 'slave',
	conf => "log_statement = none\n"
	  . "pyreplica.window_memory = 64kB\n"
	  . conninfo_setting($master, 'user=replicator'));
wait_worker($slave);

# Each row knows the transaction that made it on the master.
on_both($master, $slave,
	'CREATE TABLE t (id serial PRIMARY KEY, a text, made xid8 NOT NULL)');
log_table($master, 't');

# Applying a row takes a little while, and can be stopped by a lock.
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE gate (open bool);
CREATE FUNCTION go_slowly() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_sleep(0.0003);
	LOCK TABLE public.gate IN ACCESS SHARE MODE;
	RETURN NEW;
END $$;
CREATE TRIGGER go_slowly BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION go_slowly();
ALTER TABLE t ENABLE ALWAYS TRIGGER go_slowly;
SQL

sub pause
{
	set_conf($slave, 'pyreplica.enabled = off');
	wait_status($slave, q(state = 'disabled'));
	return;
}

sub resume
{
	set_conf($slave, 'pyreplica.enabled = on');
	return;
}

# That many transactions of one row each, and a large one among them, which
# does not fit into the slave's memory.
sub write_rows
{
	my ($transactions) = @_;
	$master->safe_psql('postgres', <<"SQL");
SET synchronous_commit = off;
DO \$\$
BEGIN
	FOR i IN 1 .. $transactions LOOP
		INSERT INTO t (a, made) VALUES ('small', pg_current_xact_id());
		COMMIT;
		IF i = $transactions / 2 THEN
			INSERT INTO t (a, made)
			SELECT repeat('large', 40), pg_current_xact_id() FROM generate_series(1, 1000);
			COMMIT;
		END IF;
	END LOOP;
END \$\$
SQL
	return;
}

# Whether the slave has just the rows of the transactions that its position
# sees; the position, if so.
sub is_position_true
{
	my ($position, $rows) = split(
		/\|/,
		$slave->safe_psql(
			'postgres',
			q(SELECT p.position, (SELECT count(*) FROM t) FROM pyreplica_position p)
		));
	my $expected = $master->safe_psql('postgres',
		"SELECT count(*) FROM t WHERE pg_visible_in_snapshot(made, '$position')"
	);
	return $position if $rows == $expected;
	diag("at $position there should be $expected rows, not $rows");
	return 0;
}

sub position_xmax
{
	return $slave->safe_psql('postgres',
		'SELECT pg_snapshot_xmax(position) FROM pyreplica_position');
}

# A session of the slave that can stop the worker; until it hangs in a window.
my $gate = $slave->background_psql('postgres');

sub stop_in_window
{
	$gate->query_safe('BEGIN; LOCK TABLE gate');
	ok( $slave->poll_query_until(
			'postgres',
			q(SELECT count(*) = 1 FROM pg_locks WHERE relation = 'gate'::regclass AND NOT granted)
		),
		'the worker hangs in a window');
	return;
}

# Looks at it until the slave has everything; how many positions were seen.
sub watch_catching_up
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (%seen, $wrong);
	my $all = $master->safe_psql('postgres', 'SELECT count(*) FROM t');
	my $came = poll_until(
		sub {
			my $position = is_position_true();
			$seen{$position} = 1;
			$wrong ||= !$position;
			return $slave->safe_psql('postgres', 'SELECT count(*) FROM t') >= $all;
		});
	ok($came && !$wrong, $name);
	wait_caught_up($slave);
	is_same_rows($master, $slave, 't');
	is(status_value($slave, 'conflicts'), '0', 'without a conflict');
	return scalar(keys %seen);
}

$master->safe_psql('postgres',
	q(INSERT INTO t (a, made) VALUES ('first', pg_current_xact_id())));
wait_caught_up($slave);
is_same($master, $slave, 't', 'a role that cannot read the log replicates');

# --- The next window comes while one is applied ---

pause();
write_rows(5000);
my $log  = log_position($slave);
set_conf($master, 'log_statement = all');
$gate->query_safe('BEGIN; LOCK TABLE gate');
resume();

# The worker hangs in the first window, and has asked for the second.
my $xmax = position_xmax();
my $ahead = sub {
	my @asked = slurp_file($master->logfile) =~
	  /execute pyreplica_fetch.*\n.*parameters: \$1 = '\d+:(\d+):/g;
	return @asked && $asked[-1] > $xmax;
};
ok(poll_until($ahead), 'a slave that is behind fetches ahead');
is(position_xmax(), $xmax, 'of its position');
set_conf($master, 'log_statement = none');
ok(is_position_true(), 'which is true');

# A window that was fetched ahead does not keep it from its administrator.
$gate->query_safe('COMMIT');
my $seconds = seconds_of(sub { pause() });
cmp_ok($seconds, '<', 5, 'it can be paused');
ok(is_position_true(), 'and has then what its position says');
resume();
cmp_ok(watch_catching_up('all the way, rows and position agree'),
	'>', 2, 'in several steps');
is(count_log($slave, $log, qr/ERROR/), 0, 'and no error');

# --- Connections end, the slave crashes ---

pause();
write_rows(5000);
$log = log_position($slave);
resume();
for my $cut (1 .. 4)
{
	stop_in_window();
	my $before = position_xmax();
	is( $master->safe_psql(
			'postgres',
			q(SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'pyreplica postgres')
		),
		'1',
		'the connection ends while a window is applied');
	$gate->query_safe('COMMIT');
	ok(poll_until(sub { position_xmax() > $before }),
		'the window is finished all the same');
	ok(is_position_true(), 'and rows and position agree');
}
watch_catching_up('connections that end change nothing');
is(count_log($slave, $log, qr/ERROR/), 0, 'nor are they errors');

$gate->quit;
pause();
write_rows(5000);
resume();
for my $crash (1 .. 3)
{
	usleep(500_000);
	$slave->stop('immediate');
	$slave->start;
	ok(is_position_true(), 'the slave crashes, rows and position agree');
}
watch_catching_up('crashes change nothing');

# --- Answers that are none ---

# An error in the second window is told after the first one is applied.
$master->safe_psql('postgres',
	'ALTER FUNCTION py_log_fetch RENAME TO py_log_fetch_c');

sub answer_with
{
	my ($body) = @_;
	$master->safe_psql('postgres', <<"SQL");
CREATE OR REPLACE FUNCTION py_log_fetch("position" pg_snapshot, marks int, linger_ms int)
RETURNS SETOF bytea LANGUAGE plpgsql SECURITY DEFINER AS \$\$
DECLARE
	here	pg_snapshot := pg_current_snapshot();
	head	bytea := int8send(0) || convert_to(here::text, 'SQL_ASCII');
BEGIN
	$body
END \$\$
SQL
	return;
}

my @answers = (
	[ 'nothing',      'RETURN',                      'it is empty' ],
	[ 'no block',     'RETURN NEXT NULL',            'it is no block' ],
	[ 'a short head', q(RETURN NEXT '\x0000000100'), 'the head is too short' ],
	[
		'another version',
		'RETURN NEXT int4send(99) || int4send(1) || head',
		'its version is not known here'
	],
	[
		'half the head of an entry',
		q(RETURN NEXT int4send(1) || int4send(1) || head; RETURN NEXT int8send(1) || int8send(1)),
		'an entry is cut off'
	],
	[
		'an entry that is too long',
		q(RETURN NEXT int4send(1) || int4send(1) || head; RETURN NEXT int8send(1) || int8send(1) || int8send(1) || int4send(0) || int4send(3) || '\x0102'),
		'an entry is cut off'
	],
	[
		'an entry of negative length',
		q(RETURN NEXT int4send(1) || int4send(1) || head; RETURN NEXT int8send(1) || int8send(1) || int8send(1) || int4send(0) || int4send(-3) || '\x0102'),
		'an entry is cut off'
	],);
foreach my $answer (@answers)
{
	my ($name, $body, $complaint) = @$answer;
	pause();
	answer_with("$body;");
	$log = log_position($slave);
	resume();
	ok( wait_log(
			$slave, $log, qr/could not read what the master sent: $complaint/),
		"$name is refused");
}

pause();
write_rows(4000);
$xmax = position_xmax();
answer_with(<<"SQL");
	IF pg_snapshot_xmax("position") = '$xmax' THEN
		RETURN QUERY SELECT public.py_log_fetch_c("position", marks, linger_ms);
	ELSE
		RETURN NEXT int4send(1) || int4send(0) || head;
		RAISE EXCEPTION 'no more of this';
	END IF;
SQL
resume();
ok( wait_status(
		$slave, q(state = 'error' AND last_error ~ 'master: no more of this')),
	'an error of the master is told');
ok(is_position_true(), 'rows and position agree');
cmp_ok(position_xmax(), '>', $xmax, 'at the end of the window before it');

# A master can make blocks in SQL, too.
pause();
answer_with(<<'SQL');
	RETURN NEXT int4send(1) || int4send(1)
		|| int8send((pg_current_wal_flush_lsn() - '0/0')::int8)
		|| convert_to(here::text, 'SQL_ASCII');
	RETURN QUERY
	SELECT int8send(l.commitno) || int8send(l.xid::text::int8)
		|| timestamptz_send(l.at) || int4send(l.part)
		|| int4send(length(l.changes)) || l.changes
	  FROM public.replica_log l
	 WHERE NOT pg_visible_in_snapshot(l.xid, "position")
	   AND pg_visible_in_snapshot(l.xid, here)
	 ORDER BY l.commitno, l.xid, l.part;
SQL
resume();
watch_catching_up('blocks may be made by SQL');

$master->safe_psql('postgres', <<'SQL');
DROP FUNCTION py_log_fetch(pg_snapshot, int, int);
ALTER FUNCTION py_log_fetch_c RENAME TO py_log_fetch;
SQL
pause();
write_rows(100);
resume();
wait_caught_up($slave);
is_same_rows($master, $slave, 't', 'and by the extension again');

# --- The log's indexes are built anew ---

# While somebody keeps it from ending, and writers go on.
my $old = $master->background_psql('postgres');
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t');
my $reindex = start_looping($master, 'psql', '-c',
	'REINDEX TABLE CONCURRENTLY replica_log_1', '-c',
	'REINDEX TABLE CONCURRENTLY replica_log_2', '-c',
	'REINDEX TABLE CONCURRENTLY replica_log_3');
$master->poll_query_until('postgres',
	q(SELECT count(*) > 0 FROM pg_stat_progress_create_index WHERE phase = 'waiting for old snapshots'))
  or BAIL_OUT('the index is not being built');
pause();
write_rows(200);
$old->query_safe('COMMIT');
$old->quit;
poll_until(sub { $master->safe_psql('postgres', q(SELECT count(*) FROM pg_class WHERE relname ~ 'replica_log_._(xid|mark)_cc')) eq '0' });
write_rows(50);
stop_looping($reindex);
resume();
wait_caught_up($slave);
is_same_rows($master, $slave, 't', 'what was written while an index of the log was built is found');

# --- Who may read the log ---

sub fetch_as
{
	my ($role) = @_;
	my ($rc, $out, $err) = $master->psql('postgres',
		"SET ROLE $role; SELECT count(*) > 1 FROM py_log_fetch('1:1:', 1000000, 0)"
	);
	return $rc == 0 ? $out : $err;
}
is(fetch_as('replicator'), 't', 'who was granted it can read the log');
like(
	fetch_as('ordinary'),
	qr/permission denied for function py_log_fetch/,
	'others cannot');

done_testing();
