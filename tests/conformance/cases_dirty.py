"""Dirty logs and dirty rings: the calls, and what a guest's writes leave in them."""

from __future__ import annotations

from errno import E2BIG, EFAULT, EINVAL, ENOENT, ENXIO

from tests.conformance.cases_system import same
from tests.conformance.frame import GENERIC, PAGE, Cases, Trial
from tests.conformance.guest import DATA, NOWHERE
from trapline.abi.caps import Cap
from trapline.abi.exits import DirtyRingFull, Exit, MmioExit
from trapline.abi.memory import KVM_CLEAR_DIRTY_LOG as CLEAR
from trapline.abi.memory import KVM_RESET_DIRTY_RINGS as RESET
from trapline.abi.memory import DirtyGfn, DirtyGfnFlag
from trapline.abi.system import KVM_CHECK_EXTENSION
from trapline.abi.vcpu import KVM_RUN
from trapline.abi.vm import KVM_ENABLE_CAP, KVM_SET_USER_MEMORY_REGION, MemoryFlag
from trapline.abi.vm import KVM_GET_DIRTY_LOG as GET

case = Cases(__name__)
LOG = MemoryFlag.LOG_DIRTY_PAGES
MANUAL, RING, WITH_BITMAP = Cap.MANUAL_DIRTY_LOG_PROTECT2, Cap.DIRTY_LOG_RING_ACQ_REL, Cap.DIRTY_LOG_RING_WITH_BITMAP
MiB = 1 << 20
END = ("store", NOWHERE, 1)
PAGES = 4

case(KVM_CHECK_EXTENSION, 0, "both options of manual protection", lambda t: same(t.cap(MANUAL), 3), GENERIC)
case(KVM_CHECK_EXTENSION, 0, "a MiB of dirty ring", lambda t: same(t.cap(RING), MiB), GENERIC)
case(KVM_CHECK_EXTENSION, 0, "no dirty ring of x86's order", lambda t: same(t.cap(Cap.DIRTY_LOG_RING), 0))

# --- capabilities -----------------------------------------------------------------------------------------------------------------

for options in (0, 1, 3):
    case(KVM_ENABLE_CAP, 0, f"manual protection {options}", lambda t, options=options: t.enable(MANUAL, options), GENERIC)
for options in (2, 4, 5, 1 << 32):
    case(KVM_ENABLE_CAP, EINVAL, f"manual protection {options:#x}", lambda t, options=options: t.enable(MANUAL, options), GENERIC)
case(KVM_ENABLE_CAP, EINVAL, "manual protection with a flag", lambda t: t.enable(MANUAL, 1, flags=1), GENERIC)
case(KVM_ENABLE_CAP, 0, "manual protection, and off again", lambda t: [t.enable(MANUAL, 3), t.enable(MANUAL, 0)], GENERIC)
for size in (PAGE, 2 * PAGE, 64 << 10, MiB):
    case(KVM_ENABLE_CAP, 0, f"a ring of {size:#x}", lambda t, size=size: t.enable(RING, size), GENERIC, needs=RING)
for size in (0, 16, 2048, PAGE - 1, PAGE + 1, 3 * PAGE, MiB + PAGE):
    case(KVM_ENABLE_CAP, EINVAL, f"a ring of {size:#x}", lambda t, size=size: t.enable(RING, size), GENERIC, needs=RING)
case(KVM_ENABLE_CAP, E2BIG, "a ring of 2 MiB", lambda t: t.enable(RING, 2 * MiB), GENERIC, needs=RING)
case(KVM_ENABLE_CAP, E2BIG, "a ring of 1 GiB", lambda t: t.enable(RING, 1 << 30), GENERIC, needs=RING)


@case.of(KVM_ENABLE_CAP, EINVAL, "a ring, twice", GENERIC, needs=RING)
def _twice(t: Trial):
    t.enable(RING, PAGE)
    yield
    t.enable(RING, PAGE)


@case.of(KVM_ENABLE_CAP, EINVAL, "a ring when there is a vCPU", GENERIC, needs=RING)
def _late(t: Trial):
    assert t.vcpu
    yield
    t.enable(RING, PAGE)


