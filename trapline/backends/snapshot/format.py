"""The file of a snapshot: a header, guest memory as a sparse image, and everything else as JSON (docs/decisions/0020-snapshot-format.md).

    offset 0        header: magic, version, where the rest is, checksums
    64 KiB          the memory slots one after the other, each on a boundary of 64 KiB. Pages of zeroes are holes
    then            JSON: what the VM is made of, its vCPUs and devices, and where which memory is, with a checksum of each MiB

Memory lies in the file as it lies in the guest, so restoring maps it instead of reading it, and all who restore one file share what
they do not change. The header is written last: a file that was never finished does not begin as a snapshot does.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from struct import Struct
from struct import error as StructError
from types import TracebackType
from typing import Any, Final, Self

from trapline.abi.memory import PAGE
from trapline.backends.memory import GuestMemory, Stored
from trapline.backends.snapshot.pages import Range, not_zero
from trapline.errors import BadInput, BadSnapshot

MAGIC: Final = b"\x7fTRPLSNP"
FORMAT: Final = 1
HEADER: Final = Struct("<8sIIQQQII")
"""magic, format, size of the header, of the file, offset and size of the JSON, its checksum, the checksum of all before this field"""
CHECKED: Final = HEADER.size - 4
ZEROES: Final = memoryview(bytes(PAGE))
ALIGNMENT: Final = 0x1_0000
"""Of memory in the file: the largest page of any host that maps it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A memory slot of the snapshot: its place in the guest and in the file, and the ranges of its pages that are not zero."""

    slot: int
    guest_phys_addr: int
    size: int
    flags: int
    offset: int
    ranges: Sequence[tuple[int, int, int]]
    """First page, how many, and the CRC-32 of their contents."""

    def stored(self, file: int) -> Stored:
        """The same for `Vm.add_memory`."""
        return Stored(file, self.offset, [(first, count) for first, count, _ in self.ranges])


def write(path: Path, memory: Sequence[GuestMemory], document: dict[str, Any]) -> int:
    """Write a snapshot; how many bytes of memory it holds. What was at `path` is replaced when all is written, and not before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    try:
        try:
            kept = _write(file, memory, document)
        finally:
            os.close(file)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise BadInput(f"{path}: {error.strerror}: the snapshot was not written") from error
        raise
    return kept


def _write(file: int, memory: Sequence[GuestMemory], document: dict[str, Any]) -> int:
    parts, end = [], ALIGNMENT
    for each in memory:
        parts.append(_write_part(file, each, end))
        end = _aligned(end + each.size)
    os.ftruncate(file, end)
    rows = [[part.slot, part.guest_phys_addr, part.size, part.flags, part.offset, part.ranges] for part in parts]
    text = json.dumps({**document, "memory": rows}, separators=(",", ":")).encode("ascii")
    _write_all(file, text, end)
    head = HEADER.pack(MAGIC, FORMAT, HEADER.size, end + len(text), end, len(text), zlib.crc32(text), 0)[:CHECKED]
    _write_all(file, head + zlib.crc32(head).to_bytes(4, "little"), 0)
    return sum(count * PAGE for part in parts for _, count, _ in part.ranges)


def _write_part(file: int, memory: GuestMemory, offset: int) -> Part:
    ranges = []
    for first, count in not_zero(memory):
        data = memory.view[first * PAGE : (first + count) * PAGE]
        ranges.append((first, count, zlib.crc32(data)))
        _write_all(file, data, offset + first * PAGE)
    return Part(memory.slot, memory.guest_phys_addr, memory.size, memory.flags, offset, ranges)


