"""The VM's memory beyond plain slots: dirty logs and rings, coalesced writes, guest_memfd, attributes."""

from __future__ import annotations

import ctypes
from enum import IntFlag
from typing import Annotated, Any

from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import GuestAddress, Meaning, PageCount, Pointee, SlotMemory, Structure, bitmap_bytes, struct, u8x8, u32, u64
from trapline.abi.vm import MemoryFlags, SlotId

PAGE = 4096

DIRTY_LOG_PAGE_OFFSET = 64
"""Where a vCPU's dirty ring begins in its file, in pages."""

RING_MAX_ENTRIES = 65536
"""Entries of the largest dirty ring."""

COALESCED_MAX = 170
"""Entries that fit into the page of coalesced writes; one of them always stays empty."""


class DirtyGfnFlag(IntFlag):
    """State of a dirty ring's entry: neither bit is free, DIRTY is filled, RESET says that userspace has harvested it."""

    DIRTY = 1
    RESET = 2


class ManualProtect(IntFlag):
    """Argument of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2."""

    ENABLE = 1
    INITIALLY_SET = 2


class MemoryAttribute(IntFlag):
    """Attributes of guest pages."""

    PRIVATE = 1 << 3


PageBitmap = Annotated[int, ctypes.c_uint64, Meaning.USER, Pointee(lambda log, kind, slots: bitmap_bytes(log.num_pages))]


@struct(size=160, c_name="kvm_userspace_memory_region2")
class UserspaceMemoryRegion2(Structure):
    slot: SlotId
    flags: MemoryFlags
    guest_phys_addr: GuestAddress
    memory_size: u64
    userspace_addr: SlotMemory
    guest_memfd_offset: u64
    guest_memfd: u32
    pad1: u32
    pad2: Annotated[Any, ctypes.c_uint64 * 14]


@struct(size=24, c_name="kvm_clear_dirty_log")
class ClearDirtyLog(Structure):
    slot: SlotId
    num_pages: PageCount
    first_page: u64
    dirty_bitmap: PageBitmap


@struct(size=16, c_name="kvm_dirty_gfn")
class DirtyGfn(Structure):
    """An entry of a dirty ring. `slot` has the address space in its upper half, `offset` is the page's number within the slot."""

    flags: Annotated[int, ctypes.c_uint32, DirtyGfnFlag]
    slot: u32
    offset: u64


@struct(size=16, c_name="kvm_coalesced_mmio_zone")
class CoalescedMmioZone(Structure):
    addr: GuestAddress
    size: u32
    pio: u32


@struct(size=24, c_name="kvm_coalesced_mmio")
class CoalescedMmio(Structure):
    """A write that did not exit."""

    phys_addr: u64
    len: u32
    pio: u32
    data: u8x8


@struct(size=8, c_name="kvm_coalesced_mmio_ring")
class CoalescedMmioRing(Structure):
    """Head of the ring of coalesced writes; entries follow. Userspace takes them at `first`, KVM adds them at `last`."""

    first: u32
    last: u32


@struct(size=64, c_name="kvm_create_guest_memfd")
class CreateGuestMemfd(Structure):
    size: u64
    flags: u64
    reserved: Annotated[Any, ctypes.c_uint64 * 6]


@struct(size=32, c_name="kvm_memory_attributes")
class MemoryAttributes(Structure):
    address: GuestAddress
    size: u64
    attributes: Annotated[int, ctypes.c_uint64, MemoryAttribute]
    flags: u64


@struct(size=64, c_name="kvm_pre_fault_memory")
class PreFaultMemory(Structure):
    gpa: GuestAddress
    size: u64
    flags: u64
    padding: Annotated[Any, ctypes.c_uint64 * 5]


@ioctl(
    "vm",
    0x49,
    UserspaceMemoryRegion2,
    "W",
    cap=Cap.USER_MEMORY2,
    EINVAL="slot, flags, address, size or guest_memfd are not valid, or the change is not one a slot can make",
    EEXIST="the region overlaps another slot, or another slot has that part of the guest_memfd",
    EBADF="guest_memfd is not an open file",
    EFAULT="the region ends beyond the VM's IPA size",
    ENOMEM="no memory for the slot's bookkeeping",
)
def KVM_SET_USER_MEMORY_REGION2(vm, region):  # type: ignore[no-untyped-def]
    """As KVM_SET_USER_MEMORY_REGION, for slots whose private pages come from a guest_memfd."""


