"""Medians, spreads and ratios of samples."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """The middle of some values, the least of them, and how far they lie apart (greatest less least, as a part of the middle)."""

    median: float
    least: float
    spread: float


def summarise(values: Sequence[float]) -> Summary:
    """Summary of at least one value."""
    middle = statistics.median(values)
    return Summary(middle, min(values), (max(values) - min(values)) / middle if middle else 0.0)


def ratio(ours: float, peers: Sequence[float]) -> float | None:
    """Our time to that of the fastest peer; None without a peer."""
    return ours / min(peers) if peers else None


def metric(value: float, digits: int = 3) -> str:
    """A number with a metric prefix: 0.0000021 is `2.1 u`, 17500000 is `17.5 M`."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n")):
        if abs(value) >= factor:
            return f"{value / factor:.{digits}g} {prefix}"
    return f"{value:.{digits}g} "
