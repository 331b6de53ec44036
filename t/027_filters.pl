# Some rows and columns of a table are replicated, others are not: by a filter,
# whose border rows cross in both directions, and by a list of columns.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $master = new_master('master');
$master->safe_psql('postgres', 'CREATE ROLE replicator LOGIN; SELECT py_log_grant($$replicator$$)');
my $slave = new_slave($master, 'slave', copy => 1, conf => conninfo_setting($master, 'user=replicator'));
wait_worker($slave);

sub create_tg
{
	my ($table, $options) = @_;
	return $master->safe_psql('postgres', "SELECT py_log_create_tg('$table', $options)");
}

# What is wrong with options.
sub refusal
{
	my ($options, $table) = @_;
	$table //= 'customer';
	return ($master->psql('postgres', "SELECT py_log_create_tg('$table', $options)"))[2];
}

sub wait_ready
{
	my ($table) = @_;
	return poll_until(
		sub {
			$slave->safe_psql('postgres',
				"SELECT count(*) FROM pyreplica_tables WHERE tablename = '$table' AND state = 'ready'") eq '1';
		}) || diag($slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
}

# Whether the slave has just those rows and columns of the master's, and
# pyreplica_verify thinks so, too.
sub is_filtered
{
	my ($table, $columns, $filter, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($slave);
	wait_ready($table);
	is( content($slave, "(SELECT $columns FROM $table)"),
		content($master, "(SELECT $columns FROM $table WHERE $filter)"),
		$name);
	is($slave->safe_psql('postgres', "SELECT count(*) FROM pyreplica_verify('$table')"), '0', "$name, and verified");
	return;
}

on_both($master, $slave, <<'SQL');
CREATE TABLE customer (id int PRIMARY KEY, region text, secret text DEFAULT 'nothing', n int);
CREATE TABLE plain (id int PRIMARY KEY, a text);
SQL
$master->safe_psql('postgres', <<'SQL');
GRANT SELECT ON ALL TABLES IN SCHEMA public TO replicator;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO replicator;
INSERT INTO customer SELECT i, (ARRAY['north', 'south', 'east', NULL])[1 + i % 4], 'secret ' || i, i FROM generate_series(1, 10000) i;
SQL

# --- Conditions that a filter must not be ---

$master->safe_psql('postgres', <<'SQL');
CREATE FUNCTION own(text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE OPERATOR ~~~~ (FUNCTION = own, RIGHTARG = text);
CREATE DOMAIN word AS text;
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE moody (id int PRIMARY KEY, m mood, w word);
SQL
foreach my $case (
	[ 'nothing = 1',                 qr/column "nothing" does not exist/ ],
	[ 'n',                           qr/must be type boolean, not type integer/ ],
	[ 'n >',                         qr/syntax error/ ],
	[ 'true; DELETE FROM customer',  qr/it is not a condition/ ],
	[ 'true) OR (true',              qr/syntax error/ ],
	[ 'n = 1 / 0',                   qr/division by zero/ ],
	[ 'true UNION SELECT true',      qr/it is not a condition/ ],
	[ 'EXISTS (SELECT FROM customer)', qr/cannot use subquery/ ],
	[ 'count(*) > 1',                qr/aggregate functions are not allowed/ ],
	[ 'row_number() OVER () > 1',    qr/window functions are not allowed/ ],
	[ 'generate_series(1, 2) = 1',   qr/set-returning functions are not allowed/ ],
	[ 'random() < 0.5',              qr/Functions that users have made, or whose result is not always the same/ ],
	[ 'public.own(region)',          qr/Functions that users have made/ ],
	[ 'OPERATOR(public.~~~~) region', qr/Operators that users have made/ ],
	[ 'region::public.word = 1::text', qr/built-in|Types that users have made/ ],
	[ q(ctid = '(0,1)'),             qr/System columns/ ],
	[ 'customer IS NULL',            qr/Types that users have made/ ],
	[ 'now() IS NULL',               qr/not always the same/ ],
	[ 'current_user IS NULL',        qr/Only columns, constants/ ],
	[ '$1 = 1',                      qr/there is no parameter \$1/ ])
{
	my ($filter, $pattern) = @$case;
	my $message = refusal("row_filter => \$f\$$filter\$f\$");
	like($message, qr/row filter of table "public\.customer" cannot be used.*The filter is: \Q$filter\E/s, "$filter is refused");
	like($message, $pattern, '... and it is said why');
}
like(refusal(q(row_filter => $f$m = 'good'$f$), 'moody'), qr/Types that users have made/, 'a column of an enum is refused');
like(refusal(q(columns => '{id,nothing}')), qr/column "nothing" of table public\.customer does not exist/, 'a column that there is not');
like(refusal(q(columns => '{region}')), qr/column "id" of the key of table public\.customer is not among those to be logged/, 'columns without the key');

# --- Copying, and crossing the border ---

my @columns = ('id, region, n', q(region = 'north' OR n > 9990));
create_tg('customer', q(row_filter => $f$region = 'north' or n > 9990$f$, columns => '{n,region,id}', log_old => true));
create_tg('plain', 'log_old => false');
wait_ready('customer');
is_filtered('customer', @columns, 'rows that meet the filter are copied');
is($slave->safe_psql('postgres', 'SELECT count(*), min(secret), max(secret) FROM customer'), '2507|nothing|nothing', 'without the columns that are not listed');

sub captured
{
	my ($name, $sql, @expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is_captured($master, $sql, \@expected, $name);
}
captured('an insert outside', q(INSERT INTO customer VALUES (20001, 'south', 'x', 1), (20002, NULL, 'x', NULL)));
captured('an insert inside', q(INSERT INTO customer VALUES (20003, 'north', 'x', 1)),
	q(INSERT INTO public.customer (id, region, n) VALUES ('20003', 'north', '1')));
captured('an update inside', q(UPDATE customer SET n = 2, secret = 'y' WHERE id = 20003),
	q(UPDATE public.customer SET n='2' WHERE id='20003' AND n IS NOT DISTINCT FROM '1'));
captured('an update of what is not listed', q(UPDATE customer SET secret = 'z' WHERE id IN (20001, 20003)));
captured('an update outside', q(UPDATE customer SET n = 3, id = 20004 WHERE id = 20002));
captured('a row that comes in, with another key', q(UPDATE customer SET region = 'north', id = 20005 WHERE id = 20001),
	q(INSERT INTO public.customer (id, region, n) VALUES ('20005', 'north', '1')));
captured('a row that goes out, with another key', q(UPDATE customer SET region = NULL, id = 20006 WHERE id = 20003),
	q(DELETE FROM public.customer WHERE id='20003' AND region IS NOT DISTINCT FROM 'north' AND n IS NOT DISTINCT FROM '2'));
captured('a delete outside', q(DELETE FROM customer WHERE id = 20006));
captured('a delete inside', q(DELETE FROM customer WHERE id = 20005),
	q(DELETE FROM public.customer WHERE id='20005' AND region IS NOT DISTINCT FROM 'north' AND n IS NOT DISTINCT FROM '1'));
is_filtered('customer', @columns, 'rows cross the border');

# What triggers do to a row before we are told of it has to be put in order.
$master->safe_psql('postgres', <<'SQL');
CREATE FUNCTION wander() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.n BETWEEN 100000 AND 100003 THEN
		UPDATE customer SET n = n + 1, region = CASE region WHEN 'north' THEN 'south' ELSE 'north' END WHERE id = NEW.id;
	END IF;
	IF NEW.n = 100002 THEN
		DELETE FROM customer WHERE id = NEW.id;
		INSERT INTO customer VALUES (NEW.id, 'north', 'again', 5);
	END IF;
	RETURN NULL;
END
$$;
-- fires before the log's trigger
CREATE TRIGGER "!a" AFTER INSERT OR UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION wander();
INSERT INTO customer SELECT 21000 + i, CASE WHEN i % 2 = 0 THEN 'north' ELSE 'south' END, 'x', 100000 + i FROM generate_series(0, 3) i;
UPDATE customer SET n = 100000 + id % 4 WHERE id BETWEEN 21 AND 28;
DROP TRIGGER "!a" ON customer;
SQL
is_filtered('customer', @columns, 'rows that triggers move across the border');
is(status_value($slave, 'conflicts'), '0', 'without a conflict');

# Random walks, in large windows and in small ones, while the slave copies.
foreach my $round (1 .. 4)
{
	my $held = $round % 2 ? hold_back($master, $slave) : [];
	$slave->safe_psql('postgres', q(SELECT pyreplica_resync('customer'))) if $round > 2;
	$master->safe_psql('postgres', <<"SQL");
SELECT setseed(0.$round);
DO \$\$
BEGIN
	FOR i IN 1 .. 150 LOOP
		CASE i % 5
		WHEN 0 THEN UPDATE customer SET region = (ARRAY['north', 'south', NULL])[1 + floor(random() * 3)] WHERE id % 50 = floor(random() * 50) AND id < 3000;
		WHEN 1 THEN UPDATE customer SET n = 9950 + floor(random() * 100) WHERE id % 40 = floor(random() * 40) AND id < 3000;
		WHEN 2 THEN DELETE FROM customer WHERE id % 97 = floor(random() * 97);
		WHEN 3 THEN UPDATE customer SET id = id + 100000, region = (ARRAY['north', 'south', NULL])[1 + floor(random() * 3)] WHERE id % 101 = floor(random() * 101) AND id < 100000 AND NOT EXISTS (SELECT FROM customer o WHERE o.id = customer.id + 100000);
		ELSE INSERT INTO customer SELECT (i * 7919) % 3000 + j, (ARRAY['north', 'south', NULL])[1 + floor(random() * 3)], 'x', j FROM generate_series(1, 20) j ON CONFLICT (id) DO UPDATE SET region = excluded.region;
		END CASE;
		IF i % 7 = 0 THEN COMMIT; END IF;
	END LOOP;
END
\$\$;
SQL
	let_go($held) if @$held;
	is_filtered('customer', @columns, "random walks across the border, round $round");
}
is(status_value($slave, q(conflicts || ' ' || errors)), '0 0', 'without a conflict or an error');

# --- Another filter for a table that is being written ---

my $writer = start_looping($master, 'psql', '-XAtqc', <<'SQL');
INSERT INTO customer SELECT DISTINCT ON (1) 300000 + floor(random() * 2000), (ARRAY['north', 'south', 'east'])[1 + floor(random() * 3)], 'x', floor(random() * 10) FROM generate_series(1, 20)
	ON CONFLICT (id) DO UPDATE SET region = excluded.region, n = customer.n + 1;
DELETE FROM customer WHERE id = 300000 + floor(random() * 2000);
SQL
foreach my $filter (q(region = 'south'), q(region <> 'north' AND n % 2 = 0), '', q(region = 'east' OR region IS NULL))
{
	create_tg('customer', "row_filter => \$f\$$filter\$f\$");
	wait_caught_up($slave);
	wait_ready('customer');
	is($slave->safe_psql('postgres', q(SELECT count(*) FROM pyreplica_verify('customer'))), '0',
		"the filter of a running table becomes '$filter'");
	$columns[1] = $filter;
}
ok(poll_until(sub { $slave->safe_psql('postgres', q(SELECT count(*) > 5 FROM customer WHERE id >= 300000)) eq 't' }), 'while it is written');
stop_looping($writer);
is_filtered('customer', @columns, 'the last filter is what counts');
is(status_value($slave, q(conflicts || ' ' || errors)), '0 0', 'changing the filter is no conflict, and no error');

# Changes of the new filter come before the list of tables tells of it.
my $held = hold_back($master, $slave);
create_tg('customer', q(row_filter => 'id % 2 = 0', columns => '{}'));
$master->safe_psql('postgres', 'UPDATE customer SET n = n + 1, region = $$west$$; DELETE FROM customer WHERE id % 4 = 0 AND id < 1000; INSERT INTO customer VALUES (400000, $$west$$, $$told$$, 1), (400001, NULL, NULL, NULL)');
let_go($held);
is_filtered('customer', '*', 'id % 2 = 0', 'changes tell by themselves of another filter');
is(status_value($slave, q(conflicts || ' ' || errors)), '0 0', 'before anything goes wrong');
my $copied = q(SELECT finished_at FROM pyreplica_tables WHERE tablename = 'customer');
my $before = $slave->safe_psql('postgres', $copied);
create_tg('customer', 'log_old => true');
is($master->safe_psql('postgres', q(SELECT py_log_create_tg('customer'))), 'created trigger on customer (id)', 'creating it once more');
$master->safe_psql('postgres', 'INSERT INTO customer VALUES (400003), (400004); NOTIFY replicas');
is_filtered('customer', '*', 'id % 2 = 0', 'leaves the filter as it is');
is($slave->safe_psql('postgres', $copied), $before, 'and the table is not copied anew');
$master->safe_psql('postgres', 'TRUNCATE customer');
is_filtered('customer', '*', 'true', 'a truncate is one of all rows');

# By hand, with a comment that must not swallow what follows it.
on_both($master, $slave, 'CREATE TABLE hand (id int PRIMARY KEY, a int, b date)');
$master->safe_psql('postgres', <<'SQL');
INSERT INTO hand SELECT i, i, date '2024-01-01' + i FROM generate_series(1, 3000) i;
CREATE TRIGGER "!by_hand" AFTER INSERT OR UPDATE OR DELETE ON hand FOR EACH ROW
	EXECUTE FUNCTION py_log_replica('hand', 'id', '', 'row_filter', 'a > 10 and b < ''2030-01-01'' -- a comment', 'columns', '{id, a}');
NOTIFY replicas;
SQL
wait_ready('hand');
$master->safe_psql('postgres', q(SET datestyle = 'German, DMY'; UPDATE hand SET a = a - 5; INSERT INTO hand VALUES (5000, 11, '1.2.2029'), (5001, 11, '1.2.2031')));
is_filtered('hand', 'id, a', q(a > 10 AND b < '2030-01-01'), 'a filter by hand');

# What makes no sense is the trouble of its table alone.
on_both($master, $slave, 'CREATE TABLE senseless (id int PRIMARY KEY)');
$master->safe_psql('postgres', <<'SQL');
CREATE TRIGGER "!by_hand" AFTER INSERT OR UPDATE OR DELETE ON senseless FOR EACH ROW
	EXECUTE FUNCTION py_log_replica('senseless', 'id', '', 'row_filter', 'id >', 'columns', '{', 'log_old', 'perhaps');
NOTIFY replicas;
SQL
ok( $slave->poll_query_until('postgres',
		q(SELECT last_error ~ 'malformed array literal|cannot be used' FROM pyreplica_tables WHERE tablename = 'senseless')),
	'a trigger with options that make no sense');
is(status_value($slave, 'errors'), '0', 'keeps nobody else from going on');
$master->safe_psql('postgres', q(DROP TRIGGER "!by_hand" ON senseless; NOTIFY replicas));

# --- What becomes of a filter when the table changes ---

on_both($master, $slave, 'CREATE TABLE renamed (id int PRIMARY KEY, a int, c int)');
create_tg('renamed', q(row_filter => 'a > 1', columns => '{id,a}'));
$master->safe_psql('postgres', 'INSERT INTO renamed VALUES (1, 1), (2, 2); ALTER TABLE renamed RENAME a TO b');
my $message = ($master->psql('postgres', 'INSERT INTO renamed VALUES (3, 3)'))[2];
like($message, qr/row filter of table "public\.renamed" cannot be used: column "a" does not exist.*The filter is: \(a > 1\).*py_log_create_tg\('public', 'renamed', row_filter => '\.\.\.'\)/s,
	'a filter over a column that has another name now says so, and the way out');
like(refusal(q(row_filter => 'b > 1'), 'renamed'), qr/column "a" of table public\.renamed does not exist/, 'so does a list of columns');
$slave->safe_psql('postgres', 'ALTER TABLE renamed RENAME a TO b');
create_tg('renamed', q(row_filter => 'b > 1', columns => '{id,b}'));
$master->safe_psql('postgres', 'INSERT INTO renamed VALUES (3, 3), (4, 0)');
is_filtered('renamed', 'id, b', 'b > 1', 'with another filter it goes on');

# The filter runs with the rights of who writes, whatever he has set.
$master->safe_psql('postgres', <<'SQL');
CREATE ROLE writer LOGIN;
GRANT ALL ON renamed TO writer;
GRANT CREATE ON SCHEMA public TO writer;
SET SESSION AUTHORIZATION writer;
CREATE FUNCTION public.int4gt(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE OPERATOR public.> (FUNCTION = public.int4gt, LEFTARG = int, RIGHTARG = int);
SET search_path = public, pg_catalog;
INSERT INTO renamed VALUES (5, 5), (6, -6);
SQL
is_filtered('renamed', 'id, b', 'b OPERATOR(pg_catalog.>) 1', 'an operator of somebody\'s own does not become the filter\'s');
is(status_value($slave, q(conflicts || ' ' || errors)), '0 0', 'no conflict and no error all the way');

done_testing();
