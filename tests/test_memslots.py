"""KVM_SET_USER_MEMORY_REGION: every row of the validation table, and what a change publishes."""

from __future__ import annotations

import errno
import random

import pytest

from trapline.abi.vm import MEM_GUEST_MEMFD, MEM_LOG_DIRTY_PAGES, MEM_READONLY, UserspaceMemoryRegion
from trapline.errors import KvmError
from trapline.kvm.dirty import runs
from trapline.kvm.memslots import UPDATE_IN_PROGRESS, Memslot, Memslots

PAGE = 0x1000
HVA = 0x7F00_0000_0000
IPA_END = 1 << 40


class Recorder:
    """The slots of a VM that maps nothing, and what happened to them."""

    def __init__(self) -> None:
        self.flushed: list[Memslot] = []
        self.during_flush: list[Memslot | None] = []
        self.waits = 0
        self.slots = Memslots(self.prepare, self.flush, self.synchronize)

    def prepare(self, slot: Memslot) -> None:
        if slot.end > IPA_END:
            raise KvmError(errno.EFAULT)

    def flush(self, slot: Memslot) -> None:
        self.flushed.append(slot)
        self.during_flush.append(self.slots.active.find(slot.gpa))

    def synchronize(self) -> None:
        self.waits += 1

    def set(self, slot: int = 0, flags: int = 0, gpa: int = 0, size: int = 4 * PAGE, hva: int = HVA) -> int:
        """The errno of the call, 0 for success."""
        before = {slot.id: slot for slot in self.slots.active}
        try:
            self.slots.set_region(UserspaceMemoryRegion(slot, flags, gpa, size, hva))
        except KvmError as error:
            assert before == {slot.id: slot for slot in self.slots.active}, "a failed call changes nothing"
            return error.errno
        return 0


@pytest.fixture
def vm() -> Recorder:
    return Recorder()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 0),
        ({"slot": 32766}, 0),
        ({"slot": 32767}, errno.EINVAL),
        ({"slot": 1 << 16}, errno.EINVAL),
        ({"flags": MEM_LOG_DIRTY_PAGES | MEM_READONLY}, 0),
        ({"flags": MEM_GUEST_MEMFD}, errno.EINVAL),
        ({"flags": 8}, errno.EINVAL),
        ({"size": PAGE + 1}, errno.EINVAL),
        ({"gpa": 0x800}, errno.EINVAL),
        ({"hva": HVA + 8}, errno.EINVAL),
        ({"hva": 1 << 56 | HVA}, errno.EINVAL),
        ({"hva": (1 << 48)}, errno.EINVAL),
        ({"hva": 0}, 0),
        ({"gpa": (1 << 64) - PAGE, "size": PAGE}, errno.EINVAL),
        ({"gpa": (1 << 64) - 4 * PAGE, "size": 8 * PAGE}, errno.EINVAL),
        ({"size": 1 << 43}, errno.EINVAL),
        ({"size": 0}, errno.EINVAL),
        ({"gpa": IPA_END - PAGE}, errno.EFAULT),
        ({"gpa": IPA_END - 4 * PAGE}, 0),
    ],
)
def test_create(vm: Recorder, arguments: dict[str, int], expected: int) -> None:
    assert vm.set(**arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 0),
        ({"size": 8 * PAGE}, errno.EINVAL),
        ({"hva": HVA + PAGE}, errno.EINVAL),
        ({"flags": MEM_READONLY}, errno.EINVAL),
        ({"flags": MEM_LOG_DIRTY_PAGES}, 0),
        ({"gpa": 0x10_0000}, 0),
        ({"gpa": PAGE}, 0),
        ({"gpa": 0x8000_0000}, errno.EEXIST),
        ({"gpa": 0x8000_0000 - 3 * PAGE}, errno.EEXIST),
        ({"gpa": 0x8000_0000 - 4 * PAGE}, 0),
        ({"gpa": 0x10_0000, "hva": HVA + PAGE}, errno.EINVAL),
        ({"gpa": IPA_END}, errno.EFAULT),
        ({"slot": 2, "gpa": 3 * PAGE}, errno.EEXIST),
        ({"slot": 2, "gpa": 4 * PAGE}, 0),
        ({"slot": 2, "gpa": IPA_END - PAGE, "size": PAGE, "hva": HVA}, 0),
        ({"size": 0}, 0),
        ({"size": 0, "flags": MEM_LOG_DIRTY_PAGES}, 0),
        ({"size": 0, "flags": MEM_GUEST_MEMFD}, errno.EINVAL),
        ({"size": 0, "hva": HVA + 1}, errno.EINVAL),
        ({"size": 0, "gpa": 0x5000}, 0),
        ({"size": 0, "slot": 5}, errno.EINVAL),
    ],
)
def test_change(vm: Recorder, arguments: dict[str, int], expected: int) -> None:
    """Slot 0 covers four pages at 0, slot 1 four pages at 2 GiB."""
    assert vm.set() == 0
    assert vm.set(slot=1, gpa=0x8000_0000) == 0
    assert vm.set(**arguments) == expected


