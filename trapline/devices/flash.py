"""The flash bank that firmware starts from, as a read-only chip."""

from __future__ import annotations

from trapline.devices.device import MmioDevice


class FlashRom(MmioDevice, size=0x0400_0000):
    """Takes the writes that a guest sends to the read-only memory slot of its firmware.

    To a real chip these are commands (CFI query, erase, program); this one has none and stays in read mode. The device tree names
    no flash, so that only firmware which insists on it gets here. Reads are served by the memory slot.
    """
