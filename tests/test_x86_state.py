"""What makes up an x86 vCPU: registers, FPU, MSRs, CPUID, events; on the real /dev/kvm."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from x86_machine import EMULATES, needs_x86_kvm, place

from trapline import x86
from trapline.abi import x86 as abi
from trapline.abi import x86_rare as rare
from trapline.abi.caps import Cap
from trapline.abi.x86 import GENERAL, MpState
from trapline.errors import BadInput, KvmError, NotSupported
from trapline.x86 import Msr

pytestmark = [needs_x86_kvm, pytest.mark.needs_kvm, pytest.mark.timeout(60)]


@pytest.fixture
def vm() -> Iterator[x86.X86Vm]:
    with x86.open() as kvm, kvm.create_vm() as machine:
        machine.add_memory(0, 1 << 20)
        yield machine


@pytest.fixture
def vcpu(vm: x86.X86Vm) -> x86.X86Vcpu:
    vcpu = vm.create_vcpu()
    vcpu.timeout = 5
    return vcpu


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(KvmError) as failure:
        yield
    assert failure.value.errno == code


def test_reset_state(vcpu: x86.X86Vcpu) -> None:
    """What the manuals say a processor is after reset."""
    sregs, regs = vcpu.sregs, vcpu.regs.read()
    assert (sregs.cs.selector, sregs.cs.base, regs.rip, regs.rflags) == (0xF000, 0xFFFF_0000, 0xFFF0, 2)
    assert sregs.cr0 == 0x6000_0010 and sregs.cr3 == sregs.cr4 == sregs.efer == 0
    assert sregs.apic_base & 0xFFFF_F000 == 0xFEE0_0000 and sregs.apic_base & 1 << 8, "the boot processor"


def test_general_registers(vcpu: x86.X86Vcpu) -> None:
    values = {name: 0x0101_0101_0101_0101 * number for number, name in enumerate(GENERAL[:16], 1)}
    vcpu.regs.update(**values, rip=0x1234, rflags=2)
    assert {name: value for name, value in vcpu.regs.dump().items() if name in values} == values
    vcpu.regs.rax = -1
    assert vcpu.regs.rax == (1 << 64) - 1
    with pytest.raises(AttributeError, match="eax"):
        vcpu.regs.update(eax=1)
    assert "rip=0x1234" in repr(vcpu.regs)


def test_special_registers_round_trip_and_rules(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000)
    sregs = vcpu.sregs
    assert (sregs.cr0, sregs.efer & 0x500, sregs.cs.l) == (0x8001_0033, 0x500, 1)
    sregs.fs.base = 0x7FFF_0000_1000
    vcpu.sregs = sregs
    assert vcpu.msrs[Msr.FS_BASE] == 0x7FFF_0000_1000
    for field, value in (("cr4", 1 << 15 | 0x20), ("cr4", 1 << 63 | 0x620), ("cr0", 1 << 63 | 0x8001_0033), ("cr3", 1 << 60)):
        bad = vcpu.sregs
        setattr(bad, field, value)
        with refused(errno.EINVAL):
            vcpu.sregs = bad
    half = vcpu.sregs
    half.cr4 &= ~0x20  # long mode without PAE
    with refused(errno.EINVAL):
        vcpu.sregs = half


def test_sregs2(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    if not vm.check_extension(Cap.SREGS2):
        pytest.skip("NOT TESTED: no KVM_CAP_SREGS2 here")
    x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000)
    sregs = vcpu.sregs2
    assert sregs.cr3 == vcpu.sregs.cr3 and sregs.flags == 0
    sregs.gs.base = 0x1000
    vcpu.sregs2 = sregs
    assert vcpu.sregs.gs.base == 0x1000
    sregs.flags = 2
    with refused(errno.EINVAL):
        vcpu.sregs2 = sregs


def test_fpu_and_xsave_are_two_views(vcpu: x86.X86Vcpu) -> None:
    assert vcpu.fpu.fcw == 0x37F, "its reset value"
    area = vcpu.xsave
    assert len(area) >= 4096
    area[160 + 3 * 16], area[512], area[24:28] = 0x33, 3, (0x1F80).to_bytes(4, "little")  # x87 and SSE are in use
    vcpu.xsave = area
    fpu = vcpu.fpu
    assert fpu.xmm[3][0] == 0x33
    fpu.xmm[3][15], fpu.fcw = 0x22, 0x27F
    vcpu.fpu = fpu
    area = vcpu.xsave
    assert area[160 + 3 * 16 + 15] == 0x22 and int.from_bytes(area[0:2], "little") == 0x27F
    with pytest.raises(BadInput, match="bytes"):
        vcpu.xsave = b"short"


def test_the_guest_stores_an_xmm_register(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x2_0000, "0f290425 00000300 f4")  # movaps [0x30000], xmm0; hlt
    x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000)
    area = vcpu.xsave
    area[160:176], area[512], area[24:28] = bytes(range(16)), 3, (0x1F80).to_bytes(4, "little")
    vcpu.xsave = area
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vm.memory[0][0x3_0000:0x3_0010] == bytes(range(16))


def test_debug_registers(vcpu: x86.X86Vcpu) -> None:
    debug = vcpu.debugregs
    debug.db[1], debug.dr7 = 0x1234, 0x404
    vcpu.debugregs = debug
    assert (vcpu.debugregs.db[1], vcpu.debugregs.dr7) == (0x1234, 0x404)
    debug.flags = 1
    with refused(errno.EINVAL):
        vcpu.debugregs = debug
    debug.flags, debug.dr7 = 0, 1 << 40
    with refused(errno.EINVAL):
        vcpu.debugregs = debug


def test_xcr0(vcpu: x86.X86Vcpu) -> None:
    try:
        assert vcpu.xcr0 & 1, "x87 is always there"
    except KvmError as error:
        assert error.errno == errno.EINVAL
        pytest.skip("NOT TESTED: this host has no XSAVE")
    with refused(errno.EINVAL):
        vcpu.xcr0 = 2  # without x87
    vcpu.xcr0 = 1


def test_msrs(vcpu: x86.X86Vcpu) -> None:
    vcpu.msrs[Msr.LSTAR] = 0x1234
    vcpu.msrs.write({Msr.STAR: 0x10_0008 << 32, Msr.SYSCALL_MASK: 0x200})
    assert vcpu.msrs.read([Msr.LSTAR, Msr.STAR, Msr.SYSCALL_MASK]) == {
        Msr.LSTAR: 0x1234, Msr.STAR: 0x10_0008 << 32, Msr.SYSCALL_MASK: 0x200,
    }  # fmt: skip
    with pytest.raises(KvmError, match=r"0x12345678 cannot be read; 1 were done"):
        vcpu.msrs.read([Msr.LSTAR, 0x1234_5678])
    with pytest.raises(KvmError, match=r"0xc0000080 \(EFER\) does not take"):
        vcpu.msrs.write({Msr.CSTAR: 7, Msr.EFER: 1 << 63})
    assert vcpu.msrs[Msr.CSTAR] == 7, "those before it are set"


def test_msr_lists(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    indices = vm.system.msr_indices
    assert Msr.EFER in indices or Msr.TSC in indices
    assert len(indices) == len(set(indices)) > 20
    readable = [index for index in indices if index not in range(0x4000_0000, 0x4000_0200)]
    assert len(vcpu.msrs.read(readable[:20])) == 20
    features = vm.system.feature_msr_indices
    for index, value in vm.system.feature_msrs(features[:1]).items():
        assert index == features[0] and value >= 0


def test_cpuid(vm: x86.X86Vm) -> None:
    supported = vm.system.supported_cpuid
    assert supported.vendor and supported.hypervisor == "KVMKVMKVM" and "lm" in supported
    with pytest.raises(BadInput, match="no CPUID feature"):
        supported.without("warp")
    vcpu = vm.create_vcpu(cpuid=supported.without("x2apic"))
    assert "x2apic" not in vcpu.cpuid and "x2apic" in supported
    place(vm, 0x2_0000, "0fa2 f4")  # cpuid; hlt
    x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000)
    vcpu.regs.update(rax=0x4000_0000)
    assert isinstance(vcpu.run(), x86.HltExit)
    regs = vcpu.regs.read()
    assert b"".join(word.to_bytes(4, "little") for word in (regs.rbx, regs.rcx, regs.rdx)) == b"KVMKVMKVM\0\0\0"
    with refused(errno.EINVAL):
        vcpu.cpuid = supported.without("sse2")  # too late
    with pytest.raises(KeyError, match="leaf"):
        supported[0x1234_5678]


def test_a_cpu_of_ones_own(vm: x86.X86Vm) -> None:
    table = vm.system.supported_cpuid
    changed = x86.Cpuid(leaf for leaf in table if leaf.function not in (0x4000_0000, 0x4000_0001))
    vcpu = vm.create_vcpu(cpuid=changed)
    assert vcpu.cpuid.hypervisor == ""
    assert vm.create_vcpu(cpuid=None).id == 1
    with pytest.raises(BadInput, match="cpuid"):
        vm.create_vcpu(features=[1])


def test_events(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    """An exception put there by userspace is taken by the guest's handler."""
    place(vm, 0x2_0000, "f4")
    place(vm, 0x4_0000, "5a f4")  # pop rdx; hlt
    room = x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000, stack=0x5_0000)
    room.handle(13, 0x4_0000)
    events = vcpu.events
    assert not events.exception.injected
    events.exception.injected, events.exception.nr, events.exception.has_error_code, events.exception.error_code = 1, 13, 1, 0x1234
    vcpu.events = events
    assert isinstance(vcpu.run(), x86.HltExit)
    assert (vcpu.regs.rip, vcpu.regs.rdx) == (0x4_0002, 0x1234)
    events = vcpu.events
    events.flags = 1 << 20
    with refused(errno.EINVAL):
        vcpu.events = events


