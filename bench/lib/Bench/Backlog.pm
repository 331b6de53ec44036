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

our @DRAINS = qw(i ii iii iv v vi);

our $SEED = 0.5;
our $HOT_KEYS = 100;

# 96 characters, other ones for each number.
our $PAYLOAD = 'repeat(md5((%s)::text), 3)';

our %MAKER = (
	i => \&inserts,
	ii => \&random_updates,
	iii => \&deletes,
	iv => \&tpcb,
	v => \&hot_updates,
	vi => \&one_transaction);

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

# A table drain_... with the keys 1 to $rows.
sub filled_table ($name, $rows)
{
	my $table = "drain_$name";
	return {
		name => $name,
		tables => [$table],
		create => sub ($cluster) {
			$cluster->do(create_payload_table($table),
				"INSERT INTO $table SELECT i, "
				  . payload('-i')
				  . " FROM generate_series(1, $rows) i");
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
