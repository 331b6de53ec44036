# A change cannot be applied.  Everything that is needed to decide what to do is
# told, and what somebody decides to pass over is passed over: that, once, and
# nothing else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PyreplicaTest;
use Test::More;

my ($master, $slave) = new_pair(
	master_conf => "autovacuum = off\n",
	slave_conf  => "autovacuum = off\n");

sub ask
{
	my ($node, $sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# What a statement on the slave complains about.
sub complaint
{
	my ($sql) = @_;
	my ($rc, $out, $complaint) = $slave->psql('postgres', $sql);
	return $rc == 0 ? 'none' : $complaint;
}

# Until the replica has failed once more.
sub wait_failure
{
	my ($errors) = @_;
	return wait_status($slave, "state = 'error' AND errors > $errors");
}

on_both($master, $slave, <<'SQL');
CREATE TABLE item (id int PRIMARY KEY, a text, n int);
CREATE TABLE other (id int PRIMARY KEY, n int);
SQL
log_table($master, 'item', 'other');
ask($master, q(INSERT INTO item SELECT i, 'old', 0 FROM generate_series(1, 10) i; INSERT INTO other VALUES (1, 0)));
wait_caught_up($slave);
is(ask($slave, 'SELECT count(*) FROM pyreplica_failure'), 0, 'nothing has failed');
like(complaint(q(SELECT * FROM pyreplica_skip('postgres', 1))),
	qr/replica "postgres" has no transaction that fails/, 'so nothing can be skipped');

# --- A transaction fails ---

ask($slave, q(ALTER TABLE item ADD CHECK (a <> 'bad')));
my $from   = log_position($slave);
my $errors = status_value($slave, 'errors');
ask($master, <<'SQL');
UPDATE other SET n = 1;
BEGIN;
UPDATE item SET n = 1 WHERE id = 1;
UPDATE item SET a = 'bad' WHERE id = 2;
INSERT INTO item VALUES (11, 'new', 0);
COMMIT;
UPDATE other SET n = 2;
SQL
wait_failure($errors);
my ($commitno, $xid) = split(/\|/, ask($master,
	q(SELECT commitno, xid FROM replica_log_sql WHERE statement ~ 'bad')));
like(
	status_value($slave, 'last_error'),
	qr/violates check constraint.*UPDATE of table "public\.item" \(id='2'\) of the master's transaction $xid, commit number $commitno/,
	'the view tells what failed, and why');
wait_log($slave, $from, qr/HINT: /);
my ($call) = log_since($slave, $from) =~ /HINT: .*(SELECT \* FROM public\.pyreplica_skip\('postgres', $commitno, '$xid'\))/;
ok($call, 'the log tells how to be rid of it') or BAIL_OUT(log_since($slave, $from));
is( ask($slave, 'SELECT commitno, xid, number, changes, message FROM pyreplica_failure'),
	"$commitno|$xid|2|3|new row for relation \"item\" violates check constraint \"item_a_check\"",
	'the transaction is kept');
my $shown = <<'SHOWN';
1|public.item|UPDATE public.item SET n='1' WHERE id='1'|would be passed over
2|public.item|UPDATE public.item SET a='bad' WHERE id='2'|would be passed over: new row for relation "item" violates check constraint "item_a_check"
3|public.item|INSERT INTO public.item (id, a, n) VALUES ('11', 'new', '0')|would be passed over
SHOWN
is(ask($slave, $call) . "\n", $shown, 'asked for, its changes are shown');
wait_failure(status_value($slave, 'errors'));
is(ask($slave, 'SELECT count(*) FROM item WHERE n = 1'), 0, 'but nothing is passed over by looking');
ok(ask($slave, 'SELECT times > 1 FROM pyreplica_failure'), 'it is tried again');

# --- What does not fit is refused ---

like(complaint("SELECT * FROM pyreplica_skip('postgres', $commitno + 1, really => true)"),
	qr/not the transaction that fails.*commit number $commitno and transaction id $xid/s, 'another commit number');
like(complaint("SELECT * FROM pyreplica_skip('postgres', $commitno, '1', really => true)"),
	qr/not the transaction that fails/, 'another transaction id');
like(complaint("SELECT * FROM pyreplica_skip('postgres', $commitno, number => 4, really => true)"),
	qr/no change 4.*3 changes; number 2 fails/s, 'a change that it has not');
like(complaint("SELECT * FROM pyreplica_skip('elsewhere', $commitno, really => true)"),
	qr/replica "elsewhere" has no transaction that fails/, 'another replica');
is(ask($slave, 'SELECT count(*) FROM pyreplica_skip_request'), 0, 'is not asked for');

# --- One change of it ---

like(
	ask($slave, "SELECT * FROM pyreplica_skip('postgres', $commitno, number => 2, really => true)"),
	qr/^1\|.*\|stays\n2\|.*\|will be passed over.*\n3\|.*\|stays$/,
	'one change is to be passed over');
wait_caught_up($slave);
is(ask($slave, q(SELECT string_agg(concat_ws(':', id, a, n), ' ' ORDER BY id) FROM item WHERE id IN (1, 2, 11))),
	'1:old:1 2:old:0 11:new:0', 'it is, and the others are made');
is(ask($slave, 'SELECT n FROM other'), 2, 'the replica goes on');
is( ask($slave, 'SELECT kind, tablename, statement, outcome, commitno, xid FROM pyreplica_conflicts'),
	"skipped|item|UPDATE public.item SET a='bad' WHERE id='2'|skipped|$commitno|$xid",
	'what was passed over is kept');
is(ask($slave, 'SELECT (SELECT count(*) FROM pyreplica_skip_request), (SELECT count(*) FROM pyreplica_failure), (SELECT count(*) FROM pyreplica_failure_change)'),
	'0|0|0', 'request and failure are gone');

# --- It counts once; and a request survives a restart ---

$errors = status_value($slave, 'errors');
$from   = log_position($slave);
ask($master, q(BEGIN; UPDATE item SET a = 'bad' WHERE id = 3; UPDATE item SET a = 'good' WHERE id = 4; COMMIT));
wait_failure($errors);
($commitno, $xid) = split(/\|/, ask($slave, 'SELECT commitno, xid FROM pyreplica_failure'));
set_conf($slave, 'pyreplica.enabled = off');
wait_status($slave, 'pid IS NULL');
ask($slave, "SELECT * FROM pyreplica_skip('postgres', $commitno, really => true)");
$slave->stop('immediate');
$slave->start;
set_conf($slave, 'pyreplica.enabled = on');
wait_worker($slave);
wait_caught_up($slave);
is(ask($slave, q(SELECT string_agg(a, ' ' ORDER BY id) FROM item WHERE id IN (3, 4))),
	'old old', 'the whole transaction is passed over');
is(ask($slave, "SELECT count(*) FROM pyreplica_conflicts WHERE commitno = $commitno"),
	2, 'each change of it is kept');
like(log_since($slave, $from), qr/passed over 2 changes of the master's transaction $xid, commit number $commitno/,
	'that is logged');

# --- A request that fits nothing any more ---

$from = log_position($slave);
set_conf($slave, 'pyreplica.enabled = off');
wait_status($slave, 'pid IS NULL');
ask($slave, q(INSERT INTO pyreplica_skip_request (replica, commitno, xid) VALUES ('postgres', 1, '3')));
set_conf($slave, 'pyreplica.enabled = on');
wait_worker($slave);
ask($master, 'UPDATE other SET n = 3');
wait_caught_up($slave);
is(ask($slave, 'SELECT n FROM other'), 3, 'does no harm');
like(log_since($slave, $from), qr/nothing was passed over: the master's transaction 3, commit number 1, has been applied/,
	'and is told of');
is(ask($slave, 'SELECT count(*) FROM pyreplica_skip_request'), 0, 'it is gone');

# --- The cause goes away by itself ---

$errors = status_value($slave, 'errors');
ask($master, q(UPDATE item SET a = 'bad' WHERE id = 5));
wait_failure($errors);
ask($slave, 'ALTER TABLE item DROP CONSTRAINT item_a_check');
wait_caught_up($slave);
is(ask($slave, 'SELECT a FROM item WHERE id = 5'), 'bad', 'then it is applied');
is(ask($slave, 'SELECT count(*) FROM pyreplica_failure'), 0, 'and has not failed any more');

# --- Failures of other kinds, among many changes ---

ask($slave, 'CREATE TABLE refers (id int REFERENCES other)');
$errors = status_value($slave, 'errors');
my $held = hold_back($master, $slave);
ask($master, 'UPDATE item SET n = i FROM generate_series(1, 10) i WHERE item.id = i') for (1 .. 20);
ask($master, 'BEGIN; UPDATE item SET n = 100; TRUNCATE other; UPDATE item SET n = 101; COMMIT');
ask($master, 'UPDATE item SET n = n + 1');
let_go($held);
wait_failure($errors);
($commitno, my $number, my $message) = split(/\|/, ask($slave, 'SELECT commitno, number, message FROM pyreplica_failure'));
like($message, qr/cannot truncate a table referenced in a foreign key/, 'a TRUNCATE that fails');
is(ask($slave, "SELECT statement FROM pyreplica_failure_change WHERE number = $number"),
	'TRUNCATE ONLY public.other', 'is told from the changes around it');
ask($slave, "SELECT * FROM pyreplica_skip('postgres', $commitno, number => $number, really => true)");
wait_caught_up($slave);
is_same($master, $slave, '(SELECT id, n FROM item)', 'all others are made');
is(ask($slave, 'SELECT count(*) FROM other'), 1, 'but it');

ask($master, 'CREATE TABLE only_there (id int PRIMARY KEY); CREATE TABLE many (id int PRIMARY KEY)');
on_both($slave, $slave, 'CREATE TABLE IF NOT EXISTS many (id int PRIMARY KEY)');
log_table($master, 'only_there', 'many');
$errors = status_value($slave, 'errors');
ask($master, 'BEGIN; INSERT INTO many SELECT generate_series(1, 3000); INSERT INTO only_there VALUES (1); COMMIT');
wait_failure($errors);
is(ask($slave, 'SELECT number, changes FROM pyreplica_failure'), '3001|3001', 'a table that is not here, at the end of a large transaction');
is(ask($slave, 'SELECT count(*), max(number) FROM pyreplica_failure_change'), '1001|3001', 'the first changes are kept, and the one that fails');
ask($slave, 'SELECT s.* FROM pyreplica_failure f, pyreplica_skip(f.replica, f.commitno, f.xid, f.number, true) s');
wait_caught_up($slave);
is(ask($slave, 'SELECT count(*) FROM many'), 3000, 'and it alone is passed over');

done_testing();
