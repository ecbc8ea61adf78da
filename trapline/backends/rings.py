"""What a vCPU's file shares besides kvm_run: the dirty ring, and the page of coalesced writes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trapline.abi.memory import COALESCED_MAX, CoalescedMmio, CoalescedMmioRing, DirtyGfn, DirtyGfnFlag

SLOT_ID_BITS = 16
ENTRY_WORDS = ctypes.sizeof(CoalescedMmio) // 8
"""Of an entry in the ring of coalesced writes: address, length and bus, data."""


@dataclass(frozen=True, slots=True)
class DirtyPage:
    """A page that a vCPU wrote: of which slot (and address space), and its number within the slot."""

    slot: int
    page: int
    address_space: int = 0


class DirtyRing:
    """A vCPU's ring of dirty pages. Harvested entries have to be given back with `vm.reset_dirty_rings` before the ring is full."""

    def __init__(self, mapping: Any) -> None:
        self.entries = len(mapping) // ctypes.sizeof(DirtyGfn)
        self._ring = (DirtyGfn * self.entries).from_buffer(mapping)
        self._next = 0

    def harvest(self) -> list[DirtyPage]:
        """The pages that were written since the last harvest, in order."""
        return list(self._take())

    def _take(self) -> Iterator[DirtyPage]:
        for _ in range(self.entries):
            entry = self._ring[self._next % self.entries]
            if entry.flags != DirtyGfnFlag.DIRTY:
                return
            yield DirtyPage(entry.slot & (1 << SLOT_ID_BITS) - 1, entry.offset, entry.slot >> SLOT_ID_BITS)
            entry.flags = DirtyGfnFlag.RESET
            self._next += 1


@dataclass(frozen=True, slots=True)
class CoalescedWrite:
    """A write of the guest's that did not end its run. `pio`: to a port."""

    address: int
    data: bytes
    pio: bool = False

    @property
    def value(self) -> int:
        """`data` as a number."""
        return int.from_bytes(self.data, "little")


class CoalescedRing:
    """The page that holds coalesced writes of all vCPUs until somebody takes them."""

    def __init__(self, page: Any) -> None:
        self._head = CoalescedMmioRing.from_buffer(page)
        self._entries = (CoalescedMmio * COALESCED_MAX).from_buffer(page, ctypes.sizeof(CoalescedMmioRing))
        self._words = memoryview(self._entries).cast("B").cast("Q")

    def drain(self) -> list[CoalescedWrite]:
        """The writes since the last time, in order. To be done after every exit, before the exit itself is looked at."""
        numbers, last = self._waiting()
        entries = [self._entries[number] for number in numbers]
        writes = [CoalescedWrite(entry.phys_addr, bytes(entry.data[: entry.len]), bool(entry.pio)) for entry in entries]
        self._head.first = last
        return writes

    def take(self) -> list[tuple[int, int, int]]:
        """The same in a hurry, where ports are of no concern: address, length and value of each write."""
        words, (numbers, last) = self._words, self._waiting()
        starts = [number * ENTRY_WORDS for number in numbers]
        writes = [(words[at], words[at + 1] & 0xF, words[at + 2]) for at in starts]
        self._head.first = last
        return writes

    def _waiting(self) -> tuple[list[int], int]:
        """The numbers of the entries that wait, in order, and that of the one after them."""
        first, last = self._head.first, self._head.last
        return [(first + k) % COALESCED_MAX for k in range((last - first) % COALESCED_MAX)], last
