"""Interrupts: eventfds, routes, messages and lines. `cases_gic.py` has the interrupt controllers' attributes."""

from __future__ import annotations

import ctypes
import os
import select
from errno import EAGAIN, EBADF, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENXIO
from typing import Any

from tests.conformance.frame import GENERIC, Cases, Trial
from trapline.abi.arm64 import DeviceType, IrqType, VgicAddr, VgicCtrl, VgicGroup, irq_word
from trapline.abi.caps import Cap
from trapline.abi.device import KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR
from trapline.abi.exits import MmioExit
from trapline.abi.irq import (
    KVM_IOEVENTFD,
    KVM_IRQFD,
    KVM_SET_GSI_ROUTING,
    KVM_SIGNAL_MSI,
    IoeventfdFlag,
    IrqfdFlag,
    IrqRouting,
    RoutingEntry,
    route_to_msi,
    route_to_pin,
    routing_table,
)
from trapline.abi.vcpu import KVM_RUN
from trapline.abi.vm import CREATE_DEVICE_TEST, KVM_CREATE_DEVICE, KVM_IRQ_LINE
from trapline.errors import KvmError, NotSupported

case = Cases(__name__)

V2, V3, ITS = DeviceType.ARM_VGIC_V2, DeviceType.ARM_VGIC_V3, DeviceType.ARM_VGIC_ITS
SET, GET, HAS = KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR
ADDR, NR_IRQS, CTRL = VgicGroup.ADDR, VgicGroup.NR_IRQS, VgicGroup.CTRL
DIST_REGS, CPU_REGS, REDIST_REGS = VgicGroup.DIST_REGS, VgicGroup.CPU_REGS, VgicGroup.REDIST_REGS
CPU_SYSREGS, LEVEL_INFO, ITS_REGS = VgicGroup.CPU_SYSREGS, VgicGroup.LEVEL_INFO, VgicGroup.ITS_REGS
DISTRIBUTOR, REDISTRIBUTORS, CPU_INTERFACE, ITS_BASE = 0x800_0000, 0x80A_0000, 0x801_0000, 0x808_0000
TRANSLATER = ITS_BASE + 0x1_0040
DOORBELL = 0xE000
NO_FILE = 0x7FFF_FFF0
IPA_END = 1 << 40
PATIENCE = 20
ICC_PMR = 0xC230


def need(t: Trial, kind: int) -> None:
    """Ask no backend that cannot make such a device: a host has GICv2s or GICv3s for its guests, seldom both."""
    try:
        t(KVM_CREATE_DEVICE, type=kind, flags=CREATE_DEVICE_TEST)
    except KvmError as error:
        if error.errno != ENODEV:
            raise
        raise NotSupported(f"this backend cannot make device type {kind}") from error
    finally:
        t.made.pop()


def make(t: Trial, kind: int) -> int:
    """A device's file."""
    need(t, kind)
    return t.add_device(kind)


def same(found: int, expected: int) -> None:
    """A check that says what it found."""
    assert found == expected, f"{found}, not {expected}"


class Event:
    """An eventfd that is closed with its case."""

    def __init__(self) -> None:
        self.file = os.eventfd(0, os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self.file)

    def write(self) -> None:
        """Add one."""
        os.eventfd_write(self.file, 1)

    def wait(self) -> int:
        """What is in the counter when something is."""
        assert select.select([self.file], [], [], PATIENCE)[0], "nobody wrote it"
        return os.eventfd_read(self.file)

    def read(self) -> int:
        """What is in the counter."""
        try:
            return os.eventfd_read(self.file)
        except BlockingIOError:
            return 0


def event(t: Trial) -> Event:
    """A new eventfd."""
    made = Event()
    t._keep.append(made)
    return made


# --- KVM_IOEVENTFD ----------------------------------------------------------------------------------------------------------------


def connect(t: Trial, length: int = 4, fd: int | None = None, address: int = DOORBELL, flags: int = 0, data: int = 0) -> int:
    """KVM_IOEVENTFD."""
    file = event(t).file if fd is None else fd
    return t(KVM_IOEVENTFD, addr=address, len=length, fd=file, flags=flags, datamatch=data)


