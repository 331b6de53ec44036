# The tables of the trials: 5,000,000 rows, times a size, in narrow tables with
# keys of several kinds, one with large values out of line, one in partitions,
# and pgbench's own.  And what changes them while they are copied.
#
# Each table has room for twice as many keys as it has rows; a key is a number
# made into what the table's key is.  Each client changes keys of its own, those
# with its number as the remainder, so that moving a row to another key never
# fails.  Half of the keys are taken, and changes leave it at that.

package Bench::Trial::Set;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Schema qw(tpcb_content);
use Bench::Stats qw(thousands);
use List::Util qw(max sum);

our $CLIENTS = 4;
our $PARTITIONS = 4;
our $PGBENCH_SCALE = 10;
our $SPAN = 400;

# rows, columns beside n, an integer that is counted up; the key's definition,
# its columns, and its values made of a number; the other columns' values made
# of a number; and how often the table's turn comes.
our @TABLES = (
	{
		name => 'item',
		rows => 1_300_000,
		columns => 'at timestamptz DEFAULT now(), note text',
		key => [ ['id integer'], 'id', '%s' ],
		values => q{now(), 'note ' || %s},
		weight => 4,
	},
	{
		name => 'pair',
		rows => 1_000_000,
		columns => 'price numeric(12, 2), at timestamptz',
		key => [
			[ 'grp integer', 'id integer' ],
			'grp, id', '%1$s %% 100, %1$s / 100'
		],
		values => '%s / 7.0, now()',
		weight => 3,
	},
	{
		name => 'doc',
		rows => 600_000,
		columns => 'tags text[], body jsonb',
		key => [ ['id uuid'], 'id', q{md5(%s::text)::uuid} ],
		values => q{ARRAY['a', %1$s::text], jsonb_build_object('number', %1$s)},
		weight => 3,
	},
	{
		name => 'wide',
		rows => 100_000,
		columns => 'at timestamptz, body text STORAGE EXTERNAL',
		key => [ ['id integer'], 'id', '%s' ],
		values => q{now(), (SELECT string_agg(md5((%1$s + j)::text), '')
			FROM generate_series(1, 40 + %1$s %% 160) j)},
		weight => 2,
	},
	{
		name => 'part',
		rows => 1_000_000,
		columns => 'note text',
		key => [ ['id integer'], 'id', '%s' ],
		values => q{'part ' || %s},
		weight => 4,
		partitions => $PARTITIONS,
	});

sub pgbench_scale ($size)
{
	return max(1, int($PGBENCH_SCALE * $size + 0.5));
}

sub rows ($table, $size)
{
	return 4 * int($table->{rows} * $size / 4);
}

# What Bench::Schema calls a content.
#   tables       those with a log trigger
#   compared     those that are compared: partitioned ones as a whole
#   key          name => the columns of its key
sub content ($size)
{
	my $tpcb = tpcb_content(pgbench_scale($size));
	my %key = (
		pgbench_accounts => 'aid',
		pgbench_branches => 'bid',
		pgbench_tellers => 'tid',
		pgbench_history => 'id',
		map { $_->{name} => $_->{key}[1] } @TABLES);
	return {
		name => 'set',
		tables =>
		  [ @{ $tpcb->{tables} }, map { leaves($_) } @TABLES ],
		own_tables => [ map { leaves($_) } @TABLES ],
		tpcb_tables => $tpcb->{tables},
		compared => [ sort keys %key ],
		key => \%key,
		create => sub ($cluster) {
			$tpcb->{create}->($cluster);
			$cluster->do(map { statements($_, $size) } @TABLES);
		}
	};
}

sub leaves ($table)
{
	my $partitions = $table->{partitions} or return $table->{name};
	return map { "$table->{name}_$_" } 1 .. $partitions;
}

