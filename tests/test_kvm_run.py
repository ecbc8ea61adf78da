"""KVM_RUN on a scripted machine: exits, their completion, faults, hypercalls, power states, kicks."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fake_engine import FakeCpu, FakeEngine, fault, mmio, open_fake
from trapline.abi import arm64
from trapline.abi.caps import Cap
from trapline.abi.exits import InternalError, IntrExit, MmioExit, NisvExit, SystemEvent, SystemEventType
from trapline.abi.vcpu import MpState
from trapline.arm64.regs import ELR_EL1, ELR_EL2, ESR_EL1, FAR_EL1, SPSR_EL1, SPSR_EL2, TABLE, VBAR_EL1
from trapline.backends.objects import Vm
from trapline.backends.vcpu import Vcpu
from trapline.errors import KvmError
from trapline.kvm.arm64.pagetable import READ, WRITE
from trapline.sync import install

UART = 0x0900_0000
RAM = 0x4000_0000


class Guest:
    """A VM with one vCPU on a scripted processor."""

    def __init__(self, vcpus: int = 1) -> None:
        self.system, self.engine = open_fake()
        self.vm: Vm = self.system.create_vm()
        self.vcpus: list[Vcpu] = [self.vm.create_vcpu() for _ in range(vcpus)]
        if vcpus:
            self.vcpu = self.vcpus[0]
            self.cpu: FakeCpu = self.engine.cpus[0]

    def tables(self):
        return self.vm.backend.system.files.get(self.vm.file).arch.mmu.tables


class Sleep:
    """Hooks that note when a vCPU is about to sleep. From then on a wake-up reaches it."""

    def __init__(self) -> None:
        self.begins = threading.Event()

    def point(self, kind: str, name: str) -> None:
        if (kind, name) == ("wait", "vcpu_sleep"):
            self.begins.set()


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
def asleep() -> Iterator[threading.Event]:
    sleep = Sleep()
    install(sleep)
    yield sleep.begins
    install(None)


def test_store_exits_and_completes_on_the_next_run(guest: Guest) -> None:
    guest.vcpu.regs.x3 = 0x1122_3344_5566_7788
    guest.vcpu.regs.pc = 0x1000
    guest.cpu.script = [mmio(True, UART, 4, register=3), mmio(True, UART + 8, 1, register=31)]
    match guest.vcpu.run():
        case MmioExit(phys_addr=addr, data=data, length=4, is_write=True):
            assert (addr, data) == (UART, bytes.fromhex("88776655"))
        case other:
            pytest.fail(f"{other}")
    assert guest.vcpu.regs.pc == 0x1000
    second = guest.vcpu.run()
    assert second.data == b"\0" and second.length == 1
    assert guest.vcpu.regs.pc == 0x1004


@pytest.mark.parametrize(
    ("size", "signed", "wide", "expected"),
    [
        (1, False, False, 0xF1),
        (1, True, False, 0xFFFF_FFF1),
        (1, True, True, 0xFFFF_FFFF_FFFF_FFF1),
        (2, True, True, 0xFFFF_FFFF_FFFF_F2F1),
        (4, False, False, 0x84F3_F2F1),
        (4, True, True, 0xFFFF_FFFF_84F3_F2F1),
        (8, False, True, 0x0807_0605_84F3_F2F1),
    ],
)
def test_load_is_extended(guest: Guest, size: int, signed: bool, wide: bool, expected: int) -> None:
    guest.vcpu.regs.x7 = 0xAAAA_AAAA_AAAA_AAAA
    guest.cpu.script = [mmio(False, UART, size, register=7, signed=signed, wide=wide), mmio(True, UART)]
    exit = guest.vcpu.run()
    assert isinstance(exit, MmioExit) and not exit.is_write and exit.length == size
    exit.data = bytes.fromhex("f1f2f38405060708")[:size]
    guest.vcpu.run()
    assert guest.vcpu.regs.x7 == expected
    assert guest.vcpu.regs.pc == 4


def test_load_to_zero_register_is_discarded(guest: Guest) -> None:
    guest.cpu.script = [mmio(False, UART, 4, register=31), mmio(True, UART, register=31)]
    guest.vcpu.run().data = 0xFFFF_FFFF
    assert guest.vcpu.run().value == 0


def test_immediate_exit_completes_the_access_without_entering(guest: Guest) -> None:
    guest.cpu.script = [mmio(False, UART, 4, register=0)]
    guest.vcpu.run().data = 7
    guest.vcpu.immediate_exit = True
    assert guest.vcpu.run() == IntrExit()
    assert guest.cpu.entries == 1
    assert (guest.vcpu.regs.x0, guest.vcpu.regs.pc) == (7, 4)


def test_kick_before_run_is_not_lost(guest: Guest) -> None:
    guest.vcpu.kick()
    assert guest.vcpu.run() == IntrExit()
    assert not guest.vcpu.immediate_exit
    guest.cpu.script = [mmio(True, UART)]
    assert isinstance(guest.vcpu.run(), MmioExit)


def test_kick_during_run(guest: Guest) -> None:
    def kicked(cpu: FakeCpu) -> str:
        guest.vcpu.kick()
        return "irq"

    guest.cpu.script = [kicked]
    assert guest.vcpu.run() == IntrExit()
    assert guest.cpu.kicks == 1


def test_access_without_syndrome(guest: Guest) -> None:
    guest.cpu.script = [fault(True, UART + 0x18)]
    with pytest.raises(KvmError) as failure:
        guest.vcpu.run()
    assert failure.value.errno == errno.ENOSYS
    guest.vm.enable_cap(Cap.ARM_NISV_TO_USER)
    guest.cpu.script = [fault(True, UART + 0x18)]
    assert guest.vcpu.run() == NisvExit(esr_iss=1 << 6, fault_ipa=UART + 0x18)
    assert guest.vcpu.regs.pc == 0


def test_uninitialised_vcpu() -> None:
    system, _ = open_fake()
    vcpu = system.create_vm().create_vcpu(features=None)
    for call in (vcpu.run, lambda: vcpu.regs.x0, vcpu.reg_list):
        with pytest.raises(KvmError) as failure:
            call()
        assert failure.value.errno == errno.ENOEXEC


def test_fault_in_memory_maps_a_block(guest: Guest) -> None:
    ram = guest.vm.add_memory(RAM, 4 << 20)
    guest.cpu.script = [fault(False, RAM + 0x1234), mmio(True, UART)]
    guest.vcpu.run()
    descriptor, level = guest.tables().leaf(RAM + 0x1F_F000)
    assert level == 2 and descriptor & 3 == 1
    assert descriptor & 0xFFFF_FFFF_F000 == ram.address
    assert descriptor & READ and descriptor & WRITE


def test_odd_memory_maps_a_page(guest: Guest) -> None:
    guest.vm.add_memory(RAM + 0x1000, 0x3000)
    guest.cpu.script = [fault(True, RAM + 0x2008), mmio(True, UART)]
    guest.vcpu.run()
    descriptor, level = guest.tables().leaf(RAM + 0x2000)
    assert level == 3 and descriptor & 3 == 3
    assert guest.tables().leaf(RAM + 0x3000)[0] == 0


def test_hole_in_host_memory_is_efault(guest: Guest) -> None:
    guest.vm.set_user_memory_region(0, 0, RAM, 0x1000, 0x10000)
    guest.cpu.script = [fault(False, RAM)]
    with pytest.raises(KvmError) as failure:
        guest.vcpu.run()
    assert failure.value.errno == errno.EFAULT


def test_readonly_slot(guest: Guest) -> None:
    guest.vm.add_memory(RAM, 0x1000, flags=2)
    guest.cpu.script = [fault(False, RAM), mmio(True, RAM + 16, 8)]
    exit = guest.vcpu.run()
    assert exit.phys_addr == RAM + 16 and exit.is_write
    assert not guest.tables().leaf(RAM)[0] & WRITE


def test_deleting_a_slot_removes_translations(guest: Guest) -> None:
    ram = guest.vm.add_memory(RAM, 2 << 20)
    guest.cpu.script = [fault(False, RAM), mmio(False, RAM)]
    guest.cpu.script.insert(1, mmio(True, UART))
    guest.vcpu.run()
    ram.close()
    assert guest.tables().leaf(RAM)[0] == 0
    assert ("all", 1) in guest.engine.flushes
    assert guest.vcpu.run().phys_addr == RAM


def test_dirty_log(guest: Guest) -> None:
    guest.vm.add_memory(RAM, 1 << 20, flags=1)
    guest.cpu.script = [fault(False, RAM), fault(True, RAM + 0x3000), mmio(True, UART)]
    guest.vcpu.run()
    assert guest.vm.get_dirty_log(0, 256) == [3]
    assert guest.vm.get_dirty_log(0, 256) == []
    assert not guest.tables().leaf(RAM + 0x3000)[0] & WRITE
    guest.cpu.script = [fault(True, RAM + 0x3000, fsc=0x0F), mmio(True, UART)]
    guest.vcpu.run()
    assert guest.vm.get_dirty_log(0, 256) == [3]


def test_write_during_the_log_call_is_in_the_next_log(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is writable again when the call returns, so its bit must not have been taken with the others."""
    guest.vm.add_memory(RAM, 1 << 20, flags=1)
    arch = guest.vm.backend.system.files.get(guest.vm.file).arch
    protect = arch.write_protect_pages

    def racing(slot, ranges) -> None:
        protect(slot, ranges)
        slot.mark_dirty(RAM + 0x5000)

    monkeypatch.setattr(arch, "write_protect_pages", racing)
    assert guest.vm.get_dirty_log(0, 256) == []
    monkeypatch.undo()
    assert guest.vm.get_dirty_log(0, 256) == [5]


