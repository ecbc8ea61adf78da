"""Linking machine code into a process that has much other memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

APART = """
import ctypes, mmap
from trapline.mapping import MAP_NORESERVE
from trapline.engine.jit import Jit

ROWS = 4096
jit = Jit()


def made(n: int) -> bytes:
    rows = ", ".join(f"i64 {k * n}" for k in range(ROWS))
    return jit.compile(f'''
@rows{n} = internal constant [{ROWS} x i64] [{rows}]
@last{n} = internal global i64 0
define i64 @look{n}(i64 %k) {{
  %at = getelementptr [{ROWS} x i64], ptr @rows{n}, i64 0, i64 %k
  %value = load i64, ptr %at
  store volatile i64 %value, ptr @last{n}
  ret i64 %value
}}
''')


taken = []
for n in range(1, 13):
    jit.load(made(n))
    look = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)(jit.address(f"look{n}"))
    assert look(5) == 5 * n
    if n % 4 == 0:  # what is free near the code so far is taken, in pieces of all sizes
        for size in (64 << 20, 1 << 20, 64 << 10, 16 << 10):
            taken += [mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | MAP_NORESERVE) for _ in range(48)]
print(n)
"""


def test_the_process_may_have_gigabytes_of_other_memory_between_its_code() -> None:
    """An object's code, constants and data refer to each other by distances of 32 bits; LLVM ends a process where they do not fit."""
    pytest.importorskip("llvmlite")
    result = subprocess.run([sys.executable, "-c", APART], capture_output=True, text=True, timeout=100, check=False)
    assert (result.returncode, result.stdout) == (0, "12\n"), result.stderr
