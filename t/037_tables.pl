# Partitioned tables under the name of their root, whatever they are on the slave;
# partitions that come and go; inheritance, row security, rules; and tables that
# cannot be replicated.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $master = new_master('master');
my $slave = new_slave($master, 'slave', copy => 1);
wait_worker($slave);

sub sql
{
	my ($sql) = @_;
	return $master->safe_psql('postgres', $sql);
}

sub is_ready
{
	my (@tables) = @_;
	my $list = join(',', map { "'$_'" } @tables);
	return $slave->poll_query_until('postgres',
		"SELECT count(*) = " . scalar(@tables) . " FROM pyreplica_tables WHERE state = 'ready' AND tablename IN ($list)");
}

# Columns by name and in order, as partitions and tables may have them in any.
sub is_equal
{
	my ($table, $name, $columns) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$columns //= 'id, region, n, note';
	wait_caught_up($slave);
	return is_same_rows($master, $slave, "(SELECT $columns FROM $table)", $name);
}

sub conflicts
{
	return $slave->safe_psql('postgres', 'SELECT coalesce(sum(count), 0) FROM pyreplica_conflict_counts');
}

# Three tables, alike on the master.  One of the partitions has its columns in
# another order, and a hole.
my @parted = qw(to_plain to_other to_same);
foreach my $table (@parted)
{
	sql(<<"SQL");
CREATE TABLE $table (region text, id int, n int, note text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE ${table}_n PARTITION OF $table FOR VALUES IN ('north');
CREATE TABLE ${table}_s (gone int, note text, n int, id int NOT NULL, region text NOT NULL);
ALTER TABLE ${table}_s DROP gone;
ALTER TABLE $table ATTACH PARTITION ${table}_s FOR VALUES IN ('south');
CREATE TABLE ${table}_x PARTITION OF $table DEFAULT PARTITION BY RANGE (id);
CREATE TABLE ${table}_x1 PARTITION OF ${table}_x FOR VALUES FROM (MINVALUE) TO (1000);
CREATE TABLE ${table}_x2 PARTITION OF ${table}_x FOR VALUES FROM (1000) TO (MAXVALUE);
INSERT INTO $table SELECT (ARRAY['north', 'south', 'east', 'west'])[i % 4 + 1], i, i % 10, 'old ' || i FROM generate_series(1, 3000) i;
SQL
	is(sql("SELECT py_log_create_tg('$table', via_root => true, row_filter => 'n < 9')"),
		"created trigger on $table (region,id)", "$table is logged as a whole");
}
my $columns = 'region text, id int, n int, note text, PRIMARY KEY (region, id)';
$slave->safe_psql('postgres', <<"SQL");
CREATE TABLE to_plain (note text, own int DEFAULT 7, id int, n int, region text, PRIMARY KEY (id, region));
CREATE TABLE to_other ($columns) PARTITION BY HASH (id);
CREATE TABLE to_other_0 PARTITION OF to_other FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE to_other_1 PARTITION OF to_other FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE to_same ($columns) PARTITION BY LIST (region);
CREATE TABLE to_same_n PARTITION OF to_same FOR VALUES IN ('north');
CREATE TABLE to_same_s PARTITION OF to_same FOR VALUES IN ('south');
CREATE TABLE to_same_x PARTITION OF to_same DEFAULT;
SQL
ok(is_ready(@parted), 'the three are copied, under their own names');
is(sql('SELECT count(*) FROM py_log_tables'), '3', 'and no partition is by itself');
is(sql(q(SELECT bool_and(expected >= 0) FROM py_log_tables)), 't', 'for which statistics may be missing');
my $seen = 'id, region, n, note';
is_same_rows($master, $slave, "(SELECT $seen FROM $_ WHERE n < 9)", "$_ is copied") for @parted;

# Changes, with rows that move between partitions, and into and out of the filter.
my @changes = (
	q(INSERT INTO @ SELECT (ARRAY['north', 'south', 'east', 'west'])[i % 4 + 1], i, i % 10, 'new' FROM generate_series(5001, 5200) i),
	q(UPDATE @ SET n = n + 1 WHERE id % 7 = 0),
	q(UPDATE @ SET region = 'south' WHERE region = 'north' AND id % 3 = 0),
	q(UPDATE @ SET region = 'west', n = 1, note = 'moved' WHERE region = 'south' AND id % 5 = 0),
	q(UPDATE @ SET id = id + 100000 WHERE id % 11 = 0),
	q(DELETE FROM @ WHERE id % 13 = 0),
	q(BEGIN; UPDATE @ SET region = 'up' WHERE id = 100; UPDATE @ SET region = 'north' WHERE id = 100; UPDATE @ SET region = 'south', note = 'back' WHERE id = 100; COMMIT),
	q(INSERT INTO @_s (id, region, n, note) VALUES (9000, 'south', 1, 'into the partition itself')),
	q(BEGIN; DELETE FROM @ WHERE id = 9000; INSERT INTO @ VALUES ('east', 9000, 2, 'again'); COMMIT),
);
foreach my $mode ('auto', 'strict')
{
	set_conf($slave, "pyreplica.apply_mode = $mode");
	my $before = conflicts();
	foreach my $table (@parted)
	{
		my $gate = hold_back($master, $slave);
		foreach my $change (@changes)
		{
			(my $sql = $change) =~ s/\@/$table/g;
			sql($sql);
		}
		let_go($gate);
		is_equal("$table WHERE n < 9", "$mode: changes of $table");
		is($slave->safe_psql('postgres', "SELECT count(*) FROM $table WHERE n >= 9"), '0', "$mode: the filter holds in all partitions of $table");
		sql("DELETE FROM $table WHERE id > 4000; TRUNCATE ${table}_n");
	}
	is(conflicts(), $before, "$mode: without a conflict");
}
is_equal("$_ WHERE n < 9", "$_ after a partition was truncated") for @parted;
is(sql(q(SELECT count(*) FROM replica_log_sql WHERE tablename !~ '^(to_(plain|other|same)|pulse)$')), '0', 'no partition is named in the log');
set_conf($slave, 'pyreplica.apply_mode = auto');

# Rows that come with a partition, and go with it.
foreach my $table (@parted)
{
	my $before = conflicts();
	sql("ALTER TABLE $table DETACH PARTITION ${table}_s");
	is_equal("$table WHERE n < 9", "the rows of a partition that is detached are gone from $table");
	sql("INSERT INTO ${table}_s (id, region, n) VALUES (-1, 'south', 1); TRUNCATE ${table}_n");
	is_equal("$table WHERE n < 9", "what happens to it then is none of the table's business");
	sql(<<"SQL");
BEGIN;
INSERT INTO $table VALUES ('south', 77777, 1, 'in the default partition');
DELETE FROM $table WHERE id = 77777;
UPDATE ${table}_s SET note = 'outside';
ALTER TABLE $table ATTACH PARTITION ${table}_s FOR VALUES IN ('south');
UPDATE $table SET note = 'inside' WHERE id % 2 = 0;
COMMIT;
SQL
	is_equal("$table WHERE n < 9", "rows that are attached come to $table");
	sql("CREATE TABLE ${table}_z PARTITION OF $table FOR VALUES IN ('zenith'); INSERT INTO $table VALUES ('zenith', 1, 1)");
	is_equal("$table WHERE n < 9", "a new partition of $table");
	sql("TRUNCATE ${table}_z");
	is_equal("$table WHERE n < 9", "which can be truncated");
	sql("INSERT INTO $table VALUES ('zenith', 2, 1)");
	is(conflicts(), $before, "all of that without a conflict");
	my ($rc, $out, $err) = $master->psql('postgres', "DROP TABLE ${table}_z");
	like($err, qr/slaves are not told of the rows that were dropped with partition public\.${table}_z/, 'a partition that is dropped is warned of');
	wait_caught_up($slave);
	is($slave->safe_psql('postgres', "SELECT count(*) FROM pyreplica_verify('$table')"), '1', 'its row is still there');
	$slave->safe_psql('postgres', "SELECT pyreplica_resync('$table')");
	is_ready(@parted);
	is_equal("$table WHERE n < 9", 'until the table is resynced');
}

# The same on the slave: it changes nothing but where rows are.
$slave->safe_psql('postgres', <<'SQL');
BEGIN;
ALTER TABLE to_same DETACH PARTITION to_same_s;
CREATE TABLE to_same_s2 (LIKE to_same_s INCLUDING ALL);
INSERT INTO to_same_s2 SELECT * FROM to_same_s;
ALTER TABLE to_same ATTACH PARTITION to_same_s2 FOR VALUES IN ('south');
COMMIT;
SQL
sql(q(UPDATE to_same SET n = n % 5; DELETE FROM to_same WHERE id % 17 = 0));
is_equal('to_same', 'the slave has other partitions by now');

# What is wrong is found and mended by the root as well.
$slave->safe_psql('postgres', q(SET session_replication_role = replica; UPDATE to_other SET note = 'spoiled' WHERE id % 100 = 1; DELETE FROM to_other WHERE id % 100 = 2; UPDATE to_plain SET own = 8));
is($slave->safe_psql('postgres', q(SELECT count(*) > 10 FROM pyreplica_verify('to_other', repair => true))), 't', 'verify compares the whole');
is_equal('to_other WHERE n < 9', 'and repairs it');
$slave->safe_psql('postgres', q(UPDATE to_plain SET note = 'spoiled' WHERE id % 100 = 1; SELECT pyreplica_resync('to_plain')));
is_ready(@parted);
is_equal('to_plain WHERE n < 9', 'so does a resync');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM to_plain WHERE own = 7'), '0', 'which leaves alone what only the slave has');

# By itself, the partition is named.  Both can be changed into one another.
$slave->safe_psql('postgres', 'CREATE TABLE by_leaf_1 (id int PRIMARY KEY, a text); CREATE TABLE by_leaf_2 (id int PRIMARY KEY, a text); CREATE TABLE by_leaf (id int PRIMARY KEY, a text); CREATE TABLE by_leaf_3 (id int PRIMARY KEY, a text)');
sql(<<'SQL');
CREATE TABLE by_leaf (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
CREATE TABLE by_leaf_1 PARTITION OF by_leaf FOR VALUES FROM (0) TO (100);
INSERT INTO by_leaf SELECT i, 'a' FROM generate_series(0, 99) i;
SQL
is(sql(q(SELECT py_log_create_tg('by_leaf_1'))), 'created trigger on by_leaf_1 (id)', 'a partition can be logged alone');
is(sql(q(SELECT py_log_create_tg('by_leaf'))), 'created trigger on by_leaf (id)', 'or all of them, by themselves');
sql('CREATE TABLE by_leaf_2 PARTITION OF by_leaf FOR VALUES FROM (100) TO (200)');
sql(q(INSERT INTO by_leaf SELECT i, 'b' FROM generate_series(100, 149) i; UPDATE by_leaf SET id = id + 150 WHERE id = 5));
sql(q(CREATE TABLE by_leaf_3 (id int PRIMARY KEY, a text); INSERT INTO by_leaf_3 VALUES (200, 'was there'); ALTER TABLE by_leaf ATTACH PARTITION by_leaf_3 FOR VALUES FROM (200) TO (300)));
ok(is_ready(qw(by_leaf_1 by_leaf_2 by_leaf_3)), 'each is followed by its name');
is_equal($_, "$_", 'id, a') for qw(by_leaf_1 by_leaf_2 by_leaf_3);
is(sql(q(SELECT py_log_create_tg('by_leaf_2'))), ' table by_leaf_2 has the log trigger of public.by_leaf, of which it is a partition (passed over)', 'a partition with a trigger has one');
sql('TRUNCATE by_leaf_2');
is_equal($_, "$_ when one of them is truncated", 'id, a') for qw(by_leaf_1 by_leaf_2);
sql('TRUNCATE by_leaf; INSERT INTO by_leaf VALUES (1), (101)');
is_equal($_, "$_ when all are", 'id, a') for qw(by_leaf_1 by_leaf_2 by_leaf_3);
is(sql(q(SELECT py_log_create_tg('by_leaf', via_root => true))), 'created trigger on by_leaf (id)', 'now as a whole');
ok(is_ready('by_leaf'), 'which is a table of its own to the slave');
sql(q(INSERT INTO by_leaf VALUES (2, 'x'), (102, 'y'); TRUNCATE by_leaf_2));
is_equal('by_leaf', 'with all rows', 'id, a');
is(sql(q(SELECT py_log_create_tg('by_leaf'))), 'created trigger on by_leaf (id)', 'said once more, it stays so');
is(sql(q(SELECT tablename FROM py_log_tables WHERE tablename ~ '^by_leaf')), 'by_leaf', 'in the list as well');
sql('ALTER TABLE by_leaf DETACH PARTITION by_leaf_1 CONCURRENTLY');
is_equal('by_leaf', 'without a partition that was detached while others went on', 'id, a');
is(sql(q(SELECT py_log_drop_tg('by_leaf'))), 'dropped trigger on by_leaf', 'and its end');
is(sql(q(SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE tgname ~ 'py_log' AND relname ~ '^by_leaf')), '0', 'leaves nothing behind');

# Partitions that come in other ways.
$slave->safe_psql('postgres', 'CREATE TABLE comers (id int PRIMARY KEY, a text)');
sql(<<'SQL');
CREATE TABLE comers (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
CREATE TABLE comers_0 PARTITION OF comers FOR VALUES FROM (0) TO (100);
INSERT INTO comers SELECT i, 'first' FROM generate_series(1, 9) i;
SELECT py_log_create_tg('comers', via_root => true);
SQL
ok(is_ready('comers'), 'one more as a whole');
sql(<<'SQL');
CREATE SCHEMA side CREATE TABLE comers_1 PARTITION OF public.comers FOR VALUES FROM (100) TO (200);
INSERT INTO comers SELECT i, 'with a schema' FROM generate_series(100, 109) i;
ALTER TABLE comers ALTER a SET DEFAULT 'x';
SQL
is_equal('comers', 'a partition that is created with its schema is not told of twice', 'id, a');
sql('TRUNCATE side.comers_1; INSERT INTO comers SELECT i, \'new\' FROM generate_series(105, 109) i');
is_equal('comers', 'and can be truncated', 'id, a');
like(($master->psql('postgres', 'DROP SCHEMA side CASCADE'))[2], qr/slaves are not told of the rows that were dropped with partition side\.comers_1/, 'if it goes with its schema there is a warning');
sql('CREATE TABLE comers_2 (id int PRIMARY KEY, a text)');
log_table($master, 'comers_2');
sql(q(INSERT INTO comers_2 VALUES (200, 'was logged')));
like(($master->psql('postgres', 'ALTER TABLE comers ATTACH PARTITION comers_2 FOR VALUES FROM (200) TO (300)'))[2], qr/"!py_log_replica_tg" for relation "comers_2" already exists/, 'a table with a log trigger cannot be attached');
sql('DROP TRIGGER "!py_log_replica_tg" ON comers_2; ALTER TABLE comers ATTACH PARTITION comers_2 FOR VALUES FROM (200) TO (300)');
is_equal('comers WHERE id >= 200', 'one that still has the other trigger can', 'id, a');
my ($hushed, $nothing, $told) = $master->psql('postgres', <<'SQL');
SET session_replication_role = replica;
CREATE TABLE comers_3 PARTITION OF comers FOR VALUES FROM (300) TO (400);
INSERT INTO comers VALUES (300, 'unheard');
ALTER TABLE comers DETACH PARTITION comers_0;
SET session_replication_role = origin;
INSERT INTO comers VALUES (301, 'heard');
ALTER TABLE comers ALTER a SET DEFAULT 'y';
TRUNCATE comers_3;
SQL
like($told, qr/have not been told of the rows that partition public\.comers_3 had/, 'what was not noticed when it came is warned of later');
like($told, qr/have not been told of the rows that went with partition public\.comers_0/, 'or when it went');
is_equal('comers WHERE id >= 200', 'but rows are logged once', 'id, a');
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('comers')));
ok(is_ready('comers'), 'a resync');
is_equal('comers', 'makes it right', 'id, a');
is(status_value($slave, 'last_error'), '', 'all without an error');

# While the table is read for a slave, no partition is attached; and the other way round.
sql('CREATE TABLE comers_4 (id int PRIMARY KEY, a text); INSERT INTO comers_4 VALUES (400, \'late\')');
my $reader = $master->background_psql('postgres');
$reader->query_safe('BEGIN; LOCK TABLE replica_partition_lock IN SHARE MODE');
like(($master->psql('postgres', q(SET lock_timeout = '50ms'; ALTER TABLE comers ATTACH PARTITION comers_4 FOR VALUES FROM (400) TO (500))))[2], qr/canceling statement due to lock timeout/, 'who attaches a partition waits for who reads the table');
$reader->query_safe('COMMIT; BEGIN; ALTER TABLE comers ATTACH PARTITION comers_4 FOR VALUES FROM (400) TO (500)');
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('comers')));
ok(stays_true(sub { $slave->safe_psql('postgres', q(SELECT state FROM pyreplica_tables WHERE tablename = 'comers')) ne 'ready' }, 1), 'and who reads waits for who attaches');
$reader->query_safe('COMMIT');
$reader->quit;
ok(is_ready('comers'), 'but no longer');
is_equal('comers', 'rows of such a partition come once', 'id, a');

