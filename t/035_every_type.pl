# Values of every type there is, built in or not, arrive as they were, whatever
# way they come and whatever is set on either side.
#
# One more type, or value, is one more line in @types.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PyreplicaTest;
use PostgreSQL::Test::Utils;
use Test::More;

# What is written is SQL.  Each type also has a table of arrays, made of these
# values, with bounds of their own.
my @types = (
	[ 'bool', 'true', 'false' ],
	[ '"char"', q('x'), q(''), q((-61)::int4::"char") ],
	[ 'int2', '-32768', '32767', '0' ],
	[ 'int4', '-2147483648', '2147483647' ],
	[ 'int8', '-9223372036854775808', '9223372036854775807' ],
	[ 'oid', '0', '4294967295' ],
	[ 'float4', q('-0'), q('NaN'), q('Infinity'), q('1.17549435e-38'), q('3.4028235e38'), q('1e-45') ],
	[ 'float8', q('-0'), q('0'), q('NaN'), q('-Infinity'), q('2.2250738585072014e-308'), q('1.7976931348623157e308'), q('5e-324'), '0.1::float8 + 0.2::float8' ],
	[ 'numeric', q('NaN'), q('-Infinity'), q('1.10'), q('1.1000'), q('0e-16383'), '(10::numeric ^ 1000) + 1', q('-1e-5000') ],
	[ 'numeric(30,20)', q('-0.00000000000000000001'), q('9999999999.99999999999999999999') ],
	[ 'money', q('-92233720368547758.08'), '12345.67::numeric::money', '0::money' ],
	[ 'date', q('infinity'), q('4713-01-01 BC'), q('5874897-12-31') ],
	[ 'time', q('24:00:00'), q('00:00:00.000001') ],
	[ 'timetz', q('24:00:00-15:59:59'), q('00:00:00.000001+15:59:59') ],
	[ 'timestamp', q('-infinity'), q('4713-11-24 00:00:00 BC'), q('294276-12-31 23:59:59.999999') ],
	[ 'timestamptz', q('infinity'), q('1800-01-01 00:00:00+00'), q('2024-10-27 01:30:00+01'), q('2024-10-27 01:30:00+00') ],
	[ 'interval', q('-1 year 2 mons -3 days 04:05:06.789'), q('1 year -2 mons 3 days -04:05:06.789'), q('-178000000 years'), q('0') ],
	[ 'interval day to second(2)', q('-1 00:00:00.25') ],
	[ 'text', q(E'line\r\ntab\t\\\\ "q" ''q'' \u00e9\u4e2d\U0001F600'), q(''), q('NULL'), q(E'\\\\.') ],
	[ 'varchar(5)', q('abc  '), q('äöüßé') ],
	[ 'char(5)', q('ab'), q('é'), q('') ],
	[ 'name', q('a "name"'), q(''), 'repeat(\'n\', 63)' ],
	[ 'bytea', q(E'\\\\x00ff5c27'), q('') ],
	[ 'json', q('{"a" : [1, null,  2e400], "a": "\u00e9"}'), q('null') ],
	[ 'jsonb', q('{"b": "\u00e9", "a": 1e3, "c": -0.0}'), q('[]'), q('"\\\\"') ],
	[ 'jsonpath', q('$.a[*] ? (@ > 1.0)'), q('strict $') ],
	[ 'xml', q('<a b="1">x &amp; y</a>'), q('no document <x/>'), q('<?xml version="1.0" encoding="ISO-8859-1"?><a>é</a>'), qq('<?xml version="1.0"?>\n<a/>') ],
	[ 'uuid', q('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'), q('00000000-0000-0000-0000-000000000000') ],
	[ 'inet', q('192.168.0.1/24'), q('::ffff:1.2.3.4/128') ],
	[ 'cidr', q('10.0.0.0/8'), q('2001:db8::/32') ],
	[ 'macaddr', q('08:00:2b:01:02:03'), q('ff:ff:ff:ff:ff:ff') ],
	[ 'macaddr8', q('08:00:2b:01:02:03:04:05') ],
	[ 'bit(5)', q(B'10101'), q(B'00000') ],
	[ 'varbit', q(B'1'), q(B''), q(B'000000001') ],
	[ 'point', q('(1.1,-0)'), q('(NaN,Infinity)') ],
	[ 'line', q('{1,2,3}'), q('{0,-1,0.1}') ],
	[ 'lseg', q('[(0,0),(1,0.1)]') ],
	[ 'box', q('(1,1),(0,0)'), q('(0.1,0.2),(-1,-1)') ],
	[ 'path', q('[(0,0),(1,1),(2,0)]'), q('((0,0),(1,1))') ],
	[ 'polygon', q('((0,0),(1,1),(2,0.3))') ],
	[ 'circle', q('<(0,0.1),1.5>') ],
	[ 'tsvector', q('fat:1A,16383B cat:2 ''with '''' quote'':3'), q('') ],
	[ 'tsquery', q('fat:AB & !cat:*'), q('a <2> b'), q('') ],
	[ 'int2vector', q('1 2 3'), q('') ],
	[ 'oidvector', q('1 4294967295'), q('') ],
	[ 'tid', q('(4294967295,65535)') ],
	[ 'xid', q('4294967295') ],
	[ 'cid', q('7') ],
	[ 'xid8', q('18446744073709551615') ],
	[ 'pg_lsn', q('FFFFFFFF/FFFFFFFF'), q('0/0') ],
	[ 'pg_snapshot', q('10:20:10,14,15') ],
	[ 'txid_snapshot', q('10:20:10,14,15') ],
	[ 'refcursor', q('a cursor') ],
	[ 'aclitem', q('=r/owner_of_all'), q('owner_of_all=arw*/owner_of_all') ],
	[ 'regclass', q('other.tab'), q('pg_class'), q('other."Tab ""2"""'), q('-') ],
	[ 'regproc', q('other.f'), q('pg_backend_pid') ],
	[ 'regprocedure', q('other.f(other.mood,int)'), q('int4pl(int,int)') ],
	[ 'regoper', q('other.%%%') ],
	[ 'regoperator', q('other.%%%(int,int)'), q('+(int,int)') ],
	[ 'regtype', q('other.mood'), q('timestamptz[]') ],
	[ 'regrole', q('owner_of_all') ],
	[ 'regnamespace', q('other'), q('"Schema 2"') ],
	[ 'regconfig', q('other.conf'), q('simple') ],
	[ 'regdictionary', q('other.dict'), q('simple') ],
	[ 'regcollation', q('other.coll'), q('"C"') ],
	[ 'int4range', q{'[1,5)'}, q{'empty'}, q{'(,)'} ],
	[ 'int8range', q{'[-9223372036854775808,5)'} ],
	[ 'numrange', q{'(1.10,2.20]'} ],
	[ 'daterange', q{'[2024-01-01,infinity)'} ],
	[ 'tsrange', q{'["2024-01-01 00:00:00.000001",)'} ],
	[ 'tstzrange', q{'[2024-01-01 00:00:00+14,2024-10-27 01:30:00+01)'} ],
	[ 'int4multirange', q<'{[1,5),[7,9)}'>, q<'{}'> ],
	[ 'int8multirange', q<'{[1,5)}'> ],
	[ 'nummultirange', q<'{[1.50,2],(3,)}'> ],
	[ 'datemultirange', q<'{[2024-01-01,2024-02-01)}'> ],
	[ 'tsmultirange', q<'{[2024-01-01,2024-02-01)}'> ],
	[ 'tstzmultirange', q<'{[2024-01-01 00:00:00+05,2024-02-01 00:00:00+05)}'> ],

	# of extensions
	[ 'citext', q('MiXed'), q('é') ],
	[ 'hstore', q('a=>1, "b c"=>NULL, "q\"\\\\"=>"\"\\\\"'), q('') ],
	[ 'ltree', q('top.a_1.b'), q('') ],
	[ 'lquery', q('top.*{1,3}.!a|b@') ],
	[ 'ltxtquery', q('a & !b@*') ],
	[ 'cube', q('(0.1,-0),(1e-300,2)'), q('(1)') ],
	[ 'seg', q('1.0 .. 2.50'), q('<5') ],
	[ 'isbn13', q('978-0-393-04002-9') ],
	[ 'query_int', q('1&(2|!3)') ],

	# of users
	[ 'other.mood', q('so so'), q('"happy"') ],
	[ 'other.moodrange', q{'["so so","\"happy\""]'}, q{'empty'} ],
	[ 'other.moodmultirange', q<'{["so so","so so"]}'> ],
	[ 'other.classrange', q{'[other.tab,other.tab]'} ],
	[ 'other.classmultirange', q<'{[other.tab,other.tab]}'> ],
	[ 'other.span', q{'[-1 days +02:00:00,1 year)'} ],
	[ 'other.amount', q{'[1.5,2.5)'} ],
	[ 'other.positive', '1', '2147483647' ],
	[ 'other.little', '1', '99' ],
	[ 'other.cash', q('-0.01') ],
	[ 'other.doc', q('<?xml version="1.0" encoding="ISO-8859-1"?><a>é</a>') ],
	[ 'other.moods', q('{"so so",NULL}'), q('[3:3]={"\"happy\""}') ],
	[ 'other.classes', q('{other.tab,pg_class}'), q('[0:1][3:4]={{other.tab,-},{pg_class,other.tab}}') ],
	[ 'other.pair_with_n', q{'(1,"a, ""b""")'} ],
	[ 'other.pair', q{'(1,"a, ""b""")'}, q{'(,)'}, q{'(,"")'} ],
	[ 'other.nest', q~ROW(ROW(1, 'x'), ARRAY[ROW(2, 'y'), NULL]::other.pair[], ARRAY['so so']::other.mood[], 'other.tab', '{other.tab}', '[2024-01-01 00:00+03,)', '12.34'::text::money, '1 day -01:00', E'\\\\x00', 1, '<a/>', 0.1, '-0')::other.nest~ ],
	[ 'other.shrunk', q{(SELECT s FROM other.shrunk_rows)}, q{'(5,z,"so so")'} ],
	[ 'other.growing', q{(json_populate_record(NULL::other.growing, '{"n": 1}'))} ],
	[ 'other.bare', q('42'), q('-1') ],
	[ 'other.tab', q{'(7)'} ]);

# These have no values that could be written down.
my $no_input = join('|', qw(gtsvector pg_brin_bloom_summary pg_brin_minmax_multi_summary
	  pg_dependencies pg_mcv_list pg_ndistinct pg_node_tree));

my $prepare = <<'SQL';
CREATE ROLE owner_of_all SUPERUSER;
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE EXTENSION ltree;
CREATE EXTENSION cube;
CREATE EXTENSION seg;
CREATE EXTENSION isn;
CREATE EXTENSION intarray;
CREATE SCHEMA other;
CREATE SCHEMA "Schema 2";
CREATE TABLE other.tab (a int);
CREATE TABLE other."Tab ""2""" (a int);
CREATE TYPE other.mood AS ENUM ('so so', '"happy"');
CREATE FUNCTION other.f(other.mood, int) RETURNS int LANGUAGE sql AS 'SELECT $2';
CREATE OPERATOR other.%%% (FUNCTION = int4pl, LEFTARG = int, RIGHTARG = int);
CREATE TEXT SEARCH DICTIONARY other.dict (TEMPLATE = simple);
CREATE TEXT SEARCH CONFIGURATION other.conf (COPY = simple);
CREATE COLLATION other.coll (LOCALE = 'C');
CREATE TYPE other.moodrange AS RANGE (SUBTYPE = other.mood);
CREATE TYPE other.classrange AS RANGE (SUBTYPE = regclass, SUBTYPE_OPCLASS = oid_ops);
CREATE TYPE other.span AS RANGE (SUBTYPE = interval);
CREATE TYPE other.amount AS RANGE (SUBTYPE = money);
CREATE DOMAIN other.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN other.little AS other.positive CHECK (VALUE < 100);
CREATE DOMAIN other.cash AS money;
CREATE DOMAIN other.doc AS xml;
CREATE DOMAIN other.moods AS other.mood[] CHECK (cardinality(VALUE) > 0);
CREATE DOMAIN other.classes AS regclass[];
CREATE TYPE other.pair AS (n int, t text);
CREATE DOMAIN other.pair_with_n AS other.pair CHECK (VALUE IS NULL OR (VALUE).n IS NOT NULL);
CREATE TYPE other.nest AS (p other.pair, ps other.pair[], m other.mood[],
	c regclass, cs other.classes, r tstzrange, y money, i interval, b bytea,
	d other.little, x xml, f float4, z float8);
CREATE TYPE other.shrunk AS (a int, gone text, b text);
CREATE TABLE other.shrunk_rows (s other.shrunk);
INSERT INTO other.shrunk_rows VALUES ('(1,"was here",x)');
ALTER TYPE other.shrunk DROP ATTRIBUTE gone, ADD ATTRIBUTE c other.mood;
CREATE TYPE other.growing AS (n int);
CREATE TYPE other.bare;
CREATE FUNCTION other.bare_in(cstring) RETURNS other.bare LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
CREATE FUNCTION other.bare_out(other.bare) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
CREATE TYPE other.bare (INPUT = other.bare_in, OUTPUT = other.bare_out,
	INTERNALLENGTH = 4, PASSEDBYVALUE, ALIGNMENT = int4);
SQL

# All that changes how values look, as each server has it for whoever comes.
my %settings = (
	master => {
		DateStyle => 'German, DMY',
		IntervalStyle => 'sql_standard',
		extra_float_digits => '-15',
		bytea_output => 'escape',
		TimeZone => 'Pacific/Chatham',
		xmloption => 'document',
		xmlbinary => 'hex',
		quote_all_identifiers => 'on',
		standard_conforming_strings => 'off',
		escape_string_warning => 'off',
		search_path => 'other, public',
	},
	slave => {
		DateStyle => 'SQL, MDY',
		IntervalStyle => 'iso_8601',
		extra_float_digits => '-5',
		bytea_output => 'escape',
		TimeZone => 'America/St_Johns',
		xmloption => 'document',
		quote_all_identifiers => 'on',
		standard_conforming_strings => 'off',
		escape_string_warning => 'off',
		backslash_quote => 'on',
	});

# Money has other digits after the point in Japan.  Where that cannot be had, the
# rest will do.
my $locales = PostgreSQL::Test::Utils::tempdir();
if (system("localedef -c -i ja_JP -f UTF-8 $locales/ja_JP.UTF-8 >/dev/null 2>&1") <= 256
	&& -e "$locales/ja_JP.UTF-8/LC_MONETARY")
{
	$ENV{LOCPATH} = $locales;
	$settings{master}{lc_monetary} = 'ja_JP.UTF-8';
}
else
{
	diag('lc_monetary is the same on both sides: there is no localedef');
}

sub set_for_all
{
	my ($node, $which) = @_;
	my $role = $node->safe_psql('postgres', 'SELECT current_user');
	my $n = 0;
	$node->safe_psql('postgres', join('',
		map {
			my $value = $settings{$which}{$_};
			$value = "'$value'" unless $_ eq 'search_path';
			($n++ % 2 ? 'ALTER DATABASE postgres' : qq(ALTER ROLE "$role"))
			  . " SET $_ = $value;\n"
		} sort keys %{ $settings{$which} }));
	return;
}

# A session that reads and writes SQL as usual.
my $as_usual = <<'SQL';
SET search_path = public;
SET DateStyle = 'ISO, YMD';
SET IntervalStyle = 'postgres';
SET extra_float_digits = 1;
SET bytea_output = 'hex';
SET TimeZone = 'UTC';
SET xmloption = 'content';
SET lc_monetary = 'C';
SET quote_all_identifiers = 'off';
SET standard_conforming_strings = 'on';
SQL

my @numbers = (0 .. $#types);

# Tables t0 ... of values, a0 ... of arrays of them.
sub create_tables
{
	my $sql = '';
	foreach my $i (@numbers)
	{
		my $type = $types[$i][0];
		$sql .= "CREATE TABLE public.t$i (id int PRIMARY KEY, v $type);\n";
		$sql .= "CREATE TABLE public.a$i (id int PRIMARY KEY, v $type\[]);\n"
		  if $type ne 'other.tab' && $type !~ /^interval /;
	}
	return $sql;
}

sub is_table { return $_[0] =~ /^t/ || $types[ substr($_[0], 1) ][0] !~ /^(?:other\.tab|interval .*)$/ }
my @tables = grep { is_table($_) } map { ("t$_", "a$_") } @numbers;

# What there is of each table, to the last bit.
sub contents_query
{
	return join(' UNION ALL ',
		map { "SELECT '$_', md5(coalesce(string_agg(concat_ws('/', id, v::text, ROW(v)::text), '|' ORDER BY id), '')), count(*) FROM public.$_" } @_);
}

sub contents
{
	my ($node, @which) = @_;
	my %of;
	my $query = contents_query(@which);
	foreach my $line (split(/\n/, $node->safe_psql('postgres', "$as_usual $query")))
	{
		my ($table, $hash) = split(/\|/, $line, 2);
		$of{$table} = $hash;
	}
	return \%of;
}

sub is_all_same
{
	my ($master, $slave, $name, @which) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	@which = @tables unless @which;
	my ($there, $here) = (contents($master, @which), contents($slave, @which));
	my @differ = grep { $there->{$_} ne $here->{$_} } @which;
	is(join(', ', map { "$_ ($types[ substr($_, 1) ][0])" } @differ), '', $name);
	foreach my $table (@differ[ 0 .. ($#differ > 4 ? 4 : $#differ) ])
	{
		diag(join("\n", $table,
			map { $_->safe_psql('postgres', "$as_usual SELECT id, v FROM public.$table ORDER BY id") } ($master, $slave)));
	}
	return;
}

# Runs SQL as usual, or as the server has it for whoever comes; in one
# transaction, so that it is one window.
sub run_usual
{
	my ($node, $sql, $database) = @_;
	$node->safe_psql($database // 'postgres', "$as_usual BEGIN;\n$sql\nCOMMIT;");
	return;
}

sub run_hostile
{
	my ($node, $sql) = @_;
	$node->safe_psql('postgres', "BEGIN;\n$sql\nCOMMIT;");
	return;
}

sub insert_values
{
	my $sql = '';
	foreach my $i (@numbers)
	{
		my ($type, @values) = @{ $types[$i] };
		$sql .= "INSERT INTO public.t$i VALUES ($_, $values[$_ - 1]);\n" for (1 .. @values);
		next unless is_table("a$i");
		$sql .= "INSERT INTO public.a$i VALUES (1, ('[0:1][3:4]=' || ARRAY[ARRAY[$values[0], $values[-1]], ARRAY[NULL, $values[0]]]::$type\[]::text)::$type\[]),"
		  . " (2, ARRAY[]::$type\[]), (3, ARRAY[NULL, $values[0]]::$type\[]);\n";
	}
	return $sql;
}

# Everything that can be done to rows: by sessions as usual, and by others, from
# values that are there.
sub do_all
{
	my ($master, $slave, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $before = status_value($slave, q(conflicts || ' ' || errors));

	run_hostile($master, join('', map { "TRUNCATE public.$_;\n" } @tables));
	run_usual($master, insert_values());
	run_hostile($master, join('', map { "INSERT INTO public.$_ SELECT id + 10, v FROM public.$_;\n" } @tables));
	wait_caught_up($slave);
	is_all_same($master, $slave, "$name: inserted");

	run_hostile($master, join('',
		map { "UPDATE public.$_ t SET v = (SELECT o.v FROM public.$_ o WHERE o.id = CASE t.id WHEN 1 THEN 2 WHEN 2 THEN 3 ELSE 1 END) WHERE id < 10;\n" } @tables));
	wait_caught_up($slave);
	is_all_same($master, $slave, "$name: updated");

	run_hostile($master, join('', map { "DELETE FROM public.$_ WHERE id IN (1, 12);\n" } @tables));
	wait_caught_up($slave);
	is_all_same($master, $slave, "$name: deleted");
	is(status_value($slave, q(conflicts || ' ' || errors)), $before, "$name: nothing was in the way");
	return;
}

# A server whose types of users have other OIDs.
sub prepare_slave
{
	my ($node) = @_;
	$node->safe_psql('postgres', <<'SQL');
DO $$ BEGIN FOR i IN 1 .. 50 LOOP EXECUTE format('CREATE TYPE thrown_away_%s AS ENUM (''a'')', i); END LOOP; END $$;
SQL
	run_usual($node, "SET LOCAL search_path = public;\n$prepare" . create_tables());
	set_for_all($node, 'slave');
	return;
}

my $master = new_master('master');
run_usual($master, "SET LOCAL search_path = public;\n$prepare" . create_tables());
my $known = join(', ', map { "'$_->[0]'::regtype" } @types);
is( $master->safe_psql('postgres', <<"SQL"),
SET search_path = pg_catalog, public;
SELECT string_agg(typname, ' ') FROM pg_type
 WHERE typtype IN ('b', 'r', 'm') AND typnamespace = 'pg_catalog'::regnamespace
   AND typname !~ '^(_.*|$no_input)\$' AND oid <> ALL (ARRAY[$known]::oid[])
SQL
	'',
	'no type that is built in was forgotten');
set_for_all($master, 'master');
my $log_all = 'SELECT count(public.py_log_create_tg(\'public\', tablename, log_old => %s))'
  . q( FROM pg_tables WHERE schemaname = 'public' AND tablename ~ '^[takK][0-9]+$');
$master->safe_psql('postgres', sprintf($log_all, 'false'));

my $slave = new_slave($master, 'slave', conf => "pyreplica.enabled = off\n");
prepare_slave($slave);
set_conf($slave, 'pyreplica.enabled = on');
wait_worker($slave);
isnt(
	$slave->safe_psql('postgres', q(SELECT 'other.nest'::regtype::oid)),
	$master->safe_psql('postgres', q(SELECT 'other.nest'::regtype::oid)),
	'types of users have other OIDs on the slave');

do_all($master, $slave, 'in sets');
is(status_value($slave, 'fallbacks'), '0', 'these were sets');

# What the view shows does the same, and is the same for everybody who reads it.
$master->safe_psql('postgres', 'CREATE DATABASE replay');
run_usual($master,
	"SET LOCAL search_path = public;\n" . ($prepare =~ s/CREATE ROLE.*\n//r) . create_tables(),
	'replay');
my $read = 'SELECT statement FROM public.replica_log_sql ORDER BY commitno, xid, number';
my $statements = $master->safe_psql('postgres', "SET client_min_messages = warning; $read");
is($master->safe_psql('postgres', "$as_usual $read"), $statements,
	'replica_log_sql is the same whatever is set');
run_usual($master,
	"SET LOCAL DateStyle = 'SQL, MDY'; SET LOCAL TimeZone = 'Asia/Tokyo'; SET LOCAL IntervalStyle = 'sql_standard';\n"
	  . ($statements =~ s/^(?=INSERT|UPDATE|DELETE|TRUNCATE)/;\n/gmr) . ';',
	'replay');
my %replayed;
foreach my $line (split(/\n/, $master->safe_psql('replay', $as_usual . contents_query(@tables))))
{
	my ($table, $hash) = split(/\|/, $line, 2);
	$replayed{$table} = $hash;
}
my $original = contents($master, @tables);

is( join(' ', grep { $replayed{$_} ne $original->{$_} } @tables),
	'', 'running it gives the same values');

$master->safe_psql('postgres', sprintf($log_all, 'true'));
do_all($master, $slave, 'old values in sets');
set_conf($slave, "pyreplica.apply_mode = strict");
do_all($master, $slave, 'in strict order');
set_conf($slave, "pyreplica.apply_mode = auto");

# A row that the slave has not got from here, but from a dump, is the same row.
$master->safe_psql('postgres', q(UPDATE public.t0 SET v = v));
my $dumped = join(' ', grep { $types[ substr($_, 1) ][0] =~ /xml|doc|shrunk/ } @tables);
foreach my $table (split(/ /, $dumped))
{
	my $rows = $master->safe_psql('postgres', "$as_usual COPY public.$table TO STDOUT");
	$slave->safe_psql('postgres', "$as_usual DELETE FROM public.$table;\nCOPY public.$table FROM STDIN;\n$rows\n\\.\n");
}
run_hostile($master, join('', map { "UPDATE public.$_ SET v = NULL;\n" } split(/ /, $dumped)));
wait_caught_up($slave);
is_all_same($master, $slave, 'rows from a dump: updated', split(/ /, $dumped));
is(status_value($slave, 'conflicts'), '0', 'rows from a dump: are what they were on the master');

# Keys of all types that can be one, written by sessions that would write them
# down in different ways.
my @keys;
my @no_keys;
foreach my $i (@numbers)
{
	next if $types[$i][0] eq 'other.nest';    # XML within it cannot be compared
	my $create = "CREATE TABLE public.k$i (k $types[$i][0] PRIMARY KEY, n int)";
	my ($rc) = $master->psql('postgres', "$as_usual $create");
	push @no_keys, $types[$i][0] if $rc != 0;
	next if $rc != 0;
	push @keys, $i;
}
is( join(' ', @no_keys),
	'json jsonpath xml point line lseg box path polygon circle xid cid pg_snapshot txid_snapshot'
	  . ' refcursor aclitem lquery ltxtquery query_int other.doc other.bare',
	'types that cannot be keys are known');
run_usual($slave, join('', map { "CREATE TABLE public.k$_ (k $types[$_][0] PRIMARY KEY, n int);\n" } @keys));
$master->safe_psql('postgres', sprintf($log_all, 'true'));
run_usual($master, join('', map {
	my ($type, @values) = @{ $types[$_] };
	my $last = "($values[-1])::$type";
	"SET LOCAL search_path = public;"
	. "INSERT INTO public.k$_ VALUES (($values[0])::$type, 1);\n"
	. "SET LOCAL search_path = other, public; SET LOCAL quote_all_identifiers = on;\n"
	. "UPDATE public.k$_ SET n = 2;\n"
	. "SET LOCAL search_path = public; SET LOCAL quote_all_identifiers = off;\n"
	. "UPDATE public.k$_ SET k = $last, n = 3;\n"
	. "INSERT INTO public.k$_ VALUES (($values[0])::$type, 4) ON CONFLICT DO NOTHING;\n"
	. "INSERT INTO public.k$_ SELECT v, 5 FROM public.t$_ WHERE v IS NOT NULL ON CONFLICT DO NOTHING;\n"
} @keys));
wait_caught_up($slave);
my @key_tables = map { "k$_" } @keys;
sub key_contents
{
	my ($node) = @_;
	return $node->safe_psql('postgres', $as_usual . join(' UNION ALL ',
		map { "SELECT '$_ ' || coalesce(string_agg(k::text || ' ' || n, '|' ORDER BY k::text COLLATE \"C\", n), '') FROM public.$_" } @key_tables));
}
is(key_contents($slave), key_contents($master), 'keys of every type that can be one');
run_hostile($master, join('', map { "DELETE FROM public.$_ WHERE n = 3; UPDATE public.$_ SET n = 10;\n" } @key_tables));
wait_caught_up($slave);
is(key_contents($slave), key_contents($master), 'found again by sessions of all kinds');
is(status_value($slave, q(conflicts || ' ' || errors)), '0 0', 'and no row was missing');

# What a session's names mean is not forgotten when a type gets another attribute.
$_->safe_psql('postgres', 'SET client_min_messages = error; ALTER TYPE other.growing ADD ATTRIBUTE c regclass')
  for ($master, $slave);
my ($growing) = grep { $types[$_][0] eq 'other.growing' } @numbers;
run_hostile($master, "INSERT INTO public.t$growing VALUES (50, ROW(1, 'other.tab'::regclass));");
wait_caught_up($slave);
is_all_same($master, $slave, 'an attribute that came later', "t$growing");
is(status_value($slave, 'errors'), '0', 'and its names are found');

$slave->stop;
$master->safe_psql('postgres', q(SELECT public.py_log_drop_slave('postgres')));

# The same by being copied, with helpers, into tables whose types have other
# OIDs once more.
run_hostile($master, join('', map { "TRUNCATE public.$_;\n" } @tables));
run_usual($master, insert_values());
run_hostile($master, join('', map { "INSERT INTO public.$_ SELECT id + 10, v FROM public.$_;\n" } @tables));
my $copy = new_slave($master, 'copy', copy => 1,
	conf => "pyreplica.enabled = off\npyreplica.copy_workers = 2\n");
$copy->safe_psql('postgres', 'CREATE TYPE one_more AS ENUM ()');
prepare_slave($copy);
$copy->safe_psql('postgres', 'SET client_min_messages = error; ALTER TYPE other.growing ADD ATTRIBUTE c regclass');
run_usual($copy, join('', map { "CREATE TABLE public.k$_ (k $types[$_][0] PRIMARY KEY, n int);\n" } @keys));
set_conf($copy, 'pyreplica.enabled = on');
wait_worker($copy);
wait_caught_up($copy);
is( $copy->safe_psql('postgres',
		q(SELECT string_agg(tablename || ': ' || coalesce(last_error, state), '; ') FROM public.pyreplica_tables WHERE state <> 'ready')),
	'',
	'all tables are copied');
is_all_same($master, $copy, 'copied');
is(key_contents($copy), key_contents($master), 'copied: keys');

# Nothing is different that is not; what is, is found and mended.
is($_->safe_psql('postgres', 'SELECT count(*) FROM public.pyreplica_verify()'), '0', 'no false alarm on ' . $_->name)
  for ($copy);
run_usual($copy, join('', map { "UPDATE public.$_ SET v = NULL WHERE id = 11; DELETE FROM public.$_ WHERE id = 1; INSERT INTO public.$_ SELECT 100, v FROM public.$_ WHERE id < 10 LIMIT 1;\n" } @tables));
my @nulls = map { "(SELECT count(*) FROM public.$_ WHERE id = 100)" } @tables;
my $extra = $copy->safe_psql('postgres', 'SELECT ' . join(' + ', @nulls));
is( $copy->safe_psql('postgres', 'SELECT count(*) FROM public.pyreplica_verify(repair => true)'),
	2 * @tables + $extra,
	'what is different is found');
is_all_same($master, $copy, 'repaired');
run_usual($copy, join('', map { "UPDATE public.$_ SET v = NULL WHERE id = 11; DELETE FROM public.$_ WHERE id = 1; INSERT INTO public.$_ SELECT 100, v FROM public.$_ WHERE id < 10 LIMIT 1;\n" } @tables));
$copy->safe_psql('postgres', 'SELECT public.pyreplica_resync(tablename::regclass) FROM public.pyreplica_tables');
wait_caught_up($copy);
is_all_same($master, $copy, 'resynced');
is($copy->safe_psql('postgres', 'SELECT count(*) FROM public.pyreplica_verify()'), '0', 'and nothing is different');

done_testing();
