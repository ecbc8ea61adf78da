"""Address translation: stage 1 of the EL1&0 and EL2 regimes, and stage 2, over descriptors in memory.

The output of stage 2 (or of stage 1 where stage 2 is off) is a physical address; `memory_at` says where its bytes lie in this
process, for accesses and for descriptors. Everything is @native: it runs compiled inside the engine, and under CPython.

Three granules and 48-bit addresses. Access flag and dirty state are never updated by hardware (FEAT_HAFDBS is absent); the
Contiguous bit is ignored, which its definition allows; where the manual leaves a choice for a reserved configuration, this
follows the choice to fault (out-of-range TxSZ, inconsistent start level) or to take 4 KiB (reserved granule).

`translate` is for accesses, `address_translate` for AT instructions.
"""

from __future__ import annotations

from typing import Final

from trapline.arm64.memory import NOWHERE, is_rom, memory_at
from trapline.arm64.regs.el1 import MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1
from trapline.arm64.regs.el2 import HCR_EL2, MAIR_EL2, SCTLR_EL2, TCR_EL2, TTBR0_EL2, VTCR_EL2, VTTBR_EL2
from trapline.arm64.state import CpuState
from trapline.arm64.walk_cache import BLOCK_SHIFT, BLOCKS, PAGE_SHIFT, PAGES, TABLES, VALID, WalkCache
from trapline.bits.native import Ptr, load64, native, u1, u32, u64

ACCESS_READ: Final = 1
ACCESS_WRITE: Final = 2
ACCESS_EXEC: Final = 4
ACCESS_UNPRIVILEGED: Final = 8
"""What `translate` is asked for: any of read and write (both for an atomic update), or an instruction fetch. UNPRIVILEGED is for
LDTR and its like at EL1; the caller has taken PSTATE.UAO into account."""

FAULT_FSC: Final = 0x3F
FAULT_S1PTW: Final = 0x80
FAULT_STAGE2: Final = 0x100
FAULT: Final = 0x200
FAULT_NO_MEMORY: Final = 0x400
"""Parts of a fault: the fault status code; found while fetching a stage-1 descriptor; found by stage 2; a bit that every fault
has, since the status code alone may be 0; and translation succeeded, but what is there is not memory (for writes: ROM), and the
IPA is the physical address. No fault is 0."""

INFO_READ: Final = 1
INFO_WRITE: Final = 2
INFO_NONGLOBAL: Final = 4
INFO_EXEC: Final = 8
INFO_DEVICE: Final = 16
INFO_SIZE_SHIFT: Final = 8
"""Parts of `translate`'s last result: what this exception level may do (PSTATE.PAN included) with the page; whether it belongs
to one ASID; whether it is Device memory; and from bit 8 on, log2 of the size of the stage-1 block or page."""

ADDRESS_SIZE, TRANSLATION, ACCESS_FLAG, PERMISSION, EXTERNAL, EXTERNAL_WALK = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14

READ0, WRITE0, EXEC0, READ1, WRITE1, EXEC1 = 1, 2, 4, 8, 16, 32
"""Permissions inside this module: by EL0, then by the privileged level; for stage 2 READ0 = READ1 and WRITE0 = WRITE1."""

PERM_BITS = 0x3F
PERM_ALL = 0x3F
ATTR_NONGLOBAL = 0x40
ATTR_FLAT = 0x80
LEVEL_SHIFT = 8
SIZE_SHIFT = 12
MEMATTR_SHIFT = 20
SHARE_SHIFT = 28
"""A leaf in one word: permissions, nG, "stage 1 is off" (where PAN has no effect), level at 8, log2 of the size at 12, attribute
byte at 20, shareability at 28."""

OUTPUT_BITS = bytes((32, 36, 40, 42, 44, 48, 48, 48))
"""Output address size by TCR.IPS or VTCR.PS, limited to the 48 bits there are."""

