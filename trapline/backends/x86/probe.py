"""What the /dev/kvm of an x86-64 host can do: asked by capabilities, and by running a few guests of some bytes each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from trapline.abi.caps import Cap
from trapline.abi.x86_exits import HltExit, IoExit
from trapline.backends.x86.modes import long_mode, protected_mode, real_mode
from trapline.backends.x86.system import X86System
from trapline.backends.x86.vcpu import X86Vcpu
from trapline.backends.x86.vm import X86Vm
from trapline.errors import TraplineError
from trapline.x86_64.paging import MIB4

MODULES = ("kvm_intel", "kvm_amd", "kvm_pvm")
SOFTWARE_MODULES = {"kvm_pvm": "without hardware support: it emulates most of what guests do, slowly and not all of it"}

GROUPS = {
    "memory": {
        "slots": Cap.NR_MEMSLOTS,
        "read-only slots": Cap.READONLY_MEM,
        "manual dirty log": Cap.MANUAL_DIRTY_LOG_PROTECT2,
        "dirty ring bytes": Cap.DIRTY_LOG_RING,
        "coalesced MMIO": Cap.COALESCED_MMIO,
        "guest_memfd": Cap.GUEST_MEMFD,
    },
    "chips": {
        "PIC, IOAPIC, local APICs": Cap.IRQCHIP,
        "local APICs alone": Cap.SPLIT_IRQCHIP,
        "PIT": Cap.PIT2,
        "irqfd": Cap.IRQFD,
        "ioeventfd": Cap.IOEVENTFD,
        "MSI": Cap.SIGNAL_MSI,
    },
    "MSRs": {"exits to userspace": Cap.X86_USER_SPACE_MSR, "filter": Cap.X86_MSR_FILTER, "Hyper-V's": Cap.HYPERV},
    "state": {
        "SREGS2": Cap.SREGS2,
        "XSAVE bytes": Cap.XSAVE2,
        "registers in kvm_run": Cap.SYNC_REGS,
        "clock flags": Cap.ADJUST_CLOCK,
        "TSC scaling": Cap.TSC_CONTROL,
        "nested virtualization": Cap.NESTED_STATE,
    },
}
"""Capabilities to tell of, with a name that their number goes with."""

RUN_SECONDS = 2.0
TIMED_EXITS = 300
HALT, PORT_LOOP = bytes.fromhex("f4"), bytes.fromhex("e610ebfc")
CODE = 0x2_0000
MEMORY = 1 << 20


def abilities(system: X86System) -> Iterator[tuple[str, str]]:
    """Rows of a name and a text."""
    notes = {name: f" ({note})" for name, note in SOFTWARE_MODULES.items()}
    yield "module", ", ".join(name + notes.get(name, "") for name in loaded()) or "built in"
    cpuid = system.supported_cpuid
    yield "guests' CPU", f"{cpuid.vendor}, at most {system.check_extension(Cap.MAX_VCPUS)} of them: {' '.join(cpuid.features)}"
    for group, caps in GROUPS.items():
        answers = {name: system.check_extension(cap) for name, cap in caps.items()}
        yield group, ", ".join(f"{name} {answer}" if answer > 1 else name for name, answer in answers.items() if answer) or "none"
    yield "MSR lists", f"{len(system.msr_indices)} of a guest's state, {len(system.feature_msr_indices)} of features"
    yield "modes", ", ".join(f"{name}: {runs(system, enter)}" for name, enter in MODES.items())
    yield "an exit", f"takes {exit_time(system) * 1e6:.1f} us, Python included"


def loaded() -> list[str]:
    """The modules that make up this host's KVM."""
    return [name for name in MODULES if Path("/sys/module", name).exists()]


def _real(vcpu: X86Vcpu, vm: X86Vm) -> None:
    real_mode(vcpu, ip=0, segment=CODE >> 4)


def _protected(vcpu: X86Vcpu, vm: X86Vm) -> None:
    protected_mode(vcpu, vm.memory[0], entry=CODE)


def _paged(vcpu: X86Vcpu, vm: X86Vm) -> None:
    protected_mode(vcpu, vm.memory[0], entry=CODE, paging=MIB4)


def _long(vcpu: X86Vcpu, vm: X86Vm) -> None:
    long_mode(vcpu, vm.memory[0], entry=CODE)


MODES: dict[str, Callable[[X86Vcpu, X86Vm], None]] = {
    "16-bit real": _real,
    "32-bit": _protected,
    "32-bit with paging": _paged,
    "64-bit": _long,
}


def runs(system: X86System, enter: Callable[[X86Vcpu, X86Vm], None]) -> str:
    """Whether a guest in this mode executes HLT: "yes" or what happened instead."""
    try:
        with system.create_vm() as vm:
            vm.add_memory(0, MEMORY)[CODE : CODE + len(HALT)] = HALT
            vcpu = vm.create_vcpu()
            enter(vcpu, vm)
            exit = vcpu.run(timeout=RUN_SECONDS)
            return "yes" if isinstance(exit, HltExit) else f"no, {exit!r}"
    except TraplineError as error:
        return f"no ({error})"


def exit_time(system: X86System) -> float:
    """Seconds from one exit of a busy guest to the next."""
    with system.create_vm() as vm:
        vm.add_memory(0, MEMORY)[CODE : CODE + len(PORT_LOOP)] = PORT_LOOP
        vcpu = vm.create_vcpu()
        _real(vcpu, vm)
        vcpu.timeout = RUN_SECONDS
        start = perf_counter()
        for _, exit in zip(range(TIMED_EXITS), vcpu.exits()):
            if not isinstance(exit, IoExit):
                break
        return (perf_counter() - start) / TIMED_EXITS
