"""Advanced SIMD load and store of structures: multiple (LD1 to LD4, ST1 to ST4), single element, and replicating."""

from __future__ import annotations

from typing import Any

from trapline.arm64.isa.simd_common import ARRANGEMENT, each, element, evens, insert, interleave, odds, vector_width
from trapline.bits import Bits, Vec, cat


# -- addressing and blocks ---------------------------------------------------------------------------------------------------
def write_back(cpu: Any, i: Any, increment: int | Bits) -> None:
    """Increment the base register after the accesses."""
    cpu.set_X(i.Rn, cpu.X(i.Rn, sp=True) + increment, sp=True)


def pieces(width: int) -> list[tuple[int, int]]:
    """(bit position, width) of the accesses that transfer `width` bits."""
    return [(position, min(128, width - position)) for position in range(0, width, 128)]


def load_block(cpu: Any, base: Bits, width: int, esize: int) -> Bits:
    """Consecutive memory, elements of `esize` bits, as one value."""
    return cat(*reversed([cpu.load(base + position // 8, part, parts=part // esize) for position, part in pieces(width)]))


def store_block(cpu: Any, base: Bits, value: Bits, esize: int) -> None:
    """One value, elements of `esize` bits, to consecutive memory."""
    for position, part in pieces(value.width):
        cpu.store(base + position // 8, value[position + part - 1 : position], parts=part // esize)


# -- structures --------------------------------------------------------------------------------------------------------------
def split_structures(block: Vec, count: int) -> list[Vec]:
    """The first, second... elements of each structure of `count` elements."""
    if count == 1:
        return [block]
    if count == 3:
        return [Vec.of([block[k] for k in range(first, len(block), 3)]) for first in range(3)]
    low, high = split_structures(evens(block), count // 2), split_structures(odds(block), count // 2)
    return [part for pair in zip(low, high, strict=True) for part in pair]


def join_structures(vectors: list[Vec]) -> Vec:
    """The inverse of `split_structures`."""
    count = len(vectors)
    if count == 1:
        return vectors[0]
    if count == 3:
        return Vec.of([vector[k] for k in range(len(vectors[0])) for vector in vectors])
    return interleave(join_structures(vectors[0::2]), join_structures(vectors[1::2]))


MULTIPLE = (
    ("4", "0000", 4, 4),
    ("1", "0010", 1, 4),
    ("3", "0100", 3, 3),
    ("1", "0110", 1, 3),
    ("1", "0111", 1, 1),
    ("2", "1000", 2, 2),
    ("1", "1010", 1, 2),
)
"""Number in the mnemonic, opcode, elements of a structure, registers."""

MULTIPLE_ROWS = [
    (f"{verb}{number}", (load, opcode), load == "1", structure, count)
    for number, opcode, structure, count in MULTIPLE
    for verb, load in (("ld", "1"), ("st", "0"))
]


def registers(count: int, arrangement: str) -> str:
    """Syntax of a list of consecutive registers."""
    names = ", ".join(f"v{{Rt:+{k}}}.{arrangement}" if k else f"v{{Rt}}.{arrangement}" for k in range(count))
    return "{{" + names + "}}"


def structure_exists(f: Any) -> bool:
    """Structures of several elements have no arrangement 1D; LD1 and ST1 do."""
    return bool(f.size < 3 or f.Q)


def transfer_multiple(cpu: Any, i: Any, load: bool, structure: int, count: int) -> int:
    """Transfer `count` registers; returns the bytes transferred."""
    width, base = vector_width(i), cpu.X(i.Rn, sp=True)
    names = [cpu.reg(i.Rt, k) for k in range(count)]
    if load:
        block = load_block(cpu, base, count * width, 8 << i.size)
        vectors = split_structures(block.lanes(8 << i.size), structure)
        whole = cat(*reversed([vector.bits for vector in vectors]))
        for k, name in enumerate(names):
            cpu.set_V(name, whole[k * width + width - 1 : k * width])
    else:
        whole = cat(*reversed([cpu.V(name, width) for name in names]))
        part = whole.width // structure
        vectors = [whole[k * part + part - 1 : k * part].lanes(8 << i.size) for k in range(structure)]
        store_block(cpu, base, join_structures(vectors).bits, 8 << i.size)
    return count * width // 8


def _multiple_syntax(load: bool, structure: int, count: int) -> str:
    return f"$ {registers(count, ARRANGEMENT)}, [{{Rn:Xsp}}]"


def _multiple_register_syntax(load: bool, structure: int, count: int) -> str:
    return f"{_multiple_syntax(load, structure, count)}, {{Rm:X}}"


def _multiple_immediate_syntax(load: bool, structure: int, count: int) -> str:
    return f"{_multiple_syntax(load, structure, count)}, #{{Q:{8 * count}|{16 * count}}}"


_ONE = [row for row in MULTIPLE_ROWS if row[3] == 1]
_SEVERAL = [row for row in MULTIPLE_ROWS if row[3] > 1]
_OFFSET = "0 Q:1 0011000 <> 000000 <> size:2 Rn:5 Rt:5"
_REGISTER = "0 Q:1 0011001 <> 0 Rm:5 <> size:2 Rn:5 Rt:5"
_IMMEDIATE = "0 Q:1 0011001 <> 0 11111 <> size:2 Rn:5 Rt:5"


@each(_ONE, _OFFSET, _multiple_syntax)
@each(_SEVERAL, _OFFSET, _multiple_syntax, where=structure_exists)
def multiple(cpu, i, load, structure, count):
    """whole registers."""
    transfer_multiple(cpu, i, load, structure, count)


@each(_ONE, _REGISTER, _multiple_register_syntax)
@each(_SEVERAL, _REGISTER, _multiple_register_syntax, where=structure_exists)
def multiple_post_register(cpu, i, load, structure, count):
    """whole registers, then the base incremented by a register."""
    transfer_multiple(cpu, i, load, structure, count)
    write_back(cpu, i, cpu.X(i.Rm))


@each(_ONE, _IMMEDIATE, _multiple_immediate_syntax, over="multiple_post_register_$")
@each(_SEVERAL, _IMMEDIATE, _multiple_immediate_syntax, where=structure_exists, over="multiple_post_register_$")
def multiple_post_immediate(cpu, i, load, structure, count):
    """whole registers, then the base incremented by the bytes transferred."""
    write_back(cpu, i, transfer_multiple(cpu, i, load, structure, count))


# -- single structure --------------------------------------------------------------------------------------------------------
POSITION = {8: ("00", "immlow:3"), 16: ("01", "immlow:2 0"), 32: ("10", "immlow:1 00"), 64: ("10", "001")}
"""opcode<2:1> and S:size by element size; the index is Q with the bits named here."""
LETTER = {8: "b", 16: "h", 32: "s", 64: "d"}

SINGLE_ROWS = [
    (f"{verb}{count}", (load, str((count - 1) & 1), opcode, str((count - 1) >> 1), low), load == "1", count, esize)
    for esize, (opcode, low) in POSITION.items()
    for count in (1, 2, 3, 4)
    for verb, load in (("ld", "1"), ("st", "0"))
]


def transfer_single(cpu: Any, i: Any, load: bool, count: int, esize: int) -> int:
    """Transfer one element of `count` registers; returns the bytes transferred."""
    base, step = cpu.X(i.Rn, sp=True), esize // 8
    index = i.immQ if esize == 64 else i.immQ * (64 // esize) + i.immlow
    names = [cpu.reg(i.Rt, k) for k in range(count)]
    if load:
        lanes = [cpu.load(base + k * step, esize) for k in range(count)]
        for name, lane in zip(names, lanes, strict=True):
            cpu.set_V(name, insert(cpu.V(name), index, lane))
    else:
        for k, name in enumerate(names):
            cpu.store(base + k * step, element(cpu, name, index, esize))
    return count * step


def _single_syntax(load: bool, count: int, esize: int) -> str:
    return f"$ {registers(count, LETTER[esize])}[{{immQ{'' if esize == 64 else ',immlow'}}}], [{{Rn:Xsp}}]"


def _single_register_syntax(load: bool, count: int, esize: int) -> str:
    return f"{_single_syntax(load, count, esize)}, {{Rm:X}}"


def _single_immediate_syntax(load: bool, count: int, esize: int) -> str:
    return f"{_single_syntax(load, count, esize)}, #{count * esize // 8}"


@each(SINGLE_ROWS, "0 immQ:1 0011010 <> <> 00000 <> <> <> Rn:5 Rt:5", _single_syntax)
def single(cpu, i, load, count, esize):
    """one element of each register."""
    transfer_single(cpu, i, load, count, esize)


@each(SINGLE_ROWS, "0 immQ:1 0011011 <> <> Rm:5 <> <> <> Rn:5 Rt:5", _single_register_syntax)
def single_post_register(cpu, i, load, count, esize):
    """one element of each register, then the base incremented by a register."""
    transfer_single(cpu, i, load, count, esize)
    write_back(cpu, i, cpu.X(i.Rm))


@each(
    SINGLE_ROWS,
    "0 immQ:1 0011011 <> <> 11111 <> <> <> Rn:5 Rt:5",
    _single_immediate_syntax,
    over="single_post_register_$",
)
def single_post_immediate(cpu, i, load, count, esize):
    """one element of each register, then the base incremented by the bytes transferred."""
    write_back(cpu, i, transfer_single(cpu, i, load, count, esize))


# -- replicating loads -------------------------------------------------------------------------------------------------------
REPLICATE_ROWS = [(f"ld{count}r", (str((count - 1) & 1), str((count - 1) >> 1)), count) for count in (1, 2, 3, 4)]


def load_replicated(cpu: Any, i: Any, count: int) -> int:
    """Load one element per register into all its elements; returns the bytes transferred."""
    base, esize = cpu.X(i.Rn, sp=True), 8 << i.size
    lanes = [cpu.load(base + k * esize // 8, esize) for k in range(count)]
    for k, lane in enumerate(lanes):
        cpu.set_V(cpu.reg(i.Rt, k), Vec.splat(lane, vector_width(i) // esize))
    return count * esize // 8


def _replicate_syntax(count: int) -> str:
    return f"$ {registers(count, ARRANGEMENT)}, [{{Rn:Xsp}}]"


def _replicate_register_syntax(count: int) -> str:
    return f"{_replicate_syntax(count)}, {{Rm:X}}"


def _replicate_immediate_syntax(count: int) -> str:
    return f"{_replicate_syntax(count)}, #{{size:{count}|{2 * count}|{4 * count}|{8 * count}}}"


@each(REPLICATE_ROWS, "0 Q:1 00110101 <> 0000011 <> 0 size:2 Rn:5 Rt:5", _replicate_syntax)
def replicate(cpu, i, count):
    """one element to all elements of each register."""
    load_replicated(cpu, i, count)


@each(REPLICATE_ROWS, "0 Q:1 00110111 <> Rm:5 11 <> 0 size:2 Rn:5 Rt:5", _replicate_register_syntax)
def replicate_post_register(cpu, i, count):
    """one element to all elements of each register, then the base incremented by a register."""
    load_replicated(cpu, i, count)
    write_back(cpu, i, cpu.X(i.Rm))


@each(
    REPLICATE_ROWS,
    "0 Q:1 00110111 <> 11111 11 <> 0 size:2 Rn:5 Rt:5",
    _replicate_immediate_syntax,
    over="replicate_post_register_$",
)
def replicate_post_immediate(cpu, i, count):
    """one element to all elements of each register, then the base incremented by the bytes transferred."""
    write_back(cpu, i, load_replicated(cpu, i, count))