GRANULE_LOW = bytes((12, 16, 14, 12))
GRANULE_HIGH = bytes((12, 14, 12, 16))
"""log2 of the granule by TG0 (also of EL2 and stage 2), and by TG1."""

MIN_TSZ, MAX_TSZ = 16, 39
ADDRESS = 0xFFFF_FFFF_FFFF
PRESENT, TABLE, AF, NG, PXN, UXN = 1, 2, 1 << 10, 1 << 11, 1 << 53, 1 << 54
AP_EL0, AP_READONLY = 1 << 6, 1 << 7
S2_READ, S2_WRITE = 1 << 6, 1 << 7
PXN_TABLE, UXN_TABLE, AP_TABLE_NO_EL0, AP_TABLE_READONLY = 1 << 59, 1 << 60, 1 << 61, 1 << 62

NORMAL_WB, DEVICE_NGNRNE = 0xFF, 0x00
OUTER_SHAREABLE, INNER_SHAREABLE = 2, 3

# Where stage 1 finds its controls: one word instead of a parameter for each.
S1_HPD, S1_ONE_LEVEL, S1_WXN, S1_STAGE2, S1_EL0 = 1, 2, 4, 8, 16
"""Hierarchical permissions disabled; no EL0 in this regime; SCTLR.WXN; descriptors go through stage 2; access is by EL0 (which
stage 2 reports no differently)."""

PAR_F, PAR_RES1, PAR_NS, PAR_PTW, PAR_S = 1, 1 << 11, 1 << 9, 1 << 8, 1 << 9

S2_ATTR = bytes((0x00, 0x04, 0x08, 0x0C, 0x00, 0x44, 0x44, 0x44, 0x00, 0x44, 0xBB, 0xBB, 0x00, 0x44, 0xBB, 0xFF))
"""MAIR form of a stage-2 MemAttr: Device types, Non-cacheable where either half is, Write-Through, Write-Back."""


@native
def block_allowed(level: u32, granule: u32) -> u1:
    """May a descriptor of this level map memory directly?"""
    return level == 3 or level == 2 or (level == 1 and granule == 12)


@native
def index_bits(input_bits: u32, level: u32, granule: u32) -> u32:
    """Address bits that a start level resolves, given the size of the input."""
    return input_bits - granule - (3 - level) * (granule - 3)


@native
def table_base(register: u64, bits: u32) -> u64:
    """The address in a TTBR of a table with 2^bits entries."""
    return register & ADDRESS & ~((u64(8) << bits) - 1)


@native
def stage2_leaf(descriptor: u64, level: u32, shift: u32) -> u32:
    """Permissions and attributes of a stage-2 block or page, packed."""
    xn = u32(descriptor >> 53 & 3)
    permissions: u32 = 0
    if descriptor & S2_READ != 0:
        permissions |= READ0 | READ1
    if descriptor & S2_WRITE != 0:
        permissions |= WRITE0 | WRITE1
    if xn in (0, 1):
        permissions |= EXEC0
    if xn in (0, 3):
        permissions |= EXEC1
    attribute = u32(S2_ATTR[descriptor >> 2 & 15])
    share = u32(descriptor >> 8 & 3)
    return permissions | level << LEVEL_SHIFT | shift << SIZE_SHIFT | attribute << MEMATTR_SHIFT | share << SHARE_SHIFT


