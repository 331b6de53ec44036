# What was measured, as tables in markdown.

package Bench::Report;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Cluster;
use Bench::Load;
use Bench::Markdown qw(section milliseconds);
use Bench::Report::Copy;
use Bench::Report::Drain;
use Bench::Report::Growth;
use Bench::Report::Indexes;
use Bench::Report::Latency;
use Bench::Report::Replicas;
use Bench::Rounds;
use Bench::Stats qw(median spread);
use List::Util qw(max);
use POSIX ();

# results:
#   server_version, load_average
#   titles, versions,
#     settings          of the systems, by name
#   failures            list of { system, what, error }
#   systems             list, see Bench::Rounds
#   backlogs            the drains' name, title, changes
#   drains, limits      lists, see Bench::Drain
#   copies              list, see Bench::Copy
#   indexes             list, see Bench::Indexes
#   growth              list, see Bench::Growth
#   latencies           list, see Bench::Latency
#   replicas            list, see Bench::Replicas
sub render ($results, $options)
{
	return join("\n",
		environment($results, $options),
		grep { defined } failures($results),
		Bench::Report::Drain::rate_table($results, $options->{cold}),
		Bench::Report::Drain::ratio_table($results),
		Bench::Report::Drain::cpu_table($results),
		Bench::Report::Copy::copy_table($results),
		Bench::Report::Indexes::indexes_table($results),
		Bench::Report::Growth::backlog_table($results),
		Bench::Report::Growth::tables_table($results),
		Bench::Report::Latency::latency_table($results, $options),
		Bench::Report::Replicas::replicas_table($results),
		rate_table($results), lag_table($results), bytes_table($results));
}

sub environment ($results, $options)
{
	my $settings = join(', ',
		map { "$_=$Bench::Cluster::COMMON_SETTINGS{$_}" }
		sort keys %Bench::Cluster::COMMON_SETTINGS);
	my $systems = join(', ',
		map { "$results->{titles}{$_} $results->{versions}{$_}" }
		sort keys %{ $results->{versions} });
	return <<"TEXT";
- ${\ POSIX::strftime('%Y-%m-%d', localtime)}, ${\ machine()};
  load average $results->{load_average} before the start
- PostgreSQL $results->{server_version}; $systems
- $settings; pgbench scale $options->{scale},
  $options->{rounds} rounds, $options->{seconds} s a run${\ size($options)}
${\ own_settings($results)}
TEXT
}

sub failures ($results)
{
	my @failures = @{ $results->{failures} // [] } or return undef;
	return join("\n",
		'### Failed, and not in the tables', '',
		(
			map { "- $_->{system}, $_->{what}: " . $_->{error} =~ s/\s+/ /gr }
			  @failures
		),
		'');
}

# How the replicators are set up.
sub own_settings ($results)
{
	my %settings = %{ $results->{settings} // {} };
	return join('',
		map { "- $results->{titles}{$_}: $settings{$_}\n" }
		grep { $settings{$_} } sort keys %settings);
}

sub size ($options)
{
	return $options->{size} == 1 ? '' : ", backlogs times $options->{size}";
}

sub machine ()
{
	my $cpuinfo = slurp('/proc/cpuinfo');
	my ($model) = $cpuinfo =~ /^model name\s*:\s*(.*)$/m;
	my $cores = () = $cpuinfo =~ /^processor\s*:/mg;
	my ($kilobytes) = slurp('/proc/meminfo') =~ /^MemTotal:\s*(\d+)/m;
	my ($distribution) = slurp('/etc/os-release') =~ /^PRETTY_NAME="(.*)"/m;
	return join(', ',
		$model // 'unknown processor',
		"$cores cores",
		sprintf('%.0f GB memory', ($kilobytes // 0) / 1024**2),
		$distribution // (POSIX::uname())[0],
		'kernel ' . (POSIX::uname())[2]);
}

# What else keeps the machine busy.
sub load_average ()
{
	my ($average) = slurp('/proc/loadavg') =~ /^(\S+)/;
	return $average // 'unknown';
}

sub slurp ($file)
{
	open(my $handle, '<', $file) or return '';
	local $/;
	return scalar <$handle>;
}

sub rate_table ($results)
{
	my @rows;
	foreach my $system (@{ $results->{systems} // [] })
	{
		foreach my $row (@{ $system->{rows} })
		{
			my $rates = $system->{rates}{$row};
			push @rows,
			  [
				$system->{title}, $row,
				spread('%.0f', @{ $rates->{baseline} }),
				map {
					spread('%.0f', @{ $rates->{"rate_$_"} }),
					  spread('%.2f', @{ $rates->{"share_$_"} })
				} qw(b c)
			  ];
		}
	}
	return undef unless @rows;
	return section(
		'Rate on the master, and its share of the unreplicated rate',
		'(b) the slave consumes on the same cores, (c) the slave is stopped.'
		  . ' Transactions, or rows of bulk statements, per second; median'
		  . ' (min–max). A share is of the mean of the two baseline runs'
		  . ' around it.',
		[ '', '', 'baseline', '(b)', '(b) share', '(c)', '(c) share' ],
		@rows);
}

sub lag_table ($results)
{
	my @rows;
	foreach my $system (@{ $results->{systems} // [] })
	{
		foreach my $load (@Bench::Rounds::TIMED_LOADS)
		{
			my $lag = $system->{lag}{$load} or next;
			push @rows,
			  [
				$system->{title},
				Bench::Load::title($load),
				milliseconds('%.0f', median(@{ $lag->{lags} })),
				milliseconds('%.0f', max(@{ $lag->{lags} })),
				spread('%.2f', @{ $lag->{drain_b} }),
				spread('%.2f', @{ $lag->{drain_c} })
			  ];
		}
	}
	return undef unless @rows;
	return section(
		'Lag',
		'Lag of a row committed on the master every 200 ms while the load'
		  . ' runs (b); then the seconds until the slave has caught up, after'
		  . ' the load of (b), and after the slave is started again in (c).',
		[
			'', '',
			'lag median, ms',
			'lag max, ms',
			'catch-up (b), s',
			'catch-up (c), s'
		],
		@rows);
}

sub bytes_table ($results)
{
	my @rows;
	foreach my $system (@{ $results->{systems} // [] })
	{
		foreach my $bytes (@{ $system->{bytes} // [] })
		{
			push @rows,
			  [
				$system->{title},
				$bytes->{row},
				map { defined ? sprintf('%.0f', $_) : '-' } (
					@{$bytes}{qw(baseline wal)},
					$bytes->{wal} - $bytes->{baseline},
					$bytes->{caught_up} - $bytes->{wal},
					$bytes->{log})
			  ];
		}
	}
	return undef unless @rows;
	return section(
		'Bytes per changed row, on the master',
		'WAL without full-page images, slave stopped; what the master writes'
		  . ' while the slave then catches up; growth of the log with its'
		  . ' indexes.',
		[
			'', '',
			'WAL baseline',
			'WAL',
			'WAL extra',
			'WAL catch-up',
			'log'
		],
		@rows);
}

1;
