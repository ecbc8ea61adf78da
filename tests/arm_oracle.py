"""Single instructions run under user-mode QEMU: an outside opinion on the arithmetic of the manual.

An operation is assembly text that takes its operands in q0, q1, q2 (the low half of q0 also in x0) and leaves its
result in q3. One static program holds them all and answers a stream of records; results come with FPSR.
"""

from __future__ import annotations

import functools
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
RECORD = struct.Struct("<IIQQQQQQ")
ANSWER = struct.Struct("<QQQ")
LOW64 = (1 << 64) - 1

PROGRAM = r"""
#include <stdint.h>
#include <stdio.h>
struct record { uint32_t op, fpcr; uint64_t v[6]; };
struct answer { uint64_t v[2], fpsr; };
#define RUN(text) __asm__ volatile( \
    "ldp q0, q1, [%[in]]\n ldr q2, [%[in], #32]\n ldr x0, [%[in]]\n movi v3.2d, #0\n" \
    "msr fpcr, %[fpcr]\n msr fpsr, xzr\n" text "\n mrs x3, fpsr\n msr fpcr, xzr\n str q3, [%[out]]\n str x3, [%[out], #16]\n" \
    :: [in] "r"(r.v), [out] "r"(&a), [fpcr] "r"((uint64_t)r.fpcr) \
    : "x0", "x1", "x2", "x3", "v0", "v1", "v2", "v3", "cc", "memory")
int main(void)
{
    static struct record r;
    static struct answer a;
    while (fread(&r, sizeof r, 1, stdin) == 1) {
        switch (r.op) {
%s
        default: return 1;
        }
        fwrite(&a, sizeof a, 1, stdout);
    }
    return 0;
}
"""


class Oracle:
    """A program with the given operations; `operations` maps names to assembly text."""

    def __init__(self, operations: Mapping[str, str]):
        for tool in (COMPILER, EMULATOR):
            if shutil.which(tool) is None:
                pytest.skip(f"NOT COMPARED WITH THE ORACLE: {tool} is not installed")
        self.numbers = {name: number for number, name in enumerate(operations)}
        cases = "\n".join(f'case {n}: RUN("{text}"); break;' for n, text in enumerate(operations.values()))
        self.directory = tempfile.TemporaryDirectory(prefix="trapline-oracle-")
        source = Path(self.directory.name, "oracle.c")
        source.write_text(PROGRAM.replace("%s", cases))
        self.binary = source.with_suffix("")
        subprocess.run(
            [COMPILER, "-O1", "-static", "-march=armv8.6-a+fp16+aes+sha2+sha3+sm4+crc", "-o", self.binary, source], check=True, timeout=300
        )

    def run(self, records: Iterable[tuple[str, int, tuple[int, ...]]]) -> list[tuple[int, int]]:
        """For each (operation, FPCR, up to three 128-bit operands): (128-bit result, FPSR)."""
        stream = bytearray()
        for name, fpcr, operands in records:
            words = [word for value in operands for word in (value & LOW64, value >> 64)]
            stream += RECORD.pack(self.numbers[name], fpcr, *words, *[0] * (6 - len(words)))
        done = subprocess.run([EMULATOR, self.binary], input=stream, capture_output=True, check=True, timeout=600)
        answers = [(low | high << 64, fpsr) for low, high, fpsr in ANSWER.iter_unpack(done.stdout)]
        assert len(answers) * RECORD.size == len(stream)
        return answers


@functools.cache
def oracle_for(operations: tuple[tuple[str, str], ...]) -> Oracle:
    """The oracle of a set of (name, text), built once per test session."""
    return Oracle(dict(operations))
