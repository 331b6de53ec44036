# One server is the slave of several masters, in several databases and several
# masters in one.  Replicas come, change and go with a reload, and fail, while the
# others run on; and nobody gets to see how the masters are reached.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $secret = 'password=Rumpelstilzchen';

# Two masters.  The slave starts with one replica, "postgres".
my $tables = <<'SQL';
CREATE TABLE n (id int PRIMARY KEY, a text);
CREATE TABLE s (id int PRIMARY KEY, a text);
CREATE TABLE shared (region text, id int, a text, PRIMARY KEY (region, id));
SQL
my $north = new_master('north');
my $south = new_master('south');
$_->safe_psql('postgres', $tables) for ($north, $south);
$north->safe_psql('postgres', q(INSERT INTO n VALUES (0, 'from before')));
$south->safe_psql('postgres', q(INSERT INTO s VALUES (0, 'from before')));
log_table($north, 'n', 'shared');
log_table($south, 's', 'shared');
my $slave = new_slave($north, 'slave', conf => "log_statement = none\nrestart_after_crash = on\n");
wait_worker($slave);
$slave->safe_psql('postgres', $tables);
$slave->safe_psql('postgres', 'CREATE DATABASE regions');
$slave->safe_psql('regions',  $tables);

# A row more on each master.
my $rows = 0;

sub insert_everywhere
{
	$rows++;
	$north->safe_psql('postgres',
		"INSERT INTO n VALUES ($rows, 'north'); INSERT INTO shared VALUES ('north', $rows, 'x')"
	);
	$south->safe_psql('postgres',
		"INSERT INTO s VALUES ($rows, 'south'); INSERT INTO shared VALUES ('south', $rows, 'x')"
	);
	return;
}

# What a database has of a table.
sub rows_of
{
	my ($node, $database, $table, $condition) = @_;
	$condition //= 'true';
	return content($node, "(SELECT * FROM $table WHERE $condition)",
		$database);
}

# Whether the slave has everything.
sub is_complete
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($here, $there) = ('', '');
	$slave->safe_psql($_, 'SELECT pyreplica_wait()') for qw(postgres regions);
	foreach my $part (
		[ $north, 'postgres', 'n',      'id > 0' ],
		[ $north, 'postgres', 'shared', q(region = 'north') ],
		[ $north, 'regions',  'n',      'id > 0' ],
		[ $north, 'regions',  'shared', q(region = 'north') ],
		[ $south, 'regions',  's' ],
		[ $south, 'regions',  'shared', q(region = 'south') ])
	{
		my ($master, $database, @what) = @$part;
		$here .= rows_of($slave, $database, @what) . "\n--\n";
		$there .= rows_of($master, 'postgres', @what) . "\n--\n";
	}
	return is($here, $there, $name);
}

sub pid_of
{
	my ($replica) = @_;
	return replica_value($slave, $replica, 'pid');
}

# --- Who looks on: ordinary users, in old sessions, new ones, and all the time ---

