# Copying as a table.

package Bench::Report::Copy;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Markdown qw(section);
use Bench::Stats qw(median spread thousands);
use List::Util qw(max uniq);

sub copy_table ($results)
{
	my @records = @{ $results->{copies} // [] } or return undef;
	my @systems = uniq(map { $_->{system} } @records);
	my @rows;
	foreach my $tables (uniq(map { $_->{tables} } @records))
	{
		my @these = grep { $_->{tables} == $tables } @records;
		push @rows,
		  [
			$tables,
			thousands($these[0]{rows}),
			(
				map {
					my $system = $_;
					my @own = grep { $_->{system} eq $system } @these;
					(
						spread('%.0f', map { $_->{rate} / 1000 } @own),
						spread('%.2f',
							map { ratio($_, \@these) } @own),
						sprintf('%.2f',
							median(map { cpu($_) } @own)))
				} @systems)
		  ];
	}
	return section(
		'Copy of tables',
		'Thousand rows per second, median (min–max); as a multiple of the'
		  . " better variant of native replication in the same round; CPU"
		  . ' seconds of both sides per million rows. Rows carry some 100'
		  . ' bytes.',
		[
			'tables', 'rows',
			map { ($results->{titles}{$_}, '/ native', 'CPU') } @systems
		],
		@rows);
}

sub ratio ($record, $records)
{
	my @native = map { $_->{rate} }
	  grep { $_->{system} =~ /^native/ && $_->{round} == $record->{round} }
	  @$records;
	return @native ? $record->{rate} / max(@native) : 0;
}

sub cpu ($record)
{
	return ($record->{cpu}{master} + $record->{cpu}{slave})
	  / ($record->{rows} / 1_000_000);
}

1;
