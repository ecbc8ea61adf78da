"""What the interrupt controller remembers: one record per interrupt and one per CPU interface.

An interrupt is in one of three places: nowhere (nothing to deliver), on the queue of one vCPU, or on that queue *and* in a list
register of it. While it sits in a list register the processor owns its pending and active state and changes it without
telling anyone. The record then keeps only what happened since the load: edges that arrived (`latch`) and orders from the
distributor (`drop_pending`, `force_active`), which the owner applies when it folds the list register back.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from trapline.arm64.gic_interface import VIRTUAL
from trapline.arm64.regs import ICH_LR0_EL2
from trapline.arm64.state import BANK_SLOTS, SYSREG_SLOTS, CpuState
from trapline.registers import Field, Register

from .host import HostVcpu

if TYPE_CHECKING:
    from .legacy import LegacyInterface

PRIVATE_IRQS = 32
SGIS = 16
LIST_REGISTERS = 4
PRIORITY_MASK = 0xF8
"""Five priority bits are implemented; the others read as zero."""

INTID_LIMIT = 1020
FIRST_LPI = 8192
AFFINITY = 0xFF_FFFF
"""Aff2, Aff1, Aff0: this machine has no Aff3."""

LR_SLOT = ICH_LR0_EL2.slot
"""Storage slot of ICH_LR0_EL2; the others follow it."""


class ListRegister(Register):
    """ICH_LR<n>_EL2 (IHI0069, 12.4.11)."""

    VINTID = Field(31, 0)
    EOI = Field(41)
    PRIORITY = Field(55, 48)
    GROUP = Field(60)
    HW = Field(61)
    PENDING = Field(62)
    ACTIVE = Field(63)


LR_EOI = ListRegister.EOI.mask
LR_PENDING = ListRegister.PENDING.mask
LR_ACTIVE = ListRegister.ACTIVE.mask
LR_PRIORITY = ListRegister.PRIORITY.lo
LR_GROUP = ListRegister.GROUP.lo


def bank_view(state: CpuState, bank: int) -> Any:
    """The register storage of a processor, such that the slots of ICH_* give the registers of `bank`."""
    if not bank:
        return state.sysreg
    count = SYSREG_SLOTS + BANK_SLOTS - bank
    return (ctypes.c_uint64 * count).from_buffer(state, CpuState.sysreg.offset + bank * ctypes.sizeof(ctypes.c_uint64))



class CpuInterface:
    """The interrupts of one vCPU: its private ones, its queue and what its list registers hold."""

    __slots__ = (
        "vcpu", "sysreg", "private", "queue", "loaded", "dirty", "spilled", "groups", "frame", "region", "redist", "lpis", "legacy",
    )  # fmt: skip

    def __init__(self, vcpu: HostVcpu, bank: int = VIRTUAL) -> None:
        self.vcpu = vcpu
        self.sysreg = bank_view(vcpu.cpu.state, bank)
        """Storage of the interface's registers, by the slots of ICH_*."""
        self.private = [Irq(intid) for intid in range(PRIVATE_IRQS)]
        for irq in self.private:
            irq.target = self
        self.queue: set[Irq] = set()
        self.loaded: list[tuple[Irq, int]] = []
        """Interrupt and loaded value of each list register in use, from ICH_LR0_EL2 up."""
        self.dirty = True
        """The list registers no longer follow from the queue; read without the lock by the owner."""
        self.spilled = False
        """Some queued interrupts found no list register."""
        self.groups = 0
        """The group enables of the CPU interface, as they were when the list registers were chosen."""
        self.frame: int | None = None
        """Guest physical address of the redistributor."""
        self.region: Region | None = None
        self.redist: dict[str, int] = {"GICR_PENDBASER": 0}
        self.lpis = False
        """GICR_CTLR.EnableLPIs."""
        self.legacy: LegacyInterface | None = None
        """The rest of a GICv2's CPU interface."""

    @property
    def affinity(self) -> int:
        """Aff2.Aff1.Aff0 as in MPIDR_EL1[23:0]."""
        return self.vcpu.mpidr & AFFINITY

    def list_register(self, n: int) -> int:
        """The live value of ICH_LR<n>_EL2; another thread's guest may change it at any time."""
        return int(self.sysreg[LR_SLOT + n])


