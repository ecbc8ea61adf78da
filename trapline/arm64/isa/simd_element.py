"""Advanced SIMD vector by indexed element: one element of Rm multiplies every element of Rn; vector and scalar forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.arm64.isa.simd_common import Fp, each, element, half, negated, vector_width
from trapline.arm64.isa.simd_three_different import DOUBLING_LONG, MULTIPLY_LONG
from trapline.arm64.isa.simd_three_same import doubling_high, doubling_high_accumulate
from trapline.bits import Bits, Vec

# The index of a halfword is H:L:M and leaves 4 bits for Rm; of a word it is H:L; of a doubleword H.
H_INDEX = "immL:1 immM:1 Rm:4 <> immH:1"
_H = f"01 {H_INDEX} 0 Rn:5 Rd:5"
_FP16 = f"00 {H_INDEX} 0 Rn:5 Rd:5"
_S = "10 immL:1 Rm:5 <> immH:1 0 Rn:5 Rd:5"
H_ELEMENT = "v{Rm}.h[{immH,immL,immM}]"
_S_ELEMENT = "v{Rm}.s[{immH,immL}]"
_VECTORS_H = f"$ v{{Rd}}.{{Q:4h|8h}}, v{{Rn}}.{{Q:4h|8h}}, {H_ELEMENT}"
_VECTORS_S = f"$ v{{Rd}}.{{Q:2s|4s}}, v{{Rn}}.{{Q:2s|4s}}, {_S_ELEMENT}"
_SCALARS_H = f"$ h{{Rd}}, h{{Rn}}, {H_ELEMENT}"
_SCALARS_S = f"$ s{{Rd}}, s{{Rn}}, {_S_ELEMENT}"


def indexed(cpu: Any, i: Any, esize: int) -> Bits:
    """The element of Rm that the instruction names."""
    index = i.immH * 4 + i.immL * 2 + i.immM if esize == 16 else i.immH * 2 + i.immL if esize == 32 else i.immH
    return element(cpu, i.Rm, index, esize)


SAME_WIDTH = (
    ("mul", "0 1000", lambda cpu, d, n, m: n * m),
    ("mla", "1 0000", lambda cpu, d, n, m: d + n * m),
    ("mls", "1 0100", lambda cpu, d, n, m: d - n * m),
)

HIGH_HALF = (
    ("sqdmulh", "0 1100", lambda cpu, d, n, m: doubling_high(cpu, n, m, rounding=False)),
    ("sqrdmulh", "0 1101", lambda cpu, d, n, m: doubling_high(cpu, n, m, rounding=True)),
)
ROUNDING_ACCUMULATE = (
    ("sqrdmlah", "1 1101", doubling_high_accumulate(subtract=False)),
    ("sqrdmlsh", "1 1111", doubling_high_accumulate(subtract=True)),
)
"""These two tables also scalar."""


def _same_width(cpu: Any, i: Any, width: int, esize: int, operation: Callable[[Any, Vec, Vec, Vec], Vec]) -> None:
    d, n = cpu.V(i.Rd, width).lanes(esize), cpu.V(i.Rn, width).lanes(esize)
    cpu.set_V(i.Rd, operation(cpu, d, n, Vec.splat(indexed(cpu, i, esize), len(n))))


@each(ROUNDING_ACCUMULATE, f"0 Q:1 <> 01111 {_H}", asm=_VECTORS_H, feature="FEAT_RDM")
@each(SAME_WIDTH + HIGH_HALF, f"0 Q:1 <> 01111 {_H}", asm=_VECTORS_H)
def by_element_h(cpu, i, operation):
    """halfwords by one halfword."""
    _same_width(cpu, i, vector_width(i), 16, operation)


@each(ROUNDING_ACCUMULATE, f"0 Q:1 <> 01111 {_S}", asm=_VECTORS_S, feature="FEAT_RDM")
@each(SAME_WIDTH + HIGH_HALF, f"0 Q:1 <> 01111 {_S}", asm=_VECTORS_S)
def by_element_s(cpu, i, operation):
    """words by one word."""
    _same_width(cpu, i, vector_width(i), 32, operation)


@each(ROUNDING_ACCUMULATE, f"01 <> 11111 {_H}", asm=_SCALARS_H, feature="FEAT_RDM")
@each(HIGH_HALF, f"01 <> 11111 {_H}", asm=_SCALARS_H)
def scalar_by_element_h(cpu, i, operation):
    """a halfword by one halfword."""
    _same_width(cpu, i, 16, 16, operation)


@each(ROUNDING_ACCUMULATE, f"01 <> 11111 {_S}", asm=_SCALARS_S, feature="FEAT_RDM")
@each(HIGH_HALF, f"01 <> 11111 {_S}", asm=_SCALARS_S)
def scalar_by_element_s(cpu, i, operation):
    """a word by one word."""
    _same_width(cpu, i, 32, 32, operation)


_LONG_BITS = {
    "smlal": "0 0010", "umlal": "1 0010", "smlsl": "0 0110", "umlsl": "1 0110", "smull": "0 1010", "umull": "1 1010",
    "sqdmlal": "0 0011", "sqdmlsl": "0 0111", "sqdmull": "0 1011",
}  # fmt: skip


def _long_rows(*tables: Any) -> list[tuple[Any, ...]]:
    """The rows of the vector classes under the opcodes of this class."""
    return [(mnemonic, _LONG_BITS[mnemonic], operation) for table in tables for mnemonic, _, _, operation in table]


def _long(cpu: Any, i: Any, n: Vec, operation: Callable[[Any, Vec, Vec, Vec], Vec]) -> None:
    wide = 2 * n.esize
    d = cpu.V(i.Rd, len(n) * wide).lanes(wide)
    cpu.set_V(i.Rd, operation(cpu, d, n, Vec.splat(indexed(cpu, i, n.esize), len(n))))


@each(
    _long_rows(MULTIPLY_LONG, DOUBLING_LONG),
    f"0 Q:1 <> 01111 {_H}",
    asm=f"${{Q:|2}} v{{Rd}}.4s, v{{Rn}}.{{Q:4h|8h}}, {H_ELEMENT}",
)
def by_element_long_h(cpu, i, operation):
    """halfwords by one halfword, to words."""
    _long(cpu, i, half(cpu, i.Rn, i.Q, 16), operation)


@each(
    _long_rows(MULTIPLY_LONG, DOUBLING_LONG),
    f"0 Q:1 <> 01111 {_S}",
    asm=f"${{Q:|2}} v{{Rd}}.2d, v{{Rn}}.{{Q:2s|4s}}, {_S_ELEMENT}",
)
def by_element_long_s(cpu, i, operation):
    """words by one word, to doublewords."""
    _long(cpu, i, half(cpu, i.Rn, i.Q, 32), operation)


@each(_long_rows(DOUBLING_LONG), f"01 <> 11111 {_H}", asm=f"$ s{{Rd}}, h{{Rn}}, {H_ELEMENT}")
def scalar_by_element_long_h(cpu, i, operation):
    """a halfword by one halfword, to a word."""
    _long(cpu, i, cpu.V(i.Rn, 16).lanes(16), operation)


@each(_long_rows(DOUBLING_LONG), f"01 <> 11111 {_S}", asm=f"$ d{{Rd}}, s{{Rn}}, {_S_ELEMENT}")
def scalar_by_element_long_s(cpu, i, operation):
    """a word by one word, to a doubleword."""
    _long(cpu, i, cpu.V(i.Rn, 32).lanes(32), operation)


FLOATING = (
    ("fmla", "0 0001", lambda fp, d, n, m: fp.lanes("fp_muladd", d, n, m)),
    ("fmls", "0 0101", lambda fp, d, n, m: fp.lanes("fp_muladd", d, negated(n), m)),
    ("fmul", "0 1001", lambda fp, d, n, m: fp.lanes("fp_mul", n, m)),
    ("fmulx", "1 1001", lambda fp, d, n, m: fp.lanes("fp_mulx", n, m)),
)


def _floating(cpu: Any, i: Any, width: int, esize: int, operation: Callable[[Fp, Vec, Vec, Vec], Vec]) -> None:
    d, n = cpu.V(i.Rd, width).lanes(esize), cpu.V(i.Rn, width).lanes(esize)
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, operation(fp, d, n, Vec.splat(indexed(cpu, i, esize), len(n))))


@each(FLOATING, f"0 Q:1 <> 01111 {_FP16}", asm=_VECTORS_H, feature="FEAT_FP16")
def fp_by_element_h(cpu, i, operation):
    """half-precision numbers by one element."""
    _floating(cpu, i, vector_width(i), 16, operation)


@each(FLOATING, f"0 Q:1 <> 01111 {_S}", asm=_VECTORS_S)
def fp_by_element_s(cpu, i, operation):
    """single-precision numbers by one element."""
    _floating(cpu, i, vector_width(i), 32, operation)


@each(FLOATING, "01 <> 01111 110 Rm:5 <> immH:1 0 Rn:5 Rd:5", asm="$ v{Rd}.2d, v{Rn}.2d, v{Rm}.d[{immH}]")
def fp_by_element_d(cpu, i, operation):
    """double-precision numbers by one element."""
    _floating(cpu, i, 128, 64, operation)


@each(FLOATING, f"01 <> 11111 {_FP16}", asm=_SCALARS_H, feature="FEAT_FP16")
def fp_scalar_by_element_h(cpu, i, operation):
    """a half-precision number by one element."""
    _floating(cpu, i, 16, 16, operation)


@each(FLOATING, f"01 <> 11111 {_S}", asm=_SCALARS_S)
def fp_scalar_by_element_s(cpu, i, operation):
    """a single-precision number by one element."""
    _floating(cpu, i, 32, 32, operation)


@each(FLOATING, "01 <> 11111 110 Rm:5 <> immH:1 0 Rn:5 Rd:5", asm="$ d{Rd}, d{Rn}, v{Rm}.d[{immH}]")
def fp_scalar_by_element_d(cpu, i, operation):
    """a double-precision number by one element."""
    _floating(cpu, i, 64, 64, operation)
