"""virtio-console with one port."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from trapline.devices.virtio.mmio import VirtioDevice
from trapline.devices.virtio.queue import Queue

RECEIVE, TRANSMIT = range(2)
CONFIG = Struct("<HHII")
"""cols, rows, max_nr_ports, emerg_wr: all zero, none of the features that give them meaning is offered"""


AT_ONCE = 64 * 1024
"""Bytes that are copied at a time: the buffers of a request may have 4 GiB together, the same memory again and again."""


class VirtioConsole(VirtioDevice):
    """A serial port without registers: bytes out through `output`, bytes in through `receive`."""

    device_id = 3
    queue_sizes = (64, 64)
    kept = ("backlog",)

    def __init__(self, output: Callable[[bytes], None]) -> None:
        super().__init__()
        self.output = output
        self.backlog = bytearray()

    def config(self) -> bytes:
        """Console size and ports, which are not used."""
        return bytes(CONFIG.size)

    def receive(self, data: bytes) -> None:
        """Characters from outside; they wait until the driver offers buffers."""
        self.backlog += data
        if self.transport is not None:
            self.transport.process(RECEIVE)

    def notify(self, index: int, queue: Queue) -> bool:
        """Move bytes in the direction of the queue."""
        return self.send_output(queue) if index == TRANSMIT else self.deliver_input(queue)

    def send_output(self, queue: Queue) -> bool:
        """Everything the driver wants transmitted."""
        used = False
        while (chain := queue.pop()) is not None:
            for part in chain.readable:
                for start in range(0, len(part), AT_ONCE):
                    self.output(bytes(part[start : start + AT_ONCE]))
            queue.push(chain, 0)
            used = True
        return used

    def deliver_input(self, queue: Queue) -> bool:
        """Waiting input into the driver's buffers."""
        used = False
        while self.backlog and (chain := queue.pop()) is not None:
            count = chain.write_all(bytes(self.backlog[: chain.writable_length]))
            del self.backlog[:count]
            queue.push(chain, count)
            used = True
        return used