def in_el1(guest: Guest) -> tuple[int, int, int]:
    sysreg = guest.cpu.state.sysreg
    return sysreg[ELR_EL2.slot], sysreg[ESR_EL1.slot], sysreg[ELR_EL1.slot]


def with_vectors(guest: Guest, pc: int = 0x5000, pstate: int = 0x3C5) -> None:
    sysreg = guest.cpu.state.sysreg
    sysreg[VBAR_EL1.slot] = 0x8000
    sysreg[ELR_EL2.slot] = pc
    sysreg[SPSR_EL2.slot] = pstate


def test_fetch_outside_memory_is_an_external_abort(guest: Guest) -> None:
    with_vectors(guest)
    guest.cpu.script = [fault(False, UART, ec=0x20), mmio(True, UART)]
    guest.vcpu.run()
    assert in_el1(guest) == (0x8200, 0x21 << 26 | 1 << 25 | 0x10, 0x5000)
    assert guest.cpu.state.sysreg[FAR_EL1.slot] == UART


def test_walk_outside_memory_is_an_external_abort(guest: Guest) -> None:
    with_vectors(guest, pstate=0)
    guest.cpu.script = [fault(False, UART, iss=1 << 7, fsc=0x06), mmio(True, UART)]
    guest.vcpu.run()
    assert in_el1(guest) == (0x8400, 0x24 << 26 | 1 << 25 | 0x16, 0x5000)
    assert guest.cpu.state.sysreg[SPSR_EL1.slot] == 0
    assert guest.cpu.state.sysreg[SPSR_EL2.slot] & 0x3FF == 0x3C5


