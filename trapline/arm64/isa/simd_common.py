"""What the SIMD&FP instruction groups share: rows to instructions, floating-point state, saturation, lane helpers.

A group is one function per encoding class with a table of rows (mnemonic, opcode bits, details...): `each` makes one
instruction of every row. In a class's pattern `<>` stands for the row's bits, in its syntax `$` for the row's mnemonic.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

from trapline.arm64 import fp_convert, fp_double, fp_half, fp_lanes, fp_single
from trapline.arm64.fp import IXC
from trapline.arm64.fp_quick import NARROW, QUICK, WIDEN, Quick, esize_of, from_fixed, plain, round_int, to_fixed, tracked
from trapline.arm64.insn import insn
from trapline.bits import Bits, Vec, call, cat, const, likely, real, select

QC = 1 << 27
"""FPSR.QC, the cumulative saturation bit."""

SIZES = "bhsd"
"""Element size letters; the index is the encoding of field `size`."""

ARRANGEMENT = "{size,Q:8b|16b|4h|8h|2s|4s|1d|2d}"
"""Syntax of a whole vector's arrangement by `size` and `Q`."""

FP_ARRANGEMENT = "{sz,Q:2s|4s|!|2d}"

WIDE_ARRANGEMENT = "{size:8h|4s|2d|1q}"
"""Arrangement of the long operands of widening and narrowing instructions, by the size of the narrow element."""

Body = Callable[..., None]
Where = Callable[[Any], bool]


def each(
    rows: Iterable[Sequence[Any]],
    pattern: str,
    asm: str | Callable[..., str],
    where: Where | None = None,
    feature: str | None = None,
    over: str = "",
    prefix: str = "",
) -> Callable[[Body], Body]:
    """Register one instruction per row `(mnemonic, bits, *details)`; the body is called as `body(cpu, i, *details)`.

    `bits` fills the pattern's `<>` in order: words of a string, or a tuple of pattern texts. `asm` may be a function of the
    row's details. `where` is the constraint on decoded fields of every row. If the first detail is a string of letters
    of `SIZES`, it lists the element sizes that field `size` may have, and is not passed on. `over` names the instruction that each
    row wins over. `prefix` goes before the instructions' names, for a body that is registered twice with the same rows.
    """

    def register(body: Body) -> Body:
        for mnemonic, bits, *details in rows:
            filled = pattern
            for part in bits.split() if isinstance(bits, str) else bits:
                filled = filled.replace("<>", part, 1)
            sizes, arguments = _element_sizes(details)

            def instruction(cpu: Any, i: Any, arguments: Sequence[Any] = tuple(arguments)) -> None:
                body(cpu, i, *arguments)

            instruction.__name__ = f"{prefix}{body.__name__}_{mnemonic}"
            instruction.__qualname__ = instruction.__name__
            instruction.__module__ = body.__module__
            instruction.__doc__ = f"{mnemonic.upper()}: {body.__doc__}"
            syntax = asm if isinstance(asm, str) else asm(*arguments)
            declare = insn(filled, syntax.replace("$", mnemonic), feature, _both(sizes, where), over=over.replace("$", mnemonic))
            declare(instruction)
        return body

    return register


def _element_sizes(details: Sequence[Any]) -> tuple[set[int] | None, Sequence[Any]]:
    """The values of field `size` that a row allows (None: it does not say), and the rest of its details."""
    if details and isinstance(details[0], str) and set(details[0]) <= set(SIZES):
        return {SIZES.index(letter) for letter in details[0]}, details[1:]
    return None, details


def _both(sizes: set[int] | None, where: Where | None) -> Where | None:
    """The conjunction of an element size list and a constraint."""
    if sizes is None:
        return where
    return lambda f: f.size in sizes and (where is None or where(f))


def no_1d(f: Any) -> bool:
    """Excludes arrangement 1D: 64-bit elements need a 128-bit vector."""
    return bool(f.size != 3 or f.Q)


