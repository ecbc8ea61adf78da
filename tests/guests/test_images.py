"""Images of others: U-Boot, and kvm-unit-tests where a folder of them is given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

U_BOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
KVM_UNIT_TESTS = os.environ.get("KVM_UNIT_TESTS", "")

COMMAND = [sys.executable, "-m", "trapline.ui.cli"]


@pytest.mark.skipif(not U_BOOT.exists(), reason="U-Boot is not installed (Debian package u-boot-qemu)")
@pytest.mark.parametrize("option", ["--bios", "--kernel"])
def test_u_boot_reaches_its_prompt(option: str) -> None:
    words = [*COMMAND, "run", "--backend", "software", option, str(U_BOOT), "--mem", "256M", "--timeout", "120"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        seen = bytearray()
        while b"\n=> " not in seen:
            data = os.read(process.stdout.fileno(), 4096)
            assert data, seen
            seen += data
        process.stdin.write(b"echo $((1))$cpu; poweroff\n")
        process.stdin.close()
        rest = process.stdout.read()
    assert b"U-Boot" in seen
    assert process.returncode == 0 and b"poweroff ..." in rest, rest


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not KVM_UNIT_TESTS, reason="KVM_UNIT_TESTS does not name a folder of kvm-unit-tests' arm64 .flat images")
def test_kvm_unit_tests() -> None:
    done = subprocess.run([*COMMAND, "kut", KVM_UNIT_TESTS, "--backend", "software"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("selftest-setup", "selftest-smp", "gicv3-ipi", "gicv3-active", "psci", "timer", "cache", "pci-test", "pl031"):
        assert any(line.split()[:2] == [name, "PASS"] for line in done.stdout.splitlines()), done.stdout
