"""FEAT_PAuth: adding, checking and removing pointer authentication codes, and the branches and loads that check them.

The algorithm, keys and enables are in `arm64.pauth`; see `isa.system` for the operations' arguments. The forms in hint space have no `feature`: without it they are hints.
"""
from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.bits import Bits, const

IA, IB, DA, DB = range(4)
"""Keys, in the order of the opcode fields."""

X17, LR, SP = 17, 30, 31
HINT = "11010101000000110010"


def authenticate(cpu: Any, key: int, pointer: Bits, modifier: Bits | int) -> Bits:
    """Auth<key>()."""
    return cpu.system("pac_auth", key, pointer, modifier, width=64)


def _code(cpu: Any, register: Any, key: int, auth: int, modifier: Bits | int) -> None:
    operation = "pac_auth" if auth else "pac_add"
    cpu.set_X(register, cpu.system(operation, key, cpu.X(register), modifier, width=64))


@insn("11 0 11010110 00001 00 0 auth:1 key:2 Rn:5 Rd:5", feature="FEAT_PAuth",
      asm="{auth:pac|aut}{key:ia|ib|da|db} {Rd:X}, {Rn:Xsp}")
def pac_register(cpu: Any, i: Any) -> None:
    """PACIA, PACIB, PACDA, PACDB, AUTIA, AUTIB, AUTDA, AUTDB."""
    _code(cpu, i.Rd, i.key, i.auth, cpu.X(i.Rn, sp=True))


@insn("11 0 11010110 00001 00 1 auth:1 key:2 11111 Rd:5", feature="FEAT_PAuth", asm="{auth:pac|aut}{key:iza|izb|dza|dzb} {Rd:X}")
def pac_zero(cpu: Any, i: Any) -> None:
    """PACIZA, PACIZB, PACDZA, PACDZB, AUTIZA, AUTIZB, AUTDZA, AUTDZB."""
    _code(cpu, i.Rd, i.key, i.auth, 0)


@insn("11 0 11010110 00001 01000 D:1 11111 Rd:5", feature="FEAT_PAuth", asm="xpac{D:i|d} {Rd:X}")
def xpac(cpu: Any, i: Any) -> None:
    """XPACI, XPACD."""
    cpu.set_X(i.Rd, cpu.system("pac_strip", cpu.X(i.Rd), i.D, width=64))


@insn("100 11010110 Rm:5 001100 Rn:5 Rd:5", feature="FEAT_PAuth", asm="pacga {Rd:X}, {Rn:X}, {Rm:Xsp}")
def pacga(cpu: Any, i: Any) -> None:
    """PACGA."""
    cpu.set_X(i.Rd, cpu.system("pac_generic", cpu.X(i.Rn), cpu.X(i.Rm, sp=True), width=64))


@insn(HINT + " 0000 111 11111", over="hint", asm="xpaclri")
def xpaclri(cpu: Any, i: Any) -> None:
    """XPACLRI."""
    cpu.set_X(LR, cpu.system("pac_strip", cpu.X(LR), 0, width=64))


@insn(HINT + " 0001 auth:1 key:1 0 11111", over="hint",
      asm="{auth:pac|aut}i{key:a|b}1716")
def pac_1716(cpu: Any, i: Any) -> None:
    """PACIA1716, PACIB1716, AUTIA1716, AUTIB1716."""
    _code(cpu, X17, i.key, i.auth, cpu.X(16))


@insn(HINT + " 0011 auth:1 key:1 sp:1 11111", over="hint", asm="{auth:pac|aut}i{key:a|b}{sp:z|sp}")
def pac_link_register(cpu: Any, i: Any) -> None:
    """PACIAZ, PACIASP, PACIBZ, PACIBSP, AUTIAZ, AUTIASP, AUTIBZ, AUTIBSP."""
    _code(cpu, LR, i.key, i.auth, cpu.X(SP, sp=True) if i.sp else 0)


@insn("1101011 0 0 0 link:1 11111 0000 1 key:1 Rn:5 11111", feature="FEAT_PAuth", asm="b{link:r|lr}a{key:a|b}z {Rn:X}")
def branch_authenticated_zero(cpu: Any, i: Any) -> None:
    """BRAAZ, BRABZ, BLRAAZ, BLRABZ."""
    _branch(cpu, i, 0)


@insn("1101011 1 0 0 link:1 11111 0000 1 key:1 Rn:5 Rm:5", feature="FEAT_PAuth", asm="b{link:r|lr}a{key:a|b} {Rn:X}, {Rm:Xsp}")
def branch_authenticated(cpu: Any, i: Any) -> None:
    """BRAA, BRAB, BLRAA, BLRAB."""
    _branch(cpu, i, cpu.X(i.Rm, sp=True))


def _branch(cpu: Any, i: Any, modifier: Bits | int) -> None:
    target = authenticate(cpu, i.key, cpu.X(i.Rn), modifier)
    if i.link:
        cpu.set_X(LR, cpu.link())
    cpu.branch(target)


@insn("1101011 0 0 10 11111 0000 1 key:1 11111 11111", feature="FEAT_PAuth", asm="reta{key:a|b}")
def return_authenticated(cpu: Any, i: Any) -> None:
    """RETAA, RETAB."""
    cpu.branch(authenticate(cpu, i.key, cpu.X(LR), cpu.X(SP, sp=True)))


@insn("1101011 0 100 11111 0000 1 key:1 11111 11111", feature="FEAT_PAuth", asm="ereta{key:a|b}")
def exception_return_authenticated(cpu: Any, i: Any) -> None:
    """ERETAA, ERETAB."""
    cpu.system("eret_auth", i.key, cpu.X(SP, sp=True))


@insn("11 111 0 00 key:1 imms:1 1 imm9:9 pre:1 1 Rn:5 Rt:5", feature="FEAT_PAuth",
      asm="ldra{key:a|b} {Rt:X}, [{Rn:Xsp}, #{imms,imm9:s*8}]{pre:|!!}")
def load_authenticated(cpu: Any, i: Any) -> None:
    """LDRAA, LDRAB, with offset or pre-index."""
    offset = i.signed("imms") * 4096 + i.imm9 * 8
    address = authenticate(cpu, DA + i.key, cpu.X(i.Rn, sp=True), 0) + const(offset, 64)
    data = cpu.load(address, 64)
    cpu.set_X(i.Rt, data)
    if i.pre:
        cpu.set_X(i.Rn, address, sp=True)
