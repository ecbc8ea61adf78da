"""The definition of bit-vector expressions: a walker over Python integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.bits.expr import Bits
from trapline.bits.ops import CONVERSIONS, ELEMENTWISE, signed


def _elements(value: int, width: int, esize: int) -> list[int]:
    mask = (1 << esize) - 1
    return [value >> k & mask for k in range(0, width, esize)]


def _join(lanes: list[int], esize: int) -> int:
    mask = (1 << esize) - 1
    return sum((lane & mask) << k * esize for k, lane in enumerate(lanes))


def _slice(node: Bits, a: int) -> int:
    return a >> node.attr & (1 << node.width) - 1


def _cat(node: Bits, *parts: int) -> int:
    value = 0
    for part, arg in zip(parts, node.args, strict=True):
        value = value << arg.width | part
    return value


def _vector_resize(convert: Callable[[int, int], int]) -> Callable[[Bits, int], int]:
    def resize(node: Bits, a: int) -> int:
        lanes = _elements(a, node.args[0].width, node.attr)
        return _join([convert(lane, node.attr) for lane in lanes], node.esize)

    return resize


def _convert(node: Bits, a: int) -> int:
    kind, source = node.attr
    meaning = CONVERSIONS[kind]
    return _join([meaning(lane, source, node.esize) for lane in _elements(a, node.args[0].width, source)], node.esize)


def _insert(node: Bits, a: int, index: int, lane: int) -> int:
    lanes = _elements(a, node.width, node.esize)
    lanes[index] = lane
    return _join(lanes, node.esize)


def _lookup(node: Bits, table: int, indexes: int) -> int:
    entries = _elements(table, 128, 8)
    return _join([entries[k] if k < 16 else 0 for k in _elements(indexes, 128, 8)], 8)


def _call(node: Bits, *args: int) -> Any:
    result = node.attr(*args)
    return tuple(int(r) for r in result) if isinstance(result, tuple) else int(result)


_STRUCTURAL: dict[str, Callable[..., Any]] = {
    "const": lambda node: node.attr,
    "slice": _slice,
    "cat": _cat,
    "zext": lambda node, a: a,
    "sext": lambda node, a: signed(a, node.args[0].width) & (1 << node.width) - 1,
    "select": lambda node, c, a, b: a if c else b,
    "vzext": _vector_resize(lambda lane, esize: lane),
    "vsext": _vector_resize(signed),
    "vtrunc": _vector_resize(lambda lane, esize: lane),
    "all": lambda node, a: int(a == (1 << node.args[0].width) - 1),
    "extract": lambda node, a, index: _elements(a, node.args[0].width, node.width)[index],
    "insert": _insert,
    "lookup": _lookup,
    "convert": _convert,
    "lasting": lambda node, a: a,
    "call": _call,
    "item": lambda node, results: results[node.attr],
}


class Evaluator:
    """Evaluates expressions against one machine state; a node is computed once.

    `leaf(node)` answers the leaves (register reads and the like). Nodes are remembered by identity, so they must outlive the
    evaluator; an instruction's recording keeps them.
    """

    def __init__(self, leaf: Callable[[Bits], int]) -> None:
        self._leaf = leaf
        self._values: dict[int, Any] = {}

    def __call__(self, node: Bits) -> Any:
        """The value of `node`: an int below 2**width (a tuple for a call with several results)."""
        key = id(node)
        if key not in self._values:
            self._values[key] = self._compute(node)
        return self._values[key]

    def set(self, node: Bits, value: int) -> None:
        """Give a leaf its value (the result of an effect)."""
        self._values[id(node)] = value

    def _compute(self, node: Bits) -> Any:
        if node.op == "likely":
            count = node.attr[0]
            chosen = node.args[1 : 1 + count] if self(node.args[0]) else node.args[1 + count :]
            return tuple(self(a) for a in chosen)
        structural = _STRUCTURAL.get(node.op)
        if structural is not None:
            return structural(node, *(self(a) for a in node.args))
        operator = ELEMENTWISE.get(node.op)
        if operator is None:
            return self._leaf(node)
        values = [self(a) for a in node.args]
        source = node.args[0].width
        if operator.compare and node.width == 1:
            return int(operator.python(source, *values))
        if node.esize == node.width and not operator.compare:
            return operator.python(node.width, *values) & (1 << node.width) - 1
        rows = zip(*(_elements(v, node.width, node.esize) for v in values), strict=True)
        lanes = [operator.python(node.esize, *row) for row in rows]
        return _join([-lane for lane in lanes] if operator.compare else lanes, node.esize)
