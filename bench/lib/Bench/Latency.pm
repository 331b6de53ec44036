# From commit to visible: one process sends COMMIT for one row on the master
# and then asks the slave until it shows the row.  The clock begins just
# before COMMIT is sent and ends when the slave's answer is here.
#
# In each round each system has a fresh pair, which is measured twice: "idle",
# when it does nothing else, and "busy", with TPC-B transactions going on on
# the master at a given rate.
#
# For all in the same way the slave is asked without a pause at first, a look
# takes less than 0.1 ms; once the row is older than 2 ms, with pauses of 2 % of
# its age, so that a slow replicator is not kept from a core.
#
# A record, as it is in the JSON:
#   system     name
#   round
#   kind       idle, busy
#   latencies  list of seconds
#   tps        what the master really did meanwhile (busy)

package Bench::Latency;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(progress spawn stop_process);
use Bench::Schema qw(tpcb_content tpcb_tables);
use Bench::Stats qw(percentile);
use POSIX ();
use Time::HiRes qw(sleep time);

our $LONGEST_PAUSE_SECONDS = 0.2;
our $GIVE_UP_SECONDS = 60;
our $CLIENTS = 4;
our $WARM_UP_SAMPLES = 20;
our $BUSY_BEFORE_SECONDS = 2;
our $EAGER_SECONDS = 0.002;
our $PAUSE_SHARE = 0.02;

# All systems in turns.  Appends to results.
sub measure_all ($pairs, $classes, $results, $options)
{
	my $samples = POSIX::ceil($options->{samples} / $options->{rounds});
	my $content = tpcb_content($options->{scale});
	foreach my $round (1 .. $options->{rounds})
	{
		foreach my $class (@$classes)
		{
			$pairs->with_system(
				$class, $content,
				sub ($system) {
					take_samples($system, $WARM_UP_SAMPLES);
					foreach my $record (idle($system, $samples),
						busy($system, $samples, $options->{rate}))
					{
						$record->{round} = $round;
						$record->{system} = $system->name;
						report($record);
						push @{ $results->{latencies} }, $record;
					}
				});
		}
	}
	return;
}

sub report ($record)
{
	progress(
		"latency $record->{kind}",
		"round $record->{round}",
		sprintf(
			'%s p50 %.2f ms, p99 %.2f ms%s',
			$record->{system},
			(
				map { percentile($_, @{ $record->{latencies} }) * 1000 } 0.5,
				0.99
			),
			$record->{tps} ? sprintf(', %.0f tps', $record->{tps}) : ''));
	return;
}

sub idle ($system, $samples)
{
	return { kind => 'idle', latencies => [ take_samples($system, $samples) ] };
}

sub busy ($system, $samples, $rate)
{
	my $master = $system->master;
	my $pgbench = spawn(
		"$master->{log}.pgbench",
		$master->pgbench_command(
			'-n',
			-M => 'prepared',
			-c => $CLIENTS,
			-j => 1,
			-R => $rate,
			-T => 24 * 3600));
	my ($begin, $count, @latencies, $tps);
	my $complete = eval {
		sleep($BUSY_BEFORE_SECONDS);
		($begin, $count) = (time(), transactions($master));
		@latencies = take_samples($system, $samples);
		$tps = (transactions($master) - $count) / (time() - $begin);
		1;
	};
	my $error = $@;
	stop_process($pgbench);
	die $error unless $complete;

	$system->wait_caught_up;
	$system->compare_content(tpcb_tables());
	return { kind => 'busy', latencies => \@latencies, tps => $tps };
}

sub transactions ($master)
{
	return $master->value('SELECT count(*) FROM pgbench_history');
}

# Latencies in seconds.
sub take_samples ($system, $samples)
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
		my $age = time() - $begin;
		die "a row did not arrive within $GIVE_UP_SECONDS s\n"
		  if $age > $GIVE_UP_SECONDS;
		sleep($age * $PAUSE_SHARE) if $age > $EAGER_SECONDS;
	}
	return time() - $begin;
}

1;
