# A random schema: tables of all kinds of columns, with keys of all kinds and without,
# plain and in partitions, logged one by one or as a whole; and two slaves, on which each of them is laid out in another way, as it
# came.  Several sessions change rows on the master, while one changes the tables, by
# py_log_sql.  After each round both slaves have the master's rows.
#
# PYREPLICA_TEST_SEED repeats a run's schema and changes of it (not what meets what in
# the sessions), PYREPLICA_TEST_ROUNDS makes it longer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use List::Util qw(shuffle);
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $seed   = $ENV{PYREPLICA_TEST_SEED}   // int(rand(1_000_000));
my $rounds = $ENV{PYREPLICA_TEST_ROUNDS} // 6;
srand($seed);
note("PYREPLICA_TEST_SEED=$seed PYREPLICA_TEST_ROUNDS=$rounds");

sub one_of { return $_[ rand @_ ]; }

# --- What columns there can be: values, and types that a slave can have instead ---

my %type = (
	int           => { values => [ 0, 1, -7, 2147483647 ], others => [qw(bigint numeric)] },
	smallint      => { values => [ 0, -32768, 32767 ], others => [qw(int numeric)] },
	bigint        => { values => [ 0, 1, '9223372036854775807' ], others => ['numeric'] },
	numeric       => { values => [ '0', '1.00', 'NaN', '-1e-30', '12345678901234567890.12' ] },
	float8        => { values => [ '0', '-0', 'NaN', '-Infinity', '0.1', '1e-310' ] },
	boolean       => { values => [ 'true', 'false' ] },
	text          => { values => [ '', 'a', "it''s", 'ünïcödé 日本 🐘', '\\N', "line\n2", ('long ' x 2000) ], others => ['varchar'] },
	'varchar(20)' => { values => [ '', 'word', ' blank ' ], others => ['text'] },
	'char(5)'     => { values => [ '', 'ab', 'abcde' ], others => [] },
	date          => { values => [ '2000-02-29', 'infinity', '0044-03-15 BC' ] },
	timestamptz   => { values => [ '2026-03-29 01:59:59.999999+01', '-infinity', '1900-01-01 00:00+00' ] },
	interval      => { values => [ '1 day', '24:00:00', '1 mon -1 day', '-00:00:00.000001' ] },
	jsonb         => { values => [ 'null', '{"a": 1.00}', '[1, {"b": "ü"}]' ] },
	json          => { values => [ '{"a" :  1}', '[ ]' ], is_keyless => 1 },
	bytea         => { values => [ '', '\\x00ff', '\\x5c5c' ] },
	uuid          => { values => [ '00000000-0000-0000-0000-000000000000', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' ] },
	inet          => { values => [ '10.0.0.1', '10.0.0.1/8', '::1' ] },
	point         => { values => [ '(0,-0)', '(1.5,1e300)' ], is_keyless => 1 },
	'int[]'       => { values => [ '{}', '{1,NULL}', '[0:1]={1,2}' ] },
	'text[]'      => { values => [ '{}', '{"",NULL,"NULL","a,b"}', '{{a},{b}}' ] },
	int4range     => { values => [ 'empty', '[1,5)', '(,)' ] },
	'bit(3)'      => { values => [ '000', '101' ] },
	mood          => { values => [ 'sad', 'ok', 'gl ück' ], others => ['text'] },
	'mood[]'      => { values => [ '{}', '{sad,NULL,"gl ück"}' ] },
	price         => { values => [ '0.00', '12.50' ], others => ['numeric'] },
	pair          => { values => [ '(1,)', '(,"a b")', '(2,"(x,y)")' ] },
	hstore        => { values => [ '', '"a"=>"1", "b"=>NULL' ] },
	citext        => { values => [ 'Word', 'wORD', '' ], others => ['text'] });

my $types = <<'SQL';
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'gl ück');
CREATE DOMAIN price AS numeric(10, 2) CHECK (VALUE >= 0);
CREATE TYPE pair AS (n int, t text);
SQL

# --- The tables ---

my %table;

sub make_table
{
	my ($name) = @_;
	my %made = (
		name    => $name,
		columns => [ map { [ "c$_", one_of(sort keys %type) ] } 1 .. 2 + rand 6 ],
		kind    => one_of(qw(key key pair unique none parted rooted)));
	my $key = $made{kind} eq 'none' ? [] : $made{kind} =~ /pair|parted|rooted/ ? [qw(id other)] : ['id'];
	$made{key} = $key;
	unshift @{ $made{columns} }, [ 'id', 'int' ], [ 'other', 'int' ];
	return $table{$name} = \%made;
}

sub columns_of
{
	my ($table, @columns) = @_;
	my %is_key = map { $_ => 1 } @{ $table->{key} };
	return join(",\n\t", map { qq("$_->[0]" $_->[1]) . ($is_key{ $_->[0] } ? ' NOT NULL' : '') } @columns);
}

sub key_of
{
	my ($table) = @_;
	my $key = join(', ', @{ $table->{key} });
	return '' if $table->{kind} eq 'none';
	return $table->{kind} eq 'unique' ? ", UNIQUE ($key)" : ", PRIMARY KEY ($key)";
}

sub in_parts
{
	my ($qualified, $column, $parts) = @_;
	return " PARTITION BY HASH ($column);\n" . join('',
		map { "CREATE TABLE ${qualified}_$_ PARTITION OF $qualified FOR VALUES WITH (MODULUS $parts, REMAINDER $_);\n" } 0 .. $parts - 1);
}

sub create_on_master
{
	my ($table) = @_;
	my ($name, $kind) = @$table{qw(name kind)};
	my $sql = "CREATE TABLE $name (" . columns_of($table, @{ $table->{columns} }) . key_of($table) . ')';
	$sql .= $kind =~ /parted|rooted/ ? in_parts($name, 'other', 3) : ";\n";
	foreach my $logged ($kind eq 'parted' ? map { "${name}_$_" } 0 .. 2 : $name)
	{
		$sql .= "SELECT py_log_create_tg('$logged'"
		  . ($kind eq 'unique' ? q(, key => '{id}') : $kind eq 'none' ? q(, key => '{*}') : $kind eq 'rooted' ? ', via_root => true' : '')
		  . (rand() < 0.3 ? ', log_old => true' : '') . ");\n";
	}
	return $sql;
}

# Each slave has it in its own way.  A table that is not where it is on the master does
# not hear of py_log_sql.
sub create_on_slave
{
	my ($table, $layout) = @_;
	my ($name, $kind) = @$table{qw(name kind)};
	my @ways = ('same', 'shuffled', 'typed', 'elsewhere');
	push @ways, 'parts' if $kind =~ /key|pair|none|rooted/;
	push @ways, 'view'  if $kind =~ /key|pair/;
	my $way = $kind eq 'parted' ? one_of(qw(same elsewhere)) : one_of(@ways);
	my $place = $way eq 'elsewhere' ? "other.moved_$name" : $name;
	my @columns = @{ $table->{columns} };
	my $sql = '';

	@columns = shuffle(@columns), push(@columns, [ 'extra', "text DEFAULT 'here'" ]) if $way =~ /shuffled|view/;
	@columns = map { [ $_->[0], one_of($_->[1], @{ $type{ $_->[1] }{others} // [] }) ] } @columns if $way eq 'typed';
	my $base = $way eq 'view' ? "base_$name" : $place;
	$sql .= "CREATE TABLE $base (" . columns_of($table, @columns) . key_of($table) . ')';
	$sql .= $way eq 'parts' ? in_parts($base, 'id', 2) : $kind eq 'parted' ? in_parts($base, 'other', 3) : ";\n";
	$sql .= "CREATE VIEW $name AS SELECT " . join(', ', map { qq("$_->[0]") } @{ $table->{columns} }) . " FROM $base;\n" if $way eq 'view';
	if ($way eq 'elsewhere')
	{
		$sql .= "SELECT pyreplica_map_table('public.$_', 'other.moved_$_');\n"
		  for $kind eq 'parted' ? map { "${name}_$_" } 0 .. 2 : $name;
	}
	$layout->{$name} = { way => $way, place => $place };
	return $sql;
}

make_table("t$_") for 1 .. 10;

my $master = new_master('master', conf => "log_statement = none\n");
my %slave;
foreach my $name ('sets', 'strict')
{
	$master->safe_psql('postgres', "SELECT py_log_add_slave('$name')");
	$slave{$name} = new_slave($master, $name, database => $name,
		conf => 'pyreplica.apply_mode = ' . ($name eq 'sets' ? 'auto' : 'strict') . "\nlog_statement = none\n");
	wait_worker($slave{$name});
}
my %layout = map { $_ => {} } keys %slave;
foreach my $name (sort keys %slave)
{
	$slave{$name}->safe_psql($name, "CREATE TYPE only_here AS ENUM ('a');\nCREATE SCHEMA other;\n" . $types
		  . join('', map { create_on_slave($table{$_}, $layout{$name}) } sort keys %table));
	note("$name: " . join(', ', map { "$_ ($table{$_}{kind}) $layout{$name}{$_}{way}" } sort keys %table));
}
$master->safe_psql('postgres', $types . join('', map { create_on_master($table{$_}) } sort keys %table));

# --- Random changes of rows, of whatever columns a table has just then ---

$master->safe_psql('postgres', 'CREATE TABLE sample (type text, value text);'
	  . join('', map { my $t = $_; map { "INSERT INTO sample VALUES ('$t'::regtype::text, \$v\$$_\$v\$);" } @{ $type{$t}{values} } } sort keys %type));
$master->safe_psql('postgres', <<'SQL');
CREATE FUNCTION dice(n int) RETURNS int LANGUAGE sql VOLATILE AS $$ SELECT floor(random() * n)::int $$;

CREATE FUNCTION any_value(name text, type oid) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
BEGIN
	IF name IN ('id', 'other') THEN
		RETURN dice(60)::text;
	ELSIF dice(6) = 0 THEN
		RETURN 'NULL';
	END IF;
	RETURN coalesce((SELECT quote_literal(value) FROM sample s WHERE s.type = format_type(any_value.type, NULL) ORDER BY random() LIMIT 1), 'NULL');
END
$$;

CREATE FUNCTION any_change(tab regclass) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
	names	text[];
	vals	text[];
	sets	text;
BEGIN
	SELECT array_agg(quote_ident(attname) ORDER BY attnum), array_agg(any_value(attname, atttypid) ORDER BY attnum),
		   string_agg(format('%I = %s', attname, any_value(attname, atttypid)), ', ') FILTER (WHERE dice(3) = 0 AND attname NOT IN ('id', 'other'))
	  INTO names, vals, sets
	  FROM pg_attribute WHERE attrelid = tab AND attnum > 0 AND NOT attisdropped;
	RETURN CASE
		WHEN dice(10) < 4 THEN format('INSERT INTO %s (%s) VALUES (%s)', tab, array_to_string(names, ', '), array_to_string(vals, ', '))
			|| ' ON CONFLICT DO NOTHING'
		-- equal rows, where there can be any
		WHEN dice(12) = 0 THEN format('INSERT INTO %1$s SELECT * FROM %1$s WHERE id = %2$s LIMIT 2', tab, dice(60))
		WHEN dice(6) = 0 THEN format('UPDATE %s SET id = %s, other = %s WHERE id = %s', tab, dice(60), dice(60), dice(60))
		WHEN dice(3) > 0 AND sets IS NOT NULL THEN format('UPDATE %s SET %s WHERE id %% 8 = %s', tab, sets, dice(8))
		ELSE format('DELETE FROM %s WHERE id %% 20 = %s', tab, dice(20)) END;
END
$$;

CREATE PROCEDURE work(steps int) LANGUAGE plpgsql AS $$
DECLARE
	tabs	regclass[];
BEGIN
	FOR step IN 1 .. steps LOOP
		tabs := array(SELECT DISTINCT coalesce(pg_partition_root(tgrelid), tgrelid)::regclass
						FROM pg_trigger WHERE tgname = '!py_log_replica_tg');
		BEGIN
			FOR i IN 1 .. 1 + dice(4) LOOP
				BEGIN
					EXECUTE any_change(tabs[1 + dice(cardinality(tabs))]);
				EXCEPTION WHEN integrity_constraint_violation THEN
					NULL;
				END;
			END LOOP;
			IF dice(10) = 0 THEN
				RAISE EXCEPTION 'never mind';
			END IF;
		EXCEPTION
			-- the table was changed or dropped meanwhile
			WHEN raise_exception OR deadlock_detected OR serialization_failure OR undefined_column OR undefined_table
				OR datatype_mismatch OR invalid_text_representation OR feature_not_supported THEN
				NULL;
		END;
		COMMIT;
	END LOOP;
END
$$;
SQL

# --- Random changes of the tables ---

my $number = 100;

# Partitions of a table that is logged as a whole are the master's own affair: one
# goes, rows and all, is changed meanwhile or made anew, and comes back.
sub other_parts
{
	my ($name) = @_;
	my $n = int rand 3;
	my $part = "${name}_$n";
	return "BEGIN; ALTER TABLE $name DETACH PARTITION $part; "
	  . one_of("UPDATE $part SET id = id + 60 WHERE id % 3 = 0; DELETE FROM $part WHERE id % 5 = 0",
		"DROP TABLE $part; CREATE TABLE $part (LIKE $name INCLUDING ALL)",
		"TRUNCATE $part; TRUNCATE ${name}_" . ($n + 1) % 3)
	  . "; ALTER TABLE $name ATTACH PARTITION $part FOR VALUES WITH (MODULUS 3, REMAINDER $n); COMMIT";
}

# A statement for py_log_sql, and what to remember once it is done.
sub some_ddl
{
	my @rooted = grep { $table{$_}{kind} eq 'rooted' } sort keys %table;
	return (other_parts(one_of(@rooted)), sub { }) if @rooted && rand() < 0.25;

	my @here = grep { my $t = $_; !grep { $layout{$_}{$t}{way} =~ /elsewhere|view/ } keys %layout } sort keys %table;
	my $table = $table{ one_of(@here) };
	my $name  = $table->{name};
	my @free  = grep { $_->[0] !~ /^(id|other)$/ } @{ $table->{columns} };
	my $what  = int rand 8;
	$number++;
	if ($what <= 1 || !@free)
	{
		my $type = one_of(sort keys %type);
		my $default = rand() < 0.5 ? ' DEFAULT $v$' . one_of(@{ $type{$type}{values} }) . '$v$' : '';
		return ("ALTER TABLE $name ADD COLUMN c$number $type$default", sub { push @{ $table->{columns} }, [ "c$number", $type ]; });
	}
	if ($what == 2)
	{
		my $gone = one_of(@free)->[0];
		return (qq(ALTER TABLE $name DROP COLUMN "$gone"), sub { @{ $table->{columns} } = grep { $_->[0] ne $gone } @{ $table->{columns} }; });
	}
	if ($what == 3)
	{
		my $column = one_of(@free);
		my $new    = "c\"\"ö $number";
		return (qq(ALTER TABLE $name RENAME COLUMN "$column->[0]" TO "$new"), sub { $column->[0] = $new; });
	}
	if ($what == 4)
	{
		my ($column) = grep { $_->[1] =~ /^(int|smallint|varchar\(20\))$/ } @free;
		my $to = $column && ($column->[1] =~ /varchar/ ? 'text' : 'bigint');
		return (qq(ALTER TABLE $name ALTER COLUMN "$column->[0]" TYPE $to), sub { $column->[1] = $to; })
		  if $column && !grep { $layout{$_}{$name}{way} eq 'typed' } keys %layout;
	}
	return ("CREATE INDEX ON $name (other, id)", sub { }) if $what == 5;
	return ("TRUNCATE $name", sub { }) if $what == 6 && rand() < 0.3;
	if ($what == 6)
	{
		return ("COMMENT ON TABLE $name IS 'seen'; ALTER TABLE $name ALTER COLUMN other SET DEFAULT $number", sub { });
	}
	my $new = make_table("t$number");
	my $sql = create_on_master($new);
	delete $table{"t$number"};
	return ($sql, sub {
		$table{"t$number"} = $new;
		$layout{$_}{"t$number"} = { way => 'same', place => "t$number" } for keys %layout;
	});
}

# --- Rounds ---

# A table's rows as the master has them, whatever the columns are where they are.
sub rows_of
{
	my ($node, $database, $place, $table) = @_;
	my $columns = join(', ', map { qq("$_->[0]"::$_->[1]::text) } @{ $table->{columns} });
	return $node->safe_psql($database, "SELECT md5(r::text), left(replace(r::text, E'\\n', ' '), 200) FROM (SELECT ROW($columns) AS r FROM $place) x ORDER BY 1");
}

foreach my $round (1 .. $rounds)
{
	my @done;
	my @sessions = map {
		IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $master->connstr('postgres'), '-c', 'CALL work(150)' ], '2>&1')
	} 1 .. 4;
	foreach (1 .. 4)
	{
		my ($sql, $then) = some_ddl();
		my $log_sql = $sql =~ /^BEGIN/ ? $sql
		  : $sql =~ /SELECT py_log/
		  ? 'BEGIN; SELECT py_log_sql($q$' . ($sql =~ s/SELECT py_log.*//sr) . '$q$); ' . ($sql =~ /(SELECT py_log.*)/s)[0] . ' COMMIT;'
		  : 'SELECT py_log_sql($q$' . $sql . '$q$)';
		my ($rc, $out, $err) = $master->psql('postgres', "SET lock_timeout = '20s'; $log_sql");
		next if $rc != 0 && $err =~ /deadlock|lock timeout/;
		is($err, '', "round $round: $sql") if $rc != 0;
		$then->();
		push @done, $sql =~ s/\n.*//sr;
	}
	$_->finish foreach @sessions;
	foreach my $name (sort keys %slave)
	{
		wait_caught_up($slave{$name});
		$slave{$name}->poll_query_until($name, q(SELECT bool_and(state = 'ready') FROM pyreplica_tables))
		  or BAIL_OUT("not ready:\n" . $slave{$name}->safe_psql($name, 'SELECT * FROM pyreplica_tables'));
		wait_caught_up($slave{$name});
		my @differ;
		foreach my $t (sort keys %table)
		{
			my %side;
			$side{$_}++ for split /\n/, rows_of($master, 'postgres', $t, $table{$t});
			$side{$_}-- for split /\n/, rows_of($slave{$name}, $name, $layout{$name}{$t}{place}, $table{$t});
			my @rows = map { ($side{$_} > 0 ? 'only master: ' : 'only slave: ') . $_ } grep { $side{$_} } sort keys %side;
			push @differ, "$t ($table{$t}{kind}, $layout{$name}{$t}{way}):", @rows[ 0 .. ($#rows > 4 ? 4 : $#rows) ] if @rows;
		}
		is(join("\n", @differ), '', "round $round: $name has the master's rows")
		  or BAIL_OUT("PYREPLICA_TEST_SEED=$seed after " . join('; ', @done));
	}
	note("round $round: " . join('; ', @done));
}
foreach my $name (sort keys %slave)
{
	is(status_value($slave{$name}, 'conflicts'), '0', "$name met no conflict");
	cmp_ok(status_value($slave{$name}, 'rows'), '>', 100 * $rounds, "$name has applied much");
}

done_testing();
