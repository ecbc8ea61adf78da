"""Advanced SIMD shift by immediate: vector and scalar, saturating, narrowing, long, inserting, and fixed-point conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.arm64.fp import ROUND_ZERO
from trapline.arm64.isa.simd_common import Fp, choose, each, half, set_half, set_saturation, vector_width
from trapline.arm64.isa.simd_two_misc import narrow_signed, narrow_signed_to_unsigned, narrow_unsigned
from trapline.bits import Imm, Vec

IMMEDIATE = {8: "0001 imm:3", 16: "001 imm:4", 32: "01 imm:5", 64: "1 imm:6"}
"""immh:immb by element size: the leading one tells the size, what follows is the left shift, or the size minus the right shift."""

VECTORS = {8: "{Q:8b|16b}", 16: "{Q:4h|8h}", 32: "{Q:2s|4s}", 64: "{Q:!|2d}"}
WIDE_VECTORS = {8: "8h", 16: "4s", 32: "2d"}
SCALAR = {8: "b", 16: "h", 32: "s", 64: "d"}

Amount = int | Imm
Shift = Callable[[Any, Vec, Vec, Amount], Vec]
"""`(cpu, d, n, amount) -> result`, with the old destination `d` for those that accumulate or insert."""


def shift_right(value: Vec, amount: Amount, signed: bool, rounding: bool) -> Vec:
    """Shift right by 1 to the element size, rounding to nearest if asked: the last bit shifted out is added."""
    shift = Vec.asr if signed else Vec.__rshift__
    result = shift(value, amount)
    return result + (shift(value, amount - 1) & 1) if rounding else result


def right(signed: bool, rounding: bool, accumulate: bool = False) -> Shift:
    """SSHR and its unsigned, rounding and accumulating forms."""

    def operation(cpu: Any, d: Vec, n: Vec, amount: Amount) -> Vec:
        result = shift_right(n, amount, signed, rounding)
        return d + result if accumulate else result

    return operation


def insert_right(cpu: Any, d: Vec, n: Vec, amount: Amount) -> Vec:
    """SRI: the bits above the shifted value stay."""
    return n >> amount | d & ~(n.like(-1) >> amount)


def insert_left(cpu: Any, d: Vec, n: Vec, amount: Amount) -> Vec:
    """SLI: the bits below the shifted value stay."""
    return n << amount | d & ~(n.like(-1) << amount)


def saturating_left_signed(cpu: Any, d: Vec, n: Vec, amount: Amount) -> Vec:
    """SQSHL (immediate)."""
    shifted = n << amount
    fits = shifted.asr(amount) == n
    set_saturation(cpu, ~fits)
    return choose(fits, shifted, n.asr(n.esize - 1) ^ (1 << n.esize - 1) - 1)


def saturating_left_unsigned(cpu: Any, d: Vec, n: Vec, amount: Amount) -> Vec:
    """UQSHL (immediate)."""
    shifted = n << amount
    overflow = shifted >> amount != n
    set_saturation(cpu, overflow)
    return shifted | overflow


def saturating_left_signed_to_unsigned(cpu: Any, d: Vec, n: Vec, amount: Amount) -> Vec:
    """SQSHLU: negative numbers become zero."""
    negative = n.slt(0)
    shifted = n << amount
    overflow = shifted >> amount != n
    set_saturation(cpu, negative | overflow)
    return (shifted | overflow) & ~negative


RIGHT = (
    ("sshr", "0 00000", right(signed=True, rounding=False)),
    ("ushr", "1 00000", right(signed=False, rounding=False)),
    ("ssra", "0 00010", right(signed=True, rounding=False, accumulate=True)),
    ("usra", "1 00010", right(signed=False, rounding=False, accumulate=True)),
    ("srshr", "0 00100", right(signed=True, rounding=True)),
    ("urshr", "1 00100", right(signed=False, rounding=True)),
    ("srsra", "0 00110", right(signed=True, rounding=True, accumulate=True)),
    ("ursra", "1 00110", right(signed=False, rounding=True, accumulate=True)),
    ("sri", "1 01000", insert_right),
)
LEFT = (("shl", "0 01010", lambda cpu, d, n, amount: n << amount), ("sli", "1 01010", insert_left))
SATURATING_LEFT = (
    ("sqshlu", "1 01100", saturating_left_signed_to_unsigned),
    ("sqshl", "0 01110", saturating_left_signed),
    ("uqshl", "1 01110", saturating_left_unsigned),
)


def by_size(rows: Any, *sizes: int) -> list[tuple[Any, ...]]:
    """The rows for each element size: `(mnemonic, bits, esize, *details)`."""
    result = []
    for mnemonic, bits, *details in rows:
        u, opcode = bits.split()
        result += [(mnemonic, (u, IMMEDIATE[esize], opcode), esize, *details) for esize in sizes]
    return result


def is_128(f: Any) -> bool:
    """64-bit elements need a 128-bit vector."""
    return bool(f.Q)


_VECTOR = "0 Q:1 <> 011110 <> <> 1 Rn:5 Rd:5"
_SCALAR = "01 <> 111110 <> <> 1 Rn:5 Rd:5"


def _right_syntax(esize: int, *rest: Any) -> str:
    return f"$ v{{Rd}}.{VECTORS[esize]}, v{{Rn}}.{VECTORS[esize]}, #{{imm:{esize}-}}"


def _left_syntax(esize: int, *rest: Any) -> str:
    return f"$ v{{Rd}}.{VECTORS[esize]}, v{{Rn}}.{VECTORS[esize]}, #{{imm}}"


def _shift(cpu: Any, i: Any, width: int, esize: int, operation: Shift, amount: Amount) -> None:
    cpu.set_V(i.Rd, operation(cpu, cpu.V(i.Rd, width).lanes(esize), cpu.V(i.Rn, width).lanes(esize), amount))


@each(by_size(RIGHT, 8, 16, 32), _VECTOR, _right_syntax)
@each(by_size(RIGHT, 64), _VECTOR, _right_syntax, where=is_128)
def vector_shift_right(cpu, i, esize, operation):
    """elements shifted right."""
    _shift(cpu, i, vector_width(i), esize, operation, esize - i.imm)


@each(by_size(LEFT + SATURATING_LEFT, 8, 16, 32), _VECTOR, _left_syntax)
@each(by_size(LEFT + SATURATING_LEFT, 64), _VECTOR, _left_syntax, where=is_128)
def vector_shift_left(cpu, i, esize, operation):
    """elements shifted left."""
    _shift(cpu, i, vector_width(i), esize, operation, i.imm)


@each(by_size(RIGHT, 64), _SCALAR, "$ d{Rd}, d{Rn}, #{imm:64-}")
def scalar_shift_right(cpu, i, esize, operation):
    """a 64-bit integer shifted right."""
    _shift(cpu, i, esize, esize, operation, esize - i.imm)


@each(by_size(LEFT, 64), _SCALAR, "$ d{Rd}, d{Rn}, #{imm}")
@each(
    by_size(SATURATING_LEFT, 8, 16, 32, 64),
    _SCALAR,
    lambda esize, operation: f"$ {SCALAR[esize]}{{Rd}}, {SCALAR[esize]}{{Rn}}, #{{imm}}",
)
def scalar_shift_left(cpu, i, esize, operation):
    """an integer in a SIMD&FP register shifted left."""
    _shift(cpu, i, esize, esize, operation, i.imm)


# -- narrowing and long ------------------------------------------------------------------------------------------------------
def truncated(cpu: Any, value: Vec, esize: int) -> Vec:
    """The low half of each element."""
    return value.trunc(esize)


SATURATING_NARROW = (
    ("sqshrun", "1 10000", True, False, narrow_signed_to_unsigned),
    ("sqrshrun", "1 10001", True, True, narrow_signed_to_unsigned),
    ("sqshrn", "0 10010", True, False, narrow_signed),
    ("uqshrn", "1 10010", False, False, narrow_unsigned),
    ("sqrshrn", "0 10011", True, True, narrow_signed),
    ("uqrshrn", "1 10011", False, True, narrow_unsigned),
)
NARROW = (
    ("shrn", "0 10000", False, False, truncated),
    ("rshrn", "0 10001", False, True, truncated),
    *SATURATING_NARROW,
)


@each(
    by_size(NARROW, 8, 16, 32),
    _VECTOR,
    lambda esize, *_: f"${{Q:|2}} v{{Rd}}.{VECTORS[esize]}, v{{Rn}}.{WIDE_VECTORS[esize]}, #{{imm:{esize}-}}",
)
def shift_right_narrow(cpu, i, esize, signed, rounding, narrow):
    """wide elements shifted right and narrowed, into the lower or upper half."""
    shifted = shift_right(cpu.V(i.Rn).lanes(2 * esize), esize - i.imm, signed, rounding)
    set_half(cpu, i.Rd, i.Q, narrow(cpu, shifted, esize).bits)


@each(
    by_size(SATURATING_NARROW, 8, 16, 32),
    _SCALAR,
    lambda esize, *_: f"$ {SCALAR[esize]}{{Rd}}, {SCALAR[2 * esize]}{{Rn}}, #{{imm:{esize}-}}",
)
def scalar_shift_right_narrow(cpu, i, esize, signed, rounding, narrow):
    """one wide element shifted right and narrowed."""
    shifted = shift_right(cpu.V(i.Rn, 2 * esize).lanes(2 * esize), esize - i.imm, signed, rounding)
    cpu.set_V(i.Rd, narrow(cpu, shifted, esize))


@each(
    by_size((("sshll", "0 10100", Vec.sext), ("ushll", "1 10100", Vec.zext)), 8, 16, 32),
    _VECTOR,
    lambda esize, extend: f"${{Q:|2}} v{{Rd}}.{WIDE_VECTORS[esize]}, v{{Rn}}.{VECTORS[esize]}, #{{imm}}",
)
def shift_left_long(cpu, i, esize, extend):
    """elements of half a vector extended and shifted left (SXTL, UXTL are aliases)."""
    cpu.set_V(i.Rd, extend(half(cpu, i.Rn, i.Q, esize), 2 * esize) << i.imm)


# -- fixed point -------------------------------------------------------------------------------------------------------------
FIXED = (
    ("scvtf", "0 11100", lambda fp, a, bits: fp.from_fixed(a.esize, a, 0, bits)),
    ("ucvtf", "1 11100", lambda fp, a, bits: fp.from_fixed(a.esize, a, 1, bits)),
    ("fcvtzs", "0 11111", lambda fp, a, bits: fp.to_fixed(a, a.esize, 0, ROUND_ZERO, bits)),
    ("fcvtzu", "1 11111", lambda fp, a, bits: fp.to_fixed(a, a.esize, 1, ROUND_ZERO, bits)),
)


def _fixed(cpu: Any, i: Any, width: int, esize: int, convert: Any) -> None:
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, convert(fp, cpu.V(i.Rn, width).lanes(esize), esize - i.imm))


@each(by_size(FIXED, 16), _VECTOR, _right_syntax, feature="FEAT_FP16", prefix="half_")
@each(by_size(FIXED, 32), _VECTOR, _right_syntax)
@each(by_size(FIXED, 64), _VECTOR, _right_syntax, where=is_128)
def vector_fixed_point(cpu, i, esize, convert):
    """conversion between floating point and fixed point, element by element."""
    _fixed(cpu, i, vector_width(i), esize, convert)


@each(by_size(FIXED, 16), _SCALAR, "$ h{Rd}, h{Rn}, #{imm:16-}", feature="FEAT_FP16", prefix="half_")
@each(
    by_size(FIXED, 32, 64),
    _SCALAR,
    lambda esize, convert: f"$ {SCALAR[esize]}{{Rd}}, {SCALAR[esize]}{{Rn}}, #{{imm:{esize}-}}",
)
def scalar_fixed_point(cpu, i, esize, convert):
    """conversion between floating point and fixed point in a SIMD&FP register."""
    _fixed(cpu, i, esize, esize, convert)
