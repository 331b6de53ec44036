# Two kinds of charts, as SVG made by gnuplot.

package Bench::Gnuplot;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Stats qw(median thousands);
use List::Util qw(max min);

our @SIZE = (960, 500);

# Told apart by those who do not see all colours, too.
our @COLORS =
  ('#d55e00', '#0072b2', '#56b4e9', '#009e73', '#cc79a7', '#999999');

# Groups of bars, with the smallest and the largest value as whiskers.
#   file, title, y_label
#   groups    labels of the groups
#   series    list of [ title, list of values for each group ]
#   settings  optional, more lines for gnuplot
sub bars (%chart)
{
	my $count = @{ $chart{series} };
	my @plots = map {
		my ($value, $low, $high) = map { $_ + 2 } 3 * $_ .. 3 * $_ + 2;
		sprintf('$data using %d:%d:%d:xtic(1) title %s linecolor rgb "%s"',
			$value, $low, $high, quoted($chart{series}[$_][0]),
			$COLORS[ $_ % @COLORS ])
	} 0 .. $count - 1;
	my @rows = map {
		my $group = $_;
		join(' ',
			quoted($chart{groups}[$group]),
			map { summary(@{ $_->[1][$group] }) } @{ $chart{series} })
	} 0 .. $#{ $chart{groups} };
	return draw(
		\%chart,
		'set style data histograms',
		'set style histogram errorbars gap 1.5 linewidth 1',
		'set style fill solid 0.9 noborder',
		'set boxwidth 0.9',
		'set xtics scale 0',
		'set bmargin 4',
		data('data', @rows),
		'plot ' . join(', ', @plots));
}

# Lines over a logarithmic axis.
#   file, title, x_label, y_label
#   series    list of [ title, { x => list of values } ]
#   settings  optional, more lines for gnuplot
sub lines (%chart)
{
	my (@blocks, @plots);
	foreach my $number (0 .. $#{ $chart{series} })
	{
		my ($title, $points) = @{ $chart{series}[$number] };
		push @blocks,
		  data("data$number",
			map { "$_ " . summary(@{ $points->{$_} }) }
			sort { $a <=> $b } keys %$points);
		push @plots,
		  sprintf(
			'$data%d using 1:2:3:4 with yerrorlines title %s'
			  . ' linecolor rgb "%s" linewidth 2 pointtype %d',
			$number, quoted($title), $COLORS[ $number % @COLORS ],
			$number + 4);
	}
	my %x = map { $_ => 1 } map { keys %{ $_->[1] } } @{ $chart{series} };
	my @x = sort { $a <=> $b } keys %x;
	return draw(
		\%chart,
		'set logscale x',
		sprintf('set xrange [%f:%f]', $x[0] / 1.5, $x[-1] * 1.5),
		'set xlabel ' . quoted($chart{x_label}),
		'set xtics ('
		  . join(', ', map { quoted(thousands($_)) . " $_" } @x) . ')',
		@blocks,
		'plot ' . join(', ', @plots));
}

sub draw ($chart, @lines)
{
	open(my $gnuplot, '|-', 'gnuplot') or die "could not run gnuplot: $!\n";
	print $gnuplot map { "$_\n" } (
		"set terminal svg size $SIZE[0],$SIZE[1] dynamic font 'sans-serif,13'"
		  . " background rgb 'white'",
		'set encoding utf8',
		'set output ' . quoted($chart->{file}),
		'set title ' . quoted($chart->{title}) . " font ',15'",
		'set ylabel ' . quoted($chart->{y_label}),
		'set yrange [0:*]',
		'set grid ytics linecolor rgb "#dddddd" linetype 1',
		'set border 3',
		'set tics nomirror',
		'set errorbars linecolor rgb "#444444"',
		'set key center top outside horizontal',
		@{ $chart->{settings} // [] },
		@lines);
	close($gnuplot) or die "gnuplot failed for $chart->{file}\n";
	return;
}

sub data ($name, @rows)
{
	return ("\$$name << EOD", @rows, 'EOD');
}

sub summary (@values)
{
	return 'NaN NaN NaN' unless @values;
	return join(' ', median(@values), min(@values), max(@values));
}

sub quoted ($text)
{
	return '"' . $text =~ s/(["\\])/\\$1/gr =~ s/\n/\\n/gr . '"';
}

1;
