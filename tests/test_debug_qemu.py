"""Breakpoints, watchpoints and software step take the same exceptions under Trapline's KVM as under system-mode QEMU.

`TRAPLINE_SEED=S` chooses other cases; `python -m tests.differential.debug --images N`, and `debug_el2`, compare any number by hand.
"""

from __future__ import annotations

import os

import pytest

from tests.differential import compare, debug, debug_el2
from tests.differential.runners import Debugged, Qemu
from tests.differential.translation import missing

SEED = int(os.environ.get("TRAPLINE_SEED", "1"))


def test_random_debugging() -> None:
    reason = missing()
    if reason:
        pytest.skip(f"DEBUG EXCEPTIONS NOT COMPARED: {reason}")
    count, found = debug.compare(SEED)
    print(f"seed {SEED}: {count} cases")
    assert not found, "(trapline/qemu)\n" + "\n".join(found[:40])


def test_random_debugging_with_el2() -> None:
    reason = missing()
    if reason:
        pytest.skip(f"DEBUG EXCEPTIONS OF EL2 NOT COMPARED: {reason}")
    count, found = debug_el2.compare(SEED)
    print(f"seed {SEED}: {count} cases")
    assert not found, "(trapline/qemu)\n" + "\n".join(found[:40])


def test_random_programs_one_instruction_at_a_time() -> None:
    """What a debugged vCPU runs from a record of its own does what it does elsewhere."""
    reason = Qemu.missing()
    if reason:
        pytest.skip(f"DEBUGGED PROGRAMS NOT COMPARED: {reason}")
    engine = Debugged()
    report = compare.compare(100_000, SEED, engine, Qemu())
    assert engine.cpu.state.debug_active and engine.cpu.state.watching
    assert not report.mismatches, report.text()
