"""The tables of an ITS in guest memory, in layout 0 of KVM's ABI (Documentation/virt/kvm/devices/arm-vgic-its.rst).

Entries are 8 bytes, little-endian. Devices and events are chains: `next` is the distance to the next entry of the table that is in use,
0 in the last one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence

from trapline.errors import KvmError
from trapline.registers import Field, Register

from .its_state import COLLECTION_TABLE, DEVICE_TABLE, ENTRY_BYTES, Baser, Collection, Device, Its
from .lpi import LPI_ID_BITS
from .state import FIRST_LPI

TABLE_PAGE, MEMORY_PAGE = 0x1_0000, 0x1000
ID_BITS = 16
"""Of devices and of collections."""

UNMAPPED_TARGET = 0xFFFF_FFFF
"""RDBase of a collection that leads nowhere."""


class DeviceEntry(Register):
    """One device. `Size` is the number of EventID bits minus one."""

    Size = Field(4, 0)
    ITT_addr = Field(48, 5)
    next = Field(62, 49)
    V = Field(63)


class CollectionEntry(Register):
    """One collection; the first one without V ends the table."""

    ICID = Field(15, 0)
    RDBase = Field(51, 16)
    V = Field(63)


class EventEntry(Register):
    """One event; it is not mapped if pINTID is 0."""

    ICID = Field(15, 0)
    pINTID = Field(47, 16)
    next = Field(63, 48)


class LevelOneEntry(Register):
    """One page of a table in two levels."""

    Address = Field(51, 16)
    V = Field(63)


ITT_SHIFT = 8
"""Tables of events are aligned to 256 bytes."""


# ---- where entries are ------------------------------------------------------------------------------------------------------------


def table_address(baser: int) -> int:
    """Where a GITS_BASER<n> says its table is."""
    return (baser & Baser.Address.mask) | Baser(baser).AddressHigh << 48


def table_bytes(baser: int) -> int:
    """How long it is."""
    return (Baser(baser).Size + 1) * TABLE_PAGE


def entry_address(its: Its, kind: int, number: int) -> int | None:
    """Guest address of a device's or collection's entry; None if the table does not reach so far, or not into memory."""
    baser = its.tables[kind]
    if number >> ID_BITS:
        return None
    address, size = table_address(baser), table_bytes(baser)
    if Baser(baser).Indirect:
        page, number = divmod(number, TABLE_PAGE // ENTRY_BYTES)
        if page >= size // ENTRY_BYTES:
            return None
        entry = LevelOneEntry(_read(its, address + page * ENTRY_BYTES))
        if not entry.V:
            return None
        address = entry & LevelOneEntry.Address.mask
    elif number >= size // ENTRY_BYTES:
        return None
    return _visible(its, address + number * ENTRY_BYTES)


def event_address(its: Its, device: Device, event_id: int) -> int | None:
    """Guest address of an event's entry; None if the device has no such event, or it is not in memory."""
    if event_id >> device.bits:
        return None
    return _visible(its, device.itt + event_id * ENTRY_BYTES)


def clear(its: Its, address: int) -> None:
    """Mark an entry as not mapped."""
    _write(its, address, 0)


def _visible(its: Its, address: int) -> int | None:
    try:
        its.memory.read(address, ENTRY_BYTES)
    except KvmError:
        return None
    return address


def _read(its: Its, address: int) -> int:
    return int.from_bytes(its.memory.read(address, ENTRY_BYTES), "little")


def _write(its: Its, address: int, value: int) -> None:
    its.memory.write(address, value.to_bytes(ENTRY_BYTES, "little"))


# ---- save -------------------------------------------------------------------------------------------------------------------------


def save(its: Its) -> None:
    """Write all that is mapped to guest memory. EINVAL if a device has no entry, EFAULT if a table is not in memory."""
    if its.tables[DEVICE_TABLE] & Baser.Valid.mask:
        _save_devices(its, DEVICE_TABLE)
    if its.tables[COLLECTION_TABLE] & Baser.Valid.mask:
        _save_collections(its, its.tables[COLLECTION_TABLE])


def _save_devices(its: Its, kind: int) -> None:
    ids = sorted(its.devices)
    for number, distance in _distances(ids, DeviceEntry.next.ones):
        device = its.devices[number]
        address = entry_address(its, kind, number)
        if address is None:
            raise KvmError(errno.EINVAL, f"device {number:#x} has no entry in the table")
        for event_id, step in _distances(sorted(device.events), EventEntry.next.ones):
            event = device.events[event_id]
            collection = 0 if event.collection is None else event.collection.id
            entry = EventEntry(ICID=collection, pINTID=event.irq.intid, next=step)
            _write(its, device.itt + event_id * ENTRY_BYTES, entry)
        _write(its, address, DeviceEntry(V=1, next=distance, ITT_addr=device.itt >> ITT_SHIFT, Size=device.bits - 1))


