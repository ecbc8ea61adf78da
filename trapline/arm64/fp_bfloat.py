"""BFloat16: the upper half of single precision.

Sums of products (without FEAT_EBF16) have arithmetic of their own, in which FPCR has no say: rounding to odd, denormals are
zero, the only NaN is the default one, and no exception is reported.
"""

from __future__ import annotations

from trapline.arm64.fp import DN, FZ, IOC, IXC, OFC, ROUND_ODD, UFC
from trapline.arm64.fp_core import (
    FINITE,
    INFINITY,
    QNAN,
    SNAN,
    ZERO,
    fp_default_nan,
    fp_infinity,
    fp_unpack,
    fp_zero,
    overflow_result,
    round_pack,
    round_up,
    rounding_mode,
    shift_right_sticky,
    sign_of,
)
from trapline.bits.native import clz, native, s64, u16, u32, u64

TOP_EXPONENT = 0x7F80
DEFAULT_NAN = 0x7FC0


@native
def bf_round(sign: u64, exponent: s64, significand: u64) -> u32:
    """BFRound: to odd, but an overflow is infinite."""
    result, flags = round_pack(32, sign, exponent, significand, ROUND_ODD, 1, 0)
    return u32(fp_infinity(32, sign) if flags & OFC else result)


@native
def bf_mul(a: u16, b: u16) -> u32:
    """BFMulH: the single-precision product, exact in its range."""
    wide_a = u64(a) << 16
    wide_b = u64(b) << 16
    sign = sign_of(32, wide_a ^ wide_b)
    kind_a, exponent_a, significand_a, _ = fp_unpack(32, wide_a, FZ)
    kind_b, exponent_b, significand_b, _ = fp_unpack(32, wide_b, FZ)
    kinds = kind_a | kind_b
    if kinds != FINITE:
        if kinds >= QNAN or kinds == INFINITY | ZERO:
            return u32(fp_default_nan(32))
        if kinds & INFINITY:
            return u32(fp_infinity(32, sign))
        return u32(fp_zero(32, sign))
    product = (significand_a >> 32) * (significand_b >> 32)
    shift = u64(clz(product))
    return bf_round(sign, exponent_a + exponent_b + 1 - s64(shift), product << shift)


@native
def bf_add(a: u32, b: u32) -> u32:
    """FPAdd_BF16: the sum of two single-precision numbers."""
    sign_a = sign_of(32, u64(a))
    sign_b = sign_of(32, u64(b))
    kind_a, exponent_a, significand_a, _ = fp_unpack(32, u64(a), FZ)
    kind_b, exponent_b, significand_b, _ = fp_unpack(32, u64(b), FZ)
    kinds = kind_a | kind_b
    if kinds != FINITE:
        if kinds >= QNAN or (kind_a & kind_b & INFINITY and sign_a != sign_b):
            return u32(fp_default_nan(32))
        if kinds & INFINITY:
            return a if kind_a == INFINITY else b
        if kind_a == FINITE:
            return a
        if kind_b == FINITE:
            return b
        return u32(fp_zero(32, sign_a & sign_b))
    swap = exponent_a < exponent_b or (exponent_a == exponent_b and significand_a < significand_b)
    exponent = exponent_b if swap else exponent_a
    distance = u64(exponent_b - exponent_a if swap else exponent_a - exponent_b)
    large = (significand_b if swap else significand_a) >> 1  # room for a carry
    small = shift_right_sticky((significand_a if swap else significand_b) >> 1, distance)
    total = large + small if sign_a == sign_b else large - small
    if total == 0:
        return 0
    shift = u64(clz(total))
    return bf_round(sign_b if swap else sign_a, exponent + 1 - s64(shift), total << shift)


@native
def bf_dot_add(addend: u32, n: u32, m: u32) -> u32:
    """BFDotAdd: the addend and two products; n and m hold two BFloat16 numbers each."""
    low = bf_mul(u16(n), u16(m))
    high = bf_mul(u16(n >> 16), u16(m >> 16))
    return bf_add(addend, bf_add(low, high))


@native
def fp_convert_bf_32(a: u32, fpcr: u32) -> tuple[u16, u32]:
    """FPConvertBF: from single precision, rounding as FPCR says."""
    sign = sign_of(32, u64(a))
    kind, _, _, flags = fp_unpack(32, u64(a), fpcr)
    if kind >= QNAN:
        if kind == SNAN:
            flags = flags | IOC
        return u16(DEFAULT_NAN) if fpcr & DN else u16(a >> 16) | 0x40, flags
    if kind == ZERO:
        return u16(sign << 15), flags
    mode = rounding_mode(fpcr)
    kept = u64(a >> 16) & 0x7FFF
    fraction = u64(a) << 48
    packed = kept + round_up(mode, sign, kept & 1, fraction)
    if kind == FINITE and packed >= TOP_EXPONENT:
        return u16(overflow_result(32, sign, mode) >> 16), OFC | IXC
    if fraction != 0:
        flags = flags | (IXC if kept >= 0x80 else IXC | UFC)  # as in single precision, tiny before rounding
    return u16(sign << 15) | u16(packed), flags
