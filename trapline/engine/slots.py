"""Where the operands of an instruction shape lie in its predecoded record."""

from __future__ import annotations

from dataclasses import dataclass

from trapline.bits import Bits
from trapline.engine.state import RECORD_SIZE


@dataclass(frozen=True, slots=True)
class Slot:
    """An operand in the record: byte offset, bytes, and whether it is read sign-extended."""

    offset: int
    size: int
    signed: bool
    expr: Bits


class SlotLayout:
    """Assigns record space (bytes 8 to 31) to the decode-time expressions of a shape."""

    def __init__(self) -> None:
        self.slots: dict[tuple[object, ...], Slot] = {}
        self._free = set(range(8, RECORD_SIZE))

    def place(self, node: Bits) -> Slot:
        """The slot of a `decoded` leaf."""
        expr = node.args[0]
        if expr.key in self.slots:
            return self.slots[expr.key]
        lo, hi = node.attr if node.attr else (0, (1 << expr.width) - 1)
        size = next(s for s in (1, 2, 4, 8) if (-(1 << 8 * s - 1) <= lo and hi < 1 << 8 * s - 1) or 0 <= lo and hi < 1 << 8 * s)
        signed = lo < 0
        for start in range(8, RECORD_SIZE - size + 1, size):
            span = set(range(start, start + size))
            if span <= self._free:
                self._free -= span
                slot = self.slots[expr.key] = Slot(start, size, signed, expr)
                return slot
        raise ValueError("a record has no room for this shape's operands")
