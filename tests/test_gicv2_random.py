"""The GICv2 against the same model as the GICv3: a controller in which everything happens at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
from test_gicv2 import AEOIR, AIAR, CPU, DIST, EOIR, GROUPS, IAR, ITARGETSR, OTHER_GROUP, PMR
from test_gicv2 import CTLR as CONTROL
from test_vgic_stress import CPUS, SPURIOUS, Model, Pair
from vgic_machine import FakeVm, GicMachine

from trapline.kvm.arm64.vgic import VgicV2

FIQ_ENABLE = 1 << 3
PLACES = {"PMR": PMR, "IAR0": IAR, "IAR1": AIAR, "EOIR0": EOIR, "EOIR1": AEOIR}


class LegacyMachine(GicMachine):
    """A GICv2 with the handles of a GICv3's test machine. Private interrupts are reached by their own vCPU only."""

    def __init__(self) -> None:
        self.vm = FakeVm(CPUS)  # type: ignore[assignment]
        self.vcpus = self.vm.vcpus
        self.gic = VgicV2(self.vm)  # type: ignore[assignment]
        self.outside: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()
        """Takes a vCPU out of its guest while it makes an access."""
        for group, attr, value in ((GROUPS.NR_IRQS, 0, 64), (GROUPS.ADDR, 0, DIST), (GROUPS.ADDR, 1, CPU)):
            self.gic.set_attr(group, attr, value)
        for n, vcpu in enumerate(self.vcpus):
            self.gic.first_run(vcpu)
            self.write(CPU + PMR, 0xFF, by=n)
            self.write(CPU + CONTROL, FIQ_ENABLE | 3, by=n)
        self.write(DIST + CONTROL, 1)

    def frame(self, intid: int, owner: int = 0) -> int:
        return DIST

    def write(self, address: int, value: int, length: int = 4, by: int = 0) -> None:
        with self.outside(by):
            super().write(address, value, length, by)

    def bit(self, register: int, intid: int, owner: int = 0) -> int:
        return self.read(DIST + register + intid // 32 * 4, by=owner) >> intid % 32 & 1

    def set_bit(self, register: int, intid: int, owner: int = 0, by: int = 0) -> None:
        self.write(DIST + register + intid // 32 * 4, 1 << intid % 32, by=owner if intid < 32 else by)

    def priority(self, intid: int, value: int, owner: int = 0) -> None:
        self.write(DIST + 0x400 + intid, value, 1, owner)

    def group(self, intid: int, value: int, owner: int = 0) -> None:
        at = DIST + 0x80 + intid // 32 * 4
        self.write(at, self.read(at, by=owner) & ~(1 << intid % 32) | value << intid % 32, by=owner)

    def route(self, intid: int, affinity: int) -> None:
        self.write(DIST + ITARGETSR + intid, 1 << affinity, 1)


class LegacyPair(Pair):
    """Every access of a guest to its CPU interface is an exit."""

    def __init__(self, seed: int, eager: bool, spis: int) -> None:
        self.numbers = random.Random(seed)
        self.eager = eager
        self.machine = LegacyMachine()
        self.model = Model(range(32, 32 + spis), range(16, 19))
        self.inside = [False] * CPUS
        self.kicked: set[int] = set()
        self.machine.outside = self.trap
        for n, vcpu in enumerate(self.machine.vcpus):
            vcpu.on_kick = lambda n=n: self.kicked.add(n)  # type: ignore[misc]
        for irq in self.model.irqs.values():
            self.configure(irq)
        self.delivered = 0

    def access(self, n: int, name: str, value: int | None = None) -> int:
        with self.trap(n):
            if name.startswith("IGRPEN"):
                bit = 1 << int(name[-1])
                control = self.machine.read(CPU + CONTROL, by=n)
                self.machine.write(CPU + CONTROL, control | bit if value else control & ~bit, by=n)
                self.leave(n)
                return 0
            if value is not None:
                self.machine.write(CPU + PLACES[name], value, by=n)
                self.leave(n)
                return 0
            found = self.machine.read(CPU + PLACES[name], by=n)
        return SPURIOUS if found == OTHER_GROUP else found

    def forwarding(self) -> None:
        """There is one enable for both groups."""
        self.model.groups = self.numbers.choice((3, 3, 0))
        self.machine.write(DIST + CONTROL, self.model.groups & 1)

    def run(self, steps: int) -> None:
        names = [step.__name__ for step, _ in self.STEPS]
        for name in self.numbers.choices(names, [weight for _, weight in self.STEPS], k=steps):
            getattr(self, name)()


@pytest.mark.parametrize("seed", range(6))
def test_against_the_model(seed: int) -> None:
    pair = LegacyPair(seed, True, spis=3 + 4 * (seed % 3))
    for _ in range(3):
        pair.run(300)
        pair.inspect()
        pair.drain()
    assert pair.delivered > 20
