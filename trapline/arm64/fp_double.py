"""Double precision: the functions of fp_arith, fp_convert and fp_estimate at 64 bits (see fp for the index)."""

from __future__ import annotations

from trapline.arm64 import fp_arith, fp_convert, fp_estimate
from trapline.arm64.fp_host import functions
from trapline.bits.native import native, u1, u32, u64

host = functions(u64, 64)


@native
def fp_add_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPAdd."""
    fast, flags, ok = host.add(a, b, fpcr)
    if ok:
        return fast, flags
    return fp_arith.fp_add(64, a, b, 0, fpcr)


@native
def fp_sub_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPSub."""
    fast, flags, ok = host.add(a, b ^ 0x8000_0000_0000_0000, fpcr)
    if ok:
        return fast, flags
    return fp_arith.fp_add(64, a, b, 1, fpcr)


@native
def fp_mul_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPMul."""
    fast, flags, ok = host.mul(a, b, fpcr)
    if ok:
        return fast, flags
    return fp_arith.fp_mul(64, a, b, 0, fpcr)


@native
def fp_mulx_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPMulX."""
    return fp_arith.fp_mul(64, a, b, 1, fpcr)


@native
def fp_div_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPDiv."""
    fast, flags, ok = host.div(a, b, fpcr)
    if ok:
        return fast, flags
    return fp_arith.fp_div(64, a, b, fpcr)


@native
def fp_max_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPMax."""
    return fp_arith.fp_maximum(64, a, b, 0, 0, fpcr)


@native
def fp_min_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPMin."""
    return fp_arith.fp_maximum(64, a, b, 1, 0, fpcr)


@native
def fp_maxnm_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPMaxNum."""
    return fp_arith.fp_maximum(64, a, b, 0, 1, fpcr)


@native
def fp_minnm_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPMinNum."""
    return fp_arith.fp_maximum(64, a, b, 1, 1, fpcr)


@native
def fp_recip_step_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRecipStepFused."""
    return fp_arith.fp_recip_step(64, a, b, fpcr)


@native
def fp_rsqrt_step_64(a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRSqrtStepFused."""
    return fp_arith.fp_rsqrt_step(64, a, b, fpcr)


@native
def fp_muladd_64(addend: u64, a: u64, b: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPMulAdd: addend + a * b."""
    fast, flags, ok = host.muladd(addend, a, b, fpcr)
    if ok:
        return fast, flags
    return fp_arith.fp_muladd(64, addend, a, b, 0, fpcr)


@native
def fp_sqrt_64(a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPSqrt."""
    fast, flags, ok = host.sqrt(a, fpcr)
    if ok:
        return fast, flags
    return fp_arith.fp_sqrt(64, a, fpcr)


@native
def fp_recip_estimate_64(a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRecipEstimate."""
    return fp_estimate.fp_recip_estimate(64, a, fpcr)


@native
def fp_rsqrt_estimate_64(a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRSqrtEstimate."""
    return fp_estimate.fp_rsqrt_estimate(64, a, fpcr)


@native
def fp_recpx_64(a: u64, fpcr: u32) -> tuple[u64, u32]:
    """FPRecpX."""
    return fp_estimate.fp_recpx(64, a, fpcr)


@native
def fp_compare_64(a: u64, b: u64, signal: u1, fpcr: u32) -> tuple[u32, u32]:
    """FPCompare: NZCV in bits 3..0."""
    return fp_arith.fp_compare(64, a, b, signal, fpcr)


@native
def fp_compare_eq_64(a: u64, b: u64, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareEQ."""
    return fp_arith.fp_compare_eq(64, a, b, fpcr)


@native
def fp_compare_ge_64(a: u64, b: u64, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareGE."""
    return fp_arith.fp_compare_ge(64, a, b, fpcr)


@native
def fp_compare_gt_64(a: u64, b: u64, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareGT."""
    return fp_arith.fp_compare_gt(64, a, b, fpcr)


@native
def fp_round_int_64(a: u64, mode: u32, exact: u1, fpcr: u32) -> tuple[u64, u32]:
    """FPRoundInt."""
    return fp_convert.fp_round_int(64, a, mode, exact, fpcr)


@native
def fp_to_fixed_64(a: u64, size: u32, unsigned: u1, fbits: u32, mode: u32, fpcr: u32) -> tuple[u64, u32]:
    """FPToFixed, to an integer of `size` bits."""
    return fp_convert.fp_to_fixed(64, a, size, unsigned, fbits, mode, fpcr)


@native
def fixed_to_fp_64(value: u64, unsigned: u1, fbits: u32, fpcr: u32) -> tuple[u64, u32]:
    """FixedToFP; `value` is extended to 64 bits."""
    return fp_convert.fixed_to_fp(64, value, unsigned, fbits, fpcr)
