"""Rounding to integers that another type can hold (FEAT_FRINTTS), and JavaScript's conversion (FEAT_JSCVT)."""

from __future__ import annotations

from trapline.arm64.fp import ROUND_FPCR, ROUND_ZERO
from trapline.arm64.fp_integral import fp_round_int_n_32, fp_round_int_n_64, fp_to_fixed_js
from trapline.arm64.insn import insn
from trapline.arm64.isa.fp_scalar import LETTER, single_or_double, width_of
from trapline.arm64.isa.simd_common import FP_ARRANGEMENT, Fp, each, esize_of, no_1d_fp, vector_width
from trapline.arm64.isa.simd_fp import Unary, apply_unary
from trapline.bits import const

ROUND = {32: fp_round_int_n_32, 64: fp_round_int_n_64}
"""FPRoundIntN by operand width."""


def rounded(size: int, mode: int) -> Unary:
    """The operation of a row: round into the range of `size` bits."""
    return lambda fp, a: fp.apply(ROUND[esize_of(a)], a, size, mode)


SCALAR = (
    ("frint32z", "010000", rounded(32, ROUND_ZERO)),
    ("frint32x", "010001", rounded(32, ROUND_FPCR)),
    ("frint64z", "010010", rounded(64, ROUND_ZERO)),
    ("frint64x", "010011", rounded(64, ROUND_FPCR)),
)
_VECTOR_BITS = {"frint32z": "0 0 11110", "frint32x": "1 0 11110", "frint64z": "0 0 11111", "frint64x": "1 0 11111"}


@each(
    SCALAR,
    "00011110 ftype:2 1 <> 10000 Rn:5 Rd:5",
    asm=f"$ {LETTER}{{Rd}}, {LETTER}{{Rn}}",
    where=single_or_double,
    feature="FEAT_FRINTTS",
)
def fp_round_to_size(cpu, i, operation):
    """a floating-point number rounded into the range of an integer."""
    apply_unary(cpu, i, width_of(i), width_of(i), operation)


@each(
    [(mnemonic, _VECTOR_BITS[mnemonic], operation) for mnemonic, _, operation in SCALAR],
    "0 Q:1 <> 01110 <> sz:1 10000 <> 10 Rn:5 Rd:5",
    asm=f"$ v{{Rd}}.{FP_ARRANGEMENT}, v{{Rn}}.{FP_ARRANGEMENT}",
    where=no_1d_fp,
    feature="FEAT_FRINTTS",
)
def fp_round_to_size_vector(cpu, i, operation):
    """floating-point numbers rounded into the range of an integer."""
    apply_unary(cpu, i, vector_width(i), 32 << i.sz, operation)


@insn("00011110 01 1 11 110 000000 Rn:5 Rd:5", asm="fjcvtzs {Rd:W}, d{Rn}", feature="FEAT_JSCVT")
def fp_javascript_convert(cpu, i):
    """FJCVTZS: modulo 2^32; Z says that the result is exact."""
    with Fp(cpu) as fp:
        result = fp.apply(fp_to_fixed_js, cpu.V(i.Rn, 64))
    cpu.set_X(i.Rd, result.trunc(32))
    zero = const(0, 1)
    cpu.flags(zero, result[32], zero, zero)
