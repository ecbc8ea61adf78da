# The script of `make bench`: words of a text counted, sorted, joined and matched, and some arithmetic. Written for Trapline, MIT licence.
use strict;
use warnings;

my (%count, @lines);
while (my $line = <STDIN>) {
    chomp $line;
    last if $. > 5000;
    push @lines, $line if $. % 7 == 0;
    $count{lc $_}++ for $line =~ /([a-z]+)/gi;
}
my @order = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
printf "%-12s %6d\n", $_, $count{$_} for @order[0 .. 9];

my $swapped = 0;
for (@lines) {
    $swapped += s/\b(\w+) (\w+)\b/$2,$1/g;
}
my $digest = 0;
for my $line (@lines) {
    $digest = ($digest * 33 + unpack("%32C*", $line)) % 4294967296;
}
my @sieve = (1) x 20000;
for my $n (2 .. 141) {
    next unless $sieve[$n];
    for (my $k = $n * $n; $k < @sieve; $k += $n) { $sieve[$k] = 0 }
}
my $primes = grep { $sieve[$_] } 2 .. $#sieve;
print scalar(@order), " $swapped $digest $primes\n";
