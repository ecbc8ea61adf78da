"""What the SIMD&FP instruction groups share: rows to instructions, floating-point state, saturation, lane helpers.

A group is one function per encoding class with a table of rows (mnemonic, opcode bits, details...): `each` makes one
instruction of every row. In a class's pattern `<>` stands for the row's bits, in its syntax `$` for the row's mnemonic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trapline.arm64 import fp_double, fp_half, fp_single
from trapline.arm64.fp import IXC
from trapline.arm64.insn import insn
from trapline.bits import Bits, Vec, call, cat, const, select

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
    return (cpu.V(register) >> const(index * esize, 8)).trunc(esize)


def insert(value: Bits, index: Any, lane: Bits) -> Bits:
    """`value` with one element replaced; `index` may be an immediate operand."""
    position = const(index * lane.width, 8)
    ones = const((1 << lane.width) - 1, value.width) << position
    return value & ~ones | lane.zext(value.width) << position


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

    `fp(name, a, ...)` calls the function of that name for the width of `a` and returns its result. Use as a context manager:
    the flags go to FPSR at the end.
    """

    def __init__(self, cpu: Any) -> None:
        self.cpu = cpu
        # The functions take FPSR.IXC next to the controls: once it is set, the host's own arithmetic will do.
        self.fpcr = cpu.sysreg("FPCR").trunc(32) | cpu.sysreg("FPSR").trunc(32) & IXC
        self.flags: Bits | None = None

    def __enter__(self) -> Fp:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.flags is not None and exc[0] is None:
            self.cpu.or_fpsr(self.flags)

    def apply(self, function: Any, *args: Any) -> Bits:
        """Call an `@native` function that takes FPCR last and returns its result with the flags."""
        result, flags = call(function, *args, self.fpcr)
        self.flags = flags if self.flags is None else self.flags | flags
        return result

    def __call__(self, name: str, a: Bits, *rest: Any) -> Bits:
        return self.apply(getattr(_MODULES[a.width], f"{name}_{a.width}"), a, *rest)

    def from_fixed(self, width: int, value: Bits, unsigned: int, fraction_bits: Any = 0) -> Bits:
        """The floating-point number of `width` bits nearest to a fixed-point one."""
        extended = value.zext(64) if unsigned else value.sext(64)
        return self.apply(getattr(_MODULES[width], f"fixed_to_fp_{width}"), extended, unsigned, fraction_bits)

    def to_fixed(self, a: Bits, size: int, unsigned: int, mode: int, fraction_bits: Any = 0) -> Bits:
        """The fixed-point number of `size` bits that `a` rounds to."""
        return self("fp_to_fixed", a, size, unsigned, fraction_bits, mode).trunc(size)

    def lanes(self, name: str, *operands: Vec) -> Vec:
        """Apply a function element by element."""
        return Vec.of([self(name, *lane) for lane in zip(*operands, strict=True)])

    def compare(self, name: str, a: Vec, b: Vec) -> Vec:
        """Apply a comparison element by element: all ones where it holds."""
        return Vec.of([self(name, x, y).sext(a.esize) for x, y in zip(a, b, strict=True)])


def _sign_bit(value: Bits | Vec) -> int:
    return 1 << (value.esize if isinstance(value, Vec) else value.width) - 1


def negated(value: Bits | Vec) -> Any:
    """FPNeg: the sign bit inverted."""
    return value ^ _sign_bit(value)


def magnitude(value: Bits | Vec) -> Any:
    """FPAbs: the sign bit cleared."""
    return value & _sign_bit(value) - 1
