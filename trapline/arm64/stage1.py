"""Stage 1 of translation: virtual addresses to (intermediate) physical ones, in each regime.

EL1&0 and EL2&0 (HCR_EL2.E2H=1) have two address ranges, EL0, and ASIDs; EL2 alone has one range and no EL0.
"""

from __future__ import annotations

from typing import Final

from trapline.arm64.descriptors import (
    ACCESS_FLAG,
    ADDRESS,
    ADDRESS_SIZE,
    AF,
    AP_EL0,
    AP_READONLY,
    AP_TABLE_NO_EL0,
    AP_TABLE_READONLY,
    ATTR_FLAT,
    ATTR_GUARDED,
    ATTR_NONGLOBAL,
    DBM,
    DEVICE_NGNRNE,
    EXEC0,
    EXEC1,
    EXTERNAL_WALK,
    FAULT,
    FAULT_S1PTW,
    FAULT_STAGE2,
    FAULT_UPDATE,
    GP,
    GRANULE_HIGH,
    GRANULE_LOW,
    LEVEL_SHIFT,
    MEMATTR_SHIFT,
    NG,
    NORMAL_NC,
    NORMAL_WB,
    OUTER_SHAREABLE,
    PERM_ALL,
    PERMISSION,
    PS_52,
    PXN,
    PXN_TABLE,
    READ0,
    READ1,
    SHARE_SHIFT,
    SIZE_SHIFT,
    TRANSLATION,
    UXN,
    UXN_TABLE,
    WRITE0,
    WRITE1,
    descriptor_output,
    has_lpa2,
    id_field,
    index_bits,
    is_leaf,
    is_reserved,
    max_tsz,
    min_tsz,
    output_size,
    pack_leaf,
    physical_bits,
    status,
    table_base,
)
from trapline.arm64.memory import NOWHERE, is_rom, memory_at
from trapline.arm64.regs.el1 import MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1
from trapline.arm64.regs.el2 import HCR_EL2, MAIR_EL2, SCTLR_EL2, TCR_EL2, TTBR0_EL2, TTBR1_EL2
from trapline.arm64.regs.identification import ID_AA64MMFR1_EL1
from trapline.arm64.stage2 import HAFDBS, stage2_access
from trapline.arm64.state import REGIME_EL1, REGIME_EL2, CpuState
from trapline.arm64.walk_cache import TABLES, VALID, WalkCache
from trapline.bits.native import Ptr, cas64, load64, native, u1, u32, u64

S1_HPD, S1_ONE_LEVEL, S1_WXN, S1_STAGE2, S1_WRITE, S1_HA, S1_HD, S1_DS, S1_WIDE_TTBR, S1_OTHER_SPACE = (1 << k for k in range(10))
"""Controls of a walk in one word: hierarchical permissions disabled; no EL0 in this regime; SCTLR.WXN; descriptors go through stage
2; the access writes; access flag and dirty state are updated; TCR.DS; TTBR holds address bits 51:48; not EL1&0 (for the cache)."""

SPACE_EL2: Final = 1
"""Bit of a cached table's address space that says it is not EL1&0."""

Step = tuple[u32, u64, u32, u64, u64, u64]
"""What a walk of stage 1 gives: fault, output address, leaf; (intermediate) physical address of the last descriptor (with a fault
of stage 2: of the one refused), its value, and what it should be."""


@native
def descriptor_address(cpu: CpuState, ipa: u64, control: u32, cache: u64, update: u1) -> tuple[u32, u64]:
    """Where a stage-1 descriptor lies: (fault, physical address). `update`: to write it."""
    if control & S1_STAGE2 == 0:
        return 0, ipa
    fault, physical, leaf = stage2_access(cpu, ipa, READ1 | WRITE1 if update else u32(READ1), cache, update)
    if fault == 0 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.PTW.mask != 0 and leaf >> MEMATTR_SHIFT & 0xF0 == 0:
        fault = FAULT | FAULT_STAGE2 | PERMISSION | leaf >> LEVEL_SHIFT & 3
    if fault != 0:
        fault |= FAULT_S1PTW
        if update:
            fault |= FAULT_UPDATE
    return fault, physical


