"""Dirty logs and rings under guests that write all the time: whoever copies what they report has the guest's memory in the end."""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.test_kvm_machine import program
from trapline.abi.caps import Cap
from trapline.abi.exits import DirtyRingFull, IntrExit, MmioExit
from trapline.abi.memory import KVM_CLEAR_DIRTY_LOG, ClearDirtyLog
from trapline.abi.vm import MEM_LOG_DIRTY_PAGES
from trapline.backends.memory import GuestMemory
from trapline.backends.objects import System, Vm
from trapline.backends.software import Software
from trapline.backends.vcpu import Vcpu

pytest.importorskip("llvmlite")

CODE, DATA, PAGE = 0x4000_0000, 0x5000_0000, 0x1000
SLOT, PAGES, ROUNDS = 1, 512, 12
RING_BYTES = 0x4000

WRITER = """
    mov x9, #0x50000000
    mov x10, #0x9000000
    mov x5, #300
again:
    eor x1, x1, x1, lsl #13
    eor x1, x1, x1, lsr #7
    eor x1, x1, x1, lsl #17
    and x2, x1, #0xff
    lsl x2, x2, #13
    add x3, x9, x2
    add x3, x3, x0
    add x4, x4, #1
    str x4, [x3]
    subs x5, x5, #1
    b.ne again
    mov x5, #300
    str x4, [x10]
    b again
"""
"""Writes a counter to its word of a page with an even number, chosen at random; now and then exits."""


class Writers:
    """A VM whose vCPUs write, each in a thread of its own, and a copy of its memory."""

    def __init__(self, kvm: System, prepare: Callable[[Vm], None], vcpus: int) -> None:
        self.vm = kvm.create_vm()
        prepare(self.vm)
        code = self.vm.add_memory(CODE, PAGE, slot=0)
        text = program(WRITER, CODE)
        code[: len(text)] = text
        self.data: GuestMemory = self.vm.add_memory(DATA, PAGES * PAGE, slot=SLOT, flags=MEM_LOG_DIRTY_PAGES)
        self.copy = bytearray(PAGES * PAGE)
        self.reported: set[int] = set()
        self.full = 0
        self.over = False
        self.room, self.moved = threading.Event(), threading.Event()
        self.vcpus = [self.vm.create_vcpu() for _ in range(vcpus)]
        for number, vcpu in enumerate(self.vcpus):
            vcpu.regs.pc, vcpu.regs.x0, vcpu.regs.x1 = CODE, 8 * number, 0x1234_5678 + number
        self.threads = [threading.Thread(target=self.write, args=(vcpu,), daemon=True) for vcpu in self.vcpus]

    def write(self, vcpu: Vcpu) -> None:
        """A vCPU's thread."""
        while not self.over:
            exit = vcpu.run()
            self.moved.set()
            match exit:
                case MmioExit() | IntrExit():
                    pass
                case DirtyRingFull():
                    self.full += 1
                    self.room.wait(5)
                    self.room.clear()
                case other:
                    raise AssertionError(other)

    def take(self, pages: set[int]) -> None:
        """Copy what was reported."""
        self.reported |= pages
        for page in pages:
            self.copy[page * PAGE : (page + 1) * PAGE] = self.data[page * PAGE : (page + 1) * PAGE]

    def run(self, collect: Callable[[Writers], None]) -> None:
        """Collect while they write, then once more when they have stopped."""
        for thread in self.threads:
            thread.start()
        for _ in range(ROUNDS):
            self.moved.clear()
            assert self.moved.wait(30), "the guests hang"
            collect(self)
            self.room.set()
        self.over = True
        for vcpu in self.vcpus:
            vcpu.kick()
        for thread in self.threads:
            while thread.is_alive():
                self.room.set()
                thread.join(0.01)
        collect(self)
        assert self.copy == self.data[0 : PAGES * PAGE], "a page was written and not reported"
        assert len(self.reported) > 100 and not any(page % 2 for page in self.reported)


def from_log(writers: Writers) -> None:
    writers.take(set(writers.vm.get_dirty_log(SLOT, PAGES)))


def by_hand(writers: Writers) -> None:
    """Read the log, clear parts of what was read, copy those pages."""
    pages = set(writers.vm.get_dirty_log(SLOT, PAGES))
    numbers = random.Random(len(writers.reported))
    first = 64 * numbers.randrange(PAGES // 64) if not writers.over else 0
    chosen = {page for page in pages if page >= first}
    bitmap = bytearray(PAGES // 8)
    for page in chosen:
        bitmap[(page - first) >> 3] |= 1 << (page - first & 7)
    buffer = ctypes.create_string_buffer(bytes(bitmap), len(bitmap))
    log = ClearDirtyLog(SLOT, PAGES - first, first, ctypes.addressof(buffer))
    writers.vm.backend.ioctl(writers.vm.file, KVM_CLEAR_DIRTY_LOG, log)
    writers.take(chosen)


def from_rings(writers: Writers) -> None:
    """Harvest, reset, then copy: in this order, or a write in between would be lost."""
    pages = {page.page for vcpu in writers.vcpus for page in vcpu.dirty_ring.harvest()}
    writers.vm.reset_dirty_rings()
    writers.take(pages)


@pytest.fixture(scope="module")
def kvm() -> Iterator[System]:
    with System(Software()) as system:
        yield system


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize(
    ("prepare", "collect"),
    [
        (lambda vm: None, from_log),
        (lambda vm: vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 1), by_hand),
        (lambda vm: vm.enable_dirty_rings(RING_BYTES), from_rings),
    ],
    ids=["log", "by hand", "rings"],
)
def test_the_copy_is_complete(kvm: System, prepare, collect, vcpus: int) -> None:
    writers = Writers(kvm, prepare, vcpus)
    writers.run(collect)
    writers.vm.close()


def test_initially_set_means_everything_once(kvm: System) -> None:
    """What userspace has never seen is reported; afterwards only what is written."""
    with kvm.create_vm() as vm:
        vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 3)
        vm.add_memory(DATA, PAGES * PAGE, slot=SLOT, flags=MEM_LOG_DIRTY_PAGES)
        assert vm.get_dirty_log(SLOT, PAGES) == list(range(PAGES))


def test_small_rings_fill_up_and_nothing_is_lost(kvm: System) -> None:
    """192 of 256 entries, and 256 pages that are written: the guest has to wait for room."""
    writers = Writers(kvm, lambda vm: vm.enable_dirty_rings(PAGE), 1)
    writers.vcpus[0].regs.x5 = 1 << 30
    for _ in range(2):
        while not isinstance(writers.vcpus[0].run(), DirtyRingFull):
            pass
        writers.full += 1
        from_rings(writers)
    writers.run(from_rings)
    assert writers.full >= 2
    writers.vm.close()
