"""Multiply-accumulate of 16-bit floating-point numbers to single precision (FEAT_FHM, FEAT_BF16), and conversion to BFloat16.

The products are exact, and the sum is rounded once, as FPCR says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.arm64.fp_bfloat import fp_convert_bf_32
from trapline.arm64.fp_half import fp_half_to_single
from trapline.arm64.insn import insn
from trapline.arm64.isa.simd_common import Fp, each, evens, negated, odds, set_half, vector_width
from trapline.arm64.isa.simd_element import H_ELEMENT, H_INDEX, indexed
from trapline.bits import Bits, Vec, call, cat, const

Widen = Callable[[Any, Bits], Bits]


def from_half(cpu: Any, lane: Bits) -> Bits:
    """A half-precision number in single precision."""
    result: Bits = call(fp_half_to_single, lane, cpu.sysreg("FPCR").trunc(32))
    return result


def from_bfloat(cpu: Any, lane: Bits) -> Bits:
    """A BFloat16 number in single precision."""
    return cat(lane, const(0, 16))


def _accumulate(cpu: Any, i: Any, n: Vec, m: Vec, widen: Widen) -> None:
    """Add products to the single-precision elements of Rd."""
    d = cpu.V(i.Rd, 2 * n.bits.width).lanes(32)
    wide_n, wide_m = (Vec.of([widen(cpu, lane) for lane in v]) for v in (n, m))
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, fp.lanes("fp_muladd", d, wide_n, wide_m))


# -- half precision: the operands are in one half of the vectors -------------------------------------------------------------
LONG = (
    ("fmlal", "0 0 11101", 0, False),
    ("fmlsl", "0 1 11101", 0, True),
    ("fmlal2", "1 0 11001", 1, False),
    ("fmlsl2", "1 1 11001", 1, True),
)
LONG_ELEMENT = (
    ("fmlal", "0 0000", 0, False),
    ("fmlsl", "0 0100", 0, True),
    ("fmlal2", "1 1000", 1, False),
    ("fmlsl2", "1 1100", 1, True),
)


def _part(cpu: Any, i: Any, register: Any, upper: int) -> Vec:
    """The lower or upper half of a vector of 64 or 128 bits."""
    width = vector_width(i) // 2
    return (cpu.V(register) >> upper * width).trunc(width).lanes(16)


@each(
    LONG,
    "0 Q:1 <> 01110 <> 01 Rm:5 <> 1 Rn:5 Rd:5",
    asm="$ v{Rd}.{Q:2s|4s}, v{Rn}.{Q:2h|4h}, v{Rm}.{Q:2h|4h}",
    feature="FEAT_FHM",
)
def half_multiply_long(cpu, i, upper, subtract):
    """products of half-precision numbers."""
    n = _part(cpu, i, i.Rn, upper)
    _accumulate(cpu, i, negated(n) if subtract else n, _part(cpu, i, i.Rm, upper), from_half)


@each(
    LONG_ELEMENT,
    f"0 Q:1 <> 01111 10 {H_INDEX} 0 Rn:5 Rd:5",
    asm=f"$ v{{Rd}}.{{Q:2s|4s}}, v{{Rn}}.{{Q:2h|4h}}, {H_ELEMENT}",
    feature="FEAT_FHM",
)
def half_multiply_long_by_element(cpu, i, upper, subtract):
    """products of half-precision numbers with one element."""
    n = _part(cpu, i, i.Rn, upper)
    _accumulate(cpu, i, negated(n) if subtract else n, Vec.splat(indexed(cpu, i, 16), len(n)), from_half)


# -- BFloat16: the operands are the even or the odd elements -----------------------------------------------------------------
def _every_second(cpu: Any, register: Any, odd: int) -> Vec:
    value = cpu.V(register).lanes(16)
    return odds(value) if odd else evens(value)


@insn(
    "0 T:1 1 01110 11 0 Rm:5 111111 Rn:5 Rd:5",
    asm="bfmlal{T:b|t} v{Rd}.4s, v{Rn}.8h, v{Rm}.8h",
    feature="FEAT_BF16",
)
def bfloat_multiply_long(cpu, i):
    """BFMLALB, BFMLALT (vector)."""
    _accumulate(cpu, i, _every_second(cpu, i.Rn, i.T), _every_second(cpu, i.Rm, i.T), from_bfloat)


@insn(
    f"0 T:1 0 01111 11 {H_INDEX.replace('<>', '1111')} 0 Rn:5 Rd:5",
    asm=f"bfmlal{{T:b|t}} v{{Rd}}.4s, v{{Rn}}.8h, {H_ELEMENT}",
    feature="FEAT_BF16",
)
def bfloat_multiply_long_by_element(cpu, i):
    """BFMLALB, BFMLALT (by element)."""
    n = _every_second(cpu, i.Rn, i.T)
    _accumulate(cpu, i, n, Vec.splat(indexed(cpu, i, 16), len(n)), from_bfloat)


@insn("0001111001 1 000110 10000 Rn:5 Rd:5", asm="bfcvt h{Rd}, s{Rn}", feature="FEAT_BF16")
def bfloat_convert(cpu, i):
    """BFCVT."""
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, fp.apply(fp_convert_bf_32, cpu.V(i.Rn, 32)))


@insn(
    "0 Q:1 001110 10 10000 10110 10 Rn:5 Rd:5",
    asm="bfcvtn{Q:|2} v{Rd}.{Q:4h|8h}, v{Rn}.4s",
    feature="FEAT_BF16",
)
def bfloat_convert_narrow(cpu, i):
    """BFCVTN, BFCVTN2."""
    with Fp(cpu) as fp:
        set_half(cpu, i.Rd, i.Q, Vec.of([fp.apply(fp_convert_bf_32, lane) for lane in cpu.V(i.Rn).lanes(32)]).bits)
