"""A session: from a configuration to the end of the guest, reboots included, with the user's terminal in between."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trapline.backends.objects import System
from trapline.devices.virtio.block import Image
from trapline.vmm.console import STDIN, InputThread, Keyboard, Output, RawTerminal
from trapline.vmm.machine import Config, Machine, Software
from trapline.vmm.runloop import Ending, Outcome, Runner

if TYPE_CHECKING:
    from trapline.bare.machine import BareSystem  # brings the engine with it


@dataclass(slots=True)
class Session:
    """Runs machines one after the other until one ends for good.

    end_of_input: what the guest gets when stdin ends, for guests that read it as a script.
    """

    system: System | BareSystem
    config: Config
    software: Software
    disks: list[Image]
    output: Output = field(default_factory=Output)
    end_of_input: bytes = b""
    machine: Machine | None = None
    runner: Runner | None = None

    @property
    def exit_status(self) -> int | None:
        """The status that the guest announced on its console, None if it did not."""
        return self.output.status

    def run(self) -> Ending:
        """Run to the end. Raises Timeout; BadInput if the machine cannot be built."""
        deadline = None if self.config.timeout is None else time.monotonic() + self.config.timeout
        with ExitStack() as stack:
            self.machine = self._make_machine()
            self._attach_input(stack)
            while True:
                ending = self._run_machine(self.machine, deadline)
                if ending.outcome is not Outcome.RESET or not self.config.reboot:
                    return ending
                self.machine = self._make_machine()

    def _make_machine(self) -> Machine:
        return Machine(self.system, self.config, self.software, self.disks, self.output.write)

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
        self.runner = self._make_runner(machine)
        try:
            return self.runner.run(deadline)
        finally:
            self._machine_ended(machine)
            machine.close()

    def _make_runner(self, machine: Machine) -> Runner:
        return Runner(machine)

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
        """Stop the machine at once."""
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
