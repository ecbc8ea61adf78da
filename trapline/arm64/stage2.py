"""Stage 2 of translation: intermediate physical addresses to physical ones."""

from __future__ import annotations

from trapline.arm64.descriptors import (
    ACCESS_FLAG,
    ADDRESS_SIZE,
    AF,
    ATTR_FORCED,
    ATTR_STAGE2,
    BELOW_ZERO,
    DBM,
    EXEC0,
    EXEC1,
    EXTERNAL_WALK,
    FAULT,
    FAULT_STAGE2,
    GRANULE_LOW,
    LEVEL_SHIFT,
    PERMISSION,
    PS_52,
    READ0,
    READ1,
    S2_READ,
    S2_WRITE,
    SIZE_SHIFT,
    TRANSLATION,
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
from trapline.arm64.regs.el2 import HCR_EL2, VTCR_EL2, VTTBR_EL2
from trapline.arm64.regs.identification import ID_AA64MMFR1_EL1, ID_AA64MMFR2_EL1
from trapline.arm64.state import CpuState
from trapline.arm64.walk_cache import BLOCK_SHIFT, BLOCKS, PAGE_SHIFT, PAGES, WalkCache
from trapline.bits.native import Ptr, cas64, load64, native, u1, u32, u64

ATTRIBUTE = bytes((0x00, 0x04, 0x08, 0x0C, 0x00, 0x44, 0x4B, 0x4F, 0x00, 0xB4, 0xBB, 0xBF, 0x00, 0xF4, 0xFB, 0xFF))
"""MAIR form of MemAttr: Device types, and for each half Non-cacheable, Write-Through or Write-Back."""
FORCING = bytes((0x00, 0x04, 0x08, 0x0C, 0xFF, 0x44, 0xFF, 0xFF))
"""The same by MemAttr[2:0] with HCR_EL2.FWB: what is combined with stage 1's type. 6 is Write-Back whatever stage 1 says."""
FORCED_WRITE_BACK = 6
INVALID_START = 4
"""Instead of a start level."""

HAF, HAFDBS = 1, 2
"""ID_AA64MMFR1_EL1.HAFDBS."""


@native
def start_level(cpu: CpuState, vtcr: u64, granule: u32, ds: u1) -> u32:
    """The level that VTCR_EL2.SL0 (and SL2) name, or INVALID_START."""
    sl0 = u32(vtcr >> VTCR_EL2.SL0.lo & 3)
    small = id_field(cpu.sysreg[ID_AA64MMFR2_EL1.slot], ID_AA64MMFR2_EL1.ST.lo) != 0
    if granule == 12:
        if ds and vtcr & VTCR_EL2.SL2.mask != 0:
            return u32(BELOW_ZERO) if sl0 == 0 else u32(INVALID_START)
        if sl0 == 3:
            return 3 if small else u32(INVALID_START)
        return 2 - sl0
    if sl0 == 3 and (granule == 16 or not ds):
        return INVALID_START
    return 3 - sl0


@native
def leaf_of(cpu: CpuState, descriptor: u64, level: u32, shift: u32, share: u32) -> u32:
    """Permissions and attributes of a block or page, packed."""
    xn = u32(descriptor >> 53 & 3)
    if id_field(cpu.sysreg[ID_AA64MMFR1_EL1.slot], ID_AA64MMFR1_EL1.XNX.lo) == 0:
        xn &= 2
    permissions: u32 = ATTR_STAGE2
    if descriptor & S2_READ != 0:
        permissions |= READ0 | READ1
    if descriptor & S2_WRITE != 0:
        permissions |= WRITE0 | WRITE1
    if xn in (0, 1):
        permissions |= EXEC0
    if xn in (0, 3):
        permissions |= EXEC1
    kind = descriptor >> 2 & 15
    attribute = u32(ATTRIBUTE[kind])
    if cpu.sysreg[HCR_EL2.slot] & HCR_EL2.FWB.mask != 0:
        attribute = u32(FORCING[kind & 7])
        if kind & 7 == FORCED_WRITE_BACK:
            permissions |= ATTR_FORCED
    return pack_leaf(permissions, level, shift, attribute, share)


@native
def walk_stage2(cpu: CpuState, ipa: u64, write: u1) -> tuple[u32, u64, u32, u64, u64, u64]:
    """Walk stage 2: (fault, physical address, leaf, host address of the last descriptor, its value, what it should be).

    Permissions are not checked. `write`: the access may make a page dirty.
    """
    vtcr = cpu.sysreg[VTCR_EL2.slot]
    granule = u32(GRANULE_LOW[vtcr >> VTCR_EL2.TG0.lo & 3])
    ds = vtcr & VTCR_EL2.DS.mask != 0 and has_lpa2(cpu, granule, True)
    large = physical_bits(cpu) == 52
    tsz = u32(vtcr & VTCR_EL2.T0SZ.ones)
    invalid: u32 = FAULT | FAULT_STAGE2 | TRANSLATION
    level = start_level(cpu, vtcr, granule, ds)
    if tsz < min_tsz(cpu, granule, ds, True) or tsz > max_tsz(cpu, granule) or level == INVALID_START:
        return invalid, 0, 0, 0, 0, 0
    input_bits = 64 - tsz
    bits = index_bits(input_bits, level, granule)
    # Up to 16 tables may be concatenated at the start level; fewer than one bit means it starts too early.
    if bits == 0 or bits > granule - 3 + 4 or ipa >> input_bits != 0:
        return invalid, 0, 0, 0, 0, 0
    ps = u32(vtcr >> VTCR_EL2.PS.lo & 7)
    output_bits = output_size(cpu, ps, granule, ds)
    base = table_base(cpu.sysreg[VTTBR_EL2.slot], bits, ps == PS_52 and output_bits == 52)
    if base >> output_bits != 0:
        return FAULT | FAULT_STAGE2 | ADDRESS_SIZE, 0, 0, 0, 0, 0
    while True:
        shift = granule + (3 - level) * (granule - 3)
        index = ipa >> shift & ((u64(1) << bits) - 1)
        physical = base + (index << 3)
        host = memory_at(cpu, physical)
        if host == NOWHERE:
            return FAULT | FAULT_STAGE2 | status(EXTERNAL_WALK, level), 0, 0, 0, 0, 0
        descriptor = load64(host)
        if is_reserved(descriptor, level, granule, ds, large):
            return FAULT | FAULT_STAGE2 | status(TRANSLATION, level), 0, 0, 0, 0, 0
        leaf = is_leaf(descriptor, level)
        base = descriptor_output(descriptor, shift if leaf else granule, granule, ds, large)
        if base >> output_bits != 0:
            return FAULT | FAULT_STAGE2 | status(ADDRESS_SIZE, level), 0, 0, 0, 0, 0
        if leaf:
            updates = id_field(cpu.sysreg[ID_AA64MMFR1_EL1.slot], ID_AA64MMFR1_EL1.HAFDBS.lo)
            if vtcr & VTCR_EL2.HA.mask == 0:
                updates = 0
            wanted = descriptor
            if descriptor & AF == 0:
                if updates == 0:
                    return FAULT | FAULT_STAGE2 | ACCESS_FLAG | level, 0, 0, 0, 0, 0
                wanted |= AF
            if write and descriptor & DBM != 0 and vtcr & VTCR_EL2.HD.mask != 0 and updates >= HAFDBS:
                wanted |= S2_WRITE
            if is_rom(cpu, physical):
                host = NOWHERE
            share = u32(vtcr >> VTCR_EL2.SH0.lo if ds else descriptor >> 8) & 3
            return 0, base | ipa & ((u64(1) << shift) - 1), leaf_of(cpu, wanted, level, shift, share), host, descriptor, wanted
        level += 1
        bits = granule - 3


@native
def stage2_access(cpu: CpuState, ipa: u64, needed: u32, cache: u64, dirty: u1) -> tuple[u32, u64, u32]:
    """Stage 2 with its permission check: (fault, physical address, leaf).

    `cache`: address of a WalkCache, or 0. `dirty`: a write (in `needed`) is carried out, so it makes the page dirty.
    """
    if cache != 0:
        known = Ptr[WalkCache](cache)
        block = known.blocks[ipa >> BLOCK_SHIFT & (BLOCKS - 1)]
        if block.tag == (ipa >> BLOCK_SHIFT) + 1 and u32(block.leaf) & needed == needed:
            return 0, block.output | ipa & ((1 << BLOCK_SHIFT) - 1), u32(block.leaf)
        page = known.pages[ipa >> PAGE_SHIFT & (PAGES - 1)]
        if page.tag == (ipa >> PAGE_SHIFT) + 1 and u32(page.leaf) & needed == needed:
            return 0, page.output | ipa & ((1 << PAGE_SHIFT) - 1), u32(page.leaf)
    while True:
        fault, output, leaf, host, old, new = walk_stage2(cpu, ipa, needed & (WRITE0 | WRITE1) != 0)
        if fault == 0 and leaf & needed != needed:
            fault = FAULT | FAULT_STAGE2 | PERMISSION | leaf >> LEVEL_SHIFT & 3
        if fault != 0:
            return fault, output, leaf
        if not dirty:
            new = new & ~u64(S2_WRITE) | old & S2_WRITE
        if new == old:
            break
        if host == NOWHERE:
            return FAULT | FAULT_STAGE2 | EXTERNAL_WALK | leaf >> LEVEL_SHIFT & 3, 0, 0
        if cas64(host, old, new) == old:
            break
    if cache != 0 and (dirty or needed & (WRITE0 | WRITE1) == 0):
        enter_stage2(Ptr[WalkCache](cache), ipa, output, leaf)
    return 0, output, leaf


@native
def enter_stage2(known: Ptr[WalkCache], ipa: u64, output: u64, leaf: u32) -> None:
    """Remember a stage-2 translation."""
    if leaf >> SIZE_SHIFT & 0xFF >= BLOCK_SHIFT:
        block = known.blocks[ipa >> BLOCK_SHIFT & (BLOCKS - 1)]
        block.tag = (ipa >> BLOCK_SHIFT) + 1
        block.output = output & ~((u64(1) << BLOCK_SHIFT) - 1)
        block.leaf = u64(leaf)
    else:
        page = known.pages[ipa >> PAGE_SHIFT & (PAGES - 1)]
        page.tag = (ipa >> PAGE_SHIFT) + 1
        page.output = output & ~((u64(1) << PAGE_SHIFT) - 1)
        page.leaf = u64(leaf)
