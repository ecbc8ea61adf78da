"""The walker and compiled code side by side: the same word, state and memory, and what comes out different."""

from __future__ import annotations

import ctypes
import random
import struct
from dataclasses import dataclass
from typing import Any

from tests.differential import values
from tests.differential.machine import MARKERS, Machine, Memory
from trapline.arm64.asm import disassemble
from trapline.arm64.insn import Insn
from trapline.arm64.regs import FPCR, FPSR, SCTLR_EL1, TABLE
from trapline.arm64.state import CpuState
from trapline.arm64.walker import Walker

CODE_BYTES = 400 << 20
"""A direct branch reaches 128 MiB each way."""
SLOT_BYTES, FIRST_SLOT = 16, 140 << 20
WINDOW_BYTES = 3 * 4096
KEYS_ON = SCTLR_EL1(EnIA=1, EnIB=1, EnDA=1, EnDB=1)
VECTORS, GENERAL = CpuState.v.offset, CpuState.x.offset
REGISTERS = struct.Struct("<64Q31Q")
SYSREG_BYTES = ctypes.sizeof(CpuState) - CpuState.sysreg.offset
EXCEPTION_CLASS = {"undefined": 0, "smc": 0, "svc": 0x15, "hvc": 0x16, "brk": 0x3C, "pac_trap": 0x09, "disabled": 0}
"""What the walker calls the exceptions, and their classes."""


class Elsewhere(Exception):
    """The walker met an access outside its memory."""


class Taken(Exception):
    """The walker met an exception or a system operation."""


class View:
    """The walker's memory: a private copy of the window, and the code as it is."""

    def __init__(self, window: Memory, code: Memory) -> None:
        self.window, self.code = window, code
        self.data = bytearray(window.size)
        self.probing: list[tuple[int, int]] | None = None

    def load(self, address: int, size: int) -> int:
        if self.probing is not None:
            self.probing.append((address, size))
            return 0
        at = address - self.window.address
        if 0 <= at <= self.window.size - size:
            return int.from_bytes(self.data[at : at + size], "little")
        at = address - self.code.address
        if 0 <= at <= self.code.size - size:
            return int.from_bytes(self.code.map[at : at + size], "little")
        raise Elsewhere(hex(address))

    def store(self, address: int, size: int, value: int) -> None:
        if self.probing is not None:
            self.probing.append((address, size))
            return
        at = address - self.window.address
        if not 0 <= at <= self.window.size - size:
            raise Elsewhere(hex(address))
        self.data[at : at + size] = value.to_bytes(size, "little")


class _Held:
    """A monitor that holds whatever it is asked about, so that probing sees the stores of exclusives."""

    def __getitem__(self, key: object) -> _Held:
        return self

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Case:
    """One word in one state."""

    insn: Insn
    word: int
    el: int
    seed: int

    def __str__(self) -> str:
        return f"{self.word:08x} {disassemble(self.word) or self.insn.name} at EL{self.el}, seed {self.seed}"


def answer(kind: str, name: str, *args: int) -> int | None:
    """The walker's system operations: barriers and events do nothing that shows, the rest is beyond it."""
    if kind == "barrier" or name in ("clrex", "relax", "sev", "sevl", "wfe", "wfi", "wfet", "wfit"):
        return None
    raise Taken(name)


