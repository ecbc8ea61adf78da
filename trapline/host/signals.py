"""The calling thread's signals, as far as a call that can be interrupted looks at them."""

from __future__ import annotations

import signal


def pending(blocked: int) -> bool:
    """Whether a signal is pending that is not in this mask (bit n - 1 for signal n). Pending ones are those that the thread blocks."""
    return any(not blocked >> number - 1 & 1 for number in signal.sigpending())
