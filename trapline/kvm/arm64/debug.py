"""Debugging a guest: its own debug registers, and userspace's debugging of it (KVM_SET_GUEST_DEBUG).

The debug registers have an owner. Nobody owns them until the guest touches them: accesses trap, and the first one makes them the
guest's, until it is found without enabled breakpoints when KVM_RUN begins. While userspace debugs the guest they are userspace's:
during KVM_RUN the processor has userspace's values, what the guest had there is kept here and answers its trapped accesses, and
debug exceptions come to the hypervisor. Outside KVM_RUN the processor's registers are always the guest's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import EINVAL
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.abi.arm64 import GUEST_DEBUG_MASK, KVM_SET_GUEST_DEBUG, GuestDebug, GuestDebugFlag
from trapline.abi.exits import DebugExit, encode_exit
from trapline.abi.ioctl import implements
from trapline.arm64.regs import ESR_EL2, FAR_EL2, MDCR_EL2, MDSCR_EL1, OSLSR_EL1, SPSR_EL1, SPSR_EL2
from trapline.arm64.regs.debug import (
    DBGAUTHSTATUS_EL1,
    DBGBCR,
    DBGBVR,
    DBGCLAIMCLR_EL1,
    DBGCLAIMSET_EL1,
    DBGDTR_EL0,
    DBGDTRRX_EL0,
    DBGPRCR_EL1,
    DBGWCR,
    DBGWVR,
    MDCCINT_EL1,
    MDCCSR_EL0,
    MDRAR_EL1,
    OSDLR_EL1,
    OSDTRRX_EL1,
    OSDTRTX_EL1,
    OSECCR_EL1,
    OSLAR_EL1,
)
from trapline.arm64.sysreg import Sysreg
from trapline.errors import KvmError
from trapline.kvm.arm64.syndrome import EC

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu
    from trapline.kvm.vcpu import Vcpu

MDCR, MDSCR, OSLSR, SPSR = MDCR_EL2.slot, MDSCR_EL1.slot, OSLSR_EL1.slot, SPSR_EL2.slot
SS: Final = SPSR_EL1.SS.mask
OS_LOCK: Final = OSLSR_EL1.OSLK.mask
KERNEL_OR_MONITOR: Final = MDSCR_EL1.KDE.mask | MDSCR_EL1.MDE.mask
DEBUG_ENABLES: Final = KERNEL_OR_MONITOR | MDSCR_EL1.SS.mask

GUEST_OWNS: Final = int(MDCR_EL2(TDRA=1, TDOSA=1, TPM=1))
NOBODY_OWNS: Final = int(MDCR_EL2(TDRA=1, TDOSA=1, TPM=1, TDA=1))
USERSPACE_OWNS: Final = int(MDCR_EL2(TDRA=1, TDOSA=1, TPM=1, TDA=1, TDE=1))
"""What traps by owner. The OS lock's registers, the debug ROM's address and the PMU are always answered by the hypervisor."""

FAMILIES: Final = (DBGBCR, DBGBVR, DBGWCR, DBGWVR)
ENABLING: Final = (MDSCR, OSLSR)
SET_ASIDE: Final = (*ENABLING, *(reg.slot for family in FAMILIES for reg in family))
"""Registers whose values change hands: those that enable anything, and all if userspace has breakpoints or watchpoints."""
UNLOCKED_RESET: Final = OSLSR_EL1(OSLSR_EL1.reset_value()).replace(OSLK=0)
"""A guest starts with its OS lock open; on silicon firmware would have seen to that."""


class DebugState:
    """What is known of debugging one vCPU."""

    __slots__ = ("control", "external", "guest_pending", "guest_values", "host_pending")

    def __init__(self) -> None:
        self.control = GuestDebugFlag(0)
        """What userspace debugs."""
        self.external: dict[int, int] = {}
        """Its breakpoints and watchpoints, by slot."""
        self.guest_values: dict[int, int] | None = None
        """During KVM_RUN, what the guest has in the registers that userspace's values took the place of."""
        self.host_pending = self.guest_pending = False
        """Whether a step of userspace's is complete and waits to be reported, and the same of the guest's own."""


def reset(vcpu: Arm64Vcpu) -> None:
    """What differs from the architectural reset."""
    vcpu.sysreg[OSLSR] = UNLOCKED_RESET
    vcpu.sysreg[MDCR] = NOBODY_OWNS
    for reg in DBGBCR:
        vcpu.sysreg[reg.slot] = 0


def load(vcpu: Arm64Vcpu) -> None:
    """KVM_RUN begins: decide who owns the registers, and put userspace's values there if it is userspace."""
    sysreg, debug = vcpu.sysreg, vcpu.debug
    control = debug.control
    if not control:
        sysreg[MDCR] = GUEST_OWNS if sysreg[MDSCR] & KERNEL_OR_MONITOR else NOBODY_OWNS
        return
    debug.guest_values = {slot: sysreg[slot] for slot in (SET_ASIDE if control & GuestDebugFlag.USE_HW else ENABLING)}
    mdscr = sysreg[MDSCR] & ~DEBUG_ENABLES
    if control & GuestDebugFlag.SINGLESTEP:
        mdscr |= MDSCR_EL1.SS.mask
        debug.guest_pending = not sysreg[SPSR] & SS
        sysreg[SPSR] = sysreg[SPSR] & ~SS | (0 if debug.host_pending else SS)
    if control & GuestDebugFlag.USE_HW:
        mdscr |= KERNEL_OR_MONITOR
        for slot, value in debug.external.items():
            sysreg[slot] = value
    sysreg[MDSCR] = mdscr
    sysreg[OSLSR] &= ~OS_LOCK
    sysreg[MDCR] = USERSPACE_OWNS


