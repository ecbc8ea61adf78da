"""Runs the rows in turn on every side and keeps all that was measured.

All sides are up at once, each waiting in its guest's shell for a line. A row runs on one side after the other, and all rows have
run before they are repeated, so that what disturbs the host disturbs them alike; the machines that do not have their turn sleep.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trapline.ui.bench import costs
from trapline.ui.bench.guest import PARAMS, ramdisk
from trapline.ui.bench.machine import BOOT_LIMIT, PEERS, READY, TRAPLINE, Failed, Machine, Sample, Side, Start, boot
from trapline.ui.bench.rows import BOOT, GUEST_ROWS, SMP, SMP_COMMAND, Row
from trapline.vmm import guests

BOOT_PARAMS = 'console=ttyAMA0 panic=-1 run="report"'
DISK_MIB = 256


@dataclass(slots=True)
class Figures:
    """Everything that was measured: samples by row and side, costs by row, failures in words, facts about the host."""

    runs: int
    peers: list[str]
    host: str = ""
    peer: str = ""
    """The peer's version."""
    load: float = 0.0
    """The host's load average when the suite began."""
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    costs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, row: str, side: str, sample: Sample) -> None:
        """Keep one sample."""
        self.samples.setdefault(row, {}).setdefault(side, []).append(sample)

    def fail(self, words: str) -> None:
        """Keep what went wrong, and say it."""
        print(f"  FAILED {words}", file=sys.stderr)
        self.failures.append(words)

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


class Team:
    """A machine per side, started when first asked, and again after one has failed."""

    def __init__(self, sides: list[Side], start: Start) -> None:
        self.sides = sides
        self._start = start
        self._machines: dict[str, Machine] = {}

    def run(self, side: Side, line: str) -> Sample:
        """A line on one side; Failed, with that machine gone, if it does not report."""
        try:
            return self._machine(side).run(line)
        except Failed:
            self._machines.pop(side.name).kill()
            raise

    def _machine(self, side: Side) -> Machine:
        if side.name not in self._machines:
            self._machines[side.name] = Machine(side, self._start)
            self._machines[side.name].wait_for(READY, BOOT_LIMIT)
        return self._machines[side.name]

    def close(self) -> None:
        """End all machines."""
        for machine in self._machines.values():
            machine.kill()
        self._machines.clear()


class Suite:
    """One run of the suite: which rows, on which sides, how often."""

    def __init__(
        self,
        names: list[str],
        runs: int,
        peers: list[Side],
        rows: tuple[Row, ...] = GUEST_ROWS,
        keep: Callable[[Figures], None] = lambda figures: None,
    ) -> None:
        self.names = names
        self.rows = [row for row in rows if row.name in names]
        self.sides = [TRAPLINE, *peers]
        self.figures = Figures(runs, [side.name for side in peers])
        self._keep = keep

    def measure(self) -> Figures:
        """Do it; progress goes to stderr."""
        files = guests.prepare()
        plain = Start(files.kernel, files.initrd, BOOT_PARAMS)
        self._costs(plain, [name for name in self.names if name in costs.ALONE])
        with tempfile.TemporaryDirectory(prefix="trapline-bench-") as place:
            folder = Path(place)
            if self.rows:
                self._programs(plain, folder)
            if BOOT in self.names:
                self._boots(plain)
            if SMP in self.names:
                self._throughput(plain, folder)
        self._costs(plain, [name for name in self.names if name not in costs.ALONE])
        return self.figures

    def _costs(self, plain: Start, names: list[str]) -> None:
        costs.measure(self.figures.costs, names, self.sides, plain, self.figures.runs)

    def _programs(self, plain: Start, folder: Path) -> None:
        start = with_programs(plain, folder / "programs.cpio", ramdisk(self.rows))
        if any(row.needs == "disk" for row in self.rows):
            start = replace(start, disk=make_disk(folder / "disk"))
        team = Team(self.sides, start)
        try:
            self._repeat([[(row.name, team, row.command)] for row in self.rows])
        finally:
            team.close()

    def _throughput(self, plain: Start, folder: Path) -> None:
        start = with_programs(plain, folder / "smp.cpio", ramdisk([]))
        teams = [(f"{SMP}-{cpus}", Team(self.sides, replace(start, cpus=cpus)), SMP_COMMAND) for cpus in (1, 2)]
        try:
            self._repeat([teams])
        finally:
            for _, team, _ in teams:
                team.close()

    def _repeat(self, rows: list[list[tuple[str, Team, str]]]) -> None:
        """All rows on all sides, again and again. The first time is not counted: it compiles and caches what the rows need.

        What has been measured is kept after every turn, so that a suite that is stopped has not been for nothing.
        """
        for turn in range(1 + self.figures.runs):
            for row in rows:
                for side in self._order(turn):
                    self._one(turn, side, row)
            self._keep(self.figures)

    def _one(self, turn: int, side: Side, row: list[tuple[str, Team, str]]) -> None:
        for name, team, line in row:
            try:
                sample = team.run(side, line)
            except Failed as failure:
                self.figures.fail(f"{name}: {failure}")
                continue
            if turn:
                self.figures.add(name, side.name, sample)
            say(turn, side, name, sample.seconds)

    def _boots(self, plain: Start) -> None:
        for turn in range(1 + self.figures.runs):
            for side in self._order(turn):
                try:
                    sample = boot(side, plain)
                except Failed as failure:
                    self.figures.fail(f"{BOOT}: {failure}")
                    continue
                if turn:
                    self.figures.add(BOOT, side.name, sample)
                say(turn, side, BOOT, sample.seconds)
            self._keep(self.figures)

    def _order(self, turn: int) -> list[Side]:
        """The sides in turn, another first each time."""
        shift = turn % len(self.sides)
        return self.sides[shift:] + self.sides[:shift]


def with_programs(plain: Start, path: Path, more: bytes) -> Start:
    """The guest with another ramdisk after its own, told to run the script in it."""
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
    print(f"  {turn} {side.name:15} {what}: {seconds:.3f} s", file=sys.stderr)


def peers_for(word: str, available: Callable[[], bool]) -> list[Side]:
    """The peers that `--peer` names; none if the peer is not installed."""
    if word == "none":
        return []
    if not available():
        print("qemu-system-aarch64 is not installed (Debian package qemu-system-arm): measuring our side only", file=sys.stderr)
        return []
    return [side for side in PEERS if word in ("all", side.cpu, side.name.split()[-1])]
