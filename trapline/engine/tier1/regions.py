"""Regions: which instructions around a hot one are compiled together.

A region is what control can reach from its entry without leaving the pages at hand: the loop that the entry is in, or the code
that follows it. Calls are followed into what they call, so that a loop with calls in it stays one region.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from trapline.arm64 import effects as fx
from trapline.arm64.record import SP_OFFSET, V_OFFSET, X_OFFSET, Recorder
from trapline.engine.handler import KEEP_GOING
from trapline.engine.memory import MEMORY_EFFECTS
from trapline.engine.state import PAGE_INSNS

LOOP_LIMIT, TRACE_LIMIT = 128, 128
"""Instructions of a region at most: of one that closes a loop, and of straight code."""
EXPLORE_LIMIT = 320
"""Instructions that are looked at to find a loop."""
ENTRY_LIMIT = 12
"""Places where a region can be entered, at most."""
LANDING_LIMIT = 32
"""Places where one computed jump is expected to go, at most."""
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
    def comes_back(self) -> bool:
        """Whether what it gives control to gives it back to the next instruction, as far as one can tell."""
        return not any(isinstance(e, fx.System) and e.name in ENDING for e in self.recording.effects)

    @property
    def successors(self) -> list[Place]:
        """Where a branch goes; first of all where it is taken to."""
        branch = self.branch
        if branch is None:
            return []
        found = [self.target] if self.target is not None else []
        if branch.when is not None or self.is_call:
            found.append(self.next)
        return found

    @property
    def is_call(self) -> bool:
        return self.branch is not None and any(w.offset == LINK for w in self.recording.writes)

    @property
    def is_return(self) -> bool:
        branch = self.branch
        if branch is None or branch.delta is not None or branch.landing:
            return False
        return branch.target.op == "state" and branch.target.attr == LINK

    @property
    def is_jump(self) -> bool:
        """Whether it goes to a computed place, as a table of a `switch` says, and does not come back."""
        return self.branch is not None and self.branch.delta is None and not self.is_call and not self.is_return


def step(place: Place, distance: int) -> Place:
    """The place `distance` instructions further."""
    page, index = place
    index += distance
    return page + index // PAGE_INSNS, index % PAGE_INSNS


@dataclass(frozen=True, slots=True)
class End:
    """What straight-line code ends with, and where control goes."""

    follows: list[Place] = field(default_factory=list)
    resume: Place | None = None
    """Where control comes back to after a call, an exception, or an instruction that is left to the interpreter."""
    callee: Place | None = None


@dataclass(eq=False)
class Block:
    """Straight-line code."""

    start: Place
    body: list[Instruction] = field(default_factory=list)
    end: End = field(default_factory=End)
    stop: Place | None = None
    """The instruction after the last one, when that is one that regions leave to the interpreter."""

    @property
    def follows(self) -> list[Place]:
        """Where control goes on, inside the region or not."""
        return self.end.follows


Fetch = Callable[[Place], tuple[int, Recorder | None] | None]
"""The word at a place and its recording, None instead of the latter if it is left to the interpreter; None where nothing is known,
or where control never was."""


Met = Callable[[int], Iterable[int]]
"""Where the guest was met on a page: indices of instructions that were branched to."""


class Region:
    """Blocks by their start, the entry's first."""

    def __init__(self, entry: Place, fetch: Fetch, met: Met) -> None:
        self._fetch, self._met = fetch, met
        self.blocks: dict[Place, Block] = {}
        self._explore(entry)
        self._trim(entry)
        self.returns = tuple(b.end.resume for b in self.blocks.values() if b.end.callee in self.blocks and b.end.resume in self.blocks)
        """Where calls that are followed come back to."""
        self.entries = self._entries(entry)
        """Where it can be entered, all on one page; the first is what it was made for."""
        self.blocks = {place: self.blocks[place] for place in self._reached(self.entries, self.destinations)}
        self.loops = bool(self.back_edges())
        """Whether control can go round in it."""

    @property
    def instructions(self) -> Iterator[Instruction]:
        for block in self.blocks.values():
            yield from block.body

    @property
    def pages(self) -> list[int]:
        """The pages that the region is on, that of the entries first."""
        home = self.entries[0][0]
        return sorted({i.place[0] for i in self.instructions}, key=lambda p: (p != home, p))

    @property
    def size(self) -> int:
        return sum(len(b.body) for b in self.blocks.values())

    def destinations(self, block: Block) -> Collection[Place]:
        """Where control goes on from a block, inside the region or not; a call goes to what it calls."""
        last = block.body[-1]
        if last.is_return:
            return self.returns
        if last.is_call:
            return block.follows[:1] if last.target is not None else ()
        return block.follows

    def back_edges(self, entries: Collection[Place] = ()) -> set[tuple[Place, Place]]:
        """Edges, by last instruction and destination, of which every cycle in the region has one: those up a depth-first tree."""
        edges: set[tuple[Place, Place]] = set()
        above: set[Place] = set()
        done: set[Place] = set()
        work: list[tuple[Place, Iterator[Place]]] = []

        def enter(place: Place) -> None:
            above.add(place)
            work.append((place, iter([p for p in self.destinations(self.blocks[place]) if p in self.blocks])))

        for entry in entries or self.entries:
            if entry not in done:
                enter(entry)
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
    def _explore(self, entry: Place) -> None:
        """Breadth first from the entry, until the limit: the function at hand, and then what it calls."""
        lines: dict[Place, Instruction] = {}
        ends: dict[Place, End] = {}
        leaders = {entry: None}
        own, called = deque([entry]), deque[Place]()
        while (own or called) and len(lines) < EXPLORE_LIMIT:
            end = self._walk((own or called).popleft(), lines, ends)
            if end is None:
                continue
            for place in (*end.follows, end.resume):
                if place is not None and place not in leaders:
                    leaders[place] = None
                    (called if place == end.callee else own).append(place)
        for leader in leaders:
            if leader in lines:
                self.blocks[leader] = self._block(leader, lines, leaders, ends)

    def _walk(self, place: Place, lines: dict[Place, Instruction], ends: dict[Place, End]) -> End | None:
        """Take in straight-line code from a place; what ends it, if that is something new."""
        while place not in lines and place not in ends and len(lines) < EXPLORE_LIMIT:
            fetched = self._fetch(place)
            if fetched is None:
                return None
            word, recording = fetched
            if recording is None:
                return ends.setdefault(place, End([], step(place, 1)))
            here = lines[place] = Instruction(place, word, recording)
            if here.ends:
                return ends.setdefault(place, End([], here.next if here.comes_back else None))
            if here.branch is not None:
                callee = here.target if here.is_call else None
                follows = self._landings(place[0]) if here.is_jump else here.successors
                return ends.setdefault(place, End(follows, here.next if here.is_call else None, callee))
            place = here.next
        return None

    def _landings(self, page: int) -> list[Place]:
        """Where a computed jump may go that nothing else is known of: wherever control was met on its page."""
        return [(page, index) for index in sorted(self._met(page))][:LANDING_LIMIT]

    @staticmethod
    def _block(leader: Place, lines: dict[Place, Instruction], leaders: Collection[Place], ends: dict[Place, End]) -> Block:
        block = Block(leader)
        place = leader
        while place in lines:
            block.body.append(lines[place])
            if place in ends:
                block.end = ends[place]
                return block
            place = lines[place].next
            if place in leaders and place in lines:
                block.end = End([place])
                return block
        block.stop, block.end = place, ends.get(place, block.end)
        return block

    # -- choosing --------------------------------------------------------------------------------------------------------
    def _trim(self, entry: Place) -> None:
        """Keep the loops that the entry is in, the shortest first; without one, the nearest code."""
        rounds = self._rounds(entry)
        order = sorted(rounds, key=rounds.__getitem__) if rounds else list(self.blocks)
        limit = LOOP_LIMIT if rounds else TRACE_LIMIT
        kept: dict[Place, Block] = {}
        size = 0
        for place in order:
            block = self.blocks[place]
            if kept and size + len(block.body) > limit:
                continue
            kept[place] = block
            size += len(block.body)
        self.blocks = kept
        self.blocks = {place: kept[place] for place in self._reached([entry], self._flow)}

    def _rounds(self, entry: Place) -> dict[Place, int]:
        """How many instructions the shortest way from the entry by way of a block and back has; no blocks if the entry is in no loop.

        It is no longer for the other blocks of that way, so that a loop comes before what is around it.
        """
        after = {place: [p for p in self._flow(block) if p in self.blocks] for place, block in self.blocks.items()}
        before: dict[Place, list[Place]] = {place: [] for place in self.blocks}
        for place, successors in after.items():
            for successor in successors:
                before[successor].append(place)
        back = self._distances(entry, before)
        if not any(p in back for p in after.get(entry, ())):
            return {}
        there = self._distances(entry, after)
        return {p: there[p] + len(b.body) + back[p] for p, b in self.blocks.items() if p in there and p in back}

    def _distances(self, start: Place, ways: Mapping[Place, Iterable[Place]]) -> dict[Place, int]:
        """How many instructions there are between blocks and one."""
        found: dict[Place, int] = {}
        work = [(0, start)]
        while work:
            distance, place = heapq.heappop(work)
            if place in found or place not in ways:  # the latter for a start that is left to the interpreter
                continue
            found[place] = distance
            for following in ways[place]:
                heapq.heappush(work, (distance + len(self.blocks[following].body), following))
        return found

    def _reached(self, entries: Iterable[Place], flow: Callable[[Block], Iterable[Place]]) -> list[Place]:
        """The blocks that can be reached from some places."""
        reached = dict.fromkeys(place for place in entries if place in self.blocks)
        work = list(reached)
        for place in work:
            for successor in flow(self.blocks[place]):
                if successor in self.blocks and successor not in reached:
                    reached[successor] = None
                    work.append(successor)
        return work

    def _flow(self, block: Block) -> list[Place]:
        """Where control goes on, and where it comes back to; a return goes to wherever the region has calls."""
        if block.body[-1].is_return:
            return [b.end.resume for b in self.blocks.values() if b.body[-1].is_call and b.end.resume is not None]
        return [*block.follows, *([block.end.resume] if block.end.resume is not None else [])]

    def _entries(self, entry: Place) -> tuple[Place, ...]:
        """The entry; where control comes back to after it has left; the heads of loops, for it may leave within one; cases of switches."""
        resumes = [b.end.resume for b in self.blocks.values() if b.end.resume is not None and b.end.resume in self.blocks]
        if entry not in self.blocks:
            return ()  # an instruction that is left to the interpreter
        outside = [entry, *(place for place in resumes if place not in self.returns)]
        landings = [place for b in self.blocks.values() if b.body[-1].is_jump for place in b.follows if place in self.blocks]
        heads = [target for _, target in sorted(self.back_edges(outside))]
        return tuple(place for place in dict.fromkeys((*outside, *heads, *landings, *resumes)) if place[0] == entry[0])[:ENTRY_LIMIT]


REGISTERS = range(X_OFFSET, X_OFFSET + 8 * 31, 8)
VECTORS = range(V_OFFSET, V_OFFSET + 16 * 32, 16)
STACK = SP_OFFSET
