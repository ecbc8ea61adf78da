"""A machine in the hands of a program: type, wait for what the guest prints, save it, restore it. Made for tests.

    with Driver.boot(Config(kernel=..., initrd=..., params="console=ttyAMA0")) as guest:     # once: takes as long as a boot does
        guest.expect("~ # ")
        guest.save("booted")

    with Driver.restore("booted") as guest:                                                  # for each test: milliseconds
        assert "aarch64" in guest.command("uname -m")
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from trapline.backends.objects import System
from trapline.backends.select import open_system
from trapline.backends.snapshot.format import Snapshot
from trapline.devices.virtio.block import Image
from trapline.errors import GuestCrash, Timeout
from trapline.vmm.console import Output
from trapline.vmm.machine import Config, Machine, Software
from trapline.vmm.runloop import Ending, Outcome, Runner
from trapline.vmm.snapshot import SavedMachine, save_to

PATIENCE_SECONDS = 60.0
MARK = "__trapline_done_"


class Heard(Output):
    """The guest's console, kept, and whoever waits for it told."""

    def __init__(self) -> None:
        super().__init__()
        self.text = bytearray()
        self.changed = threading.Condition()

    def _put(self, data: bytes) -> None:
        with self.changed:
            self.text += data
            self.changed.notify_all()


class Driver:
    """A running machine and its console. A context manager: leaving it stops the machine."""

    def __init__(self, system: System, build: Callable[[Callable[[bytes], None]], Machine], disks: list[Image]) -> None:
        """`build` makes the machine, given where its console goes. `boot` and `restore` are the usual ways."""
        self.system = system
        self.disks = disks
        self.heard = Heard()
        self.ending: Ending | None = None
        """How the machine ended, when it has."""
        self._at = 0
        self._commands = 0
        self.machine = build(self.heard.write)
        self.runner = Runner(self.machine)
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)
        self._thread.start()

    @classmethod
    def boot(cls, config: Config, system: System | None = None) -> Driver:
        """A machine from power-on. `system` is a KVM to make it with, by default the best there is."""
        config.check()
        software = Software.read(config)
        disks = [Image(path, read_only) for path, read_only in config.disks]
        room = system or open_system(cpu=config.cpu)
        return cls(room, lambda output: Machine(room, config, software, disks, output), disks)

    @classmethod
    def restore(cls, snapshot: Snapshot | str | os.PathLike[str], system: System | None = None) -> Driver:
        """A machine that goes on where `save` or `trapline run --snapshot` left it.

        Give an open `Snapshot` and a `system` to restore from it often: the file is then checked once.
        """
        opened = snapshot if isinstance(snapshot, Snapshot) else Snapshot(snapshot)
        try:
            saved = SavedMachine(opened.document, opened)
            config = saved.config(deterministic=None)
            disks = saved.open_disks()
            room = system or open_system(cpu=config.cpu)
            driver = cls(room, lambda output: Machine(room, config, None, disks, output, saved), disks)
        finally:
            if opened is not snapshot:
                opened.close()
        return driver

    def _run(self) -> None:
        self.ending = self.runner.run()
        with self.heard.changed:
            self.heard.changed.notify_all()

    def send(self, text: str) -> None:
        """Send characters to the guest's console."""
        self.machine.receive(text.encode())

    def expect(self, text: str, patience: float = PATIENCE_SECONDS) -> str:
        """Wait until the guest has printed this, after what was expected before; everything up to there.

        Timeout, with the last lines, if it does not come; GuestCrash if the machine ends first.
        """
        wanted, deadline = text.encode(), time.monotonic() + patience
        with self.heard.changed:
            while (found := self.heard.text.find(wanted, self._at)) < 0:
                if self.ending is not None:
                    raise GuestCrash(f"the machine ended before it printed {text!r}: {self.ending.outcome.value}", self._last_lines())
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Timeout(f"the guest has not printed {text!r} within {patience:g} s\n{self._last_lines()}")
                self.heard.changed.wait(left)
            start, self._at = self._at, found + len(wanted)
            return self.heard.text[start : self._at].decode(errors="replace")

    def command(self, command: str, patience: float = PATIENCE_SECONDS) -> str:
        """Run a command in the shell that waits for one at the console; what it printed. GuestCrash if it fails."""
        self._commands += 1
        mark = f"{MARK}{self._commands}"
        half = len(mark) // 2
        self.send(f"{command}; echo {mark[:half]}''{mark[half:]}=$?\n")
        printed = self.expect(f"{mark}=", patience)
        status = self.expect("\n", patience).strip()
        _, _, output = printed.removesuffix(f"{mark}=").replace("\r", "").rpartition("=$?\n")  # what the console echoed comes first
        if status != "0":
            raise GuestCrash(f"{command!r} ended with status {status}", output)
        return output

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the machine as it is at this moment, and let it go on."""
        with self.runner.paused():
            more = {"runner": self.runner.state(), "output": self.heard.state()}
            save_to(Path(path), self.machine, self.disks, **more)

    def close(self) -> None:
        """Stop the machine."""
        self.runner.end(Ending(Outcome.QUIT))
        self._thread.join()
        self.machine.close()
        for disk in self.disks:
            disk.close()

    def _last_lines(self) -> str:
        return self.heard.text[-2000:].decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
