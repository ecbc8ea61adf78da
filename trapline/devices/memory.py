"""Guest memory as devices see it: bounds-checked views, by guest physical address."""

from __future__ import annotations

from struct import Struct

PAGE = 4096


class BadGuestAddress(Exception):
    """A guest gave a device an address that is not memory."""


class GuestRam:
    """One contiguous range of guest RAM.

    base: guest physical address of the first byte.
    view: a writable, byte-wide memoryview of the whole range.
    """

    def __init__(self, base: int, view: memoryview) -> None:
        self.base = base
        self.bytes = view
        self.size = len(view)
        self.written: set[int] | None = None
        """Numbers of pages that devices have written, for a migration: no KVM logs what userspace does. None if nobody wants to know."""

    def view(self, address: int, length: int) -> memoryview:
        """A writable view of `length` bytes at guest physical `address`; all of it is memory, or BadGuestAddress."""
        return self.bytes[(start := self.offset(address, length)) : start + length]

    def writable(self, address: int, length: int) -> memoryview:
        """The same for a device that is about to write there."""
        view = self.view(address, length)
        if self.written is not None:
            self.mark(address, length)
        return view

    def mark(self, address: int, length: int) -> None:
        """Note pages as written."""
        if self.written is not None and length:
            start = address - self.base
            self.written.update(range(start // PAGE, (start + length - 1) // PAGE + 1))

    def offset(self, address: int, length: int) -> int:
        """Where `address` is in `bytes`, when the whole range is memory."""
        start = address - self.base
        if start < 0 or length < 0 or start + length > self.size:
            raise BadGuestAddress(f"{length} bytes at {address:#x} are not inside RAM")
        return start

    def unpack(self, layout: Struct, address: int) -> tuple[int, ...]:
        """Read a structure at guest physical `address`."""
        return layout.unpack_from(self.bytes, self.offset(address, layout.size))

    def pack(self, layout: Struct, address: int, *values: int) -> None:
        """Write a structure at guest physical `address`."""
        if self.written is not None:
            self.mark(address, layout.size)
        layout.pack_into(self.bytes, self.offset(address, layout.size), *values)
