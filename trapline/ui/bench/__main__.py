"""`make bench`, or python -m trapline.ui.bench: measure, print the table, and write it if the whole suite ran.

python -m trapline.ui.bench [--only NAME[,NAME...]] [--runs N] [--peer all|cortex-a57|max|none] [--output DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from trapline.errors import TraplineError
from trapline.ui.bench.report import describe_host, page
from trapline.ui.bench.rows import select
from trapline.ui.bench.suite import Suite, peers_for


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", metavar="NAME[,NAME]", help="these rows or groups of rows; prints, writes nothing by itself")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side (5)")
    parser.add_argument("--peer", default="all", choices=("all", "cortex-a57", "max", "none"), help="settings of QEMU's TCG to run (all)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write to (docs, if all rows are measured)")
    options = parser.parse_args()
    try:
        names = select(word for word in options.only.split(",") if word)
        suite = Suite(names, options.runs, peers_for(options.peer, lambda: shutil.which("qemu-system-aarch64") is not None))
        host = describe_host()
        figures = suite.measure()
    except TraplineError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_status
    figures.host = host
    text = page(figures)
    print(text)
    output = options.output or (None if options.only else Path("docs"))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "PERFORMANCE.md").write_text(text)
        (output / "performance.json").write_text(json.dumps(figures.to_json(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
