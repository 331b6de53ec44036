# Master and slave have different encodings: what can be converted is, in values,
# keys and names; what cannot is told with table, column and key, and there is a
# way on.  SQL_ASCII is no encoding, bytes are bytes.  And sides that sort in
# different ways have the same rows.
#
# This file is in UTF-8, and so is what psql is told and tells.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PyreplicaTest;
use Test::More;

$ENV{PGCLIENTENCODING} = 'UTF8';

# By the databases' name, which is that of the replica as well: the encodings of
# master and slave, names of a table and of a column, and some text.
my %pair = (
	latin_utf => [ 'LATIN1', 'UTF8', 'tür', 'größe', 'Åé', 'ñ' ],
	utf_latin => [ 'UTF8', 'LATIN1', 'tür', 'größe', 'Åé', 'ñ' ],
	euc_utf => [ 'EUC_JP', 'UTF8', '表', '列 "1"', '日本語', 'カナ' ],
	utf_euc => [ 'UTF8', 'EUC_JP', '表', '列 "1"', '日本語', 'カナ' ],
	ascii_utf => [ 'SQL_ASCII', 'UTF8', 'tür', '列', '日本語', 'é' ],
	utf_ascii => [ 'UTF8', 'SQL_ASCII', 'tür', '列', '日本語', 'é' ],
	ascii_ascii => [ 'SQL_ASCII', 'SQL_ASCII', 'tür', '列', '日本語', 'é' ],
	latin_ascii => [ 'LATIN1', 'SQL_ASCII', 'Plain', 'V', 'Åé', 'ñ' ]);
my @pairs = sort keys %pair;

