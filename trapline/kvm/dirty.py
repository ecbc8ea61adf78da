"""Which pages the guest has written: a bitmap for each slot, or a ring for each vCPU.

A page of a slot that logs is mapped read-only until the guest writes to it: that fault marks it, and it stays writable until it is
watched again. So a bit or an entry is there before the write can be seen, and is never forgotten before userspace has it.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from errno import E2BIG, EINVAL, ENXIO
from typing import TYPE_CHECKING

from trapline.abi.ioctl import implements
from trapline.abi.memory import (
    KVM_CLEAR_DIRTY_LOG,
    KVM_RESET_DIRTY_RINGS,
    RING_MAX_ENTRIES,
    ClearDirtyLog,
    DirtyGfn,
    DirtyGfnFlag,
    ManualProtect,
)
from trapline.abi.vm import KVM_GET_DIRTY_LOG, DirtyLog
from trapline.errors import KvmError
from trapline.host.user import PAGE_SIZE, copy_from_user, copy_to_user
from trapline.sync import Lock

if TYPE_CHECKING:
    from trapline.kvm.memslots import Memslot
    from trapline.kvm.vm import Vm

WORD_BITS = 64
ENTRY_SIZE = ctypes.sizeof(DirtyGfn)
RESERVED_ENTRIES = 64
"""A ring counts as full this many entries before it is: what is under way when a vCPU stops still fits."""

NOT_ZERO = re.compile(rb"[^\0]+")

DIRTY, HARVESTED = DirtyGfnFlag.DIRTY.value, DirtyGfnFlag.RESET.value


class DirtyBitmap:
    """Which pages of one slot were written. Whole 64-bit words, little-endian, as userspace gets them."""

    __slots__ = ("_bits", "_lock", "pages")

    def __init__(self, pages: int, all_set: bool = False) -> None:
        self.pages = pages
        self._lock = Lock("dirty_bitmap", protects="bits")
        self._bits = bytearray(bitmap_bytes(pages))
        if all_set:
            self._bits[:] = ((1 << pages) - 1).to_bytes(len(self._bits), "little")

    def mark(self, page: int) -> None:
        """The page may have been written."""
        with self._lock:
            self._bits[page >> 3] |= 1 << (page & 7)

    def copy(self) -> bytes:
        """The bits."""
        with self._lock:
            return bytes(self._bits)

    def clear(self, first: int, bits: bytes) -> bytes:
        """Clear the bits that are set in `bits`, which begin with page `first`, a multiple of 64. Returns those that were set."""
        start, size = first >> 3, len(bits)
        with self._lock:
            own = int.from_bytes(self._bits[start : start + size], "little")
            cleared = own & int.from_bytes(bits, "little")
            self._bits[start : start + size] = (own ^ cleared).to_bytes(size, "little")
        return cleared.to_bytes(size, "little")


def bitmap_bytes(pages: int) -> int:
    """Bytes of a bitmap: whole words."""
    return (pages + WORD_BITS - 1) // WORD_BITS * (WORD_BITS // 8)


def runs(first: int, bits: bytes) -> Iterator[tuple[int, int]]:
    """The set bits as ranges of pages, [begin, end)."""
    begin = end = -1
    for stretch in NOT_ZERO.finditer(bits):  # most of a bitmap is zero, and C skips that
        for index in range(*stretch.span()):
            byte = bits[index]
            for bit in range(8):
                if byte >> bit & 1:
                    page = first + 8 * index + bit
                    if page != end:
                        if begin >= 0:
                            yield begin, end
                        begin = page
                    end = page + 1
    if begin >= 0:
        yield begin, end


class DirtyRing:
    """One vCPU's ring, in memory that it shares with userspace. Filled by its own thread, emptied under the VM's `slots_lock`."""

    __slots__ = ("_entries", "_filled", "_reset", "_soft_limit", "memory", "size")

    def __init__(self, size: int) -> None:
        """A ring of `size` bytes."""
        self.memory = mmap.mmap(-1, size)
        self.size = size // ENTRY_SIZE
        self._entries = (DirtyGfn * self.size).from_buffer(self.memory)
        self._soft_limit = self.size - RESERVED_ENTRIES
        self._filled = 0
        self._reset = 0

    @property
    def soft_full(self) -> bool:
        """The vCPU has to stop until userspace has taken entries out."""
        return self._filled - self._reset >= self._soft_limit

    def push(self, slot: int, page: int) -> None:
        """A page was written. The entry is complete before its flag says so."""
        entry = self._entries[self._filled % self.size]
        entry.slot, entry.offset = slot, page
        entry.flags = DIRTY
        self._filled += 1

    def take_harvested(self) -> Iterator[tuple[int, int]]:
        """Free the harvested entries at the ring's start, in order: slot and page of each."""
        while (entry := self._entries[self._reset % self.size]).flags & HARVESTED:
            taken = entry.slot, entry.offset
            entry.flags = 0
            self._reset += 1
            yield taken


