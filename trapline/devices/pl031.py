"""PL031, the PrimeCell real-time clock: seconds since 1970, and an alarm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from trapline.devices.device import IrqLine, PrimeCell, Reg

Cancel = Callable[[], None]
Schedule = Callable[[float, Callable[[], None]], Cancel]
"""Calls a function after so many seconds, with the device lock held, and returns what cancels it."""

COUNTER_MASK = 0xFFFF_FFFF


def never(delay: float, callback: Callable[[], None]) -> Cancel:
    """A schedule for devices on their own: nothing ever happens."""
    return lambda: None


class PL031(PrimeCell, part=0x031, revision=1, compatible=("arm,pl031", "arm,primecell")):
    """PrimeCell RTC. It keeps the host's time until the guest loads its own; the difference survives a reset."""

    DR = Reg(0x000, ro=True)
    MR = Reg(0x004)
    LR = Reg(0x008)
    CR = Reg(0x00C, mask=1, ro=True, reset=1)
    IMSC = Reg(0x010, mask=1)
    RIS = Reg(0x014, ro=True)
    MIS = Reg(0x018, ro=True)
    ICR = Reg(0x01C, mask=1, wo=True)

    kept = ("offset", "armed")

    def __init__(self, irq: IrqLine | None = None, clock: Callable[[], float] = time.time, schedule: Schedule = never) -> None:
        self.clock = clock
        self.schedule = schedule
        self.offset = 0
        self.armed = False
        """An alarm is to come."""
        self.cancel: Cancel = lambda: None
        super().__init__(irq)

    def reset(self) -> None:
        """Registers; the counter goes on."""
        self.cancel()
        self.armed = False
        super().reset()

    def state(self) -> dict[str, Any]:
        """Also what the counter shows, if an alarm depends on it."""
        return {**super().state(), "counter": self.counter() if self.armed else 0}

    def load(self, state: dict[str, Any]) -> None:
        """The clock shows the host's time again. An alarm that came due meanwhile rings now."""
        super().load(state)
        if self.armed:
            passed = self.counter() - state["counter"] & COUNTER_MASK
            if passed >= (self.MR - state["counter"] & COUNTER_MASK):
                self.ring()
            else:
                self.arm_alarm()

    def irq_level(self) -> bool:
        """RTCINTR: the alarm, unless masked."""
        return bool(self.RIS & self.IMSC)

    @DR.value
    def counter(self) -> int:
        return int(self.clock()) + self.offset & COUNTER_MASK

    @LR.write
    def set_time(self, value: int) -> None:
        self.LR = value
        self.offset = value - int(self.clock())
        self.arm_alarm()

    @MR.write
    def set_match(self, value: int) -> None:
        self.MR = value
        self.arm_alarm()

    @MIS.value
    def masked_status(self) -> int:
        return self.RIS & self.IMSC

    @ICR.write
    def clear_interrupt(self, value: int) -> None:
        self.RIS &= ~value

    def arm_alarm(self) -> None:
        """Schedule the moment at which the counter equals the match register: a wrapping comparison, so always in the future."""
        self.cancel()
        self.armed = True
        now = self.clock()
        remaining = self.MR - (int(now) + self.offset) & COUNTER_MASK
        if remaining == 0:
            self.ring()
        else:
            self.cancel = self.schedule(remaining - now % 1, self.ring)

    def ring(self) -> None:
        """The counter has reached the match register."""
        self.RIS, self.armed = 1, False
        self.update_irq()
