"""Regions have several ways in, and hold only code that ran."""

from __future__ import annotations

import ctypes

from tests.differential.runners import Here
from tests.engine_machine import PAGE, Bench
from tests.test_tier1 import Tier1, bench, registers
from trapline.arm64.regs import ELR_EL1, ESR_EL1
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
