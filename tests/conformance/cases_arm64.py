"""What a guest believes its processor to be, who serves its hypercalls, its counters, PMU and stolen time; and exits for registers."""

from __future__ import annotations

from errno import EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENXIO
from mmap import mmap

from tests.conformance.cases_irq import gic
from tests.conformance.cases_system import same
from tests.conformance.frame import Cases, Trial
from tests.conformance.guest import DATA, NOWHERE
from trapline.abi import arm64
from trapline.abi.arm64 import DeviceType, Feature, PmuAttr, VcpuGroup, VgicAddr, VgicCtrl, VgicGroup, reg_sysreg
from trapline.abi.arm64_vm import (
    KVM_ARM_GET_REG_WRITABLE_MASKS,
    KVM_ARM_SET_COUNTER_OFFSET,
    SMCCC_FILTER,
    PmuEventFilter,
    SmcccAction,
    SmcccFilter,
    VmGroup,
)
from trapline.abi.caps import Cap
from trapline.abi.device import KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR
from trapline.abi.extensions import EXIT_SYSREG
from trapline.abi.vcpu import KVM_GET_ONE_REG, KVM_RUN, KVM_SET_ONE_REG
from trapline.abi.vm import KVM_ENABLE_CAP

case = Cases(__name__)
MASKS, OFFSET = KVM_ARM_GET_REG_WRITABLE_MASKS, KVM_ARM_SET_COUNTER_OFFSET
SET, GET, HAS = KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR
MIDR, REVIDR, AIDR = reg_sysreg(3, 0, 0, 0, 0), reg_sysreg(3, 0, 0, 0, 6), reg_sysreg(3, 1, 0, 0, 7)
PFR0, DFR0, ISAR0, MMFR0 = (reg_sysreg(3, 0, 0, crm, 0) for crm in (4, 5, 6, 7))
UNALLOCATED = reg_sysreg(3, 0, 0, 7, 7)


def ran(t: Trial, *features: int) -> Trial:
    """A VM that has run."""
    file = t.add_vcpu(0, init=False) if features else t.vcpu
    if features:
        t.init_vcpu(file, *features)
    t.program(("store", NOWHERE, 1), on=file)
    t.run(on=file)
    return t


# --- identification ---------------------------------------------------------------------------------------------------------------


def masks(t: Trial, size: int = 192, **fields: int) -> list[int]:
    """The writable masks."""
    address = t.put(bytes(8 * size))
    t(MASKS, **{"addr": address, **fields})
    data = t._keep[-1].raw
    return [int.from_bytes(data[8 * n : 8 * n + 8], "little") for n in range(size)]


def reserved(t: Trial, word: int) -> None:
    """One reserved word is not zero."""
    values = [0] * 13
    values[word] = 1
    t(MASKS, addr=t.put(bytes(1536)), reserved=values)


HAS_MASKS, NAMED = Cap.ARM_SUPPORTED_REG_MASK_RANGES, Cap.ARM_WRITABLE_IMP_ID_REGS
case(MASKS, 0, "the feature identification range", lambda t: same(sum(mask != 0 for mask in masks(t)) > 5, True), needs=HAS_MASKS)
case(MASKS, 0, "MIDR_EL1 is not writable unless asked for", lambda t: same(masks(t)[0], 0), needs=NAMED)
case(MASKS, EINVAL, "an unknown range", lambda t: masks(t, range=1), needs=HAS_MASKS)
case(MASKS, EFAULT, "nowhere to write", lambda t: masks(t, addr=t.nowhere), needs=HAS_MASKS)
for word in (0, 6, 12):
    case(MASKS, EINVAL, f"reserved word {word} is not zero", lambda t, word=word: reserved(t, word), needs=HAS_MASKS)


def implementation(t: Trial) -> Trial:
    """MIDR_EL1 and its like are writable."""
    t.enable(NAMED)
    return t


def renamed(t: Trial, reg: int) -> None:
    """Set a register that names the implementation, and read it."""
    t.set_reg(reg, 0x410F_D034)
    same(t.get_reg(reg), 0x410F_D034)


