# pyreplica: triggers on the master, a background worker in the slave server.

package Bench::System::Pyreplica;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(pg_directory wait_until);
use parent 'Bench::System';

sub title ($self) { return 'pyreplica'; }

sub missing ($class)
{
	return undef
	  if -e pg_directory('sharedir') . '/extension/pyreplica.control';
	return 'pyreplica itself: make && make install';
}

sub version ($self)
{
	return $self->master->value(
		q{SELECT extversion FROM pg_extension WHERE extname = 'pyreplica'});
}

sub slave_settings ($self, $master)
{
	return (
		shared_preload_libraries => 'pyreplica',
		'pyreplica.copy_data' => 'off',
		'pyreplica.master_conninfo' => $master->conninfo);
}

# The slave starts after this, with the content that the tables have now.
sub setup_master ($self)
{
	$self->master->do('CREATE EXTENSION pyreplica');
	foreach my $table (@{ $self->{tables} })
	{
		my $answer =
		  $self->master->value('SELECT py_log_create_tg(?::text)', $table);
		die "pyreplica: $answer\n" unless $answer =~ /created trigger/;
	}
	return;
}

sub pause_slave ($self)
{
	$self->slave->reload_with('pyreplica.enabled' => 'off');
	wait_until(
		'the worker has ended',
		30,
		sub {
			!$self->slave->value(
				q{SELECT count(*) FROM pg_stat_activity
				  WHERE backend_type = 'pyreplica worker'});
		});
	return;
}

sub resume_slave ($self)
{
	$self->slave->reload_with('pyreplica.enabled' => undef);
	return;
}

sub unfollow_tables ($self)
{
	$self->slave->reload_with('pyreplica.copy_data' => 'on');
	$self->master->do(
		map { "SELECT py_log_drop_tg('$_')" } @{ $self->{tables} });
	wait_until(
		'no table is followed',
		30,
		sub {
			$self->slave->value('SELECT count(*) = 0 FROM pyreplica_tables');
		});
	return;
}

sub follow_tables ($self)
{
	$self->slave->do('TRUNCATE bench_heartbeat');
	$self->master->do(
		map { "SELECT py_log_create_tg('$_')" } @{ $self->{tables} });
	return;
}

sub has_copied ($self, $tables)
{
	return $self->slave->value(
		q{SELECT count(*) = ? FROM pyreplica_tables WHERE state = 'ready'},
		$tables);
}

# The tables that entries go to inherit from replica_log.
sub log_bytes ($self)
{
	return $self->master->value(
		q{SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)
			+ pg_total_relation_size('replica_log')
		  FROM pg_inherits WHERE inhparent = 'replica_log'::regclass});
}

1;
