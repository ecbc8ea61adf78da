"""The Chinese standards SM3, a hash (FEAT_SM3), and SM4, a block cipher (FEAT_SM4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.arm64 import crypto_sm4
from trapline.arm64.insn import insn
from trapline.arm64.isa.crypto import halves, set_halves
from trapline.arm64.isa.simd_common import each, element
from trapline.bits import Bits, Vec, call, const


def _left(x: Bits, count: int) -> Bits:
    return x.ror(32 - count)


def _spread(x: Bits, *counts: int) -> Bits:
    """The exclusive or of a word and its rotations to the left."""
    for rotated in [_left(x, count) for count in counts]:
        x = x ^ rotated
    return x


def _words(cpu: Any, register: Any) -> list[Bits]:
    return list(cpu.V(register).lanes(32))


_THREE = "11001110011 Rm:5 1100 <> Rn:5 Rd:5"


@each([("sm3partw1", "00")], _THREE, asm="$ v{Rd}.4s, v{Rn}.4s, v{Rm}.4s", feature="FEAT_SM3")
def sm3_schedule_1(cpu, i):
    """the first half of a message schedule step; the last word needs the first one of the result."""
    d, n, m = (_words(cpu, r) for r in (i.Rd, i.Rn, i.Rm))
    result: list[Bits] = []
    for k in range(4):
        following = m[k + 1] if k < 3 else result[0]
        result.append(_spread(d[k] ^ n[k] ^ _left(following, 15), 15, 23))
    cpu.set_V(i.Rd, Vec.of(result))


@each([("sm3partw2", "01")], _THREE, asm="$ v{Rd}.4s, v{Rn}.4s, v{Rm}.4s", feature="FEAT_SM3")
def sm3_schedule_2(cpu, i):
    """the second half of a message schedule step."""
    d, n, m = (_words(cpu, r) for r in (i.Rd, i.Rn, i.Rm))
    mixed = [a ^ _left(b, 7) for a, b in zip(n, m)]
    result = [a ^ b for a, b in zip(d, mixed)]
    result[3] = result[3] ^ _spread(_left(mixed[0], 15), 15, 23)
    cpu.set_V(i.Rd, Vec.of(result))


@insn("11001110010 Rm:5 0 Ra:5 Rn:5 Rd:5", asm="sm3ss1 v{Rd}.4s, v{Rn}.4s, v{Rm}.4s, v{Ra}.4s", feature="FEAT_SM3")
def sm3_sum(cpu, i):
    """SM3SS1: the sum that both halves of a round use, in the top word."""
    n, m, a = (_words(cpu, r)[3] for r in (i.Rn, i.Rm, i.Ra))
    zero = const(0, 32)
    cpu.set_V(i.Rd, Vec.of([zero, zero, zero, _left(_left(n, 12) + m + a, 7)]))


def _parity(x: Bits, y: Bits, z: Bits) -> Bits:
    return x ^ y ^ z


def _majority(x: Bits, y: Bits, z: Bits) -> Bits:
    return x & y | (x | y) & z


def _choose(x: Bits, y: Bits, z: Bits) -> Bits:
    return z ^ x & (y ^ z)


def first_half(function: Callable[[Bits, Bits, Bits], Bits], d: list[Bits], top: Bits, word: Bits) -> list[Bits]:
    """SM3TT1A, SM3TT1B: the words a to d after a round."""
    total = function(d[3], d[2], d[1]) + d[0] + (top ^ _left(d[3], 12)) + word
    return [d[1], _left(d[2], 9), d[3], total]


def second_half(function: Callable[[Bits, Bits, Bits], Bits], d: list[Bits], top: Bits, word: Bits) -> list[Bits]:
    """SM3TT2A, SM3TT2B: the words e to h after a round."""
    total = function(d[3], d[2], d[1]) + d[0] + top + word
    return [d[1], _left(d[2], 19), d[3], _spread(total, 9, 17)]


@each(
    [
        ("sm3tt1a", "00", first_half, _parity),
        ("sm3tt1b", "01", first_half, _majority),
        ("sm3tt2a", "10", second_half, _parity),
        ("sm3tt2b", "11", second_half, _choose),
    ],
    "11001110010 Rm:5 10 imm2:2 <> Rn:5 Rd:5",
    asm="$ v{Rd}.4s, v{Rn}.4s, v{Rm}.s[{imm2}]",
    feature="FEAT_SM3",
)
def sm3_round(cpu, i, half_round, function):
    """half of a round of SM3, with one word of Rm."""
    top = _words(cpu, i.Rn)[3]
    cpu.set_V(i.Rd, Vec.of(half_round(function, _words(cpu, i.Rd), top, element(cpu, i.Rm, i.imm2, 32))))


@insn("1100111011000000100001 Rn:5 Rd:5", asm="sm4e v{Rd}.4s, v{Rn}.4s", feature="FEAT_SM4")
def sm4_encode(cpu, i):
    """SM4E: four rounds of the cipher."""
    set_halves(cpu, i.Rd, call(crypto_sm4.sm4e, *halves(cpu, i.Rd), *halves(cpu, i.Rn)))


@insn("11001110011 Rm:5 110010 Rn:5 Rd:5", asm="sm4ekey v{Rd}.4s, v{Rn}.4s, v{Rm}.4s", feature="FEAT_SM4")
def sm4_key(cpu, i):
    """SM4EKEY: four rounds of the key schedule."""
    set_halves(cpu, i.Rd, call(crypto_sm4.sm4ekey, *halves(cpu, i.Rn), *halves(cpu, i.Rm)))
