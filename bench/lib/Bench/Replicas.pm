# Several replicas on one slave, or several slaves, beside one: what the master does
# in the same time, with TPC-B and 2 clients, and how far behind the first of them
# is meanwhile.
#
# All follow the same database of one master, each into a database of its own;
# so the work of a slave is done as many times.
#
# A record, as it is in the JSON:
#   replicas    0: the master captures changes, and nobody asks for them
#   slaves      that have as many replicas together
#   round
#   tps
#   lags        list of seconds
#   catch_up    seconds until all have everything, from the end of the load on
#   cpu         seconds used until then: { master, slave }

package Bench::Replicas;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(progress);
use Bench::Cpu;
use Bench::Lag;
use Bench::Load;
use Bench::Schema qw(tpcb_content tpcb_tables);
use Bench::Stats qw(median);
use Bench::System::PyreplicaMany;

# replicas on a slave, and slaves
our @WAYS = ([ 0, 1 ], [ 1, 1 ], [ 8, 1 ], [ 1, 4 ]);

# All of it, the ways in turns.  Appends to results.
sub measure_all ($pairs, $classes, $results, $options)
{
	return unless grep { $_->name eq 'pyreplica' } @$classes;
	foreach my $round (1 .. $options->{rounds})
	{
		push @{ $results->{replicas} }, measure($pairs, @$_, $round, $options)
		  foreach @WAYS;
	}
	return;
}

sub measure ($pairs, $replicas, $slaves, $round, $options)
{
	my %record = (
		round => $round,
		replicas => $replicas * $slaves,
		slaves => $slaves);
	local $Bench::System::PyreplicaMany::SLAVES = $slaves;
	local $Bench::System::PyreplicaMany::REPLICAS = $replicas;
	$pairs->with_system(
		'Bench::System::PyreplicaMany',
		tpcb_content($options->{scale}),
		sub ($system) {
			my $cpu = Bench::Cpu::of_system($system);
			run($system, \%record, $options);
			$record{cpu} =
			  Bench::Cpu::difference($cpu, Bench::Cpu::of_system($system));
			$system->compare_content(tpcb_tables()) if $replicas > 0;
		}) or return;
	progress(
		"$record{replicas} replicas on $slaves slaves",
		"round $round",
		sprintf(
			'%.0f tps, lag %s, %.2f s to catch up, CPU %.2f + %.2f s',
			$record{tps},
			@{ $record{lags} }
			? sprintf('%.0f ms', 1000 * median(@{ $record{lags} }))
			: '-',
			$record{catch_up},
			@{ $record{cpu} }{qw(master slave)}));
	return \%record;
}

sub run ($system, $record, $options)
{
	my $lag = $record->{replicas} > 0
	  && Bench::Lag->start($system->master, $system->slave);
	my $complete = eval {
		my ($rates) = Bench::Load::run('tpcb', $system->master,
			$system->{work_dir}, $options->{seconds});
		($record->{tps}) = values %$rates;
		1;
	};
	my $error = $@;
	$lag->abandon if $lag && !$complete;
	die $error unless $complete;
	$record->{catch_up} = $system->wait_caught_up;
	$record->{lags} = [ $lag ? $lag->finish : () ];
	return;
}

1;
