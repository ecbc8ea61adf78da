"""Condition flags in loops: computed where control leaves, not where they are set.

What tests flags usually stands right behind what sets them, and reads them as values; afterwards they matter only to the code behind
the loop, and to whoever looks at the vCPU. So a loop remembers of the last instruction that set flags which one it was, and its
operands, and a function of the region makes flags of that when it is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from trapline.arm64.record import FLAG_OFFSETS, Recorder
from trapline.bits import Bits
from trapline.bits.to_llvm import Emitter, leaves
from trapline.engine.tier1.line import PROMOTED, Line

FLAGS = tuple(FLAG_OFFSETS[name] for name in "NZCV")
"""They lie side by side in the state, a byte each, so that an i32 holds them all."""
KNOWN = 0
"""The kind of flags that have been computed: the first operand is all four."""
OPERANDS = ("%flags_a", "%flags_b")


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to set flags: its number, the expressions in the order of FLAGS, and the registers that they read."""

    number: int
    values: tuple[Bits, ...]
    reads: tuple[int, ...]


class LateFlags:
    """The flags of one region."""

    def __init__(self, tag: str) -> None:
        self._name = f"flags_{tag}"
        self._kinds: dict[tuple[object, ...], Kind] = {}

    def begin(self, line: Line) -> None:
        """Space for what is remembered."""
        line.emit.lines += ["%flags_kind = alloca i8", *(f"{operand} = alloca i64" for operand in OPERANDS)]

    def load(self, line: Line) -> None:
        """The flags are those in memory."""
        emit = line.emit
        flags = emit.let(f"load i32, ptr {line._field(FLAGS[0])}")
        self._remember(line, KNOWN, [emit.let(f"zext i32 {flags} to i64"), "0"])

    def set(self, line: Line, recording: Recorder) -> None:
        """Remember what an instruction that has just been emitted did to flags."""
        written = {w.offset: w.value for w in recording.writes if w.offset in FLAGS}
        if not written:
            return
        values = tuple(written[offset] for offset in FLAGS if offset in written)
        kind = self._kind(values) if len(values) == len(FLAGS) else None
        if kind is None:
            self._remember(line, KNOWN, [self._packed(line), "0"])
            return
        read = {leaf.attr: line.emit(leaf) for leaf in leaves(values)}  # before the instruction wrote anything: emitted with the values
        operands = [read[offset] for offset in kind.reads]
        self._remember(line, kind.number, [*operands, "0", "0"][:2])

    def store(self, line: Line) -> None:
        """Write the flags to memory."""
        emit = line.emit
        kind = emit.let("load i8, ptr %flags_kind")
        a, b = (emit.let(f"load i64, ptr {operand}") for operand in OPERANDS)
        flags = emit.let(f"call i32 @{self._name}(i8 {kind}, i64 {a}, i64 {b})")
        emit.add(f"store i32 {flags}, ptr {line._field(FLAGS[0])}")

    def function(self) -> str:
        """The region's function from what was remembered to flags."""
        cases, bodies = [], []
        for kind in self._kinds.values():
            cases.append(f"i8 {kind.number}, label %k{kind.number}")
            emit = self._emitter(kind.values, kind.reads, f"k{kind.number}_")
            total = _pack(emit, [emit(value) for value in kind.values], "i1", "i32")
            bodies += [f"k{kind.number}:", *emit.lines, f"ret i32 {total}"]
        lines = [
            f"define internal i32 @{self._name}(i8 %kind, i64 %a, i64 %b) noinline cold nounwind memory(none) {{",
            f"switch i8 %kind, label %known [ {' '.join(cases)} ]",
            "known:",
            "%flags = trunc i64 %a to i32",
            "ret i32 %flags",
            *bodies,
            "}\n",
        ]
        return "\n".join(lines)

    # -- kinds -----------------------------------------------------------------------------------------------------------
    def _kind(self, values: tuple[Bits, ...]) -> Kind | None:
        """How to set these flags late; None if that takes more than two general registers, or more than expressions."""
        key = tuple(value.key for value in values)
        if key in self._kinds:
            return self._kinds[key]
        found = list(leaves(values))
        reads = tuple(dict.fromkeys(leaf.attr for leaf in found if leaf.op == "state"))
        simple = all(leaf.op == "const" or leaf.op == "state" and PROMOTED.get(leaf.attr) == "i64" for leaf in found)
        if not simple or len(reads) > len(OPERANDS):
            return None
        emit = self._emitter(values, reads, "")
        for value in values:
            emit(value)
        if emit.natives or emit.intrinsics:
            return None
        kind = self._kinds[key] = Kind(len(self._kinds) + 1, values, reads)
        return kind

    @staticmethod
    def _emitter(values: tuple[Bits, ...], reads: tuple[int, ...], prefix: str) -> Emitter:
        names = dict(zip(reads, ("%a", "%b"), strict=False))
        return Emitter(lambda node: names[node.attr], prefix=prefix)

    @staticmethod
    def _remember(line: Line, kind: int, operands: list[str]) -> None:
        line.emit.add(f"store i8 {kind}, ptr %flags_kind")
        line.emit.lines += [f"store i64 {value}, ptr {place}" for value, place in zip(operands, OPERANDS, strict=True)]

    @staticmethod
    def _packed(line: Line) -> str:
        """All flags, from the values that the region has of each."""
        return _pack(line.emit, [line.emit.let(f"load i8, ptr %s{offset}") for offset in FLAGS], "i8", "i64")


def _pack(emit: Emitter, flags: list[str], narrow: str, wide: str) -> str:
    """Flags side by side, a byte each."""
    total = ""
    for k, flag in enumerate(flags):
        value = emit.let(f"zext {narrow} {flag} to {wide}")
        if k:
            value = emit.let(f"shl {wide} {value}, {8 * k}")
        total = emit.let(f"or {wide} {total}, {value}") if total else value
    return total
