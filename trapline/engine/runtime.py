"""What compiled handlers call: instruction fetch, interrupts, entry, as native functions; exceptions are in `taking`, memory in `slow`.

Functions that handlers call by name take the vCPU and usually the address of the current record, from which the PC follows.
"""

from __future__ import annotations

from trapline.arm64.debug import DEBUG_ISS, STEP_EXCLUSIVE, STEP_VALID, breakpoint_hit, watchpoints_on
from trapline.arm64.exceptions import (
    EC_SHIFT,
    IL,
    NO_EXCEPTION,
    V_IRQ,
    V_SYNC,
    current_sctlr,
    current_tcr,
    exception_return,
    pending_physical_exception,
    pending_virtual_exception,
    route_debug,
    route_sync,
    take_physical_exception,
    take_virtual_exception,
    unfold_sp,
)
from trapline.arm64.gic_interface import VIRTUAL, maintenance_pending
from trapline.arm64.regs import ID_AA64PFR1_EL1, SCTLR_EL1, TCR_EL1
from trapline.arm64.state import EL2_OUTSIDE, REGIME_EL2
from trapline.arm64.sysreg_functions import NEVER
from trapline.arm64.walk import ACCESS_EXEC, INFO_GUARDED, translate, translate_cached
from trapline.bits.native import (
    Ptr,
    addressof,
    fence,
    load64,
    native,
    store64,
    u1,
    u32,
    u64,
)
from trapline.engine.alarm import set_alarm
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
from trapline.engine.state import (
    GUARDED,
    ITLB_ENTRIES,
    RECORD_SHIFT,
    SAMPLES,
    EngineState,
    Exit,
    Shared,
)
from trapline.engine.taking import (
    EC_BREAKPOINT,
    EC_BTI,
    EC_ILLEGAL,
    EC_PC,
    EC_STEP,
    attention_wanted,
    current_word,
    enter_exception,
    instruction_abort,
    lines,
    next_count,
    refresh,
)
from trapline.engine.tlb import fill_code, follow_controls, select_space, serve_sync

TOP_BYTE = 0xFF << 56
BTYPE_VENEER, BTYPE_CALL, BTYPE_JUMP = 1, 2, 3
"""PSTATE.BTYPE after a jump by way of X16 or X17 or from a page that is not guarded; after a call; after any other jump."""
HINT_MASK, BTI = 0xFFFFFF3F, 0xD503241F
LANDS_CALL, LANDS_JUMP = 1, 2
"""What BTI lets in, as bits 7:6 of its word."""
PACIASP, PACIBSP = 0xD503233F, 0xD503237F


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
    cpu.poll_leave = 0
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
        if cpu.poll_kick != 0 or cpu.poll_sync != 0:  # a guest that takes one exception after the other may never reach a branch
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
        records = add_records(shared, code)
    if records == 0:
        cpu.exit_code = Exit.CODE_FULL
        return
    guarded = info & INFO_GUARDED != 0 and cpu.sysreg[ID_AA64PFR1_EL1.slot] & ID_AA64PFR1_EL1.BT.mask != 0
    fill_code(cpu, pc, GUARDED if guarded else u64(0), records, info)


# ---- entry --------------------------------------------------------------------------------------------------------------------


@native
def begin(cpu: Ptr[EngineState]) -> None:
    """The hypervisor's ERET: go to the guest's state in ELR_EL2 and SPSR_EL2.

    It clears the exclusive monitor and sets the event register, unless the guest is to go on as if it had never left (`restarts`).
    """
    unfold_sp(cpu)
    event = cpu.event
    exception_return(cpu)
    if cpu.restarts == 0:
        cpu.excl_valid = 0
    else:
        cpu.event = event
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
    alarmed: u1 = cpu.el2 != EL2_OUTSIDE or cpu.virtual_time != 0 or set_alarm(cpu)
    continue_(cpu)
    if cpu.restarts == 0:
        service(cpu)
    cpu.restarts = 0
    if not alarmed and cpu.exit_code == Exit.NONE and next_count(cpu) != NEVER:
        cpu.exit_code = Exit.TIMER


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