MATCH, TAKE, PIO = IoeventfdFlag.DATAMATCH, IoeventfdFlag.DEASSIGN, IoeventfdFlag.PIO
for size in (1, 2, 4, 8):
    case(KVM_IOEVENTFD, 0, f"{size} bytes", lambda t, size=size: connect(t, size), GENERIC)
case(KVM_IOEVENTFD, 0, "any length", lambda t: connect(t, 0), GENERIC, needs=Cap.IOEVENTFD_ANY_LENGTH)
for size in (3, 5, 6, 7, 9, 16, 1 << 31):
    case(KVM_IOEVENTFD, EINVAL, f"{size} bytes", lambda t, size=size: connect(t, size), GENERIC)
case(KVM_IOEVENTFD, 0, "with data", lambda t: connect(t, flags=MATCH, data=7), GENERIC)
case(KVM_IOEVENTFD, EINVAL, "data without a length", lambda t: connect(t, 0, flags=MATCH), GENERIC)
case(KVM_IOEVENTFD, EINVAL, "a range that wraps", lambda t: connect(t, 8, address=(1 << 64) - 4), GENERIC)
case(KVM_IOEVENTFD, 0, "a flag that means nothing", lambda t: connect(t, flags=IoeventfdFlag.FAST_MMIO), GENERIC)
for bit in (5, 6, 31):
    case(KVM_IOEVENTFD, EINVAL, f"flag bit {bit}", lambda t, bit=bit: connect(t, flags=1 << bit), GENERIC)
case(KVM_IOEVENTFD, EBADF, "no file", lambda t: connect(t, fd=NO_FILE), GENERIC)
case(KVM_IOEVENTFD, EBADF, "a negative file", lambda t: connect(t, fd=-1), GENERIC)
case(KVM_IOEVENTFD, EINVAL, "a file that is no eventfd", lambda t: connect(t, fd=pipe(t)), GENERIC)
case(KVM_IOEVENTFD, EINVAL, "a bad length and no file: the length first", lambda t: connect(t, 3, fd=-1), GENERIC)
case(KVM_IOEVENTFD, 0, "port I/O", lambda t: connect(t, flags=PIO), GENERIC)
case(KVM_IOEVENTFD, ENOENT, "nothing to take away", lambda t: connect(t, flags=TAKE), GENERIC)
case(KVM_IOEVENTFD, ENOENT, "taking away checks no length", lambda t: connect(t, 3, flags=TAKE), GENERIC)
case(KVM_IOEVENTFD, EBADF, "taking away looks at the file", lambda t: connect(t, fd=-1, flags=TAKE), GENERIC)


def pipe(t: Trial) -> int:
    """A file that is no eventfd."""
    ends = os.pipe()
    t._keep += [os.fdopen(ends[0], "rb"), os.fdopen(ends[1], "wb")]
    return ends[0]


def beside(errno: int, cause: str, *, length: int = 4, flags: int = MATCH, data: int = 7, address: int = DOORBELL) -> None:
    """A case about a second connection beside one of 4 bytes and data 7."""

    @case.of(KVM_IOEVENTFD, errno, cause, GENERIC)
    def _(t: Trial):
        connect(t, flags=MATCH, data=7)
        yield
        connect(t, length, flags=flags, data=data, address=address)


beside(EEXIST, "the same again, of another eventfd")
beside(0, "other data", data=8)
beside(EEXIST, "the same without data", flags=0)
beside(0, "another length", length=2)
beside(EEXIST, "any length where there is one", length=0, flags=0)
beside(0, "another address", address=DOORBELL + 4)
beside(0, "the same of port I/O", flags=MATCH | PIO)


def taking(errno: int, cause: str, *, length: int = 4, flags: int = MATCH, data: int = 7, same: bool = True) -> None:
    """A case about taking away, when there is one of 4 bytes and data 7."""

    @case.of(KVM_IOEVENTFD, errno, cause, GENERIC)
    def _(t: Trial):
        first, second = event(t), event(t)
        connect(t, fd=first.file, flags=MATCH, data=7)
        yield
        connect(t, length, fd=first.file if same else second.file, flags=flags | TAKE, data=data)


taking(0, "take it away")
taking(ENOENT, "take away other data", data=8)
taking(ENOENT, "take away without data", flags=0)
taking(ENOENT, "take away another length", length=2)
taking(ENOENT, "take away another eventfd's", same=False)


