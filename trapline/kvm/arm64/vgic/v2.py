"""The GICv2 as an in-kernel device: addresses, registers of distributor and CPU interfaces."""

from __future__ import annotations

from collections.abc import Mapping
from errno import EEXIST, EINVAL, ENODEV, ENXIO
from types import MappingProxyType
from typing import Any, Final

from trapline.abi.arm64 import VgicAddr, VgicCtrl, VgicGroup
from trapline.errors import KvmError
from trapline.gic.legacy import CPU_INTERFACE, RESTORED
from trapline.gic.legacy_core import CPU_INTERFACE_SIZE, LegacyGic
from trapline.gic.legacy_dist import DISTRIBUTOR, FRAME_SIZE
from trapline.gic.regmap import RegisterMap
from trapline.gic.state import PRIVATE_IRQS, CpuInterface
from trapline.kvm.arm64.vgic.attributes import UNSET, Attribute, GicDevice, check_range
from trapline.registers import Field, Register

PAGE: Final = 0x1000


class RegisterNumber(Register):
    """Attribute number of a register: its offset, and whose it is."""

    offset = Field(31, 0)
    cpu = Field(39, 32)


class VgicV2(GicDevice, LegacyGic):
    """A GICv2 with its device attributes. Every refusal is a KvmError."""

    @property
    def attributes(self) -> Mapping[tuple[int, int | None], Attribute]:
        """What there is, by group and number."""
        return ATTRIBUTES

    def set_address(self, kind: int, base: int) -> None:
        """Place the distributor or the CPU interface. ENODEV for anything else, EEXIST if it has its place."""
        if kind not in SIZES:
            raise KvmError(ENODEV)
        with self.lock:
            if self.address(kind) != UNSET:
                raise KvmError(EEXIST)
            check_range(base, SIZES[kind], self.vm.ipa_bits, PAGE)
            if kind == VgicAddr.V2_DIST:
                self.dist_base = base
            else:
                self.cpu_base = base

    def address(self, kind: int) -> int:
        """Where it is."""
        base = self.dist_base if kind == VgicAddr.V2_DIST else self.cpu_base
        return UNSET if base is None else base

    def named_cpu(self, attr: int) -> CpuInterface:
        """The vCPU that an attribute names; EINVAL if there is none."""
        number = RegisterNumber(attr).cpu
        cpu = next((cpu for cpu in self.cpus if cpu.vcpu.id == number), None)
        if cpu is None:
            raise KvmError(EINVAL, f"there is no vCPU {number}")
        return cpu

    def register(self, group: int, attr: int) -> tuple[CpuInterface, RegisterMap, int] | None:
        """vCPU, registers and offset that an attribute names: EINVAL for no such vCPU, None for no such register."""
        cpu, number = self.named_cpu(attr), RegisterNumber(attr)
        registers = DISTRIBUTOR if group == VgicGroup.DIST_REGS else CPU_INTERFACE
        known = registers is DISTRIBUTOR or number.offset in RESTORED
        if not known or not registers.exists(self.banked(cpu), number.offset):
            return None
        return cpu, registers, number.offset

    def check_register(self, group: int, attr: int) -> None:
        """ENXIO if no register is there."""
        if self.register(group, attr) is None:
            raise KvmError(ENXIO, f"no register at offset {RegisterNumber(attr).offset:#x}")

    def user_register(self, group: int, attr: int, value: int | None) -> int:
        """Read (`value` None) or write a register; what is none reads as zero. Initialises, as the first look at a GICv2 does."""
        self.lazy_init()
        found = self.register(group, attr)
        return self.user_word(*found, value) if found is not None else 0


SIZES: Mapping[int, int] = MappingProxyType({VgicAddr.V2_DIST: FRAME_SIZE, VgicAddr.V2_CPU: CPU_INTERFACE_SIZE})


def _address(kind: VgicAddr) -> Attribute:
    def put(gic: Any, _attr: int, value: int) -> None:
        gic.set_address(kind, value)

    return Attribute(size=8, set=put, get=lambda gic, _attr, _value: gic.address(kind))


def _registers(group: VgicGroup) -> Attribute:
    return Attribute(
        size=4,
        set=lambda gic, attr, value: gic.user_register(group, attr, value),
        get=lambda gic, attr, _value: gic.user_register(group, attr, None),
        check=lambda gic, attr: gic.check_register(group, attr),
        parse=lambda gic, attr: gic.named_cpu(attr),
    )


ATTRIBUTES: Mapping[tuple[int, int | None], Attribute] = MappingProxyType(
    {
        (VgicGroup.ADDR, VgicAddr.V2_DIST): _address(VgicAddr.V2_DIST),
        (VgicGroup.ADDR, VgicAddr.V2_CPU): _address(VgicAddr.V2_CPU),
        (VgicGroup.NR_IRQS, None): Attribute(
            size=4,
            set=lambda gic, _attr, value: gic.set_nr_irqs(value),
            get=lambda gic, _attr, _value: gic.nr_irqs or PRIVATE_IRQS,
        ),
        (VgicGroup.CTRL, VgicCtrl.INIT): Attribute(size=0, set=lambda gic, _attr, _value: gic.init()),
        (VgicGroup.DIST_REGS, None): _registers(VgicGroup.DIST_REGS),
        (VgicGroup.CPU_REGS, None): _registers(VgicGroup.CPU_REGS),
    }
)
"""By group and attribute number; None stands for groups whose attribute numbers are register numbers or mean nothing."""
