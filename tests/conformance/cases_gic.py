"""Interrupt controllers: making them, placing them, and their attributes."""

from __future__ import annotations

from errno import E2BIG, EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOENT, ENXIO

from tests.conformance.cases_irq import (
    ADDR,
    CPU_INTERFACE,
    CPU_REGS,
    CPU_SYSREGS,
    CTRL,
    DIST_REGS,
    DISTRIBUTOR,
    DOORBELL,
    GET,
    HAS,
    ICC_PMR,
    IPA_END,
    ITS,
    ITS_BASE,
    ITS_REGS,
    LEVEL_INFO,
    NR_IRQS,
    REDIST_REGS,
    REDISTRIBUTORS,
    SET,
    V2,
    V3,
    about_gic,
    about_its,
    its,
    make,
    need,
    same,
)
from tests.conformance.frame import Cases, Trial
from trapline.abi.arm64 import VgicAddr, VgicCtrl
from trapline.abi.arm64_vm import KVM_ARM_SET_DEVICE_ADDR, KVM_CREATE_IRQCHIP
from trapline.abi.caps import Cap
from trapline.abi.system import KVM_CHECK_EXTENSION
from trapline.abi.vcpu import KVM_RUN
from trapline.abi.vm import CREATE_DEVICE_TEST, KVM_CREATE_DEVICE, KVM_CREATE_VCPU
from trapline.errors import NotSupported

case = Cases(__name__)
with_gic, with_its = about_gic(case), about_its(case)


def irqchip(t: Trial) -> int:
    """KVM_CREATE_IRQCHIP."""
    need(t, V2)
    return t(KVM_CREATE_IRQCHIP)


# --- creating -----------------------------------------------------------------------------------------------------------------------

for version, name in ((V3, "GICv3"), (V2, "GICv2")):
    case(KVM_CREATE_DEVICE, 0, name, lambda t, version=version: make(t, version))
    with_gic(KVM_CREATE_DEVICE, EEXIST, f"{name}: a second GICv3", lambda t, _: make(t, V3), version)
    with_gic(KVM_CREATE_DEVICE, EEXIST, f"{name}: a second GICv2", lambda t, _: make(t, V2), version)
    with_gic(KVM_CREATE_IRQCHIP, EEXIST, f"beside a {name}", lambda t, _: irqchip(t), version)
    with_gic(KVM_CREATE_VCPU, EBUSY, f"after a {name} was initialised", lambda t, _: t.add_vcpu(1), version)
case(KVM_CREATE_DEVICE, 0, "an ITS before its GIC", lambda t: make(t, ITS))
case(KVM_CREATE_IRQCHIP, 0, "a GICv2", lambda t: irqchip(t))
case(KVM_CREATE_DEVICE, 0, "only a look", lambda t: [need(t, V3), t(KVM_CREATE_DEVICE, type=V3, flags=CREATE_DEVICE_TEST)])
with_gic(KVM_CREATE_VCPU, EINVAL, "the ninth beside a GICv2", lambda t, _: t.add_vcpu(8), V2, ready=False)
with_gic(KVM_CHECK_EXTENSION, 0, "a GICv2 serves eight", lambda t, _: same(t.cap(Cap.MAX_VCPUS), 8), V2)
with_its(KVM_CREATE_DEVICE, 0, "a second ITS", lambda t, _: make(t, ITS))
with_its(KVM_CHECK_EXTENSION, 0, "messages need a device number", lambda t, _: same(t.cap(Cap.MSI_DEVID), 1))
with_gic(KVM_CHECK_EXTENSION, 0, "messages need no device number without ITS", lambda t, _: same(t.cap(Cap.MSI_DEVID), 0))
case(KVM_CHECK_EXTENSION, EINVAL, "MSI_DEVID without a VM", lambda t: t.cap(Cap.MSI_DEVID, on=t.system))


@case.of(KVM_CREATE_DEVICE, EBUSY, "after a vCPU has run")
def _late(t: Trial):
    t.program(("store", DOORBELL, 1))
    t.run()
    yield
    make(t, V3)


@case.of(KVM_CREATE_DEVICE, E2BIG, "a GICv2 for nine vCPUs")
def _crowded(t: Trial):
    if t.cap(Cap.MAX_VCPUS) < 9:
        raise NotSupported("this host has a GICv2, which serves eight")
    for number in range(9):
        t.add_vcpu(number)
    yield
    make(t, V2)


