"""PCI Express with nothing on the bus: configuration space (ECAM) and the windows that no function claims."""

from __future__ import annotations

from trapline.devices.device import MmioDevice


class EmptyPci(MmioDevice, size=0x1000_0000, compatible=("pci-host-ecam-generic",)):
    """A range of PCI addresses that no function answers: reads give all ones, writes are dropped.

    That is what a master abort looks like to a CPU, both for the configuration of absent functions and for unclaimed memory or I/O.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size  # type: ignore[misc] # the only device whose window is chosen by the board

    def read_area(self, offset: int, size: int) -> int:
        """All ones."""
        return (1 << 8 * size) - 1
