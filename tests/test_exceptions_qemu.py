"""Snippets that trap, fault and return take the same exceptions under Trapline's KVM as under system-mode QEMU.

`TRAPLINE_SEED=S` chooses others; `python -m tests.differential.exceptions --images N` compares any number by hand.
"""

from __future__ import annotations

import os

import pytest

from tests.differential.exceptions import compare
from tests.differential.translation import missing

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))


def test_random_snippets() -> None:
    reason = missing()
    if reason:
        pytest.skip(f"EXCEPTIONS NOT COMPARED: {reason}")
    count, found = compare(SEED, 6000)
    print(f"seed {SEED}: {count} snippets")
    assert not found, "(trapline/qemu)\n" + "\n".join(found[:40])
