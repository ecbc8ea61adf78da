"""A PCI Express host bridge's configuration space (ECAM) over a bus with nothing on it."""

from __future__ import annotations

from trapline.devices.device import MmioDevice


class EmptyEcam(MmioDevice, size=0x1000_0000, compatible=("pci-host-ecam-generic",)):
    """256 buses of no devices: a read of an absent function's configuration gives all ones, a write is dropped."""

    def read_area(self, offset: int, size: int) -> int:
        """All ones."""
        return (1 << 8 * size) - 1