@native
def stage2(cpu: CpuState, ipa: u64) -> tuple[u32, u64, u32]:
    """Walk stage 2: (fault, host address, leaf). Permissions are not checked: see `stage2_access`."""
    vtcr = cpu.sysreg[VTCR_EL2.slot]
    granule = u32(GRANULE_LOW[vtcr >> VTCR_EL2.TG0.lo & 3])
    tsz = u32(vtcr & VTCR_EL2.T0SZ.ones)
    sl0 = u32(vtcr >> VTCR_EL2.SL0.lo & 3)
    invalid: u32 = FAULT | FAULT_STAGE2 | TRANSLATION
    if tsz < MIN_TSZ or tsz > MAX_TSZ or sl0 == 3:
        return invalid, 0, 0
    level = 2 - sl0 if granule == 12 else 3 - sl0
    input_bits = 64 - tsz
    bits = index_bits(input_bits, level, granule)
    # Up to 16 tables may be concatenated at the start level; fewer than one bit means it starts too early.
    if bits == 0 or bits > granule - 3 + 4 or ipa >> input_bits != 0:
        return invalid, 0, 0
    output_bits = u32(OUTPUT_BITS[vtcr >> VTCR_EL2.PS.lo & 7])
    base = table_base(cpu.sysreg[VTTBR_EL2.slot], bits)
    if base >> output_bits != 0:
        return FAULT | FAULT_STAGE2 | ADDRESS_SIZE, 0, 0
    while True:
        shift = granule + (3 - level) * (granule - 3)
        index = ipa >> shift & ((u64(1) << bits) - 1)
        table = memory_at(cpu, base + (index << 3))
        if table == NOWHERE:
            return FAULT | FAULT_STAGE2 | EXTERNAL_WALK | level, 0, 0
        descriptor = load64(table)
        is_table = descriptor & TABLE != 0
        if descriptor & PRESENT == 0 or (not is_table and (level == 3 or not block_allowed(level, granule))):
            return FAULT | FAULT_STAGE2 | TRANSLATION | level, 0, 0
        leaf = level == 3 or not is_table
        base = descriptor & ADDRESS & ~((u64(1) << (shift if leaf else granule)) - 1)
        if base >> output_bits != 0:
            return FAULT | FAULT_STAGE2 | ADDRESS_SIZE | level, 0, 0
        if leaf:
            if descriptor & AF == 0:
                return FAULT | FAULT_STAGE2 | ACCESS_FLAG | level, 0, 0
            return 0, base | ipa & ((u64(1) << shift) - 1), stage2_leaf(descriptor, level, shift)
        level += 1
        bits = granule - 3


@native
def stage2_access(cpu: CpuState, ipa: u64, needed: u32, cache: u64) -> tuple[u32, u64, u32]:
    """Stage 2 with its permission check: (fault, host address, leaf). `cache`: address of a WalkCache, or 0."""
    if cache != 0:
        known = Ptr[WalkCache](cache)
        block = known.blocks[ipa >> BLOCK_SHIFT & (BLOCKS - 1)]
        if block.tag == (ipa >> BLOCK_SHIFT) + 1 and u32(block.leaf) & needed == needed:
            return 0, block.host | ipa & ((1 << BLOCK_SHIFT) - 1), u32(block.leaf)
        page = known.pages[ipa >> PAGE_SHIFT & (PAGES - 1)]
        if page.tag == (ipa >> PAGE_SHIFT) + 1 and u32(page.leaf) & needed == needed:
            return 0, page.host | ipa & ((1 << PAGE_SHIFT) - 1), u32(page.leaf)
    fault, host, leaf = stage2(cpu, ipa)
    if fault == 0 and leaf & needed != needed:
        fault = FAULT | FAULT_STAGE2 | PERMISSION | leaf >> LEVEL_SHIFT & 3
    if fault == 0 and cache != 0:
        enter_stage2(Ptr[WalkCache](cache), ipa, host, leaf)
    return fault, host, leaf


@native
def enter_stage2(known: Ptr[WalkCache], ipa: u64, host: u64, leaf: u32) -> None:
    """Remember a stage-2 translation."""
    if leaf >> SIZE_SHIFT & 0xFF >= BLOCK_SHIFT:
        block = known.blocks[ipa >> BLOCK_SHIFT & (BLOCKS - 1)]
        block.tag = (ipa >> BLOCK_SHIFT) + 1
        block.host = host & ~((u64(1) << BLOCK_SHIFT) - 1)
        block.leaf = u64(leaf)
    else:
        page = known.pages[ipa >> PAGE_SHIFT & (PAGES - 1)]
        page.tag = (ipa >> PAGE_SHIFT) + 1
        page.host = host & ~((u64(1) << PAGE_SHIFT) - 1)
        page.leaf = u64(leaf)


