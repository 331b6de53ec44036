# Tables without a key: rows are told by all of their columns, and of equal ones
# one is as good as another.  Nothing is lost, nothing doubled.

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
	my ($tables) = @_;
	return $slave->poll_query_until('postgres',
		"SELECT count(*) = $tables FROM pyreplica_tables WHERE state = 'ready'");
}

# As bags: content sorts the rows as they are written.
sub is_equal
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($slave);
	return is(content($slave, $table), content($master, $table), $name);
}

sub conflicts
{
	return $slave->safe_psql('postgres', q(SELECT string_agg(kind || ' ' || count, ', ' ORDER BY kind) FROM pyreplica_conflict_counts WHERE schemaname = 'public'));
}

# What has no key is refused, unless one says that there is none.
on_both($master, $slave, <<'SQL');
CREATE TABLE bag (a int, b text, j json, p point, x xml, n numeric, f float8, d bytea,
	twice int GENERATED ALWAYS AS (a * 2) STORED);
CREATE TABLE big (a int, b text);
SQL
is(sql(q(SELECT py_log_create_tg('bag'))), ' table bag has no pk constraint (couldn\'t be replicated)!', 'without a key');
my $rows = <<'SQL';
INSERT INTO bag (a, b, j, p, x, n, f) VALUES
	(1, 'one', '{"a": 1}', '(1,2)', '<a/>', 1.0, 1), (1, 'one', '{"a": 1}', '(1,2)', '<a/>', 1.0, 1),
	(1, 'one', '{"a":1}', '(1,2)', '<a/>', 1.0, 1), (1, 'one', '{"a": 1}', '(1,2)', '<a/>', 1.00, 1),
	(NULL, NULL, NULL, NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL, NULL, NULL, NULL),
	(NULL, '', NULL, NULL, NULL, 'NaN', 'NaN'), (NULL, '', NULL, NULL, NULL, 0, '-0'), (NULL, '', NULL, NULL, NULL, 0, '0');
SQL
sql($rows);
is(sql(q(SELECT py_log_create_tg('bag', key => '{*}'))), 'created trigger on bag (*)', 'all columns are the key');
is(sql(q(SELECT py_log_create_tg('bag'))), 'created trigger on bag (*)', 'and stay it');
ok(is_ready(1), 'it is copied');
is_equal('bag', 'with its equal rows');

my @stories = (
	'one of equal rows goes' => q(DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE j::text = '{"a": 1}' AND n::text = '1.0')),
	'one of equal rows of nulls changes' => q(UPDATE bag SET b = 'not null' WHERE ctid = (SELECT min(ctid) FROM bag WHERE b IS NULL)),
	'1.00 is not 1.0' => q(DELETE FROM bag WHERE n::text = '1.00'),
	'-0 is not 0' => q(UPDATE bag SET b = 'minus' WHERE f::text = '-0'),
	'rows are added that are there' => q(INSERT INTO bag (a, b) SELECT 5, 'five' FROM generate_series(1, 20)),
	'a row goes back and forth' => q(BEGIN; UPDATE bag SET a = 6 WHERE ctid IN (SELECT ctid FROM bag WHERE a = 5 LIMIT 3); UPDATE bag SET a = 5 WHERE ctid IN (SELECT ctid FROM bag WHERE a = 6 LIMIT 2); UPDATE bag SET b = 'six' WHERE a = 6; COMMIT),
	'rows become equal to others, which change' => q(BEGIN; UPDATE bag SET a = 8, b = 'five' WHERE a = 6; UPDATE bag SET a = 5 WHERE a = 8; UPDATE bag SET a = 7 WHERE ctid IN (SELECT ctid FROM bag WHERE a = 5 LIMIT 9); DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = 7 LIMIT 4); COMMIT),
	'rows come and go' => q(BEGIN; INSERT INTO bag (a) SELECT 9 FROM generate_series(1, 10); DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = 9 LIMIT 6); UPDATE bag SET a = 10, x = '<b/>' WHERE ctid IN (SELECT ctid FROM bag WHERE a = 9 LIMIT 2); COMMIT),
	'values that cannot be compared are changed' => q(UPDATE bag SET j = '[1, 2]', p = '(0,0)', x = '<c d="e"/>' WHERE a = 5),
	'large values' => q(INSERT INTO bag (a, b, d) SELECT 11, repeat(md5(i::text), 3000), decode(repeat(md5(i::text), 3000), 'hex') FROM generate_series(1, 3) i, generate_series(1, 2)),
	'one of each large value goes' => q(DELETE FROM bag WHERE ctid IN (SELECT min(ctid) FROM bag WHERE a = 11 GROUP BY b); UPDATE bag SET a = 12 WHERE a = 11),
	'truncated' => q(BEGIN; INSERT INTO bag (a) VALUES (1); TRUNCATE bag; INSERT INTO bag (a) VALUES (2), (2); COMMIT));
