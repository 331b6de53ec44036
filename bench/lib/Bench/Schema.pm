# The tables that every cluster of the benchmark begins with.  A template is
# made once; baseline, masters and slaves are copies of its files, so all
# begin with the same content at the same place.

package Bench::Schema;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Exporter 'import';
use Bench::Cluster;

our @EXPORT_OK = qw(make_template replicated_tables tpcb_tables bulk_table);

sub tpcb_tables ()
{
	return
	  qw(pgbench_accounts pgbench_branches pgbench_tellers pgbench_history);
}

# Each bulk run takes a table that no run has touched before.
sub bulk_table ($number)
{
	return sprintf('bench_bulk_%02d', $number);
}

sub replicated_tables ($bulk_tables)
{
	return (tpcb_tables(), 'bench_insert', 'bench_heartbeat',
		map { bulk_table($_) } 1 .. $bulk_tables);
}

# The template, stopped and ready to be copied.
sub make_template ($work_dir, $scale, $bulk_tables)
{
	my $template = Bench::Cluster->new($work_dir, 'template')->initdb->start;
	my $postgres = $template->connect('postgres');
	$postgres->do("CREATE DATABASE $Bench::Cluster::DATABASE");
	$postgres->disconnect;
	create_tables($template, $scale, $bulk_tables);
	$template->do('VACUUM ANALYZE', 'CHECKPOINT');
	$template->{version} = $template->server_version;
	$template->stop;
	return $template;
}

sub create_tables ($cluster, $scale, $bulk_tables)
{
	$cluster->pgbench_init($scale);
	$cluster->do(
		'ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY',
		'CREATE TABLE bench_insert
		   (id bigserial PRIMARY KEY, payload text NOT NULL)',
		'CREATE TABLE bench_heartbeat
		   (id bigserial PRIMARY KEY, made timestamptz NOT NULL)');
	$cluster->do('CREATE TABLE '
		  . bulk_table($_)
		  . ' (id integer PRIMARY KEY, payload text NOT NULL)')
	  foreach 1 .. $bulk_tables;
	return;
}

1;
