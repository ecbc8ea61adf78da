"""Operations, operands and control words with which the floating-point functions are compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trapline.arm64 import fp, fp_bfloat, fp_convert, fp_double, fp_estimate, fp_half, fp_integral, fp_single

LETTER = {16: "h", 32: "s", 64: "d"}
MODULE = {16: fp_half, 32: fp_single, 64: fp_double}
FRACTION = {16: 10, 32: 23, 64: 52}
TOP = {16: 31, 32: 255, 64: 2047}


@dataclass(frozen=True)
class Operation:
    """One function against one instruction; `operands` are the widths of its bit-pattern arguments."""

    name: str
    text: str
    function: Any
    operands: tuple[int, ...]
    call: Callable[[Any, tuple[int, ...], int], tuple[int, int]]
    integer: bool = False
    half: bool = False
    flush: bool = True
    """Whether the emulator can be asked with FZ set."""


def plain(function: Any, values: tuple[int, ...], fpcr: int) -> tuple[int, int]:
    """The usual shape: operands, then FPCR."""
    return function(*values, fpcr)


def simple(n: int) -> Iterator[Operation]:
    """Operations whose function takes operands and FPCR, at one width."""
    letter, module = LETTER[n], MODULE[n]
    d, a, b, c = (f"{letter}{r}" for r in (3, 0, 1, 2))

    def make(name: str, text: str, count: int) -> Operation:
        return Operation(f"{name}_{n}", text, getattr(module, f"{name}_{n}"), (n,) * count, plain, half=n == 16)

    for name in ("add", "sub", "mul", "mulx", "div", "max", "min", "maxnm", "minnm"):
        yield make(f"fp_{name}", f"f{name} {d}, {a}, {b}", 2)
    yield make("fp_recip_step", f"frecps {d}, {a}, {b}", 2)
    yield make("fp_rsqrt_step", f"frsqrts {d}, {a}, {b}", 2)
    yield make("fp_muladd", f"fmadd {d}, {b}, {c}, {a}", 3)
    yield make("fp_sqrt", f"fsqrt {d}, {a}", 1)
    yield make("fp_recip_estimate", f"frecpe {d}, {a}", 1)
    yield make("fp_rsqrt_estimate", f"frsqrte {d}, {a}", 1)
    yield make("fp_recpx", f"frecpx {d}, {a}", 1)
    for condition in ("eq", "ge", "gt"):
        # The vector form answers all ones; shifting keeps one bit.
        text = (
            f"fcm{condition} {d}, {a}, {b}\\n ushr d3, d3, #{n - 1}"
            if n == 64
            else f"fcm{condition} {d}, {a}, {b}\\n umov w1, v3.{letter}[0]\\n lsr w1, w1, #{n - 1}\\n fmov d3, x1"
        )
        yield make(f"fp_compare_{condition}", text, 2)


def compare(n: int) -> Iterator[Operation]:
    """FCMP and FCMPE."""
    for suffix, signal in (("", 0), ("e", 1)):
        yield Operation(
            f"fp_compare{suffix}_{n}",
            f"fcmp{suffix} {LETTER[n]}0, {LETTER[n]}1\\n mrs x1, nzcv\\n lsr x1, x1, #28\\n fmov d3, x1",
            getattr(MODULE[n], f"fp_compare_{n}"),
            (n, n),
            lambda f, v, fpcr, signal=signal: f(*v, signal, fpcr),
            half=n == 16,
        )


ROUNDINGS = {
    "n": fp.ROUND_TIEEVEN,
    "p": fp.ROUND_POSINF,
    "m": fp.ROUND_NEGINF,
    "z": fp.ROUND_ZERO,
    "a": fp.ROUND_TIEAWAY,
    "i": fp.ROUND_FPCR,
    "x": fp.ROUND_FPCR,
}


def to_integral(n: int) -> Iterator[Operation]:
    """FRINT<r> and FCVT<r><S|U>, also with fraction bits."""
    letter = LETTER[n]
    for r, mode in ROUNDINGS.items():
        exact = int(r == "x")
        yield Operation(
            f"frint{r}_{n}",
            f"frint{r} {letter}3, {letter}0",
            getattr(MODULE[n], f"fp_round_int_{n}"),
            (n,),
            lambda f, v, fpcr, mode=mode, exact=exact: f(*v, mode, exact, fpcr),
            half=n == 16,
        )
    function = getattr(MODULE[n], f"fp_to_fixed_{n}")

    def fixed(text: str, size: int, unsigned: int, fbits: int, mode: int) -> Operation:
        return Operation(
            f"{text.replace(' ', '_')}_{n}",
            text.replace("fp", f"{letter}0") + "\\n fmov d3, x1",
            function,
            (n,),
            lambda f, v, fpcr: f(*v, size, unsigned, fbits, mode, fpcr),
            half=n == 16,
        )

    for unsigned, su in enumerate("su"):
        for size, reg in ((32, "w1"), (64, "x1")):
            for r in "npmza":
                yield fixed(f"fcvt{r}{su} {reg}, fp", size, unsigned, 0, ROUNDINGS[r])
            for fbits in (1, 13, size // 2, size - 1, size):
                yield fixed(f"fcvtz{su} {reg}, fp, #{fbits}", size, unsigned, fbits, fp.ROUND_ZERO)
    if n == 16:
        for unsigned, su in enumerate("su"):
            for fbits in (1, 8, 16):
                # The emulator leaves copies of the sign above the result; the manual has zeros there.
                yield Operation(
                    f"fcvtz{su}_h16_{fbits}",
                    f"fcvtz{su} h3, h0, #{fbits}\\n umov w1, v3.h[0]\\n fmov d3, x1",
                    function,
                    (16,),
                    lambda f, v, fpcr, u=unsigned, k=fbits: f(*v, 16, u, k, fp.ROUND_ZERO, fpcr),
                    half=True,
                )


def from_integer(n: int) -> Iterator[Operation]:
    """SCVTF and UCVTF."""
    function = getattr(MODULE[n], f"fixed_to_fp_{n}")
    for unsigned, su in enumerate("su"):
        for size, reg in ((32, "w0"), (64, "x0")):
            for fbits in (0, 1, 13, size - 1, size):

                def call(
                    f: Any, v: tuple[int, ...], fpcr: int, size: int = size, unsigned: int = unsigned, fbits: int = fbits
                ) -> tuple[int, int]:
                    value = v[0] & ((1 << size) - 1)
                    if not unsigned and value >> (size - 1):
                        value |= (1 << 64) - (1 << size)
                    return f(value, unsigned, fbits, fpcr)

                suffix = f", #{fbits}" if fbits else ""
                yield Operation(
                    f"{su}cvtf_{n}_{size}_{fbits}",
                    f"{su}cvtf {LETTER[n]}3, {reg}{suffix}",
                    function,
                    (64,),
                    call,
                    integer=True,
                    half=n == 16,
                )


def formats() -> Iterator[Operation]:
    """FCVT between formats, FCVTXN."""
    for source in LETTER:
        for target in LETTER:
            if source != target:
                yield Operation(
                    f"fcvt_{source}_{target}",
                    f"fcvt {LETTER[target]}3, {LETTER[source]}0",
                    getattr(fp_convert, f"fp_convert_{source}_{target}"),
                    (source,),
                    plain,
                    half=16 in (source, target),
                )
    yield Operation("fcvtxn", "fcvtxn s3, d0", fp_convert.fp_convert_odd_64_32, (64,), plain)


def estimates() -> Iterator[Operation]:
    """URECPE and URSQRTE."""
    for name, function in (("urecpe", fp_estimate.unsigned_recip_estimate), ("ursqrte", fp_estimate.unsigned_rsqrt_estimate)):
        yield Operation(name, f"{name} v3.2s, v0.2s\\n fmov s3, s3", function, (32,), lambda f, v, fpcr: (f(*v), 0), integer=True)


def to_size() -> Iterator[Operation]:
    """FRINT32Z and the like, FJCVTZS."""
    for n in (32, 64):
        for size in (32, 64):
            for letter, mode in (("z", fp.ROUND_ZERO), ("x", fp.ROUND_FPCR)):
                yield Operation(
                    f"frint{size}{letter}_{n}",
                    f"frint{size}{letter} {LETTER[n]}3, {LETTER[n]}0",
                    getattr(fp_integral, f"fp_round_int_n_{n}"),
                    (n,),
                    lambda f, v, fpcr, size=size, mode=mode: f(*v, size, mode, fpcr),
                )
    # A positive denormal that is flushed is not exact; the emulator says that it is.
    text = "fjcvtzs w1, d0\\n cset x2, eq\\n orr x1, x1, x2, lsl #32\\n fmov d3, x1"
    yield Operation("fjcvtzs", text, fp_integral.fp_to_fixed_js, (64,), plain, flush=False)


def bfloats() -> Iterator[Operation]:
    """BFCVT, BFDOT."""
    yield Operation("bfcvt", "bfcvt h3, s0", fp_bfloat.fp_convert_bf_32, (32,), plain)
    text = "bfdot v0.2s, v1.4h, v2.4h\\n mov v3.8b, v0.8b"
    yield Operation("bfdot", text, fp_bfloat.bf_dot_add, (32, 32, 32), lambda f, v, fpcr: (f(*v), 0))


OPERATIONS = {
    operation.name: operation
    for operation in [
        *(operation for n in LETTER for family in (simple, compare, to_integral, from_integer) for operation in family(n)),
        *formats(),
        *estimates(),
        *to_size(),
        *bfloats(),
    ]
}

CONTROLS = tuple(mode << fp.RMODE_SHIFT | fz | dn for mode in range(4) for fz in (0, fp.FZ) for dn in (0, fp.DN))
# With IXC known to be set, where the host's arithmetic may be used.
HOST_CONTROLS = (fp.IXC, fp.IXC, fp.IXC, fp.IXC | fp.DN, fp.IXC | fp.FZ, fp.IXC | fp.ROUND_ZERO << fp.RMODE_SHIFT)
HALF_CONTROLS = tuple(control | extra for control in CONTROLS for extra in (0, fp.FZ16, fp.AHP))


def special(n: int) -> list[int]:
    """Bit patterns where something happens, of both signs."""
    f, top = FRACTION[n], TOP[n]
    one = (top >> 1) << f
    values = [
        0,
        1,
        2,
        3,
        (1 << f) - 1,
        1 << (f - 1),
        (1 << (f - 1)) - 1,  # zero, denormals
        1 << f,
        (1 << f) + 1,
        (2 << f) - 1,
        2 << f,
        (2 << f) + 1,  # the smallest normals
        one,
        one + 1,
        one - 1,
        one + (1 << (f - 1)),
        one - (1 << f),  # around 1, 1.5, 0.5
        one + (1 << f),
        one + (1 << f) + (1 << (f - 1)),  # 2, 3
        one + (f << f),
        one + (f << f) + 1,
        one + ((f - 1) << f) + 1,  # where the unit is 1, and 0.5
        (top - 1) << f,
        (top << f) - 1,
        ((top - 1) << f) + 1,  # the largest
        top << f,
        (top << f) | 1,
        (top << f) | (1 << (f - 1)),  # infinity, signalling and quiet NaNs
        (top << f) | (1 << (f - 1)) | 5,
        (top << f) | (1 << (f - 2)) | 3,
    ]
    return [sign << (n - 1) | value for value in values for sign in (0, 1)]


def integers() -> list[int]:
    """Integers at rounding and saturation boundaries of every format."""
    powers = {1 << k for k in (0, 1, 8, 10, 11, 12, 22, 23, 24, 25, 31, 32, 33, 52, 53, 54, 62, 63)}
    return sorted(
        {(p + k) % (1 << 64) for p in powers for k in (-3, -2, -1, 0, 1, 2, 3)}
        | {-p % (1 << 64) for p in powers}
        | {0xFFFF_FFFF, 0x7FFF_FFFF, 0xAAAA_AAAA_AAAA_AAAA}
    )


def random_float(rng: random.Random, n: int) -> int:
    """A bit pattern, mostly with a moderate exponent, and with a fraction of few or many bits."""
    f, top = FRACTION[n], TOP[n]
    exponent = rng.choice(
        (
            rng.randrange(top + 1),
            (top >> 1) + rng.randrange(-4, 5),
            rng.randrange(0, 3),
            (top >> 1) + rng.randrange(-min(70, top // 2), min(70, top // 2)),
            rng.randrange(top - 2, top + 1),
        )
    )
    fraction = rng.choice(
        (
            rng.getrandbits(f),
            rng.getrandbits(f) & rng.getrandbits(f) & rng.getrandbits(f),
            1 << rng.randrange(f),
            (1 << f) - (1 << rng.randrange(f + 1)),
            rng.getrandbits(f) >> rng.randrange(f),
        )
    )
    return rng.getrandbits(1) << (n - 1) | exponent << f | fraction % (1 << f)


def random_operands(rng: random.Random, operation: Operation) -> tuple[int, ...]:
    """Independent operands, at times nearly equal ones so that sums cancel, at times special ones."""
    if operation.integer:
        return tuple(rng.getrandbits(width) >> rng.randrange(width) for width in operation.operands)
    values = [random_float(rng, n) if rng.randrange(8) else rng.choice(special(n)) for n in operation.operands]
    kind = rng.randrange(4)
    if kind == 0 and len(values) == 2:
        n = operation.operands[0]
        values[1] = (values[0] + rng.randrange(-3, 4)) % (1 << n) ^ rng.getrandbits(1) << (n - 1)
    if kind == 0 and len(values) == 3:  # the addend close to minus the product
        n = operation.operands[0]
        product, _ = getattr(MODULE[n], f"fp_mul_{n}")(values[1], values[2], rng.randrange(4) << fp.RMODE_SHIFT)
        values[0] = (product + rng.randrange(-2, 3)) % (1 << n) ^ 1 << (n - 1)
    return tuple(values)


def controls(operation: Operation) -> tuple[int, ...]:
    """The FPCR values that may matter to the operation."""
    if not operation.flush:
        return tuple(control for control in CONTROLS if not control & fp.FZ)
    return HALF_CONTROLS if operation.half else CONTROLS + HOST_CONTROLS
