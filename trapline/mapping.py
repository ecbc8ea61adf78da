"""Anonymous memory of this process, away from everything else in its address space.

Compiled code has to stay together: an object file's parts refer to each other by 32-bit distances. The host puts new mappings side by
side, so a guest's gigabytes among them would keep the code that is compiled afterwards apart from the code that is there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any

FAR, FAR_SPAN = 0x1000_0000_0000, 0x4000_0000_0000
"""Where memory is asked for: the middle of a 47-bit address space. A host with less of it chooses a place itself."""
ALIGN = 2 << 20
MAP_NORESERVE = 0x4000  # not in the mmap module of every supported Python; the same on x86-64 and arm64
FAILED = ctypes.c_void_p(-1).value


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


LIBC = _libc()


def map_far(size: int, file: int = -1, offset: int = 0, huge: bool = False) -> Any:
    """`size` bytes as an array, unmapped when nothing refers to it any more. OSError when the host has no room.

    They are zero, or with `file`, a descriptor, what it holds from `offset` on; changes stay in this process.
    `huge`: in huge pages where the host has some, for what is used from its start on: a page fault for each 2 MiB, and few TLB misses.
    """
    hint = FAR + int.from_bytes(os.urandom(8), "little") % FAR_SPAN & -ALIGN
    flags = mmap.MAP_PRIVATE | MAP_NORESERVE | (mmap.MAP_ANONYMOUS if file < 0 else 0)
    address = LIBC.mmap(hint, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, offset)
    if address == FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        advise(address, size, mmap.MADV_HUGEPAGE)
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, LIBC.munmap, address, size).atexit = False  # type: ignore[misc]
    return memory


def protect(address: int, size: int, protection: int) -> None:
    """mprotect(2) with `mmap.PROT_` flags; OSError if the host refuses."""
    if LIBC.mprotect(address, size, protection):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def advise(address: int, size: int, advice: int) -> None:
    """madvise(2), where the host knows this advice."""
    LIBC.madvise(address, size, advice)
