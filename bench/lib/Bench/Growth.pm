# Whether the drain rate stays the same as things grow: the backlog, and the
# number of replicated tables.
#
# Changes are half inserts of new rows and half updates of 100,000 old ones, 10
# per transaction.  With many tables they go either to one of them, the others
# being replicated but quiet, or to all of them in turns, so that each
# transaction touches ten.
#
# A record, as it is in the JSON, is one of Bench::Drain with
#   series    what grows: backlog, tables
#   tables    how many are replicated
#   spread    over how many of them the changes go

package Bench::Growth;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Backlog;
use Bench::Drain;
use List::Util qw(min);

our @SYSTEMS = qw(pyreplica native);
our @BACKLOGS = (10_000, 100_000, 1_000_000, 10_000_000);
our @TABLES = (1, 100, 5_000);
our $TABLES_BACKLOG = 200_000;
our $OLD_ROWS = 100_000;

# All points, the systems in turns.  Appends to results.
sub measure_all ($pairs, $classes, $results, $options)
{
	my %wanted = map { $_ => 1 } @SYSTEMS;
	my @growing = grep { $wanted{ $_->name } } @$classes;
	my @points = points($options->{'growth-max'});
	foreach my $round (1 .. $options->{'growth-rounds'})
	{
		foreach my $point (@points)
		{
			foreach my $class (@growing)
			{
				push @{ $results->{growth} },
				  map { { %$_, %$point{qw(series tables spread)} } }
				  Bench::Drain::measure($pairs, $class, $point, $round,
					$options);
			}
		}
	}
	return;
}

# As backlogs, see Bench::Backlog.
sub points ($largest)
{
	my $few = min($TABLES_BACKLOG, $largest);
	return (
		(map { point('backlog', $_, 1, 1) } grep { $_ <= $largest } @BACKLOGS),
		map {
			my $tables = $_;
			map { point('tables', $few, $tables, $_) }
			  $tables == 1 ? 1 : (1, $tables)
		} @TABLES);
}

sub point ($series, $changes, $tables, $spread)
{
	return {
		name => "growth-$changes-$tables-$spread",
		series => $series,
		changes => $changes,
		tables => $tables,
		spread => $spread,
		content => content($tables, $spread),
		make => sub ($cluster) {
			$cluster->do(
				$spread == 1
				? changes_of_one($changes)
				: changes_of_many($changes, $spread));
		}
	};
}

# Tables growth_0 and so on; row i is in the one with the number i % spread.
sub content ($tables, $spread)
{
	my $payload = Bench::Backlog::payload('-i');
	return {
		name => "growth-$tables-$spread",
		tables => [ map { "growth_$_" } 0 .. $tables - 1 ],
		create => sub ($cluster) {
			$cluster->do(<<"SQL");
DO \$\$
BEGIN
	FOR t IN 0 .. $tables - 1 LOOP
		EXECUTE format('CREATE TABLE growth_%s
			(id integer PRIMARY KEY, payload text NOT NULL)', t);
		IF t < $spread THEN
			EXECUTE format('INSERT INTO growth_%s SELECT i, $payload
				FROM generate_series(%s, $OLD_ROWS - 1, $spread) i', t, t);
		END IF;
		COMMIT;
	END LOOP;
END
\$\$
SQL
		}
	};
}

# Each transaction inserts five rows and updates five.
sub changes_of_one ($changes)
{
	my $payload = Bench::Backlog::payload('c + id');
	my $keys = join(', ', map { old_key("c + $_", $OLD_ROWS) } 0 .. 4);
	return Bench::Backlog::transactions(
		rows => $changes,
		per_transaction => 10,
		step => 10,
		statement => "INSERT INTO growth_0 SELECT id, $payload
			FROM generate_series($OLD_ROWS + c, $OLD_ROWS + c + 4) id;
		UPDATE growth_0 SET payload = $payload WHERE id IN ($keys)");
}

# Change c goes to table c % tables; a table's changes are inserts and updates
# by turns.
sub changes_of_many ($changes, $tables)
{
	my $payload = Bench::Backlog::payload('c');
	my $key = old_key("c / $tables", "($OLD_ROWS / $tables)");
	return Bench::Backlog::transactions(
		rows => $changes,
		per_transaction => 10,
		declare => 't integer;',
		statement => "t := c % $tables;
		IF (c / $tables + t) % 2 = 0 THEN
			EXECUTE format('INSERT INTO growth_%s VALUES (\$1, \$2)', t)
			USING $OLD_ROWS + c, $payload;
		ELSE
			EXECUTE format('UPDATE growth_%s SET payload = \$2
				WHERE id = \$1', t)
			USING t + $tables * $key, $payload;
		END IF");
}

# Any of 0 .. rows - 1, different ones for neighbours.
sub old_key ($number, $rows)
{
	return "(($number)::bigint * 7919 % $rows)::integer";
}

1;
