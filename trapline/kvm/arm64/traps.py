"""What the hypervisor does for each exception class that a guest can bring it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.abi.arm64_vm import HypercallFlag
from trapline.arm64.regs import ELR_EL2
from trapline.kvm.arm64 import hypercalls, inject, timer
from trapline.kvm.arm64.abort import handle_abort
from trapline.kvm.arm64.debug import handle_debug_exception
from trapline.kvm.arm64.syndrome import EC, WFX_RN_SHIFT, WFX_TIMEOUT, WFX_WFE
from trapline.kvm.arm64.sysreg_exits import handle_cp15
from trapline.kvm.arm64.sysregs import handle_sysreg

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu


def unknown_trap(vcpu: Arm64Vcpu, esr: int) -> bool:
    """A trap that was not asked for: what the guest did does not exist for it."""
    inject.undefined(vcpu)
    return True


def _wfx(vcpu: Arm64Vcpu, esr: int) -> bool:
    """WFI sleeps, WFIT until its time at most; WFE and WFET are only a hint to let others run."""
    inject.skip_instruction(vcpu)
    if esr & WFX_WFE:
        vcpu.core.stats.wfe_exit_stat += 1
    else:
        vcpu.core.stats.wfi_exit_stat += 1
        woken = vcpu.wait_for_interrupt(timer.virtual_deadline(vcpu, vcpu.x[esr >> WFX_RN_SHIFT & 31]) if esr & WFX_TIMEOUT else None)
        if not woken and vcpu.vm.machine.world.waits_again():
            vcpu.sysreg[ELR] -= 4  # it has not waited yet: whoever goes on from here will
    return True


def _hvc(vcpu: Arm64Vcpu, esr: int) -> bool:
    """The PC is behind the HVC already."""
    vcpu.core.stats.hvc_exit_stat += 1
    return hypercalls.call(vcpu, 0)


def _smc(vcpu: Arm64Vcpu, esr: int) -> bool:
    """A trapped SMC: the PC is at the instruction. Only immediate 0 is a call."""
    inject.skip_instruction(vcpu)
    if esr & 0xFFFF:
        vcpu.x[0] = hypercalls.NOT_SUPPORTED & hypercalls.WORD
        return True
    return hypercalls.call(vcpu, HypercallFlag.SMC)


ELR: Final = ELR_EL2.slot

Handler = Callable[["Arm64Vcpu", int], bool]

TRAPS: Mapping[int, Handler] = MappingProxyType(
    {
        int(EC.WFX): _wfx,
        int(EC.CP15_32): handle_cp15,
        int(EC.CP15_64): handle_cp15,
        int(EC.HVC64): _hvc,
        int(EC.SMC64): _smc,
        int(EC.SYS64): handle_sysreg,
        int(EC.IABT_LOWER): handle_abort,
        int(EC.DABT_LOWER): handle_abort,
        int(EC.BREAKPOINT_LOWER): handle_debug_exception,
        int(EC.SOFTSTEP_LOWER): handle_debug_exception,
        int(EC.WATCHPOINT_LOWER): handle_debug_exception,
        int(EC.BRK): handle_debug_exception,
    }
)
"""What to do for each exception class: True to go on in the guest, False when kvm_run holds an exit."""
