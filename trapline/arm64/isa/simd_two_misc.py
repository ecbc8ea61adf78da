"""Advanced SIMD two-register miscellaneous: integer operations on one vector or scalar, and narrowing moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.arm64.insn import insn
from trapline.arm64.isa.simd_common import (
    ARRANGEMENT,
    WIDE_ARRANGEMENT,
    absolute,
    choose,
    clamp_signed,
    clamp_signed_to_unsigned,
    clamp_unsigned,
    each,
    half,
    no_1d,
    saturated,
    set_half,
    vector_width,
)
from trapline.bits import Vec

Unary = Callable[[Any, Vec, Vec], Vec]
"""`(cpu, d, n) -> result`, with the old destination `d` for those that accumulate."""


def saturating_absolute(cpu: Any, d: Vec, n: Vec) -> Vec:
    """SQABS."""
    return saturated(cpu, choose(n.slt(0), n.like(0).sqsub(n), n), absolute(n))


def add_unsigned_to_signed(cpu: Any, d: Vec, n: Vec) -> Vec:
    """SUQADD: d signed plus n unsigned, saturated as signed; with an offset of half the range it is an unsigned sum."""
    offset = 1 << d.esize - 1
    return saturated(cpu, (d ^ offset).uqadd(n) ^ offset, d + n)


def add_signed_to_unsigned(cpu: Any, d: Vec, n: Vec) -> Vec:
    """USQADD: d unsigned plus n signed, saturated as unsigned."""
    return saturated(cpu, choose(n.slt(0), d.uqsub(-n), d.uqadd(n)), d + n)


SCALAR_ALL_SIZES = (
    ("suqadd", "0 00011", "bhsd", add_unsigned_to_signed),
    ("usqadd", "1 00011", "bhsd", add_signed_to_unsigned),
    ("sqabs", "0 00111", "bhsd", saturating_absolute),
    ("sqneg", "1 00111", "bhsd", lambda cpu, d, n: saturated(cpu, n.like(0).sqsub(n), -n)),
)
"""Rows that exist as vectors and as scalars of every size."""

SCALAR_DOUBLE = (
    ("abs", "0 01011", "bhsd", lambda cpu, d, n: absolute(n)),
    ("neg", "1 01011", "bhsd", lambda cpu, d, n: -n),
)
"""Rows that exist as vectors, and as scalars of 64 bits."""

COMPARE_ZERO = (
    ("cmgt", "0 01000", "bhsd", lambda cpu, d, n: n.sgt(0)),
    ("cmge", "1 01000", "bhsd", lambda cpu, d, n: n.sge(0)),
    ("cmeq", "0 01001", "bhsd", lambda cpu, d, n: n == 0),
    ("cmle", "1 01001", "bhsd", lambda cpu, d, n: n.sle(0)),
    ("cmlt", "0 01010", "bhsd", lambda cpu, d, n: n.slt(0)),
)

VECTOR_ONLY = (
    ("cls", "0 00100", "bhs", lambda cpu, d, n: (n ^ n.asr(1)).clz() - 1),
    ("clz", "1 00100", "bhs", lambda cpu, d, n: n.clz()),
    ("cnt", "0 00101", "b", lambda cpu, d, n: n.popcount()),
)

_VECTOR_PATTERN = "0 Q:1 <> 01110 size:2 10000 <> 10 Rn:5 Rd:5"
_SCALAR_PATTERN = "01 <> 11110 size:2 10000 <> 10 Rn:5 Rd:5"
_SCALAR_DOUBLE_PATTERN = "01 <> 11110 1110000 <> 10 Rn:5 Rd:5"
_VECTORS = f"v{{Rd}}.{ARRANGEMENT}, v{{Rn}}.{ARRANGEMENT}"


def _unary(cpu: Any, i: Any, width: int, esize: int, operation: Unary) -> None:
    cpu.set_V(i.Rd, operation(cpu, cpu.V(i.Rd, width).lanes(esize), cpu.V(i.Rn, width).lanes(esize)))


@each(SCALAR_ALL_SIZES + SCALAR_DOUBLE + VECTOR_ONLY, _VECTOR_PATTERN, asm=f"$ {_VECTORS}", where=no_1d)
def two_misc(cpu, i, operation: Unary):
    """one vector, element by element."""
    _unary(cpu, i, vector_width(i), 8 << i.size, operation)


@each(COMPARE_ZERO, _VECTOR_PATTERN, asm=f"$ {_VECTORS}, #0", where=no_1d)
def compare_zero(cpu, i, operation: Unary):
    """elements against zero."""
    _unary(cpu, i, vector_width(i), 8 << i.size, operation)


@each(SCALAR_ALL_SIZES, _SCALAR_PATTERN, asm="$ {size:b|h|s|d}{Rd}, {size:b|h|s|d}{Rn}")
def scalar_two_misc(cpu, i, operation: Unary):
    """one integer in a SIMD&FP register."""
    _unary(cpu, i, 8 << i.size, 8 << i.size, operation)


def _without_sizes(rows: tuple[tuple[Any, ...], ...]) -> list[tuple[Any, ...]]:
    """The rows for a pattern that fixes the size."""
    return [(mnemonic, bits, operation) for mnemonic, bits, _, operation in rows]


@each(_without_sizes(SCALAR_DOUBLE), _SCALAR_DOUBLE_PATTERN, asm="$ d{Rd}, d{Rn}")
def scalar_two_misc_double(cpu, i, operation: Unary):
    """one 64-bit integer in a SIMD&FP register."""
    _unary(cpu, i, 64, 64, operation)


@each(_without_sizes(COMPARE_ZERO), _SCALAR_DOUBLE_PATTERN, asm="$ d{Rd}, d{Rn}, #0")
def scalar_compare_zero(cpu, i, operation: Unary):
    """a 64-bit integer against zero."""
    _unary(cpu, i, 64, 64, operation)


# -- reversal of elements and bits -------------------------------------------------------------------------------------------
REVERSE = (("rev64", "0 00000", "bhs", 64), ("rev32", "1 00000", "bh", 32), ("rev16", "0 00001", "b", 16))


@each(REVERSE, _VECTOR_PATTERN, asm=f"$ {_VECTORS}")
def reverse_elements(cpu, i, container):
    """elements reversed within containers."""
    reversed_bytes = cpu.V(i.Rn, vector_width(i)).lanes(container).bswap()
    cpu.set_V(i.Rd, reversed_bytes.bits.lanes(8 << i.size).bswap())


@insn("0 Q:1 101110 0010000 00101 10 Rn:5 Rd:5", asm="mvn v{Rd}.{Q:8b|16b}, v{Rn}.{Q:8b|16b}")
def vector_not(cpu, i):
    """NOT (alias MVN)."""
    cpu.set_V(i.Rd, ~cpu.V(i.Rn, vector_width(i)))


@insn("0 Q:1 101110 0110000 00101 10 Rn:5 Rd:5", asm="rbit v{Rd}.{Q:8b|16b}, v{Rn}.{Q:8b|16b}")
def vector_reverse_bits(cpu, i):
    """RBIT (vector): the bits of each byte reversed."""
    cpu.set_V(i.Rd, cpu.V(i.Rn, vector_width(i)).lanes(8).bitreverse())


# -- pairwise long -----------------------------------------------------------------------------------------------------------
PAIRWISE_LONG = (
    ("saddlp", "0 00010", "bhs", True, False),
    ("uaddlp", "1 00010", "bhs", False, False),
    ("sadalp", "0 00110", "bhs", True, True),
    ("uadalp", "1 00110", "bhs", False, True),
)


@each(
    PAIRWISE_LONG,
    _VECTOR_PATTERN,
    asm=f"$ v{{Rd}}.{{size,Q:4h|8h|2s|4s|1d|2d|!|!}}, v{{Rn}}.{ARRANGEMENT}",
)
def pairwise_add_long(cpu, i, signed, accumulate):
    """sums of adjacent elements, twice as wide."""
    width, esize = vector_width(i), 8 << i.size
    pairs = cpu.V(i.Rn, width).lanes(2 * esize)
    low = pairs << esize
    total = low.asr(esize) + pairs.asr(esize) if signed else (low >> esize) + (pairs >> esize)
    cpu.set_V(i.Rd, cpu.V(i.Rd, width).lanes(2 * esize) + total if accumulate else total)


# -- narrowing and widening --------------------------------------------------------------------------------------------------
def narrow_signed(cpu: Any, value: Vec, esize: int) -> Vec:
    """Signed elements saturated to `esize` signed bits."""
    return saturated(cpu, clamp_signed(value, esize), value).trunc(esize)


def narrow_unsigned(cpu: Any, value: Vec, esize: int) -> Vec:
    """Unsigned elements saturated to `esize` unsigned bits."""
    return saturated(cpu, clamp_unsigned(value, esize), value).trunc(esize)


def narrow_signed_to_unsigned(cpu: Any, value: Vec, esize: int) -> Vec:
    """Signed elements saturated to `esize` unsigned bits."""
    return saturated(cpu, clamp_signed_to_unsigned(value, esize), value).trunc(esize)


SATURATING_NARROW = (
    ("sqxtn", "0 10100", "bhs", narrow_signed),
    ("uqxtn", "1 10100", "bhs", narrow_unsigned),
    ("sqxtun", "1 10010", "bhs", narrow_signed_to_unsigned),
)

NARROW = (("xtn", "0 10010", "bhs", lambda cpu, value, esize: value.trunc(esize)), *SATURATING_NARROW)


@each(NARROW, _VECTOR_PATTERN, asm=f"${{Q:|2}} v{{Rd}}.{ARRANGEMENT}, v{{Rn}}.{WIDE_ARRANGEMENT}")
def extract_narrow(cpu, i, narrow):
    """elements half as wide, into the lower or upper half."""
    esize = 8 << i.size
    set_half(cpu, i.Rd, i.Q, narrow(cpu, cpu.V(i.Rn).lanes(2 * esize), esize).bits)


@each(SATURATING_NARROW, _SCALAR_PATTERN, asm="$ {size:b|h|s|!}{Rd}, {size:h|s|d|!}{Rn}")
def scalar_extract_narrow(cpu, i, narrow):
    """one element, half as wide."""
    esize = 8 << i.size
    cpu.set_V(i.Rd, narrow(cpu, cpu.V(i.Rn, 2 * esize).lanes(2 * esize), esize))


@each(
    [("shll", "1 10011", "bhs")],
    _VECTOR_PATTERN,
    asm=f"${{Q:|2}} v{{Rd}}.{WIDE_ARRANGEMENT}, v{{Rn}}.{ARRANGEMENT}, #{{size:8|16|32|!}}",
)
def shift_left_long(cpu, i):
    """elements shifted left by their size."""
    esize = 8 << i.size
    cpu.set_V(i.Rd, half(cpu, i.Rn, i.Q, esize).zext(2 * esize) << esize)
