"""The guest's generic timers: virtual and physical, run by the machine, delivered through the interrupt controller.

The guest programs CNTV_* and CNTP_* itself. The machine says when a timer's output is high; the hypervisor copies that level to
the PPI that userspace chose. All vCPUs of a VM share one virtual offset, so that the guest's counters agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import EBUSY, EINVAL, ENXIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.abi.arm64 import TimerAttr
from trapline.arm64.regs import (
    CNTHCTL_EL2,
    CNTP_CTL_EL0,
    CNTP_CVAL_EL0,
    CNTP_TVAL_EL0,
    CNTPCT_EL0,
    CNTPCTSS_EL0,
    CNTV_CTL_EL0,
    CNTVOFF_EL2,
)
from trapline.errors import KvmError
from trapline.kvm.arm64.flags import COUNTER_OFFSET

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu
    from trapline.kvm.arm64.vm import Arm64Vm

DEFAULT_PPIS: Final = (27, 30, 28, 26)
"""Interrupt ids in the order of TimerAttr."""

VTIMER_LINE, PTIMER_LINE = 1, 2
"""Bits of the machine's timer lines."""

WORD: Final = (1 << 64) - 1
CONTROL, COMPARE = CNTP_CTL_EL0.slot, CNTP_CVAL_EL0.slot
VIRTUAL_CONTROL = CNTV_CTL_EL0.slot
ENABLE, MASK, STATUS = CNTP_CTL_EL0.ENABLE.mask, CNTP_CTL_EL0.IMASK.mask, CNTP_CTL_EL0.ISTATUS.mask


class VmTimer:
    """What the vCPUs of a VM share: interrupt numbers and counter offset."""

    def __init__(self, vm: Arm64Vm) -> None:
        self.vm = vm
        self.ppis = list(DEFAULT_PPIS)
        self.offset = vm.machine.counter()
        """CNTVOFF_EL2: the guest's virtual counter starts at 0 when the VM is made."""

        self.physical_offset = 0
        """What the guest's physical counter lags behind the machine's. The machine has no register for it: it is done by traps."""

    def set_count(self, value: int) -> None:
        """Make the virtual counter read `value` now, on every vCPU; nothing once userspace has set the offset itself."""
        if not self.vm.flags.any() & COUNTER_OFFSET:
            self._set_offset(self.vm.machine.counter() - value & WORD)

    def _set_offset(self, offset: int) -> None:
        self.offset = offset
        for vcpu in self.vm.vcpus:
            vcpu.sysreg[CNTVOFF_EL2.slot] = offset

    def set_offsets(self, offset: int) -> None:
        """KVM_ARM_SET_COUNTER_OFFSET, with no vCPU running: both counters lag behind the machine's by this."""
        moved, self.physical_offset = offset - self.physical_offset, offset
        self._set_offset(offset)
        self.vm.flags.set(COUNTER_OFFSET)
        for vcpu in self.vm.vcpus:
            sysreg = vcpu.sysreg
            sysreg[CNTHCTL_EL2.slot] = self.control()
            sysreg[COMPARE] = sysreg[COMPARE] + moved & WORD
            vcpu.cpu.request_flush()
            vcpu.look_at_timers = True

    def control(self) -> CNTHCTL_EL2:
        """What of the physical counter and timer the guest uses directly: all, unless its counter is another than the machine's."""
        direct = int(not self.physical_offset)
        return CNTHCTL_EL2(EL1PCTEN=direct, EL1PCEN=direct)

    def physical_count(self) -> int:
        """The guest's physical counter."""
        return self.vm.machine.counter() - self.physical_offset & WORD

    def count(self) -> int:
        """The virtual counter."""
        return self.vm.machine.counter() - self.offset & WORD

    def check(self) -> None:
        """EINVAL if two timers share an interrupt."""
        if len(set(self.ppis)) != len(self.ppis):
            raise KvmError(EINVAL)

    def attr_size(self, attr: int) -> int:
        """Attributes of VcpuGroup.TIMER_CTRL are 32-bit interrupt ids. Whether this one exists is said last."""
        return 4

    def has_attr(self, attr: int) -> None:
        """ENXIO for a timer that is not there."""
        if attr not in (TimerAttr.VTIMER, TimerAttr.PTIMER):
            raise KvmError(ENXIO)

    def set_attr(self, attr: int, value: int) -> None:
        """Choose the interrupt of a timer, for all vCPUs. EINVAL without an interrupt controller, EBUSY once a vCPU has run."""
        if self.vm.vgic is None or not 16 <= value <= 31:
            raise KvmError(EINVAL)
        if self.vm.has_run:
            raise KvmError(EBUSY)
        self.has_attr(attr)
        self.ppis[attr] = value

    def get_attr(self, attr: int) -> int:
        """The interrupt of a timer."""
        self.has_attr(attr)
        return self.ppis[attr]


