"""Address translation: what a virtual address means to an access, over descriptors in memory.

The output of stage 2 (or of stage 1 where stage 2 is off) is a physical address; `memory_at` says where its bytes lie in this
process, for accesses and for descriptors. Everything is @native: it runs compiled inside the engine, and under CPython.
`stage1.py` and `stage2.py` walk, `descriptors.py` knows the formats; what ID registers show decides which features exist.

The Contiguous bit is ignored, which its definition allows; where the manual leaves a choice for a reserved configuration, this
follows the choice to fault (out-of-range TxSZ, inconsistent start level) or to take 4 KiB (reserved granule).

`translate` is for accesses, `address_translate` for AT instructions.
"""

from __future__ import annotations

from typing import Final

from trapline.arm64.descriptors import (
    ADDRESS,
    AF,
    AP_READONLY,
    AP_TABLE_NO_EL0,
    AP_TABLE_READONLY,
    ATTR_FLAT,
    ATTR_FORCED,
    ATTR_GUARDED,
    ATTR_NONGLOBAL,
    ATTR_STAGE2,
    DBM,
    FAULT,
    FAULT_FSC,
    FAULT_NO_MEMORY,
    FAULT_S1PTW,
    FAULT_STAGE2,
    INNER_SHAREABLE,
    LEVEL_SHIFT,
    LOW_48,
    MEMATTR_SHIFT,
    NORMAL_NC,
    NORMAL_WB,
    OUTER_SHAREABLE,
    PERM_ALL,
    PERMISSION,
    PRESENT,
    PXN_TABLE,
    SHARE_SHIFT,
    SIZE_SHIFT,
    TABLE,
    TRANSLATION,
    UXN_TABLE,
)
from trapline.arm64.memory import NOWHERE, is_rom, memory_at
from trapline.arm64.regs.el1 import MAIR_EL1, SCTLR_EL1, TTBR0_EL1, TTBR1_EL1
from trapline.arm64.regs.el2 import HCR_EL2, SCTLR_EL2
from trapline.arm64.stage1 import S1_STAGE2, hierarchical, leaf_of, stage1, update_descriptor
from trapline.arm64.stage2 import stage2_access
from trapline.arm64.state import REGIME_EL1, REGIME_EL2, REGIME_EL2_HOST, CpuState
from trapline.arm64.walk_cache import REGION_SHIFTS, TABLES, VALID, WalkCache
from trapline.bits.native import Ptr, load64, native, u1, u32, u64

ACCESS_READ: Final = 1
ACCESS_WRITE: Final = 2
ACCESS_EXEC: Final = 4
ACCESS_UNPRIVILEGED: Final = 8
"""What `translate` is asked for: any of read and write (both for an atomic update), or an instruction fetch. UNPRIVILEGED is for
LDTR and its like; the caller has taken PSTATE.UAO into account."""

INFO_READ: Final = 1
INFO_WRITE: Final = 2
INFO_NONGLOBAL: Final = 4
INFO_EXEC: Final = 8
INFO_DEVICE: Final = 16
INFO_GUARDED: Final = 32
INFO_SIZE_SHIFT: Final = 8
"""Parts of `translate`'s last result: what this exception level may do (PSTATE.PAN included) with the page, a write to a page that
is not yet dirty excluded; whether it belongs to one ASID; whether it is Device memory; whether it is guarded (if there is FEAT_BTI);
and from bit 8 on, log2 of the size of the stage-1 block or page."""

RULE_PAN, RULE_EPAN, RULE_WXN = 1, 2, 4
"""What besides descriptors decides permissions of stage 1: PSTATE.PAN, SCTLR_ELx.EPAN and WXN."""

HOST: Final = HCR_EL2.E2H.mask | HCR_EL2.TGE.mask

NC_HALF = 4
"""Non-cacheable in one half of a memory type."""

PAR_F, PAR_RES1, PAR_NS, PAR_PTW, PAR_S = 1, 1 << 11, 1 << 9, 1 << 8, 1 << 9


@native
def regime_of(cpu: CpuState, el: u32) -> u32:
    """The translation regime of an exception level; EL1 where a host rules stands for that host, as in AT S1E1R."""
    hcr = cpu.sysreg[HCR_EL2.slot]
    if el == 2:
        return REGIME_EL2_HOST if hcr & HCR_EL2.E2H.mask != 0 else u32(REGIME_EL2)
    return REGIME_EL2_HOST if hcr & HOST == HOST else u32(REGIME_EL1)


