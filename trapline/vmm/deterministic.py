"""Running a machine deterministically: its vCPUs take turns on this thread, and the outside is let in between two turns only.

Two runs of the same machine are the same as long as nothing is typed: input that is not a terminal is read before the first turn.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from trapline.backends.objects import Vm
from trapline.backends.snapshot.gic import settle
from trapline.errors import KvmError, Timeout
from trapline.turns import Deadlock, Turns
from trapline.vmm.console import READ_BYTES, STDIN
from trapline.vmm.machine import Machine
from trapline.vmm.report import describe_cpu
from trapline.vmm.runloop import Ending, Outcome, Runner, VcpuThread
from trapline.vmm.session import Session
from trapline.vmm.statehash import state_hash

WATCH_WORK = 20_000_000
"""After so much work vCPUs that no device answered meanwhile are asked whether they are lost in their exception vectors."""
EXIT_WORK = 5000
"""Instructions that take as long as one exit."""
PATIENCE_SECONDS = 3
"""How long input may take to come before we say what we are waiting for."""
HOST_POLL_SECONDS = 0.5
"""How long a machine without anything to do sleeps before it looks at its time limit again."""


Deliver = Callable[[str, bytes], None]
"""What brings a thing of some kind to the machine."""


class Stdin(Enum):
    """When a session reads stdin. A terminal is always read while the guest runs, if at all."""

    FIRST = "to its end, before the guest starts"
    LIVE = "while the guest runs"
    UNUSED = "not at all"


class Inbox:
    """An outside that hands over what other threads post, between turns.

    Idle time passes at once if something is due, unless a person sits there. Otherwise only the outside can go on, so it is waited
    for, unless it is `closed`.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.deliver: Deliver = lambda kind, data: None
        """Brings what was posted to the machine."""
        self.attended = False
        """A person may type at any time, and reads the guest's clock: idle time takes its time."""
        self.closed = False
        """Nothing will come any more."""
        self.deadline: float | None = None
        """When the run is to end with Timeout, in `time.monotonic()` seconds."""
        self.posted: deque[tuple[str, bytes]] = deque()
        self.arrived = threading.Event()

    def post(self, kind: str, data: bytes = b"") -> None:
        """Have something delivered; from any thread."""
        self.posted.append((kind, data))
        self.arrived.set()

    def close(self) -> None:
        """Nothing will be posted any more."""
        self.closed = True
        self.arrived.set()

    def between_turns(self) -> None:
        """Deliver what was posted."""
        self.check_time()
        while self.posted:
            self.deliver_posted(*self.posted.popleft())

    def deliver_posted(self, kind: str, data: bytes) -> None:
        """Deliver one thing that was posted."""
        self.deliver(kind, data)

    def check_time(self) -> None:
        """Raise Timeout when the deadline has passed."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise Timeout("the guest was still running")

    def idle(self, until: int | None) -> None:
        """Go to the next moment at which something is due, or wait for something to be posted."""
        if until is not None and self.attended:
            start, asleep = self.turns.now, time.monotonic_ns()
            self.wait((until - start) / 1e9)
            passed = time.monotonic_ns() - asleep
            self.turns.advance_to(min(start + passed, until) if self.posted else until)
            return
        if until is not None:
            self.turns.advance_to(until)
            return
        if self.closed and not self.posted:
            raise Deadlock("the guest sleeps, and nothing will ever wake it")
        self.wait(HOST_POLL_SECONDS)

    def wait(self, seconds: float) -> None:
        """Sleep until something is posted, or so long."""
        if not self.posted:
            self.arrived.wait(seconds)
        self.arrived.clear()


class TurnRunner(Runner):
    """Runs the vCPUs of a deterministic machine in this thread."""

    def __init__(self, machine: Machine, inbox: Inbox) -> None:
        super().__init__(machine)
        assert machine.turns is not None
        self.turns = machine.turns
        self.inbox = inbox
        self.watch_at = self.work + WATCH_WORK
        self.turns.on_round = self.watch
        self.turns.on_stop = lambda: self.end(Ending(Outcome.SAVED if self.turns.freezing else Outcome.STOPPED))

    def state(self) -> dict[str, Any]:
        """Also when the next look is due."""
        return {**super().state(), "watch_at": self.watch_at}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load(state)
        self.watch_at = state["watch_at"]

    def run(self, deadline: float | None = None) -> Ending:
        """Give turns until the machine ends. `deadline` is in `time.monotonic()` seconds; raises Timeout when it passes."""
        self.inbox.deadline = deadline
        self.turns.run([partial(self._run_vcpu, thread) for thread in self.threads])
        assert self.ending is not None
        return self.ending

    def _run_vcpu(self, thread: VcpuThread) -> None:
        try:
            thread.loop()
        except Exception as error:  # whatever it is, the machine ends with a report
            self.crash(thread, f"{type(error).__name__}: {error}", error)

    @property
    def work(self) -> int:
        """A measure of host time that is the same in every run."""
        return self.turns.retired + EXIT_WORK * self.turns.exits

    def watch(self) -> None:
        """Look for guests that are lost, after a fixed amount of work."""
        if self.work >= self.watch_at:
            self.watch_at += WATCH_WORK
            self._watch()


@dataclass(slots=True)
class TurnSession(Session):
    """A session of a deterministic machine.

    stdin:   when input is read.
    stop_at: end when so many instructions have retired; None to go on to the guest's own end.
    inbox:   the outside; by default one that nobody writes down.
    inspect: called with each machine when it stands still, before it is closed.
    final:   after `run`: the hash of the last machine's state, and in `registers` those of its vCPUs.
    """

    stdin: Stdin = Stdin.FIRST
    stop_at: int | None = None
    inbox: Inbox = field(default=None)  # type: ignore[assignment] # made below, where it is missing
    inspect: Callable[[Machine], None] = lambda machine: None
    final: str = ""
    registers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.inbox is None:
            self.inbox = Inbox(self.turns)
        self.turns.outside, self.inbox.deliver = self.inbox, self.deliver
        self.turns.stop_at = self.stop_at

    @property
    def turns(self) -> Turns:
        """Time and order of this machine."""
        assert self.system.turns is not None
        return self.system.turns

    def _make_runner(self, machine: Machine) -> Runner:
        return TurnRunner(machine, self.inbox)

    def _attach_input(self, stack: ExitStack) -> None:
        if self.stdin is Stdin.UNUSED:
            return
        if self.stdin is Stdin.LIVE or os.isatty(STDIN):
            self.inbox.attended = os.isatty(STDIN)
            Session._attach_input(self, stack)
            return
        with suppress(OSError):
            if not select.select([STDIN], [], [], PATIENCE_SECONDS)[0]:
                print("trapline: a deterministic run reads its input first: waiting for the end of stdin", file=sys.stderr)
            while data := os.read(STDIN, READ_BYTES):
                self.inbox.post("input", data)
        self.input_ended()

    def _arrange_snapshot(self, stack: ExitStack) -> None:
        if self.snapshot is not None:
            assert not isinstance(self.snapshot.at, str)
            self.turns.freeze_at = int(self.snapshot.at)

    def _machine_ended(self, machine: Machine) -> None:
        if self.runner is not None and self.runner.ending is not None and self.runner.ending.outcome is Outcome.SAVED:
            assert self.snapshot is not None
            print(f"trapline: {self.save(self.snapshot.path)}", file=sys.stderr)
        elif isinstance(machine.vm, Vm):
            with suppress(KvmError):  # a guest may have given its ITS tables that are no memory
                settle(machine.vm)
        self.final = state_hash(machine.vm, [window.device for window in machine.bus.windows])
        self.registers = [describe_cpu(vcpu) for vcpu in machine.vcpus]
        self.inspect(machine)

    def report(self) -> None:
        """Say on stderr how far the machine came and what it was like then; with the registers if that was not its own end."""
        if self.final:
            if self.turns.stop_at is not None and not self.turns.freezing and self.turns.retired >= self.turns.stop_at:
                print(*self.registers, sep="\n", file=sys.stderr)
            text = f"trapline: {self.turns.retired} instructions, {self.turns.now / 1e9:.6f} s of virtual time, state {self.final}"
            print(text, file=sys.stderr)

    # What the keyboard asks for happens between two turns.

    def feed(self, data: bytes) -> None:
        """Characters for the guest's console."""
        if data:
            self.inbox.post("input", data)

    def input_ended(self) -> None:
        """Stdin has no more."""
        self.feed(self.end_of_input)
        self.inbox.close()

    def quit(self) -> None:
        """Stop the machine."""
        self.inbox.post("quit")

    def press_power_key(self) -> None:
        """Ask the guest to shut down."""
        self.inbox.post("power key")

    def show_state(self) -> None:
        """The CPUs' registers on stderr."""
        self.inbox.post("show state")

    def deliver(self, kind: str, data: bytes) -> None:
        """Let in what was posted."""
        match kind:
            case "input":
                Session.feed(self, data)
            case "quit":
                Session.quit(self)
            case "power key":
                Session.press_power_key(self)
            case "show state":
                Session.show_state(self)
