"""Half precision: the functions of fp_arith, fp_convert and fp_estimate at 16 bits (see fp for the index)."""

from __future__ import annotations

from trapline.arm64 import fp_arith, fp_convert, fp_estimate
from trapline.arm64.fp_core import INFINITY, ZERO, bias, fp_infinity, fp_unpack, fp_zero, fraction_bits, sign_of
from trapline.bits.native import native, u1, u16, u32, u64


@native
def fp_add_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPAdd."""
    result, flags = fp_arith.fp_add(16, u64(a), u64(b), 0, fpcr)
    return u16(result), flags


@native
def fp_sub_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPSub."""
    result, flags = fp_arith.fp_add(16, u64(a), u64(b), 1, fpcr)
    return u16(result), flags


@native
def fp_mul_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPMul."""
    result, flags = fp_arith.fp_mul(16, u64(a), u64(b), 0, fpcr)
    return u16(result), flags


@native
def fp_mulx_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPMulX."""
    result, flags = fp_arith.fp_mul(16, u64(a), u64(b), 1, fpcr)
    return u16(result), flags


@native
def fp_div_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPDiv."""
    result, flags = fp_arith.fp_div(16, u64(a), u64(b), fpcr)
    return u16(result), flags


@native
def fp_max_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPMax."""
    result, flags = fp_arith.fp_maximum(16, u64(a), u64(b), 0, 0, fpcr)
    return u16(result), flags


@native
def fp_min_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPMin."""
    result, flags = fp_arith.fp_maximum(16, u64(a), u64(b), 1, 0, fpcr)
    return u16(result), flags


@native
def fp_maxnm_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPMaxNum."""
    result, flags = fp_arith.fp_maximum(16, u64(a), u64(b), 0, 1, fpcr)
    return u16(result), flags


@native
def fp_minnm_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPMinNum."""
    result, flags = fp_arith.fp_maximum(16, u64(a), u64(b), 1, 1, fpcr)
    return u16(result), flags


@native
def fp_recip_step_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPRecipStepFused."""
    result, flags = fp_arith.fp_recip_step(16, u64(a), u64(b), fpcr)
    return u16(result), flags


@native
def fp_rsqrt_step_16(a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPRSqrtStepFused."""
    result, flags = fp_arith.fp_rsqrt_step(16, u64(a), u64(b), fpcr)
    return u16(result), flags


@native
def fp_muladd_16(addend: u16, a: u16, b: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPMulAdd: addend + a * b."""
    result, flags = fp_arith.fp_muladd(16, u64(addend), u64(a), u64(b), 0, fpcr)
    return u16(result), flags


@native
def fp_sqrt_16(a: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPSqrt."""
    result, flags = fp_arith.fp_sqrt(16, u64(a), fpcr)
    return u16(result), flags


@native
def fp_recip_estimate_16(a: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPRecipEstimate."""
    result, flags = fp_estimate.fp_recip_estimate(16, u64(a), fpcr)
    return u16(result), flags


@native
def fp_rsqrt_estimate_16(a: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPRSqrtEstimate."""
    result, flags = fp_estimate.fp_rsqrt_estimate(16, u64(a), fpcr)
    return u16(result), flags


@native
def fp_recpx_16(a: u16, fpcr: u32) -> tuple[u16, u32]:
    """FPRecpX."""
    result, flags = fp_estimate.fp_recpx(16, u64(a), fpcr)
    return u16(result), flags


@native
def fp_compare_16(a: u16, b: u16, signal: u1, fpcr: u32) -> tuple[u32, u32]:
    """FPCompare: NZCV in bits 3..0."""
    return fp_arith.fp_compare(16, u64(a), u64(b), signal, fpcr)


@native
def fp_compare_eq_16(a: u16, b: u16, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareEQ."""
    return fp_arith.fp_compare_eq(16, u64(a), u64(b), fpcr)


@native
def fp_compare_ge_16(a: u16, b: u16, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareGE."""
    return fp_arith.fp_compare_ge(16, u64(a), u64(b), fpcr)


@native
def fp_compare_gt_16(a: u16, b: u16, fpcr: u32) -> tuple[u1, u32]:
    """FPCompareGT."""
    return fp_arith.fp_compare_gt(16, u64(a), u64(b), fpcr)


@native
def fp_round_int_16(a: u16, mode: u32, exact: u1, fpcr: u32) -> tuple[u16, u32]:
    """FPRoundInt."""
    result, flags = fp_convert.fp_round_int(16, u64(a), mode, exact, fpcr)
    return u16(result), flags


@native
def fp_to_fixed_16(a: u16, size: u32, unsigned: u1, fbits: u32, mode: u32, fpcr: u32) -> tuple[u64, u32]:
    """FPToFixed, to an integer of `size` bits."""
    return fp_convert.fp_to_fixed(16, u64(a), size, unsigned, fbits, mode, fpcr)


@native
def fixed_to_fp_16(value: u64, unsigned: u1, fbits: u32, fpcr: u32) -> tuple[u16, u32]:
    """FixedToFP; `value` is extended to 64 bits."""
    result, flags = fp_convert.fixed_to_fp(16, value, unsigned, fbits, fpcr)
    return u16(result), flags


@native
def fp_half_to_single(a: u16, fpcr: u32) -> u32:
    """An operand of FPMulAddH in single precision: exact, and NaNs keep their kind; FZ16 flushes denormals, without a flag."""
    sign = sign_of(16, u64(a))
    kind, exponent, significand, _ = fp_unpack(16, u64(a), fpcr)
    if kind == ZERO:
        return u32(fp_zero(32, sign))
    if kind >= INFINITY:
        payload = u64(a) << (64 - fraction_bits(16))
        return u32(fp_infinity(32, sign) | (payload >> (64 - fraction_bits(32))))
    fraction = (significand << 1) >> (64 - fraction_bits(32))
    return u32(fp_zero(32, sign) | (u64(exponent + bias(32)) << fraction_bits(32)) | fraction)
