"""KVM's own chips of a PC, eventfds, and the clock: on the real /dev/kvm."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import time_ns

import pytest
from x86_machine import EMULATES, needs_x86_kvm, place

from trapline import x86
from trapline.abi import x86_vm
from trapline.abi.caps import Cap
from trapline.abi.irq import route_to_msi, route_to_pin
from trapline.abi.x86 import MpState
from trapline.abi.x86_vm import ClockFlag, IrqchipId, PitFlag
from trapline.errors import KvmError, Timeout
from trapline.x86 import Msr

pytestmark = [needs_x86_kvm, pytest.mark.needs_kvm, pytest.mark.timeout(60)]
CODE, HANDLER, STACK = 0x2_0000, 0x4_0000, 0x5_0000
PIC_BASE = 0x20


@pytest.fixture
def kvm() -> Iterator[x86.X86System]:
    with x86.open() as system:
        yield system


@pytest.fixture
def vm(kvm: x86.X86System) -> Iterator[x86.X86Vm]:
    with kvm.create_vm() as machine:
        machine.add_memory(0, 1 << 20)
        yield machine


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(KvmError) as failure:
        yield
    assert failure.value.errno == code, errno.errorcode.get(failure.value.errno or 0)


def waiting_guest(vm: x86.X86Vm, vector: int) -> x86.X86Vcpu:
    """A guest that enables interrupts and spins; its handler says so at port 0x10 and ends the interrupt at the master PIC."""
    vcpu = vm.create_vcpu()
    vcpu.timeout = 5
    place(vm, CODE, "fb ebfe")  # sti; loop
    place(vm, HANDLER, "e610 b020 e620 48cf")  # out 0x10, al; mov al, 0x20; out 0x20, al; iretq
    room = x86.long_mode(vcpu, vm.memory[0], entry=CODE, stack=STACK)
    room.handle(vector, HANDLER)
    return vcpu


def set_up_pic(vm: x86.X86Vm) -> None:
    """What a BIOS does: vectors from 0x20, nothing masked."""
    pic = vm.get_irqchip(IrqchipId.PIC_MASTER)
    pic.irq_base, pic.imr, pic.auto_eoi = PIC_BASE, 0, 0
    vm.set_irqchip(IrqchipId.PIC_MASTER, pic)


def lapic_register(vcpu: x86.X86Vcpu, offset: int, value: int | None = None) -> int:
    """Read, or set, a register of the local APIC."""
    state = vcpu.lapic
    if value is not None:
        state.regs[offset : offset + 4] = list(value.to_bytes(4, "little"))
        vcpu.lapic = state
    return int.from_bytes(bytes(state.regs[offset : offset + 4]), "little")


def accept_pic(vcpu: x86.X86Vcpu) -> None:
    """Virtual wire mode: the local APIC is on, and LINT0 takes what the PIC sends."""
    lapic_register(vcpu, 0xF0, 0x1FF)
    lapic_register(vcpu, 0x350, 0x700)


# --- rules -------------------------------------------------------------------------------------------------------------------------


def test_order_and_number_of_chips(kvm: x86.X86System) -> None:
    with kvm.create_vm() as vm:
        with refused(errno.ENOENT):
            vm.create_pit()
        with refused(errno.ENXIO):
            vm.get_irqchip(IrqchipId.IOAPIC)
        with refused(errno.ENXIO):
            _ = vm.pit
        with refused(errno.ENXIO):
            vm.set_irq(1, 1)
        vm.create_irqchip()
        with refused(errno.EEXIST):
            vm.create_irqchip()
        vm.create_pit()
        with refused(errno.EEXIST):
            vm.create_pit()
    with kvm.create_vm() as vm:
        vm.create_vcpu()
        with refused(errno.EINVAL):
            vm.create_irqchip()


def test_chips_have_states(vm: x86.X86Vm) -> None:
    vm.create_irqchip()
    ioapic = vm.get_irqchip(IrqchipId.IOAPIC)
    assert ioapic.base_address == 0xFEC0_0000
    assert all(entry >> 16 & 1 for entry in ioapic.redirtbl), "every pin is masked after reset"
    ioapic.redirtbl[5] = 0x1_0031
    vm.set_irqchip(IrqchipId.IOAPIC, ioapic)
    assert vm.get_irqchip(IrqchipId.IOAPIC).redirtbl[5] == 0x1_0031
    slave = vm.get_irqchip(IrqchipId.PIC_SLAVE)
    slave.imr = 0x55
    vm.set_irqchip(IrqchipId.PIC_SLAVE, slave)
    assert vm.get_irqchip(IrqchipId.PIC_SLAVE).imr == 0x55 and vm.get_irqchip(IrqchipId.PIC_MASTER).imr != 0x55
    with refused(errno.EINVAL):
        vm.ioctl(x86_vm.KVM_GET_IRQCHIP, x86_vm.Irqchip(3))


def test_local_apic(vm: x86.X86Vm) -> None:
    vm.create_irqchip()
    first, second = vm.create_vcpu(), vm.create_vcpu()
    assert lapic_register(first, 0x20) >> 24 == 0 and lapic_register(second, 0x20) >> 24 == 1
    assert lapic_register(first, 0x30) & 0xFF == 0x14
    lapic_register(first, 0x80, 0x20)
    assert lapic_register(first, 0x80) == 0x20 and first.sregs.cr8 == 2, "the task priority is CR8 too"
    assert first.mp_state == MpState.RUNNABLE and second.mp_state == MpState.UNINITIALIZED
    second.mp_state = MpState.RUNNABLE
    assert second.mp_state == MpState.RUNNABLE


# --- interrupts --------------------------------------------------------------------------------------------------------------------


def test_a_line_of_the_pic(vm: x86.X86Vm) -> None:
    vm.create_irqchip()
    vcpu = waiting_guest(vm, PIC_BASE + 4)
    set_up_pic(vm)
    accept_pic(vcpu)
    vm.set_irq(4, 1)
    vm.set_irq(4, 0)
    exit = vcpu.run()
    assert isinstance(exit, x86.IoExit) and exit.port == 0x10
    with pytest.raises(Timeout):
        vcpu.run(timeout=0.1)  # once only


def test_a_pin_of_the_ioapic(vm: x86.X86Vm) -> None:
    vm.create_irqchip()
    vcpu = waiting_guest(vm, 0x31)
    lapic_register(vcpu, 0xF0, 0x1FF)
    ioapic = vm.get_irqchip(IrqchipId.IOAPIC)
    ioapic.redirtbl[20] = 0x31  # edge, fixed, to local APIC 0
    vm.set_irqchip(IrqchipId.IOAPIC, ioapic)
    vm.set_irq(20, 1)
    assert isinstance(vcpu.run(), x86.IoExit)


def test_an_msi(vm: x86.X86Vm) -> None:
    vm.create_irqchip()
    vcpu = waiting_guest(vm, 0x32)
    lapic_register(vcpu, 0xF0, 0x1FF)
    assert vm.signal_msi(0xFEE0_0000, 0x32)
    assert isinstance(vcpu.run(), x86.IoExit)
    assert not vm.signal_msi(0xFEE0_0000 | 7 << 12, 0x32), "there is no local APIC 7"


def test_an_irqfd_and_a_route(vm: x86.X86Vm) -> None:
    with refused(errno.EINVAL):
        vm.irqfd(0, 5)
    vm.create_irqchip()
    vcpu = waiting_guest(vm, 0x33)
    lapic_register(vcpu, 0xF0, 0x1FF)
    vm.set_gsi_routing([route_to_msi(24, 0xFEE0_0000, 0x33), route_to_pin(0, 2, 2)])
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        vm.irqfd(event, 24)
        with refused(errno.EBUSY):
            vm.irqfd(event, 24)
        os.eventfd_write(event, 1)
        assert isinstance(vcpu.run(), x86.IoExit)
        vm.irqfd(event, 24, deassign=True)
        os.eventfd_write(event, 1)
        lapic_register(vcpu, 0xB0, 0)
        with pytest.raises(Timeout):
            vcpu.run(timeout=0.1)
        with refused(errno.EBADF):
            vm.irqfd(9999, 24)
    finally:
        os.close(event)
    with refused(errno.EINVAL):
        vm.set_gsi_routing([route_to_pin(0, 99, 2)])


def test_an_eventfd_instead_of_an_exit(vm: x86.X86Vm) -> None:
    vcpu = vm.create_vcpu()
    vcpu.timeout = 5
    place(vm, 0x1000, "b001 e610 b002 e610 f4")  # mov al, 1; out 0x10, al; mov al, 2; out 0x10, al; hlt
    x86.real_mode(vcpu, ip=0x1000)
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    port = {"flags": 2}
    try:
        vm.ioeventfd(0x10, 1, event, data=1, **port)
        with refused(errno.EEXIST):
            vm.ioeventfd(0x10, 1, event, data=1, **port)
        with refused(errno.EINVAL):
            vm.ioeventfd(0x10, 3, event, **port)
        exit = vcpu.run()
        assert isinstance(exit, x86.IoExit) and exit.value == 2, "the write of 1 did not leave"
        assert os.eventfd_read(event) == 1
        vm.ioeventfd(0x10, 1, event, data=1, deassign=True, **port)
        with refused(errno.ENOENT):
            vm.ioeventfd(0x10, 1, event, data=1, deassign=True, **port)
    finally:
        os.close(event)


def test_halt_is_the_kernels_with_chips(vm: x86.X86Vm) -> None:
    vm.create_irqchip()
    vcpu = vm.create_vcpu()
    place(vm, 0x1000, "f4")
    x86.real_mode(vcpu, ip=0x1000)
    with pytest.raises(Timeout):
        vcpu.run(timeout=0.1)
    assert vcpu.mp_state == MpState.HALTED


def test_split_chips(kvm: x86.X86System) -> None:
    with kvm.create_vm() as vm:
        vm.split_irqchip()
        with refused(errno.EEXIST):
            vm.create_irqchip()
        with refused(errno.ENXIO):
            vm.get_irqchip(IrqchipId.IOAPIC)
        vm.add_memory(0, 1 << 20)
        vcpu = waiting_guest(vm, 0x34)
        lapic_register(vcpu, 0xF0, 0x1FF)
        assert vm.signal_msi(0xFEE0_0000, 0x34)
        assert isinstance(vcpu.run(), x86.IoExit)


# --- time --------------------------------------------------------------------------------------------------------------------------


def test_the_interval_timer_interrupts(vm: x86.X86Vm) -> None:
    vm.create_irqchip()
    vm.create_pit()
    vcpu = waiting_guest(vm, PIC_BASE)
    set_up_pic(vm)
    accept_pic(vcpu)
    # mov al, 0x34; out 0x43, al (channel 0, mode 2); mov al, 0xa9; out 0x40, al; mov al, 0x04; out 0x40, al (1193 ticks); sti; loop
    place(vm, CODE, "b034 e643 b0a9 e640 b004 e640 fb ebfe")
    for _ in range(3):
        exit = vcpu.run()
        assert isinstance(exit, x86.IoExit) and exit.port == 0x10
    channel = vm.pit.channels[0]
    assert (channel.mode, channel.count) == (2, 1193)


def test_the_interval_timers_state(vm: x86.X86Vm) -> None:
    vm.create_irqchip()
    vm.create_pit(speaker=True)
    state = vm.pit
    state.channels[2].count, state.channels[2].mode, state.flags = 0x1234, 3, PitFlag.HPET_LEGACY
    vm.pit = state
    assert (vm.pit.channels[2].count, vm.pit.channels[2].mode, vm.pit.flags) == (0x1234, 3, 1)
    vm.reinject_ticks(False)


def test_the_clock(vm: x86.X86Vm) -> None:
    known = ClockFlag(vm.check_extension(Cap.ADJUST_CLOCK))
    before = vm.clock.clock
    vm.clock = 10**12
    after = vm.clock
    assert 10**12 <= after.clock < 10**12 + 10**10 and before < 10**11
    assert after.flags & ~known == 0
    bad = x86_vm.ClockData(0, 1 << 20)
    with refused(errno.EINVAL):
        vm.clock = bad
    if ClockFlag.REALTIME in known:
        back = x86_vm.ClockData(clock=10**12, flags=ClockFlag.REALTIME, realtime=time_ns() - 5 * 10**9)
        vm.clock = back
        assert vm.clock.clock >= 10**12 + 5 * 10**9, "the time since then is added"


def test_the_guests_clock_page(vm: x86.X86Vm) -> None:
    """wrmsr of KVM_SYSTEM_TIME makes KVM fill the page; the formula gives the VM's clock."""
    vcpu = vm.create_vcpu()
    vcpu.timeout = 5
    place(vm, CODE, "0f30 0f31 f4")  # wrmsr; rdtsc; hlt
    x86.long_mode(vcpu, vm.memory[0], entry=CODE)
    vcpu.regs.update(rcx=Msr.KVM_SYSTEM_TIME, rax=0x6_0000 | 1, rdx=0)
    assert isinstance(vcpu.run(), x86.HltExit)
    regs, now = vcpu.regs.read(), vm.clock.clock
    version, stamp, system, scale, shift = page_fields(bytes(vm.memory[0][0x6_0000:0x6_0020]))
    delta = (regs.rdx << 32 | regs.rax & 0xFFFF_FFFF) - stamp
    nanoseconds = ((delta << shift if shift >= 0 else delta >> -shift) * scale >> 32) + system
    assert version % 2 == 0 and version > 0
    assert abs(now - nanoseconds) < 10**9


def page_fields(page: bytes) -> tuple[int, int, int, int, int]:
    import struct

    version, _, stamp, system, scale, shift, _ = struct.unpack_from("<IIQQIbB", page)
    return version, stamp, system, scale, shift


def test_addresses_that_kvm_needs(vm: x86.X86Vm) -> None:
    vm.set_identity_map_addr(0xFEFF_C000)
    vm.set_tss_addr(0xFEFF_D000)
    if not EMULATES:
        with refused(errno.EINVAL):
            vm.set_tss_addr(0xFFFF_F000)
    assert ctypes.sizeof(x86_vm.Irqchip) == 520
