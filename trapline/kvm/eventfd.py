"""Eventfds connected to a guest: those that drive interrupts (irqfd), and those that its writes signal (ioeventfd).

Guests look at these tables without a lock, and may still be about to write an eventfd that was disconnected a moment ago: the file is
closed when nobody refers to it any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EAGAIN, EBUSY, EEXIST, EINVAL, ENOENT
from typing import TYPE_CHECKING

from trapline.abi.ioctl import implements
from trapline.abi.irq import KVM_IOEVENTFD, KVM_IRQFD, Ioeventfd, IoeventfdFlag, Irqfd, IrqfdFlag
from trapline.errors import KvmError
from trapline.host.eventfd import EventFd
from trapline.sync import Lock

if TYPE_CHECKING:
    from trapline.kvm.vm import Vm

IRQFD_FLAGS = sum(IrqfdFlag)
IOEVENTFD_FLAGS = sum(IoeventfdFlag)
LENGTHS = (0, 1, 2, 4, 8)
OTHER_BUSES = (IoeventfdFlag.PIO, IoeventfdFlag.VIRTIO_CCW_NOTIFY)
"""Flags that name a bus other than memory's. No guest of arm64 reaches one."""

ADDRESS_LIMIT = 1 << 64


@dataclass(eq=False, slots=True)
class IrqSource:
    """An eventfd that drives a GSI. With `resample` it does so until the guest completes the interrupt."""

    event: EventFd
    gsi: int
    resample: EventFd | None


class Irqfds:
    """The irqfds of one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._lock = Lock("irqfds", protects="which eventfds drive which GSI")
        self._sources: tuple[IrqSource, ...] = ()
        """Replaced, never changed: vCPUs look at it without the lock."""

    def assign(self, event: EventFd, gsi: int, resample: EventFd | None) -> None:
        """Connect; KvmError(EBUSY) if the eventfd drives a GSI already."""
        with self._lock:
            if any(other.event.identity == event.identity for other in self._sources):
                raise KvmError(EBUSY)
            source = IrqSource(event, gsi, resample)
            self._sources = (*self._sources, source)
            self._update()
            self._vm.system.events.watch(event, lambda: self._signalled(source))

    def deassign(self, event: EventFd, gsi: int) -> None:
        """Disconnect; no interrupt comes from the eventfd when this returns."""
        with self._lock:
            for source in [one for one in self._sources if one.event.identity == event.identity and one.gsi == gsi]:
                self._remove(source)
            self._update()

    def release(self) -> None:
        """Disconnect all of them: the VM is closed."""
        with self._lock:
            for source in self._sources:
                self._remove(source)

    def routing_changed(self) -> None:
        """GSIs lead elsewhere now."""
        with self._lock:
            self._update()

    def acknowledged(self, pin: int) -> None:
        """The guest has completed an interrupt: let go of the line, and tell those who may want it high again."""
        gsi = self._vm.routing.table.gsi_of_pin.get(pin)
        listening = [source for source in self._sources if source.gsi == gsi and source.resample is not None]
        if gsi is None or not listening:
            return
        self._vm.routing.set_irq(gsi, False)
        for source in listening:
            if source.resample is not None:
                source.resample.signal()

    def _signalled(self, source: IrqSource) -> None:
        """In the watcher's thread: the counter was not zero, and is now."""
        self._vm.routing.set_irq(source.gsi, True)
        if source.resample is None:
            self._vm.routing.set_irq(source.gsi, False)

    def _remove(self, source: IrqSource) -> None:
        self._vm.system.events.unwatch(source.event)
        self._sources = tuple(other for other in self._sources if other is not source)
        source.event.close()
        if source.resample is not None:
            if not any(other.gsi == source.gsi and other.resample is not None for other in self._sources):
                self._vm.routing.set_irq(source.gsi, False)

    def _update(self) -> None:
        """Say which inputs somebody wants to see completed."""
        wanted = {source.gsi for source in self._sources if source.resample is not None}
        pins = {pin for pin, gsi in self._vm.routing.table.gsi_of_pin.items() if gsi in wanted}
        self._vm.arch.watch_irqchip_pins(pins)


