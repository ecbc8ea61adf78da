"""Loads and stores of one general-purpose register: every addressing mode, literal, unprivileged, prefetch.

CONSTRAINED UNPREDICTABLE cases, here and in the other load/store modules: all accesses come first, then register writes in the
order of the body. So a load that writes back to its own target leaves the address there, a store that writes back to its own
source stores the old value. A pair loaded into one general-purpose register leaves the first element, into one SIMD&FP
register the second (the choices of the implementation that tests compare with).
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.arm64.pseudocode import extend_reg
from trapline.bits import Bits

# Meaning of opc:size, in templates: four sizes stored, loaded, loaded and signed to 64 bits, signed to 32 bits.
NAMES = "{opc,size:st#b|st#h|st#|st#|ld#b|ld#h|ld#|ld#|ld#sb|ld#sh|ld#sw|!|ld#sb|ld#sh|!|!}"
TARGET = "{Rt:opc,size=W|W|W|X|W|W|W|X|X|X|X|!|W|W|!|!}"


def syntax(stem: str, address: str) -> str:
    """The template of one addressing mode; `stem` is r, ur or tr."""
    return NAMES.replace("#", stem) + f" {TARGET}, {address}"


def allocated(f: Any) -> bool:
    """Whether size and opc name a load or store: not a signed load that would have nothing to extend."""
    return bool(f.size < (4, 4, 3, 2)[f.opc])


def transfer(cpu: Any, i: Any, address: Bits, unprivileged: bool = False) -> None:
    """Store or load the size, with the extension, that size and opc select."""
    width = 8 << i.size
    if i.opc == 0:
        cpu.store(address, cpu.X(i.Rt, width), unprivileged=unprivileged)
        return
    data = cpu.load(address, width, unprivileged=unprivileged)
    if i.opc > 1:
        data = data.sext(64 if i.opc == 2 else 32)
    cpu.set_X(i.Rt, data)


@insn("size:2 111 0 01 opc:2 imm12:12 Rn:5 Rt:5", where=allocated, asm=syntax("r", "[{Rn:Xsp}<, #{imm12:<<size}>]"))
def load_store_unsigned_offset(cpu: Any, i: Any) -> None:
    """STR, LDR, STRB, LDRB, LDRSB, STRH, LDRH, LDRSH, LDRSW (unsigned offset)."""
    transfer(cpu, i, cpu.X(i.Rn, sp=True) + (i.imm12 << i.size))


@insn("size:2 111 0 00 opc:2 0 imm9:9 00 Rn:5 Rt:5", where=allocated, asm=syntax("ur", "[{Rn:Xsp}<, #{imm9:s}>]"))
def load_store_unscaled(cpu: Any, i: Any) -> None:
    """STUR, LDUR, STURB, LDURB, LDURSB, STURH, LDURH, LDURSH, LDURSW."""
    transfer(cpu, i, cpu.X(i.Rn, sp=True) + i.signed("imm9"))


@insn("size:2 111 0 00 opc:2 0 imm9:9 10 Rn:5 Rt:5", where=allocated, asm=syntax("tr", "[{Rn:Xsp}<, #{imm9:s}>]"))
def load_store_unprivileged(cpu: Any, i: Any) -> None:
    """STTR, LDTR, STTRB, LDTRB, LDTRSB, STTRH, LDTRH, LDTRSH, LDTRSW."""
    transfer(cpu, i, cpu.X(i.Rn, sp=True) + i.signed("imm9"), unprivileged=True)


@insn("size:2 111 0 00 opc:2 0 imm9:9 01 Rn:5 Rt:5", where=allocated, asm=syntax("r", "[{Rn:Xsp}], #{imm9:s}"))
def load_store_post_index(cpu: Any, i: Any) -> None:
    """STR, LDR, ... (immediate, post-indexed)."""
    address = cpu.X(i.Rn, sp=True)
    transfer(cpu, i, address)
    cpu.set_X(i.Rn, address + i.signed("imm9"), sp=True)


@insn("size:2 111 0 00 opc:2 0 imm9:9 11 Rn:5 Rt:5", where=allocated, asm=syntax("r", "[{Rn:Xsp}, #{imm9:s}]!"))
def load_store_pre_index(cpu: Any, i: Any) -> None:
    """STR, LDR, ... (immediate, pre-indexed)."""
    address = cpu.X(i.Rn, sp=True) + i.signed("imm9")
    transfer(cpu, i, address)
    cpu.set_X(i.Rn, address, sp=True)


INDEX = "{Rm:option=!|!|W|X|!|!|W|X}"


@insn("size:2 111 0 00 opc:2 1 Rm:5 option:3 S:1 10 Rn:5 Rt:5", where=lambda f: allocated(f) and f.option & 2,
      asm=syntax("r", f"[{{Rn:Xsp}}, {INDEX}<option=3,S=0|, {{option:!|!|uxtw|lsl|!|!|sxtw|sxtx}}"
                      "{S,size:|||| #0| #1| #2| #3}>]"))
def load_store_register_offset(cpu: Any, i: Any) -> None:
    """STR, LDR, ... (register offset)."""
    transfer(cpu, i, cpu.X(i.Rn, sp=True) + extend_reg(cpu, i.Rm, i.option, i.size if i.S else 0, 64))


@insn("0 x:1 011 0 00 imm19:19 Rt:5", asm="ldr {Rt:x=W|X}, {imm19:pc*4}")
def load_literal(cpu: Any, i: Any) -> None:
    """LDR (literal)."""
    cpu.set_X(i.Rt, cpu.load(cpu.PC + i.signed("imm19") * 4, 64 if i.x else 32))


@insn("10 011 0 00 imm19:19 Rt:5", asm="ldrsw {Rt:X}, {imm19:pc*4}")
def load_literal_signed_word(cpu: Any, i: Any) -> None:
    """LDRSW (literal)."""
    cpu.set_X(i.Rt, cpu.load(cpu.PC + i.signed("imm19") * 4, 32).sext(64))


@insn("11 011 0 00 imm19:19 immprfop:5", asm="prfm #{immprfop}, {imm19:pc*4}")
@insn("11 111 0 01 10 imm12:12 Rn:5 immprfop:5", asm="prfm #{immprfop}, [{Rn:Xsp}<, #{imm12:*8}>]")
@insn("11 111 0 00 10 0 imm9:9 00 Rn:5 immprfop:5", asm="prfum #{immprfop}, [{Rn:Xsp}<, #{imm9:s}>]")
@insn("11 111 0 00 10 1 Rm:5 option:3 S:1 10 Rn:5 immprfop:5", where=lambda f: f.option & 2,
      asm=f"prfm #{{immprfop}}, [{{Rn:Xsp}}, {INDEX}<option=3,S=0|, {{option:!|!|uxtw|lsl|!|!|sxtw|sxtx}}{{S:| #3}}>]")
def prefetch(cpu: Any, i: Any) -> None:
    """PRFM, PRFUM: hints."""
