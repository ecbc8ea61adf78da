"""Templates: what LLVM made of stencils, as the assembler wants it.

A template is a structure of 16 bytes (`Template`), its relocations (`Relocation`, 16 bytes each) and its code. A line with the names
of native functions and the templates of many shapes make a book: what the compiler's process sends, and what lies in the cache.
"""

from __future__ import annotations

import ctypes
import struct
from ctypes import c_int64, c_uint8, c_uint32, c_uint64


class Template(ctypes.Structure):
    """`size` bytes of code with `relocations` places to fill in; `flags`: REACHES_NEXT, NEEDS_SLOW, or UNSUITED: there is none."""

    _fields_ = [("size", c_uint32), ("relocations", c_uint32), ("flags", c_uint32), ("shape", c_uint32)]


class Relocation(ctypes.Structure):
    """At byte `at` of the code stand `width` bytes: a value of a `kind`, plus `addend`. `slot` and `slot_size`: where a record has it."""

    _fields_ = [
        ("at", c_uint32),
        ("kind", c_uint8),
        ("width", c_uint8),
        ("slot", c_uint8),
        ("slot_size", c_uint8),
        ("addend", c_int64),
    ]


REACHES_NEXT, NEEDS_SLOW, UNSUITED = 1, 2, 4

SLOT, TARGET, RECORD, OFFSET, PLAIN, FUNCTION, CALLED, CONSTANT = range(8)
"""Values: a slot of the record; the record so many bytes away as a slot says; the record itself; the instruction's offset in its page;
the shape's handler; a function of the host; a native function, whose number in the book is the addend; the addend alone."""
NEXT, SLOW, POLL, GOTO, LANDING = range(8, 13)
"""Distances, from the place itself: to the next instruction's code, to where this one is left to its handler, to the glue."""
DISTANCES = 8
"""From here on a kind is a distance."""
SIGNED = 0x80
"""In `slot_size`: the slot is sign-extended."""

SPECIAL = {"leave": 0xFFFF_FFF0, "slow_": 0xFFFF_FFF1, "far": 0xFFFF_FFF2}
"""In place of a shape: templates that belong to none. Go on with a record's handler; with the one it had; with a function."""

NONE = 1
"""In the table of templates: none, and there is no use in asking again."""


class Assembly(ctypes.Structure):
    """What the assembler is told: the page's records and a copy of its text, the tables by shape (handlers, addresses of templates),
    where code goes and where room ends, where to note each instruction's code, and the addresses that all code shares.
    `missing` gets the shapes that nobody asked a template for yet."""

    _fields_ = [
        ("records", c_uint64),
        ("text", c_uint64),
        ("handlers", c_uint64),
        ("templates", c_uint64),
        ("out", c_uint64),
        ("limit", c_uint64),
        ("places", c_uint64),
        ("leave", c_uint64),
        ("slow", c_uint64),
        ("poll", c_uint64),
        ("goto", c_uint64),
        ("landing", c_uint64),
        ("generation", c_uint64),
        ("missing", c_uint64),
        ("missing_count", c_uint64),
    ]


def bind(memory: int, book: bytes) -> tuple[list[str], list[tuple[int, int]]]:
    """The native functions of a book that lies in memory, and shape and address of each template."""
    names, _, _ = book.partition(b"\n")
    at = len(names) + 1
    found = []
    while at < len(book):
        size, relocations, _, shape = struct.unpack_from("<4I", book, at)
        found.append((shape, memory + at))
        at += ctypes.sizeof(Template) + relocations * ctypes.sizeof(Relocation) + (size + 7 & -8)
    return names.decode().split(), found


def relocations_of(template: int) -> ctypes.Array[Relocation]:
    """The relocations of a template in memory."""
    return (Relocation * Template.from_address(template).relocations).from_address(template + ctypes.sizeof(Template))
