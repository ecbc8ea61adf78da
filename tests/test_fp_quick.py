"""Wherever the host's arithmetic may stand for a floating-point function, it gives that function's result and flags."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fp_cases import integers, random_float, special

from trapline.arm64 import fp, fp_convert, fp_double, fp_quick, fp_single
from trapline.bits import Bits, Vec
from trapline.bits.evaluate import Evaluator

MODULE = {32: fp_single, 64: fp_double}
ARITY = {"fp_sqrt": 1, "fp_muladd": 3}
ANY_MODE = tuple(mode << fp.RMODE_SHIFT | dn for mode in range(4) for dn in (0, fp.DN))
CONTROLS = {
    fp_quick.host: (fp.IXC, fp.IXC | fp.DN),
    fp_quick.tracked: (fp.IXC, fp.IXC | fp.DN),
    fp_quick.nearest: (0, fp.DN, fp.IXC),
    fp_quick.plain: (*ANY_MODE, *(c | fp.IXC for c in ANY_MODE)),
}
"""Values of FPCR (with FPSR.IXC) under which a control condition holds."""

Exact = Callable[..., tuple[int, int]]


def rows() -> Iterator[tuple[str, int, int, fp_quick.Quick, Exact]]:
    """Name, operand width, number of operands, quick way, function of operands and FPCR."""
    for n, module in MODULE.items():
        for name, quick in fp_quick.QUICK.items():
            yield f"{name}_{n}", n, ARITY.get(name, 2), quick, getattr(module, f"{name}_{n}")
        rounded = getattr(module, f"fp_round_int_{n}")
        for mode in fp_quick.INTEGRAL:
            for exact in (0, 1):
                yield (
                    f"round_int_{n}_{mode}_{exact}", n, 1, fp_quick.round_int(mode, exact),
                    lambda a, fpcr, f=rounded, m=mode, e=exact: f(a, m, e, fpcr),
                )  # fmt: skip
        fixed = getattr(module, f"fp_to_fixed_{n}")
        for mode in range(5):
            for size in (32, 64):
                for unsigned in (0, 1):
                    for bits in (0, 1, 17, size) if mode == fp.ROUND_ZERO else (0,):
                        yield (
                            f"to_fixed_{n}_{size}_{mode}_{unsigned}_{bits}", n, 1, fp_quick.to_fixed(size, unsigned, mode, bits),
                            lambda a, fpcr, f=fixed, s=size, u=unsigned, b=bits, m=mode: f(a, s, u, b, m, fpcr),
                        )  # fmt: skip
    yield "widen", 32, 1, fp_quick.WIDEN, fp_convert.fp_convert_32_64
    yield "narrow", 64, 1, fp_quick.NARROW, fp_convert.fp_convert_64_32


ROWS = {name: row for name, *row in rows()}


def evaluate(node: Any, operands: tuple[int, ...]) -> int:
    bits = node.bits if isinstance(node, Vec) else node
    return int(Evaluator(lambda leaf: operands[leaf.attr])(bits))


def operand(rng: random.Random, n: int) -> int:
    return rng.choice(special(n)) if rng.randrange(3) == 0 else random_float(rng, n)


@pytest.mark.parametrize("name", ROWS)
def test_quick_is_exact(name: str) -> None:
    n, arity, quick, exact = ROWS[name]
    rng = random.Random(name)
    leaves = [Bits("input", (), n, attr=k) for k in range(arity)]
    result = quick.operation(*leaves)
    checks = [check(result, *leaves) for check in (quick.check, quick.further) if check is not None]
    used = 0
    for k in range(250):
        operands = tuple(operand(rng, n) for _ in range(arity))
        if arity == 1 and k < len(special(n)):
            operands = (special(n)[k],)
        if arity == 3 and k % 3 == 0:  # sums that nearly cancel
            product = MODULE[n].fp_muladd_64 if n == 64 else MODULE[n].fp_muladd_32
            operands = ((product(0, *operands[1:], 0)[0] + rng.randrange(-2, 3)) % (1 << n) ^ 1 << n - 1, *operands[1:])
        if quick.further is not None and k % 4 == 1:
            operands = (*operands[: k // 4 % arity], rng.randrange(2) << n - 1, *operands[k // 4 % arity + 1 :])
        if not any(evaluate(check, operands) for check in checks):
            continue
        used += 1
        fpcr = rng.choice(CONTROLS[quick.control])
        want, flags = exact(*operands, fpcr)
        known = fp.IXC if quick.control in (fp_quick.host, fp_quick.tracked) else 0
        assert (evaluate(result, operands), 0) == (want, flags & ~known), (hex(fpcr), [hex(v) for v in operands], hex(flags))
    assert used > 30


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("unsigned", [0, 1])
@pytest.mark.parametrize("fraction_bits", [0, 1, 13, 32])
def test_integers_convert_exactly(width: int, size: int, unsigned: int, fraction_bits: int) -> None:
    rng = random.Random(f"{width} {size} {unsigned} {fraction_bits}")
    leaf = Bits("input", (), size, attr=0)
    result, is_exact = fp_quick.from_fixed(width, unsigned, fraction_bits, leaf)
    function = getattr(MODULE[width], f"fixed_to_fp_{width}")
    for value in [v % (1 << size) for v in integers()] + [rng.getrandbits(size) >> rng.randrange(size) for _ in range(200)]:
        extended = value | (-1 << size) % (1 << 64) if not unsigned and value >> size - 1 else value
        exact = is_exact is None or evaluate(is_exact, (value,))
        for fpcr in (*ANY_MODE, fp.FZ) if exact else (fp.IXC,):
            want, flags = function(extended, unsigned, fraction_bits, fpcr)
            assert evaluate(result, (value,)) == want, (hex(value), hex(fpcr))
            assert not exact or flags == 0


@pytest.mark.parametrize("esize", [32, 64])
def test_lanes_are_checked_together(esize: int) -> None:
    rng = random.Random(esize)
    count = 128 // esize
    whole = [Bits("input", (), 128, attr=k) for k in range(3)]
    single = [Bits("input", (), esize, attr=k) for k in range(3)]
    for name, quick in fp_quick.QUICK.items():
        arity = ARITY.get(name, 2)
        vectors, numbers = [v.lanes(esize) for v in whole[:arity]], single[:arity]
        result = quick.operation(*vectors)
        checks = [(check(result, *vectors), check) for check in (quick.check, quick.further) if check is not None]
        for _ in range(40):
            lanes = [[operand(rng, esize) for _ in range(count)] for _ in range(arity)]
            values = tuple(sum(lane << k * esize for k, lane in enumerate(v)) for v in lanes)
            columns = list(zip(*lanes, strict=True))
            one = quick.operation(*numbers)
            for whole_check, check in checks:
                holds = all(evaluate(check(one, *numbers), column) for column in columns)
                assert evaluate(whole_check, values) == holds
            if holds:
                results = [evaluate(one, column) for column in columns]
                results = [-r % (1 << esize) for r in results] if one.width == 1 else results
                assert evaluate(result, values) == sum(r << k * esize for k, r in enumerate(results))


def test_controls() -> None:
    fpcr, fpsr = (Bits("input", (), 64, attr=k) for k in range(2))
    for control, allowed in CONTROLS.items():
        for value in (0, fp.FZ, fp.DN, *ANY_MODE, 1, 2, 4):
            for inexact in (0, fp.IXC):
                want = value not in (fp.FZ, 1, 2, 4) and (value | inexact in allowed or value in allowed)
                assert evaluate(control(fpcr, fpsr), (value, inexact)) == want, (control, hex(value), inexact)
