# Transactions commit in another order than they began in, overlap, wait for
# one another, are rolled back in parts or as a whole.  The slave misses none
# of them, and whoever looks at it sees only states that the master has had.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my ($master, $slave) = new_pair(
	master_conf => "deadlock_timeout = 50ms\n",
	slave_conf  => "pyreplica.window_memory = 64kB\n");

# --- A few sessions, step by step ---

on_both($master, $slave,
	'CREATE TABLE t (id serial PRIMARY KEY, a text, n int DEFAULT 0)');
log_table($master, 't');
$master->safe_psql('postgres',
	q(INSERT INTO t (a) SELECT 'row ' || i FROM generate_series(1, 20) i));

my $others = 0;

# Other transactions commit, and the slave has them.
sub others_commit
{
	my ($count) = @_;
	$master->safe_psql(
		'postgres',
		join("\n",
			map { "INSERT INTO t (a) VALUES ('other " . ++$others . "');" }
			  (1 .. $count)));
	wait_caught_up($slave);
	return;
}

# How many rows on the slave say this.
sub told
{
	my ($a) = @_;
	return $slave->safe_psql('postgres',
		"SELECT count(*) FROM t WHERE a = '$a'");
}

my %level = (
	early        => 'READ COMMITTED',
	earlier      => 'READ COMMITTED',
	repeatable   => 'REPEATABLE READ',
	serializable => 'SERIALIZABLE',
	long         => 'READ COMMITTED');
my %session;

# One after the other begins and writes; each time others come and go.
foreach my $name ('early', 'earlier', 'repeatable', 'serializable', 'long')
{
	$session{$name} = $master->background_psql('postgres');
	$session{$name}->query_safe(
		"BEGIN ISOLATION LEVEL $level{$name}; SELECT pg_current_xact_id(); INSERT INTO t (a) VALUES ('$name')"
	);
	others_commit(30);
}
is_same($master, $slave, 't', 'what committed meanwhile is there');
is(told($_), '0', "what $_ wrote is not") for sort keys %session;

# They commit in another order; the long one stays, and writes now and then.
my $part = 0;
foreach my $name ('serializable', 'earlier', 'repeatable', 'early')
{
	$session{long}->query_safe(
		"UPDATE t SET n = n + 1 WHERE id <= 5; SAVEPOINT p; INSERT INTO t (a) VALUES ('long " . ++$part . "')");
	others_commit(20);
	$session{$name}->query_safe(
		"UPDATE t SET a = a || ' $name' WHERE id IN (10, 11); COMMIT")
	  if $level{$name} eq 'READ COMMITTED';
	$session{$name}->query_safe('COMMIT')
	  if $level{$name} ne 'READ COMMITTED';
	wait_caught_up($slave);
	is(told($name), '1', "$name began early, commits late, and is not skipped");
	others_commit(20);
	is(told($name), '1', "nor repeated");
	is_same($master, $slave, 't', "the same after $name");
}
is(told('long'), '0', 'the long transaction is still open');
$session{long}->query_safe('COMMIT');
wait_caught_up($slave);
is(told('long'), '1', 'the long transaction commits after many windows');
is_same($master, $slave, 't', 'the same after it');

