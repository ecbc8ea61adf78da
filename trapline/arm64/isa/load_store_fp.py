"""Loads and stores of SIMD&FP scalars: one register, literal, pairs. (Structures are in `simd_load_store`.)

A quadword is encoded as size 0 with the high bit of opc set; the patterns here split on that bit.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.arm64.isa.load_store import INDEX
from trapline.arm64.isa.load_store_pair import load_pair, store_pair
from trapline.arm64.pseudocode import extend_reg
from trapline.bits import Bits

SMALL = "{L:st|ld}r {size:b|h|s|d}{Rt}, "
QUAD = "{L:st|ld}r q{Rt}, "
SMALL_PAIR = "{L:st|ld}p {opc:s|d|q|!}{Rt}, {opc:s|d|q|!}{Rt2}, "


def log2_bytes(i: Any) -> int:
    """log2 of the access size; the quadword patterns have no size field."""
    return getattr(i, "size", 4)


def transfer(cpu: Any, i: Any, address: Bits) -> None:
    """Load or store Vt."""
    width = 8 << log2_bytes(i)
    if i.L:
        cpu.set_V(i.Rt, cpu.load(address, width))
    else:
        cpu.store(address, cpu.V(i.Rt, width))


@insn("size:2 111 1 01 0 L:1 imm12:12 Rn:5 Rt:5", asm=SMALL + "[{Rn:Xsp}<, #{imm12:<<size}>]")
@insn("00 111 1 01 1 L:1 imm12:12 Rn:5 Rt:5", asm=QUAD + "[{Rn:Xsp}<, #{imm12:*16}>]")
def load_store_fp_unsigned_offset(cpu: Any, i: Any) -> None:
    """STR, LDR (immediate, SIMD&FP, unsigned offset)."""
    transfer(cpu, i, cpu.X(i.Rn, sp=True) + (i.imm12 << log2_bytes(i)))


@insn("size:2 111 1 00 0 L:1 0 imm9:9 00 Rn:5 Rt:5", asm=SMALL.replace("}r", "}ur") + "[{Rn:Xsp}<, #{imm9:s}>]")
@insn("00 111 1 00 1 L:1 0 imm9:9 00 Rn:5 Rt:5", asm=QUAD.replace("}r", "}ur") + "[{Rn:Xsp}<, #{imm9:s}>]")
def load_store_fp_unscaled(cpu: Any, i: Any) -> None:
    """STUR, LDUR (SIMD&FP)."""
    transfer(cpu, i, cpu.X(i.Rn, sp=True) + i.signed("imm9"))


@insn("size:2 111 1 00 0 L:1 0 imm9:9 01 Rn:5 Rt:5", asm=SMALL + "[{Rn:Xsp}], #{imm9:s}")
@insn("00 111 1 00 1 L:1 0 imm9:9 01 Rn:5 Rt:5", asm=QUAD + "[{Rn:Xsp}], #{imm9:s}")
def load_store_fp_post_index(cpu: Any, i: Any) -> None:
    """STR, LDR (immediate, SIMD&FP, post-indexed)."""
    address = cpu.X(i.Rn, sp=True)
    transfer(cpu, i, address)
    cpu.set_X(i.Rn, address + i.signed("imm9"), sp=True)


@insn("size:2 111 1 00 0 L:1 0 imm9:9 11 Rn:5 Rt:5", asm=SMALL + "[{Rn:Xsp}, #{imm9:s}]!")
@insn("00 111 1 00 1 L:1 0 imm9:9 11 Rn:5 Rt:5", asm=QUAD + "[{Rn:Xsp}, #{imm9:s}]!")
def load_store_fp_pre_index(cpu: Any, i: Any) -> None:
    """STR, LDR (immediate, SIMD&FP, pre-indexed)."""
    address = cpu.X(i.Rn, sp=True) + i.signed("imm9")
    transfer(cpu, i, address)
    cpu.set_X(i.Rn, address, sp=True)


EXTEND = "<option=3,S=0|, {option:!|!|uxtw|lsl|!|!|sxtw|sxtx}"


@insn("size:2 111 1 00 0 L:1 1 Rm:5 option:3 S:1 10 Rn:5 Rt:5", where=lambda f: f.option & 2,
      asm=SMALL + f"[{{Rn:Xsp}}, {INDEX}{EXTEND}{{S,size:|||| #0| #1| #2| #3}}>]")
@insn("00 111 1 00 1 L:1 1 Rm:5 option:3 S:1 10 Rn:5 Rt:5", where=lambda f: f.option & 2,
      asm=QUAD + f"[{{Rn:Xsp}}, {INDEX}{EXTEND}{{S:| #4}}>]")
def load_store_fp_register_offset(cpu: Any, i: Any) -> None:
    """STR, LDR (register, SIMD&FP)."""
    shift = log2_bytes(i) if i.S else 0
    transfer(cpu, i, cpu.X(i.Rn, sp=True) + extend_reg(cpu, i.Rm, i.option, shift, 64))


@insn("opc:2 011 1 00 imm19:19 Rt:5", where=lambda f: f.opc != 3, asm="ldr {opc:s|d|q|!}{Rt}, {imm19:pc*4}")
def load_literal_fp(cpu: Any, i: Any) -> None:
    """LDR (literal, SIMD&FP)."""
    cpu.set_V(i.Rt, cpu.load(cpu.PC + i.signed("imm19") * 4, 32 << i.opc))


def transfer_pair(cpu: Any, i: Any, address: Bits) -> None:
    """Load or store Vt and Vt2."""
    width = 32 << i.opc
    if not i.L:
        store_pair(cpu, address, cpu.V(i.Rt, width), cpu.V(i.Rt2, width))
        return
    first, second = load_pair(cpu, address, width)
    cpu.set_V(i.Rt, first)
    cpu.set_V(i.Rt2, second)


@insn("opc:2 101 1 0 temporal:1 0 L:1 imm7:7 Rt2:5 Rn:5 Rt:5", where=lambda f: f.opc != 3,
      asm=SMALL_PAIR.replace("}p", "}{temporal:n|}p") + "[{Rn:Xsp}<, #{imm7:s<<opc*4}>]")
def load_store_pair_fp_offset(cpu: Any, i: Any) -> None:
    """STP, LDP (SIMD&FP, signed offset), STNP, LDNP."""
    transfer_pair(cpu, i, cpu.X(i.Rn, sp=True) + i.signed("imm7") * (4 << i.opc))


@insn("opc:2 101 1 001 L:1 imm7:7 Rt2:5 Rn:5 Rt:5", where=lambda f: f.opc != 3,
      asm=SMALL_PAIR + "[{Rn:Xsp}], #{imm7:s<<opc*4}")
def load_store_pair_fp_post_index(cpu: Any, i: Any) -> None:
    """STP, LDP (SIMD&FP, post-index)."""
    address = cpu.X(i.Rn, sp=True)
    transfer_pair(cpu, i, address)
    cpu.set_X(i.Rn, address + i.signed("imm7") * (4 << i.opc), sp=True)


@insn("opc:2 101 1 011 L:1 imm7:7 Rt2:5 Rn:5 Rt:5", where=lambda f: f.opc != 3,
      asm=SMALL_PAIR + "[{Rn:Xsp}, #{imm7:s<<opc*4}]!")
def load_store_pair_fp_pre_index(cpu: Any, i: Any) -> None:
    """STP, LDP (SIMD&FP, pre-index)."""
    address = cpu.X(i.Rn, sp=True) + i.signed("imm7") * (4 << i.opc)
    transfer_pair(cpu, i, address)
    cpu.set_X(i.Rn, address, sp=True)
