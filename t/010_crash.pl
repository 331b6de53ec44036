# Nothing is lost and nothing comes twice, whoever dies and whenever: the
# slave's worker, the slave, the master, or the connection between them, while
# the master is busy.  And at no time does the slave show half a transaction.
#
# PYREPLICA_TEST_SEED repeats a run's choices, PYREPLICA_TEST_ROUNDS makes it
# longer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;
use Time::HiRes qw(usleep);

my $seed   = $ENV{PYREPLICA_TEST_SEED}   // int(rand(1_000_000));
my $rounds = $ENV{PYREPLICA_TEST_ROUNDS} // 16;
srand($seed);
note("PYREPLICA_TEST_SEED=$seed");

# A master on which much is visible that its disk does not know of yet: a
# crash takes back what was committed with synchronous_commit = off, and the
# numbers of transactions that were rolled back are given out again.
my ($master, $slave) = new_pair(
	master_conf => <<'CONF',
restart_after_crash = on
log_statement = none
wal_writer_delay = 10s
wal_writer_flush_after = 1GB
checkpoint_timeout = 30s
pyreplica.log_rotate_size = 128kB
CONF
	slave_conf => <<'CONF');
restart_after_crash = on
log_statement = none
pyreplica.window_memory = 64kB
CONF

my $begin = log_position($slave);

on_both($master, $slave, <<'SQL');
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE transfer (id bigserial PRIMARY KEY, debit int, credit int, amount int);
CREATE TABLE event (id bigserial PRIMARY KEY, what text);
SQL
log_table($master, 'account', 'transfer', 'event');

# How many kinds of wrong there are in what the slave shows right now.
my $money = 100 * 1000;
my $check = <<"SQL";
SELECT (SELECT count(*) FROM account) || ' accounts, '
    || (SELECT sum(balance) - $money FROM account) || ' too much, '
    || (SELECT count(*) FROM account a
          LEFT JOIN (SELECT id, sum(amount) AS amount
                       FROM (SELECT debit, -amount FROM transfer
                             UNION ALL
                             SELECT credit, amount FROM transfer) AS t (id, amount)
                      GROUP BY id) t USING (id)
         WHERE a.balance <> 1000 + coalesce(t.amount, 0)) || ' unexplained'
SQL
my $right = '100 accounts, 0 too much, 0 unexplained';

# First by itself: numbers of transactions that a crash gives out again must
# not be ones that the slave believes to have seen.  The slave looks while many
# transactions have been rolled back, the master forgets that there were any.
$master->safe_psql('postgres',
	'INSERT INTO account SELECT i, 1000 FROM generate_series(1, 100) i');
wait_caught_up($slave);
for my $round (1 .. 2)
{
	my $rolled_back = join('',
		map { "BEGIN; UPDATE account SET balance = 0; ROLLBACK;\n" }
		  (1 .. 50));
	$master->safe_psql('postgres', $rolled_back);
	$master->safe_psql('postgres',
		"SET synchronous_commit = off; INSERT INTO event (what) VALUES ('unsafe $round')"
	);
	wait_caught_up($slave);
	$master->stop('immediate');
	$master->start;
	$master->safe_psql('postgres',
		"INSERT INTO event (what) VALUES ('after crash $round, $_')")
	  for (1 .. 20);
	wait_caught_up($slave);
	is_same_rows($master, $slave, 'event',
		"a crash of the master takes nothing back that was seen, and hides nothing new ($round)"
	);
}

