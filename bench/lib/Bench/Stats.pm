# The few figures that are made of others, and how they are written.

package Bench::Stats;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Exporter 'import';
use List::Util qw(min max sum);
use POSIX ();

our @EXPORT_OK = qw(mean median percentile spread thousands cpu_per_100k);

sub mean (@values)
{
	return sum(@values) / @values;
}

sub median (@values)
{
	my @sorted = sort { $a <=> $b } @values;
	my $middle = int(@sorted / 2);
	return @sorted % 2
	  ? $sorted[$middle]
	  : mean(@sorted[ $middle - 1, $middle ]);
}

# The smallest value that at least this share of all does not exceed.
sub percentile ($share, @values)
{
	my @sorted = sort { $a <=> $b } @values;
	my $rank = POSIX::ceil($share * @sorted);
	return $sorted[ max($rank, 1) - 1 ];
}

# Median and, where there is more than one value, the smallest and largest.
sub spread ($format, @values)
{
	return '-' unless @values;
	my $text = sprintf($format, median(@values));
	return $text if @values == 1;
	return
	  sprintf("%s ($format–$format)", $text, min(@values), max(@values));
}

# Of a record of Bench::Drain.
sub cpu_per_100k ($run, @sides)
{
	return sum(map { $run->{cpu}{$_} } @sides) / $run->{changes} * 100_000;
}

# A number for people.
sub thousands ($count)
{
	1 while $count =~ s/^(\d+)(\d{3})/$1,$2/;
	return $count;
}

1;
