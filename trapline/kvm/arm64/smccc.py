"""Which hypercalls the kernel serves and which userspace does: the SMCCC filter, and the firmware's pseudo registers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from errno import EBUSY, EEXIST, EINVAL, ENXIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from trapline.abi import arm64 as abi
from trapline.abi.arm64_vm import SMCCC_FILTER, SmcccAction, SmcccFilter, VmGroup
from trapline.errors import KvmError

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu
    from trapline.kvm.arm64.vm import Arm64Vm

RESERVED: Final = ((0x8000_0000, 0x8000_FFFF), (0xC000_0000, 0xC000_FFFF))
"""Functions of the architecture: a guest finds out about the others by them, so they are always the kernel's."""
LAST_FUNCTION: Final = (1 << 32) - 1

SERVICE_BITMAPS: Final[Mapping[int, tuple[int, int]]] = MappingProxyType(
    {
        abi.REG_STD_BMAP: (abi.STD_TRNG_V1_0, abi.STD_TRNG_V1_0),
        abi.REG_STD_HYP_BMAP: (abi.STD_HYP_PV_TIME, abi.STD_HYP_PV_TIME),
        abi.REG_VENDOR_HYP_BMAP: (abi.VENDOR_HYP_FUNC_FEAT | abi.VENDOR_HYP_PTP,) * 2,
        abi.REG_VENDOR_HYP_BMAP_2: (abi.VENDOR_HYP_DISCOVER_VER | abi.VENDOR_HYP_DISCOVER_CPUS, 0),
    }
)
"""The services of each pseudo register: those there are, and those that are on at first. The kernel serves none of the last row: a
VMM that switches those on has to have them forwarded."""

WORKAROUNDS: Final[Mapping[int, int]] = MappingProxyType(
    {
        abi.REG_WORKAROUND_1: abi.WORKAROUND_1_NOT_REQUIRED,
        abi.REG_WORKAROUND_2: abi.WORKAROUND_2_NOT_REQUIRED,
        abi.REG_WORKAROUND_3: abi.WORKAROUND_3_NOT_REQUIRED,
    }
)
"""What firmware does about speculation: nothing, as this machine does not speculate."""
LEVEL_MASK: Final = 0xF


def level_setter(reg_id: int) -> Callable[[Arm64Vcpu, int], None]:
    """Restoring the level of a machine that a guest comes from: this machine has to be at least as safe. Nothing is stored."""
    level = WORKAROUNDS[reg_id]
    extra = abi.WORKAROUND_2_ENABLED if reg_id == abi.REG_WORKAROUND_2 else 0

    def put(vcpu: Arm64Vcpu, value: int) -> None:
        enabled_without_it = value & extra and value & LEVEL_MASK != abi.WORKAROUND_2_AVAIL
        if value & ~(LEVEL_MASK | extra) or value & LEVEL_MASK > level or enabled_without_it:
            raise KvmError(EINVAL)

    return put


class Smccc:
    """One VM's hypercalls: who serves which function, and which services are on."""

    def __init__(self, vm: Arm64Vm) -> None:
        self.vm = vm
        self.bitmaps = {reg_id: default for reg_id, (_, default) in SERVICE_BITMAPS.items()}
        """Services that are on, by pseudo register."""
        self._ranges: list[tuple[int, int, int]] = [(start, end, SmcccAction.HANDLE) for start, end in RESERVED]
        self.filtered = False
        """Whether userspace has said anything about any function."""

    def set_bitmap(self, reg_id: int, value: int) -> None:
        """Switch services on or off, before the VM runs."""
        if value & ~SERVICE_BITMAPS[reg_id][0]:
            raise KvmError(EINVAL)
        with self.vm.config_lock:
            if self.vm.has_run and value != self.bitmaps[reg_id]:
                raise KvmError(EBUSY)
            self.bitmaps[reg_id] = value

    def has(self, reg_id: int, service: int) -> bool:
        """Whether a service is on."""
        return bool(self.bitmaps[reg_id] & service)

    def add(self, base: int, count: int, action: int) -> None:
        """Decide about a range of functions. No range can be decided about twice."""
        end = base + count - 1
        if not count or end > LAST_FUNCTION or action not in SmcccAction._value2member_map_:
            raise KvmError(EINVAL)
        with self.vm.config_lock:
            if self.vm.has_run:
                raise KvmError(EBUSY)
            if any(base <= last and first <= end for first, last, _ in self._ranges):
                raise KvmError(EEXIST)
            self._ranges = sorted([*self._ranges, (base, end, action)])
            self.filtered = True

    def action(self, function: int) -> int:
        """Who serves a function."""
        index = bisect_right(self._ranges, function, key=lambda entry: entry[0]) - 1
        if index >= 0 and function <= self._ranges[index][1]:
            return self._ranges[index][2]
        return SmcccAction.HANDLE


class VmAttributes:
    """A VM's device attributes: the SMCCC filter, which can be written only."""

    def __init__(self, vm: Arm64Vm) -> None:
        self._vm = vm

    def attr_size(self, group: int, attr: int) -> int:
        """Bytes of an attribute's value."""
        if (group, attr) != (VmGroup.SMCCC_CTRL, SMCCC_FILTER):
            raise KvmError(ENXIO)
        return SMCCC_FILTER_SIZE

    def set_attr(self, group: int, attr: int, value: int) -> None:
        """Add a range to the filter."""
        wanted: Any = SmcccFilter.from_buffer_copy(value.to_bytes(SMCCC_FILTER_SIZE, "little"))
        if any(wanted.pad):
            raise KvmError(EINVAL)
        self._vm.smccc.add(wanted.base, wanted.nr_functions, wanted.action)

    def get_attr(self, group: int, attr: int, value: int) -> int:
        """There is nothing to read."""
        raise KvmError(ENXIO)

    def has_attr(self, group: int, attr: int) -> None:
        """ENXIO unless the attribute exists."""
        self.attr_size(group, attr)


SMCCC_FILTER_SIZE: Final = 24
