"""`trapline kut DIR`: run kvm-unit-tests' flat images, each in a process of its own, and print a table."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from trapline.errors import BadInput

CPUS = 4
MEMORY = "256M"
DEFAULT_LIMIT = 90.0

SKIPPED, TIMED_OUT, CRASHED = 77 >> 1, 124, 126
"""Exit statuses. An image announces that all its tests were skipped as 77, not shifted as other results are."""

KEY = "\n"
ENVIRONMENT = "ERRATA_FORCE=y\n"
"""What the images read from their initial ramdisk: run tests that old, broken kernels had to be spared, too."""


@dataclass(frozen=True, slots=True)
class Test:
    """One row of the table: an image, its arguments, and what it needs. `needs` names a feature the machine lacks: skipped.

    kvm:       the feature is a hypervisor's: a bare machine has not got it.
    counting:  for tests that count instructions: the software machine does that in deterministic runs.
    key:       the test asks for a key, by when the VM is to have been migrated. It gets the key; nothing is migrated.
    """

    name: str
    image: str
    params: str = ""
    cpus: int = 1
    limit: float = DEFAULT_LIMIT
    needs: str = ""
    gic: int = 3
    kvm: bool = False
    counting: bool = False
    key: bool = False


TESTS = (
    Test("selftest-setup", "selftest", "setup smp=2 mem=256", cpus=2),
    Test("selftest-vectors-kernel", "selftest", "vectors-kernel"),
    Test("selftest-vectors-user", "selftest", "vectors-user"),
    Test("selftest-smp", "selftest", "smp", cpus=CPUS),
    Test("pci-test", "pci-test"),
    Test("pmu-cycle-counter", "pmu", "cycle-counter 0", kvm=True),
    Test("pmu-event-introspection", "pmu", "pmu-event-introspection", kvm=True, counting=True),
    Test("pmu-event-counter-config", "pmu", "pmu-event-counter-config", kvm=True),
    Test("pmu-basic-event-count", "pmu", "pmu-basic-event-count", kvm=True, counting=True),
    Test("pmu-mem-access", "pmu", "pmu-mem-access", kvm=True),
    Test("pmu-mem-access-reliability", "pmu", "pmu-mem-access-reliability", kvm=True),
    Test("pmu-sw-incr", "pmu", "pmu-sw-incr", kvm=True),
    Test("pmu-chained-counters", "pmu", "pmu-chained-counters", kvm=True),
    Test("pmu-chained-sw-incr", "pmu", "pmu-chained-sw-incr", kvm=True),
    Test("pmu-chain-promotion", "pmu", "pmu-chain-promotion", kvm=True),
    Test("pmu-overflow-interrupt", "pmu", "pmu-overflow-interrupt", kvm=True),
    Test("gicv2-ipi", "gic", "ipi", cpus=CPUS, gic=2),
    Test("gicv2-mmio", "gic", "mmio", cpus=CPUS, gic=2),
    Test("gicv2-mmio-up", "gic", "mmio", gic=2),
    Test("gicv2-mmio-3p", "gic", "mmio", cpus=3, gic=2),
    Test("gicv2-active", "gic", "active", cpus=CPUS, gic=2),
    Test("gicv3-ipi", "gic", "ipi", cpus=CPUS),
    Test("gicv3-active", "gic", "active", cpus=CPUS),
    Test("its-introspection", "gic", "its-introspection", cpus=CPUS),
    Test("its-trigger", "gic", "its-trigger", cpus=CPUS),
    Test("its-migration", "gic", "its-migration", cpus=CPUS, key=True),
    Test("its-pending-migration", "gic", "its-pending-migration", cpus=CPUS, key=True),
    Test("its-migrate-unmapped-collection", "gic", "its-migrate-unmapped-collection", cpus=CPUS, key=True),
    Test("psci", "psci", cpus=CPUS),
    Test("timer", "timer"),
    Test("cache", "cache"),
    Test("debug-bp", "debug", "bp"),
    Test("debug-bp-migration", "debug", "bp-migration", key=True),
    Test("debug-wp", "debug", "wp"),
    Test("debug-wp-migration", "debug", "wp-migration", key=True),
    Test("debug-sstep", "debug", "ss"),
    Test("debug-sstep-migration", "debug", "ss-migration", key=True),
    Test("mte-sync", "mte", "sync", needs="MTE"),
    Test("mte-async", "mte", "async", needs="MTE"),
    Test("mte-asymm", "mte", "asymm", needs="MTE"),
    Test("pl031", "pl031"),
    Test("spinlock", "spinlock-test", cpus=CPUS, limit=300),
    Test("fpu-context", "fpu", cpus=2),
    Test("micro-bench", "micro-bench", cpus=2),
)


@dataclass(frozen=True, slots=True)
class Result:
    """How a test went: a verdict, the checks in its output, the time it took, and a note."""

    verdict: str
    checks: str = ""
    seconds: float = 0.0
    note: str = ""


def run_folder(folder: str, names: list[str], backend: str, machine: str, limit: float | None) -> int:
    """Run the tests of the table (or only those named) and print as they end. 0 if none failed, 1 otherwise."""
    directory = Path(folder)
    if not any(directory.glob("*.flat")):
        raise BadInput(f"kut {folder}: no .flat images there; build kvm-unit-tests for arm64 and give its arm/ folder")
    unknown = set(names) - {test.name for test in TESTS}
    if unknown:
        raise BadInput(f"kut: no test called {', '.join(sorted(unknown))}; there are {', '.join(test.name for test in TESTS)}")
    tally: Counter[str] = Counter()
    print(f"{'test':31} {'result':8} {'checks':18} {'seconds':>7}  note")
    with tempfile.NamedTemporaryFile("w", prefix="trapline-kut-") as environment:
        environment.write(ENVIRONMENT)
        environment.flush()
        for test in TESTS:
            if names and test.name not in names:
                continue
            result = run_test(test, directory, environment.name, backend, machine, limit)
            tally[result.verdict] += 1
            print(f"{test.name:31} {result.verdict:8} {result.checks:18} {result.seconds:7.1f}  {result.note}", flush=True)
    print(", ".join(f"{number} {verdict}" for verdict, number in tally.items()))
    return 1 if tally["FAIL"] or tally["TIMEOUT"] or tally["CRASH"] else 0


def run_test(test: Test, directory: Path, environment: str, backend: str, machine: str, limit: float | None) -> Result:
    """Run one test."""
    image = directory / f"{test.image}.flat"
    if test.gic == 2 and machine == "bare":
        return Result("SKIP", note="a bare machine has a GICv3")
    if test.needs:
        return Result("SKIP", note=f"the machine has no {test.needs} yet")
    if test.kvm and machine == "bare":
        return Result("SKIP", note=f"a bare machine has no {test.image.upper()}")
    if not image.exists():
        return Result("SKIP", note=f"{image.name} is not in the folder")
    command = [sys.executable, "-m", "trapline.ui.cli", "run", "--kernel", str(image), "--initrd", environment]
    command += ["--params", test.params, "--cpus", str(test.cpus), "--mem", MEMORY, "--backend", backend, "--machine", machine]
    command += ["--timeout", str(limit or test.limit), "--no-reboot", "--pci-testdev", "--gic", str(test.gic)]
    if test.counting and backend != "kvm":
        command.append("--deterministic")
    start = time.monotonic()
    done = subprocess.run(command, input=KEY if test.key else "", capture_output=True, text=True, errors="replace", check=False)
    return judge(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def judge(status: int, output: str, errors: str, seconds: float) -> Result:
    """A test's verdict from its exit status, and the rest from its output."""
    lines = output.splitlines()
    found = Counter(word for line in lines for word in ("PASS", "FAIL", "SKIP") if line.startswith(f"{word}:"))
    checks = " ".join(f"{number} {word.lower()}" for word, number in found.items())
    if status == 0:
        return Result("PASS", checks, seconds)
    failed = [line for line in lines if line.startswith("FAIL:")]
    skipped = [line for line in lines if line.startswith("SKIP:")]
    said = next((line for line in reversed(errors.splitlines()) if line.startswith("trapline:")), "")
    if status == SKIPPED:
        return Result("SKIP", checks, seconds, skipped[-1] if skipped else "")
    verdict = {TIMED_OUT: "TIMEOUT", CRASHED: "CRASH"}.get(status, "FAIL")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return Result(verdict, checks, seconds, failed[0] if failed else said or f"status {status}: {last}")
