# WAL and log bytes per changed row, for a fixed number of changes.
#
# The slave is stopped while they are made, so that nothing is cleaned up, and
# then catches up; what that writes on the master is told apart.  Full-page
# images are off meanwhile: they depend on the last checkpoint, not on the
# replicator.

package Bench::Bytes;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Load;
use Time::HiRes qw(sleep);

our $CHANGES = 40_000;

# What is measured, in the order of the table.
our @KINDS = (
	[
		'TPC-B' => sub ($cluster, $work_dir) {
			return Bench::Load::run_changes('tpcb', $cluster, $work_dir,
				$CHANGES);
		}
	],
	[
		'single-row inserts' => sub ($cluster, $work_dir) {
			return Bench::Load::run_changes('insert', $cluster, $work_dir,
				$CHANGES);
		}
	],
	[
		'bulk INSERT' => sub ($cluster, $work_dir) {
			$cluster->do(
				Bench::Load::bulk_insert(
					$cluster->{bytes_table} =
					  Bench::Load::next_bulk_table($cluster)));
			return $Bench::Load::BULK_ROWS;
		}
	],
	[
		'bulk UPDATE' => sub ($cluster, $work_dir) {
			$cluster->do(Bench::Load::bulk_update($cluster->{bytes_table}));
			return $Bench::Load::BULK_ROWS;
		}
	]);

# Returns a list of { row, baseline, wal, caught_up, log }, bytes per change.
sub measure ($baseline, $system, $work_dir)
{
	my @results;
	set_full_page_writes($_, 'off') foreach $baseline->master, $system->master;
	foreach my $kind (@KINDS)
	{
		my ($row, $changes_of) = @$kind;
		my $plain = bytes_of($baseline, $changes_of, $work_dir);
		push @results,
		  {
			row => $row,
			baseline => $plain->{wal},
			%{ bytes_of($system, $changes_of, $work_dir) }
		  };
	}
	set_full_page_writes($_, undef) foreach $baseline->master, $system->master;
	return @results;
}

sub bytes_of ($system, $changes_of, $work_dir)
{
	my $master = $system->master;
	$system->stop_slave if $system->has_slave;
	my $wal = $master->wal_position;
	my $log = $system->log_bytes;

	my $changes = $changes_of->($master, $work_dir);

	my %bytes = (wal => ($master->wal_position - $wal) / $changes);
	$bytes{log} = ($system->log_bytes - $log) / $changes if defined $log;
	if ($system->has_slave)
	{
		$system->start_slave;
		$system->wait_caught_up;
		$bytes{caught_up} = ($master->wal_position - $wal) / $changes;
	}
	return \%bytes;
}

sub set_full_page_writes ($cluster, $value)
{
	$cluster->reload_with(full_page_writes => $value);
	sleep 0.5;
	$cluster->do('CHECKPOINT');
	return;
}

1;
