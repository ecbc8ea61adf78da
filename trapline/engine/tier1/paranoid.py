"""Checking compiled regions on the guest's own states: the walker, which is the definition, runs ahead and must be followed.

A region's record first runs a handler that comes here. From the state of that moment the walker runs the guest's instructions one
by one, with its stores held back; then the region runs from the same state until it asks for work, and must have come to one of
the walker's states: same registers, flags, memory. A region that passed a few times is put into service; one that fails is named,
and never is. For one vCPU at a time, without devices that write to memory meanwhile.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trapline.arm64 import effects as fx
from trapline.arm64.decode import Decoder
from trapline.arm64.record import Recorder
from trapline.arm64.regs import ELR_EL2, SPSR_EL2, TABLE
from trapline.arm64.state import CpuState
from trapline.arm64.walker import Walker
from trapline.engine.cpu import IRQ, Cpu, EngineExit
from trapline.engine.state import Exit
from trapline.engine.tier1.regions import supported
from trapline.errors import NotSupported

if TYPE_CHECKING:
    from trapline.engine.engine import Engine
    from trapline.engine.tier1.install import Linked

PASSES = 3
"""How often a region is followed before it is trusted."""
STEPS = 400
"""Instructions that the walker runs ahead."""
FLAGS = (("n", 31), ("z", 30), ("c", 29), ("v_flag", 28))
READ, WRITE = 0, 0x100
PAGE = 4096


class Unanswered(Exception):
    """The walker came to something that only the engine does."""


@dataclass
class Report:
    """What was checked: regions that passed, entries followed, those that could not be, and what differed."""

    followed: int = 0
    inconclusive: int = 0
    trusted: int = 0
    mismatches: list[str] = field(default_factory=list)


class Ahead:
    """The guest's memory with the walker's stores in front of it."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self.stores: dict[int, int] = {}
        """Bytes by host address."""

    def _host(self, address: int, size: int, write: int) -> int:
        if (address & PAGE - 1) + size > PAGE:
            raise Unanswered
        host = self._cpu.engine.entry.fill(self._cpu.address, address & (1 << 64) - 1, size | write)
        if not host:
            raise Unanswered
        return host

    def load(self, address: int, size: int) -> int:
        host = self._host(address, size, READ)
        data = bytearray(ctypes.string_at(host, size))
        for k in range(size):
            data[k] = self.stores.get(host + k, data[k])
        return int.from_bytes(data, "little")

    def store(self, address: int, size: int, value: int) -> None:
        host = self._host(address, size, WRITE)
        for k, byte in enumerate(value.to_bytes(size, "little")):
            self.stores[host + k] = byte


@dataclass(frozen=True, slots=True)
class Step:
    """The walker's state after so many instructions."""

    pc: int
    registers: bytes
    stores: dict[int, int]


@dataclass(frozen=True, slots=True)
class Walk:
    """The states that the guest's next instructions make, the present one first."""

    steps: list[Step]
    broken: bool
    """Whether it ends where the walker could not go on, which a run of the engine may pass."""


def _visible(state: CpuState, sp: int, nzcv: int, fp: tuple[int, ...]) -> bytes:
    """What is compared of a state."""
    head = bytes(state.v) + bytes(state.x)[: 31 * 8]
    return head + b"".join(value.to_bytes(8, "little") for value in (sp, nzcv, *fp))