@native
def leaf_of(descriptor: u64, level: u32, shift: u32, mair: u64, control: u32, share: u32) -> u32:
    """Permissions and attributes of a block or page (hierarchical ones applied already), packed; WXN and PAN come later."""
    permissions: u32 = READ1
    writable = descriptor & AP_READONLY == 0
    if writable:
        permissions |= WRITE1
    if control & S1_ONE_LEVEL != 0:
        if descriptor & UXN == 0:
            permissions |= EXEC1
    else:
        if descriptor & AP_EL0 != 0:
            permissions |= READ0 | WRITE0 if writable else u32(READ0)
        if descriptor & UXN == 0:
            permissions |= EXEC0
        if descriptor & PXN == 0 and permissions & WRITE0 == 0:
            permissions |= EXEC1
        if descriptor & NG != 0:
            permissions |= ATTR_NONGLOBAL
    if descriptor & GP != 0:
        permissions |= ATTR_GUARDED
    attribute = u32(mair >> ((descriptor >> 2 & 7) << 3) & 0xFF)
    return pack_leaf(permissions, level, shift, attribute, share)


@native
def hierarchical(descriptor: u64, inherited: u64, control: u32) -> u64:
    """A leaf with what the table descriptors above it take away (`inherited`: all of them ORed)."""
    if control & S1_HPD != 0:
        return descriptor
    if inherited & AP_TABLE_READONLY != 0:
        descriptor |= AP_READONLY
    if inherited & UXN_TABLE != 0:
        descriptor |= UXN
    if control & S1_ONE_LEVEL == 0:
        if inherited & AP_TABLE_NO_EL0 != 0:
            descriptor &= ~AP_EL0
        if inherited & PXN_TABLE != 0:
            descriptor |= PXN
    return descriptor


