# A pair with pyreplica on it for the trials: both sides begin with the same
# rows; the slave counts the ranges that it compares.

package Bench::Trial::Pair;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(wait_until);
use parent 'Bench::System::Pyreplica';

our $WAIT_SECONDS = 600;

sub slave_settings ($self, $master)
{
	return (
		$self->SUPER::slave_settings($master),
		shared_preload_libraries => 'pyreplica, pg_stat_statements');
}

# tables: those that are followed from the beginning
sub new ($class, $work_dir, $template, @tables)
{
	my $self = $class->SUPER::new($work_dir, $template);
	$self->{tables} = [ @tables, 'bench_heartbeat' ];
	return $self;
}

sub setup ($self)
{
	$self->SUPER::setup;
	my $postgres = $self->slave->connect('postgres');
	$postgres->do('CREATE EXTENSION pg_stat_statements');
	$postgres->disconnect;
	return;
}

# More tables, which have the same rows on both sides.
sub follow ($self, @tables)
{
	$self->master->do(map { "SELECT py_log_create_tg('$_')" } @tables);
	push @{ $self->{tables} }, @tables;
	wait_until(
		'the tables are followed',
		$WAIT_SECONDS,
		sub { $self->has_copied(scalar @{ $self->{tables} }) },
		0.2);
	return;
}

# Ranges of rows that were compared so far.
sub ranges_compared ($self)
{
	my $dbh = $self->{statements} //= $self->slave->connect('postgres');
	return scalar $dbh->selectrow_array(
		q{SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
		   WHERE query LIKE 'SELECT count(*), coalesce(sum(hashtext%'});
}

sub verify_in_background ($self, $interval)
{
	$self->slave->reload_with('pyreplica.verify_interval' => $interval);
	return;
}

sub wait_all ($self)
{
	$self->slave->value('SELECT pyreplica_wait(timeout => ?)',
		"$WAIT_SECONDS s")
	  or die "the slave has not caught up within $WAIT_SECONDS s\n";
	return;
}

# What must not have happened.
sub troubles ($self)
{
	return $self->slave->value(
		q{SELECT errors + conflicts FROM pyreplica_status});
}

1;