foreach my $mode ('strict', 'auto')
{
	set_conf($slave, "pyreplica.apply_mode = $mode");
	sql("TRUNCATE bag; $rows");
	wait_caught_up($slave);
	for (my $i = 0; $i < @stories; $i += 2)
	{
		my $gate = hold_back($master, $slave);
		# enough to be a window that is worth a set
		sql("$stories[$i + 1]; INSERT INTO pulse SELECT 1000 + i FROM generate_series(1, 200) i; DELETE FROM pulse WHERE id > 1000");
		let_go($gate);
		is_equal('bag', "$mode: $stories[$i]");
	}
}
is(conflicts(), '', 'nothing was missing');
is(status_value($slave, 'fallbacks'), '0', 'and the sets were enough');

# The log as SQL is about one row, too.
sql(q(TRUNCATE bag; INSERT INTO bag (a, b) VALUES (3, 'x'), (3, 'x')));
my $mark = capture_mark($master);
sql(q(DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag)));
my $statement = captured_since($master, $mark);
like($statement, qr/^DELETE FROM public\.bag WHERE ctid = \(SELECT ctid FROM public\.bag WHERE a IS NOT DISTINCT FROM '3' AND .* LIMIT 1\)$/, 'the log tells of one');

# Many changes of a large table.
sql(q(INSERT INTO big SELECT i % 20000, 'row ' || i % 20000 FROM generate_series(1, 100000) i));
sql(q(SELECT py_log_create_tg('big', key => '{*}')));
ok(is_ready(3), 'a large one is copied');
my $gate = hold_back($master, $slave);
sql(q(DELETE FROM big WHERE ctid IN (SELECT min(ctid) FROM big WHERE a < 10000 GROUP BY a); UPDATE big SET b = 'changed' WHERE ctid IN (SELECT max(ctid) FROM big WHERE a < 5000 GROUP BY a)));
let_go($gate);
my $seconds = seconds_of(sub { wait_caught_up($slave) });
note("15,000 changes of 100,000 rows took $seconds s");
cmp_ok($seconds, '<', 30, 'ten thousand deletes do not take long');
is_same_rows($master, $slave, 'big', 'and each was of one row');
is(status_value($slave, 'fallbacks'), '0', 'in sets');

# Somebody writes on the slave: it is found, mended, and told.
$slave->safe_psql('postgres', q(UPDATE big SET b = 'spoiled' WHERE ctid = (SELECT min(ctid) FROM big WHERE a = 1); DELETE FROM big WHERE ctid = (SELECT min(ctid) FROM big WHERE a = 2); INSERT INTO big SELECT * FROM big WHERE a = 3 LIMIT 1));
is($slave->safe_psql('postgres', q(SELECT string_agg(key[1] || ' ' || problem, ', ' ORDER BY key[1], problem) FROM pyreplica_verify('big'))),
	'1 extra, 1 missing, 2 missing, 3 extra', 'verification counts equal rows');
is($slave->safe_psql('postgres', q(SELECT count(*) FROM pyreplica_verify('big', repair => true))), '4', 'repairs');
is_same_rows($master, $slave, 'big', 'them');
$slave->safe_psql('postgres', q(INSERT INTO big SELECT * FROM big WHERE a = 3; DELETE FROM big WHERE a = 4; SELECT pyreplica_resync('big')));
is_ready(3);
is_same_rows($master, $slave, 'big', 'so does a resync');

foreach my $mode ('strict', 'auto')
{
	set_conf($slave, "pyreplica.apply_mode = $mode");
	sql(q(TRUNCATE big; INSERT INTO big SELECT i % 5, 'x' FROM generate_series(1, 20) i));
	wait_caught_up($slave);
	$slave->safe_psql('postgres', q(DELETE FROM pyreplica_conflict_counts; DELETE FROM big WHERE a < 2));
	my $gate = hold_back($master, $slave);
	sql(q(DELETE FROM big WHERE a = 0; UPDATE big SET b = 'y' WHERE a IN (1, 2); INSERT INTO big SELECT 6 FROM generate_series(1, 100)));
	let_go($gate);
	wait_caught_up($slave);
	is(conflicts(), 'delete_missing 4, update_missing 4', "$mode: rows that are missing are conflicts");
	is($slave->safe_psql('postgres', q(SELECT count(*) FILTER (WHERE b = 'y') || ' ' || count(*) FROM big)), '4 112', "$mode: which are passed over, the others made");
}

