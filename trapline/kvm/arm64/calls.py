"""The bodies of the vCPU calls that only arm64 has."""

from __future__ import annotations

from errno import EINVAL, ENOENT, ENOEXEC
from typing import TYPE_CHECKING, Final

from trapline.abi.arm64 import (
    KVM_ARM_VCPU_INIT,
    KVM_GET_VCPU_EVENTS,
    KVM_SET_VCPU_EVENTS,
    TARGET_GENERIC_V8,
    Feature,
    VcpuEvents,
    VcpuInit,
)
from trapline.abi.arm64_vm import (
    FEATURE_ID_RANGE,
    KVM_ARM_GET_REG_WRITABLE_MASKS,
    KVM_ARM_SET_COUNTER_OFFSET,
    KVM_ARM_VCPU_FINALIZE,
    KVM_GET_FPU,
    KVM_GET_REGS,
    KVM_GET_SREGS,
    KVM_SET_FPU,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_TRANSLATE,
    CounterOffset,
    FeatureNumber,
    RegMaskRange,
)
from trapline.abi.ioctl import implements
from trapline.arm64.regs import FAR_EL2, HCR_EL2
from trapline.errors import KvmError
from trapline.host.user import copy_to_user
from trapline.kvm.arm64 import inject
from trapline.kvm.arm64.abort import NOT_PENDING
from trapline.kvm.arm64.flags import WRITABLE_IMP_ID_REGS
from trapline.kvm.arm64.idregs import writable_masks
from trapline.kvm.arm64.vcpu import HCR, PTRAUTH

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu
    from trapline.kvm.arm64.vm import Arm64Vm
    from trapline.kvm.vcpu import Vcpu
    from trapline.kvm.vm import Vm

KNOWN_FEATURES: Final = sum(1 << feature for feature in Feature)


def _features_of(init: VcpuInit, machine_has_pauth: bool) -> int:
    """The feature bits of an argument, checked: ENOENT for unknown ones, EINVAL for unsupported or contradictory ones."""
    words = list(init.features)
    features = words[0] & ~(1 << Feature.POWER_OFF)
    if any(words[1:]) or features & ~KNOWN_FEATURES:
        raise KvmError(ENOENT)
    allowed = 1 << Feature.PSCI_0_2 | 1 << Feature.PMU_V3 | (PTRAUTH if machine_has_pauth else 0)
    if features & ~allowed or features & PTRAUTH not in (0, PTRAUTH):
        raise KvmError(EINVAL)
    return features


@implements(KVM_ARM_VCPU_INIT)
def vcpu_init(core: Vcpu, init: VcpuInit) -> int:
    """Check target and features, then initialise or reset."""
    vcpu: Arm64Vcpu = core.arch  # type: ignore[assignment]
    if init.target != TARGET_GENERIC_V8:
        raise KvmError(EINVAL)
    features = _features_of(init, "PAuth" in vcpu.vm.machine.features)
    with core.mutex:
        vcpu.init(init.target, features, bool(init.features[0] >> Feature.POWER_OFF & 1))
    return 0


@implements(KVM_GET_VCPU_EVENTS)
def get_vcpu_events(core: Vcpu, events: VcpuEvents) -> int:
    """Only a virtual SError can be pending: everything else takes effect at once."""
    vcpu: Arm64Vcpu = core.arch  # type: ignore[assignment]
    with core.mutex:
        vcpu.require_initialized()
        events.serror_pending = bool(vcpu.sysreg[HCR] & HCR_EL2.VSE.mask)
        events.serror_has_esr = events.ext_dabt_pending = events.serror_esr = 0
    return 0


@implements(KVM_SET_VCPU_EVENTS)
def set_vcpu_events(core: Vcpu, events: VcpuEvents) -> int:
    """Make an SError pending, or deliver an external abort for the access that exited.

    Linux delivers the abort before it looks at the SError; here a call that fails has done nothing.
    """
    vcpu: Arm64Vcpu = core.arch  # type: ignore[assignment]
    with core.mutex:
        vcpu.require_initialized()
        if any((events.pad0, events.pad1, *events.reserved0, events.reserved1, events.reserved2)):
            raise KvmError(EINVAL)
        if events.serror_pending and events.serror_has_esr:
            raise KvmError(EINVAL)  # a machine without FEAT_RAS has no syndrome to give
        if events.ext_dabt_pending:
            vcpu.pending_mmio, vcpu.pending_sysreg = NOT_PENDING, None
            inject.external_abort(vcpu, False, vcpu.sysreg[FAR_EL2.slot])
        if events.serror_pending:
            vcpu.sysreg[HCR] |= HCR_EL2.VSE.mask
    return 0


@implements(KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_GET_FPU, KVM_SET_FPU, KVM_TRANSLATE)
def refused(core: Vcpu, argument: object) -> int:
    """Calls of other architectures that arm64's KVM knows and always refuses."""
    raise KvmError(EINVAL)


@implements(KVM_ARM_VCPU_FINALIZE)
def vcpu_finalize(core: Vcpu, argument: FeatureNumber) -> int:
    """SVE alone has anything to complete, and this machine has none."""
    vcpu: Arm64Vcpu = core.arch  # type: ignore[assignment]
    with core.mutex:
        if not vcpu.initialized:
            raise KvmError(ENOEXEC)
        raise KvmError(EINVAL)


@implements(KVM_ARM_SET_COUNTER_OFFSET)
def set_counter_offset(vm: Vm, argument: CounterOffset) -> int:
    """Move both counters, with every vCPU held outside the guest."""
    if argument.reserved:
        raise KvmError(EINVAL)
    arch: Arm64Vm = vm.arch  # type: ignore[assignment]
    with vm.lock, vm.stop_vcpus():
        arch.timer.set_offsets(argument.counter_offset)
    return 0


@implements(KVM_ARM_GET_REG_WRITABLE_MASKS)
def get_reg_writable_masks(vm: Vm, argument: RegMaskRange) -> int:
    """Copy the masks out."""
    if argument.range != FEATURE_ID_RANGE or any(argument.reserved):
        raise KvmError(EINVAL)
    arch: Arm64Vm = vm.arch  # type: ignore[assignment]
    masks = writable_masks(bool(arch.flags.any() & WRITABLE_IMP_ID_REGS))
    copy_to_user(argument.addr, b"".join(mask.to_bytes(8, "little") for mask in masks))
    return 0
