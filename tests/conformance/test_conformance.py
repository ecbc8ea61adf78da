"""The conformance list on every backend that is here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import ENOMEM

import pytest

from tests.conformance.frame import Case, Trial, all_cases, answer, applies, error_name, host_arch
from trapline.abi.tables import calls
from trapline.backends.base import Backend
from trapline.backends.dev_kvm import DevKvm
from trapline.backends.software import Software
from trapline.errors import NotSupported

CASES = all_cases()
HERE = os.access("/dev/kvm", os.R_OK | os.W_OK)


@pytest.fixture(scope="module")
def software() -> Iterator[tuple[Backend, int]]:
    pytest.importorskip("llvmlite")
    backend = Software()
    system = backend.open()
    yield backend, system
    backend.close(system)


@pytest.fixture(scope="module")
def device() -> Iterator[tuple[Backend, int]]:
    backend = DevKvm()
    system = backend.open()
    yield backend, system
    backend.close(system)


def judge(case: Case, backend: Backend, system: int, arch: str) -> None:
    trial = Trial(backend, system, arch)
    try:
        if not applies(case, trial):
            pytest.skip("this backend lacks what the case needs")
        got = answer(case, trial)
    except NotSupported as reason:
        pytest.skip(str(reason))
    finally:
        trial.close()
    allowed = {case.errno}
    if case.differs is not None and backend.name == "kvm":
        allowed.add(case.differs[0])
    assert got in allowed, f"{error_name(got)}, not {error_name(case.errno)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_the_software_machine(case: Case, software: tuple[Backend, int]) -> None:
    judge(case, *software, "arm64")


@pytest.mark.needs_kvm
@pytest.mark.skipif(not HERE, reason="/dev/kvm cannot be opened here")
@pytest.mark.parametrize("case", [case for case in CASES if case.generic or host_arch() == "arm64"], ids=lambda case: case.name)
def test_on_the_hosts_kvm(case: Case, device: tuple[Backend, int]) -> None:
    judge(case, *device, host_arch())


def test_the_list_is_long_and_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 400
    assert sum(case.generic for case in CASES) >= 150


def test_most_declared_errnos_have_a_case(software: tuple[Backend, int]) -> None:
    """Not all can be provoked: memory does not run out, and some need features that this machine lacks."""
    backend = software[0]
    assert isinstance(backend, Software)
    declared = {(call, code) for call in calls("arm64") if call in backend.bodies for code in (0, *call.causes) if code != ENOMEM}
    missing = declared - {(case.call, case.errno) for case in CASES}
    assert len(missing) <= len(declared) // 5, sorted(f"{call.name} {error_name(code)}" for call, code in missing)
