# A master that cannot be reached is ordinary: the worker waits for it, says
# so once, and keeps secrets to itself.  Nothing that goes wrong with a
# connection keeps the slave from listening to its administrator.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IO::Select;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;
use Time::HiRes qw(time usleep);

# The master asks for passwords on 127.0.0.1.
my $password = 'Ohne_Arg_4711';
my $master = new_master('master', conf => "listen_addresses = '127.0.0.1'\n");
$master->safe_psql('postgres', <<"SQL");
SET log_statement = none;
CREATE ROLE replicator LOGIN PASSWORD '$password';
SET password_encryption = md5;
CREATE ROLE old_replicator LOGIN PASSWORD '$password';
SELECT py_log_grant('replicator'), py_log_grant('old_replicator');
CREATE TABLE t (id int PRIMARY KEY, a text);
SQL
log_table($master, 't');
unlink($master->data_dir . '/pg_hba.conf');
$master->append_conf('pg_hba.conf', <<'HBA');
local all all trust
host all old_replicator 127.0.0.1/32 md5
host all all 127.0.0.1/32 scram-sha-256
HBA
my $port = $master->port;
$master->stop;

sub conninfo
{
	my (%option) = @_;
	%option = (
		host     => '127.0.0.1',
		port     => $port,
		dbname   => 'postgres',
		user     => 'replicator',
		password => $password,
		%option);
	return "pyreplica.master_conninfo = '"
	  . join(' ',
		map  { "$_=$option{$_}" }
		grep { defined $option{$_} } sort keys %option)
	  . "'";
}

my $here;

# A slave that is there before its master.

my $slave = new_slave(
	$master, 'slave',
	start => 0,
	conf  => "log_min_messages = debug1\n" . conninfo());
$slave->start;
ok(wait_status($slave, q(state = 'master away' AND pid IS NOT NULL)),
	'a slave without master waits for it');
$slave->safe_psql('postgres', 'CREATE TABLE t (id int PRIMARY KEY, a text)');
ok(wait_status($slave, 'errors >= 3'), 'and tries again and again');
is(count_log($slave, 0, qr/the master is away/), 1, 'but says so only once');
like(status_value($slave, 'last_error'),
	qr/refused/, 'the reason is in pyreplica_status');

$master->start;
$master->safe_psql('postgres', q(INSERT INTO t VALUES (1, 'first')));
wait_worker($slave);
wait_caught_up($slave);
is_same($master, $slave, 't', 'when the master comes, its rows come');
is(count_log($slave, 0, qr/the master is back after \d+ s/),
	1, 'that is said once, too');

# A master that goes and comes back.

my $worker = status_value($slave, 'pid');
$here = log_position($slave);
$master->stop('fast');
ok(wait_status($slave, q(state = 'master away')), 'the master is seen to go');
my $tries = status_value($slave, 'errors');
ok(wait_status($slave, "errors >= $tries + 3"), 'the worker tries again');
$master->start;
$master->safe_psql('postgres', q(INSERT INTO t VALUES (2, 'second')));
wait_caught_up($slave);
is_same($master, $slave, 't', 'and goes on when the master is back');
is(status_value($slave, 'pid'),
	$worker, 'all that is one and the same worker');
my @away   = log_since($slave, $here) =~ /the master is away: (.*)/g;
my %reason = map { $_ => 1 } @away;
is(scalar(@away), scalar(keys %reason), 'no reason is told twice');
cmp_ok(scalar(@away), '<=', 3,
	'it goes, it is gone, it is starting: there are no more reasons')
  or diag(join("\n", @away));
is(count_log($slave, $here, qr/the master is back/),
	1, 'the master is back once');

# Where the password is seen: nowhere.

my $old_rows = content($slave, 't');
$slave->safe_psql('postgres', 'CREATE ROLE ordinary LOGIN');
$master->safe_psql('postgres', 'CREATE ROLE ordinary LOGIN');

sub ask_as_ordinary
{
	my ($node, $sql) = @_;
	my ($rc, $out, $err) =
	  $node->psql('postgres', $sql, extra_params => [ '-U', 'ordinary' ]);
	return "$out$err";
}

