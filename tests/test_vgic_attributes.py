"""The GIC's device attributes: values, errors, and moving a GIC's state to another machine."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from vgic_machine import (
    ADDR,
    CPU_SYSREGS,
    CTLR,
    CTRL,
    DIST,
    DIST_REGS,
    ICACTIVER,
    ICENABLER,
    ICFGR,
    ICPENDR,
    IGROUPR,
    IPRIORITYR,
    IROUTER,
    ISACTIVER,
    ISENABLER,
    ISPENDR,
    LEVEL_INFO,
    NR_IRQS,
    REDIST,
    REDIST_REGS,
    SPURIOUS,
    FakeVcpu,
    FakeVm,
    GicMachine,
)

from trapline.arm64.regs.gic_cpu import (
    ICC_AP0R,
    ICC_AP1R,
    ICC_BPR0_EL1,
    ICC_BPR1_EL1,
    ICC_CTLR_EL1,
    ICC_IAR1_EL1,
    ICC_IGRPEN0_EL1,
    ICC_IGRPEN1_EL1,
    ICC_PMR_EL1,
    ICC_SRE_EL1,
)
from trapline.errors import KvmError
from trapline.kvm.arm64.vgic import VgicV3

DIST_TYPE, REDIST_TYPE, REGION_TYPE = 2, 3, 5
SGI_FRAME = 0x1_0000
UNSET = (1 << 64) - 1


def code_of(call: Callable[..., object], *arguments: int) -> int | None:
    with pytest.raises(KvmError) as failure:
        call(*arguments)
    return failure.value.errno


def region(count: int, base: int, index: int, flags: int = 0) -> int:
    return count << 52 | base | flags << 12 | index


def of(affinity: int, register: int) -> int:
    return affinity << 32 | register


@pytest.fixture
def gic() -> VgicV3:
    """Four vCPUs, nothing configured."""
    return VgicV3(FakeVm(4))


@pytest.fixture
def machine() -> GicMachine:
    return GicMachine(cpus=2, irqs=128, quiet=True)


# ---- addresses ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DIST_TYPE, REDIST_TYPE])
def test_frame_addresses(gic: VgicV3, kind: int) -> None:
    assert gic.attr_size(ADDR, kind) == 8 and gic.get_attr(ADDR, kind) == UNSET
    assert code_of(gic.set_attr, ADDR, kind, DIST + 0x1000) == errno.EINVAL
    assert code_of(gic.set_attr, ADDR, kind, 1 << 40) == errno.E2BIG
    gic.set_attr(ADDR, kind, DIST)
    assert code_of(gic.set_attr, ADDR, kind, DIST) == errno.EEXIST
    assert gic.get_attr(ADDR, kind) == DIST


def test_redistributor_regions(gic: VgicV3) -> None:
    def add(value: int) -> None:
        gic.set_attr(ADDR, REGION_TYPE, value)

    assert code_of(add, region(0, 0x20_0000, 0)) == errno.EINVAL
    assert code_of(add, region(2, 0x20_0000, 0, flags=1)) == errno.EINVAL
    assert code_of(add, region(2, 0x20_0000, 1)) == errno.EINVAL
    add(region(2, 0x20_0000, 0))
    assert code_of(add, region(2, 0x20_0000, 1)) == errno.EINVAL, "overlap"
    assert code_of(add, region(1, 0x23_0000, 1)) == errno.EINVAL, "overlap"
    assert code_of(add, region(1, 0x24_0000, 0)) == errno.EINVAL, "this index is taken"
    assert code_of(add, region(1, 0x24_0000, 2)) == errno.EINVAL, "an index was left out"
    assert code_of(add, region(1, 1 << 40, 1)) == errno.E2BIG
    assert code_of(add, region(2, (1 << 40) - 0x3_0000, 1)) == errno.E2BIG
    add(region(1, 0x24_0000, 1))
    assert gic.get_attr(ADDR, REGION_TYPE, 1) == region(1, 0x24_0000, 1)
    assert gic.get_attr(ADDR, REGION_TYPE, 0) == region(2, 0x20_0000, 0)
    assert code_of(gic.get_attr, ADDR, REGION_TYPE, 2) == errno.ENOENT
    assert code_of(gic.set_attr, ADDR, REDIST_TYPE, 0x40_0000) == errno.EINVAL
    assert gic.get_attr(ADDR, REDIST_TYPE) == UNSET


def test_counted_region_after_uncounted_one(gic: VgicV3) -> None:
    gic.set_attr(ADDR, REDIST_TYPE, REDIST)
    assert code_of(gic.set_attr, ADDR, REGION_TYPE, region(1, 0x100_0000, 0)) == errno.EINVAL
    assert code_of(gic.get_attr, ADDR, REGION_TYPE, 0) == errno.ENOENT


def test_vcpus_fill_regions_in_order(gic: VgicV3) -> None:
    gic.set_attr(ADDR, DIST_TYPE, DIST)
    gic.set_attr(ADDR, REGION_TYPE, region(1, 0x20_0000, 0))
    gic.set_attr(ADDR, REGION_TYPE, region(2, 0x40_0000, 1))
    assert code_of(gic.first_run, gic.vm.vcpus[0]) == errno.ENXIO, "the fourth has no place"
    gic.set_attr(ADDR, REGION_TYPE, region(3, 0x44_0000, 2))
    gic.set_attr(CTRL, 0, 0)
    gic.first_run(gic.vm.vcpus[0])
    bases = (0x20_0000, 0x40_0000, 0x42_0000, 0x44_0000)
    typers = [gic.mmio(gic.vm.vcpus[0], base + 8, False, 8) for base in bases]
    assert [typer >> 32 for typer in typers] == [0, 1, 2, 3]
    assert [typer >> 4 & 1 for typer in typers] == [1, 0, 0, 1], "regions that touch are one series"
    assert not gic.contains(0x46_0000)


def test_overlap_with_the_distributor(gic: VgicV3) -> None:
    gic.set_attr(ADDR, DIST_TYPE, 0x7_0000)
    assert code_of(gic.set_attr, ADDR, REDIST_TYPE, 0) == errno.EINVAL
    other = VgicV3(FakeVm(4))
    other.set_attr(ADDR, REDIST_TYPE, 0)
    other.set_attr(ADDR, DIST_TYPE, 0x7_0000)
    other.set_attr(CTRL, 0, 0)
    assert code_of(other.first_run, other.vm.vcpus[0]) == errno.EINVAL


def test_too_little_room_below_the_end_of_memory(gic: VgicV3) -> None:
    gic.set_attr(ADDR, DIST_TYPE, DIST)
    gic.set_attr(ADDR, REDIST_TYPE, (1 << 40) - 3 * 0x2_0000)
    gic.set_attr(CTRL, 0, 0)
    assert code_of(gic.first_run, gic.vm.vcpus[0]) == errno.EINVAL


# ---- the rest of the configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 32, 63, 65, 100, 1020, 1023, 1024, 1056])
def test_bad_numbers_of_interrupts(gic: VgicV3, count: int) -> None:
    assert code_of(gic.set_attr, NR_IRQS, 0, count) == errno.EINVAL


@pytest.mark.parametrize("count", [64, 96, 992])
def test_number_of_interrupts(gic: VgicV3, count: int) -> None:
    gic.set_attr(NR_IRQS, 0, count)
    assert gic.attr_size(NR_IRQS, 0) == 4 and gic.get_attr(NR_IRQS, 0) == count
    assert code_of(gic.set_attr, NR_IRQS, 0, count) == errno.EBUSY
    gic.set_attr(CTRL, 0, 0)
    gic.inject(None, count - 1, True)
    assert code_of(lambda: gic.inject(None, count, True)) == errno.EINVAL


def test_default_number_of_interrupts(gic: VgicV3) -> None:
    gic.set_attr(CTRL, 0, 0)
    gic.set_attr(CTRL, 0, 0)
    assert gic.get_attr(NR_IRQS, 0) == 256
    assert code_of(gic.set_attr, NR_IRQS, 0, 64) == errno.EBUSY


def test_init_without_vcpus() -> None:
    assert code_of(VgicV3(FakeVm(0)).set_attr, CTRL, 0, 0) == errno.ENODEV


def test_first_run_before_configuration(gic: VgicV3) -> None:
    vcpu = gic.vm.vcpus[0]
    assert code_of(lambda: gic.first_run(vcpu)) == errno.ENXIO
    gic.set_attr(ADDR, DIST_TYPE, DIST)
    assert code_of(lambda: gic.first_run(vcpu)) == errno.ENXIO
    gic.set_attr(ADDR, REDIST_TYPE, REDIST)
    assert code_of(lambda: gic.first_run(vcpu)) == errno.EBUSY
    gic.set_attr(CTRL, 0, 0)
    gic.first_run(vcpu)


def test_vcpus_created_after_the_gic() -> None:
    vm = FakeVm(0)
    gic = VgicV3(vm)
    gic.set_attr(ADDR, REDIST_TYPE, REDIST)
    for index in range(3):
        vm.vcpus.append(FakeVcpu(index))
        gic.add_vcpu(vm.vcpus[-1])
    assert gic.contains(REDIST + 3 * 0x2_0000 - 1) and not gic.contains(REDIST + 3 * 0x2_0000)
    with pytest.raises(KvmError):
        gic.add_vcpu(FakeVcpu(7))


def test_unknown_attributes(gic: VgicV3) -> None:
    gic.set_attr(CTRL, 0, 0)
    for group, attr in ((ADDR, 0), (ADDR, 1), (ADDR, 4), (ADDR, 6), (2, 0), (CTRL, 1), (8, 0), (9, 0), (99, 0)):
        for call in (gic.attr_size, gic.has_attr, gic.get_attr, lambda g, a: gic.set_attr(g, a, 0)):
            assert code_of(call, group, attr) == errno.ENXIO
    assert code_of(gic.get_attr, CTRL, 0) == errno.ENXIO and gic.attr_size(CTRL, 0) == 0
    for group, attr in ((ADDR, 2), (ADDR, 3), (ADDR, 5), (NR_IRQS, 0), (CTRL, 0)):
        gic.has_attr(group, attr)


def test_running_vcpus_are_not_disturbed(machine: GicMachine) -> None:
    machine.vm.running = True
    pmr = of(0, ICC_PMR_EL1.encoding)
    for group, attr in ((CTRL, 0), (DIST_REGS, 0), (REDIST_REGS, 0), (CPU_SYSREGS, pmr), (LEVEL_INFO, 32), (ADDR, 2)):
        assert code_of(machine.gic.set_attr, group, attr, 0) == errno.EBUSY


# ---- registers ------------------------------------------------------------------------------------------------------------------


def test_registers_before_init(gic: VgicV3) -> None:
    for group, attr in ((DIST_REGS, CTLR), (REDIST_REGS, 0), (CPU_SYSREGS, ICC_PMR_EL1.encoding), (LEVEL_INFO, 0)):
        gic.has_attr(group, attr)
        assert code_of(gic.get_attr, group, attr) == errno.EBUSY
        assert code_of(gic.set_attr, group, attr, 0) == errno.EBUSY


def test_unknown_registers(machine: GicMachine) -> None:
    gic = machine.gic
    cases = ((DIST_REGS, 0x14), (DIST_REGS, ISENABLER + 2), (DIST_REGS, 0x1_0000), (DIST_REGS, ISENABLER + 16),
             (REDIST_REGS, 0x40), (REDIST_REGS, 0x2_0000), (REDIST_REGS, SGI_FRAME + ISENABLER + 4),
             (CPU_SYSREGS, 0), (CPU_SYSREGS, ICC_IAR1_EL1.encoding))  # fmt: skip
    for group, attr in cases:
        assert code_of(gic.has_attr, group, attr) == errno.ENXIO, (group, hex(attr))
        if group == CPU_SYSREGS:
            assert code_of(gic.get_attr, group, attr) == code_of(lambda g, a: gic.set_attr(g, a, 0), group, attr) == errno.ENOENT
        else:  # Linux lets what is no register read as zero, and be written
            gic.set_attr(group, attr, 0xFFFF_FFFF)
            assert gic.get_attr(group, attr) == 0


def test_unknown_vcpus(machine: GicMachine) -> None:
    gic = machine.gic
    gic.has_attr(DIST_REGS, of(9, CTLR))
    for group, attr in ((REDIST_REGS, 0), (CPU_SYSREGS, ICC_PMR_EL1.encoding), (LEVEL_INFO, 0)):
        for call in (gic.has_attr, gic.get_attr, lambda g, a: gic.set_attr(g, a, 0)):
            assert code_of(call, group, of(9, attr)) == errno.EINVAL


def test_implementer_can_be_restored(machine: GicMachine) -> None:
    gic = machine.gic
    value = gic.get_attr(DIST_REGS, 8)
    gic.set_attr(DIST_REGS, 8, value & ~0xF000 | 0x2000)
    assert gic.get_attr(DIST_REGS, 8) == value & ~0xF000 | 0x2000 == gic.get_attr(REDIST_REGS, 4)
    assert code_of(gic.set_attr, DIST_REGS, 8, value ^ 1) == errno.EINVAL
    assert code_of(gic.set_attr, DIST_REGS, 8, value | 0xF000) == errno.EINVAL
    machine.write(DIST + 8, 0)
    assert gic.get_attr(DIST_REGS, 8) == value & ~0xF000 | 0x2000


def test_pending_is_the_latch(machine: GicMachine) -> None:
    gic = machine.gic
    machine.drive(40, True)
    machine.set_bit(ISPENDR, 41)
    assert gic.get_attr(DIST_REGS, ISPENDR + 4) == 1 << 9 and gic.get_attr(DIST_REGS, ICPENDR + 4) == 0
    gic.set_attr(DIST_REGS, ICPENDR + 4, 0xFFFF_FFFF)
    assert gic.get_attr(DIST_REGS, ISPENDR + 4) == 1 << 9
    gic.set_attr(DIST_REGS, ISPENDR + 4, 1 << 10)
    assert gic.get_attr(DIST_REGS, ISPENDR + 4) == 1 << 10, "zeros clear"
    assert machine.read(DIST + ISPENDR + 4) == 1 << 8 | 1 << 10


def test_status_registers_are_written_plainly(machine: GicMachine) -> None:
    for group in (DIST_REGS, REDIST_REGS):
        machine.gic.set_attr(group, 0x10, 0xF)
        assert machine.gic.get_attr(group, 0x10) == 0xF
    machine.write(DIST + 0x10, 0)
    assert machine.gic.get_attr(DIST_REGS, 0x10) == 0xF


def test_level_info(machine: GicMachine) -> None:
    gic = machine.gic
    machine.drive(33, True)
    machine.drive(27, True, cpu=1)
    assert gic.attr_size(LEVEL_INFO, 32) == 4
    assert gic.get_attr(LEVEL_INFO, 32) == 2 and gic.get_attr(LEVEL_INFO, of(1, 0)) == 1 << 27
    gic.set_attr(LEVEL_INFO, 32, 1 << 5)
    assert gic.get_attr(LEVEL_INFO, 32) == 1 << 5 and machine.read(DIST + ISPENDR + 4) == 1 << 5
    assert gic.get_attr(LEVEL_INFO, 992) == 0
    for attr in (1, 33, 1 << 10):
        assert code_of(gic.get_attr, LEVEL_INFO, attr) == code_of(gic.set_attr, LEVEL_INFO, attr, 0) == errno.EINVAL


SYSREGS = {
    ICC_PMR_EL1: 0xA8, ICC_BPR0_EL1: 4, ICC_BPR1_EL1: 5, ICC_IGRPEN0_EL1: 1, ICC_IGRPEN1_EL1: 1, ICC_SRE_EL1: 7,
    ICC_AP0R[0]: 0x10, ICC_AP1R[0]: 0x8000_0001,
}  # fmt: skip


@pytest.mark.parametrize("register", SYSREGS, ids=lambda register: register.__name__)
def test_cpu_interface_registers(machine: GicMachine, register: type) -> None:
    gic, attr = machine.gic, of(1, register.encoding)  # type: ignore[attr-defined]
    gic.has_attr(CPU_SYSREGS, attr)
    assert gic.attr_size(CPU_SYSREGS, attr) == 8
    gic.set_attr(CPU_SYSREGS, attr, SYSREGS[register])
    assert gic.get_attr(CPU_SYSREGS, attr) == SYSREGS[register]
    if register is not ICC_SRE_EL1:
        assert gic.get_attr(CPU_SYSREGS, attr & 0xFFFF) != SYSREGS[register], "the other vCPU has its own"


def test_cpu_interface_values_that_are_refused(machine: GicMachine) -> None:
    gic = machine.gic
    control = gic.get_attr(CPU_SYSREGS, ICC_CTLR_EL1.encoding)
    gic.set_attr(CPU_SYSREGS, ICC_CTLR_EL1.encoding, control | 3)
    assert gic.get_attr(CPU_SYSREGS, ICC_CTLR_EL1.encoding) == control | 3
    for value in (control ^ 1 << 15, control ^ 1 << 14, control | 7 << 8, control | 1 << 11):
        assert code_of(gic.set_attr, CPU_SYSREGS, ICC_CTLR_EL1.encoding, value) == errno.EINVAL
    assert code_of(gic.set_attr, CPU_SYSREGS, ICC_SRE_EL1.encoding, 6) == errno.EINVAL
    for register in (*ICC_AP0R[1:], *ICC_AP1R[1:]):
        gic.has_attr(CPU_SYSREGS, register.encoding)
        assert code_of(gic.set_attr, CPU_SYSREGS, register.encoding, 0) == errno.EINVAL
        assert code_of(gic.get_attr, CPU_SYSREGS, register.encoding) == errno.EINVAL


def move(source: GicMachine, target: GicMachine) -> None:
    """Save everything that user space can save, and restore it."""
    blocks = ((IGROUPR, 1), (ISENABLER, 1), (ISPENDR, 1), (ISACTIVER, 1), (IPRIORITYR, 8), (ICFGR, 2))
    words = [of(0, offset + n) for offset, bits in blocks for n in range(4 * bits, 16 * bits, 4)]
    words += [IROUTER + 8 * intid + part for intid in range(32, 128) for part in (0, 4)]
    attributes = [(DIST_REGS, attr) for attr in [*words, CTLR]]
    for cpu in range(2):
        private = [SGI_FRAME + offset + n for offset, bits in blocks for n in range(0, 4 * bits, 4)]
        attributes += [(REDIST_REGS, of(cpu, offset)) for offset in private]
        attributes += [(CPU_SYSREGS, of(cpu, register.encoding)) for register in (*SYSREGS, ICC_CTLR_EL1)]
        attributes += [(LEVEL_INFO, of(cpu, 0))]
    attributes += [(LEVEL_INFO, intid) for intid in (32, 64, 96)]
    for group, attr in attributes:
        target.gic.set_attr(group, attr, source.gic.get_attr(group, attr))


def test_a_gic_moves_with_its_interrupts() -> None:
    source, target = GicMachine(cpus=2), GicMachine(cpus=2, quiet=True)
    source.setup(40, 0x80)
    source.drive(40, True)
    assert source.ack(0) == 40
    for n in range(50, 58):
        source.setup(n, 0xA0 - (n & 8), edge=True, cpu=1)
        source.pulse(n)
    assert source.ack(1) == 56
    source.sgi(3, targets=1)
    source.setup(60, 0x20, edge=True)
    source.set_bit(ICENABLER, 60)
    source.pulse(60)
    for vcpu in source.vcpus:
        source.gic.flush(vcpu)
    move(source, target)
    for machine in (source, target):
        assert machine.icc(0, "RPR") == 0x80 and machine.bit(ISACTIVER, 40) == 1
        assert machine.ack(0) == 3
        machine.eoi(3)
        machine.eoi(40)
        assert machine.ack(0) == 40
        machine.set_bit(ISENABLER, 60)
        assert machine.ack(0) == 60
        machine.eoi(56, 1)
        assert [machine.ack(1) for _ in range(2)] == [57, SPURIOUS]
        machine.eoi(57, 1)
        machine.set_bit(ICACTIVER, 56)
        assert machine.ack(1) == 50
