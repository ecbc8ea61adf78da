"""Memory slots: which guest physical addresses are memory, and where in the process it is.

Readers take the active set, an immutable value, and never wait. A writer holds `slots_lock`, makes the next set beside it and
publishes it by one store. A slot that goes away or moves is first published as invalid, then its translations are removed, then the
final set is published; so after the call returned nobody can use the old slot: a fault that began before it sees that the
generation changed and starts again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from errno import EEXIST, EFAULT, EINVAL, ENOENT

from trapline.abi.memory import UserspaceMemoryRegion2
from trapline.abi.vm import MEM_LOG_DIRTY_PAGES, MEM_READONLY, UserspaceMemoryRegion
from trapline.errors import KvmError
from trapline.host.user import PAGE_MASK, PAGE_SHIFT, copy_from_user, copy_to_user, valid_range
from trapline.kvm.dirty import DirtyBitmap, DirtyTracking
from trapline.sync import Cell, Lock

MAX_SLOTS = 32767
MAX_PAGES = (1 << 31) - 1
ADDRESS_SPACES = 1
UPDATE_IN_PROGRESS = 1 << 63
"""Bit of the generation while a change is being published."""

FLAGS_OF_FIRST_VERSION = MEM_LOG_DIRTY_PAGES | MEM_READONLY


@dataclass(frozen=True, slots=True)
class Memslot:
    """One slot. Addresses and sizes in bytes, page aligned."""

    id: int
    gpa: int
    size: int
    hva: int
    flags: int
    invalid: bool = False
    dirty: DirtyBitmap | None = None

    @property
    def end(self) -> int:
        """First guest address after the slot."""
        return self.gpa + self.size

    @property
    def readonly(self) -> bool:
        """The guest's writes exit to userspace."""
        return bool(self.flags & MEM_READONLY)

    @property
    def pages(self) -> int:
        """How many pages it has."""
        return self.size >> PAGE_SHIFT

    @property
    def logging(self) -> bool:
        """Writes are recorded, in the slot's bitmap or in rings."""
        return bool(self.flags & MEM_LOG_DIRTY_PAGES)

    def hva_of(self, gpa: int) -> int:
        """Where a guest address of this slot is in the process."""
        return self.hva + gpa - self.gpa

    def mark_dirty(self, gpa: int) -> None:
        """A page was written by nobody's vCPU, or by one without a ring. If there is no bitmap either, that is not recorded."""
        if self.dirty is not None:
            self.dirty.mark((gpa - self.gpa) >> PAGE_SHIFT)


class SlotSet:
    """An immutable set of slots that do not overlap, found by guest address or by id."""

    __slots__ = ("_slots", "_starts", "by_id", "generation")

    def __init__(self, slots: Iterable[Memslot], generation: int) -> None:
        self._slots = sorted(slots, key=lambda slot: slot.gpa)
        self._starts = [slot.gpa for slot in self._slots]
        self.by_id = {slot.id: slot for slot in self._slots}
        self.generation = generation

    def find(self, gpa: int) -> Memslot | None:
        """The valid slot that holds a guest address."""
        index = bisect_right(self._starts, gpa) - 1
        if index < 0:
            return None
        slot = self._slots[index]
        return slot if gpa < slot.gpa + slot.size and not slot.invalid else None

    def overlaps(self, gpa: int, end: int, ignore: int) -> bool:
        """Whether a range meets a slot other than the one with id `ignore`."""
        return any(slot.gpa < end and gpa < slot.end for slot in self._slots if slot.id != ignore)

    def __iter__(self) -> Iterator[Memslot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)


