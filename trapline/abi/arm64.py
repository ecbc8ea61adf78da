"""The arm64 part of the ABI: register ids, vCPU features, interrupt words, interrupt controller groups."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag
from typing import Annotated

from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import Structure, struct, u8, u32, u32x7, u64, u64x4, u64x16

TARGET_GENERIC_V8 = 5
"""The vCPU target every host accepts."""

VM_TYPE_IPA_SIZE_MASK = 0xFF


class Feature(IntEnum):
    """vCPU features: bit numbers of kvm_vcpu_init.features."""

    POWER_OFF = 0  # start stopped; affects this call only
    EL1_32BIT = 1
    PSCI_0_2 = 2
    PMU_V3 = 3
    SVE = 4
    PTRAUTH_ADDRESS = 5
    PTRAUTH_GENERIC = 6
    HAS_EL2 = 7
    HAS_EL2_E2H0 = 8
    PMU_V3_STRICT = 9


@struct(size=32, c_name="kvm_vcpu_init")
class VcpuInit(Structure):
    target: u32
    features: u32x7


@struct(size=64, c_name="kvm_vcpu_events")
class VcpuEvents(Structure):
    serror_pending: u8
    serror_has_esr: u8
    ext_dabt_pending: u8
    pad0: u8
    pad1: u32
    serror_esr: u64
    reserved0: u64x4
    reserved1: u64
    reserved2: u64


class GuestDebugFlag(IntFlag):
    """Bits of kvm_guest_debug.control."""

    ENABLE = 1 << 0
    SINGLESTEP = 1 << 1
    USE_SW_BP = 1 << 16
    USE_HW = 1 << 17


GUEST_DEBUG_MASK = sum(GuestDebugFlag)
"""All of them."""


@struct(size=512, c_name="kvm_guest_debug_arch")
class GuestDebugArch(Structure):
    """Values for DBGBCR<n>_EL1, DBGBVR<n>_EL1, DBGWCR<n>_EL1 and DBGWVR<n>_EL1."""

    dbg_bcr: u64x16
    dbg_bvr: u64x16
    dbg_wcr: u64x16
    dbg_wvr: u64x16


@struct(size=520, c_name="kvm_guest_debug")
class GuestDebug(Structure):
    control: Annotated[int, ctypes.c_uint32, GuestDebugFlag]
    pad: u32
    arch: GuestDebugArch


class IrqType(IntEnum):
    """Bits 27:24 of a KVM_IRQ_LINE word."""

    CPU = 0
    SPI = 1
    PPI = 2


def irq_word(kind: IrqType, number: int, vcpu: int = 0) -> int:
    """The `irq` field of KVM_IRQ_LINE."""
    return (vcpu >> 8) << 28 | kind << 24 | (vcpu & 0xFF) << 16 | number


class DeviceType(IntEnum):
    """In-kernel device types of arm64."""

    VFIO = 4
    ARM_VGIC_V2 = 5
    ARM_VGIC_V3 = 7
    ARM_VGIC_ITS = 8
    ARM_PV_TIME = 10


class VgicGroup(IntEnum):
    """Attribute groups of the interrupt controller devices."""

    ADDR = 0
    DIST_REGS = 1
    CPU_REGS = 2
    NR_IRQS = 3
    CTRL = 4
    REDIST_REGS = 5
    CPU_SYSREGS = 6
    LEVEL_INFO = 7
    ITS_REGS = 8
    MAINT_IRQ = 9


class VgicAddr(IntEnum):
    """Attributes of VgicGroup.ADDR."""

    V2_DIST = 0
    V2_CPU = 1
    V3_DIST = 2
    V3_REDIST = 3
    ITS = 4
    V3_REDIST_REGION = 5


class VgicCtrl(IntEnum):
    """Attributes of VgicGroup.CTRL."""

    INIT = 0
    ITS_SAVE_TABLES = 1
    ITS_RESTORE_TABLES = 2
    SAVE_PENDING_TABLES = 3
    ITS_RESET = 4


class VcpuGroup(IntEnum):
    """Attribute groups of a vCPU."""

    PMU_V3_CTRL = 0
    TIMER_CTRL = 1
    PVTIME_CTRL = 2


class PmuAttr(IntEnum):
    """Attributes of VcpuGroup.PMU_V3_CTRL."""

    IRQ = 0
    INIT = 1
    FILTER = 2
    SET_PMU = 3
    SET_NR_COUNTERS = 4


class TimerAttr(IntEnum):
    """Attributes of VcpuGroup.TIMER_CTRL: the PPI of each timer, as a 32-bit int."""

    VTIMER = 0
    PTIMER = 1
    HVTIMER = 2
    HPTIMER = 3


class SystemEventFlag(IntFlag):
    """Bits of the first data word of a PSCI system event."""

    PSCI_RESET2 = 1
    PSCI_OFF2 = 1


# --- ONE_REG ids ---------------------------------------------------------------------------------------------------------------

REG_ARCH = 0x60 << 56
REG_ARCH_MASK = 0xFF << 56
SIZE_U32, SIZE_U64, SIZE_U128 = (log2 << 52 for log2 in (2, 3, 4))
REG_SIZE_MASK = 0xF << 52
GROUP_CORE, GROUP_DEMUX, GROUP_SYSREG, GROUP_FW, GROUP_SVE, GROUP_FW_BITMAP = (
    group << 16 for group in (0x10, 0x11, 0x13, 0x14, 0x15, 0x16)
)
REG_GROUP_MASK = 0xFFF << 16

CORE_U64 = REG_ARCH | SIZE_U64 | GROUP_CORE
CORE_U128 = REG_ARCH | SIZE_U128 | GROUP_CORE
CORE_U32 = REG_ARCH | SIZE_U32 | GROUP_CORE
REG_SP, REG_PC, REG_PSTATE, REG_SP_EL1, REG_ELR_EL1 = (CORE_U64 | index for index in (62, 64, 66, 68, 70))
REG_FPSR, REG_FPCR = CORE_U32 | 0xD4, CORE_U32 | 0xD5
REG_PSCI_VERSION, REG_WORKAROUND_1, REG_WORKAROUND_2, REG_WORKAROUND_3 = (REG_ARCH | SIZE_U64 | GROUP_FW | index for index in range(4))
WORKAROUND_1_NOT_REQUIRED = WORKAROUND_3_NOT_REQUIRED = 2
WORKAROUND_2_AVAIL, WORKAROUND_2_NOT_REQUIRED, WORKAROUND_2_ENABLED = 2, 3, 1 << 4
REG_STD_BMAP, REG_STD_HYP_BMAP, REG_VENDOR_HYP_BMAP, REG_VENDOR_HYP_BMAP_2 = (
    REG_ARCH | SIZE_U64 | GROUP_FW_BITMAP | index for index in range(4)
)
STD_TRNG_V1_0 = STD_HYP_PV_TIME = 1 << 0
VENDOR_HYP_FUNC_FEAT, VENDOR_HYP_PTP = 1 << 0, 1 << 1
VENDOR_HYP_DISCOVER_VER, VENDOR_HYP_DISCOVER_CPUS = 1 << 0, 1 << 1
"""Bits of the pseudo registers that say which hypercall services there are."""


def reg_x(number: int) -> int:
    """Id of a general register, X0 to X30."""
    return CORE_U64 | 2 * number


def reg_spsr(index: int) -> int:
    """Id of a saved program status register: 0 EL1, 1 abt, 2 und, 3 irq, 4 fiq."""
    return CORE_U64 | 72 + 2 * index


def reg_v(number: int) -> int:
    """Id of a SIMD&FP register, V0 to V31."""
    return CORE_U128 | 0x54 + 4 * number


def reg_ccsidr(index: int) -> int:
    """Id of the cache size register that CSSELR value `index` selects."""
    return REG_ARCH | SIZE_U32 | GROUP_DEMUX | index


def reg_sysreg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Id of a system register by its encoding."""
    return REG_ARCH | SIZE_U64 | GROUP_SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def reg_bytes(reg_id: int) -> int:
    """How many bytes the value of a register id has."""
    return 1 << (reg_id >> 52 & 0xF)


