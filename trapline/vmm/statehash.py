"""One number for all that a machine is: registers of every vCPU, memory, interrupt controller and devices.

It is made of what a guest can see. Host addresses, caches and translations do not enter it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from trapline.abi.arm64 import VgicGroup
from trapline.arm64.sysreg import encode
from trapline.backends.memory import GuestMemory
from trapline.backends.objects import Device, Vm
from trapline.backends.vcpu import Vcpu
from trapline.devices.device import MmioDevice
from trapline.errors import KvmError

if TYPE_CHECKING:
    from trapline.bare.machine import BareVm

CHUNK = 1 << 20
ZEROES = bytes(CHUNK)
DIGEST_BYTES = 16

DISTRIBUTOR = (range(0x000, 0x010, 4), range(0x080, 0x500, 4), range(0xC00, 0xD00, 4), range(0x6100, 0x8000, 4))
"""GICD_CTLR to STATUSR; groups, enables, pending, active, priorities; configuration; routes."""
REDISTRIBUTOR = (range(0x0000, 0x0018, 4), range(0x0070, 0x0080, 4), range(0x10080, 0x10500, 4), range(0x10C00, 0x10C08, 4))
CPU_INTERFACE = tuple(
    encode(enc)
    for enc in (
        (3, 0, 4, 6, 0), (3, 0, 12, 8, 3), (3, 0, 12, 8, 4), (3, 0, 12, 9, 0), (3, 0, 12, 12, 3), (3, 0, 12, 12, 4),
        (3, 0, 12, 12, 5), (3, 0, 12, 12, 6), (3, 0, 12, 12, 7),
    )
)  # fmt: skip
"""ICC_PMR, BPR0, AP0R0, AP1R0, BPR1, CTLR, SRE, IGRPEN0, IGRPEN1, as the attribute group encodes them."""
BANKED = (0x080, 0x100, 0x200, 0x300, *range(0x400, 0x420, 4), *range(0xF20, 0xF30, 4))
"""Of a GICv2's distributor, what each vCPU has to itself."""
GICV2_INTERFACE = (0x00, 0x04, 0x08, 0x1C, 0xD0)
"""GICC_CTLR, PMR, BPR, ABPR, APR0."""
LEVELS = range(0, 1024, 32)
ITS = (0x00, *range(0x80, 0x98, 8), 0x100, 0x108)
"""GITS_CTLR, CBASER, CWRITER, CREADR, BASER0 and BASER1. What they lead to is in memory."""


def state_hash(vm: Vm | BareVm, devices: Iterable[MmioDevice] = ()) -> str:
    """The hash of a machine that stands still, and of the devices that userspace gave it."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    inside = (*map(hash_vcpu, vm.vcpus), *(hash_gic(vm, gic) for gic in vm.devices)) if isinstance(vm, Vm) else vm.state()
    for part in (*inside, *map(hash_memory, vm.memory)):
        digest.update(part)
    for device in devices:
        digest.update(repr((type(device).__name__, device.state())).encode())
    return digest.hexdigest()


def hash_vcpu(vcpu: Vcpu) -> bytes:
    """All registers that KVM_GET_REG_LIST knows, and the power state."""
    digest = hashlib.blake2b(str(int(vcpu.mp_state)).encode())
    for number in sorted(vcpu.reg_list()):
        digest.update(f"{number:x}={vcpu.get_one_reg(number):x},".encode())
    return digest.digest()


def hash_memory(memory: GuestMemory) -> bytes:
    """Contents by address. What holds zeroes costs nothing."""
    digest = hashlib.blake2b(f"{memory.guest_phys_addr:x}:{memory.size:x}".encode())
    for start in range(0, memory.size, CHUNK):
        chunk = bytes(memory.view[start : start + CHUNK])
        if chunk != ZEROES[: len(chunk)]:
            digest.update(start.to_bytes(8, "little"))
            digest.update(chunk)
    return digest.digest()


def hash_gic(vm: Vm, gic: Device) -> bytes:
    """The interrupt controller, as far as its attributes show it."""
    digest = hashlib.blake2b()
    for group, attr, size in gic_attributes(len(vm.vcpus)):
        with suppress(KvmError):  # a register that this configuration does not have
            digest.update(f"{int(group)}:{attr:x}={gic.get_attr(group, attr, size):x},".encode())
    return digest.digest()


def gic_attributes(vcpus: int) -> Iterator[tuple[int, int, int]]:
    """(group, attribute, bytes) of everything there is to save."""
    for offsets in DISTRIBUTOR:
        yield from ((VgicGroup.DIST_REGS, offset, 4) for offset in offsets)
    for index in range(vcpus):
        yield from ((VgicGroup.DIST_REGS, index << 32 | offset, 4) for offset in BANKED)
        yield from ((VgicGroup.CPU_REGS, index << 32 | offset, 4) for offset in GICV2_INTERFACE)
        affinity = (index & 0xF | index >> 4 << 8) << 32
        for offsets in REDISTRIBUTOR:
            yield from ((VgicGroup.REDIST_REGS, affinity | offset, 4) for offset in offsets)
        yield from ((VgicGroup.CPU_SYSREGS, affinity | encoding, 8) for encoding in CPU_INTERFACE)
        yield from ((VgicGroup.LEVEL_INFO, affinity | intid, 4) for intid in LEVELS)
    yield from ((VgicGroup.ITS_REGS, offset, 8) for offset in ITS)