def reset(vcpu: Arm64Vcpu) -> None:
    """Give the guest both timers, quiet, and the VM's offset."""
    sysreg = vcpu.sysreg
    _set_lines(vcpu, 0)
    sysreg[CNTHCTL_EL2.slot] = vcpu.vm.timer.control()
    sysreg[COMPARE] = vcpu.vm.timer.physical_offset
    sysreg[CNTVOFF_EL2.slot] = vcpu.vm.timer.offset


def first_run(vcpu: Arm64Vcpu) -> None:
    """Userspace may have restored an interrupt controller to which another machine's timers were connected: lower what they raised."""
    vcpu.timer_lines = VTIMER_LINE | PTIMER_LINE
    _set_lines(vcpu, 0)


def update_lines(vcpu: Arm64Vcpu) -> None:
    """Copy the timers' outputs to the interrupt controller. Called on the vCPU's own thread."""
    _set_lines(vcpu, vcpu.cpu.timer_lines())


def none_matters(vcpu: Arm64Vcpu) -> bool:
    """Whether both timers are off, and were when their outputs were looked at: then there is nothing to look at, which takes longer."""
    sysreg = vcpu.sysreg
    return not (vcpu.timer_lines or (sysreg[CONTROL] | sysreg[VIRTUAL_CONTROL]) & ENABLE)


def _set_lines(vcpu: Arm64Vcpu, lines: int) -> None:
    changed = lines ^ vcpu.timer_lines
    if not changed:
        return
    vcpu.timer_lines = lines
    vgic = vcpu.vm.vgic
    if vgic is None:
        return
    ppis = vcpu.vm.timer.ppis
    if changed & VTIMER_LINE:
        vgic.inject(vcpu, ppis[TimerAttr.VTIMER], bool(lines & VTIMER_LINE), by=vcpu)
    if changed & PTIMER_LINE:
        vgic.inject(vcpu, ppis[TimerAttr.PTIMER], bool(lines & PTIMER_LINE), by=vcpu)


def virtual_deadline(vcpu: Arm64Vcpu, count: int) -> int:
    """When the guest's virtual counter reaches `count`, in host monotonic nanoseconds. Whenever it is asked, the answer is the same."""
    timer, machine = vcpu.vm.timer, vcpu.vm.machine
    return (machine.counter() + max(0, count - timer.count())) * machine.tick_ns


# --- the physical timer of a guest whose counter is not the machine's: its registers trap ------------------------------------


def compare_value(vcpu: Arm64Vcpu) -> int:
    """CNTP_CVAL_EL0 as the guest sees it. The machine's register holds when that is by the machine's counter."""
    return vcpu.sysreg[COMPARE] - vcpu.vm.timer.physical_offset & WORD


def set_compare_value(vcpu: Arm64Vcpu, value: int) -> bool:
    """Set CNTP_CVAL_EL0."""
    vcpu.sysreg[COMPARE] = value + vcpu.vm.timer.physical_offset & WORD
    _changed(vcpu)
    return True


def _changed(vcpu: Arm64Vcpu) -> None:
    vcpu.cpu.request_flush()
    vcpu.look_at_timers = True


def _count(vcpu: Arm64Vcpu) -> int:
    return vcpu.vm.timer.physical_count()


def _control(vcpu: Arm64Vcpu) -> int:
    control: int = vcpu.sysreg[CONTROL] & (ENABLE | MASK)
    due = control & ENABLE and vcpu.vm.timer.physical_count() >= compare_value(vcpu)
    return control | (STATUS if due else 0)


def _set_control(vcpu: Arm64Vcpu, value: int) -> bool:
    vcpu.sysreg[CONTROL] = value & (ENABLE | MASK)
    _changed(vcpu)
    return True


def _remaining(vcpu: Arm64Vcpu) -> int:
    return compare_value(vcpu) - vcpu.vm.timer.physical_count() & 0xFFFF_FFFF


def _set_remaining(vcpu: Arm64Vcpu, value: int) -> bool:
    low = value & 0xFFFF_FFFF
    return set_compare_value(vcpu, vcpu.vm.timer.physical_count() + low - (low >> 31 << 32))


READS: Mapping[int, Callable[[Arm64Vcpu], int | None]] = MappingProxyType(
    {
        CNTPCT_EL0.encoding: _count,
        CNTPCTSS_EL0.encoding: _count,
        CNTP_CTL_EL0.encoding: _control,
        CNTP_CVAL_EL0.encoding: compare_value,
        CNTP_TVAL_EL0.encoding: _remaining,
    }
)
WRITES: Mapping[int, Callable[[Arm64Vcpu, int], bool]] = MappingProxyType(
    {CNTP_CTL_EL0.encoding: _set_control, CNTP_CVAL_EL0.encoding: set_compare_value, CNTP_TVAL_EL0.encoding: _set_remaining}
)
