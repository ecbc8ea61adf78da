"""Crash reports: a vCPU's registers and syndrome in words, its last exits, and the guest that is lost in its own vectors."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapline.abi.arm64 import reg_sysreg
from trapline.abi.exits import Exit
from trapline.arm64.exceptions import EC
from trapline.backends.vcpu import Vcpu
from trapline.errors import KvmError

if TYPE_CHECKING:
    from trapline.bare.machine import BareVcpu  # brings the engine with it

EL1_REGISTERS = {
    "SCTLR_EL1": reg_sysreg(3, 0, 1, 0, 0),
    "TTBR0_EL1": reg_sysreg(3, 0, 2, 0, 0),
    "TTBR1_EL1": reg_sysreg(3, 0, 2, 0, 1),
    "TCR_EL1": reg_sysreg(3, 0, 2, 0, 2),
    "VBAR_EL1": reg_sysreg(3, 0, 12, 0, 0),
    "ESR_EL1": reg_sysreg(3, 0, 5, 2, 0),
    "FAR_EL1": reg_sysreg(3, 0, 6, 0, 0),
}

WORDS = {
    EC.UNKNOWN: "unknown reason (undefined instruction)",
    EC.FP_ACCESS: "trapped SIMD or floating point",
    EC.ILLEGAL: "illegal execution state",
    EC.SYSREG: "trapped MSR, MRS or system instruction",
    EC.INSN_ABORT_LOWER: "instruction abort from EL0",
    EC.INSN_ABORT: "instruction abort from EL1",
    EC.DATA_ABORT_LOWER: "data abort from EL0",
    EC.DATA_ABORT: "data abort from EL1",
}
"""Exception classes whose names do not say enough."""

DATA_ABORTS = (EC.DATA_ABORT_LOWER, EC.DATA_ABORT)
ABORTS = (EC.INSN_ABORT_LOWER, EC.INSN_ABORT, *DATA_ABORTS)

LEVEL_FAULTS = {0: "address size fault", 1: "translation fault", 2: "access flag fault", 3: "permission fault"}
OTHER_FAULTS = {0x10: "external abort", 0x11: "tag check fault", 0x21: "alignment fault", 0x30: "TLB conflict"}
WALK_ABORT = range(0x14, 0x18)
WRITE_NOT_READ = 1 << 6
EC_SHIFT = 26

LOOPING_CLASSES = (EC.UNKNOWN, EC.ILLEGAL, EC.INSN_ABORT, EC.PC_ALIGNMENT, EC.DATA_ABORT, EC.SP_ALIGNMENT)
"""Synchronous exceptions that EL1 takes from EL1 and that come back as long as nothing changes."""

VECTORS_SIZE = 0x800
ADDRESS_MASK = (1 << 56) - 1
"""Without the top byte: taking an exception may have replaced it by copies of bit 55."""
SYNC_VECTORS = (0x000, 0x200)
"""Where synchronous exceptions from EL1 go, on either stack pointer."""
LOOKS_TO_PROBE = 3
PROBE = 0x3F << 26
"""A value of ESR_EL1 that no exception gives: an unallocated class."""


def describe_syndrome(esr: int, level: int = 1) -> str:
    """The value of ESR_EL`level` in words."""
    number = esr >> EC_SHIFT & 0x3F
    try:
        ec = EC(number)
    except ValueError:
        return f"exception class {number:#x}"
    words = [WORDS.get(ec, ec.name.replace("_", " ")).replace("EL1", f"EL{level}")]
    if ec in ABORTS:
        words.append(describe_fault(esr & 0x3F))
    if ec in DATA_ABORTS:
        words.append("write" if esr & WRITE_NOT_READ else "read")
    return ", ".join(words)


def describe_fault(status: int) -> str:
    """A fault status code in words."""
    if status < 0x10:
        return f"{LEVEL_FAULTS[status >> 2]}, level {status & 3}"
    if status in WALK_ABORT:
        return f"external abort on a table walk, level {status & 3}"
    return OTHER_FAULTS.get(status, f"fault status {status:#x}")


def read_or_none(vcpu: Vcpu | BareVcpu, reg_id: int) -> int | None:
    """A register's value, None where KVM has no such register (a 32-bit guest, another backend)."""
    try:
        return vcpu.get_one_reg(reg_id)
    except KvmError:
        return None


