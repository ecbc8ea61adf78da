"""Calls answered by a VM's file, and their structures."""

from __future__ import annotations

import ctypes
from enum import IntFlag
from typing import Annotated

from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import GuestAddress, Meaning, SlotBitmap, SlotId, SlotMemory, Structure, struct, u8x64, u32, u64, u64x4


class MemoryFlag(IntFlag):
    """Flags of a memory slot."""

    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1
    GUEST_MEMFD = 1 << 2


MEM_LOG_DIRTY_PAGES = MemoryFlag.LOG_DIRTY_PAGES.value
MEM_READONLY = MemoryFlag.READONLY.value
MEM_GUEST_MEMFD = MemoryFlag.GUEST_MEMFD.value

MemoryFlags = Annotated[int, ctypes.c_uint32, MemoryFlag]

CREATE_DEVICE_TEST = 1 << 0
"""Flag of KVM_CREATE_DEVICE: only tell whether the type is known."""


@struct(size=32, c_name="kvm_userspace_memory_region")
class UserspaceMemoryRegion(Structure):
    slot: SlotId
    flags: MemoryFlags
    guest_phys_addr: GuestAddress
    memory_size: u64
    userspace_addr: SlotMemory


@struct(size=16, c_name="kvm_dirty_log")
class DirtyLog(Structure):
    slot: SlotId
    padding1: u32
    dirty_bitmap: SlotBitmap


@struct(size=8, c_name="kvm_irq_level")
class IrqLevel(Structure):
    irq: u32
    level: u32


@struct(size=104, c_name="kvm_enable_cap")
class EnableCap(Structure):
    cap: Annotated[int, ctypes.c_uint32, Cap]
    flags: u32
    args: u64x4
    pad: u8x64


@struct(size=12, c_name="kvm_create_device")
class CreateDevice(Structure):
    type: u32
    fd: Annotated[int, ctypes.c_uint32, Meaning.MADE]
    flags: u32


@ioctl(
    "vm",
    0x41,
    makes="vcpu",
    EINVAL="the id is not below the largest number of vCPUs",
    EEXIST="there is a vCPU with this id",
    EBUSY="the interrupt controller is initialised and cannot serve another vCPU",
    ENOMEM="no memory for the vCPU",
)
def KVM_CREATE_VCPU(vm, vcpu_id):  # type: ignore[no-untyped-def]
    """Add a vCPU and return its file. It cannot run before KVM_ARM_VCPU_INIT."""


@ioctl(
    "vm",
    0x42,
    DirtyLog,
    "W",
    ENOENT="there is no such slot, or it does not log",
    EINVAL="the slot number is out of range",
    EFAULT="the bitmap cannot be written",
    ENXIO="the VM uses dirty rings without a bitmap",
)
def KVM_GET_DIRTY_LOG(vm, log):  # type: ignore[no-untyped-def]
    """Copy out which pages of a slot were written since the last call, and start again from none."""


@ioctl(
    "vm",
    0x46,
    UserspaceMemoryRegion,
    "W",
    cap=Cap.USER_MEMORY,
    EINVAL="slot, flags, address or size are not valid, or the change is not one a slot can make",
    EEXIST="the region overlaps another slot",
    EFAULT="the region ends beyond the VM's IPA size",
    ENOMEM="no memory for the slot's bookkeeping",
)
def KVM_SET_USER_MEMORY_REGION(vm, region):  # type: ignore[no-untyped-def]
    """Create, move, re-flag or (with size 0) delete a slot of guest physical memory backed by the caller's memory."""


@ioctl(
    "vm",
    0x61,
    IrqLevel,
    "W",
    cap=Cap.IRQCHIP,
    ENXIO="the type needs, or excludes, an in-kernel interrupt controller",
    EINVAL="unknown type, or the number or vCPU is not one of that type",
    EBUSY="the interrupt controller is not initialised",
)
def KVM_IRQ_LINE(vm, irq):  # type: ignore[no-untyped-def]
    """Set the level of an interrupt line: a vCPU's IRQ or FIQ pin, a PPI of one vCPU, or an SPI."""


@ioctl(
    "vm",
    0xA3,
    EnableCap,
    "W",
    cap=Cap.ENABLE_CAP_VM,
    EINVAL="the capability cannot be enabled, a flag is set, or an argument is not valid for it",
    E2BIG="the dirty rings are to be larger than they can be",
    ENOMEM="no memory",
)
def KVM_ENABLE_CAP(vm, request):  # type: ignore[no-untyped-def]
    """Switch on a capability that is off until asked for."""


@ioctl(
    "vm",
    0xE0,
    CreateDevice,
    "RW",
    cap=Cap.DEVICE_CTRL,
    makes="device",
    ENODEV="unknown or unsupported device type",
    EEXIST="the VM has a device of this kind already",
    EBUSY="a vCPU is running or has run",
    E2BIG="there are more vCPUs than the device serves",
)
def KVM_CREATE_DEVICE(vm, request):  # type: ignore[no-untyped-def]
    """Make an in-kernel device; its file is stored in the structure."""
