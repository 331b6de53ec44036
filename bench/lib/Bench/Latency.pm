# From commit to visible on a pair that does nothing else: one process sends
# COMMIT for one row on the master and then asks the slave without a pause
# until it shows the row.  The clock begins just before COMMIT is sent and
# ends when the slave's answer is here; a look takes less than 0.1 ms.

package Bench::Latency;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Time::HiRes qw(sleep time);

our $LONGEST_PAUSE_SECONDS = 0.2;
our $GIVE_UP_SECONDS = 60;

# Latencies in seconds.
sub measure ($system, $samples)
{
	my $master = $system->master->connect;
	my $slave = $system->slave->connect;
	my $write = $master->prepare(
		'INSERT INTO bench_heartbeat (made) VALUES (clock_timestamp())
		 RETURNING id', { pg_server_prepare => 1, pg_switch_prepared => 1 });
	my $look = $slave->prepare('SELECT 1 FROM bench_heartbeat WHERE id = ?',
		{ pg_server_prepare => 1, pg_switch_prepared => 1 });

	my @latencies;
	foreach my $sample (1 .. $samples)
	{
		# Any length up to a poller's interval and more: a fixed pause would
		# always meet a poller at the same point of its sleep.
		sleep(rand($LONGEST_PAUSE_SECONDS));
		push @latencies, one_sample($master, $write, $slave, $look);
	}
	$_->disconnect foreach $master, $slave;
	return @latencies;
}

sub one_sample ($master, $write, $slave, $look)
{
	$master->begin_work;
	my $id = $master->selectrow_array($write);
	my $begin = time();
	$master->commit;
	until ($slave->selectrow_array($look, undef, $id))
	{
		die "a row did not arrive within $GIVE_UP_SECONDS s\n"
		  if time() - $begin > $GIVE_UP_SECONDS;
	}
	return time() - $begin;
}

1;
