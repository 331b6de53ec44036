
=pod

=head1 NAME

PyreplicaTest - a master, a slave, and what the tests do with them

=head1 SYNOPSIS

    use lib 't/lib';
    use PyreplicaTest;

    my ($master, $slave) = new_pair();
    on_both($master, $slave, 'CREATE TABLE t (id int PRIMARY KEY, a text)');
    log_table($master, 't');
    $master->safe_psql('postgres', q(INSERT INTO t VALUES (1, 'one')));
    wait_caught_up($slave);
    is_same($master, $slave, 't', 'the row has crossed');

=cut

package PyreplicaTest;

use strict;
use warnings;

use Exporter 'import';
use File::Path qw(rmtree);
use IO::Socket::INET;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(
  new_pair new_master new_slave conninfo_setting
  on_both log_table wait_caught_up is_same content
  log_since log_position wait_log poll_until wait_worker status
  set_conf status_value wait_status replica_value wait_replica seconds_of is_same_rows count_log
  master_pid restore_cold black_hole stays_true
  start_looping start_watching stop_looping
  new_node follow forward_table write_at_once
  hold_back let_go memory_of
);

# Files of ours are told apart by this.
my $loops = 0;

# Seconds that anything may take before a test gives it up.
our $TIMEOUT = $PostgreSQL::Test::Utils::timeout_default // 180;

# A server that changes can be captured on: nothing but CREATE EXTENSION.
sub new_master
{
	my ($name, %option) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name // 'master');
	$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
	$node->append_conf('postgresql.conf', "max_prepared_transactions = 10\n");
	$node->append_conf('postgresql.conf', $option{conf}) if $option{conf};
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION pyreplica');
	return $node;
}

