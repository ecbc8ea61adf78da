"""The guest's PMU on a scripted machine: configuration and its errors, registers, what counts, and overflow interrupts."""

from __future__ import annotations

import errno

import pytest

from tests.fake_engine import FakeCpu, Step, mmio
from tests.test_kvm_calls import code_of
from tests.test_kvm_run import UART, Guest
from tests.test_sysreg_exits import sysreg
from trapline.abi import arm64
from trapline.abi.arm64 import Feature, PmuAttr, VcpuGroup, VgicAddr, VgicCtrl, VgicGroup
from trapline.abi.arm64_vm import PmuEventFilter
from trapline.abi.caps import Cap
from trapline.abi.exits import MmioExit
from trapline.arm64.regs import ESR_EL1, SPSR_EL2, TABLE

PMU, IRQ = VcpuGroup.PMU_V3_CTRL, 23
PMCR, CNTENSET, CNTENCLR, OVSCLR, SWINC, SELR, CEID0 = ((3, 3, 9, 12, op2) for op2 in range(7))
CCNTR, XEVTYPER, XEVCNTR = ((3, 3, 9, 13, op2) for op2 in range(3))
USERENR, OVSSET, INTENSET, INTENCLR = (3, 3, 9, 14, 0), (3, 3, 9, 14, 3), (3, 0, 9, 14, 1), (3, 0, 9, 14, 2)
EVCNTR0, EVTYPER0, CCFILTR = (3, 3, 14, 8, 0), (3, 3, 14, 12, 0), (3, 3, 14, 15, 7)
CYCLE = 1 << 31
SW_INCR, CPU_CYCLES, CHAIN = 0x00, 0x11, 0x1E
UNDEFINED = 1 << 25


class Clock:
    """A clock that stands still unless the script moves it."""

    def __init__(self) -> None:
        self.time = 1_000_000

    def now(self) -> int:
        return self.time


class Monitored:
    """A guest with a PMU. `alarms` are what it asked to be woken for: time and callback."""

    def __init__(self, gic: bool = True, start: bool = True) -> None:
        self.guest = Guest(vcpus=0)
        self.alarms: list[tuple[int, object]] = []
        self.clock = Clock()
        world = self.guest.vm.backend.system.arch.world
        world.clock = self.clock
        world.call_at = self._call_at
        self.vm = self.guest.vm
        self.vcpu = self.vm.create_vcpu(features=[Feature.PMU_V3])
        self.cpu: FakeCpu = self.guest.engine.cpus[0]
        self.vcpu.regs.pc = 0x1000
        if gic:
            self.gic = self.vm.create_device(arm64.DeviceType.ARM_VGIC_V3)
            self.gic.set_attr(VgicGroup.ADDR, VgicAddr.V3_DIST, 0x800_0000)
            self.gic.set_attr(VgicGroup.ADDR, VgicAddr.V3_REDIST, 0x80A_0000)
            self.gic.set_attr(VgicGroup.CTRL, VgicCtrl.INIT)
            if start:
                self.vcpu.set_attr(PMU, PmuAttr.IRQ, IRQ)
        if start:
            self.vcpu.set_attr(PMU, PmuAttr.INIT, b"")

    def _call_at(self, time: int, callback):
        entry = (time, callback)
        self.alarms.append(entry)
        return lambda: self.alarms.remove(entry)

    def run(self, *steps: Step) -> None:
        self.cpu.script = [*steps, mmio(True, UART)]
        assert isinstance(self.vcpu.run(), MmioExit)

    def read(self, enc: tuple[int, ...]) -> int:
        self.run(sysreg(enc, False, rt=1))
        return self.vcpu.regs.x1

    def write(self, enc: tuple[int, ...], value: int) -> None:
        self.run(self.writing(enc, value))

    def writing(self, enc: tuple[int, ...], value: int) -> Step:
        def step(cpu: FakeCpu) -> None:
            cpu.state.x[2] = value
            sysreg(enc, True, rt=2)(cpu)

        return step

    def work(self, nanoseconds: int) -> Step:
        """The guest computes, and comes back for no reason of the PMU's."""

        def step(cpu: FakeCpu) -> str:
            self.clock.time += nanoseconds
            return "irq"

        return step

    def undefined(self) -> bool:
        return self.cpu.state.sysreg[ESR_EL1.slot] == UNDEFINED

    def line(self) -> bool:
        """Whether the overflow interrupt is pending at the GIC (GICR_ISPENDR0)."""
        stored = self.gic.get_attr(VgicGroup.LEVEL_INFO, 0, 4)
        return bool(stored >> IRQ & 1)


@pytest.fixture
def pmu() -> Monitored:
    return Monitored()