class ParanoidCpu(Cpu):
    """A PE that follows every region a few times before it runs it freely."""

    def __init__(self, engine: Engine, index: int) -> None:
        super().__init__(engine, index)
        self.report = Report()
        self._passes: Counter[str] = Counter()
        self._regions: dict[int, tuple[Linked, int]] = {}
        """What waits to be followed and whose place it took, by the address of its record."""
        self._current: tuple[Linked, int, Walk] | None = None
        self._decoder = Decoder(engine.code.compiler.isa)
        self._fp = tuple(TABLE[name].slot for name in ("FPCR", "FPSR"))

    def follow(self, record: int, linked: Linked, handler: int) -> None:
        """Have a region checked when its record, which had this handler, comes up."""
        self._regions[record] = linked, handler

    def enter(self) -> EngineExit:
        exit = super().enter()
        if self._current is not None:
            self._compare(exit)
        return exit

    def run_here(self, launch: bool) -> int:
        raise NotSupported("TRAPLINE_TIER1=paranoid is for machines with Trapline's KVM, and not for --machine bare")

    def _outside(self, code: int) -> None:
        if code != Exit.CHECK:
            super()._outside(code)
            return
        record = self.state.records + ((self.state.pc & PAGE - 1) << 3)
        linked, _ = self._regions[record]
        ctypes.c_uint64.from_address(record).value = linked.address
        if self._passes[linked.built.tag] >= PASSES:
            self.report.trusted += 1
            return
        self._current = (linked, record, self._walk())
        self.state.poll_check = 1

    # -- the walker ------------------------------------------------------------------------------------------------------
    @functools.cache  # noqa: B019 - a PE lives as long as its machine
    def _recording(self, word: int) -> Recorder | None:
        insn = self._decoder.decode(word)
        if insn is None or insn.feature is not None and insn.feature not in self.engine.features:
            return None
        recording = insn.record_word(word, lambda name: TABLE[name].slot)
        plain = not recording.after and not any(
            isinstance(e, fx.Raise) or isinstance(e, fx.System) and e.when is None for e in recording.effects
        )
        return recording if plain and supported(recording) else None

    def _walk(self) -> Walk:
        state = CpuState.from_buffer_copy(self.state)
        memory = Ahead(self)
        walker = Walker(state, memory, _refuse)
        steps = []
        for _ in range(STEPS):
            nzcv = sum(getattr(state, name) << bit for name, bit in FLAGS)
            registers = _visible(state, state.sp, nzcv, tuple(state.sysreg[slot] for slot in self._fp))
            steps.append(Step(state.pc, registers, dict(memory.stores)))
            try:
                recording = self._recording(memory.load(state.pc, 4))
                if recording is None:
                    return Walk(steps, broken=True)
                walker.run(recording)
            except (Unanswered, NotImplementedError):  # the latter from what asks the host, as for the time
                return Walk(steps, broken=True)
        return Walk(steps, broken=False)

    # -- the verdict -----------------------------------------------------------------------------------------------------
    def _compare(self, exit: EngineExit) -> None:
        assert self._current is not None
        linked, record, walk = self._current
        self._current = None
        self.state.poll_check = 0
        tag = linked.built.tag
        pc = self[ELR_EL2]
        reached = [s for s in walk.steps[1:] if s.pc == pc]
        if exit is not IRQ or not reached or self._now() == walk.steps[0].registers:  # an interrupt may have come first
            self.report.inconclusive += 1
            self._passes[tag] += 1  # it takes exceptions, or ends in code that the walker does not know
        else:
            problem = self._difference(reached)
            if problem is None:
                self.report.followed += 1
                self._passes[tag] += 1
            elif walk.broken:
                self.report.inconclusive += 1  # the walker may have been here before: in a function that is called twice
                self._passes[tag] += 1
            else:
                words = " ".join(f"{w:08x}" for _, _, w in linked.built.words)
                self.report.mismatches.append(f"region {tag} at {walk.steps[0].pc:#x}, left at {pc:#x}: {problem}\n  {words}")
                _, ctypes.c_uint64.from_address(record).value = self._regions[record]
                return
        ctypes.c_uint64.from_address(record).value = self.engine.check_address

    def _now(self) -> bytes:
        """The guest's state after the run."""
        spsr = self[SPSR_EL2]
        sp = self.state.sp_el[(spsr >> 2 & 3) if spsr & 1 else 0]
        return _visible(self.state, sp, spsr & 0xF << 28, tuple(self.state.sysreg[slot] for slot in self._fp))

    def _difference(self, reached: list[Step]) -> str | None:
        now = self._now()
        same = [s for s in reached if s.registers == now]
        if not same:
            nearest = min(reached, key=lambda s: sum(a != b for a, b in zip(s.registers, now, strict=True)))
            return "; ".join(
                f"{_name(k)} is {now[k : k + 8].hex()}, should be {nearest.registers[k : k + 8].hex()} (little-endian)"
                for k in range(0, len(now), 8)
                if now[k : k + 8] != nearest.registers[k : k + 8]
            )
        for step in same:
            if all(ctypes.c_uint8.from_address(host).value == byte for host, byte in step.stores.items()):
                return None
        return "registers agree, memory does not"


def _name(offset: int) -> str:
    """The register at an offset of what is compared."""
    if offset < 512:
        return f"v{offset // 16}{'.lo' if offset % 16 == 0 else '.hi'}"
    index = (offset - 512) // 8
    return f"x{index}" if index < 31 else ("sp", "nzcv", "fpcr", "fpsr")[index - 31]


def _refuse(*_: object) -> int | None:
    raise Unanswered