# Whoever owns a partitioned table can go on making partitions of it.
on_both($master, $slave, 'CREATE ROLE tenant; GRANT ALL ON SCHEMA public TO tenant');
$slave->safe_psql('postgres', 'CREATE TABLE rented (id int PRIMARY KEY, a text)');
sql('SET ROLE tenant; CREATE TABLE rented (id int PRIMARY KEY, a text) PARTITION BY RANGE (id)');
log_table($master, 'rented');
sql(q(SELECT py_log_create_tg('rented', via_root => true)));
sql(<<'SQL');
SET ROLE tenant;
CREATE TABLE rented_1 PARTITION OF rented FOR VALUES FROM (0) TO (10);
CREATE TABLE rented_2 (id int PRIMARY KEY, a text);
INSERT INTO rented_2 VALUES (10, 'attached'), (11, 'attached');
INSERT INTO rented VALUES (1, 'created');
ALTER TABLE rented ATTACH PARTITION rented_2 FOR VALUES FROM (10) TO (20);
INSERT INTO rented VALUES (2, 'truncated');
TRUNCATE rented_1;
ALTER TABLE rented DETACH PARTITION rented_1;
DROP TABLE rented_1;
SQL
ok(is_ready('rented'), 'a table of somebody who is no superuser');
is_equal('rented', 'and its partitions', 'id, a');

