"""An x86 VM's state and how it goes back: a table of what a vCPU has, in the order in which KVM takes it, and the chips of the VM.

Everything is kept as the structures KVM hands out, in hexadecimal. (Linux: Documentation/virt/kvm/api.rst.)
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from types import MappingProxyType
from typing import Any, Final

from trapline.abi.caps import Cap
from trapline.abi.struct import Structure
from trapline.abi.x86 import KVM_GET_TSC_KHZ, KVM_SET_TSC_KHZ, MpState
from trapline.abi.x86_vm import IoapicState, IrqchipId, PicState, PitState2
from trapline.backends.snapshot.order import Ordered
from trapline.backends.snapshot.state import complete
from trapline.backends.x86.vcpu import X86Vcpu
from trapline.backends.x86.vm import X86Vm
from trapline.errors import KvmError, NotSupported
from trapline.x86_64.cpuid import Cpuid, Leaf
from trapline.x86_64.msr import Msr
from trapline.x86_64.registers import Cr4, Efer

WHY: Mapping[str, str] = MappingProxyType(
    {
        "memory": "some MSRs name pages there, which KVM writes from then on",
        "vcpus": "chips pass on what is pending to local APICs",
        "chips": "their timers count from the moment they are set",
        "clock": "the guest goes on at the time it was stopped",
    }
)
"""The steps in order, and why each comes before those after it."""

CHIPS: Mapping[IrqchipId, type[Structure]] = MappingProxyType(
    {IrqchipId.PIC_MASTER: PicState, IrqchipId.PIC_SLAVE: PicState, IrqchipId.IOAPIC: IoapicState}
)
LAST_MSRS: Final = (Msr.TSC_DEADLINE,)
"""MSRs that mean something once the others have their values: this is a time of the TSC."""


@dataclass(frozen=True, slots=True)
class Row:
    """A part of a vCPU: how it is read as a plain value, how it is set, and which VMs have it."""

    read: Callable[[X86Vcpu], Any]
    write: Callable[[X86Vcpu, Any], None]
    exists: Callable[[X86Vm], object] = lambda vm: True


def has_lapic(vm: X86Vm) -> bool:
    """Whether local APICs are in the kernel."""
    return has_chips(vm) or any(step.what == "capability" and step.arguments[0] == Cap.SPLIT_IRQCHIP for step in vm.made)


def has(cap: Cap) -> Callable[[X86Vm], object]:
    """For VMs with a capability."""
    return lambda vm: vm.check_extension(cap)


def whole(name: str, exists: Callable[[X86Vm], object] = lambda vm: True) -> Row:
    """A structure that is an attribute of the vCPU."""
    cls = getattr(X86Vcpu, name).cls
    return Row(
        lambda vcpu: bytes(getattr(vcpu, name)).hex(),
        lambda vcpu, value: setattr(vcpu, name, cls.from_buffer_copy(bytes.fromhex(value))),
        exists,
    )


def _write_cpuid(vcpu: X86Vcpu, rows: Sequence[Sequence[Any]]) -> None:
    vcpu.cpuid = Cpuid(Leaf(*row) for row in rows)


def _read_tsc_khz(vcpu: X86Vcpu) -> int | None:
    try:
        return int(vcpu.ioctl(KVM_GET_TSC_KHZ))
    except KvmError as error:
        if error.errno != errno.EIO:
            raise
        return None  # the host's own rate is not known, or changes


def _write_tsc_khz(vcpu: X86Vcpu, rate: int | None) -> None:
    if rate is not None and rate != _read_tsc_khz(vcpu):
        vcpu.ioctl(KVM_SET_TSC_KHZ, rate)


def _write_task_priority(vcpu: X86Vcpu, value: int) -> None:
    vcpu.kvm_run.cr8 = value


def _write_general(vcpu: X86Vcpu, value: str) -> None:
    vcpu.regs.write(type(vcpu.regs.read()).from_buffer_copy(bytes.fromhex(value)))


def _write_xsave(vcpu: X86Vcpu, value: str) -> None:
    vcpu.xsave = bytes.fromhex(value)


def _read_msrs(vcpu: X86Vcpu) -> dict[str, str]:
    indices = vcpu.vm.system.msr_indices
    try:
        values = vcpu.msrs.read(indices)
    except KvmError:  # the list is the host's, and this vCPU may lack some of them
        values = {}
        for index in indices:
            try:
                values[index] = vcpu.msrs[index]
            except KvmError as error:
                if error.errno != errno.EINVAL:
                    raise
    return {f"{index:x}": f"{value:x}" for index, value in values.items()}


def _write_msrs(vcpu: X86Vcpu, saved: Mapping[str, str]) -> None:
    """Those that differ: some that KVM lists can be read only."""
    here = _read_msrs(vcpu)
    changed = {int(index, 16): int(value, 16) for index, value in saved.items() if here.get(index) != value}
    last = {index: changed.pop(index) for index in LAST_MSRS if index in changed}
    vcpu.msrs.write(changed | last)


def _write_power(vcpu: X86Vcpu, value: int) -> None:
    vcpu.mp_state = MpState(value)


VCPU: Mapping[str, Row] = MappingProxyType(
    {
        "cpuid": Row(lambda vcpu: [list(astuple(leaf)) for leaf in vcpu.cpuid], _write_cpuid),
        "tsc_khz": Row(_read_tsc_khz, _write_tsc_khz, has(Cap.GET_TSC_KHZ)),
        "sregs": whole("sregs", lambda vm: not vm.check_extension(Cap.SREGS2)),
        "sregs2": whole("sregs2", has(Cap.SREGS2)),
        "task priority": Row(lambda vcpu: int(vcpu.sregs.cr8), _write_task_priority, lambda vm: not has_lapic(vm)),
        "regs": Row(lambda vcpu: bytes(vcpu.regs.read()).hex(), _write_general),
        "xcrs": whole("xcrs", has(Cap.XCRS)),
        "xsave": Row(lambda vcpu: bytes(vcpu.xsave).hex(), _write_xsave, has(Cap.XSAVE)),
        "debugregs": whole("debugregs", has(Cap.DEBUGREGS)),
        "lapic": whole("lapic", has_lapic),
        "msrs": Row(_read_msrs, _write_msrs),
        "mp_state": Row(lambda vcpu: int(vcpu.mp_state), _write_power, has(Cap.MP_STATE)),
        "events": whole("events", has(Cap.VCPU_EVENTS)),
    }
)
"""In the order in which they are set. CPUID says which bits the others may have; control registers come before what they enable, XCR0
before the state that it admits; setting general registers forgets exceptions; EFER and the local APIC's mode decide about MSRs; the time
of the TSC deadline needs the local APIC. They are read the other way round: what is pending first, for reading it may settle it."""


# ---- saving -----------------------------------------------------------------------------------------------------------------------


def save(vm: X86Vm) -> dict[str, Any]:
    """The state of a VM none of whose vCPUs is running. NotSupported for one with state that cannot be saved."""
    for vcpu in vm.vcpus:
        complete(vcpu)
        sregs = vcpu.sregs
        if Cr4(sregs.cr4).VMXE or Efer(sregs.efer).SVME:
            raise NotSupported(f"a VM that makes VMs itself cannot be saved: vCPU {vcpu.id} has virtualisation switched on")
    return {
        "architecture": "x86_64",
        "type": vm.type,
        "made": [step.plain() for step in vm.made],
        "vcpus": [{"id": vcpu.id, **save_vcpu(vcpu)} for vcpu in vm.vcpus],
        "chips": {chip.name: bytes(vm.get_irqchip(chip)).hex() for chip in CHIPS} if has_chips(vm) else None,
        "pit": bytes(vm.pit).hex() if has_pit(vm) else None,
        "clock": int(vm.clock.clock) if vm.check_extension(Cap.ADJUST_CLOCK) else None,
    }


def save_vcpu(vcpu: X86Vcpu) -> dict[str, Any]:
    """All that `VCPU` lists and this KVM has."""
    rows = [(name, row) for name, row in VCPU.items() if row.exists(vcpu.vm)]
    return {name: row.read(vcpu) for name, row in reversed(rows)}


def has_chips(vm: X86Vm) -> bool:
    """Whether PICs and IOAPIC are in the kernel."""
    return any(step.what == "irqchip" for step in vm.made)


def has_pit(vm: X86Vm) -> bool:
    """Whether the interval timer is."""
    return any(step.what == "interval timer" for step in vm.made)


# ---- restoring --------------------------------------------------------------------------------------------------------------------


class X86Restore(Ordered):
    """Restores an x86 VM."""

    why = WHY

    def vcpus(self) -> None:
        """Everything that a vCPU has, its local APIC too."""
        self._step("vcpus")
        self._check_vcpus()
        for vcpu, saved in zip(self.vm.vcpus, self.state["vcpus"], strict=True):
            here = {name for name, row in VCPU.items() if row.exists(self.vm)}
            if missing := saved.keys() - here - {"id"}:
                raise self._bad(f"it has {', '.join(sorted(missing))} of vCPUs, which this KVM has not")
            for name, row in VCPU.items():
                if name in saved:
                    try:
                        row.write(vcpu, saved[name])
                    except KvmError as error:
                        raise self._bad(f"this KVM refuses vCPU {vcpu.id} its {name}: {error.cause}") from error

    def chips(self) -> None:
        """PICs, IOAPIC, interval timer."""
        self._step("chips")
        for chip, cls in CHIPS.items():
            if self.state["chips"] is not None:
                self.vm.set_irqchip(chip, cls.from_buffer_copy(bytes.fromhex(self.state["chips"][chip.name])))
        if self.state["pit"] is not None:
            self.vm.pit = PitState2.from_buffer_copy(bytes.fromhex(self.state["pit"]))

    def clock(self) -> None:
        """kvmclock. It runs on from here, so this comes last; the TSCs, which are MSRs, do from where they are set."""
        self._step("clock")
        if self.state["clock"] is not None:
            self.vm.clock = self.state["clock"]


