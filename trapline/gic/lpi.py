"""LPIs: message-signalled interrupts, whose configuration and pending state are tables in guest memory (IHI0069, chapter 5).

An LPI exists here from when an ITS maps an event to it. Its priority and enable are read from the property table then, and again when
the guest says that it has changed them; its pending state is here, and goes to the redistributor's pending table only when user space
asks for that. LPIs are edges of group 1, and never active.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from trapline.errors import KvmError
from trapline.registers import Field, Register

from .state import FIRST_LPI, PRIORITY_MASK, CpuInterface, Irq

LPI_ID_BITS = 16
"""INTIDs have 16 bits when there are LPIs."""


class HostMemory(Protocol):
    """Guest memory, as the interrupt controller reads and writes it. Each fails with KvmError where there is none."""

    def read(self, gpa: int, size: int) -> bytes:
        """`size` bytes."""

    def write(self, gpa: int, data: bytes) -> None:
        """Write them."""


class TableAttributes(Register):
    """How the registers that hold a table's address describe its memory. Ours is coherent whatever they say."""

    InnerCache = Field(9, 7)
    Shareability = Field(11, 10)
    OuterCache = Field(58, 56)


NON_CACHEABLE, READ_WRITE_ALLOCATE = 1, 3
INNER_SHAREABLE, OUTER_SHAREABLE = 1, 2


class Propbaser(TableAttributes):
    """GICR_PROPBASER. `IDbits` is one less than the number of bits of an INTID."""

    IDbits = Field(4, 0)
    Address = Field(51, 12)


class Pendbaser(TableAttributes):
    """GICR_PENDBASER."""

    Address = Field(51, 16)
    PTZ = Field(62)


def honest(kind: type[TableAttributes], value: int) -> int:
    """A table register's value with the bits that exist, and memory attributes that are supported."""
    kept = kind(value & kind.fields_mask())
    return kept.replace(
        InnerCache=kept.InnerCache if kept.InnerCache > NON_CACHEABLE else READ_WRITE_ALLOCATE,
        OuterCache=min(kept.OuterCache, NON_CACHEABLE),
        Shareability=INNER_SHAREABLE if kept.Shareability == OUTER_SHAREABLE else kept.Shareability,
    )


class Lpis:
    """The LPIs of one interrupt controller. Every method is called with its lock held."""

    def __init__(self, requeue: Callable[[Irq], None]) -> None:
        self._requeue = requeue
        self._irqs: dict[int, Irq] = {}
        self._users: Counter[int] = Counter()
        """How many events lead to each of them."""
        self.memory: HostMemory | None = None
        """None while there is no ITS, and so no LPI."""
        self.propbaser = 0
        """One property table for all redistributors."""

    def __iter__(self) -> Iterator[Irq]:
        return iter(self._irqs.values())

    @property
    def limit(self) -> int:
        """First INTID that is no LPI any more, as far as the property table goes."""
        return 1 << min(Propbaser(self.propbaser).IDbits + 1, LPI_ID_BITS)

    def set_propbaser(self, value: int) -> None:
        """Move the property table."""
        self.propbaser = honest(Propbaser, value)

    # ---- life ---------------------------------------------------------------------------------------------------------------

    def take(self, intid: int, target: CpuInterface | None) -> Irq:
        """The LPI with this number, for one more event; KvmError(EFAULT) if a table of its is not in memory."""
        irq = self._irqs.get(intid)
        if irq is None:
            irq = Irq(intid)
            irq.target = target
            self._configure(irq)
            self._fetch_pending(irq)
            self._irqs[intid] = irq
            self._requeue(irq)
        self._users[intid] += 1
        return irq

    def give_back(self, irq: Irq) -> None:
        """One event fewer leads to it. Its pending state goes with the last."""
        self._users[irq.intid] -= 1
        if not self._users[irq.intid]:
            del self._users[irq.intid], self._irqs[irq.intid]
            irq.enabled = False
            irq.clear_latch()
            self._requeue(irq)

    def move(self, irq: Irq, target: CpuInterface) -> None:
        """Send it to another vCPU from now on."""
        irq.target = target
        self._requeue(irq)

    # ---- configuration ------------------------------------------------------------------------------------------------------

    def reload(self, intid: int) -> None:
        """The guest has changed the configuration of an LPI."""
        if intid in self._irqs:
            self._reload(self._irqs[intid])

    def reload_all(self, cpu: CpuInterface) -> None:
        """The guest has changed the configuration of LPIs of this vCPU."""
        for irq in self._irqs.values():
            if irq.target is cpu:
                self._reload(irq)

    def _reload(self, irq: Irq) -> None:
        try:
            self._configure(irq)
        except KvmError:
            return  # no table, no change
        self._requeue(irq)

    def _configure(self, irq: Irq) -> None:
        table = self.propbaser & Propbaser.Address.mask
        entry = self._memory().read(table + irq.intid - FIRST_LPI, 1)[0]
        irq.priority = entry & PRIORITY_MASK
        irq.enabled = bool(entry & 1)

    # ---- pending tables -----------------------------------------------------------------------------------------------------

    def enable(self, cpu: CpuInterface) -> None:
        """GICR_CTLR.EnableLPIs was set: the pending table says what is pending."""
        cpu.lpis = True
        for irq in self._irqs.values():
            if irq.target is cpu:
                try:
                    pending = self._pending_bit(irq, cpu)
                except KvmError:
                    return
                if pending:
                    irq.set_latch()
                else:
                    irq.clear_latch()
                self._requeue(irq)

    def disable(self, cpu: CpuInterface) -> None:
        """GICR_CTLR.EnableLPIs was cleared: what was pending is forgotten."""
        cpu.lpis = False
        for irq in self._irqs.values():
            if irq.target is cpu:
                irq.clear_latch()
                self._requeue(irq)

    def save_pending(self) -> None:
        """Write what is pending to the pending tables; KvmError(EFAULT) if one is not in memory."""
        for irq in self._irqs.values():
            if irq.target is not None:
                self._store_pending(irq, irq.target, irq.is_pending())

    def _fetch_pending(self, irq: Irq) -> None:
        """Take the pending state of a new LPI out of the table, and clear it there."""
        cpu = irq.target
        if cpu is not None and self._pending_bit(irq, cpu):
            irq.latch = True
            self._store_pending(irq, cpu, False)

    def _pending_byte(self, irq: Irq, cpu: CpuInterface) -> int:
        return (cpu.redist["GICR_PENDBASER"] & Pendbaser.Address.mask) + irq.intid // 8

    def _pending_bit(self, irq: Irq, cpu: CpuInterface) -> bool:
        return bool(self._memory().read(self._pending_byte(irq, cpu), 1)[0] >> irq.intid % 8 & 1)

    def _store_pending(self, irq: Irq, cpu: CpuInterface, pending: bool) -> None:
        memory, at, bit = self._memory(), self._pending_byte(irq, cpu), 1 << irq.intid % 8
        before = memory.read(at, 1)[0]
        after = before | bit if pending else before & ~bit
        if after != before:
            memory.write(at, bytes((after,)))

    def _memory(self) -> HostMemory:
        if self.memory is None:
            raise TypeError("an interrupt controller without an ITS has no LPIs")
        return self.memory
