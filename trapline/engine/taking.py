"""Taking exceptions while a PE runs: where each goes, what it leaves behind, and when one ends the run, as native functions."""

from __future__ import annotations

from typing import Final

from trapline.arm64.descriptors import FAULT_NO_MEMORY, FAULT_S1PTW, FAULT_STAGE2, FAULT_UPDATE
from trapline.arm64.exceptions import (
    EC,
    EC_SHIFT,
    IL,
    NO_EXCEPTION,
    V_SYNC,
    access_syndrome,
    current_regime,
    fold_sp,
    fp_syndrome,
    fp_trap,
    hvc_outcome,
    pending_physical_exception,
    pending_virtual_exception,
    route_debug,
    route_external_abort,
    route_sync,
    smc_outcome,
    svc_is_trapped,
    take_exception,
)
from trapline.arm64.gic_interface import PHYSICAL, VIRTUAL, maintenance_pending
from trapline.arm64.regs import HPFAR_EL2
from trapline.arm64.state import EL2_ABSENT, EL2_GUEST, EL2_OUTSIDE
from trapline.arm64.sysreg_functions import next_timer_count, private_lines, system_counter
from trapline.bits.native import (
    Ptr,
    load32,
    load64,
    native,
    u1,
    u32,
    u64,
)
from trapline.engine.debug import (
    finish_step,
    look_at_debug,
    may_debug,
)
from trapline.engine.handler import RAISE_KINDS
from trapline.engine.state import (
    PAGE_HEADER,
    RECORD_SHIFT,
    EngineState,
    Exit,
)
from trapline.engine.tlb import select_regime

# ---- timers -------------------------------------------------------------------------------------------------------------------


@native
def lines(cpu: Ptr[EngineState]) -> u32:
    """Outputs to private interrupts now: bit 0 the virtual timer, bit 1 EL1's physical timer; see `private_lines`."""
    return private_lines(cpu, system_counter(cpu))


@native
def next_count(cpu: Ptr[EngineState]) -> u64:
    """The count of the system counter at which a timer output rises next (or rose); all ones if none will."""
    return next_timer_count(cpu, system_counter(cpu))


# ---- exceptions ---------------------------------------------------------------------------------------------------------------


@native
def current_pc(cpu: Ptr[EngineState], rec: u64) -> u64:
    """Virtual address of the instruction whose record is `rec`."""
    return cpu.page_va + ((rec - cpu.records) >> RECORD_SHIFT)


@native
def current_word(cpu: Ptr[EngineState]) -> u32:
    """The instruction word at arch.pc, which lies in the current code page."""
    return load32(load64(cpu.records - PAGE_HEADER) + (cpu.pc & 4095))


@native
def refresh(cpu: Ptr[EngineState]) -> None:
    """After a change of exception level or controls: select TLBs, look at FP traps, debugging and pending interrupts again."""
    cpu.regime = current_regime(cpu)
    if may_debug(cpu):
        look_at_debug(cpu)
    else:
        select_regime(cpu)
    cpu.fp_disabled = fp_trap(cpu)
    look_for_interrupts(cpu)


@native
def look_for_interrupts(cpu: Ptr[EngineState]) -> None:
    """Ask for a stop at the next branch if an interrupt can be taken, or the hypervisor or interrupt controller is wanted."""
    if pending_virtual_exception(cpu) != NO_EXCEPTION:
        cpu.poll_irq = 1
    if cpu.el2 == EL2_OUTSIDE:
        if maintenance_pending(cpu, VIRTUAL):
            cpu.poll_irq = 1
    elif pending_physical_exception(cpu) != NO_EXCEPTION or attention_wanted(cpu):
        cpu.poll_irq = 1


MAINTENANCE_LINE = 16


@native
def attention_wanted(cpu: Ptr[EngineState]) -> u1:
    """Must the interrupt controller look at this PE: to refill the physical interface, or for a maintenance interrupt that rose?"""
    if maintenance_pending(cpu, PHYSICAL):
        return True
    return cpu.el2 == EL2_GUEST and cpu.timer_reported & MAINTENANCE_LINE == 0 and maintenance_pending(cpu, VIRTUAL)


