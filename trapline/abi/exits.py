"""Why KVM_RUN came back: struct kvm_run and one class for each exit reason.

An exit object is a copy of what kvm_run held; only the fields documented as answers are written back, and take effect when the vCPU
runs next. A reason this table does not know is passed on as `UnknownExit`, never hidden.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Annotated, Any

from trapline.abi.extensions import EXIT_SYSREG, SysregAction, SysregState
from trapline.abi.struct import Structure, struct, u8, u16, u32, u64

IMMEDIATE_EXIT_OFFSET = 1
EXIT_REASON_OFFSET = 8
UNION_OFFSET = 32
DEVICE_IRQ_LEVEL_OFFSET = 304
UNION_SIZE = 256


@struct(size=2352, c_name="kvm_run")
class KvmRun(Structure):
    """The memory a vCPU shares with userspace. `union` is laid out by exit reason."""

    request_interrupt_window: u8
    immediate_exit: u8
    padding1: Annotated[Any, ctypes.c_uint8 * 6]
    exit_reason: u32
    ready_for_interrupt_injection: u8
    if_flag: u8
    flags: u16
    cr8: u64
    apic_base: u64
    union: Annotated[Any, ctypes.c_uint8 * UNION_SIZE]
    kvm_valid_regs: u64
    kvm_dirty_regs: u64
    device_irq_level: u64
    padding2: Annotated[Any, ctypes.c_uint8 * 2040]


class DeviceIrqLevel(IntFlag):
    """Bits of kvm_run.device_irq_level: outputs of in-kernel devices, for a VM whose interrupt controller is userspace's."""

    VTIMER = 1 << 0
    PTIMER = 1 << 1
    PMU = 1 << 2


class ExitReason(IntEnum):
    """KVM_EXIT_*: the reasons arm64 can have."""

    UNKNOWN = 0
    HYPERCALL = 3
    DEBUG = 4
    MMIO = 6
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    ARM_NISV = 28
    DIRTY_RING_FULL = 31
    MEMORY_FAULT = 39
    ARM_SEA = 41
    ARM_LDST64B = 42
    TRAPLINE_SYSREG = EXIT_SYSREG  # not Linux's: abi/extensions.py


