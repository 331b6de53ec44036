# Fresh pairs of clusters, one at a time: each measurement begins at the same
# state, whatever ran before, and nothing else of the benchmark is running.

package Bench::Pairs;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Bench::Schema qw(make_template);
use Bench::System::Baseline;
use File::Path qw(remove_tree);

# results: gets the systems' versions.
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
sub with_system ($self, $class, $content, $code)
{
	my $work_dir = sprintf('%s/%03d', $self->{top_dir}, ++$self->{made});
	mkdir $work_dir or die "$work_dir: $!\n";
	my $system;
	my $complete = eval {
		$system = $class->new($work_dir, $self->template($content));
		$system->setup;
		$self->note_version($system);
		$code->($system);
		1;
	};
	my $error = $@;
	$system->teardown if $system;
	remove_tree($work_dir) unless $self->{keep};
	die $error unless $complete;
	return;
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

sub note_version ($self, $system)
{
	return unless $system->has_slave;
	$self->{results}{titles}{ $system->name } //= $system->title;
	$self->{results}{versions}{ $system->name } //= $system->version;
	return;
}

1;
