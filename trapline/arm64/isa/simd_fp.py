"""Advanced SIMD floating point: three same, two-register miscellaneous, conversions; vector and scalar forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapline.arm64.fp import ROUND_FPCR, ROUND_NEGINF, ROUND_POSINF, ROUND_TIEAWAY, ROUND_TIEEVEN, ROUND_ZERO
from trapline.arm64.fp_convert import fp_convert_odd_64_32
from trapline.arm64.fp_estimate import unsigned_recip_estimate, unsigned_rsqrt_estimate
from trapline.arm64.insn import insn
from trapline.arm64.isa.simd_common import (
    FP_ARRANGEMENT,
    Fp,
    each,
    evens,
    half,
    magnitude,
    negated,
    no_1d_fp,
    odds,
    set_half,
    vector_width,
)
from trapline.bits import Vec, call, cat

Operation = Callable[[Fp, Vec, Vec, Vec], Vec]
"""`(fp, d, n, m) -> result`, with the old destination `d` for those that accumulate."""


def lanewise(name: str) -> Operation:
    """An operation that is one function of the floating-point modules."""
    return lambda fp, d, n, m: fp.lanes(name, n, m)


def pairwise(name: str) -> Operation:
    """The function on adjacent elements of m:n."""

    def operation(fp: Fp, d: Vec, n: Vec, m: Vec) -> Vec:
        both = cat(m.bits, n.bits).lanes(n.esize)
        return fp.lanes(name, evens(both), odds(both))

    return operation


BOTH = (
    ("fmulx", "0 0 011", lanewise("fp_mulx")),
    ("frecps", "0 0 111", lanewise("fp_recip_step")),
    ("frsqrts", "0 1 111", lanewise("fp_rsqrt_step")),
    ("fabd", "1 1 010", lambda fp, d, n, m: magnitude(fp.lanes("fp_sub", n, m))),
    ("fcmeq", "0 0 100", lambda fp, d, n, m: fp.compare("fp_compare_eq", n, m)),
    ("fcmge", "1 0 100", lambda fp, d, n, m: fp.compare("fp_compare_ge", n, m)),
    ("fcmgt", "1 1 100", lambda fp, d, n, m: fp.compare("fp_compare_gt", n, m)),
    ("facge", "1 0 101", lambda fp, d, n, m: fp.compare("fp_compare_ge", magnitude(n), magnitude(m))),
    ("facgt", "1 1 101", lambda fp, d, n, m: fp.compare("fp_compare_gt", magnitude(n), magnitude(m))),
)
"""Rows that exist as vectors and as scalars."""

VECTOR_ONLY = (
    ("fmaxnm", "0 0 000", lanewise("fp_maxnm")),
    ("fmla", "0 0 001", lambda fp, d, n, m: fp.lanes("fp_muladd", d, n, m)),
    ("fadd", "0 0 010", lanewise("fp_add")),
    ("fmax", "0 0 110", lanewise("fp_max")),
    ("fminnm", "0 1 000", lanewise("fp_minnm")),
    ("fmls", "0 1 001", lambda fp, d, n, m: fp.lanes("fp_muladd", d, negated(n), m)),
    ("fsub", "0 1 010", lanewise("fp_sub")),
    ("fmin", "0 1 110", lanewise("fp_min")),
    ("fmaxnmp", "1 0 000", pairwise("fp_maxnm")),
    ("faddp", "1 0 010", pairwise("fp_add")),
    ("fmul", "1 0 011", lanewise("fp_mul")),
    ("fmaxp", "1 0 110", pairwise("fp_max")),
    ("fdiv", "1 0 111", lanewise("fp_div")),
    ("fminnmp", "1 1 000", pairwise("fp_minnm")),
    ("fminp", "1 1 110", pairwise("fp_min")),
)



def apply_three(cpu: Any, i: Any, width: int, esize: int, operation: Operation) -> None:
    """A row's operation on the low `width` bits of Rd, Rn and Rm."""
    d, n, m = (cpu.V(r, width).lanes(esize) for r in (i.Rd, i.Rn, i.Rm))
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, operation(fp, d, n, m))


_VECTORS = f"v{{Rd}}.{FP_ARRANGEMENT}, v{{Rn}}.{FP_ARRANGEMENT}"


