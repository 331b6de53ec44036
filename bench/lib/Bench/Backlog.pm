# Backlogs: what is written on a master while its slave is away.  The same
# changes, in the same order, for every system.
#
# A backlog is
#   name      what --drains and the JSON call it
#   title     its row in the tables
#   short     its place in a chart
#   changes   how many rows are changed
#   content   what the tables hold before (see Bench::Schema)
#   make      writes it on a cluster
#   limit     optional: a statement that makes the same rows at once

package Bench::Backlog;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Schema qw(tpcb_content create_payload_table);
use Bench::Stats qw(thousands);

our @DRAINS = qw(i ii iii iv v vi vii viii ix);

our $SEED = 0.5;
our $HOT_KEYS = 100;

our $WIDE_COLUMNS = 100;
our $PARTITIONS = 8;

# 96 characters, other ones for each number.
our $PAYLOAD = 'repeat(md5((%s)::text), 3)';

# 20 kB that cannot be compressed to a page.
our $LARGE = q{(SELECT string_agg(md5((%s)::text || ' ' || n), '')
	FROM generate_series(1, 625) n)};

our %MAKER = (
	i => \&inserts,
	ii => \&random_updates,
	iii => \&deletes,
	iv => \&tpcb,
	v => \&hot_updates,
	vi => \&one_transaction,
	vii => \&wide,
	viii => \&large_values,
	ix => \&partitioned);

sub drain ($name, $options)
{
	return { name => $name, $MAKER{$name}->($name, $options) };
}

sub inserts ($name, $options)
{
	my $rows = scaled(500_000, $options);
	my $insert = "INSERT INTO drain_$name SELECT i, " . payload('i');
	return (
		title => thousands($rows) . ' inserts, 100 per transaction',
		short => 'inserts',
		changes => $rows,
		content => filled_table($name, 0),
		limit => "$insert FROM generate_series(1, $rows) i",
		make => sub ($cluster) {
			$cluster->do(
				transactions(
					rows => $rows,
					per_transaction => 100,
					step => 100,
					statement => "$insert FROM generate_series(c, c + 99) i"));
		});
}

sub random_updates ($name, $options)
{
	my ($changes, $rows) =
	  map { scaled($_, $options) } 300_000, 1_000_000;
	return (
		title => thousands($changes)
		  . ' random updates by key, 10 per transaction',
		short => 'updates',
		changes => $changes,
		content => filled_table($name, $rows),
		make => sub ($cluster) {
			$cluster->do(
				transactions(
					rows => $changes,
					per_transaction => 10,
					declare => 'key integer;',
					statement => update_any("drain_$name", $rows)));
		});
}

# Any 200,000 of 500,000 rows, in any order.
sub deletes ($name, $options)
{
	my ($changes, $rows) = map { scaled($_, $options) } 200_000, 500_000;
	return (
		title => thousands($changes) . ' deletes, 10 per transaction',
		short => 'deletes',
		changes => $changes,
		content => filled_table($name, $rows),
		make => sub ($cluster) {
			$cluster->do(
				transactions(
					rows => $changes,
					per_transaction => 10,
					declare => 'keys integer[];',
					before => "keys := array(
						SELECT i FROM generate_series(1, $rows) i
						ORDER BY random());",
					statement => "DELETE FROM drain_$name WHERE id = keys[c]"
				));
		});
}

sub tpcb ($name, $options)
{
	my $clients = 2;
	my $transactions = scaled(50_000, $options);
	return (
		title => thousands($transactions) . ' TPC-B transactions of 4 changes',
		short => 'TPC-B',
		changes => 4 * $transactions,
		content => tpcb_content($options->{scale}),
		make => sub ($cluster) {
			$cluster->pgbench_logged(
				'-n',
				-M => 'prepared',
				-c => $clients,
				-j => $clients,
				-t => $transactions / $clients,
				'--random-seed=1');
		});
}

sub hot_updates ($name, $options)
{
	my $changes = scaled(200_000, $options);
	return (
		title => thousands($changes) . " one-row updates over $HOT_KEYS keys",
		short => 'hot updates',
		changes => $changes,
		content => filled_table($name, $HOT_KEYS),
		make => sub ($cluster) {
			$cluster->do(
				transactions(
					rows => $changes,
					per_transaction => 1,
					declare => 'key integer;',
					statement => update_any("drain_$name", $HOT_KEYS)));
		});
}

sub one_transaction ($name, $options)
{
	my $rows = scaled(1_000_000, $options);
	return (
		title => 'one transaction of ' . thousands($rows) . ' inserts',
		short => 'bulk',
		changes => $rows,
		content => filled_table($name, 0),
		make => sub ($cluster) {
			$cluster->do("INSERT INTO drain_$name SELECT i, "
				  . payload('i')
				  . " FROM generate_series(1, $rows) i");
		});
}

