"""Random page tables give the same accesses, faults and PAR_EL1 under Trapline's KVM as under system-mode QEMU.

`TRAPLINE_SEED=S` chooses other tables; `python -m tests.differential.translation --images N` compares any number by hand.
"""

from __future__ import annotations

import os

import pytest

from tests.differential.translation import GRANULES, compare, missing

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))


@pytest.mark.parametrize("granule", GRANULES)
def test_random_tables(granule: str) -> None:
    reason = missing()
    if reason:
        pytest.skip(f"RANDOM PAGE TABLES NOT COMPARED: {reason}")
    count, found = compare(GRANULES[granule], SEED)
    print(f"seed {SEED}: {count} accesses")
    assert not found, "\n".join(found[:40])
