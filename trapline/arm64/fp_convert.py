"""Conversions between formats, to and from integers and fixed point, and rounding to integral values."""

from __future__ import annotations

from trapline.arm64.fp import AHP, DN, FZ, FZ16, IOC, IXC, ROUND_ODD
from trapline.arm64.fp_core import (
    ALL_ONES,
    FINITE,
    HALF,
    INFINITY,
    LEADING_ONE,
    QNAN,
    SNAN,
    ZERO,
    bias,
    explicit_mode,
    fp_default_nan,
    fp_infinity,
    fp_process_nan,
    fp_round,
    fp_unpack,
    fp_zero,
    fraction_bits,
    round_pack,
    round_up,
    rounding_mode,
    sign_of,
)
from trapline.bits.native import clz, native, s64, u1, u16, u32, u64

NOT_FZ16 = 0xFFFF_FFFF ^ FZ16


@native
def round_to_integer(sign: u64, exponent: s64, significand: u64, mode: u32) -> tuple[u64, u1]:
    """(magnitude, inexact) of a finite number below 2^64, rounded to an integer."""
    shift = u64(63 - exponent)
    whole = significand >> shift
    fraction = significand << (64 - shift) if shift <= 64 else u64(1)  # far below one half: only non-zero counts
    return whole + round_up(mode, sign, whole & 1, fraction), fraction != 0


@native
def fp_to_fixed(n: u64, a: u64, size: u32, unsigned: u1, fbits: u32, mode: u32, fpcr: u32) -> tuple[u64, u32]:
    """FPToFixed: saturates; the result is zero above `size` bits."""
    sign = sign_of(n, a)
    kind, exponent, significand, flags = fp_unpack(n, a, fpcr)
    if kind == ZERO:
        return 0, flags
    if kind >= QNAN:
        return 0, flags | IOC
    mask = u64(ALL_ONES) >> (64 - size)
    if unsigned:
        limit = u64(0) if sign else mask
    else:
        limit = (mask >> 1) + sign
    exponent += s64(fbits)
    magnitude = limit
    overflow: u1 = 1
    inexact: u1 = 0
    if kind == FINITE and exponent < 64:
        magnitude, inexact = round_to_integer(sign, exponent, significand, explicit_mode(mode, fpcr))
        overflow = magnitude > limit
    magnitude = limit if overflow else magnitude
    result = (0 - magnitude if sign else magnitude) & mask
    if overflow:
        return result, flags | IOC
    if inexact:
        return result, flags | IXC
    return result, flags


@native
def fixed_to_fp(n: u64, value: u64, unsigned: u1, fbits: u32, fpcr: u32) -> tuple[u64, u32]:
    """FixedToFP, rounding as FPCR says; `value` is the integer extended to 64 bits."""
    if value == 0:
        return 0, 0
    sign = u64(0) if unsigned else value >> 63
    magnitude = 0 - value if sign else value
    shift = u64(clz(magnitude))
    return fp_round(n, sign, 63 - s64(shift) - s64(fbits), magnitude << shift, fpcr)


@native
def fp_round_int(n: u64, a: u64, mode: u32, exact: u1, fpcr: u32) -> tuple[u64, u32]:
    """FPRoundInt; `exact` reports an inexact result."""
    sign = sign_of(n, a)
    kind, exponent, significand, flags = fp_unpack(n, a, fpcr)
    if kind >= QNAN:
        nan, nan_flags = fp_process_nan(n, kind, a, fpcr)
        return nan, flags | nan_flags
    if kind == ZERO:
        return fp_zero(n, sign), flags
    if kind == INFINITY or exponent >= s64(fraction_bits(n)):
        return a, flags
    whole, inexact = round_to_integer(sign, exponent, significand, explicit_mode(mode, fpcr))
    if exact and inexact:
        flags = flags | IXC
    if whole == 0:
        return fp_zero(n, sign), flags
    shift = u64(clz(whole))
    fraction = (whole << shift << 1) >> (64 - fraction_bits(n))
    biased = u64(63 - s64(shift) + bias(n))
    return fp_zero(n, sign) | (biased << fraction_bits(n)) | fraction, flags


