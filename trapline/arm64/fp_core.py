"""Unpacking, NaN selection, rounding and packing: what every floating-point operation is made of.

The format is a parameter `n` (16, 32 or 64, the width in bits).  Callers pass it as a constant, so that the compiled
code is specialised by inlining; the source exists once.

A finite non-zero number is (sign, exponent, significand) with the leading one of the significand in bit 63:
its value is significand * 2^(exponent - 63).  Bits below the format's precision are rounding information, the lowest
one sticky.  Signs are u64 0 or 1, exponents s64 and unbiased.
"""

from __future__ import annotations

from trapline.arm64.fp import (
    DN,
    FZ,
    FZ16,
    IDC,
    IOC,
    IXC,
    OFC,
    RMODE_SHIFT,
    ROUND_FPCR,
    ROUND_NEGINF,
    ROUND_ODD,
    ROUND_TIEAWAY,
    ROUND_TIEEVEN,
    UFC,
)
from trapline.bits.native import clz, native, s64, u1, u32, u64

# FPType of the manual.  Distinct bits, so that the kinds of several operands can be or-ed and tested at once.
FINITE, ZERO, INFINITY, QNAN, SNAN = 0, 1, 2, 4, 8

LEADING_ONE = 1 << 63
HALF = 1 << 63  # one half, as a fraction of 64 bits
ALL_ONES = (1 << 64) - 1


@native
def fraction_bits(n: u64) -> u64:
    """Number of stored fraction bits of the format."""
    return u64(52) if n == 64 else u64(23) if n == 32 else u64(10)


@native
def top_exponent(n: u64) -> u64:
    """The all-ones exponent field of the format."""
    return u64(2047) if n == 64 else u64(255) if n == 32 else u64(31)


@native
def bias(n: u64) -> s64:
    """Exponent bias of the format; also the exponent of its largest numbers."""
    return s64(top_exponent(n) >> 1)


@native
def sign_of(n: u64, a: u64) -> u64:
    """The sign bit."""
    return (a >> (n - 1)) & 1


@native
def rounding_mode(fpcr: u32) -> u32:
    """FPRoundingMode: the mode selected by FPCR.RMode."""
    return (fpcr >> RMODE_SHIFT) & 3


@native
def explicit_mode(mode: u32, fpcr: u32) -> u32:
    """The given mode, with ROUND_FPCR resolved."""
    return rounding_mode(fpcr) if mode == ROUND_FPCR else mode


@native
def flushes(n: u64, fpcr: u32) -> u1:
    """Whether denormals of this format are flushed to zero."""
    return (fpcr & (FZ16 if n == 16 else FZ)) != 0


@native
def fp_zero(n: u64, sign: u64) -> u64:
    """FPZero."""
    return sign << (n - 1)


@native
def fp_infinity(n: u64, sign: u64) -> u64:
    """FPInfinity."""
    return (sign << (n - 1)) | (top_exponent(n) << fraction_bits(n))


@native
def fp_max_normal(n: u64, sign: u64) -> u64:
    """FPMaxNormal."""
    return fp_infinity(n, sign) - 1


@native
def fp_default_nan(n: u64) -> u64:
    """FPDefaultNaN: positive, quiet, nothing else set."""
    return ((top_exponent(n) << 1) | 1) << (fraction_bits(n) - 1)


@native
def fp_unpack(n: u64, a: u64, fpcr: u32) -> tuple[u32, s64, u64, u32]:
    """FPUnpack: (kind, exponent, significand, flags); the last three count only for FINITE, except IDC in flags."""
    biased = (a >> fraction_bits(n)) & top_exponent(n)
    fraction = a << (64 - fraction_bits(n))
    if biased - 1 < top_exponent(n) - 1:  # neither 0, which wraps, nor all ones
        return FINITE, s64(biased) - bias(n), (fraction >> 1) | LEADING_ONE, 0
    if biased != 0:
        if fraction == 0:
            return INFINITY, 0, 0, 0
        if fraction >= HALF:
            return QNAN, 0, 0, 0
        return SNAN, 0, 0, 0
    if fraction == 0:
        return ZERO, 0, 0, 0
    if flushes(n, fpcr):
        if n == 16:  # half precision does not report flushed inputs
            return ZERO, 0, 0, 0
        return ZERO, 0, 0, IDC
    shift = u64(clz(fraction))
    return FINITE, 0 - bias(n) - s64(shift), fraction << shift, 0


