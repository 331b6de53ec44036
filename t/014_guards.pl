# A slave that cannot go on says why, names the way out, leaves its rows alone,
# and goes on by itself once the reason is gone.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

# The error that the slave has stopped with.
sub is_refused
{
	my ($slave, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $refused = poll_until(
		sub {
			my $state =
			  status_value($slave,
				q(state || ': ' || coalesce(last_error, '')));
			return defined $state && $state =~ /^error: .*$pattern/;
		},
		15);
	return ok($refused, $name)
	  || diag(status_value($slave, 'row_to_json(pyreplica_status)'));
}

# That it has not changed its mind after some more tries.
sub is_refused_again
{
	my ($slave, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $errors = status_value($slave, 'errors');
	wait_status($slave, "errors >= $errors + 3", 15);
	return is_refused($slave, $pattern, $name);
}

# Rows first to last, one transaction each.
sub insert
{
	my ($master, $first, $last) = @_;
	$master->safe_psql(
		'postgres',
		join("\n",
			map { "INSERT INTO t VALUES ($_, 'row $_');" } $first .. $last));
	return;
}

my ($master, $slave) = new_pair(
	master_conf => "log_statement = none\n",
	slave_conf  => "log_statement = none\n");
my $here;

on_both($master, $slave, 'CREATE TABLE t (id int PRIMARY KEY, a text)');
log_table($master, 't');
insert($master, 1, 3);
wait_caught_up($slave);

# Two slaves of one name.

my $twin = new_slave($master, 'twin');
$twin->poll_query_until('postgres',
	q(SELECT count(*) = 1 FROM pg_extension WHERE extname = 'pyreplica'));
$twin->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, a text)');
is_refused(
	$twin,
	qr/slave "postgres" is connected already/,
	'a second slave of the same name is refused');
insert($master, 4, 4);
wait_caught_up($slave);
is_same($master, $slave, 't', 'while the first goes on');
is(status_value($slave, 'errors'), '0', 'undisturbed');
is(content($twin, 't'),            '',  'the second has got nothing');

$here = log_position($twin);
$slave->stop;
is_refused(
	$twin,
	qr/slave "postgres" (?!is connected)/,
	'nor does it take the place of the first, whose rows it does not have');
insert($master, 5, 5);
is(content($twin, 't'), '', 'and continue in the middle of nowhere');
$twin->stop;
$slave->start;
wait_worker($slave);
wait_caught_up($slave);
is_same($master, $slave, 't', 'the first comes back as if nothing had been');

# A slave that was dropped while it was connected.

$master->safe_psql('postgres', q(SELECT py_log_drop_slave('postgres')));
insert($master, 6, 6);
is_refused(
	$slave,
	qr/slave "postgres" is not known to the master any more/,
	'a slave that is dropped is told so');
$here = log_position($slave);
is_refused_again(
	$slave,
	qr/slave "postgres" is not known to the master any more/,
	'and stays out');
like(
	log_since($slave, $here),
	qr/HINT:.*SELECT py_log_add_slave\('postgres'\) on the master lets it continue/,
	'with a hint how to take it back');
insert($master, 7, 8);
$master->safe_psql('postgres', q(SELECT py_log_add_slave('postgres')));
ok(wait_status($slave, q(state = 'waiting')), 'taken back, it continues');
wait_caught_up($slave);
is_same($master, $slave, 't', 'where it was');

# And one that was dropped while it was away.

$slave->stop;
$master->safe_psql('postgres', q(SELECT py_log_drop_slave('postgres')));
insert($master, 9, 9);
$slave->start;
is_refused(
	$slave,
	qr/slave "postgres" is not known to the master any more/,
	'a slave that was dropped while it was away is told when it returns');
$master->safe_psql('postgres', q(SELECT py_log_add_slave('postgres')));
ok(wait_status($slave, q(state = 'waiting')), 'it can be taken back, too');
wait_caught_up($slave);
is_same($master, $slave, 't', 'and has missed nothing');
like(
	($master->psql('postgres', q(SELECT py_log_drop_slave('nobody'))))[2],
	qr/slave "nobody" does not exist/,
	'a slave that never was cannot be dropped');

# Rows that are missing on the slave.

my $conflicts = status_value($slave, 'conflicts');
$here = log_position($slave);
$slave->safe_psql('postgres', 'DELETE FROM t WHERE id IN (1, 2)');
$master->safe_psql('postgres', <<'SQL');
BEGIN;
UPDATE t SET a = 'changed' WHERE id = 1;
DELETE FROM t WHERE id = 2;
UPDATE t SET a = 'changed' WHERE id = 3;
COMMIT;
SQL
wait_caught_up($slave);
is(status_value($slave, 'conflicts') - $conflicts,
	2, 'changes to rows that are missing are counted');
my $log = log_since($slave, $here);
like(
	$log,
	qr/pyreplica postgres: conflict update_missing on table "public\.t" \(id='1'\)/,
	'an update is told with table and key');
like(
	$log,
	qr/pyreplica postgres: conflict delete_missing on table "public\.t" \(id='2'\)/,
	'and so is a delete');
is($slave->safe_psql('postgres', 'SELECT a FROM t WHERE id = 3'),
	'changed', 'what comes after them is applied');
is(status_value($slave, 'state'), 'waiting', 'nothing has stopped');
$slave->safe_psql('postgres', q(INSERT INTO t VALUES (1, 'changed')));
is_same($master, $slave, 't');

# A row that is in the way.

$slave->safe_psql('postgres', q(INSERT INTO t VALUES (12, 'in the way')));
my $before = content($slave, 't');
$here = log_position($slave);
$master->safe_psql('postgres', <<'SQL');
INSERT INTO t VALUES (10, 'before');
BEGIN;
INSERT INTO t VALUES (11, 'with it');
INSERT INTO t VALUES (12, 'from the master');
DELETE FROM t WHERE id = 3;
COMMIT;
INSERT INTO t VALUES (13, 'after');
SQL
is_refused(
	$slave,
	qr/conflict insert_exists on table "public\.t" \(id='12'\).*unique index "t_pkey"/,
	'a row that is in the way stops the replica');
like(
	log_since($slave, $here),
	qr/CONTEXT:.*\n?.*applying INSERT into table "public\.t" \(id='12'\) of the master's transaction \d+, commit number \d+/,
	'with an error that names table, key and transaction');
is( $slave->safe_psql(
		'postgres',
		q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM t WHERE id IN (3, 11, 12, 13))
	),
	'3 12',
	'nothing of that transaction is there, nor what comes after it');
