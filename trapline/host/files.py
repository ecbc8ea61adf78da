"""Open files: small numbers that stand for kernel objects."""

from __future__ import annotations

from errno import EBADF
from typing import Protocol

from trapline.errors import KvmError
from trapline.sync import Lock


class FileObject(Protocol):
    """What a file can stand for."""

    def release(self) -> None:
        """The file was closed."""


class FileTable:
    """The files of one process, as far as KVM made them."""

    def __init__(self) -> None:
        self._lock = Lock("file_table", protects="the numbers in use")
        self._files: dict[int, FileObject] = {}
        self._next = 3

    def install(self, thing: FileObject) -> int:
        """A new file number for `thing`."""
        with self._lock:
            number = self._next
            self._next += 1
            self._files[number] = thing
        return number

    def get(self, number: int) -> FileObject:
        """What a file stands for; KvmError(EBADF) if nothing."""
        try:
            return self._files[number]
        except KeyError:
            raise KvmError(EBADF) from None

    def __len__(self) -> int:
        """How many files are open."""
        return len(self._files)

    def close(self, number: int) -> None:
        """Close a file."""
        with self._lock:
            thing = self._files.pop(number, None)
        if thing is None:
            raise KvmError(EBADF)
        thing.release()
