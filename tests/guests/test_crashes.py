"""Guests that kill themselves in the ways kernels do: each ends with status 126 and a report that names the place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests import tiny

START_SECOND = """
        adr   x2, second            // CPU_ON(1, second)
        movz  x1, #1
        movz  w0, #0xc400, lsl #16
        movk  w0, #3
        hvc   #0
        b     die
second: {second}
        b     second
die:
"""

VECTORS = """
        adr   x1, vectors
        msr   s3_0_c12_c0_0, x1     // VBAR_EL1
        isb
"""

FATAL = {
    "undefined instructions in the vectors": (
        VECTORS + "        .word 0\n        .align 11\nvectors: .space 2048",
        ("faults itself", "unknown reason (undefined instruction)"),
    ),
    "a jump to where nothing is, with no vectors yet": (
        "        movz  x1, #0x0B00, lsl #16\n        br    x1",
        ("faults itself", "x1 000000000b000000"),
    ),
    "vectors where nothing is": (
        "        movz  x1, #0x0B00, lsl #16\n        msr   s3_0_c12_c0_0, x1\n        isb\n        svc   #0",
        ("the exception vector at 0xb000200 faults itself", "instruction abort from EL1"),
    ),
    "vectors in a device": (
        "        movz  x1, #0x0900, lsl #16\n        msr   s3_0_c12_c0_0, x1\n        isb\n        svc   #0",
        ("the exception vector at 0x9000200 faults itself", "instruction abort from EL1"),
    ),
    "vectors beyond the physical address space": (
        "        movz  x1, #0x0100, lsl #32\n        msr   s3_0_c12_c0_0, x1\n        isb\n        svc   #0",
        ("the exception vector at 0x10000000200 faults itself", "instruction abort from EL1, external abort"),
    ),
    "an instruction that stores two registers to a device": (
        "        movz  x1, #0x0900, lsl #16\n        stp   w0, w0, [x1]",
        ("cannot tell what the guest did to the device at 0x9000000",),
    ),
}


@pytest.mark.parametrize("second", ["", "nop", "wfi"], ids=["alone", "second-runs", "second-sleeps"])
@pytest.mark.parametrize("how", FATAL)
def test_report(how: str, second: str, tmp_path: Path) -> None:
    text, words = FATAL[how]
    kernel = tmp_path / "guest.bin"
    kernel.write_bytes(tiny.build((START_SECOND.format(second=second) if second else "") + text))
    command = [sys.executable, "-m", "trapline.ui.cli", "run", "--backend", "software", "--kernel", str(kernel), "--mem", "16M"]
    command += ["--cpus", "2" if second else "1", "--timeout", "60"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 126, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
