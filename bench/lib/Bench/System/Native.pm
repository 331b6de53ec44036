# The server's own logical replication: a publication and a subscription, which
# has own_settings as options.

package Bench::System::Native;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(wait_until);
use parent 'Bench::System';

sub title ($self) { return 'native'; }

sub version ($self) { return $self->master->server_version; }

sub master_settings ($self) { return (wal_level => 'logical'); }

sub slave_settings ($self, $master)
{
	return (wal_retrieve_retry_interval => '100ms');
}

sub setup_master ($self)
{
	my $tables = join(', ', @{ $self->{tables} });
	$self->master->do("CREATE PUBLICATION bench FOR TABLE $tables");
	return;
}

sub setup_slave ($self)
{
	my $conninfo = $self->master->conninfo;
	my %options = (copy_data => 'false', $self->own_settings);
	my $options = join(', ', map { "$_ = $options{$_}" } sort keys %options);
	$self->slave->do(
		"CREATE SUBSCRIPTION bench CONNECTION '$conninfo'
		 PUBLICATION bench WITH ($options)");
	wait_until(
		'the subscription streams',
		30,
		sub {
			$self->master->value(
				q{SELECT count(*) FROM pg_stat_replication
				  WHERE state = 'streaming'});
		});
	return;
}

sub unfollow_tables ($self)
{
	$self->slave->do('DROP SUBSCRIPTION bench');
	return;
}

sub follow_tables ($self)
{
	my $conninfo = $self->master->conninfo;
	my %options = (copy_data => 'true', $self->own_settings);
	my $options = join(', ', map { "$_ = $options{$_}" } sort keys %options);
	$self->slave->do(
		'TRUNCATE bench_heartbeat',
		"CREATE SUBSCRIPTION bench CONNECTION '$conninfo'
		 PUBLICATION bench WITH ($options)");
	return;
}

sub has_copied ($self, $tables)
{
	return $self->slave->value(
		q{SELECT count(*) = ? FROM pg_subscription_rel WHERE srsubstate = 'r'},
		$tables);
}

sub pause_slave ($self)
{
	$self->slave->do('ALTER SUBSCRIPTION bench DISABLE');
	wait_until(
		'the subscription has stopped',
		30,
		sub {
			$self->master->value(
				'SELECT NOT active FROM pg_replication_slots');
		});
	return;
}

sub resume_slave ($self)
{
	$self->slave->do('ALTER SUBSCRIPTION bench ENABLE');
	return;
}

1;
