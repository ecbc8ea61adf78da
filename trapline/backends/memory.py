"""Guest memory: an anonymous or file mapping of this process, placed in a VM as a memory slot."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trapline.errors import BadInput
from trapline.mapping import advise, map_far

HUGE_PAGE = 2 << 20
PAGE = mmap.PAGESIZE


class Slots(Protocol):
    """What has a physical address space."""

    def set_user_memory_region(self, slot: int, flags: int, guest_phys_addr: int, size: int, userspace_addr: int) -> None:
        """Put memory of this process at a guest physical address; no size deletes the slot."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Contents of guest memory in a file, and which pages of them are not zero: ranges of numbers, first and count."""

    file: int
    offset: int
    pages: Sequence[tuple[int, int]]


class GuestMemory:
    """`size` bytes of guest memory at `guest_phys_addr`, readable and writable like a bytearray.

    The guest sees writes at once, and the other way round. The mapping lives until the slot is deleted: by `close`, or with the VM.
    """

    def __init__(
        self, vm: Slots, slot: int, guest_phys_addr: int, size: int, flags: int, host: Any = None, stored: Stored | None = None
    ) -> None:
        """Make the mapping (or use `host`, a writable page-aligned buffer) and the slot.

        With `stored` the memory is that of a file, read when it is touched; all who map the same file share what they do not change.
        """
        if size <= 0 or size % PAGE:
            raise BadInput(f"memory size {size:#x} is not a positive multiple of the page size {PAGE:#x}")
        self.guest_phys_addr = guest_phys_addr
        self.size = size
        self.slot = slot
        self.flags = flags
        self._vm = vm
        self._owned = host is None
        self.stored = stored
        if stored is not None:
            self._buffer = map_far(size, stored.file, stored.offset)
        else:
            # The guest's memory starts on a huge page, so that KVM can map it by blocks.
            self._buffer = map_far(size + HUGE_PAGE) if self._owned else host
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        skip = -start % HUGE_PAGE if self._owned and stored is None else 0
        self.address = start + skip
        """Where the memory is in this process."""
        self._view = memoryview(self._buffer).cast("B")[skip : skip + size]
        if self._owned and stored is None and hasattr(mmap, "MADV_HUGEPAGE"):
            advise(self.address, size, mmap.MADV_HUGEPAGE)
        vm.set_user_memory_region(slot, flags, guest_phys_addr, size, self.address)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: int | slice) -> Any:
        value = self._view[key]
        return bytes(value) if isinstance(key, slice) else value

    def __setitem__(self, key: int | slice, value: Any) -> None:
        self._view[key] = value

    @property
    def owned(self) -> bool:
        """Whether the mapping is private to this object, so that pages which this process never touched are as they were made."""
        return self._owned

    @property
    def view(self) -> memoryview:
        """The bytes without a copy, for a device that reads or writes guest memory."""
        return self._view

    def __contains__(self, guest_phys_addr: int) -> bool:
        return 0 <= guest_phys_addr - self.guest_phys_addr < self.size

    def close(self) -> None:
        """Delete the slot. The mapping is released when nothing refers to it any more."""
        if self.slot >= 0:
            self._vm.set_user_memory_region(self.slot, 0, self.guest_phys_addr, 0, self.address)
            self.slot = -1

    def discard(self) -> None:
        """The VM is gone: give the pages back to the host at once, however long somebody still holds on to the mapping."""
        self.slot = -1
        if self._owned:
            advise(self.address, self.size, mmap.MADV_DONTNEED)

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GuestMemory slot {self.slot}: {self.size:#x} bytes at {self.guest_phys_addr:#x}, host {self.address:#x}>"
