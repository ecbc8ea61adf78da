"""Data processing -- immediate."""

from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.arm64.pseudocode import add_with_carry, bitfield_mask, decode_bit_masks, sbfm_right_shift
from trapline.bits import const


@insn("0 immlo:2 10000 immhi:19 Rd:5", asm="adr {Rd:X}, {immhi,immlo:pc}")
def adr(cpu: Any, i: Any) -> None:
    """ADR."""
    cpu.set_X(i.Rd, cpu.PC + (i.signed("immhi") * 4 + i.immlo))


@insn("1 immlo:2 10000 immhi:19 Rd:5", asm="adrp {Rd:X}, {immhi,immlo:page}")
def adrp(cpu: Any, i: Any) -> None:
    """ADRP."""
    cpu.set_X(i.Rd, (cpu.PC & ~0xFFF) + (i.signed("immhi") * 4 + i.immlo) * 4096)


@insn("sf:1 op:1 S:1 100010 sh:1 imm12:12 Rn:5 Rd:5",
      asm="{op:add|sub}{S:|s} {Rd:S,sf=Wsp|Xsp|W|X}, {Rn:Rsp}, #{imm12}{sh:|, lsl #12}")
def add_sub_immediate(cpu: Any, i: Any) -> None:
    """ADD, ADDS, SUB, SUBS (immediate)."""
    width = 64 if i.sf else 32
    b = const(i.imm12 << 12 * i.sh, width)
    result, nzcv = add_with_carry(cpu.X(i.Rn, width, sp=True), ~b if i.op else b, i.op)
    if i.S:
        cpu.flags(*nzcv)
    cpu.set_X(i.Rd, result, sp=not i.S)


@insn("sf:1 opc:2 100100 immN:1 immr:6 imms:6 Rn:5 Rd:5",
      asm="{opc:and|orr|eor|ands} {Rd:opc,sf=Wsp|Xsp|Wsp|Xsp|Wsp|Xsp|W|X}, {Rn:R}, #{immN,immr,imms:bitmask}")
def logical_immediate(cpu: Any, i: Any) -> None:
    """AND, ORR, EOR, ANDS (immediate)."""
    width = 64 if i.sf else 32
    a = cpu.X(i.Rn, width)
    mask = i.derived(decode_bit_masks, i.immN, i.imms, i.immr).trunc(width)
    result = (a & mask, a | mask, a ^ mask, a & mask)[i.opc]
    if i.opc == 3:
        cpu.flags(result.msb, result.is_zero(), const(0, 1), const(0, 1))
    cpu.set_X(i.Rd, result, sp=i.opc != 3)


@insn("0 .. 100100 1 ...... ...... ..... .....", over="logical_immediate")
@insn("... 100100 0 ...... 11111. ..... .....", over=("logical_immediate", "logical_immediate_reserved"))
@insn("... 100100 0 ...... 111101 ..... .....", over="logical_immediate")
@insn("... 100100 0 ...... 111011 ..... .....", over="logical_immediate")
@insn("... 100100 0 ...... 110111 ..... .....", over="logical_immediate")
@insn("... 100100 0 ...... 101111 ..... .....", over="logical_immediate")
@insn("... 100100 0 ...... 011111 ..... .....", over="logical_immediate")
@insn("1 .. 100100 1 ...... 111111 ..... .....", over="logical_immediate")
def logical_immediate_reserved(cpu: Any, i: Any) -> None:
    """Masks that DecodeBitMasks() refuses: elements of one bit or of all ones, and 64-bit elements of a W register."""
    cpu.undefined()


@insn("sf:1 opc:2 100101 hw:2 imm16:16 Rd:5", where=lambda f: f.opc != 1 and (f.sf or f.hw < 2),
      asm="{opc:movn|!|movz|movk} {Rd:R}, #{imm16}{hw:|, lsl #16|, lsl #32|, lsl #48}")
def move_wide(cpu: Any, i: Any) -> None:
    """MOVN, MOVZ, MOVK."""
    width = 64 if i.sf else 32
    value = const(i.imm16 << 16 * i.hw, width)
    if i.opc == 3:
        value = cpu.X(i.Rd, width) & ~(0xFFFF << 16 * i.hw) | value
    cpu.set_X(i.Rd, ~value if i.opc == 0 else value)


@insn("sf:1 opc:2 100110 1 immr:6 imms:6 Rn:5 Rd:5", where=lambda f: f.sf and f.opc != 3,
      asm="{opc:sbfm|bfm|ubfm|!} {Rd:R}, {Rn:R}, #{immr}, #{imms}")
@insn("sf:1 opc:2 100110 0 0 immr:5 0 imms:5 Rn:5 Rd:5", where=lambda f: not f.sf and f.opc != 3,
      asm="{opc:sbfm|bfm|ubfm|!} {Rd:R}, {Rn:R}, #{immr}, #{imms}")
def bitfield(cpu: Any, i: Any) -> None:
    """SBFM, BFM, UBFM."""
    width = 64 if i.sf else 32
    source = cpu.X(i.Rn, width)
    if i.opc == 0:
        right = i.derived(sbfm_right_shift, width, i.immr, i.imms).trunc(width)
        cpu.set_X(i.Rd, (source << (width - 1 - i.imms)).asr(right))
        return
    mask = i.derived(bitfield_mask, width, i.immr, i.imms).trunc(width)
    field = source.ror(i.immr) & mask
    cpu.set_X(i.Rd, cpu.X(i.Rd, width) & ~mask | field if i.opc == 1 else field)


@insn("sf:1 00 100111 1 0 Rm:5 imms:6 Rn:5 Rd:5", where=lambda f: f.sf, asm="extr {Rd:R}, {Rn:R}, {Rm:R}, #{imms}")
@insn("sf:1 00 100111 0 0 Rm:5 0 imms:5 Rn:5 Rd:5", where=lambda f: not f.sf, asm="extr {Rd:R}, {Rn:R}, {Rm:R}, #{imms}")
def extract(cpu: Any, i: Any) -> None:
    """EXTR."""
    width = 64 if i.sf else 32
    high = cpu.X(i.Rn, width) << 1 << (width - 1 - i.imms)
    cpu.set_X(i.Rd, high | cpu.X(i.Rm, width) >> i.imms)