# --- configuration ----------------------------------------------------------------------------------------------------------------


def test_a_vcpu_without_the_feature() -> None:
    guest = Guest()
    assert guest.vm.check_extension(Cap.ARM_PMU_V3) == 1
    assert not guest.vcpu.has_attr(PMU, PmuAttr.INIT)
    assert code_of(guest.vcpu.set_attr, PMU, PmuAttr.IRQ, IRQ) == errno.ENODEV
    assert code_of(guest.vcpu.get_attr, PMU, PmuAttr.IRQ) == errno.EINVAL, "no interrupt controller: that comes first"
    assert code_of(guest.vcpu.get_one_reg, TABLE["PMCR_EL0"].one_reg_id) == errno.ENOENT
    assert guest.vcpu.get_one_reg(TABLE["ID_AA64DFR0_EL1"].one_reg_id) >> 8 & 15 == 0
    guest.cpu.script = [sysreg(PMCR, False), mmio(True, UART)]
    guest.vcpu.run()
    assert guest.cpu.state.sysreg[ESR_EL1.slot] == UNDEFINED


def test_order_of_configuration() -> None:
    pmu = Monitored(start=False)
    for attr in PmuAttr:
        assert pmu.vcpu.has_attr(PMU, attr)
    assert not pmu.vcpu.has_attr(PMU, 9)
    pmu.cpu.script = [mmio(True, UART)]
    assert code_of(pmu.vcpu.run) == errno.EINVAL, "not initialised"
    assert code_of(pmu.vcpu.get_attr, PMU, PmuAttr.IRQ) == errno.ENXIO
    assert code_of(pmu.vcpu.set_attr, PMU, PmuAttr.INIT, b"") == errno.ENXIO, "no interrupt"
    for number in (0, 15, 1020, -1 & 0xFFFF_FFFF):
        assert code_of(pmu.vcpu.set_attr, PMU, PmuAttr.IRQ, number) == errno.EINVAL
    pmu.vcpu.set_attr(PMU, PmuAttr.IRQ, IRQ)
    assert code_of(pmu.vcpu.set_attr, PMU, PmuAttr.IRQ, IRQ) == errno.EBUSY
    assert pmu.vcpu.get_attr(PMU, PmuAttr.IRQ) == IRQ
    pmu.vcpu.set_attr(PMU, PmuAttr.INIT, b"")
    assert code_of(pmu.vcpu.set_attr, PMU, PmuAttr.INIT, b"") == errno.EBUSY
    pmu.run()
    assert code_of(pmu.vcpu.set_attr, PMU, PmuAttr.FILTER, bytes(8)) == errno.EBUSY


def test_interrupts_of_several_vcpus() -> None:
    """A PPI is the same everywhere, an SPI is another one everywhere."""
    guest = Guest(vcpus=0)
    vcpus = [guest.vm.create_vcpu(features=[Feature.PMU_V3]) for _ in range(3)]
    assert code_of(vcpus[0].set_attr, PMU, PmuAttr.IRQ, IRQ) == errno.EINVAL, "no interrupt controller"
    guest.vm.create_device(arm64.DeviceType.ARM_VGIC_V3)
    vcpus[0].set_attr(PMU, PmuAttr.IRQ, 40)
    assert code_of(vcpus[1].set_attr, PMU, PmuAttr.IRQ, 40) == errno.EINVAL
    vcpus[1].set_attr(PMU, PmuAttr.IRQ, 41)
    assert code_of(vcpus[0].set_attr, PMU, PmuAttr.INIT, b"") == errno.ENODEV, "the interrupt controller is not initialised"


def test_without_an_interrupt_controller() -> None:
    pmu = Monitored(gic=False)
    pmu.run()
    assert code_of(pmu.vcpu.get_attr, PMU, PmuAttr.IRQ) == errno.EINVAL


def test_filter_and_counters() -> None:
    pmu = Monitored(start=False)

    def filter(base: int, count: int, action: int) -> int:
        return code_of(pmu.vcpu.set_attr, PMU, PmuAttr.FILTER, bytes(PmuEventFilter(base, count, action)))

    assert [filter(0xFFFF, 2, 0), filter(0, 1, 2), filter(CPU_CYCLES, 1, 0)] == [errno.EINVAL, errno.EINVAL, 0]
    assert code_of(pmu.vcpu.set_attr, PMU, PmuAttr.SET_PMU, 7) == errno.ENXIO
    assert code_of(pmu.vcpu.set_attr, PMU, PmuAttr.SET_PMU, 0) == 0
    assert code_of(pmu.vcpu.set_attr, PMU, PmuAttr.SET_NR_COUNTERS, 7) == errno.EINVAL
    pmu.vcpu.set_attr(PMU, PmuAttr.SET_NR_COUNTERS, 2)
    pmu.vcpu.set_attr(PMU, PmuAttr.IRQ, IRQ)
    pmu.vcpu.set_attr(PMU, PmuAttr.INIT, b"")
    assert pmu.read(CEID0) == 1 << CPU_CYCLES, "what is allowed first is all there is"
    assert pmu.read(PMCR) >> 11 & 31 == 2
    pmu.read((3, 3, 14, 8, 2))
    assert pmu.undefined()


