"""Coalesced MMIO: guest writes that wait in a page shared with userspace instead of ending KVM_RUN one by one."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from errno import EINVAL, ENOSPC
from typing import TYPE_CHECKING, Protocol

from trapline.abi.ioctl import implements
from trapline.abi.memory import (
    COALESCED_MAX,
    KVM_REGISTER_COALESCED_MMIO,
    KVM_UNREGISTER_COALESCED_MMIO,
    CoalescedMmio,
    CoalescedMmioRing,
    CoalescedMmioZone,
)
from trapline.errors import KvmError
from trapline.host.user import PAGE_SIZE
from trapline.sync import Lock

if TYPE_CHECKING:
    from trapline.kvm.vm import Vm

RING_PAGE = 1
"""Which page of a vCPU's mapping the ring is: what KVM_CAP_COALESCED_MMIO says."""

MAX_ZONES = 1000
"""On each bus."""

ADDRESS_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Zone:
    """Addresses whose writes wait: [start, end). No guest of arm64 reaches port addresses."""

    pio: bool
    start: int
    end: int

    def holds(self, address: int, size: int) -> bool:
        """Whether the whole access is inside."""
        return self.start <= address and address + size <= self.end


class Posts(Protocol):
    """A machine that adds to the ring itself: to places that it was told of, and without ending the guest's run."""

    address: int

    def write(self, address: int, size: int, value: int) -> bool:
        """Add a write, and know its place from now on; False if there is no room."""

    def forget(self) -> None:
        """Know no place any more."""


class CoalescedWrites:
    """A VM's zones, and the ring that all its vCPUs' writes go to. The guest's writes look at `zones` without a lock."""

    def __init__(self) -> None:
        self.posts: Posts | None = None
        """The architecture's, if its machine can do that."""
        self.page = mmap.mmap(-1, PAGE_SIZE)
        self._ring = CoalescedMmioRing.from_buffer(self.page)
        self._entries = (CoalescedMmio * COALESCED_MAX).from_buffer(self.page, ctypes.sizeof(CoalescedMmioRing))
        self._lock = Lock("coalesced_lock", protects="zones, the ring's `last`")
        self.zones: tuple[Zone, ...] = ()
        """Replaced, never changed."""

    def register(self, pio: bool, address: int, size: int) -> None:
        """Another zone; KvmError(ENOSPC) if there are too many."""
        with self._lock:
            if sum(zone.pio == pio for zone in self.zones) >= MAX_ZONES:
                raise KvmError(ENOSPC)
            self.zones = (*self.zones, Zone(pio, address, (address + size) & ADDRESS_MASK))

    def unregister(self, pio: bool, address: int, size: int) -> None:
        """Take away all zones that hold a range."""
        with self._lock:
            self.zones = tuple(zone for zone in self.zones if zone.pio != pio or not zone.holds(address, size))
        self.changed()

    def changed(self) -> None:
        """Something else may answer an address by now: a write of the guest's is looked at again before it waits."""
        if self.posts is not None:
            self.posts.forget()

    @property
    def ring_address(self) -> int:
        """Where the ring is in this process."""
        return ctypes.addressof(self._ring)

    def write(self, address: int, size: int, value: int) -> bool:
        """Take a guest's write; False if no zone holds it or the ring is full, and it has to exit."""
        if not any(zone.holds(address, size) and not zone.pio for zone in self.zones):
            return False
        if self.posts is not None:
            return self.posts.write(address, size, value)
        ring = self._ring
        with self._lock:
            # Both are userspace's to write, too.
            last = ring.last
            if last >= COALESCED_MAX or (last + 1) % COALESCED_MAX == ring.first:
                return False
            entry = self._entries[last]
            entry.phys_addr, entry.len, entry.pio = address, size, 0
            entry.data[:size] = value.to_bytes(size, "little")
            ring.last = (last + 1) % COALESCED_MAX
        return True


@implements(KVM_REGISTER_COALESCED_MMIO)
def register_coalesced_mmio(vm: Vm, zone: CoalescedMmioZone) -> int:
    """Add a zone."""
    vm.coalesced.register(_bus(zone), zone.addr, zone.size)
    return 0


@implements(KVM_UNREGISTER_COALESCED_MMIO)
def unregister_coalesced_mmio(vm: Vm, zone: CoalescedMmioZone) -> int:
    """Remove zones."""
    vm.coalesced.unregister(_bus(zone), zone.addr, zone.size)
    return 0


def _bus(zone: CoalescedMmioZone) -> bool:
    if zone.pio not in (0, 1):
        raise KvmError(EINVAL)
    return bool(zone.pio)