def first_run(errno: int, cause: str, kind: int, *addresses: tuple[int, int], ready: bool = True) -> None:
    """A case about the first KVM_RUN with an interrupt controller at these addresses."""

    @case.of(KVM_RUN, errno, cause)
    def _(t: Trial):
        t.program(("store", DOORBELL, 1))
        device = make(t, kind)
        for attr, base in addresses:
            t.set_attr(device, ADDR, attr, base, 8)
        if ready:
            t.set_attr(device, CTRL, VgicCtrl.INIT)
        yield
        t.run()


AT2 = ((VgicAddr.V2_DIST, DISTRIBUTOR), (VgicAddr.V2_CPU, CPU_INTERFACE))
AT3 = ((VgicAddr.V3_DIST, DISTRIBUTOR), (VgicAddr.V3_REDIST, REDISTRIBUTORS))
first_run(0, "GICv3 complete", V3, *AT3)
first_run(ENXIO, "GICv3 without addresses", V3)
first_run(ENXIO, "GICv3 without distributor", V3, AT3[1])
first_run(ENXIO, "GICv3 without redistributors", V3, AT3[0])
first_run(EBUSY, "GICv3 not initialised", V3, *AT3, ready=False)
first_run(EINVAL, "GICv3 whose frames overlap", V3, AT3[1], (VgicAddr.V3_DIST, REDISTRIBUTORS + 0x1_0000))
first_run(0, "GICv2 complete", V2, *AT2)
first_run(0, "GICv2 not initialised", V2, *AT2, ready=False)
first_run(ENXIO, "GICv2 without addresses", V2)
first_run(ENXIO, "GICv2 without CPU interface", V2, AT2[0])
first_run(EINVAL, "GICv2 whose frames overlap", V2, AT2[0], (VgicAddr.V2_CPU, DISTRIBUTOR - 0x1000))


# --- addresses ----------------------------------------------------------------------------------------------------------------------


def device_addr(t: Trial, id: int, address: int) -> int:
    """KVM_ARM_SET_DEVICE_ADDR."""
    return t(KVM_ARM_SET_DEVICE_ADDR, id=id, addr=address)


def legacy(errno: int, cause: str, id: int, address: int) -> None:
    """A case about the older way to place a GICv2."""

    @case.of(KVM_ARM_SET_DEVICE_ADDR, errno, cause)
    def _(t: Trial):
        irqchip(t)
        device_addr(t, VgicAddr.V2_CPU, CPU_INTERFACE)
        yield
        device_addr(t, id, address)


case(KVM_ARM_SET_DEVICE_ADDR, ENODEV, "no interrupt controller", lambda t: device_addr(t, 0, DISTRIBUTOR))
with_gic(KVM_ARM_SET_DEVICE_ADDR, ENODEV, "a GICv3", lambda t, _: device_addr(t, 0, DISTRIBUTOR))
legacy(0, "the distributor", 0, DISTRIBUTOR)
legacy(EEXIST, "the CPU interface again", 1, CPU_INTERFACE)
legacy(ENODEV, "an unknown kind of address", 2, DISTRIBUTOR)
legacy(ENODEV, "an unknown device", 1 << 16, DISTRIBUTOR)
legacy(EINVAL, "not aligned", 0, DISTRIBUTOR + 0x800)
legacy(E2BIG, "beyond the IPA size", 0, IPA_END)


def place(errno: int, cause: str, kind: int, attr: int, base: int, before: tuple[tuple[int, int], ...] = ()) -> None:
    """A case about an address of a new device, after others were set."""

    @case.of(SET, errno, cause)
    def _(t: Trial):
        assert t.vcpu
        if kind == ITS:
            make(t, V3)
        device = make(t, kind)
        for earlier, at in before:
            t.set_attr(device, ADDR, earlier, at, 8)
        yield
        t.set_attr(device, ADDR, attr, base, 8)


def region(index: int, base: int, count: int, flags: int = 0) -> int:
    """The value of a redistributor region."""
    return count << 52 | base | flags << 12 | index


