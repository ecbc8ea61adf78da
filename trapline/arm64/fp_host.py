"""Arithmetic by the host, for the exact functions: with the flags, or the answer that it is not for the host.

Every function returns (result, flags, whether they are right). They are right in the default rounding mode without flushing,
where the result is in no doubt and it is known whether it is exact: FPSR.IXC is set already (see fp about bit 4), or what the
operation left over can be computed without rounding.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from trapline.arm64.fp import FZ, IXC, RMODE
from trapline.arm64.fp_core import fraction_bits, top_exponent
from trapline.bits.native import native, u1, u32, u64
from trapline.bits.native_float import float_add, float_div, float_mul, float_muladd, float_sqrt, float_sub


@native
def host_rounds_alike(fpcr: u32) -> u1:
    """Whether the host rounds as FPCR says."""
    return fpcr & (RMODE | FZ) == 0


@native
def exponent_of(n: u64, a: u64) -> u64:
    """The exponent field."""
    return (a >> fraction_bits(n)) & top_exponent(n)


@native
def is_finite(n: u64, a: u64) -> u1:
    """Neither infinity nor NaN."""
    return exponent_of(n, a) != top_exponent(n)


@native
def is_ordinary(n: u64, a: u64) -> u1:
    """Whether a host result proves that nothing but IXC was raised.

    An infinity or NaN may stem from one, or raise others; the lowest normal exponent may have been tiny before rounding.
    Operands of an ordinary result of add, subtract, multiply, divide, square root and multiply-add are no NaNs, and denormal
    ones count at their value since they are not flushed.
    """
    return exponent_of(n, a) - 2 < top_exponent(n) - 2


@native
def has_room(n: u64, a: u64) -> u1:
    """Whether what lies twice a significand below is no denormal yet."""
    return exponent_of(n, a) >= fraction_bits(n) << 1


@native
def can_be_summed(n: u64, a: u64) -> u1:
    """Whether sums of two or three like this one are finite."""
    return exponent_of(n, a) < top_exponent(n) - 2


@native
def is_zero(n: u64, a: u64) -> u1:
    """Either zero."""
    return a << (65 - n) == 0


def functions(word: Any, n: int) -> SimpleNamespace:
    """The functions for numbers of `n` bits."""

    @native(name=f"flags_{n}")
    def flags_of(rest: word) -> u32:
        return u32(0) if is_zero(n, u64(rest)) else u32(IXC)

    @native(name=f"two_sum_rest_{n}")
    def two_sum_rest(a: word, b: word, result: word) -> word:
        """What a sum leaves over (Knuth's two-sum)."""
        second = float_sub(result, a)
        first = float_sub(result, second)
        return float_add(float_sub(a, first), float_sub(b, second))

    @native(name=f"host_add_{n}")
    def add(a: word, b: word, fpcr: u32) -> tuple[word, u32, u1]:
        """The sum. What it leaves over is a number, and can be had without rounding."""
        result = float_add(a, b)
        if not host_rounds_alike(fpcr) or not is_finite(n, u64(result)):
            return 0, 0, 0
        if fpcr & IXC:
            return result, 0, 1
        return result, flags_of(two_sum_rest(a, b, result)), 1

    @native(name=f"host_mul_{n}")
    def mul(a: word, b: word, fpcr: u32) -> tuple[word, u32, u1]:
        """The product."""
        result = float_mul(a, b)
        if not host_rounds_alike(fpcr):
            return 0, 0, 0
        if is_ordinary(n, u64(result)):
            if fpcr & IXC:
                return result, 0, 1
            if has_room(n, u64(result)):
                return result, flags_of(float_muladd(a, b, result ^ (word(1) << (n - 1)))), 1
        return result, 0, is_finite(n, u64(result)) and (is_zero(n, u64(a)) or is_zero(n, u64(b)))

    @native(name=f"host_div_{n}")
    def div(a: word, b: word, fpcr: u32) -> tuple[word, u32, u1]:
        """The quotient."""
        result = float_div(a, b)
        if not host_rounds_alike(fpcr) or not is_ordinary(n, u64(result)):
            return 0, 0, 0
        if fpcr & IXC:
            return result, 0, 1
        return result, flags_of(float_muladd(result ^ (word(1) << (n - 1)), b, a)), has_room(n, u64(a))

    @native(name=f"host_sqrt_{n}")
    def sqrt(a: word, fpcr: u32) -> tuple[word, u32, u1]:
        """The square root."""
        result = float_sqrt(a)
        if not host_rounds_alike(fpcr) or not is_ordinary(n, u64(result)):
            return 0, 0, 0
        if fpcr & IXC:
            return result, 0, 1
        return result, flags_of(float_muladd(result ^ (word(1) << (n - 1)), result, a)), has_room(n, u64(a))

    @native(name=f"host_muladd_{n}")
    def muladd(addend: word, a: word, b: word, fpcr: u32) -> tuple[word, u32, u1]:
        """addend + a * b. What it leaves over is the sum of two numbers (Boldo and Muller, "Exact and approximated error of the FMA")."""
        result = float_muladd(a, b, addend)
        if not host_rounds_alike(fpcr):
            return 0, 0, 0
        if is_ordinary(n, u64(result)):
            if fpcr & IXC:
                return result, 0, 1
            product = float_mul(a, b)
            if has_room(n, u64(product)) and can_be_summed(n, u64(product)) and can_be_summed(n, u64(addend)):
                low = float_muladd(a, b, product ^ (word(1) << (n - 1)))
                middle = float_add(addend, low)
                middle_rest = two_sum_rest(addend, low, middle)
                high = float_add(product, middle)
                high_rest = two_sum_rest(product, middle, high)
                return result, flags_of(float_add(float_add(float_sub(high, result), high_rest), middle_rest)), 1
        return result, 0, is_finite(n, u64(result)) and (is_zero(n, u64(a)) or is_zero(n, u64(b)))

    return SimpleNamespace(add=add, mul=mul, div=div, sqrt=sqrt, muladd=muladd)
