"""Data processing -- register, with FEAT_CRC32, FEAT_FlagM and FEAT_CSSC."""

from __future__ import annotations

from typing import Any

from trapline.arm64 import crypto
from trapline.arm64.insn import insn
from trapline.arm64.pseudocode import add_with_carry, extend_reg, shift_by, shift_reg
from trapline.bits import Bits, call, const, select


@insn("sf:1 opc:2 01010 shift:2 N:1 Rm:5 imm6:6 Rn:5 Rd:5", where=lambda f: f.sf, split={"imm6": 0, "Rn": 31},
      asm="{opc,N:and|bic|orr|orn|eor|eon|ands|bics} {Rd:R}, {Rn:R}, {Rm:R}<, {shift:lsl|lsr|asr|ror} #{imm6}>")
@insn("sf:1 opc:2 01010 shift:2 N:1 Rm:5 0 imm6:5 Rn:5 Rd:5", where=lambda f: not f.sf, split={"imm6": 0, "Rn": 31},
      asm="{opc,N:and|bic|orr|orn|eor|eon|ands|bics} {Rd:R}, {Rn:R}, {Rm:R}<, {shift:lsl|lsr|asr|ror} #{imm6}>")
def logical_shifted_register(cpu: Any, i: Any) -> None:
    """AND, BIC, ORR, ORN, EOR, EON, ANDS, BICS (shifted register)."""
    width = 64 if i.sf else 32
    a, b = cpu.X(i.Rn, width), shift_reg(cpu, i.Rm, i.shift, i.imm6, width)
    b = ~b if i.N else b
    result = (a & b, a | b, a ^ b, a & b)[i.opc]
    if i.opc == 3:
        cpu.flags(result.msb, result.is_zero(), const(0, 1), const(0, 1))
    cpu.set_X(i.Rd, result)


@insn("sf:1 op:1 S:1 01011 shift:2 0 Rm:5 imm6:6 Rn:5 Rd:5", where=lambda f: f.sf and f.shift != 3, split={"imm6": 0},
      asm="{op:add|sub}{S:|s} {Rd:R}, {Rn:R}, {Rm:R}<, {shift:lsl|lsr|asr|!} #{imm6}>")
@insn("sf:1 op:1 S:1 01011 shift:2 0 Rm:5 0 imm6:5 Rn:5 Rd:5", where=lambda f: not f.sf and f.shift != 3, split={"imm6": 0},
      asm="{op:add|sub}{S:|s} {Rd:R}, {Rn:R}, {Rm:R}<, {shift:lsl|lsr|asr|!} #{imm6}>")
def add_sub_shifted_register(cpu: Any, i: Any) -> None:
    """ADD, ADDS, SUB, SUBS (shifted register)."""
    width = 64 if i.sf else 32
    b = shift_reg(cpu, i.Rm, i.shift, i.imm6, width)
    result, nzcv = add_with_carry(cpu.X(i.Rn, width), ~b if i.op else b, i.op)
    if i.S:
        cpu.flags(*nzcv)
    cpu.set_X(i.Rd, result)


@insn("sf:1 op:1 S:1 01011 00 1 Rm:5 option:3 imm3:3 Rn:5 Rd:5",
      asm="{op:add|sub}{S:|s} {Rd:S,sf=Wsp|Xsp|W|X}, {Rn:Rsp}, {Rm:sf,option=W|W|W|W|W|W|W|W|W|W|W|X|W|W|W|X}, "
          "{option:uxtb|uxth|uxtw|uxtx|sxtb|sxth|sxtw|sxtx}< #{imm3}>")
def add_sub_extended_register(cpu: Any, i: Any) -> None:
    """ADD, ADDS, SUB, SUBS (extended register)."""
    width = 64 if i.sf else 32
    b = extend_reg(cpu, i.Rm, i.option, i.imm3, width)
    result, nzcv = add_with_carry(cpu.X(i.Rn, width, sp=True), ~b if i.op else b, i.op)
    if i.S:
        cpu.flags(*nzcv)
    cpu.set_X(i.Rd, result, sp=not i.S)


