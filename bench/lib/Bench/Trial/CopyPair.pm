# A pair whose slave begins with empty tables, as the README tells to set one
# up.  Both sides can be killed.

package Bench::Trial::CopyPair;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Cluster;
use Bench::Command qw(pg_program run_logged);
use Bench::Trial::Reads;
use parent 'Bench::Trial::Pair';

our $RESTART_LOOK_SECONDS = 0.02;

sub master_settings ($self)
{
	return (Bench::Trial::Reads::settings(),
		log_min_duration_statement => '2s');
}

# It does not begin before it is resumed.
sub slave_settings ($self, $master)
{
	my $conninfo = $master->conninfo =~ s/user=\w+/user=$Bench::Trial::Reads::ROLE/r;
	return (
		shared_preload_libraries => 'pyreplica',
		track_commit_timestamp => 'on',
		'pyreplica.enabled' => 'off',
		'pyreplica.master_conninfo' => $conninfo);
}

sub setup ($self)
{
	my ($master, $slave) = ($self->master, $self->slave);
	my $role = $Bench::Trial::Reads::ROLE;
	$master->start;
	$self->setup_master;
	$master->do(
		"CREATE ROLE $role LOGIN",
		"SELECT py_log_grant('$role')",
		"GRANT SELECT ON ALL TABLES IN SCHEMA public TO $role");
	$slave->start;
	my $postgres = $slave->connect('postgres');
	$postgres->do("DROP DATABASE IF EXISTS $Bench::Cluster::DATABASE");
	$postgres->do("CREATE DATABASE $Bench::Cluster::DATABASE");
	$postgres->disconnect;
	$self->copy_schema;
	return;
}

sub copy_schema ($self)
{
	my $file = "$self->{work_dir}/schema.sql";
	my $log = "$self->{work_dir}/schema.log";
	run_logged(
		$log, pg_program('pg_dump'), '--schema-only', '--no-privileges',
		'-f' => $file,
		$self->options_for($self->master));
	run_logged(
		$log, pg_program('psql'), '-X', '-q',
		'-v' => 'ON_ERROR_STOP=1',
		'-f' => $file,
		$self->options_for($self->slave));
	return;
}

sub options_for ($self, $cluster)
{
	return (
		'-h' => $cluster->{socket_dir},
		'-p' => $cluster->{port},
		'-U' => $Bench::Cluster::USER,
		'-d' => $Bench::Cluster::DATABASE);
}

sub all_copied ($self)
{
	return $self->has_copied(scalar @{ $self->{tables} });
}

sub restart ($self, $cluster)
{
	local $Bench::Cluster::START_LOOK_SECONDS = $RESTART_LOOK_SECONDS;
	$cluster->start;
	return;
}

1;
