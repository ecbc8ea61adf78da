"""Advanced SIMD across lanes, and scalar pairwise: one result from all elements of a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.arm64.insn import insn
from trapline.arm64.isa.simd_common import ARRANGEMENT, Fp, each, evens, odds, vector_width
from trapline.bits import Bits, Vec


def reduce(operation: Callable[[Vec, Vec], Vec], value: Vec) -> Bits:
    """Combine all elements: the lower half with the upper half, until one is left (operation is associative)."""
    while len(value) > 1:
        middle = value.bits.width // 2
        lower, upper = value.bits.trunc(middle), value.bits[2 * middle - 1 : middle]
        value = operation(lower.lanes(value.esize), upper.lanes(value.esize))
    return value.bits


def across_sizes(f: Any) -> bool:
    """Two words are not a vector to reduce."""
    return bool(f.size < 2 or f.Q)


ACROSS = (
    ("smaxv", "0 01010", "bhs", Vec.smax),
    ("umaxv", "1 01010", "bhs", Vec.umax),
    ("sminv", "0 11010", "bhs", Vec.smin),
    ("uminv", "1 11010", "bhs", Vec.umin),
    ("addv", "0 11011", "bhs", Vec.__add__),
)


@each(
    ACROSS,
    "0 Q:1 <> 01110 size:2 11000 <> 10 Rn:5 Rd:5",
    asm=f"$ {{size:b|h|s|!}}{{Rd}}, v{{Rn}}.{ARRANGEMENT}",
    where=across_sizes,
)
def across_lanes(cpu, i, operation):
    """one value from all elements."""
    cpu.set_V(i.Rd, reduce(operation, cpu.V(i.Rn, vector_width(i)).lanes(8 << i.size)))


@each(
    [("saddlv", "0", "bhs", Vec.sext), ("uaddlv", "1", "bhs", Vec.zext)],
    "0 Q:1 <> 01110 size:2 110000001110 Rn:5 Rd:5",
    asm=f"$ {{size:h|s|d|!}}{{Rd}}, v{{Rn}}.{ARRANGEMENT}",
    where=across_sizes,
)
def across_lanes_long(cpu, i, extend):
    """the sum of all elements, twice as wide."""
    esize = 8 << i.size
    cpu.set_V(i.Rd, reduce(Vec.__add__, extend(cpu.V(i.Rn, vector_width(i)).lanes(esize), 2 * esize)))


FP_ACROSS = (
    ("fmaxnmv", "0 01100", "fp_maxnm"),
    ("fmaxv", "0 01111", "fp_max"),
    ("fminnmv", "1 01100", "fp_minnm"),
    ("fminv", "1 01111", "fp_min"),
)


@each(FP_ACROSS, "01101110 <> 011000 <> 10 Rn:5 Rd:5", asm="$ s{Rd}, v{Rn}.4s")
def fp_across_lanes(cpu, i, function):
    """extreme of four single-precision numbers."""
    _fp_across(cpu, i, cpu.V(i.Rn).lanes(32), function)


@each(
    FP_ACROSS,
    "0 Q:1 001110 <> 011000 <> 10 Rn:5 Rd:5",
    asm="$ h{Rd}, v{Rn}.{Q:4h|8h}",
    feature="FEAT_FP16",
)
def fp_across_lanes_half(cpu, i, function):
    """extreme of four or eight half-precision numbers."""
    _fp_across(cpu, i, cpu.V(i.Rn, vector_width(i)).lanes(16), function)


def _fp_across(cpu: Any, i: Any, value: Vec, function: str) -> None:
    """Neighbours are combined first: the order decides which of several NaNs is the result."""
    with Fp(cpu) as fp:
        while len(value) > 1:
            value = fp.lanes(function, evens(value), odds(value))
        cpu.set_V(i.Rd, value)


@insn("0101111011110001101110 Rn:5 Rd:5", asm="addp d{Rd}, v{Rn}.2d")
def scalar_add_pair(cpu, i):
    """ADDP (scalar)."""
    low, high = cpu.V(i.Rn).lanes(64)
    cpu.set_V(i.Rd, low + high)


PAIRWISE = (
    ("fmaxnmp", "0 01100", "fp_maxnm"),
    ("faddp", "0 01101", "fp_add"),
    ("fmaxp", "0 01111", "fp_max"),
    ("fminnmp", "1 01100", "fp_minnm"),
    ("fminp", "1 01111", "fp_min"),
)


@each(PAIRWISE, "01111110 <> sz:1 11000 <> 10 Rn:5 Rd:5", asm="$ {sz:s|d}{Rd}, v{Rn}.{sz:2s|2d}")
def fp_scalar_pairwise(cpu, i, function):
    """two adjacent numbers."""
    esize = 32 << i.sz
    _fp_across(cpu, i, cpu.V(i.Rn, 2 * esize).lanes(esize), function)


@each(PAIRWISE, "01011110 <> 011000 <> 10 Rn:5 Rd:5", asm="$ h{Rd}, v{Rn}.2h", feature="FEAT_FP16")
def fp_scalar_pairwise_half(cpu, i, function):
    """two adjacent half-precision numbers."""
    _fp_across(cpu, i, cpu.V(i.Rn, 32).lanes(16), function)
