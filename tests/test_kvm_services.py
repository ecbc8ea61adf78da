"""PMU, counters with an offset, and hidden features, with a guest that runs on the software machine."""

from __future__ import annotations

import threading

import pytest

from tests.test_kvm_machine import Guest, boot, kvm  # noqa: F401 - fixtures
from trapline.abi.arm64 import DeviceType, Feature, IrqType, PmuAttr, VcpuGroup, VgicAddr, VgicCtrl, VgicGroup, irq_word
from trapline.abi.caps import Cap
from trapline.abi.exits import DeviceIrqLevel, IntrExit

PMU_PPI, PTIMER_PPI = 23, 30


def add_gic(guest: Guest):
    gic = guest.vm.create_device(DeviceType.ARM_VGIC_V3)
    gic.set_attr(VgicGroup.ADDR, VgicAddr.V3_DIST, 0x800_0000)
    gic.set_attr(VgicGroup.ADDR, VgicAddr.V3_REDIST, 0x80A_0000)
    gic.set_attr(VgicGroup.CTRL, VgicCtrl.INIT)
    return gic


def start_pmu(guest: Guest) -> None:
    guest.vcpu.set_attr(VcpuGroup.PMU_V3_CTRL, PmuAttr.IRQ, PMU_PPI)
    guest.vcpu.set_attr(VcpuGroup.PMU_V3_CTRL, PmuAttr.INIT, b"")


def is_raised(gic, ppi: int) -> bool:
    return bool(gic.get_attr(VgicGroup.LEVEL_INFO, 0, 4) >> ppi & 1)


def spin_for(guest: Guest, seconds: float) -> None:
    """Let the guest run in its last loop for so long."""
    threading.Timer(seconds, guest.vcpu.kick).start()
    assert guest.run() == IntrExit()


REPORT = """
        movz  x1, #0x0900, lsl #16
        str   x0, [x1]
"""


def test_cycles_of_a_loop(boot) -> None:  # noqa: F811
    """A cycle is a nanosecond: a million turns of a loop take some, but not a second."""
    guest = boot(
        f"""
        mov   x0, #0x80000000
        msr   pmcntenset_el0, x0
        mov   x0, #5
        msr   pmcr_el0, x0
        isb
        movz  x2, #16, lsl #16
loop:   subs  x2, x2, #1
        b.ne  loop
        mrs   x0, pmccntr_el0
        {REPORT}
        """,
        features=(Feature.PMU_V3,),
    )
    add_gic(guest)
    start_pmu(guest)
    assert 10_000 < guest.run().value < 10_000_000_000


def test_overflow_interrupts_a_spinning_guest(boot) -> None:  # noqa: F811
    """Nothing but the alarm makes the hypervisor look."""
    guest = boot(
        f"""
        movn  x0, #0x1f, lsl #16    // overflows after 2 ms
        msr   pmccntr_el0, x0
        mov   x0, #0x80000000
        msr   pmcntenset_el0, x0
        msr   pmintenset_el1, x0
        mov   x0, #1
        msr   pmcr_el0, x0
        {REPORT}
spin:   b     spin
        """,
        features=(Feature.PMU_V3,),
    )
    gic = add_gic(guest)
    start_pmu(guest)
    guest.run()
    assert not is_raised(gic, PMU_PPI)
    spin_for(guest, 0.5)
    assert is_raised(gic, PMU_PPI)


def test_el0_is_undefined_without_permission_and_counts_with_it(boot) -> None:  # noqa: F811
    guest = boot(
        f"""
        adr   x0, vectors
        msr   vbar_el1, x0
        adr   x0, user
        msr   elr_el1, x0
        msr   spsr_el1, xzr
        eret
user:   mrs   x0, pmccntr_el0
        b     user
        .align 11
vectors: .space 0x400
        mrs   x0, esr_el1
        {REPORT}
        mov   x0, #1
        msr   pmuserenr_el0, x0
        adr   x0, again
        msr   elr_el1, x0
        eret
again:  mrs   x0, pmccntr_el0
        mov   x0, #77
        {REPORT}
        """,
        features=(Feature.PMU_V3,),
    )
    add_gic(guest)
    start_pmu(guest)
    assert guest.run().value == 1 << 25, "an undefined instruction"
    assert guest.run().value == 77


def test_without_a_pmu_its_registers_are_undefined(boot) -> None:  # noqa: F811
    guest = boot(f"""
        adr   x0, vectors
        msr   vbar_el1, x0
        isb
        mrs   x0, pmcr_el0
        .align 11
vectors: .space 0x200
        mrs   x0, esr_el1
        {REPORT}
        """)
    assert guest.run().value == 1 << 25


