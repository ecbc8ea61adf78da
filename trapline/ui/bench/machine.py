"""One side of the comparison: its command line, its process, and what the guest says on its console."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trapline.mapping import LIBC

QEMU = "qemu-system-aarch64"
BOOTED = re.compile(rb"BOOT-OK")
READY = re.compile(rb"^READY\b")
BEGIN = re.compile(rb"^BEGIN (\S+)")
BENCH = re.compile(rb"^BENCH (\S+) unit=(\S+) work=(\d+) ns=(\d+) check=([0-9a-f]+)")
DONE = re.compile(rb"^DONE (\d+)")
NUMBER = re.compile(rb"^\d+$")

BOOT_LIMIT = 300
PROGRAM_LIMIT = 200
START_LIMIT = 20
"""Seconds after which a side counts as stuck."""
HELPERS_PERIOD = 0.5
MEMORY_MIB = 512
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Side:
    """Who runs the guest: ourselves, or a setting of the peer."""

    name: str
    cpu: str = ""
    """The peer's processor; nothing for ourselves."""

    @property
    def ours(self) -> bool:
        """Whether this is Trapline."""
        return not self.cpu


TRAPLINE = Side("Trapline")
PEERS = (Side("TCG cortex-a57", "cortex-a57"), Side("TCG max", "max,pauth-impdef=on"))


@dataclass(frozen=True, slots=True)
class Start:
    """What to boot, and on how much of a machine (memory in MiB)."""

    kernel: Path
    initrd: Path
    params: str
    cpus: int = 1
    memory: int = MEMORY_MIB
    disk: Path | None = None


def command(side: Side, start: Start) -> list[str]:
    """The command line of one side."""
    common = ["--kernel", "--initrd", "--params"] if side.ours else ["-kernel", "-initrd", "-append"]
    files = [word for pair in zip(common, (str(start.kernel), str(start.initrd), start.params), strict=True) for word in pair]
    if side.ours:
        words = [sys.executable, "-m", "trapline.ui.cli", "run", "--backend", "software", "--no-reboot"]
        words += ["--mem", f"{start.memory}M", "--cpus", str(start.cpus)]
        return [*words, *files, *(["--disk", f"{start.disk},ro"] if start.disk else [])]
    words = [QEMU, "-M", "virt,gic-version=3", "-cpu", side.cpu, "-accel", "tcg", "-m", str(start.memory)]
    words += ["-smp", str(start.cpus), "-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"]
    if start.disk:
        words += ["-drive", f"file={start.disk},if=none,id=d,format=raw,readonly=on", "-device", "virtio-blk-device,drive=d"]
    return [*words, *files]


@dataclass(slots=True)
class Sample:
    """One measurement of a row on one side: seconds by the guest's clock (of a boot: by the host's), CPU seconds that the side's
    process spent meanwhile, the work done, the check value; of a boot also peak resident MiB of the process and of its helpers (our
    compiler runs in a process of its own, whose CPU time is not in `cpu`)."""

    seconds: float
    cpu: float
    work: int = 1
    unit: str = "run"
    check: str = ""
    resident: float = 0.0
    helpers: float = 0.0


SIDE = 'echo $$; exec "$@"'
LAUNCHER = 'exec 3<&0; sh -c "$0" side "$@" <&3 3<&- &'
"""Shell lines that start a side; the first line of its output is its process's number."""


@contextmanager
def adopting() -> Iterator[None]:
    """Be the parent of processes whose own parent ends."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Failed(RuntimeError):
    """A side did not boot, got stuck, or ended badly."""


class Helpers:
    """Memory of the processes that a process has started."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._next = 0.0
        self.resident = 0.0
        """Peak MiB of all of them."""

    def look(self) -> None:
        """Note what they hold; seldom, since the one who looks disturbs."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + HELPERS_PERIOD
        with suppress(OSError):
            children = {child for task in self._tasks.iterdir() for child in (task / "children").read_text().split()}
            self.resident = max(self.resident, sum(map(peak_resident, children)))


def peak_resident(pid: str) -> float:
    """Peak resident MiB of a process so far."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