# A change that cannot be made can be passed over.
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('big'); ALTER TABLE big ADD CHECK (b <> 'bad')));
is_ready(3);
sql(q(UPDATE big SET b = 'bad' WHERE ctid = (SELECT min(ctid) FROM big WHERE a = 3); INSERT INTO big VALUES (50, 'good')));
$slave->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pyreplica_failure');
like($slave->safe_psql('postgres', q(SELECT message FROM pyreplica_failure)), qr/violates check constraint/, 'a change that fails');
$slave->safe_psql('postgres', q(SELECT pyreplica_skip(replica, commitno, xid, really => true) FROM pyreplica_failure));
$slave->reload;
wait_caught_up($slave);
is($slave->safe_psql('postgres', q(SELECT count(*) FROM big WHERE a = 50)), '1', 'is passed over');
$slave->safe_psql('postgres', 'ALTER TABLE big DROP CONSTRAINT big_b_check');
sql(q(UPDATE big SET b = 'fine' WHERE b = 'bad'));
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('big')));
is_ready(3);
is_same_rows($master, $slave, 'big', 'and the table mended');

# Columns come and go while clients write: the rows are told by others then.
foreach my $step (
	[ q(ALTER TABLE big ADD c int DEFAULT 7), 0 ],
	[ q(ALTER TABLE big ADD d text), 0 ],
	[ q(ALTER TABLE big DROP c), 1 ])
{
	my ($ddl, $master_first) = @$step;
	my $gate = hold_back($master, $slave);
	sql(q(INSERT INTO big VALUES (60, 'before'), (60, 'before'); UPDATE big SET b = 'b' WHERE ctid IN (SELECT min(ctid) FROM big GROUP BY a)));
	if ($master_first)
	{
		sql($ddl);
		sql(q(DELETE FROM big WHERE ctid IN (SELECT min(ctid) FROM big GROUP BY a)));
		let_go($gate);
		wait_caught_up($slave);
		$slave->safe_psql('postgres', $ddl);
	}
	else
	{
		let_go($gate);
		$slave->safe_psql('postgres', $ddl);
		sql(q(UPDATE big SET b = 'between' WHERE ctid IN (SELECT max(ctid) FROM big GROUP BY a)));
		sql($ddl);
	}
	sql(q(INSERT INTO big (a) VALUES (61), (61); DELETE FROM big WHERE ctid IN (SELECT min(ctid) FROM big GROUP BY a); UPDATE big SET b = 'after' WHERE ctid IN (SELECT max(ctid) FROM big GROUP BY a)));
	wait_caught_up($slave);
	is_same_rows($master, $slave, 'big', $ddl);
}

# Only some of the columns, and rows; the slave has others.
on_both($master, $slave, 'CREATE TABLE partly (a int, b text, hidden text)');
$slave->safe_psql('postgres', q(ALTER TABLE partly ALTER hidden SET DEFAULT 'slave'));
sql(q(SELECT py_log_create_tg('partly', key => '{*}', columns => '{b,a}', row_filter => 'a > 0')));
ok(is_ready(4), 'a list of columns');
sql(q(INSERT INTO partly SELECT i % 3, 'x', i FROM generate_series(1, 30) i; UPDATE partly SET hidden = 'other'; UPDATE partly SET a = a - 1 WHERE hidden = 'other' AND a = 1; DELETE FROM partly WHERE ctid = (SELECT min(ctid) FROM partly WHERE a = 2)));
wait_caught_up($slave);
is_same_rows($master, $slave, '(SELECT a, b FROM partly WHERE a > 0)', 'rows that are equal in what is replicated');
is($slave->safe_psql('postgres', q(SELECT count(*) FROM partly WHERE hidden = 'slave')), $slave->safe_psql('postgres', 'SELECT count(*) FROM partly'), 'the rest is the slave\'s');

