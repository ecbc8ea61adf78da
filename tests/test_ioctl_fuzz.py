"""Random calls, valid and hostile, on several VMs of the real machine, some of which run meanwhile.

No uncaught exception, no hang, no errno that is not declared; and a call that failed has changed nothing of its VM.
`TRAPLINE_FUZZ_CALLS=500000` makes so many more, in sequences of 5,000.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.ioctl_fuzz import CALLS, Fuzzer
from trapline.backends.software import Software

pytest.importorskip("llvmlite")

SEEDS, CALLS_EACH = range(7), 1500
LONG_CALLS_EACH = 5000
LONG_SEEDS = range(1000, 1000 + int(os.environ.get("TRAPLINE_FUZZ_CALLS", "0")) // LONG_CALLS_EACH)


def fuzz(seed: int, count: int, backend: Software, thorough: bool = False) -> Fuzzer:
    """One sequence, to its end."""
    fuzzer = Fuzzer(seed, backend, thorough)
    try:
        fuzzer.run(count)
    finally:
        fuzzer.close()
    return fuzzer


@pytest.fixture(scope="module")
def backend() -> Software:
    return Software()


@pytest.fixture(scope="module")
def outcomes() -> Counter[tuple[str, int]]:
    return Counter()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_calls(seed: int, backend: Software, outcomes: Counter[tuple[str, int]]) -> None:
    fuzzer = fuzz(seed, CALLS_EACH, backend)
    assert fuzzer.checked > CALLS_EACH // 10
    outcomes.update(fuzzer.outcomes)


def test_the_fuzzer_reaches_success_and_failure(backend: Software, outcomes: Counter[tuple[str, int]]) -> None:
    if not outcomes:
        pytest.skip("runs after the tests above")
    there = {call.name for call in CALLS if call in backend.bodies}
    assert {name for name, _ in outcomes} >= there
    assert len({name for name, code in outcomes if code == 0}) >= 30, "calls that succeeded at least once"
    assert len(outcomes) >= 110, "different outcomes"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", LONG_SEEDS)
def test_many_more_calls(seed: int, backend: Software) -> None:
    fuzz(seed, LONG_CALLS_EACH, backend, thorough=seed % 4 == 0)
