"""The ratios as a picture, if matplotlib is installed (the extra `bench`)."""

from __future__ import annotations

import sys
from pathlib import Path

from trapline.ui.bench.report import judged_ratio
from trapline.ui.bench.rows import BOOT, GUEST_ROWS, OTHER_ROWS, Row
from trapline.ui.bench.suite import Figures

REACHED, SHORT, FREE = "#2a7f62", "#c1442e", "#8a8f98"


def draw(figures: Figures, path: Path) -> str:
    """Write the picture; its name, or nothing if there is nothing to draw with. The same figures give the same bytes."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed (pip install -e '.[bench]'): no picture", file=sys.stderr)
        return ""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "trapline"
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: small, and a diff shows which row moved
    from matplotlib import pyplot

    boot = Row(BOOT, OTHER_ROWS[BOOT][0], "", OTHER_ROWS[BOOT][1], "")
    rows = [(row, value) for row in (*GUEST_ROWS[::-1], boot) if (value := judged_ratio(figures, row.name)) is not None]
    if not rows:
        return ""
    figure, axes = pyplot.subplots(figsize=(8, 0.27 * len(rows) + 1))
    colours = [FREE if row.target is None else REACHED if value <= row.target else SHORT for row, value in rows]
    axes.barh(range(len(rows)), [value for _, value in rows], color=colours, height=0.7)
    for place, (row, value) in enumerate(rows):
        axes.text(value, place, f" {value:.2f}", va="center", fontsize=8)
        if row.target is not None:
            axes.plot([row.target, row.target], [place - 0.45, place + 0.45], color="black", linewidth=1.5)
    axes.axvline(1, color="black", linewidth=0.6, linestyle=":")
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row.name for row, _ in rows], fontsize=8)
    axes.set_xlabel("our time to that of the faster TCG, less is better; black: what is to be reached")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return path.name
