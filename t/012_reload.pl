# Every setting takes effect on reload, and none of them lets a slave mix up
# what it has.  A slave that is promoted from a standby, or whose database
# comes later, needs nobody to start its worker.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $master = new_master('master');
my $other  = new_master('other');
my $slave  = new_slave(
	$master, 'slave',
	streaming => 1,
	conf      => "max_connections = 20\n");
wait_worker($slave);

for my $node ($master, $other, $slave)
{
	$node->safe_psql('postgres', <<'SQL');
CREATE TABLE t (id int PRIMARY KEY, a text);
CREATE TABLE tt (id1 int, id2 int, a text, PRIMARY KEY (id1, id2));
SQL
	log_table($node, 't', 'tt') if $node != $slave;
}
$master->safe_psql('postgres', q(INSERT INTO t VALUES (1, 'master')));
$other->safe_psql('postgres',
	q(INSERT INTO t VALUES (1, 'other'), (2, 'other')));
wait_caught_up($slave);
my $worker = status_value($slave, 'pid');

sub workers
{
	return $slave->safe_psql('postgres',
		q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pyreplica worker')
	);
}

# Another string for the same master.

my $served_by = master_pid($master);
my $here      = log_position($slave);
set_conf($slave, conninfo_setting($master, 'connect_timeout=7'));
ok( poll_until(
		sub {
			my $pid = master_pid($master);
			return $pid ne '' && $pid ne $served_by;
		}),
	'another connection string makes another connection');
ok(wait_status($slave, q(state = 'waiting')), 'which works');
is(status_value($slave, "pid || ' ' || errors"),
	"$worker 0", 'with the same worker, and without an error');
$master->safe_psql('postgres', q(INSERT INTO t VALUES (2, 'after')));
wait_caught_up($slave);
is_same($master, $slave, 't', 'rows go on to come');

$served_by = master_pid($master);
$slave->reload;
$master->safe_psql('postgres', q(INSERT INTO t VALUES (3, 'still')));
wait_caught_up($slave);
is(master_pid($master), $served_by,
	'a reload that changes nothing leaves the connection alone');

# Another master: its rows do not belong here.

set_conf($slave, conninfo_setting($other));
ok( wait_status(
		$slave,
		q(state = 'error' AND last_error ~ 'this is another master than the one slave "postgres" replicated from')
	),
	'another master is refused');
like(
	log_since($slave, $here),
	qr/HINT:  If pyreplica\.master_conninfo points to the right server, /,
	'with a way out');
wait_status($slave, 'errors >= 3');
is_same($master, $slave, 't', 'and none of its rows came in');
is($other->safe_psql('postgres', 'SELECT count(*) FROM replica_slave'),
	'0', 'nor did it take the slave on');

$master->safe_psql('postgres', q(INSERT INTO t VALUES (4, 'meanwhile')));
set_conf($slave, conninfo_setting($master));
ok( wait_status($slave, q(state = 'waiting')),
	'back at the right master, it resumes at once');
wait_caught_up($slave);
is_same($master, $slave, 't', 'where it left off');

# A pause.

set_conf($slave, 'pyreplica.enabled = off');
ok(wait_status($slave, q(state = 'disabled' AND pid IS NULL)),
	'enabled = off ends the worker');
is(workers(), '0', 'really');
ok(poll_until(sub { master_pid($master) eq '' }), 'and its connection');
$master->safe_psql('postgres', q(INSERT INTO t VALUES (5, 'paused')));
is( $slave->safe_psql(
		'postgres', q(SELECT pyreplica_wait(timeout => '300ms'))),
	'f',
	'a paused replica does not claim to be up to date');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM t WHERE id = 5'),
	'0', 'nothing comes');
set_conf($slave, 'pyreplica.enabled = on');
ok(wait_status($slave, q(state = 'waiting')), 'enabled = on resumes');
wait_caught_up($slave);
is_same($master, $slave, 't', 'with what there was meanwhile');

