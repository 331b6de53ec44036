# An empty database becomes a slave: what the master's tables need is created from
# its definitions, the keys before the rows and the rest after them, whatever
# happens meanwhile.  What the slave has stays as it is.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $password = 'open sesame';

# --- The master ---

my $master = new_master('master', conf => "log_statement = none\n");
append_to_file($master->data_dir . '/pg_hba.conf.new',
	"local all pyreplica scram-sha-256\n" . slurp_file($master->data_dir . '/pg_hba.conf'));
rename($master->data_dir . '/pg_hba.conf.new', $master->data_dir . '/pg_hba.conf')
  or die "could not rename: $!";
$master->reload;

sub on_master
{
	my ($sql) = @_;
	return $master->safe_psql('postgres', $sql);
}

on_master(<<"SQL");
CREATE ROLE pyreplica LOGIN BYPASSRLS PASSWORD '$password';
SELECT py_log_grant('pyreplica');
SQL
on_master(<<'SQL');
CREATE SCHEMA "Shop & Co";
CREATE SCHEMA kept;
GRANT USAGE ON SCHEMA "Shop & Co", kept TO pyreplica;
CREATE TYPE "Shop & Co".state AS ENUM ('new', 'paid', U&'verschickt \00FCber See');
CREATE DOMAIN "Shop & Co".price AS numeric(10,2) CHECK (VALUE >= 0);
CREATE TYPE kept.point AS (x int, y int);