case(KVM_ENABLE_CAP, EINVAL, "a bitmap besides no ring", lambda t: t.enable(WITH_BITMAP), GENERIC)
case(KVM_ENABLE_CAP, 0, "a bitmap besides the ring", lambda t: [t.enable(RING, PAGE), t.enable(WITH_BITMAP)], GENERIC, needs=WITH_BITMAP)


@case.of(KVM_ENABLE_CAP, EINVAL, "a bitmap besides the ring when there are slots", GENERIC, needs=WITH_BITMAP)
def _slots(t: Trial):
    t.enable(RING, PAGE)
    t.region()
    yield
    t.enable(WITH_BITMAP)


CHUNK, BLOCKS = Cap.ARM_EAGER_SPLIT_CHUNK_SIZE, Cap.ARM_SUPPORTED_BLOCK_SIZES
case(KVM_CHECK_EXTENSION, 0, "sizes of blocks", lambda t: same(t.cap(BLOCKS) & ~(1 << 30), 0x20_1000), needs=BLOCKS)
case(KVM_CHECK_EXTENSION, 0, "no block is split ahead at first", lambda t: same(t.cap(CHUNK), 0))
for size in (0, PAGE, 2 * MiB):
    case(KVM_ENABLE_CAP, 0, f"split {size:#x} ahead", lambda t, size=size: [t.enable(CHUNK, size), same(t.cap(CHUNK), size)], needs=BLOCKS)
for size in (1, 2 * PAGE, MiB, 1 << 40):
    case(KVM_ENABLE_CAP, EINVAL, f"split {size:#x} ahead", lambda t, size=size: t.enable(CHUNK, size), needs=BLOCKS)


@case.of(KVM_ENABLE_CAP, EINVAL, "split ahead when there are slots", needs=BLOCKS)
def _split_late(t: Trial):
    t.region()
    yield
    t.enable(CHUNK, 0)


# --- the bitmap's calls -----------------------------------------------------------------------------------------------------------


def get(t: Trial, slot: int = 0, pages: int = PAGES, bitmap: int | None = None) -> int:
    """KVM_GET_DIRTY_LOG; the bits."""
    address = t.bitmap(pages) if bitmap is None else bitmap
    t(GET, slot=slot, dirty_bitmap=address)
    return t.bits(pages)


def clear(t: Trial, first: int = 0, count: int = PAGES, bits: int = -1, slot: int = 0, bitmap: int | None = None) -> int:
    """KVM_CLEAR_DIRTY_LOG of the given bits."""
    address = t.bitmap(count, bits & (1 << max(count, 64)) - 1) if bitmap is None else bitmap
    return t(CLEAR, slot=slot, first_page=first, num_pages=count, dirty_bitmap=address)


def logging(t: Trial, pages: int = PAGES) -> None:
    """Slot 0 logs."""
    t.region(flags=LOG, size=pages * PAGE)


def large(t: Trial) -> None:
    """Slot 0 logs and has 64 pages."""
    t.region(flags=LOG, size=64 * PAGE, gpa=0x10_0000)


for call, make in ((GET, get), (CLEAR, clear)):
    case(call, ENOENT, "no such slot", lambda t, make=make: make(t, slot=7), GENERIC)
    case(call, ENOENT, "a slot that does not log", lambda t, make=make: [t.region(), make(t)], GENERIC)
    case(call, EINVAL, "a slot after the last", lambda t, make=make: make(t, slot=32767), GENERIC)
    case(call, EINVAL, "another address space", lambda t, make=make: make(t, slot=2 << 16), GENERIC)
    case(call, 0, "a slot that logs", lambda t, make=make: [logging(t), make(t)], GENERIC)
    case(call, EFAULT, "no bitmap", lambda t, make=make: [logging(t), make(t, bitmap=t.nowhere)], GENERIC)
    case(call, ENXIO, "rings without bitmaps", lambda t, make=make: [t.enable(RING, PAGE), make(t)], GENERIC, needs=RING)
    case(
        call, ENOENT, "rings with bitmaps, no slot", lambda t, make=make: [t.enable(RING, PAGE), t.enable(WITH_BITMAP), make(t)], GENERIC,
        needs=WITH_BITMAP,
    )  # fmt: skip
    case(call, ENOENT, "logging was switched off", lambda t, make=make: [logging(t), t.region(), make(t)], GENERIC)
