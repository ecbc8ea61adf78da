"""Trapline: a KVM/arm64 that you can import.

    import trapline

    with trapline.open() as kvm, kvm.create_vm() as vm:
        ram = vm.add_memory(0x4000_0000, 64 << 20)
        vcpu = vm.create_vcpu()
        ...

`open` gives the hypervisor of this package on a software Arm machine, or the host's /dev/kvm: the same classes either way.
"""

from __future__ import annotations

from trapline.abi.caps import Cap
from trapline.abi.exits import DebugExit, Exit, IntrExit, MmioExit, NisvExit, SysregExit, SystemEvent
from trapline.backends.memory import GuestMemory
from trapline.backends.objects import Device, System, Vm
from trapline.backends.select import open_system as open
from trapline.backends.snapshot.format import Snapshot
from trapline.backends.vcpu import Vcpu
from trapline.errors import KvmError, TraplineError

__all__ = [
    "Cap",
    "DebugExit",
    "Device",
    "Exit",
    "GuestMemory",
    "IntrExit",
    "KvmError",
    "MmioExit",
    "NisvExit",
    "Snapshot",
    "SysregExit",
    "System",
    "SystemEvent",
    "TraplineError",
    "Vcpu",
    "Vm",
    "open",
]
