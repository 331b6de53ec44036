# How many rows a master has sent for copies: what pg_stat_statements says of the
# COPY statements that ended, and pg_stat_progress_copy of those that had not
# when one of the servers was killed.
#
# A master that is killed forgets; so it is asked right before.  To be quick
# then, texts are not read at that moment: whatever has a text that was not there
# some milliseconds earlier is a COPY, or has no rows.  What is sent between
# that look and the kill is not counted; how long looks took tells how much that
# can be.

package Bench::Trial::Reads;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use List::Util qw(max min sum0);
use Time::HiRes qw(time);

our $ROLE = 'pyreplica';
our $COPY = q{query LIKE 'COPY (SELECT %'};

sub settings ()
{
	return (
		shared_preload_libraries => 'pg_stat_statements',
		'pg_stat_statements.max' => 50_000,
		'pg_stat_statements.save' => 'off');
}

# In another database than the one that is copied, which is dumped.
sub new ($class, $master)
{
	my $self = bless {
		master => $master,
		ended => 0,
		interrupted => 0,
		gaps => [],
		chunks => [],
	}, $class;
	$self->connect;
	$self->{dbh}->do('CREATE EXTENSION pg_stat_statements');
	return $self;
}

sub connect ($self)
{
	$self->{dbh} = $self->{master}->connect('postgres');
	return;
}

# Before a kill, in time.
sub prepare ($self)
{
	$self->{others} = $self->{dbh}->selectcol_arrayref(
		"SELECT DISTINCT queryid FROM pg_stat_statements
		  WHERE NOT ($COPY)");
	$self->{seen} = $self->{dbh}->selectall_arrayref(
		"SELECT rows / calls AS rows, calls,
				total_exec_time / calls / 1000 AS seconds
		   FROM pg_stat_statements WHERE $COPY",
		{ Slice => {} });
	return;
}

# Right before a kill of either server.
sub look ($self)
{
	my $begin = time();
	@{$self}{qw(ended_now interrupted_now)} =
	  $self->{dbh}->selectrow_array(
		q{SELECT (SELECT coalesce(sum(rows), 0)
					FROM pg_stat_statements(false) s
				   WHERE s.userid = ?::regrole
					 AND s.queryid <> ALL (?::bigint[])),
				 (SELECT coalesce(sum(tuples_processed), 0)
					FROM pg_stat_progress_copy WHERE command = 'COPY TO')},
		undef, $ROLE, $self->{others});
	push @{ $self->{gaps} }, time() - $begin;
	return;
}

# One of them has been killed.
sub interrupted ($self, $is_master)
{
	$self->{interrupted} += $self->{interrupted_now};
	return unless $is_master;
	$self->keep;
	$self->connect;
	return;
}

sub keep ($self)
{
	$self->{ended} += $self->{ended_now};
	push @{ $self->{chunks} }, @{ $self->{seen} };
	return;
}

# The copy is complete.
sub finish ($self)
{
	$self->prepare;
	$self->look;
	pop @{ $self->{gaps} };
	$self->keep;
	return;
}

# Rows sent, in all.
sub rows ($self)
{
	return $self->{ended} + $self->{interrupted};
}

# What it may be more: as if nothing but reading had been done in the gaps, but
# not beyond the end of a chunk.
sub uncounted ($self)
{
	my $seconds = sum0(map { $_->{seconds} * $_->{calls} } $self->chunks);
	return 0 if $seconds == 0;
	my $rate = $self->{ended} / $seconds;
	my $chunk = max(map { $_->{rows} } $self->chunks);
	return int(sum0(map { min($_ * $rate, $chunk) } @{ $self->{gaps} }));
}

# Those that were sent in full: { rows, calls, seconds }
sub chunks ($self)
{
	return @{ $self->{chunks} };
}

1;
