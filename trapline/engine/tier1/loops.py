"""Innermost loops of a region become functions of their own, so that only what they use competes for the host's registers.

A region has the registers of all its blocks in values, and more of them than the host has registers. LLVM weighs them by how often they
are used, yet keeps much of a small loop's state in memory where the loop stands among a hundred other instructions. As a function the
loop has nothing but itself. It is entered with the registers in the vCPU's state, leaves them there, and says by a number where control
goes on; everything that leaves the region stays in the region's own function.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trapline.arm64 import effects as fx
from trapline.bits.to_llvm import leaves
from trapline.engine.tier1.chases import NAMES, variables
from trapline.engine.tier1.flags import FLAGS
from trapline.engine.tier1.line import PROMOTED, in_place
from trapline.engine.tier1.regions import REGISTERS, Block, Place, Region

Lines = list[str]

LABEL = re.compile(r"^([\w.]+):")
GOES = re.compile(r"label %([\w.]+)")
REGISTER = re.compile(r"ptr %s(\d+)\b")
READS, WRITES = re.compile(r"= load \S.*, ptr %s(\d+)$"), re.compile(r"^store .*, ptr %s(\d+)$")
CHASES = re.compile(rf"ptr %(?:{'|'.join(NAMES)})(\d+)$")
WAITS = re.compile(r"ptr %(wait\d+)$")
GIVEN = re.compile(r"%((?:va|records)\w+)")
"""Values of the region's entry that its blocks refer to."""
EXITS = 2
"""Ways out of a loop at most: with more of them it is likely to be a part of a larger loop, and to be left again and again."""
SMALL = 36
"""Instructions of a loop that becomes a function at most: a larger one needs the host's registers many times over anyway."""
FEW = 9
"""Registers of the guest's that the host has enough of its own for, besides what a region needs itself."""
KEPT = ("i8", "i64", "i64")
"""What a loop remembers of its flags (`LateFlags`), 8 bytes apart."""


# -- which ---------------------------------------------------------------------------------------------------------------
def innermost(region: Region) -> dict[Place, set[Place]]:
    """The innermost loops of a region by their heads, apart from each other, where they need neither the runtime nor computed branches."""
    found: dict[Place, set[Place]] = {}
    for head, loop in sorted(_loops(region).items(), key=lambda item: len(item[1])):
        if not any(loop & other for other in found.values()):
            found[head] = loop
    return {head: loop for head, loop in found.items() if all(_suits(region.blocks[p]) for p in loop)}


def around(region: Region, inside: Iterable[set[Place]]) -> dict[Place, set[Place]]:
    """What goes round without coming into certain loops, by its head, where that needs neither the runtime nor computed branches."""
    left = region.blocks.keys() - set().union(*inside)
    after = {place: [p for p in region.destinations(region.blocks[place]) if p in left] for place in left}
    before: dict[Place, list[Place]] = {place: [] for place in left}
    for place, following in after.items():
        for target in following:
            before[target].append(place)
    found: dict[Place, set[Place]] = {}
    for head in sorted(p for p, sources in before.items() if any(region.blocks[s].body[-1].place >= p for s in sources)):
        loop = _reached(head, after) & _reached(head, before)
        if loop and not any(loop & other for other in found.values()):
            found[head] = loop
    return {head: loop for head, loop in found.items() if all(_suits(region.blocks[p]) for p in loop)}


def _reached(start: Place, ways: Mapping[Place, Iterable[Place]]) -> set[Place]:
    """Where the ways lead to."""
    found = set(ways[start])
    work = list(found)
    while work:
        new = set(ways[work.pop()]) - found
        found |= new
        work += new
    return found


def separate(region: Region, loops: Mapping[Place, set[Place]]) -> dict[Place, set[Place]]:
    """Those of the innermost loops that become functions, with loops around them that are no larger than a function may be, so that it is
    entered less often; none if the region is nothing else, or has registers enough."""
    if len(general_registers(region)) <= FEW:
        return {}
    fitting = {head: loop for head, loop in _loops(region).items() if _fits(region, loop) and ways_in(region, loop) <= {head, *loops}}
    found: dict[Place, set[Place]] = {}
    for inner in loops.values():
        around = {head: loop for head, loop in fitting.items() if inner <= loop}
        head = max(around, key=lambda head: len(around[head]), default=None)
        if head is not None and not any(around[head] & other for other in found.values()):
            found[head] = around[head]
    return found


