"""Accesses to implementation-defined system registers: UNDEFINED, or an exit that userspace answers (abi/extensions.py has the rules).

One table routes them all: MRS, MSR, SYS and SYSL of AArch64 state, and coprocessor 15's transfers of AArch32 state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import EINVAL
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from trapline.abi.exits import SYSREG_ACTION_OFFSET, SYSREG_VALUE_OFFSET, encode_sysreg
from trapline.abi.extensions import SysregAction, SysregState
from trapline.arm64.regs import SPSR_EL2
from trapline.errors import KvmError
from trapline.kvm.arm64 import aarch32, inject
from trapline.kvm.arm64.flags import SYSREG_TO_USER
from trapline.kvm.arm64.syndrome import EC, EC_SHIFT, IL

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

READ: Final = 1
"""Direction bit of all these syndromes."""
WORD: Final = (1 << 32) - 1
UNDEFINED: Final = int(SysregAction.UNDEFINED)
AARCH64: Final = SysregState.AARCH64
ACTIONS: Final = tuple(int(action) for action in SysregAction)
NOWHERE: Final = 31
"""Register number of XZR."""

IMPLEMENTATION_DEFINED_CP15: Final[Mapping[int, frozenset[int]]] = MappingProxyType(
    {
        9: frozenset({0, 1, 2, 5, 6, 7, 8}),
        10: frozenset({0, 1, 4, 8}),
        11: frozenset({*range(9), 15}),
        15: frozenset(range(16)),
    }
)
"""CRm by CRn of coprocessor 15's registers that an implementation defines: HCR_EL2.TIDCP's, and c15, which HSTR_EL2.T15 traps."""

IMPLEMENTATION_DEFINED_CP15_64: Final = frozenset({9, 10, 11, 15})
CYCLE_COUNTER_CRM: Final = 9


class Access(NamedTuple):
    """An access as its syndrome tells it. `enc` is (op0, op1, CRn, CRm, op2); `high` is the second register of MRRC and MCRR."""

    enc: tuple[int, int, int, int, int]
    state: SysregState
    is_write: bool
    register: int
    high: int
    length: int
    """Bytes of the instruction."""


def _a64(esr: int) -> Access | None:
    op0, crn = esr >> 20 & 3, esr >> 10 & 15
    if op0 not in (1, 3) or crn not in (11, 15):
        return None
    enc = (op0, esr >> 14 & 7, crn, esr >> 1 & 15, esr >> 17 & 7)
    return Access(enc, AARCH64, not esr & READ, esr >> 5 & 31, NOWHERE, 4)


def _cp15_32(esr: int) -> Access | None:
    crn, crm = esr >> 10 & 15, esr >> 1 & 15
    if crm not in IMPLEMENTATION_DEFINED_CP15.get(crn, ()):
        return None
    enc = (0, esr >> 14 & 7, crn, crm, esr >> 17 & 7)
    return Access(enc, SysregState.CP15_32, not esr & READ, esr >> 5 & 31, NOWHERE, 4 if esr & IL else 2)


def _cp15_64(esr: int) -> Access | None:
    op1, crm = esr >> 16 & 15, esr >> 1 & 15
    if crm not in IMPLEMENTATION_DEFINED_CP15_64 or (op1, crm) == (0, CYCLE_COUNTER_CRM):
        return None
    return Access((0, op1, 0, crm, 0), SysregState.CP15_64, not esr & READ, esr >> 5 & 31, esr >> 10 & 31, 4 if esr & IL else 2)


ROUTES: Final[Mapping[int, Callable[[int], Access | None]]] = MappingProxyType(
    {int(EC.SYS64): _a64, int(EC.CP15_32): _cp15_32, int(EC.CP15_64): _cp15_64}
)
"""By exception class: the access if it is to an implementation-defined register, else None."""


def handle_unknown(vcpu: Arm64Vcpu, esr: int) -> bool:
    """A register that the hypervisor does not know. True to go on in the guest (it is UNDEFINED), False when kvm_run holds the exit."""
    access = ROUTES[esr >> EC_SHIFT](esr)
    if access is None or not vcpu.vm.flags.any() & SYSREG_TO_USER or inject.in_el0(vcpu):
        inject.undefined(vcpu)
        return True
    encode_sysreg(vcpu.core.run, access.enc, access.state, access.is_write, _written(vcpu, access) if access.is_write else 0)
    vcpu.pending_sysreg = access
    return False


def handle_cp15(vcpu: Arm64Vcpu, esr: int) -> bool:
    """EC 0x03 and 0x04: a trapped transfer of coprocessor 15. One whose condition fails does nothing."""
    if not aarch32.condition_holds(vcpu.sysreg[SPSR_EL2.slot], esr):
        aarch32.skip_instruction(vcpu, 4 if esr & IL else 2)
        return True
    return handle_unknown(vcpu, esr)


def complete(vcpu: Arm64Vcpu) -> None:
    """Finish the access that the last exit reported as userspace decided; KvmError(EINVAL), and still pending, for no valid decision."""
    run, access = vcpu.core.run, vcpu.pending_sysreg
    assert access is not None
    action = run[SYSREG_ACTION_OFFSET]
    if action not in ACTIONS:
        raise KvmError(EINVAL)
    vcpu.pending_sysreg = None
    if action == UNDEFINED:
        inject.undefined(vcpu)
        return
    if not access.is_write:
        _put(vcpu, access, int.from_bytes(run[SYSREG_VALUE_OFFSET : SYSREG_VALUE_OFFSET + 8], "little"))
    if access.state is AARCH64:
        inject.skip_instruction(vcpu)
    else:
        aarch32.skip_instruction(vcpu, access.length)


def _written(vcpu: Arm64Vcpu, access: Access) -> int:
    value: int = vcpu.x[access.register]
    if access.state is AARCH64:
        return value
    return value & WORD | (vcpu.x[access.high] & WORD) << 32 if access.state is SysregState.CP15_64 else value & WORD


def _put(vcpu: Arm64Vcpu, access: Access, value: int) -> None:
    if access.state is SysregState.CP15_64 and access.high != NOWHERE:
        vcpu.x[access.high] = value >> 32
    if access.register != NOWHERE:
        vcpu.x[access.register] = value if access.state is AARCH64 else value & WORD


