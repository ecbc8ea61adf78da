"""Physical memory of a bare machine, as its interrupt controller reads and writes the tables that the guest gave it."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EFAULT

from trapline.abi.vm import MemoryFlag
from trapline.backends.memory import GuestMemory
from trapline.errors import KvmError


class PhysicalMemory:
    """The memories of one machine by physical address. KvmError(EFAULT) where there is none."""

    def __init__(self, memories: Sequence[GuestMemory]) -> None:
        """`memories` may grow."""
        self._memories = memories

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes, which lie in one memory."""
        memory, at = self._find(gpa, size)
        return bytes(memory.view[at : at + size])

    def write(self, gpa: int, data: bytes) -> None:
        """Write them; not to a ROM."""
        memory, at = self._find(gpa, len(data))
        if memory.flags & MemoryFlag.READONLY:
            raise KvmError(EFAULT)
        memory.view[at : at + len(data)] = data

    def _find(self, gpa: int, size: int) -> tuple[GuestMemory, int]:
        for memory in self._memories:
            at = gpa - memory.guest_phys_addr
            if 0 <= at <= memory.size - size:
                return memory, at
        raise KvmError(EFAULT)
