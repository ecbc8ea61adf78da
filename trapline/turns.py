"""Deterministic time and scheduling: tasks that take turns on one host thread, a clock that counts instructions, seeded randomness.

Nothing here looks at the host. Time is made of instructions: each one that any vCPU retires takes a nanosecond, and when every task
sleeps the clock jumps to the next moment at which something is due. A turn ends after `quantum` instructions, at YIELD and WFE, and
when the task goes to sleep; the next ready task follows in order. What comes from outside (console input, keys) is let in between two
turns only, by an `Outside`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from random import Random as Generator
from typing import TYPE_CHECKING, Any, Protocol

from trapline.errors import TraplineError
from trapline.sync import Clock, Random, WaitQueue, World

if TYPE_CHECKING:
    from greenlet import greenlet

QUANTUM = 100_000
"""Instructions of a turn."""

EPOCH = 1_767_225_600.0
"""2026-01-01 00:00:00 UTC."""


class Outside(Protocol):
    """Where a run meets the rest of the world: between turns, and when there is nothing left to do."""

    def between_turns(self) -> None:
        """Let in what has come. Called before every turn."""

    def idle(self, until: int | None) -> None:
        """Every task sleeps, at the latest until the clock reads `until` (None: for ever): let time pass."""


class Nobody:
    """An outside from which nothing ever comes: idle time passes at once."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def between_turns(self) -> None:
        """Nothing."""

    def idle(self, until: int | None) -> None:
        """Go on with what is due next; Deadlock when nothing is."""
        if until is None:
            raise Deadlock("the guest sleeps, and nothing will ever wake it")
        self.turns.advance_to(until)


class Deadlock(TraplineError):
    """Every task sleeps, and nothing is due that could wake one."""

    exit_status = 124


