"""The recorder: what an instruction body runs against.

A body is ordinary Python that runs once per decoded word (all fields are `int`) or once per *shape* (register numbers and
immediates are symbolic). It leaves expressions and effects; nothing is executed here. What every instruction has in common is
done here and never in a body: the zero register, banked SP, zero-extension of W and of narrow V results, the FP access check.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, Protocol

from trapline.arm64 import effects as fx
from trapline.arm64.state import CpuState
from trapline.bits import Bits, Imm, Vec, const, select

X_OFFSET: int = CpuState.x.offset
V_OFFSET: int = CpuState.v.offset
SP_OFFSET: int = CpuState.sp.offset
SINK_OFFSET: int = CpuState.xzr_sink.offset
SYSREG_OFFSET: int = CpuState.sysreg.offset
FLAG_OFFSETS: dict[str, int] = {
    "N": CpuState.n.offset,
    "Z": CpuState.z.offset,
    "C": CpuState.c.offset,
    "V": CpuState.v_flag.offset,
}


class SysregTable(Protocol):
    """What the recorder needs to know of system registers: the storage slot by name."""

    def slot(self, name: str) -> int: ...


class RegNumber:
    """A register field of a shape: its number is known only when the word is decoded."""

    __slots__ = ("imm",)

    def __init__(self, imm: Imm) -> None:
        self.imm = imm

    def __bool__(self) -> bool:
        raise TypeError("a register operand cannot decide what an instruction does; write a second pattern instead")

    def __eq__(self, other: object) -> bool:
        raise TypeError("a register operand cannot be compared; write a second pattern instead")

    __hash__ = object.__hash__


Register = int | RegNumber


class Recorder:
    """Collects the effects and register writes of one instruction."""

    def __init__(self, slot: Callable[[str], int]) -> None:
        self._slot = slot
        self.effects: list[fx.Effect] = []
        self.writes: list[fx.Write] = []
        self.machine: Container[str] = ()
        """Features of the machine, for bodies that are different without being UNDEFINED (`Insn.machine`)."""
        self.uses_fp = False
        self.sp_base = False
        """SP was read: an access to memory then checks that it is aligned (CheckSPAlignment)."""
        self.after: list[str] = []
        """What must be looked at again once the writes are done (`sysreg.EFFECTS`)."""

    # -- state -----------------------------------------------------------------------------------------------------------
    def _read(self, offset: int | Bits, storage: int, width: int) -> Bits:
        args = (Bits("decoded", (offset,), 16),) if isinstance(offset, Bits) else ()
        leaf = Bits("state", args, storage, attr=None if args else offset)
        return leaf.trunc(width)

    def _write(self, offset: int | Bits, storage: int, value: Bits, when: Bits | None = None) -> None:
        self.writes.append(fx.Write(offset, storage, value, when))

    def _register_offset(self, r: Register, base: int, stride: int, special: int | None) -> int | Bits:
        """Byte offset of register `r`; number 31 goes to `special` if given."""
        if isinstance(r, RegNumber):
            number = r.imm.bits.trunc(16)
            offset = number * stride + base
            return offset if special is None else select(number == 31, const(special, 16), offset)
        return special if special is not None and r == 31 else base + stride * r

    def reg(self, r: Register, step: int) -> Register:
        """The register `step` after `r`, modulo 32 (lists of SIMD registers, register pairs)."""
        if isinstance(r, RegNumber):
            return RegNumber((r.imm + step) & 31)
        return (r + step) % 32

    def X(self, r: Register, width: int = 64, sp: bool = False) -> Bits:
        """General register `r`: 31 is the zero register, or SP with `sp`."""
        if not sp and isinstance(r, int) and r == 31:
            return const(0, width)
        if sp and isinstance(r, int) and r == 31:
            self.sp_base = True
        return self._read(self._register_offset(r, X_OFFSET, 8, SP_OFFSET if sp else None), 64, width)

    def set_X(self, r: Register, value: Bits, sp: bool = False) -> None:
        """Write general register `r`; a narrower value is zero-extended. Register 31 is discarded, or SP with `sp`."""
        self._write(self._register_offset(r, X_OFFSET, 8, SP_OFFSET if sp else SINK_OFFSET), 64, value)

    def V(self, r: Register, width: int = 128) -> Bits:
        """The low `width` bits of SIMD&FP register `r`."""
        self.uses_fp = True
        return self._read(self._register_offset(r, V_OFFSET, 16, None), 128, width)

    def set_V(self, r: Register, value: Bits | Vec) -> None:
        """Write SIMD&FP register `r`; bits above the value become zero."""
        self.uses_fp = True
        bits = value.bits if isinstance(value, Vec) else value
        self._write(self._register_offset(r, V_OFFSET, 16, None), 128, bits)

    def need_fp(self) -> None:
        """Check access to SIMD&FP (instructions that use it without naming a V register)."""
        self.uses_fp = True

    def flag(self, name: str) -> Bits:
        """One of N, Z, C, V."""
        return self._read(FLAG_OFFSETS[name], 8, 1)

    def flags(self, n: Bits, z: Bits, c: Bits, v: Bits) -> None:
        """Set all four condition flags."""
        for name, value in zip("NZCV", (n, z, c, v), strict=True):
            self._write(FLAG_OFFSETS[name], 8, value)

    def set_flag(self, name: str, value: Bits) -> None:
        self._write(FLAG_OFFSETS[name], 8, value)

    def condition(self, cond: int) -> Bits:
        """ConditionHolds(cond)."""
        n, z, c, v = (self.flag(f) for f in "NZCV")
        base = (z, c, n, v, c & ~z, n == v, (n == v) & ~z, const(1, 1))[cond >> 1]
        return ~base if cond & 1 and cond != 15 else base

    def sysreg(self, name: str) -> Bits:
        """The stored value of a system register (64 bits), without side effects or traps."""
        return self._read(SYSREG_OFFSET + 8 * self._slot(name), 64, 64)

    def set_sysreg(self, name: str, value: Bits, when: Bits | None = None) -> None:
        """Write the storage of a system register; where `when` is 0, `value` is what it holds already."""
        self._write(SYSREG_OFFSET + 8 * self._slot(name), 64, value, when)

    def or_fpsr(self, flags: Bits) -> None:
        """Accumulate exception bits (IOC, DZC, OFC, UFC, IXC, IDC, QC) into FPSR."""
        offset = SYSREG_OFFSET + 8 * self._slot("FPSR")
        pending = next((w for w in self.writes if isinstance(w.offset, int) and w.offset == offset), None)
        wide = flags.zext(64) if flags.width < 64 else flags
        if pending is None:
            self._write(offset, 64, self.sysreg("FPSR") | wide)
        else:
            pending.value, pending.when = pending.value | wide, None

    def pstate(self, name: str) -> Bits:
        """A PSTATE field by its name in `CpuState` (el, spsel, daif, pan, ...), 8 bits wide."""
        return self._read(getattr(CpuState, name.lower()).offset, 8, 8)

    def set_pstate(self, name: str, value: Bits) -> None:
        self._write(getattr(CpuState, name.lower()).offset, 8, value)

    # -- program counter -------------------------------------------------------------------------------------------------
    @property
    def PC(self) -> Bits:
        """The address of this instruction."""
        return Bits("pc", (), 64)

    def link(self) -> Bits:
        """The address of the next instruction."""
        return self.PC + 4

    def branch(self, target: Bits, when: Bits | None = None, *, landing: bool = False) -> None:
        """Branch to a computed address; `landing` for calls and jumps, which guarded pages check."""
        self.effects.append(fx.Branch(target, when, landing=landing))

    def branch_imm(self, delta: int | Imm, when: Bits | None = None) -> None:
        """Branch by a distance in bytes that the instruction word holds."""
        self.effects.append(fx.Branch(self.PC + const(delta, 64), when, delta))

    # -- memory ----------------------------------------------------------------------------------------------------------
    def load(
        self, addr: Bits, width: int, *, acquire: bool = False, aligned: bool = False, unprivileged: bool = False, parts: int = 1
    ) -> Bits:
        """Read `width` bits (8 to 128) at `addr`; they are `parts` elements."""
        access = fx.Access(acquire=acquire, aligned=aligned or acquire, unprivileged=unprivileged, parts=parts)
        return self._effect(fx.Load(addr, width, access), width)

    def store(
        self, addr: Bits, value: Bits, *, release: bool = False, aligned: bool = False, unprivileged: bool = False, parts: int = 1
    ) -> None:
        """Write `value` at `addr`; it is `parts` elements."""
        access = fx.Access(release=release, aligned=aligned or release, unprivileged=unprivileged, parts=parts)
        self.effects.append(fx.Store(addr, value, access))

    def update(self, addr: Bits, width: int, fn: Callable[[Bits], Bits], acquire: Any = 0, release: Any = 0) -> Bits:
        """Atomic read-modify-write; returns the old value."""
        old = Bits("result", (), width)
        access = fx.Access(acquire=bool(acquire), release=bool(release), aligned=True)
        self.effects.append(fx.Update(addr, width, fn(old), access, result=old))
        return old

    def compare_swap(self, addr: Bits, expected: Bits, new: Bits, acquire: Any = 0, release: Any = 0) -> Bits:
        """Atomic compare and swap; returns the value found."""
        access = fx.Access(acquire=bool(acquire), release=bool(release), aligned=True)
        return self._effect(fx.CompareSwap(addr, expected, new, access), expected.width)

    def load_exclusive(self, addr: Bits, width: int, acquire: Any = 0) -> Bits:
        """Read and set the local exclusive monitor."""
        return self._effect(fx.LoadExclusive(addr, width, fx.Access(acquire=bool(acquire), aligned=True)), width)

    def store_exclusive(self, addr: Bits, value: Bits, release: Any = 0) -> Bits:
        """Write if the monitor allows; returns the 32-bit status, 0 for success."""
        return self._effect(fx.StoreExclusive(addr, value, fx.Access(release=bool(release), aligned=True)), 32)

    def clear_exclusive(self) -> None:
        self.system("clrex")

    # -- the rest --------------------------------------------------------------------------------------------------------
    def _effect(self, effect: fx.Effect, width: int) -> Bits:
        effect.result = Bits("result", (), width)
        self.effects.append(effect)
        return effect.result

    def barrier(self, kind: str, option: int = 15) -> None:
        """A memory or context barrier; `option` is the CRm field."""
        self.effects.append(fx.Barrier(kind, option))

    def hint(self, number: int) -> None:
        """A hint that this machine treats as no operation."""

    def undefined(self) -> None:
        """This encoding is UNDEFINED."""
        self.raise_("undefined")

    def raise_(self, kind: str, imm: int | Imm = 0) -> None:
        """Take a synchronous exception of this kind."""
        self.effects.append(fx.Raise(kind, const(imm, 16)))

    def system(self, name: str, *args: Bits | int | Imm, width: int = 0, when: Bits | None = None) -> Bits:
        """An operation of the PE by name; it yields a value of `width` bits (64 by default).

        With `when` it is a check that runs only if `when` is 1 and then ends the instruction (a trap).
        """
        operands = tuple(a.zext(64) if isinstance(a, Bits) else const(a, 64) for a in args)
        effect = fx.System(name, operands, when)
        result = Bits("result", (), width or 64)
        effect.result = result
        self.effects.append(effect)
        return result

    def query(self, function: Any, *args: Bits) -> Bits:
        """Call a native function of the CPU state (first parameter) now, in the order of effects."""
        effect = fx.Query(function, args)
        effect.result = Bits("result", (), function.ret.width if function.ret is not None else 64)
        self.effects.append(effect)
        return effect.result