@native
def walk_stage1(
    cpu: CpuState, va: u64, ttbr: u64, asid: u64, tsz: u32, granule: u32, output_bits: u32, mair: u64, share: u32, control: u32, cache: u64
) -> Step:
    """Walk stage 1; the address bits above the input size have been checked, permissions are not.

    `control` holds S1_ flags; `cache` is the address of a WalkCache, in which tables are entered for `asid`, or 0; `share` is the
    shareability where descriptors have no field for it.
    """
    ds = control & S1_DS != 0
    large = physical_bits(cpu) == 52
    stride = granule - 3
    input_bits = 64 - tsz
    level = 3 - (input_bits - 1 - granule) // stride
    bits = index_bits(input_bits, level, granule)
    base = table_base(ttbr, bits, control & S1_WIDE_TTBR != 0)
    if base >> output_bits != 0:
        return FAULT | ADDRESS_SIZE, 0, 0, 0, 0, 0
    inherited: u64 = 0
    region = granule + stride
    tag = VALID | va << 8 >> 8 >> region
    space = asid << 48 | base | (SPACE_EL2 if control & S1_OTHER_SPACE != 0 else u64(0))
    if base >> 48 != 0:
        cache = 0  # no room for such an address in the cache's tag
    if cache != 0:
        known = Ptr[WalkCache](cache).tables[va >> region & (TABLES - 1)]
        if known.tag == tag and known.space == space:
            level = 3
            bits = stride
            base = known.table
            inherited = known.inherited
    while True:
        shift = granule + (3 - level) * stride
        index = va >> shift & ((u64(1) << bits) - 1)
        where = base + (index << 3)
        fault, physical = descriptor_address(cpu, where, control, cache, False)
        if fault != 0:
            return fault, 0, 0, where, 0, 0
        host = memory_at(cpu, physical)
        if host == NOWHERE:
            return FAULT | status(EXTERNAL_WALK, level), 0, 0, 0, 0, 0
        descriptor = load64(host)
        if is_reserved(descriptor, level, granule, ds, large):
            return FAULT | status(TRANSLATION, level), 0, 0, 0, 0, 0
        leaf = is_leaf(descriptor, level)
        base = descriptor_output(descriptor, shift if leaf else granule, granule, ds, large)
        if base >> output_bits != 0:
            return FAULT | status(ADDRESS_SIZE, level), 0, 0, 0, 0, 0
        if leaf:
            wanted = descriptor
            if descriptor & AF == 0:
                if control & S1_HA == 0:
                    return FAULT | ACCESS_FLAG | level, 0, 0, 0, 0, 0
                wanted |= AF
            if control & (S1_HD | S1_WRITE) == S1_HD | S1_WRITE and descriptor & DBM != 0:
                wanted &= ~u64(AP_READONLY)
            effective = hierarchical(wanted, inherited, control)
            packed = leaf_of(effective, level, shift, mair, control, share if ds else u32(descriptor >> 8 & 3))
            if cache != 0 and level == 3 and granule == 12 and control & (S1_OTHER_SPACE | S1_DS) == 0:
                reached = Ptr[WalkCache](cache).tables[va >> region & (TABLES - 1)]
                if reached.tag == tag and reached.space == space:
                    reached.host = host - (index << 3)
                    reached.ttbr0 = cpu.sysreg[TTBR0_EL1.slot]
                    reached.ttbr1 = cpu.sysreg[TTBR1_EL1.slot]
                    reached.control = u64(control & ~u32(S1_WRITE))
                    reached.output_bits = u64(output_bits)
            return 0, base | va & ((u64(1) << shift) - 1), packed, where, descriptor, wanted
        inherited |= descriptor
        level += 1
        bits = stride
        if level == 3 and cache != 0:
            found = Ptr[WalkCache](cache).tables[va >> region & (TABLES - 1)]
            found.tag = tag
            found.space = space
            found.table = base
            found.inherited = inherited
            found.host = 0


@native
def update_descriptor(cpu: CpuState, where: u64, level: u32, old: u64, new: u64, second: u1, cache: u64) -> tuple[u32, u1]:
    """Write access flag and dirty state into a stage-1 descriptor: (fault, whether it still had its old value)."""
    control: u32 = S1_STAGE2 if second else u32(0)
    fault, physical = descriptor_address(cpu, where, control, cache, True)
    if fault != 0:
        return fault, False
    host = memory_at(cpu, physical)
    if host == NOWHERE or is_rom(cpu, physical):
        return FAULT | status(EXTERNAL_WALK, level), False
    return 0, cas64(host, old, new) == old


# ---- regimes ------------------------------------------------------------------------------------------------------------------


@native
def in_range(va: u64, tsz: u32, tbi: u1) -> u1:
    """Are the address bits above the input size copies of bit 55 (the top byte aside with TBI)?"""
    extended = va << 8 if tbi else va
    unused = tsz - 8 if tbi else tsz
    top = extended >> (64 - unused)
    return top == 0 or top == (u64(1) << unused) - 1


@native
def flat(cpu: CpuState, va: u64, tbi: u1, attribute: u32) -> Step:
    """Stage 1 that is switched off: the address itself, with all permissions."""
    address = va << 8 >> 8 if tbi else va
    if address >> physical_bits(cpu) != 0:
        return FAULT | ADDRESS_SIZE, 0, 0, 0, 0, 0
    share: u32 = OUTER_SHAREABLE
    if attribute == NORMAL_WB:
        share = 0
    leaf = PERM_ALL | ATTR_FLAT | 12 << SIZE_SHIFT | attribute << MEMATTR_SHIFT | share << SHARE_SHIFT
    return 0, va & ADDRESS, leaf, 0, 0, 0


@native
def current_asid(tcr: u64, ttbr0: u64, ttbr1: u64) -> u64:
    """The ASID that is in use, given the registers of a regime with two ranges."""
    asid = (ttbr1 if tcr & TCR_EL1.A1.mask != 0 else ttbr0) >> 48
    return asid if tcr & TCR_EL1.AS.mask != 0 else asid & 0xFF


