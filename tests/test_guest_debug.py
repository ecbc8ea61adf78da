"""KVM_SET_GUEST_DEBUG on the software machine: steps, breakpoints and watchpoints set from outside, and the guest's own meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

import trapline
from trapline.abi import arm64
from trapline.abi.caps import Cap
from trapline.abi.exits import DebugExit, MmioExit, SystemEvent
from trapline.arm64.asm_program import assemble_with_labels
from trapline.arm64.features import Features
from trapline.arm64.regs import ID_AA64DFR0_EL1, MDSCR_EL1, OSLSR_EL1, TABLE
from trapline.arm64.regs.debug import DBGBCR, DBGBVR, DebugControl
from trapline.backends.guest_debug import Watchpoint
from trapline.backends.objects import System, Vm
from trapline.backends.software import Software
from trapline.backends.vcpu import Vcpu
from trapline.errors import BadInput, KvmError

RAM, DATA, UART = 0x4000_0000, 0x4000_8000, 0x0900_0000
STEP, BREAK, WATCH, BRK = 0x32, 0x30, 0x34, 0x3C
SS = 1 << 21


class Guest:
    """A VM with one vCPU and a program; stage 1 is off, so addresses are physical."""

    def __init__(self, kvm: System) -> None:
        self.vm: Vm = kvm.create_vm()
        self.ram = self.vm.add_memory(RAM, 1 << 20)
        self.vcpu: Vcpu = self.vm.create_vcpu()
        self.labels: dict[str, int] = {}

    def load(self, text: str) -> Vcpu:
        for name in ("MDSCR_EL1", "OSLAR_EL1", "OSLSR_EL1", "DBGBVR0_EL1", "DBGBCR0_EL1", "DBGCLAIMSET_EL1", "MDRAR_EL1", "VBAR_EL1"):
            op0, op1, crn, crm, op2 = TABLE[name].enc
            text = text.replace(name, f"s{op0}_{op1}_c{crn}_c{crm}_{op2}")
        code, self.labels = assemble_with_labels(text, RAM)
        self.ram[0 : len(code)] = code
        self.vcpu.regs.pc = RAM
        return self.vcpu

    def stop(self) -> tuple[int, int]:
        """Run until a debug exit: its class, and where."""
        exit = self.vcpu.run()
        assert isinstance(exit, DebugExit), exit
        return exit.hsr >> 26, self.vcpu.regs.pc - RAM


@pytest.fixture
def guest() -> Iterator[Guest]:
    with System(Software()) as kvm:
        yield Guest(kvm)


def test_capabilities(guest: Guest) -> None:
    with System(Software()) as kvm:
        features = Features()
        found = [kvm.check_extension(cap) for cap in (Cap.SET_GUEST_DEBUG, Cap.GUEST_DEBUG_HW_BPS, Cap.GUEST_DEBUG_HW_WPS)]
        assert found == [1, features.breakpoints, features.watchpoints]
        assert kvm.check_extension(Cap.SET_GUEST_DEBUG2) == 0x30003


def test_unknown_bits_are_refused(guest: Guest) -> None:
    for bit in (2, 15, 18, 31):
        argument = arm64.GuestDebug()
        argument.control = 1 << bit
        with pytest.raises(KvmError) as failure:
            guest.vcpu._ioctl(guest.vcpu.file, arm64.KVM_SET_GUEST_DEBUG, argument)
        assert failure.value.errno == errno.EINVAL


def test_single_steps(guest: Guest) -> None:
    vcpu = guest.load("mov x0, #3\nagain: subs x0, x0, #1\nb.ne again\nmov x1, #7\nself: b self")
    vcpu.set_guest_debug(single_step=True)
    before = vcpu.regs.pstate
    found = [guest.stop() for _ in range(9)]
    assert found == [(STEP, 4 * n) for n in (1, 2, 1, 2, 1, 2, 3, 4, 4)]
    assert (vcpu.regs.x0, vcpu.regs.x1) == (0, 7)
    assert vcpu.regs.pstate & SS == before & SS, "the guest's own state is not touched"
    vcpu.set_guest_debug(enable=False)
    vcpu.regs.pc = guest.labels["again"]
    vcpu.kick()
    assert not isinstance(vcpu.run(), DebugExit)


def test_a_step_over_a_device_access_ends_after_it(guest: Guest) -> None:
    """Userspace emulates the load first; then, without another instruction, comes the exit for the step."""
    vcpu = guest.load("ldr w0, [x1]\nstr w0, [x1]\nnop")
    vcpu.regs.x1 = UART
    vcpu.set_guest_debug(single_step=True)
    exit = vcpu.run()
    assert isinstance(exit, MmioExit) and not exit.is_write
    exit.data = 0x1234
    assert guest.stop() == (STEP, 4)
    assert vcpu.regs.x0 == 0x1234
    exit = vcpu.run()
    assert isinstance(exit, MmioExit) and exit.is_write and exit.value == 0x1234
    assert guest.stop() == (STEP, 8)


def test_a_step_over_a_hypercall_and_a_trapped_register(guest: Guest) -> None:
    vcpu = guest.load("mrs x9, s3_0_c0_c4_0\nmov x0, #0x84000000\nhvc #0\nnop\nsmc #0\nnop")
    vcpu.set_guest_debug(single_step=True)
    assert [guest.stop() for _ in range(6)] == [(STEP, 4 * n) for n in range(1, 7)]
    assert vcpu.regs.x9 & 0xFF == 0x11


def test_an_exit_in_a_step_is_reported_before_the_step(guest: Guest) -> None:
    vcpu = guest.load("movz x0, #0x8400, lsl #16\nmovk x0, #8\nhvc #0\nnop")
    vcpu.set_guest_debug(single_step=True)
    assert [guest.stop() for _ in range(2)] == [(STEP, 4), (STEP, 8)]
    assert isinstance(vcpu.run(), SystemEvent)


def test_steps_go_into_exceptions(guest: Guest) -> None:
    vcpu = guest.load("adr x0, vectors\nmsr VBAR_EL1, x0\nisb\nsvc #1\nnop\n.align 11\nvectors: nop\n.align 9\nnop\neret")
    vcpu.set_guest_debug(single_step=True)
    assert [guest.stop()[1] for _ in range(3)] == [4, 8, 12]
    vector = guest.labels["vectors"] + 0x200 - RAM
    assert [guest.stop()[1] for _ in range(3)] == [vector, vector + 4, 16]


def test_breakpoints(guest: Guest) -> None:
    vcpu = guest.load("loop: add x0, x0, #1\nbl f\nb loop\nf: add x1, x1, #1\nret")
    f = guest.labels["f"]
    vcpu.set_guest_debug(breakpoints=[f, RAM + 8])
    assert guest.stop() == (BREAK, 12)
    assert (vcpu.regs.x0, vcpu.regs.x1) == (1, 0)
    assert guest.stop() == (BREAK, 12), "it does not go past it by itself"
    vcpu.set_guest_debug(breakpoints=[RAM + 8])
    assert guest.stop() == (BREAK, 8)
    vcpu.set_guest_debug(single_step=True, breakpoints=[f])
    assert [guest.stop() for _ in range(4)] == [(STEP, 0), (STEP, 4), (STEP, 12), (BREAK, 12)]


def test_software_breakpoints(guest: Guest) -> None:
    vcpu = guest.load("nop\nbrk #5\nnop")
    vcpu.set_guest_debug(software_breakpoints=True)
    exit = vcpu.run()
    assert isinstance(exit, DebugExit) and (exit.hsr, exit.far) == (BRK << 26 | 1 << 25 | 5, 0)
    assert vcpu.regs.pc == RAM + 4


def test_watchpoints(guest: Guest) -> None:
    vcpu = guest.load("loop: str x0, [x1]\nldr x2, [x1, #8]\nstrb w0, [x1, #19]\nadd x0, x0, #1\nb loop")
    vcpu.regs.x1 = DATA
    cases: list[tuple[list[Watchpoint], int, int]] = [
        ([Watchpoint(DATA + 8)], 4, DATA + 8),
        ([Watchpoint(DATA + 8, store=True, load=False), Watchpoint(DATA + 19, 1)], 8, DATA + 19),
        ([Watchpoint(DATA, 4096, load=False)], 0, DATA),
        ([Watchpoint(DATA + 4, 2)], 0, DATA + 4),
    ]
    for watchpoints, offset, far in cases:
        vcpu.regs.pc = RAM
        vcpu.set_guest_debug(watchpoints=watchpoints)
        exit = vcpu.run()
        assert isinstance(exit, DebugExit), exit
        assert (exit.hsr >> 26, vcpu.regs.pc - RAM, exit.far) == (WATCH, offset, far)
    vcpu.set_guest_debug(single_step=True)
    assert guest.stop() == (STEP, 4)


@pytest.mark.parametrize(
    ("watchpoint", "expected"),
    [
        (Watchpoint(0x1000), (0x1000, 0xFF << 5 | 3 << 3 | 3 << 1 | 1)),
        (Watchpoint(0x1003, 2, store=False), (0x1000, 0x18 << 5 | 1 << 3 | 3 << 1 | 1)),
        (Watchpoint(0x2000, 0x1000, load=False), (0x2000, 12 << 24 | 0xFF << 5 | 2 << 3 | 3 << 1 | 1)),
        (Watchpoint(0x1005, 4), None),
        (Watchpoint(0x1004, 16), None),
        (Watchpoint(0x1000, 24), None),
        (Watchpoint(0x1000, 0), None),
        (Watchpoint(0x1000, 8, load=False, store=False), None),
    ],
)
def test_what_a_watchpoint_can_cover(watchpoint: Watchpoint, expected: tuple[int, int] | None) -> None:
    if expected is None:
        with pytest.raises(BadInput):
            watchpoint.registers()
    else:
        assert watchpoint.registers() == expected


def test_the_guest_reads_back_its_own_registers_while_it_is_debugged(guest: Guest) -> None:
    """It neither sees userspace's breakpoints nor disturbs them, and what it wrote is there when userspace has finished."""
    text = """
        mov x1, #0xa000
        msr MDSCR_EL1, x1
        mrs x2, MDSCR_EL1
        mrs x3, DBGBVR0_EL1
        mov x4, #0x123000
        msr DBGBVR0_EL1, x4
        mrs x5, DBGBVR0_EL1
        msr OSLAR_EL1, x1
        mrs x6, OSLSR_EL1
        mrs x7, DBGCLAIMSET_EL1
        mrs x8, MDRAR_EL1
    end: nop
    """
    vcpu = guest.load(text.replace("0x123000", "0x1230").strip())
    vcpu.set_guest_debug(breakpoints=[guest.labels["end"]])
    assert guest.stop() == (BREAK, guest.labels["end"] - RAM)
    regs = vcpu.regs
    assert (regs.x2, regs.x3, regs.x5, regs.x6, regs.x7, regs.x8) == (0xA000, 0, 0x1230, 8, 0, 0)
    assert vcpu.get_one_reg(DBGBVR[0].one_reg_id) == 0x1230
    assert vcpu.get_one_reg(MDSCR_EL1.one_reg_id) == 0xA000


