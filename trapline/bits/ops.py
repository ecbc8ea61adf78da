"""The operators of bit-vector expressions, one row each.

A row gives the meaning on Python integers (the definition) and how LLVM spells it. Every operator of `ELEMENTWISE` works on
one value of any width, or lane by lane when its node's element size is smaller than its width. Values are unsigned integers
below 2**width; a signed operator reads them as two's complement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trapline.bits import floating


def signed(value: int, width: int) -> int:
    """`value` (0 <= value < 2**width) read as a two's complement number."""
    return value - (1 << width) if value >> (width - 1) & 1 else value


def _udiv(w: int, a: int, b: int) -> int:
    return a // b if b else 0


def _sdiv(w: int, a: int, b: int) -> int:
    if not b:
        return 0
    x, y = signed(a, w), signed(b, w)
    quotient = abs(x) // abs(y)
    return quotient if (x < 0) == (y < 0) else -quotient


def _clamp(w: int, value: int) -> int:
    return max(-(1 << w - 1), min((1 << w - 1) - 1, value))


def _ror(w: int, a: int, n: int) -> int:
    n %= w
    return (a >> n | a << (w - n)) & ((1 << w) - 1)


@dataclass(frozen=True, slots=True)
class Op:
    """An elementwise operator.

    `python(width, *args)` may return any integer; it is reduced modulo 2**width. `llvm` is a template over `{t}` (the type) and
    `{0}`, `{1}` (operands); `compare` marks operators whose result is a truth value: one bit for a scalar, an all-ones or
    all-zero element for lanes. `real` operators read elements of 32 and 64 bits as floating-point numbers (see `floating`).
    """

    python: Callable[..., int]
    llvm: str
    compare: bool = False
    real: bool = False


def _intrinsic(name: str, arity: int = 2, extra: str = "") -> str:
    args = ", ".join(f"{{t}} {{{k}}}" for k in range(arity))
    return f"call {{t}} @llvm.{name}.{{m}}({args}{extra})"


def _real(meaning: Callable[..., int], llvm: str, compare: bool = False) -> Op:
    return Op(lambda w, *args: meaning(*args, w), llvm, compare, real=True)


def _real_compare(holds: Callable[[float, float], bool], predicate: str) -> Op:
    return _real(floating.comparison(holds), f"fcmp {predicate} {{t}} {{0}}, {{1}}", compare=True)