@each(
    BOTH + VECTOR_ONLY,
    "0 Q:1 <> 01110 <> sz:1 1 Rm:5 11 <> 1 Rn:5 Rd:5",
    asm=f"$ {_VECTORS}, v{{Rm}}.{FP_ARRANGEMENT}",
    where=no_1d_fp,
)
def fp_three_same(cpu, i, operation: Operation):
    """vectors of floating-point numbers, element by element."""
    apply_three(cpu, i, vector_width(i), 32 << i.sz, operation)


@each(BOTH, "01 <> 11110 <> sz:1 1 Rm:5 11 <> 1 Rn:5 Rd:5", asm="$ {sz:s|d}{Rd}, {sz:s|d}{Rn}, {sz:s|d}{Rm}")
def fp_scalar_three_same(cpu, i, operation: Operation):
    """floating-point numbers in SIMD&FP registers."""
    apply_three(cpu, i, 32 << i.sz, 32 << i.sz, operation)


# -- two registers -----------------------------------------------------------------------------------------------------------
Unary = Callable[[Fp, Vec], Vec]


def to_integer(unsigned: int, mode: int) -> Unary:
    """Conversion to an integer of the same width."""
    return lambda fp, a: fp.to_fixed(a, a.esize, unsigned, mode)


def against_zero(name: str, zero_first: bool = False) -> Unary:
    """A comparison with +0.0, or of +0.0 with the element."""
    return lambda fp, a: fp.compare(name, a.like(0), a) if zero_first else fp.compare(name, a, a.like(0))


CONVERT = (
    ("fcvtns", "0 0 11010", to_integer(0, ROUND_TIEEVEN)),
    ("fcvtnu", "1 0 11010", to_integer(1, ROUND_TIEEVEN)),
    ("fcvtms", "0 0 11011", to_integer(0, ROUND_NEGINF)),
    ("fcvtmu", "1 0 11011", to_integer(1, ROUND_NEGINF)),
    ("fcvtas", "0 0 11100", to_integer(0, ROUND_TIEAWAY)),
    ("fcvtau", "1 0 11100", to_integer(1, ROUND_TIEAWAY)),
    ("scvtf", "0 0 11101", lambda fp, a: fp.from_fixed(a.esize, a, 0)),
    ("ucvtf", "1 0 11101", lambda fp, a: fp.from_fixed(a.esize, a, 1)),
    ("fcvtps", "0 1 11010", to_integer(0, ROUND_POSINF)),
    ("fcvtpu", "1 1 11010", to_integer(1, ROUND_POSINF)),
    ("fcvtzs", "0 1 11011", to_integer(0, ROUND_ZERO)),
    ("fcvtzu", "1 1 11011", to_integer(1, ROUND_ZERO)),
    ("frecpe", "0 1 11101", lambda fp, a: fp("fp_recip_estimate", a)),
    ("frsqrte", "1 1 11101", lambda fp, a: fp("fp_rsqrt_estimate", a)),
)
"""Rows that exist as vectors and as scalars."""

UNARY_VECTOR = (
    ("frintn", "0 0 11000", lambda fp, a: fp.round_int(a, ROUND_TIEEVEN)),
    ("frinta", "1 0 11000", lambda fp, a: fp.round_int(a, ROUND_TIEAWAY)),
    ("frintp", "0 1 11000", lambda fp, a: fp.round_int(a, ROUND_POSINF)),
    ("frintm", "0 0 11001", lambda fp, a: fp.round_int(a, ROUND_NEGINF)),
    ("frintx", "1 0 11001", lambda fp, a: fp.round_int(a, ROUND_FPCR, 1)),
    ("frintz", "0 1 11001", lambda fp, a: fp.round_int(a, ROUND_ZERO)),
    ("frinti", "1 1 11001", lambda fp, a: fp.round_int(a, ROUND_FPCR)),
    ("fabs", "0 1 01111", lambda fp, a: magnitude(a)),
    ("fneg", "1 1 01111", lambda fp, a: negated(a)),
    ("fsqrt", "1 1 11111", lambda fp, a: fp("fp_sqrt", a)),
)

UNARY_SCALAR = (("frecpx", "0 1 11111", lambda fp, a: fp("fp_recpx", a)),)

COMPARE_ZERO = (
    ("fcmgt", "0 1 01100", against_zero("fp_compare_gt")),
    ("fcmge", "1 1 01100", against_zero("fp_compare_ge")),
    ("fcmeq", "0 1 01101", against_zero("fp_compare_eq")),
    ("fcmle", "1 1 01101", against_zero("fp_compare_ge", zero_first=True)),
    ("fcmlt", "0 1 01110", against_zero("fp_compare_gt", zero_first=True)),
)

