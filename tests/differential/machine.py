"""One vCPU of the engine without a hypervisor: runs instruction words at EL1 or EL0 in this process's own memory.

Both translation stages are off, so guest addresses are host addresses. Everything that is not the instruction's own effect
leads to an HVC with a number of its own: after the instruction, at branch targets and in the vectors.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass

from trapline.arm64.features import Features
from trapline.arm64.regs import CPACR_EL1, ELR_EL2, ESR_EL1, ESR_EL2, HCR_EL2, SCTLR_EL1, SPSR_EL2, VBAR_EL1
from trapline.engine import Cpu, Engine

FINISHED, VECTOR = 0x7A11, 0x7A12
EC_HVC, EC_SVC = 0x16, 0x15
MARKERS = {1: 0xD400_0002 | FINISHED << 5, 0: 0xD400_0001 | FINISHED << 5}
"""What stands after a test: HVC at EL1, SVC (which HCR_EL2.TGE brings to EL2) at EL0."""

MODES = {1: 0x3C5, 0: 0x3C0}
HCR = {
    level: HCR_EL2(RW=1, IMO=1, FMO=1, AMO=1, API=1, APK=1, TGE=level == 0) for level in (0, 1)
}  # fmt: skip
VECTOR_TABLE_BYTES = 0x800


class Memory:
    """Anonymous memory at a known host address."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size)
        self._hold = ctypes.c_char.from_buffer(self.map)
        self.address, self.size = ctypes.addressof(self._hold), size

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.size

    def word(self, address: int, value: int) -> None:
        self.map[address - self.address : address - self.address + 4] = value.to_bytes(4, "little")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: at the marker after the instruction or at a branch target, or in an exception of class `ec`."""

    finished: bool
    pc: int
    ec: int = 0


class Machine:
    """An engine, a vCPU and memory for code."""

    def __init__(self, code_bytes: int, features: Features | None = None) -> None:
        self.engine = Engine(features or Features())
        self.cpu: Cpu = self.engine.create_cpu()
        self.state = self.cpu.state
        self.code = Memory(code_bytes)
        vectors = self.code.address + (-self.code.address & VECTOR_TABLE_BYTES - 1)
        for at in range(vectors, vectors + VECTOR_TABLE_BYTES, 4):
            self.code.word(at, 0xD400_0002 | VECTOR << 5)
        cpu = self.cpu
        cpu[VBAR_EL1] = vectors
        cpu[CPACR_EL1] = CPACR_EL1(FPEN=3)
        cpu[SCTLR_EL1] = SCTLR_EL1.res1 | SCTLR_EL1(SPAN=1, nTWE=1, nTWI=1)
        self.set_level(1)

    def set_level(self, el: int) -> None:
        """Run the following at EL1 or EL0."""
        self.el = el
        self.cpu[HCR_EL2] = int(HCR[el])

    def put(self, address: int, word: int) -> None:
        """Write an instruction word and forget what was decoded there."""
        self.code.word(address, word)
        engine = self.engine
        records = engine.entry.find_records(engine.shared_address, address & -4096)
        if records:
            engine.entry.reset_records(engine.shared_address, records, (address & 4095) >> 2, 1)

    def run(self, pc: int, nzcv: int = 0) -> Outcome:
        """Run from `pc` to a marker or an exception. Flags are bits 31 to 28 of `nzcv`."""
        cpu = self.cpu
        cpu[ELR_EL2], cpu[SPSR_EL2] = pc, MODES[self.el] | nzcv
        exit_ = cpu.enter()
        assert exit_.kind == "sync", exit_
        syndrome = cpu[ESR_EL2]
        ec, imm = syndrome >> 26, syndrome & 0xFFFF
        if ec == (EC_HVC if self.el else EC_SVC) and imm == FINISHED:
            return Outcome(True, cpu[ELR_EL2] - 4)
        if ec == EC_HVC and imm == VECTOR:
            return Outcome(False, 0, cpu[ESR_EL1] >> 26)
        return Outcome(False, cpu[ELR_EL2], ec)

    @property
    def nzcv(self) -> int:
        """The flags that the last run left."""
        return int(self.cpu[SPSR_EL2]) & 0xF000_0000
