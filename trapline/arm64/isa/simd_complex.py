"""Complex arithmetic (FEAT_FCMA): vectors of pairs, the real part in the even element and the imaginary part in the odd one."""

from __future__ import annotations

from typing import Any

from trapline.arm64.isa.simd_common import ARRANGEMENT, Fp, each, element, evens, interleave, negated, no_1d, odds, vector_width
from trapline.bits import Vec

FEATURE = "FEAT_FCMA"
HALF_FEATURE = "FEAT_FCMA & FEAT_FP16"


def _negated_if(condition: int, value: Vec) -> Vec:
    result: Vec = negated(value) if condition else value
    return result


def multiply_add(fp: Fp, d: Vec, n: Vec, m: Vec, quarters: int) -> Vec:
    """Add the part of the complex products that belongs to one part of `n`, turned by so many right angles.

    Two instructions, with angles that differ by 90 degrees, make a product.
    """
    odd = quarters & 1
    factors = odds(n) if odd else evens(n)
    real, imaginary = (odds(m), evens(m)) if odd else (evens(m), odds(m))
    turned = interleave(_negated_if(quarters in (1, 2), real), _negated_if(quarters in (2, 3), imaginary))
    return fp.lanes("fp_muladd", d, interleave(factors, factors), turned)


_VECTORS = f"v{{Rd}}.{ARRANGEMENT}, v{{Rn}}.{ARRANGEMENT}, v{{Rm}}.{ARRANGEMENT}"


@each([("fcmla", "", "h")], "0 Q:1 1 01110 size:2 0 Rm:5 110 rot:2 1 Rn:5 Rd:5", asm=f"$ {_VECTORS}, #{{rot:0|90|180|270}}",
      feature=HALF_FEATURE, prefix="half_")  # fmt: skip
@each([("fcmla", "", "sd")], "0 Q:1 1 01110 size:2 0 Rm:5 110 rot:2 1 Rn:5 Rd:5", asm=f"$ {_VECTORS}, #{{rot:0|90|180|270}}",
      where=no_1d, feature=FEATURE)  # fmt: skip
def complex_multiply_add(cpu, i):
    """half of a product of complex numbers, added."""
    d, n, m = (cpu.V(r, vector_width(i)).lanes(8 << i.size) for r in (i.Rd, i.Rn, i.Rm))
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, multiply_add(fp, d, n, m, i.rot))


@each([("fcadd", "", "h")], "0 Q:1 1 01110 size:2 0 Rm:5 111 rot:1 01 Rn:5 Rd:5", asm=f"$ {_VECTORS}, #{{rot:90|270}}",
      feature=HALF_FEATURE, prefix="half_")  # fmt: skip
@each([("fcadd", "", "sd")], "0 Q:1 1 01110 size:2 0 Rm:5 111 rot:1 01 Rn:5 Rd:5", asm=f"$ {_VECTORS}, #{{rot:90|270}}",
      where=no_1d, feature=FEATURE)  # fmt: skip
def complex_add(cpu, i):
    """complex numbers, the second turned by 90 or 270 degrees."""
    n, m = (cpu.V(r, vector_width(i)).lanes(8 << i.size) for r in (i.Rn, i.Rm))
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, fp.lanes("fp_add", n, interleave(_negated_if(not i.rot, odds(m)), _negated_if(i.rot, evens(m)))))


def _by_element(cpu: Any, i: Any, width: int, esize: int, index: Any) -> None:
    d, n = (cpu.V(r, width).lanes(esize) for r in (i.Rd, i.Rn))
    pair = element(cpu, i.Rm, index, 2 * esize)
    with Fp(cpu) as fp:
        cpu.set_V(i.Rd, multiply_add(fp, d, n, Vec.splat(pair, width // (2 * esize)).bits.lanes(esize), i.rot))


_ROTATION = "#{rot:0|90|180|270}"


@each(
    [("fcmla", "")],
    "01 1 01111 10 0 Rm:5 0 rot:2 1 immH:1 0 Rn:5 Rd:5",
    asm=f"$ v{{Rd}}.4s, v{{Rn}}.4s, v{{Rm}}.s[{{immH}}], {_ROTATION}",
    feature=FEATURE,
)
def complex_by_element_s(cpu, i):
    """single-precision complex numbers by one pair."""
    _by_element(cpu, i, 128, 32, i.immH)


@each(
    [("fcmla", "")],
    "01 1 01111 01 immL:1 Rm:5 0 rot:2 1 immH:1 0 Rn:5 Rd:5",
    asm=f"$ v{{Rd}}.8h, v{{Rn}}.8h, v{{Rm}}.h[{{immH,immL}}], {_ROTATION}",
    feature=HALF_FEATURE,
)
def complex_by_element_h(cpu, i):
    """eight half-precision parts by one pair."""
    _by_element(cpu, i, 128, 16, i.immH * 2 + i.immL)


@each(
    [("fcmla", "")],
    "00 1 01111 01 immL:1 Rm:5 0 rot:2 1 00 Rn:5 Rd:5",
    asm=f"$ v{{Rd}}.4h, v{{Rn}}.4h, v{{Rm}}.h[{{immL}}], {_ROTATION}",
    feature=HALF_FEATURE,
)
def complex_by_element_h_half(cpu, i):
    """four half-precision parts by one pair."""
    _by_element(cpu, i, 64, 16, i.immL)