sub is_secret
{
	my ($text, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @found = grep { /\Q$password\E/ } split(/\n/, $text);
	return ok(!@found, $name) || diag(join("\n", @found));
}

is_secret(slurp_file($slave->logfile),  "no password in the slave's log");
is_secret(slurp_file($master->logfile), "no password in the master's log");
is_secret($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_status'),
	'nor in pyreplica_status');
like(
	status_value($slave, 'master'),
	qr/host=127\.0\.0\.1 port=$port dbname=postgres user=replicator/,
	'which shows the rest of the connection string');
for my $node ($master, $slave)
{
	is_secret($node->safe_psql('postgres', 'SELECT * FROM pg_stat_activity'),
		'nor in pg_stat_activity of the ' . $node->name);
}
is_secret(
	ask_as_ordinary(
		$slave,
		'SELECT * FROM pg_settings; SELECT * FROM pg_stat_activity; SHOW ALL'
	),
	'nor in what an ordinary user can see of the settings');
unlike(ask_as_ordinary($slave, 'SHOW pyreplica.master_conninfo'),
	qr/host=/, 'who cannot read the connection string at all');
my $processes = '';
foreach my $file (glob('/proc/[0-9]*/cmdline'))
{
	local $/;
	open(my $handle, '<', $file) or next;    # it has ended
	$processes .= (<$handle> // '') . "\n";
}
like($processes, qr/pyreplica worker/, 'a list of processes shows the worker');
is_secret($processes, 'and no password');

# Things that are wrong with the connection string.  Each is told clearly, the
# worker does not fall into a frenzy, and the server stays up.

set_conf($slave, 'pyreplica.retry_interval_max = 500ms');

sub is_told
{
	my ($name, $setting, $pattern) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	my $from = log_position($slave);
	set_conf($slave, $setting);
	my $told = poll_until(
		sub { (status_value($slave, 'last_error') // '') =~ $pattern }, 30);
	ok($told, "$name: told in pyreplica_status")
	  or diag(status_value($slave, 'row_to_json(pyreplica_status)'));

	# observed for a while: only the first of several tries is logged
	my $errors = status_value($slave, 'errors');
	poll_until(sub { status_value($slave, 'errors') >= $errors + 2 }, 1.2);
	my $log = log_since($slave, $from);
	like($log, $pattern, "$name: and in the server's log");
	my @lines = grep { /LOG:  pyreplica.*$pattern/ } split(/\n/, $log);
	is(scalar(@lines), 1, "$name: where it is not repeated")
	  or diag(join("\n", @lines));
	return;
}

is_told(
	'wrong password',
	conninfo(password => 'wrong'),
	qr/password authentication failed for user "replicator"/);
is_told(
	'wrong password (md5)',
	conninfo(user => 'old_replicator', password => 'wrong'),
	qr/password authentication failed for user "old_replicator"/);
is_told(
	'unknown role',
	conninfo(user => 'nobody'),
	qr/authentication failed for user "nobody"/);
is_told('no password', conninfo(password => undef), qr/no password supplied/);
is_told(
	'unknown database',
	conninfo(dbname => 'nowhere') . "\npyreplica.database = 'postgres'",
	qr/database "nowhere" does not exist/);
is_told(
	'unresolvable host',
	conninfo(host => 'no-such-host.invalid'),
	qr/could not translate host name "no-such-host\.invalid"/);
is_told(
	'unknown option',
	conninfo(colour => 'blue'),
	qr/invalid connection option/);

# So far a database was named for it; without, already the launcher sees it.
is_told(
	'unknown option, seen by the launcher',
	conninfo(sort => 'odd') . "\npyreplica.database = ''",
	qr/pyreplica\.master_conninfo: invalid connection option/);
is_told(
	'garbage',
	"pyreplica.master_conninfo = 'once upon a time'",
	qr/pyreplica\.master_conninfo: missing "[^"]*" after/);
is_told(
	'no database',
	"pyreplica.master_conninfo = 'host=127.0.0.1'",
	qr/pyreplica\.master_conninfo names no database/);
my $half =
  "pyreplica.master_conninfo = 'postgresql://replicator:$password\@[127.0.0.1/postgres'";
is_told('half a URI', $half, qr/pyreplica\.master_conninfo: .*URI/);
my $at_worker = log_position($slave);
set_conf($slave, "pyreplica.database = 'postgres'");
ok(wait_log($slave, $at_worker, qr/the master is away: .*URI/),
	'half a URI, seen by the worker');
is_secret(
	status_value($slave, 'last_error') . "\n"
	  . join("\n",
		grep { !/LOG:  parameter "/ }
		  split(/\n/, slurp_file($slave->logfile))),
	'what is wrong with a connection string is told without the password');

unlike(
	slurp_file($slave->logfile),
	qr/server process|was terminated|PANIC/,
	'nothing of this is a crash');

set_conf($slave,
	conninfo(user => 'old_replicator') . "\npyreplica.database = ''");
ok( wait_status($slave, q(state = 'waiting')),
	'with the right one (md5) it goes on');
is(content($slave, 't'), $old_rows, 'the rows were left alone');

# The server logs settings that a reload changes, with their values.
is_secret(slurp_file($slave->logfile),
	'not even a reload writes the password to the log');
is_secret(slurp_file($master->logfile), "nor anything to the master's");

# URI and password file.
my $passfile = PostgreSQL::Test::Utils::tempdir() . '/passfile';
append_to_file($passfile, "127.0.0.1:$port:postgres:replicator:$password\n");
chmod(0600, $passfile) or die;
set_conf($slave,
	"pyreplica.master_conninfo = 'postgresql://replicator\@127.0.0.1:$port/postgres?passfile=$passfile'"
);
$master->safe_psql('postgres', q(INSERT INTO t VALUES (3, 'third')));
ok( wait_status($slave, q(state = 'waiting' AND master ~ 'user=replicator')),
	'a URI and a password file work');
wait_caught_up($slave);
is_same($master, $slave, 't', 'and bring rows');

# Pauses grow.  A listener that hangs up at once sees when it is called.

my ($listener, $listener_port) = black_hole();
my @calls;
$here = log_position($slave);
set_conf(
	$slave,
	'pyreplica.retry_interval_max = 1500ms',
	conninfo(port => $listener_port, sslmode => 'disable'));
my $select = IO::Select->new($listener);
while (@calls < 5 && $select->can_read(20))
{
	push @calls, time();
	$listener->accept->close;
}
my @pauses = map { $calls[$_] - $calls[ $_ - 1 ] } (1 .. $#calls);
note('pauses: ' . join(', ', map { sprintf('%.2f', $_) } @pauses));
is(scalar(@pauses), 4, 'a master that hangs up is called again');
my @expected = (0.5, 1, 1.5, 1.5);
ok( !(  grep { !defined $pauses[$_] || $pauses[$_] < $expected[$_] * 0.9 }
		(0 .. 3)),
	'after a pause that grows');
cmp_ok((sort { $a <=> $b } @pauses)[-1], '<', 4, 'up to its limit');
is(count_log($slave, $here, qr/the master is away/),
	1, 'all this is one line in the log');
close($listener);

# Nobody there for long: the pause is long, but a reload ends it.

set_conf(
	$slave,
	'pyreplica.retry_interval_max = 10min',
	conninfo(port => $listener_port));
ok( wait_status($slave, q(state = 'master away' AND last_error ~ 'refused')),
	'nobody listens there any more');
my $errors = status_value($slave, 'errors');
wait_status($slave, "errors >= $errors + 2");
set_conf($slave, conninfo());
cmp_ok(seconds_of(sub { wait_status($slave, q(state = 'waiting')) }),
	'<', 3, 'a reload ends the pause');

# A black hole takes the call and says nothing.  The worker hangs on the line,
# but not deaf to us.

my ($hole, $hole_port) = black_hole();
set_conf($slave, conninfo(port => $hole_port, connect_timeout => 120));
ok(wait_status($slave, q(state = 'connecting')),
	'a master that says nothing');
ok(stays_true(sub { status_value($slave, 'state') eq 'connecting' }, 1),
	'the worker waits for it');
set_conf($slave, conninfo());
cmp_ok(seconds_of(sub { wait_status($slave, q(state = 'waiting')) }),
	'<', 3, 'a reload with the right master connects at once');

set_conf($slave, conninfo(port => $hole_port, connect_timeout => 120));
wait_status($slave, q(state = 'connecting'));
cmp_ok(seconds_of(sub { $slave->stop('fast') }),
	'<', 5, 'a shutdown does not wait for a master that says nothing');

$slave->append_conf('postgresql.conf',
	conninfo(port => $hole_port, connect_timeout => 2));
$here = log_position($slave);
$slave->start;
ok( wait_status(
		$slave, q(state = 'master away' AND last_error ~ 'timeout'), 30),
	'connect_timeout ends the call');

# Nor do we wait for a master that falls silent later.

set_conf($slave, conninfo());
ok(wait_status($slave, q(state = 'waiting')), 'connected');
$worker = status_value($slave, 'pid');
cmp_ok(seconds_of(sub { $slave->stop('fast') }),
	'<', 5, 'a shutdown does not wait for an idle worker');
$slave->start;
ok(wait_status($slave, q(state = 'waiting')), 'connected again');

my $served_by = master_pid($master);
kill('STOP', $served_by);
is( $slave->safe_psql(
		'postgres', q(SELECT pyreplica_wait(timeout => '500ms'))),
	'f',
	'the master is asked and does not answer');
cmp_ok(seconds_of(sub { $slave->stop('fast') }),
	'<', 5, 'a shutdown does not wait for the answer');
kill('CONT', $served_by);

$master->safe_psql('postgres', q(INSERT INTO t VALUES (4, 'fourth')));
$slave->start;
wait_worker($slave);
wait_caught_up($slave);
is_same($master, $slave, 't', 'after all this, nothing is missing');

done_testing();
