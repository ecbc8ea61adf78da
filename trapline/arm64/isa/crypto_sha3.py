"""SHA-512 (FEAT_SHA512) and SHA-3 (FEAT_SHA3)."""

from __future__ import annotations

from collections.abc import Callable

from trapline.arm64.insn import insn
from trapline.arm64.isa.crypto import halves, set_halves
from trapline.arm64.isa.simd_common import each
from trapline.bits import Bits, Vec, const


def _rotations(x: Bits, *counts: int) -> Bits:
    """The exclusive or of rotations to the right."""
    first, *rest = (x.ror(count) for count in counts)
    for other in rest:
        first = first ^ other
    return first


def _choose(x: Bits, y: Bits, z: Bits) -> Bits:
    return z ^ x & (y ^ z)


def _majority(x: Bits, y: Bits, z: Bits) -> Bits:
    return x & y | (x | y) & z


Pair = tuple[Bits, Bits]
"""A vector as (low, high)."""


def hash_1(d: Pair, n: Pair, m: Pair) -> Pair:
    """SHA512H: the part of two rounds that sigma1 and choose make."""
    high = d[1] + _choose(m[1], n[0], n[1]) + _rotations(m[1], 14, 18, 41)
    total = high + m[0]
    return d[0] + _choose(total, m[1], n[0]) + _rotations(total, 14, 18, 41), high


def hash_2(d: Pair, n: Pair, m: Pair) -> Pair:
    """SHA512H2: the part of two rounds that sigma0 and majority make."""
    high = d[1] + _majority(n[0], m[1], m[0]) + _rotations(m[0], 28, 34, 39)
    return d[0] + _majority(high, m[0], m[1]) + _rotations(high, 28, 34, 39), high


def schedule_1(d: Pair, n: Pair, m: Pair) -> Pair:
    """SHA512SU1: adds sigma1 of the words two back and the words seven back."""
    low, high = (a + b + (_rotations(x, 19, 61) ^ x >> 6) for a, b, x in zip(d, m, n))
    return low, high


@each([("sha512h", "00", hash_1), ("sha512h2", "01", hash_2)], "11001110011 Rm:5 1000 <> Rn:5 Rd:5", asm="$ q{Rd}, q{Rn}, v{Rm}.2d",
      feature="FEAT_SHA512")  # fmt: skip
@each([("sha512su1", "10", schedule_1)], "11001110011 Rm:5 1000 <> Rn:5 Rd:5", asm="$ v{Rd}.2d, v{Rn}.2d, v{Rm}.2d",
      feature="FEAT_SHA512")  # fmt: skip
def sha512_three(cpu, i, function):
    """SHA-512 functions of three vectors."""
    set_halves(cpu, i.Rd, function(halves(cpu, i.Rd), halves(cpu, i.Rn), halves(cpu, i.Rm)))


@insn("1100111011000000100000 Rn:5 Rd:5", asm="sha512su0 v{Rd}.2d, v{Rn}.2d", feature="FEAT_SHA512")
def sha512_schedule(cpu, i):
    """SHA512SU0: each word plus sigma0 of the next one."""
    low, high = halves(cpu, i.Rd)
    following, _ = halves(cpu, i.Rn)
    sums = [word + (_rotations(x, 1, 8) ^ x >> 7) for word, x in ((low, high), (high, following))]
    set_halves(cpu, i.Rd, (sums[0], sums[1]))


@each(
    [("eor3", "00", lambda n, m, a: n ^ m ^ a), ("bcax", "01", lambda n, m, a: n ^ m & ~a)],
    "110011100 <> Rm:5 0 Ra:5 Rn:5 Rd:5",
    asm="$ v{Rd}.16b, v{Rn}.16b, v{Rm}.16b, v{Ra}.16b",
    feature="FEAT_SHA3",
)
def sha3_logical(cpu, i, operation: Callable[[Bits, Bits, Bits], Bits]):
    """three vectors, bit by bit."""
    cpu.set_V(i.Rd, operation(*(cpu.V(r) for r in (i.Rn, i.Rm, i.Ra))))


@insn("11001110011 Rm:5 100011 Rn:5 Rd:5", asm="rax1 v{Rd}.2d, v{Rn}.2d, v{Rm}.2d", feature="FEAT_SHA3")
def rotate_and_xor(cpu, i):
    """RAX1: exclusive or with the second operand rotated left by one."""
    cpu.set_V(i.Rd, Vec.of([n ^ m.ror(63) for n, m in zip(halves(cpu, i.Rn), halves(cpu, i.Rm))]))


@insn(
    "11001110100 Rm:5 imm6:6 Rn:5 Rd:5",
    asm="xar v{Rd}.2d, v{Rn}.2d, v{Rm}.2d, #{imm6}",
    feature="FEAT_SHA3",
)
def xor_and_rotate(cpu, i):
    """XAR: exclusive or, rotated right."""
    cpu.set_V(i.Rd, Vec.of([(n ^ m).ror(const(i.imm6, 64)) for n, m in zip(halves(cpu, i.Rn), halves(cpu, i.Rm))]))
