"""FEAT_PAuth: adding, checking and removing pointer authentication codes, and the branches and loads that check them.

The algorithm and the layout of signed pointers are in `arm64.pauth`. The forms in hint space have no `feature`: on a machine
without it the keys can't be enabled, and then they are hints.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.arm64.pauth import PAC_ADD, PAC_AUTH, pac_failed, pac_generic, pac_strip
from trapline.bits import Bits, const

ENABLE_BITS = (31, 30, 27, 13)
"""SCTLR_EL1.EnIA, EnIB, EnDA, EnDB, by key number (IA, IB, DA, DB)."""

HCR_API = 41
"""HCR_EL2.API: the instructions don't trap to EL2."""

DA = 2
X16, X17, LR, SP = 16, 17, 30, 31
HINT = "11010101000000110010"


def check_trap(cpu: Any, when: Bits | None = None) -> None:
    """The trap of HCR_EL2.API; hints and branches trap only if their key is enabled."""
    trapped = ~cpu.sysreg("HCR_EL2")[HCR_API] & cpu.pstate("el").ult(2)
    cpu.system("pac_trap", when=trapped if when is None else trapped & when)


def enabled(cpu: Any, key: int) -> Bits:
    """Whether a key is enabled, one bit."""
    return cpu.sysreg("SCTLR_EL1")[ENABLE_BITS[key]]


def authenticate(cpu: Any, key: int, pointer: Bits, modifier: Bits | int) -> Bits:
    """Auth() with the trap, as part of a branch or load."""
    check_trap(cpu, enabled(cpu, key))
    result = cpu.query(PAC_AUTH[key], pointer, modifier if isinstance(modifier, Bits) else const(modifier, 64))
    if "FPACCOMBINE" in cpu.machine:
        require(cpu, key, result)
    return result


def require(cpu: Any, key: int, result: Bits) -> None:
    """The exception of FEAT_FPAC, if that is what authentication gave."""
    cpu.system("pac_fail", key, when=cpu.query(pac_failed, const(key, 64), result))


def sign_or_authenticate(cpu: Any, register: Any, i: Any, modifier: Bits | int) -> None:
    """PAC<key> or AUT<key> of a register."""
    check_trap(cpu, enabled(cpu, i.key))
    operation = (PAC_AUTH if i.auth else PAC_ADD)[i.key]
    modifier = modifier if isinstance(modifier, Bits) else const(modifier, 64)
    result = cpu.query(operation, cpu.X(register), modifier)
    if i.auth and "FPAC" in cpu.machine:
        require(cpu, i.key, result)
    cpu.set_X(register, result)


@insn("11 0 11010110 00001 00 0 auth:1 key:2 Rn:5 Rd:5", feature="FEAT_PAuth",
      asm="{auth:pac|aut}{key:ia|ib|da|db} {Rd:X}, {Rn:Xsp}")  # fmt: skip
def pac_register(cpu: Any, i: Any) -> None:
    """PACIA, PACIB, PACDA, PACDB, AUTIA, AUTIB, AUTDA, AUTDB."""
    sign_or_authenticate(cpu, i.Rd, i, cpu.X(i.Rn, sp=True))


@insn("11 0 11010110 00001 00 1 auth:1 key:2 11111 Rd:5", feature="FEAT_PAuth",
      asm="{auth:pac|aut}{key:iza|izb|dza|dzb} {Rd:X}")  # fmt: skip
def pac_zero(cpu: Any, i: Any) -> None:
    """PACIZA, PACIZB, PACDZA, PACDZB, AUTIZA, AUTIZB, AUTDZA, AUTDZB."""
    sign_or_authenticate(cpu, i.Rd, i, 0)


@insn("11 0 11010110 00001 01000 D:1 11111 Rd:5", feature="FEAT_PAuth", asm="xpac{D:i|d} {Rd:X}")
def xpac(cpu: Any, i: Any) -> None:
    """XPACI, XPACD."""
    cpu.set_X(i.Rd, cpu.query(pac_strip, cpu.X(i.Rd), const(i.D, 1)))


