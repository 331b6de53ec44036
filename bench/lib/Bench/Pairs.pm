# Fresh pairs of clusters, one at a time: each measurement begins at the same
# state, whatever ran before, and nothing else of the benchmark is running.
#
# A measurement that fails is noted and does not keep the others from being
# made; see failures in the results.

package Bench::Pairs;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Command qw(progress);
use Bench::Schema qw(make_template);
use Bench::System::Baseline;
use File::Path qw(remove_tree);

our $INTERRUPTED = "interrupted\n";

# For the signals that end the benchmark.
sub interrupt (@)
{
	die $INTERRUPTED;
}

# results: gets what note_system and note_failure say.
sub new ($class, $top_dir, $results, $keep)
{
	return bless {
		top_dir => $top_dir,
		results => $results,
		keep => $keep,
		templates => {},
		made => 0,
	}, $class;
}

# Calls the code with a system that is set up on clusters of this content.
# False if that failed.
sub with_system ($self, $class, $content, $code)
{
	my $work_dir = sprintf('%s/%03d', $self->{top_dir}, ++$self->{made});
	mkdir $work_dir or die "$work_dir: $!\n";
	my $system;
	my $complete = eval {
		$system = $class->new($work_dir, $self->template($content));
		$system->setup;
		$self->note_system($system);
		$code->($system);
		1;
	};
	my $error = $@;
	$system->teardown if $system;
	remove_tree($work_dir) unless $self->{keep};
	$self->note_failure($class->name, $content->{name}, $error)
	  unless $complete;
	return $complete;
}

sub with_baseline ($self, $content, $code)
{
	return $self->with_system('Bench::System::Baseline', $content, $code);
}

sub template ($self, $content)
{
	my $template = $self->{templates}{ $content->{name} } //=
	  make_template($self->{top_dir}, $content);
	$self->{results}{server_version} //= $template->{version};
	return $template;
}

sub note_system ($self, $system)
{
	return unless $system->has_slave;
	my ($results, $name) = ($self->{results}, $system->name);
	$results->{titles}{$name} //= $system->title;
	$results->{versions}{$name} //= $system->version;
	$results->{settings}{$name} //= $system->settings_text;
	return;
}

# Only the end of everything goes on.
sub note_failure ($self, $name, $what, $error)
{
	die $error if $error eq $INTERRUPTED;
	push @{ $self->{results}{failures} },
	  { system => $name, what => $what, error => $error };
	progress('FAILED', $name, $what, $error =~ s/\s+\z//r);
	return;
}

1;
