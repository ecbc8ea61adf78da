"""MSRs that leave to userspace, and the MSR filter's rules, on the real /dev/kvm."""

from __future__ import annotations

import ctypes
import errno
import random
import threading
from collections.abc import Iterator

import pytest
from x86_machine import needs_x86_kvm, place

from trapline import x86
from trapline.abi.caps import Cap
from trapline.abi.x86_msr import KVM_X86_SET_MSR_FILTER, MsrFilter
from trapline.backends.x86.msr_filter import BOTH, filter_argument, verdict
from trapline.errors import BadInput, KvmError
from trapline.x86 import MSR_FILTER_DEFAULT_ALLOW as ALLOW
from trapline.x86 import MSR_FILTER_DEFAULT_DENY as DENY
from trapline.x86 import Msr, MsrExitReason, MsrFilterFlag, Range

pytestmark = [needs_x86_kvm, pytest.mark.needs_kvm, pytest.mark.timeout(60)]
CODE, FAULT = 0x2_0000, 0x4_0000
READ, WRITE = MsrFilterFlag.READ, MsrFilterFlag.WRITE
UNKNOWN_MSR = 0x1234_5678


class Guest:
    """A 64-bit guest that makes one access at a time."""

    def __init__(self, vm: x86.X86Vm) -> None:
        self.vm = vm
        self.vcpu = vm.create_vcpu()
        self.vcpu.timeout = 5
        place(vm, CODE, "0f32 f4")  # rdmsr; hlt
        place(vm, CODE + 16, "0f30 f4")  # wrmsr; hlt
        place(vm, FAULT, "f4")
        room = x86.long_mode(self.vcpu, vm.memory[0], entry=CODE, stack=0x5_0000)
        room.handle(13, FAULT)

    def access(self, index: int, write: int | None = None) -> x86.RdmsrExit | x86.WrmsrExit | int | None:
        """An exit; or what was read (0 for a write); or None after #GP."""
        value = write or 0
        start = CODE if write is None else CODE + 16
        self.vcpu.regs.update(rip=start, rsp=0x5_0000, rcx=index, rax=value & 0xFFFF_FFFF, rdx=value >> 32)
        return self.go_on()

    def go_on(self) -> x86.RdmsrExit | x86.WrmsrExit | int | None:
        exit = self.vcpu.run()
        if isinstance(exit, (x86.RdmsrExit, x86.WrmsrExit)):
            return exit
        assert isinstance(exit, x86.HltExit), exit
        regs = self.vcpu.regs.read()
        if regs.rip == FAULT + 1:
            return None
        return regs.rdx << 32 | regs.rax & 0xFFFF_FFFF if regs.rip == CODE + 3 else 0


@pytest.fixture
def vm() -> Iterator[x86.X86Vm]:
    with x86.open() as kvm, kvm.create_vm() as machine:
        machine.add_memory(0, 1 << 20)
        yield machine


@pytest.fixture
def guest(vm: x86.X86Vm) -> Guest:
    return Guest(vm)


def errno_of(call: object, *arguments: object, **options: object) -> int | None:
    with pytest.raises(KvmError) as failure:
        call(*arguments, **options)  # type: ignore[operator]
    return failure.value.errno


# --- exits ---------------------------------------------------------------------------------------------------------------------


def test_without_the_capability_an_unknown_msr_faults(guest: Guest) -> None:
    assert guest.access(UNKNOWN_MSR) is None
    assert guest.access(UNKNOWN_MSR, 1) is None


def test_read_exit_is_answered(guest: Guest) -> None:
    guest.vm.user_space_msrs()
    exit = guest.access(UNKNOWN_MSR)
    assert isinstance(exit, x86.RdmsrExit) and exit.index == UNKNOWN_MSR and exit.msr_reason == MsrExitReason.UNKNOWN and exit.value == 0
    assert guest.vcpu.regs.rip == CODE, "not completed before the vCPU runs again"
    exit.value = 0x1122_3344_5566_7788
    assert guest.go_on() == 0x1122_3344_5566_7788


def test_write_exit_is_answered(guest: Guest) -> None:
    guest.vm.user_space_msrs()
    exit = guest.access(UNKNOWN_MSR, 0xAABB_CCDD_EEFF_0011)
    assert isinstance(exit, x86.WrmsrExit) and exit.value == 0xAABB_CCDD_EEFF_0011
    assert guest.go_on() == 0


