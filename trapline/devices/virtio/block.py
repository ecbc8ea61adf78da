"""virtio-blk over a raw image file."""

from __future__ import annotations

import fcntl
import os
import stat
from enum import IntEnum
from itertools import islice
from pathlib import Path
from struct import Struct

from trapline.devices.virtio.mmio import VirtioDevice
from trapline.devices.virtio.queue import Chain, Queue, QueueError
from trapline.errors import BadInput

SECTOR = 512
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9

REQUEST = Struct("<IIQ")
"""type, reserved, sector"""
CONFIG = Struct("<QIIHBBI")
"""capacity in sectors, size_max, seg_max, geometry (3), blk_size"""
SEGMENTS = 126
IOV_MAX = 1024
SERIAL_BYTES = 20


class Request(IntEnum):
    """Request types."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


class Result(IntEnum):
    """The status byte that ends a request."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class Image:
    """A raw disk image, locked against a second user for as long as it is open."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        try:
            if stat.S_ISDIR(path.stat().st_mode):
                raise BadInput(f"--disk {path}: is a directory; give a raw image file")
            self.fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            hint = "; add ,ro to use it read-only" if isinstance(error, PermissionError) and not read_only else ""
            raise BadInput(f"--disk {path}: {error.strerror}{hint}") from error
        try:
            self.claim()
        except BadInput:
            os.close(self.fd)
            raise
        self.sectors = os.lseek(self.fd, 0, os.SEEK_END) // SECTOR

    def claim(self) -> None:
        """Lock the file against others. BadInput if one of them has it."""
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(f"--disk {self.path}: in use by another machine") from error

    def release(self) -> None:
        """Let others have it, for now."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the file."""
        os.close(self.fd)

    def transfer(self, parts: list[memoryview], offset: int, write: bool) -> None:
        """Read into or write from all of `parts`, at a byte offset; OSError if the file cannot."""
        pending = iter(parts)
        while batch := list(islice(pending, IOV_MAX)):
            while batch:
                done = os.pwritev(self.fd, batch, offset) if write else os.preadv(self.fd, batch, offset)
                if done == 0:
                    raise OSError("the image ends before the disk does")
                offset += done
                while batch and done >= len(batch[0]):
                    done -= len(batch.pop(0))
                if done:
                    batch[0] = batch[0][done:]

    def flush(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self.fd)


class VirtioBlock(VirtioDevice):
    """A disk; requests are carried out while the driver's notification is handled, in order."""

    device_id = 2
    queue_sizes = (256,)

    def __init__(self, image: Image, serial: str = "") -> None:
        super().__init__()
        self.image = image
        self.serial = serial.encode()[:SERIAL_BYTES].ljust(SERIAL_BYTES, b"\0")
        self.features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | (F_RO if image.read_only else 0)

    def config(self) -> bytes:
        """Capacity and limits."""
        return CONFIG.pack(self.image.sectors, 0, SEGMENTS, 0, 0, 0, SECTOR)

    def notify(self, index: int, queue: Queue) -> bool:
        """Serve every request in the queue."""
        used = False
        while (chain := queue.pop()) is not None:
            queue.push(chain, self.serve(chain))
            used = True
        return used

    def serve(self, chain: Chain) -> int:
        """Carry out one request; returns the bytes written to its buffers, status byte included."""
        header, data_out = split(chain.readable, REQUEST.size)
        data_in, status = split_last_byte(chain.writable)
        kind, _, sector = REQUEST.unpack(header)
        written = 0
        try:
            if kind == Request.IN:
                written = self.move(data_in, sector, write=False)
            elif kind == Request.OUT:
                if self.image.read_only:
                    raise OSError("the disk is read-only")
                self.move(data_out, sector, write=True)
            elif kind == Request.FLUSH:
                self.image.flush()
            elif kind == Request.GET_ID:
                written = Chain(0, [], data_in).write_all(self.serial)
            result = Result.OK if kind in Request.__members__.values() else Result.UNSUPP
        except OSError:
            result = Result.IOERR
        status[0] = result
        return written + 1

    def move(self, parts: list[memoryview], sector: int, write: bool) -> int:
        """Transfer whole sectors inside the disk."""
        length = sum(map(len, parts))
        if length % SECTOR or sector + length // SECTOR > self.image.sectors:
            raise OSError("outside the disk or not whole sectors")
        self.image.transfer(parts, sector * SECTOR, write)
        return length


def split(parts: list[memoryview], length: int) -> tuple[bytes, list[memoryview]]:
    """The first `length` bytes of a scattered buffer, and the rest of it."""
    head = b""
    rest = list(parts)
    while rest and len(head) < length:
        piece = rest[0][: length - len(head)]
        head += piece
        rest[0] = rest[0][len(piece) :]
        if not rest[0]:
            rest.pop(0)
    if len(head) < length:
        raise QueueError("a request without its header")
    return head, rest


def split_last_byte(parts: list[memoryview]) -> tuple[list[memoryview], memoryview]:
    """A scattered buffer without its last byte, and that byte."""
    rest = [part for part in parts if part]
    if not rest:
        raise QueueError("a request without room for its status")
    last = rest.pop()
    if len(last) > 1:
        rest.append(last[:-1])
    return rest, last[-1:]
