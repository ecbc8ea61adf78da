"""The host side of the generic timer: a thread that looks at the clock for running vCPUs."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapline.engine.cpu import Cpu


class Timers:
    """Sets a vCPU's timer poll byte when one of its timers is due."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._due: dict[int, tuple[int, Cpu]] = {}
        self._wake = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def arm(self, cpu: Cpu) -> None:
        """A timer of `cpu` was programmed: note when it is due."""
        deadline = cpu.next_timer_deadline()
        with self._condition:
            if deadline is None:
                self._due.pop(cpu.index, None)
                return
            self._due[cpu.index] = (deadline, cpu)
            if self._thread is None:
                self._thread = threading.Thread(target=_serve, args=(weakref.ref(self),), name="trapline-timers", daemon=True)
                self._thread.start()
            elif deadline < self._wake:
                self._condition.notify()

    def close(self) -> None:
        """Stop the thread."""
        with self._condition:
            self._closed = True
            self._due.clear()
            self._condition.notify()

    def wait_once(self) -> bool:
        """Sleep until the next deadline or a change, and fire what is due; False when closed."""
        with self._condition:
            if self._closed:
                return False
            now = time.monotonic_ns()
            for index, (deadline, cpu) in list(self._due.items()):
                if deadline <= now:
                    del self._due[index]
                    cpu.state.poll_timer = 1
            idle_ns = 100_000_000
            self._wake = min((deadline for deadline, _ in self._due.values()), default=now + idle_ns)
            self._condition.wait(min(max(self._wake - now, 0) / 1e9, threading.TIMEOUT_MAX))
            return not self._closed


def _serve(reference: weakref.ref[Timers]) -> None:
    """The thread's body; it ends with the object it serves."""
    while True:
        timers = reference()
        if timers is None or not timers.wait_once():
            return
        del timers
