"""The public classes for the KVM device, a virtual machine and an in-kernel device: the kernel's own division, typed."""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from trapline.abi import arm64
from trapline.abi.arm64_vm import KVM_ARM_SET_COUNTER_OFFSET, CounterOffset
from trapline.abi.caps import Cap
from trapline.abi.exits import Exit, HypercallExit, SysregExit
from trapline.abi.irq import (
    KVM_IOEVENTFD,
    KVM_IRQFD,
    KVM_SET_GSI_ROUTING,
    KVM_SIGNAL_MSI,
    MSI_VALID_DEVID,
    Ioeventfd,
    IoeventfdFlag,
    Irqfd,
    IrqfdFlag,
    Msi,
    RoutingEntry,
    routing_table,
)
from trapline.abi.memory import (
    KVM_CLEAR_DIRTY_LOG,
    KVM_REGISTER_COALESCED_MMIO,
    KVM_RESET_DIRTY_RINGS,
    KVM_UNREGISTER_COALESCED_MMIO,
    ClearDirtyLog,
    CoalescedMmioZone,
)
from trapline.abi.system import KVM_CHECK_EXTENSION, KVM_CREATE_VM, KVM_GET_API_VERSION
from trapline.abi.vm import (
    KVM_CREATE_DEVICE,
    KVM_CREATE_VCPU,
    KVM_ENABLE_CAP,
    KVM_GET_DIRTY_LOG,
    KVM_IRQ_LINE,
    KVM_SET_USER_MEMORY_REGION,
    CreateDevice,
    DirtyLog,
    EnableCap,
    IrqLevel,
    UserspaceMemoryRegion,
)
from trapline.backends.base import Backend
from trapline.backends.file import KvmFile
from trapline.backends.identity import AIDR, MIDR, REVIDR, Identity, Implementation, smccc_filter, writable_masks
from trapline.backends.made import SET_ONCE, Made
from trapline.backends.memory import GuestMemory, Stored
from trapline.backends.statistics import Statistics
from trapline.backends.sysregs import Sysregs
from trapline.backends.vcpu import Vcpu, VcpuBase, get_attr, has_attr, set_attr
from trapline.backends.watchdog import Watchdog
from trapline.errors import NotSupported

if TYPE_CHECKING:
    from trapline.backends.snapshot.format import Snapshot

VM_FEATURES = {"mte": Cap.ARM_MTE, "nested": Cap.ARM_EL2, "aarch32": Cap.ARM_EL1_32BIT, "sve": Cap.ARM_SVE}
"""Names that `create_vm` takes and the capability each of them needs."""

VCPU_FEATURES = {
    "aarch32": (arm64.Feature.EL1_32BIT,),
    "sve": (arm64.Feature.SVE,),
    "nested": (arm64.Feature.HAS_EL2,),
}

ONES = re.compile("1+")

V = TypeVar("V", bound=VcpuBase)


