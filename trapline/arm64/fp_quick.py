"""Floating point by the host's own instructions: which operation, and when its result is the architecture's.

A row of `QUICK` belongs to a function of fp_single and fp_double. It gives the same results as that function, with no exception
but Inexact, whenever its control condition and its check hold; those of `host` and `tracked` say that Inexact has been reported.
Operands are `Bits` or `Vec`: a vector costs one operation and one check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trapline.arm64.fp import (
    FZ,
    IXC,
    RMODE,
    ROUND_FPCR,
    ROUND_NEGINF,
    ROUND_POSINF,
    ROUND_TIEAWAY,
    ROUND_TIEEVEN,
    ROUND_ZERO,
)
from trapline.bits import Bits, Vec, const, convert, lasting, real

ALTERNATIVE = 7
"""FPCR.FIZ, AH and NEP (FEAT_AFP): other rules for denormals, NaNs and unused elements."""

FRACTION = {32: 23, 64: 52}
BIAS = {32: 127, 64: 1023}
Value = Any
"""`Bits`, or `Vec` for several."""


def esize_of(a: Value) -> int:
    """Width of a number, or of one lane."""
    return a.esize if isinstance(a, Vec) else int(a.width)


def holds(a: Value) -> Bits:
    """Whether a comparison holds, in every lane."""
    return a.all() if isinstance(a, Vec) else a


# -- control conditions: functions of FPCR and FPSR ------------------------------------------------------------------------
def plain(fpcr: Bits, fpsr: Bits) -> Bits:
    """Denormal operands count at their value. Enough where nothing is rounded."""
    return lasting((fpcr.trunc(32) & (FZ | ALTERNATIVE)) == 0)


def nearest(fpcr: Bits, fpsr: Bits) -> Bits:
    """Also, FPCR rounds to nearest."""
    return lasting((fpcr.trunc(32) & (FZ | RMODE | ALTERNATIVE)) == 0)


def host(fpcr: Bits, fpsr: Bits) -> Bits:
    """Also, an inexact result would report nothing new."""
    return nearest(fpcr, fpsr) & lasting(fpsr[IXC.bit_length() - 1])


def tracked(fpcr: Bits, fpsr: Bits) -> Bits:
    """The same, where the host notices rounding exactly when the architecture does."""
    return nearest(fpcr, fpsr) & lasting(fpsr[IXC.bit_length() - 1], inexact=True)


# -- checks ----------------------------------------------------------------------------------------------------------------
def _is_finite(result: Value) -> Value:
    esize = esize_of(result)
    return (result + result).ult((2 * BIAS[esize] + 1) << FRACTION[esize] + 1)


def _is_ordinary(result: Value) -> Value:
    unit = 1 << FRACTION[esize_of(result)] + 1
    return (result + result + unit).uge(3 * unit)


def _is_zero(a: Value) -> Value:
    return real("feq", a, 0)


def finite(result: Value, *operands: Value) -> Bits:
    """Neither infinity nor NaN: for sums, which are exact where they are denormal or zero, and for square roots."""
    return holds(_is_finite(result))


def ordinary(result: Value, *operands: Value) -> Bits:
    """Normal, and above the lowest exponent, where the result may have been tiny before it was rounded.

    With 1 added to the exponent field these are the values from 3 on: infinity wraps to 0, denormals and the lowest exponent
    become 1 and 2.
    """
    return holds(_is_ordinary(result))


def zero_factor(result: Value, *operands: Value) -> Bits:
    """Ordinary, or nothing to round since the product is zero."""
    a, b = operands[-2:]
    return holds(_is_ordinary(result) | (_is_zero(a) | _is_zero(b)) & _is_finite(result))


def zero_dividend(result: Value, *operands: Value) -> Bits:
    """Ordinary, or zero because the first operand is."""
    return holds(_is_ordinary(result) | _is_zero(operands[0]) & _is_finite(result))


def numbers(result: Value, *operands: Value) -> Bits:
    """No operand is a NaN."""
    first, last = operands[0], operands[-1]
    return holds(real("ford", first, last))


@dataclass(frozen=True)
class Quick:
    """`operation` on the operands of a function; `check` and `control` tell whether it may stand for the function.

    `check` is what nearly always holds and costs little, `further` what else will do.
    """

    operation: Callable[..., Value]
    check: Callable[..., Bits]
    control: Callable[[Bits, Bits], Bits]
    further: Callable[..., Bits] | None = None


def _simple(name: str) -> Callable[..., Value]:
    return lambda *operands: real(name, *operands)


def _negated(a: Value) -> Value:
    return a ^ 1 << esize_of(a) - 1


def number(value: int, esize: int) -> int:
    """The pattern of a power of two, or of one and a half times one."""
    exponent = value.bit_length() - 1
    return BIAS[esize] + exponent << FRACTION[esize] | (value - (1 << exponent)) << FRACTION[esize] - exponent


def _recip_step(a: Value, b: Value) -> Value:
    return real("fmuladd", _negated(a), b, number(2, esize_of(a)))


def _rsqrt_step(a: Value, b: Value) -> Value:
    esize = esize_of(a)
    return real("fmul", real("fmuladd", _negated(a), b, number(3, esize)), BIAS[esize] - 1 << FRACTION[esize])


QUICK = {
    "fp_add": Quick(_simple("fadd"), finite, tracked),
    "fp_sub": Quick(_simple("fsub"), finite, tracked),
    "fp_mul": Quick(_simple("fmul"), ordinary, tracked, zero_factor),
    "fp_mulx": Quick(_simple("fmul"), ordinary, tracked, zero_factor),
    "fp_div": Quick(_simple("fdiv"), ordinary, tracked, zero_dividend),
    "fp_sqrt": Quick(_simple("fsqrt"), finite, tracked),
    "fp_muladd": Quick(lambda addend, a, b: real("fmuladd", a, b, addend), ordinary, tracked, zero_factor),
    "fp_recip_step": Quick(_recip_step, ordinary, tracked),
    "fp_rsqrt_step": Quick(_rsqrt_step, ordinary, tracked),
    "fp_max": Quick(_simple("fmax"), numbers, plain),
    "fp_min": Quick(_simple("fmin"), numbers, plain),
    "fp_maxnm": Quick(_simple("fmax"), numbers, plain),
    "fp_minnm": Quick(_simple("fmin"), numbers, plain),
    "fp_compare_eq": Quick(_simple("feq"), numbers, plain),
    "fp_compare_ge": Quick(lambda a, b: real("fle", b, a), numbers, plain),
    "fp_compare_gt": Quick(lambda a, b: real("flt", b, a), numbers, plain),
}
"""By the function's name without its width. Comparisons give one bit, or lanes of all ones where they hold."""

