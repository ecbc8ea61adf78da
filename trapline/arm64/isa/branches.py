"""Branches, except those with pointer authentication, and exception return."""

from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.bits import const


@insn("op:1 00101 imm26:26", asm="b{op:|l} {imm26:pc*4}")
def branch_immediate(cpu: Any, i: Any) -> None:
    """B, BL."""
    if i.op:
        cpu.set_X(30, cpu.link())
    cpu.branch_imm(i.signed("imm26") * 4)


@insn("01010100 imm19:19 0 cond:4", asm="b.{cond:cond} {imm19:pc*4}")
def branch_conditional(cpu: Any, i: Any) -> None:
    """B.cond."""
    cpu.branch_imm(i.signed("imm19") * 4, when=cpu.condition(i.cond))


@insn("sf:1 011010 op:1 imm19:19 Rt:5", asm="cb{op:z|nz} {Rt:R}, {imm19:pc*4}")
def compare_and_branch(cpu: Any, i: Any) -> None:
    """CBZ, CBNZ."""
    value = cpu.X(i.Rt, 64 if i.sf else 32)
    cpu.branch_imm(i.signed("imm19") * 4, when=value != 0 if i.op else value == 0)


@insn("immb5:1 011011 op:1 immb40:5 imm14:14 Rt:5", asm="tb{op:z|nz} {Rt:immb5=W|X}, #{immb5,immb40}, {imm14:pc*4}")
def test_bit_and_branch(cpu: Any, i: Any) -> None:
    """TBZ, TBNZ."""
    bit = (cpu.X(i.Rt) & (const(1, 64) << (i.immb5 * 32 + i.immb40))) != 0
    cpu.branch_imm(i.signed("imm14") * 4, when=bit if i.op else ~bit)


@insn("1101011 0000 11111 000000 Rn:5 00000", asm="br {Rn:X}")
def br(cpu: Any, i: Any) -> None:
    """BR."""
    cpu.branch(cpu.X(i.Rn), landing=True)


@insn("1101011 0001 11111 000000 Rn:5 00000", asm="blr {Rn:X}")
def blr(cpu: Any, i: Any) -> None:
    """BLR."""
    target = cpu.X(i.Rn)
    cpu.set_X(30, cpu.link())
    cpu.branch(target, landing=True)


@insn("1101011 0010 11111 000000 Rn:5 00000", asm="ret<Rn=30| {Rn:X}>")
def ret(cpu: Any, i: Any) -> None:
    """RET."""
    cpu.branch(cpu.X(i.Rn))


@insn("1101011 0100 11111 000000 11111 00000", asm="eret")
def eret(cpu: Any, i: Any) -> None:
    """ERET."""
    cpu.system("eret")


@insn("1101011 0101 11111 000000 11111 00000", asm="drps")
def drps(cpu: Any, i: Any) -> None:
    """DRPS: UNDEFINED outside Debug state, which this machine doesn't enter."""
    cpu.undefined()
