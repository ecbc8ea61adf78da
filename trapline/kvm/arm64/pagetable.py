"""Stage-2 translation tables: real descriptors in memory that the machine's table walker reads.

Granule 4 KiB, 32 to 48 bits of intermediate physical address, with concatenated tables at the first level as the architecture
allows. A physical address is an address of this process, for the tables as for the memory they map. Descriptors are written with
single 64-bit stores; a valid one is never replaced by another valid one with a different output (break before make).
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

from trapline.registers import Field, Register

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
BLOCK_SHIFT = 21
BLOCK_SIZE = 1 << BLOCK_SHIFT
STRIDE = 9
ENTRIES = 1 << STRIDE
LAST_LEVEL = 3
MAX_CONCATENATED_BITS = 4
"""Up to 16 tables side by side replace one level."""


class Stage2Descriptor(Register):
    """A stage-2 descriptor: leaf (block or page) or table."""

    VALID = Field(0)
    TABLE_OR_PAGE = Field(1)
    MemAttr = Field(5, 2)
    S2AP_R = Field(6)
    S2AP_W = Field(7)
    SH = Field(9, 8)
    AF = Field(10)
    OA = Field(47, 12)
    DBM = Field(51)
    Contiguous = Field(52)
    XN = Field(54, 53)


VALID = Stage2Descriptor.VALID.mask
TABLE_OR_PAGE = Stage2Descriptor.TABLE_OR_PAGE.mask
READ = Stage2Descriptor.S2AP_R.mask
WRITE = Stage2Descriptor.S2AP_W.mask
ADDRESS = Stage2Descriptor.OA.mask
NORMAL_WRITE_BACK = Stage2Descriptor.MemAttr(0b1111) | Stage2Descriptor.SH(0b11) | Stage2Descriptor.AF(1)
"""Attributes of memory: normal, write-back cacheable, inner shareable, accessed."""


def start_level(ipa_bits: int) -> int:
    """Level at which a walk starts: the deepest that at most 16 concatenated tables allow."""
    levels = -(-(ipa_bits - MAX_CONCATENATED_BITS - PAGE_SHIFT) // STRIDE)
    return LAST_LEVEL + 1 - levels


def level_shift(level: int) -> int:
    """The lowest address bit that a level's index uses."""
    return PAGE_SHIFT + STRIDE * (LAST_LEVEL - level)


class TableMemory:
    """Pages for tables: zeroed, of known address, recycled. Only used with the owner's lock held."""

    ARENA_PAGES = 64

    def __init__(self) -> None:
        self._arenas: list[mmap.mmap] = []
        self._free: list[int] = []

    def allocate(self) -> int:
        """The address of a zeroed page."""
        if not self._free:
            start = self._map(self.ARENA_PAGES)
            self._free = [start + index * PAGE_SIZE for index in range(self.ARENA_PAGES)]
        return self._free.pop()

    def allocate_aligned(self, pages: int) -> int:
        """The address of zeroed pages, aligned to their total size (a power of two). For the first level; never freed singly."""
        size = pages * PAGE_SIZE
        start = self._map(2 * pages)
        return (start + size - 1) & -size

    def free(self, page: int) -> None:
        """Give a page back."""
        ctypes.memset(page, 0, PAGE_SIZE)
        self._free.append(page)

    def _map(self, pages: int) -> int:
        arena = mmap.mmap(-1, pages * PAGE_SIZE)
        self._arenas.append(arena)
        return ctypes.addressof(ctypes.c_char.from_buffer(arena))