case(KVM_ENABLE_CAP, 0, "writable implementation registers", implementation, needs=NAMED)
case(KVM_ENABLE_CAP, EINVAL, "writable implementation registers after a vCPU", lambda t: [t.vcpu, implementation(t)], needs=NAMED)
case(MASKS, 0, "MIDR_EL1 has 32 bits", lambda t: same(masks(implementation(t))[0], 0xFFFF_FFFF), needs=NAMED)
case(MASKS, 0, "AIDR_EL1 has 64", lambda t: same(masks(implementation(t))[64 + 7], (1 << 64) - 1), needs=NAMED)
for name, reg in (("MIDR_EL1", MIDR), ("REVIDR_EL1", REVIDR), ("AIDR_EL1", AIDR)):
    case(KVM_SET_ONE_REG, 0, f"{name} as it is", lambda t, reg=reg: t.set_reg(reg, t.get_reg(reg)))
    case(KVM_SET_ONE_REG, EINVAL, f"{name} otherwise, not asked for", lambda t, reg=reg: t.set_reg(reg, t.get_reg(reg) ^ 1))
    case(KVM_SET_ONE_REG, 0, f"{name} otherwise", lambda t, reg=reg: renamed(implementation(t), reg), needs=NAMED)
    case(KVM_SET_ONE_REG, EBUSY, f"{name} otherwise, after a run", lambda t, reg=reg: renamed(ran(implementation(t)), reg), needs=NAMED)
case(KVM_SET_ONE_REG, EINVAL, "MIDR_EL1 of more than 32 bits", lambda t: implementation(t).set_reg(MIDR, 1 << 32), needs=NAMED)


def seen_by_all(t: Trial) -> None:
    """ID registers are the VM's."""
    second = t.add_vcpu(1) if t.vcpu else -1
    t.set_reg(ISAR0, 0)
    same(t.get_reg(ISAR0, on=second), 0)


case(KVM_SET_ONE_REG, 0, "ID_AA64ISAR0_EL1 without any feature", lambda t: t.set_reg(ISAR0, 0), needs=HAS_MASKS)
case(KVM_SET_ONE_REG, 0, "an ID register of one vCPU is that of all", seen_by_all, needs=HAS_MASKS)
case(KVM_SET_ONE_REG, EINVAL, "a feature that does not exist", lambda t: t.set_reg(ISAR0, t.get_reg(ISAR0) | 0xF << 24))
case(KVM_SET_ONE_REG, EINVAL, "SVE without it", lambda t: t.set_reg(PFR0, t.get_reg(PFR0) ^ 1 << 32))
case(KVM_SET_ONE_REG, EINVAL, "more physical addresses", lambda t: t.set_reg(MMFR0, t.get_reg(MMFR0) | 0xF))
case(KVM_SET_ONE_REG, EINVAL, "debug before Armv8", lambda t: t.set_reg(DFR0, t.get_reg(DFR0) & ~0xF))
case(KVM_SET_ONE_REG, EINVAL, "an unallocated ID register", lambda t: t.set_reg(UNALLOCATED, 1))
case(KVM_SET_ONE_REG, 0, "an unallocated ID register to zero", lambda t: t.set_reg(UNALLOCATED, 0))
FIXED = (EINVAL, "before Linux 6.7 ID registers could not be set at all")
case(KVM_SET_ONE_REG, EBUSY, "an ID register after a run", lambda t: ran(t).set_reg(ISAR0, 0), differs=FIXED)
case(KVM_SET_ONE_REG, 0, "an ID register after a run, as it is", lambda t: ran(t).set_reg(ISAR0, t.get_reg(ISAR0)))

# --- hypercalls -------------------------------------------------------------------------------------------------------------------


def smccc(t: Trial, base: int, count: int, action: int, pad: int = 0) -> Trial:
    """Add a range to the SMCCC filter."""
    wanted = SmcccFilter(base, count, action)
    wanted.pad[14] = pad
    t.set_attr(t.vm, VmGroup.SMCCC_CTRL, SMCCC_FILTER, int.from_bytes(bytes(wanted), "little"), 24)
    return t


FREE, DENY = 0xC600_0000, SmcccAction.DENY
OLD = (EINVAL, "before Linux 6.4 VMs had no attributes")
case(HAS, 0, "the SMCCC filter", lambda t: t.has_attr(t.vm, 0, 0), differs=OLD)
case(HAS, ENXIO, "another attribute of hypercalls", lambda t: t.has_attr(t.vm, 0, 1), differs=OLD)
case(HAS, ENXIO, "another group of VMs", lambda t: t.has_attr(t.vm, 1, 0), differs=OLD)
for action in SmcccAction:
    case(SET, 0, f"filter: {action.name}", lambda t, action=action: smccc(t, FREE, 1, action), differs=OLD)
