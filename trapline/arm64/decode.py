"""Decoding: a tree of bit tests over the declared patterns.

The same tree serves the Python decoder here and the compiled predecoder of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

from trapline.arm64.insn import Insn, InstructionSet


@dataclass(frozen=True, slots=True)
class Leaf:
    """The candidates left after all useful tests, most specific first."""

    candidates: tuple[Insn, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """A test of the word's bits under `mask`; absent values are unallocated."""

    mask: int
    cases: dict[int, Node]


Node = Leaf | Switch


def build_tree(insns: Iterable[Insn], tested: int = 0) -> Node:
    """Arrange patterns into a tree of tests on bits that all remaining patterns fix, else on the best single bit."""
    insns = tuple(insns)
    common = reduce(lambda m, i: m & i.pattern.mask, insns, 0xFFFF_FFFF) & ~tested
    if len(insns) == 1:
        return Leaf(insns)
    if common:
        groups: dict[int, list[Insn]] = {}
        for i in insns:
            groups.setdefault(i.pattern.value & common, []).append(i)
        return Switch(common, {value: build_tree(group, tested | common) for value, group in groups.items()})
    counts = {bit: sum(i.pattern.mask >> bit & 1 for i in insns) for bit in range(32) if not tested >> bit & 1}
    bit = max(counts, key=lambda b: counts[b], default=-1)
    if bit < 0 or counts[bit] == 0:
        return Leaf(insns)
    mask = 1 << bit
    sides = {
        side: [i for i in insns if not i.pattern.mask & mask or i.pattern.value & mask == side] for side in (0, mask)
    }
    return Switch(mask, {side: build_tree(group, tested | mask) for side, group in sides.items() if group})


class Decoder:
    """Decodes words of one instruction set."""

    def __init__(self, isa: InstructionSet) -> None:
        self.tree = build_tree(isa.candidates())

    def decode(self, word: int) -> Insn | None:
        """The instruction that `word` is, or None if it is unallocated here."""
        node = self.tree
        while isinstance(node, Switch):
            found = node.cases.get(word & node.mask)
            if found is None:
                return None
            node = found
        return next((i for i in node.candidates if i.matches(word)), None)