@native
def descriptor_address(cpu: CpuState, ipa: u64, control: u32, cache: u64) -> tuple[u32, u64]:
    """Where a stage-1 descriptor lies: (fault, host address)."""
    if control & S1_STAGE2 == 0:
        return 0, ipa
    fault, host, leaf = stage2_access(cpu, ipa, READ1, cache)
    if fault == 0 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.PTW.mask != 0 and leaf >> MEMATTR_SHIFT & 0xF0 == 0:
        fault = FAULT | FAULT_STAGE2 | PERMISSION | leaf >> LEVEL_SHIFT & 3
    if fault != 0:
        fault |= FAULT_S1PTW
    return fault, host


@native
def stage1_leaf(descriptor: u64, level: u32, shift: u32, mair: u64, control: u32) -> u32:
    """Permissions and attributes of a stage-1 block or page (hierarchical ones applied already), packed; PAN comes later."""
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
    if control & S1_WXN != 0:
        if permissions & WRITE0 != 0:
            permissions &= ~EXEC0
        if permissions & WRITE1 != 0:
            permissions &= ~EXEC1
    if descriptor & NG != 0 and control & S1_ONE_LEVEL == 0:
        permissions |= ATTR_NONGLOBAL
    attribute = u32(mair >> ((descriptor >> 2 & 7) << 3) & 0xFF)
    share = u32(descriptor >> 8 & 3)
    return permissions | level << LEVEL_SHIFT | shift << SIZE_SHIFT | attribute << MEMATTR_SHIFT | share << SHARE_SHIFT


@native
def stage1(
    cpu: CpuState, va: u64, ttbr: u64, asid: u64, tsz: u32, granule: u32, output_bits: u32, mair: u64, control: u32, cache: u64
) -> tuple[u32, u64, u32, u64]:
    """Walk stage 1: (fault, output address, leaf, IPA of the descriptor that stage 2 refused).

    The address bits above the input size have been checked. `control` holds S1_ flags; `cache` is the address of a WalkCache, in
    which tables are entered for `asid`, or 0. Permissions are not checked.
    """
    stride = granule - 3
    input_bits = 64 - tsz
    level = 3 - (input_bits - 1 - granule) // stride
    bits = index_bits(input_bits, level, granule)
    base = table_base(ttbr, bits)
    if base >> output_bits != 0:
        return FAULT | ADDRESS_SIZE, 0, 0, 0
    inherited: u64 = 0
    region = granule + stride
    tag = VALID | va << 8 >> 8 >> region
    space = asid << 48 | base
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
        fault, physical = descriptor_address(cpu, where, control, cache)
        if fault != 0:
            return fault, 0, 0, where
        host = memory_at(cpu, physical)
        if host == NOWHERE:
            return FAULT | EXTERNAL_WALK | level, 0, 0, 0
        descriptor = load64(host)
        is_table = descriptor & TABLE != 0
        if descriptor & PRESENT == 0 or (not is_table and (level == 3 or not block_allowed(level, granule))):
            return FAULT | TRANSLATION | level, 0, 0, 0
        leaf = level == 3 or not is_table
        base = descriptor & ADDRESS & ~((u64(1) << (shift if leaf else granule)) - 1)
        if base >> output_bits != 0:
            return FAULT | ADDRESS_SIZE | level, 0, 0, 0
        if leaf:
            if descriptor & AF == 0:
                return FAULT | ACCESS_FLAG | level, 0, 0, 0
            effective = hierarchical(descriptor, inherited, control)
            packed = stage1_leaf(effective, level, shift, mair, control)
            return 0, base | va & ((u64(1) << shift) - 1), packed, 0
        inherited |= descriptor
        level += 1
        bits = stride
        if level == 3 and cache != 0:
            found = Ptr[WalkCache](cache).tables[va >> region & (TABLES - 1)]
            found.tag = tag
            found.space = space
            found.table = base
            found.inherited = inherited


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
def in_range(va: u64, tsz: u32, tbi: u1) -> u1:
    """Are the address bits above the input size copies of bit 55 (the top byte aside with TBI)?"""
    extended = va << 8 if tbi else va
    unused = tsz - 8 if tbi else tsz
    top = extended >> (64 - unused)
    return top == 0 or top == (u64(1) << unused) - 1


