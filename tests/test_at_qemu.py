"""AT under random tables and controls of every regime gives the same PAR_EL1 and descriptors as under system-mode QEMU.

`TRAPLINE_SEED=S` chooses other tables; `python -m tests.differential.at --images N` compares any number by hand.
"""

from __future__ import annotations

import os

import pytest

from tests.differential.at import compare
from tests.differential.translation import missing

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))


def test_random_tables_of_all_regimes() -> None:
    reason = missing()
    if reason:
        pytest.skip(f"RANDOM PAGE TABLES NOT COMPARED: {reason}")
    pytest.importorskip("llvmlite")
    for seed in range(SEED, SEED + 3):
        count, found = compare(seed)
        print(f"seed {seed}: {count} translations")
        assert not found, "\n".join(found[:40])
