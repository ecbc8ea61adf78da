"""IEEE 754 arithmetic of the host on bit patterns, as intrinsics of the native subset: u32 is binary32, u64 binary64.

Rounding is to nearest, ties to even; denormals are kept; no exception is reported. A result that is not a number is *some* NaN:
its bits differ between the executions, so callers must not let them through.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction

from trapline.bits.native_types import Intrinsic

_FORMATS = {32: ("<I", "<f"), 64: ("<Q", "<d")}


def _value(bits: int, width: int) -> float:
    integer, real = _FORMATS[width]
    return float(struct.unpack(real, struct.pack(integer, bits))[0])


def _bits(value: float, width: int) -> int:
    """Rounding a double result to binary32 again is harmless for + - * / and square root: it has more than twice the bits."""
    integer, real = _FORMATS[width]
    try:
        return int(struct.unpack(integer, struct.pack(real, value))[0])
    except OverflowError:
        return _bits(math.copysign(math.inf, value), width)


def _binary(operation: Callable[[float, float], float]) -> Callable[[int, int, int], int]:
    return lambda a, b, width: _bits(operation(_value(a, width), _value(b, width)), width)


def _divide(a: float, b: float) -> float:
    if b:
        return a / b
    return a * math.copysign(math.inf, b) if a else math.nan


def _square_root(a: int, width: int) -> int:
    value = _value(a, width)
    return _bits(math.sqrt(value) if value >= 0 else math.nan, width)


def _multiply_add(a: int, b: int, c: int, width: int) -> int:
    x, y, z = _value(a, width), _value(b, width), _value(c, width)
    if not (math.isfinite(x) and math.isfinite(y)):
        return _bits(x * y + z, width)
    if not math.isfinite(z):
        return _bits(z, width)
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if not exact:
        return _bits(0.0 if x and y else x * y + z, width)
    try:
        nearest = exact.numerator / exact.denominator
    except OverflowError:
        return _bits(math.inf if exact > 0 else -math.inf, width)
    if width == 32 and nearest != exact:
        # To odd instead, so that the second rounding sees on which side of a tie the sum was.
        pattern = _bits(nearest, 64)
        if not pattern & 1:
            nearest = _value(pattern + (1 if abs(exact) > abs(nearest) else -1), 64)
    return _bits(nearest, width)


float_add = Intrinsic("float_add", (None, None), "same", _binary(lambda a, b: a + b), sized=True, pure=True)
float_sub = Intrinsic("float_sub", (None, None), "same", _binary(lambda a, b: a - b), sized=True, pure=True)
float_mul = Intrinsic("float_mul", (None, None), "same", _binary(lambda a, b: a * b), sized=True, pure=True)
float_div = Intrinsic("float_div", (None, None), "same", _binary(_divide), sized=True, pure=True)
float_sqrt = Intrinsic("float_sqrt", (None,), "same", _square_root, sized=True, pure=True)
float_muladd = Intrinsic("float_muladd", (None, None, None), "same", _multiply_add, sized=True, pure=True)
"""a * b + c, rounded once."""
