# PostgreSQL does not run as root.  Started by root, the benchmark runs itself
# again as user postgres in a work directory of its own, gives root's output
# files their content, and sees to it that nothing is left running.

package Bench::Unprivileged;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use File::Copy qw(copy);
use Time::HiRes qw(sleep);

our $USER = 'postgres';

# Runs a command of bench/ again; returns its exit status.
#   program    its name, run or trial
#   bench_dir  where it is (copied, as the user may not be able to read there)
#   work_dir   empty, this process's own
#   arguments  options without those that name files
#   files      option => file that root wants
sub run_again (%task)
{
	my ($work_dir, %files) = ($task{work_dir}, %{ $task{files} });
	my (undef, undef, $uid, $gid) = getpwnam($USER)
	  or die "there is no user $USER to run PostgreSQL as\n";

	system('cp', '-r', $task{bench_dir}, "$work_dir/bench") == 0
	  or die "could not copy $task{bench_dir}\n";
	system('chown', '-R', "$uid:$gid", $work_dir) == 0
	  or die "could not give $work_dir to $USER\n";
	chdir $work_dir or die "$work_dir: $!\n";

	my $interrupted = 0;
	my $child;
	local @SIG{qw(INT TERM)} = (
		sub { $interrupted = 1; kill 'TERM', $child if $child; }) x 2;
	$child = fork() // die "could not fork: $!\n";
	exec('runuser', '-u', $USER, '--', $^X, "$work_dir/bench/$task{program}",
		'--tmpdir' => $work_dir,
		(map { ("--$_" => "$work_dir/$_.out") } sort keys %files),
		@{ $task{arguments} })
	  if $child == 0;
	until (waitpid($child, 0) == $child) { }
	my $status = $?;

	end_leftovers($work_dir);
	foreach my $option (keys %files)
	{
		copy("$work_dir/$option.out", $files{$option})
		  or warn "could not write $files{$option}: $!\n"
		  if -e "$work_dir/$option.out";
	}
	return $status == 0 && !$interrupted ? 0 : 1;
}

# Servers and daemons run in the work directory; whatever still does after a
# run that was cut short is ended.
sub end_leftovers ($work_dir)
{
	foreach my $signal (('QUIT') x 50, 'KILL')
	{
		my @leftovers = processes_in($work_dir) or return;
		kill $signal, @leftovers;
		sleep 0.1;
	}
	return;
}

sub processes_in ($directory)
{
	my @pids;
	foreach my $proc (glob('/proc/[0-9]*'))
	{
		my $current = readlink("$proc/cwd") // next;
		my ($pid) = $proc =~ /(\d+)/;
		push @pids, $pid
		  if $pid != $$ && index("$current/", "$directory/") == 0;
	}
	return @pids;
}

1;
