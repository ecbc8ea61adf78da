"""Pages that are at two addresses of this process: what mapping a file twice gives, without a file."""

from __future__ import annotations

import ctypes
import mmap
from errno import ENOMEM

from trapline.errors import KvmError
from trapline.host.user import LIBC, PAGE_SIZE

MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2

LIBC.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
LIBC.mremap.restype = ctypes.c_void_p


def address_of(mapping: mmap.mmap) -> int:
    """Where a mapping is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def share_page(page: mmap.mmap, mapping: mmap.mmap, index: int) -> None:
    """Put the first page of one shared mapping in the place of another mapping's page number `index`. KvmError(ENOMEM).

    An old size of 0 makes Linux's mremap leave the original where it is.
    """
    target = address_of(mapping) + index * PAGE_SIZE
    if LIBC.mremap(address_of(page), 0, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, target) != target:
        raise KvmError(ENOMEM)
