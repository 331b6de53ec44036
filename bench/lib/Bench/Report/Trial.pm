# Trials as tables.

package Bench::Report::Trial;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Markdown qw(section);
use Bench::Stats qw(spread thousands);

our %PARTS = (
	copy => \&copy_tables,
	verify => \&verify_tables,
	cost => \&cost_table);

# results: see Bench::Trial
sub render ($results)
{
	return join("\n",
		environment($results),
		promises($results),
		$results->{error} ? "**Not complete: $results->{error}**\n" : (),
		$PARTS{ $results->{trial} }->($results->{record}));
}

sub environment ($results)
{
	my ($before, $after) = @{ $results->{load_average} }{qw(before after)};
	my $options = join(', ',
		map { "$_ $results->{options}{$_}" }
		  sort keys %{ $results->{options} });
	return <<"TEXT";
- $results->{date}, $results->{machine};
  load average $before before, $after after
- PostgreSQL ${\ ($results->{server_version} // 'unknown')}; $options
- ${\ ($results->{record}{set} // '')}
TEXT
}

sub promises ($results)
{
	return section(
		'Promises', 'Goals, and what came of them.',
		[ '', 'measured', 'goal', '' ],
		map {
			[
				$_->{what},
				short($_->{value}),
				$_->{goal}, $_->{kept} ? 'kept' : '**broken**'
			]
		} @{ $results->{promises} });
}

sub short ($value)
{
	return $value =~ /^-?\d+\.\d+/ ? sprintf('%.3f', $value) : $value || 'none';
}

sub copy_tables ($record)
{
	my @runs = @{ $record->{runs} // [] } or return;
	my @rows = (
		[ 'seconds until all is ready', map { sprintf('%.1f', $_->{seconds}) } @runs ],
		[ 'of them with a server down', map { sprintf('%.1f', $_->{seconds_down}) } @runs ],
		[ 'kills of master, slave, both', map { kills($_) } @runs ],
		[ 'rows on the master at the end', map { thousands($_->{rows}) } @runs ],
		[ 'rows read for chunks', map { thousands($_->{rows_read}) } @runs ],
		[ 'of them in chunks cut off by kills', map { thousands($_->{rows_interrupted}) } @runs ],
		[ 'perhaps read besides', map { thousands($_->{rows_uncounted}) } @runs ],
		[ 'rows copied, by the bookmarks', map { thousands($_->{rows_copied}) } @runs ],
		[ 'transactions of the load', map { thousands($_->{transactions}) } @runs ],
		[ 'chunks', map { thousands($_->{chunks}) } @runs ],
		[ 'rows of a chunk', map { triple('%.0f', $_->{chunk_rows}) } @runs ],
		[ 'reading a chunk, s', map { triple('%.2f', $_->{reading}) } @runs ],
		[ 'from chunk to chunk, s', map { triple('%.2f', $_->{applying}) } @runs ],
		[ 'oldest snapshot, s', map { triple('%.2f', $_->{snapshot}) } @runs ],
		[ 'share of the time with one', map { sprintf('%.2f', $_->{snapshot}{share_of_time}) } @runs ],
		[ 'transactions begun since, max', map { $_->{snapshot}{xids_max} } @runs ]);
	return section(
		'Copy under load',
		'Triples are median, 99th percentile and maximum. Reading is the time of'
		  . ' the master\'s COPY, from chunk to chunk that between two commits'
		  . ' of the same table. The oldest snapshot is that of looks every 50 ms'
		  . ' at which pyreplica held one.',
		[ '', map { $_->{kind} } @runs ],
		@rows);
}

sub kills ($run)
{
	return join(', ', map { $run->{kills}{$_} // 0 } qw(master slave both));
}

sub triple ($format, $values)
{
	return '-' unless defined $values->{max};
	return join(' / ', map { sprintf($format, $values->{$_}) } qw(p50 p99 max));
}

sub verify_tables ($record)
{
	my @parts = map {
		[
			$_->{kind},
			sprintf('%.1f', $_->{seconds} / 60),
			thousands($_->{transactions}),
			$_->{runs},
			thousands($_->{ranges}),
			thousands($_->{rows}),
			$_->{differences}
		]
	} @{ $record->{continuous} // [] };
	my $flipped = $record->{flipped};
	return (
		section(
			'Continuous verification',
			'Transactions of pgbench at full speed meanwhile; runs that went'
			  . ' over all tables; rows of tables that were done, about.',
			[
				'', 'minutes', 'transactions', 'runs', 'ranges', 'rows',
				'differences'
			],
			@parts),
		!$flipped ? () : section(
			'One value of ' . thousands($flipped->{rows}) . ' rows',
			"One value of $flipped->{table} was changed on the slave, in the"
			  . " row with the key $flipped->{key}.",
			[ '', 'seconds', 'found' ],
			map {
				[
					$_,
					sprintf('%.1f', $flipped->{$_}{seconds}),
					join(', ', @{ $flipped->{$_}{found} }) || 'none'
				]
			} grep { $flipped->{$_} } qw(clean finding repairing after)));
}

sub cost_table ($record)
{
	my @rounds = @{ $record->{rounds} // [] } or return;
	return section(
		'Cost of verification in the background',
		'Transactions per second of TPC-B in each round, median (min–max), and'
		  . ' the ratio of both in the same round.',
		[ 'rounds', 'off', 'on', 'on / off', 'ranges compared in a round' ],
		[
			scalar @rounds,
			spread('%.0f', map { $_->{off} } @rounds),
			spread('%.0f', map { $_->{on} } @rounds),
			spread('%.3f', map { $_->{ratio} } @rounds),
			spread('%.0f', map { $_->{ranges_on} } @rounds)
		]);
}

1;
