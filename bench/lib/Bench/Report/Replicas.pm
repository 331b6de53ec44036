# Several replicas, on one slave or several, as a table.

package Bench::Report::Replicas;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Markdown qw(section milliseconds);
use Bench::Stats qw(median percentile spread);
use List::Util qw(uniq);

sub replicas_table ($results)
{
	my @records = @{ $results->{replicas} // [] } or return undef;
	my @rows;
	foreach my $way (uniq(map { "$_->{replicas} $_->{slaves}" } @records))
	{
		my ($replicas, $slaves) = split ' ', $way;
		my @own = grep { "$_->{replicas} $_->{slaves}" eq $way } @records;
		my @lags = map { @{ $_->{lags} } } @own;
		push @rows,
		  [
			$replicas,
			$slaves,
			spread('%.0f', map { $_->{tps} } @own),
			(
				map { @lags ? milliseconds('%.0f', percentile($_, @lags)) : '-' }
				  0.5, 0.95
			),
			$replicas ? spread('%.2f', map { $_->{catch_up} } @own) : '-',
			(
				map {
					my $side = $_;
					sprintf('%.1f', median(map { $_->{cpu}{$side} } @own))
				} qw(master slave))
		  ];
	}
	return section(
		'Several replicas',
		'TPC-B with 2 clients on the master, all of whose changes each replica'
		  . ' applies in a database of its own: transactions per second, median'
		  . ' (min–max); how far the first replica is behind meanwhile; seconds'
		  . ' until all have everything afterwards; CPU seconds of a run.',
		[
			'replicas', 'slaves', 'tps', 'lag, median', 'lag, 95 %', 'catch-up, s',
			'CPU master', 'CPU slave'
		],
		@rows);
}

1;