@native
def rules_of(cpu: CpuState, regime: u32, pan: u1) -> u32:
    """RULE_ flags of a regime."""
    sctlr = cpu.sysreg[SCTLR_EL1.slot] if regime == REGIME_EL1 else cpu.sysreg[SCTLR_EL2.slot]
    rules: u32 = RULE_WXN if sctlr & SCTLR_EL1.WXN.mask != 0 else u32(0)
    if pan and regime != REGIME_EL2:
        rules |= RULE_PAN | RULE_EPAN if sctlr & SCTLR_EL2.EPAN.mask != 0 else u32(RULE_PAN)
    return rules


@native
def permitted(leaf: u32, el0: u1, rules: u32) -> u32:
    """What EL0 or the privileged level may do, as ACCESS_ flags, by a leaf of stage 1."""
    user = leaf & 7
    privileged = leaf >> 3 & 7
    if leaf & ATTR_FLAT == 0:
        if rules & RULE_PAN != 0 and (user & ACCESS_READ != 0 or (rules & RULE_EPAN != 0 and user & ACCESS_EXEC != 0)):
            privileged &= ACCESS_EXEC
        if rules & RULE_WXN != 0:
            if user & ACCESS_WRITE != 0:
                user &= ~ACCESS_EXEC
            if privileged & ACCESS_WRITE != 0:
                privileged &= ~ACCESS_EXEC
    return user if el0 else privileged


@native
def translate_at(
    cpu: CpuState, va: u64, access: u32, el: u32, pan: u1, second: u1, carried_out: u1, cache: u64
) -> tuple[u32, u64, u64, u32, u32]:
    """Translate for exception level `el`: (fault, output, IPA, leaf of stage 1, leaf of stage 2).

    Stage 2 takes part in the regime of EL1&0 if `second` and it is on; otherwise the output is that of stage 1. `carried_out`: the
    access will happen if it may, so a write makes its page dirty.
    """
    el0 = el == 0
    regime = regime_of(cpu, el)
    write = access & ACCESS_WRITE != 0
    needed = access & (ACCESS_READ | ACCESS_WRITE | ACCESS_EXEC)
    rules = rules_of(cpu, regime, pan)
    staged = regime == REGIME_EL1 and cpu.sysreg[HCR_EL2.slot] & (HCR_EL2.VM.mask | HCR_EL2.DC.mask) != 0
    while True:
        fault, output, leaf, where, old, new = stage1(cpu, va, regime, el0, access & ACCESS_EXEC != 0, write, cache)
        if fault != 0:
            return fault, 0, where, 0, 0
        level = leaf >> LEVEL_SHIFT & 3
        if permitted(leaf, el0, rules) & needed != needed:
            return FAULT | PERMISSION | level, 0, 0, 0, 0
        if not carried_out:
            new = new & ~u64(AP_READONLY) | old & AP_READONLY
        if new == old:
            break
        fault, done = update_descriptor(cpu, where, level, old, new, staged, cache)
        if fault != 0:
            return fault, 0, where, 0, 0
        if done:
            break
    if not staged or not second:
        return 0, output, output, leaf, PERM_ALL | NORMAL_WB << MEMATTR_SHIFT
    fault, physical, outer = stage2_access(cpu, output, needed if el0 else needed << 3, cache, carried_out)
    return fault, physical, output, leaf, outer


NOT_SHORT = 0xFFFF_FFFF
"""Instead of a fault: the whole walk has to say."""
TAKEN_AWAY = AP_TABLE_READONLY | AP_TABLE_NO_EL0 | PXN_TABLE | UXN_TABLE
CANONICAL_HIGH = 0x1FF


