"""FEAT_MOPS: memory copy and memory set.

This is an implementation of option A. The prologue moves no data: it makes the size negative and the addresses those of the ends,
or leaves both alone for a copy that goes backwards, so that afterwards only the size register changes. The main instruction does
all the work (`mops_copy`, `mops_set`), and the epilogue whatever a main instruction of somebody else's left.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.exceptions import mops_disabled
from trapline.arm64.insn import insn
from trapline.arm64.record import RegNumber
from trapline.bits import Bits, const, select
from trapline.bits.native import native, u1, u32

HINTS = "{op2:|wt|rt|t|wn|wtwn|rtwn|twn|rn|wtrn|rtrn|trn|n|wtn|rtn|tn}"
"""op2 of a copy: bit 0 writes and bit 1 reads are unprivileged; bits 2 and 3: they are non-temporal."""

MAX_SIZE, MAX_COPY = (1 << 63) - 1, (1 << 55) - 1
"""Sizes above these are taken as these: of a set or forward-only copy, and of a copy."""
ADDRESS = (1 << 56) - 1


@native
def unfit_for_copy(d: u32, s: u32, n: u32) -> u1:
    """Equal registers, or register 31: CONSTRAINED UNPREDICTABLE, and UNDEFINED here."""
    return d == s or s == n or d == n or d == 31 or s == 31 or n == 31


@native
def unfit_for_set(d: u32, s: u32, n: u32) -> u1:
    """The same for a set, which may store the zero register."""
    return d == s or s == n or d == n or d == 31 or n == 31


def check(cpu: Any, i: Any, unfit: Any) -> None:
    """UNDEFINED for registers that do not go together, and where MSCEn says so."""
    registers = (r.imm if isinstance(r, RegNumber) else r for r in (i.Rd, i.Rs, i.Rn))
    cpu.system("disabled", when=i.derived(unfit, *registers) | cpu.query(mops_disabled))


def resume(cpu: Any) -> None:
    """What main and epilogue check: the prologue was one of option A."""
    cpu.system("mops_mismatch", when=cpu.flag("C"))


def prologue(cpu: Any, i: Any, size: Bits, backward: Bits | None, sources: tuple[Any, ...]) -> None:
    """Registers and flags after a prologue."""
    for register in sources:
        start = cpu.X(register)
        cpu.set_X(register, start + size if backward is None else select(backward, start, start + size))
    cpu.set_X(i.Rn, -size if backward is None else select(backward, size, -size))
    cpu.flags(*(const(0, 1) for _ in "NZCV"))


def saturated(size: Bits, limit: int) -> Bits:
    return select(size.ugt(limit), const(limit, 64), size)


@insn("00 011 0 01 00 0 Rs:5 op2:4 01 Rn:5 Rd:5", feature="FEAT_MOPS", asm="cpyfp" + HINTS + " [{Rd:X}]!, [{Rs:X}]!, {Rn:X}!")
def copy_forward_prologue(cpu: Any, i: Any) -> None:
    """CPYFP and its variants."""
    check(cpu, i, unfit_for_copy)
    prologue(cpu, i, saturated(cpu.X(i.Rn), MAX_SIZE), None, (i.Rd, i.Rs))


@insn("00 011 1 01 00 0 Rs:5 op2:4 01 Rn:5 Rd:5", feature="FEAT_MOPS", asm="cpyp" + HINTS + " [{Rd:X}]!, [{Rs:X}]!, {Rn:X}!")
def copy_prologue(cpu: Any, i: Any) -> None:
    """CPYP and its variants: backwards where the end of the source would be overwritten before it is read."""
    check(cpu, i, unfit_for_copy)
    size = saturated(cpu.X(i.Rn), MAX_COPY)
    source, destination = cpu.X(i.Rs) & ADDRESS, cpu.X(i.Rd) & ADDRESS
    prologue(cpu, i, size, source.ult(destination) & destination.ult(source + size), (i.Rd, i.Rs))


@insn("00 011 any:1 01 01 0 Rs:5 op2:4 01 Rn:5 Rd:5", feature="FEAT_MOPS", asm="cpy{any:f|}m" + HINTS + " [{Rd:X}]!, [{Rs:X}]!, {Rn:X}!")
@insn("00 011 any:1 01 10 0 Rs:5 op2:4 01 Rn:5 Rd:5", feature="FEAT_MOPS", asm="cpy{any:f|}e" + HINTS + " [{Rd:X}]!, [{Rs:X}]!, {Rn:X}!")
def copy_main(cpu: Any, i: Any) -> None:
    """CPYFM, CPYFE, CPYM, CPYE and their variants."""
    check(cpu, i, unfit_for_copy)
    resume(cpu)
    left = cpu.system("mops_copy", cpu.X(i.Rd), cpu.X(i.Rs), cpu.X(i.Rn), i.op2 | i.any << 4, width=64)
    cpu.set_X(i.Rn, left)


@insn("00 011 0 01 11 0 Rs:5 00 op2:2 01 Rn:5 Rd:5", feature="FEAT_MOPS", asm="setp{op2:|t|n|tn} [{Rd:X}]!, {Rn:X}!, {Rs:X}")
def set_prologue(cpu: Any, i: Any) -> None:
    """SETP and its variants."""
    check(cpu, i, unfit_for_set)
    prologue(cpu, i, saturated(cpu.X(i.Rn), MAX_SIZE), None, (i.Rd,))


@insn("00 011 0 01 11 0 Rs:5 01 op2:2 01 Rn:5 Rd:5", feature="FEAT_MOPS", asm="setm{op2:|t|n|tn} [{Rd:X}]!, {Rn:X}!, {Rs:X}")
@insn("00 011 0 01 11 0 Rs:5 10 op2:2 01 Rn:5 Rd:5", feature="FEAT_MOPS", asm="sete{op2:|t|n|tn} [{Rd:X}]!, {Rn:X}!, {Rs:X}")
def set_main(cpu: Any, i: Any) -> None:
    """SETM, SETE and their variants."""
    check(cpu, i, unfit_for_set)
    resume(cpu)
    cpu.set_X(i.Rn, cpu.system("mops_set", cpu.X(i.Rd), cpu.X(i.Rs), cpu.X(i.Rn), i.op2, width=64))
