"""What an arm64 VM is at a moment, as plain values: its vCPUs' registers and its interrupt controllers. Memory is not part of it."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

from trapline.abi.arm64 import KVM_GET_VCPU_EVENTS, Feature, VcpuEvents, VgicCtrl, VgicGroup
from trapline.abi.caps import Cap
from trapline.abi.exits import IntrExit
from trapline.backends.made import Made
from trapline.backends.objects import Vm
from trapline.backends.snapshot import gic
from trapline.backends.vcpu import Vcpu, VcpuBase
from trapline.errors import KvmError, NotSupported, SnapshotOrder

UNSAVABLE = {Feature.SVE: "SVE", Feature.HAS_EL2: "nested virtualisation", Feature.EL1_32BIT: "AArch32"}
"""Features whose state is not saved: none of them is there on the software machine."""

SAVING = "stop every vCPU, answer its last exit, let KVM complete the access (immediate_exit), save tables, registers, then memory"
"""The order of a snapshot."""


def save(vm: Vm) -> dict[str, Any]:
    """The state of a VM none of whose vCPUs is running. SnapshotOrder if one is.

    Guest memory has to be read after this: the interrupt controller writes its tables there.
    """
    check_savable(vm)
    settle(vm)
    return {
        "architecture": "arm64",
        "type": vm.type,
        "made": [step.plain() for step in vm.made],
        "devices": [save_device(vm, index) for index in range(len(vm.devices))],
        "vcpus": [save_vcpu(vcpu) for vcpu in vm.vcpus],
        "sysregs": vm.sysregs.state() if vm.has_sysregs else None,
    }


def check_savable(vm: Vm) -> None:
    """NotSupported for a VM with state that cannot be saved."""
    chosen: Iterable[int] = {feature for step in vm.made if step.what == "features" for feature in step.arguments[1]}
    for feature, name in UNSAVABLE.items():
        if feature in chosen:
            raise NotSupported(f"a VM with {name} cannot be saved: nothing here saves its registers")
    if any(step.what == "capability" and step.arguments[0] == Cap.ARM_MTE for step in vm.made):
        raise NotSupported("a VM with memory tags cannot be saved: nothing here saves the tags")


def settle(vm: Vm) -> None:
    """Complete what vCPUs are in the middle of, and have the interrupt controller's tables be in guest memory."""
    try:
        gic.settle(vm)  # first of all: KVM refuses it while a vCPU runs, instead of waiting for that vCPU
    except KvmError as error:
        if error.errno == errno.EBUSY:
            raise SnapshotOrder(f"a vCPU is running. The order of a snapshot: {SAVING}") from error
        raise
    for vcpu in vm.vcpus:
        complete(vcpu)
    gic.settle(vm)


def complete(vcpu: VcpuBase) -> None:
    """Let KVM do the rest of the access that the vCPU's last exit was for; a vCPU that never ran has none."""
    if not vcpu.has_run:
        return
    wanted, vcpu.immediate_exit = vcpu.immediate_exit, True
    try:
        exit = vcpu.run()
    finally:
        vcpu.immediate_exit = wanted
    if type(exit) is not IntrExit:
        raise SnapshotOrder(f"vCPU {vcpu.id} went on with {exit!r} when it was asked to complete the last one")


def save_vcpu(vcpu: Vcpu) -> dict[str, Any]:
    """Registers, power state, pending SError."""
    events = VcpuEvents()  # type: ignore[call-arg]
    if vcpu.vm.check_extension(Cap.VCPU_EVENTS):
        vcpu.ioctl(KVM_GET_VCPU_EVENTS, events)
    return {
        "id": vcpu.id,
        "power": int(vcpu.mp_state),
        "serror": [events.serror_has_esr, events.serror_esr] if events.serror_pending else None,
        "registers": {f"{reg_id:x}": f"{vcpu.get_one_reg(reg_id):x}" for reg_id in vcpu.reg_list()},
    }


def save_device(vm: Vm, index: int) -> dict[str, Any]:
    """The writes that restore an in-kernel device."""
    device = vm.devices[index]
    read = gic.READERS.get(device.kind)
    if read is None:
        raise NotSupported(f"an in-kernel device of type {device.kind} cannot be saved")
    return {"kind": device.kind, "writes": list(read(vm, device)) if _is_initialized(vm.made, index) else []}


def _is_initialized(made: Iterable[Made], device: int) -> bool:
    """Whether a device was told CTRL_INIT: before that it has no registers."""
    wanted = ("device attribute", (device, int(VgicGroup.CTRL), int(VgicCtrl.INIT)))
    return any((step.what, step.arguments[:3]) == wanted for step in made)
