"""The software backend: declared calls go to the bodies that the hypervisor registered for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import EINVAL, ENOTTY
from typing import Any

from trapline.abi.ioctl import Ioctl, bodies
from trapline.errors import KvmError, NotSupported, TraplineError
from trapline.kvm import device as kvm_device
from trapline.kvm import eventfd as kvm_eventfd
from trapline.kvm import irqrouting as kvm_irqrouting
from trapline.kvm import system as kvm_system
from trapline.kvm import vcpu as kvm_vcpu
from trapline.kvm import vm as kvm_vm
from trapline.kvm.arch import Arch
from trapline.turns import Turns

KINDS: Mapping[type, str] = {
    kvm_system.System: "system",
    kvm_vm.Vm: "vm",
    kvm_vcpu.Vcpu: "vcpu",
    kvm_device.Device: "device",
}
"""Which kind of file each kernel object makes."""

CORE = (kvm_system, kvm_vm, kvm_vcpu, kvm_device, kvm_irqrouting, kvm_eventfd)


class UndeclaredErrno(TraplineError):
    """A body failed with an errno that its declaration has no cause for: a mistake of this package, not of the caller."""


def arch_of(cpu: str, turns: Turns | None = None) -> Arch:
    """KVM/arm64 on a new software machine with this CPU. Imported here, because the machine brings LLVM with it."""
    from trapline.arm64.models import parse
    from trapline.kvm.arm64.machine import Arm64

    return Arm64.on_software_machine(turns, parse(cpu))


class Software:
    """The hypervisor of this package in this process."""

    name = "software"

    def __init__(self, arch: Arch | None = None, cpu: str = "", turns: Turns | None = None) -> None:
        """`cpu` describes the machine's CPU (`arm64/models.py`); `turns` makes it deterministic."""
        self.turns = turns
        self.system = kvm_system.System(arch if arch is not None else arch_of(cpu, turns))
        self.bodies: Mapping[Ioctl, Callable[..., int]] = bodies((*CORE, *self.system.arch.modules))

    def with_cpu(self, cpu: str) -> Software:
        """The same hypervisor on another software machine."""
        if self.turns is not None:
            raise NotSupported("a deterministic KVM has one machine: choose its CPU when opening it")
        return Software(cpu=cpu)

    def open(self) -> int:
        """A file of the KVM device."""
        return self.system.files.install(self.system)

    def ioctl(self, file: int, call: Ioctl, argument: Any = 0) -> int:
        """Find the body and run it."""
        target = self.system.files.get(file)
        body = self.bodies.get(call)
        if body is None or KINDS[type(target)] not in call.kinds:
            raise KvmError(ENOTTY)
        try:
            return body(target, argument)
        except KvmError as error:
            cause = call.causes.get(error.errno or EINVAL)
            if cause is None:
                raise UndeclaredErrno(f"{call.name} failed with {error.errno}, which it does not declare") from error
            error.strerror = f"{call.name}: {cause}"
            raise

    def close(self, file: int) -> None:
        """Close a file."""
        self.system.files.close(file)

    def map_run(self, file: int) -> Any:
        """The vCPU's shared memory itself."""
        return self._vcpu(file).run

    def kick(self, file: int) -> None:
        """Interrupt the vCPU."""
        self._vcpu(file).interrupt()

    def _vcpu(self, file: int) -> kvm_vcpu.Vcpu:
        target = self.system.files.get(file)
        if not isinstance(target, kvm_vcpu.Vcpu):
            raise KvmError(ENOTTY)
        return target