my $from = log_position($slave);
ok( stays_true(
		sub {
			count_log($slave, $from, qr/ERROR:  conflict insert_exists/)
			  <= 4;
		},
		3),
	'it is tried again, but not too often');
cmp_ok(count_log($slave, $from, qr/ERROR:  conflict insert_exists/),
	'>=', 2, 'though often enough');
$slave->safe_psql('postgres', 'DELETE FROM t WHERE id = 12');
ok(wait_status($slave, q(state = 'waiting')),
	'when the row is out of the way, the replica goes on by itself');
wait_caught_up($slave);
is_same($master, $slave, 't', 'and everything is there');

# Keys that change places, which only constraints checked late allow.

on_both($master, $slave, <<'SQL');
CREATE TABLE swap_unique (id int PRIMARY KEY, n int UNIQUE DEFERRABLE);
CREATE TABLE swap_deferred (id int PRIMARY KEY, n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE swap_key (id int PRIMARY KEY DEFERRABLE, n int);
SQL
my @swap = ('swap_unique', 'swap_deferred', 'swap_key');
log_table($master, @swap);
$master->safe_psql('postgres',
	"INSERT INTO $_ SELECT i, i FROM generate_series(1, 4) i")
  for @swap;
$master->safe_psql('postgres', <<'SQL');
UPDATE swap_unique SET n = 5 - n;
UPDATE swap_deferred SET n = 5 - n;
BEGIN;
UPDATE swap_deferred SET n = 2 WHERE id = 1;
UPDATE swap_deferred SET n = 1 WHERE n = 2 AND id <> 1;
UPDATE swap_deferred SET n = 4 WHERE id = 4;
COMMIT;
SQL
wait_caught_up($slave);
is_same($master, $slave, 'swap_unique',
	'values change places in a statement');
is_same($master, $slave, 'swap_deferred', 'and in a transaction');
$master->safe_psql('postgres', 'UPDATE swap_key SET id = 5 - id');
my $came =
  $slave->safe_psql('postgres', q(SELECT pyreplica_wait(timeout => '5s')));
is($came, 't', 'so may the rows of a deferrable primary key')
  or diag(status($slave));
is_same($master, $slave, 'swap_key', 'each keeps what belongs to it');

if ($came ne 't')
{
	# out of the way of what follows
	$master->safe_psql('postgres',
		q(DELETE FROM replica_log WHERE commitno = (SELECT max(commitno) FROM replica_log))
	);
	wait_caught_up($slave);
}

# A table that grows a column while it is written to: first on the slave.

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/grow.sql", <<'SQL');
INSERT INTO grow (a) VALUES (random()::text);
UPDATE grow SET a = 'changed' WHERE id = (SELECT max(id) - 3 FROM grow);
DELETE FROM grow WHERE id = (SELECT max(id) - 20 FROM grow);
SQL
on_both($master, $slave, 'CREATE TABLE grow (id serial PRIMARY KEY, a text)');
log_table($master, 'grow');
my $load = start_looping($master, 'pgbench', '-n', '-T', '60', '-c', '2',
	'-R', '300', '-f', "$dir/grow.sql");
my $rows = sub { $slave->safe_psql('postgres', 'SELECT count(*) FROM grow') };
poll_until(sub { $rows->() > 50 });

for my $node ($slave, $master)
{
	$node->safe_psql('postgres',
		q(ALTER TABLE grow ADD COLUMN b int DEFAULT 7, ADD COLUMN c text));
	my $now = $rows->();
	poll_until(sub { $rows->() > $now + 50 });
}
$master->safe_psql('postgres',
	q(UPDATE grow SET c = 'new', b = id WHERE id % 2 = 0));
my $now = $rows->();
poll_until(sub { $rows->() > $now + 50 });
stop_looping($load);
wait_caught_up($slave);
is_same_rows($master, $slave, 'grow',
	'a column can be added while rows come, first on the slave');
cmp_ok($rows->(), '>', 100, 'they did come');

# Entries of the log that cannot be read.

my $whole = $master->safe_psql('postgres', <<'SQL');
INSERT INTO t VALUES (100, repeat('long ', 10));
SELECT encode(changes, 'hex') FROM replica_log ORDER BY commitno DESC LIMIT 1;
SQL
wait_caught_up($slave);

my @kinds = (
	[ 'cut off',             sub { substr($_[0], 0, length($_[0]) - 6) } ],
	[ 'cut off in its head', sub { substr($_[0], 0, 4) } ],
	[ 'empty',               sub { '' } ],
	[ 'too long',            sub { $_[0] . '0102030405' } ],
	[ 'of another version',  sub { '63' . substr($_[0], 2) } ],
	[ 'of zeros',            sub { '0' x length($_[0]) } ],
	[ 'of ones',             sub { 'ff' x 40 } ],
	[
		'with a table that does not exist',
		sub {
			my $hex = $_[0];
			$hex =~ s/067075626c6963/06747562746963/;
			$hex;
		}
	],);
my $id = 101;
for my $kind (@kinds)
{
	my ($name, $damage) = @$kind;
	set_conf($slave, 'pyreplica.enabled = off');
	wait_status($slave, q(state = 'disabled'));
	insert($master, $id, $id);
	my ($number, $changes) = split(
		/\|/,
		$master->safe_psql(
			'postgres',
			q(SELECT commitno, encode(changes, 'hex') FROM replica_log ORDER BY commitno DESC LIMIT 1)
		));
	my $set = sub {
		my ($hex) = @_;
		$master->safe_psql('postgres',
			"UPDATE replica_log SET changes = decode('$hex', 'hex') WHERE commitno = $number"
		);
	};
	$set->($damage->($changes));
	$here = log_position($slave);
	set_conf($slave, 'pyreplica.enabled = on');
	is_refused(
		$slave,
		qr/could not read changes in replica_log|does not exist on the slave/,
		"an entry that is $name stops the replica");
	like(
		log_since($slave, $here),
		qr/commit number $number\b/,
		'the error tells which one');
	if ($id % 2)
	{
		$set->($changes);
	}
	else
	{
		$master->safe_psql('postgres',
			"DELETE FROM replica_log WHERE commitno = $number");
		$master->safe_psql('postgres', "UPDATE t SET a = a WHERE id = $id");
		$slave->safe_psql('postgres',
			"INSERT INTO t VALUES ($id, 'row $id')");
	}
	ok( wait_status($slave, q(state = 'waiting')),
		$id % 2
		? 'when it is mended, the replica goes on'
		: 'when it is deleted, the replica goes on without it');
	$id++;
}
wait_caught_up($slave);
is_same($master, $slave, 't');

# A part of a large one.
set_conf($slave, 'pyreplica.enabled = off');
wait_status($slave, q(state = 'disabled'));
$master->safe_psql('postgres', <<'SQL');
INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1000, 2000) i;
CREATE TABLE kept AS SELECT * FROM replica_log WHERE part = 3 AND commitno = (SELECT max(commitno) FROM replica_log);
DELETE FROM replica_log l USING kept k WHERE l.commitno = k.commitno AND l.part = 3;
SQL
set_conf($slave, 'pyreplica.enabled = on');
is_refused(
	$slave,
	qr/part 3 of a transaction in replica_log is missing/,
	'a part that is missing stops the replica');
