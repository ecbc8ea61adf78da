"""`python -m tests.differential --count N --seed S`: random programs on Trapline, QEMU and Unicorn."""

from __future__ import annotations

import argparse
import sys
import time

from tests.differential.compare import VECTORS, compare
from tests.differential.runners import Qemu, Regions, Trapline, Unicorn

ORACLES = {"qemu": Qemu, "unicorn": Unicorn}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="instructions to run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--oracle", choices=[*ORACLES, "both"], default="both")
    parser.add_argument("--limit", type=int, default=10, help="stop after so many mismatches")
    parser.add_argument("--keep", action="store_true", help=f"append mismatches to {VECTORS}")
    parser.add_argument("--only", default="", metavar="REGEX", help="only instructions whose names contain this")
    parser.add_argument("--regions", action="store_true", help="compile every block as a region (tier 1); slow")
    options = parser.parse_args()
    chosen = [cls() for name, cls in ORACLES.items() if options.oracle in (name, "both")]
    found = []
    for oracle in chosen:
        report = compare(options.count, options.seed, Regions() if options.regions else Trapline(), oracle, options.limit, options.only)
        print(report.text())
        if report.unreached and not options.only:
            print("not reached:", ", ".join(report.unreached))
        found += report.mismatches
    if options.keep:
        with VECTORS.open("a") as out:
            out.writelines(m.vector() + "\n" for m in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