@case.of(KVM_RUN, 0, "a write that an ioeventfd takes does not exit", GENERIC)
def _signals(t: Trial):
    took = event(t)
    connect(t, 1, fd=took.file, flags=MATCH, data=7)
    t.program(("store", DOORBELL, 7), ("store", DOORBELL, 7), ("store", DOORBELL, 8))
    yield
    exit = t.run()
    assert isinstance(exit, MmioExit) and (exit.phys_addr, exit.data if isinstance(exit.data, int) else exit.data[0]) == (DOORBELL, 8)
    assert took.read() == 2


# --- KVM_IRQFD --------------------------------------------------------------------------------------------------------------------


def gic(t: Trial, kind: int = V3, cpus: int = 1, ready: bool = True) -> int:
    """An interrupt controller with addresses, initialised if `ready`; the first vCPU is there."""
    assert t.vcpu
    for number in range(1, cpus):
        t.add_vcpu(number)
    device = make(t, kind)
    second = (VgicAddr.V3_REDIST, REDISTRIBUTORS) if kind == V3 else (VgicAddr.V2_CPU, CPU_INTERFACE)
    t.set_attr(device, ADDR, VgicAddr.V3_DIST if kind == V3 else VgicAddr.V2_DIST, DISTRIBUTOR, 8)
    t.set_attr(device, ADDR, *second, 8)
    if ready:
        t.set_attr(device, CTRL, VgicCtrl.INIT)
    return device


def irqfd(t: Trial, gsi: int = 8, fd: int | None = None, flags: int = 0, resamplefd: int = 0) -> int:
    """KVM_IRQFD."""
    return t(KVM_IRQFD, fd=event(t).file if fd is None else fd & 0xFFFF_FFFF, gsi=gsi, flags=flags, resamplefd=resamplefd)


def about_gic(cases: Cases) -> Any:
    """What adds to a list a case about a VM with an interrupt controller; its body gets the controller's file as well."""

    def add(call, errno: int, cause: str, body, kind: int = V3, cpus: int = 1, ready: bool = True) -> None:
        @cases.of(call, errno, cause)
        def _(t: Trial):
            device = gic(t, kind, cpus, ready)
            yield
            body(t, device)

    return add


with_gic = about_gic(case)

case(KVM_IRQFD, EAGAIN, "no interrupt controller", lambda t: irqfd(t))
case(KVM_IRQFD, EAGAIN, "no interrupt controller and no file: that first", lambda t: irqfd(t, fd=-1))
for bit in (2, 3, 31):
    case(KVM_IRQFD, EINVAL, f"flag bit {bit}", lambda t, bit=bit: irqfd(t, flags=1 << bit), GENERIC)
case(KVM_IRQFD, 0, "take away what is not there", lambda t: irqfd(t, flags=IrqfdFlag.DEASSIGN))
case(KVM_IRQFD, EBADF, "take away no file", lambda t: irqfd(t, fd=-1, flags=IrqfdFlag.DEASSIGN))
case(KVM_IRQFD, EINVAL, "take away no eventfd", lambda t: irqfd(t, fd=pipe(t), flags=IrqfdFlag.DEASSIGN))
with_gic(KVM_IRQFD, EAGAIN, "not initialised", lambda t, _: irqfd(t), ready=False)
with_gic(KVM_IRQFD, EAGAIN, "a GICv2 that is not initialised", lambda t, _: irqfd(t), V2, ready=False)
with_gic(KVM_IRQFD, 0, "connect", lambda t, _: irqfd(t))
with_gic(KVM_IRQFD, 0, "connect to a GICv2", lambda t, _: irqfd(t), V2)
with_gic(KVM_IRQFD, 0, "a GSI that leads nowhere", lambda t, _: irqfd(t, gsi=4000))
with_gic(KVM_IRQFD, EBADF, "no file to connect", lambda t, _: irqfd(t, fd=NO_FILE))
with_gic(KVM_IRQFD, EINVAL, "no eventfd to connect", lambda t, _: irqfd(t, fd=pipe(t)))
with_gic(KVM_IRQFD, 0, "with resample", lambda t, _: irqfd(t, flags=IrqfdFlag.RESAMPLE, resamplefd=event(t).file))
with_gic(KVM_IRQFD, EBADF, "resample without a file", lambda t, _: irqfd(t, flags=IrqfdFlag.RESAMPLE, resamplefd=NO_FILE))
with_gic(KVM_IRQFD, EINVAL, "resample to no eventfd", lambda t, _: irqfd(t, flags=IrqfdFlag.RESAMPLE, resamplefd=pipe(t)))


