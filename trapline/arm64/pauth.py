"""Pointer authentication: where the code goes in a pointer, and how it is computed, as the ID registers tell it.

The algorithm is QARMA5 or QARMA3 (`qarma.py`) or the implementation-defined one, two multiplications whose products are folded, which
is the quick one. It mixes well, and it is no secret: a guest that could read its own keys could compute codes, as on hardware, and one that
can't, can't. What happens to a pointer that already has high bits, and to one whose check fails, depends on FEAT_EPAC, FEAT_PAuth2
and FEAT_FPAC; without those a failed check leaves a non-canonical pointer.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.exceptions import current_sctlr, current_tcr
from trapline.arm64.qarma import qarma
from trapline.arm64.regs import TABLE
from trapline.arm64.regs.el1 import PAUTH_KEYS, SCTLR_EL1, TCR_EL1
from trapline.arm64.regs.identification import ID_AA64ISAR1_EL1, ID_AA64ISAR2_EL1, ID_AA64MMFR2_EL1
from trapline.arm64.state import REGIME_EL1, CpuState
from trapline.bits.native import Ptr, native, u1, u64, u128

assert TABLE is not None  # the registers have their slots

KEY_SLOTS: tuple[u64, ...] = tuple(key.slot for key in PAUTH_KEYS)
"""Storage of the keys: low and high half of IA, IB, DA, DB, GA."""

ENABLES: tuple[u64, ...] = (SCTLR_EL1.EnIA.mask, SCTLR_EL1.EnIB.mask, SCTLR_EL1.EnDA.mask, SCTLR_EL1.EnDB.mask)
"""Bits of SCTLR_EL1 that switch the keys on, by key number."""

GENERIC = 4
"""Number of the key of PACGA, after IA, IB, DA, DB."""

T0SZ, T1SZ = TCR_EL1.T0SZ.lo, TCR_EL1.T1SZ.lo
MIN_SIZE_OFFSET, MAX_SIZE_OFFSET = 16, 39
TG0_64K, TG1_64K = 1, 3
ONES = 0xFFFF_FFFF_FFFF_FFFF
SIGN = 1 << 55
"""The bit of a pointer that says which address range it is of."""
BELOW_TOP_BYTE = SIGN - 1


API, APA, APA3 = ID_AA64ISAR1_EL1.API, ID_AA64ISAR1_EL1.APA, ID_AA64ISAR2_EL1.APA3
EPAC, PAUTH2, FPAC, FPACCOMBINE = 2, 3, 4, 5
"""Values of those fields: what more there is than FEAT_PAuth."""
PLAIN = 1 << API.lo


@native
def pac_level(cpu: Ptr[CpuState]) -> u64:
    """The value of the one field that describes pointer authentication."""
    isar1 = cpu.sysreg[ID_AA64ISAR1_EL1.slot]
    return (isar1 >> API.lo | isar1 >> APA.lo | cpu.sysreg[ID_AA64ISAR2_EL1.slot] >> APA3.lo) & 15


@native
def compute_pac(cpu: Ptr[CpuState], key: u64, data: u64, modifier: u64) -> u64:
    """ComputePAC(): 64 bits that depend on all bits of the key, the data and the modifier."""
    if cpu.sysreg[ID_AA64ISAR1_EL1.slot] & API.mask == 0:
        return compute_qarma(cpu, key, data, modifier)
    return mix(cpu, key, data, modifier)


@native
def mix(cpu: Ptr[CpuState], key: u64, data: u64, modifier: u64) -> u64:
    """ComputePAC() by the implementation-defined algorithm."""
    low = cpu.sysreg[KEY_SLOTS[2 * key]]
    high = cpu.sysreg[KEY_SLOTS[2 * key + 1]]
    product = u128(data ^ low ^ 0x9E3779B97F4A7C15) * u128(modifier ^ high ^ 0xBF58476D1CE4E5B9)
    x = (u64(product) ^ u64(product >> 64)) * 0x94D049BB133111EB
    return x ^ x >> 31


@native
def compute_qarma(cpu: Ptr[CpuState], key: u64, data: u64, modifier: u64) -> u64:
    """ComputePAC() by QARMA5 or QARMA3."""
    low = cpu.sysreg[KEY_SLOTS[2 * key]]
    high = cpu.sysreg[KEY_SLOTS[2 * key + 1]]
    return qarma(data, modifier, high, low, cpu.sysreg[ID_AA64ISAR1_EL1.slot] & APA.mask == 0)


@native
def ignored_top_bytes(tcr: u64, is_data: u1) -> u64:
    """EffectiveTBI() of the lower (bit 0) and the upper (bit 1) address range."""
    ignored = tcr >> TCR_EL1.TBI0.lo & 3
    return ignored if is_data else ignored & ~(tcr >> TCR_EL1.TBID0.lo)


@native
def unusual_size(cpu: Ptr[CpuState], tcr: u64, upper: u64, size: u64) -> u64:
    """AArch64.PACEffectiveTxSZ(): the sizes of 52-bit addresses and small tables, where there are such, else the nearest."""
    mmfr2 = cpu.sysreg[ID_AA64MMFR2_EL1.slot]
    large = tcr >> TCR_EL1.TG1.lo & 3 == TG1_64K if upper != 0 else tcr >> TCR_EL1.TG0.lo & 3 == TG0_64K
    least: u64 = 12 if tcr & TCR_EL1.DS.mask != 0 or (large and mmfr2 & ID_AA64MMFR2_EL1.VARange.mask != 0) else u64(MIN_SIZE_OFFSET)
    most: u64 = MAX_SIZE_OFFSET
    if mmfr2 & ID_AA64MMFR2_EL1.ST.mask != 0:
        most = 47 if large else u64(48)
    return min(max(size, least), most)


@native
def pac_mask(cpu: Ptr[CpuState], tcr: u64, upper: u64, ignored: u64) -> u64:
    """The bits of a pointer that hold the code: from CalculateBottomPACBit() to below the top byte if that is ignored, never bit 55."""
    size = tcr >> (T1SZ if upper != 0 else u64(T0SZ)) & 63
    if size < MIN_SIZE_OFFSET or size > MAX_SIZE_OFFSET:
        size = unusual_size(cpu, tcr, upper, size)
    return (ONES << (64 - size)) & (BELOW_TOP_BYTE if ignored >> upper & 1 != 0 else u64(ONES)) & ~SIGN


@native
def is_enabled(cpu: Ptr[CpuState], key: u64) -> u1:
    """Whether the key's instructions do anything at the current exception level."""
    return current_sctlr(cpu) & ENABLES[key] != 0


