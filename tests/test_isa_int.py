"""Base instructions: the walker against Unicorn on random words and states."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.oracles import executes
from trapline.arm64.asm import assemble, disassemble
from trapline.arm64.decode import Decoder
from trapline.arm64.insn import A64, Insn
from trapline.arm64.isa import load_a64
from trapline.arm64.regs import TABLE
from trapline.arm64.state import CpuState
from trapline.arm64.walker import Walker

unicorn = pytest.importorskip("unicorn", reason="BASE INSTRUCTIONS NOT COMPARED: unicorn is not installed")
from unicorn import arm64_const as uc  # noqa: E402

load_a64()
DECODER = Decoder(A64)
BASE, SIZE = 0x4000_0000, 4 << 20
CODE = BASE + SIZE // 2
EDGE_VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)

GROUPS = ("data_immediate", "data_register", "branches", "load_store", "load_store_pair", "load_store_fp", "load_store_exclusive",
          "atomics")  # fmt: skip
SKIP = {"eret", "drps"}


class Fault(Exception):
    """Memory outside the region, or an exception."""


class Region:
    """Memory of the walker; it remembers what was written."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.written: list[tuple[int, int]] = []

    def load(self, address: int, size: int) -> int:
        at = address - BASE
        if not 0 <= at <= SIZE - size:
            raise Fault
        return int.from_bytes(self.data[at : at + size], "little")

    def store(self, address: int, size: int, value: int) -> None:
        self.load(address, size)
        self.written.append((address, size))
        self.data[address - BASE : address - BASE + size] = value.to_bytes(size, "little")


def fail(kind: str, name: str, *args: int) -> None:
    if kind == "raise":
        raise Fault(name)


