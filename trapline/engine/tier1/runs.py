"""Accesses of a block off the same register: one look at the TLB for all of them.

Structures, stack frames and unrolled loops are read and written at constant distances from a register. Such a run is looked up once, at its
first access: if all of it is on one page that may be accessed so, each access is a load or store at the register plus one number. If not
(the run crosses pages, a page is not in the TLB, or is not writable yet) each access is on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from trapline.arm64 import effects as fx
from trapline.arm64.record import SP_OFFSET, X_OFFSET
from trapline.bits import Bits
from trapline.bits.to_llvm import leaves
from trapline.engine.tier1.regions import Block, Place

WIDTH = 64
SPAN = 512
"""Bytes of a run at most: the longer, the more often it crosses pages."""
LARGEST = 32
"""Bytes of an access at most."""
BASES = frozenset((*range(X_OFFSET, X_OFFSET + 8 * 31, 8), SP_OFFSET))


@dataclass(eq=False, slots=True)
class Run:
    """Accesses between `low` and `high`, from the value of a register at some point."""

    low: int
    high: int
    kinds: set[bool]
    """Whether they are stores."""
    members: int = 1
    known: str = ""
    """The name of whether the TLB has its page, once that has been looked up."""
    distance: str = ""
    """The name of the distance from there to host memory."""

    @property
    def span(self) -> int:
        """How many bytes it covers."""
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Member:
    """An access of a run; `offset` is counted from the same point as the run's `low`."""

    run: Run
    offset: int
    first: bool

    @property
    def above(self) -> int:
        """Bytes from the run's start."""
        return self.offset - self.run.low


Root = tuple[object, ...]
"""A value that addresses are formed from: a register with which of its values it is, or an expression and the same of its
registers."""


def runs(block: Block, in_place: set[Place]) -> dict[tuple[Place, int], Member]:
    """The members of runs of a block, by instruction and number of the effect. `in_place` are the instructions that the runtime has no
    part in: translations last that long."""
    values: dict[int, tuple[Root, int]] = {}
    open_runs: dict[Root, Run] = {}
    found: dict[tuple[Place, int], Member] = {}
    since, writes = 0, 0  # how many instructions the runtime had a part in, and how many values registers have got
    for here in block.body:
        if here.place not in in_place:
            values, open_runs = {}, {}
            since += 1
            continue
        old = dict(values)

        def value(node: Bits, old: dict[int, tuple[Root, int]] = old, since: int = since) -> tuple[Root, int] | None:
            if not all(leaf.op == "const" or leaf.op == "state" and leaf.attr in BASES for leaf in leaves((node,))):
                return None
            inner, constant = linear(node)
            known = [old.get(leaf.attr, ((leaf.attr, 0, since), 0)) for leaf in leaves((inner,)) if leaf.op != "const"]
            if inner.op != "state":
                return (inner.key, *known), constant
            root, distance = known[0]
            return root, distance + constant

        for number, effect in enumerate(here.recording.effects):
            if isinstance(effect, fx.Load | fx.Store) and (at := value(effect.addr)) is not None and plain(effect):
                found[here.place, number] = _add(open_runs, *at, effect)
        for write in here.recording.writes:
            if write.offset in BASES:
                assert isinstance(write.offset, int)
                writes += 1
                new = value(write.value) if write.when is None else None
                values[write.offset] = new or ((write.offset, writes, since), 0)
    return {key: member for key, member in found.items() if member.run.members > 1}


def _add(open_runs: dict[Root, Run], root: Root, offset: int, effect: fx.Load | fx.Store) -> Member:
    end = offset + size_of(effect)
    store = isinstance(effect, fx.Store)
    run = open_runs.get(root)
    if run is not None and max(end, run.high) - min(offset, run.low) <= SPAN:
        run.low, run.high, run.members = min(offset, run.low), max(end, run.high), run.members + 1
        run.kinds.add(store)
        return Member(run, offset, first=False)
    open_runs[root] = run = Run(offset, end, {store})
    return Member(run, offset, first=True)


def size_of(effect: fx.Load | fx.Store) -> int:
    return (effect.width if isinstance(effect, fx.Load) else effect.value.width) // 8


def plain(effect: fx.Load | fx.Store) -> bool:
    access = effect.access
    return not (access.aligned or access.unprivileged) and size_of(effect) <= LARGEST


def linear(node: Bits) -> tuple[Bits, int]:
    """What a value is the sum of: an expression and a signed constant."""
    if node.width != WIDTH or node.op not in ("add", "sub") or node.args[1].op != "const":
        return node, 0
    inner, distance = linear(node.args[0])
    constant = node.args[1].attr
    signed = constant - (constant >> WIDTH - 1 << WIDTH)
    return inner, distance + (signed if node.op == "add" else -signed)
