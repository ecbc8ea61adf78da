"""One side of the comparison: its command line, starting it, and listening to what the guest prints."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

BOOTED = re.compile(rb"BOOT-OK")
BEGIN = re.compile(rb"BEGIN (\S+)")
BENCH = re.compile(rb"BENCH (\S+) unit=(\S+) work=(\d+) ns=(\d+) check=([0-9a-f]+)")

LIMIT_SECONDS = 900
MEMORY_MIB = 512


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
    """What to boot, and on how much of a machine."""

    kernel: Path
    initrd: Path
    params: str
    cpus: int = 1
    memory: int = MEMORY_MIB
    """MiB."""
    disk: Path | None = None


def command(side: Side, start: Start) -> list[str]:
    """The command line of one side."""
    common = ["--kernel", "--initrd", "--params"] if side.ours else ["-kernel", "-initrd", "-append"]
    files = [word for pair in zip(common, (str(start.kernel), str(start.initrd), start.params), strict=True) for word in pair]
    if side.ours:
        words = [sys.executable, "-m", "trapline.ui.cli", "run", "--backend", "software", "--no-reboot"]
        words += ["--mem", f"{start.memory}M", "--cpus", str(start.cpus)]
        return [*words, *files, *(["--disk", f"{start.disk},ro"] if start.disk else [])]
    words = ["qemu-system-aarch64", "-M", "virt,gic-version=3", "-cpu", side.cpu, "-accel", "tcg", "-m", str(start.memory)]
    words += ["-smp", str(start.cpus), "-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"]
    if start.disk:
        words += ["-drive", f"file={start.disk},if=none,id=d,format=raw,readonly=on", "-device", "virtio-blk-device,drive=d"]
    return [*words, *files]


@dataclass(slots=True)
class Result:
    """What a program in the guest reported, and the CPU seconds that the whole process of the side spent meanwhile."""

    unit: str
    work: int
    seconds: float
    check: str
    cpu: float = 0.0


@dataclass(slots=True)
class Run:
    """One life of a side's process: seconds to the marker and to the end, CPU seconds, resident MiB, and the programs' results."""

    marker: float = 0.0
    exit: float = 0.0
    cpu: float = 0.0
    resident: float = 0.0
    results: dict[str, Result] = field(default_factory=dict)


class Failed(RuntimeError):
    """A side did not boot or did not end well; `run` has the results that came before."""

    def __init__(self, words: str, results: dict[str, Result]) -> None:
        super().__init__(words)
        self.run = Run(results=results)


class Listener:
    """Reads the console: notes when the guest is up and when a program begins, and takes its result."""

    def __init__(self) -> None:
        self.run = Run()
        self._rest = b""
        self._began: dict[str, float] = {}

    def feed(self, data: bytes, wall: float, cpu: float) -> None:
        """Console output that came `wall` seconds after the start, when the process had used `cpu` seconds."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line, wall, cpu)

    def _line(self, line: bytes, wall: float, cpu: float) -> None:
        if BOOTED.search(line):
            self.run.marker = self.run.marker or wall
        elif found := BEGIN.search(line):
            self._began[found[1].decode()] = cpu
        elif found := BENCH.search(line):
            name, unit, work, ns, check = (word.decode() for word in found.groups())
            spent = cpu - self._began.get(name, cpu)
            self.run.results[name] = Result(unit, int(work), int(ns) / 1e9, check, spent)


def process_clock(pid: int) -> int:
    """The clock that counts the CPU time of a process: the complement of its number in the upper bits, kind "scheduler" below."""
    return ~pid << 3 | 2


def run(words: list[str], environment: dict[str, str] | None = None, limit: float = LIMIT_SECONDS) -> Run:
    """Start a side and wait for its end; Failed unless it says that it is up and ends well."""
    start = time.monotonic()
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stderr is not None
    listener, tail, clock = Listener(), b"", process_clock(process.pid)
    while time.monotonic() - start < limit:
        ready, _, _ = select.select([process.stdout], [], [], 1)
        if not ready:
            continue
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            break
        listener.feed(data, time.monotonic() - start, time.clock_gettime(clock))
        tail = (tail + data)[-2000:]
    else:
        process.kill()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    words_of_error = process.stderr.read().decode(errors="replace").strip()[-500:]
    process.stdout.close()
    process.stderr.close()
    result = listener.run
    result.exit = time.monotonic() - start
    result.cpu, result.resident = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    if process.returncode or not result.marker:
        seen = tail.decode(errors="replace")[-500:]
        raise Failed(f"status {process.returncode}, marker at {result.marker:.1f} s: {words_of_error}\n{seen}", result.results)
    return result
