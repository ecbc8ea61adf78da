"""`Bits`: an expression over bit vectors of known width, and `Vec`: the same bits seen as lanes.

Expressions are built by ordinary operators and checked for width as they are built. They have no truth value: a Python `if`
on guest data is a mistake that this module reports at once. Numbers that are known when an instruction is decoded but not
when its handler is compiled (an immediate field) are `Imm`, which behaves like an `int` under arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trapline.bits.ops import ELEMENTWISE


class Bits:
    """A node of an expression: operator, arguments, width in bits.

    `esize` is the element size in bits: equal to `width` for a scalar operation, smaller for one that works lane by lane.
    `attr` holds what an operator needs besides arguments (a constant's value, a slice's lowest bit, a register number).
    """

    __slots__ = ("op", "args", "width", "esize", "attr", "_key")

    def __init__(self, op: str, args: tuple[Bits, ...], width: int, esize: int = 0, attr: Any = None) -> None:
        if width <= 0:
            raise ValueError(f"width {width} is not positive")
        self.op, self.args, self.width, self.esize, self.attr = op, args, width, esize or width, attr
        self._key: tuple[Any, ...] | None = None

    def __bool__(self) -> bool:
        raise TypeError("guest data has no truth value while an instruction is recorded; use select(cond, a, b)")

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.args))
        attr = "" if self.attr is None else f"[{self.attr}]"
        return f"{self.op}{attr}:{self.width}({inner})"

    __hash__ = object.__hash__

    @property
    def key(self) -> tuple[Any, ...]:
        """Structural identity: equal for expressions that mean the same by construction."""
        if self._key is None:
            self._key = (self.op, self.width, self.esize, self.attr, *(a.key for a in self.args))
        return self._key

    # -- helpers ---------------------------------------------------------------------------------------------------------
    def _same(self, other: Operand) -> Bits:
        if isinstance(other, Bits):
            if other.width != self.width:
                raise TypeError(f"widths differ: {self.width} and {other.width}")
            return other
        return const(other, self.width)

    def _binary(self, op: str, other: Operand) -> Bits:
        return _fold(op, self, self._same(other), esize=self.width)

    def _reverse(self, op: str, other: Operand) -> Bits:
        return _fold(op, self._same(other), self, esize=self.width)

    def _compare(self, op: str, other: Operand) -> Bits:
        return Bits(op, (self, self._same(other)), 1, self.width)

    def _shift(self, op: str, count: Operand) -> Bits:
        if isinstance(count, Bits):
            count = count.zext(self.width) if count.width < self.width else count
            if count.width > self.width:
                clipped = select(count.ult(self.width), count.trunc(self.width), const(self.width, self.width))
                return Bits(op, (self, clipped), self.width)
            return Bits(op, (self, count), self.width)
        if isinstance(count, int):
            if count < 0:
                raise ValueError(f"shift by {count}")
            if count == 0:
                return self
            limit = self.width - 1 if op == "ashr" else self.width
            if count >= self.width and op != "ashr":
                return const(0, self.width)
            count = min(count, limit)
        return Bits(op, (self, const(count, self.width)), self.width)

    # -- arithmetic and logic --------------------------------------------------------------------------------------------
    def __add__(self, other: Operand) -> Bits:
        return self._binary("add", other)

    def __sub__(self, other: Operand) -> Bits:
        return self._binary("sub", other)

    def __mul__(self, other: Operand) -> Bits:
        return self._binary("mul", other)

    def __and__(self, other: Operand) -> Bits:
        return self._binary("and", other)

    def __or__(self, other: Operand) -> Bits:
        return self._binary("or", other)

    def __xor__(self, other: Operand) -> Bits:
        return self._binary("xor", other)

    def __radd__(self, other: Operand) -> Bits:
        return self._reverse("add", other)

    def __rsub__(self, other: Operand) -> Bits:
        return self._reverse("sub", other)

    def __rmul__(self, other: Operand) -> Bits:
        return self._reverse("mul", other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> Bits:
        return self._binary("xor", (1 << self.width) - 1)

    def __neg__(self) -> Bits:
        return const(0, self.width) - self

    def __lshift__(self, count: Operand) -> Bits:
        return self._shift("shl", count)

    def __rshift__(self, count: Operand) -> Bits:
        return self._shift("lshr", count)

    def asr(self, count: Operand) -> Bits:
        """Arithmetic shift right; a count of the width or more gives the sign in every bit."""
        return self._shift("ashr", count)

    def ror(self, count: Operand) -> Bits:
        """Rotate right by `count` modulo the width."""
        if isinstance(count, Bits):
            count = count.zext(self.width) if count.width < self.width else count.trunc(self.width)
        elif isinstance(count, int):
            count %= self.width
            if count == 0:
                return self
        return self._binary("ror", count)

    def udiv(self, other: Operand) -> Bits:
        """Unsigned quotient; 0 when the divisor is 0, as A64's UDIV."""
        return self._binary("udiv", other)

    def sdiv(self, other: Operand) -> Bits:
        """Signed quotient rounded toward zero; 0 when the divisor is 0; the most negative value over -1 wraps."""
        return self._binary("sdiv", other)

    # -- comparison: one bit ---------------------------------------------------------------------------------------------
    def __eq__(self, other: Operand) -> Bits:  # type: ignore[override]
        return self._compare("eq", other)

    def __ne__(self, other: Operand) -> Bits:  # type: ignore[override]
        return self._compare("ne", other)

    def ult(self, other: Operand) -> Bits:
        return self._compare("ult", other)

    def ule(self, other: Operand) -> Bits:
        return self._compare("ule", other)

    def slt(self, other: Operand) -> Bits:
        return self._compare("slt", other)

    def sle(self, other: Operand) -> Bits:
        return self._compare("sle", other)

    def ugt(self, other: Operand) -> Bits:
        return self._same(other).ult(self)

    def uge(self, other: Operand) -> Bits:
        return self._same(other).ule(self)

    def sgt(self, other: Operand) -> Bits:
        return self._same(other).slt(self)

    def sge(self, other: Operand) -> Bits:
        return self._same(other).sle(self)

    def is_zero(self) -> Bits:
        return self == 0

    @property
    def msb(self) -> Bits:
        """The most significant bit."""
        return self[self.width - 1]

    # -- unary -----------------------------------------------------------------------------------------------------------
    def clz(self) -> Bits:
        """Count of leading zero bits (the width when zero)."""
        return Bits("clz", (self,), self.width)

    def popcount(self) -> Bits:
        return Bits("popcount", (self,), self.width)

    def bitreverse(self) -> Bits:
        return Bits("bitreverse", (self,), self.width)

    def bswap(self) -> Bits:
        return self if self.width == 8 else Bits("bswap", (self,), self.width)

    # -- widths ----------------------------------------------------------------------------------------------------------
    def __getitem__(self, index: int | slice) -> Bits:
        """`x[hi:lo]` or `x[bit]`, both ends included, as the manual writes it."""
        if isinstance(index, slice):
            hi, lo = index.start, index.stop
        else:
            hi = lo = index
        if not 0 <= lo <= hi < self.width:
            raise IndexError(f"bits {hi}:{lo} of a {self.width}-bit value")
        if lo == 0 and hi == self.width - 1:
            return self
        if self.op == "const":
            return const(self.attr >> lo & (1 << hi - lo + 1) - 1, hi - lo + 1)
        return Bits("slice", (self,), hi - lo + 1, attr=lo)

    def _resize(self, width: int, op: str) -> Bits:
        if width < self.width:
            raise TypeError(f"cannot extend {self.width} bits to {width}")
        if width == self.width:
            return self
        if self.op == "const" and op == "zext":
            return const(self.attr, width)
        return Bits(op, (self,), width)

    def zext(self, width: int) -> Bits:
        """Zero-extend to `width` bits."""
        return self._resize(width, "zext")

    def sext(self, width: int) -> Bits:
        """Sign-extend to `width` bits."""
        return self._resize(width, "sext")

    def trunc(self, width: int) -> Bits:
        """The low `width` bits."""
        return self[width - 1 : 0]

    def lanes(self, esize: int) -> Vec:
        """The same bits as elements of `esize` bits, element 0 lowest."""
        return Vec(self, esize)