# --- counting ---------------------------------------------------------------------------------------------------------------------


def test_identification(pmu: Monitored) -> None:
    assert pmu.vcpu.get_one_reg(TABLE["ID_AA64DFR0_EL1"].one_reg_id) >> 8 & 15 == 6
    assert pmu.read(CEID0) == 1 << SW_INCR | 1 << CPU_CYCLES | 1 << CHAIN
    assert pmu.read((3, 3, 9, 12, 7)) == 1 << 3 | 1 << 4, "stalls, of which there are none"
    assert pmu.read(PMCR) == 6 << 11 | 1 << 6


def test_cycles_count_while_the_guest_runs(pmu: Monitored) -> None:
    pmu.write(CCFILTR, 0)
    pmu.write(CNTENSET, CYCLE)
    pmu.write(PMCR, 1)
    pmu.run(pmu.work(1000), pmu.work(234))
    assert pmu.read(CCNTR) == 1234
    pmu.clock.time += 10_000
    assert pmu.read(CCNTR) == 1234, "userspace's time is not the guest's"
    pmu.write(PMCR, 0)
    pmu.run(pmu.work(1000))
    assert pmu.read(CCNTR) == 1234
    pmu.write(PMCR, 1 << 2)
    assert pmu.read(CCNTR) == 0, "PMCR_EL0.C"


def test_an_event_counter_counts_cycles_too(pmu: Monitored) -> None:
    pmu.write(SELR, 3)
    pmu.write(XEVTYPER, CPU_CYCLES)
    pmu.write(CNTENSET, 1 << 3)
    pmu.write(PMCR, 1)
    pmu.run(pmu.work(500))
    assert (pmu.read(XEVCNTR), pmu.read((3, 3, 14, 8, 3)), pmu.read(EVCNTR0)) == (500, 500, 0)
    pmu.write(CNTENCLR, 1 << 3)
    pmu.run(pmu.work(500))
    assert pmu.read(XEVCNTR) == 500
    pmu.write(PMCR, 1 << 1)
    assert pmu.read(XEVCNTR) == 0, "PMCR_EL0.P"


def test_excluded_levels_stop_a_counter(pmu: Monitored) -> None:
    pmu.write(CCFILTR, 3 << 30)
    pmu.write(CNTENSET, CYCLE)
    pmu.write(PMCR, 1)
    pmu.run(pmu.work(500))
    assert pmu.read(CCNTR) == 0


def test_software_increment(pmu: Monitored) -> None:
    pmu.write(EVTYPER0, SW_INCR)
    pmu.write(SWINC, 1)
    assert pmu.read(EVCNTR0) == 0, "not enabled"
    pmu.write(CNTENSET, 1)
    pmu.write(PMCR, 1)
    pmu.write(EVCNTR0, 0xFFFF_FFFE)
    pmu.write(SWINC, 1)
    assert pmu.read(OVSSET) == 0
    pmu.write(SWINC, 3)
    assert (pmu.read(EVCNTR0), pmu.read(OVSSET)) == (1 << 32, 1), "32 bits overflow without PMCR_EL0.LP"
    pmu.write(OVSCLR, 1)
    assert pmu.read(OVSSET) == 0


def test_chained_counters(pmu: Monitored) -> None:
    pmu.write(EVTYPER0, CPU_CYCLES)
    pmu.write((3, 3, 14, 12, 1), CHAIN)
    pmu.write(EVCNTR0, 0xFFFF_FF00)
    pmu.write(CNTENSET, 3)
    pmu.write(PMCR, 1)
    pmu.run(pmu.work(0x200))
    assert (pmu.read(EVCNTR0) & 0xFFFF_FFFF, pmu.read((3, 3, 14, 8, 1)), pmu.read(OVSSET)) == (0x100, 1, 1)
    pmu.run(pmu.work(3 << 32))
    assert pmu.read((3, 3, 14, 8, 1)) == 4


