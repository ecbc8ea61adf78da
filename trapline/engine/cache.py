"""The disk cache of compiled code: a directory for each configuration, and a bound on all of them."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from trapline.engine.log import Entry, Log
from trapline.paths import cache_root

LIMIT = 1 << 30
"""Bytes of all directories. Those that were not used for longest go first, when something is added."""
OBJECTS, REGIONS = "objects", "regions"


class ObjectCache:
    """Pieces of compiled code by name, for one source key. A directory that cannot be used only costs time."""

    def __init__(self, key: str, root: Path | None = None, limit: int = LIMIT) -> None:
        self.path = (root or cache_root() / "code") / key
        self._limit = limit
        self._log = Log(self.path / OBJECTS)
        self._entries: dict[str, Entry] = {}
        self._added = False
        with suppress(OSError):
            os.utime(self.path)  # it is in use
        self.names()

    def get(self, name: str) -> bytes | None:
        """A piece of code; None if nobody made it yet."""
        if name not in self._entries:
            self.names()
        entry = self._entries.get(name)
        return entry.body if entry is not None else None

    def put(self, name: str, data: bytes) -> None:
        """Keep a piece for later processes."""
        self.add(self._log, name.encode(), data)

    def names(self) -> list[str]:
        """What is there, in the order in which it was added."""
        self._entries.update((entry.head.decode(), entry) for entry in self._log.new())
        return list(self._entries)

    def add(self, log: Log, head: bytes, body: bytes) -> None:
        """Add to a file of this directory, and make room for it."""
        with suppress(OSError):
            log.add(head, body)
            if not self._added:
                self._added = True
                make_room(self.path, self._limit)


def make_room(used: Path, limit: int) -> None:
    """Delete directories beside `used` until all of them have at most `limit` bytes, the one first that was not used for longest.

    Processes that still use one keep what they have mapped, and begin it again when they add something.
    """
    sizes = {}
    for path in used.parent.iterdir():
        with suppress(OSError):
            sizes[path] = path.stat().st_mtime, sum(file.stat().st_blocks * 512 for file in path.iterdir())
    total = sum(size for _, size in sizes.values())
    for path in sorted(sizes, key=lambda path: sizes[path][0]):
        if total <= limit:
            return
        if path != used:
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path][1]