_VECTOR_PATTERN = "0 Q:1 <> 01110 <> sz:1 10000 <> 10 Rn:5 Rd:5"
_SCALAR_PATTERN = "01 <> 11110 <> sz:1 10000 <> 10 Rn:5 Rd:5"


def apply_unary(cpu: Any, i: Any, width: int, esize: int, operation: Unary) -> None:
    """A row's operation on every element of the low `width` bits of Rn."""
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, operation(fp, cpu.V(i.Rn, width).lanes(esize)))


@each(CONVERT + UNARY_VECTOR, _VECTOR_PATTERN, asm=f"$ {_VECTORS}", where=no_1d_fp)
def fp_two_misc(cpu, i, operation: Unary):
    """one vector of floating-point numbers, element by element."""
    apply_unary(cpu, i, vector_width(i), 32 << i.sz, operation)


@each(COMPARE_ZERO, _VECTOR_PATTERN, asm=f"$ {_VECTORS}, #0.0", where=no_1d_fp)
def fp_compare_zero_vector(cpu, i, operation: Unary):
    """elements against zero."""
    apply_unary(cpu, i, vector_width(i), 32 << i.sz, operation)


@each(CONVERT + UNARY_SCALAR, _SCALAR_PATTERN, asm="$ {sz:s|d}{Rd}, {sz:s|d}{Rn}")
def fp_scalar_two_misc(cpu, i, operation: Unary):
    """one floating-point number in a SIMD&FP register."""
    apply_unary(cpu, i, 32 << i.sz, 32 << i.sz, operation)


@each(COMPARE_ZERO, _SCALAR_PATTERN, asm="$ {sz:s|d}{Rd}, {sz:s|d}{Rn}, #0.0")
def fp_scalar_compare_zero(cpu, i, operation: Unary):
    """a floating-point number against zero."""
    apply_unary(cpu, i, 32 << i.sz, 32 << i.sz, operation)


ESTIMATE = (("urecpe", "0", unsigned_recip_estimate), ("ursqrte", "1", unsigned_rsqrt_estimate))


@each(ESTIMATE, "0 Q:1 <> 01110 1010000 11100 10 Rn:5 Rd:5", asm="$ v{Rd}.{Q:2s|4s}, v{Rn}.{Q:2s|4s}")
def unsigned_estimate(cpu, i, function):
    """estimates of unsigned fixed-point numbers."""
    cpu.set_V(i.Rd, cpu.V(i.Rn, vector_width(i)).lanes(32).map(lambda lane: call(function, lane)))


# -- conversion between precisions -------------------------------------------------------------------------------------------
@insn("0 Q:1 001110 0 sz:1 10000 10110 10 Rn:5 Rd:5", asm="fcvtn{Q:|2} v{Rd}.{sz,Q:4h|8h|2s|4s}, v{Rn}.{sz:4s|2d}")
def fp_convert_narrow(cpu, i):
    """FCVTN, FCVTN2."""
    esize = 16 << i.sz
    with Fp(cpu) as fp:
        set_half(cpu, i.Rd, i.Q, fp.resize(cpu.V(i.Rn).lanes(2 * esize), esize).bits)


@insn("0 Q:1 101110 01 10000 10110 10 Rn:5 Rd:5", asm="fcvtxn{Q:|2} v{Rd}.{Q:2s|4s}, v{Rn}.2d")
def fp_convert_narrow_odd(cpu, i):
    """FCVTXN, FCVTXN2: rounding to odd, so that a second rounding is right."""
    with Fp(cpu) as fp:
        set_half(cpu, i.Rd, i.Q, fp.apply(fp_convert_odd_64_32, cpu.V(i.Rn).lanes(64)).bits)


@insn("01111110 01 10000 10110 10 Rn:5 Rd:5", asm="fcvtxn s{Rd}, d{Rn}")
def fp_scalar_convert_odd(cpu, i):
    """FCVTXN (scalar)."""
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, fp.apply(fp_convert_odd_64_32, cpu.V(i.Rn, 64)))


@insn("0 Q:1 001110 0 sz:1 10000 10111 10 Rn:5 Rd:5", asm="fcvtl{Q:|2} v{Rd}.{sz:4s|2d}, v{Rn}.{sz,Q:4h|8h|2s|4s}")
def fp_convert_long(cpu, i):
    """FCVTL, FCVTL2."""
    esize = 16 << i.sz
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, fp.resize(half(cpu, i.Rn, i.Q, esize), 2 * esize))