@native
def settle(cpu: Ptr[EngineState], code: u32) -> None:
    """After an exception was taken: at a hypervisor's EL2 the run ends with this exit code, else go on at the new level.

    The exclusive monitor of a run that ends is for `begin` to clear, which knows whether the guest will have noticed anything.
    """
    cpu.step_state = 0
    if cpu.el == 2 and cpu.el2 == EL2_OUTSIDE:
        fold_sp(cpu)
        cpu.exit_code = code
    else:
        cpu.excl_valid = 0
        refresh(cpu)


@native
def enter_exception(cpu: Ptr[EngineState], target: u32, esr: u64, far: u64, kind: u32, return_pc: u64) -> None:
    """Take an exception; one to a hypervisor outside ends the run."""
    take_exception(cpu, target, esr, far, kind, return_pc)
    settle(cpu, Exit.EL2_SYNC if kind == V_SYNC else u32(Exit.EL2_IRQ))


@native
def undefined(cpu: Ptr[EngineState]) -> None:
    """The instruction at arch.pc is UNDEFINED."""
    enter_exception(cpu, route_sync(cpu), IL, 0, V_SYNC, cpu.pc)


SVC, HVC, SMC, BRK = (RAISE_KINDS.index(k) for k in ("svc", "hvc", "smc", "brk"))
EC_SVC, EC_HVC, EC_SMC, EC_BRK = int(EC.SVC64), int(EC.HVC64), int(EC.SMC64), int(EC.BRK64)
EC_PC, EC_ILLEGAL = int(EC.PC_ALIGNMENT), int(EC.ILLEGAL)
EC_BTI = int(EC.BTI)
EC_IABT, EC_DABT = int(EC.INSN_ABORT_LOWER), int(EC.DATA_ABORT_LOWER)
EC_BREAKPOINT, EC_STEP = int(EC.BREAKPOINT_LOWER), int(EC.STEP_LOWER)


@native
def raise_(cpu: Ptr[EngineState], rec: u64, kind: u64, imm: u64) -> None:
    """An instruction that generates an exception (`RAISE_KINDS`)."""
    pc = current_pc(cpu, rec)
    cpu.pc = pc
    if kind == SVC:
        if svc_is_trapped(cpu):
            enter_exception(cpu, 2, u64(EC_SVC) << EC_SHIFT | IL | imm, 0, V_SYNC, pc)
            return
        finish_step(cpu)
        enter_exception(cpu, route_sync(cpu), u64(EC_SVC) << EC_SHIFT | IL | imm, 0, V_SYNC, pc + 4)
        return
    if kind == HVC and cpu.el2 == EL2_ABSENT:
        call_firmware(cpu)
        return
    if kind == HVC and hvc_outcome(cpu) == 2:
        finish_step(cpu)
        enter_exception(cpu, 2, u64(EC_HVC) << EC_SHIFT | IL | imm, 0, V_SYNC, pc + 4)
        return
    if kind == SMC and smc_outcome(cpu) == 2:
        enter_exception(cpu, 2, u64(EC_SMC) << EC_SHIFT | IL | imm, 0, V_SYNC, pc)
        return
    if kind == SMC and cpu.el2 == EL2_GUEST:
        call_firmware(cpu)
        return
    if kind == BRK:
        enter_exception(cpu, route_debug(cpu), u64(EC_BRK) << EC_SHIFT | IL | imm, 0, V_SYNC, pc)
        return
    undefined(cpu)


@native
def call_firmware(cpu: Ptr[EngineState]) -> None:
    """HVC or SMC to the firmware of a machine, which is outside; UNDEFINED from EL0."""
    if cpu.el == 0:
        undefined(cpu)
        return
    cpu.pc = cpu.pc + 4
    cpu.exit_code = Exit.FIRMWARE


@native
def fp_exception(cpu: Ptr[EngineState], rec: u64) -> None:
    """An FP or SIMD instruction while access to them is trapped."""
    pc = current_pc(cpu, rec)
    enter_exception(cpu, fp_trap(cpu), fp_syndrome(cpu), 0, V_SYNC, pc)


