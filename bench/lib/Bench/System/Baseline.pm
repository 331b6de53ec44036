# A cluster that nobody replicates.

package Bench::System::Baseline;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use parent 'Bench::System';

sub title ($self) { return 'baseline'; }

sub has_slave ($self) { return 0; }

1;
