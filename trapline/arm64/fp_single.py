"""Single precision: the functions of fp_arith, fp_convert and fp_estimate at 32 bits (see fp for the index)."""

from __future__ import annotations

from trapline.arm64 import fp_arith, fp_convert, fp_estimate
from trapline.arm64.fp_host import functions
from trapline.bits.native import native, u1, u32, u64

host = functions(u32, 32)


@native
def fp_add_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPAdd."""
    fast, flags, ok = host.add(a, b, fpcr)
    if ok:
        return fast, flags
    result, flags = fp_arith.fp_add(32, u64(a), u64(b), 0, fpcr)
    return u32(result), flags


@native
def fp_sub_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPSub."""
    fast, flags, ok = host.add(a, b ^ 0x8000_0000, fpcr)
    if ok:
        return fast, flags
    result, flags = fp_arith.fp_add(32, u64(a), u64(b), 1, fpcr)
    return u32(result), flags


@native
def fp_mul_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPMul."""
    fast, flags, ok = host.mul(a, b, fpcr)
    if ok:
        return fast, flags
    result, flags = fp_arith.fp_mul(32, u64(a), u64(b), 0, fpcr)
    return u32(result), flags


@native
def fp_mulx_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPMulX."""
    result, flags = fp_arith.fp_mul(32, u64(a), u64(b), 1, fpcr)
    return u32(result), flags


@native
def fp_div_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPDiv."""
    fast, flags, ok = host.div(a, b, fpcr)
    if ok:
        return fast, flags
    result, flags = fp_arith.fp_div(32, u64(a), u64(b), fpcr)
    return u32(result), flags


@native
def fp_max_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPMax."""
    result, flags = fp_arith.fp_maximum(32, u64(a), u64(b), 0, 0, fpcr)
    return u32(result), flags


@native
def fp_min_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPMin."""
    result, flags = fp_arith.fp_maximum(32, u64(a), u64(b), 1, 0, fpcr)
    return u32(result), flags


@native
def fp_maxnm_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPMaxNum."""
    result, flags = fp_arith.fp_maximum(32, u64(a), u64(b), 0, 1, fpcr)
    return u32(result), flags


@native
def fp_minnm_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPMinNum."""
    result, flags = fp_arith.fp_maximum(32, u64(a), u64(b), 1, 1, fpcr)
    return u32(result), flags


@native
def fp_recip_step_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPRecipStepFused."""
    result, flags = fp_arith.fp_recip_step(32, u64(a), u64(b), fpcr)
    return u32(result), flags


@native
def fp_rsqrt_step_32(a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPRSqrtStepFused."""
    result, flags = fp_arith.fp_rsqrt_step(32, u64(a), u64(b), fpcr)
    return u32(result), flags


@native
def fp_muladd_32(addend: u32, a: u32, b: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPMulAdd: addend + a * b."""
    fast, flags, ok = host.muladd(addend, a, b, fpcr)
    if ok:
        return fast, flags
    result, flags = fp_arith.fp_muladd(32, u64(addend), u64(a), u64(b), 0, fpcr)
    return u32(result), flags


@native
def fp_sqrt_32(a: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPSqrt."""
    fast, flags, ok = host.sqrt(a, fpcr)
    if ok:
        return fast, flags
    result, flags = fp_arith.fp_sqrt(32, u64(a), fpcr)
    return u32(result), flags


@native
def fp_recip_estimate_32(a: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPRecipEstimate."""
    result, flags = fp_estimate.fp_recip_estimate(32, u64(a), fpcr)
    return u32(result), flags


@native
def fp_rsqrt_estimate_32(a: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPRSqrtEstimate."""
    result, flags = fp_estimate.fp_rsqrt_estimate(32, u64(a), fpcr)
    return u32(result), flags


@native
def fp_recpx_32(a: u32, fpcr: u32) -> tuple[u32, u32]:
    """FPRecpX."""
    result, flags = fp_estimate.fp_recpx(32, u64(a), fpcr)
    return u32(result), flags


@native
def fp_compare_32(a: u32, b: u32, signal: u1, fpcr: u32) -> tuple[u32, u32]:
    """FPCompare: NZCV in bits 3..0."""
    return fp_arith.fp_compare(32, u64(a), u64(b), signal, fpcr)


@native
def fp_compare_eq_32(a: u32, b: u32, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareEQ."""
    return fp_arith.fp_compare_eq(32, u64(a), u64(b), fpcr)


@native
def fp_compare_ge_32(a: u32, b: u32, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareGE."""
    return fp_arith.fp_compare_ge(32, u64(a), u64(b), fpcr)


@native
def fp_compare_gt_32(a: u32, b: u32, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareGT."""
    return fp_arith.fp_compare_gt(32, u64(a), u64(b), fpcr)


@native
def fp_round_int_32(a: u32, mode: u32, exact: u1, fpcr: u32) -> tuple[u32, u32]:
    """FPRoundInt."""
    result, flags = fp_convert.fp_round_int(32, u64(a), mode, exact, fpcr)
    return u32(result), flags


@native
def fp_to_fixed_32(a: u32, size: u32, unsigned: u1, fbits: u32, mode: u32, fpcr: u32) -> tuple[u64, u32]:
    """FPToFixed, to an integer of `size` bits."""
    return fp_convert.fp_to_fixed(32, u64(a), size, unsigned, fbits, mode, fpcr)


@native
def fixed_to_fp_32(value: u64, unsigned: u1, fbits: u32, fpcr: u32) -> tuple[u32, u32]:
    """FixedToFP; `value` is extended to 64 bits."""
    result, flags = fp_convert.fixed_to_fp(32, value, unsigned, fbits, fpcr)
    return u32(result), flags
