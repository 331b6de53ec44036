# A large copy under load, undisturbed and with both servers being killed.
#
# The record:
#   rows            the master's, at the end
#   runs            two: { kind => undisturbed | killed, and
#     seconds         until all tables are ready
#     rows_read       that the master sent for chunks
#     rows_uncounted  most that these may be more, see Bench::Trial::Reads
#     rows_copied     that the slave's bookmarks passed
#     kills           { master, slave, both }
#     seconds_down    until the killed servers took connections again
#     transactions    of the load, about
#     conflicts       since the last kill
#     chunks          that were sent in full
#     chunk_rows      { p50, p99, max }
#     reading         seconds that the COPY of a chunk took: { p50, p99, max }
#     applying        from one chunk's commit to the next one's of the table
#     snapshot        age of the oldest snapshot, at looks when there was one,
#                     and share_of_time, xids_max
#   }

package Bench::Trial::Copy;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(progress);
use Bench::Drain;
use Bench::Stats qw(percentile);
use Bench::Trial::CopyPair;
use Bench::Trial::Load;
use Bench::Trial::Reads;
use Bench::Trial::Set;
use Bench::Trial::Watch;
use List::Util qw(max sum0);
use Time::HiRes qw(sleep time);

our $LOOK_SECONDS = 0.2;
our $MASTER_WATCH_SECONDS = 0.05;
our $SLAVE_WATCH_SECONDS = 0.025;

our $READ_RATIO_MAX = 1.15;
our $SNAPSHOT_MAX = 0.5;

# Nothing has been copied for so long: it will not be.
our $STALLED_SECONDS = 180;
our @VICTIMS = qw(master slave master slave both);

sub run ($trial)
{
	my $options = $trial->{options};
	my $content = Bench::Trial::Set::content($options->{size});
	my %record = (set => Bench::Trial::Set::describe($options->{size}));
	$trial->{record} = \%record;
	foreach my $kind (qw(undisturbed killed))
	{
		my $run = measure($trial, $content, $kind);
		push @{ $record{runs} }, $run;
		$record{rows} = $run->{rows};
	}
	judge($trial, @{ $record{runs} });
	return;
}

sub judge ($trial, $undisturbed, $killed)
{
	$trial->promise(
		'rows read (at most), killed / undisturbed',
		($killed->{rows_read} + $killed->{rows_uncounted})
		  / $undisturbed->{rows_read},
		"at most $READ_RATIO_MAX", sub ($ratio) { $ratio <= $READ_RATIO_MAX });
	foreach my $run ($undisturbed, $killed)
	{
		$trial->promise("conflicts, $run->{kind}",
			$run->{conflicts}, 'none', sub ($count) { $count == 0 });
		my $limit = longest_chunk($run);
		$trial->promise(
			"oldest snapshot, $run->{kind}, s",
			$run->{snapshot}{max},
			sprintf('at most %.2f, the longest time of a chunk', $limit),
			sub ($age) { $age <= $limit });
		$trial->promise(
			"the same, 99th percentile, $run->{kind}, s",
			$run->{snapshot}{p99},
			"at most $SNAPSHOT_MAX", sub ($age) { $age <= $SNAPSHOT_MAX });
	}
	$trial->promise(
		'servers killed while copying',
		sum0(values %{ $killed->{kills} }),
		'some', sub ($kills) { $kills > 0 });
	return;
}

