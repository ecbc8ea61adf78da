"""Exits for implementation-defined system registers: every row of the state machine in abi/extensions.py, on a scripted machine."""

from __future__ import annotations

import errno

import pytest

from tests.fake_engine import FakeCpu, Step, mmio
from tests.test_kvm_run import UART, Guest
from trapline.abi.caps import Cap
from trapline.abi.exits import (
    EXIT_REASON_OFFSET,
    SYSREG_ACTION_OFFSET,
    UNION_OFFSET,
    UNION_SIZE,
    IntrExit,
    MmioExit,
    SysregExit,
)
from trapline.abi.extensions import CAP_SYSREG_TO_USER, EXIT_SYSREG, SysregState
from trapline.abi.vcpu import KVM_RUN
from trapline.arm64.regs import ELR_EL1, ESR_EL1, ESR_EL2, SPSR_EL2, VBAR_EL1
from trapline.errors import KvmError

VECTORS = 0xF000
HERE = 0x4000
UNDEFINED_ESR = 1 << 25
HID4 = (3, 0, 15, 4, 0)
EL0T, USR32 = 0, 0x10


def sysreg(enc: tuple[int, ...], write: bool, rt: int = 0) -> Step:
    """A trapped MRS, MSR, SYS or SYSL."""
    op0, op1, crn, crm, op2 = enc
    iss = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | rt << 5 | crm << 1 | (not write)

    def step(cpu: FakeCpu) -> None:
        cpu.trap(0x18, iss)

    return step


def cp15(op1: int, crn: int, crm: int, op2: int, write: bool, rt: int = 0, condition: int | None = 14, narrow: bool = False) -> Step:
    """A trapped MRC or MCR; without a condition the syndrome does not tell it."""
    cond = 0 if condition is None else 1 << 24 | condition << 20

    def step(cpu: FakeCpu) -> None:
        cpu.trap(0x03, cond | op2 << 17 | op1 << 14 | crn << 10 | rt << 5 | crm << 1 | (not write))
        if narrow:
            cpu.state.sysreg[ESR_EL2.slot] &= ~(1 << 25)

    return step


def cp15_64(op1: int, crm: int, write: bool, rt: int, rt2: int) -> Step:
    def step(cpu: FakeCpu) -> None:
        cpu.trap(0x04, 1 << 24 | 14 << 20 | op1 << 16 | rt2 << 10 | rt << 5 | crm << 1 | (not write))

    return step


def make(enable: bool = True) -> Guest:
    guest = Guest()
    if enable:
        guest.vm.enable_cap(Cap.TRAPLINE_SYSREG_TO_USER)
    guest.vcpu.regs.pc = HERE
    guest.cpu.state.sysreg[VBAR_EL1.slot] = VECTORS
    return guest


@pytest.fixture
def guest() -> Guest:
    return make()


def is_undefined(guest: Guest, vector: int = 0x200) -> bool:
    """Whether the guest stands at its handler with an undefined instruction at HERE."""
    stored = guest.cpu.state.sysreg
    return (guest.vcpu.regs.pc, stored[ELR_EL1.slot], stored[ESR_EL1.slot]) == (VECTORS + vector, HERE, UNDEFINED_ESR)


def exit_for(guest: Guest, *steps: Step) -> SysregExit:
    guest.cpu.script = [*steps, mmio(True, UART)]
    exit = guest.vcpu.run()
    assert isinstance(exit, SysregExit), exit
    return exit


def goes_on(guest: Guest) -> None:
    """Run on to the guest's next exit, a store."""
    assert isinstance(guest.vcpu.run(), MmioExit)


# --- numbers and switching on ---------------------------------------------------------------------------------------------------


def test_numbers_are_out_of_linux_reach() -> None:
    assert CAP_SYSREG_TO_USER == EXIT_SYSREG == 0x5452_0001
    assert min(CAP_SYSREG_TO_USER, EXIT_SYSREG) > 100 * max(cap for cap in Cap if cap != Cap.TRAPLINE_SYSREG_TO_USER)
    assert EXIT_SYSREG & 0xFF != MmioExit.reason, "Vcpu.run recognises MMIO by the lowest byte"