@native
def usual_mask(cpu: Ptr[CpuState], key: u64, pointer: u64) -> u64:
    """`pac_mask` if the key is enabled in EL1&0 and the algorithm is our own, with plain FEAT_PAuth; 0 where that is not so, or not noted.

    Pointers are signed and checked in every function of a kernel, nearly always under these circumstances.
    """
    return cpu.pac_masks[2 * key | pointer >> 55 & 1] if is_noted(cpu) else u64(0)


@native
def is_noted(cpu: Ptr[CpuState]) -> u1:
    """Does what `note_masks` noted last hold?"""
    if cpu.regime != REGIME_EL1 or cpu.pac_controls[0] != cpu.sysreg[SCTLR_EL1.slot]:
        return False
    return cpu.pac_controls[1] == cpu.sysreg[TCR_EL1.slot] and cpu.pac_controls[2] == cpu.sysreg[ID_AA64ISAR1_EL1.slot]


@native
def note_masks(cpu: Ptr[CpuState]) -> None:
    """Note what `usual_mask` wants, of every key and both address ranges, and under which values of registers it holds."""
    sctlr = cpu.sysreg[SCTLR_EL1.slot]
    tcr = cpu.sysreg[TCR_EL1.slot]
    isar1 = cpu.sysreg[ID_AA64ISAR1_EL1.slot]
    cpu.pac_controls[0] = sctlr
    cpu.pac_controls[1] = tcr
    cpu.pac_controls[2] = isar1
    for key in range(GENERIC):
        for upper in range(2):
            mask: u64 = 0
            if sctlr & ENABLES[key] != 0 and isar1 & (API.mask | APA.mask) == PLAIN:
                mask = pac_mask(cpu, tcr, upper, ignored_top_bytes(tcr, key >= 2))
            cpu.pac_masks[2 * key | upper] = mask


@native
def pac_add(cpu: Ptr[CpuState], key: u64, pointer: u64, modifier: u64) -> u64:
    """AddPAC(): keys are numbered IA, IB, DA, DB. A disabled key leaves the pointer alone."""
    mask = usual_mask(cpu, key, pointer)
    sign: u64 = mask | SIGN if pointer & SIGN != 0 else u64(0)
    if mask == 0 or pointer & (mask | SIGN) != sign:
        return pac_add_any(cpu, key, pointer, modifier)
    return pointer & ~mask | mix(cpu, key, pointer, modifier) & mask


