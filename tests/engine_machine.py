"""A bare machine for engine tests: memory, stage-1 tables and vCPUs at EL1, without a hypervisor.

Stage 2 is off, so physical addresses are host addresses; HVC ends a run.
"""

from __future__ import annotations

import ctypes
import mmap
import struct

from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import ELR_EL2, ESR_EL2, HCR_EL2, MAIR_EL1, SCTLR_EL1, SPSR_EL2, TCR_EL1, TTBR0_EL1, VBAR_EL1
from trapline.engine import Cpu, Engine

PAGE = 4096
EL1H_MASKED = 0x3C5
EL0 = 0x3C0
EC_HVC = 0x16
PTE_PAGE, PTE_TABLE = 0x703, 0x3
"""A valid page (AF, inner shareable) and a table descriptor."""
PTE_USER, PTE_READONLY, PTE_NONGLOBAL = 1 << 6, 1 << 7, 1 << 11


class Memory:
    """Host memory that guests use by its host address."""

    def __init__(self, pages: int) -> None:
        self._map = mmap.mmap(-1, (pages + 1) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.base = start + -start % PAGE
        self._next = self.base
        self._end = self.base + pages * PAGE

    def page(self, count: int = 1) -> int:
        """Address of fresh zeroed pages."""
        at = self._next
        self._next += count * PAGE
        assert self._next <= self._end, "the test needs more memory"
        return at

    @staticmethod
    def write(at: int, data: bytes) -> None:
        ctypes.memmove(at, data, len(data))

    @staticmethod
    def read(at: int, size: int) -> bytes:
        return ctypes.string_at(at, size)

    def put(self, at: int, value: int) -> None:
        self.write(at, struct.pack("<Q", value))

    def get(self, at: int) -> int:
        return int(struct.unpack("<Q", self.read(at, 8))[0])


class Tables:
    """Stage-1 tables of a 48-bit, 4 KiB granule address space."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.root = memory.page()

    def entry(self, va: int) -> int:
        """Address of the level-3 descriptor of a virtual address."""
        table = self.root
        for shift in (39, 30, 21):
            slot = table + (va >> shift & 511) * 8
            if not self.memory.get(slot):
                self.memory.put(slot, self.memory.page() | PTE_TABLE)
            table = self.memory.get(slot) & 0xFFFF_FFFF_F000
        return table + (va >> 12 & 511) * 8

    def map(self, va: int, pa: int, flags: int = 0) -> None:
        self.memory.put(self.entry(va), pa | PTE_PAGE | flags)


class Bench:
    """An engine, memory and one address space that its vCPUs share."""

    def __init__(self, pages: int = 64, engine: Engine | None = None) -> None:
        self.engine = engine if engine is not None else Engine()
        self.memory = Memory(pages)
        self.tables = Tables(self.memory)
        self.vectors = self.memory.page()
        for offset in range(0, 0x800, 0x80):
            self.memory.write(self.vectors + offset, assemble_program(f"hvc #{0x100 + offset // 0x80}"))
        self.tables.map(self.vectors, self.vectors)

    def load(self, text: str, at: int | None = None) -> int:
        """Assemble a program into a page of its own (mapped at its host address) and return where it starts."""
        at = at if at is not None else self.memory.page()
        self.memory.write(at, assemble_program(text, at))
        self.tables.map(at, at)
        return at

    def cpu(self, pc: int, *, mmu: bool = True, pstate: int = EL1H_MASKED, **registers: int) -> Cpu:
        """A vCPU that will start at `pc`."""
        cpu = self.engine.create_cpu()
        self.start(cpu, pc, mmu=mmu, pstate=pstate, **registers)
        return cpu

    def start(self, cpu: Cpu, pc: int, *, mmu: bool = True, pstate: int = EL1H_MASKED, **registers: int) -> None:
        cpu[HCR_EL2] = int(HCR_EL2(RW=1))
        cpu[VBAR_EL1] = self.vectors
        cpu[MAIR_EL1] = 0xFF
        cpu[TCR_EL1] = 16 | 16 << 16 | 5 << 32 | 1 << 23
        cpu[TTBR0_EL1] = self.tables.root
        cpu[SCTLR_EL1] = (SCTLR_EL1.reset_value() & ~1) | int(mmu)
        cpu[ELR_EL2], cpu[SPSR_EL2] = pc, pstate
        for name, value in registers.items():
            cpu.state.x[int(name[1:])] = value


def hvc_number(cpu: Cpu) -> int:
    """The immediate of the HVC that ended a run; fails if it ended otherwise."""
    esr = cpu[ESR_EL2]
    assert esr >> 26 == EC_HVC, f"the run ended with ESR {esr:#x} at {cpu[ELR_EL2]:#x}"
    return int(esr & 0xFFFF)