@native
def convert_nan(source: u64, target: u64, a: u64) -> u64:
    """FPConvertNaN: sign and the top of the payload are kept; the result is quiet."""
    payload = (a << (64 - fraction_bits(source))) | HALF
    return fp_infinity(target, sign_of(source, a)) | (payload >> (64 - fraction_bits(target)))


@native
def fp_convert(source: u64, target: u64, a: u64, mode: u32, fpcr: u32) -> tuple[u64, u32]:
    """FPConvert: half precision is IEEE or alternative as FPCR.AHP says, and its denormals are never flushed."""
    sign = sign_of(source, a)
    kind, exponent, significand, flags = fp_unpack(source, a, fpcr & NOT_FZ16)
    alternative = target == 16 and (fpcr & AHP) != 0
    if kind >= INFINITY and source == 16 and fpcr & AHP:
        kind = u32(FINITE)  # the format's largest binade
        exponent = bias(16) + 1
        significand = (a << 53) | LEADING_ONE
    if kind == FINITE:
        result, round_flags = round_pack(target, sign, exponent, significand, mode, target != 16 and (fpcr & FZ) != 0, alternative)
        return result, flags | round_flags
    if kind == ZERO:
        return fp_zero(target, sign), flags
    if kind == INFINITY:
        if alternative:
            return fp_zero(target, sign) | (fp_zero(target, 1) - 1), flags | IOC
        return fp_infinity(target, sign), flags
    if alternative:
        return fp_zero(target, sign), flags | IOC
    if kind == SNAN:
        flags = flags | IOC
    if fpcr & DN:
        return fp_default_nan(target), flags
    return convert_nan(source, target, a), flags


@native
def fp_convert_16_32(a: u16, fpcr: u32) -> tuple[u32, u32]:
    """FPConvert, FCVT Sd, Hn."""
    result, flags = fp_convert(16, 32, u64(a), rounding_mode(fpcr), fpcr)
    return u32(result), flags


@native
def fp_convert_16_64(a: u16, fpcr: u32) -> tuple[u64, u32]:
    """FPConvert, FCVT Dd, Hn."""
    return fp_convert(16, 64, u64(a), rounding_mode(fpcr), fpcr)


@native
def fp_convert_32_16(a: u32, fpcr: u32) -> tuple[u16, u32]:
    """FPConvert, FCVT Hd, Sn."""
    result, flags = fp_convert(32, 16, u64(a), rounding_mode(fpcr), fpcr)
    return u16(result), flags


@native
def fp_convert_32_64(a: u32, fpcr: u32) -> tuple[u64, u32]:
    """FPConvert, FCVT Dd, Sn."""
    return fp_convert(32, 64, u64(a), rounding_mode(fpcr), fpcr)


@native
def fp_convert_64_16(a: u64, fpcr: u32) -> tuple[u16, u32]:
    """FPConvert, FCVT Hd, Dn."""
    result, flags = fp_convert(64, 16, a, rounding_mode(fpcr), fpcr)
    return u16(result), flags


@native
def fp_convert_64_32(a: u64, fpcr: u32) -> tuple[u32, u32]:
    """FPConvert, FCVT Sd, Dn."""
    result, flags = fp_convert(64, 32, a, rounding_mode(fpcr), fpcr)
    return u32(result), flags


@native
def fp_convert_odd_64_32(a: u64, fpcr: u32) -> tuple[u32, u32]:
    """FPConvert with FPRounding_ODD, FCVTXN: safe to round again to a narrower format."""
    result, flags = fp_convert(64, 32, a, ROUND_ODD, fpcr)
    return u32(result), flags