class Memslots:
    """The slots of one VM and their changes."""

    def __init__(
        self,
        prepare: Callable[[Memslot], None],
        flush: Callable[[Memslot], None],
        synchronize: Callable[[], None],
        tracking: DirtyTracking | None = None,
    ) -> None:
        """`prepare` may refuse a slot; `flush` removes its translations; `synchronize` waits for readers that hold an old set."""
        self._tracking = tracking if tracking is not None else DirtyTracking()
        self.slots_lock = Lock("slots_lock", protects="changes of memory slots, one at a time")
        self._active: Cell[SlotSet] = Cell("memslots", SlotSet((), 0))
        self._prepare = prepare
        self._flush = flush
        self._synchronize = synchronize

    @property
    def active(self) -> SlotSet:
        """The set that is in force now."""
        return self._active.load()

    def set_region(self, region: UserspaceMemoryRegion | UserspaceMemoryRegion2) -> None:
        """KVM_SET_USER_MEMORY_REGION: create, move, re-flag or delete."""
        with self.slots_lock:
            wanted = self._validate(region)
            old = self.active.by_id.get(wanted.id)
            if wanted.size == 0:
                if old is None:
                    raise KvmError(EINVAL)
                self._retire(old, None)
            elif old is None:
                self._create(wanted)
            else:
                self._change(old, wanted)

    @staticmethod
    def _validate(region: UserspaceMemoryRegion | UserspaceMemoryRegion2) -> Memslot:
        """The checks that need no other slot, in the order in which Linux makes them."""
        checks = (
            not region.flags & ~FLAGS_OF_FIRST_VERSION,
            region.slot & 0xFFFF < MAX_SLOTS,
            not region.memory_size & PAGE_MASK,
            not region.guest_phys_addr & PAGE_MASK,
            not region.userspace_addr & PAGE_MASK,
            valid_range(region.userspace_addr, region.memory_size),
            region.slot >> 16 < ADDRESS_SPACES,
            not region.memory_size or region.guest_phys_addr + region.memory_size < 1 << 64,
            region.memory_size >> PAGE_SHIFT <= MAX_PAGES,
        )
        if not all(checks):
            raise KvmError(EINVAL)
        return Memslot(region.slot, region.guest_phys_addr, region.memory_size, region.userspace_addr, region.flags)

    def _create(self, slot: Memslot) -> None:
        self._check_overlap(slot)
        self._prepare(slot)
        self._publish(slot.id, self._with_bitmap(slot, None))

    def _change(self, old: Memslot, wanted: Memslot) -> None:
        if wanted.size != old.size or wanted.hva != old.hva or (wanted.flags ^ old.flags) & MEM_READONLY:
            raise KvmError(EINVAL)
        if wanted.gpa != old.gpa:
            self._check_overlap(wanted)
            self._prepare(wanted)
            self._retire(old, self._with_bitmap(wanted, old))
        elif wanted.flags != old.flags:
            self._prepare(wanted)
            changed = self._with_bitmap(wanted, old)
            self._publish(old.id, changed)
            if changed.logging:
                self._flush(changed)  # mappings made before may be writable, or blocks

    def _check_overlap(self, slot: Memslot) -> None:
        if self.active.overlaps(slot.gpa, slot.end, slot.id):
            raise KvmError(EEXIST)

    def _with_bitmap(self, slot: Memslot, old: Memslot | None) -> Memslot:
        """The slot with a dirty bitmap if it logs into one: the old one's, or a new one."""
        if not slot.logging:
            return slot
        bitmap = old.dirty if old is not None else None
        return replace(slot, dirty=bitmap or self._tracking.new_bitmap(slot.pages))

    def _retire(self, old: Memslot, new: Memslot | None) -> None:
        """Take a slot away, and perhaps put it elsewhere."""
        self._publish(old.id, replace(old, invalid=True))
        self._flush(old)
        self._publish(old.id, new)

    def _publish(self, slot_id: int, slot: Memslot | None) -> None:
        """Put one slot's new state in force and wait for readers of the old set."""
        current = self.active
        slots = [other for other in current if other.id != slot_id]
        if slot is not None:
            slots.append(slot)
        generation = current.generation & ~UPDATE_IN_PROGRESS
        self._active.store(SlotSet(slots, generation | UPDATE_IN_PROGRESS))
        self._synchronize()
        self._active.store(SlotSet(slots, generation + ADDRESS_SPACES))

    def dirty_log(self, slot_id: int, first_page: int = 0) -> Memslot:
        """The slot with this id, which must log into a bitmap. KvmError(EINVAL) if a part of one begins within a word."""
        if slot_id & 0xFFFF >= MAX_SLOTS or slot_id >> 16 >= ADDRESS_SPACES or first_page % 64:
            raise KvmError(EINVAL)
        slot = self.active.by_id.get(slot_id)
        if slot is None or slot.dirty is None:
            raise KvmError(ENOENT)
        return slot


class GuestAccess:
    """Reads and writes of guest memory on the hypervisor's own behalf, through the slots."""

    def __init__(self, memslots: Memslots, reading: Callable[[], AbstractContextManager[None]]) -> None:
        self._memslots = memslots
        self._reading = reading

    def read(self, gpa: int, size: int) -> bytes:
        """Guest memory; KvmError if a part of it is not memory."""
        with self._reading():
            return b"".join(copy_from_user(slot.hva_of(at), count) for slot, at, count in self._pieces(gpa, size))

    def write(self, gpa: int, data: bytes) -> None:
        """Write guest memory; KvmError if a part of it is not writable memory."""
        done = 0
        with self._reading():
            for slot, at, count in self._pieces(gpa, len(data)):
                if slot.readonly:
                    raise KvmError(EFAULT)
                copy_to_user(slot.hva_of(at), data[done : done + count])
                slot.mark_dirty(at)
                done += count

    def _pieces(self, gpa: int, size: int) -> Iterator[tuple[Memslot, int, int]]:
        """The range cut at page ends, each piece with its slot."""
        slots = self._memslots.active
        while size:
            slot = slots.find(gpa)
            if slot is None:
                raise KvmError(EFAULT)
            count = min(size, PAGE_MASK + 1 - (gpa & PAGE_MASK))
            yield slot, gpa, count
            gpa, size = gpa + count, size - count