def put(vcpu: Arm64Vcpu) -> None:
    """KVM_RUN ends: the guest's registers are where everybody looks for them again."""
    sysreg, debug = vcpu.sysreg, vcpu.debug
    values, debug.guest_values = debug.guest_values, None
    if values is None:
        return
    for slot, value in values.items():
        sysreg[slot] = value
    if debug.control & GuestDebugFlag.SINGLESTEP:
        debug.host_pending = not sysreg[SPSR] & SS
        sysreg[SPSR] = sysreg[SPSR] & ~SS | (0 if debug.guest_pending else SS)


def handle_debug_exception(vcpu: Arm64Vcpu, esr: int) -> bool:
    """A debug exception that was routed to the hypervisor: userspace's. Always an exit."""
    ec = vcpu.sysreg[ESR_EL2.slot] >> 26
    far = vcpu.sysreg[FAR_EL2.slot] if ec == EC.WATCHPOINT_LOWER else 0
    encode_exit(vcpu.core.run, DebugExit(vcpu.sysreg[ESR_EL2.slot], far))
    if ec == EC.SOFTSTEP_LOWER:
        vcpu.sysreg[SPSR] |= SS  # reported: the next run steps again
    return False


@implements(KVM_SET_GUEST_DEBUG)
def set_guest_debug(core: Vcpu, argument: GuestDebug) -> int:
    """Note what to do from the next KVM_RUN on."""
    vcpu: Arm64Vcpu = core.arch  # type: ignore[assignment]
    if argument.control & ~GUEST_DEBUG_MASK:
        raise KvmError(EINVAL)
    control = GuestDebugFlag(argument.control)
    with core.mutex:
        debug = vcpu.debug
        if not control & GuestDebugFlag.ENABLE:
            debug.control, debug.host_pending = GuestDebugFlag(0), False
            return 0
        debug.control = control
        if control & GuestDebugFlag.USE_HW:
            arch = argument.arch
            fields = (arch.dbg_bcr, arch.dbg_bvr, arch.dbg_wcr, arch.dbg_wvr)
            debug.external = {
                reg.slot: value for family, field in zip(FAMILIES, fields, strict=True) for reg, value in zip(family, field, strict=True)
            }
        vcpu.cpu.request_flush()  # its TLB may hold pages that are watched now
    return 0


# --- trapped accesses ----------------------------------------------------------------------------------------------------------

Read = Callable[["Arm64Vcpu"], int | None]
Write = Callable[["Arm64Vcpu", int], bool]


def _get(vcpu: Arm64Vcpu, slot: int) -> int:
    values = vcpu.debug.guest_values
    return int(vcpu.sysreg[slot]) if values is None or slot not in values else values[slot]


def _set(vcpu: Arm64Vcpu, slot: int, value: int) -> None:
    values = vcpu.debug.guest_values
    if values is not None and slot in values:
        values[slot] = value
    else:
        vcpu.sysreg[slot] = value


def _take_ownership(vcpu: Arm64Vcpu) -> None:
    """The guest uses the registers: they are its own from now on, unless they are userspace's."""
    if vcpu.debug.guest_values is None:
        vcpu.sysreg[MDCR] = GUEST_OWNS


def _stored(reg: type[Sysreg]) -> tuple[Read, Write]:
    slot = reg.slot

    def read(vcpu: Arm64Vcpu) -> int:
        _take_ownership(vcpu)
        return _get(vcpu, slot)

    def write(vcpu: Arm64Vcpu, value: int) -> bool:
        _take_ownership(vcpu)
        _set(vcpu, slot, reg.written(_get(vcpu, slot), value))
        vcpu.cpu.request_flush()
        return True

    return read, write


def _nothing(vcpu: Arm64Vcpu) -> int:
    return 0


def _ignored(vcpu: Arm64Vcpu, value: int) -> bool:
    return True


def _write_os_lock(vcpu: Arm64Vcpu, value: int) -> bool:
    _set(vcpu, OSLSR, _get(vcpu, OSLSR) & ~OS_LOCK | (OS_LOCK if value & 1 else 0))
    return True


STORED: Final = (MDSCR_EL1, MDCCINT_EL1, *DBGBCR, *DBGBVR, *DBGWCR, *DBGWVR)
ABSENT: Final = (
    OSDTRRX_EL1, OSDTRTX_EL1, OSECCR_EL1, MDCCSR_EL0, DBGDTR_EL0, DBGDTRRX_EL0, MDRAR_EL1, OSDLR_EL1, DBGPRCR_EL1, DBGCLAIMSET_EL1,
    DBGCLAIMCLR_EL1, DBGAUTHSTATUS_EL1,
)  # fmt: skip
"""Registers of external debuggers and debug power: nothing is there."""

READS: Mapping[int, Read] = MappingProxyType(
    {reg.encoding: _stored(reg)[0] for reg in STORED}
    | {reg.encoding: _nothing for reg in ABSENT}
    | {OSLSR_EL1.encoding: lambda vcpu: _get(vcpu, OSLSR)}
)
WRITES: Mapping[int, Write] = MappingProxyType(
    {reg.encoding: _stored(reg)[1] for reg in STORED}
    | {reg.encoding: _ignored for reg in ABSENT if reg.access != "RO"}
    | {OSLAR_EL1.encoding: _write_os_lock}
)
