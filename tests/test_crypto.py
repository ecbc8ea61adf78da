"""The cryptographic, polynomial and CRC functions against user-mode QEMU, hashlib, zlib and their two executions."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import arm_oracle
import pytest

from trapline.arm64 import crypto, crypto_sm4
from trapline.bits.native import compile_functions

MASK64 = (1 << 64) - 1

# Instruction text (see arm_oracle) and the widths of the function's operands: "q" a pair of u64, "d" u64, "s" u32.
INSTRUCTIONS = {
    "aese": ("aese v0.16b, v1.16b; mov v3.16b, v0.16b", "qq"),
    "aesd": ("aesd v0.16b, v1.16b; mov v3.16b, v0.16b", "qq"),
    "aesmc": ("aesmc v3.16b, v0.16b", "q"),
    "aesimc": ("aesimc v3.16b, v0.16b", "q"),
    "sha1c": ("sha1c q0, s1, v2.4s; mov v3.16b, v0.16b", "qsq"),
    "sha1p": ("sha1p q0, s1, v2.4s; mov v3.16b, v0.16b", "qsq"),
    "sha1m": ("sha1m q0, s1, v2.4s; mov v3.16b, v0.16b", "qsq"),
    "sha1h": ("sha1h s3, s0", "s"),
    "sha1su0": ("sha1su0 v0.4s, v1.4s, v2.4s; mov v3.16b, v0.16b", "qqq"),
    "sha1su1": ("sha1su1 v0.4s, v1.4s; mov v3.16b, v0.16b", "qq"),
    "sha256h": ("sha256h q0, q1, v2.4s; mov v3.16b, v0.16b", "qqq"),
    "sha256h2": ("sha256h2 q0, q1, v2.4s; mov v3.16b, v0.16b", "qqq"),
    "sha256su0": ("sha256su0 v0.4s, v1.4s; mov v3.16b, v0.16b", "qq"),
    "sha256su1": ("sha256su1 v0.4s, v1.4s, v2.4s; mov v3.16b, v0.16b", "qqq"),
    "sm4e": ("sm4e v0.4s, v1.4s; mov v3.16b, v0.16b", "qq"),
    "sm4ekey": ("sm4ekey v3.4s, v0.4s, v1.4s", "qq"),
    "polynomial_multiply_64": ("pmull v3.1q, v0.1d, v1.1d", "dd"),
    "polynomial_multiply_long_8": ("pmull v3.8h, v0.8b, v1.8b", "dd"),
    "polynomial_multiply_8": ("pmul v3.8b, v0.8b, v1.8b", "dd"),
}
CRC = {
    f"{name}-{size}": (name, size, f"fmov x1, d1; {name}{letter} w1, w0, {'x1' if size == 64 else 'w1'}; fmov d3, x1")
    for name in ("crc32", "crc32c")
    for size, letter in ((8, "b"), (16, "h"), (32, "w"), (64, "x"))
}
ORACLE = tuple((name, text) for name, (text, _) in INSTRUCTIONS.items()) + tuple((name, text) for name, (_, _, text) in CRC.items())


@pytest.fixture(scope="module", params=["definition", "compiled"])
def functions(request: pytest.FixtureRequest) -> dict[str, Callable[..., Any]]:
    """The functions, by name, under CPython and through LLVM."""
    found = {name: getattr(crypto_sm4 if name.startswith("sm4") else crypto, name) for name in [*INSTRUCTIONS, "crc32", "crc32c"]}
    return found if request.param == "definition" else compile_functions(list(found.values()), optimize=2)


def number(result: int | tuple[int, int]) -> int:
    """A result as one number."""
    return result if isinstance(result, int) else result[0] | result[1] << 64


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_agree_with_the_emulator(name: str, functions: dict[str, Callable[..., Any]]) -> None:
    shape, rng = INSTRUCTIONS[name][1], random.Random(name)
    widths = [{"q": 128, "d": 64, "s": 32}[letter] for letter in shape]
    cases = [tuple(rng.getrandbits(width) for width in widths) for _ in range(300)]
    cases += [tuple(0 for _ in widths), tuple((1 << width) - 1 for width in widths)]
    answers = arm_oracle.oracle_for(ORACLE).run((name, 0, case) for case in cases)
    for case, (wanted, _) in zip(cases, answers, strict=True):
        words = [word for value, width in zip(case, widths) for word in ((value & MASK64, value >> 64) if width == 128 else (value,))]
        assert number(functions[name](*words)) == wanted, [hex(value) for value in case]


@pytest.mark.parametrize("name", CRC)
def test_checksums_agree_with_the_emulator(name: str, functions: dict[str, Callable[..., Any]]) -> None:
    function, size, _ = CRC[name]
    rng = random.Random(name)
    cases = [(rng.getrandbits(32), rng.getrandbits(size)) for _ in range(300)]
    answers = arm_oracle.oracle_for(ORACLE).run((name, 0, case) for case in cases)
    for (acc, value), (wanted, _) in zip(cases, answers, strict=True):
        assert functions[function](acc, value, size) == wanted, (hex(acc), hex(value))


def test_crc32_is_that_of_zlib(functions: dict[str, Callable[..., Any]]) -> None:
    data = bytes(range(256)) * 2
    crc = 0xFFFF_FFFF
    for (word,) in struct.iter_unpack("<Q", data):
        crc = functions["crc32"](crc, word, 64)
    assert crc ^ 0xFFFF_FFFF == zlib.crc32(data)


SHA256_START = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)


def sha256_constants() -> list[int]:
    """The round constants: fractional bits of the cube roots of the first 64 primes."""
    primes = [p for p in range(2, 312) if all(p % q for q in range(2, p))]
    constants = []
    for prime in primes:
        root, wide = 0, prime << 96
        for bit in reversed(range(36)):
            if (root | 1 << bit) ** 3 <= wide:
                root |= 1 << bit
        constants.append(root & 0xFFFF_FFFF)
    return constants


def pair(words: tuple[int, ...] | list[int]) -> tuple[int, int]:
    """Four words as the (low, high) halves of a register."""
    return words[0] | words[1] << 32, words[2] | words[3] << 32


def test_sha256_of_a_block_is_that_of_hashlib(functions: dict[str, Callable[..., Any]]) -> None:
    message = b"a guest inside a guest"
    block = message + b"\x80" + bytes(55 - len(message)) + struct.pack(">Q", 8 * len(message))
    schedule = [pair(struct.unpack_from(">4I", block, 16 * i)) for i in range(4)]
    for i in range(4, 16):
        half = functions["sha256su0"](*schedule[i - 4], *schedule[i - 3])
        schedule.append(functions["sha256su1"](*half, *schedule[i - 2], *schedule[i - 1]))
    constants = sha256_constants()
    x, y = pair(SHA256_START[:4]), pair(SHA256_START[4:])
    for i, words in enumerate(schedule):
        values = struct.unpack("<4I", struct.pack("<2Q", *words))
        added = pair([(value + constant) & 0xFFFF_FFFF for value, constant in zip(values, constants[4 * i : 4 * i + 4])])
        x, y = functions["sha256h"](*x, *y, *added), functions["sha256h2"](*y, *x, *added)
    words = struct.unpack("<8I", struct.pack("<4Q", *x, *y))
    digest = struct.pack(">8I", *((a + b) & 0xFFFF_FFFF for a, b in zip(words, SHA256_START)))
    assert digest == hashlib.sha256(message).digest()
