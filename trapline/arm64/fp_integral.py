"""Floating point to integers in ways of their own: within the range of another type (FEAT_FRINTTS), modulo 2^32 (FEAT_JSCVT)."""

from __future__ import annotations

from trapline.arm64.fp import IOC, IXC, ROUND_ZERO
from trapline.arm64.fp_convert import fp_round_int, round_to_integer
from trapline.arm64.fp_core import FINITE, INFINITY, ZERO, bias, fp_unpack, fp_zero, fraction_bits, sign_of
from trapline.bits.native import native, s64, u1, u32, u64


@native
def fp_round_int_n(n: u64, a: u64, size: u32, mode: u32, fpcr: u32) -> tuple[u64, u32]:
    """FPRoundIntN: as FPRoundInt, but what a signed integer of `size` bits cannot hold is its lowest number, and invalid."""
    sign = sign_of(n, a)
    kind, _, _, _ = fp_unpack(n, a, fpcr)
    limit = u64(bias(n) + s64(size) - 1) << fraction_bits(n)  # 2^(size - 1)
    lowest = fp_zero(n, 1) | limit
    if kind >= INFINITY:
        return lowest, IOC
    result, flags = fp_round_int(n, a, mode, 1, fpcr)
    magnitude = result & (fp_zero(n, 1) - 1)
    if magnitude > limit or (magnitude == limit and sign == 0):
        return lowest, IOC
    return result, flags


@native
def fp_round_int_n_32(a: u32, size: u32, mode: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPRoundIntN, single precision."""
    result, flags = fp_round_int_n(32, u64(a), size, mode, fpcr)
    return u32(result), flags


@native
def fp_round_int_n_64(a: u64, size: u32, mode: u32, fpcr: u32) -> tuple[u64, u32]:
    """FPRoundIntN, double precision."""
    return fp_round_int_n(64, a, size, mode, fpcr)


@native
def fp_to_fixed_js(a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPToFixedJS: the integer modulo 2^32 in bits 31..0, and in bit 32 whether it is the number that `a` is (Z)."""
    sign = sign_of(64, a)
    kind, exponent, significand, flags = fp_unpack(64, a, fpcr)
    if kind == ZERO:
        return u64(a == 0) << 32, flags  # neither -0 nor a flushed denormal is exact
    if kind != FINITE or exponent >= 63 + 53:
        return 0, flags | IOC  # above, all bits of the integer below 2^32 are zero
    magnitude = significand << u64(exponent - 63) if exponent > 63 else u64(0)
    inexact = u1(0)
    if exponent <= 63:
        magnitude, inexact = round_to_integer(sign, exponent, significand, ROUND_ZERO)
    result = (0 - magnitude if sign else magnitude) & 0xFFFF_FFFF
    if exponent > 31 or magnitude > 0x7FFF_FFFF + sign:
        return result, flags | IOC
    if inexact:
        return result, flags | IXC
    return result | (1 << 32), flags
