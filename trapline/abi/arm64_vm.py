"""More calls of arm64: those for whole VMs, and the old ones for registers that every arm64 KVM refuses."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag
from typing import Annotated, Any

from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import GuestAddress, Meaning, Pointee, Structure, struct, u8, u8x15, u32, u64


class CopyTagsFlag(IntFlag):
    """Direction of KVM_ARM_MTE_COPY_TAGS: into the guest unless told otherwise."""

    FROM_GUEST = 1


class VmGroup(IntEnum):
    """Attribute groups of a VM."""

    SMCCC_CTRL = 0


SMCCC_FILTER = 0
"""The attribute of VmGroup.SMCCC_CTRL."""


class SmcccAction(IntEnum):
    """What becomes of a guest's SMCCC call: the kernel serves it, nobody does (NOT_SUPPORTED), or userspace (KVM_EXIT_HYPERCALL)."""

    HANDLE = 0
    DENY = 1
    FWD_TO_USER = 2


class HypercallFlag(IntFlag):
    """kvm_run.hypercall.flags: how the guest made the call."""

    SMC = 1 << 0
    INSN_16BIT = 1 << 1


FEATURE_ID_RANGE = 0
"""The one range of registers that KVM_ARM_GET_REG_WRITABLE_MASKS knows."""
FEATURE_ID_MASKS = 3 * 8 * 8
"""Masks of that range: op0=3, op1 0, 1 and 3, CRn=0, CRm 0 to 7, op2 0 to 7, in this order."""


class Finalize(IntEnum):
    """Features that KVM_ARM_VCPU_FINALIZE completes."""

    SVE = 4


