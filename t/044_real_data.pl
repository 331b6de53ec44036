# What the world has in its tables: all characters of Unicode, the countries,
# languages, scripts and currencies of ISO with their names in many languages, and
# pgbench's bank.  A slave that has nothing begins while rows come in, is there when
# they change, and is equal in the end.

use strict;
use warnings;

use Encode qw(decode);
use FindBin;
use JSON::PP;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $unicode   = '/usr/share/unicode/UnicodeData.txt';
my $iso       = '/usr/share/iso-codes/json';
my @catalogs  = sort glob('/usr/share/locale/*/LC_MESSAGES/iso_3166-1.mo');
my $directory = PostgreSQL::Test::Utils::tempdir();
plan skip_all => 'needs the packages unicode-data and iso-codes'
  unless -e $unicode && -d $iso && @catalogs;

my $master = new_master('master', conf => "log_statement = none\n");
my $slave;

sub ask
{
	my ($sql) = @_;
	return $master->safe_psql('postgres', $sql);
}

# A value for COPY.
sub copied
{
	my ($value) = @_;
	return '\N' unless defined $value;
	$value =~ s/([\\\t\n\r])/sprintf('\\x%02x', ord $1)/ge;
	return $value;
}

# Rows (lists of values, as characters) into a table of the master.
my $files = 0;

sub load
{
	my ($table, @rows) = @_;
	my $file = "$directory/load" . $files++;
	open(my $out, '>:encoding(UTF-8)', $file) or die "$file: $!";
	print $out join("\t", map { copied($_) } @$_), "\n" foreach @rows;
	close($out) or die "$file: $!";
	$master->psql('postgres', "\\copy $table FROM '$file'", on_error_stop => 1, on_error_die => 1);
	return scalar @rows;
}

# The messages of a gettext catalog and their translations: the header has the number
# of strings and where the two lists of lengths and places are (see the manual of GNU
# gettext, "The Format of GNU MO Files").
sub translations
{
	my ($file) = @_;
	my $bytes  = slurp_file($file);
	my $long   = unpack('V', $bytes) == 0x950412de ? 'V' : 'N';
	my ($count, $from, $to) = unpack("x8 $long$long$long", $bytes);
	my %text;
	foreach my $i (0 .. $count - 1)
	{
		my ($key, $value) = map {
			my ($length, $place) = unpack($long . $long, substr($bytes, $_ + 8 * $i, 8));
			decode('UTF-8', substr($bytes, $place, $length));
		} $from, $to;
		$text{$key} = $value if $key ne '';
	}
	return \%text;
}

sub entries
{
	my ($name) = @_;
	return @{ JSON::PP->new->utf8->decode(slurp_file("$iso/iso_$name.json"))->{$name} };
}

# --- The tables ---

