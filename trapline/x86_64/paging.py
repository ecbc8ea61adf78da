"""Page tables for guests: built in guest memory, four levels for long mode or two for 32-bit protected mode.

    tables = PageTables(ram, base=0x1000, size=0x8000)
    tables.map(0, 0, 1 << 30, page=2 << 20)               identity, 2 MiB pages
    tables.map(0xFFFF_8000_0000_0000, 0x20_0000, 4096, writable=False, executable=False)
    tables.root                                            for CR3

Memory is anything that can be read and written by slices of guest physical addresses from `offset` on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trapline.errors import BadInput
from trapline.registers import Field, Register

PAGE = 4096
KIB4, MIB2, MIB4, GIB1 = PAGE, 2 << 20, 4 << 20, 1 << 30


class PageEntry(Register, width=64):
    """An entry of a page table at any level."""

    P = Field(0)  # present
    RW = Field(1)
    US = Field(2)  # user may access
    PWT = Field(3)
    PCD = Field(4)
    A = Field(5)  # accessed
    D = Field(6)  # dirty: leaves
    PS = Field(7)  # a leaf above the last level
    G = Field(8)
    NX = Field(63)


ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
LARGEST_LEAF = 30
"""No entry maps more than 1 GiB."""
ACCESSED = PageEntry.A.mask | PageEntry.D.mask


class Layout:
    """How a kind of paging divides a linear address."""

    def __init__(self, shifts: tuple[int, ...], index_bits: int, entry_bytes: int, address_bits: int) -> None:
        self.shifts = shifts  # from the root down; a page of the last level has 1 << shifts[-1] bytes
        self.index_bits = index_bits
        self.entry_bytes = entry_bytes
        self.address_bits = address_bits
        self.entries = 1 << index_bits
        self.leaves = tuple(shift for shift in shifts if shift <= LARGEST_LEAF)


LONG_MODE = Layout((39, 30, 21, 12), 9, 8, 48)
PROTECTED_MODE = Layout((22, 12), 10, 4, 32)
"""32-bit paging without PAE: CR4.PSE allows 4 MiB pages."""


class PageTables:
    """Tables in `size` bytes of guest memory at `base`; the root is the first page."""

    def __init__(self, memory: Any, base: int, size: int, layout: Layout = LONG_MODE, offset: int = 0) -> None:
        """`memory[0]` is the guest physical address `offset`."""
        if base % PAGE or size % PAGE or size <= 0:
            raise BadInput(f"page tables need whole pages, not {size:#x} bytes at {base:#x}")
        self._memory = memory
        self._offset = offset
        self._end = base + size
        self._next = base
        self.layout = layout
        self.root = self._new_table()

    def map(
        self,
        linear: int,
        physical: int,
        size: int,
        *,
        page: int = KIB4,
        writable: bool = True,
        user: bool = False,
        executable: bool = True,
        extra: int = 0,
    ) -> None:
        """Map `size` bytes with pages of `page` bytes; what was mapped there is replaced. `extra` are further bits of the entries.

        BadInput for sizes and addresses that pages of this size cannot have, and when the room for tables is used up.
        Without `executable` the leaf has its NX bit set, which long mode honours once EFER.NXE is on.
        """
        shift = page.bit_length() - 1
        if page != 1 << shift or shift not in self.layout.leaves:
            sizes = ", ".join(f"{1 << level:#x}" for level in reversed(self.layout.leaves))
            raise BadInput(f"there are no pages of {page:#x} bytes here, but of {sizes}")
        if (linear | physical | size) & page - 1 or size <= 0:
            raise BadInput(f"{size:#x} bytes at {linear:#x} and {physical:#x} are not whole pages of {page:#x} bytes")
        flags = PageEntry.P.mask | ACCESSED | (PageEntry.RW.mask * writable) | (PageEntry.US.mask * user) | extra
        if not executable:
            flags |= PageEntry.NX.mask
        if shift != self.layout.shifts[-1]:
            flags |= PageEntry.PS.mask
        for at in range(0, size, page):
            self._set(linear + at, (physical + at) | flags, shift)

    def unmap(self, linear: int, *, page: int = KIB4) -> None:
        """Make one page not present."""
        self._set(linear, 0, page.bit_length() - 1)

    def translate(self, linear: int) -> int | None:
        """The physical address that the tables give, None where nothing is mapped."""
        table = self.root
        for shift, address in self._walk(linear, table):
            entry = self._read(address)
            if not entry & PageEntry.P.mask:
                return None
            if shift == self.layout.shifts[-1] or entry & PageEntry.PS.mask:
                inside = (1 << shift) - 1
                return entry & ADDRESS_MASK & ~inside | linear & inside
        return None

    def _walk(self, linear: int, table: int) -> Iterator[tuple[int, int]]:
        """The entries on the way down: how much each covers, and where it is."""
        for shift in self.layout.shifts:
            address = table + (linear >> shift & self.layout.entries - 1) * self.layout.entry_bytes
            yield shift, address
            table = self._read(address) & ADDRESS_MASK

    def _set(self, linear: int, entry: int, leaf_shift: int) -> None:
        """Write the entry of one page, making the tables above it."""
        below = linear & (1 << self.layout.address_bits) - 1
        for shift, address in self._walk(below, self.root):
            if shift == leaf_shift:
                self._write(address, entry)
                return
            above = self._read(address)
            if not above & PageEntry.P.mask:
                above = self._new_table()
            elif above & PageEntry.PS.mask:
                above = self._split(above, shift)
            # Leaves decide: nothing above them forbids what they allow.
            allowed = PageEntry.P.mask | PageEntry.RW.mask | PageEntry.A.mask | (entry & PageEntry.US.mask)
            self._write(address, above | allowed)

    def _split(self, leaf: int, shift: int) -> int:
        """A table of smaller pages that maps what a large page did."""
        smaller = self.layout.shifts[self.layout.shifts.index(shift) + 1]
        if smaller == self.layout.shifts[-1]:
            leaf &= ~PageEntry.PS.mask
        table = self._new_table()
        for index in range(self.layout.entries):
            self._write(table + index * self.layout.entry_bytes, leaf + (index << smaller))
        return table

    def _new_table(self) -> int:
        if self._next >= self._end:
            raise BadInput("the room for page tables is used up: give them more, or use larger pages")
        table, self._next = self._next, self._next + PAGE
        self._memory[table - self._offset : table - self._offset + PAGE] = bytes(PAGE)
        return table

    def _read(self, address: int) -> int:
        at = address - self._offset
        return int.from_bytes(self._memory[at : at + self.layout.entry_bytes], "little")

    def _write(self, address: int, entry: int) -> None:
        at = address - self._offset
        mask = (1 << 8 * self.layout.entry_bytes) - 1
        self._memory[at : at + self.layout.entry_bytes] = (entry & mask).to_bytes(self.layout.entry_bytes, "little")
