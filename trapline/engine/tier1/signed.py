"""Signed comparisons: what tests N and V after a subtraction compares its operands.

LLVM finds the unsigned comparisons behind C and Z, but not the signed ones behind N == V: overflow is an expression of six operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trapline.arm64 import effects as fx
from trapline.arm64.record import FLAG_OFFSETS, Recorder
from trapline.bits import Bits
from trapline.bits.to_llvm import nodes

N, V = FLAG_OFFSETS["N"], FLAG_OFFSETS["V"]


def subtraction(recording: Recorder) -> tuple[Bits, Bits] | None:
    """The numbers of which an instruction's N and V tell that the first is less than the second where N and V differ."""
    written = {w.offset: w.value for w in recording.writes if w.offset in (N, V) and w.when is None}
    if len(written) < 2 or any(value.op != "slice" for value in written.values()):
        return None
    difference, overflow = written[N].args[0], written[V].args[0]
    sign = difference.width - 1
    if difference.op != "sub" or overflow.op != "and" or overflow.width != difference.width or {written[N].attr, written[V].attr} != {sign}:
        return None
    a, b = difference.args
    changed = [part.args for part in overflow.args if part.op == "xor"]
    if len(changed) != 2 or any(to.key != difference.key for _, to in changed) or changed[0][0].key != a.key:
        return None
    return (a, b) if _complement(changed[1][0], b) else None


def _complement(x: Bits, y: Bits) -> bool:
    """Whether `x` is `y` with all bits inverted."""
    ones = (1 << y.width) - 1
    if x.op == y.op == "const":
        return x.attr == y.attr ^ ones
    return y.op == "xor" and y.args[0].key == x.key and y.args[1].op == "const" and y.args[1].attr == ones


def tests(recording: Recorder) -> Iterator[Bits]:
    """The parts of an instruction's expressions that ask whether N equals V."""
    return filter(_asks, nodes(_expressions(recording)))


def _expressions(recording: Recorder) -> Iterator[Bits]:
    parts: list[object] = [x for w in recording.writes for x in (w.value, w.when)]
    parts += [value for e in recording.effects for value in _values(e)]
    return (part for part in parts if isinstance(part, Bits))


def _values(effect: fx.Effect) -> Iterable[object]:
    """What an effect is about: its fields, and the elements of those that are tuples."""
    for name in {slot for kind in type(effect).__mro__ for slot in getattr(kind, "__slots__", ())}:
        value = getattr(effect, name, None)
        yield from value if isinstance(value, tuple) else (value,)


def _asks(node: Bits) -> bool:
    return node.op == "eq" and [_flag(arg) for arg in node.args] == [N, V]


def _flag(node: Bits) -> object:
    return node.args[0].attr if node.op == "slice" and node.args[0].op == "state" else None