def again(errno: int, cause: str, first: int, second: int, flags: int = 0, then: int | None = None) -> None:
    """A case about an eventfd that drives GSI 8 already."""

    @case.of(KVM_IRQFD, errno, cause)
    def _(t: Trial):
        gic(t)
        files = event(t).file, event(t).file
        irqfd(t, fd=files[0])
        yield
        irqfd(t, first, files[second], flags)
        if then is not None:
            irqfd(t, then, files[second])


again(EBUSY, "an eventfd twice", 8, 0)
again(EBUSY, "an eventfd to two GSIs", 9, 0)
again(0, "two eventfds to one GSI", 8, 1)
again(0, "take away and connect again", 8, 0, IrqfdFlag.DEASSIGN, 9)
again(EBUSY, "take away another GSI's: it stays", 9, 0, IrqfdFlag.DEASSIGN, 9)


# --- KVM_SET_GSI_ROUTING ----------------------------------------------------------------------------------------------------------


def routes(t: Trial, *entries: RoutingEntry, flags: int = 0) -> int:
    """KVM_SET_GSI_ROUTING."""
    return t(KVM_SET_GSI_ROUTING, routing_table(entries, flags))


def route(type: int = 1, gsi: int = 5, flags: int = 0, irqchip: int = 0, pin: int = 0) -> RoutingEntry:
    """An entry of whatever kind."""
    return RoutingEntry(gsi, type, flags, 0, (ctypes.c_uint32 * 8)(irqchip, pin))


case(KVM_SET_GSI_ROUTING, 0, "nothing", lambda t: routes(t))
case(KVM_SET_GSI_ROUTING, EINVAL, "a flag of the table", lambda t: routes(t, flags=1))
case(KVM_SET_GSI_ROUTING, EINVAL, "too many", lambda t: t(KVM_SET_GSI_ROUTING, IrqRouting(4097, 0)))
case(KVM_SET_GSI_ROUTING, 0, "4096", lambda t: routes(t, *(route_to_pin(gsi, gsi % 988) for gsi in range(4096))))
case(KVM_SET_GSI_ROUTING, 0, "the last pin", lambda t: routes(t, route(pin=987)))
case(KVM_SET_GSI_ROUTING, EINVAL, "a pin after the last", lambda t: routes(t, route(pin=988)))
case(KVM_SET_GSI_ROUTING, EINVAL, "a second interrupt controller", lambda t: routes(t, route(irqchip=1)))
case(KVM_SET_GSI_ROUTING, 0, "the last GSI", lambda t: routes(t, route(gsi=4095)))
case(KVM_SET_GSI_ROUTING, EINVAL, "a GSI after the last", lambda t: routes(t, route(gsi=4096)))
case(KVM_SET_GSI_ROUTING, 0, "a message", lambda t: routes(t, route_to_msi(5, TRANSLATER, 1)))
case(KVM_SET_GSI_ROUTING, 0, "a message of a device", lambda t: routes(t, route_to_msi(5, TRANSLATER, 1, devid=3)))
case(KVM_SET_GSI_ROUTING, EINVAL, "an unknown flag of a message", lambda t: routes(t, route(2, flags=2)))
case(KVM_SET_GSI_ROUTING, EINVAL, "a flag of a pin", lambda t: routes(t, route(flags=1)))
for kind in (0, 3, 4, 5, 6):
    case(KVM_SET_GSI_ROUTING, EINVAL, f"type {kind}", lambda t, kind=kind: routes(t, route(kind)))
