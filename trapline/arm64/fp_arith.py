"""Arithmetic, comparison and selection, for any format `n` (see fp_core for the representation).

These are the bodies; fp_half, fp_single and fp_double give them the operand widths of the instructions.
"""

from __future__ import annotations

from trapline.arm64.fp import DZC, IOC
from trapline.arm64.fp_core import (
    ALL_ONES,
    FINITE,
    INFINITY,
    QNAN,
    SNAN,
    ZERO,
    bias,
    exact_zero,
    fp_default_nan,
    fp_infinity,
    fp_process_nan,
    fp_process_nans,
    fp_round,
    fp_unpack,
    fp_zero,
    fraction_bits,
    ordering_key,
    shift_right_sticky,
    sign_of,
)
from trapline.arm64.fp_tables import RSQRT_ESTIMATE
from trapline.bits.native import clz, native, s64, s128, u1, u32, u64, u128


@native
def fp_add(n: u64, a: u64, b: u64, subtract: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPAdd, or FPSub if `subtract` is 1."""
    sign_a = sign_of(n, a)
    sign_b = sign_of(n, b) ^ subtract
    kind_a, exponent_a, significand_a, flags_a = fp_unpack(n, a, fpcr)
    kind_b, exponent_b, significand_b, flags_b = fp_unpack(n, b, fpcr)
    flags = flags_a | flags_b
    kinds = kind_a | kind_b
    if kinds != FINITE:
        if kinds >= QNAN:
            nan, nan_flags = fp_process_nans(n, kind_a, a, kind_b, b, fpcr)
            return nan, flags | nan_flags
        if kinds & INFINITY:
            if kind_a != INFINITY:
                return fp_infinity(n, sign_b), flags
            if kind_b == INFINITY and sign_a != sign_b:
                return fp_default_nan(n), flags | IOC
            return fp_infinity(n, sign_a), flags
        if kind_a == FINITE:
            return a, flags
        if kind_b == FINITE:
            return b ^ (subtract << (n - 1)), flags
        if sign_a == sign_b:
            return fp_zero(n, sign_a), flags
        return exact_zero(n, fpcr), flags

    swap = exponent_a < exponent_b or (exponent_a == exponent_b and significand_a < significand_b)
    sign = sign_b if swap else sign_a
    exponent = exponent_b if swap else exponent_a
    distance = u64(exponent_b - exponent_a if swap else exponent_a - exponent_b)
    large = (significand_b if swap else significand_a) >> 1  # room for a carry
    small = shift_right_sticky((significand_a if swap else significand_b) >> 1, distance)
    total = large + small if sign_a == sign_b else large - small
    if total == 0:
        return exact_zero(n, fpcr), flags
    shift = u64(clz(total))
    result, round_flags = fp_round(n, sign, exponent + 1 - s64(shift), total << shift, fpcr)
    return result, flags | round_flags


@native
def fp_mul(n: u64, a: u64, b: u64, extended: u1, fpcr: u32) -> tuple[u64, u32]:
    """FPMul, or FPMulX (zero times infinity is two) if `extended`."""
    sign = sign_of(n, a ^ b)
    kind_a, exponent_a, significand_a, flags_a = fp_unpack(n, a, fpcr)
    kind_b, exponent_b, significand_b, flags_b = fp_unpack(n, b, fpcr)
    flags = flags_a | flags_b
    kinds = kind_a | kind_b
    if kinds != FINITE:
        if kinds >= QNAN:
            nan, nan_flags = fp_process_nans(n, kind_a, a, kind_b, b, fpcr)
            return nan, flags | nan_flags
        if kinds == INFINITY | ZERO:
            if extended:
                return fp_zero(n, sign) | fp_two(n), flags
            return fp_default_nan(n), flags | IOC
        if kinds & INFINITY:
            return fp_infinity(n, sign), flags
        return fp_zero(n, sign), flags

    product = u128(significand_a) * u128(significand_b)
    significand = u64(product >> 64) | u64(u64(product) != 0)
    shift = u64(clz(significand))
    result, round_flags = fp_round(n, sign, exponent_a + exponent_b + 1 - s64(shift), significand << shift, fpcr)
    return result, flags | round_flags


@native
def divide_significands(a: u64, b: u64) -> u64:
    """a / b as a significand of 56 bits in bits 63..8 (one in bit 63), sticky below; a and b have at most 53 bits.

    A reciprocal of 32 bits, from the only division, gives the quotient in two digits with signed remainders.
    """
    divisor = b >> 11
    reciprocal = u64(0xFFFF_FFFF_FFFF_FFFF) // (b >> 32)  # 2^96 / b
    digit = ((a >> 33) * reciprocal) >> 32  # a / b in units of 2^-31
    remainder = s64(((a >> 11) << 31) - digit * divisor)
    correction = ((remainder >> 28) * s64(reciprocal)) >> 33  # the same in units of 2^-55
    quotient = (digit << 24) + u64(correction)
    remainder = s64((u64(remainder) << 24) - u64(correction) * divisor)
    while remainder < 0:
        quotient -= 1
        remainder += s64(divisor)
    while remainder >= s64(divisor):
        quotient += 1
        remainder -= s64(divisor)
    return (quotient << 8) | u64(remainder != 0)


@native
def fp_div(n: u64, a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPDiv."""
    sign = sign_of(n, a ^ b)
    kind_a, exponent_a, significand_a, flags_a = fp_unpack(n, a, fpcr)
    kind_b, exponent_b, significand_b, flags_b = fp_unpack(n, b, fpcr)
    flags = flags_a | flags_b
    kinds = kind_a | kind_b
    if kinds != FINITE:
        if kinds >= QNAN:
            nan, nan_flags = fp_process_nans(n, kind_a, a, kind_b, b, fpcr)
            return nan, flags | nan_flags
        if kind_a == kind_b:
            return fp_default_nan(n), flags | IOC
        if kind_a == INFINITY:
            return fp_infinity(n, sign), flags
        if kind_a == ZERO or kind_b == INFINITY:
            return fp_zero(n, sign), flags
        return fp_infinity(n, sign), flags | DZC

    quotient = divide_significands(significand_a, significand_b)
    shift = u64(clz(quotient))
    result, round_flags = fp_round(n, sign, exponent_a - exponent_b - s64(shift), quotient << shift, fpcr)
    return result, flags | round_flags


@native
def reciprocal_root(x: u64) -> u64:
    """About 2^31 / sqrt(x / 2^64), to 29 bits or better, for x >= 2^62."""
    root = u64(RSQRT_ESTIMATE[(x >> 55) - 128]) << 23
    for _step in range(2):  # Newton: r (3 - x r^2) / 2
        product = ((x >> 32) * ((root * root) >> 31)) >> 32
        root = (root * ((u64(3) << 31) - product)) >> 32
    return root


@native
def square_root_significand(x: u64) -> u64:
    """sqrt(x / 2^64) * 2^64, rounded down to 55 bits, sticky in bit 0; x >= 2^62, result in [2^63, 2^64)."""
    inverse = reciprocal_root(x)
    product = (u128(x) * u128(inverse)) >> 31
    approximate = u64(product) if product >> 64 == 0 else u64(ALL_ONES)
    # Heron's step with the reciprocal instead of a division; of x - approximate^2 the top bits are enough.
    error = s64(s128((u128(x) << 64) - u128(approximate) * u128(approximate)) >> 70)
    root = (approximate + u64((error * s64(inverse)) >> 26)) >> 9
    square = u128(x) << 46
    while u128(root) * u128(root) > square:
        root -= 1
    while u128(root + 1) * u128(root + 1) <= square:
        root += 1
    return (root << 9) | u64(u128(root) * u128(root) != square)


@native
def fp_sqrt(n: u64, a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPSqrt."""
    kind, exponent, significand, flags = fp_unpack(n, a, fpcr)
    if kind >= QNAN:
        nan, nan_flags = fp_process_nan(n, kind, a, fpcr)
        return nan, flags | nan_flags
    if kind == ZERO:
        return fp_zero(n, sign_of(n, a)), flags
    if sign_of(n, a):
        return fp_default_nan(n), flags | IOC
    if kind == INFINITY:
        return a, flags
    # An even power of two outside the root: x is the number divided by 4^k, in [1/4, 1).
    even = u64(exponent & 1) ^ 1
    root = square_root_significand(significand >> even)
    result, round_flags = fp_round(n, 0, exponent >> 1, root, fpcr)
    return result, flags | round_flags


@native
def fp_muladd(n: u64, addend: u64, a: u64, b: u64, scale: s64, fpcr: u32) -> tuple[u64, u32]:
    """FPMulAdd: addend + a * b with a single rounding; the sum is multiplied by 2^scale before it."""
    sign_c = sign_of(n, addend)
    sign_p = sign_of(n, a ^ b)
    kind_c, exponent_c, significand_c, flags_c = fp_unpack(n, addend, fpcr)
    kind_a, exponent_a, significand_a, flags_a = fp_unpack(n, a, fpcr)
    kind_b, exponent_b, significand_b, flags_b = fp_unpack(n, b, fpcr)
    flags = flags_a | flags_b | flags_c
    kind_p = kind_a | kind_b
    if (kind_p | kind_c) != FINITE:
        if kind_p == INFINITY | ZERO and kind_c != SNAN:  # even if the addend is a quiet NaN
            return fp_default_nan(n), flags | IOC
        if (kind_p | kind_c) >= QNAN:
            if kind_c == SNAN or (kind_c == QNAN and kind_p < SNAN):
                nan, nan_flags = fp_process_nan(n, kind_c, addend, fpcr)
            else:
                nan, nan_flags = fp_process_nans(n, kind_a, a, kind_b, b, fpcr)
            return nan, flags | nan_flags
        if kind_p & INFINITY:
            if kind_c == INFINITY and sign_c != sign_p:
                return fp_default_nan(n), flags | IOC
            return fp_infinity(n, sign_p), flags
        if kind_c == INFINITY:
            return addend, flags
        if kind_p & ZERO:
            if kind_c == FINITE:
                return addend, flags
            if sign_c == sign_p:
                return fp_zero(n, sign_c), flags
            return exact_zero(n, fpcr), flags

    # Both terms with the leading one in bit 126; the product is exact: at most 106 bits.
    product = u128(significand_a) * u128(significand_b)
    exponent_p = exponent_a + exponent_b
    if u64(product >> 127):
        product = product >> 1
        exponent_p = exponent_p + 1
    term = u128(significand_c) << 63
    swap = kind_c == FINITE and (exponent_c > exponent_p or (exponent_c == exponent_p and term > product))
    sign = sign_c if swap else sign_p
    exponent = exponent_c if swap else exponent_p
    large = term if swap else product
    small = product if swap else term
    distance = u64(exponent_c - exponent_p if swap else exponent_p - exponent_c)
    distance = distance if distance < 127 else u64(127)
    small = (small >> u128(distance)) | u128((small << u128(128 - distance)) != 0)
    total = large + small if sign_c == sign_p or kind_c == ZERO else large - small
    if total == 0:
        return exact_zero(n, fpcr), flags
    high = u64(total >> 64)
    shift = u64(clz(high)) if high else 64 + u64(clz(u64(total)))
    total = total << u128(shift)
    significand = u64(total >> 64) | u64(u64(total) != 0)
    result, round_flags = fp_round(n, sign, exponent + 1 - s64(shift) + scale, significand, fpcr)
    return result, flags | round_flags


@native
def fp_two(n: u64) -> u64:
    """2.0: the lowest exponent field above the bias, no fraction."""
    return u64(bias(n) + 1) << fraction_bits(n)


@native
def fp_one_point_five(n: u64) -> u64:
    """FPOnePointFive."""
    return ((u64(bias(n)) << 1) | 1) << (fraction_bits(n) - 1)


@native
def product_is_zero(n: u64, a: u64, b: u64, fpcr: u32) -> tuple[u1, u32]:
    """Whether a step function takes its constant: no NaN and a zero operand, whatever the other; and IDC."""
    kind_a, _, _, flags_a = fp_unpack(n, a, fpcr)
    kind_b, _, _, flags_b = fp_unpack(n, b, fpcr)
    kinds = kind_a | kind_b
    return kinds < QNAN and (kinds & ZERO) != 0, flags_a | flags_b


@native
def fp_recip_step(n: u64, a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRecipStepFused: 2 - a * b."""
    constant, flags = product_is_zero(n, a, b, fpcr)
    if constant:
        return fp_two(n), flags
    return fp_muladd(n, fp_two(n), a ^ fp_zero(n, 1), b, 0, fpcr)


@native
def fp_rsqrt_step(n: u64, a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRSqrtStepFused: (3 - a * b) / 2."""
    constant, flags = product_is_zero(n, a, b, fpcr)
    if constant:
        return fp_one_point_five(n), flags
    three = fp_two(n) | (u64(1) << (fraction_bits(n) - 1))
    return fp_muladd(n, three, a ^ fp_zero(n, 1), b, -1, fpcr)


@native
def fp_maximum(n: u64, a: u64, b: u64, minimum: u1, numeric: u1, fpcr: u32) -> tuple[u64, u32]:
    """FPMax, or FPMin if `minimum`; FPMaxNum or FPMinNum (a quiet NaN loses to a number) if `numeric`."""
    kind_a, _, _, flags_a = fp_unpack(n, a, fpcr)
    kind_b, _, _, flags_b = fp_unpack(n, b, fpcr)
    flags = flags_a | flags_b
    a_or_zero = fp_zero(n, sign_of(n, a)) if kind_a == ZERO else a  # a denormal may have been flushed
    b_or_zero = fp_zero(n, sign_of(n, b)) if kind_b == ZERO else b
    if (kind_a | kind_b) >= QNAN:
        if numeric:
            if kind_a == QNAN and kind_b < QNAN:
                return b_or_zero, flags
            if kind_b == QNAN and kind_a < QNAN:
                return a_or_zero, flags
        nan, nan_flags = fp_process_nans(n, kind_a, a, kind_b, b, fpcr)
        return nan, flags | nan_flags
    below = ordering_key(n, a_or_zero) < ordering_key(n, b_or_zero)
    return a_or_zero if below == minimum else b_or_zero, flags


@native
def fp_compare(n: u64, a: u64, b: u64, signal: u1, fpcr: u32) -> tuple[u32, u32]:
    """FPCompare: NZCV as a number of four bits; `signal` makes quiet NaNs invalid too."""
    kind_a, _, _, flags_a = fp_unpack(n, a, fpcr)
    kind_b, _, _, flags_b = fp_unpack(n, b, fpcr)
    flags = flags_a | flags_b
    if (kind_a | kind_b) >= QNAN:
        if signal or (kind_a | kind_b) >= SNAN:
            flags = flags | IOC
        return 0b0011, flags
    key_a = s64(0) if kind_a == ZERO else ordering_key(n, a)
    key_b = s64(0) if kind_b == ZERO else ordering_key(n, b)
    if key_a == key_b:
        return 0b0110, flags
    if key_a < key_b:
        return 0b1000, flags
    return 0b0010, flags


@native
def fp_compare_eq(n: u64, a: u64, b: u64, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareEQ."""
    nzcv, flags = fp_compare(n, a, b, 0, fpcr)
    return nzcv == 0b0110, flags


@native
def fp_compare_ge(n: u64, a: u64, b: u64, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareGE."""
    nzcv, flags = fp_compare(n, a, b, 1, fpcr)
    return nzcv == 0b0110 or nzcv == 0b0010, flags


@native
def fp_compare_gt(n: u64, a: u64, b: u64, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareGT."""
    nzcv, flags = fp_compare(n, a, b, 1, fpcr)
    return nzcv == 0b0010, flags
