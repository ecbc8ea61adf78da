"""One software PE, as the hypervisor sees it: state, entry, exits, kicks."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trapline.arm64.sysreg import Sysreg
from trapline.engine.state import CpuState, EngineState, Exit
from trapline.mapping import map_far

if TYPE_CHECKING:
    from trapline.engine.engine import Engine

NS_PER_TICK = 16
"""Nanoseconds of one tick of the system counter."""
NEVER = (1 << 64) - 1
"""No deadline."""


@dataclass(frozen=True, slots=True)
class EngineExit:
    """Why the PE is at EL2: `sync` (look at ESR_EL2), `irq` (a physical interrupt or a kick) or `serror`."""

    kind: Literal["sync", "irq", "serror"]


SYNC, IRQ, SERROR = EngineExit("sync"), EngineExit("irq"), EngineExit("serror")
EL2_SYNC, EL2_IRQ = Exit.EL2_SYNC, Exit.EL2_IRQ


class Cpu:
    """A PE of the software machine. Between `enter` calls it is at EL2, in the hypervisor's hands."""

    def __init__(self, engine: Engine, index: int) -> None:
        self.engine = engine
        self.index = index
        self.state = EngineState.from_buffer(map_far(ctypes.sizeof(EngineState), huge=True))
        self.address = ctypes.addressof(self.state)
        self._argument = ctypes.c_uint64(self.address)
        """The same, ready to be passed."""
        self._sysreg = self.state.sysreg
        self._entry = engine.entry
        self._enter = engine.entry.enter
        self.state.shared = engine.shared_address
        self.state.index = index
        self.state.stop = NEVER
        self.state.el, self.state.spsel, self.state.daif = 2, 1, 15
        self.reset()

    def reset(self) -> None:
        """Give every system register its reset value; the PE stays at EL2."""
        values = self.engine.reset_values
        for slot, value in values.items():
            self._sysreg[slot] = value
        self._entry.reset_tlbs(self.address)

    def __getitem__(self, reg: type[Sysreg]) -> int:
        """The stored value of a system register."""
        return self._sysreg[reg.slot]

    def __setitem__(self, reg: type[Sysreg], value: int) -> None:
        self._sysreg[reg.slot] = value

    def enter(self) -> EngineExit:
        """Return from EL2 to the guest (ELR_EL2, SPSR_EL2) and run it until the next exception to EL2."""
        enter, address, state, engine = self._enter, self._argument, self.state, self.engine
        state.running = 1
        if engine.paused:
            engine.wait_for_others(self)
        code = enter(address)
        while True:
            if code == EL2_SYNC:
                state.running = 0
                return SYNC
            if code == EL2_IRQ:
                state.running = 0
                return IRQ
            try:
                self._outside(code)
            except BaseException:
                state.running = 0  # or whoever waits for this PE to stop would wait for ever
                raise
            if engine.paused:
                engine.wait_for_others(self)
            code = self._entry.proceed(address)

    def run_here(self, launch: bool) -> int:
        """Run from the state as it is until something outside is wanted, and return what (`Exit`): a machine without hypervisor.

        `launch` after the state was changed from outside, else go on.
        """
        entry, address, state, engine = self._entry, self.address, self.state, self.engine
        state.running = 1
        try:
            if engine.paused:
                engine.wait_for_others(self)
            code = entry.launch(address) if launch else entry.proceed(address)
            while code == Exit.COMPILE or code == Exit.CODE_FULL:
                self._outside(code)
                if engine.paused:
                    engine.wait_for_others(self)
                code = entry.proceed(address)
        finally:
            state.running = 0
        if code == Exit.TIMER:
            engine.timers.arm(self)
        return code

    def external_abort(self) -> None:
        """The access to a device with which `run_here` returned ends in a synchronous external abort."""
        self._entry.external_abort(self.address)

    def _outside(self, code: int) -> None:
        """Work that compiled code leaves to Python in the middle of a run."""
        if code == Exit.COMPILE:
            self.engine.compile_for(self)
        elif code == Exit.TIMER:
            self.engine.timers.arm(self)
        elif code == Exit.CODE_FULL:
            self.engine.flush_code(self)
        else:
            raise AssertionError(f"unknown exit {code}")

    def instruction_restarts(self) -> None:
        """The hypervisor has cured the abort that ended the last run, and the instruction runs again. For those who count."""

    def kick(self) -> None:
        """Make `enter` return soon; from any thread, and remembered if the guest is not running."""
        self.state.poll_kick = 1

    def request_flush(self) -> None:
        """Have this PE forget its translations before it runs on."""
        self._entry.request_sync(self.address, 0, 0, 0)

    def wait_flush(self) -> None:
        """Wait until a requested flush is done, or the PE is not running (it flushes before it does)."""
        state = self.state
        target = state.sync_request
        while state.running and state.sync_done < target:
            os.sched_yield()

    def timer_lines(self) -> int:
        """Timer interrupt outputs: bit 0 the virtual timer, bit 1 the EL1 physical timer. They count as reported now."""
        lines = self._entry.lines(self.address)
        self.state.timer_reported = lines
        return lines

    def next_timer_deadline(self) -> int | None:
        """When a timer output rises next, in host monotonic nanoseconds; None if none will."""
        count = self._entry.next_count(self.address)
        return None if count == NEVER else count * NS_PER_TICK


__all__ = ["Cpu", "CpuState", "EngineExit"]
