"""Why KVM_RUN came back on x86: one class for each exit reason, and what the numbers inside mean.

The exits that x86 shares with arm64 are those of `exits.py`. Answers (`IoExit.data`, `MmioExit.data`, `RdmsrExit.value`,
`MsrExit.error`, `HypercallExit.ret`) are written to kvm_run and take effect when the vCPU runs next.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from types import MappingProxyType
from typing import Any

from trapline.abi import exits
from trapline.abi.exits import EXIT_REASON_OFFSET, UNION_OFFSET, Exit
from trapline.abi.x86_msr import MsrExitReason


class ExitReason(IntEnum):
    """KVM_EXIT_*: the reasons x86 can have."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    WATCHDOG = 21
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37
    MEMORY_FAULT = 39


class InternalErrorKind(IntEnum):
    """KVM_INTERNAL_ERROR_*: `InternalError.suberror`."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


INTERNAL_ERROR_MEANINGS: Mapping[int, str] = MappingProxyType({
    InternalErrorKind.EMULATION: "the host had to emulate an instruction and cannot",
    InternalErrorKind.SIMUL_EX: "two exceptions at once that cannot be combined",
    InternalErrorKind.DELIVERY_EV: "an access to a device while an exception or interrupt was being delivered",
    InternalErrorKind.UNEXPECTED_EXIT_REASON: "the processor left the guest for a reason that the host does not know",
})  # fmt: skip

EMULATION_HAS_BYTES = 1
"""Bit 0 of the first data word of an emulation failure: the instruction's bytes follow."""

PIO_PAGE = 4096
"""Where Linux puts the data of port accesses, though kvm_run says so each time."""

ITEM_MASKS = (0, 0xFF, 0xFFFF, 0xFF_FFFF, 0xFFFF_FFFF)
MSR_LAYOUT = Struct("<B7xIIQ")
MSR_ERROR_OFFSET = UNION_OFFSET
MSR_DATA_OFFSET = UNION_OFFSET + 16
HYPERCALL_RET_OFFSET = UNION_OFFSET + 56


class IoExit(ctypes.Structure, Exit):
    """The guest executed IN, OUT, INS or OUTS on a port that userspace serves.

    `data` holds `count` items of `size` bytes, little-endian. For an input, assign `data` (bytes, or an int for one item) before
    running again. By far the most frequent exit, so it is no copy but a view of kvm_run: good until the vCPU runs again.
    """

    _fields_ = (
        ("_head", ctypes.c_uint8 * UNION_OFFSET),
        ("is_out", ctypes.c_uint8),
        ("size", ctypes.c_uint8),
        ("port", ctypes.c_uint16),
        ("count", ctypes.c_uint32),
        ("_at", ctypes.c_uint64),
        ("_rest", ctypes.c_uint8 * (PIO_PAGE - UNION_OFFSET - 16)),
        ("_first", ctypes.c_uint32),
    )
    __match_args__ = ("port", "data", "size", "is_out")
    reason = ExitReason.IO.value

    @property
    def data(self) -> bytes:
        """The bytes written, or those an input will get."""
        return ctypes.string_at(ctypes.addressof(self) + self._at, self.size * self.count)

    @data.setter
    def data(self, value: bytes | int) -> None:
        if self.is_out:
            raise AttributeError("the guest wrote this data; only an input can be answered")
        total = self.size * self.count
        answer = (value & (1 << 8 * total) - 1).to_bytes(total, "little") if isinstance(value, int) else bytes(value[:total])
        ctypes.memmove(ctypes.addressof(self) + self._at, answer.ljust(total, b"\0"), total)

    @property
    def value(self) -> int:
        """`data` as a number."""
        if self.count == 1 and self._at == PIO_PAGE:
            return self._first & ITEM_MASKS[self.size]  # type: ignore[no-any-return]
        return int.from_bytes(self.data, "little")

    def __repr__(self) -> str:
        verb = "out" if self.is_out else "in"
        times = f" x {self.count}" if self.count != 1 else ""
        return f"IoExit({verb} of {self.size}{times} at port {self.port:#x}, data={self.data.hex()})"