# All partitions have the key of the whole, whatever is unique in one of them alone.
$slave->safe_psql('postgres', 'CREATE TABLE rekeyed (id int, part int, n int, PRIMARY KEY (id, part, n))');
sql(<<'SQL');
CREATE TABLE rekeyed (id int NOT NULL, part int NOT NULL, n int NOT NULL, CONSTRAINT k UNIQUE (id, part)) PARTITION BY LIST (part);
CREATE TABLE rekeyed_1 PARTITION OF rekeyed FOR VALUES IN (1);
CREATE TABLE rekeyed_2 (n int NOT NULL, part int NOT NULL, id int NOT NULL);
ALTER TABLE rekeyed ATTACH PARTITION rekeyed_2 FOR VALUES IN (2);
SELECT py_log_create_tg('rekeyed', via_root => true, key => '{id,part}');
ALTER TABLE rekeyed DROP CONSTRAINT k, ADD PRIMARY KEY (id, part, n);
CREATE UNIQUE INDEX ON rekeyed_1 (id, part);
INSERT INTO rekeyed VALUES (1, 1, 1), (1, 2, 1), (1, 2, 2);
DELETE FROM rekeyed WHERE n = 1;
SQL
is(sql(q(SELECT string_agg(statement, '; ' ORDER BY statement) FROM replica_log_sql WHERE tablename = 'rekeyed' AND operation = 'DELETE')),
	q(DELETE FROM public.rekeyed WHERE id='1' AND part='1' AND n='1'; DELETE FROM public.rekeyed WHERE id='1' AND part='2' AND n='1'), 'in the log there is one key');
