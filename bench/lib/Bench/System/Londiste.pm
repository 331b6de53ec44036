# Londiste: PgQ's triggers and ticker on the master, a worker for the slave.
# While the slave is stopped, the ticker goes on, as it would in life.

package Bench::System::Londiste;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(pg_directory run_logged spawn stop_process);
use Bench::Cluster;
use parent 'Bench::System';

our $QUEUE = 'bench';
our $LOOP_DELAY = 0.05;
our $TICKER_PERIOD = 0.1;
our $TICKER_MAX_LAG = 0.1;

sub title ($self) { return 'Londiste'; }

sub missing ($class)
{
	my $extensions = pg_directory('sharedir') . '/extension';
	return undef
	  if -x '/usr/bin/londiste'
	  && -x '/usr/bin/pgqd'
	  && !grep { !-e "$extensions/$_.control" } qw(pgq pgq_node londiste);
	return 'Londiste: apt-get install python3-londiste python3-psycopg2 pgqd'
	  . ' postgresql-<major>-pgq3 postgresql-<major>-pgq-node'
	  . ' postgresql-<major>-londiste-sql';
}

sub version ($self)
{
	return $self->master->value(
		q{SELECT extversion FROM pg_extension WHERE extname = 'londiste'});
}

sub own_settings ($self)
{
	return (
		loop_delay => $LOOP_DELAY,
		ticker_period => $TICKER_PERIOD,
		ticker_max_lag => $TICKER_MAX_LAG);
}

sub setup_slave ($self)
{
	foreach my $cluster ($self->master, $self->slave)
	{
		$cluster->do(
			map { "CREATE EXTENSION $_" } qw(pgq pgq_node londiste));
	}
	$self->write_node_config('root', $self->master);
	$self->write_node_config('leaf', $self->slave,
		"loop_delay = $LOOP_DELAY");
	$self->londiste('root', 'create-root', 'root', $self->master->conninfo);
	$self->start_ticker;
	$self->londiste('leaf', 'create-leaf', 'leaf', $self->slave->conninfo,
		'--provider=' . $self->master->conninfo);
	$self->{root_worker} = $self->start_worker('root');
	$self->start_daemons;
	$self->londiste('root', 'add-table', @{ $self->{tables} });
	$self->londiste('leaf', 'add-table', '--expect-sync',
		@{ $self->{tables} });
	$self->londiste('leaf', 'wait-sync');
	return;
}

sub start_daemons ($self)
{
	$self->{leaf_worker} //= $self->start_worker('leaf');
	return;
}

sub stop_daemons ($self)
{
	stop_process(delete $self->{leaf_worker}) if $self->{leaf_worker};
	return;
}

sub master_daemons ($self)
{
	return grep { $_ } @{$self}{qw(ticker root_worker)};
}

sub slave_daemons ($self) { return grep { $_ } $self->{leaf_worker}; }

sub teardown ($self)
{
	foreach my $process (qw(root_worker ticker))
	{
		stop_process(delete $self->{$process}) if $self->{$process};
	}
	return $self->SUPER::teardown;
}

# PgQ keeps a queue's events in three tables that it uses in turn.
sub log_bytes ($self)
{
	return $self->master->value(
		q{SELECT sum(pg_total_relation_size(c.oid))
		  FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
		  WHERE nspname = 'pgq' AND relkind = 'r'
			AND relname ~ '^event_[0-9]'});
}

sub start_ticker ($self)
{
	my $dir = $self->{work_dir};
	my $port = $self->master->{port};
	$self->master->do(
		"SELECT pgq.set_queue_config('$QUEUE', 'ticker_max_lag',
			'$TICKER_MAX_LAG')");
	open(my $conf, '>', "$dir/pgqd.ini") or die $!;
	print $conf <<"INI";
[pgqd]
logfile = $dir/pgqd.log
pidfile = $dir/pgqd.pid
base_connstr = host=127.0.0.1 port=$port user=$Bench::Cluster::USER
initial_database = $Bench::Cluster::DATABASE
database_list = $Bench::Cluster::DATABASE
ticker_period = $TICKER_PERIOD
INI
	close($conf) or die $!;
	$self->{ticker} =
	  spawn("$dir/pgqd.out", '/usr/bin/pgqd', '-q', "$dir/pgqd.ini");
	return;
}

# The root's worker moves no rows, so the pace of its loop is left alone.
sub write_node_config ($self, $node, $cluster, @settings)
{
	my $file = "$self->{work_dir}/londiste-$node";
	open(my $conf, '>', "$file.ini") or die $!;
	print $conf <<"INI";
[londiste]
job_name = bench_$node
db = ${\ $cluster->conninfo}
queue_name = $QUEUE
logfile = $file.log
pidfile = $file.pid
INI
	print $conf "$_\n" foreach @settings;
	close($conf) or die $!;
	return;
}

sub londiste ($self, $node, @command)
{
	run_logged("$self->{work_dir}/londiste-$node.out",
		'/usr/bin/londiste', '-q', "$self->{work_dir}/londiste-$node.ini",
		@command);
	return;
}

sub start_worker ($self, $node)
{
	return spawn("$self->{work_dir}/londiste-$node.out",
		'/usr/bin/londiste', '-q', "$self->{work_dir}/londiste-$node.ini",
		'worker');
}

1;
