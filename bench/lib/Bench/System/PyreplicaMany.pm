# pyreplica with several replicas of the master's database on one slave, each in
# a database of its own.

package Bench::System::PyreplicaMany;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Cluster;
use Time::HiRes qw(time);
use parent 'Bench::System::Pyreplica';

# How many replicas the next one has; 0: nobody asks for the master's log.
our $REPLICAS = 1;

sub title ($self) { return 'pyreplica, several replicas'; }

# There are too many to list them.
sub settings_text ($self) { return ''; }

# Beside the one without a name.
sub names ($self)
{
	return map { "r$_" } 2 .. $REPLICAS;
}

# They all wait until their databases are there.
sub slave_settings ($self, $master)
{
	my @names = $self->names;
	return (
		$self->SUPER::slave_settings($master),
		max_worker_processes => 8 + $REPLICAS,
		'pyreplica.enabled' => 'off',
		'pyreplica.replicas' => join(',', @names),
		map {
			(
				"pyreplica_$_.master_conninfo" => $master->conninfo,
				"pyreplica_$_.database" => $_)
		} @names);
}

sub setup_slave ($self)
{
	return if $REPLICAS == 0;
	my $postgres = $self->slave->connect('postgres');
	$postgres->do("CREATE DATABASE $_ TEMPLATE $Bench::Cluster::DATABASE")
	  foreach $self->names;
	$postgres->disconnect;
	$self->resume_slave;
	return;
}

# All of them.
sub wait_caught_up ($self)
{
	return 0 if $REPLICAS == 0;
	my $begin = time();
	$self->SUPER::wait_caught_up;
	$self->slave->do('SELECT pyreplica_wait(replica) FROM pyreplica_status');
	return time() - $begin;
}

sub compare_content ($self, @tables)
{
	$self->SUPER::compare_content(@tables);
	foreach my $database ($self->names)
	{
		my $dbh = $self->slave->connect($database);
		foreach my $table (@tables)
		{
			my $query = Bench::System::content_query($table);
			my ($here) = $dbh->selectrow_array($query);
			my $there = $self->master->value($query);
			die "$table in $database differs: master has $there, slave has $here\n"
			  if $here ne $there;
		}
		$dbh->disconnect;
	}
	return;
}

1;
