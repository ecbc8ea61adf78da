"""Loops that go through memory in equal steps: many turns after one look at the TLB.

A turn adds numbers to the registers that addresses are sums of, or registers that stay as they are, so a division tells for how many turns
all accesses stay on their pages. So many turns are run by a second copy of the loop, which neither looks at the TLB nor asks for work. Then
work is asked for, and the next pages are looked up; where they are not in the TLB, or an access is going to cross pages, the first copy
runs a turn.

A loop may have another inside, if it can go round without that one: the copy is left for it. Where that happens it is not tried again at
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapline.arm64 import effects as fx
from trapline.bits import Bits
from trapline.engine.state import TlbEntry
from trapline.engine.tier1.regions import Instruction, Place, Region
from trapline.engine.tier1.runs import BASES, SPAN, WIDTH, plain, size_of

if TYPE_CHECKING:
    from trapline.engine.tier1.line import Line

PAGE = 4096
FEWEST = 4
"""Turns below which the second copy is not worth being entered."""
LONGEST = PAGE // (2 * FEWEST)
"""Bytes of a step at most, so that a page is good for that many turns."""
WAIT = 8
"""Turns until the second copy is tried again that was left early, where the loop is one with another inside."""
LARGEST = 20
"""Instructions of a loop that is copied at most."""


@dataclass(frozen=True, slots=True)
class Sum:
    """A constant, and registers as they are at the start of a turn, each with its factor, in order."""

    constant: int = 0
    registers: tuple[tuple[int, int], ...] = ()

    def plus(self, other: Sum, factor: int = 1) -> Sum:
        """Add so many times another sum."""
        registers = dict(self.registers)
        for register, count in other.registers:
            registers[register] = registers.get(register, 0) + factor * count
        return Sum(self.constant + factor * other.constant, tuple(sorted((r, n) for r, n in registers.items() if n)))

    def emit(self, line: Line) -> str:
        """Its value at the start of a turn."""
        emit, total = line.emit, str(self.constant)
        for register, factor in self.registers:
            value = line.read(register)
            total = emit.let(f"add i64 {total}, {emit.let(f'mul i64 {value}, {factor}') if factor != 1 else value}")
        return total


@dataclass(eq=False, slots=True)
class Way:
    """Accesses side by side, between `low` and `high` bytes from a sum of registers that grows by `step` with each turn."""

    registers: tuple[tuple[int, int], ...]
    step: Sum
    low: int
    high: int
    kinds: set[bool]
    """Whether they are stores."""
    host: str = ""
    """The name of the host address of `low` at the first turn's start."""
    gone: str = ""
    """The name of how far it has gone since; empty if it does not move."""

    @property
    def span(self) -> int:
        """How many bytes a turn is about."""
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Stride:
    """An access of a way, so many bytes from its sum."""

    way: Way
    offset: int

    def pointer(self, line: Line) -> str:
        """Where it is in host memory."""
        emit, way = line.emit, self.way
        host = emit.let(f"add i64 {way.host}, {way.gone}") if way.gone else way.host
        return emit.let(f"inttoptr i64 {emit.let(f'add i64 {host}, {self.offset - way.low}')} to ptr")


Values = dict[int, Sum | None]
"""What is known of registers that were written in a turn; None of those of which nothing is."""
Strides = dict[tuple[Place, int], Stride]
"""Accesses by instruction and number of the effect."""


# -- which ---------------------------------------------------------------------------------------------------------------
def strides(region: Region, body: list[Place]) -> Strides:
    """The accesses of an innermost loop that go in equal steps; none if it is not worth two copies.

    `body` are its blocks, each behind those that it can be reached from within a turn (`turn`).
    """
    blocks = [region.blocks[place] for place in body]
    order = {place: number for number, place in enumerate(body)}
    back = [p for k, b in enumerate(blocks) for p in region.destinations(b) if 0 < order.get(p, len(body)) <= k]
    if back or sum(len(block.body) for block in blocks) > LARGEST:
        return {}
    starts: dict[Place, list[Values]] = {place: [] for place in body}
    starts[body[0]] = [{}]
    found: list[tuple[tuple[Place, int], Sum, fx.Load | fx.Store]] = []
    for block in blocks:
        values = _where_they_meet(starts[block.start])
        if block.start == body[0]:
            starts[block.start] = []  # from here on: what comes round
        for here in block.body:
            values = _step_over(here, values, found)
        for target in region.destinations(block):
            if target in starts:
                starts[target].append(values)
    if not starts[body[0]]:
        return {}  # a branch backwards to where control does not come round
    values = _where_they_meet(starts[body[0]])
    ways: list[Way] = []
    chosen: Strides = {}
    for key, at, effect in found:
        step = _step(at, values)
        if step is not None and (step.registers or abs(step.constant) <= LONGEST):
            chosen[key] = Stride(_way(ways, at, step, effect), at.constant)
    return chosen if any(way.step != Sum() for way in ways) else {}


