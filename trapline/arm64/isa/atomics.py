"""FEAT_LSE: atomic operations on memory. The ST<op> forms are these with the zero register as target."""

from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.bits import Bits, cat

ORDER = "{A,R:|l|a|al}"
SIZE = "{size:b|h||}"
S, T = "{Rs:size=W|W|W|X}", "{Rt:size=W|W|W|X}"


def _operation(opc: int, old: Bits, value: Bits) -> Bits:
    """MemAtomicOp, in the order of the opc field."""
    match opc:
        case 0:
            return old + value
        case 1:
            return old & ~value
        case 2:
            return old ^ value
        case 3:
            return old | value
    a, b = old.lanes(old.width), value.lanes(old.width)
    return (a.smax, a.smin, a.umax, a.umin)[opc - 4](b).bits


@insn("size:2 111 0 00 A:1 R:1 1 Rs:5 0 opc:3 00 Rn:5 Rt:5", feature="FEAT_LSE",
      asm=f"ld{{opc:add|clr|eor|set|smax|smin|umax|umin}}{ORDER}{SIZE} {S}, {T}, [{{Rn:Xsp}}]")
def load_operate(cpu: Any, i: Any) -> None:
    """LDADD, LDCLR, LDEOR, LDSET, LDSMAX, LDSMIN, LDUMAX, LDUMIN, all sizes and orders."""
    size = 8 << i.size
    value = cpu.X(i.Rs, size)
    cpu.set_X(i.Rt, cpu.update(cpu.X(i.Rn, sp=True), size, lambda old: _operation(i.opc, old, value), i.A, i.R))


@insn("size:2 111 0 00 A:1 R:1 1 Rs:5 1 000 00 Rn:5 Rt:5", feature="FEAT_LSE",
      asm=f"swp{ORDER}{SIZE} {S}, {T}, [{{Rn:Xsp}}]")
def swap(cpu: Any, i: Any) -> None:
    """SWP, all sizes and orders."""
    size = 8 << i.size
    value = cpu.X(i.Rs, size)
    cpu.set_X(i.Rt, cpu.update(cpu.X(i.Rn, sp=True), size, lambda old: value, i.A, i.R))


@insn("size:2 001000 1 A:1 1 Rs:5 R:1 11111 Rn:5 Rt:5", feature="FEAT_LSE", asm=f"cas{ORDER}{SIZE} {S}, {T}, [{{Rn:Xsp}}]")
def compare_and_swap(cpu: Any, i: Any) -> None:
    """CAS, all sizes and orders."""
    size = 8 << i.size
    cpu.set_X(i.Rs, cpu.compare_swap(cpu.X(i.Rn, sp=True), cpu.X(i.Rs, size), cpu.X(i.Rt, size), i.A, i.R))


@insn("0 x:1 001000 0 A:1 1 Rs:5 R:1 11111 Rn:5 Rt:5", feature="FEAT_LSE",
      asm=f"casp{ORDER} {{Rs:x=W|X}}, {{Rs:x=W|X+1}}, {{Rt:x=W|X}}, {{Rt:x=W|X+1}}, [{{Rn:Xsp}}]")
def compare_and_swap_pair(cpu: Any, i: Any) -> None:
    """CASP, both sizes, all orders."""
    width = 64 if i.x else 32
    expected = cat(cpu.X(cpu.reg(i.Rs, 1), width), cpu.X(i.Rs, width))
    new = cat(cpu.X(cpu.reg(i.Rt, 1), width), cpu.X(i.Rt, width))
    old = cpu.compare_swap(cpu.X(i.Rn, sp=True), expected, new, i.A, i.R)
    cpu.set_X(i.Rs, old[width - 1 : 0])
    cpu.set_X(cpu.reg(i.Rs, 1), old[2 * width - 1 : width])


@insn("0. 001000 0.1 ....1 . 11111 ..... .....", over="compare_and_swap_pair")
@insn("0. 001000 0.1 ....0 . 11111 ..... ....1", over="compare_and_swap_pair")
def compare_and_swap_pair_reserved(cpu: Any, i: Any) -> None:
    """CASP of registers that don't start at an even number."""
    cpu.undefined()