@native
def shortcut(cpu: CpuState, va: u64, access: u32, el0: u1, pan: u1, cache: u64) -> tuple[u32, u64, u64, u32, u32]:
    """`translate_at` for what kernels and programs do all the time: a page of EL1&0 whose table a walk has found before.

    The descriptor is read from memory, so that it can tell of a fault, too. NOT_SHORT for everything that is not plain: descriptors
    that would have to be updated, what table descriptors forbid, tags in pointers.
    """
    top = va >> 55
    known = Ptr[WalkCache](cache).tables[va >> REGION_SHIFTS[0] & (TABLES - 1)]
    if known.tag != VALID | va << 8 >> 8 >> REGION_SHIFTS[0] or known.host == 0 or (top != 0 and (el0 or top != CANONICAL_HIGH)):
        return NOT_SHORT, 0, 0, 0, 0
    if known.ttbr0 != cpu.sysreg[TTBR0_EL1.slot] or known.ttbr1 != cpu.sysreg[TTBR1_EL1.slot]:
        return NOT_SHORT, 0, 0, 0, 0
    descriptor = load64(known.host + (va >> 9 & 0xFF8))
    if descriptor & (PRESENT | TABLE) != PRESENT | TABLE:
        return FAULT | TRANSLATION | 3, 0, 0, 0, 0
    write = access & ACCESS_WRITE != 0
    output = descriptor & LOW_48 & ~u64(0xFFF) | va & 0xFFF
    if descriptor & AF == 0 or output >> known.output_bits != 0 or (write and descriptor & (DBM | AP_READONLY) == DBM | AP_READONLY):
        return NOT_SHORT, 0, 0, 0, 0
    control = u32(known.control)
    leaf = leaf_of(hierarchical(descriptor, known.inherited, control), 3, 12, cpu.sysreg[MAIR_EL1.slot], control, u32(descriptor >> 8 & 3))
    needed = access & (ACCESS_READ | ACCESS_WRITE | ACCESS_EXEC)
    if permitted(leaf, el0, rules_of(cpu, REGIME_EL1, pan)) & needed != needed:
        return FAULT | PERMISSION | 3 if known.inherited & TAKEN_AWAY == 0 else u32(NOT_SHORT), 0, 0, 0, 0
    if control & S1_STAGE2 == 0:
        return 0, output, output, leaf, PERM_ALL | NORMAL_WB << MEMATTR_SHIFT
    fault, physical, outer = stage2_access(cpu, output, needed if el0 else needed << 3, cache, True)
    return 0 if fault == 0 else u32(NOT_SHORT), physical, output, leaf, outer


@native
def translate(cpu: CpuState, va: u64, access: u32) -> tuple[u32, u64, u64, u32]:
    """`translate_cached` without a cache: what memory says now."""
    return translate_cached(cpu, va, access, 0)


@native
def translate_cached(cpu: CpuState, va: u64, access: u32, cache: u64) -> tuple[u32, u64, u64, u32]:
    """Translate an access at the current exception level: (fault, host address, IPA, info).

    `access` holds ACCESS_ flags. `fault` is 0, or FAULT with the fault status code in its low six bits, FAULT_STAGE2 for a fault
    of stage 2 (the IPA is then what HPFAR_EL2 wants) and FAULT_S1PTW if that was met on a stage-1 descriptor. `info` holds INFO_
    flags: permissions of this level, not only the one that was asked for, so that a TLB entry can be filled from it.

    `cache` is the address of a WalkCache that shortens walks, or 0; a fault is what memory says, at least in the table that is read last.
    """
    el = u32(cpu.el)
    if access & ACCESS_UNPRIVILEGED != 0 and (el != 2 or cpu.sysreg[HCR_EL2.slot] & HOST == HOST):
        el = 0
    pan = cpu.pan != 0 and el != 0
    regime = regime_of(cpu, el)
    fault: u32 = NOT_SHORT
    physical: u64 = 0
    ipa: u64 = 0
    inner: u32 = 0
    outer: u32 = 0
    if cache != 0 and regime == REGIME_EL1:
        fault, physical, ipa, inner, outer = shortcut(cpu, va, access, el == 0, pan, cache)
    if fault == NOT_SHORT:
        fault, physical, ipa, inner, outer = translate_at(cpu, va, access, el, pan, True, True, cache)
        if fault != 0 and cache != 0:
            fault, physical, ipa, inner, outer = translate_at(cpu, va, access, el, pan, True, True, 0)
    if fault != 0:
        return fault, 0, ipa, 0
    host = memory_at(cpu, physical)
    rom = is_rom(cpu, physical)
    if host == NOWHERE or (rom and access & ACCESS_WRITE != 0):
        return FAULT | FAULT_NO_MEMORY, 0, physical, 0
    allowed = permitted(inner, el == 0, rules_of(cpu, regime, pan)) & (outer & 7 if el == 0 else outer >> 3 & 7)
    info = allowed & (INFO_READ | INFO_WRITE) | (inner >> SIZE_SHIFT & 0xFF) << INFO_SIZE_SHIFT
    if rom:
        info &= ~INFO_WRITE
    if allowed & ACCESS_EXEC != 0:
        info |= INFO_EXEC
    if inner & ATTR_NONGLOBAL != 0:
        info |= INFO_NONGLOBAL
    if inner & ATTR_GUARDED != 0:
        info |= INFO_GUARDED
    if inner >> MEMATTR_SHIFT & 0xF0 == 0 or outer >> MEMATTR_SHIFT & 0xF0 == 0:
        info |= INFO_DEVICE
    return 0, host, ipa, info


