"""A vCPU's device attributes: which interrupts its timers use."""

from __future__ import annotations

from errno import ENXIO
from typing import TYPE_CHECKING

from trapline.errors import KvmError
from trapline.kvm.arm64.timer import TIMER_GROUP

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu


class VcpuAttributes:
    """Attribute groups of one vCPU. Only the timer's exists; the values are shared by the VM."""

    def __init__(self, vcpu: Arm64Vcpu) -> None:
        self._timer = lambda: vcpu.vm.timer

    def attr_size(self, group: int, attr: int) -> int:
        """Bytes of an attribute's value."""
        if group != TIMER_GROUP:
            raise KvmError(ENXIO)
        return self._timer().attr_size(attr)

    def set_attr(self, group: int, attr: int, value: int) -> None:
        """Write an attribute."""
        self._timer().set_attr(attr, value)

    def get_attr(self, group: int, attr: int, value: int) -> int:
        """Read an attribute."""
        return self._timer().ppis[attr]

    def has_attr(self, group: int, attr: int) -> None:
        """ENXIO unless the attribute exists."""
        self.attr_size(group, attr)
