"""Random programs leave the same registers and memory on the engine as on QEMU and Unicorn.

`TRAPLINE_SEED=S` chooses other programs; `python -m tests.differential --count N` runs any number by hand.
"""

from __future__ import annotations

import json
import os
import random

import pytest

from tests.differential.compare import BLOCK, VECTORS, Comparison, Mismatch, Report, compare, locate
from tests.differential.coverage import Coverage
from tests.differential.generate import NO_KEYS, Generator
from tests.differential.program import NOP, RECORD, Program, States, build
from tests.differential.runners import Qemu, Regions, Stencilled, Trapline, Unicorn, Whole
from tests.differential.system import Kernel, SystemQemu
from trapline.arm64.regs.el1 import PAUTH_KEYS

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))
SETS, SLOW_SETS, UNICORN_INSTRUCTIONS = 1000, 20_000, 200_000
"""Operand sets of every instruction; `python -m tests.differential --coverage 1000 --count 20000000` is the whole proof."""
FMUL_D0_D1_D2 = 0x1E62_0820
LDR_Q0_LITERAL = 0x9C00_03E0
"""From 124 bytes on."""


@pytest.fixture(scope="module")
def engine() -> Trapline:
    return Trapline()


def need(oracle: type[Qemu] | type[Unicorn] | type[SystemQemu]) -> Qemu | Unicorn | SystemQemu:
    reason = oracle.missing()
    if reason:
        pytest.skip(f"RANDOM PROGRAMS NOT COMPARED: {reason}")
    return oracle()


@pytest.mark.parametrize("wanted", [SETS, pytest.param(SLOW_SETS, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_against_qemu(engine: Trapline, wanted: int) -> None:
    cover(engine, wanted)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_regions_against_qemu(engine: Trapline) -> None:
    """The same with every block compiled as regions."""
    cover(Regions(), SETS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stencils_against_qemu(engine: Trapline) -> None:
    """The same with every block laid out from stencils."""
    cover(Stencilled(), SETS)


@pytest.mark.parametrize("only", ["pac|authenticated", pytest.param("", marks=pytest.mark.slow)])
def test_el1_against_qemu(only: str) -> None:
    """At EL1, where both have the same keys for pointer authentication."""
    cover(Kernel(), SETS, SystemQemu, only)


def test_other_keys_are_noticed() -> None:
    ours = Kernel()
    ours.cpu[PAUTH_KEYS[0]] ^= 1
    report = Report("", SEED)
    Comparison(ours, need(SystemQemu), only="pac_zero", limit=1).one_pass(report, 100)
    assert report.mismatches


def test_what_a_short_program_reads_behind_its_end(engine: Trapline) -> None:
    """A literal may lie behind the last block, where a longer program left something."""
    engine.run(build([[FMUL_D0_D1_D2] * 64], [bytes(RECORD)]))
    short = build([[LDR_Q0_LITERAL]], [bytes(RECORD)])
    assert engine.run(short) == need(Qemu).run(short)


def cover(ours: Trapline, wanted: int, oracle: type[Qemu] | type[SystemQemu] = Qemu, only: str = "") -> None:
    """Compare until every instruction had enough operand sets, or one was wrong."""
    coverage = Coverage(Comparison(ours, need(oracle), only=only), Report(oracle.name, SEED))
    coverage.run(wanted, 0, 1e9, None)
    print(coverage.text())
    assert not coverage.report.mismatches, coverage.report.text()
    assert not coverage.below(wanted)
    assert coverage.least_shapes()[0][1] > 0


def test_against_unicorn(engine: Trapline) -> None:
    report = compare(UNICORN_INSTRUCTIONS, SEED + 1, engine, need(Unicorn))
    print(report.text())
    assert not report.mismatches, report.text()


def test_what_is_left_out_has_a_reason() -> None:
    unused = Generator().unused
    for name, reason in sorted(unused.items()):
        print(f"{name}: {reason}")
    assert all(unused.values())
    assert len(unused) < 60


class Wrong(Whole):
    """An emulator with one mistake: results of FMUL differ in the last bit."""

    name, wrong, lacks, groups = "mistaken", {}, (), NO_KEYS

    def __init__(self, correct: Trapline) -> None:
        self.correct = correct

    def run(self, program: Program) -> bytes:
        data = bytearray(self.correct.run(program))
        if FMUL_D0_D1_D2.to_bytes(4, "little") in program.code:
            data[256] ^= 1
        return bytes(data)


def test_a_planted_mistake_is_narrowed_to_its_instruction(engine: Trapline) -> None:
    """The comparison itself works: a wrong result is found, and its instruction named."""
    rng = random.Random(5)
    block = Generator().block(rng, BLOCK).words
    block[15] = FMUL_D0_D1_D2
    block[16:] = [NOP] * (BLOCK - 16)
    record = States(rng).record(0)
    found = locate(block, record, Wrong(engine), engine)
    assert found is not None and found.word == FMUL_D0_D1_D2
    assert any(line.startswith("v0:") for line in found.differences())


def test_recorded_vectors(engine: Trapline) -> None:
    """Instructions that were once wrong stay right (`--keep` records them; none so far)."""
    failures = []
    for line in VECTORS.read_text().splitlines() if VECTORS.exists() else ():
        row = json.loads(line)
        before, after = bytes.fromhex(row["before"]), bytes.fromhex(row["after"])
        got = engine.run(build([[int(row["word"], 16)]], [before]))[:RECORD]
        if got != after:
            failures.append(Mismatch(int(row["word"], 16), before, got, after, row["oracle"]).text())
    assert not failures, "\n\n".join(failures)