# The line of postgresql.conf that points to a master; that of the replica of
# this name, if any.
sub conninfo_setting
{
	my ($master, $extra, $replica) = @_;
	my $prefix   = defined $replica ? "pyreplica_$replica" : 'pyreplica';
	my $conninfo = $master->connstr('postgres') . ' ' . ($extra // '');
	$conninfo =~ s/'/''/g;
	return "$prefix.master_conninfo = '$conninfo'\n";
}

# The database that a server is tested in.
my %database;

sub database_of
{
	my ($node) = @_;
	return $database{ $node->name } // 'postgres';
}

# A slave of that master; started unless told otherwise (start => 0).  With
# streaming => 1, a server that can have a standby.  With database => 'name',
# one that replicates into a database of this name, which is its name for the
# master, too.  With copy => 1, one that copies its tables; without, both sides
# are taken to be equal at the beginning.
sub new_slave
{
	my ($master, $name, %option) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name // 'slave');
	$node->init(
		allows_streaming => $option{streaming},
		extra            => [ '--encoding=UTF8', '--locale=C' ]);
	$node->append_conf('postgresql.conf',
			"shared_preload_libraries = 'pyreplica'\n"
		  . "pyreplica.retry_interval_max = 1s\n"
		  . "log_line_prefix = '%m [%p] %b '\n"
		  . conninfo_setting($master));
	if (defined $option{database})
	{
		$database{ $node->name } = $option{database};
		$node->append_conf('postgresql.conf',
			"pyreplica.database = '$option{database}'\n");
	}
	$node->append_conf('postgresql.conf', "pyreplica.copy_data = off\n")
	  unless $option{copy};
	$node->append_conf('postgresql.conf', $option{conf}) if $option{conf};
	$node->start unless defined $option{start} && !$option{start};
	$node->safe_psql('postgres', "CREATE DATABASE $option{database}")
	  if defined $option{database};
	return $node;
}

# A server that can be both: a master that can be told to follow another one, of
# which it does not copy tables unless told so.
sub new_node
{
	my ($name, %option) = @_;
	return new_master(
		$name,
		conf => "shared_preload_libraries = 'pyreplica'\n"
		  . "pyreplica.retry_interval_max = 1s\n"
		  . "pyreplica.copy_data = off\n"
		  . ($option{conf} // ''));
}

# Makes a node the slave of a master.
sub follow
{
	my ($node, $master, @lines) = @_;
	set_conf($node, conninfo_setting($master), @lines);
	wait_worker($node);
	return;
}

# Has the log triggers of these tables fire for what is replicated, too.
sub forward_table
{
	my ($node, @tables) = @_;
	$node->safe_psql('postgres',
		qq(ALTER TABLE $_ ENABLE ALWAYS TRIGGER "!py_log_replica_tg", ENABLE ALWAYS TRIGGER "!py_log_truncate_tg")
	) for (@tables);
	return;
}

# Runs a script of pgbench so many times by each of two clients on all nodes at
# once; it finds the node's number, from 0, in :node.
sub write_at_once
{
	my ($script, $times, @nodes) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/write' . $loops++ . '.sql';
	append_to_file($file, $script);
	my @runs;
	foreach my $i (0 .. $#nodes)
	{
		my $out = '';
		push @runs,
		  IPC::Run::start(
			[
				'pgbench', '-n', '-c', 2, '-t', $times, '-f', $file,
				'-D', "node=$i", '-h', $nodes[$i]->host,
				'-p', $nodes[$i]->port, 'postgres'
			],
			'>', \$out, '2>&1');
	}
	foreach my $run (@runs)
	{
		$run->finish or die 'pgbench failed';
	}
	return;
}

# A master and its slave.  Options: master_conf, slave_conf.
sub new_pair
{
	my (%option) = @_;
	my $master   = new_master('master', conf => $option{master_conf});
	my $slave    = new_slave($master, 'slave', conf => $option{slave_conf});
	wait_worker($slave);
	return ($master, $slave);
}

# Runs the same SQL on both.
sub on_both
{
	my ($master, $slave, $sql) = @_;
	$_->safe_psql(database_of($_), $sql) for ($master, $slave);
	return;
}

# Creates the log triggers of these tables.
sub log_table
{
	my ($master, @tables) = @_;
	$master->safe_psql('postgres', "SELECT py_log_create_tg('$_')")
	  for (@tables);
	return;
}

# Until the slave has everything committed on the master before this call.
sub wait_caught_up
{
	my ($slave, $seconds) = @_;
	$seconds //= $TIMEOUT;
	my $came = $slave->safe_psql(database_of($slave),
		"SELECT pyreplica_wait(timeout => '$seconds s')");
	BAIL_OUT("the slave did not catch up:\n" . status($slave))
	  unless $came eq 't';
	return;
}

# The slave's pyreplica_status, for messages.
sub status
{
	my ($slave) = @_;
	return $slave->safe_psql(database_of($slave),
		'\x on' . "\n" . 'SELECT * FROM pyreplica_status');
}

# Until the worker has connected and waits for something to do.
sub wait_worker
{
	my ($slave) = @_;
	$slave->poll_query_until(database_of($slave),
		q(SELECT count(*) = 1 FROM pg_extension WHERE extname = 'pyreplica'))
	  or BAIL_OUT('the worker did not create its extension');
	$slave->poll_query_until(database_of($slave),
		q(SELECT count(*) = 1 FROM pyreplica_status WHERE state = 'waiting'))
	  or BAIL_OUT("the worker does not wait:\n" . status($slave));
	return;
}

# A table's rows, as one text.
sub content
{
	my ($node, $table, $database) = @_;
	return $node->safe_psql($database // database_of($node),
		"SELECT t::text FROM $table t ORDER BY 1");
}

# Whether a table has the same rows on both sides.
sub is_same
{
	my ($master, $slave, $table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(
		content($slave,  $table),
		content($master, $table),
		$name // "$table is the same on both sides");
}

# Where a server's log ends now.
sub log_position
{
	my ($node) = @_;
	return -s $node->logfile;
}

# What a server has logged since then.
sub log_since
{
	my ($node, $position) = @_;
	return substr(slurp_file($node->logfile), $position);
}

# Until something is true, looked at every 20 ms; false if it never was.
sub poll_until
{
	my ($condition, $seconds) = @_;
	my $until = Time::HiRes::time() + ($seconds // $TIMEOUT);
	while (Time::HiRes::time() < $until)
	{
		return 1 if $condition->();
		usleep(20_000);
	}
	return 0;
}

# Until a server has logged something since then.
sub wait_log
{
	my ($node, $position, $pattern, $seconds) = @_;
	return poll_until(sub { log_since($node, $position) =~ $pattern },
		$seconds);
}

# Whether something is true now and at every look for some seconds.
sub stays_true
{
	my ($condition, $seconds) = @_;
	return !poll_until(sub { !$condition->() }, $seconds);
}

# How many matches a server has logged since then.
sub count_log
{
	my ($node, $position, $pattern) = @_;
	my @found = log_since($node, $position) =~ /$pattern/g;
	return scalar @found;
}

# How long something takes.
sub seconds_of
{
	my ($what) = @_;
	my $begin = Time::HiRes::time();
	$what->();
	return Time::HiRes::time() - $begin;
}

# Adds lines to postgresql.conf and has a running server read them.
sub set_conf
{
	my ($node, @lines) = @_;
	$node->append_conf('postgresql.conf', join("\n", @lines));
	$node->reload;
	return;
}

# What a server answers; undefined while it cannot.  (A psql that cannot connect
# may be gone before it is told what to ask.)
sub answer_of
{
	my ($node, $database, $query) = @_;
	my ($rc, $value) = eval { $node->psql($database, $query) };
	die $@ if $@ && $@ !~ /Broken pipe/;
	return !$@ && $rc == 0 ? $value : undef;
}

# One thing out of pyreplica_status; undefined while the server cannot tell.
sub status_value
{
	my ($slave, $expression, $database) = @_;
	return answer_of(
		$slave,
		$database // database_of($slave),
		"SELECT $expression FROM pyreplica_status");
}

# Until a condition on pyreplica_status is true; says how it is if it never was.
sub wait_status
{
	my ($slave, $condition, $seconds, $database) = @_;
	return 1
	  if poll_until(
		sub { (status_value($slave, $condition, $database) // '') eq 't' },
		$seconds);
	diag(
		"not true: $condition\n"
		  . (
			status_value($slave, 'row_to_json(pyreplica_status)', $database)
			  // 'the server does not answer'));
	return 0;
}

# The same of one replica of several, asked for in the database postgres.
sub replica_value
{
	my ($slave, $replica, $expression) = @_;
	return answer_of($slave, 'postgres',
		"SELECT $expression FROM pyreplica_status WHERE replica = '$replica'");
}

sub wait_replica
{
	my ($slave, $replica, $condition, $seconds) = @_;
	return 1
	  if poll_until(
		sub {
			(replica_value($slave, $replica, $condition) // '') eq 't';
		},
		$seconds);
	diag("not true of $replica: $condition\n"
		  . (status_value($slave, 'row_to_json(pyreplica_status)', 'postgres')
			  // 'the server does not answer'));
	return 0;
}

# Whether a table has the same rows on both sides; tells of a few that differ.
sub is_same_rows
{
	my ($master, $slave, $table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %side;
	$side{$_}++ for split(/\n/, content($master, $table));
	$side{$_}-- for split(/\n/, content($slave,  $table));
	my @differ = grep { $side{$_} } sort keys %side;
	my $same   = ok(!@differ, $name // "$table is the same on both sides");
	diag(
			scalar(@differ)
		  . " rows differ, such as\n"
		  . join("\n",
			map  { ($side{$_} > 0 ? 'only master: ' : 'only slave: ') . $_ }
			grep { defined } @differ[ 0 .. 9 ])) unless $same;
	return $same;
}

# The process on the master that serves the replica; '' if there is none.
sub master_pid
{
	my ($master, $replica) = @_;
	$replica //= 'postgres';
	return $master->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE application_name = 'pyreplica $replica'"
	);
}

# Puts a server that is stopped back to what it was when its backup (see
# backup_fs_cold) was taken.
sub restore_cold
{
	my ($node, $backup) = @_;
	rmtree($node->data_dir);
	PostgreSQL::Test::RecursiveCopy::copypath($node->backup_dir . "/$backup",
		$node->data_dir);
	chmod(0700, $node->data_dir) or die "could not chmod: $!";
	return;
}

# A place that takes connections and never answers: the socket and its port.
sub black_hole
{
	my $socket = IO::Socket::INET->new(
		Listen    => 10,
		LocalAddr => '127.0.0.1',
		Proto     => 'tcp') or die "could not listen: $!";
	return ($socket, $socket->sockport);
}

# Runs a command again each time it ends, until stop_looping.
sub start_looping
{
	my ($node, @command) = @_;
	my $base =
	  PostgreSQL::Test::Utils::tempdir() . '/' . $node->name . $loops++;
	local $ENV{PGHOST}     = $node->host;
	local $ENV{PGPORT}     = $node->port;
	local $ENV{PGDATABASE} = 'postgres';
	my $run = IPC::Run::start(
		[
			'sh',
			'-c',
			'base=$1; shift; while [ ! -e $base.stop ]; do "$@" >>$base.out 2>>$base.err & echo $! >$base.pid; wait $!; sleep 0.1; done; : >$base.done',
			'sh',
			$base,
			@command
		]);
	return { base => $base, run => $run };
}

# Asks a server the same question all the time, whenever it answers.
sub start_watching
{
	my ($node, $query) = @_;
	my $file =
	  PostgreSQL::Test::Utils::tempdir() . '/watch' . $loops . '.sql';
	append_to_file($file, "$query \\watch 0.02\n");
	return start_looping($node, 'psql', '-XAtq', '-f', $file);
}

# Ends it; what it has said.
sub stop_looping
{
	my ($loop) = @_;
	append_to_file("$loop->{base}.stop", '');
	poll_until(
		sub {
			return 1 if -e "$loop->{base}.done";
			my ($pid) = slurp_file("$loop->{base}.pid") =~ /(\d+)/;
			kill('TERM', $pid) if $pid;
			return 0;
		}) or die 'could not stop a loop';
	$loop->{run}->finish;
	return slurp_file("$loop->{base}.out");
}

# Keeps slaves from going on, so that what the master commits meanwhile comes
# to them as one window, or few large ones: their workers stop when they are
# about to store a position.  The first is made to try, with a table of our
# own.
my %has_pulse;

sub hold_back
{
	my ($master, @slaves) = @_;
	my $blocked = q(SELECT count(*) FROM pg_locks
		WHERE relation = 'pyreplica_position'::regclass AND NOT granted);
	my @sessions;

	foreach my $node ($master, @slaves)
	{
		next if $has_pulse{ $node->name }++;
		$node->safe_psql(database_of($node),
			'CREATE TABLE pulse (id int PRIMARY KEY, n int)');
		next if $node != $master;
		log_table($master, 'pulse');
	}
	$master->safe_psql('postgres',
		'INSERT INTO pulse VALUES (1, 0) ON CONFLICT DO NOTHING');
	foreach my $slave (@slaves)
	{
		wait_caught_up($slave);
		my $session = $slave->background_psql(database_of($slave));
		$session->set_query_timer_restart();
		$session->query_safe(
			'BEGIN; LOCK TABLE pyreplica_position IN EXCLUSIVE MODE');
		push @sessions, $session;
	}
	$master->safe_psql('postgres', 'UPDATE pulse SET n = n + 1');
	foreach my $i (0 .. $#slaves)
	{
		poll_until(sub { $sessions[$i]->query_safe($blocked) eq '1' })
		  or BAIL_OUT(
			"the slave is not held back:\n" . status($slaves[$i]));
	}
	return \@sessions;
}

# Lets them go on.
sub let_go
{
	my ($sessions) = @_;
	$_->query_safe('COMMIT') for @$sessions;
	$_->quit for @$sessions;
	return;
}

# Private memory of a process, in MB; 0 when it is not there.
sub memory_of
{
	my ($pid) = @_;
	open(my $status, '<', "/proc/$pid/status") or return 0;
	my ($kb) = join('', <$status>) =~ /^RssAnon:\s+(\d+) kB/m;
	return ($kb // 0) / 1024;
}

# Stories of rows: what is captured, and what comes of it.
push @EXPORT, qw(run_loosely story capture_mark captured_since is_captured);

# Runs SQL some of which is meant to fail, and goes on after errors.
sub run_loosely
{
	my ($node, $sql) = @_;
	my ($stdout, $stderr);
	$node->psql(
		'postgres', $sql,
		stdout        => \$stdout,
		stderr        => \$stderr,
		on_error_stop => 0);
	return $stdout;
}

# Something happens on the master, and afterwards these tables are the same
# on both sides, without a conflict on the way there.
sub story
{
	my ($master, $slave, $name, $sql, @tables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $conflicts = status_value($slave, 'conflicts');
	my ($here, $there) = ('', '');
	run_loosely($master, $sql);
	if ($slave->safe_psql('postgres',
			q(SELECT pyreplica_wait(timeout => '20s'))) ne 't')
	{
		fail($name);
		diag("the slave did not catch up:\n" . status($slave));
		make_same($master, $slave, @tables);
		return 0;
	}

	foreach my $table (@tables)
	{
		$there .= "$table:\n" . content($master, $table) . "\n";
		$here .= "$table:\n" . content($slave, $table) . "\n";
	}
	$there .= 'conflicts: 0';
	$here .= 'conflicts: '
	  . (status_value($slave, 'conflicts') - $conflicts);
	is($here, $there, $name) and return 1;
	make_same($master, $slave, @tables);
	return 0;
}

# After a story that failed, so that the next one is judged by itself: forgets
# what the slave has not applied, and gives it the master's rows by hand.
sub make_same
{
	my ($master, $slave, @tables) = @_;
	$master->safe_psql('postgres', 'DELETE FROM replica_log');
	my $sql = "SET session_replication_role = replica;\n"
	  . join('', map { "DELETE FROM $_;\n" } @tables);
	foreach my $table (@tables)
	{
		$sql .= $master->safe_psql('postgres',
			"SELECT format('INSERT INTO $table SELECT (%L::$table).*;', t) FROM $table t"
		) . "\n";
	}
	wait_caught_up($slave);
	$slave->safe_psql('postgres', $sql);
	return;
}

# A place in the master's replica_log: what commits from now on is behind it.
sub capture_mark
{
	my ($master) = @_;
	return $master->safe_psql('postgres',
		q(SELECT (pg_current_wal_insert_lsn() - '0/0')::int8));
}

# The statements in the master's replica_log since that mark.
sub captured_since
{
	my ($master, $mark) = @_;
	return $master->safe_psql('postgres',
			"SELECT statement FROM replica_log_sql WHERE commitno >= $mark "
		  . 'ORDER BY commitno, xid, number');
}

# Whether running this on the master logs exactly these statements.
sub is_captured
{
	my ($master, $sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $mark = capture_mark($master);
	run_loosely($master, $sql);
	return is(captured_since($master, $mark), join("\n", @$expected), $name);
}

1;
