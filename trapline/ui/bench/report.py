"""The figures as Markdown: docs/PERFORMANCE.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trapline.ui.bench.machine import TRAPLINE, Sample
from trapline.ui.bench.rows import BOOT, GUEST_ROWS, OTHER_ROWS, SMP, Row
from trapline.ui.bench.statistics import metric, ratio, summarise
from trapline.ui.bench.suite import Figures

BUSY = 1.0
"""Load average from which on another's work disturbs: a row keeps one processor busy, its compiler perhaps a second."""

FAILED = float("inf")
"""The ratio of a row that gave no result."""


def describe_host() -> str:
    """The machine the figures are from."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{model}, {os.cpu_count()} CPUs, Linux {kernel}, CPython {platform.python_version()}"


def per_unit(sample: Sample) -> float:
    """Seconds for one unit of work."""
    return sample.seconds / sample.work if sample.work else sample.seconds


def shown(row: Row, seconds: float, unit: str) -> str:
    """A row's figure in the way it is read best."""
    if row.show == "time":
        return f"{metric(seconds)}s"
    return f"{metric(1 / seconds)}{unit}/s" if seconds else "-"


def mark(value: float | None, target: float | None, at_least: bool = False) -> str:
    """Whether a target is reached."""
    if value is None or target is None:
        return ""
    return "pass" if (value >= target if at_least else value <= target) else "**short**"


def number(value: float | None) -> str:
    """A ratio, or nothing."""
    return "" if value is None else f"{value:.2f}"


def times(figures: Figures, name: str, side: str) -> list[float]:
    """Seconds per unit of work of every sample of a row on a side."""
    return [per_unit(sample) for sample in figures.samples.get(name, {}).get(side, ())]


@dataclass(frozen=True, slots=True)
class Ratios:
    """Our time to that of the faster peer: of medians, of the shortest times, of CPU time."""

    median: float | None
    least: float | None
    cpu: float | None

    def judged(self, figures: Figures) -> float | None:
        """The one that counts: on a busy host the CPU time."""
        return self.cpu if figures.load > BUSY else self.median


def ratios(figures: Figures, name: str) -> Ratios:
    """The ratios of a row; all None if we or the peers have no samples."""
    sides = figures.samples.get(name, {})
    if TRAPLINE.name not in sides:
        return Ratios(None, None, None)
    peers = [peer for peer in figures.peers if peer in sides]
    walls = {side: summarise(times(figures, name, side)) for side in sides}
    spent = {side: summarise([sample.cpu for sample in samples]).median for side, samples in sides.items()}
    mine = walls[TRAPLINE.name]
    return Ratios(
        ratio(mine.median, [walls[peer].median for peer in peers]),
        ratio(mine.least, [walls[peer].least for peer in peers]),
        ratio(spent[TRAPLINE.name], [spent[peer] for peer in peers]),
    )


def judged_ratio(figures: Figures, name: str) -> float | None:
    """The ratio that counts for a row."""
    return ratios(figures, name).judged(figures)


def comparison(figures: Figures, row: Row) -> list[str]:
    """The cells of one row: title, ours, the peers', ratio of medians, of least values, of CPU time, target, mark."""
    sides = figures.samples.get(row.name, {})
    if TRAPLINE.name not in sides:
        return [row.title, "failed", *("" for _ in figures.peers), "", "", "", number(row.target), mark(FAILED, row.target), ""]
    unit = sides[TRAPLINE.name][0].unit
    shown_sides = [TRAPLINE.name, *figures.peers]
    walls = {side: summarise(times(figures, row.name, side)) for side in sides}
    found = ratios(figures, row.name)
    cells = [row.title, *(shown(row, walls[side].median, unit) if side in walls else "failed" for side in shown_sides)]
    cells += [number(value) for value in (found.median, found.least, found.cpu, row.target)]
    cells.append(mark(found.judged(figures), row.target))
    checks = {sample.check for samples in sides.values() for sample in samples}
    return [*cells, f"{100 * walls[TRAPLINE.name].spread:.0f} %" + ("" if len(checks) == 1 else ", **check values differ**")]


