"""A guest of random instructions, two vCPUs in the same memory, stays between its canaries; so does the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 10


def test_random_code_stays_inside() -> None:
    """In a process of its own: an access to unmapped host memory would end it with a signal."""
    pytest.importorskip("llvmlite")
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.differential.hostile", "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=200)
    print(done.stdout)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}"
    assert "NisvExit" in done.stdout, "the guest never reached outside"