case(CLEAR, EINVAL, "a first page within a word", lambda t: [logging(t, 64), clear(t, first=1, count=63)], GENERIC)
case(CLEAR, EINVAL, "a first page within a word, of no slot: that first", lambda t: clear(t, first=1), GENERIC)
case(CLEAR, EINVAL, "a first page beyond the slot", lambda t: [logging(t), clear(t, first=64, count=0)], GENERIC)
case(CLEAR, EINVAL, "pages beyond the slot", lambda t: [logging(t), clear(t, count=64)], GENERIC)
case(CLEAR, EINVAL, "one page beyond the slot", lambda t: [logging(t), clear(t, count=PAGES + 1)], GENERIC)
case(CLEAR, EINVAL, "pages that end within a word", lambda t: [logging(t), clear(t, count=3)], GENERIC)
case(CLEAR, 0, "all of a slot that is whole words", lambda t: [large(t), clear(t, count=64)], GENERIC)
case(CLEAR, 0, "no pages", lambda t: [logging(t), clear(t, count=0)], GENERIC)
case(CLEAR, 0, "no pages, after the last", lambda t: [large(t), clear(t, first=64, count=0)], GENERIC)
case(CLEAR, EINVAL, "a huge first page", lambda t: [logging(t), clear(t, first=1 << 63, count=64)], GENERIC)


# --- what is in the bitmap --------------------------------------------------------------------------------------------------------


def writes(t: Trial, *pages: int, flags: int = LOG) -> Exit:
    """A guest that writes to these pages of slot 0 and then exits."""
    t.region(flags=flags)
    t.program(*(("store", DATA + page * PAGE, 1) for page in pages), END)
    return t.run()


case(GET, 0, "nothing was written", lambda t: [logging(t), same(get(t), 0)], GENERIC)
case(GET, 0, "what was written", lambda t: [writes(t, 0, 2), same(get(t), 0b101)], GENERIC)
case(GET, 0, "what was written, once", lambda t: [writes(t, 1), same(get(t), 2), same(get(t), 0)], GENERIC)
case(GET, 0, "userspace's own writes are not logged", lambda t: [logging(t), t.buffer.__setitem__(0, 1), same(get(t), 0)], GENERIC)


@case.of(GET, 0, "reads are not logged", GENERIC)
def _reads(t: Trial):
    logging(t)
    t.program(("load", DATA, 0), ("load", DATA + PAGE, 0), END)
    t.run()
    same(get(t), 0)


@case.of(GET, 0, "a page is logged anew after each call", GENERIC)
def _anew(t: Trial):
    logging(t)
    t.program(*[("store", DATA, 1), END, ("store", DATA + PAGE, 1), END, ("store", DATA, 2), END])
    for expected in (1, 2, 1):
        t.run()
        same(get(t), expected)


@case.of(GET, 0, "a slot that moved keeps its log", GENERIC)
def _moved(t: Trial):
    writes(t, 3)
    t.region(flags=LOG, gpa=DATA + 4 * PAGE)
    same(get(t), 0b1000)


@case.of(GET, 0, "logging that is switched on again starts afresh", GENERIC)
def _afresh(t: Trial):
    writes(t, 3)
    t.region()
    t.region(flags=LOG)
    same(get(t), 0)


@case.of(GET, 0, "logging that begins while the page is writable", GENERIC)
def _begins(t: Trial):
    t.region()
    t.program(("store", DATA, 1), END, ("store", DATA, 2), END)
    t.run()
    t.region(flags=LOG)
    t.run()
    same(get(t), 1)


@case.of(GET, 0, "manual protection: reading clears nothing", GENERIC)
def _manual(t: Trial):
    t.enable(MANUAL, 1)
    writes(t, 1, 3)
    same(get(t), 0b1010)
    same(get(t), 0b1010)