@native
def stage1_flat(va: u64, tbi: u1, attribute: u32) -> tuple[u32, u64, u32, u64]:
    """Stage 1 that is switched off: the address itself, with all permissions."""
    beyond = va << 8 >> 56 if tbi else va >> 48
    if beyond != 0:
        return FAULT | ADDRESS_SIZE, 0, 0, 0
    share: u32 = OUTER_SHAREABLE
    if attribute == NORMAL_WB:
        share = 0
    return 0, va & ADDRESS, PERM_ALL | ATTR_FLAT | 12 << SIZE_SHIFT | attribute << MEMATTR_SHIFT | share << SHARE_SHIFT, 0


@native
def stage1_el1(cpu: CpuState, va: u64, el0: u1, fetch: u1, cache: u64) -> tuple[u32, u64, u32, u64]:
    """Stage 1 of the EL1&0 regime; results as `stage1`."""
    tcr = cpu.sysreg[TCR_EL1.slot]
    sctlr = cpu.sysreg[SCTLR_EL1.slot]
    hcr = cpu.sysreg[HCR_EL2.slot]
    high = va >> 55 & 1 != 0
    tbi = tcr & (TCR_EL1.TBI1.mask if high else u64(TCR_EL1.TBI0.mask)) != 0
    if fetch and tcr & (TCR_EL1.TBID1.mask if high else u64(TCR_EL1.TBID0.mask)) != 0:
        tbi = False
    if sctlr & SCTLR_EL1.M.mask == 0 or hcr & (HCR_EL2.DC.mask | HCR_EL2.TGE.mask) != 0:
        # Fetches are Normal Non-cacheable or Write-Through here; nothing depends on which.
        cacheable = hcr & HCR_EL2.DC.mask != 0
        attribute: u32 = NORMAL_WB if cacheable else 0x44 if fetch else DEVICE_NGNRNE
        return stage1_flat(va, tbi, attribute)
    control: u32 = 0
    if hcr & (HCR_EL2.VM.mask | HCR_EL2.DC.mask) != 0:
        control |= S1_STAGE2
    if sctlr & SCTLR_EL1.WXN.mask != 0:
        control |= S1_WXN
    if tcr & (TCR_EL1.HPD1.mask if high else u64(TCR_EL1.HPD0.mask)) != 0:
        control |= S1_HPD
    tsz = u32(tcr >> (TCR_EL1.T1SZ.lo if high else u64(TCR_EL1.T0SZ.lo)) & 63)
    disabled = tcr & (TCR_EL1.EPD1.mask if high else u64(TCR_EL1.EPD0.mask)) != 0
    if el0 and tcr & (TCR_EL1.E0PD1.mask if high else u64(TCR_EL1.E0PD0.mask)) != 0:
        disabled = True
    if disabled or tsz < MIN_TSZ or tsz > MAX_TSZ or not in_range(va, tsz, tbi):
        return FAULT | TRANSLATION, 0, 0, 0
    granule = u32(GRANULE_HIGH[tcr >> TCR_EL1.TG1.lo & 3] if high else GRANULE_LOW[tcr >> TCR_EL1.TG0.lo & 3])
    output_bits = u32(OUTPUT_BITS[tcr >> TCR_EL1.IPS.lo & 7])
    ttbr = cpu.sysreg[TTBR1_EL1.slot] if high else cpu.sysreg[TTBR0_EL1.slot]
    asid = current_asid(tcr, cpu.sysreg[TTBR0_EL1.slot], cpu.sysreg[TTBR1_EL1.slot])
    return stage1(cpu, va, ttbr, asid, tsz, granule, output_bits, cpu.sysreg[MAIR_EL1.slot], control, cache)