ok(is_ready('rekeyed'), 'by which it is copied');
is_equal('rekeyed', 'and followed', 'id, part, n');

# A key that is unique in each partition only is none of the whole.
sql(<<'SQL');
CREATE TABLE twice (id int NOT NULL, part int NOT NULL, a text) PARTITION BY LIST (part);
CREATE TABLE twice_1 PARTITION OF twice (PRIMARY KEY (id)) FOR VALUES IN (1);
CREATE TABLE twice_2 PARTITION OF twice (PRIMARY KEY (id)) FOR VALUES IN (2);
SQL
is(sql(q(SELECT py_log_create_tg('twice', via_root => true))), ' table twice has no pk constraint (couldn\'t be replicated)!', 'keys of partitions are not keys of the whole');
like(($master->psql('postgres', q(SELECT py_log_create_tg('twice', via_root => true, key => '{id}'))))[2], qr/no unique index makes \(id\) a key of table public\.twice/, 'nor by name');

# Row security, on either side, is no filter: the copy fails if it would be one.
on_both($master, $slave, <<'SQL');
CREATE ROLE owner;
CREATE TABLE secured (id int PRIMARY KEY, a text);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY odd ON secured USING (id % 2 = 1);
ALTER TABLE secured OWNER TO owner;
SQL
sql(q(INSERT INTO secured SELECT i, 'a' FROM generate_series(1, 100) i));
log_table($master, 'secured');
ok(is_ready('secured'), 'a table with row security is copied');
is_equal('secured', 'as a whole', 'id, a');
sql(q(UPDATE secured SET a = 'b' WHERE id > 50; DELETE FROM secured WHERE id < 10; INSERT INTO secured VALUES (1000, 'c')));
is_equal('secured', 'and followed, though its owner there would not see all rows', 'id, a');
sql(q(CREATE ROLE copier LOGIN; SELECT py_log_grant('copier'); GRANT SELECT ON ALL TABLES IN SCHEMA public TO copier));
$slave->safe_psql('postgres', q(UPDATE secured SET a = 'spoiled' WHERE id = 20));
my $port = $master->port;
my $host = $master->host;
set_conf($slave, "pyreplica.master_conninfo = 'host=$host port=$port dbname=postgres user=copier'");
poll_until(sub { sql(q(SELECT count(*) FROM pg_stat_activity WHERE usename = 'copier' AND application_name = 'pyreplica postgres')) eq '1' }) or BAIL_OUT('no connection as copier');
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('secured')));
ok( $slave->poll_query_until('postgres',
		q(SELECT last_error ~ 'row-level security' FROM pyreplica_tables WHERE tablename = 'secured')),
	'a role that does not see all rows cannot copy, and is told so');
