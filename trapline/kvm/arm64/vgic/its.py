"""The ITS as an in-kernel device: its address, its registers, and its tables, which go through guest memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import EEXIST, EINVAL, ENODEV, ENXIO
from types import MappingProxyType
from typing import Final

from trapline.abi.arm64 import VgicAddr, VgicCtrl, VgicGroup
from trapline.errors import KvmError
from trapline.gic import its as registers
from trapline.gic import its_tables
from trapline.gic.host import HostVm
from trapline.gic.its import ITS_SIZE
from trapline.gic.its_state import Its
from trapline.gic.lpi import HostMemory
from trapline.gic.regmap import Plain
from trapline.kvm.arm64.vgic.attributes import UNSET, VgicV3, check_range

FIRST_DOUBLE_WORD: Final = 0x008
IDENTIFICATION: Final = 0xFFD0
"""Registers from the one to the other have 64 bits, the rest 32."""


class NoVcpus:
    """The VM, as an ITS sees it before there is an interrupt controller: nobody is there to be interrupted."""

    vcpus = ()

    def __init__(self, vm: HostVm) -> None:
        self.ipa_bits = vm.ipa_bits
        self.stop_vcpus = vm.stop_vcpus


class VgicIts(Its):
    """An ITS with its device attributes. Every refusal is a KvmError."""

    gic: VgicV3

    @classmethod
    def without_gic(cls, vm: HostVm, memory: HostMemory) -> VgicIts:
        """An ITS whose interrupt controller is still to come."""
        its = cls(VgicV3(NoVcpus(vm)), memory)
        its.gic.lpis.memory = memory
        return its

    def attach(self, gic: VgicV3) -> None:
        """Become part of an interrupt controller. What was mapped without one led nowhere, and is forgotten."""
        with gic.lock:
            self.forget_devices()
            self.collections.clear()
            self.gic = gic
            gic.lpis.memory = self.memory
            if self.base is not None:
                registers.place(self, self.base)

    def contains(self, address: int) -> bool:
        """Whether a message to this address is for this ITS."""
        return self.base is not None and 0 <= address - self.base < ITS_SIZE

    def attr_size(self, group: int, attr: int) -> int:
        """Bytes of an attribute's value in user memory."""
        if group == VgicGroup.ADDR and attr != VgicAddr.ITS:
            raise KvmError(ENODEV)
        found = GROUPS.get(group)
        if found is None:
            raise KvmError(ENXIO)
        return found.size

    def has_attr(self, group: int, attr: int) -> None:
        """ENXIO unless the attribute exists; EINVAL for a register number that is not aligned."""
        if group == VgicGroup.ITS_REGS:
            self.register(attr)
        elif attr not in ATTRIBUTES.get(group, ()):
            raise KvmError(ENXIO)

    def set_attr(self, group: int, attr: int, value: int) -> None:
        """Configure the device, restore a register, or move tables. EBUSY while a vCPU runs."""
        GROUPS[group].set(self, attr, value)

    def get_attr(self, group: int, attr: int, value: int = 0) -> int:
        """Read an attribute."""
        get = GROUPS[group].get
        if get is None:
            raise KvmError(ENXIO)
        return get(self, attr)

    # ---- groups -------------------------------------------------------------------------------------------------------------

    def set_address(self, base: int) -> None:
        """Where the guest finds it. EEXIST if it is set already."""
        with self.gic.lock:
            if self.base is not None:
                raise KvmError(EEXIST)
            check_range(base, ITS_SIZE, self.gic.vm.ipa_bits)
            registers.place(self, base)

    def control(self, attr: int) -> None:
        """INIT has nothing to do; the others need the vCPUs to stand still."""
        if attr == VgicCtrl.INIT:
            return
        with self.gic.vm.stop_vcpus():
            with self.gic.lock:
                CONTROLS.get(attr, _nothing)(self)
                told = self.gic.take_told()
            self.gic.finish(None, told)

    def register(self, offset: int) -> Plain:
        """The register at an offset: EINVAL if it is not aligned, ENXIO if there is none."""
        width = 8 if FIRST_DOUBLE_WORD <= offset < IDENTIFICATION else 4
        if offset % width:
            raise KvmError(EINVAL)
        found = registers.CONTROL.find(offset)
        if not isinstance(found, Plain):
            raise KvmError(ENXIO, f"no register at offset {offset:#x}")
        return found

    def user_register(self, offset: int, value: int | None) -> int:
        """Read (`value` None) or write a register, all of it at once. ENXIO before the address is set."""
        if self.base is None:
            raise KvmError(ENXIO)
        row = self.register(offset)
        length = min(row.length, 8) if row.length % 8 == 0 and offset < IDENTIFICATION else 4
        access = registers.access(self)
        with self.gic.vm.stop_vcpus():
            with self.gic.lock:
                if value is None:
                    return row.load(access, offset, length, True)
                row.store(access, offset, length, value & (1 << 8 * length) - 1, True)
                told = self.gic.take_told()
            self.gic.finish(None, told)
        return 0


def _nothing(_its: Its) -> None:
    """A command that is none."""


CONTROLS: Mapping[int, Callable[[Its], None]] = MappingProxyType(
    {
        VgicCtrl.ITS_SAVE_TABLES: its_tables.save,
        VgicCtrl.ITS_RESTORE_TABLES: its_tables.restore,
        VgicCtrl.ITS_RESET: Its.reset,
    }
)


@dataclass(frozen=True)
class Group:
    """How the attributes of a group are written and read."""

    size: int
    set: Callable[[VgicIts, int, int], object]
    get: Callable[[VgicIts, int], int] | None = None


GROUPS: Mapping[int, Group] = MappingProxyType(
    {
        VgicGroup.ADDR: Group(
            8, lambda its, _attr, value: its.set_address(value), lambda its, _attr: UNSET if its.base is None else its.base
        ),
        VgicGroup.CTRL: Group(0, lambda its, attr, _value: its.control(attr)),
        VgicGroup.ITS_REGS: Group(
            8, lambda its, attr, value: its.user_register(attr, value), lambda its, attr: its.user_register(attr, None)
        ),
    }
)
ATTRIBUTES: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {VgicGroup.ADDR: (VgicAddr.ITS,), VgicGroup.CTRL: (VgicCtrl.INIT, *(VgicCtrl(attr) for attr in CONTROLS))}
)
"""What exists, for groups whose attributes are not register numbers."""
