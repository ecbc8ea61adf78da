"""The floating-point functions against user-mode QEMU, SoftFloat and each other's two executions, bit for bit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import arm_oracle
import fp_cases
import pytest
from fp_cases import OPERATIONS, Operation

from trapline.arm64 import fp
from trapline.bits.native import compile_functions

FUNCTIONS = {operation.function.name: operation.function for operation in OPERATIONS.values()}
FAMILIES = {name: [o for o in OPERATIONS.values() if o.function.name == name] for name in FUNCTIONS}
Case = tuple[Operation, int, tuple[int, ...]]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Callable[..., Any]]:
    """All functions through LLVM."""
    return compile_functions(list(FUNCTIONS.values()), optimize=2)


def special_cases(rng: random.Random, operation: Operation, limit: int) -> list[Case]:
    """All combinations of special operands and FPCR, or `limit` of them."""
    width = operation.operands[0]
    values = [v % (1 << width) for v in fp_cases.integers()] if operation.integer else fp_cases.special(width)
    controls = fp_cases.controls(operation)
    count = len(operation.operands)
    if len(values) ** count * len(controls) > limit:
        return [(operation, rng.choice(controls), tuple(rng.choices(values, k=count))) for _ in range(limit)]
    return [(operation, fpcr, operands) for operands in itertools.product(values, repeat=count) for fpcr in controls]


def random_cases(rng: random.Random, operation: Operation, count: int) -> list[Case]:
    """Random operands with random FPCR."""
    return [(operation, rng.choice(fp_cases.controls(operation)), fp_cases.random_operands(rng, operation)) for _ in range(count)]


def check(cases: list[Case], functions: dict[str, Callable[..., Any]]) -> None:
    """Compare with the oracle and show the first differences."""
    oracle = arm_oracle.oracle_for(tuple((o.name, o.text) for o in OPERATIONS.values()))
    answers = oracle.run((operation.name, fpcr & ~fp.IXC, operands) for operation, fpcr, operands in cases)
    wrong = []
    for (operation, fpcr, operands), wanted in zip(cases, answers, strict=True):
        known = fpcr & fp.IXC
        got = operation.call(functions[operation.function.name], operands, fpcr)
        if (got[0], got[1] | known) != (wanted[0], wanted[1] | known):
            wrong.append(
                f"{operation.name} fpcr={fpcr:#x} {[f'{v:#x}' for v in operands]}: "
                f"got {got[0]:#x}, {got[1]:#x}, not {wanted[0]:#x}, {wanted[1]:#x}"
            )
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:10])


@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_agrees_with_the_emulator(name: str, compiled: dict[str, Callable[..., Any]]) -> None:
    rng = random.Random(name)
    cases = [case for o in FAMILIES[name] for case in special_cases(rng, o, 250) + random_cases(rng, o, 80)]
    check(cases, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_agrees_with_the_emulator_on_many(name: str, compiled: dict[str, Callable[..., Any]]) -> None:
    rng = random.Random(name)
    each = 5_000 // len(FAMILIES[name])
    check([case for o in FAMILIES[name] for case in special_cases(rng, o, each) + random_cases(rng, o, each)], compiled)


UNARY_HALF = [operation for operation in OPERATIONS.values() if operation.operands == (16,)]


@pytest.mark.slow
@pytest.mark.parametrize("operation", UNARY_HALF, ids=lambda operation: operation.name)
def test_every_half_precision_number(operation: Operation, compiled: dict[str, Callable[..., Any]]) -> None:
    """All 65,536 operands, the control words taking turns."""
    controls = fp_cases.controls(operation)
    step = len(operation.name) | 1
    check([(operation, controls[(a * step + (a >> 7)) % len(controls)], (a,)) for a in range(1 << 16)], compiled)


def test_the_definition_agrees_with_the_emulator() -> None:
    rng = random.Random(3)
    check([case for o in OPERATIONS.values() for case in special_cases(rng, o, 20) + random_cases(rng, o, 10)], FUNCTIONS)


SOFTFLOAT_ROUNDING = {fp.ROUND_TIEEVEN: 0, fp.ROUND_POSINF: 3, fp.ROUND_NEGINF: 2, fp.ROUND_ZERO: 1}
SOFTFLOAT_FLAGS = {1: fp.IXC, 2: fp.UFC, 4: fp.OFC, 8: fp.DZC, 16: fp.IOC}


@pytest.mark.parametrize("n", [16, 32, 64])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "sqrt", "muladd"])
def test_arithmetic_agrees_with_softfloat(n: int, name: str, compiled: dict[str, Callable[..., Any]]) -> None:
    """IEEE 754 proper, for results that are numbers: NaNs differ between architectures."""
    softfloat = pytest.importorskip("softfloatpy")
    softfloat.set_tininess_mode(softfloat.TininessMode.BEFORE_ROUNDING)
    kind = getattr(softfloat, f"Float{n}")
    reference = getattr(softfloat, f"f{n}_{'mul_add' if name == 'muladd' else name}")
    operation, rng = OPERATIONS[f"fp_{name}_{n}"], random.Random(n)
    for _ in range(500):
        operands, mode = fp_cases.random_operands(rng, operation), rng.randrange(4)
        values = [kind.from_bytes(v.to_bytes(n // 8, "big")) for v in operands]
        softfloat.set_rounding_mode(softfloat.RoundingMode(SOFTFLOAT_ROUNDING[mode]))
        softfloat.set_exception_flags(0)
        wanted = reference(*(values[1:] + values[:1] if name == "muladd" else values))
        flags = sum(bit for flag, bit in SOFTFLOAT_FLAGS.items() if softfloat.test_exception_flags(softfloat.ExceptionFlag(flag)))
        got, got_flags = compiled[f"fp_{name}_{n}"](*operands, mode << fp.RMODE_SHIFT)
        assert got_flags == flags, [hex(v) for v in operands]
        if not softfloat_is_nan(softfloat, n, wanted):
            assert got == int.from_bytes(wanted.to_bytes(), "big"), [hex(v) for v in operands]


@pytest.mark.parametrize("n", [32, 64])
def test_multiply_add_knows_what_is_exact(n: int, compiled: dict[str, Callable[..., Any]]) -> None:
    """Few significant bits, exponents near each other and at the ends: sums that are exact, or miss it by little."""
    softfloat = pytest.importorskip("softfloatpy")
    kind, reference = getattr(softfloat, f"Float{n}"), getattr(softfloat, f"f{n}_mul_add")
    softfloat.set_rounding_mode(softfloat.RoundingMode(0))
    softfloat.set_tininess_mode(softfloat.TininessMode.BEFORE_ROUNDING)
    fraction, top = (23, 255) if n == 32 else (52, 2047)
    rng, exact = random.Random(f"exact {n}"), 0

    def number(centre: int) -> int:
        exponent = min(max(centre + rng.randrange(-fraction - 3, fraction + 4), 0), top - 1)
        bits = rng.getrandbits(fraction) & -1 << fraction - rng.choice((0, 1, 3, fraction // 2, fraction))
        return rng.getrandbits(1) << n - 1 | exponent << fraction | bits & (1 << fraction) - 1

    for _ in range(6000):
        centre = rng.choice((top // 2, top // 2, 3 * fraction, 1, top - 1))
        operands = number(centre), number((centre + top // 2) // 2), number((centre + top // 2) // 2)
        values = [kind.from_bytes(v.to_bytes(n // 8, "big")) for v in operands]
        softfloat.set_exception_flags(0)
        wanted = int.from_bytes(reference(values[1], values[2], values[0]).to_bytes(), "big")
        flags = sum(bit for flag, bit in SOFTFLOAT_FLAGS.items() if softfloat.test_exception_flags(softfloat.ExceptionFlag(flag)))
        assert compiled[f"fp_muladd_{n}"](*operands, 0) == (wanted, flags), [hex(v) for v in operands]
        exact += not flags
    assert 1000 < exact < 5500


def softfloat_is_nan(softfloat: Any, n: int, value: Any) -> bool:
    """Whether a SoftFloat value is a NaN."""
    return bool(getattr(softfloat, f"f{n}_is_nan")(value))


ONE, TWO, DENORMAL = 0x3FF0_0000_0000_0000, 0x4000_0000_0000_0000, 1
QUIET, SIGNALLING, DEFAULT = 0x7FF8_0000_0000_0007, 0xFFF0_0000_0000_0005, 0x7FF8_0000_0000_0000
INFINITY, NEGATIVE_ZERO = 0x7FF0_0000_0000_0000, 1 << 63


@pytest.mark.parametrize(
    ("name", "operands", "fpcr", "result", "flags"),
    [
        ("fp_add_64", (ONE, ONE), 0, TWO, 0),
        ("fp_add_64", (ONE, DENORMAL), 0, ONE, fp.IXC),
        ("fp_add_64", (ONE, DENORMAL), fp.FZ, ONE, fp.IDC),
        ("fp_add_64", (ONE, DENORMAL), fp.ROUND_POSINF << fp.RMODE_SHIFT, ONE + 1, fp.IXC),
        ("fp_sub_64", (ONE, ONE), fp.ROUND_NEGINF << fp.RMODE_SHIFT, NEGATIVE_ZERO, 0),
        ("fp_add_64", (QUIET, SIGNALLING), 0, SIGNALLING | 1 << 51, fp.IOC),
        ("fp_add_64", (QUIET, SIGNALLING), fp.DN, DEFAULT, fp.IOC),
        ("fp_sub_64", (ONE, QUIET), 0, QUIET, 0),
        ("fp_muladd_64", (QUIET, 0, INFINITY), 0, DEFAULT, fp.IOC),
        ("fp_mulx_64", (INFINITY, NEGATIVE_ZERO), 0, TWO | 1 << 63, 0),
        ("fp_div_64", (ONE, NEGATIVE_ZERO), 0, INFINITY | 1 << 63, fp.DZC),
        ("fp_mul_64", (1 << 52, ONE - 1), 0, 1 << 52, fp.UFC | fp.IXC),  # tiny before rounding, not after
        ("fp_mul_64", (1 << 52, ONE - 1), fp.FZ, 0, fp.UFC),
        ("fp_maxnm_64", (QUIET, ONE), 0, ONE, 0),
        ("fp_max_64", (0, NEGATIVE_ZERO), 0, 0, 0),
        ("fp_to_fixed_js", (0,), 0, 1 << 32, 0),
        ("fp_to_fixed_js", (NEGATIVE_ZERO,), 0, 0, 0),
        ("fp_to_fixed_js", (DENORMAL,), fp.FZ, 0, fp.IDC),
        ("fp_to_fixed_js", (DENORMAL,), 0, 0, fp.IXC),
        ("fp_to_fixed_js", (0x41EF_FFFF_FFE0_0000,), 0, 0xFFFF_FFFF, fp.IOC),
        ("fp_to_fixed_js", (INFINITY,), 0, 0, fp.IOC),
    ],
)
def test_rules_of_the_manual(name: str, operands: tuple[int, ...], fpcr: int, result: int, flags: int) -> None:
    assert FUNCTIONS[name](*operands, fpcr) == (result, flags)
