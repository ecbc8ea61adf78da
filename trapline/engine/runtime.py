"""What compiled handlers call: slow memory paths, instruction fetch, exceptions and interrupts, as native functions.

Functions that handlers call by name take the vCPU and usually the address of the current record, from which the PC follows.
"""

from __future__ import annotations

from typing import Final

from trapline.arm64.debug import DEBUG_ISS, STEP_EXCLUSIVE, STEP_VALID, breakpoint_hit, watchpoints_on
from trapline.arm64.descriptors import FAULT_NO_MEMORY, FAULT_S1PTW, FAULT_STAGE2, FAULT_UPDATE
from trapline.arm64.exceptions import (
    EC,
    EC_SHIFT,
    IL,
    NO_EXCEPTION,
    V_IRQ,
    V_SYNC,
    access_syndrome,
    current_regime,
    current_sctlr,
    current_tcr,
    exception_return,
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
    take_physical_exception,
    take_virtual_exception,
    unfold_sp,
)
from trapline.arm64.gic_interface import PHYSICAL, VIRTUAL, maintenance_pending
from trapline.arm64.regs import HPFAR_EL2, ID_AA64PFR1_EL1, SCTLR_EL1, TCR_EL1
from trapline.arm64.state import EL2_ABSENT, EL2_GUEST, EL2_OUTSIDE, REGIME_EL2
from trapline.arm64.sysreg_functions import next_timer_count, private_lines, system_counter
from trapline.arm64.walk import ACCESS_EXEC, INFO_GUARDED, translate, translate_cached
from trapline.bits.native import (
    Ptr,
    addressof,
    fence,
    load32,
    load64,
    native,
    store64,
    u1,
    u32,
    u64,
)
from trapline.engine.codemap import add_records, find_records
from trapline.engine.debug import (
    ANYWHERE,
    EXCLUSIVE,
    GOING,
    IN_PAGES,
    STEP_TAG,
    STEPPED,
    STEPPING,
    debug_changed,
    finish_step,
    has_breakpoint,
    itlb_entry,
    lone_record,
    look_at_debug,
    may_debug,
)
from trapline.engine.handler import RAISE_KINDS
from trapline.engine.state import (
    GUARDED,
    ITLB_ENTRIES,
    PAGE_HEADER,
    RECORD_SHIFT,
    SAMPLES,
    EngineState,
    Exit,
    Shared,
)
from trapline.engine.tlb import fill_code, follow_controls, select_regime, select_space, serve_sync

TOP_BYTE = 0xFF << 56
BTYPE_VENEER, BTYPE_CALL, BTYPE_JUMP = 1, 2, 3
"""PSTATE.BTYPE after a jump by way of X16 or X17 or from a page that is not guarded; after a call; after any other jump."""
HINT_MASK, BTI = 0xFFFFFF3F, 0xD503241F
LANDS_CALL, LANDS_JUMP = 1, 2
"""What BTI lets in, as bits 7:6 of its word."""
PACIASP, PACIBSP = 0xD503233F, 0xD503237F
CODE_LOCK = Shared.code_lock.offset


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
    """After an exception was taken: at a hypervisor's EL2 the run ends with this exit code, else go on at the new level."""
    cpu.excl_valid = 0
    cpu.step_state = 0
    if cpu.el == 2 and cpu.el2 == EL2_OUTSIDE:
        fold_sp(cpu)
        cpu.exit_code = code
    else:
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


@native
def take_sample(cpu: Ptr[EngineState]) -> None:
    """Tell the profiler where this vCPU is."""
    cpu.poll_sample = 0
    if cpu.debug_active != 0:
        return  # records of its own mean nothing to others
    k = cpu.sampled & (SAMPLES - 1)
    cpu.samples[k].pc = cpu.pc
    cpu.samples[k].records = cpu.records
    cpu.samples[k].in_region = u64(cpu.in_region)
    cpu.sampled = cpu.sampled + 1