sub quoted { return '"' . ($_[0] =~ s/"/""/gr) . '"' }

my $room = "max_worker_processes = 40\nmax_replication_slots = 40\n";
my $master = new_master('master', conf => $room);
my $slave = new_slave($master, 'slave', start => 0, copy => 1, conf => $room
	  . "pyreplica.replicas = '" . join(', ', @pairs) . "'\n"
	  . join('', map { my $c = conninfo_setting($master, "dbname=$_", $_); $c } @pairs)
	  . "pyreplica.enabled = off\n"
	  . join('', map { "pyreplica_$_.enabled = off\n" } @pairs));
$slave->start;
$slave->safe_psql('postgres', 'CREATE EXTENSION pyreplica');

sub there { return $master->safe_psql(@_) }
sub here { return $slave->safe_psql(@_) }

sub wait_same
{
	my ($replica) = @_;
	my $came = here($replica, "SELECT pyreplica_wait('$replica', '${PyreplicaTest::TIMEOUT}s')");
	diag(here('postgres', "SELECT row_to_json(s) FROM pyreplica_status s WHERE replica = '$replica'"))
	  if $came ne 't';
	return $came eq 't';
}

# Whether both sides have the same rows, to a reader; where one of them has no
# encoding, to one who looks at bytes.
sub is_same_text
{
	my ($replica, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($from, $to, $table, $column) = @{ $pair{$replica} };
	my $as_bytes = "$from $to" =~ /SQL_ASCII/;
	my @rows = map {
		my $node = $_;
		join("\n", map {
			my ($key, $value) = ('t.k', "t.$_->[1]");
			($key, $value) = map { "encode(convert_to($_, getdatabaseencoding()), 'hex')" } ($key, $value)
			  if $as_bytes;
			$node->safe_psql($replica, "SELECT $key, $value, t.n FROM $_->[0] t ORDER BY n");
		} ([ quoted($table), quoted($column) ]));
	} ($slave, $master);
	return ok($rows[0] eq $rows[1] && $rows[1] ne '', "$replica: $name");
}

# --- Copied, changed, compared ---

foreach my $replica (@pairs)
{
	my ($from, $to, $table, $column, @texts) = @{ $pair{$replica} };
	my $sides = { there => [ $master, $from ], here => [ $slave, $to ] };
	foreach my $side (values %$sides)
	{
		my ($node, $encoding) = @$side;
		$node->safe_psql('postgres', "CREATE DATABASE $replica ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
		$node->safe_psql($replica, 'CREATE TABLE ' . quoted($table)
			  . ' (k varchar(40) PRIMARY KEY, ' . quoted($column) . ' text, c ' . ("$from $to" =~ /ASCII/ ? 'text' : 'char(6)') . ', j json, a text[], n int)');
	}
	my $sql = join('', map {
		"INSERT INTO " . quoted($table) . " VALUES ('$texts[$_]', '$texts[$_]', '$texts[$_]', '{\"$texts[$_]\": \"$texts[$_]\"}', ARRAY['$texts[$_]'], $_);\n"
	} (0 .. $#texts));
	there($replica, "CREATE EXTENSION pyreplica; $sql"
		  . "INSERT INTO " . quoted($table) . " SELECT i, 'x', 'y', '1', '{}', i FROM generate_series(10, 500) i;"
		  . "SELECT py_log_create_tg('public', '$table')");
}
my $from = log_position($slave);
set_conf($slave, map { "pyreplica_$_.enabled = on" } @pairs);
foreach my $replica (@pairs)
{
	$slave->poll_query_until('postgres', "SELECT state = 'waiting' FROM pyreplica_status WHERE replica = '$replica'")
	  or BAIL_OUT("$replica does not come to wait: " . status($slave));
	wait_same($replica);
	is_same_text($replica, 'copied');
	like(log_since($slave, $from), qr/pyreplica $replica: Encoding for this connections are $pair{$replica}[0] $pair{$replica}[1]\n/,
		"$replica: the log has the encodings");
}

foreach my $replica (@pairs)
{
	my (undef, undef, $table, $column, @texts) = @{ $pair{$replica} };
	($table, $column) = (quoted($table), quoted($column));
	there($replica, <<"SQL");
INSERT INTO $table VALUES ('$texts[0]$texts[1]', '$texts[1]', '$texts[0]', '"$texts[1]"', ARRAY['$texts[1]', NULL], 1000);
UPDATE $table SET $column = '$texts[0] and $texts[1]' WHERE k IN ('$texts[1]', '10');
UPDATE $table SET k = '$texts[1]$texts[1]' WHERE k = '$texts[0]';
DELETE FROM $table WHERE k = '20';
SQL
	wait_same($replica);
	is_same_text($replica, 'changed');
	is(here($replica, 'SELECT count(*) FROM pyreplica_verify()'), 0, "$replica: no false alarm");
	here($replica, "UPDATE $table SET $column = 'other' WHERE n = 1; DELETE FROM $table WHERE n = 1000");
	is(here($replica, 'SELECT count(*) FROM pyreplica_verify(repair => true)'), 2, "$replica: what is different is found");
	is_same_text($replica, 'repaired');
	here($replica, "UPDATE $table SET $column = 'other'; SELECT pyreplica_resync('$table')");
	wait_same($replica);
	is_same_text($replica, 'resynced');
	like(there($replica, 'SELECT statement FROM replica_log_sql WHERE operation = \'UPDATE\''),
		qr/\QUPDATE public.$table SET $column='$texts[0] and $texts[1]' WHERE k='$texts[1]'\E/,
		"$replica: the log can be read");
}

# --- A character that does not exist on the slave ---

my $lost = 'utf_latin';

# Until the replica has failed with that; in a database of another encoding.
sub fails_with
{
	my ($replica, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $error = '';
	poll_until(sub {
		$error = replica_value($slave, $replica, q(CASE WHEN state = 'error' THEN last_error END)) // '';
		return $error =~ $pattern;
	});
	return like($error, $pattern, $name);
}

sub request_of
{
	my ($replica) = @_;
	return here($replica, 'SELECT commitno || \', \' || quote_literal(xid) FROM pyreplica_failure');
}

there($lost, q(UPDATE "tür" SET "größe" = '5 €' WHERE k = '30'));
fails_with($lost,
	qr/encoding "UTF8" has no equivalent in encoding "LATIN1" \(It is in column "größe" of the change; .*\); .*UPDATE of table "public\.tür" \(k='30'\)/,
	'table, column and key are named');
is( here($lost, 'SELECT statement FROM pyreplica_failure_change'),
	q(UPDATE public."tür" SET "größe"='5 ?' WHERE k='30'),
	'what cannot be applied is kept, as far as it can be');
wait_same('latin_utf');
there('latin_utf', q(UPDATE "tür" SET n = n + 1));
ok(wait_same('latin_utf'), 'other replicas go on');
there($lost, q(UPDATE "tür" SET "größe" = '5 Euro' WHERE k = '30'));
ok(wait_same($lost), 'it goes on when the row is mended on the master');
is_same_text($lost, 'mended');
is(here($lost, 'SELECT count(*) FROM pyreplica_failure'), 0, 'and nothing is left of it');

there($lost, q(INSERT INTO "tür" (k, n) VALUES ('€', 2000)));
fails_with($lost, qr/It is in column "k".*INSERT into table "public\.tür" \(k='\?'\)/, 'in a key');
there($lost, q(DELETE FROM "tür" WHERE k = '€'));
ok(wait_same($lost), 'it goes on when the row is gone');

there($lost, q(UPDATE "tür" SET "größe" = '€' WHERE k = '31'; UPDATE "tür" SET n = 3000 WHERE k = '32'));
fails_with($lost, qr/"größe".*\(k='31'\)/, 'once more');
here($lost, "SELECT * FROM pyreplica_skip('$lost', " . request_of($lost) . ', really => true)');
ok(wait_same($lost), 'it goes on when the change is passed over');
is(here($lost, q(SELECT "größe" FROM "tür" WHERE k = '31')), 'x', 'without it');
is(here($lost, q(SELECT n FROM "tür" WHERE k = '32')), '3000', 'but with the one after it');
is( here($lost, q(SELECT kind || ' ' || statement FROM pyreplica_conflicts)),
	q(skipped UPDATE public."tür" SET "größe"='?' WHERE k='31'),
	'what was passed over is kept');
there($lost, q(UPDATE "tür" SET "größe" = 'known' WHERE k = '31'));
wait_same($lost);
is_same_text($lost, 'changed after that');

# --- While a table is copied ---

foreach my $side ([ $master, '€' ], [ $slave, '' ])
{
	my ($node, $sign) = @$side;
	$node->safe_psql($lost, <<"SQL");
CREATE TABLE "späte" (k text PRIMARY KEY, "größe" text, n int);
CREATE TYPE mood AS ENUM ('ok');
CREATE TABLE "späte 2" (a int, b text, m mood, PRIMARY KEY (a, b));
CREATE TABLE fine (id int PRIMARY KEY, a text);
SQL
	next unless $sign;
	$node->safe_psql($lost, <<"SQL");
INSERT INTO "späte" SELECT 'ä' || i, CASE i WHEN 700 THEN '€' ELSE 'ö' END, i FROM generate_series(1, 1000) i;
INSERT INTO "späte 2" SELECT i, CASE i WHEN 7 THEN '€' ELSE 'ö' END, 'ok' FROM generate_series(1, 10) i;
INSERT INTO fine VALUES (1, 'é');
SELECT py_log_create_tg('public', t) FROM unnest(ARRAY['späte', 'späte 2', 'fine']) t;
SQL
}
sub error_of
{
	my ($table) = @_;
	my $error = '';
	poll_until(sub { $error = here($lost, "SELECT last_error FROM pyreplica_tables WHERE tablename = '$table' AND state = 'error' AND last_error !~ 'does not exist on the slave'"); return $error ne ''; });
	return $error;
}
like(error_of('späte'), qr/column "größe" of the row \{ä700\} has a character that does not exist in the encoding of the slave, LATIN1 \(The master says: .*HINT: Change the row/,
	'a table that cannot be copied: column and key are named');
like(error_of('späte 2'), qr/column "b" of the row \{7,\?\} has a character/, 'in a key, and as text');
ok($slave->poll_query_until($lost, q(SELECT state = 'ready' FROM pyreplica_tables WHERE tablename = 'fine')),
	'others are copied');
there($lost, q(UPDATE "späte" SET "größe" = 'Euro' WHERE n = 700; UPDATE "späte 2" SET b = 'Euro' WHERE a = 7));


foreach my $table ('"späte"', '"späte 2"', 'fine')
{
	ok( poll_until(sub { content($slave, $table, $lost) eq content($master, $table, $lost) }),
		"$table is copied when the row is mended");
}

# --- A name that does not exist on the slave ---

there($lost, q(CREATE TABLE "t€st" (id int PRIMARY KEY); SELECT py_log_create_tg('public', 't€st')));
fails_with($lost, qr/a table of the master has a name with characters that do not exist in the encoding of the slave, LATIN1/,
	'a table that cannot be here');
there($lost, q(SELECT py_log_drop_tg('public', 't€st')));
ok(wait_same($lost), 'it goes on without the table');
there($lost, q(ALTER TABLE fine ADD "€" int DEFAULT 1; UPDATE fine SET a = 'with'));
here($lost, 'ALTER TABLE fine ADD euro int');
wait_same($lost);
there($lost, q(UPDATE fine SET "€" = 2));
fails_with($lost, qr/the name "\?" in the master's table "public\.fine" has characters that do not exist/,
	'a column that cannot be here');
there($lost, q(ALTER TABLE fine RENAME "€" TO euro));
here($lost, "SELECT * FROM pyreplica_skip('$lost', " . request_of($lost) . ', really => true)');
ok(wait_same($lost), 'it goes on when that is passed over');
there($lost, q(UPDATE fine SET euro = 3));
wait_same($lost);
is(content($slave, 'fine', $lost), content($master, 'fine', $lost), 'under another name');

# --- Conflicts ---

here($lost, q(UPDATE fine SET id = 5 WHERE id = 1; INSERT INTO fine VALUES (2, 'hier: é')));
there($lost, q(INSERT INTO fine VALUES (2, 'dort: à')));
fails_with($lost, qr/conflict insert_exists on table "public\.fine" \(id='2'\)/, 'a conflict can be told');
here($lost, q(SELECT pyreplica_set_conflict_resolution('fine', 'apply_remote')));
ok(wait_same($lost), 'and settled');
is(here($lost, q(SELECT local_row ->> 'a' || ' ' || (remote_row ->> 'a') FROM pyreplica_conflicts WHERE kind = 'insert_exists')),
	'hier: é dort: à', 'and both rows are kept');

# --- SQL_ASCII: bytes that are no text of the slave's ---

there('ascii_utf', q(UPDATE "tür" SET "列" = E'\\351' WHERE k = '30'));
fails_with('ascii_utf', qr/invalid byte sequence for encoding "UTF8": 0xe9 \(It is in column "列" of the change; .*table "public\.tür" \(k='30'\)/,
	'bytes that are no UTF-8');
there('ascii_utf', q(UPDATE "tür" SET "列" = 'é' WHERE k = '30'));
ok(wait_same('ascii_utf'), 'it goes on when they are mended');
is_same_text('ascii_utf', 'mended');

# --- Sides that sort in different ways ---

my ($one, $other) = new_node_pair();

sub new_node_pair
{
	my $node = new_master('sorted', conf => $room);
	my $copy = new_slave($node, 'sorted_copy', copy => 1, conf => "pyreplica.enabled = off\npyreplica.copy_workers = 1\n");
	return ($node, $copy);
}

my %collation = (c_c => [ 'C', 'C' ], icu_c => [ 'en-x-icu', 'C' ], c_icu => [ 'C', 'en-x-icu' ], icu_icu => [ 'en-x-icu', 'en-x-icu' ]);
foreach my $table (sort keys %collation)
{
	my ($there, $here) = @{ $collation{$table} };
	$one->safe_psql('postgres', qq(CREATE TABLE $table (k text COLLATE "$there", n int, a text COLLATE "$there", PRIMARY KEY (k, n));)
		  . "INSERT INTO $table SELECT CASE i % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'B' ELSE 'é' END || i % 1000, i, 'a' FROM generate_series(1, 6000) i");
	$other->safe_psql('postgres', qq(CREATE TABLE $table (k text COLLATE "$here", n int, a text COLLATE "$here", PRIMARY KEY (k, n))));
}
log_table($one, sort keys %collation);
$from = log_position($other);
set_conf($other, 'pyreplica.enabled = on');
for my $round (1 .. 5)
{
	$one->safe_psql('postgres', join('', map {
		"UPDATE $_ SET a = a || '$round' WHERE n % 10 = $round; DELETE FROM $_ WHERE n % 50 = $round; UPDATE $_ SET k = 'Z' || k WHERE n % 70 = $round;"
	} sort keys %collation));
}
wait_worker($other);
wait_caught_up($other);
is_same_rows($one, $other, $_, "$_: the same rows, in whatever order") for (sort keys %collation);
like(log_since($other, $from), qr/copying table "public\.$_" in one piece/, "$_: in one piece") for ('icu_c', 'c_icu');
unlike(log_since($other, $from), qr/copying table "public\.$_" in one piece/, "$_: chunk by chunk") for ('c_c', 'icu_icu');
is($other->safe_psql('postgres', 'SELECT count(*) FROM pyreplica_verify()'), 0, 'and nothing is different');

done_testing();
