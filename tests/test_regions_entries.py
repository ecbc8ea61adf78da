"""Regions have several ways in, and hold only code that ran."""

from __future__ import annotations

import ctypes

import pytest

from tests.differential.runners import Here
from tests.engine_machine import PAGE, Bench
from tests.test_tier1 import Tier1, bench, registers
from trapline.arm64.regs import ELR_EL1, ESR_EL1
from trapline.engine import Cpu
from trapline.engine.glue import DECODE_AHEAD
from trapline.engine.state import RECORD_SIZE
from trapline.engine.tier1.install import Texts, link
from trapline.engine.tier1.manager import Pages
from trapline.engine.tier1.regions import LOOP_LIMIT

__all__ = ["bench"]

CALLING = """
    adr x9, work
    loop: add x2, x2, x1
    blr x9
    eor x4, x4, x2
    ldr x5, [x6]
    cbz x1, never
    subs x1, x1, #1
    b.ne loop
    hvc #1
    never: add x0, x0, #1
    {filling}
    hvc #2
    work: add x2, x2, #7
    ret
""".replace("{filling}", "add x0, x0, #2\n" * 3 * DECODE_AHEAD)


def test_a_region_is_entered_again_where_calls_come_back(bench: Bench) -> None:
    data = bench.memory.page()
    bench.tables.map(data, data)
    loop = bench.load(CALLING) + 4
    start = loop - 4
    cpu = bench.cpu(start, x1=40, x6=data)
    cpu.enter()
    expected = registers(cpu)
    linked = Tier1(bench).install(loop)
    indices = [(loop + distance) % PAGE >> 2 for distance in (0, 8)]
    assert linked.built.entries[:2] == tuple(indices)
    here = Here(bench.engine, loop & -PAGE, Texts())
    records = here.records(0)
    assert records is not None
    handlers = [ctypes.c_uint64.from_address(records + index * RECORD_SIZE).value for index in indices]
    assert handlers == [linked.address] * 2
    bench.start(cpu, start, x1=40, x2=0, x4=0, x5=0, x6=data)
    cpu.enter()
    assert registers(cpu) == expected


def test_code_that_never_ran_is_left_out(bench: Bench) -> None:
    """The compiler is shown zeros in place of what was not even decoded."""
    data = bench.memory.page()
    bench.tables.map(data, data)
    loop = bench.load(CALLING) + 4
    cpu = bench.cpu(loop - 4, x1=40, x6=data)
    cpu.enter()
    records = Here(bench.engine, loop & -PAGE, Texts()).records(0)
    assert records is not None
    pages = Pages(bench.engine, cpu, loop & -PAGE, records, Texts())
    region = Tier1(bench).builder.explore(loop % PAGE >> 2, lambda distance: pages.seen(distance)[0])
    assert region is not None
    places = {index - (loop % PAGE >> 2) for _, index in (i.place for i in region.instructions)}
    assert set(range(7)) <= places, "the loop"
    assert max(places) < 2 * DECODE_AHEAD, "what lies far behind it"


SWITCH = """
    loop: and x3, x2, #3
    add x4, x9, x3, lsl #4
    br x4
    case0: add x2, x2, #1
    eor x5, x5, x2
    b next
    nop
    case1: add x2, x2, #3
    eor x5, x5, x2, lsl #1
    b next
    nop
    case2: add x2, x2, x1
    eor x5, x5, x2, lsl #2
    b next
    nop
    case3: sub x2, x2, #2
    eor x5, x5, x2, lsl #3
    b next
    nop
    next: subs x1, x1, #1
    b.ne loop
    hvc #1
"""
CASES = {3, 7, 11, 15}
GUARDED, EC_BTI = 1 << 50, 0x0D


def test_a_switch_stays_in_its_region(bench: Bench) -> None:
    """Where branches were met to go are the cases; on a guarded page each of them is refused, as the interpreter has it."""
    loop = bench.load(SWITCH)
    cpu = bench.cpu(loop, x1=500, x9=loop + 12)
    cpu.enter()
    expected = registers(cpu)
    tier1 = Tier1(bench)
    region = tier1.builder.explore(0, Here(bench.engine, loop, tier1.texts).text, lambda page: CASES - {11})
    assert region is not None and {(0, 3), (0, 7), (0, 15)} <= set(region.blocks) and (0, 11) not in region.blocks
    region = tier1.builder.explore(0, Here(bench.engine, loop, tier1.texts).text, lambda page: CASES)
    assert region is not None and CASES < {index for _, index in region.blocks} and region.loops
    (linked,) = link([tier1.builder.build(region)], bench.engine.code)
    assert linked.install(bench.engine, Here(bench.engine, loop, tier1.texts), tier1.texts) >= CASES
    values = {"x1": 500, "x2": 0, "x3": 0, "x4": 0, "x5": 0, "x9": loop + 12}
    bench.start(cpu, loop, **values)
    cpu.enter()
    assert registers(cpu) == expected

    bench.tables.map(loop, loop, GUARDED)
    bench.engine.tlbi_vmalls12e1(0)
    bench.start(cpu, loop, **values)
    cpu.enter()
    assert (cpu[ESR_EL1] >> 26, cpu[ELR_EL1]) == (EC_BTI, loop + 12)


