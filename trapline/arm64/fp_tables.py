"""The estimate tables of the manual, computed from its integer definitions."""

from __future__ import annotations


def recip_estimate(a: int) -> int:
    """RecipEstimate: a in 256..511 stands for a/512, the result in 256..511 for result/256."""
    return ((1 << 19) // (2 * a + 1) + 1) // 2


def recip_sqrt_estimate(a: int) -> int:
    """RecipSqrtEstimate: a in 128..511 stands for a/512, the result in 256..511 for result/256."""
    midpoint = 2 * a + 1 if a < 256 else 2 * (a | 1)
    root = 512
    while midpoint * (root + 1) ** 2 < 1 << 28:
        root += 1
    return (root + 1) // 2


RECIP_ESTIMATE = tuple(recip_estimate(a) for a in range(256, 512))
RSQRT_ESTIMATE = tuple(recip_sqrt_estimate(a) for a in range(128, 512))