class SystemEventType(IntEnum):
    """What the guest asked of its machine."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5


class Exit:
    """Base of all exits. `reason` is the number in kvm_run."""

    __slots__ = ()
    reason: int = -1
    has_policies = False
    """Whether a VM can be told beforehand how to answer."""


_REASON = Struct("<I")
MMIO_LAYOUT = Struct("<Q8sIB")
MMIO_DATA_OFFSET = UNION_OFFSET + 8


class MmioExit(Exit):
    """The guest accessed an address outside its memory slots.

    `data` holds `length` bytes, little-endian. For a read, assign `data` (bytes or int) before running again: it is the value
    that the guest's instruction gets.
    """

    __slots__ = ("_data", "_run", "is_write", "length", "phys_addr")
    __match_args__ = ("phys_addr", "data", "length", "is_write")
    reason = ExitReason.MMIO.value

    def __init__(self, phys_addr: int, data: bytes, length: int, is_write: bool, run: Any = None) -> None:
        self.phys_addr = phys_addr
        self._data = data
        self.length = length
        self.is_write = is_write
        self._run = run

    @property
    def data(self) -> bytes:
        """The bytes written, or the bytes a read will get."""
        return self._data

    @data.setter
    def data(self, value: bytes | int) -> None:
        if self.is_write:
            raise AttributeError("the guest wrote this data; only a read can be answered")
        length = self.length
        if isinstance(value, int):
            data = value.to_bytes(8, "little")[:length]
        else:
            data = bytes(value).ljust(length, b"\0")[:length]
        self._data = data
        if self._run is not None:
            self._run[MMIO_DATA_OFFSET : MMIO_DATA_OFFSET + length] = data

    @property
    def value(self) -> int:
        """`data` as a number."""
        return int.from_bytes(self._data, "little")

    def __repr__(self) -> str:
        verb = "write" if self.is_write else "read"
        return f"MmioExit({verb} of {self.length} at {self.phys_addr:#x}, data={self._data.hex()})"


SYSREG_LAYOUT = Struct("<8BQ240x")
"""With the whole rest of the union, which is zeroed."""
SYSREG_STATES = tuple(SysregState)
_SYSREG_ANSWER = Struct("<BQ")
SYSREG_ACTION_OFFSET = UNION_OFFSET + 7
SYSREG_VALUE_OFFSET = UNION_OFFSET + 8


class SysregExit(Exit):
    """The guest accessed an implementation-defined system register (not in Linux: docs/sysreg-exits.md).

    `value` is what a write wrote. Answer a read by assigning `value`, accept a write by `done()`; an access that is not answered before
    the vCPU runs again is UNDEFINED to the guest.
    """

    __slots__ = ("_run", "_value", "crm", "crn", "is_write", "op0", "op1", "op2", "state")
    __match_args__ = ("name", "is_write", "value")
    reason = ExitReason.TRAPLINE_SYSREG.value
    has_policies = True

    def __init__(self, enc: tuple[int, int, int, int, int], is_write: bool, value: int = 0, state: int = 0, run: Any = None) -> None:
        self.op0, self.op1, self.crn, self.crm, self.op2 = enc
        self.is_write = is_write
        self.state = SYSREG_STATES[state]
        self._value = value
        self._run = run

    @property
    def name(self) -> str:
        """The register's generic name: S3_4_C15_C2_0; P15_0_C15_C2_0 and P15_0_C15 for coprocessor 15's of AArch32 state."""
        if self.state == SysregState.CP15_64:
            return f"P15_{self.op1}_C{self.crm}"
        first = "P15" if self.state == SysregState.CP15_32 else f"S{self.op0}"
        return f"{first}_{self.op1}_C{self.crn}_C{self.crm}_{self.op2}"

    @property
    def value(self) -> int:
        """What the guest wrote, or what its read will get."""
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        if self.is_write:
            raise AttributeError("the guest wrote this value; accept it with done()")
        self._value = value & (1 << 64) - 1
        if self._run is not None:
            _SYSREG_ANSWER.pack_into(self._run, SYSREG_ACTION_OFFSET, SysregAction.DONE, self._value)

    def done(self) -> None:
        """The access took place."""
        self._decide(SysregAction.DONE)

    def undefined(self) -> None:
        """There is no such register: the guest gets an undefined instruction exception."""
        self._decide(SysregAction.UNDEFINED)

    def _decide(self, action: SysregAction) -> None:
        if self._run is not None:
            self._run[SYSREG_ACTION_OFFSET] = int(action)

    def __repr__(self) -> str:
        verb = f"write of {self._value:#x} to" if self.is_write else "read of"
        return f"SysregExit({verb} {self.name})"


def _decode_sysreg(run: Any) -> Exit:
    *enc, is_write, state, _, value = SYSREG_LAYOUT.unpack_from(run, UNION_OFFSET)
    return SysregExit((enc[0], enc[1], enc[2], enc[3], enc[4]), bool(is_write), value, state, run)


def encode_sysreg(run: Any, enc: tuple[int, int, int, int, int], state: int, is_write: bool, value: int) -> None:
    """Write an access to a system register into kvm_run, with nothing left of an earlier exit."""
    _REASON.pack_into(run, EXIT_REASON_OFFSET, EXIT_SYSREG)
    SYSREG_LAYOUT.pack_into(run, UNION_OFFSET, *enc, is_write, state, SysregAction.UNDEFINED, value)


@dataclass(slots=True)
class HypercallExit(Exit):
    """An SMCCC call that the VM's filter forwards. Arguments and results are the vCPU's registers."""

    nr: int
    flags: int
    reason = ExitReason.HYPERCALL.value
    has_policies = True


@dataclass(slots=True)
class DebugExit(Exit):
    """A debug exception that userspace asked to see: its syndrome and, for a watchpoint, the address."""

    hsr: int
    far: int
    reason = ExitReason.DEBUG.value


@dataclass(slots=True)
class FailEntry(Exit):
    """The vCPU could not be entered; the number is the hardware's reason."""

    hardware_entry_failure_reason: int
    cpu: int
    reason = ExitReason.FAIL_ENTRY.value


@dataclass(slots=True)
class IntrExit(Exit):
    """The run was interrupted from outside: a kick, a signal or `immediate_exit`. The guest lost nothing."""

    reason = ExitReason.INTR.value


@dataclass(slots=True)
class InternalError(Exit):
    """KVM gave up: the vCPU's state is not one it can run."""

    suberror: int
    data: tuple[int, ...]
    reason = ExitReason.INTERNAL_ERROR.value


@dataclass(slots=True)
class SystemEvent(Exit):
    """The guest asked for power-off, reset or suspension, or crashed. `data[0]` may hold `SystemEventFlag` bits."""

    type: int
    data: tuple[int, ...]
    reason = ExitReason.SYSTEM_EVENT.value


@dataclass(slots=True)
class NisvExit(Exit):
    """A device access by an instruction that leaves no syndrome. Userspace emulates it and moves the PC itself."""

    esr_iss: int
    fault_ipa: int
    reason = ExitReason.ARM_NISV.value


@dataclass(slots=True)
class Ldst64bExit(Exit):
    """A 64-byte load or store outside memory slots."""

    esr_iss: int
    fault_ipa: int
    reason = ExitReason.ARM_LDST64B.value


@dataclass(slots=True)
class DirtyRingFull(Exit):
    """The vCPU's dirty ring has to be harvested and reset before it can go on."""

    reason = ExitReason.DIRTY_RING_FULL.value


@dataclass(slots=True)
class MemoryFault(Exit):
    """Guest memory could not be resolved; fix the mapping and run again."""

    flags: int
    gpa: int
    size: int
    reason = ExitReason.MEMORY_FAULT.value