case(SET, EINVAL, "filter: an unknown action", lambda t: smccc(t, FREE, 1, 3))
case(SET, EINVAL, "filter: no functions", lambda t: smccc(t, FREE, 0, DENY))
case(SET, EINVAL, "filter: beyond the last function", lambda t: smccc(t, 0xFFFF_FFFF, 2, DENY))
case(SET, EINVAL, "filter: padding is not zero", lambda t: smccc(t, FREE, 1, DENY, pad=1))
case(SET, 0, "filter: the last function", lambda t: smccc(t, 0xFFFF_FFFF, 1, DENY), differs=OLD)
for base, count in ((0x8000_0000, 1), (0x8000_FFFF, 1), (0x7FFF_FFFF, 2), (0xC000_0001, 1), (0xBFFF_0000, 0x1_0001)):
    case(SET, EEXIST, f"filter: {count:#x} from {base:#x}, reserved", lambda t, a=base, n=count: smccc(t, a, n, DENY), differs=OLD)
case(SET, EEXIST, "filter: the same again", lambda t: smccc(smccc(t, FREE, 4, DENY), FREE, 4, DENY), differs=OLD)
case(SET, EEXIST, "filter: an overlap", lambda t: smccc(smccc(t, FREE, 4, DENY), FREE + 3, 4, DENY), differs=OLD)
case(SET, 0, "filter: the neighbour", lambda t: smccc(smccc(t, FREE, 4, DENY), FREE + 4, 4, DENY), differs=OLD)
case(SET, EBUSY, "filter: after a run", lambda t: smccc(ran(t), FREE, 1, DENY), differs=OLD)
case(SET, EFAULT, "filter: nowhere to read", lambda t: t.set_attr(t.vm, 0, 0), differs=OLD)

BITMAPS = (("standard", arm64.REG_STD_BMAP, 1), ("hypervisor", arm64.REG_STD_HYP_BMAP, 1), ("vendor", arm64.REG_VENDOR_HYP_BMAP, 3))
for name, reg, all_services in BITMAPS:
    case(KVM_GET_ONE_REG, 0, f"all {name} services are on", lambda t, reg=reg, most=all_services: same(t.get_reg(reg), most))
    case(KVM_SET_ONE_REG, 0, f"no {name} services", lambda t, reg=reg: [t.set_reg(reg, 0), same(t.get_reg(reg), 0)])
    case(KVM_SET_ONE_REG, EINVAL, f"a {name} service that is not there", lambda t, reg=reg: t.set_reg(reg, 1 << 40))
    case(KVM_SET_ONE_REG, EBUSY, f"no {name} services, after a run", lambda t, reg=reg: ran(t).set_reg(reg, 0))
    case(KVM_SET_ONE_REG, 0, f"{name} services as they are, after a run", lambda t, reg=reg, most=all_services: ran(t).set_reg(reg, most))
case(KVM_GET_ONE_REG, ENOENT, "a bitmap beyond the last", lambda t: t.get_reg(arm64.REG_STD_BMAP + 9))
for number, reg in enumerate((arm64.REG_WORKAROUND_1, arm64.REG_WORKAROUND_2, arm64.REG_WORKAROUND_3), 1):
    case(KVM_SET_ONE_REG, 0, f"workaround {number} as it is", lambda t, reg=reg: t.set_reg(reg, t.get_reg(reg)))
    case(KVM_SET_ONE_REG, EINVAL, f"workaround {number}: an unknown bit", lambda t, reg=reg: t.set_reg(reg, 1 << 8))
    case(KVM_SET_ONE_REG, EINVAL, f"workaround {number}: an unknown level", lambda t, reg=reg: t.set_reg(reg, 0xF))

# --- counters ---------------------------------------------------------------------------------------------------------------------

COUNT, PHYSICAL_COUNT, PHYSICAL_COMPARE = arm64.REG_TIMER_CNT, arm64.REG_PTIMER_CNT, arm64.REG_PTIMER_CVAL
TICKS_IN_A_MINUTE = 1_000_000_000 * 60


def near(value: int, expected: int) -> None:
    """A counter reads what it should, and a little more for the time that passed."""
    assert 0 <= value - expected < TICKS_IN_A_MINUTE


case(OFFSET, 0, "none", lambda t: t(OFFSET, counter_offset=0), needs=Cap.COUNTER_OFFSET)
case(OFFSET, EINVAL, "the reserved word is not zero", lambda t: t(OFFSET, counter_offset=0, reserved=1), needs=Cap.COUNTER_OFFSET)


