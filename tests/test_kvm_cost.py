"""What calls cost on the software machine. CPU time of the best of several batches counts: others may be using this host."""

from __future__ import annotations

import pytest

from trapline.ui.bench.costs import MMIO_LOOP, calls, run_bare
from trapline.ui.bench.machine import Start

pytestmark = pytest.mark.slow
EXITS, BATCHES = 1000, 60


@pytest.fixture(scope="module")
def costs() -> dict[str, float]:
    pytest.importorskip("llvmlite")
    return calls([], Start.__new__(Start), 1)[0]


@pytest.mark.parametrize("call", ["KVM_GET_API_VERSION", "KVM_CHECK_EXTENSION", "KVM_GET_MP_STATE"])
def test_a_call_that_does_no_work(costs: dict[str, float], call: str) -> None:
    assert costs[f"{call}, us"] <= 3


def test_making_a_vm_with_one_vcpu(costs: dict[str, float]) -> None:
    assert costs["VM with a vCPU, ms"] <= 2


def test_an_exit_to_a_python_handler() -> None:
    pytest.importorskip("llvmlite")
    assert min(run_bare(MMIO_LOOP, 0, EXITS) for _ in range(BATCHES)) / EXITS <= 10e-6
