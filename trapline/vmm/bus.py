"""The bus: which device answers which guest physical address."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from trapline.devices.device import MmioDevice, Reader, Writer

CACHED_ACCESSES = 4096
"""How many (address, size) pairs are remembered: more than a machine has registers, and a bound on what a guest can make us keep."""

SIZE_BITS = 4


@dataclass(frozen=True, slots=True)
class Window:
    """A device's place in the physical address space."""

    base: int
    device: MmioDevice

    @property
    def end(self) -> int:
        """The first address after the window."""
        return self.base + self.device.size


class Bus:
    """Owns the address ranges; devices never learn where they are.

    Sizes are 1, 2, 4 or 8 bytes. The callable that serves an (address, size) pair is found once and remembered, so that an access
    costs one dictionary look-up.
    """

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self._bases: list[int] = []
        self._readers: dict[int, Reader] = {}
        self._writers: dict[int, Writer] = {}

    def add(self, base: int, device: MmioDevice) -> None:
        """Place a device; its window may not touch another one's."""
        window = Window(base, device)
        at = bisect_right(self._bases, base)
        if at and self.windows[at - 1].end > base or at < len(self.windows) and window.end > self.windows[at].base:
            raise ValueError(f"the window of {type(device).__name__} at {base:#x} overlaps another device")
        self.windows.insert(at, window)
        self._bases.insert(at, base)

    def find(self, address: int) -> Window | None:
        """The window that holds an address."""
        at = bisect_right(self._bases, address)
        if at and address < self.windows[at - 1].end:
            return self.windows[at - 1]
        return None

    def read(self, address: int, size: int) -> int | None:
        """The value at an address, None where no device is."""
        key = address << SIZE_BITS | size
        reader = self._readers.get(key)
        if reader is None:
            window = self.find(address)
            if window is None:
                return None
            reader = window.device.reader(address - window.base, size)
            if len(self._readers) < CACHED_ACCESSES:
                self._readers[key] = reader
        return reader()

    def write(self, address: int, size: int, value: int) -> bool:
        """Write a value; False where no device is."""
        key = address << SIZE_BITS | size
        writer = self._writers.get(key)
        if writer is None:
            window = self.find(address)
            if window is None:
                return False
            writer = window.device.writer(address - window.base, size)
            if len(self._writers) < CACHED_ACCESSES:
                self._writers[key] = writer
        writer(value)
        return True

    def reset(self) -> None:
        """Reset every device."""
        for window in self.windows:
            window.device.reset()
