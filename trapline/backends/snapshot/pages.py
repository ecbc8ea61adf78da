"""Which pages of guest memory are worth keeping: those that are not zero, found without touching those that nobody touched."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterable, Iterator

from trapline.abi.memory import PAGE
from trapline.backends.memory import GuestMemory

ENTRY_BYTES = 8
"""Of /proc/self/pagemap, for each page. Bits 63 and 62 of an entry: the page is in memory, or in swap."""
THERE = bytes(int(byte >= 0x40) for byte in range(256))
"""Whether a page is, by the highest byte of its entry."""
STRETCH = re.compile(rb"\x01+")
MOST_PAGES = 256
"""Pages of a range that is read, checked and sent at once: a MiB."""

Range = tuple[int, int]
"""First page, and how many."""


class _Compare:
    """memcmp(3) against a page of zeroes."""

    def __init__(self) -> None:
        self.zeroes = ctypes.create_string_buffer(PAGE)
        self.call = ctypes.CDLL(None).memcmp
        self.call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def touched(memory: GuestMemory) -> Iterator[Range]:
    """Pages that may differ from zero: those this process has, and those of the file under them."""
    count = memory.size // PAGE
    flags = _present(memory.address, count) if memory.owned else None
    if flags is None:
        yield 0, count
        return
    if memory.stored is not None:
        marked = bytearray(flags)
        for first, pages in memory.stored.pages:
            marked[first : first + pages] = b"\x01" * pages
        flags = bytes(marked)
    for stretch in STRETCH.finditer(flags):
        yield stretch.start(), stretch.end() - stretch.start()


def _present(address: int, count: int) -> bytes | None:
    """A byte for each page from an address on: 1 if this process has it. None where the host does not say, or has larger pages."""
    if mmap.PAGESIZE != PAGE:
        return None
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(address // PAGE * ENTRY_BYTES)
            entries = file.read(count * ENTRY_BYTES)
    except OSError:
        return None
    return entries[ENTRY_BYTES - 1 :: ENTRY_BYTES].translate(THERE) if len(entries) == count * ENTRY_BYTES else None


def not_zero(memory: GuestMemory, among: Iterable[Range] | None = None) -> Iterator[Range]:
    """Ranges of pages that are not zero, of at most MOST_PAGES each; `among` these, or of the whole memory."""
    compare = _Compare()
    same, zeroes, base = compare.call, ctypes.addressof(compare.zeroes), memory.address
    for first, count in touched(memory) if among is None else among:
        begin = -1
        for page in range(first, first + count):
            if same(base + page * PAGE, zeroes, PAGE):
                if begin < 0:
                    begin = page
                elif page - begin == MOST_PAGES:
                    yield begin, MOST_PAGES
                    begin = page
            elif begin >= 0:
                yield begin, page - begin
                begin = -1
        if begin >= 0:
            yield begin, first + count - begin
