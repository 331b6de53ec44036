# The worker is a superuser's process that runs what belongs to others.  Neither
# the owner of a table on the slave nor the master can use it to get more than
# they have.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my ($master, $slave) = new_pair();

sub ask
{
	my ($node, $sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# --- The owner of a table ---

# Whose code it is, and what is in force when it runs.
ask($slave, <<'SQL');
CREATE ROLE alice;
CREATE SCHEMA alice AUTHORIZATION alice;
CREATE TABLE seen (what text, who text, path text);
GRANT INSERT, SELECT ON seen TO PUBLIC;
SET ROLE alice;
CREATE FUNCTION alice.look(what text) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.seen VALUES (what, current_user, current_setting('search_path'));
	PERFORM set_config('search_path', 'alice, pg_catalog', false);
	RETURN true;
END
$$;
CREATE FUNCTION alice.look() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM alice.look(TG_NAME);
	RETURN NULL;
END
$$;
CREATE DOMAIN alice.doc AS jsonb CHECK (alice.look('domain'));
RESET ROLE;
CREATE TABLE hers (id int PRIMARY KEY, doc alice.doc, n int);
CREATE TABLE ours (id int PRIMARY KEY, n int);
CREATE FUNCTION look_here() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.seen VALUES (TG_NAME, current_user, current_setting('search_path'));
	RETURN NULL;
END
$$;
CREATE TRIGGER ordinary AFTER INSERT OR UPDATE ON hers FOR EACH ROW EXECUTE FUNCTION alice.look();
CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON hers DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION alice.look();
CREATE TRIGGER trigger_of_ours AFTER INSERT OR UPDATE ON ours FOR EACH ROW EXECUTE FUNCTION look_here();
ALTER TABLE hers ENABLE ALWAYS TRIGGER ordinary, ENABLE ALWAYS TRIGGER late, OWNER TO alice;
ALTER TABLE ours ENABLE ALWAYS TRIGGER trigger_of_ours;
SQL
ask($master, <<'SQL');
CREATE TABLE hers (id int PRIMARY KEY, doc jsonb, n int);
CREATE TABLE ours (id int PRIMARY KEY, n int);
SQL
log_table($master, 'hers', 'ours');
foreach my $mode ('auto', 'strict')
{
	set_conf($slave, "pyreplica.apply_mode = $mode");
	ask($slave, 'DELETE FROM seen');
	ask($master, <<'SQL');
DELETE FROM hers; DELETE FROM ours;
INSERT INTO hers SELECT i, jsonb_build_object('i', i), 0 FROM generate_series(1, 10) i;
INSERT INTO ours SELECT i, 0 FROM generate_series(1, 10) i;
UPDATE hers SET n = 1, doc = '{}';
UPDATE ours SET n = 1;
SQL
	wait_caught_up($slave);
	is(ask($slave, q(SELECT DISTINCT what, who FROM seen ORDER BY 1)),
		<<'SEEN' =~ s/\n$//r, "$mode: code runs with the rights of the table's owner");
domain|alice
late|alice
ordinary|alice
trigger_of_ours|postgres
SEEN
	is(ask($slave, q(SELECT DISTINCT path FROM seen WHERE what = 'trigger_of_ours')), '',
		"$mode: settings made by one owner's code are none of another's");
	is_same($master, $slave, $_, "$mode: $_ is the same") for 'ours', '(SELECT id, doc::jsonb, n FROM hers)';
}
set_conf($slave, 'pyreplica.apply_mode = auto');

# Her code runs with her rights also when the table is copied and compared.
ask($slave, 'DELETE FROM seen');
set_conf($slave, 'pyreplica.copy_data = on');
ask($slave, q(SELECT pyreplica_resync('hers')));
ok( $slave->poll_query_until('postgres',
		q(SELECT state = 'ready' AND finished_at IS NOT NULL FROM pyreplica_tables WHERE tablename = 'hers')),
	'her table is copied anew');
is(ask($slave, q(SELECT string_agg(DISTINCT who, ' ') FROM seen)), 'alice', 'with her rights');
is(ask($slave, q(SELECT count(*) FROM pyreplica_verify('hers'))), '0', 'and compared');
is(ask($slave, q(SELECT string_agg(DISTINCT who, ' ') FROM seen)), 'alice', 'with her rights, too');

set_conf($slave, 'pyreplica.copy_data = off');

# --- The master ---

# What a master that is not what it should be could send: the changes of a
# transaction, as the log has them.
sub forge
{
	my ($hex) = @_;
	ask($master, <<"SQL");
BEGIN;
INSERT INTO ours VALUES (nextval('forged'), 0);
COMMIT;
UPDATE replica_log SET changes = decode('$hex', 'hex')
 WHERE commitno = (SELECT max(commitno) FROM replica_log);
SQL
	return;
}

sub name
{
	my ($name) = @_;
	return pack('C', length $name) . $name;
}

# One change of one shape: verb, schema, table, names of key and set columns,
# which are text, and their values.
sub changes
{
	my ($verb, $schema, $table, $key, $set, @values) = @_;
	my $shape = $verb . "\0" . name($schema) . name($table)
	  . pack('CC', scalar @$key, scalar @$set)
	  . join('', map { name($_) . "\0" } @$key, @$set);
	my $change = "\0" . join('', map { pack('C', 1 + length $_) . $_ } @values);
	return unpack('H*',
		"\4\0\1" . pack('C', length $change) . pack('C', length $shape) . $shape . $change);
}

ask($master, 'CREATE SEQUENCE forged START 1000');
my %refused = (
	'the catalog' => [
		changes('U', 'pg_catalog', 'pg_authid', ['rolname'], ['rolsuper'], 'alice', 'true'),
		qr/the master may not change "pg_catalog\.pg_authid"/ ],
	'its position' => [
		changes('D', 'public', 'pyreplica_position', ['replica'], [], 'postgres'),
		qr/the master may not change "public\.pyreplica_position"/ ],
	'rows without a key' => [
		changes('D', 'public', 'ours', [], []),
		qr/columns that the operation cannot have/ ],
	'a truncate of columns' => [
		changes('T', 'public', 'ours', [], ['n'], '1'),
		qr/columns that the operation cannot have/ ]);
foreach my $what (sort keys %refused)
{
	my ($hex, $message) = @{ $refused{$what} };
	my $held = hold_back($master, $slave);
	my $here = log_position($slave);
	forge($hex);
	let_go($held);
	ok(wait_log($slave, $here, $message), "a master cannot change $what");
	ask($master, q(DELETE FROM replica_log WHERE commitno = (SELECT max(commitno) FROM replica_log)));
	wait_caught_up($slave);
}
is(ask($slave, q(SELECT rolsuper FROM pg_roles WHERE rolname = 'alice')), 'f', 'nobody became a superuser');
is(count_log($slave, 0, qr/terminated by signal/), 0, 'and nothing crashed');

done_testing();