def test_an_error_is_a_general_protection_fault_at_the_instruction(guest: Guest) -> None:
    guest.vm.user_space_msrs()
    exit = guest.access(UNKNOWN_MSR)
    assert isinstance(exit, x86.RdmsrExit)
    exit.error = True
    assert guest.go_on() is None
    stack = guest.vcpu.regs.rsp
    assert int.from_bytes(guest.vm.memory[0][stack + 8 : stack + 16], "little") == CODE, "the address that the fault pushed"


def test_immediate_exit_completes_a_read(guest: Guest) -> None:
    guest.vm.user_space_msrs()
    exit = guest.access(UNKNOWN_MSR)
    assert isinstance(exit, x86.RdmsrExit)
    exit.value = 5
    guest.vcpu.immediate_exit = True
    assert isinstance(guest.vcpu.run(), x86.IntrExit)
    assert (guest.vcpu.regs.rip, guest.vcpu.regs.rax) == (CODE + 2, 5)
    guest.vcpu.immediate_exit = False


def test_a_bad_value_exits_with_reason_inval(guest: Guest) -> None:
    guest.vm.user_space_msrs(MsrExitReason.INVAL)
    exit = guest.access(Msr.EFER, 1 << 63)
    assert isinstance(exit, x86.WrmsrExit) and exit.msr_reason == MsrExitReason.INVAL
    exit.error = True
    assert guest.go_on() is None
    assert guest.access(UNKNOWN_MSR) is None, "this reason was not asked for"


def test_unknown_reasons_are_refused(vm: x86.X86Vm) -> None:
    assert errno_of(vm.enable_cap, Cap.X86_USER_SPACE_MSR, 8) == errno.EINVAL
    vm.user_space_msrs(0)


def test_the_capability_is_read_when_an_access_happens(guest: Guest) -> None:
    """So it has to be on before a filter is, and off after."""
    guest.vm.set_msr_filter(Range(Msr.LSTAR))
    assert guest.access(Msr.LSTAR) is None, "denied, and nobody asked for an exit"
    guest.vm.user_space_msrs(MsrExitReason.FILTER)
    exit = guest.access(Msr.LSTAR)
    assert isinstance(exit, x86.RdmsrExit) and exit.msr_reason == MsrExitReason.FILTER
    assert guest.go_on() == 0
    guest.vm.user_space_msrs(0)
    assert guest.access(Msr.LSTAR) is None


# --- the Hyper-V rule, as an example ------------------------------------------------------------------------------------------------


class HypervTime:
    """The partition's TSC emulation registers: the guest may only write 0 to the status, which says that it has seen it."""

    def __init__(self) -> None:
        self.values = dict.fromkeys((Msr.HV_TSC_EMULATION_CONTROL, Msr.HV_TSC_EMULATION_STATUS), 0)

    def answer(self, exit: x86.MsrExit) -> None:
        match exit:
            case x86.RdmsrExit(index=index) if index in self.values:
                exit.value = self.values[Msr(index)]
            case x86.WrmsrExit(index=Msr.HV_TSC_EMULATION_STATUS, value=value):
                if value:
                    exit.error = True
                else:
                    self.values[Msr.HV_TSC_EMULATION_STATUS] = 0
            case x86.WrmsrExit(index=index, value=value) if index in self.values:
                self.values[Msr(index)] = value
            case _:
                exit.error = True


def test_only_zero_may_be_written_to_the_tsc_emulation_status(guest: Guest) -> None:
    if guest.vm.check_extension(Cap.HYPERV):
        pytest.skip("this KVM has the register itself")
    guest.vm.user_space_msrs(MsrExitReason.UNKNOWN)
    partition = HypervTime()

    def access(index: int, write: int | None = None) -> int | None:
        result = guest.access(index, write)
        while isinstance(result, x86.MsrExit):
            partition.answer(result)
            result = guest.go_on()
        return result

    partition.values[Msr.HV_TSC_EMULATION_STATUS] = 1  # the host may store anything
    for bad in (1, 2, 1 << 63):
        assert access(Msr.HV_TSC_EMULATION_STATUS, bad) is None
        assert access(Msr.HV_TSC_EMULATION_STATUS) == 1, "a write that faults changes nothing"
    assert access(Msr.HV_TSC_EMULATION_STATUS, 0) == 0
    assert access(Msr.HV_TSC_EMULATION_STATUS) == 0
    for value in (1, 1 << 63):
        assert access(Msr.HV_TSC_EMULATION_CONTROL, value) == 0
        assert access(Msr.HV_TSC_EMULATION_CONTROL) == value


# --- filters: errors ----------------------------------------------------------------------------------------------------------------


