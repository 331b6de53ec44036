# A hospital at work: thirty tables that refer to one another in circles, many clients
# at once, and a slave that is made of nothing meanwhile.  Both servers fail now and
# then.  In the end the slave is the same hospital: its rows, its views, and what its
# constraints promise.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $master = new_master('master', conf => "log_statement = none\n");
$master->command_ok(
	[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', "$FindBin::RealBin/data/hospital.sql", '-d', $master->connstr('postgres') ],
	'the hospital opens');
my @tables = split /\n/, $master->safe_psql('postgres', q(
	SELECT oid::regclass FROM pg_class
	 WHERE relnamespace = 'hospital'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1));
is(scalar @tables, 30, 'it has thirty tables');
$master->safe_psql('postgres', q(SELECT py_log_create_tg('hospital', relname) FROM pg_class
	WHERE relnamespace = 'hospital'::regnamespace AND relkind = 'r'));

# The work begins, and then the slave.
my @work = map { start_looping($master, 'psql', '-XAtq', '-c', 'SET search_path = hospital', '-c', 'CALL work(50)') } 1 .. 3;
my $slave = new_slave($master, 'slave', copy => 1, conf => "pyreplica.copy_schema = on\n");

sub all_ready
{
	return $slave->poll_query_until('postgres',
		q(SELECT count(*) = 31 AND bool_and(state = 'ready') FROM pyreplica_tables));
}

$slave->poll_query_until('postgres', q(SELECT count(*) > 3 FROM pyreplica_tables WHERE state = 'ready'))
  or BAIL_OUT("nothing is copied:\n" . status($slave));
$slave->stop('immediate');
$slave->start;
all_ready() or BAIL_OUT("the tables are not copied:\n" . status($slave));
foreach my $failing ($master, $slave)
{
	my $done = $slave->safe_psql('postgres', 'SELECT sum(transactions) FROM pyreplica_status');
	$slave->poll_query_until('postgres', "SELECT sum(transactions) > $done + 20 FROM pyreplica_status")
	  or BAIL_OUT("no work comes:\n" . status($slave));
	$failing->stop('immediate');
	$failing->start;
}
$slave->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pyreplica_status WHERE transactions > 20))
  or BAIL_OUT("no work comes:\n" . status($slave));
stop_looping($_) for @work;
$master->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE query ~ '^CALL work'))
  or BAIL_OUT('the work goes on');
wait_caught_up($slave);

# --- The same hospital ---

cmp_ok($master->safe_psql('postgres', 'SELECT count(DISTINCT tablename) FROM replica_log_sql'), '>', 20, 'most tables have been worked with');

foreach my $table (@tables)
{
	is_same_rows($master, $slave, $table);
}
is_same_rows($master, $slave, "hospital.$_", "the view $_ shows the same") for qw(present unpaid);
is($slave->safe_psql('postgres', 'SELECT count(*) FROM pyreplica_verify()'), '0', 'the verification finds no difference');
is($slave->safe_psql('postgres', 'SELECT sum(conflicts) FROM pyreplica_status'), '0', 'there was no conflict');

# What is defined, apart from pyreplica's own triggers.
my $definitions = q(
	SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'hospital'::regnamespace
	UNION ALL
	SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'hospital'
	UNION ALL
	SELECT tgrelid::regclass::text, tgname, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal AND tgname !~ '^!py_log' AND tgrelid::regclass::text ~ '^hospital'
	ORDER BY 1, 2, 3);
is($slave->safe_psql('postgres', $definitions), $master->safe_psql('postgres', $definitions), 'constraints, indexes and triggers are the same');

# All foreign keys hold: each is checked as if it were new.
is($slave->psql('postgres', q(
	DO $$
	DECLARE
		c	record;
	BEGIN
		FOR c IN SELECT conrelid::regclass AS tab, conname, pg_get_constraintdef(oid) AS def FROM pg_constraint
				  WHERE contype = 'f' AND connamespace = 'hospital'::regnamespace AND conparentid = 0 LOOP
			EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.tab, c.conname);
			EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s', c.tab, c.conname, c.def);
		END LOOP;
	END
	$$)), 0, 'all foreign keys hold');

done_testing();
