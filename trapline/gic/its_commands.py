"""The commands that a guest gives an ITS through a ring in its memory (IHI0069, 5.3).

A command that makes no sense is ignored, as the architecture allows: nothing ever stalls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trapline.errors import KvmError

from . import its_tables
from .its_state import COLLECTION_TABLE, DEVICE_TABLE, Cbaser, Collection, Device, Its, ring_size
from .lpi import LPI_ID_BITS
from .state import FIRST_LPI

COMMAND_BYTES = 32


def process(its: Its) -> None:
    """Carry out what is in the ring."""
    base, size = its.cbaser & Cbaser.Address.mask, ring_size(its.cbaser)
    while its.enabled and its.creadr != its.cwriter:
        try:
            words = its.memory.read(base + its.creadr, COMMAND_BYTES)
            command = Command(*(int.from_bytes(words[at : at + 8], "little") for at in range(0, COMMAND_BYTES, 8)))
            handler = COMMANDS.get(command.opcode)
            if handler is not None:
                handler(its, command)
        except KvmError:
            pass  # the ring or a table is not in memory, or LPIs are off: that command did nothing
        its.creadr = (its.creadr + COMMAND_BYTES) % size


@dataclass(frozen=True, slots=True)
class Command:
    """Four doublewords."""

    w0: int
    w1: int
    w2: int
    w3: int

    @property
    def opcode(self) -> int:
        """Which command."""
        return self.w0 & 0xFF

    @property
    def device(self) -> int:
        """DeviceID."""
        return self.w0 >> 32

    @property
    def event(self) -> int:
        """EventID."""
        return self.w1 & 0xFFFF_FFFF

    @property
    def collection(self) -> int:
        """ICID."""
        return self.w2 & 0xFFFF

    @property
    def target(self) -> int:
        """RDbase, a processor number."""
        return self.w2 >> 16 & 0xFFFF_FFFF

    @property
    def other_target(self) -> int:
        """The second RDbase of MOVALL."""
        return self.w3 >> 16 & 0xFFFF_FFFF

    @property
    def valid(self) -> bool:
        """V: map rather than unmap."""
        return bool(self.w2 >> 63)


def _mapd(its: Its, command: Command) -> None:
    """Map a device to its table of events, or unmap it."""
    entry = its_tables.entry_address(its, DEVICE_TABLE, command.device)
    bits = (command.w1 & 0x1F) + 1
    if entry is None or command.valid and bits > LPI_ID_BITS:
        return
    its.drop_device(command.device)
    if command.valid:
        its.devices[command.device] = Device(command.device, command.w2 & 0xF_FFFF_FFFF_FF00, bits)
    else:
        its_tables.clear(its, entry)


def _mapc(its: Its, command: Command) -> None:
    """Map a collection to a vCPU, or unmap it."""
    if not command.valid:
        its.drop_collection(command.collection)
        return
    target = its.cpu(command.target)
    collection = _collection(its, command.collection)
    if target is None or collection is None:
        return
    its.collections[collection.id] = collection
    collection.target = target
    for event in its.events_of(collection):
        its.gic.lpis.move(event.irq, target)


def _collection(its: Its, collection_id: int) -> Collection | None:
    """A collection, new if it was not known; None if the table has no room for it."""
    found = its.collections.get(collection_id)
    if found is None and its_tables.entry_address(its, COLLECTION_TABLE, collection_id) is not None:
        return Collection(collection_id)
    return found


def _map_event(its: Its, command: Command, intid: int) -> None:
    device = its.devices.get(command.device)
    if device is None or command.event in device.events or its_tables.event_address(its, device, command.event) is None:
        return
    collection = _collection(its, command.collection) if FIRST_LPI <= intid < its.gic.lpis.limit else None
    if collection is not None:
        its.add_event(device, command.event, intid, collection)
        its.collections[collection.id] = collection


def _mapti(its: Its, command: Command) -> None:
    """Map an event to an LPI and a collection."""
    _map_event(its, command, command.w1 >> 32)


def _mapi(its: Its, command: Command) -> None:
    """Map an event to the LPI of the same number."""
    _map_event(its, command, command.event)


def _movi(its: Its, command: Command) -> None:
    """Put an event into another collection."""
    event, collection = its.event(command.device, command.event), its.collections.get(command.collection)
    if event is None or event.collection is None or event.collection.target is None:
        return
    if collection is not None and collection.target is not None:
        event.collection = collection
        its.gic.lpis.move(event.irq, collection.target)


def _movall(its: Its, command: Command) -> None:
    """Move all LPIs from one vCPU to another."""
    source, target = its.cpu(command.target), its.cpu(command.other_target)
    if source is not None and target is not None:
        for irq in its.gic.lpis:
            if irq.target is source:
                its.gic.lpis.move(irq, target)


def _discard(its: Its, command: Command) -> None:
    """Unmap an event."""
    event = its.event(command.device, command.event)
    if event is not None and event.collection is not None and event.collection.target is not None:
        device = its.devices[command.device]
        its.drop_event(device, command.event)
        entry = its_tables.event_address(its, device, command.event)
        if entry is not None:
            its_tables.clear(its, entry)


def _int(its: Its, command: Command) -> None:
    """Make an event's LPI pending."""
    its.deliver(command.device, command.event)


def _clear(its: Its, command: Command) -> None:
    """Make it not pending."""
    event = its.event(command.device, command.event)
    if event is not None:
        event.irq.clear_latch()
        its.gic.requeue(event.irq)


def _inv(its: Its, command: Command) -> None:
    """The configuration of one LPI has changed."""
    event = its.event(command.device, command.event)
    if event is not None:
        its.gic.lpis.reload(event.irq.intid)


def _invall(its: Its, command: Command) -> None:
    """The configuration of LPIs of a collection has changed."""
    collection = its.collections.get(command.collection)
    if collection is not None and collection.target is not None:
        its.gic.lpis.reload_all(collection.target)


COMMANDS: Mapping[int, Callable[[Its, Command], None]] = MappingProxyType(
    {
        0x01: _movi,
        0x03: _int,
        0x04: _clear,
        0x08: _mapd,
        0x09: _mapc,
        0x0A: _mapti,
        0x0B: _mapi,
        0x0C: _inv,
        0x0D: _invall,
        0x0E: _movall,
        0x0F: _discard,
    }
)
"""By opcode. What is not here does nothing: SYNC (0x05), because each command is complete when the next begins."""
