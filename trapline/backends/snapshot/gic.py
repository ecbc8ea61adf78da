"""Interrupt controllers through their device attributes: what to read, and the writes that bring it back, in an order that works.

A saved controller is a list of writes. Bits that one register sets and another clears are cleared first, all of them: so the list does
not depend on what the new controller holds. (Linux: Documentation/virt/kvm/devices/arm-vgic-v3.rst, arm-vgic.rst, arm-vgic-its.rst.)
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from trapline.abi.arm64 import DeviceType, VgicCtrl, VgicGroup, reg_sysreg
from trapline.backends.objects import Device, Vm
from trapline.backends.vcpu import Vcpu
from trapline.errors import KvmError

Write = tuple[int, int, int, int]
"""Group, attribute, bytes, value."""

PRIVATE: Final = 32
"""Interrupts that each vCPU has to itself."""
ALL_ONES: Final = 0xFFFF_FFFF
MPIDR: Final = reg_sysreg(3, 0, 0, 0, 5)


@dataclass(frozen=True, slots=True)
class PerInterrupt:
    """Registers with a field for each interrupt. `clear`: where a one clears the bit that a one at `offset` sets."""

    offset: int
    bits: int
    clear: int | None = None


CONFIGURATION, GROUP = PerInterrupt(0xC00, 2), PerInterrupt(0x080, 1)
ENABLE, PENDING, ACTIVE = PerInterrupt(0x100, 1, 0x180), PerInterrupt(0x200, 1, 0x280), PerInterrupt(0x300, 1, 0x380)
PRIORITY, TARGET, ROUTE = PerInterrupt(0x400, 8), PerInterrupt(0x800, 8), PerInterrupt(0x6000, 64)

BEFORE_LEVELS: Final = (GROUP, CONFIGURATION, ENABLE, PRIORITY)
"""An input's level means something once it is known whether the interrupt is an edge."""
AFTER_LEVELS: Final = (PENDING, ACTIVE)

GICD_IIDR, GICD_CTLR, GICD_STATUSR = 0x008, 0x000, 0x010
GICR_LPI_TABLES: Final = (0x0070, 0x0074, 0x0078, 0x007C)
"""GICR_PROPBASER and GICR_PENDBASER: they cannot be written once GICR_CTLR has LPIs enabled."""
GICR_CTLR, GICR_STATUSR, SGI_FRAME = 0x0000, 0x0010, 0x10000


def _interface(crn: int, crm: int, op2: int) -> int:
    return 3 << 14 | crn << 7 | crm << 3 | op2


CPU_INTERFACE: Final = (
    *(_interface(12, 12, op2) for op2 in (5, 4)), _interface(4, 6, 0), _interface(12, 8, 3), _interface(12, 12, 3),
    *(_interface(12, 8, 4 + n) for n in range(4)), *(_interface(12, 9, n) for n in range(4)), *(_interface(12, 12, op2) for op2 in (6, 7)),
)  # fmt: skip
"""ICC_SRE, CTLR, PMR, BPR0, BPR1, AP0R<n>, AP1R<n>, IGRPEN0, IGRPEN1."""
GICV2_INTERFACE: Final = (0x00, 0x04, 0x08, 0x1C, 0xD0, 0xD4, 0xD8, 0xDC)
"""GICC_CTLR, PMR, BPR, ABPR, APR<n>."""
SGI_SOURCES, SGI_SOURCES_CLEAR = range(0xF20, 0xF30, 4), 0xF10
"""GICD_SPENDSGIR and where GICD_CPENDSGIR begins: who sent a GICv2's SGIs."""

GITS_IIDR, GITS_CTLR = 0x0004, 0x0000
ITS_REGISTERS: Final = (GITS_IIDR, 0x0080, 0x0090, 0x0088, *range(0x0100, 0x0140, 8))
"""GITS_IIDR, CBASER, CREADR, CWRITER, BASER<n>: CBASER clears CREADR, and CWRITER sets a disabled ITS's commands going."""

LEVELS_AT_ONCE: Final = 32
NO_REGISTER: Final = frozenset({errno.ENXIO, errno.EINVAL, errno.ENODEV})
"""What a KVM answers for a register that it does not have."""


