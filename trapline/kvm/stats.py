"""Statistics of VMs and vCPUs, and the files that they can be read from."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trapline.abi.ioctl import implements
from trapline.abi.stats import BASE_SHIFT, KVM_GET_STATS_FD, NAME_SIZE, UNIT_SHIFT, StatsDesc, StatsHeader, StatType, StatUnit

if TYPE_CHECKING:
    from trapline.kvm.vcpu import Vcpu
    from trapline.kvm.vm import Vm

NANO: Final = -9
HISTOGRAM_BUCKETS: Final = 32
BASE_OF_TEN: Final = 0
HEADER_SIZE: Final = 24
DESC_SIZE: Final = 16 + NAME_SIZE


@dataclass(frozen=True, slots=True)
class Stat:
    """One statistic: `size` numbers in units of 10**exponent."""

    name: str
    kind: StatType = StatType.CUMULATIVE
    unit: StatUnit = StatUnit.NONE
    exponent: int = 0
    size: int = 1

    @property
    def flags(self) -> int:
        """As a descriptor has them."""
        return self.kind | self.unit << UNIT_SHIFT | BASE_OF_TEN << BASE_SHIFT


def _time(name: str) -> Stat:
    return Stat(name, unit=StatUnit.SECONDS, exponent=NANO)


def _times(name: str) -> Stat:
    return Stat(name, StatType.LOG_HIST, StatUnit.SECONDS, NANO, HISTOGRAM_BUCKETS)


VM_STATS: Final = (Stat("remote_tlb_flush"), Stat("remote_tlb_flush_requests"))

VCPU_STATS: Final = (
    Stat("halt_successful_poll"),
    Stat("halt_attempted_poll"),
    Stat("halt_poll_invalid"),
    Stat("halt_wakeup"),
    _time("halt_poll_success_ns"),
    _time("halt_poll_fail_ns"),
    _time("halt_wait_ns"),
    _times("halt_poll_success_hist"),
    _times("halt_poll_fail_hist"),
    _times("halt_wait_hist"),
    Stat("blocking", StatType.INSTANT, StatUnit.BOOLEAN),
)
"""What every architecture counts. Nobody polls here, so what polling did stays 0."""


class Counters:
    """The numbers themselves, one attribute for each statistic: an int, or a list for a histogram. Counted without a lock: a
    vCPU's by its own thread."""

    def __init__(self, stats: Sequence[Stat]) -> None:
        for stat in stats:
            setattr(self, stat.name, 0 if stat.size == 1 else [0] * stat.size)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


def count_time(histogram: list[int], nanoseconds: int) -> None:
    """Enter a time into a histogram by powers of two."""
    histogram[min(nanoseconds.bit_length(), len(histogram) - 1)] += 1


class StatsFile:
    """What KVM_GET_STATS_FD makes."""

    def __init__(self, name: str, stats: Sequence[Stat], counters: Counters) -> None:
        self._stats = stats
        self._counters = counters
        desc_offset = HEADER_SIZE + NAME_SIZE
        header = StatsHeader(0, NAME_SIZE, len(stats), HEADER_SIZE, desc_offset, desc_offset + len(stats) * DESC_SIZE)
        self._head = bytes(header) + _padded(name) + b"".join(self._descriptors())

    def _descriptors(self) -> list[bytes]:
        offset, found = 0, []
        for stat in self._stats:
            found.append(bytes(StatsDesc(stat.flags, stat.exponent, stat.size, offset, 0)) + _padded(stat.name))
            offset += 8 * stat.size
        return found

    def read(self, size: int, offset: int) -> bytes:
        """The bytes from `offset` on, as many as there are of `size`."""
        values: list[int] = []
        for stat in self._stats:
            value = getattr(self._counters, stat.name)
            values += value if isinstance(value, list) else [value]
        return (self._head + struct.pack(f"<{len(values)}Q", *values))[offset : offset + size]

    def release(self) -> None:
        """Closed."""


def _padded(name: str) -> bytes:
    return name.encode()[: NAME_SIZE - 1].ljust(NAME_SIZE, b"\0")


@implements(KVM_GET_STATS_FD)
def get_stats_fd(target: Vm | Vcpu, _: int) -> int:
    """A file of the target's statistics, named after the process and the vCPU."""
    return target.system.files.install(StatsFile(f"kvm-{os.getpid()}{target.stats_suffix}", target.stats_list, target.stats))
