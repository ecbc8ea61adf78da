"""The alarm clock of an engine's PEs, as native functions: a timer of the host's that rings when a guest's timer is due.

A guest programs its timer for every tick. So setting the clock is a matter of compiled code, and the thread that waits for the clock
is in compiled code, too: neither has to wait for Python. There is one clock; `Shared.due` says when it has to ring for whom.
"""

from __future__ import annotations

from typing import Final

from trapline.arm64.sysreg_functions import NEVER, next_timer_count, system_counter
from trapline.bits.native import Ptr, addressof, extern, fence, native, store8, u1, u32, u64
from trapline.engine.lock import lock, unlock
from trapline.engine.state import EngineState, Shared

TICK_NS: Final = 16
SECOND: Final = 1_000_000_000
TFD_TIMER_ABSTIME: Final = 1

timerfd_settime = extern("timerfd_settime", u32, (u32, u32, u64, u64))
read = extern("read", u64, (u32, u64, u64))

LOCK = Shared.alarm_lock.offset
SETTING = Shared.alarm_setting.offset
RUNG = Shared.alarm_rung.offset
POLL_TIMER = EngineState.poll_timer.offset


@native
def set_alarm(cpu: Ptr[EngineState]) -> u1:
    """Have the clock ring when a timer output of this PE rises next; no if there is no clock yet, or time is virtual.

    An output that is high already is not waited for: whoever calls this looks at the outputs afterwards.
    """
    shared = Ptr[Shared](cpu.shared)
    if shared.alarm_clock == 0 or cpu.virtual_time != 0:
        return False
    now = system_counter(cpu)
    due = next_timer_count(cpu, now)
    if due <= now:
        due = NEVER
    if due != shared.due[cpu.index]:
        lock(addressof(shared) + LOCK)
        shared.due[cpu.index] = due
        if due < shared.alarm_at:
            ring_at(shared, due)
        unlock(addressof(shared) + LOCK)
    return True


@native
def ring_at(shared: Ptr[Shared], count: u64) -> None:
    """Set the clock, which is locked."""
    shared.alarm_at = count
    if count != NEVER:
        shared.alarm_setting[2] = count // (SECOND // TICK_NS)
        shared.alarm_setting[3] = count % (SECOND // TICK_NS) * TICK_NS
        timerfd_settime(u32(shared.alarm_clock - 1), TFD_TIMER_ABSTIME, addressof(shared) + SETTING, 0)


@native
def wait_for_alarms(shared: Ptr[Shared]) -> None:
    """Tell PEs when their timers are due, until `stop_alarms`."""
    while shared.alarm_stopped == 0:
        read(u32(shared.alarm_clock - 1), addressof(shared) + RUNG, 8)
        lock(addressof(shared) + LOCK)
        now = system_counter(Ptr[EngineState](shared.cpus[0]))
        following: u64 = NEVER
        for k in range(shared.cpu_count):
            if shared.due[k] <= now:
                shared.due[k] = NEVER
                store8(shared.cpus[k] + POLL_TIMER, 1)
            following = min(following, shared.due[k])
        ring_at(shared, following)
        unlock(addressof(shared) + LOCK)


@native
def stop_alarms(shared: Ptr[Shared]) -> None:
    """Have `wait_for_alarms` return."""
    lock(addressof(shared) + LOCK)
    shared.alarm_stopped = 1
    fence()
    ring_at(shared, 1)
    unlock(addressof(shared) + LOCK)