def describe_cpu(vcpu: Vcpu | BareVcpu) -> str:
    """General and a few system registers, and what the last exception to the guest's operating system was."""
    lines = [f"vCPU {vcpu.id}:"]
    registers = vcpu.regs.dump()
    names = [f"x{n}" for n in range(31)]
    for at in range(0, len(names), 4):
        lines.append("  " + "  ".join(f"{name:>3} {registers[name]:016x}" for name in names[at : at + 4]))
    rest = [name for name in registers if name not in names]
    for at in range(0, len(rest), 3):
        lines.append("  " + "  ".join(f"{name:>8} {registers[name]:016x}" for name in rest[at : at + 3]))
    for name, reg_id in EL1_REGISTERS.items():
        value = read_or_none(vcpu, reg_id)
        if value is not None:
            level = vcpu.level
            meaning = f"  last exception to EL{level}: {describe_syndrome(value, level)}" if name == "ESR_EL1" else ""
            lines.append(f"  {name.replace('EL1', f'EL{level}'):>9} {value:016x}{meaning}")
    return "\n".join(lines)


def describe_exits(recent: Iterable[Exit], error: BaseException | None = None) -> str:
    """The last exits, oldest first, and the Python traceback if an error in this program ended the run."""
    listed = [f"  {exit!r}" for exit in recent]
    lines = ["last exits, oldest first:", *listed] if listed else ["it made no exits"]
    if error is not None:
        lines += ["raised in:", *("  " + line for line in "".join(traceback.format_exception(error)).splitlines())]
    return "\n".join(lines)


@dataclass(slots=True)
class LoopDetector:
    """Recognises a guest that takes the same exception again and again and gets nowhere.

    It looks from time to time, at a vCPU that has not left KVM meanwhile. Several looks in a row have to find the same synchronous
    exception from EL1 (VBAR, ELR, ESR, FAR) and the PC in its vector or at the instruction that caused it. That might still be an old
    exception and a guest that waits in a loop, so the last look but one changes ESR_EL1, which only a new exception puts back.
    """

    last: tuple[int, ...] = ()
    times: int = 0

    def look(self, vcpu: Vcpu | BareVcpu) -> str:
        """Why the guest is lost, or "" if it is not (yet)."""
        vbar, esr, far = (vcpu.get_one_reg(EL1_REGISTERS[name]) for name in ("VBAR_EL1", "ESR_EL1", "FAR_EL1"))
        elr, pc = vcpu.regs.elr_el1, vcpu.regs.pc
        if esr == PROBE:
            vcpu.set_one_reg(EL1_REGISTERS["ESR_EL1"], self.last[2])
            self.times = 0
            return ""
        at_vector = (pc - vbar) & ADDRESS_MASK in SYNC_VECTORS
        if not (at_vector or (pc - elr) & ADDRESS_MASK == 0) or esr >> EC_SHIFT & 0x3F not in LOOPING_CLASSES:
            self.times = 0
            return ""
        now = (vbar, elr, esr, far)
        self.times = self.times + 1 if now == self.last else 1
        self.last = now
        if self.times == LOOKS_TO_PROBE:
            vcpu.set_one_reg(EL1_REGISTERS["ESR_EL1"], PROBE)
        if self.times <= LOOKS_TO_PROBE:
            return ""
        own = (elr - vbar) & ADDRESS_MASK < VECTORS_SIZE
        what = f"the exception vector at {elr:#x} faults itself" if own else f"the instruction at {elr:#x} faults, and so does its handling"
        return f"{what}, endlessly: {describe_syndrome(esr, vcpu.level)}, FAR {far:#x}"
