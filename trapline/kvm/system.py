"""The KVM device itself: version, capabilities, making VMs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from errno import EINVAL
from types import MappingProxyType

from trapline.abi.caps import Cap
from trapline.abi.ioctl import implements
from trapline.abi.irq import MAX_ROUTES
from trapline.abi.memory import RING_MAX_ENTRIES, ManualProtect
from trapline.abi.system import (
    API_VERSION,
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_VCPU_MMAP_SIZE,
)
from trapline.errors import KvmError
from trapline.host.eventfd import EventWatcher
from trapline.host.files import FileTable
from trapline.host.user import PAGE_SIZE, AddressSpace
from trapline.kvm.arch import Arch
from trapline.kvm.coalesced import RING_PAGE
from trapline.kvm.dirty import ENTRY_SIZE
from trapline.kvm.memslots import MAX_SLOTS
from trapline.kvm.vm import Vm

RUN_SIZE = 2 * PAGE_SIZE
"""Bytes of a vCPU's file to map: kvm_run, and the page of coalesced writes."""

CAPABILITIES: Mapping[int, int] = MappingProxyType(
    {
        Cap.USER_MEMORY: 1,
        Cap.USER_MEMORY2: 1,
        Cap.DESTROY_MEMORY_REGION_WORKS: 1,
        Cap.JOIN_MEMORY_REGIONS_WORKS: 1,
        Cap.READONLY_MEM: 1,
        Cap.PRE_FAULT_MEMORY: 1,
        Cap.NR_MEMSLOTS: MAX_SLOTS,
        Cap.ONE_REG: 1,
        Cap.MP_STATE: 1,
        Cap.DEVICE_CTRL: 1,
        Cap.ENABLE_CAP_VM: 1,
        Cap.CHECK_EXTENSION_VM: 1,
        Cap.VCPU_ATTRIBUTES: 1,
        Cap.IMMEDIATE_EXIT: 1,
        Cap.SYSTEM_EVENT_DATA: 1,
        Cap.INTERNAL_ERROR_DATA: 1,
        Cap.HALT_POLL: 1,
        Cap.BINARY_STATS_FD: 1,
        Cap.COALESCED_MMIO: RING_PAGE,
        Cap.COALESCED_PIO: 1,
        Cap.MANUAL_DIRTY_LOG_PROTECT2: sum(ManualProtect),
        Cap.DIRTY_LOG_RING_ACQ_REL: RING_MAX_ENTRIES * ENTRY_SIZE,
        Cap.DIRTY_LOG_RING_WITH_BITMAP: 1,
        Cap.IRQ_ROUTING: MAX_ROUTES,
        Cap.IRQFD: 1,
        Cap.IRQFD_RESAMPLE: 1,
        Cap.IOEVENTFD: 1,
        Cap.IOEVENTFD_ANY_LENGTH: 1,
    }
)
"""What the core does on every architecture. What is not here or with the architecture is 0."""


class System:
    """The KVM of one process: files, address space, and the architecture it serves."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.files = FileTable()
        self.events = EventWatcher()
        self.address_space = AddressSpace()

    def release(self) -> None:
        """One file of the device was closed."""


@implements(KVM_GET_API_VERSION)
def get_api_version(system: System, argument: int) -> int:
    """12."""
    if argument:
        raise KvmError(EINVAL)
    return API_VERSION


@implements(KVM_GET_VCPU_MMAP_SIZE)
def get_vcpu_mmap_size(system: System, argument: int) -> int:
    """kvm_run and the pages after it."""
    if argument:
        raise KvmError(EINVAL)
    return RUN_SIZE


@implements(KVM_CREATE_VM)
def create_vm(system: System, kind: int) -> int:
    """A VM and its file."""
    return system.files.install(Vm(system, kind))


@implements(KVM_CHECK_EXTENSION)
def check_extension(target: System | Vm, cap: int) -> int:
    """The core's answer, else the architecture's."""
    system, vm = (target.system, target) if isinstance(target, Vm) else (target, None)
    if cap == Cap.NR_VCPUS:
        return min(os.cpu_count() or 1, system.arch.check_extension(vm, Cap.MAX_VCPUS))
    return CAPABILITIES.get(cap) or system.arch.check_extension(vm, cap)