# No master at all.

set_conf($slave, q(pyreplica.master_conninfo = ''));
ok( poll_until(
		sub {
			$slave->safe_psql('postgres',
				'SELECT count(*) FROM pyreplica_status') eq '0';
		}),
	'without connection string there is no replica');
is(workers(), '0', 'and no worker');
like(
	($slave->psql('postgres', 'SELECT pyreplica_wait()'))[2],
	qr/this server has no replica/,
	'nothing to wait for');
$master->safe_psql('postgres', q(INSERT INTO t VALUES (6, 'off')));
set_conf($slave, conninfo_setting($master));
wait_worker($slave);
wait_caught_up($slave);
is_same($master, $slave, 't', 'with one, there is again');

# What it writes to the log.

$here = log_position($slave);
$master->safe_psql('postgres', q(INSERT INTO tt VALUES (1, 2, 'x')));
wait_caught_up($slave);
unlike(log_since($slave, $here), qr/Executing/, 'changes are not logged');
set_conf($slave, 'pyreplica.log_statements = on');
poll_until(
	sub {
		$slave->safe_psql('postgres', 'SHOW pyreplica.log_statements') eq
		  'on';
	});
wait_caught_up($slave);
$master->safe_psql('postgres', q(UPDATE tt SET a = '123' WHERE id1 = 1));
$master->safe_psql('postgres', q(DELETE FROM tt));
wait_caught_up($slave);
my $log = log_since($slave, $here);
like(
	$log,
	qr/LOG:  pyreplica postgres: Executing: UPDATE public\.tt SET a='123' WHERE id1='1' AND id2='2'$/m,
	"log_statements = on: in PyReplica's words");
like(
	$log,
	qr/LOG:  pyreplica postgres: Executing: DELETE FROM public\.tt WHERE id1='1' AND id2='2'$/m,
	'deletes, too');
set_conf($slave, 'pyreplica.log_statements = off');
$here = log_position($slave);
set_conf($slave, 'log_min_messages = debug1', 'pyreplica.keepalive = 1s');
ok( wait_log(
		$slave,                                           $here,
		qr/pyreplica postgres: Timeout \('keepalive'\)!/, 10),
	'keepalive is counted from the reload on, and told at debug1');
like(
	log_since($slave, $here),
	qr/pyreplica postgres: Waiting for 'NOTIFY'/,
	'as is the sleep before it');
set_conf($slave, 'log_min_messages = warning', 'pyreplica.keepalive = 60s');

# Who may know how the master is reached.

$slave->safe_psql('postgres', 'CREATE ROLE ordinary LOGIN');
my ($rc, $out, $err) =
  $slave->psql('postgres', <<'SQL', extra_params => [ '-U', 'ordinary' ]);
SELECT setting FROM pg_settings WHERE name = 'pyreplica.master_conninfo';
SELECT * FROM pyreplica_status;
SHOW pyreplica.master_conninfo;
SQL
is($out, '', 'an ordinary user sees nothing of the connection');
like($err, qr/denied|must be superuser/, 'and is told so');
like($slave->safe_psql('postgres', 'SHOW pyreplica.master_conninfo'),
	qr/host=/, 'a superuser may read it');

# libpq is where it is needed, and nowhere else.

