"""Running random programs on several emulators, and finding the instruction that one of them does otherwise."""

from __future__ import annotations

import json
import random
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.differential.generate import Generator
from tests.differential.program import NOP, RECORD, SP_AT, WINDOW, Program, build, comparable, describe, random_record
from tests.differential.templates import POINTERS
from trapline.arm64.features import Features

BLOCK, BATCH = 64, 2000
VECTORS = Path(__file__).parents[1] / "vectors" / "differential.jsonl"


_REGISTER = re.compile(r"\b([wxbhsdqv])(\d+)")


class Runner(Protocol):
    name: str
    wrong: Mapping[str, Callable[[dict[str, int]], bool]]
    """Instructions that the runner is known to get wrong: by name, a test of their shape."""
    lacks: Sequence[str]
    """Features that the runner does not have."""

    def run(self, program: Program) -> bytes: ...


@dataclass(frozen=True)
class Mismatch:
    """One instruction, the state before it, and what two runners made of it."""

    word: int
    before: bytes
    ours: bytes
    theirs: bytes
    oracle: str
    context: tuple[int, ...] = ()
    """The instructions that ran before it."""

    def differences(self) -> list[str]:
        a, b = describe(self.ours), describe(self.theirs)
        found = [f"{name}: trapline {a[name]:#x}, {self.oracle} {b[name]:#x}" for name in a if a[name] != b[name]]
        window = zip(self.ours[WINDOW:], self.theirs[WINDOW:], strict=True)
        return found + [f"window +{k}: {x:#x}, {y:#x}" for k, (x, y) in enumerate(window) if x != y]

    def text(self) -> str:
        text = objdump(self.word)
        named = {("x" if bank in "wx" else "v") + number for bank, number in _REGISTER.findall(text)}
        named |= {"sp", "nzcv", "fpcr", "fpsr"}
        before = " ".join(f"{name}={value:#x}" for name, value in describe(self.before).items() if name in named)
        earlier = "; ".join(objdump(w) for w in self.context[-6:])
        head = (f"{self.word:08x}  {text}", f"  after: {earlier}", f"  before: {before}")
        return "\n".join((*head, *(f"  {d}" for d in self.differences())))

    def vector(self) -> str:
        """A line for the file of vectors."""
        row = {"word": f"{self.word:08x}", "asm": objdump(self.word), "oracle": self.oracle, "before": self.before.hex(),
               "after": self.theirs.hex()}  # fmt: skip
        return json.dumps(row)


@dataclass
class Report:
    """What a comparison did and found."""

    seed: int
    oracle: str
    instructions: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    fewest: tuple[str, int] = ("", 0)
    """The instruction that was generated least often, and how often."""

    def text(self) -> str:
        lines = [f"seed {self.seed}, {self.oracle}: {self.instructions} instructions, {len(self.mismatches)} mismatches"]
        lines[0] += f", each instruction at least {self.fewest[1]} times ({self.fewest[0]})"
        return "\n\n".join([*lines, *(m.text() for m in self.mismatches[:10])])


def objdump(word: int) -> str:
    """GNU's disassembly of one word."""
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(word.to_bytes(4, "little"))
        file.flush()
        command = ["aarch64-linux-gnu-objdump", "-D", "-b", "binary", "-m", "aarch64", file.name]
        try:
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return "?"
    return " ".join(text.splitlines()[-1].split("\t")[2:])


def locate(block: Sequence[int], record: bytes, ours: Runner, theirs: Runner) -> Mismatch | None:
    """The first instruction of a block after which two runners differ; None if they agree after all."""

    def after(runner: Runner, length: int) -> bytes:
        words = [*block[:length], *[NOP] * (len(block) - length)]
        return bytes(comparable(runner.run(build([words], [record])))[:RECORD])

    low, high = 0, len(block)
    if after(ours, high) == after(theirs, high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if after(ours, middle) == after(theirs, middle):
            low = middle
        else:
            high = middle
    return Mismatch(block[low], after(theirs, low), after(ours, high), after(theirs, high), theirs.name, tuple(block[:low]))


def compare(count: int, seed: int, ours: Runner, oracle: Runner, limit: int = 10, only: str = "") -> Report:
    """Run about `count` random instructions on both; stops after `limit` mismatching blocks. `only` is as in `Generator`."""
    report = Report(seed, oracle.name)
    generator = Generator(Features().without(*oracle.lacks), oracle.wrong, only)
    rng = random.Random(seed)
    pattern = rng.randbytes(1 << 20)
    while report.instructions < count and len(report.mismatches) < limit:
        size = min(BATCH, -(-(count - report.instructions) // BLOCK))
        blocks = [generator.block(rng, BLOCK) for _ in range(size)]
        records = [random_record(rng, k, pattern) for k in range(size)]
        program = build(blocks, records)
        expected, got = comparable(oracle.run(program)), comparable(ours.run(program))
        if got != expected:
            _examine(report, blocks, records, (got, expected), (ours, oracle), limit)
        report.instructions += sum(len(b) for b in blocks)
    report.unreached = generator.missing()
    report.fewest = min(generator.counts.items(), key=lambda item: item[1])
    return report


def _examine(report: Report, blocks: Sequence[Sequence[int]], records: Sequence[bytes], data: tuple[bytearray, bytearray],
             runners: tuple[Runner, Runner], limit: int) -> None:  # fmt: skip
    for k, block in enumerate(blocks):
        at = slice(RECORD * k, RECORD * (k + 1))
        if data[0][at] != data[1][at] and len(report.mismatches) < limit:
            found = locate(block, _moved(records[k], k), *runners)
            if found is not None:
                report.mismatches.append(found)


def _moved(record: bytes, index: int) -> bytes:
    """A record as the first one of a program: its pointers moved with it."""
    moved = bytearray(record)
    for at in (*(8 * n for n in POINTERS[:-1]), 8 * 29, SP_AT):
        struct.pack_into("<Q", moved, at, struct.unpack_from("<Q", moved, at)[0] - RECORD * index)
    return bytes(moved)