def turn(region: Region, head: Place, loop: set[Place]) -> list[Place]:
    """What a loop's head can reach within a turn, each block behind those that it can be reached from."""
    done: list[Place] = []
    work = [(head, iter(region.destinations(region.blocks[head])))]
    seen = {head}
    while work:
        place, rest = work[-1]
        following = next((p for p in rest if p in loop and p not in seen), None)
        if following is None:
            done.append(place)
            work.pop()
        else:
            seen.add(following)
            work.append((following, iter(region.destinations(region.blocks[following]))))
    return done[::-1]


def _where_they_meet(ways: list[Values]) -> Values:
    """What is known of registers where control comes from several places."""
    first, *others = ways
    registers = {register for values in ways for register in values}
    known = {register: first.get(register, _itself(register)) for register in registers}
    return {r: value if all(o.get(r, _itself(r)) == value for o in others) else None for r, value in known.items()}


def _step_over(here: Instruction, values: Values, found: list[tuple[tuple[Place, int], Sum, fx.Load | fx.Store]]) -> Values:
    """What is known of registers behind an instruction; its accesses whose addresses are are added to `found`."""
    for number, effect in enumerate(here.recording.effects):
        if isinstance(effect, fx.Load | fx.Store) and plain(effect) and (at := _sum(effect.addr, values)) is not None:
            found.append(((here.place, number), at, effect))
    new = {w.offset: _sum(w.value, values) if w.when is None else None for w in here.recording.writes if w.offset in BASES}
    return {**values, **new}  # type: ignore[dict-item]


def _itself(register: int) -> Sum:
    """The value of a register at the start of a turn."""
    return Sum(0, ((register, 1),))


def _sum(node: Bits, values: Values) -> Sum | None:
    """A value as a sum, given what is known of registers."""
    if node.width != WIDTH:
        return None
    if node.op == "const":
        return Sum(node.attr - (node.attr >> WIDTH - 1 << WIDTH))
    if node.op == "state":
        return values.get(node.attr, _itself(node.attr)) if node.attr in BASES else None
    if node.op in ("add", "sub") and node.esize == WIDTH:
        a, b = (_sum(arg, values) for arg in node.args)
        return None if a is None or b is None else a.plus(b, 1 if node.op == "add" else -1)
    if node.op == "shl" and node.esize == WIDTH and node.args[1].op == "const" and node.args[1].attr < WIDTH:
        a = _sum(node.args[0], values)
        return None if a is None else Sum().plus(a, 1 << node.args[1].attr)
    return None


def _step(at: Sum, values: Values) -> Sum | None:
    """What a turn adds to a sum, given what it makes of registers; None if that is not the same in every turn."""
    step = Sum()
    for register, factor in at.registers:
        after = values.get(register, _itself(register))
        if after is None:
            return None
        step = step.plus(after.plus(_itself(register), -1), factor)
    return step if all(values.get(register, _itself(register)) == _itself(register) for register, _ in step.registers) else None


def _way(ways: list[Way], at: Sum, step: Sum, effect: fx.Load | fx.Store) -> Way:
    """The way of an access, which may be a new one."""
    low, high, store = at.constant, at.constant + size_of(effect), isinstance(effect, fx.Store)
    for way in ways:
        if way.registers == at.registers and max(high, way.high) - min(low, way.low) <= SPAN:
            way.low, way.high = min(low, way.low), max(high, way.high)
            way.kinds.add(store)
            return way
    ways.append(Way(at.registers, step, low, high, {store}))
    return ways[-1]