@native
def service(cpu: Ptr[EngineState]) -> None:
    """At a branch, with arch.pc the next instruction: do what the poll bytes ask for."""
    if cpu.exit_code != Exit.NONE:
        return
    finish_step(cpu)
    if cpu.poll_sync != 0:
        serve_sync(cpu)
    if cpu.poll_sample != 0:
        take_sample(cpu)
    cpu.in_region = 0
    if cpu.poll_check != 0:
        cpu.poll_check = cpu.poll_check - 1
        if cpu.poll_check == 0:
            interrupt_hypervisor(cpu)
            return
    if cpu.poll_kick != 0:
        cpu.poll_kick = 0
        interrupt_hypervisor(cpu)
        return
    if cpu.poll_timer != 0:
        cpu.poll_timer = 0
        if lines(cpu) & ~cpu.timer_reported != 0:
            interrupt_hypervisor(cpu)
            return
    if cpu.poll_irq != 0:
        cpu.poll_irq = 0
        take_pending(cpu)


@native
def take_pending(cpu: Ptr[EngineState]) -> None:
    """Take the interrupt that can be taken now, if there is one."""
    if cpu.el2 == EL2_OUTSIDE:
        if maintenance_pending(cpu, VIRTUAL):
            interrupt_hypervisor(cpu)
            return
    else:
        if attention_wanted(cpu):
            cpu.exit_code = Exit.ATTEND
            return
        physical = pending_physical_exception(cpu)
        if physical != NO_EXCEPTION:
            cpu.excl_valid = 0
            cpu.step_state = 0
            take_physical_exception(cpu, physical)
            refresh(cpu)
            return
    kind = pending_virtual_exception(cpu)
    if kind != NO_EXCEPTION:
        cpu.excl_valid = 0
        cpu.step_state = 0
        take_virtual_exception(cpu, kind)
        refresh(cpu)
    elif may_debug(cpu):
        look_at_debug(cpu)


@native
def interrupt_hypervisor(cpu: Ptr[EngineState]) -> None:
    """Something outside wants this PE: a physical interrupt to a hypervisor outside, else the machine's attention."""
    if cpu.el2 == EL2_OUTSIDE:
        enter_exception(cpu, 2, 0, 0, V_IRQ, cpu.pc)
    else:
        cpu.exit_code = Exit.ATTEND


# ---- instruction fetch --------------------------------------------------------------------------------------------------------


@native
def branch_address(cpu: Ptr[EngineState], target: u64) -> u64:
    """AArch64.BranchAddr(): a branch drops the top byte of its target where instruction addresses have tags."""
    if ((target >> 55) + 1) & 0x1FE == 0:
        return target
    tcr = current_tcr(cpu)
    if target >> 55 & 1 != 0 and cpu.regime != REGIME_EL2:
        return target | TOP_BYTE if tcr & (TCR_EL1.TBI1.mask | TCR_EL1.TBID1.mask) == TCR_EL1.TBI1.mask else target
    return target & ~TOP_BYTE if tcr & (TCR_EL1.TBI0.mask | TCR_EL1.TBID0.mask) == TCR_EL1.TBI0.mask else target


@native
def in_guarded_page(cpu: Ptr[EngineState], pc: u64) -> u1:
    """Is the page that holds the instruction at `pc`, which is running, guarded?"""
    tag = load64(cpu.itlb + (((pc >> 12) & (ITLB_ENTRIES - 1)) << 4))
    if tag & ~u64(GUARDED) == pc & ~u64(4095):
        return tag & GUARDED != 0
    _, _, _, info = translate(cpu, pc, ACCESS_EXEC)
    return info & INFO_GUARDED != 0 and cpu.sysreg[ID_AA64PFR1_EL1.slot] & ID_AA64PFR1_EL1.BT.mask != 0


@native
def land(cpu: Ptr[EngineState], target: u64) -> None:
    """The call or jump at arch.pc goes to `target`, where PSTATE.BTYPE may matter."""
    word = current_word(cpu)
    register = word >> 5 & 31
    if word >> 21 & 1 != 0:
        cpu.btype = BTYPE_CALL
    elif register == 16 or register == 17 or not in_guarded_page(cpu, cpu.pc):
        cpu.btype = BTYPE_VENEER
    else:
        cpu.btype = BTYPE_JUMP
    cpu.pc = target
    if cpu.poll_irq != 0 or cpu.poll_timer != 0 or cpu.poll_sync != 0:
        service(cpu)


