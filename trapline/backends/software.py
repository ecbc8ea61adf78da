"""The software backend: declared calls go to the bodies that the hypervisor registered for them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from errno import EBADF, EFAULT, EINVAL, ENOTTY
from typing import Any

from trapline.abi.ioctl import BAD_ARGUMENT, Ioctl, bodies
from trapline.abi.tables import calls
from trapline.abi.vcpu import KVM_RUN
from trapline.errors import KvmError, NotSupported, TraplineError
from trapline.host.user import copy_from_user, copy_to_user
from trapline.kvm import coalesced as kvm_coalesced
from trapline.kvm import device as kvm_device
from trapline.kvm import dirty as kvm_dirty
from trapline.kvm import eventfd as kvm_eventfd
from trapline.kvm import irqrouting as kvm_irqrouting
from trapline.kvm import stats as kvm_stats
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
    kvm_stats.StatsFile: "stats",
}
"""Which kind of file each kernel object makes."""

UNKNOWN_CALL = {"system": EINVAL, "vm": EINVAL, "vcpu": EINVAL, "device": ENOTTY, "stats": ENOTTY}
"""What a file of each kind answers to a call that it does not know: on arm64 only devices say ENOTTY."""

CORE = (kvm_system, kvm_vm, kvm_vcpu, kvm_device, kvm_irqrouting, kvm_eventfd, kvm_dirty, kvm_coalesced, kvm_stats)


class UndeclaredErrno(TraplineError):
    """A body failed with an errno that its declaration has no cause for: a mistake of this package, not of the caller."""


def _structure_at(address: int, call: Ioctl) -> Any:
    """The call's structure in the caller's memory. KvmError(EFAULT) if it is not there, or is to be written and cannot be."""
    assert call.struct is not None
    try:
        content = copy_from_user(address, call.size)
        if "R" in call.direction:
            copy_to_user(address, content)
    except KvmError as error:
        raise KvmError(EFAULT, f"{call.name}: {BAD_ARGUMENT}") from error
    return call.struct.from_address(address)


def _explain(call: Ioctl, error: KvmError) -> None:
    """Give an error of a call's body the declared cause."""
    cause = call.causes.get(error.errno or EINVAL)
    if cause is None:
        raise UndeclaredErrno(f"{call.name} failed with {error.errno}, which it does not declare") from error
    error.strerror = f"{call.name}: {cause}"


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

    def missing(self) -> list[Ioctl]:
        """Declared calls of this architecture that have no body: they answer ENOTTY."""
        return [call for call in calls("arm64") if call not in self.bodies]

    def with_cpu(self, cpu: str) -> Software:
        """The same hypervisor on another software machine."""
        if self.turns is not None:
            raise NotSupported("a deterministic KVM has one machine: choose its CPU when opening it")
        return Software(cpu=cpu)

    def open(self) -> int:
        """A file of the KVM device."""
        return self.system.files.install(self.system)

    def ioctl(self, file: int, call: Ioctl, argument: Any = 0) -> int:
        """Find the body and run it. A structure can be given as such or by its address."""
        target = self.system.files.get(file)
        kind = KINDS[type(target)]
        if kind not in call.kinds:
            raise KvmError(UNKNOWN_CALL[kind], f"{call.name} is not for a file of this kind")
        body = self.bodies.get(call)
        if body is None:
            raise KvmError(ENOTTY, f"{call.name} does not exist here")
        if call.struct is not None:
            if isinstance(argument, int):
                argument = _structure_at(argument, call) if argument or not call.nullable else None
            elif not isinstance(argument, ctypes.Structure) or ctypes.sizeof(argument) < call.size:
                raise TypeError(f"{call.name} takes {call.argument}, not {argument!r}")
        try:
            return body(target, argument)
        except KvmError as error:
            _explain(call, error)
            raise

    def runner(self, file: int) -> Callable[[], int]:
        """KVM_RUN of a vCPU, without what `ioctl` has to find out each time."""
        self._vcpu(file)
        body, get = self.bodies[KVM_RUN], self.system.files.get

        def run() -> int:
            try:
                return body(get(file), 0)
            except KvmError as error:
                if error.errno != EBADF:
                    _explain(KVM_RUN, error)
                raise

        return run

    bare_runner = runner

    def entering(self, file: int) -> None:
        """A kick finds the vCPU in any thread."""

    def run_failure(self) -> KvmError:
        """Failures raise KvmError."""
        return KvmError(EINVAL)

    def close(self, file: int) -> None:
        """Close a file; with the last one the machine's threads end."""
        self.system.files.close(file)
        if not len(self.system.files):
            self.system.arch.close()

    def map_run(self, file: int) -> Any:
        """The vCPU's shared memory itself."""
        return self._vcpu(file).run

    def map_ring(self, file: int, size: int) -> Any:
        """The vCPU's dirty ring itself; KvmError(EINVAL) if it has none of that size."""
        ring = self._vcpu(file).ring
        if ring is None or size != len(ring.memory):
            raise KvmError(EINVAL, "the vCPU has no dirty ring of this size")
        return ring.memory

    def read(self, file: int, size: int, offset: int) -> bytes:
        """Read a statistics file; KvmError(EINVAL) for any other."""
        target = self.system.files.get(file)
        if not isinstance(target, kvm_stats.StatsFile):
            raise KvmError(EINVAL, "only files of statistics can be read")
        return target.read(size, offset)

    def kick(self, file: int) -> None:
        """Interrupt the vCPU."""
        self._vcpu(file).interrupt()

    def _vcpu(self, file: int) -> kvm_vcpu.Vcpu:
        target = self.system.files.get(file)
        if not isinstance(target, kvm_vcpu.Vcpu):
            raise KvmError(ENOTTY)
        return target