class Device(KvmFile):
    """An in-kernel device: configured and read through attributes."""

    def __init__(self, vm: VmBase[Any], file: int, kind: int) -> None:
        self.vm = vm
        self.backend = vm.backend
        self.file = file
        self.kind = kind

    def set_attr(self, group: int, attr: int, value: int | bytes = b"", width: int = 8) -> None:
        """Write an attribute. An int is passed as `width` bytes."""
        set_attr(self.vm.backend, self.file, group, attr, value, width)
        if (group, attr) in SET_ONCE or (group, None) in SET_ONCE:
            self.vm.note(Made.of("device attribute", self.vm.devices.index(self), int(group), int(attr), value, width))

    def get_attr(self, group: int, attr: int, size: int = 8) -> int:
        """Read an attribute of `size` bytes. Some attributes take input too: that is 0 here."""
        return get_attr(self.vm.backend, self.file, group, attr, size)

    def has_attr(self, group: int, attr: int) -> bool:
        """Whether the attribute exists."""
        return has_attr(self.vm.backend, self.file, group, attr)

    def close(self) -> None:
        """Close the file. The device itself lives as long as its VM."""
        if self.file >= 0:
            file, self.file = self.file, -1
            self.vm.backend.close(file)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VmBase(KvmFile, Generic[V]):
    """What virtual machines of all architectures share: memory slots, devices, vCPUs of the type `V`."""

    architecture: ClassVar[str] = "arm64"
    type = 0
    """What KVM_CREATE_VM was told."""

    def __init__(self, system: System, file: int) -> None:
        self.system = system
        self.backend = system.backend
        self.file = file
        self.vcpus: list[V] = []
        self.devices: list[Device] = []
        self.memory: list[GuestMemory] = []
        self.dirty_ring_size = 0
        """Bytes of each vCPU's dirty ring, 0 if there are none."""
        self.made: list[Made] = []
        """How the VM came to be what it is, in order: what a snapshot repeats to make another like it."""

    def note(self, step: Made) -> None:
        """A step of the VM's making was taken. What is done again, as a vCPU's reset is, made it what it is the first time."""
        if step.what == "device" or step not in self.made:
            self.made.append(step)

    def check_extension(self, cap: int) -> int:
        """0 if this VM lacks the capability, else 1 or the number it stands for."""
        return self.backend.ioctl(self.file, KVM_CHECK_EXTENSION, int(cap))

    def enable_cap(self, cap: int, *args: int) -> int:
        """Switch on a capability that is off until asked for."""
        request = EnableCap()
        request.cap = cap
        for index, value in enumerate(args):
            request.args[index] = value
        result = self.backend.ioctl(self.file, KVM_ENABLE_CAP, request)
        self.note(Made.of("capability", int(cap), *args))
        return result

    def add_memory(
        self, guest_phys_addr: int, size: int, *, slot: int | None = None, flags: int = 0, host: Any = None, stored: Stored | None = None
    ) -> GuestMemory:
        """Add `size` bytes of memory; the slot number is the lowest free one unless given.

        `host` is a writable page-aligned buffer to use instead of a new anonymous mapping, `stored` a part of a file to start from.
        """
        if slot is None:
            used = {memory.slot for memory in self.memory}
            slot = next(number for number in range(len(used) + 1) if number not in used)
        memory = GuestMemory(self, slot, guest_phys_addr, size, flags, host, stored)
        self.memory.append(memory)
        self.note(Made.of("memory", slot))
        return memory

    def set_user_memory_region(self, slot: int, flags: int, guest_phys_addr: int, size: int, userspace_addr: int) -> None:
        """The plain call: create, move, re-flag or (size 0) delete a slot. The caller keeps the memory alive."""
        region = UserspaceMemoryRegion(slot, flags, guest_phys_addr, size, userspace_addr)
        self.backend.ioctl(self.file, KVM_SET_USER_MEMORY_REGION, region)

    def get_dirty_log(self, slot: int, pages: int) -> list[int]:
        """Numbers of the pages of a logging slot that were written since the last call."""
        return [page for first, count in self.get_dirty_ranges(slot, pages) for page in range(first, first + count)]

    def get_dirty_ranges(self, slot: int, pages: int) -> list[tuple[int, int]]:
        """The same as ranges: the first page of each, and how many."""
        bitmap = (ctypes.c_uint64 * ((pages + 63) // 64))()
        self.backend.ioctl(self.file, KVM_GET_DIRTY_LOG, DirtyLog(slot, 0, ctypes.addressof(bitmap)))
        digits = format(int.from_bytes(bitmap, "little"), "b")[::-1][:pages]
        return [(found.start(), found.end() - found.start()) for found in ONES.finditer(digits)]

    def clear_dirty_log(self, slot: int, pages: Iterable[int], *, first: int = 0, count: int) -> None:
        """Forget that these pages, of the `count` from `first` on, were written. For logs with manual protection."""
        bitmap = (ctypes.c_uint64 * ((count + 63) // 64))()
        for page in pages:
            bitmap[(page - first) // 64] |= 1 << (page - first) % 64
        self.backend.ioctl(self.file, KVM_CLEAR_DIRTY_LOG, ClearDirtyLog(slot, count, first, ctypes.addressof(bitmap)))

    def enable_dirty_rings(self, size: int) -> None:
        """Let each vCPU note the pages it writes in a ring of `size` bytes; before any vCPU is made."""
        self.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL if self.check_extension(Cap.DIRTY_LOG_RING_ACQ_REL) else Cap.DIRTY_LOG_RING, size)
        self.dirty_ring_size = size

    def statistics(self) -> Statistics:
        """What KVM counts of this VM. To be closed by the caller."""
        return Statistics(self.backend, self.file)

    def reset_dirty_rings(self) -> int:
        """Give harvested entries of all rings back and watch their pages again; how many they were."""
        return self.backend.ioctl(self.file, KVM_RESET_DIRTY_RINGS, 0)

    def coalesce(self, address: int, size: int, *, pio: bool = False) -> None:
        """Let the guest's writes there wait in `vcpu.coalesced` instead of ending its run one by one."""
        self.backend.ioctl(self.file, KVM_REGISTER_COALESCED_MMIO, CoalescedMmioZone(address, size, int(pio)))

    def uncoalesce(self, address: int, size: int, *, pio: bool = False) -> None:
        """End that."""
        self.backend.ioctl(self.file, KVM_UNREGISTER_COALESCED_MMIO, CoalescedMmioZone(address, size, int(pio)))

    def create_device(self, kind: int) -> Device:
        """Make an in-kernel device (`arm64.DeviceType`)."""
        request = CreateDevice(kind, 0, 0)
        self.backend.ioctl(self.file, KVM_CREATE_DEVICE, request)
        device = Device(self, request.fd, kind)
        self.devices.append(device)
        self.note(Made.of("device", int(kind)))
        return device

    def irq_line(self, irq: int, level: int) -> None:
        """Set an interrupt line by its KVM_IRQ_LINE word (`arm64.irq_word`)."""
        self.backend.ioctl(self.file, KVM_IRQ_LINE, IrqLevel(irq, int(level)))

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, deassign: bool = False) -> None:
        """Let an eventfd (`os.eventfd`) drive a GSI, as an edge or, with `resamplefd`, until the guest completes the interrupt."""
        flags = IrqfdFlag.RESAMPLE * (resamplefd is not None) | IrqfdFlag.DEASSIGN * deassign
        self.backend.ioctl(self.file, KVM_IRQFD, Irqfd(fd, gsi, flags, resamplefd or 0))

    def ioeventfd(self, address: int, length: int, fd: int, *, data: int | None = None, deassign: bool = False, flags: int = 0) -> None:
        """Let the guest's writes of `length` bytes (0: any) to `address` write an eventfd; with `data` only writes of that."""
        flags |= IoeventfdFlag.DATAMATCH * (data is not None) | IoeventfdFlag.DEASSIGN * deassign
        self.backend.ioctl(self.file, KVM_IOEVENTFD, Ioeventfd(data or 0, address, length, fd, flags))

    def set_gsi_routing(self, entries: Iterable[RoutingEntry], flags: int = 0) -> None:
        """Replace the table of GSIs (`abi.irq.route_to_pin`, `route_to_msi`)."""
        self.backend.ioctl(self.file, KVM_SET_GSI_ROUTING, routing_table(entries, flags))

    def signal_msi(self, address: int, data: int, devid: int | None = None) -> bool:
        """Send a message-signalled interrupt; False if the guest has not mapped it."""
        flags = 0 if devid is None else MSI_VALID_DEVID
        return bool(self.backend.ioctl(self.file, KVM_SIGNAL_MSI, Msi(address & 0xFFFF_FFFF, address >> 32, data, flags, devid or 0)))

    def snapshot(self, path: str | os.PathLike[str], **more: Any) -> int:
        """Write the VM's state and memory to a file that `System.restore` makes a VM of; how many bytes of memory it took.

        No vCPU may be running (SnapshotOrder), and every exit must have been answered. `more` are plain values to keep in the file,
        for `Snapshot.document`. What userspace gave the VM and holds itself (eventfds, routing, coalesced zones, logging) is not in it.
        """
        from trapline.backends.snapshot import format  # only for those who take snapshots
        from trapline.backends.snapshot.architectures import ARCHITECTURES

        turns = self.system.turns
        state = ARCHITECTURES[self.architecture].save(self)
        document = {"vm": state, "turns": None if turns is None else turns.save(), **more}
        return format.write(Path(path), [memory for memory in self.memory if memory.slot >= 0], document)

    def close(self) -> None:
        """Close the VM and all it holds."""
        if self.file < 0:
            return
        for vcpu in self.vcpus:
            vcpu.close()
        for device in self.devices:
            device.close()
        file, self.file = self.file, -1
        self.backend.close(file)
        for memory in self.memory:
            memory.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Vm(VmBase[Vcpu]):
    """A virtual arm64 machine: memory slots, vCPUs, devices and interrupt lines."""

    def __init__(self, system: System, file: int, features: Mapping[str, bool] = MappingProxyType({}), type: int = 0) -> None:
        super().__init__(system, file)
        self.type = type
        self._sysregs: Sysregs | None = None
        self._identity: Identity | None = None
        self._vcpu_features = [bit for name, wanted in features.items() if wanted for bit in VCPU_FEATURES.get(name, ())]
        if features.get("mte"):
            self.enable_cap(Cap.ARM_MTE)

    @property
    def sysregs(self) -> Sysregs:
        """What the guest finds in implementation-defined system registers: policies by name. The first use switches their exits on."""
        if self._sysregs is None:
            self._sysregs = Sysregs(self)
        return self._sysregs

    @property
    def has_sysregs(self) -> bool:
        """Whether `sysregs` was used."""
        return self._sysregs is not None

    def identify(
        self, midr: int | None = None, revidr: int | None = None, aidr: int | None = None, others: Iterable[tuple[int, int, int]] = ()
    ) -> None:
        """Give the VM's processors another identity, before there are vCPUs.

        `others` are the implementations, each MIDR, REVIDR and AIDR, that a guest is told it may run on when it asks (Linux's vendor
        hypervisor calls DISCOVER_IMPL): what it works around errata by. NotSupported for an identity that no processor can have.
        """
        other = [list(each) for each in others]
        own = {reg_id: value for reg_id, value in ((MIDR, midr), (REVIDR, revidr), (AIDR, aidr)) if value is not None}
        steps = len(self.made)
        self._identity = Identity(self, own, (Implementation(*each) for each in other))
        self.made[steps:] = [Made.of("identity", midr, revidr, aidr, other)]

    def set_smccc_filter(self, base: int, count: int, action: int) -> None:
        """Say who serves `count` SMCCC functions from `base` (`SmcccAction`), before the VM runs."""
        set_attr(self.backend, self.file, *smccc_filter(base, count, action))
        self.note(Made.of("SMCCC filter", base, count, int(action)))

    def writable_masks(self) -> list[int]:
        """Which bits of which ID registers can be set: a mask for each (op1 0, 1, 3; CRm 0 to 7; op2 0 to 7)."""
        return writable_masks(self.backend.ioctl, self.file)

    def set_counter_offset(self, offset: int) -> None:
        """Let both of the guest's counters lag behind the host's by `offset`, once and for all."""
        self.backend.ioctl(self.file, KVM_ARM_SET_COUNTER_OFFSET, CounterOffset(offset, 0))
        self.note(Made.of("counter offset"))

    def answers(self, exit: Exit, vcpu: Vcpu) -> bool:
        """Whether a policy or the VM's identity has answered an exit, so that nobody else has to."""
        if type(exit) is SysregExit:
            return self._sysregs is not None and self._sysregs.answer(exit, vcpu)
        return type(exit) is HypercallExit and self._identity is not None and self._identity.answer(exit, vcpu)

    def create_vcpu(self, id: int | None = None, features: Iterable[int] | None = ()) -> Vcpu:
        """Add a vCPU and initialise it with PSCI 0.2 or newer and `features`; `features=None` leaves that to the caller."""
        vcpu_id = len(self.vcpus) if id is None else id
        vcpu = Vcpu(self, self.backend.ioctl(self.file, KVM_CREATE_VCPU, vcpu_id), vcpu_id)
        self.vcpus.append(vcpu)
        self.note(Made.of("vCPU", vcpu_id))
        if features is not None:
            vcpu.init({arm64.Feature.PSCI_0_2, *self._vcpu_features, *features})
            if self._identity is not None:
                self._identity.apply(vcpu)
        return vcpu

    def set_irq(self, spi_intid: int, level: int) -> None:
        """Set the level of a shared peripheral interrupt, by its interrupt id (32 and up)."""
        self.irq_line(arm64.IrqType.SPI << 24 | spi_intid, level)


class System(KvmFile):
    """KVM itself: what /dev/kvm answers."""

    architecture: ClassVar[str] = "arm64"
    """Of the VMs that it makes."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.file = backend.open()
        self.turns = backend.turns
        """Time, order and randomness of a deterministic KVM: None for any other."""
        self._vms: weakref.WeakSet[VmBase[Any]] = weakref.WeakSet()
        self._others: dict[str, System] = {}
        self.watchdog = Watchdog()

    def stop_at(self, instructions: int | None) -> None:
        """Let no vCPU run past this count of `turns.retired`: from there on every `Vcpu.run` returns IntrExit. None lifts that."""
        if self.turns is None:
            raise NotSupported("only a deterministic KVM counts instructions: open it with deterministic=True")
        self.turns.stop_at, self.turns.on_stop = instructions, self._kick_all

    def _kick_all(self) -> None:
        for vm in self._vms:
            for vcpu in vm.vcpus:
                vcpu.kick()

    @property
    def api_version(self) -> int:
        """12."""
        return self.backend.ioctl(self.file, KVM_GET_API_VERSION, 0)

    def check_extension(self, cap: int) -> int:
        """0 if the capability is absent, else 1 or the number it stands for."""
        return self.backend.ioctl(self.file, KVM_CHECK_EXTENSION, int(cap))

    def create_vm(self, type: int = 0, *, cpu: str | None = None, **features: bool) -> Vm:
        """Make a VM. Features by name (`mte`, `nested`, `aarch32`, `sve`) are refused when this KVM lacks them.

        `cpu` as for `trapline.open`: the VM is then on a machine of its own.
        """
        if cpu is not None:
            if cpu not in self._others:
                self._others[cpu] = System(self.backend.with_cpu(cpu))
            return self._others[cpu].create_vm(type, cpu=None, **features)
        for name, wanted in features.items():
            if name not in VM_FEATURES:
                raise NotSupported(f"no VM feature {name!r}: there are {', '.join(VM_FEATURES)}")
            if wanted and not self.check_extension(VM_FEATURES[name]):
                raise NotSupported(f"the {self.backend.name} backend has no {name} ({VM_FEATURES[name].name} is 0)")
        vm = Vm(self, self.backend.ioctl(self.file, KVM_CREATE_VM, type), features, type)
        self._vms.add(vm)
        return vm

    def restore(self, snapshot: Snapshot | str | os.PathLike[str]) -> Vm:
        """A new VM in the state that `Vm.snapshot` wrote: a file, or one that is open as a `Snapshot` and already checked.

        Its memory is read from the file when it is touched, so this takes milliseconds, and all VMs restored from one file share what
        they do not change. BadSnapshot if the file is damaged or this KVM cannot be what it describes.
        """
        from trapline.backends.snapshot.format import Snapshot
        from trapline.backends.snapshot.rebuild import restore

        if isinstance(snapshot, Snapshot):
            return restore(self, snapshot)
        with Snapshot(snapshot) as opened:
            return restore(self, opened)

    def close(self) -> None:
        """Close the device file. VMs made from it live on."""
        for other in self._others.values():
            other.close()
        self._others.clear()
        if self.file >= 0:
            file, self.file = self.file, -1
            self.backend.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
