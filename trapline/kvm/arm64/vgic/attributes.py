"""The GICv3 as an in-kernel device: what user space configures, saves and restores through device attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import E2BIG, EBUSY, EEXIST, EINVAL, ENOENT, ENXIO
from types import MappingProxyType
from typing import Any, Final

from trapline.abi.arm64 import VgicAddr, VgicCtrl, VgicGroup
from trapline.errors import KvmError
from trapline.gic.core import Vgic
from trapline.gic.dist import DISTRIBUTOR, FRAME_SIZE
from trapline.gic.redist import CONTROL_FRAME, PRIVATE_FRAME, REDIST_SIZE, SGI_FRAME
from trapline.gic.regmap import RegisterMap
from trapline.gic.state import PRIVATE_IRQS, SGIS, CpuInterface, Irq, Region
from trapline.registers import Field, Register

from . import sysregs

FRAME_ALIGNMENT: Final = 0x1_0000
UNSET: Final = (1 << 64) - 1
"""What an address reads as before it was set."""

ADDRESSES: Final = 1 << 64
NR_IRQS_STEP: Final = 32
NR_IRQS_MAX: Final = 1023
ENCODING: Final = 0xFFFF
LINE_LEVEL: Final = 0
"""The only kind of LEVEL_INFO."""


class RedistRegion(Register, width=64):
    """The value of the attribute that adds a range for redistributors."""

    index = Field(11, 0)
    flags = Field(15, 12)
    base = Field(51, 16)
    count = Field(63, 52)


class RegisterAttr(Register, width=64):
    """Attribute number of a register: whose it is, and its offset (or system register encoding, in the low 16 bits)."""

    offset = Field(31, 0)
    affinity = Field(63, 32)


class LevelAttr(Register, width=64):
    """Attribute number of 32 input wires."""

    intid = Field(9, 0)
    info = Field(31, 10)


Check = Callable[[Any, int], object]
Set = Callable[[Any, int, int], object]
Get = Callable[[Any, int, int], int]


@dataclass(frozen=True)
class Attribute:
    """How an attribute, or a whole group, is checked, written and read."""

    size: int
    set: Set
    get: Get | None = None
    check: Check = lambda _gic, _attr: None
    parse: Check = lambda _gic, _attr: None
    """What is wrong with the number by itself: said before user memory is read, and before the vCPUs are stopped."""


def check_range(base: int, size: int, ipa_bits: int, alignment: int = FRAME_ALIGNMENT) -> None:
    """EINVAL for an address that is not aligned or whose range wraps, E2BIG for one beyond the guest's physical addresses."""
    if base % alignment or base + size >= ADDRESSES:
        raise KvmError(EINVAL)
    if base + size > 1 << ipa_bits:
        raise KvmError(E2BIG)


class GicDevice(Vgic):
    """An interrupt controller with device attributes."""

    @property
    def attributes(self) -> Mapping[tuple[int, int | None], Attribute]:
        """What there is, by group and number."""
        raise NotImplementedError

    def _attribute(self, group: int, attr: int) -> Attribute:
        found = self.attributes.get((group, attr)) or self.attributes.get((group, None))
        if found is None:
            raise KvmError(ENXIO)
        return found

    def attr_size(self, group: int, attr: int) -> int:
        """Bytes of an attribute's value in user memory; ENXIO for unknown groups, addresses and commands, EINVAL for no such vCPU."""
        attribute = self._attribute(group, attr)
        attribute.parse(self, attr)
        return attribute.size

    def has_attr(self, group: int, attr: int) -> None:
        """ENXIO unless the attribute exists; EINVAL if it names a vCPU that does not."""
        self._attribute(group, attr).check(self, attr)

    def set_attr(self, group: int, attr: int, value: int) -> None:
        """Configure the device or restore a register. EBUSY while a vCPU runs."""
        attribute = self._attribute(group, attr)
        with self.vm.stop_vcpus():
            attribute.set(self, attr, value)

    def get_attr(self, group: int, attr: int, value: int = 0) -> int:
        """Read an attribute; `value` is what user memory held, which for REDIST_REGION is the index asked for."""
        attribute = self._attribute(group, attr)
        if attribute.get is None:
            raise KvmError(ENXIO)
        with self.vm.stop_vcpus():
            return attribute.get(self, attr, value)

    def set_nr_irqs(self, count: int) -> None:
        """NR_IRQS, private interrupts included. EBUSY if it was chosen already."""
        if not 2 * PRIVATE_IRQS <= count <= NR_IRQS_MAX or count % NR_IRQS_STEP:
            raise KvmError(EINVAL)
        with self.lock:
            if self.initialized or self.nr_irqs:
                raise KvmError(EBUSY)
            self.nr_irqs = count


