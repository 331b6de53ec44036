# Random histories.  One master, two slaves: one applies what it can in sets,
# the other everything in strict order.  Whatever happens on the master, to
# tables that are awkward each in its own way, both slaves become equal to it,
# without a conflict or an error on the way.
#
# The slaves are held back while a batch of rounds is written, so that it
# reaches them in large windows; sometimes they run along instead.  A round is
# a few transactions, each a few random changes, some of them rolled back.
#
# PYREPLICA_TEST_SEED repeats a run, PYREPLICA_TEST_ROUNDS makes it longer,
# PYREPLICA_TEST_TABLES='swap hot' confines it to a few tables.  With
# PYREPLICA_TEST_TAMPER=1 somebody writes on a slave, and the test must fail.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use List::Util qw(min);
use PyreplicaTest;
use Test::More;

my $seed   = $ENV{PYREPLICA_TEST_SEED}   // int(rand(1_000_000));
my $rounds = $ENV{PYREPLICA_TEST_ROUNDS} // 3000;
srand($seed);
note("PYREPLICA_TEST_SEED=$seed PYREPLICA_TEST_ROUNDS=$rounds");

# --- The tables ---
#
# Each has what creates it, on the slave perhaps otherwise, and changes to
# choose from.  In a change, :A, :B and :C stand for random numbers from 0 to
# 999999, :T and :U for random words, of which one is NULL.  Whether a change
# works must not depend on the order in which the server finds the rows, or
# else a seed would not repeat a run.

