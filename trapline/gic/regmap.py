"""Notation for the memory-mapped registers of the interrupt controller: one row per register or per-interrupt register file.

    Plain("GICD_TYPER", 0x004, 4, read=typer)               one register; without `write` it ignores writes
    PerIrq("GICD_IPRIORITYR", 0x400, 8, get=..., put=..., widths=BYTE_WORD)    `bits` bits for every interrupt

The same rows answer the guest (any permitted width), user space (32-bit words by offset) and "does this register exist".
Where user space means something else than the guest (restoring state must not acknowledge or trigger), a row says so with
`user_*`. An access of a width the row does not list reads as zero and writes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from trapline.errors import TableError

from .lpi import Lpis
from .state import INTID_LIMIT, CpuInterface, Irq


class Gic(Protocol):
    """What register functions may use of the interrupt controller; its lock is held."""

    nr_irqs: int
    group_enable: int
    implementation: dict[str, int]

    @property
    def lpis(self) -> Lpis:
        """The LPIs."""

    @property
    def cpus(self) -> list[CpuInterface]:
        """All CPU interfaces."""

    def requeue(self, irq: Irq, *, tell: bool = True) -> None:
        """The state of `irq` has changed."""

    def set_groups(self, enable: int) -> None:
        """Change GICD_CTLR.EnableGrp<n>."""

    def route(self, irq: Irq, affinity: int) -> None:
        """Send an SPI to another vCPU."""

    def is_last(self, cpu: CpuInterface) -> bool:
        """Whether no redistributor follows this one."""


@dataclass(frozen=True)
class Access:
    """Who accesses which frame: `cpu` owns the redistributor, or is None for the distributor."""

    gic: Gic
    cpu: CpuInterface | None
    irqs: list[Irq]
    """The interrupts of this frame, by INTID minus `first`."""
    first: int

    def irq(self, intid: int) -> Irq | None:
        """The interrupt, if this frame has it."""
        index = intid - self.first
        return self.irqs[index] if 0 <= index < len(self.irqs) else None


WORD = frozenset({4})
BYTE_WORD = frozenset({1, 4})
WORD_DOUBLE = frozenset({4, 8})

Read = Callable[[Access], int]
Write = Callable[[Access, int], None]
Get = Callable[[Irq], int]
Put = Callable[[Gic, Irq, int], None]


def zero(_access: Access) -> int:
    """Reads as zero."""
    return 0


def ignore(_access: Access, _value: int) -> None:
    """Writes do nothing."""


def get_zero(_irq: Irq) -> int:
    """Reads as zero."""
    return 0


def put_ignore(_gic: Gic, _irq: Irq, _value: int) -> None:
    """Writes do nothing."""


@dataclass(frozen=True)
class Plain:
    """A register that is not per interrupt, `length` bytes long (or a reserved range)."""

    name: str
    offset: int
    length: int
    read: Read = zero
    write: Write = ignore
    user_read: Read | None = None
    user_write: Write | None = None
    widths: frozenset[int] = WORD

    def load(self, access: Access, offset: int, length: int, user: bool) -> int:
        """`length` bytes at `offset` of the frame."""
        value = (self.user_read or self.read if user else self.read)(access)
        return value >> 8 * (offset - self.offset) & (1 << 8 * length) - 1

    def store(self, access: Access, offset: int, length: int, value: int, user: bool) -> None:
        """Store `length` bytes at `offset` of the frame; the other bytes keep what they read."""
        if length < self.length:
            shift, mask = 8 * (offset - self.offset), (1 << 8 * length) - 1
            value = self.read(access) & ~(mask << shift) | (value & mask) << shift
        (self.user_write or self.write if user else self.write)(access, value)

    def exists(self, _access: Access, _offset: int) -> bool:
        """Whether user space may name this offset."""
        return True


@dataclass(frozen=True)
class PerIrq:
    """A register file with `bits` bits for each interrupt."""

    name: str
    offset: int
    bits: int
    get: Get = get_zero
    put: Put = put_ignore
    user_get: Get | None = None
    user_put: Put | None = None
    widths: frozenset[int] = WORD
    count: int = INTID_LIMIT + 4
    """For how many interrupts there is room."""
    length: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", self.count * self.bits // 8)

    def _fields(self, access: Access, offset: int, length: int) -> Iterable[tuple[int, int, Irq]]:
        """(shift, position of the register's low bits, interrupt) for each interrupt the access touches."""
        start = 8 * (offset - self.offset)
        if self.bits > 8 * length:
            irq = access.irq(start // self.bits)
            if irq is not None:
                yield 0, start % self.bits, irq
            return
        for shift in range(0, 8 * length, self.bits):
            irq = access.irq((start + shift) // self.bits)
            if irq is not None:
                yield shift, 0, irq

    def load(self, access: Access, offset: int, length: int, user: bool) -> int:
        """`length` bytes at `offset`; interrupts that do not exist read as zero."""
        get = self.user_get or self.get if user else self.get
        value = 0
        for shift, low, irq in self._fields(access, offset, length):
            value |= get(irq) >> low << shift
        return value & (1 << 8 * length) - 1

    def store(self, access: Access, offset: int, length: int, value: int, user: bool) -> None:
        """Store `length` bytes at `offset`."""
        put = self.user_put or self.put if user else self.put
        mask = (1 << self.bits) - 1
        for shift, low, irq in self._fields(access, offset, length):
            part = value >> shift & mask
            if self.bits > 8 * length:
                hole = (1 << 8 * length) - 1 << low
                part = self.get(irq) & ~hole | (part << low & hole)
            put(access.gic, irq, part)

    def exists(self, access: Access, offset: int) -> bool:
        """Whether the interrupts at this offset exist (private ones always read as zero in the distributor)."""
        return 8 * (offset - self.offset) // self.bits < access.first + len(access.irqs)


Row = Plain | PerIrq


class RegisterMap:
    """The rows of one 64 KiB frame."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = sorted(rows, key=lambda row: row.offset)
        self._offsets = [row.offset for row in self.rows]
        for before, after in zip(self.rows, self.rows[1:], strict=False):
            if before.offset + before.length > after.offset:
                raise TableError(f"{before.name} and {after.name} overlap")

    def find(self, offset: int) -> Row | None:
        """The row that covers `offset`."""
        at = bisect_right(self._offsets, offset) - 1
        if at < 0 or offset >= self._offsets[at] + self.rows[at].length:
            return None
        return self.rows[at]

    def read(self, access: Access, offset: int, length: int, *, user: bool = False) -> int:
        """An access of the guest, or of user space."""
        row = self._permitted(offset, length)
        return row.load(access, offset, length, user) if row else 0

    def write(self, access: Access, offset: int, length: int, value: int, *, user: bool = False) -> None:
        """An access of the guest, or of user space."""
        row = self._permitted(offset, length)
        if row:
            row.store(access, offset, length, value, user)

    def exists(self, access: Access, offset: int) -> bool:
        """Whether user space can read and write a word at `offset`."""
        row = self.find(offset) if offset % 4 == 0 else None
        return row is not None and row.exists(access, offset)

    def _permitted(self, offset: int, length: int) -> Row | None:
        row = self.find(offset)
        return row if row and length in row.widths and offset % length == 0 else None
