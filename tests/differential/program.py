"""The program that all emulators run: blocks of random instructions, each between loading and storing all registers.

One static image: code, then an array of records. Each record has the address of a block, which loads its state from the record,
runs, stores the state there, and uses the record's memory window for its loads and stores. Several records may have the same
block. The image exits like a Linux process, after writing the records out.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tests.differential import values
from tests.differential.templates import INDEX_VALUES, POINTERS
from trapline.arm64.asm_program import assemble_with_labels

PAGE = 4096
CODE, DATA = 0x10_0000_0000, 0x10_2000_0A00
"""Where code and records lie; the windows of every other record have a page boundary in the middle."""
RECORD, WINDOW, WINDOW_BYTES = 2048, 1024, 1024
SP_AT, V_AT, NZCV_AT, FPCR_AT, FPSR_AT, BLOCK_AT = 248, 256, 768, 776, 784, 792
POINTER_START = {26: 512, 27: 400, 28: 611, 31: 560}
"""Offsets into the window that pointers start with; odd ones make unaligned accesses."""

CONTROLS = (("s3_3_c4_c2_0", NZCV_AT), ("s3_3_c4_c4_0", FPCR_AT), ("s3_3_c4_c4_1", FPSR_AT))
"""NZCV, FPCR and FPSR, and where a record keeps them."""

B = 0x1400_0000
ISB = 0xD503_3FDF
"""Stands behind every block, so that compiled regions end there; a branch follows."""
TAIL_BYTES = 8
LITERALS = range(-16, 32)
"""How far from an instruction its literal may be, in words: inside the image, with what `build` puts behind the last block."""
NOP = 0xD503_201F


def _driver() -> str:
    """Load, run, store: the routine that stands before the blocks."""
    pairs_x = [(n, 8 * n) for n in range(0, 28, 2)]
    pairs_v = [(n, V_AT + 16 * n) for n in range(0, 32, 2)]
    lines = ["leave:", "str x30, [x29, #240]"]
    lines += [f"stp x{n}, x{n + 1}, [x29, #{at}]" for n, at in pairs_x]
    lines += ["str x28, [x29, #224]", "mov x30, sp", f"str x30, [x29, #{SP_AT}]"]
    lines += [f"stp q{n}, q{n + 1}, [x29, #{at}]" for n, at in pairs_v]
    for name, at in CONTROLS:
        lines += [f"mrs x30, {name}", f"str x30, [x29, #{at}]"]
    lines += [f"add x29, x29, #{RECORD}", "enter:"]
    for name, at in CONTROLS:
        lines += [f"ldr x30, [x29, #{at}]", f"msr {name}, x30"]
    lines += [f"ldr x30, [x29, #{SP_AT}]", "mov sp, x30"]
    lines += [f"ldp q{n}, q{n + 1}, [x29, #{at}]" for n, at in pairs_v]
    lines += [f"ldp x{n}, x{n + 1}, [x29, #{at}]" for n, at in pairs_x]
    lines += ["ldr x28, [x29, #224]", f"ldr x30, [x29, #{BLOCK_AT}]", "clrex", "br x30"]
    return "\n".join(lines)


def _constant(register: str, value: int) -> str:
    parts = [f"movz {register}, #{value & 0xFFFF}"]
    parts += [f"movk {register}, #{value >> s & 0xFFFF}, lsl #{s}" for s in (16, 32, 48)]
    return "\n".join(parts)


@dataclass(frozen=True)
class Program:
    """An image: code from CODE on, records from DATA on; `end` is the address of the exit sequence, `starts` are the blocks'."""

    code: bytes
    data: bytes
    end: int
    starts: tuple[int, ...]

    def elf(self) -> bytes:
        """A static executable."""
        header = struct.Struct("<16sHHIQQQIHHHHHH")
        segment = struct.Struct("<IIQQQQQQ")
        rounded = self.code + bytes(-len(self.code) % PAGE + DATA % PAGE)
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        head = header.pack(ident, 2, 183, 1, CODE, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        text = segment.pack(1, 5, 4096, CODE, CODE, len(rounded), len(rounded), 4096)
        data = segment.pack(1, 6, 4096 + len(rounded), DATA, DATA, len(self.data), len(self.data), 4096)
        return (head + text + data).ljust(4096, b"\0") + rounded + self.data


def build(blocks: Sequence[Sequence[int]], records: Sequence[bytes], states: int = 1) -> Program:
    """An image of blocks (instruction words) and the records they start with, `states` in a row for each block."""
    assert states * len(blocks) == len(records)
    prologue = "\n".join(("b begin", _driver(), "begin:", _constant("x29", DATA)))
    code, labels = assemble_with_labels(f"{prologue}\nb enter\nblocks:", CODE)
    leave, words, at = labels["leave"], [], labels["blocks"]
    starts = []
    for block in blocks:
        starts.append(at)
        words += [*block, ISB, B | (leave - (at + 4 * len(block) + 4)) >> 2 & 0x3FF_FFFF]
        at += 4 * len(block) + TAIL_BYTES
    data = bytearray(b"".join(records) + bytes(RECORD))
    for k in range(len(records) + 1):
        struct.pack_into("<Q", data, RECORD * k + BLOCK_AT, starts[k // states] if k < len(records) else at)
    tail = ["movz x0, #1", _constant("x1", DATA), _constant("x2", len(data)), "movz x8, #64", "svc #0"]
    tail += ["movz x0, #0", "movz x8, #93", "svc #0"]
    exit_code = assemble_with_labels("\n".join(tail), at)[0] + bytes(4 * LITERALS.stop)
    return Program(code + struct.pack(f"<{len(words)}I", *words) + exit_code, bytes(data), at, tuple(starts))


class States:
    """Makes states to start with: special values, and memory, from a stock that is made once."""

    def __init__(self, rng: random.Random, stock: int = 8192) -> None:
        self._rng = rng
        self._memory = rng.randbytes(1 << 20)
        self._integers = [values.integer(rng) for _ in range(stock)]
        self._vectors = [values.vector(rng).to_bytes(16, "little") for _ in range(stock)]

    def record(self, index: int) -> bytes:
        """State number `index` of a program, with pointers into its own window."""
        rng = self._rng
        window = DATA + RECORD * index + WINDOW
        x = rng.choices(self._integers, k=31)
        for number, value in INDEX_VALUES.items():
            x[number] = value
        for number in POINTERS[:-1]:
            x[number] = window + POINTER_START[number]
        x[29] = DATA + RECORD * index
        v = b"".join(rng.choices(self._vectors, k=32))
        control = (rng.getrandbits(4) << 28, values.fpcr(rng), rng.getrandbits(32) & values.FPSR_BITS if rng.getrandbits(1) else 0)
        head = struct.pack("<31QQ", *x, window + POINTER_START[31]) + v + struct.pack("<3Q", *control)
        start = rng.randrange(len(self._memory) - WINDOW_BYTES)
        return head.ljust(WINDOW, b"\0") + self._memory[start : start + WINDOW_BYTES]


def describe(record: bytes) -> dict[str, int]:
    """The registers of a record by name."""
    named = {f"x{n}": value for n, value in enumerate(struct.unpack_from("<31Q", record)) if n != 29}
    named["sp"] = struct.unpack_from("<Q", record, SP_AT)[0]
    named |= {f"v{n}": int.from_bytes(record[V_AT + 16 * n : V_AT + 16 * n + 16], "little") for n in range(32)}
    for name, at in (("nzcv", NZCV_AT), ("fpcr", FPCR_AT), ("fpsr", FPSR_AT)):
        named[name] = struct.unpack_from("<Q", record, at)[0]
    return named
