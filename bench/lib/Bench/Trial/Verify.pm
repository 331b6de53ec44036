# Comparing without false alarms while the master is busy, and finding a single
# value that is wrong.
#
# The record:
#   continuous      { seconds, transactions, runs, ranges, rows, differences,
#                     kind => background | foreground }, a list; runs are
#                     those that went over all tables; rows are those of
#                     tables that were done, about
#   flipped         { rows, table, key, clean, finding, repairing, after:
#                     each { seconds, found } }

package Bench::Trial::Verify;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(progress);
use Bench::Stats qw(thousands);
use Bench::Trial::Load;
use Bench::Trial::Pair;
use Bench::Trial::Set;
use List::Util qw(min sum0);
use Time::HiRes qw(sleep time);

our $LOOK_SECONDS = 1;
our $BACKGROUND_INTERVAL = '1s';

sub run ($trial)
{
	my $options = $trial->{options};
	my $content = Bench::Trial::Set::content($options->{size});
	my $work_dir = $trial->new_directory;
	$trial->{record} =
	  { set => Bench::Trial::Set::describe($options->{size}) };

	progress('verify', 'set up');
	my $pair = Bench::Trial::Pair->new($work_dir, $trial->template($content),
		@{ $content->{tpcb_tables} });
	$trial->on_end(sub { $pair->teardown });
	$pair->setup;

	if ($options->{mixed})
	{
		$pair->follow(@{ $content->{own_tables} });
	}
	continuous($trial, $pair, $work_dir, 'background', $options->{minutes});
	continuous($trial, $pair, $work_dir, 'foreground',
		$options->{'foreground-minutes'});
	Bench::Trial::Set::compare($content, $pair->master, $pair->slave);

	$pair->follow(@{ $content->{own_tables} }) unless $options->{mixed};
	flip($trial, $pair, $work_dir);
	$trial->promise('errors and conflicts of the slave',
		$pair->troubles, 'none', sub ($count) { $count == 0 });
	$trial->end_all;
	return;
}

sub load ($trial, $work_dir)
{
	my $options = $trial->{options};
	return $options->{mixed}
	  ? Bench::Trial::Set::mixed_load($work_dir, $options->{size})
	  : (-c => $Bench::Trial::Set::CLIENTS, -b => 'tpcb-like');
}

# Verification again and again, under load at full speed.
sub continuous ($trial, $pair, $work_dir, $kind, $minutes)
{
	return if $minutes <= 0;
	my $watch = $kind eq 'background' ? \&in_background : \&in_foreground;
	my $load = Bench::Trial::Load->start($pair->master, $work_dir,
		load($trial, $work_dir));
	$trial->on_end(sub { $load->abandon });

	my $begin = time();
	my $ranges = $pair->ranges_compared;
	my %part = (kind => $kind, $watch->($pair, $load, $begin + 60 * $minutes));
	$part{seconds} = time() - $begin;
	$part{ranges} = $pair->ranges_compared - $ranges;
	$load->stop;
	$part{transactions} = int($load->transactions);
	$pair->wait_all;
	$part{differences} =
	  $pair->slave->value('SELECT count(*) FROM pyreplica_difference');
	push @{ $trial->{record}{continuous} }, \%part;

	progress('verify', $kind,
		map { "$_ " . thousands(int $part{$_}) } qw(runs ranges rows differences));
	$trial->promise("false differences, $kind",
		$part{differences}, 'none', sub ($count) { $count == 0 });
	$trial->promise("ranges compared, $kind",
		$part{ranges}, 'some', sub ($count) { $count > 0 });
	return;
}

