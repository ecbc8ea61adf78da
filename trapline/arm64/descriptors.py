"""Translation table formats that the stages share: configuration fields, addresses in descriptors, leaves in one word, faults.

Nothing here reads memory. Levels are numbered as in the manual, -1 to 3, in an unsigned word: level -1 is all ones.
"""

from __future__ import annotations

from typing import Final

from trapline.arm64.regs.identification import ID_AA64MMFR0_EL1, ID_AA64MMFR2_EL1
from trapline.arm64.state import CpuState
from trapline.bits.native import native, u1, u32, u64

FAULT_FSC: Final = 0x3F
FAULT_S1PTW: Final = 0x80
FAULT_STAGE2: Final = 0x100
FAULT: Final = 0x200
FAULT_NO_MEMORY: Final = 0x400
FAULT_UPDATE: Final = 0x800
"""Parts of a fault: the fault status code; found while accessing a stage-1 descriptor; found by stage 2; a bit that every fault
has, since the status code alone may be 0; translation succeeded, but what is there is not memory (for writes: ROM), and the IPA is
the physical address; and the access that failed was the update of a stage-1 descriptor, a write. No fault is 0."""

ADDRESS_SIZE, TRANSLATION, ACCESS_FLAG, PERMISSION, EXTERNAL, EXTERNAL_WALK = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14
"""Fault status codes of level 0, or without a level."""
BELOW_ZERO: Final = 0xFFFF_FFFF
"""Level -1."""
ADDRESS_SIZE_BELOW_ZERO, TRANSLATION_BELOW_ZERO, EXTERNAL_BELOW_ZERO = 0x29, 0x2B, 0x13

READ0, WRITE0, EXEC0, READ1, WRITE1, EXEC1 = 1, 2, 4, 8, 16, 32
"""Permissions inside the walker: by EL0, then by the privileged level; for stage 2 READ0 = READ1 and WRITE0 = WRITE1."""

PERM_BITS = 0x3F
PERM_ALL = 0x3F
ATTR_NONGLOBAL = 0x40
ATTR_FLAT = 0x80
LEVEL_SHIFT = 8
SIZE_SHIFT = 12
MEMATTR_SHIFT = 20
SHARE_SHIFT = 28
ATTR_FORCED = 1 << 30
ATTR_GUARDED = 1 << 31
ATTR_STAGE2 = 1 << 11
"""A leaf in one word: permissions, nG, "stage 1 is off" (where PAN has no effect), level at 8, log2 of the size at 12, attribute
byte (as in MAIR) at 20, shareability at 28, for stage 2: its type replaces that of stage 1 (FEAT_S2FWB), for stage 1: the page is
guarded, and that it is a leaf of stage 2."""

OUTPUT_BITS = bytes((32, 36, 40, 42, 44, 48, 52, 52))
"""Address sizes by TCR.IPS, VTCR.PS and ID_AA64MMFR0_EL1.PARange."""
PS_52 = 6

GRANULE_LOW = bytes((12, 16, 14, 12))
GRANULE_HIGH = bytes((12, 14, 12, 16))
"""log2 of the granule by TG0 (also of EL2 and stage 2), and by TG1."""

ADDRESS: Final = 0xF_FFFF_FFFF_FFFF
LOW_48: Final = 0xFFFF_FFFF_FFFF
PRESENT, TABLE, AF, NG, GP, DBM, PXN, UXN = 1, 2, 1 << 10, 1 << 11, 1 << 50, 1 << 51, 1 << 53, 1 << 54
AP_EL0, AP_READONLY = 1 << 6, 1 << 7
S2_READ, S2_WRITE = 1 << 6, 1 << 7
PXN_TABLE, UXN_TABLE, AP_TABLE_NO_EL0, AP_TABLE_READONLY = 1 << 59, 1 << 60, 1 << 61, 1 << 62

NORMAL_WB, NORMAL_NC, DEVICE_NGNRNE = 0xFF, 0x44, 0x00
OUTER_SHAREABLE, INNER_SHAREABLE = 2, 3

LPA2_STAGE1_4K, LPA2_STAGE1_16K, LPA2_STAGE2 = 1, 2, 3
"""ID_AA64MMFR0_EL1.TGran4, TGran16, and both TGran*_2 where FEAT_LPA2 exists for the granule."""


@native
def status(kind: u32, level: u32) -> u32:
    """The fault status code of a kind (ADDRESS_SIZE and so on) at a level."""
    if level != BELOW_ZERO:
        return kind | level
    if kind == ADDRESS_SIZE:
        return ADDRESS_SIZE_BELOW_ZERO
    return TRANSLATION_BELOW_ZERO if kind == TRANSLATION else u32(EXTERNAL_BELOW_ZERO)


