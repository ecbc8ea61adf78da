"""The walker, which defines instructions, and the compiled handlers agree on random words and states.

`TRAPLINE_WALKER_CASES=N` runs N cases of every shape (the default samples shapes); `TRAPLINE_SEED=S` chooses others.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest

from tests.differential.pair import Case, Pair, random_word
from trapline.arm64.insn import Insn

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))
PER_SHAPE = int(os.environ.get("TRAPLINE_WALKER_CASES", "0"))
DEFAULT_SECONDS, LEAST_SECONDS, DEFAULT_SHAPES = 30, 12, 3
"""The default test: how long it takes with compiling, how long it compares at least, how many shapes of an instruction it takes."""


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


LAST_TRIES = 30
"""Further tries of instructions of which no case could be run."""
RETURNS = ("eret", "exception_return_authenticated")


def is_comparable(insn: Insn) -> bool:
    """Whether a case can be compared: not what the run itself or the clock changes, nor exception returns."""
    if insn.name in RETURNS:
        return False
    return not insn.name.startswith(("msr_", "mrs_", "sys_")) or insn.name.startswith(("mrs_ID", "sys_dc_zva", "msr_NZCV", "mrs_NZCV"))


def shapes_of(pair: Pair, rng: random.Random) -> list[tuple[Insn, int]]:
    features = pair.machine.engine.features
    found = []
    for insn in pair.machine.engine.code.compiler.space.insns:
        if is_comparable(insn) and (insn.feature is None or insn.feature in features):
            shapes = [shape for shape in range(1 << insn.shape_bits) if insn.allows(shape)]
            if not PER_SHAPE:
                shapes = rng.sample(shapes, min(DEFAULT_SHAPES, len(shapes)))
            found += [(insn, shape) for shape in shapes]
    rng.shuffle(found)
    return found


def is_decoded_as(pair: Pair, word: int, insn: Insn) -> bool:
    """Whether `word` is this instruction, and not a more specific one."""
    found = pair.machine.engine.code.compiler.space.resolve(pair.machine.engine.entry.decode(word, 0))
    return found is not None and found.insn is insn


def compile_all(pair: Pair, shapes: list[tuple[Insn, int]]) -> None:
    table = pair.machine.engine.code.shapes
    numbers = sorted({2 * (pair.machine.engine.code.compiler.space.base(i) + s) for i, s in shapes})
    for k in range(0, len(numbers), 200):
        table.compile(numbers[k : k + 200])


class Comparison:
    """Cases run so far, and what differed."""

    def __init__(self, pair: Pair, rng: random.Random) -> None:
        self.pair, self.rng = pair, rng
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self, insn: Insn, shape: int) -> None:
        word = random_word(insn, shape, self.rng)
        if not is_decoded_as(self.pair, word, insn):
            return
        case = Case(insn, word, 0 if self.rng.randrange(4) == 0 else 1, self.rng.getrandbits(32))
        differences = self.pair.run(case)
        if differences is None:
            self.refused[insn.name] += 1
            return
        self.done[insn.name] += 1
        if differences:
            self.failures.append(f"{case}\n    " + "\n    ".join(differences[:8]))


def test_agreement(pair: Pair) -> None:
    start = time.monotonic()
    rng = random.Random(SEED)
    shapes = shapes_of(pair, rng)
    compile_all(pair, shapes)
    comparison = Comparison(pair, rng)
    deadline = max(start + DEFAULT_SECONDS, time.monotonic() + LEAST_SECONDS) if not PER_SHAPE else float("inf")
    for _ in range(PER_SHAPE or 1000):
        for insn, shape in shapes:
            if time.monotonic() < deadline:
                comparison.run(insn, shape)
    for _ in range(LAST_TRIES):
        for insn, shape in shapes:
            if not comparison.done[insn.name]:
                comparison.run(insn, shape)
    done, failures = comparison.done, comparison.failures
    print(f"seed {SEED}: {sum(done.values())} cases of {len(done)} instructions, {sum(comparison.refused.values())} not runnable")
    print("compared only in that both leave for a system operation:", ", ".join(sorted(pair.beyond)))
    never = sorted({i.name for i, _ in shapes} - {name for name in done if done[name]})
    assert not failures, f"{len(failures)} differences (seed {SEED}):\n" + "\n".join(failures[:25])
    assert not never, f"never compared: {never}"
