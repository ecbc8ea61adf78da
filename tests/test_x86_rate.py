"""How many exits a Python program handles in the time a C program takes, both doing the same with the same guest."""

from __future__ import annotations

import pytest
from x86_machine import needs_x86_kvm

from trapline.errors import NotSupported
from trapline.ui.bench.exits import exit_rate

pytestmark = [needs_x86_kvm, pytest.mark.needs_kvm, pytest.mark.timeout(120)]

TARGET = 0.70
ADDED = 2e-6
"""Seconds that Python may add to an exit where those are so short that it cannot reach the target."""


@pytest.mark.slow
def test_exit_rate_against_a_c_loop() -> None:
    try:
        rate = exit_rate()
    except NotSupported as reason:
        pytest.skip(f"NOT TESTED: {reason}")
    print(f"\nexit in C {rate.c * 1e6:.2f} us, in Python {rate.python * 1e6:.2f} us: {rate.c / rate.python:.0%} of C's rate")
    assert rate.c / rate.python >= TARGET or rate.python - rate.c <= ADDED
