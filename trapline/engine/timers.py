"""The host side of the generic timer: the clock that compiled code sets, and the thread that waits for it."""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from trapline.engine.state import MAX_CPUS, Shared
from trapline.mapping import LIBC

if TYPE_CHECKING:
    from trapline.engine.cpu import Cpu
    from trapline.engine.engine import Entry

NEVER = (1 << 64) - 1


class Timers:
    """Sets a vCPU's timer poll byte when one of its timers is due (`alarm`)."""

    def __init__(self, entry: Entry, shared: Shared, states: list[Any]) -> None:
        """`states` is the list of all vCPUs' states, which grows: what the thread writes to must not go before it does."""
        self._entry, self._shared, self._states = entry, shared, states
        self._lock = threading.Lock()
        self._stop: weakref.finalize[..., Timers] | None = None
        shared.alarm_at = NEVER
        for k in range(MAX_CPUS):
            shared.due[k] = NEVER

    def arm(self, cpu: Cpu) -> None:
        """A timer of `cpu` was programmed: make the clock if there is none yet, and set it."""
        with self._lock:
            if self._stop is None:
                self._start()
        self._entry.set_alarm(cpu.address)
        cpu.state.poll_timer = 1  # it may be due by now, and then no clock rings

    def close(self) -> None:
        """Stop the thread."""
        if self._stop is not None:
            self._stop()

    def _start(self) -> None:
        clock = LIBC.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC)
        if clock < 0:
            raise OSError(ctypes.get_errno(), "no timerfd")
        self._shared.alarm_clock = clock + 1
        words = (self._entry, self._shared, self._states, clock)  # not this object, with whose end the thread ends
        threading.Thread(target=_serve, args=words, name="trapline-timers", daemon=True).start()
        self._stop = weakref.finalize(self, self._entry.stop_alarms, ctypes.addressof(self._shared))


def _serve(entry: Entry, shared: Shared, states: list[Any], clock: int) -> None:
    """The thread's body."""
    entry.wait_for_alarms(ctypes.addressof(shared))
    shared.alarm_clock = 0
    os.close(clock)
