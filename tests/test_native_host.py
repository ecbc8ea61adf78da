"""Instructions of the host that stand for native functions: compiled with them, expressions give what the functions give."""

from __future__ import annotations

import random

import pytest
from expressions import Inputs

from trapline.arm64 import crypto
from trapline.bits import call, cat

PAIRS = ("aese", "aesd", "aesmc", "aesimc", "sha256h", "sha256h2", "sha256su0", "sha256su1")


@pytest.mark.parametrize("name", [*PAIRS, "polynomial_multiply_64"])
def test_pairs(name: str) -> None:
    inputs, function = Inputs(), getattr(crypto, name)
    if not function.host.available:
        pytest.skip(f"this host lacks {function.host.feature}")
    halves = [half for leaf in inputs.leaves for half in (leaf[63:0], leaf[127:64])]
    low, high = call(function, *halves[: len(function.params)])
    run = inputs.compile([cat(high, low)])
    rng = random.Random(name)
    for _ in range(200):
        values = [rng.getrandbits(128) for _ in range(3)]
        numbers = [half for v in values for half in (v & (1 << 64) - 1, v >> 64)]
        want = function(*numbers[: len(function.params)])
        assert run(0, values) == want[0] | want[1] << 64, [hex(v) for v in values]


def test_crc32c() -> None:
    if not crypto.crc32c.host.available:
        pytest.skip("this host lacks SSE4.2")
    inputs, rng = Inputs(), random.Random(1)
    sizes = (8, 16, 32, 64)
    run = inputs.compile([call(crypto.crc32c, inputs.leaves[0].trunc(32), inputs.leaves[1].trunc(s).zext(64), s) for s in sizes])
    for _ in range(200):
        values = [rng.getrandbits(128) for _ in range(3)]
        for k, size in enumerate(sizes):
            want = crypto.crc32c(values[0] & 0xFFFF_FFFF, values[1] & (1 << size) - 1, size)
            assert run(k, values) == want