TAG_GRANULE = 16
Tags = Annotated[int, ctypes.c_uint64, Meaning.USER, Pointee(lambda copy, kind, slots: copy.length // TAG_GRANULE)]
Masks = Annotated[int, ctypes.c_uint64, Meaning.USER, Pointee(lambda masks, kind, slots: 8 * FEATURE_ID_MASKS)]


@struct(size=16, c_name="kvm_arm_device_addr")
class DeviceAddr(Structure):
    """`id` is the device's number in bits 31:16 and the kind of address in bits 15:0."""

    id: u64
    addr: GuestAddress


@struct(size=48, c_name="kvm_arm_copy_mte_tags")
class CopyMteTags(Structure):
    guest_ipa: GuestAddress
    length: u64
    addr: Tags
    flags: Annotated[int, ctypes.c_uint64, CopyTagsFlag]
    reserved: Annotated[Any, ctypes.c_uint64 * 2]


@struct(size=16, c_name="kvm_arm_counter_offset")
class CounterOffset(Structure):
    counter_offset: u64
    reserved: u64


@struct(size=64, c_name="reg_mask_range")
class RegMaskRange(Structure):
    addr: Masks
    range: u32
    reserved: Annotated[Any, ctypes.c_uint32 * 13]


@struct(size=24, c_name="kvm_smccc_filter")
class SmcccFilter(Structure):
    """A range of SMCCC function ids and what happens to calls of them: a value of the VM's attributes."""

    base: u32
    nr_functions: u32
    action: u8
    pad: u8x15


@struct(size=8, c_name="kvm_pmu_event_filter")
class PmuEventFilter(Structure):
    """A range of PMU events that a guest may or may not count: a value of a vCPU's attributes."""

    base_event: Annotated[int, ctypes.c_uint16]
    nevents: Annotated[int, ctypes.c_uint16]
    action: u8
    pad: Annotated[Any, ctypes.c_uint8 * 3]


@struct(size=864, c_name="kvm_regs")
class Regs(Structure):
    """What register ids of the core group are offsets into, in words. No call of arm64 takes or gives it."""

    regs: Annotated[Any, ctypes.c_uint64 * 31]
    sp: u64
    pc: u64
    pstate: u64
    sp_el1: u64
    elr_el1: u64
    spsr: Annotated[Any, ctypes.c_uint64 * 5]
    padding1: u64
    vregs: Annotated[Any, ctypes.c_uint64 * 64]
    fpsr: u32
    fpcr: u32
    padding2: Annotated[Any, ctypes.c_uint32 * 2]


@struct(size=24, c_name="kvm_translation")
class Translation(Structure):
    linear_address: u64
    physical_address: u64
    valid: u8
    writeable: u8
    usermode: u8
    pad: Annotated[Any, ctypes.c_uint8 * 5]


@struct(size=4, c_name="")
class FeatureNumber(Structure):
    """A plain int: to C it is no structure."""

    feature: Annotated[int, ctypes.c_int32, Finalize]


@ioctl(
    "vm",
    0x60,
    cap=Cap.IRQCHIP,
    EEXIST="the VM has an interrupt controller",
    ENODEV="the host cannot make a GICv2",
    ENXIO="the host cannot make any interrupt controller",
    EBUSY="a vCPU is running or has run",
    E2BIG="there are more vCPUs than a GICv2 serves",
)
def KVM_CREATE_IRQCHIP(vm):  # type: ignore[no-untyped-def]
    """Make a GICv2. KVM_CREATE_DEVICE is the newer way, and the only one to other interrupt controllers."""


@ioctl(
    "vm",
    0xAB,
    DeviceAddr,
    "W",
    cap=Cap.ARM_SET_DEVICE_ADDR,
    ENODEV="the device id is unknown, or this VM's interrupt controller has no such address",
    ENXIO="the host cannot make any interrupt controller",
    EEXIST="the address is set already",
    EINVAL="the address is not aligned or the regions overlap",
    E2BIG="the region ends beyond the VM's IPA size",
)
def KVM_ARM_SET_DEVICE_ADDR(vm, address):  # type: ignore[no-untyped-def]
    """Say where in guest memory the GICv2's distributor or CPU interface is. Device attributes are the newer way."""


@ioctl(
    "vm",
    0xB4,
    CopyMteTags,
    "R",
    cap=Cap.ARM_MTE,
    EINVAL="the VM has no MTE, unknown flags or reserved fields are set, or addresses or length are not page aligned",
    EFAULT="the range is not all memory with tags, or the tags cannot be read or written",
)
def KVM_ARM_MTE_COPY_TAGS(vm, copy):  # type: ignore[no-untyped-def]
    """Copy allocation tags, one byte each, between guest memory and a buffer. Returns how many bytes of memory were done."""


@ioctl(
    "vm",
    0xB5,
    CounterOffset,
    "W",
    cap=Cap.COUNTER_OFFSET,
    EINVAL="the reserved field is not zero",
    EBUSY="a vCPU is running",
)
def KVM_ARM_SET_COUNTER_OFFSET(vm, offset):  # type: ignore[no-untyped-def]
    """Subtract an offset from both counters of all vCPUs. From then on writes to the counters' registers are ignored."""


@ioctl(
    "vm",
    0xB6,
    RegMaskRange,
    "R",
    cap=Cap.ARM_SUPPORTED_REG_MASK_RANGES,
    EINVAL="unknown range, or reserved fields are not zero",
    EFAULT="the masks cannot be written",
)
def KVM_ARM_GET_REG_WRITABLE_MASKS(vm, masks):  # type: ignore[no-untyped-def]
    """Tell which bits of which ID registers userspace may change, as 192 masks of 64 bits (op1 0, 1, 3 by CRm by op2)."""


@ioctl(
    "vcpu",
    0xC2,
    FeatureNumber,
    "W",
    cap=Cap.ARM_SVE,
    EINVAL="the feature is unknown or was not asked for when the vCPU was initialised",
    ENOEXEC="the vCPU was never initialised",
    EPERM="the feature is complete already",
)
def KVM_ARM_VCPU_FINALIZE(vcpu, feature):  # type: ignore[no-untyped-def]
    """Say that a feature's configuration (SVE's vector lengths) is complete. Until then the vCPU cannot run."""


NOT_HERE = "always: arm64 has registers by id instead"


@ioctl("vcpu", 0x81, Regs, "R", EINVAL=NOT_HERE)
def KVM_GET_REGS(vcpu, regs):  # type: ignore[no-untyped-def]
    """Not for arm64."""


@ioctl("vcpu", 0x82, Regs, "W", EINVAL=NOT_HERE)
def KVM_SET_REGS(vcpu, regs):  # type: ignore[no-untyped-def]
    """Not for arm64."""


@ioctl("vcpu", 0x83, None, "R", EINVAL=NOT_HERE)
def KVM_GET_SREGS(vcpu, sregs):  # type: ignore[no-untyped-def]
    """Not for arm64."""


@ioctl("vcpu", 0x84, None, "W", EINVAL=NOT_HERE)
def KVM_SET_SREGS(vcpu, sregs):  # type: ignore[no-untyped-def]
    """Not for arm64."""


@ioctl("vcpu", 0x8C, None, "R", EINVAL=NOT_HERE)
def KVM_GET_FPU(vcpu, fpu):  # type: ignore[no-untyped-def]
    """Not for arm64."""


@ioctl("vcpu", 0x8D, None, "W", EINVAL=NOT_HERE)
def KVM_SET_FPU(vcpu, fpu):  # type: ignore[no-untyped-def]
    """Not for arm64."""


@ioctl("vcpu", 0x85, Translation, "RW", EINVAL="always: arm64 guests translate with AT instructions")
def KVM_TRANSLATE(vcpu, translation):  # type: ignore[no-untyped-def]
    """Not for arm64."""