def test_cache_maintenance_outside_memory_is_skipped(guest: Guest) -> None:
    with_vectors(guest)
    guest.cpu.script = [fault(True, UART, iss=1 << 8), mmio(True, UART)]
    guest.vcpu.run()
    assert in_el1(guest)[0] == 0x5004


def test_address_beyond_the_vm(guest: Guest) -> None:
    with_vectors(guest)
    guest.cpu.script = [mmio(True, 1 << 41), mmio(True, UART)]
    guest.vcpu.run()
    assert in_el1(guest)[1] & 0x3F == 0x10


def sysreg_trap(read: bool, enc: tuple[int, int, int, int, int], register: int = 0):
    op0, op1, crn, crm, op2 = enc
    iss = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | register << 5 | crm << 1 | read

    def step(cpu: FakeCpu) -> None:
        cpu.trap(0x18, iss)

    return step


def test_id_registers(guest: Guest) -> None:
    guest.cpu.script = [
        sysreg_trap(True, (3, 0, 0, 4, 0), 1),
        sysreg_trap(True, (3, 0, 0, 7, 7), 2),
        mmio(True, UART),
    ]
    guest.vcpu.regs.x2 = 5
    guest.vcpu.run()
    pfr0 = guest.vcpu.regs.x1
    assert pfr0 & 0xFF == 0x11 and pfr0 >> 8 & 0xF == 0, "EL0 and EL1 in AArch64, no EL2"
    assert guest.vcpu.regs.x2 == 0
    assert guest.vcpu.regs.pc == 8


