"""Loops that follow pointers: on one page, across pages, misaligned, and where a page is not what it was."""

from __future__ import annotations

import os
import random

import pytest

from tests.engine_machine import PAGE, PTE_READONLY, Bench, hvc_number
from tests.test_tier1 import Tier1, bench, registers
from trapline.arm64.regs import ELR_EL1, ESR_EL1, FAR_EL1
from trapline.engine import Cpu

__all__ = ["bench"]

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))
LISTS = {
    "alone": """
        loop: ldr x2, [x1, #8]
        add x3, x3, x2, lsl #1
        eor x3, x3, x1
        str x3, [x1, #16]
        ldr x1, [x1]
        cbnz x1, loop
        hvc #1
    """,
    "entered in the middle": """
        b middle
        loop: ldr x1, [x1]
        add x5, x5, #1
        cbz x1, out
        middle: ldrsh w2, [x1, #8]
        cmp w2, w4
        b.ne loop
        ldr x6, [x1, #16]
        out: eor x3, x3, x6
        hvc #1
    """,
    "two among many registers": """
        outer: mov x1, x19
        mov x2, x20
        loop: ldr x5, [x1, #8]
        ldr x6, [x2, #8]
        cmp x5, x6
        b.ls left
        mov x7, x2
        ldr x2, [x2]
        b taken
        left: mov x7, x1
        ldr x1, [x1]
        taken: str x8, [x7, #16]
        mov x8, x7
        add x9, x9, x10
        eor x11, x11, x12
        add x13, x13, x9
        cmp x1, #0
        ccmp x2, #0, #4, ne
        b.ne loop
        add x14, x14, x13
        subs x15, x15, #1
        b.ne outer
        hvc #1
    """,
}
NODES, NODE, DATA = 150, 24, 3


class Lists:
    """Two lists through pages, and whatever a run leaves."""

    def __init__(self, bench: Bench, text: str, step: int) -> None:
        self.bench, self.start = bench, bench.load(text)
        self.data = bench.memory.page(DATA)
        for page in range(DATA):
            bench.tables.map(self.data + page * PAGE, self.data + page * PAGE)
        self.cpu: Cpu = bench.cpu(self.start)
        random_ = random.Random(f"{SEED} {text} {step}")
        places = random_.sample(range((DATA * PAGE - NODE) // step), 2 * NODES)
        self.lists = [[self.data + place * step for place in half] for half in (places[:NODES], places[NODES:])]
        self.values = [random_.randrange(1 << 15) for _ in range(2 * NODES)]

    def run(self) -> tuple[list[int], bytes]:
        memory = self.bench.memory
        memory.write(self.data, bytes(DATA * PAGE))
        for one in self.lists:
            for at, following in zip(one, [*one[1:], 0], strict=True):
                memory.put(at + 8, self.values[len(one) - one.index(at)])
                memory.put(at, following)
        first, second = (one[0] for one in self.lists)
        values = {f"x{n}": n for n in range(31)} | {"x1": first, "x4": 1 << 16, "x15": 2, "x19": first, "x20": second}
        self.bench.start(self.cpu, self.start, **values)
        self.cpu.enter()
        return registers(self.cpu), memory.read(self.data, DATA * PAGE)

    def fault(self) -> tuple[int, ...]:
        """Syndrome, address and place in the program of what ended the last run; zeros if the program did."""
        at = self.cpu[ELR_EL1] - self.start
        return (self.cpu[ESR_EL1], self.cpu[FAR_EL1], at) if hvc_number(self.cpu) != 1 else (0, 0, 0)

    def compile(self, name: str) -> None:
        Tier1(self.bench).install(self.start + 4 * (name != "alone"))


@pytest.mark.parametrize("step", [32, NODE + 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("name", LISTS)
def test_the_same_as_the_interpreter(bench: Bench, name: str, step: int) -> None:
    lists = Lists(bench, LISTS[name], step)
    expected = lists.run()
    lists.compile(name)
    assert lists.run() == expected, f"seed {SEED}"


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("flags", [PTE_READONLY, None], ids=["read-only", "gone"])
def test_a_page_that_may_not_be_used(bench: Bench, name: str, flags: int | None) -> None:
    lists = Lists(bench, LISTS[name], 32)
    lists.run()
    lists.compile(name)
    whole = lists.run()
    page = lists.data + PAGE
    if flags is None:
        bench.memory.put(bench.tables.entry(page), 0)
    else:
        bench.tables.map(page, page, flags)
    bench.engine.tlbi_vmalls12e1(0)
    compiled = lists.run(), *lists.fault()
    other = Lists(bench, LISTS[name], 32)  # the same program on another page, not compiled
    other.lists, other.values, other.data = lists.lists, lists.values, lists.data
    assert (other.run(), *other.fault()) == compiled, f"seed {SEED}"
    reads_only = flags is not None and name == "entered in the middle"
    assert (compiled[0] == whole) == reads_only


def test_a_page_that_is_another_one_now(bench: Bench) -> None:
    """What a loop remembers lasts as long as the loop."""
    name = "alone"
    lists = Lists(bench, LISTS[name], 32)
    expected, memory = lists.run()
    lists.compile(name)
    assert lists.run() == (expected, memory)
    moved = bench.memory.page(DATA)
    for page in range(DATA):
        bench.tables.map(lists.data + page * PAGE, moved + page * PAGE)
    bench.engine.tlbi_vmalls12e1(0)
    lists.run()
    first = lists.lists[0][0]
    assert (bench.memory.get(first + 16), bench.memory.get(moved + first - lists.data + 16)) == (0, lists.cpu.state.x[3])