DIST, REDIST, REGION = VgicAddr.V3_DIST, VgicAddr.V3_REDIST, VgicAddr.V3_REDIST_REGION
for attr, name in ((DIST, "distributor"), (REDIST, "redistributors")):
    place(0, f"GICv3 {name}", V3, attr, DISTRIBUTOR)
    place(EINVAL, f"GICv3 {name} not aligned to 64 KiB", V3, attr, DISTRIBUTOR + 0x1000)
    place(E2BIG, f"GICv3 {name} beyond the IPA size", V3, attr, IPA_END)
    place(EEXIST, f"GICv3 {name} twice", V3, attr, DISTRIBUTOR + 0x10_0000, ((attr, DISTRIBUTOR),))
place(EINVAL, "GICv3 distributor that wraps", V3, DIST, (1 << 64) - 0x1_0000)
place(ENXIO, "GICv3 with an address of a GICv2", V3, VgicAddr.V2_DIST, DISTRIBUTOR)
place(ENXIO, "GICv3 with an address of an ITS", V3, VgicAddr.ITS, ITS_BASE)
place(ENXIO, "GICv3 with an unknown address", V3, 6, DISTRIBUTOR)
place(EINVAL, "redistributors over the distributor", V3, REDIST, DISTRIBUTOR - 0x1_0000, ((DIST, DISTRIBUTOR),))
place(0, "a region", V3, REGION, region(0, REDISTRIBUTORS, 4))
place(0, "a second region", V3, REGION, region(1, 0x900_0000, 1), ((REGION, region(0, REDISTRIBUTORS, 4)),))
place(EINVAL, "a region for nobody", V3, REGION, region(0, REDISTRIBUTORS, 0))
place(EINVAL, "a region with flags", V3, REGION, region(0, REDISTRIBUTORS, 1, flags=1))
place(EINVAL, "a first region with index 1", V3, REGION, region(1, REDISTRIBUTORS, 1))
place(EINVAL, "a region after the other kind", V3, REGION, region(0, REDISTRIBUTORS, 1), ((REDIST, REDISTRIBUTORS),))
place(EINVAL, "the other kind after a region", V3, REDIST, 0x900_0000, ((REGION, region(0, REDISTRIBUTORS, 1)),))
place(EINVAL, "regions that overlap", V3, REGION, region(1, REDISTRIBUTORS, 1), ((REGION, region(0, REDISTRIBUTORS, 1)),))
place(E2BIG, "a region that ends beyond the IPA size", V3, REGION, region(0, IPA_END - 0x2_0000, 2))
for attr, name in ((VgicAddr.V2_DIST, "distributor"), (VgicAddr.V2_CPU, "CPU interface")):
    place(0, f"GICv2 {name}", V2, attr, DISTRIBUTOR)
    place(0, f"GICv2 {name} aligned to 4 KiB", V2, attr, DISTRIBUTOR + 0x1000)
    place(EINVAL, f"GICv2 {name} not aligned to 4 KiB", V2, attr, DISTRIBUTOR + 0x800)
    place(E2BIG, f"GICv2 {name} beyond the IPA size", V2, attr, IPA_END)
    place(EEXIST, f"GICv2 {name} twice", V2, attr, DISTRIBUTOR + 0x10_0000, ((attr, DISTRIBUTOR),))
place(E2BIG, "GICv2 CPU interface that ends beyond the IPA size", V2, VgicAddr.V2_CPU, IPA_END - 0x1000)
place(ENXIO, "GICv2 with an address of a GICv3", V2, DIST, DISTRIBUTOR)
place(0, "ITS", ITS, VgicAddr.ITS, ITS_BASE)
place(EEXIST, "ITS twice", ITS, VgicAddr.ITS, ITS_BASE, ((VgicAddr.ITS, ITS_BASE),))
place(EINVAL, "ITS not aligned to 64 KiB", ITS, VgicAddr.ITS, ITS_BASE + 0x1000)
place(E2BIG, "ITS that ends beyond the IPA size", ITS, VgicAddr.ITS, IPA_END - 0x1_0000)
place(ENODEV, "ITS with an address of a GICv3", ITS, DIST, DISTRIBUTOR)


@case.of(GET, ENOENT, "a region that is not there")
def _no_region(t: Trial):
    device = make(t, V3)
    yield
    t.get_attr(device, ADDR, REGION, 8)


# --- numbers of interrupts, registers, levels ---------------------------------------------------------------------------------------