@case.of(CLEAR, 0, "manual protection: what is cleared is gone, and only that", GENERIC)
def _manual_clear(t: Trial):
    t.enable(MANUAL, 1)
    writes(t, 1, 3)
    clear(t, bits=0b0010)
    same(get(t), 0b1000)
    clear(t, bits=0b0111)
    same(get(t), 0b1000)


@case.of(CLEAR, 0, "a cleared page is logged when it is written again", GENERIC)
def _again(t: Trial):
    t.enable(MANUAL, 1)
    logging(t)
    t.program(("store", DATA, 1), END, ("store", DATA, 2), END)
    t.run()
    clear(t)
    same(get(t), 0)
    t.run()
    same(get(t), 1)


case(GET, 0, "initially set: all pages", lambda t: [t.enable(MANUAL, 3), logging(t), same(get(t), 0b1111)], GENERIC)
case(GET, 0, "initially set: when logging begins", lambda t: [t.enable(MANUAL, 3), t.region(), logging(t), same(get(t), 0b1111)], GENERIC)


@case.of(CLEAR, 0, "initially set: cleared, then written", GENERIC)
def _initially(t: Trial):
    t.enable(MANUAL, 3)
    logging(t)
    t.program(("store", DATA + PAGE, 1), END)
    clear(t)
    same(get(t), 0)
    t.run()
    same(get(t), 0b10)


@case.of(CLEAR, EFAULT, "no bitmap, and nothing is lost", GENERIC)
def _nothing_lost(t: Trial):
    t.enable(MANUAL, 1)
    writes(t, 2)
    try:
        clear(t, bitmap=t.nowhere)
    except OSError:
        same(get(t), 0b100)
    yield
    clear(t, bitmap=t.nowhere)


@case.of(KVM_SET_USER_MEMORY_REGION, 0, "the log goes with its slot", GENERIC)
def _goes(t: Trial):
    writes(t, 1)
    t.region(size=0)
    logging(t)
    same(get(t), 0)


# --- rings ------------------------------------------------------------------------------------------------------------------------

DIRTY, HARVESTED = DirtyGfnFlag.DIRTY, DirtyGfnFlag.RESET


