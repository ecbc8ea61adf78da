"""Print how large the tree is, and fail when a file is past its budget.

Budgets: median file about 200 lines, soft limit 400, hard limit 600; one instruction group may have 800.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOFT_LIMIT = 400
HARD_LIMIT = 600
INSTRUCTION_GROUP_LIMIT = 800
INSTRUCTION_GROUPS = Path("trapline/arm64/isa")


def limit_for(path: Path) -> int:
    """The hard limit in lines of the file at `path` (relative to the root)."""
    return INSTRUCTION_GROUP_LIMIT if INSTRUCTION_GROUPS in path.parents else HARD_LIMIT


def count_lines(root: Path) -> dict[Path, int]:
    """Lines of every Python file of the package, tests and tools that is not empty."""
    files = (path for top in ("trapline", "tests", "tools") for path in sorted((root / top).rglob("*.py")))
    counts = {path.relative_to(root): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    return {path: lines for path, lines in counts.items() if lines}


def package_of(path: Path) -> str:
    """The row of the table that a file counts for: trapline/x, tests, tools."""
    if path.parts[0] != "trapline" or len(path.parts) == 2:
        return path.parts[0]
    return "/".join(path.parts[:2])


def main() -> int:
    """Print the table; the exit status says whether a budget is broken."""
    counts = count_lines(ROOT)
    packages: dict[str, list[int]] = {}
    for path, lines in counts.items():
        packages.setdefault(package_of(path), []).append(lines)

    print(f"{'package':24} {'files':>5} {'lines':>7} {'median':>7} {'largest':>8}")
    for name, sizes in sorted(packages.items()):
        print(f"{name:24} {len(sizes):5} {sum(sizes):7} {statistics.median(sizes):7.0f} {max(sizes):8}")
    product = [lines for path, lines in counts.items() if path.parts[0] == "trapline"]
    print(f"{'trapline, all':24} {len(product):5} {sum(product):7} {statistics.median(product):7.0f} {max(product):8}")

    over = {path: lines for path, lines in counts.items() if lines > limit_for(path)}
    for path, lines in sorted(counts.items(), key=lambda item: -item[1]):
        if SOFT_LIMIT < lines <= limit_for(path):
            print(f"soft limit: {path} has {lines} lines (aim: {SOFT_LIMIT})")
    for path, lines in over.items():
        print(f"over budget: {path} has {lines} lines, limit {limit_for(path)}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