def test_interrupts_from_userspace(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x2_0000, "fb 90 ebfe")  # sti; nop; loop
    place(vm, 0x4_0000, "f4")
    room = x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000, stack=0x5_0000)
    room.handle(0x40, 0x4_0000)
    vcpu.interrupt(0x40)
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vcpu.regs.rip == 0x4_0001
    with refused(errno.EINVAL):
        vcpu.interrupt(256)


def test_nmi(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    place(vm, 0x2_0000, "90 90 ebfe")
    place(vm, 0x4_0000, "f4")
    room = x86.long_mode(vcpu, vm.memory[0], entry=0x2_0000, stack=0x5_0000)
    room.handle(2, 0x4_0000)
    vcpu.nmi()
    assert isinstance(vcpu.run(), x86.HltExit)
    assert vcpu.regs.rip == 0x4_0001


def test_without_chips_there_is_no_local_apic(vcpu: x86.X86Vcpu) -> None:
    with refused(errno.EINVAL):
        _ = vcpu.lapic
    assert vcpu.mp_state == MpState.RUNNABLE
    with refused(errno.EINVAL):
        vcpu.mp_state = MpState.HALTED


def test_a_system_call_from_user_mode(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    """iretq to ring 3, an interrupt gate back to ring 0: privilege levels, the TSS and user pages."""
    ram = vm.memory[0]
    place(vm, 0x2_0000, "48cf")  # iretq
    place(vm, 0x8_0000, "cd80")  # int 0x80, in user mode
    place(vm, 0x4_0000, "f4")
    room = x86.long_mode(vcpu, ram, entry=0x2_0000, stack=0x5_0000 - 40)
    assert room.tables is not None
    room.tables.map(0x8_0000, 0x8_0000, 0x1000, user=True)
    room.handle(0x80, 0x4_0000, dpl=3)
    room.stack_for_kernel(0x5_8000)
    frame = (0x8_0000, room.user_code, 2, 0x8_1000, room.user_data)
    ram[0x5_0000 - 40 : 0x5_0000] = b"".join(word.to_bytes(8, "little") for word in frame)
    exit = vcpu.run()
    if EMULATES and isinstance(exit, x86.ShutdownExit):
        pytest.skip("NOT TESTED: kvm_pvm cannot deliver a software interrupt to a 64-bit guest that does not know it")
    assert isinstance(exit, x86.HltExit), vcpu.explain(exit)
    sregs = vcpu.sregs
    assert vcpu.regs.rip == 0x4_0001 and sregs.cs.selector == room.code
    assert vcpu.regs.rsp == 0x5_8000 - 40, "the stack of the TSS with the frame on it"


def test_what_an_x86_kvm_does_not_have(vm: x86.X86Vm) -> None:
    with pytest.raises(NotSupported, match="CPUID"):
        vm.system.create_vm(cpu="armv8.0")
    with pytest.raises(NotSupported):
        vm.system.create_vm(sve=True)


def test_a_declared_call_by_hand(vcpu: x86.X86Vcpu) -> None:
    regs = abi.Regs()
    assert vcpu.ioctl(abi.KVM_GET_REGS, regs) == 0 and regs.rip == 0xFFF0
    try:
        assert vcpu.ioctl(abi.KVM_GET_TSC_KHZ) > 100_000
    except KvmError as error:
        assert error.errno == errno.EIO


def test_calls_that_few_need(vm: x86.X86Vm, vcpu: x86.X86Vcpu) -> None:
    banks = rare.MceCapabilities()
    assert vm.backend.ioctl(vm.system.file, rare.KVM_X86_GET_MCE_CAP_SUPPORTED, banks) == 0
    if vm.check_extension(Cap.MCE):
        vcpu.ioctl(rare.KVM_X86_SETUP_MCE, rare.MceCapabilities(4))
        with refused(errno.EINVAL):
            vcpu.ioctl(rare.KVM_X86_SETUP_MCE, rare.MceCapabilities(255))
        with refused(errno.EINVAL):
            vcpu.ioctl(rare.KVM_X86_SET_MCE, rare.Mce(status=1 << 63, bank=4))
    with refused(errno.ENXIO):
        vm.ioctl(rare.KVM_GET_PIT, rare.PitState())
    if not vm.check_extension(Cap.NESTED_STATE):
        with refused(errno.EINVAL):
            vcpu.ioctl(rare.KVM_GET_NESTED_STATE, rare.NestedState(size=128))
    with refused(errno.EINVAL):
        vm.ioctl(rare.KVM_SET_PMU_EVENT_FILTER, rare.PmuEventFilter(action=7))
