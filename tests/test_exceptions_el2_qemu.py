"""Snippets at EL2, EL1 and EL0 take the same exceptions on the bare machine as under system-mode QEMU with EL2.

`TRAPLINE_SEED=S` chooses others; `python -m tests.differential.exceptions_el2 --images N` compares any number by hand.
"""

from __future__ import annotations

import os

import pytest

from tests.differential.exceptions_el2 import compare
from tests.differential.translation import missing

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))


def test_random_snippets() -> None:
    reason = missing()
    if reason:
        pytest.skip(f"EXCEPTIONS NOT COMPARED: {reason}")
    count, found = compare(SEED, 8000)
    print(f"seed {SEED}: {count} snippets")
    assert not found, "(trapline/qemu)\n" + "\n".join(found[:40])
