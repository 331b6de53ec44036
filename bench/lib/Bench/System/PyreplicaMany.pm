# pyreplica with several replicas of the master's database: on one slave, each in a
# database of its own, or on several slaves.

package Bench::System::PyreplicaMany;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Cluster;
use Bench::Command qw(wait_until);
use Time::HiRes qw(time);
use parent 'Bench::System::Pyreplica';

# How many replicas the next one has on its slave, and how many slaves.  No
# replicas: nobody asks for the master's log.
our $REPLICAS = 1;
our $SLAVES = 1;

sub title ($self) { return 'pyreplica, several replicas'; }

# There are too many to list them.
sub settings_text ($self) { return ''; }

# Beside the one without a name.
sub names ($self)
{
	return map { "r$_" } 2 .. $REPLICAS;
}

# Slaves beside the first one follow as s2 and so on.
sub new ($class, $work_dir, $template)
{
	my $self = $class->SUPER::new($work_dir, $template);
	$self->{others} = [
		map {
			Bench::Cluster->new(
				$work_dir,
				$self->name . "-slave-$_",
				shared_preload_libraries => 'pyreplica',
				'pyreplica.copy_data' => 'off',
				'pyreplica.replicas' => "s$_",
				"pyreplica_s$_.master_conninfo" => $self->master->conninfo)
			  ->copy_of($template)
		} 2 .. $SLAVES
	];
	return $self;
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
	foreach my $other (@{ $self->{others} })
	{
		$other->start;
		wait_until(
			"slave $other->{name} has made its extension",
			30,
			sub {
				$other->value(
					q{SELECT count(*) FROM pg_extension WHERE extname = 'pyreplica'});
			});
	}
	return;
}

sub running_clusters ($self)
{
	return ($self->SUPER::running_clusters,
		grep { $_->{running} } @{ $self->{others} });
}

sub teardown ($self)
{
	foreach my $other (@{ $self->{others} })
	{
		eval { $other->stop('immediate'); 1 } or warn $@;
	}
	$self->SUPER::teardown;
	return;
}

# The other slaves' processes are the slave's.
sub slave_daemons ($self)
{
	return map { { pid => $_->postmaster_pid } } @{ $self->{others} };
}

# All of them.
sub wait_caught_up ($self)
{
	return 0 if $REPLICAS == 0;
	my $begin = time();
	$self->SUPER::wait_caught_up;
	$_->do('SELECT pyreplica_wait(replica) FROM pyreplica_status')
	  foreach $self->slave, @{ $self->{others} };
	return time() - $begin;
}

sub compare_content ($self, @tables)
{
	$self->SUPER::compare_content(@tables);
	my %followers = (
		(map { $_ => $self->slave->connect($_) } $self->names),
		(map { $_->{name} => $_->connect } @{ $self->{others} }));
	foreach my $name (sort keys %followers)
	{
		my $dbh = $followers{$name};
		foreach my $table (@tables)
		{
			my $query = Bench::System::content_query($table);
			my ($here) = $dbh->selectrow_array($query);
			my $there = $self->master->value($query);
			die "$table in $name differs: master has $there, slave has $here\n"
			  if $here ne $there;
		}
		$dbh->disconnect;
	}
	return;
}

1;