def test_implementation_defined_register_is_undefined(guest: Guest) -> None:
    with_vectors(guest)
    guest.cpu.script = [sysreg_trap(True, (3, 0, 15, 0, 0)), mmio(True, UART)]
    guest.vcpu.run()
    assert in_el1(guest) == (0x8200, 1 << 25, 0x5000)


def call(function: int, *arguments: int, smc: bool = False):
    def step(cpu: FakeCpu) -> None:
        for register, value in enumerate((function, *arguments)):
            cpu.state.x[register] = value & (1 << 64) - 1
        cpu.trap(0x17 if smc else 0x16)

    return step


def test_a_hypercall_leaves_no_arguments(guest: Guest) -> None:
    """X1 to X3 are results as X0 is, and 0 where a call has only one."""
    guest.cpu.script = [call(0x8400_0000, 1, 2, 3, 4), mmio(True, UART)]
    guest.vcpu.run()
    assert [getattr(guest.vcpu.regs, f"x{n}") for n in range(1, 5)] == [0, 0, 0, 4]


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ((0x8400_0000,), 0x1_0003),
        ((0x8000_0000,), 0x1_0001),
        ((0x8000_0001, 0x8000_8000), 1),  # not affected
        ((0x8400_000A, 0x8400_0008), 0),
        ((0x8400_000A, 0x8400_000E), -1),
        ((0x8400_0006,), 2),
        ((0xC400_0004, 0, 0), 0),
        ((0xC400_0004, 5, 0), -2),
        ((0xC400_0003, 0, 0, 0), -4),
        ((0xC400_0003, 9, 0, 0), -2),
        ((0x8400_0012, 1), -2),
        ((0x8400_1234,), -1),
        ((0x8400_0050,), 0x1_0000),
    ],
)
@pytest.mark.parametrize("smc", [False, True])
def test_calls(guest: Guest, arguments: tuple[int, ...], answer: int, smc: bool) -> None:
    guest.cpu.script = [call(*arguments, smc=smc), mmio(True, UART)]
    guest.vcpu.run()
    assert signed(guest.vcpu.regs.x0) == answer
    assert guest.vcpu.regs.pc == (4 if smc else 0)


@pytest.mark.parametrize(
    ("function", "arguments", "kind", "flags"),
    [
        (0x8400_0008, (), SystemEventType.SHUTDOWN, 0),
        (0x8400_0009, (), SystemEventType.RESET, 0),
        (0xC400_0012, (0,), SystemEventType.RESET, 1),
        (0xC400_0015, (1,), SystemEventType.SHUTDOWN, 1),
    ],
)
def test_system_events(guest: Guest, function: int, arguments: tuple[int, ...], kind: int, flags: int) -> None:
    guest.cpu.script = [call(function, *arguments)]
    assert guest.vcpu.run() == SystemEvent(kind, (flags,))
    assert guest.vcpu.mp_state == MpState.STOPPED


