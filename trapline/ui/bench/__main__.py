"""`make bench`, or python -m trapline.ui.bench: measure, print the table, and write it if the whole suite ran.

python -m trapline.ui.bench [--only NAME[,NAME...]] [--runs N] [--peer all|cortex-a57|max|none] [--output DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from trapline.errors import TraplineError
from trapline.ui.bench.guest import SOURCES
from trapline.ui.bench.machine import QEMU
from trapline.ui.bench.plot import draw
from trapline.ui.bench.report import describe_host, page
from trapline.ui.bench.rows import GUEST_ROWS, scaled, select
from trapline.ui.bench.suite import Figures, Suite, peers_for

NUMBERS = "performance.json"
PICTURE = "performance.svg"
NOTES = SOURCES.parent / "notes.md"
"""What people have to say about the figures; it ends the page."""


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", metavar="NAME[,NAME]", help="these rows or groups of rows; prints, writes nothing by itself")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side (5)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="FACTOR", help="more or less work in each row (1)")
    parser.add_argument("--peer", default="all", choices=("all", "cortex-a57", "max", "none"), help="settings of QEMU's TCG to run (all)")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="stored", help="measure nothing: write the page again from performance.json"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to write to (docs, if all rows are measured); --only replaces rows there"
    )
    options = parser.parse_args()
    if options.stored:
        write(Figures.from_json(json.loads(options.stored.read_text())), options.output or options.stored.parent)
        return 0
    output: Path | None = options.output or (None if options.only else Path("docs"))
    before = None
    if output and options.only and (output / NUMBERS).exists():
        before = Figures.from_json(json.loads((output / NUMBERS).read_text()))

    def keep(figures: Figures) -> None:
        if output:
            write(merged(before, figures) if before else figures, output)

    try:
        names = select(word for word in options.only.split(",") if word)
        rows = tuple(scaled(row, options.scale) for row in GUEST_ROWS)
        suite = Suite(names, options.runs, peers_for(options.peer, lambda: shutil.which(QEMU) is not None), rows, keep)
        suite.figures.host, suite.figures.load = describe_host(), os.getloadavg()[0]
        suite.figures.peer = peer_version()
        if options.scale != 1:
            suite.figures.host += f", {options.scale:g} of the usual work in each row"
        figures = suite.measure()
    except TraplineError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_status
    keep(figures)
    print(page(figures))
    return 0


def peer_version() -> str:
    """What QEMU calls itself."""
    if shutil.which(QEMU) is None:
        return "absent"
    return subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def write(figures: Figures, folder: Path) -> None:
    """The page, the numbers, the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = draw(figures, folder / PICTURE)
    (folder / "PERFORMANCE.md").write_text(page(figures, NOTES.read_text() if NOTES.exists() else "", picture))
    (folder / NUMBERS).write_text(json.dumps(rounded(figures.to_json()), separators=(",", ":")) + "\n")


def merged(old: Figures, new: Figures) -> Figures:
    """The rows that were measured now in place of what there was; of the loads the higher, of the runs the fewer."""
    return replace(
        new,
        runs=min(old.runs, new.runs),
        load=max(old.load, new.load),
        samples=old.samples | new.samples,
        costs=old.costs | new.costs,
        failures=[words for words in old.failures if words.split(":")[0] not in new.samples] + new.failures,
    )


def rounded(value: Any) -> Any:
    """Plain data with numbers to the six digits that mean something, so that the file stays small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
