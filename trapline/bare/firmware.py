"""The firmware that a kernel calls by SMC (or HVC where there is no EL2): PSCI 1.1 and the discovery of the calling convention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.abi.exits import SystemEvent, SystemEventType

if TYPE_CHECKING:
    from trapline.bare.processor import Processor

SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, ALREADY_ON = 0, -1, -2, -4
PSCI_1_1: Final = 0x1_0001
SMCCC_1_1: Final = 0x1_0001
NO_TRUSTED_OS: Final = 2
ON, OFF = 0, 1
FAST_64: Final = 1 << 30
WORD: Final = (1 << 64) - 1
AFFINITY_MASK: Final = 0xFF_00FF_FFFF

SMCCC_VERSION, SMCCC_ARCH_FEATURES = 0x8000_0000, 0x8000_0001
VERSION, CPU_SUSPEND, CPU_OFF, CPU_ON, AFFINITY_INFO = 0x8400_0000, 0x8400_0001, 0x8400_0002, 0x8400_0003, 0x8400_0004
MIGRATE_INFO_TYPE, SYSTEM_OFF, SYSTEM_RESET, FEATURES, SYSTEM_RESET2 = 0x8400_0006, 0x8400_0008, 0x8400_0009, 0x8400_000A, 0x8400_0012

Outcome = int | SystemEvent | None
"""The value for X0; or what ends the machine; or nothing, when the processor is off now."""

Call = Callable[["Processor", int, int, int], Outcome]
"""A service, given X1 to X3 as wide as the call says."""


def _cpu_suspend(cpu: Processor, state: int, entry: int, context: int) -> Outcome:
    """Every power state is standby: what WFI does."""
    cpu.wait_for_interrupt()
    return SUCCESS


def _cpu_off(cpu: Processor, x1: int, x2: int, x3: int) -> Outcome:
    cpu.power_off()
    return None


def _cpu_on(cpu: Processor, affinity: int, entry: int, context: int) -> Outcome:
    target = next((other for other in cpu.machine.vcpus if other.affinity == affinity), None)
    if target is None:
        return INVALID_PARAMETERS
    return SUCCESS if target.power_on(entry, context) else ALREADY_ON


def _affinity_info(cpu: Processor, affinity: int, level: int, x3: int) -> Outcome:
    if level > 3:
        return INVALID_PARAMETERS
    mask = AFFINITY_MASK & ~((1 << 8 * level) - 1)
    matching = [other for other in cpu.machine.vcpus if other.affinity & mask == affinity & mask]
    if not matching:
        return INVALID_PARAMETERS
    return ON if any(other.is_on for other in matching) else OFF


def _system_off(cpu: Processor, x1: int, x2: int, x3: int) -> Outcome:
    return SystemEvent(SystemEventType.SHUTDOWN, ())


def _system_reset(cpu: Processor, x1: int, x2: int, x3: int) -> Outcome:
    return SystemEvent(SystemEventType.RESET, ())


def _features(cpu: Processor, function: int, x2: int, x3: int) -> Outcome:
    return SUCCESS if function & 0xFFFF_FFFF in CALLS else NOT_SUPPORTED


def _arch_features(cpu: Processor, function: int, x2: int, x3: int) -> Outcome:
    """Nothing beyond discovery itself: the processors need no workaround."""
    return SUCCESS if function & 0xFFFF_FFFF in (SMCCC_VERSION, SMCCC_ARCH_FEATURES) else NOT_SUPPORTED


def _constant(value: int) -> Call:
    return lambda cpu, x1, x2, x3: value


def _both(function: int, call: Call) -> dict[int, Call]:
    """A call that exists with 32-bit and with 64-bit arguments."""
    return {function: call, function | FAST_64: call}


CALLS: Mapping[int, Call] = MappingProxyType(
    {
        SMCCC_VERSION: _constant(SMCCC_1_1),
        SMCCC_ARCH_FEATURES: _arch_features,
        VERSION: _constant(PSCI_1_1),
        **_both(CPU_SUSPEND, _cpu_suspend),
        CPU_OFF: _cpu_off,
        **_both(CPU_ON, _cpu_on),
        **_both(AFFINITY_INFO, _affinity_info),
        MIGRATE_INFO_TYPE: _constant(NO_TRUSTED_OS),
        SYSTEM_OFF: _system_off,
        SYSTEM_RESET: _system_reset,
        **_both(SYSTEM_RESET2, _system_reset),
        FEATURES: _features,
    }
)
"""By function id."""


def call(cpu: Processor) -> SystemEvent | None:
    """Serve the call whose function id is in X0. Returns what the machine's user has to know about."""
    x = cpu.state.x
    function = x[0] & 0xFFFF_FFFF
    service = CALLS.get(function)
    if service is None:
        x[0] = NOT_SUPPORTED & WORD
        return None
    mask = WORD if function & FAST_64 else 0xFFFF_FFFF
    outcome = service(cpu, x[1] & mask, x[2] & mask, x[3] & mask)
    if isinstance(outcome, SystemEvent):
        return outcome
    if outcome is not None:
        x[0] = outcome & WORD
    return None
