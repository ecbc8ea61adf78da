"""Coalesced MMIO: zones whose writes wait in a ring instead of exiting."""

from __future__ import annotations

from errno import EINVAL, ENOSPC

from tests.conformance.cases_system import same, true
from tests.conformance.frame import GENERIC, PAGE, Cases, Trial
from tests.conformance.guest import DATA, NOWHERE
from trapline.abi.caps import Cap
from trapline.abi.exits import Exit, MmioExit
from trapline.abi.memory import COALESCED_MAX, CoalescedMmioRing
from trapline.abi.memory import KVM_REGISTER_COALESCED_MMIO as REGISTER
from trapline.abi.memory import KVM_UNREGISTER_COALESCED_MMIO as UNREGISTER
from trapline.abi.system import KVM_CHECK_EXTENSION
from trapline.abi.vcpu import KVM_RUN
from trapline.backends.rings import CoalescedRing

case = Cases(__name__)
ZONE, SIZE = NOWHERE - 0x100, 0x80
END = ("store", NOWHERE, 0xEE)

case(KVM_CHECK_EXTENSION, 0, "the ring is in the page after kvm_run", lambda t: same(t.cap(Cap.COALESCED_MMIO), 1))
case(KVM_CHECK_EXTENSION, 0, "COALESCED_PIO", lambda t: same(t.cap(Cap.COALESCED_PIO), 1), GENERIC)


def zone(t: Trial, addr: int = ZONE, size: int = SIZE, pio: int = 0, call=REGISTER) -> int:
    """Register a zone, or take it away."""
    return t(call, addr=addr, size=size, pio=pio)


for call in (REGISTER, UNREGISTER):
    case(call, 0, "of memory", lambda t, call=call: zone(t, call=call), GENERIC)
    case(call, 0, "of ports", lambda t, call=call: zone(t, pio=1, call=call), GENERIC)
    case(call, 0, "twice", lambda t, call=call: [zone(t, call=call), zone(t, call=call)], GENERIC)
    case(call, 0, "empty", lambda t, call=call: zone(t, size=0, call=call), GENERIC)
    case(call, 0, "that wraps", lambda t, call=call: zone(t, addr=(1 << 64) - 1, call=call), GENERIC)
    case(call, 0, "on memory", lambda t, call=call: [t.region(), zone(t, addr=DATA, call=call)], GENERIC)
    for pio in (2, 0x100, 0xFFFF_FFFF):
        case(call, EINVAL, f"pio {pio:#x}", lambda t, call=call, pio=pio: zone(t, pio=pio, call=call), GENERIC)


@case.of(REGISTER, ENOSPC, "more than a thousand", GENERIC)
def _thousand(t: Trial):
    for number in range(1000):
        zone(t, addr=0x1_0000_0000 + number * PAGE)
    yield
    zone(t)


def ring(t: Trial) -> CoalescedRing:
    """The ring, in the mapping of the first vCPU."""
    page = t.cap(Cap.COALESCED_MMIO)
    return CoalescedRing(memoryview(t.runs[t.vcpu])[page * PAGE : (page + 1) * PAGE])


def guest(t: Trial, *accesses: tuple[str, int, int]) -> Exit:
    """A guest on a VM with one zone."""
    zone(t)
    t.program(*accesses)
    return t.run()


@case.of(KVM_RUN, 0, "writes within a zone wait in order", GENERIC)
def _wait(t: Trial):
    exit = guest(t, ("store", ZONE, 1), ("store", ZONE + SIZE - 1, 2), ("store", ZONE + 8, 3), END)
    assert isinstance(exit, MmioExit) and exit.phys_addr == NOWHERE
    assert [(write.address, write.data, write.pio) for write in ring(t).drain()] == [
        (ZONE, b"\1", False), (ZONE + SIZE - 1, b"\2", False), (ZONE + 8, b"\3", False)
    ]  # fmt: skip
    assert ring(t).drain() == []


@case.of(KVM_RUN, 0, "a read within a zone exits", GENERIC)
def _read(t: Trial):
    exit = guest(t, ("load", ZONE, 0))
    assert isinstance(exit, MmioExit) and (exit.phys_addr, exit.is_write) == (ZONE, False)


@case.of(KVM_RUN, 0, "writes before and after a zone exit", GENERIC)
def _outside(t: Trial):
    exit = guest(t, ("store", ZONE - 1, 1), ("store", ZONE + SIZE, 1))
    assert isinstance(exit, MmioExit) and exit.phys_addr == ZONE - 1
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == ZONE + SIZE
    assert ring(t).drain() == []


@case.of(KVM_RUN, 0, "a write when the ring is full exits, and coalesces again when there is room", GENERIC)
def _full(t: Trial):
    writes = [("store", ZONE + number % SIZE, number) for number in range(COALESCED_MAX + 1)]
    exit = guest(t, *writes, END)
    assert isinstance(exit, MmioExit) and exit.phys_addr == ZONE + (COALESCED_MAX - 1) % SIZE and exit.data[0] == COALESCED_MAX - 1
    same(len(ring(t).drain()), COALESCED_MAX - 1)
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == NOWHERE
    assert [write.value for write in ring(t).drain()] == [COALESCED_MAX]


@case.of(KVM_RUN, 0, "a ring that userspace spoiled: the write exits", GENERIC)
def _spoiled(t: Trial):
    zone(t)
    t.program(("store", ZONE, 1))
    page = t.cap(Cap.COALESCED_MMIO)
    CoalescedMmioRing.from_buffer(t.runs[t.vcpu], page * PAGE).last = 0xFFFF_FFF0
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == ZONE


@case.of(UNREGISTER, 0, "afterwards writes exit", GENERIC)
def _unregister(t: Trial):
    guest(t, ("store", ZONE, 1), END, ("store", ZONE, 2))
    zone(t, call=UNREGISTER)
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == ZONE


@case.of(UNREGISTER, 0, "a part of the zone takes all of it away", GENERIC)
def _part(t: Trial):
    guest(t, ("store", ZONE, 1), END, ("store", ZONE, 2))
    zone(t, addr=ZONE + 4, size=4, call=UNREGISTER)
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == ZONE


@case.of(UNREGISTER, 0, "more than the zone takes nothing away", GENERIC)
def _more(t: Trial):
    guest(t, ("store", ZONE, 1), END, ("store", ZONE, 2), END)
    zone(t, addr=ZONE, size=SIZE + 1, call=UNREGISTER)
    zone(t, pio=1, call=UNREGISTER)
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == NOWHERE
    same(len(ring(t).drain()), 2)


@case.of(KVM_RUN, 0, "all vCPUs share the ring", GENERIC)
def _shared(t: Trial):
    zone(t)
    first, second = t.vcpu, t.add_vcpu(1)
    page = t.cap(Cap.COALESCED_MMIO)
    t.program(("store", ZONE, 5), END, on=first)
    t.run(first)
    true([write.value for write in CoalescedRing(memoryview(t.runs[second])[page * PAGE : (page + 1) * PAGE]).drain()] == [5])
    assert ring(t).drain() == []


@case.of(KVM_RUN, 0, "memory comes before a zone", GENERIC)
def _memory(t: Trial):
    t.region()
    zone(t, addr=DATA)
    t.program(("store", DATA, 9), END)
    t.run()
    assert t.buffer[0] == 9 and ring(t).drain() == []