@native
def update_controls(cpu: CpuState, ha: u1, hd: u1) -> u32:
    """S1_HA and S1_HD by the bits of a TCR and what the PE can do."""
    if not ha:
        return 0
    updates = id_field(cpu.sysreg[ID_AA64MMFR1_EL1.slot], ID_AA64MMFR1_EL1.HAFDBS.lo)
    if updates == 0:
        return 0
    return S1_HA | S1_HD if hd and updates >= HAFDBS else u32(S1_HA)


@native
def two_ranges(cpu: CpuState, va: u64, el0: u1, fetch: u1, host: u1, given: u32, cache: u64) -> Step:
    """Stage 1 of EL1&0, or with `host` of EL2&0, when it is on. `given`: S1_WRITE or 0."""
    tcr = cpu.sysreg[TCR_EL2.slot] if host else cpu.sysreg[TCR_EL1.slot]
    sctlr = cpu.sysreg[SCTLR_EL2.slot] if host else cpu.sysreg[SCTLR_EL1.slot]
    hcr = cpu.sysreg[HCR_EL2.slot]
    high = va >> 55 & 1 != 0
    control = given
    if host:
        control |= S1_OTHER_SPACE
    elif hcr & (HCR_EL2.VM.mask | HCR_EL2.DC.mask) != 0:
        control |= S1_STAGE2
    if sctlr & SCTLR_EL1.WXN.mask != 0:
        control |= S1_WXN
    if tcr & (TCR_EL1.HPD1.mask if high else u64(TCR_EL1.HPD0.mask)) != 0:
        control |= S1_HPD
    control |= update_controls(cpu, tcr & TCR_EL1.HA.mask != 0, tcr & TCR_EL1.HD.mask != 0)
    granule = u32(GRANULE_HIGH[tcr >> TCR_EL1.TG1.lo & 3] if high else GRANULE_LOW[tcr >> TCR_EL1.TG0.lo & 3])
    ds = tcr & TCR_EL1.DS.mask != 0 and has_lpa2(cpu, granule, False)
    if ds:
        control |= S1_DS
    tsz = u32(tcr >> (TCR_EL1.T1SZ.lo if high else u64(TCR_EL1.T0SZ.lo)) & 63)
    disabled = tcr & (TCR_EL1.EPD1.mask if high else u64(TCR_EL1.EPD0.mask)) != 0
    if el0 and tcr & (TCR_EL1.E0PD1.mask if high else u64(TCR_EL1.E0PD0.mask)) != 0:
        disabled = True
    tbi = top_byte_ignored(tcr, high, fetch)
    if disabled or tsz < min_tsz(cpu, granule, ds, False) or tsz > max_tsz(cpu, granule) or not in_range(va, tsz, tbi):
        return FAULT | TRANSLATION, 0, 0, 0, 0, 0
    ips = u32(tcr >> TCR_EL1.IPS.lo & 7)
    output_bits = output_size(cpu, ips, granule, ds)
    if ips == PS_52 and output_bits == 52:
        control |= S1_WIDE_TTBR
    ttbr0 = cpu.sysreg[TTBR0_EL2.slot] if host else cpu.sysreg[TTBR0_EL1.slot]
    ttbr1 = cpu.sysreg[TTBR1_EL2.slot] if host else cpu.sysreg[TTBR1_EL1.slot]
    mair = cpu.sysreg[MAIR_EL2.slot] if host else cpu.sysreg[MAIR_EL1.slot]
    share = u32(tcr >> (TCR_EL1.SH1.lo if high else u64(TCR_EL1.SH0.lo)) & 3)
    asid = current_asid(tcr, ttbr0, ttbr1)
    return walk_stage1(cpu, va, ttbr1 if high else ttbr0, asid, tsz, granule, output_bits, mair, share, control, cache)


