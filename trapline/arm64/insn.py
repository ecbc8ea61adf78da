"""Instructions declared once: encoding, assembly text, feature and meaning in one place.

`@insn` takes an encoding pattern in the manual's order: literal bits (`0`, `1`, `.` for either) and `name:width` fields. Fields
named `Rd`, `Rn`, ... are register operands and fields named `imm...` immediate operands; both may differ between instructions
that share one handler. All other fields select the handler: they are the instruction's *shape*, and a body may test them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from trapline.arm64.record import Recorder, RegNumber
from trapline.bits import Bits, Imm, call, const

_OPERAND = re.compile(r"R[a-z]|imm")
_REGISTER = re.compile(r"R[a-z]")


@dataclass(frozen=True, slots=True)
class BitField:
    """A field of an encoding: `width` bits from bit `lo`."""

    name: str
    lo: int
    width: int

    def of(self, word: int) -> int:
        return word >> self.lo & (1 << self.width) - 1


@dataclass(frozen=True)
class Pattern:
    """A parsed encoding pattern: fixed bits and fields."""

    text: str
    mask: int
    value: int
    fields: tuple[BitField, ...]

    @staticmethod
    def parse(text: str) -> Pattern:
        """Parse a pattern string; it must cover exactly 32 bits and name each field once."""
        mask = value = covered = 0
        fields: list[BitField] = []
        for token in text.split():
            name, colon, width = token.partition(":")
            if colon:
                covered += int(width)
                fields.append(BitField(name, 32 - covered, int(width)))
                continue
            for bit in token:
                if bit not in "01.":
                    raise ValueError(f"pattern {text!r}: {token!r} is neither bits nor name:width")
                covered += 1
                mask |= (bit != ".") << 32 - covered
                value |= (bit == "1") << 32 - covered
        names = [f.name for f in fields]
        if covered != 32:
            raise ValueError(f"pattern {text!r} covers {covered} bits, not 32")
        if len(set(names)) != len(names):
            raise ValueError(f"pattern {text!r} names a field twice")
        return Pattern(text, mask, value, tuple(fields))


class Fields:
    """The decoded fields of an instruction, as attributes."""

    def __init__(self, values: dict[str, Any], widths: dict[str, int]) -> None:
        self.__dict__.update(values)
        self._widths = widths

    def signed(self, name: str) -> Any:
        """A field read as a two's complement number."""
        value, width = getattr(self, name), self._widths[name]
        if isinstance(value, Imm):
            return Imm(value.bits.trunc(width).sext(64), -(1 << width - 1), (1 << width - 1) - 1)
        return value - (1 << width) if value >> width - 1 else value

    def derived(self, fn: Any, *args: int | Imm, width: int | None = None) -> Any:
        """`fn(*args)`, a pure `@native` function of decoded fields, computed when the instruction is decoded.

        Returns `Bits` of the function's result width, or a tuple of them.
        """
        if not any(isinstance(a, Imm) for a in args):
            results = fn(*args)
            if isinstance(results, tuple):
                return tuple(const(int(r), t.width) for r, t in zip(results, fn.ret, strict=True))
            return const(int(results), fn.ret.width)
        typed = [
            a.bits.trunc(p.width) if isinstance(a, Imm) else const(a, p.width) for a, p in zip(args, fn.params, strict=True)
        ]
        results = call(fn, *typed)
        if isinstance(results, tuple):
            return tuple(Bits("decoded", (r,), r.width) for r in results)
        return Bits("decoded", (results,), results.width)


Body = Callable[[Any, Any], None]

ADDRESSING = frozenset({"load_store", "load_store_pair", "load_store_fp", "load_store_exclusive", "atomics", "simd_memory"})
"""Groups whose instructions address memory by Rn: SP as base has shapes of its own, which check its alignment."""
SP = 31


