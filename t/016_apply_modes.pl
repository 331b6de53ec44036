# A slave may apply a window of many transactions in sets, each row as what
# became of it.  Nobody must be able to tell by the result: conflicts and
# errors name the one row among thousands, and where the order of changes can
# be seen, it is kept.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PyreplicaTest;
use Test::More;

my ($master, $slave) = new_pair(
	master_conf => "autovacuum = off\nclient_min_messages = warning\n",
	slave_conf  => "autovacuum = off\npyreplica.apply_mode = auto\n");

# All that this does on the master comes to the slave as one window.
sub window
{
	my (@sql) = @_;
	my $held = hold_back($master, $slave);
	$master->safe_psql('postgres', $_) for @sql;
	let_go($held);
	return;
}

# So many transactions, each of which does this for its number i.
sub transactions
{
	my ($count, $sql) = @_;
	return "DO \$do\$ BEGIN FOR i IN 1 .. $count LOOP $sql; COMMIT; END LOOP; END \$do\$";
}

sub ask
{
	my ($node, $sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

my ($conflicts, $errors, $here) = (0, 0, 0);

# What goes wrong from here on is told by the next function.
sub begin_story
{
	$conflicts = status_value($slave, 'conflicts');
	$errors    = status_value($slave, 'errors');
	$here      = log_position($slave);
	return;
}

# The slave has caught up, these tables are the same, and there was neither
# conflict nor error.
sub all_well
{
	my ($name, @tables) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($slave);
	is_same_rows($master, $slave, $_, "$name: $_ is the same") for @tables;
	is( status_value($slave, q(conflicts || ' conflicts, ' || errors || ' errors')),
		"$conflicts conflicts, $errors errors",
		"$name: without conflict or error");
	is(count_log($slave, $here, qr/(?:ERROR|WARNING): /),
		0, "$name: nor is there any in the log");
	return;
}

# The worker fails with this error, whose context names this change of this
# row, which is the last that this transaction of the master has written.
sub fails_at
{
	my ($name, $error, $change, $xid) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_status($slave, "state = 'error' AND errors > $errors", 60);
	like(status_value($slave, 'last_error'), $error, "$name: is told in the view");
	my ($told) = log_since($slave, $here) =~ /^(\N*ERROR: .*?CONTEXT: .*?)^\N*(?:LOG|ERROR|FATAL): /ms;
	like($told // '', $error, "$name: is told in the log");
	like(
		$told // '',
		qr/pyreplica postgres: applying \Q$change\E of the master's transaction $xid,/,
		"$name: with its table, key and transaction");
	return;
}

# --- A row is missing among thousands ---

on_both($master, $slave, <<'SQL');
CREATE TABLE account (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, a text UNIQUE);
CREATE TABLE other (id int PRIMARY KEY, n int);
SQL
log_table($master, 'account', 'other');
ask($master, <<'SQL');
INSERT INTO account SELECT i, 0, 'account ' || i FROM generate_series(0, 4999) i;
INSERT INTO other VALUES (1, 0);
SQL
wait_caught_up($slave);

ask($slave, 'DELETE FROM account WHERE id IN (777, 4888)');
begin_story();
window(
	transactions(100,
		'UPDATE account SET n = n + 1 WHERE id % 100 = i - 1 AND id < 4800'),
	'DELETE FROM account WHERE id >= 4800');
wait_caught_up($slave);
is(count_log($slave, $here, qr/conflict /), 2, 'of thousands of rows, two are missing');
like(
	log_since($slave, $here),
	qr/LOG:  pyreplica postgres: conflict update_missing on table "public\.account" \(id='777'\)/,
	'the one to be updated is named');
like(
	log_since($slave, $here),
	qr/LOG:  pyreplica postgres: conflict delete_missing on table "public\.account" \(id='4888'\)/,
	'the one to be deleted is named');
is(status_value($slave, 'conflicts'), $conflicts + 2, 'each is counted once');
is(status_value($slave, 'errors'), $errors, 'and is no error');
is_same($master, $slave, '(SELECT * FROM account WHERE id <> 777)',
	'all others are as they should be');
is(ask($slave, 'SELECT count(*) FROM account WHERE id = 777'),
	0, 'and the missing one was not made up');

begin_story();
window('UPDATE account SET n = n + 1 WHERE id = 777');
wait_caught_up($slave);
is(count_log($slave, $here, qr/conflict update_missing .*\(id='777'\)/),
	1, 'a single row that is missing');

ask($slave, 'DELETE FROM account WHERE id BETWEEN 1001 AND 1200');
begin_story();
window(transactions(10, 'UPDATE account SET n = n + 1 WHERE id % 10 = i - 1'));
wait_caught_up($slave);
is(status_value($slave, 'conflicts'), $conflicts + 201, 'many rows are missing');
is(count_log($slave, $here, qr/conflict update_missing/),
	201, 'each of which is named');
is_same(
	$master, $slave,
	'(SELECT * FROM account WHERE id <> 777 AND id NOT BETWEEN 1001 AND 1200)',
	'while all others are changed');
ask($master, 'DELETE FROM account WHERE id = 777 OR id BETWEEN 1001 AND 1200');
wait_caught_up($slave);

# --- A key is there already ---

ask($slave, q(INSERT INTO account VALUES (6000, -1, 'written here')));
my $before = content($slave, 'account') . content($slave, 'other');
begin_story();
window(
	transactions(50, <<'SQL'));
INSERT INTO account SELECT 5000 + i + 50 * j, 0, NULL FROM generate_series(0, 99) j;
UPDATE account SET n = n + 1 WHERE id % 50 = i - 1;
UPDATE other SET n = n + 1
SQL
fails_at(
	'a duplicate key',
	qr/conflict insert_exists on table "public\.account" \(id='6000'\).*unique index "account_pkey"/s,
	q(INSERT into table "public.account" (id='6000')),
	ask($master, q(SELECT xid FROM replica_log_sql WHERE statement ~ 'INSERT.*account.*''6000''')));
is(content($slave, 'account') . content($slave, 'other'),
	$before, 'a duplicate key: nothing is half done');
ask($slave, 'DELETE FROM account WHERE id = 6000');
begin_story();
all_well('the duplicate key is gone', 'account', 'other');

ask($slave, q(UPDATE account SET a = 'taken' WHERE id = 1));
$before = content($slave, 'account') . content($slave, 'other');
begin_story();
window(
	transactions(50, <<'SQL'));
UPDATE account SET a = 'new ' || id WHERE id BETWEEN 100 * i AND 100 * i + 99 AND id > 10;
UPDATE other SET n = n + 1;
UPDATE account SET a = 'taken' WHERE id = 2500 AND i = 25
SQL
fails_at(
	'a duplicate value',
	qr/conflict update_exists on table "public\.account" \(id='2500'\).*unique index "account_a_key"/s,
	q(UPDATE of table "public.account" (id='2500')),
	ask($master, q(SELECT xid FROM replica_log_sql WHERE statement ~ 'UPDATE.*account.*taken')));
is(content($slave, 'account') . content($slave, 'other'),
	$before, 'a duplicate value: nothing is half done');
ask($slave, q(UPDATE account SET a = 'account 1' WHERE id = 1));
begin_story();
all_well('the duplicate value is gone', 'account', 'other');

# --- A value does not fit among thousands ---

my $fits = 'CREATE TABLE fits (id int PRIMARY KEY, n %s, mood mood, a %s, b text %s)';
ask($master, q(CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); )
	  . sprintf($fits, 'int', 'text', ''));
ask($slave, q(CREATE TYPE mood AS ENUM ('sad', 'ok'); )
	  . sprintf($fits, 'smallint', 'varchar(10)', q(NOT NULL CHECK (b <> 'forbidden'))));
log_table($master, 'fits');
ask($master, q(INSERT INTO fits SELECT i, 1, 'ok', 'short', 'b' FROM generate_series(0, 1999) i));
wait_caught_up($slave);

foreach my $case (
	[ 'n = 70000', 'smallint out of range', 'ALTER TABLE fits ALTER n TYPE int' ],
	[ q(mood = 'happy'), 'invalid input value for enum (?:public\.)?mood: "happy"', q(ALTER TYPE mood ADD VALUE 'happy') ],
	[ q(a = 'longer than ten'), 'value too long for type character varying\(10\)', 'ALTER TABLE fits ALTER a TYPE text' ],
	[ 'b = NULL', 'null value in column "b" of relation "fits" violates not-null constraint', 'ALTER TABLE fits ALTER b DROP NOT NULL' ],
	[ q(b = 'forbidden'), 'new row for relation "fits" violates check constraint', 'ALTER TABLE fits DROP CONSTRAINT fits_b_check' ])
{
	my ($set, $error, $cure) = @$case;
	$before = content($slave, 'fits') . content($slave, 'other');
	begin_story();
	window(
		transactions(40, <<"SQL"));
UPDATE other SET n = n + 1;
UPDATE fits SET n = n + 1, a = i, b = i, mood = 'sad' WHERE id % 40 = i - 1;
INSERT INTO fits SELECT max(id) + 1, 0, 'ok', '', '' FROM fits;
UPDATE fits SET $set WHERE id = 1234 AND i = 35
SQL
	fails_at(
		$set,
		qr/$error/,
		q(UPDATE of table "public.fits" (id='1234')),
		ask($master, 'SELECT xmin FROM fits WHERE id = 1234'));
	is(content($slave, 'fits') . content($slave, 'other'),
		$before, "$set: nothing is half done");
	ask($slave, $cure);
	begin_story();
	all_well("$set: the way out", 'fits', 'other');
	ask($master, q(UPDATE fits SET n = 1, a = '', b = '' WHERE id = 1234));
}

# --- Somebody watches each change ---

# The same triggers and rules on both sides: ordinary ones on the master, and
# on the slave ones that fire there.  What they tell of must be the same, and
# in the same order; each also tells what another table, which nobody watches,
# had in it at that moment.
on_both($master, $slave, <<'SQL');
CREATE TABLE plain (id int PRIMARY KEY, n int);
CREATE TABLE told (id serial PRIMARY KEY, what text);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	n		int := (SELECT p.n FROM public.plain p WHERE p.id = 1);
BEGIN
	INSERT INTO public.told (what) VALUES (
		CASE WHEN TG_LEVEL = 'STATEMENT' THEN concat_ws(' ', TG_NAME, TG_OP, n)
			ELSE concat_ws(' ', TG_NAME, TG_OP, OLD, NEW, n) END);
	RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END
$$;
CREATE TABLE by_always (id int PRIMARY KEY, a text);
CREATE TRIGGER always AFTER INSERT OR UPDATE OR DELETE ON by_always
	FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TABLE by_replica (id int PRIMARY KEY, a text);
CREATE TRIGGER replica BEFORE INSERT OR UPDATE OR DELETE ON by_replica
	FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TABLE by_statement (id int PRIMARY KEY, a text);
CREATE TRIGGER statement AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON by_statement
	FOR EACH STATEMENT EXECUTE FUNCTION tell();
CREATE TABLE by_rule (id int PRIMARY KEY, a text);
CREATE RULE rule AS ON UPDATE TO by_rule DO ALSO
	INSERT INTO public.told (what)
		SELECT concat_ws(' ', 'rule', OLD.id, OLD.a, NEW.id, NEW.a, n) FROM public.plain p WHERE p.id = 1;
CREATE TABLE by_nobody (id int PRIMARY KEY, a text);
SQL
ask($slave, <<'SQL');
ALTER TABLE by_always ENABLE ALWAYS TRIGGER always;
ALTER TABLE by_replica ENABLE REPLICA TRIGGER replica;
ALTER TABLE by_statement ENABLE ALWAYS TRIGGER statement;
ALTER TABLE by_rule ENABLE ALWAYS RULE rule;
CREATE TRIGGER ordinary AFTER INSERT OR UPDATE OR DELETE ON by_nobody
	FOR EACH ROW EXECUTE FUNCTION tell();
CREATE TRIGGER ordinary_too AFTER INSERT OR UPDATE OR DELETE ON by_nobody
	FOR EACH STATEMENT EXECUTE FUNCTION tell();
CREATE RULE ordinary_rule AS ON UPDATE TO by_nobody DO ALSO
	INSERT INTO public.told (what) VALUES ('the ordinary rule');
SQL
# the watched table may also be a part of a table, or have such parts
ask($master, <<'SQL');
CREATE TABLE by_part (id int PRIMARY KEY, a text);
CREATE TRIGGER part AFTER INSERT OR UPDATE OR DELETE ON by_part
	FOR EACH ROW EXECUTE FUNCTION tell();
SQL
ask($slave, <<'SQL');
CREATE TABLE by_part (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
CREATE TABLE by_part_1 PARTITION OF by_part FOR VALUES FROM (0) TO (1000);
CREATE TABLE by_part_2 PARTITION OF by_part DEFAULT;
CREATE TRIGGER part AFTER INSERT OR UPDATE OR DELETE ON by_part_1
	FOR EACH ROW EXECUTE FUNCTION tell();
ALTER TABLE by_part_1 ENABLE ALWAYS TRIGGER part;
SQL
my @watched = map { "by_$_" } qw(always replica statement rule part);
log_table($master, @watched, 'by_nobody', 'plain');
ask($master, q(INSERT INTO plain VALUES (1, 0), (2, 0)));
ask($master, "INSERT INTO $_ VALUES (99, 'before'); INSERT INTO $_ VALUES (100, 'before')")
  for (@watched, 'by_nobody');
wait_caught_up($slave);

# Rows come, change to and fro, and go, in each table in turn.
begin_story();
window(
	transactions(20, join(';', map { <<"SQL" } (@watched, 'by_nobody'))),
UPDATE plain SET n = n + 1;
INSERT INTO $_ VALUES (i, 'new');
UPDATE $_ SET a = 'changed' WHERE id = i;
UPDATE plain SET n = n + 1;
UPDATE $_ SET a = 'new' WHERE id = i;
UPDATE $_ SET id = i + 100 WHERE id = i;
UPDATE $_ SET a = 'a twin' WHERE id = i + 99;
DELETE FROM $_ WHERE id = i + 98
SQL
	'INSERT INTO by_statement VALUES (1000); TRUNCATE by_statement; INSERT INTO by_statement VALUES (1000)',
	'UPDATE plain SET n = n + 1');
all_well('somebody watches', @watched, 'by_nobody', 'plain');
my $told = 'SELECT what FROM told ORDER BY id';
is_deeply(
	[ split(/\n/, ask($slave,  $told)) ],
	[ split(/\n/, ask($master, $told)) ],
	'who watches on the slave is told each change, when it happens');
like(ask($slave, $told), qr/^\Q$_\E/m, "$_ is told of something")
  for ('always INSERT', 'replica UPDATE', 'statement TRUNCATE', 'rule 1 new', 'part DELETE');
unlike(ask($slave, $told), qr/ordinary/, 'ordinary triggers and rules are not');

# A trigger of the slave that changes what is written, or does not let it be.
on_both($master, $slave, 'CREATE TABLE amended (id int PRIMARY KEY, a text, changes int DEFAULT 0)');
ask($slave, <<'SQL');
CREATE FUNCTION amend() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	NEW.changes := NEW.changes + 1;
	RETURN NEW;
END
$$;
CREATE TRIGGER amend BEFORE UPDATE ON amended FOR EACH ROW EXECUTE FUNCTION amend();
ALTER TABLE amended ENABLE ALWAYS TRIGGER amend;
SQL
log_table($master, 'amended');
begin_story();
window(
	q(INSERT INTO amended SELECT generate_series(1, 100), 'a'),
	transactions(10, 'UPDATE amended SET a = a || i WHERE id <= 50'));
all_well('a trigger that amends', '(SELECT id, a FROM amended)');
is(ask($slave, 'SELECT id <= 50, changes, count(*) FROM amended GROUP BY 1, 2 ORDER BY 1'),
	"f|0|50\nt|10|50", 'a trigger that amends: it did so for each update');

# Watching begins and ends while the worker runs.
ask($slave, 'ALTER TABLE by_always DISABLE TRIGGER always');
my $last = ask($slave, 'SELECT max(id) FROM told');
window(q(INSERT INTO by_always VALUES (5000, 'not told')));
wait_caught_up($slave);
is(ask($slave, 'SELECT max(id) FROM told'), $last, 'a trigger is disabled');
ask($slave, 'ALTER TABLE by_always ENABLE ALWAYS TRIGGER always');
window(transactions(3, q(UPDATE by_always SET a = i WHERE id = 5000)));
wait_caught_up($slave);
is( ask($slave, "SELECT count(*) FROM told WHERE id > $last"),
	3, 'and enabled again: it is told each change');

# --- Order that constraints ask for ---

on_both($master, $slave, <<'SQL');
CREATE TABLE booked (id int PRIMARY KEY, during int4range,
	EXCLUDE USING gist (during WITH &&));
CREATE TABLE swapped (id int PRIMARY KEY, u int UNIQUE, w text UNIQUE);
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY IMMEDIATE, u int UNIQUE DEFERRABLE);
SQL
log_table($master, 'booked', 'swapped', 'deferred');
ask($master, <<'SQL');
INSERT INTO booked SELECT i, int4range(i * 10, i * 10 + 10) FROM generate_series(1, 100) i;
INSERT INTO swapped SELECT i, i, i::text FROM generate_series(1, 1000) i;
INSERT INTO deferred SELECT i, i FROM generate_series(1, 1000) i;
SQL
begin_story();
window(
	transactions(50, <<'SQL'),
UPDATE booked SET during = 'empty' WHERE id = i;
UPDATE booked SET during = int4range(i * 10, i * 10 + 10) WHERE id = i + 50;
UPDATE booked SET during = int4range((i + 50) * 10, (i + 50) * 10 + 10) WHERE id = i;
UPDATE plain SET n = n + 1 WHERE id = 2
SQL
	'DELETE FROM booked WHERE id <= 10; INSERT INTO booked VALUES (1000, int4range(510, 560)), (1001, int4range(560, 610))');
all_well('nothing overlaps', 'booked', 'plain');

begin_story();
window(
	transactions(100, <<'SQL'),
UPDATE swapped SET u = -1, w = '' WHERE id = i;
UPDATE swapped SET u = i, w = i WHERE id = 1001 - i;
UPDATE swapped SET u = 1001 - i, w = 1001 - i WHERE id = i;
UPDATE plain SET n = n + 1 WHERE id = 2
SQL
	'UPDATE swapped SET id = -id WHERE id <= 500; UPDATE swapped SET id = 501 + id WHERE id < 0',
	'UPDATE swapped SET u = u + 10000; UPDATE swapped SET u = u - 9999 WHERE u < 11000; UPDATE swapped SET u = 1 WHERE u = 11000',
	'DELETE FROM swapped WHERE id = 1; UPDATE swapped SET id = 1 WHERE id = 2; INSERT INTO swapped VALUES (2, NULL, NULL)');
all_well('unique values are swapped', 'swapped', 'plain');

begin_story();
window(
	transactions(5, <<'SQL'),
UPDATE deferred SET id = id + 1;
UPDATE deferred SET u = 1001 - u;
UPDATE deferred SET id = 1007 - id WHERE id IN (6 + i, 1001 - i);
UPDATE plain SET n = n + 1 WHERE id = 2
SQL
	'DELETE FROM deferred WHERE id % 2 = 0; UPDATE deferred SET id = id - 1');
all_well('keys are checked late', 'deferred', 'plain');

# --- What a row has on the slave alone ---

ask($master, 'CREATE TABLE extended (id int PRIMARY KEY, a text)');
ask($slave, q(CREATE TABLE extended (own text DEFAULT 'as new', a text, id int PRIMARY KEY)));
log_table($master, 'extended');
ask($master, q(INSERT INTO extended SELECT generate_series(1, 300), 'a'));
wait_caught_up($slave);
ask($slave, q(UPDATE extended SET own = 'of our own'));
begin_story();
window(
	transactions(3, q(UPDATE extended SET a = a || i WHERE id % 3 = 0)),
	q(UPDATE extended SET id = id + 1002 WHERE id % 3 = 1),
	q(DELETE FROM extended WHERE id % 3 = 2),
	q(INSERT INTO extended SELECT i, 'again' FROM generate_series(2, 299, 3) i));
all_well('columns of our own', '(SELECT id, a FROM extended)');
is( ask($slave, 'SELECT id % 3, id > 1000, own, count(*) FROM extended GROUP BY 1, 2, 3 ORDER BY 1, 2'),
	"0|f|of our own|100\n1|t|of our own|100\n2|f|as new|100",
	'columns of our own: an updated row keeps them, one that was deleted and inserted is new');

# --- Targets that are no ordinary tables ---

# Parts are others than the master's, or there are none there.
ask($master, <<'SQL');
CREATE TABLE parted (id int PRIMARY KEY, n int) PARTITION BY HASH (id);
CREATE TABLE parted0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE unparted (id int, n int, PRIMARY KEY (id, n));
SQL
ask($slave, <<'SQL');
CREATE TABLE parted (n int, id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parted0 PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (500);
CREATE TABLE parted1 PARTITION OF parted FOR VALUES FROM (500) TO (MAXVALUE);
CREATE TABLE unparted (id int, n int, PRIMARY KEY (n, id)) PARTITION BY LIST (n);
CREATE TABLE unparted1 PARTITION OF unparted FOR VALUES IN (1, 3, 5, 7, 9);
CREATE TABLE unparted2 PARTITION OF unparted DEFAULT;
SQL
ask($master, q(CREATE TABLE parts (n int); SELECT py_log_create_tg(relname::text) FROM pg_class WHERE relname IN ('unparted', 'parted0', 'parted1')));
my $rows = 'SELECT id, n FROM %s ORDER BY 1, 2';
begin_story();
window(
	q(INSERT INTO unparted SELECT i, i % 7 FROM generate_series(1, 1000) i),
	transactions(20, <<'SQL'),
UPDATE unparted SET n = n + 1 WHERE id % 20 = i - 1 AND n < 9;
UPDATE unparted SET id = -id WHERE id = i * 3;
DELETE FROM unparted WHERE id = 500 + i
SQL
);
all_well('the slave has parts', '(SELECT id, n FROM unparted)');
is(ask($slave, 'SELECT count(*) FROM unparted1') + ask($slave, 'SELECT count(*) FROM unparted2'),
	980, 'the slave has parts: each row is in one');

# A table of another server, here another database of the same one.
SKIP:
{
	skip 'postgres_fdw is not installed', 4
	  unless ask($slave, q(SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'));
	ask($slave, 'CREATE DATABASE far');
	$slave->safe_psql('far', 'CREATE TABLE far_away (id int PRIMARY KEY, n int, a text)');
	my ($host, $port) = ($slave->host, $slave->port);
	ask($slave, <<"SQL");
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw
	OPTIONS (host '$host', port '$port', dbname 'far');
CREATE USER MAPPING FOR CURRENT_USER SERVER far;
CREATE FOREIGN TABLE far_away (id int, n int, a text) SERVER far;
SQL
	ask($master, 'CREATE TABLE far_away (id int PRIMARY KEY, n int, a text)');
	log_table($master, 'far_away');
	begin_story();
	window(
		q(INSERT INTO far_away SELECT i, i, 'far' FROM generate_series(1, 300) i),
		transactions(20, <<'SQL'));
UPDATE far_away SET n = n + 1, a = NULL WHERE id % 20 = i - 1;
UPDATE far_away SET id = id + 1000 WHERE id = i;
DELETE FROM far_away WHERE id = 100 + i
SQL
	all_well('a foreign table', 'far_away');
	is( $slave->safe_psql('far', sprintf($rows, 'far_away')),
		ask($master, sprintf($rows, 'far_away')),
		'a foreign table: it is there');
}

# A view: one that the server sees through, and one with triggers of its own.
# (Only the catalogue can be told that they shall fire for a replica.)
on_both($master, $slave, 'CREATE TABLE told_view (what text)');
ask($master, <<'SQL');
CREATE TABLE viewed (id int PRIMARY KEY, name text);
CREATE TABLE instead (id int PRIMARY KEY, name text);
SQL
ask($slave, <<'SQL');
CREATE TABLE behind_viewed (id int PRIMARY KEY, full_name text);
CREATE VIEW viewed AS SELECT id, full_name AS name FROM behind_viewed;
CREATE TABLE behind_instead (number serial, what text);
CREATE VIEW instead AS SELECT NULL::int AS id, NULL::text AS name, what FROM behind_instead;
CREATE FUNCTION note_instead() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.behind_instead (what) VALUES (concat_ws(' ', TG_OP, NEW.id, NEW.name));
	RETURN NEW;
END
$$;
CREATE TRIGGER note INSTEAD OF INSERT ON instead
	FOR EACH ROW EXECUTE FUNCTION note_instead();
SQL
log_table($master, 'viewed', 'instead');
begin_story();
window(
	q(INSERT INTO viewed SELECT i, 'name ' || i FROM generate_series(1, 500) i),
	transactions(20, <<'SQL'));
UPDATE viewed SET name = upper(name) WHERE id % 20 = i - 1;
UPDATE viewed SET id = id + 1000 WHERE id = i;
DELETE FROM viewed WHERE id = 100 + i;
INSERT INTO instead VALUES (i, 'a'), (i + 100, 'b')
SQL
all_well('a view', 'viewed');
is( ask($slave, 'SELECT what FROM behind_instead ORDER BY number'),
	join("\n", map { ("INSERT $_ a", 'INSERT ' . ($_ + 100) . ' b') } (1 .. 20)),
	'a view with triggers of its own: they are called for each change');

# A table without any key on the slave.
ask($master, 'CREATE TABLE keyless (id int PRIMARY KEY, n int)');
ask($slave, 'CREATE TABLE keyless (id int, n int)');
log_table($master, 'keyless');
begin_story();
window(
	q(INSERT INTO keyless SELECT i, 0 FROM generate_series(1, 500) i),
	transactions(20, 'UPDATE keyless SET n = n + 1 WHERE id % 20 = i - 1; DELETE FROM keyless WHERE id = i'));
all_well('a table without key', 'keyless');
ask($slave, 'INSERT INTO keyless SELECT * FROM keyless WHERE id = 333');
begin_story();
window('UPDATE keyless SET n = n + 1');
fails_at(
	'one key twice',
	qr/table "public.keyless" has 2 rows with one key on the slave/,
	q(UPDATE of table "public.keyless" (id='333')),
	ask($master, 'SELECT xmin FROM keyless WHERE id = 333'));
is(ask($slave, 'SELECT max(n) FROM keyless'), 1, 'one key twice: nothing is half done');
ask($slave, 'DELETE FROM keyless WHERE ctid = (SELECT max(ctid) FROM keyless WHERE id = 333)');
begin_story();
all_well('one key twice no more', 'keyless');

# A table of somebody else: what is attached to it runs with that one's rights.
on_both($master, $slave, 'CREATE TABLE owned (id int PRIMARY KEY, a text)');
ask($slave, <<'SQL');
CREATE ROLE alice;
CREATE FUNCTION is_alice(a text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF current_user <> 'alice' THEN
		RAISE EXCEPTION 'this was run by %', current_user;
	END IF;
	RETURN true;
END
$$;
ALTER TABLE owned OWNER TO alice, ADD CHECK (is_alice(a));
SQL
log_table($master, 'owned');
begin_story();
window(
	q(INSERT INTO owned SELECT i, 'a' FROM generate_series(1, 500) i),
	transactions(10, 'UPDATE owned SET a = i WHERE id % 10 = i; DELETE FROM owned WHERE id = i'),
	'INSERT INTO owned VALUES (0, NULL)');
all_well('a table of somebody else', 'owned');

# --- Keys that are not what they seem ---

# One value, written down by sessions of several time zones, is one key.
on_both($master, $slave, 'CREATE TABLE spans (k tstzrange PRIMARY KEY, a text)');
log_table($master, 'spans');
ask($master, q{INSERT INTO spans VALUES ('[2026-01-01 00:00+00,2026-01-02 00:00+00)', 'old')});
begin_story();
my @zones = ('Europe/Berlin', 'Asia/Tokyo', 'UTC', 'America/New_York');
window(map { ("SET timezone = '$_'; UPDATE spans SET a = '$_'") } @zones);
all_well('keys of several time zones', 'spans');

# A key that the slave computes moves when what it is made of does.
on_both($master, $slave, 'CREATE TABLE made (a int, k int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY, o text)');
log_table($master, 'made');
ask($master, q(INSERT INTO made (a, o) SELECT i, 'old' FROM generate_series(1, 3) i));
begin_story();
window(
	q(INSERT INTO made (a, o) VALUES (50, 'new')),
	'UPDATE made SET a = 10 WHERE a = 2',
	'UPDATE made SET a = 2 WHERE a = 3',
	q(UPDATE made SET o = 'belongs to 2' WHERE k = 4));
all_well('a computed key', 'made');

# Rows whose key is null are not the same row.
on_both($master, $slave, 'CREATE TABLE nullable (id int, u text UNIQUE, v text)');
ask($master, q(CREATE TRIGGER "!py_log_replica_tg" AFTER INSERT OR UPDATE OR DELETE ON nullable
	FOR EACH ROW EXECUTE FUNCTION py_log_replica('nullable', 'u');
	INSERT INTO nullable VALUES (1, NULL, 'first')));
wait_caught_up($slave);
begin_story();
window(q(INSERT INTO nullable VALUES (2, NULL, 'second')), 'DELETE FROM nullable WHERE id = 1');
wait_caught_up($slave);
is(ask($slave, q(SELECT count(*) FROM nullable WHERE v = 'second')), '1',
	'a row without a key is not taken for another one');
is(status_value($slave, 'conflicts'), $conflicts + 1, 'which cannot be found');

# Keys are handed on, but a row of the chain is not here.
on_both($master, $slave, 'CREATE TABLE chain (id int PRIMARY KEY, a text)');
log_table($master, 'chain');
ask($master, q(INSERT INTO chain VALUES (1, 'one'), (2, 'two')));
wait_caught_up($slave);
ask($slave, 'DELETE FROM chain WHERE id = 2');
begin_story();
window(
	'UPDATE chain SET id = 3 WHERE id = 2',
	'UPDATE chain SET id = 2 WHERE id = 1',
	q(UPDATE chain SET a = 'two again' WHERE id = 3),
	map { ("INSERT INTO chain VALUES ($_, repeat('x', 100))") } 11 .. 30);
wait_caught_up($slave);
is(ask($slave, 'SELECT * FROM chain WHERE id < 10'), '2|one', 'the row that is here got its key, and none was lost');
is(status_value($slave, 'conflicts'), $conflicts + 2, 'the one that is not is told of');

# Two rows of one key on the slave do not make up for a missing one.
ask($master, 'CREATE TABLE keyed (id int PRIMARY KEY, n int)');
ask($slave, 'CREATE TABLE keyed (id int, n int)');
log_table($master, 'keyed');
ask($master, 'INSERT INTO keyed SELECT i, 0 FROM generate_series(1, 100) i');
wait_caught_up($slave);
ask($slave, 'UPDATE keyed SET id = 33 WHERE id = 44');
begin_story();
window('UPDATE keyed SET n = n + 1');
ok(wait_log($slave, $here, qr/table "public\.keyed" has 2 rows with one key on the slave/),
	'rows of one key are noticed');
ask($slave, 'UPDATE keyed SET id = 44 WHERE ctid = (SELECT max(ctid) FROM keyed WHERE id = 33)');
wait_caught_up($slave);
is_same_rows($master, $slave, 'keyed', 'and can be set right');

# More rows are missing than anybody wants to read of.
ask($master, 'INSERT INTO account SELECT i, 0 FROM generate_series(10001, 12500) i');
wait_caught_up($slave);
ask($slave, 'DELETE FROM account WHERE id > 10000');
begin_story();
window('DELETE FROM account WHERE id > 10000');
wait_caught_up($slave);
is(status_value($slave, 'conflicts'), $conflicts + 2500, 'thousands of missing rows are counted');
is(count_log($slave, $here, qr/conflict delete_missing/), 1000, 'a thousand of them are named');
is(count_log($slave, $here, qr/and 1500 more conflicts/), 1, 'the others are not passed over in silence');

# Each row is changed in other columns.
on_both($master, $slave, 'CREATE TABLE broad (id int PRIMARY KEY, ' . join(', ', map { "c$_ int" } 1 .. 16) . ')');
log_table($master, 'broad');
ask($master, 'INSERT INTO broad SELECT i' . (', 0' x 16) . ' FROM generate_series(1, 4000) i');
wait_caught_up($slave);
begin_story();
window('UPDATE broad SET ' . join(', ', map { "c$_ = CASE WHEN hashint4(id * $_) % 3 = 0 THEN id ELSE c$_ END" } 1 .. 16));
all_well('thousands of sets of columns', 'broad');
cmp_ok(memory_of(status_value($slave, 'pid')), '<', 150, 'they take moderate memory');

# --- Definitions that change within a window ---

on_both($master, $slave, <<'SQL');
CREATE TABLE grows (id int PRIMARY KEY, a varchar(10));
CREATE TABLE rekeyed (id int PRIMARY KEY, code text UNIQUE NOT NULL, n int);
SQL
log_table($master, 'grows', 'rekeyed');
ask($master, q(INSERT INTO grows SELECT i, 'old' FROM generate_series(1, 200) i));
wait_caught_up($slave);
begin_story();
my $held = hold_back($master, $slave);
ask($master, q(INSERT INTO grows SELECT i, 'new' FROM generate_series(201, 400) i));
ask($master, transactions(20, q(UPDATE grows SET a = a || i WHERE id % 20 = i - 1)));
on_both($master, $slave, q(ALTER TABLE grows ADD b int NOT NULL DEFAULT 7));
ask($master, transactions(20, q(UPDATE grows SET b = i WHERE id % 30 = i - 1)));
ask($master, q(INSERT INTO grows SELECT i, 'new', -1 FROM generate_series(401, 600) i));
let_go($held);
all_well('a column is added', 'grows');

# The key is a wider one from here on; rows are changed before and after.
begin_story();
$held = hold_back($master, $slave);
ask($master, q(INSERT INTO grows SELECT i, 'int', 0 FROM generate_series(601, 800) i));
ask($master, transactions(20, q(UPDATE grows SET b = i WHERE id % 20 = i - 1)));
ask($master, q(DELETE FROM grows WHERE id % 9 = 0; UPDATE grows SET id = id + 10000 WHERE id % 10 = 0));
on_both($master, $slave, q(ALTER TABLE grows ALTER id TYPE bigint, ALTER a TYPE text));
ask($master, transactions(20, q(UPDATE grows SET a = a || ' and longer' WHERE id % 25 = i - 1)));
ask($master, q(DELETE FROM grows WHERE id % 13 = 0));
ask($master, q(INSERT INTO grows SELECT i, 'bigint', 0 FROM generate_series(9, 790, 9) i WHERE i % 10 <> 0));
ask($master, q(UPDATE grows SET id = id + 10000000000 WHERE id % 17 = 0));
let_go($held);
all_well('the key becomes wider', 'grows');

# Another column is the key from here on.
begin_story();
window(
	q(INSERT INTO rekeyed SELECT i, 'code ' || i, 0 FROM generate_series(1, 200) i),
	q(UPDATE rekeyed SET n = 1 WHERE id % 3 = 0),
	q(DELETE FROM rekeyed WHERE id % 7 = 0),
	q(SELECT py_log_drop_tg('rekeyed'); ALTER TABLE rekeyed DROP CONSTRAINT rekeyed_pkey, ADD PRIMARY KEY (code); SELECT py_log_create_tg('rekeyed')),
	q(UPDATE rekeyed SET n = n + 1 WHERE id % 2 = 0),
	q(UPDATE rekeyed SET id = -id WHERE id % 5 = 0),
	q(UPDATE rekeyed SET code = 'new ' || code WHERE id % 4 = 0),
	q(DELETE FROM rekeyed WHERE id % 11 = 0),
	q(INSERT INTO rekeyed SELECT i, 'late ' || i, 9 FROM generate_series(7, 200, 7) i));
all_well('another column becomes the key', 'rekeyed');

# The slave's table changes between two windows.
begin_story();
window(transactions(10, q(UPDATE rekeyed SET n = i)));
wait_caught_up($slave);
ask($slave, 'ALTER TABLE rekeyed ALTER n TYPE numeric; CREATE INDEX ON rekeyed (n)');
window(transactions(10, q(UPDATE rekeyed SET n = n + i)));
wait_caught_up($slave);
ask($slave, 'ALTER TABLE rekeyed DROP CONSTRAINT rekeyed_pkey; ALTER TABLE rekeyed ADD PRIMARY KEY (code)');
window(transactions(10, q(UPDATE rekeyed SET n = n - i; UPDATE rekeyed SET code = code || '.' WHERE id % 10 = i)));
all_well(q(the slave's table changes), 'rekeyed');

# A table is emptied in the middle of a window.
on_both($master, $slave, 'CREATE TABLE emptied (id int PRIMARY KEY, a text); CREATE TABLE emptied_too (id int PRIMARY KEY REFERENCES emptied)');
log_table($master, 'emptied', 'emptied_too');
begin_story();
window(
	q(INSERT INTO emptied SELECT i, 'first' FROM generate_series(1, 300) i; INSERT INTO emptied_too SELECT id FROM emptied),
	q(UPDATE emptied SET a = 'changed'),
	q(TRUNCATE emptied, emptied_too),
	q(INSERT INTO emptied SELECT i, 'second' FROM generate_series(100, 400) i; INSERT INTO emptied_too SELECT id FROM emptied),
	q(TRUNCATE emptied_too),
	q(BEGIN; INSERT INTO emptied_too VALUES (100); UPDATE emptied SET a = 'third' WHERE id < 200; TRUNCATE emptied CASCADE; INSERT INTO emptied VALUES (1, 'last'); COMMIT));
all_well('emptied in between', 'emptied', 'emptied_too');

# --- The net effect, and how to do without ---

# How large a table has become is what it has been through: nothing that a
# transaction wrote and took back can be cleaned away within it.
on_both($master, $slave, 'CREATE TABLE hot (id int PRIMARY KEY, n int); CREATE TABLE passing (id int PRIMARY KEY, a text)');
log_table($master, 'hot', 'passing');
my $ten_thousand_changes = transactions(100,
	'FOR j IN 1 .. 100 LOOP UPDATE hot SET n = n + 1 WHERE id = 1; END LOOP');
my $passing = transactions(100, <<'SQL');
INSERT INTO passing SELECT 100 * i + j, repeat('a', 100) FROM generate_series(1, 10) j;
UPDATE passing SET a = repeat('b', 100) WHERE id > 100 * i;
UPDATE passing SET id = -id WHERE id > 100 * i;
DELETE FROM passing
SQL
sub size
{
	my ($table) = @_;
	return ask($slave, "SELECT pg_relation_size('$table')");
}

ask($master, 'INSERT INTO hot VALUES (1, 0)');
begin_story();
window($ten_thousand_changes, $passing);
all_well('net effect', 'hot', 'passing');
is(ask($slave, 'SELECT n FROM hot'), 10000, 'a hot row has had all changes');
cmp_ok(size('hot'), '<', 100_000, 'but was not written for each');
cmp_ok(size('passing'), '<', 50_000, 'rows that came and went leave no trace');

set_conf($slave, 'pyreplica.apply_mode = strict');
my $pid = status_value($slave, 'pid');
begin_story();
window($ten_thousand_changes, $passing);
all_well('strict, by a reload', 'hot', 'passing');
cmp_ok(size('hot'), '>', 300_000, 'in strict order a hot row is written for each change');
cmp_ok(size('passing'), '>', 300_000, 'and those that came and went, too');
is(status_value($slave, 'pid'), $pid, 'the worker is the same');

set_conf($slave, 'pyreplica.apply_mode = auto');
ask($slave, 'VACUUM FULL hot, passing');
begin_story();
window($ten_thousand_changes, $passing);
all_well('auto again', 'hot', 'passing');
is(ask($slave, 'SELECT n FROM hot'), 30000, 'auto again: all changes are there');
cmp_ok(size('hot'), '<', 100_000, 'in few versions');
is(status_value($slave, 'pid'), $pid, 'and the worker is still the same');

# To and fro while changes come.
begin_story();
my $load = start_looping($master, 'pgbench', '-n', '-c', 2, '-t', 200, '-f', do
	{
		my $script = PostgreSQL::Test::Utils::tempdir() . '/hot.sql';
		PostgreSQL::Test::Utils::append_to_file($script, <<'SQL');
\set id random(2, 20)
INSERT INTO hot VALUES (:id, 0) ON CONFLICT (id) DO UPDATE SET n = hot.n + 1;
DELETE FROM hot WHERE id = :id AND n % 5 = 4;
SQL
		$script;
	});
foreach my $mode (('strict', 'auto') x 3)
{
	my $applied = status_value($slave, 'transactions');
	set_conf($slave, "pyreplica.apply_mode = $mode");
	wait_status($slave, "transactions > $applied + 100");
}
stop_looping($load);
all_well('to and fro under load', 'hot');

# Each change is logged when asked for, whatever becomes of it.
set_conf($slave, 'pyreplica.log_statements = on');
begin_story();
window(
	q(INSERT INTO passing VALUES (1, 'one')),
	transactions(3, q(UPDATE passing SET a = a || i WHERE id = 1)),
	q(UPDATE passing SET id = 2 WHERE id = 1; DELETE FROM passing));
all_well('log_statements', 'passing');
set_conf($slave, 'pyreplica.log_statements = off');
is( join("\n", log_since($slave, $here) =~ /Executing: (.*passing.*)/g), <<'LOG' =~ s/\n$//r,
INSERT INTO public.passing (id, a) VALUES ('1', 'one')
UPDATE public.passing SET a='one1' WHERE id='1'
UPDATE public.passing SET a='one12' WHERE id='1'
UPDATE public.passing SET a='one123' WHERE id='1'
UPDATE public.passing SET id='2', a='one123' WHERE id='1'
DELETE FROM public.passing WHERE id='2'
LOG
	'each change is logged, and not what they come to');

# --- Rows are found by their key ---

# The planner would rather read all of a table that it knows to be tiny, as
# this one is when it is first seen, or use the smaller index.
on_both($master, $slave, <<'SQL');
CREATE TABLE grown (a int, b int, n int, PRIMARY KEY (a, b));
CREATE INDEX grown_a ON grown (a);
INSERT INTO grown SELECT 1, i, 0 FROM generate_series(1, 10) i;
ANALYZE grown
SQL
log_table($master, 'grown');

sub scans
{
	return ask($slave, <<'SQL');
SELECT (SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'grown') + sum(idx_scan) FILTER (WHERE indexrelname = 'grown_a')
FROM pg_stat_user_indexes WHERE relname = 'grown'
SQL
}
my $scans_before = scans();
begin_story();
for my $mode ('auto', 'strict')
{
	set_conf($slave, "pyreplica.apply_mode = $mode");
	window(transactions(10, q(UPDATE grown SET n = n + i WHERE a = 1)));
	window(transactions(2, q(DELETE FROM grown WHERE b = 10; INSERT INTO grown VALUES (1, 10, 0))));
	wait_caught_up($slave);
}
set_conf($slave, 'pyreplica.apply_mode = auto');
ok( $slave->poll_query_until(
		'postgres', q(SELECT idx_scan >= 110 FROM pg_stat_user_indexes WHERE indexrelname = 'grown_pkey')),
	'rows of a tiny table are looked up in the index of the key');
is(scans(), $scans_before, 'and in no other way');
all_well('a tiny table', 'grown');

# --- Much of it ---

# Many tables in one window.
my $all = 'SELECT string_agg(f, E\'\\n\') FROM (SELECT format($$%s$$, i, query_to_xml(format($$SELECT * FROM many_%s ORDER BY 1$$, i), true, true, $$$$)) AS f FROM generate_series(1, 300) i) x';
on_both($master, $slave,
	q(DO $$ BEGIN FOR i IN 1 .. 300 LOOP EXECUTE format('CREATE TABLE many_%s (id int PRIMARY KEY, a text, n int)', i); END LOOP; END $$));
ask($master, q(SELECT py_log_create_tg('many_' || i) FROM generate_series(1, 300) i));
begin_story();
window(
	transactions(10, <<'SQL'));
FOR t IN 1 .. 300 LOOP
	EXECUTE format('INSERT INTO many_%1$s SELECT 10 * %2$s + j, %1$s, j FROM generate_series(1, 3) j', t, i);
	EXECUTE format('UPDATE many_%s SET n = n + 1 WHERE id %% 7 = %s %% 7', t, i);
	EXECUTE format('DELETE FROM many_%s WHERE id %% 5 = %s %% 5', t, i);
END LOOP
SQL
all_well('three hundred tables');
is(ask($slave, $all), ask($master, $all), 'three hundred tables are the same');

# A window that does not fit into memory, though each of its transactions does.
on_both($master, $slave, 'CREATE TABLE large (id int PRIMARY KEY, n int, a text)');
log_table($master, 'large');
set_conf($slave, 'pyreplica.window_memory = 64kB');
wait_caught_up($slave);
begin_story();
window(
	transactions(300, <<'SQL'),
INSERT INTO large SELECT -10 * i - k, 0, string_agg(md5((i * 1000 + j)::text), '')
	FROM generate_series(0, i % 6) k, generate_series(1, 1 + (i * 37 + k * 11) % 500) j GROUP BY k;
UPDATE large SET n = n + 1, a = left(a, 5000) WHERE id BETWEEN -10 * i AND 40 - 10 * i
SQL
	'DELETE FROM large WHERE id % 5 = 0');
all_well('a large window', 'large');

# One transaction that does not fit into memory.
begin_story();
my $worker = status_value($slave, 'pid');
my $small  = memory_of($worker);
my $most   = $small;
ask($master, <<'SQL');
BEGIN;
INSERT INTO large SELECT i, 0, repeat(md5(i::text), 8) FROM generate_series(1, 200000) i;
COMMIT;
BEGIN;
UPDATE large SET n = n + 1;
UPDATE large SET n = n + 1, a = NULL WHERE id % 2 = 0;
DELETE FROM large WHERE id % 3 = 0;
COMMIT;
SQL
my $sums = 'SELECT count(*), sum(n), sum(id::bigint * n), count(a) FROM large';
my $end  = ask($master, $sums);
poll_until(
	sub {
		my $now = memory_of($worker);
		$most = $now if $now > $most;
		return ask($slave, $sums) eq $end;
	});
all_well('large transactions');
is(ask($slave, $sums), $end, 'large transactions arrive');
is(status_value($slave, 'pid'), $worker, 'by the same worker');
note(sprintf('the worker grew by %.1f MB', $most - $small));
cmp_ok($most - $small, '<', 64, 'and take little memory');

done_testing();
