"""Scalar floating point: data processing with one, two and three sources, comparison, selection, FMOV (immediate, register)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trapline.arm64.fp import ROUND_FPCR, ROUND_NEGINF, ROUND_POSINF, ROUND_TIEAWAY, ROUND_TIEEVEN, ROUND_ZERO
from trapline.arm64.isa.simd_common import Body, Fp, Where, each, magnitude, negated
from trapline.bits import Bits, cat, const, select

FORMATS = {0: 32, 1: 64, 3: 16}
"""Width of a floating-point number by `ftype`, and by `opc` of FCVT."""

LETTER = "{ftype:s|d|!|h}"
"""Syntax of a SIMD&FP register that holds a number of the format `ftype`."""


def single_or_double(f: Any) -> bool:
    """The formats that arithmetic has had from the start."""
    return bool(f.ftype < 2)


def half_precision(f: Any) -> bool:
    """The format whose arithmetic is FEAT_FP16."""
    return bool(f.ftype == 3)


def formats(
    rows: Iterable[Sequence[Any]], pattern: str, asm: str, where: Where = lambda f: True
) -> Callable[[Body], Body]:
    """`each` for a class with field `ftype`: its half-precision instructions belong to FEAT_FP16. In `asm`, `%` is LETTER."""
    syntax = asm.replace("%", LETTER)

    def register(body: Body) -> Body:
        each(rows, pattern, syntax, lambda f: single_or_double(f) and where(f))(body)
        each(rows, pattern, syntax, lambda f: half_precision(f) and where(f), feature="FEAT_FP16", prefix="half_")(body)
        return body

    return register


def width_of(i: Any) -> int:
    """Operand width by `ftype`."""
    return FORMATS[i.ftype]


def expand_immediate(imm8: Bits, width: int) -> Bits:
    """VFPExpandImm: a sign, a narrow exponent and four fraction bits as a number of `width` bits."""
    exponent, fraction = {16: (5, 10), 32: (8, 23), 64: (11, 52)}[width]
    return cat(imm8[7], ~imm8[6], imm8[6].sext(exponent - 3), imm8[5:0], const(0, fraction - 4))


ONE_SOURCE = (
    ("fmov", "000000", lambda fp, a: a),
    ("fabs", "000001", lambda fp, a: magnitude(a)),
    ("fneg", "000010", lambda fp, a: negated(a)),
    ("fsqrt", "000011", lambda fp, a: fp("fp_sqrt", a)),
    ("frintn", "001000", lambda fp, a: fp.round_int(a, ROUND_TIEEVEN)),
    ("frintp", "001001", lambda fp, a: fp.round_int(a, ROUND_POSINF)),
    ("frintm", "001010", lambda fp, a: fp.round_int(a, ROUND_NEGINF)),
    ("frintz", "001011", lambda fp, a: fp.round_int(a, ROUND_ZERO)),
    ("frinta", "001100", lambda fp, a: fp.round_int(a, ROUND_TIEAWAY)),
    ("frintx", "001110", lambda fp, a: fp.round_int(a, ROUND_FPCR, 1)),
    ("frinti", "001111", lambda fp, a: fp.round_int(a, ROUND_FPCR)),
)


@formats(ONE_SOURCE, "00011110 ftype:2 1 <> 10000 Rn:5 Rd:5", asm="$ %{Rd}, %{Rn}")
def fp_one_source(cpu, i, operation):
    """floating-point data processing, one source."""
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, operation(fp, cpu.V(i.Rn, width_of(i))))


TWO_SOURCE = (
    ("fmul", "0000", lambda fp, a, b: fp("fp_mul", a, b)),
    ("fdiv", "0001", lambda fp, a, b: fp("fp_div", a, b)),
    ("fadd", "0010", lambda fp, a, b: fp("fp_add", a, b)),
    ("fsub", "0011", lambda fp, a, b: fp("fp_sub", a, b)),
    ("fmax", "0100", lambda fp, a, b: fp("fp_max", a, b)),
    ("fmin", "0101", lambda fp, a, b: fp("fp_min", a, b)),
    ("fmaxnm", "0110", lambda fp, a, b: fp("fp_maxnm", a, b)),
    ("fminnm", "0111", lambda fp, a, b: fp("fp_minnm", a, b)),
    ("fnmul", "1000", lambda fp, a, b: negated(fp("fp_mul", a, b))),
)


@formats(TWO_SOURCE, "00011110 ftype:2 1 Rm:5 <> 10 Rn:5 Rd:5", asm="$ %{Rd}, %{Rn}, %{Rm}")
def fp_two_source(cpu, i, operation):
    """floating-point data processing, two sources."""
    width = width_of(i)
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, operation(fp, cpu.V(i.Rn, width), cpu.V(i.Rm, width)))


THREE_SOURCE = (
    ("fmadd", "0 0", lambda fp, a, n, m: fp("fp_muladd", a, n, m)),
    ("fmsub", "0 1", lambda fp, a, n, m: fp("fp_muladd", a, negated(n), m)),
    ("fnmadd", "1 0", lambda fp, a, n, m: fp("fp_muladd", negated(a), negated(n), m)),
    ("fnmsub", "1 1", lambda fp, a, n, m: fp("fp_muladd", negated(a), n, m)),
)


@formats(THREE_SOURCE, "00011111 ftype:2 <> Rm:5 <> Ra:5 Rn:5 Rd:5", asm="$ %{Rd}, %{Rn}, %{Rm}, %{Ra}")
def fp_three_source(cpu, i, operation):
    """floating-point fused multiply-add."""
    width = width_of(i)
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, operation(fp, cpu.V(i.Ra, width), cpu.V(i.Rn, width), cpu.V(i.Rm, width)))


def set_compare_flags(cpu: Any, a: Bits, b: Bits, signal: int) -> None:
    """FPCompare into N, Z, C, V; `signal` makes a quiet NaN raise Invalid Operation too."""
    with Fp(cpu) as fp:
        cpu.flags(*fp.compare_flags(a, b, signal))


@formats([("fcmp", "")], "00011110 ftype:2 1 Rm:5 001000 Rn:5 E:1 0000", asm="${E:|e} %{Rn}, %{Rm}")
def fp_compare(cpu, i):
    """FCMP, FCMPE."""
    width = width_of(i)
    set_compare_flags(cpu, cpu.V(i.Rn, width), cpu.V(i.Rm, width), i.E)


@formats([("fcmp", "")], "00011110 ftype:2 1 ..... 001000 Rn:5 E:1 1000", asm="${E:|e} %{Rn}, #0.0")
def fp_compare_zero(cpu, i):
    """FCMP, FCMPE (zero)."""
    width = width_of(i)
    set_compare_flags(cpu, cpu.V(i.Rn, width), const(0, width), i.E)


@formats([("fccmp", "")], "00011110 ftype:2 1 Rm:5 cond:4 01 Rn:5 E:1 immnzcv:4", asm="${E:|e} %{Rn}, %{Rm}, #{immnzcv}, {cond:cond}")
def fp_conditional_compare(cpu, i):
    """FCCMP, FCCMPE."""
    width = width_of(i)
    holds = cpu.condition(i.cond)
    with Fp(cpu) as fp:
        compared = fp.compare_flags(cpu.V(i.Rn, width), cpu.V(i.Rm, width), i.E)
        fp.only_if(holds)
    nzcv = const(i.immnzcv, 4)
    cpu.flags(*(select(holds, flag, nzcv[3 - k]) for k, flag in enumerate(compared)))


@formats([("fcsel", "")], "00011110 ftype:2 1 Rm:5 cond:4 11 Rn:5 Rd:5", asm="$ %{Rd}, %{Rn}, %{Rm}, {cond:cond}")
def fp_conditional_select(cpu, i):
    """FCSEL."""
    width = width_of(i)
    cpu.set_V(i.Rd, select(cpu.condition(i.cond), cpu.V(i.Rn, width), cpu.V(i.Rm, width)))


@formats([("fmov", "")], "00011110 ftype:2 1 imm8:8 10000000 Rd:5", asm="$ %{Rd}, #{imm8:fp8}")
def fp_move_immediate(cpu, i):
    """FMOV (scalar, immediate)."""
    cpu.set_V(i.Rd, expand_immediate(const(i.imm8, 8), width_of(i)))
