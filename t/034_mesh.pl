# Servers that all follow one another: how such a mesh begins, that everybody
# gets every change once, with triggers that forward and with ordinary ones, and
# how one more joins while all others are written to.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my %node = map { $_ => new_node($_, conf => "max_worker_processes = 20\ntrack_commit_timestamp = on\n") } qw(a b c);
plan skip_all => 'a server cannot follow several masters yet'
  unless $node{a}->safe_psql('postgres', q(SELECT count(*) FROM pg_settings WHERE name = 'pyreplica.replicas'));

# Makes a node follow these masters, with more settings.
sub follow_all
{
	my ($name, $masters, @lines) = @_;
	foreach my $master (@$masters)
	{
		push @lines, conninfo_setting($node{$master}) =~
		  s/pyreplica/pyreplica_${master}_to_$name/r;
	}
	set_conf($node{$name},
		"pyreplica.replicas = '" . join(', ', map { "${_}_to_$name" } @$masters) . "'",
		@lines);
	$node{$name}->poll_query_until('postgres',
		'SELECT count(*) = '
		  . @$masters
		  . q( FROM pyreplica_status WHERE in_step_at IS NOT NULL AND pid <> 0 AND replica ~ '_to_'))
	  or BAIL_OUT("$name does not follow:\n" . status($node{$name}));
	return;
}

sub settle
{
	wait_caught_up($_) for values %node;
	return;
}

sub sum_of
{
	my ($node, $what) = @_;
	return $node->safe_psql('postgres', "SELECT sum($what) FROM pyreplica_status");
}

# Each has applied what the others made, each change once, and all are equal.
my %applied;
my %made;
my %trouble;

sub made_by
{
	my ($name) = @_;
	return $node{$name}->safe_psql('postgres', 'SELECT count(*) FROM replica_log_sql WHERE origin IS NULL');
}

sub count_anew
{
	$applied{$_} = sum_of($node{$_}, 'rows') for keys %node;
	$made{$_}    = made_by($_) for keys %node;
	$trouble{$_} = sum_of($node{$_}, 'conflicts + errors') for keys %node;
	return;
}

sub is_in_step
{
	my ($what, $is_forwarding) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	settle();
	foreach my $name (sort keys %node)
	{
		my $others = 0;
		$others += made_by($_) - $made{$_} for grep { $_ ne $name } keys %node;
		is_same_rows($node{a}, $node{$name}, 't', "$what: a and $name are equal") if $name ne 'a';
		is(sum_of($node{$name}, 'rows') - $applied{$name}, $others, "$what: $name has applied what the others made, once");
		is($node{$name}->safe_psql('postgres', 'SELECT count(*) > 0 FROM replica_log_sql WHERE origin IS NOT NULL'),
			$is_forwarding ? 't' : 'f', "$what: $name has logged it again, or not");
		is(sum_of($node{$name}, 'conflicts + errors') - $trouble{$name}, 0, "$what: without trouble");
	}
	return;
}

my $writes = <<'SQL';
\set id random(1, 100) * 10 + :node
\set what random(1, 8)
BEGIN;
INSERT INTO t AS x (id, a, n) VALUES (:id, 'first', :what) ON CONFLICT (id) DO UPDATE SET n = x.n + 1, a = :what::text;
DELETE FROM t WHERE id = :id AND :what = 1;
COMMIT;
SQL

# --- One that has rows, and two that are new ---

# 1. The tables and triggers are everywhere, and each master knows its slaves.
my @names = qw(a b c);
foreach my $name (@names)
{
	$node{$name}->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, a text, n int)');
	log_table($node{$name}, 't');
	foreach my $slave (grep { $_ ne $name } @names)
	{
		$node{$name}->safe_psql('postgres', "SELECT py_log_add_slave('${name}_to_$slave')");
	}
}

# 2. The new ones copy from the first, where clients are at work.
$node{a}->safe_psql('postgres', q(INSERT INTO t SELECT i * 10 + 5, 'old', 0 FROM generate_series(1, 20000) i));
my $busy = start_looping($node{a}, 'psql', '-c', 'UPDATE t SET n = n + 1 WHERE id % 100 = 15');
follow_all($_, ['a'], "pyreplica_a_to_$_.copy_data = on") for qw(b c);
for my $name (qw(b c))
{
	$node{$name}->poll_query_until('postgres',
		q(SELECT count(*) = 1 FROM pyreplica_tables WHERE state = 'ready'))
	  or BAIL_OUT('the table is not copied');
}

# 3. Then everybody follows everybody, and may be written to.
follow_all('a', [qw(b c)]);
follow_all('b', [qw(a c)]);
follow_all('c', [qw(a b)]);
stop_looping($busy);
settle();
count_anew();
write_at_once($writes, 150, @node{@names});
is_in_step('plain', 0);

# --- All write the same rows, and the later one wins ---

# Each update counts: of two, the one that counts further is the later one, and of
# two that count the same the one of the server with the greater identifier.
my $same_rows = <<'SQL';
\set id random(1, 50)
UPDATE counted SET a = :node || ' was here ' || random(), n = n + 1 WHERE id = :id;
SQL

foreach my $name (@names)
{
	$node{$name}->safe_psql('postgres', 'CREATE TABLE counted (id int PRIMARY KEY, a text, n int)');
	$node{$name}->safe_psql('postgres', q(SELECT pyreplica_set_conflict_resolution('counted', 'last_update_wins', 'n')));
}
log_table($node{$_}, 'counted') for @names;
foreach my $name (@names)
{
	$node{$name}->poll_query_until('postgres',
		q(SELECT count(*) = 2 FROM pyreplica_tables WHERE tablename = 'counted' AND state = 'ready'))
	  or BAIL_OUT('the table is not followed');
}
$node{a}->safe_psql('postgres', q(INSERT INTO counted SELECT i, 'old', 0 FROM generate_series(1, 50) i));
settle();
count_anew();

