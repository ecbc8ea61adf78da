"""Crash reports: a vCPU's registers and syndrome in words, its last exits, and the guest that is lost in its own vectors."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from trapline.abi.arm64 import reg_sysreg
from trapline.abi.exits import Exit
from trapline.backends.vcpu import Vcpu
from trapline.errors import KvmError

EL1_REGISTERS = {
    "SCTLR_EL1": reg_sysreg(3, 0, 1, 0, 0),
    "TTBR0_EL1": reg_sysreg(3, 0, 2, 0, 0),
    "TTBR1_EL1": reg_sysreg(3, 0, 2, 0, 1),
    "TCR_EL1": reg_sysreg(3, 0, 2, 0, 2),
    "VBAR_EL1": reg_sysreg(3, 0, 12, 0, 0),
    "ESR_EL1": reg_sysreg(3, 0, 5, 2, 0),
    "FAR_EL1": reg_sysreg(3, 0, 6, 0, 0),
}

EXCEPTION_CLASSES = {
    0x00: "unknown reason (undefined instruction)",
    0x01: "trapped WFI or WFE",
    0x07: "trapped SIMD or floating point",
    0x0D: "branch target exception",
    0x0E: "illegal execution state",
    0x15: "SVC",
    0x16: "HVC",
    0x17: "SMC",
    0x18: "trapped MSR, MRS or system instruction",
    0x19: "trapped SVE",
    0x1C: "pointer authentication failure",
    0x20: "instruction abort from EL0",
    0x21: "instruction abort from EL1",
    0x22: "PC alignment fault",
    0x24: "data abort from EL0",
    0x25: "data abort from EL1",
    0x26: "SP alignment fault",
    0x2C: "floating-point exception",
    0x2F: "SError",
    0x30: "breakpoint from EL0",
    0x31: "breakpoint from EL1",
    0x32: "software step from EL0",
    0x33: "software step from EL1",
    0x34: "watchpoint from EL0",
    0x35: "watchpoint from EL1",
    0x3C: "BRK",
}
ABORTS = {0x20, 0x21, 0x24, 0x25}
DATA_ABORTS = {0x24, 0x25}
FAULTS = {0: "address size fault", 1: "translation fault", 2: "access flag fault", 3: "permission fault"}
OTHER_FAULTS = {0x10: "external abort", 0x11: "tag check fault", 0x21: "alignment fault", 0x30: "TLB conflict"}

LOOPING_CLASSES = {0x00, 0x0E, 0x21, 0x22, 0x25, 0x26}
"""Synchronous exceptions that EL1 takes from EL1 and that come back as long as nothing changes."""

VECTORS_SIZE = 0x800
LOOKS_TO_CONVINCE = 3


def describe_syndrome(esr: int) -> str:
    """An ESR_ELx value in words."""
    ec, iss = esr >> 26 & 0x3F, esr & 0x1FF_FFFF
    words = [EXCEPTION_CLASSES.get(ec, f"exception class {ec:#x}")]
    if ec in ABORTS:
        status = iss & 0x3F
        if status < 0x10:
            words.append(f"{FAULTS[status >> 2]}, level {status & 3}")
        elif 0x14 <= status < 0x18:
            words.append(f"external abort on a table walk, level {status & 3}")
        else:
            words.append(OTHER_FAULTS.get(status, f"fault status {status:#x}"))
        if ec in DATA_ABORTS:
            words.append("write" if iss & 0x40 else "read")
    return ", ".join(words)


def read_or_none(vcpu: Vcpu, reg_id: int) -> int | None:
    """A register's value, None where KVM has no such register (a 32-bit guest, another backend)."""
    try:
        return vcpu.get_one_reg(reg_id)
    except KvmError:
        return None


def describe_cpu(vcpu: Vcpu) -> str:
    """General and a few system registers, and what the last exception to EL1 was."""
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
            meaning = f"  last exception to EL1: {describe_syndrome(value)}" if name == "ESR_EL1" else ""
            lines.append(f"  {name:>9} {value:016x}{meaning}")
    return "\n".join(lines)


def describe_exits(recent: Iterable[Exit], error: BaseException | None = None) -> str:
    """The last exits, oldest first, and the Python traceback if an error in this program ended the run."""
    lines = ["last exits, oldest first:", *(f"  {exit!r}" for exit in recent)]
    if error is not None:
        lines += ["raised in:", *("  " + line for line in "".join(traceback.format_exception(error)).splitlines())]
    return "\n".join(lines)


@dataclass(slots=True)
class LoopDetector:
    """Recognises a guest that takes an exception inside its own vectors, again and again.

    It looks from time to time, at a vCPU that has not left KVM meanwhile. ELR_EL1 inside the vector table together with a
    synchronous exception from EL1 means that the vector itself faulted; the same syndrome at the same place several times over
    means that it always will.
    """

    last: tuple[int, ...] = ()
    times: int = 0

    def look(self, vcpu: Vcpu) -> str:
        """Why the guest is lost, or "" if it is not (yet)."""
        vbar = vcpu.get_one_reg(EL1_REGISTERS["VBAR_EL1"])
        esr = vcpu.get_one_reg(EL1_REGISTERS["ESR_EL1"])
        far = vcpu.get_one_reg(EL1_REGISTERS["FAR_EL1"])
        elr = vcpu.regs.elr_el1
        if not (vbar <= elr < vbar + VECTORS_SIZE and esr >> 26 & 0x3F in LOOPING_CLASSES):
            self.last, self.times = (), 0
            return ""
        now = (vbar, elr, esr, far)
        self.times = self.times + 1 if now == self.last else 1
        self.last = now
        if self.times < LOOKS_TO_CONVINCE:
            return ""
        return f"the exception vector at {elr:#x} faults itself, endlessly: {describe_syndrome(esr)}, FAR {far:#x}"
