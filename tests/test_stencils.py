"""Code laid out from stencils: the same results as the interpreter, and what a record no longer says is no longer run."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from tests.differential.compare import STATES, compare
from tests.differential.runners import Here, Stencilled, Trapline
from tests.engine_machine import PAGE, Bench, hvc_number
from tests.test_tier1 import LOOPS, PATCH, SEED, SPIN, SYNC_FROM_SPX, Loop, bench, entered, spinning
from trapline.arm64.asm_program import assemble_program
from trapline.arm64.regs import CPACR_EL1, ESR_EL2, FAR_EL1
from trapline.engine.engine import TIER1
from trapline.engine.state import RECORD_SIZE
from trapline.engine.stencil.arena import Stencils
from trapline.engine.stencil.template import NONE
from trapline.engine.tier1 import manager
from trapline.engine.tier1.builder import RegionBuilder
from trapline.engine.tier1.install import Texts

__all__ = ["bench"]
RANDOM_INSTRUCTIONS = 8000


class Assembler:
    """Assembles pages on the spot."""

    def __init__(self, machine: Bench) -> None:
        self.engine = machine.engine
        self.builder = RegionBuilder(self.engine.features, self.engine.code.cache)
        self.texts = Texts()
        self.stencils = Stencils(self.engine, self._make)

    def _make(self, shapes: list[int]) -> bool:
        self.engine.code.templates.add(self.builder.stencils(shapes))
        return True

    def page(self, at: int) -> int:
        """Assemble what has been decoded on a page of code; how many instructions run as stencils now."""
        records = Here(self.engine, at & -PAGE, self.texts).records(0)
        assert records is not None
        return sum(self.stencils.assemble(records, self.texts.read) for _ in range(3))  # the first looks may be for templates

    def runs(self, at: int) -> bool:
        """Whether the instruction at a host address runs as a stencil."""
        records = Here(self.engine, at & -PAGE, self.texts).records(0)
        assert records is not None
        handler = ctypes.c_uint64.from_address(records + (at % PAGE >> 2) * RECORD_SIZE).value
        return self.stencils.owns(handler)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_leaves_what_the_interpreter_leaves(bench: Bench, name: str) -> None:
    loop = Loop(bench, name)
    expected = loop.run()
    assert Assembler(bench).page(loop.code) >= 3
    assert loop.run() == expected, f"seed {SEED}"


def test_random_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random programs against the interpreter, which is compared with QEMU elsewhere."""
    monkeypatch.setenv(TIER1, "0")
    stencils = Stencilled()
    report = compare(RANDOM_INSTRUCTIONS, SEED, stencils, Trapline())
    assert not report.mismatches, report.text()
    assert STATES * stencils.instructions > RANDOM_INSTRUCTIONS // 2


@pytest.mark.parametrize("access", ["ldr x2, [x5]", "str w2, [x5]", "stp x2, x3, [x5]", "ldr q2, [x5]"])
def test_what_faults_is_the_interpreters(bench: Bench, access: str) -> None:
    code = bench.load(f"add x0, x0, #1\n{access}\nadd x0, x0, #1\nhvc #1")
    data = bench.memory.page()
    bench.tables.map(data, data)
    cpu = bench.cpu(code, x5=data)
    cpu[CPACR_EL1] = CPACR_EL1(FPEN=3)
    cpu.enter()
    assert hvc_number(cpu) == 1
    assembler = Assembler(bench)
    assembler.page(code)
    assert assembler.runs(code + 4)
    bench.start(cpu, code, x0=0, x5=0x123450)
    cpu.enter()
    assert (hvc_number(cpu), cpu[FAR_EL1], cpu.state.x[0]) == (SYNC_FROM_SPX, 0x123450, 1)


def test_a_kick_ends_a_loop(bench: Bench) -> None:
    code = bench.load(SPIN)
    cpu = spinning(bench, code)
    Assembler(bench).page(code)
    thread = entered(cpu)
    cpu.kick()
    thread.join(30)
    assert not thread.is_alive()


def test_a_kick_ends_a_loop_after_a_page_that_was_gone(bench: Bench) -> None:
    """A page can be forgotten before it is assembled. It was what came first that decided where all code looks for kicks."""
    code = bench.load(SPIN)
    cpu = spinning(bench, code)
    assembler = Assembler(bench)
    records = Here(assembler.engine, code & -PAGE, assembler.texts).records(0)
    assert records is not None
    for _ in range(2):  # the first asks for templates
        assert assembler.stencils.assemble(records, lambda records: None) == 0
    assembler.page(code)
    assert assembler.runs(code)
    thread = entered(cpu)
    cpu.kick()
    thread.join(30)
    assert not thread.is_alive()


def test_a_loop_that_another_vcpu_patches(bench: Bench) -> None:
    """The branch that closes the loop becomes a NOP while the loop runs, as a static key of Linux does."""
    code = bench.load(SPIN + "\nhvc #1")
    cpu = spinning(bench, code)
    Assembler(bench).page(code)
    thread = entered(cpu)
    nop = int.from_bytes(assemble_program("nop"), "little")
    patching = bench.cpu(bench.load(PATCH), x1=nop, x2=code + 16)
    patching.enter()
    assert hvc_number(patching) == 2
    thread.join(30)
    assert not thread.is_alive() and hvc_number(cpu) == 1


