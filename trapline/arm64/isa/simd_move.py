"""Advanced SIMD data movement: modified immediate, copy, permute, extract, table lookup."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from trapline.arm64.insn import insn
from trapline.arm64.isa.fp_scalar import expand_immediate
from trapline.arm64.isa.simd_common import (
    ARRANGEMENT,
    choose,
    each,
    element,
    evens,
    insert,
    interleave,
    no_1d,
    odds,
    vector_width,
)
from trapline.bits import Bits, Vec, cat, const

# -- modified immediate ------------------------------------------------------------------------------------------------------
_IMMEDIATE = "0 Q:1 <> 0111100000 imma:3 <> 01 immd:5 Rd:5"
_IMM8 = "#{imma,immd}"

Apply = Callable[[Bits, Bits], Bits]
"""What an instruction does with (old destination, expanded immediate)."""

MOVES = (
    ("movi", "0", "0", lambda d, imm: imm),
    ("mvni", "1", "0", lambda d, imm: ~imm),
    ("orr", "0", "1", lambda d, imm: d | imm),
    ("bic", "1", "1", lambda d, imm: d & ~imm),
)


def immediate(i: Any) -> Bits:
    """The eight bits abcdefgh."""
    return cat(const(i.imma, 3), const(i.immd, 5))


def _set_immediate(cpu: Any, i: Any, lane: Bits, apply: Apply) -> None:
    width = vector_width(i)
    cpu.set_V(i.Rd, apply(cpu.V(i.Rd, width), Vec.splat(lane, width // lane.width).bits))


@each(
    [(mnemonic, (op, f"0 shift:2 {modify}"), apply) for mnemonic, op, modify, apply in MOVES],
    _IMMEDIATE,
    asm=f"$ v{{Rd}}.{{Q:2s|4s}}, {_IMM8}{{shift:|, lsl #8|, lsl #16|, lsl #24}}",
)
def modified_immediate_word(cpu, i, apply):
    """an immediate in every word, shifted by whole bytes."""
    _set_immediate(cpu, i, immediate(i).zext(32) << 8 * i.shift, apply)


@each(
    [(mnemonic, (op, f"10 shift:1 {modify}"), apply) for mnemonic, op, modify, apply in MOVES],
    _IMMEDIATE,
    asm=f"$ v{{Rd}}.{{Q:4h|8h}}, {_IMM8}{{shift:|, lsl #8}}",
)
def modified_immediate_halfword(cpu, i, apply):
    """an immediate in every halfword, shifted by whole bytes."""
    _set_immediate(cpu, i, immediate(i).zext(16) << 8 * i.shift, apply)


@each(
    [(mnemonic, (op, "110 shift:1"), apply) for mnemonic, op, modify, apply in MOVES if modify == "0"],
    _IMMEDIATE,
    asm=f"$ v{{Rd}}.{{Q:2s|4s}}, {_IMM8}, msl #{{shift:8|16}}",
)
def modified_immediate_ones(cpu, i, apply):
    """an immediate in every word, shifted left with ones coming in."""
    count = 8 + 8 * i.shift
    _set_immediate(cpu, i, immediate(i).zext(32) << count | (1 << count) - 1, apply)


@each([("movi", ("0", "1110"))], _IMMEDIATE, asm=f"$ v{{Rd}}.{{Q:8b|16b}}, {_IMM8}")
def modified_immediate_byte(cpu, i):
    """an immediate in every byte."""
    _set_immediate(cpu, i, immediate(i), lambda d, imm: imm)


@insn("0 Q:1 1 0111100000 imma:3 1110 01 immd:5 Rd:5", asm="movi {Q:d|v}{Rd}{Q:|.2d}, #{imma,immd:bytes}")
def modified_immediate_mask(cpu, i):
    """MOVI (64-bit): each bit of the immediate makes a byte of ones or zeros."""
    bits = immediate(i)
    lane = cat(*(bits[k].sext(8) for k in reversed(range(8))))
    _set_immediate(cpu, i, lane, lambda d, imm: imm)


@insn("0 Q:1 0 0111100000 imma:3 1111 01 immd:5 Rd:5", asm="fmov v{Rd}.{Q:2s|4s}, #{imma,immd:fp8}")
def modified_immediate_single(cpu, i):
    """FMOV (vector, immediate), single precision."""
    _set_immediate(cpu, i, expand_immediate(immediate(i), 32), lambda d, imm: imm)


@insn("0 Q:1 0 0111100000 imma:3 1111 11 immd:5 Rd:5", asm="fmov v{Rd}.{Q:4h|8h}, #{imma,immd:fp8}", feature="FEAT_FP16")
def modified_immediate_half(cpu, i):
    """FMOV (vector, immediate), half precision."""
    _set_immediate(cpu, i, expand_immediate(immediate(i), 16), lambda d, imm: imm)


@insn("01 1 0111100000 imma:3 1111 01 immd:5 Rd:5", asm="fmov v{Rd}.2d, #{imma,immd:fp8}")
def modified_immediate_double(cpu, i):
    """FMOV (vector, immediate), double precision."""
    cpu.set_V(i.Rd, Vec.splat(expand_immediate(immediate(i), 64), 2))


# -- copy: the lowest one in imm5 tells the element size, the bits above it are the index ------------------------------------
INDEX = {8: "imm:4 1", 16: "imm:3 10", 32: "imm:2 100", 64: "imm:1 1000"}
LETTER = {8: "b", 16: "h", 32: "s", 64: "d"}
VECTORS = {8: "{Q:8b|16b}", 16: "{Q:4h|8h}", 32: "{Q:2s|4s}", 64: "{Q:!|2d}"}


def copies(mnemonic: str, *sizes: int) -> list[tuple[Any, ...]]:
    """One row per element size; the pattern's `<>` is imm5."""
    return [(mnemonic, (INDEX[esize],), esize) for esize in sizes]


