"""When the host's arithmetic gives exactly what the architecture wants."""

from __future__ import annotations

from trapline.arm64.fp import FZ, IXC, RMODE
from trapline.arm64.fp_core import fraction_bits, top_exponent
from trapline.bits.native import native, u1, u32, u64

# Rounding to nearest, no flushing, and nothing to learn from an inexact result (see fp about bit 4).
HOST_CONTROLS = RMODE | FZ | IXC


@native
def host_rounds_alike(fpcr: u32) -> u1:
    """Whether the host rounds as FPCR says, and IXC is known to be set."""
    return fpcr & HOST_CONTROLS == IXC


@native
def is_ordinary(n: u64, a: u64) -> u1:
    """Whether a host result proves that nothing but IXC was raised.

    An infinity or NaN may stem from one, or raise others; the lowest normal exponent may have been tiny before rounding.
    Operands of an ordinary result of add, subtract, multiply, divide, square root and multiply-add are no NaNs, and denormal
    ones count at their value since they are not flushed.
    """
    return ((a >> fraction_bits(n)) & top_exponent(n)) - 2 < top_exponent(n) - 2
