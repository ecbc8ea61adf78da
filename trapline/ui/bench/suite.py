"""Runs the rows in turn on every side and keeps all that was measured."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trapline.ui.bench import costs
from trapline.ui.bench.guest import PARAMS, ramdisk
from trapline.ui.bench.machine import PEERS, TRAPLINE, Failed, Run, Side, Start, command, run
from trapline.ui.bench.rows import BOOT, GUEST_ROWS, SMP, SMP_COMMAND, Row
from trapline.vmm import guests

BOOT_PARAMS = 'console=ttyAMA0 panic=-1 run="report"'
DISK_MIB = 256


@dataclass(slots=True)
class Sample:
    """One measurement of a row on one side: seconds by the guest's clock or the wall, CPU seconds of the process, work done."""

    seconds: float
    cpu: float
    work: int = 1
    unit: str = "run"
    check: str = ""
    resident: float = 0.0


@dataclass(slots=True)
class Figures:
    """Everything that was measured: samples by row and side, costs by row, failures in words, facts about the host."""

    runs: int
    peers: list[str]
    host: str = ""
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    costs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, row: str, side: str, sample: Sample) -> None:
        """Keep one sample."""
        self.samples.setdefault(row, {}).setdefault(side, []).append(sample)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Figures:
        """From what `to_json` made."""
        figures = cls(**{**data, "samples": {}})
        for row, sides in data["samples"].items():
            for side, samples in sides.items():
                for sample in samples:
                    figures.add(row, side, Sample(**sample))
        return figures


class Suite:
    """One run of the suite: which rows, on which sides, how often."""

    def __init__(self, names: list[str], runs: int, peers: list[Side], rows: tuple[Row, ...] = GUEST_ROWS) -> None:
        self.names = names
        self.rows = [row for row in rows if row.name in names]
        self.sides = [TRAPLINE, *peers]
        self.figures = Figures(runs, [side.name for side in peers])

    def measure(self) -> Figures:
        """Do it; progress goes to stderr."""
        files = guests.prepare()
        plain = Start(files.kernel, files.initrd, BOOT_PARAMS)
        with tempfile.TemporaryDirectory(prefix="trapline-bench-") as place:
            folder = Path(place)
            self._programs(plain, folder)
            if BOOT in self.names:
                self._boots(plain)
            if SMP in self.names:
                self._throughput(plain, folder)
            costs.measure(self.figures.costs, self.names, self.sides, plain, self.figures.runs)
        return self.figures

    def _programs(self, plain: Start, folder: Path) -> None:
        if not self.rows:
            return
        start = with_programs(plain, folder / "programs.cpio", ramdisk(self.rows))
        if any(row.needs == "disk" for row in self.rows):
            start = replace(start, disk=make_disk(folder / "disk"))
        self._once(TRAPLINE, start)  # compiles and caches what the rows need
        for turn, side in self._turns():
            result = self._try(side, start)
            for row in self.rows:
                self._take(row.name, row.name, side, result)
            say(turn, side, "the programs", result.exit)

    def _boots(self, plain: Start) -> None:
        self._once(TRAPLINE, plain)
        for turn, side in self._turns():
            result = self._try(side, plain)
            if not result.exit:
                continue
            self.figures.add(BOOT, side.name, Sample(result.exit, result.cpu, resident=result.resident))
            say(turn, side, BOOT, result.exit)

    def _throughput(self, plain: Start, folder: Path) -> None:
        start = with_programs(plain, folder / "smp.cpio", ramdisk([], [SMP_COMMAND]))
        self._once(TRAPLINE, start)
        for turn, side in self._turns():
            for cpus in (1, 2):
                result = self._try(side, replace(start, cpus=cpus))
                self._take(f"{SMP}-{cpus}", SMP, side, result)
                say(turn, side, f"{SMP}, {cpus} CPU", result.exit)

    def _turns(self) -> Iterator[tuple[int, Side]]:
        """The sides in turn, so that a noisy neighbour disturbs them alike; each run begins with another."""
        for turn in range(self.figures.runs):
            shift = turn % len(self.sides)
            for side in (*self.sides[shift:], *self.sides[:shift]):
                yield turn, side

    def _once(self, side: Side, start: Start) -> None:
        print(f"  warming {side.name}", file=sys.stderr)
        self._try(side, start)

    def _try(self, side: Side, start: Start) -> Run:
        try:
            return run(command(side, start))
        except Failed as failure:
            self._fail(f"{side.name}: {failure}")
            return failure.run

    def _fail(self, words: str) -> None:
        print(f"  FAILED {words}", file=sys.stderr)
        self.figures.failures.append(words)

    def _take(self, row: str, name: str, side: Side, result: Run) -> None:
        """Keep what the guest said about a program."""
        got = result.results.get(name)
        if got is None:
            self._fail(f"{side.name}: no result of {row}")
        else:
            self.figures.add(row, side.name, Sample(got.seconds, got.cpu, got.work, got.unit, got.check, result.resident))


def with_programs(plain: Start, path: Path, more: bytes) -> Start:
    """The guest with another ramdisk after its own, told to run the list in it."""
    path.write_bytes(plain.initrd.read_bytes() + more)
    return replace(plain, initrd=path, params=PARAMS)


def make_disk(path: Path) -> Path:
    """An image of random bytes, in the host's cache afterwards."""
    with path.open("wb") as image:
        for _ in range(DISK_MIB):
            image.write(os.urandom(1 << 20))
    return path


def say(turn: int, side: Side, what: str, seconds: float) -> None:
    """A line of progress."""
    print(f"  {turn + 1} {side.name:15} {what}: {seconds:.2f} s", file=sys.stderr)


def peers_for(word: str, available: Callable[[], bool]) -> list[Side]:
    """The peers that `--peer` names; none if the peer is not installed."""
    if word == "none":
        return []
    if not available():
        print("qemu-system-aarch64 is not installed (Debian package qemu-system-arm): measuring our side only", file=sys.stderr)
        return []
    return [side for side in PEERS if word in ("all", side.cpu, side.name.split()[-1])]
