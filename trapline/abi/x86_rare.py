"""Calls of x86's KVM that few need: machine checks, the task priority, nested state, events to count, the legacy timer."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Annotated, Any

from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import GuestAddress, Structure, struct, u8, u16, u32, u64
from trapline.abi.x86_msr import Cpuid2
from trapline.abi.x86_vm import PitChannelState


class NestedFormat(IntEnum):
    """What kvm_nested_state holds: Intel's or AMD's structures."""

    VMX = 0
    SVM = 1


class PmuFilterAction(IntEnum):
    """What a PMU event filter does with the events that it lists."""

    ALLOW = 0
    DENY = 1


@struct(size=40, c_name="kvm_tpr_access_ctl")
class TprAccessControl(Structure):
    enabled: u32
    flags: u32
    reserved: Annotated[Any, ctypes.c_uint32 * 8]


@struct(size=8, c_name="kvm_vapic_addr")
class VapicAddr(Structure):
    vapic_addr: GuestAddress


@struct(size=64, c_name="kvm_x86_mce")
class Mce(Structure):
    """A machine check to make pending: what the bank's MSRs are to hold."""

    status: u64
    addr: u64
    misc: u64
    mcg_status: u64
    bank: u8
    pad1: Annotated[Any, ctypes.c_uint8 * 7]
    pad2: Annotated[Any, ctypes.c_uint64 * 3]


@struct(size=8, c_name="")
class MceCapabilities(Structure):
    """IA32_MCG_CAP: its low byte is the number of banks."""

    mcg_cap: u64


@struct(size=128, c_name="kvm_nested_state")
class NestedState(Structure):
    """The head of what a nested hypervisor's processor keeps: `size` says how long the whole is, this head included."""

    flags: u16
    format: Annotated[int, ctypes.c_uint16, NestedFormat]
    size: u32
    hdr: Annotated[Any, ctypes.c_uint8 * 120]


@struct(size=32, c_name="kvm_pmu_event_filter", tail=("nevents", u64))
class PmuEventFilter(Structure):
    """The head of a list: `nevents` event codes of 8 bytes follow."""

    action: Annotated[int, ctypes.c_uint32, PmuFilterAction]
    nevents: u32
    fixed_counter_bitmap: u32
    flags: u32
    pad: Annotated[Any, ctypes.c_uint32 * 4]


@struct(size=72, c_name="kvm_pit_state")
class PitState(Structure):
    channels: Annotated[Any, PitChannelState * 3]


@ioctl("vcpu", 0x92, TprAccessControl, "RW", cap=Cap.VAPIC, EINVAL="flags are set")
def KVM_TPR_ACCESS_REPORTING(vcpu, control):  # type: ignore[no-untyped-def]
    """Let accesses to the task priority register leave with KVM_EXIT_TPR_ACCESS, so that userspace can patch them."""


@ioctl("vcpu", 0x93, VapicAddr, "W", cap=Cap.VAPIC, EINVAL="KVM has no local APIC for this VM, or the address is not in its memory")
def KVM_SET_VAPIC_ADDR(vcpu, address):  # type: ignore[no-untyped-def]
    """Say where in guest memory the task priority is kept for patched guests."""


@ioctl("vcpu", 0x9C, MceCapabilities, "W", cap=Cap.MCE, EINVAL="more banks than KVM has, or capabilities that it lacks")
def KVM_X86_SETUP_MCE(vcpu, capabilities):  # type: ignore[no-untyped-def]
    """Choose the vCPU's machine check banks."""


@ioctl("system", 0x9D, MceCapabilities, "R", cap=Cap.MCE)
def KVM_X86_GET_MCE_CAP_SUPPORTED(system, capabilities):  # type: ignore[no-untyped-def]
    """Read which machine check capabilities vCPUs can have."""


@ioctl("vcpu", 0x9E, Mce, "W", cap=Cap.MCE, EINVAL="no such bank, or the status is not valid")
def KVM_X86_SET_MCE(vcpu, check):  # type: ignore[no-untyped-def]
    """Make a machine check happen. One that the guest cannot take shuts it down."""


@ioctl("vm", 0x44, EINVAL="fewer pages than KVM needs")
def KVM_SET_NR_MMU_PAGES(vm, pages):  # type: ignore[no-untyped-def]
    """Limit how many pages KVM uses for shadow page tables."""


@ioctl("vm", 0x65, PitState, "RW", cap=Cap.PIT, ENXIO="the VM has no PIT")
def KVM_GET_PIT(vm, state):  # type: ignore[no-untyped-def]
    """Read the interval timer's channels; KVM_GET_PIT2 has the flags too."""


@ioctl("vm", 0x66, PitState, "R", cap=Cap.PIT, ENXIO="the VM has no PIT")
def KVM_SET_PIT(vm, state):  # type: ignore[no-untyped-def]
    """Set the interval timer's channels."""


@ioctl(
    "vm",
    0xB2,
    PmuEventFilter,
    "W",
    cap=Cap.PMU_EVENT_FILTER,
    EINVAL="unknown action or flags",
    E2BIG="more than 300 events",
    EFAULT="the events cannot be read",
    ENOMEM="no memory",
)
def KVM_SET_PMU_EVENT_FILTER(vm, filter):  # type: ignore[no-untyped-def]
    """Say which performance events guests may count, or which they may not."""


@ioctl("vcpu", 0xBE, NestedState, "RW", cap=Cap.NESTED_STATE, EINVAL="the host has no nested virtualization", E2BIG="the size is too small")
def KVM_GET_NESTED_STATE(vcpu, state):  # type: ignore[no-untyped-def]
    """Read what the vCPU keeps of a guest's own guests; `size` says how much room there is, and afterwards how much is needed."""


@ioctl("vcpu", 0xBF, NestedState, "W", cap=Cap.NESTED_STATE, EINVAL="unknown flags or format, or state that cannot be", ENOMEM="no memory")
def KVM_SET_NESTED_STATE(vcpu, state):  # type: ignore[no-untyped-def]
    """Set what the vCPU keeps of a guest's own guests."""


@ioctl(("system", "vcpu"), 0xC1, Cpuid2, "RW", cap=Cap.HYPERV_CPUID, E2BIG="the list is too short")
def KVM_GET_SUPPORTED_HV_CPUID(system, cpuid):  # type: ignore[no-untyped-def]
    """List the CPUID leaves by which KVM can look like Hyper-V."""
