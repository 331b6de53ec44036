# pgbench on a master that may be killed at any time: it is started again then.
# What it could not do while there was a server is an error.

package Bench::Trial::Load;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(spawn stop_process tail wait_until);
use List::Util qw(sum0);
use POSIX ();

our $FOREVER_SECONDS = 1_000_000;
our $END_SECONDS = 30;

# options: of pgbench, without a length
sub start ($class, $cluster, $work_dir, @options)
{
	my $self = bless {
		cluster => $cluster,
		work_dir => $work_dir,
		options => \@options,
		logs => [],
	}, $class;
	$self->resume;
	return $self;
}

sub resume ($self)
{
	push @{ $self->{logs} },
	  "$self->{work_dir}/load." . @{ $self->{logs} } . '.log';
	$self->{process} = spawn(
		$self->{logs}[-1],
		$self->{cluster}->pgbench_command(
			'-n', '--progress=1', '--progress-timestamp',
			-j => 1,
			-T => $FOREVER_SECONDS,
			@{ $self->{options} }));
	return;
}

# Dies if it does not go on as it should.
sub check ($self)
{
	my $log = $self->{logs}[-1];
	my $is_running =
	  $self->{process} && !waitpid($self->{process}{pid}, POSIX::WNOHANG());
	delete $self->{process} unless $is_running;
	die "pgbench has ended by itself:\n" . tail($log) unless $is_running;
	die "a client of pgbench has ended:\n" . tail($log)
	  if grep { /aborted/ } read_lines($log);
	return;
}

sub stop ($self)
{
	$self->check;
	stop_process(delete $self->{process});
	return;
}

# Its server was killed.
sub lost ($self)
{
	my $pid = (delete $self->{process})->{pid};
	wait_until('pgbench has noticed',
		$END_SECONDS, sub { waitpid($pid, POSIX::WNOHANG()) != 0 });
	return;
}

# For the way out after an error.
sub abandon ($self)
{
	my $process = delete $self->{process} or return;
	stop_process($process);
	return;
}

# The rate of each second: { at, tps }
sub seconds ($self)
{
	return map { /^progress: ([\d.]+) s, ([\d.]+) tps/ ? { at => $1, tps => $2 } : () }
	  map { read_lines($_) } @{ $self->{logs} };
}

sub transactions ($self)
{
	return sum0(map { $_->{tps} } $self->seconds);
}

sub read_lines ($file)
{
	open(my $handle, '<', $file) or return;
	return <$handle>;
}

1;