my @settings = map {
	("pyreplica_$_.master_conninfo", "pyreplica_$_.master_coninfo", "pyreplica_$_.apply_mode")
} qw(upper lower spare broken);
push @settings, 'pyreplica.master_conninfo';
$slave->safe_psql('postgres', <<'SQL');
CREATE ROLE ordinary LOGIN;
CREATE FUNCTION peek(settings text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	name text;
	seen text := '';
BEGIN
	FOREACH name IN ARRAY settings LOOP
		BEGIN
			seen := seen || name || ':' || coalesce(current_setting(name, true), 'unknown') || E'\n';
		EXCEPTION WHEN insufficient_privilege THEN
			seen := seen || name || E':hidden\n';
		END;
	END LOOP;
	RETURN seen || (SELECT string_agg(s.name || ':' || s.setting, E'\n') FROM pg_settings s WHERE s.name LIKE 'pyreplica%');
END
$$;
SQL
my $peek = sprintf('SELECT peek(ARRAY[%s])', join(', ', map { "'$_'" } @settings));
my $peek_file = PostgreSQL::Test::Utils::tempdir() . '/peek.sql';
append_to_file($peek_file, "$peek \\watch 0.02\n");
my $peeker =
  start_looping($slave, 'psql', '-XAtq', '-U', 'ordinary', '-f', $peek_file);
my $old_session = $slave->background_psql('postgres',
	extra_params => [ '-U', 'ordinary' ]);
$old_session->set_query_timer_restart();

# What both see, now that the server has taken in what it was told.
sub seen
{
	return $old_session->query_safe($peek) . "\n"
	  . ($slave->psql('postgres', $peek, extra_params => [ '-U', 'ordinary' ]))[1];
}

sub sees
{
	my ($pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $both = qr/$pattern.*$pattern/s;
	my $last = '';
	return ok(poll_until(sub { ($last = seen()) =~ $both }), $name)
	  || diag($last);
}

# --- Two replicas are added, into one database ---

# Both find it without the extension, and neither can create it yet.
my $postgres_pid = pid_of('postgres');
my $blocker      = $slave->background_psql('regions');
$blocker->set_query_timer_restart();
$blocker->query_safe('BEGIN; LOCK TABLE pg_extension IN SHARE MODE');

# The worst order: the server learns last that these are replicas.
set_conf(
	$slave,
	conninfo_setting($north, $secret, 'upper'),
	'pyreplica_upper.database = regions',
	conninfo_setting($south, $secret, 'lower'),
	'pyreplica_lower.database = regions',
	'pyreplica_lower.copy_data = on',
	"pyreplica.replicas = 'upper, lower'");
ok( poll_until(
		sub {
			$blocker->query_safe(
				q(SELECT count(*) FROM pg_locks WHERE relation = 'pg_extension'::regclass AND NOT granted)
			) eq '2';
		}),
	'a reload starts two replicas, which both want to create the extension');
$blocker->query_safe('COMMIT');
$blocker->quit;
ok(wait_replica($slave, 'upper', q(state = 'waiting')), 'one is ready');
ok(wait_replica($slave, 'lower', q(state = 'waiting')), 'and so is the other');
is( $slave->safe_psql('postgres',
		q(SELECT sum(errors) FROM pyreplica_status)), '0',
	'nothing went wrong on the way');
is( $slave->safe_psql('postgres',
		q(SELECT replica, database FROM pyreplica_status ORDER BY 1)),
	"lower|regions\npostgres|postgres\nupper|regions",
	'pyreplica_status has a row for each');
is(pid_of('postgres'), $postgres_pid, 'the first replica was left alone');

$slave->safe_psql('regions', 'SELECT pyreplica_wait()');
is(rows_of($slave, 'regions', 's', 'id = 0'), '(0,"from before")',
	'the one that is to copy has copied');
is(rows_of($slave, 'regions', 'n', 'id = 0'), '',
	'the other has taken the default of all');
insert_everywhere();
is_complete('both masters write into one database, and into one table');
is( $north->safe_psql('postgres',
		q(SELECT name FROM pyreplica_slaves WHERE connected ORDER BY 1)),
	"postgres\nupper", 'the masters know their slaves by these names');
isnt(master_pid($south, 'lower'), '', 'as do their lists of connections');
is( $slave->safe_psql('postgres',
		q(SELECT application_name FROM pg_stat_activity WHERE backend_type = 'pyreplica worker' ORDER BY 1)
	),
	"pyreplica lower\npyreplica postgres\npyreplica upper",
	'and so does that of the slave');
sees(qr/pyreplica_upper\.master_conninfo:hidden/,
	'nobody may read how they are reached');
sees(qr/pyreplica_upper\.apply_mode:inherit/, 'other settings may be read');
my $shown = $slave->safe_psql('postgres', 'SHOW pyreplica_upper.master_conninfo');
is($shown, '********', 'not even a superuser sees it there');
like(replica_value($slave, 'upper', 'master'), qr/host=(?!.*Rumpel)/,
	'but in pyreplica_status, without the password');

# --- One is changed ---

my %pid = map { $_ => pid_of($_) } qw(postgres upper lower);
my $here = log_position($slave);
set_conf(
	$slave,
	'pyreplica_lower.log_statements = on',
	'pyreplica_lower.keepalive = 1ms');
ok( wait_log($slave, $here,
		qr/invalid value for parameter "pyreplica_lower.keepalive": 1.*The minimum is 1000/s),
	'a value out of bounds is refused');
insert_everywhere();
is_complete('a changed setting does not lose anything');
like(log_since($slave, $here), qr/pyreplica lower: Executing: INSERT INTO public\.s/,
	'it is in force');
unlike(log_since($slave, $here), qr/pyreplica (upper|postgres): Executing/,
	'for that one alone');
set_conf($slave, 'pyreplica_lower.log_statements = inherit',
	'pyreplica_lower.keepalive = -1');

set_conf($slave, 'pyreplica_lower.enabled = off');
ok(wait_replica($slave, 'lower', q(state = 'disabled' AND pid IS NULL)),
	'one is paused');
insert_everywhere();
is( $slave->safe_psql('postgres', q(SELECT pyreplica_wait('upper'))), 't',
	'others can be waited for');
is( $slave->safe_psql('regions',
		q(SELECT pyreplica_wait('lower', '300ms'), pyreplica_wait(NULL, '300ms'), pyreplica_wait('upper'))
	),
	'f|f|t',
	'without a name, all of the database are');
is($slave->safe_psql('postgres', 'SELECT pyreplica_wait()'), 't',
	'and only those');
set_conf($slave, 'pyreplica_lower.enabled = inherit');
is_complete('it goes on as if nothing had been');
is(pid_of($_), $pid{$_}, "$_ has run all the time") for qw(postgres upper);

# A line in another connection string.
my $served_by = master_pid($south, 'lower');
%pid = map { $_ => pid_of($_) } qw(postgres upper lower);
set_conf($slave, conninfo_setting($south, "$secret connect_timeout=7", 'lower'));
ok( poll_until(
		sub {
			my $pid = master_pid($south, 'lower');
			$pid ne '' && $pid ne $served_by;
		}),
	'another connection string makes another connection');
insert_everywhere();
is_complete('of that one');
is(pid_of($_), $pid{$_}, "$_ has its worker still")
  for qw(postgres upper lower);

# --- Some fail ---

$slave->safe_psql('regions', q(INSERT INTO s VALUES (100, 'in the way')));
$south->safe_psql('postgres', q(INSERT INTO s VALUES (100, 'south')));
set_conf(
	$slave,
	"pyreplica_broken.master_conninfo = 'host=/nowhere dbname=x $secret'",
	"pyreplica_broken.database = regions",
	"pyreplica.replicas = 'upper, lower, broken, postgres, blank'",
	conninfo_setting($south, $secret, 'postgres'));
ok(wait_replica($slave, 'lower', q(state = 'error' AND last_error ~ 'conflict insert_exists')),
	'one cannot go on');
ok(wait_replica($slave, 'broken', q(state = 'master away')),
	'one does not find its master');
ok( wait_replica($slave, 'blank',
		q(state = 'error' AND last_error = 'pyreplica_blank.master_conninfo is not set')),
	'one does not know where that is');
ok( poll_until(
		sub {
			$slave->safe_psql('postgres',
				q(SELECT last_error FROM pyreplica_status WHERE replica = 'postgres' AND state = 'error')
			) eq 'there is another replica that is called "postgres"';
		}),
	'one has the name of another');
ok(wait_replica($slave, 'lower', 'errors >= 3'), 'they try again');
insert_everywhere();
is($slave->safe_psql('regions', q(SELECT pyreplica_wait('upper'))), 't',
	'the others go on');
is(rows_of($slave, 'regions', 'n'), rows_of($north, 'postgres', 'n', 'id > 0'),
	'with all they should have');
is(pid_of('upper'), $pid{upper}, 'undisturbed');
is( $slave->safe_psql('postgres',
		q(SELECT pid FROM pyreplica_status WHERE replica = 'postgres' AND pid IS NOT NULL)
	),
	$pid{postgres},
	'even the one whose name was taken');
$slave->safe_psql('regions', 'DELETE FROM s WHERE id = 100');
set_conf($slave, "pyreplica.replicas = 'upper, lower'");
is_complete('the reason gone, all is as it should be');
ok( poll_until(
		sub {
			$slave->safe_psql('postgres',
				q(SELECT count(*) FROM pyreplica_status)) eq '3';
		}),
	'those that are no more are not shown');

# --- What is written wrong ---

foreach my $wrong (
	[ 'upper, Lower', qr/"Lower" cannot be the name of a replica/ ],
	[ 'upper, upper', qr/"upper" is there twice/ ],
	[ 'upper lower',  qr/not a list of names/ ],
	[ 'x' x 60,       qr/cannot be the name of a replica.*53 at most/s ])
{
	my ($list, $complaint) = @$wrong;
	$here = log_position($slave);
	set_conf($slave, "pyreplica.replicas = '$list'");
	ok(wait_log($slave, $here, $complaint), 'refused: ' . substr($list, 0, 20));
}
set_conf($slave, "pyreplica.replicas = 'upper, lower'");
is(pid_of('upper'), $pid{upper}, 'and what ran runs on');

$here = log_position($slave);
set_conf(
	$slave,
	conninfo_setting($south, $secret, 'spare'),
	"pyreplica_spare.master_coninfo = '$secret'");
ok( wait_log($slave, $here,
		qr/there are settings of a replica "spare", but it is not in pyreplica\.replicas/),
	'settings of no replica are told');
ok( wait_log($slave, $here,
		qr/invalid configuration parameter name "pyreplica_spare\.master_coninfo"/),
	'and so is a setting that is none');
sees(qr/pyreplica_spare\.master_conninfo:hidden.*pyreplica_spare\.master_coninfo:unknown/s,
	'neither can be read');

# --- Rows of another master ---

sub refused
{
	my ($sql) = @_;
	return ($slave->psql('regions', $sql))[2];
}

like(refused(q(SELECT pyreplica_resync('shared'))),
	qr/replicated by several replicas: lower, upper/,
	'a table of two masters is not made equal to either unasked');
like(refused('SELECT pyreplica_verify(repair => true)'),
	qr/table "public.shared" is replicated by several replicas/,
	'in no way');
is( $slave->safe_psql('regions',
		q(SELECT count(*) FROM pyreplica_verify('shared', 'upper') WHERE problem = 'extra')),
	$rows,
	'compared with one, the rows of the other are extra');
is($slave->safe_psql('regions', q(SELECT key, problem FROM pyreplica_verify('n'))), '{0}|missing',
	'a table of one is compared with that one');
like(refused(q(SELECT pyreplica_verify(replica => 'postgres'))),
	qr/replica "postgres" does not exist in this database/,
	'a replica of another database knows nothing of it');

# --- One is taken away ---

%pid = map { $_ => pid_of($_) } qw(postgres upper);
set_conf($slave, 'pyreplica_lower.enabled = off');
wait_replica($slave, 'lower', q(state = 'disabled'));
my $waiting = $slave->background_psql('regions', on_error_stop => 0);
$waiting->set_query_timer_restart();
$waiting->query_until(qr/begun/, "\\echo begun\nSELECT pyreplica_wait('lower');\n\\echo ended\n");
ok( poll_until(
		sub {
			$slave->safe_psql('postgres',
				q(SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pyreplica_wait' AND wait_event_type = 'Extension')
			) eq '1';
		}),
	'somebody waits for a replica');
set_conf($slave, "pyreplica.replicas = 'upper'", 'pyreplica_lower.enabled = on');
$waiting->query_until(qr/ended/, '');
like($waiting->{stderr}, qr/the replica does not exist any more/,
	'which is taken away, and learns of it');
$waiting->quit;
ok(poll_until(sub { (replica_value($slave, 'lower', '1') // '?') eq '' }),
	'it is not shown any more');
is(master_pid($south, 'lower'), '', 'its connection is closed');
is( $slave->safe_psql('regions',
		q(SELECT replica FROM pyreplica_position ORDER BY 1)),
	"lower\nupper", 'where it stood is kept');
insert_everywhere();
is($slave->safe_psql('regions', 'SELECT pyreplica_wait()'), 't',
	'nobody waits for it');
is(rows_of($slave, 'regions', 's', "id = $rows"), '',
	'it brings nothing any more');
sees(qr/pyreplica_lower\.master_conninfo:hidden/,
	'its connection string is still nobody\'s business');
set_conf($slave, "pyreplica.replicas = 'upper, lower'");
wait_replica($slave, 'lower', q(state = 'waiting'));
is_complete('back, it goes on where it stood');
is(pid_of($_), $pid{$_}, "$_ did not notice") for qw(postgres upper);

# --- The launcher, or the server, starts anew ---

%pid = map { $_ => pid_of($_) } qw(postgres upper lower);
$here = log_position($slave);
my $launcher = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'pyreplica launcher');
my $launcher_pid = $slave->safe_psql('postgres', $launcher);
$slave->safe_psql('postgres', "SELECT pg_terminate_backend($launcher_pid)");
ok( poll_until(
		sub {
			my $pid = $slave->safe_psql('postgres', $launcher);
			$pid ne '' && $pid ne $launcher_pid;
		}),
	'a new launcher');
set_conf($slave, 'pyreplica_lower.enabled = off');
ok(wait_replica($slave, 'lower', q(state = 'disabled')),
	'finds the workers of the one before');
set_conf($slave, 'pyreplica_lower.enabled = on');
ok(wait_replica($slave, 'lower', q(state = 'waiting')), 'and looks after them');
is(pid_of($_), $pid{$_}, "$_ has its worker still") for qw(postgres upper);
is(count_log($slave, $here, qr/has a worker already/), 0,
	'none was started a second time');

insert_everywhere();
kill('KILL', pid_of('upper'));
poll_until(
	sub {
		my $pid = pid_of('postgres');
		defined $pid && $pid ne '' && $pid ne $pid{postgres};
	});
ok(wait_replica($slave, $_, q(state = 'waiting')), "after a crash $_ is back")
  for qw(postgres upper lower);
insert_everywhere();
is_complete('and nothing is missing');

# --- There are not enough workers ---

my $watched = stop_looping($peeker);
$old_session->quit;
cmp_ok(() = $watched =~ /pyreplica_upper\.master_conninfo:hidden/g, '>', 10,
	'somebody has looked all the time');
unlike($watched, qr/Rumpelstilzchen/, 'and seen no password');
unlike(slurp_file("$peeker->{base}.err"), qr/Rumpelstilzchen/, 'nor was told one');

$slave->append_conf('postgresql.conf',
		"max_worker_processes = 3\npyreplica.replicas = 'upper, lower, spare'\n"
	  . "pyreplica_spare.database = regions\n");
$here = log_position($slave);
$slave->restart;
ok( wait_log($slave, $here,
		qr/could not start a worker for replica "upper": no background worker slot is free\n.*HINT:  Increase max_worker_processes, which is 3/),
	'too few slots for workers: the log says what to do');
ok(wait_replica($slave, 'postgres', q(state = 'waiting')), 'some run');
ok( wait_replica($slave, 'lower',
		q(state = 'error' AND last_error ~ 'no background worker slot is free')),
	'others are shown to be without');
ok( wait_log($slave, $here,
		qr/there is no room for replica "spare": there are more than 3/),
	'and there is no room for more');
set_conf($slave, 'pyreplica.enabled = off', 'pyreplica_lower.enabled = on');
ok(wait_replica($slave, 'lower', q(state = 'waiting')),
	'one starts by itself when a slot is free');
set_conf($slave, 'pyreplica.enabled = on', "pyreplica.replicas = 'upper, lower'");
$slave->append_conf('postgresql.conf', "max_worker_processes = 8\n");
$slave->restart;
wait_replica($slave, $_, q(state = 'waiting')) for qw(postgres upper lower);
is_complete('with enough of them all is well');

is(count_log($slave, 0, qr/Rumpelstilzchen/), 0,
	'the log of the server has no password');

done_testing();