class MsrExit(Exit):
    """An access to a model-specific register that userspace handles: see KVM_CAP_X86_USER_SPACE_MSR.

    RIP is still at the instruction. Assign `error = True` to raise #GP there instead of completing it.
    """

    __slots__ = ("_data", "_run", "index", "msr_reason")
    __match_args__ = ("index", "value")

    def __init__(self, run: Any) -> None:
        _, reason, self.index, self._data = MSR_LAYOUT.unpack_from(run, UNION_OFFSET)
        self.msr_reason = MsrExitReason(reason)
        self._run = run

    @property
    def value(self) -> int:
        """What the guest writes, or what a read will get."""
        return self._data

    @property
    def error(self) -> bool:
        """Whether the instruction will raise #GP."""
        return bool(self._run[MSR_ERROR_OFFSET])

    @error.setter
    def error(self, value: bool) -> None:
        self._run[MSR_ERROR_OFFSET] = int(value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index:#x}, {self._data:#x}, {self.msr_reason!r})"


class RdmsrExit(MsrExit):
    """The guest reads an MSR: assign `value` to answer."""

    __slots__ = ()
    reason = ExitReason.X86_RDMSR.value

    @property
    def value(self) -> int:
        """What the read will get."""
        return self._data

    @value.setter
    def value(self, value: int) -> None:
        self._data = value & (1 << 64) - 1
        self._run[MSR_DATA_OFFSET : MSR_DATA_OFFSET + 8] = self._data.to_bytes(8, "little")


class WrmsrExit(MsrExit):
    """The guest writes `value` to an MSR. KVM itself stores nothing."""

    __slots__ = ()
    reason = ExitReason.X86_WRMSR.value


class HypercallExit(Exit):
    """A hypercall that KVM_CAP_EXIT_HYPERCALL leaves to userspace: assign `ret`, what the guest gets in RAX."""

    __slots__ = ("_run", "args", "flags", "nr")
    __match_args__ = ("nr", "args")
    reason = ExitReason.HYPERCALL.value
    _layout = Struct("<Q6QQQ")

    def __init__(self, run: Any) -> None:
        self.nr, *args, _, self.flags = self._layout.unpack_from(run, UNION_OFFSET)
        self.args = tuple(args)
        self._run = run

    @property
    def ret(self) -> int:
        """The result."""
        return int.from_bytes(self._run[HYPERCALL_RET_OFFSET : HYPERCALL_RET_OFFSET + 8], "little")

    @ret.setter
    def ret(self, value: int) -> None:
        self._run[HYPERCALL_RET_OFFSET : HYPERCALL_RET_OFFSET + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")

    def __repr__(self) -> str:
        return f"HypercallExit({self.nr}, {[hex(arg) for arg in self.args]})"


@dataclass(slots=True)
class DebugExit(Exit):
    """A debug event userspace asked to see: exception 1 (#DB) or 3 (#BP), where, and DR6 and DR7."""

    exception: int
    pc: int
    dr6: int
    dr7: int
    reason = ExitReason.DEBUG.value


@dataclass(slots=True)
class HltExit(Exit):
    """The guest executed HLT and userspace has the interrupt controller."""

    reason = ExitReason.HLT.value


@dataclass(slots=True)
class IrqWindowOpen(Exit):
    """The guest can take an interrupt now, as `request_interrupt_window` asked to be told."""

    reason = ExitReason.IRQ_WINDOW_OPEN.value


@dataclass(slots=True)
class ShutdownExit(Exit):
    """A triple fault: the guest's processor has shut down."""

    reason = ExitReason.SHUTDOWN.value


@dataclass(slots=True)
class ExceptionExit(Exit):
    """An exception that KVM passes on."""

    exception: int
    error_code: int
    reason = ExitReason.EXCEPTION.value


@dataclass(slots=True)
class SetTprExit(Exit):
    """The guest changed CR8 and userspace has the local APIC: `KvmRun.cr8` holds the new value."""

    reason = ExitReason.SET_TPR.value


@dataclass(slots=True)
class TprAccessExit(Exit):
    """The guest accessed the task priority register, which userspace wants to patch."""

    rip: int
    is_write: int
    reason = ExitReason.TPR_ACCESS.value


@dataclass(slots=True)
class NmiExit(Exit):
    """A non-maskable interrupt of the host arrived."""

    reason = ExitReason.NMI.value


@dataclass(slots=True)
class WatchdogExit(Exit):
    """A watchdog of the guest's expired."""

    reason = ExitReason.WATCHDOG.value


@dataclass(slots=True)
class IoapicEoi(Exit):
    """The guest ended a level interrupt and userspace has the IOAPIC (split interrupt controller)."""

    vector: int
    reason = ExitReason.IOAPIC_EOI.value


@dataclass(slots=True)
class HypervExit(Exit):
    """A Hyper-V synthetic interrupt controller's change or hypercall; `raw` is what follows the type."""

    type: int
    raw: bytes
    reason = ExitReason.HYPERV.value


@dataclass(slots=True)
class XenExit(Exit):
    """A Xen hypercall; `raw` is what follows the type."""

    type: int
    raw: bytes
    reason = ExitReason.XEN.value


@dataclass(slots=True)
class ApResetHold(Exit):
    """An encrypted guest's processor waits to be started."""

    reason = ExitReason.AP_RESET_HOLD.value


@dataclass(slots=True)
class BusLock(Exit):
    """The guest locked the whole bus, and KVM_CAP_X86_BUS_LOCK_EXIT asks to be told."""

    reason = ExitReason.X86_BUS_LOCK.value


@dataclass(slots=True)
class NotifyExit(Exit):
    """The guest kept its processor from taking any event for too long. Flag bit 0: its context is corrupted."""

    flags: int
    reason = ExitReason.NOTIFY.value


# --- kvm_run -> exits ----------------------------------------------------------------------------------------------------------

LAYOUTS: Mapping[type[Exit], Struct] = MappingProxyType({
    ExceptionExit: Struct("<II"),
    DebugExit: Struct("<I4xQQQ"),
    HltExit: Struct("<"),
    IrqWindowOpen: Struct("<"),
    ShutdownExit: Struct("<"),
    SetTprExit: Struct("<"),
    TprAccessExit: Struct("<QI"),
    NmiExit: Struct("<"),
    WatchdogExit: Struct("<"),
    IoapicEoi: Struct("<B"),
    HypervExit: Struct("<I4x64s"),
    XenExit: Struct("<I4x64s"),
    ApResetHold: Struct("<"),
    BusLock: Struct("<"),
    NotifyExit: Struct("<I"),
})  # fmt: skip
"""How the union is laid out, where the fields of the class follow that order."""

ANSWERED: tuple[type[Exit], ...] = (IoExit, RdmsrExit, WrmsrExit, HypercallExit)
"""Exits that keep hold of kvm_run, for the answer."""

_SHARED = (
    exits.MmioExit,
    exits.FailEntry,
    exits.IntrExit,
    exits.InternalError,
    exits.SystemEvent,
    exits.DirtyRingFull,
    exits.MemoryFault,
)
"""Exits of `exits.py` that mean the same on x86."""


def _decode_plain(cls: Callable[..., Exit], layout: Struct) -> Callable[[Any], Exit]:
    def decode(run: Any) -> Exit:
        return cls(*layout.unpack_from(run, UNION_OFFSET))

    return decode


DECODERS: Mapping[int, Callable[[Any], Exit]] = MappingProxyType({
    **{cls.reason: exits.DECODERS[cls.reason] for cls in _SHARED},
    **{cls.reason: _decode_plain(cls, layout) for cls, layout in LAYOUTS.items()},
    IoExit.reason: exits.ViewDecoder(IoExit.from_buffer),
    RdmsrExit.reason: RdmsrExit,
    WrmsrExit.reason: WrmsrExit,
    HypercallExit.reason: HypercallExit,
})  # fmt: skip
"""What makes an exit of a vCPU's shared memory, by reason."""


def decode_exit(run: Any) -> Exit:
    """The exit that a vCPU's shared memory holds."""
    number = int.from_bytes(run[EXIT_REASON_OFFSET : EXIT_REASON_OFFSET + 4], "little")
    decoder = DECODERS.get(number)
    return decoder(run) if decoder is not None else exits.decode_unknown(run)


def instruction_bytes(error: exits.InternalError) -> bytes:
    """The bytes of the instruction that could not be emulated; none where KVM did not say."""
    if error.suberror != InternalErrorKind.EMULATION or len(error.data) < 3 or not error.data[0] & EMULATION_HAS_BYTES:
        return b""
    packed = b"".join(word.to_bytes(8, "little") for word in error.data[1:3])
    return packed[1 : 1 + min(packed[0], 15)]