def _fits(region: Region, loop: set[Place]) -> bool:
    """Whether a loop may be a function."""
    small = len(loop) < len(region.blocks) and _size(region, loop) <= SMALL
    return small and _exits(region, loop) <= EXITS and all(_suits(region.blocks[place]) for place in loop)


def ways_in(region: Region, loop: set[Place]) -> set[Place]:
    """Where control comes into a loop."""
    found = {p for place, block in region.blocks.items() if place not in loop for p in region.destinations(block)}
    return (found | set(region.entries)) & loop


def _loops(region: Region) -> dict[Place, set[Place]]:
    """All loops by their heads. A loop is what reaches a backward branch without passing through the branch's target, or else, as there are
    loops that are entered in the middle, an edge that cuts it."""
    cuts = region.back_edges
    before: dict[Place, set[Place]] = {}
    for place, block in region.blocks.items():
        for following in region.destinations(block):
            if following in region.blocks:
                before.setdefault(following, set()).add(place)
    loops: dict[Place, set[Place]] = {}
    for head, sources in before.items():
        latches = {source for source in sources if region.blocks[source].body[-1].place >= head}
        latches = latches or {source for source in sources if (region.blocks[source].body[-1].place, head) in cuts}
        loop = _reaching(head, latches, before)
        if any(head in before.get(place, ()) for place in loop):  # not if it is left for a call that the region has no part in
            loops[head] = loop
    return loops


def general_registers(region: Region) -> set[object]:
    """The general registers that a region uses."""
    writes = [w for i in region.instructions for w in i.recording.writes]
    accesses = [e for i in region.instructions for e in i.recording.effects if isinstance(e, fx.Load | fx.Store)]
    read = {leaf.attr for leaf in leaves([*(w.value for w in writes), *(e.addr for e in accesses)])}
    return (read | {w.offset for w in writes}) & set(REGISTERS)


def _size(region: Region, loop: set[Place]) -> int:
    return sum(len(region.blocks[place].body) for place in loop)


def _exits(region: Region, loop: set[Place]) -> int:
    """How many edges lead out of a loop."""
    return sum(place not in loop for inside in loop for place in region.destinations(region.blocks[inside]))


def _reaching(head: Place, latches: set[Place], before: Mapping[Place, set[Place]]) -> set[Place]:
    loop = {head} | latches
    work = list(latches - {head})
    while work:
        new = before.get(work.pop(), set()) - loop
        loop |= new
        work += new
    return loop


def _suits(block: Block) -> bool:
    """Whether a block needs neither the runtime nor a computed branch."""
    direct = all(i.branch is None or i.branch.delta is not None for i in block.body)
    stays = not any(i.ends or i.recording.after for i in block.body)
    return direct and stays and all(in_place(e) for i in block.body for e in i.recording.effects)


# -- flags ---------------------------------------------------------------------------------------------------------------
def live_flags(region: Region, lines: Mapping[Place, Lines]) -> dict[Place, set[int]]:
    """The flags that each block, or what follows it, reads as they were at its start."""
    used = {place: _used(lines[place]) for place in region.blocks}
    live = {place: set(use) for place, (use, _) in used.items()}
    changed = True
    while changed:
        changed = False
        for place, block in region.blocks.items():
            after = {flag for p in region.destinations(block) if p in live for flag in live[p]}
            new = live[place] | after - used[place][1]
            changed |= new != live[place]
            live[place] = new
    return live


def _used(lines: Lines) -> tuple[set[int], set[int]]:
    """The flags that lines read before they write them, and those that they write."""
    reads: set[int] = set()
    writes: set[int] = set()
    for line in lines:
        if found := READS.search(line):
            reads |= {int(found[1])} & set(FLAGS) - writes
        elif found := WRITES.search(line):
            writes |= {int(found[1])} & set(FLAGS)
    return reads, writes


# -- the function --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Loop:
    """One loop: the lines of its function, and those that stand for it in the region."""

    function: Lines
    call: Lines


