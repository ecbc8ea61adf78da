"""kvm-unit-tests, where a folder of them is given: KVM_UNIT_TESTS=DIR make test."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FOLDER = os.environ.get("KVM_UNIT_TESTS", "")

MUST_PASS = (
    *("selftest-setup", "selftest-vectors-kernel", "selftest-vectors-user", "selftest-smp", "psci", "timer"),
    *("gicv2-ipi", "gicv2-mmio", "gicv2-mmio-up", "gicv2-mmio-3p", "gicv2-active", "gicv3-ipi", "gicv3-active"),
    *("its-introspection", "its-trigger", "its-migration", "its-pending-migration", "its-migrate-unmapped-collection"),
    *("pmu-cycle-counter", "pmu-event-introspection", "pmu-event-counter-config", "pmu-basic-event-count", "pmu-sw-incr"),
    *("pmu-chained-counters", "pmu-chained-sw-incr"),
    *("cache", "pci-test", "pl031", "debug-bp", "debug-wp", "debug-sstep"),
    *("debug-bp-migration", "debug-wp-migration", "debug-sstep-migration"),
)


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not FOLDER, reason="KVM_UNIT_TESTS does not name a folder of kvm-unit-tests' arm64 .flat images")
def test_kvm_unit_tests() -> None:
    command = [sys.executable, "-m", "trapline.ui.cli", "kut", FOLDER, "--backend", "software"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = dict(line.split()[:2] for line in done.stdout.splitlines()[1:-1])
    assert [verdicts[name] for name in MUST_PASS] == ["PASS"] * len(MUST_PASS), done.stdout
