"""Where a region keeps the guest's registers between its blocks: in values, or in the vCPU's state, which is their home.

Values pay in loops that have host registers enough. Code that goes through many places once (interpreters, what calls and is called)
touches twenty registers, each of which would be loaded at every entry and put aside again. There each is loaded where it is first
needed, and written to its home at once: leaving the region costs nothing, and LLVM has a quarter of the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trapline.engine.tier1.loops import FEW, REGISTER, Lines, general_registers, innermost
from trapline.engine.tier1.regions import Place, Region


def at_home(region: Region) -> bool:
    """Whether a region keeps registers in the vCPU's state: what is no loop, and loops with calls of something else or computed jumps in
    them that have more registers than the host has for them; but not if there is a loop within that wants its registers in values."""
    if not region.loops:
        return True
    lasts = [(block.body[-1], block.end.callee) for block in region.blocks.values()]
    goes = any(last.is_jump or last.is_call and callee not in region.blocks for last, callee in lasts)
    return goes and len(general_registers(region)) > FEW and not innermost(region)


def needed(region: Region, pieces: Mapping[Place, Lines], known: Iterable[int]) -> dict[Place, set[int]]:
    """The registers that each block has to load when it starts; `known` are those that need not be loaded anywhere.

    A block to which control comes from one other has what that one had.
    """
    before: dict[Place, list[Place]] = {place: [] for place in region.blocks}
    for place, block in region.blocks.items():
        for following in set(region.destinations(block)) & region.blocks.keys():
            before[following].append(place)
    mentioned = {place: set(map(int, REGISTER.findall("\n".join(lines)))) - set(known) for place, lines in pieces.items()}
    found = {}
    for place in region.blocks:
        loads, at = set(mentioned[place]), place
        while at not in region.entries and len(before[at]) == 1:
            at = before[at][0]
            loads -= mentioned[at]
        found[place] = loads
    return found
