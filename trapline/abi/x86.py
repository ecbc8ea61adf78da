"""The x86 part of the ABI: what a vCPU's registers are, and the calls that read and set them."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag
from typing import Annotated, Any

from trapline.abi.caps import Cap
from trapline.abi.ioctl import always, ioctl
from trapline.abi.struct import Structure, struct, u8, u16, u32, u64, u64x4

GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
"""Names of the fields of struct kvm_regs, in order."""

SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")

XSAVE_SIZE = 4096
LAPIC_SIZE = 0x400


@struct(size=144, c_name="kvm_regs")
class Regs(Structure):
    """General registers."""

    rax: u64
    rbx: u64
    rcx: u64
    rdx: u64
    rsi: u64
    rdi: u64
    rsp: u64
    rbp: u64
    r8: u64
    r9: u64
    r10: u64
    r11: u64
    r12: u64
    r13: u64
    r14: u64
    r15: u64
    rip: u64
    rflags: u64


@struct(size=24, c_name="kvm_segment")
class Segment(Structure):
    """A segment register with its hidden part. `limit` is in bytes, whatever `g` says."""

    base: u64
    limit: u32
    selector: u16
    type: u8
    present: u8
    dpl: u8
    db: u8
    s: u8
    l: u8
    g: u8
    avl: u8
    unusable: u8
    padding: u8


@struct(size=16, c_name="kvm_dtable")
class Dtable(Structure):
    """Where a descriptor table is. `limit` is its size less one."""

    base: u64
    limit: u16
    padding: Annotated[Any, ctypes.c_uint16 * 3]


@struct(size=312, c_name="kvm_sregs")
class Sregs(Structure):
    """Segments, tables and control registers."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Dtable
    idt: Dtable
    cr0: u64
    cr2: u64
    cr3: u64
    cr4: u64
    cr8: u64
    efer: u64
    apic_base: u64
    interrupt_bitmap: u64x4


@struct(size=320, c_name="kvm_sregs2")
class Sregs2(Structure):
    """The same with the page directory pointers of 32-bit PAE paging, and without a pending interrupt."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Dtable
    idt: Dtable
    cr0: u64
    cr2: u64
    cr3: u64
    cr4: u64
    cr8: u64
    efer: u64
    apic_base: u64
    flags: u64
    pdptrs: u64x4


SREGS2_PDPTRS_VALID = 1
"""Bit of Sregs2.flags: `pdptrs` counts."""


@struct(size=416, c_name="kvm_fpu")
class Fpu(Structure):
    """x87 and SSE registers."""

    fpr: Annotated[Any, (ctypes.c_uint8 * 16) * 8]
    fcw: u16
    fsw: u16
    ftwx: u8
    pad1: u8
    last_opcode: u16
    last_ip: u64
    last_dp: u64
    xmm: Annotated[Any, (ctypes.c_uint8 * 16) * 16]
    mxcsr: u32
    pad2: u32


@struct(size=128, c_name="kvm_debugregs")
class DebugRegs(Structure):
    db: u64x4
    dr6: u64
    dr7: u64
    flags: u64
    reserved: Annotated[Any, ctypes.c_uint64 * 9]


@struct(size=XSAVE_SIZE, c_name="kvm_xsave")
class Xsave(Structure):
    """The XSAVE area in the layout of CPUID leaf 13, standard form."""

    region: Annotated[Any, ctypes.c_uint32 * 1024]


@struct(size=16, c_name="kvm_xcr")
class Xcr(Structure):
    xcr: u32
    reserved: u32
    value: u64


@struct(size=392, c_name="kvm_xcrs")
class Xcrs(Structure):
    """Extended control registers; only XCR0 exists."""

    nr_xcrs: u32
    flags: u32
    xcrs: Annotated[Any, Xcr * 16]
    padding: Annotated[Any, ctypes.c_uint64 * 16]


@struct(size=LAPIC_SIZE, c_name="kvm_lapic_state")
class LapicState(Structure):
    """The local APIC's register page: each register at its architectural offset."""

    regs: Annotated[Any, ctypes.c_uint8 * LAPIC_SIZE]


@struct(size=8, c_name="")
class EventException(Structure):
    injected: u8
    nr: u8
    has_error_code: u8
    pending: u8
    error_code: u32


@struct(size=4, c_name="")
class EventInterrupt(Structure):
    injected: u8
    nr: u8
    soft: u8
    shadow: u8


@struct(size=4, c_name="")
class EventNmi(Structure):
    injected: u8
    pending: u8
    masked: u8
    pad: u8


@struct(size=4, c_name="")
class EventSmi(Structure):
    smm: u8
    pending: u8
    smm_inside_nmi: u8
    latched_init: u8


