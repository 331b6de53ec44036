# Indexes before or after the rows, as a table.

package Bench::Report::Indexes;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Markdown qw(section);
use Bench::Stats qw(spread thousands);

sub indexes_table ($results)
{
	my @records = @{ $results->{indexes} // [] } or return undef;
	my %by_round;
	$by_round{ $_->{round} }{ $_->{when} } = $_ foreach @records;
	my @pairs = grep { $_->{before} && $_->{after} } values %by_round;
	return section(
		'Indexes after the rows',
		'Seconds to copy a table with a primary key and three other indexes,'
		  . ' and CPU seconds of both sides; median (min–max).',
		[ 'rows', 'indexes', 'seconds', 'CPU', 'times as fast' ],
		map {
			my $when = $_;
			my @these = grep { $_->{when} eq $when } @records;
			[
				thousands($records[0]{rows}),
				"$when the rows",
				spread('%.1f', map { $_->{seconds} } @these),
				spread('%.1f',
					map { $_->{cpu}{master} + $_->{cpu}{slave} } @these),
				spread('%.2f',
					map { $_->{before}{seconds} / $_->{$when}{seconds} } @pairs)
			]
		} qw(before after));
}

1;