@dataclass(eq=False)
class Insn:
    """One declared instruction (or family that shares an encoding)."""

    name: str
    pattern: Pattern
    body: Body
    asm: str
    feature: str | None
    where: Callable[[Any], bool] | None
    over: tuple[str, ...]
    group: str
    shape_fields: tuple[BitField, ...] = field(init=False)
    operand_fields: tuple[BitField, ...] = field(init=False)
    const: tuple[str, ...] = ()
    split: tuple[tuple[str, int], ...] = ()
    machine: Container[str] = ()
    """Features of the machine that this one is for, where a body asks (`cpu.machine`): empty for the plain instruction."""

    def __post_init__(self) -> None:
        """`split` names operand values that get shapes of their own, in which the field is a plain int: the common or special
        case (no shift, the zero register, SP as base) is then known when the handler is compiled."""
        operand = [bool(_OPERAND.match(f.name)) and f.name not in self.const for f in self.pattern.fields]
        pairs = list(zip(self.pattern.fields, operand, strict=True))
        self.operand_fields = tuple(f for f, is_operand in pairs if is_operand)
        self.shape_fields = tuple(f for f, is_operand in pairs if not is_operand)
        self._widths = {f.name: f.width for f in self.pattern.fields}
        by_name = {f.name: f for f in self.operand_fields}
        self.splits = tuple((by_name[name], value) for name, value in self.split if name in by_name)

    def __repr__(self) -> str:
        return f"<{self.name} {self.pattern.text}>"

    @property
    def shape_bits(self) -> int:
        """How many bits of the encoding select the shape."""
        return sum(f.width for f in self.shape_fields) + len(self.splits)

    def shape_of(self, word: int) -> int:
        """The shape number of a word: its shape fields, first field highest, then a bit for each split value."""
        number = 0
        for f in self.shape_fields:
            number = number << f.width | f.of(word)
        for f, value in self.splits:
            number = number << 1 | (f.of(word) == value)
        return number

    def shape_values(self, shape: int) -> dict[str, int]:
        """The fields that a shape determines."""
        values = {}
        for f, value in reversed(self.splits):
            if shape & 1:
                values[f.name] = value
            shape >>= 1
        for f in reversed(self.shape_fields):
            values[f.name] = shape & (1 << f.width) - 1
            shape >>= f.width
        return values

    def matches(self, word: int) -> bool:
        """Whether `word` is this instruction, `where` included."""
        return word & self.pattern.mask == self.pattern.value and self.allows(self.shape_of(word))

    def allows(self, shape: int) -> bool:
        """Whether the `where` condition holds for a shape."""
        return self.where is None or bool(self.where(Fields(self.shape_values(shape), self._widths)))

    def fields(self, word: int) -> Fields:
        """All fields of a word as ints."""
        return Fields({f.name: f.of(word) for f in self.pattern.fields}, self._widths)

    def record_word(self, word: int, slot: Callable[[str], int]) -> Recorder:
        """Run the body for one instruction word."""
        recorder = Recorder(slot)
        recorder.machine = self.machine
        self.body(recorder, self.fields(word))
        return recorder

    def record_shape(self, shape: int, slot: Callable[[str], int]) -> Recorder:
        """Run the body for all instructions of one shape: operands stay symbolic."""
        values: dict[str, Any] = dict(self.shape_values(shape))
        word = Bits("word", (), 32)
        for f in self.operand_fields:
            if f.name in values:
                continue
            imm = Imm(word[f.lo + f.width - 1 : f.lo].zext(64), 0, (1 << f.width) - 1)
            values[f.name] = RegNumber(imm) if _REGISTER.match(f.name) else imm
        recorder = Recorder(slot)
        recorder.machine = self.machine
        self.body(recorder, Fields(values, self._widths))
        return recorder


class InstructionSet:
    """A registry of declared instructions and their decoder."""

    def __init__(self) -> None:
        self.insns: list[Insn] = []

    def insn(
        self,
        pattern: str,
        asm: str = "",
        feature: str | None = None,
        where: Callable[[Any], bool] | None = None,
        const: tuple[str, ...] = (),
        over: str | tuple[str, ...] = (),
        split: dict[str, int] | None = None,
    ) -> Callable[[Body], Body]:
        """Declare the decorated body as an instruction."""

        def declare(body: Body) -> Body:
            parsed = Pattern.parse(pattern)
            names = (over,) if isinstance(over, str) else over
            group = body.__module__.rpartition(".")[2]
            special = tuple((split or ({"Rn": SP} if group in ADDRESSING else {})).items())
            self.insns.append(Insn(body.__name__, parsed, body, asm, feature, where, names, group, const=const, split=special))
            return body

        return declare

    def candidates(self) -> list[Insn]:
        """All instructions, the more specific of declared overlaps first, in an order that does not depend on that of imports:
        compiled code numbers them, and outlives the process.
        """
        rank = {id(i): (-i.pattern.mask.bit_count(), i.group, n) for n, i in enumerate(self.insns)}
        return sorted(self.insns, key=lambda i: (not i.over, rank[id(i)]))

    def overlaps(self) -> Iterator[tuple[Insn, Insn]]:
        """Pairs that can match the same word although neither is declared to win over the other."""
        insns = self.insns
        for n, a in enumerate(insns):
            for b in insns[n + 1 :]:
                if (a.pattern.value ^ b.pattern.value) & a.pattern.mask & b.pattern.mask:
                    continue
                if b.name in a.over or a.name in b.over:
                    continue
                if not _disjoint_by_where(a, b):
                    yield a, b


def _disjoint_by_where(a: Insn, b: Insn) -> bool:
    """Whether the `where` conditions keep two overlapping patterns apart (all common words are tried on shape bits)."""
    if a.where is None and b.where is None:
        return False
    shape_mask = 0
    for i in (a, b):
        for f in i.shape_fields:
            shape_mask |= (1 << f.width) - 1 << f.lo
    free = [bit for bit in range(32) if shape_mask >> bit & 1 and not (a.pattern.mask | b.pattern.mask) >> bit & 1]
    if len(free) > 14:
        return False
    fixed = a.pattern.value | b.pattern.value
    return not any(a.matches(word) and b.matches(word) for word in _words(fixed, free))


def _words(fixed: int, free: list[int]) -> Iterator[int]:
    for n in range(1 << len(free)):
        yield fixed | sum((n >> k & 1) << bit for k, bit in enumerate(free))


A64 = InstructionSet()
"""The A64 instruction set; modules of `arm64.isa` add to it when imported."""

insn = A64.insn