def _fold(op: str, a: Bits, b: Bits, esize: int) -> Bits:
    """Build `op`, or a constant when both sides are constants (decoding folds many)."""
    if a.op == "const" and b.op == "const" and esize == a.width:
        return const(int(ELEMENTWISE[op].python(a.width, a.attr, b.attr)), a.width)
    return Bits(op, (a, b), a.width, esize)


class Imm:
    """An integer that is known when the instruction is decoded, but differs between instructions of one shape.

    It supports the arithmetic that decoding needs and nothing that would let it decide anything. `bits` computes it from the
    instruction word as a 64-bit two's complement number; `lo` and `hi` bound its value.
    """

    __slots__ = ("bits", "lo", "hi")

    def __init__(self, bits: Bits, lo: int, hi: int) -> None:
        self.bits, self.lo, self.hi = bits, lo, hi

    def __bool__(self) -> bool:
        raise TypeError("an immediate operand cannot decide what an instruction does; name it in const=(...) if it must")

    def __repr__(self) -> str:
        return f"Imm({self.bits!r}, {self.lo}..{self.hi})"

    def _with(self, other: int | Imm, op: str, corner: Callable[[int, int], int]) -> Imm:
        lo, hi, bits = (other.lo, other.hi, other.bits) if isinstance(other, Imm) else (other, other, const(other, 64))
        corners = [corner(x, y) for x in (self.lo, self.hi) for y in (lo, hi)]
        return Imm(Bits(op, (self.bits, bits), 64), min(corners), max(corners))

    def __add__(self, other: int | Imm) -> Imm:
        return self._with(other, "add", lambda a, b: a + b)

    def __sub__(self, other: int | Imm) -> Imm:
        return self._with(other, "sub", lambda a, b: a - b)

    def __rsub__(self, other: int) -> Imm:
        return Imm(const(other, 64), other, other) - self

    def __mul__(self, other: int | Imm) -> Imm:
        return self._with(other, "mul", lambda a, b: a * b)

    def __lshift__(self, count: int) -> Imm:
        return self * (1 << count)

    def __rshift__(self, count: int) -> Imm:
        return Imm(self.bits.asr(count), self.lo >> count, self.hi >> count)

    def __and__(self, mask: int) -> Imm:
        return Imm(self.bits & mask, 0, mask)

    def __or__(self, other: int | Imm) -> Imm:
        top = other.hi if isinstance(other, Imm) else other
        bits = other.bits if isinstance(other, Imm) else const(other, 64)
        return Imm(self.bits | bits, 0, (1 << max(self.hi.bit_length(), top.bit_length())) - 1)

    def __neg__(self) -> Imm:
        return 0 - self

    __radd__, __rmul__ = __add__, __mul__

    def __eq__(self, other: object) -> bool:
        raise TypeError("an immediate operand cannot be compared while an instruction is recorded")

    __hash__ = object.__hash__


