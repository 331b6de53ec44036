# Somebody writes on the slave.  What the master's changes then meet has the
# names that PostgreSQL 18 gives to conflicts; who wins is a matter of policy;
# and whichever way the slave has applied the window, the outcome is the same.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PyreplicaTest;
use Test::More;

my ($master, $slave) = new_pair(
	master_conf => "autovacuum = off\ntrack_commit_timestamp = on\n",
	slave_conf  => "autovacuum = off\ntrack_commit_timestamp = on\npyreplica.detect_origin = on\n");

sub ask
{
	my ($node, $sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# --- Every kind, under every policy, on both ways ---

# In each table the same conflicts happen; the tables differ in who wins.  The
# slave's writer has been later than the master's in those rows, but not in those
# with a 2.
my $story = <<'SQL';
INSERT INTO %1$s VALUES (10, 'master', 10), (12, 'master', 12);
INSERT INTO %1$s VALUES (20, 'master', 20);
INSERT INTO %1$s VALUES (30, 'master', 31);
UPDATE %1$s SET a = 'master', n = 42 WHERE id = 40;
UPDATE %1$s SET a = 'master' WHERE id IN (50, 60, 62);
DELETE FROM %1$s WHERE id IN (70, 80);
UPDATE %1$s SET a = 'fine' WHERE id >= 1000;
SQL
my $here = <<'SQL';
INSERT INTO %1$s VALUES (10, 'slave', 1);
INSERT INTO %1$s VALUES (21, 'slave', 20);
INSERT INTO %1$s VALUES (30, 'slave', 30), (31, 'slave', 31);
UPDATE %1$s SET n = 42 WHERE id = 41;
DELETE FROM %1$s WHERE id = 50;
UPDATE %1$s SET a = 'slave' WHERE id = 60;
DELETE FROM %1$s WHERE id = 70;
UPDATE %1$s SET a = 'slave' WHERE id = 80;
SQL
my $earlier = <<'SQL';
INSERT INTO %1$s VALUES (12, 'slave', 2);
UPDATE %1$s SET a = 'slave' WHERE id = 62;
SQL

# What comes of it: rows but those that are fine, and conflicts.
my %outcome = (
	apply_remote => {
		rows =>
		  '10:master:10 12:master:12 20:master:20 30:master:31 40:master:42 60:master:60 62:master:62',
		kinds => <<'KINDS' },
delete_missing 70 passed over
delete_origin_differs 80 applied remote
insert_exists 10 applied remote
insert_exists 12 applied remote
insert_exists 20 applied remote
multiple_unique_conflicts 30 applied remote
update_exists 40 applied remote
update_missing 50 passed over
update_origin_differs 60 applied remote
update_origin_differs 62 applied remote
KINDS
	keep_local => {
		rows =>
		  '10:slave:1 12:slave:2 21:slave:20 30:slave:30 31:slave:31 40:old:40 41:old:42 60:slave:60 62:slave:62 80:slave:80',
		kinds => <<'KINDS' },
delete_missing 70 passed over
delete_origin_differs 80 kept local
insert_exists 10 kept local
insert_exists 12 kept local
insert_exists 20 kept local
multiple_unique_conflicts 30 kept local
update_exists 40 kept local
update_missing 50 passed over
update_origin_differs 60 kept local
update_origin_differs 62 kept local
KINDS
	last_update_wins => {
		rows =>
		  '10:slave:1 12:master:12 21:slave:20 30:slave:30 31:slave:31 40:old:40 41:old:42 60:slave:60 62:master:62',
		kinds => <<'KINDS' });
delete_missing 70 passed over
delete_origin_differs 80 applied remote
insert_exists 10 kept local
insert_exists 12 applied remote
insert_exists 20 kept local
multiple_unique_conflicts 30 kept local
update_exists 40 kept local
update_missing 50 passed over
update_origin_differs 60 kept local
update_origin_differs 62 applied remote
KINDS

# Tables by policy, and by what tells of a conflict: the origin of rows, or old
# values in the log.
my @tables;
foreach my $policy (sort keys %outcome)
{
	push @tables, [ "${policy}_$_", $policy, $_ ] for ('by_origin', 'by_old');
}
on_both($master, $slave,
	"CREATE TABLE $_->[0] (id int PRIMARY KEY, a text, n int UNIQUE)")
  for @tables;
ask($master,
	"SELECT py_log_create_tg('$_->[0]', log_old => "
	  . ($_->[2] eq 'by_old' ? 'true' : 'false') . ')')
  for @tables;
wait_caught_up($slave);
ask($slave,
	"SELECT pyreplica_set_conflict_resolution('$_->[0]', '$_->[1]')")
  for @tables;

foreach my $way ('auto', 'strict')
{
	set_conf($slave, "pyreplica.apply_mode = $way");
	ask($master, "TRUNCATE $_->[0]; INSERT INTO $_->[0] SELECT i, 'old', i FROM unnest(ARRAY[40, 41, 50, 60, 62, 70, 80]) i"
		  . " UNION ALL SELECT i, 'old', i FROM generate_series(1000, 1200) i")
	  for @tables;
	wait_caught_up($slave);
	ask($slave, 'DELETE FROM pyreplica_conflicts; DELETE FROM pyreplica_conflict_counts');
	my $fallbacks = status_value($slave, 'fallbacks');
	my $conflicts = status_value($slave, 'conflicts');

	my $held = hold_back($master, $slave);
	ask($slave,  sprintf($earlier, $_->[0])) for @tables;
	ask($master, sprintf($story,   $_->[0])) for @tables;
	ask($slave,  sprintf($here,    $_->[0])) for @tables;
	my $listening = $slave->background_psql('postgres');
	$listening->set_query_timer_restart();
	$listening->query_safe('LISTEN pyreplica_conflicts');
	let_go($held);
	wait_caught_up($slave);

	is(status_value($slave, 'fallbacks') > $fallbacks,
		$way eq 'auto' ? 1 : '',
		"$way: sets are " . ($way eq 'auto' ? 'given up' : 'not tried'));
	foreach my $table (@tables)
	{
		my ($name, $policy, $by) = @$table;
		is( ask($slave, "SELECT string_agg(concat_ws(':', id, a, n), ' ' ORDER BY id) FROM $name WHERE id < 1000"),
			$outcome{$policy}->{rows},
			"$way, $policy, $by: the rows");
		is( ask($slave, "SELECT kind, key[1], outcome FROM pyreplica_conflicts WHERE tablename = '$name' ORDER BY kind, key")
			  =~ tr/|/ /r . "\n",
			$outcome{$policy}->{kinds},
			"$way, $policy, $by: the conflicts");
		is(ask($slave, "SELECT count(*) FROM $name WHERE id >= 1000 AND a = 'fine'"),
			201, "$way, $policy, $by: other rows of the window are changed");
	}
	is(status_value($slave, 'conflicts') - $conflicts,
		60, "$way: each is counted once");
	is( ask($slave, q(SELECT kind, sum(count) FROM pyreplica_conflict_counts GROUP BY kind ORDER BY kind))
		  =~ tr/\n/ /r,
		'delete_missing|6 delete_origin_differs|6 insert_exists|18 multiple_unique_conflicts|6 update_exists|6 update_missing|6 update_origin_differs|12',
		"$way: by kind");

	# asynchronous messages come with the answer to some query
	my $told = $listening->query_safe('SELECT 1') . $listening->{stdout};
	my @told = $told =~ /"kind": "insert_exists"/g;
	is(scalar @told, 6, "$way: who listens hears once of each kind and table");
	$listening->quit;
}
is( ask($slave, <<'SQL'), '{"a": "slave", "n": 60, "id": 60}|{"a": "master", "id": 60}|local|t|t', 'both rows are kept, and the transaction');
SELECT c.local_row, c.remote_row, c.local_origin, c.master_at < c.local_at, c.xid::text::bigint > 700
  FROM pyreplica_conflicts c
 WHERE tablename = 'keep_local_by_origin' AND kind = 'update_origin_differs' AND key = '{60}'
SQL
my ($xid, $at) = split(/\|/, ask($slave, q(SELECT xid, master_at FROM pyreplica_conflicts WHERE tablename = 'keep_local_by_origin' AND key = '{60}')));
is(ask($master, "SELECT pg_xact_commit_timestamp('$xid'::xid8::xid) = '$at'"),
	't', 'with the time of its commit, as the rows have it there');
like(
	ask($slave, q(SELECT local_row FROM pyreplica_conflicts WHERE tablename = 'keep_local_by_old' AND kind = 'multiple_unique_conflicts')),
	qr/^\[\{.*"id": 3[01]\}, \{.*"id": 3[01]\}\]$/,
	'all rows that were in the way');

# --- Nobody is to win ---

on_both($master, $slave, 'CREATE TABLE nobody (id int PRIMARY KEY, a text, n int UNIQUE)');
ask($master, q(SELECT py_log_create_tg('nobody', log_old => true)));
my $errors = 0;
foreach my $case (
	[ 'insert_exists', q(INSERT INTO nobody VALUES (1, 'slave', 1)), q(INSERT INTO nobody VALUES (1, 'master', 2)), 'DELETE FROM nobody WHERE id = 1' ],
	[ 'multiple_unique_conflicts', q(INSERT INTO nobody VALUES (3, 'slave', 30), (4, 'slave', 4)), q(INSERT INTO nobody VALUES (3, 'master', 4)), 'DELETE FROM nobody WHERE id IN (3, 4)' ],
	[ 'update_exists', q(INSERT INTO nobody VALUES (5, 'slave', 5)), q(UPDATE nobody SET n = 5 WHERE id = 1), 'DELETE FROM nobody WHERE id = 5' ],
	[ 'update_origin_differs', q(UPDATE nobody SET a = 'slave' WHERE id = 1), q(UPDATE nobody SET a = 'new' WHERE id = 1), q(UPDATE nobody SET a = 'master' WHERE id = 1) ],
	[ 'delete_origin_differs', q(UPDATE nobody SET a = 'slave' WHERE id = 1), q(DELETE FROM nobody WHERE id = 1), q(DELETE FROM nobody WHERE id = 1) ])
{
	my ($kind, $local, $remote, $cure) = @$case;
	wait_caught_up($slave);
	$errors = status_value($slave, 'errors');
	my $from = log_position($slave);
	ask($slave,  $local);
	ask($master, $remote);
	wait_status($slave, "state = 'error' AND errors > $errors");
	like(status_value($slave, 'last_error'),
		qr/conflict $kind on table "public\.nobody" \(id='\d'\).*transaction \d+, commit number \d+/,
		"$kind stops the replica");
	unlike(status_value($slave, 'last_error'), qr/slave"/, "$kind: the view shows no rows");
	like(
		log_since($slave, $from),
		qr/ERROR: \N*conflict $kind \N*\n\N*DETAIL: \N*"a": "slave"\N*"id": \d\N*\n\N*HINT: \N*pyreplica_set_conflict_resolution\('public.nobody'/,
		"$kind: the log does, and tells the way out");
	ask($slave, $cure);
	wait_caught_up($slave);
	is_same($master, $slave, 'nobody', "$kind: the way out");
}

# --- Two masters change different columns of a row ---

on_both($master, $slave, q(CREATE TABLE columns (id int PRIMARY KEY, a text, b text)));
ask($master, q(SELECT py_log_create_tg('columns', log_old => true); INSERT INTO columns SELECT i, 'a', NULL FROM generate_series(1, 300) i));
wait_caught_up($slave);
foreach my $way ('auto', 'strict')
{
	set_conf($slave, "pyreplica.apply_mode = $way");
	wait_caught_up($slave);
	my $conflicts = status_value($slave, 'conflicts');
	ask($slave,  "UPDATE columns SET a = 'slave $way'");
	ask($master, "UPDATE columns SET b = 'master $way'");
	wait_caught_up($slave);
	is(ask($slave, "SELECT count(*) FROM columns WHERE a = 'slave $way' AND b = 'master $way'"),
		300, "$way: both survive");
	is(status_value($slave, 'conflicts'), $conflicts, "$way: that is no conflict");
}

# --- The net effect hides nothing ---

# The row passes through what the slave has on the way, but did not begin there.
set_conf($slave, 'pyreplica.apply_mode = auto');
on_both($master, $slave, q(CREATE TABLE passing (id int PRIMARY KEY, a text, b int)));
ask($master, q(SELECT py_log_create_tg('passing', log_old => true); INSERT INTO passing SELECT i, 'old', 0 FROM generate_series(1, 100) i));
wait_caught_up($slave);
ask($slave, q(SELECT pyreplica_set_conflict_resolution('passing', 'keep_local')));
my $held = hold_back($master, $slave);
ask($slave, q(UPDATE passing SET a = 'one' WHERE id IN (1, 2)));
ask($master, q(UPDATE passing SET a = 'one'; UPDATE passing SET a = 'two', b = 1; DELETE FROM passing WHERE id IN (2, 3)));
let_go($held);
wait_caught_up($slave);
is( ask($slave, q(SELECT kind, key[1], remote_row FROM pyreplica_conflicts WHERE tablename = 'passing' ORDER BY 2, 1 DESC)),
	qq(update_origin_differs|1|{"a": "one", "id": 1}\nupdate_origin_differs|2|{"a": "one", "id": 2}),
	'the change that does not fit is seen, not those that follow it');
is(ask($slave, q(SELECT string_agg(concat_ws(':', id, a, b), ' ' ORDER BY id) FROM passing WHERE id < 5)),
	'1:two:1 4:two:1', 'as change by change');

# What comes and goes within a window leaves nothing, but may have met something.
on_both($master, $slave, q(CREATE TABLE gone (id int PRIMARY KEY, a text)));
log_table($master, 'gone');
ask($slave, q(SELECT pyreplica_set_conflict_resolution('gone', 'apply_remote')));
wait_caught_up($slave);
$held = hold_back($master, $slave);
ask($slave, q(INSERT INTO gone VALUES (77, 'slave')));
ask($master, q(INSERT INTO gone SELECT i, 'master' FROM generate_series(1, 200) i; DELETE FROM gone WHERE id > 20));
let_go($held);
wait_caught_up($slave);
is(ask($slave, q(SELECT kind, key, local_row FROM pyreplica_conflicts WHERE tablename = 'gone')),
	'insert_exists|{77}|{"a": "slave", "id": 77}', 'a row that was inserted and deleted again');
is_same($master, $slave, 'gone', 'then both sides are the same');

# --- Tables that are not alike ---

# A key that cannot be updated, columns that are computed or only here, unique
# expressions under a condition; partitions.
my $odd = 'CREATE TABLE odd (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text, b text GENERATED ALWAYS AS (upper(a)) STORED%s)';
my $parts = 'CREATE TABLE parts (id int PRIMARY KEY, a text, n int)';
ask($master, sprintf($odd, '') . "; $parts");
ask($slave, sprintf($odd, q(, here text DEFAULT 'here')) . <<"SQL");
; CREATE UNIQUE INDEX ON odd (lower(a)) WHERE a <> 'free';
$parts PARTITION BY HASH (id);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
SQL
log_table($master, 'odd', 'parts');
wait_caught_up($slave);
ask($slave, q(SELECT pyreplica_set_conflict_resolution(t, 'apply_remote') FROM unnest('{odd,parts}'::regclass[]) t));
wait_caught_up($slave);
foreach my $way ('auto', 'strict')
{
	set_conf($slave, "pyreplica.apply_mode = $way");
	ask($master, 'DELETE FROM odd; DELETE FROM parts');
	wait_caught_up($slave);
	ask($slave, <<'SQL');
DELETE FROM pyreplica_conflicts;
DELETE FROM odd;
INSERT INTO odd (id, a, here) OVERRIDING SYSTEM VALUE VALUES (1, 'slave', 'x'), (2, 'COLLIDES', 'x'), (3, 'free', 'x'), (6, 'Other', 'x');
INSERT INTO parts SELECT i, 'slave', i FROM generate_series(1, 9) i;
SQL
	$held = hold_back($master, $slave);
	ask($master, <<'SQL');
INSERT INTO odd (id, a) OVERRIDING SYSTEM VALUE VALUES (1, 'master'), (4, 'collides'), (5, 'free'), (7, 'x');
UPDATE odd SET a = 'other' WHERE id = 7;
INSERT INTO parts SELECT i, 'master', -i FROM generate_series(1, 100) i;
SQL
	let_go($held);
	wait_caught_up($slave);
	is(ask($slave, q(SELECT string_agg(concat_ws(':', id, a, b, here), ' ' ORDER BY id) FROM odd)),
		'1:master:MASTER:here 3:free:FREE:x 4:collides:COLLIDES:here 5:free:FREE:here 7:other:OTHER:here',
		"$way: unique expressions, and a key that cannot be updated");
	is_same($master, $slave, 'parts', "$way: partitions");
	is(ask($slave, q(SELECT string_agg(concat_ws(':', kind, key, n), ' ') FROM (SELECT tablename, kind, min(key) AS key, count(*) AS n FROM pyreplica_conflicts GROUP BY 1, 2 ORDER BY 1, 2) c)),
		'insert_exists:{1}:2 update_exists:{7}:1 insert_exists:{1}:9', "$way: as conflicts");
}

# --- Rows that were here before are nobody's ---

# As after a restore: what was written here, and late, is what both began with.
on_both($master, $slave, q(CREATE TABLE before (id int PRIMARY KEY, a text)));
log_table($master, 'before');
ask($master, q(INSERT INTO before VALUES (1, 'old'), (2, 'old')));
wait_caught_up($slave);
ask($slave, q(SELECT pyreplica_set_conflict_resolution('before', 'keep_local')));
ask($slave, q(UPDATE before SET a = 'restored'; UPDATE pyreplica_position SET began_at = clock_timestamp()));
$slave->restart;
wait_worker($slave);
ask($slave, q(UPDATE before SET a = 'slave' WHERE id = 2));
ask($master, q(UPDATE before SET a = 'master'));
wait_caught_up($slave);
is(ask($slave, q(SELECT string_agg(a, ' ' ORDER BY id) FROM before)),
	'master slave', 'what was written before the replica began is no conflict');

# --- Retention ---

ask($slave, q(UPDATE pyreplica_conflicts SET at = at - interval '1 hour' WHERE tablename = 'passing'));
my $kept = ask($slave, q(SELECT count(*) FROM pyreplica_conflicts WHERE tablename <> 'passing'));
set_conf($slave, 'pyreplica.conflict_retention = 50min');
$slave->restart;
wait_worker($slave);
ok( poll_until(sub { ask($slave, q(SELECT count(*) FROM pyreplica_conflicts WHERE tablename = 'passing')) eq '0' }),
	'what is too old is deleted');
is(ask($slave, 'SELECT count(*) FROM pyreplica_conflicts'),
	$kept, 'the rest is kept');

# --- Rights ---

ask($slave, 'CREATE ROLE monitor; GRANT pg_monitor TO monitor');
my ($rc, $out, $complaint) = $slave->psql('postgres', 'SET ROLE monitor; SELECT count(*) > 0 FROM pyreplica_conflict_counts; SELECT * FROM pyreplica_conflicts');
is($out, 't', 'who monitors may read counts');
like($complaint, qr/permission denied for table pyreplica_conflicts/, 'but no rows');

done_testing();