@struct(size=64, c_name="kvm_vcpu_events")
class VcpuEvents(Structure):
    """Exceptions, interrupts, NMIs and SMIs that are pending or half delivered."""

    exception: EventException
    interrupt: EventInterrupt
    nmi: EventNmi
    sipi_vector: u32
    flags: u32
    smi: EventSmi
    triple_fault_pending: u8
    reserved: Annotated[Any, ctypes.c_uint8 * 26]
    exception_has_payload: u8
    exception_payload: u64


class EventFlag(IntFlag):
    """Bits of VcpuEvents.flags: which optional parts count."""

    NMI_PENDING = 1 << 0
    SIPI_VECTOR = 1 << 1
    SHADOW = 1 << 2
    SMM = 1 << 3
    PAYLOAD = 1 << 4
    TRIPLE_FAULT = 1 << 5


class Shadow(IntFlag):
    """Bits of VcpuEvents.interrupt.shadow: what holds interrupts off for one instruction."""

    MOV_SS = 1
    STI = 2


class GuestDebugFlag(IntFlag):
    """Bits of kvm_guest_debug.control."""

    ENABLE = 1 << 0
    SINGLESTEP = 1 << 1
    USE_SW_BP = 1 << 16
    USE_HW_BP = 1 << 17
    INJECT_DB = 1 << 18
    INJECT_BP = 1 << 19
    BLOCKIRQ = 1 << 20


@struct(size=72, c_name="kvm_guest_debug")
class GuestDebug(Structure):
    """`debugreg` holds DR0 to DR3 and DR7 (index 7)."""

    control: u32
    pad: u32
    debugreg: Annotated[Any, ctypes.c_uint64 * 8]


@struct(size=24, c_name="kvm_translation")
class Translation(Structure):
    linear_address: u64
    physical_address: u64
    valid: u8
    writeable: u8
    usermode: u8
    pad: Annotated[Any, ctypes.c_uint8 * 5]


@struct(size=4, c_name="kvm_interrupt")
class Interrupt(Structure):
    irq: u32


class MpState(IntEnum):
    """What an x86 vCPU does when KVM_RUN is called; all but RUNNABLE need an in-kernel local APIC."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


# --- calls ---------------------------------------------------------------------------------------------------------------------


@ioctl("vcpu", 0x81, Regs, "R")
def KVM_GET_REGS(vcpu, regs):  # type: ignore[no-untyped-def]
    """Read the general registers, RIP and RFLAGS."""


@ioctl("vcpu", 0x82, Regs, "W")
def KVM_SET_REGS(vcpu, regs):  # type: ignore[no-untyped-def]
    """Set the general registers, RIP and RFLAGS. An exception that was pending is forgotten."""


@ioctl("vcpu", 0x83, Sregs, "R")
def KVM_GET_SREGS(vcpu, sregs):  # type: ignore[no-untyped-def]
    """Read segments, descriptor tables and control registers."""


@ioctl("vcpu", 0x84, Sregs, "W", EINVAL="reserved bits are set, or paging, EFER and CS contradict each other")
def KVM_SET_SREGS(vcpu, sregs):  # type: ignore[no-untyped-def]
    """Set segments, descriptor tables and control registers. A set bit of interrupt_bitmap is an interrupt to inject."""


@ioctl("vcpu", 0xCC, Sregs2, "R", cap=Cap.SREGS2)
def KVM_GET_SREGS2(vcpu, sregs):  # type: ignore[no-untyped-def]
    """Like KVM_GET_SREGS, with the page directory pointers and without interrupts."""


@ioctl("vcpu", 0xCD, Sregs2, "W", cap=Cap.SREGS2, EINVAL="unknown flags, reserved bits, or contradictory state")
def KVM_SET_SREGS2(vcpu, sregs):  # type: ignore[no-untyped-def]
    """Like KVM_SET_SREGS, with the page directory pointers and without interrupts."""


@ioctl("vcpu", 0x85, Translation, "RW", guest=always)
def KVM_TRANSLATE(vcpu, translation):  # type: ignore[no-untyped-def]
    """Translate a linear address as the vCPU would now; `valid` is 0 where it would fault."""


@ioctl("vcpu", 0x86, Interrupt, "W", EINVAL="the vector is above 255", EEXIST="one is pending already", ENXIO="KVM has the PIC itself")
def KVM_INTERRUPT(vcpu, interrupt):  # type: ignore[no-untyped-def]
    """Queue an external interrupt vector. Only without an in-kernel interrupt controller (or with the split one)."""


@ioctl("vcpu", 0x9A)
def KVM_NMI(vcpu):  # type: ignore[no-untyped-def]
    """Queue a non-maskable interrupt."""


@ioctl("vcpu", 0xB7, cap=Cap.X86_SMM)
def KVM_SMI(vcpu):  # type: ignore[no-untyped-def]
    """Queue a system management interrupt."""


@ioctl("vcpu", 0x8C, Fpu, "R")
def KVM_GET_FPU(vcpu, fpu):  # type: ignore[no-untyped-def]
    """Read x87 and SSE registers."""


@ioctl("vcpu", 0x8D, Fpu, "W")
def KVM_SET_FPU(vcpu, fpu):  # type: ignore[no-untyped-def]
    """Set x87 and SSE registers, but neither MXCSR nor which of them are in use: KVM_SET_XSAVE does that."""


@ioctl("vcpu", 0x8E, LapicState, "R", cap=Cap.IRQCHIP, EINVAL="KVM has no local APIC for this VM")
def KVM_GET_LAPIC(vcpu, state):  # type: ignore[no-untyped-def]
    """Read the registers of the in-kernel local APIC."""


@ioctl("vcpu", 0x8F, LapicState, "W", cap=Cap.IRQCHIP, EINVAL="KVM has no local APIC for this VM, or the state cannot be")
def KVM_SET_LAPIC(vcpu, state):  # type: ignore[no-untyped-def]
    """Set the registers of the in-kernel local APIC."""


@ioctl("vcpu", 0x9B, GuestDebug, "W", cap=Cap.SET_GUEST_DEBUG, EBUSY="an exception to inject meets one that is pending")
def KVM_SET_GUEST_DEBUG(vcpu, debug):  # type: ignore[no-untyped-def]
    """Debug the guest from outside: single steps, INT3 and hardware breakpoints leave with KVM_EXIT_DEBUG."""


@ioctl("vcpu", 0x9F, VcpuEvents, "R", cap=Cap.VCPU_EVENTS)
def KVM_GET_VCPU_EVENTS(vcpu, events):  # type: ignore[no-untyped-def]
    """Read what is pending for a vCPU."""


@ioctl("vcpu", 0xA0, VcpuEvents, "W", cap=Cap.VCPU_EVENTS, EINVAL="unknown flags, or an exception and flags that contradict each other")
def KVM_SET_VCPU_EVENTS(vcpu, events):  # type: ignore[no-untyped-def]
    """Set what is pending for a vCPU."""


@ioctl("vcpu", 0xA1, DebugRegs, "R", cap=Cap.DEBUGREGS)
def KVM_GET_DEBUGREGS(vcpu, registers):  # type: ignore[no-untyped-def]
    """Read the guest's debug registers."""


