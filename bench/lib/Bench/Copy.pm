# How fast tables are copied that begin to be replicated: one large table, or
# several smaller ones with as many rows together.
#
# The slave's tables are empty, with their primary keys.  The clock begins when
# the master's tables are made known, and ends when the slave says that all of
# them are in step.
#
# A record, as it is in the JSON:
#   tables, rows     rows: of all tables together
#   system           name
#   round
#   seconds, rate    rate: rows per second
#   cpu              seconds used meanwhile: { master, slave }

package Bench::Copy;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Backlog;
use Bench::Command qw(wait_until progress);
use Bench::Cpu;
use Bench::Drain;
use Time::HiRes qw(time);

our @SYSTEMS = qw(pyreplica native native-binary);
our @TABLES = (1, 4);
our $ROWS = 2_000_000;
our $GIVE_UP_SECONDS = 1800;

# All of it, the systems in turns.  Appends to results.
sub measure_all ($pairs, $classes, $results, $options)
{
	my %wanted = map { $_ => 1 } @SYSTEMS;
	my @copying = grep { $wanted{ $_->name } } @$classes;
	foreach my $round (1 .. $options->{rounds})
	{
		foreach my $tables (@TABLES)
		{
			push @{ $results->{copies} },
			  measure($pairs, $_, $tables, $round, $options)
			  foreach @copying;
		}
	}
	return;
}

sub measure ($pairs, $class, $tables, $round, $options)
{
	my $content =
	  content($tables, Bench::Backlog::scaled($ROWS, $options));
	my %record = (
		round => $round,
		tables => $tables,
		rows => $content->{rows});
	$pairs->with_system(
		$class, $content,
		sub ($system) {
			$record{system} = $system->name;
			$system->unfollow_tables;
			$system->slave->do(
				'TRUNCATE ' . join(', ', @{ $content->{tables} }));
			Bench::Drain::settle($system->master);
			my $begin = time();
			my $cpu = Bench::Cpu::of_system($system);
			$system->follow_tables;
			wait_until(
				$system->title . ' has copied the tables',
				$GIVE_UP_SECONDS,
				sub { $system->has_copied(scalar @{ $system->{tables} }) },
				0.01);
			$record{seconds} = time() - $begin;
			$record{cpu} =
			  Bench::Cpu::difference($cpu, Bench::Cpu::of_system($system));
			$system->compare_content(@{ $content->{tables} });
		}) or return;
	$record{rate} = $record{rows} / $record{seconds};
	progress(
		"copy of $tables tables",
		"round $round",
		sprintf(
			'%s %.0f/s, %.2f s, CPU %.2f + %.2f s',
			@record{qw(system rate seconds)},
			@{ $record{cpu} }{qw(master slave)}));
	return \%record;
}

sub content ($tables, $rows)
{
	my $each = int($rows / $tables);
	my $payload = Bench::Backlog::payload('i');
	return {
		name => "copy-$tables-$rows",
		rows => $each * $tables,
		tables => [ map { "copy_$_" } 1 .. $tables ],
		create => sub ($cluster) {
			$cluster->do(
				map {
					(
						"CREATE TABLE copy_$_ (id integer PRIMARY KEY,
							n integer, at timestamptz, payload text NOT NULL)",
						"INSERT INTO copy_$_ SELECT i, i % 1000, now(), $payload
						   FROM generate_series(1, $each) i")
				} 1 .. $tables);
		}
	};
}

1;
