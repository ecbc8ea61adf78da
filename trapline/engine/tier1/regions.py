"""Regions: which instructions around a hot one are compiled together.

A region is what control can reach from its entry without leaving the pages at hand: the loop that the entry is in, or the code
that follows it. Calls are followed into what they call, so that a loop with calls in it stays one region.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from trapline.arm64 import effects as fx
from trapline.arm64.record import SP_OFFSET, V_OFFSET, X_OFFSET, Recorder
from trapline.engine.handler import KEEP_GOING
from trapline.engine.memory import MEMORY_EFFECTS
from trapline.engine.state import PAGE_INSNS
from trapline.engine.tier1.rounds import Rounds

LOOP_LIMIT, TRACE_LIMIT = 128, 128
"""Instructions of a region at most: of one that closes a loop, and of straight code."""
EXPLORE_LIMIT = 320
"""Instructions that are looked at to find a loop."""
CALL_DISTANCE = 64
"""How many instructions further away than the next one a called function is when the nearest are looked at first."""
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

    def __init__(self, entry: Place, fetch: Fetch, met: Met, exact: bool) -> None:
        """`exact`: it is entered at the entry and, if that is in the middle of a loop, leads to the next head; otherwise it is the loop."""
        self._fetch, self._met = fetch, met
        self.blocks: dict[Place, Block] = {}
        self._explore(entry)
        if not exact:
            entry = self._join(entry)
        self._trim(entry)
        self._find_ways()
        head = self._head(entry)
        if exact and entry not in (head, *self._outside):
            self.blocks = {place: block for place, block in self.blocks.items() if place not in self._heads}  # the loop has its own region
            self.blocks = {place: self.blocks[place] for place in self._reached([entry], self._flow)}
            self._find_ways()
        self.entries = self._entries(entry if exact else head)
        """Where it can be entered, all on one page."""
        self.blocks = {place: self.blocks[place] for place in self._reached(self.entries, self.destinations)}
        self.back_edges = self._back_edges(self.entries)
        """Edges, by last instruction and destination, of which every cycle in the region has one."""
        self.loops = bool(self.back_edges)
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

    def _back_edges(self, entries: Collection[Place]) -> set[tuple[Place, Place]]:
        """Edges up a depth-first tree: of the trees that begin at an entry or at the head of a loop, the one that has the fewest.

        Each goes on with the other entries and heads, of which every cycle has one, for some code is not reached from the entries.
        """
        after = {place: [p for p in self.destinations(block) if p in self.blocks] for place, block in self.blocks.items()}
        heads = sorted({p for place, following in after.items() for p in following if p <= self.blocks[place].body[-1].place})
        found = min((_upwards(after, (*first, *entries, *heads)) for first in ((), *((head,) for head in heads))), key=_edges_and_targets)
        return {(self.blocks[place].body[-1].place, target) for place, target in found}

    # -- finding blocks --------------------------------------------------------------------------------------------------
    def _explore(self, entry: Place) -> None:
        """The nearest first, until the limit; what is called is so much further away that small functions come before far code."""
        lines: dict[Place, Instruction] = {}
        ends: dict[Place, End] = {}
        leaders = {entry: None}
        work = [(0, entry)]
        while work and len(lines) < EXPLORE_LIMIT:
            distance, leader = heapq.heappop(work)
            known = len(lines)
            end = self._walk(leader, lines, ends)
            if end is None:
                continue
            distance += len(lines) - known
            for place in (*end.follows, end.resume):
                if place is not None and place not in leaders:
                    leaders[place] = None
                    heapq.heappush(work, (distance + (CALL_DISTANCE if place == end.callee else 0), place))
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
                if callee is not None and self._fetch(callee) is None:  # nothing is behind a call that never was
                    return ends.setdefault(place, End([callee], callee=callee))
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

    def _join(self, entry: Place) -> Place:
        """Put an entry's block to the end of the one before it, if that is the only one control comes from; where that begins."""
        before = [block for block in self.blocks.values() if entry in (*block.follows, block.end.resume)]
        if entry not in self.blocks or len(before) != 1 or before[0].body[-1].branch is not None or before[0].end.resume is not None:
            return entry
        (first,), last = before, self.blocks[entry]
        if first.start[0] != entry[0] or first is last:
            return entry
        del self.blocks[entry]
        first.body, first.end, first.stop = first.body + last.body, last.end, last.stop
        return first.start

    # -- choosing --------------------------------------------------------------------------------------------------------
    def _trim(self, entry: Place) -> None:
        """Keep the loops that the entry is in, the shortest first; without one, the nearest code.

        A function that is called is kept with all that it calls or not at all: control would come and go in the middle of it.
        """
        ways = Rounds(self.blocks)
        rounds, own = ways.of(entry), ways.own(entry)
        order = sorted(rounds, key=rounds.__getitem__) if rounds else sorted(self.blocks, key=lambda place: place not in own)
        limit = LOOP_LIMIT if rounds else TRACE_LIMIT
        called: dict[Place, set[Place]] = {}
        for function in sorted(ways.called(entry), key=len):
            called = dict.fromkeys(function, function) | called
        kept: dict[Place, Block] = {}
        size = 0
        for place in order:
            new = {p: self.blocks[p] for p in called.get(place, (place,)) if p not in kept}
            length = sum(len(block.body) for block in new.values())
            if not kept or size + length <= limit:
                kept |= new
                size += length
        self.blocks = kept
        self.blocks = {place: kept[place] for place in self._reached([entry], self._flow)}

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

    def _find_ways(self) -> None:
        """Where control comes back to, and where it comes round."""
        resumes = [(b.end.resume, b.end.callee in self.blocks) for b in self.blocks.values()]
        self._resumes = [place for place, _ in resumes if place is not None and place in self.blocks]
        self.returns = tuple(place for place, inside in resumes if inside and place in self.blocks)
        """Where calls that are followed come back to."""
        self._outside = [place for place in self._resumes if place not in self.returns]
        self._heads = sorted({target for _, target in self._back_edges(self._outside)})
        """Heads of loops, the same wherever a loop was met."""

    def _entries(self, first: Place) -> tuple[Place, ...]:
        """The first; where control comes back to after it has left; the heads of loops, for it may leave within one; cases of switches.

        In place of an entry in the middle of a loop there is the head that control comes to next. A loop with two ways in is none to LLVM,
        which takes nothing out of it then, and keeps the wrong things in registers.
        """
        if first not in self.blocks:
            return ()  # an instruction that is left to the interpreter
        landings = [place for b in self.blocks.values() if b.body[-1].is_jump for place in b.follows if place in self.blocks]
        places = dict.fromkeys((first, *self._outside, *self._heads, *landings, *self._resumes))
        found = tuple(place for place in places if place[0] == first[0])[:ENTRY_LIMIT]
        return tuple(sorted(found)) if first in self._heads else found

    def _head(self, entry: Place) -> Place:
        """The next head of a loop that an entry is in; the entry if there is none on its page."""
        ahead = (place for place in self._reached([entry], self.destinations) if place in self._heads and place[0] == entry[0])
        return next((head for head in ahead if entry in self._reached([head], self.destinations)), entry)


def _edges_and_targets(edges: set[tuple[Place, Place]]) -> tuple[int, int]:
    """How many edges, and how many places they go to."""
    return len(edges), len({target for _, target in edges})


def _upwards(after: Mapping[Place, Iterable[Place]], starts: Iterable[Place]) -> set[tuple[Place, Place]]:
    """Edges up the trees that a search depth first from some places makes."""
    edges: set[tuple[Place, Place]] = set()
    above: set[Place] = set()
    done: set[Place] = set()
    work: list[tuple[Place, Iterator[Place]]] = []
    for start in starts:
        if start not in done:
            above.add(start)
            work.append((start, iter(after[start])))
        while work:
            place, rest = work[-1]
            following = next(rest, None)
            if following is None:
                work.pop()
                above.remove(place)
                done.add(place)
            elif following in above:
                edges.add((place, following))
            elif following not in done:
                above.add(following)
                work.append((following, iter(after[following])))
    return edges


REGISTERS = range(X_OFFSET, X_OFFSET + 8 * 31, 8)
VECTORS = range(V_OFFSET, V_OFFSET + 16 * 32, 16)
STACK = SP_OFFSET
