"""What changed in memory that is shared with a KVM: guest memory, kvm_run, rings. Nobody tells; it is looked at before and after calls."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import Any

from trapline.errors import KvmError
from trapline.host.user import copy_from_user
from trapline.mapping import LIBC

CHUNK = 64 << 10
PAGE = mmap.PAGESIZE
WORD = 8
ZEROES = bytes(CHUNK)


class GuestPages:
    """A slot's memory in this process. Only what is resident is looked at; the rest is zero."""

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        self._known: dict[int, bytes] = {}
        """What the chunks held that are not zero, by offset."""

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """Offset and content of each page that is not what it was the last time. Nothing if the memory is not there any more."""
        resident = (ctypes.c_uint8 * -(-self.size // PAGE))()
        if LIBC.mincore(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size), resident):
            return
        there = bytes(resident)
        pages = CHUNK // PAGE
        for at in range(0, self.size, CHUNK):
            first = at // PAGE
            if at not in self._known and not any(there[first : first + pages]):
                continue
            size = min(CHUNK, self.size - at)
            before = self._known.get(at, ZEROES)
            if LIBC.memcmp(ctypes.c_void_p(self.address + at), before, ctypes.c_size_t(size)):
                self._known[at] = now = ctypes.string_at(self.address + at, size)
                yield from ((at + k, now[k : k + PAGE]) for k in range(0, size, PAGE) if now[k : k + PAGE] != before[k : k + PAGE])


class SharedWords:
    """A buffer that userspace and KVM both write: kvm_run, or a dirty ring."""

    def __init__(self, buffer: Any) -> None:
        self.view = memoryview(buffer).cast("B")
        self._known = bytes(self.view)

    def changes(self, first: int = 0) -> list[list[Any]]:
        """Offset and content, in hexadecimal, of each run of words from `first` on that are not what they were the last time."""
        before, now = self._known, bytes(self.view)
        self._known = now
        if before == now:
            return []
        runs: list[tuple[int, bytes]] = []
        for page in range(first, len(now), PAGE):
            end = min(page - page % PAGE + PAGE, len(now))
            if before[page:end] == now[page:end]:
                continue
            for at in range(page, end, WORD):
                word = now[at : at + WORD]
                if before[at : at + WORD] != word:
                    if runs and runs[-1][0] + len(runs[-1][1]) == at:
                        runs[-1] = (runs[-1][0], runs[-1][1] + word)
                    else:
                        runs.append((at, word))
        return [[at, data.hex()] for at, data in runs]

    def write(self, changes: list[list[Any]]) -> None:
        """Write what another buffer like this one was changed to."""
        for at, data in changes:
            content = bytes.fromhex(data)
            self.view[at : at + len(content)] = content


def readable(address: int, size: int) -> bytes:
    """As much of this process's memory as can be read from an address on, up to `size` bytes."""
    try:
        return copy_from_user(address, size)
    except KvmError:
        pass
    content = b""
    while len(content) < size:  # up to where the next page begins, which cannot be read
        step = min(size - len(content), PAGE - (address + len(content)) % PAGE)
        try:
            content += copy_from_user(address + len(content), step)
        except KvmError:
            break
    return content
