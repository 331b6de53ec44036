# Programs of the machine: where PostgreSQL's are, running one, keeping one
# running, and a free port to give it.

package Bench::Command;

use strict;
use warnings;
use feature qw(signatures state);
no warnings 'experimental::signatures';

use Exporter 'import';
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(sleep time);

our @EXPORT_OK =
  qw(clean_environment pg_program pg_directory capture run_logged spawn
  stop_process wait_until free_port tail progress);

# Nothing of the caller's environment may lead libpq elsewhere.
sub clean_environment ()
{
	delete @ENV{ grep { /^PG/ && $_ ne 'PG_CONFIG' } keys %ENV };
	$ENV{PATH} = '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin';
	$ENV{LC_ALL} = 'C';
	return;
}

# A directory of the installation, by the name of pg_config's option.
sub pg_directory ($kind)
{
	my $pg_config = $ENV{PG_CONFIG} // 'pg_config';
	chomp(my $dir = capture($pg_config, "--$kind"));
	return $dir;
}

sub pg_program ($name)
{
	state $bindir = pg_directory('bindir');
	return "$bindir/$name";
}

# Runs a program and returns what it wrote; dies when it fails.
sub capture (@command)
{
	open(my $pipe, '-|', @command) or die "could not run $command[0]: $!\n";
	my $output = do { local $/; <$pipe> };
	close($pipe) or die "\"@command\" failed:\n" . ($output // '');
	return $output;
}

# Runs a program with its output in a file; dies with the file's end when it
# fails.
sub run_logged ($log, @command)
{
	my $pid = fork_into($log, @command);
	waitpid($pid, 0);
	die "\"@command\" failed:\n" . tail($log) if $? != 0;
	return;
}

# Starts a daemon in a process group of its own, so that it can be stopped
# together with what it starts itself.
sub spawn ($log, @command)
{
	my $pid = fork_into($log, @command);
	return { pid => $pid, name => $command[0], log => $log };
}

sub fork_into ($log, @command)
{
	my $pid = fork() // die "could not fork: $!\n";
	return $pid if $pid;

	POSIX::setpgid(0, 0);
	open(STDIN, '<', '/dev/null');
	open(STDOUT, '>>', $log) or POSIX::_exit(126);
	open(STDERR, '>&', \*STDOUT);
	{ no warnings 'exec'; exec { $command[0] } @command; }
	print STDERR "could not run $command[0]: $!\n";
	POSIX::_exit(127);
}

sub stop_process ($process)
{
	my $pid = $process->{pid};
	kill 'TERM', -$pid;
	return if reaped_within($pid, 10);
	kill 'KILL', -$pid;
	waitpid($pid, 0);
	return;
}

sub reaped_within ($pid, $seconds)
{
	my $deadline = time() + $seconds;
	while (time() < $deadline)
	{
		return 1 if waitpid($pid, POSIX::WNOHANG()) != 0;
		sleep 0.02;
	}
	return 0;
}

# Asks until the answer is true; dies after the given time.
sub wait_until ($what, $seconds, $question, $pause = 0.01)
{
	my $deadline = time() + $seconds;
	until ($question->())
	{
		die "timed out after $seconds s waiting until $what\n"
		  if time() > $deadline;
		sleep $pause;
	}
	return;
}

# One that is free now and was not given before.
sub free_port ()
{
	state %given;
	my $port;
	do
	{
		my $socket = IO::Socket::INET->new(
			LocalAddr => '127.0.0.1',
			Proto => 'tcp',
			Listen => 1) or die "no free port: $!\n";
		$port = $socket->sockport;
	} while ($given{$port}++);
	return $port;
}

# What a long run is doing.
sub progress (@words)
{
	print STDERR join(': ', @words), "\n";
	return;
}

sub tail ($file, $count = 20)
{
	open(my $handle, '<', $file) or return '';
	my @lines = <$handle>;
	splice(@lines, 0, @lines - $count) if @lines > $count;
	return join('', @lines);
}

1;