my %table = (

	# a key of two columns, in another order than the table's
	item => {
		create => 'CREATE TABLE item (a int, b text, n int, t text, PRIMARY KEY (b, a))',
		changes => [
			'INSERT INTO item SELECT (:A + i) % 8, word(:B + i), :C, :T FROM generate_series(0, :B % 4) i WHERE word(:B + i) IS NOT NULL ON CONFLICT DO NOTHING',
			'UPDATE item SET n = :C WHERE a % 3 = :B % 3',
			'UPDATE item SET t = :T WHERE a = :A % 8',
			'UPDATE item SET n = n, t = t',
			'UPDATE item SET a = (a + 8) % 16, n = n + 1 WHERE a = :A % 16',
			'UPDATE item SET b = :T, n = n + 1 WHERE a = :A % 8 AND b = (SELECT min(b) FROM item WHERE a = :A % 8)',
			'UPDATE item SET b = left(b || :C, 50) WHERE a = :A % 8',
			'DELETE FROM item WHERE a = :A % 16 AND n % 2 = :B % 2',
			q(DELETE FROM item WHERE a = :A % 8; INSERT INTO item VALUES (:A % 8, 'again', :B, :T)),
			q(INSERT INTO item VALUES (20, 'passing', :B, :T); UPDATE item SET t = :U WHERE a = 20; DELETE FROM item WHERE a = 20),
		]
	},

	# nothing but a key
	pair => {
		create  => 'CREATE TABLE pair (a int, b int, PRIMARY KEY (a, b))',
		changes => [
			'INSERT INTO pair SELECT (:A + i) % 6, (:B + i * i) % 6 FROM generate_series(0, :C % 5) i ON CONFLICT DO NOTHING',
			'UPDATE pair SET a = :A % 6, b = :B % 6 WHERE a = :C % 6 AND b = :C / 6 % 6',
			'UPDATE pair SET a = b, b = a WHERE a = :A % 6 AND b = :B % 6',
			'DELETE FROM pair WHERE a = :A % 6 AND b > :B % 6',
		]
	},

	# secondary unique columns, one by an expression and one of some rows
	# only, and rows that swap what they have
	swap => {
		create => <<'SQL',
CREATE TABLE swap (id int PRIMARY KEY, u int UNIQUE, w text UNIQUE, e text,
	n int, is_on bool);
CREATE UNIQUE INDEX ON swap (lower(e));
CREATE UNIQUE INDEX ON swap (n) WHERE is_on;
SQL
		changes => [
			'INSERT INTO swap VALUES (:A % 10, :B % 12, word(:C), word(:B), :C % 10, :A % 2 = 0)',
			'INSERT INTO swap SELECT i, i, word(i), NULL, i, false FROM generate_series(:A % 10, :B % 10) i ON CONFLICT DO NOTHING',
			'INSERT INTO swap SELECT i, i, word(i), NULL, i, false FROM generate_series(0, 9) i ON CONFLICT DO NOTHING',
			# through a third value
			'UPDATE swap SET u = -u - 1 WHERE id IN (:A % 10, :B % 10); UPDATE swap s SET u = -o.u - 1 FROM swap o WHERE s.id <> o.id AND s.id IN (:A % 10, :B % 10) AND o.id IN (:A % 10, :B % 10)',
			q(UPDATE swap SET w = '#' || w WHERE id IN (:A % 10, :B % 10); UPDATE swap s SET w = substr(o.w, 2) FROM swap o WHERE s.id <> o.id AND s.id IN (:A % 10, :B % 10) AND o.id IN (:A % 10, :B % 10)),
			'UPDATE swap SET id = -id - 1 WHERE id IN (:A % 10, :B % 10); UPDATE swap SET id = CASE id WHEN -(:A % 10) - 1 THEN :B % 10 ELSE :A % 10 END WHERE id < 0',
			# one after the other moves up
			'DELETE FROM swap WHERE id > 12; UPDATE swap SET id = id + 100; UPDATE swap SET id = id - 99',
			'UPDATE swap SET u = u + 1000; UPDATE swap SET u = (u - 999) % 15 WHERE u >= 1000',
			'UPDATE swap SET id = id + 100, u = u + 100 WHERE id > :A % 10; UPDATE swap SET id = id - 99, u = u - 101 WHERE id >= 100',
			# what one gives up the other takes
			'UPDATE swap SET u = NULL WHERE id = :A % 10; UPDATE swap SET u = :C % 12 WHERE id = :B % 10',
			'DELETE FROM swap WHERE id = :A % 10; UPDATE swap SET id = :A % 10 WHERE id = :B % 10',
			'DELETE FROM swap WHERE u = :A % 12; INSERT INTO swap (id, u) VALUES (:B % 10, :A % 12)',
			'UPDATE swap SET e = :T, is_on = false WHERE id = :A % 10',
			'UPDATE swap SET e = upper(e) WHERE id = :A % 10',
			'UPDATE swap SET is_on = NOT is_on WHERE id = :A % 10',
			'UPDATE swap SET is_on = false WHERE id = :A % 10; UPDATE swap SET n = :B % 10, is_on = true WHERE id = :C % 10',
			'UPDATE swap SET w = :T WHERE id = :A % 10',
			'DELETE FROM swap WHERE id = :A % 10',
		]
	},

	# keys that are checked late, and swapped by one statement
	deferred => {
		create => <<'SQL',
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE,
	u int UNIQUE DEFERRABLE INITIALLY DEFERRED, a text);
SQL
		changes => [
			'INSERT INTO deferred VALUES (:A % 15, :B % 20, :T)',
			'INSERT INTO deferred SELECT i, i, :T FROM generate_series(:A % 15, :A % 15 + :B % 4) i',
			'DELETE FROM deferred WHERE id > 12; UPDATE deferred SET id = id + 1',
			'DELETE FROM deferred WHERE id < 1; UPDATE deferred SET id = id - 1',
			'UPDATE deferred SET id = 15 - id WHERE id BETWEEN 0 AND 15',
			'UPDATE deferred SET id = CASE id WHEN :A % 15 THEN :B % 15 ELSE :A % 15 END, a = :U WHERE id IN (:A % 15, :B % 15)',
			'UPDATE deferred SET u = :A % 20 WHERE id = :B % 15',
			'UPDATE deferred SET u = u + 1',
			'UPDATE deferred SET u = u - 1 WHERE id > :A % 10; UPDATE deferred SET u = u + 1 WHERE id <= :A % 10',
			'UPDATE deferred SET a = :T WHERE id = :A % 15',
			'DELETE FROM deferred WHERE id = :A % 15',
		]
	},

	# long values, compressed or not, in the row or not; most of the time
	# they stay as they are
	toasted => {
		create => <<'SQL',
CREATE TABLE toasted (id int PRIMARY KEY, c text, x text, e bytea, n int);
ALTER TABLE toasted ALTER e SET STORAGE EXTERNAL;
SQL
		changes => [
			q(INSERT INTO toasted VALUES (:A % 12, long_text(:B, true), long_text(:C, false), convert_to(long_text(:A, :B % 2 = 0), 'UTF8'), :B) ON CONFLICT DO NOTHING),
			'UPDATE toasted SET n = n + 1 WHERE id % 3 = :A % 3',
			'UPDATE toasted SET n = n + 1, c = c',
			'UPDATE toasted SET c = long_text(:A, true) WHERE id = :B % 12',
			'UPDATE toasted SET x = long_text(:A, false) WHERE id = :B % 12',
			q(UPDATE toasted SET e = convert_to(long_text(:A, false), 'UTF8'), n = :C WHERE id = :B % 12),
			'UPDATE toasted SET c = x, x = c WHERE id = :A % 12',
			q(UPDATE toasted SET c = c || '.', x = left(x, 3000) WHERE id = :A % 12),
			'UPDATE toasted SET e = NULL WHERE id = :A % 12',
			'UPDATE toasted SET id = (id + 12) % 24 WHERE id = :A % 24',
			'DELETE FROM toasted WHERE id = :A % 24',
			'DELETE FROM toasted WHERE id = :A % 12; INSERT INTO toasted VALUES (:A % 12, :T, long_text(:B, false), NULL, :C)',
		]
	},

	# columns of many types, any of which are changed
	typed => {
		create => <<'SQL',
CREATE TABLE typed (id int PRIMARY KEY, a numeric, b text, c varchar(30),
	d uuid, e timestamptz, f jsonb, g bytea, h float8, i bool, j char(5),
	k interval, l int[], m text[], n float4, o smallint, p bigint, q date,
	r time, s inet, t bit varying(9), u int4range, v "char", w name, x money,
	y point, z tsvector);
SQL
		changes => [
			'INSERT INTO typed SELECT * FROM typed_values(:A % 10, :B)',
			'INSERT INTO typed SELECT v.* FROM generate_series(:A % 10, :A % 10 + 5) i, typed_values(i, :B) v ON CONFLICT DO NOTHING',
			# each row another set of columns
			(
				'UPDATE typed o SET '
				  . join(', ',
					map { "$_ = CASE WHEN chance(6, :A, o.id, ascii('$_')) THEN v.$_ ELSE o.$_ END" }
					  ('a' .. 'z'))
				  . ' FROM generate_series(0, 20) AS s(number), typed_values(number, :B) v WHERE v.id = o.id'
			) x 3,
			'UPDATE typed o SET (a, f, h, k) = (SELECT v.a, v.f, v.h, v.k FROM typed_values(0, :A) v) WHERE id % 4 = :B % 4',
			'UPDATE typed SET a = a + 0.00, h = -h, j = left(j || :T, 5), l = ARRAY[:B]',
			'UPDATE typed SET id = (id + 10) % 20 WHERE id = :A % 20',
			'DELETE FROM typed WHERE id % 5 = :A % 5',
		]
	},

	# more columns than fit into a machine word
	wide => {
		create => 'CREATE TABLE wide (id int PRIMARY KEY, '
		  . join(', ', map { "c$_ int" } (1 .. 75)) . ')',
		changes => [
			'INSERT INTO wide SELECT i, :A, :B, :C FROM generate_series(:A % 20, :A % 20 + :B % 5) i ON CONFLICT DO NOTHING',
			(
				map {
					my $often = $_;
					'UPDATE wide SET ' . join(', ',
						map { "c$_ = CASE WHEN chance($often, :A, id, $_) THEN (:B + id) % 10000 ELSE c$_ END" }
						  (1 .. 75))
					  . ' WHERE id % 4 = :C % 4'
				} (2, 20, 20, 60)),
			'UPDATE wide SET c75 = :A, c1 = c75 WHERE id = :B % 20',
			'UPDATE wide SET c63 = NULL, c64 = :B, c65 = id WHERE id % 3 = :B % 3',
			'UPDATE wide SET id = (id + 20) % 40 WHERE id = :A % 40',
			'DELETE FROM wide WHERE id = :A % 20',
		]
	},

	# five rows, changed all the time
	hot => {
		create  => 'CREATE TABLE hot (id int PRIMARY KEY, n bigint, a text)',
		changes => [
			'INSERT INTO hot SELECT i, 0, NULL FROM generate_series(0, 4) i ON CONFLICT DO NOTHING',
			'UPDATE hot SET n = n + 1 WHERE id = :A % 5',
			'UPDATE hot SET a = :T WHERE id = :A % 5',
			'UPDATE hot SET n = n - 1 WHERE id = :A % 5; UPDATE hot SET n = n + 1 WHERE id = :B % 5',
			'DO $$ BEGIN FOR i IN 1 .. :A % 30 LOOP UPDATE hot SET n = n + i WHERE id = i % 5; END LOOP; END $$',
			'DO $$ BEGIN FOR i IN 1 .. :A % 10 LOOP DELETE FROM hot WHERE id = 0; INSERT INTO hot VALUES (0, i, :T); END LOOP; END $$',
			'DELETE FROM hot WHERE id = :A % 5',
			'DELETE FROM hot WHERE id = :A % 5; INSERT INTO hot VALUES (:A % 5, :B, :U)',
		]
	},

	# some hundred rows by one statement
	big => {
		create  => 'CREATE TABLE big (id int PRIMARY KEY, n int, a text)',
		changes => [
			'INSERT INTO big SELECT (:A % 1000) + i, i, :T FROM generate_series(1, 50 + :B % 300) i ON CONFLICT DO NOTHING',
			'UPDATE big SET n = n + 1 WHERE id BETWEEN :A % 1300 AND :A % 1300 + :B % 400',
			'UPDATE big SET a = :T WHERE id % 7 = :A % 7',
			'UPDATE big SET id = (id + 5000) % 10000 WHERE id % 5000 BETWEEN :A % 1300 AND :A % 1300 + 100',
			'DELETE FROM big WHERE id % 5000 BETWEEN :A % 1300 AND :A % 1300 + :B % 500',
		]
	},

	# identity and computed columns, and one that is gone
	computed => {
		create => <<'SQL',
CREATE TABLE computed (gone int, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	a int, twice int GENERATED ALWAYS AS (a * 2) STORED,
	other int GENERATED BY DEFAULT AS IDENTITY);
ALTER TABLE computed DROP gone;
SQL
		changes => [
			'INSERT INTO computed (a) SELECT :A + i FROM generate_series(1, 1 + :B % 5) i',
			'INSERT INTO computed (id, a, other) OVERRIDING SYSTEM VALUE VALUES (:A % 10 - 20, :B, :C)',
			'UPDATE computed SET a = a # :A WHERE id % 4 = :B % 4',
			'UPDATE computed SET other = -other, a = :B WHERE id = :A % 10 - 20',
			'DELETE FROM computed WHERE id % 5 = :A % 5',
		]
	},

	# a computed key
	computed_key => {
		create => 'CREATE TABLE computed_key (k int GENERATED ALWAYS AS (a * 10 + 1) STORED PRIMARY KEY, a int, t text)',
		changes => [
			'INSERT INTO computed_key (a, t) VALUES (:A % 10, :T)',
			'UPDATE computed_key SET a = (a + 10) % 20 WHERE a = :A % 20',
			'UPDATE computed_key SET t = :T WHERE a = :A % 10',
			'DELETE FROM computed_key WHERE a = :A % 20',
		]
	},

	# the slave's table is another one
	other_layout => {
		create => <<'SQL',
CREATE TABLE other_layout (id int PRIMARY KEY, a int, b smallint UNIQUE, c int,
	d int, e varchar(30), f date);
SQL
		slave => <<'SQL',
CREATE TABLE other_layout (extra text NOT NULL DEFAULT 'here', e text,
	gone int, d text, c numeric, b bigint UNIQUE, a bigint,
	f timestamp, sum bigint GENERATED ALWAYS AS (a + b) STORED, id bigint PRIMARY KEY);
ALTER TABLE other_layout DROP gone;
SQL
		columns => 'id, a, b, c, d, e, f::date',
		changes => [
			'INSERT INTO other_layout SELECT i, :A, i * 10, :C, :A, left(:T, 30), date \'2020-01-01\' + :B % 1000 FROM generate_series(:B % 20, :B % 20 + :C % 4) i ON CONFLICT DO NOTHING',
			'UPDATE other_layout SET a = a + 1, d = -d WHERE id % 3 = :A % 3',
			'UPDATE other_layout SET c = NULL, e = left(:T, 30) WHERE id = :A % 20',
			'UPDATE other_layout SET b = NULL WHERE id = :A % 20; UPDATE other_layout SET b = :A % 20 * 10 WHERE id = :B % 20 AND NOT EXISTS (SELECT FROM other_layout WHERE b = :A % 20 * 10)',
			'UPDATE other_layout SET id = -id WHERE id = :A % 20',
			'UPDATE other_layout SET f = f + 1 WHERE id % 2 = :A % 2',
			'DELETE FROM other_layout WHERE id = :A % 20',
		]
	},

	# even the key has another type there
	key_as_text => {
		create  => 'CREATE TABLE key_as_text (id int PRIMARY KEY, n int)',
		slave   => 'CREATE TABLE key_as_text (n int, id text PRIMARY KEY)',
		changes => [
			'INSERT INTO key_as_text SELECT i, :B FROM generate_series(:A % 20, :A % 20 + :B % 4) i ON CONFLICT DO NOTHING',
			'UPDATE key_as_text SET n = n + 1 WHERE id % 3 = :A % 3',
			'UPDATE key_as_text SET id = -id WHERE id = :A % 20',
			'DELETE FROM key_as_text WHERE abs(id) = :A % 20',
		]
	},
	key_as_numeric => {
		create  => 'CREATE TABLE key_as_numeric (id int, b text, n int, PRIMARY KEY (id, b))',
		slave   => 'CREATE TABLE key_as_numeric (id numeric, b varchar, n bigint, PRIMARY KEY (b, id))',
		changes => [
			'INSERT INTO key_as_numeric SELECT i, coalesce(:T, \'no\'), :B FROM generate_series(:A % 20, :A % 20 + :B % 4) i ON CONFLICT DO NOTHING',
			'UPDATE key_as_numeric SET n = n + 1 WHERE id % 3 = :A % 3',
			'UPDATE key_as_numeric SET id = -id WHERE id = :A % 20',
			'UPDATE key_as_numeric SET b = :U WHERE id = :A % 20 AND b = :T',
			'DELETE FROM key_as_numeric WHERE abs(id) = :A % 20',
		]
	},

	# the slave's table is in parts, between which rows move
	parted => {
		create => 'CREATE TABLE parted (id int, region text, n int, PRIMARY KEY (id, region))',
		slave  => <<'SQL',
CREATE TABLE parted (id int, region text, n int, PRIMARY KEY (id, region))
	PARTITION BY LIST (region);
CREATE TABLE parted_ab PARTITION OF parted FOR VALUES IN ('a', 'b')
	PARTITION BY RANGE (id);
CREATE TABLE parted_ab1 PARTITION OF parted_ab FOR VALUES FROM (MINVALUE) TO (10);
CREATE TABLE parted_ab2 PARTITION OF parted_ab FOR VALUES FROM (10) TO (MAXVALUE);
CREATE TABLE parted_other (gone int, n int, region text NOT NULL, id int NOT NULL);
ALTER TABLE parted_other DROP gone;
ALTER TABLE parted ATTACH PARTITION parted_other DEFAULT;
SQL
		changes => [
			'INSERT INTO parted SELECT i, chr(97 + (:A + i) % 5), :B FROM generate_series(:A % 20, :A % 20 + :C % 6) i ON CONFLICT DO NOTHING',
			'UPDATE parted SET n = n + 1 WHERE id % 3 = :A % 3',
			'UPDATE parted SET region = chr(97 + :A % 5) WHERE id = :B % 20 AND region = chr(97 + :C % 5)',
			'UPDATE parted SET id = (id + 10) % 20, n = NULL WHERE id = :A % 20',
			'UPDATE parted SET id = 25 - id WHERE region = chr(97 + :A % 5) AND id = :B % 20',
			'DELETE FROM parted WHERE id = :A % 25',
		]
	},
	hashed => {
		create => 'CREATE TABLE hashed (id int PRIMARY KEY, n int, a text)',
		slave  => <<'SQL',
CREATE TABLE hashed (a text, id int PRIMARY KEY, n int) PARTITION BY HASH (id);
CREATE TABLE hashed0 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE hashed1 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE hashed2 PARTITION OF hashed FOR VALUES WITH (MODULUS 3, REMAINDER 2);
SQL
		changes => [
			'INSERT INTO hashed SELECT i, :B, :T FROM generate_series(:A % 50, :A % 50 + :C % 20) i ON CONFLICT DO NOTHING',
			'UPDATE hashed SET n = n + 1 WHERE id % 3 = :A % 3',
			'UPDATE hashed SET id = (id + 50) % 100, a = :T WHERE id = :A % 100',
			'UPDATE hashed SET id = id + 1000; UPDATE hashed SET id = (id - 999) % 200 WHERE id >= 1000',
			'DELETE FROM hashed WHERE id % 10 = :A % 10',
		]
	},

	# what one change does to the master's other tables by foreign keys, is
	# told change by change
	parent => {
		create => <<'SQL',
CREATE TABLE parent (id int PRIMARY KEY, a text);
CREATE TABLE child (id int PRIMARY KEY,
	parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, n int);
CREATE TABLE grandchild (id int PRIMARY KEY,
	child int REFERENCES child ON DELETE SET NULL ON UPDATE CASCADE);
SQL
		logged  => [qw(parent child grandchild)],
		changes => [
			'INSERT INTO parent VALUES (:A % 10, :T); INSERT INTO child SELECT :A % 10 * 10 + i, :A % 10, :B FROM generate_series(0, :B % 5) i ON CONFLICT DO NOTHING',
			'INSERT INTO grandchild SELECT id, id FROM child WHERE id % 5 = :A % 5 ON CONFLICT DO NOTHING',
			'INSERT INTO child VALUES (:A % 100, :B % 10, :C)',
			'UPDATE parent SET id = :A % 10, a = :T WHERE id = :B % 10',
			'UPDATE child SET id = id + 1000 WHERE id % 7 = :A % 7 AND id < 1000',
			'UPDATE child SET parent = :A % 10 WHERE id % 10 = :B % 10',
			'UPDATE child SET n = n + 1 WHERE parent = :A % 10',
			'DELETE FROM parent WHERE id = :A % 10',
			'DELETE FROM child WHERE id % 9 = :A % 9',
			'DELETE FROM grandchild WHERE id % 5 = :A % 5',
			'DELETE FROM grandchild WHERE id % 5 = :A % 5; DELETE FROM child WHERE id > 1000; DELETE FROM parent WHERE id = :B % 10',
		]
	},

	# nothing may overlap, at any time
	booked => {
		create => <<'SQL',
CREATE TABLE booked (id int PRIMARY KEY, during int4range, a text,
	EXCLUDE USING gist (during WITH &&));
SQL
		changes => [
			'INSERT INTO booked VALUES (:A % 10, int4range(:B % 10, :B % 10 + 1 + :C % 4), :T)',
			'UPDATE booked SET during = int4range(:A % 10, :A % 10 + 1 + :C % 4) WHERE id = :B % 10',
			'UPDATE booked SET during = int4range(lower(during), lower(during) + 1)',
			# swapped through an empty one
			q(UPDATE booked SET during = 'empty' WHERE id = :A % 10; UPDATE booked SET during = int4range(:C % 10, :C % 10 + 2) WHERE id = :B % 10),
			'UPDATE booked SET a = :T WHERE id = :A % 10',
			'UPDATE booked SET id = (id + 10) % 20 WHERE id = :A % 20',
			'DELETE FROM booked WHERE id = :A % 20',
			'DELETE FROM booked WHERE during && int4range(:A % 10, :A % 10 + 2); INSERT INTO booked VALUES (:B % 10, int4range(:A % 10, :A % 10 + 2))',
		]
	},

	# a border that rows cross, also while they get another key, take a unique
	# value, or are changed again by a trigger before the log hears of it
	filtered => {
		create => 'CREATE TABLE filtered (id int PRIMARY KEY, u int UNIQUE, n int, a text)',
		also_on_master => <<'SQL',
CREATE FUNCTION stir() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.n % 7 = 3 THEN
		UPDATE filtered SET n = n + 1 WHERE id = NEW.id;
	ELSIF NEW.n % 11 = 5 THEN
		DELETE FROM filtered WHERE id = NEW.id;
		INSERT INTO filtered VALUES (NEW.id, NEW.u, NEW.n + 2, 'again');
	END IF;
	RETURN NULL;
END
$$;
CREATE TRIGGER "!a" AFTER INSERT OR UPDATE ON filtered FOR EACH ROW EXECUTE FUNCTION stir();
SQL
		filter  => 'n % 3 <> 0',
		changes => [
			'INSERT INTO filtered SELECT i, i * 10, :B + i, :T FROM generate_series(:A % 20, :A % 20 + :C % 6) i ON CONFLICT DO NOTHING',
			'UPDATE filtered SET n = n + 1 WHERE id % 4 = :A % 4',
			'UPDATE filtered SET n = :B, a = :T WHERE id = :A % 20',
			'UPDATE filtered SET n = NULL WHERE id = :A % 20',
			'UPDATE filtered SET a = :T WHERE id % 3 = :A % 3',
			'UPDATE filtered SET id = (id + 20) % 40, n = n + :B % 3 WHERE id = :A % 40 AND NOT EXISTS (SELECT FROM filtered WHERE id = (:A % 40 + 20) % 40)',
			'UPDATE filtered SET u = NULL, n = n + 1 WHERE id = :A % 20; UPDATE filtered SET u = :A % 20 * 10, n = n + 1 WHERE id = :B % 20 AND NOT EXISTS (SELECT FROM filtered WHERE u = :A % 20 * 10)',
			'DELETE FROM filtered WHERE id = :A % 40',
			'DELETE FROM filtered WHERE id = :A % 40; INSERT INTO filtered VALUES (:A % 40, NULL, :B, :U)',
		]
	},

	# tables that are emptied now and then
	emptied => {
		create => <<'SQL',
CREATE TABLE emptied (id int PRIMARY KEY, n int);
CREATE TABLE emptied_too (id int PRIMARY KEY, n int REFERENCES emptied);
SQL
		logged  => [qw(emptied emptied_too)],
		changes => [
			(
				'INSERT INTO emptied SELECT i, :B FROM generate_series(:A % 20, :A % 20 + :C % 20) i ON CONFLICT DO NOTHING',
				'UPDATE emptied SET n = n + 1 WHERE id % 3 = :A % 3',
				'INSERT INTO emptied_too SELECT id, id FROM emptied WHERE id % 4 = :A % 4 ON CONFLICT DO NOTHING',
				'DELETE FROM emptied WHERE id = :A % 30',
			) x 2,
			'TRUNCATE emptied CASCADE',
			'TRUNCATE emptied, emptied_too; INSERT INTO emptied VALUES (:A % 20, :B)',
			'TRUNCATE emptied_too',
		]
	},

	# a trigger on the slave that sees each change, when it happens and with
	# what is in other tables at that moment; the master has the same
	watched => {
		create => <<'SQL',
CREATE TABLE watched (id int PRIMARY KEY, a text);
CREATE TABLE heard (id serial PRIMARY KEY, what text);
CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.heard (what)
		SELECT concat_ws(' ', TG_OP, OLD, NEW, sum(n), max(a)) FROM public.hot;
	RETURN NULL;
END
$$;
CREATE TRIGGER hear AFTER INSERT OR DELETE ON watched
	FOR EACH ROW EXECUTE FUNCTION hear();
CREATE TRIGGER hear_update AFTER UPDATE ON watched
	FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION hear();
SQL
		also_on_slave => <<'SQL',
ALTER TABLE watched ENABLE ALWAYS TRIGGER hear, ENABLE ALWAYS TRIGGER hear_update;
SQL
		changes => [
			'INSERT INTO watched VALUES (:A % 6, :T)',
			'INSERT INTO watched VALUES (:A % 6, :T); UPDATE watched SET a = :U WHERE id = :A % 6; DELETE FROM watched WHERE id = :A % 6',
			'UPDATE watched SET a = :T WHERE id = :A % 6',
			'UPDATE watched SET a = :T WHERE id = :A % 6; UPDATE hot SET n = n + 1 WHERE id = :B % 5; UPDATE watched SET a = :U WHERE id = :A % 6',
			'UPDATE watched SET id = (id + 6) % 12 WHERE id = :A % 12',
			'DELETE FROM watched WHERE id = :A % 12',
		]
	});

