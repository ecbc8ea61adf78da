"""The whole thing on an arm64 host that has KVM: QEMU emulates the machine, Debian's kernel on it is the host, and Python runs there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_guest,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="NOT TESTED: there is no qemu-system-aarch64"),
]


def on_the_host(*command: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "tools.arm64_host", "--timeout", "1000", *(["--", *command] if command else [])]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=1100, check=False)


def test_linux_boots_on_the_kvm_of_linux() -> None:
    result = on_the_host()
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    lines = result.stdout.splitlines()
    assert any(line.startswith("host: ") and line.endswith("/dev/kvm is there") for line in lines)
    assert any("Machine model: linux,dummy-virt" in line for line in lines), "the guest's own kernel on the VMM's board"
    assert any(line.startswith("Linux (none)") and "aarch64" in line for line in lines), "uname -a in the guest"


def test_kvm_answers_as_the_list_says() -> None:
    """Cases about memory slots, the same on every kernel."""
    result = on_the_host("python3 -m tests.conformance --backend kvm --quiet KVM_SET_USER_MEMORY_REGION")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