Operand = Bits | int | Imm
"""What an operator of `Bits` takes on its other side."""


def const(value: int | Imm, width: int) -> Bits:
    """A constant (reduced modulo 2**width), or an immediate operand read from the predecoded record."""
    if isinstance(value, Imm):
        return Bits("decoded", (value.bits,), width, attr=(value.lo, value.hi))
    return Bits("const", (), width, attr=value & (1 << width) - 1)


def cat(*parts: Bits) -> Bits:
    """Concatenate, most significant part first."""
    if len(parts) == 1:
        return parts[0]
    return Bits("cat", parts, sum(p.width for p in parts))


def select(cond: Bits | Vec, a: Operand | Vec, b: Operand | Vec) -> Any:
    """`a` where `cond` is 1, else `b`. With a `Vec` mask of all-ones and all-zero lanes the choice is made bit by bit."""
    if isinstance(cond, Vec):
        a, b = cond.like(a), cond.like(b)
        return (a & cond) | (b & ~cond)
    if cond.width != 1:
        raise TypeError(f"a condition has one bit, not {cond.width}")
    if isinstance(a, Vec) or isinstance(b, Vec):
        like = a if isinstance(a, Vec) else b
        assert isinstance(like, Vec)
        return Vec(select(cond, like.like(a).bits, like.like(b).bits), like.esize)
    if not isinstance(a, Bits):
        if not isinstance(b, Bits):
            raise TypeError("select needs at least one value of known width")
        a = const(a, b.width)
    b = a._same(b)
    if cond.op == "const":
        return a if cond.attr else b
    return Bits("select", (cond, a, b), a.width)


def call(fn: Any, *args: Operand) -> Any:
    """The result of a pure `@native` function: a `Bits`, or a tuple of them when it returns several values."""
    typed = tuple(a if isinstance(a, Bits) else const(a, p.width) for a, p in zip(args, fn.params, strict=True))
    for a, p in zip(typed, fn.params, strict=True):
        if a.width != p.width:
            raise TypeError(f"{fn.name}: argument of {a.width} bits where {p.width} are expected")
    if not isinstance(fn.ret, tuple):
        return Bits("call", typed, fn.ret.width, attr=fn)
    whole = Bits("call", typed, sum(r.width for r in fn.ret), attr=fn)
    return tuple(Bits("item", (whole,), r.width, attr=k) for k, r in enumerate(fn.ret))


