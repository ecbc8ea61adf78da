"""What stops vCPUs that run for too long: one thread that interrupts them from time to time.

A run that is interrupted looks how long it has been on, and goes on. So a run that ends in good time pays nothing, neither for a look at
a clock nor for telling anybody that it began; and one that does not end is stopped not before its time, and up to half as long after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

LOOKS = 4
"""How often a vCPU is interrupted in the time that a run may take."""

LONGEST_WAIT = 15.0
SHORTEST_WAIT = 0.01

Bark = Callable[[], None]


class Watchdog:
    """Calls functions, each `LOOKS` times or more in its period. Its thread exists while there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._periods: dict[Bark, float] = {}
        self._wait = LONGEST_WAIT
        self._thread: threading.Thread | None = None

    def set(self, bark: Bark, period: float | None) -> None:
        """Call `bark` in the watchdog's thread from now on; None: never again, once this returns."""
        with self._changed:
            if period is None:
                if self._periods.pop(bark, None) is not None and not self._periods:
                    self._changed.notify()
                return
            self._periods[bark] = period
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="trapline watchdog", daemon=True)
                self._thread.start()
            elif period / LOOKS < self._wait:
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while self._periods:
                self._wait = min(max(min(self._periods.values()) / LOOKS, SHORTEST_WAIT), LONGEST_WAIT)
                if not self._changed.wait(self._wait):
                    for bark in self._periods:
                        bark()
            self._thread = None