class VgicV3(GicDevice):
    """A GICv3 with its device attributes. Every refusal is a KvmError."""

    @property
    def attributes(self) -> Mapping[tuple[int, int | None], Attribute]:
        """What there is, by group and number."""
        return ATTRIBUTES

    # ---- configuration ------------------------------------------------------------------------------------------------------

    def set_dist_address(self, base: int) -> None:
        """ADDR_TYPE_DIST. EEXIST if it is set already."""
        with self.lock:
            if self.dist_base is not None:
                raise KvmError(EEXIST)
            check_range(base, FRAME_SIZE, self.vm.ipa_bits)
            self.set_dist_base(base)

    def set_redist_address(self, base: int) -> None:
        """ADDR_TYPE_REDIST: one region that grows with the number of vCPUs. EINVAL if there are counted regions."""
        with self.lock:
            if self.regions:
                raise KvmError(EEXIST if self.legacy_region else EINVAL)
            size = REDIST_SIZE * len(self.cpus)
            dist = self.dist_base
            if dist is not None and base < dist + FRAME_SIZE and dist < base + size:
                raise KvmError(EINVAL, "the redistributors would overlap the distributor")
            check_range(base, REDIST_SIZE, self.vm.ipa_bits)
            self.add_region(Region(base, 0, 0), legacy=True)

    def add_redist_region(self, value: int) -> None:
        """ADDR_TYPE_REDIST_REGION: regions come in order of their index and do not overlap."""
        wanted = RedistRegion(value)
        base, size = value & RedistRegion.base.mask, wanted.count * REDIST_SIZE
        with self.lock:
            if self.legacy_region or wanted.flags or not wanted.count or wanted.index != len(self.regions):
                raise KvmError(EINVAL)
            for region in self.regions:
                if base < region.base + region.count * REDIST_SIZE and region.base < base + size:
                    raise KvmError(EINVAL, "the region overlaps another one")
            check_range(base, size, self.vm.ipa_bits)
            self.add_region(Region(base, wanted.count, wanted.index))

    def redist_address(self) -> int:
        """Address of the one uncounted region."""
        return self.regions[0].base if self.legacy_region else UNSET

    def redist_region(self, value: int) -> int:
        """The region whose index is in `value`; ENOENT without one."""
        index = RedistRegion(value).index
        if self.legacy_region or index >= len(self.regions):
            raise KvmError(ENOENT)
        region = self.regions[index]
        return RedistRegion(region.base, index=index, count=region.count)

    def save_pending_tables(self) -> None:
        """CTRL_SAVE_PENDING_TABLES: write to guest memory which LPIs are pending. ENXIO before INIT."""
        if not self.initialized:
            raise KvmError(ENXIO)
        with self.lock:
            self.lpis.save_pending()

    # ---- registers ----------------------------------------------------------------------------------------------------------

    def named_cpu(self, attr: int) -> CpuInterface:
        """The vCPU that bits 63:32 of an attribute number name; EINVAL without one."""
        affinity = RegisterAttr(attr).affinity
        for cpu in self.cpus:
            if cpu.affinity == affinity:
                return cpu
        raise KvmError(EINVAL, f"no vCPU has affinity {affinity:#x}")

    def place(self, group: int, attr: int) -> tuple[CpuInterface | None, RegisterMap, int]:
        """Owner, register map and offset within it of a word in a frame, whether a register is there or not."""
        offset = RegisterAttr(attr).offset
        owner = None if group == VgicGroup.DIST_REGS else self.named_cpu(attr)
        registers = DISTRIBUTOR
        if owner is not None:
            registers = PRIVATE_FRAME if offset & SGI_FRAME else CONTROL_FRAME
            if offset < REDIST_SIZE:
                offset &= ~SGI_FRAME
        return owner, registers, offset

    def check_register(self, group: int, attr: int) -> None:
        """ENXIO if no register is there."""
        owner, registers, offset = self.place(group, attr)
        if not registers.exists(self.access(owner), offset):
            raise KvmError(ENXIO, f"no register at offset {RegisterAttr(attr).offset:#x}")

    def user_register(self, group: int, attr: int, value: int | None) -> int:
        """Read (`value` None) or write one word of a frame; what is no register reads as zero. EBUSY before INIT."""
        self.require_initialized()
        owner, registers, offset = self.place(group, attr)
        return self.user_access(owner, registers, offset, value) if registers.exists(self.access(owner), offset) else 0

    def user_sysreg(self, attr: int, value: int | None) -> int:
        """Read (`value` None) or write a register of a CPU interface. EBUSY before INIT."""
        cpu = self.named_cpu(attr)
        self.require_initialized()
        row = sysregs.find(RegisterAttr(attr).offset & ENCODING)
        with self.lock:
            if value is None:
                return row.read(cpu)
            row.write(cpu, value)
            cpu.dirty = True
        return 0

    def check_sysreg(self, attr: int) -> None:
        """ENXIO if the CPU interface has no such register, EINVAL if there is no such vCPU."""
        self.named_cpu(attr)
        sysregs.check(RegisterAttr(attr).offset & ENCODING)

    def wires(self, attr: int) -> list[tuple[int, Irq]]:
        """Bit number and interrupt for each input that a LEVEL_INFO attribute covers; EINVAL for bad attributes."""
        cpu, where = self.named_cpu(attr), LevelAttr(attr)
        if where.info != LINE_LEVEL or where.intid % 32:
            raise KvmError(EINVAL)
        irqs = cpu.private[SGIS:] if where.intid == 0 else self.spis[where.intid - PRIVATE_IRQS :][:32]
        return [(irq.intid - where.intid, irq) for irq in irqs]

    def user_level(self, attr: int, value: int | None) -> int:
        """Read (`value` None) or restore the level of 32 wires. EBUSY before INIT."""
        self.require_initialized()
        wires = self.wires(attr)
        if value is None:
            return sum(1 << bit for bit, irq in wires if irq.line and not irq.edge)
        with self.lock:
            for bit, irq in wires:
                irq.line = bool(value >> bit & 1)
                self.requeue(irq)
            told = self.take_told()
        self.finish(None, told)
        return 0

    def require_initialized(self) -> None:
        """EBUSY before CTRL_INIT."""
        if not self.initialized:
            raise KvmError(EBUSY, "the GIC has not been initialised")