is( $slave->safe_psql('postgres', 'SELECT count(*) FROM t WHERE id >= 1000'),
	'0',
	'which applies nothing of that transaction');
$master->safe_psql('postgres',
	'INSERT INTO replica_log_1 SELECT * FROM kept');
ok(wait_status($slave, q(state = 'waiting')), 'when it is back, it goes on');
wait_caught_up($slave);
is_same_rows($master, $slave, 't');

# Thousands of ways to damage an entry: an error at most.
$master->safe_psql('postgres', <<"SQL");
DO \$\$
DECLARE
	whole	bytea := '\\x$whole';
	damaged	bytea;
	len		int := length(whole);
BEGIN
	PERFORM setseed(0.4);
	FOR i IN 1 .. 5000 LOOP
		damaged := whole;
		FOR j IN 0 .. i % 4 LOOP
			damaged := set_byte(damaged, (random() * (len - 1))::int, (random() * 255)::int);
		END LOOP;
		BEGIN
			PERFORM count(*) FROM py_log_changes(damaged);
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
END \$\$
SQL
pass('no damage does more than an error');

unlike(
	slurp_file($_->logfile),
	qr/was terminated by signal|PANIC/,
	'no crash of the ' . $_->name) for ($master, $slave);

# A master without pyreplica.

