"""Syndromes as the hypervisor reads and makes them: exception classes and the instruction-specific fields it needs."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class EC(IntEnum):
    """Exception classes a guest can trap or be given."""

    UNKNOWN = 0x00
    WFX = 0x01
    CP15_32 = 0x03
    CP15_64 = 0x04
    FP_ACCESS = 0x07
    PAC = 0x09
    ILLEGAL_STATE = 0x0E
    HVC64 = 0x16
    SMC64 = 0x17
    SYS64 = 0x18
    SVE = 0x19
    IABT_LOWER = 0x20
    IABT_SAME = 0x21
    DABT_LOWER = 0x24
    DABT_SAME = 0x25
    SERROR = 0x2F
    BREAKPOINT_LOWER = 0x30
    SOFTSTEP_LOWER = 0x32
    WATCHPOINT_LOWER = 0x34
    BRK = 0x3C


EC_SHIFT: Final = 26
IL: Final = 1 << 25

# Instruction and data aborts.
ISV: Final = 1 << 24
SAS_SHIFT: Final = 22
SSE: Final = 1 << 21
SRT_SHIFT: Final = 16
SF: Final = 1 << 15
FNV: Final = 1 << 10
CM: Final = 1 << 8
S1PTW: Final = 1 << 7
WNR: Final = 1 << 6
FSC_MASK: Final = 0x3F
LST_MASK: Final = 3 << 11

FSC_ADDRESS_SIZE: Final = 0x00
FSC_TRANSLATION: Final = 0x04
FSC_ACCESS_FLAG: Final = 0x08
FSC_PERMISSION: Final = 0x0C
FSC_TYPE_MASK: Final = 0x3C
FSC_SEA: Final = 0x10
FSC_SEA_WALK: Final = 0x14
FSC_EXCLUSIVE: Final = 0x35

SERVED_FAULTS: Final = frozenset({FSC_TRANSLATION, FSC_ACCESS_FLAG, FSC_PERMISSION})

# WFI and WFE.
WFX_WFE: Final = 1
WFX_TIMEOUT: Final = 2
WFX_RN_SHIFT: Final = 5


def sysreg_encoding(iss: int) -> int:
    """The 16-bit register id in the ISS of EC 0x18."""
    return (iss >> 20 & 3) << 14 | (iss >> 14 & 7) << 11 | (iss >> 10 & 15) << 7 | (iss >> 1 & 15) << 3 | (iss >> 17 & 7)


def describe(esr: int) -> str:
    """A syndrome in words, for reports."""
    number = esr >> EC_SHIFT & 0x3F
    name = EC(number).name if number in EC._value2member_map_ else "?"
    return f"ESR {esr:#010x}: EC {number:#04x} {name}, ISS {esr & 0x1FF_FFFF:#09x}"
