# CPU time of processes with all that they started: of those that live, and of
# those that their parents have waited for.  And who these processes are.

package Bench::Cpu;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use POSIX ();

# Seconds used so far by each side of a system: { master, slave }.  A daemon
# counts for the side that it serves.
sub of_system ($system)
{
	my $table = process_table();
	return {
		master => of_trees(
			$table,
			$system->master->postmaster_pid,
			map { $_->{pid} } $system->master_daemons),
		slave => of_trees(
			$table,
			$system->slave->postmaster_pid,
			map { $_->{pid} } $system->slave_daemons)
	};
}

sub difference ($before, $after)
{
	return { map { $_ => $after->{$_} - $before->{$_} } keys %$after };
}

sub of_trees ($table, @pids)
{
	my $ticks = 0;
	while (defined(my $pid = shift @pids))
	{
		my $process = $table->{$pid} // next;
		$ticks += $process->{ticks};
		push @pids, @{ $process->{children} // [] };
	}
	return $ticks / POSIX::sysconf(POSIX::_SC_CLK_TCK());
}

# Those that the process has started itself.
sub children_of ($pid)
{
	return @{ process_table()->{$pid}{children} // [] };
}

# pid => { ticks, children }
sub process_table ()
{
	my %table;
	foreach my $file (glob('/proc/[0-9]*/stat'))
	{
		open(my $stat, '<', $file) or next;
		my ($pid, $fields) = (<$stat> // '') =~ /^(\d+) \(.*\) (.*)/s or next;
		my ($parent, @times) = (split ' ', $fields)[ 1, 11 .. 14 ];
		$table{$pid}{ticks} = $times[0] + $times[1] + $times[2] + $times[3];
		push @{ $table{$parent}{children} }, $pid;
	}
	return \%table;
}

1;
