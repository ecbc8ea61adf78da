"""Virtual x86 machines on the host's /dev/kvm.

    from trapline import x86

    with x86.open() as kvm, kvm.create_vm() as vm:
        ram = vm.add_memory(0, 1 << 20)
        ram[0x1000:0x1005] = bytes.fromhex("b0 2a e6 10 f4")      # mov al, 42; out 0x10, al; hlt
        vcpu = vm.create_vcpu()
        x86.real_mode(vcpu, ip=0x1000)
        match vcpu.run(timeout=1):
            case x86.IoExit(port=0x10, is_out=True) as out:
                print(out.value)

The classes are those of `trapline.open(backend="kvm")` on an x86-64 host, named for type checkers.
"""

from __future__ import annotations

from trapline.abi.exits import DirtyRingFull, FailEntry, InternalError, IntrExit, MemoryFault, MmioExit, SystemEvent
from trapline.abi.x86_exits import (
    DebugExit,
    HltExit,
    HypercallExit,
    IoExit,
    IrqWindowOpen,
    MsrExit,
    RdmsrExit,
    ShutdownExit,
    WrmsrExit,
)
from trapline.abi.x86_msr import MSR_FILTER_DEFAULT_ALLOW, MSR_FILTER_DEFAULT_DENY, MsrExitReason, MsrFilterFlag
from trapline.abi.x86_vm import IrqchipId
from trapline.backends.select import open_x86 as open
from trapline.backends.x86.modes import Room, long_mode, protected_mode, real_mode
from trapline.backends.x86.msr_filter import Range
from trapline.backends.x86.system import X86System
from trapline.backends.x86.vcpu import X86Vcpu
from trapline.backends.x86.vm import X86Vm
from trapline.x86_64.cpuid import Cpuid
from trapline.x86_64.msr import Msr
from trapline.x86_64.paging import PageTables

__all__ = [
    "Cpuid",
    "DebugExit",
    "DirtyRingFull",
    "FailEntry",
    "HltExit",
    "HypercallExit",
    "InternalError",
    "IntrExit",
    "IoExit",
    "IrqWindowOpen",
    "IrqchipId",
    "MSR_FILTER_DEFAULT_ALLOW",
    "MSR_FILTER_DEFAULT_DENY",
    "MemoryFault",
    "MmioExit",
    "Msr",
    "MsrExit",
    "MsrExitReason",
    "MsrFilterFlag",
    "PageTables",
    "Range",
    "RdmsrExit",
    "Room",
    "ShutdownExit",
    "SystemEvent",
    "WrmsrExit",
    "X86System",
    "X86Vcpu",
    "X86Vm",
    "long_mode",
    "open",
    "protected_mode",
    "real_mode",
]
