# Two-phase commit on the master: what a prepared transaction changed reaches
# the slave when it is committed, by whomever and whenever that is, and never
# if it is rolled back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PyreplicaTest;
use Test::More;

# The slave's keep-alive is 60 s, unless said otherwise: what comes sooner was
# not found by it.
my $SOON = 5;
my ($master, $slave) = new_pair();

on_both($master, $slave, <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, a text);
CREATE TABLE other (id int PRIMARY KEY, a text);
SQL
log_table($master, 't', 'other');
$master->safe_psql('postgres',
	q(INSERT INTO t SELECT i, 'old' FROM generate_series(1, 20) i));
wait_caught_up($slave);

# How a row is on the slave now.
sub row
{
	my ($id) = @_;
	return $slave->safe_psql('postgres', "SELECT a FROM t WHERE id = $id");
}

# Whether the row becomes this within so many seconds, without our asking
# for it.
sub becomes
{
	my ($id, $a, $seconds, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $took = seconds_of(sub { poll_until(sub { row($id) eq $a }, $seconds) });
	note(sprintf('%s: %.2f s', $name, $took));
	return is(row($id), $a, $name);
}

# Until the slave sleeps, having announced it on the master.
sub asleep
{
	wait_caught_up($slave);
	poll_until(
		sub {
			(status_value($slave, 'state') // '') eq 'waiting'
			  && $master->safe_psql('postgres',
				q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted)
			  ) eq '1';
		}) or BAIL_OUT("the slave does not fall asleep:\n" . status($slave));
	return;
}

sub prepared_count
{
	return $master->safe_psql('postgres',
		'SELECT count(*) FROM pg_prepared_xacts');
}

my $session = $master->background_psql('postgres');

# Committed by the session that prepared it.

asleep();
$session->query_safe(<<'SQL');
BEGIN;
UPDATE t SET a = 'first' WHERE id = 1;
INSERT INTO t VALUES (101, 'first');
DELETE FROM t WHERE id = 20;
PREPARE TRANSACTION 'first'
SQL
is(prepared_count(), '1', 'a transaction with captured changes is prepared');
is( $master->safe_psql(
		'postgres',
		q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND (pid IS NULL OR mode = 'RowExclusiveLock'))
	),
	'0',
	'and holds no advisory lock');
wait_caught_up($slave);
is(row(1), 'old', 'its changes are not on the slave yet');

asleep();
$session->query_safe(q(COMMIT PREPARED 'first'));
becomes(1, 'first', $SOON,
	'COMMIT PREPARED from the same session wakes the slave');
is_same($master, $slave, 't', 'with all of the transaction');

# Several of one session.

asleep();
for my $i (2 .. 4)
{
	$session->query_safe(
		"BEGIN; UPDATE t SET a = 'several' WHERE id = $i; PREPARE TRANSACTION 'several $i'"
	);
}
for my $i (4, 2, 3)
{
	$session->query_safe("COMMIT PREPARED 'several $i'");
	wait_caught_up($slave);
	is_same($master, $slave, 't', "number $i of several prepared ones came");
}

# An unrelated commit between PREPARE and COMMIT PREPARED wakes the slave.  It
# sees the prepared transaction and does not sleep for long from then on.

asleep();
$session->query_safe(
	q(BEGIN; UPDATE t SET a = 'between' WHERE id = 5; PREPARE TRANSACTION 'between')
);
$session->query_safe(q(INSERT INTO other VALUES (1, 'between')));
asleep();
$session->query_safe(q(COMMIT PREPARED 'between'));
becomes(5, 'between', $SOON,
	'a commit between PREPARE and COMMIT PREPARED does not hide it');

# Committed by another session, with the slave asleep since before PREPARE:
# nobody wakes it, but it is found when somebody asks.

asleep();
$session->query_safe(
	q(BEGIN; UPDATE t SET a = 'elsewhere' WHERE id = 6; PREPARE TRANSACTION 'elsewhere')
);
$master->safe_psql('postgres', q(COMMIT PREPARED 'elsewhere'));
wait_caught_up($slave);
is(row(6), 'elsewhere',
	'COMMIT PREPARED from another session is found by pyreplica_wait');

# Later transactions on other rows overtake it.

asleep();
$session->query_safe(<<'SQL');
BEGIN;
UPDATE t SET a = 'overtaken' WHERE id = 7;
INSERT INTO other VALUES (7, 'overtaken');
PREPARE TRANSACTION 'overtaken';
SQL
for my $i (1 .. 10)
{
	$master->safe_psql('postgres',
		"UPDATE t SET a = 'later $i' WHERE id = 8; INSERT INTO other VALUES (100 + $i, 'later')"
	);
	wait_caught_up($slave) if $i % 3 == 0;
}
wait_caught_up($slave);
is(row(8), 'later 10', 'later transactions are there before it');
is(row(7), 'old', 'and it is not');
is_same($master, $slave, $_, "$_ is the same while one is prepared")
  for ('t', 'other');
