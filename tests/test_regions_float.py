"""Floating point and SIMD in compiled regions: the same loop in the interpreter and in its region leaves the same state.

Operands come from a table with special values here and there, so that both ways of every operation are taken.
"""

from __future__ import annotations

import os
import random
import time

import pytest
from engine_machine import Bench, hvc_number

from tests.differential import values
from tests.differential.pair import random_word
from trapline.arm64.asm import disassemble
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.decode import Decoder
from trapline.arm64.isa import load_a64
from trapline.arm64.record import V_OFFSET
from trapline.arm64.regs import CPACR_EL1, TABLE
from trapline.engine import Cpu

ROWS = 64
TABLE_VA = 0x12_3456_7000
"""Where the guest has its operands: the same address on both sides, for some instructions convert it to a number."""
FLOATING = ("fp_scalar", "fp_convert", "simd_fp", "simd_element", "simd_across")
HEAD, TAIL = "and x2, x0, #63\n add x1, x3, x2, lsl #6\n ldp q0, q1, [x1]\n ldp q2, q3, [x1, #32]", "subs x0, x0, #1"
ITERATIONS = 500
SEEDS = int(os.environ.get("TRAPLINE_REGION_SEEDS", "4"))
FPCR, FPSR = (TABLE[name].slot for name in ("FPCR", "FPSR"))
IXC = 1 << 4
CONTROLS = ((0, IXC), (0, IXC), (1 << 25, IXC), (0, 0), (1 << 24, IXC), (3 << 22, IXC))
"""FPCR and FPSR at the start."""


def instructions(rng: random.Random, count: int) -> list[int]:
    """Random words that read and write SIMD&FP registers only, and flags."""
    isa = [i for i in load_a64().insns if i.group in FLOATING and i.feature is None]
    decoder = Decoder(load_a64())
    words: list[int] = []
    while len(words) < count:
        insn = rng.choice(isa)
        shape = rng.choice([s for s in range(1 << insn.shape_bits) if insn.allows(s)])
        word = random_word(insn, shape, rng)
        recording = insn.record_word(word, lambda name: TABLE[name].slot)
        general = any(isinstance(w.offset, int) and V_OFFSET + 512 <= w.offset < V_OFFSET + 768 for w in recording.writes)
        if not general and not recording.effects and decoder.decode(word) is insn:
            words.append(word)
    return words


def vector(rng: random.Random) -> int:
    """Mostly a vector of moderate numbers, single or double."""
    if rng.randrange(12) == 0:
        return values.vector(rng)
    width, fraction, bias = rng.choice(((32, 23, 127), (64, 52, 1023)))
    return sum(
        (rng.getrandbits(1) << width - 1 | bias + rng.randrange(-9, 9) << fraction | rng.getrandbits(fraction)) << k
        for k in range(0, 128, width)
    )


class Side:
    """One engine with the loop in it."""

    def __init__(self, words: list[int], tier1: bool) -> None:
        self.bench = Bench(32)
        self.table = self.bench.memory.page()
        self.bench.tables.map(TABLE_VA, self.table)
        body = [int.from_bytes(assemble_program(line), "little") for line in HEAD.split("\n")]
        body += [*words, int.from_bytes(assemble_program(TAIL), "little")]
        start = self.bench.memory.page()
        loop = b"".join(w.to_bytes(4, "little") for w in body)
        loop += (0x5400_0001 | (-len(body) & 0x7FFFF) << 5).to_bytes(4, "little") + assemble_program("hvc #1")
        self.bench.memory.write(start, loop)
        self.bench.tables.map(start, start)
        self.start = start
        self.cpu = self.bench.cpu(start)
        if not tier1:
            assert self.bench.engine.regions is not None
            self.bench.engine.regions.close()

    def run(self, seed: int, control: tuple[int, int], iterations: int) -> dict[str, int]:
        """The state after so many turns of the loop."""
        rng, cpu = random.Random(seed), self.cpu
        for k in range(4 * ROWS):
            self.bench.memory.write(self.table + 16 * k, vector(rng).to_bytes(16, "little"))
        self.bench.start(cpu, self.start, x0=iterations, x3=TABLE_VA)
        cpu[CPACR_EL1] = 3 << 20
        state = cpu.state
        for register in state.v:
            value = vector(rng)
            register.lo, register.hi = value & (1 << 64) - 1, value >> 64
        state.sysreg[FPCR], state.sysreg[FPSR] = control
        cpu.enter()
        assert hvc_number(cpu) == 1
        return self.outcome(cpu)

    @staticmethod
    def outcome(cpu: Cpu) -> dict[str, int]:
        state = cpu.state
        vectors = {f"v{k}": v.lo | v.hi << 64 for k, v in enumerate(state.v)}
        return vectors | {f"x{k}": state.x[k] for k in (0, 2)} | {"fpsr": state.sysreg[FPSR], "spsr": cpu[TABLE["SPSR_EL2"]]}

    def warm(self) -> None:
        """Run until the loop has a region."""
        deadline = time.monotonic() + 200
        regions = self.bench.engine.regions
        assert regions is not None
        while not regions.installed:
            assert time.monotonic() < deadline, "the loop got no region"
            self.run(1, (0, IXC), 100_000)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_region_agrees_with_interpreter(seed: int) -> None:
    words = instructions(random.Random(seed), 24)
    slow, fast = Side(words, tier1=False), Side(words, tier1=True)
    fast.warm()
    for k in range(48):
        control = CONTROLS[k % len(CONTROLS)] if k < 12 else (0, 0)  # then: few turns, after which IXC may still be clear
        want, got = (side.run(1000 * seed + k, control, ITERATIONS if k < 12 else 1 + k % 2) for side in (slow, fast))
        different = [f"{name}: {got[name]:#x}, in the interpreter {want[name]:#x}" for name in want if got[name] != want[name]]
        assert not different, "\n".join([f"seed {seed}, {control}", *different, *map(disassemble, words)])
