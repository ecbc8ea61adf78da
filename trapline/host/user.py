"""The memory of the calling process: which addresses are mapped, and copies that fail instead of crashing.

A guest's memory is memory of this process, and an engine reads it with ordinary loads. So nothing may be mapped for a guest before
the host has confirmed that the address is there and can be read or written: that is what get_user_pages does for Linux.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from bisect import bisect_right
from ctypes import c_size_t, c_ulong, c_void_p
from errno import EFAULT
from functools import cache
from typing import NamedTuple

from trapline.errors import KvmError
from trapline.sync import Lock

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1
USER_END = 1 << (48 if platform.machine() in ("aarch64", "arm64") else 47)
"""First address beyond user space."""

MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23


_Vectors = ctypes.c_size_t * 4
"""Two `struct iovec`: base and length here, base and length there."""

VECTOR_SIZE = 2 * ctypes.sizeof(ctypes.c_size_t)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("process_vm_readv", "process_vm_writev"):
        function = getattr(libc, name)
        function.argtypes = [ctypes.c_int, c_void_p, c_ulong, c_void_p, c_ulong, c_ulong]
        function.restype = ctypes.c_ssize_t
    for name in ("pread", "pwrite"):
        function = getattr(libc, name)
        function.argtypes = [ctypes.c_int, c_void_p, c_size_t, ctypes.c_int64]
        function.restype = ctypes.c_ssize_t
    libc.madvise.argtypes = [c_void_p, c_size_t, ctypes.c_int]
    return libc


LIBC = _libc()


class Area(NamedTuple):
    """A stretch of mapped addresses with one protection."""

    start: int
    end: int
    readable: bool
    writable: bool


def read_areas() -> list[Area]:
    """The process's mappings in order, neighbours with the same protection joined."""
    areas: list[Area] = []
    with open("/proc/self/maps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            addresses, protection, _ = line.split(" ", 2)
            start, end = (int(part, 16) for part in addresses.split("-"))
            area = Area(start, end, protection[0] == "r", protection[1] == "w")
            if areas and areas[-1][1:] == (start, area.readable, area.writable):
                area = area._replace(start=areas.pop().start)
            areas.append(area)
    return areas


class AddressSpace:
    """What is mapped in this process. The list of areas is read when needed and kept until an address contradicts it."""

    def __init__(self) -> None:
        self._lock = Lock("address_space", protects="the cached list of areas")
        self._areas: list[Area] = []
        self._starts: list[int] = []

    def refresh(self) -> None:
        """Read the areas again: something was mapped, unmapped or protected."""
        areas = read_areas()
        with self._lock:
            self._areas = areas
            self._starts = [area.start for area in areas]

    def _find(self, address: int) -> Area | None:
        with self._lock:
            index = bisect_right(self._starts, address) - 1
            area = self._areas[index] if index >= 0 else None
        return area if area is not None and address < area.end else None

    def fault_in(self, address: int, write: bool) -> Area:
        """Make the page at `address` present for reading or writing, and return the area it lies in.

        KvmError(EFAULT) if nothing is mapped there or the protection forbids the access.
        """
        page = address & ~PAGE_MASK
        for _ in range(2):
            area = self._find(page)
            if area is not None and area.readable and (area.writable or not write) and _populate(page, write):
                return area
            self.refresh()
        raise KvmError(EFAULT)


def _populate(page: int, write: bool) -> bool:
    """Have the kernel fault one page in; False if an access would fail."""
    if _knows_populate():
        return bool(LIBC.madvise(page, PAGE_SIZE, MADV_POPULATE_WRITE if write else MADV_POPULATE_READ) == 0)
    return _transfer(LIBC.process_vm_readv, page, ctypes.create_string_buffer(1), 1)


@cache
def _knows_populate() -> bool:
    """Whether the kernel has the advice (since 5.14). Without it a read probes the page, and the area's protection is trusted."""
    probe = ctypes.create_string_buffer(2 * PAGE_SIZE)
    page = ctypes.addressof(probe) + PAGE_MASK & ~PAGE_MASK
    return bool(LIBC.madvise(page, PAGE_SIZE, MADV_POPULATE_READ) == 0)


def _transfer(call: ctypes._NamedFuncPointer, address: int, buffer: ctypes.Array[ctypes.c_char], size: int) -> bool:
    """Copy between the buffer and an address that need not be valid."""
    vectors = _Vectors(ctypes.addressof(buffer), size, address, size)
    place = ctypes.addressof(vectors)
    return bool(call(os.getpid(), place, 1, place + VECTOR_SIZE, 1, 0) == size)


class _Window:
    """A page of a file through which small copies go: one system call each, and the kernel looks at the address.

    Writing memory to the file reads it, reading the file into memory writes it; the page itself is mapped here.
    """

    def __init__(self) -> None:
        self._lock = Lock("user_window", protects="the page's contents")
        self._owner = 0
        self._file = -1
        self._page: mmap.mmap

    def _open(self) -> None:
        """A child that was forked needs a page of its own."""
        self._file = os.memfd_create("trapline-user-copies", os.MFD_CLOEXEC)
        os.truncate(self._file, PAGE_SIZE)
        self._page = mmap.mmap(self._file, PAGE_SIZE)
        self._owner = os.getpid()

    def read(self, address: int, size: int) -> bytes | None:
        """What is at the address; None if that cannot be read."""
        with self._lock:
            if self._owner != os.getpid():
                self._open()
            return self._page[:size] if LIBC.pwrite(self._file, address, size, 0) == size else None

    def write(self, address: int, data: bytes) -> bool:
        """Put data at the address; False if that cannot be written."""
        with self._lock:
            if self._owner != os.getpid():
                self._open()
            self._page[: len(data)] = data
            return bool(LIBC.pread(self._file, address, len(data), 0) == len(data))


@cache
def _window() -> _Window:
    """The process's own."""
    return _Window()


def copy_from_user(address: int, size: int) -> bytes:
    """`size` bytes of user memory; KvmError(EFAULT) if they cannot be read."""
    if not size:
        return b""
    if not 0 < address <= USER_END - size:
        raise KvmError(EFAULT)
    if size <= PAGE_SIZE:
        data = _window().read(address, size)
    else:
        buffer = ctypes.create_string_buffer(size)
        data = buffer.raw if _transfer(LIBC.process_vm_readv, address, buffer, size) else None
    if data is None:
        raise KvmError(EFAULT)
    return data


def copy_to_user(address: int, data: bytes) -> None:
    """Write user memory; KvmError(EFAULT) if it cannot be written."""
    size = len(data)
    if not size:
        return
    if not 0 < address <= USER_END - size:
        raise KvmError(EFAULT)
    if size <= PAGE_SIZE:
        done = _window().write(address, data)
    else:
        done = _transfer(LIBC.process_vm_writev, address, ctypes.create_string_buffer(data, size), size)
    if not done:
        raise KvmError(EFAULT)


def valid_range(address: int, size: int) -> bool:
    """Whether a range lies in user address space; it need not be mapped."""
    return 0 <= address and 0 <= size <= USER_END and address <= USER_END - size
