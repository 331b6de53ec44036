# Tables change by hand, on one side first: the columns that tell rows apart, and
# others.  What is in a good order goes on without a word; the other order says what
# is missing, and goes on by itself when the second side is done.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PyreplicaTest;
use Test::More;

my $conf = "autovacuum = off\n";
my $master = new_master('master', conf => $conf);
my $slave = new_slave($master, 'slave', copy => 1, conf => $conf);
wait_worker($slave);

sub here  { my ($sql) = @_; return $master->safe_psql('postgres', $sql); }
sub there { my ($sql) = @_; return $slave->safe_psql('postgres', $sql); }

sub wait_ready
{
	my ($table) = @_;
	return poll_until(
		sub {
			there("SELECT count(*) FROM pyreplica_tables WHERE tablename = '$table' AND state = 'ready'") eq '1';
		}) || diag(there('SELECT * FROM pyreplica_tables'));
}

sub wait_failure
{
	my ($errors, $reason, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_status($slave, "state = 'error' AND errors > $errors");
	return like(status_value($slave, 'last_error'), $reason, $name);
}

# The columns that rows are told apart by, as slaves are told.
sub key_of
{
	my ($table) = @_;
	return here("SELECT array_to_string(py_log_key(trigger), ',') FROM py_log_tables WHERE tablename = '$table'");
}

# Rows of the table change, and the slave has them.
my $round = 0;

sub is_followed
{
	my ($table, $key, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $mark = capture_mark($master);
	$round++;
	here("UPDATE $table SET n = n + 1 WHERE n % 3 = $round % 3; DELETE FROM $table WHERE n > 100 + $round");
	wait_caught_up($slave);
	wait_ready($table);
	is_same($master, $slave, $table, $name);
	like(captured_since($master, $mark), qr/^UPDATE public\.$table SET n='\d+' WHERE $key/, "$name: by its key") if defined $key;
	return;
}

# --- The key is made of other columns ---

on_both($master, $slave, 'CREATE TABLE item (id int PRIMARY KEY, code text NOT NULL, n int)');
log_table($master, 'item');
here(q(INSERT INTO item SELECT i, 'code ' || i % 7 || '/' || i, i FROM generate_series(1, 90) i));
wait_ready('item');
is_followed('item', q(id='\d+'), 'the primary key');
on_both($master, $slave, 'ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (code)');
is(key_of('item'), 'code', 'another primary key is noticed');
is_followed('item', q(code='code [0-9/]+'), 'another primary key');
here(q(INSERT INTO item SELECT 5, 'five ' || i, 3 FROM generate_series(1, 4) i; UPDATE item SET code = 'other' || code WHERE code = 'five 2'; DELETE FROM item WHERE code = 'five 3'));
is_followed('item', q(code='[a-z]+ [0-9/]+'), 'rows that the old one could not tell apart');
is(status_value($slave, 'errors') . status_value($slave, 'conflicts'), '00', 'without errors and conflicts');
on_both($slave, $master, 'ALTER TABLE item RENAME code TO word');
is_followed('item', q(word='[a-z]+ [0-9/]+'), 'a key column with another name');
my $identity = q(SELECT trigger FROM py_log_tables WHERE tablename = 'item');
my $known = here($identity);
log_table($master, 'item');
isnt(here($identity), $known, 'py_log_create_tg takes the new key down');
is_followed('item', q(word='[a-z]+ [0-9/]+'), 'the new key taken down');

# --- Columns that were unique are not any more ---

on_both($master, $slave, 'CREATE TABLE part (a int NOT NULL, b int NOT NULL, n int, id int); CREATE UNIQUE INDEX part_unique ON part (a, b)');
here(q(SELECT py_log_create_tg('part', key => '{a,b}'); INSERT INTO part SELECT i % 10, i / 10, i, i FROM generate_series(1, 90) i));
wait_ready('part');
is_followed('part', q(a='\d' AND b='\d+'), 'unique columns');
on_both($master, $slave, 'ALTER TABLE part ADD PRIMARY KEY (id); DROP INDEX part_unique');
is(key_of('part'), 'id', 'when they are not unique any more there is a primary key');
here('INSERT INTO part VALUES (1, 1, 1, 1001), (1, 1, 1, 1002); UPDATE part SET n = 50 WHERE id = 1002');
is_followed('part', q(id='\d+'), 'a primary key instead');
on_both($master, $slave, 'DELETE FROM part WHERE id > 1000; ALTER TABLE part DROP CONSTRAINT part_pkey');
is(key_of('part'), 'a,b', 'without one, what was named will do');
is_followed('part', q(a='\d' AND b='\d+'), 'columns that nothing makes unique');

# --- Nothing is left that tells rows apart ---

here('ALTER TABLE part DROP b');
like(($master->psql('postgres', 'UPDATE part SET n = 1 WHERE a = 1'))[2],
	qr/cannot log changes of table "public\.part": trigger "!py_log_replica_tg" names no usable key.*HINT:  Call py_log_create_tg\('public', 'part'\) once the table has a primary key, or py_log_drop_tg/s,
	'then it cannot be written to, and the way out is told');
there('ALTER TABLE part DROP b');
on_both($master, $slave, 'ALTER TABLE part ADD PRIMARY KEY (id)');
is_followed('part', q(id='\d+'), 'once there is a key it can');

# --- The key changes while the table is copied ---

here(<<'SQL');
CREATE TABLE big (id int PRIMARY KEY, code text NOT NULL UNIQUE, n int);
INSERT INTO big SELECT i, 'x' || (i * 7919) % 60000, i % 50 FROM generate_series(1, 60000) i;
SQL
there('CREATE TABLE big (id int PRIMARY KEY, code text NOT NULL UNIQUE, n int)');
log_table($master, 'big');
poll_until(sub { there(q(SELECT rows_copied FROM pyreplica_tables WHERE tablename = 'big')) > 0 });
here(q(BEGIN; ALTER TABLE big DROP CONSTRAINT big_pkey, ADD PRIMARY KEY (code); UPDATE big SET n = 40 WHERE id % 100 = 0; DELETE FROM big WHERE id % 100 = 1; UPDATE big SET code = 'y' || code WHERE id % 100 = 2; COMMIT));
is_followed('big', q(code='y?x\d+'), 'a key that changes while the table is copied');
is(status_value($slave, 'conflicts'), 0, 'without a conflict');
is(there(q(SELECT count(*) FROM pyreplica_verify('big'))), 0, 'and verified');

# --- A column comes: on the slave first, or on the master ---

my $errors = status_value($slave, 'errors');
there('ALTER TABLE item ADD c int DEFAULT 4');
here('UPDATE item SET n = n + 1');
here('ALTER TABLE item ADD c int DEFAULT 4');
here('UPDATE item SET c = n');
wait_caught_up($slave);
is_same($master, $slave, 'item', 'a column that comes on the slave first');
is(status_value($slave, 'errors'), $errors, '... is no trouble at all');
here('ALTER TABLE item ADD d int; UPDATE item SET d = n WHERE n < 50');
wait_failure($errors, qr/column "d" of the master's table "public\.item" does not exist on the slave/, 'on the master first, it is missed');
here('UPDATE item SET d = 1 WHERE n > 50');
there('ALTER TABLE item ADD d int');
wait_caught_up($slave);
is_same($master, $slave, 'item', '... and when it is there, it goes on by itself');

# --- A column goes: on the master first, or on the slave ---

$errors = status_value($slave, 'errors');
here('ALTER TABLE item DROP c; UPDATE item SET n = n + 1');
wait_caught_up($slave);
there('ALTER TABLE item DROP c');
here('UPDATE item SET n = n + 1');
wait_caught_up($slave);
is_same($master, $slave, 'item', 'a column that goes on the master first');
is(status_value($slave, 'errors'), $errors, '... is no trouble at all');

there('ALTER TABLE item DROP d');
here(q(UPDATE item SET d = 7; INSERT INTO item VALUES (400, 'new', 1, 1)));
wait_failure($errors, qr/column "d" of the master's table "public\.item" does not exist on the slave/, 'on the slave first, it is missed');
here(q(UPDATE item SET n = 8 WHERE word = 'new'));
my $place = log_position($slave);
here('ALTER TABLE item DROP d');
wait_caught_up($slave);
wait_ready('item');
is_same($master, $slave, 'item', '... and when it is gone there, too, it goes on by itself');
like(log_since($slave, $place), qr/table "public\.item" begins anew, as a change is about what neither side has any more/, '... by copying the table over what is here');
is_followed('item', q(word='[a-z]+), 'as before');

# The same with a table.
on_both($master, $slave, 'CREATE TABLE gone (id int PRIMARY KEY, n int)');
log_table($master, 'gone');
wait_ready('gone');
$errors = status_value($slave, 'errors');
there('DROP TABLE gone');
here('INSERT INTO gone VALUES (1, 1)');
wait_failure($errors, qr/the master's table "public\.gone" does not exist on the slave/, 'a table that is dropped on the slave first');
here('DROP TABLE gone; UPDATE item SET n = 9');
wait_caught_up($slave);
is_same($master, $slave, 'item', '... holds up the others until it is dropped on the master');
is(there(q(SELECT count(*) FROM pyreplica_tables WHERE tablename = 'gone')), 0, '... and is not followed any more');

# --- The same while a table is copied, and resynced ---

foreach my $resync (0, 1)
{
	my $name = $resync ? 'resynced' : 'copied';
	my $table = "while_$name";
	here("CREATE TABLE $table (id int PRIMARY KEY, a text, n int); INSERT INTO $table SELECT i, repeat('x', 100), i FROM generate_series(1, 40000) i");
	there("CREATE TABLE $table (id int PRIMARY KEY, a text, n int)");
	log_table($master, $table);
	if ($resync)
	{
		wait_ready($table);
		there("UPDATE $table SET n = 0; SELECT pyreplica_resync('$table')");
	}
	poll_until(sub { there("SELECT rows_copied FROM pyreplica_tables WHERE tablename = '$table' AND state = 'copying'") > 0 });
	$errors = status_value($slave, 'errors');
	$place = log_position($slave);
	here("ALTER TABLE $table ADD b int DEFAULT 1; UPDATE $table SET b = n WHERE id % 1000 = 0");
	ok( poll_until(sub {
			there("SELECT last_error FROM pyreplica_tables WHERE tablename = '$table'") =~ /column "b" of the master's table "public\.$table" does not exist on the slave/
			  || status_value($slave, 'errors') > $errors;
		}),
		"a column that comes on the master while a table is $name is missed");
	there("ALTER TABLE $table ADD b int DEFAULT 1");
	is_followed($table, undef, '... and when it is there, it goes on');
	here("ALTER TABLE $table DROP a");
	there("ALTER TABLE $table DROP a");
	is_followed($table, undef, '... as it does when one goes');
	is(there("SELECT count(*) FROM pyreplica_verify('$table')"), 0, '... and is verified');
}

done_testing();
