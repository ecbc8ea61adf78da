"""Condition flags in compiled loops: random instructions that set and read them, with branches between and faults in the middle."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence

import pytest

from tests.engine_machine import Bench
from tests.test_tier1 import Tier1, bench, registers
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import CPACR_EL1, ELR_EL1, ESR_EL2, SPSR_EL1, SPSR_EL2

__all__ = ["bench"]
SEEDS = int(os.environ.get("TRAPLINE_REGION_SEEDS", "12"))
CONDITIONS = ("eq", "ne", "hs", "lo", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le")
SETTERS = (
    "adds {x}, {x}, {x}", "adds {w}, {w}, #{imm}", "subs {x}, {x}, {x}, lsl #{shift}", "subs {w}, {w}, {w}", "cmp {x}, #{imm}",
    "cmn {w}, {w}", "ands {x}, {x}, {x}, ror #{shift}", "bics {w}, {w}, {w}", "tst {x}, #0xff00", "adcs {x}, {x}, {x}",
    "sbcs {w}, {w}, {w}", "ccmp {x}, {x}, #{nzcv}, {cond}", "ccmn {w}, #5, #{nzcv}, {cond}", "negs {x}, {x}", "setf8 {w}", "cfinv",
    "rmif {x}, #{shift}, #{nzcv}", "fcmp d1, d2", "fccmp d2, d3, #{nzcv}, {cond}", "axflag", "msr s3_3_c4_c2_0, {x}",
)  # fmt: skip
OTHERS = (
    "csel {x}, {x}, {x}, {cond}", "csinc {w}, {w}, {w}, {cond}", "adc {x}, {x}, {x}", "eor {x}, {x}, {x}", "add {x}, {x}, #{imm}",
    "mrs {x}, s3_3_c4_c2_0", "b.{cond} {label}", "cbz {x}, {label}", "ldr {x}, [x1]",
)  # fmt: skip


COMPARISONS = (
    "cmp {x}, {x}", "cmp {w}, {w}", "cmp {x}, #{imm}", "subs {w}, {w}, #{imm}", "subs {x}, {x}, {x}, asr #{shift}", "negs {w}, {w}",
)  # fmt: skip
SIGNED = ("ge", "lt", "gt", "le")


def filled(text: str, rng: random.Random, conditions: Sequence[str]) -> str:
    """An instruction with random operands."""
    while re.search(r"{[xw]}", text):
        text = text.replace("{x}", f"x{rng.randrange(4, 14)}", 1).replace("{w}", f"w{rng.randrange(4, 14)}", 1)
    text = text.replace("{imm}", str(rng.randrange(4096))).replace("{shift}", str(rng.randrange(31)))
    return text.replace("{nzcv}", str(rng.randrange(16))).replace("{cond}", rng.choice(conditions))


def steps(rng: random.Random, label: str) -> list[str]:
    """Some random instructions; branches between them go to labels that begin with `label`."""
    lines = []
    for k in range(14):
        text = filled(rng.choice(SETTERS if rng.randrange(2) else OTHERS), rng, CONDITIONS).replace("{label}", f"{label}{k}")
        lines.append(text)
        if f"{label}{k}" in text:
            lines += ["add x5, x5, x4", f"{label}{k}:"]
    return lines


def loop(rng: random.Random) -> str:
    """A loop over a table of addresses at x3, x0 times."""
    lines = ["loop: ldr x1, [x3, x0, lsl #3]", *steps(rng, "l")]
    end = rng.choice(("subs x0, x0, #1\nb.ne loop", "sub x0, x0, #1\ncbnz x0, loop"))
    return "\n".join([*lines, end, "hvc #1"])


def calling(rng: random.Random) -> str:
    """The same loop with a call in it: more than what a region keeps in values."""
    lines = loop(rng).split("\n")
    lines[1:1] = ["bl work", *steps(rng, "m")]
    return "\n".join([*lines, "work: eor x16, x16, x4", *steps(rng, "w"), "add x14, x14, x16", "ret"])


def nested(rng: random.Random) -> str:
    """The same loop x2 times, each time with flags that come in and go out."""
    after = rng.choice(("adc x14, x14, x16", "csinc x14, x14, x16, hi", "mrs x14, s3_3_c4_c2_0", "eor x14, x14, x5"))
    inner = loop(rng).removesuffix("hvc #1")
    return f"outer: ands x16, x16, x2, ror #1\n{inner}\n{after}\nmov x0, x15\nsub x2, x2, #1\ncbnz x2, outer\nhvc #1"


def signed(rng: random.Random) -> str:
    """A loop of comparisons, and of what asks for their outcome, with something else that sets flags between them or not."""
    lines = ["loop: ldr x1, [x3, x0, lsl #3]"]
    for _ in range(14):
        between = rng.choice(("", "eor {x}, {x}, {x}", rng.choice(SETTERS)))
        parts = (rng.choice(COMPARISONS), between, "cset {x}, {cond}", "add x5, x5, {x}", "csel {x}, {x}, {x}, {cond}")
        lines += [filled(part, rng, SIGNED) for part in parts if part]
    return "\n".join([*lines, "sub x0, x0, #1", "cbnz x0, loop", "hvc #1"])


@pytest.mark.parametrize("make", [loop, nested, signed, calling])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_flags_are_what_the_interpreter_makes_of_them(bench: Bench, seed: int, make: Callable[[random.Random], str]) -> None:
    rng = random.Random(seed)
    text = make(rng)
    code = bench.memory.page()
    bench.memory.write(code, assemble_program(text, code))
    table, data = bench.memory.page(), bench.memory.page()
    for page in (code, table, data):
        bench.tables.map(page, page)
    cpu = bench.cpu(code)
    states = [(rng.randrange(1, 40), rng.choice((0, 0, rng.randrange(40))), rng.getrandbits(32)) for _ in range(12)]

    def run(count: int, bad: int, state: int) -> tuple[object, ...]:
        cpu[ELR_EL1] = cpu[SPSR_EL1] = 0
        values = random.Random(state)
        bench.memory.write(data, values.randbytes(64))
        for k in range(64):
            address = 0xDEAD_0000 if bad and k == bad else data + 8 * (k % 8)
            bench.memory.write(table + 8 * k, address.to_bytes(8, "little"))
        chosen = {f"x{n}": values.choice((0, 1, values.getrandbits(64), (1 << 64) - 1, 1 << 63)) for n in range(4, 14)}
        bench.start(cpu, code, x0=count, x2=3, x3=table, x14=0, x15=count, x16=values.getrandbits(64), **chosen)
        cpu[CPACR_EL1], cpu[SPSR_EL2] = CPACR_EL1(FPEN=3), cpu[SPSR_EL2] | values.getrandbits(4) << 28
        for n, number in enumerate((0x3FF << 52, 0x7FF8 << 48, values.getrandbits(64)), 1):
            cpu.state.v[n].lo, cpu.state.v[n].hi = number, 0
        cpu.enter()
        return cpu[ESR_EL2], cpu[ELR_EL1], cpu[SPSR_EL1], cpu[SPSR_EL2], registers(cpu)

    expected = [run(*state) for state in states]
    linked = Tier1(bench).install(code + 4 * (make is nested and seed % 2))  # a nested loop is entered at its outer or at its inner one
    assert linked.built.loops
    for state, want in zip(states, expected, strict=True):
        assert run(*state) == want, f"seed {seed}, {state}\n{text}"
