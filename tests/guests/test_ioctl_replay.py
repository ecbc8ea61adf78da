"""Linux's boot as a log of KVM calls, and all of them made again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trapline.vmm import guests

pytest.importorskip("llvmlite")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_guest,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not guests.is_ready(), reason="NOT TESTED: the Debian guest has not been fetched (make run)"),
]


def trapline(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trapline", *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)


def test_a_boot_is_made_again_call_by_call(tmp_path: Path) -> None:
    log = str(tmp_path / "calls.json")
    run = trapline("guest", "--quiet", "--mem", "128M", "--deterministic", "--record-ioctls", log, "--", "uname", "-m")
    assert run.returncode == 0 and "aarch64" in run.stdout, run.stderr
    again = trapline("ioctls", "replay", "--patience", "300", log)
    assert again.returncode == 0, again.stdout[-3000:]
    calls, _, outcome = again.stdout.removeprefix(f"{log}: ").partition(" calls of software on software: ")
    assert int(calls) > 5000 and outcome == "0 were answered otherwise\n"