def test_flag_and_range_errors(vm: x86.X86Vm) -> None:
    for ranges, default in (
        ((), DENY),  # denies by default and says nothing else
        ((), 2),  # unknown flags
        ((), 0x8000_0000),
        ((Range(0x10, 1), Range(0x20, 1)), 2),
        ((Range(0x10, kinds=0),), ALLOW),
        ((Range(0x10, kinds=4),), ALLOW),
        ((Range(0x10, kinds=BOTH | 8),), ALLOW),
        ((Range(0x10, 0x3001),), ALLOW),
        ((Range(0x10, 0x8000_0000 >> 8),), ALLOW),
        ((Range(0x10), Range(0x20, 0x3001)), ALLOW),
    ):
        assert errno_of(vm.set_msr_filter, *ranges, default=default) == errno.EINVAL, (ranges, default)
    vm.set_msr_filter(Range(0x10, 0x3000))
    vm.set_msr_filter(*(Range(index) for index in range(16)))
    vm.set_msr_filter(Range(0x10, 0, kinds=7), Range(0x20))  # an empty range is not looked at
    vm.set_msr_filter()
    with pytest.raises(BadInput, match="at most 16"):
        vm.set_msr_filter(*(Range(index) for index in range(17)))


def test_a_bitmap_that_cannot_be_read(vm: x86.X86Vm) -> None:
    argument = filter_argument([Range(0x10), Range(0x20)], ALLOW)
    argument.ranges[1].bitmap = 0x1000
    assert errno_of(vm.ioctl, KVM_X86_SET_MSR_FILTER, argument) == errno.EFAULT
    assert errno_of(vm.ioctl, KVM_X86_SET_MSR_FILTER, 0x1000) == errno.EFAULT, "nor an argument"


# --- filters: verdicts ------------------------------------------------------------------------------------------------------------


def test_default_and_ranges(guest: Guest) -> None:
    guest.vm.set_msr_filter(Range(Msr.EFER, 8, {Msr.EFER}, READ), default=DENY)
    assert guest.access(Msr.EFER) is not None
    assert guest.access(Msr.LSTAR) is None
    assert guest.access(Msr.EFER, guest.vcpu.msrs[Msr.EFER]) is None, "the range judges reads only: the default denies"
    guest.vm.set_msr_filter(Range(Msr.EFER, 8, set(range(Msr.EFER, Msr.EFER + 8)) - {Msr.LSTAR}, READ))
    assert guest.access(Msr.LSTAR) is None
    assert guest.access(Msr.LSTAR, 0x1000) == 0 and guest.vcpu.msrs[Msr.LSTAR] == 0x1000
    guest.vm.set_msr_filter()
    assert guest.access(Msr.LSTAR) == 0x1000


def test_the_first_range_that_judges_decides(guest: Guest) -> None:
    allow, deny = Range(Msr.EFER, 8, range(Msr.EFER, Msr.EFER + 8)), Range(Msr.EFER, 8)
    guest.vm.set_msr_filter(allow, deny)
    assert guest.access(Msr.LSTAR) == 0
    guest.vm.set_msr_filter(deny, allow)
    assert guest.access(Msr.LSTAR) is None
    guest.vm.set_msr_filter(Range(Msr.EFER, 8, kinds=WRITE), allow, default=DENY)
    assert guest.access(Msr.LSTAR) == 0 and guest.access(Msr.LSTAR, 0) is None


def test_the_local_apic_is_never_filtered(vm: x86.X86Vm) -> None:
    vm.create_irqchip()
    guest = Guest(vm)
    guest.vcpu.msrs[Msr.APIC_BASE] = guest.vcpu.msrs[Msr.APIC_BASE] | 1 << 10  # x2APIC
    vm.set_msr_filter(Range(Msr.X2APIC_ID, 16), default=DENY)
    place(vm, CODE, "0f32 e610")  # rdmsr; out 0x10, al: HLT does not leave here
    guest.vcpu.regs.update(rip=CODE, rcx=Msr.X2APIC_ID)
    exit = guest.vcpu.run()
    assert isinstance(exit, x86.IoExit) and exit.value == guest.vcpu.id


def test_userspace_is_never_filtered(guest: Guest) -> None:
    guest.vm.set_msr_filter(Range(0x10), default=DENY)
    guest.vcpu.msrs[Msr.LSTAR] = 0x5000
    assert guest.vcpu.msrs[Msr.LSTAR] == 0x5000