@pytest.mark.parametrize("offset", [0, 1 << 40])
def test_physical_counter_and_timer_with_an_offset(boot, offset: int) -> None:  # noqa: F811
    guest = boot(f"""
        mrs   x0, cntpct_el0
        mrs   x2, cntvct_el0
        {REPORT}
        mov   x0, x2
        str   x0, [x1]
        movz  x0, #0xf424           // 1 ms
        msr   cntp_tval_el0, x0
        mov   x0, #1
        msr   cntp_ctl_el0, x0
wait:   mrs   x0, cntp_ctl_el0
        tbz   w0, #2, wait
        str   x0, [x1]
spin:   b     spin
        """)
    gic = add_gic(guest)
    real = guest.vcpu.get_one_reg(0x6030_0000_0013_DF01)
    if offset:
        guest.vm.set_counter_offset(real - offset & (1 << 64) - 1)
    physical, virtual = guest.run().value, guest.run().value
    if offset:
        assert 0 <= physical - offset < 62_500_000 * 20 and 0 <= virtual - physical < 62_500_000
    else:
        assert physical >= real
    assert guest.run().value == 5, "enabled, and the condition holds"
    spin_for(guest, 0.05)
    assert is_raised(gic, PTIMER_PPI)


@pytest.mark.parametrize("hidden", [False, True])
def test_hidden_memory_copies_are_undefined(boot, hidden: bool) -> None:  # noqa: F811
    program = f"""
        adr   x0, vectors
        msr   vbar_el1, x0
        isb
        movz  x1, #0x4010, lsl #16
        mov   x0, x1
        mov   x2, #8
        setp  [x0]!, x2!, x3
        mov   x0, #1
        {REPORT}
        .align 11
vectors: .space 0x200
        mrs   x0, esr_el1
        {REPORT}
        """
    guest = boot(program)
    if hidden:
        guest.vcpu.set_id_register("ID_AA64ISAR2_EL1", MOPS=0)
    assert guest.run().value == (1 << 25 if hidden else 1)


def test_userspace_as_interrupt_controller_is_told_of_the_timer(boot) -> None:  # noqa: F811
    """The level comes in kvm_run, with an interruption of the run; the pin wakes the guest; what is seen once does not come again."""
    guest = boot(
        f"""
        adr   x0, vectors
        msr   vbar_el1, x0
        movz  x0, #0xf424           // 1 ms
        msr   cntv_tval_el0, x0
        mov   x0, #1
        msr   cntv_ctl_el0, x0
        msr   daifclr, #2
sleep:  wfi
        b     sleep
        .align 11
vectors: .space 0x280
        msr   cntv_ctl_el0, xzr     // the timer's output falls
        mov   x0, #42
        {REPORT}
        """
    )
    assert guest.vm.check_extension(Cap.ARM_USER_IRQ) == 1
    assert guest.run() == IntrExit()
    assert guest.vcpu.device_irq_level == DeviceIrqLevel.VTIMER
    threading.Timer(0.2, lambda: guest.vm.irq_line(irq_word(IrqType.CPU, 0), 1)).start()
    exit = guest.run()
    while exit == IntrExit():
        exit = guest.run()
    assert exit.value == 42
    assert guest.vcpu.device_irq_level == 0


def test_implementation_defined_registers_of_a_real_guest(boot) -> None:  # noqa: F811
    """EL1's accesses come out, system instructions too; EL0's are undefined instructions and never do."""
    guest = boot(f"""
        adr   x0, vectors
        msr   vbar_el1, x0
        isb
        mov   x7, #7
        msr   s3_0_c15_c4_0, x7
        mrs   x8, s3_7_c11_c15_7
        sys   #1, c15, c2, #3, x8
        sysl  x9, #0, c11, c0, #0
        adr   x0, user
        msr   elr_el1, x0
        msr   spsr_el1, xzr
        eret
user:   mrs   x9, s3_0_c15_c4_0
        b     user
        .align 11
vectors: .space 0x400
        mrs   x0, esr_el1
        {REPORT}
        """)
    guest.vm.enable_cap(Cap.TRAPLINE_SYSREG_TO_USER)
    write = guest.run()
    assert (write.name, write.is_write, write.value) == ("S3_0_C15_C4_0", True, 7)
    write.done()
    read = guest.run()
    assert (read.name, read.is_write) == ("S3_7_C11_C15_7", False)
    read.value = 0x1234
    sys = guest.run()
    assert (sys.name, sys.is_write, sys.value) == ("S1_1_C15_C2_3", True, 0x1234)
    sys.done()
    sysl = guest.run()
    assert (sysl.name, sysl.is_write) == ("S1_0_C11_C0_0", False)
    sysl.value = 0x5678
    assert guest.run().value == 1 << 25, "EL0: an undefined instruction, with no exit before"
    assert (guest.vcpu.regs.x8, guest.vcpu.regs.x9) == (0x1234, 0x5678)
