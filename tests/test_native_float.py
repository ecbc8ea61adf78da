"""Host arithmetic as native intrinsics: the definition in Python against compiled code."""

from __future__ import annotations

import random

import pytest
from fp_cases import random_float, special

from trapline.bits.native import compile_functions, native, u32, u64
from trapline.bits.native_float import float_add, float_div, float_mul, float_muladd, float_sqrt, float_sub


@native
def single(a: u32, b: u32, c: u32) -> tuple[u32, u32, u32, u32, u32, u32]:
    return float_add(a, b), float_sub(a, b), float_mul(a, b), float_div(a, b), float_sqrt(a), float_muladd(a, b, c)


@native
def double(a: u64, b: u64, c: u64) -> tuple[u64, u64, u64, u64, u64, u64]:
    return float_add(a, b), float_sub(a, b), float_mul(a, b), float_div(a, b), float_sqrt(a), float_muladd(a, b, c)


def without_payload(bits: int, width: int) -> int | str:
    """A result as it may be compared: which NaN it is depends on the host."""
    infinity = {32: 0x7F80_0000, 64: 0x7FF0_0000_0000_0000}[width]
    return "NaN" if bits & (1 << width - 1) - 1 > infinity else bits


@pytest.mark.parametrize(("function", "width"), [(single, 32), (double, 64)])
def test_definition_and_compiled_code_agree(function, width):
    compiled = compile_functions([function])[function.name]
    rng = random.Random(width)
    for _ in range(3000):
        operands = [random_float(rng, width) if rng.randrange(4) else rng.choice(special(width)) for _ in range(3)]
        if rng.randrange(3) == 0:  # a sum that nearly cancels
            operands[2] = (function(*operands)[2] + rng.randrange(-2, 3)) % (1 << width) ^ 1 << width - 1
        got = [without_payload(bits, width) for bits in compiled(*operands)]
        assert got == [without_payload(bits, width) for bits in function(*operands)], [hex(v) for v in operands]