def test_registers_can_be_restored(pmu: Monitored) -> None:
    values = {"PMCR_EL0": 0x41 | 6 << 11, "PMCCNTR_EL0": 77, "PMCNTENSET_EL0": CYCLE | 5, "PMOVSSET_EL0": 4, "PMINTENSET_EL1": 1}
    values |= {"PMEVCNTR2_EL0": 9, "PMEVTYPER2_EL0": CPU_CYCLES, "PMUSERENR_EL0": 3, "PMSELR_EL0": 2}
    for name, value in values.items():
        pmu.vcpu.set_one_reg(TABLE[name].one_reg_id, value)
    assert {name: pmu.vcpu.get_one_reg(TABLE[name].one_reg_id) for name in values} == values
    assert {TABLE[name].one_reg_id for name in values} <= set(pmu.vcpu.reg_list())
    pmu.vcpu.set_one_reg(TABLE["PMCNTENSET_EL0"].one_reg_id, 0)
    assert pmu.read(CNTENSET) == 0, "the whole word"
    pmu.vcpu.init([Feature.PSCI_0_2, Feature.PMU_V3])
    assert pmu.vcpu.get_one_reg(TABLE["PMCCNTR_EL0"].one_reg_id) == 0


def test_counters_of_the_vm_may_be_fewer_by_restoring(pmu: Monitored) -> None:
    pmu.vcpu.set_one_reg(TABLE["PMCR_EL0"].one_reg_id, 4 << 11)
    assert pmu.read(PMCR) >> 11 & 31 == 4
    pmu.vcpu.set_one_reg(TABLE["PMCR_EL0"].one_reg_id, 2 << 11)
    assert pmu.read(PMCR) >> 11 & 31 == 4, "too late"


@pytest.mark.parametrize(
    ("enc", "write", "opens"),
    [(PMCR, False, 1), (CCNTR, False, 5), (EVCNTR0, False, 9), (SELR, True, 9), (SWINC, True, 3), (CCNTR, True, 1), (INTENSET, False, 0)],
)
def test_el0_needs_permission(enc: tuple[int, ...], write: bool, opens: int) -> None:
    for user in range(16):
        pmu = Monitored()
        pmu.vcpu.set_one_reg(TABLE["PMUSERENR_EL0"].one_reg_id, user)
        pmu.cpu.state.sysreg[SPSR_EL2.slot] = 0
        pmu.run(sysreg(enc, write))
        if enc != INTENSET:  # the processor does not let EL0 get that far
            assert pmu.undefined() == (not user & opens), user


def test_user_enable_is_el1s(pmu: Monitored) -> None:
    pmu.write(USERENR, 0x1F)
    assert pmu.read(USERENR) == 0xF
    pmu.cpu.state.sysreg[SPSR_EL2.slot] = 0
    pmu.write(USERENR, 0)
    assert pmu.undefined()


# --- overflow ---------------------------------------------------------------------------------------------------------------------


def test_overflow_interrupts(pmu: Monitored) -> None:
    pmu.write(CCNTR, (1 << 64) - 1000)
    pmu.write(CNTENSET, CYCLE)
    pmu.write(INTENSET, CYCLE)
    assert not pmu.alarms
    pmu.write(PMCR, 1)
    assert [time for time, _ in pmu.alarms] == [pmu.clock.time + 1000]

    def overflows(cpu: FakeCpu) -> str:
        pmu.clock.time += 1500
        pmu.alarms.pop()[1]()
        return "irq"

    assert not pmu.line()
    kicks = pmu.cpu.kicks
    pmu.run(overflows)
    assert pmu.cpu.kicks == kicks + 1, "the vCPU was made to look"
    assert pmu.line() and pmu.read(OVSSET) == CYCLE and pmu.read(CCNTR) == 500
    pmu.write(OVSCLR, CYCLE)
    assert not pmu.line()
    pmu.write(PMCR, 0)
    assert not pmu.alarms, "nor for an overflow in 500 years"


def test_an_alarm_that_is_early_is_set_again(pmu: Monitored) -> None:
    """Time outside the guest does not count, so an overflow comes later than it seemed."""
    pmu.write(CCNTR, (1 << 64) - 1000)
    pmu.write(CNTENSET, CYCLE)
    pmu.write(INTENSET, CYCLE)
    pmu.write(PMCR, 1)
    pmu.clock.time += 1000
    pmu.alarms.pop()[1]()
    pmu.run(pmu.work(10))
    assert not pmu.line()
    assert [time for time, _ in pmu.alarms] == [pmu.clock.time - 10 + 1000]


def test_clearing_the_enable_lowers_the_line(pmu: Monitored) -> None:
    pmu.write(CNTENSET, 1)
    pmu.write(PMCR, 1)
    pmu.write(OVSSET, 1)
    assert not pmu.line()
    pmu.write(INTENSET, 1)
    assert pmu.line()
    pmu.write(INTENCLR, 1)
    assert not pmu.line()
