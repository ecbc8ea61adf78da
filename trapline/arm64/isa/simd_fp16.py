"""Advanced SIMD half-precision floating point (FEAT_FP16): the rows of simd_fp under encodings of their own."""

from __future__ import annotations

from trapline.arm64.isa.simd_common import each, vector_width
from trapline.arm64.isa.simd_fp import (
    BOTH,
    COMPARE_ZERO,
    CONVERT,
    UNARY_SCALAR,
    UNARY_VECTOR,
    VECTOR_ONLY,
    Operation,
    Unary,
    apply_three,
    apply_unary,
)

_THREE = "<> 10 Rm:5 00 <> 1 Rn:5 Rd:5"
_TWO = "<> 111100 <> 10 Rn:5 Rd:5"
_VECTORS = "v{Rd}.{Q:4h|8h}, v{Rn}.{Q:4h|8h}"
FEATURE = "FEAT_FP16"


@each(BOTH + VECTOR_ONLY, f"0 Q:1 <> 01110 {_THREE}", asm=f"$ {_VECTORS}, v{{Rm}}.{{Q:4h|8h}}", feature=FEATURE)
def half_three_same(cpu, i, operation: Operation):
    """vectors of half-precision numbers, element by element."""
    apply_three(cpu, i, vector_width(i), 16, operation)


@each(BOTH, f"01 <> 11110 {_THREE}", asm="$ h{Rd}, h{Rn}, h{Rm}", feature=FEATURE)
def half_scalar_three_same(cpu, i, operation: Operation):
    """half-precision numbers in SIMD&FP registers."""
    apply_three(cpu, i, 16, 16, operation)


@each(CONVERT + UNARY_VECTOR, f"0 Q:1 <> 01110 {_TWO}", asm=f"$ {_VECTORS}", feature=FEATURE)
def half_two_misc(cpu, i, operation: Unary):
    """one vector of half-precision numbers, element by element."""
    apply_unary(cpu, i, vector_width(i), 16, operation)


@each(COMPARE_ZERO, f"0 Q:1 <> 01110 {_TWO}", asm=f"$ {_VECTORS}, #0.0", feature=FEATURE)
def half_compare_zero_vector(cpu, i, operation: Unary):
    """half-precision elements against zero."""
    apply_unary(cpu, i, vector_width(i), 16, operation)


@each(CONVERT + UNARY_SCALAR, f"01 <> 11110 {_TWO}", asm="$ h{Rd}, h{Rn}", feature=FEATURE)
def half_scalar_two_misc(cpu, i, operation: Unary):
    """one half-precision number in a SIMD&FP register."""
    apply_unary(cpu, i, 16, 16, operation)


@each(COMPARE_ZERO, f"01 <> 11110 {_TWO}", asm="$ h{Rd}, h{Rn}, #0.0", feature=FEATURE)
def half_scalar_compare_zero(cpu, i, operation: Unary):
    """a half-precision number against zero."""
    apply_unary(cpu, i, 16, 16, operation)
