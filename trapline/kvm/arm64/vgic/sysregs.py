"""The CPU interface's registers as user space saves and restores them (attribute group CPU_SYSREGS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import EINVAL, ENOENT, ENXIO
from types import MappingProxyType
from typing import Any, Final

from trapline.arm64 import gic_interface, gic_virtual
from trapline.arm64.regs.gic_cpu import (
    ICC_AP0R,
    ICC_AP1R,
    ICC_BPR0_EL1,
    ICC_BPR1_EL1,
    ICC_CTLR_EL1,
    ICC_IGRPEN0_EL1,
    ICC_IGRPEN1_EL1,
    ICC_PMR_EL1,
    ICC_SRE_EL1,
)
from trapline.errors import KvmError
from trapline.gic.state import CpuInterface
from trapline.registers import Field, Register

SRE_VALUE: Final = int(ICC_SRE_EL1.reset_value())


class Control(Register, width=64):
    """ICC_CTLR_EL1: what is implemented, as far as a restored value can contradict it."""

    PRIbits = Field(10, 8)
    IDbits = Field(13, 11)
    SEIS = Field(14)
    A3V = Field(15)


@dataclass(frozen=True)
class Row:
    """How one register is read and written. `write` raises EINVAL for values that this machine cannot hold."""

    read: Callable[[CpuInterface], int]
    write: Callable[[CpuInterface, int], object]


def find(encoding: int) -> Row:
    """The register with this encoding (op0 to op2 in bits 15:0); ENOENT if there is none."""
    row = REGISTERS.get(encoding)
    if row is None:
        raise KvmError(ENOENT, f"no register {encoding:#x} in the CPU interface")
    return row


def check(encoding: int) -> None:
    """ENXIO if there is none: what only asks gets another answer than what wants to use it."""
    if encoding not in REGISTERS:
        raise KvmError(ENXIO, f"no register {encoding:#x} in the CPU interface")


def _virtual(name: str, check: Callable[[int], None] = lambda _value: None) -> Row:
    """A register that the guest itself could read and write."""
    access: Any = gic_virtual.CPU_INTERFACE[name]

    def write(cpu: CpuInterface, value: int) -> None:
        check(value)
        access.write(cpu.vcpu.cpu.state, value)

    return Row(lambda cpu: int(access.read(cpu.vcpu.cpu.state)), write)


def _check_control(value: int) -> None:
    mine, theirs = Control(gic_interface.CTLR_CONSTANT), Control(value)
    if theirs.PRIbits > mine.PRIbits or theirs.IDbits > mine.IDbits or (theirs.SEIS, theirs.A3V) != (mine.SEIS, mine.A3V):
        raise KvmError(EINVAL, f"ICC_CTLR_EL1 {value:#x} asks for more than this CPU interface has")


def _write_sre(_cpu: CpuInterface, value: int) -> None:
    if not value & ICC_SRE_EL1.SRE.mask:
        raise KvmError(EINVAL, "the system registers cannot be switched off")


def _refuse(*_: object) -> int:
    raise KvmError(EINVAL, "five priority bits need one Active Priorities register")


REGISTERS: Mapping[int, Row] = MappingProxyType(
    {
        ICC_PMR_EL1.encoding: _virtual("ICC_PMR_EL1"),
        ICC_BPR0_EL1.encoding: _virtual("ICC_BPR0_EL1"),
        ICC_BPR1_EL1.encoding: _virtual("ICC_BPR1_EL1"),
        ICC_CTLR_EL1.encoding: _virtual("ICC_CTLR_EL1", _check_control),
        ICC_IGRPEN0_EL1.encoding: _virtual("ICC_IGRPEN0_EL1"),
        ICC_IGRPEN1_EL1.encoding: _virtual("ICC_IGRPEN1_EL1"),
        ICC_SRE_EL1.encoding: Row(lambda _cpu: SRE_VALUE, _write_sre),
        ICC_AP0R[0].encoding: _virtual("ICC_AP0R0_EL1"),
        ICC_AP1R[0].encoding: _virtual("ICC_AP1R0_EL1"),
        **{register.encoding: Row(_refuse, _refuse) for register in (*ICC_AP0R[1:], *ICC_AP1R[1:])},
    }
)
"""By encoding. Unlike the guest, user space may write what would be ignored or undefined only if it is harmless."""