class Region:
    """A range of guest physical addresses for `count` redistributors (0: as many as there are vCPUs)."""

    __slots__ = ("base", "count", "index", "used")

    def __init__(self, base: int, count: int, index: int) -> None:
        self.base = base
        self.count = count
        self.index = index
        self.used = 0


class Irq:
    """One interrupt: its configuration, its state and where it is queued."""

    __slots__ = (
        "intid", "enabled", "latch", "line", "active", "priority", "group", "edge", "target", "affinity",
        "holder", "lr", "lr_latch", "drop_pending", "force_active", "watched",
    )  # fmt: skip

    def __init__(self, intid: int) -> None:
        self.intid = intid
        self.enabled = intid < SGIS
        self.latch = False
        """Pending by an edge or by software, and not (or no longer) in a list register."""
        self.line = False
        """Level of the input wire."""
        self.active = False
        self.priority = 0
        self.group = 1
        self.edge = intid < SGIS or intid >= FIRST_LPI
        self.target: CpuInterface | None = None
        self.affinity = 0
        """What GICD_IROUTER holds (SPIs only)."""
        self.holder: CpuInterface | None = None
        """The vCPU on whose queue it is."""
        self.lr = -1
        """Number of its list register, or -1."""
        self.lr_latch = False
        """The pending state in the list register came from the latch and must return there if not acknowledged."""
        self.drop_pending = False
        self.force_active: bool | None = None
        self.watched = False
        """Somebody wants to know when the guest has completed it."""

    one_at_a_time = False
    """It cannot be active and pending in a list register."""

    def vintid(self) -> int:
        """What the guest sees when it acknowledges the interrupt."""
        return self.intid

    def __repr__(self) -> str:
        flags = [name for name in ("enabled", "latch", "line", "active", "edge") if getattr(self, name)]
        return f"<irq {self.intid} group {self.group} priority {self.priority:#x} {' '.join(flags)} lr {self.lr}>"

    def state(self) -> tuple[object, ...]:
        """What is known of the interrupt, as plain values."""
        flags = self.enabled, self.latch, self.line, self.active, self.edge, self.lr_latch, self.drop_pending, self.force_active
        target, holder = (None if cpu is None else cpu.vcpu.index for cpu in (self.target, self.holder))
        return (self.intid, *flags, self.priority, self.group, self.affinity, self.lr, target, holder)

    def asserted(self) -> bool:
        """Pending as far as this record knows: the latch, or the wire of a level-sensitive interrupt."""
        return self.latch or (self.line and not self.edge)

    def latched(self) -> bool:
        """The latch as an observer must see it, wherever it is kept."""
        return self.latch or self._latched_in_lr()

    def is_pending(self) -> bool:
        """Pending as the distributor shows it."""
        return self.asserted() or self._latched_in_lr()

    def is_active(self) -> bool:
        """Active as the distributor shows it."""
        if self.force_active is not None:
            return self.force_active
        if self.lr >= 0 and self.holder is not None:
            return bool(self.holder.list_register(self.lr) & LR_ACTIVE)
        return self.active

    def _latched_in_lr(self) -> bool:
        if not self.lr_latch or self.drop_pending or self.holder is None:
            return False
        return bool(self.holder.list_register(self.lr) & LR_PENDING)

    def set_latch(self) -> bool:
        """Make it pending by an edge or by software; False if it already was so."""
        if self.latch or self._latched_in_lr():
            return False
        self.latch = True
        return True

    def clear_latch(self) -> None:
        """Withdraw a pending state that does not come from the wire."""
        self.latch = False
        if self.lr >= 0:
            self.drop_pending = True

    def set_active(self, active: bool) -> None:
        """Order from the distributor; the owner of the list register applies it when it next folds."""
        if self.lr >= 0:
            self.force_active = active
        else:
            self.active = active

    def fold(self, value: int) -> None:
        """Take the state back from a list register whose last value is `value`."""
        if value & LR_PENDING and self.lr_latch and not self.drop_pending:
            self.latch = True
        self.active = bool(value & LR_ACTIVE) if self.force_active is None else self.force_active
        self.lr = -1
        self.lr_latch = self.drop_pending = False
        self.force_active = None
