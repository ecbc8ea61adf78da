"""Exclusive, and load-acquire and store-release accesses; FEAT_LRCPC's loads are as strong as load-acquire here.

LDLAR and STLLR need FEAT_LOR and are UNDEFINED.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.insn import insn
from trapline.arm64.isa.load_store import TARGET, allocated
from trapline.bits import cat

SIZE = "{size:b|h||}"
T = "{Rt:size=W|W|W|X}"


@insn("size:2 001000 0 0 0 Rs:5 o0:1 ..... Rn:5 Rt:5", asm=f"st{{o0:|l}}xr{SIZE} {{Rs:W}}, {T}, [{{Rn:Xsp}}]")
def store_exclusive(cpu: Any, i: Any) -> None:
    """STXR, STLXR, STXRB, STLXRB, STXRH, STLXRH."""
    cpu.set_X(i.Rs, cpu.store_exclusive(cpu.X(i.Rn, sp=True), cpu.X(i.Rt, 8 << i.size), i.o0))


@insn("size:2 001000 0 1 0 ..... o0:1 ..... Rn:5 Rt:5", asm=f"ld{{o0:|a}}xr{SIZE} {T}, [{{Rn:Xsp}}]")
def load_exclusive(cpu: Any, i: Any) -> None:
    """LDXR, LDAXR, LDXRB, LDAXRB, LDXRH, LDAXRH."""
    cpu.set_X(i.Rt, cpu.load_exclusive(cpu.X(i.Rn, sp=True), 8 << i.size, i.o0))


@insn("1 x:1 001000 0 0 1 Rs:5 o0:1 Rt2:5 Rn:5 Rt:5", asm="st{o0:|l}xp {Rs:W}, {Rt:x=W|X}, {Rt2:x=W|X}, [{Rn:Xsp}]")
def store_exclusive_pair(cpu: Any, i: Any) -> None:
    """STXP, STLXP."""
    width = 64 if i.x else 32
    value = cat(cpu.X(i.Rt2, width), cpu.X(i.Rt, width))
    cpu.set_X(i.Rs, cpu.store_exclusive(cpu.X(i.Rn, sp=True), value, i.o0))


@insn("1 x:1 001000 0 1 1 ..... o0:1 Rt2:5 Rn:5 Rt:5", asm="ld{o0:|a}xp {Rt:x=W|X}, {Rt2:x=W|X}, [{Rn:Xsp}]")
def load_exclusive_pair(cpu: Any, i: Any) -> None:
    """LDXP, LDAXP."""
    width = 64 if i.x else 32
    both = cpu.load_exclusive(cpu.X(i.Rn, sp=True), 2 * width, i.o0)
    cpu.set_X(i.Rt, both[width - 1 : 0])
    cpu.set_X(i.Rt2, both[2 * width - 1 : width])


@insn("size:2 001000 1 0 0 ..... 1 ..... Rn:5 Rt:5", asm=f"stlr{SIZE} {T}, [{{Rn:Xsp}}]")
def store_release(cpu: Any, i: Any) -> None:
    """STLR, STLRB, STLRH."""
    cpu.store(cpu.X(i.Rn, sp=True), cpu.X(i.Rt, 8 << i.size), release=True)


@insn("size:2 001000 1 1 0 ..... 1 ..... Rn:5 Rt:5", asm=f"ldar{SIZE} {T}, [{{Rn:Xsp}}]")
def load_acquire(cpu: Any, i: Any) -> None:
    """LDAR, LDARB, LDARH."""
    cpu.set_X(i.Rt, cpu.load(cpu.X(i.Rn, sp=True), 8 << i.size, acquire=True))


@insn("size:2 111000 1 0 1 11111 1100 00 Rn:5 Rt:5", feature="FEAT_LRCPC", asm=f"ldapr{SIZE} {T}, [{{Rn:Xsp}}]")
def load_acquire_rcpc(cpu: Any, i: Any) -> None:
    """LDAPR, LDAPRB, LDAPRH."""
    cpu.set_X(i.Rt, cpu.load(cpu.X(i.Rn, sp=True), 8 << i.size, acquire=True))


@insn("size:2 011001 opc:2 0 imm9:9 00 Rn:5 Rt:5", where=allocated, feature="FEAT_LRCPC2",
      asm="{opc,size:stlurb|stlurh|stlur|stlur|ldapurb|ldapurh|ldapur|ldapur|ldapursb|ldapursh|ldapursw|!|ldapursb|ldapursh|!|!} "
          f"{TARGET}, [{{Rn:Xsp}}<, #{{imm9:s}}>]")  # fmt: skip
def load_acquire_store_release_unscaled(cpu: Any, i: Any) -> None:
    """LDAPUR, LDAPURB, LDAPURH, LDAPURSB, LDAPURSH, LDAPURSW, STLUR, STLURB, STLURH."""
    width = 8 << i.size
    address = cpu.X(i.Rn, sp=True) + i.signed("imm9")
    if i.opc == 0:
        cpu.store(address, cpu.X(i.Rt, width), release=True)
        return
    data = cpu.load(address, width, acquire=True)
    if i.opc > 1:
        data = data.sext(64 if i.opc == 2 else 32)
    cpu.set_X(i.Rt, data)
