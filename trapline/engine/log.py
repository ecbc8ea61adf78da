"""Files of entries that are only ever added: what processes that know nothing of each other keep in one place."""

from __future__ import annotations

import fcntl
import mmap
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

HEADER = Struct("<4sIII")
"""Magic, bytes of the head, bytes of the body, CRC-32 of both."""
MAGIC = b"TlE1"


@dataclass(frozen=True, slots=True)
class Entry:
    """A head, and a body that is fetched when it is wanted."""

    head: bytes
    _file: mmap.mmap
    _start: int
    _size: int
    _sum: int

    @property
    def body(self) -> bytes | None:
        """The body; None if it is not what was written."""
        data = self._file[self._start : self._start + self._size]
        return data if zlib.crc32(data, zlib.crc32(self.head)) == self._sum else None


class Log:
    """One such file, from wherever this reader has got to. Errors of the file system are raised as OSError, by `add` only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = self._end = 0
        self._mark = b""
        """The header of the last entry that was read: if it is not there any more, this is another file."""

    def new(self) -> list[Entry]:
        """The entries that were added since the last call, all of them at first. One that is being written does not count."""
        try:
            with self._path.open("rb") as file:
                return self._read(file.fileno())
        except OSError:
            return []

    def add(self, head: bytes, body: bytes) -> None:
        """Add an entry, in the place of what another process may have left unfinished. Nothing is cut off: it may be mapped."""
        data = HEADER.pack(MAGIC, len(head), len(body), zlib.crc32(body, zlib.crc32(head))) + head + body
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            known = Log(self._path)
            known._last, known._end, known._mark = self._last, self._end, self._mark
            known._read(file.fileno())
            file.seek(known._end)
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]

    def _read(self, file: int) -> list[Entry]:
        """Go on from entry to entry, to where the last whole one ends."""
        size = os.fstat(file).st_size
        if size == 0:
            self._last = self._end = 0
            return []
        memory = mmap.mmap(file, size, access=mmap.ACCESS_READ)
        if memory[self._last : self._last + HEADER.size] != self._mark:
            self._last = self._end = 0
        found = []
        at = self._end
        while at + HEADER.size <= size:
            magic, head, body, total = HEADER.unpack_from(memory, at)
            start = at + HEADER.size
            if magic != MAGIC or start + head + body > size:
                break
            found.append(Entry(memory[start : start + head], memory, start + head, body, total))
            self._last, self._mark = at, memory[at:start]
            at = self._end = start + head + body
        return found