@ioctl(
    "vm",
    0x67,
    CoalescedMmioZone,
    "W",
    cap=Cap.COALESCED_MMIO,
    EINVAL="pio is neither 0 nor 1",
    ENOSPC="there are a thousand zones and ioeventfds already",
    ENOMEM="no memory for the zone",
)
def KVM_REGISTER_COALESCED_MMIO(vm, zone):  # type: ignore[no-untyped-def]
    """Let guest writes within a zone go into a ring instead of exiting one by one.

    The ring is a page of every vCPU's mapping (KVM_CAP_COALESCED_MMIO says which). It has to be drained after each exit, before the
    exit itself is looked at. A write that finds it full exits as if there were no zone.
    """


@ioctl("vm", 0x68, CoalescedMmioZone, "W", cap=Cap.COALESCED_MMIO, EINVAL="pio is neither 0 nor 1")
def KVM_UNREGISTER_COALESCED_MMIO(vm, zone):  # type: ignore[no-untyped-def]
    """Remove all zones that hold the given range. It is no error if there is none."""


@ioctl(
    "vm",
    0xC0,
    ClearDirtyLog,
    "RW",
    cap=Cap.MANUAL_DIRTY_LOG_PROTECT2,
    EINVAL="the slot number is out of range; first_page is no multiple of 64 or beyond the slot; num_pages goes beyond the slot, "
    "or is no multiple of 64 and does not end with it",
    ENOENT="there is no such slot, or it does not log",
    ENXIO="the VM uses dirty rings without a bitmap",
)
def KVM_CLEAR_DIRTY_LOG(vm, log):  # type: ignore[no-untyped-def]
    """Clear the given bits of a slot's dirty log, and watch those pages again. With manual protection nothing else does."""


@ioctl("vm", 0xC7, None, "", cap=Cap.DIRTY_LOG_RING_ACQ_REL, EINVAL="the VM has no dirty rings")
def KVM_RESET_DIRTY_RINGS(vm):  # type: ignore[no-untyped-def]
    """Take back the harvested entries at the start of every vCPU's ring, watch their pages again, and return how many they were."""


@ioctl(
    "vm",
    0xD2,
    MemoryAttributes,
    "W",
    cap=Cap.MEMORY_ATTRIBUTES,
    EINVAL="flags or unknown attributes are set, or address or size are not page aligned, or the range is empty or wraps",
    ENOMEM="no memory to note the attributes",
)
def KVM_SET_MEMORY_ATTRIBUTES(vm, attributes):  # type: ignore[no-untyped-def]
    """Say which pages of a range the guest shares with userspace and which are private."""


@ioctl(
    "vm",
    0xD4,
    CreateGuestMemfd,
    "RW",
    cap=Cap.GUEST_MEMFD,
    makes="guest_memfd",
    EINVAL="unknown flags, or the size is zero or not page aligned",
    ENOMEM="no memory for the file",
)
def KVM_CREATE_GUEST_MEMFD(vm, memfd):  # type: ignore[no-untyped-def]
    """Make a file of guest memory that userspace need not be able to map, and return it."""


@ioctl(
    "vcpu",
    0xD5,
    PreFaultMemory,
    "RW",
    cap=Cap.PRE_FAULT_MEMORY,
    EINVAL="flags are set, or the range is empty, unaligned or wraps",
    ENOENT="the range begins outside the memory slots",
    ENOEXEC="the vCPU was never initialised",
    EINTR="a signal came before anything was done",
    EOPNOTSUPP="the vCPU's way of translating cannot be prepared",
)
def KVM_PRE_FAULT_MEMORY(vcpu, memory):  # type: ignore[no-untyped-def]
    """Map a range of guest memory before the guest touches it. gpa and size say afterwards what is left to do."""
