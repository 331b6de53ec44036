# Names are just names: quoted, in any schema, in any encoding, changed while
# sessions are open.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

# what this file is written in
$ENV{PGCLIENTENCODING} = 'UTF8';

my $master = new_master('master');
my $slave = new_slave($master, 'slave');
wait_worker($slave);

sub log_table_in
{
	my ($node, $schema, $table) = @_;
	$node->safe_psql('postgres', "SELECT py_log_create_tg('$schema', '$table')");
	return;
}

# Whatever can be quoted.
my @odd = (
	'Upper Case', 'quote"d', q(apo'strophe), 'back\\slash', 'per%cent',
	'dot.ted', 'sel ect', 'semi;colon', '$1', 'ünïcödé 中');
foreach my $i (0 .. $#odd)
{
	my $name = $odd[$i];
	(my $quoted = qq("$name")) =~ s/(?<=.)"(?=.)/""/g;
	my ($literal) = map { s/'/''/gr } $name;
	on_both($master, $slave, <<"SQL");
CREATE SCHEMA $quoted;
CREATE TABLE $quoted.$quoted ($quoted text, "id $i" int, PRIMARY KEY ("id $i", $quoted));
SQL
	is( $master->safe_psql('postgres',
			"SELECT py_log_create_tg(E'' || '$literal', '$literal')"),
		"created trigger on $name (id $i,$name)",
		"log triggers on a table called $name");
	$master->safe_psql('postgres', <<"SQL");
INSERT INTO $quoted.$quoted VALUES ('one', 1), ('two', 2), ('three', 3);
UPDATE $quoted.$quoted SET $quoted = '$literal' WHERE "id $i" = 2;
DELETE FROM $quoted.$quoted WHERE "id $i" = 1;
SQL
	wait_caught_up($slave);
	is_same($master, $slave, "$quoted.$quoted", "rows of a table called $name");
}

# One name in several schemas.
on_both($master, $slave, <<'SQL');
CREATE SCHEMA a;
CREATE SCHEMA b;
CREATE TABLE a.twin (id int PRIMARY KEY, s text);
CREATE TABLE b.twin (id int PRIMARY KEY, s text);
SQL
my ($rc, $out, $err) = $master->psql('postgres', q(SELECT py_log_create_tg('twin')));
like($err, qr/table name "twin" is ambiguous: it is in schemas a, b/,
	'a bare name that is not unique is refused');
$master->safe_psql('postgres', q(SELECT py_log_create_tg('a', 'twin'); SET search_path = b; SELECT public.py_log_create_tg('twin')));
$master->safe_psql('postgres', q(INSERT INTO a.twin VALUES (1, 'a'); INSERT INTO b.twin VALUES (1, 'b')));
wait_caught_up($slave);
is_same($master, $slave, $_) for ('a.twin', 'b.twin');
($rc, $out, $err) = $master->psql('postgres', q(SELECT py_log_create_tg('nothing')));
like($err, qr/table "nothing" does not exist/, 'a table that is not there');

# A trigger written by hand.
on_both($master, $slave, 'CREATE TABLE hand (id2 int, id1 int, s text, UNIQUE (id1, id2)); ALTER TABLE hand ALTER id1 SET NOT NULL, ALTER id2 SET NOT NULL');
$master->safe_psql('postgres', <<'SQL');
CREATE TRIGGER "!by_hand" AFTER INSERT OR UPDATE OR DELETE ON hand
FOR EACH ROW EXECUTE FUNCTION py_log_replica('hand', 'id1', 'id2');
INSERT INTO hand VALUES (1, 2, 'x'), (2, 1, 'y');
UPDATE hand SET s = 'z', id2 = 7 WHERE id1 = 2;
DELETE FROM hand WHERE id1 = 1;
SQL
wait_caught_up($slave);
is_same($master, $slave, 'hand', 'a trigger written by hand, with a key that is not primary');

# Definitions that change between the statements of one open session.
on_both($master, $slave, 'CREATE TABLE d (id int PRIMARY KEY, a text, b int)');
log_table($master, 'd');
my $session = $master->background_psql('postgres', on_error_stop => 1);
$session->query_safe(q(INSERT INTO d VALUES (1, 'one', 1)));
foreach my $change (
	'ALTER TABLE d ADD c text DEFAULT \'c\'',
	'ALTER TABLE d DROP b',
	'ALTER TABLE d ADD b numeric',
	'ALTER TABLE d ALTER a TYPE varchar(100)',
	'ALTER TABLE d RENAME c TO "C c"',
	'ALTER TABLE d RENAME id TO key',
	'ALTER TABLE d RENAME TO d2',
	'ALTER TABLE d2 SET SCHEMA a')
{
	$slave->safe_psql('postgres', $change);
	$master->safe_psql('postgres', $change);
	my ($table) = map { /SCHEMA a/ ? 'a.d2' : /d2/ ? 'd2' : 'd' } $change;
	my $key = $change =~ /RENAME (?:id|TO)|SCHEMA/ ? 'key' : 'id';
	$session->query_safe(
		"INSERT INTO $table ($key, a) SELECT max($key) + 1, 'after' FROM $table");
	$session->query_safe("UPDATE $table SET a = a || '.' WHERE $key > 1");
	wait_caught_up($slave);
	is_same($master, $slave, $table, "an open session after $change");
}

# A schema gets another name, and another one gets its old name.
on_both($master, $slave, 'CREATE SCHEMA one; CREATE TABLE one.t (id int PRIMARY KEY, a text)');
log_table_in($master, 'one', 't');
$session->query_safe(q(INSERT INTO one.t VALUES (1, 'before')));
wait_caught_up($slave);
on_both($master, $slave, 'ALTER SCHEMA one RENAME TO two; CREATE SCHEMA one; CREATE TABLE one.t (id int PRIMARY KEY, a text)');
log_table_in($master, 'one', 't');
$session->query_safe(q(INSERT INTO two.t VALUES (2, 'after')));
$session->query_safe(q(INSERT INTO one.t VALUES (3, 'new')));
wait_caught_up($slave);
is_same($master, $slave, $_, "$_ after its schema was renamed") for 'one.t', 'two.t';

# And within one transaction.
on_both($master, $slave, 'CREATE TABLE e (id int PRIMARY KEY, a text)');
log_table($master, 'e');
$slave->safe_psql('postgres', 'ALTER TABLE e ADD b int, ADD c int');
$session->query_safe(<<'SQL');
BEGIN;
INSERT INTO e VALUES (1, 'one');
ALTER TABLE e ADD b int;
INSERT INTO e VALUES (2, 'two', 2);
SAVEPOINT s;
ALTER TABLE e ADD c int;
INSERT INTO e VALUES (3, 'three', 3, 3);
ROLLBACK TO s;
UPDATE e SET b = 5;
ALTER TABLE e ADD c int;
INSERT INTO e VALUES (4, 'four', 4, 4);
COMMIT;
SQL
wait_caught_up($slave);
is_same($master, $slave, 'e', 'a definition that changes within a transaction');
$session->quit;

# User names are kept as they are.
$master->safe_psql('postgres', q(CREATE ROLE "O'Neil ""x""" LOGIN; GRANT ALL ON e TO PUBLIC));
$master->safe_psql('postgres', q(INSERT INTO e VALUES (9)),
	connstr => $master->connstr('postgres') . q( user='O\'Neil "x"'));
is($master->safe_psql('postgres', q(SELECT username FROM replica_log_sql ORDER BY commitno DESC LIMIT 1)),
	q(O'Neil "x"), 'who it was');

# Another schema for the extension, another encoding for the master.
$master->safe_psql('postgres',
	q(CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0));
$master->safe_psql('latin', q(CREATE SCHEMA "Our Log"; CREATE EXTENSION pyreplica SCHEMA "Our Log"));
$slave->safe_psql('postgres',
	q(CREATE DATABASE latin ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0));
my $table = q(CREATE TABLE "tä" (id int PRIMARY KEY, "größe" text, "ö" "char"[]));
$master->safe_psql('latin', $table);
$slave->safe_psql('latin', $table);
is( $master->safe_psql('latin', q(SELECT "Our Log".py_log_create_tg('tä'))),
	'created trigger on tä (id)',
	'the extension in a schema of its own');
set_conf($slave, conninfo_setting($master, 'dbname=latin'));
$master->safe_psql('latin', q(INSERT INTO "tä" VALUES (1, 'naïve façade'), (2, NULL); UPDATE "tä" SET "größe" = 'ÿ' WHERE id = 2));
$slave->poll_query_until('latin', q(SELECT count(*) = 1 FROM pg_extension WHERE extname = 'pyreplica'));
$slave->poll_query_until('latin', q(SELECT state = 'waiting' AND database = 'latin' FROM pyreplica_status));
is($slave->safe_psql('latin', q(SELECT pyreplica_wait(timeout => '60s'))), 't', 'a replica of another database');
is(content($slave, '"tä"', 'latin'), content($master, '"tä"', 'latin'),
	'text of another encoding, in names too');
like(slurp_file($slave->logfile), qr/Encoding for this connections are LATIN1 UTF8/,
	'which the log tells');

# A name as long as can be, everywhere: schema, table, partition, key, columns, filter,
# sequence; copied, followed, resynced, verified, shown.
my $long = q(ü"'\ %s$1;.);
$long .= 'x' x (63 - length $long);
(my $quoted = $long) =~ s/"/""/g;
$quoted = qq("$quoted");
my $text = '$n$' . $long . '$n$';
$master->safe_psql('postgres', 'CREATE DATABASE long TEMPLATE template0');
$master->safe_psql('long', 'CREATE EXTENSION pyreplica');
my $copier = new_slave($master, 'copier', copy => 1, database => 'long', conf => conninfo_setting($master, 'dbname=long'));
wait_worker($copier);
my $named = "$quoted.$quoted";
$_->safe_psql('long', <<"SQL") for $master, $copier;
CREATE SCHEMA $quoted;
CREATE TABLE $named ($quoted serial, b text, c int, PRIMARY KEY ($quoted));
CREATE TABLE $quoted.root ($quoted int NOT NULL, b text, UNIQUE ($quoted)) PARTITION BY RANGE ($quoted);
CREATE TABLE $quoted.bag ($quoted text, b text);
SQL
$master->safe_psql('long', "CREATE TABLE $quoted.part PARTITION OF $quoted.root FOR VALUES FROM (0) TO (MAXVALUE)");
$copier->safe_psql('long', "CREATE TABLE $quoted.everything PARTITION OF $quoted.root DEFAULT");
is( $master->safe_psql('long', "SELECT py_log_create_tg($text, $text, row_filter => \$f\$$quoted > 5 OR b = $text\$f\$, columns => ARRAY['b', $text], log_old => true)"),
	"created trigger on $long ($long)", 'options with a long name');
is( $master->safe_psql('long', "SELECT py_log_create_tg($text, 'root', key => ARRAY[$text], via_root => true)"),
	"created trigger on root ($long)", 'in a partitioned table');
is( $master->safe_psql('long', "SELECT py_log_create_tg($text, 'bag', key => '{*}')"),
	'created trigger on bag (*)', 'in a table without a key');
$master->safe_psql('long', <<"SQL");
INSERT INTO $named (b) SELECT 'b' FROM generate_series(1, 50);
INSERT INTO $named ($quoted, b) VALUES (-1, $text);
INSERT INTO $quoted.root SELECT i, $text FROM generate_series(1, 50) i;
INSERT INTO $quoted.bag SELECT $text, 'b' FROM generate_series(1, 50) i;
SQL
my $are_ready = q(SELECT count(*) = 3 FROM pyreplica_tables WHERE state = 'ready');
$copier->poll_query_until('long', $are_ready) or BAIL_OUT('long names are not copied');
$master->safe_psql('long', <<"SQL");
UPDATE $named SET b = $text WHERE $quoted > 45;
DELETE FROM $named WHERE $quoted = 7;
UPDATE $quoted.root SET $quoted = $quoted + 100, b = 'x' WHERE $quoted > 45;
DELETE FROM $quoted.bag WHERE ctid = (SELECT min(ctid) FROM $quoted.bag);
SQL
wait_caught_up($copier);
my $logged = "(SELECT $quoted, b FROM $named WHERE $quoted > 5 OR b = $text)";
is(content($copier, $_), content($master, $_, 'long'), 'long names are followed') for $logged, "$quoted.root", "$quoted.bag";
$copier->safe_psql('long', "UPDATE $named SET b = 'spoiled'; DELETE FROM $quoted.root; DELETE FROM $quoted.bag");
is($copier->safe_psql('long', q(SELECT count(*) > 100 FROM pyreplica_verify())), 't', 'what is wrong is found');
is($copier->safe_psql('long', "SELECT DISTINCT \"table\" FROM pyreplica_verify('$named'::regclass)" =~ s/'\Q$named\E'::regclass/\$q\$$named\$q\$/r),
	$named, 'and named');
$copier->safe_psql('long', "SELECT pyreplica_resync(format('%I.%I', schemaname, tablename)::regclass) FROM pyreplica_tables");
$copier->poll_query_until('long', $are_ready);
wait_caught_up($copier);
is(content($copier, $_), content($master, $_, 'long'), 'and mended') for $logged, "$quoted.root", "$quoted.bag";
is($copier->safe_psql('long', q(SELECT count(value) || '/' || count(*) FROM pyreplica_sync_sequences())), '1/1', 'its sequence follows');
is($copier->safe_psql('long', "SELECT count(*) FROM pyreplica_tables WHERE schemaname = $text AND tablename = $text"), '1', 'the status has it');

done_testing();
