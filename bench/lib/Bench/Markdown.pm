# How tables look.

package Bench::Markdown;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use Exporter 'import';

our @EXPORT_OK = qw(section milliseconds);

sub section ($title, $note, $head, @rows)
{
	my @lines =
	  map { '| ' . join(' | ', @$_) . ' |' }
	  ($head, [ map { '---' } @$head ], @rows);
	return join("\n", "### $title", '', $note, '', @lines, '');
}

sub milliseconds ($format, $seconds)
{
	return sprintf($format, $seconds * 1000);
}

1;
