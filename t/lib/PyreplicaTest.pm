
=pod

=head1 NAME

PyreplicaTest - a master, a slave, and what the tests do with them

=head1 SYNOPSIS

    use lib 't/lib';
    use PyreplicaTest;

    my ($master, $slave) = new_pair();
    on_both($master, $slave, 'CREATE TABLE t (id int PRIMARY KEY, a text)');
    log_table($master, 't');
    $master->safe_psql('postgres', q(INSERT INTO t VALUES (1, 'one')));
    wait_caught_up($slave);
    is_same($master, $slave, 't', 'the row has crossed');

=cut

package PyreplicaTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(
  new_pair new_master new_slave conninfo_setting
  on_both log_table wait_caught_up is_same content
  log_since log_position wait_log poll_until wait_worker status
);

# Seconds that anything may take before a test gives it up.
our $TIMEOUT = $PostgreSQL::Test::Utils::timeout_default // 180;

# A server that changes can be captured on: nothing but CREATE EXTENSION.
sub new_master
{
	my ($name, %option) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name // 'master');
	$node->init;
	$node->append_conf('postgresql.conf', "max_prepared_transactions = 10\n");
	$node->append_conf('postgresql.conf', $option{conf}) if $option{conf};
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION pyreplica');
	return $node;
}

# The line of postgresql.conf that points to a master.
sub conninfo_setting
{
	my ($master, $extra) = @_;
	my $conninfo = $master->connstr('postgres') . ' ' . ($extra // '');
	$conninfo =~ s/'/''/g;
	return "pyreplica.master_conninfo = '$conninfo'\n";
}

# A slave of that master; started unless told otherwise (start => 0).
sub new_slave
{
	my ($master, $name, %option) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name // 'slave');
	$node->init;
	$node->append_conf('postgresql.conf',
		    "shared_preload_libraries = 'pyreplica'\n"
		  . "pyreplica.retry_interval_max = 1s\n"
		  . "log_line_prefix = '%m [%p] %b '\n"
		  . conninfo_setting($master));
	$node->append_conf('postgresql.conf', $option{conf}) if $option{conf};
	$node->start unless defined $option{start} && !$option{start};
	return $node;
}

# A master and its slave.  Options: master_conf, slave_conf.
sub new_pair
{
	my (%option) = @_;
	my $master = new_master('master', conf => $option{master_conf});
	my $slave = new_slave($master, 'slave', conf => $option{slave_conf});
	wait_worker($slave);
	return ($master, $slave);
}

# Runs the same SQL on both.
sub on_both
{
	my ($master, $slave, $sql) = @_;
	$_->safe_psql('postgres', $sql) for ($master, $slave);
	return;
}

# Creates the log triggers of these tables.
sub log_table
{
	my ($master, @tables) = @_;
	$master->safe_psql('postgres', "SELECT py_log_create_tg('$_')")
	  for (@tables);
	return;
}

# Until the slave has everything committed on the master before this call.
sub wait_caught_up
{
	my ($slave, $seconds) = @_;
	$seconds //= $TIMEOUT;
	my $came = $slave->safe_psql('postgres',
		"SELECT pyreplica_wait(timeout => '$seconds s')");
	BAIL_OUT("the slave did not catch up:\n" . status($slave))
	  unless $came eq 't';
	return;
}

# The slave's pyreplica_status, for messages.
sub status
{
	my ($slave) = @_;
	return $slave->safe_psql('postgres', '\x on' . "\n"
		  . 'SELECT * FROM pyreplica_status');
}

# Until the worker has connected and waits for something to do.
sub wait_worker
{
	my ($slave) = @_;
	$slave->poll_query_until('postgres',
		q(SELECT count(*) = 1 FROM pg_extension WHERE extname = 'pyreplica'))
	  or BAIL_OUT('the worker did not create its extension');
	$slave->poll_query_until('postgres',
		q(SELECT count(*) = 1 FROM pyreplica_status WHERE state = 'waiting'))
	  or BAIL_OUT("the worker does not wait:\n" . status($slave));
	return;
}

# A table's rows, as one text.
sub content
{
	my ($node, $table, $database) = @_;
	return $node->safe_psql($database // 'postgres',
		"SELECT t::text FROM $table t ORDER BY 1");
}

# Whether a table has the same rows on both sides.
sub is_same
{
	my ($master, $slave, $table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(content($slave, $table), content($master, $table),
		$name // "$table is the same on both sides");
}

# Where a server's log ends now.
sub log_position
{
	my ($node) = @_;
	return -s $node->logfile;
}

# What a server has logged since then.
sub log_since
{
	my ($node, $position) = @_;
	return substr(slurp_file($node->logfile), $position);
}

# Until something is true, looked at every 20 ms; false if it never was.
sub poll_until
{
	my ($condition, $seconds) = @_;
	my $until = Time::HiRes::time() + ($seconds // $TIMEOUT);
	while (Time::HiRes::time() < $until)
	{
		return 1 if $condition->();
		usleep(20_000);
	}
	return 0;
}

# Until a server has logged something since then.
sub wait_log
{
	my ($node, $position, $pattern, $seconds) = @_;
	return poll_until(sub { log_since($node, $position) =~ $pattern },
		$seconds);
}

1;