def _write_all(file: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(file, rest, offset)
        rest, offset = rest[done:], offset + done


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Snapshot:
    """A snapshot's file, open and checked. It can be restored from as often as wanted; close it when that is over.

    document: what it says besides memory. BadSnapshot from the constructor for a file that is not, or not any more, what was written.
    With `verify=False` only header and JSON are checked, not the memory.
    """

    def __init__(self, path: str | os.PathLike[str], verify: bool = True) -> None:
        self.path = Path(path)
        try:
            self.file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadInput(f"{self.path}: {error.strerror}") from error
        try:
            self.size = os.fstat(self.file).st_size
            self.document: dict[str, Any] = self._read_document()
            self.parts = self._parts()
            if verify:
                self.verify()
        except OSError as error:
            self.close()
            raise BadSnapshot(f"{self.path}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file. Machines that were restored from it keep what they have mapped."""
        if self.file >= 0:
            file, self.file = self.file, -1
            os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def part(self, slot: int) -> Part:
        """A memory slot; BadSnapshot if there is none of this number."""
        for part in self.parts:
            if part.slot == slot:
                return part
        raise self._bad(f"it holds no memory slot {slot}")

    def stored(self, slot: int) -> Stored:
        """The contents of a memory slot, for `Vm.add_memory`."""
        return self.part(slot).stored(self.file)

    def read_into(self, part: Part, memory: GuestMemory) -> None:
        """Copy a memory slot's contents into memory that has others."""
        for first, count in list(not_zero(memory)):
            memory[first * PAGE : (first + count) * PAGE] = bytes(count * PAGE)
        for first, count, _ in part.ranges:
            rest, offset = memory.view[first * PAGE : (first + count) * PAGE], part.offset + first * PAGE
            while rest:
                done = os.preadv(self.file, [rest], offset)
                rest, offset = rest[done:], offset + done

    def _bad(self, what: str) -> BadSnapshot:
        return BadSnapshot(f"{self.path}: {what}")

    # ---- checks -------------------------------------------------------------------------------------------------------------

    def _read_document(self) -> dict[str, Any]:
        head = os.pread(self.file, HEADER.size, 0)
        if head[: len(MAGIC)] != MAGIC:
            unfinished = bool(head) and not any(head)
            raise self._bad("its writing was never finished" if unfinished else "this is not a snapshot of Trapline's")
        try:
            _, version, size, end, offset, length, checksum, own = HEADER.unpack(head)
        except StructError:
            raise self._bad(f"the header is cut off: {len(head)} bytes of {HEADER.size}") from None
        if version != FORMAT:
            raise self._bad(f"the file has format {version}, and this version of Trapline reads format {FORMAT}")
        if zlib.crc32(head[:CHECKED]) != own or size != HEADER.size:
            raise self._bad("the header is damaged: its checksum does not match")
        if self.size != end:
            what = "cut off" if self.size < end else "longer than what was written"
            raise self._bad(f"the file is {what}: it has {self.size} bytes of {end}")
        text = os.pread(self.file, length, offset)
        if len(text) != length or zlib.crc32(text) != checksum:
            raise self._bad(f"the machine's description ({length} bytes at offset {offset:#x}) is damaged: its checksum does not match")
        document = json.loads(text)
        assert isinstance(document, dict)
        self._memory_end = offset
        return document

    def _parts(self) -> list[Part]:
        try:
            parts = [Part(*row) for row in self.document["memory"]]
            return [self._checked(part) for part in parts]
        except (KeyError, TypeError, ValueError) as error:
            raise self._bad(f"the machine's description is not one of format {FORMAT}: {error!r}") from error

    def _checked(self, part: Part) -> Part:
        inside = ALIGNMENT <= part.offset and part.offset + part.size <= self._memory_end and not part.offset % ALIGNMENT
        known = all(0 <= first and 0 < count and first + count <= part.size // PAGE for first, count, _ in part.ranges)
        if not inside or not known:
            raise self._bad(f"memory slot {part.slot} is said to lie where it cannot")
        return part

    def verify(self) -> None:
        """Read all memory and compare it with its checksums; BadSnapshot names the first address that is wrong."""
        with mmap.mmap(self.file, self._memory_end, mmap.MAP_SHARED, mmap.PROT_READ) as contents, memoryview(contents) as view:
            for part in self.parts:
                for first, count, checksum in part.ranges:
                    start = part.offset + first * PAGE
                    if zlib.crc32(view[start : start + count * PAGE]) != checksum:
                        raise self._bad(self._where(part, first, count) + " is damaged: its checksum does not match")
            for start, end in self._outside():
                for at in range(start, end, PAGE):
                    if view[at : min(at + PAGE, end)] != ZEROES[: min(PAGE, end - at)]:
                        raise self._bad(f"the file holds something at offset {at:#x}, where nothing was written")

    @staticmethod
    def _where(part: Part, first: int, count: int) -> str:
        start = part.guest_phys_addr + first * PAGE
        return f"guest memory {start:#x} to {start + count * PAGE - 1:#x} (slot {part.slot}, file offset {part.offset + first * PAGE:#x})"

    def _outside(self) -> Iterator[tuple[int, int]]:
        """Where the file has data that belongs to no range: stretches between ranges, less the holes in them."""
        ranges = sorted(
            (part.offset + first * PAGE, part.offset + (first + count) * PAGE) for part in self.parts for first, count, _ in part.ranges
        )
        edges = [(0, HEADER.size), *ranges, (self._memory_end, self._memory_end)]
        for (_, begin), (end, _) in pairwise(edges):
            if begin < end:
                yield from self._data_between(begin, end)

    def _data_between(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        while begin < end:
            try:
                start = os.lseek(self.file, begin, os.SEEK_DATA)
            except OSError:  # no data up to the end
                return
            if start >= end:
                return
            stop = min(os.lseek(self.file, start, os.SEEK_HOLE), end)
            yield start, stop
            begin = stop


__all__ = ["Part", "Range", "Snapshot", "write"]