# A value can have another image than the same one that is made now: its type has lost
# an attribute since.
on_both($master, $slave, 'CREATE TYPE pair AS (x int, gone int, y text); CREATE TABLE pairs (a int, p pair)');
sql(q(INSERT INTO pairs SELECT i % 10, ROW(i % 2, 7, 'y')::pair FROM generate_series(1, 100) i; SELECT py_log_create_tg('pairs', key => '{*}')));
is_ready(5);
on_both($master, $slave, 'ALTER TYPE pair DROP ATTRIBUTE gone');
foreach my $mode ('strict', 'auto')
{
	set_conf($slave, "pyreplica.apply_mode = $mode");
	my $gate = hold_back($master, $slave);
	sql(q(UPDATE pairs SET a = a + 10 WHERE ctid IN (SELECT min(ctid) FROM pairs GROUP BY a); DELETE FROM pairs WHERE ctid IN (SELECT max(ctid) FROM pairs GROUP BY a)));
	let_go($gate);
	is_equal('pairs', "$mode: a composite type that was changed");
}

# It must be a table that has places.
on_both($master, $slave, 'CREATE TABLE nowhere (a int)');
sql(q(SELECT py_log_create_tg('nowhere', key => '{*}'); INSERT INTO nowhere VALUES (1), (1), (2)));
is_ready(6);
wait_caught_up($slave);
$slave->safe_psql('postgres', 'ALTER TABLE nowhere RENAME TO behind; CREATE VIEW nowhere AS SELECT * FROM behind');
my $position = log_position($slave);
sql(q(DELETE FROM nowhere WHERE ctid = (SELECT min(ctid) FROM nowhere)));
ok(wait_log($slave, $position, qr/"public\.nowhere" has no key on the master, and is not an ordinary table on the slave/), 'a view has no places');
$slave->safe_psql('postgres', 'DROP VIEW nowhere; ALTER TABLE behind RENAME TO nowhere');
is_equal('nowhere', 'a table has');

# Partitions on the slave.
sql('CREATE TABLE spread (a int, b text)');
$slave->safe_psql('postgres', 'CREATE TABLE spread (b text, a int) PARTITION BY HASH (a); CREATE TABLE spread_0 PARTITION OF spread FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE spread_1 PARTITION OF spread FOR VALUES WITH (MODULUS 2, REMAINDER 1)');
sql(q(SELECT py_log_create_tg('spread', key => '{*}')));
is_ready(7);
foreach my $mode ('strict', 'auto')
{
	set_conf($slave, "pyreplica.apply_mode = $mode");
	my $gate = hold_back($master, $slave);
	sql(q(INSERT INTO spread SELECT i % 10, 'x' FROM generate_series(1, 100) i; UPDATE spread SET a = a + 1 WHERE ctid IN (SELECT min(ctid) FROM spread GROUP BY a); DELETE FROM spread WHERE ctid IN (SELECT max(ctid) FROM spread GROUP BY a)));
	let_go($gate);
	wait_caught_up($slave);
	is_same_rows($master, $slave, '(SELECT a, b FROM spread)', "$mode: equal rows in partitions");
}

# The slave is killed again and again: nothing is lost, nothing comes twice.
my $writer = start_looping($master, 'psql', '-XAtq', '-c', q(INSERT INTO spread SELECT i % 5, 'y' FROM generate_series(1, 50) i; UPDATE spread SET a = a + 1 WHERE ctid IN (SELECT ctid FROM spread WHERE b = 'y' ORDER BY random() LIMIT 20); DELETE FROM spread WHERE ctid IN (SELECT ctid FROM spread WHERE b = 'y' ORDER BY random() LIMIT 40)));
for my $i (1 .. 4)
{
	my $before = status_value($slave, 'rows') // 0;
	wait_status($slave, "rows > $before + 200", 30);
	$slave->stop('immediate');
	$slave->start;
}
stop_looping($writer);
wait_worker($slave);
wait_caught_up($slave);
is_same_rows($master, $slave, '(SELECT a, b FROM spread)', 'crashes of the slave change nothing');

# Once there is a key, it can be used.
on_both($master, $slave, 'ALTER TABLE spread ADD id int; CREATE INDEX ON spread (a)');
sql(q(SELECT py_log_create_tg('nowhere', key => '{}')));
is(sql(q(SELECT py_log_create_tg('nowhere', key => '{}'))), ' table nowhere has no pk constraint (couldn\'t be replicated)!', 'no key is no key');
on_both($master, $slave, 'TRUNCATE nowhere; ALTER TABLE nowhere ADD PRIMARY KEY (a)');
is(sql(q(SELECT py_log_create_tg('nowhere', key => '{}'))), 'created trigger on nowhere (a)', 'a primary key that came later');
sql('INSERT INTO nowhere SELECT generate_series(1, 10); UPDATE nowhere SET a = a + 100 WHERE a > 5');
is_ready(7);
is_equal('nowhere', 'is used then');

done_testing();
