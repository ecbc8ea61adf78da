"""A virtual machine: memory slots, vCPUs, devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from errno import EBUSY, EEXIST, EINVAL
from types import MappingProxyType
from typing import TYPE_CHECKING

from trapline.abi.caps import Cap
from trapline.abi.ioctl import implements
from trapline.abi.memory import KVM_SET_USER_MEMORY_REGION2, UserspaceMemoryRegion2
from trapline.abi.vm import (
    CREATE_DEVICE_TEST,
    KVM_CREATE_DEVICE,
    KVM_CREATE_VCPU,
    KVM_ENABLE_CAP,
    KVM_IRQ_LINE,
    KVM_SET_USER_MEMORY_REGION,
    CreateDevice,
    EnableCap,
    IrqLevel,
    UserspaceMemoryRegion,
)
from trapline.errors import KvmError
from trapline.kvm.coalesced import CoalescedWrites
from trapline.kvm.device import Device, DeviceOps
from trapline.kvm.dirty import DirtyTracking, enable_manual_protection, enable_ring, enable_ring_with_bitmap
from trapline.kvm.eventfd import Ioeventfds, Irqfds
from trapline.kvm.irqrouting import IrqRouter
from trapline.kvm.memslots import GuestAccess, Memslots
from trapline.kvm.requests import DEAD
from trapline.kvm.stats import VM_STATS, Counters
from trapline.kvm.vcpu import Vcpu
from trapline.sync import Lock, Srcu

if TYPE_CHECKING:
    from trapline.kvm.system import System


class Vm:
    """One VM. Lives until its file and those of its vCPUs and devices are closed."""

    attributes: DeviceOps | None = None
    stats_suffix = ""
    """What follows the process's name in that of its statistics."""

    def __init__(self, system: System, kind: int) -> None:
        self.system = system
        self.lock = Lock("kvm_lock", protects="vcpus, creation of vCPUs and devices")
        self.srcu = Srcu("kvm_srcu")
        self.vcpus: list[Vcpu] = []
        self.dead = False
        self.stats_list = VM_STATS
        self.stats = Counters(VM_STATS)
        self.coalesced = CoalescedWrites()
        self.arch = system.arch.create_vm(self, kind)
        self.tracking = DirtyTracking()
        self.memslots = Memslots(self.arch.prepare_slot, self.arch.flush_slot, self.srcu.synchronize, self.tracking)
        self.memory = GuestAccess(self.memslots, self.srcu.reading)
        self.routing = IrqRouter(self.arch)
        self.irqfds = Irqfds(self)
        self.ioeventfds = Ioeventfds()

    @contextmanager
    def stop_vcpus(self) -> Iterator[None]:
        """Hold every vCPU outside KVM_RUN for the time of the block; EBUSY if one is inside."""
        held: list[Vcpu] = []
        try:
            for vcpu in list(self.vcpus):
                if not vcpu.mutex.try_acquire():
                    raise KvmError(EBUSY)
                held.append(vcpu)
            yield
        finally:
            for vcpu in held:
                vcpu.mutex.release()

    def release(self) -> None:
        """The VM's file was closed: nobody can run it any more."""
        self.irqfds.release()
        self.ioeventfds.release()
        self.dead = True
        for vcpu in self.vcpus:
            vcpu.requests.set(DEAD)
            vcpu.arch.kick()
        for vcpu in self.vcpus:
            with vcpu.mutex:
                vcpu.arch.destroy()
        self.arch.destroy()


@implements(KVM_CREATE_VCPU)
def create_vcpu(vm: Vm, vcpu_id: int) -> int:
    """A vCPU and its file."""
    if not 0 <= vcpu_id < vm.arch.max_vcpus:
        raise KvmError(EINVAL)
    with vm.lock:
        vm.arch.check_new_vcpu()
        if any(vcpu.id == vcpu_id for vcpu in vm.vcpus):
            raise KvmError(EEXIST)
        vcpu = Vcpu(vm, vcpu_id, len(vm.vcpus))
        vm.vcpus.append(vcpu)
    return vm.system.files.install(vcpu)


@implements(KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2)
def set_user_memory_region(vm: Vm, region: UserspaceMemoryRegion | UserspaceMemoryRegion2) -> int:
    """Change the slots. There is no guest_memfd: its flag is as unknown to the newer call as to the older."""
    vm.memslots.set_region(region)
    vm.coalesced.changed()
    return 0


@implements(KVM_IRQ_LINE)
def irq_line(vm: Vm, line: IrqLevel) -> int:
    """Set an interrupt line."""
    vm.arch.irq_line(line.irq, bool(line.level))
    return 0


@implements(KVM_ENABLE_CAP)
def enable_cap(vm: Vm, request: EnableCap) -> int:
    """Switch on a capability: one of the core's, or else one of the architecture's."""
    if request.flags:
        raise KvmError(EINVAL)
    enable = CAPABILITIES.get(request.cap)
    if enable is not None:
        enable(vm, request.args[0])
        return 0
    return vm.arch.enable_cap(request.cap, list(request.args))


def _limit_polling(vm: Vm, nanoseconds: int) -> None:
    """How long a vCPU that halts may look for work before it sleeps. Here it sleeps at once, which is within any limit."""
    if nanoseconds >> 32:
        raise KvmError(EINVAL)


CAPABILITIES: Mapping[int, Callable[[Vm, int], None]] = MappingProxyType(
    {
        Cap.HALT_POLL: _limit_polling,
        Cap.MANUAL_DIRTY_LOG_PROTECT2: enable_manual_protection,
        Cap.DIRTY_LOG_RING_ACQ_REL: enable_ring,
        Cap.DIRTY_LOG_RING_WITH_BITMAP: enable_ring_with_bitmap,
    }
)
"""What every architecture lets userspace switch on: called with the first argument."""


@implements(KVM_CREATE_DEVICE)
def create_device(vm: Vm, request: CreateDevice) -> int:
    """Make a device and its file. Like Linux's, this ignores flags that it does not know."""
    test = bool(request.flags & CREATE_DEVICE_TEST)
    with vm.lock:
        device = vm.arch.create_device(request.type, test)
    if device is not None:
        request.fd = vm.system.files.install(Device(device))
    return 0
