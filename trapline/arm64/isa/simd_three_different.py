"""Advanced SIMD three registers of different types: long, wide and narrowing arithmetic; scalar and by-element forms too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.arm64 import crypto
from trapline.arm64.insn import insn
from trapline.arm64.isa.simd_common import ARRANGEMENT, WIDE_ARRANGEMENT, each, half, saturated, set_half
from trapline.arm64.isa.simd_three_same import absolute_difference
from trapline.bits import Vec, call, cat

LongOperation = Callable[[Any, Vec, Vec, Vec], Vec]
"""`(cpu, d, n, m) -> result` where d and the result have elements twice as wide as n and m."""


def extend(signed: bool, value: Vec) -> Vec:
    """Elements twice as wide."""
    return value.sext(2 * value.esize) if signed else value.zext(2 * value.esize)


def doubled_product(cpu: Any, n: Vec, m: Vec) -> Vec:
    """Twice the signed product, saturated (SQDMULL)."""
    product = extend(True, n) * extend(True, m)
    return saturated(cpu, product.sqadd(product), product + product)


def doubled_accumulate(cpu: Any, d: Vec, n: Vec, m: Vec) -> Vec:
    """SQDMLAL: both the doubling and the sum saturate."""
    product = doubled_product(cpu, n, m)
    return saturated(cpu, d.sqadd(product), d + product)


def doubled_subtract(cpu: Any, d: Vec, n: Vec, m: Vec) -> Vec:
    """SQDMLSL."""
    product = doubled_product(cpu, n, m)
    return saturated(cpu, d.sqsub(product), d - product)


def _signed_pair(signed: bool, operation: Callable[[bool, Vec, Vec, Vec], Vec]) -> LongOperation:
    return lambda cpu, d, n, m: operation(signed, d, n, m)


def _add(signed: bool, d: Vec, n: Vec, m: Vec) -> Vec:
    return extend(signed, n) + extend(signed, m)


def _subtract(signed: bool, d: Vec, n: Vec, m: Vec) -> Vec:
    return extend(signed, n) - extend(signed, m)


def _difference(signed: bool, d: Vec, n: Vec, m: Vec) -> Vec:
    return extend(False, absolute_difference(signed, n, m))


def _difference_accumulate(signed: bool, d: Vec, n: Vec, m: Vec) -> Vec:
    return d + _difference(signed, d, n, m)


def _multiply(signed: bool, d: Vec, n: Vec, m: Vec) -> Vec:
    return extend(signed, n) * extend(signed, m)


def _multiply_add(signed: bool, d: Vec, n: Vec, m: Vec) -> Vec:
    return d + _multiply(signed, d, n, m)


def _multiply_subtract(signed: bool, d: Vec, n: Vec, m: Vec) -> Vec:
    return d - _multiply(signed, d, n, m)


MULTIPLY_LONG = (
    ("smlal", "0 1000", "hs", _signed_pair(True, _multiply_add)),
    ("umlal", "1 1000", "hs", _signed_pair(False, _multiply_add)),
    ("smlsl", "0 1010", "hs", _signed_pair(True, _multiply_subtract)),
    ("umlsl", "1 1010", "hs", _signed_pair(False, _multiply_subtract)),
    ("smull", "0 1100", "hs", _signed_pair(True, _multiply)),
    ("umull", "1 1100", "hs", _signed_pair(False, _multiply)),
)

DOUBLING_LONG = (
    ("sqdmlal", "0 1001", "hs", doubled_accumulate),
    ("sqdmlsl", "0 1011", "hs", doubled_subtract),
    ("sqdmull", "0 1101", "hs", lambda cpu, d, n, m: doubled_product(cpu, n, m)),
)

LONG = (
    ("saddl", "0 0000", "bhs", _signed_pair(True, _add)),
    ("uaddl", "1 0000", "bhs", _signed_pair(False, _add)),
    ("ssubl", "0 0010", "bhs", _signed_pair(True, _subtract)),
    ("usubl", "1 0010", "bhs", _signed_pair(False, _subtract)),
    ("sabal", "0 0101", "bhs", _signed_pair(True, _difference_accumulate)),
    ("uabal", "1 0101", "bhs", _signed_pair(False, _difference_accumulate)),
    ("sabdl", "0 0111", "bhs", _signed_pair(True, _difference)),
    ("uabdl", "1 0111", "bhs", _signed_pair(False, _difference)),
    *((mnemonic, bits, "bhs", operation) for mnemonic, bits, _, operation in MULTIPLY_LONG),
    *DOUBLING_LONG,
)


@each(
    LONG,
    "0 Q:1 <> 01110 size:2 1 Rm:5 <> 00 Rn:5 Rd:5",
    asm=f"${{Q:|2}} v{{Rd}}.{WIDE_ARRANGEMENT}, v{{Rn}}.{ARRANGEMENT}, v{{Rm}}.{ARRANGEMENT}",
)
def three_different_long(cpu, i, operation: LongOperation):
    """elements of the lower or upper halves give elements twice as wide."""
    esize = 8 << i.size
    n, m = half(cpu, i.Rn, i.Q, esize), half(cpu, i.Rm, i.Q, esize)
    cpu.set_V(i.Rd, operation(cpu, cpu.V(i.Rd).lanes(2 * esize), n, m))


WIDE = (
    ("saddw", "0 0001", "bhs", True, Vec.__add__),
    ("uaddw", "1 0001", "bhs", False, Vec.__add__),
    ("ssubw", "0 0011", "bhs", True, Vec.__sub__),
    ("usubw", "1 0011", "bhs", False, Vec.__sub__),
)


@each(
    WIDE,
    "0 Q:1 <> 01110 size:2 1 Rm:5 <> 00 Rn:5 Rd:5",
    asm=f"${{Q:|2}} v{{Rd}}.{WIDE_ARRANGEMENT}, v{{Rn}}.{WIDE_ARRANGEMENT}, v{{Rm}}.{ARRANGEMENT}",
)
def three_different_wide(cpu, i, signed, operation):
    """wide elements with the narrow elements of half a vector."""
    esize = 8 << i.size
    cpu.set_V(i.Rd, operation(cpu.V(i.Rn).lanes(2 * esize), extend(signed, half(cpu, i.Rm, i.Q, esize))))


NARROW = (
    ("addhn", "0 0100", "bhs", False, Vec.__add__),
    ("raddhn", "1 0100", "bhs", True, Vec.__add__),
    ("subhn", "0 0110", "bhs", False, Vec.__sub__),
    ("rsubhn", "1 0110", "bhs", True, Vec.__sub__),
)


@each(
    NARROW,
    "0 Q:1 <> 01110 size:2 1 Rm:5 <> 00 Rn:5 Rd:5",
    asm=f"${{Q:|2}} v{{Rd}}.{ARRANGEMENT}, v{{Rn}}.{WIDE_ARRANGEMENT}, v{{Rm}}.{WIDE_ARRANGEMENT}",
)
def three_different_narrow(cpu, i, rounding, operation):
    """the high half of each result element."""
    esize = 8 << i.size
    result = operation(cpu.V(i.Rn).lanes(2 * esize), cpu.V(i.Rm).lanes(2 * esize))
    if rounding:
        result = result + (1 << esize - 1)
    set_half(cpu, i.Rd, i.Q, (result >> esize).trunc(esize).bits)


@insn("0 Q:1 001110 00 1 Rm:5 111000 Rn:5 Rd:5", asm="pmull{Q:|2} v{Rd}.8h, v{Rn}.{Q:8b|16b}, v{Rm}.{Q:8b|16b}")
def polynomial_multiply_long(cpu, i):
    """PMULL, PMULL2: eight products of bytes over {0, 1}."""
    _polynomial_multiply(cpu, i, crypto.polynomial_multiply_long_8)


@insn(
    "0 Q:1 001110 11 1 Rm:5 111000 Rn:5 Rd:5",
    asm="pmull{Q:|2} v{Rd}.1q, v{Rn}.{Q:1d|2d}, v{Rm}.{Q:1d|2d}",
    feature="FEAT_PMULL",
)
def polynomial_multiply_double(cpu, i):
    """PMULL, PMULL2: one product of 64-bit polynomials over {0, 1}."""
    _polynomial_multiply(cpu, i, crypto.polynomial_multiply_64)


def _polynomial_multiply(cpu: Any, i: Any, multiply: Any) -> None:
    low, high = call(multiply, half(cpu, i.Rn, i.Q, 64).bits, half(cpu, i.Rm, i.Q, 64).bits)
    cpu.set_V(i.Rd, cat(high, low))


@each(
    DOUBLING_LONG,
    "01 <> 11110 size:2 1 Rm:5 <> 00 Rn:5 Rd:5",
    asm="$ {size:!|s|d}{Rd}, {size:!|h|s}{Rn}, {size:!|h|s}{Rm}",
)
def scalar_three_different(cpu, i, operation: LongOperation):
    """one element, the result twice as wide."""
    esize = 8 << i.size
    n, m = (cpu.V(r, esize).lanes(esize) for r in (i.Rn, i.Rm))
    cpu.set_V(i.Rd, operation(cpu, cpu.V(i.Rd, 2 * esize).lanes(2 * esize), n, m))