def likely(cond: Bits, quick: Sequence[Bits], slow: Sequence[Bits], rare: bool = True) -> tuple[Bits, ...]:
    """Several values at once: those of `quick` where `cond` is 1, which is nearly always, else those of `slow`.

    Unlike with `select`, `slow` costs nothing where it is not chosen. `quick` and `cond` are always computed. A `rare` choice of
    `slow` may be left to another execution of the instruction.
    """
    for a, b in zip(quick, slow, strict=True):
        if a.width != b.width:
            raise TypeError(f"widths differ: {a.width} and {b.width}")
    whole = Bits("likely", (cond, *quick, *slow), sum(a.width for a in quick), attr=(len(quick), rare))
    return tuple(Bits("item", (whole,), a.width, attr=k) for k, a in enumerate(quick))


def lasting(cond: Bits, inexact: bool = False) -> Bits:
    """`cond`, which once it holds goes on holding while instructions run, except for those that write what it is about by name.

    Whoever compiles many instructions together may test it once and take it for granted where the others are. `inexact`: it is there
    because the host's arithmetic does not say whether it rounded; whoever asks the host afterwards may do without it.
    """
    return Bits("lasting", (cond,), 1, attr=inexact)


def real(op: str, a: Any, *rest: Operand | Vec) -> Any:
    """A floating-point operator of `ops` (a row with `real`) on patterns of 32 or 64 bits, lane by lane for a `Vec`."""
    if isinstance(a, Vec):
        return a._op(op, *rest)
    args = (a, *(a._same(b) for b in rest))
    return Bits(op, args, 1 if ELEMENTWISE[op].compare else a.width, a.width)


def convert(kind: str, a: Any, esize: int) -> Any:
    """A conversion of `ops.CONVERSIONS` to elements of `esize` bits."""
    lanes = a if isinstance(a, Vec) else Vec(a, a.width)
    bits = Bits("convert", (lanes.bits,), len(lanes) * esize, esize, attr=(kind, lanes.esize))
    return Vec(bits, esize) if isinstance(a, Vec) else bits


