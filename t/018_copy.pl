# A slave that begins with empty tables gets the master's rows, whatever happens
# meanwhile; and tables come and go without a restart.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $schema = <<'SQL';
CREATE TABLE small (id int PRIMARY KEY, a text);
CREATE TABLE large (id bigint PRIMARY KEY, n int, a text);
CREATE TABLE wide (a int, b text COLLATE "C", c jsonb, d numeric, PRIMARY KEY (a, b));
CREATE TABLE nothing (id int PRIMARY KEY);
CREATE TABLE mood_of (who text PRIMARY KEY, mood text);
SQL

my $master = new_master('master');
$master->safe_psql('postgres', $schema . <<'SQL');
INSERT INTO small VALUES (1, 'one'), (2, E'tab\there, back\\slash'), (3, NULL), (4, '\N');
INSERT INTO large SELECT i, i % 7, repeat('x', i % 100) FROM generate_series(1, 50000) i;
INSERT INTO wide SELECT i % 100, 'key ' || i, jsonb_build_object('i', i), i / 3.0 FROM generate_series(1, 20000) i;
INSERT INTO mood_of VALUES ('me', 'good'), ('you', 'better'), (U&'\00FC', U&'\00E9');
SQL
log_table($master, qw(small large wide nothing mood_of));

my $slave = new_slave($master, 'slave', copy => 1, conf => "client_encoding = latin1\n");
$slave->safe_psql('postgres', $schema);

sub wait_ready
{
	my ($tables) = @_;
	$slave->poll_query_until('postgres',
		"SELECT count(*) = $tables FROM pyreplica_tables WHERE state = 'ready'")
	  or BAIL_OUT("tables are not ready:\n"
		  . $slave->safe_psql('postgres', 'SELECT * FROM pyreplica_tables'));
	return;
}

wait_worker($slave);
wait_ready(5);
wait_caught_up($slave);
is_same_rows($master, $slave, $_, "$_ was copied") for qw(small large wide nothing),
  '(SELECT encode(convert_to(who || mood, $$UTF8$$), $$hex$$) FROM mood_of)';
is( $slave->safe_psql('postgres', q(SELECT sum(rows_copied) FROM pyreplica_tables)),
	'70007', 'and pyreplica_tables tells how many rows');
$master->safe_psql('postgres', q(UPDATE large SET n = n + 1 WHERE id % 1000 = 0; INSERT INTO nothing VALUES (1)));
wait_caught_up($slave);
is_same_rows($master, $slave, $_, "$_ goes on") for qw(large nothing);

# A table gets its trigger on the master: it comes, without anything being done
# on the slave.  It goes when the trigger does.
on_both($master, $slave, 'CREATE TABLE late (id int PRIMARY KEY, a text)');
$master->safe_psql('postgres',
	q(INSERT INTO late SELECT i, 'old' FROM generate_series(1, 1000) i));
log_table($master, 'late');
$master->safe_psql('postgres', q(INSERT INTO late VALUES (1001, 'new')));
wait_ready(6);
wait_caught_up($slave);
is_same_rows($master, $slave, 'late', 'a table that gets its trigger later is copied');
$master->safe_psql('postgres', q(SELECT py_log_drop_tg('late'); DELETE FROM late WHERE id > 10));
wait_ready(5);
is($slave->safe_psql('postgres', 'SELECT count(*) FROM late'), '1001',
	'one that loses it stays as it is');

# Its trigger comes back: what happened meanwhile is not known.
log_table($master, 'late');
ok( $slave->poll_query_until('postgres',
		q(SELECT last_error ~ 'is not empty' FROM pyreplica_tables WHERE tablename = 'late')),
	'if it has one again, nobody can tell what happened meanwhile');
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('late')));
wait_ready(6);
is_same_rows($master, $slave, 'late', 'and equal again when it has one again');

