# A slave with nothing to do lets its master in peace, is woken by the next
# commit all the same, and is not called while it is awake.  Whoever wants to
# read what was just written can wait for it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;
use Time::HiRes qw(usleep);

# Whatever comes sooner than this was not found by the keep-alive look.
my ($master, $slave) = new_pair(
	master_conf => <<'CONF',
log_line_prefix = '%m [%p] <%a> '
log_statement = all
wal_level = replica
max_wal_senders = 2
CONF
	slave_conf => <<'CONF');
pyreplica.keepalive = 1h
log_statement = none
CONF

# The slave's table tells when each row came.
my $columns = 'id serial PRIMARY KEY, a text, sent timestamptz';
$master->safe_psql('postgres',
	"CREATE TABLE t ($columns DEFAULT clock_timestamp())");
$slave->safe_psql('postgres',
	"CREATE TABLE t ($columns, arrived timestamptz DEFAULT clock_timestamp())"
);
log_table($master, 't');

# How many ms it took for a row to come; -1 if it does not.
$slave->safe_psql('postgres', <<'SQL');
CREATE FUNCTION delay(name text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	delay	interval;
BEGIN
	FOR i IN 1 .. 2000 LOOP
		SELECT arrived - sent INTO delay FROM t WHERE a = name;
		IF FOUND THEN
			RETURN extract(epoch FROM delay) * 1000;
		END IF;
		PERFORM pg_sleep(0.005);
	END LOOP;
	RETURN -1;
END $$;
SQL

my $writer = $master->background_psql('postgres');
my $reader = $slave->background_psql('postgres');

sub delay
{
	my ($name) = @_;
	return $reader->query_safe("SELECT delay('$name')");
}

sub is_soon
{
	my ($name, $delays) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @sorted = sort { $a <=> $b } @$delays;
	note('delays in ms: ' . join(' ', @sorted));
	ok(!(grep { $_ < 0 || $_ >= 500 } @sorted), $name)
	  or diag('delays in ms: ' . join(' ', @sorted));
	return;
}

# At rest.

$writer->query_safe(q(INSERT INTO t (a) VALUES ('before')));
is_soon('a first row comes', [ delay('before') ]);
ok( poll_until(
		sub {
			$master->safe_psql('postgres',
				'SELECT confirmed_at > attached_at FROM replica_slave') eq
			  't';
		}),
	'and is confirmed');
wait_status($slave, q(state = 'waiting'));

my $session = <<'SQL';
SELECT query_start, state, coalesce(backend_xmin::text, 'no xmin'), coalesce(backend_xid::text, 'no xid')
  FROM pg_stat_activity WHERE application_name = 'pyreplica postgres'
SQL
my $at_rest = $master->safe_psql('postgres', $session);
like(
	$at_rest,
	qr/\|idle\|no xmin\|no xid$/,
	'at rest, its session on the master is in no transaction');
my $here = log_position($master);
ok( stays_true(
		sub { $master->safe_psql('postgres', $session) eq $at_rest }, 3),
	'and does nothing at all');
unlike(
	log_since($master, $here),
	qr/<pyreplica postgres>/,
	'no statement comes from it');

# Woken by single commits.

my @delays;
for my $i (1 .. 50)
{
	wait_status($slave, q(state = 'waiting'));
	$writer->query_safe("INSERT INTO t (a) VALUES ('single $i')");
	push @delays, delay("single $i");
}
is_soon('each of 50 commits wakes it at once', \@delays);

# A commit that comes while it is just falling asleep, at all stages of that.

@delays = ();
for my $i (1 .. 120)
{
	# these keep it awake
	$writer->query_safe("INSERT INTO t (a) VALUES ('awake $i.$_')")
	  for (1 .. 3);
	usleep(rand(100_000));
	$writer->query_safe("INSERT INTO t (a) VALUES ('falling asleep $i')");
	push @delays, delay("falling asleep $i");
}
is_soon('none of 120 commits is missed while it falls asleep', \@delays);

# Under load nobody has to call it.

my $listener = $master->background_psql('postgres');
$listener->query_safe('LISTEN replicas');
wait_status($slave, q(state = 'waiting'));
$writer->query_safe(q(INSERT INTO t (a) VALUES ('heard')));
delay('heard');

sub heard
{
	my @notifications =
	  $listener->query_safe('SELECT 1') =~ /(Asynchronous notification)/g;
	return scalar @notifications;
}
is(heard(), 1, 'a slave that sleeps is called by NOTIFY');

set_conf($master, 'log_statement = none');
my $before = $master->safe_psql('postgres', 'SELECT count(*) FROM t');
$master->pgbench(
	'-n -T 3 -c 3 -j 2',
	0, [qr/number of failed transactions: 0/],
	[],
	'a busy master',
	{ '013_insert' => "INSERT INTO t (a) VALUES ('busy');" });
my $transactions =
  $master->safe_psql('postgres', 'SELECT count(*) FROM t') - $before;
my $called = heard();
note("$transactions transactions, $called notifications");
cmp_ok($transactions, '>', 300,                'has much to tell');
cmp_ok($called,       '<', $transactions / 20, 'but hardly ever calls');
wait_caught_up($slave);
is_same_rows(
	$master, $slave,
	'(SELECT id, a, sent FROM t)',
	'nothing is missing');
$listener->quit;

# A transaction that is committing, but not visible yet, knows that we are
# awake and will not call us.  It waits for a synchronous standby that does not
# exist.

my $hangs = <<'SQL';
SELECT mode FROM pg_locks JOIN pg_stat_activity a USING (pid)
 WHERE locktype = 'advisory' AND classid = 1887007333 AND a.wait_event = 'SyncRep'
SQL
set_conf($master, q(synchronous_standby_names = 'nobody'));
poll_until(
	sub {
		$master->safe_psql('postgres', 'SHOW synchronous_standby_names') eq
		  'nobody';
	});
my $script = PostgreSQL::Test::Utils::tempdir() . '/awake.sql';
append_to_file($script,
	"SET synchronous_commit = local;\nINSERT INTO t (a) VALUES ('awake');\n");
my $awake = start_looping($master, 'pgbench', '-n', '-T', '60', '-R', '200',
	'-f', $script);
my ($late, $late_name);
for my $try (1 .. 20)
{
	$late_name = "late $try";
	$late      = $master->background_psql('postgres');
	$late->query_until(qr/begun/,
		"\\echo begun\nINSERT INTO t (a) VALUES ('$late_name');\n");
	poll_until(
		sub {
			$master->safe_psql('postgres',
				q(SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep')
			) eq '1';
		});
	last if $master->safe_psql('postgres', $hangs) ne '';

	# the slave happened to sleep just then: once more
	$master->safe_psql('postgres',
		q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep')
	);
	$late->quit;
}
stop_looping($awake);
is($master->safe_psql('postgres', $hangs),
	'RowExclusiveLock', 'a transaction hangs in its commit');
@delays = ();
for my $i (1 .. 10)
{
	$writer->query_safe(
		"SET synchronous_commit = local; INSERT INTO t (a) VALUES ('early $i')"
	);
	push @delays, delay("early $i");
	usleep(50_000);
}
is_soon('others come at once, though they do not call', \@delays);
is( $slave->safe_psql(
		'postgres', "SELECT count(*) FROM t WHERE a = '$late_name'"),
	'0',
	'it does not come, for on the master nobody can see it');
ok(stays_true(sub { status_value($slave, 'state') ne 'waiting' }, 0.5),
	'meanwhile the slave does not dare to sleep');

set_conf($master, q(synchronous_standby_names = ''));
cmp_ok(seconds_of(sub { delay($late_name) }),
	'<', 2, 'when it is visible, it comes at once');
$late->quit;
ok(wait_status($slave, q(state = 'waiting')), 'and the slave goes to sleep');

# A prepared transaction cannot call.  Its session does when it commits it; what
# another session commits is found by the next look.

$writer->query_safe(
	q(BEGIN; INSERT INTO t (a) VALUES ('prepared'); PREPARE TRANSACTION 'p'));
wait_status($slave, q(state = 'waiting'));
is( $slave->safe_psql(
		'postgres', q(SELECT count(*) FROM t WHERE a = 'prepared')),
	'0',
	'a prepared transaction does not come');
$writer->query_safe(q(COMMIT PREPARED 'p'));
cmp_ok(seconds_of(sub { delay('prepared') }),
	'<', 1, 'when its session commits it, it comes at once');

set_conf($slave, 'pyreplica.keepalive = 2s');
$writer->query_safe(
	q(BEGIN; INSERT INTO t (a) VALUES ('prepared for all'); PREPARE TRANSACTION 'q')
);
my $stranger = $master->background_psql('postgres');
wait_status($slave, q(state = 'waiting'));
$stranger->query_safe(q(COMMIT PREPARED 'q'));
$stranger->quit;
cmp_ok(seconds_of(sub { delay('prepared for all') }),
	'<', 5, 'when another does, the keep-alive look finds it');
set_conf($slave, 'pyreplica.keepalive = 1h');

# Waiting for what was just written.

my $wrong = 0;
my $slow  = 0;
for my $i (1 .. 300)
{
	$writer->query_safe("INSERT INTO t (a) VALUES ('mine $i')");
	usleep(rand(4_000));
	my $answer;
	my $took = seconds_of(
		sub {
			$answer =
			  $reader->query_safe(q(SELECT pyreplica_wait(timeout => '5s')));
		});
	$slow++ if $took > 1;
	$wrong++
	  if $answer ne 't'
	  || $reader->query_safe("SELECT count(*) FROM t WHERE a = 'mine $i'") ne
	  '1';
}
is($wrong, 0, 'after pyreplica_wait() we read what we wrote, 300 times');
is($slow,  0, 'and never waited long');

is( $slave->safe_psql('postgres', q(SELECT pyreplica_wait('postgres', '5s'))),
	't',
	'the replica can be named');
is($slave->safe_psql('postgres', 'SELECT pyreplica_wait()'),
	't', 'and the timeout left out');

my $blocker = $slave->background_psql('postgres');
$blocker->query_safe('BEGIN; LOCK TABLE t IN EXCLUSIVE MODE');
$writer->query_safe(q(INSERT INTO t (a) VALUES ('blocked')));
my $answer;
my $took = seconds_of(
	sub {
		$answer = $slave->safe_psql('postgres',
			q(SELECT pyreplica_wait(timeout => '700ms')));
	});
is($answer, 'f', 'if the slave cannot catch up, pyreplica_wait() says so');
ok($took > 0.6 && $took < 3, 'when the time is over');
$blocker->query_safe('COMMIT');
$blocker->quit;
wait_caught_up($slave);
is_same_rows($master, $slave, '(SELECT id, a, sent FROM t)', 'then it can');

like(
	($slave->psql('postgres', q(SELECT pyreplica_wait('nobody'))))[2],
	qr/replica "nobody" does not exist/,
	'an unknown replica is an error');
like(
	($master->psql('postgres', 'SELECT pyreplica_wait()'))[2],
	qr/pyreplica is not loaded on this server/,
	'as is a server that is no slave');

$writer->quit;
$reader->quit;

done_testing();