def test_capability(guest: Guest) -> None:
    assert guest.system.check_extension(Cap.TRAPLINE_SYSREG_TO_USER) == 1
    assert guest.vm.check_extension(Cap.TRAPLINE_SYSREG_TO_USER) == 1
    with pytest.raises(KvmError) as failure:
        guest.vm.enable_cap(Cap.TRAPLINE_SYSREG_TO_USER, 0, 0, 1)
    assert failure.value.errno == errno.EINVAL


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("enc", [HID4, (3, 7, 11, 15, 7), (1, 0, 15, 0, 0)])
def test_undefined_unless_switched_on(enc: tuple[int, ...], write: bool) -> None:
    guest = make(enable=False)
    guest.cpu.script = [sysreg(enc, write), mmio(True, UART)]
    goes_on(guest)
    assert is_undefined(guest)


@pytest.mark.parametrize("write", [False, True])
def test_el0_is_undefined_always(guest: Guest, write: bool) -> None:
    guest.cpu.state.sysreg[SPSR_EL2.slot] = EL0T
    guest.cpu.script = [sysreg(HID4, write), mmio(True, UART)]
    goes_on(guest)
    assert is_undefined(guest, 0x400)


def test_architected_registers_do_not_exit(guest: Guest) -> None:
    guest.cpu.script = [sysreg((3, 0, 12, 13, 7), False), mmio(True, UART)]
    goes_on(guest)
    assert is_undefined(guest)


def test_nisv_is_another_switch() -> None:
    guest = make(enable=False)
    guest.vm.enable_cap(Cap.ARM_NISV_TO_USER)
    guest.cpu.script = [sysreg(HID4, False), mmio(True, UART)]
    goes_on(guest)
    assert is_undefined(guest)


# --- the exit ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("enc", [(3, 0, 15, 4, 0), (3, 7, 15, 15, 7), (3, 5, 11, 0, 1), (1, 2, 11, 3, 4)])
@pytest.mark.parametrize("write", [False, True])
def test_fields(guest: Guest, enc: tuple[int, ...], write: bool) -> None:
    guest.vcpu.regs.x9 = 0x1122_3344_5566_7788
    guest.vcpu.kvm_run.union[:] = [0xFF] * UNION_SIZE
    exit = exit_for(guest, sysreg(enc, write, rt=9))
    assert (exit.op0, exit.op1, exit.crn, exit.crm, exit.op2) == enc
    assert (exit.is_write, exit.state, exit.value) == (write, SysregState.AARCH64, 0x1122_3344_5566_7788 if write else 0)
    assert exit.name == "S{}_{}_C{}_C{}_{}".format(*enc)
    run = guest.vcpu._buffer
    assert int.from_bytes(run[EXIT_REASON_OFFSET : EXIT_REASON_OFFSET + 4], "little") == EXIT_SYSREG
    value = exit.value.to_bytes(8, "little")
    expected = bytes([*enc, write, 0, 0]) + value + bytes(UNION_SIZE - 16)
    assert bytes(run[UNION_OFFSET : UNION_OFFSET + UNION_SIZE]) == expected, "the documented layout, and no byte of an earlier exit"
    assert guest.vcpu.regs.pc == HERE, "not advanced"


def test_a_read_does_not_leak_the_old_register(guest: Guest) -> None:
    guest.vcpu.regs.x3 = 0xDEAD_BEEF
    assert exit_for(guest, sysreg(HID4, False, rt=3)).value == 0


def test_write_of_xzr(guest: Guest) -> None:
    assert exit_for(guest, sysreg(HID4, True, rt=31)).value == 0


# --- completion -------------------------------------------------------------------------------------------------------------------


