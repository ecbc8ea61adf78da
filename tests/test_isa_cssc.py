"""FEAT_CSSC, which no oracle here executes: the walker against Python's own arithmetic."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from trapline.arm64.asm import assemble
from trapline.arm64.decode import Decoder
from trapline.arm64.insn import A64
from trapline.arm64.isa import load_a64
from trapline.arm64.regs import TABLE
from trapline.arm64.state import CpuState
from trapline.arm64.walker import Walker

load_a64()
DECODER = Decoder(A64)


def signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> width - 1 else value


ONE = {
    "abs": lambda a, w: abs(signed(a, w)),
    "cnt": lambda a, w: bin(a).count("1"),
    "ctz": lambda a, w: w if a == 0 else (a & -a).bit_length() - 1,
}
TWO = {
    "smax": lambda a, b, w: max(a, b, key=lambda v: signed(v, w)),
    "smin": lambda a, b, w: min(a, b, key=lambda v: signed(v, w)),
    "umax": lambda a, b, w: max(a, b),
    "umin": lambda a, b, w: min(a, b),
}


def execute(text: str, *registers: int) -> int:
    state = CpuState()
    state.el = 1
    for number, value in enumerate(registers, 1):
        state.x[number] = value
    word = assemble(text)
    instruction = DECODER.decode(word)
    assert instruction is not None and instruction.feature == "FEAT_CSSC"
    Walker(state, None, None).run(instruction.record_word(word, lambda name: TABLE[name].slot))  # type: ignore[arg-type]
    return int(state.x[0])


def values(width: int) -> list[int]:
    rng = random.Random(width)
    top = (1 << width) - 1
    return [0, 1, 2, top, top >> 1, (top >> 1) + 1, 127, top - 127, *(rng.getrandbits(width) >> rng.randrange(width) for _ in range(40))]


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("name", ONE)
def test_one_operand(name: str, width: int) -> None:
    r = "w" if width == 32 else "x"
    for a in values(width):
        assert execute(f"{name} {r}0, {r}1", a | 0xABCD << width & 2**64 - 1) == ONE[name](a, width) & (1 << width) - 1


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("name", TWO)
def test_two_operands(name: str, width: int) -> None:
    r = "w" if width == 32 else "x"
    operation: Callable[[int, int, int], int] = TWO[name]
    for a in values(width):
        for b in values(width)[::4]:
            assert execute(f"{name} {r}0, {r}1, {r}2", a, b) == operation(a, b, width)
        for immediate in (0, 1, 127, 255) if name[0] == "u" else (0, 1, 127, -1, -128):
            expected = operation(a, immediate & (1 << width) - 1, width)
            assert execute(f"{name} {r}0, {r}1, #{immediate}", a) == expected
