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


def on_the_host(*command: str, file: Path | None = None) -> subprocess.CompletedProcess[str]:
    files = ["--file", str(file)] if file is not None else []
    arguments = [sys.executable, "-m", "tools.arm64_host", "--timeout", "1000", *files, *(["--", *command] if command else [])]
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


def test_kvm_answers_as_the_software_machine_did(tmp_path: Path) -> None:
    """A program's calls, guest and all, written down here and made again there."""
    log = tmp_path / "calls.json"
    record = [sys.executable, "-m", "trapline", "ioctls", "record", str(ROOT / "examples" / "compare_kvms.py"), str(log)]
    subprocess.run(record, check=True, cwd=ROOT, timeout=120)
    result = on_the_host(f"python3 -m trapline ioctls replay {log.name} --backend kvm", file=log)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "18 calls of software on kvm: 0 were answered otherwise" in result.stdout


RUN = "--backend kvm --cpus 2 --mem 128M --timeout 900 --kernel /root/vmlinuz --initrd /root/guest.cpio"
TICK = "i=0; while [ $i -lt 20 ]; do echo tick-$i; i=$((i+1)); head -c 100000 /dev/urandom > /tmp/f; sleep 0.2; done; echo finished"


def test_a_guest_of_linuxs_kvm_is_saved_and_restored() -> None:
    save = f"python3 -m trapline run {RUN} --snapshot /tmp/saved --snapshot-at tick-3 --params 'console=ttyAMA0 quiet run=\"{TICK}\"'"
    result = on_the_host(f"{save} && python3 -m trapline restore --backend kvm --timeout 600 /tmp/saved")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    told = result.stdout.partition("go on with: trapline restore")
    assert "tick-3" in told[0] and "tick-5" not in told[0]
    assert all(f"tick-{number}" in told[2] for number in range(5, 20)) and "finished" in told[2]


def test_a_guest_of_linuxs_kvm_moves_to_another_process() -> None:
    there = "python3 -m trapline restore --backend kvm --incoming unix:/tmp/in --timeout 600 > /tmp/there 2>&1 &"
    here = f"python3 -m trapline run {RUN} --control /tmp/c --params 'console=ttyAMA0 quiet run=\"{TICK}\"' > /tmp/here 2>&1 &"
    until = "while ! grep -q {} {}; do sleep 1; done;"
    move = "python3 -m trapline migrate /tmp/c unix:/tmp/in --downtime 30;"
    words = [there, until.format("waiting", "/tmp/there"), here, until.format("tick-3", "/tmp/here"), move]
    result = on_the_host(*words, "wait;", "echo HERE;", "cat /tmp/here;", "echo THERE;", "cat /tmp/there")
    assert "migrated in" in result.stdout, result.stdout[-3000:] + result.stderr[-1000:]
    here_said, _, there_said = result.stdout.partition("HERE")[2].partition("THERE")
    assert "tick-3" in here_said and "finished" not in here_said and "finished" in there_said
