# Two masters, each the slave of the other, and clients that write the same rows
# on both.  With last_update_wins they end with the same rows.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use IPC::Run;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $conf = <<'CONF';
shared_preload_libraries = 'pyreplica'
track_commit_timestamp = on
pyreplica.conflict_resolution = last_update_wins
pyreplica.copy_data = off
pyreplica.retry_interval_max = 1s
CONF
my $one = new_master('one', conf => $conf);
my $two = new_slave($one, 'two', conf => $conf);
wait_worker($two);

sub ask
{
	my ($node, $sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# In "rows" updates set all columns, and commit times tell; in "told" a column
# does; rows of "fewer" are deleted, too, and not made anew.
on_both($one, $two, <<'SQL');
CREATE TABLE rows (id int PRIMARY KEY, a text, b text);
CREATE TABLE told (id int PRIMARY KEY, a text, changed timestamptz);
CREATE TABLE fewer (id int PRIMARY KEY, a text);
CREATE TABLE columns (id int PRIMARY KEY, a text, b text);
SQL
foreach my $node ($one, $two)
{
	log_table($node, 'rows', 'told', 'fewer');
	ask($node, q(SELECT py_log_create_tg('columns', log_old => true)));
}
set_conf($one, conninfo_setting($two));
wait_worker($one);
foreach my $node ($one, $two)
{
	ask($node, q(SELECT pyreplica_set_conflict_resolution('told', 'last_update_wins', 'changed')));
}
ask($one, <<'SQL');
INSERT INTO fewer SELECT i, 'old' FROM generate_series(1, 400) i;
INSERT INTO columns SELECT i, 'old', 'old' FROM generate_series(1, 50) i;
SQL
wait_caught_up($two);

# A client there that does many small transactions, of a few changes each.  It
# may meet the worker on its way.
sub start_client
{
	my ($node, $name, $column) = @_;
	my $sql = <<"SQL";
DO \$\$
DECLARE
	k	int;
	v	text;
BEGIN
	FOR i IN 1 .. 500 LOOP
		v := '$name ' || i;
		BEGIN
			FOR j IN 1 .. 3 LOOP
				k := 1 + random() * 20;
				INSERT INTO rows VALUES (k, v || ' a' || j, v || ' b' || j)
					ON CONFLICT (id) DO UPDATE SET a = excluded.a, b = excluded.b;
				INSERT INTO told VALUES (k, v || ' a' || j, clock_timestamp())
					ON CONFLICT (id) DO UPDATE SET a = excluded.a, changed = clock_timestamp();
				EXIT WHEN random() < 0.5;
			END LOOP;
			UPDATE columns SET $column = v WHERE id = 1 + i % 50;
			IF random() < 0.2 THEN
				DELETE FROM fewer WHERE id = 1 + (random() * 400)::int;
			ELSE
				UPDATE fewer SET a = v WHERE id = 1 + (random() * 400)::int;
			END IF;
		EXCEPTION WHEN deadlock_detected THEN
			NULL;
		END;
		COMMIT;
		IF random() < 0.1 THEN
			PERFORM pg_sleep(random() * 0.01);
		END IF;
	END LOOP;
END
\$\$;
SQL
	return IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-c', $sql ]);
}

foreach my $round (1 .. 3)
{
	# the second time, one of them applies in strict order
	set_conf($one, 'pyreplica.apply_mode = ' . ($round == 2 ? 'strict' : 'auto'));
	my @clients = (
		start_client($one, "one $round", 'a'),
		start_client($two, "two $round", 'b'));
	$_->finish for @clients;
	is(join('', map { $_->result // '' } @clients), '', "round $round: the clients were not disturbed");

	# what one has from the other is not logged again, so twice is enough
	wait_caught_up($_) for ($one, $two, $one, $two);
	is_same_rows($one, $two, $_, "round $round: $_ are the same on both")
	  for ('rows', 'told', 'fewer', 'columns');
}
foreach my $node ($one, $two)
{
	my $name  = $node->name;
	my $kinds = ask($node, q(SELECT string_agg(DISTINCT kind || ' ' || outcome, ', ') FROM pyreplica_conflicts WHERE tablename <> 'fewer'));
	like($kinds, qr/update_origin_differs applied remote/, "$name: sometimes the other was later");
	like($kinds, qr/update_origin_differs kept local/, "$name: and sometimes this one");
	is(ask($node, q(SELECT count(*) FROM pyreplica_conflicts WHERE tablename = 'columns')),
		0, "$name: changes of different columns are no conflict");
	is(ask($node, q(SELECT count(*) > 0 FROM columns WHERE a = 'old' OR b = 'old')),
		'f', "$name: and all are here");
	like(status_value($node, 'last_error') // '', qr/^(?:deadlock detected.*)?$/s,
		"$name: nothing failed that is not made good by trying again");
}

done_testing();
