# The drains as tables: a row for each drain, a column for each system.

package Bench::Report::Drain;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Markdown qw(section);
use Bench::Stats qw(median spread cpu_per_100k);
use List::Util qw(max uniq);

our @NATIVE = qw(native native-binary);

sub rate_table ($results, $cold)
{
	my @limits = @{ $results->{limits} // [] };
	return table(
		$results,
		'Drain of a backlog',
		'Thousand changes per second, median (min–max) of the rounds, from'
		  . (
			$cold
			? ' the start of the slave\'s server'
			: ' the moment when replication is resumed'
		  )
		  . ' until the slave shows the last row; rows counted and hashed on'
		  . ' both sides after each.'
		  . (
			@limits
			? ' Limit: one INSERT ... SELECT of the same rows into the same'
			  . ' empty table; in brackets the share that pyreplica reaches.'
			: ''
		  ),
		sub ($runs, $backlog) {
			spread('%.0f', map { $_->{rate} / 1000 } @$runs);
		},
		@limits ? [ limit => sub ($backlog) { limit_cell($results, $backlog) } ]
		: ());
}

sub limit_cell ($results, $backlog)
{
	my @limits =
	  grep { $_->{backlog} eq $backlog } @{ $results->{limits} };
	return '' unless @limits;
	my $text = spread('%.0f', map { $_->{rate} / 1000 } @limits);
	my %rate_of =
	  map { $_->{round} => $_->{rate} } runs($results, $backlog, 'pyreplica');
	my @shares = map { $rate_of{ $_->{round} } / $_->{rate} }
	  grep { $rate_of{ $_->{round} } } @limits;
	return @shares ? sprintf('%s [%.2f]', $text, median(@shares)) : $text;
}

sub ratio_table ($results)
{
	return undef
	  unless grep { my $run = $_; grep { $run->{system} eq $_ } @NATIVE }
	  @{ $results->{drains} // [] };
	return table(
		$results,
		'Drain rate as a multiple of native replication',
		'Of the better of its two variants in the same round; median'
		  . ' (min–max).',
		sub ($runs, $backlog) {
			spread('%.2f', ratios($results, $runs, $backlog));
		});
}

sub ratios ($results, $runs, $backlog)
{
	my @ratios;
	foreach my $run (@$runs)
	{
		my @native =
		  grep { $_->{round} == $run->{round} }
		  map { runs($results, $backlog, $_) } @NATIVE;
		push @ratios, $run->{rate} / max(map { $_->{rate} } @native)
		  if @native;
	}
	return @ratios;
}

sub cpu_table ($results)
{
	return table(
		$results,
		'CPU seconds per 100,000 changes',
		'All processes of both sides during the drain, median of the rounds'
		  . ' (master + slave).',
		sub ($runs, $backlog) {
			return sprintf(
				'%.2f (%.2f + %.2f)',
				map {
					my @sides = @$_;
					median(map { cpu_per_100k($_, @sides) } @$runs)
				} [qw(master slave)],
				['master'], ['slave']);
		});
}

# extra: optional, [ head, sub ($backlog) ] of a last column.
sub table ($results, $title, $note, $cell, $extra = undef)
{
	my @systems = uniq(map { $_->{system} } @{ $results->{drains} // [] })
	  or return undef;
	my @rows;
	foreach my $backlog (@{ $results->{backlogs} })
	{
		my @cells = map {
			my @runs = runs($results, $backlog->{name}, $_);
			@runs ? $cell->(\@runs, $backlog->{name}) : '-'
		} @systems;
		push @cells, $extra->[1]->($backlog->{name}) if $extra;
		push @rows, [ "($backlog->{name}) $backlog->{title}", @cells ];
	}
	return section(
		$title, $note,
		[
			'',
			(map { $results->{titles}{$_} } @systems),
			$extra ? $extra->[0] : ()
		],
		@rows);
}

sub runs ($results, $backlog, $system)
{
	return grep { $_->{backlog} eq $backlog && $_->{system} eq $system }
	  @{ $results->{drains} // [] };
}

1;
