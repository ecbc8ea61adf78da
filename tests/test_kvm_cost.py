"""What calls cost on the software machine. The best of several rounds counts: others may be using this host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from trapline.abi.caps import Cap
from trapline.abi.system import KVM_CHECK_EXTENSION, KVM_GET_API_VERSION
from trapline.abi.vcpu import KVM_GET_MP_STATE, MpStateArgument
from trapline.backends.objects import System
from trapline.backends.software import Software

pytestmark = pytest.mark.slow
MICROSECOND = 1e-6


@pytest.fixture(scope="module")
def kvm() -> Iterator[System]:
    pytest.importorskip("llvmlite")
    with System(Software()) as system:
        yield system


def best(body: Callable[[], object], count: int, rounds: int = 7) -> float:
    """Seconds of one call, in the fastest round."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            body()
        times.append((time.perf_counter() - start) / count)
    return min(times)


def test_a_call_that_does_no_work(kvm: System) -> None:
    with kvm.create_vm() as vm:
        vcpu, ioctl = vm.create_vcpu(), kvm.backend.ioctl
        state = MpStateArgument()
        for body in (
            lambda: ioctl(kvm.file, KVM_GET_API_VERSION, 0),
            lambda: ioctl(vm.file, KVM_CHECK_EXTENSION, Cap.USER_MEMORY),
            lambda: ioctl(vcpu.file, KVM_GET_MP_STATE, state),
        ):
            assert best(body, 2000) <= 3 * MICROSECOND


def test_making_a_vm_with_one_vcpu(kvm: System) -> None:
    def life() -> None:
        with kvm.create_vm() as vm:
            vm.create_vcpu()

    assert best(life, 20) <= 2000 * MICROSECOND
