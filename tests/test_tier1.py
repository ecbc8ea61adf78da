"""Compiled regions: the same results as the interpreter, whatever the guest does to its code, its tables and its timing."""

from __future__ import annotations

import gc
import os
import random
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential.compare import STATES, compare
from tests.differential.runners import Here, Regions, Trapline
from tests.engine_machine import PAGE, Bench, hvc_number
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import CPACR_EL1, ELR_EL2, ESR_EL2, FAR_EL1, HCR_EL2, SCTLR_EL1, TABLE
from trapline.engine import Cpu
from trapline.engine.cache import REGIONS, ObjectCache
from trapline.engine.engine import TIER1
from trapline.engine.tier1.builder import RegionBuilder
from trapline.engine.tier1.client import Order
from trapline.engine.tier1.install import Linked, Texts, link
from trapline.engine.tier1.manager import Spot
from trapline.engine.tier1.store import RegionStore, Stored
from trapline.engine.tier1.stored import StoredRegions

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))
RANDOM_INSTRUCTIONS = 4000
SYNC_FROM_SPX = 0x104
"""What the vector for a synchronous exception of EL1 passes to HVC."""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A machine whose regions are made by the test alone."""
    monkeypatch.setenv(TIER1, "0")
    machine = Bench()
    yield machine
    machine.engine.close()


class Tier1:
    """Makes regions on the spot."""

    def __init__(self, bench: Bench) -> None:
        self.engine = bench.engine
        self.builder = RegionBuilder(self.engine.features, self.engine.code.cache)
        self.texts = Texts()

    def install(self, at: int) -> Linked:
        """Run the instruction at a host address, which was run before, as a region from now on."""
        here, index = Here(self.engine, at & -PAGE, self.texts), at % PAGE >> 2
        region = self.builder.explore(index, here.text)
        assert region is not None
        (linked,) = link([self.builder.build(region)], self.engine.code)
        assert linked.install(self.engine, here, self.texts)
        return linked


def registers(cpu: Cpu) -> list[int]:
    state = cpu.state
    return [*state.x[:31], state.n, state.z, state.c, state.v_flag, *(half for v in state.v for half in (v.lo, v.hi))]


LOOPS = {
    "flags live out": """
        mov x0, #0
        loop: adds x0, x0, x1
        adc x2, x2, x3
        eor x4, x4, x0, ror #7
        subs x1, x1, #1
        b.ne loop
        hvc #1
    """,
    "memory": """
        loop: ldr x2, [x5]
        add x2, x2, x1
        str x2, [x5], #8
        ldurb w3, [x5, #-3]
        and x5, x5, x6
        orr x5, x5, x7
        subs x1, x1, #1
        b.ne loop
        hvc #1
    """,
    "calls": """
        loop: bl f
        add x3, x3, x0
        bl g
        subs x1, x1, #1
        b.ne loop
        hvc #1
        f: mov x0, x1
        ret
        g: mov x9, x30
        bl f
        add x3, x3, #1
        mov x30, x9
        ret
    """,
    "nested": """
        loop: mov x2, #5
        inner: madd x3, x2, x1, x3
        sub x2, x2, #1
        cbnz x2, inner
        subs x1, x1, #1
        b.ne loop
        hvc #1
    """,
    "calls elsewhere": """
        adr x9, work
        adr x10, more
        loop: add x2, x2, x1
        blr x9
        eor x4, x4, x2
        and x7, x4, #8
        cbz x7, even
        blr x10
        even: subs x1, x1, #1
        b.ne loop
        hvc #1
        work: madd x2, x2, x1, x2
        more: add x4, x4, #3
        ret
    """,
    "vectors": """
        loop: add v0.4s, v0.4s, v1.4s
        mul v2.8h, v0.8h, v1.8h
        sqadd v3.16b, v3.16b, v2.16b
        ext v1.16b, v1.16b, v2.16b, #3
        subs x1, x1, #1
        b.ne loop
        hvc #1
    """,
    "floating point": """
        loop: fadd d0, d0, d1
        fmul d2, d0, d1
        fdiv s3, s3, s4
        fmadd d5, d0, d2, d5
        subs x1, x1, #1
        b.ne loop
        hvc #1
    """,
    "exclusives": """
        loop: ldxr x2, [x5]
        add x2, x2, #1
        stxr w3, x2, [x5]
        cbnz w3, loop
        ldadd x1, x4, [x5]
        subs x1, x1, #1
        b.ne loop
        hvc #1
    """,
    "system registers": """
        loop: mrs x2, s3_0_c4_c2_2
        msr s3_0_c13_c0_4, x1
        mrs x3, s3_0_c13_c0_4
        add x4, x4, x3
        mrs x7, s3_3_c4_c2_0
        add x8, x8, x7
        subs x1, x1, #1
        b.ne loop
        hvc #1
    """,
    "stack pointers": """
        loop: msr spsel, #0
        add x2, sp, x1
        mov sp, x2
        msr spsel, #1
        add x3, x3, x2
        and x3, x3, #0xfffffffffffffff0
        subs x1, x1, #1
        b.ne loop
        msr spsel, #0
        mov x4, sp
        hvc #1
    """,
    "exceptions": """
        loop: add x2, x2, #1
        eor x4, x4, x2
        subs x1, x1, #1
        b.ne loop
        ldr x3, [x2]
        hvc #1
    """,
}


class Loop:
    """One of LOOPS with random registers and memory, to be run again and again from the same state."""

    def __init__(self, bench: Bench, name: str) -> None:
        self._bench, self.code, self._data = bench, bench.load(LOOPS[name]), bench.memory.page()
        bench.tables.map(self._data, self._data)
        rng = random.Random(SEED)
        fixed = {"x1": 3000, "x5": self._data, "x6": 0xFF8, "x7": self._data}
        self._values = {f"x{n}": rng.getrandbits(64) for n in range(31)} | fixed
        self._halves = [rng.getrandbits(62) for _ in range(64)]
        self._text = rng.randbytes(PAGE)
        self._cpu = bench.cpu(self.code)
        self._cpu[CPACR_EL1] = CPACR_EL1(FPEN=3)

    def run(self) -> tuple[int, list[int], bytes]:
        """The syndrome, the registers and the memory that it leaves."""
        cpu, bench = self._cpu, self._bench
        bench.memory.write(self._data, self._text)
        for k, half in enumerate(self._halves):
            setattr(cpu.state.v[k // 2], ("lo", "hi")[k % 2], half)
        bench.start(cpu, self.code, **self._values)
        cpu.state.sp_el[0] = 64
        cpu.enter()
        return cpu[ESR_EL2], registers(cpu), bench.memory.read(self._data, PAGE)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_leaves_what_the_interpreter_leaves(bench: Bench, name: str) -> None:
    loop = Loop(bench, name)
    expected = loop.run()
    Tier1(bench).install(loop.code if LOOPS[name].lstrip().startswith("loop") else loop.code + 4)
    assert loop.run() == expected, f"seed {SEED}"


def test_random_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of a random program as a region, against the interpreter, which is compared with QEMU elsewhere."""
    monkeypatch.setenv(TIER1, "0")
    regions = Regions()
    report = compare(RANDOM_INSTRUCTIONS, SEED, regions, Trapline())
    assert not report.mismatches, report.text()
    assert STATES * regions.instructions > RANDOM_INSTRUCTIONS // 2


@pytest.mark.parametrize("address", [1, 2, 3, 7, 8, 0x800, 0xFFF, (1 << 64) - 1, (1 << 64) - 0x800, 1 << 63 | 1])
@pytest.mark.parametrize("access", ["ldrh w2, [x5]", "ldr x2, [x5]", "ldr q2, [x5]", "str w2, [x5]", "stp x2, x3, [x5]", "ldrb w2, [x5]"])
def test_an_address_that_nothing_is_mapped_at(bench: Bench, access: str, address: int) -> None:
    """Nothing that a region remembers of pages matches an address before the first access."""
    code = bench.load(f"loop: {access}\nadd x0, x0, #1\nadd x4, x4, #1\nsubs x1, x1, #1\nb.ne loop\nhvc #1")
    data = bench.memory.page()
    bench.tables.map(data, data)
    cpu = bench.cpu(code, x1=3, x5=data)
    cpu[CPACR_EL1] = CPACR_EL1(FPEN=3)
    cpu.enter()
    assert hvc_number(cpu) == 1
    Tier1(bench).install(code)
    bench.start(cpu, code, x0=0, x1=3, x5=address)
    cpu.enter()
    assert (hvc_number(cpu), cpu[FAR_EL1], cpu.state.x[0]) == (SYNC_FROM_SPX, address, 0)


FPCR, FPSR = (TABLE[name].slot for name in ("FPCR", "FPSR"))


@pytest.mark.parametrize(("operation", "b", "inexact"), [
    ("fadd d0, d1, d2", 2.0, False), ("fadd d0, d1, d2", 2.0**-60, True), ("fmul d0, d1, d2", 0.5, False),
    ("fdiv d0, d1, d2", 4.0, False), ("fdiv d0, d1, d2", 3.0, True), ("fsqrt d0, d2", 4.0, False), ("fsqrt d0, d2", 2.0, True),
    ("fmadd d0, d1, d2, d1", 3.0, False), ("fmadd d0, d1, d2, d1", 2.0**-53, True), ("fcvt s0, d2", 1.5, False),
    ("fcvt s0, d2", 1.0 + 2.0**-52, True), ("scvtf d0, x9", 0.0, False), ("scvtf s0, x9", 0.0, True), ("ucvtf d0, x9", 0.0, False),
    ("ucvtf s0, x9", 0.0, True), ("ucvtf v0.4s, v2.4s", 1.0, False), ("ucvtf v0.4s, v2.4s", 4 / 3, True),
    ("frinta d0, d2", 1.5, False),
    ("fadd v0.2d, v1.2d, v2.2d", 2.0, False), ("fadd v0.2d, v1.2d, v2.2d", 2.0**-60, True),
])  # fmt: skip
@pytest.mark.parametrize("flagged", [0, 16])
def test_inexact_results_are_noticed(bench: Bench, operation: str, b: float, inexact: bool, flagged: int) -> None:
    """In a loop that overwrites the result, after work that is exact; FPSR is read behind the loop."""
    code = bench.load(f"loop: fadd d4, d5, d5\n{operation}\nfadd d0, d5, d5\nfmov d3, d0\nsubs x1, x1, #1\nb.ne loop\nhvc #1")
    cpu = bench.cpu(code)
    cpu[CPACR_EL1] = CPACR_EL1(FPEN=3)

    def run(turns: int) -> int:
        for register, value in ((1, 1.0), (2, b), (5, 1.0)):
            cpu.state.v[register].lo, cpu.state.v[register].hi = struct.unpack("<Q", struct.pack("<d", value))[0], 0
        cpu.state.sysreg[FPSR], cpu.state.sysreg[FPCR] = flagged, 0
        bench.start(cpu, code, x1=turns, x9=0x1234567)
        cpu.enter()
        assert hvc_number(cpu) == 1
        return int(cpu.state.sysreg[FPSR])

    expected = flagged | 16 * inexact
    assert run(3) == expected
    Tier1(bench).install(code)
    assert [run(n) for n in (1, 2, 3, 100)] == [expected] * 4


def test_a_trap_finds_the_registers_as_they_are(bench: Bench) -> None:
    """Trapped pointer authentication, in a loop that holds registers in values."""
    code = bench.load("loop: add x2, x2, #1\nadd x3, x3, x2\npacia x4, x5\nsubs x1, x1, #1\nb.ne loop\nhvc #1")
    cpu = bench.cpu(code)

    def run(api: bool) -> tuple[int, int, int]:
        bench.start(cpu, code, x1=5, x2=10, x3=20)
        cpu[HCR_EL2] = int(HCR_EL2(RW=1, API=api))
        cpu[SCTLR_EL1] |= SCTLR_EL1.EnIA.mask
        cpu.enter()
        return cpu[ELR_EL2] - code, cpu.state.x[2], cpu.state.x[3]

    before, after = (8, 11, 31), (24, 15, 85)
    assert (run(True), run(False)) == (after, before)
    Tier1(bench).install(code)
    assert (run(True), run(False)) == (after, before)


SPIN = "loop: add x0, x0, #1\nadd x2, x2, #2\nadd x3, x3, #3\nadd x4, x4, x3\nb loop"


def entered(cpu: Cpu) -> threading.Thread:
    thread = threading.Thread(target=cpu.enter, daemon=True)
    thread.start()
    while not cpu.state.running:
        pass
    return thread


def spinning(bench: Bench, at: int) -> Cpu:
    """A vCPU that has run the code at `at`, and was stopped in it."""
    cpu = bench.cpu(at)
    thread = entered(cpu)
    while not cpu.state.x[0]:
        pass
    cpu.kick()
    thread.join(30)
    assert not thread.is_alive()
    return cpu


def test_a_kick_ends_a_region(bench: Bench) -> None:
    code = bench.load(SPIN)
    cpu = spinning(bench, code)
    Tier1(bench).install(code)
    thread = entered(cpu)
    cpu.kick()
    thread.join(30)
    assert not thread.is_alive()


PATCH = "str w1, [x2]\ndc cvau, x2\ndsb ish\nic ivau, x2\ndsb ish\nisb\nhvc #2"


def test_a_region_that_another_vcpu_patches(bench: Bench) -> None:
    """The branch that closes the loop becomes a NOP while the loop runs, as a static key of Linux does."""
    code = bench.load(SPIN + "\nhvc #1")
    cpu = spinning(bench, code)
    Tier1(bench).install(code)
    thread = entered(cpu)
    nop = int.from_bytes(assemble_program("nop"), "little")
    patching = bench.cpu(bench.load(PATCH), x1=nop, x2=code + 16)
    patching.enter()
    assert hvc_number(patching) == 2
    thread.join(30)
    assert not thread.is_alive() and hvc_number(cpu) == 1


def test_a_region_whose_code_changed_is_not_entered(bench: Bench) -> None:
    """The change is on the region's second page: what was decoded at its entry stays."""
    at = bench.memory.page(2)
    second, code = at + PAGE, at + PAGE - 16
    bench.memory.write(code, assemble_program("add x0, x0, #1\n" * 6 + "hvc #1"))
    bench.tables.map(at, at)
    bench.tables.map(second, second)
    cpu = bench.cpu(code)
    cpu.enter()
    linked = Tier1(bench).install(code)
    new = int.from_bytes(assemble_program("add x0, x0, #100"), "little")
    patching = bench.cpu(bench.load(PATCH), x1=new, x2=second)
    patching.enter()
    bench.start(cpu, code, x0=0)
    cpu.enter()
    assert cpu.state.x[0] == 105
    assert not linked.install(bench.engine, Here(bench.engine, code & -PAGE, Texts()), Texts())


def test_a_region_of_code_that_changes_while_it_is_installed(bench: Bench) -> None:
    """The record that it would take over is another instruction's by then."""
    code = bench.load("add x0, x0, #1\nadd x0, x0, #2\nadd x0, x0, #3\nadd x0, x0, #4\nhvc #1")
    cpu = bench.cpu(code)
    cpu.enter()
    tier1 = Tier1(bench)
    tier1.install(code)
    patch, patching = bench.load(PATCH), bench.cpu(code)

    class Changing(Texts):
        def read(self, records: int) -> bytes | None:
            text = super().read(records)
            bench.start(patching, patch, x1=int.from_bytes(assemble_program("sub x0, x1, x0"), "little"), x2=code)
            patching.enter()
            bench.start(cpu, code, x0=0, x1=50)
            cpu.enter()  # decodes the new instruction
            return text

    here = Here(bench.engine, code & -PAGE, tier1.texts)
    region = tier1.builder.explore(code % PAGE >> 2, here.text)
    assert region is not None
    (linked,) = link([tier1.builder.build(region)], bench.engine.code)
    assert not linked.install(bench.engine, here, Changing())
    bench.start(cpu, code, x0=0, x1=50)
    cpu.enter()
    assert cpu.state.x[0] == 50 + 2 + 3 + 4


def test_a_region_on_two_pages_follows_the_mapping_of_the_second(bench: Bench) -> None:
    """The same code of the first page is used with another second page: break before make, TLBI, and it runs there."""
    first, second, other = bench.memory.page(), bench.memory.page(), bench.memory.page()
    assert second == first + PAGE
    loop = first + PAGE - 16
    bench.memory.write(loop, assemble_program("add x0, x0, #1\nsub x1, x1, #1\nadd x2, x2, x0\nadd x3, x3, x0"))
    bench.memory.write(second, assemble_program(f"cbnz x1, {loop:#x}\nhvc #1", second))
    bench.memory.write(other, assemble_program(f"add x9, x9, #1\ncbnz x1, {loop:#x}\nhvc #3", second))
    bench.tables.map(first, first)
    bench.tables.map(second, second)
    cpu = bench.cpu(loop, x1=50)
    cpu.enter()
    assert hvc_number(cpu) == 1
    Tier1(bench).install(loop)
    bench.start(cpu, loop, x1=50)
    cpu.enter()
    assert hvc_number(cpu) == 1
    bench.tables.map(second, other)
    bench.engine.tlbi_vmalls12e1(0)
    bench.start(cpu, loop, x1=50, x9=0)
    cpu.enter()
    assert (hvc_number(cpu), cpu.state.x[9]) == (3, 50)


def test_a_data_page_that_is_mapped_elsewhere(bench: Bench) -> None:
    """Translations that a region found are no longer used once they are invalidated."""
    old, new = bench.memory.page(), bench.memory.page()
    bench.memory.put(old, 1)
    bench.memory.put(new, 2)
    va = 0x12_3456_7000
    bench.tables.map(va, old)
    entry = bench.tables.entry(va)
    bench.tables.map(entry & -PAGE, entry & -PAGE)
    code = bench.load(
        """
        loop: ldr x2, [x5]
        ldr x9, [x5, #8]
        add x0, x0, x2
        str x6, [x7]
        dsb ish
        tlbi vae1, x8
        dsb ish
        ldr x3, [x5]
        ldr x10, [x5, #8]
        add x4, x4, x3
        subs x1, x1, #1
        b.ne loop
        hvc #1
    """
    )
    values = {"x0": 0, "x1": 2, "x4": 0, "x5": va, "x6": new | 0x703, "x7": entry, "x8": va >> 12}
    cpu = bench.cpu(code, **values)
    cpu.enter()
    assert (cpu.state.x[0], cpu.state.x[4]) == (3, 4)
    Tier1(bench).install(code)
    bench.tables.map(va, old)
    bench.engine.tlbi_vmalls12e1(0)
    bench.start(cpu, code, **values)
    cpu.enter()
    assert (hvc_number(cpu), cpu.state.x[0], cpu.state.x[4]) == (1, 3, 4)


WAITING = {
    "a word": "ldr x2, [x5]\nadd x0, x0, x2\ndsb ish\nldr x3, [x5]\nadd x4, x4, x3",
    "a list": "add x6, x5, #8\nwalk: ldr x6, [x6]\nadd x0, x0, #1\ncbnz x6, walk\nmov x4, x0\ndsb ish",
}
"""What a loop does with a page at x5. When its first DSB waits x0 is 1: the page's first word, or the number of a list's nodes."""


@pytest.mark.parametrize(("body", "sums"), [("a word", (3, 4)), ("a list", (3, 3))])
def test_a_page_that_is_taken_away_while_a_region_waits(bench: Bench, body: str, sums: tuple[int, int]) -> None:
    """A DSB waits for another vCPU, and meanwhile does what that one asks for: the page before the DSB is not the one after it."""
    old, new = bench.memory.page(), bench.memory.page()
    va = 0x12_3456_7000
    bench.memory.put(old, 1)
    bench.memory.put(new, 2)
    bench.memory.put(new + 8, va + 64)
    bench.tables.map(va, old)
    code = bench.load(f"tlbi vae1is, x8\nloop: {WAITING[body]}\nsubs x1, x1, #1\nb.ne loop\nhvc #1")
    values = {"x0": 0, "x4": 0, "x5": va, "x8": 0}
    cpu = bench.cpu(code, x1=1, **values)
    cpu.enter()
    Tier1(bench).install(code + 4)
    other = bench.engine.create_cpu().state
    other.running = 1  # it is in no hurry to answer the TLBI
    bench.start(cpu, code, x1=2, **values)
    thread = threading.Thread(target=cpu.enter, daemon=True)
    thread.start()
    while cpu.state.x[0] != 1:
        pass
    bench.tables.map(va, new)
    bench.engine.entry.request_sync(cpu.address, 0, 0, 0)
    while cpu.state.sync_done != cpu.state.sync_request:
        pass
    other.sync_done = other.sync_request
    other.running = 0
    thread.join(30)
    assert not thread.is_alive() and hvc_number(cpu) == 1
    assert (cpu.state.x[0], cpu.state.x[4]) == sums


class Waiting:
    """A compiler that is busy for ever."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.forgotten: list[int] = []

    def forget(self, number: int) -> None:
        self.forgotten.append(number)

    def order(self, heat: int, index: int, exact: bool, order: Order) -> int:
        self.orders.append(order)
        return len(self.orders)


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Waiting]:
    """A machine whose orders stay with the compiler that is returned."""
    machine, compiler = Bench(), Waiting()
    monkeypatch.setitem(vars(machine.engine.code), "region_compiler", compiler)
    return machine, compiler


def run_calls(machine: Bench, part: str, count: int) -> tuple[int, Cpu]:
    """Run so many times a piece of code with a call in the end, from the second instruction on; where the first one is, and who ran it."""
    code = machine.load("adr x9, work\n" + count * f"{part}\nblr x9\n" + "hvc #1\nwork: ret")
    cpu = machine.cpu(code)
    cpu.enter()
    return code, cpu


def test_an_order_does_not_keep_a_machine_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, compiler = without_compiler(monkeypatch)
    before = set(threading.enumerate())
    code = machine.load("loop: subs x1, x1, #1\nb.ne loop\nhvc #1")
    cpu = machine.cpu(code, x1=5)
    threads = set(threading.enumerate()) - before
    machine.engine.close()
    for thread in threads:
        thread.join(30)
    cpu.enter()
    regions = machine.engine.regions
    assert regions is not None
    regions.work({}, {Spot(cpu.state.records, (code & PAGE - 1) >> 2): (cpu, code & -PAGE)})
    (order,) = compiler.orders
    text, _ = order.page(0)
    assert text is not None and text[:8] == assemble_program("loop: subs x1, x1, #1\nb.ne loop")
    engine = weakref.ref(machine.engine)
    del machine, cpu, regions
    gc.collect()
    assert engine() is None
    assert order.page(0) == (None, ())
    order.deliver(None)


def test_where_two_regions_can_be_entered_the_first_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of the other one is that it does not run there: nobody asks for it again when that place is met in a region."""
    machine, compiler = without_compiler(monkeypatch)
    code, cpu = run_calls(machine, "add x2, x2, #2\nadd x3, x3, x2\nadd x4, x4, x3", 3)
    regions = machine.engine.regions
    assert regions is not None
    first, second, third = (Spot(cpu.state.records, (code % PAGE >> 2) + k) for k in (1, 5, 9))
    regions.work({}, {second: (cpu, code & -PAGE)})
    regions.work({}, {first: (cpu, code & -PAGE)})
    tier1 = Tier1(machine)
    for order, spot in zip(compiler.orders, (second, first), strict=True):
        region = tier1.builder.explore(spot.index, lambda distance, order=order: order.page(distance)[0])
        assert region is not None and (0, third.index) in region.entries
        order.deliver(tier1.builder.build(region))
    assert regions.installed[first] is not regions.installed[second] is regions.installed[third]
    assert all(linked.runs_at(spot.records, spot.index) for spot, linked in regions.installed.items())
    machine.engine.close()


def test_of_stored_regions_those_are_linked_that_begin_where_none_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine, compiler = without_compiler(monkeypatch)
    code, cpu = run_calls(machine, "add x2, x2, #3\nadd x3, x3, x2\nadd x4, x4, x3\nadd x5, x4, #1", 2)
    regions, tier1, store = machine.engine.regions, Tier1(machine), RegionStore(ObjectCache("key", tmp_path))
    assert regions is not None
    first, second = (Spot(cpu.state.records, (code % PAGE >> 2) + k) for k in (1, 6))
    here = Here(machine.engine, code & -PAGE, tier1.texts)
    for spot in (first, second):
        region = tier1.builder.explore(spot.index, here.text)
        assert region is not None
        store.add(tier1.builder.build(region))
    regions._stored = StoredRegions(store.all().values())
    place = {first: (cpu, code & -PAGE)}
    regions.work(place, place)
    assert regions.installed[first] is regions.installed[second]
    assert not compiler.orders
    assert len({built.tag for built in map(Stored.read, store.all().values()) if built} & machine.engine.code.regions) == 1
    machine.engine.close()


def test_orders_inside_a_loop_that_has_a_region_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept for them, and what comes nevertheless is not put into service."""
    machine, compiler = without_compiler(monkeypatch)
    code = machine.load("loop: add x0, x0, #1\nadd x2, x2, #2\nadd x3, x3, x2\nsubs x1, x1, #1\nb.ne loop\nhvc #1")
    cpu = machine.cpu(code, x1=5)
    cpu.enter()
    regions = machine.engine.regions
    assert regions is not None
    head, inside = (Spot(cpu.state.records, (code % PAGE >> 2) + k) for k in (0, 2))
    regions.work({}, dict.fromkeys((head, inside), (cpu, code & -PAGE)))
    first, second = compiler.orders
    tier1 = Tier1(machine)
    region = tier1.builder.explore(head.index, lambda distance: first.page(distance)[0])
    assert region is not None
    first.deliver(tier1.builder.build(region))
    assert head in regions.installed and compiler.forgotten == [2]
    assert second.page(0) == (None, ())
    second.deliver(None)
    regions.work({}, {inside: (cpu, code & -PAGE)})
    assert len(compiler.orders) == 3, "it can be asked for again"
    machine.engine.close()


def test_what_was_found_does_not_keep_a_machine_alive() -> None:
    """Nobody closes it: its threads end because the collector finds it."""
    machine, done = Bench(), threading.Event()
    before = set(threading.enumerate())
    code = machine.load("hvc #1")
    cpu = machine.cpu(code)
    threads = set(threading.enumerate()) - before
    cpu.enter()
    regions = machine.engine.regions
    assert regions is not None and threads
    work = type(regions).work.__get__(weakref.proxy(regions))
    regions.work = lambda *found: (work(*found), done.set())  # type: ignore[method-assign, assignment]
    regions._findings.add(Spot(cpu.state.records, 0), cpu, code & -PAGE, hot=False)
    assert done.wait(30)
    del machine, cpu, regions
    for thread in threads:
        for _ in range(1000):
            gc.collect()
            thread.join(0.01)
            if not thread.is_alive():
                break
        assert not thread.is_alive(), thread.name


COUNT = 40_000_000
PROFILED = f"""
from tests.engine_machine import Bench
from trapline.engine.tier1.client import RegionCompiler
ordered, order = [], RegionCompiler.order
RegionCompiler.order = lambda *what: ordered.append(what) or order(*what)
bench = Bench()
code = bench.load("loop: add x0, x0, x1\\neor x2, x2, x0\\nadd x3, x3, #1\\nsubs x1, x1, #1\\nb.ne loop\\nhvc #1")
cpu = bench.cpu(code, x1={COUNT})
while not bench.engine.regions.installed:
    bench.start(cpu, code, x1={COUNT})
    cpu.enter()
bench.start(cpu, code, x0=0, x1={COUNT})
cpu.enter()
assert cpu.state.x[0] == {COUNT} * ({COUNT} + 1) // 2
print("compiled" if ordered else "found")
"""


@pytest.mark.timeout(240)
def test_hot_code_is_found_compiled_and_kept(tmp_path: Path) -> None:
    """From the profiler to the compiler's process and back; and another process finds the region on disk."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "TRAPLINE_LINGER": "0"}
    environment.pop(TIER1, None)
    said = [
        subprocess.run([sys.executable, "-c", PROFILED], check=True, env=environment, capture_output=True, text=True).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["compiled", "found"]
    assert list(tmp_path.rglob(REGIONS))
