"""What a random program needs to know of every instruction shape, found by recording it: operands, addresses, results.

Nothing is said twice: which fields are destinations, which bank they name, and where an access goes, all follow from the
declaration's own recording.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from trapline.arm64 import effects as fx
from trapline.arm64.insn import BitField, Insn
from trapline.arm64.record import SP_OFFSET, V_OFFSET, X_OFFSET, Recorder
from trapline.arm64.regs import TABLE
from trapline.bits import Bits
from trapline.bits.evaluate import Evaluator

PLACES = (2, 8, 14, 20, 26)
"""Register numbers for the fields of a probe: even, and far enough apart for lists of four."""

INDEX_VALUES = {23: 0xFFFF_FFFF_0000_0003, 24: (1 << 64) - 5, 25: 7}
"""Registers that random programs keep as index registers, and what they hold."""

POINTERS = (26, 27, 28, 31)
"""Registers that hold addresses in the memory window; 26 keeps its alignment, 31 is SP."""

REACH = 120
"""How far from its base register an access may lie."""
PROBE_BASE = 0x10_0000


@dataclass(frozen=True)
class Variant:
    """One way to form an address: bits of the word, first and last byte relative to the base, and the base's change."""

    bits: int
    low: int
    high: int
    step: int | None


@dataclass
class Template:
    """A shape: fixed bits, and its operand fields by use."""

    insn: Insn
    shape: int
    base: int
    sources: list[BitField] = field(default_factory=list)
    results: list[BitField] = field(default_factory=list)
    vectors: list[BitField] = field(default_factory=list)
    immediates: list[BitField] = field(default_factory=list)
    pointer: BitField | None = None
    variants: list[Variant] = field(default_factory=list)
    aligned: bool = False
    is_load: bool = False
    apart: bool = False
    """The registers of the word must differ: pairs of loads, status registers."""
    sp_results: bool = False
    """Register 31 as a result is SP, which holds a pointer."""


def slot(name: str) -> int:
    """Storage of a system register."""
    return TABLE[name].slot


def _leaves(nodes: Iterable[Bits]) -> Iterator[Bits]:
    seen: set[int] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op == "state":
            yield node
        stack += [a for a in node.args if isinstance(a, Bits)]


def _expressions(recording: Recorder) -> list[Bits]:
    found = [w.value for w in recording.writes]
    for effect in recording.effects:
        for name in ("addr", "value", "new", "expected", "target", "when"):
            item = getattr(effect, name, None)
            if isinstance(item, Bits):
                found.append(item)
        found += getattr(effect, "args", ())
    return found


def _register(offset: int) -> tuple[str, int] | None:
    if X_OFFSET <= offset < X_OFFSET + 8 * 32:
        return "x", (offset - X_OFFSET) // 8
    if V_OFFSET <= offset < V_OFFSET + 16 * 32:
        return "v", (offset - V_OFFSET) // 16
    return None


def _accesses(recording: Recorder) -> list[Any]:
    return [e for e in recording.effects if hasattr(e, "addr")]


def _size(effect: Any) -> int:
    for name in ("value", "expected"):
        item = getattr(effect, name, None)
        if isinstance(item, Bits):
            return item.width // 8
    return int(effect.width) // 8


def _address_variant(insn: Insn, word: int, base: int) -> Variant | None:
    """Where the accesses of `word` go when its base register, number `base`, holds PROBE_BASE."""
    recording = insn.record_word(word, slot)

    def leaf(node: Bits) -> int:
        if node.op == "pc":
            return 0
        place = _register(node.attr) if node.op == "state" else None
        if node.op == "state" and node.attr == SP_OFFSET or place == ("x", base):
            return PROBE_BASE
        return INDEX_VALUES.get(place[1], 0) if place is not None and place[0] == "x" else 0

    value = Evaluator(leaf)
    starts = [(value(e.addr), _size(e)) for e in _accesses(recording)]
    step = None
    for w in recording.writes:
        if isinstance(w.offset, int) and (_register(w.offset) == ("x", base) or w.offset == SP_OFFSET):
            step = value(w.value) - PROBE_BASE
    low, high = min(a for a, _ in starts) - PROBE_BASE, max(a + n for a, n in starts) - PROBE_BASE
    extremes = (low, high, step or 0)
    return Variant(0, low, high, step) if all(-REACH <= v <= REACH for v in extremes) else None