my $bare = PostgreSQL::Test::Cluster->new('bare');
$bare->init;
$bare->start;
my $early = new_slave($bare, 'early');
$early->poll_query_until('postgres',
	q(SELECT count(*) = 1 FROM pg_extension WHERE extname = 'pyreplica'));
is_refused(
	$early,
	qr/pyreplica is not installed in the master's database/,
	'a master without pyreplica is told');
like(
	slurp_file($early->logfile),
	qr/HINT:  Run CREATE EXTENSION pyreplica there/,
	'with what to do');
on_both($bare, $early, 'CREATE TABLE t (id int PRIMARY KEY, a text)');
$bare->safe_psql('postgres', 'CREATE EXTENSION pyreplica');
log_table($bare, 't');
insert($bare, 1, 2);
ok(wait_status($early, q(state = 'waiting')), 'when it is, the slave starts');
wait_caught_up($early);
is_same($bare, $early, 't');

# The same two from here on: a slave restored from an older copy of itself.

sub burn
{
	my ($node, $count) = @_;
	$node->safe_psql('postgres', "SELECT txid_current();\n" x $count);
	return;
}

set_conf($bare, 'pyreplica.log_rotate_size = 64kB', 'log_statement = none');
my $old =
  $early->safe_psql('postgres', 'SELECT "position" FROM pyreplica_position');
$early->stop;
$early->backup_fs_cold('old');
insert($bare, 3, 10);
$early->start;
wait_worker($early);
wait_caught_up($early);
$early->stop;
restore_cold($early, 'old');
is( $bare->safe_psql(
		'postgres', q(SELECT position::text <> '1:1:' FROM replica_slave)),
	't',
	'the master believes the slave to be further');
$early->start;
ok(wait_status($early, q(state = 'waiting')),
	'a slave that was restored from a copy goes on from there');
wait_caught_up($early);
is_same($bare, $early, 't', 'and gets again what it had lost');

# ... until the log has been cleaned.

for my $round (1 .. 3)
{
	$bare->safe_psql('postgres',
		"INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(${round}0000, ${round}2000) i"
	);
	# not a change, but it moves the master on
	burn($bare, 5);
	wait_caught_up($early);
}
ok( poll_until(
		sub {
			$bare->safe_psql('postgres',
				"SELECT NOT py_log_covers('$old', horizon) FROM replica_log_state"
			) eq 't';
		}),
	'the log has been cleaned');

# An ordinary restart is none of this.
$early->restart;
ok( wait_status($early, q(state = 'waiting')),
	'a restart does not need what has been cleaned up');
$early->stop('immediate');
$early->start;
ok(wait_status($early, q(state = 'waiting')), 'nor does a crash');

$early->stop;
restore_cold($early, 'old');
$early->start;
is_refused(
	$early,
	qr/the log does not reach back to where slave "postgres" stands/,
	'a copy that is too old is refused');