# Tables that cannot be copied do not keep the others from it.
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE filled (id int PRIMARY KEY);
INSERT INTO filled VALUES (7);
CREATE TABLE narrow (id int PRIMARY KEY);
CREATE TABLE wrong (id int PRIMARY KEY, a int);
CREATE TABLE fine (id int PRIMARY KEY, a text);
SQL
$master->safe_psql('postgres', <<'SQL');
CREATE TABLE filled (id int PRIMARY KEY);
CREATE TABLE narrow (id int PRIMARY KEY, a text);
CREATE TABLE wrong (id int PRIMARY KEY, a text);
CREATE TABLE missing (id int PRIMARY KEY, a text);
CREATE TABLE fine (id int PRIMARY KEY, a text);
INSERT INTO filled SELECT generate_series(1, 100);
INSERT INTO narrow SELECT i, 'a' FROM generate_series(1, 100) i;
INSERT INTO wrong SELECT i, 'a' FROM generate_series(1, 100) i;
INSERT INTO missing SELECT i, 'a' FROM generate_series(1, 100) i;
INSERT INTO fine SELECT i, 'a' FROM generate_series(1, 100) i;
SQL
log_table($master, qw(filled narrow wrong missing fine));
wait_ready(7);
$master->safe_psql('postgres', "INSERT INTO $_ VALUES (1000)") for qw(filled narrow wrong missing fine);
wait_caught_up($slave);
is_same_rows($master, $slave, 'fine', 'a table is copied beside others that cannot be');
ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 4 FROM pyreplica_tables WHERE state = 'error')),
	'which are in error');
is($slave->safe_psql('postgres', q(SELECT tablename || ': ' || last_error FROM pyreplica_tables WHERE state = 'error' ORDER BY 1)) =~ s/ HINT:.*//gr,
	<<'ERRORS' =~ s/\n$//r, 'and tell why');
filled: table "public.filled" is not empty on the slave
missing: table "public.missing" does not exist on the slave
narrow: column "a" of the master's table "public.narrow" does not exist on the slave
wrong: invalid input syntax for type integer: "a"
ERRORS
is(status_value($slave, 'errors'), '0', 'the replica itself is without error');
$slave->safe_psql('postgres', <<'SQL');
SELECT pyreplica_resync('filled');
ALTER TABLE narrow ADD a text;
ALTER TABLE wrong ALTER a TYPE text;
CREATE TABLE missing (id int PRIMARY KEY, a text);
SQL
wait_ready(11);
wait_caught_up($slave);
is_same_rows($master, $slave, $_, "$_ is copied once it can be") for qw(filled narrow wrong missing);

# A table that somebody spoiled is made equal again, at no time being empty.
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE refers (id bigint REFERENCES large);
INSERT INTO refers VALUES (1), (50000);
UPDATE large SET a = 'spoiled' WHERE id % 500 = 0;
DELETE FROM large WHERE id % 700 = 0;
INSERT INTO large SELECT i, 0, 'extra' FROM generate_series(60000, 61000) i;
SQL
my $watch = start_watching($slave, 'SELECT count(*) FROM large');
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('large')));
wait_ready(11);
$master->safe_psql('postgres', q(UPDATE large SET n = n + 1 WHERE id % 100 = 0));
wait_caught_up($slave);
is_same_rows($master, $slave, 'large', 'a resynced table is equal');
my @counts = stop_looping($watch) =~ /^(\d+)$/mg;
cmp_ok(scalar(@counts), '>', 0, 'while it was looked at');
is(scalar(grep { $_ < 49000 } @counts), 0, 'it was never emptied');
like(
	($slave->psql('postgres', q(SELECT pyreplica_resync('refers'))))[2],
	qr/table "public.refers" is not replicated/,
	'a table that is not replicated cannot be resynced');

# A table that is being written anew on the master keeps nobody from going on, and
# is copied as a whole afterwards.
$master->safe_psql('postgres', 'CREATE TABLE rewritten (id int PRIMARY KEY, n int); INSERT INTO rewritten SELECT i, i FROM generate_series(1, 5000) i');
log_table($master, 'rewritten');
my $alter = $master->background_psql('postgres');
$alter->query_safe('BEGIN; ALTER TABLE rewritten ALTER n TYPE bigint');
$slave->safe_psql('postgres', 'CREATE TABLE rewritten (id int PRIMARY KEY, n bigint)');
ok( $slave->poll_query_until('postgres',
		q(SELECT last_error ~ 'lock timeout' FROM pyreplica_tables WHERE tablename = 'rewritten')),
	'a table that is locked on the master is not waited for');