class Ring:
    """A vCPU's ring of one page."""

    def __init__(self, t: Trial, on: int | None = None) -> None:
        self.entries = (DirtyGfn * (PAGE // 16)).from_buffer(t.backend.map_ring(t.vcpu if on is None else on, PAGE))

    def dirty(self) -> list[tuple[int, int]]:
        """Slot and page of the entries that are filled and not harvested, from the ring's start on."""
        return [(entry.slot, entry.offset) for entry in self.entries if entry.flags == DIRTY]

    def harvest(self, *indices: int) -> None:
        """Mark entries as harvested."""
        for index in indices:
            self.entries[index].flags = HARVESTED


def ring_of(t: Trial, *accesses: tuple[str, int, int], slot: int = 3) -> Ring:
    """A VM with rings, and a guest on it; its data is slot 3."""
    t.enable(RING, PAGE)
    t.region(slot, flags=LOG)
    t.program(*accesses)
    return Ring(t)


STORES = tuple(("store", DATA + page * PAGE, 1) for page in (2, 0, 3))
case(RESET, EINVAL, "no rings", lambda t: t(RESET), GENERIC)
case(RESET, 0, "nothing to reset", lambda t: [t.enable(RING, PAGE), same(t(RESET), 0)], GENERIC, needs=RING)


@case.of(KVM_RUN, 0, "entries in the order of the writes", GENERIC, needs=RING)
def _order(t: Trial):
    ring = ring_of(t, *STORES, END)
    assert isinstance(t.run(), MmioExit)
    assert ring.dirty() == [(3, 2), (3, 0), (3, 3)]


@case.of(RESET, 0, "what was harvested", GENERIC, needs=RING)
def _harvested(t: Trial):
    ring = ring_of(t, *STORES, END)
    t.run()
    ring.harvest(0, 1)
    same(t(RESET), 2)
    assert ring.dirty() == [(3, 3)]
    same(ring.entries[0].flags | ring.entries[1].flags, 0)
    same(t(RESET), 0)


@case.of(RESET, 0, "only what is harvested from the start on", GENERIC, needs=RING)
def _in_order(t: Trial):
    ring = ring_of(t, *STORES, END)
    t.run()
    ring.harvest(1)
    same(t(RESET), 0)
    ring.harvest(0)
    same(t(RESET), 2)


@case.of(RESET, 0, "nothing that is not harvested", GENERIC, needs=RING)
def _not_harvested(t: Trial):
    ring = ring_of(t, *STORES, END)
    t.run()
    same(t(RESET), 0)
    same(len(ring.dirty()), 3)


@case.of(RESET, 0, "a page that was reset is entered again when it is written again", GENERIC, needs=RING)
def _reenters(t: Trial):
    ring = ring_of(t, ("store", DATA, 1), END, ("store", DATA, 2), END)
    t.run()
    ring.harvest(0)
    same(t(RESET), 1)
    t.run()
    assert ring.dirty() == [(3, 0)]
    same(ring.entries[1].flags, DIRTY)


@case.of(RESET, 0, "entries of a slot that is gone", GENERIC, needs=RING)
def _gone(t: Trial):
    ring = ring_of(t, *STORES, END)
    t.run()
    t.region(3, size=0)
    ring.harvest(0, 1, 2)
    same(t(RESET), 3)


@case.of(RESET, 0, "entries that userspace spoiled", GENERIC, needs=RING)
def _spoiled(t: Trial):
    ring = ring_of(t, *STORES, END)
    t.run()
    ring.entries[0].slot, ring.entries[1].offset, ring.entries[2].slot = 0x7FFF_FFFF, 1 << 60, 1 << 16
    ring.harvest(0, 1, 2)
    same(t(RESET), 3)


@case.of(KVM_RUN, 0, "a slot that does not log is not in the ring", GENERIC, needs=RING)
def _silent(t: Trial):
    t.enable(RING, PAGE)
    t.region(3)
    t.program(*STORES, END)
    ring = Ring(t)
    t.run()
    assert ring.dirty() == []


FULL = PAGE // 16 - 64
"""Entries with which a ring of one page counts as full."""
MANY = 0x10_0000


def fill(t: Trial) -> Ring:
    """A guest of arm64 that writes to more pages than the ring has entries, then exits."""
    t.enable(RING, PAGE)
    t.region(3, flags=LOG, gpa=MANY, size=512 * PAGE, hva=t.large(512))
    t.loop(MANY, 400)
    return Ring(t)


@case.of(KVM_RUN, 0, "a full ring stops the guest until it is reset", needs=RING)
def _full(t: Trial):
    ring = fill(t)
    assert isinstance(t.run(), DirtyRingFull)
    assert isinstance(t.run(), DirtyRingFull), "and again"
    found = ring.dirty()
    same(len(found), FULL)
    assert found == [(3, page) for page in range(FULL)]
    ring.harvest(*range(FULL))
    same(t(RESET), FULL)
    assert isinstance(t.run(), DirtyRingFull)
    order = [*range(FULL, 256), *range(2 * FULL - 256)]
    # The last page of the first round was watched again before its write took place: it is there once more.
    assert [(ring.entries[index].slot, ring.entries[index].offset) for index in order] == [(3, FULL - 1 + page) for page in range(FULL)]
    ring.harvest(*order)
    same(t(RESET), FULL)
    assert isinstance(t.run(), MmioExit), "few pages are left"


@case.of(KVM_RUN, 0, "a full ring of which one entry was reset lets one write pass", needs=RING)
def _one(t: Trial):
    ring = fill(t)
    t.run()
    ring.harvest(0)
    same(t(RESET), 1)
    assert isinstance(t.run(), DirtyRingFull)
    same(ring.entries[FULL].offset, FULL)


@case.of(KVM_RUN, 0, "each vCPU has a ring of its own", GENERIC, needs=RING)
def _own(t: Trial):
    t.enable(RING, PAGE)
    t.region(3, flags=LOG)
    first, second = t.vcpu, t.add_vcpu(1)
    t.program(("store", DATA, 1), END, on=first)
    t.run(first)
    assert Ring(t, first).dirty() == [(3, 0)]
    assert Ring(t, second).dirty() == []
