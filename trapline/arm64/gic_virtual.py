"""The virtual CPU interface: the rules of `gic_interface` on the ICH_* registers.

What accesses to ICC_* do at EL1 while HCR_EL2 gives it virtual interrupts, and what ICH_* registers that are more than storage read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trapline.arm64 import gic_interface as rules
from trapline.arm64.gic_interface import VIRTUAL
from trapline.arm64.state import CpuState
from trapline.bits.native import NativeFunction, Ptr, native, u1, u32, u64


@dataclass(frozen=True)
class Access:
    """How an ICC_* register is served; a direction that is None is UNDEFINED."""

    read: Callable[..., Any] | None = None
    write: Callable[..., Any] | None = None
    signals: bool = True
    """The interface's outputs may have changed."""


def _reader(rule: NativeFunction[..., int]) -> NativeFunction[..., int]:
    """A register's read in the virtual bank."""

    @native(name=f"icv_{rule.name}")
    def read(cpu: Ptr[CpuState]) -> u64:
        return rule(cpu, VIRTUAL)

    return read


def _writer(rule: NativeFunction[..., None]) -> NativeFunction[..., None]:
    """A register's write in the virtual bank."""

    @native(name=f"icv_{rule.name}")
    def write(cpu: Ptr[CpuState], value: u64) -> None:
        rule(cpu, VIRTUAL, value)

    return write


icv_pmr_read = _reader(rules.pmr_read)
icv_pmr_write = _writer(rules.pmr_write)
icv_iar0_read = _reader(rules.iar0_read)
icv_iar1_read = _reader(rules.iar1_read)
icv_eoir0_write = _writer(rules.eoir0_write)
icv_eoir1_write = _writer(rules.eoir1_write)
icv_dir_write = _writer(rules.dir_write)
icv_hppir0_read = _reader(rules.hppir0_read)
icv_hppir1_read = _reader(rules.hppir1_read)
icv_rpr_read = _reader(rules.rpr_read)
icv_bpr0_read = _reader(rules.bpr0_read)
icv_bpr0_write = _writer(rules.bpr0_write)
icv_bpr1_read = _reader(rules.bpr1_read)
icv_bpr1_write = _writer(rules.bpr1_write)
icv_ctlr_read = _reader(rules.ctlr_read)
icv_ctlr_write = _writer(rules.ctlr_write)
icv_igrpen0_read = _reader(rules.igrpen0_read)
icv_igrpen0_write = _writer(rules.igrpen0_write)
icv_igrpen1_read = _reader(rules.igrpen1_read)
icv_igrpen1_write = _writer(rules.igrpen1_write)
icv_ap0r0_read = _reader(rules.ap0r0_read)
icv_ap0r0_write = _writer(rules.ap0r0_write)
icv_ap1r0_read = _reader(rules.ap1r0_read)
icv_ap1r0_write = _writer(rules.ap1r0_write)

CPU_INTERFACE: dict[str, Access] = {
    "ICC_PMR_EL1": Access(icv_pmr_read, icv_pmr_write),
    "ICC_IAR0_EL1": Access(icv_iar0_read),
    "ICC_IAR1_EL1": Access(icv_iar1_read),
    "ICC_EOIR0_EL1": Access(write=icv_eoir0_write),
    "ICC_EOIR1_EL1": Access(write=icv_eoir1_write),
    "ICC_DIR_EL1": Access(write=icv_dir_write),
    "ICC_HPPIR0_EL1": Access(icv_hppir0_read, signals=False),
    "ICC_HPPIR1_EL1": Access(icv_hppir1_read, signals=False),
    "ICC_RPR_EL1": Access(icv_rpr_read, signals=False),
    "ICC_BPR0_EL1": Access(icv_bpr0_read, icv_bpr0_write),
    "ICC_BPR1_EL1": Access(icv_bpr1_read, icv_bpr1_write),
    "ICC_CTLR_EL1": Access(icv_ctlr_read, icv_ctlr_write),
    "ICC_IGRPEN0_EL1": Access(icv_igrpen0_read, icv_igrpen0_write),
    "ICC_IGRPEN1_EL1": Access(icv_igrpen1_read, icv_igrpen1_write),
    "ICC_AP0R0_EL1": Access(icv_ap0r0_read, icv_ap0r0_write),
    "ICC_AP1R0_EL1": Access(icv_ap1r0_read, icv_ap1r0_write),
}
"""The registers by name."""


# ---- the hypervisor's side ----------------------------------------------------------------------------------------------------


@native
def ich_eisr_read(cpu: Ptr[CpuState]) -> u64:
    """ICH_EISR_EL2."""
    return rules.eisr(cpu, VIRTUAL)


@native
def ich_elrsr_read(cpu: Ptr[CpuState]) -> u64:
    """ICH_ELRSR_EL2."""
    return rules.elrsr(cpu, VIRTUAL)


@native
def ich_misr_read(cpu: Ptr[CpuState]) -> u64:
    """ICH_MISR_EL2."""
    return rules.misr(cpu, VIRTUAL)


@native
def maintenance_pending(cpu: Ptr[CpuState]) -> u1:
    """Whether the maintenance interrupt is asserted."""
    return rules.maintenance_pending(cpu, VIRTUAL)


@native
def signalled_group(cpu: Ptr[CpuState]) -> u32:
    """LINE_IRQ or LINE_FIQ if a virtual interrupt is signalled to the processor, else 0."""
    return rules.signalled_group(cpu, VIRTUAL)


@native
def virtual_lines(cpu: Ptr[CpuState]) -> u32:
    """All outputs of the interface: LINE_IRQ, LINE_FIQ, LINE_MAINTENANCE."""
    return rules.interface_lines(cpu, VIRTUAL)