def test_delete_twice_and_create_again(vm: Recorder) -> None:
    assert [vm.set(), vm.set(size=0), vm.set(size=0), vm.set()] == [0, 0, errno.EINVAL, 0]


def test_lookup_respects_both_ends(vm: Recorder) -> None:
    vm.set(gpa=0x10_0000)
    find = vm.slots.active.find
    assert find(0x10_0000 - 1) is None
    assert find(0x10_0000) is find(0x10_3FFF)
    assert find(0x10_4000) is None
    assert find(0x10_2345).hva_of(0x10_2345) == HVA + 0x2345


def test_deleting_hides_the_slot_before_it_is_flushed(vm: Recorder) -> None:
    vm.set(gpa=0x10_0000)
    vm.set(gpa=0x10_0000, size=0)
    assert [slot.gpa for slot in vm.flushed] == [0x10_0000]
    assert vm.during_flush == [None]
    assert vm.waits == 3, "one wait for the readers of each set that was replaced"


def test_moving_flushes_the_old_place(vm: Recorder) -> None:
    vm.set(gpa=0x10_0000)
    vm.set(gpa=0x20_0000)
    assert [slot.gpa for slot in vm.flushed] == [0x10_0000]
    assert vm.slots.active.find(0x10_0000) is None and vm.slots.active.find(0x20_0000) is not None


def test_generation_grows_with_every_publication(vm: Recorder) -> None:
    seen = [vm.slots.active.generation]
    for action in ({}, {"flags": 1}, {"gpa": 0x10_0000, "flags": 1}, {"size": 0}):
        vm.set(**action)
        seen.append(vm.slots.active.generation)
    assert seen == sorted(set(seen)) and not any(generation & UPDATE_IN_PROGRESS for generation in seen)


def test_logging_keeps_its_bitmap_when_moved(vm: Recorder) -> None:
    vm.set(flags=MEM_LOG_DIRTY_PAGES)
    vm.slots.active.by_id[0].mark_dirty(2 * PAGE)
    vm.set(flags=MEM_LOG_DIRTY_PAGES, gpa=0x10_0000)
    assert vm.slots.dirty_log(0).dirty.copy()[0] == 0b100
    vm.set(gpa=0x10_0000)
    with pytest.raises(KvmError) as failure:
        vm.slots.dirty_log(0)
    assert failure.value.errno == errno.ENOENT


@pytest.mark.parametrize(("slot", "code"), [(32767, errno.EINVAL), (1 << 16, errno.EINVAL), (3, errno.ENOENT)])
def test_dirty_log_of_no_slot(vm: Recorder, slot: int, code: int) -> None:
    with pytest.raises(KvmError) as failure:
        vm.slots.dirty_log(slot)
    assert failure.value.errno == code


def test_random_changes_never_leave_an_overlap(vm: Recorder) -> None:
    numbers = random.Random(5)
    for _ in range(2000):
        vm.set(
            slot=numbers.randrange(8),
            flags=numbers.choice((0, 0, 1)),
            gpa=numbers.randrange(32) * PAGE,
            size=numbers.choice((0, 1, 2, 8)) * PAGE,
            hva=HVA,
        )
        slots = sorted(vm.slots.active, key=lambda slot: slot.gpa)
        assert all(first.end <= second.gpa for first, second in zip(slots, slots[1:], strict=False))
        for gpa in range(0, 40 * PAGE, PAGE):
            holding = [slot for slot in slots if slot.gpa <= gpa < slot.end]
            assert vm.slots.active.find(gpa) == (holding[0] if holding else None)


@pytest.mark.parametrize("seed", range(5))
def test_ranges_of_dirty_pages(seed: int) -> None:
    numbers = random.Random(seed)
    pages = {page for _ in range(20) for start in [numbers.randrange(2000)] for page in range(start, start + numbers.choice((1, 1, 3, 70)))}
    bits = sum(1 << page for page in pages).to_bytes(320, "little")
    found = list(runs(64, bits))
    assert {page - 64 for begin, end in found for page in range(begin, end)} == pages
    assert all(end < begin for (_, end), (begin, _) in zip(found, found[1:], strict=False)), "joined where they touch"


def test_ranges_of_an_empty_and_a_full_bitmap() -> None:
    assert list(runs(0, bytes(64))) == []
    assert list(runs(0, b"\xff" * 64)) == [(0, 512)]
