"""Signals, as far as a call that can be interrupted looks at them.

Python runs its signal handlers in the main thread, between two bytecodes; a thread that is in machine code does not notice a signal.
But the interpreter writes the signal's number to a file at once, if it was given one: a thread that reads it can interrupt the call.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache

from trapline.sync import current_task, spawn

Interrupt = Callable[[], None]


def pending(blocked: int) -> bool:
    """Whether a signal is pending that is not in this mask (bit n - 1 for signal n). Pending ones are those that the thread blocks."""
    return any(not blocked >> number - 1 & 1 for number in signal.sigpending())


class Interruptions:
    """Tells the call that the main thread is in of signals that have a handler."""

    def __init__(self) -> None:
        self.main = 0
        """The main thread, once it has asked for this and nobody else had; else 0."""
        self.call: tuple[Interrupt, int] | None = None
        """How to interrupt the main thread's call, and the signals that may not."""
        self._reader = -1

    def install(self) -> None:
        """To be called by any thread; has an effect in the main thread, unless somebody uses Python's wake-up file already."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)
        try:
            before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        except ValueError:  # another thread's
            before = 0
        else:
            if before != -1:
                signal.set_wakeup_fd(before)
        if before != -1:
            os.close(reader)
            os.close(writer)
            return
        self._reader, self.main = reader, current_task()
        spawn("signals", self._watch)

    def _watch(self) -> None:
        while numbers := os.read(self._reader, 64):
            call = self.call
            if call is not None and any(not call[1] >> number - 1 & 1 for number in numbers):
                call[0]()


@cache
def interruptions() -> Interruptions:
    """The process's own, asked for when a vCPU first runs."""
    made = Interruptions()
    made.install()
    return made