sql('ALTER ROLE copier BYPASSRLS');
ok(is_ready('secured'), 'one that does can');
is_equal('secured', 'and it is equal again', 'id, a');
set_conf($slave, conninfo_setting($master));

# Inheritance: each table has its own rows.  The parent is not logged, or the child is
# not.
on_both($master, $slave, <<'SQL');
CREATE TABLE mother (id int PRIMARY KEY, a text);
CREATE TABLE logged (PRIMARY KEY (id)) INHERITS (mother);
CREATE TABLE unlogged (PRIMARY KEY (id)) INHERITS (mother);
CREATE TABLE quiet (id int PRIMARY KEY, a text);
CREATE TABLE told (PRIMARY KEY (id)) INHERITS (quiet);
SQL
log_table($master, qw(mother logged told));
ok(is_ready(qw(mother logged told)), 'parents and children');
$slave->safe_psql('postgres', q(INSERT INTO unlogged VALUES (1, 'here'); INSERT INTO quiet VALUES (1, 'here')));
foreach my $mode ('auto', 'strict')
{
	set_conf($slave, "pyreplica.apply_mode = $mode");
	my $gate = hold_back($master, $slave);
	sql(<<'SQL');
INSERT INTO mother SELECT i, 'mother' FROM generate_series(1, 20) i;
INSERT INTO logged SELECT i, 'logged' FROM generate_series(1, 20) i;
INSERT INTO unlogged SELECT i, 'unlogged' FROM generate_series(1, 20) i;
INSERT INTO quiet SELECT i, 'quiet' FROM generate_series(1, 20) i;
INSERT INTO told SELECT i, 'told' FROM generate_series(1, 20) i;
UPDATE mother SET a = a || '.' WHERE id < 10;
DELETE FROM ONLY mother WHERE id < 5;
DELETE FROM quiet WHERE id < 3;
TRUNCATE ONLY mother;
INSERT INTO mother VALUES (100, 'last');
SQL
	let_go($gate);
	is_equal($_, "$mode: $_", 'id, a') for ('ONLY mother', 'logged', 'told');
	is($slave->safe_psql('postgres', q(SELECT string_agg(a, ',') FROM (SELECT a FROM unlogged UNION ALL SELECT a FROM ONLY quiet) x)), 'here,here', "$mode: what is not logged is left alone");
	sql('TRUNCATE mother, quiet');
}
is_equal('logged', 'TRUNCATE goes to the children as well', 'id, a');

