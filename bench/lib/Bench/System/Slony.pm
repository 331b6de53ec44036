# Slony-I: triggers on the master, one slon process for each node.  While the
# slave is stopped, the master's slon goes on, as it would in life.

package Bench::System::Slony;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command
  qw(pg_directory run_logged spawn stop_process wait_until);
use parent 'Bench::System';

our %SETTINGS = (
	sync_interval => 100,
	sync_interval_timeout => 200,
	sync_group_maxsize => 5,
	apply_cache_size => 500,
	log_level => 0);

sub title ($self) { return 'Slony'; }

sub missing ($class)
{
	my @modules = glob(pg_directory('pkglibdir') . '/slony1_funcs.*.so');
	return undef if @modules && -x '/usr/bin/slon' && -x '/usr/bin/slonik';
	return 'Slony-I: apt-get install slony1-2-bin postgresql-<major>-slony1-2';
}

sub version ($self)
{
	return $self->master->value('SELECT _bench.getModuleVersion()');
}

sub own_settings ($self) { return %SETTINGS; }

sub setup_slave ($self)
{
	$self->slonik('cluster', $self->cluster_script);
	$self->{master_slon} = $self->start_slon(1, $self->master);
	$self->{slave_slon} = $self->start_slon(2, $self->slave);
	$self->slonik('subscribe',
		"subscribe set (id = 1, provider = 1, receiver = 2,
			forward = no, omit copy = yes);\n");
	wait_until(
		'the subscription is active',
		60,
		sub {
			$self->slave->value(
				'SELECT count(*) FROM _bench.sl_subscribe WHERE sub_active');
		});
	return;
}

sub start_daemons ($self)
{
	$self->{slave_slon} //= $self->start_slon(2, $self->slave);
	return;
}

sub stop_daemons ($self)
{
	stop_process(delete $self->{slave_slon}) if $self->{slave_slon};
	return;
}

sub master_daemons ($self) { return grep { $_ } $self->{master_slon}; }

sub slave_daemons ($self) { return grep { $_ } $self->{slave_slon}; }

sub teardown ($self)
{
	stop_process(delete $self->{master_slon}) if $self->{master_slon};
	return $self->SUPER::teardown;
}

sub log_bytes ($self)
{
	return $self->master->value(
		q{SELECT pg_total_relation_size('_bench.sl_log_1')
			+ pg_total_relation_size('_bench.sl_log_2')});
}

sub start_slon ($self, $node, $cluster)
{
	my $file = "$self->{work_dir}/slon-$node.conf";
	open(my $conf, '>', $file) or die $!;
	print $conf "cluster_name = 'bench'\n";
	print $conf "conn_info = '", $cluster->conninfo, "'\n";
	print $conf "$_ = $SETTINGS{$_}\n" foreach sort keys %SETTINGS;
	close($conf) or die $!;
	return spawn("$self->{work_dir}/slon-$node.log",
		'/usr/bin/slon', '-f' => $file);
}

sub slonik ($self, $name, $commands)
{
	my $file = "$self->{work_dir}/slonik-$name";
	open(my $script, '>', $file) or die $!;
	print $script "cluster name = bench;\n";
	print $script "node 1 admin conninfo = '", $self->master->conninfo, "';\n";
	print $script "node 2 admin conninfo = '", $self->slave->conninfo, "';\n";
	print $script $commands;
	close($script) or die $!;
	run_logged("$file.log", '/usr/bin/slonik', $file);
	return;
}

# Two nodes that know each other, and a set of all tables.
sub cluster_script ($self)
{
	my ($master, $slave) = map { $_->conninfo } $self->master, $self->slave;
	my $id = 0;
	my $tables = join(
		'',
		map {
			$id++;
			"set add table (set id = 1, origin = 1, id = $id,
				fully qualified name = 'public.$_');\n"
		} @{ $self->{tables} });
	return <<"SLONIK";
init cluster (id = 1, comment = 'master');
create set (id = 1, origin = 1, comment = 'all tables');
${tables}store node (id = 2, comment = 'slave', event node = 1);
store path (server = 1, client = 2, conninfo = '$master');
store path (server = 2, client = 1, conninfo = '$slave');
SLONIK
}

1;
