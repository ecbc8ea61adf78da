"""Hypercalls: the SMC calling convention's discovery, PSCI, random numbers, stolen time and the host's clock.

HVC and SMC reach the same services. Each service is one function, found by its 32-bit function id; it returns the value for X0, or
a list for X0 to X3, or None if it has arranged everything itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.abi import arm64 as abi
from trapline.abi.arm64 import Feature
from trapline.abi.arm64_vm import SmcccAction
from trapline.abi.exits import HypercallExit, encode_exit
from trapline.kvm.arm64 import psci

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

FAST_64: Final = 1 << 30
WORD: Final = (1 << 64) - 1
WORD32: Final = (1 << 32) - 1
NOT_SUPPORTED: Final = -1

SMCCC_VERSION, SMCCC_ARCH_FEATURES = 0x8000_0000, 0x8000_0001
SMCCC_1_1: Final = 0x1_0001
TRNG_VERSION, TRNG_FEATURES, TRNG_GET_UUID, TRNG_RND32, TRNG_RND64 = 0x8400_0050, 0x8400_0051, 0x8400_0052, 0x8400_0053, 0xC400_0053
TRNG_1_0: Final = 0x1_0000
TRNG_UUID: Final = (0x6A7B1C54, 0x4D0F53A2, 0x9E1C2F88, 0x37D40B61)
TRNG_INVALID: Final = -2
PV_TIME_FEATURES, PV_TIME_ST = 0xC500_0020, 0xC500_0021
VENDOR_HYP_UID, VENDOR_HYP_FEATURES, VENDOR_HYP_PTP = 0x8600_FF01, 0x8600_0000, 0x8600_0001
KVM_UID: Final = (0xB66F_B428, 0xE911_C52E, 0x564B_CAA9, 0x743A_004D)
PTP_VIRTUAL_COUNTER, PTP_PHYSICAL_COUNTER = 0, 1
WORKAROUND_1, WORKAROUND_2, WORKAROUND_3 = 0x8000_8000, 0x8000_7FFF, 0x8000_3FFF
NOT_REQUIRED: Final = -2
UNAFFECTED: Final = 1
ARCH_FEATURES: Final[Mapping[int, int]] = MappingProxyType(
    {SMCCC_VERSION: 0, SMCCC_ARCH_FEATURES: 0, WORKAROUND_1: UNAFFECTED, WORKAROUND_2: NOT_REQUIRED, WORKAROUND_3: UNAFFECTED}
)
"""Answers about functions of the architecture."""

RESULTS: Final = 4
Result = int | list[int] | None
Service = Callable[["Arm64Vcpu"], Result]


def _smccc_version(vcpu: Arm64Vcpu) -> Result:
    return SMCCC_1_1


def _arch_features(vcpu: Arm64Vcpu) -> Result:
    """Discovery itself, paravirtual time if it is on, and for each workaround that this machine does not need it."""
    function = vcpu.x[1] & WORD32
    if function == PV_TIME_FEATURES:
        return 0 if vcpu.vm.smccc.has(*PV_TIME) else NOT_SUPPORTED
    return ARCH_FEATURES.get(function, NOT_SUPPORTED)


def _trng_version(vcpu: Arm64Vcpu) -> Result:
    return TRNG_1_0


def _trng_features(vcpu: Arm64Vcpu) -> Result:
    known = (TRNG_VERSION, TRNG_FEATURES, TRNG_GET_UUID, TRNG_RND32, TRNG_RND64)
    return 0 if vcpu.x[1] & WORD32 in known else NOT_SUPPORTED


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


def _hypervisor_uid(vcpu: Arm64Vcpu) -> Result:
    """Who we are: a guest that knows KVM's services recognises them by this."""
    return list(KVM_UID)


def _hypervisor_features(vcpu: Arm64Vcpu) -> Result:
    """One bit for each function, 32 to a register: functions from 0 in X0, those from 64 in X2."""
    bitmaps = vcpu.vm.smccc.bitmaps
    return [bitmaps[abi.REG_VENDOR_HYP_BMAP], 0, bitmaps[abi.REG_VENDOR_HYP_BMAP_2], 0]


def _ptp(vcpu: Arm64Vcpu) -> Result:
    """What the host's clock said when one of the guest's counters read that: nanoseconds since 1970 in X0:X1, the counter in X2:X3."""
    which = vcpu.x[1] & WORD32
    if which not in (PTP_VIRTUAL_COUNTER, PTP_PHYSICAL_COUNTER):
        return NOT_SUPPORTED
    timer = vcpu.vm.timer
    count = timer.count() if which == PTP_VIRTUAL_COUNTER else timer.physical_count()
    time = vcpu.vm.machine.world.wall_ns()
    return [time >> 32, time & WORD32, count >> 32, count & WORD32]


def _pv_time_features(vcpu: Arm64Vcpu) -> Result:
    function = vcpu.x[1] & WORD32
    known = function == PV_TIME_FEATURES or (function == PV_TIME_ST and vcpu.pvtime.base is not None)
    return 0 if known else NOT_SUPPORTED


def _pv_time_st(vcpu: Arm64Vcpu) -> Result:
    """Where the vCPU's stolen time is."""
    base = vcpu.pvtime.start()
    return NOT_SUPPORTED if base is None else base


TRNG, PV_TIME = (abi.REG_STD_BMAP, abi.STD_TRNG_V1_0), (abi.REG_STD_HYP_BMAP, abi.STD_HYP_PV_TIME)
VENDOR, PTP = (abi.REG_VENDOR_HYP_BMAP, abi.VENDOR_HYP_FUNC_FEAT), (abi.REG_VENDOR_HYP_BMAP, abi.VENDOR_HYP_PTP)
"""Switches of services: pseudo register and bit."""

SERVICES: Mapping[int, tuple[Service, tuple[int, int] | None]] = MappingProxyType(
    {
        SMCCC_VERSION: (_smccc_version, None),
        SMCCC_ARCH_FEATURES: (_arch_features, None),
        TRNG_VERSION: (_trng_version, TRNG),
        TRNG_FEATURES: (_trng_features, TRNG),
        TRNG_GET_UUID: (_trng_uuid, TRNG),
        TRNG_RND32: (_trng_random(32), TRNG),
        TRNG_RND64: (_trng_random(64), TRNG),
        PV_TIME_FEATURES: (_pv_time_features, PV_TIME),
        PV_TIME_ST: (_pv_time_st, PV_TIME),
        VENDOR_HYP_UID: (_hypervisor_uid, VENDOR),
        VENDOR_HYP_FEATURES: (_hypervisor_features, VENDOR),
        VENDOR_HYP_PTP: (_ptp, PTP),
    }
)
"""By function: who serves it, and the switch without which it does not exist."""


def call(vcpu: Arm64Vcpu, flags: int) -> bool:
    """Serve the call whose function id is in X0; the PC is behind it. True to go on in the guest, False when kvm_run holds an exit.

    `flags` say how it was made (`HypercallFlag`).
    """
    function = vcpu.x[0] & WORD32
    smccc = vcpu.vm.smccc
    action = smccc.action(function) if smccc.filtered else SmcccAction.HANDLE
    if action == SmcccAction.FWD_TO_USER:
        encode_exit(vcpu.core.run, HypercallExit(function, flags))
        return False
    if action == SmcccAction.DENY:
        _answer(vcpu, NOT_SUPPORTED)
        return True
    service, switch = SERVICES.get(function, (None, None))
    if service is not None:
        _answer(vcpu, service(vcpu) if switch is None or smccc.has(*switch) else NOT_SUPPORTED)
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
