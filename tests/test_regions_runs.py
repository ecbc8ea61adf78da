"""Accesses off one register in compiled code: random runs of them across pages that are scattered, read-only, or not there."""

from __future__ import annotations

import os
import random

import pytest

from tests.engine_machine import PAGE, Bench
from tests.test_tier1 import Tier1, bench, registers
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import CPACR_EL1, ELR_EL1, ESR_EL1, ESR_EL2, FAR_EL1, SPSR_EL1

__all__ = ["bench"]
SEEDS = int(os.environ.get("TRAPLINE_REGION_SEEDS", "6"))
VA = 0x12_3456_0000
READ_ONLY = 1 << 7
PAGES = 6
"""Pages of data from VA on: two of any, one read-only, one of any, one that is not there, one of any."""
ACCESSES = (
    "ldr {x}, [{b}, #{o8}]", "str {x}, [{b}, #{o8}]", "ldur {x}, [{b}, #{o}]", "stur {x}, [{b}, #{o}]", "ldp {x}, {y}, [{b}, #{s8}]",
    "stp {x}, {y}, [{b}, #{s8}]", "ldrb {w}, [{b}, #{o8}]", "strh {w}, [{b}, #{o8}]", "ldr q1, [{b}, #{o16}]", "stp q1, q2, [{b}, #{o16}]",
    "ldr {x}, [{b}], #{o}", "stp {x}, {y}, [{b}, #{s8}]!", "ldr {x}, [{b}, {c}]", "ldar {x}, [{b}]",
)  # fmt: skip
OTHERS = ("add x5, x5, #{o8}", "sub x6, x5, #{o8}", "mov x6, x5", "eor {x}, {x}, {y}", "cbz {x}, out", "csel x6, x5, x6, eq", "dmb ish")


def program(rng: random.Random, turns: bool) -> str:
    """Accesses off x5, x6 and the stack pointer, in a loop or straight."""
    lines = ["loop:"]
    for _ in range(14):
        text = rng.choice(ACCESSES if rng.randrange(4) else OTHERS)
        x, y = rng.sample(range(10, 20), 2)
        base = rng.choice(("x5", "x5", "x6", "sp"))
        numbers = {"o": rng.randrange(-40, 40), "o8": 8 * rng.randrange(12), "s8": 8 * rng.randrange(-8, 8), "o16": 16 * rng.randrange(8)}
        lines.append(text.format(x=f"x{x}", y=f"x{y}", w=f"w{x}", b=base, c=rng.choice(("x7", "x8")), **numbers))
    step = rng.choice(("add x5, x5, #24", "add x5, x5, #8", "sub x5, x5, #40", "add x5, x5, x9"))
    lines += [step, *(("subs x1, x1, #1", "b.ne loop") if turns else ()), "out: hvc #1"]
    return "\n".join(lines)


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_runs_do_what_single_accesses_do(bench: Bench, seed: int, turns: bool) -> None:
    rng = random.Random(seed)
    text = program(rng, turns)
    code = bench.memory.page()
    bench.memory.write(code, assemble_program(text, code))
    bench.tables.map(code, code)
    pages = [bench.memory.page() for _ in range(PAGES)]
    rng.shuffle(pages)
    for n, page in enumerate(pages):
        if n != 4:
            bench.tables.map(VA + n * PAGE, page, READ_ONLY if n == 2 else 0)
    cpu = bench.cpu(code)
    states = [(rng.randrange(PAGES * PAGE), rng.choice((0, 0, rng.randrange(8))), rng.getrandbits(32)) for _ in range(12)]
    states += [(n * PAGE - rng.randrange(-64, 96), 0, rng.getrandbits(32)) for n in range(1, PAGES)]

    def run(start: int, loose: int, state: int) -> tuple[object, ...]:
        values = random.Random(state)
        for page in pages:
            bench.memory.write(page, values.randbytes(PAGE))
        cpu[ELR_EL1] = cpu[SPSR_EL1] = cpu[ESR_EL1] = cpu[FAR_EL1] = 0
        at = VA + (start & -8) + loose
        chosen = {f"x{n}": values.choice((0, values.getrandbits(64))) for n in range(10, 20)}
        chosen |= {"x7": values.randrange(64), "x9": values.randrange(-256, 256) & (1 << 64) - 1}
        bench.start(cpu, code, x1=40, x5=at, x6=at + 128, x8=8, **chosen)
        cpu[CPACR_EL1] = CPACR_EL1(FPEN=3)
        cpu.state.sp_el[1] = VA + 16 * values.randrange(PAGES * PAGE // 16)
        for n in (1, 2):
            cpu.state.v[n].lo, cpu.state.v[n].hi = values.getrandbits(64), values.getrandbits(64)
        cpu.enter()
        memory = [bench.memory.read(page, PAGE) for page in pages]
        return cpu[ESR_EL2], cpu[ELR_EL1], cpu[ESR_EL1], cpu[FAR_EL1], registers(cpu), cpu.state.sp_el[1], memory

    expected = [run(*state) for state in states]
    Tier1(bench).install(code)
    for state, want in zip(states, expected, strict=True):
        assert run(*state) == want, f"seed {seed}, {state}\n{text}"
