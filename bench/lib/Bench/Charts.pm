# Which charts there are, of the results that bench/run --json has written.
# Each takes the results and says what to draw, or nothing if it was not
# measured.

package Bench::Charts;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Gnuplot;
use Bench::Stats qw(percentile cpu_per_100k);
use List::Util qw(uniq);

our %CHARTS = (
	drains => \&drains,
	'drains-cpu' => \&drains_cpu,
	latency => \&latency,
	'growth-backlog' => \&growth_backlog,
	'growth-tables' => \&growth_tables,
	overhead => \&overhead);

# Returns the names of the files.
sub draw_all ($results, $dir)
{
	my @files;
	foreach my $name (sort keys %CHARTS)
	{
		my ($kind, %chart) = $CHARTS{$name}->($results) or next;
		my $file = "$dir/$name.svg";
		$kind->(%chart, file => $file);
		push @files, $file;
	}
	return @files;
}

sub drains ($results)
{
	return drain_bars(
		$results,
		title => 'Drain of a backlog',
		y_label => 'thousand changes per second',
		value => sub ($run) { $run->{rate} / 1000 });
}

sub drains_cpu ($results)
{
	return drain_bars(
		$results,
		title => 'CPU time of a drain, both sides',
		y_label => 'CPU seconds per 100,000 changes',
		value => sub ($run) { cpu_per_100k($run, qw(master slave)) });
}

sub drain_bars ($results, %chart)
{
	my $runs = $results->{drains} or return;
	my @backlogs = @{ $results->{backlogs} };
	my $value = delete $chart{value};
	return (
		\&Bench::Gnuplot::bars,
		%chart,
		groups => [ map { "($_->{name})\n$_->{short}" } @backlogs ],
		series => [
			map {
				my $system = $_;
				[
					$results->{titles}{$system},
					[
						map {
							my $backlog = $_->{name};
							[
								map { $value->($_) } grep {
									     $_->{system} eq $system
									  && $_->{backlog} eq $backlog
								} @$runs
							]
						} @backlogs
					]
				]
			} systems($runs)
		]);
}

# A logarithmic axis: pollers are hundreds of times slower.
sub latency ($results)
{
	my $records = $results->{latencies} or return;
	my @systems = systems($records);
	my @series;
	foreach my $kind (qw(idle busy))
	{
		foreach my $share (0.5, 0.99)
		{
			push @series,
			  [
				"$kind, p" . 100 * $share,
				[
					map {
						my $system = $_;
						my @latencies =
						  latencies($records, $system, $kind);
						@latencies
						  ? [ 1000 * percentile($share, @latencies) ]
						  : []
					} @systems
				]
			  ];
		}
	}
	return (
		\&Bench::Gnuplot::bars,
		title => 'Latency from commit to visible, idle and at '
		  . "$results->{options}{rate} transactions per second",
		y_label => 'milliseconds (logarithmic)',
		settings => [ 'set logscale y', 'set yrange [0.1:*]' ],
		groups => [ map { $results->{titles}{$_} } @systems ],
		series => \@series);
}

sub latencies ($records, $system, $kind)
{
	return map { @{ $_->{latencies} } }
	  grep { $_->{system} eq $system && $_->{kind} eq $kind } @$records;
}

sub growth_backlog ($results)
{
	my @records = growth($results, 'backlog') or return;
	return (
		\&Bench::Gnuplot::lines,
		title => 'Drain rate as the backlog grows',
		x_label => 'changes in the backlog',
		y_label => 'thousand changes per second',
		series => [
			map {
				my $system = $_;
				[
					$results->{titles}{$system},
					by('changes', grep { $_->{system} eq $system } @records)
				]
			} systems(\@records)
		]);
}

sub growth_tables ($results)
{
	my @records = growth($results, 'tables') or return;
	my @series;
	foreach my $system (systems(\@records))
	{
		my @runs = grep { $_->{system} eq $system } @records;
		my $title = $results->{titles}{$system};
		push @series,
		  [
			"$title, one table written",
			by('tables', grep { $_->{spread} == 1 } @runs)
		  ],
		  [
			"$title, all written",
			by('tables', grep { $_->{spread} == $_->{tables} } @runs)
		  ];
	}
	return (
		\&Bench::Gnuplot::lines,
		title => 'Drain rate as the number of tables grows',
		x_label => 'replicated tables',
		y_label => 'thousand changes per second',
		series => \@series);
}

sub growth ($results, $series)
{
	return grep { $_->{series} eq $series } @{ $results->{growth} // [] };
}

# x => list of thousand changes per second.
sub by ($x, @records)
{
	my %points;
	push @{ $points{ $_->{$x} } }, $_->{rate} / 1000 foreach @records;
	return \%points;
}

sub overhead ($results)
{
	my @systems = @{ $results->{systems} // [] };
	my @rows = uniq(map { @{ $_->{rows} } } @systems) or return;
	return (
		\&Bench::Gnuplot::bars,
		title => 'Rate on the master while the slave consumes on the same'
		  . ' cores',
		y_label => 'share of the unreplicated rate',
		groups => \@rows,
		series => [
			map {
				my $system = $_;
				[
					$system->{title},
					[ map { $system->{rates}{$_}{share_b} // [] } @rows ]
				]
			} @systems
		]);
}

# In the order they were measured in.
sub systems ($records)
{
	return uniq(map { $_->{system} } @$records);
}

1;
