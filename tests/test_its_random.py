"""Random commands and messages: an ITS maps what a dictionary would, and a hostile guest can make it do nothing worse than nothing."""

from __future__ import annotations

import random
import threading
from collections import Counter
from struct import pack
from typing import Any

import pytest
from test_its import BASER0, BASER1, CBASER, CTLR, CWRITER, DEVICES, ITS, ITT, PENDING, REDIST, RING, VALID, Machine

from trapline.arm64 import gic_virtual
from trapline.errors import KvmError

DEVICE_IDS, EVENTS, COLLECTION_IDS = (3, 4, 0x1FFF), range(4), range(3)
LPIS = range(8192, 8200)


class Model:
    """What a driver believes: where each event leads, and which LPIs are pending on which vCPU."""

    def __init__(self) -> None:
        self.devices: dict[int, dict[int, tuple[int, int | None]]] = {}
        """Event to LPI and collection, for each device."""
        self.collections: dict[int, int] = {}
        self.target: dict[int, int | None] = {}
        """Of each LPI that some event leads to."""
        self.pending: set[int] = set()

    def users(self, lpi: int) -> int:
        return sum(lpi == found for events in self.devices.values() for found, _ in events.values())

    def drop(self, device: int, event: int) -> None:
        lpi, _ = self.devices[device].pop(event)
        if not self.users(lpi):
            self.pending.discard(lpi)
            del self.target[lpi]

    def mapd(self, device: int, valid: bool) -> None:
        for event in list(self.devices.get(device, ())):
            self.drop(device, event)
        self.devices.pop(device, None)
        if valid:
            self.devices[device] = {}

    def mapc(self, collection: int, cpu: int, valid: bool) -> None:
        for device, events in self.devices.items():
            for event, (lpi, found) in list(events.items()):
                if found == collection:
                    if valid:
                        self.target[lpi] = cpu
                    else:
                        self.devices[device][event] = lpi, None
        if valid:
            self.collections[collection] = cpu
        else:
            self.collections.pop(collection, None)

    def mapti(self, device: int, event: int, lpi: int, collection: int) -> None:
        events = self.devices.get(device)
        if events is not None and event not in events and collection in self.collections:
            self.target.setdefault(lpi, self.collections[collection])
            events[event] = lpi, collection

    def movi(self, device: int, event: int, collection: int) -> None:
        lpi, found = self.devices.get(device, {}).get(event, (0, None))
        if found is not None and collection in self.collections:
            self.devices[device][event] = lpi, collection
            self.target[lpi] = self.collections[collection]

    def movall(self, source: int, target: int) -> None:
        for lpi, cpu in self.target.items():
            if cpu == source:
                self.target[lpi] = target

    def signal(self, device: int, event: int) -> bool:
        lpi, found = self.devices.get(device, {}).get(event, (0, None))
        if found is not None:
            self.pending.add(lpi)
        return found is not None

    def clear(self, device: int, event: int) -> None:
        lpi, _ = self.devices.get(device, {}).get(event, (0, None))
        self.pending.discard(lpi)

    def discard(self, device: int, event: int) -> None:
        if self.devices.get(device, {}).get(event, (0, None))[1] is not None:
            self.drop(device, event)


@pytest.mark.parametrize("seed", range(6))
def test_commands_against_a_dictionary(seed: int) -> None:
    numbers = random.Random(seed)
    machine, model = Machine(), Model()
    for lpi in LPIS:
        machine.property(lpi, 0xA1)
    for step in range(500):
        device, event = numbers.choice(DEVICE_IDS), numbers.choice(EVENTS)
        collection, cpu, lpi = numbers.choice(COLLECTION_IDS), numbers.randrange(2), numbers.choice(LPIS)
        valid, where = numbers.random() < 0.85, f"seed {seed}, step {step}"
        match numbers.choices(range(9), (2, 2, 6, 2, 1, 6, 1, 1, 6))[0]:
            case 0:
                machine.mapd(device, ITT + 0x1000 * DEVICE_IDS.index(device), valid=valid)
                model.mapd(device, valid)
            case 1:
                machine.mapc(collection, cpu, valid)
                model.mapc(collection, cpu, valid)
            case 2:
                if collection in model.collections:
                    machine.mapti(event, lpi, collection, device)
                    model.mapti(device, event, lpi, collection)
            case 3:
                machine.about(0x01, event, collection, device)
                model.movi(device, event, collection)
            case 4:
                machine.command(0x0E, 0, cpu << 16, 1 - cpu << 16)
                model.movall(cpu, 1 - cpu)
            case 5:
                assert machine.signal(event, device) == model.signal(device, event), where
            case 6:
                machine.about(0x04, event, device=device)
                model.clear(device, event)
            case 7:
                machine.about(0x0F, event, device=device)
                model.discard(device, event)
            case _:
                expected = {lpi for lpi in model.pending if model.target[lpi] == cpu}
                assert set(machine.take(cpu)) == set(sorted(expected)[:6]), where
                model.pending -= set(sorted(expected)[:6])
        check(machine, where)


