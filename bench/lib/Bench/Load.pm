# The loads: what is written on a master (or on the baseline), and how fast it
# went.  Each answers with its rates by the name of the table's row.

package Bench::Load;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Schema qw(tpcb_tables bulk_table);
use Time::HiRes qw(time);

our $BULK_ROWS = 200_000;
our $BULK_TABLES_A_RUN = 2;
our $PAYLOAD_BYTES = 100;

# changes: rows that a transaction (of pgbench) changes.
our %PGBENCH = (
	tpcb => {
		row => 'TPC-B',
		tables => [ tpcb_tables() ],
		clients => 2,
		changes => 4,
		options => sub ($work_dir) { return; },
	},
	insert => {
		row => 'single-row inserts',
		tables => ['bench_insert'],
		clients => 4,
		changes => 1,
		options => sub ($work_dir) {
			return (-M => 'prepared', -f => insert_script($work_dir));
		},
	});

sub title ($load)
{
	return $load eq 'bulk' ? 'bulk' : $PGBENCH{$load}{row};
}

# Runs a load once on a cluster.  Returns { row => rate } and the tables that
# it wrote to.
sub run ($load, $cluster, $work_dir, $seconds)
{
	return run_bulk($cluster) if $load eq 'bulk';

	my $output = run_pgbench($load, $cluster, $work_dir, -T => $seconds);
	my ($tps) = $output =~ /^tps = ([\d.]+)/m
	  or die "pgbench told no rate:\n$output";
	return ({ $PGBENCH{$load}{row} => $tps }, @{ $PGBENCH{$load}{tables} });
}

# A number of changes near the wanted one; returns how many they were.
sub run_changes ($load, $cluster, $work_dir, $changes)
{
	my ($clients, $each) = @{ $PGBENCH{$load} }{qw(clients changes)};
	my $transactions = int($changes / $each / $clients);
	run_pgbench($load, $cluster, $work_dir, -t => $transactions);
	return $transactions * $each * $clients;
}

sub run_pgbench ($load, $cluster, $work_dir, @length)
{
	my $pgbench = $PGBENCH{$load};
	return $cluster->pgbench(
		'-n',
		-c => $pgbench->{clients},
		-j => 2,
		@length, $pgbench->{options}->($work_dir));
}

sub insert_script ($work_dir)
{
	my $file = "$work_dir/insert.sql";
	open(my $script, '>', $file) or die $!;
	print $script "INSERT INTO bench_insert (payload) VALUES ('",
	  'x' x $PAYLOAD_BYTES, "');\n";
	close($script) or die $!;
	return $file;
}

# 200,000 rows in one INSERT, then one UPDATE of them; on one table after the
# other, as one pair of statements is too short to be a measure.
sub run_bulk ($cluster)
{
	my @tables = map { next_bulk_table($cluster) } 1 .. $BULK_TABLES_A_RUN;
	my %seconds;
	foreach my $table (@tables)
	{
		$seconds{'bulk INSERT'} += seconds_of($cluster, bulk_insert($table));
		$seconds{'bulk UPDATE'} += seconds_of($cluster, bulk_update($table));
	}
	my %rates =
	  map { $_ => $BULK_ROWS * @tables / $seconds{$_} } keys %seconds;
	return (\%rates, @tables);
}

sub next_bulk_table ($cluster)
{
	return bulk_table($cluster->{next_bulk}++);
}

sub bulk_insert ($table)
{
	return "INSERT INTO $table
		SELECT i, repeat('x', $PAYLOAD_BYTES)
		FROM generate_series(1, $BULK_ROWS) i";
}

sub bulk_update ($table)
{
	return "UPDATE $table SET payload = repeat('y', $PAYLOAD_BYTES)";
}

sub seconds_of ($cluster, $statement)
{
	my $begin = time();
	$cluster->do($statement);
	return time() - $begin;
}

1;