$master->safe_psql('postgres', q(COMMIT PREPARED 'overtaken'));
$master->safe_psql('postgres', q(UPDATE t SET a = 'on top' WHERE id = 7));
wait_caught_up($slave);
is(row(7), 'on top', 'what builds on it comes after it');
is_same($master, $slave, $_, "$_ is the same when it was committed")
  for ('t', 'other');

# With savepoints; what they took back is not replicated.

$session->query_safe(<<'SQL');
BEGIN;
UPDATE t SET a = 'kept' WHERE id = 9;
SAVEPOINT one;
UPDATE t SET a = 'taken back' WHERE id IN (9, 10);
INSERT INTO other VALUES (9, 'taken back');
ROLLBACK TO one;
SAVEPOINT two;
UPDATE t SET a = a || ' and released' WHERE id = 9;
RELEASE two;
SAVEPOINT three;
INSERT INTO other VALUES (9, 'kept');
PREPARE TRANSACTION 'savepoints';
SQL
wait_caught_up($slave);
$session->query_safe(q(COMMIT PREPARED 'savepoints'));
becomes(9, 'kept and released', 2 * $SOON, 'savepoints in it are respected');
is_same($master, $slave, $_, "$_ with savepoints") for ('t', 'other');

# Rolled back, here or there.

$session->query_safe(
	q(BEGIN; UPDATE t SET a = 'never' WHERE id = 11; PREPARE TRANSACTION 'never'; ROLLBACK PREPARED 'never')
);
$session->query_safe(
	q(BEGIN; INSERT INTO t VALUES (111, 'never'); PREPARE TRANSACTION 'never either')
);
wait_caught_up($slave);
$master->safe_psql('postgres', q(ROLLBACK PREPARED 'never either'));
$master->safe_psql('postgres', q(INSERT INTO other VALUES (11, 'after')));
wait_caught_up($slave);
is( $master->safe_psql(
		'postgres',
		q(SELECT count(*) FROM replica_log_sql WHERE statement ~ 'never')),
	'0',
	'ROLLBACK PREPARED leaves nothing in the log');
is_same($master, $slave, $_, "$_ when prepared ones were rolled back")
  for ('t', 'other');

# A restart of the master, fast or by crash, between the two.

foreach my $mode ('fast', 'immediate')
{
	my $id = $mode eq 'fast' ? 12 : 13;
	$master->safe_psql('postgres',
		"BEGIN; UPDATE t SET a = 'survived' WHERE id = $id; PREPARE TRANSACTION '$mode'"
	);
	wait_caught_up($slave);
	$session->quit if $session;
	undef $session;
	$master->stop($mode);
	$master->start;
	$master->safe_psql('postgres',
		"INSERT INTO other VALUES ($id, 'after restart')");
	wait_caught_up($slave);
	is(row($id), 'old', "prepared before a restart ($mode): not there yet");
	asleep();
	$master->safe_psql('postgres', "COMMIT PREPARED '$mode'");
	becomes($id, 'survived', 2 * $SOON, 'committed after it: there');
}
is_same($master, $slave, $_, "$_ after restarts") for ('t', 'other');

# When nothing is prepared any more, the master is left in peace again.

asleep();
my $statement = q(SELECT query_start FROM pg_stat_activity WHERE application_name = 'pyreplica postgres');
my $last;
ok( poll_until(
		sub {
			$last = $master->safe_psql('postgres', $statement);
			return stays_true(
				sub { $master->safe_psql('postgres', $statement) eq $last },
				2);
		},
		$SOON),
	'at rest, a slave that has seen prepared transactions asks nothing');

# Nobody asks, nobody notifies: the keep-alive finds it.

set_conf($slave, 'pyreplica.keepalive = 2s');
$master->safe_psql('postgres', q(INSERT INTO other VALUES (14, 'awake')));
asleep();
$master->safe_psql('postgres',
	q(BEGIN; UPDATE t SET a = 'kept alive' WHERE id = 14; PREPARE TRANSACTION 'keepalive')
);
$master->safe_psql('postgres', q(COMMIT PREPARED 'keepalive'));
becomes(14, 'kept alive', 2 + $SOON,
	'COMMIT PREPARED from another session is found by the keep-alive');

wait_caught_up($slave);
is_same($master, $slave, $_, "$_ at the end") for ('t', 'other');
is(status_value($slave, 'conflicts'), '0', 'there was no conflict');
is(prepared_count(), '0', 'nothing is left prepared');

done_testing();