def test_unanswered_read_is_undefined(guest: Guest) -> None:
    exit_for(guest, sysreg(HID4, False, rt=1))
    goes_on(guest)
    assert is_undefined(guest)


def test_read(guest: Guest) -> None:
    exit_for(guest, sysreg(HID4, False, rt=1)).value = 0x8765_4321_0000_0001
    goes_on(guest)
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.pc) == (0x8765_4321_0000_0001, HERE + 4)


def test_read_to_xzr(guest: Guest) -> None:
    exit_for(guest, sysreg(HID4, False, rt=31)).value = 7
    goes_on(guest)
    assert guest.vcpu.regs.pc == HERE + 4 and guest.cpu.state.x[31] == 0


def test_write(guest: Guest) -> None:
    guest.vcpu.regs.x2 = 5
    exit = exit_for(guest, sysreg(HID4, True, rt=2))
    with pytest.raises(AttributeError):
        exit.value = 1
    exit.done()
    goes_on(guest)
    assert (guest.vcpu.regs.x2, guest.vcpu.regs.pc) == (5, HERE + 4)


def test_an_answer_can_be_taken_back(guest: Guest) -> None:
    exit = exit_for(guest, sysreg(HID4, False, rt=1))
    exit.value = 1
    exit.undefined()
    goes_on(guest)
    assert is_undefined(guest) and guest.vcpu.regs.x1 == 0


@pytest.mark.parametrize("action", [2, 0x80, 0xFF])
def test_invalid_action_changes_nothing(guest: Guest, action: int) -> None:
    exit = exit_for(guest, sysreg(HID4, False, rt=1))
    exit.value = 42
    guest.vcpu._buffer[SYSREG_ACTION_OFFSET] = action
    for _ in range(2):
        with pytest.raises(KvmError) as failure:
            guest.vcpu.run()
        assert failure.value.errno == errno.EINVAL
        assert (guest.vcpu.regs.pc, guest.vcpu.regs.x1) == (HERE, 0)
    exit.done()
    goes_on(guest)
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.pc) == (42, HERE + 4)


def test_destination_is_remembered_not_read_again(guest: Guest) -> None:
    """The syndrome, the exit reason and every other field may be anything by then."""
    exit = exit_for(guest, sysreg(HID4, False, rt=1))
    exit.value = 42
    guest.cpu.trap(0x18, 0x3F << 5 | 1)
    run = guest.vcpu._buffer
    run[EXIT_REASON_OFFSET : EXIT_REASON_OFFSET + 4] = bytes(4)
    run[UNION_OFFSET : UNION_OFFSET + 7] = b"\xff" * 7
    goes_on(guest)
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.pc) == (42, HERE + 4)


def test_an_exit_cannot_be_forged(guest: Guest) -> None:
    exit = exit_for(guest, sysreg(HID4, False, rt=1))
    exit.value = 42
    goes_on(guest)
    guest.vcpu.regs.x1 = 0
    run = guest.vcpu._buffer
    run[EXIT_REASON_OFFSET : EXIT_REASON_OFFSET + 4] = EXIT_SYSREG.to_bytes(4, "little")
    run[SYSREG_ACTION_OFFSET] = 1
    pc = guest.vcpu.regs.pc
    guest.cpu.script = [mmio(True, UART)]
    goes_on(guest)
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.pc) == (0, pc + 4), "the store before it is complete, and nothing else"


# --- between exit and completion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["immediate_exit", "kick"])
def test_interrupted_completion_happens_once(guest: Guest, how: str) -> None:
    exit_for(guest, sysreg(HID4, False, rt=1)).value = 42
    if how == "kick":
        guest.vcpu.kick()
    else:
        guest.vcpu.immediate_exit = True
    assert guest.vcpu.run() == IntrExit()
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.pc, guest.cpu.entries) == (42, HERE + 4, 1)
    guest.vcpu.immediate_exit = False
    goes_on(guest)
    assert guest.vcpu.regs.pc == HERE + 4


