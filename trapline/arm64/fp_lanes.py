"""The floating-point functions on vectors, lane by lane: for what the host's own vector arithmetic does not answer.

Vectors are u128 with lane 0 lowest; `count` lanes count, the others of the result are zero. The flags are those of all lanes.
`function` is one of fp_single or fp_double, `n` the width of its operands.
"""

from __future__ import annotations

import functools
from typing import Any

from trapline.bits.native import native, u32, u64, u128

WORD = {32: u32, 64: u64}


@functools.cache
def unary(function: Any, n: int) -> Any:
    """`function(a, fpcr)`."""
    word = WORD[n]

    @native(name=f"{function.name}_lanes")
    def lanes(a: u128, count: u32, fpcr: u32) -> tuple[u128, u32]:
        result: u128 = 0
        flags: u32 = 0
        for k in range(count):
            lane, raised = function(word(a >> (k * n)), fpcr)
            result |= u128(lane) << (k * n)
            flags |= raised
        return result, flags

    return lanes


@functools.cache
def binary(function: Any, n: int) -> Any:
    """`function(a, b, fpcr)`."""
    word = WORD[n]

    @native(name=f"{function.name}_lanes")
    def lanes(a: u128, b: u128, count: u32, fpcr: u32) -> tuple[u128, u32]:
        result: u128 = 0
        flags: u32 = 0
        for k in range(count):
            lane, raised = function(word(a >> (k * n)), word(b >> (k * n)), fpcr)
            result |= u128(lane) << (k * n)
            flags |= raised
        return result, flags

    return lanes


@functools.cache
def ternary(function: Any, n: int) -> Any:
    """`function(a, b, c, fpcr)`."""
    word = WORD[n]

    @native(name=f"{function.name}_lanes")
    def lanes(a: u128, b: u128, c: u128, count: u32, fpcr: u32) -> tuple[u128, u32]:
        result: u128 = 0
        flags: u32 = 0
        for k in range(count):
            lane, raised = function(word(a >> (k * n)), word(b >> (k * n)), word(c >> (k * n)), fpcr)
            result |= u128(lane) << (k * n)
            flags |= raised
        return result, flags

    return lanes


@functools.cache
def comparison(function: Any, n: int) -> Any:
    """`function(a, b, fpcr)` with a truth value for a result: lanes of all ones where it holds."""
    word = WORD[n]

    @native(name=f"{function.name}_lanes")
    def lanes(a: u128, b: u128, count: u32, fpcr: u32) -> tuple[u128, u32]:
        result: u128 = 0
        flags: u32 = 0
        for k in range(count):
            holds, raised = function(word(a >> (k * n)), word(b >> (k * n)), fpcr)
            result |= u128(0 - word(holds)) << (k * n)
            flags |= raised
        return result, flags

    return lanes


def of(function: Any, n: int, operands: int) -> Any:
    """The function of as many operands, for results as wide or truth values; None if there is none."""
    width = function.ret[0].width
    if n not in WORD or width not in (1, n):
        return None
    if width == 1:
        return comparison(function, n)
    return (unary, binary, ternary)[operands - 1](function, n)
