"""Pointer authentication: where the code goes in a pointer, and the implementation-defined algorithm that computes it.

The algorithm is three rounds of multiply and fold. It is fast and mixes well, and it is no secret: a guest that could read its
own keys could compute codes, as on hardware, and one that can't, can't. Pointers have the layout of the plain FEAT_PAuth (no
FEAT_PAuth2, no FEAT_FPAC): a failed check leaves a non-canonical pointer.
"""

from __future__ import annotations

from trapline.arm64.exceptions import current_sctlr, current_tcr
from trapline.arm64.regs import TABLE
from trapline.arm64.regs.el1 import PAUTH_KEYS, SCTLR_EL1, TCR_EL1
from trapline.arm64.state import CpuState
from trapline.bits.native import Ptr, native, u1, u64

assert TABLE is not None  # the registers have their slots

KEY_SLOTS: tuple[u64, ...] = tuple(key.slot for key in PAUTH_KEYS)
"""Storage of the keys: low and high half of IA, IB, DA, DB, GA."""

ENABLES: tuple[u64, ...] = (SCTLR_EL1.EnIA.mask, SCTLR_EL1.EnIB.mask, SCTLR_EL1.EnDA.mask, SCTLR_EL1.EnDB.mask)
"""Bits of SCTLR_EL1 that switch the keys on, by key number."""

GENERIC = 4
"""Number of the key of PACGA, after IA, IB, DA, DB."""

TBI0, TBI1, TBID0, TBID1 = TCR_EL1.TBI0.mask, TCR_EL1.TBI1.mask, TCR_EL1.TBID0.mask, TCR_EL1.TBID1.mask
T0SZ, T1SZ = TCR_EL1.T0SZ.lo, TCR_EL1.T1SZ.lo
MIN_SIZE_OFFSET, MAX_SIZE_OFFSET = 16, 39
ONES = 0xFFFF_FFFF_FFFF_FFFF


@native
def compute_pac(cpu: Ptr[CpuState], key: u64, data: u64, modifier: u64) -> u64:
    """ComputePAC(): 64 bits that depend on all bits of the key, the data and the modifier."""
    x = (data ^ cpu.sysreg[KEY_SLOTS[2 * key]]) * 0x9E3779B97F4A7C15
    x = (x ^ x >> 32 ^ modifier) * 0xBF58476D1CE4E5B9
    x = (x ^ x >> 29 ^ cpu.sysreg[KEY_SLOTS[2 * key + 1]]) * 0x94D049BB133111EB
    return x ^ x >> 31


@native
def ignores_top_byte(cpu: Ptr[CpuState], upper: u64, is_data: u1) -> u1:
    """EffectiveTBI() of the upper (1) or lower (0) address range."""
    tcr = current_tcr(cpu)
    ignored = tcr & TBI1 != 0 if upper != 0 else tcr & TBI0 != 0
    data_only = tcr & TBID1 != 0 if upper != 0 else tcr & TBID0 != 0
    return ignored and (is_data or not data_only)


@native
def bottom_pac_bit(cpu: Ptr[CpuState], upper: u64) -> u64:
    """CalculateBottomPACBit(): the number of address bits below the code."""
    tcr = current_tcr(cpu)
    size = tcr >> T1SZ & 63 if upper != 0 else tcr >> T0SZ & 63
    return 64 - min(max(size, MIN_SIZE_OFFSET), MAX_SIZE_OFFSET)


@native
def pac_mask(cpu: Ptr[CpuState], upper: u64, is_data: u1) -> u64:
    """The bits of a pointer that hold the code: below the top byte if that is ignored, and never bit 55."""
    top = u64(55) if ignores_top_byte(cpu, upper, is_data) else u64(64)
    return (ONES << bottom_pac_bit(cpu, upper)) & (ONES >> (64 - top)) & ~(u64(1) << 55)


@native
def canonical(cpu: Ptr[CpuState], pointer: u64, upper: u64, is_data: u1) -> u64:
    """The pointer with the code's bits, and bit 55, replaced by the sign."""
    mask = pac_mask(cpu, upper, is_data) | u64(1) << 55
    return pointer | mask if upper != 0 else pointer & ~mask


@native
def is_enabled(cpu: Ptr[CpuState], key: u64) -> u1:
    """Whether the key's instructions do anything at the current exception level."""
    return current_sctlr(cpu) & ENABLES[key] != 0


@native
def pac_add(cpu: Ptr[CpuState], key: u64, pointer: u64, modifier: u64) -> u64:
    """AddPAC(): keys are numbered IA, IB, DA, DB. A disabled key leaves the pointer alone."""
    if not is_enabled(cpu, key):
        return pointer
    is_data = key >= 2
    sign_bit = 55 if ignores_top_byte(cpu, 0, is_data) or ignores_top_byte(cpu, 1, is_data) else 63
    upper = pointer >> sign_bit & 1
    mask = pac_mask(cpu, upper, is_data)
    plain = canonical(cpu, pointer, upper, is_data)
    code = compute_pac(cpu, key, plain, modifier)
    extension = pointer & (mask | u64(1) << 55)
    if extension != 0 and extension != mask | u64(1) << 55:
        code = code ^ (u64(1) << 54 if ignores_top_byte(cpu, upper, is_data) else u64(1) << 62)
    return plain & ~mask | code & mask


@native
def pac_auth(cpu: Ptr[CpuState], key: u64, pointer: u64, modifier: u64) -> u64:
    """Auth(): the pointer without its code, made non-canonical when the code is wrong."""
    if not is_enabled(cpu, key):
        return pointer
    is_data = key >= 2
    upper = pointer >> 55 & 1
    plain = canonical(cpu, pointer, upper, is_data)
    if (compute_pac(cpu, key, plain, modifier) ^ pointer) & pac_mask(cpu, upper, is_data) == 0:
        return plain
    error_code = u64(2) if key & 1 != 0 else u64(1)
    at = 53 if ignores_top_byte(cpu, upper, is_data) else 61
    return plain & ~(u64(3) << at) | error_code << at


@native
def pac_strip(cpu: Ptr[CpuState], pointer: u64, is_data: u1) -> u64:
    """Strip()."""
    return canonical(cpu, pointer, pointer >> 55 & 1, is_data)


@native
def pac_generic(cpu: Ptr[CpuState], value: u64, modifier: u64) -> u64:
    """The 64 bits of which PACGA keeps the upper half."""
    return compute_pac(cpu, GENERIC, value, modifier) & 0xFFFF_FFFF_0000_0000