# Keys of many types; some of these values are equal, but not the same.
my %key = (
	numeric     => [ qw(0 1 1.0 1.00 -1 -1.0 100 1e2 1e40 NaN 0.000 0.5 .50) ],
	text        => [ '', 'a', 'A', 'a ', q(it's), '"q"', 'back\\', "new\nline", 'ünïcödé', '日本', '🐘', 'NULL', '\\N', '{}', '%s' ],
	'text COLLATE caseless' => [ '', 'a', 'A', 'b', 'B', 'é', 'É', 'straße', 'STRASSE' ],
	'varchar(5)' => [ 'a', 'a ', 'b', 'é    ', '', 'abcde' ],
	'char(4)'   => [ 'a', 'a ', 'b', '', 'é', 'abcd' ],
	float8      => [ qw(0 -0 1 -1 NaN Infinity -Infinity 1e-300 0.1 1.5) ],
	uuid        => [ map { sprintf('%08d-0000-4000-8000-000000000000', $_) } (0 .. 7) ],
	timestamptz => [ '2024-03-31 01:59:59+01', '2024-03-31 02:59:59+02', 'infinity', '-infinity', '1900-01-01 00:00:00.000001+00', '4000-01-01 00:00+00 BC', '2024-10-27 02:30+02', '2024-10-27 02:30+01' ],
	interval    => [ '1 day', '24 hours', '1 month', '30 days', '0', '-1 day', '36:00', '1 day 12:00' ],
	bytea       => [ '', '\\x00', '\\x0000', '\\xff', '\\x5c' ],
	jsonb       => [ '1', '1.0', '1.00', '"1"', '{"a": 1}', '{"a": 1.0}', '[]', 'null' ],
	'int[]'     => [ '{}', '{1,2}', '[0:1]={1,2}', '{NULL}', '{{1},{2}}' ],
	bool        => [ 'true', 'false' ],
	inet        => [ '10.0.0.1', '10.0.0.1/32', '10.0.0.1/8', '::1' ],
	numrange    => [ 'empty', '[1,5)', '[1.0,5.00)', '(,)', '[1,1]' ]);

foreach my $type (sort keys %key)
{
	my ($word) = $type =~ /(caseless|\w+)$/ ? $1 : $type =~ /^(\w+)/;
	my $name    = "by_$word";
	my $values  = join(', ', map { "\$v\$$_\$v\$" } @{ $key{$type} });
	my $count   = @{ $key{$type} };
	my $bare    = $type =~ s/ COLLATE.*//r;
	my $value   = sub { "((ARRAY[$values]::text[])[1 + ($_[0]) % $count]::$bare)" };
	my ($a, $b, $c) = map { $value->($_) } (':A', ':B', ':C');
	$table{$name} = {
		create => "CREATE TABLE $name (k $type PRIMARY KEY, n int, v $type, t text)",
		needs_icu => scalar($type =~ /COLLATE/),
		changes   => [
			"INSERT INTO $name VALUES ($a, :B, $b, :T)",
			"INSERT INTO $name SELECT DISTINCT ON (1) " . $value->('i') . ", :B, $c FROM generate_series(:A, :A + 4) i ORDER BY 1, i ON CONFLICT DO NOTHING",
			"UPDATE $name SET k = $a, n = :C WHERE k = $b",
			"UPDATE $name SET k = $a WHERE k = $a",
			"UPDATE $name SET v = $a WHERE k = $b",
			"UPDATE $name SET n = n + 1, t = :T",
			"DELETE FROM $name WHERE k = $a",
			"DELETE FROM $name WHERE n % 3 = :A % 3",
			"DELETE FROM $name WHERE k = $a; INSERT INTO $name VALUES ($a, :C, $c, :U)",
			"UPDATE $name SET k = $a WHERE k = $b; INSERT INTO $name VALUES ($b, :C)",
		]
	};
}

# --- The servers ---

my $master = new_master('master', conf => "autovacuum = off\nlog_statement = none\nclient_min_messages = warning\n");
my %slave;
foreach my $mode ('auto', 'strict')
{
	my $name = $mode eq 'auto' ? 'sets' : 'strict';
	$master->safe_psql('postgres', "SELECT py_log_add_slave('$name')");
	$slave{$name} = new_slave(
		$master, $name,
		database => $name,
		conf     => "pyreplica.apply_mode = $mode\nlog_statement = none\n");
}
my @slaves = map { $slave{$_} } sort keys %slave;
wait_worker($_) for @slaves;

my $has_icu = $master->safe_psql('postgres',
	q(SELECT count(*) FROM pg_collation WHERE collprovider = 'i')) > 0;
my @tables = grep { $has_icu || !$table{$_}{needs_icu} } sort keys %table;

my %ddl;
foreach my $name (@tables)
{
	my $table = $table{$name};
	$ddl{master} .= "$table->{create};\n" . ($table->{also_on_master} // '');
	$ddl{slave} .= ($table->{slave} // $table->{create}) . ";\n"
	  . ($table->{also_on_slave} // '');
}
my $collation =
  $has_icu
  ? "CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);\n"
  : '';
$master->safe_psql('postgres', $collation . $ddl{master});
$_->safe_psql($_->name, $collation . $ddl{slave}) for @slaves;
log_table($master, @{ $table{$_}{logged} // [$_] }) for @tables;

# Of some tables the log tells what rows were before.
$master->safe_psql('postgres', "SELECT py_log_create_tg('$_', log_old => true)")
  for grep { rand() < 0.5 } map { @{ $table{$_}{logged} // [$_] } } @tables;
$master->safe_psql('postgres', "SELECT py_log_create_tg('$_', row_filter => '$table{$_}{filter}')")
  for grep { defined $table{$_}{filter} } @tables;

# A slave's ordinary triggers don't fire, and its foreign keys don't act.
$_->safe_psql($_->name, <<'SQL') for @slaves;
CREATE FUNCTION nobody_calls_it() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'an ordinary trigger was fired'; END $$;
CREATE TRIGGER never BEFORE INSERT OR UPDATE OR DELETE ON big
	FOR EACH ROW EXECUTE FUNCTION nobody_calls_it();
CREATE TRIGGER never_either AFTER INSERT OR UPDATE OR DELETE ON hot
	FOR EACH STATEMENT EXECUTE FUNCTION nobody_calls_it();
SQL

# --- Values, and those who make histories of the changes ---

$master->safe_psql('postgres', <<'SQL');
CREATE FUNCTION word(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT (ARRAY['', 'a', 'A', 'b ', 'it''s', '"q"', 'back\', E'new\nline',
		'ünïcödé', '日本', '🐘', 'NULL', '\N', '{}', '%s', E'\t', '$1', 'word',
		NULL])[1 + n % 19]
$$;
CREATE FUNCTION long_text(n int, is_compressible bool) RETURNS text
	LANGUAGE sql IMMUTABLE AS $$
	SELECT CASE WHEN n % 7 = 0 THEN word(n)
		WHEN is_compressible THEN repeat(md5(n::text), 70 + n % 30 * (n % 30))
		ELSE (SELECT string_agg(md5((n + i)::text), '')
				FROM generate_series(1, 70 + CASE WHEN n % 5 = 0 THEN n % 900 ELSE n % 90 END) i)
		END
$$;
-- one out of so many, but always the same one
CREATE FUNCTION chance(one_in int, VARIADIC x int[]) RETURNS bool
	LANGUAGE sql IMMUTABLE AS $$
	SELECT (hashtextextended(x::text, 0) & 1048575) % one_in = 0
$$;
CREATE FUNCTION typed_values(id int, n int) RETURNS typed LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	v	typed;
	h	int := hashtext(id || ' ' || n) & 1048575;
BEGIN
	v.id := id;
	v.a := (ARRAY['0', '0.0', '1', '1.00', 'NaN', '-1e-50', '123456789012345678901234567890.123'])[1 + h % 10];
	v.b := word(h);
	v.c := left(word(h + 1), 30);
	v.d := md5(h::text);
	v.e := timestamptz '2024-01-01 00:00+00' + h * interval '1 hour 1 microsecond';
	v.f := (ARRAY['null', '{}', '{"a": 1.0, "b": [1, 2]}', '"text"', '1.00'])[1 + h % 7];
	v.g := decode(to_hex(h) || CASE WHEN length(to_hex(h)) % 2 = 1 THEN '0' ELSE '' END, 'hex');
	v.h := (ARRAY['0', '-0', 'NaN', '-Infinity', '0.1', '1e-310'])[1 + h % 8];
	v.i := h % 3 = 0;
	v.j := left(word(h + 2), 5);
	v.k := (ARRAY['1 day', '24 hours', '1 mon', '30 days', '-00:00:00.000001'])[1 + h % 6];
	v.l := (ARRAY['{}', '{1,NULL,3}', '[0:1]={1,2}', '{{1},{2}}'])[1 + h % 5];
	v.m := ARRAY[word(h + 3), word(h + 4)];
	v.n := h / 7.0;
	v.o := h % 100;
	v.p := h * 1000000007::bigint;
	v.q := date '2000-02-28' + h % 1000;
	v.r := time '00:00' + h * interval '1.5 second';
	v.s := (ARRAY['10.0.0.1', '10.0.0.1/8', '::1'])[1 + h % 4];
	v.t := left((h % 512)::bit(9)::text, h % 10);
	v.u := int4range(h % 10, h % 10 + h % 3);
	v.v := chr(32 + h % 90);
	v.w := word(h + 5);
	v.x := h::numeric / 100;
	v.y := point(h, -h);
	v.z := to_tsvector('simple', word(h + 6));
	RETURN v;
END
$$;

CREATE FUNCTION dice(n int) RETURNS int LANGUAGE sql VOLATILE AS $$
	SELECT floor(random() * n)::int
$$;
CREATE TABLE change_to_choose (number serial PRIMARY KEY, place text, sql text);

-- A random change to one of those tables, with its numbers and words.
CREATE FUNCTION some_change(places text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	here	text := places[1 + dice(cardinality(places))];
	sqls	text[] := (SELECT array_agg(c.sql ORDER BY c.number)
						 FROM change_to_choose c WHERE c.place = here);
	sql		text := sqls[1 + dice(cardinality(sqls))];
BEGIN
	sql := replace(sql, ':A', dice(1000000)::text);
	sql := replace(sql, ':B', dice(1000000)::text);
	sql := replace(sql, ':C', dice(1000000)::text);
	sql := replace(sql, ':T', quote_nullable(word(dice(19))) || '::text');
	RETURN replace(sql, ':U', quote_nullable(word(dice(19))) || '::text');
END
$$;

-- Tries it in a savepoint; takes it back if it fails, or if told so.
CREATE FUNCTION attempt(sql text, take_back bool) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE sql;
	IF take_back THEN
		RAISE EXCEPTION USING ERRCODE = 'PY001';
	END IF;
	RETURN true;
EXCEPTION
	WHEN SQLSTATE 'PY001' THEN
		RETURN true;
	WHEN integrity_constraint_violation THEN
		RETURN false;
END
$$;

CREATE PROCEDURE history(seed float, rounds int, places text[]) LANGUAGE plpgsql AS $$
DECLARE
	sql		text;
BEGIN
	PERFORM setseed(seed);
	FOR round IN 1 .. rounds LOOP
		FOR xact IN 1 .. 1 + dice(4) LOOP
			FOR step IN 1 .. 1 + dice(1 + dice(7)) LOOP
				sql := some_change(places);
				CASE dice(10)
				WHEN 0 THEN
					PERFORM attempt(sql, true);
				WHEN 1 THEN
					PERFORM attempt(sql || ';' || some_change(places), dice(2) = 0);
				WHEN 2 THEN
					-- without a savepoint
					IF attempt(sql, true) THEN
						EXECUTE sql;
					END IF;
				ELSE
					PERFORM attempt(sql, false);
				END CASE;
			END LOOP;
			IF dice(15) > 0 AND attempt('SET CONSTRAINTS ALL IMMEDIATE', false) THEN
				COMMIT;
			ELSE
				ROLLBACK;
			END IF;
		END LOOP;
	END LOOP;
END
$$;
SQL

my $changes = '';
foreach my $name (@tables)
{
	$changes .= "INSERT INTO change_to_choose (place, sql) VALUES ('$name', \$sql\$$_\$sql\$);\n"
	  for @{ $table{$name}{changes} };
}
$master->safe_psql('postgres', $changes);

# --- What is compared ---

# A view rows_of_... for each table, with its rows as texts; and one that has a
# line for each table: how many rows, and a number made of all that is in them.
my %rows;
foreach my $name (@tables)
{
	foreach my $logged (@{ $table{$name}{logged} // [$name] })
	{
		my $columns = $table{$name}{columns} // $master->safe_psql('postgres',
			"SELECT string_agg(quote_ident(attname), ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '$logged'::regclass AND attnum > 0 AND NOT attisdropped"
		);
		$rows{$logged} = 'SELECT ROW('
		  . join(', ', map { "$_\::text" } split(/, */, $columns))
		  . ")::text AS line FROM $logged";
	}
}
$rows{heard} =
  q(SELECT row_number() OVER (ORDER BY id) || ' ' || what AS line FROM heard);
# Of the master's rows those count that are logged.
$master->safe_psql('postgres', join('',
	map { "CREATE VIEW rows_of_$_ AS $rows{$_}" . (defined $table{$_}{filter} ? " WHERE $table{$_}{filter}" : '') . ";\n" } sort keys %rows));
$_->safe_psql($_->name, join('', map { "CREATE VIEW rows_of_$_ AS $rows{$_};\n" } sort keys %rows)) for @slaves;
my $views = 'CREATE VIEW fingerprint AS '
  . join(
	' UNION ALL ',
	map {
		"SELECT '$_' AS name, count(*), coalesce(sum(hashtextextended(line, 0)::numeric), 0) AS sum FROM rows_of_$_"
	} sort keys %rows);
$master->safe_psql('postgres', $views);
$_->safe_psql($_->name, $views) for @slaves;

my %session = (master => $master->background_psql('postgres'));
$session{$_} = $slave{$_}->background_psql($_) for keys %slave;
$_->set_query_timer_restart() for values %session;

# The tables that differ on a slave, and what differs in them.
sub differences
{
	my ($name) = @_;
	my ($there, $here) = map {
		my $answer = $session{$_}->query_safe('SELECT * FROM fingerprint');
		+{ $answer =~ /^(\w+)\|(.*)$/mg }
	} ('master', $name);
	my $told  = '';
	foreach my $table (grep { $there->{$_} ne $here->{$_} } sort keys %$there)
	{
		my %side;
		my $lines = "SELECT replace(left(line, 300), E'\\n', '\\n') || ' ' || md5(line) FROM rows_of_$table";
		$side{$_}++ for split(/\n/, $session{master}->query_safe($lines));
		$side{$_}-- for split(/\n/, $session{$name}->query_safe($lines));
		my @differ = grep { $side{$_} } sort keys %side;
		$told .= "$table, " . scalar(@differ) . " rows differ:\n";
		$told .= '  only on ' . ($side{$_} > 0 ? 'the master: ' : "$name: ") . "$_\n"
		  for (@differ[ 0 .. min(19, $#differ) ]);
	}
	return $told;
}

# --- The histories ---

my @choice = grep { $table{$_} } split(' ', $ENV{PYREPLICA_TEST_TABLES} // '');
my ($batch, $done) = (0, 0);
my %seen;
while ($done < $rounds)
{
	$batch++;
	my $size = (1, 1, 2, 3, 5, 10, 20, 40, 80, 160)[ rand(10) ];
	$size = $rounds - $done if $size > $rounds - $done;
	my $is_held = rand() < 0.8;
	my $memory  = rand() < 0.3 ? '64kB' : '16MB';

	# Few tables, so that changes gather, or all of them.  Where a window
	# must be applied in order, it hides what sets would have done.
	my $share  = (0.1, 0.3, 1)[ rand(3) ];
	my @places = grep { rand() < $share } @tables;
	@places = grep { !/^(?:watched|booked|deferred|emptied)$/ } @places
	  if rand() < 0.6;
	@places = @choice if @choice;
	push @places, 'swap' unless @places;

	foreach my $node (@slaves)
	{
		$session{ $node->name }->query_safe(
			"ALTER SYSTEM SET pyreplica.window_memory = '$memory'");
		$session{ $node->name }->query_safe('SELECT pg_reload_conf()');
	}
	my $held = $is_held ? hold_back($master, @slaves) : [];
	$session{master}->query_safe(
		sprintf("CALL history(%.6f, %d, '{%s}')",
			rand(), $size, join(',', @places)));
	let_go($held);
	my @late = grep {
		$session{ $_->name }->query_safe(
			"SELECT pyreplica_wait(timeout => '60 s')") ne 't'
	} @slaves;

	if ($ENV{PYREPLICA_TEST_TAMPER} && $done + $size >= $rounds / 2)
	{
		$session{sets}->query_safe('UPDATE toasted SET n = n + 1 WHERE id = (SELECT min(id) FROM toasted)');
	}
	my $what = "batch $batch: $size rounds, "
	  . ($is_held ? 'held back' : 'running along')
	  . ", window_memory = $memory, tables "
	  . join(' ', @places);
	foreach my $name (sort keys %slave)
	{
		my $told = differences($name);
		my $state = $session{$name}->query_safe(
			q(SELECT conflicts || ' conflicts, ' || errors || ' errors' FROM pyreplica_status));
		next
		  if $told eq '' && $state eq '0 conflicts, 0 errors' && !@late;
		fail("$name is equal to the master");
		diag("PYREPLICA_TEST_SEED=$seed\n$what\n$state\n$told");
		diag($_) for (log_since($slave{$name}, 0) =~ /^.*(?:ERROR:|CONTEXT:|DETAIL:|conflict ).*$/mg)[ 0 .. 9 ];
	}
	BAIL_OUT("PYREPLICA_TEST_SEED=$seed repeats it")
	  unless Test::More->builder->is_passing;
	$done += $size;
}
pass("after each of $batch batches, $done rounds, both slaves are equal to the master");

# What only the slave has is as it made it itself.
is( $session{$_}->query_safe(
		q(SELECT count(*) FROM other_layout WHERE extra <> 'here' OR sum IS DISTINCT FROM a + b)),
	'0', "$_ has its own columns, too") for sort keys %slave;

# The test itself: much has happened.
foreach my $name (sort keys %slave)
{
	note("$name: "
		  . $session{$name}->query_safe(
			q(SELECT transactions || ' transactions, ' || rows || ' changes' FROM pyreplica_status)));
	cmp_ok(status_value($slave{$name}, 'transactions'),
		'>', $rounds, "$name has applied many transactions");
}
note("the master's rows are "
	  . $session{master}->query_safe(
		'SELECT md5(string_agg(f::text, \'\' ORDER BY name)) FROM fingerprint f'));
my $empty = $session{master}->query_safe(
	'SELECT count(*) FROM fingerprint WHERE count = 0');
cmp_ok($empty, '<', keys(%rows) / 2, 'most tables are not empty at the end');
$_->quit for values %session;

done_testing();
