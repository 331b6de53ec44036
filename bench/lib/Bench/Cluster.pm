# A PostgreSQL cluster of the benchmark's own: made, copied, started, asked,
# stopped, killed.  All clusters get the same settings unless a replicator needs one.

package Bench::Cluster;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command
  qw(pg_program run_logged capture free_port tail wait_until);
use Bench::Cpu;
use DBI;
use Time::HiRes qw(time);

our $DATABASE = 'bench';
our $USER = 'bench';
our $START_SECONDS = 60;
our $START_LOOK_SECONDS = 0.002;

our %COMMON_SETTINGS = (
	fsync => 'off',
	shared_buffers => '512MB',
	max_wal_size => '8GB',
	checkpoint_timeout => '1h',
	log_checkpoints => 'off');

sub new ($class, $work_dir, $name, %settings)
{
	my $self = bless {
		name => $name,
		dir => "$work_dir/$name",
		socket_dir => $work_dir,
		log => "$work_dir/$name.log",
		port => free_port(),
		settings => { %COMMON_SETTINGS, %settings },
		next_bulk => 1,
	}, $class;
	return $self;
}

# A new, empty cluster.
sub initdb ($self)
{
	run_logged(
		$self->{log}, pg_program('initdb'),
		'-D' => $self->{dir},
		'-U' => $USER,
		'-E' => 'UTF8',
		'--no-locale', '--auth=trust', '--no-sync');
	$self->write_settings;
	return $self;
}

# A cluster with the same bytes as another one that is stopped.
sub copy_of ($self, $template)
{
	run_logged($self->{log}, 'cp', '-a', '--reflink=auto', $template->{dir},
		$self->{dir});
	$self->write_settings;
	return $self;
}

sub write_settings ($self)
{
	my %settings = (
		%{ $self->{settings} },
		port => $self->{port},
		listen_addresses => '127.0.0.1',
		unix_socket_directories => $self->{socket_dir});
	open(my $conf, '>', "$self->{dir}/postgresql.auto.conf") or die $!;
	foreach my $name (sort keys %settings)
	{
		(my $value = $settings{$name}) =~ s/'/''/g;
		print $conf "$name = '$value'\n";
	}
	close($conf) or die $!;
	return;
}

# Returns as soon as the server takes connections: pg_ctl -w would look only
# every 100 ms, too seldom for those who measure from here.
sub start ($self)
{
	run_logged("$self->{log}.start", pg_program('pg_ctl'), '-W', '-s',
		'-D' => $self->{dir},
		'-l' => $self->{log},
		'start');
	$self->{running} = 1;
	my $begin = time();
	wait_until(
		"$self->{name} takes connections",
		$START_SECONDS,
		sub {
			return 1 if eval { $self->connect('postgres')->disconnect; 1 };
			die "$self->{name} did not start:\n" . tail($self->{log})
			  if time() > $begin + 1 && !$self->is_alive;
			return 0;
		},
		$START_LOOK_SECONDS);
	return $self;
}

sub is_alive ($self)
{
	my $pid = $self->postmaster_pid // return 0;
	return kill 0, $pid;
}

sub postmaster_pid ($self)
{
	open(my $file, '<', "$self->{dir}/postmaster.pid") or return undef;
	my ($pid) = (<$file> // '') =~ /^(\d+)/;
	return $pid;
}

sub stop ($self, $mode = 'fast')
{
	return unless $self->{running};
	$self->disconnect;
	run_logged("$self->{log}.start", pg_program('pg_ctl'), '-w', '-s',
		'-D' => $self->{dir},
		'-m' => $mode,
		'stop');
	$self->{running} = 0;
	return;
}

# Kills the server and all its processes at once, as a failing machine would.
# The postmaster is held first, so that it starts nothing meanwhile; what is to
# be looked at right before the end can be then.
sub crash ($self, $last_look = sub { })
{
	my $postmaster = $self->postmaster_pid
	  // die "$self->{name} does not run\n";
	kill 'STOP', $postmaster or die "$self->{name}: $!\n";
	my @pids = ($postmaster, Bench::Cpu::children_of($postmaster));
	my $looked = eval { $last_look->(); 1 };
	my $error = $@;
	kill 'KILL', @pids;
	wait_until(
		"$self->{name} is gone",
		$START_SECONDS,
		sub { !grep { kill 0, $_ } @pids });
	$self->{running} = 0;
	$self->disconnect;
	die $error unless $looked;
	return;
}

# Changes settings that a reload is enough for; undef takes one back.
sub reload_with ($self, %settings)
{
	foreach my $name (keys %settings)
	{
		$self->do(
			defined $settings{$name}
			? "ALTER SYSTEM SET $name = '$settings{$name}'"
			: "ALTER SYSTEM RESET $name");
	}
	$self->do('SELECT pg_reload_conf()');
	return;
}

# How another server reaches this one.
sub conninfo ($self)
{
	return "host=127.0.0.1 port=$self->{port} dbname=$DATABASE user=$USER";
}

# A new connection, for a process or a measurement of its own.
sub connect ($self, $database = $DATABASE)
{
	return DBI->connect(
		"dbi:Pg:dbname=$database;host=$self->{socket_dir};port=$self->{port}",
		$USER, '',
		{
			AutoCommit => 1,
			RaiseError => 1,
			PrintError => 0,
			PrintWarn => 0,
			AutoInactiveDestroy => 1,
		});
}

sub dbh ($self)
{
	return $self->{dbh} //= $self->connect;
}

sub disconnect ($self)
{
	my $dbh = delete $self->{dbh};
	$dbh->disconnect if $dbh;
	return;
}

sub do ($self, @statements)
{
	$self->dbh->do($_) foreach @statements;
	return;
}

sub value ($self, $query, @bind)
{
	return scalar $self->dbh->selectrow_array($query, undef, @bind);
}

sub column ($self, $query, @bind)
{
	return @{ $self->dbh->selectcol_arrayref($query, undef, @bind) };
}

# Runs pgbench on this cluster and returns what it printed.
sub pgbench ($self, @options)
{
	return capture($self->pgbench_command(@options));
}

# The same for those who do not want to know.
sub pgbench_logged ($self, @options)
{
	run_logged("$self->{log}.pgbench", $self->pgbench_command(@options));
	return;
}

sub pgbench_init ($self, $scale)
{
	$self->pgbench_logged('-i', '-q', '-s' => $scale, '-I' => 'dtgp');
	return;
}

sub pgbench_command ($self, @options)
{
	return (
		pg_program('pgbench'),
		'-h' => $self->{socket_dir},
		'-p' => $self->{port},
		'-U' => $USER,
		@options, $DATABASE);
}

sub wal_position ($self)
{
	return $self->value(q{SELECT pg_current_wal_insert_lsn() - '0/0'});
}

sub server_version ($self)
{
	my ($version) = $self->value('SHOW server_version') =~ /^(\S+)/;
	return $version;
}

1;