SKIP:
{
	skip 'no /proc here', 8 unless -r '/proc/self/maps';

	my $has_libpq = sub {
		my ($pid) = @_;
		return scalar(slurp_file("/proc/$pid/maps") =~ /libpq\.so/);
	};
	my $has_pyreplica = sub {
		my ($pid) = @_;
		return scalar(slurp_file("/proc/$pid/maps") =~ /\/pyreplica\.so/);
	};

	chomp(my $libdir = $slave->config_data('--pkglibdir'));
	unlike(
		`ldd $libdir/pyreplica.so`,
		qr/libpq/,
		'the extension is not linked with libpq');

	my ($postmaster) =
	  slurp_file($slave->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	ok($has_pyreplica->($postmaster), "the slave's postmaster has pyreplica");
	ok(!$has_libpq->($postmaster),    'but no libpq');

	my $reader = $slave->background_psql('postgres');
	$reader->query_safe(
		q(SELECT state FROM pyreplica_status; SELECT pyreplica_wait()));
	ok(!$has_libpq->($reader->query_safe('SELECT pg_backend_pid()')),
		'nor have the sessions of the slave');
	$reader->quit;

	my $writer = $master->background_psql('postgres');
	$writer->query_safe(q(INSERT INTO t VALUES (7, 'written')));
	my $pid = $writer->query_safe('SELECT pg_backend_pid()');
	ok($has_pyreplica->($pid), 'a writer on the master has pyreplica');
	ok(!$has_libpq->($pid),    'but no libpq');
	$writer->quit;

	my ($main) =
	  slurp_file($master->data_dir . '/postmaster.pid') =~ /^(\d+)/;
	ok(!$has_pyreplica->($main), "the master's postmaster has nothing of us");

	ok($has_libpq->(status_value($slave, 'pid')),
		'only the worker has, of course');
}

# A standby of the slave does nothing until it is promoted.

wait_caught_up($slave);
$slave->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($slave, 'backup', has_streaming => 1);
$standby->start;
$master->safe_psql('postgres', q(INSERT INTO t VALUES (8, 'streamed')));
wait_caught_up($slave);

# What the worker commits is flushed a little later, and streamed only then.
ok( $standby->poll_query_until(
		'postgres', 'SELECT EXISTS (SELECT FROM t WHERE id = 8)'),
	'what is applied reaches a standby of the slave');
is_same($master, $standby, 't', 'a standby of the slave has its rows');
is( $standby->safe_psql(
		'postgres',
		q(SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'pyreplica')
	),
	'0',
	'and no worker');
$slave->stop;
$master->safe_psql('postgres', q(INSERT INTO t VALUES (9, 'without slave')));
$standby->promote;
cmp_ok(seconds_of(sub { wait_status($standby, q(state = 'waiting')) }),
	'<', 3, 'promoted, it has a worker at once');
$master->safe_psql('postgres', q(INSERT INTO t VALUES (10, 'promoted')));
wait_caught_up($standby);
is_same($master, $standby, 't', 'that goes on where the slave stood');

# A database that comes later.

$master->safe_psql('postgres', q(SELECT py_log_add_slave('later')));
$master->safe_psql('postgres', q(INSERT INTO t VALUES (11, 'for later')));
$here = log_position($standby);
set_conf($standby, "pyreplica.database = 'later'", 'log_min_messages = log');
ok( wait_status(
		$standby,
		q(state = 'no database' AND replica = 'later' AND errors = 0)),
	'a database that does not exist is waited for');
my $waiting = qr/pyreplica: waiting for database "later" to be created/;
ok(wait_log($standby, $here, $waiting), 'the log says so');
ok(stays_true(sub { count_log($standby, $here, $waiting) == 1 }, 2.5),
	'once');
$standby->safe_psql('template1',
	'CREATE TABLE t (id int PRIMARY KEY, a text)');
$standby->safe_psql('postgres', 'CREATE DATABASE later TEMPLATE template1');
ok( poll_until(
		sub {
			$standby->safe_psql('later',
				q(SELECT count(*) FROM pg_extension WHERE extname = 'pyreplica')
			) eq '1';
		}),
	'when it is created, it gets the extension');
ok(wait_status($standby, q(state = 'waiting'), undef, 'later'),
	'and its worker');
$standby->safe_psql('later', 'SELECT pyreplica_wait()');
is( content($standby, 't', 'later'),
	'(11,"for later")',
	'which brings rows there');
is(status_value($standby, 'database', 'later'),
	'later', 'pyreplica_status tells the database');

done_testing();
