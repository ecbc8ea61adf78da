"""Names of model-specific registers that guests and their makers meet."""

from __future__ import annotations

from enum import IntEnum


class Msr(IntEnum):
    """Numbers of MSRs, under the kernel's names without MSR_."""

    TSC = 0x10
    APIC_BASE = 0x1B
    TSC_ADJUST = 0x3B
    SYSENTER_CS = 0x174
    SYSENTER_ESP = 0x175
    SYSENTER_EIP = 0x176
    MISC_ENABLE = 0x1A0
    PAT = 0x277
    TSC_DEADLINE = 0x6E0
    X2APIC_ID = 0x802
    EFER = 0xC000_0080
    STAR = 0xC000_0081
    LSTAR = 0xC000_0082
    CSTAR = 0xC000_0083
    SYSCALL_MASK = 0xC000_0084
    FS_BASE = 0xC000_0100
    GS_BASE = 0xC000_0101
    KERNEL_GS_BASE = 0xC000_0102
    TSC_AUX = 0xC000_0103
    KVM_WALL_CLOCK = 0x4B56_4D00
    KVM_SYSTEM_TIME = 0x4B56_4D01
    KVM_ASYNC_PF_EN = 0x4B56_4D02
    KVM_STEAL_TIME = 0x4B56_4D03
    KVM_PV_EOI_EN = 0x4B56_4D04
    KVM_POLL_CONTROL = 0x4B56_4D05
    HV_GUEST_OS_ID = 0x4000_0000
    HV_HYPERCALL = 0x4000_0001
    HV_VP_INDEX = 0x4000_0002
    HV_TIME_REF_COUNT = 0x4000_0020
    HV_REFERENCE_TSC = 0x4000_0021
    HV_TSC_FREQUENCY = 0x4000_0022
    HV_APIC_FREQUENCY = 0x4000_0023
    HV_REENLIGHTENMENT_CONTROL = 0x4000_0106
    HV_TSC_EMULATION_CONTROL = 0x4000_0107
    HV_TSC_EMULATION_STATUS = 0x4000_0108
    HV_TSC_INVARIANT_CONTROL = 0x4000_0118


X2APIC_FIRST, X2APIC_LAST = 0x800, 0x8FF
"""MSRs of the local APIC, which no filter reaches."""


def msr_name(index: int) -> str:
    """`0xc0000080 (EFER)`, or the number alone."""
    try:
        return f"{index:#x} ({Msr(index).name})"
    except ValueError:
        return f"{index:#x}"