@ioctl("vcpu", 0xA2, DebugRegs, "W", cap=Cap.DEBUGREGS, EINVAL="a flag is set, or DR6 or DR7 have high bits")
def KVM_SET_DEBUGREGS(vcpu, registers):  # type: ignore[no-untyped-def]
    """Set the guest's debug registers."""


@ioctl("vcpu", 0xA4, Xsave, "R", cap=Cap.XSAVE, EINVAL="the state does not fit in 4096 bytes: use KVM_GET_XSAVE2")
def KVM_GET_XSAVE(vcpu, area):  # type: ignore[no-untyped-def]
    """Read the XSAVE area's first 4096 bytes."""


@ioctl("vcpu", 0xA5, Xsave, "W", cap=Cap.XSAVE, EINVAL="components that the vCPU lacks, or reserved bits of MXCSR")
def KVM_SET_XSAVE(vcpu, area):  # type: ignore[no-untyped-def]
    """Set the XSAVE area; as many bytes are read as KVM_CAP_XSAVE2 says."""


@ioctl("vcpu", 0xCF, Xsave, "R", cap=Cap.XSAVE2)
def KVM_GET_XSAVE2(vcpu, area):  # type: ignore[no-untyped-def]
    """Read the whole XSAVE area: as many bytes as KVM_CAP_XSAVE2 of the VM says, whatever the number encodes."""


@ioctl("vcpu", 0xA6, Xcrs, "R", cap=Cap.XCRS, EINVAL="the host has no XSAVE")
def KVM_GET_XCRS(vcpu, registers):  # type: ignore[no-untyped-def]
    """Read XCR0."""


@ioctl("vcpu", 0xA7, Xcrs, "W", cap=Cap.XCRS, EINVAL="a flag, too many registers, or components that the vCPU lacks")
def KVM_SET_XCRS(vcpu, registers):  # type: ignore[no-untyped-def]
    """Set XCR0."""


@ioctl("vcpu", 0xA2, cap=Cap.TSC_CONTROL, EINVAL="the host cannot scale its counter to this rate")
def KVM_SET_TSC_KHZ(vcpu, khz):  # type: ignore[no-untyped-def]
    """Set the rate of the guest's time stamp counter; 0 is the host's."""


@ioctl("vcpu", 0xA3, cap=Cap.GET_TSC_KHZ, EIO="the host's rate is not known or changes")
def KVM_GET_TSC_KHZ(vcpu):  # type: ignore[no-untyped-def]
    """Return the rate of the guest's time stamp counter."""


@ioctl("vcpu", 0xAD, cap=Cap.KVMCLOCK_CTRL, EINVAL="the guest has not set up its clock page")
def KVM_KVMCLOCK_CTRL(vcpu):  # type: ignore[no-untyped-def]
    """Tell the guest, through its clock page, that it was stopped."""
