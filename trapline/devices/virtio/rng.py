"""virtio-rng: entropy from the host."""

from __future__ import annotations

import os
from collections.abc import Callable

from trapline.devices.virtio.mmio import VirtioDevice
from trapline.devices.virtio.queue import Queue

MOST_AT_ONCE = 64 * 1024
"""Bytes given to one request, however large its buffer is."""


class VirtioRng(VirtioDevice):
    """Fills buffers with random bytes. `source(n)` gives n of them."""

    device_id = 4
    queue_sizes = (64,)

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__()
        self.source = source

    def notify(self, index: int, queue: Queue) -> bool:
        """Fill every buffer in the queue."""
        used = False
        while (chain := queue.pop()) is not None:
            queue.push(chain, chain.write_all(self.source(min(chain.writable_length, MOST_AT_ONCE))))
            used = True
        return used
