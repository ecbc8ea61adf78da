"""Physical memory: where the bytes of a physical address lie in this process.

Under a hypervisor of this program a physical address *is* a host address, for it writes such addresses into the stage-2 tables.
A machine without one has a map: `CpuState.regions` is the address of an array of `Region` that ends with an empty one.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint64

from trapline.arm64.state import CpuState
from trapline.bits.native import load64, native, u1, u64

NOWHERE = 0
"""Instead of a host address: no memory is there."""


class Region(ctypes.Structure):
    """A range of physical addresses that is memory. `writable` is 0 for ROM."""

    _fields_ = [("base", c_uint64), ("size", c_uint64), ("host", c_uint64), ("writable", c_uint64)]


REGION_BYTES = ctypes.sizeof(Region)
SIZE, HOST, WRITABLE = Region.size.offset, Region.host.offset, Region.writable.offset


@native
def memory_at(cpu: CpuState, address: u64) -> u64:
    """Host address of a byte of physical memory, or NOWHERE."""
    if cpu.regions == 0:
        return address
    at = cpu.regions
    size = load64(at + SIZE)
    while size != 0:
        distance = address - load64(at)
        if distance < size:
            return load64(at + HOST) + distance
        at = at + REGION_BYTES
        size = load64(at + SIZE)
    return NOWHERE


@native
def is_rom(cpu: CpuState, address: u64) -> u1:
    """Is there memory that cannot be written?"""
    at = cpu.regions
    if at == 0:
        return False
    while load64(at + SIZE) != 0:
        if address - load64(at) < load64(at + SIZE):
            return load64(at + WRITABLE) == 0
        at = at + REGION_BYTES
    return False
