# The server's own logical replication with values in binary.

package Bench::System::NativeBinary;

use strict;
use warnings;
use feature 'signatures';
no warnings 'experimental::signatures';

use parent 'Bench::System::Native';

sub title ($self) { return 'native binary'; }

sub own_settings ($self) { return (binary => 'true'); }

1;
