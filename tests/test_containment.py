"""A guest of random instructions, two vCPUs in the same memory, stays between its canaries; so does the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine_machine import Bench
from trapline.arm64.regs import ESR_EL1
from trapline.engine.state import TLB_INVALID

SECONDS = 10
ACCESSES = 300_000


def test_random_code_stays_inside() -> None:
    """In a process of its own: an access to unmapped host memory would end it with a signal."""
    pytest.importorskip("llvmlite")
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.differential.hostile", "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=200)
    print(done.stdout)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}"
    assert "NisvExit" in done.stdout, "the guest never reached outside"


def test_hostile_accesses_stay_inside() -> None:
    """Counted hostile accesses with regions being compiled: canaries, the process's map and its size are watched."""
    pytest.importorskip("llvmlite")
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.differential.accesses", "--accesses", str(ACCESSES), "--seconds", "40"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=250)
    print(done.stdout)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("text", ["ldar x0, [x1]", "ldarh w0, [x1]", "swp x1, x0, [x1]", "ldxp x0, x2, [x1]", "br x1"])
def test_no_address_hits_an_invalid_tlb_entry(text: str) -> None:
    """Not even one whose low bits are those of an invalid tag: such an entry still points where it once did."""
    bench = Bench()
    secret = ctypes.create_string_buffer(b"the host's secret " * 4, 4096)
    for address in (1, 2, 3, 4, 8, TLB_INVALID, TLB_INVALID + 1):
        cpu = bench.cpu(bench.load(text), x1=address)
        entry = cpu.state.levels[0].entries[0]
        entry.read_tag = entry.write_tag = TLB_INVALID
        entry.addend = ctypes.addressof(secret) - address
        code = cpu.state.level_codes[0].entries[0]
        code.tag, code.records = TLB_INVALID, ctypes.addressof(secret)
        cpu.enter()
        assert cpu[ESR_EL1] >> 26 in (0x21, 0x22, 0x25) and cpu.state.x[0] == 0, f"{text} at {address:#x}"
