"""A PE of a deterministic machine: it runs for as many instructions as its turn has, and lives in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.engine.clock import TICK_SHIFT
from trapline.engine.cpu import IRQ, NEVER, Cpu, EngineExit
from trapline.engine.state import TURN_GIVEN_UP, Exit
from trapline.turns import Turns

if TYPE_CHECKING:
    from trapline.engine.engine import Engine

WORD = (1 << 64) - 1
EXIT_NAMES = {value: name.lower() for name, value in vars(Exit).items() if isinstance(value, int)}
"""Kinds of exits of a machine without a hypervisor outside, for traces."""


class TurnCpu(Cpu):
    """A PE whose handlers count. It never runs while another one of its machine does."""

    def __init__(self, engine: Engine, index: int, turns: Turns) -> None:
        super().__init__(engine, index)
        self.turns = turns
        self.state.virtual_time = 1
        self.state.random = int.from_bytes(turns.entropy(f"RNDR of PE {index}")(8), "little")
        self._launch = False
        """The state was changed from outside, and has not run since."""
        self._start = 0
        self._end = 0
        """Where the instruction count stands when the turn ends."""

    def enter(self) -> EngineExit:
        """Run until an exception to EL2, which the end of the turn is too."""
        if not self._begin():
            return IRQ
        exit = super().enter()
        self._end_run(exit.kind)
        return exit

    def run_here(self, launch: bool) -> int:
        """Run until something outside is wanted, which the end of the turn is too."""
        self._launch = self._launch or launch
        if not self._begin():
            return Exit.ATTEND
        launch, self._launch = self._launch, False
        code = super().run_here(launch)
        self._end_run(EXIT_NAMES[code])
        return code

    def _begin(self) -> bool:
        """Set the limit of the next run; False if the turn is over, and others have run meanwhile."""
        turns, state = self.turns, self.state
        budget = turns.budget()
        if not budget:
            turns.pass_on()
            state.poll_kick = 0  # whoever wants this PE to come back is about to get it
            return False
        self._set_clock()
        self._start = state.icount
        self._end = state.icount + budget
        if not state.restarts:
            state.turns = turns.others_wait()
        self.aim()
        return True

    def _end_run(self, kind: str) -> None:
        turns, state = self.turns, self.state
        turns.spend(state.icount - self._start)
        if state.turns == TURN_GIVEN_UP:
            turns.give_up()
        if turns.trace is not None:
            turns.trace(self, kind)

    def instruction_restarts(self) -> None:
        """The abort that ended the last run was none of the guest's business: the instruction counts when it runs again."""
        self.state.icount -= 1
        self.state.restarts = 1
        self.turns.take_back()

    def aim(self) -> None:
        """Stop the guest at the end of its turn, or when a timer is due before that."""
        state = self.state
        due = self._entry.next_count(self.address)
        if due != NEVER:
            at = (due << TICK_SHIFT) - state.clock_offset & WORD
            if state.icount < at < self._end:
                state.stop = at
                return
        state.stop = self._end

    def _set_clock(self) -> None:
        state = self.state
        state.clock_offset = self.turns.now - state.icount & WORD

    def timer_lines(self) -> int:
        """Timer interrupt outputs now."""
        self._set_clock()
        return super().timer_lines()

    def next_timer_deadline(self) -> int | None:
        """When a timer output rises next, in virtual nanoseconds; None if none will."""
        self._set_clock()
        return super().next_timer_deadline()


class TurnTimers:
    """What programming a timer means to such a PE. Nobody has to look at a clock: the count says when it is due."""

    def arm(self, cpu: Cpu) -> None:
        """A timer of `cpu`, which takes turns, was programmed."""
        assert isinstance(cpu, TurnCpu)
        cpu.aim()

    def close(self) -> None:
        """Nothing to stop."""
