"""Reading the binary statistics of a VM or a vCPU, on any backend."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

from trapline.abi.stats import (
    BASE_SHIFT,
    FIELD_MASK,
    KVM_GET_STATS_FD,
    TYPE_MASK,
    UNIT_SHIFT,
    StatsDesc,
    StatsHeader,
    StatType,
    StatUnit,
)
from trapline.backends.base import Backend

BASES = (10, 2)


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic. A histogram has several values; all are in units of base**exponent."""

    name: str
    values: tuple[int, ...]
    kind: StatType
    unit: StatUnit
    base: int
    exponent: int

    @property
    def value(self) -> int:
        """The number, if it is one; a histogram's sum."""
        return sum(self.values)


class Statistics:
    """An open file of statistics: descriptors are read once, values each time."""

    def __init__(self, backend: Backend, file: int) -> None:
        """Of a VM's or vCPU's file."""
        self._backend = backend
        self.file = backend.ioctl(file, KVM_GET_STATS_FD, 0)
        header = StatsHeader.from_buffer_copy(backend.read(self.file, ctypes.sizeof(StatsHeader), 0))
        self.name = backend.read(self.file, header.name_size, header.id_offset).rstrip(b"\0").decode()
        """What is counted, such as "kvm-1234/vcpu-0"."""
        size = ctypes.sizeof(StatsDesc) + header.name_size
        data = backend.read(self.file, header.num_desc * size, header.desc_offset)
        self._descs = [
            (StatsDesc.from_buffer_copy(data, at), data[at + ctypes.sizeof(StatsDesc) : at + size].rstrip(b"\0").decode())
            for at in range(0, len(data), size)
        ]
        self._data_offset = header.data_offset
        self._data_size = max((desc.offset + 8 * desc.size for desc, _ in self._descs), default=0)

    def read(self) -> dict[str, Statistic]:
        """All statistics as they are now, by name."""
        data = self._backend.read(self.file, self._data_size, self._data_offset)
        return {
            name: Statistic(
                name,
                struct.unpack_from(f"<{desc.size}Q", data, desc.offset),
                StatType(desc.flags & TYPE_MASK),
                StatUnit(desc.flags >> UNIT_SHIFT & FIELD_MASK),
                BASES[desc.flags >> BASE_SHIFT & 1],
                desc.exponent,
            )
            for desc, name in self._descs
        }

    def close(self) -> None:
        """Close the file."""
        if self.file >= 0:
            file, self.file = self.file, -1
            self._backend.close(file)

    def __enter__(self) -> Statistics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
