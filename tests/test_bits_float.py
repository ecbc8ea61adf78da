"""Floating-point operators and `likely` of bit-vector expressions: the evaluator against compiled code."""

from __future__ import annotations

import ctypes
import random

import pytest
from expressions import Inputs
from fp_cases import random_float, special

from trapline.bits import Bits, Vec, call, cat, const, convert, likely, real
from trapline.bits.evaluate import Evaluator
from trapline.bits.native import native, u64
from trapline.bits.ops import CONVERSIONS, ELEMENTWISE

OPERATORS = [name for name, op in ELEMENTWISE.items() if op.real]
ARITY = {"fsqrt": 1, "froundeven": 1, "ffloor": 1, "fceil": 1, "ftrunc": 1, "fround": 1, "fmuladd": 3}
INFINITY = {32: 0x7F80_0000, 64: 0x7FF0_0000_0000_0000}


def lanes_of(value: int, esize: int, width: int) -> list[int | str]:
    """Elements as they may be compared: which NaN a result is depends on the host."""
    lanes = [value >> k & (1 << esize) - 1 for k in range(0, width, esize)]
    return ["NaN" if esize in INFINITY and lane & (1 << esize - 1) - 1 > INFINITY[esize] else lane for lane in lanes]


def random_inputs(rng: random.Random, esize: int) -> list[int]:
    def lane() -> int:
        return rng.choice(special(esize)) if rng.randrange(4) == 0 else random_float(rng, esize)

    return [sum(lane() << k for k in range(0, 128, esize)) for _ in range(3)]


@pytest.mark.parametrize("esize", [32, 64])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_operators(esize: int, width: int) -> None:
    if width < esize:
        return
    inputs, rng = Inputs(), random.Random(f"{esize} {width}")
    whole = inputs.low(width)
    operands = [v.lanes(esize) for v in whole] if width > esize else whole
    nodes = []
    for name in OPERATORS:
        result = real(name, *operands[: ARITY.get(name, 2)])
        nodes.append(result.bits if isinstance(result, Vec) else result)
    run = inputs.compile(nodes)
    for _ in range(200):
        values = random_inputs(rng, esize)
        for k, (name, node) in enumerate(zip(OPERATORS, nodes, strict=True)):
            if name in ("fmax", "fmin") and any("NaN" in lanes_of(v, esize, width) for v in values[:2]):
                continue
            unit = esize if node.width == width else node.width
            want, got = inputs.evaluate(node, values), run(k, values)
            assert lanes_of(got, unit, node.width) == lanes_of(want, unit, node.width), (name, [hex(v) for v in values])


SIZES = {
    "fpext": [(32, 64)],
    "fptrunc": [(64, 32)],
    "sitofp": [(32, 32), (32, 64), (64, 32), (64, 64)],
    "uitofp": [(32, 32), (32, 64), (64, 32), (64, 64)],
    "fptosi": [(32, 32), (32, 64), (64, 32), (64, 64)],
    "fptoui": [(32, 32), (32, 64), (64, 32), (64, 64)],
}


def fits(kind: str, value: int, source: int, target: int) -> bool:
    """Whether the result of a conversion is defined."""
    if not kind.startswith("fpto"):
        return True
    number = CONVERSIONS["fpext"](value, source, 64)
    real_value = ctypes.c_double.from_buffer(ctypes.c_uint64(number)).value
    low, high = (-(2 ** (target - 1)), 2 ** (target - 1)) if kind == "fptosi" else (-1, 2**target)
    return low < real_value < high


@pytest.mark.parametrize("kind", CONVERSIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_conversions(kind: str, count: int) -> None:
    inputs, rng = Inputs(), random.Random(f"{kind} {count}")
    cases = SIZES[kind]
    nodes = []
    for source, target in cases:
        operand = inputs.low(source * count)[0]
        result = convert(kind, operand.lanes(source) if count > 1 else operand, target)
        nodes.append(result.bits if isinstance(result, Vec) else result)
    run = inputs.compile(nodes)
    for _ in range(300):
        for k, (source, target) in enumerate(cases):
            values = random_inputs(rng, source)
            if rng.randrange(3) == 0 or "ito" in kind:
                values[0] = rng.getrandbits(128) >> rng.randrange(64)
            given = [values[0] >> s & (1 << source) - 1 for s in range(0, source * count, source)]
            if all(fits(kind, x, source, target) for x in given):
                want, got = inputs.evaluate(nodes[k], values), run(k, values)
                assert lanes_of(got, target, target * count) == lanes_of(want, target, target * count), (kind, source, target, given)


@native
def slowly(a: u64, b: u64) -> tuple[u64, u64]:
    return a * b, a ^ b


def test_likely_computes_one_side() -> None:
    inputs = Inputs()
    a, b, c = inputs.low(64)
    wide, other = inputs.leaves[0].lanes(32), inputs.leaves[1].lanes(32)
    product, mixed = call(slowly, a, b)
    ok = a.ult(b)
    x, y, z, w = likely(
        ok,
        (real("fadd", a, b), a + c, real("fmul", wide, other).bits, const(0, 1)),
        (product, mixed, (wide + other).bits, const(1, 1)),
    )
    # What the unlikely side used may be used after it, and one choice may feed the next.
    p, q = likely(c.ult(a), (real("fsub", x, b), y), (product + x, mixed - y))
    nodes = [x, y, z, w, p, q, cat(x, q ^ product), (z.lanes(32) + wide).bits, real("fmul", x, p) ^ mixed]
    run = inputs.compile(nodes)
    rng = random.Random(5)
    for _ in range(300):
        values = [rng.getrandbits(128) for _ in range(3)]
        values = [v & ~(0x4000_0000 * 0x1_0000_0001_0000_0001_0000_0001) for v in values]  # no NaN
        for k, node in enumerate(nodes):
            assert run(k, values) == inputs.evaluate(node, values), (k, [hex(v) for v in values])


def test_likely_evaluates_one_side() -> None:
    def leaf(node: Bits) -> int:
        assert node.attr == 0, "the other side was evaluated"
        return 7

    taken, other = Bits("input", (), 8, attr=0), Bits("input", (), 8, attr=1)
    assert Evaluator(leaf)(likely(const(1, 1), (taken,), (other,))[0]) == 7
    assert Evaluator(leaf)(likely(const(0, 1), (other,), (taken,))[0]) == 7


def test_widths_must_agree() -> None:
    with pytest.raises(TypeError):
        likely(const(1, 1), (const(0, 8),), (const(0, 16),))