class Reader:
    """Reads a device's attributes as the writes that restore them."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def word(self, group: int, attr: int, width: int = 4) -> Iterator[Write]:
        """One register, if this KVM has it."""
        try:
            yield group, attr, width, self.device.get_attr(group, attr, width)
        except KvmError as error:
            if error.errno not in NO_REGISTER:
                raise

    def fields(self, group: int, base: int, row: PerInterrupt, interrupts: range) -> Iterator[Write]:
        """A register file, for these interrupts. `base` is what comes before the offset in the attribute."""
        first, last = (interrupts.start * row.bits // 32, interrupts.stop * row.bits // 32)
        for number in range(first, last):
            found = list(self.word(group, base | row.offset + 4 * number))
            if found and row.clear is not None:
                yield group, base | row.clear + 4 * number, 4, ALL_ONES
            yield from found


def affinity(vcpu: Vcpu) -> int:
    """Which vCPU an attribute of a GICv3 is about: Aff3 to Aff0 of its MPIDR, in the upper half."""
    mpidr = vcpu.get_one_reg(MPIDR)
    return (mpidr & 0xFF_FFFF | mpidr >> 32 << 24 & 0xFF00_0000) << 32


def gicv3(vm: Vm, device: Device) -> Iterator[Write]:
    """Distributor, redistributors, CPU interfaces."""
    read, shared = Reader(device), range(PRIVATE, device.get_attr(VgicGroup.NR_IRQS, 0, 4))
    dist, redist = VgicGroup.DIST_REGS, VgicGroup.REDIST_REGS
    names = [affinity(vcpu) for vcpu in vm.vcpus]
    for offset in (GICD_IIDR, GICD_CTLR, GICD_STATUSR):
        yield from read.word(dist, offset)
    for name in names:
        # Any write makes the tables' registers say something of caches: zero is what was never written, nor is it to be now.
        yield from (write for offset in GICR_LPI_TABLES for write in read.word(redist, name | offset) if write[-1])
        for offset in (GICR_CTLR, GICR_STATUSR):
            yield from read.word(redist, name | offset)
        for row in BEFORE_LEVELS:
            yield from read.fields(redist, name | SGI_FRAME, row, range(PRIVATE))
        yield from read.word(VgicGroup.LEVEL_INFO, name)
        for row in AFTER_LEVELS:
            yield from read.fields(redist, name | SGI_FRAME, row, range(PRIVATE))
    for row in (*BEFORE_LEVELS, ROUTE):
        yield from read.fields(dist, 0, row, shared)
    for first in shared[::LEVELS_AT_ONCE]:
        yield from read.word(VgicGroup.LEVEL_INFO, names[0] | first)
    for row in AFTER_LEVELS:
        yield from read.fields(dist, 0, row, shared)
    for name in names:
        for encoding in CPU_INTERFACE:
            yield from read.word(VgicGroup.CPU_SYSREGS, name | encoding, 8)


def gicv2(vm: Vm, device: Device) -> Iterator[Write]:
    """Distributor with its banked parts, CPU interfaces."""
    read, shared = Reader(device), range(PRIVATE, device.get_attr(VgicGroup.NR_IRQS, 0, 4))
    dist = VgicGroup.DIST_REGS
    rows = (*BEFORE_LEVELS, *AFTER_LEVELS)
    for offset in (GICD_IIDR, GICD_CTLR):
        yield from read.word(dist, offset)
    for name in (vcpu.id << 32 for vcpu in vm.vcpus):
        for row in rows:
            yield from read.fields(dist, name, row, range(PRIVATE))
        for offset in SGI_SOURCES:
            found = list(read.word(dist, name | offset))
            if found:
                yield dist, name | offset - SGI_SOURCES.start + SGI_SOURCES_CLEAR, 4, ALL_ONES
            yield from found
    for row in (TARGET, *rows):
        yield from read.fields(dist, 0, row, shared)
    for name in (vcpu.id << 32 for vcpu in vm.vcpus):
        for offset in GICV2_INTERFACE:
            yield from read.word(VgicGroup.CPU_REGS, name | offset)


def its(vm: Vm, device: Device) -> Iterator[Write]:
    """An ITS whose tables are in guest memory already: registers, then the tables, then GITS_CTLR, which sets it going."""
    read = Reader(device)
    for offset in ITS_REGISTERS:
        yield from read.word(VgicGroup.ITS_REGS, offset, 8)
    yield VgicGroup.CTRL, VgicCtrl.ITS_RESTORE_TABLES, 0, 0
    yield from read.word(VgicGroup.ITS_REGS, GITS_CTLR, 8)


READERS: Mapping[int, Callable[[Vm, Device], Iterator[Write]]] = MappingProxyType(
    {DeviceType.ARM_VGIC_V2: gicv2, DeviceType.ARM_VGIC_V3: gicv3, DeviceType.ARM_VGIC_ITS: its}
)
"""How each kind of device is read."""

TABLES: Final = ((DeviceType.ARM_VGIC_V3, VgicCtrl.SAVE_PENDING_TABLES), (DeviceType.ARM_VGIC_ITS, VgicCtrl.ITS_SAVE_TABLES))
"""What goes through guest memory, in order: pending LPIs first, for the ITS's tables say whose they are."""


def settle(vm: Vm) -> None:
    """Have all that an interrupt controller keeps in guest memory be there. EBUSY while a vCPU runs.

    ENXIO means that there is nothing: an interrupt controller without LPIs, or one that was never initialised.
    """
    for kind, command in TABLES:
        for device in vm.devices:
            if device.kind == kind:
                try:
                    device.set_attr(VgicGroup.CTRL, command)
                except KvmError as error:
                    if error.errno != errno.ENXIO:
                        raise


def restore(device: Device, writes: list[Write]) -> None:
    """Repeat the writes."""
    for group, attr, width, value in writes:
        device.set_attr(group, attr, value.to_bytes(width, "little"))
