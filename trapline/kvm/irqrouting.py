"""Where GSIs lead: the table of KVM_SET_GSI_ROUTING, and messages sent by themselves."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from errno import EINVAL
from types import MappingProxyType
from typing import TYPE_CHECKING

from trapline.abi.ioctl import implements
from trapline.abi.irq import (
    KVM_SET_GSI_ROUTING,
    KVM_SIGNAL_MSI,
    MAX_ROUTES,
    MSI_VALID_DEVID,
    IrqRouting,
    Msi,
    RouteType,
    RoutingEntry,
    route_to_pin,
)
from trapline.errors import KvmError
from trapline.host.user import copy_from_user
from trapline.sync import Cell

if TYPE_CHECKING:
    from trapline.kvm.arch import ArchVm
    from trapline.kvm.vm import Vm

FLAGS: Mapping[int, int] = MappingProxyType({RouteType.MSI: MSI_VALID_DEVID})


class Table:
    """An immutable table: the routes of each GSI, and the GSI of each input of the interrupt controller."""

    def __init__(self, entries: Sequence[RoutingEntry], pins: int) -> None:
        """KvmError(EINVAL) for an entry that no interrupt controller with so many `pins` can have."""
        self.routes: dict[int, tuple[RoutingEntry, ...]] = {}
        self.gsi_of_pin: dict[int, int] = {}
        for entry in entries:
            if entry.gsi >= MAX_ROUTES or entry.flags & ~FLAGS.get(entry.type, 0):
                raise KvmError(EINVAL)
            others = self.routes.get(entry.gsi, ())
            # Only inputs of different controllers can share a GSI, and there is one controller.
            if others or entry.type not in tuple(RouteType):
                raise KvmError(EINVAL)
            if entry.type == RouteType.IRQCHIP:
                irqchip, pin = entry.u[0], entry.u[1]
                if irqchip or pin >= pins:
                    raise KvmError(EINVAL)
                self.gsi_of_pin[pin] = entry.gsi
            self.routes[entry.gsi] = (*others, entry)


class IrqRouter:
    """The table of one VM. Whoever drives a GSI takes the table that is in force, and never waits."""

    def __init__(self, arch: ArchVm) -> None:
        self._arch = arch
        self._table: Cell[Table] = Cell("irq_routing", Table((), arch.irqchip_pins))

    @property
    def table(self) -> Table:
        """What is in force now."""
        return self._table.load()

    def replace(self, entries: Sequence[RoutingEntry]) -> None:
        """Put another table in force; EINVAL leaves the old one."""
        self._table.store(Table(entries, self._arch.irqchip_pins))

    def reset(self, lines: int) -> None:
        """The table that a new interrupt controller with so many inputs begins with: each GSI to the input of that number."""
        self.replace([route_to_pin(number, number) for number in range(min(lines, self._arch.irqchip_pins))])

    def set_irq(self, gsi: int, level: bool) -> None:
        """Drive a GSI. A message is sent when it rises. What leads nowhere is lost."""
        for entry in self.table.routes.get(gsi, ()):
            try:
                if entry.type == RouteType.IRQCHIP:
                    self._arch.set_irqchip_pin(entry.u[1], level)
                elif level:
                    low, high, data, devid = entry.u[:4]
                    self._arch.send_msi(Msi(low, high, data, entry.flags, devid))
            except KvmError:
                continue  # the guest is not ready for it; nobody waits for an answer


@implements(KVM_SET_GSI_ROUTING)
def set_gsi_routing(vm: Vm, routing: IrqRouting) -> int:
    """Read the entries and put them in force."""
    if routing.nr > MAX_ROUTES or routing.flags:
        raise KvmError(EINVAL)
    base = ctypes.addressof(routing) + ctypes.sizeof(IrqRouting)
    data = copy_from_user(base, routing.nr * ctypes.sizeof(RoutingEntry))
    vm.routing.replace(list((RoutingEntry * routing.nr).from_buffer_copy(data)))
    vm.irqfds.routing_changed()
    return 0


@implements(KVM_SIGNAL_MSI)
def signal_msi(vm: Vm, msi: Msi) -> int:
    """Send one message."""
    if not vm.arch.has_irqchip or msi.flags & ~MSI_VALID_DEVID:
        raise KvmError(EINVAL)
    return vm.arch.send_msi(msi)
