"""The guest's generic timers: virtual and physical, run by the machine, delivered through the interrupt controller.

The guest programs CNTV_* and CNTP_* itself. The machine says when a timer's output is high; the hypervisor copies that level to
the PPI that userspace chose. All vCPUs of a VM share one virtual offset, so that the guest's counters agree.
"""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENXIO
from typing import TYPE_CHECKING, Final

from trapline.abi.arm64 import TimerAttr, VcpuGroup
from trapline.arm64.regs import CNTHCTL_EL2, CNTVOFF_EL2
from trapline.errors import KvmError

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu
    from trapline.kvm.arm64.vm import Arm64Vm

DEFAULT_PPIS: Final = (27, 30, 28, 26)
"""Interrupt ids in the order of TimerAttr."""

VTIMER_LINE, PTIMER_LINE = 1, 2
"""Bits of the machine's timer lines."""

WORD: Final = (1 << 64) - 1


class VmTimer:
    """What the vCPUs of a VM share: interrupt numbers and counter offset."""

    def __init__(self, vm: Arm64Vm) -> None:
        self.vm = vm
        self.ppis = list(DEFAULT_PPIS)
        self.offset = vm.machine.counter()
        """CNTVOFF_EL2: the guest's virtual counter starts at 0 when the VM is made."""

    def set_count(self, value: int) -> None:
        """Make the virtual counter read `value` now, on every vCPU."""
        self.offset = self.vm.machine.counter() - value & WORD
        for vcpu in self.vm.vcpus:
            vcpu.sysreg[CNTVOFF_EL2.slot] = self.offset

    def count(self) -> int:
        """The virtual counter."""
        return self.vm.machine.counter() - self.offset & WORD

    def check(self) -> None:
        """EINVAL if two timers share an interrupt."""
        if len(set(self.ppis)) != len(self.ppis):
            raise KvmError(EINVAL)

    def attr_size(self, attr: int) -> int:
        """Attributes of VcpuGroup.TIMER_CTRL are 32-bit interrupt ids."""
        if attr not in (TimerAttr.VTIMER, TimerAttr.PTIMER):
            raise KvmError(ENXIO)
        return 4

    def set_attr(self, attr: int, value: int) -> None:
        """Choose the interrupt of a timer, for all vCPUs."""
        self.attr_size(attr)
        if not 16 <= value <= 31:
            raise KvmError(EINVAL)
        if self.vm.has_run:
            raise KvmError(EBUSY)
        self.ppis[attr] = value


TIMER_GROUP: Final = VcpuGroup.TIMER_CTRL


def reset(vcpu: Arm64Vcpu) -> None:
    """Give the guest both timers, quiet, and the VM's offset."""
    sysreg = vcpu.sysreg
    _set_lines(vcpu, 0)
    sysreg[CNTHCTL_EL2.slot] = CNTHCTL_EL2(EL1PCTEN=1, EL1PCEN=1)
    sysreg[CNTVOFF_EL2.slot] = vcpu.vm.timer.offset


def update_lines(vcpu: Arm64Vcpu) -> None:
    """Copy the timers' outputs to the interrupt controller. Called on the vCPU's own thread."""
    _set_lines(vcpu, vcpu.cpu.timer_lines())


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
    """When the guest's virtual counter reaches `count`, in host monotonic nanoseconds."""
    now, virtual = vcpu.vm.machine.world.clock.now(), vcpu.vm.timer.count()
    return now + max(0, count - virtual) * vcpu.vm.machine.tick_ns