def is_128(f: Any) -> bool:
    """64-bit elements need a 128-bit vector."""
    return bool(f.Q)


def _duplicate_syntax(esize: int) -> str:
    return f"$ v{{Rd}}.{VECTORS[esize]}, v{{Rn}}.{LETTER[esize]}[{{imm}}]"


@each(copies("dup", 8, 16, 32), "0 Q:1 001110000 <> 000001 Rn:5 Rd:5", _duplicate_syntax)
@each(copies("dup", 64), "0 Q:1 001110000 <> 000001 Rn:5 Rd:5", _duplicate_syntax, where=is_128)
def duplicate_element(cpu, i, esize):
    """one element in every element."""
    cpu.set_V(i.Rd, Vec.splat(element(cpu, i.Rn, i.imm, esize), vector_width(i) // esize))


@each(
    copies("dup", 8, 16, 32, 64),
    "01011110000 <> 000001 Rn:5 Rd:5",
    lambda esize: f"$ {LETTER[esize]}{{Rd}}, v{{Rn}}.{LETTER[esize]}[{{imm}}]",
)
def scalar_duplicate(cpu, i, esize):
    """one element (alias MOV, scalar)."""
    cpu.set_V(i.Rd, element(cpu, i.Rn, i.imm, esize))


GENERAL_INDEX = {8: "....1", 16: "...10", 32: "..100", 64: ".1000"}
"""imm5 of DUP (general), which has no index."""


def _duplicate_general(sizes: tuple[int, ...]) -> list[tuple[Any, ...]]:
    return [("dup", (GENERAL_INDEX[esize],), esize) for esize in sizes]


def _duplicate_general_syntax(esize: int) -> str:
    return f"$ v{{Rd}}.{VECTORS[esize]}, {{Rn:{'X' if esize == 64 else 'W'}}}"


@each(_duplicate_general((8, 16, 32)), "0 Q:1 001110000 <> 000011 Rn:5 Rd:5", _duplicate_general_syntax)
@each(_duplicate_general((64,)), "0 Q:1 001110000 <> 000011 Rn:5 Rd:5", _duplicate_general_syntax, where=is_128)
def duplicate_general(cpu, i, esize):
    """a general register in every element."""
    cpu.set_V(i.Rd, Vec.splat(cpu.X(i.Rn, 64).trunc(esize), vector_width(i) // esize))


def _extract(cpu: Any, i: Any, esize: int, width: int, extend: Callable[[Bits, int], Bits]) -> None:
    cpu.set_X(i.Rd, extend(element(cpu, i.Rn, i.imm, esize), width))


@each(copies("smov", 8, 16), "0 Q:1 001110000 <> 001011 Rn:5 Rd:5", lambda e: f"$ {{Rd:Q=W|X}}, v{{Rn}}.{LETTER[e]}[{{imm}}]")
@each(
    copies("smov", 32),
    "0 Q:1 001110000 <> 001011 Rn:5 Rd:5",
    lambda e: f"$ {{Rd:Q=W|X}}, v{{Rn}}.{LETTER[e]}[{{imm}}]",
    where=is_128,
)
def move_signed_to_general(cpu, i, esize):
    """one element sign-extended into a general register."""
    _extract(cpu, i, esize, 64 if i.Q else 32, Bits.sext)


@each(copies("umov", 8, 16, 32), "00001110000 <> 001111 Rn:5 Rd:5", lambda e: f"$ {{Rd:W}}, v{{Rn}}.{LETTER[e]}[{{imm}}]")
@each(copies("umov", 64), "01001110000 <> 001111 Rn:5 Rd:5", lambda e: f"$ {{Rd:X}}, v{{Rn}}.{LETTER[e]}[{{imm}}]")
def move_to_general(cpu, i, esize):
    """one element zero-extended into a general register (alias MOV)."""
    _extract(cpu, i, esize, 64, Bits.zext)


@each(
    copies("ins", 8, 16, 32, 64),
    "01001110000 <> 000111 Rn:5 Rd:5",
    lambda e: f"$ v{{Rd}}.{LETTER[e]}[{{imm}}], {{Rn:{'X' if e == 64 else 'W'}}}",
)
def insert_general(cpu, i, esize):
    """one element from a general register (alias MOV)."""
    cpu.set_V(i.Rd, insert(cpu.V(i.Rd), i.imm, cpu.X(i.Rn, 64).trunc(esize)))


SOURCE_INDEX = {8: "imms:4", 16: "imms:3 .", 32: "imms:2 ..", 64: "imms:1 ..."}


@each(
    [("ins", (INDEX[esize], SOURCE_INDEX[esize]), esize) for esize in INDEX],
    "01101110000 <> 0 <> 1 Rn:5 Rd:5",
    lambda e: f"$ v{{Rd}}.{LETTER[e]}[{{imm}}], v{{Rn}}.{LETTER[e]}[{{imms}}]",
)
def insert_element(cpu, i, esize):
    """one element from an element of another vector (alias MOV)."""
    cpu.set_V(i.Rd, insert(cpu.V(i.Rd), i.imm, element(cpu, i.Rn, i.imms, esize)))


# -- permute, extract, table -------------------------------------------------------------------------------------------------
def unzip(which: Callable[[Vec], Vec], n: Vec, m: Vec) -> Vec:
    """The even or the odd elements of m:n."""
    return which(cat(m.bits, n.bits).lanes(n.esize))


def zip_half(upper: bool, n: Vec, m: Vec) -> Vec:
    """The elements of one half of n and of m in turn."""
    width = n.bits.width
    hi, lo = (width - 1, width // 2) if upper else (width // 2 - 1, 0)
    return interleave(n.bits[hi:lo].lanes(n.esize), m.bits[hi:lo].lanes(n.esize))


def transpose(which: Callable[[Vec], Vec], n: Vec, m: Vec) -> Vec:
    """The even or the odd elements of n and of m in turn."""
    return interleave(which(n), which(m))


PERMUTE = (
    ("uzp1", "001", "bhsd", lambda n, m: unzip(evens, n, m)),
    ("trn1", "010", "bhsd", lambda n, m: transpose(evens, n, m)),
    ("zip1", "011", "bhsd", lambda n, m: zip_half(False, n, m)),
    ("uzp2", "101", "bhsd", lambda n, m: unzip(odds, n, m)),
    ("trn2", "110", "bhsd", lambda n, m: transpose(odds, n, m)),
    ("zip2", "111", "bhsd", lambda n, m: zip_half(True, n, m)),
)


@each(
    PERMUTE,
    "0 Q:1 001110 size:2 0 Rm:5 0 <> 10 Rn:5 Rd:5",
    asm=f"$ v{{Rd}}.{ARRANGEMENT}, v{{Rn}}.{ARRANGEMENT}, v{{Rm}}.{ARRANGEMENT}",
    where=no_1d,
)
def permute(cpu, i, operation):
    """elements of two vectors rearranged."""
    n, m = (cpu.V(r, vector_width(i)).lanes(8 << i.size) for r in (i.Rn, i.Rm))
    cpu.set_V(i.Rd, operation(n, m))


@insn(
    "0 Q:1 101110 000 Rm:5 0 imm4:4 0 Rn:5 Rd:5",
    asm="ext v{Rd}.{Q:8b|16b}, v{Rn}.{Q:8b|16b}, v{Rm}.{Q:8b|16b}, #{imm4}",
    const=("imm4",),
    where=lambda f: f.Q or f.imm4 < 8,
)
def extract(cpu, i):
    """EXT: bytes from the middle of Rm:Rn."""
    width, position = vector_width(i), 8 * i.imm4
    both = cat(cpu.V(i.Rm, width), cpu.V(i.Rn, width))
    cpu.set_V(i.Rd, both[position + width - 1 : position])


TABLE = tuple(
    (mnemonic, (f"{count - 1:02b}", op), count, keep)
    for mnemonic, op, keep in (("tbl", "0", False), ("tbx", "1", True))
    for count in (1, 2, 3, 4)
)


def _table_syntax(count: int, keep: bool) -> str:
    registers = ", ".join(f"v{{Rn:+{k}}}.16b" if k else "v{Rn}.16b" for k in range(count))
    return f"$ v{{Rd}}.{{Q:8b|16b}}, {{{{{registers}}}}}, v{{Rm}}.{{Q:8b|16b}}"


@each(TABLE, "0 Q:1 001110000 Rm:5 0 <> <> 00 Rn:5 Rd:5", _table_syntax)
def table(cpu, i, count, keep):
    """bytes from a table of 1 to 4 registers; out of range gives zero, or keeps the destination (TBX)."""
    indexes = cpu.V(i.Rm, vector_width(i)).zext(128).lanes(8)
    parts = [cpu.V(cpu.reg(i.Rn, k)).lanes(8).lookup(indexes - 16 * k) for k in range(count)]
    if keep:
        parts.append(choose(indexes.uge(16 * count), cpu.V(i.Rd).lanes(8), indexes.like(0)))
    cpu.set_V(i.Rd, reduce(Vec.__or__, parts).bits.trunc(vector_width(i)))