@native
def id_field(register: u64, lo: u32) -> u64:
    """A four-bit field of an ID register."""
    return register >> lo & 15


@native
def physical_bits(cpu: CpuState) -> u32:
    """The size of physical addresses; 48 where the register says nothing."""
    size = id_field(cpu.sysreg[ID_AA64MMFR0_EL1.slot], ID_AA64MMFR0_EL1.PARange.lo)
    return u32(OUTPUT_BITS[size & 7]) if size != 0 else u32(48)


@native
def has_lpa2(cpu: CpuState, granule: u32, second: u1) -> u1:
    """Does TCR.DS, or for the second stage VTCR.DS, have a meaning with this granule?"""
    mmfr0 = cpu.sysreg[ID_AA64MMFR0_EL1.slot]
    if granule == 16:
        return False
    if second:
        field = id_field(mmfr0, ID_AA64MMFR0_EL1.TGran4_2.lo if granule == 12 else u32(ID_AA64MMFR0_EL1.TGran16_2.lo))
        return field == LPA2_STAGE2
    if granule == 12:
        return id_field(mmfr0, ID_AA64MMFR0_EL1.TGran4.lo) == LPA2_STAGE1_4K
    return id_field(mmfr0, ID_AA64MMFR0_EL1.TGran16.lo) == LPA2_STAGE1_16K


@native
def min_tsz(cpu: CpuState, granule: u32, ds: u1, second: u1) -> u32:
    """The lowest TxSZ: 12 for 52 bits, 16 for 48."""
    if ds:
        return 12
    if granule != 16:
        return 16
    if second:
        return 12 if physical_bits(cpu) == 52 else 16
    return 12 if id_field(cpu.sysreg[ID_AA64MMFR2_EL1.slot], ID_AA64MMFR2_EL1.VARange.lo) != 0 else 16


@native
def max_tsz(cpu: CpuState, granule: u32) -> u32:
    """The highest TxSZ: 39, or with FEAT_TTST so that one entry of the last level is left to choose."""
    if id_field(cpu.sysreg[ID_AA64MMFR2_EL1.slot], ID_AA64MMFR2_EL1.ST.lo) == 0:
        return 39
    return 47 if granule == 16 else 48


@native
def output_size(cpu: CpuState, ps: u32, granule: u32, ds: u1) -> u32:
    """Output address bits by IPS or PS: no more than there are, and 52 only in the formats that hold them."""
    bits = min(u32(OUTPUT_BITS[ps & 7]), physical_bits(cpu))
    return 48 if bits == 52 and granule != 16 and not ds else bits


@native
def index_bits(input_bits: u32, level: u32, granule: u32) -> u32:
    """Address bits that a start level resolves, given the size of the input."""
    return input_bits - granule - (3 - level) * (granule - 3)


@native
def table_base(register: u64, bits: u32, wide: u1) -> u64:
    """The address in a TTBR of a table with 2^bits entries; `wide` if bits 5:2 are its bits 51:48."""
    if wide:
        return (register & LOW_48 | (register >> 2 & 15) << 48) & ~(max(u64(8) << bits, u64(64)) - 1)
    return register & LOW_48 & ~((u64(8) << bits) - 1)


@native
def descriptor_output(descriptor: u64, shift: u32, granule: u32, ds: u1, large: u1) -> u64:
    """The address in a descriptor, aligned to 2^shift. `large`: physical addresses have 52 bits."""
    address = descriptor & LOW_48
    if ds:
        address = descriptor & 0x3_FFFF_FFFF_FFFF | (descriptor >> 8 & 3) << 50
    elif large and granule == 16:
        address |= (descriptor >> 12 & 15) << 48
    return address >> shift << shift


@native
def is_leaf(descriptor: u64, level: u32) -> u1:
    """Does a valid descriptor end the walk?"""
    return level == 3 or descriptor & TABLE == 0


@native
def is_reserved(descriptor: u64, level: u32, granule: u32, ds: u1, large: u1) -> u1:
    """Is a descriptor invalid, or a block at a level that has none?"""
    if descriptor & PRESENT == 0:
        return True
    if descriptor & TABLE != 0:
        return False
    if granule == 12:
        return level == 3 or level == BELOW_ZERO or (level == 0 and not ds)
    if granule == 14:
        return level == 3 or level == 0 or (level == 1 and not ds)
    return level == 3 or (level == 1 and not large)


@native
def pack_leaf(permissions: u32, level: u32, shift: u32, attribute: u32, share: u32) -> u32:
    """A leaf in one word."""
    return permissions | level << LEVEL_SHIFT | shift << SIZE_SHIFT | attribute << MEMATTR_SHIFT | share << SHARE_SHIFT