# First while nobody hears of the others: of some rows each count is another one, of
# others all are the same.
sub enable
{
	my ($value, $state) = @_;
	foreach my $name (@names)
	{
		set_conf($node{$name}, "pyreplica.enabled = $value");
		$node{$name}->poll_query_until('postgres', "SELECT count(*) = 2 FROM pyreplica_status WHERE state = '$state' AND replica ~ '_to_'")
		  or BAIL_OUT("not $state:\n" . status($node{$name}));
	}
	return;
}
enable('off', 'disabled');
foreach my $i (0 .. 2)
{
	$node{ $names[$i] }->safe_psql('postgres', <<"SQL");
INSERT INTO counted SELECT k, '$names[$i] made it', 1 + (k + $i) % 3 FROM generate_series(1001, 1030) k;
UPDATE counted SET a = '$names[$i] was here', n = n + 1 + (id + $i) % 3 WHERE id <= 30;
UPDATE counted SET a = '$names[$i] was here', n = n + 1 WHERE id > 30 AND id <= 50;
SQL
}
enable('on', 'waiting');
settle() for 1 .. 2;
is_same_rows($node{a}, $node{$_}, 'counted', "common rows: a and $_ have come to the same") for qw(b c);

# Then all the time.
write_at_once($same_rows, 300, @node{@names});
settle() for 1 .. 2;
is_same_rows($node{a}, $node{$_}, 'counted', "common rows: a and $_ are equal") for qw(b c);
foreach my $name (@names)
{
	my $conflicts = $node{$name}->safe_psql('postgres',
		q(SELECT string_agg(DISTINCT kind || ' ' || outcome, ', ' ORDER BY kind || ' ' || outcome) FROM pyreplica_conflicts));
	like($conflicts, qr/insert_exists .*insert_exists /, "common rows: $name met inserts of the others, and some won");
	like($conflicts, qr/update_origin_differs applied remote, update_origin_differs kept local/, "common rows: $name met updates of the others, and some won");
	is($node{$name}->safe_psql('postgres', q(SELECT count(*) >= 20 FROM pyreplica_conflicts c
		WHERE kind = 'update_origin_differs' AND c.remote_row ->> 'n' = c.local_row ->> 'n')), 't', "common rows: $name settled many that counted the same");
	my $others = 0;
	$others += made_by($_) - $made{$_} for grep { $_ ne $name } @names;
	cmp_ok(sum_of($node{$name}, 'rows') - $applied{$name}, '<=', $others, "common rows: $name has applied nothing twice");
	is($node{$name}->safe_psql('postgres', 'SELECT count(*) FROM replica_log_sql WHERE origin IS NOT NULL'), '0', "common rows: $name sent nothing back");
}

# --- Triggers that forward ---

foreach my $name (@names)
{
	set_conf($node{$name}, 'pyreplica.enabled = off', 'pyreplica.origin = none');
	$node{$name}->poll_query_until('postgres', q(SELECT count(*) = 2 FROM pyreplica_status WHERE state = 'disabled' AND replica ~ '_to_'));
	forward_table($node{$name}, 't');
}
foreach my $name (@names)
{
	set_conf($node{$name}, 'pyreplica.enabled = on');
	$node{$name}->poll_query_until('postgres', q(SELECT count(*) = 2 FROM pyreplica_status WHERE state = 'waiting' AND replica ~ '_to_'));
}
settle();
count_anew();
write_at_once($writes, 150, @node{@names});
is_in_step('always', 1);

# --- One more joins, from a dump of one, while all are written to ---

$node{d} = new_node('d', conf => "max_worker_processes = 20\n");
$node{d}->safe_psql('postgres', 'DROP EXTENSION pyreplica');
my $file = PostgreSQL::Test::Utils::tempdir() . '/busy.sql';
append_to_file($file, $writes);
my @busy = map { start_looping($node{ $names[$_] }, 'pgbench', '-n', '-c', 1, '-t', 20, '-f', $file, '-D', "node=$_", 'postgres') } 0 .. 2;

# 1. Each master keeps its log for the new one.
$node{$_}->safe_psql('postgres', "SELECT py_log_add_slave('${_}_to_d')") for @names;

# 2. A dump of one of them has its rows, and where it stood in the others' logs.
my $dump = PostgreSQL::Test::Utils::tempdir() . '/a.dump';
$node{a}->command_ok([ 'pg_dump', '-f', $dump, '-d', $node{a}->connstr('postgres') ], 'a dump is taken');
$node{d}->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-1', '-f', $dump, '-d', $node{d}->connstr('postgres') ], 'and restored');
$node{d}->safe_psql('postgres', <<'SQL');
UPDATE pyreplica_position SET replica = replace(replica, '_to_a', '_to_d'), confirmed = NULL;
UPDATE pyreplica_table SET replica = replace(replica, '_to_a', '_to_d');
SQL

# 3. So it goes on from there with all, and they follow it.
follow_all('d', [@names], 'pyreplica.origin = none');
follow_all('a', [qw(b c d)]);
follow_all('b', [qw(a c d)]);
follow_all('c', [qw(a b d)]);
stop_looping($_) for @busy;
settle();
is_same_rows($node{a}, $node{$_}, 't', "joined: a and $_ are equal") for qw(b c d);
count_anew();
write_at_once($writes, 100, @node{qw(a b c d)});
is_in_step('with one more', 1);

done_testing();
