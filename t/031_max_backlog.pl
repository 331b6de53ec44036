# A slave that does not come back costs the master no more log than its owner
# allows.  It is let go alone, others do not notice; and when it comes back after
# all, it makes its tables equal by itself.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PyreplicaTest;
use Test::More;

my $limit = 50 * 1024 * 1024;
my $schema = 'CREATE TABLE t (id int PRIMARY KEY, n int, a text)';

my $master = new_master('master', conf => "pyreplica.max_backlog = 50MB\n");
$master->safe_psql('postgres', $schema . q(;
	INSERT INTO t SELECT i, 0, 'as it was' FROM generate_series(1, 20000) i));
log_table($master, 't');

my %slave = (
	near => new_slave($master, 'near', copy => 1, database => 'near'),
	far => new_slave($master, 'far', copy => 1, database => 'far'));
foreach my $name (sort keys %slave)
{
	$slave{$name}->safe_psql($name, $schema);
	wait_ready($name);
}

sub wait_ready
{
	my ($name) = @_;
	$slave{$name}->poll_query_until($name,
		q(SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'pyreplica_tables')))
	  && $slave{$name}->poll_query_until($name,
		q(SELECT count(*) = 1 FROM pyreplica_tables WHERE state = 'ready'))
	  or BAIL_OUT("$name has not copied its table:\n" . status($slave{$name}));
	return;
}

# Transactions of a quarter of a megabyte of log each, and how large the log ever
# is after one.
my $largest = 0;

sub write_much
{
	my ($megabytes) = @_;
	my $sql = '';
	foreach my $i (1 .. $megabytes * 4)
	{
		my $from = 100 * ($i % 150);
		$sql .= "UPDATE t SET n = n + 1, a = repeat(md5(id::text || n), 4)
			WHERE id BETWEEN $from AND $from + 1499;
			SELECT py_log_size();\n";
	}
	foreach my $size (split(/\n/, $master->safe_psql('postgres', $sql)))
	{
		$largest = $size if $size > $largest;
	}
	return;
}

sub gone
{
	return $master->safe_psql('postgres',
		q(SELECT string_agg(name, ',' ORDER BY name) FROM pyreplica_slaves WHERE let_go_at IS NOT NULL));
}

# One slave goes away, the other one stays.
my $near_pid = status_value($slave{near}, 'pid');
my $copied_at = $slave{near}->safe_psql('near', 'SELECT finished_at FROM pyreplica_tables');
$slave{far}->stop;
write_much(10);
is(gone(), '', 'a slave is not let go as soon as it is away');
my $at = log_position($master);
write_much(100);
cmp_ok($largest, '<=', $limit * 1.1, 'the log stays within its limit');
cmp_ok($largest, '>', $limit / 2, 'which is used');
is(gone(), 'far', 'the slave that is away was let go');
like(log_since($master, $at),
	qr/LOG:  pyreplica: the log is not kept any more for slave "far", which is away/,
	'and the log says so');
is($master->safe_psql('postgres', q(SELECT py_log_wait('far', '10 ms'))), 'f',
	'nobody believes that it has everything');
wait_caught_up($slave{near});
is_same_rows($master, $slave{near}, 't', 'the other slave has everything');
is(status_value($slave{near}, 'pid'), $near_pid, 'its worker did not notice');
is(status_value($slave{near}, 'errors'), '0', 'anything');
is($slave{near}->safe_psql('near', 'SELECT finished_at FROM pyreplica_tables'),
	$copied_at, 'nor did it copy its table again');

# It comes back, and a crash of it while it makes its tables equal does no harm.
$master->safe_psql('postgres', q(DELETE FROM t WHERE id % 10 = 3; UPDATE t SET id = -id WHERE id % 10 = 7));
$slave{far}->start;
ok(poll_until(sub { gone() eq '' }), 'the slave comes back');
$slave{far}->stop('immediate');
$master->safe_psql('postgres', q(UPDATE t SET a = 'meanwhile' WHERE id % 10 = 5));
$slave{far}->start;
wait_status($slave{far}, q(state = 'waiting'));
wait_ready('far');
wait_caught_up($slave{far});
is_same_rows($master, $slave{far}, 't', 'and is made equal by itself');
is(status_value($slave{far}, 'conflicts'), '0', 'without a conflict');
$master->safe_psql('postgres', q(INSERT INTO t VALUES (0, 0, 'goes on')));
wait_caught_up($slave{far});
is_same_rows($master, $slave{far}, 't', 'it goes on');
is($master->safe_psql('postgres', q(SELECT py_log_wait(timeout => '1 min'))), 't', 'with everything');

# Nobody is there at all: no slave empties the log, so somebody else has to.
$_->stop for values %slave;
set_conf($master, 'pyreplica.max_backlog = 8MB');
$limit = 8 * 1024 * 1024;
write_much(4);
$largest = 0;
write_much(20);
cmp_ok($largest, '<=', $limit * 1.1, 'the log stays within its limit without any slave');
is(gone(), 'far,near', 'all slaves were let go');
$_->start for values %slave;
foreach my $name (sort keys %slave)
{
	wait_status($slave{$name}, q(state = 'waiting'));
	wait_ready($name);
	wait_caught_up($slave{$name});
	is_same_rows($master, $slave{$name}, 't', "$name is made equal when it is back");
}

# Nor was there ever one.
$_->stop for values %slave;
$master->safe_psql('postgres', q(SELECT py_log_drop_slave(name) FROM pyreplica_slaves));
$largest = 0;
write_much(20);
cmp_ok($largest, '<=', $limit * 1.1, 'the log stays within its limit if no slave is known');

done_testing();