@insn("... 01011 00 1 ..... ... 101 ..... .....", over="add_sub_extended_register")
@insn("... 01011 00 1 ..... ... 11. ..... .....", over="add_sub_extended_register")
def add_sub_extended_register_reserved(cpu: Any, i: Any) -> None:
    """A left shift by more than 4."""
    cpu.undefined()


@insn("sf:1 op:1 S:1 11010000 Rm:5 000000 Rn:5 Rd:5", asm="{op:adc|sbc}{S:|s} {Rd:R}, {Rn:R}, {Rm:R}")
def add_sub_with_carry(cpu: Any, i: Any) -> None:
    """ADC, ADCS, SBC, SBCS."""
    width = 64 if i.sf else 32
    b = cpu.X(i.Rm, width)
    result, nzcv = add_with_carry(cpu.X(i.Rn, width), ~b if i.op else b, cpu.flag("C"))
    if i.S:
        cpu.flags(*nzcv)
    cpu.set_X(i.Rd, result)


@insn("101 11010000 imm6:6 00001 Rn:5 0 mask:4", feature="FEAT_FlagM", asm="rmif {Rn:X}, #{imm6}, #{mask}")
def rmif(cpu: Any, i: Any) -> None:
    """RMIF: rotate a register right and put its low bits into chosen flags."""
    rotated = cpu.X(i.Rn).ror(i.imm6)
    for bit, flag in enumerate("VCZN"):
        if i.mask >> bit & 1:
            cpu.set_flag(flag, rotated[bit])


@insn("001 11010000 000000 sz:1 0010 Rn:5 01101", feature="FEAT_FlagM", asm="setf{sz:8|16} {Rn:W}")
def setf(cpu: Any, i: Any) -> None:
    """SETF8, SETF16."""
    msb = 15 if i.sz else 7
    value = cpu.X(i.Rn, 32)
    cpu.set_flag("N", value[msb])
    cpu.set_flag("Z", value[msb:0].is_zero())
    cpu.set_flag("V", value[msb + 1] ^ value[msb])


@insn("sf:1 op:1 1 11010010 imm5:5 cond:4 10 Rn:5 0 immnzcv:4", asm="{op:ccmn|ccmp} {Rn:R}, #{imm5}, #{immnzcv}, {cond:cond}")
def conditional_compare_immediate(cpu: Any, i: Any) -> None:
    """CCMN, CCMP (immediate)."""
    width = 64 if i.sf else 32
    _conditional_compare(cpu, i, cpu.X(i.Rn, width), const(i.imm5, width))


@insn("sf:1 op:1 1 11010010 Rm:5 cond:4 00 Rn:5 0 immnzcv:4", asm="{op:ccmn|ccmp} {Rn:R}, {Rm:R}, #{immnzcv}, {cond:cond}")
def conditional_compare_register(cpu: Any, i: Any) -> None:
    """CCMN, CCMP (register)."""
    width = 64 if i.sf else 32
    _conditional_compare(cpu, i, cpu.X(i.Rn, width), cpu.X(i.Rm, width))


def _conditional_compare(cpu: Any, i: Any, a: Bits, b: Bits) -> None:
    _, compared = add_with_carry(a, ~b if i.op else b, i.op)
    holds, otherwise = cpu.condition(i.cond), const(i.immnzcv, 4)
    cpu.flags(*(select(holds, flag, otherwise[3 - n]) for n, flag in enumerate(compared)))


@insn("sf:1 op:1 0 11010100 Rm:5 cond:4 0 o2:1 Rn:5 Rd:5", split={"Rn": 31, "Rm": 31},
      asm="{op,o2:csel|csinc|csinv|csneg} {Rd:R}, {Rn:R}, {Rm:R}, {cond:cond}")
def conditional_select(cpu: Any, i: Any) -> None:
    """CSEL, CSINC, CSINV, CSNEG."""
    width = 64 if i.sf else 32
    b = cpu.X(i.Rm, width)
    b = ~b if i.op else b
    b = b + 1 if i.o2 else b
    cpu.set_X(i.Rd, select(cpu.condition(i.cond), cpu.X(i.Rn, width), b))


