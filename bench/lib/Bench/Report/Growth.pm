# Growth as tables: a row for each size.

package Bench::Report::Growth;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Markdown qw(section);
use Bench::Stats qw(median spread thousands);
use List::Util qw(uniq);

our $REFERENCE_BACKLOG = 100_000;

sub backlog_table ($results)
{
	my @records = of_series($results, 'backlog') or return undef;
	my @rows;
	foreach my $changes (uniq(map { $_->{changes} } @records))
	{
		push @rows,
		  [
			thousands($changes),
			cells(
				\@records,
				sub ($record) { $record->{changes} == $changes },
				sub ($record) { $record->{changes} == $REFERENCE_BACKLOG })
		  ];
	}
	return section(
		'Growth of the backlog',
		'Thousand changes per second, median (min–max), and the median as a'
		  . ' multiple of that at 100,000. Half inserts, half updates of'
		  . ' 100,000 rows, 10 per transaction, one table.',
		[ 'changes', heads($results, \@records, 'of 100,000') ],
		@rows);
}

sub tables_table ($results)
{
	my @records = of_series($results, 'tables') or return undef;
	my @rows;
	foreach my $record (unique_points(@records))
	{
		my ($tables, $spread) = @$record{qw(tables spread)};
		push @rows,
		  [
			thousands($tables),
			$spread == 1 ? 'one of them' : 'all of them',
			cells(
				\@records,
				sub ($run) {
					$run->{tables} == $tables && $run->{spread} == $spread;
				},
				sub ($run) { $run->{tables} == 1 })
		  ];
	}
	return section(
		'Growth of the number of replicated tables',
		'Thousand changes per second, median (min–max), and the median as a'
		  . ' multiple of that with one table. The same changes, '
		  . thousands($records[0]{changes})
		  . ' of them, to one of the tables or to all of them in turns.',
		[
			'tables',
			'changed',
			heads($results, \@records, 'of one table')
		],
		@rows);
}

sub of_series ($results, $series)
{
	return grep { $_->{series} eq $series } @{ $results->{growth} // [] };
}

sub unique_points (@records)
{
	my %seen;
	return grep { !$seen{ $_->{backlog} }++ } @records;
}

sub heads ($results, $records, $share)
{
	return map { ($results->{titles}{$_}, $share) } systems($records);
}

sub systems ($records)
{
	return uniq(map { $_->{system} } @$records);
}

# Two for each system: the rate, and its share of that of the reference.
sub cells ($records, $is_here, $is_reference)
{
	my @cells;
	foreach my $system (systems($records))
	{
		my @runs = grep { $_->{system} eq $system } @$records;
		my @rates = map { $_->{rate} / 1000 } grep { $is_here->($_) } @runs;
		my @reference =
		  map { $_->{rate} / 1000 } grep { $is_reference->($_) } @runs;
		push @cells, spread('%.0f', @rates),
		  @rates && @reference
		  ? sprintf('%.2f', median(@rates) / median(@reference))
		  : '-';
	}
	return @cells;
}

1;
