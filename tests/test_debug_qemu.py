"""Breakpoints, watchpoints and software step take the same exceptions under Trapline's KVM as under system-mode QEMU.

`TRAPLINE_SEED=S` chooses other cases; `python -m tests.differential.debug --images N` compares any number by hand.
"""

from __future__ import annotations

import os

import pytest

from tests.differential.debug import compare
from tests.differential.translation import missing

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))


def test_random_debugging() -> None:
    reason = missing()
    if reason:
        pytest.skip(f"DEBUG EXCEPTIONS NOT COMPARED: {reason}")
    count, found = compare(SEED)
    print(f"seed {SEED}: {count} cases")
    assert not found, "(trapline/qemu)\n" + "\n".join(found[:40])