@insn("sf:1 00 11010110 Rm:5 00001 o1:1 Rn:5 Rd:5", asm="{o1:udiv|sdiv} {Rd:R}, {Rn:R}, {Rm:R}")
def divide(cpu: Any, i: Any) -> None:
    """UDIV, SDIV: division by zero gives zero, and the most negative number over -1 is itself."""
    width = 64 if i.sf else 32
    a, b = cpu.X(i.Rn, width), cpu.X(i.Rm, width)
    cpu.set_X(i.Rd, a.sdiv(b) if i.o1 else a.udiv(b))


@insn("sf:1 00 11010110 Rm:5 0010 op2:2 Rn:5 Rd:5", asm="{op2:lsl|lsr|asr|ror} {Rd:R}, {Rn:R}, {Rm:R}")
def shift_variable(cpu: Any, i: Any) -> None:
    """LSLV, LSRV, ASRV, RORV."""
    width = 64 if i.sf else 32
    cpu.set_X(i.Rd, shift_by(cpu.X(i.Rn, width), i.op2, cpu.X(i.Rm, width) & (width - 1)))


@insn("sf:1 00 11010110 Rm:5 010 C:1 sz:2 Rn:5 Rd:5", where=lambda f: f.sf == (f.sz == 3), feature="FEAT_CRC32",
      asm="crc32{C:|c}{sz:b|h|w|x} {Rd:W}, {Rn:W}, {Rm:R}")
def crc32(cpu: Any, i: Any) -> None:
    """CRC32B, CRC32H, CRC32W, CRC32X, and CRC32CB, CRC32CH, CRC32CW, CRC32CX."""
    data = cpu.X(i.Rm, 8 << i.sz).zext(64)
    cpu.set_X(i.Rd, call(crypto.crc32c if i.C else crypto.crc32, cpu.X(i.Rn, 32), data, 8 << i.sz))


@insn("sf:1 10 11010110 00000 00000 0 Rn:5 Rd:5", asm="rbit {Rd:R}, {Rn:R}")
def rbit(cpu: Any, i: Any) -> None:
    """RBIT."""
    cpu.set_X(i.Rd, cpu.X(i.Rn, 64 if i.sf else 32).bitreverse())


@insn("sf:1 10 11010110 00000 0000 opc:2 Rn:5 Rd:5", where=lambda f: f.opc != 0 and (f.sf or f.opc != 3),
      asm="{sf,opc:!|rev16|rev|!|!|rev16|rev32|rev} {Rd:R}, {Rn:R}")
def rev(cpu: Any, i: Any) -> None:
    """REV, REV16, REV32: reverse the bytes of each container of 16, 32 or 64 bits."""
    value = cpu.X(i.Rn, 64 if i.sf else 32)
    cpu.set_X(i.Rd, value.lanes(8 << i.opc).bswap().bits)


@insn("sf:1 10 11010110 00000 00010 op:1 Rn:5 Rd:5", asm="{op:clz|cls} {Rd:R}, {Rn:R}")
def count_leading(cpu: Any, i: Any) -> None:
    """CLZ, CLS. The sign bits below the top one are the leading zeros of x EOR x >> 1."""
    value = cpu.X(i.Rn, 64 if i.sf else 32)
    cpu.set_X(i.Rd, (value ^ value.asr(1)).clz() - 1 if i.op else value.clz())


@insn("sf:1 10 11010110 00000 000110 Rn:5 Rd:5", feature="FEAT_CSSC", asm="ctz {Rd:R}, {Rn:R}")
def count_trailing_zeros(cpu: Any, i: Any) -> None:
    """CTZ."""
    cpu.set_X(i.Rd, cpu.X(i.Rn, 64 if i.sf else 32).bitreverse().clz())


@insn("sf:1 10 11010110 00000 000111 Rn:5 Rd:5", feature="FEAT_CSSC", asm="cnt {Rd:R}, {Rn:R}")
def count_ones(cpu: Any, i: Any) -> None:
    """CNT."""
    cpu.set_X(i.Rd, cpu.X(i.Rn, 64 if i.sf else 32).popcount())


