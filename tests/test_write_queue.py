"""Writes that wait: the machine adds them to the ring itself, the console's queue passes them on in order and in time."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable

import pytest

from tests.test_kvm_machine import Guest, boot, kvm  # noqa: F401 - fixtures
from trapline.abi.caps import Cap
from trapline.abi.exits import MmioExit, NisvExit
from trapline.abi.memory import COALESCED_MAX
from trapline.abi.vm import MEM_READONLY
from trapline.backends.rings import CoalescedRing, CoalescedWrite
from trapline.devices.device import IrqLine
from trapline.devices.pl011 import PL011, WRITES_BEFORE_WAITING, Int
from trapline.kvm.coalesced import CoalescedWrites
from trapline.vmm.queue import WriteQueue

UART, OTHER, PAGE = 0x0900_0000, 0x0A00_0000, 0x1000
DR, CR, IMSC, ICR = (PL011.__dict__[name].offset for name in ("DR", "CR", "IMSC", "ICR"))
LOOPBACK = 1 << 7

PRINT = """
        mov x1, #0x9000000
        mov x2, #0xA000000
        mov x0, #0
again:  add x0, x0, #1
        strb w0, [x1]
        cmp x0, #{count}
        b.ne again
        str x0, [x2]
"""


def exits(guest: Guest) -> int:
    with guest.vcpu.statistics() as statistics:
        return statistics.read()["exits"].value


def values(guest: Guest) -> list[int]:
    return [value for address, length, value in guest.vcpu.coalesced.take() if (address, length) == (UART, 1)]


def test_the_machine_adds_writes_without_exits(boot) -> None:  # noqa: F811
    guest = boot(PRINT.format(count=150))
    guest.vm.coalesce(UART, 4)
    assert guest.run().phys_addr == OTHER
    assert values(guest) == list(range(1, 151))
    assert exits(guest) < 20


def test_a_full_ring_exits_and_keeps_the_order(boot) -> None:  # noqa: F811
    guest = boot(PRINT.format(count=240))
    guest.vm.coalesce(UART, 4)
    exit, seen = guest.run(), []
    while exit.phys_addr == UART:
        seen += [*values(guest), exit.value]
        exit = guest.run()
    assert seen + values(guest) == list(range(1, 241))
    assert len(seen) == COALESCED_MAX


@pytest.mark.parametrize("readonly", [False, True])
def test_wide_values_and_words(boot, readonly: bool) -> None:  # noqa: F811
    guest = boot("""
        mov x1, #0x9000000
        movz x5, #0x7788
        movk x5, #0x5566, lsl #16
        movk x5, #0x3344, lsl #32
        movk x5, #0x1122, lsl #48
        mov x3, #2