for count, code in ((64, 0), (96, 0), (992, 0), (32, EINVAL), (63, EINVAL), (65, EINVAL), (1000, EINVAL), (1024, EINVAL), (0, EINVAL)):
    for version, name in ((V3, "GICv3"), (V2, "GICv2")):
        with_gic(SET, code, f"{name}: {count} interrupts", lambda t, d, count=count: t.set_attr(d, NR_IRQS, 0, count), version, ready=False)
with_gic(SET, EBUSY, "how many interrupts, too late", lambda t, d: t.set_attr(d, NR_IRQS, 0, 64))
with_gic(SET, EFAULT, "how many interrupts, nowhere", lambda t, d: t.set_attr(d, NR_IRQS, 0), ready=False)
with_gic(SET, 0, "initialise again", lambda t, d: t.set_attr(d, CTRL, VgicCtrl.INIT))
with_gic(SET, ENXIO, "save pending tables before initialising", lambda t, d: t.set_attr(d, CTRL, VgicCtrl.SAVE_PENDING_TABLES), ready=False)
with_gic(SET, 0, "save pending tables", lambda t, d: t.set_attr(d, CTRL, VgicCtrl.SAVE_PENDING_TABLES))
with_gic(SET, ENXIO, "a command of an ITS to a GICv3", lambda t, d: t.set_attr(d, CTRL, VgicCtrl.ITS_SAVE_TABLES))
with_gic(SET, ENXIO, "an unknown group", lambda t, d: t.set_attr(d, 99, 0, 0))
with_gic(GET, ENXIO, "a command cannot be read", lambda t, d: t.get_attr(d, CTRL, VgicCtrl.INIT))

ABSENT = 5 << 32
"""The vCPU 5, or that with affinity 5, as attributes of registers name it."""

for group, name in ((DIST_REGS, "distributor"), (REDIST_REGS, "redistributor")):
    with_gic(GET, 0, f"a register of the {name}", lambda t, d, group=group: t.get_attr(d, group, 0))
    with_gic(GET, EBUSY, f"a register of the {name}, not initialised", lambda t, d, group=group: t.get_attr(d, group, 0), ready=False)
    with_gic(GET, 0, f"no register of the {name}: zero", lambda t, d, group=group: t.get_attr(d, group, 0xF000))
    with_gic(HAS, 0, f"a {name} has a register", lambda t, d, group=group: t.has_attr(d, group, 0))
    with_gic(HAS, ENXIO, f"a {name} has not this register", lambda t, d, group=group: t.has_attr(d, group, 0xF000))
with_gic(GET, 0, "a register of the second frame", lambda t, d: t.get_attr(d, REDIST_REGS, 0x1_0100))
with_gic(GET, EINVAL, "a redistributor of no vCPU", lambda t, d: t.get_attr(d, REDIST_REGS, ABSENT))
with_gic(GET, EINVAL, "no vCPU, and not initialised: that first", lambda t, d: t.get_attr(d, REDIST_REGS, ABSENT), ready=False)
with_gic(HAS, EINVAL, "has a redistributor of no vCPU", lambda t, d: t.has_attr(d, REDIST_REGS, ABSENT))
with_gic(GET, 0, "a distributor does not look at the affinity", lambda t, d: t.get_attr(d, DIST_REGS, ABSENT))
with_gic(GET, 0, "ICC_PMR_EL1", lambda t, d: t.get_attr(d, CPU_SYSREGS, ICC_PMR, 8))
with_gic(GET, ENOENT, "a system register of something else", lambda t, d: t.get_attr(d, CPU_SYSREGS, 0xC000, 8))
with_gic(GET, EINVAL, "a system register of no vCPU", lambda t, d: t.get_attr(d, CPU_SYSREGS, ABSENT | ICC_PMR, 8))
with_gic(GET, 0, "levels", lambda t, d: t.get_attr(d, LEVEL_INFO, 32))
with_gic(GET, EINVAL, "levels from within a word", lambda t, d: t.get_attr(d, LEVEL_INFO, 33))
with_gic(GET, EINVAL, "something else than levels", lambda t, d: t.get_attr(d, LEVEL_INFO, 32 | 1 << 10))
with_gic(SET, EINVAL, "GICD_IIDR of another make", lambda t, d: t.set_attr(d, DIST_REGS, 8, 0x1234))
with_gic(SET, 0, "GICD_IIDR of an older revision", lambda t, d: t.set_attr(d, DIST_REGS, 8, 0x4B00_243B))