$master->safe_psql('postgres', 'INSERT INTO nothing VALUES (100)');
ok($slave->poll_query_until('postgres', 'SELECT count(*) = 1 FROM nothing WHERE id = 100'), 'other tables go on');
$alter->query_safe('COMMIT');
$alter->quit;
wait_ready(12);
is_same_rows($master, $slave, 'rewritten', 'it is copied when it can be');

# Rows of tables that inherit are not those of their parent.
on_both($master, $slave, 'CREATE TABLE parent (id int PRIMARY KEY, a text); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)');
$master->safe_psql('postgres', q(INSERT INTO parent VALUES (1, 'parent'), (2, 'parent'); INSERT INTO child VALUES (3, 'child'), (4, 'child')));
log_table($master, 'parent', 'child');
wait_ready(14);
$slave->safe_psql('postgres', q(SELECT pyreplica_resync('parent')));
wait_ready(14);
is_same_rows($master, $slave, $_, "$_ after its parent was copied anew") for 'ONLY parent', 'child';
is($slave->safe_psql('postgres', q(SELECT count(*) FROM pyreplica_verify('parent'))), '0', 'nor are they extra rows');

# A key that does not tell rows apart is no place to divide a table.
on_both($master, $slave, 'CREATE TABLE alike (k int, a text)');
$master->safe_psql('postgres', <<'SQL');
INSERT INTO alike SELECT 1, 'row ' || i FROM generate_series(1, 5000) i;
CREATE TRIGGER "!py_log_replica_tg" AFTER INSERT OR UPDATE OR DELETE ON alike FOR EACH ROW EXECUTE FUNCTION py_log_replica('alike', 'k');
NOTIFY replicas;
SQL
wait_ready(15);
is($slave->safe_psql('postgres', 'SELECT count(*) FROM alike'), '5000', 'rows of one key are all copied');
like(slurp_file($slave->logfile), qr/copying table "public\.alike" in one piece/, 'in one piece');

# A view takes copied rows by its trigger.
$master->safe_psql('postgres', 'CREATE TABLE seen (id int PRIMARY KEY, a text); INSERT INTO seen SELECT i, i FROM generate_series(1, 3000) i');
$slave->safe_psql('postgres', <<'SQL');
CREATE TABLE behind (id int PRIMARY KEY, a text);
CREATE VIEW seen AS SELECT id, a FROM behind;
CREATE FUNCTION put() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.behind VALUES (NEW.id, NEW.a);
	RETURN NEW;
END
$$;
CREATE TRIGGER put INSTEAD OF INSERT ON seen FOR EACH ROW EXECUTE FUNCTION put();
SQL
log_table($master, 'seen');
wait_ready(16);
is_same_rows($master, $slave, 'seen', 'rows are copied into a view');

# Tables that refer to one another are truncated, one of them not being here.
on_both($master, $slave, 'CREATE TABLE target (id int PRIMARY KEY); CREATE TABLE pointer (id int PRIMARY KEY REFERENCES target, a text)');
$slave->safe_psql('postgres', 'ALTER TABLE pointer DROP a');
$master->safe_psql('postgres', q(INSERT INTO target SELECT generate_series(1, 10); INSERT INTO pointer SELECT id, 'a' FROM target));
log_table($master, 'target', 'pointer');
wait_ready(17);
ok( $slave->poll_query_until('postgres',
		q(SELECT last_error ~ 'column "a"' FROM pyreplica_tables WHERE tablename = 'pointer')),
	'a table that cannot be copied');
$master->safe_psql('postgres', 'TRUNCATE target, pointer; INSERT INTO target VALUES (11)');
wait_caught_up($slave);
is_same_rows($master, $slave, 'target', 'does not keep another one from being truncated with it');
$slave->safe_psql('postgres', 'ALTER TABLE pointer ADD a text');
wait_ready(18);