-- what looks like a dump
CREATE FUNCTION "Shop & Co".tricky(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	/*

--
-- Name: tricky; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.tricked (id int);

--
-- PostgreSQL database dump complete
--

\restrict
	*/
	RETURN i;
END
$$;

CREATE TABLE "Shop & Co".customer (
	id serial PRIMARY KEY,
	U&"Stra\00DFe; Type: ""x""" text NOT NULL DEFAULT E'a\n--\n-- Name: b; Type: TABLE; Schema: c; Owner: -\n--\n',
	code text UNIQUE,
	at timestamptz NOT NULL DEFAULT now());
CREATE INDEX customer_at ON "Shop & Co".customer (at DESC) WHERE code IS NOT NULL;
CREATE TABLE "Shop & Co"."Order" (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	customer int REFERENCES "Shop & Co".customer,
	state "Shop & Co".state NOT NULL DEFAULT 'new',
	total "Shop & Co".price,
	twice numeric GENERATED ALWAYS AS (total * 2) STORED,
	part_of bigint REFERENCES "Shop & Co"."Order",
	EXCLUDE USING btree (id WITH =));
CREATE INDEX ON "Shop & Co"."Order" (customer);
CREATE INDEX held ON "Shop & Co"."Order" ("Shop & Co".tricky(customer));
CREATE UNIQUE INDEX by_total ON "Shop & Co"."Order" (total, id);
CREATE STATISTICS "Shop & Co".both ON customer, state FROM "Shop & Co"."Order";
CREATE VIEW "Shop & Co".open_orders AS SELECT * FROM "Shop & Co"."Order" WHERE state <> 'paid';
CREATE RULE quiet AS ON DELETE TO "Shop & Co".open_orders DO INSTEAD NOTHING;
CREATE MATERIALIZED VIEW "Shop & Co".sums AS SELECT customer, sum(total) FROM "Shop & Co"."Order" GROUP BY 1;
CREATE UNIQUE INDEX ON "Shop & Co".sums (customer);
CREATE FUNCTION "Shop & Co".touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.at := now(); RETURN NEW; END $$;
CREATE TRIGGER touch BEFORE UPDATE ON "Shop & Co".customer FOR EACH ROW EXECUTE FUNCTION "Shop & Co".touch();
ALTER TABLE "Shop & Co".customer ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_of_it ON "Shop & Co".customer USING (true);

-- two views that need each other
CREATE TABLE grouped (id int PRIMARY KEY, a int);
CREATE VIEW by_key AS SELECT id, a FROM grouped GROUP BY id;

CREATE TABLE log (day date, id int, a text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE INDEX ON log (a);
CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
CREATE TABLE noted (id int PRIMARY KEY, day date, n int, FOREIGN KEY (day, n) REFERENCES log);

CREATE TABLE kept.stays (id int PRIMARY KEY, a text, b text);
CREATE INDEX ON kept.stays (a);
CREATE FUNCTION kept.answer() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE VIEW kept.seen AS SELECT 1 AS a;

INSERT INTO "Shop & Co".customer (code) SELECT 'c' || i FROM generate_series(1, 5000) i;
INSERT INTO "Shop & Co"."Order" (customer, total, part_of) SELECT 1 + i % 5000, i / 100.0, 1 + i / 10 FROM generate_series(0, 9999) i;
INSERT INTO log SELECT '2026-01-01'::date + i % 59, i, 'line ' || i FROM generate_series(1, 5000) i;
INSERT INTO noted SELECT id, day, id FROM log;
INSERT INTO grouped SELECT i, i % 7 FROM generate_series(1, 100) i;
INSERT INTO kept.stays VALUES (1, 'a', 'b');

SQL

sub follow_on_master
{
	my (@tables) = @_;
	on_master("GRANT SELECT ON ALL TABLES IN SCHEMA public, \"Shop & Co\", kept TO pyreplica");
	on_master("SELECT py_log_create_tg('$_->[0]', '$_->[1]')") for @tables;
	return;
}
my @followed = (
	[ 'Shop & Co', 'customer' ], [ 'Shop & Co', 'Order' ], [ 'public', 'grouped' ],
	[ 'public', 'log_1' ], [ 'public', 'log_2' ], [ 'public', 'noted' ], [ 'kept', 'stays' ]);
follow_on_master(@followed);

# --- The slave: an empty database, but for what is not to be touched ---

my $slave = new_slave(
	$master, 'slave',
	copy => 1,
	conf => conninfo_setting($master, "user=pyreplica password='$password'")
	  . "pyreplica.copy_schema = on\npyreplica.enabled = off\nlog_statement = none\n");

sub on_slave
{
	my ($sql) = @_;
	return $slave->safe_psql('postgres', $sql);
}

on_slave(<<'SQL');
CREATE ROLE keeper LOGIN;
ALTER DATABASE postgres OWNER TO keeper;
CREATE SCHEMA kept AUTHORIZATION keeper;
CREATE TABLE kept.stays (id int PRIMARY KEY, b varchar, a text, more int);
CREATE FUNCTION kept.answer() RETURNS int LANGUAGE sql AS 'SELECT 42';
CREATE VIEW kept.seen AS SELECT 2 AS b;
CREATE TYPE kept.point AS (x float);
SQL

# A database's definitions, without those of pyreplica; NODE, options of pg_dump.
sub definitions
{
	my ($node, @options) = @_;
	my ($dump, $errors) = run_command(
		[
			'pg_dump', '--schema-only', '--no-owner', '--no-privileges',
			@options, $node->connstr('postgres')
		]);
	is($errors, '', 'definitions of ' . $node->name);
	return join('',
		sort grep { !/^-- Name: [^\n]*!py_log_/ && !/^-- PostgreSQL database dump/ }
		  split(/^(?=-- Name: |-- PostgreSQL database dump)/m, $dump));
}

# Until nothing is left to be created; what would then be wrong.
sub wait_created
{
	my ($tables) = @_;
	$slave->poll_query_until('postgres', <<"SQL")
SELECT count(*) = $tables AND (SELECT count(*) = 0 FROM pyreplica_definition)
  FROM pyreplica_tables WHERE state = 'ready'
SQL
	  or BAIL_OUT("not all is created:\n"
		  . on_slave('SELECT * FROM pyreplica_tables; SELECT * FROM pyreplica_definition'));
	return;
}

my $kept = definitions($slave, '--schema=kept');

# An index waits here, and only here, as long as somebody holds a lock.
my $holder = $slave->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(77)');
on_master(<<'SQL');
CREATE OR REPLACE FUNCTION "Shop & Co".tricky(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	/*

--
-- Name: tricky; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.tricked (id int);

--
-- PostgreSQL database dump complete
--

\restrict
	*/
	PERFORM pg_advisory_xact_lock_shared(77);
	RETURN i;
END
$$;
SQL

# The master's definitions cannot be read at first.
my $locker = $master->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE kept.stays');
set_conf($slave, 'pyreplica.enabled = on');
wait_status($slave, q(state = 'waiting'));

# The process of pg_dump, once there is one.
sub pg_dump_pid
{
	my $pid;
	poll_until(
		sub {
			my $worker = status_value($slave, 'pid') or return 0;
			($pid) = (run_command([ 'pgrep', '-P', $worker, 'pg_dump' ]))[0] =~ /(\d+)/;
			return $pid;
		}) or BAIL_OUT("there is no pg_dump:\n" . status($slave));
	return $pid;
}

# It does not outlive what it is for, even if it hangs.
my $pid = pg_dump_pid();
unlike(slurp_file("/proc/$pid/cmdline"), qr/$password/, 'nobody sees the password');
kill('STOP', $pid);
on_master(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pyreplica postgres'));
ok(poll_until(sub { !kill(0, $pid) }), 'pg_dump ends with the connection');
$pid = pg_dump_pid();
kill('STOP', $pid);
on_slave(q(SELECT pg_terminate_backend(pid) FROM pyreplica_status));
ok(poll_until(sub { !kill(0, $pid) }), 'and with the worker');

ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 6 FROM pyreplica_tables WHERE last_error ~ 'pg_dump could not read the master''s definitions.*LOCK TABLE')),
	'a lock on the master is not waited for');
is(on_slave(q(SELECT count(*) FROM pg_class WHERE relname IN ('customer', 'log', 'grouped'))), '0', 'nothing is half there');
$locker->query_safe('COMMIT');
$locker->quit;

# Now they can.  Rows are copied, changes go on, and an index is waited for.
ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 7 FROM pyreplica_tables WHERE state = 'ready')),
	'tables are created and copied')
  or diag(on_slave('SELECT * FROM pyreplica_tables'));
ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 1 FROM pyreplica_definition WHERE what = 'INDEX Shop & Co.held' AND last_error ~ 'lock timeout')),
	'what cannot be created later says why')
  or diag(on_slave('SELECT * FROM pyreplica_definition'));
ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 1 FROM pyreplica_tables WHERE tablename = 'Order' AND definitions_left = 1 AND last_error ~ 'could not create INDEX Shop & Co.held')),
	'also in pyreplica_tables, of a table that is ready');