def test_the_guests_own_breakpoints_rest_meanwhile(guest: Guest) -> None:
    """Set by ONE_REG, as after a migration: they work while nobody debugs from outside."""
    text = "adr x0, vectors\nmsr VBAR_EL1, x0\nisb\nmsr daifclr, #8\nhere: nop\nldr x0, [x9]\n"
    vcpu = guest.load(text + ".align 11\nvectors: nop\n.align 9\nldr x0, [x9, #8]")
    vcpu.regs.x9 = UART
    vcpu.set_one_reg(DBGBVR[2].one_reg_id, guest.labels["here"])
    vcpu.set_one_reg(DBGBCR[2].one_reg_id, int(DebugControl(E=1, PMC=1, BAS=15)))
    vcpu.set_one_reg(MDSCR_EL1.one_reg_id, int(MDSCR_EL1(MDE=1, KDE=1)))
    vcpu.set_guest_debug(single_step=True)
    for offset in (4, 8, 12, 16, 20):
        assert guest.stop() == (STEP, offset)
    vcpu.set_guest_debug(enable=False)
    vcpu.regs.pc = RAM
    exit = vcpu.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == UART + 8, "the breakpoint's handler"
    assert vcpu.regs.elr_el1 == guest.labels["here"]


def test_registers_have_ids(guest: Guest) -> None:
    vcpu = guest.vcpu
    ids = vcpu.reg_list()
    assert all(reg.one_reg_id in ids for reg in (*DBGBCR, *DBGBVR, MDSCR_EL1, OSLSR_EL1))
    assert vcpu.get_one_reg(OSLSR_EL1.one_reg_id) == 8, "the OS lock is open"
    vcpu.set_one_reg(OSLSR_EL1.one_reg_id, 10)
    with pytest.raises(KvmError):
        vcpu.set_one_reg(OSLSR_EL1.one_reg_id, 0)
    vcpu.set_one_reg(DBGBVR[15].one_reg_id, 77)
    assert vcpu.get_one_reg(DBGBVR[15].one_reg_id) == 77
    dfr = ID_AA64DFR0_EL1(vcpu.get_one_reg(ID_AA64DFR0_EL1.one_reg_id))
    assert (dfr.BRPs + 1, dfr.WRPs + 1, dfr.CTX_CMPs) == (6, 4, 0)


def test_the_exit_is_public() -> None:
    assert trapline.DebugExit is DebugExit