@case.of(OFFSET, 0, "both counters lag behind", needs=Cap.COUNTER_OFFSET)
def _lag(t: Trial):
    real = t.get_reg(PHYSICAL_COUNT)
    t(OFFSET, counter_offset=real - 5000)
    near(t.get_reg(COUNT), 5000)
    near(t.get_reg(PHYSICAL_COUNT), 5000)


@case.of(KVM_SET_ONE_REG, 0, "a counter after an offset was set: ignored", needs=Cap.COUNTER_OFFSET)
def _ignored(t: Trial):
    real = t.get_reg(PHYSICAL_COUNT)
    t(OFFSET, counter_offset=real)
    t.set_reg(COUNT, 1 << 60)
    near(t.get_reg(COUNT), 0)


@case.of(KVM_SET_ONE_REG, 0, "the virtual counter")
def _counter(t: Trial):
    t.set_reg(COUNT, 1 << 50)
    near(t.get_reg(COUNT), 1 << 50)


@case.of(KVM_SET_ONE_REG, 0, "the physical timer's compare value, with an offset", needs=Cap.COUNTER_OFFSET)
def _compare(t: Trial):
    t(OFFSET, counter_offset=1 << 40)
    t.set_reg(PHYSICAL_COMPARE, 12345)
    same(t.get_reg(PHYSICAL_COMPARE), 12345)


# --- stolen time ------------------------------------------------------------------------------------------------------------------

PVTIME, STEAL = VcpuGroup.PVTIME_CTRL, Cap.STEAL_TIME


def stolen(t: Trial, address: int) -> Trial:
    """Say where stolen time is, with memory at DATA."""
    t.region()
    t.set_attr(t.vcpu, PVTIME, 0, address, 8)
    return t


case(HAS, 0, "stolen time", lambda t: t.has_attr(t.vcpu, PVTIME, 0), needs=STEAL)
case(HAS, ENXIO, "stolen time: another attribute", lambda t: t.has_attr(t.vcpu, PVTIME, 1), needs=STEAL)
case(SET, 0, "stolen time in memory", lambda t: stolen(t, DATA), needs=STEAL)
case(SET, EINVAL, "stolen time not aligned", lambda t: stolen(t, DATA + 32), needs=STEAL)
case(SET, EINVAL, "stolen time outside memory", lambda t: stolen(t, 1 << 30), needs=STEAL)
case(SET, EEXIST, "stolen time twice", lambda t: [stolen(t, DATA), t.set_attr(t.vcpu, PVTIME, 0, DATA + 64, 8)], needs=STEAL)
case(SET, EFAULT, "stolen time: nowhere to read", lambda t: t.set_attr(t.vcpu, PVTIME, 0), needs=STEAL)
case(SET, ENXIO, "stolen time: writing another attribute", lambda t: t.set_attr(t.vcpu, PVTIME, 1, DATA, 8), needs=STEAL)
case(GET, 0, "where stolen time is", lambda t: same(stolen(t, DATA).get_attr(t.vcpu, PVTIME, 0, 8), DATA), needs=STEAL)

# --- the PMU ----------------------------------------------------------------------------------------------------------------------

PMU, HAS_PMU = VcpuGroup.PMU_V3_CTRL, Cap.ARM_PMU_V3
PMCR, CYCLES = reg_sysreg(3, 3, 9, 12, 0), reg_sysreg(3, 3, 9, 13, 0)
PPI, SPI = 23, 40


def monitored(t: Trial, number: int = 0) -> int:
    """A vCPU with a PMU."""
    file = t.add_vcpu(number, init=False)
    t.init_vcpu(file, Feature.PSCI_0_2, Feature.PMU_V3)
    return file


def interrupting(t: Trial, count: int = 1, ready: bool = True) -> list[int]:
    """vCPUs with PMUs and an interrupt controller."""
    files = [monitored(t, number) for number in range(count)]
    gic = t.add_device(DeviceType.ARM_VGIC_V3)
    if ready:
        t.set_attr(gic, VgicGroup.ADDR, VgicAddr.V3_DIST, 0x800_0000, 8)
        t.set_attr(gic, VgicGroup.ADDR, VgicAddr.V3_REDIST, 0x80A_0000, 8)
        t.set_attr(gic, VgicGroup.CTRL, VgicCtrl.INIT, 0, 0)
    return files