class Turns(World):
    """The tasks of one deterministic machine, and the time they live in."""

    def __init__(self, seed: int = 0, quantum: int = QUANTUM) -> None:
        self.seed = seed
        self.quantum = quantum
        self.epoch = EPOCH
        """What a real-time clock shows when the virtual clock reads 0: seconds since 1970."""
        self.retired = 0
        """Instructions of all vCPUs so far."""
        self.exits = 0
        """How often a vCPU's processor came back to the hypervisor."""
        self.skipped = 0
        """Nanoseconds that passed without an instruction."""
        self.clock = VirtualClock(self)
        self.random = self._random = SeededRandom(seed, "hypervisor")
        self.outside: Outside = Nobody(self)
        self.freeze_at: int | None = None
        """When so many instructions have retired and every task has had its turn, stop as by `stop_at`, to be saved."""
        self.freezing = False
        """That has come, and tasks are being stopped."""
        self.asleep: list[int] = []
        """Which tasks slept then; and of those that `run` is given, which have to fall asleep again before time goes on."""
        self.stop_at: int | None = None
        """When so many instructions have retired `on_stop` is called, which sees to it that none follows."""
        self.on_stop: Callable[[], None] = lambda: None
        self.on_round: Callable[[], None] = lambda: None
        """Called before each round, in which every task has a turn. What it asks of the tasks they have done when the round ends."""
        self.trace: Callable[[Any, str], None] | None = None
        """Called after each run of a vCPU's processor, with the processor and the kind of its exit."""
        self._sources: dict[str, Source] = {}
        """The newest of each purpose."""
        self._kept: dict[str, tuple[Callable[[], int], Callable[[int], None]]] = {}
        self._left = quantum
        self._alarms: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0
        self._tasks: list[Task] = []
        self._current: Task | None = None

    # --- time ----------------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """Virtual nanoseconds."""
        return self.retired + self.skipped

    def advance_to(self, time: int) -> None:
        """Let the time until `time` pass without an instruction."""
        self.skipped += max(0, time - self.now)

    def call_at(self, time: int, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called between turns when the clock reads `time`. Returns what cancels it."""
        self._serial += 1
        entry = (time, self._serial, callback)
        heapq.heappush(self._alarms, entry)

        def cancel() -> None:
            if entry in self._alarms:
                self._alarms.remove(entry)
                heapq.heapify(self._alarms)

        return cancel

    def wait_queue(self, name: str) -> WaitQueue:
        """Somewhere to sleep for a task that takes turns."""
        return TurnQueue(name, self)

    def entropy(self, purpose: str) -> Callable[[int], bytes]:
        """A source of bytes that depends on the seed, what it is for, and how often one was asked for that before."""
        serial = self._sources[purpose].serial + 1 if purpose in self._sources else 1
        self._sources[purpose] = source = Source(self.seed, purpose, serial)
        return source.bytes

    def keep(self, name: str, get: Callable[[], int], set: Callable[[int], None]) -> None:
        """A number that belongs to the state of this machine and that no call of KVM's shows: `save` and `load` take it along."""
        self._kept[name] = get, set

    def save(self) -> dict[str, Any]:
        """Where time and randomness stand, as plain values; between two runs of the tasks."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "retired": self.retired,
            "exits": self.exits,
            "skipped": self.skipped,
            "sources": {purpose: [source.serial, source.words] for purpose, source in self._sources.items()},
            "asleep": self.asleep,
            "random": self._random.words,
            "kept": {name: get() for name, (get, _) in self._kept.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there: everything that asks for randomness has been made, as it had been there."""
        self.seed, self.epoch = state["seed"], state["epoch"]
        self.retired, self.exits, self.skipped = state["retired"], state["exits"], state["skipped"]
        self.asleep = list(state["asleep"])
        for purpose, (serial, words) in state["sources"].items():
            if purpose in self._sources:
                self._sources[purpose].become(self.seed, purpose, serial, words)
            else:
                self._sources[purpose] = Source(self.seed, purpose, serial, words)
        self._random.become(self.seed, "hypervisor", state["random"])
        for name, value in state["kept"].items():
            if name in self._kept:
                self._kept[name][1](value)

    def wall_clock(self) -> float:
        """Seconds since 1970, as a real-time clock in the machine counts them."""
        return self.epoch + self.now / 1e9

    def wall_ns(self) -> int:
        """The same in nanoseconds."""
        return int(self.epoch) * 1_000_000_000 + int(self.epoch % 1 * 1e9) + self.now

    def run_delay(self) -> int:
        """Nobody takes the processor away from a task that has its turn."""
        return 0

    # --- a turn --------------------------------------------------------------------------------------------------------------

    def budget(self) -> int:
        """Instructions that may run before somebody else has to."""
        budget = self._left
        if self._alarms:
            budget = min(budget, self._alarms[0][0] - self.now)
        if self.stop_at is not None:
            budget = min(budget, self.stop_at - self.retired)
        return max(budget, 0)

    def spend(self, instructions: int) -> None:
        """So many instructions have retired before an exit."""
        self.retired += instructions
        self.exits += 1
        self._left -= instructions

    def waits_again(self) -> bool:
        """Whether the current task's wait ended for no other reason than that the machine is being saved. It counts as asleep then."""
        if self.freezing and self._current is not None and self._current.number not in self.asleep:
            self.asleep.append(self._current.number)
        return self.freezing

    def take_back(self) -> None:
        """The last instruction did not retire after all: it will run again, and it makes no difference when that has to be."""
        self.retired -= 1
        self.exits -= 1
        self._left += 1

    def give_up(self) -> None:
        """End this turn early."""
        self._left = 0

    def others_wait(self) -> bool:
        """Whether another task would run if this turn ended."""
        return any(task is not self._current and task.ready() for task in self._tasks)

    def pass_on(self) -> None:
        """The turn is over: let others run, and return with a new turn."""
        if self._current is not None:
            self._current.leave()
        else:
            self._between()
            self._left = self.quantum

    def sleep(self, queue: TurnQueue, deadline: int | None) -> None:
        """The current task sleeps until `queue` is woken or the clock reads `deadline`."""
        if self._current is not None:
            self._current.sleep(queue, deadline)
            return
        while not queue.woken and not (deadline is not None and deadline <= self.now):
            self._between()
            if not queue.woken:
                self._idle(deadline)

    # --- tasks ---------------------------------------------------------------------------------------------------------------

    def run(self, bodies: Sequence[Callable[[], object]]) -> None:
        """Run tasks to their ends, in turns. What one of them raises, or the outside, ends all."""
        self._tasks = [Task(self, number, body) for number, body in enumerate(bodies)]
        try:
            self._lull()
            while self._tasks:
                if self.freeze_at is not None and self.retired >= self.freeze_at and not self.freezing:
                    self.freezing = True
                    self.asleep = [task.number for task in self._tasks if not task.ready()]
                    self.stop_at = self.retired
                if not self._stopped():
                    self.on_round()
                if not any([self._turn(task) for task in list(self._tasks)]) and self._tasks:
                    self._idle(None)
        finally:
            for task in self._tasks:
                task.greenlet.throw()
            self._tasks = []

    def _lull(self) -> None:
        """Let those tasks fall asleep that slept when this machine was saved: the instruction that does it was counted then."""
        before, trace = (self.retired, self.exits, self.skipped), self.trace
        self.trace = None
        for number in self.asleep:
            self._left = 1
            self._current = self._tasks[number]
            self._current.greenlet.switch()
            self._current = None
        self.asleep = []
        (self.retired, self.exits, self.skipped), self.trace = before, trace

    def _turn(self, task: Task) -> bool:
        """Give a task its turn; False if it sleeps."""
        self._between()
        if not task.ready():
            return False
        self._left = self.quantum
        self._current = task
        try:
            task.greenlet.switch()
        finally:
            self._current = None
        if task.greenlet.dead:
            self._tasks.remove(task)
        return True

    def _stopped(self) -> bool:
        return self.stop_at is not None and self.retired >= self.stop_at

    def _between(self) -> None:
        if self._stopped():
            self.on_stop()  # this is no end of a turn that another run would have: nothing else may happen here
            return
        self.outside.between_turns()
        while self._alarms and self._alarms[0][0] <= self.now:
            heapq.heappop(self._alarms)[2]()

    def _idle(self, deadline: int | None) -> None:
        due = [task.deadline for task in self._tasks if task.deadline is not None]
        if deadline is not None:
            due.append(deadline)
        if self._alarms:
            due.append(self._alarms[0][0])
        self.outside.idle(min(due) if due else None)


class Task:
    """One task: its greenlet, and while it sleeps what it waits for."""

    def __init__(self, turns: Turns, number: int, body: Callable[[], object]) -> None:
        from greenlet import getcurrent, greenlet

        self.turns = turns
        self.number = number
        self.hub: greenlet = getcurrent()
        self.greenlet: greenlet = greenlet(body)
        self.queue: TurnQueue | None = None
        self.deadline: int | None = None

    def ready(self) -> bool:
        """Whether the task has something to do."""
        return self.queue is None or self.queue.woken or (self.deadline is not None and self.deadline <= self.turns.now)

    def leave(self) -> None:
        """Let others run."""
        self.hub.switch()

    def sleep(self, queue: TurnQueue, deadline: int | None) -> None:
        """Let others run until the queue is woken or the deadline has come."""
        self.queue, self.deadline = queue, deadline
        try:
            if not self.ready():
                self.hub.switch()
        finally:
            self.queue = self.deadline = None


class TurnQueue(WaitQueue):
    """Where a task that takes turns sleeps."""

    __slots__ = ("turns", "woken")

    def __init__(self, name: str, turns: Turns) -> None:
        self.name = name
        self.turns = turns
        self.woken = False

    def prepare(self) -> None:
        """Forget earlier wake-ups."""
        self.woken = False

    def wait(self, deadline_ns: int | None = None) -> bool:
        """Sleep until woken after `prepare`, or until the virtual clock reads `deadline_ns`. False after the deadline."""
        self.turns.sleep(self, deadline_ns)
        return self.woken

    def wake(self) -> None:
        """End the current or next wait."""
        self.woken = True


class VirtualClock(Clock):
    """The time of a deterministic machine."""

    __slots__ = ("_turns",)

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def now(self) -> int:
        """Virtual nanoseconds."""
        return self._turns.now

    def sleep_until(self, deadline_ns: int) -> None:
        """Sleep until the clock reads at least `deadline_ns`."""
        TurnQueue("sleep", self._turns).wait(deadline_ns)


WORD_BITS = 32
"""Of a generator's output: what is drawn takes whole words."""


class Source:
    """Bytes that follow from a seed, what they are for, and how often one was asked for that before (`serial`)."""

    __slots__ = ("_generator", "serial", "words")

    def __init__(self, seed: int, purpose: str, serial: int, words: int = 0) -> None:
        self.become(seed, purpose, serial, words)

    def become(self, seed: int, purpose: str, serial: int, words: int) -> None:
        """Stand where another one stood that had given so many words."""
        self.serial, self.words = serial, words
        self._generator = Generator(f"{seed}:{purpose}:{serial}")
        if words:
            self._generator.getrandbits(WORD_BITS * words)

    def bytes(self, count: int) -> bytes:
        """The next bytes."""
        self.words += -(-8 * count // WORD_BITS)
        return self._generator.randbytes(count)


class SeededRandom(Random):
    """Numbers that follow from a seed and what they are for."""

    __slots__ = ("words",)

    def __init__(self, seed: int, purpose: str) -> None:
        self.become(seed, purpose, 0)

    def become(self, seed: int, purpose: str, words: int) -> None:
        """Stand where another one stood that had given so many words."""
        self.words = words
        self._source = Generator(f"{seed}:{purpose}")
        if words:
            self._source.getrandbits(WORD_BITS * words)

    def bits(self, count: int) -> int:
        """`count` random bits."""
        self.words += -(-count // WORD_BITS)
        return self._source.getrandbits(count)
