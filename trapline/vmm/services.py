"""What a KVM does for its guests besides devices: performance monitors, and the time that others stole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trapline.abi.arm64 import PmuAttr, VcpuGroup
from trapline.abi.caps import Cap
from trapline.backends.objects import Vm
from trapline.backends.vcpu import Vcpu
from trapline.vmm.board import PMU_PPI, PVTIME

FIRST_PPI = 16
STOLEN_TIME_BYTES = 64


def start_services(vm: Vm, vcpus: Sequence[Vcpu], add_memory: Callable[[int, int], object]) -> None:
    """Configure what this KVM has of them; the interrupt controller is there."""
    if vm.check_extension(Cap.ARM_PMU_V3):
        for vcpu in vcpus:
            vcpu.set_attr(VcpuGroup.PMU_V3_CTRL, PmuAttr.IRQ, FIRST_PPI + PMU_PPI)
            vcpu.set_attr(VcpuGroup.PMU_V3_CTRL, PmuAttr.INIT, b"")
    if vm.check_extension(Cap.STEAL_TIME):
        add_memory(PVTIME.base, PVTIME.size)
        for number, vcpu in enumerate(vcpus):
            vcpu.set_attr(VcpuGroup.PVTIME_CTRL, 0, PVTIME.base + number * STOLEN_TIME_BYTES, width=8)