# By the worker itself.  Tells how often each table was done.
sub in_background ($pair, $load, $end)
{
	my (%done, %last);
	my $rows = 0;
	my $look = sub ($count) {
		foreach my $table (tables($pair))
		{
			my ($name, $at, $live) = @$table;
			$done{$name} //= 0;
			if ($count && $at ne ($last{$name} // ''))
			{
				$done{$name}++;
				$rows += $live;
			}
			$last{$name} = $at;
		}
	};
	$look->(0);
	$pair->verify_in_background($BACKGROUND_INTERVAL);
	while (time() < $end)
	{
		sleep $LOOK_SECONDS;
		$load->check;
		$look->(1);
	}
	$pair->verify_in_background(undef);
	return (runs => min(values %done), rows => $rows);
}

# Name, when it was last verified, and rows, about.
sub tables ($pair)
{
	return @{
		$pair->slave->dbh->selectall_arrayref(
			q{SELECT t.tablename, coalesce(t.verified_at::text, ''), s.n_live_tup
				FROM pyreplica_tables t
				JOIN pg_stat_user_tables s
				  ON s.schemaname = t.schemaname AND s.relname = t.tablename}) };
}

sub in_foreground ($pair, $load, $end)
{
	my ($runs, $rows) = (0, 0);
	while (time() < $end)
	{
		verify($pair);
		$load->check;
		$runs++;
		$rows += sum0(map { $_->[2] } tables($pair));
	}
	return (runs => $runs, rows => $rows);
}

# { seconds, found => "table key problem" of each row }
sub verify ($pair, $arguments = '')
{
	my $begin = time();
	my @found = $pair->slave->column(
		"SELECT format('%s %s %s', v.\"table\", v.key, v.problem)
		   FROM pyreplica_verify($arguments) v");
	return { seconds => time() - $begin, found => \@found };
}

# One value of all the rows is made wrong on the slave, with the master at work.
sub flip ($trial, $pair, $work_dir)
{
	my $table = $Bench::Trial::Set::TABLES[0]{name};
	my $load = Bench::Trial::Load->start(
		$pair->master, $work_dir,
		-R => $trial->{options}{rate},
		-c => $Bench::Trial::Set::CLIENTS,
		-b => 'tpcb-like');
	$trial->on_end(sub { $load->abandon });

	my %flipped = (
		table => "public.$table",
		rows => sum0(map { $_->[2] } tables($pair)));
	my @steps = (
		[ clean => '' ],
		[
			finding => '',
			sub { $flipped{key} = make_wrong($pair->slave, $table) }
		],
		[ repairing => 'repair => true' ],
		[ after => '' ]);
	foreach my $step (@steps)
	{
		my ($name, $arguments, $before) = @$step;
		$before->() if $before;
		$flipped{$name} = verify($pair, $arguments);
		$load->check;
		progress('verify', $name,
			sprintf('%.1f s', $flipped{$name}{seconds}),
			join(', ', @{ $flipped{$name}{found} }) || 'no difference');
	}
	$load->stop;
	$pair->wait_all;
	$trial->{record}{flipped} = \%flipped;

	my $wanted = "public.$table {$flipped{key}} differs";
	foreach my $expected (
		[ clean => '' ],
		[ finding => $wanted ],
		[ repairing => $wanted ],
		[ after => '' ])
	{
		my ($name, $rows) = @$expected;
		$trial->promise(
			"rows found, $name",
			join(', ', @{ $flipped{$name}{found} }),
			$rows || 'none', sub ($found) { $found eq $rows });
	}
	$trial->promise(
		'the value, repaired',
		value_of($pair->slave, $table, $flipped{key}),
		'the master\'s',
		sub ($value) {
			$value eq value_of($pair->master, $table, $flipped{key});
		});
	return;
}

# Returns the key of the row.
sub make_wrong ($slave, $table)
{
	$slave->do('SET session_replication_role = replica');
	my $key = $slave->value(
		"UPDATE $table SET n = n + 1
		  WHERE id = (SELECT id FROM $table
					   ORDER BY id OFFSET (SELECT count(*) * random() FROM $table) LIMIT 1)
		RETURNING id");
	$slave->do('RESET session_replication_role');
	return $key;
}

sub value_of ($cluster, $table, $key)
{
	return $cluster->value("SELECT t::text FROM $table t WHERE id = ?", $key);
}

1;
