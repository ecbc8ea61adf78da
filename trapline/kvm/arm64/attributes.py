"""A vCPU's device attributes: its PMU, its timers' interrupts and where its stolen time is told."""

from __future__ import annotations

from errno import ENXIO
from typing import TYPE_CHECKING, Protocol

from trapline.abi.arm64 import VcpuGroup
from trapline.errors import KvmError
from trapline.kvm.arm64.pmu import PmuAttributes

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu


class AttributeGroup(Protocol):
    """One group: attributes by number. ENXIO is for a number that there is not; each group has its own order of errors."""

    def has_attr(self, attr: int) -> None:
        """ENXIO unless the attribute exists."""

    def attr_size(self, attr: int) -> int:
        """Bytes of the attribute's value."""

    def set_attr(self, attr: int, value: int) -> None:
        """Write the attribute."""

    def get_attr(self, attr: int) -> int:
        """Read the attribute."""


class VcpuAttributes:
    """Attribute groups of one vCPU."""

    def __init__(self, vcpu: Arm64Vcpu) -> None:
        self._vcpu = vcpu

    def _group(self, group: int) -> AttributeGroup:
        match group:
            case VcpuGroup.PMU_V3_CTRL:
                return PmuAttributes(self._vcpu)
            case VcpuGroup.TIMER_CTRL:
                return self._vcpu.vm.timer
            case VcpuGroup.PVTIME_CTRL:
                return self._vcpu.pvtime
        raise KvmError(ENXIO)

    def attr_size(self, group: int, attr: int) -> int:
        """Bytes of an attribute's value."""
        return self._group(group).attr_size(attr)

    def set_attr(self, group: int, attr: int, value: int) -> None:
        """Write an attribute."""
        self._group(group).set_attr(attr, value)

    def get_attr(self, group: int, attr: int, value: int) -> int:
        """Read an attribute."""
        return self._group(group).get_attr(attr)

    def has_attr(self, group: int, attr: int) -> None:
        """ENXIO unless the attribute exists."""
        self._group(group).has_attr(attr)
