"""Shared functions of the architecture's pseudocode, under the manual's names.

Those over `Bits` are used inside instruction bodies. The `@native` ones work on immediate operands: the recorder evaluates
them when an instruction is predecoded (`i.derived`), so that a handler sees finished masks and counts.
"""

from __future__ import annotations

from typing import Any

from trapline.bits import Bits, Imm, const, select
from trapline.bits.native import clz, native, u64

Flags = tuple[Bits, Bits, Bits, Bits]

LSL, LSR, ASR, ROR = range(4)
"""ShiftType, as instruction fields encode it."""


def add_with_carry(x: Bits, y: Bits | Imm | int, carry_in: Bits | int) -> tuple[Bits, Flags]:
    """AddWithCarry(): the sum, and its N, Z, C and V. Pass `~y` and 1 to subtract."""
    if not isinstance(y, Bits):
        y = const(y, x.width)
    if isinstance(carry_in, Bits):
        result = x + y + carry_in.zext(x.width)
        carry = select(carry_in, result.ule(x), result.ult(x))
    elif carry_in:
        result = x - ~y
        carry = x.uge(~y)
    else:
        result = x + y
        carry = result.ult(x)
    overflow = ((x ^ result) & (y ^ result)).msb
    return result, (result.msb, result.is_zero(), carry, overflow)


def shift_by(value: Bits, kind: int, amount: Bits | Imm | int) -> Bits:
    """The shift of ShiftReg(): `amount` is below the width."""
    match kind:
        case 0:
            return value << amount
        case 1:
            return value >> amount
        case 2:
            return value.asr(amount)
        case _:
            return value.ror(amount)


def shift_reg(cpu: Any, register: Any, kind: int, amount: Imm | int, width: int) -> Bits:
    """ShiftReg(): a general-purpose register, shifted."""
    return shift_by(cpu.X(register, width), kind, amount)


def extend_reg(cpu: Any, register: Any, option: int, shift: Imm | int, width: int) -> Bits:
    """ExtendReg(): option<1:0> is the size of the part taken, option<2> whether it is signed; then shift left."""
    part = cpu.X(register).trunc(min(8 << (option & 3), width))
    return (part.sext(width) if option & 4 else part.zext(width)) << shift


@native
def decode_bit_masks(n: u64, imms: u64, immr: u64) -> u64:
    """DecodeBitMasks(): wmask of a logical immediate, replicated to 64 bits. The encoding isn't a reserved one."""
    length = 63 - clz(n << 6 | (imms ^ 63))
    esize = u64(1) << length
    levels = esize - 1
    s = imms & levels
    r = immr & levels
    element_mask = ~u64(0) >> (64 - esize)
    ones = ~u64(0) >> (63 - s)
    element = (ones >> r | ones << (esize - r)) & element_mask
    result = element
    while esize < 64:
        result = result | result << esize
        esize = esize << 1
    return result


@native
def bitfield_mask(width: u64, immr: u64, imms: u64) -> u64:
    """wmask AND tmask of DecodeBitMasks() for the bitfield moves: where the field ends up."""
    size = imms - immr if imms >= immr else imms
    low = u64(0) if imms >= immr else width - immr
    return (~u64(0) >> (63 - size)) << low


@native
def sbfm_right_shift(width: u64, immr: u64, imms: u64) -> u64:
    """How far SBFM shifts right, after shifting left by width - 1 - imms."""
    return width - 1 - imms + immr if imms >= immr else immr - imms - 1