class Machine:
    """A running side. Its console is read line by line; programs are started by sending the guest's shell a line."""

    def __init__(self, side: Side, start: Start, environment: dict[str, str] | None = None) -> None:
        self.side = side
        self._started = time.monotonic()
        self._errors = tempfile.TemporaryFile()
        self._lines: list[bytes] = []
        self._rest = b""
        self._tail = b""
        self._ended = False
        self.returncode = 0
        self._launch(command(side, start), environment)
        self._clock = ~self.pid << 3 | 2  # the clock of a process's CPU time: complement of its number, kind "scheduler"
        self._helpers = Helpers(self.pid)

    def _launch(self, words: list[str], environment: dict[str, str] | None) -> None:
        """Start the side as the child of a shell that ends at once, and adopt it.

        What a process is said to have held at most begins with what its parent held when it was made. Ours is more than a side needs.
        """
        with adopting():
            launcher = subprocess.Popen(
                ["sh", "-c", LAUNCHER, SIDE, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
            )
            launcher.wait()
        assert launcher.stdin is not None and launcher.stdout is not None
        self._input, self._output = launcher.stdin, launcher.stdout
        self.pid = int(self.wait_for(NUMBER, START_LIMIT)[0])
        """Number of the side's process."""

    def wait_for(self, what: re.Pattern[bytes], limit: float) -> re.Match[bytes]:
        """Read the console until a line matches."""
        deadline = time.monotonic() + limit
        while True:
            while self._lines:
                if found := what.search(self._lines.pop(0)):
                    return found
            self._read(deadline)

    def run(self, line: str, limit: float = PROGRAM_LIMIT) -> Sample:
        """Have the guest's shell run a line that reports a result."""
        try:
            self._input.write(line.encode() + b"\n")
            self._input.flush()
        except OSError as error:
            raise self._failure("no longer listens") from error
        self.wait_for(BEGIN, limit)
        before = self._cpu()
        found = self.wait_for(BENCH, limit)
        after = self._cpu()
        _, unit, work, ns, check = (word.decode() for word in found.groups())
        self.wait_for(DONE, limit)
        return Sample(int(ns) / 1e9, after - before, int(work), unit, check)

    def finish(self, limit: float = BOOT_LIMIT) -> Sample:
        """Let the machine run to its end: seconds and CPU seconds of its whole life, memory."""
        self._input.close()
        deadline = time.monotonic() + limit
        while self._more(deadline):
            self._lines.clear()
            self._helpers.look()
        cpu, resident = self._reap()
        if self.returncode:
            raise self._failure(f"ended with status {self.returncode}")
        return Sample(time.monotonic() - self._started, cpu, resident=resident, helpers=self._helpers.resident)

    def kill(self) -> None:
        """End it at once."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def _cpu(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return 0.0

    def _read(self, deadline: float) -> None:
        """Take in what the console says next; Failed at the deadline or at its end."""
        if not self._more(deadline):
            self._reap()
            raise self._failure(f"its console ended, status {self.returncode}")

    def _more(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._output], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise self._failure("stuck")
        data = os.read(self._output.fileno(), 65536)
        self._tail = (self._tail + data)[-600:]
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += lines
        return bool(data)

    def _reap(self) -> tuple[float, float]:
        """Wait for the process: CPU seconds and peak resident MiB."""
        _, status, usage = os.wait4(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended = True
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024

    def _failure(self, words: str) -> Failed:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()[-400:]
        return Failed(f"{self.side.name}: {words}; {said} [{self._tail[-300:].decode(errors='replace')}]")


def boot(side: Side, start: Start, environment: dict[str, str] | None = None) -> Sample:
    """A whole life of a machine that powers itself off; Failed unless it says that it is up."""
    machine = Machine(side, start, environment)
    try:
        machine.wait_for(BOOTED, BOOT_LIMIT)
        return machine.finish()
    finally:
        machine.kill()
