# A slave that is restored from a dump starts exactly where the dump ended, though
# the master was busy all the time.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;
use Time::HiRes qw(usleep);

my $dumps = $ENV{PYREPLICA_TEST_ROUNDS} // 20;

my $master = new_master('master', conf => "log_statement = none\n");
$master->safe_psql('postgres', <<'SQL');
CREATE TABLE account (id int PRIMARY KEY, n int NOT NULL);
CREATE TABLE entry (id bigserial PRIMARY KEY, account int, d int);
INSERT INTO account SELECT i, 0 FROM generate_series(1, 500) i;
SQL
log_table($master, 'account', 'entry');

my $script = PostgreSQL::Test::Utils::tempdir() . '/busy.sql';
append_to_file($script, <<'SQL');
\set a random(1, 500)
BEGIN;
UPDATE account SET n = n + 1 WHERE id = :a;
INSERT INTO entry (account, d) VALUES (:a, 1);
COMMIT;
INSERT INTO entry (account, d) VALUES (:a, 0);
DELETE FROM entry WHERE d = 0 AND account = :a;
SQL
my $load = start_looping($master, 'pgbench', '-n', '-c', 4, '-T', 600, '-f', $script);

# One that has begun long before each dump, and commits long after.
my $long = $master->background_psql('postgres');

my $slave = new_slave($master, 'slave', database => 'd0', conf => "log_statement = none\n");
foreach my $i (1 .. $dumps)
{
	my $file = PostgreSQL::Test::Utils::tempdir() . "/dump$i.sql";
	$long->query_safe("BEGIN; INSERT INTO entry (account, d) VALUES ($i, 1)");
	$master->safe_psql('postgres', "SELECT py_log_add_slave('d$i')");
	usleep(int(rand(200_000)));
	command_ok([ 'pg_dump', '-f', $file, $master->connstr('postgres') ], "dump $i of a living master");
	$long->query_safe("UPDATE account SET n = n + 1 WHERE id = $i; COMMIT");
	usleep(int(rand(100_000)));

	$slave->safe_psql('postgres', "CREATE DATABASE d$i");
	set_conf($slave, "pyreplica.enabled = off");
	PostgreSQL::Test::Utils::run_log([ 'psql', '-Xq1', '-v', 'ON_ERROR_STOP=1', '-f', $file, $slave->connstr("d$i") ])
	  or BAIL_OUT('the dump cannot be restored');
	set_conf($slave, "pyreplica.database = 'd$i'\npyreplica.enabled = on");
	poll_until(sub {
		($slave->psql("d$i", q(SELECT database FROM pyreplica_status WHERE pid IS NOT NULL)))[1] eq "d$i" });
	is($slave->safe_psql("d$i", q(SELECT pyreplica_wait(timeout => '60 s'))), 't', "slave $i follows");
	is($slave->safe_psql("d$i", q(SELECT conflicts + errors FROM pyreplica_status)), '0', 'without conflict or error');
	is($slave->safe_psql("d$i", q(SELECT count(*) FROM account a WHERE n <> (SELECT coalesce(sum(d), 0) FROM entry e WHERE e.account = a.id))), '0',
		'and shows what was there at one moment');
}
stop_looping($load);
is($slave->safe_psql("d$dumps", q(SELECT pyreplica_wait(timeout => '60 s'))), 't', 'in the end the last one has everything');
is( $slave->safe_psql("d$dumps", 'SELECT string_agg(t::text, $$ $$ ORDER BY id) FROM entry t'),
	$master->safe_psql('postgres', 'SELECT string_agg(t::text, $$ $$ ORDER BY id) FROM entry t'), 'nothing more and nothing less');
is($slave->safe_psql("d$dumps", 'SELECT sum(n), count(*) FROM account'),
	$master->safe_psql('postgres', 'SELECT sum(n), count(*) FROM account'), 'in no table');
like(slurp_file($slave->logfile), qr/pyreplica d$dumps: starting where the dump ended/, 'the log tells so');

done_testing();
