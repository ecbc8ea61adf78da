"""`python -m tests.differential --coverage N`: operand sets per encoding, with a journal so that a long run can be made in pieces."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

from tests.differential.compare import Comparison, Key, Report


class Coverage:
    """What a comparison has covered so far, and what it never will."""

    def __init__(self, comparison: Comparison, report: Report) -> None:
        self.comparison, self.report = comparison, report
        generator = comparison.generator
        self.keys = set(generator.keys())
        self.reasons: dict[str, str] = dict(generator.unused)
        """Instructions that are not compared, and why."""
        self._find_reasons()

    def _find_reasons(self) -> None:
        """What is left to the interpreter; who runs the programs may find that out only while doing so."""
        ours, generator = self.comparison.ours, self.comparison.generator
        if ours.compiled is None:
            return
        for name, templates in generator.templates.items():
            left = {(name, t.shape) for t in templates if not ours.compiles(t)}
            self.keys -= left
            if len(left) == len(templates):
                self.reasons[name] = f"{ours.name} leave it to the interpreter"
        for name in {name for name, _ in self.keys} - generator.templates.keys():
            self.reasons[name] = "a system register: the register decides who has it"

    def least(self) -> list[tuple[str, int]]:
        """Instructions by how many operand sets they had, the fewest first."""
        sets = self.report.instruction_sets()
        names = {name for name, _ in self.keys} - self.reasons.keys()
        return sorted(((name, sets[name]) for name in names), key=lambda item: (item[1], item[0]))

    def least_shapes(self) -> list[tuple[Key, int]]:
        """The same by shape."""
        rows = ((key, self.report.sets[key]) for key in self.keys if key[0] not in self.reasons)
        return sorted(rows, key=lambda item: (item[1], item[0]))

    def run(self, wanted: int, count: int, seconds: float, journal: Path | None) -> None:
        """Go on until every instruction had `wanted` operand sets and `count` instructions were compared, or time is up."""
        end = time.monotonic() + seconds
        report, comparison = self.report, self.comparison
        while (report.instructions < count or self.least()[0][1] < wanted) and len(report.mismatches) < comparison.limit:
            comparison.one_pass(report)
            self._find_reasons()
            if journal is not None:
                save(journal, report)
            if time.monotonic() > end:
                break

    def below(self, wanted: int) -> list[str]:
        """Instructions with too few operand sets."""
        return [name for name, count in self.least() if count < wanted]

    def text(self, full: bool = False) -> str:
        """The least covered (or with `full` all) instructions, the totals, what is left out."""
        rows, shapes = self.least(), self.least_shapes()
        lines = [f"  {name}: {count} operand sets" for name, count in (rows if full else rows[:10])]
        covered = sum(count > 0 for _, count in shapes)
        (name, shape), fewest = shapes[0]
        total = sum(count for _, count in rows)
        lines.append(f"{len(rows)} instructions in {len(shapes)} shapes, of which {covered} were reached; the least covered, "
                     f"{name}/{shape:x}, had {fewest} operand sets; {total} in total")  # fmt: skip
        why = Counter(self.reasons.values())
        lines += [f"left out: {count} ({reason})" for reason, count in why.most_common()]
        if full:
            lines += [f"  {name}: {reason}" for name, reason in sorted(self.reasons.items())]
            skipped = self.comparison.generator.skipped
            lines += [f"  {count} shapes of {name}: wrong in the oracle" for name, count in skipped.items() if count]
        return "\n".join([self.report.text(), *lines])


def save(journal: Path, report: Report) -> None:
    """Keep what was reached; mismatches are printed, not kept."""
    sets = [[name, shape, count] for (name, shape), count in report.sets.items()]
    facts = {"oracle": report.oracle, "seed": report.seed, "instructions": report.instructions, "sets": sets}
    fresh = journal.with_suffix(".new")
    fresh.write_text(json.dumps(facts))
    fresh.replace(journal)


def load(journal: Path, oracle: str, seed: int) -> Report:
    """What earlier pieces of a run reached; a new report if there were none."""
    if not journal.exists():
        return Report(oracle, seed)
    facts = json.loads(journal.read_text())
    assert facts["oracle"] == oracle, f"{journal} is a comparison with {facts['oracle']}"
    sets = Counter({(name, shape): count for name, shape, count in facts["sets"]})
    return Report(oracle, facts["seed"], facts["instructions"], sets)