@native(seldom=True)
def pac_add_any(cpu: Ptr[CpuState], key: u64, pointer: u64, modifier: u64) -> u64:
    """`pac_add` under any circumstances, of any pointer."""
    if cpu.regime == REGIME_EL1 and not is_noted(cpu):
        note_masks(cpu)
    if not is_enabled(cpu, key):
        return pointer
    tcr = current_tcr(cpu)
    ignored = ignored_top_bytes(tcr, key >= 2)
    upper = (pointer >> 55 if ignored != 0 else pointer >> 63) & 1
    mask = pac_mask(cpu, tcr, upper, ignored)
    plain = pointer | mask | SIGN if upper != 0 else pointer & ~(mask | SIGN)
    code = compute_pac(cpu, key, plain, modifier)
    level = pac_level(cpu)
    if level >= PAUTH2:
        return plain & ~mask | (pointer ^ code) & mask
    extension = pointer & (mask | SIGN)
    if extension != 0 and extension != mask | SIGN:
        if level == EPAC:
            code = 0
        else:
            code = code ^ (u64(1) << 54 if ignored >> upper & 1 != 0 else u64(1) << 62)
    return plain & ~mask | code & mask


@native
def pac_auth(cpu: Ptr[CpuState], key: u64, pointer: u64, modifier: u64) -> u64:
    """Auth(): the pointer without its code, made non-canonical when the code is wrong."""
    mask = usual_mask(cpu, key, pointer)
    plain = pointer | mask if pointer & SIGN != 0 else pointer & ~mask
    if mask == 0 or (mix(cpu, key, plain, modifier) ^ pointer) & mask != 0:
        return pac_auth_any(cpu, key, pointer, modifier)
    return plain


@native(seldom=True)
def pac_auth_any(cpu: Ptr[CpuState], key: u64, pointer: u64, modifier: u64) -> u64:
    """`pac_auth` under any circumstances, of any pointer."""
    if cpu.regime == REGIME_EL1 and not is_noted(cpu):
        note_masks(cpu)
    if not is_enabled(cpu, key):
        return pointer
    tcr = current_tcr(cpu)
    ignored = ignored_top_bytes(tcr, key >= 2)
    upper = pointer >> 55 & 1
    mask = pac_mask(cpu, tcr, upper, ignored)
    plain = pointer | mask | SIGN if upper != 0 else pointer & ~(mask | SIGN)
    code = compute_pac(cpu, key, plain, modifier)
    if pac_level(cpu) >= PAUTH2:
        return pointer ^ code & mask
    if (code ^ pointer) & mask == 0:
        return plain
    error_code = u64(2) if key & 1 != 0 else u64(1)
    at = 53 if ignored >> upper & 1 != 0 else 61
    return plain & ~(u64(3) << at) | error_code << at


@native
def pac_failed(cpu: Ptr[CpuState], key: u64, result: u64) -> u1:
    """With FEAT_PAuth2: is what `pac_auth` gave the sign of a failed check?"""
    if not is_enabled(cpu, key):
        return False
    return result != pac_strip(cpu, result, key >= 2)


@native
def pac_strip(cpu: Ptr[CpuState], pointer: u64, is_data: u1) -> u64:
    """Strip(): the pointer with the code's bits replaced by its sign."""
    tcr = current_tcr(cpu)
    upper = pointer >> 55 & 1
    mask = pac_mask(cpu, tcr, upper, ignored_top_bytes(tcr, is_data))
    return pointer | mask if upper != 0 else pointer & ~mask


@native
def pac_generic(cpu: Ptr[CpuState], value: u64, modifier: u64) -> u64:
    """The 64 bits of which PACGA keeps the upper half."""
    return compute_pac(cpu, GENERIC, value, modifier) & 0xFFFF_FFFF_0000_0000


KEYS = ("ia", "ib", "da", "db")


def _for_key(function: Any, key: int) -> Any:
    """`pac_add` or `pac_auth` with a key that is known when it is compiled."""

    @native(name=f"{function.name}_{KEYS[key]}")
    def with_key(cpu: Ptr[CpuState], pointer: u64, modifier: u64) -> u64:
        return function(cpu, key, pointer, modifier)

    return with_key


PAC_ADD, PAC_AUTH = ([_for_key(function, key) for key in range(GENERIC)] for function in (pac_add, pac_auth))
"""By number of the key."""