def no_1d_fp(f: Any) -> bool:
    """The same for floating-point classes, where `sz` is 1 for double precision."""
    return bool(not f.sz or f.Q)


def vector_width(i: Any) -> int:
    """Bits of a whole vector operand by field Q."""
    return 128 if i.Q else 64


# -- saturation --------------------------------------------------------------------------------------------------------------
def set_saturation(cpu: Any, elements: Vec) -> None:
    """Set FPSR.QC if any element is not zero."""
    cpu.or_fpsr((elements.bits != 0).zext(32) << 27)


def saturated(cpu: Any, result: Vec, exact: Vec) -> Vec:
    """`result`, with FPSR.QC set if it differs from `exact` (the value modulo the element size) in any element.

    Right for sums and for narrowing, where a saturated element always differs; a left shift may wrap to the limit itself.
    """
    set_saturation(cpu, result ^ exact)
    return result


def signed_limits(esize: int) -> tuple[int, int]:
    """The least and the greatest signed number of `esize` bits."""
    return -(1 << esize - 1), (1 << esize - 1) - 1


def clamp_signed(value: Vec, esize: int) -> Vec:
    """Signed elements brought into the range of signed `esize`-bit numbers."""
    low, high = signed_limits(esize)
    return value.smin(high).smax(low)


def clamp_unsigned(value: Vec, esize: int) -> Vec:
    """Unsigned elements brought into the range of unsigned `esize`-bit numbers."""
    return value.umin((1 << esize) - 1)


def clamp_signed_to_unsigned(value: Vec, esize: int) -> Vec:
    """Signed elements brought into the range of unsigned `esize`-bit numbers."""
    return value.smax(0).smin((1 << esize) - 1)


# -- lanes -------------------------------------------------------------------------------------------------------------------
def half(cpu: Any, register: Any, upper: int, esize: int) -> Vec:
    """The lower or upper 64 bits of a vector register as lanes."""
    value = cpu.V(register)
    return (value[127:64] if upper else value[63:0]).lanes(esize)


def set_half(cpu: Any, register: Any, upper: int, value: Bits) -> None:
    """Write a narrowed result: the lower half clears the rest, the upper half keeps the lower."""
    cpu.set_V(register, cat(value, cpu.V(register)[63:0]) if upper else value)


def evens(value: Vec) -> Vec:
    """Elements 0, 2, 4...; half as wide in all."""
    return value.bits.lanes(2 * value.esize).trunc(value.esize)


def odds(value: Vec) -> Vec:
    """Elements 1, 3, 5...; half as wide in all."""
    return (value.bits.lanes(2 * value.esize) >> value.esize).trunc(value.esize)


def interleave(even: Vec, odd: Vec) -> Vec:
    """Elements of `even` and `odd` in turn; twice as wide in all."""
    wide = 2 * even.esize
    return (even.zext(wide) | odd.zext(wide) << even.esize).bits.lanes(even.esize)


def element(cpu: Any, register: Any, index: Any, esize: int) -> Bits:
    """One element of a vector register; `index` may be an immediate operand."""
    return cpu.V(register).lanes(esize).extract(index)


def insert(value: Bits, index: Any, lane: Bits) -> Bits:
    """`value` with one element replaced; `index` may be an immediate operand."""
    return value.lanes(lane.width).insert(index, lane).bits


def absolute(value: Vec) -> Vec:
    """Signed absolute value; the least number stays as it is."""
    return value.smax(-value)


def choose(mask: Vec, a: Vec, b: Vec) -> Vec:
    """`a` where the mask's element is all ones, else `b`."""
    return select(mask, a, b)


# -- floating point ----------------------------------------------------------------------------------------------------------
_MODULES = {16: fp_half, 32: fp_single, 64: fp_double}


