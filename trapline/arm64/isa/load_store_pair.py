"""Load and store pair of general-purpose registers.

Two elements of up to 64 bits are one access of twice the width: each is still single-copy atomic, and nothing is written when
either of them faults.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.bits import Bits, cat

OFFSET = "[{Rn:Xsp}<, #{imm7:s<<x*4}>]"


def load_pair(cpu: Any, address: Bits, width: int) -> tuple[Bits, Bits]:
    """Two neighbouring elements."""
    if width == 128:
        return cpu.load(address, 128), cpu.load(address + 16, 128)
    both = cpu.load(address, 2 * width, parts=2)
    return both[width - 1 : 0], both[2 * width - 1 : width]


def store_pair(cpu: Any, address: Bits, first: Bits, second: Bits) -> None:
    """Store two neighbouring elements."""
    if first.width == 128:
        cpu.store(address, first)
        cpu.store(address + 16, second)
    else:
        cpu.store(address, cat(second, first), parts=2)


def transfer(cpu: Any, i: Any, address: Bits) -> None:
    """Load or store Rt and Rt2."""
    width = 64 if i.x else 32
    if not i.L:
        store_pair(cpu, address, cpu.X(i.Rt, width), cpu.X(i.Rt2, width))
        return
    first, second = load_pair(cpu, address, width)
    cpu.set_X(i.Rt2, second)
    cpu.set_X(i.Rt, first)


@insn("x:1 0 101 0 0 temporal:1 0 L:1 imm7:7 Rt2:5 Rn:5 Rt:5",
      asm="{L:st|ld}{temporal:n|}p {Rt:x=W|X}, {Rt2:x=W|X}, " + OFFSET)
def load_store_pair_offset(cpu: Any, i: Any) -> None:
    """STP, LDP (signed offset), STNP, LDNP."""
    transfer(cpu, i, cpu.X(i.Rn, sp=True) + i.signed("imm7") * (4 << i.x))


@insn("x:1 0 101 0 001 L:1 imm7:7 Rt2:5 Rn:5 Rt:5", asm="{L:st|ld}p {Rt:x=W|X}, {Rt2:x=W|X}, [{Rn:Xsp}], #{imm7:s<<x*4}")
def load_store_pair_post_index(cpu: Any, i: Any) -> None:
    """STP, LDP (post-index)."""
    address = cpu.X(i.Rn, sp=True)
    transfer(cpu, i, address)
    cpu.set_X(i.Rn, address + i.signed("imm7") * (4 << i.x), sp=True)


@insn("x:1 0 101 0 011 L:1 imm7:7 Rt2:5 Rn:5 Rt:5", asm="{L:st|ld}p {Rt:x=W|X}, {Rt2:x=W|X}, [{Rn:Xsp}, #{imm7:s<<x*4}]!")
def load_store_pair_pre_index(cpu: Any, i: Any) -> None:
    """STP, LDP (pre-index)."""
    address = cpu.X(i.Rn, sp=True) + i.signed("imm7") * (4 << i.x)
    transfer(cpu, i, address)
    cpu.set_X(i.Rn, address, sp=True)


def load_signed_words(cpu: Any, i: Any, address: Bits) -> None:
    """Load two words into X registers."""
    first, second = load_pair(cpu, address, 32)
    cpu.set_X(i.Rt2, second.sext(64))
    cpu.set_X(i.Rt, first.sext(64))


@insn("01 101 0 010 1 imm7:7 Rt2:5 Rn:5 Rt:5", asm="ldpsw {Rt:X}, {Rt2:X}, [{Rn:Xsp}<, #{imm7:s*4}>]")
def ldpsw_offset(cpu: Any, i: Any) -> None:
    """LDPSW (signed offset)."""
    load_signed_words(cpu, i, cpu.X(i.Rn, sp=True) + i.signed("imm7") * 4)


@insn("01 101 0 001 1 imm7:7 Rt2:5 Rn:5 Rt:5", asm="ldpsw {Rt:X}, {Rt2:X}, [{Rn:Xsp}], #{imm7:s*4}")
def ldpsw_post_index(cpu: Any, i: Any) -> None:
    """LDPSW (post-index)."""
    address = cpu.X(i.Rn, sp=True)
    load_signed_words(cpu, i, address)
    cpu.set_X(i.Rn, address + i.signed("imm7") * 4, sp=True)


@insn("01 101 0 011 1 imm7:7 Rt2:5 Rn:5 Rt:5", asm="ldpsw {Rt:X}, {Rt2:X}, [{Rn:Xsp}, #{imm7:s*4}]!")
def ldpsw_pre_index(cpu: Any, i: Any) -> None:
    """LDPSW (pre-index)."""
    address = cpu.X(i.Rn, sp=True) + i.signed("imm7") * 4
    load_signed_words(cpu, i, address)
    cpu.set_X(i.Rn, address, sp=True)