# A chunk is read while the one before is applied.
sub longest_chunk ($run)
{
	return max($run->{applying}{max} // 0, $run->{reading}{max} // 0)
	  + $MASTER_WATCH_SECONDS;
}

sub measure ($trial, $content, $kind)
{
	progress('copy', $kind, 'set up');
	my $options = $trial->{options};
	my $work_dir = $trial->new_directory;
	my $pair = Bench::Trial::CopyPair->new($work_dir,
		$trial->template($content), @{ $content->{tables} });
	$trial->on_end(sub { $pair->teardown });
	$pair->setup;
	Bench::Drain::settle($pair->master);

	my %run = (kind => $kind, kills => {}, seconds_down => 0);
	my $reads = Bench::Trial::Reads->new($pair->master);
	my @load = (
		-R => $options->{rate},
		Bench::Trial::Set::mixed_load($work_dir, $options->{size}));
	my $load = Bench::Trial::Load->start($pair->master, $work_dir, @load);
	$trial->on_end(sub { $load->abandon });
	my @watches = (
		Bench::Trial::Watch->start(
			$pair->master, "$work_dir/snapshots", $MASTER_WATCH_SECONDS,
			$Bench::Trial::Watch::SNAPSHOTS, 1),
		Bench::Trial::Watch->start(
			$pair->slave, "$work_dir/progress", $SLAVE_WATCH_SECONDS,
			$Bench::Trial::Watch::PROGRESS, 0));
	foreach my $watch (@watches)
	{
		$trial->on_end(sub { $watch->abandon });
	}

	my $begin = time();
	$pair->resume_slave;
	copy($trial, $pair, $load, $reads, \%run);
	$run{seconds} = time() - $begin;
	$reads->finish;
	$load->stop;
	my ($snapshots, $progress) = map { [ $_->finish ] } @watches;
	progress('copy', $kind, sprintf('%.1f s', $run{seconds}), 'comparing');

	$pair->wait_all;
	$run{rows} = Bench::Trial::Set::compare($content, $pair->master, $pair->slave);
	$run{transactions} = int($load->transactions);
	$run{rows_copied} = rows_copied($pair);
	$run{conflicts} =
	  $pair->slave->value('SELECT conflicts FROM pyreplica_status');
	describe_reads(\%run, $reads);
	describe_watches(\%run, $snapshots, $progress);
	$trial->end_all;
	return \%run;
}

# Until all tables are ready; kills servers, if that is the run's kind.
sub copy ($trial, $pair, $load, $reads, $run)
{
	my ($limit, $pause) = @{ $trial->{options} }{qw(limit kill-seconds)};
	my $deadline = time() + $limit;
	my $next_kill = time() + $pause;
	my ($rows, $progressed_at) = (0, time());
	my @victims;
	until ($pair->all_copied)
	{
		my $rows_now = rows_copied($pair);
		$progressed_at = time() if $rows_now != $rows;
		$rows = $rows_now;
		die "not copied after $limit s:\n" . describe_tables($pair)
		  if time() > $deadline;
		die "nothing was copied for $STALLED_SECONDS s:\n"
		  . describe_tables($pair)
		  if time() > $progressed_at + $STALLED_SECONDS;
		sleep $LOOK_SECONDS;
		$load->check;
		next unless $run->{kind} eq 'killed' && time() > $next_kill;
		@victims = @VICTIMS unless @victims;
		kill_and_restart($pair, $load, $reads, $run, shift @victims);
		$next_kill = time() + $pause * (0.5 + rand);
	}
	return;
}

sub rows_copied ($pair)
{
	return $pair->slave->value(
		'SELECT coalesce(sum(rows_copied), 0) FROM pyreplica_tables');
}

sub describe_tables ($pair)
{
	return join("\n",
		$pair->slave->column(
			q{SELECT format('%s: %s, %s rows %s', tablename, state,
				rows_copied, last_error) FROM pyreplica_tables}),
		'');
}

sub kill_and_restart ($pair, $load, $reads, $run, $who)
{
	my @clusters = map { $pair->$_ } $who eq 'both' ? qw(master slave) : $who;
	my $is_master = $who ne 'slave';
	my $rows = rows_copied($pair);
	$reads->prepare;
	my $begin = time();
	my $look = sub { $reads->look };
	foreach my $cluster (@clusters)
	{
		$cluster->crash($look);
		$look = sub { };
	}
	push @{ $run->{kill_times} }, $begin, time();
	$load->lost if $is_master;
	$pair->restart($_) foreach @clusters;
	$run->{seconds_down} += time() - $begin;
	$run->{kills}{$who}++;
	$reads->interrupted($is_master);
	$load->resume if $is_master;
	progress('copy', "killed $who",
		sprintf('back after %.1f s', time() - $begin),
		"$rows rows copied before");
	return;
}

sub describe_reads ($run, $reads)
{
	my @chunks = map { ($_) x $_->{calls} } $reads->chunks;
	$run->{rows_read} = $reads->rows;
	$run->{rows_uncounted} = $reads->uncounted;
	$run->{rows_interrupted} = $reads->{interrupted};
	$run->{chunks} = @chunks;
	$run->{chunk_rows} = distribution(map { $_->{rows} } @chunks);
	$run->{reading} = distribution(map { $_->{seconds} } @chunks);
	return;
}

sub describe_watches ($run, $snapshots, $progress)
{
	my @held = grep { $_->[2] > 0 } @$snapshots;
	$run->{snapshot} = {
		%{ distribution(map { $_->[1] } @held) },
		share_of_time => @held / max(scalar @$snapshots, 1),
		xids_max => max(0, map { $_->[2] } @held),
	};
	$run->{applying} =
	  distribution(chunk_seconds($progress, $run->{kill_times} // []));
	delete $run->{kill_times};
	return;
}

# From one commit of a chunk to the next one's of the same table, leaving out
# those in between which a server was killed.
sub chunk_seconds ($progress, $kill_times)
{
	my (%before, @seconds);
	foreach my $line (@$progress)
	{
		my (undef, $table, $rows, $at) = @$line;
		next unless $at;
		my $before = $before{$table};
		$before{$table} = { rows => $rows, at => $at };
		next unless $before && $rows > $before->{rows};
		push @seconds, $at - $before->{at}
		  unless grep { $_ > $before->{at} && $_ < $at } @$kill_times;
	}
	return @seconds;
}

sub distribution (@values)
{
	return {} unless @values;
	return {
		p50 => percentile(0.5, @values),
		p99 => percentile(0.99, @values),
		max => max(@values)
	};
}

1;
