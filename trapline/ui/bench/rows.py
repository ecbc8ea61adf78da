"""What the suite measures: one row each, with the ratio of our time to the peer's that is to be reached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from trapline.errors import BadInput

TEXT_MIB = {"sha256": 4, "gzip": 1, "perl": 1}
"""Size of the text that a command reads."""

DD = "trapbench run dd /dev/null dd if=/dev/vda of=/dev/null bs=1M"

Show = Literal["rate", "time"]


@dataclass(frozen=True, slots=True)
class Row:
    """A program that the guest runs: one line of the shell. `target` is the largest ratio that passes, None where nothing was promised."""

    name: str
    title: str
    group: str
    target: float | None
    command: str
    show: Show = "rate"
    setup: str = ""
    needs: str = ""
    """What the guest or the machine must have besides the programs: `perl`, `disk`."""


def program(name: str, title: str, group: str, target: float | None, scale: int, show: Show = "rate") -> Row:
    """A row of the suite's own binary."""
    return Row(name, title, group, target, f"trapbench {name} {scale}", show)


def command(name: str, title: str, target: float, words: str, needs: str = "") -> Row:
    """A row that times a command of a Debian package over the text."""
    size = TEXT_MIB[name]
    file = f"/tmp/text{size}"
    setup = f"trapbench text {file} {size << 10}"
    return Row(name, title, "commands", target, f"trapbench run {name} {file} {words}", "time", setup, needs)


GUEST_ROWS = (
    program("int-mix", "integer mix: lists, matrices, a state machine, CRC", "integer", 0.5, 1200),
    program("spin", "a counted loop of four instructions", "integer", None, 2000),
    program("simd-int", "SIMD, bytes and 16 bits: blur, filter", "simd", 0.5, 2000),
    program("simd-f32", "SIMD, single precision: sum of products", "simd", 0.5, 2000),
    program("nbody", "n-body, double", "double", 0.15, 300),
    program("matmul", "dense matrix product, double", "double", 0.15, 40),
    program("lu", "LU decomposition, double", "double", 0.15, 100),
    program("sieve", "sieve of 16 MiB", "memory", 0.3, 1),
    program("chase-1m", "pointer chase through 1 MiB", "memory", None, 20000, "time"),
    program("chase-pages", "pointer chase, a line in each of 2048 pages", "memory", 0.3, 10000, "time"),
    program("chase", "pointer chase through 32 MiB", "memory", 0.3, 4000, "time"),
    program("copy-1m", "stream copy, 1 MiB", "stream", None, 4000),
    program("scale-1m", "stream scale, 1 MiB", "stream", 0.4, 1000),
    program("add-1m", "stream add, 1 MiB", "stream", 0.4, 1000),
    program("triad-1m", "stream triad, 1 MiB", "stream", 0.4, 1000),
    program("copy-256m", "stream copy, 256 MiB", "stream", None, 4),
    program("scale-256m", "stream scale, 256 MiB", "stream", 0.4, 3),
    program("add-256m", "stream add, 256 MiB", "stream", 0.4, 3),
    program("triad-256m", "stream triad, 256 MiB", "stream", 0.4, 3),
    program("getppid", "getppid", "kernel", 0.4, 100, "time"),
    program("signal", "signal to oneself", "kernel", 0.4, 100, "time"),
    program("fault", "page fault", "kernel", 0.4, 20, "time"),
    program("pipe", "pipe round trip between two processes", "kernel", 0.5, 50, "time"),
    program("fork", "fork, exit, wait", "kernel", 0.5, 150, "time"),
    program("exec", "fork, exec, exit, wait", "kernel", None, 80, "time"),
    program("yield", "sched_yield between two processes", "kernel", 0.5, 60, "time"),
    program("sleep-1ms", "nanosleep of 1 ms", "kernel", None, 200, "time"),
    command("sha256", f"sha256sum of {TEXT_MIB['sha256']} MiB", 0.6, "busybox sha256sum"),
    command("gzip", f"gzip of {TEXT_MIB['gzip']} MiB", 0.6, "busybox gzip -c"),
    command("perl", "a Perl script over 5000 lines", 0.6, "/usr/bin/perl /bench/script.pl", needs="perl"),
    Row("dd", "dd of a 256 MiB virtio disk", "device", None, DD, "time", needs="disk"),
)

BOOT = "boot"
SMP = "smp"
OTHER_ROWS = {
    BOOT: ("boot to power-off, warm cache, whole process", 1.0),
    SMP: ("2 CPUs against 1: total throughput of the integer mix, at least", 1.8),
    "cold": ("boot with an empty cache", None),
    "mmio": ("MMIO exit to a Python handler and back", None),
    "calls": ("KVM calls that do no work, and a VM with one vCPU made and closed", None),
    "kvm-exits": ("exits of the host's /dev/kvm to Python and to C", None),
    "work": ("cost of 1, 10 and 100 million instructions; one-off is what the rate between the last two leaves", None),
    "cpus": ("boot with 1, 2, 4 and 8 CPUs", None),
    "memory-size": ("boot with 128 MiB to 8 GiB", None),
}
"""Rows that are not a program in the guest: title and target."""

SMP_COMMAND = "trapbench smp 800"


def scaled(row: Row, factor: float) -> Row:
    """The row with so much more or less work, where its command says how much."""
    *words, scale = row.command.split()
    if not scale.isdecimal():
        return row
    return replace(row, command=" ".join([*words, str(max(1, round(int(scale) * factor)))]))


def names() -> list[str]:
    """All names that `select` knows, groups not included."""
    return [row.name for row in GUEST_ROWS] + list(OTHER_ROWS)


def select(words: Iterable[str]) -> list[str]:
    """Names of rows from names of rows and groups; all of them from nothing. BadInput if there is no such row."""
    wanted: list[str] = []
    for word in words:
        found = [row.name for row in GUEST_ROWS if word in (row.name, row.group)] or [name for name in OTHER_ROWS if name == word]
        if not found:
            raise BadInput(f"no row {word!r}; there are {', '.join(names())} and the groups {', '.join(groups())}")
        wanted += [name for name in found if name not in wanted]
    return wanted or names()


def groups() -> list[str]:
    """The groups, in the order of the table."""
    return list(dict.fromkeys(row.group for row in GUEST_ROWS))
