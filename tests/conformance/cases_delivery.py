"""Interrupts that arrive: by line, eventfd and message; and the tables in guest memory that an ITS and redistributors are saved in.

The guest takes one interrupt after the other, and exits with the lowest eight bits of each one's number.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import EEXIST, EFAULT, EINVAL

from tests.conformance.cases_irq import (
    ADDR,
    CTRL,
    DIST_REGS,
    ITS,
    ITS_BASE,
    ITS_REGS,
    REDIST_REGS,
    SET,
    TRANSLATER,
    V2,
    V3,
    event,
    gic,
    irqfd,
    line,
    make,
    message,
    routes,
    same,
)
from tests.conformance.frame import PAGE, Cases, Trial
from tests.conformance.guest import NOWHERE
from trapline.abi.arm64 import IrqType, VgicAddr, VgicCtrl
from trapline.abi.exits import MmioExit
from trapline.abi.irq import KVM_IRQFD, KVM_SIGNAL_MSI, IrqfdFlag, route_to_msi
from trapline.abi.vm import KVM_IRQ_LINE

case = Cases(__name__)

SPI = 40
TAKE = {
    V3: (
        0xD280_1E00,  # mov x0, #0xf0
        0xD518_4600,  # msr icc_pmr_el1, x0
        0xD280_0020,  # mov x0, #1
        0xD518_CCE0,  # msr icc_igrpen1_el1, x0
        0xD29E_0002,  # mov x2, #NOWHERE
        0xD538_CC01,  # again: mrs x1, icc_iar1_el1
        0xF10F_FC3F,  # cmp x1, #1023
        0x5400_0061,  # b.ne taken
        0xD503_207F,  # wfi
        0x17FF_FFFC,  # b again
        0xD518_CC21,  # taken: msr icc_eoir1_el1, x1
        0x3900_0041,  # strb w1, [x2]
        0x17FF_FFF9,  # b again
    ),
    V2: (
        0xD2A1_0023,  # mov x3, #CPU_INTERFACE
        0x5280_1E00,  # mov w0, #0xf0
        0xB900_0460,  # str w0, [x3, #GICC_PMR]
        0x5280_0020,  # mov w0, #1
        0xB900_0060,  # str w0, [x3, #GICC_CTLR]
        0xD29E_0002,  # mov x2, #NOWHERE
        0xB940_0C61,  # again: ldr w1, [x3, #GICC_IAR]
        0x710F_FC3F,  # cmp w1, #1023
        0x5400_0061,  # b.ne taken
        0xD503_207F,  # wfi
        0x17FF_FFFC,  # b again
        0xB900_1061,  # taken: str w1, [x3, #GICC_EOIR]
        0x3900_0041,  # strb w1, [x2]
        0x17FF_FFF9,  # b again
    ),
}
"""For each interrupt controller, a guest that takes interrupts."""

ENABLE, CONFIGURATION, PENDING = 0x100 + SPI // 32 * 4, 0xC00 + SPI // 16 * 4, 0x200 + SPI // 32 * 4
NAMES = {V3: "GICv3", V2: "GICv2"}


def taker(t: Trial, kind: int, edge: bool) -> int:
    """A guest that takes interrupts, and an SPI that is ready; the file of the interrupt controller."""
    device = gic(t, kind)
    t.code(words(TAKE[kind]))
    t.set_attr(device, DIST_REGS, 0, 2 if kind == V3 else 1)
    t.set_attr(device, DIST_REGS, CONFIGURATION, 2 * edge << SPI % 16 * 2)
    t.set_attr(device, DIST_REGS, ENABLE, 1 << SPI % 32)
    return device


def words(code: Iterable[int]) -> bytes:
    """Machine code as bytes."""
    return b"".join(word.to_bytes(4, "little") for word in code)


def taken(t: Trial) -> int:
    """What the guest takes next."""
    exit = t.run()
    assert isinstance(exit, MmioExit) and exit.phys_addr == NOWHERE, exit
    return exit.data[0]


for controller, name in NAMES.items():

    @case.of(KVM_IRQ_LINE, 0, f"{name}: a line that stays high is taken again and again")
    def _level(t: Trial, kind: int = controller):
        taker(t, kind, edge=False)
        yield
        line(t, IrqType.SPI, SPI)
        same(taken(t), SPI)
        same(taken(t), SPI)

    @case.of(KVM_IRQ_LINE, 0, f"{name}: an edge is taken once")
    def _edge(t: Trial, kind: int = controller):
        device = taker(t, kind, edge=True)
        yield
        line(t, IrqType.SPI, SPI)
        same(taken(t), SPI)
        same(t.get_attr(device, DIST_REGS, PENDING), 0)

    @case.of(KVM_IRQ_LINE, 0, f"{name}: a line that falls before it is taken is not")
    def _fallen(t: Trial, kind: int = controller):
        device = taker(t, kind, edge=False)
        yield
        line(t, IrqType.SPI, SPI)
        line(t, IrqType.SPI, SPI, level=0)
        t.set_attr(device, DIST_REGS, CONFIGURATION, 2 << (SPI + 1) % 16 * 2)
        t.set_attr(device, DIST_REGS, ENABLE, 2 << SPI % 32)
        line(t, IrqType.SPI, SPI + 1)
        same(taken(t), SPI + 1)

    @case.of(KVM_IRQFD, 0, f"{name}: what is written is taken")
    def _irqfd(t: Trial, kind: int = controller):
        taker(t, kind, edge=True)
        bell = event(t)
        yield
        irqfd(t, SPI - 32, bell.file)
        for _ in range(3):
            bell.write()
            same(taken(t), SPI)

    @case.of(KVM_IRQFD, 0, f"{name}: what was written before is taken")
    def _early(t: Trial, kind: int = controller):
        taker(t, kind, edge=True)
        bell = event(t)
        bell.write()
        yield
        irqfd(t, SPI - 32, bell.file)
        same(taken(t), SPI)

    @case.of(KVM_IRQFD, 0, f"{name}: with resample, completion is told")
    def _resample(t: Trial, kind: int = controller):
        taker(t, kind, edge=False)
        bell, completed = event(t), event(t)
        yield
        irqfd(t, SPI - 32, bell.file, IrqfdFlag.RESAMPLE, completed.file)
        for _ in range(3):
            bell.write()
            same(taken(t), SPI)
            same(completed.wait(), 1)


# --- messages -----------------------------------------------------------------------------------------------------------------------

TABLES = 0x4_0000
DEVICES, COLLECTIONS, ITT, PROPERTIES, PENDING_TABLE = TABLES, TABLES + 0x1_0000, TABLES + 0x2_0000, TABLES + 0x2_2000, TABLES + 0x3_0000
DEVICE, EVENT, OTHER_EVENT, LPI = 5, 3, 9, 8192 + 77
VALID = 1 << 63
ID_BITS = 13
"""LPIs below 2^14, whose properties fit into two pages."""


def poke(t: Trial, address: int, value: int, size: int = 8) -> None:
    """Write to the tables."""
    at = address - TABLES
    t.buffer[at : at + size] = value.to_bytes(size, "little")


def peek(t: Trial, address: int, size: int = 8) -> int:
    """Read from them."""
    at = address - TABLES
    return int.from_bytes(t.buffer[at : at + size], "little")


def entries() -> dict[int, int]:
    """One device with two events, in the layout of the kernel's manual: all entries that are not zero."""
    return {
        DEVICES + 8 * DEVICE: VALID | ITT >> 8 << 5 | 4,
        ITT + 8 * EVENT: OTHER_EVENT - EVENT << 48 | LPI << 16 | 1,
        ITT + 8 * OTHER_EVENT: LPI + 1 << 16 | 1,
        COLLECTIONS: VALID | 1,
    }