is(content($early, 't'), "(1,\"row 1\")\n(2,\"row 2\")", 'and left as it is');
like(
	slurp_file($early->logfile),
	qr/HINT:  Register it with SELECT py_log_add_slave\('postgres'\) on the master, restore the slave's tables/,
	'with the way out');
$early->stop;

my $newcomer =
  new_slave($bare, 'newcomer', conf => "pyreplica.database = 'third'\n");
$newcomer->safe_psql('postgres', 'CREATE DATABASE third');
$newcomer->poll_query_until('third',
	q(SELECT count(*) = 1 FROM pg_extension WHERE extname = 'pyreplica'));
ok( wait_status(
		$newcomer,
		q(state = 'error' AND last_error ~ 'the log does not reach back to where slave "third" stands .The slave is new'),
		30,
		'third'),
	'neither can a new slave begin where there is no beginning any more');
$newcomer->stop;
$bare->stop;

# A master that was restored from an older copy of itself.  It has lost what
# the slave still has.

my $phoenix = new_master('phoenix', conf => "log_statement = none\n");
my $witness =
  new_slave($phoenix, 'witness', conf => "log_statement = none\n");
wait_worker($witness);
on_both($phoenix, $witness, 'CREATE TABLE t (id int PRIMARY KEY, a text)');
log_table($phoenix, 't');
$phoenix->safe_psql('postgres', 'CREATE ROLE replicator SUPERUSER LOGIN');
set_conf($witness, conninfo_setting($phoenix, 'user=replicator'));
insert($phoenix, 1, 2);
wait_caught_up($witness);

# Until the master has heard how far the slave is.
my $confirmed = sub {
	my $known = $phoenix->safe_psql('postgres',
		'SELECT "position" FROM replica_slave');
	return $known eq $witness->safe_psql('postgres',
		'SELECT confirmed FROM pyreplica_position')
	  && $known eq $witness->safe_psql('postgres',
		'SELECT "position" FROM pyreplica_position');
};
poll_until($confirmed, 10);

# First, nothing of what the slave has is lost, only numbers of transactions
# that did nothing to us: they are given out again.
my $worker = status_value($witness, 'pid');
$phoenix->stop;
$phoenix->backup_fs_cold('old');
$phoenix->start;
ok(wait_status($witness, q(state = 'waiting')), 'a copy has been taken');
burn($phoenix, 50);
wait_caught_up($witness);
$phoenix->stop;
restore_cold($phoenix, 'old');
my $hba = slurp_file($phoenix->data_dir . '/pg_hba.conf');
unlink($phoenix->data_dir . '/pg_hba.conf');
$phoenix->append_conf('pg_hba.conf', "local all replicator reject\n$hba");
$phoenix->start;
$phoenix->safe_psql('postgres',
	q(SELECT pg_logical_emit_message(false, '', repeat('x', 1000000))));
insert($phoenix, 3, 4);
unlink($phoenix->data_dir . '/pg_hba.conf');
$phoenix->append_conf('pg_hba.conf', $hba);
$phoenix->reload;
ok( wait_status($witness, q(state = 'waiting')),
	'a master restored without loss is gone on with');
wait_caught_up($witness);
is_same($phoenix, $witness, 't',
	'new transactions with numbers that were seen before are not missed');
is(status_value($witness, 'pid'),
	$worker, 'by the very worker that had seen them');

# Now with a loss of a single row.
poll_until($confirmed, 10);
$phoenix->stop;
$phoenix->backup_fs_cold('older');
$phoenix->start;
ok(wait_status($witness, q(state = 'waiting')), 'another copy');
insert($phoenix, 5, 5);
wait_caught_up($witness);
poll_until($confirmed, 10);
$before = content($witness, 't');
$phoenix->stop('immediate');
restore_cold($phoenix, 'older');
$phoenix->start;
is_refused(
	$witness,
	qr/the master is behind slave "postgres"/,
	'a master that has lost what the slave has is refused');
like(
	slurp_file($witness->logfile),
	qr/HINT:  Rows that the master has lost are still on the slave/,
	'with the reason and the way out');
insert($phoenix, 100, 130);
burn($phoenix, 100);
$phoenix->safe_psql('postgres',
	q(SELECT pg_logical_emit_message(false, '', repeat('x', 1000000))));
is_refused_again(
	$witness,
	qr/the master is behind slave "postgres"/,
	'and stays so when it has gone on further than the slave has ever seen');
$witness->restart;
is_refused_again(
	$witness,
	qr/the master is behind slave "postgres"/,
	'even if the slave is restarted');
is(content($witness, 't'), $before, 'the rows are left alone');

done_testing();