def _distances(ids: Sequence[int], most: int) -> Iterable[tuple[int, int]]:
    """Each id with the distance to the next, at most `most`; 0 for the last."""
    for this, following in zip(ids, (*ids[1:], None), strict=False):
        yield this, 0 if following is None else min(following - this, most)


def _save_collections(its: Its, baser: int) -> None:
    address = table_address(baser)
    end = address + table_bytes(baser)
    for collection in its.collections.values():
        target = UNMAPPED_TARGET if collection.target is None else collection.target.vcpu.id
        _write(its, address, CollectionEntry(V=1, RDBase=target, ICID=collection.id))
        address += ENTRY_BYTES
    if address < end:
        _write(its, address, 0)


# ---- restore ----------------------------------------------------------------------------------------------------------------------


def restore(its: Its) -> None:
    """Map what the tables in guest memory say. EINVAL for entries that make no sense, EEXIST for a collection that there is already."""
    collections, devices = its.tables[COLLECTION_TABLE], its.tables[DEVICE_TABLE]
    if collections & Baser.Valid.mask:
        _restore_collections(its, collections)
    if devices & Baser.Valid.mask:
        address, size = table_address(devices), table_bytes(devices)
        handle = _restore_page if Baser(devices).Indirect else _restore_device
        _scan(its, address, size, 0, handle)


Handle = Callable[[Its, int, int], int | None]
"""What an entry means: the distance to the next one, 0 if it was the last, None if it is not in use."""


def _scan(its: Its, address: int, size: int, first: int, handle: Handle) -> bool:
    """Follow a chain of entries; whether the last one was found. Memory is read a page at a time: most entries are not in use."""
    end = address + size
    page, entries = -1, b""
    while address < end:
        if address // MEMORY_PAGE != page:
            page = address // MEMORY_PAGE
            entries = its.memory.read(page * MEMORY_PAGE, MEMORY_PAGE)
        at = address % MEMORY_PAGE
        step = handle(its, first, int.from_bytes(entries[at : at + ENTRY_BYTES], "little"))
        if step == 0:
            return True
        step = 1 if step is None else step
        first += step
        address += step * ENTRY_BYTES
    return False


def _restore_collections(its: Its, baser: int) -> None:
    address = table_address(baser)
    for at in range(address, address + table_bytes(baser), ENTRY_BYTES):
        entry = CollectionEntry(_read(its, at))
        if not entry.V:
            return
        number = entry.RDBase & UNMAPPED_TARGET
        target = its.cpu(number)
        if target is None and number != UNMAPPED_TARGET:
            raise KvmError(errno.EINVAL, f"collection {entry.ICID:#x} leads to a vCPU that does not exist")
        if entry.ICID in its.collections:
            raise KvmError(errno.EEXIST, f"collection {entry.ICID:#x} is mapped already")
        if entry_address(its, COLLECTION_TABLE, entry.ICID) is None:
            raise KvmError(errno.EINVAL, f"collection {entry.ICID:#x} has no place in the table")
        its.collections[entry.ICID] = Collection(entry.ICID, target)


def _restore_page(its: Its, number: int, value: int) -> int | None:
    entry = LevelOneEntry(value)
    if not entry.V:
        return None
    per_page = TABLE_PAGE // ENTRY_BYTES
    found_last = _scan(its, entry & LevelOneEntry.Address.mask, TABLE_PAGE, number * per_page, _restore_device)
    return 0 if found_last else None


def _restore_device(its: Its, number: int, value: int) -> int | None:
    entry = DeviceEntry(value)
    if not entry.V:
        return None
    bits = entry.Size + 1
    if bits > LPI_ID_BITS or entry_address(its, DEVICE_TABLE, number) is None:
        raise KvmError(errno.EINVAL, f"device {number:#x} has too many events, or no place in the table")
    its.drop_device(number)
    device = its.devices[number] = Device(number, entry.ITT_addr << ITT_SHIFT, bits)

    def restore_event(its: Its, event_id: int, value: int) -> int | None:
        return _restore_event(its, device, event_id, value)

    try:
        _scan(its, device.itt, ENTRY_BYTES << bits, 0, restore_event)
    except KvmError:
        its.drop_device(number)
        raise
    return entry.next


def _restore_event(its: Its, device: Device, event_id: int, value: int) -> int | None:
    entry = EventEntry(value)
    if not entry.pINTID:
        return None
    collection = its.collections.get(entry.ICID)
    if entry.pINTID < FIRST_LPI or event_id + entry.next >= 1 << device.bits or collection is None:
        raise KvmError(errno.EINVAL, f"event {event_id:#x} of device {device.id:#x} leads to no LPI or no collection")
    its.add_event(device, event_id, entry.pINTID, collection)
    return entry.next