@native
def combine_attributes(inner: u32, outer: u32) -> u32:
    """Memory type after both stages: the weaker one (attribute bytes as in MAIR)."""
    if inner & 0xF0 == 0 or outer & 0xF0 == 0:
        if inner & 0xF0 != 0:
            return outer
        return inner if outer & 0xF0 != 0 else min(inner, outer)
    return combine_cacheability(inner >> 4, outer >> 4) << 4 | combine_cacheability(inner & 15, outer & 15)


@native
def combine_cacheability(inner: u32, outer: u32) -> u32:
    """Half of a Normal memory type after both stages: Non-cacheable, then Write-Through wins; stage 1 says how to allocate."""
    if inner == NC_HALF or outer == NC_HALF:
        return NC_HALF
    return 8 | inner & 3 if outer >> 2 == 2 and inner >> 2 not in (0, 2) else inner


@native
def force_write_back(inner: u32) -> u32:
    """The memory type that stage 2 forces: Write-Back, with stage 1's allocation hints if it has any."""
    if inner & 0xF0 == 0:
        return NORMAL_WB
    high = inner >> 4
    low = inner & 15
    return (15 if high == NC_HALF else high | 4) << 4 | (15 if low in (0, NC_HALF) else low | 4)


@native
def combine_shareability(inner: u32, outer: u32) -> u32:
    """Shareability after both stages: the wider one."""
    if inner == OUTER_SHAREABLE or outer == OUTER_SHAREABLE:
        return OUTER_SHAREABLE
    return INNER_SHAREABLE if inner == INNER_SHAREABLE or outer == INNER_SHAREABLE else u32(0)


@native
def address_translate(cpu: CpuState, va: u64, stages: u32, el: u32, write: u1, pan: u1) -> u64:
    """The PAR_EL1 value of an AT instruction: `stages` 1 or 2 (both), for EL `el`, checking PSTATE.PAN if `pan`.

    A stage-2 fault on a stage-1 descriptor is reported here as in PAR_EL1; an AT of EL1 owes EL2 a data abort for it: see
    `address_translate_fault`.
    """
    access: u32 = ACCESS_WRITE if write else ACCESS_READ
    second = stages != 1
    fault, output, _, inner, outer = translate_at(cpu, va, access, el, pan and cpu.pan != 0 and el != 0, second, False, 0)
    if fault != 0:
        par = PAR_F | PAR_RES1 | u64(fault & FAULT_FSC) << 1
        if fault & FAULT_S1PTW != 0:
            par |= PAR_PTW
        if fault & FAULT_STAGE2 != 0:
            par |= PAR_S
        return par
    attribute = inner >> MEMATTR_SHIFT & 0xFF
    share = inner >> SHARE_SHIFT & 3
    if outer & ATTR_STAGE2 != 0:
        share = combine_shareability(share, outer >> SHARE_SHIFT & 3)
        if outer & ATTR_FORCED != 0:
            attribute = force_write_back(attribute)
        else:
            attribute = combine_attributes(attribute, outer >> MEMATTR_SHIFT & 0xFF)
    if attribute & 0xF0 == 0 or attribute == NORMAL_NC:
        share = OUTER_SHAREABLE
    return output & ADDRESS & ~0xFFF | PAR_RES1 | PAR_NS | u64(share) << 7 | u64(attribute) << 56


@native
def address_translate_fault(cpu: CpuState, va: u64, el: u32, write: u1, pan: u1) -> tuple[u32, u64]:
    """For AT S1E0* and S1E1* at EL1: the stage-2 fault on a stage-1 descriptor that goes to EL2 instead of PAR_EL1, and its IPA.

    The fault is 0 if there is none, and PAR_EL1 is to be written.
    """
    access: u32 = ACCESS_WRITE if write else ACCESS_READ
    fault, _, ipa, _, _ = translate_at(cpu, va, access, el, pan and cpu.pan != 0 and el != 0, False, False, 0)
    return fault if fault & FAULT_S1PTW != 0 else 0, ipa