# Half of the changes are new rows, the others set five columns of any row.
sub wide ($name, $options)
{
	my ($changes, $rows) = map { scaled($_, $options) } 100_000, 50_000;
	my $half = $changes / 2;
	my $table = "drain_$name";
	my @types = ('integer', 'text', 'numeric(12,2)', 'timestamptz');
	my @values = (
		'i + %d', "'value ' || (i + %d)", '(i + %d) / 7.0',
		"timestamptz '2020-01-01' + (i + %d) * interval '1 minute'");
	my $row = join(', ',
		map { sprintf($values[ $_ % 4 ], $_) } 0 .. $WIDE_COLUMNS - 1);
	return (
		title => thousands($changes)
		  . " inserts and updates of rows with $WIDE_COLUMNS columns",
		short => 'wide rows',
		changes => $changes,
		content => filled_table(
			$name, $rows,
			row => $row,
			create => [
				"CREATE TABLE $table (id integer PRIMARY KEY, "
				  . join(', ',
					map { "c$_ $types[$_ % 4]" } 0 .. $WIDE_COLUMNS - 1)
				  . ')'
			]),
		make => sub ($cluster) {
			$cluster->do(
				transactions(
					rows => $half,
					per_transaction => 10,
					declare => 'key integer;',
					statement => "INSERT INTO $table SELECT i, $row
						FROM generate_series($rows + c, $rows + c) i;
					key := 1 + floor(random() * $rows);
					UPDATE $table SET c0 = c, c1 = 'changed ' || c,
						c2 = c / 3.0, c41 = c::text, c90 = c * 1.5
					 WHERE id = key"));
		});
}

# New rows, rows whose value stays, and rows whose value changes.
sub large_values ($name, $options)
{
	my ($changes, $rows) = map { scaled($_, $options) } 15_000, 5_000;
	my $third = $changes / 3;
	my $table = "drain_$name";
	return (
		title => thousands($changes)
		  . ' inserts, updates beside and updates of values of 20 kB',
		short => 'large values',
		changes => $changes,
		content => filled_table(
			$name, $rows,
			row => '0, ' . sprintf($LARGE, 'i'),
			create => [
				"CREATE TABLE $table (id integer PRIMARY KEY, n integer, payload text)"
			]),
		make => sub ($cluster) {
			$cluster->do(
				transactions(
					rows => $third,
					per_transaction => 10,
					declare => 'key integer;',
					statement => "INSERT INTO $table SELECT $rows + c, 0, "
					  . sprintf($LARGE, '-c') . ";
					key := 1 + floor(random() * $rows);
					UPDATE $table SET n = c WHERE id = key;
					key := 1 + floor(random() * $rows);
					UPDATE $table SET payload = "
					  . sprintf($LARGE, 'c')
					  . ' WHERE id = key'));
		});
}

# The table has partitions on both sides.
sub partitioned ($name, $options)
{
	my ($changes, $rows) = map { scaled($_, $options) } 400_000, 200_000;
	my $half = $changes / 2;
	my $table = "drain_$name";
	return (
		title => thousands($changes)
		  . " inserts and random updates in $PARTITIONS partitions",
		short => 'partitions',
		changes => $changes,
		content => filled_table(
			$name, $rows,
			create => [
				create_payload_table($table) . ' PARTITION BY HASH (id)',
				map {
					"CREATE TABLE ${table}_$_ PARTITION OF $table
					 FOR VALUES WITH (MODULUS $PARTITIONS, REMAINDER $_)"
				} 0 .. $PARTITIONS - 1
			]),
		make => sub ($cluster) {
			$cluster->do(
				transactions(
					rows => $half,
					per_transaction => 5,
					declare => 'key integer;',
					statement => "INSERT INTO $table VALUES ($rows + c, "
					  . payload('c')
					  . "); "
					  . update_any($table, $rows)));
		});
}

# A table drain_... with the keys 1 to $rows.  If it is not the usual one: "create",
# the statements that make it, and "row", what it holds beside the key, i.
sub filled_table ($name, $rows, %other)
{
	my $table = "drain_$name";
	my $row = $other{row} // payload('-i');
	return {
		name => $name,
		tables => [$table],
		create => sub ($cluster) {
			$cluster->do(
				@{ $other{create} // [ create_payload_table($table) ] },
				"INSERT INTO $table SELECT i, $row FROM generate_series(1, $rows) i");
		}
	};
}

# A block that runs a statement for c = 1, 1 + step, ... up to rows, and
# commits whenever per_transaction of them are done.
sub transactions (%task)
{
	my $step = $task{step} // 1;
	my $declare = $task{declare} // '';
	my $before = $task{before} // '';
	return <<"SQL";
DO \$\$
DECLARE
	$declare
BEGIN
	PERFORM setseed($SEED);
	$before
	FOR c IN 1 .. $task{rows} BY $step LOOP
		$task{statement};
		IF (c + $step - 1) % $task{per_transaction} = 0 THEN
			COMMIT;
		END IF;
	END LOOP;
END
\$\$
SQL
}

# One of the rows 1 to $rows.  random() in the WHERE clause itself would be
# asked for each row.
sub update_any ($table, $rows)
{
	return "key := 1 + floor(random() * $rows);
		UPDATE $table SET payload = " . payload('c') . ' WHERE id = key';
}

sub payload ($number)
{
	return sprintf($PAYLOAD, $number);
}

# Whole hundreds, so that every transaction is full.
sub scaled ($count, $options)
{
	my $scaled = 100 * int($count * $options->{size} / 100 + 0.5);
	return $scaled > 100 ? $scaled : 100;
}

1;
