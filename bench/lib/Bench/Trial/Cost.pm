# What verification in the background, with its own budget, takes from the rate
# of the master.
#
# One pgbench runs all the time.  Verification is on and off in slices of some
# seconds: off, on, on, off in each round, so that what changes slowly is the
# same for both.  The first second of a slice does not count.
#
# The record:
#   rounds          { off, on, ratio, ranges_off, ranges_on }, a list: mean
#                   transactions per second, ranges compared meanwhile
#   ratio           median of the rounds'

package Bench::Trial::Cost;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(progress);
use Bench::Stats qw(mean median);
use Bench::Trial::Load;
use Bench::Trial::Pair;
use Bench::Trial::Set;
use List::Util qw(sum0);
use Time::HiRes qw(sleep time);

our $WARM_UP_SECONDS = 20;
our $BEGINNING_SECONDS = 1;
our $INTERVAL = '1s';
our $COST_MAX = 0.05;

sub run ($trial)
{
	my $options = $trial->{options};
	my $content = Bench::Trial::Set::content($options->{size});
	my $work_dir = $trial->new_directory;
	my $record = $trial->{record} =
	  { set => Bench::Trial::Set::describe($options->{size}) };

	progress('cost', 'set up');
	my $pair = Bench::Trial::Pair->new($work_dir, $trial->template($content),
		@{ $content->{tables} });
	$trial->on_end(sub { $pair->teardown });
	$pair->setup;
	my $load = Bench::Trial::Load->start($pair->master, $work_dir,
		-c => $Bench::Trial::Set::CLIENTS, -b => 'tpcb-like');
	$trial->on_end(sub { $load->abandon });

	sleep $WARM_UP_SECONDS;
	foreach my $number (1 .. $options->{rounds})
	{
		my $round = measure($pair, $load, $options->{slice});
		push @{ $record->{rounds} }, $round;
		progress('cost', "round $number",
			sprintf('off %.0f, on %.0f = %.3f', @{$round}{qw(off on ratio)}),
			"ranges $round->{ranges_off}, $round->{ranges_on}");
	}
	$load->stop;
	$pair->wait_all;
	Bench::Trial::Set::compare($content, $pair->master, $pair->slave);
	judge($trial, $pair, $record);
	$trial->end_all;
	return;
}

sub judge ($trial, $pair, $record)
{
	$record->{ratio} = median(map { $_->{ratio} } @{ $record->{rounds} });
	$trial->promise(
		'share of the rate that verification takes',
		1 - $record->{ratio},
		"less than $COST_MAX", sub ($cost) { $cost < $COST_MAX });
	$trial->promise(
		'rounds without ranges compared when on',
		scalar(grep { $_->{ranges_on} == 0 } @{ $record->{rounds} }),
		'none', sub ($count) { $count == 0 });
	$trial->promise(
		'ranges compared when off',
		sum0(map { $_->{ranges_off} } @{ $record->{rounds} }),
		'none', sub ($count) { $count == 0 });
	$trial->promise('false differences',
		$pair->slave->value('SELECT count(*) FROM pyreplica_difference'),
		'none', sub ($count) { $count == 0 });
	return;
}

sub measure ($pair, $load, $seconds)
{
	my %rates = (off => [], on => []);
	my %ranges = (off => 0, on => 0);
	foreach my $what (qw(off on on off))
	{
		$pair->verify_in_background($what eq 'on' ? $INTERVAL : undef);
		sleep $BEGINNING_SECONDS;
		my $before = $pair->ranges_compared;
		my ($begin, $end) = (time(), time() + $seconds);
		sleep $seconds;
		$load->check;
		$ranges{$what} += $pair->ranges_compared - $before;

		# a second is told of at its end
		push @{ $rates{$what} },
		  map { $_->{tps} }
		  grep { $_->{at} - 1 >= $begin && $_->{at} <= $end } $load->seconds;
	}
	my %mean = map { $_ => mean(@{ $rates{$_} }) } keys %rates;
	return {
		%mean,
		ratio => $mean{on} / $mean{off},
		ranges_off => $ranges{off},
		ranges_on => $ranges{on}
	};
}

1;