WIDEN = Quick(lambda a: convert("fpext", a, 64), numbers, plain)
"""fp_convert_32_64."""

NARROW = Quick(lambda a: convert("fptrunc", a, 32), ordinary, tracked)
"""fp_convert_64_32."""


# -- integers --------------------------------------------------------------------------------------------------------------
INTEGRAL = {
    ROUND_TIEEVEN: "froundeven",
    ROUND_POSINF: "fceil",
    ROUND_NEGINF: "ffloor",
    ROUND_ZERO: "ftrunc",
    ROUND_TIEAWAY: "fround",
    ROUND_FPCR: "froundeven",
}


def round_int(mode: int, exact: int) -> Quick:
    """fp_round_int: `exact` reports an inexact result, ROUND_FPCR needs FPCR to say nearest."""
    return Quick(_simple(INTEGRAL[mode]), numbers, host if exact else nearest if mode == ROUND_FPCR else plain)


def _scale(fraction_bits: Any, esize: int, sign: int) -> Bits:
    """Two to the power of `fraction_bits` times `sign`; the number of bits may be an immediate operand."""
    distance = const(fraction_bits, esize)
    bias = const(BIAS[esize], esize)
    return (bias + distance if sign > 0 else bias - distance) << FRACTION[esize]


def to_fixed(size: int, unsigned: int, mode: int, fraction_bits: Any) -> Quick:
    """fp_to_fixed, with a result of `size` bits, if it fits."""

    def integral(a: Value) -> Value:
        esize = esize_of(a)
        scaled = a if isinstance(fraction_bits, int) and not fraction_bits else real("fmul", a, _scale(fraction_bits, esize, 1))
        return scaled if mode == ROUND_ZERO else real(INTEGRAL[mode], scaled)

    def fits(result: Value, a: Value) -> Bits:
        rounded, esize = integral(a), esize_of(a)
        power = BIAS[esize] + size << FRACTION[esize]
        if unsigned:
            zero = rounded ^ rounded
            return holds(real("fle", zero, rounded)) & holds(real("flt", rounded, power))
        return holds(real("flt", rounded & (1 << esize - 1) - 1, power - (1 << FRACTION[esize])))

    return Quick(lambda a: convert("fptoui" if unsigned else "fptosi", integral(a), size), fits, host)


def from_fixed(width: int, unsigned: int, fraction_bits: Any, value: Value) -> tuple[Value, Bits | None]:
    """fixed_to_fp of an integer as wide as it is: the number, and whether it is exact (None if always)."""
    size, digits = esize_of(value), FRACTION[width] + 1
    result = convert("uitofp" if unsigned else "sitofp", value, width)
    if not (isinstance(fraction_bits, int) and not fraction_bits):
        result = real("fmul", result, _scale(fraction_bits, width, -1))
    if size <= digits:
        return result, None
    distance = value if unsigned else value + (1 << digits)
    return result, holds(distance.ule(1 << digits + (not unsigned)))
