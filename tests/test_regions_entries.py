"""Regions have several ways in, and hold only code that ran."""

from __future__ import annotations

import ctypes

from tests.differential.runners import Here
from tests.engine_machine import PAGE, Bench
from tests.test_tier1 import Tier1, bench, registers
from trapline.engine.glue import DECODE_AHEAD
from trapline.engine.state import RECORD_SIZE
from trapline.engine.tier1.install import Texts
from trapline.engine.tier1.manager import Pages

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
    region = Tier1(bench).builder.explore(loop % PAGE >> 2, Pages(bench.engine, cpu, loop & -PAGE, records, Texts()).seen)
    assert region is not None
    places = {index - (loop % PAGE >> 2) for _, index in (i.place for i in region.instructions)}
    assert set(range(7)) <= places, "the loop"
    assert max(places) < 2 * DECODE_AHEAD, "what lies far behind it"