# The load.  Accounts are changed in the order of their numbers, so that there
# are no deadlocks.
my $dir    = PostgreSQL::Test::Utils::tempdir();
my %script = (
	transfer => <<'SQL',
\set a random(1, 99)
\set b random(:a + 1, 100)
\set amount random(-50, 50)
BEGIN;
UPDATE account SET balance = balance - :amount WHERE id = :a;
UPDATE account SET balance = balance + :amount WHERE id = :b;
INSERT INTO transfer (debit, credit, amount) VALUES (:a, :b, :amount);
COMMIT;
SQL
	unsafe_transfer => <<'SQL',
\set a random(1, 99)
\set b random(:a + 1, 100)
\set amount random(-50, 50)
BEGIN;
SET LOCAL synchronous_commit = off;
UPDATE account SET balance = balance - :amount WHERE id = :a;
INSERT INTO transfer (debit, credit, amount) VALUES (:a, :b, :amount);
UPDATE account SET balance = balance + :amount WHERE id = :b;
COMMIT;
SQL
	change_of_mind => <<'SQL',
\set a random(1, 99)
\set b random(:a + 1, 100)
BEGIN;
UPDATE account SET balance = balance - 1000000 WHERE id = :a;
INSERT INTO event (what) VALUES ('never happened');
ROLLBACK;
SQL
	half_a_change_of_mind => <<'SQL',
\set a random(1, 99)
\set b random(:a + 1, 100)
BEGIN;
UPDATE account SET balance = balance - 7 WHERE id = :a;
SAVEPOINT s;
UPDATE account SET balance = balance - 1000 WHERE id = :a;
INSERT INTO event (what) VALUES ('never happened either');
ROLLBACK TO s;
UPDATE account SET balance = balance + 7 WHERE id = :b;
INSERT INTO transfer (debit, credit, amount) VALUES (:a, :b, 7);
COMMIT;
SQL
	events => <<'SQL',
BEGIN;
INSERT INTO event (what) SELECT md5(random()::text) FROM generate_series(1, 5);
COMMIT;
SQL
	clean => <<'SQL',
\set n random(1, 9)
DELETE FROM event WHERE id IN (SELECT id FROM event ORDER BY id LIMIT :n FOR UPDATE SKIP LOCKED);
SQL
	renumber => <<'SQL',
UPDATE event SET id = -id, what = 'renumbered'
 WHERE id = (SELECT id FROM event WHERE id > 0 ORDER BY id DESC LIMIT 1 FOR UPDATE SKIP LOCKED);
SQL
);
my %weight = (
	transfer              => 4,
	unsafe_transfer       => 6,
	change_of_mind        => 6,
	half_a_change_of_mind => 2,
	events                => 2,
	clean                 => 2,
	renumber              => 1);
my @scripts;
for my $name (sort keys %script)
{
	append_to_file("$dir/$name.sql", $script{$name});
	push @scripts, '-f', "$dir/$name.sql\@$weight{$name}";
}

my $reader = start_watching($slave, $check);
my $load   = start_looping(
	$master, 'pgbench',       '-n',  '-T',
	'600',   '-c',            '4',   '-R',
	'600',   '--random-seed', $seed, @scripts);

# What may happen to it.
my %accident = (
	'the worker is killed' => sub {
		my $pid = status_value($slave, 'pid');
		return unless $pid;
		kill('KILL', $pid);
		# the server goes down with it, and comes back by itself
		poll_until(sub { !kill(0, $pid) });
		$slave->poll_query_until('postgres', 'SELECT true');
	},
	'the worker is terminated' => sub {
		$slave->safe_psql('postgres',
			'SELECT pg_terminate_backend(pid) FROM pyreplica_status WHERE pid IS NOT NULL'
		);
	},
	'the slave crashes' => sub {
		$slave->stop('immediate');
		$slave->start;
	},
	'the slave is restarted' => sub { $slave->restart; },
	'the master crashes'     => sub {
		$master->stop('immediate');
		$master->start;
	},
	'the master crashes and is away for a while' => sub {
		$master->stop('immediate');
		usleep(rand(1_000_000));
		$master->start;
	},
	'the connection is cut' => sub {
		$master->safe_psql('postgres',
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pyreplica postgres'"
		);
	},);

# Everything happens at least once, in any order.
my @accidents = sort keys %accident;
while (@accidents < $rounds)
{
	push @accidents, $accidents[ rand(7) ];
}
while (@accidents)
{
	my ($accident) = splice(@accidents, rand(@accidents), 1);
	usleep(300_000 + rand(1_200_000));
	note($accident);
	$accident{$accident}->();
}

stop_looping($load);
wait_caught_up($slave);
my @answers = grep { /\S/ } split(/\n/, stop_looping($reader));

is($master->safe_psql('postgres', $check),
	$right, 'the master itself is in order');
is($slave->safe_psql('postgres', $check), $right, 'and so is the slave');
is_same_rows($master, $slave, $_) for ('account', 'transfer', 'event');

# Whole transactions only, at any time.
my @wrong = grep { $_ ne $right } @answers;
is(scalar(@wrong), 0, 'never did the slave show half a transaction')
  or diag(join("\n", grep { defined } @wrong[ 0 .. 9 ]));

# Nothing was forced into place: the slave never missed a row, nor had it one
# already.
unlike(
	log_since($slave, $begin),
	qr/conflict (update|delete)_missing|duplicate key|insert_exists/,
	'each change found the row it was made for');

# The test itself: much happened, and was watched.
cmp_ok($master->safe_psql('postgres', 'SELECT count(*) FROM transfer'),
	'>', 500, 'there was a load');
is( $master->safe_psql(
		'postgres', 'SELECT cleaned_at IS NOT NULL FROM replica_log_state'),
	't',
	'the log was cleaned meanwhile');
cmp_ok(scalar(@answers), '>', 100, 'the slave was looked at all the time');

done_testing();