class DirtyTracking:
    """How a VM tracks writes: chosen before it has vCPUs."""

    def __init__(self) -> None:
        self.manual = ManualProtect(0)
        self.ring_bytes = 0
        self.ring_with_bitmap = False

    @property
    def uses_bitmap(self) -> bool:
        """Slots that log have bitmaps."""
        return not self.ring_bytes or self.ring_with_bitmap

    def new_bitmap(self, pages: int) -> DirtyBitmap | None:
        """The bitmap of a slot that begins to log."""
        if not self.uses_bitmap:
            return None
        return DirtyBitmap(pages, all_set=bool(self.manual & ManualProtect.INITIALLY_SET))


# --- capabilities ------------------------------------------------------------------------------------------------------------------


def enable_manual_protection(vm: Vm, options: int) -> None:
    """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. INITIALLY_SET means something together with ENABLE only."""
    allowed = sum(ManualProtect) if options & ManualProtect.ENABLE else int(ManualProtect.ENABLE)
    if options & ~allowed:
        raise KvmError(EINVAL)
    vm.tracking.manual = ManualProtect(options)


def enable_ring(vm: Vm, size: int) -> None:
    """KVM_CAP_DIRTY_LOG_RING_ACQ_REL: every vCPU to come has a ring of `size` bytes."""
    if not size or size & size - 1 or size < max(PAGE_SIZE, RESERVED_ENTRIES * ENTRY_SIZE):
        raise KvmError(EINVAL)
    if size > RING_MAX_ENTRIES * ENTRY_SIZE:
        raise KvmError(E2BIG)
    with vm.lock:
        if vm.tracking.ring_bytes or vm.vcpus:
            raise KvmError(EINVAL)
        vm.tracking.ring_bytes = size


def enable_ring_with_bitmap(vm: Vm, _: int) -> None:
    """KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP: what no vCPU writes goes into bitmaps. Before there is any slot."""
    if not vm.tracking.ring_bytes:
        raise KvmError(EINVAL)
    with vm.memslots.slots_lock:
        if len(vm.memslots.active):
            raise KvmError(EINVAL)
        vm.tracking.ring_with_bitmap = True


# --- calls -------------------------------------------------------------------------------------------------------------------------


@implements(KVM_GET_DIRTY_LOG)
def get_dirty_log(vm: Vm, log: DirtyLog) -> int:
    """Copy out the bits; unless userspace wants to do that itself, clear them and watch their pages again."""
    with vm.memslots.slots_lock:
        slot = _slot(vm, log.slot)
        assert slot.dirty is not None
        # A page whose bit is copied but not cleared yet may be written once more: its contents are read later, so nothing is lost.
        bits = slot.dirty.copy()
        copy_to_user(log.dirty_bitmap, bits)
        if not vm.tracking.manual:
            vm.arch.write_protect_pages(slot, runs(0, slot.dirty.clear(0, bits)))
    return 0


@implements(KVM_CLEAR_DIRTY_LOG)
def clear_dirty_log(vm: Vm, log: ClearDirtyLog) -> int:
    """Clear bits that userspace has seen, and watch their pages again."""
    with vm.memslots.slots_lock:
        first, count = log.first_page, log.num_pages
        slot = _slot(vm, log.slot, first)
        assert slot.dirty is not None
        rest = slot.dirty.pages - first
        if rest < 0 or count > rest or (count < rest and count % WORD_BITS):
            raise KvmError(EINVAL)
        bits = copy_from_user(log.dirty_bitmap, bitmap_bytes(count))
        inside = int.from_bytes(bits, "little") & (1 << count) - 1
        vm.arch.write_protect_pages(slot, runs(first, slot.dirty.clear(first, inside.to_bytes(len(bits), "little"))))
    return 0


def _slot(vm: Vm, slot_id: int, first_page: int = 0) -> Memslot:
    """The slot that logs into a bitmap, in the order of Linux's checks."""
    if not vm.tracking.uses_bitmap:
        raise KvmError(ENXIO)
    return vm.memslots.dirty_log(slot_id, first_page)


@implements(KVM_RESET_DIRTY_RINGS)
def reset_dirty_rings(vm: Vm, _: int) -> int:
    """Free what userspace has harvested, watch those pages again, and count them."""
    if not vm.tracking.ring_bytes:
        raise KvmError(EINVAL)
    with vm.memslots.slots_lock:
        taken = [entry for vcpu in list(vm.vcpus) if vcpu.ring is not None for entry in vcpu.ring.take_harvested()]
        slots = vm.memslots.active.by_id
        pages: dict[int, set[int]] = {}
        for slot_id, page in taken:
            slot = slots.get(slot_id)
            if slot is not None and page < slot.pages:  # entries are userspace's to write, too
                pages.setdefault(slot_id, set()).add(page)
        for slot_id, numbers in pages.items():
            vm.arch.write_protect_pages(slots[slot_id], [(page, page + 1) for page in sorted(numbers)])
    return len(taken)
