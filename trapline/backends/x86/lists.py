"""Calls whose argument is a list that the kernel fills: CPUID tables and lists of MSRs."""

from __future__ import annotations

import ctypes
import errno
from typing import Any

from trapline.abi.ioctl import Ioctl
from trapline.abi.struct import Structure
from trapline.abi.x86_msr import Cpuid2, CpuidEntry, CpuidFlag, followed_by
from trapline.backends.base import Backend
from trapline.errors import KvmError
from trapline.x86_64.cpuid import Cpuid, Leaf

FIRST_ROOM = 128
MOST_ROOM = 1 << 14


def fetch_list(backend: Backend, file: int, call: Ioctl, head: type[Structure], entry: Any) -> list[Any]:
    """The entries that a call fills in, with as much room as it takes."""
    count_field = head._fields_[0][0]
    room = FIRST_ROOM
    while True:
        argument = followed_by(head, entry, room)
        try:
            backend.ioctl(file, call, argument)
            return list(argument.entries[: getattr(argument.head, count_field)])
        except KvmError as error:
            if error.errno != errno.E2BIG or room >= MOST_ROOM:
                raise
            room = max(room * 2, getattr(argument.head, count_field))


def fetch_cpuid(backend: Backend, file: int, call: Ioctl) -> Cpuid:
    """A CPUID table from the kernel."""
    entries = fetch_list(backend, file, call, Cpuid2, CpuidEntry)
    return Cpuid(Leaf(e.function, e.index, bool(e.flags & CpuidFlag.SIGNIFICANT_INDEX), e.eax, e.ebx, e.ecx, e.edx) for e in entries)


def cpuid_argument(cpuid: Cpuid) -> Any:
    """A CPUID table for the kernel."""
    argument = followed_by(Cpuid2, CpuidEntry, len(cpuid))
    for entry, leaf in zip(argument.entries, cpuid):
        entry.function, entry.index = leaf.function, leaf.index
        entry.flags = CpuidFlag.SIGNIFICANT_INDEX if leaf.indexed else 0
        entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
    return argument


def fetch_indices(backend: Backend, file: int, call: Ioctl, head: type[Structure]) -> list[int]:
    """A list of MSR numbers from the kernel."""
    return [int(index) for index in fetch_list(backend, file, call, head, ctypes.c_uint32)]
