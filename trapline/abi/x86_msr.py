"""MSRs and CPUID of x86 vCPUs: lists, access, the filter, and which accesses leave to userspace."""

from __future__ import annotations

import ctypes
from enum import IntFlag
from typing import Annotated, Any

from trapline.abi.caps import Cap
from trapline.abi.ioctl import always, ioctl
from trapline.abi.struct import Meaning, Pointee, Structure, bitmap_bytes, struct, u32, u32x3, u64

MSR_FILTER_RANGES = 16
MSR_FILTER_BITMAP_SIZE = 0x600
"""Bytes of a range's bitmap at most: 12288 MSRs."""


class MsrExitReason(IntFlag):
    """Argument of KVM_CAP_X86_USER_SPACE_MSR, and why an MSR access left: it would have been #GP, nobody knows it, or the filter."""

    INVAL = 1
    UNKNOWN = 2
    FILTER = 4


class MsrFilterFlag(IntFlag):
    """Bits of a filter range's flags: which accesses its bitmap judges."""

    READ = 1
    WRITE = 2


MSR_FILTER_DEFAULT_ALLOW = 0
MSR_FILTER_DEFAULT_DENY = 1


class CpuidFlag(IntFlag):
    """Bits of CpuidEntry.flags."""

    SIGNIFICANT_INDEX = 1
    STATEFUL_FUNC = 2
    STATE_READ_NEXT = 4


@struct(size=4, c_name="kvm_msr_list", tail=("nmsrs", u32))
class MsrList(Structure):
    """The head of a list: `nmsrs` indices of 4 bytes follow."""

    nmsrs: u32


@struct(size=16, c_name="kvm_msr_entry")
class MsrEntry(Structure):
    index: u32
    reserved: u32
    data: u64


@struct(size=8, c_name="kvm_msrs", tail=("nmsrs", MsrEntry))
class Msrs(Structure):
    """The head of a list: `nmsrs` entries follow."""

    nmsrs: u32
    pad: u32


MsrBitmap = Annotated[int, ctypes.c_uint64, Meaning.USER, Pointee(lambda range, kind, slots: bitmap_bytes(range.nmsrs))]


@struct(size=24, c_name="kvm_msr_filter_range")
class MsrFilterRange(Structure):
    """Bit i of the bitmap: whether accesses of the kinds in `flags` to MSR base + i are allowed."""

    flags: u32
    nmsrs: u32
    base: u32
    pad: u32
    bitmap: MsrBitmap


@struct(size=392, c_name="kvm_msr_filter")
class MsrFilter(Structure):
    flags: u32
    pad: u32
    ranges: Annotated[Any, MsrFilterRange * MSR_FILTER_RANGES]


@struct(size=40, c_name="kvm_cpuid_entry2")
class CpuidEntry(Structure):
    function: u32
    index: u32
    flags: u32
    eax: u32
    ebx: u32
    ecx: u32
    edx: u32
    padding: u32x3


@struct(size=8, c_name="kvm_cpuid2", tail=("nent", CpuidEntry))
class Cpuid2(Structure):
    """The head of a list: `nent` entries follow."""

    nent: u32
    padding: u32


def followed_by(head: type[Structure], entry: Any, count: int) -> Any:
    """A list argument: `head`, its count set, and room for `count` entries in the field `entries`."""

    class Sized(ctypes.Structure):
        _fields_ = [("head", head), ("entries", entry * count)]

    argument = Sized()
    setattr(argument.head, head._fields_[0][0], count)
    return argument


# --- calls ---------------------------------------------------------------------------------------------------------------------


@ioctl("system", 0x02, MsrList, "RW", E2BIG="the list is too short: its nmsrs now holds the number needed")
def KVM_GET_MSR_INDEX_LIST(system, indices):  # type: ignore[no-untyped-def]
    """List the MSRs that make up a guest's state and can be saved and restored."""


@ioctl("system", 0x0A, MsrList, "RW", cap=Cap.GET_MSR_FEATURES, E2BIG="the list is too short: its nmsrs now holds the number needed")
def KVM_GET_MSR_FEATURE_INDEX_LIST(system, indices):  # type: ignore[no-untyped-def]
    """List the MSRs by which processors announce features."""


@ioctl("system", 0x05, Cpuid2, "RW", cap=Cap.EXT_CPUID, E2BIG="the list is too short", ENOMEM="no memory")
def KVM_GET_SUPPORTED_CPUID(system, cpuid):  # type: ignore[no-untyped-def]
    """List the CPUID leaves that a guest can be given here."""


@ioctl("system", 0x09, Cpuid2, "RW", cap=Cap.EXT_EMUL_CPUID, E2BIG="the list is too short", ENOMEM="no memory")
def KVM_GET_EMULATED_CPUID(system, cpuid):  # type: ignore[no-untyped-def]
    """List the CPUID bits that KVM emulates although the host's processor lacks them."""


@ioctl(("system", "vcpu"), 0x88, Msrs, "RW", E2BIG="more than 256 entries", ENOMEM="no memory", EINVAL="the VM's state does not allow it")
def KVM_GET_MSRS(vcpu, msrs):  # type: ignore[no-untyped-def]
    """Read MSRs in order; returns how many were read before one could not be. On the device file: feature MSRs."""


@ioctl("vcpu", 0x89, Msrs, "W", guest=always, E2BIG="more than 256 entries", ENOMEM="no memory", EINVAL="the VM's state does not allow it")
def KVM_SET_MSRS(vcpu, msrs):  # type: ignore[no-untyped-def]
    """Set MSRs in order; returns how many were set before one could not be."""


@ioctl("vcpu", 0x90, Cpuid2, "W", cap=Cap.EXT_CPUID, E2BIG="too many entries", EINVAL="the vCPU has run and this would change it")
def KVM_SET_CPUID2(vcpu, cpuid):  # type: ignore[no-untyped-def]
    """Say what the guest's CPUID instruction answers, and so which features it has."""


@ioctl("vcpu", 0x91, Cpuid2, "RW", cap=Cap.EXT_CPUID, E2BIG="the list is too short: its nent now holds the number needed")
def KVM_GET_CPUID2(vcpu, cpuid):  # type: ignore[no-untyped-def]
    """Read what the guest's CPUID instruction answers."""


@ioctl(
    "vm",
    0xC6,
    MsrFilter,
    "W",
    cap=Cap.X86_MSR_FILTER,
    EINVAL="unknown flags, a range that is too long or judges nothing, or a deny by default without any range",
    EFAULT="a bitmap cannot be read",
    ENOMEM="no memory",
)
def KVM_X86_SET_MSR_FILTER(vm, filter):  # type: ignore[no-untyped-def]
    """Replace the VM's MSR filter as a whole; no ranges and allow by default remove it.

    The first range that holds the MSR and judges this kind of access decides by its bitmap, else the default does. What is denied
    is #GP, or an exit where KVM_CAP_X86_USER_SPACE_MSR asks for filtered accesses. The x2APIC's MSRs (0x800 to 0x8ff) are never
    filtered. A bitmap is read in units of 8 bytes.
    """
