"""The figures as Markdown: docs/PERFORMANCE.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from trapline.ui.bench.machine import TRAPLINE, Sample
from trapline.ui.bench.rows import BOOT, GUEST_ROWS, OTHER_ROWS, SMP, Row
from trapline.ui.bench.statistics import metric, ratio, summarise
from trapline.ui.bench.suite import Figures


def describe_host() -> str:
    """The machine the figures are from."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{model}, {os.cpu_count()} CPUs, Linux {kernel}, CPython {platform.python_version()}, load average {load}"


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


def comparison(figures: Figures, row: Row) -> list[str]:
    """The cells of one row: title, ours, the peers', ratio of medians, of least values, of CPU time, target, mark."""
    sides = figures.samples.get(row.name, {})
    ours = times(figures, row.name, TRAPLINE.name)
    if not ours:
        return [row.title, "failed", *("" for _ in figures.peers), "", "", "", number(row.target), mark(9e9, row.target), ""]
    unit = sides[TRAPLINE.name][0].unit
    peers = {name: summarise(times(figures, row.name, name)) for name in figures.peers if name in sides}
    mine = summarise(ours)
    value = ratio(mine.median, [peer.median for peer in peers.values()])
    least = ratio(mine.least, [peer.least for peer in peers.values()])
    spent = {side: summarise([sample.cpu for sample in sides[side]]).median for side in sides}
    cpu = ratio(spent[TRAPLINE.name], [spent[name] for name in peers])
    cells = [row.title, shown(row, mine.median, unit)]
    cells += [shown(row, peers[name].median, unit) if name in peers else "failed" for name in figures.peers]
    cells += [number(value), number(least), number(cpu), number(row.target), mark(value, row.target)]
    checks = {sample.check for samples in sides.values() for sample in samples}
    return [*cells, f"{100 * mine.spread:.0f} %" + ("" if len(checks) == 1 else ", **check values differ**")]


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
    sides = figures.samples.get(BOOT, {})
    words = [f"{name} {summarise([sample.resident for sample in samples]).median:.0f} MiB" for name, samples in sides.items()]
    return f"Peak resident memory of the boot with 512 MiB: {', '.join(words)}.\n" if words else ""


def page(figures: Figures, notes: str = "") -> str:
    """The whole page. `notes` is the part that people write: where the time goes."""
    failures = "".join(f"- failed: {words.splitlines()[0]}\n" for words in dict.fromkeys(figures.failures))
    return f"""# Performance

Written by `make bench`. {figures.host}. Peer: {", ".join(figures.peers) or "none"}.
Medians of {figures.runs} runs, the sides alternating; kernel, ramdisk and programs are the same files. *ratio* is our time to that of the
faster setting of the peer (below 1 is faster), *least* the same of the shortest times,
*CPU* the same of the CPU time that the whole process spent on the row,
*spread* how far our own runs lie apart. The programs are in `benchmarks/guest`; their check values are the same
on every side unless a row says otherwise.

{main_table(figures)}

{boot_memory(figures)}{failures}
{cost_tables(figures)}
{notes}"""
