"""What walks leave behind so that later ones are shorter: last-level tables of stage 1, and stage-2 translations.

Hardware calls these intermediate TLB entries, and the architecture lets software see them: whoever changes tables must invalidate.
A cache belongs to one PE. `walk.py` looks into it and enters what it finds; whoever keeps the cache (the engine) invalidates.
Only valid translations and tables are entered, so a fault is what some descriptor in memory says.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint64

from trapline.bits.native import Ptr, native, u64

TABLES, BLOCKS, PAGES = 256, 256, 512
BLOCK_SHIFT, PAGE_SHIFT = 21, 12
REGION_SHIFTS = (21, 25, 29)
"""log2 of what a last-level table of stage 1 maps: granules of 4, 16 and 64 KiB."""
VALID = 1 << 63
FRAME_BITS = 44
"""A frame number is VA[55:12]: the top byte may be a tag."""


class TableEntry(ctypes.Structure):
    """A last-level table of stage 1: the VA region as VALID | VA >> shift, the address space, its (intermediate) physical address,
    and the table descriptors that led there, ORed, for the permissions that they take away.

    `host` is where the table lies in this process, if `walk.shortcut` may use it: it belongs to EL1&0 with a granule of 4 KiB, under
    these values of both base registers, `control` (stage1.py's flags), and for addresses of at most `output_bits`.
    """

    _fields_ = [
        ("tag", c_uint64),
        ("space", c_uint64),
        ("table", c_uint64),
        ("inherited", c_uint64),
        ("host", c_uint64),
        ("ttbr0", c_uint64),
        ("ttbr1", c_uint64),
        ("control", c_uint64),
        ("output_bits", c_uint64),
    ]


class IpaEntry(ctypes.Structure):
    """A stage-2 translation of a block or page: `tag` is the IPA's frame number plus 1, `leaf` as in descriptors.py."""

    _fields_ = [("tag", c_uint64), ("output", c_uint64), ("leaf", c_uint64)]


class WalkCache(ctypes.Structure):
    """All of one PE."""

    _fields_ = [("tables", TableEntry * TABLES), ("blocks", IpaEntry * BLOCKS), ("pages", IpaEntry * PAGES)]


@native
def forget_tables(cache: Ptr[WalkCache]) -> None:
    """Forget every table of stage 1."""
    for k in range(TABLES):
        cache.tables[k].tag = 0


@native
def forget_tables_of(cache: Ptr[WalkCache], first: u64, last: u64) -> None:
    """Forget tables of stage 1 that map any of the frames `first` to `last`."""
    if last - first >= 1 << 13:
        forget_tables(cache)
        return
    frame = first
    while frame >> (BLOCK_SHIFT - 12) <= last >> (BLOCK_SHIFT - 12):
        for shift in range(REGION_SHIFTS[0] - 12, REGION_SHIFTS[2] - 12 + 1, 4):
            cache.tables[frame >> shift & (TABLES - 1)].tag = 0
        frame = frame + (1 << (BLOCK_SHIFT - 12))


@native
def forget_stage2(cache: Ptr[WalkCache]) -> None:
    """Forget every stage-2 translation."""
    for k in range(BLOCKS):
        cache.blocks[k].tag = 0
    for k in range(PAGES):
        cache.pages[k].tag = 0
    for k in range(TABLES):
        cache.tables[k].host = 0
