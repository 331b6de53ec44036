# The latency as a table.

package Bench::Report::Latency;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Markdown qw(section milliseconds);
use Bench::Stats qw(mean median percentile spread);
use List::Util qw(max uniq);

our @SHARES = (0.5, 0.99);

sub latency_table ($results, $options)
{
	my @records = @{ $results->{latencies} // [] } or return undef;
	my @rows;
	foreach my $kind (qw(idle busy))
	{
		foreach my $system (uniq(map { $_->{system} } @records))
		{
			push @rows,
			  row($results, $kind, $system, of(\@records, $kind, $system),
				  of(\@records, $kind, 'native'));
		}
	}
	return section(
		'Latency from commit to visible',
		'Milliseconds over the samples of all rounds, and as a multiple of'
		  . " native's. Idle: the pair does nothing else; busy: with TPC-B at"
		  . " $options->{rate} transactions per second on the master.",
		[
			'', '', 'samples', 'p50', 'p99', 'max', 'p50 of rounds',
			'p50 / native', 'p99 / native', 'tps'
		],
		@rows);
}

sub row ($results, $kind, $system, $records, $native)
{
	my @all = samples($records) or return;
	my @reference = samples($native);
	my @p = map { percentile($_, @all) } @SHARES;
	return [
		$kind,
		$results->{titles}{$system},
		scalar @all,
		(map { milliseconds('%.2f', $_) } @p, max(@all)),
		spread('%.2f', map { 1000 * median(@{ $_->{latencies} }) } @$records),
		(
			map {
				@reference
				  ? sprintf('%.2f',
					$p[$_] / percentile($SHARES[$_], @reference))
				  : '-'
			} 0 .. $#SHARES
		),
		$kind eq 'busy'
		? sprintf('%.0f', mean(map { $_->{tps} } @$records))
		: '-'
	];
}

sub of ($records, $kind, $system)
{
	return [
		grep { $_->{kind} eq $kind && $_->{system} eq $system }
		  @$records
	];
}

sub samples ($records)
{
	return map { @{ $_->{latencies} } } @$records;
}

1;
