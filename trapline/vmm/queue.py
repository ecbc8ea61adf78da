"""A device register whose writes wait: no exit for each character of a guest that prints a lot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from trapline.backends.rings import CoalescedRing
from trapline.errors import KvmError

if TYPE_CHECKING:
    from trapline.backends.objects import Vm

PERIOD = 0.01
"""Seconds that a write waits at most."""
CALM = 5
"""Periods without a write after which writes come at once again, and nobody has to look."""
REGISTER_BYTES = 4


class WriteQueue:
    """Writes to one register in KVM's ring of coalesced writes, while the device wants that.

    Whoever answers an exit of a vCPU takes them first (`drain`), so the device meets all accesses in the guest's order. Besides, a
    thread looks for them, because a guest may go on for long without an exit. Writes wait only as long as there are many: a prompt
    is there at once. All methods but `stop` are called with the machine's device lock held.
    """

    def __init__(
        self,
        vm: Vm,
        ring: CoalescedRing,
        address: int,
        take: Callable[[bytes], None],
        other: Callable[[int, int, int], object],
        lock: threading.Lock,
    ) -> None:
        """`take` gets the low bytes of writes to `address`, several at a time; `other` address, length and value of any other."""
        self.is_open = False
        self._vm, self._ring, self._address, self._take, self._other, self._lock = vm, ring, address, take, other, lock
        self._taken = 0
        self._refused = False
        self._thread: threading.Thread | None = None
        self._news = threading.Event()
        """There is something to look after, or it is over."""
        self._stopped = threading.Event()

    def open(self) -> None:
        """Writes may wait from now on."""
        if self.is_open or self._refused or self._stopped.is_set():
            return
        try:
            self._vm.coalesce(self._address, REGISTER_BYTES)
        except KvmError:
            self._refused = True
            return
        self.is_open = True
        self._news.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look_after, name="console-output", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Writes come at once from now on; those that wait come now."""
        if self.is_open:
            self._vm.uncoalesce(self._address, REGISTER_BYTES)
            self.is_open = False
            self.drain()

    def drain(self) -> None:
        """Pass on what waits."""
        writes = self._ring.take()
        self._taken += len(writes)
        data = bytearray()
        for address, length, value in writes:
            if address == self._address:
                data.append(value & 0xFF)
                continue
            if data:
                self._take(bytes(data))
                data.clear()
            self._other(address, length, value)
        if data:
            self._take(bytes(data))

    def stop(self) -> None:
        """The machine's end: nothing waits any more."""
        with self._lock:
            self.close()
            self._stopped.set()
            self._news.set()

    def _look_after(self) -> None:
        while True:
            self._news.wait()
            calm, seen = 0, -1
            while calm < CALM:
                if self._stopped.wait(PERIOD):
                    return
                with self._lock:
                    if not self.is_open:
                        break
                    self.drain()
                    calm, seen = calm + 1 if self._taken == seen else 0, self._taken
            with self._lock:
                if self._stopped.is_set():
                    return
                self.close()
                self._news.clear()