def test_code_that_changes_is_forgotten(bench: Bench) -> None:
    """The new instruction differs in its operand only; those around it are assembled again with it."""
    text = "add x0, x0, #1\nadd x0, x0, #2\nb over\nnop\nover: add x0, x0, #3\nadd x0, x0, #4\nhvc #1"
    code = bench.load(text)
    cpu = bench.cpu(code)
    cpu.enter()
    assembler = Assembler(bench)
    assembler.page(code)
    assert all(assembler.runs(code + at) for at in (0, 4, 8, 16, 20))
    patching = bench.cpu(bench.load(PATCH), x1=int.from_bytes(assemble_program("add x0, x0, #100"), "little"), x2=code + 16)
    patching.enter()
    assert not assembler.runs(code + 16)
    for _ in range(2):
        bench.start(cpu, code, x0=0)
        cpu.enter()
        assert cpu.state.x[0] == 1 + 2 + 100 + 4
        assembler.page(code)
    assert assembler.runs(code + 16)


@pytest.mark.parametrize("patched", range(14, 20))
def test_code_that_changes_is_not_fallen_into(bench: Bench, patched: int) -> None:
    """Straight code over a cache line's end: IC IVAU names one line only, and the code before it goes on into it."""
    code = bench.load("nop\n" * 4 + "add x0, x0, #1\n" * 20 + "hvc #1")
    code += -code % 64
    bench.memory.write(code, assemble_program("add x0, x0, #1\n" * 24 + "hvc #1"))
    cpu = bench.cpu(code)
    cpu.enter()
    assembler = Assembler(bench)
    assert assembler.page(code) >= 24
    new = int.from_bytes(assemble_program("add x0, x0, #100"), "little")
    patching = bench.cpu(bench.load(PATCH), x1=new, x2=code + 4 * patched)
    patching.enter()
    for _ in range(2):
        bench.start(cpu, code, x0=0)
        cpu.enter()
        assert cpu.state.x[0] == 23 + 100
        assembler.page(code)


def test_code_that_changes_while_it_is_assembled_is_not_run(bench: Bench) -> None:
    """IC IVAU between reading the records and publishing: the page's generation tells."""
    code = bench.load("add x0, x0, #1\nadd x0, x0, #2\nhvc #1")
    cpu = bench.cpu(code)
    cpu.enter()
    assembler = Assembler(bench)
    assembler.page(code)
    new = int.from_bytes(assemble_program("add x0, x0, #100"), "little")
    patching = bench.cpu(bench.load(PATCH), x1=new, x2=code)
    patching.enter()

    def run() -> int:
        bench.start(cpu, code, x0=0)
        cpu.enter()
        return int(cpu.state.x[0])

    def text(records: int) -> bytes | None:
        read = assembler.texts.read(records)
        bench.memory.write(code, assemble_program("add x0, x0, #7"))
        patching[ESR_EL2] = 0
        bench.start(patching, patching_code, x1=int.from_bytes(assemble_program("add x0, x0, #7"), "little"), x2=code)
        patching.enter()
        assert run() == 9  # decoded anew: the record has a plain handler again
        return read

    patching_code = bench.load(PATCH)
    assert run() == 102
    records = Here(bench.engine, code & -PAGE, assembler.texts).records(0)
    assert records is not None
    assert assembler.stencils.assemble(records, text) == 0
    assert run() == 9


def test_nothing_is_writable_and_executable(bench: Bench) -> None:
    code = bench.load(SPIN)
    spinning(bench, code)
    assembler = Assembler(bench)
    assert assembler.page(code) == 5
    start, end = assembler.stencils.span
    kinds = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(x, 16) for x in line.split()[0].split("-"))
        if first < end and start < last:
            kinds.add(line.split()[1])
    assert "r-xp" in kinds and not any("w" in kind and "x" in kind for kind in kinds)


def test_an_arena_that_is_full_leaves_code_to_the_interpreter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trapline.engine.stencil.arena.ARENA", 12 << 10)
    assembler = Assembler(bench)
    codes = [bench.load(f"add x0, x0, #{k}\nhvc #1") for k in range(8)]
    done = []
    for k, code in enumerate(codes):
        cpu = bench.cpu(code, x0=0)
        cpu.enter()
        done.append(assembler.page(code))
        bench.start(cpu, code, x0=0)
        cpu.enter()
        assert cpu.state.x[0] == k
    assert done[0] and not done[-1]


def test_a_shape_is_asked_for_once(bench: Bench) -> None:
    code = bench.load("isb\nhvc #1")
    bench.cpu(code).enter()
    asked: list[int] = []
    stencils = Stencils(bench.engine, lambda shapes: asked.extend(shapes) is None)
    Assembler(bench).page(code)
    records = Here(bench.engine, code & -PAGE, Texts()).records(0)
    assert records is not None
    asked.clear()
    stencils.assemble(records, Texts().read)
    assert not asked
    shape = bench.engine.entry.decode(int.from_bytes(bench.memory.read(code, 4), "little"), (code % PAGE) >> 2)
    assert bench.engine.code.templates.table[shape] == NONE


def test_pages_that_have_settled_are_laid_out_without_being_met(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "SETTLED", 1)
    assembler, text = Assembler(bench), "add x0, x0, #1\nsub x1, x1, x0\nhvc #1"
    first = bench.load(text)
    bench.cpu(first).enter()
    assert assembler.page(first), "there are templates now"
    codes = [bench.load(text) for _ in range(3)]
    for code in codes:
        bench.cpu(code).enter()
    regions = manager.Regions(bench.engine)
    regions.lay_out_settled()
    regions.close()
    for code, laid in zip(codes, (True, True, False), strict=True):
        records = Here(bench.engine, code & -PAGE, assembler.texts).records(0)
        assert records is not None
        assert regions.stencils.owns(ctypes.c_uint64.from_address(records + (code % PAGE >> 2) * RECORD_SIZE).value) == laid