REG_TIMER_CTL = reg_sysreg(3, 3, 14, 3, 1)
REG_TIMER_CVAL = reg_sysreg(3, 3, 14, 0, 2)
REG_TIMER_CNT = reg_sysreg(3, 3, 14, 3, 2)
"""The virtual timer's ids: a slip of long ago gave the compare value the counter's encoding and the reverse; it is ABI now."""
REG_PTIMER_CTL = reg_sysreg(3, 3, 14, 2, 1)
REG_PTIMER_CVAL = reg_sysreg(3, 3, 14, 2, 2)
REG_PTIMER_CNT = reg_sysreg(3, 3, 14, 0, 1)


# --- calls ---------------------------------------------------------------------------------------------------------------------


@ioctl(
    "vcpu",
    0xAE,
    VcpuInit,
    "W",
    EINVAL="unknown target, unsupported or contradictory features, or not those of the first initialisation",
    ENOENT="unknown feature bit",
)
def KVM_ARM_VCPU_INIT(vcpu, init):  # type: ignore[no-untyped-def]
    """Choose the vCPU's features and reset it. May be repeated with the same features: resets again."""


@ioctl("vm", 0xAF, VcpuInit, "R", ENODEV="the host has no suitable target")
def KVM_ARM_PREFERRED_TARGET(vm, init):  # type: ignore[no-untyped-def]
    """Fill in the target and features that suit this host."""


@ioctl("vcpu", 0x9F, VcpuEvents, "R", cap=Cap.VCPU_EVENTS, ENOEXEC="the vCPU was never initialised")
def KVM_GET_VCPU_EVENTS(vcpu, events):  # type: ignore[no-untyped-def]
    """Read the exceptions pending for a vCPU."""


@ioctl(
    "vcpu",
    0xA0,
    VcpuEvents,
    "W",
    cap=Cap.VCPU_EVENTS,
    ENOEXEC="the vCPU was never initialised",
    EINVAL="a syndrome without the feature for it, or with bits that it cannot have",
)
def KVM_SET_VCPU_EVENTS(vcpu, events):  # type: ignore[no-untyped-def]
    """Make an SError or an external data abort pending."""


@ioctl("vcpu", 0x9B, GuestDebug, "W", cap=Cap.SET_GUEST_DEBUG, EINVAL="unknown control bits")
def KVM_SET_GUEST_DEBUG(vcpu, debug):  # type: ignore[no-untyped-def]
    """Debug the guest from outside: stop after each instruction, at BRK, at breakpoints and watchpoints, with KVM_EXIT_DEBUG.

    Without ENABLE it stops debugging. While it is on, the guest's own debug registers are set aside: it reads back what it writes,
    and nothing comes of it.
    """
