"""The host's IEEE 754 arithmetic on bit patterns, in Python: what the floating-point operators of expressions and of native
functions mean.

32 bits are binary32, 64 bits binary64. Rounding is to nearest, ties to even; denormals are kept; no exception is reported. Where
a result is not a number it is *some* NaN, and where a conversion does not fit it is *some* integer: the bits differ between the
executions, so whoever uses these functions must not let them through.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction

_FORMATS = {32: ("<I", "<f"), 64: ("<Q", "<d")}


def value_of(bits: int, width: int) -> float:
    """The number that a pattern stands for."""
    integer, real = _FORMATS[width]
    return float(struct.unpack(real, struct.pack(integer, bits))[0])


def bits_of(value: float, width: int) -> int:
    """The pattern of a number, rounded to the width.

    Rounding a double result to binary32 again is harmless for + - * / and square root: it has more than twice the bits.
    """
    integer, real = _FORMATS[width]
    try:
        return int(struct.unpack(integer, struct.pack(real, value))[0])
    except OverflowError:
        return bits_of(math.copysign(math.inf, value), width)


def _rounded(exact: Fraction, width: int) -> int:
    """The pattern nearest to a number other than zero."""
    try:
        nearest = exact.numerator / exact.denominator
    except OverflowError:
        return bits_of(math.inf if exact > 0 else -math.inf, width)
    if width == 32 and nearest != exact:
        # To odd instead, so that the second rounding sees on which side of a tie the number was.
        pattern = bits_of(nearest, 64)
        if not pattern & 1:
            nearest = value_of(pattern + (1 if abs(exact) > abs(nearest) else -1), 64)
    return bits_of(nearest, width)


def binary(operation: Callable[[float, float], float]) -> Callable[[int, int, int], int]:
    """A function of two patterns and their width."""
    return lambda a, b, width: bits_of(operation(value_of(a, width), value_of(b, width)), width)


add = binary(lambda a, b: a + b)
sub = binary(lambda a, b: a - b)
mul = binary(lambda a, b: a * b)


@binary
def div(a: float, b: float) -> float:
    """The quotient; a zero divisor gives an infinity."""
    if b:
        return a / b
    return a * math.copysign(math.inf, b) if a else math.nan


def sqrt(a: int, width: int) -> int:
    """The square root; of -0 it is -0."""
    value = value_of(a, width)
    return bits_of(math.sqrt(value) if value >= 0 else math.nan, width)


def muladd(a: int, b: int, c: int, width: int) -> int:
    """a * b + c, rounded once."""
    x, y, z = value_of(a, width), value_of(b, width), value_of(c, width)
    if not (math.isfinite(x) and math.isfinite(y)):
        return bits_of(x * y + z, width)
    if not math.isfinite(z):
        return bits_of(z, width)
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if not exact:
        return bits_of(0.0 if x and y else x * y + z, width)
    return _rounded(exact, width)


def maximum(a: int, b: int, width: int) -> int:
    """The greater of two numbers; +0 is greater than -0."""
    x, y = value_of(a, width), value_of(b, width)
    return a & b if x == y else a if x > y else b


def minimum(a: int, b: int, width: int) -> int:
    """The lesser of two numbers; -0 is less than +0."""
    x, y = value_of(a, width), value_of(b, width)
    return a | b if x == y else a if x < y else b


def comparison(holds: Callable[[float, float], bool]) -> Callable[[int, int, int], bool]:
    """A comparison, false if an operand is a NaN."""
    return lambda a, b, width: holds(value_of(a, width), value_of(b, width))


def is_ordered(a: int, b: int, width: int) -> bool:
    """Whether neither is a NaN."""
    return not (math.isnan(value_of(a, width)) or math.isnan(value_of(b, width)))


def is_equal_or_unordered(a: int, b: int, width: int) -> bool:
    """Whether neither is less than the other."""
    x, y = value_of(a, width), value_of(b, width)
    return not (x < y or x > y)


def _away(value: float) -> float:
    whole = math.floor(abs(value))
    return math.copysign(whole + (abs(value) - whole >= 0.5), value)


def integral(rounding: Callable[[float], float]) -> Callable[[int, int], int]:
    """Rounding to an integral number, which keeps the sign of zero."""

    def rounded(a: int, width: int) -> int:
        value = value_of(a, width)
        return bits_of(math.copysign(rounding(value), value) if math.isfinite(value) else value, width)

    return rounded


round_even, floor, ceil, truncate, round_away = (integral(f) for f in (round, math.floor, math.ceil, math.trunc, _away))


def resize(a: int, source: int, target: int) -> int:
    """A number in the other format."""
    return bits_of(value_of(a, source), target)


def from_signed(a: int, source: int, target: int) -> int:
    """A signed integer as a number."""
    return from_unsigned(a - (1 << source) if a >> source - 1 else a, source, target)


def from_unsigned(a: int, source: int, target: int) -> int:
    """An unsigned integer as a number."""
    return _rounded(Fraction(a), target) if a else 0


def to_integer(a: int, source: int, target: int) -> int:
    """A number truncated to an integer, signed or unsigned, if it fits."""
    value = value_of(a, source)
    return int(value) & (1 << target) - 1 if math.isfinite(value) else 0
