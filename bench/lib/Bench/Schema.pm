# The tables that clusters begin with.  A template is made once; baseline,
# masters and slaves are copies of its files, so all begin with the same content
# at the same place.
#
# A content is
#   name     of the template's directory
#   tables   what is replicated, beside the heartbeat table that all have
#   create   makes the tables on a cluster

package Bench::Schema;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Exporter 'import';
use Bench::Cluster;

our @EXPORT_OK =
  qw(make_template overhead_content tpcb_content tpcb_tables bulk_table
  create_payload_table);

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

sub overhead_content ($scale, $bulk_tables)
{
	my $tpcb = tpcb_content($scale);
	my @bulk_tables = map { bulk_table($_) } 1 .. $bulk_tables;
	return {
		name => 'overhead',
		tables => [ @{ $tpcb->{tables} }, 'bench_insert', @bulk_tables ],
		create => sub ($cluster) {
			$tpcb->{create}->($cluster);
			$cluster->do(
				'CREATE TABLE bench_insert
				   (id bigserial PRIMARY KEY, payload text NOT NULL)',
				map { create_payload_table($_) } @bulk_tables);
		}
	};
}

sub tpcb_content ($scale)
{
	return {
		name => 'tpcb',
		tables => [ tpcb_tables() ],
		create => sub ($cluster) {
			$cluster->pgbench_init($scale);
			$cluster->do(
				'ALTER TABLE pgbench_history
				 ADD COLUMN id bigserial PRIMARY KEY');
		}
	};
}

sub create_payload_table ($table)
{
	return "CREATE TABLE $table
		(id integer PRIMARY KEY, payload text NOT NULL)";
}

# The template, stopped and ready to be copied.
sub make_template ($work_dir, $content)
{
	my $template =
	  Bench::Cluster->new($work_dir, "template-$content->{name}",
		wal_recycle => 'off');
	$template->initdb->start;
	my $postgres = $template->connect('postgres');
	$postgres->do("CREATE DATABASE $Bench::Cluster::DATABASE");
	$postgres->disconnect;
	$content->{create}->($template);
	$template->do(
		'CREATE TABLE bench_heartbeat
		   (id bigserial PRIMARY KEY, made timestamptz NOT NULL)',
		'VACUUM ANALYZE', 'CHECKPOINT');
	$template->{tables} = [ @{ $content->{tables} }, 'bench_heartbeat' ];
	$template->{version} = $template->server_version;
	$template->stop;
	return $template;
}

1;