def test_cpu_on_starts_a_sleeping_vcpu(asleep: threading.Event) -> None:
    guest = Guest(vcpus=2)
    second = guest.vcpus[1]
    second.init({arm64.Feature.PSCI_0_2, arm64.Feature.POWER_OFF})
    assert second.mp_state == MpState.STOPPED
    guest.engine.cpus[1].script = [mmio(True, UART + 4, register=0)]
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(second.run()), daemon=True)
    thread.start()
    assert asleep.wait(10) and not seen
    guest.cpu.script = [call(0xC400_0003, 1, 0x4008_0000, 0x77), mmio(True, UART)]
    guest.vcpu.run()
    thread.join(10)
    assert guest.vcpu.regs.x0 == 0
    assert seen and seen[0].phys_addr == UART + 4 and seen[0].value == 0x77
    assert second.regs.pc == 0x4008_0000


def test_cpu_off_sleeps_until_kicked(guest: Guest, asleep: threading.Event) -> None:
    guest.cpu.script = [call(0x8400_0002)]
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(guest.vcpu.run()), daemon=True)
    thread.start()
    assert asleep.wait(10) and not seen
    guest.vcpu.kick()
    thread.join(10)
    assert seen == [IntrExit()]
    assert guest.vcpu.mp_state == MpState.STOPPED


def wfi(cpu: FakeCpu) -> None:
    cpu.trap(0x01)


def test_wfi_sleeps_until_kicked(guest: Guest, asleep: threading.Event) -> None:
    guest.cpu.script = [wfi]
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(guest.vcpu.run()), daemon=True)
    thread.start()
    assert asleep.wait(10) and not seen
    guest.vcpu.kick()
    thread.join(10)
    assert seen == [IntrExit()]
    assert guest.vcpu.regs.pc == 4


def test_wfi_ends_when_a_pin_rises(guest: Guest, asleep: threading.Event) -> None:
    guest.cpu.script = [wfi, mmio(True, UART)]
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(guest.vcpu.run()), daemon=True)
    thread.start()
    assert asleep.wait(10) and not seen
    guest.vm.irq_line(arm64.irq_word(arm64.IrqType.CPU, 0), 1)
    thread.join(10)
    assert isinstance(seen[0], MmioExit)


def test_closing_the_vm_ends_a_sleeping_run(asleep: threading.Event) -> None:
    guest = Guest()
    guest.cpu.script = [wfi]
    failures: list[int] = []

    def run() -> None:
        try:
            guest.vcpu.run()
        except KvmError as error:
            failures.append(error.errno)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert asleep.wait(10)
    guest.vm.close()
    thread.join(10)
    assert failures == [errno.EIO]


def test_external_abort_from_userspace_replaces_the_completion(guest: Guest) -> None:
    with_vectors(guest)
    guest.cpu.script = [mmio(False, UART, register=4)]
    guest.vcpu.run()
    guest.vcpu.inject_external_abort()
    assert in_el1(guest) == (0x8200, 0x25 << 26 | 1 << 25 | 0x10, 0x5000)
    guest.vcpu.immediate_exit = True
    guest.vcpu.run()
    assert guest.vcpu.regs.pc == 0x8200


def test_error_of_the_machine_is_an_internal_error(guest: Guest) -> None:
    guest.vcpu.regs.pc = 0x1234

    def error(cpu: FakeCpu) -> str:
        cpu.trap(0x2F)
        return "serror"

    guest.cpu.script = [error]
    assert guest.vcpu.run() == InternalError(4, (0x2F << 26 | 1 << 25, 0x1234, 0))