@native
def top_byte_ignored(tcr: u64, high: u1, fetch: u1) -> u1:
    """Is the top byte of this address a tag, by a TCR with two ranges?"""
    if tcr & (TCR_EL1.TBI1.mask if high else u64(TCR_EL1.TBI0.mask)) == 0:
        return False
    return not fetch or tcr & (TCR_EL1.TBID1.mask if high else u64(TCR_EL1.TBID0.mask)) == 0


@native
def one_range(cpu: CpuState, va: u64, tbi: u1, given: u32) -> Step:
    """Stage 1 of EL2 alone when it is on; permissions in the bits of the privileged level."""
    tcr = cpu.sysreg[TCR_EL2.slot]
    control = given | S1_ONE_LEVEL
    if tcr & TCR_EL2.HPD.mask != 0:
        control |= S1_HPD
    control |= update_controls(cpu, tcr & TCR_EL2.HA.mask != 0, tcr & TCR_EL2.HD.mask != 0)
    granule = u32(GRANULE_LOW[tcr >> TCR_EL2.TG0.lo & 3])
    ds = tcr & TCR_EL2.DS.mask != 0 and has_lpa2(cpu, granule, False)
    if ds:
        control |= S1_DS
    tsz = u32(tcr & TCR_EL2.T0SZ.ones)
    beyond = va << 8 if tbi else va
    if tsz < min_tsz(cpu, granule, ds, False) or tsz > max_tsz(cpu, granule) or beyond >> (64 - (tsz - 8 if tbi else tsz)) != 0:
        return FAULT | TRANSLATION, 0, 0, 0, 0, 0
    ps = u32(tcr >> TCR_EL2.PS.lo & 7)
    output_bits = output_size(cpu, ps, granule, ds)
    if ps == PS_52 and output_bits == 52:
        control |= S1_WIDE_TTBR
    share = u32(tcr >> TCR_EL2.SH0.lo & 3)
    return walk_stage1(cpu, va, cpu.sysreg[TTBR0_EL2.slot], 0, tsz, granule, output_bits, cpu.sysreg[MAIR_EL2.slot], share, control, 0)


@native
def stage1(cpu: CpuState, va: u64, regime: u32, el0: u1, fetch: u1, write: u1, cache: u64) -> Step:
    """Stage 1 of a regime (REGIME_EL1 and so on) for an access by EL0 or the privileged level."""
    given: u32 = S1_WRITE if write else u32(0)
    if regime == REGIME_EL2:
        tcr = cpu.sysreg[TCR_EL2.slot]
        alone = tcr & TCR_EL2.TBI.mask != 0 and (not fetch or tcr & TCR_EL2.TBID.mask == 0)
        if cpu.sysreg[SCTLR_EL2.slot] & SCTLR_EL2.M.mask == 0:
            return flat(cpu, va, alone, NORMAL_NC if fetch else u32(DEVICE_NGNRNE))
        return one_range(cpu, va, alone, given)
    host = regime != REGIME_EL1
    on = cpu.sysreg[SCTLR_EL2.slot if host else u64(SCTLR_EL1.slot)] & SCTLR_EL1.M.mask != 0
    hcr = cpu.sysreg[HCR_EL2.slot]
    if not host and hcr & (HCR_EL2.DC.mask | HCR_EL2.TGE.mask) != 0:
        on = False
    if on:
        return two_ranges(cpu, va, el0, fetch, host, given, cache)
    # Fetches are Normal Non-cacheable or Write-Through here; nothing depends on which.
    cacheable = not host and hcr & HCR_EL2.DC.mask != 0
    attribute: u32 = NORMAL_WB if cacheable else NORMAL_NC if fetch else DEVICE_NGNRNE
    tbi = top_byte_ignored(cpu.sysreg[TCR_EL2.slot if host else u64(TCR_EL1.slot)], va >> 55 & 1 != 0, fetch)
    return flat(cpu, va, tbi, attribute)