sub statements ($table, $size)
{
	my $rows = rows($table, $size);
	my ($definition, $key) = @{ $table->{key} };
	my $columns = $table->{columns} =~ s/STORAGE EXTERNAL//r;
	my @create = (
		"CREATE TABLE $table->{name} ("
		  . join(', ', @$definition, 'n integer NOT NULL', $columns)
		  . ", PRIMARY KEY ($key))");
	if (my $partitions = $table->{partitions})
	{
		$create[0] .= " PARTITION BY RANGE ($key)";
		my @bounds = map { int(2 * $rows * $_ / $partitions) }
		  1 .. $partitions - 1;
		@bounds = ('MINVALUE', @bounds, 'MAXVALUE');
		push @create,
		  map { "CREATE TABLE $table->{name}_$_ PARTITION OF $table->{name}
			FOR VALUES FROM ($bounds[ $_ - 1 ]) TO ($bounds[$_])" }
		  1 .. $partitions;
	}
	my ($external) = $table->{columns} =~ /(\w+) \w+ STORAGE EXTERNAL/;
	push @create,
	  "ALTER TABLE $table->{name} ALTER $external SET STORAGE EXTERNAL"
	  if $external;

	# every remainder is taken alike
	my $number = '(i * 2 + i / 2 % 2)';
	return (
		@create,
		"INSERT INTO $table->{name} SELECT "
		  . join(', ',
			sprintf($table->{key}[2], $number),
			'i % 1000', sprintf($table->{values}, $number))
		  . ' FROM generate_series(0, '
		  . ($rows - 1)
		  . ') i');
}

# Options for pgbench: TPC-B and changes of all tables.
sub mixed_load ($work_dir, $size)
{
	return (
		-c => $CLIENTS,
		'--max-tries' => 1000,
		-b => 'tpcb-like@8',
		(
			map {
				(-f => script($work_dir, $_, $size) . '@' . $_->{weight})
			} @TABLES),
		-f => span_script($work_dir, $size) . '@1');
}

# Insert or update, update, update of the large values or of what else there
# is, delete, and a row to another key.
sub script ($work_dir, $table, $size)
{
	my ($name, $columns, $value) = ($table->{name}, @{ $table->{key} }[ 1, 2 ]);
	my %key = map { $_ => sprintf($value, ":$_") } 'a' .. 'f';
	my @names = map { /^(\w+)/ } split /, (?=\w+ )/, $table->{columns};
	my $half = rows($table, $size) / 2;
	my @lines = (
		(
			map { "\\set $_ $CLIENTS * random(0, $half - 1) + :client_id" }
			  'a' .. 'f'),
		'BEGIN;',
		"INSERT INTO $name VALUES ($key{a}, 0, "
		  . sprintf($table->{values}, ':a')
		  . ") ON CONFLICT ($columns) DO UPDATE SET n = $name.n + 1;",
		"UPDATE $name SET n = n + 1 WHERE ($columns) = ($key{b});",
		"UPDATE $name SET ("
		  . join(', ', @names)
		  . ') = ROW('
		  . sprintf($table->{values}, ':f')
		  . ") WHERE ($columns) = ($key{c});",
		"DELETE FROM $name WHERE ($columns) = ($key{d});",
		"UPDATE $name SET ($columns) = ROW($key{e})"
		  . " WHERE ($columns) = ($key{f})"
		  . " AND NOT EXISTS (SELECT FROM $name WHERE ($columns) = ($key{e}));",
		'COMMIT;');
	return write_script($work_dir, $name, map { s/\s+/ /gr } @lines);
}

# Many neighbours at once: the bookmark is likely to be among them now and then.
sub span_script ($work_dir, $size)
{
	my $keys = 2 * rows($TABLES[0], $size);
	my $name = $TABLES[0]{name};
	return write_script(
		$work_dir, 'span',
		"\\set a random(0, $keys)",
		"UPDATE $name SET n = n + 1 WHERE id BETWEEN :a AND :a + $SPAN;");
}

sub write_script ($work_dir, $name, @lines)
{
	my $file = "$work_dir/$name.sql";
	open(my $script, '>', $file) or die "$file: $!\n";
	print $script map { "$_\n" } @lines;
	close($script) or die "$file: $!\n";
	return $file;
}

# Dies unless both sides have the same rows, compared in the order of their
# keys.  Returns the number of rows.
sub compare ($content, $master, $slave)
{
	my $rows = 0;
	foreach my $table (@{ $content->{compared} })
	{
		my @sides = map { digest($_, $table, $content->{key}{$table}) }
		  $master, $slave;
		die "$table differs: master has $sides[0], slave has $sides[1]\n"
		  if $sides[0] ne $sides[1];
		$rows += (split ' ', $sides[0])[0];
	}
	return $rows;
}

sub digest ($cluster, $table, $key)
{
	return $cluster->value(
		"SELECT count(*) || ' rows, hash '
		   || coalesce(md5(string_agg(md5(t::text), '' ORDER BY $key)), '-')
		 FROM $table t");
}

sub describe ($size)
{
	my $narrow = sum(map { rows($_, $size) } @TABLES[ 0 .. 2 ]);
	return sprintf(
		'%s rows in three narrow tables with keys of different kinds, %s with'
		  . ' values of 1 to 6 kB out of line, %s in %d partitions, and'
		  . ' pgbench\'s tables at scale %d',
		thousands($narrow), thousands(rows($TABLES[3], $size)),
		thousands(rows($TABLES[4], $size)), $PARTITIONS,
		pgbench_scale($size));
}

1;