def test_a_signal_leaves_the_whole_reason(guest: Guest) -> None:
    exit_for(guest, sysreg(HID4, False, rt=1)).value = 42
    core = guest.vm.backend.system.files.get(guest.vcpu.file)
    core.interrupt()
    with pytest.raises(KvmError) as failure:
        guest.vm.backend.ioctl(guest.vcpu.file, KVM_RUN, 0)
    assert failure.value.errno == errno.EINTR
    assert guest.vcpu.kvm_run.exit_reason == IntrExit.reason and guest.vcpu.regs.x1 == 42


def test_setting_the_pc_abandons_the_access(guest: Guest) -> None:
    exit_for(guest, sysreg(HID4, False, rt=1)).value = 42
    guest.vcpu.regs.pc = 0x9000
    goes_on(guest)
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.pc) == (0, 0x9000)


def test_setting_other_registers_does_not(guest: Guest) -> None:
    exit_for(guest, sysreg(HID4, False, rt=1)).value = 42
    guest.vcpu.regs.x1 = guest.vcpu.regs.x2 = 99
    goes_on(guest)
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.x2, guest.vcpu.regs.pc) == (42, 99, HERE + 4)


def test_reset_abandons_the_access(guest: Guest) -> None:
    exit_for(guest, sysreg(HID4, False, rt=1)).value = 42
    guest.vcpu.init()
    goes_on(guest)
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.pc) == (0, 0)


def test_injected_abort_takes_the_place_of_the_access(guest: Guest) -> None:
    exit_for(guest, sysreg(HID4, False, rt=1)).value = 42
    guest.vcpu.inject_external_abort()
    goes_on(guest)
    assert (guest.vcpu.regs.x1, guest.vcpu.regs.pc) == (0, VECTORS + 0x200)
    assert guest.cpu.state.sysreg[ELR_EL1.slot] == HERE


def test_single_step_sees_the_completed_access(guest: Guest) -> None:
    exit_for(guest, sysreg(HID4, False, rt=1)).value = 42
    guest.vcpu.set_guest_debug(single_step=True)
    seen = []
    guest.cpu.script = [lambda cpu: seen.append(cpu.state.sysreg[SPSR_EL2.slot] >> 21 & 1) or cpu.trap(0x32)]
    guest.vcpu.run()
    assert seen == [0], "PSTATE.SS is 0: the step is complete"


# --- AArch32 state ----------------------------------------------------------------------------------------------------------------

SVC32 = 0x13
N, Z, V = 1 << 31, 1 << 30, 1 << 28
CP15_PLACES = (
    {(9, m) for m in (0, 1, 2, 5, 6, 7, 8)}
    | {(10, m) for m in (0, 1, 4, 8)}
    | {(11, m) for m in (*range(9), 15)}
    | {(15, m) for m in range(16)}
)


def in_aarch32(guest: Guest, flags: int = 0) -> None:
    guest.cpu.state.sysreg[SPSR_EL2.slot] = flags | SVC32


@pytest.mark.parametrize("write", [False, True])
def test_cp15(guest: Guest, write: bool) -> None:
    in_aarch32(guest)
    guest.vcpu.regs.x4 = 0xAAAA_BBBB_CCCC_DDDD
    exit = exit_for(guest, cp15(3, 15, 9, 2, write, rt=4))
    assert (exit.op0, exit.op1, exit.crn, exit.crm, exit.op2) == (0, 3, 15, 9, 2)
    assert (exit.state, exit.name, exit.value) == (SysregState.CP15_32, "P15_3_C15_C9_2", 0xCCCC_DDDD if write else 0)
    if write:
        exit.done()
    else:
        exit.value = 0x1_8000_0001
    goes_on(guest)
    assert guest.vcpu.regs.pc == HERE + 4
    assert guest.vcpu.regs.x4 == (0xAAAA_BBBB_CCCC_DDDD if write else 0x8000_0001)


