"""Binary statistics: what a file made by KVM_GET_STATS_FD holds.

A header, the name of what is counted, one descriptor for each statistic, and the values. All but the values stay the same while the
file is open.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Annotated

from trapline.abi.caps import Cap
from trapline.abi.ioctl import ioctl
from trapline.abi.struct import Structure, struct, u16, u32

NAME_SIZE = 48
"""Bytes of a statistic's name and of the file's own, zeros at the end included."""

TYPE_MASK, UNIT_SHIFT, BASE_SHIFT, FIELD_MASK = 0xF, 4, 8, 0xF


class StatType(IntEnum):
    """Bits 3:0 of a descriptor's flags."""

    CUMULATIVE = 0
    INSTANT = 1
    PEAK = 2
    LINEAR_HIST = 3
    LOG_HIST = 4


class StatUnit(IntEnum):
    """Bits 7:4 of a descriptor's flags."""

    NONE = 0
    BYTES = 1
    SECONDS = 2
    CYCLES = 3
    BOOLEAN = 4


@struct(size=24, c_name="kvm_stats_header")
class StatsHeader(Structure):
    flags: u32
    name_size: u32
    num_desc: u32
    id_offset: u32
    desc_offset: u32
    data_offset: u32


@struct(size=16, c_name="kvm_stats_desc")
class StatsDesc(Structure):
    """A value is `size` 64-bit numbers at `offset` of the values, each in units of base**exponent; the name follows this head."""

    flags: u32
    exponent: Annotated[int, ctypes.c_int16]
    size: u16
    offset: u32
    bucket_size: u32


@ioctl(
    ("vm", "vcpu"),
    0xCE,
    cap=Cap.BINARY_STATS_FD,
    makes="stats",
    EMFILE="the process has too many files",
    ENFILE="the system has too many files",
    ENOMEM="no memory for the file",
)
def KVM_GET_STATS_FD(target):  # type: ignore[no-untyped-def]
    """Return a file from which the statistics of a VM or a vCPU can be read."""
