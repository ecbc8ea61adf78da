"""Regions: which instructions around a hot one are compiled together.

A region is what control can reach from its entry without leaving the pages at hand: the loop that the entry is in, or the code
that follows it. Calls are followed into what they call, so that a loop with calls in it stays one region.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from trapline.arm64 import effects as fx
from trapline.arm64.record import SP_OFFSET, V_OFFSET, X_OFFSET, Recorder
from trapline.engine.handler import KEEP_GOING
from trapline.engine.memory import MEMORY_EFFECTS
from trapline.engine.state import PAGE_INSNS

LOOP_LIMIT, TRACE_LIMIT = 128, 64
"""Instructions of a region at most: of one that closes a loop, and of straight code."""
EXPLORE_LIMIT = 320
"""Instructions that are looked at to find a loop."""
ENDING = frozenset({"eret", "eret_auth"})
"""System operations that continue elsewhere."""
LINK = X_OFFSET + 8 * 30

_EFFECTS = (*MEMORY_EFFECTS, fx.Branch, fx.System, fx.Query, fx.Raise)


def supported(recording: Recorder) -> bool:
    """Whether regions may contain an instruction; the others are the interpreter's."""
    if not all(isinstance(w.offset, int) for w in recording.writes):
        return False
    return all(isinstance(e, _EFFECTS) or isinstance(e, fx.Barrier) and e.kind in ("dmb", "dsb") for e in recording.effects)


Place = tuple[int, int]
"""A place in the code: page, counted from the entry's page (a distance in pages of virtual addresses), and index in the page."""


@dataclass(eq=False)
class Instruction:
    """One instruction of a region."""

    place: Place
    word: int
    recording: Recorder

    @property
    def branch(self) -> fx.Branch | None:
        return next((e for e in self.recording.effects if isinstance(e, fx.Branch)), None)

    @property
    def ends(self) -> bool:
        """Whether control never goes on behind it: it takes an exception, returns from one, or changes the address space."""
        recording = self.recording
        return bool(set(recording.after) - KEEP_GOING) or any(
            isinstance(e, fx.Raise) or isinstance(e, fx.System) and e.name in ENDING for e in recording.effects
        )

    @property
    def next(self) -> Place:
        return step(self.place, 1)

    @property
    def target(self) -> Place | None:
        """Where a direct branch goes."""
        branch = self.branch
        if branch is None or branch.delta is None:
            return None
        assert isinstance(branch.delta, int)
        return step(self.place, branch.delta >> 2)

    @property
    def is_call(self) -> bool:
        return self.branch is not None and any(w.offset == LINK for w in self.recording.writes)

    @property
    def is_return(self) -> bool:
        branch = self.branch
        if branch is None or branch.delta is not None or branch.landing:
            return False
        return branch.target.op == "state" and branch.target.attr == LINK


def step(place: Place, distance: int) -> Place:
    """The place `distance` instructions further."""
    page, index = place
    index += distance
    return page + index // PAGE_INSNS, index % PAGE_INSNS


@dataclass(eq=False)
class Block:
    """Straight-line code; `follows` are the places where it goes on, inside the region or not."""

    start: Place
    body: list[Instruction] = field(default_factory=list)
    follows: list[Place] = field(default_factory=list)
    stop: Place | None = None
    """The instruction after the last one, when that is one that regions leave to the interpreter."""


Fetch = Callable[[Place], tuple[int, Recorder] | None]
"""The word at a place and its recording; None where the place is unknown or its instruction is left to the interpreter."""