@pytest.mark.parametrize("write", [False, True])
def test_cp15_64(guest: Guest, write: bool) -> None:
    in_aarch32(guest)
    guest.vcpu.regs.x4, guest.vcpu.regs.x5 = 0xF_0000_0004, 0xF_0000_0005
    exit = exit_for(guest, cp15_64(1, 15, write, rt=4, rt2=5))
    assert (exit.state, exit.name, exit.op1, exit.crm) == (SysregState.CP15_64, "P15_1_C15", 1, 15)
    if write:
        assert exit.value == 0x5_0000_0004
        exit.done()
    else:
        exit.value = 0x7_0000_0006
    goes_on(guest)
    if not write:
        assert (guest.vcpu.regs.x4, guest.vcpu.regs.x5) == (6, 7)
    assert guest.vcpu.regs.pc == HERE + 4


def test_which_cp15_registers_are_implementation_defined(guest: Guest) -> None:
    found = set()
    for crn in range(16):
        for crm in range(16):
            one = make()
            in_aarch32(one)
            one.cpu.script = [cp15(0, crn, crm, 0, False), mmio(True, UART)]
            if isinstance(one.vcpu.run(), SysregExit):
                found.add((crn, crm))
    assert found == CP15_PLACES


def test_cycle_counter_is_architected(guest: Guest) -> None:
    in_aarch32(guest)
    guest.cpu.script = [cp15_64(0, 9, False, 1, 2), mmio(True, UART)]
    goes_on(guest)


def test_cp15_from_user_mode_is_undefined(guest: Guest) -> None:
    guest.cpu.state.sysreg[SPSR_EL2.slot] = USR32
    guest.cpu.script = [cp15(0, 15, 0, 0, False), mmio(True, UART)]
    goes_on(guest)
    assert is_undefined(guest, 0x600), "from a lower level in AArch32 state"


@pytest.mark.parametrize(
    ("condition", "flags", "holds"),
    [(0, Z, True), (0, 0, False), (1, 0, True), (1, Z, False), (10, N | V, True), (11, N, True), (12, Z, False), (15, Z, True)],
)
def test_condition(guest: Guest, condition: int, flags: int, holds: bool) -> None:
    in_aarch32(guest, flags)
    guest.cpu.script = [cp15(0, 15, 0, 0, False, rt=1, condition=condition), mmio(True, UART)]
    exit = guest.vcpu.run()
    assert isinstance(exit, SysregExit if holds else MmioExit)
    assert guest.vcpu.regs.pc == HERE + (0 if holds else 4)


def test_narrow_instruction_in_an_it_block(guest: Guest) -> None:
    """IT EQ with two instructions left: the condition comes from ITSTATE, and moves on behind a 16-bit instruction."""
    it = 0b0000_0100  # EQ, one more instruction after this one
    in_aarch32(guest, 1 << 30 | (it >> 2) << 10 | (it & 3) << 25 | 1 << 5)
    exit = exit_for(guest, cp15(0, 15, 0, 0, False, rt=1, condition=None, narrow=True))
    exit.value = 3
    goes_on(guest)
    pstate = guest.cpu.state.sysreg[SPSR_EL2.slot]
    assert guest.vcpu.regs.pc == HERE + 2
    assert (pstate >> 10 & 0x3F) << 2 | pstate >> 25 & 3 == 0b0000_1000


def test_feature_word_is_shared() -> None:
    """Switches are bits of one word: each leaves the others alone."""
    guest = make(enable=False)
    vm = guest.vm.backend.system.files.get(guest.vm.file).arch
    before = vm.flags.any()
    guest.vm.enable_cap(Cap.ARM_NISV_TO_USER)
    guest.vm.enable_cap(Cap.TRAPLINE_SYSREG_TO_USER)
    guest.vm.enable_cap(Cap.ARM_SYSTEM_SUSPEND)
    assert (vm.flags.any() & ~before).bit_count() == 3
