"""Conversions of scalar floating point: between precisions, to and from integers and fixed-point numbers, FMOV (general)."""

from __future__ import annotations

from typing import Any

from trapline.arm64.fp import ROUND_NEGINF, ROUND_POSINF, ROUND_TIEAWAY, ROUND_TIEEVEN, ROUND_ZERO
from trapline.arm64.insn import insn
from trapline.arm64.isa.fp_scalar import FORMATS, formats, width_of
from trapline.arm64.isa.simd_common import Fp, insert
from trapline.bits import Bits


@insn(
    "00011110 ftype:2 1 0001 opc:2 10000 Rn:5 Rd:5",
    asm="fcvt {opc:s|d|!|h}{Rd}, {ftype:s|d|!|h}{Rn}",
    where=lambda f: f.ftype in FORMATS and f.opc in FORMATS and f.ftype != f.opc,
)
def fp_convert_precision(cpu, i):
    """FCVT."""
    source, target = FORMATS[i.ftype], FORMATS[i.opc]
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, fp.resize(cpu.V(i.Rn, source), target))


def general(cpu: Any, i: Any) -> Bits:
    """The general register operand, as wide as `sf` says."""
    return cpu.X(i.Rn, 64 if i.sf else 32)


TO_INTEGER = (
    ("fcvtns", "00 000", 0, ROUND_TIEEVEN),
    ("fcvtnu", "00 001", 1, ROUND_TIEEVEN),
    ("fcvtas", "00 100", 0, ROUND_TIEAWAY),
    ("fcvtau", "00 101", 1, ROUND_TIEAWAY),
    ("fcvtps", "01 000", 0, ROUND_POSINF),
    ("fcvtpu", "01 001", 1, ROUND_POSINF),
    ("fcvtms", "10 000", 0, ROUND_NEGINF),
    ("fcvtmu", "10 001", 1, ROUND_NEGINF),
    ("fcvtzs", "11 000", 0, ROUND_ZERO),
    ("fcvtzu", "11 001", 1, ROUND_ZERO),
)


@formats(TO_INTEGER, "sf:1 0011110 ftype:2 1 <> <> 000000 Rn:5 Rd:5", asm="$ {Rd:R}, %{Rn}")
def fp_to_integer(cpu, i, unsigned, mode):
    """floating point to integer in a general register."""
    size = 64 if i.sf else 32
    with Fp(cpu) as fp:
        cpu.set_X(i.Rd, fp.to_fixed(cpu.V(i.Rn, width_of(i)), size, unsigned, mode))


FROM_INTEGER = (("scvtf", "010", 0), ("ucvtf", "011", 1))


@formats(FROM_INTEGER, "sf:1 0011110 ftype:2 1 00 <> 000000 Rn:5 Rd:5", asm="$ %{Rd}, {Rn:R}")
def fp_from_integer(cpu, i, unsigned):
    """integer in a general register to floating point."""
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, fp.from_fixed(width_of(i), general(cpu, i), unsigned))


TO_FIXED_64 = (("fcvtzs", "000", 0), ("fcvtzu", "001", 1))


@formats(TO_FIXED_64, "1 0011110 ftype:2 0 11 <> imm6:6 Rn:5 Rd:5", asm="$ {Rd:X}, %{Rn}, #{imm6:64-}")
def fp_to_fixed_64(cpu, i, unsigned):
    """floating point to 64-bit fixed point."""
    with Fp(cpu) as fp:
        cpu.set_X(i.Rd, fp.to_fixed(cpu.V(i.Rn, width_of(i)), 64, unsigned, ROUND_ZERO, 64 - i.imm6))


@formats(TO_FIXED_64, "0 0011110 ftype:2 0 11 <> 1 imm5:5 Rn:5 Rd:5", asm="$ {Rd:W}, %{Rn}, #{imm5:32-}")
def fp_to_fixed_32(cpu, i, unsigned):
    """floating point to 32-bit fixed point."""
    with Fp(cpu) as fp:
        cpu.set_X(i.Rd, fp.to_fixed(cpu.V(i.Rn, width_of(i)), 32, unsigned, ROUND_ZERO, 32 - i.imm5))


@formats(FROM_INTEGER, "1 0011110 ftype:2 0 00 <> imm6:6 Rn:5 Rd:5", asm="$ %{Rd}, {Rn:X}, #{imm6:64-}")
def fp_from_fixed_64(cpu, i, unsigned):
    """64-bit fixed point to floating point."""
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, fp.from_fixed(width_of(i), cpu.X(i.Rn, 64), unsigned, 64 - i.imm6))


@formats(FROM_INTEGER, "0 0011110 ftype:2 0 00 <> 1 imm5:5 Rn:5 Rd:5", asm="$ %{Rd}, {Rn:W}, #{imm5:32-}")
def fp_from_fixed_32(cpu, i, unsigned):
    """32-bit fixed point to floating point."""
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, fp.from_fixed(width_of(i), cpu.X(i.Rn, 32), unsigned, 32 - i.imm5))


def same_width(f: Any) -> bool:
    """FMOV moves 32 bits to and from W registers, 64 to and from X registers, 16 to and from both."""
    return bool(f.sf == f.ftype or f.ftype == 3)


@formats([("fmov", "")], "sf:1 0011110 ftype:2 100110 000000 Rn:5 Rd:5", asm="$ {Rd:R}, %{Rn}", where=same_width)
def fp_move_to_general(cpu, i):
    """FMOV (general), from a SIMD&FP register."""
    cpu.set_X(i.Rd, cpu.V(i.Rn, width_of(i)))


@formats([("fmov", "")], "sf:1 0011110 ftype:2 100111 000000 Rn:5 Rd:5", asm="$ %{Rd}, {Rn:R}", where=same_width)
def fp_move_from_general(cpu, i):
    """FMOV (general), to a SIMD&FP register."""
    cpu.set_V(i.Rd, cpu.X(i.Rn, width_of(i)))


@insn("1001111010101110000000 Rn:5 Rd:5", asm="fmov {Rd:X}, v{Rn}.d[1]")
def fp_move_top_to_general(cpu, i):
    """FMOV (general), from the upper half of a vector."""
    cpu.set_X(i.Rd, cpu.V(i.Rn)[127:64])


@insn("1001111010101111000000 Rn:5 Rd:5", asm="fmov v{Rd}.d[1], {Rn:X}")
def fp_move_top_from_general(cpu, i):
    """FMOV (general), to the upper half of a vector."""
    cpu.set_V(i.Rd, insert(cpu.V(i.Rd), 1, cpu.X(i.Rn, 64)))
