"""`python -m tests.differential --count N --seed S`: random programs on Trapline, QEMU and Unicorn.

With `--coverage N` it goes on until every instruction was executed with N operand sets, and says so for each. `--journal FILE`
lets a run be made in pieces: each goes on where the last one ended.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.differential.compare import STATES, VECTORS, Comparison, Report
from tests.differential.coverage import Coverage, load
from tests.differential.runners import Qemu, Regions, Stencilled, Trapline, Unicorn
from tests.differential.system import Kernel, SystemQemu

ORACLES = {"qemu": Qemu, "unicorn": Unicorn, "system": SystemQemu}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="instructions to run (default: %(default)s)")
    parser.add_argument("--coverage", type=int, default=0, metavar="N", help="operand sets that every instruction shall have")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after about so many")
    parser.add_argument("--states", type=int, default=STATES, help="states that each block is run with (default: %(default)s)")
    parser.add_argument("--journal", type=Path, help="file that says what was reached")
    parser.add_argument("--oracle", choices=[*ORACLES], default="qemu")
    parser.add_argument("--limit", type=int, default=10, help="stop after so many mismatches")
    parser.add_argument("--keep", action="store_true", help=f"append mismatches to {VECTORS}")
    parser.add_argument("--only", default="", metavar="REGEX", help="only instructions whose names contain this")
    parser.add_argument("--stencils", action="store_true", help="assemble every block from stencils")
    parser.add_argument("--regions", action="store_true", help="compile every block as a region (tier 1); slow")
    parser.add_argument("--list", action="store_true", help="print every instruction's operand sets, and all that is left out")
    options = parser.parse_args()
    oracle = ORACLES[options.oracle]()
    report = load(options.journal, oracle.name, options.seed) if options.journal else Report(oracle.name, options.seed)
    kind = Kernel if options.oracle == "system" else Regions if options.regions else Stencilled if options.stencils else Trapline
    ours = kind()
    comparison = Comparison(ours, oracle, only=options.only, states=options.states, limit=options.limit)
    coverage = Coverage(comparison, report)
    coverage.run(options.coverage, options.count, options.seconds, options.journal)
    print(coverage.text(options.list))
    if options.keep:
        with VECTORS.open("a") as out:
            out.writelines(m.vector() + "\n" for m in report.mismatches)
    below = coverage.below(options.coverage)
    if below:
        print(f"below {options.coverage}:", ", ".join(below))
    return 1 if report.mismatches or below else 0


if __name__ == "__main__":
    sys.exit(main())
