# Tables in partitions and without a key go on to the next slave, whatever the one in
# between makes of them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use PostgreSQL::Test::Utils;
use PyreplicaTest;
use Test::More;

my $node_a = new_node('a');
my $node_b = new_node('b');
my $node_c = new_node('c');

my $columns = 'id int, region text, a text, PRIMARY KEY (id, region)';
my $parts = "CREATE TABLE leaf ($columns) PARTITION BY LIST (region);
CREATE TABLE leaf_n PARTITION OF leaf FOR VALUES IN ('north');
CREATE TABLE leaf_s PARTITION OF leaf FOR VALUES IN ('south');
CREATE TABLE bag (id int, a text);
";
$node_a->safe_psql('postgres', "$parts CREATE TABLE root ($columns) PARTITION BY LIST (region);
CREATE TABLE root_n PARTITION OF root FOR VALUES IN ('north');
CREATE TABLE root_s PARTITION OF root FOR VALUES IN ('south')");
$node_b->safe_psql('postgres', "$parts CREATE TABLE root ($columns) PARTITION BY HASH (id);
CREATE TABLE root_0 PARTITION OF root FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE root_1 PARTITION OF root FOR VALUES WITH (MODULUS 2, REMAINDER 1)");
$node_c->safe_psql('postgres', "$parts CREATE TABLE root ($columns)");
foreach my $node ($node_a, $node_b)
{
	$node->safe_psql('postgres', q(SELECT py_log_create_tg('root', via_root => true), py_log_create_tg('leaf'), py_log_create_tg('bag', key => '{*}')));
}
forward_table($node_b, qw(root leaf bag));
follow($node_c, $node_b);
follow($node_b, $node_a);

sub are_equal
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($node_b);
	wait_caught_up($node_c);
	foreach my $table (qw(root leaf bag))
	{
		is_same_rows($node_a, $_, $table, "$name: $table on " . $_->name) for $node_b, $node_c;
	}
	return;
}

sub sql
{
	my ($sql) = @_;
	$node_a->safe_psql('postgres', $sql);
	return;
}

foreach my $t ('root', 'leaf')
{
	sql("INSERT INTO $t SELECT i, CASE i % 3 WHEN 0 THEN 'north' ELSE 'south' END, 'x' FROM generate_series(1, 300) i;
	UPDATE $t SET a = 'y' WHERE id % 2 = 0; UPDATE $t SET region = 'north' WHERE id % 5 = 0; UPDATE $t SET id = id + 1000 WHERE id % 7 = 0; DELETE FROM $t WHERE id % 11 = 0");
}
sql(q(INSERT INTO bag SELECT i % 10, 'x' FROM generate_series(1, 300) i; DELETE FROM bag WHERE ctid IN (SELECT min(ctid) FROM bag GROUP BY id); UPDATE bag SET a = 'y' WHERE ctid IN (SELECT max(ctid) FROM bag GROUP BY id)));
are_equal('changes');
sql('TRUNCATE root_n, leaf_n');
are_equal('a partition truncated');
sql(q(ALTER TABLE root DETACH PARTITION root_s; UPDATE root_s SET a = 'outside'));
are_equal('detached');
sql(q(ALTER TABLE root ATTACH PARTITION root_s FOR VALUES IN ('south')));
are_equal('attached');
sql('TRUNCATE root, leaf, bag');
are_equal('truncated');
sql(q(INSERT INTO root VALUES (1, 'north', 'z'); INSERT INTO leaf VALUES (1, 'south', 'z'); INSERT INTO bag VALUES (1, 'z'), (1, 'z')));
are_equal('and begun again');
$node_b->safe_psql('postgres', q(ALTER TABLE root DETACH PARTITION root_1; CREATE TABLE root_3 PARTITION OF root FOR VALUES WITH (MODULUS 2, REMAINDER 1)));
is($node_b->safe_psql('postgres', q(SELECT count(*) FROM pg_trigger WHERE tgname ~ '^!py_log' AND tgenabled <> 'A')), '0', 'new partitions pass on, too');
$node_b->safe_psql('postgres', 'TRUNCATE root');
wait_caught_up($node_c);
is($node_c->safe_psql('postgres', 'SELECT count(*) FROM root'), '0', 'the middle one truncates');
is(status_value($_, 'conflicts'), '0', $_->name . ' has met no conflict') for $node_b, $node_c;

done_testing();