def restored(t: Trial) -> tuple[int, int]:
    """An ITS whose tables were restored, and a guest that takes what it sends; the files of GIC and ITS."""
    device = taker(t, V3, edge=True)
    its = make(t, ITS)
    t.set_attr(its, ADDR, VgicAddr.ITS, ITS_BASE, 8)
    t.region(0, gpa=TABLES, size=64 * PAGE)
    for address, value in entries().items():
        poke(t, address, value)
    for lpi in (LPI, LPI + 1):
        poke(t, PROPERTIES + lpi - 8192, 0xA1, 1)
    for offset, value in ((0x70, PROPERTIES | ID_BITS), (0x74, 0), (0x78, PENDING_TABLE), (0x7C, 0), (0, 1)):
        t.set_attr(device, REDIST_REGS, offset, value)
    for offset, value in ((0x80, VALID | TABLES), (0x100, VALID | DEVICES), (0x108, VALID | COLLECTIONS)):
        t.set_attr(its, ITS_REGS, offset, value, 8)
    t.set_attr(its, CTRL, VgicCtrl.ITS_RESTORE_TABLES)
    t.set_attr(its, ITS_REGS, 0, 1, 8)
    return device, its


@case.of(KVM_SIGNAL_MSI, 0, "a message that was mapped is taken")
def _message(t: Trial):
    restored(t)
    yield
    for at, lpi in ((EVENT, LPI), (OTHER_EVENT, LPI + 1)):
        same(message(t, data=at, devid=DEVICE), 1)
        same(taken(t), lpi & 0xFF)