@insn("100 11010110 Rm:5 001100 Rn:5 Rd:5", feature="FEAT_PAuth", asm="pacga {Rd:X}, {Rn:X}, {Rm:Xsp}")
def pacga(cpu: Any, i: Any) -> None:
    """PACGA."""
    check_trap(cpu)
    cpu.set_X(i.Rd, cpu.query(pac_generic, cpu.X(i.Rn), cpu.X(i.Rm, sp=True)))


@insn(HINT + " 0000 111 11111", over="hint", asm="xpaclri")
def xpaclri(cpu: Any, i: Any) -> None:
    """XPACLRI."""
    cpu.set_X(LR, cpu.query(pac_strip, cpu.X(LR), const(0, 1)))


@insn(HINT + " 0001 auth:1 key:1 0 11111", over="hint", asm="{auth:pac|aut}i{key:a|b}1716")
def pac_1716(cpu: Any, i: Any) -> None:
    """PACIA1716, PACIB1716, AUTIA1716, AUTIB1716."""
    sign_or_authenticate(cpu, X17, i, cpu.X(X16))


@insn(HINT + " 0011 auth:1 key:1 sp:1 11111", over="hint", asm="{auth:pac|aut}i{key:a|b}{sp:z|sp}")
def pac_link_register(cpu: Any, i: Any) -> None:
    """PACIAZ, PACIASP, PACIBZ, PACIBSP, AUTIAZ, AUTIASP, AUTIBZ, AUTIBSP."""
    sign_or_authenticate(cpu, LR, i, cpu.X(SP, sp=True) if i.sp else 0)


@insn("1101011 0 0 0 link:1 11111 0000 1 key:1 Rn:5 11111", feature="FEAT_PAuth", asm="b{link:r|lr}a{key:a|b}z {Rn:X}")
def branch_authenticated_zero(cpu: Any, i: Any) -> None:
    """BRAAZ, BRABZ, BLRAAZ, BLRABZ."""
    branch_to(cpu, i, 0)


@insn("1101011 1 0 0 link:1 11111 0000 1 key:1 Rn:5 Rm:5", feature="FEAT_PAuth", asm="b{link:r|lr}a{key:a|b} {Rn:X}, {Rm:Xsp}")
def branch_authenticated(cpu: Any, i: Any) -> None:
    """BRAA, BRAB, BLRAA, BLRAB."""
    branch_to(cpu, i, cpu.X(i.Rm, sp=True))


def branch_to(cpu: Any, i: Any, modifier: Bits | int) -> None:
    """Branch, with link if the encoding says so, to an authenticated register."""
    target = authenticate(cpu, i.key, cpu.X(i.Rn), modifier)
    if i.link:
        cpu.set_X(LR, cpu.link())
    cpu.branch(target, landing=True)


@insn("1101011 0 0 10 11111 0000 1 key:1 11111 11111", feature="FEAT_PAuth", asm="reta{key:a|b}")
def return_authenticated(cpu: Any, i: Any) -> None:
    """RETAA, RETAB."""
    cpu.branch(authenticate(cpu, i.key, cpu.X(LR), cpu.X(SP, sp=True)))


@insn("1101011 0 100 11111 0000 1 key:1 11111 11111", feature="FEAT_PAuth", asm="ereta{key:a|b}")
def exception_return_authenticated(cpu: Any, i: Any) -> None:
    """ERETAA, ERETAB."""
    check_trap(cpu, enabled(cpu, i.key))
    cpu.system("eret_auth", i.key, cpu.X(SP, sp=True))


@insn("11 111 0 00 key:1 imms:1 1 imm9:9 pre:1 1 Rn:5 Rt:5", feature="FEAT_PAuth",
      asm="ldra{key:a|b} {Rt:X}, [{Rn:Xsp}, #{imms,imm9:s*8}]{pre:|!!}")  # fmt: skip
def load_authenticated(cpu: Any, i: Any) -> None:
    """LDRAA, LDRAB, with offset or pre-index."""
    offset = i.signed("imms") * 4096 + i.imm9 * 8
    address = authenticate(cpu, DA + i.key, cpu.X(i.Rn, sp=True), 0) + offset
    cpu.set_X(i.Rt, cpu.load(address, 64))
    if i.pre:
        cpu.set_X(i.Rn, address, sp=True)
