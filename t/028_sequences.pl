# Sequences follow the master's: always a little ahead, so that the slave can take
# its place at any moment, and exactly when that is planned.  Several masters
# make different values.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $master = new_master('master');
$master->safe_psql('postgres', 'CREATE ROLE replicator LOGIN; SELECT py_log_grant($$replicator$$)');
my $schema = <<'SQL';
CREATE SCHEMA other;
CREATE SEQUENCE other.shared;
CREATE TABLE by_serial (id serial PRIMARY KEY, n int);
CREATE TABLE by_identity (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int);
CREATE TABLE by_default (id int PRIMARY KEY DEFAULT nextval('other.shared'), n int);
CREATE TABLE down (id int PRIMARY KEY, n int);
CREATE SEQUENCE descends INCREMENT -2 MINVALUE -100000 MAXVALUE -1 START -1 OWNED BY down.n;
CREATE TABLE small (id int PRIMARY KEY, n smallserial);
CREATE TABLE other_steps (id serial PRIMARY KEY, n int);
CREATE TABLE not_logged (id serial PRIMARY KEY, n int);
SQL
$master->safe_psql('postgres', $schema . 'CREATE TABLE master_only (id serial PRIMARY KEY, n int);');
my @tables = qw(by_serial by_identity by_default down small other_steps);
log_table($master, @tables, 'master_only');

my $slave = new_slave($master, 'slave', conf => conninfo_setting($master, 'user=replicator'));
$slave->safe_psql('postgres', $schema . 'CREATE TABLE master_only (id int PRIMARY KEY, n int); ALTER SEQUENCE other_steps_id_seq INCREMENT 7');
wait_worker($slave);

my %sequence = (
	by_serial   => 'by_serial_id_seq',
	by_identity => 'by_identity_id_seq',
	by_default  => 'other.shared',
	down        => 'descends',
	small       => 'small_n_seq');

sub value
{
	my ($node, $sequence) = @_;
	return $node->safe_psql('postgres', "SELECT last_value FROM $sequence");
}

# Whether a sequence is ahead of the master's, by so much at most and at least.
sub is_ahead
{
	my ($sequence, $least, $most) = @_;
	my $ahead = abs(value($slave, $sequence)) - abs(value($master, $sequence));
	return $ahead >= $least && $ahead <= $most;
}

# --- Ahead ---

my $insert = <<'SQL';
INSERT INTO by_serial (n) SELECT generate_series(1, 10);
INSERT INTO by_identity (n) SELECT generate_series(1, 10);
INSERT INTO by_default (n) SELECT generate_series(1, 10);
INSERT INTO down SELECT nextval('descends'), i FROM generate_series(1, 10) i;
INSERT INTO small SELECT coalesce(max(id), 0) + 1 FROM small;
INSERT INTO other_steps (n) VALUES (1);
INSERT INTO master_only (n) VALUES (1);
INSERT INTO not_logged (n) VALUES (1);
SQL
$master->safe_psql('postgres', $insert);
wait_caught_up($slave);
foreach my $table (sort keys %sequence)
{
	my $most = $table eq 'down' ? 2000 : 1000;
	ok(poll_until(sub { is_ahead($sequence{$table}, $most / 2, $most) }), "the sequence of $table is ahead");
}
is(value($slave, 'not_logged_id_seq'), '1', 'that of a table that is not replicated is not');
is(value($slave, 'other_steps_id_seq'), '1', 'nor one that makes other values than the master\'s');
is(count_log($slave, 0, qr/DETAIL:  .*other_steps_id_seq makes other values/), 1, 'which is told once');
like(slurp_file($slave->logfile), qr/DETAIL:  public\.master_only_id_seq does not exist on the slave\. public\.other_steps_id_seq makes other values than on the master\./, 'with the reasons');

# A few more values change nothing, many do.  And it does not go back, not even if
# somebody used it here.
my $before = value($slave, 'by_serial_id_seq');
$slave->safe_psql('postgres', q(SELECT setval('by_identity_id_seq', 100000)));
$master->safe_psql('postgres', $insert);
wait_caught_up($slave);
ok(stays_true(sub { value($slave, 'by_serial_id_seq') eq $before && value($slave, 'by_identity_id_seq') eq '100000' }, 6),
	'as long as it is ahead enough it stays, and never goes back');
$master->safe_psql('postgres', 'INSERT INTO by_serial (n) SELECT generate_series(1, 5000)');
ok(poll_until(sub { is_ahead('by_serial_id_seq', 500, 1000) }, 30), 'but not longer');