def test_a_range_that_wraps_matches_nothing(guest: Guest) -> None:
    wrapping = Range(0xFFFF_FFF0, 0x20)
    guest.vm.user_space_msrs()
    guest.vm.set_msr_filter(wrapping)
    for index in (0xFFFF_FFF8, 0):
        exit = guest.access(index)
        assert not isinstance(exit, x86.MsrExit) or exit.msr_reason != MsrExitReason.FILTER
        assert verdict([wrapping], ALLOW, index, READ)


def test_random_filters_judge_as_the_rule_says(guest: Guest) -> None:
    seed = 20210316
    rng = random.Random(seed)
    guest.vm.user_space_msrs(MsrExitReason.FILTER)
    readable = [index for index in range(Msr.EFER, Msr.EFER + 5)]
    for _ in range(150):
        ranges = []
        for _ in range(rng.randint(1, 4)):
            base, count = Msr.EFER + rng.randint(-4, 4), rng.randint(1, 8)
            allowed = {index for index in range(base, base + count) if rng.random() < 0.5}
            ranges.append(Range(base, count, allowed, rng.choice([READ, WRITE, BOTH])))
        default, index, write = rng.choice([ALLOW, DENY]), rng.choice(readable), rng.random() < 0.5
        guest.vm.set_msr_filter(*ranges, default=default)
        exit = guest.access(index, guest.vcpu.msrs[index] if write else None)
        denied = isinstance(exit, x86.MsrExit)
        assert denied == (not verdict(ranges, default, index, WRITE if write else READ)), (seed, ranges, default, hex(index), write)
        if isinstance(exit, x86.MsrExit):
            guest.go_on()


# --- filters: as one ---------------------------------------------------------------------------------------------------------------


def test_a_failing_call_leaves_the_old_filter_whole(guest: Guest) -> None:
    guest.vm.set_msr_filter(Range(Msr.LSTAR))
    open_all = Range(Msr.EFER, 8, range(Msr.EFER, Msr.EFER + 8))
    for bad in (Range(0x20, 0x3001), Range(0x20, kinds=4)):
        for position in range(3):
            ranges = [open_all, open_all]
            ranges.insert(position, bad)
            assert errno_of(guest.vm.set_msr_filter, *ranges) == errno.EINVAL
            assert guest.access(Msr.LSTAR) is None, "the old filter still denies"
            assert guest.access(Msr.EFER) is not None
    broken = filter_argument([open_all, open_all], ALLOW)
    broken.ranges[1].bitmap = 0x1000
    assert errno_of(guest.vm.ioctl, KVM_X86_SET_MSR_FILTER, broken) == errno.EFAULT
    assert guest.access(Msr.LSTAR) is None


def test_verdicts_are_steady_while_filters_are_replaced(guest: Guest) -> None:
    """Two filters that treat LSTAR alike (allow) and CSTAR alike (deny): no access ever sees a mix, an empty or a half filter."""
    block = range(Msr.EFER, Msr.EFER + 8)
    filters = [
        filter_argument([Range(Msr.EFER, 8, set(block) - {Msr.CSTAR})], ALLOW),
        filter_argument([Range(Msr.LSTAR, 1, {Msr.LSTAR}), Range(0x100, 0x3000), Range(Msr.CSTAR)], DENY),
    ]
    broken = filter_argument([Range(Msr.LSTAR), Range(0x20, 0x3001)], DENY)
    vm, vcpu = guest.vm, guest.vcpu
    vm.ioctl(KVM_X86_SET_MSR_FILTER, filters[0])
    vm.user_space_msrs(MsrExitReason.FILTER)
    # loop: mov ecx, LSTAR; rdmsr; mov ecx, CSTAR; rdmsr; inc ebx; jmp loop
    place(vm, CODE, "b9820000c0 0f32 b9830000c0 0f32 ffc3 ebec")
    vcpu.regs.update(rip=CODE, rbx=0)
    done = threading.Event()
    switches = [0, 0]

    def replace() -> None:
        while not done.is_set():
            vm.ioctl(KVM_X86_SET_MSR_FILTER, filters[switches[0] % 2])
            switches[0] += 1
            assert errno_of(vm.ioctl, KVM_X86_SET_MSR_FILTER, broken) == errno.EINVAL
            switches[1] += 1

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(5000):
            exit = vcpu.run()
            assert isinstance(exit, x86.RdmsrExit) and exit.index == Msr.CSTAR, (exit, switches)
    finally:
        done.set()
        thread.join()
    assert vcpu.regs.rbx >= 4999 and min(switches) > 10, "each round read LSTAR unhindered"


def test_the_structure_is_as_declared() -> None:
    assert ctypes.sizeof(MsrFilter) == 392 and KVM_X86_SET_MSR_FILTER.number == 0x4188AEC6
