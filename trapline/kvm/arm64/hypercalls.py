"""Hypercalls: the SMC calling convention's discovery, PSCI, and random numbers.

HVC and SMC reach the same services. Each service is one function, found by its 32-bit function id; it returns the value for X0, or
a list for X0 to X3, or None if it has arranged everything itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.abi.arm64 import Feature
from trapline.kvm.arm64 import psci

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

FAST_64: Final = 1 << 30
WORD: Final = (1 << 64) - 1
NOT_SUPPORTED: Final = -1

SMCCC_VERSION, SMCCC_ARCH_FEATURES = 0x8000_0000, 0x8000_0001
SMCCC_1_1: Final = 0x1_0001
TRNG_VERSION, TRNG_FEATURES, TRNG_GET_UUID, TRNG_RND32, TRNG_RND64 = 0x8400_0050, 0x8400_0051, 0x8400_0052, 0x8400_0053, 0xC400_0053
TRNG_1_0: Final = 0x1_0000
TRNG_UUID: Final = (0x6A7B1C54, 0x4D0F53A2, 0x9E1C2F88, 0x37D40B61)
TRNG_INVALID: Final = -2

RESULTS: Final = 4
Result = int | list[int] | None
Service = Callable[["Arm64Vcpu"], Result]


def _smccc_version(vcpu: Arm64Vcpu) -> Result:
    return SMCCC_1_1


def _arch_features(vcpu: Arm64Vcpu) -> Result:
    """Nothing beyond discovery itself: the machine needs no workaround."""
    return 0 if vcpu.x[1] & 0xFFFF_FFFF in (SMCCC_VERSION, SMCCC_ARCH_FEATURES) else NOT_SUPPORTED


def _trng_version(vcpu: Arm64Vcpu) -> Result:
    return TRNG_1_0


def _trng_features(vcpu: Arm64Vcpu) -> Result:
    known = (TRNG_VERSION, TRNG_FEATURES, TRNG_GET_UUID, TRNG_RND32, TRNG_RND64)
    return 0 if vcpu.x[1] & 0xFFFF_FFFF in known else NOT_SUPPORTED


def _trng_uuid(vcpu: Arm64Vcpu) -> Result:
    return list(TRNG_UUID)


def _trng_random(register_bits: int) -> Service:
    """Entropy in X1 to X3, most significant first, as many bits as X1 asks for."""

    def service(vcpu: Arm64Vcpu) -> Result:
        count = vcpu.x[1] & (1 << register_bits) - 1
        if not 0 < count <= 3 * register_bits:
            return TRNG_INVALID
        bits = vcpu.vm.machine.world.random.bits(count)
        mask = (1 << register_bits) - 1
        return [0, bits >> 2 * register_bits & mask, bits >> register_bits & mask, bits & mask]

    return service


SERVICES: Mapping[int, Service] = MappingProxyType(
    {
        SMCCC_VERSION: _smccc_version,
        SMCCC_ARCH_FEATURES: _arch_features,
        TRNG_VERSION: _trng_version,
        TRNG_FEATURES: _trng_features,
        TRNG_GET_UUID: _trng_uuid,
        TRNG_RND32: _trng_random(32),
        TRNG_RND64: _trng_random(64),
    }
)


def call(vcpu: Arm64Vcpu) -> bool:
    """Serve the call whose function id is in X0. True to go on in the guest, False when kvm_run holds an exit."""
    function = vcpu.x[0] & 0xFFFF_FFFF
    service = SERVICES.get(function)
    if service is not None:
        _answer(vcpu, service(vcpu))
        return True
    table = psci.CALLS if vcpu.vm.has_feature(Feature.PSCI_0_2) else psci.CALLS_0_1
    known = table.get(function)
    if known is None:
        _answer(vcpu, NOT_SUPPORTED)
        return True
    outcome = known(vcpu, bool(function & FAST_64))
    if isinstance(outcome, psci.Leave):
        return False
    _answer(vcpu, outcome)
    return True


def _answer(vcpu: Arm64Vcpu, result: Result) -> None:
    """Results are in X0 to X3, the last ones 0 if there are fewer."""
    if result is None:
        return
    values = result if isinstance(result, list) else [result]
    for register in range(RESULTS):
        vcpu.x[register] = values[register] & WORD if register < len(values) else 0
