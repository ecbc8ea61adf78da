"""A machine that runs no instructions: each entry to the guest plays the next step of a script."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from trapline.arm64.features import Features
from trapline.arm64.regs import ELR_EL2, ESR_EL2, FAR_EL2, HPFAR_EL2
from trapline.arm64.state import CpuState
from trapline.backends.objects import System
from trapline.backends.software import Software
from trapline.kvm.arm64.machine import Arm64

Step = Callable[["FakeCpu"], str | None]


class FakeCpu:
    """Plays `script`: each step changes the state as a guest would and returns why the guest stopped ("sync" if None)."""

    def __init__(self) -> None:
        self.state = CpuState()
        self.script: list[Step] = []
        self.lines = 0
        self.deadline: int | None = None
        self.kicks = 0
        self.flushes = 0
        self.entries = 0

    def enter(self) -> SimpleNamespace:
        self.entries += 1
        return SimpleNamespace(kind=self.script.pop(0)(self) or "sync")

    def reset(self) -> None:
        self.script.clear()

    def instruction_restarts(self) -> None:
        pass

    def request_flush(self) -> None:
        self.flushes += 1

    def kick(self) -> None:
        self.kicks += 1

    def timer_lines(self) -> int:
        return self.lines

    def next_timer_deadline(self) -> int | None:
        return self.deadline

    @property
    def pc(self) -> int:
        return int(self.state.sysreg[ELR_EL2.slot])

    def trap(self, ec: int, iss: int = 0, far: int = 0, ipa: int = 0) -> None:
        self.state.sysreg[ESR_EL2.slot] = ec << 26 | 1 << 25 | iss
        self.state.sysreg[FAR_EL2.slot] = far
        self.state.sysreg[HPFAR_EL2.slot] = ipa >> 12 << 4


class FakeEngine:
    """Makes fake processors and counts TLB maintenance."""

    def __init__(self) -> None:
        self.cpus: list[FakeCpu] = []
        self.flushes: list[tuple[object, ...]] = []

    def create_cpu(self) -> FakeCpu:
        self.cpus.append(FakeCpu())
        return self.cpus[-1]

    def tlbi_vmalls12e1(self, vmid: int) -> None:
        self.flushes.append(("all", vmid))

    def tlbi_ipas2e1is(self, vmid: int, ipa: int, size: int) -> None:
        self.flushes.append(("ipa", vmid, ipa, size))

    def drop_code(self, host_addr: int, size: int) -> None:
        self.flushes.append(("code", host_addr, size))

    def close(self) -> None:
        pass

    def create_posts(self, ring: int, capacity: int) -> None:
        return None


def open_fake() -> tuple[System, FakeEngine]:
    """A software KVM over a fake machine."""
    engine = FakeEngine()
    return System(Software(Arm64(engine, Features()))), engine


def mmio(write: bool, ipa: int, size: int = 4, register: int = 0, signed: bool = False, wide: bool = False) -> Step:
    """A load or store outside memory."""
    sas = {1: 0, 2: 1, 4: 2, 8: 3}[size]
    iss = 1 << 24 | sas << 22 | signed << 21 | register << 16 | wide << 15 | write << 6 | 0x07

    def step(cpu: FakeCpu) -> None:
        cpu.trap(0x24, iss, far=ipa, ipa=ipa)

    return step


def fault(write: bool, ipa: int, fsc: int = 0x07, iss: int = 0, ec: int = 0x24) -> Step:
    """A stage-2 fault without a valid instruction syndrome."""

    def step(cpu: FakeCpu) -> None:
        cpu.trap(ec, iss | write << 6 | fsc, far=ipa, ipa=ipa)

    return step