@native
def may_land(cpu: Ptr[EngineState], word: u32) -> u1:
    """BTypeCompatible: may PSTATE.BTYPE, which is not 0, go with this first instruction of a guarded page's target?"""
    if word & HINT_MASK == BTI:
        let_in = LANDS_CALL if cpu.btype == BTYPE_CALL else LANDS_JUMP if cpu.btype == BTYPE_JUMP else u32(LANDS_CALL | LANDS_JUMP)
        return word >> 6 & let_in != 0
    if word == PACIASP or word == PACIBSP:
        strict: u64 = SCTLR_EL1.BT0.mask if cpu.el == 0 else SCTLR_EL1.BT1.mask  # SCTLR_EL2 has them in the same places
        return cpu.btype != BTYPE_JUMP or current_sctlr(cpu) & strict == 0
    return word & 0xFFE0001F in (0xD4200000, 0xD4400000)  # BRK and HLT


@native
def lookup(cpu: Ptr[EngineState]) -> u64:
    """The record at arch.pc, taking exceptions as fetching it makes them due; 0 when the run ends."""
    while cpu.exit_code == Exit.NONE:
        if cpu.poll_kick != 0:  # a guest that takes one exception after the other may never reach a branch
            service(cpu)
            continue
        if cpu.icount >= cpu.stop:  # such exceptions take as long as instructions do, or virtual time would stand still
            interrupt_hypervisor(cpu)
            continue
        if cpu.debug_active != 0:
            record = debugged_record(cpu)
            if record == LOOK_AGAIN:
                continue
            if record != 0:
                return record
        pc = branch_address(cpu, cpu.pc)
        cpu.pc = pc
        page = pc & ~u64(4095)
        entry = cpu.itlb + (((pc >> 12) & (ITLB_ENTRIES - 1)) << 4)
        if pc & 3 != 0:
            cpu.icount = cpu.icount + 1
            misaligned_pc(cpu, pc)
        elif load64(entry) & ~u64(GUARDED) != page:
            fetch_page(cpu, pc)
        elif cpu.il != 0:
            cpu.icount = cpu.icount + 1
            illegal_state(cpu)
        else:
            cpu.page_va = page
            cpu.records = load64(entry + 8)
            if cpu.btype == 0 or arrives(cpu, load64(entry) & GUARDED != 0):
                if cpu.poll_sample != 0:
                    take_sample(cpu)
                return cpu.records + ((pc & 4095) << RECORD_SHIFT)
    return 0


LOOK_AGAIN = 1


@native
def debugged_record(cpu: Ptr[EngineState]) -> u64:
    """`lookup` while debug exceptions are enabled, in the order of their priority.

    0 if nothing is special about the instruction at arch.pc, LOOK_AGAIN after an exception or a change, else its own record.
    """
    finish_step(cpu)
    look_at_debug(cpu)
    stepping: u1 = cpu.debug_active & STEPPING != 0
    if cpu.debug_active == 0:
        return 0
    if stepping and cpu.ss == 0:
        take_step(cpu)
        return LOOK_AGAIN
    pc = branch_address(cpu, cpu.pc)
    cpu.pc = pc
    if cpu.debug_active == IN_PAGES and not has_breakpoint(cpu, pc):
        return 0
    if cpu.poll_irq != 0 or cpu.poll_timer != 0 or cpu.poll_sync != 0:  # lone branches do not look themselves
        service(cpu)
        return LOOK_AGAIN
    if pc & 3 != 0:
        misaligned_pc(cpu, pc)
        return LOOK_AGAIN
    entry = itlb_entry(cpu, pc)
    page = pc & ~u64(4095)
    if load64(entry) & ~u64(STEP_TAG | GUARDED) != page:
        fetch_page(cpu, pc)
        if load64(entry) & ~u64(GUARDED) == page:
            store64(entry, load64(entry) | STEP_TAG)
        return LOOK_AGAIN
    if cpu.debug_active & (IN_PAGES | ANYWHERE) != 0 and breakpoint_hit(cpu, pc):
        debug_exception(cpu, EC_BREAKPOINT, 0)
        return LOOK_AGAIN
    if cpu.il != 0:
        illegal_state(cpu)
        return LOOK_AGAIN
    cpu.page_va = page
    cpu.records = load64(entry + 8)
    if cpu.btype != 0 and not arrives(cpu, load64(entry) & GUARDED != 0):
        return LOOK_AGAIN
    return lone_record(cpu, cpu.records)


