# Servers that are both master and slave: changes are forwarded with the node
# where they were first made, so that they reach everybody once and nothing comes
# back; and a user's transactions can be left out.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $node_a = new_node('a');
my $node_b = new_node('b');
my $node_c = new_node('c');
my @nodes = ($node_a, $node_b, $node_c);
my %node  = map { $_->name => $_->safe_psql('postgres', 'SELECT py_log_node()') } @nodes;
my %name  = reverse %node;
is(scalar(keys %name), 3, 'each node has a name of its own');

my $tables = <<'SQL';
CREATE TABLE t (id int PRIMARY KEY, a text, b text, n int DEFAULT 0);
CREATE TABLE u (id int PRIMARY KEY, a text);
SQL

# Makes the tables anew, empty, with triggers that forward on these nodes.
sub begin
{
	my (@forwarding) = @_;
	foreach my $node (@nodes)
	{
		set_conf($node, "pyreplica.master_conninfo = ''",
			"pyreplica.skip_user = ''", 'pyreplica.origin = any');
		poll_until(sub { $node->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pyreplica worker')) eq '0' })
		  or BAIL_OUT('a worker does not end');
	}
	foreach my $node (@nodes)
	{
		$node->safe_psql('postgres', "DROP TABLE IF EXISTS t, u; $tables");
		$node->safe_psql('postgres', 'DROP EXTENSION pyreplica CASCADE; CREATE EXTENSION pyreplica');
		log_table($node, 't', 'u');
	}
	forward_table($_, 't', 'u') for @forwarding;
	return;
}

sub sql
{
	my ($node, $sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# What a node has logged, by origin: "made here", and by the others' names.
sub logged
{
	my ($node, $where) = @_;
	$where //= 'true';
	my %rows = split(/[\n|]/,
		sql($node, "SELECT coalesce(origin, ''), count(*) FROM replica_log_sql WHERE $where GROUP BY 1"));
	return join(' ',
		map { (exists $name{$_} ? $name{$_} : $_ eq '' ? 'own' : $_) . ":$rows{$_}" }
		sort { ($name{$a} // '') cmp ($name{$b} // '') } keys %rows);
}

# How many rows a node has applied since then.
my %applied;

sub count_anew
{
	$applied{ $_->name } = status_value($_, 'rows') // 0 for @_;
	return;
}

sub applied
{
	my ($node) = @_;
	return status_value($node, 'rows') - $applied{ $node->name };
}

# Until what was committed on any node is on all that are to have it: a change
# takes as many steps as there are nodes, at most.
sub settle
{
	my (@followers) = @_;
	for (@followers)
	{
		wait_caught_up($_) for @followers;
	}
	return;
}

# Keeps nodes from finishing a window, so that what comes meanwhile is applied
# together; let_go ends it.
sub stop_applying
{
	my @sessions = map { $_->background_psql('postgres') } @_;
	$_->query_safe('BEGIN; LOCK TABLE pyreplica_position IN EXCLUSIVE MODE')
	  for @sessions;
	return \@sessions;
}

sub are_same
{
	my ($name, @which) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $first = shift @which;
	is_same_rows($first, $_, 't', "$name: " . $first->name . ' and ' . $_->name) for @which;
	return;
}

# --- A cascade: a, b, c ---

begin($node_b);
follow($node_b, $node_a);
follow($node_c, $node_b);
count_anew($node_b, $node_c);

sql($node_a, "INSERT INTO t (id, a) VALUES ($_, 'from a')") for 1 .. 5;
sql($node_b, q(INSERT INTO t (id, a) VALUES (100, 'from b')));
settle($node_b, $node_c);
is(sql($node_c, q(SELECT count(*) FILTER (WHERE a = 'from a'), count(*) FILTER (WHERE a = 'from b') FROM t)),
	'5|1', 'what both made reaches the end of a cascade');
are_same('cascade', $node_b, $node_c);
is(logged($node_a), 'own:5', 'the first logs its own');
is(logged($node_b), 'own:1 a:5', 'the second logs both, with their origins');
is(logged($node_c), '', 'the last logs nothing');
is(applied($node_b) . ' ' . applied($node_c), '5 6', 'each change was applied once');
is(sql($node_b, q(SELECT DISTINCT username FROM replica_log WHERE origin IS NOT NULL)),
	sql($node_b, q(SELECT rolname FROM pg_roles WHERE oid = 10)), 'the worker is the first superuser');

# All kinds of transactions.
count_anew($node_b, $node_c);
sql($node_a, <<'SQL');
BEGIN;
UPDATE t SET b = 'kept' WHERE id = 1;
SAVEPOINT s;
UPDATE t SET b = 'lost', a = 'lost' WHERE id = 2;
INSERT INTO u VALUES (2, 'lost');
ROLLBACK TO s;
UPDATE t SET id = 30 WHERE id = 3;
DELETE FROM t WHERE id = 4;
COMMIT;
BEGIN;
INSERT INTO u VALUES (1, 'prepared');
PREPARE TRANSACTION 'p';
SQL
settle($node_b, $node_c);
is(sql($node_c, 'SELECT count(*) FROM u'), '0', 'not before COMMIT PREPARED');
sql($node_a, q(COMMIT PREPARED 'p'));
settle($node_b, $node_c);
is(sql($node_c, 'SELECT count(*) FROM u'), '1', 'a prepared transaction goes all the way');
are_same('savepoint, key, delete', $node_b, $node_c);
is(sql($node_c, q(SELECT string_agg(id || coalesce(b, ''), ' ' ORDER BY id) FROM t)), '1kept 2 5 30 100',
	'as it should be');
is(logged($node_b, q(tablename = 't')), 'own:1 a:8', 'a savepoint rolled back is not logged again');
sql($node_a, 'TRUNCATE u');
sql($node_b, 'INSERT INTO u VALUES (7)');
settle($node_b, $node_c);
is(sql($node_c, 'SELECT count(*) FROM u WHERE id <> 7'), '0', 'so does TRUNCATE');
is(sql($node_b, qq(SELECT count(*) FROM replica_log_sql WHERE operation = 'TRUNCATE' AND origin = '$node{a}')),
	'1', 'with its origin');

# In sets: the second slave gets the net effect.
count_anew($node_b, $node_c);
my $held = stop_applying($node_b);
sql($node_a, "DO \$\$ BEGIN FOR i IN 1 .. 300 LOOP UPDATE t SET n = n + 1 WHERE id IN (1, 2, 5); COMMIT; END LOOP; END \$\$");
let_go($held);
settle($node_b, $node_c);
is(sql($node_c, 'SELECT n FROM t WHERE id = 5'), '300', 'many changes of a row');
is(status_value($node_b, 'fallbacks') . status_value($node_c, 'fallbacks'), '00', 'in sets');
cmp_ok(sql($node_b, q(SELECT count(*) FROM replica_log_sql WHERE statement ~ ' n=')), '<', 100, 'are forwarded as their net effect');

# A slave that wants nothing but what its master made.
set_conf($node_c, 'pyreplica.enabled = off', 'pyreplica.origin = none');
wait_status($node_c, q(state = 'disabled'));
set_conf($node_c, 'pyreplica.enabled = on');
wait_worker($node_c);
count_anew($node_c);
sql($node_a, q(INSERT INTO t (id, a) VALUES (40, 'from a')));
wait_caught_up($node_b);
sql($node_b, q(INSERT INTO t (id, a) VALUES (41, 'from b')));
settle($node_b, $node_c);
is(sql($node_c, 'SELECT string_agg(id::text, chr(32)) FROM t WHERE id IN (40, 41)'), '41', 'origin = none takes only what the master made');
is(applied($node_c), '1', 'and no more');

# --- Two nodes, each other's slaves, that forward what they get ---

begin($node_a, $node_b);
follow($node_a, $node_b);
follow($node_b, $node_a);
count_anew($node_a, $node_b);
sql($node_a, "INSERT INTO t (id, a) VALUES ($_, 'from a')") for 1 .. 10;
settle($node_a, $node_b);
is(logged($node_a), 'own:10', 'nothing has come back');
is(logged($node_b), 'a:10', 'though it was logged');
is(applied($node_a) . ' ' . applied($node_b), '0 10', 'applied once');
is(sql($node_b, qq(SELECT count(*), count(*) FILTER (WHERE length(f) > 100) FROM py_log_fetch('1:1:', 100000, 0, '', '$node{a}') f)),
	'1|0', 'it does not even leave');
is(sql($node_b, q(SELECT count(*) FROM py_log_fetch('1:1:', 100000, 0, '', '', true) f)),
	'1', 'nor where only what was made here is wanted');
is(sql($node_b, q(SELECT count(*) FROM py_log_fetch('1:1:', 100000, 0) f)),
	'2', 'but it is there');
ok( $node_b->poll_query_until('postgres',
		'SELECT entries_behind = 0 FROM pyreplica_slaves'),
	'a log of nothing but what came from there is let go');
like(($node_b->psql('postgres', 'SELECT py_log_changes(set_byte(changes, 7, 0)) FROM replica_log LIMIT 1'))[2],
	qr/impossible name of a node/, 'a node has a name');

# Nobody writes any more, as writing takes a transaction id.
sub next_xids
{
	return join(' ', map { sql($_, 'SELECT pg_snapshot_xmax(pg_current_snapshot())') } @_);
}
ok( poll_until(
		sub {
			my $xids = next_xids($node_a, $node_b);
			return stays_true(sub { next_xids($node_a, $node_b) eq $xids }, 1.5);
		}),
	'and then it is quiet');
wait_status($node_a, q(state = 'waiting'));

# Two columns of one row, at the same time.
my $session = $node_b->background_psql('postgres');
$session->query_safe(q(BEGIN; UPDATE t SET b = 'b was here' WHERE id = 1));
sql($node_a, q(UPDATE t SET a = 'a was here' WHERE id = 1));
$session->query_safe('COMMIT');
$session->quit;
settle($node_a, $node_b);
are_same('columns', $node_a, $node_b);
is(sql($node_a, 'SELECT a, b FROM t WHERE id = 1'), 'a was here|b was here', 'two columns of a row, changed on two nodes, both survive');

# A crash of either one changes nothing of that.
$_->stop('immediate') for ($node_a, $node_b);
$_->start for ($node_a, $node_b);
sql($node_b, q(INSERT INTO t (id, a) VALUES (11, 'from b')));
wait_worker($_) for ($node_a, $node_b);
settle($node_a, $node_b);
are_same('after a crash', $node_a, $node_b);
is(status_value($node_a, 'rows') . ' ' . status_value($node_b, 'rows'), '1 0', 'nothing is applied twice');

# --- A ring of three ---

begin(@nodes);
follow($node_b, $node_a);
follow($node_c, $node_b);
follow($node_a, $node_c);
count_anew(@nodes);
sql($node_a, q(INSERT INTO t (id, a) SELECT i, 'from a' FROM generate_series(1, 20) i));
settle(@nodes);
are_same('ring', @nodes);
is(join(' ', map { applied($_) } @nodes), '0 20 20', 'around the ring, but not home');

# One window with changes of several origins, of the very same rows: they are not
# merged into one another.
$held = stop_applying($node_c);
count_anew(@nodes);
my $mark = capture_mark($node_c);
foreach my $i (1 .. 20)
{
	sql($node_a, "UPDATE t SET a = repeat('a', 50) || $i WHERE id = $i; UPDATE t SET a = a || 'a' WHERE id = $i");
	wait_caught_up($node_b);
	sql($node_b, "UPDATE t SET b = repeat('b', 50) || $i WHERE id = $i; UPDATE t SET b = b || 'b' WHERE id = $i");
}
sql($node_c, q(INSERT INTO t (id, a) VALUES (50, 'from c')));
let_go($held);
settle(@nodes);
are_same('mixed', @nodes);
is(sql($node_a, q(SELECT count(*) FROM t WHERE a LIKE 'aaa%a' AND b LIKE 'bbb%b')), '20', 'all changes of all nodes are there');
my %logged = map { split(/:/) } split(/ /, logged($node_c, "commitno >= $mark"));
ok($logged{a} >= 20 && $logged{b} >= 20, 'each logged with its origin where they were applied together')
  or diag(logged($node_c, "commitno >= $mark"));
is(sql($node_c, "SELECT count(*) FROM replica_log_sql WHERE commitno >= $mark AND (statement ~ ' a=' AND origin <> '$node{a}' OR statement ~ ' b=' AND origin <> '$node{b}' OR statement ~ 'from c' AND origin IS NOT NULL)"),
	'0', 'the right one');
is(sql($node_c, "SELECT count(*) > 0 FROM replica_log WHERE commitno >= $mark AND origin = '*'"), 't', 'several in one transaction');
is(applied($node_a), $logged{b} + 1, 'and home come only those of others');
is(join(' ', map { status_value($_, 'fallbacks') . status_value($_, 'conflicts') . status_value($_, 'errors') } @nodes),
	'000 000 000', 'without any trouble');

# Everybody writes, each on rows of his own.
my $writes = <<'SQL';
\set id random(1, 40) * 3 + :node + 1000
\set what random(1, 8)
BEGIN;
INSERT INTO t AS x (id, a, n) VALUES (:id, 'first', :what) ON CONFLICT (id) DO UPDATE SET n = x.n + 1, a = :what::text;
SAVEPOINT s;
UPDATE t SET b = 'lost' WHERE id = :id;
ROLLBACK TO s;
UPDATE t SET b = coalesce(b, '') || :what WHERE id = :id AND :what > 4;
DELETE FROM t WHERE id = :id AND :what = 1;
COMMIT;
SQL
count_anew(@nodes);
write_at_once($writes, 200, @nodes);
settle(@nodes);
are_same('ring under load', @nodes);
is(join(' ', map { status_value($_, 'conflicts') . status_value($_, 'errors') } @nodes),
	'00 00 00', 'without conflict or error');

# --- Two masters, as PyReplica's How-To has it: skip_user on both ---

my @two = ($node_a, $node_b);
foreach my $kind ('plain', 'always')
{
	begin($kind eq 'always' ? @two : ());
	sql($_, 'DROP ROLE IF EXISTS replicator; CREATE ROLE replicator LOGIN SUPERUSER') for @two;
	set_conf($_, 'pyreplica.skip_user = replicator') for @two;
	follow($node_a, $node_b);
	follow($node_b, $node_a);
	count_anew(@two);
	write_at_once($writes, 200, @two);
	settle(@two);
	are_same("$kind triggers", @two);
	is(join(' ', map { status_value($_, 'conflicts') . status_value($_, 'errors') } @two),
		'00 00', 'without conflict or error');
	foreach my $node (@two)
	{
		my $other = $node == $node_a ? $node_b : $node_a;
		my $own = sql($other, 'SELECT count(*) FROM replica_log_sql WHERE origin IS NULL');
		is(applied($node), $own, 'no echo: ' . $node->name . ' has applied what the other one made, and no more');
		is(sql($node, "SELECT count(*) FROM replica_log_sql WHERE origin = '" . $node{ $node->name } . q(')),
			'0', 'and has logged nothing of its own as foreign');
		is(sql($node, 'SELECT count(*) FROM replica_log_sql WHERE origin IS NOT NULL') > 0 ? 'always' : 'plain',
			$kind, "what is applied is logged again, or not: $kind");
	}
	is(sql($node_a, q(SELECT count(DISTINCT id % 3) FROM t)), '2', 'there are rows of both');

	# the user is left out, with transactions of any size
	sql($node_a, <<'SQL');
SET SESSION AUTHORIZATION replicator;
INSERT INTO t (id, a) SELECT -i, repeat('by him', 20) FROM generate_series(1, 2000) i;
INSERT INTO u VALUES (1);
SQL
	sql($node_a, q(INSERT INTO u VALUES (2)));
	settle(@two);
	is(sql($node_b, 'SELECT (SELECT count(*) FROM t WHERE id < 0), string_agg(id::text, chr(32)) FROM u'),
		'0|2', 'transactions of skip_user are left out');
	ok( $node_a->poll_query_until('postgres', 'SELECT entries_behind = 0 FROM pyreplica_slaves'),
		'and passed in the log');
}

# --- It is the session's user that counts ---

sql($node_a, <<'SQL');
CREATE ROLE somebody LOGIN SUPERUSER;
CREATE FUNCTION by_definer(id int) RETURNS void LANGUAGE sql SECURITY DEFINER
	AS $$ INSERT INTO public.u VALUES (id, current_user || ' for ' || session_user) $$;
ALTER FUNCTION by_definer OWNER TO replicator;
CREATE FUNCTION by_somebody(id int) RETURNS void LANGUAGE sql SECURITY DEFINER
	AS $$ INSERT INTO public.u VALUES (id, current_user || ' for ' || session_user) $$;
ALTER FUNCTION by_somebody OWNER TO somebody;
SQL
my %as = map {
	my $user = $_;
	$user => sub { $node_a->safe_psql('postgres', $_[0], extra_params => [ '-U', $user ]) }
} qw(somebody replicator);
$as{somebody}->('SELECT by_definer(11)');
$as{somebody}->(q(SET ROLE replicator; INSERT INTO u VALUES (12, current_user || ' for ' || session_user)));
$as{replicator}->('SELECT by_somebody(13)');
$as{replicator}->(q(SET ROLE somebody; INSERT INTO u VALUES (14, current_user || ' for ' || session_user)));
$as{somebody}->(q(BEGIN; SET LOCAL ROLE replicator; INSERT INTO u VALUES (15, current_user || ' for ' || session_user); COMMIT));
settle(@two);
is(sql($node_b, 'SELECT id, a FROM u WHERE id > 10 ORDER BY id'), <<'ROWS' =~ s/\n\z//r, 'neither SECURITY DEFINER nor SET ROLE matters');
11|replicator for somebody
12|replicator for somebody
15|replicator for somebody
ROWS

# --- A master that cannot leave out ---

sql($node_b, <<'SQL');
ALTER FUNCTION py_log_fetch RENAME TO py_log_fetch_c;
CREATE FUNCTION py_log_fetch(pg_snapshot, int, int) RETURNS SETOF bytea LANGUAGE sql AS 'SELECT public.py_log_fetch_c($1, $2, $3)';
SQL
my $log = log_position($node_a);
$node_a->restart;
ok(wait_log($node_a, $log, qr/ERROR:  the master cannot leave out the transactions of user "replicator"/), 'a master that cannot leave a user out is refused');
set_conf($node_a, q(pyreplica.skip_user = ''));
wait_worker($node_a);
count_anew(@two);
sql($node_a, q(INSERT INTO u VALUES (20)));
settle(@two);
sql($node_b, q(INSERT INTO u VALUES (21)));
settle(@two);
is(applied($node_a) . ' ' . applied($node_b), '1 1', 'what was made here is left out all the same');

# --- One that is the same as another ---

# A physical copy would look like this.
$log = log_position($node_c);
set_conf($node_c, conninfo_setting($node_c));
ok(wait_log($node_c, $log, qr/WARNING:  master and slave are of one origin, "$node{c}"/),
	'a master that has our own name is warned of');

done_testing();