class Pair:
    """Runs cases on both and tells the differences."""

    def __init__(self) -> None:
        self.machine = Machine(CODE_BYTES)
        self.window = Memory(WINDOW_BYTES)
        self.view = View(self.window, self.machine.code)
        self.walker_state = CpuState()
        self.walker = Walker(self.walker_state, self.view, answer)
        self.pristine = random.Random(1).randbytes(WINDOW_BYTES)
        self.slots = 0
        self.beyond: set[str] = set()
        """Instructions whose system operation the walker leaves to others: only the fact was compared."""
        self._sysregs = ctypes.string_at(self.machine.cpu.address + CpuState.sysreg.offset, SYSREG_BYTES)
        self._ignored = {reg.slot for reg in TABLE if reg.name in IGNORED}

    # -- state -----------------------------------------------------------------------------------------------------------
    def _randomise(self, rng: random.Random, el: int) -> None:
        state = self.walker_state
        ctypes.memset(ctypes.addressof(state), 0, ctypes.sizeof(state))
        ctypes.memmove(ctypes.addressof(state) + CpuState.sysreg.offset, self._sysregs, SYSREG_BYTES)
        halves = []
        for _ in range(32):
            value = values.vector(rng)
            halves += [value & values.ONES, value >> 64]
        registers = REGISTERS.pack(*halves, *(values.integer(rng) for _ in range(31)))
        ctypes.memmove(ctypes.addressof(state) + VECTORS, registers, len(registers))
        state.sp = self.window.address + 16 * rng.randrange(64, 640)
        state.n, state.z, state.c, state.v_flag = (rng.getrandbits(1) for _ in range(4))
        state.el = state.spsel = el
        state.daif = 15
        state.sysreg[FPCR.slot] = values.fpcr(rng)
        state.sysreg[FPSR.slot] = rng.getrandbits(32) & values.FPSR_BITS if rng.getrandbits(1) else 0
        if rng.getrandbits(1):
            state.sysreg[SCTLR_EL1.slot] |= int(KEYS_ON)

    def _address(self, rng: random.Random, size: int) -> int:
        """Where an access of `size` bytes goes: often aligned, often at a page's end."""
        at = rng.randrange(0, WINDOW_BYTES - size)
        if rng.randrange(4) == 0:
            at = rng.choice((4096, 8192)) - rng.randrange(0, size + 2)
        elif rng.randrange(4):
            at &= -16
        return self.window.address + at

    def _steer(self, case: Case, rng: random.Random) -> bool:
        """Move the base register so that the instruction's accesses fall into memory. False if nothing helps."""
        recording = case.insn.record_word(case.word, slot)
        rn = next((f.of(case.word) for f in case.insn.pattern.fields if f.name == "Rn"), None)
        if case.insn.name.startswith("sys_dc"):
            rn = case.word & 31
        saved = bytes(self.walker_state)
        aligned = any(getattr(getattr(e, "access", None), "aligned", False) for e in recording.effects)
        for _ in range(3):
            probed = self._probe(recording, saved)
            if all(self._inside(a, n) and not (aligned and a % n) for a, n in probed):
                return True
            if rn is None:
                return False
            first = min(a for a, _ in probed)
            total = max(a + n for a, n in probed) - first
            if total > 512:
                return False
            wanted = self._address(rng, total)
            if aligned:
                wanted &= -total if total & total - 1 == 0 else -16
            state = self.walker_state
            if rn == 31:
                state.sp = state.sp + wanted - first & values.ONES
            else:
                state.x[rn] = state.x[rn] + wanted - first & values.ONES
            saved = bytes(state)
        return False

    def _probe(self, recording: Any, saved: bytes) -> list[tuple[int, int]]:
        self.view.probing = []
        self.walker.monitor = _Held()  # type: ignore[assignment]
        try:
            self.walker.run(recording)
        except (Taken, Elsewhere):
            pass
        probed, self.view.probing = self.view.probing, None
        ctypes.memmove(ctypes.addressof(self.walker_state), saved, len(saved))
        return probed

    def _inside(self, address: int, size: int) -> bool:
        return any(m.address <= address <= m.address + m.size - size for m in (self.window, self.machine.code))

    # -- running ---------------------------------------------------------------------------------------------------------
    def run(self, case: Case) -> list[str] | None:
        """Differences as text; None if the case can't be run (memory out of reach)."""
        rng = random.Random(case.seed)
        state, machine = self.walker_state, self.machine
        self.slots += 1
        pc = machine.code.address + FIRST_SLOT + SLOT_BYTES * self.slots + 12
        self._randomise(rng, case.el)
        state.pc = pc
        if case.insn.group in ("branches", "pauth"):
            target = pc + 16 * rng.randrange(1 << 20) + 8
            state.x[30] = target
            if any(f.name == "Rn" for f in case.insn.pattern.fields) and case.word >> 5 & 31 != 31:
                state.x[case.word >> 5 & 31] = target
        if not self._steer(case, rng):
            return None
        if case.el != machine.el:
            machine.set_level(case.el)
        self._hand_over()
        recording = case.insn.record_word(case.word, slot)
        self.view.data[:] = self.pristine
        self.window.map[:] = self.pristine
        self.walker.monitor = None
        machine.put(pc, case.word)
        machine.put(pc + 4, MARKERS[case.el])
        taken = ""
        try:
            self.walker.run(recording)
        except Taken as exception:
            taken = str(exception)
        except Elsewhere:
            return None
        if not taken and state.pc != pc + 4:
            if state.pc not in machine.code or state.pc & 3 or state.pc == pc:
                return None
            machine.put(state.pc, MARKERS[case.el])
        outcome = machine.run(pc, self._flags)
        if taken or not outcome.finished:
            return self._compare_exception(case, taken, outcome)
        return self._differences(outcome.pc)

    def _hand_over(self) -> None:
        """Copy the walker's state to the engine's."""
        ours, state = self.walker_state, self.machine.state
        size = CpuState.xzr_sink.offset
        ctypes.memmove(self.machine.cpu.address, ctypes.addressof(ours), size)
        state.sp_el[ours.el] = ours.sp
        state.sysreg[FPCR.slot], state.sysreg[FPSR.slot] = ours.sysreg[FPCR.slot], ours.sysreg[FPSR.slot]
        state.sysreg[SCTLR_EL1.slot] = ours.sysreg[SCTLR_EL1.slot]
        for s in self._ignored:
            ours.sysreg[s] = state.sysreg[s]
        ours.sp_el[:] = state.sp_el[:]
        hcr = TABLE["HCR_EL2"].slot
        ours.sysreg[hcr] = state.sysreg[hcr]
        self._flags = ours.n << 31 | ours.z << 30 | ours.c << 29 | ours.v_flag << 28

    def _compare_exception(self, case: Case, taken: str, outcome: Any) -> list[str]:
        if outcome.finished:
            return [f"walker took {taken}, compiled code went on"]
        if not taken:
            return [f"compiled code took exception class {outcome.ec:#x}, walker none"]
        expected = EXCEPTION_CLASS.get(taken)
        if expected is None:
            self.beyond.add(f"{case.insn.name} ({taken})")
        if taken == "hvc" and self.machine.el == 0:
            expected = 0
        if expected is not None and outcome.ec != expected:
            return [f"walker took {taken}, compiled code exception class {outcome.ec:#x}"]
        return []

    def _differences(self, pc: int) -> list[str]:
        ours, machine = self.walker_state, self.machine
        theirs = machine.state
        rows = [("pc", ours.pc, pc), ("sp", ours.sp, theirs.sp_el[ours.el])]
        flags = ours.n << 31 | ours.z << 30 | ours.c << 29 | ours.v_flag << 28
        rows.append(("nzcv", flags, machine.nzcv))
        size = CpuState.xzr_sink.offset
        if ctypes.string_at(ctypes.addressof(ours), size) != ctypes.string_at(machine.cpu.address, size):
            rows += [(f"x{n}", ours.x[n], theirs.x[n]) for n in range(32)]
            rows += [(f"v{n}", ours.v[n].lo | ours.v[n].hi << 64, theirs.v[n].lo | theirs.v[n].hi << 64) for n in range(32)]
        a = bytes(ours)[CpuState.sysreg.offset :]
        b = ctypes.string_at(machine.cpu.address + CpuState.sysreg.offset, SYSREG_BYTES)
        if a != b:
            rows += [(reg.name, ours.sysreg[reg.slot], theirs.sysreg[reg.slot]) for reg in TABLE if reg.slot not in self._ignored]
        found = [f"{name}: walker {x:#x}, compiled {y:#x}" for name, x, y in rows if x != y]
        if self.view.data != self.window.map[:]:
            found += [
                f"memory +{k:#x}: walker {x:#x}, compiled {y:#x}"
                for k, (x, y) in enumerate(zip(self.view.data, self.window.map[:], strict=True))
                if x != y
            ][:32]
        return found


