# How fast a slave that was away catches up with a backlog, and what it costs.
#
# Replication is paused, the backlog and then one row more are committed on the
# master.  The clock begins when replication is resumed and ends when the slave
# shows the last row.  The slave's server runs all the time, with the tables in
# its shared buffers.
#
# Or else (cold) the slave's server is stopped, and the clock begins when it
# takes connections again (its replicator could not have begun earlier; daemons
# are started right then).
#
# A record, as it is in the JSON:
#   backlog, changes
#   system           name
#   round
#   seconds, rate    rate: changes per second
#   start_seconds    cold: what the server needed to take connections, not
#                    counted
#   cpu              seconds used meanwhile: { master, slave }

package Bench::Drain;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Backlog;
use Bench::Command qw(wait_until progress);
use Bench::Cpu;
use Time::HiRes qw(time);

our $LOOK_SECONDS = 0.004;
our $GIVE_UP_SECONDS = 1800;

# All drains, all systems in turns.  Appends to results.
sub measure_all ($pairs, $classes, $results, $options)
{
	my @backlogs =
	  map { Bench::Backlog::drain($_, $options) } @{ $options->{drains} };
	$results->{backlogs} =
	  [ map { { %$_{qw(name title short changes)} } } @backlogs ];
	foreach my $round (1 .. $options->{rounds})
	{
		foreach my $backlog (@backlogs)
		{
			push @{ $results->{drains} },
			  measure($pairs, $_, $backlog, $round, $options)
			  foreach @$classes;
			push @{ $results->{limits} }, limit($pairs, $backlog, $round)
			  if $backlog->{limit};
		}
	}
	return;
}

# The record, or none if it failed.
sub measure ($pairs, $class, $backlog, $round, $options)
{
	my %record = (round => $round, %$backlog{qw(changes)});
	$record{backlog} = $backlog->{name};
	$pairs->with_system(
		$class,
		$backlog->{content},
		sub ($system) {
			$record{system} = $system->name;
			$options->{cold} ? $system->stop_slave : pause($system);
			$backlog->{make}->($system->master);
			settle($system->master);
			drain($system, \%record, $options->{cold});
			$system->compare_content(@{ $system->{tables} });
		}) or return;
	$record{rate} = $record{changes} / $record{seconds};
	progress(
		"drain $backlog->{name}",
		"round $round",
		sprintf(
			'%s %.0f/s, %.2f s, CPU %.2f + %.2f s',
			@record{qw(system rate seconds)},
			@{ $record{cpu} }{qw(master slave)}));
	return \%record;
}

# Pauses replication; the slave's tables and indexes are read as a whole.
sub pause ($system)
{
	my $slave = $system->slave;
	$system->pause_slave;
	$slave->do('CREATE EXTENSION IF NOT EXISTS pg_prewarm');
	$slave->value(
		q{SELECT sum(pg_prewarm(c.oid)) FROM pg_class c
		  WHERE relkind IN ('r', 'i', 't')
			AND relnamespace IN ('public'::regnamespace,
				'pg_toast'::regnamespace)});
	return;
}

# Adds the measured values to the record.
sub drain ($system, $record, $cold)
{
	my $last_row = $system->beat;
	my $started = time();
	$system->slave->start if $cold;
	my $begin = time();
	my $cpu = Bench::Cpu::of_system($system);
	$cold ? $system->start_daemons : $system->resume_slave;

	my $look = $system->slave->dbh->prepare(
		'SELECT 1 FROM bench_heartbeat WHERE id = ?',
		{ pg_server_prepare => 1, pg_switch_prepared => 1 });
	wait_until(
		$system->title . "'s slave has caught up",
		$GIVE_UP_SECONDS,
		sub {
			return $system->slave->dbh->selectrow_array($look, undef,
				$last_row);
		},
		$LOOK_SECONDS);

	$record->{seconds} = time() - $begin;
	$record->{start_seconds} = $begin - $started if $cold;
	$record->{cpu} =
	  Bench::Cpu::difference($cpu, Bench::Cpu::of_system($system));
	return;
}

# What autovacuum and the checkpointer would do to the master sooner or later
# is done, so that it does not happen at random while the slave catches up.
sub settle ($cluster)
{
	$cluster->do('VACUUM ANALYZE', 'CHECKPOINT');
	return;
}

# The most that any apply could reach: the same rows from another table into
# the same empty one, in one statement on a server with the same settings.
sub limit ($pairs, $backlog, $round)
{
	my %record = (round => $round, %$backlog{qw(changes)});
	$record{backlog} = $backlog->{name};
	my ($table) = @{ $backlog->{content}{tables} };
	$pairs->with_baseline(
		$backlog->{content},
		sub ($baseline) {
			my $cluster = $baseline->master;
			$cluster->do(
				$backlog->{limit},
				"CREATE TABLE limit_source AS TABLE $table",
				"TRUNCATE $table",
				'VACUUM ANALYZE',
				'CHECKPOINT');
			my $begin = time();
			$cluster->do("INSERT INTO $table SELECT * FROM limit_source");
			$record{seconds} = time() - $begin;
		}) or return;
	$record{rate} = $record{changes} / $record{seconds};
	progress("limit of drain $backlog->{name}",
		"round $round", sprintf('%.0f/s', $record{rate}));
	return \%record;
}

1;