class Pair:
    """A Unicorn machine and a walker with the same state."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        data = rng.randbytes(SIZE // 2) + bytes.fromhex("1f2003d5") * 0x4000 + rng.randbytes(SIZE // 2 - 0x10000)
        self.machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.machine.ctl_set_cpu_model(uc.UC_CPU_ARM64_MAX)
        self.machine.mem_map(BASE, SIZE)
        self.machine.mem_write(BASE, data)
        self.machine.reg_write(uc.UC_ARM64_REG_CPACR_EL1, 3 << 20)
        self.machine.hook_add(unicorn.UC_HOOK_MEM_WRITE, self._note_write)
        self.state = CpuState()
        self.state.el = 1
        self.memory = Region(data)
        self.walker = Walker(self.state, self.memory, fail)
        self.stores: list[tuple[int, int]] = []
        self.pc = CODE
        self.xs = [getattr(uc, f"UC_ARM64_REG_X{n}") for n in range(31)]
        self.qs = [getattr(uc, f"UC_ARM64_REG_Q{n}") for n in range(32)]

    def _note_write(self, machine: Any, kind: int, address: int, size: int, value: int, data: Any) -> None:
        self.stores.append((address, size))

    def random_value(self) -> int:
        choice = self.rng.randrange(4)
        if choice == 0:
            return self.rng.choice(EDGE_VALUES)
        if choice == 1:
            return self.rng.getrandbits(8)
        return self.rng.getrandbits(64)

    def address(self) -> int:
        return BASE + SIZE // 8 + (self.rng.getrandbits(20) & ~self.rng.choice((0, 3, 15, 15, 15)))

    def randomise(self, word: int, instruction: Insn) -> None:
        """New random registers; those that this word uses as a base hold addresses."""
        state = self.state
        for n in range(31):
            state.x[n] = self.random_value()
        state.sp = self.address() & ~15
        for n in range(32):
            state.v[n].lo, state.v[n].hi = self.random_value(), self.random_value()
        if "load_store" in instruction.group or instruction.group == "atomics":
            fields = {f.name: f.of(word) for f in instruction.pattern.fields}
            if "Rm" in fields and fields["Rm"] < 31:
                state.x[fields["Rm"]] = self.rng.getrandbits(15) * self.rng.choice((1, -1)) % 2**64
            if fields.get("Rn", 31) < 31:
                alignment = 15 if instruction.group in ("atomics", "load_store_exclusive") else 0
                state.x[fields["Rn"]] = self.address() & ~alignment
        if instruction.group == "branches":
            for f in instruction.pattern.fields:
                if f.name == "Rn" and f.of(word) < 31:
                    state.x[f.of(word)] = (self.address() + SIZE // 2) & ~3
        state.n, state.z, state.c, state.v_flag = (self.rng.getrandbits(1) for _ in range(4))
        machine = self.machine
        for number, register in enumerate(self.xs):
            machine.reg_write(register, state.x[number])
        for number, register in enumerate(self.qs):
            machine.reg_write(register, state.v[number].lo | state.v[number].hi << 64)
        machine.reg_write(uc.UC_ARM64_REG_SP, state.sp)
        machine.reg_write(uc.UC_ARM64_REG_NZCV, state.n << 31 | state.z << 30 | state.c << 29 | state.v_flag << 28)

    def step(self, word: int, instruction: Insn) -> bool:
        """Run one word on both; False if it faulted on both."""
        self.pc += 16  # Unicorn's atomics fail after code was overwritten, so each word has a place of its own
        for memory_write in (self.machine.mem_write, self.memory_write):
            memory_write(self.pc, word.to_bytes(4, "little"))
        self.stores, self.memory.written = [], []
        self.state.pc = self.pc
        faulted = [False, False]
        try:
            self.walker.run(instruction.record_word(word, lambda name: TABLE[name].slot))
        except Fault:
            faulted[1] = True
        try:
            self.machine.emu_start(self.pc, 0 if faulted[1] else self.state.pc, count=1)
        except unicorn.UcError:
            faulted[0] = True
        if faulted[0] and not faulted[1] and self.machine.reg_read(uc.UC_ARM64_REG_PC) == self.state.pc:
            faulted[0] = False  # fetching from the branch's target failed
        assert faulted[0] == faulted[1], f"{disassemble(word, self.pc)} faulted: unicorn {faulted[0]}, walker {faulted[1]}"
        return not faulted[0]

    def memory_write(self, address: int, data: bytes) -> None:
        self.memory.data[address - BASE : address - BASE + len(data)] = data

    def differences(self) -> list[str]:
        machine, state = self.machine, self.state
        found = [(f"x{n}", state.x[n], machine.reg_read(register)) for n, register in enumerate(self.xs)]
        found += [(f"q{n}", state.v[n].lo | state.v[n].hi << 64, machine.reg_read(r)) for n, r in enumerate(self.qs)]
        nzcv = state.n << 31 | state.z << 30 | state.c << 29 | state.v_flag << 28
        found.append(("sp", state.sp, machine.reg_read(uc.UC_ARM64_REG_SP)))
        found.append(("pc", state.pc, machine.reg_read(uc.UC_ARM64_REG_PC)))
        found.append(("nzcv", nzcv, machine.reg_read(uc.UC_ARM64_REG_NZCV) & 0xF000_0000))
        for address, size in self.stores + self.memory.written:
            theirs = bytes(machine.mem_read(address, size))
            ours = bytes(self.memory.data[address - BASE : address - BASE + size])
            found.append((f"[{address:#x}]", int.from_bytes(ours, "little"), int.from_bytes(theirs, "little")))
            self.machine.mem_write(address, ours)
        return [f"{name}: walker {ours:#x}, unicorn {theirs:#x}" for name, ours, theirs in found if ours != theirs]


@pytest.fixture
def pair() -> Pair:
    return Pair(random.Random(7))


def random_words(instruction: Insn, count: int, rng: random.Random) -> list[int]:
    dont_care = ~instruction.pattern.mask
    for f in instruction.pattern.fields:
        dont_care &= ~(((1 << f.width) - 1) << f.lo)
    words: list[int] = []
    for _ in range(40 * count):
        word = (instruction.pattern.value | dont_care | rng.getrandbits(32) & ~instruction.pattern.mask) & 0xFFFF_FFFF
        if len(words) < count and DECODER.decode(word) is instruction:
            words.append(word)
    return words


TESTED = [i for i in A64.insns if i.group in GROUPS and i.name not in SKIP and not i.name.endswith("reserved")
          and executes("unicorn", i.feature)]  # fmt: skip


@pytest.mark.parametrize("instruction", TESTED, ids=lambda i: f"{i.name}-{i.pattern.value:08x}")
def test_walker_agrees_with_unicorn(instruction: Insn, pair: Pair) -> None:
    rng = random.Random(instruction.pattern.value)
    for word in random_words(instruction, 40 << min(2, instruction.shape_bits // 4), rng):
        pair.randomise(word, instruction)
        if instruction.name == "load_operate" and word >> 30 != 3 and word >> 13 & 3 == 2:
            continue  # LDSMAX and LDSMIN below 64 bits compare without sign in Unicorn's QEMU
        before = [pair.state.x[n] for n in range(31)] + [pair.state.sp]
        ran = pair.step(word, instruction)
        differences = pair.differences() if ran else []
        fields = {f.name: f.of(word) for f in instruction.pattern.fields}
        used = {n: hex(before[n]) for name, n in fields.items() if name[0] == "R"}
        assert not differences, f"{disassemble(word, pair.pc)} ({word:#010x}) registers {used}: {differences}"


SEQUENCES = (
    ("ldaxr x0, [x1]", "stlxr w2, x3, [x1]"),
    ("ldxrb w0, [x1]", "stxrb w2, w3, [x1]"),
    ("ldxp x0, x4, [x1]", "stlxp w2, x3, x5, [x1]"),
    ("ldaxp w0, w4, [x1]", "stxp w2, w3, w5, [x1]"),
    ("ldxr x0, [x1]", "clrex", "stxr w2, x3, [x1]"),
    ("ldxr x0, [x1]", "str x4, [x1, #128]", "stxr w2, x3, [x1]"),
)


@pytest.mark.parametrize("sequence", SEQUENCES, ids="; ".join)
def test_exclusives_in_sequence(sequence: tuple[str, ...], pair: Pair) -> None:
    words = [assemble(text) for text in sequence]
    first = DECODER.decode(words[0])
    assert first is not None
    pair.randomise(words[0], first)
    pair.state.x[1] &= ~15
    pair.machine.reg_write(uc.UC_ARM64_REG_X1, pair.state.x[1])
    for word in words:
        instruction = DECODER.decode(word)
        assert instruction is not None
        assert pair.step(word, instruction)
        pair.state.pc = pair.machine.reg_read(uc.UC_ARM64_REG_PC)
        assert not pair.differences(), f"after {disassemble(word)}"


def test_every_shape_can_be_recorded() -> None:
    """With opaque operands, as the engine compiles handlers: no body decides on a register number or an immediate."""
    for instruction in A64.insns:
        for shape in range(1 << instruction.shape_bits):
            if instruction.allows(shape):
                instruction.record_shape(shape, lambda name: TABLE[name].slot)
