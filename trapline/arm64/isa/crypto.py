"""Cryptographic instructions: AES, SHA1, SHA256."""

from __future__ import annotations

from typing import Any

from trapline.arm64 import crypto
from trapline.arm64.insn import insn
from trapline.arm64.isa.simd_common import each
from trapline.bits import Bits, call, cat


def halves(cpu: Any, register: Any) -> tuple[Bits, Bits]:
    """A vector register as (low, high)."""
    value = cpu.V(register)
    return value[63:0], value[127:64]


def set_halves(cpu: Any, register: Any, result: tuple[Bits, Bits]) -> None:
    """Write a (low, high) pair to a vector register."""
    cpu.set_V(register, cat(result[1], result[0]))


_TWO = "{} 00 10100 <> 10 Rn:5 Rd:5"
_AES, _SHA = _TWO.format("01001110"), _TWO.format("01011110")
_SHA3 = "01011110 000 Rm:5 0 <> 00 Rn:5 Rd:5"


@each(
    [("aese", "00100", crypto.aese), ("aesd", "00101", crypto.aesd)],
    _AES,
    asm="$ v{Rd}.16b, v{Rn}.16b",
    feature="FEAT_AES",
)
def aes_round(cpu, i, function):
    """one round of AES without the mixing of columns."""
    set_halves(cpu, i.Rd, call(function, *halves(cpu, i.Rd), *halves(cpu, i.Rn)))


@each(
    [("aesmc", "00110", crypto.aesmc), ("aesimc", "00111", crypto.aesimc)],
    _AES,
    asm="$ v{Rd}.16b, v{Rn}.16b",
    feature="FEAT_AES",
)
def aes_mix_columns(cpu, i, function):
    """mixing of columns."""
    set_halves(cpu, i.Rd, call(function, *halves(cpu, i.Rn)))


@each(
    [("sha1c", "000", crypto.sha1c), ("sha1p", "001", crypto.sha1p), ("sha1m", "010", crypto.sha1m)],
    _SHA3,
    asm="$ q{Rd}, s{Rn}, v{Rm}.4s",
    feature="FEAT_SHA1",
)
def sha1_hash(cpu, i, function):
    """four rounds of SHA1."""
    set_halves(cpu, i.Rd, call(function, *halves(cpu, i.Rd), cpu.V(i.Rn, 32), *halves(cpu, i.Rm)))


@each([("sha1su0", "011", crypto.sha1su0)], _SHA3, asm="$ v{Rd}.4s, v{Rn}.4s, v{Rm}.4s", feature="FEAT_SHA1")
@each([("sha256su1", "110", crypto.sha256su1)], _SHA3, asm="$ v{Rd}.4s, v{Rn}.4s, v{Rm}.4s", feature="FEAT_SHA256")
@each(
    [("sha256h", "100", crypto.sha256h), ("sha256h2", "101", crypto.sha256h2)],
    _SHA3,
    asm="$ q{Rd}, q{Rn}, v{Rm}.4s",
    feature="FEAT_SHA256",
)
def sha_three(cpu, i, function):
    """SHA1 and SHA256 functions of three vectors."""
    set_halves(cpu, i.Rd, call(function, *halves(cpu, i.Rd), *halves(cpu, i.Rn), *halves(cpu, i.Rm)))


@each([("sha1su1", "00001", crypto.sha1su1)], _SHA, asm="$ v{Rd}.4s, v{Rn}.4s", feature="FEAT_SHA1")
@each([("sha256su0", "00010", crypto.sha256su0)], _SHA, asm="$ v{Rd}.4s, v{Rn}.4s", feature="FEAT_SHA256")
def sha_two(cpu, i, function):
    """SHA1 and SHA256 message schedule functions of two vectors."""
    set_halves(cpu, i.Rd, call(function, *halves(cpu, i.Rd), *halves(cpu, i.Rn)))


@insn("01011110 00 10100 00000 10 Rn:5 Rd:5", asm="sha1h s{Rd}, s{Rn}", feature="FEAT_SHA1")
def sha1_rotate(cpu, i):
    """SHA1H."""
    cpu.set_V(i.Rd, call(crypto.sha1h, cpu.V(i.Rn, 32)))
