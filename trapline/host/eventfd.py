"""Eventfds: the process's own, held by reference as KVM holds them, and one thread that waits for any number of them.

An eventfd is a counter behind a file. Whoever writes adds to it, whoever reads takes all of it (or one, if it was made a semaphore).
The numbers that userspace passes are those of real files, so the same program drives /dev/kvm.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from errno import EAGAIN, EBADF, EINVAL, ENOMEM, EOPNOTSUPP

from trapline.errors import KvmError
from trapline.sync import Lock, spawn

COUNTER_BYTES = 8
MAX_FILE = 1 << 31
NOT_WITHOUT_WAITING = (EINVAL, EOPNOTSUPP)
"""What a kernel says that cannot be asked to read without waiting."""


class EventFd:
    """A reference to an eventfd: a duplicate of the caller's file, which the caller may close."""

    __slots__ = ("file", "identity")

    def __init__(self, file: int) -> None:
        """KvmError(EBADF) if there is no such file, EINVAL if it is no eventfd, ENOMEM if the process may open no more."""
        self.file = -1
        try:
            self.file = os.dup(file) if file < MAX_FILE else -1
        except OSError as error:
            raise KvmError(EBADF if error.errno == EBADF else ENOMEM) from None
        if self.file < 0:
            raise KvmError(EBADF)
        identity = _identity(self.file)
        if identity is None:
            self.close()
            raise KvmError(EINVAL)
        self.identity = identity or f"file {file}"
        """Equal for all files of one eventfd. Kernels before 5.2 do not tell: there the number that was given has to do."""

    def signal(self) -> None:
        """Add one to the counter, unless it is as large as it can be: then a write would wait."""
        if not os.get_blocking(self.file) or _is_ready(self.file, select.POLLOUT):
            try:  # not by `suppress`, which would cost as much as the write
                os.eventfd_write(self.file, 1)
            except BlockingIOError:
                pass

    def consume(self) -> bool:
        """Take what is in the counter; False if it is zero."""
        try:
            return bool(os.preadv(self.file, [bytearray(COUNTER_BYTES)], -1, os.RWF_NOWAIT))
        except OSError as error:
            if error.errno == EAGAIN:
                return False
            if error.errno not in NOT_WITHOUT_WAITING:
                raise
        if not _is_ready(self.file, select.POLLIN):
            return False
        os.eventfd_read(self.file)
        return True

    def close(self) -> None:
        """Give the reference back."""
        file, self.file = self.file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self.close()


def _identity(file: int) -> str | None:
    """What tells eventfds apart, "" where the kernel does not say; None for a file that is none."""
    with open(f"/proc/self/fdinfo/{file}", encoding="ascii", errors="replace") as lines:
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return facts.get("eventfd-id", "").strip() if "eventfd-count" in facts else None


def _is_ready(file: int, what: int) -> bool:
    """Whether a file can be read (POLLIN) or written (POLLOUT) without waiting."""
    poll = select.poll()
    poll.register(file, what)
    return bool(poll.poll(0))


class _Poller:
    """The thread's own things; a new one is made when the last eventfd was given up and another comes."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.callbacks: dict[int, tuple[EventFd, Callable[[], None]]] = {}
        # A pipe, because nobody can take it for an eventfd of theirs.
        self.stop, self.stopper = os.pipe()
        self.calling = Lock("event_calls", protects="callbacks that run: held while one does")
        self.epoll.register(self.stop, select.EPOLLIN)

    def run(self) -> None:
        """Until told to stop: wait, take what is in the counters, and say so."""
        while True:
            for file, _ in self.epoll.poll():
                if file == self.stop:
                    self.epoll.close()
                    os.close(self.stop)
                    os.close(self.stopper)
                    return
                with self.calling:
                    self._serve(file)

    def _serve(self, file: int) -> None:
        found = self.callbacks.get(file)
        if found is not None:
            event, callback = found
            while event.consume():
                callback()


class EventWatcher:
    """Calls back when an eventfd has been written. There is a thread while there is something to watch."""

    def __init__(self) -> None:
        self._lock = Lock("event_watcher", protects="which eventfds are watched")
        self._poller: _Poller | None = None

    def watch(self, event: EventFd, callback: Callable[[], None]) -> None:
        """Call `callback`, in another thread, each time the counter was not zero; at once if it is not now."""
        with self._lock:
            if self._poller is None:
                self._poller = _Poller()
                spawn("eventfds", self._poller.run)
            self._poller.callbacks[event.file] = event, callback
            self._poller.epoll.register(event.file, select.EPOLLIN | select.EPOLLET)

    def unwatch(self, event: EventFd) -> None:
        """Stop. When this returns the callback is not running, and will not be called. Not to be called by a callback."""
        with self._lock:
            poller = self._poller
            assert poller is not None
            with poller.calling:
                del poller.callbacks[event.file]
            poller.epoll.unregister(event.file)
            if not poller.callbacks:
                self._poller = None
                os.write(poller.stopper, b"!")