@dataclass(slots=True)
class SeaExit(Exit):
    """A synchronous external abort that the VM has to handle. Flag bit 0: `gpa` is valid."""

    flags: int
    esr: int
    gva: int
    gpa: int
    reason = ExitReason.ARM_SEA.value


@dataclass(slots=True)
class UnknownExit(Exit):
    """A reason this library does not know, or one that KVM itself could not name; `raw` is the union as it was."""

    number: int
    raw: bytes
    reason = ExitReason.UNKNOWN.value


class ViewDecoder:
    """A decoder whose exits are no copies: they always show what kvm_run holds, so that one serves a vCPU for ever."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[Any], Exit]) -> None:
        self.make = make

    def __call__(self, run: Any) -> Exit:
        return self.make(run)


# --- kvm_run <-> exits ---------------------------------------------------------------------------------------------------------

LAYOUTS: dict[type[Exit], Struct] = {
    HypercallExit: Struct("<Q56xQ"),
    DebugExit: Struct("<IIQ"),
    FailEntry: Struct("<QI"),
    IntrExit: Struct("<"),
    InternalError: Struct("<II16Q"),
    SystemEvent: Struct("<II16Q"),
    NisvExit: Struct("<QQ"),
    Ldst64bExit: Struct("<QQ"),
    DirtyRingFull: Struct("<"),
    MemoryFault: Struct("<QQQ"),
    SeaExit: Struct("<QQQQ"),
}
"""How the union at offset 32 is laid out, where the fields of the class follow that order."""

_COUNTED = (InternalError, SystemEvent)
"""Exits whose second word counts the valid words of the array that follows."""

DEBUG_HSR_HIGH_VALID = 1
"""Bit of kvm_run.flags: the upper half of the syndrome is valid."""


_new = object.__new__


def decode_mmio(run: Any) -> Exit:
    """The device access that a vCPU's shared memory holds."""
    exit: MmioExit = _new(MmioExit)  # most exits are such, and the call of __init__ takes as long as all this
    exit.phys_addr, data, exit.length, is_write = MMIO_LAYOUT.unpack_from(run, UNION_OFFSET)
    exit._data = data[: exit.length]
    exit.is_write = is_write != 0
    exit._run = run
    return exit


def _decode_debug(run: Any) -> Exit:
    low, high, far = LAYOUTS[DebugExit].unpack_from(run, UNION_OFFSET)
    valid = run[14] & DEBUG_HSR_HIGH_VALID
    return DebugExit(low | (high << 32 if valid else 0), far)


def _decode_counted(cls: Callable[..., Exit]) -> Callable[[Any], Exit]:
    layout = LAYOUTS[cls]  # type: ignore[index]

    def decode(run: Any) -> Exit:
        kind, count, *data = layout.unpack_from(run, UNION_OFFSET)
        return cls(kind, tuple(data[:count]))

    return decode


def _decode_plain(cls: Callable[..., Exit]) -> Callable[[Any], Exit]:
    layout = LAYOUTS[cls]  # type: ignore[index]

    def decode(run: Any) -> Exit:
        return cls(*layout.unpack_from(run, UNION_OFFSET))

    return decode


DECODERS: dict[int, Callable[[Any], Exit]] = {
    **{cls.reason: _decode_plain(cls) for cls in LAYOUTS},
    **{cls.reason: _decode_counted(cls) for cls in _COUNTED},
    DebugExit.reason: _decode_debug,
    MmioExit.reason: decode_mmio,
    SysregExit.reason: _decode_sysreg,
}


def decode_exit(run: Any) -> Exit:
    """The exit that a vCPU's shared memory (any writable buffer) holds."""
    (number,) = _REASON.unpack_from(run, EXIT_REASON_OFFSET)
    decoder = DECODERS.get(number)
    return decoder(run) if decoder is not None else decode_unknown(run)


def decode_unknown(run: Any) -> Exit:
    """An exit of a reason that no class stands for."""
    (number,) = _REASON.unpack_from(run, EXIT_REASON_OFFSET)
    return UnknownExit(number, bytes(run[UNION_OFFSET : UNION_OFFSET + UNION_SIZE]))


def encode_exit(run: Any, exit: Exit) -> None:
    """Write an exit into kvm_run: what KVM does before it returns to userspace."""
    _REASON.pack_into(run, EXIT_REASON_OFFSET, exit.reason)
    if isinstance(exit, _COUNTED):
        data = exit.data + (0,) * (16 - len(exit.data))
        kind = exit.type if isinstance(exit, SystemEvent) else exit.suberror
        LAYOUTS[type(exit)].pack_into(run, UNION_OFFSET, kind, len(exit.data), *data)
    elif isinstance(exit, DebugExit):
        LAYOUTS[DebugExit].pack_into(run, UNION_OFFSET, exit.hsr & 0xFFFF_FFFF, exit.hsr >> 32, exit.far)
        run[14] |= DEBUG_HSR_HIGH_VALID
    else:
        names: tuple[str, ...] = tuple(exit.__slots__)
        fields = [getattr(exit, name) for name in names]
        LAYOUTS[type(exit)].pack_into(run, UNION_OFFSET, *fields)