def irq(t: Trial, *numbers: int) -> list[int]:
    """Give as many vCPUs these interrupts."""
    files = interrupting(t, len(numbers))
    for file, number in zip(files, numbers):
        t.set_attr(file, PMU, PmuAttr.IRQ, number)
    return files


def init_pmu(t: Trial, file: int) -> int:
    """KVM_ARM_VCPU_PMU_V3_INIT."""
    t.set_attr(file, PMU, PmuAttr.INIT)
    return file


def events(t: Trial, file: int, base: int, count: int, action: int) -> None:
    """Filter events."""
    t.set_attr(file, PMU, PmuAttr.FILTER, int.from_bytes(bytes(PmuEventFilter(base, count, action)), "little"), 8)


def counters(t: Trial, number: int) -> None:
    """Say how many event counters there are."""
    t.set_attr(monitored(t), PMU, PmuAttr.SET_NR_COUNTERS, number)


FEW = (ENXIO, "before Linux 6.16 userspace could not say how many counters there are")
for attr in PmuAttr:
    case(HAS, 0, f"PMU: {attr.name}", lambda t, attr=attr: t.has_attr(monitored(t), PMU, attr), needs=HAS_PMU, differs=FEW)
    case(HAS, ENXIO, f"PMU: {attr.name} without a PMU", lambda t, attr=attr: t.has_attr(t.vcpu, PMU, attr))
case(HAS, ENXIO, "PMU: an unknown attribute", lambda t: t.has_attr(monitored(t), PMU, 9), needs=HAS_PMU)
case(SET, ENODEV, "PMU: without a PMU", lambda t: t.set_attr(t.vcpu, PMU, PmuAttr.IRQ, PPI))
case(GET, ENODEV, "PMU: without a PMU", lambda t: [gic(t), t.get_attr(t.vcpu, PMU, PmuAttr.IRQ)])
case(GET, EINVAL, "PMU: without a PMU and a controller", lambda t: t.get_attr(t.vcpu, PMU, PmuAttr.IRQ))
case(GET, ENXIO, "PMU: what cannot be read", lambda t: t.get_attr(t.vcpu, PMU, PmuAttr.INIT))
case(SET, EINVAL, "PMU: an interrupt without a controller", lambda t: t.set_attr(monitored(t), PMU, PmuAttr.IRQ, PPI), needs=HAS_PMU)
case(SET, 0, "PMU: a PPI for all", lambda t: irq(t, PPI, PPI), needs=HAS_PMU)
case(SET, 0, "PMU: an SPI for each", lambda t: irq(t, SPI, SPI + 1), needs=HAS_PMU)
case(SET, EINVAL, "PMU: different PPIs", lambda t: irq(t, PPI, PPI + 1), needs=HAS_PMU)
case(SET, EINVAL, "PMU: one SPI for two", lambda t: irq(t, SPI, SPI), needs=HAS_PMU)
for number in (0, 15, 1020, 0x7FFF_FFFF):
    case(SET, EINVAL, f"PMU: interrupt {number}", lambda t, number=number: irq(t, number), needs=HAS_PMU)