IGNORED = frozenset({"ELR_EL2", "SPSR_EL2", "ESR_EL2", "FAR_EL2", "HPFAR_EL2", "HCR_EL2", "ESR_EL1", "ELR_EL1", "SPSR_EL1",
                     "FAR_EL1", "VBAR_EL1", "CPACR_EL1"})  # fmt: skip
"""Registers that the run itself changes: exceptions to EL2, and set-up that differs by exception level."""


def slot(name: str) -> int:
    """Storage of a system register."""
    return TABLE[name].slot


def random_word(insn: Insn, shape: int, rng: random.Random) -> int:
    """A word of this instruction and shape, with random operands (registers often alike, immediates often extreme)."""
    word = insn.pattern.value | rng.getrandbits(32) & ~insn.pattern.mask
    shape_values = insn.shape_values(shape)
    reuse: list[int] = []
    for f in insn.pattern.fields:
        mask = (1 << f.width) - 1
        if f.name in shape_values:
            value = shape_values[f.name]
        elif f.name.startswith("R"):
            value = rng.choice(reuse) if reuse and rng.randrange(6) == 0 else rng.choice((31, rng.randrange(32), rng.randrange(32)))
            reuse.append(value)
        else:
            value = rng.choice((0, 1, mask, mask >> 1, rng.getrandbits(f.width), rng.getrandbits(f.width)))
        word = word & ~(mask << f.lo) | value << f.lo
    return word
