"""The GICv2: its distributor and CPU interface as a guest sees them, and its device attributes."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest
from test_vgic_kvm import code_of
from vgic_machine import FakeVm

from tests.fake_engine import FakeCpu, open_fake
from trapline.abi import arm64
from trapline.abi.arm64_vm import KVM_ARM_SET_DEVICE_ADDR, KVM_CREATE_IRQCHIP, DeviceAddr
from trapline.abi.caps import Cap
from trapline.arm64 import gic_virtual
from trapline.arm64.regs import ICC_SRE_EL2, ID_AA64PFR0_EL1
from trapline.kvm.arm64.vgic import VgicV2

DIST, CPU = 0x800_0000, 0x801_0000
CTLR, TYPER, IIDR, IGROUPR, ISENABLER, ISPENDR, ICPENDR, ISACTIVER = 0, 4, 8, 0x80, 0x100, 0x200, 0x280, 0x300
IPRIORITYR, ITARGETSR, ICFGR, SGIR, CPENDSGIR, SPENDSGIR = 0x400, 0x800, 0xC00, 0xF00, 0xF10, 0xF20
PMR, BPR, IAR, EOIR, RPR, HPPIR, ABPR, AIAR, AEOIR, APR, GICC_IIDR, DIR = 4, 8, 0xC, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0xD0, 0xFC, 0x1000
GROUPS = arm64.VgicGroup
OTHER_GROUP, SPURIOUS = 1022, 1023
IRQ, FIQ = 1, 2


class Machine:
    """A VM with a GICv2 that is ready to run; tests play the guest."""

    def __init__(self, cpus: int = 1, irqs: int = 96) -> None:
        self.vm = FakeVm(cpus)
        self.vcpus = self.vm.vcpus
        self.gic = VgicV2(self.vm)
        self.gic.set_attr(GROUPS.NR_IRQS, 0, irqs)
        self.gic.set_attr(GROUPS.ADDR, 0, DIST)
        self.gic.set_attr(GROUPS.ADDR, 1, CPU)
        for vcpu in self.vcpus:
            self.gic.first_run(vcpu)
        self.write(DIST + CTLR, 1)
        for cpu in range(cpus):
            self.write(CPU + PMR, 0xFF, by=cpu)
            self.write(CPU + CTLR, 1, by=cpu)

    def read(self, address: int, length: int = 4, by: int = 0) -> int:
        assert self.gic.contains(address)
        return self.gic.mmio(self.vcpus[by], address, False, length)

    def write(self, address: int, value: int, length: int = 4, by: int = 0) -> None:
        assert self.gic.contains(address)
        self.gic.mmio(self.vcpus[by], address, True, length, value)

    def setup(self, intid: int, priority: int = 0xA0, targets: int = 1, by: int = 0, edge: bool = False) -> None:
        self.write(DIST + IPRIORITYR + intid, priority, 1, by)
        self.write(DIST + ITARGETSR + intid, targets, 1, by)
        if edge:
            at = DIST + ICFGR + intid // 16 * 4
            self.write(at, self.read(at) | 2 << intid % 16 * 2)
        self.write(DIST + ISENABLER + intid // 32 * 4, 1 << intid % 32, by=by)

    def drive(self, intid: int, level: bool = True) -> None:
        self.gic.inject(None, intid, level)

    def ack(self, by: int = 0) -> int:
        return self.read(CPU + IAR, by=by)

    def eoi(self, value: int, by: int = 0) -> None:
        self.write(CPU + EOIR, value, by=by)

    def lines(self, cpu: int = 0) -> int:
        self.gic.flush(self.vcpus[cpu])
        return int(gic_virtual.virtual_lines(self.vcpus[cpu].cpu.state)) & (IRQ | FIQ)


@pytest.fixture
def machine() -> Machine:
    return Machine(cpus=3)


# ---- distributor ------------------------------------------------------------------------------------------------------------------


def test_identification(machine: Machine) -> None:
    assert machine.read(DIST + TYPER) == 2 | 2 << 5
    assert machine.read(DIST + IIDR) == 0x4B00_343B
    assert machine.read(CPU + GICC_IIDR) == 0x04B2_043B
    for at in (CPU + 0x2000, DIST + 0x1000, DIST - 1):
        assert not machine.gic.contains(at)


def test_targets(machine: Machine) -> None:
    assert [machine.read(DIST + ITARGETSR, by=cpu) for cpu in range(3)] == [0x0101_0101, 0x0202_0202, 0x0404_0404]
    machine.write(DIST + ITARGETSR, 0)
    assert machine.read(DIST + ITARGETSR) == 0x0101_0101, "those of private interrupts cannot be written"
    machine.write(DIST + ITARGETSR + 32, 0xFF, 1)
    assert machine.read(DIST + ITARGETSR + 32, 1) == 7, "only processors that exist"


def test_an_spi_goes_to_the_first_of_its_targets(machine: Machine) -> None:
    machine.setup(40, targets=0b110)
    machine.drive(40)
    assert [machine.lines(cpu) for cpu in range(3)] == [0, IRQ, 0]
    assert [machine.ack(cpu) for cpu in (0, 2, 1)] == [SPURIOUS, SPURIOUS, 40]
    machine.write(DIST + ITARGETSR + 40, 0b100, 1)
    machine.eoi(40, by=1)
    assert machine.lines(1) == 0 and machine.ack(2) == 40, "the next time it goes where it was sent meanwhile"
    machine.drive(40, False)
    machine.eoi(40, by=2)
    assert machine.lines(2) == 0


def test_private_interrupts_are_banked(machine: Machine) -> None:
    machine.write(DIST + ISENABLER, 1 << 20, by=1)
    machine.gic.inject(machine.vcpus[1], 20, True)
    assert [machine.read(DIST + ISPENDR, by=cpu) for cpu in range(3)] == [0, 1 << 20, 0]
    assert (machine.ack(0), machine.ack(1)) == (SPURIOUS, 20)
    assert machine.read(DIST + ISACTIVER, by=1) == 1 << 20


# ---- software-generated interrupts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("request_", "reached"), [(0b101 << 16, (0, 2)), (1 << 24, (0, 2)), (2 << 24, (1,)), (3 << 24, ())])
def test_who_gets_an_sgi(machine: Machine, request_: int, reached: tuple[int, ...]) -> None:
    machine.write(DIST + SGIR, request_ | 3, by=1)
    for cpu in range(3):
        assert machine.ack(cpu) == (1 << 10 | 3 if cpu in reached else SPURIOUS)


def test_an_sgi_comes_once_from_each_sender(machine: Machine) -> None:
    for sender in (2, 1, 0, 2):
        machine.write(DIST + SGIR, 1 << 16 | 5, by=sender)
    assert machine.read(DIST + SPENDSGIR + 5, 1) == 0b111
    first = machine.ack()
    assert first == 5 and machine.read(DIST + SPENDSGIR + 5, 1) == 0b110
    assert machine.ack() == SPURIOUS, "the same interrupt is not taken again before it is completed"
    machine.write(DIST + SGIR, 1 << 16 | 5, by=0)
    machine.eoi(first)
    rest = []
    while (value := machine.ack()) != SPURIOUS:
        rest.append(value)
        machine.eoi(value)
    assert rest == [5, 5 | 1 << 10, 5 | 2 << 10]


def test_withdrawing_an_sgi(machine: Machine) -> None:
    for sender in (0, 1):
        machine.write(DIST + SGIR, 1 << 16 | 5, by=sender)
    assert machine.lines() == IRQ
    machine.write(DIST + CPENDSGIR + 5, 0b01, 1)
    assert machine.read(DIST + CPENDSGIR + 4) == 0b10 << 8
    assert machine.ack() == 5 | 1 << 10
    machine.eoi(5 | 1 << 10)
    assert machine.lines() == 0
    machine.write(DIST + SPENDSGIR + 4, 0b100 << 8)
    assert machine.ack() == 5 | 2 << 10
    machine.write(DIST + ISPENDR, 1 << 6)
    assert machine.read(DIST + ISPENDR) == 0, "not by the registers of other interrupts"


def test_every_sgi_arrives_in_any_order() -> None:
    """Against a set of (target, INTID, sender) that were sent and not taken."""
    seed = 20210316
    numbers = random.Random(seed)
    machine = Machine(cpus=4)
    sent: set[tuple[int, int, int]] = set()
    active: dict[int, list[int]] = {cpu: [] for cpu in range(4)}
    for step in range(3000):
        cpu = numbers.randrange(4)
        choice = numbers.random()
        if choice < 0.4:
            intid, targets = numbers.randrange(16), numbers.randrange(16)
            machine.write(DIST + SGIR, targets << 16 | intid, by=cpu)
            sent |= {(target, intid, cpu) for target in range(4) if targets >> target & 1}
        elif choice < 0.5:
            intid, senders = numbers.randrange(16), numbers.randrange(16)
            machine.write(DIST + CPENDSGIR + intid, senders, 1, by=cpu)
            sent -= {(cpu, intid, sender) for sender in range(4) if senders >> sender & 1}
        elif active[cpu] and choice < 0.7:
            machine.eoi(active[cpu].pop(), by=cpu)
        else:
            value = machine.ack(cpu)
            waiting = {intid for target, intid, _ in sent if target == cpu}
            if value == SPURIOUS:
                assert not waiting or active[cpu], f"seed {seed} step {step}: vCPU {cpu} should see {waiting}"
            else:
                key = cpu, value & 15, value >> 10
                assert key in sent, f"seed {seed} step {step}: {key}"
                sent.remove(key)
                active[cpu].append(value)


# ---- CPU interface ----------------------------------------------------------------------------------------------------------------


def test_priorities(machine: Machine) -> None:
    for intid, priority in ((40, 0xA0), (41, 0x40), (42, 0x80)):
        machine.setup(intid, priority)
        machine.drive(intid)
    assert machine.read(CPU + HPPIR) == 41 and machine.read(CPU + RPR) == 0xFF
    assert machine.ack() == 41 and machine.read(CPU + RPR) == 0x40
    assert machine.lines() == 0 and machine.read(CPU + HPPIR) == 42
    machine.drive(41, False)
    machine.eoi(41)
    machine.write(CPU + PMR, 0x80)
    assert machine.ack() == SPURIOUS, "a priority equal to the mask is masked"
    machine.write(CPU + PMR, 0x88)
    assert machine.ack() == 42
    assert machine.read(CPU + APR) == 1 << 16
    machine.setup(43, 0x20)
    machine.drive(43)
    assert machine.lines() == IRQ and machine.ack() == 43, "more urgent: it pre-empts"
    assert machine.read(CPU + APR) == 1 << 16 | 1 << 4


def test_binary_point(machine: Machine) -> None:
    assert machine.read(CPU + BPR) == 2, "all implemented bits take part"
    machine.write(CPU + BPR, 7)
    for intid, priority in ((40, 0x80), (41, 0x10)):
        machine.setup(intid, priority)
    machine.drive(40)
    assert machine.ack() == 40
    machine.drive(41)
    assert machine.lines() == 0, "nothing pre-empts"
    machine.write(CPU + BPR, 0)
    assert machine.read(CPU + BPR) == 2, "less than the minimum is the minimum"
    machine.drive(40, False)
    machine.eoi(40)
    machine.setup(42, 0x08)
    assert machine.ack() == 41
    machine.drive(42)
    assert machine.lines() == IRQ


def test_level_and_edge(machine: Machine) -> None:
    machine.setup(40)
    machine.setup(41, edge=True)
    machine.drive(40)
    machine.drive(40, False)
    machine.drive(41)
    machine.drive(41, False)
    assert machine.ack() == 41
    machine.drive(41)
    machine.eoi(41)
    assert machine.ack() == 41, "an edge while it was active comes afterwards"
    machine.eoi(41)
    machine.drive(40)
    assert machine.ack() == 40
    machine.eoi(40)
    assert machine.ack() == 40, "its line is still high"


def test_completion_in_two_steps(machine: Machine) -> None:
    machine.write(CPU + CTLR, 1 | 1 << 9)
    machine.setup(40)
    machine.drive(40)
    assert machine.ack() == 40
    machine.eoi(40)
    assert machine.read(CPU + RPR) == 0xFF and machine.lines() == 0
    assert machine.read(DIST + ISACTIVER + 4) == 1 << 8
    machine.write(CPU + DIR, 40)
    assert machine.read(DIST + ISACTIVER + 4) == 0 and machine.ack() == 40


def test_more_interrupts_than_list_registers(machine: Machine) -> None:
    for n in range(12):
        machine.setup(40 + n, priority=0xF0 - 8 * n)
        machine.drive(40 + n)
    taken = [machine.ack()]
    assert taken == [51] and machine.ack() == SPURIOUS
    for n in range(11, 0, -1):
        machine.drive(40 + n, False)
        machine.eoi(40 + n)
        taken.append(machine.ack())
    assert taken == list(range(51, 39, -1))


def test_twelve_active_at_once(machine: Machine) -> None:
    for n in range(12):
        machine.setup(40 + n, priority=0xF0 - 8 * n)
        machine.drive(40 + n)
        assert machine.ack() == 40 + n
        machine.drive(40 + n, False)
    for n in range(11, -1, -1):
        machine.eoi(40 + n)
    assert machine.read(DIST + ISACTIVER + 4) == 0 and machine.read(CPU + RPR) == 0xFF


def test_disabled_interfaces_signal_nothing(machine: Machine) -> None:
    machine.setup(40)
    machine.drive(40)
    machine.write(CPU + CTLR, 0)
    assert machine.lines() == 0 and machine.ack() == SPURIOUS and not machine.gic.pending(machine.vcpus[0])
    machine.write(CPU + CTLR, 1)
    assert machine.lines() == IRQ and machine.gic.pending(machine.vcpus[0])
    machine.write(DIST + CTLR, 0)
    assert machine.lines() == 0


# ---- groups -----------------------------------------------------------------------------------------------------------------------


def test_groups(machine: Machine) -> None:
    machine.setup(40)
    machine.write(DIST + IGROUPR + 4, 1 << 8)
    machine.drive(40)
    assert machine.lines() == 0, "group 1 is off"
    machine.write(CPU + CTLR, 3)
    assert machine.lines() == IRQ
    assert machine.ack() == machine.read(CPU + HPPIR) == OTHER_GROUP
    assert machine.read(CPU + AIAR) == 40
    machine.drive(40, False)
    machine.write(CPU + AEOIR, 40)
    machine.drive(40)
    machine.write(CPU + CTLR, 7)
    assert machine.ack() == 40, "AckCtl"


def test_group_0_as_fiq(machine: Machine) -> None:
    machine.setup(40)
    machine.setup(41, priority=0x80)
    machine.write(DIST + IGROUPR + 4, 1 << 9)
    machine.write(CPU + CTLR, 3)
    machine.drive(40)
    assert machine.lines() == IRQ
    machine.write(CPU + CTLR, 0b1011)
    assert machine.lines() == FIQ
    machine.drive(41)
    assert machine.lines() == IRQ, "the more urgent one"
    assert machine.read(CPU + AIAR) == 41
    machine.drive(41, False)
    machine.write(CPU + AEOIR, 41)
    assert machine.read(CPU + AIAR) == SPURIOUS and machine.ack() == 40
    machine.eoi(40)
    assert machine.read(CPU + RPR) == 0xFF


# ---- attributes -------------------------------------------------------------------------------------------------------------------


def of(cpu: int, offset: int) -> int:
    return cpu << 32 | offset


def test_addresses() -> None:
    gic = VgicV2(FakeVm(1))
    put: Callable[[int, int], None] = lambda attr, base: gic.set_attr(GROUPS.ADDR, attr, base)  # noqa: E731
    assert gic.get_attr(GROUPS.ADDR, 0) == gic.get_attr(GROUPS.ADDR, 1) == (1 << 64) - 1
    for base, code in ((0x800, errno.EINVAL), ((1 << 64) - 0x1000, errno.EINVAL), ((1 << 40) - 0x1000, errno.E2BIG)):
        assert code_of(lambda: put(1, base)) == code  # noqa: B023
    put(0, DIST)
    assert code_of(lambda: put(0, DIST + 0x1000)) == errno.EEXIST
    for attr in (2, 3, 4, 5):
        assert code_of(lambda: put(attr, DIST)) == errno.ENXIO  # noqa: B023
    assert code_of(lambda: gic.first_run(gic.vm.vcpus[0])) == errno.ENXIO
    put(1, DIST)
    assert code_of(lambda: gic.first_run(gic.vm.vcpus[0])) == errno.EINVAL, "they overlap"


def test_registers_of_user_space(machine: Machine) -> None:
    gic = machine.gic
    assert gic.get_attr(GROUPS.CPU_REGS, of(1, PMR)) == 0x1F, "the five implemented bits"
    gic.set_attr(GROUPS.CPU_REGS, of(1, PMR), 0x11)
    assert machine.read(CPU + PMR, by=1) == 0x88
    for offset, value in ((CTLR, 0x201), (BPR, 5), (ABPR, 6), (APR, 0x10)):
        gic.set_attr(GROUPS.CPU_REGS, of(2, offset), value)
        assert gic.get_attr(GROUPS.CPU_REGS, of(2, offset)) == machine.read(CPU + offset, by=2) == value
    gic.set_attr(GROUPS.DIST_REGS, of(1, ISPENDR), 1 << 20 | 1 << 3)
    assert machine.read(DIST + ISPENDR, by=1) == 1 << 20 | 1 << 3
    assert machine.read(DIST + SPENDSGIR, by=1) >> 24 == 0b10, "an SGI that is restored comes from the vCPU itself"
    gic.set_attr(GROUPS.DIST_REGS, of(1, ICPENDR), 1 << 20)
    assert machine.read(DIST + ISPENDR, by=1) == 1 << 20 | 1 << 3
    gic.set_attr(GROUPS.DIST_REGS, of(1, ISPENDR), 0)
    assert machine.read(DIST + ISPENDR, by=1) == 0


def test_groups_are_restored_by_who_knows_them(machine: Machine) -> None:
    gic = machine.gic
    gic.set_attr(GROUPS.DIST_REGS, IGROUPR + 4, 0xFF)
    assert gic.get_attr(GROUPS.DIST_REGS, IGROUPR + 4) == 0
    for value in (0x4B00_143B, 0x4B00_443B, 0x4B00_243A):
        assert code_of(lambda: gic.set_attr(GROUPS.DIST_REGS, IIDR, value)) == errno.EINVAL  # noqa: B023
    gic.set_attr(GROUPS.DIST_REGS, IIDR, 0x4B00_243B)
    gic.set_attr(GROUPS.DIST_REGS, IGROUPR + 4, 0xFF)
    assert gic.get_attr(GROUPS.DIST_REGS, IGROUPR + 4) == 0xFF and machine.read(DIST + IIDR) == 0x4B00_243B


def test_attribute_errors(machine: Machine) -> None:
    gic = machine.gic
    for group, attr in ((GROUPS.DIST_REGS, 0xFFC), (GROUPS.CPU_REGS, IAR), (GROUPS.CPU_REGS, EOIR), (GROUPS.CPU_REGS, 0x1000)):
        assert code_of(lambda: gic.has_attr(group, attr)) == errno.ENXIO  # noqa: B023
        assert gic.get_attr(group, attr) == 0, "Linux lets what is no register read as zero"
    for group in (GROUPS.DIST_REGS, GROUPS.CPU_REGS):
        assert code_of(lambda: gic.get_attr(group, of(3, 0))) == errno.EINVAL  # noqa: B023
    for group, attr in ((GROUPS.REDIST_REGS, 0), (GROUPS.CPU_SYSREGS, 0), (GROUPS.LEVEL_INFO, 0), (GROUPS.CTRL, 3), (99, 0)):
        assert code_of(lambda: gic.has_attr(group, attr)) == errno.ENXIO  # noqa: B023
    machine.vm.running = True
    assert code_of(lambda: gic.get_attr(GROUPS.DIST_REGS, 0)) == errno.EBUSY


def test_registers_move_to_another_machine(machine: Machine) -> None:
    machine.setup(40, 0x40, edge=True, targets=4)
    machine.setup(41, 0x80)
    machine.drive(40)
    machine.drive(41)
    assert machine.ack() == 41
    other = VgicV2(FakeVm(3))
    other.set_attr(GROUPS.NR_IRQS, 0, 96)
    other.set_attr(GROUPS.ADDR, 0, DIST)
    other.set_attr(GROUPS.ADDR, 1, CPU)
    offsets = [IIDR, *(base + step for base in (IGROUPR, ISENABLER, ISPENDR, ISACTIVER) for step in (0, 4, 8))]
    offsets += [*range(IPRIORITYR, IPRIORITYR + 96, 4), *range(ITARGETSR, ITARGETSR + 96, 4), *range(ICFGR, ICFGR + 24, 4), CTLR]
    moved = [(GROUPS.DIST_REGS, of(cpu, offset)) for cpu in range(3) for offset in offsets]
    moved += [(GROUPS.CPU_REGS, of(cpu, offset)) for cpu in range(3) for offset in (CTLR, PMR, BPR, ABPR, APR)]
    for group, attr in moved:
        other.set_attr(group, attr, machine.gic.get_attr(group, attr))
    for group, attr in moved:
        assert other.get_attr(group, attr) == machine.gic.get_attr(group, attr), f"{group!r} {attr:#x}"
    vcpus = other.vm.vcpus
    assert other.mmio(vcpus[2], CPU + IAR, False, 4) == 40
    other.mmio(vcpus[0], CPU + EOIR, True, 4, 41)
    assert other.mmio(vcpus[0], DIST + ISACTIVER + 4, False, 4) == 1 << 8


# ---- in a VM ----------------------------------------------------------------------------------------------------------------------


def test_creation() -> None:
    system, _ = open_fake()
    vm = system.create_vm()
    gic = vm.create_device(arm64.DeviceType.ARM_VGIC_V2)
    for kind in (arm64.DeviceType.ARM_VGIC_V2, arm64.DeviceType.ARM_VGIC_V3):
        assert code_of(lambda: vm.create_device(kind)) == errno.EEXIST  # noqa: B023
    vm.create_device(arm64.DeviceType.ARM_VGIC_ITS)  # which has nothing to do there
    assert code_of(lambda: vm.signal_msi(0, 0, devid=0)) == errno.ENODEV
    assert vm.check_extension(Cap.MAX_VCPUS) == 8
    assert code_of(lambda: vm.create_vcpu(id=8)) == errno.EINVAL
    assert gic.has_attr(GROUPS.ADDR, 0) and not gic.has_attr(GROUPS.ADDR, 2)
    crowded = system.create_vm()
    for _ in range(9):
        crowded.create_vcpu()
    assert code_of(lambda: crowded.create_device(arm64.DeviceType.ARM_VGIC_V2)) == errno.E2BIG
    crowded.create_device(arm64.DeviceType.ARM_VGIC_V3)


def test_the_way_of_the_first_years() -> None:
    """KVM_CREATE_IRQCHIP and KVM_ARM_SET_DEVICE_ADDR, and nobody ever says INIT."""
    system, engine = open_fake()
    vm = system.create_vm()

    def place(kind: int, base: int) -> None:
        vm.backend.ioctl(vm.file, KVM_ARM_SET_DEVICE_ADDR, DeviceAddr(kind, base))

    assert vm.check_extension(Cap.ARM_SET_DEVICE_ADDR) == 1
    assert code_of(lambda: place(0, DIST)) == errno.ENODEV
    vm.backend.ioctl(vm.file, KVM_CREATE_IRQCHIP, 0)
    assert code_of(lambda: vm.backend.ioctl(vm.file, KVM_CREATE_IRQCHIP, 0)) == errno.EEXIST
    cpu = vm.create_vcpu()
    assert code_of(cpu.run) == errno.ENXIO
    for kind, base, code in ((1 << 16, DIST, errno.ENODEV), (2, DIST, errno.ENODEV), (0, 0x10, errno.EINVAL), (1, 1 << 40, errno.E2BIG)):
        assert code_of(lambda: place(kind, base)) == code  # noqa: B023
    place(0, DIST)
    place(1, CPU)
    assert code_of(lambda: place(0, DIST)) == errno.EEXIST
    vm.set_irq(40, 1)

    def look(fake: FakeCpu) -> str:
        assert not fake.state.sysreg[ICC_SRE_EL2.slot] & ICC_SRE_EL2.Enable.mask
        cpu.kick()
        return "irq"

    engine.cpus[0].script = [look]
    cpu.run()
    assert not ID_AA64PFR0_EL1(cpu.get_one_reg(arm64.reg_sysreg(3, 0, 0, 4, 0))).GIC


def test_a_gicv3_has_no_such_addresses() -> None:
    system, _ = open_fake()
    vm = system.create_vm()
    vm.create_device(arm64.DeviceType.ARM_VGIC_V3)
    address = DeviceAddr(0, DIST)
    assert code_of(lambda: vm.backend.ioctl(vm.file, KVM_ARM_SET_DEVICE_ADDR, address)) == errno.ENODEV
