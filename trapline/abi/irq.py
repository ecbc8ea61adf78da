"""Interrupts by file and by message: irqfds, ioeventfds, GSI routing and MSIs, and their structures."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import Annotated, Any

from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import Fd, GuestAddress, Meaning, Structure, struct, u8x12, u8x16, u8x36, u32, u32x8, u64

Fd32 = Annotated[int, ctypes.c_uint32, Meaning.FD]

MAX_ROUTES = 4096
"""GSIs are below this number, and a table has no more entries."""


class IrqfdFlag(IntFlag):
    """Bits of kvm_irqfd.flags."""

    DEASSIGN = 1 << 0
    RESAMPLE = 1 << 1


class IoeventfdFlag(IntFlag):
    """Bits of kvm_ioeventfd.flags."""

    DATAMATCH = 1 << 0
    PIO = 1 << 1
    DEASSIGN = 1 << 2
    VIRTIO_CCW_NOTIFY = 1 << 3
    FAST_MMIO = 1 << 4  # has a number and no meaning: accepted


class RouteType(IntEnum):
    """What a GSI leads to: kvm_irq_routing_entry.type."""

    IRQCHIP = 1
    MSI = 2


MSI_VALID_DEVID = 1 << 0
"""Flag of an MSI, in a route or by itself: `devid` says which device sends it."""


@struct(size=32, c_name="kvm_irqfd")
class Irqfd(Structure):
    fd: Fd32
    gsi: u32
    flags: Annotated[int, ctypes.c_uint32, IrqfdFlag]
    resamplefd: Fd32
    pad: u8x16


@struct(size=64, c_name="kvm_ioeventfd")
class Ioeventfd(Structure):
    datamatch: u64
    addr: GuestAddress
    len: u32
    fd: Fd
    flags: Annotated[int, ctypes.c_uint32, IoeventfdFlag]
    pad: u8x36


@struct(size=32, c_name="kvm_msi")
class Msi(Structure):
    address_lo: u32
    address_hi: u32
    data: u32
    flags: u32
    devid: u32
    pad: u8x12

    @property
    def address(self) -> int:
        """Where the device writes."""
        return self.address_hi << 32 | self.address_lo


@struct(size=48, c_name="kvm_irq_routing_entry")
class RoutingEntry(Structure):
    """One route. `u` holds irqchip and pin, or the low and high half of an MSI's address, its data and the device."""

    gsi: u32
    type: Annotated[int, ctypes.c_uint32, RouteType]
    flags: u32
    pad: u32
    u: u32x8


@struct(size=8, c_name="kvm_irq_routing", tail=("nr", RoutingEntry))
class IrqRouting(Structure):
    """The head of the table: `nr` entries follow. `routing_table` makes a whole one."""

    nr: u32
    flags: u32


def routing_table(entries: Iterable[RoutingEntry], flags: int = 0) -> Any:
    """A KVM_SET_GSI_ROUTING argument: fields `nr`, `flags` and `entries`."""
    listed = list(entries)

    class SizedRouting(ctypes.Structure):
        _fields_ = [("nr", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("entries", RoutingEntry * len(listed))]

    return SizedRouting(len(listed), flags, (RoutingEntry * len(listed))(*listed))


def route_to_pin(gsi: int, pin: int, irqchip: int = 0) -> RoutingEntry:
    """A route to an input of the interrupt controller."""
    return RoutingEntry(gsi, RouteType.IRQCHIP, 0, 0, (ctypes.c_uint32 * 8)(irqchip, pin))


def route_to_msi(gsi: int, address: int, data: int, devid: int | None = None) -> RoutingEntry:
    """A route to a message, sent by the device `devid` if the interrupt controller wants to know."""
    flags = 0 if devid is None else MSI_VALID_DEVID
    message = (ctypes.c_uint32 * 8)(address & 0xFFFF_FFFF, address >> 32, data, devid or 0)
    return RoutingEntry(gsi, RouteType.MSI, flags, 0, message)


@ioctl(
    "vm",
    0x6A,
    IrqRouting,
    "W",
    cap=Cap.IRQ_ROUTING,
    EINVAL="a flag is set, there are too many entries, or one has a number, type or flag that it cannot have",
    EFAULT="the entries cannot be read",
    ENOMEM="no memory for the table",
)
def KVM_SET_GSI_ROUTING(vm, routing):  # type: ignore[no-untyped-def]
    """Replace the table that says where each GSI leads. It begins with GSI n leading to SPI n, made when the controller is."""


@ioctl(
    "vm",
    0x76,
    Irqfd,
    "W",
    cap=Cap.IRQFD,
    EINVAL="unknown flag, or a file that is no eventfd",
    EBADF="a number that is no file",
    EAGAIN="there is no interrupt controller, or it is not initialised",
    EBUSY="this eventfd drives an interrupt already",
    ENOMEM="no memory for the connection",
)
def KVM_IRQFD(vm, irqfd):  # type: ignore[no-untyped-def]
    """Let an eventfd drive a GSI: each time it is written, the interrupt is pulsed.

    With RESAMPLE it is set, and cleared when the guest completes it; then `resamplefd` is written, so that whoever wants the line high
    can write again. DEASSIGN undoes an assignment; afterwards no interrupt comes from it. Nothing to undo is no error.
    """


@ioctl(
    "vm",
    0x79,
    Ioeventfd,
    "W",
    cap=Cap.IOEVENTFD,
    EINVAL="unknown flag, a length other than 0, 1, 2, 4 and 8, a range that wraps, data to match without a length, or no eventfd",
    EBADF="a number that is no file",
    EEXIST="another one would match the same writes",
    ENOENT="there is no such one to take away",
    ENOSPC="there are too many devices on the bus",
    ENOMEM="no memory for the connection",
)
def KVM_IOEVENTFD(vm, ioeventfd):  # type: ignore[no-untyped-def]
    """Let a guest's write to an address write an eventfd instead of leaving KVM_RUN.

    A write matches if address and length are the same (length 0: any), and with DATAMATCH also the data. DEASSIGN undoes exactly what
    was assigned. On arm64 there are no port and no channel I/O: with PIO or VIRTIO_CCW_NOTIFY nothing ever matches.
    """


@ioctl(
    "vm",
    0xA5,
    Msi,
    "W",
    cap=Cap.SIGNAL_MSI,
    EINVAL="no in-kernel interrupt controller, unknown flag, no device named, or an address that no ITS has",
    ENODEV="the VM has no ITS",
    EBUSY="the ITS, or LPIs at the redistributor that it leads to, are off",
)
def KVM_SIGNAL_MSI(vm, msi):  # type: ignore[no-untyped-def]
    """Send a message-signalled interrupt. Returns 1 if it was delivered, 0 if the guest has not mapped the event."""
