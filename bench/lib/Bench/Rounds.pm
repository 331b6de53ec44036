# The overhead: what a replicator takes from the rate of its master.
#
# The order of runs: one system at a time on a fresh pair, beside a fresh
# baseline; in each round each load goes baseline, (b), baseline, (c),
# baseline, so that every run of the system lies between two of the baseline.
#
# The result for a system:
#   name, title
#   rows       names of the rates, in order
#   rates      row => { baseline, rate_b, rate_c, share_b, share_c }, lists
#   lag        load => { lags, drain_b, drain_c }, lists of seconds
#   bytes      see Bench::Bytes

package Bench::Rounds;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Bytes;
use Bench::Command qw(progress);
use Bench::Lag;
use Bench::Load;
use Bench::Schema qw(overhead_content);
use Bench::Stats qw(mean);
use Bench::System::Baseline;
use File::Path qw(remove_tree);

our @TIMED_LOADS = qw(tpcb insert bulk);
our $WARM_UP_SECONDS = 3;

# Most bulk tables that a cluster uses: three baseline runs a round, one for
# the bytes.
sub bulk_tables ($options)
{
	return 3 * $options->{rounds} * $Bench::Load::BULK_TABLES_A_RUN + 1;
}

sub new ($class, $top_dir, $pairs, $options)
{
	return bless {
		top_dir => $top_dir,
		pairs => $pairs,
		template => $pairs->template(
			overhead_content($options->{scale}, bulk_tables($options))),
		options => $options,
	}, $class;
}

# Appends to results.
sub measure_all ($self, $classes, $results)
{
	foreach my $class (@$classes)
	{
		my $complete = eval {
			push @{ $results->{systems} }, $self->measure_system($class);
			1;
		};
		my $error = $@;
		$self->end_system;
		$self->{pairs}->note_failure($class->name, 'overhead', $error)
		  unless $complete;
	}
	return;
}

sub measure_system ($self, $class)
{
	$self->{work_dir} = "$self->{top_dir}/" . $class->name;
	mkdir $self->{work_dir} or die "$self->{work_dir}: $!\n";
	progress($class->title, 'set up');
	my @new = ($self->{work_dir}, $self->{template});
	my $baseline = $self->{baseline} = Bench::System::Baseline->new(@new);
	my $system = $self->{system} = $class->new(@new);
	$_->setup foreach $baseline, $system;
	$self->{result} =
	  { name => $system->name, title => $system->title, rows => [] };
	$self->{pairs}->note_system($system);

	$self->warm_up;
	foreach my $round (1 .. $self->{options}{rounds})
	{
		$self->run_load($round, $_)
		  foreach grep { $self->wanted($_) } @TIMED_LOADS;
	}
	$self->measure_bytes if $self->wanted('bytes');

	$self->end_system;
	return $self->{result};
}

# Also the way out after an error.
sub end_system ($self)
{
	return unless $self->{system} || $self->{baseline};
	if (my $lag = delete $self->{lag}) { $lag->abandon; }
	foreach my $role (qw(system baseline))
	{
		my $system = delete $self->{$role} or next;
		$system->teardown;
	}
	remove_tree($self->{work_dir}) unless $self->{options}{keep};
	return;
}

sub wanted ($self, $load)
{
	return grep { $_ eq $load } @{ $self->{options}{loads} };
}

sub measure_bytes ($self)
{
	progress($self->{system}->title, 'bytes');
	$self->{result}{bytes} = [
		Bench::Bytes::measure($self->{baseline}, $self->{system},
			$self->{work_dir})
	];
	$self->{system}->compare_content(@{ $self->{system}{tables} });
	return;
}

# First runs find cold caches; these are not counted.
sub warm_up ($self)
{
	foreach my $load (grep { $self->wanted($_) } qw(tpcb insert))
	{
		Bench::Load::run($load, $_->master, $self->{work_dir},
			$WARM_UP_SECONDS)
		  foreach $self->{baseline}, $self->{system};
	}
	$self->{system}->wait_caught_up;
	return;
}

sub run_load ($self, $round, $load)
{
	my ($before, $b, $between, $c, $after) =
	  ($self->run_baseline($load), $self->run_consuming($load),
		$self->run_baseline($load), $self->run_stopped($load),
		$self->run_baseline($load));

	foreach my $row (sort keys %$before)
	{
		my $rates = $self->{result}{rates}{$row} //= $self->new_row($row);
		push @{ $rates->{baseline} }, map { $_->{$row} } $before, $between,
		  $after;
		push @{ $rates->{rate_b} }, $b->{$row};
		push @{ $rates->{rate_c} }, $c->{$row};
		push @{ $rates->{share_b} },
		  $b->{$row} / mean($before->{$row}, $between->{$row});
		push @{ $rates->{share_c} },
		  $c->{$row} / mean($between->{$row}, $after->{$row});
		progress(
			$self->{system}->title,
			"round $round",
			sprintf('%s: baseline %.0f, (b) %.0f = %.2f, (c) %.0f = %.2f',
				$row, mean(map { $_->{$row} } $before, $between, $after),
				$b->{$row}, $rates->{share_b}[-1], $c->{$row},
				$rates->{share_c}[-1]));
	}
	return;
}

sub new_row ($self, $row)
{
	push @{ $self->{result}{rows} }, $row;
	return {};
}

sub run_baseline ($self, $load)
{
	$self->settle;
	my ($rates) = $self->run_on($self->{baseline}, $load);
	return $rates;
}

# (b): the slave consumes.
sub run_consuming ($self, $load)
{
	my $system = $self->{system};
	my $lag = $self->{result}{lag}{$load} //= {};

	$self->settle;
	$self->{lag} = Bench::Lag->start($system->master, $system->slave);
	my ($rates, @tables) = $self->run_on($system, $load);
	push @{ $lag->{drain_b} }, $system->wait_caught_up;
	push @{ $lag->{lags} }, (delete $self->{lag})->finish;
	$system->compare_content(@tables);
	return $rates;
}

# (c): the slave is stopped; it catches up after.
sub run_stopped ($self, $load)
{
	my $system = $self->{system};
	my $lag = $self->{result}{lag}{$load};

	$system->stop_slave;
	$self->settle;
	my ($rates, @tables) = $self->run_on($system, $load);
	$system->start_slave;
	push @{ $lag->{drain_c} }, $system->wait_caught_up;
	$system->compare_content(@tables);
	return $rates;
}

sub run_on ($self, $system, $load)
{
	return Bench::Load::run($load, $system->master, $self->{work_dir},
		$self->{options}{seconds});
}

# The same state before each run: nothing to vacuum in the benchmark's tables,
# nothing to write out.
sub settle ($self)
{
	my @clusters =
	  map { $_->running_clusters } $self->{baseline}, $self->{system};
	foreach my $cluster (@clusters)
	{
		$cluster->do((map { "VACUUM $_" } @{ $self->{baseline}{tables} }),
			'CHECKPOINT');
	}
	return;
}

1;