for group, name in ((DIST_REGS, "distributor"), (CPU_REGS, "CPU interface")):
    with_gic(GET, 0, f"GICv2: a register of the {name}", lambda t, d, group=group: t.get_attr(d, group, 0), V2)
    with_gic(GET, 0, f"GICv2: a register of the {name} initialises", lambda t, d, group=group: t.get_attr(d, group, 0), V2, ready=False)
    with_gic(GET, 0, f"GICv2: no register of the {name}: zero", lambda t, d, group=group: t.get_attr(d, group, 0xFF8), V2)
    with_gic(GET, EINVAL, f"GICv2: a register of the {name} of no vCPU", lambda t, d, group=group: t.get_attr(d, group, ABSENT), V2)
    with_gic(HAS, ENXIO, f"GICv2: a {name} has not this register", lambda t, d, group=group: t.has_attr(d, group, 0xFF8), V2)
with_gic(GET, 0, "GICv2: a banked register of the second vCPU", lambda t, d: t.get_attr(d, DIST_REGS, 1 << 32 | 0x100), V2, 2)
with_gic(GET, 0, "GICv2: GICC_IAR reads as zero from outside", lambda t, d: t.get_attr(d, CPU_REGS, 0xC), V2)
with_gic(GET, ENXIO, "GICv2: a group of a GICv3", lambda t, d: t.get_attr(d, REDIST_REGS, 0), V2)
with_gic(SET, EINVAL, "GICv2: GICD_IIDR of revision 1", lambda t, d: t.set_attr(d, DIST_REGS, 8, 0x4B00_143B), V2)


# --- the ITS ------------------------------------------------------------------------------------------------------------------------

for offset, name in ((0, "CTLR"), (4, "IIDR"), (8, "TYPER"), (0x80, "CBASER"), (0x88, "CWRITER"), (0x90, "CREADR"), (0x100, "BASER0")):
    with_its(GET, 0, f"GITS_{name}", lambda t, d, offset=offset: t.get_attr(d, ITS_REGS, offset, 8))
for offset in (0x84, 0x104, 2):
    with_its(GET, EINVAL, f"an ITS register at {offset:#x}", lambda t, d, offset=offset: t.get_attr(d, ITS_REGS, offset, 8))
    with_its(HAS, EINVAL, f"an ITS has a register at {offset:#x}", lambda t, d, offset=offset: t.has_attr(d, ITS_REGS, offset))
with_its(GET, ENXIO, "no ITS register", lambda t, d: t.get_attr(d, ITS_REGS, 0x40, 8))
with_its(GET, ENXIO, "an ITS register before there is an address", lambda t, d: t.get_attr(d, ITS_REGS, 0, 8), place=False)
with_its(SET, EINVAL, "GITS_CREADR outside the ring", lambda t, d: t.set_attr(d, ITS_REGS, 0x90, 0x1000, 8))
with_its(SET, EINVAL, "GITS_IIDR of another layout", lambda t, d: t.set_attr(d, ITS_REGS, 4, 0x4B00_143B, 8))
for command in (VgicCtrl.INIT, VgicCtrl.ITS_SAVE_TABLES, VgicCtrl.ITS_RESTORE_TABLES, VgicCtrl.ITS_RESET):
    with_its(SET, 0, f"ITS {command.name}, of nothing", lambda t, d, command=command: t.set_attr(d, CTRL, command))
    with_its(HAS, 0, f"an ITS has {command.name}", lambda t, d, command=command: t.has_attr(d, CTRL, command))
with_its(HAS, ENXIO, "an ITS has no pending tables", lambda t, d: t.has_attr(d, CTRL, VgicCtrl.SAVE_PENDING_TABLES))
with_its(SET, ENXIO, "an unknown group of an ITS", lambda t, d: t.set_attr(d, NR_IRQS, 0, 64))


@case.of(SET, EFAULT, "ITS tables that are not in memory")
def _no_tables(t: Trial):
    device = its(t)
    t.set_attr(device, ITS_REGS, 0x108, 1 << 63 | 0x4000_0000, 8)
    yield
    t.set_attr(device, CTRL, VgicCtrl.ITS_SAVE_TABLES)
