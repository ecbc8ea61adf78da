"""The split virtqueue, device side.

Everything in the rings is the guest's word and is checked before use: indices, chain lengths, loops, nesting, addresses. A lie is a
QueueError; the transport answers it with DEVICE_NEEDS_RESET and touches the queue no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from trapline.devices.memory import BadGuestAddress, GuestRam
from trapline.devices.state import Stateful

DESC_NEXT = 1
DESC_WRITE = 2
DESC_INDIRECT = 4
AVAIL_NO_INTERRUPT = 1

DESCRIPTOR = Struct("<QIHH")
"""addr, len, flags, next"""
RING_HEADER = Struct("<HH")
"""flags, idx: how both rings begin"""
AVAIL_ELEMENT = Struct("<H")
USED_ELEMENT = Struct("<II")
"""id, len"""

INDEX_MASK = 0xFFFF
CHAIN_BYTES_LIMIT = 1 << 32


class QueueError(Exception):
    """The guest's rings or descriptors break the rules of virtio."""


@dataclass(slots=True)
class Chain:
    """One request: what the device may read, then what it may write."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]

    @property
    def writable_length(self) -> int:
        """Bytes the device may write."""
        return sum(map(len, self.writable))

    def write_all(self, data: bytes) -> int:
        """Scatter `data` over the writable part; returns how much fitted."""
        done = 0
        for part in self.writable:
            piece = data[done : done + len(part)]
            part[: len(piece)] = piece
            done += len(piece)
        return done


class Queue(Stateful):
    """One split virtqueue. `size`, `ready` and the three ring addresses are set by the transport."""

    kept = ("size", "ready", "descriptors", "driver_ring", "device_ring", "next_available", "next_used")

    def __init__(self, ram: GuestRam, max_size: int = 256) -> None:
        self.ram = ram
        self.max_size = max_size
        self.reset()

    def reset(self) -> None:
        """As after a device reset."""
        self.size = self.max_size
        self.ready = False
        self.descriptors = 0
        self.driver_ring = 0
        self.device_ring = 0
        self.next_available = 0
        self.next_used = 0

    def check_layout(self) -> None:
        """Refuse a queue whose size or ring addresses are impossible."""
        if not 0 < self.size <= self.max_size or self.size & (self.size - 1):
            raise QueueError(f"queue size {self.size} is not a power of two up to {self.max_size}")
        if self.descriptors % 16 or self.driver_ring % 2 or self.device_ring % 4:
            raise QueueError("a ring address is not aligned")
        try:
            self.ram.offset(self.descriptors, DESCRIPTOR.size * self.size)
            self.ram.offset(self.driver_ring, RING_HEADER.size + AVAIL_ELEMENT.size * self.size)
            self.ram.offset(self.device_ring, RING_HEADER.size + USED_ELEMENT.size * self.size)
        except BadGuestAddress as error:
            raise QueueError(f"a ring is outside memory: {error}") from error

    def pop(self) -> Chain | None:
        """The next request the driver made available, None if there is none."""
        try:
            _, index = self.ram.unpack(RING_HEADER, self.driver_ring)
            waiting = index - self.next_available & INDEX_MASK
            if waiting == 0:
                return None
            if waiting > self.size:
                raise QueueError(f"{waiting} requests in a queue of {self.size}")
            slot = self.next_available % self.size
            (head,) = self.ram.unpack(AVAIL_ELEMENT, self.driver_ring + RING_HEADER.size + AVAIL_ELEMENT.size * slot)
            chain = self._walk(head)
        except BadGuestAddress as error:
            raise QueueError(str(error)) from error
        self.next_available = self.next_available + 1 & INDEX_MASK
        return chain

    def push(self, chain: Chain, written: int) -> None:
        """Give a request back, with the number of bytes written to it."""
        slot = self.next_used % self.size
        self.next_used = self.next_used + 1 & INDEX_MASK
        try:
            self.ram.pack(USED_ELEMENT, self.device_ring + RING_HEADER.size + USED_ELEMENT.size * slot, chain.head, written)
            # The index is written last: it publishes the element (the host keeps stores in order).
            self.ram.pack(RING_HEADER, self.device_ring, 0, self.next_used)
        except BadGuestAddress as error:
            raise QueueError(str(error)) from error

    def wants_interrupt(self) -> bool:
        """Whether the driver asked to be told about used buffers."""
        flags, _ = self.ram.unpack(RING_HEADER, self.driver_ring)
        return not flags & AVAIL_NO_INTERRUPT

    def _walk(self, head: int) -> Chain:
        chain = Chain(head, [], [])
        table, length = self.descriptors, self.size
        index, steps, total, indirect = head, 0, 0, False
        while True:
            if index >= length:
                raise QueueError(f"descriptor {index} of {length}")
            steps += 1
            if steps > length:
                raise QueueError("descriptors form a loop")
            address, size, flags, following = self.ram.unpack(DESCRIPTOR, table + DESCRIPTOR.size * index)
            if flags & DESC_INDIRECT:
                if indirect or flags & DESC_NEXT or size == 0 or size % DESCRIPTOR.size:
                    raise QueueError("malformed indirect descriptor")
                table, length = address, size // DESCRIPTOR.size
                if length > INDEX_MASK:
                    raise QueueError("indirect table is too long")
                index, steps, indirect = 0, 0, True
                continue
            total += size
            if total > CHAIN_BYTES_LIMIT:
                raise QueueError("request is longer than 4 GiB")
            view = self.ram.writable(address, size) if flags & DESC_WRITE else self.ram.view(address, size)
            if flags & DESC_WRITE:
                chain.writable.append(view)
            elif chain.writable:
                raise QueueError("a readable buffer follows a writable one")
            else:
                chain.readable.append(view)
            if not flags & DESC_NEXT:
                return chain
            index = following
