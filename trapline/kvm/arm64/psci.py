"""PSCI: how a guest turns its vCPUs and its machine on and off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.abi.arm64 import SystemEventFlag
from trapline.abi.exits import SystemEvent, SystemEventType, encode_exit
from trapline.abi.vcpu import MpState
from trapline.kvm.arm64.flags import SYSTEM_SUSPEND as SYSTEM_SUSPEND_ENABLED
from trapline.kvm.requests import RESET

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, ALREADY_ON, INTERNAL_FAILURE = 0, -1, -2, -4, -6

VERSION, CPU_SUSPEND, CPU_OFF, CPU_ON, AFFINITY_INFO = 0x8400_0000, 0x8400_0001, 0x8400_0002, 0x8400_0003, 0x8400_0004
MIGRATE_INFO_TYPE, SYSTEM_OFF, SYSTEM_RESET, FEATURES = 0x8400_0006, 0x8400_0008, 0x8400_0009, 0x8400_000A
SYSTEM_SUSPEND, SYSTEM_RESET2, SYSTEM_OFF2 = 0x8400_000E, 0x8400_0012, 0x8400_0015
FAST_64: Final = 1 << 30

VERSION_0_1, VERSION_0_2, VERSION_1_0, VERSION_1_1, VERSION_1_2, VERSION_1_3 = 0, 2, 0x1_0000, 0x1_0001, 0x1_0002, 0x1_0003
VERSIONS: Final = frozenset({VERSION_0_2, VERSION_1_0, VERSION_1_1, VERSION_1_2, VERSION_1_3})
LATEST: Final = VERSION_1_3

SMCCC_VERSION: Final = 0x8000_0000
TRUSTED_OS_NOT_NEEDED: Final = 2
AFFINITY_MASK: Final = 0xFF_00FF_FFFF
ON, OFF = 0, 1
VENDOR_RESET: Final = 1 << 31
HIBERNATE_OFF: Final = 1


class Leave:
    """Outcome of a call that ends KVM_RUN: kvm_run holds the exit."""


LEAVE: Final = Leave()
Outcome = int | None | Leave
Call = Callable[["Arm64Vcpu", bool], Outcome]


def _argument(vcpu: Arm64Vcpu, number: int, wide: bool) -> int:
    return vcpu.x[number] & ((1 << 64) - 1 if wide else 0xFFFF_FFFF)


def _version(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    return vcpu.psci_version


def _cpu_suspend(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    """Any power state is treated as standby: the same as WFI."""
    vcpu.wait_for_interrupt()
    return SUCCESS


def _cpu_off(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    vcpu.power_off(tell=True)
    return None


def _cpu_on(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    affinity = _argument(vcpu, 1, wide)
    if affinity & ~AFFINITY_MASK:
        return INVALID_PARAMETERS
    target = next((other for other in vcpu.vm.vcpus if other.affinity == affinity), None)
    if target is None:
        return INVALID_PARAMETERS
    entry, context = _argument(vcpu, 2, wide), _argument(vcpu, 3, wide)
    with target.power_lock:
        if target.mp_state != MpState.STOPPED:
            return ALREADY_ON if vcpu.psci_version != VERSION_0_1 else INVALID_PARAMETERS
        target.reset_entry = (entry, context)
        target.core.requests.set(RESET)
        target.mp_state = MpState.RUNNABLE
    target.kick()
    return SUCCESS


def _affinity_info(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    affinity, level = _argument(vcpu, 1, wide), _argument(vcpu, 2, wide)
    if level > 3 or affinity & ~AFFINITY_MASK:
        return INVALID_PARAMETERS
    mask = AFFINITY_MASK & ~((1 << 8 * level) - 1)
    matching = [other for other in vcpu.vm.vcpus if other.affinity & mask == affinity & mask]
    if not matching:
        return INVALID_PARAMETERS
    return OFF if all(other.mp_state == MpState.STOPPED for other in matching) else ON


def _migrate_info_type(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    return TRUSTED_OS_NOT_NEEDED


def _event(vcpu: Arm64Vcpu, kind: SystemEventType, flags: int = 0) -> Outcome:
    """Stop the VM and tell userspace. X0 holds a failure in case userspace resumes the caller after all."""
    vcpu.vm.stop_all(vcpu)
    vcpu.x[0] = INTERNAL_FAILURE & (1 << 64) - 1
    encode_exit(vcpu.core.run, SystemEvent(kind, (flags,)))
    return LEAVE


def _system_off(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    return _event(vcpu, SystemEventType.SHUTDOWN)


def _system_reset(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    return _event(vcpu, SystemEventType.RESET)


def _system_reset2(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    kind = vcpu.x[1] & 0xFFFF_FFFF
    if vcpu.psci_version < VERSION_1_1:
        return NOT_SUPPORTED
    if kind and not kind & VENDOR_RESET:
        return INVALID_PARAMETERS
    return _event(vcpu, SystemEventType.RESET, SystemEventFlag.PSCI_RESET2)


def _system_off2(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    if vcpu.psci_version < VERSION_1_3:
        return NOT_SUPPORTED
    if _argument(vcpu, 1, wide) not in (0, HIBERNATE_OFF) or _argument(vcpu, 2, wide):
        return INVALID_PARAMETERS
    return _event(vcpu, SystemEventType.SHUTDOWN, SystemEventFlag.PSCI_OFF2)


def _system_suspend(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    """Userspace decides; the registers stay as they are for it to read."""
    if not vcpu.vm.flags.any() & SYSTEM_SUSPEND_ENABLED:
        return NOT_SUPPORTED
    encode_exit(vcpu.core.run, SystemEvent(SystemEventType.SUSPEND, ()))
    return LEAVE


def _features(vcpu: Arm64Vcpu, wide: bool) -> Outcome:
    if vcpu.psci_version < VERSION_1_0:
        return NOT_SUPPORTED
    function = vcpu.x[1] & 0xFFFF_FFFF
    if function == SMCCC_VERSION:
        return SUCCESS
    if function & ~FAST_64 == SYSTEM_SUSPEND and not vcpu.vm.flags.any() & SYSTEM_SUSPEND_ENABLED:
        return NOT_SUPPORTED
    if function & ~FAST_64 == SYSTEM_RESET2 and vcpu.psci_version < VERSION_1_1:
        return NOT_SUPPORTED
    if function & ~FAST_64 == SYSTEM_OFF2:
        return HIBERNATE_OFF if vcpu.psci_version >= VERSION_1_3 else NOT_SUPPORTED
    return SUCCESS if function in CALLS else NOT_SUPPORTED


def _both(function: int, call: Call) -> dict[int, Call]:
    """A call that exists with 32-bit and with 64-bit arguments."""
    return {function: call, function | FAST_64: call}


CALLS: Mapping[int, Call] = MappingProxyType(
    {
        VERSION: _version,
        **_both(CPU_SUSPEND, _cpu_suspend),
        CPU_OFF: _cpu_off,
        **_both(CPU_ON, _cpu_on),
        **_both(AFFINITY_INFO, _affinity_info),
        MIGRATE_INFO_TYPE: _migrate_info_type,
        SYSTEM_OFF: _system_off,
        SYSTEM_RESET: _system_reset,
        FEATURES: _features,
        **_both(SYSTEM_SUSPEND, _system_suspend),
        **_both(SYSTEM_RESET2, _system_reset2),
        **_both(SYSTEM_OFF2, _system_off2),
    }
)
"""PSCI 0.2 and later, by function id."""

_BASE_0_1: Final = 0x95C1_BA5E

CALLS_0_1: Mapping[int, Call] = MappingProxyType(
    {
        _BASE_0_1 + 1: _cpu_off,
        _BASE_0_1 + 2: lambda vcpu, wide: _cpu_on(vcpu, True),
    }
)
"""PSCI 0.1, for vCPUs without the PSCI_0_2 feature."""
