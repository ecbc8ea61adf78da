"""pci-testdev: the PCI function that kvm-unit-tests look for (QEMU's docs/specs/pci-testdev describes it).

Each BAR begins with a header: the guest writes a test's number to its first byte, finds the width, offset and data to write, writes
some times, and reads how often the device saw it.
"""

from __future__ import annotations

from struct import Struct

from trapline.devices.device import MmioDevice
from trapline.devices.pci import Bar, Command, PciFunction

VENDOR, DEVICE, CLASS_OTHER = 0x1B36, 0x0005, 0x00FF00

HEADER = Struct("<BB2xIII")
"""test, width, offset, data, count; the test's name follows"""

TESTS = ("no-eventfd", "wildcard-eventfd", "datamatch-eventfd")
DATAMATCH = TESTS.index("datamatch-eventfd")
EXPECTED = 0xFA


class TestArea(MmioDevice):
    """One BAR: three tests, each counting the byte writes to an address of its own in the upper half."""

    kept = ("test", "count")

    def __init__(self, prefix: str, size: int) -> None:
        self.prefix = prefix
        self.size = size  # type: ignore[misc] # a BAR's size is part of what it is
        super().__init__()

    def reset(self) -> None:
        """No test chosen."""
        self.test = len(TESTS)
        self.count = 0
        super().reset()

    @property
    def target(self) -> int:
        """The offset that the chosen test counts writes to."""
        return self.size // 2 + self.test

    def read_area(self, offset: int, size: int) -> int:
        """The header of the chosen test; zeros if there is none."""
        header = b""
        if self.test < len(TESTS):
            header = HEADER.pack(self.test, 1, self.target, EXPECTED, self.count) + f"{self.prefix}-{TESTS[self.test]}".encode()
        return int.from_bytes(header[offset : offset + size], "little")

    def write_area(self, offset: int, size: int, value: int) -> None:
        """Choose a test, or be counted."""
        if offset == 0:
            self.test, self.count = value & 0xFF, 0
        elif offset == self.target and (self.test != DATAMATCH or value == EXPECTED):
            self.count += 1


def pci_testdev() -> PciFunction:
    """The function: memory in BAR 0, I/O in BAR 1."""
    bars = [Bar(TestArea("mmio", 0x1000), Command.MEMORY), Bar(TestArea("portio", 0x100), Command.IO)]
    return PciFunction(VENDOR, DEVICE, CLASS_OTHER, bars)