@dataclass(eq=False, slots=True)
class WriteEvent:
    """An eventfd that writes to an address signal. `length` 0 is any length, `data` None any data; `bus` is 0 for memory."""

    event: EventFd
    bus: int
    address: int
    length: int
    data: int | None

    def collides(self, other: WriteEvent) -> bool:
        """Whether one write could match both."""
        if (self.bus, self.address) != (other.bus, other.address):
            return False
        if not self.length or not other.length:
            return True
        return self.length == other.length and (self.data is None or other.data is None or self.data == other.data)

    def equals(self, other: WriteEvent) -> bool:
        """Whether both are the same connection."""
        return self.event.identity == other.event.identity and self._key() == other._key()

    def _key(self) -> tuple[int | None, ...]:
        return self.bus, self.address, self.length, self.data


class Ioeventfds:
    """The ioeventfds of one VM. The guest's writes look into `by_address` without a lock; it is replaced, never changed."""

    def __init__(self) -> None:
        self._lock = Lock("ioeventfds", protects="which writes signal which eventfd")
        self._all: list[WriteEvent] = []
        self.by_address: dict[int, tuple[WriteEvent, ...]] = {}
        """Those on the memory bus."""

    def assign(self, wanted: WriteEvent) -> None:
        """Connect; KvmError(EEXIST) if another one would match the same write."""
        with self._lock:
            if any(wanted.collides(other) for other in self._all):
                raise KvmError(EEXIST)
            self._all.append(wanted)
            self._publish()

    def deassign(self, unwanted: WriteEvent) -> None:
        """Disconnect; KvmError(ENOENT) if there is no such connection."""
        with self._lock:
            found = next((one for one in self._all if one.equals(unwanted)), None)
            if found is None:
                raise KvmError(ENOENT)
            self._all.remove(found)
            self._publish()

    def release(self) -> None:
        """Disconnect all of them."""
        with self._lock:
            self._all.clear()
            self._publish()

    def write(self, address: int, length: int, value: int) -> bool:
        """A guest's write; whether an eventfd took it."""
        for event in self.by_address.get(address, ()):
            if event.length in (0, length) and event.data in (None, value):
                event.event.signal()
                return True
        return False

    def _publish(self) -> None:
        table: dict[int, tuple[WriteEvent, ...]] = {}
        for event in self._all:
            if not event.bus:
                table[event.address] = (*table.get(event.address, ()), event)
        self.by_address = table


@implements(KVM_IRQFD)
def irqfd(vm: Vm, request: Irqfd) -> int:
    """Connect or disconnect."""
    if request.flags & ~IRQFD_FLAGS:
        raise KvmError(EINVAL)
    if request.flags & IrqfdFlag.DEASSIGN:
        vm.irqfds.deassign(EventFd(request.fd), request.gsi)
        return 0
    if not vm.arch.irqchip_ready:
        raise KvmError(EAGAIN)
    event = EventFd(request.fd)
    resample = EventFd(request.resamplefd) if request.flags & IrqfdFlag.RESAMPLE else None
    vm.irqfds.assign(event, request.gsi, resample)
    return 0


@implements(KVM_IOEVENTFD)
def ioeventfd(vm: Vm, request: Ioeventfd) -> int:
    """Connect or disconnect. Taking away checks nothing but whether there is such a connection."""
    flags = request.flags
    if not flags & IoeventfdFlag.DEASSIGN:
        wraps = request.addr + request.len >= ADDRESS_LIMIT
        matches_nothing = flags & IoeventfdFlag.DATAMATCH and not request.len
        if request.len not in LENGTHS or wraps or flags & ~IOEVENTFD_FLAGS or matches_nothing:
            raise KvmError(EINVAL)
    data = request.datamatch if flags & IoeventfdFlag.DATAMATCH else None
    bus = next((int(flag) for flag in OTHER_BUSES if flags & flag), 0)
    connection = WriteEvent(EventFd(request.fd), bus, request.addr, request.len, data)
    if flags & IoeventfdFlag.DEASSIGN:
        vm.ioeventfds.deassign(connection)
    else:
        vm.ioeventfds.assign(connection)
    vm.coalesced.changed()
    return 0