def check(machine: Machine, where: str) -> None:
    """Every event leads to an LPI that is there, as often as is counted; and what is not there is on no queue."""
    its, lpis = machine.arch.its[0], machine.arch.vgic.lpis
    events = [event for device in its.devices.values() for event in device.events.values()]
    assert {event.irq.intid for event in events} == {irq.intid for irq in lpis}, where
    assert all(lpis._users[irq.intid] == sum(event.irq is irq for event in events) for irq in lpis), where
    queued = {irq for cpu in machine.arch.vgic.cpus for irq in cpu.queue if irq.intid >= 8192 and irq.lr < 0}
    assert queued <= set(lpis), where


def test_threads_lose_no_message() -> None:
    """Devices send while vCPUs take and a third thread moves events about: every LPI that was sent is taken, wherever it is by then."""
    machine = Machine()
    for event in range(8):
        machine.property(8192 + event, 0xA1)
    machine.mapd()
    for cpu in range(2):
        machine.mapc(cpu, cpu)
    for event in range(8):
        machine.mapti(event, 8192 + event, event & 1)
    gic, seen = machine.arch.vgic, Counter[int]()
    takers = [Taker(gic, vcpu, seen) for vcpu in machine.arch.vcpus]
    for taker in takers:
        taker.start()
    for number in range(200):
        for event in range(8):
            assert machine.signal(event)
        machine.about(0x01, number % 8, number // 8 & 1)
        machine.arch.vcpus[0].kick()  # whose own access that was supposed to be
        for _ in range(20_000):
            if len(seen) == 8 and min(seen.values()) == number + 1:
                break
            threading.Event().wait(0.0005)
        assert dict(seen) == {8192 + event: number + 1 for event in range(8)}
    for taker in takers:
        taker.stop = True
        taker.wake.set()
        taker.join(20)
        assert not taker.is_alive()


class Taker(threading.Thread):
    """A vCPU's thread: takes every interrupt, sleeps when there is none."""

    def __init__(self, gic: Any, vcpu: Any, seen: Counter[int]) -> None:
        super().__init__(daemon=True)
        self.gic, self.vcpu, self.seen = gic, vcpu, seen
        self.wake = threading.Event()
        self.stop = False
        vcpu.kick = self.wake.set

    def run(self) -> None:
        state = self.vcpu.cpu.state
        while not self.stop:
            self.wake.clear()
            self.gic.flush(self.vcpu)
            while (intid := gic_virtual.icv_iar1_read(state)) != 1023:
                with LOCK:
                    self.seen[intid] += 1
                gic_virtual.icv_eoir1_write(state, intid)
            self.gic.sync(self.vcpu)
            if not self.gic.pending(self.vcpu) and not self.stop:
                assert self.wake.wait(20), "nobody called"


LOCK = threading.Lock()


@pytest.mark.parametrize("seed", range(4))
def test_no_guest_can_break_it(seed: int) -> None:
    """Commands of random bits, tables that are nowhere, registers written at any time."""
    numbers = random.Random(1000 + seed)
    machine = Machine(indirect=bool(seed & 1))
    registers = [ITS + offset for offset in (CTLR, CBASER, CWRITER, BASER0, BASER1)] + [REDIST, REDIST + 0x70, REDIST + 0x78, REDIST + 0xA0]
    addresses = (0, DEVICES, RING, ITT, PENDING[0], 1 << 40, (1 << 52) - 0x1_0000)
    for step in range(1500):
        choice = numbers.random()
        if choice < 0.5:
            words = [numbers.choice((0, 1, 3, 5, 8192, 8200, numbers.getrandbits(64))) for _ in range(4)]
            words[0] = numbers.choice((*range(16), numbers.getrandbits(8))) | numbers.choice((0, 1, 3, 0xFFFF, 1 << 31)) << 32
            words[1] |= numbers.choice((0, 8192, 8199, 1 << 31)) << 32
            words[2] |= numbers.choice((0, VALID)) | numbers.choice(addresses) * numbers.randrange(2)
            at = RING - 0x4000_0000 + machine.written
            machine.ram[at : at + 32] = pack("<4Q", *(word & (1 << 64) - 1 for word in words))
            machine.written = (machine.written + 32) % 0x1000
            machine.write(ITS + CWRITER, machine.written)
        elif choice < 0.6:
            value = numbers.choice(addresses) | numbers.choice((0, 1, VALID, VALID | 1 << 62, numbers.getrandbits(64)))
            register = numbers.choice(registers)
            machine.write(register, value, numbers.choice((4, 8)))
        elif choice < 0.7:
            machine.write(ITS + CTLR, numbers.randrange(2), 4)
        elif choice < 0.75:
            machine.set_up()
            machine.written = 0
        elif choice < 0.8:
            for device, attr in ((machine.its, 1), (machine.its, 2), (machine.gic, 3)):
                try:
                    device.set_attr(4, attr)
                except KvmError:
                    pass
        elif choice < 0.9:
            try:
                machine.signal(numbers.randrange(9), numbers.choice((0, 1, 3, 0xFFFF)))
            except KvmError:
                pass
        else:
            machine.take(numbers.randrange(2))
        check(machine, f"seed {seed}, step {step}")