@native
def debug_exception(cpu: Ptr[EngineState], ec: u32, iss: u64) -> None:
    """Take a breakpoint or software step exception before the instruction at arch.pc; `ec` is the class from a lower level."""
    target = route_debug(cpu)
    same = u64(u32(cpu.el) == target)
    enter_exception(cpu, target, (u64(ec) + same) << EC_SHIFT | IL | DEBUG_ISS | iss, 0, V_SYNC, cpu.pc)


@native
def take_step(cpu: Ptr[EngineState]) -> None:
    """SoftwareStepException(), with what is known of the instruction that was stepped."""
    iss: u64 = 0
    if cpu.step_state & STEPPED != 0:
        iss = STEP_VALID | (STEP_EXCLUSIVE if cpu.step_state & EXCLUSIVE != 0 else u64(0))
    debug_exception(cpu, EC_STEP, iss)


@native
def misaligned_pc(cpu: Ptr[EngineState], pc: u64) -> None:
    """Take a PC alignment fault."""
    enter_exception(cpu, route_sync(cpu), u64(EC_PC) << EC_SHIFT | IL, pc, V_SYNC, pc)


@native
def illegal_state(cpu: Ptr[EngineState]) -> None:
    """The instruction at arch.pc cannot run while PSTATE.IL is set."""
    enter_exception(cpu, route_sync(cpu), u64(EC_ILLEGAL) << EC_SHIFT | IL, 0, V_SYNC, cpu.pc)


@native
def arrives(cpu: Ptr[EngineState], guarded: u1) -> u1:
    """PSTATE.BTYPE is not 0: may the instruction at pc run? Else the branch target exception is taken.

    BTYPE is cleared here and not when the instruction is complete. Only BRK could show the difference, and keeps it.
    """
    word = current_word(cpu)
    if guarded and not may_land(cpu, word):
        enter_exception(cpu, route_sync(cpu), u64(EC_BTI) << EC_SHIFT | IL | u64(cpu.btype), 0, V_SYNC, cpu.pc)
        return False
    if word & 0xFFE0001F != 0xD4200000:
        cpu.btype = 0
    return True


@native
def fetch_page(cpu: Ptr[EngineState], pc: u64) -> None:
    """Enter the page of `pc` into the instruction TLB, or take the abort that prevents it."""
    fault, host, ipa, info = translate_cached(cpu, pc, ACCESS_EXEC, addressof(cpu.walks))
    if fault != 0:
        cpu.icount = cpu.icount + 1
        instruction_abort(cpu, fault, pc, ipa)
        return
    shared = Ptr[Shared](cpu.shared)
    code = host & ~u64(4095)
    records = find_records(shared, code)
    if records == 0:
        records = add_records(shared, code, cpu.shared + CODE_LOCK)
    if records == 0:
        cpu.exit_code = Exit.CODE_FULL
        return
    guarded = info & INFO_GUARDED != 0 and cpu.sysreg[ID_AA64PFR1_EL1.slot] & ID_AA64PFR1_EL1.BT.mask != 0
    fill_code(cpu, pc, GUARDED if guarded else u64(0), records, info)


# ---- entry --------------------------------------------------------------------------------------------------------------------


@native
def begin(cpu: Ptr[EngineState]) -> None:
    """The hypervisor's ERET: go to the guest's state in ELR_EL2 and SPSR_EL2."""
    unfold_sp(cpu)
    exception_return(cpu)
    cpu.excl_valid = 0
    start(cpu)


@native
def start(cpu: Ptr[EngineState]) -> None:
    """Run from the state as it is, at any exception level."""
    cpu.step_state = 0
    follow_controls(cpu)
    select_space(cpu)
    refresh(cpu)
    if cpu.watching != u32(watchpoints_on(cpu)):
        debug_changed(cpu)
    cpu.poll_timer = 1
    continue_(cpu)
    service(cpu)


@native
def continue_(cpu: Ptr[EngineState]) -> None:
    """Start or go on running: from here on other vCPUs wait for this one's answers.

    Interrupts wait for the next branch, so that it makes no difference to the guest whether its code was compiled before.
    """
    if cpu.exit_code == Exit.COMPILE:
        cpu.step_state = cpu.step_state & ~u32(GOING)  # it lacked a handler: nothing was stepped
    cpu.exit_code = Exit.NONE
    cpu.running = 1
    fence()
    if cpu.poll_sync != 0:
        serve_sync(cpu)
