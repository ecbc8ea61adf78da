"""Segment descriptors and gates: what the tables in guest memory hold, and the hidden part of a segment register.

gdt = Table()
code = gdt.append(CODE64.descriptor())      a selector
memory[base : base + len(gdt)] = gdt
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from trapline.errors import BadInput

DESCRIPTOR_SIZE = 8
GATE_SIZE = 16
FLAT_LIMIT = 0xFFFF_FFFF
REAL_MODE_LIMIT = 0xFFFF
PAGE_GRANULES = 0x10_0000
"""Limits from here on are stored in units of 4 KiB."""

TYPE_LDT = 2
TYPE_TSS16_BUSY = 3
TYPE_TSS_BUSY = 11
TYPE_INTERRUPT_GATE = 14
TYPE_TRAP_GATE = 15

DATA_RW = 3
CODE_RX = 11


@dataclass(frozen=True, slots=True)
class SegmentKind:
    """What a segment is, without its selector. `limit` is the last valid offset, in bytes; `type` the manuals' four bits."""

    type: int
    limit: int = FLAT_LIMIT
    base: int = 0
    dpl: int = 0
    system: bool = False
    default_big: bool = False
    long: bool = False

    @property
    def granular(self) -> bool:
        """Whether a descriptor has to count the limit in pages."""
        return self.limit >= PAGE_GRANULES

    def descriptor(self) -> bytes:
        """The eight bytes of a table; BadInput for a limit or base that no descriptor can hold."""
        limit, base = self.limit, self.base
        if self.granular:
            if limit & 0xFFF != 0xFFF:
                raise BadInput(f"a segment limit of {limit:#x} is not the end of a page")
            limit >>= 12
        if not 0 <= limit < PAGE_GRANULES or not 0 <= base <= 0xFFFF_FFFF:
            raise BadInput(f"no descriptor holds base {base:#x} and limit {self.limit:#x}")
        access = self.type | (not self.system) << 4 | self.dpl << 5 | 1 << 7
        flags = self.long << 1 | self.default_big << 2 | self.granular << 3
        word = (
            (limit & 0xFFFF)
            | (base & 0xFF_FFFF) << 16
            | access << 40
            | (limit >> 16) << 48
            | flags << 52
            | (base >> 24) << 56
        )  # fmt: skip
        return word.to_bytes(DESCRIPTOR_SIZE, "little")

    def at(self, base: int) -> SegmentKind:
        """The same, starting elsewhere."""
        return replace(self, base=base)

    def for_user(self) -> SegmentKind:
        """The same with privilege level 3."""
        return replace(self, dpl=3)


CODE16 = SegmentKind(CODE_RX, REAL_MODE_LIMIT)
DATA16 = SegmentKind(DATA_RW, REAL_MODE_LIMIT)
CODE32 = SegmentKind(CODE_RX, default_big=True)
DATA32 = SegmentKind(DATA_RW, default_big=True)
CODE64 = SegmentKind(CODE_RX, long=True)
DATA64 = DATA32
NULL = bytes(DESCRIPTOR_SIZE)


class Table(bytearray):
    """A descriptor table in the making: starts with the null descriptor."""

    def __init__(self) -> None:
        super().__init__(NULL)

    def add(self, descriptor: bytes, dpl: int = 0) -> int:
        """Append a descriptor and return its selector."""
        selector = len(self) | dpl
        self.extend(descriptor)
        return selector


def tss_descriptor(base: int, limit: int = 0x67) -> bytes:
    """A 64-bit task state segment's descriptor of 16 bytes, busy, as the task register wants it."""
    low = SegmentKind(TYPE_TSS_BUSY, limit, base & 0xFFFF_FFFF, system=True).descriptor()
    return low + (base >> 32).to_bytes(8, "little")


def gate64(handler: int, selector: int, kind: int = TYPE_INTERRUPT_GATE, dpl: int = 0, ist: int = 0) -> bytes:
    """An entry of a 64-bit interrupt descriptor table."""
    word = (handler & 0xFFFF) | selector << 16 | ist << 32 | (kind | dpl << 5 | 1 << 7) << 40 | (handler >> 16 & 0xFFFF) << 48
    return word.to_bytes(8, "little") + (handler >> 32).to_bytes(8, "little")


def gate32(handler: int, selector: int, kind: int = TYPE_INTERRUPT_GATE, dpl: int = 0) -> bytes:
    """An entry of a 32-bit interrupt descriptor table."""
    word = (handler & 0xFFFF) | selector << 16 | (kind | dpl << 5 | 1 << 7) << 40 | (handler >> 16 & 0xFFFF) << 48
    return word.to_bytes(8, "little")


def gate16(offset: int, segment: int) -> bytes:
    """An entry of real mode's interrupt vector table."""
    return (segment << 16 | offset).to_bytes(4, "little")
