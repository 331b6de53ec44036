# What it brings to build a table's indexes after its rows have been copied
# (pyreplica.copy_schema) instead of having them there before.
#
# The clock begins when the master's table is made known, and ends when the slave
# has all rows and all indexes.
#
# A record, as it is in the JSON:
#   when             'before' or 'after'
#   rows
#   round
#   seconds
#   cpu              seconds used meanwhile: { master, slave }

package Bench::Indexes;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Backlog;
use Bench::Command qw(wait_until progress);
use Bench::Cpu;
use Bench::Drain;
use Bench::System::Pyreplica;
use Time::HiRes qw(time);

our $TABLE = 'indexed';
our $INDEXES = 4;    # with the key's
our $ROWS = 2_000_000;
our $GIVE_UP_SECONDS = 1800;

# Both ways in turns.  Appends to results.
sub measure_all ($pairs, $results, $options)
{
	my $content = content(Bench::Backlog::scaled($ROWS, $options));
	foreach my $round (1 .. $options->{rounds})
	{
		push @{ $results->{indexes} },
		  measure($pairs, $content, $_, $round)
		  foreach $round % 2 ? qw(before after) : qw(after before);
	}
	return;
}

sub measure ($pairs, $content, $when, $round)
{
	my %record = (
		round => $round,
		when => $when,
		rows => $content->{rows});
	$pairs->with_system(
		'Bench::System::Pyreplica',
		$content,
		sub ($system) {
			my $slave = $system->slave;
			$system->unfollow_tables;
			if ($when eq 'after')
			{
				$slave->reload_with('pyreplica.copy_schema' => 'on');
				$slave->do("DROP TABLE $TABLE");
			}
			else
			{
				$slave->do("TRUNCATE $TABLE");
			}
			Bench::Drain::settle($system->master);
			my $begin = time();
			my $cpu = Bench::Cpu::of_system($system);
			$system->follow_tables;
			wait_until(
				"the table has been copied, indexes $when its rows",
				$GIVE_UP_SECONDS,
				sub {
					$system->has_copied(scalar @{ $system->{tables} })
					  && $slave->value(
						'SELECT count(*) = ? FROM pg_index
						  WHERE indrelid = to_regclass(?) AND indisvalid',
						$INDEXES, $TABLE);
				},
				0.01);
			$record{seconds} = time() - $begin;
			$record{cpu} =
			  Bench::Cpu::difference($cpu, Bench::Cpu::of_system($system));
			$system->compare_content($TABLE);
		}) or return;
	progress(
		"indexes $when rows",
		"round $round",
		sprintf('%.2f s, CPU %.2f + %.2f s',
			$record{seconds}, @{ $record{cpu} }{qw(master slave)}));
	return \%record;
}

# The keys come in order, the other columns do not.
sub content ($rows)
{
	my $payload = Bench::Backlog::payload('i');
	return {
		name => "indexes-$rows",
		rows => $rows,
		tables => [$TABLE],
		create => sub ($cluster) {
			$cluster->do(
				"CREATE TABLE $TABLE (id integer PRIMARY KEY,
					n integer, at timestamptz, payload text NOT NULL)",
				"INSERT INTO $TABLE
				 SELECT i, hashint4(i), now() - (hashint4(-i) % 100000) * interval '1 s', $payload
				   FROM generate_series(1, $rows) i",
				"CREATE INDEX ON $TABLE (n)",
				"CREATE INDEX ON $TABLE (at)",
				"CREATE INDEX ON $TABLE (payload)");
		}
	};
}

1;