def scaling(figures: Figures) -> list[list[str]]:
    """How much more two processors do than one, on each side."""
    factors = {}
    for side in (TRAPLINE.name, *figures.peers):
        one, two = times(figures, f"{SMP}-1", side), times(figures, f"{SMP}-2", side)
        if one and two:
            factors[side] = summarise(one).median / summarise(two).median
    if TRAPLINE.name not in factors:
        return []
    title, target = OTHER_ROWS[SMP]
    mine = factors[TRAPLINE.name]
    cells = [f"{factors[side]:.2f} x" if side in factors else "" for side in (TRAPLINE.name, *figures.peers)]
    return [[title, *cells, number(mine), "", "", number(target), mark(mine, target, at_least=True), ""]]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main_table(figures: Figures) -> str:
    """All rows that have a peer."""
    header = ["row", "Trapline", *figures.peers, "ratio", "least", "CPU", "target", "", "spread"]
    title, target = OTHER_ROWS[BOOT]
    rows = [Row(BOOT, title, "", target, "", "time"), *GUEST_ROWS]
    lines = [comparison(figures, row) for row in rows if row.name in figures.samples]
    return markdown(header, lines + scaling(figures))


def cost_tables(figures: Figures) -> str:
    """The costs, a table each."""
    parts = []
    for name, lines in figures.costs.items():
        header = list(lines[0])
        cells = [[f"{line[column]:.4g}" if column in line else "" for column in header] for line in lines]
        title = OTHER_ROWS[name][0]
        parts.append(f"### {title[0].upper()}{title[1:]}\n\n{markdown(header, cells)}\n")
    return "\n".join(parts)


def boot_memory(figures: Figures) -> str:
    """Peak memory of the boot, in words."""
    words = []
    for name, samples in figures.samples.get(BOOT, {}).items():
        helpers = summarise([sample.helpers for sample in samples]).median
        more = f" and {helpers:.0f} MiB in its compiler's process" if helpers else ""
        words.append(f"{name} {summarise([sample.resident for sample in samples]).median:.0f} MiB{more}")
    return f"Peak resident memory of the boot with 512 MiB: {', '.join(words)}.\n" if words else ""


def conditions(figures: Figures) -> str:
    """How busy the host was, and what follows for the marks."""
    load = f"The host's load average was {figures.load:.1f} when the suite began"
    if figures.load > BUSY:
        return f"{load}: others were at work, which stretches wall times at random, so the marks go by CPU time."
    return f"{load}; the marks go by the ratio of wall times."


def page(figures: Figures, notes: str = "", picture: str = "") -> str:
    """The whole page. `notes` is the part that people write, where the time goes; `picture` the name of the plot, if there is one."""
    failures = "".join(f"- failed: {words.splitlines()[0]}\n" for words in dict.fromkeys(figures.failures))
    return f"""# Performance

Written by `make bench`. {figures.host}. Peer: {figures.peer}: {", ".join(figures.peers) or "none"}.
{conditions(figures)}

Medians of {figures.runs} runs after one that is not counted, the sides taking turns row by row; kernel, ramdisk and programs are the
same files. *ratio* is our time to that of the faster setting of the peer (below 1 is faster), *least* the same of the shortest times,
*CPU* the same of the CPU time that the side's process spent on the row (our compiler works in a process of its own beside it), *spread*
how far our own runs lie apart. The programs are in `benchmarks/guest`; their check values are the same on every side unless a row says
otherwise.

{main_table(figures)}
{picture and f"{chr(10)}![Our time to the faster TCG's, by row]({picture}){chr(10)}"}
{boot_memory(figures)}{failures}
{cost_tables(figures)}
{notes}"""
