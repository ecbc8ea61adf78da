"""Operand values worth trying: corners of integers and of floating point, and noise between them."""

from __future__ import annotations

import random

ONES = (1 << 64) - 1

INTEGERS = (
    0, 1, 2, 7, 8, 31, 32, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 32,
    (1 << 63) - 1, 1 << 63, ONES - 1, ONES, 0x5555_5555_5555_5555, 0xFFFF_FFFF_0000_0000,
)  # fmt: skip

HALVES = (
    0, 0x8000, 1, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x3C01, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0xFDFF, 0x7E00, 0xFE55,
)  # fmt: skip
SINGLES = (
    0, 1 << 31, 1, 0x8000_0001, 0x007F_FFFF, 0x0080_0000, 0x3F80_0000, 0xBF80_0000, 0x3F80_0001, 0x3F7F_FFFF, 0x3F00_0000,
    0x4000_0000, 0x4F00_0000, 0xCF00_0000, 0x4F80_0000, 0x5F00_0000, 0x5F80_0000, 0x4EFF_FFFF, 0x7F7F_FFFF, 0xFF7F_FFFF,
    0x7F80_0000, 0xFF80_0000, 0x7F80_0001, 0xFFA0_0000, 0x7FC0_0000, 0xFFC1_2345, 0x3880_0000, 0x3300_0000, 0x477F_F000,
)  # fmt: skip
DOUBLES = (
    0, 1 << 63, 1, (1 << 63) + 1, 0x000F_FFFF_FFFF_FFFF, 0x0010_0000_0000_0000, 0x3FF0_0000_0000_0000, 0xBFF0_0000_0000_0000,
    0x3FF0_0000_0000_0001, 0x3FE0_0000_0000_0000, 0x4000_0000_0000_0000, 0x41E0_0000_0000_0000, 0xC1E0_0000_0000_0000,
    0x41DF_FFFF_FFC0_0000, 0x43E0_0000_0000_0000, 0xC3E0_0000_0000_0000, 0x43F0_0000_0000_0000, 0x7FEF_FFFF_FFFF_FFFF,
    0x7FF0_0000_0000_0000, 0xFFF0_0000_0000_0000, 0x7FF0_0000_0000_0001, 0xFFF4_0000_0000_0000, 0x7FF8_0000_0000_0000,
    0xFFF8_1234_5678_9ABC, 0x3690_0000_0000_0000, 0x3810_0000_0000_0000, 0x47EF_FFFF_F000_0000, 0x380F_FFFF_FFFF_FFFF,
)  # fmt: skip

AHP, DN, FZ, FZ16, RMODE_SHIFT = 1 << 26, 1 << 25, 1 << 24, 1 << 19, 22
FPSR_BITS = 0x0800_009F


def integer(rng: random.Random) -> int:
    """64 bits for a general register."""
    choice = rng.randrange(8)
    if choice < 2:
        return rng.choice(INTEGERS)
    if choice == 2:
        return rng.getrandbits(8)
    if choice == 3:
        return rng.choice(INTEGERS) ^ 1 << rng.randrange(64)
    if choice == 4:
        return rng.getrandbits(32)
    return rng.getrandbits(64)


def _near(rng: random.Random, width: int, exponent: int, mantissa: int, bias: int) -> int:
    """A number of moderate size: sums and products of such neither vanish nor overflow."""
    sign = rng.getrandbits(1) << width - 1
    fraction = rng.getrandbits(mantissa) & -1 << rng.randrange(mantissa)
    return sign | (bias + rng.randrange(-12, 12) & (1 << exponent) - 1) << mantissa | fraction


def vector(rng: random.Random) -> int:
    """128 bits for a SIMD&FP register: lanes of one kind, mixed with noise."""
    kind = rng.randrange(10)
    if kind == 0:
        return sum(rng.choice(DOUBLES) << k for k in range(0, 128, 64))
    if kind == 1:
        return sum(rng.choice(SINGLES) << k for k in range(0, 128, 32))
    if kind == 2:
        return sum(rng.choice(HALVES) << k for k in range(0, 128, 16))
    if kind == 3:
        return sum(_near(rng, 64, 11, 52, 1023) << k for k in range(0, 128, 64))
    if kind == 4:
        return sum(_near(rng, 32, 8, 23, 127) << k for k in range(0, 128, 32))
    if kind == 5:
        return sum(_near(rng, 16, 5, 10, 15) << k for k in range(0, 128, 16))
    if kind == 6:
        return integer(rng) | integer(rng) << 64
    if kind == 7:
        return sum(rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0xC0, 3)) << k for k in range(0, 128, 8))
    if kind == 8:  # BFloat16
        return sum((rng.choice(SINGLES) if rng.getrandbits(1) else _near(rng, 32, 8, 23, 127)) >> 16 << k for k in range(0, 128, 16))
    return rng.getrandbits(128)


def fpcr(rng: random.Random) -> int:
    """Rounding mode, flush to zero (of half precision apart), default NaN, alternative half precision."""
    value = rng.randrange(4) << RMODE_SHIFT
    for bit in (AHP, DN, FZ, FZ16):
        if rng.randrange(3) == 0:
            value |= bit
    return value
