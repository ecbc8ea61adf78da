"""Advanced SIMD three registers of the same type, integer and logical; vector and scalar forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.arm64 import crypto
from trapline.arm64.isa.simd_common import (
    ARRANGEMENT,
    choose,
    clamp_signed,
    each,
    evens,
    no_1d,
    odds,
    saturated,
    set_saturation,
    vector_width,
)
from trapline.bits import Bits, Vec, call, cat

Operation = Callable[[Any, Vec, Vec, Vec], Vec]
"""What a row does: `(cpu, d, n, m) -> result`, with the old destination `d` for those that accumulate."""


# -- shifts by a register: the low byte of each element of m is a signed count -------------------------------------------------
def _counts(m: Vec) -> tuple[Vec, Vec, Vec]:
    """(is a right shift, left count, right count) of each element."""
    count = (m << m.esize - 8).asr(m.esize - 8)
    return count.slt(0), count, -count


def _right(n: Vec, count: Vec, signed: bool, rounding: bool) -> Vec:
    """Shift right by 1 or more, rounding to nearest if asked."""
    shift = Vec.asr if signed else Vec.__rshift__
    result = shift(n, count)
    return result + (shift(n, count - 1) & 1) if rounding else result


def register_shift(signed: bool, rounding: bool) -> Operation:
    """SSHL, USHL, SRSHL, URSHL."""

    def operation(cpu: Any, d: Vec, n: Vec, m: Vec) -> Vec:
        is_right, left, right = _counts(m)
        return choose(is_right, _right(n, right, signed, rounding), n << left)

    return operation


def saturating_register_shift(signed: bool, rounding: bool) -> Operation:
    """SQSHL, UQSHL, SQRSHL, UQRSHL (register)."""

    def operation(cpu: Any, d: Vec, n: Vec, m: Vec) -> Vec:
        is_right, left, right = _counts(m)
        shifted = n << left
        back = shifted.asr(left) if signed else shifted >> left
        exact = choose(is_right, _right(n, right, signed, rounding), shifted)
        limit = n.asr(n.esize - 1) ^ (1 << n.esize - 1) - 1 if signed else n.like(-1)
        fits = is_right | (back == n)
        set_saturation(cpu, ~fits)
        return choose(fits, exact, limit)

    return operation


# -- halving, absolute difference --------------------------------------------------------------------------------------------
def halving_add(signed: bool) -> Operation:
    """SHADD, UHADD: the carry is kept, since a + b = 2 (a & b) + (a ^ b)."""
    return lambda cpu, d, n, m: (n & m) + ((n ^ m).asr(1) if signed else (n ^ m) >> 1)


def rounding_halving_add(signed: bool) -> Operation:
    """SRHADD, URHADD: a + b + 1 = 2 (a | b) - (a ^ b) + 1."""
    return lambda cpu, d, n, m: (n | m) - ((n ^ m).asr(1) if signed else (n ^ m) >> 1)


def halving_subtract(signed: bool) -> Operation:
    """SHSUB, UHSUB: a - b = (a ^ b) - 2 (~a & b)."""
    return lambda cpu, d, n, m: ((n ^ m).asr(1) if signed else (n ^ m) >> 1) - (~n & m)


def absolute_difference(signed: bool, n: Vec, m: Vec) -> Vec:
    """|n - m| as an unsigned number."""
    return n.smax(m) - n.smin(m) if signed else n.umax(m) - n.umin(m)


# -- multiplication ----------------------------------------------------------------------------------------------------------
def doubling_high(cpu: Any, n: Vec, m: Vec, rounding: bool) -> Vec:
    """SQDMULH, SQRDMULH: the high half of twice the product; only the square of the least number saturates."""
    esize = n.esize
    product = n.sext(2 * esize) * m.sext(2 * esize)
    if rounding:
        product = product + (1 << esize - 2)
    exact = product.asr(esize - 1)
    return saturated(cpu, clamp_signed(exact, esize), exact).trunc(esize)


def doubling_high_accumulate(subtract: bool) -> Operation:
    """SQRDMLAH, SQRDMLSH: the rounded high half of twice the product and the whole old element.

    All terms are halved, so that their sum fits into twice the element size.
    """

    def operation(cpu: Any, d: Vec, n: Vec, m: Vec) -> Vec:
        esize = n.esize
        product = n.sext(2 * esize) * m.sext(2 * esize)
        before = (d.sext(2 * esize) << esize - 1) + (1 << esize - 2)
        exact = (before - product if subtract else before + product).asr(esize - 1)
        return saturated(cpu, clamp_signed(exact, esize), exact).trunc(esize)

    return operation


def polynomial_multiply(cpu: Any, d: Vec, n: Vec, m: Vec) -> Vec:
    """PMUL: products over {0, 1} of bytes."""
    pairs = [(n.bits[k + 63 : k], m.bits[k + 63 : k]) for k in range(0, n.bits.width, 64)]
    return cat(*reversed([call(crypto.polynomial_multiply_8, a, b) for a, b in pairs])).lanes(8)


def pairwise(operation: Callable[[Vec, Vec], Vec]) -> Operation:
    """Apply `operation` to adjacent elements of m:n."""

    def apply(cpu: Any, d: Vec, n: Vec, m: Vec) -> Vec:
        both = cat(m.bits, n.bits).lanes(n.esize)
        return operation(evens(both), odds(both))

    return apply


ADD_SUBTRACT_SATURATING = (
    ("sqadd", "0 00001", "bhsd", lambda cpu, d, n, m: saturated(cpu, n.sqadd(m), n + m)),
    ("uqadd", "1 00001", "bhsd", lambda cpu, d, n, m: saturated(cpu, n.uqadd(m), n + m)),
    ("sqsub", "0 00101", "bhsd", lambda cpu, d, n, m: saturated(cpu, n.sqsub(m), n - m)),
    ("uqsub", "1 00101", "bhsd", lambda cpu, d, n, m: saturated(cpu, n.uqsub(m), n - m)),
    ("sqshl", "0 01001", "bhsd", saturating_register_shift(signed=True, rounding=False)),
    ("uqshl", "1 01001", "bhsd", saturating_register_shift(signed=False, rounding=False)),
    ("sqrshl", "0 01011", "bhsd", saturating_register_shift(signed=True, rounding=True)),
    ("uqrshl", "1 01011", "bhsd", saturating_register_shift(signed=False, rounding=True)),
    ("sqdmulh", "0 10110", "hs", lambda cpu, d, n, m: doubling_high(cpu, n, m, rounding=False)),
    ("sqrdmulh", "1 10110", "hs", lambda cpu, d, n, m: doubling_high(cpu, n, m, rounding=True)),
)
"""Rows that exist as vectors and as scalars of every listed size."""

ALL_SIZES = (
    ("cmgt", "0 00110", "bhsd", lambda cpu, d, n, m: n.sgt(m)),
    ("cmhi", "1 00110", "bhsd", lambda cpu, d, n, m: n.ugt(m)),
    ("cmge", "0 00111", "bhsd", lambda cpu, d, n, m: n.sge(m)),
    ("cmhs", "1 00111", "bhsd", lambda cpu, d, n, m: n.uge(m)),
    ("cmtst", "0 10001", "bhsd", lambda cpu, d, n, m: n & m != 0),
    ("cmeq", "1 10001", "bhsd", lambda cpu, d, n, m: n == m),
    ("sshl", "0 01000", "bhsd", register_shift(signed=True, rounding=False)),
    ("ushl", "1 01000", "bhsd", register_shift(signed=False, rounding=False)),
    ("srshl", "0 01010", "bhsd", register_shift(signed=True, rounding=True)),
    ("urshl", "1 01010", "bhsd", register_shift(signed=False, rounding=True)),
    ("add", "0 10000", "bhsd", lambda cpu, d, n, m: n + m),
    ("sub", "1 10000", "bhsd", lambda cpu, d, n, m: n - m),
)
"""Rows that exist as vectors, and as scalars of 64 bits."""

VECTOR_ONLY = (
    ("shadd", "0 00000", "bhs", halving_add(signed=True)),
    ("uhadd", "1 00000", "bhs", halving_add(signed=False)),
    ("srhadd", "0 00010", "bhs", rounding_halving_add(signed=True)),
    ("urhadd", "1 00010", "bhs", rounding_halving_add(signed=False)),
    ("shsub", "0 00100", "bhs", halving_subtract(signed=True)),
    ("uhsub", "1 00100", "bhs", halving_subtract(signed=False)),
    ("smax", "0 01100", "bhs", lambda cpu, d, n, m: n.smax(m)),
    ("umax", "1 01100", "bhs", lambda cpu, d, n, m: n.umax(m)),
    ("smin", "0 01101", "bhs", lambda cpu, d, n, m: n.smin(m)),
    ("umin", "1 01101", "bhs", lambda cpu, d, n, m: n.umin(m)),
    ("sabd", "0 01110", "bhs", lambda cpu, d, n, m: absolute_difference(True, n, m)),
    ("uabd", "1 01110", "bhs", lambda cpu, d, n, m: absolute_difference(False, n, m)),
    ("saba", "0 01111", "bhs", lambda cpu, d, n, m: d + absolute_difference(True, n, m)),
    ("uaba", "1 01111", "bhs", lambda cpu, d, n, m: d + absolute_difference(False, n, m)),
    ("mla", "0 10010", "bhs", lambda cpu, d, n, m: d + n * m),
    ("mls", "1 10010", "bhs", lambda cpu, d, n, m: d - n * m),
    ("mul", "0 10011", "bhs", lambda cpu, d, n, m: n * m),
    ("pmul", "1 10011", "b", polynomial_multiply),
    ("smaxp", "0 10100", "bhs", pairwise(Vec.smax)),
    ("umaxp", "1 10100", "bhs", pairwise(Vec.umax)),
    ("sminp", "0 10101", "bhs", pairwise(Vec.smin)),
    ("uminp", "1 10101", "bhs", pairwise(Vec.umin)),
    ("addp", "0 10111", "bhsd", pairwise(Vec.__add__)),
)


@each(
    VECTOR_ONLY + ALL_SIZES + ADD_SUBTRACT_SATURATING,
    "0 Q:1 <> 01110 size:2 1 Rm:5 <> 1 Rn:5 Rd:5",
    asm=f"$ v{{Rd}}.{ARRANGEMENT}, v{{Rn}}.{ARRANGEMENT}, v{{Rm}}.{ARRANGEMENT}",
    where=no_1d,
)
def three_same(cpu, i, operation):
    """vectors of integers, element by element."""
    d, n, m = (cpu.V(r, vector_width(i)).lanes(8 << i.size) for r in (i.Rd, i.Rn, i.Rm))
    cpu.set_V(i.Rd, operation(cpu, d, n, m))


def _scalar_three_same(cpu: Any, i: Any, esize: int, operation: Operation) -> None:
    d, n, m = (cpu.V(r, esize).lanes(esize) for r in (i.Rd, i.Rn, i.Rm))
    cpu.set_V(i.Rd, operation(cpu, d, n, m))


@each(
    ADD_SUBTRACT_SATURATING,
    "01 <> 11110 size:2 1 Rm:5 <> 1 Rn:5 Rd:5",
    asm="$ {size:b|h|s|d}{Rd}, {size:b|h|s|d}{Rn}, {size:b|h|s|d}{Rm}",
)
def scalar_three_same(cpu, i, operation):
    """one integer in a SIMD&FP register."""
    _scalar_three_same(cpu, i, 8 << i.size, operation)


@each(
    [(mnemonic, bits, operation) for mnemonic, bits, _, operation in ALL_SIZES],
    "01 <> 11110 111 Rm:5 <> 1 Rn:5 Rd:5",
    asm="$ d{Rd}, d{Rn}, d{Rm}",
)
def scalar_three_same_double(cpu, i, operation):
    """one 64-bit integer in a SIMD&FP register."""
    _scalar_three_same(cpu, i, 64, operation)


ROUNDING_ACCUMULATE = (
    ("sqrdmlah", "10000", "hs", doubling_high_accumulate(subtract=False)),
    ("sqrdmlsh", "10001", "hs", doubling_high_accumulate(subtract=True)),
)


@each(
    ROUNDING_ACCUMULATE,
    "0 Q:1 1 01110 size:2 0 Rm:5 <> 1 Rn:5 Rd:5",
    asm=f"$ v{{Rd}}.{ARRANGEMENT}, v{{Rn}}.{ARRANGEMENT}, v{{Rm}}.{ARRANGEMENT}",
    feature="FEAT_RDM",
)
def three_same_accumulate(cpu, i, operation):
    """vectors of integers, multiplied and added with rounding."""
    three_same(cpu, i, operation)


@each(
    ROUNDING_ACCUMULATE,
    "01 1 11110 size:2 0 Rm:5 <> 1 Rn:5 Rd:5",
    asm="$ {size:!|h|s|!}{Rd}, {size:!|h|s|!}{Rn}, {size:!|h|s|!}{Rm}",
    feature="FEAT_RDM",
)
def scalar_three_same_accumulate(cpu, i, operation):
    """one integer in a SIMD&FP register, multiplied and added with rounding."""
    _scalar_three_same(cpu, i, 8 << i.size, operation)


LOGICAL = (
    ("and", "0 00", lambda d, n, m: n & m),
    ("bic", "0 01", lambda d, n, m: n & ~m),
    ("orr", "0 10", lambda d, n, m: n | m),
    ("orn", "0 11", lambda d, n, m: n | ~m),
    ("eor", "1 00", lambda d, n, m: n ^ m),
    ("bsl", "1 01", lambda d, n, m: m ^ (m ^ n) & d),
    ("bit", "1 10", lambda d, n, m: d ^ (d ^ n) & m),
    ("bif", "1 11", lambda d, n, m: d ^ (d ^ n) & ~m),
)


@each(
    LOGICAL,
    "0 Q:1 <> 01110 <> 1 Rm:5 000111 Rn:5 Rd:5",
    asm="$ v{Rd}.{Q:8b|16b}, v{Rn}.{Q:8b|16b}, v{Rm}.{Q:8b|16b}",
)
def three_same_logical(cpu, i, operation: Callable[[Bits, Bits, Bits], Bits]):
    """vectors, bit by bit."""
    cpu.set_V(i.Rd, operation(*(cpu.V(r, vector_width(i)) for r in (i.Rd, i.Rn, i.Rm))))