ask(<<'SQL');
CREATE DOMAIN alpha_2 AS text CHECK (VALUE ~ '^[A-Z]{2}$');
CREATE TYPE mirrored AS ENUM ('N', 'Y');
CREATE TABLE category (code text PRIMARY KEY);
CREATE TABLE symbol (
	code		int PRIMARY KEY,
	name		text NOT NULL,
	category	text NOT NULL REFERENCES category,
	combining	smallint NOT NULL,
	bidi		varchar(3) NOT NULL,
	decomposition text,
	decimal_value numeric,
	digit		numeric,
	number		text,
	mirrored	mirrored NOT NULL,
	old_name	text,
	comment		text,
	upper		int REFERENCES symbol DEFERRABLE INITIALLY DEFERRED,
	lower		int REFERENCES symbol DEFERRABLE INITIALLY DEFERRED,
	title		int REFERENCES symbol DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX ON symbol (lower(name));
CREATE TABLE glyph (character text PRIMARY KEY, code int NOT NULL UNIQUE REFERENCES symbol, utf8 bytea NOT NULL);

CREATE TABLE country (alpha_2 alpha_2 PRIMARY KEY, entry jsonb NOT NULL, flag text);
CREATE TABLE subdivision (
	code	text PRIMARY KEY,
	country	alpha_2 NOT NULL REFERENCES country ON UPDATE CASCADE ON DELETE CASCADE,
	parent	text REFERENCES subdivision DEFERRABLE INITIALLY DEFERRED,
	name	text NOT NULL,
	kind	text NOT NULL
) PARTITION BY HASH (code);
CREATE TABLE subdivision_0 PARTITION OF subdivision FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE subdivision_1 PARTITION OF subdivision FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE country_name (language text, message text, name text NOT NULL, PRIMARY KEY (language, message));
CREATE TABLE language (alpha_3 char(3) PRIMARY KEY, entry json NOT NULL, words tsvector);
CREATE TABLE script (alpha_4 char(4) PRIMARY KEY, name text NOT NULL, number numeric(3) UNIQUE);
CREATE TABLE currency (alpha_3 char(3) PRIMARY KEY, name text NOT NULL, number int);
SQL
$master->command_ok([ 'pgbench', '-i', '-q', '-s', 1, '-h', $master->host, '-p', $master->port, 'postgres' ], 'pgbench fills its tables');
ask('ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY');
my @tables = split /\n/, ask(q(SELECT oid::regclass FROM pg_class
	WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname !~ '^(replica_|py)'));
log_table($master, @tables);

# --- The rows: some before the slave comes, some while it copies, some later ---

my @characters;
{
	open(my $in, '<:encoding(UTF-8)', $unicode) or die "$unicode: $!";
	while (my $line = <$in>)
	{
		chomp $line;
		my @row = map { $_ eq '' ? undef : $_ } split(/;/, $line, -1);
		$_ = defined $_ ? hex : undef foreach @row[ 0, 12, 13, 14 ];
		push @characters, \@row;
	}
}
cmp_ok(scalar @characters, '>', 30000, 'there are many characters');

# What can be in a text: neither a surrogate nor the end of a C string.
my @glyphs = map { [ chr($_), $_, '\\x' . unpack('H*', Encode::encode('UTF-8', chr($_))) ] }
  grep { $_ > 0 && ($_ < 0xd800 || $_ > 0xdfff) } map { $_->[0] } @characters;
my %categories = map { $_->[2] => 1 } @characters;
load('category', map { [$_] } sort keys %categories);
my @late = splice(@characters, 0, @characters / 2);
my %is_late = map { $_->[0] => 1 } @late;

# A case mapping of those comes with those.
my @mapped = grep { grep { defined && $is_late{$_} } @$_[ 12 .. 14 ] } @characters;
load('symbol', map { my @row = @$_; @row[ 12 .. 14 ] = () if grep { defined && $is_late{$_} } @row[ 12 .. 14 ]; \@row } @characters);
load('glyph', grep { !$is_late{ $_->[1] } } @glyphs);
load('country', map { [ $_->{alpha_2}, JSON::PP->new->canonical->encode($_), $_->{flag} ] } entries('3166-1'));
load('currency', map { [ $_->{alpha_3}, $_->{name}, $_->{numeric} ] } entries('4217'));

$slave = new_slave($master, 'slave', copy => 1, conf => "pyreplica.copy_schema = on\n");

# While it copies:
load('script', map { [ @$_{qw(alpha_4 name numeric)} ] } entries('15924'));
my %country = map { $_ => 1 } split /\n/, ask('SELECT alpha_2 FROM country');
load('subdivision', map { [ $_->{code}, substr($_->{code}, 0, 2), $_->{parent} && ($_->{parent} =~ /-/ ? $_->{parent} : undef), $_->{name}, $_->{type} ] }
	  grep { $country{ substr($_->{code}, 0, 2) } } entries('3166-2'));
load('symbol', @late);
load('glyph', grep { $is_late{ $_->[1] } } @glyphs);
my $bank = start_looping($master, 'pgbench', '-n', '-t', 200, '-c', 2, 'postgres');
$slave->poll_query_until('postgres', q(SELECT count(*) > 10 AND bool_and(state = 'ready') FROM pyreplica_tables))
  or BAIL_OUT("the tables are not copied:\n" . status($slave));

# When it is in step:
load('language', map { [ $_->{alpha_3}, JSON::PP->new->canonical->encode($_), undef ] } entries('639-3'));
foreach my $catalog (@catalogs)
{
	my ($language) = $catalog =~ m{locale/([^/]+)/};
	my $text = translations($catalog);
	load('country_name', map { [ $language, $_, $text->{$_} ] } sort keys %$text);
}
ask(<<'SQL');
UPDATE language SET words = to_tsvector('simple', entry ->> 'name');
UPDATE symbol SET name = lower(name) WHERE category = 'Lu';
UPDATE symbol SET decomposition = NULL, comment = decomposition WHERE decomposition LIKE '<compat>%';
UPDATE glyph SET character = character || character WHERE code % 1000 = 65;
DELETE FROM glyph WHERE code BETWEEN 9728 AND 9855;
UPDATE country SET entry = entry || jsonb_build_object('names', n.names)
  FROM (SELECT message, jsonb_object_agg(language, name) AS names FROM country_name GROUP BY message) n
 WHERE n.message = entry ->> 'name';
UPDATE country SET alpha_2 = 'ZZ' WHERE alpha_2 = 'DE';
DELETE FROM country WHERE alpha_2 IN ('FR', 'JP');
UPDATE country SET flag = NULL WHERE alpha_2 ~ '^A';
SQL
ask("UPDATE symbol SET upper = " . ($_->[12] // 'NULL') . ', lower = ' . ($_->[13] // 'NULL') . ', title = ' . ($_->[14] // 'NULL') . " WHERE code = $_->[0]")
  foreach @mapped[ 0 .. ($#mapped > 20 ? 20 : $#mapped) ];
stop_looping($bank);
wait_caught_up($slave);

# --- Equal ---

is_same_rows($master, $slave, $_) foreach @tables;
cmp_ok($slave->safe_psql('postgres', 'SELECT count(*) FROM country_name'), '>', 20000, 'names in many languages are among them');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM glyph WHERE utf8 <> convert_to(left(character, 1), \'UTF8\')'),
	'0', 'each character is what it was');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM pyreplica_verify()'), '0', 'so says the verification');
is($slave->safe_psql('postgres', 'SELECT sum(conflicts), max(last_error) FROM pyreplica_status'), '0|', 'nothing went wrong');

done_testing();