# Bounds are kept.
$master->safe_psql('postgres', q(SELECT setval('small_n_seq', 32700); INSERT INTO small VALUES (1000)));
ok(poll_until(sub { value($slave, 'small_n_seq') eq '32767' }, 30), 'nor past its bounds');

# --- Exactly ---

is($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_sync_sequences()'), <<'ROWS' =~ s/\n$//r, 'exact values, and why some were left alone');
other.shared|20|
public.by_identity_id_seq|20|
public.by_serial_id_seq|5020|
public.descends|-39|
public.master_only_id_seq||does not exist on the slave
public.other_steps_id_seq||makes other values than on the master
public.small_n_seq|32701|
ROWS
$slave->safe_psql('postgres', 'INSERT INTO by_identity (n) VALUES (-1)');
is($slave->safe_psql('postgres', 'SELECT id FROM by_identity WHERE n = -1'), '21', 'the slave goes on where the master was');
$slave->safe_psql('postgres', 'DELETE FROM by_identity WHERE n = -1');

# One that was never used, or was reset, is so here.
$master->safe_psql('postgres', q(ALTER SEQUENCE other.shared RESTART; SELECT setval('descends', -77, false)));
$slave->safe_psql('postgres', q(SELECT pyreplica_sync_sequences('postgres')));
is($slave->safe_psql('postgres', q(SELECT last_value, is_called FROM other.shared)), '1|f', 'one that begins anew');
is($slave->safe_psql('postgres', q(SELECT nextval('descends'))), '-77', 'one whose next value was given');

$master->safe_psql('postgres', q(SELECT setval('other.shared', 20)));

# One that is locked on the master holds nobody up.
my $session = $master->background_psql('postgres');
$session->query_safe('SET client_min_messages = warning; BEGIN; DROP SEQUENCE by_serial_id_seq CASCADE');
like($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_sync_sequences()'),
	qr/^public\.by_serial_id_seq\|\|cannot be read on the master now$/m, 'one that is locked on the master');
$session->query_safe('ROLLBACK');
$session->quit;

like(($slave->psql('postgres', q(SELECT pyreplica_sync_sequences('nobody'))))[2], qr/replica "nobody" does not exist/, 'of a replica that there is not');
like(($slave->psql('postgres', q(BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pyreplica_sync_sequences()))) [2],
	qr/cannot be used in a transaction of isolation level repeatable read/, 'where it could not be seen');
$slave->safe_psql('postgres', 'SELECT pyreplica_sync_sequences() FROM generate_series(1, 3)');
is(status_value($slave, 'errors'), '0', 'no error so far');

# --- Not at all ---

set_conf($slave, 'pyreplica.sequence_margin = 0');
poll_until(sub { $slave->safe_psql('postgres', 'SHOW pyreplica.sequence_margin') eq '0' });
$slave->safe_psql('postgres', 'SELECT pyreplica_sync_sequences()');
$before = value($slave, 'other.shared');
$master->safe_psql('postgres', $insert);
wait_caught_up($slave);
ok(stays_true(sub { value($slave, 'other.shared') eq $before }, 6), 'sequences are left alone if told so');
set_conf($slave, 'pyreplica.sequence_margin = 50');
$master->safe_psql('postgres', $insert);
ok(poll_until(sub { is_ahead('other.shared', 25, 50) }, 30), 'or less ahead');

# --- Several masters ---

# The slave logs some tables, too: it may become a master of them.
$slave->safe_psql('postgres', q(SELECT py_log_create_tg('by_identity')));
$master->safe_psql('postgres', 'INSERT INTO by_identity (n) SELECT generate_series(1, 1000)');
ok(poll_until(sub { value($slave, 'by_identity_id_seq') >= value($master, 'by_identity_id_seq') }, 30), 'a sequence of a table that is logged here as well follows');
is(value($slave, 'by_identity_id_seq'), value($master, 'by_identity_id_seq'), 'but is not ahead: two that follow one another would run away');

$slave->safe_psql('postgres', q(SELECT py_log_create_tg(t) FROM unnest('{by_serial,by_default,down,small,other_steps}'::text[]) t));
$slave->safe_psql('postgres', 'ALTER SEQUENCE other_steps_id_seq INCREMENT 1; INSERT INTO by_serial VALUES (200001)');
like(($master->psql('postgres', 'SELECT py_log_interleave_sequences(3, 2)'))[2], qr/node 3 of 2 nodes does not exist/, 'a node that there is not');
my $last = value($master, 'by_serial_id_seq');
my $interleaved = $master->safe_psql('postgres', 'SELECT * FROM py_log_interleave_sequences(1, 2)');
like($interleaved, qr/^public\.by_serial_id_seq\|2\|(\d+)\|$/m, 'a sequence makes every other value');
like($interleaved, qr/^public\.descends\|-2\|\|left alone: it descends$/m, 'one that descends is left alone');
like($interleaved, qr/^public\.small_n_seq\|1\|\|left alone: it has not enough values left$/m, 'so is one that is nearly used up');
$slave->safe_psql('postgres', 'SELECT * FROM py_log_interleave_sequences(2, 2)');
my @from = map {
	my $node = $_;
	[ split(/\n/, $node->safe_psql('postgres', q(SELECT nextval('by_serial_id_seq') FROM generate_series(1, 5)))) ];
} ($master, $slave);
is(join(' ', map { $_ % 2 } map { @$_ } @from), '1 1 1 1 1 0 0 0 0 0', 'one master makes the odd ones, the other the even ones');
cmp_ok($from[0][0], '>', $last, 'they are new on the one');
cmp_ok($from[1][0], '>', 200001, 'and on the other, whose table has more rows');
is($from[0][4] - $from[0][0], '8', 'in steps of two');

# Called again it changes nothing; with another number of nodes it does.
$before = value($master, 'by_serial_id_seq');
like($master->safe_psql('postgres', 'SELECT * FROM py_log_interleave_sequences(1, 2)'),
	qr/^public\.by_serial_id_seq\|2\|@{[ $before + 2 ]}\|as before$/m, 'once more, as before');
is($master->safe_psql('postgres', q(SELECT nextval('by_serial_id_seq'))), $before + 2, 'and it goes on');
like($master->safe_psql('postgres', 'SELECT * FROM py_log_interleave_sequences(1, 3)'),
	qr/^public\.by_serial_id_seq\|2\|\|left alone: it makes steps of 2; if that is because there were 2 nodes, give nodes_before => 2$/m,
	'steps that somebody wanted are not touched');
like($master->safe_psql('postgres', 'BEGIN; SELECT * FROM py_log_interleave_sequences(1, 3, nodes_before => 2); ROLLBACK'),
	qr/^public\.by_serial_id_seq\|3\|\d+\|$/m, 'but those of fewer nodes are');

# Neither takes the other's.
$before = value($slave, 'by_serial_id_seq');
$master->safe_psql('postgres', q(SELECT setval('by_serial_id_seq', 900001); INSERT INTO by_serial (n) VALUES (1)));
wait_caught_up($slave);
ok(stays_true(sub { value($slave, 'by_serial_id_seq') eq $before }, 6), 'interleaved sequences do not follow one another');
like($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_sync_sequences()'),
	qr/^public\.by_serial_id_seq\|\|makes other values than on the master$/m, 'not even if asked for exact values');
is(value($slave, 'by_serial_id_seq'), $before, 'which would be the other\'s');

# --- The master is gone ---

$slave->safe_psql('postgres', q(SELECT py_log_drop_tg('by_default')));
$slave->safe_psql('postgres', q(ALTER SEQUENCE other.shared INCREMENT 1 START 1));
$master->safe_psql('postgres', q(ALTER SEQUENCE other.shared INCREMENT 1 START 1));
$slave->safe_psql('postgres', 'SELECT pyreplica_sync_sequences()');
$master->safe_psql('postgres', 'INSERT INTO by_default (n) VALUES (7)');
wait_caught_up($slave);
ok(poll_until(sub { is_ahead('other.shared', 25, 50) }, 30), 'ahead again');
$master->safe_psql('postgres', 'INSERT INTO by_default (n) VALUES (-8)') for (1 .. 5);
wait_caught_up($slave);
$master->stop('immediate');
wait_status($slave, q(state = 'master away'));
like(($slave->psql('postgres', 'SELECT pyreplica_sync_sequences()'))[2],
	qr/could not set sequences: the state of the replica is "master away"/, 'a master that is gone cannot be asked');
$slave->safe_psql('postgres', 'INSERT INTO by_default (n) SELECT generate_series(1, 10)');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM by_default WHERE n = -8'), '5', 'the slave takes over, and no value comes twice');

done_testing();