class Stage2:
    """One set of tables. Not locked: the owner's lock protects changes; the walker of the machine reads at any time."""

    def __init__(self, ipa_bits: int) -> None:
        self.ipa_bits = ipa_bits
        self.first_level = start_level(ipa_bits)
        self._root_bits = ipa_bits - level_shift(self.first_level)
        self._memory = TableMemory()
        pages = max(1, 1 << max(0, self._root_bits - STRIDE))
        self.root = self._memory.allocate_aligned(pages)
        """Address for VTTBR_EL2."""
        self._root = (ctypes.c_uint64 * (pages * ENTRIES)).from_address(self.root)
        self._tables: dict[int, ctypes.Array[ctypes.c_uint64]] = {}
        self._retired: list[int] = []

    def map_page(self, ipa: int, output: int, permissions: int) -> bool:
        """Map one page. False if a descriptor has to be removed first (a block is in the way): the caller unmaps and retries."""
        return self._map(ipa, output, LAST_LEVEL, permissions | TABLE_OR_PAGE)

    def map_block(self, ipa: int, output: int, permissions: int) -> bool:
        """Map 2 MiB. False if pages of that block are mapped one by one already."""
        return self._map(ipa, output, LAST_LEVEL - 1, permissions)

    def _map(self, ipa: int, output: int, leaf_level: int, bits: int) -> bool:
        table, level = self._root, self.first_level
        while level < leaf_level:
            index = ipa >> level_shift(level) & len(table) - 1
            descriptor = table[index]
            if not descriptor & VALID:
                page = self._memory.allocate()
                self._tables[page] = (ctypes.c_uint64 * ENTRIES).from_address(page)
                descriptor = page | VALID | TABLE_OR_PAGE
                table[index] = descriptor
            elif not descriptor & TABLE_OR_PAGE:
                return False
            table, level = self._tables[descriptor & ADDRESS], level + 1
        index = ipa >> level_shift(level) & len(table) - 1
        wanted = output | bits | NORMAL_WRITE_BACK | VALID
        present = table[index]
        if not present & VALID or (present ^ wanted) & ~(READ | WRITE) == 0:
            table[index] = wanted  # new, or only permissions change
            return True
        return False

    def leaf(self, ipa: int) -> tuple[int, int]:
        """The descriptor that a walk for this address ends at, and its level."""
        table, level = self._root, self.first_level
        while True:
            descriptor = table[ipa >> level_shift(level) & len(table) - 1]
            if not descriptor & VALID or level == LAST_LEVEL or not descriptor & TABLE_OR_PAGE:
                return descriptor, level
            table, level = self._tables[descriptor & ADDRESS], level + 1

    def unmap(self, start: int, end: int) -> bool:
        """Remove every translation that touches [start, end); say whether there was any. TLBs still hold them afterwards."""
        return self._unmap(self._root, self.first_level, 0, start, end)

    def clear(self) -> bool:
        """Remove every translation; say whether there was any. TLBs still hold them afterwards."""
        size = ctypes.sizeof(self._root)
        if bytes(self._root).count(0) == size:
            return False
        ctypes.memset(self.root, 0, size)
        self._retired.extend(self._tables.keys() - self._retired)
        return True

    def _unmap(self, table: ctypes.Array[ctypes.c_uint64], level: int, base: int, start: int, end: int) -> bool:
        found = False
        for index, address in self._indices(level, len(table), base, start, end):
            descriptor = table[index]
            if not descriptor & VALID:
                continue
            size = 1 << level_shift(level)
            if level < LAST_LEVEL and descriptor & TABLE_OR_PAGE:
                page = descriptor & ADDRESS
                if start <= address and address + size <= end:
                    table[index] = 0
                    self._free_below(page, level + 1)
                    found = True
                else:
                    found |= self._unmap(self._tables[page], level + 1, address, start, end)
            else:
                table[index] = 0
                found = True
        return found

    def _free_below(self, page: int, level: int) -> None:
        """Give back a table and those it points to. The walker may still be in them until TLB maintenance ends: so not yet."""
        table = self._tables[page]
        if level < LAST_LEVEL:
            for descriptor in table:
                if descriptor & VALID and descriptor & TABLE_OR_PAGE:
                    self._free_below(descriptor & ADDRESS, level + 1)
        self._retired.append(page)

    def reclaim(self) -> None:
        """Recycle the tables that `unmap` took out. To be called after TLB maintenance, when no walk can be in them."""
        for page in self._retired:
            del self._tables[page]
            self._memory.free(page)
        self._retired.clear()

    def write_protect(self, start: int, end: int) -> bool:
        """Take write permission from every leaf that touches [start, end); say whether any had it."""
        found = False
        for table, index in list(self._leaves(self._root, self.first_level, 0, start, end)):
            if table[index] & WRITE:
                table[index] &= ~WRITE
                found = True
        return found

    def _leaves(
        self, table: ctypes.Array[ctypes.c_uint64], level: int, base: int, start: int, end: int
    ) -> Iterator[tuple[ctypes.Array[ctypes.c_uint64], int]]:
        for index, address in self._indices(level, len(table), base, start, end):
            descriptor = table[index]
            if descriptor & VALID:
                if level < LAST_LEVEL and descriptor & TABLE_OR_PAGE:
                    yield from self._leaves(self._tables[descriptor & ADDRESS], level + 1, address, start, end)
                else:
                    yield table, index

    @staticmethod
    def _indices(level: int, length: int, base: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Indices of a table whose addresses meet [start, end), each with its first address."""
        shift = level_shift(level)
        first = max(0, start - base) >> shift
        last = min(length - 1, (end - 1 - base) >> shift)
        return ((index, base + (index << shift)) for index in range(first, last + 1))