class Vec:
    """Lanes of one bit vector. Operators work element by element and compile to host SIMD."""

    __slots__ = ("bits", "esize")

    def __init__(self, bits: Bits, esize: int) -> None:
        if bits.width % esize:
            raise TypeError(f"{bits.width} bits do not divide into elements of {esize}")
        self.bits, self.esize = bits, esize

    @staticmethod
    def of(lanes: Iterable[Bits]) -> Vec:
        """Join lanes, lane 0 first (lowest)."""
        parts = list(lanes)
        return Vec(cat(*reversed(parts)), parts[0].width)

    @staticmethod
    def splat(lane: Bits, count: int) -> Vec:
        """`count` copies of one lane."""
        return Vec.of([lane] * count)

    def __bool__(self) -> bool:
        raise TypeError("guest data has no truth value while an instruction is recorded")

    def __len__(self) -> int:
        return self.bits.width // self.esize

    def all(self) -> Bits:
        """Of lanes that are all ones or all zero (a comparison's): one bit, whether all are ones."""
        return Bits("all", (self.bits,), 1, attr=self.esize)

    def __getitem__(self, index: int) -> Bits:
        return self.bits[index * self.esize + self.esize - 1 : index * self.esize]

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def extract(self, index: int | Imm) -> Bits:
        """One lane; `index` may be an immediate operand."""
        return Bits("extract", (self.bits, const(index, 8)), self.esize)

    def insert(self, index: int | Imm, lane: Bits) -> Vec:
        """The same lanes but for one; `index` may be an immediate operand."""
        return Vec(Bits("insert", (self.bits, const(index, 8), lane), self.bits.width, self.esize), self.esize)

    def lookup(self, indexes: Vec) -> Vec:
        """Of 16 bytes, those that 16 other bytes number; 0 where there is no such byte."""
        return Vec(Bits("lookup", (self.bits, indexes.bits), 128, 8), 8)

    def map(self, fn: Callable[[Bits], Bits]) -> Vec:
        """Apply a scalar function to each lane (unrolled)."""
        return Vec.of([fn(lane) for lane in self])

    def like(self, other: Any) -> Vec:
        """`other` as lanes of this shape: a Vec, one lane's worth of Bits, or an int for every lane."""
        if isinstance(other, Vec):
            if other.esize != self.esize or other.bits.width != self.bits.width:
                raise TypeError(f"shapes differ: {len(self)}x{self.esize} and {len(other)}x{other.esize}")
            return other
        if isinstance(other, Bits) and other.width == self.bits.width and other.width != self.esize:
            return Vec(other, self.esize)
        lane = other if isinstance(other, Bits) else const(other, self.esize)
        if isinstance(other, int):
            unit = sum(1 << k * self.esize for k in range(len(self)))
            return Vec(const((other & (1 << self.esize) - 1) * unit, self.bits.width), self.esize)
        return Vec.splat(lane, len(self))

    def _op(self, op: str, *others: Any) -> Vec:
        args = (self.bits, *(self.like(o).bits for o in others))
        return Vec(Bits(op, args, self.bits.width, self.esize), self.esize)

    def __add__(self, o: Any) -> Vec:
        return self._op("add", o)

    def __sub__(self, o: Any) -> Vec:
        return self._op("sub", o)

    def __mul__(self, o: Any) -> Vec:
        return self._op("mul", o)

    def __and__(self, o: Any) -> Vec:
        return self._op("and", o)

    def __or__(self, o: Any) -> Vec:
        return self._op("or", o)

    def __xor__(self, o: Any) -> Vec:
        return self._op("xor", o)

    def __lshift__(self, o: Any) -> Vec:
        return self._op("shl", o)

    def __rshift__(self, o: Any) -> Vec:
        return self._op("lshr", o)

    def asr(self, o: Any) -> Vec:
        return self._op("ashr", o)

    def __invert__(self) -> Vec:
        return Vec(~self.bits, self.esize)

    def __neg__(self) -> Vec:
        return self.like(0) - self

    def umin(self, o: Any) -> Vec:
        return self._op("umin", o)

    def umax(self, o: Any) -> Vec:
        return self._op("umax", o)

    def smin(self, o: Any) -> Vec:
        return self._op("smin", o)

    def smax(self, o: Any) -> Vec:
        return self._op("smax", o)

    def uqadd(self, o: Any) -> Vec:
        """Unsigned saturating sum."""
        return self._op("uqadd", o)

    def uqsub(self, o: Any) -> Vec:
        return self._op("uqsub", o)

    def sqadd(self, o: Any) -> Vec:
        return self._op("sqadd", o)

    def sqsub(self, o: Any) -> Vec:
        return self._op("sqsub", o)

    def clz(self) -> Vec:
        return self._op("clz")

    def popcount(self) -> Vec:
        return self._op("popcount")

    def bitreverse(self) -> Vec:
        return self._op("bitreverse")

    def bswap(self) -> Vec:
        return self._op("bswap") if self.esize > 8 else self

    def __eq__(self, o: Any) -> Vec:  # type: ignore[override]
        return self._op("eq", o)

    def __ne__(self, o: Any) -> Vec:  # type: ignore[override]
        return self._op("ne", o)

    __hash__ = object.__hash__

    def ult(self, o: Any) -> Vec:
        return self._op("ult", o)

    def ule(self, o: Any) -> Vec:
        return self._op("ule", o)

    def slt(self, o: Any) -> Vec:
        return self._op("slt", o)

    def sle(self, o: Any) -> Vec:
        return self._op("sle", o)

    def ugt(self, o: Any) -> Vec:
        return self.like(o).ult(self)

    def uge(self, o: Any) -> Vec:
        return self.like(o).ule(self)

    def sgt(self, o: Any) -> Vec:
        return self.like(o).slt(self)

    def sge(self, o: Any) -> Vec:
        return self.like(o).sle(self)

    def _convert(self, esize: int, op: str) -> Vec:
        if esize == self.esize:
            return self
        return Vec(Bits(op, (self.bits,), len(self) * esize, esize, attr=self.esize), esize)

    def zext(self, esize: int) -> Vec:
        """Zero-extend every lane; the whole grows with it."""
        return self._convert(esize, "vzext")

    def sext(self, esize: int) -> Vec:
        """Sign-extend every lane."""
        return self._convert(esize, "vsext")

    def trunc(self, esize: int) -> Vec:
        """Keep the low bits of every lane."""
        return self._convert(esize, "vtrunc")