class Fp:
    """The floating-point functions as one instruction uses them: FPCR is read once, exception flags are gathered.

    `fp(name, a, ...)` is the result of the function of that name for the width of `a`; of a `Vec`, lane by lane. Where the host's
    arithmetic can answer (`fp_quick`), the function itself is called only if it must be. Use as a context manager: the flags go to
    FPSR at the end.
    """

    def __init__(self, cpu: Any) -> None:
        self.cpu = cpu
        self._fpcr, self._before = cpu.sysreg("FPCR"), cpu.sysreg("FPSR")
        # The functions take FPSR.IXC next to the controls: once it is set, "inexact" is not news.
        self._controls = self._fpcr.trunc(32) | self._before.trunc(32) & IXC
        self._fpsr = self._before
        self._raised: Bits | None = None

    def __enter__(self) -> Fp:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._raised is not None and exc[0] is None:
            self.cpu.set_sysreg("FPSR", self._fpsr, when=self._raised)

    def only_if(self, cond: Bits) -> None:
        """Forget the exceptions so far unless `cond` is 1."""
        if self._raised is not None:
            self._fpsr, self._raised = select(cond, self._fpsr, self._before), self._raised & cond

    def _accumulate(self, fpsr: Bits, raised: Bits) -> None:
        self._fpsr = fpsr
        self._raised = raised if self._raised is None else self._raised | raised

    # -- the ways to a result --------------------------------------------------------------------------------------------
    def apply(self, function: Any, a: Any, *rest: Any) -> Any:
        """Call an `@native` function that takes FPCR last and returns its result with the flags."""
        result, flags = self._exactly(function, a, rest)
        self._accumulate(self._fpsr | flags.zext(64), flags != 0)
        return result

    def _exactly(self, function: Any, a: Any, rest: Sequence[Any]) -> tuple[Any, Bits]:
        """Result and flags of a function; truth values of lanes fill their lanes."""
        if isinstance(a, Bits):
            result, flags = call(function, a, *rest, self._controls)
            return result, flags
        count, operands = len(a), [r for r in (a, *rest) if isinstance(r, Vec)]
        if count > 1 and len(operands) == 1 + len(rest) and (lanes := fp_lanes.of(function, a.esize, len(operands))):
            whole, flags = call(lanes, *(v.bits.zext(128) for v in operands), count, self._controls)
            return whole.trunc(a.bits.width).lanes(a.esize), flags
        rows = [[r[k] if isinstance(r, Vec) else r for r in rest] for k in range(count)]
        answers = [call(function, lane, *row, self._controls) for lane, row in zip(a, rows, strict=True)]
        results = Vec.of([result.sext(a.esize) if result.width == 1 else result for result, _ in answers])
        return results, reduce(operator.or_, [flags for _, flags in answers])

    def _try(self, quick: Quick, operands: Sequence[Any], slow: tuple[Any, Bits]) -> Any:
        """The host's result where it is right, else the function's."""
        result = quick.operation(*operands)
        control = quick.control(self._fpcr, self._before)
        checks = [check(result, *operands) for check in (quick.check, quick.further) if check is not None]
        return self._choose([control & check for check in checks], result, *slow)

    def _choose(self, conditions: Sequence[Bits], quick: Any, slow: Any, flags: Bits) -> Any:
        """`quick` if one of the conditions holds, which are tried in this order, else `slow` with its flags."""
        best, exact = (v.bits if isinstance(v, Vec) else v for v in (quick, slow))
        outcome: tuple[Bits, ...] = (exact, self._fpsr | flags.zext(64), const(1, 1))
        for k, condition in enumerate(reversed(conditions)):
            outcome = likely(condition, (best, self._fpsr, const(0, 1)), outcome, rare=k == 0)
        self._accumulate(*outcome[1:])
        return Vec(outcome[0], quick.esize) if isinstance(quick, Vec) else outcome[0]

    # -- arithmetic ------------------------------------------------------------------------------------------------------
    def __call__(self, name: str, a: Any, *rest: Any) -> Any:
        esize = esize_of(a)
        function = getattr(_MODULES[esize], f"{name}_{esize}")
        quick = QUICK.get(name)
        if quick is None or esize == 16:
            return self.apply(function, a, *rest)
        return self._try(quick, (a, *rest), self._exactly(function, a, rest))

    def lanes(self, name: str, *operands: Vec) -> Vec:
        """Apply a function element by element."""
        result = self(name, *operands)
        assert isinstance(result, Vec)
        return result

    compare = lanes
    """Apply a comparison element by element: all ones where it holds."""

    def compare_flags(self, a: Bits, b: Bits, signal: int) -> tuple[Bits, Bits, Bits, Bits]:
        """FPCompare: N, Z, C and V; `signal` makes a quiet NaN raise Invalid Operation too."""
        nzcv, flags = self._exactly(getattr(_MODULES[a.width], f"fp_compare_{a.width}"), a, (b, signal))
        fpsr, exact = self._fpsr | flags.zext(64), (nzcv[3], nzcv[2], nzcv[1], nzcv[0])
        if a.width == 16:
            self._accumulate(fpsr, flags != 0)
            return exact
        ok, less = plain(self._fpcr, self._before) & real("ford", a, b), real("flt", a, b)
        quick = (less, real("fueq", a, b), ~less, const(0, 1))
        n, z, c, v, *state = likely(ok, (*quick, self._fpsr, const(0, 1)), (*exact, fpsr, const(1, 1)))
        self._accumulate(*state)
        return n, z, c, v

    def round_int(self, a: Any, mode: int, exact: int = 0) -> Any:
        """FPRoundInt; `exact` reports an inexact result."""
        esize = esize_of(a)
        function = getattr(_MODULES[esize], f"fp_round_int_{esize}")
        if esize == 16:
            return self.apply(function, a, mode, exact)
        return self._try(round_int(mode, exact), (a,), self._exactly(function, a, (mode, exact)))

    # -- conversions -----------------------------------------------------------------------------------------------------
    def resize(self, a: Any, width: int) -> Any:
        """FPConvert to another width."""
        source = esize_of(a)
        function = getattr(fp_convert, f"fp_convert_{source}_{width}")
        quick = {(32, 64): WIDEN, (64, 32): NARROW}.get((source, width))
        return self.apply(function, a) if quick is None else self._try(quick, (a,), self._exactly(function, a, ()))

    def from_fixed(self, width: int, value: Any, unsigned: int, fraction_bits: Any = 0) -> Any:
        """The floating-point number of `width` bits nearest to a fixed-point one."""
        function = getattr(_MODULES[width], f"fixed_to_fp_{width}")
        extended = value.zext(64) if unsigned else value.sext(64)
        if width == 16:
            return self.apply(function, extended, unsigned, fraction_bits)
        result, exact = from_fixed(width, unsigned, fraction_bits, value)
        if exact is None:
            return result
        slow = self._exactly(function, extended, (unsigned, fraction_bits))
        return self._choose([exact | tracked(self._fpcr, self._before)], result, *slow)

    def to_fixed(self, a: Any, size: int, unsigned: int, mode: int, fraction_bits: Any = 0) -> Any:
        """The fixed-point number of `size` bits that `a` rounds to."""
        width = esize_of(a)
        function = getattr(_MODULES[width], f"fp_to_fixed_{width}")
        if width == 16:
            return self.apply(function, a, size, unsigned, fraction_bits, mode).trunc(size)
        wide, flags = self._exactly(function, a, (size, unsigned, fraction_bits, mode))
        return self._try(to_fixed(size, unsigned, mode, fraction_bits), (a,), (wide.trunc(size), flags))


def _sign_bit(value: Bits | Vec) -> int:
    return 1 << (value.esize if isinstance(value, Vec) else value.width) - 1


def negated(value: Bits | Vec) -> Any:
    """FPNeg: the sign bit inverted."""
    return value ^ _sign_bit(value)


def magnitude(value: Bits | Vec) -> Any:
    """FPAbs: the sign bit cleared."""
    return value & _sign_bit(value) - 1
