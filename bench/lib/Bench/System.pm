# A replicator on a pair of clusters.  What all have in common is here; a
# subclass in Bench/System/ says how one is put on the pair:
#
#   title              its name in the tables
#   name               its name in paths and in the JSON
#   missing            what is not installed, as text for the user, or undef
#   version            its version (once set up)
#   master_settings    settings it needs beyond the common ones (lists of
#   slave_settings       names and values)
#   own_settings       how it is set up otherwise, for the reader
#   setup_master       called with the master running, before the slave starts
#   setup_slave        called with both running
#   start_daemons      processes that serve the slave, and how to end them
#   stop_daemons
#   master_daemons     the processes of them that serve either side, running
#   slave_daemons
#   unfollow_tables    the tables are not replicated any more
#   follow_tables      and are again, to be copied
#   has_copied         whether so many tables have been
#   log_bytes          bytes its log takes on the master, undef: it has none

package Bench::System;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Cluster;
use Bench::Command qw(wait_until);
use Time::HiRes qw(time);

our $CATCH_UP_SECONDS = 600;

sub new ($class, $work_dir, $template)
{
	my $self = bless {
		work_dir => $work_dir,
		tables => [ @{ $template->{tables} } ],
	}, $class;
	my $name = $self->name;
	$self->{master} = Bench::Cluster->new($work_dir, "$name-master",
		$self->master_settings)->copy_of($template);
	$self->{slave} =
	  Bench::Cluster->new($work_dir, "$name-slave",
		$self->slave_settings($self->{master}))->copy_of($template)
	  if $self->has_slave;
	return $self;
}

sub name ($self) { return lc $self->title =~ s/\W+/-/gr; }

sub has_slave ($self) { return 1; }

sub missing ($class) { return undef; }

sub version ($self) { return ''; }

sub master_settings ($self) { return (); }

sub slave_settings ($self, $master) { return (); }

sub own_settings ($self) { return (); }

sub setup_master ($self) { return; }

sub setup_slave ($self) { return; }

sub start_daemons ($self) { return; }

sub stop_daemons ($self) { return; }

sub master_daemons ($self) { return; }

sub slave_daemons ($self) { return; }

sub log_bytes ($self) { return undef; }

sub master ($self) { return $self->{master}; }

sub slave ($self) { return $self->{slave}; }

sub running_clusters ($self)
{
	return grep { $_ && $_->{running} } $self->{master}, $self->{slave};
}

sub setup ($self)
{
	$self->{master}->start;
	$self->setup_master;
	return unless $self->has_slave;
	$self->{slave}->start;
	$self->setup_slave;
	$self->start_daemons;
	$self->wait_caught_up;
	return;
}

sub stop_slave ($self)
{
	$self->stop_daemons;
	$self->{slave}->stop;
	return;
}

sub start_slave ($self)
{
	$self->{slave}->start;
	$self->start_daemons;
	return;
}

# Replication pauses while the slave's server goes on: a slave that the master
# could not be reached from, say.  What has no daemons on the slave's side has to
# say how.
sub pause_slave ($self)
{
	$self->stop_daemons;
	return;
}

sub resume_slave ($self)
{
	$self->start_daemons;
	return;
}

# Ends everything; what a part of it fails to do must not keep the rest.
sub teardown ($self)
{
	foreach my $step (
		sub { $self->stop_daemons },
		sub { $self->{slave}->stop('immediate') if $self->{slave} },
		sub { $self->{master}->stop('immediate') })
	{
		eval { $step->(); 1 } or warn $@;
	}
	return;
}

# All settings that differ from the common ones, for the reader.
sub settings_text ($self)
{
	my @parts;
	foreach my $part (
		[ 'its own' => $self->own_settings ],
		[ 'master' => $self->master_settings ],
		[ 'slave' => $self->slave_settings($self->{master}) ])
	{
		my ($whose, %settings) = @$part;
		my @words = map { "$_=$settings{$_}" }
		  grep { !/conninfo/ } sort keys %settings;
		push @parts, "$whose: " . join(', ', @words) if @words;
	}
	return join('; ', @parts);
}

# Seconds until the slave shows what is committed on the master now.
sub wait_caught_up ($self)
{
	my $begin = time();
	my $id = $self->beat;
	wait_until(
		$self->title . "'s slave has caught up",
		$CATCH_UP_SECONDS,
		sub {
			$self->{slave}
			  ->value('SELECT count(*) FROM bench_heartbeat WHERE id = ?', $id);
		});
	return time() - $begin;
}

# Commits a row on the master that tells, where it is seen, that all before it
# is there, too; returns its id.
sub beat ($self)
{
	return $self->{master}->value(
		'INSERT INTO bench_heartbeat (made) VALUES (clock_timestamp())
		 RETURNING id');
}

# Dies unless master and slave have the same rows in the given tables.
sub compare_content ($self, @tables)
{
	foreach my $table (@tables)
	{
		my ($master, $slave) =
		  map { $_->value(content_query($table)) } $self->{master},
		  $self->{slave};
		die $self->title
		  . ": $table differs: master has $master, slave has $slave\n"
		  if $master ne $slave;
	}
	return;
}

# What tables with the same rows have in common.
sub content_query ($table)
{
	return "SELECT count(*) || ' rows, hash '
		  || coalesce(sum(hashtextextended(t::text, 0)), 0)
		FROM $table t";
}

1;
