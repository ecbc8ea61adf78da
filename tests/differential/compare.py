"""Running random programs on several emulators, and finding the instruction that one of them does otherwise."""

from __future__ import annotations

import itertools
import json
import random
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.differential.generate import Block, Generator, Key
from tests.differential.program import NOP, RECORD, SP_AT, WINDOW, Program, States, build, describe
from tests.differential.templates import POINTERS, Template
from trapline.arm64.features import Features

BLOCK, STATES = 24, 8
"""Instructions of a block, and how many different states it runs with: making blocks and translating them is what costs."""
BATCH = 6000
"""States of one program at most."""
VECTORS = Path(__file__).parents[1] / "vectors" / "differential.jsonl"


_REGISTER = re.compile(r"\b([wxbhsdqv])(\d+)")


class Runner(Protocol):
    name: str
    wrong: Mapping[str, Callable[[dict[str, int]], bool]]
    """Instructions that the runner is known to get wrong: by name, a test of their shape."""
    lacks: Sequence[str]
    """Features that the runner does not have."""
    groups: Mapping[str, str]
    """Groups of instructions that cannot be compared with it, and why."""
    compiled: Container[int] | None
    """Addresses of the last program's instructions that are of interest; None if all are."""

    def run(self, program: Program) -> bytes: ...

    def compiles(self, t: Template) -> bool:
        """Whether instructions of this shape can be `compiled`."""
        ...


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

    oracle: str
    seed: int
    """The first pass that was not run."""
    instructions: int = 0
    sets: Counter[Key] = field(default_factory=Counter)
    """How many operand sets each shape was executed with."""
    mismatches: list[Mismatch] = field(default_factory=list)

    def instruction_sets(self) -> Counter[str]:
        """How many operand sets each instruction was executed with."""
        total: Counter[str] = Counter()
        for (name, _), count in self.sets.items():
            total[name] += count
        return total

    def text(self) -> str:
        head = f"{self.oracle}, seeds below {self.seed}: {self.instructions} instructions, {len(self.mismatches)} mismatches"
        return "\n\n".join([head, *(m.text() for m in self.mismatches[:10])])


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
        return runner.run(build([words], [record]))[:RECORD]

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


class Comparison:
    """Random programs on two runners; passes are named by their seeds, and each can be repeated alone."""

    def __init__(self, ours: Runner, oracle: Runner, *, only: str = "", states: int = STATES, limit: int = 10) -> None:
        """`only` is as in `Generator`; the comparison is over after `limit` mismatching blocks."""
        self.ours, self.oracle, self.states, self.limit = ours, oracle, states, limit
        self.generator = Generator(Features().without(*oracle.lacks), oracle.wrong, only, oracle.groups)

    def one_pass(self, report: Report, count: int | None = None) -> None:
        """One pass over all shapes, by the seed `report.seed`; only about `count` instructions of it, if that is said."""
        rng = random.Random(report.seed)
        states = States(rng)
        blocks = self.generator.blocks(rng, BLOCK)
        size, left = BATCH // self.states, None if count is None else -(-count // (BLOCK * self.states))
        while len(report.mismatches) < self.limit and (left is None or left > 0):
            batch = list(itertools.islice(blocks, size if left is None else min(left, size)))
            if not batch:
                break
            self._batch(batch, states, report)
            left = None if left is None else left - len(batch)
        report.seed += 1

    def _batch(self, blocks: Sequence[Block], states: States, report: Report) -> None:
        words = [b.words for b in blocks]
        records = [states.record(k) for k in range(self.states * len(words))]
        program = build(words, records, self.states)
        expected, got = self.oracle.run(program), self.ours.run(program)
        if got != expected:
            self._examine(words, records, got, expected, report)
        report.instructions += self.states * sum(len(w) for w in words)
        compiled = self.ours.compiled
        for k, block in enumerate(blocks):
            for at, key in block.certain:
                if compiled is None or program.starts[k] + 4 * at in compiled:
                    report.sets[key] += self.states

    def _examine(self, blocks: Sequence[Sequence[int]], records: Sequence[bytes], got: bytes, expected: bytes, report: Report) -> None:
        for k, record in enumerate(records):
            at = slice(RECORD * k, RECORD * (k + 1))
            if got[at] != expected[at] and len(report.mismatches) < self.limit:
                found = locate(blocks[k // self.states], _moved(record, k), self.ours, self.oracle)
                if found is not None:
                    report.mismatches.append(found)


def compare(count: int, seed: int, ours: Runner, oracle: Runner, only: str = "") -> Report:
    """Run about `count` random instructions on both."""
    report, comparison = Report(oracle.name, seed), Comparison(ours, oracle, only=only)
    while report.instructions < count and len(report.mismatches) < comparison.limit:
        comparison.one_pass(report, count - report.instructions)
    return report


def _moved(record: bytes, index: int) -> bytes:
    """A record as the first one of a program: its pointers moved with it."""
    moved = bytearray(record)
    for at in (*(8 * n for n in POINTERS[:-1]), 8 * 29, SP_AT):
        struct.pack_into("<Q", moved, at, struct.unpack_from("<Q", moved, at)[0] - RECORD * index)
    return bytes(moved)