@native
def fp_process_nan(n: u64, kind: u32, a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPProcessNaN: the quietened operand or the default NaN, and IOC for a signalling one."""
    result = fp_default_nan(n) if fpcr & DN else a | (u64(1) << (fraction_bits(n) - 1))
    if kind == SNAN:
        return result, IOC
    return result, 0


@native
def fp_process_nans(n: u64, kind_a: u32, a: u64, kind_b: u32, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPProcessNaNs, for operands of which one at least is a NaN: signalling ones first, then in operand order."""
    if kind_a == SNAN or (kind_b != SNAN and kind_a == QNAN):
        return fp_process_nan(n, kind_a, a, fpcr)
    return fp_process_nan(n, kind_b, b, fpcr)


@native
def shift_right_sticky(x: u64, count: u64) -> u64:
    """x >> count, with the bits shifted out or-ed into the lowest one."""
    count = count if count < 64 else u64(64)
    return (x >> count) | u64((x << (64 - count)) != 0)


@native
def round_up(mode: u32, sign: u64, odd: u64, fraction: u64) -> u64:
    """1 if a magnitude whose lowest kept bit is `odd` moves away from zero for the dropped 64-bit `fraction`."""
    if mode == ROUND_TIEEVEN:
        return u64(fraction > HALF - odd)
    if mode == 1 + u32(sign):  # ROUND_POSINF of a positive, ROUND_NEGINF of a negative number
        return u64(fraction != 0)
    if mode == ROUND_TIEAWAY:
        return u64(fraction >= HALF)
    if mode == ROUND_ODD:
        return u64(fraction != 0) & (odd ^ 1)
    return 0


@native
def overflow_result(n: u64, sign: u64, mode: u32) -> u64:
    """Infinity or the largest finite number, by rounding mode."""
    if mode == ROUND_TIEEVEN or mode == ROUND_TIEAWAY or mode == 1 + u32(sign):
        return fp_infinity(n, sign)
    return fp_max_normal(n, sign)


@native
def round_pack(n: u64, sign: u64, exponent: s64, significand: u64, mode: u32, flush: u1, alternative: u1) -> tuple[u64, u32]:
    """FPRoundBase: (result, flags) of a finite non-zero number.

    `flush` makes tiny results zero (tininess is detected before rounding); `alternative` selects the alternative
    half-precision format, without infinities and NaNs.
    """
    biased = exponent + bias(n)
    flags: u32 = 0
    if biased <= 0:
        if flush:
            return fp_zero(n, sign), UFC
        significand = shift_right_sticky(significand, u64(1 - biased))
        biased = s64(1)
        flags = UFC
    kept = significand >> (63 - fraction_bits(n))
    fraction = significand << (fraction_bits(n) + 1)
    # The leading one, if there is one, and a carry out of the fraction both add to the exponent field.
    packed = (u64(biased - 1) << fraction_bits(n)) + kept + round_up(mode, sign, kept & 1, fraction)
    if alternative:
        if packed >> (n - 1) != 0:
            return (sign << (n - 1)) | ((u64(1) << (n - 1)) - 1), IOC
    elif packed >= fp_infinity(n, 0):
        return overflow_result(n, sign, mode), OFC | IXC
    if fraction == 0:
        return (sign << (n - 1)) | packed, 0
    return (sign << (n - 1)) | packed, flags | IXC


@native
def fp_round(n: u64, sign: u64, exponent: s64, significand: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRound: round_pack under the control of FPCR."""
    return round_pack(n, sign, exponent, significand, rounding_mode(fpcr), flushes(n, fpcr), 0)


@native
def exact_zero(n: u64, fpcr: u32) -> u64:
    """The zero that a sum of opposite numbers gives."""
    return fp_zero(n, u64(rounding_mode(fpcr) == ROUND_NEGINF))


@native
def ordering_key(n: u64, a: u64) -> s64:
    """An integer that orders like the number, for numbers that are no NaN; -0 is below +0."""
    key = s64(a << (64 - n))
    return key ^ s64(u64(key >> 63) >> 1)
