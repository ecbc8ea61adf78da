"""A session: from a configuration to the end of the guest, reboots included, with the user's terminal in between."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trapline.backends.objects import System
from trapline.devices.virtio.block import Image
from trapline.errors import TraplineError
from trapline.vmm.board import MiB
from trapline.vmm.console import STDIN, InputThread, Keyboard, Output, RawTerminal
from trapline.vmm.machine import Config, Machine, Software
from trapline.vmm.runloop import Ending, Outcome, Runner

if TYPE_CHECKING:
    from trapline.bare.machine import BareSystem  # brings the engine with it
    from trapline.vmm.snapshot import SavedMachine


@dataclass(frozen=True, slots=True)
class SnapshotWish:
    """Save the machine to `path` when `at` comes: a text on the console, or so many seconds; of a deterministic machine, instructions."""

    path: Path
    at: str | float


@dataclass(slots=True)
class Session:
    """Runs machines one after the other until one ends for good.

    software:     what the first machine starts from. None if it is `saved`; it is read when the guest reboots then.
    end_of_input: what the guest gets when stdin ends, for guests that read it as a script.
    snapshot:     where and when to save the machine.
    quitting:     whether the user wants the end; it holds for the machine that a reboot makes, too.
    """

    system: System | BareSystem
    config: Config
    software: Software | None
    disks: list[Image]
    output: Output = field(default_factory=Output)
    end_of_input: bytes = b""
    machine: Machine | None = None
    runner: Runner | None = None
    saved: SavedMachine | None = None
    snapshot: SnapshotWish | None = None
    quitting: bool = False

    @property
    def exit_status(self) -> int | None:
        """The status that the guest announced on its console, None if it did not."""
        return self.output.status

    def run(self) -> Ending:
        """Run to the end. Raises Timeout; BadInput if the machine cannot be built."""
        deadline = None if self.config.timeout is None else time.monotonic() + self.config.timeout
        with ExitStack() as stack:
            machine = self._first_machine()
            self._make_ready(machine)
            self._attach_input(stack)
            self._arrange_snapshot(stack)
            while True:
                ending = self._run_machine(machine, deadline)
                if ending.outcome is not Outcome.RESET or not self.config.reboot:
                    if self.snapshot is not None and ending.outcome is not Outcome.SAVED:
                        print(f"trapline: nothing was saved: the machine ended before {self.snapshot.at!r} came", file=sys.stderr)
                    return ending
                machine = self._make_machine()
                self._make_ready(machine)

    def _make_ready(self, machine: Machine) -> None:
        """From here on keys are about this machine."""
        self.machine, self.runner = machine, self._make_runner(machine)
        if self.quitting:
            self.runner.end(Ending(Outcome.QUIT))

    def _first_machine(self) -> Machine:
        if self.saved is None:
            return self._make_machine()
        return Machine(self.system, self.config, None, self.disks, self.output.write, self.saved)

    def _make_machine(self) -> Machine:
        if self.software is None:
            assert self.saved is not None
            self.saved.check_files()
            self.software = Software.read(self.config)
        return Machine(self.system, self.config, self.software, self.disks, self.output.write)

    def _arrange_snapshot(self, stack: ExitStack) -> None:
        """See to it that the machine is saved when it is to be, and ends then."""
        if self.snapshot is None:
            return
        match self.snapshot.at:
            case str(text):
                self.output.wait_for(text.encode(), lambda: self.request(self.save_and_end))
            case seconds:
                timer = threading.Timer(seconds, lambda: self.request(self.save_and_end))
                timer.daemon = True
                timer.start()
                stack.callback(timer.cancel)

    def request(self, task: Callable[[], None]) -> None:
        """Have something done in the thread that called `run`, while the machine runs. From any thread."""
        if self.runner is not None:
            self.runner.request(task)

    def save_and_end(self) -> None:
        """Save the machine as wished, and end it. If it cannot be saved it goes on."""
        assert self.runner is not None and self.snapshot is not None
        try:
            with self.runner.paused():
                text = self.save(self.snapshot.path)
                self.runner.end(Ending(Outcome.SAVED))
        except TraplineError as error:
            text = str(error)
        print(f"trapline: {text}", file=sys.stderr)

    def more_state(self) -> dict[str, Any]:
        """What is to be known of the run, besides the machine, where it goes on."""
        assert self.runner is not None
        return {"runner": self.runner.state(), "output": self.output.state()}

    def save(self, path: Path) -> str:
        """Save the machine, which stands still; what happened in one line."""
        from trapline.vmm.snapshot import save_to  # most runs do without

        assert self.machine is not None
        start = time.monotonic()
        size = save_to(path, self.machine, self.disks, **self.more_state())
        took = time.monotonic() - start
        return f"{size / MiB:.1f} MiB of memory saved in {took:.2f} s; go on with: trapline restore {path}"

    def _attach_input(self, stack: ExitStack) -> None:
        """Read stdin, in raw mode if it is a terminal, until `stack` is closed."""
        stack.enter_context(RawTerminal())
        keyboard = Keyboard(
            self.feed,
            {"x": self.quit, "p": self.press_power_key, "s": self.show_state},
            escapes=os.isatty(STDIN),
        )
        reader = InputThread(keyboard, at_end=self.input_ended)
        reader.start()
        stack.callback(reader.stop)

    def _run_machine(self, machine: Machine, deadline: float | None) -> Ending:
        assert self.runner is not None
        self._load_runner()
        try:
            return self.runner.run(deadline)
        finally:
            self._machine_ended(machine)
            machine.close()

    def _make_runner(self, machine: Machine) -> Runner:
        return Runner(machine)

    def _load_runner(self) -> None:
        """Of a machine that was saved, also the run goes on."""
        if self.saved is not None and self.software is None and self.runner is not None:
            self.runner.load(self.saved.machine["runner"])
            self.output.load(self.saved.machine["output"])

    def _machine_ended(self, machine: Machine) -> None:
        """The machine stands still; it is about to be closed."""

    def input_ended(self) -> None:
        """Stdin has no more."""
        self.feed(self.end_of_input)

    def feed(self, data: bytes) -> None:
        """Characters for the guest's console."""
        if data and self.machine is not None:
            self.machine.receive(data)

    def quit(self) -> None:
        """Stop the machine at once, or the one that is being made for a reboot before it starts."""
        self.quitting = True
        if self.runner is not None:
            self.runner.end(Ending(Outcome.QUIT))

    def press_power_key(self) -> None:
        """Ask the guest to shut down."""
        if self.machine is not None:
            self.machine.press_power_key()

    def show_state(self) -> None:
        """The CPUs' registers on stderr."""
        if self.runner is not None:
            self.runner.report_state(lambda text: print(text.replace("\n", "\r\n"), end="\r\n", file=sys.stderr, flush=True))
