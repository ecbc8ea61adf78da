"""Regions hold what their loops call, and nothing of other loops that call the same."""

from __future__ import annotations

import pytest

from tests.differential.runners import Here
from tests.engine_machine import PAGE, Bench, hvc_number
from tests.test_tier1 import Tier1, bench, registers
from trapline.arm64.regs import ELR_EL1, ESR_EL1
from trapline.engine import Cpu
from trapline.engine.tier1.install import link
from trapline.engine.tier1.regions import EXPLORE_LIMIT, LOOP_LIMIT, Region

__all__ = ["bench"]

FIRST, SECOND, LEAF = 1, 5, 10 + EXPLORE_LIMIT
CALLING = "\n".join(
    [
        "mov x19, #30",
        "first: bl leaf",
        "add x3, x3, x0",
        "subs x19, x19, #1",
        "b.ne first",
        "second: bl leaf",
        "eor x3, x3, x0, lsl #3",
        "subs x1, x1, #1",
        "b.ne second",
        *(f"add x4, x4, #5\nadd x5, x5, x4\ncbz x4, step{n}\nadd x6, x6, #1\nstep{n}:" for n in range(EXPLORE_LIMIT // 4)),
        "hvc #1",
        "leaf: eor x2, x2, x2, lsl #13",
        "eor x2, x2, x2, lsr #7",
        "ands x5, x2, #8",
        "b.eq even",
        "add x2, x2, #1",
        "even: mov x0, x2",
        "ret",
    ]
)
RECURSIVE = """
    bl sum
    hvc #1
    sum: cbz x0, done
    stp x29, x30, [sp, #-32]!
    str x0, [sp, #16]
    sub x0, x0, #1
    bl sum
    ldr x2, [sp, #16]
    add x1, x1, x2
    ldp x29, x30, [sp], #32
    done: ret
"""
MUTUAL = """
    mov x1, #50
    loop: bl even
    add x2, x2, x0
    subs x1, x1, #1
    b.ne loop
    hvc #1
    even: str x30, [sp, #-16]!
    and x0, x1, #7
    bl down
    ldr x30, [sp], #16
    ret
    down: cbz x0, end
    str x30, [sp, #-16]!
    sub x0, x0, #1
    add x3, x3, x0
    bl again
    ldr x30, [sp], #16
    end: ret
    again: str x30, [sp, #-16]!
    eor x3, x3, x3, lsl #1
    bl down
    ldr x30, [sp], #16
    ret
"""
EC_SP_ALIGNMENT, DEPTH = 0x26, 25


def explore(bench: Bench, at: int, exact: bool = False) -> Region:
    tier1 = Tier1(bench)
    region = tier1.builder.explore(at % PAGE >> 2, Here(bench.engine, at & -PAGE, tier1.texts).text, exact=exact)
    assert region is not None
    return region


def indices(region: Region) -> set[int]:
    return {instruction.place[1] for instruction in region.instructions}


def run(bench: Bench, cpu: Cpu, start: int, sp: int = 0, **values: int) -> list[int]:
    """A run from `start`, with all other registers zero."""
    bench.start(cpu, start, **{f"x{n}": 0 for n in range(31)} | values)
    cpu.state.sp_el[1] = sp
    cpu.enter()
    return registers(cpu)


@pytest.mark.parametrize("loop", [FIRST, SECOND])
def test_a_loop_has_what_it_calls(bench: Bench, loop: int) -> None:
    """However much code of its own function is nearer than what is called, and whatever else calls that."""
    start = bench.load(CALLING)
    cpu = bench.cpu(start)
    expected = run(bench, cpu, start, x1=40, x2=77)
    assert indices(explore(bench, start + 4 * loop)) == {*range(loop, loop + 4), *range(LEAF, LEAF + 7)}
    Tier1(bench).install(start + 4 * loop)
    assert run(bench, cpu, start, x1=40, x2=77) == expected


@pytest.mark.parametrize("met", range(FIRST, FIRST + 4))
def test_a_loop_is_entered_at_its_head(bench: Bench, met: int) -> None:
    """Wherever it was met; unless the place itself is wanted: what is made then leads to the loop."""
    start = bench.load(CALLING)
    cpu = bench.cpu(start)
    expected = run(bench, cpu, start, x1=40, x2=77)
    region = explore(bench, start + 4 * met)
    assert len(set(region.entries) & {(0, k) for k in range(FIRST, FIRST + 4)}) <= 2, "a head, and where the call comes back to"
    tier1 = Tier1(bench)
    leading = tier1.builder.explore(start % PAGE // 4 + met, Here(bench.engine, start & -PAGE, tier1.texts).text, exact=True)
    regions = [region] if leading is None else [region, leading]
    assert leading is None or (0, met) in leading.entries and (leading.entries == region.entries or not leading.loops)
    for linked in link([tier1.builder.build(each) for each in regions], bench.engine.code):
        assert linked.install(bench.engine, Here(bench.engine, start, tier1.texts), tier1.texts)
    assert run(bench, cpu, start, x1=40, x2=77) == expected


def test_what_calls_itself_is_a_loop(bench: Bench) -> None:
    start, stack = bench.load(RECURSIVE), bench.memory.page()
    bench.tables.map(stack, stack)
    cpu = bench.cpu(start)
    expected = run(bench, cpu, start, x0=DEPTH, sp=stack + PAGE)
    assert expected[1] == DEPTH * (DEPTH + 1) // 2
    region = explore(bench, start + 12)
    assert region.loops and indices(region) == set(range(2, 7)), "not the way back up"
    Tier1(bench).install(start + 12)
    assert run(bench, cpu, start, x0=DEPTH, sp=stack + PAGE) == expected


@pytest.mark.parametrize("entry", [1, 6, 11, 18])
def test_functions_may_call_each_other(bench: Bench, entry: int) -> None:
    start, stack = bench.load(MUTUAL), bench.memory.page()
    bench.tables.map(stack, stack)
    cpu = bench.cpu(start)
    expected = run(bench, cpu, start, sp=stack + PAGE)
    region = explore(bench, start + 4 * entry)
    assert region.size <= LOOP_LIMIT and set(range(11, 23)) <= indices(region)
    Tier1(bench).install(start + 4 * entry)
    assert run(bench, cpu, start, sp=stack + PAGE) == expected


def test_the_stack_is_checked_however_often_it_is_used(bench: Bench) -> None:
    """A region may find out once that SP is aligned, but not pass over one that is not."""
    start, stack = bench.load(RECURSIVE), bench.memory.page()
    bench.tables.map(stack, stack)
    cpu = bench.cpu(start)
    run(bench, cpu, start, x0=DEPTH, sp=stack + PAGE)
    Tier1(bench).install(start + 12)
    for sp in (stack + PAGE - 8, stack + PAGE - 1):
        run(bench, cpu, start, x0=DEPTH, sp=sp)
        assert hvc_number(cpu) == 0x104
        assert (cpu[ESR_EL1] >> 26, cpu[ELR_EL1]) == (EC_SP_ALIGNMENT, start + 12)
        assert cpu.state.x[0] == DEPTH and cpu.state.sp_el[1] == sp