def outline(
    name: str,
    lines: Mapping[Place, Lines],
    start: str,
    flags: tuple[set[int], set[int]],
    attributes: str,
) -> Loop:
    """Make a function of a loop's blocks. `start` is the label of its head; `flags` are those it gets and those that are wanted
    afterwards."""
    body = [line for piece in lines.values() for line in piece]
    written = {int(found[1]) for line in body if (found := WRITES.search(line))}
    sets_flags = not written.isdisjoint(FLAGS)
    touched = {int(number) for line in body for number in REGISTER.findall(line)}
    given_flags, wanted_flags = flags[0] & touched | flags[1] & written, flags[1] & written
    gets = sorted(touched - set(FLAGS) | given_flags)
    gives = sorted(written - set(FLAGS) | wanted_flags)
    labels = {found[1] for line in body if (found := LABEL.match(line))}
    exits = [*dict.fromkeys(label for line in body for label in GOES.findall(line) if label not in labels)]
    given = sorted({value for line in body for value in GIVEN.findall(line)})

    head = [f"%s{offset} = alloca {PROMOTED[offset]}, align 16" for offset in sorted(touched)]
    head += variables(sorted({int(found[1]) for line in body if (found := CHASES.search(line))}))
    head += waits({found[1] for line in body if (found := WAITS.search(line))})
    head += ["%exit = alloca i32", *_state(gets, "cpu", "s", "in")]
    if sets_flags:
        head += ["%flags_kind = alloca i8", "%flags_a = alloca i64", "%flags_b = alloca i64", *_flags("kept", load=True, prefix="ff")]
    tail = []
    for number, label in enumerate(exits):
        tail += [f"{label}:", f"store i32 {number}, ptr %exit", "br label %done"]
    tail += ["done:", *_state(gives, "s", "cpu", "out")]
    if sets_flags:
        tail += _flags("kept", load=False, prefix="ft")
    tail += ["%number = load i32, ptr %exit", "ret i32 %number"]
    parameters = ", ".join(["ptr %cpu", "ptr %tlb", "ptr %kept", *(f"i64 %{value}" for value in given)])
    define = f"define internal i32 @{name}({parameters}) noinline nounwind {attributes}{{"
    function = [define, *head, f"br label %{start}", *body, *tail, "}"]

    call = [f"{start}:", *_state(gets, "s", "cpu", f"{name}_in")]
    if sets_flags:
        call += _flags("kept", load=False, prefix=f"{name}_ft")
    call += [f"%{name}_number = call i32 @{name}({parameters})", *_state(gives, "cpu", "s", f"{name}_out")]
    if sets_flags:
        call += _flags("kept", load=True, prefix=f"{name}_ff")
    cases = " ".join(f"i32 {k}, label %{label}" for k, label in enumerate(exits[1:], 1))
    call.append(f"switch i32 %{name}_number, label %{exits[0]} [ {cases} ]")
    return Loop(function, call)


def waits(names: Iterable[str]) -> Lines:
    """Declare how many turns loops wait until their second copy is tried again."""
    return [line for name in sorted(names) for line in (f"%{name} = alloca i32", f"store i32 0, ptr %{name}")]


def _state(registers: Iterable[int], source: str, target: str, prefix: str) -> Lines:
    """Copy registers between the vCPU's state (`cpu`) and a function's own variables (`s`)."""
    lines = []
    for offset in registers:
        kind, value, field = PROMOTED[offset], f"%{prefix}{offset}", f"%{prefix}{offset}_at"
        lines.append(f"{field} = getelementptr i8, ptr %cpu, i64 {offset}")
        places = {"cpu": field, "s": f"%s{offset}"}
        lines += [f"{value} = load {kind}, ptr {places[source]}", f"store {kind} {value}, ptr {places[target]}"]
    return lines


def _flags(place: str, load: bool, prefix: str) -> Lines:
    """Copy what is remembered of flags from or to memory at `place`."""
    lines = []
    for k, (kind, own) in enumerate(zip(KEPT, ("%flags_kind", "%flags_a", "%flags_b"), strict=True)):
        value, at = f"%{prefix}{k}", f"%{prefix}{k}_at"
        lines.append(f"{at} = getelementptr i8, ptr %{place}, i64 {8 * k}")
        lines += [f"{value} = load {kind}, ptr {at if load else own}", f"store {kind} {value}, ptr {own if load else at}"]
    return lines