@insn("sf:1 10 11010110 00000 001000 Rn:5 Rd:5", feature="FEAT_CSSC", asm="abs {Rd:R}, {Rn:R}")
def absolute_value(cpu: Any, i: Any) -> None:
    """ABS: the most negative number is its own absolute value."""
    value = cpu.X(i.Rn, 64 if i.sf else 32)
    cpu.set_X(i.Rd, select(value.msb, -value, value))


@insn("sf:1 00 11010110 Rm:5 0110 lesser:1 U:1 Rn:5 Rd:5", feature="FEAT_CSSC", asm="{U:s|u}{lesser:max|min} {Rd:R}, {Rn:R}, {Rm:R}")
def maximum_minimum(cpu: Any, i: Any) -> None:
    """SMAX, UMAX, SMIN, UMIN (register)."""
    width = 64 if i.sf else 32
    cpu.set_X(i.Rd, extreme(cpu.X(i.Rn, width), cpu.X(i.Rm, width), i.lesser, unsigned=i.U))


@insn("sf:1 00 100011 1 00 lesser:1 0 imm8:8 Rn:5 Rd:5", feature="FEAT_CSSC", asm="s{lesser:max|min} {Rd:R}, {Rn:R}, #{imm8:s}")
def signed_maximum_minimum_immediate(cpu: Any, i: Any) -> None:
    """SMAX, SMIN (immediate)."""
    width = 64 if i.sf else 32
    cpu.set_X(i.Rd, extreme(cpu.X(i.Rn, width), const(i.signed("imm8"), width), i.lesser, unsigned=False))


@insn("sf:1 00 100011 1 00 lesser:1 1 imm8:8 Rn:5 Rd:5", feature="FEAT_CSSC", asm="u{lesser:max|min} {Rd:R}, {Rn:R}, #{imm8}")
def unsigned_maximum_minimum_immediate(cpu: Any, i: Any) -> None:
    """UMAX, UMIN (immediate)."""
    width = 64 if i.sf else 32
    cpu.set_X(i.Rd, extreme(cpu.X(i.Rn, width), const(i.imm8, width), i.lesser, unsigned=True))


def extreme(a: Bits, b: Bits, lesser: int, unsigned: int) -> Bits:
    """The greater or lesser of two values."""
    a_less = a.ult(b) if unsigned else a.slt(b)
    return select(a_less, a, b) if lesser else select(a_less, b, a)


@insn("sf:1 00 11011 000 Rm:5 o0:1 Ra:5 Rn:5 Rd:5", split={"Ra": 31}, asm="{o0:madd|msub} {Rd:R}, {Rn:R}, {Rm:R}, {Ra:R}")
def multiply_add(cpu: Any, i: Any) -> None:
    """MADD, MSUB."""
    width = 64 if i.sf else 32
    product, addend = cpu.X(i.Rn, width) * cpu.X(i.Rm, width), cpu.X(i.Ra, width)
    cpu.set_X(i.Rd, addend - product if i.o0 else addend + product)


@insn("100 11011 U:1 01 Rm:5 o0:1 Ra:5 Rn:5 Rd:5", split={"Ra": 31}, asm="{U:s|u}{o0:madd|msub}l {Rd:X}, {Rn:W}, {Rm:W}, {Ra:X}")
def multiply_add_long(cpu: Any, i: Any) -> None:
    """SMADDL, SMSUBL, UMADDL, UMSUBL."""
    a, b = (x.zext(64) if i.U else x.sext(64) for x in (cpu.X(i.Rn, 32), cpu.X(i.Rm, 32)))
    addend = cpu.X(i.Ra)
    cpu.set_X(i.Rd, addend - a * b if i.o0 else addend + a * b)


@insn("100 11011 U:1 10 Rm:5 0 ..... Rn:5 Rd:5", asm="{U:s|u}mulh {Rd:X}, {Rn:X}, {Rm:X}")
def multiply_high(cpu: Any, i: Any) -> None:
    """SMULH, UMULH."""
    a, b = (x.zext(128) if i.U else x.sext(128) for x in (cpu.X(i.Rn), cpu.X(i.Rm)))
    cpu.set_X(i.Rd, (a * b)[127:64])