case(SET, EBUSY, "PMU: an interrupt again", lambda t: t.set_attr(irq(t, PPI)[0], PMU, PmuAttr.IRQ, PPI), needs=HAS_PMU)
case(GET, 0, "PMU: its interrupt", lambda t: same(t.get_attr(irq(t, PPI)[0], PMU, PmuAttr.IRQ), PPI), needs=HAS_PMU)
case(GET, ENXIO, "PMU: no interrupt yet", lambda t: t.get_attr(interrupting(t)[0], PMU, PmuAttr.IRQ), needs=HAS_PMU)
case(GET, EINVAL, "PMU: interrupt without a controller", lambda t: t.get_attr(monitored(t), PMU, PmuAttr.IRQ), needs=HAS_PMU)
case(SET, 0, "PMU: init without a controller", lambda t: init_pmu(t, monitored(t)), needs=HAS_PMU)
case(SET, 0, "PMU: init with an interrupt", lambda t: init_pmu(t, irq(t, PPI)[0]), needs=HAS_PMU)
case(SET, ENXIO, "PMU: init without its interrupt", lambda t: init_pmu(t, interrupting(t)[0]), needs=HAS_PMU)
case(SET, ENODEV, "PMU: init before the controller's", lambda t: init_pmu(t, interrupting(t, ready=False)[0]), needs=HAS_PMU)
case(SET, EBUSY, "PMU: init twice", lambda t: init_pmu(t, init_pmu(t, monitored(t))), needs=HAS_PMU)
case(SET, 0, "PMU: events allowed", lambda t: events(t, monitored(t), 0x11, 1, 0), needs=HAS_PMU)
case(SET, 0, "PMU: events denied", lambda t: events(t, monitored(t), 0, 0x11, 1), needs=HAS_PMU)
case(SET, EINVAL, "PMU: an unknown filter action", lambda t: events(t, monitored(t), 0, 1, 2), needs=HAS_PMU)
case(SET, EINVAL, "PMU: events beyond the last", lambda t: events(t, monitored(t), 0xFFFF, 2, 0), needs=HAS_PMU)
case(SET, EINVAL, "PMU: more counters than there are", lambda t: counters(t, 32), needs=HAS_PMU, differs=FEW)
case(SET, 0, "PMU: fewer counters", lambda t: counters(t, 1), needs=HAS_PMU, differs=FEW)
case(SET, ENXIO, "PMU: another PMU that is not there", lambda t: t.set_attr(monitored(t), PMU, PmuAttr.SET_PMU, 0x7FFF), needs=HAS_PMU)
case(KVM_RUN, EINVAL, "a PMU that was not initialised", lambda t: ran(t, Feature.PSCI_0_2, Feature.PMU_V3), needs=HAS_PMU)
case(KVM_GET_ONE_REG, ENOENT, "PMCR_EL0 without a PMU", lambda t: t.get_reg(PMCR))
case(KVM_SET_ONE_REG, ENOENT, "PMCCNTR_EL0 without a PMU", lambda t: t.set_reg(CYCLES, 1))


def cycles(t: Trial) -> None:
    """The cycle counter stands still outside the guest."""
    file = monitored(t)
    t.set_reg(CYCLES, 0x1234_5678_9ABC, on=file)
    same(t.get_reg(CYCLES, on=file), 0x1234_5678_9ABC)


case(KVM_SET_ONE_REG, 0, "PMCCNTR_EL0", cycles, needs=HAS_PMU)

# --- exits for system registers, which no Linux has -------------------------------------------------------------------------------

SYSREGS = Cap.TRAPLINE_SYSREG_TO_USER
case(KVM_ENABLE_CAP, 0, "exits for system registers", lambda t: t.enable(SYSREGS), needs=SYSREGS)
case(KVM_ENABLE_CAP, 0, "exits for system registers, after a run", lambda t: ran(t).enable(SYSREGS), needs=SYSREGS)
for position in range(4):
    case(
        KVM_ENABLE_CAP, EINVAL, f"exits for system registers: argument {position} is not zero",
        lambda t, n=position: t.enable(SYSREGS, *[int(k == n) for k in range(4)]), needs=SYSREGS,
    )  # fmt: skip
case(KVM_ENABLE_CAP, EINVAL, "exits for system registers: a flag", lambda t: t.enable(SYSREGS, flags=1), needs=SYSREGS)

READ_IMPLEMENTATION_DEFINED = 0xD538_F401
"""mrs x1, S3_0_C15_C4_0"""


def reads_a_register(t: Trial, switched_on: bool = True) -> None:
    """Run a guest that reads an implementation-defined register."""
    if switched_on:
        t.enable(SYSREGS)
    t.program()
    code = next(kept for kept in reversed(t._keep) if isinstance(kept, mmap))
    code[:4] = READ_IMPLEMENTATION_DEFINED.to_bytes(4, "little")
    exit = t.run()
    same(exit.reason, EXIT_SYSREG)


case(KVM_RUN, 0, "an access to an implementation-defined register exits", reads_a_register, needs=SYSREGS)


@case.of(KVM_RUN, EINVAL, "an access to a register with an invalid answer", needs=SYSREGS)
def _invalid(t: Trial):
    reads_a_register(t)
    t.runs[t.vcpu][39] = 2
    yield
    t.run()


@case.of(KVM_GET_ONE_REG, 0, "the register that an answered access read", needs=SYSREGS)
def _answered(t: Trial):
    reads_a_register(t)
    run = t.runs[t.vcpu]
    run[39], run[40:48], run[1] = 1, (0x1234).to_bytes(8, "little"), 1
    try:
        t.run()
    except OSError:
        pass  # interrupted, as asked
    same(t.get_reg(arm64.reg_x(1)), 0x1234)
