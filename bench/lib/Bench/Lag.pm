# How far the slave is behind while a load runs.  A process beside the load
# commits a row on the master every 200 ms and notes when the slave shows it.
#
# It looks at the slave often while the row is young and less often later
# (every 1/4 of the row's age, from 1 to 50 ms), so it takes little from the
# cores that it measures on, and the lag is exact to about a quarter.

package Bench::Lag;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use List::Util qw(max min);
use POSIX ();
use Time::HiRes qw(sleep time);

our $BEAT_SECONDS = 0.2;
our $GIVE_UP_SECONDS = 600;

# Starts the process.
sub start ($class, $master, $slave)
{
	pipe(my $reader, my $writer) or die "no pipe: $!\n";
	my $pid = fork() // die "could not fork: $!\n";
	if ($pid == 0)
	{
		close($reader);
		eval { watch($master->connect, $slave->connect, $writer); 1 }
		  or print STDERR "lag: $@";
		close($writer);
		POSIX::_exit(0);
	}
	close($writer);
	return bless { pid => $pid, reader => $reader }, $class;
}

# Ends it once the slave has shown all rows; returns the lags in seconds.
sub finish ($self)
{
	kill 'USR1', $self->{pid};
	my $reader = $self->{reader};
	chomp(my @lags = <$reader>);
	waitpid($self->{pid}, 0);
	return @lags;
}

# For the way out after an error.
sub abandon ($self)
{
	kill 'KILL', $self->{pid};
	waitpid($self->{pid}, 0);
	return;
}

sub watch ($master, $slave, $writer)
{
	my $ending = 0;
	local $SIG{USR1} = sub { $ending = 1; };
	local @SIG{qw(INT TERM)} = ('DEFAULT') x 2;

	my $beat = $master->prepare(
		'INSERT INTO bench_heartbeat (made) VALUES (clock_timestamp())
		 RETURNING id');
	my $look = $slave->prepare('SELECT max(id) FROM bench_heartbeat');
	my @pending;
	my $next_beat = time();
	my $give_up = undef;

	until ($ending && !@pending)
	{
		if (!$ending && time() >= $next_beat)
		{
			my $id = $master->selectrow_array($beat);
			push @pending, { id => $id, committed => time() };
			$next_beat += $BEAT_SECONDS while $next_beat <= time();
		}

		my $seen = (@pending && $slave->selectrow_array($look)) // 0;
		while (@pending && $pending[0]{id} <= $seen)
		{
			print $writer time() - (shift @pending)->{committed}, "\n";
		}

		$give_up //= time() + $GIVE_UP_SECONDS if $ending;
		die "rows did not arrive\n" if $ending && time() > $give_up;
		sleep(pause(\@pending, $ending ? undef : $next_beat));
	}
	return;
}

# Until the next look, or the next row to commit if that is sooner.
sub pause ($pending, $next_beat)
{
	my $pause = $BEAT_SECONDS;
	$pause = max(0.001, min(0.05, (time() - $pending->[-1]{committed}) / 4))
	  if @$pending;
	$pause = min($pause, $next_beat - time()) if defined $next_beat;
	return max($pause, 0);
}

1;