@native
def current_asid(tcr: u64, ttbr0: u64, ttbr1: u64) -> u64:
    """The ASID that is in use, given the registers of a regime with two ranges."""
    asid = (ttbr1 if tcr & TCR_EL1.A1.mask != 0 else ttbr0) >> 48
    return asid if tcr & TCR_EL1.AS.mask != 0 else asid & 0xFF


@native
def stage1_el2(cpu: CpuState, va: u64) -> tuple[u32, u64, u32, u64]:
    """Stage 1 of the EL2 regime (HCR_EL2.E2H=0); results as `stage1`, permissions in the bits of EL1."""
    tcr = cpu.sysreg[TCR_EL2.slot]
    sctlr = cpu.sysreg[SCTLR_EL2.slot]
    tbi = tcr & TCR_EL2.TBI.mask != 0
    if sctlr & SCTLR_EL2.M.mask == 0:
        return stage1_flat(va, tbi, DEVICE_NGNRNE)
    control: u32 = S1_ONE_LEVEL
    if sctlr & SCTLR_EL2.WXN.mask != 0:
        control |= S1_WXN
    if tcr & TCR_EL2.HPD.mask != 0:
        control |= S1_HPD
    tsz = u32(tcr & TCR_EL2.T0SZ.ones)
    beyond = va << 8 if tbi else va
    if tsz < MIN_TSZ or tsz > MAX_TSZ or beyond >> (64 - (tsz - 8 if tbi else tsz)) != 0:
        return FAULT | TRANSLATION, 0, 0, 0
    granule = u32(GRANULE_LOW[tcr >> TCR_EL2.TG0.lo & 3])
    output_bits = u32(OUTPUT_BITS[tcr >> TCR_EL2.PS.lo & 7])
    return stage1(cpu, va, cpu.sysreg[TTBR0_EL2.slot], 0, tsz, granule, output_bits, cpu.sysreg[MAIR_EL2.slot], control, 0)


@native
def permitted(leaf: u32, el0: u1, pan: u1) -> u32:
    """What one exception level may do, as ACCESS_ flags."""
    if el0:
        return leaf & (READ0 | WRITE0 | EXEC0)
    if pan and leaf & (READ0 | ATTR_FLAT) == READ0:
        leaf &= ~(READ1 | WRITE1)
    return leaf >> 3 & 7