again:  str x5, [x1]
        str w5, [x1, #8]
        strh w5, [x1, #4]
        str wzr, [x1, #8]
        subs x3, x3, #1
        b.ne again
        mov x2, #0xA000000
        str x0, [x2]
        """)
    if readonly:
        guest.vm.add_memory(UART, PAGE, flags=MEM_READONLY)
    guest.vm.coalesce(UART, 16)
    assert guest.run().phys_addr == OTHER
    turn = [(UART, 8, 0x1122334455667788), (UART + 8, 4, 0x55667788), (UART + 4, 2, 0x7788), (UART + 8, 4, 0)]
    assert guest.vcpu.coalesced.take() == turn * 2


def test_pairs_and_vectors_do_not_wait(boot) -> None:  # noqa: F811
    """What an abort's syndrome cannot describe is no single write: a pair of words is not eight bytes."""
    guest = boot("""
        mov x1, #0x9000000
        mov x3, #3
again:  str x3, [x1]
        subs x3, x3, #1
        b.ne again
        stp w3, w3, [x1]
        """)
    guest.vm.coalesce(UART, 16)
    guest.vm.enable_cap(Cap.ARM_NISV_TO_USER)
    assert isinstance(guest.run(), NisvExit) and len(guest.vcpu.coalesced.take()) == 3


def stores(boot, count: int) -> Guest:  # noqa: F811
    """A guest that has posted three writes and will post `count` more after an exit."""
    guest = boot(f"""
        mov x1, #0x9000000
        mov x2, #0xA000000
        mov x0, #3
first:  str w0, [x1]
        subs x0, x0, #1
        b.ne first
        str x0, [x2]
        mov x0, #{count}
second: str w0, [x1]
        subs x0, x0, #1
        b.ne second
        str x0, [x2]
        """)
    guest.vm.coalesce(UART, 4)
    assert guest.run().phys_addr == OTHER
    assert len(guest.vcpu.coalesced.take()) == 3
    return guest


def test_nothing_waits_when_the_zone_is_gone(boot) -> None:  # noqa: F811
    guest = stores(boot, 2)
    guest.vm.uncoalesce(UART, 4)
    assert [guest.run().phys_addr for _ in range(3)] == [UART, UART, OTHER]
    assert guest.vcpu.coalesced.take() == []


def test_memory_in_the_zones_place_gets_the_writes(boot) -> None:  # noqa: F811
    guest = stores(boot, 5)
    memory = guest.vm.add_memory(UART, PAGE)
    assert guest.run().phys_addr == OTHER
    assert guest.vcpu.coalesced.take() == [] and bytes(memory[:4]) == b"\1\0\0\0"


def test_an_eventfd_in_the_zones_place_gets_the_writes(boot) -> None:  # noqa: F811
    guest = stores(boot, 5)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        guest.vm.ioeventfd(UART, 4, event)
        assert guest.run().phys_addr == OTHER
        assert guest.vcpu.coalesced.take() == [] and os.eventfd_read(event) == 5
    finally:
        os.close(event)


def test_vcpus_share_the_ring_and_lose_nothing(boot) -> None:  # noqa: F811
    count = 2000
    guest = boot(
        f"""
        mov x1, #0x9000000
        movz x0, #{count}
again:  str w0, [x1]
        subs x0, x0, #1
        b.ne again
        mov x2, #0xA000000
        str x0, [x2]
        """,
        vcpus=2,
    )
    guest.vm.coalesce(UART, 4)
    guest.vcpus[1].regs.pc = guest.vcpu.regs.pc
    guest.vcpus[1].mp_state = guest.vcpu.mp_state
    lock, seen = threading.Lock(), []

    def run(index: int) -> None:
        vcpu = guest.vcpus[index]
        while True:
            exit = vcpu.run()
            assert isinstance(exit, MmioExit)
            with lock:
                seen.extend(value for _, _, value in vcpu.coalesced.take())
                if exit.phys_addr == OTHER:
                    return
                seen.append(exit.value)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(seen) == sorted([*range(1, count + 1)] * 2)


class FakeVm:
    """Coalesces as KVM does, without a guest: `write` is the guest's."""

    def __init__(self) -> None:
        self.core = CoalescedWrites()
        self.ring = CoalescedRing(memoryview(self.core.page))

    def coalesce(self, address: int, size: int) -> None:
        self.core.register(False, address, size)

    def uncoalesce(self, address: int, size: int) -> None:
        self.core.unregister(False, address, size)


class Console:
    """A UART with a queue. `write` is what a guest and a run loop do."""

    def __init__(self) -> None:
        self.vm, self.lock, self.sent, self.levels = FakeVm(), threading.Lock(), bytearray(), list[bool]()
        self.arrived = threading.Event()
        self.uart = PL011(IrqLine(self.levels.append), self._put)
        self.queue = WriteQueue(self.vm, self.vm.ring, UART, self.uart.transmit_all, self._other, self.lock)  # type: ignore[arg-type]
        self.uart.queue = self.queue
        self.exits = 0

    def _put(self, data: bytes) -> None:
        self.sent += data
        self.arrived.set()

    def _other(self, address: int, length: int, value: int) -> None:
        self.uart.writer(address - UART, length)(value)

    def write(self, offset: int, value: int) -> None:
        if self.vm.core.write(UART + offset, 4, value):
            return
        self.exits += 1
        with self.lock:
            self.queue.drain()
            self.uart.writer(offset, 4)(value)

    def print(self, text: bytes) -> None:
        for byte in text:
            self.write(DR, byte)


def wait_until(condition: Callable[[], bool]) -> None:
    """A bounded wait for another thread."""
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    pytest.fail("it never came")


def test_many_characters_wait_and_few_do_not() -> None:
    console = Console()
    console.print(b"~ # ")
    assert console.sent == b"~ # " and not console.queue.is_open
    text = random.Random(1).randbytes(500)
    console.print(text)
    assert console.queue.is_open and console.exits < 60
    console.write(IMSC, 0)
    assert console.sent == b"~ # " + text, "whatever else the guest does comes after what waited"
    wait_until(lambda: not console.queue.is_open)
    console.print(b"at once")
    assert console.sent.endswith(b"at once")
    console.queue.stop()


def test_what_waits_comes_without_an_exit() -> None:
    console = Console()
    console.print(bytes(WRITES_BEFORE_WAITING))
    assert console.queue.is_open
    console.arrived.clear()
    console.print(b"prompt> ")
    assert console.arrived.wait(10)
    wait_until(lambda: console.sent.endswith(b"prompt> "))
    console.queue.stop()


@pytest.mark.parametrize("offset,value", [(IMSC, Int.TX), (ICR, Int.TX), (CR, LOOPBACK)])
def test_a_guest_that_may_wait_for_an_effect_has_it_at_once(offset: int, value: int) -> None:
    console = Console()
    console.print(bytes(100))
    assert console.queue.is_open
    console.write(offset, value)
    assert not console.queue.is_open and len(console.sent) == 100
    if offset != ICR:
        console.print(bytes(100))
        assert not console.queue.is_open
    if offset == IMSC:
        assert console.levels == [True]
    console.queue.stop()


def test_the_end_brings_what_waits() -> None:
    console = Console()
    console.print(bytes(WRITES_BEFORE_WAITING))
    with console.lock:
        console.print(b"last words")
    console.queue.stop()
    assert console.sent.endswith(b"last words")
    console.print(bytes(100))
    assert not console.queue.is_open


def test_both_ways_to_take_from_the_ring_agree() -> None:
    rng = random.Random(2)
    vm = FakeVm()
    vm.coalesce(OTHER, PAGE)
    for _ in range(20):
        count = rng.randrange(COALESCED_MAX)
        wanted = [(OTHER + rng.randrange(PAGE - 8), rng.choice((1, 2, 4, 8)), rng.getrandbits(8)) for _ in range(count)]
        for write in wanted:
            assert vm.core.write(*write)
        if rng.random() < 0.5:
            assert vm.ring.take() == wanted
        else:
            assert vm.ring.drain() == [CoalescedWrite(address, value.to_bytes(length, "little")) for address, length, value in wanted]
        assert vm.ring.take() == []
