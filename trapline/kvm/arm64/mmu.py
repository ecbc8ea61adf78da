"""The guest's memory: stage-2 tables filled on faults, emptied when slots change.

`mmu_lock` protects the tables. A fault looks at the slots and at host memory without it, then takes it, and maps only if the slots
are still those it looked at; so a translation to a slot that is going away is never made after its removal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Protocol

from trapline.arm64.regs import VTCR_EL2, VTTBR_EL2
from trapline.host.user import AddressSpace
from trapline.kvm.arm64.pagetable import BLOCK_SIZE, PAGE_SIZE, READ, VALID, WRITE, Stage2, level_shift
from trapline.kvm.memslots import Memslot, SlotSet
from trapline.kvm.stats import Counters
from trapline.sync import Lock

GRANULE_4K_SL0 = {2: 0, 1: 1, 0: 2}
"""VTCR_EL2.SL0 by start level, for the 4 KiB granule."""

PHYSICAL_48_BITS = 5
INNER_SHAREABLE = 3
WRITE_BACK = 1
RES1 = 1 << 31


class TlbMaintenance(Protocol):
    """What the machine offers to forget translations; both return when no vCPU can use the old ones."""

    def tlbi_vmalls12e1(self, vmid: int) -> None:
        """All translations of a VM."""

    def tlbi_ipas2e1is(self, vmid: int, ipa: int, size: int) -> None:
        """Those of a range of intermediate physical addresses."""


class Fault(Enum):
    """What came of a stage-2 fault."""

    MAPPED = 0
    RETRY = 1


class Mmu:
    """The stage 2 of one VM."""

    def __init__(
        self,
        ipa_bits: int,
        vmid: int,
        tlb: TlbMaintenance,
        address_space: AddressSpace,
        slots: Callable[[], SlotSet],
        stats: Counters,
    ) -> None:
        self.ipa_bits = ipa_bits
        self.vmid = vmid
        self.lock = Lock("mmu_lock", protects="stage-2 tables")
        self.tables = Stage2(ipa_bits)
        self._tlb = tlb
        self._address_space = address_space
        self._slots = slots
        self._stats = stats

    @property
    def vttbr(self) -> int:
        """VTTBR_EL2 for vCPUs of this VM."""
        return VTTBR_EL2(VMID=self.vmid) | self.tables.root

    @property
    def vtcr(self) -> int:
        """VTCR_EL2 for vCPUs of this VM."""
        return RES1 | VTCR_EL2(
            T0SZ=64 - self.ipa_bits,
            SL0=GRANULE_4K_SL0[self.tables.first_level],
            IRGN0=WRITE_BACK,
            ORGN0=WRITE_BACK,
            SH0=INNER_SHAREABLE,
            PS=PHYSICAL_48_BITS,
            VS=1,
        )

    def handle_fault(
        self, slots: SlotSet, slot: Memslot, ipa: int, write: bool, permission: bool, mark_dirty: Callable[[Memslot, int], None]
    ) -> Fault:
        """Map the page, or if possible the block, that holds `ipa`. KvmError(EFAULT) if host memory does not back it.

        `slots` is the set in which `slot` was found; `permission` says that a translation without the right exists. `mark_dirty` is
        told of a page that the guest can write from now on. The caller has dealt with writes to read-only slots.
        """
        page = ipa & -PAGE_SIZE
        hva = slot.hva_of(page)
        area = self._address_space.fault_in(hva, write)
        writable = area.writable and not slot.readonly and (write or not slot.logging)
        permissions = READ | WRITE if writable else READ
        with self.lock:
            if self._slots() is not slots:
                return Fault.RETRY
            if self._block_fits(slot, page, hva, area.start, area.end):
                block = page & -BLOCK_SIZE
                if self.tables.map_block(block, hva & -BLOCK_SIZE, permissions):
                    self._relax(permission, block, BLOCK_SIZE)
                    return Fault.MAPPED
            if not self.tables.map_page(page, hva, permissions):
                # Something else is mapped there: break before make. The next access maps afresh.
                self._forget(page, page + PAGE_SIZE)
                return Fault.RETRY
            self._relax(permission, page, PAGE_SIZE)
            if writable:
                mark_dirty(slot, page)
        return Fault.MAPPED

    def mapped(self, ipa: int) -> int:
        """How many bytes from an address on one translation covers; 0 if there is none."""
        with self.lock:
            descriptor, level = self.tables.leaf(ipa)
        size = 1 << level_shift(level)
        return size - ipa % size if descriptor & VALID else 0

    @staticmethod
    def _block_fits(slot: Memslot, page: int, hva: int, area_start: int, area_end: int) -> bool:
        """A block can be used if guest and host addresses agree below its size and it lies inside the slot and the mapping."""
        if slot.logging or (page ^ hva) & (BLOCK_SIZE - 1):
            return False
        block, host = page & -BLOCK_SIZE, hva & -BLOCK_SIZE
        return slot.gpa <= block and block + BLOCK_SIZE <= slot.end and area_start <= host and host + BLOCK_SIZE <= area_end

    def _relax(self, permission: bool, ipa: int, size: int) -> None:
        """After a permission fault TLBs hold the translation without the right."""
        if permission:
            self._tlb.tlbi_ipas2e1is(self.vmid, ipa, size)

    def unmap_slot(self, slot: Memslot) -> None:
        """Remove every translation to a slot; when this returns no vCPU can use one."""
        with self.lock:
            self._forget(slot.gpa, slot.end)

    def unmap_all(self) -> None:
        """Remove every translation."""
        with self.lock:
            if self.tables.clear():
                self._flush()
            self.tables.reclaim()

    def write_protect(self, gpa: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Make the next write to each page of these ranges, [begin, end) counted from `gpa` on, fault."""
        with self.lock:
            # No generator here: each range has to be done.
            if any([self.tables.write_protect(gpa + begin * PAGE_SIZE, gpa + end * PAGE_SIZE) for begin, end in ranges]):
                self._flush()

    def _forget(self, start: int, end: int) -> None:
        if self.tables.unmap(start, end):
            self._flush()
        self.tables.reclaim()

    def _flush(self) -> None:
        """Let all TLBs forget the VM's translations."""
        self._stats.remote_tlb_flush_requests += 1
        self._tlb.tlbi_vmalls12e1(self.vmid)
        self._stats.remote_tlb_flush += 1