# ---- the table ------------------------------------------------------------------------------------------------------------------


def _frame(group: VgicGroup) -> Attribute:
    return Attribute(
        size=4,
        set=lambda gic, attr, value: gic.user_register(group, attr, value),
        get=lambda gic, attr, _value: gic.user_register(group, attr, None),
        check=lambda gic, attr: gic.check_register(group, attr),
        parse=lambda gic, attr: group == VgicGroup.DIST_REGS or gic.named_cpu(attr),
    )


ATTRIBUTES: Mapping[tuple[int, int | None], Attribute] = MappingProxyType(
    {
        (VgicGroup.ADDR, VgicAddr.V3_DIST): Attribute(
            size=8,
            set=lambda gic, _attr, value: gic.set_dist_address(value),
            get=lambda gic, _attr, _value: UNSET if gic.dist_base is None else gic.dist_base,
        ),
        (VgicGroup.ADDR, VgicAddr.V3_REDIST): Attribute(
            size=8,
            set=lambda gic, _attr, value: gic.set_redist_address(value),
            get=lambda gic, _attr, _value: gic.redist_address(),
        ),
        (VgicGroup.ADDR, VgicAddr.V3_REDIST_REGION): Attribute(
            size=8,
            set=lambda gic, _attr, value: gic.add_redist_region(value),
            get=lambda gic, _attr, value: gic.redist_region(value),
        ),
        (VgicGroup.NR_IRQS, None): Attribute(
            size=4,
            set=lambda gic, _attr, value: gic.set_nr_irqs(value),
            get=lambda gic, _attr, _value: gic.nr_irqs or PRIVATE_IRQS,
        ),
        (VgicGroup.CTRL, VgicCtrl.INIT): Attribute(size=0, set=lambda gic, _attr, _value: gic.init()),
        (VgicGroup.CTRL, VgicCtrl.SAVE_PENDING_TABLES): Attribute(size=0, set=lambda gic, _attr, _value: gic.save_pending_tables()),
        (VgicGroup.DIST_REGS, None): _frame(VgicGroup.DIST_REGS),
        (VgicGroup.REDIST_REGS, None): _frame(VgicGroup.REDIST_REGS),
        (VgicGroup.CPU_SYSREGS, None): Attribute(
            size=8,
            set=lambda gic, attr, value: gic.user_sysreg(attr, value),
            get=lambda gic, attr, _value: gic.user_sysreg(attr, None),
            check=lambda gic, attr: gic.check_sysreg(attr),
            parse=lambda gic, attr: gic.named_cpu(attr),
        ),
        (VgicGroup.LEVEL_INFO, None): Attribute(
            size=4,
            set=lambda gic, attr, value: gic.user_level(attr, value),
            get=lambda gic, attr, _value: gic.user_level(attr, None),
            check=lambda gic, attr: gic.wires(attr),
            parse=lambda gic, attr: gic.named_cpu(attr),
        ),
    }
)
"""By group and attribute number; None stands for groups whose attribute numbers are addresses or mean nothing."""
