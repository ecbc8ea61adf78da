"""Calls of an x86 VM's file: PIC, IOAPIC, PIT, clock, and where KVM may put what it needs in guest memory."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag
from typing import Annotated, Any

from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import Structure, struct, u8, u16, u32, u64

IOAPIC_PINS = 24


class IrqchipId(IntEnum):
    """Which chip KVM_GET_IRQCHIP and KVM_SET_IRQCHIP mean."""

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2


class ClockFlag(IntFlag):
    """Bits of ClockData.flags: which of its fields count."""

    TSC_STABLE = 2
    REALTIME = 4
    HOST_TSC = 8


class PitFlag(IntFlag):
    """Bits of PitState2.flags and PitConfig.flags."""

    HPET_LEGACY = 1
    SPEAKER_DATA_ON = 2


PIT_SPEAKER_DUMMY = 1
"""Flag of PitConfig: KVM answers port 0x61 too."""


@struct(size=16, c_name="kvm_pic_state")
class PicState(Structure):
    last_irr: u8
    irr: u8
    imr: u8
    isr: u8
    priority_add: u8
    irq_base: u8
    read_reg_select: u8
    poll: u8
    special_mask: u8
    init_state: u8
    auto_eoi: u8
    rotate_on_auto_eoi: u8
    special_fully_nested_mode: u8
    init4: u8
    elcr: u8
    elcr_mask: u8


@struct(size=216, c_name="kvm_ioapic_state")
class IoapicState(Structure):
    base_address: u64
    ioregsel: u32
    id: u32
    irr: u32
    pad: u32
    redirtbl: Annotated[Any, ctypes.c_uint64 * IOAPIC_PINS]


class ChipUnion(ctypes.Union):
    """The state of one chip of the three."""

    _fields_ = [("pic", PicState), ("ioapic", IoapicState), ("dummy", ctypes.c_uint8 * 512)]


@struct(size=520, c_name="kvm_irqchip")
class Irqchip(Structure):
    chip_id: u32
    pad: u32
    chip: ChipUnion


@struct(size=24, c_name="kvm_pit_channel_state")
class PitChannelState(Structure):
    count: u32
    latched_count: u16
    count_latched: u8
    status_latched: u8
    status: u8
    read_state: u8
    write_state: u8
    write_latch: u8
    rw_mode: u8
    mode: u8
    bcd: u8
    gate: u8
    count_load_time: Annotated[int, ctypes.c_int64]


@struct(size=112, c_name="kvm_pit_state2")
class PitState2(Structure):
    channels: Annotated[Any, PitChannelState * 3]
    flags: u32
    reserved: Annotated[Any, ctypes.c_uint32 * 9]


@struct(size=64, c_name="kvm_pit_config")
class PitConfig(Structure):
    flags: u32
    pad: Annotated[Any, ctypes.c_uint32 * 15]


@struct(size=32, c_name="kvm_reinject_control")
class ReinjectControl(Structure):
    pit_reinject: u8
    reserved: Annotated[Any, ctypes.c_uint8 * 31]


@struct(size=48, c_name="kvm_clock_data")
class ClockData(Structure):
    """Nanoseconds of kvmclock; with their flags the host's wall clock and time stamp counter at that moment."""

    clock: u64
    flags: u32
    pad0: u32
    realtime: u64
    host_tsc: u64
    pad: Annotated[Any, ctypes.c_uint32 * 4]


@struct(size=8, c_name="")
class Address(Structure):
    address: u64


# --- calls ---------------------------------------------------------------------------------------------------------------------


@ioctl("vm", 0x47, cap=Cap.SET_TSS_ADDR, EINVAL="the three pages do not fit below 4 GiB")
def KVM_SET_TSS_ADDR(vm, address):  # type: ignore[no-untyped-def]
    """Give KVM three pages of guest physical addresses: some Intel hosts need a task state segment there for real mode."""


@ioctl("vm", 0x48, Address, "W", cap=Cap.SET_IDENTITY_MAP_ADDR, EINVAL="vCPUs exist already", EFAULT="the address cannot be read")
def KVM_SET_IDENTITY_MAP_ADDR(vm, address):  # type: ignore[no-untyped-def]
    """Give KVM one page of guest physical addresses for the page table that some Intel hosts need for real mode."""


@ioctl("vm", 0x60, cap=Cap.IRQCHIP, EEXIST="the VM has one", EINVAL="vCPUs exist already", ENOMEM="no memory")
def KVM_CREATE_IRQCHIP(vm):  # type: ignore[no-untyped-def]
    """Make two PICs and an IOAPIC, and a local APIC for every vCPU that is made from now on."""


@ioctl("vm", 0x62, Irqchip, "RW", cap=Cap.IRQCHIP, ENXIO="the VM has no interrupt controller", EINVAL="no such chip", ENOMEM="no memory")
def KVM_GET_IRQCHIP(vm, chip):  # type: ignore[no-untyped-def]
    """Read a PIC's or the IOAPIC's state."""


@ioctl("vm", 0x63, Irqchip, "R", cap=Cap.IRQCHIP, ENXIO="the VM has no interrupt controller", EINVAL="no such chip", ENOMEM="no memory")
def KVM_SET_IRQCHIP(vm, chip):  # type: ignore[no-untyped-def]
    """Set a PIC's or the IOAPIC's state."""


@ioctl("vm", 0x71, cap=Cap.REINJECT_CONTROL, ENXIO="the VM has no PIT", EFAULT="the argument cannot be read")
def KVM_REINJECT_CONTROL(vm, address):  # type: ignore[no-untyped-def]
    """Say whether ticks of the PIT that the guest missed are made up for. The argument is the address of a ReinjectControl."""


@ioctl("vm", 0x77, PitConfig, "W", cap=Cap.PIT2, EEXIST="the VM has one", ENOENT="there is no PIC for it", ENOMEM="no memory")
def KVM_CREATE_PIT2(vm, config):  # type: ignore[no-untyped-def]
    """Make an 8254 interval timer at ports 0x40 to 0x43, on IRQ 0."""


@ioctl("vm", 0x9F, PitState2, "R", cap=Cap.PIT_STATE2, ENXIO="the VM has no PIT")
def KVM_GET_PIT2(vm, state):  # type: ignore[no-untyped-def]
    """Read the interval timer's state."""


@ioctl("vm", 0xA0, PitState2, "W", cap=Cap.PIT_STATE2, ENXIO="the VM has no PIT")
def KVM_SET_PIT2(vm, state):  # type: ignore[no-untyped-def]
    """Set the interval timer's state."""


@ioctl("vm", 0x78, cap=Cap.SET_BOOT_CPU_ID, EBUSY="vCPUs exist already", EINVAL="the id is too large")
def KVM_SET_BOOT_CPU_ID(vm, vcpu_id):  # type: ignore[no-untyped-def]
    """Say which vCPU starts by itself; 0 unless said."""


@ioctl("vm", 0x7B, ClockData, "W", cap=Cap.ADJUST_CLOCK, EINVAL="unknown flags")
def KVM_SET_CLOCK(vm, clock):  # type: ignore[no-untyped-def]
    """Set the VM's kvmclock. With REALTIME the wall clock's advance since then is added."""


@ioctl("vm", 0x7C, ClockData, "R", cap=Cap.ADJUST_CLOCK)
def KVM_GET_CLOCK(vm, clock):  # type: ignore[no-untyped-def]
    """Read the VM's kvmclock."""
