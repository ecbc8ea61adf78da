"""What an interrupt translation service knows: devices, their events, collections, and the registers that hold addresses."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trapline.errors import KvmError
from trapline.registers import Field

from .lpi import INNER_SHAREABLE, READ_WRITE_ALLOCATE, HostMemory, TableAttributes
from .state import CpuInterface, Irq

if TYPE_CHECKING:
    from .core import Vgic

ENTRY_BYTES = 8
"""Of every table."""

PAGE = 0x1000
PAGES_OF_64K = 2
"""GITS_BASER<n>.Page_Size."""

class Cbaser(TableAttributes):
    """GITS_CBASER. `Size` is the number of 4 KiB pages minus one."""

    Size = Field(7, 0)
    Shareability = Field(11, 10)
    Address = Field(51, 16)
    OuterCache = Field(55, 53)
    InnerCache = Field(61, 59)
    Valid = Field(63)


class Baser(TableAttributes):
    """GITS_BASER<n>. Pages are of 64 KiB; address bits 51:48 are in bits 15:12."""

    Size = Field(7, 0)
    Page_Size = Field(9, 8)
    Shareability = Field(11, 10)
    Address = Field(47, 16)
    AddressHigh = Field(15, 12)
    Entry_Size = Field(52, 48)
    OuterCache = Field(55, 53)
    Type = Field(58, 56)
    InnerCache = Field(61, 59)
    Indirect = Field(62)
    Valid = Field(63)


DEVICE_TABLE, COLLECTION_TABLE = 1, 4
"""What a GITS_BASER<n> can hold."""


@dataclass(eq=False, slots=True)
class Collection:
    """A set of events that go to one vCPU; to none before it is mapped."""

    id: int
    target: CpuInterface | None = None


@dataclass(eq=False, slots=True)
class Event:
    """A message of a device that was mapped."""

    id: int
    irq: Irq
    collection: Collection | None


@dataclass(eq=False, slots=True)
class Device:
    """A device that was mapped: it has `1 << bits` events, and a table for them at `itt`."""

    id: int
    itt: int
    bits: int
    events: dict[int, Event] = field(default_factory=dict)


class Its:
    """One ITS of an interrupt controller, whose lock protects it: hold it for everything but `trigger`."""

    def __init__(self, gic: Vgic, memory: HostMemory) -> None:
        self.gic = gic
        self.memory = memory
        self.base: int | None = None
        self.enabled = False
        self.cbaser = self.creadr = self.cwriter = 0
        self.tables = {kind: empty_table(kind) for kind in (DEVICE_TABLE, COLLECTION_TABLE)}
        self.devices: dict[int, Device] = {}
        self.collections: dict[int, Collection] = {}

    def reset(self) -> None:
        """Registers as at power-on, but for what describes the tables; nothing is mapped."""
        for kind in self.tables:
            self.tables[kind] &= ~Baser.Valid.mask
        self.cbaser = self.creadr = self.cwriter = 0
        self.enabled = False
        self.forget_devices()
        self.collections.clear()

    # ---- messages -----------------------------------------------------------------------------------------------------------

    def trigger(self, device_id: int, event_id: int) -> bool:
        """A message from outside; False if the guest has not mapped it, KvmError(EBUSY) while the ITS or LPIs are off."""
        with self.gic.lock:
            delivered = self.deliver(device_id, event_id)
            told = self.gic.take_told()
        self.gic.finish(None, told)
        return delivered

    def deliver(self, device_id: int, event_id: int) -> bool:
        """Make an event's LPI pending."""
        if not self.enabled:
            raise KvmError(errno.EBUSY, "the ITS is off")
        event = self.event(device_id, event_id)
        if event is None or event.collection is None or event.collection.target is None:
            return False
        if not event.collection.target.lpis:
            raise KvmError(errno.EBUSY, "the redistributor's LPIs are off")
        if event.irq.set_latch():
            self.gic.requeue(event.irq)
        return True

    def event(self, device_id: int, event_id: int) -> Event | None:
        """A mapped event."""
        device = self.devices.get(device_id)
        return None if device is None else device.events.get(event_id)

    # ---- what is mapped -----------------------------------------------------------------------------------------------------

    def add_event(self, device: Device, event_id: int, intid: int, collection: Collection) -> None:
        """Map an event; KvmError if the LPI's tables are not in memory."""
        device.events[event_id] = Event(event_id, self.gic.lpis.take(intid, collection.target), collection)

    def drop_event(self, device: Device, event_id: int) -> None:
        """Unmap an event."""
        self.gic.lpis.give_back(device.events.pop(event_id).irq)

    def drop_device(self, device_id: int) -> None:
        """Unmap a device, if it is mapped."""
        device = self.devices.pop(device_id, None)
        if device is not None:
            for event_id in list(device.events):
                self.drop_event(device, event_id)

    def forget_devices(self) -> None:
        """Unmap all devices."""
        for device_id in list(self.devices):
            self.drop_device(device_id)

    def forget_collections(self) -> None:
        """Unmap all collections."""
        for collection_id in list(self.collections):
            self.drop_collection(collection_id)

    def drop_collection(self, collection_id: int) -> None:
        """Unmap a collection: its events go nowhere."""
        collection = self.collections.pop(collection_id, None)
        for event in self.events_of(collection) if collection is not None else ():
            event.collection = None

    def events_of(self, collection: Collection) -> list[Event]:
        """The events of a collection."""
        return [event for device in self.devices.values() for event in device.events.values() if event.collection is collection]

    def cpu(self, number: int) -> CpuInterface | None:
        """The vCPU with this number, as GICR_TYPER.Processor_Number tells it to the guest."""
        return next((cpu for cpu in self.gic.cpus if cpu.vcpu.id == number), None)


def empty_table(kind: int) -> int:
    """GITS_BASER<n> of a kind of table that the guest has not set up."""
    cached = {"InnerCache": READ_WRITE_ALLOCATE, "Shareability": INNER_SHAREABLE}
    return Baser(Type=kind, Entry_Size=ENTRY_BYTES - 1, Page_Size=PAGES_OF_64K, **cached)


def ring_size(cbaser: int) -> int:
    """Bytes of the command ring."""
    return (Cbaser(cbaser).Size + 1) * PAGE
