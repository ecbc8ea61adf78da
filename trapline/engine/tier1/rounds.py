"""How far it is round the loops that a piece of code is in, calls included.

A call is taken as a step to where it comes back to, as long as the shortest way through what it calls; so a function that is called from
many places does not make one loop of all of them. What calls itself, though, is a loop.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapline.engine.tier1.regions import Block, Place

Ways = dict["Place", list["Place"]]
Distances = dict["Place", int]


class Rounds:
    """The ways through blocks."""

    def __init__(self, blocks: Mapping[Place, Block]) -> None:
        self._blocks = blocks
        self._lengths = {place: len(block.body) for place, block in blocks.items()}
        self._after = {place: self._within(block) for place, block in blocks.items()}
        """Where control goes on from each block in the same function."""
        calls = {place: callee for place, b in blocks.items() if (callee := b.end.callee) in blocks and callee is not None}
        self._bodies = {callee: self._body(callee) for callee in calls.values()}
        """What functions consist of."""
        recursive = {place for place, callee in calls.items() if place in self._bodies[callee]}
        self._calls = {place: callee for place, callee in calls.items() if place not in recursive}
        for place in recursive:
            self._enter(place, calls[place])
        self._add_calls()

    def own(self, entry: Place) -> set[Place]:
        """The blocks of the function that an entry is in, behind it."""
        return self._body(entry) if entry in self._blocks else set()

    def called(self, entry: Place) -> Iterator[set[Place]]:
        """The functions that are called from the one that an entry is in, directly or not, each with all that it calls."""
        own = self.own(entry)
        for body in self._bodies.values():
            if not body & own:
                yield self._whole(body) - own

    def _whole(self, body: set[Place]) -> set[Place]:
        whole = set(body)
        work = list(body)
        for place in work:
            new = self._bodies[self._calls[place]] - whole if place in self._calls else set()
            whole |= new
            work += new
        return whole

    def of(self, entry: Place) -> Distances:
        """How many instructions the shortest way from the entry by way of each block and back has; nothing if the entry is in no loop.

        Blocks count three times on their own way: steps of a loop come before long ways aside that lead around it.
        """
        back = self._distances([entry], _reversed(self._after))
        if not any(p in back for p in self._after.get(entry, ())):
            return {}
        there = self._distances([entry], self._after)
        rounds = {p: there[p] + self._lengths[p] + back[p] for p in there if p in back}
        work = [place for place in rounds if place in self._calls]
        for place in work:
            new = self._called(rounds[place], self._calls[place])
            work += [p for p, distance in new.items() if p in self._calls and distance < rounds.get(p, distance + 1)]
            rounds |= {p: distance for p, distance in new.items() if distance < rounds.get(p, distance + 1)}
        return rounds

    # -- calls -----------------------------------------------------------------------------------------------------------
    def _within(self, block: Block) -> list[Place]:
        """Where control goes on, and where it comes back to."""
        found = [*(p for p in block.follows if p != block.end.callee), block.end.resume]
        return [p for p in found if p in self._blocks and p is not None]

    def _body(self, callee: Place) -> set[Place]:
        found = {callee}
        work = [callee]
        while work:
            new = set(self._after[work.pop()]) - found
            found |= new
            work += new
        return found

    def _returns(self, callee: Place) -> list[Place]:
        return [place for place in self._bodies[callee] if self._blocks[place].body[-1].is_return]

    def _enter(self, place: Place, callee: Place) -> None:
        """A function calls itself: control goes to its start, and from its end to behind the call."""
        self._after[place].append(callee)
        resume = self._blocks[place].end.resume
        if resume in self._blocks and resume is not None:
            for end in self._returns(callee):
                self._after[end].append(resume)

    def _add_calls(self) -> None:
        """Make calls as long as what they call, those that it makes included."""
        own = dict(self._lengths)
        for _ in self._calls:
            lengths = own | {place: own[place] + self._through(callee) for place, callee in self._calls.items()}
            if lengths == self._lengths:
                return
            self._lengths = lengths

    def _through(self, callee: Place) -> int:
        """The shortest way through a function."""
        there = self._distances([callee], self._after)
        return min((there[end] for end in self._returns(callee) if end in there), default=0)

    def _called(self, distance: int, callee: Place) -> Distances:
        """The same as `of` for what is called on a way of so many instructions."""
        body = self._bodies[callee]
        inside = {place: [p for p in self._after[place] if p in body] for place in body}
        back = self._distances(self._returns(callee), _reversed(inside))
        there = self._distances([callee], inside)
        rest = distance - self._through(callee)
        return {p: rest + there[p] + self._lengths[p] + back[p] for p in there if p in back}

    # -- distances -------------------------------------------------------------------------------------------------------
    def _distances(self, starts: Iterable[Place], ways: Mapping[Place, Iterable[Place]]) -> Distances:
        """How many instructions there are from each block to the nearest of some, those of both included."""
        found: Distances = {}
        work = [(self._lengths[place], place) for place in starts if place in ways]  # one may be left to the interpreter
        heapq.heapify(work)
        while work:
            distance, place = heapq.heappop(work)
            if place in found:
                continue
            found[place] = distance
            for following in ways[place]:
                heapq.heappush(work, (distance + self._lengths[following], following))
        return found


def _reversed(after: Mapping[Place, Iterable[Place]]) -> Ways:
    before: Ways = {place: [] for place in after}
    for place, successors in after.items():
        for successor in successors:
            before[successor].append(place)
    return before