on_master(q(UPDATE "Shop & Co"."Order" SET total = total + 1 WHERE id <= 10));
wait_caught_up($slave);
is_same($master, $slave, '"Shop & Co"."Order"', 'and changes go on');
is( on_slave(q(SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated AND conparentid = 0)),
	'3', 'what can be created is');

# A crash loses nothing of what is left.
$slave->stop('immediate');
$slave->start;
undef $holder;
wait_created(7);
like(slurp_file($slave->logfile), qr/created all that was left of the master's definitions/, 'the rest is created after a crash');

wait_caught_up($slave);
is_same_rows($master, $slave, $_, "$_ is equal")
  for '"Shop & Co".customer', '"Shop & Co"."Order"', 'grouped', 'log', 'noted', '(SELECT id, a, b FROM kept.stays)';
is(definitions($slave, '--exclude-schema=kept'), definitions($master, '--exclude-schema=kept'), 'definitions are equal');
is(definitions($slave, '--schema=kept'), $kept, 'what the slave had is as it was');
is( on_slave(q(SELECT count(*) FROM pg_trigger t JOIN pg_proc p ON p.oid = tgfoid WHERE proname = 'py_log_replica')),
	'0', 'log triggers are not created');
is(on_slave(q(SELECT count(*) FROM pg_index WHERE NOT indisvalid)), '0', 'indexes are valid');
is( on_slave(q(SELECT string_agg(DISTINCT relowner::regrole::text, ' ') FROM pg_class WHERE relnamespace IN ('"Shop & Co"'::regnamespace, 'public'::regnamespace) AND relname !~ '^(replica|pyreplica|py_log)_')),
	'keeper', 'everything belongs to the owner of the database');

# A table that comes later is created, too, with what it needs; so is a partition of
# a table that is here.
on_master(<<'SQL');
CREATE SCHEMA late;
GRANT USAGE ON SCHEMA late TO pyreplica;
CREATE TYPE late.kind AS ENUM ('x', 'y');
CREATE TABLE late.comer (id serial PRIMARY KEY, k late.kind, customer int REFERENCES "Shop & Co".customer);
CREATE INDEX ON late.comer (k);
INSERT INTO late.comer (k, customer) SELECT 'x', i FROM generate_series(1, 1000) i;
CREATE TABLE log_3 PARTITION OF log FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
ALTER INDEX log_3_a_idx RENAME TO third;
INSERT INTO log SELECT '2026-03-01', i, 'new line' FROM generate_series(1, 1000) i;
GRANT SELECT ON late.comer, log_3 TO pyreplica;
SQL
on_slave('DROP INDEX "Shop & Co".customer_at');
follow_on_master([ 'late', 'comer' ], [ 'public', 'log_3' ]);
wait_created(9);
on_master(q(INSERT INTO late.comer (k) VALUES ('y'); INSERT INTO log VALUES ('2026-03-02', 0, 'newer')));
wait_caught_up($slave);
is_same_rows($master, $slave, $_, "$_ is created and followed") for 'late.comer', 'log';
is(on_slave(q(SELECT to_regclass('"Shop & Co".customer_at') IS NULL)), 't', 'an index that was dropped here does not come back');
on_slave('CREATE INDEX customer_at ON "Shop & Co".customer (at DESC) WHERE code IS NOT NULL');
is(definitions($slave, '--exclude-schema=kept'), definitions($master, '--exclude-schema=kept'), 'definitions are equal again');

# The master refuses to show one table: the others go on.
on_master('CREATE TABLE secret (id int PRIMARY KEY); INSERT INTO secret VALUES (1)');
on_master(q(SELECT py_log_create_tg('secret')));
ok( $slave->poll_query_until('postgres',
		q(SELECT last_error ~ 'permission denied for table secret' FROM pyreplica_tables WHERE tablename = 'secret')),
	'a right that is missing on the master is told');
on_master('INSERT INTO grouped VALUES (1000, 1)');
wait_caught_up($slave);
is_same($master, $slave, 'grouped', 'other tables go on');
on_master('GRANT SELECT ON secret TO pyreplica');
wait_created(10);
is_same($master, $slave, 'secret', 'once granted, the table comes');

# A table whose rows cannot be copied has to wait for its indexes; another one has
# not.
on_master(<<'SQL');
ALTER ROLE pyreplica NOBYPASSRLS;
CREATE TABLE guarded (id int PRIMARY KEY, a int);
CREATE INDEX ON guarded (a);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
INSERT INTO guarded VALUES (1, 1);
CREATE TABLE plain (id int PRIMARY KEY, a int REFERENCES guarded);
CREATE INDEX ON plain (a);
INSERT INTO plain VALUES (1, 1);
SQL
follow_on_master([ 'public', 'guarded' ], [ 'public', 'plain' ]);
ok( $slave->poll_query_until('postgres',
		q(SELECT to_regclass('plain_a_idx') IS NOT NULL AND definitions_left = 1 FROM pyreplica_tables WHERE tablename = 'plain')),
	'a table has its index');
is( on_slave(q(SELECT state, definitions_left, to_regclass('guarded_a_idx') IS NULL FROM pyreplica_tables WHERE tablename = 'guarded')),
	'error|2|t', 'one that could not be copied has not');
is(on_slave('SELECT count(*) FROM pyreplica_definition WHERE last_error IS NOT NULL'), '0', 'and a foreign key to it waits, too');
on_master('ALTER ROLE pyreplica BYPASSRLS');
wait_created(12);

# What cannot be created here is told by its name.
on_master('CREATE FUNCTION broken(int) RETURNS int LANGUAGE internal AS $$int4um$$; CREATE TABLE uses (id int PRIMARY KEY DEFAULT broken(1)); GRANT SELECT ON uses TO pyreplica');
on_master(q(SELECT py_log_create_tg('uses')));
ok( $slave->poll_query_until('postgres',
		q{SELECT last_error ~ 'could not create FUNCTION public.broken\(integer\) from the master''s definition: permission denied for language internal' FROM pyreplica_tables WHERE tablename = 'uses'}),
	'definitions can do no more than the owner of the database')
  or diag(on_slave('SELECT * FROM pyreplica_tables'));
is(on_slave(q(SELECT to_regclass('uses') IS NULL)), 't', 'nothing is half there');
on_slave('CREATE FUNCTION broken(int) RETURNS int LANGUAGE internal AS $$int4um$$');
wait_created(13);
is_same($master, $slave, 'uses', 'it comes when somebody else has created that');

is(count_log($_, 0, qr/$password/), 0, 'the password is not in the log of ' . $_->name) for $master, $slave;
is(status_value($slave, 'conflicts'), '0', 'no conflicts');
done_testing();
