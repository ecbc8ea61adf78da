"""Accesses off pointers that a loop has just loaded: lists, trees. Each waits for the one before it, and its host address for the TLB.

Such a loop remembers for each register the page of its last access and the distance to host memory. Where the next one is on the same page
the host, which foresees that, goes on without waiting. Everything else looks into the TLB: its address is known early, and remembering
would cost two values of the loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trapline.arm64 import effects as fx
from trapline.bits import Bits
from trapline.engine.state import TLB_INVALID
from trapline.engine.tier1.regions import Block, Place
from trapline.engine.tier1.runs import BASES, WIDTH, linear, plain

NO_PAGE = TLB_INVALID
"""What no page address with the low bits of a misaligned access equals."""
NAMES = ("page", "distance")
"""Of the variables of a chase: where the page begins, and how far it is to host memory."""


@dataclass(frozen=True, slots=True)
class Chase:
    """What is remembered of accesses off one register: the number of its variables."""

    number: int

    @property
    def page(self) -> str:
        return f"%page{self.number}"

    @property
    def distance(self) -> str:
        return f"%distance{self.number}"


def variables(numbers: Iterable[int]) -> list[str]:
    """Lines that declare the variables of chases."""
    return [f"%{name}{number} = alloca i64" for number in numbers for name in NAMES] + forget(numbers)


def forget(numbers: Iterable[int]) -> list[str]:
    """Lines after which nothing is remembered."""
    return [f"store i64 {value}, ptr %{name}{number}" for number in numbers for name, value in zip(NAMES, (NO_PAGE, 0), strict=True)]


def chases(blocks: list[Block], first: int) -> dict[tuple[Place, int], Chase]:
    """The accesses of a loop that are off pointers it loads, by instruction and number of the effect; numbers count from `first`."""
    pointers = _pointers(blocks)
    numbers: dict[tuple[int, bool], Chase] = {}
    found = {}
    for block in blocks:
        for here in block.body:
            for number, effect in enumerate(here.recording.effects):
                if isinstance(effect, fx.Load | fx.Store) and plain(effect) and (base := _base(effect.addr)) in pointers:
                    assert base is not None
                    chase = numbers.setdefault((base, isinstance(effect, fx.Store)), Chase(first + len(numbers)))
                    found[here.place, number] = chase
    return found


def _pointers(blocks: list[Block]) -> set[int]:
    """Registers that the blocks load, and those that they copy such values to."""
    writes = [w for block in blocks for here in block.body for w in here.recording.writes if w.offset in BASES and w.value.width == WIDTH]
    found = {w.offset for w in writes if _loaded(w.value)}
    while new := {w.offset for w in writes if _base(w.value) in found} - found:
        found |= new
    return {offset for offset in found if isinstance(offset, int)}


def _loaded(value: Bits) -> bool:
    """Whether a value is all of what was loaded, or half of a pair."""
    return value.op == "result" or value.op == "slice" and value.args[0].op == "result" and value.args[0].width == 2 * WIDTH


def _base(value: Bits) -> int | None:
    """The register that a value is a constant away from."""
    inner, _ = linear(value)
    return inner.attr if inner.op == "state" and inner.attr in BASES else None