@case.of(KVM_SIGNAL_MSI, 0, "messages that were not mapped go nowhere")
def _unmapped(t: Trial):
    restored(t)
    yield
    same(message(t, data=EVENT + 1, devid=DEVICE), 0)
    same(message(t, data=EVENT, devid=DEVICE + 1), 0)


@case.of(KVM_IRQFD, 0, "a message's eventfd")
def _message_irqfd(t: Trial):
    restored(t)
    routes(t, route_to_msi(500, TRANSLATER, EVENT, devid=DEVICE))
    bell = event(t)
    yield
    irqfd(t, 500, bell.file)
    for _ in range(3):
        bell.write()
        same(taken(t), LPI & 0xFF)


@case.of(SET, 0, "tables are saved as they were restored")
def _saved(t: Trial):
    _, its = restored(t)
    for address in entries():
        poke(t, address, 0)
    poke(t, COLLECTIONS + 8, VALID | 7)
    yield
    t.set_attr(its, CTRL, VgicCtrl.ITS_SAVE_TABLES)
    for address, value in entries().items():
        same(peek(t, address), value)
    same(peek(t, COLLECTIONS + 8), 0)


@case.of(SET, 0, "what is pending is saved, and taken out again")
def _pending(t: Trial):
    device, its = restored(t)
    message(t, data=EVENT, devid=DEVICE)
    yield
    t.set_attr(device, CTRL, VgicCtrl.SAVE_PENDING_TABLES)
    same(peek(t, PENDING_TABLE + LPI // 8, 1), 1 << LPI % 8)
    t.set_attr(its, CTRL, VgicCtrl.ITS_SAVE_TABLES)
    t.set_attr(its, CTRL, VgicCtrl.ITS_RESET)
    for offset, value in ((0x80, VALID | TABLES), (0x100, VALID | DEVICES), (0x108, VALID | COLLECTIONS)):
        t.set_attr(its, ITS_REGS, offset, value, 8)
    t.set_attr(its, CTRL, VgicCtrl.ITS_RESTORE_TABLES)
    same(taken(t), LPI & 0xFF)


def bad(errno: int, cause: str, address: int, value: int) -> None:
    """A case about tables that cannot be restored because of one entry."""

    @case.of(SET, errno, cause)
    def _(t: Trial):
        _, its = restored(t)
        t.set_attr(its, CTRL, VgicCtrl.ITS_RESET)
        for offset, table in ((0x100, VALID | DEVICES), (0x108, VALID | COLLECTIONS)):
            t.set_attr(its, ITS_REGS, offset, table, 8)
        poke(t, address, value)
        yield
        t.set_attr(its, CTRL, VgicCtrl.ITS_RESTORE_TABLES)


bad(EINVAL, "restoring an event that leads to no LPI", ITT + 8 * EVENT, 8191 << 16 | 1)
bad(EINVAL, "restoring an event of no collection", ITT + 8 * EVENT, LPI << 16 | 2)
bad(EINVAL, "restoring an event whose next is beyond the device's", ITT + 8 * EVENT, 40 << 48 | LPI << 16 | 1)
bad(EINVAL, "restoring a collection of no vCPU", COLLECTIONS, VALID | 9 << 16 | 1)
bad(EEXIST, "restoring a collection twice", COLLECTIONS + 8, VALID | 1)
bad(EFAULT, "restoring events from where no memory is", DEVICES + 8 * DEVICE, VALID | 0x4000_0000 >> 8 << 5 | 4)
