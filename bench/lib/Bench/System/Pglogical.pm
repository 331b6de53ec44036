# pglogical: logical decoding by its own plugin, and its own apply worker.

package Bench::System::Pglogical;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(pg_directory pg_program capture wait_until);
use parent 'Bench::System';

our %SETTINGS = (shared_preload_libraries => 'pglogical');

sub title ($self) { return 'pglogical'; }

sub missing ($class)
{
	return undef
	  if -e pg_directory('sharedir') . '/extension/pglogical.control';
	return 'pglogical: apt-get install postgresql-<major>-pglogical';
}

sub version ($self)
{
	return $self->master->value(
		q{SELECT extversion FROM pg_extension WHERE extname = 'pglogical'});
}

sub master_settings ($self)
{
	return (%SETTINGS, wal_level => 'logical', plugin_permission());
}

sub slave_settings ($self, $master)
{
	return (%SETTINGS, wal_retrieve_retry_interval => '100ms');
}

# Newer minor versions of the server have a list of the plugins that may be
# used.
sub plugin_permission ()
{
	my $known = capture(pg_program('postgres'), '--describe-config');
	return () unless $known =~ /^output_plugin_libraries\t/m;
	return (output_plugin_libraries =>
		  'pgoutput, test_decoding, pglogical_output');
}

sub setup_master ($self)
{
	$self->create_node($self->master, 'master');
	$self->master->value(
		q{SELECT pglogical.replication_set_add_table('default', ?)}, $_)
	  foreach @{ $self->{tables} };
	return;
}

sub setup_slave ($self)
{
	$self->create_node($self->slave, 'slave');
	$self->slave->value(
		'SELECT pglogical.create_subscription(
			subscription_name := ?, provider_dsn := ?,
			synchronize_structure := false, synchronize_data := false)',
		'bench', $self->master->conninfo);
	wait_until(
		'the subscription replicates',
		60,
		sub {
			$self->slave->value(
				q{SELECT count(*) FROM pglogical.show_subscription_status()
				  WHERE status = 'replicating'});
		});
	return;
}

sub pause_slave ($self)
{
	$self->slave->value(
		q{SELECT pglogical.alter_subscription_disable('bench', true)});
	wait_until(
		'the subscription has stopped',
		30,
		sub {
			$self->master->value(
				'SELECT bool_and(NOT active) FROM pg_replication_slots');
		});
	return;
}

sub resume_slave ($self)
{
	$self->slave->value(
		q{SELECT pglogical.alter_subscription_enable('bench', true)});
	return;
}

sub create_node ($self, $cluster, $name)
{
	$cluster->do('CREATE EXTENSION pglogical');
	$cluster->value(
		'SELECT pglogical.create_node(node_name := ?, dsn := ?)',
		$name, $cluster->conninfo);
	return;
}

1;