STEPS = 12
NESTED = "\n".join(
    ["outer: mov x4, x0", "inner: add x2, x2, #1"]
    + [f"cmp x2, #{k}\nb.eq aside{k}\neor x3, x3, x2, lsl #{k}" for k in range(STEPS)]
    + ["subs x1, x1, #1\nb.ne inner\nhvc #1"]
    + [f"aside{k}: " + "add x5, x5, #3\n" * 20 + "b outer" for k in range(STEPS)]
)


def test_a_loop_is_kept_before_what_is_around_it(bench: Bench) -> None:
    """Too much code for one region: ways aside, back to the head of an outer loop, branch off at every step of the inner one."""
    loop = bench.load(NESTED)
    cpu = bench.cpu(loop, x1=40)
    cpu.enter()
    tier1 = Tier1(bench)
    for entry in (1, 4 + 3 * (STEPS // 2)):
        region = tier1.builder.explore(entry, Here(bench.engine, loop, tier1.texts).text)
        assert region is not None and region.size <= LOOP_LIMIT
        assert set(range(1, 4 + 3 * STEPS)) <= {index for _, index in (i.place for i in region.instructions)}


ROUNDS = """
    outer: mov x4, x3
    middle: mov x6, x4
    inner: add x2, x2, x6
    cbz x2, rare
    eor x5, x5, x2
    cbz x6, odd
    add x5, x5, #3
    odd: subs x6, x6, #1
    b.pl inner
    subs x4, x4, #1
    b.pl middle
    subs x1, x1, #1
    b.ne outer
    hvc #1
    rare: mov x0, #5
    bl never
    mul x0, x0, x2
    add x5, x5, x0
    b odd
    never: add x7, x7, #1
    ret
"""
INNER, RARE = 2, 14
TURNS = range(13)


def run_rounds(bench: Bench, cpu: Cpu, loop: int) -> list[int]:
    bench.start(cpu, loop, **{f"x{n}": 0 for n in range(31)} | {"x1": 30, "x3": 7})
    cpu.enter()
    return registers(cpu)


def test_a_loop_is_the_same_region_wherever_it_was_met(bench: Bench) -> None:
    """What is made of it does not depend on where the samples fell first."""
    loop = bench.load(ROUNDS)
    run_rounds(bench, bench.cpu(loop), loop)
    tier1 = Tier1(bench)
    text = Here(bench.engine, loop, tier1.texts).text
    regions = [tier1.builder.explore(met, text) for met in TURNS]
    assert len({region.entries for region in regions if region is not None}) == 1
    assert len({frozenset(i.place for i in region.instructions) for region in regions if region is not None}) == 1


def test_a_region_within_a_loop_leads_to_its_head(bench: Bench) -> None:
    """It has no loop of its own that control would then stay in, and turn in from the wrong place."""
    loop = bench.load(ROUNDS)
    cpu = bench.cpu(loop)
    expected = run_rounds(bench, cpu, loop)
    tier1 = Tier1(bench)
    whole = tier1.install(loop + 16)
    text = Here(bench.engine, loop, tier1.texts).text
    leading = {met: region for met in TURNS if (region := tier1.builder.explore(met, text, exact=True)) is not None}
    within = {met: region for met, region in leading.items() if met not in whole.built.entries}
    assert within and not any(region.loops or (0, INNER) in region.blocks for region in within.values())
    assert all(region.entries[0] == (0, met) for met, region in within.items())
    assert all(tier1.builder.text(region)[0] == whole.built.tag for met, region in leading.items() if met not in within)
    for linked in link([tier1.builder.build(region) for region in within.values()], bench.engine.code):
        assert linked.install(bench.engine, Here(bench.engine, loop, tier1.texts), tier1.texts)
    assert run_rounds(bench, cpu, loop) == expected


@pytest.mark.parametrize("called", [False, True])
def test_nothing_comes_back_from_a_call_that_never_was(bench: Bench, called: bool) -> None:
    """A loop may hold such a call, of an error's report perhaps; a way in behind it would be one into the middle of the loop."""
    loop = bench.load(ROUNDS)
    run_rounds(bench, bench.cpu(loop), loop)
    tier1 = Tier1(bench)
    text = Here(bench.engine, loop, tier1.texts).text(0)
    assert text is not None
    page = text if called else text[: 4 * (RARE + 5)] + bytes(PAGE - 4 * (RARE + 5))
    region = tier1.builder.explore(0, {0: page}.get)
    assert region is not None and set(TURNS) <= {index for _, index in (i.place for i in region.instructions)}
    assert ((0, RARE + 2) in region.blocks) == called
    assert [index for _, index in region.entries] == ([INNER, RARE, RARE + 2] if called else [INNER]), "at RARE the hypercall comes back"