@native
def transfer_syndrome(word: u32) -> u64:
    """ISV, SAS, SSE, SRT, SF, AR of a data abort's ISS: valid for one general register and no writeback, else 0."""
    size = word >> 30
    opc = word >> 22 & 3
    rt = word & 31
    ordered = word & 0x3FBFFC00 == 0x089FFC00 or word & 0x3FFFFC00 == 0x38BFC000
    ordered_unscaled = word & 0x3F200C00 == 0x19000000
    plain = word & 0x3F000000 == 0x39000000
    unscaled = word & 0x3F200400 == 0x38000000
    register_offset = word & 0x3F200C00 == 0x38200800
    if ordered:
        return access_syndrome(size, False, rt, size == 3, True)
    if word & 0x3F000000 == 0x18000000:
        return access_syndrome(2 if size != 1 else u32(3), size == 2, rt, size != 0, False)
    if plain or unscaled or register_offset:
        wide = size == 3 or opc == 2
        return access_syndrome(size, opc >= 2, rt, wide, False)
    if ordered_unscaled:
        return access_syndrome(size, opc >= 2, rt, size == 3 or opc == 2, True)
    return 0


DC_ZVA = 0xD50B7420
FSC_EXTERNAL: Final = 0x10
WRITE = 0x40
"""ESR_ELx.WnR."""


@native
def data_abort(cpu: Ptr[EngineState], fault: u32, va: u64, ipa: u64, write: u1) -> None:
    """Take a data abort for the instruction at arch.pc. `fault`: FSC, and where it happened."""
    same: u64 = 0
    iss = u64(fault & 0x3F) | (WRITE if write or fault & FAULT_UPDATE != 0 else u64(0))
    word = current_word(cpu)
    if word & 0xFFFFFFE0 == DC_ZVA:
        va = cpu.x[word & 31]  # FAR holds the operand, not the start of the block
    if fault & FAULT_NO_MEMORY != 0:
        access_device(cpu, word, va, ipa, write)
        return
    if fault & FAULT_STAGE2 != 0:
        cpu.sysreg[HPFAR_EL2.slot] = ipa >> 12 << 4
        if fault & FAULT_S1PTW != 0:
            iss = iss | FAULT_S1PTW
        else:
            iss = iss | transfer_syndrome(word)
        enter_exception(cpu, 2, u64(EC_DABT) << EC_SHIFT | IL | iss, va, V_SYNC, cpu.pc)
        return
    target = route_sync(cpu)
    if u32(cpu.el) == target:
        same = 1
    enter_exception(cpu, target, (u64(EC_DABT) + same) << EC_SHIFT | IL | iss, va, V_SYNC, cpu.pc)


@native
def access_device(cpu: Ptr[EngineState], word: u32, va: u64, address: u64, write: u1) -> None:
    """The load or store at arch.pc is to physical memory that does not exist: a device's, which is outside, or nobody's.

    What an abort's syndrome could not describe is answered with the external abort at once.
    """
    syndrome = transfer_syndrome(word)
    cpu.device_address = address
    cpu.device_va = va
    cpu.device_syndrome = syndrome | u64(write) << 6
    if syndrome == 0:
        external_abort(cpu)
    else:
        cpu.exit_code = Exit.DEVICE


@native
def external_abort(cpu: Ptr[EngineState]) -> None:
    """Nothing answered the device access that `access_device` noted: a synchronous external abort."""
    target = route_external_abort(cpu)
    same: u64 = 1 if u32(cpu.el) == target else 0
    iss = FSC_EXTERNAL | cpu.device_syndrome & WRITE
    enter_exception(cpu, target, (u64(EC_DABT) + same) << EC_SHIFT | IL | iss, cpu.device_va, V_SYNC, cpu.pc)


@native
def instruction_abort(cpu: Ptr[EngineState], fault: u32, va: u64, ipa: u64) -> None:
    """Take an instruction abort at `va`."""
    same: u64 = 0
    iss = u64(fault & 0x3F) if fault & FAULT_NO_MEMORY == 0 else u64(FSC_EXTERNAL)
    if fault & FAULT_STAGE2 != 0:
        cpu.sysreg[HPFAR_EL2.slot] = ipa >> 12 << 4
        iss = iss | u64(fault & FAULT_S1PTW)
        enter_exception(cpu, 2, u64(EC_IABT) << EC_SHIFT | IL | iss, va, V_SYNC, va)
        return
    target = route_sync(cpu)
    if u32(cpu.el) == target:
        same = 1
    enter_exception(cpu, target, (u64(EC_IABT) + same) << EC_SHIFT | IL | iss, va, V_SYNC, va)
