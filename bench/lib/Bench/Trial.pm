# A trial: a long run that must keep promises.  What all have in common: where
# they work, what is to be ended at their end, what was promised and what came
# of it.

package Bench::Trial;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(progress);
use Bench::Schema qw(make_template);
use POSIX ();

# kind: copy, verify, cost
sub new ($class, $kind, $work_dir, $options)
{
	return bless {
		kind => $kind,
		work_dir => $work_dir,
		options => $options,
		record => {},
		promises => [],
		at_end => [],
		directories => [],
	}, $class;
}

# A pair's own directory.
sub new_directory ($self)
{
	my $directory =
	  "$self->{work_dir}/$self->{kind}-" . @{ $self->{directories} };
	mkdir $directory or die "$directory: $!\n";
	push @{ $self->{directories} }, $directory;
	return $directory;
}

sub template ($self, $content)
{
	return $self->{templates}{ $content->{name} } //=
	  make_template($self->{work_dir}, $content);
}

# What must be done however the trial ends, last things first; it may be done
# already.
sub on_end ($self, $code)
{
	push @{ $self->{at_end} }, $code;
	return;
}

sub end_all ($self)
{
	while (my $code = pop @{ $self->{at_end} })
	{
		eval { $code->(); 1 } or warn $@;
	}
	return;
}

# Notes whether the value is as it should be.
sub promise ($self, $what, $value, $goal, $is_kept)
{
	my $kept = $is_kept->($value) ? 1 : 0;
	push @{ $self->{promises} },
	  { what => $what, value => $value, goal => $goal, kept => $kept };
	progress($kept ? 'kept' : 'BROKEN', $what, "$value ($goal)");
	return;
}

sub has_failed ($self)
{
	return !@{ $self->{promises} } || grep { !$_->{kept} } @{ $self->{promises} };
}

# All that is known, for JSON.
sub results ($self)
{
	return {
		trial => $self->{kind},
		date => POSIX::strftime('%Y-%m-%d', localtime),
		options => $self->{options},
		promises => $self->{promises},
		record => $self->{record},
		(map { $_ => $self->{$_} } grep { defined $self->{$_} }
			  qw(server_version machine load_average error)),
	};
}

# Runs it; true if all promises were kept.  The reason is in {error} if it could
# not be brought to its end.
sub run ($self)
{
	my $class = 'Bench::Trial::' . ucfirst $self->{kind};
	my $complete = eval { $class->can('run')->($self); 1 };
	$self->{error} = $@ unless $complete;
	$self->end_all;
	my ($template) = values %{ $self->{templates} // {} };
	$self->{server_version} = $template->{version} if $template;
	return $complete && !$self->has_failed;
}

1;
