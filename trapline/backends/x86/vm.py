"""The public x86 virtual machine: vCPUs, interrupt controllers, timer, clock and MSR filter."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trapline.abi import x86_vm
from trapline.abi.caps import Cap
from trapline.abi.vm import KVM_CREATE_VCPU
from trapline.abi.x86_msr import KVM_X86_SET_MSR_FILTER, MSR_FILTER_DEFAULT_ALLOW, MsrExitReason
from trapline.backends.made import Made
from trapline.backends.objects import VmBase
from trapline.backends.x86.msr_filter import Range, filter_argument
from trapline.backends.x86.vcpu import X86Vcpu
from trapline.errors import BadInput
from trapline.x86_64.cpuid import Cpuid

if TYPE_CHECKING:
    from trapline.backends.x86.system import X86System

DEFAULT = Cpuid()
"""Stands for what the host supports."""


class X86Vm(VmBase[X86Vcpu]):
    """A virtual x86 machine: memory slots, vCPUs, and what of a PC's chips KVM emulates."""

    architecture = "x86_64"
    system: X86System

    def __init__(self, system: X86System, file: int, type: int = 0) -> None:
        super().__init__(system, file)
        self.type = type
        self.xsave_size = self.check_extension(Cap.XSAVE2)

    def create_vcpu(self, id: int | None = None, features: Iterable[int] | None = (), *, cpuid: Cpuid | None = DEFAULT) -> X86Vcpu:
        """Add a vCPU. Its CPUID is all that the host supports, unless `cpuid` is another table, or None for an empty one.

        `features` is there because arm64's vCPUs have them; x86's are in CPUID.
        """
        if features:
            raise BadInput("x86 vCPUs have no features of this kind: change `cpuid`")
        vcpu_id = len(self.vcpus) if id is None else id
        vcpu = X86Vcpu(self, self.ioctl(KVM_CREATE_VCPU, vcpu_id), vcpu_id)
        self.vcpus.append(vcpu)
        self.note(Made.of("vCPU", vcpu_id))
        if cpuid is not None:
            vcpu.cpuid = self.system.supported_cpuid if cpuid is DEFAULT else cpuid
        return vcpu

    # --- chips -----------------------------------------------------------------------------------------------------------------

    def create_irqchip(self) -> None:
        """Make PICs, an IOAPIC and local APICs in the kernel; before any vCPU."""
        self.ioctl(x86_vm.KVM_CREATE_IRQCHIP)
        self.note(Made.of("irqchip"))

    def split_irqchip(self, ioapic_pins: int = x86_vm.IOAPIC_PINS) -> None:
        """Make local APICs in the kernel and leave PICs and IOAPIC to userspace; before any vCPU."""
        self.enable_cap(Cap.SPLIT_IRQCHIP, ioapic_pins)

    def create_pit(self, *, speaker: bool = False) -> None:
        """Make an interval timer in the kernel; after `create_irqchip`. With `speaker` port 0x61 too."""
        self.ioctl(x86_vm.KVM_CREATE_PIT2, x86_vm.PitConfig(x86_vm.PIT_SPEAKER_DUMMY if speaker else 0))
        self.note(Made.of("interval timer", speaker))

    def get_irqchip(self, chip: x86_vm.IrqchipId) -> Any:
        """The state of a PIC (`PicState`) or the IOAPIC (`IoapicState`)."""
        state = x86_vm.Irqchip(chip)
        self.ioctl(x86_vm.KVM_GET_IRQCHIP, state)
        return state.chip.ioapic if chip == x86_vm.IrqchipId.IOAPIC else state.chip.pic

    def set_irqchip(self, chip: x86_vm.IrqchipId, value: Any) -> None:
        """Set the state of a PIC or the IOAPIC."""
        state = x86_vm.Irqchip(chip)
        if chip == x86_vm.IrqchipId.IOAPIC:
            state.chip.ioapic = value
        else:
            state.chip.pic = value
        self.ioctl(x86_vm.KVM_SET_IRQCHIP, state)

    @property
    def pit(self) -> x86_vm.PitState2:
        """The interval timer's state: a copy to change and assign."""
        state = x86_vm.PitState2()
        self.ioctl(x86_vm.KVM_GET_PIT2, state)
        return state

    @pit.setter
    def pit(self, value: x86_vm.PitState2) -> None:
        self.ioctl(x86_vm.KVM_SET_PIT2, value)

    def reinject_ticks(self, value: bool) -> None:
        """Whether ticks of the interval timer that the guest missed are made up for."""
        control = x86_vm.ReinjectControl(int(value))
        self.ioctl(x86_vm.KVM_REINJECT_CONTROL, ctypes.addressof(control))
        self._note_latest(Made.of("missed ticks", value))

    @property
    def clock(self) -> x86_vm.ClockData:
        """kvmclock in nanoseconds, with the flags that say what else counts."""
        data = x86_vm.ClockData()
        self.ioctl(x86_vm.KVM_GET_CLOCK, data)
        return data

    @clock.setter
    def clock(self, value: x86_vm.ClockData | int) -> None:
        """A structure, or nanoseconds."""
        self.ioctl(x86_vm.KVM_SET_CLOCK, x86_vm.ClockData(value) if isinstance(value, int) else value)

    def set_irq(self, gsi: int, level: int) -> None:
        """Set the level of an interrupt line of the in-kernel chips: pins 0 to 15 reach PIC and IOAPIC."""
        self.irq_line(gsi, level)

    # --- placement and MSRs ----------------------------------------------------------------------------------------------------

    def set_tss_addr(self, address: int) -> None:
        """Three pages of guest physical addresses that some hosts need for real mode."""
        self.ioctl(x86_vm.KVM_SET_TSS_ADDR, address)
        self._note_latest(Made.of("TSS address", address))

    def set_identity_map_addr(self, address: int) -> None:
        """One page of guest physical addresses that some hosts need for real mode; before any vCPU."""
        self.ioctl(x86_vm.KVM_SET_IDENTITY_MAP_ADDR, x86_vm.Address(address))
        self._note_latest(Made.of("identity map address", address))

    def user_space_msrs(self, reasons: int = MsrExitReason.INVAL | MsrExitReason.UNKNOWN | MsrExitReason.FILTER) -> None:
        """Let MSR accesses that fail for one of these reasons leave as RdmsrExit and WrmsrExit instead of raising #GP.

        Switch it on before a filter, and off (0) after: an access is judged by what is set when it happens.
        """
        self.enable_cap(Cap.X86_USER_SPACE_MSR, int(reasons))
        self._note_latest(Made.of("capability", int(Cap.X86_USER_SPACE_MSR), int(reasons)), told_by=1)

    def set_msr_filter(self, *ranges: Range, default: int = MSR_FILTER_DEFAULT_ALLOW) -> None:
        """Replace the MSR filter as a whole: the first range that judges an access decides, else `default`.

        It is the old filter or the new one for every access, never a mix; a call that fails changes nothing. Without ranges, and with
        the default that allows, there is no filter.
        """
        self.ioctl(KVM_X86_SET_MSR_FILTER, filter_argument(ranges, default))
        rows = [[each.base, each.count, sorted(map(int, each.allowed)), int(each.kinds)] for each in ranges]
        self._note_latest(Made.of("MSR filter", default, rows))

    def _note_latest(self, step: Made, told_by: int = 0) -> None:
        """A step of which the last one counts; those are the same step that have so many first arguments in common."""
        name = step.what, step.arguments[:told_by]
        self.made = [other for other in self.made if (other.what, other.arguments[:told_by]) != name]
        self.note(step)