case(KVM_SET_GSI_ROUTING, EINVAL, "one GSI to two pins", lambda t: routes(t, route(), route(pin=1)))
case(KVM_SET_GSI_ROUTING, EINVAL, "one GSI to a pin and a message", lambda t: routes(t, route(), route(2)))
case(KVM_SET_GSI_ROUTING, EINVAL, "one GSI to two messages", lambda t: routes(t, route(2), route(2)))
case(KVM_SET_GSI_ROUTING, 0, "two GSIs to one pin", lambda t: routes(t, route(), route(gsi=6)))


# --- KVM_SIGNAL_MSI ---------------------------------------------------------------------------------------------------------------


def message(t: Trial, address: int = TRANSLATER, flags: int = 1, data: int = 0, devid: int = 0) -> int:
    """KVM_SIGNAL_MSI."""
    return t(KVM_SIGNAL_MSI, address_lo=address & 0xFFFF_FFFF, address_hi=address >> 32, data=data, flags=flags, devid=devid)


def its(t: Trial, place: bool = True) -> int:
    """An ITS beside a GICv3."""
    gic(t)
    device = make(t, ITS)
    if place:
        t.set_attr(device, ADDR, VgicAddr.ITS, ITS_BASE, 8)
    return device


def about_its(cases: Cases) -> Any:
    """What adds to a list a case about a VM with an ITS; its body gets the ITS's file as well."""

    def add(call, errno: int, cause: str, body, place: bool = True) -> None:
        @cases.of(call, errno, cause)
        def _(t: Trial):
            device = its(t, place)
            yield
            body(t, device)

    return add


with_its = about_its(case)

case(KVM_SIGNAL_MSI, EINVAL, "no interrupt controller", lambda t: message(t))
with_gic(KVM_SIGNAL_MSI, EINVAL, "unknown flag", lambda t, _: message(t, flags=2))
with_gic(KVM_SIGNAL_MSI, ENODEV, "no ITS", lambda t, _: message(t))
with_gic(KVM_SIGNAL_MSI, ENODEV, "a GICv2", lambda t, _: message(t), V2)
with_its(KVM_SIGNAL_MSI, EINVAL, "no device", lambda t, _: message(t, flags=0))
with_its(KVM_SIGNAL_MSI, EINVAL, "an address that is no ITS's", lambda t, _: message(t, 0x1000))
with_its(KVM_SIGNAL_MSI, EINVAL, "an ITS without address", lambda t, _: message(t), place=False)
with_its(KVM_SIGNAL_MSI, EBUSY, "an ITS that is off", lambda t, _: message(t))


# --- KVM_IRQ_LINE with an interrupt controller ------------------------------------------------------------------------------------


def line(t: Trial, kind: int, number: int, vcpu: int = 0, level: int = 1) -> int:
    """KVM_IRQ_LINE."""
    return t(KVM_IRQ_LINE, irq=irq_word(kind, number, vcpu), level=level)


for version, name in ((V3, "GICv3"), (V2, "GICv2")):
    with_gic(KVM_IRQ_LINE, 0, f"{name}: an SPI", lambda t, _: line(t, IrqType.SPI, 40), version)
    with_gic(KVM_IRQ_LINE, 0, f"{name}: a PPI", lambda t, _: line(t, IrqType.PPI, 20), version)
    with_gic(KVM_IRQ_LINE, EINVAL, f"{name}: an SPI below 32", lambda t, _: line(t, IrqType.SPI, 31), version)
    with_gic(KVM_IRQ_LINE, EINVAL, f"{name}: an SPI that is not there", lambda t, _: line(t, IrqType.SPI, 256), version)
    with_gic(KVM_IRQ_LINE, EINVAL, f"{name}: an SGI", lambda t, _: line(t, IrqType.PPI, 15), version)
    with_gic(KVM_IRQ_LINE, EINVAL, f"{name}: a PPI of no vCPU", lambda t, _: line(t, IrqType.PPI, 20, vcpu=1), version)
    with_gic(KVM_IRQ_LINE, ENXIO, f"{name}: a pin of a vCPU", lambda t, _: line(t, IrqType.CPU, 0), version)
with_gic(KVM_IRQ_LINE, EBUSY, "a GICv3 that is not initialised", lambda t, _: line(t, IrqType.SPI, 40), ready=False)
with_gic(KVM_IRQ_LINE, 0, "a GICv2 initialises itself", lambda t, _: line(t, IrqType.SPI, 40), V2, ready=False)
