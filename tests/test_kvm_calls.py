"""The calls on the system, VM and vCPU files: answers, errnos, registers, devices."""

from __future__ import annotations

import ctypes
import errno
import mmap
import re
from pathlib import Path

import pytest

import trapline.backends.software as software
from tests.fake_engine import mmio, open_fake
from trapline.abi import arm64, system, vcpu, vm
from trapline.abi.caps import Cap
from trapline.abi.memory import KVM_PRE_FAULT_MEMORY
from trapline.abi.tables import calls
from trapline.errors import KvmError
from trapline.host.user import AddressSpace, copy_from_user, copy_to_user


def code_of(call, *arguments) -> int:
    """The errno that a call fails with, 0 for success."""
    try:
        call(*arguments)
    except KvmError as error:
        return error.errno
    return 0


@pytest.fixture
def kvm():
    return open_fake()[0]


def test_calls_without_a_body_are_listed(kvm) -> None:
    """docs/CAVEATS.md names them one to a line; who adds a body takes the line away."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "CAVEATS.md").read_text(encoding="utf-8")
    listed = re.findall(r"^  - (KVM_[A-Z0-9_]+)$", page, re.MULTILINE)
    assert listed == sorted(call.name for call in kvm.backend.missing())
    assert set(kvm.backend.bodies) <= set(calls("arm64"))


def test_capabilities_say_which_calls_have_a_body(kvm) -> None:
    machine = kvm.create_vm()
    hidden = {call.name for call in kvm.backend.bodies if call.cap is not None and not machine.check_extension(call.cap)}
    assert hidden == {"KVM_ARM_VCPU_FINALIZE"}, "it is there to say that there is no SVE"
    assert [call.name for call in kvm.backend.missing() if call.cap is None or machine.check_extension(call.cap)] == []


def test_call_without_a_body_is_enotty(kvm) -> None:
    machine = kvm.create_vm()
    for call in kvm.backend.missing():
        assert code_of(kvm.backend.ioctl, machine.file, call) in (errno.ENOTTY, errno.EINVAL)


def test_call_on_the_wrong_file(kvm) -> None:
    assert code_of(kvm.backend.ioctl, kvm.file, vcpu.KVM_RUN, 0) == errno.EINVAL
    assert code_of(kvm.backend.ioctl, 12345, vcpu.KVM_RUN, 0) == errno.EBADF


def test_undeclared_errno_is_a_bug(kvm) -> None:
    backend = kvm.backend

    def broken(target, argument) -> int:
        raise KvmError(errno.EXDEV)

    backend.bodies = {**backend.bodies, system.KVM_GET_API_VERSION: broken}
    with pytest.raises(software.UndeclaredErrno):
        kvm.api_version  # noqa: B018


def test_system(kvm) -> None:
    assert kvm.api_version == 12
    assert kvm.check_extension(Cap.USER_MEMORY) == 1
    assert kvm.check_extension(Cap.NR_MEMSLOTS) == 32767
    assert kvm.check_extension(Cap.ARM_VM_IPA_SIZE) == 48
    assert kvm.check_extension(Cap.MAX_VCPUS) >= 8
    assert kvm.check_extension(Cap.ARM_MTE) == 0
    assert kvm.check_extension(99999) == 0
    assert code_of(kvm.backend.ioctl, kvm.file, system.KVM_GET_API_VERSION, 1) == errno.EINVAL


@pytest.mark.parametrize(("kind", "code"), [(0, 0), (32, 0), (48, 0), (31, errno.EINVAL), (49, errno.EINVAL), (1 << 31, errno.EINVAL)])
def test_vm_types(kvm, kind: int, code: int) -> None:
    assert code_of(kvm.create_vm, kind) == code


def test_vcpu_ids(kvm) -> None:
    machine = kvm.create_vm()
    machine.create_vcpu(id=3)
    assert code_of(machine.create_vcpu, 3) == errno.EEXIST
    assert code_of(machine.create_vcpu, 1000) == errno.EINVAL
    assert machine.check_extension(Cap.MAX_VCPUS) == 64
    assert machine.vcpus[0].get_one_reg(arm64.reg_sysreg(3, 0, 0, 0, 5)) == 0x8000_0003


@pytest.mark.parametrize(
    ("target", "words", "code"),
    [
        (5, (0,), 0),
        (5, (1 << 2,), 0),
        (5, (1 << 2 | 1,), 0),
        (5, (0x60,), 0),
        (5, (0x20,), errno.EINVAL),
        (5, (1 << 4,), errno.EINVAL),
        (5, (1 << 7,), errno.EINVAL),
        (5, (1 << 10,), errno.ENOENT),
        (5, (0, 1), errno.ENOENT),
        (4, (0,), errno.EINVAL),
    ],
)
def test_vcpu_init(kvm, target: int, words: tuple[int, ...], code: int) -> None:
    target_vcpu = kvm.create_vm().create_vcpu(features=None)
    init = arm64.VcpuInit()
    init.target = target
    for index, word in enumerate(words):
        init.features[index] = word
    assert code_of(kvm.backend.ioctl, target_vcpu.file, arm64.KVM_ARM_VCPU_INIT, init) == code


def test_second_init_needs_the_same_features(kvm) -> None:
    machine = kvm.create_vm()
    first = machine.create_vcpu()
    first.regs.x0 = 9
    assert code_of(first.init, ()) == errno.EINVAL
    first.init({arm64.Feature.PSCI_0_2, arm64.Feature.POWER_OFF})
    assert first.regs.x0 == 0
    second = machine.create_vcpu(features=None)
    assert code_of(second.init, ()) == errno.EINVAL
    second.init()


def test_reset_state(kvm) -> None:
    regs = kvm.create_vm().create_vcpu().regs
    assert (regs.pc, regs.pstate, regs.x0, regs.x30, regs.v0) == (0, 0x3C5, 0, 0, 0)


def test_every_listed_register_reads_and_takes_its_own_value(kvm) -> None:
    cpu = kvm.create_vm().create_vcpu()
    ids = cpu.reg_list()
    assert len(ids) == len(set(ids)) > 120
    for reg_id in ids:
        cpu.set_one_reg(reg_id, cpu.get_one_reg(reg_id))
    for wanted in ((3, 0, 1, 0, 0), (3, 0, 2, 0, 0), (3, 0, 12, 0, 0), (3, 3, 13, 0, 2), (3, 0, 0, 4, 0)):
        assert arm64.reg_sysreg(*wanted) in ids


@pytest.mark.parametrize(
    ("name", "value"),
    [("x5", 0xFFFF_0000_1234_5678), ("sp", 1), ("sp_el1", 2), ("pc", 3), ("elr_el1", 4), ("v31", 5 << 100), ("fpcr", 1 << 22)],
)
def test_core_registers_hold_values(kvm, name: str, value: int) -> None:
    regs = kvm.create_vm().create_vcpu().regs
    setattr(regs, name, value)
    assert getattr(regs, name) == value


@pytest.mark.parametrize(
    ("reg_id", "value", "code"),
    [
        (arm64.REG_PSTATE, 0x3C5, 0),
        (arm64.REG_PSTATE, 0x3C9, errno.EINVAL),
        (arm64.REG_PSTATE, 0x1D3, errno.EINVAL),
        (0x2030_0000_0010_0000, 0, errno.EINVAL),
        (arm64.CORE_U64 | 1, 0, errno.EINVAL),
        (arm64.CORE_U32 | 0, 0, errno.EINVAL),
        (arm64.CORE_U64 | 0x3000, 0, errno.ENOENT),
        (arm64.reg_sysreg(3, 0, 15, 0, 0), 0, errno.ENOENT),
        (arm64.reg_sysreg(3, 4, 1, 1, 0), 0, errno.ENOENT),
        (arm64.REG_PSCI_VERSION, 0x1_0001, 0),
        (arm64.REG_PSCI_VERSION, 0x2_0000, errno.EINVAL),
        (arm64.reg_sysreg(3, 0, 0, 4, 0), 0, errno.EINVAL),
        (arm64.reg_ccsidr(0), 1, errno.EINVAL),
    ],
)
def test_register_errors(kvm, reg_id: int, value: int, code: int) -> None:
    assert code_of(kvm.create_vm().create_vcpu().set_one_reg, reg_id, value) == code


def test_virtual_counter_starts_near_zero_and_can_be_set(kvm) -> None:
    cpu = kvm.create_vm().create_vcpu()
    assert cpu.get_one_reg(arm64.REG_TIMER_CNT) < 62_500_000 * 60
    cpu.set_one_reg(arm64.REG_TIMER_CNT, 1 << 40)
    assert 0 <= cpu.get_one_reg(arm64.REG_TIMER_CNT) - (1 << 40) < 62_500_000 * 60


def test_register_values_at_bad_addresses(kvm) -> None:
    cpu = kvm.create_vm().create_vcpu()
    for call in (vcpu.KVM_GET_ONE_REG, vcpu.KVM_SET_ONE_REG):
        for address in (0, 0x10000, 1 << 60, (1 << 64) - 8):
            assert code_of(kvm.backend.ioctl, cpu.file, call, vcpu.OneReg(arm64.REG_PC, address)) == errno.EFAULT


def test_short_register_list(kvm) -> None:
    cpu = kvm.create_vm().create_vcpu()
    room = vcpu.reg_list(1)
    assert code_of(kvm.backend.ioctl, cpu.file, vcpu.KVM_GET_REG_LIST, room) == errno.E2BIG
    assert room.n == len(cpu.reg_list())


@pytest.mark.parametrize(("state", "code"), [(0, 0), (5, 0), (10, 0), (1, errno.EINVAL), (3, errno.EINVAL)])
def test_mp_state(kvm, state: int, code: int) -> None:
    cpu = kvm.create_vm().create_vcpu()
    assert code_of(kvm.backend.ioctl, cpu.file, vcpu.KVM_SET_MP_STATE, vcpu.MpStateArgument(state)) == code


@pytest.mark.parametrize(
    ("word", "code"),
    [
        (arm64.irq_word(arm64.IrqType.CPU, 0), 0),
        (arm64.irq_word(arm64.IrqType.CPU, 2), errno.EINVAL),
        (arm64.irq_word(arm64.IrqType.CPU, 0, 7), errno.EINVAL),
        (arm64.irq_word(arm64.IrqType.SPI, 40), errno.ENXIO),
        (arm64.irq_word(arm64.IrqType.PPI, 27), errno.ENXIO),
        (5 << 24, errno.EINVAL),
    ],
)
def test_irq_line_without_controller(kvm, word: int, code: int) -> None:
    machine = kvm.create_vm()
    machine.create_vcpu()
    assert code_of(machine.irq_line, word, 1) == code


def test_any_call_by_its_fields(kvm) -> None:
    machine = kvm.create_vm()
    cpu = machine.create_vcpu()
    assert kvm.ioctl(system.KVM_GET_API_VERSION) == 12
    assert machine.ioctl(vm.KVM_IRQ_LINE, irq=0, level=1) == 0
    assert machine.ioctl(vm.KVM_ENABLE_CAP, cap=Cap.HALT_POLL, args=[5]) == 0
    state = vcpu.KVM_GET_MP_STATE.make()
    cpu.ioctl(vcpu.KVM_SET_MP_STATE, mp_state=vcpu.MpState.STOPPED)
    cpu.ioctl(vcpu.KVM_GET_MP_STATE, state)
    assert state.mp_state == vcpu.MpState.STOPPED
    with pytest.raises(TypeError, match="no field 'flag'.*slot, flags"):
        machine.ioctl(vm.KVM_SET_USER_MEMORY_REGION, flag=1)
    with pytest.raises(ValueError, match="slot cannot hold 0x100000000"):
        machine.ioctl(vm.KVM_SET_USER_MEMORY_REGION, slot=1 << 32)
    with pytest.raises(TypeError, match="not both"):
        cpu.ioctl(vcpu.KVM_GET_MP_STATE, state, mp_state=1)
    with pytest.raises(TypeError, match="takes struct kvm_mp_state"):
        cpu.ioctl(vcpu.KVM_GET_MP_STATE, "nonsense")


def test_enable_cap(kvm) -> None:
    machine = kvm.create_vm()
    assert code_of(machine.enable_cap, Cap.ARM_NISV_TO_USER) == 0
    assert code_of(machine.enable_cap, Cap.USER_MEMORY) == errno.EINVAL
    assert code_of(machine.enable_cap, 9999) == errno.EINVAL
    request = vm.EnableCap()
    request.cap, request.flags = Cap.ARM_NISV_TO_USER, 1
    assert code_of(kvm.backend.ioctl, machine.file, vm.KVM_ENABLE_CAP, request) == errno.EINVAL


def test_devices(kvm) -> None:
    machine = kvm.create_vm()
    assert code_of(machine.create_device, 99) == errno.ENODEV
    assert code_of(machine.create_device, arm64.DeviceType.ARM_PV_TIME) == errno.ENODEV
    test = vm.CreateDevice(arm64.DeviceType.ARM_VGIC_V3, 0, vm.CREATE_DEVICE_TEST)
    assert kvm.backend.ioctl(machine.file, vm.KVM_CREATE_DEVICE, test) == 0
    assert code_of(kvm.backend.ioctl, machine.file, vm.KVM_CREATE_DEVICE, vm.CreateDevice(7, 0, 2)) == 0, "other flags are ignored"


def test_gic_life(kvm) -> None:
    machine = kvm.create_vm()
    cpu = machine.create_vcpu()
    gic = machine.create_device(arm64.DeviceType.ARM_VGIC_V3)
    assert code_of(machine.create_device, arm64.DeviceType.ARM_VGIC_V3) == errno.EEXIST
    spi, ppi = arm64.irq_word(arm64.IrqType.SPI, 40), arm64.irq_word(arm64.IrqType.PPI, 20)
    assert code_of(machine.irq_line, spi, 1) == errno.EBUSY
    assert code_of(cpu.run) == errno.ENXIO, "no addresses"
    assert gic.has_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_DIST)
    assert not gic.has_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V2_CPU)
    gic.set_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_DIST, 0x800_0000)
    gic.set_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_REDIST, 0x80A_0000)
    assert code_of(gic.set_attr, arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_DIST, 0x800_0000) == errno.EEXIST
    assert code_of(cpu.run) == errno.EBUSY, "not initialised"
    gic.set_attr(arm64.VgicGroup.CTRL, arm64.VgicCtrl.INIT)
    assert code_of(machine.create_vcpu) == errno.EBUSY
    assert [code_of(machine.irq_line, word, 1) for word in (spi, ppi)] == [0, 0]
    for word in (arm64.irq_word(arm64.IrqType.SPI, 31), arm64.irq_word(arm64.IrqType.PPI, 32), arm64.irq_word(arm64.IrqType.PPI, 20, 5)):
        assert code_of(machine.irq_line, word, 1) == errno.EINVAL
    assert code_of(machine.irq_line, arm64.irq_word(arm64.IrqType.SPI, 1000), 1) == errno.EINVAL
    assert code_of(machine.irq_line, arm64.irq_word(arm64.IrqType.CPU, 0), 1) == errno.ENXIO
    assert cpu.get_one_reg(arm64.reg_sysreg(3, 0, 0, 4, 0)) >> 24 & 0xF == 1, "the GIC's system registers are visible"
    with gic:
        pass


def test_timer_interrupts_are_attributes(kvm) -> None:
    machine = kvm.create_vm()
    first, second = machine.create_vcpu(), machine.create_vcpu()
    assert first.get_attr(1, 0) == 27 and first.get_attr(1, 1) == 30
    assert code_of(first.set_attr, 1, 0, 20) == errno.EINVAL, "no interrupt controller"
    gic = machine.create_device(arm64.DeviceType.ARM_VGIC_V3)
    gic.set_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_DIST, 0x800_0000)
    gic.set_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_REDIST, 0x80A_0000)
    gic.set_attr(arm64.VgicGroup.CTRL, arm64.VgicCtrl.INIT)
    first.set_attr(1, 0, 20)
    assert second.get_attr(1, 0) == 20
    assert code_of(first.set_attr, 1, 0, 15) == errno.EINVAL
    assert code_of(first.set_attr, 1, 9, 20) == errno.ENXIO
    assert code_of(first.set_attr, 0, 0, 20) == errno.ENODEV, "no PMU"
    assert first.has_attr(1, 1) and not first.has_attr(7, 0)
    first.set_attr(1, 1, 20)
    assert code_of(first.run) == errno.EINVAL, "both timers on one interrupt"
    second.set_attr(1, 1, 21)
    cpu = kvm.backend.system.files.get(first.file).arch.cpu
    cpu.script = [mmio(True, 0x900_0000)]
    first.run()
    assert code_of(first.set_attr, 1, 1, 22) == errno.EBUSY


def test_closed_file(kvm) -> None:
    machine = kvm.create_vm()
    with machine.create_vcpu() as cpu:
        file = cpu.file
    assert code_of(kvm.backend.ioctl, file, vcpu.KVM_GET_MP_STATE, vcpu.MpStateArgument()) == errno.EBADF


# --- user memory -----------------------------------------------------------------------------------------------------------------


def test_copies_fail_instead_of_crashing() -> None:
    area = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    copy_to_user(address + 10, b"hello")
    assert copy_from_user(address + 10, 5) == b"hello"
    libc = ctypes.CDLL(None)
    libc.mprotect(ctypes.c_void_p(address + mmap.PAGESIZE), mmap.PAGESIZE, 0)
    assert code_of(copy_from_user, address + mmap.PAGESIZE - 2, 4) == errno.EFAULT
    libc.mprotect(ctypes.c_void_p(address + mmap.PAGESIZE), mmap.PAGESIZE, 1)
    assert code_of(copy_from_user, address + mmap.PAGESIZE - 2, 4) == 0
    assert code_of(copy_to_user, address + mmap.PAGESIZE - 2, b"1234") == errno.EFAULT


def test_address_space_sees_changes() -> None:
    space = AddressSpace()
    area = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    found = space.fault_in(address + mmap.PAGESIZE, True)
    assert found.start <= address and address + 2 * mmap.PAGESIZE <= found.end and found.writable
    libc = ctypes.CDLL(None)
    libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 1)
    assert code_of(space.fault_in, address, True) == errno.EFAULT
    assert not space.fault_in(address, False).writable
    libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 0)
    assert code_of(space.fault_in, address, False) == errno.EFAULT
    assert code_of(space.fault_in, 0x10000, False) == errno.EFAULT


def test_memory_that_was_mapped_ahead_does_not_fault(kvm) -> None:
    machine = kvm.create_vm()
    memory = machine.add_memory(0x4000_0000, 4 << 20)
    cpu = machine.create_vcpu()
    mmu = kvm.backend.system.files.get(cpu.file).arch.vm.mmu
    assert mmu.mapped(memory.guest_phys_addr) == 0
    cpu.ioctl(KVM_PRE_FAULT_MEMORY, gpa=memory.guest_phys_addr, size=3 << 20)
    assert mmu.mapped(memory.guest_phys_addr) == 2 << 20, "a block, because the memory begins on one"
    assert mmu.mapped(memory.guest_phys_addr + (4 << 20) - 0x1000) == 0x1000
    memory.close()
    assert mmu.mapped(0x4000_0000) == 0
