# A process that looks at a server at short intervals while a trial runs, and
# goes on when the server comes back after it was killed.

package Bench::Trial::Watch;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use IO::Handle;
use POSIX ();
use Time::HiRes qw(sleep time);

# What pyreplica's sessions keep on the master: seconds since the transaction
# began whose snapshot is held, and transactions that have begun since then.
our $SNAPSHOTS = <<'SQL';
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0),
	   coalesce(max(age(backend_xmin)), 0)
  FROM pg_stat_activity
 WHERE application_name LIKE 'pyreplica%' AND backend_xmin IS NOT NULL
SQL

# How far the copy of each table was committed, and when.
our $PROGRESS = <<'SQL';
SELECT schemaname || '.' || tablename, rows_copied,
	   extract(epoch FROM pg_xact_commit_timestamp(xmin))
  FROM pyreplica_table
 WHERE rows_copied > 0
SQL

# query: each row that was not among those of the look before is a line of the
# file, after the time; all rows if "all" is true
sub start ($class, $cluster, $file, $seconds, $query, $all)
{
	my $pid = fork() // die "could not fork: $!\n";
	if ($pid == 0)
	{
		local @SIG{qw(INT TERM)} = ('DEFAULT') x 2;
		eval { watch($cluster, $file, $seconds, $query, $all); 1 }
		  or print STDERR "watch: $@";
		POSIX::_exit(1);
	}
	return bless { pid => $pid, file => $file }, $class;
}

sub watch ($cluster, $file, $seconds, $query, $all)
{
	open(my $out, '>', $file) or die "$file: $!\n";
	$out->autoflush(1);
	my $dbh;
	my %seen;
	for (;;)
	{
		my $next = time() + $seconds;
		my $rows = eval {
			$dbh //= $cluster->connect;
			$dbh->selectall_arrayref($query);
		};
		$dbh = undef unless $rows;
		my @lines = map { join("\t", @$_) } @{ $rows // [] };
		print $out join('', map { time() . "\t$_\n" }
			  grep { $all || !$seen{$_} } @lines);
		%seen = map { $_ => 1 } @lines if $rows;
		sleep($next - time()) if $next > time();
	}
	return;
}

# Ends it and returns the lines, split.
sub finish ($self)
{
	my $is_running = waitpid($self->{pid}, POSIX::WNOHANG()) == 0;
	die "a watch has ended by itself\n" unless $is_running;
	$self->abandon;
	open(my $in, '<', $self->{file}) or die "$self->{file}: $!\n";
	return map { chomp; [ split /\t/ ] } grep { /\n\z/ } <$in>;
}

sub abandon ($self)
{
	kill 'KILL', $self->{pid};
	waitpid($self->{pid}, 0);
	return;
}

1;