class Region:
    """Blocks by their start, the entry's first."""

    def __init__(self, entry: Place, fetch: Fetch) -> None:
        self.entry = entry
        self._fetch = fetch
        self.blocks: dict[Place, Block] = {}
        self.loops = False
        """Whether the entry is in a loop."""
        self._explore()
        self._trim()
        self.returns = tuple(
            last.next for b in self.blocks.values() if b.body and (last := b.body[-1]).is_call and last.next in self.blocks
        )

    @property
    def instructions(self) -> Iterator[Instruction]:
        for block in self.blocks.values():
            yield from block.body

    @property
    def pages(self) -> list[int]:
        """The pages that the region is on, the entry's first."""
        return sorted({i.place[0] for i in self.instructions}, key=lambda p: (p != self.entry[0], p))

    @property
    def size(self) -> int:
        return sum(len(b.body) for b in self.blocks.values())

    def destinations(self, block: Block) -> Iterable[Place]:
        """Where control goes on from a block, inside the region or not; a call goes to what it calls."""
        last = block.body[-1]
        if last.branch is not None and last.branch.delta is None:
            return self.returns if last.is_return else ()
        return block.follows[:1] if last.is_call else block.follows

    def back_edges(self) -> set[tuple[Place, Place]]:
        """Edges, by last instruction and destination, of which every cycle in the region has one: those up a depth-first tree."""
        edges: set[tuple[Place, Place]] = set()
        above: set[Place] = set()
        done: set[Place] = set()
        work: list[tuple[Place, Iterator[Place]]] = []

        def enter(place: Place) -> None:
            above.add(place)
            work.append((place, iter([p for p in self.destinations(self.blocks[place]) if p in self.blocks])))

        enter(self.entry)
        while work:
            place, rest = work[-1]
            following = next(rest, None)
            if following is None:
                work.pop()
                above.remove(place)
                done.add(place)
            elif following in above:
                edges.add((self.blocks[place].body[-1].place, following))
            elif following not in done:
                enter(following)
        return edges

    # -- finding blocks --------------------------------------------------------------------------------------------------
    def _explore(self) -> None:
        """Breadth first from the entry, until the limit."""
        lines: dict[Place, Instruction] = {}
        leaders = [self.entry]
        known = {self.entry}
        edges: dict[Place, list[Place]] = {}
        for leader in leaders:
            place = leader
            while place not in lines and len(lines) < EXPLORE_LIMIT:
                fetched = self._fetch(place)
                if fetched is None:
                    break
                here = lines[place] = Instruction(place, *fetched)
                if here.ends:
                    break
                if here.branch is not None:
                    edges[place] = self._successors(here)
                    for successor in edges[place]:
                        if successor not in known:
                            known.add(successor)
                            leaders.append(successor)
                    break
                place = here.next
        for leader in leaders:
            if leader in lines:
                self.blocks[leader] = self._block(leader, lines, known, edges)

    @staticmethod
    def _successors(here: Instruction) -> list[Place]:
        branch = here.branch
        assert branch is not None
        found = [here.target] if here.target is not None else []
        if branch.when is not None or here.is_call:
            found.append(here.next)
        return found

    @staticmethod
    def _block(leader: Place, lines: dict[Place, Instruction], known: set[Place], edges: dict[Place, list[Place]]) -> Block:
        block = Block(leader)
        place = leader
        while place in lines:
            here = lines[place]
            block.body.append(here)
            if place in edges:
                block.follows = edges[place]
                return block
            if here.ends:
                return block
            place = here.next
            if place in known:
                block.follows = [place]
                return block
        block.stop = place
        return block

    # -- choosing --------------------------------------------------------------------------------------------------------
    def _trim(self) -> None:
        """Keep the loop that the entry is in; without one, the nearest code."""
        loop = self._reaching()
        self.loops = bool(loop)
        limit = LOOP_LIMIT if loop else TRACE_LIMIT
        kept: dict[Place, Block] = {}
        size = 0
        for place, block in self.blocks.items():
            if loop and place not in loop:
                continue
            if kept and size + len(block.body) > limit:
                continue
            kept[place] = block
            size += len(block.body)
        self.blocks = kept

    def _reaching(self) -> set[Place]:
        """Blocks from which the entry can be reached again; empty if the entry is in no loop."""
        before: dict[Place, list[Place]] = {}
        for place, block in self.blocks.items():
            for successor in self._flow(block):
                before.setdefault(successor, []).append(place)
        reached: set[Place] = set()
        work = [self.entry]
        while work:
            for place in before.get(work.pop(), ()):
                if place not in reached:
                    reached.add(place)
                    work.append(place)
        return reached if self.entry in reached else set()

    def _flow(self, block: Block) -> list[Place]:
        """Where control goes on; a return goes to wherever the region has calls."""
        if block.body and block.body[-1].is_return:
            return [b.body[-1].next for b in self.blocks.values() if b.body and b.body[-1].is_call]
        return block.follows


REGISTERS = range(X_OFFSET, X_OFFSET + 8 * 31, 8)
VECTORS = range(V_OFFSET, V_OFFSET + 16 * 32, 16)
STACK = SP_OFFSET