# Columns may stand in another order here, and have holes.
$master->safe_psql('postgres', <<'SQL');
CREATE TABLE shuffled (a text, id int PRIMARY KEY, gone int, n numeric);
ALTER TABLE shuffled DROP COLUMN gone;
ALTER TABLE shuffled RENAME COLUMN n TO amount;
INSERT INTO shuffled SELECT 'a' || i, i, i / 7.0 FROM generate_series(1, 3000) i;
SQL
$slave->safe_psql('postgres',
	'CREATE TABLE shuffled (old int, amount numeric, id int PRIMARY KEY, a text); ALTER TABLE shuffled DROP COLUMN old');
log_table($master, 'shuffled');
wait_ready(19);
$master->safe_psql('postgres', q(UPDATE shuffled SET a = 'after' WHERE id % 100 = 0));
wait_caught_up($slave);
is_same_rows($master, $slave, '(SELECT id, a, amount FROM shuffled)', 'columns are found by name');

# A table gets another name on both sides, one after the other.
$slave->safe_psql('postgres', 'ALTER TABLE shuffled RENAME TO sorted');
$master->safe_psql('postgres', 'ALTER TABLE shuffled RENAME TO sorted; DELETE FROM sorted WHERE id < 10');
ok( $slave->poll_query_until('postgres',
		q(SELECT count(*) = 1 FROM pyreplica_tables WHERE tablename = 'sorted' AND state = 'ready')),
	'a table is followed under its new name');
wait_caught_up($slave);
is_same_rows($master, $slave, '(SELECT id, a, amount FROM sorted)', 'and nothing of it is lost');

# The trigger is gone for a while, and the slave, too: what happened meanwhile
# cannot be applied, so the table is copied anew.
$slave->stop;
$master->safe_psql('postgres', q(SELECT py_log_drop_tg('small'); DELETE FROM small WHERE id = 2));
log_table($master, 'small');
$master->safe_psql('postgres', q(INSERT INTO small VALUES (2, 'again')));
$slave->start;
wait_ready(19);
wait_caught_up($slave);
is_same_rows($master, $slave, 'small', 'a trigger that is another one is noticed');
is(status_value($slave, 'errors'), '0', 'before anything goes wrong');

# Without its position the slave does not believe to have anything.
$slave->safe_psql('postgres', q(ALTER SYSTEM SET pyreplica.enabled = off; SELECT pg_reload_conf()));
wait_status($slave, q(state = 'disabled'));
$slave->safe_psql('postgres', 'DELETE FROM pyreplica_position');
$master->safe_psql('postgres', q(SELECT py_log_drop_slave('postgres'); INSERT INTO small VALUES (77)));
$slave->safe_psql('postgres', q(ALTER SYSTEM RESET pyreplica.enabled));
$slave->reload;
ok( $slave->poll_query_until('postgres',
		q(SELECT last_error ~ 'is not empty' FROM pyreplica_tables WHERE tablename = 'small')),
	'a slave that lost its position does not go on as if nothing had happened');
$slave->poll_query_until('postgres',
	q(SELECT count(*) = 0 FROM pyreplica_tables WHERE state IN ('waiting', 'copying')));
$slave->safe_psql('postgres', q(SELECT pyreplica_resync(format('%I.%I', schemaname, tablename)::regclass) FROM pyreplica_tables WHERE state = 'error' AND tablename <> 'seen'));
$slave->safe_psql('postgres', 'DELETE FROM behind');
wait_ready(19);
wait_caught_up($slave);
is_same_rows($master, $slave, $_, "$_ is equal after all") for 'small', 'large', 'seen', 'ONLY parent';

# The master can wait for the slave.
$master->safe_psql('postgres', q(INSERT INTO nothing VALUES (2)));
is($master->safe_psql('postgres', q(SELECT py_log_wait('postgres', '1 min'))), 't', 'the master waits for its slave');
is($slave->safe_psql('postgres', 'SELECT count(*) FROM nothing'), '3', 'which then has everything');
$slave->stop;
$master->safe_psql('postgres', q(INSERT INTO nothing VALUES (3)));
is($master->safe_psql('postgres', q(SELECT py_log_wait(timeout => '100 ms'))), 'f', 'not for ever, if it is away');
like(($master->psql('postgres', q(SELECT py_log_wait('nobody'))))[2],
	qr/slave "nobody" does not exist/, 'nor for one that it does not know');

done_testing();
