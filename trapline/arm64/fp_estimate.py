"""Reciprocal and reciprocal square root estimates."""

from __future__ import annotations

from trapline.arm64.fp import DZC, IOC, IXC, OFC, UFC
from trapline.arm64.fp_core import (
    INFINITY,
    QNAN,
    ZERO,
    bias,
    flushes,
    fp_default_nan,
    fp_infinity,
    fp_process_nan,
    fp_unpack,
    fp_zero,
    fraction_bits,
    overflow_result,
    rounding_mode,
    sign_of,
    top_exponent,
)
from trapline.arm64.fp_tables import RECIP_ESTIMATE, RSQRT_ESTIMATE
from trapline.bits.native import native, u32, u64


@native
def fp_recip_estimate(n: u64, a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRecipEstimate: 8 bits of 1/a."""
    sign = sign_of(n, a)
    kind, exponent, significand, flags = fp_unpack(n, a, fpcr)
    if kind >= QNAN:
        nan, nan_flags = fp_process_nan(n, kind, a, fpcr)
        return nan, flags | nan_flags
    if kind == INFINITY:
        return fp_zero(n, sign), flags
    if kind == ZERO:
        return fp_infinity(n, sign), flags | DZC
    if exponent < 0 - bias(n) - 1:
        return overflow_result(n, sign, rounding_mode(fpcr)), flags | OFC | IXC
    if exponent >= bias(n) - 1 and flushes(n, fpcr):
        return fp_zero(n, sign), flags | UFC
    estimate = u64(RECIP_ESTIMATE[(significand >> 55) - 256])
    biased = bias(n) - 1 - exponent  # -1 and 0 are denormal results
    fraction = estimate << (fraction_bits(n) - 8)  # with the leading one
    if biased <= 0:
        return fp_zero(n, sign) | (fraction >> u64(1 - biased)), flags
    return fp_zero(n, sign) | ((u64(biased - 1) << fraction_bits(n)) + fraction), flags


@native
def fp_rsqrt_estimate(n: u64, a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRSqrtEstimate: 8 bits of 1/sqrt(a)."""
    sign = sign_of(n, a)
    kind, exponent, significand, flags = fp_unpack(n, a, fpcr)
    if kind >= QNAN:
        nan, nan_flags = fp_process_nan(n, kind, a, fpcr)
        return nan, flags | nan_flags
    if kind == ZERO:
        return fp_infinity(n, sign), flags | DZC
    if sign:
        return fp_default_nan(n), flags | IOC
    if kind == INFINITY:
        return 0, flags
    even = u64(exponent & 1) ^ 1
    estimate = u64(RSQRT_ESTIMATE[(significand >> (55 + even)) - 128])
    biased = u64((2 * bias(n) - 1 - exponent) >> 1)
    return ((biased - 1) << fraction_bits(n)) + (estimate << (fraction_bits(n) - 8)), flags


@native
def fp_recpx(n: u64, a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRecpX: the exponent of the reciprocal, as a power of two."""
    kind, _, _, flags = fp_unpack(n, a, fpcr)
    if kind >= QNAN:
        nan, nan_flags = fp_process_nan(n, kind, a, fpcr)
        return nan, flags | nan_flags
    biased = (a >> fraction_bits(n)) & top_exponent(n)
    biased = top_exponent(n) - (biased if biased != 0 else u64(1))
    return fp_zero(n, sign_of(n, a)) | (biased << fraction_bits(n)), flags


@native
def unsigned_recip_estimate(a: u32) -> u32:
    """UnsignedRecipEstimate: of a / 2^32, in units of 2^-31; all ones if a is below one half."""
    if a >> 31 == 0:
        return 0xFFFF_FFFF
    return u32(RECIP_ESTIMATE[(a >> 23) - 256]) << 23


@native
def unsigned_rsqrt_estimate(a: u32) -> u32:
    """UnsignedRSqrtEstimate: of a / 2^32, in units of 2^-31; all ones if a is below one quarter."""
    if a >> 30 == 0:
        return 0xFFFF_FFFF
    return u32(RSQRT_ESTIMATE[(a >> 23) - 128]) << 23
