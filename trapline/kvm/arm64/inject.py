"""Giving the guest an exception: what hardware does on taking one to EL1, done by the hypervisor.

The effect is immediate: the guest's PC and PSTATE are those of the handler when the function returns, so userspace always reads a
consistent state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arm64.regs import (
    ELR_EL1,
    ELR_EL2,
    ESR_EL1,
    FAR_EL1,
    SCTLR_EL1,
    SPSR_EL1,
    SPSR_EL2,
    VBAR_EL1,
)
from trapline.kvm.arm64.syndrome import EC, EC_SHIFT, FSC_ADDRESS_SIZE, FSC_SEA, FSC_SEA_WALK, IL

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

PSTATE_EL_MASK: Final = 0b1100
EL0T, EL1T, EL1H = 0b0000, 0b0100, 0b0101
M32: Final = 0b1_0000
USR32: Final = 0b1_0000
"""AArch32 state, and its user mode."""
DAIF: Final = 0xF << 6
BTYPE: Final = 3 << 10
SSBS: Final = 1 << 12
IL_BIT: Final = 1 << 20
SS: Final = 1 << 21
PAN: Final = 1 << 22
UAO: Final = 1 << 23
TCO: Final = 1 << 25
M_MASK: Final = 0x1F

VECTOR_SAME_SP0, VECTOR_SAME_SPX, VECTOR_LOWER, VECTOR_LOWER32 = 0x000, 0x200, 0x400, 0x600
SYNCHRONOUS, SERROR = 0x000, 0x180

ELR, SPSR = ELR_EL2.slot, SPSR_EL2.slot
SKIP_CLEARS: Final = BTYPE | SS
ENTRY_CLEARS: Final = M_MASK | DAIF | BTYPE | SSBS | IL_BIT | SS | UAO | TCO


def skip_instruction(vcpu: Arm64Vcpu) -> None:
    """The instruction was emulated: go to the next one. Clears BTYPE and completes a software step, as executing it would."""
    sysreg = vcpu.sysreg
    sysreg[ELR] += 4
    if (spsr := sysreg[SPSR]) & SKIP_CLEARS:
        sysreg[SPSR] = spsr & ~SKIP_CLEARS


def in_el0(vcpu: Arm64Vcpu) -> bool:
    """Whether the guest was at EL0."""
    mode = vcpu.sysreg[SPSR_EL2.slot] & M_MASK
    return mode == USR32 if mode & M32 else not mode & PSTATE_EL_MASK


def take_to_el1(vcpu: Arm64Vcpu, vector: int, esr: int, far: int | None = None) -> None:
    """Enter the guest's EL1 exception handler for the given vector kind."""
    sysreg = vcpu.sysreg
    pstate = sysreg[SPSR_EL2.slot]
    sctlr = SCTLR_EL1(sysreg[SCTLR_EL1.slot])
    mode = pstate & M_MASK
    offset = VECTOR_LOWER if mode == EL0T else VECTOR_LOWER32 if mode & M32 else VECTOR_SAME_SPX if mode & 1 else VECTOR_SAME_SP0
    sysreg[SPSR_EL1.slot] = pstate
    sysreg[ELR_EL1.slot] = sysreg[ELR_EL2.slot]
    sysreg[ESR_EL1.slot] = esr
    if far is not None:
        sysreg[FAR_EL1.slot] = far
    entered = pstate & ~ENTRY_CLEARS | EL1H | DAIF
    if not sctlr.SPAN and vcpu.vm.has_pan:
        entered |= PAN
    if sctlr.DSSBS and vcpu.vm.has_ssbs:
        entered |= SSBS
    if vcpu.vm.has_mte:
        entered |= TCO
    sysreg[SPSR_EL2.slot] = entered
    sysreg[ELR_EL2.slot] = sysreg[VBAR_EL1.slot] + offset + vector & 0xFFFF_FFFF_FFFF_FFFF


def undefined(vcpu: Arm64Vcpu) -> None:
    """The instruction is UNDEFINED to the guest."""
    take_to_el1(vcpu, SYNCHRONOUS, IL)


def _abort(vcpu: Arm64Vcpu, instruction: bool, far: int, fsc: int) -> None:
    same, lower = (EC.IABT_SAME, EC.IABT_LOWER) if instruction else (EC.DABT_SAME, EC.DABT_LOWER)
    ec = lower if in_el0(vcpu) else same
    take_to_el1(vcpu, SYNCHRONOUS, ec << EC_SHIFT | IL | fsc, far)


def external_abort(vcpu: Arm64Vcpu, instruction: bool, far: int, walk_level: int | None = None) -> None:
    """A synchronous external abort on an access, or on the stage-1 table walk at `walk_level`."""
    _abort(vcpu, instruction, far, FSC_SEA if walk_level is None else FSC_SEA_WALK + walk_level)


def address_size_fault(vcpu: Arm64Vcpu, instruction: bool, far: int) -> None:
    """The guest used an address wider than physical addresses are."""
    _abort(vcpu, instruction, far, FSC_ADDRESS_SIZE)


def serror(vcpu: Arm64Vcpu, syndrome: int) -> None:
    """An asynchronous SError, taken at once: the caller has checked that PSTATE.A allows it."""
    take_to_el1(vcpu, SERROR, EC.SERROR << EC_SHIFT | IL | syndrome)