def _is_of_the_machine(effect: fx.Effect, insn: Insn) -> bool:
    """Whether an effect is an exception, or something that only the machine answers: traps that might be do not count."""
    if isinstance(effect, fx.System):
        return effect.when is None
    return isinstance(effect, fx.Raise) or isinstance(effect, fx.Query) and insn.group != "pauth"


def make_template(insn: Insn, shape: int) -> Template | None:
    """What there is to know of a shape; None if it raises an exception or uses the machine (UNDEFINED, SVC, ...)."""
    base = insn.pattern.value
    shape_values = insn.shape_values(shape)
    for f in insn.shape_fields:
        base |= shape_values[f.name] << f.lo
    registers = [f for f in insn.operand_fields if f.name.startswith("R")]
    places = dict(zip((f.name for f in registers), PLACES, strict=False))
    word = base | sum(places[f.name] << f.lo for f in registers)
    recording = insn.record_word(word, slot)
    if any(_is_of_the_machine(e, insn) for e in recording.effects) or insn.name == "load_authenticated":
        return None
    result = Template(insn, shape, base, immediates=[f for f in insn.operand_fields if f.name.startswith("imm")])
    written = {p for w in recording.writes if isinstance(w.offset, int) and (p := _register(w.offset))}
    read = {p for n in _leaves(_expressions(recording)) if (p := _register(n.attr))}
    used_in_addresses = {p for n in _leaves(e.addr for e in _accesses(recording)) if (p := _register(n.attr))}
    indexes = []
    moves_memory = bool(_accesses(recording)) and any(f.name == "Rn" for f in registers)
    for f in registers:
        number = places[f.name]
        if ("v", number) in written | read:
            result.vectors.append(f)
        elif moves_memory and f.name == "Rn":
            result.pointer = f
        elif ("x", number) in written:
            result.results.append(f)
        elif ("x", number) in used_in_addresses or moves_memory and f.name == "Rm":
            indexes.append(f)
        else:
            result.sources.append(f)
    for f in result.results:
        again = insn.record_word(word | 31 << f.lo, slot)
        result.sp_results |= any(w.offset == SP_OFFSET for w in again.writes)
    if _accesses(recording):
        _add_memory(result, recording, word, places, indexes)
        if not result.variants:
            return None
    return result


def _add_memory(t: Template, recording: Recorder, word: int, places: dict[str, int], indexes: list[BitField]) -> None:
    accesses = _accesses(recording)
    t.aligned = any(e.access.aligned for e in accesses) or not isinstance(accesses[0], fx.Load | fx.Store)
    t.is_load = isinstance(accesses[0], fx.Load | fx.LoadExclusive)
    loaded = t.vectors if t.is_load and t.insn.group.startswith("load_store") else []
    t.apart = max(len(t.results), len(loaded)) > 1 or isinstance(accesses[0], fx.StoreExclusive) or t.insn.name == "compare_and_swap_pair"
    if t.pointer is None:  # literal loads: the program itself is read
        t.variants = [Variant(0, 0, 0, None)]
        return
    base = places["Rn"]
    for bits in _address_bits(t, indexes):
        variant = _address_variant(t.insn, word & ~_mask(indexes) | bits, base)
        if variant is not None and not (t.aligned and variant.low % _size(accesses[0])):
            t.variants.append(Variant(bits, variant.low, variant.high, variant.step))


def _mask(fields: list[BitField]) -> int:
    return sum((1 << f.width) - 1 << f.lo for f in fields)


def _address_bits(t: Template, indexes: list[BitField]) -> list[int]:
    """Immediates and index registers to try."""
    if indexes:
        return [number << indexes[0].lo for number in INDEX_VALUES]
    if not t.immediates:
        return [0]
    f = t.immediates[0]
    top = (1 << f.width) - 1
    tries = {0, 1, 2, 3, 5, 7, 8, 12, 16, 48, 100, 115, top, top - 1, top - 2, top - 4, top - 8, top - 13, top - 96}
    t.immediates = []
    return [v << f.lo for v in sorted(tries) if 0 <= v <= top]
