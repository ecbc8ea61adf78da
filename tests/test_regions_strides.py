"""Loops that go through memory in equal steps: up, down and in place, into pages that are scattered, read-only, or not there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.engine_machine import PAGE, Bench
from tests.test_tier1 import Tier1, bench, registers
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import CPACR_EL1, ELR_EL1, ESR_EL1, ESR_EL2, FAR_EL1, SPSR_EL1

__all__ = ["bench"]
SEEDS = int(os.environ.get("TRAPLINE_REGION_SEEDS", "8"))
VA = 0x12_3456_0000
READ_ONLY = 1 << 7
PAGES = 6
"""Pages of data from VA on: three of any, one read-only, one of any, one that is not there; they are in random order in memory."""
ACCESSES = (
    "ldr {x}, [x5, x7, lsl #3]", "str {x}, [x5, x7, lsl #3]", "ldr {x}, [x5], #{s}", "str {x}, [x6], #{s}", "ldp {x}, {y}, [x6, #16]!",
    "ldrb {w}, [x6]", "strb {w}, [x6, #3]", "ldur {x}, [x6, #-9]", "stp q1, q2, [x5, #32]", "ldr {w}, [x8, #8]", "str {x}, [x8, #16]",
    "ldr {x}, [x6, {z}]", "strh {w}, [x5, x8]", "ldar {x}, [x8]",
)  # fmt: skip
OTHERS = ("add x7, x7, #{n}", "sub x7, x7, #1", "add x6, x6, #{n}", "eor {x}, {x}, {y}", "adds {x}, {x}, {y}", "csel {x}, {y}, {x}, mi")


def program(rng: random.Random) -> str:
    """A loop of one block, which ends after so many turns or where the numbers that it reads say."""
    lines = ["loop:", f"ldr x10, [x5], #{rng.choice((-24, -8, 8, 8, 16))}"]
    for _ in range(rng.randrange(3, 9)):
        text = rng.choice(ACCESSES if rng.randrange(3) else OTHERS)
        x, y, z = rng.sample(range(10, 20), 3)
        step = rng.choice((1, 4, 8, 8, 24, -8, -16, 0))
        lines.append(text.format(x=f"x{x}", y=f"x{y}", w=f"w{x}", z="xzr" if z < 17 else "x9", s=step, n=rng.choice((1, 8, 40))))
    lines += rng.choice((["add x5, x5, #8"], ["sub x5, x5, #16"], ["add x7, x7, #1"], []))
    lines += rng.choice((["subs x1, x1, #1", "b.ne loop"], ["sub x1, x1, #1", "cbnz x1, loop"], ["ldrb w1, [x6]", "cbnz w1, loop"]))
    return "\n".join([*lines, "hvc #1"])


def nest(rng: random.Random) -> str:
    """A loop that often goes round without the loop inside it; it begins at its head, or behind that."""
    inner = []
    for n in rng.sample(range(11, 20), 2):
        inner.append(rng.choice(ACCESSES[:8] + OTHERS).format(x=f"x{n}", y=f"x{n - 1}", w=f"w{n}", z="x9", s=8, n=8))
    outer = program(rng).replace("hvc #1", "b end").split("\n")
    rare = [f"tst x10, #{rng.choice((1, 7, 31, 255))}", "b.ne around", "mov x2, #5"]
    rare += ["again:", *inner, "subs x2, x2, #1", "b.ne again", "around:"]
    head = [rng.choice(("nop", "b middle")), outer[0], "sub x3, x3, #1", "cbz x3, end", "middle:"]
    return "\n".join([*head, *outer[1:-3], *rare, *outer[-3:], "end:", "hvc #1"])


@pytest.mark.parametrize("write", [program, nest])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_equal_steps_do_what_single_accesses_do(bench: Bench, seed: int, write: Callable[[random.Random], str]) -> None:
    rng = random.Random(seed)
    text = write(rng)
    code = bench.memory.page()
    bench.memory.write(code, assemble_program(text, code))
    bench.tables.map(code, code)
    pages = [bench.memory.page() for _ in range(PAGES)]
    rng.shuffle(pages)
    for n, page in enumerate(pages[:-1]):
        bench.tables.map(VA + n * PAGE, page, READ_ONLY if n == 3 else 0)
    cpu = bench.cpu(code)
    states = [(rng.randrange(PAGES * PAGE), rng.randrange(PAGES * PAGE), rng.choice((0, 0, 5)), rng.getrandbits(32)) for _ in range(16)]

    def run(first: int, second: int, loose: int, state: int) -> tuple[object, ...]:
        values = random.Random(state)
        for page in pages:
            bench.memory.write(page, values.randbytes(PAGE))
        cpu[ELR_EL1] = cpu[SPSR_EL1] = cpu[ESR_EL1] = cpu[FAR_EL1] = 0
        chosen = {f"x{n}": values.choice((0, values.getrandbits(64))) for n in range(10, 20)}
        chosen |= {"x1": values.randrange(1, 512), "x2": 0, "x3": 400}
        chosen |= {"x7": values.randrange(64), "x9": values.randrange(-64, 64) & (1 << 64) - 1}
        bench.start(cpu, code, x5=VA + (first & -8) + loose, x6=VA + second, x8=VA + (first ^ second) % (2 * PAGE), **chosen)
        cpu[CPACR_EL1] = CPACR_EL1(FPEN=3)
        for n in (1, 2):
            cpu.state.v[n].lo, cpu.state.v[n].hi = values.getrandbits(64), values.getrandbits(64)
        cpu.enter()
        memory = [bench.memory.read(page, PAGE) for page in pages]
        return cpu[ESR_EL2], cpu[ELR_EL1], cpu[ESR_EL1], cpu[FAR_EL1], registers(cpu), memory

    expected = [run(*state) for state in states]
    Tier1(bench).install(code)
    for state, want in zip(states, expected, strict=True):
        assert run(*state) == want, f"seed {seed}, {state}\n{text}"