ELEMENTWISE: dict[str, Op] = {
    "add": Op(lambda w, a, b: a + b, "add {t} {0}, {1}"),
    "sub": Op(lambda w, a, b: a - b, "sub {t} {0}, {1}"),
    "mul": Op(lambda w, a, b: a * b, "mul {t} {0}, {1}"),
    "and": Op(lambda w, a, b: a & b, "and {t} {0}, {1}"),
    "or": Op(lambda w, a, b: a | b, "or {t} {0}, {1}"),
    "xor": Op(lambda w, a, b: a ^ b, "xor {t} {0}, {1}"),
    "udiv": Op(_udiv, ""),
    "sdiv": Op(_sdiv, ""),
    "shl": Op(lambda w, a, n: a << n if n < w else 0, "shl {t} {0}, {1}"),
    "lshr": Op(lambda w, a, n: a >> n if n < w else 0, "lshr {t} {0}, {1}"),
    "ashr": Op(lambda w, a, n: signed(a, w) >> min(n, w - 1), "ashr {t} {0}, {1}"),
    "ror": Op(_ror, "call {t} @llvm.fshr.{m}({t} {0}, {t} {0}, {t} {1})"),
    "umin": Op(lambda w, a, b: min(a, b), _intrinsic("umin")),
    "umax": Op(lambda w, a, b: max(a, b), _intrinsic("umax")),
    "smin": Op(lambda w, a, b: min(signed(a, w), signed(b, w)), _intrinsic("smin")),
    "smax": Op(lambda w, a, b: max(signed(a, w), signed(b, w)), _intrinsic("smax")),
    "uqadd": Op(lambda w, a, b: min(a + b, (1 << w) - 1), _intrinsic("uadd.sat")),
    "uqsub": Op(lambda w, a, b: max(a - b, 0), _intrinsic("usub.sat")),
    "sqadd": Op(lambda w, a, b: _clamp(w, signed(a, w) + signed(b, w)), _intrinsic("sadd.sat")),
    "sqsub": Op(lambda w, a, b: _clamp(w, signed(a, w) - signed(b, w)), _intrinsic("ssub.sat")),
    "clz": Op(lambda w, a: w - a.bit_length(), _intrinsic("ctlz", 1, ", i1 false")),
    "popcount": Op(lambda w, a: a.bit_count(), _intrinsic("ctpop", 1)),
    "bitreverse": Op(lambda w, a: int(f"{a:0{w}b}"[::-1], 2), _intrinsic("bitreverse", 1)),
    "bswap": Op(lambda w, a: int.from_bytes(a.to_bytes(w // 8, "little"), "big"), _intrinsic("bswap", 1)),
    "eq": Op(lambda w, a, b: a == b, "icmp eq {t} {0}, {1}", compare=True),
    "ne": Op(lambda w, a, b: a != b, "icmp ne {t} {0}, {1}", compare=True),
    "ult": Op(lambda w, a, b: a < b, "icmp ult {t} {0}, {1}", compare=True),
    "ule": Op(lambda w, a, b: a <= b, "icmp ule {t} {0}, {1}", compare=True),
    "slt": Op(lambda w, a, b: signed(a, w) < signed(b, w), "icmp slt {t} {0}, {1}", compare=True),
    "sle": Op(lambda w, a, b: signed(a, w) <= signed(b, w), "icmp sle {t} {0}, {1}", compare=True),
    "fadd": _real(floating.add, "fadd {t} {0}, {1}"),
    "fsub": _real(floating.sub, "fsub {t} {0}, {1}"),
    "fmul": _real(floating.mul, "fmul {t} {0}, {1}"),
    "fdiv": _real(floating.div, "fdiv {t} {0}, {1}"),
    "fsqrt": _real(floating.sqrt, _intrinsic("sqrt", 1)),
    "fmuladd": _real(floating.muladd, _intrinsic("fma", 3)),
    "fmax": _real(floating.maximum, _intrinsic("maximum").replace("call", "call nnan", 1)),
    "fmin": _real(floating.minimum, _intrinsic("minimum").replace("call", "call nnan", 1)),
    "froundeven": _real(floating.round_even, _intrinsic("roundeven", 1)),
    "ffloor": _real(floating.floor, _intrinsic("floor", 1)),
    "fceil": _real(floating.ceil, _intrinsic("ceil", 1)),
    "ftrunc": _real(floating.truncate, _intrinsic("trunc", 1)),
    "fround": _real(floating.round_away, _intrinsic("round", 1)),
    "fueq": _real(floating.is_equal_or_unordered, "fcmp ueq {t} {0}, {1}", compare=True),
    "feq": _real_compare(lambda a, b: a == b, "oeq"),
    "flt": _real_compare(lambda a, b: a < b, "olt"),
    "fle": _real_compare(lambda a, b: a <= b, "ole"),
    "ford": _real(floating.is_ordered, "fcmp ord {t} {0}, {1}", compare=True),
}

CONVERSIONS: dict[str, Callable[[int, int, int], int]] = {
    "fpext": floating.resize,
    "fptrunc": floating.resize,
    "sitofp": floating.from_signed,
    "uitofp": floating.from_unsigned,
    "fptosi": floating.to_integer,
    "fptoui": floating.to_integer,
}
"""Kinds of `convert` nodes: meaning by element, source and target element size. What does not fit is some integer."""

SHIFTS = frozenset({"shl", "lshr", "ashr"})
"""Operators whose LLVM form needs a guard for counts of the width and more."""

STRUCTURAL = frozenset({
    "const", "slice", "cat", "zext", "sext", "select", "vzext", "vsext", "vtrunc", "all", "extract", "insert", "lookup", "convert",
    "lasting", "likely", "call", "item",
})  # fmt: skip
"""Operators that evaluators handle themselves: they change widths or take no elementwise operands."""

LEAVES = frozenset({"decoded", "xreg", "vreg", "word", "pc", "field", "result", "old"})
"""Reads of something outside the expression: decoded fields, registers, CPU state, results of effects."""
