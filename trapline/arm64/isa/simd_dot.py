"""Dot products and small matrix products: integers of 8 bits (FEAT_DotProd, FEAT_I8MM) and BFloat16 (FEAT_BF16).

Every 32-bit element of the result sums products of the narrow elements in one 32-bit part of each source. A matrix product
takes its sources as rows of two such parts.
"""

from __future__ import annotations

from collections.abc import Callable

from trapline.arm64 import fp_bfloat
from trapline.arm64.isa.simd_common import each, element, vector_width
from trapline.bits import Vec, call

Dot = Callable[[Vec, Vec, Vec], Vec]
"""`(sums, n, m) -> sums`, all as 32-bit parts."""


def _byte(parts: Vec, k: int, signed: bool) -> Vec:
    """Byte `k` of every part, extended."""
    return (parts << 24 - 8 * k).asr(24) if signed else parts >> 8 * k & 0xFF


def integers(n_signed: bool, m_signed: bool) -> Dot:
    """Products of four bytes each."""

    def dot(sums: Vec, n: Vec, m: Vec) -> Vec:
        for k in range(4):
            sums = sums + _byte(n, k, n_signed) * _byte(m, k, m_signed)
        return sums

    return dot


def bfloats(sums: Vec, n: Vec, m: Vec) -> Vec:
    """BFDotAdd: products of two BFloat16 numbers each."""
    return Vec.of([call(fp_bfloat.bf_dot_add, *parts) for parts in zip(sums, n, m, strict=True)])


_VECTOR = "0 Q:1 <> 01110 <> 0 Rm:5 <> 1 Rn:5 Rd:5"
_ELEMENT = "0 Q:1 <> 01111 <> immL:1 Rm:5 <> immH:1 0 Rn:5 Rd:5"
_MATRIX = "01 <> 01110 <> 0 Rm:5 <> 1 Rn:5 Rd:5"
_BYTES = "$ v{Rd}.{Q:2s|4s}, v{Rn}.{Q:8b|16b}, "
_BFLOATS = "$ v{Rd}.{Q:2s|4s}, v{Rn}.{Q:4h|8h}, "
_INDEX = "[{immH,immL}]"


@each(
    [("sdot", "0 10 10010", integers(True, True)), ("udot", "1 10 10010", integers(False, False))],
    _VECTOR,
    asm=_BYTES + "v{Rm}.{Q:8b|16b}",
    feature="FEAT_DotProd",
)
@each([("usdot", "0 10 10011", integers(False, True))], _VECTOR, asm=_BYTES + "v{Rm}.{Q:8b|16b}", feature="FEAT_I8MM")
@each([("bfdot", "1 01 11111", bfloats)], _VECTOR, asm=_BFLOATS + "v{Rm}.{Q:4h|8h}", feature="FEAT_BF16")
def dot_product(cpu, i, dot: Dot):
    """sums of products, added to the destination."""
    d, n, m = (cpu.V(r, vector_width(i)).lanes(32) for r in (i.Rd, i.Rn, i.Rm))
    cpu.set_V(i.Rd, dot(d, n, m))


@each(
    [("sdot", "0 10 1110", integers(True, True)), ("udot", "1 10 1110", integers(False, False))],
    _ELEMENT,
    asm=_BYTES + "v{Rm}.4b" + _INDEX,
    feature="FEAT_DotProd",
)
@each(
    [("usdot", "0 10 1111", integers(False, True)), ("sudot", "0 00 1111", integers(True, False))],
    _ELEMENT,
    asm=_BYTES + "v{Rm}.4b" + _INDEX,
    feature="FEAT_I8MM",
)
@each([("bfdot", "0 01 1111", bfloats)], _ELEMENT, asm=_BFLOATS + "v{Rm}.2h" + _INDEX, feature="FEAT_BF16")
def dot_product_by_element(cpu, i, dot: Dot):
    """sums of products with one 32-bit part of Rm, added to the destination."""
    d, n = (cpu.V(r, vector_width(i)).lanes(32) for r in (i.Rd, i.Rn))
    cpu.set_V(i.Rd, dot(d, n, Vec.splat(element(cpu, i.Rm, i.immH * 2 + i.immL, 32), len(n))))


@each(
    [
        ("smmla", "0 10 10100", integers(True, True)),
        ("ummla", "1 10 10100", integers(False, False)),
        ("usmmla", "0 10 10101", integers(False, True)),
    ],
    _MATRIX,
    asm="$ v{Rd}.4s, v{Rn}.16b, v{Rm}.16b",
    feature="FEAT_I8MM",
)
@each([("bfmmla", "1 01 11101", bfloats)], _MATRIX, asm="$ v{Rd}.4s, v{Rn}.8h, v{Rm}.8h", feature="FEAT_BF16")
def matrix_product(cpu, i, dot: Dot):
    """the two rows of Rn by the two rows of Rm, added to a matrix of two by two."""
    d, n, m = (cpu.V(r).lanes(32) for r in (i.Rd, i.Rn, i.Rm))
    for part in range(2):
        rows_n, rows_m = list(n)[part::2], list(m)[part::2]
        d = dot(d, Vec.of([rows_n[0], rows_n[0], rows_n[1], rows_n[1]]), Vec.of([*rows_m, *rows_m]))
    cpu.set_V(i.Rd, d)
