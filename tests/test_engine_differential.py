"""Random programs leave the same registers and memory on the engine as on QEMU and Unicorn.

`TRAPLINE_SEED=S` chooses other programs; `python -m tests.differential --count N` runs any number by hand.
"""

from __future__ import annotations

import json
import os
import random

import pytest

from tests.differential.compare import BLOCK, VECTORS, Mismatch, compare, locate
from tests.differential.generate import Generator
from tests.differential.program import NOP, RECORD, Program, build, comparable, random_record
from tests.differential.runners import Qemu, Trapline, Unicorn

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))
QEMU_INSTRUCTIONS, UNICORN_INSTRUCTIONS = 1_000_000, 200_000
FMUL_D0_D1_D2 = 0x1E62_0820


@pytest.fixture(scope="module")
def engine() -> Trapline:
    return Trapline()


def need(oracle: type[Qemu] | type[Unicorn]) -> Qemu | Unicorn:
    reason = oracle.missing()
    if reason:
        pytest.skip(f"RANDOM PROGRAMS NOT COMPARED: {reason}")
    return oracle()


def test_against_qemu(engine: Trapline) -> None:
    report = compare(QEMU_INSTRUCTIONS, SEED, engine, need(Qemu))
    print(report.text())
    assert not report.mismatches, report.text()
    assert not report.unreached, f"never generated: {report.unreached}"


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


class Wrong:
    """An emulator with one mistake: results of FMUL differ in the last bit."""

    name, wrong, lacks = "mistaken", {}, ()

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
    block = Generator().block(rng, BLOCK)
    block[40] = FMUL_D0_D1_D2
    block[41:] = [NOP] * (BLOCK - 41)
    record = random_record(rng, 0, rng.randbytes(4096))
    found = locate(block, record, Wrong(engine), engine)
    assert found is not None and found.word == FMUL_D0_D1_D2
    assert any(line.startswith("v0:") for line in found.differences())


def test_recorded_vectors(engine: Trapline) -> None:
    """Instructions that were once wrong stay right (`--keep` records them; none so far)."""
    failures = []
    for line in VECTORS.read_text().splitlines() if VECTORS.exists() else ():
        row = json.loads(line)
        before, after = bytes.fromhex(row["before"]), bytes.fromhex(row["after"])
        got = bytes(comparable(engine.run(build([[int(row["word"], 16)]], [before])))[:RECORD])
        if got != after:
            failures.append(Mismatch(int(row["word"], 16), before, got, after, row["oracle"]).text())
    assert not failures, "\n\n".join(failures)
