"""Floating point of A64: constants, and the index of the functions.

The functions are `@native` and pure.  Operands and results are bit patterns; `fpcr` is FPCR[31:0]; every result
that can raise exceptions comes with the FPSR bits to accumulate (IOC, DZC, OFC, UFC, IXC, IDC: see below).
Bit 4 of `fpcr`, which FPCR itself does not use, may repeat FPSR.IXC: FPCR | FPSR & IXC.  When set, "inexact" need not be
reported again, and ordinary results in the default rounding mode come from the host's own arithmetic, many times faster.
`w` is 16, 32 or 64, `uw` the unsigned type of that width.  Negation and absolute value are plain bit operations and
are the caller's (FMSUB negates an operand of FMADD, FNMUL the result of FMUL, FABD takes the absolute value of FSUB).

fp_half, fp_single, fp_double (one module per width w), by the manual's name:
  FPAdd, FPSub, FPMul, FPMulX, FPDiv     fp_add_w fp_sub_w fp_mul_w fp_mulx_w fp_div_w (a: uw, b: uw, fpcr: u32) -> tuple[uw, u32]
  FPMax, FPMin, FPMaxNum, FPMinNum       fp_max_w fp_min_w fp_maxnm_w fp_minnm_w       (a: uw, b: uw, fpcr: u32) -> tuple[uw, u32]
  FPRecipStepFused, FPRSqrtStepFused     fp_recip_step_w fp_rsqrt_step_w               (a: uw, b: uw, fpcr: u32) -> tuple[uw, u32]
  FPMulAdd                               fp_muladd_w (addend: uw, a: uw, b: uw, fpcr: u32) -> tuple[uw, u32]
  FPSqrt, FPRecipEstimate, FPRSqrtEstimate, FPRecpX
                                         fp_sqrt_w fp_recip_estimate_w fp_rsqrt_estimate_w fp_recpx_w (a: uw, fpcr: u32) -> tuple[uw, u32]
  FPCompare                              fp_compare_w (a: uw, b: uw, signal: u1, fpcr: u32) -> tuple[u32, u32]    NZCV in bits 3..0
  FPCompareEQ, FPCompareGE, FPCompareGT  fp_compare_eq_w fp_compare_ge_w fp_compare_gt_w (a: uw, b: uw, fpcr: u32) -> tuple[u1, u32]
  FPRoundInt                             fp_round_int_w (a: uw, mode: u32, exact: u1, fpcr: u32) -> tuple[uw, u32]
  FPToFixed                              fp_to_fixed_w (a: uw, size: u32, unsigned: u1, fbits: u32, mode: u32, fpcr: u32) -> tuple[u64, u32]
                                           size is the width of the integer, 16, 32 or 64; the result is zero above it
  FixedToFP                              fixed_to_fp_w (value: u64, unsigned: u1, fbits: u32, fpcr: u32) -> tuple[uw, u32]
                                           value is the integer, already sign- or zero-extended to 64 bits
fp_convert:
  FPConvert      fp_convert_16_32 fp_convert_16_64 fp_convert_32_16 fp_convert_32_64 fp_convert_64_16 fp_convert_64_32
                 (from w1 to w2)         (a: uw1, fpcr: u32) -> tuple[uw2, u32]
  FPConvert with FPRounding_ODD (FCVTXN) fp_convert_odd_64_32 (a: u64, fpcr: u32) -> tuple[u32, u32]
fp_estimate:
  UnsignedRecipEstimate, UnsignedRSqrtEstimate   unsigned_recip_estimate unsigned_rsqrt_estimate (a: u32) -> u32

`mode` is one of the ROUND_ constants below: ROUND_FPCR for FRINTI and FRINTX, otherwise the instruction's own.
"""

# FPRounding of the manual; the first four are the encodings of FPCR.RMode.
ROUND_TIEEVEN, ROUND_POSINF, ROUND_NEGINF, ROUND_ZERO, ROUND_TIEAWAY, ROUND_ODD, ROUND_FPCR = range(7)

# Cumulative exception bits of FPSR.
IOC = 1 << 0
DZC = 1 << 1
OFC = 1 << 2
UFC = 1 << 3
IXC = 1 << 4
IDC = 1 << 7

# Control bits of FPCR.
RMODE = 3 << 22
FZ16 = 1 << 19
RMODE_SHIFT = 22
FZ = 1 << 24
DN = 1 << 25
AHP = 1 << 26