def test_suspended_vcpu_reports_its_wakeup(guest: Guest, asleep: threading.Event) -> None:
    guest.vcpu.mp_state = MpState.SUSPENDED
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(guest.vcpu.run()), daemon=True)
    thread.start()
    assert asleep.wait(10) and not seen
    guest.vm.irq_line(arm64.irq_word(arm64.IrqType.CPU, 0), 1)
    thread.join(10)
    assert seen == [SystemEvent(SystemEventType.WAKEUP, ())]
    assert guest.vcpu.mp_state == MpState.SUSPENDED
    guest.vcpu.mp_state = MpState.RUNNABLE
    guest.cpu.script = [mmio(True, UART)]
    assert isinstance(guest.vcpu.run(), MmioExit)


def test_system_suspend_is_offered_only_when_enabled(guest: Guest) -> None:
    guest.vm.enable_cap(Cap.ARM_SYSTEM_SUSPEND)
    guest.cpu.script = [call(0xC400_000E, 0x1000, 5)]
    assert guest.vcpu.run() == SystemEvent(SystemEventType.SUSPEND, ())
    assert (guest.vcpu.regs.x1, guest.vcpu.mp_state) == (0x1000, MpState.RUNNABLE)


def with_gic(guest: Guest) -> None:
    """A GICv3 whose group 1 is enabled, with the virtual timer's interrupt enabled on vCPU 0."""
    gic = guest.vm.create_device(arm64.DeviceType.ARM_VGIC_V3)
    gic.set_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_DIST, 0x800_0000)
    gic.set_attr(arm64.VgicGroup.ADDR, arm64.VgicAddr.V3_REDIST, 0x80A_0000)
    gic.set_attr(arm64.VgicGroup.CTRL, arm64.VgicCtrl.INIT)
    cpu = guest.cpu
    values = {0x800_0000: 2, 0x80B_0080: 1 << 27, 0x80B_0100: 1 << 27}  # CTLR, IGROUPR0, ISENABLER0

    def store(ipa: int, value: int):
        def step(cpu: FakeCpu) -> None:
            cpu.state.x[5] = value
            mmio(True, ipa, 4, register=5)(cpu)

        return step

    cpu.script = [store(ipa, value) for ipa, value in values.items()] + [mmio(True, UART)]
    guest.vcpu.run()
    cpu.state.sysreg[TABLE["ICH_VMCR_EL2"].slot] |= 0xFF << 24 | 2


def test_timer_interrupt_reaches_a_list_register(guest: Guest) -> None:
    with_gic(guest)

    def fires(cpu: FakeCpu) -> str:
        cpu.lines = 1
        return "irq"

    seen: list[int] = []

    def looks(cpu: FakeCpu) -> None:
        seen.append(cpu.state.sysreg[TABLE["ICH_LR0_EL2"].slot])
        mmio(True, UART)(cpu)

    guest.cpu.script = [fires, looks]
    guest.vcpu.run()
    assert seen[0] & 0xFFFF_FFFF == 27 and seen[0] >> 62 == 1, "interrupt 27, pending"


def test_wfi_with_a_gic_wakes_for_the_timer(guest: Guest) -> None:
    with_gic(guest)
    start = time.monotonic_ns()
    guest.cpu.deadline = start + 50_000_000

    def timer_lines() -> int:
        return int(time.monotonic_ns() >= start + 50_000_000)

    guest.cpu.timer_lines = timer_lines
    guest.cpu.script = [wfi, mmio(True, UART)]
    guest.vcpu.run()
    assert time.monotonic_ns() - start >= 50_000_000


def test_engine_is_told_about_rewritten_memory(guest: Guest) -> None:
    ram = guest.vm.add_memory(RAM, 0x1000)
    guest.cpu.script = [mmio(True, UART)]
    guest.vcpu.run()
    guest.vcpu.init()
    assert ("code", ram.address, 0x1000) in guest.engine.flushes


def test_fake_engine_is_used(guest: Guest) -> None:
    assert isinstance(guest.engine, FakeEngine)