# Partitions that cannot be.
sql('CREATE TABLE mixed (id int) PARTITION BY RANGE (id); CREATE UNLOGGED TABLE mixed_1 PARTITION OF mixed FOR VALUES FROM (0) TO (10)');
is(sql(q(SELECT py_log_create_tg('mixed', via_root => true, key => '{*}'))), q( partition public.mixed_1 of table mixed is unlogged, a crash empties it (couldn't be replicated; ALTER TABLE public.mixed_1 SET LOGGED)!), 'an unlogged partition');
sql('DROP TABLE mixed_1; CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing; CREATE FOREIGN TABLE mixed_2 PARTITION OF mixed FOR VALUES FROM (10) TO (20) SERVER nowhere');
is(sql(q(SELECT py_log_create_tg('mixed', via_root => true, key => '{*}'))), q( partition public.mixed_2 of table mixed is a foreign table (couldn't be replicated)!), 'a foreign one');
sql('ALTER TABLE mixed DETACH PARTITION mixed_2');
is(sql(q(SELECT py_log_create_tg('mixed', via_root => true, key => '{*}'))), 'created trigger on mixed (*)', 'the others');
like(($master->psql('postgres', 'CREATE UNLOGGED TABLE mixed_1 PARTITION OF mixed FOR VALUES FROM (0) TO (10)'))[2], qr/partition public\.mixed_1 of table public\.mixed, which is replicated, is unlogged/, 'one that comes is warned of');
like(($master->psql('postgres', 'ALTER TABLE mixed ATTACH PARTITION mixed_2 FOR VALUES FROM (10) TO (20)'))[2], qr/is a foreign table, of whose rows slaves have not been told/, 'and so is the other');
sql(q(SELECT py_log_drop_tg('mixed')));

# What cannot be replicated says so, and does not keep the others from it.
sql(<<'SQL');
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
CREATE VIEW glance AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW photo AS SELECT 1 AS id;
CREATE FOREIGN DATA WRAPPER none;
CREATE SERVER far FOREIGN DATA WRAPPER none;
CREATE FOREIGN TABLE away (id int) SERVER far;
CREATE TABLE fine (id int PRIMARY KEY);
CREATE TABLE keyless (id int);
SQL
is(sql(q(CREATE TEMP TABLE brief (id int PRIMARY KEY);
	SELECT py_log_create_tg(n.nspname::text, c.relname::text) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
	 WHERE relname IN ('away', 'brief', 'fine', 'fleeting', 'glance', 'keyless', 'photo') ORDER BY relname)),
	<<'ANSWERS' =~ s/\n$//r, 'over all kinds of tables');
 foreign table away has no rows of its own (couldn't be replicated)!
 table brief is temporary (couldn't be replicated)!
created trigger on fine (id)
 table fleeting is unlogged, a crash empties it (couldn't be replicated; ALTER TABLE public.fleeting SET LOGGED)!
 view glance has no rows of its own (couldn't be replicated)!
 table keyless has no pk constraint (couldn't be replicated)!
 materialized view photo has no rows of its own (couldn't be replicated)!
ANSWERS
sql('ALTER TABLE fleeting SET LOGGED');
is(sql(q(SELECT py_log_create_tg('fleeting'))), 'created trigger on fleeting (id)', 'the way out');
$slave->safe_psql('postgres', 'CREATE TABLE fleeting (id int PRIMARY KEY)');
sql('INSERT INTO fleeting SELECT generate_series(1, 10); ALTER TABLE fleeting SET UNLOGGED; INSERT INTO fleeting VALUES (11)');
ok(is_ready('fleeting'), 'a table that is unlogged later goes on');
is_equal('fleeting', 'as long as there is no crash', 'id');
like(sql(q(SELECT py_log_create_tg('fleeting'))), qr/is unlogged/, 'but is told of');

done_testing();