@native
def translate_at(cpu: CpuState, va: u64, access: u32, el: u32, pan: u1, second: u1, cache: u64) -> tuple[u32, u64, u64, u32, u32]:
    """Translate for exception level `el`: (fault, output, IPA, leaf of stage 1, leaf of stage 2).

    Stage 2 takes part in the regime of EL1&0 if `second` and it is on; otherwise the output is that of stage 1.
    """
    fetch = access & ACCESS_EXEC != 0
    needed = access & (ACCESS_READ | ACCESS_WRITE | ACCESS_EXEC)
    if el == 2:
        fault, output, leaf, refused = stage1_el2(cpu, va)
    else:
        fault, output, leaf, refused = stage1_el1(cpu, va, el == 0, fetch, cache)
    if fault != 0:
        return fault, 0, refused, 0, 0
    if permitted(leaf, el == 0, pan) & needed != needed:
        return FAULT | PERMISSION | leaf >> LEVEL_SHIFT & 3, 0, 0, 0, 0
    if el == 2 or not second or cpu.sysreg[HCR_EL2.slot] & (HCR_EL2.VM.mask | HCR_EL2.DC.mask) == 0:
        return 0, output, output, leaf, PERM_ALL | NORMAL_WB << MEMATTR_SHIFT
    fault, host, outer = stage2_access(cpu, output, needed if el == 0 else needed << 3, cache)
    return fault, host, output, leaf, outer


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

    `cache` is the address of a WalkCache that shortens walks, or 0; a fault is always what memory says.
    """
    el = 0 if access & ACCESS_UNPRIVILEGED != 0 else u32(cpu.el)
    pan = cpu.pan != 0 and el != 0
    fault, physical, ipa, inner, outer = translate_at(cpu, va, access, el, pan, True, cache)
    if fault != 0 and cache != 0:
        fault, physical, ipa, inner, outer = translate_at(cpu, va, access, el, pan, True, 0)
    if fault != 0:
        return fault, 0, ipa, 0
    host = memory_at(cpu, physical)
    rom = is_rom(cpu, physical)
    if host == NOWHERE or (rom and access & ACCESS_WRITE != 0):
        return FAULT | FAULT_NO_MEMORY, 0, physical, 0
    allowed = permitted(inner, el == 0, pan) & permitted(outer, el == 0, False)
    info = allowed & (INFO_READ | INFO_WRITE) | (inner >> SIZE_SHIFT & 0xFF) << INFO_SIZE_SHIFT
    if rom:
        info &= ~INFO_WRITE
    if allowed & ACCESS_EXEC != 0:
        info |= INFO_EXEC
    if inner & ATTR_NONGLOBAL != 0:
        info |= INFO_NONGLOBAL
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
    if inner == 0x44 or outer == 0x44:
        return 0x44
    return inner & outer if inner != outer else inner


@native
def address_translate(cpu: CpuState, va: u64, stages: u32, el: u32, write: u1, pan: u1) -> u64:
    """The PAR_EL1 value of an AT instruction: `stages` 1 or 2 (both), for EL `el`, checking PSTATE.PAN if `pan`.

    A stage-2 fault on a stage-1 descriptor is reported here as in PAR_EL1; an AT of EL1 owes EL2 a data abort for it: see
    `address_translate_fault`.
    """
    access: u32 = ACCESS_WRITE if write else ACCESS_READ
    second = stages != 1
    fault, output, _, inner, outer = translate_at(cpu, va, access, el, pan and cpu.pan != 0 and el == 1, second, 0)
    if fault != 0:
        par = PAR_F | PAR_RES1 | u64(fault & FAULT_FSC) << 1
        if fault & FAULT_S1PTW != 0:
            par |= PAR_PTW
        if fault & FAULT_STAGE2 != 0:
            par |= PAR_S
        return par
    attribute = inner >> MEMATTR_SHIFT & 0xFF
    share = u64(inner >> SHARE_SHIFT & 3)
    if second:
        attribute = combine_attributes(attribute, outer >> MEMATTR_SHIFT & 0xFF)
    if attribute & 0xF0 == 0 or attribute == 0x44:
        share = OUTER_SHAREABLE
    return output & ADDRESS & ~0xFFF | PAR_RES1 | PAR_NS | share << 7 | u64(attribute) << 56


@native
def address_translate_fault(cpu: CpuState, va: u64, el: u32, write: u1, pan: u1) -> tuple[u32, u64]:
    """For AT S1E0* and S1E1* at EL1: the stage-2 fault on a stage-1 descriptor that goes to EL2 instead of PAR_EL1, and its IPA.

    The fault is 0 if there is none, and PAR_EL1 is to be written.
    """
    access: u32 = ACCESS_WRITE if write else ACCESS_READ
    fault, _, ipa, _, _ = translate_at(cpu, va, access, el, pan and cpu.pan != 0 and el == 1, False, 0)
    return fault if fault & FAULT_S1PTW != 0 else 0, ipa