# -- the second copy -----------------------------------------------------------------------------------------------------
def begin(line: Line, chosen: Strides, label: str, otherwise: str) -> list[str]:
    """Look the pages up, and go on behind `label` if they last for a few turns, else to `otherwise`.

    Returned is what stands behind the copy, where it goes round: from `<label>_more` on, up to `%<label>_lasts`.
    """
    emit = line.emit
    ways = list(dict.fromkeys(stride.way for stride in chosen.values()))
    steps = {way.step: way.step.emit(line) for way in ways if way.step != Sum()}
    for number, (step, value) in enumerate(steps.items()):
        if step.registers:
            short = emit.let(f"icmp ult i64 {emit.let(f'sub i64 {value}, 1')}, {LONGEST}")
            emit.lines += [f"br i1 {short}, label %{label}_short{number}, label %{otherwise}", f"{label}_short{number}:"]
    good, turns = "true", ""
    for way in ways:
        fits, more = _look_up(line, way, steps.get(way.step, ""))
        good = emit.let(f"and i1 {good}, {fits}")
        if more:
            turns = emit.let(f"select i1 {emit.let(f'icmp ult i32 {more}, {turns}')}, i32 {more}, i32 {turns}") if turns else more
    good = emit.let(f"and i1 {good}, {emit.let(f'icmp uge i32 {turns}, {FEWEST - 1}')}")
    names = {step: f"%{label}_gone{k}" for k, step in enumerate(steps)}
    (step, name), *_ = names.items()
    turns = emit.let(f"add i64 {emit.let(f'zext i32 {turns} to i64')}, 1")
    end = emit.let(f"mul i64 {turns}, {steps[step]}")
    emit.lines += [f"br label %{label}_known", f"{label}_known:", f"br i1 {good}, label %{label}, label %{otherwise}", f"{label}:"]
    emit.lines += [f"{gone} = phi i64 [ 0, %{label}_known ], [ {gone}_on, %{label}_more ]" for gone in names.values()]
    for way in ways:
        way.gone = names.get(way.step, "")
    further = [f"{gone}_on = add i64 {gone}, {steps[step]}" for step, gone in names.items()]
    return [f"{label}_more:", *further, f"%{label}_lasts = icmp ne i64 {name}_on, {end}"]


def hesitate(line: Line, wait: str, label: str, otherwise: str) -> None:
    """Go to `otherwise` for a few turns, which `wait` counts, if the copy was left early; until all its turns are run it counts as that."""
    emit = line.emit
    left = emit.let(f"load i32, ptr %{wait}")
    emit.add(f"br i1 {emit.let(f'icmp eq i32 {left}, 0')}, label %{label}_try, label %{label}_wait")
    emit.add(f"{label}_wait:")
    emit.add(f"store i32 {emit.let(f'sub i32 {left}, 1')}, ptr %{wait}")
    emit.lines += [f"br label %{otherwise}", f"{label}_try:", f"store i32 {WAIT}, ptr %{wait}"]


def _look_up(line: Line, way: Way, step: str) -> tuple[str, str]:
    """Whether the next turn's accesses are on one page that the TLB has, and for how many more turns they will be; nothing if always."""
    emit = line.emit
    low = Sum(way.low, way.registers).emit(line)
    entry = line._tlb_entry(low, "%tlb")
    page = emit.let(f"and i64 {low}, {-PAGE}")
    within = emit.let(f"and i32 {emit.let(f'trunc i64 {low} to i32')}, {PAGE - 1}")
    fits = emit.let(f"icmp ule i32 {within}, {PAGE - way.span}")
    for store in sorted(way.kinds):
        tag = emit.let(f"load i64, ptr {line._field((TlbEntry.write_tag if store else TlbEntry.read_tag).offset, entry)}")
        fits = emit.let(f"and i1 {fits}, {emit.let(f'icmp eq i64 {tag}, {page}')}")
    addend = emit.let(f"load i64, ptr {line._field(TlbEntry.addend.offset, entry)}")
    way.host = emit.let(f"add i64 {low}, {addend}")
    if way.step == Sum():
        return fits, ""
    back = not way.step.registers and way.step.constant < 0
    room = within if back else emit.let(f"sub i32 {PAGE - way.span}, {within}")
    distance = emit.let(f"trunc i64 {step} to i32") if way.step.registers else str(abs(way.step.constant))
    return fits, emit.let(f"udiv i32 {room}, {distance}")
