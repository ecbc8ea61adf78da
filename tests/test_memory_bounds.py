"""A guest cannot make this process grow beyond its RAM, the tables that docs/PERFORMANCE.md names, and a constant."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trapline.devices.virtio.console import AT_ONCE, VirtioConsole
from trapline.devices.virtio.queue import Chain, Queue
from trapline.engine.engine import CODE_PAGES
from trapline.engine.state import PAGE_BYTES
from trapline.engine.stencil import arena

ARENA = CODE_PAGES * PAGE_BYTES + arena.ARENA >> 20
"""MiB of decoded pages and of stencils, which pages get that no sample met, too."""
CONSTANT, COMPILER = 48, 256
"""MiB that a run may take besides, and that the compiler's process may have."""
SCENARIOS = {"spaces": (0, 4), "pages": (ARENA, 6), "writes": (0, 6), "loops": (ARENA, 10)}
"""Bounds in MiB besides the constant, and seconds."""
REGIONS, LIFETIME = 40, 5


@pytest.mark.parametrize("scenario", ["spaces", "pages", "writes", pytest.param("loops", marks=pytest.mark.slow)])
def test_a_guest_that_wants_memory(scenario: str, tmp_path: Path) -> None:
    """In a process of its own, with few regions allowed and none stored; the compiler is replaced after a few."""
    pytest.importorskip("llvmlite")
    bound, seconds = SCENARIOS[scenario]
    compilers = 2 if scenario == "writes" else 0
    limits = ["--regions", str(REGIONS), "--lifetime", str(LIFETIME), "--compilers", str(compilers)]
    command = [sys.executable, "-m", "tests.differential.growth", scenario, "--seconds", str(seconds), *limits]
    environment = os.environ | {"TRAPLINE_LINGER": "0"}
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=120)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"grew by (\d+) MiB, (\d+) compilers had (\d+) MiB each at most", done.stdout)
    assert found is not None
    grown, seen, compiler = map(int, found.groups())
    assert grown <= bound + CONSTANT and compiler <= COMPILER and seen >= compilers


def test_output_is_copied_in_pieces() -> None:
    """A request for 64 times the same MiB: the console copies little at a time, and loses nothing."""
    pieces: list[int] = []
    console = VirtioConsole(lambda data: pieces.append(len(data)))
    memory = memoryview(bytes(1 << 20))

    class Once(Queue):
        def __init__(self) -> None:
            self.waiting = [Chain(0, [memory] * 64, [])]

        def pop(self) -> Chain | None:
            return self.waiting.pop() if self.waiting else None

        def push(self, chain: Chain, written: int) -> None:
            assert written == 0

    console.send_output(Once())
    assert sum(pieces) == 64 << 20 and max(pieces) <= AT_ONCE