# One that has only its number from long ago, and one whose snapshot is old.
$session{early}->query_safe('BEGIN; SELECT pg_current_xact_id()');
$session{repeatable}->query_safe(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t');
others_commit(200);
$session{early}->query_safe(
	q(INSERT INTO t (a) SELECT 'late ' || repeat('x', 1000) FROM generate_series(1, 400); COMMIT)
);
$session{repeatable}->query_safe(
	q(INSERT INTO t (a) SELECT 'seen ' || count(*) || repeat('x', 1000) FROM t, generate_series(1, 400) i GROUP BY i; COMMIT)
);
wait_caught_up($slave);
is_same($master, $slave, 't', 'an early number or an old snapshot, written late');

# A large one writes after others have come and gone, so that where a backlog can
# be cut (a mark) does not depend on who left the mark: to everybody, the large
# one was still under way.
$session{early}->query_safe('BEGIN; SELECT pg_current_xact_id()');
others_commit(10);
$session{early}->query_safe(
	q(INSERT INTO t (a) SELECT 'large ' || repeat('x', 1000) FROM generate_series(1, 400); COMMIT)
);
wait_caught_up($slave);
is( $master->safe_psql('postgres',
		'SELECT count(*) FROM replica_log WHERE snapshot IS NOT NULL AND pg_visible_in_snapshot(xid, snapshot)'),
	'0', 'no mark sees the transaction that left it');
cmp_ok($master->safe_psql('postgres', 'SELECT count(*) FROM replica_log WHERE snapshot IS NOT NULL'),
	'>', 2, 'of several');
is_same($master, $slave, 't', 'a large one among others');

# Transactions that wait for one another's rows.
my @waiting = ('early', 'earlier', 'long');
$master->safe_psql('postgres', q(UPDATE t SET a = '' WHERE id = 1));
$session{serializable}->query_safe(
	q(BEGIN; UPDATE t SET a = a || 'first' WHERE id = 1));
foreach my $name (@waiting)
{
	$session{$name}->query_safe(
		"BEGIN; INSERT INTO t (a) VALUES ('waits as $name')");
	$session{$name}->query_until(qr/asked/,
		"\\echo asked\nUPDATE t SET a = a || ', $name' WHERE id = 1;\n");
	poll_until(
		sub {
			$master->safe_psql('postgres',
				"SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ ', $name'"
			) eq '1';
		}) or die "$name does not wait";
}
others_commit(10);
$session{serializable}->query_safe('COMMIT');
my $order = 'first';
while (@waiting)
{
	# whose turn it is
	my $turn;
	poll_until(
		sub {
			($turn) = $master->safe_psql('postgres',
				q(SELECT query FROM pg_stat_activity WHERE state = 'idle in transaction' AND query ~ 'id = 1;')
			) =~ /, (\w+)'/;
			return defined $turn;
		}) or die 'nobody goes on';
	$order .= ", $turn";
	@waiting = grep { $_ ne $turn } @waiting;
	$session{$turn}
	  ->query_safe('UPDATE t SET n = length(a) WHERE id = 1; COMMIT');
	wait_caught_up($slave);
	is( $slave->safe_psql('postgres', 'SELECT a FROM t WHERE id = 1'),
		$order, 'who has waited for a row changes it in turn');
	is_same($master, $slave, 't', 'the same after that');
}
$_->quit for values %session;

# --- Many sessions at once ---

# Money goes from account to account, into purses and out of them, but does
# not become more or less.
on_both($master, $slave, <<'SQL');
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE purse (id bigserial PRIMARY KEY, pair bigint NOT NULL, amount bigint NOT NULL);
CREATE TABLE transfer (id bigserial PRIMARY KEY, a int, b int, x bigint, said text);
CREATE SEQUENCE pair;
SQL
log_table($master, 'account', 'purse', 'transfer');
$master->safe_psql('postgres', <<'SQL');
CREATE INDEX ON purse (pair);
INSERT INTO account SELECT i, 1000 FROM generate_series(1, 50) i;
SQL
wait_caught_up($slave);

my %script = (
	transfer => <<'SQL',
\set a random(1, 50)
\set b random(1, 50)
\set x random(1, 100)
\set ms random(0, 8)
BEGIN;
UPDATE account SET balance = balance - :x WHERE id = least(:a, :b);
\sleep :ms ms
SAVEPOINT s;
UPDATE account SET balance = balance + 7 WHERE id = least(:a, :b);
INSERT INTO transfer (a, b, x, said) VALUES (:a, :b, :x, 'taken back');
ROLLBACK TO s;
UPDATE account SET balance = balance + :x WHERE id = greatest(:a, :b);
INSERT INTO transfer (a, b, x, said) VALUES (:a, :b, :x, 'transfer');
COMMIT;
SQL
	purse => <<'SQL',
\set x random(1, 100)
\set ms random(0, 5)
BEGIN;
SELECT nextval('pair') AS pair \gset
INSERT INTO purse (pair, amount) VALUES (:pair, :x);
\sleep :ms ms
INSERT INTO purse (pair, amount) VALUES (:pair, -:x);
DELETE FROM purse WHERE pair = :pair - 20;
INSERT INTO transfer (x, said) VALUES (:pair, 'purse');
COMMIT;
SQL
	regret => <<'SQL',
\set a random(1, 50)
BEGIN;
UPDATE account SET balance = balance + 1000 WHERE id = :a;
INSERT INTO transfer (a, said) VALUES (:a, 'regretted');
\sleep 2 ms
ROLLBACK;
SQL
	repeatable => <<'SQL',
\set a random(1, 50)
\set b random(1, 50)
\set ms random(0, 8)
BEGIN ISOLATION LEVEL REPEATABLE READ;
UPDATE account SET balance = balance - 1 WHERE id = :a;
\sleep :ms ms
UPDATE account SET balance = balance + 1 WHERE id = :b;
INSERT INTO transfer (a, b, x, said) SELECT :a, :b, sum(balance), 'repeatable' FROM account;
COMMIT;
SQL
	serializable => <<'SQL',
\set a random(1, 50)
\set b random(1, 50)
BEGIN ISOLATION LEVEL SERIALIZABLE;
UPDATE account SET balance = balance - (SELECT count(*) FROM purse) WHERE id = :a;
\sleep 3 ms
UPDATE account SET balance = balance + (SELECT count(*) FROM purse) WHERE id = :b;
INSERT INTO transfer (a, b, said) VALUES (:a, :b, 'serializable');
COMMIT;
SQL
);
my $scripts = PostgreSQL::Test::Utils::tempdir();
append_to_file("$scripts/$_.sql", $script{$_}) for sort keys %script;

# Several loads of pgbench at once; they end by themselves.
sub start_load
{
	my ($seconds) = @_;
	my @load;
	foreach my $mix ([ 4, 'transfer@4', 'purse@3', 'regret@1' ],
		[ 1, 'repeatable@1' ], [ 1, 'serializable@1' ])
	{
		my ($clients, @files) = @$mix;
		my $output = '';
		my $run = IPC::Run::start(
			[
				'pgbench', '-n', '-c', $clients, '-T', $seconds,
				'--max-tries=100', '-h', $master->host, '-p', $master->port,
				(map { ('-f', "$scripts/" . s/@/.sql@/r) } @files),
				'postgres'
			],
			'>&' => \$output);
		push @load, { run => $run, output => \$output };
	}
	return @load;
}

sub finish_load
{
	my ($name, @load) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $transactions = 0;
	my @complaints;
	foreach my $load (@load)
	{
		$load->{run}->finish;
		$transactions += $1
		  if ${ $load->{output} } =~
		  /number of transactions actually processed: (\d+)/;
		push @complaints, ${ $load->{output} }
		  if $load->{run}->result(0) != 0
		  || ${ $load->{output} } =~ /aborted/;
	}
	is(join("\n", @complaints), '', $name);
	note("$transactions transactions");
	return $transactions;
}

# What a reader of the slave sees all the time, each line in one look.
my $look = q(SELECT 'look', (SELECT sum(balance) FROM account), (SELECT coalesce(sum(amount), 0) FROM purse), (SELECT count(*) FROM (SELECT FROM purse GROUP BY pair HAVING count(*) <> 2) torn), (SELECT count(*) FROM transfer), (SELECT position FROM pyreplica_position));

# Whether everything seen was right; in how many different positions.  A crash
# of the slave may take it a step back, as its commits do not wait for the disk.
sub is_never_torn
{
	my ($output, $name, $crashes) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @looks = $output =~ /^(look\|.*)$/mg;
	my @wrong = grep { !/^look\|50000\|0\|0\|\d+\|[\d:,]+$/ } @looks;
	my (%positions, @steps_back);
	my $last = 0;
	foreach my $seen (@looks)
	{
		my (undef, undef, undef, undef, $transfers, $position) =
		  split(/\|/, $seen);
		$positions{ $position // '' }++;
		push @steps_back, $seen if ($transfers // 0) < $last;
		$last = $transfers // 0;
	}
	cmp_ok(scalar(@looks), '>', 20, "$name: somebody looked");
	is(join("\n", @wrong[ 0 .. ($#wrong < 4 ? $#wrong : 4) ]),
		'', "$name: no torn transaction was ever visible");
	cmp_ok(scalar(@steps_back), '<=', $crashes // 0,
		"$name: nor a step back without a crash")
	  or diag(join("\n", @steps_back));
	note(scalar(@looks) . ' looks, ' . scalar(keys %positions) . ' positions');
	return scalar(keys %positions);
}

sub all_same
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_same_rows($master, $slave, $_, "$_ is the same $when")
	  for ('account', 'purse', 'transfer');
	return;
}

# The slave follows while they are at it.

my $reader = start_watching($slave, $look);
my @load   = start_load(10);
finish_load('six sessions have worked', @load);
wait_caught_up($slave);
my $positions = is_never_torn(stop_looping($reader), 'under load');
cmp_ok($positions, '>', 10, 'under load: the slave followed in many steps');
all_same('after the load');
is( $slave->safe_psql(
		'postgres',
		q(SELECT count(*) FROM transfer WHERE said IN ('taken back', 'regretted'))
	),
	'0',
	'nothing that was rolled back has come');

# --- A backlog ---

# The slave is off during the load, and rather slow afterwards.
sub gather_backlog
{
	my ($name, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	set_conf($slave, 'pyreplica.enabled = off');
	poll_until(
		sub {
			$slave->safe_psql('postgres',
				q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pyreplica worker')
			) eq '0';
		});
	my $before = arrived();
	my $transactions = finish_load("$name: a load without the slave",
		start_load($seconds));
	is(arrived(), $before, "$name: a slave that is off stays where it is");
	return $transactions;
}

# How much the slave has.
sub arrived
{
	my ($rc, $count) =
	  $slave->psql('postgres', 'SELECT count(*) FROM transfer');
	return defined $rc && $rc == 0 ? $count : 0;
}

# How much there is to come.
sub expected
{
	return $master->safe_psql('postgres', 'SELECT count(*) FROM transfer');
}

# Until it has some more than it had.
sub wait_for_more
{
	my $before = arrived();
	poll_until(sub { arrived() > $before })
	  or BAIL_OUT("the slave does not go on:\n" . status($slave));
	return;
}

$slave->safe_psql('postgres', <<'SQL');
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(0.001); RETURN NULL; END $$;
CREATE TRIGGER slow AFTER INSERT ON transfer FOR EACH ROW EXECUTE FUNCTION slow();
ALTER TABLE transfer ENABLE ALWAYS TRIGGER slow;
SQL

gather_backlog('backlog', 5);
$reader = start_watching($slave, $look);
set_conf($slave, 'pyreplica.enabled = on');
wait_caught_up($slave);
$positions = is_never_torn(stop_looping($reader), 'backlog');
cmp_ok($positions, '>', 3, 'backlog: drained in several steps');
all_same('after a backlog');

# And again, with the slave restarted on the way, while the load goes on.

gather_backlog('restarts', 6);
$reader = start_watching($slave, $look);
@load   = start_load(3);
set_conf($slave, 'pyreplica.enabled = on');
foreach my $mode ('fast', 'immediate', 'fast', 'immediate')
{
	wait_for_more();
	cmp_ok(arrived(), '<', expected(),
		"restarts: the slave is stopped ($mode) in the middle");
	$slave->stop($mode);
	$slave->start;
}
finish_load('restarts: the load went on', @load);
wait_caught_up($slave);
$positions = is_never_torn(stop_looping($reader), 'restarts', 2);
cmp_ok($positions, '>', 3, 'restarts: drained in several steps');
all_same('after restarts');
is(status_value($slave, 'conflicts'), '0', 'no conflict');
unlike(slurp_file($slave->logfile), qr/pyreplica \S+ conflict/,
	'there never was one');

done_testing();
