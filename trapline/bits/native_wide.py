"""Division of 128-bit integers, which compiled native functions call for `//` and `%` of u128."""

from __future__ import annotations

from trapline.bits.native import clz, native, u32, u64, u128


@native
def divide_two_by_one(high: u64, low: u64, divisor: u64) -> tuple[u64, u64]:
    """Quotient and remainder of (high << 64 | low) by `divisor`, for high < divisor: schoolbook with 32-bit digits."""
    shift = clz(divisor)
    d = divisor << shift
    upper = high << shift | low >> (64 - shift)
    lower = low << shift
    d1 = d >> 32
    d0 = d & 0xFFFFFFFF
    remainder = upper
    quotient: u64 = 0
    for digit in range(2):
        following = u64(u32(lower >> 32)) if digit == 0 else u64(u32(lower))
        guess = remainder // d1
        rest = remainder - guess * d1
        while guess > 0xFFFFFFFF or guess * d0 > (rest << 32 | following):
            guess -= 1
            rest += d1
            if rest > 0xFFFFFFFF:
                break
        remainder = (remainder << 32 | following) - guess * d
        quotient = quotient << 32 | guess
    return quotient, remainder >> shift


@native
def divide128(a: u128, b: u128) -> tuple[u128, u128]:
    """Quotient and remainder; by zero they are 0 and `a`."""
    if b == 0 or b > a:
        return 0, a
    if b >> 64 == 0:
        divisor = u64(b)
        high = u64(a >> 64)
        quotient, rest = divide_two_by_one(high % divisor, u64(a), divisor)
        return u128(high // divisor) << 64 | u128(quotient), u128(rest)
    shift = clz(b) - clz(a)
    step = b << shift
    remainder = a
    result: u128 = 0
    for _ in range(shift + 1):
        result = result << 1
        if remainder >= step:
            remainder -= step
            result |= 1
        step = step >> 1
    return result, remainder
