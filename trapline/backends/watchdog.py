"""Deadlines of running vCPUs: one thread that stops those which run for too long.

Setting a deadline costs the runner a few hundred nanoseconds: the thread is woken only if it would sleep past it. A deadline that
moves on, as it does with each exit, is noticed when the thread wakes for the old one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import monotonic

REPEAT = 0.05
"""Seconds after which a vCPU that did not stop is told again."""


class Deadline:
    """When one vCPU has to be back; `bark` is called in the watchdog's thread when it is not."""

    __slots__ = ("bark", "expired", "when")

    def __init__(self, bark: Callable[[], None]) -> None:
        self.bark = bark
        self.when = math.inf
        self.expired = False


class Watchdog:
    """Looks after deadlines. Its thread runs while there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadlines: set[Deadline] = set()
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    def set(self, deadline: Deadline, seconds: float) -> None:
        """Let this deadline be so far from now."""
        deadline.when = when = monotonic() + seconds
        if when < self._wakes or deadline not in self._deadlines:
            with self._changed:
                self._deadlines.add(deadline)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._watch, name="trapline watchdog", daemon=True)
                    self._thread.start()
                self._changed.notify()

    def forget(self, deadline: Deadline) -> None:
        """This deadline's vCPU is going away; `bark` is not called any more."""
        with self._changed:
            self._deadlines.discard(deadline)
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while self._deadlines:
                # A deadline set from here on sees infinity, or the time computed with it in mind, and wakes the thread if need be.
                self._wakes = math.inf
                now = monotonic()
                earliest = math.inf
                for deadline in self._deadlines:
                    if deadline.when <= now:
                        deadline.expired = True
                        deadline.bark()
                        earliest = min(earliest, now + REPEAT)
                    else:
                        earliest = min(earliest, deadline.when)
                self._wakes = earliest
                self._changed.wait(None if earliest == math.inf else max(0.0, earliest - monotonic()))
            self._wakes = math.inf
            self._thread = None
