"""Random work against a model that has no list registers, and real threads that must not lose an interrupt."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from vgic_machine import (
    CTLR,
    DIST,
    ICACTIVER,
    ICENABLER,
    ICPENDR,
    ISACTIVER,
    ISENABLER,
    ISPENDR,
    SPURIOUS,
    FakeVcpu,
    GicMachine,
)

from trapline.arm64 import gic_virtual

IDLE = 0xFF
CPUS = 3


@dataclass(eq=False)
class ModelIrq:
    """One interrupt as the architecture describes it."""

    intid: int
    edge: bool
    target: int
    priority: int = 0
    group: int = 1
    enabled: bool = False
    latch: bool = False
    line: bool = False
    active: bool = False
    owner: int | None = None
    """Where it is active: only there can it be completed."""

    @property
    def pending(self) -> bool:
        return self.latch or self.line and not self.edge


@dataclass
class ModelCpu:
    mask: int = 0xF8
    groups: int = 3
    running: list[tuple[int, ModelIrq]] = field(default_factory=list)


class Model:
    """A GIC in which everything happens at once."""

    def __init__(self, spis: range, ppis: range) -> None:
        self.cpus = [ModelCpu() for _ in range(CPUS)]
        self.groups = 3
        self.irqs = {(None, n): ModelIrq(n, True, 0) for n in spis}
        for cpu in range(CPUS):
            self.irqs |= {(cpu, n): ModelIrq(n, n < 16, cpu, enabled=n < 16) for n in ppis}

    def best(self, n: int) -> ModelIrq | None:
        cpu = self.cpus[n]
        ready = [
            irq
            for irq in self.irqs.values()
            if irq.target == n and irq.enabled and irq.pending and not irq.active
            and self.groups >> irq.group & 1 and cpu.groups >> irq.group & 1
        ]  # fmt: skip
        return min(ready, key=lambda irq: (irq.priority, irq.intid), default=None)

    def signalled(self, n: int) -> ModelIrq | None:
        best, cpu = self.best(n), self.cpus[n]
        running = min((priority for priority, _ in cpu.running), default=0x100)
        return best if best and best.priority < min(cpu.mask, running) else None

    def acknowledge(self, n: int, group: int) -> int:
        irq = self.signalled(n)
        if irq is None or irq.group != group:
            return SPURIOUS
        irq.latch, irq.active, irq.owner = False, True, n
        self.cpus[n].running.append((irq.priority, irq))
        return irq.intid


class Pair:
    """The model and the real thing, driven alike. `eager`: the guest leaves after every step, else only when it must."""

    def __init__(self, seed: int, eager: bool, spis: int) -> None:
        self.numbers = random.Random(seed)
        self.eager = eager
        self.machine = GicMachine(cpus=CPUS, irqs=64)
        self.model = Model(range(32, 32 + spis), range(14, 18))
        self.inside = [False] * CPUS
        self.kicked: set[int] = set()
        for n, vcpu in enumerate(self.machine.vcpus):
            vcpu.on_kick = lambda n=n: self.kicked.add(n)  # type: ignore[misc]
        for irq in self.model.irqs.values():
            self.configure(irq)
        self.delivered = 0

    # ---- guest mode ---------------------------------------------------------------------------------------------------------

    def enter(self, n: int) -> Any:
        state = self.machine.vcpus[n].cpu.state
        if not self.inside[n]:
            self.inside[n] = True
            self.machine.gic.flush(self.machine.vcpus[n])
            assert not gic_virtual.maintenance_pending(state), "it would leave again at once"
        return state

    def leave(self, n: int) -> None:
        if self.inside[n]:
            self.inside[n] = False
            self.machine.gic.sync(self.machine.vcpus[n])

    def settle(self) -> None:
        """Who was kicked leaves the guest and goes back, as the run loop does."""
        while self.kicked:
            n = self.kicked.pop()
            self.leave(n)
            self.enter(n)

    def access(self, n: int, name: str, value: int | None = None) -> int:
        state = self.enter(n)
        self.settle()
        access = gic_virtual.CPU_INTERFACE[f"ICC_{name}_EL1"]
        result = access.read(state) if value is None else access.write(state, value)
        if self.eager or gic_virtual.maintenance_pending(state):
            self.kicked.add(n)
            self.settle()
        return int(result or 0)

    @contextmanager
    def trap(self, n: int) -> Iterator[None]:
        """The guest of a vCPU has left for the sake of an access, and goes on after it."""
        self.leave(n)
        yield
        self.enter(n)
        self.settle()

    # ---- steps --------------------------------------------------------------------------------------------------------------

    def configure(self, irq: ModelIrq) -> None:
        owner = irq.target
        # No two share a priority: the architecture leaves open which of those comes first.
        taken = {other.priority for other in self.model.irqs.values() if other is not irq}
        irq.priority = self.numbers.choice([priority for priority in range(0x08, 0xF8, 8) if priority not in taken])
        irq.group = self.numbers.choice((0, 1, 1, 1))
        with self.trap(0):
            self.machine.priority(irq.intid, irq.priority, owner)
            self.machine.group(irq.intid, irq.group, owner)
            if irq.intid >= 32 and not irq.active:
                irq.edge = self.numbers.random() < 0.5
                self.machine.edge(irq.intid, irq.edge)

    def wire(self) -> None:
        irq = self.any_irq()
        if irq.intid < 16:
            sender = self.numbers.randrange(CPUS)
            with self.trap(sender):
                self.machine.sgi(irq.intid, 1 << irq.target, by=sender)
            irq.latch = True
            return
        level = self.numbers.random() < 0.6
        irq.latch |= irq.edge and level
        irq.line = level
        self.machine.drive(irq.intid, level, irq.target if irq.intid < 32 else None)
        if not level:
            # A fall does not end the guest's run by itself.
            self.kicked |= set(range(CPUS))
        self.settle()

    def any_irq(self) -> ModelIrq:
        return self.numbers.choice(list(self.model.irqs.values()))

    def distributor(self) -> None:
        irq = self.any_irq()
        register = self.numbers.choice((ISENABLER, ISENABLER, ICENABLER, ISPENDR, ICPENDR))
        by = self.numbers.randrange(CPUS)
        with self.trap(by):
            self.machine.set_bit(register, irq.intid, irq.target if irq.intid < 32 else 0, by)
        if register in (ISENABLER, ICENABLER):
            irq.enabled = register == ISENABLER
        else:
            irq.latch = register == ISPENDR

    def activity(self) -> None:
        """Only of interrupts that the guest has not acknowledged: software deactivates those by completion."""
        irq = self.any_irq()
        if irq.owner is not None or irq.active is False and sum(other.active for other in self.model.irqs.values()) > 2:
            return
        irq.active = not irq.active
        by = self.numbers.randrange(CPUS)
        with self.trap(by):
            register = ISACTIVER if irq.active else ICACTIVER
            self.machine.set_bit(register, irq.intid, irq.target if irq.intid < 32 else 0, by)

    def reroute(self) -> None:
        irq = self.any_irq()
        if irq.intid >= 32 and (not irq.active or irq.owner is not None):
            irq.target = self.numbers.randrange(CPUS)
            with self.trap(0):
                self.machine.route(irq.intid, irq.target)

    def interface(self) -> None:
        n = self.numbers.randrange(CPUS)
        cpu = self.model.cpus[n]
        if self.numbers.random() < 0.5:
            cpu.mask = self.numbers.choice((0x40, 0x80, 0xC0, 0xF8, 0xF8))
            self.access(n, "PMR", cpu.mask)
            return
        group, value = self.numbers.randrange(2), self.numbers.random() < 0.8
        cpu.groups = cpu.groups & ~(1 << group) | value << group
        self.access(n, f"IGRPEN{group}", value)

    def forwarding(self) -> None:
        self.model.groups = self.numbers.choice((3, 3, 3, 2, 1))
        with self.trap(0):
            self.machine.write(DIST + CTLR, self.model.groups)

    def reconfigure(self) -> None:
        irq = self.any_irq()
        if not irq.active:
            self.configure(irq)

    def take(self) -> None:
        n, group = self.numbers.randrange(CPUS), self.numbers.choice((0, 1, 1))
        expected = self.model.acknowledge(n, group)
        assert self.access(n, f"IAR{group}") == expected
        self.delivered += expected != SPURIOUS

    def complete(self) -> None:
        n = self.numbers.randrange(CPUS)
        running = self.model.cpus[n].running
        if running:
            _, irq = running.pop()
            irq.active, irq.owner = False, None
            self.access(n, f"EOIR{irq.group}", irq.intid)

    def look(self) -> None:
        n = self.numbers.randrange(CPUS)
        signalled = self.model.signalled(n)
        lines = 0 if signalled is None else 2 - signalled.group
        state = self.enter(n)
        assert gic_virtual.signalled_group(state) == lines
        running = min((priority for priority, _ in self.model.cpus[n].running), default=IDLE)
        assert gic_virtual.icv_rpr_read(state) == running
        self.leave(n)
        cpu = self.model.cpus[n]
        wakes = [irq for irq in self.model.irqs.values() if irq.target == n and irq.enabled and irq.pending and not irq.active
                 and self.model.groups >> irq.group & cpu.groups >> irq.group & 1 and irq.priority < cpu.mask]  # fmt: skip
        assert self.machine.gic.pending(self.machine.vcpus[n]) == bool(wakes)
        self.enter(n)
        self.settle()

    def inspect(self) -> None:
        for (owner, intid), irq in self.model.irqs.items():
            for register, expected in ((ISENABLER, irq.enabled), (ISPENDR, irq.pending), (ISACTIVER, irq.active)):
                assert self.machine.bit(register, intid, owner or 0) == expected, (hex(register), irq)

    STEPS = ((wire, 30), (take, 30), (complete, 22), (look, 8), (distributor, 12), (activity, 2), (reroute, 3), (interface, 3),
             (forwarding, 1), (reconfigure, 2), (inspect, 1))  # fmt: skip

    def run(self, steps: int) -> None:
        for step in self.numbers.choices([step for step, _ in self.STEPS], [weight for _, weight in self.STEPS], k=steps):
            step(self)

    def drain(self) -> None:
        """Open everything; each interrupt that is pending is delivered once, most urgent first, and then there is silence."""
        self.model.groups = 3
        for n in range(CPUS):
            self.leave(n)
        self.machine.write(DIST + CTLR, 3)
        for irq in self.model.irqs.values():
            if irq.active and irq.owner is None:
                self.machine.set_bit(ICACTIVER, irq.intid, irq.target if irq.intid < 32 else 0)
                irq.active = False
            if irq.intid >= 16:
                irq.line = False
                self.machine.drive(irq.intid, False, irq.target if irq.intid < 32 else None)
        for n in range(CPUS):
            self.enter(n)
        self.settle()
        for n, cpu in enumerate(self.model.cpus):
            cpu.mask, cpu.groups = 0xF8, 3
            for name, value in (("PMR", 0xF8), ("IGRPEN0", 1), ("IGRPEN1", 1)):
                self.access(n, name, value)
            while True:
                while cpu.running:
                    _, irq = cpu.running.pop()
                    irq.active, irq.owner = False, None
                    self.access(n, f"EOIR{irq.group}", irq.intid)
                best = self.model.signalled(n)
                group = 1 if best is None else best.group
                assert self.access(n, f"IAR{group}") == self.model.acknowledge(n, group)
                if best is None:
                    break


@pytest.mark.parametrize("eager", [True, False], ids=["leaves often", "leaves when told"])
@pytest.mark.parametrize("seed", range(6))
def test_against_the_model(seed: int, eager: bool) -> None:
    pair = Pair(seed, eager, spis=3 + 4 * (seed % 3))
    for _ in range(4):
        pair.run(300)
        pair.inspect()
        pair.drain()
    assert pair.delivered > 20


class Guest(threading.Thread):
    """A vCPU's thread: takes every interrupt, sleeps when there is none."""

    def __init__(self, machine: GicMachine, vcpu: FakeVcpu) -> None:
        super().__init__(daemon=True)
        self.machine, self.vcpu = machine, vcpu
        self.wake = threading.Event()
        self.seen: dict[int, int] = {}
        self.stop = False
        vcpu.on_kick = self.wake.set

    def run(self) -> None:
        gic, state = self.machine.gic, self.vcpu.cpu.state
        while not self.stop:
            # As in the run loop: what is announced before `flush` looks is seen by it, what comes later sets `wake`.
            self.wake.clear()
            gic.flush(self.vcpu)
            while not self.wake.is_set():
                intid = gic_virtual.icv_iar1_read(state)
                if intid == SPURIOUS:
                    break
                self.seen[intid] = self.seen.get(intid, 0) + 1
                gic_virtual.icv_eoir1_write(state, intid)
                if gic_virtual.maintenance_pending(state):
                    break
            gic.sync(self.vcpu)
            if not gic.pending(self.vcpu):
                assert self.wake.wait(20), "nobody called"


def test_threads_lose_nothing() -> None:
    machine = GicMachine(cpus=2)
    for intid in range(32, 40):
        machine.setup(intid, 8 * (intid - 30), edge=True, cpu=intid & 1)
    guests = [Guest(machine, vcpu) for vcpu in machine.vcpus]
    for guest in guests:
        guest.start()
    rounds = 150
    for number in range(rounds):
        for intid in range(32, 40):
            machine.pulse(intid)
        machine.sgi(number % 16, targets=3, by=0)
        machine.vcpus[0].kick()
        for guest in guests:
            mine = [32 + n for n in range(8) if n & 1 == guest.vcpu.index] + [number % 16]
            wanted = {intid: number + 1 if intid >= 32 else number // 16 + 1 for intid in mine}
            for _ in range(20_000):
                if all(guest.seen.get(intid, 0) == count for intid, count in wanted.items()):
                    break
                threading.Event().wait(0.0005)
            assert {intid: guest.seen.get(intid, 0) for intid in mine} == wanted
    for guest in guests:
        guest.stop = True
        guest.vcpu.kick()
        guest.join(20)
        assert not guest.is_alive()
