"""A KVM whose guests are Python generators: what the virtual machine monitor needs of one, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from trapline.abi.caps import Cap
from trapline.abi.exits import Exit, IntrExit, MmioExit

Program = Callable[["FakeVcpu"], Iterator[Exit]]
"""A guest: yields exits; after a read, the vCPU's `answer` is what it got."""


class FakeMemory:
    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))


class FakeRegs:
    """Registers that remember what they were set to; everything else is 0."""

    def __init__(self) -> None:
        self.pc = self.x0 = self.elr_el1 = 0

    def dump(self) -> dict[str, int]:
        return {**{f"x{n}": 0 for n in range(31)}, "x0": self.x0, "sp": 0, "pc": self.pc, "pstate": 0x3C5}


class FakeVcpu:
    level = 1

    def __init__(self, id: int, program: Program) -> None:
        self.id = id
        self.regs = FakeRegs()
        self.kicked = threading.Event()
        self.sysregs: dict[int, int] = {}
        self.sticky: set[int] = set()
        """System registers that the guest itself keeps setting to what they are."""
        self.aborts = 0
        self._read: MmioExit | None = None
        self._program = program(self)

    @property
    def answer(self) -> int:
        assert self._read is not None
        return self._read.value

    def run(self) -> Exit:
        if self.kicked.is_set():
            self.kicked.clear()
            return IntrExit()
        exit = next(self._program, None)
        if exit is None:  # the guest does nothing any more
            self.kicked.wait()
            self.kicked.clear()
            return IntrExit()
        if isinstance(exit, MmioExit):
            self._read = exit
        return exit

    def kick(self) -> None:
        self.kicked.set()

    def get_one_reg(self, reg_id: int) -> int:
        return self.sysregs.get(reg_id, 0)

    def set_one_reg(self, reg_id: int, value: int) -> None:
        if reg_id not in self.sticky:
            self.sysregs[reg_id] = value

    def inject_external_abort(self) -> None:
        self.aborts += 1


class FakeDevice:
    def __init__(self) -> None:
        self.attributes: list[tuple[int, int, int]] = []

    def set_attr(self, group: int, attr: int, value: int = 0, width: int = 8) -> None:
        self.attributes.append((group, attr, value))


class FakeVm:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.memory: dict[int, FakeMemory] = {}
        self.lines: list[tuple[int, bool]] = []
        self.vcpus: list[FakeVcpu] = []
        self.closed = False

    def add_memory(self, guest_phys_addr: int, size: int, flags: int = 0) -> FakeMemory:
        self.memory[guest_phys_addr] = FakeMemory(size)
        return self.memory[guest_phys_addr]

    def create_vcpu(self, id: int, features: Any = ()) -> FakeVcpu:
        self.vcpus.append(FakeVcpu(id, self.program if id == 0 else lambda vcpu: iter(())))
        return self.vcpus[-1]

    def create_device(self, kind: int) -> FakeDevice:
        return FakeDevice()

    def check_extension(self, cap: int) -> int:
        return int(cap not in (Cap.ARM_PMU_V3, Cap.STEAL_TIME, Cap.COALESCED_MMIO))

    def enable_cap(self, cap: int, *args: int) -> int:
        return 0

    def set_irq(self, intid: int, level: bool) -> None:
        self.lines.append((intid, level))

    def close(self) -> None:
        self.closed = True


class FakeSystem:
    """Each machine that is made takes the next program; the last one stays."""

    turns = None

    def __init__(self, *programs: Program) -> None:
        self.programs = list(programs)
        self.vms: list[FakeVm] = []

    def create_vm(self) -> FakeVm:
        self.vms.append(FakeVm(self.programs.pop(0) if len(self.programs) > 1 else self.programs[0]))
        return self.vms[-1]


def write(address: int, value: int, length: int = 4) -> MmioExit:
    return MmioExit(address, value.to_bytes(length, "little"), length, True)


def read(address: int, length: int = 4) -> MmioExit:
    return MmioExit(address, bytes(length), length, False)


def prints(text: str) -> Iterator[Exit]:
    """What a guest does to send text through the UART."""
    for byte in text.encode():
        yield write(0x0900_0000, byte)
