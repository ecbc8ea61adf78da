"""What an architecture provides to the core: the core calls nothing else of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from trapline.sync import World

if TYPE_CHECKING:
    from trapline.abi.irq import Msi
    from trapline.kvm.device import DeviceOps
    from trapline.kvm.memslots import Memslot
    from trapline.kvm.stats import Stat
    from trapline.kvm.vcpu import Vcpu
    from trapline.kvm.vm import Vm


class Arch(Protocol):
    """One architecture on one machine."""

    modules: Sequence[ModuleType]
    """Where the bodies of the architecture's own calls are."""

    world: World
    """Clock, randomness and sleep of everything on this machine."""

    def check_extension(self, vm: Vm | None, cap: int) -> int:
        """The answer for a capability that the core does not answer itself; 0 if unknown."""

    def create_vm(self, vm: Vm, kind: int) -> ArchVm:
        """The architecture's part of a new VM; KvmError(EINVAL) for a type it cannot make."""

    def close(self) -> None:
        """Nobody has a file of this KVM any more: end what runs by itself."""


class ArchVm(Protocol):
    """The architecture's part of a VM."""

    max_vcpus: int
    vcpu_stats: Sequence[Stat]
    """What this architecture counts of a vCPU. One of them is `signal_exits`."""
    irqchip_pins: int
    """How many inputs of an interrupt controller a GSI can lead to."""

    @property
    def has_irqchip(self) -> bool:
        """There is an in-kernel interrupt controller."""

    @property
    def irqchip_ready(self) -> bool:
        """There is one, and it takes interrupts."""

    def check_new_vcpu(self) -> None:
        """KvmError(EBUSY) if it is too late for another vCPU."""

    def create_vcpu(self, vcpu: Vcpu) -> ArchVcpu:
        """The architecture's part of a new vCPU."""

    def prepare_slot(self, slot: Memslot) -> None:
        """Refuse a slot that cannot be mapped, by KvmError."""

    def flush_slot(self, slot: Memslot) -> None:
        """Remove every translation to this slot; when it returns no vCPU can use one."""

    def write_protect_pages(self, slot: Memslot, ranges: Iterable[tuple[int, int]]) -> None:
        """Make the next write to every page of these ranges, [begin, end) within the slot, fault."""

    def enable_cap(self, cap: int, args: Sequence[int]) -> int:
        """Switch on a capability; KvmError(EINVAL) for those that cannot be."""

    def create_device(self, kind: int, test: bool) -> DeviceOps | None:
        """Make an in-kernel device; with `test` only say (by not failing) that it could be made."""

    def irq_line(self, irq: int, level: bool) -> None:
        """KVM_IRQ_LINE."""

    def set_irqchip_pin(self, pin: int, level: bool) -> None:
        """Drive an input of the interrupt controller."""

    def send_msi(self, msi: Msi) -> int:
        """Deliver a message: 1 if it was, 0 if the guest does not want it."""

    def watch_irqchip_pins(self, pins: Set[int]) -> None:
        """Tell `Vm.irqfds` when the guest completes the interrupts of these inputs, and of no others."""

    def destroy(self) -> None:
        """The VM is gone: release tables and numbers."""


class ArchVcpu(Protocol):
    """The architecture's part of a vCPU."""

    @property
    def attributes(self) -> DeviceOps:
        """The vCPU's device attributes."""

    def run(self) -> None:
        """Run the guest until kvm_run holds an exit; KvmError if the call fails. Called with the vCPU's mutex held."""

    def kick(self) -> None:
        """End a sleep, and leave guest mode if in it."""

    def power_state(self) -> int:
        """The `MpState` value."""

    def set_power_state(self, state: int) -> None:
        """Set it; KvmError(EINVAL) if unknown."""

    def read_register(self, reg_id: int) -> int:
        """A register's value."""

    def check_register(self, reg_id: int) -> None:
        """Refuse an id that cannot be written, before its value is read from user memory."""

    def write_register(self, reg_id: int, value: int) -> None:
        """Set a register."""

    def register_ids(self) -> list[int]:
        """All register ids."""

    def map_ahead(self, gpa: int) -> int:
        """Map what a read of this page would have mapped, and say how many bytes from there on are mapped now.

        KvmError(ENOENT) where no slot is, EFAULT where no memory is behind it, ENOEXEC for a vCPU that cannot run yet.
        """

    def destroy(self) -> None:
        """The vCPU is gone."""
